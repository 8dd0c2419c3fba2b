//! Checkpoints and SAEs by their Hugging Face name: `owner/name` becomes a folder of the local cache, which has the
//! layout of `huggingface_hub`, so that what Python has already downloaded is not fetched again.
//!
//! A model is taken at one commit: the revision is looked up once, every file is fetched at that commit, and the cache
//! learns that the revision means this commit only when the last file is there.

use crate::Error;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Where models come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSettings {
    /// `https://huggingface.co` or a mirror, without a slash at the end.
    pub endpoint: String,
    /// The folder with `models--owner--name` folders.
    pub cache: PathBuf,
    /// For gated and private models.
    pub token: Option<String>,
    /// Only what the cache has; no requests.
    pub offline: bool,
}

impl HubSettings {
    /// The variables that Python's library reads: `HF_ENDPOINT`, `HF_HUB_CACHE` or `HF_HOME`, `HF_TOKEN` or the file
    /// that `hf auth login` writes, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    /// [`Self::from_env`] with variables and a home folder of its own.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Self {
        let variable = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let home = variable("HF_HOME")
            .map_or_else(|| home.unwrap_or_else(|| PathBuf::from(".")).join(".cache/huggingface"), PathBuf::from);
        let token_file = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = variable("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = variable("HF_HUB_OFFLINE").unwrap_or_default().to_uppercase();
        Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_string(),
            cache: variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            offline: ["1", "ON", "YES", "TRUE"].contains(&offline.trim()),
        }
    }
}

/// Fetched if the model has them; the first ones it must have.
const CHECKPOINT_FILES: [&str; 10] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "added_tokens.json",
];
const REQUIRED_FILES: usize = 2;
const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// The folder of a checkpoint: an existing folder as it is, otherwise the hub model `owner/name` at `revision` (a
/// branch, tag or commit; `main` if `None`), fetched if the cache does not have it.
///
/// # Errors
/// A path that does not exist; a folder with a revision; a model that does not exist, is gated or lacks a file; no
/// connection and nothing in the cache.
pub fn checkpoint_folder(model: &str, revision: Option<&str>) -> Result<PathBuf, Error> {
    checkpoint_folder_with(&HubSettings::from_env(), model, revision)
}

/// [`checkpoint_folder`] with settings of its own.
pub fn checkpoint_folder_with(settings: &HubSettings, model: &str, revision: Option<&str>) -> Result<PathBuf, Error> {
    if let Some(folder) = local_folder(model)? {
        if let Some(revision) = revision {
            return Err(Error::BadInput(format!(
                "revision {revision} of {model}, which is a folder and has none: leave the revision out, or name a \
                 model on the hub"
            )));
        }
        return Ok(folder);
    }
    HubModel::new(settings, model, revision)?.folder(&lacking_of_checkpoint, &fetch_checkpoint)
}

/// The folder with `cfg.json` and `sae.safetensors` of an SAE: in an existing folder, otherwise in the hub model
/// `owner/name`. `hook` (such as `model.layers.24`) chooses among several.
///
/// # Errors
/// As [`checkpoint_folder`]; no SAE of that hook point, or several and no `hook`.
pub fn sae_folder(model: &str, revision: Option<&str>, hook: Option<&str>) -> Result<PathBuf, Error> {
    sae_folder_with(&HubSettings::from_env(), model, revision, hook)
}

/// [`sae_folder`] with settings of its own.
pub fn sae_folder_with(
    settings: &HubSettings,
    model: &str,
    revision: Option<&str>,
    hook: Option<&str>,
) -> Result<PathBuf, Error> {
    let found_in = |folder: &Path| {
        let within = find_sae(&sae_files(folder), hook)?;
        Ok::<_, String>(if within.is_empty() { folder.to_path_buf() } else { folder.join(within) })
    };
    let folder = match local_folder(model)? {
        Some(folder) => folder,
        None => HubModel::new(settings, model, revision)?
            .folder(&|folder: &Path| found_in(folder).map(drop), &|snapshot: &Snapshot<'_>| {
                fetch_sae(snapshot, hook)
            })?,
    };
    found_in(&folder).map_err(|reason| Error::bad_file(&folder, reason))
}

/// An existing folder, or `None` if the text can only be a name on the hub.
fn local_folder(model: &str) -> Result<Option<PathBuf>, Error> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(Some(path.to_path_buf()));
    }
    if !is_id(model) {
        return Err(Error::BadInput(format!(
            "there is no folder {model} (and it is not a model on the hub, which would be owner/name)"
        )));
    }
    Ok(None)
}

