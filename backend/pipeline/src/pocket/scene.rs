//! Composed scenes: one to four sprites on a background, with an exact mask of every object.
//!
//! A scene is data ([`Scene`]); drawing it at any size is [`Scene::draw`]. Equal seeds give equal scenes.

use super::concepts::{COLORS, zone};
use super::sprites::Sprites;
use image::RgbImage;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// An object of a scene. Lengths are fractions of the picture's side.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub sprite: usize,
    pub concept: usize,
    pub color: usize,
    pub left: f32,
    pub top: f32,
    pub side: f32,
    pub mirrored: bool,
    /// Rotation of the hue in degrees; 0 keeps the drawing's own colours.
    pub hue: f32,
}

impl Item {
    /// Zone of its centre.
    pub fn zone(&self) -> usize {
        zone(self.left + self.side / 2.0, self.top + self.side / 2.0)
    }
}

/// Background patterns, in the order of their class.
pub const PATTERNS: [&str; 6] = ["plain", "fading", "striped", "dotted", "checkered", "brick"];

/// What is behind the objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Background {
    pub pattern: usize,
    pub color: usize,
    first: [f32; 3],
    second: [f32; 3],
    /// Period of the pattern, as a fraction of the side.
    period: f32,
    angle: f32,
}

/// A picture that can be drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    pub background: Background,
    /// Back to front.
    pub items: Vec<Item>,
}

/// Which drawings a scene may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Seen,
    HeldOut,
}

/// A drawn scene: the picture and, per pixel, the item in front (0: background, else 1 + item number).
#[derive(Debug, Clone)]
pub struct Drawn {
    pub picture: RgbImage,
    pub mask: Vec<u8>,
}

/// Typical sRGB values of [`COLORS`].
const PAINT: [[f32; 3]; 11] = [
    [214.0, 58.0, 52.0],
    [242.0, 140.0, 48.0],
    [248.0, 210.0, 84.0],
    [96.0, 176.0, 92.0],
    [88.0, 150.0, 226.0],
    [146.0, 98.0, 196.0],
    [246.0, 156.0, 190.0],
    [138.0, 96.0, 66.0],
    [34.0, 34.0, 40.0],
    [244.0, 244.0, 242.0],
    [150.0, 150.0, 154.0],
];

impl Scene {
    /// The scene number `seed`.
    pub fn random(sprites: &Sprites, style: Style, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let background = Background::random(&mut rng);
        let count = match rng.random_range(0..100) {
            0..35 => 1,
            35..70 => 2,
            70..90 => 3,
            _ => 4,
        };
        let mut items: Vec<Item> = Vec::new();
        for _ in 0..count {
            let Some(sprite) = pick_sprite(sprites, style, &items, &mut rng) else { continue };
            if let Some(item) = place(sprites, sprite, count, &items, &mut rng) {
                items.push(item);
            }
        }
        Self { background, items }
    }

    /// Draws the scene `side` pixels wide.
    pub fn draw(&self, sprites: &Sprites, side: usize) -> Drawn {
        let length = side as f32;
        let mut pixels: Vec<[f32; 3]> = (0..side * side)
            .map(|i| self.background.at(((i % side) as f32 + 0.5) / length, ((i / side) as f32 + 0.5) / length))
            .collect();
        let mut mask = vec![0u8; side * side];
        for (number, item) in self.items.iter().enumerate() {
            let sprite = &sprites.sprites[item.sprite];
            let target = item.side * length;
            let range = |start: f32| {
                let first = (start * length).floor().max(0.0) as usize;
                first..(((start + item.side) * length).ceil() as usize).min(side)
            };
            for y in range(item.top) {
                for x in range(item.left) {
                    let u = ((x as f32 + 0.5) / length - item.left) / item.side;
                    let v = ((y as f32 + 0.5) / length - item.top) / item.side;
                    if !(0.0..1.0).contains(&u) || !(0.0..1.0).contains(&v) {
                        continue;
                    }
                    let u = if item.mirrored { 1.0 - u } else { u };
                    let [r, g, b, a] = sprite.sample(u, v, target);
                    let color = rotate_hue([r, g, b], item.hue);
                    let alpha = a / 255.0;
                    let pixel = &mut pixels[y * side + x];
                    for channel in 0..3 {
                        pixel[channel] += (color[channel] - pixel[channel]) * alpha;
                    }
                    if alpha > 0.5 {
                        mask[y * side + x] = number as u8 + 1;
                    }
                }
            }
        }
        let bytes = pixels.iter().flat_map(|pixel| pixel.map(|level| level.round().clamp(0.0, 255.0) as u8)).collect();
        let picture = RgbImage::from_raw(side as u32, side as u32, bytes).unwrap_or_default();
        Drawn { picture, mask }
    }
}

impl Drawn {
    /// Share of each patch that shows item `number` (1 + its index; 0: background), row-major, `grid²` values.
    pub fn coverage(&self, number: u8, grid: usize) -> Vec<f32> {
        let side = self.picture.width() as usize;
        let patch = side / grid;
        let mut shares = vec![0.0; grid * grid];
        for (i, &front) in self.mask.iter().enumerate() {
            if front == number {
                shares[(i / side / patch).min(grid - 1) * grid + (i % side / patch).min(grid - 1)] += 1.0;
            }
        }
        shares.iter_mut().for_each(|share| *share /= (patch * patch) as f32);
        shares
    }

