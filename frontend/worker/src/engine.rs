//! The SAE where it computes: on the GPU, or in the CPU twin.

use api::Tier;
use api::gpu::{ComputePath, Fault};
use shaders::kernels::feature_map::FeatureMap;
use shaders::tile_shape::{ALL_SHAPES, PLAIN_SHAPES, Speeds};
use shaders::{Cancel, Gpu, MapShape, SaeShape, TopK, WeightType, cpu, kernels, known_answer};

use crate::Error;

/// SAEs of more weights are worth compiling and measuring every tile shape for.
const PROBED_WEIGHTS: usize = 1 << 22;

/// How a tier's weights are stored.
#[must_use]
pub fn weight_type(tier: Tier) -> WeightType {
    match tier {
        Tier::F16 | Tier::Slice => WeightType::F16,
        Tier::Int8 => WeightType::Int8,
        Tier::Int4 => WeightType::Int4,
    }
}

/// Where an SAE computes. Created empty; its weights arrive piece by piece.
pub enum Engine {
    Gpu(Box<GpuEngine>),
    Cpu(Box<cpu::sae_encode::SaeEncode>),
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
    async fn new(shape: SaeShape, weight_type: WeightType) -> Result<Self, shaders::Error> {
        let gpu = Gpu::new().await?;
        let shapes = if is_probed(shape) { &ALL_SHAPES[..] } else { &PLAIN_SHAPES };
        known_answer::check(&gpu, weight_type, shapes).await?;
        let mut sae = kernels::sae_encode::SaeEncode::new(&gpu, shape, weight_type)?;
        sae.set_speeds(Speeds::only(shapes));
        let map = FeatureMap::new(&gpu);
        // Memory that ran out is reported here, before anything is downloaded.
        gpu.settle().await?;
        Ok(Self { gpu, sae, map })
    }
}

fn is_probed(shape: SaeShape) -> bool {
    shape.weights() > PROBED_WEIGHTS
}

impl Engine {
    /// Room on a checked device.
    ///
    /// # Errors
    /// [`Error::Shaders`]: no WebGPU, no adapter, a wrong known answer, too little memory.
    pub async fn on_gpu(shape: SaeShape, weight_type: WeightType) -> Result<Self, Error> {
        Ok(Self::Gpu(Box::new(GpuEngine::new(shape, weight_type).await?)))
    }

    /// Room in this worker's memory.
    ///
    /// # Errors
    /// [`Error::Shaders`]: too little memory.
    pub fn on_cpu(shape: SaeShape, weight_type: WeightType) -> Result<Self, Error> {
        Ok(Self::Cpu(Box::new(cpu::sae_encode::SaeEncode::new(shape, weight_type)?)))
    }

    #[must_use]
    pub fn path(&self) -> ComputePath {
        match self {
            Self::Gpu(_) => ComputePath::WebGpu,
            Self::Cpu(_) => ComputePath::Cpu,
        }
    }

    /// The GPU's name, as the device knows it; often empty in browsers.
    #[must_use]
    pub fn adapter(&self) -> &str {
        match self {
            Self::Gpu(engine) => engine.gpu.adapter(),
            Self::Cpu(_) => "",
        }
    }

    /// The device, if it computes there.
    #[must_use]
    pub fn gpu(&self) -> Option<&Gpu> {
        match self {
            Self::Gpu(engine) => Some(&engine.gpu),
            Self::Cpu(_) => None,
        }
    }

    #[must_use]
    pub fn shape(&self) -> SaeShape {
        match self {
            Self::Gpu(engine) => engine.sae.shape(),
            Self::Cpu(sae) => sae.shape(),
        }
    }

    /// Takes packed rows from byte `offset` on.
    ///
    /// # Errors
    /// [`Error::Shaders`].
    pub fn write_rows(&mut self, offset: u64, piece: &[u8]) -> Result<(), Error> {
        match self {
            Self::Gpu(engine) => engine.sae.write_rows(&engine.gpu, offset, piece)?,
            Self::Cpu(sae) => sae.write_rows(offset, piece)?,
        }
        Ok(())
    }

    /// Takes scales from byte `offset` on.
    ///
    /// # Errors
    /// [`Error::Shaders`].
    pub fn write_scales(&mut self, offset: u64, piece: &[u8]) -> Result<(), Error> {
        match self {
            Self::Gpu(engine) => engine.sae.write_scales(&engine.gpu, offset, piece)?,
            Self::Cpu(sae) => sae.write_scales(offset, piece)?,
        }
        Ok(())
    }

    /// Takes the biases, and waits until everything is where it belongs.
    ///
    /// # Errors
    /// [`Error::Shaders`]: wrong lengths, or trouble on the GPU since it was created.
    pub async fn finish(&mut self, b_enc: &[f32], b_dec: &[f32]) -> Result<(), Error> {
        match self {
            Self::Gpu(engine) => {
                engine.sae.write_biases(&engine.gpu, b_enc, b_dec)?;
                engine.gpu.settle().await?;
            }
            Self::Cpu(sae) => sae.write_biases(b_enc, b_dec)?,
        }
        Ok(())
    }

    /// Finds the fastest tile shapes of a large SAE, or uses what was found before. `Some`: what was found now.
    ///
    /// # Errors
    /// [`Error::Shaders`].
    pub async fn tune(&mut self, known: Option<Speeds>, cancel: &Cancel) -> Result<Option<Speeds>, Error> {
        match self {
            Self::Gpu(engine) if is_probed(engine.sae.shape()) => match known {
                Some(speeds) => {
                    engine.sae.set_speeds(speeds);
                    Ok(None)
                }
                None => Ok(Some(engine.sae.probe(&engine.gpu, cancel).await?)),
            },
            _ => Ok(None),
        }
    }

    /// Tokens that are best given to [`Self::encode`] at once: as many as share a pass over the weights on the GPU, and on
    /// the CPU so few that a cancel is soon heard.
    pub fn batch_tokens(&self) -> usize {
        match self {
            Self::Gpu(_) => 1024,
            Self::Cpu(_) => 128,
        }
    }

    /// Top k of each token of `hidden` `[tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::Shaders`].
    pub async fn encode(&self, hidden: &[f32], tokens: u32, cancel: &Cancel) -> Result<TopK, Error> {
        cancel.check()?;
        Ok(match self {
            Self::Gpu(engine) => engine.sae.encode(&engine.gpu, hidden, tokens, cancel).await?,
            Self::Cpu(sae) => sae.encode(hidden, tokens)?,
        })
    }

    /// Map `[height, width]` of one feature.
    ///
    /// # Errors
    /// [`Error::Shaders`].
    pub async fn map(
        &self,
        top: &TopK,
        feature: u32,
        start: u32,
        shape: MapShape,
        cancel: &Cancel,
    ) -> Result<Vec<f32>, Error> {
        Ok(match self {
            Self::Gpu(engine) => engine.map.map(&engine.gpu, top, feature, start, shape, cancel).await?,
            Self::Cpu(_) => cpu::feature_map::feature_map(top, feature, start, shape)?,
        })
    }

    /// Breaks the device on purpose.
    pub fn break_with(&self, fault: Fault) {
        match (self, fault) {
            (Self::Gpu(engine), Fault::Lost) => engine.gpu.lose(),
            (Self::Gpu(engine), Fault::Memory) => {
                engine.gpu.inject(shaders::Error::OutOfMemory("as asked for".to_owned()));
            }
            (Self::Cpu(_), _) => {}
        }
    }
}
