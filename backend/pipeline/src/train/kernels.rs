//! The loops that take the time.

/// Numbers that one task of an elementwise loop works on.
pub const TASK: usize = 1 << 15;

/// Runs `work` with the widest SIMD that this machine has.
#[inline(always)]
pub fn simd<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// Independent sums of [`dot`]: SIMD, and less rounding than one running sum.
const LANES: usize = 32;

/// `a · b`
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += a * b);
    }
    // Halves on halves: a plain sum of the lanes would take longer than a short row.
    let mut width = LANES / 2;
    while width > 0 {
        let (low, high) = lanes.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
        width /= 2;
    }
    lanes[0] + rest
}

/// `out += factor · row`
#[inline(always)]
pub fn add_scaled(out: &mut [f32], factor: f32, row: &[f32]) {
    out.iter_mut().zip(row).for_each(|(out, value)| *out += factor * value);
}

/// `values *= factor`
#[inline(always)]
pub fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|value| *value *= factor);
}

/// `products [tokens, rows] = x [tokens, d] · w [rows, d]ᵀ`, on the current core.
pub fn multiply_transposed(x: &[f32], w: &[f32], d: usize, products: &mut [f32]) {
    let (tokens, rows) = (x.len() / d, w.len() / d);
    assert!(x.len() == tokens * d && w.len() == rows * d && products.len() == tokens * rows, "sizes of the product");
    // SAFETY: the three slices are as long as these row-major shapes say (just checked), and nothing overlaps:
    // `products` is borrowed mutably.
    unsafe {
        gemm::gemm(
            tokens,
            rows,
            d,
            products.as_mut_ptr(),
            1,
            rows as isize,
            false,
            x.as_ptr(),
            1,
            d as isize,
            w.as_ptr(),
            d as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_and_sums_on_awkward_sizes() {
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 25.0;
        for (tokens, rows, d) in [(1, 1, 1), (3, 5, 31), (17, 33, 64), (2, 70, 99)] {
            let x: Vec<f32> = (0..tokens * d).map(value).collect();
            let w: Vec<f32> = (0..rows * d).map(|i| value(i + 7)).collect();
            let mut products = vec![f32::NAN; tokens * rows];
            multiply_transposed(&x, &w, d, &mut products);
            for (at, product) in products.iter().enumerate() {
                let (x, w) = (&x[at / rows * d..][..d], &w[at % rows * d..][..d]);
                let truth: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                assert!((f64::from(*product) - truth).abs() < 1e-4, "{product} and {truth}");
                assert!((f64::from(dot(x, w)) - truth).abs() < 1e-4, "{} and {truth}", dot(x, w));
            }
        }
    }
}
