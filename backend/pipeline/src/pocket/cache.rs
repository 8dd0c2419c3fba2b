//! The cache set: pictures with their truth, run through the model with the paper's prompt, features kept sparsely.

use super::concepts::{COLORS, ZONES, zone};
use super::plan::Plan;
use super::scene::{Drawn, PATTERNS, Scene, Style};
use super::sprites::Sprites;
use super::tower::seeds;
use super::words::SceneWords;
use anyhow::{Context, Result};
use api::{Picture, PictureObject, Rect};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use image::{DynamicImage, RgbImage, RgbaImage};
use model::{Lmm, PromptInput, Sae, SpanKind, TopK};
use std::collections::BTreeMap;
use std::path::Path;
use store::files::read_pictures;

/// The prompt of the paper's cache: the picture and nothing else.
pub const CACHE_PROMPT: &str = "<image>";
/// WebP quality of the pictures people see.
const QUALITY: f32 = 78.0;

/// What a patch can be said to show, with the category people file it under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Truth {
    pub category: api::Category,
    pub name: String,
}

impl Truth {
    fn new(category: api::Category, name: impl Into<String>) -> Self {
        Self { category, name: name.into() }
    }
}

/// A picture with its truth: for each thing it shows, the patches that show it (at least a quarter of the patch).
pub struct CachePicture {
    pub picture: Picture,
    pub webp: Vec<u8>,
    pub held_out: bool,
    /// Empty for photographs: nobody has drawn their masks.
    pub masks: BTreeMap<Truth, Vec<bool>>,
    /// What the model reads: the WebP, decoded.
    pub shown: RgbImage,
}

/// Draws a scene as people see it and notes what every patch shows.
pub fn scene_picture(
    plan: &Plan,
    sprites: &Sprites,
    scene: &Scene,
    id: String,
    kind: &str,
    style: Style,
) -> Result<CachePicture> {
    let side = plan.display_side;
    let drawn = scene.draw(sprites, side);
    let webp = encode(&drawn.picture)?;
    let shown = image::load_from_memory(&webp).context("our own WebP")?.to_rgb8();
    let (masks, objects) = scene_truth(plan, sprites, scene, &drawn);
    Ok(CachePicture {
        picture: Picture {
            id,
            url: String::new(),
            width: side as u32,
            height: side as u32,
            caption: SceneWords::new(&sprites.concepts, scene).caption(),
            kind: kind.into(),
            objects,
            credit: credit(sprites, scene),
        },
        webp,
        held_out: style == Style::HeldOut,
        masks,
        shown,
    })
}

/// What every patch of a drawn scene shows, and its objects.
fn scene_truth(
    plan: &Plan,
    sprites: &Sprites,
    scene: &Scene,
    drawn: &Drawn,
) -> (BTreeMap<Truth, Vec<bool>>, Vec<PictureObject>) {
    let grid = plan.vision_config().grid();
    let mut masks: BTreeMap<Truth, Vec<bool>> = BTreeMap::new();
    let mut add = |truth: Truth, shares: &[f32]| {
        let mask = masks.entry(truth).or_insert_with(|| vec![false; grid * grid]);
        mask.iter_mut().zip(shares).for_each(|(on, share)| *on |= *share >= 0.25);
    };
    let mut objects = Vec::new();
    for (number, item) in scene.items.iter().enumerate() {
        let concept = &sprites.concepts[item.concept];
        let shares = drawn.coverage(number as u8 + 1, grid);
        let own = if concept.is_emotion() { api::Category::Emotion } else { api::Category::Object };
        let name = if concept.is_emotion() { format!("{} face", concept.name) } else { concept.name.clone() };
        add(Truth::new(own, name), &shares);
        if concept.is_emotion() {
            add(Truth::new(api::Category::Object, "faces"), &shares);
        } else {
            add(Truth::new(api::Category::Object, format!("things of the kind “{}”", concept.group)), &shares);
            add(Truth::new(api::Category::Color, format!("{} things", COLORS[item.color])), &shares);
        }
        add(Truth::new(api::Category::Object, "any thing"), &shares);
        let edge: Vec<f32> = shares.iter().map(|share| f32::from(u8::from((0.1..0.85).contains(share)))).collect();
        add(Truth::new(api::Category::Part, "outlines"), &edge);
        objects.push(PictureObject {
            concept: concept.name.clone(),
            color: COLORS[item.color].into(),
            style: sprites.sprites[item.sprite].family.clone(),
            rect: visible_rect(&drawn.mask, number as u8 + 1, plan.display_side),
        });
    }
    let behind = drawn.coverage(0, grid);
    let background = &scene.background;
    add(Truth::new(api::Category::Texture, format!("{} background", PATTERNS[background.pattern])), &behind);
    add(Truth::new(api::Category::Color, format!("{} background", COLORS[background.color])), &behind);
    add(
        Truth::new(
            api::Category::Texture,
            format!("{} {} background", PATTERNS[background.pattern], COLORS[background.color]),
        ),
        &behind,
    );
    add(Truth::new(api::Category::Scene, "empty background"), &behind);
    add_zones(&mut add, grid);
    (masks, objects)
}

