//! Interventions at the hook point: the SAE's reconstruction in the stream, with chosen latents changed
//! (paper, section 3.4).

use crate::Error;
use crate::hook::Hook;
use crate::lmm::SpanKind;
use crate::sae::{Sae, TopK};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

/// What happens to a latent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EditOp {
    /// The latent is set to the value, TopK is run again. Zero or less is [`EditOp::Ablate`]: TopK keeps only what is
    /// positive, and would let another latent take the place.
    Clamp(f32),
    /// This many times the decoder row is added to the stream.
    Add(f32),
    /// The stream's component along the decoder row (as a unit vector) becomes the value; the rest stays.
    Orthogonal(f32),
    /// The latent goes to zero; no other latent takes its place.
    Ablate,
}

impl EditOp {
    /// True if the latent goes to zero.
    fn removes(self) -> bool {
        match self {
            Self::Ablate => true,
            Self::Clamp(value) => value <= 0.0,
            Self::Add(_) | Self::Orthogonal(_) => false,
        }
    }

    /// The value a latent is set to before TopK.
    fn clamps_to(self) -> Option<f32> {
        match self {
            Self::Clamp(value) if value > 0.0 => Some(value),
            _ => None,
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Positions {
    #[default]
    All,
    Prefill,
    Image,
    /// The prompt's text.
    Text,
    Generated,
    /// These positions of the sequence, counted from 0.
    Tokens(Vec<usize>),
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Prefill => f.write_str("prefill"),
            Self::Image => f.write_str("image"),
            Self::Text => f.write_str("text"),
            Self::Generated => f.write_str("generated"),
            Self::Tokens(tokens) => {
                let tokens: Vec<String> = tokens.iter().map(usize::to_string).collect();
                f.write_str(&tokens.join(","))
            }
        }
    }
}

impl FromStr for Positions {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "all" => Ok(Self::All),
            "prefill" => Ok(Self::Prefill),
            "image" => Ok(Self::Image),
            "text" => Ok(Self::Text),
            "generated" => Ok(Self::Generated),
            list => {
                let tokens: Result<Vec<usize>, _> = list.split(',').map(|token| token.trim().parse()).collect();
                tokens.map(Self::Tokens).map_err(|_| {
                    format!("`{list}` is not all, prefill, image, text, generated or a list of positions such as 3,5,7")
                })
            }
        }
    }
}

/// Reconstruction with edits at a hook point. No edits: reconstruction only.
#[derive(Debug, Clone)]
pub struct Intervention<B: Backend> {
    pub hook: Hook,
    pub sae: Arc<Sae<B>>,
    pub edits: Vec<Edit>,
    pub positions: Positions,
    /// Adds what the SAE does not reconstruct back to the stream: without edits, nothing changes.
    pub keep_error: bool,
}

/// Hidden states `[tokens, d]` and their latents, with some to spare: with every clamped latent taken out, the k
/// strongest are among the k + clamps strongest.
#[derive(Debug, Clone)]
pub(crate) struct Encoded<B: Backend> {
    x: Tensor<B, 2>,
    wide: TopK,
}

impl<B: Backend> Encoded<B> {
    pub(crate) fn new(sae: &Sae<B>, x: Tensor<B, 2>, clamps: usize) -> Self {
        let wide = sae.encode_top(x.clone(), clamps);
        Self { x, wide }
    }

    /// Some of the tokens.
    pub(crate) fn narrow(&self, tokens: Range<usize>) -> Self {
        Self { x: self.x.clone().narrow(0, tokens.start, tokens.len()), wide: self.wide.narrow(tokens) }
    }
}

/// A position during generation: part of the prompt, or generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionKind {
    Prompt(SpanKind),
    Generated,
}

impl Positions {
    /// Fails if there can be no such positions at `hook`: in the vision tower there is only the picture.
    ///
    /// # Errors
    /// [`Error::BadInput`] for the text's or generated positions in the tower.
    pub fn check_at(&self, hook: Hook) -> Result<(), Error> {
        match (self, hook) {
            (Self::Text | Self::Generated, Hook::Vision(_)) => Err(Error::BadInput(format!(
                "there are no {self} positions at {hook}: the tower sees the picture alone; take all, or a list such as \
                 3,5,7"
            ))),
            _ => Ok(()),
        }
    }

    /// True if position `index` of the sequence, of this kind, is changed.
    pub fn selects(&self, index: usize, kind: PositionKind) -> bool {
        match (self, kind) {
            (Self::All, _) => true,
            (Self::Tokens(tokens), _) => tokens.contains(&index),
            (Self::Generated, kind) => kind == PositionKind::Generated,
            (_, PositionKind::Generated) => false,
            (Self::Prefill, _) => true,
            (Self::Text, PositionKind::Prompt(span)) => span == SpanKind::Text,
            (Self::Image, PositionKind::Prompt(span)) => span != SpanKind::Text,
        }
    }
}

impl<B: Backend> Intervention<B> {
    /// The same intervention without its edits: the second of the three texts.
    pub fn reconstruction(&self) -> Self {
        Self { edits: Vec::new(), ..self.clone() }
    }

