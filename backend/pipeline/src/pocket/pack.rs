//! Stage `pack`: sprites out of the emoji packages, 96 pixels, one Parquet file with author and licence per drawing.
//!
//! The packages are npm archives (`npm pack NAME@VERSION`); the committed `sprites.parquet` makes them unnecessary
//! for everything but a rebuild.

use super::concepts::{Concept, concepts};
use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;
use image::RgbaImage;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use store::files::sprites::{SpriteRow, write_sprites};

/// Side of a packed sprite in pixels.
pub const SPRITE_SIDE: u32 = 96;
/// WebP quality of a packed sprite.
const QUALITY: f32 = 82.0;

/// A design family: one package by one group of artists.
pub struct Family {
    /// Short name used in files and pages.
    pub name: &'static str,
    /// npm package and version.
    pub package: &'static str,
    archive: &'static str,
    pub author: &'static str,
    pub licence: &'static str,
    /// Never trained on.
    pub held_out: bool,
}

/// Every family of the pack.
pub const FAMILIES: [Family; 8] = [
    Family {
        name: "noto",
        package: "@iconify-json/noto@1.2.9",
        archive: "iconify-json-noto-1.2.9.tgz",
        author: "Google Inc.",
        licence: "Apache-2.0",
        held_out: false,
    },
    Family {
        name: "noto-v1",
        package: "@iconify-json/noto-v1@1.2.5",
        archive: "iconify-json-noto-v1-1.2.5.tgz",
        author: "Google Inc.",
        licence: "Apache-2.0",
        held_out: false,
    },
    Family {
        name: "twemoji",
        package: "@iconify-json/twemoji@1.2.5",
        archive: "iconify-json-twemoji-1.2.5.tgz",
        author: "Twitter and contributors",
        licence: "CC-BY-4.0",
        held_out: false,
    },
    Family {
        name: "emojione",
        package: "@iconify-json/emojione@1.2.3",
        archive: "iconify-json-emojione-1.2.3.tgz",
        author: "EmojiOne",
        licence: "CC-BY-4.0",
        held_out: false,
    },
    Family {
        name: "fxemoji",
        package: "@iconify-json/fxemoji@1.2.2",
        archive: "iconify-json-fxemoji-1.2.2.tgz",
        author: "Mozilla",
        licence: "CC-BY-4.0",
        held_out: false,
    },
    Family {
        name: "fluent-flat",
        package: "@iconify-json/fluent-emoji-flat@1.2.6",
        archive: "iconify-json-fluent-emoji-flat-1.2.6.tgz",
        author: "Microsoft Corporation",
        licence: "MIT",
        held_out: false,
    },
    Family {
        name: "fluent-3d",
        package: "@lobehub/fluent-emoji-3d@1.1.0",
        archive: "lobehub-fluent-emoji-3d-1.1.0.tgz",
        author: "Microsoft Corporation",
        licence: "MIT",
        held_out: false,
    },
    Family {
        name: "streamline",
        package: "@iconify-json/streamline-emojis@1.2.4",
        archive: "iconify-json-streamline-emojis-1.2.4.tgz",
        author: "Streamline",
        licence: "CC-BY-4.0",
        held_out: true,
    },
];

/// The family called `name`.
pub fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}

/// Emoji by CLDR short name: code points in lower-case hexadecimal.
type Labels = BTreeMap<String, String>;

/// Reads the packages in `packages` and writes `out`.
///
/// # Errors
/// A missing or unreadable package; a drawing that does not render.
pub fn pack(packages: &Path, out: &Path) -> Result<()> {
    let concepts = concepts()?;
    let labels = emoji_labels(packages)?;
    let mut rows = Vec::new();
    for family in &FAMILIES {
        let before = rows.len();
        let files = read_archive(&packages.join(family.archive))
            .with_context(|| format!("`npm pack {}` in that folder brings it", family.package))?;
        for concept in &concepts {
            rows.extend(drawings(family, &files, concept, &labels)?);
        }
        tracing::info!(family = family.name, sprites = rows.len() - before, "packed");
    }
    write_sprites(out, &rows).with_context(|| format!("writing {}", out.display()))?;
    Ok(())
}

/// The files of an npm archive that the pack needs: JSON and WebP.
fn read_archive(path: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let mut files = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let wanted =
            name.ends_with("package/icons.json") || name.ends_with(".webp") || name.ends_with("package/en/data.json");
        if wanted {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(name, bytes);
        }
    }
    Ok(files)
}

/// CLDR short names and code points from `emojibase-data`.
fn emoji_labels(packages: &Path) -> Result<Labels> {
    let files =
        read_archive(&packages.join("emojibase-data-17.0.0.tgz")).context("`npm pack emojibase-data@17` brings it")?;
    let data = files.get("package/en/data.json").context("emojibase-data has no en/data.json")?;
    let list: Vec<Value> = serde_json::from_slice(data)?;
    let pair = |emoji: &Value| Some((emoji["label"].as_str()?.to_string(), emoji["hexcode"].as_str()?.to_lowercase()));
    Ok(list.iter().filter_map(pair).collect())
}

