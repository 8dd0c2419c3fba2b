//! Kernels of the CPU backend for what a general tensor library does in many passes: attention, rotary positions, gates
//! and norms. All cores, one pass, nothing of size `[heads, positions, positions]` in memory.
//!
//! Every function takes tensors of any backend and answers `None` (or hands its arguments back) unless they are the CPU
//! backend's, in f32; the caller then writes the same thing with tensor operations, which is also what training does.

use burn::tensor::{DType, Tensor, TensorPrimitive, backend::Backend};
use burn_flex::{Flex, FlexTensor, Layout};
use rayon::prelude::*;
use std::any::Any;

/// Numbers that one task works on.
const TASK: usize = 1 << 15;

/// A tensor of the CPU backend in f32, without a copy.
fn on_cpu<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Option<FlexTensor> {
    let own = (tensor as &dyn Any).downcast_ref::<Tensor<Flex, D>>()?;
    (own.dtype() == DType::F32).then(|| own.clone().into_primitive().tensor())
}

/// The same, giving the caller's hold on it up, so that it can be written in place.
fn take_on_cpu<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Result<FlexTensor, Tensor<B, D>> {
    if tensor.dtype() != DType::F32 || !(&tensor as &dyn Any).is::<Tensor<Flex, D>>() {
        return Err(tensor);
    }
    match (Box::new(tensor) as Box<dyn Any>).downcast::<Tensor<Flex, D>>() {
        Ok(own) => Ok(own.into_primitive().tensor().to_contiguous()),
        Err(_) => unreachable!("the type was just asked for"),
    }
}

fn from_cpu<B: Backend, const D: usize>(tensor: FlexTensor) -> Tensor<B, D> {
    let own = Tensor::<Flex, D>::from_primitive(TensorPrimitive::Float(tensor));
    match (Box::new(own) as Box<dyn Any>).downcast::<Tensor<B, D>>() {
        Ok(tensor) => *tensor,
        Err(_) => unreachable!("results go back to where the arguments came from"),
    }
}

fn from_values<B: Backend, const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<B, D> {
    let layout = Layout::contiguous(shape.into());
    from_cpu(FlexTensor::new(burn::tensor::Bytes::from_elems(values), layout, DType::F32))
}

/// `eˣ` to about one unit in the last place (Cephes' `expf`), in operations that compile to SIMD. Below −87 it is
/// about 10⁻³⁸.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer, which then is in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4 * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    y * f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Runs `work` with the widest SIMD that this machine has.
#[inline(always)]
fn simd(work: impl FnOnce()) {
    pulp::Arch::new().dispatch(work);
}

/// `SiLU(gate) ⊙ up`, in place of `gate`.
pub(crate) fn gated<B: Backend>(
    gate: Tensor<B, 3>,
    up: Tensor<B, 3>,
) -> Result<Tensor<B, 3>, (Tensor<B, 3>, Tensor<B, 3>)> {
    let Some(other) = on_cpu(&up) else { return Err((gate, up)) };
    let mut gate = take_on_cpu(gate).map_err(|gate| (gate, up))?;
    let other = other.to_contiguous();
    let (values, others) = (gate.storage_mut::<f32>(), other.storage::<f32>());
    values.par_chunks_mut(TASK).zip(others.par_chunks(TASK)).for_each(|(values, others)| {
        simd(
            #[inline(always)]
            || values.iter_mut().zip(others).for_each(|(x, up)| *x *= sigmoid(*x) * up),
        );
    });
    Ok(from_cpu(gate))
}

/// `x · σ(1.702 x)`, in place.
pub(crate) fn quick_gelu<B: Backend>(x: Tensor<B, 3>) -> Result<Tensor<B, 3>, Tensor<B, 3>> {
    let mut x = take_on_cpu(x)?;
    x.storage_mut::<f32>().par_chunks_mut(TASK).for_each(|values| {
        simd(
            #[inline(always)]
            || values.iter_mut().for_each(|x| *x *= sigmoid(1.702 * *x)),
        );
    });
    Ok(from_cpu(x))
}

/// Adds `bias` to each row of `[rows, d]`, in place.
pub(crate) fn add_bias<B: Backend>(x: Tensor<B, 2>, bias: &Tensor<B, 1>) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    let Some(bias) = on_cpu(bias) else { return Err(x) };
    let mut x = take_on_cpu(x)?;
    let bias = bias.to_contiguous();
    let bias = bias.storage::<f32>();
    let chunk = (TASK / bias.len()).max(1) * bias.len();
    x.storage_mut::<f32>().par_chunks_mut(chunk).for_each(|rows| {
        for row in rows.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
    });
    Ok(from_cpu(x))
}

