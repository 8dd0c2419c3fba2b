//! Pictures as interpreting and judging models see them: bright where the feature fires, dark elsewhere (paper, section
//! 3.2), or whole.

use api::Activation;
use image::{DynamicImage, ImageFormat, RgbImage, imageops::FilterType};
use std::io::Cursor;

/// Side of the pictures in pixels: the base picture of LLaVA-NeXT, a plain distorting resize.
const SIDE: u32 = 336;
/// Brightness where the feature is silent.
const DARK: f32 = 0.2;
/// Share of the picture's largest activation from which on a place is fully bright.
pub(crate) const BRIGHT: f32 = 0.2;

/// What the masks depend on, for the prompts' hash.
pub(crate) fn settings() -> String {
    format!("side {SIDE}, dark {DARK}, bright {BRIGHT}")
}

/// An example's picture as PNG, dimmed where the feature is silent.
///
/// # Errors
/// When the bytes are not a picture, or the example's patches are not on its grid.
pub(crate) fn masked_png(picture: &[u8], example: &Activation) -> Result<Vec<u8>, String> {
    let mut pixels = scaled(picture)?;
    let [rows, columns] = example.image.grid.map(|length| length as usize);
    if rows == 0 || columns == 0 {
        return Err("the example has no grid".to_owned());
    }
    let mut shares = vec![0.0; rows * columns];
    for (index, value) in example.feature_acts_indices.iter().zip(&example.feature_acts_values) {
        let share = shares.get_mut(*index as usize);
        let share = share.ok_or_else(|| format!("patch {index} is not on a grid of {rows} by {columns}"))?;
        *share = (value / example.max_value.max(f32::MIN_POSITIVE) / BRIGHT).clamp(0.0, 1.0);
    }
    for (x, y, pixel) in pixels.enumerate_pixels_mut() {
        let at = |place: u32, count: usize| (place as f32 + 0.5) / SIDE as f32 * count as f32 - 0.5;
        let light = DARK + (1.0 - DARK) * between(&shares, [rows, columns], at(y, rows), at(x, columns));
        pixel.0 = pixel.0.map(|level| (f32::from(level) * light).round() as u8);
    }
    png(pixels)
}

/// A whole picture as PNG, of the same size.
///
/// # Errors
/// When the bytes are not a picture.
pub(crate) fn whole_png(picture: &[u8]) -> Result<Vec<u8>, String> {
    png(scaled(picture)?)
}

fn scaled(picture: &[u8]) -> Result<RgbImage, String> {
    let decoded = image::load_from_memory(picture).map_err(|error| error.to_string())?;
    Ok(decoded.resize_exact(SIDE, SIDE, FilterType::CatmullRom).to_rgb8())
}

fn png(pixels: RgbImage) -> Result<Vec<u8>, String> {
    let mut png = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(pixels).write_to(&mut png, ImageFormat::Png).map_err(|error| error.to_string())?;
    Ok(png.into_inner())
}

/// The share at a place between the centres of four patches.
fn between(shares: &[f32], [rows, columns]: [usize; 2], row: f32, column: f32) -> f32 {
    let axis = |place: f32, count: usize| {
        let place = place.clamp(0.0, (count - 1) as f32);
        let first = place.floor() as usize;
        (first, (first + 1).min(count - 1), place - place.floor())
    };
    let ((top, bottom, down), (left, right, along)) = (axis(row, rows), axis(column, columns));
    let mix = |row: usize| shares[row * columns + left] * (1.0 - along) + shares[row * columns + right] * along;
    mix(top) * (1.0 - down) + mix(bottom) * down
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use api::ActivationImage;
    use image::Rgb;

    fn white() -> Vec<u8> {
        let mut png = Cursor::new(Vec::new());
        let picture = RgbImage::from_pixel(40, 20, Rgb([255, 255, 255]));
        DynamicImage::ImageRgb8(picture).write_to(&mut png, ImageFormat::Png).unwrap();
        png.into_inner()
    }

    fn fires_on(indices: &[u32], values: &[f32]) -> Activation {
        Activation {
            image: ActivationImage { grid: [4, 4], ..ActivationImage::default() },
            feature_acts_indices: indices.to_vec(),
            feature_acts_values: values.to_vec(),
            max_value: 10.0,
            ..Activation::default()
        }
    }

    #[test]
    fn the_active_patch_keeps_its_brightness_and_the_rest_is_dark() {
        let png = masked_png(&white(), &fires_on(&[0, 15], &[10.0, 0.5])).unwrap();
        let picture = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (SIDE, SIDE));
        let level = |x: u32, y: u32| picture.get_pixel(x, y).0[0];
        assert_eq!(level(20, 20), 255);
        assert_eq!(level(200, 100), 51, "a fifth of white");
        let faint = level(330, 330);
        assert!((100..110).contains(&faint), "a quarter of the way up: {faint}");
    }

    #[test]
    fn a_whole_picture_has_the_same_size_and_is_bright() {
        let picture = image::load_from_memory(&whole_png(&white()).unwrap()).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (SIDE, SIDE));
        assert!(picture.pixels().all(|pixel| pixel.0 == [255; 3]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(whole_png(b"not a picture").is_err());
        assert!(masked_png(b"not a picture", &fires_on(&[0], &[1.0])).is_err());
        assert!(masked_png(&white(), &fires_on(&[16], &[1.0])).unwrap_err().contains("patch 16"));
    }
}