/// All drawings of one concept in one family.
fn drawings(
    family: &Family,
    files: &BTreeMap<String, Vec<u8>>,
    concept: &Concept,
    labels: &Labels,
) -> Result<Vec<SpriteRow>> {
    let mut rows = Vec::new();
    for label in &concept.emoji_labels {
        let hex = labels.get(label).cloned().unwrap_or_default();
        let picture = match files.get("package/icons.json") {
            Some(icons) => iconify_svg(icons, &concept.name, label)?.map(|svg| rasterise(&svg)).transpose()?,
            None => webp_by_code(files, &hex)?,
        };
        let Some(picture) = picture else { continue };
        let webp = encode_webp(&picture, QUALITY)?;
        // One drawing under two names is one drawing.
        if rows.iter().any(|row: &SpriteRow| row.webp == webp) {
            continue;
        }
        rows.push(SpriteRow {
            family: family.name.into(),
            concept: concept.name.clone(),
            group: concept.group.clone(),
            hex,
            title: label.clone(),
            author: family.author.into(),
            licence: family.licence.into(),
            source: family.package.into(),
            webp,
        });
    }
    Ok(rows)
}

/// Letters and digits only: families spell the same name in different ways.
fn squash(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// The SVG of an icon named like the label (or the concept, for families with their own names).
fn iconify_svg(icons: &[u8], concept: &str, label: &str) -> Result<Option<String>> {
    thread_local! {
        // Parsing a package takes a second; the last one is kept.
        static LAST: std::cell::RefCell<(usize, Value, BTreeMap<String, String>)> =
            const { std::cell::RefCell::new((0, Value::Null, BTreeMap::new())) };
    }
    LAST.with_borrow_mut(|(key, parsed, names)| {
        let address = icons.as_ptr() as usize;
        if *key != address {
            *parsed = serde_json::from_slice(icons)?;
            *names = icon_names(parsed);
            *key = address;
        }
        let name = names.get(&squash(label)).or_else(|| names.get(&squash(concept)));
        Ok(name.and_then(|name| {
            let icon = &parsed["icons"][name];
            let side = |field: &str| icon[field].as_f64().or_else(|| parsed[field].as_f64()).unwrap_or(16.0);
            let body = icon["body"].as_str()?;
            Some(format!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{} {} {} {}">{body}</svg>"#,
                icon["left"].as_f64().unwrap_or(0.0),
                icon["top"].as_f64().unwrap_or(0.0),
                side("width"),
                side("height"),
            ))
        }))
    })
}

/// Squashed name to icon name, aliases followed.
fn icon_names(parsed: &Value) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for (alias, target) in parsed["aliases"].as_object().into_iter().flatten() {
        if let Some(parent) = target["parent"].as_str() {
            names.insert(squash(alias), parent.to_string());
        }
    }
    for name in parsed["icons"].as_object().into_iter().flatten().map(|(name, _)| name) {
        names.insert(squash(name), name.clone());
    }
    names
}

/// An SVG drawn into a transparent square.
fn rasterise(svg: &str) -> Result<RgbaImage> {
    use resvg::{tiny_skia, usvg};
    let tree = usvg::Tree::from_str(svg, &usvg::Options::default()).context("not an SVG")?;
    let size = tree.size();
    let scale = SPRITE_SIDE as f32 / size.width().max(size.height());
    let (dx, dy) =
        ((SPRITE_SIDE as f32 - size.width() * scale) / 2.0, (SPRITE_SIDE as f32 - size.height() * scale) / 2.0);
    let mut canvas = tiny_skia::Pixmap::new(SPRITE_SIDE, SPRITE_SIDE).context("no canvas")?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(scale, scale).post_translate(dx, dy), &mut canvas.as_mut());
    let bytes = canvas.pixels().iter().flat_map(|p| {
        let c = p.demultiply();
        [c.red(), c.green(), c.blue(), c.alpha()]
    });
    RgbaImage::from_raw(SPRITE_SIDE, SPRITE_SIDE, bytes.collect()).context("canvas of the wrong size")
}

/// A WebP of a family that names its files by code points, with or without the variation selector.
fn webp_by_code(files: &BTreeMap<String, Vec<u8>>, hex: &str) -> Result<Option<RgbaImage>> {
    let plain = hex.replace("-fe0f", "");
    let names = [
        format!("package/assets/{hex}.webp"),
        format!("package/assets/{hex}-fe0f.webp"),
        format!("package/assets/{plain}.webp"),
    ];
    let Some(bytes) = names.iter().find_map(|name| files.get(name)) else { return Ok(None) };
    let picture = image::load_from_memory(bytes)?.to_rgba8();
    Ok(Some(image::imageops::resize(&picture, SPRITE_SIDE, SPRITE_SIDE, image::imageops::FilterType::Lanczos3)))
}

/// Lossy WebP with transparency.
pub fn encode_webp(picture: &RgbaImage, quality: f32) -> Result<Vec<u8>> {
    let encoder = webp::Encoder::from_rgba(picture.as_raw(), picture.width(), picture.height());
    match encoder.encode_simple(false, quality) {
        Ok(memory) => Ok(memory.to_vec()),
        Err(error) => bail!("WebP encoder: {error:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_family_is_held_out() {
        assert_eq!(FAMILIES.iter().filter(|family| family.held_out).count(), 1);
    }

    #[test]
    fn an_svg_is_drawn_centred() -> Result<()> {
        let svg = r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10"><rect width="20" height="10" fill="#f00"/></svg>"##;
        let picture = rasterise(svg)?;
        assert_eq!(picture.get_pixel(48, 48).0, [255, 0, 0, 255]);
        assert_eq!(picture.get_pixel(48, 10).0[3], 0, "the short side is padded");
        Ok(())
    }
}
