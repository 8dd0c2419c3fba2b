//! What the other steps need to know of a wasm module.

use anyhow::{Context, bail};
use wasmparser::{FunctionBody, Operator, Parser, Payload, TypeRef};

/// A module, read.
pub struct Module<'a> {
    pub wasm: &'a [u8],
    /// Number of parameters of each type.
    pub parameters: Vec<usize>,
    /// Module and name of every import, functions or not.
    pub imports: Vec<(&'a str, &'a str)>,
    /// Imported functions have the first indices.
    pub imported_functions: u32,
    /// The functions after them.
    pub functions: Vec<Function<'a>>,
}

/// A function that the module defines.
pub struct Function<'a> {
    pub type_index: u32,
    /// Declarations of locals.
    pub locals: &'a [u8],
    /// The last one is the body's `end`.
    pub instructions: Vec<Instruction<'a>>,
}

pub struct Instruction<'a> {
    pub bytes: &'a [u8],
    /// The function that a `call`, `return_call` or `ref.func` names.
    pub callee: Option<u32>,
}

impl<'a> Module<'a> {
    /// # Errors
    ///
    /// Broken wasm; a section, a type or an instruction that is unknown here.
    pub fn parse(wasm: &'a [u8]) -> anyhow::Result<Self> {
        let mut module =
            Self { wasm, parameters: Vec::new(), imports: Vec::new(), imported_functions: 0, functions: Vec::new() };
        let mut types = Vec::new();
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::TypeSection(section) => {
                    for function in section.into_iter_err_on_gc_types() {
                        module.parameters.push(function?.params().len());
                    }
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import?;
                        module.imports.push((import.module, import.name));
                        module.imported_functions +=
                            u32::from(matches!(import.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)));
                    }
                }
                Payload::FunctionSection(section) => types = section.into_iter().collect::<Result<_, _>>()?,
                Payload::CodeSectionEntry(body) => {
                    let index = module.functions.len();
                    let type_index = *types.get(index).context("more function bodies than functions")?;
                    let function = Function::parse(wasm, type_index, &body);
                    module.functions.push(function.with_context(|| format!("in the body of function {index}"))?);
                }
                Payload::Version { .. }
                | Payload::TableSection(_)
                | Payload::MemorySection(_)
                | Payload::TagSection(_)
                | Payload::GlobalSection(_)
                | Payload::ExportSection(_)
                | Payload::StartSection { .. }
                | Payload::ElementSection(_)
                | Payload::DataCountSection { .. }
                | Payload::DataSection(_)
                | Payload::CodeSectionStart { .. }
                | Payload::CustomSection(_)
                | Payload::End(_) => {}
                other => match other.as_section() {
                    Some((id, range)) => bail!("section {id} at byte {} is unknown here", range.start),
                    None => bail!("{other:?} is unknown here"),
                },
            }
        }
        if module.functions.len() != types.len() {
            bail!("{} functions but {} bodies", types.len(), module.functions.len());
        }
        module.check_indices()?;
        Ok(module)
    }

    /// Later steps look types and callees up without asking.
    fn check_indices(&self) -> anyhow::Result<()> {
        let (types, functions) = (self.parameters.len(), self.function_count());
        for (index, function) in self.own_functions() {
            if function.type_index as usize >= types {
                bail!("function {index} has type {}, but there are {types}", function.type_index);
            }
            let mut callees = function.instructions.iter().filter_map(|instruction| instruction.callee);
            if let Some(callee) = callees.find(|callee| *callee >= functions) {
                bail!("function {index} names function {callee}, but there are {functions}");
            }
        }
        Ok(())
    }

    /// Imported and own functions together.
    pub fn function_count(&self) -> u32 {
        self.imported_functions + self.functions.len() as u32
    }

    /// The function at an index, if the module defines it.
    pub fn own(&self, index: u32) -> Option<&Function<'a>> {
        self.functions.get(index.checked_sub(self.imported_functions)? as usize)
    }

    /// The module's own functions with their indices.
    pub fn own_functions(&self) -> impl Iterator<Item = (u32, &Function<'a>)> {
        (self.imported_functions..).zip(&self.functions)
    }
}

impl<'a> Function<'a> {
    fn parse(wasm: &'a [u8], type_index: u32, body: &FunctionBody<'a>) -> anyhow::Result<Self> {
        let slice = |start, end| wasm.get(start..end).context("a body ends after the module");
        let mut reader = body.get_operators_reader()?;
        let locals = slice(body.range().start, reader.original_position())?;
        let mut instructions = Vec::new();
        while !reader.eof() {
            let (operator, start) = reader.read_with_offset()?;
            let callee = match operator {
                Operator::Call { function_index }
                | Operator::ReturnCall { function_index }
                | Operator::RefFunc { function_index } => Some(function_index),
                _ => None,
            };
            instructions.push(Instruction { bytes: slice(start, reader.original_position())?, callee });
        }
        reader.finish()?;
        Ok(Self { type_index, locals, instructions })
    }
}

impl Instruction<'_> {
    /// The first byte; groups of instructions (`memory.copy`, SIMD) share theirs.
    pub fn opcode(&self) -> u8 {
        self.bytes.first().copied().unwrap_or_default()
    }
}
