//! Stage `pack-photographs`: the photographs of Debian's `gcompris-qt-data` whose licences allow a public demo.
//!
//! They come inside Qt resource files (`.rcc`). Format: a header of magic `qres`, version and the offsets of tree,
//! data and names (all big-endian u32); a tree of nodes; names as UTF-16; data as length-prefixed blobs.

use super::pack::encode_webp;
use anyhow::{Context, Result, bail, ensure};
use api::Picture;
use image::DynamicImage;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use store::files::{PictureRow, write_pictures};

/// Path in the resources, concept (may be empty), title, licence, author, source.
const TABLE: &str = include_str!("../../data/photographs.tsv");
const QUALITY: f32 = 80.0;

/// Reads the `.rcc` files in `folder` and writes `out`: square crops of `side` pixels, captioned by title; the
/// concept, if one is drawn too, is the picture's only object.
pub fn pack_photographs(folder: &Path, side: u32, out: &Path) -> Result<()> {
    let mut opened: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    let mut rows = Vec::new();
    for (number, line) in TABLE.lines().skip(1).enumerate() {
        let [path, concept, title, licence, author, _source] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("photographs.tsv: expected 6 columns in `{line}`");
        };
        let activity = path.split('/').next().unwrap_or_default().to_string();
        if !opened.contains_key(&activity) {
            let file = folder.join(format!("{activity}.rcc"));
            let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            opened.insert(activity.clone(), read_resources(&bytes).with_context(|| file.display().to_string())?);
        }
        // The resources lie under a common root; the table names the part that is stable.
        let file = opened.get(&activity).and_then(|files| files.iter().find(|(name, _)| name.ends_with(path)));
        let (_, bytes) = file.with_context(|| format!("{activity}.rcc has no {path}"))?;
        rows.push(row(number, bytes, side, [concept, title, licence, author])?);
    }
    write_pictures(out, &rows)?;
    tracing::info!(photographs = rows.len(), "packed");
    Ok(())
}

fn row(number: usize, bytes: &[u8], side: u32, [concept, title, licence, author]: [&str; 4]) -> Result<PictureRow> {
    let picture = image::load_from_memory(bytes).with_context(|| title.to_string())?;
    let square = picture.width().min(picture.height());
    let cropped = picture.crop_imm((picture.width() - square) / 2, (picture.height() - square) / 2, square, square);
    let small =
        DynamicImage::ImageRgb8(cropped.resize_exact(side, side, image::imageops::FilterType::Lanczos3).to_rgb8());
    let object = api::PictureObject {
        concept: concept.into(),
        color: String::new(),
        style: "photo".into(),
        rect: api::Rect { x: 0.0, y: 0.0, width: side as f32, height: side as f32 },
    };
    Ok(PictureRow {
        picture: Picture {
            id: format!("photo-{number:03}"),
            url: String::new(),
            width: side,
            height: side,
            caption: format!("Photograph: {title}."),
            kind: "photo".into(),
            objects: if concept.is_empty() { Vec::new() } else { vec![object] },
            credit: format!("{author}, {licence}; cropped and resized"),
        },
        webp: encode_webp(&small.to_rgba8(), QUALITY)?,
    })
}

fn be32(bytes: &[u8], at: usize) -> Result<usize> {
    let four = bytes.get(at..at + 4).context("the resource file is cut short")?;
    Ok(u32::from_be_bytes([four[0], four[1], four[2], four[3]]) as usize)
}

fn be16(bytes: &[u8], at: usize) -> Result<usize> {
    let two = bytes.get(at..at + 2).context("the resource file is cut short")?;
    Ok(u16::from_be_bytes([two[0], two[1]]) as usize)
}

/// Bits of a node's flags.
const COMPRESSED: usize = 1;
const DIRECTORY: usize = 2;

/// All files of a Qt resource file by their path.
fn read_resources(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    ensure!(bytes.starts_with(b"qres"), "not a Qt resource file");
    let version = be32(bytes, 4)?;
    let (tree, data, names) = (be32(bytes, 8)?, be32(bytes, 12)?, be32(bytes, 16)?);
    let node_size = if version >= 2 { 22 } else { 14 };
    let name = |offset: usize| -> Result<String> {
        let start = names + offset;
        let length = be16(bytes, start)?;
        let units: Result<Vec<u16>> = (0..length).map(|i| Ok(be16(bytes, start + 6 + 2 * i)? as u16)).collect();
        Ok(String::from_utf16_lossy(&units?))
    };
    let mut files = BTreeMap::new();
    let mut open = vec![(0usize, String::new())];
    while let Some((node, path)) = open.pop() {
        let at = tree + node * node_size;
        let path = if node == 0 { path } else { format!("{path}/{}", name(be32(bytes, at)?)?) };
        let flags = be16(bytes, at + 4)?;
        if flags & DIRECTORY != 0 {
            let (count, first) = (be32(bytes, at + 6)?, be32(bytes, at + 10)?);
            open.extend((first..first + count).map(|child| (child, path.clone())));
            continue;
        }
        let start = data + be32(bytes, at + 10)?;
        let length = be32(bytes, start)?;
        let blob = bytes.get(start + 4..start + 4 + length).context("the resource file is cut short")?;
        let content = if flags & COMPRESSED == 0 {
            blob.to_vec()
        } else {
            // Qt puts the uncompressed length in front of the zlib stream.
            let mut inflated = Vec::new();
            flate2::read::ZlibDecoder::new(blob.get(4..).context("the resource file is cut short")?)
                .read_to_end(&mut inflated)?;
            inflated
        };
        files.insert(path, content);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_resources_are_an_error() {
        assert!(read_resources(b"nonsense").is_err());
        assert!(read_resources(b"qres\0\0\0\x03\0\0\0\x18").is_err());
    }

    #[test]
    fn the_table_has_six_columns() {
        assert!(TABLE.lines().count() > 50);
        assert!(TABLE.lines().all(|line| line.split('\t').count() == 6));
    }
}
