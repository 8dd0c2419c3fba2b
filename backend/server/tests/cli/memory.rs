//! `encode` reads the SAE from its memory map: measured while it runs.
#![cfg(target_os = "linux")]

use crate::common::{Place, f32_tensor, write_tensors};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

const D: usize = 1024;
const WIDE: usize = 32_768;
const TOKENS: usize = 64;
const MATRIX: u64 = (WIDE * D * 4) as u64;
/// What the program may need of its own: less than a copy of one matrix.
const OWN: u64 = MATRIX / 4 * 3;

/// An SAE with two matrices of 128 MiB. The same MiB of numbers comes again and again.
fn write_sae(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let tensors = [
        ("W_dec", vec![WIDE, D], MATRIX),
        ("b_dec", vec![D], D as u64 * 4),
        ("encoder.bias", vec![WIDE], WIDE as u64 * 4),
        ("encoder.weight", vec![WIDE, D], MATRIX),
    ];
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape, bytes) in tensors {
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [end, end + bytes] });
        header.insert(name.to_owned(), entry);
        end += bytes;
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(folder.join("sae.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let value = |i: u32| ((i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5) / 32.0;
    let numbers: Vec<u8> = (0..1 << 18).flat_map(|i| value(i).to_le_bytes()).collect();
    let mut left = end;
    while left > 0 {
        let count = left.min(numbers.len() as u64);
        file.write_all(&numbers[..count as usize]).unwrap();
        left -= count;
    }
    fs::write(folder.join("cfg.json"), format!(r#"{{"num_latents": {WIDE}, "k": 32, "d_in": {D}}}"#)).unwrap();
}

/// A line of a process's status, in bytes; nothing when it has ended.
fn status(process: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

#[test]
fn encode_copies_no_matrix() {
    let place = Place::new();
    write_sae(&place.at("wide/model.layers.1"));
    let hidden: Vec<f32> = (0..TOKENS * D).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
    let tensors = BTreeMap::from([("hidden".to_owned(), f32_tensor(&[TOKENS, D], &hidden))]);
    write_tensors(&place.at("hidden.safetensors"), &tensors);
    let mut child = Command::new(env!("CARGO_BIN_EXE_lmm-scope"))
        .args("encode --sae wide --hidden hidden.safetensors --out out.safetensors".split(' '))
        .current_dir(place.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // The first only rises, the second is asked for often enough to see a copy of 128 MiB.
    let (mut peak, mut own) = (0, 0);
    let ended = loop {
        peak = peak.max(status(child.id(), "VmHWM").unwrap_or_default());
        own = own.max(status(child.id(), "RssAnon").unwrap_or_default());
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(ended.success());
    eprintln!("matrices of {MATRIX} bytes: own memory up to {own}, peak {peak}");
    assert!(own > 0 && own <= OWN, "{own} bytes of its own beside matrices of {MATRIX}");
    // The encoder's pages, and never the decoder's.
    assert!(peak <= MATRIX + OWN, "{peak} bytes at the peak");
}
