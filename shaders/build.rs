//! Takes the comments out of the WGSL: browsers fetch it as part of the worker.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=wgsl");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    for entry in fs::read_dir("wgsl")? {
        let path = entry?.path();
        let lines = fs::read_to_string(&path)?;
        // `// host:` marks what the host replaces.
        let code = lines.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"));
        let text: String = code.flat_map(|line| [line, "\n"]).collect();
        fs::write(out.join(path.file_name().ok_or("a file has a name")?), text)?;
    }
    Ok(())
}
