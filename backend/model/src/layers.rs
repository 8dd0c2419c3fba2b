//! Small pieces that several parts of the model share.

use crate::cpu;
use burn::nn::{LayerNorm, Linear};
use burn::tensor::{DType, Tensor, backend::Backend};

/// `x W + b` on `[rows, positions, d_in]`.
///
/// The rows are multiplied as one matrix: a weight that is a transposed view of the file's bytes stays a view, where a
/// batched product would copy it.
pub(crate) fn linear<B: Backend>(layer: &Linear<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [rows, positions, d_in] = x.dims();
    let y = x.reshape([rows * positions, d_in]).matmul(layer.weight.val());
    let d_out = y.dims()[1];
    let y = match &layer.bias {
        Some(bias) => cpu::add_bias(y, &bias.val()).unwrap_or_else(|y| y + bias.val().unsqueeze()),
        None => y,
    };
    y.reshape([rows, positions, d_out])
}

/// A layer norm in f32, whatever the stream's format.
pub(crate) fn layer_norm<B: Backend, const D: usize>(norm: &LayerNorm<B>, x: Tensor<B, D>) -> Tensor<B, D> {
    let dtype = x.dtype();
    norm.forward(x.cast(DType::F32)).cast(dtype)
}
