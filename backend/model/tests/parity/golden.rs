//! The files of `fixtures/parity/` (made by `fixtures/make_parity.py` and `make_parity_more.py`), and how results are
//! compared with them.
#![allow(dead_code)] // each test binary uses its own part

use image::{DynamicImage, RgbImage};
use model::{Cpu, EditOp, Lmm, PromptInput, picture::decode_picture};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `cases.json`.
#[derive(Deserialize)]
pub struct Cases {
    /// Language block whose output is looked at and replaced.
    pub hook: usize,
    /// How many rows of a stage are stored.
    pub rows: usize,
    pub llama3: Checkpoint,
    pub mistral: Checkpoint,
    pub encode: Vec<EncodeCase>,
    pub steer: Vec<SteerCase>,
    pub attribution: Vec<AttributionCase>,
}

#[derive(Deserialize)]
pub struct Checkpoint {
    pub pictures: Vec<PictureCase>,
    pub texts: Vec<TextCase>,
    pub stops: Vec<StopCase>,
}

/// Token ids as runs of one id.
pub type Runs = Vec<(u32, usize)>;

pub fn ids_from_runs(runs: &Runs) -> Vec<u32> {
    runs.iter().flat_map(|&(id, count)| std::iter::repeat_n(id, count)).collect()
}

#[derive(Deserialize)]
pub struct PictureCase {
    pub picture: String,
    pub tiles: usize,
    /// Of all levels of all tiles, 0 to 255.
    pub mean_level: f64,
    /// Of the raw prompt `<image>`.
    pub raw_ids: Runs,
    pub question: String,
    /// The question through the chat template.
    pub rendered: String,
    pub chat_ids: Runs,
    /// True if the goldens hold this picture's stages (raw prompt).
    pub staged: bool,
    /// Answer to the question.
    pub greedy: Option<Vec<u32>>,
    pub greedy_text: Option<String>,
}

impl PictureCase {
    pub fn stem(&self) -> &str {
        self.picture.split('.').next().unwrap_or_default()
    }
}

#[derive(Deserialize)]
pub struct TextCase {
    /// Prefix of the goldens' names.
    pub key: String,
    pub text: String,
    pub chat: bool,
    pub rendered: String,
    pub ids: Vec<u32>,
    pub greedy: Option<Vec<u32>>,
    pub greedy_text: Option<String>,
}

/// A raw prompt whose text ends with a stop token of generation_config.json.
#[derive(Deserialize)]
pub struct StopCase {
    pub text: String,
    pub token: String,
    pub greedy: Vec<u32>,
}

#[derive(Deserialize)]
pub struct EncodeCase {
    pub key: String,
}

#[derive(Deserialize)]
pub struct SteerCase {
    pub picture: Option<String>,
    pub question: String,
    pub forms: BTreeMap<String, Form>,
}

/// One form of steering and the text it gives. `original` has no edits and no reconstruction.
#[derive(Deserialize)]
pub struct Form {
    pub ids: Vec<u32>,
    #[serde(default)]
    pub edits: Vec<(String, usize, f32)>,
    #[serde(default)]
    pub keep_error: bool,
    #[serde(default)]
    pub positions: String,
}

pub fn op_from_name(name: &str, value: f32) -> EditOp {
    match name {
        "clamp" => EditOp::Clamp(value),
        "add" => EditOp::Add(value),
        "orthogonal" => EditOp::Orthogonal(value),
        "ablate" => EditOp::Ablate,
        other => panic!("cases.json has an unknown edit `{other}`"),
    }
}

#[derive(Deserialize)]
pub struct AttributionCase {
    pub key: String,
    pub picture: Option<String>,
    pub question: String,
    pub answer: u32,
    pub baseline: u32,
    pub logit_difference: f32,
    pub logit_difference_original: f32,
    /// Features by falling |attribution|.
    pub top: Vec<u32>,
    /// Effects of removing the first of `top`.
    pub measured: Vec<f32>,
    /// How many (token, feature) pairs are active.
    pub positive_effects: usize,
}

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity")
}

pub fn cases() -> Cases {
    serde_json::from_slice(&std::fs::read(folder().join("cases.json")).unwrap()).unwrap()
}

pub fn lmm(checkpoint: &str) -> Lmm<Cpu> {
    Lmm::load(&folder().join(checkpoint), &Default::default()).unwrap()
}

pub fn picture(name: &str) -> DynamicImage {
    decode_picture(&std::fs::read(folder().join("pictures").join(name)).unwrap()).unwrap()
}

pub fn raw_prompt(name: &str) -> PromptInput {
    PromptInput { text: "<image>".into(), chat: false, image: Some(picture(name)) }
}

pub fn question(text: &str, name: Option<&str>) -> PromptInput {
    PromptInput { text: text.into(), chat: true, image: name.map(picture) }
}

/// The tiles as Pillow resized and cut them, below each other.
pub fn levels(stem: &str) -> RgbImage {
    picture(&format!("../pixels/{stem}.png")).into_rgb8()
}

const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_55, 0.261_302_6, 0.275_777_1];

/// Tiles below each other to `[tiles, 3, side, side]`, with the rounding of `LlavaNextImageProcessor`: rescaled in f64,
/// normalised in f32.
pub fn normalised(levels: &RgbImage) -> Vec<f32> {
    let side = levels.width() as usize;
    let mut values = Vec::with_capacity(levels.as_raw().len());
    for tile in levels.as_raw().chunks_exact(side * side * 3) {
        for channel in 0..3 {
            let own = tile.iter().skip(channel).step_by(3);
            values.extend(own.map(|&level| ((f64::from(level) * (1.0 / 255.0)) as f32 - MEAN[channel]) / STD[channel]));
        }
    }
    values
}