    /// The item that shows most in each patch, if it covers at least a quarter of it; else 0 (background).
    pub fn patch_labels(&self, items: usize, grid: usize) -> Vec<u8> {
        let shares: Vec<Vec<f32>> = (1..=items as u8).map(|number| self.coverage(number, grid)).collect();
        (0..grid * grid)
            .map(|patch| {
                let best = shares.iter().enumerate().max_by(|a, b| a.1[patch].total_cmp(&b.1[patch]));
                best.filter(|(_, share)| share[patch] >= 0.25).map_or(0, |(item, _)| item as u8 + 1)
            })
            .collect()
    }
}

/// A drawing of a concept that the scene does not show yet; a quarter of them faces.
fn pick_sprite(sprites: &Sprites, style: Style, items: &[Item], rng: &mut ChaCha8Rng) -> Option<usize> {
    let pool = if style == Style::Seen { &sprites.seen } else { &sprites.held_out };
    let face = rng.random_bool(0.25);
    let fits = |concept: &usize| {
        !pool[*concept].is_empty()
            && sprites.concepts[*concept].is_emotion() == face
            && items.iter().all(|item| item.concept != *concept)
    };
    let concepts: Vec<usize> = (0..sprites.concepts.len()).filter(fits).collect();
    let concept = *concepts.get(rng.random_range(0..concepts.len().max(1)))?;
    Some(pool[concept][rng.random_range(0..pool[concept].len())])
}

/// A place where the sprite hides at most 30% of any object and is not itself outside.
fn place(sprites: &Sprites, sprite: usize, count: usize, items: &[Item], rng: &mut ChaCha8Rng) -> Option<Item> {
    let concept = sprites.sprites[sprite].concept;
    let plain = sprites.concepts[concept].is_emotion() || rng.random_bool(0.75);
    let hue = if plain { 0.0 } else { rng.random_range(40.0..320.0) };
    let color = sprites.sprites[sprite].color(|rgb| rotate_hue(rgb, hue));
    for _ in 0..24 {
        // The first is the main thing: nobody doubts that it is the largest.
        let side = match (count, items.is_empty()) {
            (1, _) => rng.random_range(0.45..0.8),
            (_, true) => rng.random_range(0.46..0.62),
            (_, false) => rng.random_range(0.29..0.4),
        };
        let (left, top) = (rng.random_range(-0.02..1.02 - side), rng.random_range(-0.02..1.02 - side));
        let overlap = |other: &Item| {
            let along = |a: f32, b: f32| ((a + side).min(b + other.side) - a.max(b)).max(0.0);
            along(left, other.left) * along(top, other.top) / (other.side * other.side).min(side * side)
        };
        if items.iter().all(|other| overlap(other) <= 0.3) {
            let mirrored = rng.random_bool(0.5);
            return Some(Item { sprite, concept, color, left, top, side, mirrored, hue });
        }
    }
    None
}

impl Background {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        let color = rng.random_range(0..COLORS.len());
        let mut jitter =
            |paint: [f32; 3], by: f32| paint.map(|level| (level + rng.random_range(-by..by)).clamp(0.0, 255.0));
        let first = jitter(PAINT[color], 14.0);
        let second = {
            // Towards white, or towards black for light colours: the pattern stays of one colour word.
            let light = first.iter().sum::<f32>() > 480.0;
            let goal = if light { 40.0 } else { 255.0 };
            jitter(first.map(|level| level + (goal - level) * 0.28), 6.0)
        };
        Self {
            pattern: rng.random_range(0..PATTERNS.len()),
            color,
            first,
            second,
            period: rng.random_range(0.12..0.3),
            angle: rng.random_range(0.0..std::f32::consts::TAU),
        }
    }

    /// Colour at `(x, y)` in 0..1.
    fn at(&self, x: f32, y: f32) -> [f32; 3] {
        let mix = |t: f32| {
            std::array::from_fn(|channel| self.first[channel] + (self.second[channel] - self.first[channel]) * t)
        };
        let step = |on: bool| mix(f32::from(u8::from(on)));
        let (sin, cos) = self.angle.sin_cos();
        let along = x * cos + y * sin;
        let cell = |value: f32| (value / self.period).rem_euclid(1.0);
        match PATTERNS[self.pattern] {
            "plain" => self.first,
            "fading" => mix((along * 0.7 + 0.5).clamp(0.0, 1.0) * 1.6),
            "striped" => step(cell(along) < 0.5),
            "dotted" => step((cell(x) - 0.5).hypot(cell(y) - 0.5) < 0.28),
            "checkered" => step((cell(x) < 0.5) == (cell(y) < 0.5)),
            _ => {
                let row = (y / (self.period * 0.5)).floor();
                let shifted = x + if row.rem_euclid(2.0) < 1.0 { 0.0 } else { self.period * 0.5 };
                step(cell(shifted) < 0.1 || (y / (self.period * 0.5)).rem_euclid(1.0) < 0.2)
            }
        }
    }
}

/// Rotates the hue about the grey axis, keeping luminance roughly (YIQ rotation).
pub fn rotate_hue(rgb: [f32; 3], degrees: f32) -> [f32; 3] {
    if degrees == 0.0 {
        return rgb;
    }
    let [r, g, b] = rgb;
    let (sin, cos) = degrees.to_radians().sin_cos();
    let y = 0.299 * r + 0.587 * g + 0.114 * b;
    let (i, q) = (0.596 * r - 0.274 * g - 0.322 * b, 0.211 * r - 0.523 * g + 0.312 * b);
    let (i, q) = (i * cos - q * sin, i * sin + q * cos);
    [y + 0.956 * i + 0.621 * q, y - 0.272 * i - 0.647 * q, y - 1.106 * i + 1.703 * q]
        .map(|level| level.clamp(0.0, 255.0))
}
