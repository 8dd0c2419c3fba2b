//! A picture through the model up to the hook point, and through the SAE: what is kept of it.

use super::{PictureTokens, TokenKind};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use image::DynamicImage;
use model::{Error, Hook, Lmm, Prepared, PromptInput, Sae, SaeFile, SpanKind, TopK, weights::f32_from_tensor};

/// An SAE where it encodes.
#[derive(Debug)]
pub enum SaeWeights<B: Backend> {
    /// On the CPU, from its file.
    Mapped(Box<SaeFile>),
    /// On the model's device.
    Loaded(Box<Sae<B>>),
}

impl<B: Backend> SaeWeights<B> {
    /// The strongest latents of each row of `[tokens, d_model]`.
    fn encode(&self, hidden: Tensor<B, 2>) -> Result<TopK, Error> {
        match self {
            Self::Mapped(sae) => sae.encode(&f32_from_tensor(hidden)),
            Self::Loaded(sae) => Ok(sae.encode(hidden)),
        }
    }
}

/// Model, SAE, and what every picture is asked.
#[derive(Debug)]
pub struct Extractor<B: Backend> {
    lmm: Lmm<B>,
    /// Without one, only hidden states are kept.
    sae: Option<SaeWeights<B>>,
    hook: Hook,
    prompt: String,
    /// Whether the prompt goes through the chat template.
    chat: bool,
    tokens: Vec<TokenKind>,
    /// The token that begins every text.
    bos: Option<u32>,
}

/// What is kept of a picture.
pub(crate) struct Encoded {
    /// `image` is not filled in.
    pub tokens: PictureTokens,
    /// Kept positions, rising.
    pub positions: Vec<u32>,
    /// Of the kept positions; none without an SAE.
    pub top: Option<TopK>,
    /// `[positions, d_model]`, if it is asked for.
    pub hidden: Option<Vec<f32>>,
}

impl<B: Backend> Extractor<B> {
    /// The first token of every text is left out if it is the checkpoint's BOS: its hidden state says nothing about the
    /// picture, and its norm dwarfs all others.
    pub fn new(
        lmm: Lmm<B>,
        sae: Option<SaeWeights<B>>,
        hook: Hook,
        prompt: String,
        chat: bool,
        tokens: &[TokenKind],
    ) -> Self {
        let bos = lmm.tokenizer.token_to_id(lmm.chat.bos_token());
        Self { lmm, sae, hook, prompt, chat, tokens: tokens.to_vec(), bos }
    }

    /// # Errors
    /// What is wrong with the prompt, the model or the SAE.
    pub(super) fn run(&self, picture: DynamicImage, keep_hidden: bool) -> Result<Encoded, Error> {
        let input = PromptInput { text: self.prompt.clone(), chat: self.chat, image: Some(picture) };
        let prepared = self.lmm.prepare(&input)?;
        let hidden = self.lmm.hidden_at(&prepared, self.hook)?;
        let [rows, _] = hidden.dims();
        let (mut tokens, positions) = match self.hook {
            Hook::Block(_) => self.in_text(&prepared),
            Hook::Vision(_) => self.in_tower(rows),
        };
        if positions.is_empty() {
            let reason = "the prompt has no tokens of the kinds that are kept; keep the image's, or write some text";
            return Err(Error::BadInput(reason.into()));
        }
        tokens.kept = positions.len() as u32;
        let indices: Vec<i64> = positions.iter().map(|&position| i64::from(position)).collect();
        let indices = TensorData::new(indices, [positions.len()]);
        let hidden = hidden.select(0, Tensor::<B, 1, Int>::from_data(indices, &self.lmm.device));
        let top = self.sae.as_ref().map(|sae| sae.encode(hidden.clone())).transpose()?;
        if let Some(top) = &top {
            Error::check_finite("the activations", &top.acts)?;
        }
        let hidden = keep_hidden.then(|| f32_from_tensor(hidden));
        Ok(Encoded { tokens, positions, top, hidden })
    }

    /// Positions of the language model's sequence.
    fn in_text(&self, prepared: &Prepared) -> (PictureTokens, Vec<u32>) {
        let range = |of: &dyn Fn(SpanKind) -> bool| {
            let mut spans = prepared.spans.iter().filter(|span| of(span.kind)).map(|span| &span.range);
            let first = spans.next().cloned().unwrap_or_default();
            let end = spans.next_back().map_or(first.end, |last| last.end);
            [first.start as u32, end as u32]
        };
        let kept = |position: usize, kind: SpanKind| match kind {
            SpanKind::Base | SpanKind::Tile | SpanKind::Newline => self.tokens.contains(&TokenKind::Image),
            SpanKind::Text => {
                let begins = position == 0 && Some(prepared.input_ids[0]) == self.bos;
                self.tokens.contains(&TokenKind::Text) && !begins
            }
        };
        let kinds = prepared.kinds();
        let positions = kinds.iter().enumerate().filter(|(at, kind)| kept(*at, **kind)).map(|(at, _)| at as u32);
        let tokens = PictureTokens {
            tokens: kinds.len() as u32,
            picture: range(&|kind| kind != SpanKind::Text),
            base: range(&|kind| kind == SpanKind::Base),
            grid: prepared.grid.unwrap_or_default().map(|side| side as u32),
            ..PictureTokens::default()
        };
        (tokens, positions.collect())
    }

    /// Positions of the vision tower, tile after tile; all of them are the picture's.
    fn in_tower(&self, rows: usize) -> (PictureTokens, Vec<u32>) {
        let side = self.lmm.config.vision_config.grid();
        let class = usize::from(self.lmm.net.vision.has_class_token());
        let tokens = PictureTokens {
            tokens: rows as u32,
            picture: [0, rows as u32],
            base: [class as u32, (class + side * side) as u32],
            grid: [side as u32; 2],
            ..PictureTokens::default()
        };
        let kept = self.tokens.contains(&TokenKind::Image);
        (tokens, if kept { (0..rows as u32).collect() } else { Vec::new() })
    }
}
