//! Picture to pixel values, as Hugging Face `LlavaNextImageProcessor`, `CLIPImageProcessor` and Pillow do it.
//!
//! Resizing is Pillow's antialiased bicubic (a = −0.5) in its fixed-point arithmetic, rows first, rounding to 8 bits
//! between the passes; other libraries' "CatmullRom" differs by a level or more.

use crate::Error;
use crate::anyres::{TileGrid, fitted_size};
use crate::config::LlavaNextConfig;
use image::{DynamicImage, RgbImage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;

/// `preprocessor_config.json`: only the fields that differ between checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageProcessor {
    #[serde(default = "clip_mean")]
    pub image_mean: [f32; 3],
    #[serde(default = "clip_std")]
    pub image_std: [f32; 3],
    #[serde(default = "clip_rescale")]
    pub rescale_factor: f32,
}

fn clip_mean() -> [f32; 3] {
    [0.481_454_66, 0.457_827_5, 0.408_210_73]
}
#[expect(clippy::excessive_precision, reason = "as CLIP's preprocessor_config.json prints it")]
fn clip_std() -> [f32; 3] {
    [0.268_629_54, 0.261_302_58, 0.275_777_11]
}
fn clip_rescale() -> f32 {
    1.0 / 255.0
}

impl Default for ImageProcessor {
    fn default() -> Self {
        Self { image_mean: clip_mean(), image_std: clip_std(), rescale_factor: clip_rescale() }
    }
}

/// Normalised tiles, the distorted base picture first.
#[derive(Debug, Clone)]
pub struct PixelValues {
    /// `[tiles, 3, side, side]`, row-major.
    pub values: Vec<f32>,
    pub tiles: usize,
    pub side: usize,
    pub layout: Option<TileGrid>,
}

/// Pillow's number of bicubic resampling.
const BICUBIC: u64 = 3;

fn refuse(key: &str, found: &Value, expected: &Value) -> Result<(), String> {
    Err(format!("{key} {found}: only {expected} is supported"))
}

/// Settings that the code takes for granted in any processor: absent, or exactly this.
fn check_fixed_settings(json: &Value, side: usize) -> Result<(), String> {
    for key in ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad", "do_convert_rgb"] {
        if json[key] == false {
            return refuse(key, &json[key], &true.into());
        }
    }
    let resample = &json["resample"];
    if !resample.is_null() && resample.as_u64() != Some(BICUBIC) {
        return refuse("resample", resample, &BICUBIC.into());
    }
    // One number, or one under each of the keys `shortest_edge`, or `height` and `width`.
    let side = Value::from(side);
    for key in ["size", "crop_size"] {
        let sides = match &json[key] {
            Value::Null => Vec::new(),
            Value::Object(sides) => sides.values().collect(),
            one => vec![one],
        };
        if sides.iter().any(|found| **found != side) {
            return refuse(key, &json[key], &side);
        }
    }
    Ok(())
}

/// The same of LLaVA-NeXT's processor.
fn check_llava_settings(json: &Value, config: &LlavaNextConfig) -> Result<(), String> {
    check_fixed_settings(json, config.vision_config.image_size)?;
    let (pinpoints, expected) = (&json["image_grid_pinpoints"], json!(config.image_grid_pinpoints));
    if !pinpoints.is_null() && *pinpoints != expected {
        return refuse("image_grid_pinpoints", pinpoints, &expected);
    }
    Ok(())
}

/// The same of CLIP's processor: the shorter edge is resized, the longer one cut.
fn check_clip_settings(json: &Value, side: usize) -> Result<(), String> {
    check_fixed_settings(json, side)?;
    let size = &json["size"];
    // Of LLaVA's base picture this is the same thing; here it would distort.
    if size.is_object() && size.get("shortest_edge").is_none() {
        return refuse("size", size, &json!({ "shortest_edge": side }));
    }
    Ok(())
}

impl ImageProcessor {
    /// Reads `preprocessor_config.json` in `dir`; CLIP's values if the file is absent.
    ///
    /// # Errors
    /// A file that cannot be read, or that asks for what is not done here.
    pub fn load(dir: &Path, config: &LlavaNextConfig) -> Result<Self, Error> {
        Self::load_checked(dir, |json| check_llava_settings(json, config))
    }

