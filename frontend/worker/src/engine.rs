//! The SAE where it computes: on the GPU, or in the CPU twin.

use api::gpu::ComputePath;
use shaders::kernels::feature_map::FeatureMap;
use shaders::{Gpu, MapShape, SaeShape, TopK, WeightType, cpu, kernels, known_answer};

use crate::Error;
use crate::load::extend_f32;

/// A loaded SAE.
pub enum Engine {
    Gpu(Box<GpuEngine>),
    Cpu(cpu::sae_encode::SaeEncode),
}

/// The GPU and what is on it.
pub struct GpuEngine {
    gpu: Gpu,
    sae: kernels::sae_encode::SaeEncode,
    map: FeatureMap,
}

impl GpuEngine {
    /// A checked device with room for the SAE.
    ///
    /// # Errors
    /// No WebGPU, no adapter, a wrong known answer, too little memory.
    pub async fn new(shape: SaeShape, weight_type: WeightType) -> Result<Self, shaders::Error> {
        let gpu = Gpu::new().await?;
        known_answer::check(&gpu, weight_type).await?;
        let sae = kernels::sae_encode::SaeEncode::new(&gpu, shape, weight_type)?;
        let map = FeatureMap::new(&gpu);
        // Memory that ran out is reported here, before anything is downloaded.
        gpu.settle().await?;
        Ok(Self { gpu, sae, map })
    }

    /// The adapter's name; often empty in browsers.
    #[must_use]
    pub fn adapter(&self) -> &str {
        self.gpu.adapter()
    }

    /// Gives the device up. (Tests of what happens then.)
    pub fn lose(&self) {
        self.gpu.lose();
    }
}

/// Where an SAE's weights go while they arrive.
pub enum Destination {
    Gpu(Box<GpuEngine>),
    Cpu { shape: SaeShape, weight_type: WeightType, weights: Vec<f32> },
}

impl Destination {
    /// Memory for the CPU twin.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn cpu(shape: SaeShape, weight_type: WeightType) -> Result<Self, Error> {
        let mut weights = Vec::new();
        let bytes = 4 * u64::from(shape.latents) * u64::from(shape.d_model);
        if usize::try_from(bytes).is_err() || weights.try_reserve_exact(shape.weights()).is_err() {
            return Err(Error::Memory { bytes });
        }
        Ok(Self::Cpu { shape, weight_type, weights })
    }

    /// Takes the weights from byte `offset` on; pieces come in order.
    ///
    /// # Errors
    /// [`Error::Shaders`].
    pub fn write_weights(&mut self, offset: u64, piece: &[u8]) -> Result<(), Error> {
        match self {
            Self::Gpu(engine) => Ok(engine.sae.write_weights(&engine.gpu, offset, piece)?),
            Self::Cpu { weights, weight_type, .. } => {
                extend_f32(weights, piece, *weight_type);
                Ok(())
            }
        }
    }

    /// The loaded SAE, once all weights are there.
    ///
    /// # Errors
    /// [`Error::Shaders`]: wrong lengths, or trouble on the GPU since it was created.
    pub async fn finish(self, b_enc: Vec<f32>, b_dec: Vec<f32>) -> Result<Engine, Error> {
        match self {
            Self::Gpu(engine) => {
                engine.sae.write_biases(&engine.gpu, &b_enc, &b_dec)?;
                engine.gpu.settle().await?;
                Ok(Engine::Gpu(engine))
            }
            Self::Cpu { shape, weights, .. } => {
                Ok(Engine::Cpu(cpu::sae_encode::SaeEncode::new(shape, weights, b_enc, b_dec)?))
            }
        }
    }
}

impl Engine {
    #[must_use]
    pub fn path(&self) -> ComputePath {
        match self {
            Self::Gpu(_) => ComputePath::WebGpu,
            Self::Cpu(_) => ComputePath::Cpu,
        }
    }

    #[must_use]
    pub fn shape(&self) -> SaeShape {
        match self {
            Self::Gpu(engine) => engine.sae.shape(),
            Self::Cpu(sae) => sae.shape(),
        }
    }

    /// Top k of each token of `hidden` `[tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::Shaders`].
    pub async fn encode(&self, hidden: &[f32], tokens: u32) -> Result<TopK, Error> {
        Ok(match self {
            Self::Gpu(engine) => engine.sae.encode(&engine.gpu, hidden, tokens).await?,
            Self::Cpu(sae) => sae.encode(hidden, tokens)?,
        })
    }

    /// Map `[height, width]` of one feature.
    ///
    /// # Errors
    /// [`Error::Shaders`].
    pub async fn map(&self, top: &TopK, feature: u32, start: u32, shape: MapShape) -> Result<Vec<f32>, Error> {
        Ok(match self {
            Self::Gpu(engine) => engine.map.map(&engine.gpu, top, feature, start, shape).await?,
            Self::Cpu(_) => cpu::feature_map::feature_map(top, feature, start, shape)?,
        })
    }
}
