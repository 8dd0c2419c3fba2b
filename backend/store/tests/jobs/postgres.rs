//! A Postgres of the tests' own: in a temporary folder, on a socket, gone at the end of the test.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use store::jobs::Queue;
use tempfile::TempDir;

/// Users that a root process may become for `initdb`, which refuses root.
const USERS: [&str; 2] = ["postgres", "nobody"];

pub struct Server {
    bin: PathBuf,
    /// `data/` and the socket.
    folder: TempDir,
    user: Option<&'static str>,
}

/// Starts a server.
///
/// # Panics
/// When Postgres is not installed, or does not start: neither is a reason to pass.
pub fn start() -> Server {
    let bin = installed().expect("no initdb in PATH or /usr/lib/postgresql; `cargo xtask setup` installs Postgres");
    let folder = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
    let user = is_root().then(|| USERS.into_iter().find(|user| exists(user)).expect("no user that initdb accepts"));
    let server = Server { bin, folder, user };
    if let Some(user) = user {
        checked(Command::new("chown").arg(user).arg(server.folder.path()));
    }
    let data = server.data();
    checked(
        server
            .command("initdb")
            .args(["--auth=trust", "--username=scope", "--encoding=UTF8", "--no-sync", "-D"])
            .arg(&data),
    );
    let options =
        format!("-c listen_addresses='' -c fsync=off -c unix_socket_directories='{}'", server.folder.path().display());
    let log = server.folder.path().join("log");
    checked(
        server.command("pg_ctl").args(["start", "-w", "-t", "60", "-o", &options, "-l"]).arg(log).arg("-D").arg(&data),
    );
    server
}

impl Server {
    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A program of Postgres, as a user that it accepts.
    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = match self.user {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", user, "--regid"]).arg(group_of(user)).arg("--clear-groups").arg(program);
                command
            }
            None => Command::new(program),
        };
        command.current_dir(self.folder.path());
        command
    }

    /// A queue in a new database.
    pub async fn queue(&self, database: &str) -> Queue {
        let folder = self.folder.path();
        checked(self.command("createdb").arg("-h").arg(folder).args(["-U", "scope", database]));
        Queue::open(&format!("postgres://scope@localhost/{database}?host={}", folder.display())).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.data();
        let stopped = quietly(self.command("pg_ctl").args(["stop", "-m", "immediate", "-D"]).arg(data));
        if !stopped.is_ok_and(|output| output.status.success()) {
            eprintln!("Postgres in {} did not stop", self.folder.path().display());
        }
    }
}

/// The folder of `initdb` and `pg_ctl`: the newest version's.
fn installed() -> Option<PathBuf> {
    let in_path =
        std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    versions.sort();
    versions.reverse();
    versions.into_iter().chain(in_path).find(|bin| bin.join("initdb").is_file() && bin.join("pg_ctl").is_file())
}

fn is_root() -> bool {
    let id = quietly(Command::new("id").arg("-u")).unwrap();
    String::from_utf8_lossy(&id.stdout).trim() == "0"
}

fn exists(user: &str) -> bool {
    quietly(Command::new("id").arg(user)).is_ok_and(|output| output.status.success())
}

fn group_of(user: &str) -> String {
    let id = quietly(Command::new("id").args(["-g", user])).unwrap();
    String::from_utf8_lossy(&id.stdout).trim().to_owned()
}

/// Runs to the end. The server inherits `pg_ctl`'s outputs: a pipe would never close, a file does not care.
fn quietly(command: &mut Command) -> std::io::Result<Output> {
    let folder = tempfile::tempdir()?;
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let status = command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?).status()?;
    Ok(Output { status, stdout: read(&out)?, stderr: read(&err)? })
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    fs::read(path)
}

fn checked(command: &mut Command) {
    let output = quietly(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}\n{}{}", said(&output.stdout), said(&output.stderr));
}
