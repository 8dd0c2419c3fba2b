//! Activation as light: patch values become a small mask over the picture, an outline, and a sentence.
//!
//! A mask is a tiny PNG whose luminance is the brightness; the browser's own smooth scaling makes soft light of it.
//! It is made the same way on the server, so that pictures are lit before any script runs.

use crate::format::{count, sig3};
use api::Activation;
use std::fmt::Write as _;

/// Patches at least this bright (as a share of the scale) lie inside the outline.
pub const OUTLINE_SHARE: f32 = 0.5;

/// Share of full brightness for an activation that is `share` of the scale. The exponent lifts weak
/// activations enough to be seen on the dimmed picture; it is monotone, so the order of values is kept.
pub fn brightness(share: f32) -> f32 {
    if share > 0.0 { share.min(1.0).powf(0.7) } else { 0.0 }
}

/// All patch values of an activation, zeros included, row-major.
pub fn dense(activation: &Activation) -> Vec<f32> {
    let [rows, columns] = activation.image.grid;
    let mut values = vec![0.0; rows as usize * columns as usize];
    for (index, value) in activation.feature_acts_indices.iter().zip(&activation.feature_acts_values) {
        if let Some(patch) = values.get_mut(*index as usize) {
            *patch = *value;
        }
    }
    values
}

pub fn maximum(values: &[f32]) -> f32 {
    values.iter().copied().fold(0.0, f32::max)
}

/// `data:` URI of the mask: `values` is `[rows, columns]`, full light at `scale`.
pub fn mask_uri(grid: [u32; 2], values: &[f32], scale: f32) -> String {
    let [rows, columns] = grid.map(|side| side as usize);
    let light_of = |value: &f32| match brightness(value / scale) {
        light if scale > 0.0 && light > 0.0 => light.max(FAINTEST),
        _ => 0.0,
    };
    let light: Vec<f32> = (0..rows * columns).map(|patch| values.get(patch).map_or(0.0, light_of)).collect();
    let fine = upsampled([rows, columns], &light);
    let width = columns * FINE;
    let mut scanlines = Vec::with_capacity(rows * FINE * (width.div_ceil(2) + 1));
    for line in fine.chunks(width.max(1)) {
        scanlines.push(0); // filter: none
        let level = |light: &f32| (light * 15.0).round() as u8;
        scanlines.extend(line.chunks(2).map(|pair| level(&pair[0]) << 4 | pair.get(1).map_or(0, level)));
    }
    format!("data:image/png;base64,{}", base64(&png_grey4([rows * FINE, width], &scanlines)))
}

/// The first of the mask's 16 levels above darkness: a patch that fires at all is lit.
const FAINTEST: f32 = 1.0 / 15.0;

/// Mask pixels per patch and direction.
const FINE: usize = 3;

/// Catmull-Rom weights of the four nearest patches for the pixels of one patch, at −⅓, 0, ⅓ of a patch from its
/// centre. Interpolating, so that the middle of every patch keeps its value; plain scaling by the browser alone
/// would show a cross in every patch.
const WEIGHTS: [[f32; 5]; FINE] = [
    [-1.0 / 27.0, 9.0 / 27.0, 21.0 / 27.0, -2.0 / 27.0, 0.0],
    [0.0, 0.0, 1.0, 0.0, 0.0],
    [0.0, -2.0 / 27.0, 21.0 / 27.0, 9.0 / 27.0, -1.0 / 27.0],
];

/// `[rows, columns]` → `[rows · FINE, columns · FINE]`, kept within 0..=1.
fn upsampled([rows, columns]: [usize; 2], light: &[f32]) -> Vec<f32> {
    let at = |row: i64, column: i64| {
        let row = row.clamp(0, rows as i64 - 1) as usize;
        let column = column.clamp(0, columns as i64 - 1) as usize;
        light[row * columns + column]
    };
    let mut fine = Vec::with_capacity(light.len() * FINE * FINE);
    for y in 0..rows * FINE {
        for x in 0..columns * FINE {
            let (row, column) = ((y / FINE) as i64, (x / FINE) as i64);
            let mut sum = 0.0;
            for (dy, down) in WEIGHTS[y % FINE].iter().enumerate() {
                for (dx, across) in WEIGHTS[x % FINE].iter().enumerate() {
                    sum += down * across * at(row + dy as i64 - 2, column + dx as i64 - 2);
                }
            }
            fine.push(sum.clamp(0.0, 1.0));
        }
    }
    fine
}

/// The value of a CSS custom property that holds a mask.
pub fn mask_style(grid: [u32; 2], values: &[f32], scale: f32) -> String {
    format!("--mask:url({})", mask_uri(grid, values, scale))
}

