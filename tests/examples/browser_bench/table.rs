//! The tables, in Markdown.

use crate::{Backend, options::Sae};
use serde::Deserialize;
use std::collections::BTreeMap;

/// onnxruntime-web's precisions, as the page names them.
const THEIRS: [&str; 2] = ["f32", "f16 sums"];

/// What the page says about the browser; without a name there is no WebGPU.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Adapter {
    pub name: Option<String>,
    pub browser: String,
    pub software: bool,
    /// Of onnxruntime-web's wasm.
    pub threads: u32,
}

/// What the adapter reaches at most.
#[derive(Debug, Deserialize)]
pub struct Peaks {
    /// GFLOP/s of multiply-adds, each of which counts as two.
    pub f32: f64,
    /// The same in halves, where the adapter has them.
    pub f16: Option<f64>,
    /// GB/s.
    pub read: f64,
}

/// One engine on one SAE with some tokens.
#[derive(Debug, Deserialize)]
pub struct Row {
    tokens: u32,
    engine: String,
    precision: String,
    /// How the engine was asked, of several ways.
    detail: Option<String>,
    /// Why it is out.
    note: Option<String>,
    /// It named other latents, or gave other activations.
    pub wrong: bool,
    /// Share of the latents that it names as what it was compared with does.
    overlap: Option<f64>,
    /// Median, least and most milliseconds.
    ms: Option<f64>,
    least: Option<f64>,
    most: Option<f64>,
    runs: Option<u32>,
    /// Of ours: each of theirs' time over its own, in the same turns.
    faster: Option<BTreeMap<String, Option<f64>>>,
}

pub fn print_about(adapter: &Adapter, peaks: &Peaks, version: Option<&str>) {
    let date = time::OffsetDateTime::now_utc().date();
    let name = adapter.name.as_deref().unwrap_or_default();
    let beside = version.map_or_else(|| "alone".to_owned(), |version| format!("beside onnxruntime-web {version}"));
    println!("Measured on {date} in {}: {name}; {beside}.", adapter.browser);
    if adapter.software {
        println!("This adapter is the CPU in disguise: its times say nothing about GPUs.");
    }
    let halves = peaks.f16.map_or_else(String::new, |peak| format!(" ({peak:.1} in halves)"));
    println!(
        "It reaches {:.1} GFLOP/s in multiply-adds alone{halves} and {:.1} GB/s in reads alone.",
        peaks.f32, peaks.read
    );
    println!("Times are medians of whole encodes, from memory to memory, ours and theirs in turns.");
    println!("In wasm ours has one thread, onnxruntime-web {}.", adapter.threads);
    println!("× f32, × f16: how many times as fast as onnxruntime-web in that precision, in the same turns.");
    println!("Same latents: beside the row that has none.");
}

pub fn print_head(backend: Backend) {
    let name = match backend {
        Backend::WebGpu => "WebGPU",
        Backend::Wasm => "wasm",
    };
    println!();
    println!(
        "| {name} | weights | T | D | N | k | ms | least–most | runs | GFLOP/s | share | GB/s | share | × f32 | × f16 \
         | same latents | |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|");
}

impl Row {
    pub fn is_ours(&self) -> bool {
        self.engine == "ours"
    }

    pub fn is_measured(&self) -> bool {
        self.ms.is_some()
    }

    /// Shares are of the adapter's peaks; without these there are none.
    pub fn print(&self, sae: &Sae, peaks: Option<&Peaks>) {
        let Self { tokens, engine, precision, .. } = self;
        let Sae { d_model, latents, k, .. } = sae;
        let weights = f64::from(*d_model) * f64::from(*latents);
        // In 10^9 a second.
        let rate = |work: f64| self.ms.map(|ms| 1e-6 * work / ms);
        let (flop, bytes) = (rate(2.0 * f64::from(*tokens) * weights), rate(self.bytes_per_weight() * weights));
        let flop_peak = peaks.map(|peaks| match peaks.f16 {
            Some(halves) if precision == THEIRS[1] => halves,
            _ => peaks.f32,
        });
        let share = |value: Option<f64>, peak: Option<f64>| match (value, peak) {
            (Some(value), Some(peak)) => format!("{:.1}%", 100.0 * value / peak),
            _ => String::new(),
        };
        let spread = match (self.least, self.most) {
            (Some(least), Some(most)) => format!("{least:.2}–{most:.2}"),
            _ => String::new(),
        };
        let [times_f32, times_f16] = THEIRS.map(|precision| {
            number(self.faster.as_ref().and_then(|faster| faster.get(precision)).copied().flatten(), 2)
        });
        let cells = [
            engine.clone(),
            precision.clone(),
            tokens.to_string(),
            d_model.to_string(),
            latents.to_string(),
            k.to_string(),
            number(self.ms, 2),
            spread,
            self.runs.map(|runs| runs.to_string()).unwrap_or_default(),
            rate_text(flop),
            share(flop, flop_peak),
            rate_text(bytes),
            share(bytes, peaks.map(|peaks| peaks.read)),
            times_f32,
            times_f16,
            self.overlap.map(|overlap| format!("{:.1}%", 100.0 * overlap)).unwrap_or_default(),
            self.remarks(),
        ];
        println!("| {} |", cells.join(" | "));
    }

    /// What must be read at least once, scales included.
    fn bytes_per_weight(&self) -> f64 {
        match &*self.precision {
            "f32" => 4.0,
            "int8" => 1.0,
            "int4" => 0.5 + 2.0 / 32.0,
            // f16, with sums in either.
            _ => 2.0,
        }
    }

    fn remarks(&self) -> String {
        let wrong = self.wrong.then_some("WRONG");
        let remarks = [wrong, self.detail.as_deref(), self.note.as_deref()].into_iter().flatten();
        let remarks: Vec<&str> = remarks.filter(|remark| !remark.is_empty()).collect();
        remarks.join("; ").replace(['|', '\n'], " ")
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map(|value| format!("{value:.digits$}")).unwrap_or_default()
}

/// Software adapters are a thousand times slower than GPUs.
fn rate_text(value: Option<f64>) -> String {
    number(value, if value.is_some_and(|value| value < 1.0) { 3 } else { 1 })
}
