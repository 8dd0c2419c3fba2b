//! CLIP with both towers (Radford et al. 2021; Hugging Face `CLIPModel`): how well a text fits a picture.
//!
//! `image = W_v pool(vision(picture))` and `text = W_t pool(text(ids))`, both scaled to length 1. The CLIP score of the
//! two is `100 · cos` as in the paper, and may be negative: the CLIPScore of Hessel et al. (2021) makes that 0.

mod config;
mod text;

pub use config::{ClipConfig, ClipTextConfig};

use crate::Error;
use crate::clip::ClipVision;
use crate::dtype::Dtype;
use crate::image_processor::ImageProcessor;
use crate::layers::linear;
use crate::weights::{Checkpoint, Loader, TensorIo, f32_from_tensor};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use image::DynamicImage;
use std::path::{Path, PathBuf};
use text::ClipText;
use tokenizers::{PostProcessor, Tokenizer, TruncationParams};

/// A loaded checkpoint folder, computed in f32.
#[derive(Debug)]
pub struct ClipModel<B: Backend> {
    pub config: ClipConfig,
    /// Logarithm of what the cosines were multiplied by in training; no part of the score.
    pub logit_scale: f32,
    vision: ClipVision<B>,
    text: ClipText<B>,
    visual_projection: Linear<B>,
    text_projection: Linear<B>,
    processor: ImageProcessor,
    tokenizer: Tokenizer,
    tokenizer_file: PathBuf,
    device: B::Device,
}

impl<B: Backend> ClipModel<B> {
    /// Loads `dir` (config.json, safetensors, tokenizer.json, preprocessor_config.json) onto `device`.
    ///
    /// # Errors
    /// Files that are missing, damaged or of another architecture, with the tensor or the setting that does not fit.
    pub fn load(dir: &Path, device: &B::Device) -> Result<Self, Error> {
        let config = ClipConfig::load(dir)?;
        let (tokenizer, tokenizer_file) = load_tokenizer(dir, config.text.max_position_embeddings)?;
        let projection = |from| LinearConfig::new(from, config.projection_dim).with_bias(false).init(device);
        let mut model = Self {
            logit_scale: 0.0,
            vision: config.vision.init_with(config.vision_exact_gelu, device),
            text: config.text.init(config.text_exact_gelu, device),
            visual_projection: projection(config.vision.hidden_size),
            text_projection: projection(config.text.hidden_size),
            processor: ImageProcessor::load_clip(dir, config.vision.image_size)?,
            tokenizer,
            tokenizer_file,
            device: device.clone(),
            config,
        };
        // A tokenizer of another model would give numbers without meaning.
        model.text_ids("")?;
        let checkpoint = Checkpoint::open(dir)?;
        let mut loader = Loader::new(&checkpoint, Dtype::F32);
        model.tensors(&mut loader)?;
        model.logit_scale = loader.scalar("logit_scale")?;
        loader.finish()?;
        Ok(model)
    }

    fn tensors(&mut self, io: &mut impl TensorIo<B>) -> Result<(), Error> {
        self.vision.tensors("vision_model", io)?;
        self.text.tensors("text_model", io)?;
        io.linear("visual_projection", &mut self.visual_projection)?;
        io.linear("text_projection", &mut self.text_projection)
    }

    /// What CLIP sees in a picture: `[projection_dim]`, of length 1.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub fn image_embedding(&self, picture: &DynamicImage) -> Result<Vec<f32>, Error> {
        let side = self.config.vision.image_size;
        let data = TensorData::new(self.processor.process_clip(side, picture), [1, 3, side, side]);
        let pixels = Tensor::<B, 4>::from_data(data, (&self.device, DType::F32));
        unit("the picture's embedding", linear(&self.visual_projection, self.vision.pooled(pixels).unsqueeze()))
    }

    /// What CLIP reads in a text: `[projection_dim]`, of length 1. Only as much is read as the tower has positions for,
    /// start and end of the text included (77).
    ///
    /// # Errors
    /// A tokenizer that does not belong to the checkpoint; [`Error::NotFinite`].
    pub fn text_embedding(&self, text: &str) -> Result<Vec<f32>, Error> {
        let (ids, at) = self.text_ids(text)?;
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        let count = ids.len();
        let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [1, count]), &self.device);
        unit("the text's embedding", linear(&self.text_projection, self.text.pooled(ids, at).unsqueeze()))
    }

    /// `100 · cos` of a picture and a text: about 20 to 30 where they fit, with the published models.
    ///
    /// # Errors
    /// Those of the two embeddings.
    pub fn clip_score(&self, picture: &DynamicImage, text: &str) -> Result<f32, Error> {
        Ok(100.0 * cosine(&self.image_embedding(picture)?, &self.text_embedding(text)?))
    }

    /// Ids of a text, cut to the tower's positions, and the position that stands for all of it.
    ///
    /// # Errors
    /// A tokenizer that does not belong to the checkpoint.
    pub fn text_ids(&self, text: &str) -> Result<(Vec<u32>, usize), Error> {
        let encoding = self.tokenizer.encode(text, true).map_err(|error| Error::Tokenizer(error.to_string()))?;
        let ids = encoding.get_ids().to_vec();
        let foreign = |reason: String| Err(Error::bad_file(&self.tokenizer_file, reason));
        let vocabulary = self.config.text.vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            return foreign(format!("a token has id {id}, but vocab_size in config.json is {vocabulary}"));
        }
        match self.config.text.pooled_position(&ids) {
            Some(at) => Ok((ids, at)),
            None => {
                let eos = self.config.text.eos_token_id;
                foreign(format!("texts do not end with token {eos}, which is eos_token_id in config.json"))
            }
        }
    }
}

/// `tokenizer.json` with CLIP's own settings in place of those of whoever saved the file last: at most `positions`
/// tokens, no padding.
fn load_tokenizer(dir: &Path, positions: usize) -> Result<(Tokenizer, PathBuf), Error> {
    let path = dir.join("tokenizer.json");
    if !path.exists() {
        return Err(Error::io(&path, std::io::ErrorKind::NotFound.into()));
    }
    let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| Error::bad_file(&path, error))?;
    let added = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
    if added >= positions {
        let reason = format!("it adds {added} tokens to each text, but the model has {positions} positions");
        return Err(Error::bad_file(&path, reason));
    }
    tokenizer.with_padding(None);
    let cut = TruncationParams { max_length: positions, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(cut)).map_err(|error| Error::bad_file(&path, error))?;
    Ok((tokenizer, path))
}

/// One embedding scaled to length 1, in f64.
fn unit<B: Backend>(what: &str, embedding: Tensor<B, 3>) -> Result<Vec<f32>, Error> {
    let values = f32_from_tensor(embedding);
    let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let values: Vec<f32> = values.into_iter().map(|value| (f64::from(value) / length) as f32).collect();
    Error::check_finite(what, &values)?;
    Ok(values)
}

/// Cosine of two vectors of length 1.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}
