//! `cache` on the demo: the size of its files, and what is in them after processes were killed at random.

use crate::common::Place;
use pipeline::cache::{Activation, Cache, PictureTokens, Skipped};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const KILLS: u32 = 20;
/// Processes at once.
const PROCESSES: usize = 2;
/// The published size: feature, image, token and value.
const MOST_BYTES: f64 = 6.0;

/// `pictures/` with the demo's samples, one of them twice, and one that is cut off.
fn place_with_samples() -> (Place, String) {
    let place = Place::new();
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../public/pocket").canonicalize().unwrap();
    let rows = store::files::read_pictures(&pocket.join("pictures.parquet")).unwrap();
    let samples: Vec<_> = rows.into_iter().filter(|row| row.picture.kind == "sample").collect();
    assert!(samples.len() >= 20, "{} samples", samples.len());
    fs::create_dir(place.at("pictures")).unwrap();
    for row in &samples {
        fs::write(place.at(&format!("pictures/{}.webp", row.picture.id)), &row.webp).unwrap();
    }
    fs::write(place.at("pictures/again.webp"), &samples[5].webp).unwrap();
    fs::write(place.at("pictures/cut-off.webp"), &samples[7].webp[..200]).unwrap();
    let pocket = pocket.display().to_string().replace(' ', "~");
    let line = format!("cache --model {pocket}/model --sae {pocket}/sae --layer 3 --images pictures");
    (place, line)
}

/// All that a cache says.
#[derive(Debug, PartialEq)]
struct Content {
    files: BTreeSet<String>,
    shards: Vec<(Vec<PictureTokens>, Vec<Skipped>, Vec<Activation>)>,
    skipped: String,
}

fn content(place: &Place, out: &str) -> Content {
    let cache = Cache::open(&place.at(out)).unwrap();
    let names = |folder: String| -> BTreeSet<String> {
        let entries = fs::read_dir(place.at(&folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let shards = (0..cache.manifest.shards).map(|number| {
        let shard = cache.shard(number).unwrap();
        let (pictures, skipped) = (shard.pictures().to_vec(), shard.skipped().to_vec());
        (pictures, skipped, shard.map(Result::unwrap).collect())
    });
    Content {
        files: names(format!("{out}/shards")).into_iter().chain(names(out.to_owned())).collect(),
        shards: shards.collect(),
        skipped: fs::read_to_string(place.at(&format!("{out}/skipped.jsonl"))).unwrap(),
    }
}

#[test]
fn an_activation_of_the_demo_takes_few_bytes() {
    let (place, line) = place_with_samples();
    let report: Value = place.json(&format!("{line} --out out"));
    let bytes = report["bytesPerActivation"].as_f64().unwrap();
    let (pictures, activations) = (report["pictures"].as_u64().unwrap(), report["activations"].as_u64().unwrap());
    eprintln!("{activations} activations of {pictures} pictures: {bytes:.2} bytes each");
    assert!(activations > pictures * 64 * 16, "{activations} activations");
    assert!(bytes <= MOST_BYTES, "{bytes} bytes");
    assert_eq!((&report["skipped"], &report["manifest"]["imageSet"]["duplicates"]), (&1.into(), &1.into()));
}

/// xorshift64
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

#[test]
fn killed_processes_lose_and_repeat_nothing() {
    let (place, line) = place_with_samples();
    let run = |out: &str| format!("{line} --shard-pictures 2 --out {out}");
    let begun = Instant::now();
    place.answer(&run("whole"));
    // Moments before, during and after a run; each kill takes half of it on average.
    let longest = begun.elapsed().min(Duration::from_millis(2500));
    let whole = content(&place, "whole");
    assert!(whole.shards.len() >= 10, "{} shards", whole.shards.len());
    let seen: Vec<u32> = whole.shards.iter().flat_map(|(pictures, ..)| pictures.iter().map(|one| one.image)).collect();
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "a picture in two shards");

    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    eprintln!("seed {seed}, moments up to {longest:?}");
    let mut random = Random(seed);
    let spawn =
        |out: &str| -> Child { place.command(&run(out)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap() };
    let (mut kills, mut folders) = (0, 0);
    while kills < KILLS {
        folders += 1;
        let out = format!("killed-{folders}");
        let mut processes: Vec<Child> = (0..PROCESSES).map(|_| spawn(&out)).collect();
        while kills < KILLS && !place.at(&format!("{out}/skipped.jsonl")).exists() {
            std::thread::sleep(Duration::from_micros(random.below(longest.as_micros() as u64)));
            let process = &mut processes[random.below(PROCESSES as u64) as usize];
            match process.try_wait().unwrap() {
                Some(ended) => assert!(ended.success(), "{ended}"),
                None => {
                    // SIGKILL.
                    process.kill().unwrap();
                    process.wait().unwrap();
                    kills += 1;
                }
            }
            *process = spawn(&out);
        }
        for mut process in processes {
            assert!(process.wait().unwrap().success());
        }
        // Whatever the last moment was, another run finishes the rest.
        place.answer(&run(&out));
        let found = content(&place, &out);
        assert_eq!(found.files, whole.files, "seed {seed}");
        assert!(found == whole, "seed {seed}: {out} differs");
    }
    eprintln!("{kills} kills in {folders} folders");
}