/// Whether the text has the form of a name on the hub, `owner/name`.
pub fn is_id(text: &str) -> bool {
    let is_path = ["/", "./", "../", "~"].iter().any(|start| text.starts_with(start));
    !is_path && text.matches('/').count() == 1
}

/// What a checkpoint folder lacks, if anything.
fn lacking_of_checkpoint(folder: &Path) -> Result<(), String> {
    let present = |name: &str| if folder.join(name).exists() { Ok(()) } else { Err(format!("{name} is missing")) };
    CHECKPOINT_FILES[..REQUIRED_FILES].iter().try_for_each(|name| present(name))?;
    let index = folder.join(WEIGHTS_INDEX);
    if !index.exists() {
        return present(WEIGHTS);
    }
    shards(&index).map_err(|error| error.to_string())?.iter().try_for_each(|shard| present(shard))
}

fn fetch_checkpoint(snapshot: &Snapshot<'_>) -> Result<(), Error> {
    for (position, name) in CHECKPOINT_FILES.iter().enumerate() {
        if position < REQUIRED_FILES || snapshot.has(name) {
            snapshot.fetch(name)?;
        }
    }
    // Weights last: a folder that has them has the rest.
    if !snapshot.has(WEIGHTS_INDEX) {
        return snapshot.fetch(WEIGHTS).map(drop);
    }
    let index = snapshot.fetch(WEIGHTS_INDEX)?;
    shards(&index)?.iter().try_for_each(|shard| snapshot.fetch(shard).map(drop))
}

/// File names of an index, sorted.
fn shards(index: &Path) -> Result<BTreeSet<String>, Error> {
    let text = std::fs::read_to_string(index).map_err(|source| Error::io(index, source))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|error| Error::bad_file(index, error))?;
    let names = json["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    let shards: BTreeSet<String> = names.filter_map(|name| name.as_str()).map(str::to_string).collect();
    if shards.is_empty() {
        return Err(Error::bad_file(index, "there is no weight_map that names files"));
    }
    Ok(shards)
}

fn fetch_sae(snapshot: &Snapshot<'_>, hook: Option<&str>) -> Result<(), Error> {
    let folder = find_sae(&snapshot.files, hook)
        .map_err(|reason| Error::BadInput(format!("{}: {reason}", snapshot.model.id)))?;
    let name = |file: &str| if folder.is_empty() { file.to_string() } else { format!("{folder}/{file}") };
    snapshot.fetch(&name("cfg.json"))?;
    snapshot.fetch(&name("sae.safetensors")).map(drop)
}

/// `cfg.json` and `sae.safetensors` in a folder and in the folders directly in it, sorted.
fn sae_files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let folder_name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned() + "/";
    let mut places: Vec<String> = entries.map(folder_name).collect();
    places.sort();
    places.push(String::new());
    let names = places.iter().flat_map(|place| ["cfg.json", "sae.safetensors"].map(|file| format!("{place}{file}")));
    names.filter(|name| folder.join(name).is_file()).collect()
}

/// The folder within `files` that holds the SAE of a hook point; empty if the SAE lies at the root. Only the root and
/// the folders directly in it count.
fn find_sae(files: &[String], hook: Option<&str>) -> Result<String, String> {
    let holds_sae = |folder: &&str| files.iter().any(|file| file.as_str() == format!("{folder}sae.safetensors"));
    let folders = files.iter().filter_map(|file| file.strip_suffix("cfg.json"));
    let at_most_one_deep = |folder: &&str| folder.is_empty() || folder.find('/') == Some(folder.len() - 1);
    let folders: Vec<&str> = folders.filter(at_most_one_deep).filter(holds_sae).collect();
    let name = |folder: &str| folder.trim_end_matches('/').to_string();
    let all = || folders.iter().map(|folder| name(folder)).collect::<Vec<_>>().join(", ");
    let wanted: Vec<&str> = match hook {
        // At the root there is no name to compare.
        Some(hook) if folders != [""] => {
            let is_hook = |folder: &&str| hook_name(folder.trim_end_matches('/')) == hook_name(hook);
            folders.iter().copied().filter(is_hook).collect()
        }
        _ => folders.clone(),
    };
    match (wanted.as_slice(), hook) {
        ([folder], _) => Ok(name(folder)),
        ([], Some(hook)) if !folders.is_empty() => Err(format!("there is no SAE of {hook}; there are {}", all())),
        ([], _) => Err("there is no SAE: no folder holds cfg.json and sae.safetensors".into()),
        _ => Err(format!("there are SAEs of several hook points ({}); name one", all())),
    }
}

