//! What is measured, and where: from the command line. Sizes are given as to the native bench
//! (`shaders/examples/bench/options.rs`), so that one set of arguments suits both.

use anyhow::{Context, bail};
use api::Tier;
use std::fmt;
use tests::browser::Gpu;

const USAGE: &str = "\
browser_bench [--adapter default|swiftshader] [small|full] [saes=4096x16384x256,…] [tokens=1,64,…] [weights=f16,int8,int4]
  --adapter: the machine's own GPU (the default; Chromium's software adapter if it has none), or that software adapter.
  small: what a software adapter does in some minutes (its default); full: the sizes of a LLaVA (a real GPU's default).
  saes: d_model (a multiple of 32) x latents x k of each. CHROME_FLAGS adds flags to the browser's own.";

/// Rows of int4 share a scale for so many channels; a d_model that is no multiple were filled up with zeros.
const GRAIN: u32 = 32;

/// Sizes of an SAE, and how many tokens it encodes at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sae {
    pub d_model: u32,
    pub latents: u32,
    pub k: u32,
    pub tokens: Vec<u32>,
}

impl fmt::Display for Sae {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { d_model, latents, k, .. } = self;
        write!(formatter, "{d_model} → {latents}, k = {k}")
    }
}

pub struct Options {
    pub gpu: Gpu,
    pub tiers: Vec<Tier>,
    /// `small` or `full`, where it was said.
    is_small: Option<bool>,
    saes: Option<Vec<[u32; 3]>>,
    tokens: Option<Vec<u32>>,
}

impl Options {
    /// # Errors
    /// Which argument is none, and the usage.
    pub fn read(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let tiers = vec![Tier::F16, Tier::Int8, Tier::Int4];
        let mut options = Self { gpu: Gpu::Best, tiers, is_small: None, saes: None, tokens: None };
        while let Some(arg) = args.next() {
            let value = if arg == "--adapter" { args.next() } else { None };
            options.set(&arg, value.as_deref()).with_context(|| {
                let given = [Some(arg.as_str()), value.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(" ");
                format!("{given:?} is no argument of\n{USAGE}")
            })?;
        }
        if options.tiers.is_empty() {
            bail!("a browser has the weights f16, int8 and int4; name one of them\n{USAGE}");
        }
        Ok(options)
    }

    /// `value` is what follows `--adapter`.
    fn set(&mut self, arg: &str, value: Option<&str>) -> Option<()> {
        match (arg, value, arg.split_once('=')) {
            ("--adapter", Some("default"), _) => self.gpu = Gpu::Best,
            ("--adapter", Some("swiftshader"), _) => self.gpu = Gpu::Software,
            ("small", ..) => self.is_small = Some(true),
            ("full", ..) => self.is_small = Some(false),
            (.., Some(("saes", list))) => self.saes = Some(list.split(',').map(sae_from_text).collect::<Option<_>>()?),
            (.., Some(("tokens", list))) => self.tokens = Some(list.split(',').map(positive).collect::<Option<_>>()?),
            (.., Some(("weights", list))) => {
                // The native bench also has f32.
                let names = list.split(',').filter(|name| *name != "f32");
                let tiers: Vec<Tier> = names.map(Tier::from_name).collect::<Option<_>>()?;
                self.tiers = (!tiers.contains(&Tier::Slice)).then_some(tiers)?;
            }
            _ => return None,
        }
        Some(())
    }

    /// What to measure on this kind of adapter.
    pub fn saes(&self, is_software: bool) -> Vec<Sae> {
        let sae =
            |[d_model, latents, k]: [u32; 3], tokens: &[u32]| Sae { d_model, latents, k, tokens: tokens.to_vec() };
        let mut saes = if self.is_small.unwrap_or(is_software) {
            vec![sae([1024, 8192, 32], &[1, 64]), sae([4096, 16_384, 256], &[1])]
        } else {
            // One token, a row of patches, a picture.
            Vec::from([16_384, 131_072].map(|latents| sae([4096, latents, 256], &[1, 64, 576])))
        };
        if let Some(sizes) = &self.saes {
            let tokens = saes[0].tokens.clone();
            saes = sizes.iter().map(|sizes| sae(*sizes, &tokens)).collect();
        }
        if let Some(tokens) = &self.tokens {
            saes.iter_mut().for_each(|sae| sae.tokens.clone_from(tokens));
        }
        saes
    }
}

fn positive(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().filter(|number| *number > 0)
}

fn sae_from_text(text: &str) -> Option<[u32; 3]> {
    let sizes: Vec<u32> = text.split('x').map(positive).collect::<Option<_>>()?;
    let sizes: [u32; 3] = sizes.try_into().ok()?;
    sizes[0].is_multiple_of(GRAIN).then_some(sizes)
}
