//! Encodes 64 tokens with an SAE of the paper's size, 131,072 latents of 4,096 dimensions, from a memory map, and says
//! how long it takes and how much memory it needs.
//!
//! ```text
//! cargo run --release -p model --example encode_full_size -- FOLDER [LATENTS] [K]
//! ```
//!
//! Writes 4 GiB of random f32 weights to the folder unless they are there. LATENTS is 131072, K is 256 if not given.

use model::SaeFile;
use std::error::Error;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

const D_MODEL: usize = 4096;
const TOKENS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: encode_full_size FOLDER [LATENTS] [K]")?;
    let latents: usize = arguments.next().map_or(Ok(131_072), |text| text.parse())?;
    let k: usize = arguments.next().map_or(Ok(256), |text| text.parse())?;
    let folder = Path::new(&folder).join(format!("model.layers.24.{latents}.{k}"));
    if !folder.join("cfg.json").exists() {
        write_sae(&folder, latents, k)?;
    }
    let mut random = Random(7);
    let hidden: Vec<f32> = (0..TOKENS * D_MODEL).map(|_| random.value()).collect();
    let started = Instant::now();
    let sae = SaeFile::open(&folder)?;
    println!("opened in {:.3} s", started.elapsed().as_secs_f64());
    for round in ["first", "second", "third"] {
        let started = Instant::now();
        let z = sae.encode(&hidden)?;
        let seconds = started.elapsed().as_secs_f64();
        println!("{round}: {TOKENS} × {D_MODEL} → {latents}, k = {}: {seconds:.3} s; strongest {}", z.k, z.acts[0]);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(peak) = status.lines().find(|line| line.starts_with("VmHWM")) {
        println!("peak memory, pages of the file included: {peak}");
    }
    Ok(())
}

/// Row by row: the matrices are never in memory.
fn write_sae(folder: &Path, latents: usize, k: usize) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    let matrix = latents * D_MODEL * 4;
    let tensors = [
        ("W_dec", vec![latents, D_MODEL], matrix),
        ("b_dec", vec![D_MODEL], D_MODEL * 4),
        ("encoder.bias", vec![latents], latents * 4),
        ("encoder.weight", vec![latents, D_MODEL], matrix),
    ];
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape, bytes) in &tensors {
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [end, end + bytes]});
        header.insert((*name).to_string(), entry);
        end += bytes;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(folder.join("sae.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut random = Random(1);
    for _ in 0..end / 4 {
        file.write_all(&(random.value() / 64.0).to_le_bytes())?;
    }
    file.into_inner()?.sync_all()?;
    std::fs::write(folder.join("cfg.json"), format!(r#"{{"num_latents": {latents}, "k": {k}, "d_in": {D_MODEL}}}"#))?;
    Ok(())
}

/// Even numbers in −1 to 1 (xorshift): quick enough to fill gigabytes.
struct Random(u64);

impl Random {
    fn value(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
