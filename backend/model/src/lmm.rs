//! A large multimodal model ready for use: weights, tokenizer, chat template, image processor.

use crate::Error;
use crate::chat::ChatTemplate;
use crate::config::LlavaNextConfig;
use crate::decoding::cleans_up_spaces;
use crate::dtype::Dtype;
use crate::hook::Hook;
use crate::image_processor::{ImageProcessor, PixelValues};
use crate::intervention::Positions;
use crate::llava::LlavaNext;
use crate::weights::f32_from_tensor;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokenizers::{Encoding, Tokenizer};

/// A loaded checkpoint folder.
#[derive(Debug)]
pub struct Lmm<B: Backend> {
    pub config: LlavaNextConfig,
    pub tokenizer: Tokenizer,
    pub chat: ChatTemplate,
    pub processor: ImageProcessor,
    pub net: LlavaNext<B>,
    pub device: B::Device,
    /// What the weights are computed in.
    pub dtype: Dtype,
    /// `clean_up_tokenization_spaces` of the tokenizer's settings.
    pub(crate) clean_up_spaces: bool,
    tokenizer_file: PathBuf,
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
    /// Loads a Hugging Face checkpoint folder, to be computed in f32.
    pub fn load(dir: &Path, device: &B::Device) -> Result<Self, Error> {
        Self::load_as(dir, device, Dtype::F32)
    }

    /// Loads a Hugging Face checkpoint folder, to be computed in `dtype`, whatever the file has.
    pub fn load_as(dir: &Path, device: &B::Device, dtype: Dtype) -> Result<Self, Error> {
        let config = LlavaNextConfig::load(dir)?;
        let net = LlavaNext::load(&config, dir, device, dtype)?;
        Ok(Self { dtype, ..Self::with_net(dir, config, net, device)? })
    }

