//! Hook points: the module whose output an SAE reads.

use std::fmt;
use std::str::FromStr;

/// The output of one block of the model, blocks counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Block of the language model, before the final norm: `model.layers.N`, Hugging Face's `hidden_states[N + 1]`.
    Block(usize),
    /// Block of the vision tower: `vision.N`. Steering there reaches the answer through the projector
    /// (Pach et al. 2025).
    Vision(usize),
}

impl From<usize> for Hook {
    fn from(block: usize) -> Self {
        Self::Block(block)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(block) => write!(f, "model.layers.{block}"),
            Self::Vision(block) => write!(f, "vision.{block}"),
        }
    }
}

impl FromStr for Hook {
    type Err = String;

    /// `layers.24`, `model.layers.24`, `24` or `vision.22`.
    fn from_str(name: &str) -> Result<Self, String> {
        let block = |digits: &str| digits.parse::<usize>().ok();
        let language = name.strip_prefix("model.").unwrap_or(name);
        let found = match name.strip_prefix("vision.") {
            Some(digits) => block(digits).map(Self::Vision),
            None => block(language.strip_prefix("layers.").unwrap_or(language)).map(Self::Block),
        };
        found.ok_or_else(|| format!("`{name}` is not a hook point such as layers.24 or vision.22"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for (name, hook) in [
            ("24", Hook::Block(24)),
            ("layers.24", Hook::Block(24)),
            ("model.layers.24", Hook::Block(24)),
            ("vision.22", Hook::Vision(22)),
        ] {
            assert_eq!(name.parse(), Ok(hook));
            assert_eq!(hook.to_string().parse(), Ok(hook));
        }
        for wrong in ["", "layers.", "layers.-1", "vision.x", "blocks.3", "model.vision.2"] {
            assert!(wrong.parse::<Hook>().is_err(), "{wrong}");
        }
    }
}
