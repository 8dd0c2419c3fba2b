//! `CREDITS.md`: who made the demo's pictures, under which licence, and what was done to them.

use super::pack::FAMILIES;
use anyhow::Result;
use std::fmt::Write;
use std::path::Path;
use store::files::{read_pictures, read_sprites};

/// The text that the MIT licence wants to travel with its works.
const MIT: &str = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the \"Software\"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the following conditions:\n\nThe above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.\n\nTHE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.\n";

/// Writes `out/CREDITS.md` from the packed sprites and photographs.
pub fn write_credits(sprites: &Path, photographs: &Path, out: &Path) -> Result<()> {
    let sprites = read_sprites(sprites)?;
    let mut text = String::from(
        "# Credits of the demo's pictures\n\nWritten by `lmm-scope pocket`. The scenes are composed from the drawings below: cut out, resized, mirrored, and in a quarter of the cases turned in hue. Each scene names its families.\n\nFaces here are drawings; the photographs show no human faces by choice of source.\n\n## Drawings\n\n| family | package | author | licence | drawings |\n|---|---|---|---|---:|\n",
    );
    for family in &FAMILIES {
        let count = sprites.iter().filter(|row| row.family == family.name).count();
        writeln!(
            text,
            "| {} | `{}` | {} | {} | {count} |",
            family.name, family.package, family.author, family.licence
        )?;
    }
    text.push_str("\nApache-2.0: the text is in the repository's `LICENSE`. CC-BY-4.0: <https://creativecommons.org/licenses/by/4.0/legalcode>. MIT (Copyright Microsoft Corporation):\n\n");
    text.push_str(MIT);
    text.push_str("\n<details><summary>Every drawing</summary>\n\n| concept | family | drawing |\n|---|---|---|\n");
    for row in &sprites {
        writeln!(text, "| {} | {} | {} |", row.concept, row.family, row.title)?;
    }
    text.push_str("\n</details>\n\n## Photographs\n\nFrom the activities of GCompris (Debian package `gcompris-qt-data`).\n\n| id | shows | author, licence, changes |\n|---|---|---|\n");
    for row in read_pictures(photographs)? {
        writeln!(text, "| {} | {} | {} |", row.picture.id, row.picture.caption, row.picture.credit)?;
    }
    model::weights::write_atomic(&out.join("CREDITS.md"), text.as_bytes())?;
    Ok(())
}
