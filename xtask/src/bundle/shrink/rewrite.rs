//! Writes the module anew: functions in their new order, callers with the new indices.

use super::{module::Module, names::ShortNames};
use anyhow::anyhow;
use wasm_encoder::{
    CodeSection, FunctionSection, ImportSection,
    reencode::{Error, Reencode},
};
use wasmparser::{CodeSectionReader, CustomSectionReader, FunctionSectionReader, ImportSectionReader, Parser};

/// `representatives` from [`super::merge`], `order` from [`super::order`].
pub fn rewrite(
    module: &Module<'_>,
    representatives: &[u32],
    order: &[u32],
    names: &ShortNames<'_>,
) -> anyhow::Result<Vec<u8>> {
    let mut indices: Vec<u32> = (0..module.function_count()).collect();
    for (new, &old) in (module.imported_functions..).zip(order) {
        indices[old as usize] = new;
    }
    let indices = representatives.iter().map(|&representative| indices[representative as usize]).collect();
    let mut written = wasm_encoder::Module::new();
    Rewriter { module, order, indices, names }.parse_core_module(&mut written, Parser::new(0), module.wasm).map_err(
        |error| match error {
            Error::ParseError(error) => error.into(),
            other => anyhow!("{other}"),
        },
    )?;
    Ok(written.finish())
}

/// What is not mentioned here is written as it was; wasm-encoder knows every place of a function index.
struct Rewriter<'m> {
    module: &'m Module<'m>,
    /// Old indices of the functions that stay.
    order: &'m [u32],
    /// New indices by old ones.
    indices: Vec<u32>,
    names: &'m ShortNames<'m>,
}

impl Rewriter<'_> {
    fn own_in_order(&self) -> impl Iterator<Item = usize> {
        self.order.iter().map(|index| (index - self.module.imported_functions) as usize)
    }
}

impl Reencode for Rewriter<'_> {
    type Error = String;

    fn function_index(&mut self, index: u32) -> Result<u32, Error<String>> {
        let new = self.indices.get(index as usize).copied();
        new.ok_or_else(|| Error::UserError(format!("function {index} is named, but there are {}", self.indices.len())))
    }

    fn parse_import_section(
        &mut self,
        imports: &mut ImportSection,
        section: ImportSectionReader<'_>,
    ) -> Result<(), Error<String>> {
        for import in section.into_imports() {
            let import = import?;
            let kind = self.entity_type(import.ty)?;
            imports.import(import.module, self.names.of(import.module, import.name), kind);
        }
        Ok(())
    }

    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        _: FunctionSectionReader<'_>,
    ) -> Result<(), Error<String>> {
        for own in self.own_in_order() {
            functions.function(self.module.functions[own].type_index);
        }
        Ok(())
    }

    fn parse_code_section(
        &mut self,
        code: &mut CodeSection,
        section: CodeSectionReader<'_>,
    ) -> Result<(), Error<String>> {
        let bodies = section.into_iter().collect::<Result<Vec<_>, _>>()?;
        let order: Vec<usize> = self.own_in_order().collect();
        for own in order {
            self.parse_function_body(code, bodies[own].clone())?;
        }
        Ok(())
    }

    /// No browser reads names, producers and the like.
    fn parse_custom_section(
        &mut self,
        _: &mut wasm_encoder::Module,
        _: CustomSectionReader<'_>,
    ) -> Result<(), Error<String>> {
        Ok(())
    }
}
