//! What an engine loads, and whether it is what a source was made with.

use super::EngineError;
use api::{EngineInfo, Source};
use model::{dtype::Dtype, hook::Hook};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Where a model computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
    /// The CUDA card with this number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    /// `cpu`, `cuda` (the first card) or `cuda:1`.
    fn from_str(name: &str) -> Result<Self, String> {
        match (name, name.strip_prefix("cuda:").map(str::parse)) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(number))) => Ok(Self::Cuda(number)),
            _ => Err(format!("`{name}` is not cpu, cuda or cuda:0")),
        }
    }
}

/// What an engine loads.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineSpec {
    /// Hugging Face checkpoint folder.
    pub model: PathBuf,
    /// Folder of the SAE's hook point.
    pub sae: PathBuf,
    pub hook: Hook,
    /// The model's name in provenance.
    pub name: String,
    pub device: Device,
    pub dtype: Dtype,
}

impl EngineSpec {
    /// `artifacts/model` and `artifacts/sae/{hook point}`, as `lmm-scope pocket` writes them, in f32 on the CPU.
    ///
    /// # Errors
    /// When the source names a hook point that there cannot be.
    pub fn of_source(artifacts: &Path, source: &Source) -> Result<Self, EngineError> {
        Ok(Self {
            model: artifacts.join("model"),
            sae: artifacts.join("sae").join(&source.hook_point),
            hook: parse_hook(artifacts, &source.hook_point)?,
            name: source.model_id.clone(),
            device: Device::default(),
            dtype: Dtype::default(),
        })
    }
}

fn parse_hook(path: &Path, name: &str) -> Result<Hook, EngineError> {
    name.parse().map_err(|reason| EngineError::Mismatch { path: path.to_owned(), reason })
}

/// What is wrong with an SAE whose folder is named after another hook point than `hook`. A number alone may be any name.
pub fn reads_another_hook(folder: &Path, hook: Hook) -> Option<String> {
    let name = folder.canonicalize().ok()?.file_name()?.to_string_lossy().into_owned();
    let named: Hook = name.parse().ok()?;
    let number = name.bytes().all(|byte| byte.is_ascii_digit());
    (named != hook && !number).then(|| {
        format!("by its folder's name this SAE reads {named}, but {hook} is asked for; name the folder of that one")
    })
}

/// Finds an SAE in the reference layout: `dir` is the hook point's folder, or holds it. The hook point is the folder's
/// name unless `hook` says it.
///
/// # Errors
/// When there is no SAE, when there are several, or when the folder's name is no hook point, or another one.
pub fn sae_folder(dir: &Path, hook: Option<Hook>) -> Result<(PathBuf, Hook), EngineError> {
    let is_sae = |folder: &Path| folder.join("cfg.json").is_file();
    let mismatch = |reason: String| EngineError::Mismatch { path: dir.to_owned(), reason };
    let io = |source| EngineError::Io { path: dir.to_owned(), source };
    let folder = dir.canonicalize().map_err(io)?;
    let folder = match hook.map(|hook| folder.join(hook.to_string())) {
        _ if is_sae(&folder) => folder,
        Some(named) if is_sae(&named) => named,
        _ => {
            let entries = std::fs::read_dir(&folder).map_err(io)?;
            let mut found: Vec<PathBuf> =
                entries.flatten().map(|entry| entry.path()).filter(|path| is_sae(path)).collect();
            found.sort();
            match found.len() {
                1 => found.remove(0),
                0 => return Err(mismatch("no SAE here: there is no cfg.json, nor in a folder of it".into())),
                n => return Err(mismatch(format!("{n} SAEs are in here; name the folder of one"))),
            }
        }
    };
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match hook {
        Some(hook) => match reads_another_hook(&folder, hook) {
            Some(reason) => Err(mismatch(reason)),
            None => Ok((folder, hook)),
        },
        None => name.parse().map(|hook| (folder, hook)).map_err(|reason: String| {
            mismatch(format!("which hook point does it read? {reason}; say it with --hook layers.24"))
        }),
    }
}