/// `24`, `layers.24`, `model.layers.24` and `language_model.model.layers.24` are one hook point.
fn hook_name(name: &str) -> String {
    let name = name.strip_prefix("language_model.").unwrap_or(name);
    let name = name.strip_prefix("model.").unwrap_or(name);
    if name.parse::<usize>().is_ok() { format!("layers.{name}") } else { name.to_string() }
}

/// A model on the hub at a revision, and its place in the cache.
struct HubModel<'a> {
    settings: &'a HubSettings,
    id: &'a str,
    revision: &'a str,
}

impl<'a> HubModel<'a> {
    fn new(settings: &'a HubSettings, id: &'a str, revision: Option<&'a str>) -> Result<Self, Error> {
        let revision = revision.unwrap_or("main");
        let plain = |text: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            text.chars().all(known) && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
        };
        if !plain(id) {
            return Err(Error::BadInput(format!("{id:?} is neither a folder nor a model's name (owner/name)")));
        }
        if !plain(revision) {
            return Err(Error::BadInput(format!("{revision:?} is not a branch, a tag or a commit of {id}")));
        }
        Ok(Self { settings, id, revision })
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.to_string(), RepoType::Model, revision.to_string())
    }

    /// A full commit id means the same for ever.
    fn is_commit(&self) -> bool {
        self.revision.len() == 40 && self.revision.chars().all(|c| c.is_ascii_hexdigit())
    }

    /// The folder of the revision. `check` says what a folder lacks; `fetch` brings it.
    fn folder(
        &self,
        check: &dyn Fn(&Path) -> Result<(), String>,
        fetch: &dyn Fn(&Snapshot<'_>) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let cached = || self.cached_folder(check);
        if self.settings.offline {
            return cached().map_err(|reason| {
                Error::BadInput(format!(
                    "{reason}; HF_HUB_OFFLINE is set, so nothing is fetched: unset it, or give a folder"
                ))
            });
        }
        if self.is_commit()
            && let Ok(folder) = cached()
        {
            return Ok(folder);
        }
        let snapshot = match self.snapshot() {
            Ok(snapshot) => snapshot,
            // While the hub cannot be reached or is out of order, what the cache has is better than nothing.
            Err(error) => match cached() {
                Ok(folder) if status(&error).is_none_or(|code| code >= 500) => return Ok(folder),
                _ => return Err(self.failed("the list of files", &error)),
            },
        };
        fetch(&snapshot)?;
        snapshot.keep()
    }

    /// What the cache has for the revision.
    fn cached_folder(&self, check: &dyn Fn(&Path) -> Result<(), String>) -> Result<PathBuf, String> {
        let cache = &self.settings.cache;
        let model = cache.join(self.repo(self.revision).folder_name());
        let commit = std::fs::read_to_string(model.join("refs").join(self.revision));
        let commit = commit.map_or_else(|_| self.revision.to_string(), |commit| commit.trim().to_string());
        let folder = model.join("snapshots").join(commit);
        if !folder.is_dir() {
            return Err(format!("the cache {} has no {} at {}", cache.display(), self.id, self.revision));
        }
        check(&folder).map_err(|reason| format!("{}: {reason}", folder.display()))?;
        Ok(folder)
    }

    fn api(&self) -> Result<Api, ApiError> {
        ApiBuilder::from_cache(Cache::new(self.settings.cache.clone()))
            .with_endpoint(self.settings.endpoint.clone())
            .with_token(self.settings.token.clone())
            .with_progress(std::io::stderr().is_terminal())
            .build()
    }

    /// Asks the hub which commit the revision is, and which files it has.
    fn snapshot(&self) -> Result<Snapshot<'_>, ApiError> {
        let api = self.api()?;
        let info = api.repo(self.repo(self.revision)).info()?;
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(ApiError::InvalidHeader("x-repo-commit"));
        }
        let folder = Cache::new(self.settings.cache.clone()).repo(self.repo(&info.sha)).pointer_path(&info.sha);
        let files = info.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok(Snapshot { model: self, api, commit: info.sha, files, folder })
    }

    /// What a failed request means.
    fn failed(&self, what: &str, error: &ApiError) -> Error {
        let (id, revision, endpoint) = (self.id, self.revision, &self.settings.endpoint);
        Error::BadInput(match (status(error), error) {
            (Some(code @ (401 | 403)), _) => {
                let token = if self.settings.token.is_some() { "the token given" } else { "no token was given" };
                format!(
                    "{endpoint} refused {what} of {id} ({code}; {token}): it does not exist, or it is gated or private; \
                     accept its licence at {endpoint}/{id} and set HF_TOKEN to a token that may read it"
                )
            }
            (Some(404), _) => format!("{endpoint} has no {id} at revision {revision} ({what}: 404)"),
            (Some(code), _) => format!("{endpoint} answered {code} for {what} of {id}; try again later"),
            (None, ApiError::LockAcquisition(lock)) => {
                format!("another process is fetching {what} of {id} ({}); wait for it", lock.display())
            }
            (None, ApiError::IoError(_) | ApiError::RequestError(_)) => format!(
                "fetching {what} of {id} from {endpoint} failed: {error}; run again to go on where it stopped, or give \
                 a folder"
            ),
            (None, _) => format!("{endpoint} answered for {what} of {id} in a way that is not the hub's: {error}"),
        })
    }
}

