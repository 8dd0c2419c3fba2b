//! One name, several siblings: `shaders/wgsl/x.wgsl`, `src/kernels/x.rs`, `src/cpu/x.rs`, `tests/kernels/x.rs`.

use std::{collections::BTreeSet, fs};

/// Stems of the files with this extension in a folder of `shaders/`.
fn stems(folder: &str, extension: &str) -> BTreeSet<String> {
    let folder = tests::root().join("shaders").join(folder);
    fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn every_kernel_has_host_code_a_cpu_twin_and_a_test() {
    let kernels = stems("wgsl", "wgsl");
    assert!(!kernels.is_empty(), "no kernels found");
    assert_eq!(kernels, stems("src/kernels", "rs"), "shaders/wgsl and shaders/src/kernels differ");
    assert_eq!(kernels, stems("src/cpu", "rs"), "shaders/wgsl and shaders/src/cpu differ");
    let untested: Vec<String> = kernels.difference(&stems("tests/kernels", "rs")).cloned().collect();
    assert!(untested.is_empty(), "no test in shaders/tests/kernels for {untested:?}");
}

/// The order that lets a reader find things: bindings and sizes, workgroup variables, helpers, `fn main` last.
#[test]
fn a_shaders_entry_points_come_last() {
    for stem in stems("wgsl", "wgsl") {
        let source = fs::read_to_string(tests::root().join(format!("shaders/wgsl/{stem}.wgsl"))).unwrap();
        let entry = source
            .find("@compute")
            .or_else(|| source.find("@vertex"))
            .unwrap_or_else(|| panic!("{stem}.wgsl has no entry point"));
        for early in ["@group", "var<workgroup>"] {
            let last = source.rfind(early).unwrap_or(0);
            assert!(last < entry, "{stem}.wgsl: `{early}` after the first entry point");
        }
    }
}
