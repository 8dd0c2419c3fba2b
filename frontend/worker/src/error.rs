//! The one error of this crate; its text is what the page shows.

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("could not fetch {url}: {reason}")]
    Fetch { url: String, reason: String },
    #[error("{url} ends after {bytes} bytes; {expected} were expected. Reload the page to try again")]
    Truncated { url: String, bytes: u64, expected: u64 },
    #[error("not an SAE in safetensors format: {0}")]
    Safetensors(String),
    #[error("not an SAE configuration (cfg.json): {0}")]
    Config(String),
    #[error("the SAE's weights need {bytes} bytes of memory for the CPU path, more than this browser gives")]
    Memory { bytes: u64 },
    #[error("{}", shaders_text(.0))]
    Shaders(#[from] shaders::Error),
    #[error("no SAE is loaded yet")]
    NotLoaded,
    #[error("nothing has been encoded yet: there is no map to draw")]
    NotEncoded,
    #[error("feature {feature} does not exist: the SAE has {latents} latents")]
    NoFeature { feature: u32, latents: u32 },
    #[error("the message to the GPU worker is not understood: {0}")]
    Message(String),
}

fn shaders_text(error: &shaders::Error) -> String {
    let advice = match error {
        shaders::Error::Lost(_) => ". Reload the page to start again; if it happens again, use the CPU path",
        _ => "",
    };
    format!("{error}{advice}")
}
