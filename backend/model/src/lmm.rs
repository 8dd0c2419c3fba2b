//! A large multimodal model ready for use: weights, tokenizer, chat template, image processor.

use crate::Error;
use crate::chat::ChatTemplate;
use crate::config::LlavaNextConfig;
use crate::image_processor::{ImageProcessor, PixelValues};
use crate::llava::LlavaNext;
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use std::ops::Range;
use std::path::Path;
use tokenizers::Tokenizer;

/// A loaded checkpoint folder.
#[derive(Debug)]
pub struct Lmm<B: Backend> {
    pub config: LlavaNextConfig,
    pub tokenizer: Tokenizer,
    pub chat: ChatTemplate,
    pub processor: ImageProcessor,
    pub net: LlavaNext<B>,
    pub device: B::Device,
}

/// What a person gives: words, and perhaps a picture.
#[derive(Debug, Clone, Default)]
pub struct PromptInput {
    pub text: String,
    /// Through the chat template; otherwise `text` is tokenised as it stands (`<image>` included).
    pub chat: bool,
    pub image: Option<image::DynamicImage>,
}

/// What a position of the sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// A patch of the base picture.
    Base,
    /// A patch of an AnyRes tile.
    Tile,
    /// `image_newline`.
    Newline,
    Text,
}

/// A run of positions of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub kind: SpanKind,
    pub range: Range<usize>,
}

/// A prompt in the model's own terms.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The image token repeated once per picture position.
    pub input_ids: Vec<u32>,
    /// Kinds of all positions, in order, without gaps.
    pub spans: Vec<Span>,
    /// Rows and columns of the base picture's patches, if there is a picture.
    pub grid: Option<[usize; 2]>,
    pub pixels: Option<PixelValues>,
    /// The text that was tokenised (its hash is part of a number's provenance).
    pub rendered: String,
}

impl Prepared {
    /// Kind of every position.
    pub fn kinds(&self) -> Vec<SpanKind> {
        self.spans.iter().flat_map(|span| span.range.clone().map(move |_| span.kind)).collect()
    }
}

impl<B: Backend> Lmm<B> {
    /// Loads a Hugging Face checkpoint folder.
    pub fn load(dir: &Path, device: &B::Device) -> Result<Self, Error> {
        let config = LlavaNextConfig::load(dir)?;
        let net = LlavaNext::load(&config, dir, device)?;
        Self::with_net(dir, config, net, device)
    }

    /// The tokenizer, template and processor of `dir` around a net that already exists.
    pub fn with_net(dir: &Path, config: LlavaNextConfig, net: LlavaNext<B>, device: &B::Device) -> Result<Self, Error> {
        let path = dir.join("tokenizer.json");
        if !path.exists() {
            return Err(Error::io(&path, std::io::ErrorKind::NotFound.into()));
        }
        Ok(Self {
            tokenizer: Tokenizer::from_file(&path).map_err(|error| Error::bad_file(&path, error))?,
            chat: ChatTemplate::load(dir)?,
            processor: ImageProcessor::load(dir)?,
            config,
            net,
            device: device.clone(),
        })
    }

    /// Renders, tokenises and expands a prompt.
    ///
    /// # Errors
    /// A picture without exactly one `<image>` in a raw prompt, or `<image>` without a picture; a prompt that is
    /// longer than the model's positions.
    pub fn prepare(&self, input: &PromptInput) -> Result<Prepared, Error> {
        let rendered =
            if input.chat { self.chat.render(&input.text, input.image.is_some())? } else { input.text.clone() };
        let bos = self.chat.bos_token();
        let add_special_tokens = bos.is_empty() || !rendered.starts_with(bos);
        let encoding = self
            .tokenizer
            .encode(rendered.as_str(), add_special_tokens)
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        let image_token = self.config.image_token_index;
        let found = encoding.get_ids().iter().filter(|&&id| id == image_token).count();
        if found != usize::from(input.image.is_some()) {
            let given = if input.image.is_some() { "one picture" } else { "no picture" };
            return Err(Error::BadInput(format!(
                "the prompt names {found} pictures (`<image>`), but {given} was given"
            )));
        }
        let pixels = input.image.as_ref().map(|picture| self.processor.process(&self.config, picture));
        let (input_ids, spans) = self.expand(encoding.get_ids(), pixels.as_ref());
        let limit = self.config.text_config.max_position_embeddings;
        if input_ids.len() > limit {
            return Err(Error::PromptTooLong { tokens: input_ids.len(), limit });
        }
        let side = self.config.vision_config.grid();
        Ok(Prepared { input_ids, spans, grid: pixels.is_some().then_some([side, side]), pixels, rendered })
    }

