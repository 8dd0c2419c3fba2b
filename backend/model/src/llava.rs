//! LLaVA-NeXT: vision tower, projector, `image_newline`, language model (Hugging Face `LlavaNextForConditionalGeneration`).

use crate::Error;
use crate::anyres::TileGrid;
use crate::clip::ClipVision;
use crate::config::LlavaNextConfig;
use crate::dtype::Dtype;
use crate::layers::linear;
use crate::llama::Llama;
use crate::weights::{Checkpoint, Loader, Saver, TensorIo};
use burn::module::{Module, Param};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::activation::gelu;
use burn::tensor::{Tensor, backend::Backend};
use std::path::Path;

/// All weights of the model.
#[derive(Module, Debug)]
pub struct LlavaNext<B: Backend> {
    pub vision: ClipVision<B>,
    pub projector: Projector<B>,
    /// `[d_model]`: closes each row of picture tokens.
    pub image_newline: Param<Tensor<B, 1>>,
    pub language: Llama<B>,
    feature_layer: usize,
    drop_class: bool,
    grid: usize,
}

/// `W₂ GELU(W₁ x)`, exact GELU, with biases.
#[derive(Module, Debug)]
pub struct Projector<B: Backend> {
    linear_1: Linear<B>,
    linear_2: Linear<B>,
}

impl LlavaNextConfig {
    /// A model with random weights.
    pub fn init<B: Backend>(&self, device: &B::Device) -> LlavaNext<B> {
        let (from, to) = (self.vision_config.hidden_size, self.text_config.hidden_size);
        LlavaNext {
            vision: self.vision_config.init(device),
            projector: Projector {
                linear_1: LinearConfig::new(from, to).init(device),
                linear_2: LinearConfig::new(to, to).init(device),
            },
            image_newline: Initializer::Normal { mean: 0.0, std: (to as f64).powf(-0.5) }.init([to], device),
            language: self.text_config.init(device),
            feature_layer: self.feature_layer(),
            drop_class: self.vision_config.stem.is_none() && self.vision_feature_select_strategy == "default",
            grid: self.vision_config.grid(),
        }
    }
}

impl<B: Backend> LlavaNext<B> {
    /// Loads `dir` (config.json and safetensors) onto `device`, to be computed in `dtype`.
    pub fn load(config: &LlavaNextConfig, dir: &Path, device: &B::Device, dtype: Dtype) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(dir)?;
        let mut loader = Loader::new(&checkpoint, dtype);
        let mut model = config.init(device);
        model.tensors(&mut loader)?;
        loader.finish()?;
        Ok(model)
    }

    /// Writes `dir/config.json` and `dir/model.safetensors` (f16).
    pub fn save(&self, config: &LlavaNextConfig, dir: &Path) -> Result<(), Error> {
        let mut saver = Saver::default();
        self.clone().tensors(&mut saver)?;
        saver.write(&dir.join("model.safetensors"))?;
        let path = dir.join("config.json");
        let json = serde_json::to_vec_pretty(config).map_err(|error| Error::bad_file(&path, error))?;
        crate::weights::write_atomic(&path, &json)
    }

    fn tensors(&mut self, io: &mut impl TensorIo<B>) -> Result<(), Error> {
        self.vision.tensors("vision_tower.vision_model", io)?;
        io.linear("multi_modal_projector.linear_1", &mut self.projector.linear_1)?;
        io.linear("multi_modal_projector.linear_2", &mut self.projector.linear_2)?;
        io.param("image_newline", &mut self.image_newline)?;
        self.language.tensors("language_model", io)
    }

    /// Tiles to projected patch features: `[tiles, 3, side, side]` to `[tiles, grid², d_model]`.
    pub fn patch_tokens(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        self.project(self.vision.hidden_at(pixels, self.feature_layer))
    }

    /// Tower features at `vision_feature_layer` to patch features: `[tiles, positions, hidden]` to
    /// `[tiles, grid², d_model]`.
    fn project(&self, features: Tensor<B, 3>) -> Tensor<B, 3> {
        let [_, positions, _] = features.dims();
        let features = if self.drop_class { features.narrow(1, 1, positions - 1) } else { features };
        linear(&self.projector.linear_2, gelu(linear(&self.projector.linear_1, features)))
    }

    /// Picture tokens from the tower's output of block `block`, which may have been changed:
    /// `[tiles, positions, hidden]` to `[tokens, d_model]`.
    pub fn image_tokens_from(&self, hidden: Tensor<B, 3>, block: usize, tiles: Option<&TileGrid>) -> Tensor<B, 2> {
        let features = self.vision.blocks_forward(hidden, block + 1..self.feature_layer.max(block + 1));
        self.assemble(self.project(features), tiles)
    }

    /// Picture tokens of a base picture alone, closed by one newline: `[batch, grid² + 1, d_model]`.
    pub fn base_image_tokens(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        self.closed(self.patch_tokens(pixels))
    }

    /// Patches and one newline: `[batch, grid², d_model]` to `[batch, grid² + 1, d_model]`.
    fn closed(&self, patches: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, _, d_model] = patches.dims();
        let newline = self.image_newline.val().reshape([1, 1, d_model]).repeat_dim(0, batch);
        Tensor::cat(vec![patches, newline], 1)
    }

    /// Picture tokens of one picture: the base tokens, then the unpadded tile grid row by row, each row closed by
    /// `image_newline` (LLaVA-NeXT, `pack_image_features` with `spatial_unpad`). `pixels[0]` is the base picture.
    ///
    /// Output: `[tokens, d_model]`.
    pub fn image_tokens(&self, pixels: Tensor<B, 4>, tiles: Option<&TileGrid>) -> Tensor<B, 2> {
        self.assemble(self.patch_tokens(pixels), tiles)
    }

    fn assemble(&self, patches: Tensor<B, 3>, tiles: Option<&TileGrid>) -> Tensor<B, 2> {
        let Some(tiles) = tiles else {
            return self.closed(patches).squeeze_dim(0);
        };
        let [count, per_tile, d_model] = patches.dims();
        let base = patches.clone().narrow(0, 0, 1).reshape([per_tile, d_model]);
        let (rows, columns, grid) = (tiles.rows, tiles.columns, self.grid);
        // A picture much thinner than a patch can lose all its rows to unpadding, or all its columns but the newlines.
        if tiles.kept_rows.is_empty() {
            return base;
        }
        if tiles.kept_columns.is_empty() {
            let newlines = self.image_newline.val().reshape([1, d_model]).repeat_dim(0, tiles.kept_rows.len());
            return Tensor::cat(vec![base, newlines], 0);
        }
        // [rows, columns, grid, grid, d] → [rows·grid, columns·grid, d]
        let whole = patches
            .narrow(0, 1, count - 1)
            .reshape([rows, columns, grid, grid, d_model])
            .permute([0, 2, 1, 3, 4])
            .reshape([rows * grid, columns * grid, d_model]);
        let kept = whole.narrow(0, tiles.kept_rows.start, tiles.kept_rows.len()).narrow(
            1,
            tiles.kept_columns.start,
            tiles.kept_columns.len(),
        );
        let newline = self.image_newline.val().reshape([1, 1, d_model]).repeat_dim(0, tiles.kept_rows.len());
        let closed = Tensor::cat(vec![kept, newline], 1);
        let [height, width, _] = closed.dims();
        Tensor::cat(vec![base, closed.reshape([height * width, d_model])], 0)
    }
}
