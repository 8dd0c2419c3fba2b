//! `cfg.json` of an SAE, as the reference trainer writes it.

use serde::Deserialize;

use crate::Error;

/// What an encode needs from `cfg.json`; other fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SaeConfig {
    /// Activations kept per token.
    pub k: u32,
    /// Latents; 0 or absent where the trainer derived them from an expansion factor.
    #[serde(default)]
    pub num_latents: u32,
    /// Width of the hidden states.
    pub d_in: Option<u32>,
    /// Keeps negative activations as well: another architecture.
    #[serde(default)]
    pub signed: bool,
}

impl SaeConfig {
    /// # Errors
    /// [`Error::Config`] with the line and the reason.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let config: Self = serde_json::from_slice(json).map_err(|error| Error::Config(error.to_string()))?;
        if config.signed {
            return Err(Error::Config("signed SAEs are not supported".to_owned()));
        }
        Ok(config)
    }

    /// Compares with the sizes of `encoder.weight`.
    ///
    /// # Errors
    /// [`Error::Config`] if they disagree.
    pub fn check(&self, latents: u32, d_model: u32) -> Result<(), Error> {
        let disagree = |name: &str, given: u32, tensor: u32| {
            Err(Error::Config(format!("{name} is {given}, but encoder.weight is [{latents}, {d_model}] ({tensor})")))
        };
        match self.d_in {
            Some(d_in) if d_in != d_model => return disagree("d_in", d_in, d_model),
            _ => {}
        }
        if self.num_latents != 0 && self.num_latents != latents {
            return disagree("num_latents", self.num_latents, latents);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn reads_the_reference_format() {
        let json = br#"{"expansion_factor": 32, "normalize_decoder": true, "num_latents": 0, "k": 256, "d_in": 4096}"#;
        let config = SaeConfig::parse(json).unwrap();
        assert_eq!(config, SaeConfig { k: 256, num_latents: 0, d_in: Some(4096), signed: false });
        assert_eq!(config.check(131_072, 4096), Ok(()));
        assert!(config.check(131_072, 192).unwrap_err().to_string().contains("d_in is 4096"));
    }

    #[test]
    fn refuses_what_it_cannot_run() {
        for bad in [&b"{}"[..], b"", b"{\"k\": -1}", b"{\"k\": 32, \"signed\": true}", b"[1]", b"\xff"] {
            assert!(matches!(SaeConfig::parse(bad), Err(Error::Config(_))), "{bad:?}");
        }
        let other = SaeConfig { k: 1, num_latents: 7, d_in: None, signed: false };
        assert!(other.check(8, 4).is_err());
    }
}
