//! `lmm-scope serve` on a free port. It serves the committed demo, or what `LMM_SCOPE_ARTIFACTS` names.

use crate::{free_port, http, root, target};
use anyhow::{Context, bail, ensure};
use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, UNIX_EPOCH},
};
use tempfile::TempDir;

/// Loading the model and filling an empty database on a busy machine.
const START: Duration = Duration::from_secs(120);

/// A running server; ends with this value.
pub struct Server {
    pub address: SocketAddr,
    child: Child,
    folder: TempDir,
}

impl Server {
    /// Starts the server and waits until it answers.
    pub fn start() -> anyhow::Result<Self> {
        let program = program()?;
        let database = database(&program)?;
        Self::start_on(&program, &database, tempfile::tempdir()?)
    }

    /// A server whose queue is empty: on a database that nobody else has, which it fills first.
    pub fn start_alone() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        Self::start_on(&program()?, &folder.path().join("scope.db"), folder)
    }

    fn start_on(program: &Path, database: &Path, folder: TempDir) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let log = File::create(folder.path().join("log"))?;
        let child = Command::new(program)
            .arg("serve")
            .args(["--listen", &address.to_string()])
            .args(["--database", &format!("sqlite://{}", database.display())])
            .arg("--site")
            .arg(target()?.join("site"))
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self { address, child, folder };
        server.wait()?;
        Ok(server)
    }

    /// Address of a page.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What the server has printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < START {
            if http::get(self.address, "/healthz").is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status} before it answered:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("the server did not answer for {} s:\n{}", START.as_secs(), self.log())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// One database for every server of the same binary: each journey is its own process, and only the first one is to wait
/// for the import. Artefacts that changed are imported again by the server itself.
fn database(program: &Path) -> anyhow::Result<PathBuf> {
    let built = program.metadata()?.modified()?.duration_since(UNIX_EPOCH)?.as_millis();
    let (folder, name) = (target()?.join("journeys"), format!("scope-{built}.db"));
    fs::create_dir_all(&folder)?;
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(folder.join(name))
}

/// The binary under test: `LMM_SCOPE_BIN`, or the one beside this test in the target folder.
pub fn program() -> anyhow::Result<PathBuf> {
    let program = match std::env::var_os("LMM_SCOPE_BIN") {
        Some(program) => PathBuf::from(program),
        None => target()?.join("debug/lmm-scope"),
    };
    ensure!(program.is_file(), "there is no {}: build it with `cargo build --workspace --bins`", program.display());
    Ok(program)
}