    /// The tokenizer, template and processor of `dir` around a net that already exists.
    pub fn with_net(dir: &Path, config: LlavaNextConfig, net: LlavaNext<B>, device: &B::Device) -> Result<Self, Error> {
        let path = dir.join("tokenizer.json");
        if !path.exists() {
            return Err(Error::io(&path, std::io::ErrorKind::NotFound.into()));
        }
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| Error::bad_file(&path, error))?;
        // Settings of whoever saved the file last; a prompt is neither cut nor filled up.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| Error::Tokenizer(error.to_string()))?;
        Ok(Self {
            tokenizer,
            chat: ChatTemplate::load(dir)?,
            processor: ImageProcessor::load(dir, &config)?,
            clean_up_spaces: cleans_up_spaces(dir)?,
            tokenizer_file: path,
            config,
            net,
            device: device.clone(),
            dtype: Dtype::F32,
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
        // Many templates write BOS themselves; a raw prompt is tokenised as it stands.
        let add_special_tokens = !input.chat || bos.is_empty() || !rendered.starts_with(bos);
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
        self.check_ids(&encoding)?;
        let pixels = input.image.as_ref().map(|picture| self.processor.process(&self.config, picture));
        let (input_ids, spans) = self.expand(encoding.get_ids(), pixels.as_ref());
        let limit = self.config.text_config.max_position_embeddings;
        if input_ids.len() > limit {
            return Err(Error::PromptTooLong { tokens: input_ids.len(), limit });
        }
        let side = self.config.vision_config.grid();
        Ok(Prepared { input_ids, spans, grid: pixels.is_some().then_some([side, side]), pixels, rendered })
    }

    /// Fails if the tokenizer belongs to another checkpoint: such tokens have no embedding.
    fn check_ids(&self, encoding: &Encoding) -> Result<(), Error> {
        let (vocabulary, image) = (self.config.text_config.vocab_size, self.config.image_token_index);
        let mut tokens = encoding.get_ids().iter().zip(encoding.get_tokens());
        match tokens.find(|&(&id, _)| id != image && id as usize >= vocabulary) {
            Some((id, token)) => {
                let reason = format!("token {token:?} has id {id}, but vocab_size in config.json is {vocabulary}");
                Err(Error::bad_file(&self.tokenizer_file, reason))
            }
            None => Ok(()),
        }
    }

    /// Repeats the image token once per picture position and names every position's kind.
    fn expand(&self, ids: &[u32], pixels: Option<&PixelValues>) -> (Vec<u32>, Vec<Span>) {
        let mut input_ids = Vec::new();
        let mut spans: Vec<Span> = Vec::new();
        let mut push = |kind: SpanKind, id: u32, count: usize| {
            if count == 0 {
                return;
            }
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
        let tiles = |pixels: &PixelValues| self.net.image_tokens(self.pixel_tensor(pixels), pixels.layout.as_ref());
        self.embed_around(prepared, prepared.pixels.as_ref().map(tiles))
    }

    /// Input embeddings that go on from the tower's output of block `block`: `[tiles, positions, d_vision]`.
    pub fn embed_from_vision(&self, prepared: &Prepared, hidden: Tensor<B, 3>, block: usize) -> Tensor<B, 3> {
        let layout = prepared.pixels.as_ref().and_then(|pixels| pixels.layout.as_ref());
        let picture = self.net.image_tokens_from(hidden.cast(DType::from(self.dtype)), block, layout);
        self.embed_around(prepared, Some(picture))
    }

    /// The text's embeddings with `picture` `[picture positions, d_model]` in its place.
    fn embed_around(&self, prepared: &Prepared, picture: Option<Tensor<B, 2>>) -> Tensor<B, 3> {
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

    /// `[tiles, 3, side, side]` in the model's format.
    fn pixel_tensor(&self, pixels: &PixelValues) -> Tensor<B, 4> {
        let data = TensorData::new(pixels.values.clone(), [pixels.tiles, 3, pixels.side, pixels.side]);
        Tensor::<B, 4>::from_data(data, (&self.device, DType::F32)).cast(DType::from(self.dtype))
    }

    /// `[1, n]` ids on the device.
    pub fn ids(&self, ids: &[u32]) -> Tensor<B, 2, Int> {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let count = ids.len();
        Tensor::from_data(TensorData::new(ids, [1, count]), &self.device)
    }

    /// What the module at `hook` puts out, in f32; later blocks are not run.
    ///
    /// `[tokens, d_model]` for a block of the language model; `[tiles · positions, d_vision]` for one of the vision
    /// tower, whose position 0 of each tile is the class token if it has one.
    ///
    /// # Errors
    /// A hook point that does not exist, or one in the tower without a picture; numbers that are not finite.
    pub fn hidden_at(&self, prepared: &Prepared, hook: impl Into<Hook>) -> Result<Tensor<B, 2>, Error> {
        self.hidden_unless(prepared, hook, &|| false)
    }

    /// [`Self::hidden_at`], given up between two blocks of the language model when `gone` says that nobody waits.
    ///
    /// # Errors
    /// Those of [`Self::hidden_at`]; [`Error::Cancelled`].
    pub fn hidden_unless(
        &self,
        prepared: &Prepared,
        hook: impl Into<Hook>,
        gone: &dyn Fn() -> bool,
    ) -> Result<Tensor<B, 2>, Error> {
        let hook = hook.into();
        self.check_hook(hook)?;
        let hidden = match hook {
            Hook::Block(block) => {
                let embedded = self.embed(prepared);
                let check = || Error::check_wanted(gone);
                self.net.language.checked_forward(embedded, 0..block + 1, check)?.squeeze_dim(0)
            }
            Hook::Vision(block) => {
                let hidden = self.vision_hidden(prepared, block)?;
                let [tiles, positions, width] = hidden.dims();
                hidden.reshape([tiles * positions, width])
            }
        };
        let hidden = hidden.cast(DType::F32);
        // NaN and infinity survive a sum.
        Error::check_finite(&format!("the hidden states at {hook}"), &f32_from_tensor(hidden.clone().sum()))?;
        Ok(hidden)
    }

    /// The tower's output of block `block`: `[tiles, positions, d_vision]`, in the model's format.
    pub fn vision_hidden(&self, prepared: &Prepared, block: usize) -> Result<Tensor<B, 3>, Error> {
        let pixels = prepared
            .pixels
            .as_ref()
            .ok_or_else(|| Error::BadInput(format!("vision.{block} is in the vision tower: give a picture")))?;
        Ok(self.net.vision.hidden_at(self.pixel_tensor(pixels), block + 1))
    }

    /// Fails if the model has no such block.
    pub fn check_hook(&self, hook: Hook) -> Result<(), Error> {
        let (language, vision) = (self.net.language.depth(), self.net.vision.depth());
        match hook {
            Hook::Block(layer) if layer >= language => Err(Error::UnknownLayer { layer, blocks: language }),
            Hook::Vision(block) if block >= vision => Err(Error::UnknownVisionBlock { block, blocks: vision }),
            _ => Ok(()),
        }
    }

    /// Fails if what is changed at `hook` cannot reach the answer.
    pub fn check_steerable(&self, hook: Hook) -> Result<(), Error> {
        self.check_hook(hook)?;
        let read = self.config.feature_layer();
        match hook {
            Hook::Vision(block) if block >= read => Err(Error::BadInput(format!(
                "the language model reads the vision tower before block {block}: a change there reaches no answer"
            ))),
            _ => Ok(()),
        }
    }

    /// Fails if one of the positions does not exist at `hook`.
    ///
    /// # Errors
    /// [`Error::BadInput`] with the positions that there are.
    pub fn check_positions(&self, prepared: &Prepared, hook: Hook, positions: &Positions) -> Result<(), Error> {
        positions.check_at(hook)?;
        let Positions::Tokens(named) = positions else { return Ok(()) };
        let (end, what) = match (hook, &prepared.pixels) {
            (Hook::Vision(_), Some(pixels)) => {
                let vision = &self.net.vision;
                let each = self.config.vision_config.grid().pow(2) + usize::from(vision.has_class_token());
                (pixels.tiles * each, format!("the tower sees {} tiles of {each} positions", pixels.tiles))
            }
            (Hook::Vision(_), None) => (0, "the tower sees no picture".to_string()),
            (Hook::Block(_), _) => {
                let tokens = prepared.input_ids.len();
                (tokens, format!("the prompt has {tokens} tokens"))
            }
        };
        match named.iter().find(|&&position| position >= end) {
            Some(position) => Err(Error::BadInput(format!("there is no position {position}: {what}, counted from 0"))),
            None => Ok(()),
        }
    }

    /// Numbers per position at `hook`.
    pub fn width_at(&self, hook: Hook) -> usize {
        match hook {
            Hook::Block(_) => self.config.text_config.hidden_size,
            Hook::Vision(_) => self.config.vision_config.hidden_size,
        }
    }

    /// The first token of `text`, as an answer would begin with it.
    ///
    /// # Errors
    /// When `text` has no token.
    pub fn first_token(&self, text: &str) -> Result<u32, Error> {
        let encoding = self.tokenizer.encode(text, false).map_err(|error| Error::Tokenizer(error.to_string()))?;
        let first = encoding.get_ids().first().copied();
        first.ok_or_else(|| Error::BadInput(format!("the answer {text:?} has no token")))
    }

    /// The string of one token, as people read it.
    pub fn token_text(&self, id: u32) -> String {
        self.tokenizer.decode(&[id], false).unwrap_or_default()
    }
}
