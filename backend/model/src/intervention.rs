//! Interventions at the hook point: the SAE's reconstruction in the stream, with chosen latents changed
//! (paper, section 3.4).

use crate::Error;
use crate::lmm::SpanKind;
use crate::sae::{Sae, TopK, top_k_of_row};
use crate::weights::f32_from_tensor;
use burn::tensor::{Tensor, TensorData, backend::Backend};
use std::sync::Arc;

/// What happens to a latent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EditOp {
    /// The latent is set to the value, TopK is run again. Zero or less is [`EditOp::Ablate`]: TopK keeps only what is
    /// positive, and would let another latent take the place.
    Clamp(f32),
    /// This many times the decoder row is added to the reconstruction.
    Add(f32),
    /// The latent goes to zero; no other latent takes its place.
    Ablate,
}

impl EditOp {
    /// True if the latent goes to zero.
    fn removes(self) -> bool {
        match self {
            Self::Ablate => true,
            Self::Clamp(value) => value <= 0.0,
            Self::Add(_) => false,
        }
    }
}

/// One changed latent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edit {
    pub feature: usize,
    pub op: EditOp,
}

/// Where the edits apply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Positions {
    #[default]
    All,
    Prefill,
    Image,
    /// The prompt's text.
    Text,
    Generated,
}

/// Reconstruction with edits at one block's output. No edits: reconstruction only.
#[derive(Debug, Clone)]
pub struct Intervention<B: Backend> {
    pub layer: usize,
    pub sae: Arc<Sae<B>>,
    pub edits: Vec<Edit>,
    pub positions: Positions,
}

/// A position during generation: part of the prompt, or generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionKind {
    Prompt(SpanKind),
    Generated,
}

impl Positions {
    /// True if a position of this kind is changed.
    pub fn selects(self, kind: PositionKind) -> bool {
        match (self, kind) {
            (Self::All, _) => true,
            (Self::Generated, kind) => kind == PositionKind::Generated,
            (_, PositionKind::Generated) => false,
            (Self::Prefill, _) => true,
            (Self::Text, PositionKind::Prompt(span)) => span == SpanKind::Text,
            (Self::Image, PositionKind::Prompt(span)) => span != SpanKind::Text,
        }
    }
}

impl<B: Backend> Intervention<B> {
    /// Checks that every edited feature exists.
    pub fn check(&self) -> Result<(), Error> {
        let latents = self.sae.latents();
        match self.edits.iter().find(|edit| edit.feature >= latents) {
            Some(edit) => Err(Error::UnknownFeature { index: edit.feature, latents }),
            None => Ok(()),
        }
    }

    /// Replaces `[tokens, d_model]` hidden states; `kinds[t]` says what position `t` is.
    pub fn apply(&self, x: Tensor<B, 2>, kinds: &[PositionKind]) -> Tensor<B, 2> {
        let selected: Vec<bool> = kinds.iter().map(|&kind| self.positions.selects(kind)).collect();
        let activations = f32_from_tensor(self.sae.activations(x));
        let z = self.edited(activations, &selected);
        let reconstruction = self.sae.decode(&z);
        match self.added(&selected) {
            Some(offset) => reconstruction + offset,
            None => reconstruction,
        }
    }

    /// TopK of the activations with clamps before it and removals after it.
    fn edited(&self, mut activations: Vec<f32>, selected: &[bool]) -> TopK {
        let (latents, k) = (self.sae.latents(), self.sae.config.k);
        let tokens = selected.len();
        let mut z = TopK { tokens, k, indices: vec![0; tokens * k], acts: vec![0.0; tokens * k] };
        for (token, row) in activations.chunks_exact_mut(latents).enumerate() {
            if selected[token] {
                self.edits.iter().for_each(|edit| {
                    if let EditOp::Clamp(value) = edit.op
                        && !edit.op.removes()
                    {
                        row[edit.feature] = value;
                    }
                });
            }
            let removed = |index: u32| {
                selected[token] && self.edits.iter().any(|edit| edit.op.removes() && edit.feature == index as usize)
            };
            let kept = top_k_of_row(row, k).into_iter().filter(|&(index, _)| !removed(index));
            for (slot, (index, act)) in kept.enumerate() {
                z.indices[token * k + slot] = index;
                z.acts[token * k + slot] = act;
            }
        }
        z
    }

    /// Sum of the added decoder rows at the selected positions: `[tokens, d_model]`, or `None` without `Add` edits.
    fn added(&self, selected: &[bool]) -> Option<Tensor<B, 2>> {
        let device = self.sae.b_dec.device();
        let rows = self.edits.iter().filter_map(|edit| match edit.op {
            EditOp::Add(strength) => Some(self.sae.w_dec.clone().narrow(0, edit.feature, 1) * strength),
            _ => None,
        });
        let offset = rows.reduce(|a, b| a + b)?;
        let mask: Vec<f32> = selected.iter().map(|&on| f32::from(u8::from(on))).collect();
        let mask = Tensor::<B, 2>::from_data(TensorData::new(mask, [selected.len(), 1]), &device);
        Some(mask.matmul(offset))
    }
}
