#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
use super::*;
use wasm_encoder::{
    CodeSection, ConstExpr, CustomSection, ElementSection, Elements, EntityType, ExportKind, ExportSection, FieldType,
    Function, FunctionSection, GlobalSection, GlobalType, ImportSection, InstructionSink, RawSection, RefType,
    StorageType, TableSection, TableType, TypeSection, ValType,
};
use wasmparser::{ElementItems, ExternalKind, Operator, Parser, Payload};

/// Types of the functions in these tests.
const UNARY: u32 = 0;
const CONSTANT: u32 = 1;

/// Writes instructions.
type Code = dyn for<'a, 'b> Fn(&'a mut InstructionSink<'b>) -> &'a mut InstructionSink<'b>;

const SCRIPT: &str = "const import0 = {\n    __wbg_log_0123456789abcdef: function(arg0) { return arg0; },\n};\n";

fn types() -> TypeSection {
    let mut types = TypeSection::new();
    types.ty().function([ValType::I32], [ValType::I32]);
    types.ty().function([], [ValType::I32]);
    types
}

/// A module of functions, given by type and instructions without the last `end`. Function 0 is imported; `table` and
/// `exports` name functions; a global holds `global`.
fn module(functions: &[(u32, &Code)], table: &[u32], exports: &[(&str, u32)], global: u32) -> Vec<u8> {
    let mut imports = ImportSection::new();
    imports.import("./p_bg.js", "__wbg_log_0123456789abcdef", EntityType::Function(UNARY));
    let (mut declared, mut code) = (FunctionSection::new(), CodeSection::new());
    for (kind, instructions) in functions {
        declared.function(*kind);
        let mut body = Function::new([]);
        instructions(&mut body.instructions());
        body.instructions().end();
        code.function(&body);
    }
    let mut tables = TableSection::new();
    let minimum = table.len() as u64;
    let element_type = RefType::FUNCREF;
    tables.table(TableType { element_type, minimum, maximum: None, table64: false, shared: false });
    let mut globals = GlobalSection::new();
    let kind = GlobalType { val_type: ValType::Ref(RefType::FUNCREF), mutable: false, shared: false };
    globals.global(kind, &ConstExpr::ref_func(global));
    let mut exported = ExportSection::new();
    for (name, function) in exports {
        exported.export(name, ExportKind::Func, *function);
    }
    let mut elements = ElementSection::new();
    elements.active(None, &ConstExpr::i32_const(0), Elements::Functions(table.into()));
    let mut module = wasm_encoder::Module::new();
    module.section(&types()).section(&imports).section(&declared).section(&tables).section(&globals);
    module.section(&exported).section(&elements).section(&code);
    module.section(&CustomSection { name: "target_features".into(), data: [0][..].into() });
    let wasm = module.finish();
    wasmparser::Validator::new().validate_all(&wasm).unwrap();
    wasm
}

/// What names functions from outside the code: the table, the exports, the global.
#[derive(Default)]
struct Named {
    table: Vec<u32>,
    exports: Vec<(String, u32)>,
    global: Option<u32>,
    custom_sections: usize,
}

fn named(wasm: &[u8]) -> Named {
    let mut named = Named::default();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.unwrap() {
            Payload::ElementSection(section) => {
                for element in section {
                    let ElementItems::Functions(functions) = element.unwrap().items else { panic!("no functions") };
                    named.table.extend(functions.into_iter().map(Result::unwrap));
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.unwrap();
                    assert_eq!(export.kind, ExternalKind::Func);
                    named.exports.push((export.name.into(), export.index));
                }
            }
            Payload::GlobalSection(section) => {
                for global in section {
                    let first = global.unwrap().init_expr.get_operators_reader().read().unwrap();
                    let Operator::RefFunc { function_index } = first else { panic!("{first:?}") };
                    named.global = Some(function_index);
                }
            }
            Payload::CustomSection(_) => named.custom_sections += 1,
            _ => {}
        }
    }
    named
}

/// Functions that a function names.
fn callees(module: &Module<'_>, index: u32) -> Vec<u32> {
    module.own(index).unwrap().instructions.iter().filter_map(|instruction| instruction.callee).collect()
}

