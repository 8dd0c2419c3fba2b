//! What a decode answers.

/// Reconstructions of hidden states x, and how far they are from them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decoded {
    /// `x̂[t] = Σ_i top_acts[t, i] W_dec[top_indices[t, i]] + b_dec`, `[tokens, d_model]`.
    pub reconstruction: Vec<f32>,
    /// `‖x[t] - x̂[t]‖²`, `[tokens]`.
    pub squared_error: Vec<f32>,
    /// Fraction of variance unexplained, `Σ_t ‖x[t] - x̂[t]‖² / Σ_t ‖x[t] - mean(x)‖²`: 0 is perfect, 1 is no better
    /// than the mean. Infinite where all tokens are the same (one token always is), unless they are decoded perfectly.
    pub fvu: f64,
}

/// The fraction of variance unexplained of `hidden` `[tokens, d_model]`, in f64.
pub(crate) fn fraction_unexplained(hidden: &[f32], d_model: u32, squared_error: &[f32]) -> f64 {
    let mut mean = vec![0.0; d_model as usize];
    for row in hidden.chunks_exact(d_model as usize) {
        for (mean, &value) in mean.iter_mut().zip(row) {
            *mean += f64::from(value);
        }
    }
    // One division of the exact sum: the mean of equal tokens is exact.
    for mean in &mut mean {
        *mean /= squared_error.len() as f64;
    }
    let rows = hidden.chunks_exact(d_model as usize);
    let variance: f64 =
        rows.flat_map(|row| row.iter().zip(&mean)).map(|(&x, mean)| (f64::from(x) - mean).powi(2)).sum();
    let error: f64 = squared_error.iter().map(|&error| f64::from(error)).sum();
    if error == 0.0 { 0.0 } else { error / variance }
}