/// What an engine must hold to serve a source: with other weights every feature would mean something else.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    pub source: Source,
    /// Nothing: any revision.
    pub sae_revision: Option<String>,
}

impl Fit {
    /// Says what is wrong with an engine.
    ///
    /// # Errors
    /// The first size, hook point or revision that differs.
    pub fn check(&self, found: &EngineInfo) -> Result<(), String> {
        let Source { d_model, latents, k, hook_point, .. } = &self.source;
        for (what, found, expected) in
            [("d_model", found.d_model, d_model), ("latents", found.latents, latents), ("k", found.k, k)]
        {
            if found != *expected {
                return Err(format!("{what} is {found}, but source.json says {expected}"));
            }
        }
        if hook_point.parse::<Hook>() != found.hook_point.parse::<Hook>() {
            return Err(format!("it reads {}, but source.json says {hook_point}", found.hook_point));
        }
        match &self.sae_revision {
            Some(expected) if *expected != found.sae_revision => {
                Err(format!("its SAE is {}, but the one served here is {expected}", found.sae_revision))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (name, device) in [("cpu", Device::Cpu), ("cuda", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(name.parse(), Ok(device));
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cpu:0"] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_sae_is_found_in_its_folder_or_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        let sae = folder.path().join("model.layers.1");
        std::fs::create_dir(&sae).unwrap();
        assert!(sae_folder(folder.path(), None).unwrap_err().to_string().contains("no SAE here"));
        std::fs::write(sae.join("cfg.json"), "{}").unwrap();
        let expected = (sae.canonicalize().unwrap(), Hook::Block(1));
        assert_eq!(sae_folder(&sae, None).unwrap(), expected);
        assert_eq!(sae_folder(folder.path(), None).unwrap(), expected);
        for named in [folder.path(), sae.as_path()] {
            let error = sae_folder(named, Some(Hook::Block(0))).unwrap_err().to_string();
            assert!(error.contains("reads model.layers.1, but model.layers.0 is asked for"), "{error}");
        }

        let other = folder.path().join("vision.0");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("cfg.json"), "{}").unwrap();
        assert!(sae_folder(folder.path(), None).unwrap_err().to_string().contains("2 SAEs"));
        assert_eq!(sae_folder(folder.path(), Some(Hook::Block(1))).unwrap(), expected);
        assert_eq!(sae_folder(&other, None).unwrap().1, Hook::Vision(0));

        let unnamed = folder.path().join("mine");
        std::fs::create_dir(&unnamed).unwrap();
        std::fs::write(unnamed.join("cfg.json"), "{}").unwrap();
        assert_eq!(sae_folder(&unnamed, Some(Hook::Block(0))).unwrap().1, Hook::Block(0), "it may be any");
        let error = sae_folder(&unnamed, None).unwrap_err().to_string();
        assert!(error.contains("--hook") && error.contains("`mine`"), "{error}");
    }

    #[test]
    fn another_engine_is_recognised() {
        let source =
            Source { d_model: 32, latents: 64, k: 8, hook_point: "model.layers.1".into(), ..Source::default() };
        let fit = Fit { source, sae_revision: Some("abc".into()) };
        let good = EngineInfo {
            d_model: 32,
            latents: 64,
            k: 8,
            hook_point: "model.layers.1".into(),
            sae_revision: "abc".into(),
            ..EngineInfo::default()
        };
        assert_eq!(fit.check(&good), Ok(()));
        for (named, bad) in [
            ("d_model is 16", EngineInfo { d_model: 16, ..good.clone() }),
            ("k is 4", EngineInfo { k: 4, ..good.clone() }),
            ("model.layers.2", EngineInfo { hook_point: "model.layers.2".into(), ..good.clone() }),
            ("its SAE is abd", EngineInfo { sae_revision: "abd".into(), ..good.clone() }),
        ] {
            let reason = fit.check(&bad).unwrap_err();
            assert!(reason.contains(named), "{reason}");
        }
        assert_eq!(Fit { sae_revision: None, ..fit }.check(&EngineInfo { sae_revision: "x".into(), ..good }), Ok(()));
    }
}
