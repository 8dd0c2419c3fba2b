//! `explain`, `work` and `queue` as processes: on the demo's features, with workers killed at random.

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use store::{
    Store,
    jobs::{JobFilter, Queue},
};
use tempfile::TempDir;

const FEATURES: u32 = 1_000;
const WORKERS: usize = 3;
/// So that workers are killed over their work, not after it: 1,000 explanations take at least 12 seconds.
const PER_MINUTE: u32 = 5_000;
const SEED: u64 = 5;

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn artifacts() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../public/pocket")
    }

    fn database(&self) -> String {
        format!("sqlite://{}", self.0.path().join("scope.db").display())
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lmm-scope"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LMM_SCOPE_") || name == "RUST_LOG" {
                command.env_remove(&name);
            }
        }
        command.args(line.split_whitespace()).arg("--database").arg(self.database());
        command.arg("--artifacts").arg(Self::artifacts()).current_dir(self.0.path());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn json(&self, line: &str) -> Value {
        let output = self.run(&format!("{line} --json"));
        assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn worker(&self) -> Child {
        let mut command = self.command("work --at-once 2 --lease-secs 1");
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

#[test]
fn a_thousand_features_are_explained_once_by_workers_that_are_killed() {
    let place = Place::new();
    let asked = place.json(&format!("explain --features 0-{}", FEATURES - 1));
    assert_eq!((&asked["new"], &asked["known"]), (&FEATURES.into(), &0.into()), "{asked}");
    let again = place.json("explain --features 0-9,5");
    assert_eq!((&again["new"], &again["known"]), (&0.into(), &10.into()), "{again}");
    place.json(&format!("queue limit --max-running 16 --per-minute {PER_MINUTE}"));

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let queue = runtime.block_on(async { Queue::of_store(&Store::open(&place.database()).await.unwrap()) });
    let left = || runtime.block_on(queue.list_endpoints()).unwrap().iter().map(|e| e.queued + e.running).sum::<u64>();
    let done = || runtime.block_on(queue.list_endpoints()).unwrap().iter().map(|e| e.done).sum::<u64>();
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut workers: Vec<Child> = (0..WORKERS).map(|_| place.worker()).collect();
    let (started, mut kills) = (Instant::now(), 0);
    while left() > 0 {
        // By what was done, not by the clock: a slow machine kills no worker before it has begun.
        let until = done() + rng.random_range(20..120);
        while left() > 0 && done() < until {
            assert!(started.elapsed() < Duration::from_secs(240), "{} jobs are left", left());
            sleep(Duration::from_millis(rng.random_range(20..60)));
        }
        let victim = rng.random_range(0..WORKERS);
        // SIGKILL: nothing is put in order.
        workers[victim].kill().unwrap();
        workers[victim].wait().unwrap();
        workers[victim] = place.worker();
        kills += 1;
    }
    for worker in &mut workers {
        worker.kill().unwrap();
        worker.wait().unwrap();
    }

    let (source, status, jobs) = runtime.block_on(async {
        let store = Store::open(&place.database()).await.unwrap();
        let source = store.list_sources().await.unwrap().remove(0);
        let mut jobs = Vec::new();
        for number in 0.. {
            let page = queue.list_jobs(&JobFilter::default(), number, 200).await.unwrap();
            if page.jobs.is_empty() {
                break;
            }
            jobs.extend(page.jobs);
        }
        (source, queue.list_endpoints().await.unwrap().remove(0), jobs)
    });
    let lost: u32 = jobs.iter().map(|job| job.lost).sum();
    eprintln!("{kills} workers killed, {lost} jobs taken over, {} jobs in {:?}", jobs.len(), started.elapsed());
    assert_eq!((status.done, status.dead, status.cancelled), (jobs.len() as u64, 0, 0), "{status:?}");
    assert!(kills >= 3, "too few were killed for this to mean anything");

    // A feature with an explanation has exactly one, and it was scored beside its baseline; one without has a reason.
    let features: Vec<u32> = (0..FEATURES).collect();
    let mut explained = 0;
    for chunk in features.chunks(250) {
        let found = runtime.block_on(queue.list_explanations(&source, chunk)).unwrap();
        for (feature, said) in found {
            let [said] = said.as_slice() else { panic!("feature {feature} has {} explanations", said.len()) };
            let [score] = said.scores.as_slice() else { panic!("feature {feature} has no score") };
            assert!(score.value > 0.0 && score.baseline < 1.0, "feature {feature}: {score:?}");
            explained += 1;
        }
    }
    let silent = jobs.iter().filter(|job| job.kind == api::JobKind::Explain && job.reason.is_some()).count();
    assert_eq!(explained + silent, FEATURES as usize);
    assert!(explained > 200, "only {explained} of {FEATURES} features have a name");
}

#[test]
fn an_operator_sees_and_steers_the_queue() {
    let place = Place::new();
    assert_eq!(place.json("queue status"), serde_json::json!([]));
    place.json("explain --features 1-4");
    assert_eq!(place.json("queue pause")["changed"], 1);
    let status = place.json("queue status");
    assert_eq!((&status[0]["paused"], &status[0]["queued"]), (&true.into(), &4.into()), "{status}");
    assert_eq!(place.json("queue cancel --id 4")["changed"], 1);
    assert_eq!(place.json("queue list --state cancelled")[0]["index"], 4);
    assert_eq!(place.json("queue resume")["changed"], 1);
    let tally = place.json("work --drain");
    assert!(tally["done"].as_u64().unwrap() >= 3, "{tally}");
    assert_eq!(place.json("queue retry --state cancelled")["changed"], 1);
    let line = String::from_utf8(place.run("queue status").stdout).unwrap();
    assert!(line.starts_with("local: 1 queued (0 after a failed try), 0 of at most 16 running, "), "{line}");

    for (line, says) in [
        ("queue cancel", "--all"),
        ("queue list --state lost", "`lost` is not queued"),
        ("explain --features 9-1", "`9-1` is neither"),
        ("explain --features 99999", "feature 99999 does not exist"),
        ("work --at-once 0", "at-once"),
        ("work --interpreter openai --lmm-name m", "--lmm-url"),
        ("work --interpreter openai --lmm-name m --lmm-url host:8000", "host:8000: "),
    ] {
        let output = place.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{line}\n{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(says), "{line}\n{stderr}");
    }
    let mut elsewhere = place.command("explain");
    let output = elsewhere.args(["--queue", "postgres://nobody@127.0.0.1:1/none"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("error: cannot open the database postgres://nobody@127.0.0.1:1/none"), "{stderr}");
}
