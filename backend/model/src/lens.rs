//! Lenses: what a position says in the words of the vocabulary.

use crate::Error;
use crate::generate::likeliest;
use crate::lmm::{Lmm, Prepared};
use crate::weights::f32_from_tensor;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Tensor, backend::Backend};

/// The `n` nearest words of each position.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lens {
    pub n: usize,
    /// `[positions, n]`: tokens of the vocabulary, nearest first.
    pub ids: Vec<u32>,
    /// `[positions, n]`
    pub scores: Vec<f32>,
}

/// Positions looked at together: bounds the `[positions, vocabulary]` scores.
const POSITIONS_AT_ONCE: usize = 64;

/// The nearest vocabulary embeddings of each projected picture position, by cosine: a picture read as words
/// (LangBridge 2025). Positions are those of the picture in order: base patches, tile patches, newlines.
///
/// # Errors
/// A prompt without a picture; `n` above the vocabulary.
pub fn embedding_lens<B: Backend>(lmm: &Lmm<B>, prepared: &Prepared, n: usize) -> Result<Lens, Error> {
    let spans = prepared.spans.iter().filter(|span| span.kind != crate::SpanKind::Text);
    let (start, end) =
        spans.fold((usize::MAX, 0), |(start, end), span| (start.min(span.range.start), end.max(span.range.end)));
    if start >= end {
        return Err(Error::BadInput("the embedding lens reads picture positions: give a picture".into()));
    }
    let picture = lmm.embed(prepared).narrow(1, start, end - start).squeeze_dim::<2>(0).cast(DType::F32);
    let words = unit_rows(lmm.net.language.embedding().cast(DType::F32)).transpose();
    nearest(lmm, unit_rows(picture), n, |rows| rows.matmul(words.clone()))
}

/// The logit lens: final norm and unembedding right at the hook point, as probabilities.
///
/// hidden: `[tokens, d_model]` of a block of the language model.
///
/// # Errors
/// `n` above the vocabulary.
pub fn logit_lens<B: Backend>(lmm: &Lmm<B>, hidden: Tensor<B, 2>, n: usize) -> Result<Lens, Error> {
    let dtype = DType::from(lmm.dtype);
    nearest(lmm, hidden, n, |rows| {
        let logits = lmm.net.language.logits(rows.cast(dtype).unsqueeze()).squeeze_dim::<2>(0);
        softmax(logits.cast(DType::F32), 1)
    })
}

fn nearest<B: Backend>(
    lmm: &Lmm<B>,
    rows: Tensor<B, 2>,
    n: usize,
    scores: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
) -> Result<Lens, Error> {
    let vocabulary = lmm.config.text_config.vocab_size;
    if n > vocabulary {
        return Err(Error::BadInput(format!("the lens asks for {n} words, but the vocabulary has {vocabulary}")));
    }
    let mut lens = Lens { n, ..Lens::default() };
    let positions = rows.dims()[0];
    for first in (0..positions).step_by(POSITIONS_AT_ONCE) {
        let part = rows.clone().narrow(0, first, POSITIONS_AT_ONCE.min(positions - first));
        for row in f32_from_tensor(scores(part)).chunks_exact(vocabulary) {
            let words = likeliest(row, n);
            lens.ids.extend(words.iter().map(|(id, _)| id));
            lens.scores.extend(words.iter().map(|(_, score)| score));
        }
    }
    Ok(lens)
}

/// Rows of length one.
fn unit_rows<B: Backend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    let norm = rows.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    rows / norm
}