    /// The same of a CLIP model that sees pictures of `side` pixels.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn load_clip(dir: &Path, side: usize) -> Result<Self, Error> {
        Self::load_checked(dir, |json| check_clip_settings(json, side))
    }

    fn load_checked(dir: &Path, check: impl Fn(&Value) -> Result<(), String>) -> Result<Self, Error> {
        let path = dir.join("preprocessor_config.json");
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
        let json: Value = serde_json::from_str(&text).map_err(|error| Error::bad_file(&path, error))?;
        check(&json).map_err(|reason| Error::bad_file(&path, reason))?;
        Self::deserialize(&json).map_err(|error| Error::bad_file(&path, error))
    }

    /// Cuts, resizes and normalises one picture.
    pub fn process(&self, config: &LlavaNextConfig, picture: &DynamicImage) -> PixelValues {
        let rgb = picture.to_rgb8();
        let side = config.vision_config.image_size;
        let size = [rgb.height() as usize, rgb.width() as usize];
        let layout = TileGrid::new(size, &config.image_grid_pinpoints, side, config.vision_config.grid());
        let mut pictures = vec![resize_bicubic(&rgb, [side, side])];
        if let Some(tiles) = &layout {
            pictures.extend(cut_tiles(&rgb, tiles, side));
        }
        let tiles = pictures.len();
        let values = pictures.iter().flat_map(|picture| self.normalise(picture)).collect();
        PixelValues { values, tiles, side, layout }
    }

    /// The middle of one picture as CLIP sees it: its shorter edge resized to `side`, the longer one cut to it, the odd
    /// pixel on the right and below. `[3, side, side]`, normalised.
    pub fn process_clip(&self, side: usize, picture: &DynamicImage) -> Vec<f32> {
        let rgb = picture.to_rgb8();
        let [height, width] = [rgb.height() as usize, rgb.width() as usize];
        let shorter = height.min(width);
        let size = [height, width].map(|length| side * length / shorter);
        let middle = size.map(|length| (length - side) / 2..(length - side) / 2 + side);
        self.normalise(&resize_bicubic_part(&rgb, size, middle))
    }

    /// `[height, width, 3]` bytes to `[3, height, width]` floats.
    pub fn normalise(&self, picture: &RgbImage) -> Vec<f32> {
        let raw = picture.as_raw();
        (0..3)
            .flat_map(|channel| {
                let (mean, std) = (self.image_mean[channel], self.image_std[channel]);
                raw.iter()
                    .skip(channel)
                    .step_by(3)
                    .map(move |&level| (f32::from(level) * self.rescale_factor - mean) / std)
            })
            .collect()
    }
}

/// The picture fitted into the tile canvas, centred on black, cut row by row.
fn cut_tiles(picture: &RgbImage, tiles: &TileGrid, side: usize) -> Vec<RgbImage> {
    let canvas_size = [tiles.rows * side, tiles.columns * side];
    let fitted = fitted_size([picture.height() as usize, picture.width() as usize], canvas_size);
    let resized = resize_bicubic(picture, fitted);
    let mut canvas = RgbImage::new(canvas_size[1] as u32, canvas_size[0] as u32);
    let (top, left) = ((canvas_size[0] - fitted[0]) / 2, (canvas_size[1] - fitted[1]) / 2);
    image::imageops::replace(&mut canvas, &resized, left as i64, top as i64);
    let tile = |row: usize, column: usize| {
        let (x, y, side) = ((column * side) as u32, (row * side) as u32, side as u32);
        image::imageops::crop_imm(&canvas, x, y, side, side).to_image()
    };
    (0..tiles.rows)
        .flat_map(|row| (0..tiles.columns).map(move |column| (row, column)))
        .map(|(r, c)| tile(r, c))
        .collect()
}

/// Bits after the point in Pillow's 8-bit resampling.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Where one output pixel reads, and with which fixed-point weights.
struct Taps {
    start: usize,
    weights: Vec<i32>,
}