/// The masks of a picture of the cache set, from its scene drawn anew; `None` if the picture is not a scene of the set,
/// or not the one that `sprites` and `plan` give.
pub fn masks_again(plan: &Plan, sprites: &Sprites, picture: &Picture) -> Option<BTreeMap<Truth, Vec<bool>>> {
    let number: usize = picture.id.strip_prefix("scene-")?.parse().ok()?;
    let scene = Scene::random(sprites, plan.cache_style(number), seeds::CACHE + number as u64);
    let drawn = scene.draw(sprites, plan.display_side);
    let (masks, objects) = scene_truth(plan, sprites, &scene, &drawn);
    (objects == picture.objects).then_some(masks)
}

/// Where in the picture a patch lies is a truth too.
fn add_zones(add: &mut impl FnMut(Truth, &[f32]), grid: usize) {
    for (number, name) in ZONES.iter().enumerate() {
        let inside = |patch: usize| {
            let at = |i: usize| (i as f32 + 0.5) / grid as f32;
            f32::from(u8::from(zone(at(patch % grid), at(patch / grid)) == number))
        };
        let shares: Vec<f32> = (0..grid * grid).map(inside).collect();
        add(Truth::new(api::Category::Position, format!("{name} of the picture")), &shares);
    }
}

/// The visible part's bounding box in pixels.
fn visible_rect(mask: &[u8], number: u8, side: usize) -> Rect {
    let (mut x0, mut y0, mut x1, mut y1) = (side, side, 0, 0);
    for (i, _) in mask.iter().enumerate().filter(|(_, front)| **front == number) {
        let (x, y) = (i % side, i / side);
        (x0, y0, x1, y1) = (x0.min(x), y0.min(y), x1.max(x + 1), y1.max(y + 1));
    }
    if x0 >= x1 {
        return Rect::default();
    }
    Rect { x: x0 as f32, y: y0 as f32, width: (x1 - x0) as f32, height: (y1 - y0) as f32 }
}

/// Authors and licences of a scene's drawings, each once.
fn credit(sprites: &Sprites, scene: &Scene) -> String {
    let mut lines: Vec<String> = scene
        .items
        .iter()
        .filter_map(|item| super::pack::family(&sprites.sprites[item.sprite].family))
        .map(|family| format!("{} ({}, {})", family.name, family.author, family.licence))
        .collect();
    lines.sort();
    lines.dedup();
    format!("composed from {}; resized", lines.join(", "))
}

fn encode(picture: &RgbImage) -> Result<Vec<u8>> {
    let rgba: RgbaImage = DynamicImage::ImageRgb8(picture.clone()).to_rgba8();
    super::pack::encode_webp(&rgba, QUALITY)
}

/// The cache set in the order of its ids: trained styles, the held-out style, photographs.
pub fn cache_set(plan: &Plan, sprites: &Sprites, photographs: &Path) -> Result<Vec<CachePicture>> {
    let mut pictures = scenes(plan, sprites)?;
    for row in read_pictures(photographs)?.into_iter().take(plan.photographs) {
        let shown = image::load_from_memory(&row.webp).with_context(|| row.picture.id.clone())?.to_rgb8();
        pictures.push(CachePicture {
            picture: row.picture,
            webp: row.webp,
            held_out: false,
            masks: BTreeMap::new(),
            shown,
        });
    }
    Ok(pictures)
}

