//! Every WGSL file is parsed and validated without a GPU, and its sizes agree with the host's.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use shaders::WeightType;
use shaders::tile_shape::TILE_SHAPES;

/// Workgroup storage every WebGPU device has.
const WORKGROUP_BYTES: u32 = 16 << 10;

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Stems of the files in a folder of this crate.
fn stems(path: &str) -> BTreeSet<String> {
    let files = std::fs::read_dir(folder(path)).unwrap();
    files.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

fn validated(name: &str, source: &str) -> (naga::Module, ModuleInfo) {
    let module =
        naga::front::wgsl::parse_str(source).unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(source)));
    // What every WebGPU device has: only f16 packed in u32 (`unpack2x16float`) is a capability of its own in naga.
    let info = Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16_IN_FLOAT32)
        .validate(&module)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(source)));
    (module, info)
}

/// Limits hold for what an entry point uses.
fn check_limits(name: &str, (module, info): &(naga::Module, ModuleInfo)) {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    for (at, entry) in module.entry_points.iter().enumerate() {
        let name = format!("{name} {}", entry.name);
        let threads: u32 = entry.workgroup_size.iter().product();
        assert!(threads <= 256, "{name}: {threads} invocations");
        let uses = info.get_entry_point(at);
        let used = || module.global_variables.iter().filter(|(handle, _)| !uses[*handle].is_empty());
        let workgroup = used().filter(|(_, variable)| variable.space == naga::AddressSpace::WorkGroup);
        let bytes: u32 = workgroup.map(|(_, variable)| layouter[variable.ty].size).sum();
        assert!(bytes <= WORKGROUP_BYTES, "{name}: {bytes} bytes of workgroup storage");
        let storage = |variable: &naga::GlobalVariable| matches!(variable.space, naga::AddressSpace::Storage { .. });
        let buffers = used().filter(|(_, variable)| storage(variable)).count();
        assert!(buffers <= 8, "{name}: {buffers} storage buffers");
    }
}

#[test]
fn every_file_is_valid_within_the_default_limits() {
    let mut seen = BTreeSet::new();
    for file in std::fs::read_dir(folder("wgsl")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        check_limits(&name, &validated(&name, &std::fs::read_to_string(&path).unwrap()));
        seen.insert(name);
    }
    let listed: BTreeSet<String> = shaders::WGSL.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert!(seen.len() >= 3, "saw only {seen:?}");
    assert_eq!(seen, listed);
}

#[test]
fn the_benchmarks_shaders_are_valid() {
    let mut seen = 0;
    for file in std::fs::read_dir(folder("examples/bench")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "wgsl") {
            let name = path.display().to_string();
            check_limits(&name, &validated(&name, &std::fs::read_to_string(&path).unwrap()));
            seen += 1;
        }
    }
    assert!(seen >= 2, "saw only {seen}");
}

#[test]
fn every_variant_is_valid() {
    let mut sources = BTreeSet::new();
    for weight_type in WeightType::ALL {
        for shape in TILE_SHAPES {
            let name = format!("sae_encode {weight_type:?} {shape:?}");
            let source = shape.source(weight_type);
            check_limits(&name, &validated(&name, &source));
            sources.insert(source);
        }
    }
    assert_eq!(sources.len(), WeightType::ALL.len() * TILE_SHAPES.len(), "variants differ");
    for source in shaders::kernels::sae_select::sources() {
        check_limits("sae_select", &validated("sae_select", &source));
    }
}

#[test]
fn uniforms_have_the_size_of_the_hosts_params() {
    for (name, source) in shaders::WGSL {
        let (module, _) = validated(name, source);
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let (handle, _) = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params")).unwrap();
        assert_eq!(layouter[handle].size, shaders::kernels::PARAMS_BYTES, "{name}");
    }
}

#[test]
fn a_kernel_has_three_siblings_and_a_test() {
    let kernels = stems("wgsl");
    assert_eq!(stems("src/kernels"), kernels);
    assert_eq!(stems("src/cpu"), kernels);
    assert!(stems("tests/kernels").is_superset(&kernels));
}