#[test]
fn equal_functions_and_then_their_callers_become_one() {
    let wasm = module(
        &[
            (UNARY, &|code| code.local_get(0).i32_const(1).i32_add()),
            (UNARY, &|code| code.local_get(0).i32_const(1).i32_add()),
            (UNARY, &|code| code.local_get(0).i32_const(7).i32_mul().call(1)),
            (UNARY, &|code| code.local_get(0).i32_const(7).i32_mul().call(2)),
            (UNARY, &|code| code.local_get(0).call(3)),
            (UNARY, &|code| code.local_get(0).call(0)),
            (CONSTANT, &|code| code.i32_const(5).call(4)),
            (CONSTANT, &|code| code.ref_func(2).drop().i32_const(5)),
        ],
        &[1, 2, 3, 5, 6, 7, 8],
        &[("increment", 2), ("both", 4), ("constant", 7)],
        2,
    );
    let (smaller, script) = smaller(&wasm, SCRIPT, "./p_bg.js").unwrap();
    assert!(smaller.len() < wasm.len());

    let module = Module::parse(&smaller).unwrap();
    assert_eq!(module.functions.len(), 5, "a copy of the first, a caller of it and a forwarding function are gone");
    let named = named(&smaller);
    let [increment, increment_too, both, forwards, to_import, constant, reference] = named.table[..] else {
        panic!("the table has its entries: {:?}", named.table);
    };
    assert_eq!((increment, both), (increment_too, forwards));
    assert_eq!(
        named.exports,
        [("increment", increment), ("both", both), ("constant", constant)].map(|(name, index)| (name.into(), index))
    );
    assert_eq!(named.global, Some(increment));
    assert!(callees(&module, increment).is_empty());
    assert_eq!(callees(&module, both), [increment]);
    assert_eq!(callees(&module, constant), [both]);
    assert_eq!(callees(&module, reference), [increment]);
    assert_eq!(callees(&module, to_import), [0], "an import stands for no function of ours");

    assert_eq!(named.custom_sections, 0);
    assert_eq!(module.imports, [("./p_bg.js", "a")]);
    assert_eq!(script, SCRIPT.replace("__wbg_log_0123456789abcdef", "a"));
}

#[test]
fn functions_that_differ_stay() {
    let wasm = module(
        &[
            (UNARY, &|code| code.local_get(0).i32_const(1).i32_add()),
            (UNARY, &|code| code.local_get(0).i32_const(2).i32_add()),
            (UNARY, &|code| code.local_get(0).call(0).i32_const(1).i32_add()),
            (UNARY, &|code| code.local_get(0).call(1).i32_const(1).i32_add()),
            (CONSTANT, &|code| code.i32_const(1)),
            (CONSTANT, &|code| code.i32_const(1).call(1)),
        ],
        &[1, 2, 3, 4, 5, 6],
        &[],
        1,
    );
    let (smaller, _) = smaller(&wasm, "", "./p_bg.js").unwrap();
    let mut table = named(&smaller).table;
    table.sort_unstable();
    assert_eq!(table, [1, 2, 3, 4, 5, 6]);
    let names = Module::parse(&smaller).unwrap().imports;
    assert_eq!(names, [("./p_bg.js", "__wbg_log_0123456789abcdef")], "the script does not know the import");
}

#[test]
fn a_circle_of_forwarding_functions_comes_to_an_end() {
    let wasm = module(
        &[(UNARY, &|code| code.local_get(0).call(2)), (UNARY, &|code| code.local_get(0).call(1))],
        &[1, 2],
        &[],
        1,
    );
    let (smaller, _) = smaller(&wasm, "", "./p_bg.js").unwrap();
    assert_eq!(named(&smaller).table, [1, 1]);
    assert_eq!(callees(&Module::parse(&smaller).unwrap(), 1), [1]);
}

