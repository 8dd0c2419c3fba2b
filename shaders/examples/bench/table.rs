//! The table, in Markdown.

use crate::peaks::Peaks;

/// One measurement.
#[derive(Debug, Default)]
pub struct Row {
    pub kernel: String,
    /// Sizes that the kernel has; 0 for the others.
    pub tokens: u32,
    pub d_model: u32,
    pub latents: u32,
    pub k: u32,
    pub gpu_seconds: f64,
    /// Of the CPU twin, where it was timed.
    pub cpu_seconds: Option<f64>,
    /// A multiply-add counts as two; 0 where something else takes the time.
    pub flop: f64,
    /// What must be read or written at least once.
    pub bytes: f64,
}

pub fn print_head(peaks: &Peaks, adapter: &str) {
    let date = time::OffsetDateTime::now_utc().date();
    println!("Measured on {date}: {adapter}.");
    println!(
        "It reaches {:.1} GFLOP/s in multiply-adds alone and {:.1} GB/s in reads alone.",
        1e-9 * peaks.flop_per_second,
        1e-9 * peaks.bytes_per_second
    );
    println!("Times are medians of whole calls, from memory to memory: uploads, all submissions, results read back.");
    println!("A twin's is that of one run on one core, where that does not take too long.");
    println!();
    println!("| kernel | T | D | N | k | GPU, ms | GFLOP/s | share | GB/s | share | CPU twin, ms |");
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
}

impl Row {
    pub fn print(&self, peaks: &Peaks) {
        let [tokens, d_model, latents, k] = [self.tokens, self.d_model, self.latents, self.k].map(size);
        let [flop, flop_share] = rate(self.flop / self.gpu_seconds, peaks.flop_per_second);
        let [bytes, bytes_share] = rate(self.bytes / self.gpu_seconds, peaks.bytes_per_second);
        let cpu = self.cpu_seconds.map(milliseconds).unwrap_or_default();
        let (kernel, gpu) = (self.kernel.clone(), milliseconds(self.gpu_seconds));
        let cells = [kernel, tokens, d_model, latents, k, gpu, flop, flop_share, bytes, bytes_share, cpu];
        println!("| {} |", cells.join(" | "));
    }
}

fn size(size: u32) -> String {
    if size == 0 { String::new() } else { size.to_string() }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.2}", 1e3 * seconds)
}

/// In 10^9 a second, and the share of the peak; nothing for nothing.
fn rate(per_second: f64, peak: f64) -> [String; 2] {
    if per_second == 0.0 {
        return [String::new(), String::new()];
    }
    [format!("{:.1}", 1e-9 * per_second), format!("{:.1}%", 100.0 * per_second / peak)]
}