/// `x / rms(x) ⊙ γ` over the last dimension.
pub(crate) fn rms_norm<B: Backend, const D: usize>(
    x: &Tensor<B, D>,
    gamma: &Tensor<B, 1>,
    epsilon: f64,
) -> Option<Tensor<B, D>> {
    let shape: [usize; D] = x.dims();
    let (x, gamma) = (on_cpu(x)?.to_contiguous(), on_cpu(gamma)?.to_contiguous());
    let (values, gamma) = (x.storage::<f32>(), gamma.storage::<f32>());
    let d = gamma.len();
    let chunk = (TASK / d).max(1) * d;
    let mut out = vec![0.0f32; values.len()];
    out.par_chunks_mut(chunk).zip(values.par_chunks(chunk)).for_each(|(out, values)| {
        for (out, row) in out.chunks_exact_mut(d).zip(values.chunks_exact(d)) {
            simd(
                #[inline(always)]
                || {
                    let factor = 1.0 / (sum(row, |x| x * x) / d as f32 + epsilon as f32).sqrt();
                    out.iter_mut().zip(row).zip(gamma).for_each(|((out, x), gamma)| *out = x * factor * gamma);
                },
            );
        }
    });
    Some(from_values(out, shape))
}

/// Sum of `f` over a row in sixteen lanes: SIMD, and less rounding than one running sum.
#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let whole = row.chunks_exact(16);
    let rest: f32 = whole.remainder().iter().map(|x| f(*x)).sum();
    for chunk in whole {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += f(*x));
    }
    lanes.iter().sum::<f32>() + rest
}

/// `x · cos + rotate_half(x) · sin` on `[rows, heads, positions, head_dim]`; the tables are `[rows or 1, 1, positions,
/// head_dim]`.
pub(crate) fn rotate<B: Backend>(x: &Tensor<B, 4>, cos: &Tensor<B, 4>, sin: &Tensor<B, 4>) -> Option<Tensor<B, 4>> {
    let [rows, heads, positions, head_dim] = x.dims();
    let table_rows = cos.dims()[0];
    let (x, cos, sin) = (Strided::of(x)?, on_cpu(cos)?.to_contiguous(), on_cpu(sin)?.to_contiguous());
    let (cos, sin) = (cos.storage::<f32>(), sin.storage::<f32>());
    let half = head_dim / 2;
    let mut out = vec![0.0f32; rows * heads * positions * head_dim];
    out.par_chunks_mut(positions * head_dim).enumerate().for_each(|(at, out)| {
        let (row, head) = (at / heads, at % heads);
        let table = if table_rows == 1 { 0 } else { row * positions * head_dim };
        for (position, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let x = x.vector(row, head, position);
            let place = table + position * head_dim;
            let (cos, sin) = (&cos[place..place + head_dim], &sin[place..place + head_dim]);
            for i in 0..half {
                out[i] = x[i] * cos[i] - x[i + half] * sin[i];
                out[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
            }
        }
    });
    Some(from_values(out, [rows, heads, positions, head_dim]))
}

/// `[rows, heads, positions, head_dim]` whose vectors lie whole in memory, wherever each of them is.
struct Strided {
    tensor: FlexTensor,
    strides: [usize; 3],
    head_dim: usize,
}

impl Strided {
    fn of<B: Backend>(tensor: &Tensor<B, 4>) -> Option<Self> {
        let [_, _, _, head_dim] = tensor.dims();
        let mut tensor = on_cpu(tensor)?;
        if tensor.layout().strides().last() != Some(&1) || tensor.layout().strides().iter().any(|stride| *stride < 0) {
            tensor = tensor.to_contiguous();
        }
        let of = |dim: usize| tensor.layout().strides().get(dim).map(|stride| stride.unsigned_abs());
        let strides = [of(0)?, of(1)?, of(2)?];
        Some(Self { tensor, strides, head_dim })
    }

    fn start(&self, row: usize, head: usize, position: usize) -> usize {
        let [rows, heads, positions] = self.strides;
        self.tensor.layout().start_offset() + row * rows + head * heads + position * positions
    }

    fn vector(&self, row: usize, head: usize, position: usize) -> &[f32] {
        let start = self.start(row, head, position);
        &self.tensor.storage::<f32>()[start..start + self.head_dim]
    }

    /// `count` vectors of one head from `position` on: a matrix with rows `strides[2]` apart.
    fn matrix(&self, row: usize, head: usize, position: usize, count: usize) -> &[f32] {
        let start = self.start(row, head, position);
        &self.tensor.storage::<f32>()[start..start + (count - 1) * self.strides[2] + self.head_dim]
    }
}

/// Which keys a query sees.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sees<'a> {
    /// All of them.
    Everything,
    /// Those before it and itself, `window` at most, but not the padding on the left of its row.
    Past { past: usize, window: Option<usize>, pads: &'a [usize] },
}

impl Sees<'_> {
    /// First key and one past the last, for query `query` of row `row` out of `keys` keys.
    fn range(&self, row: usize, query: usize, keys: usize) -> (usize, usize) {
        match *self {
            Self::Everything => (0, keys),
            Self::Past { past, window, pads } => {
                let end = past + query + 1;
                let pad = pads.get(row).copied().unwrap_or_default();
                (window.map_or(pad, |window| pad.max(end.saturating_sub(window))), end)
            }
        }
    }
}

/// Queries of one task.
const QUERIES: usize = 96;