impl Plan {
    /// Which drawings scene number `i` of the cache set may use.
    fn cache_style(&self, i: usize) -> Style {
        if i < self.cache_seen { Style::Seen } else { Style::HeldOut }
    }
}

fn scenes(plan: &Plan, sprites: &Sprites) -> Result<Vec<CachePicture>> {
    let one = |i: usize| {
        let style = plan.cache_style(i);
        let scene = Scene::random(sprites, style, seeds::CACHE + i as u64);
        scene_picture(plan, sprites, &scene, format!("scene-{i:05}"), "scene", style)
    };
    (0..plan.cache_seen + plan.cache_held_out).map(one).collect()
}

/// Pictures for the landing and analyze pages: every other one in the held-out style.
pub fn sample_set(plan: &Plan, sprites: &Sprites) -> Result<Vec<CachePicture>> {
    let mut pictures = Vec::new();
    for seed in 0.. {
        if pictures.len() >= plan.samples {
            break;
        }
        let style = if pictures.len() % 2 == 0 { Style::Seen } else { Style::HeldOut };
        let scene = Scene::random(sprites, style, seeds::SAMPLES + seed);
        // Two or three things make a picture worth exploring.
        if (2..=3).contains(&scene.items.len()) {
            pictures.push(scene_picture(
                plan,
                sprites,
                &scene,
                format!("sample-{:02}", pictures.len()),
                "sample",
                style,
            )?);
        }
    }
    Ok(pictures)
}

/// What the SAE leaves over, and how hidden states scatter around the mean of the whole set.
#[derive(Debug, Clone, Default)]
pub struct Variance {
    tokens: f64,
    residual: f64,
    squares: f64,
    /// By dimension of the residual stream.
    sum: Vec<f64>,
}

impl Variance {
    /// hidden, residual: `[tokens, d_model]`, row-major.
    fn add(&mut self, hidden: &[f32], residual: &[f32], d_model: usize) {
        let squares = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        self.sum.resize(d_model, 0.0);
        for row in hidden.chunks_exact(d_model) {
            self.tokens += 1.0;
            self.sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        self.squares += squares(hidden);
        self.residual += squares(residual);
    }

    /// Fraction of variance unexplained: `Σ|x − x̂|² / Σ|x − x̄|²`.
    pub fn unexplained(&self) -> f64 {
        let of_mean = self.sum.iter().map(|sum| sum * sum).sum::<f64>() / self.tokens.max(1.0);
        self.residual / (self.squares - of_mean).max(f64::MIN_POSITIVE)
    }
}

/// Hidden states of the base picture's patches, `[patches, d_model]`.
pub fn picture_hidden<B: Backend>(lmm: &Lmm<B>, layer: usize, picture: &RgbImage) -> Result<Tensor<B, 2>> {
    let input =
        PromptInput { text: CACHE_PROMPT.into(), chat: false, image: Some(DynamicImage::ImageRgb8(picture.clone())) };
    let prepared = lmm.prepare(&input)?;
    let base = prepared.spans.iter().find(|span| span.kind == SpanKind::Base).context("no picture tokens")?;
    Ok(lmm.hidden_at(&prepared, layer)?.narrow(0, base.range.start, base.range.len()))
}

/// Features of the base picture's patches, `[patches, k]`; what the SAE leaves over is added to `variance`.
pub fn encode_picture<B: Backend>(
    lmm: &Lmm<B>,
    sae: &Sae<B>,
    layer: usize,
    picture: &RgbImage,
    variance: &mut Variance,
) -> Result<TopK> {
    let hidden = picture_hidden(lmm, layer, picture)?;
    let [_, d_model] = hidden.dims();
    let z = sae.encode(hidden.clone());
    let residual = hidden.clone() - sae.decode(&z);
    variance.add(&model::weights::f32_from_tensor(hidden), &model::weights::f32_from_tensor(residual), d_model);
    Ok(z)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variance_is_taken_around_the_mean_of_the_set() {
        let mut variance = Variance::default();
        variance.add(&[1.0, 0.0], &[0.5, 0.0], 2);
        variance.add(&[3.0, 0.0], &[0.0, 0.5], 2);
        // Mean (2, 0): a total of 2; left over 0.5.
        assert!((variance.unexplained() - 0.25).abs() < 1e-12);
    }
}
