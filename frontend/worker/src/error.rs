//! The one error of this crate; its text is what the page shows.

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("could not fetch {url}: {reason}")]
    Fetch { url: String, reason: String },
    #[error("{url} ends after {bytes} bytes; {expected} were expected. Reload the page to try again")]
    Truncated { url: String, bytes: u64, expected: u64 },
    #[error(
        "{file} arrived damaged twice (its SHA-256 is not the one in the manifest): the copy on the server is broken"
    )]
    Damaged { file: String },
    #[error("not a shard of an SAE: {0}")]
    Safetensors(String),
    #[error("not the manifest of an SAE: {0}")]
    Manifest(String),
    #[error("this SAE has no weights in tier {tier}; it has {has}")]
    NoTier { tier: String, has: String },
    #[error("{}", shaders_text(.0))]
    Shaders(#[from] shaders::Error),
    #[error("no SAE is loaded yet")]
    NotLoaded,
    #[error("nothing has been encoded yet: there is nothing to draw or to count")]
    NotEncoded,
    #[error("the server has no decoder for this SAE; `lmm-scope quantize --decoder` writes it")]
    NoDecoder,
    #[error("there is no canvas that this worker can draw on")]
    NoCanvas,
    #[error("feature {feature} does not exist: the SAE has {latents} latents")]
    NoFeature { feature: u32, latents: u32 },
    #[error("the message to the GPU worker is not understood: {0}")]
    Message(String),
    #[error("this worker does not compute on the server")]
    OnServer,
}

impl Error {
    /// The device is gone, or will not do any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        use shaders::Error::{Gpu, Lost, OutOfMemory};
        matches!(self, Self::Shaders(Lost(_) | Gpu(_) | OutOfMemory(_)))
    }

    /// The same of a batch of rows that begins with this one.
    #[must_use]
    pub fn in_rows_from(self, first: u32) -> Self {
        match self {
            Self::Shaders(shaders::Error::NotFinite { what, row }) => {
                Self::Shaders(shaders::Error::NotFinite { what, row: row + first as usize })
            }
            other => other,
        }
    }

    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self == Self::Shaders(shaders::Error::Cancelled)
    }
}

fn shaders_text(error: &shaders::Error) -> String {
    let advice = match error {
        shaders::Error::Lost(_) => ". Reload the page to start again; if it happens again, use the CPU path",
        shaders::Error::OutOfMemory(_) | shaders::Error::Memory { .. } => ". A smaller tier of weights may fit",
        _ => "",
    };
    format!("{error}{advice}")
}
