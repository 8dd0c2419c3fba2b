//! Sprites in memory, ready to be drawn at any size.

use super::concepts::{Concept, color_word, concepts};
use super::pack::family;
use anyhow::{Context, Result, ensure};
use image::{RgbaImage, imageops};
use std::path::Path;
use store::files::sprites::read_sprites;

/// One drawing.
#[derive(Debug, Clone)]
pub struct Sprite {
    pub concept: usize,
    pub family: String,
    pub held_out: bool,
    /// 96, 48 and 24 pixels: a scene samples the smallest that is not smaller than its target.
    levels: Vec<RgbaImage>,
}

/// All drawings of the pack.
#[derive(Debug, Clone)]
pub struct Sprites {
    pub concepts: Vec<Concept>,
    pub sprites: Vec<Sprite>,
    /// Sprite numbers by concept: trained styles.
    pub seen: Vec<Vec<usize>>,
    /// Sprite numbers by concept: the held-out style.
    pub held_out: Vec<Vec<usize>>,
}

impl Sprites {
    /// Reads `sprites.parquet`.
    ///
    /// # Errors
    /// An unreadable file; a drawing of an unknown concept or family; a concept without a drawing.
    pub fn load(path: &Path) -> Result<Self> {
        let concepts = concepts()?;
        let (mut seen, mut held_out) = (vec![Vec::new(); concepts.len()], vec![Vec::new(); concepts.len()]);
        let mut sprites = Vec::new();
        for row in read_sprites(path)? {
            let concept = concepts
                .iter()
                .position(|concept| concept.name == row.concept)
                .with_context(|| format!("{}: unknown concept `{}`", path.display(), row.concept))?;
            let family =
                family(&row.family).with_context(|| format!("{}: unknown family `{}`", path.display(), row.family))?;
            let picture = image::load_from_memory(&row.webp)?.to_rgba8();
            let list = if family.held_out { &mut held_out } else { &mut seen };
            list[concept].push(sprites.len());
            sprites.push(Sprite {
                concept,
                family: row.family,
                held_out: family.held_out,
                levels: levels(trimmed(&picture)),
            });
        }
        let empty = seen.iter().position(Vec::is_empty);
        ensure!(empty.is_none(), "{}: no drawing of `{}`", path.display(), empty.map_or("", |i| &concepts[i].name));
        Ok(Self { concepts, sprites, seen, held_out })
    }
}

/// The picture without its transparent margin, as a square.
fn trimmed(picture: &RgbaImage) -> RgbaImage {
    let opaque: Vec<(u32, u32)> =
        picture.enumerate_pixels().filter(|(_, _, pixel)| pixel.0[3] > 24).map(|(x, y, _)| (x, y)).collect();
    let range =
        |values: &mut dyn Iterator<Item = u32>| values.fold((u32::MAX, 0), |(lo, hi), v| (lo.min(v), hi.max(v)));
    let (left, right) = range(&mut opaque.iter().map(|p| p.0));
    let (top, bottom) = range(&mut opaque.iter().map(|p| p.1));
    if left > right {
        return picture.clone();
    }
    let (width, height) = (right - left + 1, bottom - top + 1);
    let side = width.max(height);
    let mut square = RgbaImage::new(side, side);
    let part = imageops::crop_imm(picture, left, top, width, height).to_image();
    imageops::replace(&mut square, &part, i64::from((side - width) / 2), i64::from((side - height) / 2));
    square
}

fn levels(picture: RgbaImage) -> Vec<RgbaImage> {
    let half = |picture: &RgbaImage| {
        imageops::resize(
            picture,
            (picture.width() / 2).max(1),
            (picture.height() / 2).max(1),
            imageops::FilterType::Triangle,
        )
    };
    let (second, third) = (half(&picture), half(&half(&picture)));
    vec![picture, second, third]
}

impl Sprite {
    /// Colour at `(u, v)` in 0..1 when drawn `side` pixels wide: bilinear, straight alpha in 0..=255.
    pub fn sample(&self, u: f32, v: f32, side: f32) -> [f32; 4] {
        let level =
            self.levels.iter().rev().find(|level| level.width() as f32 >= side * 0.95).unwrap_or(&self.levels[0]);
        let n = level.width() as f32;
        let (x, y) = ((u * n - 0.5).clamp(0.0, n - 1.0), (v * n - 0.5).clamp(0.0, n - 1.0));
        let (x0, y0) = (x as u32, y as u32);
        let (x1, y1) = ((x0 + 1).min(level.width() - 1), (y0 + 1).min(level.height() - 1));
        let (fx, fy) = (x - x0 as f32, y - y0 as f32);
        let mut sum = [0.0f32; 4];
        for (px, py, weight) in
            [(x0, y0, (1.0 - fx) * (1.0 - fy)), (x1, y0, fx * (1.0 - fy)), (x0, y1, (1.0 - fx) * fy), (x1, y1, fx * fy)]
        {
            let pixel = level.get_pixel(px, py).0;
            let alpha = f32::from(pixel[3]) * weight;
            for channel in 0..3 {
                sum[channel] += f32::from(pixel[channel]) * alpha;
            }
            sum[3] += alpha;
        }
        if sum[3] > 0.0 {
            for channel in 0..3 {
                sum[channel] /= sum[3];
            }
        }
        sum
    }

    /// The colour word most of its pixels have, after `tint`.
    pub fn color(&self, tint: impl Fn([f32; 3]) -> [f32; 3]) -> usize {
        let mut votes = [0.0f32; 11];
        for pixel in self.levels[2].pixels() {
            let [r, g, b, a] = pixel.0.map(f32::from);
            votes[color_word(tint([r, g, b]))] += a;
        }
        votes.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i)
    }
}
