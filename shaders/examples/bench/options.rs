//! What is measured: sizes from the command line.

use shaders::WeightType;

pub const USAGE: &str = "bench [small|full] [saes=4096x16384x256,…] [tokens=1,64,…] [weights=f32,f16,int8,int4]
  small: what a software adapter does in a minute (its default); full: the sizes of a LLaVA (a real GPU's default).
  saes: d_model x latents x k of each.";

/// Sizes of an SAE.
#[derive(Debug, Clone, Copy)]
pub struct Sae {
    pub d_model: u32,
    pub latents: u32,
    pub k: u32,
}

pub struct Options {
    pub saes: Vec<Sae>,
    pub tokens: Vec<u32>,
    pub weight_types: Vec<WeightType>,
    /// Of the histogram.
    pub values: usize,
}

impl Options {
    /// The demo's SAE, and one whose products count.
    fn small() -> Self {
        Self {
            saes: vec![Sae { d_model: 192, latents: 3072, k: 32 }, Sae { d_model: 1024, latents: 8192, k: 32 }],
            tokens: vec![1, 64],
            weight_types: WeightType::ALL.to_vec(),
            values: 1 << 20,
        }
    }

    fn full() -> Self {
        let sae = |latents| Sae { d_model: 4096, latents, k: 256 };
        Self { saes: vec![sae(16_384), sae(131_072)], tokens: vec![1, 64, 576], values: 1 << 24, ..Self::small() }
    }

    /// Defaults for this kind of adapter, changed by the arguments in turn.
    ///
    /// # Errors
    /// A text that says which argument is none.
    pub fn from_args(args: impl Iterator<Item = String>, is_software: bool) -> Result<Self, String> {
        let mut options = if is_software { Self::small() } else { Self::full() };
        for arg in args {
            options.set(&arg).ok_or_else(|| format!("{arg:?} is no argument of\n{USAGE}"))?;
        }
        Ok(options)
    }

    fn set(&mut self, arg: &str) -> Option<()> {
        match arg.split_once('=') {
            None if arg == "small" => *self = Self::small(),
            None if arg == "full" => *self = Self::full(),
            Some(("saes", list)) => self.saes = list.split(',').map(sae_from_text).collect::<Option<_>>()?,
            Some(("tokens", list)) => self.tokens = list.split(',').map(positive).collect::<Option<_>>()?,
            Some(("weights", list)) => {
                self.weight_types = list.split(',').map(weight_type_from_text).collect::<Option<_>>()?;
            }
            _ => return None,
        }
        Some(())
    }
}

/// As in the table and in the arguments.
pub fn text_of(weight_type: WeightType) -> &'static str {
    match weight_type {
        WeightType::F32 => "f32",
        WeightType::F16 => "f16",
        WeightType::Int8 => "int8",
        WeightType::Int4 => "int4",
    }
}

fn weight_type_from_text(text: &str) -> Option<WeightType> {
    WeightType::ALL.into_iter().find(|weight_type| text_of(*weight_type) == text)
}

fn positive(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().filter(|number| *number > 0)
}

fn sae_from_text(text: &str) -> Option<Sae> {
    let sizes: Vec<u32> = text.split('x').map(positive).collect::<Option<_>>()?;
    let [d_model, latents, k]: [u32; 3] = sizes.try_into().ok()?;
    Some(Sae { d_model, latents, k })
}
