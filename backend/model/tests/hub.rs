//! The hub client against a server on this machine that answers as the hub does, and refuses what the hub refuses.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

use model::hub::{HubSettings, checkpoint_folder_with, sae_folder_with};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OLDER: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// Models by name.
type Models = BTreeMap<&'static str, Model>;

#[derive(Clone, Default)]
struct Model {
    /// Commits by revision.
    revisions: BTreeMap<&'static str, &'static str>,
    /// Contents by commit and file.
    files: BTreeMap<(&'static str, &'static str), Vec<u8>>,
    /// Asked for, if the model is gated.
    token: Option<&'static str>,
}

impl Model {
    fn new(files: &[(&'static str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, bytes)| ((COMMIT, *name), bytes.to_vec())).collect();
        Self { revisions: [("main", COMMIT)].into(), files, token: None }
    }
}

#[derive(Default)]
struct State {
    models: Mutex<Models>,
    /// Requested paths, in order.
    log: Mutex<Vec<String>>,
    /// The connection ends after half of this file's bytes.
    cut: Mutex<Option<&'static str>>,
    /// Every file is sent from its beginning, whatever was asked for.
    deaf: AtomicBool,
    stopped: AtomicBool,
}

struct Server {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(models: impl Into<Models>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { models: Mutex::new(models.into()), ..State::default() });
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away is no failure of the server.
                let _ = answer(&shared, &stream.unwrap());
            }
        });
        Self { address, state, thread: Some(thread) }
    }

    fn stop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = TcpStream::connect(self.address);
            thread.join().unwrap();
        }
    }

    fn settings(&self, cache: &Path) -> HubSettings {
        HubSettings {
            endpoint: format!("http://{}", self.address),
            cache: cache.to_path_buf(),
            token: None,
            offline: false,
        }
    }

    /// Paths requested since the last call.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.log.lock().unwrap())
    }

    fn cut(&self, file: Option<&'static str>) {
        *self.state.cut.lock().unwrap() = file;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One request, one answer, and the connection is closed.
fn answer(state: &State, stream: &TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if !path.is_empty() {
        state.log.lock().unwrap().push(path.to_string());
    }
    let (status, head, body) = match method {
        "GET" | "HEAD" => respond(state, path, &headers),
        _ => refuse("405 Method Not Allowed"),
    };
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{head}\r\n", body.len())?;
    if method == "GET" {
        let cut = state.cut.lock().unwrap().is_some_and(|file| path.ends_with(file)) && body.len() > 1;
        stream.write_all(if cut { &body[..body.len() / 2] } else { &body })?;
    }
    stream.flush()
}

type Response = (&'static str, String, Vec<u8>);

fn refuse(status: &'static str) -> Response {
    (status, String::new(), b"{\"error\":\"refused\"}".to_vec())
}

fn respond(state: &State, path: &str, headers: &BTreeMap<String, String>) -> Response {
    let models = state.models.lock().unwrap();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (owner, name, revision, file) = match parts.as_slice() {
        ["api", "models", owner, name, "revision", revision] => (owner, name, revision, None),
        [owner, name, "resolve", revision, file @ ..] => (owner, name, revision, Some(file.join("/"))),
        _ => return refuse("404 Not Found"),
    };
    let Some(model) = models.get(format!("{owner}/{name}").as_str()) else {
        return refuse("404 Not Found");
    };
    if let Some(token) = model.token
        && headers.get("authorization") != Some(&format!("Bearer {token}"))
    {
        return refuse("401 Unauthorized");
    }
    let revision = revision.replace("%2F", "/");
    let known = model.revisions.values().find(|commit| **commit == revision);
    let Some(&commit) = model.revisions.get(revision.as_str()).or(known) else {
        return refuse("404 Not Found");
    };
    let Some(file) = file else {
        let names = model.files.keys().filter(|(at, _)| *at == commit);
        let siblings: Vec<_> = names.map(|(_, name)| serde_json::json!({ "rfilename": name })).collect();
        let info = serde_json::json!({ "id": "ignored", "sha": commit, "siblings": siblings });
        return ("200 OK", "Content-Type: application/json\r\n".into(), info.to_string().into_bytes());
    };
    let Some((_, bytes)) = model.files.iter().find(|((at, name), _)| *at == commit && *name == file) else {
        return refuse("404 Not Found");
    };
    send_range(state, commit, &file, bytes, headers.get("range").map(String::as_str))
}

/// A file or a range of it. Large files have a second etag, which names their content; texts a weak one.
fn send_range(state: &State, commit: &str, file: &str, bytes: &[u8], range: Option<&str>) -> Response {
    // FNV-1a.
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let mut head = format!("X-Repo-Commit: {commit}\r\nAccept-Ranges: bytes\r\n");
    if file.ends_with(".safetensors") {
        head += &format!("ETag: \"elsewhere-{hash:016x}\"\r\nX-Linked-ETag: \"{hash:016x}\"\r\n");
    } else {
        head += &format!("ETag: W/\"{hash:016x}\"\r\n");
    }
    let total = bytes.len();
    let Some((first, last)) = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
        return ("200 OK", head, bytes.to_vec());
    };
    let first = first.parse::<usize>().unwrap();
    let last = last.parse::<usize>().unwrap_or(total - 1).min(total - 1);
    if first > last {
        return ("416 Range Not Satisfiable", format!("Content-Range: bytes */{total}\r\n"), Vec::new());
    }
    if state.deaf.load(Ordering::SeqCst) && last != first {
        return ("200 OK", head, bytes.to_vec());
    }
    head += &format!("Content-Range: bytes {first}-{last}/{total}\r\n");
    ("206 Partial Content", head, bytes[first..=last].to_vec())
}

const SMALL: [(&str, &[u8]); 5] = [
    ("config.json", b"{\"model_type\": \"llava_next\"}"),
    ("tokenizer.json", b"{\"version\": \"1.0\"}"),
    ("tokenizer_config.json", b"{}"),
    ("chat_template.json", b"{\"chat_template\": \"{{ bos_token }}\"}"),
    ("README.md", b"not a part of the model"),
];

/// The small files and others.
fn with(others: &[(&'static str, &'static [u8])]) -> Model {
    Model::new(&[SMALL.as_slice(), others].concat())
}

fn whole() -> Model {
    with(&[("model.safetensors", b"all the weights")])
}

fn sharded() -> Model {
    with(&[
        (
            "model.safetensors.index.json",
            br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#,
        ),
        ("model-00001-of-00002.safetensors", b"the first shard of the weights"),
        ("model-00002-of-00002.safetensors", b"the second shard of the weights"),
        ("pytorch_model.bin", b"never read"),
    ])
}

/// Sorted names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn error_of(result: Result<PathBuf, model::Error>) -> String {
    let error = result.unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn a_model_is_fetched_once() {
    let mut server = Server::start([("org/tiny", whole())]);
    let cache = tempfile::tempdir().unwrap();
    let mut settings = server.settings(cache.path());
    let folder = checkpoint_folder_with(&settings, "org/tiny", None).unwrap();
    assert_eq!(folder, cache.path().join("models--org--tiny/snapshots").join(COMMIT));
    let expected =
        ["chat_template.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&folder), expected);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"all the weights");
    server.requests();

    // Once more: one request, for what `main` is now.
    assert_eq!(checkpoint_folder_with(&settings, "org/tiny", None).unwrap(), folder);
    assert_eq!(server.requests(), ["/api/models/org/tiny/revision/main"]);
    // A commit is the same for ever.
    assert_eq!(checkpoint_folder_with(&settings, "org/tiny", Some(COMMIT)).unwrap(), folder);
    assert_eq!(server.requests(), [""; 0]);

    server.stop();
    // Without a connection the cache is used,
    assert_eq!(checkpoint_folder_with(&settings, "org/tiny", None).unwrap(), folder);
    // and offline nothing else is tried.
    settings.offline = true;
    assert_eq!(checkpoint_folder_with(&settings, "org/tiny", None).unwrap(), folder);
    let error = error_of(checkpoint_folder_with(&settings, "org/other", None));
    assert!(error.contains("has no org/other at main") && error.contains("HF_HUB_OFFLINE"), "{error}");
    settings.offline = false;
    let error = error_of(checkpoint_folder_with(&settings, "org/other", None));
    assert!(error.contains("org/other") && error.contains(&settings.endpoint), "{error}");
}

#[test]
fn a_revision_is_one_commit() {
    let mut model = whole();
    model.revisions.insert("refs/pr/1", OLDER);
    for (name, bytes) in SMALL {
        model.files.insert((OLDER, name), bytes.to_vec());
    }
    model.files.insert((OLDER, "model.safetensors"), b"older weights".to_vec());
    let server = Server::start([("org/tiny", model)]);
    let cache = tempfile::tempdir().unwrap();
    let mut settings = server.settings(cache.path());
    let older = checkpoint_folder_with(&settings, "org/tiny", Some("refs/pr/1")).unwrap();
    assert!(older.ends_with(OLDER));
    assert_eq!(std::fs::read(older.join("model.safetensors")).unwrap(), b"older weights");
    let mut resolved = server.requests().into_iter().filter(|path| path.contains("/resolve/"));
    assert!(resolved.all(|path| path.contains(OLDER)));

    settings.offline = true;
    assert_eq!(checkpoint_folder_with(&settings, "org/tiny", Some("refs/pr/1")).unwrap(), older);
    assert!(checkpoint_folder_with(&settings, "org/tiny", None).is_err());
    settings.offline = false;
    let error = error_of(checkpoint_folder_with(&settings, "org/tiny", Some("v9")));
    assert!(error.contains("no org/tiny at revision v9"), "{error}");
    let error = error_of(checkpoint_folder_with(&settings, "org/tiny", Some("../../x")));
    assert!(error.contains("is not a branch"), "{error}");
}

#[test]
fn a_gated_model_wants_a_token() {
    let server = Server::start([("org/gated", Model { token: Some("hf_secret"), ..whole() })]);
    let cache = tempfile::tempdir().unwrap();
    let mut settings = server.settings(cache.path());
    let error = error_of(checkpoint_folder_with(&settings, "org/gated", None));
    for part in ["no token was given", "accept its licence", "/org/gated", "HF_TOKEN"] {
        assert!(error.contains(part), "{error}");
    }
    settings.token = Some("wrong".into());
    let error = error_of(checkpoint_folder_with(&settings, "org/gated", None));
    assert!(error.contains("the token given") && !error.contains("wrong"), "{error}");
    settings.token = Some("hf_secret".into());
    assert!(checkpoint_folder_with(&settings, "org/gated", None).is_ok());
}

#[test]
fn what_is_not_there_is_named() {
    let mut without_tokenizer = whole();
    without_tokenizer.files.remove(&(COMMIT, "tokenizer.json"));
    let pickled = with(&[("pytorch_model.bin", b"never read")]);
    let server = Server::start([("org/no-tokenizer", without_tokenizer), ("org/pickled", pickled)]);
    let cache = tempfile::tempdir().unwrap();
    let settings = server.settings(cache.path());
    let error = error_of(checkpoint_folder_with(&settings, "org/absent", None));
    assert!(error.contains("has no org/absent at revision main"), "{error}");
    let error = error_of(checkpoint_folder_with(&settings, "org/no-tokenizer", None));
    assert!(error.contains("org/no-tokenizer at revision main has no tokenizer.json"), "{error}");
    let error = error_of(checkpoint_folder_with(&settings, "org/pickled", None));
    assert!(error.contains("has no model.safetensors") && error.contains("safetensors files only"), "{error}");
}

#[test]
fn folders_are_not_asked_of_the_hub() {
    let server = Server::start(Models::new());
    let cache = tempfile::tempdir().unwrap();
    let settings = server.settings(cache.path());
    let folder = cache.path().to_str().unwrap();
    assert_eq!(checkpoint_folder_with(&settings, folder, None).unwrap(), cache.path());
    for absent in ["/nowhere/at-all", "./nowhere", "../nowhere/x", "~/nowhere", "nowhere", "a/b/c"] {
        let error = error_of(checkpoint_folder_with(&settings, absent, None));
        assert!(error.contains(&format!("there is no folder {absent}")), "{error}");
    }
    let error = error_of(checkpoint_folder_with(&settings, folder, Some("main")));
    assert!(error.contains("revision main") && error.contains("leave the revision out"), "{error}");
    assert_eq!(server.requests(), [""; 0]);
}

#[test]
fn settings_are_those_of_pythons_library() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_path_buf();
    let read = |variables: &[(&str, &str)]| {
        let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        HubSettings::from_variables(get, Some(home.clone()))
    };
    let standard = home.join(".cache/huggingface");
    let expected = HubSettings {
        endpoint: "https://huggingface.co".into(),
        cache: standard.join("hub"),
        token: None,
        offline: false,
    };
    assert_eq!(read(&[]), expected);
    // Empty is as good as absent.
    assert_eq!(read(&[("HF_HOME", ""), ("HF_TOKEN", " "), ("HF_HUB_OFFLINE", ""), ("HF_ENDPOINT", "")]), expected);
    assert_eq!(HubSettings::from_variables(|_| None, None).cache, Path::new("./.cache/huggingface/hub"));

    assert_eq!(read(&[("HF_HOME", "/data/hf")]).cache, Path::new("/data/hf/hub"));
    assert_eq!(read(&[("HF_HOME", "/data/hf"), ("HF_HUB_CACHE", "/data/hub")]).cache, Path::new("/data/hub"));
    assert_eq!(read(&[("HF_ENDPOINT", "https://mirror.example/ ")]).endpoint, "https://mirror.example");
    for (value, offline) in [("1", true), ("true", true), ("Yes", true), ("ON", true), ("0", false), ("off", false)] {
        assert_eq!(read(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
    }

    // `hf auth login` leaves a file.
    std::fs::create_dir_all(&standard).unwrap();
    std::fs::write(standard.join("token"), "hf_of_the_file\n").unwrap();
    std::fs::write(home.join("elsewhere"), "hf_elsewhere").unwrap();
    let elsewhere = home.join("elsewhere").to_str().unwrap().to_string();
    let token = |variables: &[(&str, &str)]| read(variables).token.unwrap_or_default();
    assert_eq!(token(&[]), "hf_of_the_file");
    assert_eq!(token(&[("HF_TOKEN_PATH", elsewhere.as_str())]), "hf_elsewhere");
    assert_eq!(token(&[("HF_TOKEN", " hf_given\n"), ("HF_TOKEN_PATH", elsewhere.as_str())]), "hf_given");
}

#[test]
fn every_shard_is_fetched() {
    let server = Server::start([("org/sharded", sharded())]);
    let cache = tempfile::tempdir().unwrap();
    let folder = checkpoint_folder_with(&server.settings(cache.path()), "org/sharded", None).unwrap();
    assert_eq!(
        std::fs::read(folder.join("model-00002-of-00002.safetensors")).unwrap(),
        b"the second shard of the weights"
    );
    assert!(folder.join("model-00001-of-00002.safetensors").exists());
    assert!(!folder.join("pytorch_model.bin").exists());

    let mut escaping = sharded();
    let index = br#"{"weight_map": {"a": "../../../escaped.safetensors"}}"#;
    escaping.files.insert((COMMIT, "model.safetensors.index.json"), index.to_vec());
    let server = Server::start([("org/escaping", escaping)]);
    let error = error_of(checkpoint_folder_with(&server.settings(cache.path()), "org/escaping", None));
    assert!(error.contains("has no ../../../escaped.safetensors"), "{error}");
}

#[test]
fn a_broken_download_leaves_no_model_and_goes_on_later() {
    const SECOND: &str = "model-00002-of-00002.safetensors";
    let server = Server::start([("org/sharded", sharded())]);
    let cache = tempfile::tempdir().unwrap();
    let settings = server.settings(cache.path());
    let offline = HubSettings { offline: true, ..settings.clone() };
    server.cut(Some(SECOND));
    let error = error_of(checkpoint_folder_with(&settings, "org/sharded", None));
    assert!(error.contains(SECOND) && error.contains("run again"), "{error}");
    let model = cache.path().join("models--org--sharded");
    let folder = model.join("snapshots").join(COMMIT);
    assert!(!folder.join(SECOND).exists() && !folder.join(SECOND).is_symlink());
    assert!(!model.join("refs/main").exists());
    assert!(checkpoint_folder_with(&offline, "org/sharded", None).is_err());
    let error = error_of(checkpoint_folder_with(&offline, "org/sharded", Some(COMMIT)));
    assert!(error.contains(&format!("{SECOND} is missing")), "{error}");

    server.cut(None);
    server.requests();
    assert_eq!(checkpoint_folder_with(&settings, "org/sharded", None).unwrap(), folder);
    assert_eq!(std::fs::read(folder.join(SECOND)).unwrap(), b"the second shard of the weights");
    // Only what was missing was asked for again.
    let files: Vec<String> = server.requests().into_iter().filter(|path| path.contains("/resolve/")).collect();
    assert!(!files.is_empty() && files.iter().all(|path| path.ends_with(SECOND)), "{files:?}");
    assert!(names(&model.join("blobs")).iter().all(|name| !name.ends_with(".part")));
    assert_eq!(checkpoint_folder_with(&offline, "org/sharded", None).unwrap(), folder);
}

#[test]
fn a_file_of_the_wrong_length_is_not_kept() {
    let server = Server::start([("org/tiny", whole())]);
    let cache = tempfile::tempdir().unwrap();
    let settings = server.settings(cache.path());
    server.cut(Some("model.safetensors"));
    assert!(checkpoint_folder_with(&settings, "org/tiny", None).is_err());
    // Asked to go on, this server begins again; the first attempt is thrown away, and the second is whole.
    server.cut(None);
    server.state.deaf.store(true, Ordering::SeqCst);
    let folder = checkpoint_folder_with(&settings, "org/tiny", None).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"all the weights");
}

#[test]
fn an_sae_is_found_by_its_hook_point() {
    let saes = Model::new(&[
        ("README.md", b"about"),
        ("model.layers.12/cfg.json", b"{\"k\": 1}"),
        ("model.layers.12/sae.safetensors", b"weights of 12"),
        ("model.layers.24/cfg.json", b"{\"k\": 2}"),
        ("model.layers.24/sae.safetensors", b"weights of 24"),
        ("logs/cfg.json", b"no SAE beside it"),
    ]);
    let single = Model::new(&[("cfg.json", b"{\"k\": 3}"), ("sae.safetensors", b"weights at the root")]);
    let mut server = Server::start([("org/saes", saes), ("org/single", single)]);
    let cache = tempfile::tempdir().unwrap();
    let mut settings = server.settings(cache.path());
    let error = error_of(sae_folder_with(&settings, "org/saes", None, None));
    assert!(error.contains("model.layers.12, model.layers.24") && error.contains("name one"), "{error}");
    let error = error_of(sae_folder_with(&settings, "org/saes", None, Some("layers.7")));
    assert!(error.contains("no SAE of layers.7"), "{error}");
    let folder = sae_folder_with(&settings, "org/saes", None, Some("model.layers.24")).unwrap();
    assert!(folder.ends_with("model.layers.24"));
    assert_eq!(names(&folder), ["cfg.json", "sae.safetensors"]);
    assert_eq!(std::fs::read(folder.join("sae.safetensors")).unwrap(), b"weights of 24");
    let root = sae_folder_with(&settings, "org/single", None, Some("layers.24")).unwrap();
    assert_eq!(std::fs::read(root.join("sae.safetensors")).unwrap(), b"weights at the root");

    server.stop();
    settings.offline = true;
    assert_eq!(sae_folder_with(&settings, "org/saes", None, Some("24")).unwrap(), folder);
    assert!(sae_folder_with(&settings, "org/saes", None, Some("12")).is_err());
    // Folders: of the hook point itself, or of what holds it.
    let inside = folder.to_str().unwrap();
    assert_eq!(sae_folder_with(&settings, inside, None, Some("layers.24")).unwrap(), folder);
    let around = folder.parent().unwrap().to_str().unwrap();
    assert_eq!(sae_folder_with(&settings, around, None, None).unwrap(), folder);
}