/// The status of a refused request; `None` for other failures.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        _ => None,
    }
}

/// A model at one commit.
struct Snapshot<'a> {
    model: &'a HubModel<'a>,
    api: Api,
    commit: String,
    /// Names of all files that the hub has.
    files: Vec<String>,
    /// Where the cache keeps them.
    folder: PathBuf,
}

/// Whether a relative path has no way out of its folder.
fn stays_within(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Attempts at one file; each goes on where the last one stopped.
const ATTEMPTS: u32 = 3;

impl Snapshot<'_> {
    fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file == name)
    }

    /// Brings one file into the folder, unless it is there.
    fn fetch(&self, name: &str) -> Result<PathBuf, Error> {
        // Names come from the hub: they must stay within the folder.
        if !stays_within(name) || !self.has(name) {
            let (id, revision) = (self.model.id, self.model.revision);
            let only = if name == WEIGHTS { " (weights are read from safetensors files only)" } else { "" };
            return Err(Error::BadInput(format!("{id} at revision {revision} has no {name}{only}")));
        }
        let path = self.folder.join(name);
        if path.exists() {
            return Ok(path);
        }
        let mut attempt = 1;
        loop {
            match self.download(name, &path) {
                Ok(()) => return Ok(path),
                // A refusal does not change by asking again.
                Err(error) if attempt == ATTEMPTS || status(&error).is_some_and(|code| code < 500) => {
                    return Err(self.model.failed(name, &error));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(200) * attempt),
            }
            attempt += 1;
        }
    }

    /// One attempt. What has arrived stays as `blobs/….part`; only a whole file appears in the folder.
    fn download(&self, name: &str, path: &Path) -> Result<(), ApiError> {
        let repo = self.model.repo(&self.commit);
        let remote = self.api.repo(repo.clone());
        let metadata = self.api.metadata(&remote.url(name))?;
        let etag = metadata.etag();
        if etag.is_empty() || !stays_within(etag) {
            return Err(ApiError::InvalidHeader("etag"));
        }
        let blob = Cache::new(self.model.settings.cache.clone()).repo(repo).blob_path(etag);
        let length = |file: &Path| std::fs::metadata(file).map(|metadata| metadata.len()).ok();
        let size = metadata.size() as u64;
        // hf-hub asks for what follows the part; the hub refuses to send nothing.
        let part = blob.with_extension("part");
        if length(&part).is_some_and(|length| length >= size) {
            std::fs::remove_file(&part)?;
        }
        // A link that leads nowhere would be in the way.
        if path.is_symlink() {
            std::fs::remove_file(path)?;
        }
        remote.download(name)?;
        // hf-hub does not count: a server that ignores `Range` would leave a file with its beginning twice. Texts may
        // be sent compressed, with sizes that mean something else.
        if name.ends_with(".safetensors") && length(path) != Some(size) {
            std::fs::remove_file(path)?;
            std::fs::remove_file(&blob).or_else(|error| if blob.exists() { Err(error) } else { Ok(()) })?;
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// Everything is there: from now on the cache knows the revision.
    fn keep(self) -> Result<PathBuf, Error> {
        if !self.model.is_commit() {
            let cache = &self.model.settings.cache;
            let named = Cache::new(cache.clone()).repo(self.model.repo(self.model.revision));
            named.create_ref(&self.commit).map_err(|source| Error::io(cache, source))?;
        }
        Ok(self.folder)
    }
}
