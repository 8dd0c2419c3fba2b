//! What the flags name, checked as far as that goes without weights; then the weights.

use super::{CliError, args::RunArgs, device::check_device, progress::Progress, provenance::picture_name};
use crate::{
    config::ComputeArgs,
    engine::{Device, reads_another_hook},
    picture::decode_picture,
};
use api::{TokenKind, TokenSpan};
use burn::tensor::backend::Backend;
use image::DynamicImage;
use model::{LlavaNextConfig, Lmm, Prepared, PromptInput, SaeFile, SpanKind, dtype::Dtype, hook::Hook};
use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

/// Largest file that is read as a picture, in bytes.
const MAX_PICTURE: u64 = 256 << 20;

/// A run of the model that can begin.
#[derive(Debug)]
pub struct Setup {
    /// Of the model, for provenance.
    pub name: String,
    pub folder: PathBuf,
    pub config: LlavaNextConfig,
    pub device: Device,
    pub dtype: Dtype,
    pub hook: Hook,
    pub input: PromptInput,
    /// Of the picture, for provenance.
    pub picture: Option<String>,
}

impl Setup {
    /// # Errors
    /// The first thing that is wrong with the device, the picture, the model's folder or the hook point.
    pub fn check(args: RunArgs) -> Result<Self, CliError> {
        check_device(args.compute.device)?;
        let (hook, flag) = args.hook.named();
        if matches!(hook, Hook::Vision(_)) && args.image.is_none() {
            return Err(CliError::flag(flag, format!("{hook} needs a picture; name one with --image")));
        }
        let (image, picture) = args.image.as_deref().map(read_picture).transpose()?.unzip();
        let chat = args.prompt.prompt.is_some();
        let text = args.prompt.prompt.or(args.prompt.raw_prompt).unwrap_or_default();
        let input = PromptInput { text, chat, image };
        let setup = Self::without_picture(&args.model, args.revision.as_deref(), args.compute, (hook, flag), input)?;
        Ok(Self { picture, ..setup })
    }

    /// Of a command that brings its pictures itself.
    ///
    /// # Errors
    /// The first thing that is wrong with the device, the model's folder or the hook point.
    pub fn without_picture(
        model: &str,
        revision: Option<&str>,
        compute: ComputeArgs,
        (hook, flag): (Hook, &'static str),
        input: PromptInput,
    ) -> Result<Self, CliError> {
        let ComputeArgs { device, dtype } = compute;
        check_device(device)?;
        let folder = model::hub::checkpoint_folder(model, revision)?;
        let config = LlavaNextConfig::load(&folder)?;
        check_hook(hook, flag, &config)?;
        for path in model::weights::checkpoint_files(&folder)? {
            if !path.is_file() {
                return Err(CliError::file(&path, "the model's weights are missing"));
            }
        }
        Ok(Self { name: model_name(model), folder, config, device, dtype, hook, input, picture: None })
    }

    /// Values per position at the hook point.
    pub fn width(&self) -> usize {
        match self.hook {
            Hook::Block(_) => self.config.text_config.hidden_size,
            Hook::Vision(_) => self.config.vision_config.hidden_size,
        }
    }

    /// Loads the weights and puts the prompt in the model's terms.
    ///
    /// # Errors
    /// What is wrong with the checkpoint's files, or with the prompt.
    pub fn load<B: Backend>(&self, device: &B::Device) -> Result<(Lmm<B>, Prepared), CliError> {
        let _progress = Progress::start(format!("loading {}", self.name));
        let lmm = Lmm::<B>::load_as(&self.folder, device, self.dtype)?;
        let prepared = lmm.prepare(&self.input)?;
        if prepared.input_ids.is_empty() {
            let flag = if self.input.chat { "--prompt" } else { "--raw-prompt" };
            return Err(CliError::flag(flag, "the prompt has no tokens; write something"));
        }
        Ok((lmm, prepared))
    }

    /// Checks that an SAE reads what the hook point gives.
    ///
    /// # Errors
    /// When its width is another.
    pub fn check_sae(&self, folder: &Path, sae: &SaeFile) -> Result<(), CliError> {
        let (width, d_in) = (self.width(), sae.d_in());
        if width == d_in {
            return Ok(());
        }
        let what = format!("the SAE reads {d_in} values per token, but {} of {} has {width}", self.hook, self.name);
        Err(CliError::file(folder, what))
    }
}

/// Says which tensor of the checkpoint is to blame for numbers that are not finite, if one is.
pub fn name_culprit(error: CliError, checkpoint: &Path) -> CliError {
    let what = match &error {
        CliError::Model(model::Error::NotFinite { what }) => what,
        _ => return error,
    };
    match model::weights::first_not_finite(checkpoint) {
        Ok(Some((file, tensor))) => {
            let reason = format!("tensor `{tensor}` holds NaN or infinite values, so that {what} are not finite");
            CliError::file(&file, reason)
        }
        _ => error,
    }
}

/// Opens an SAE, its matrices not yet read, and tells its hook point's folder. `dir` may also be the id of a repository
/// on the hub.
///
/// # Errors
/// When it is missing or damaged, when there are several, or when its folder is named after another hook point.
pub fn open_sae(dir: &Path, hook: Option<Hook>) -> Result<(PathBuf, SaeFile), CliError> {
    let id = dir.to_str().filter(|id| !dir.exists() && model::hub::is_id(id));
    let folder = match id {
        Some(id) => hub_folder(id, hook)?,
        None => hook_folder(dir, hook)?,
    };
    if let Some(reason) = hook.and_then(|hook| reads_another_hook(&folder, hook)) {
        return Err(CliError::file(&folder, reason));
    }
    let sae = SaeFile::open(&folder)?;
    Ok((folder, sae))
}

/// The folder of an SAE on the hub, fetched if the cache does not have it.
fn hub_folder(id: &str, hook: Option<Hook>) -> Result<PathBuf, CliError> {
    let hook = hook.map(|hook| hook.to_string());
    let fetched = model::hub::sae_folder(id, None, hook.as_deref());
    fetched.map_err(|error| CliError::flag("--sae", format!("there is no folder {id}, and on the hub: {error}")))
}

/// `dir` itself if it is a hook point's folder; else the one in it that has the hook point's name; else the only one.
fn hook_folder(dir: &Path, hook: Option<Hook>) -> Result<PathBuf, CliError> {
    let is_sae = |path: &Path| path.join("cfg.json").is_file();
    if !dir.is_dir() {
        return Err(CliError::file(dir, "there is no such folder for --sae"));
    }
    let named = hook.map(|hook| dir.join(hook.to_string()));
    if let Some(folder) = [Some(dir.to_owned()), named].into_iter().flatten().find(|folder| is_sae(folder)) {
        return Ok(folder);
    }
    let entries = fs::read_dir(dir).map_err(|error| CliError::file(dir, error))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| is_sae(path)).collect();
    match (found.pop(), found.len()) {
        (Some(folder), 0) => Ok(folder),
        (None, _) => {
            Err(CliError::file(dir, "there is no cfg.json here or in a subfolder; expected {hook point}/cfg.json"))
        }
        (Some(_), more) => {
            Err(CliError::file(dir, format!("there are {} hook points; name the folder of one", more + 1)))
        }
    }
}