/// A PNG of 4-bit grey from filtered scanlines, stored without compression: ~370 bytes for 8×8 patches.
fn png_grey4([rows, columns]: [usize; 2], scanlines: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(13);
    header.extend((columns as u32).to_be_bytes());
    header.extend((rows as u32).to_be_bytes());
    header.extend([4, 0, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, body) in [(b"IHDR", header), (b"IDAT", zlib_stored(scanlines)), (b"IEND", Vec::new())] {
        let mut chunk = name.to_vec();
        chunk.extend(&body);
        png.extend((body.len() as u32).to_be_bytes());
        png.extend(&chunk);
        png.extend(crc32(&chunk).to_be_bytes());
    }
    png
}

/// RFC 1950 stream of stored RFC 1951 blocks.
fn zlib_stored(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 0x01];
    let blocks = bytes.chunks(usize::from(u16::MAX)).collect::<Vec<_>>();
    for (number, block) in blocks.iter().enumerate() {
        let length = block.len() as u16;
        out.push(u8::from(number + 1 == blocks.len()));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(*block);
    }
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    out.extend(((b << 16) | a).to_be_bytes());
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
        }
    }
    !crc
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte)) << (8 * (3 - group.len()));
        for position in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * position)) as usize & 63];
            out.push(if position <= group.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

/// SVG path, in patches, around the patches of at least `threshold`: only the edges between inside and outside.
pub fn outline_path([rows, columns]: [u32; 2], values: &[f32], threshold: f32) -> String {
    let inside = |row: i64, column: i64| {
        (0..i64::from(rows)).contains(&row)
            && (0..i64::from(columns)).contains(&column)
            && values
                .get((row * i64::from(columns) + column) as usize)
                .is_some_and(|value| *value > 0.0 && *value >= threshold)
    };
    let mut path = String::new();
    // Writing into a String cannot fail.
    for row in 0..=i64::from(rows) {
        for column in 0..=i64::from(columns) {
            if inside(row, column) != inside(row - 1, column) {
                _ = write!(path, "M{column} {row}h1");
            }
            if inside(row, column) != inside(row, column - 1) {
                _ = write!(path, "M{column} {row}v1");
            }
        }
    }
    path
}

/// Which patch lies under a point given as shares of width and height.
pub fn patch_at([rows, columns]: [u32; 2], x: f64, y: f64) -> Option<u32> {
    if !(0.0..1.0).contains(&x) || !(0.0..1.0).contains(&y) {
        return None;
    }
    Some((y * f64::from(rows)) as u32 * columns + (x * f64::from(columns)) as u32)
}

/// Where on the picture a patch lies, in words.
pub fn place([rows, columns]: [u32; 2], patch: u32) -> String {
    let third = |position: u32, length: u32| (position * 2 + 1) * 3 / (length * 2).max(1);
    let vertical = ["top", "middle", "bottom"][third(patch / columns.max(1), rows).min(2) as usize];
    let horizontal = ["left", "centre", "right"][third(patch % columns.max(1), columns).min(2) as usize];
    match (vertical, horizontal) {
        ("middle", "centre") => "centre".into(),
        ("middle", side) => side.into(),
        (side, "centre") => side.into(),
        (vertical, horizontal) => format!("{vertical} {horizontal}"),
    }
}

/// The heat map for people who do not see it.
pub fn summary(grid: [u32; 2], values: &[f32]) -> String {
    let firing = values.iter().filter(|value| **value > 0.0).count();
    if firing == 0 {
        return "does not fire on this picture".into();
    }
    let strongest = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(patch, _)| patch);
    format!(
        "fires on {} of {} patches, strongest ({}) at the {}",
        count(firing as u64),
        count(values.len() as u64),
        sig3(values[strongest]),
        place(grid, strongest as u32)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn known_checksums_and_encodings() {
        assert_eq!(crc32(b"IEND"), 0xAE42_6082);
        assert_eq!(base64(b""), "");
        assert_eq!(base64(b"f"), "Zg==");
        assert_eq!(base64(b"fo"), "Zm8=");
        assert_eq!(base64(b"foobar"), "Zm9vYmFy");
        // Adler-32 of "Wikipedia" is 0x11E60398.
        assert_eq!(zlib_stored(b"Wikipedia")[16..], [0x11, 0xE6, 0x03, 0x98]);
    }

    #[test]
    fn a_mask_is_small_and_has_no_light_without_a_scale() {
        let mut values = vec![0.0; 64];
        values[9] = 2.0;
        let uri = mask_uri([8, 8], &values, 2.0);
        assert!(uri.starts_with("data:image/png;base64,iVBORw0KGgo"), "{uri}");
        assert!(uri.len() < 560, "{} characters", uri.len());
        let png = png_grey4([1, 2], &[0, 0xF8]);
        assert_eq!(png[16..26], [0, 0, 0, 2, 0, 0, 0, 1, 4, 0], "columns, rows, 4-bit grey");
        assert_eq!(mask_uri([8, 8], &values, 0.0), mask_uri([8, 8], &[], 1.0), "no scale, no light");
    }

    #[test]
    fn the_fine_mask_keeps_every_patchs_value_and_is_smooth_between() {
        assert!(WEIGHTS.iter().all(|weights| (weights.iter().sum::<f32>() - 1.0).abs() < 1e-6));
        let light = [0.0, 0.2, 1.0, 0.4, 0.0, 0.7];
        let fine = upsampled([2, 3], &light);
        assert_eq!(fine.len(), 6 * FINE * FINE);
        for (patch, value) in light.iter().enumerate() {
            let middle = (patch / 3 * FINE + 1) * 3 * FINE + patch % 3 * FINE + 1;
            assert_eq!(fine[middle], *value, "patch {patch}");
        }
        let first_row = &fine[9..18];
        assert!(first_row[4] < first_row[5] && first_row[5] < first_row[6] && first_row[6] < first_row[7]);
        assert!(fine.iter().all(|light| (0.0..=1.0).contains(light)));
        let even = upsampled([2, 2], &[0.5; 4]);
        assert!(even.iter().all(|light| (light - 0.5).abs() < 1e-6));
    }

    #[test]
    fn brightness_is_monotone_and_bounded() {
        let steps: Vec<f32> = (0..=20).map(|step| brightness(step as f32 / 20.0)).collect();
        assert!(steps.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((brightness(-1.0), brightness(0.0), brightness(1.0), brightness(9.0)), (0.0, 0.0, 1.0, 1.0));
        assert_eq!(brightness(f32::NAN), 0.0);
    }

    #[test]
    fn an_outline_goes_around_the_patches_and_not_between_them() {
        let one = outline_path([2, 2], &[1.0, 0.0, 0.0, 0.0], 0.5);
        assert_eq!(one.matches('M').count(), 4);
        let two = outline_path([2, 2], &[1.0, 0.8, 0.0, 0.0], 0.5);
        assert_eq!(two.matches('M').count(), 6);
        assert_eq!(outline_path([2, 2], &[0.4; 4], 0.5), "");
        assert_eq!(outline_path([2, 2], &[0.0; 4], 0.0), "", "zero never fires");
    }

    #[test]
    fn points_find_their_patch_and_patches_their_place() {
        assert_eq!(patch_at([8, 8], 0.0, 0.0), Some(0));
        assert_eq!(patch_at([8, 8], 0.99, 0.99), Some(63));
        assert_eq!(patch_at([2, 4], 0.6, 0.6), Some(6));
        assert_eq!(patch_at([8, 8], 1.0, 0.5), None);
        assert_eq!(place([8, 8], 0), "top left");
        assert_eq!(place([8, 8], 27), "centre");
        assert_eq!(place([8, 8], 63), "bottom right");
        assert_eq!(place([8, 8], 31), "right");
    }

    #[test]
    fn the_summary_says_where_it_fires() {
        let mut values = vec![0.0; 64];
        values[7] = 3.214;
        values[6] = 1.0;
        assert_eq!(summary([8, 8], &values), "fires on 2 of 64 patches, strongest (3.21) at the top right");
        assert_eq!(summary([8, 8], &[0.0; 64]), "does not fire on this picture");
    }

    #[test]
    fn sparse_values_become_dense_and_bad_indices_are_left_out() {
        let mut activation = Activation {
            feature_acts_indices: vec![1, 3, 99],
            feature_acts_values: vec![0.5, 2.0, 7.0],
            ..Activation::default()
        };
        activation.image.grid = [2, 2];
        assert_eq!(dense(&activation), [0.0, 0.5, 0.0, 2.0]);
    }

    /// The ramp of `style/tokens.css` must be ordered by lightness: that is what makes it safe for every eye.
    #[test]
    fn the_ramp_gets_lighter_step_by_step() {
        let css = include_str!("../style/tokens.css");
        let lightness: Vec<f32> = css
            .lines()
            .filter_map(|line| line.trim().strip_prefix("--heat-"))
            .filter_map(|rest| rest.split_once("oklch(")?.1.split_whitespace().next()?.parse().ok())
            .collect();
        assert!(lightness.len() >= 6, "only {} steps found", lightness.len());
        let steps: Vec<f32> = lightness.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.iter().all(|step| (0.08..0.16).contains(step)), "uneven steps {steps:?}");
    }
}