/// Keys' cubic with a = −0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`, of the output pixels `part`.
fn taps(from: usize, to: usize, part: Range<usize>) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = 2.0 * filter_scale;
    part.map(|out| {
        let center = (out as f64 + 0.5) * scale;
        let start = ((center - support + 0.5) as i64).max(0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let raw: Vec<f64> = (start..end).map(|x| bicubic((x as f64 - center + 0.5) / filter_scale)).collect();
        let sum: f64 = raw.iter().sum();
        let one = f64::from(1u32 << PRECISION_BITS);
        let fixed = |weight: f64| {
            let scaled = weight / sum * one;
            (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
        };
        Taps { start, weights: raw.into_iter().map(fixed).collect() }
    })
    .collect()
}

/// Weighted sum of bytes `stride` apart, rounded and clipped to 8 bits.
fn accumulate(taps: &Taps, bytes: &[u8], offset: usize, stride: usize) -> u8 {
    let mut sum = 1i32 << (PRECISION_BITS - 1);
    for (i, &weight) in taps.weights.iter().enumerate() {
        sum += i32::from(bytes[offset + (taps.start + i) * stride]) * weight;
    }
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Pillow's `Image.resize(…, BICUBIC)` on 8-bit RGB. `size` is `[height, width]`.
pub fn resize_bicubic(picture: &RgbImage, size: [usize; 2]) -> RgbImage {
    resize_bicubic_part(picture, size, size.map(|length| 0..length))
}

/// The rows and columns `part` of [`resize_bicubic`]'s result: one line of pixels may be resized to a picture that
/// would not fit into memory.
fn resize_bicubic_part(picture: &RgbImage, size: [usize; 2], part: [Range<usize>; 2]) -> RgbImage {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let [new_height, new_width] = size;
    let [vertical, horizontal] = part;
    let source = picture.as_raw();
    let horizontal = taps(width, new_width, horizontal);
    let columns = horizontal.len();
    let mut rows = vec![0u8; height * columns * 3];
    for y in 0..height {
        for (x, taps) in horizontal.iter().enumerate() {
            for channel in 0..3 {
                rows[(y * columns + x) * 3 + channel] = accumulate(taps, source, y * width * 3 + channel, 3);
            }
        }
    }
    let vertical = taps(height, new_height, vertical);
    RgbImage::from_fn(columns as u32, vertical.len() as u32, |x, y| {
        let taps = &vertical[y as usize];
        image::Rgb([0, 1, 2].map(|channel| accumulate(taps, &rows, x as usize * 3 + channel, columns * 3)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resize_keeps_flat_pictures_flat() {
        let flat = RgbImage::from_pixel(37, 23, image::Rgb([12, 200, 255]));
        assert!(resize_bicubic(&flat, [64, 64]).pixels().all(|pixel| pixel.0 == [12, 200, 255]));
    }

    #[test]
    fn what_is_not_done_here_is_refused_by_its_key() {
        let config = crate::testing::tiny_config(300);
        let with = |key: &str, value: Value| {
            let mut json = json!({
                "crop_size": { "height": 32, "width": 32 }, "do_center_crop": true, "do_convert_rgb": true,
                "do_normalize": true, "do_pad": true, "do_rescale": true, "do_resize": true, "resample": 3,
                "image_grid_pinpoints": [], "size": { "shortest_edge": 32 },
            });
            json[key] = value;
            check_llava_settings(&json, &config)
        };
        for (key, value) in [("size", json!(32)), ("size", Value::Null), ("do_pad", Value::Null), ("other", json!(1))] {
            assert_eq!(with(key, value), Ok(()), "{key}");
        }
        for (key, value) in [
            ("size", json!({ "shortest_edge": 224 })),
            ("size", json!({ "height": 32, "width": 48 })),
            ("crop_size", json!(224)),
            ("resample", json!(2)),
            ("resample", json!("nearest")),
            ("do_resize", json!(false)),
            ("do_center_crop", json!(false)),
            ("do_rescale", json!(false)),
            ("do_normalize", json!(false)),
            ("do_convert_rgb", json!(false)),
            ("image_grid_pinpoints", json!([[32, 64]])),
        ] {
            let refused = with(key, value.clone());
            assert!(refused.as_ref().is_err_and(|reason| reason.starts_with(key)), "{key} {value}: {refused:?}");
        }
    }

    #[test]
    fn clip_refuses_a_size_that_would_distort() {
        for good in [json!({}), json!({ "size": 32 }), json!({ "size": { "shortest_edge": 32 }, "crop_size": 32 })] {
            assert_eq!(check_clip_settings(&good, 32), Ok(()), "{good}");
        }
        let distorting = json!({ "size": { "height": 32, "width": 32 } });
        let larger = json!({ "size": { "shortest_edge": 48 } });
        for bad in [distorting, larger, json!({ "do_center_crop": false })] {
            assert!(check_clip_settings(&bad, 32).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_part_of_a_resized_picture_is_the_same_as_that_part_of_the_whole() {
        let picture =
            RgbImage::from_fn(31, 17, |x, y| image::Rgb([(x * 8) as u8, (y * 15) as u8, (x * y % 251) as u8]));
        for size in [[40, 25], [9, 60], [17, 31]] {
            let whole = resize_bicubic(&picture, size);
            let part = resize_bicubic_part(&picture, size, [3..8, 5..21]);
            assert_eq!(part, image::imageops::crop_imm(&whole, 5, 3, 16, 5).to_image(), "{size:?}");
        }
    }

    #[test]
    fn one_line_of_pixels_does_not_become_a_picture_of_gigabytes() {
        let line = RgbImage::from_fn(1, 16_384, |_, y| image::Rgb([(y % 256) as u8; 3]));
        // The whole would be 336 × 5,505,024 pixels.
        let values = ImageProcessor::default().process_clip(336, &line.into());
        assert_eq!(values.len(), 3 * 336 * 336);
    }

    #[test]
    fn resize_matches_pillow_on_a_ramp() {
        // Pillow 11: Image.fromarray(a).resize((4, 2), BICUBIC) with a[y, x] = 16·x + 40·y, 8 wide, 4 high, all channels.
        let ramp = RgbImage::from_fn(8, 4, |x, y| image::Rgb([(16 * x + 40 * y) as u8; 3]));
        let small = resize_bicubic(&ramp, [2, 4]);
        let levels: Vec<u8> = small.pixels().map(|pixel| pixel.0[0]).collect();
        assert_eq!(levels, PILLOW_RAMP);
    }

    /// Printed by Pillow for the picture above.
    const PILLOW_RAMP: [u8; 8] = include!("../tests/fixtures/pillow_ramp.in");
}