/// Positions by their kind, with the strings of the text's tokens.
pub fn token_spans<B: Backend>(lmm: &Lmm<B>, prepared: &Prepared) -> Vec<TokenSpan> {
    let strings = |range: &Range<usize>| -> Vec<String> {
        prepared.input_ids[range.clone()].iter().map(|id| lmm.token_text(*id)).collect()
    };
    let spans = prepared.spans.iter().map(|span| {
        let (kind, tokens) = match span.kind {
            SpanKind::Base => (TokenKind::Base, Vec::new()),
            SpanKind::Tile => (TokenKind::Tile, Vec::new()),
            SpanKind::Newline => (TokenKind::Newline, Vec::new()),
            SpanKind::Text => (TokenKind::Text, strings(&span.range)),
        };
        TokenSpan { kind, start: span.range.start as u32, end: span.range.end as u32, tokens }
    });
    spans.collect()
}

/// The id on the hub, or the folder's last component.
fn model_name(model: &str) -> String {
    let folder = Path::new(model).canonicalize().ok();
    let name = folder.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| model.to_owned())
}

fn check_hook(hook: Hook, flag: &'static str, config: &LlavaNextConfig) -> Result<(), CliError> {
    let (what, block, blocks) = match hook {
        Hook::Block(block) => ("language model", block, config.text_config.num_hidden_layers),
        Hook::Vision(block) => ("vision tower", block, config.vision_config.num_hidden_layers),
    };
    if block < blocks {
        return Ok(());
    }
    Err(CliError::flag(flag, format!("block {block} does not exist: the {what} has {blocks}, counted from 0")))
}

/// The picture, and its name for provenance.
fn read_picture(path: &Path) -> Result<(DynamicImage, String), CliError> {
    let size = fs::metadata(path).map_err(|error| CliError::file(path, error))?.len();
    if size > MAX_PICTURE {
        let reason = format!("{size} bytes are too many for a picture; at most {MAX_PICTURE} are read");
        return Err(CliError::file(path, reason));
    }
    let bytes = fs::read(path).map_err(|error| CliError::file(path, error))?;
    let image = decode_picture(&bytes).map_err(|source| CliError::Picture { path: path.to_owned(), source })?;
    Ok((image, picture_name(path, &bytes)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn an_sae_is_found_by_its_folder_its_hook_point_or_alone() {
        let dir = tempfile::tempdir().unwrap();
        let add = |name: &str| {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("cfg.json"), "{}").unwrap();
        };
        let found = |hook: Option<Hook>| hook_folder(dir.path(), hook).map_err(|error| error.to_string());
        assert!(found(None).unwrap_err().contains("no cfg.json"));
        add("model.layers.1");
        assert_eq!(found(Some(Hook::Block(1))).unwrap(), dir.path().join("model.layers.1"));
        for named in [dir.path().to_owned(), dir.path().join("model.layers.1")] {
            let error = open_sae(&named, Some(Hook::Block(7))).unwrap_err().to_string();
            assert!(error.contains("reads model.layers.1, but model.layers.7 is asked for"), "{error}");
        }
        assert_eq!(hook_folder(&dir.path().join("model.layers.1"), None).unwrap(), dir.path().join("model.layers.1"));
        add("model.layers.2");
        assert!(found(None).unwrap_err().contains("2 hook points"));
        assert!(found(Some(Hook::Block(7))).is_err());
        assert_eq!(found(Some(Hook::Block(2))).unwrap(), dir.path().join("model.layers.2"));
    }
}