    /// Repeats the image token once per picture position and names every position's kind.
    fn expand(&self, ids: &[u32], pixels: Option<&PixelValues>) -> (Vec<u32>, Vec<Span>) {
        let mut input_ids = Vec::new();
        let mut spans: Vec<Span> = Vec::new();
        let mut push = |kind: SpanKind, id: u32, count: usize| {
            let start = input_ids.len();
            input_ids.extend(std::iter::repeat_n(id, count));
            match spans.last_mut() {
                Some(last) if last.kind == kind => last.range.end += count,
                _ => spans.push(Span { kind, range: start..start + count }),
            }
        };
        let patches = self.config.vision_config.grid().pow(2);
        for &id in ids {
            match pixels {
                Some(pixels) if id == self.config.image_token_index => {
                    push(SpanKind::Base, id, patches);
                    match &pixels.layout {
                        None => push(SpanKind::Newline, id, 1),
                        Some(tiles) => {
                            for _ in tiles.kept_rows.clone() {
                                push(SpanKind::Tile, id, tiles.kept_columns.len());
                                push(SpanKind::Newline, id, 1);
                            }
                        }
                    }
                }
                _ => push(SpanKind::Text, id, 1),
            }
        }
        (input_ids, spans)
    }

    /// Input embeddings of a prepared prompt: `[1, tokens, d_model]`.
    pub fn embed(&self, prepared: &Prepared) -> Tensor<B, 3> {
        let picture = prepared.pixels.as_ref().map(|pixels| {
            let shape = [pixels.tiles, 3, pixels.side, pixels.side];
            let tensor = Tensor::from_data(TensorData::new(pixels.values.clone(), shape), &self.device);
            self.net.image_tokens(tensor, pixels.layout.as_ref())
        });
        let mut parts: Vec<Tensor<B, 3>> = Vec::new();
        let mut picture_position = 0;
        for span in &prepared.spans {
            match (&picture, span.kind) {
                (Some(picture), SpanKind::Base | SpanKind::Tile | SpanKind::Newline) => {
                    parts.push(picture.clone().narrow(0, picture_position, span.range.len()).unsqueeze());
                    picture_position += span.range.len();
                }
                _ => parts.push(self.net.language.embed(self.ids(&prepared.input_ids[span.range.clone()]))),
            }
        }
        Tensor::cat(parts, 1)
    }

    /// `[1, n]` ids on the device.
    pub fn ids(&self, ids: &[u32]) -> Tensor<B, 2, Int> {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let count = ids.len();
        Tensor::from_data(TensorData::new(ids, [1, count]), &self.device)
    }

    /// Output of block `layer` (0-based), before the final norm: `[tokens, d_model]`. Later blocks are not run.
    pub fn hidden_at(&self, prepared: &Prepared, layer: usize) -> Result<Tensor<B, 2>, Error> {
        let blocks = self.net.language.depth();
        if layer >= blocks {
            return Err(Error::UnknownLayer { layer, blocks });
        }
        Ok(self.net.language.blocks_forward(self.embed(prepared), 0..layer + 1).squeeze_dim(0))
    }

    /// The string of one token, as people read it.
    pub fn token_text(&self, id: u32) -> String {
        self.tokenizer.decode(&[id], false).unwrap_or_default()
    }
}
