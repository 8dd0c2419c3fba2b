//! The SAE that is quantised: any layout that computes what browsers compute.

use super::QuantizeError;
use super::rows::Unfit;
use super::shard::sha256_of_file;
use model::SaeFile;
use model::sae::{Activation, Normalisation};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One of the SAE's two matrices, row by latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matrix {
    Encoder,
    Decoder,
}

impl Matrix {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
        }
    }
}

/// An open SAE and its name.
#[derive(Debug)]
pub struct Source {
    pub file: SaeFile,
    /// Name of its folder.
    pub hook_point: String,
    pub d_model: u32,
    folder: PathBuf,
}

impl Source {
    /// Opens the folder of a hook point, or one that holds exactly one.
    ///
    /// # Errors
    /// When its files are missing or damaged, or say anything but `z = TopK(ReLU((x − b_dec) W_encᵀ + b_enc))`.
    pub fn open(dir: &Path) -> Result<Self, QuantizeError> {
        let file = SaeFile::open(dir)?;
        let refuse = |reason: String| {
            let reason = format!("{reason}; browsers compute TopK(ReLU((x − b_dec) W_encᵀ + b_enc)) and nothing else");
            QuantizeError::file(file.path(), reason)
        };
        if file.activation() != Activation::TopK {
            return Err(refuse(format!("its activation is {:?}", file.activation())));
        }
        if file.normalisation() != Normalisation::None {
            return Err(refuse(format!("its hidden states are normalised ({:?})", file.normalisation())));
        }
        if !file.subtracts_b_dec() {
            return Err(refuse("its encoder does not subtract b_dec (`apply_b_dec_to_input` is false)".into()));
        }
        let d_model = u32::try_from(file.d_in()).map_err(|_| refuse(format!("a width of {}", file.d_in())))?;
        let folder = file.path().parent().unwrap_or(Path::new("."));
        let folder = folder.canonicalize().map_err(|source| QuantizeError::io(folder, source))?;
        let hook_point = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { file, hook_point, d_model, folder })
    }

    /// The hook point's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Number of latents; [`SaeFile::open`] checks that it is a `u32`.
    pub fn latents(&self) -> u32 {
        self.file.latents() as u32
    }

    /// Of the file with the weights.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn sha256(&self) -> Result<String, QuantizeError> {
        let path = self.file.path();
        sha256_of_file(path).map_err(|source| QuantizeError::io(path, source))
    }

    /// Says which latent a tier cannot hold.
    pub fn weight_error(&self, matrix: Matrix, latent: usize, problem: Unfit) -> QuantizeError {
        QuantizeError::Weight { path: self.file.path().to_path_buf(), latent, matrix: matrix.as_str(), problem }
    }

    /// Rows of some latents, in place of what `rows` held.
    pub fn rows(&self, matrix: Matrix, latents: Range<usize>, rows: &mut Vec<f32>) {
        match matrix {
            Matrix::Encoder => self.file.encoder_rows(latents, rows),
            Matrix::Decoder => self.file.decoder_rows(latents, rows),
        }
    }
}
