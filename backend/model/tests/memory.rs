//! Loading a checkpoint needs the memory of its weights and no copy of them: measured in a process of its own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

use model::config::LlavaNextConfig;
use model::{Cpu, Dtype, LlavaNext};
use safetensors::SafeTensors;
use std::path::Path;
use std::process::Command;

const SHARDS: usize = 6;
/// What the process may need beside weights and one shard: buffers, and one tensor on its way.
const SLACK: u64 = 32 << 20;
/// Names the checkpoint to the child process.
const FOLDER: &str = "LMM_SCOPE_TEST_CHECKPOINT";

/// About 90 MiB in f16, most of it in the language model's blocks.
fn config() -> LlavaNextConfig {
    let mut config = model::testing::tiny_config(4096);
    let text = &mut config.text_config;
    (text.hidden_size, text.intermediate_size) = (512, 2048);
    (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) = (10, 8, 8);
    config
}

/// Writes the checkpoint as several files; the bytes of all, and of the largest.
fn write_shards(folder: &Path) -> (u64, u64) {
    let net: LlavaNext<Cpu> = config().init(&Default::default());
    net.save(&config(), folder).unwrap();
    let whole = folder.join("model.safetensors");
    let bytes = std::fs::read(&whole).unwrap();
    let mut shards: Vec<Vec<_>> = (0..SHARDS).map(|_| Vec::new()).collect();
    let mut names = serde_json::Map::new();
    let file = |number: usize| format!("model-{number:05}-of-{SHARDS:05}.safetensors");
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    // The largest first, each into the smallest file: the library lists them in no order.
    tensors.sort_by(|(a, x), (b, y)| y.data().len().cmp(&x.data().len()).then(a.cmp(b)));
    let mut filled = [0; SHARDS];
    for (name, view) in tensors {
        let number = (0..SHARDS).min_by_key(|&number| filled[number]).unwrap();
        filled[number] += view.data().len();
        names.insert(name.clone(), file(number).into());
        shards[number].push((name, view));
    }
    let mut sizes = Vec::new();
    for (number, tensors) in shards.into_iter().enumerate() {
        let bytes = safetensors::serialize(tensors, None).unwrap();
        sizes.push(bytes.len() as u64);
        std::fs::write(folder.join(file(number)), bytes).unwrap();
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": names });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(whole).unwrap();
    (sizes.iter().sum(), sizes.into_iter().max().unwrap())
}

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn a_sharded_checkpoint_is_in_memory_once() {
    let folder = tempfile::tempdir().unwrap();
    let (all, largest) = write_shards(folder.path());
    assert!(all > 64 << 20 && all > 4 * largest, "{all} bytes, {largest} in the largest shard");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_the_child_process_does", "--ignored", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success(), "{told}\n{}", String::from_utf8_lossy(&child.stderr));
    let number = |name: &str| -> u64 {
        let found = told.lines().find_map(|line| line.split_once(name)?.1.trim().parse().ok());
        found.unwrap_or_else(|| panic!("no {name} in {told}"))
    };
    let (peak, held) = (number("peak grew by"), number("anonymous memory grew by"));
    eprintln!("weights {all} bytes, largest shard {largest}: peak memory grew by {peak}, held are {held}");
    assert!(held >= all / 10 * 9, "the weights are in memory: {held} of {all}");
    assert!(peak <= all + largest + SLACK, "the peak grew by {peak} for {all} bytes of weights");
}

/// Runs as a process of its own, so that nothing else is measured.
#[test]
#[ignore = "the other test runs it"]
fn what_the_child_process_does() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let (before, anonymous) = (status("VmRSS"), status("RssAnon"));
    let net = LlavaNext::<Cpu>::load(&config(), Path::new(&folder), &Default::default(), Dtype::F16).unwrap();
    let (peak, held) = (status("VmHWM"), status("RssAnon"));
    println!("peak grew by {}", peak.saturating_sub(before));
    println!("anonymous memory grew by {}", held.saturating_sub(anonymous));
    drop(net);
}