    /// Checks that every edited feature exists, is named once, and has a finite value.
    pub fn check(&self) -> Result<(), Error> {
        let latents = self.sae.latents();
        for (i, edit) in self.edits.iter().enumerate() {
            if edit.feature >= latents {
                return Err(Error::UnknownFeature { index: edit.feature, latents });
            }
            if let EditOp::Clamp(value) | EditOp::Add(value) | EditOp::Orthogonal(value) = edit.op
                && !value.is_finite()
            {
                return Err(Error::BadInput(format!("the value {value} of feature {} is not finite", edit.feature)));
            }
            if self.edits[..i].iter().any(|earlier| earlier.feature == edit.feature) {
                return Err(Error::BadInput(format!("feature {} is changed twice", edit.feature)));
            }
        }
        Ok(())
    }

    /// Replaces `[tokens, d]` hidden states, in f32. `kinds[t]` says what position `first + t` of the sequence is.
    pub fn apply(&self, x: Tensor<B, 2>, first: usize, kinds: &[PositionKind]) -> Tensor<B, 2> {
        self.apply_selected(x, &self.selected(first, kinds))
    }

    /// Which of these positions are changed; `kinds[t]` says what position `first + t` is.
    pub(crate) fn selected(&self, first: usize, kinds: &[PositionKind]) -> Vec<bool> {
        kinds.iter().enumerate().map(|(t, &kind)| self.positions.selects(first + t, kind)).collect()
    }

    /// [`Self::apply`] with the changed positions spelled out.
    pub fn apply_selected(&self, x: Tensor<B, 2>, selected: &[bool]) -> Tensor<B, 2> {
        if self.leaves_alone(selected) {
            return x;
        }
        self.apply_encoded(&Encoded::new(&self.sae, x, self.clamps()), selected)
    }

    /// True if the stream stays as it is, so that nothing needs to be encoded.
    fn leaves_alone(&self, selected: &[bool]) -> bool {
        self.keep_error && (self.edits.is_empty() || !selected.contains(&true))
    }

    /// Latents that edits may push out of the k strongest.
    pub(crate) fn clamps(&self) -> usize {
        self.edits.iter().filter(|edit| edit.op.clamps_to().is_some()).count()
    }

    /// [`Self::apply_selected`] on hidden states that were encoded before, with at least [`Self::clamps`] latents to
    /// spare.
    pub(crate) fn apply_encoded(&self, encoded: &Encoded<B>, selected: &[bool]) -> Tensor<B, 2> {
        if self.leaves_alone(selected) {
            return encoded.x.clone();
        }
        let mut stream = self.sae.decode(&self.edited(&encoded.wide, selected));
        if self.keep_error {
            let plain = self.sae.decode(&self.edited(&encoded.wide, &vec![false; selected.len()]));
            stream = stream + (encoded.x.clone() - plain);
        }
        self.moved(stream, selected)
    }

    /// TopK with clamps before it and removals after it; `wide` is the encoding with as many more latents per token as
    /// there are clamps.
    fn edited(&self, wide: &TopK, selected: &[bool]) -> TopK {
        let k = self.sae.kept(wide);
        let mut z = TopK { tokens: wide.tokens, k, ..wide.clone() };
        z.indices = vec![0; z.tokens * k];
        z.acts = vec![0.0; z.tokens * k];
        for (token, &on) in selected.iter().enumerate() {
            let mut row: Vec<(u32, f32)> = wide.row(token).filter(|(_, act)| *act > 0.0).collect();
            let edits = if on { self.edits.as_slice() } else { &[] };
            for edit in edits {
                if let Some(value) = edit.op.clamps_to() {
                    row.retain(|&(index, _)| index as usize != edit.feature);
                    row.push((edit.feature as u32, value));
                }
            }
            row.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            row.truncate(k);
            row.retain(|&(index, _)| !edits.iter().any(|edit| edit.op.removes() && edit.feature == index as usize));
            for (slot, (index, act)) in row.into_iter().enumerate() {
                z.indices[token * k + slot] = index;
                z.acts[token * k + slot] = act;
            }
        }
        z
    }

    /// Moves the selected positions of `[tokens, d]` along the decoder rows of `Add` and `Orthogonal`.
    fn moved(&self, stream: Tensor<B, 2>, selected: &[bool]) -> Tensor<B, 2> {
        let device = stream.device();
        let mask: Vec<f32> = selected.iter().map(|&on| f32::from(u8::from(on))).collect();
        let mask = Tensor::<B, 2>::from_data(TensorData::new(mask, [selected.len(), 1]), &device);
        let row = |edit: &Edit| self.sae.w_dec.clone().narrow(0, edit.feature, 1);
        self.edits.iter().fold(stream, |stream, edit| match edit.op {
            EditOp::Add(strength) => stream + mask.clone().matmul(row(edit) * strength),
            EditOp::Orthogonal(value) => {
                let row = row(edit);
                let norm = row.clone().powf_scalar(2.0).sum_dim(1).sqrt().clamp_min(1e-12);
                let unit = row / norm;
                let along = stream.clone().matmul(unit.clone().transpose());
                stream + ((along.neg() + value) * mask.clone()).matmul(unit)
            }
            EditOp::Clamp(_) | EditOp::Ablate => stream,
        })
    }
}
