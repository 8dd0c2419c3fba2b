//! A tiny random checkpoint and small helpers for the tests of this crate.
#![allow(dead_code)] // each test binary uses its own part

use image::{DynamicImage, Rgb, RgbImage};
use model::{Cpu, Lmm, PromptInput, Sae};
use std::sync::Arc;

pub type B = Cpu;

pub struct Tiny {
    pub dir: tempfile::TempDir,
    pub lmm: Lmm<B>,
    pub sae: Arc<Sae<B>>,
}

pub fn tiny() -> Tiny {
    let dir = tempfile::tempdir().unwrap();
    let device = Default::default();
    model::testing::tiny_checkpoint::<B>(dir.path(), &device).unwrap();
    let lmm = Lmm::load(&dir.path().join("model"), &device).unwrap();
    let sae = Arc::new(Sae::load(&dir.path().join("sae"), &device).unwrap());
    Tiny { dir, lmm, sae }
}

pub fn picture(width: u32, height: u32) -> DynamicImage {
    DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, (x ^ y) as u8])))
}

pub fn question(text: &str, image: Option<DynamicImage>) -> PromptInput {
    PromptInput { text: text.into(), chat: true, image }
}

/// NaN fails.
pub fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance, "value {i}: {a} and {b}");
    }
}