/// `[tiles, 3, side, side]` normalised values back to levels, in the order of [`levels`].
pub fn levels_from_values(values: &[f32], side: usize) -> Vec<f32> {
    let area = side * side;
    let mut levels = Vec::with_capacity(values.len());
    for tile in values.chunks_exact(3 * area) {
        for pixel in 0..area {
            levels.extend((0..3).map(|c| (tile[c * area + pixel] * STD[c] + MEAN[c]) * 255.0));
        }
    }
    levels
}

/// `more.json`.
#[derive(Deserialize)]
pub struct MoreCases {
    /// Words of a lens at each position.
    pub words: usize,
    /// A picture whose stages are stored.
    pub large: String,
    pub lenses: Vec<LensCase>,
    pub steer: Vec<MoreSteerCase>,
}

#[derive(Deserialize)]
pub struct LensCase {
    pub key: String,
    pub picture: Option<String>,
    pub question: String,
}

/// Forms of steering at a hook point of its own.
#[derive(Deserialize)]
pub struct MoreSteerCase {
    pub hook: String,
    pub picture: Option<String>,
    pub question: String,
    pub forms: BTreeMap<String, Form>,
}

pub fn more_cases() -> MoreCases {
    serde_json::from_slice(&std::fs::read(folder().join("more.json")).unwrap()).unwrap()
}

/// `goldens.safetensors` or `more.safetensors`.
pub struct Goldens {
    bytes: Vec<u8>,
}

impl Goldens {
    pub fn load() -> Self {
        Self::open("goldens.safetensors")
    }

    pub fn open(name: &str) -> Self {
        Self { bytes: std::fs::read(folder().join(name)).unwrap() }
    }

    fn tensor(&self, key: &str, dtype: Dtype) -> (Vec<usize>, Vec<[u8; 4]>) {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(key).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(view.dtype(), dtype, "{key}");
        let words = view.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect();
        (view.shape().to_vec(), words)
    }

    pub fn f32s(&self, key: &str) -> Vec<f32> {
        self.tensor(key, Dtype::F32).1.into_iter().map(f32::from_le_bytes).collect()
    }

    /// Values of a matrix and its width.
    pub fn matrix(&self, key: &str) -> (Vec<f32>, usize) {
        let (shape, words) = self.tensor(key, Dtype::F32);
        assert_eq!(shape.len(), 2, "{key} has shape {shape:?}");
        (words.into_iter().map(f32::from_le_bytes).collect(), shape[1])
    }

    pub fn i32s(&self, key: &str) -> Vec<i32> {
        self.tensor(key, Dtype::I32).1.into_iter().map(i32::from_le_bytes).collect()
    }

    /// Larger of the relative errors of the stored rows and of all rows' products with the probe.
    pub fn error(&self, key: &str, found: &[f32], rows: usize) -> f64 {
        let (expected_rows, width) = self.matrix(&format!("{key}.rows"));
        let expected_dots = self.f32s(&format!("{key}.dots"));
        assert_eq!(found.len(), expected_dots.len() * width, "{key}: number of values");
        let probe = self.f32s(&format!("probe.{width}"));
        let dot = |row: &[f32]| row.iter().zip(&probe).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32;
        let dots: Vec<f32> = found.chunks_exact(width).map(dot).collect();
        let chosen: Vec<f32> = spread(expected_dots.len(), rows)
            .into_iter()
            .flat_map(|row| found[row * width..(row + 1) * width].iter().copied())
            .collect();
        let (of_rows, of_dots) = (relative(&chosen, &expected_rows), relative(&dots, &expected_dots));
        // `max` would let NaN through.
        if of_rows >= of_dots || of_rows.is_nan() { of_rows } else { of_dots }
    }
}

/// `wanted` indices of `count`, the first and the last among them.
fn spread(count: usize, wanted: usize) -> Vec<usize> {
    if count <= wanted {
        return (0..count).collect();
    }
    (0..wanted).map(|i| i * (count - 1) / (wanted - 1)).collect()
}

/// `‖a − b‖ / ‖b‖`; NaN anywhere gives NaN, which no bound accepts.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "number of values");
    let square = |x: f64| x * x;
    let error: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    if error == 0.0 { 0.0 } else { (error / norm).sqrt() }
}

/// The largest error of a stage, printed when all cases are through.
pub struct Largest {
    stage: &'static str,
    bound: f64,
    error: f64,
    case: String,
}

impl Largest {
    pub fn new(stage: &'static str, bound: f64) -> Self {
        Self { stage, bound, error: 0.0, case: "none".into() }
    }

    /// Fails if `error` is above the bound or NaN.
    pub fn check(&mut self, case: &str, error: f64) {
        assert!(error <= self.bound, "{case}: {} is off by {error:.2e}, allowed is {:.0e}", self.stage, self.bound);
        if error >= self.error {
            (self.error, self.case) = (error, case.to_string());
        }
    }
}

impl Drop for Largest {
    fn drop(&mut self) {
        eprintln!("{}: largest error {:.2e} ({}), allowed {:.0e}", self.stage, self.error, self.case, self.bound);
    }
}
