//! A convolutional stem in front of the transformer blocks, for towers small enough to train on a CPU.
//!
//! Residual blocks `x + W GELU(LN(conv(x)))`, with a stride-2 convolution before each stage. The convolution is a full one:
//! the weight gradient of a depthwise one runs channel by channel in burn 0.21 (measured: 17 pictures a second against
//! 60 and more).
//! The 8B model does not use it: its `vision_config` has no `stem`.

use crate::Error;
use crate::layers::layer_norm;
use crate::weights::TensorIo;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Tensor, activation::gelu, backend::Backend};
use serde::{Deserialize, Serialize};

/// One entry per stage; each stage halves the picture's side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StemConfig {
    /// Channels after each stage; the last is the tower's `hidden_size`.
    pub channels: Vec<usize>,
    /// Residual blocks in each stage.
    pub depths: Vec<usize>,
    /// Side of the blocks' kernels, odd.
    pub kernel: usize,
}

impl StemConfig {
    pub fn init<B: Backend>(&self, device: &B::Device) -> Stem<B> {
        let mut previous = 3;
        let stages = std::iter::zip(&self.channels, &self.depths).map(|(&channels, &depth)| {
            let stage = StemStage {
                down: Conv2dConfig::new([previous, channels], [3, 3])
                    .with_stride([2, 2])
                    .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                    .init(device),
                norm: LayerNormConfig::new(channels).init(device),
                blocks: (0..depth).map(|_| ConvBlock::new(channels, self.kernel, device)).collect(),
            };
            previous = channels;
            stage
        });
        Stem { stages: stages.collect() }
    }
}

/// Picture to patch grid.
#[derive(Module, Debug)]
pub struct Stem<B: Backend> {
    stages: Vec<StemStage<B>>,
}

#[derive(Module, Debug)]
struct StemStage<B: Backend> {
    down: Conv2d<B>,
    norm: LayerNorm<B>,
    blocks: Vec<ConvBlock<B>>,
}

#[derive(Module, Debug)]
struct ConvBlock<B: Backend> {
    conv: Conv2d<B>,
    norm: LayerNorm<B>,
    linear: Linear<B>,
}

/// Normalises over channels of `[batch, channels, height, width]`, returning `[batch, height, width, channels]`.
fn channels_last_norm<B: Backend>(norm: &LayerNorm<B>, x: Tensor<B, 4>) -> Tensor<B, 4> {
    layer_norm(norm, x.permute([0, 2, 3, 1]))
}

impl<B: Backend> ConvBlock<B> {
    fn new(channels: usize, kernel: usize, device: &B::Device) -> Self {
        let pad = kernel / 2;
        Self {
            conv: Conv2dConfig::new([channels, channels], [kernel, kernel])
                .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
                .init(device),
            norm: LayerNormConfig::new(channels).init(device),
            linear: LinearConfig::new(channels, channels).init(device),
        }
    }

    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let mixed = channels_last_norm(&self.norm, self.conv.forward(x.clone()));
        let update = self.linear.forward(gelu(mixed));
        x + update.permute([0, 3, 1, 2])
    }
}

impl<B: Backend> Stem<B> {
    /// `[batch, 3, side, side]` to `[batch, grid², hidden]`, patches row-major.
    pub fn forward(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        let mut x = pixels;
        for stage in &self.stages {
            x = channels_last_norm(&stage.norm, stage.down.forward(x)).permute([0, 3, 1, 2]);
            for block in &stage.blocks {
                x = block.forward(x);
            }
        }
        let [batch, channels, height, width] = x.dims();
        x.reshape([batch, channels, height * width]).swap_dims(1, 2)
    }

    /// Checkpoint keys under `path`.
    pub fn tensors(&mut self, path: &str, io: &mut impl TensorIo<B>) -> Result<(), Error> {
        for (s, stage) in self.stages.iter_mut().enumerate() {
            let stage_path = format!("{path}.stages.{s}");
            io.conv(&format!("{stage_path}.down"), &mut stage.down)?;
            io.layer_norm(&format!("{stage_path}.norm"), &mut stage.norm)?;
            for (b, block) in stage.blocks.iter_mut().enumerate() {
                let path = format!("{stage_path}.blocks.{b}");
                io.conv(&format!("{path}.conv"), &mut block.conv)?;
                io.layer_norm(&format!("{path}.norm"), &mut block.norm)?;
                io.linear(&format!("{path}.linear"), &mut block.linear)?;
            }
        }
        Ok(())
    }
}
