//! Files of hidden states, as `extract` writes them.

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// The values of `hidden` `[tokens, d_in]`, row-major, in f32, f16 or bf16.
///
/// # Errors
/// What is wrong with the file, for a sentence that begins with its name.
pub(crate) fn hidden_from_safetensors(bytes: &[u8], d_in: usize) -> Result<Vec<f32>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| format!("not a safetensors file: {error}"))?;
    let hidden = file.tensor("hidden").map_err(|_| {
        let mut names = file.names();
        names.sort_unstable();
        format!("there is no tensor `hidden`; the file has: {}", names.join(", "))
    })?;
    let shape = hidden.shape();
    if shape.len() != 2 || shape[0] == 0 || shape[1] != d_in {
        return Err(format!("`hidden` has shape {shape:?}, but the SAE reads [tokens, {d_in}]"));
    }
    let values = f32_from_view(&hidden)
        .ok_or_else(|| format!("`hidden` has dtype {}; f32, f16 and bf16 are read", hidden.dtype()))?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(place) => Err(format!("`hidden` is not finite: token {} holds {}", place / d_in, values[place])),
        None => Ok(values),
    }
}

/// Values of a float tensor; `None` for other dtypes.
fn f32_from_view(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::F16 => Some(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        Dtype::BF16 => Some(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        _ => None,
    }
}
