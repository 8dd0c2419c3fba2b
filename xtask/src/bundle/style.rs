//! The style sheet and the fonts.

use super::{hash, sizes};
use crate::paths;
use anyhow::Context;
use std::{fs, path::Path};

/// The layers of `frontend/style/`, in the order in which they may override each other.
const LAYERS: [&str; 4] = ["tokens", "base", "components", "pages"];

/// Joins the layers into `style-<hash>.css` and returns its name.
pub fn build(out: &Path) -> anyhow::Result<String> {
    let folder = paths::root().join("frontend/style");
    let mut sheet = String::new();
    for layer in LAYERS {
        let file = folder.join(format!("{layer}.css"));
        sheet += &fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        sheet.push('\n');
    }
    let name = format!("style-{}.css", hash::bytes(&[sheet.as_bytes()]));
    let file = out.join(&name);
    if !file.is_file() {
        fs::write(&file, &sheet).with_context(|| format!("cannot write {}", file.display()))?;
        sizes::compress_file(&file)?;
    }
    Ok(name)
}

/// Copies `frontend/fonts/` (fonts and their licences) to `fonts/`, beside the style sheet that names them.
pub fn copy_fonts(out: &Path) -> anyhow::Result<()> {
    let (from, to) = (paths::root().join("frontend/fonts"), out.join("fonts"));
    fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(&from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        if fs::read(&copy).ok() != Some(fs::read(entry.path())?) {
            fs::copy(entry.path(), &copy).with_context(|| format!("cannot write {}", copy.display()))?;
        }
    }
    Ok(())
}