/// `softmax(q kᵀ / √d) v`, query head `i` with key/value head `i / (heads / kv_heads)`.
///
/// # Shapes
/// - q: `[rows, heads, positions, head_dim]`
/// - k, v: `[rows, kv_heads, keys, head_dim]`
/// - output: `[rows, positions, heads · head_dim]`
pub(crate) fn attention<B: Backend>(
    q: &Tensor<B, 4>,
    k: &Tensor<B, 4>,
    v: &Tensor<B, 4>,
    sees: Sees<'_>,
) -> Option<Tensor<B, 3>> {
    let [rows, heads, positions, head_dim] = q.dims();
    let [_, kv_heads, keys, _] = k.dims();
    let (q, k, v) = (Strided::of(q)?, Strided::of(k)?, Strided::of(v)?);
    let group = heads / kv_heads;
    let scale = (head_dim as f32).sqrt().recip();
    let blocks = positions.div_ceil(QUERIES);
    // [rows, blocks, heads, queries, head_dim], the last block of a row perhaps shorter: written where it belongs below.
    let mut mixed = vec![0.0f32; rows * blocks * heads * QUERIES * head_dim];
    mixed.par_chunks_mut(QUERIES * head_dim).enumerate().for_each_init(Vec::new, |scores, (task, mixed)| {
        let (row, block, head) = (task / (blocks * heads), task / heads % blocks, task % heads);
        let first = block * QUERIES;
        let count = QUERIES.min(positions - first);
        let (low, _) = sees.range(row, first, keys);
        let (_, high) = sees.range(row, first + count - 1, keys);
        let width = high - low;
        scores.resize(QUERIES * width, 0.0f32);
        let (queries, kv) = (q.matrix(row, head, first, count), head / group);
        let (seen_k, seen_v) = (k.matrix(row, kv, low, width), v.matrix(row, kv, low, width));
        // scores [count, width] = q kᵀ
        multiply([count, width, head_dim], scores, [width, 1], queries, [q.strides[2], 1], seen_k, [1, k.strides[2]]);
        for (query, row_scores) in scores.chunks_exact_mut(width).take(count).enumerate() {
            let (from, to) = sees.range(row, first + query, keys);
            softmax_within(row_scores, from - low, to - low, scale);
        }
        // mixed [count, head_dim] = scores v
        multiply([count, head_dim, width], mixed, [head_dim, 1], scores, [width, 1], seen_v, [v.strides[2], 1]);
    });
    let mut out = vec![0.0f32; rows * positions * heads * head_dim];
    let row_width = heads * head_dim;
    out.par_chunks_mut(row_width).enumerate().for_each(|(at, out)| {
        let (row, position) = (at / positions, at % positions);
        let (block, query) = (position / QUERIES, position % QUERIES);
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let start = (((row * blocks + block) * heads + head) * QUERIES + query) * head_dim;
            out.copy_from_slice(&mixed[start..start + head_dim]);
        }
    });
    Some(from_values(out, [rows, positions, row_width]))
}

/// Softmax of `scale · row[from..to]`; zero elsewhere.
fn softmax_within(row: &mut [f32], from: usize, to: usize, scale: f32) {
    simd(
        #[inline(always)]
        || {
            row[..from].fill(0.0);
            row[to..].fill(0.0);
            let seen = &mut row[from..to];
            let mut lanes = [f32::NEG_INFINITY; 16];
            let whole = seen.chunks_exact(16);
            let mut largest = whole.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for chunk in whole {
                lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane = if *x > *lane { *x } else { *lane });
            }
            largest = lanes.iter().copied().fold(largest, f32::max);
            seen.iter_mut().for_each(|x| *x = exp((*x - largest) * scale));
            let factor = 1.0 / sum(seen, |x| x);
            seen.iter_mut().for_each(|x| *x *= factor);
        },
    );
}

/// `out [m, n] = a [m, k] · b [k, n]` on the current core; strides are those of rows and of columns.
fn multiply(
    [m, n, k]: [usize; 3],
    out: &mut [f32],
    out_strides: [usize; 2],
    a: &[f32],
    a_strides: [usize; 2],
    b: &[f32],
    b_strides: [usize; 2],
) {
    let last = |rows: usize, columns: usize, strides: [usize; 2]| (rows - 1) * strides[0] + (columns - 1) * strides[1];
    assert!(last(m, n, out_strides) < out.len() && last(m, k, a_strides) < a.len() && last(k, n, b_strides) < b.len());
    let [out_rows, out_columns] = out_strides.map(|stride| stride as isize);
    let [a_rows, a_columns] = a_strides.map(|stride| stride as isize);
    let [b_rows, b_columns] = b_strides.map(|stride| stride as isize);
    // SAFETY: the last number of each matrix lies in its slice (just checked), so all of them do, and `out` is borrowed
    // mutably: it overlaps neither.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            out_columns,
            out_rows,
            false,
            a.as_ptr(),
            a_columns,
            a_rows,
            b.as_ptr(),
            b_columns,
            b_rows,
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
    fn exp_is_exact_to_a_few_units_in_the_last_place() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0 + 0.003;
            let (found, truth) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(((found - truth) / truth).abs() < 3e-7, "exp({x}): {found} and {truth}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(-1000.0) < 1e-37);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