#[test]
fn like_functions_become_neighbours() {
    // The beginnings alone would put one of each beside the other.
    let begin = |code: &mut InstructionSink<'_>, variant: i32| match variant {
        0 => {
            code.nop().nop().nop();
        }
        1 => {
            code.i32_const(1).drop();
        }
        _ => {}
    };
    let sums = |variant: i32| -> Box<Code> {
        Box::new(move |code| {
            begin(code, variant);
            code.local_get(0).i32_const(3).i32_add().i32_const(5).i32_mul().i32_const(9).i32_sub();
            code.i32_const(100 + variant).i32_add()
        })
    };
    let bits = |variant: i32| -> Box<Code> {
        Box::new(move |code| {
            begin(code, variant);
            code.local_get(0).i32_eqz().i32_const(2).i32_shl().i32_const(6).i32_or().i32_const(8).i32_xor();
            code.i32_const(100 + variant).i32_xor()
        })
    };
    let wasm = module(
        &[
            (UNARY, &*sums(0)),
            (UNARY, &*bits(0)),
            (CONSTANT, &|code| code.i32_const(1)),
            (UNARY, &*sums(1)),
            (UNARY, &*bits(1)),
            (UNARY, &*sums(2)),
            (UNARY, &*bits(2)),
        ],
        &[1, 4, 6, 2, 5, 7, 3],
        &[],
        1,
    );
    let (smaller, _) = smaller(&wasm, "", "./p_bg.js").unwrap();
    let table = named(&smaller).table;
    let spread = |functions: &[u32]| functions.iter().max().unwrap() - functions.iter().min().unwrap();
    assert_eq!((spread(&table[..3]), spread(&table[3..6])), (2, 2), "{table:?}");
    assert_eq!(table[6], 7, "types follow each other");
}

#[test]
fn what_is_unknown_is_an_error() {
    let error = |wasm: &[u8]| format!("{:#}", smaller(wasm, "", "./p_bg.js").unwrap_err());

    let mut unknown_section = wasm_encoder::Module::new();
    unknown_section.section(&types()).section(&RawSection { id: 99, data: &[1, 2, 3] });
    let told = error(&unknown_section.finish());
    assert!(told.contains("section 99"), "{told}");

    let (mut functions, mut code) = (FunctionSection::new(), CodeSection::new());
    functions.function(CONSTANT);
    code.raw(&[0, 0x27, 0x0b]);
    let mut unknown_instruction = wasm_encoder::Module::new();
    unknown_instruction.section(&types()).section(&functions).section(&code);
    let told = error(&unknown_instruction.finish());
    assert!(told.contains("body of function 0") && told.contains("0x27"), "{told}");

    let one = |kind: u32, callee: u32| {
        let (mut functions, mut code, mut body) = (FunctionSection::new(), CodeSection::new(), Function::new([]));
        functions.function(kind);
        body.instructions().call(callee).end();
        code.function(&body);
        let mut module = wasm_encoder::Module::new();
        module.section(&types()).section(&functions).section(&code);
        module.finish()
    };
    assert!(Module::parse(&one(CONSTANT, 0)).is_ok());
    let (no_type, no_callee) = (error(&one(2, 0)), error(&one(CONSTANT, 1)));
    assert!(no_type.contains("type 2"), "{no_type}");
    assert!(no_callee.contains("names function 1"), "{no_callee}");

    let mut structs = TypeSection::new();
    structs.ty().struct_([FieldType { element_type: StorageType::I8, mutable: false }]);
    let mut unknown_type = wasm_encoder::Module::new();
    unknown_type.section(&structs);
    let told = error(&unknown_type.finish());
    assert!(told.contains("gc proposal"), "{told}");
}

#[test]
fn a_bundle_is_rewritten_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let twice: &Code = &|code| code.local_get(0).i32_const(1).i32_add();
    let wasm = module(&[(UNARY, twice), (UNARY, twice)], &[1, 2], &[], 1);
    let (wasm_file, script_file) = (folder.path().join("p_bg.wasm"), folder.path().join("p.js"));
    fs::write(&wasm_file, &wasm).unwrap();
    fs::write(&script_file, SCRIPT).unwrap();
    bundle(folder.path(), "p").unwrap();
    assert_eq!(named(&fs::read(&wasm_file).unwrap()).table, [1, 1]);
    assert!(fs::read_to_string(&script_file).unwrap().contains("    a: function(arg0)"));

    let missing = bundle(folder.path(), "q").unwrap_err().to_string();
    assert!(missing.contains("q_bg.wasm"), "{missing}");
}
