//! `index` into a bucket and `activations` out of it; moto stands for S3.

use crate::cache::{CACHE, add_pictures, rows_of};
use crate::common::{Case, LATENTS, Place, all_refused};
use pipeline::cache::Activation;
use serde_json::Value;
use std::{fs, path::Path, process::Output};
use store::testing::Moto;

const INDEX: &str = "index --cache out --sae sae --staging staging --out s3://scope/runs/tiny";
const READ: &str = "activations --index s3://scope/runs/tiny --feature";

fn start() -> Moto {
    Moto::start(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

fn with_cache() -> Place {
    let place = Place::new();
    add_pictures(&place);
    place.answer(&format!("{CACHE} --shard-pictures 1"));
    fs::create_dir(place.at("staging")).unwrap();
    place
}

/// A run that finds the server.
fn run(moto: &Moto, place: &Place, line: &str) -> Output {
    let mut command = place.command(line);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.envs(moto.variables()).output().unwrap()
}

fn json(moto: &Moto, place: &Place, line: &str) -> Value {
    let output = run(moto, place, &format!("{line} --json"));
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What is said about a run that must be refused; the folder for the index is empty then.
fn refused(output: &Output, place: &Place) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), stderr.lines().count(), output.stdout.len()), (Some(2), 1, 0), "{stderr}");
    assert_eq!(fs::read_dir(place.at("staging")).unwrap().count(), 0, "{stderr}");
    stderr
}

#[test]
fn an_index_goes_to_s3_and_comes_back_feature_by_feature() {
    let (moto, place) = (start(), with_cache());
    let on_disk = place.json("index --cache out --sae sae --out index");
    let report = json(&moto, &place, INDEX);
    assert_eq!(report["manifest"], on_disk["manifest"]);
    assert_eq!(report["out"], "s3://scope/runs/tiny");
    assert_eq!(fs::read_dir(place.at("staging")).unwrap().count(), 0, "it is in the bucket now");

    let mut rows = rows_of(&place, "out");
    rows.sort_by_key(Activation::place);
    for feature in [0, 17, LATENTS as u32 - 1] {
        let there = json(&moto, &place, &format!("{READ} {feature}"));
        let here = place.json(&format!("activations --index index --feature {feature}"));
        let own = || rows.iter().filter(|row| row.feature == feature);
        assert_eq!(there["images"], serde_json::json!(own().map(|row| row.image).collect::<Vec<_>>()));
        assert_eq!(there["tokens"], serde_json::json!(own().map(|row| row.token).collect::<Vec<_>>()));
        let values: Vec<f32> = there["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        assert_eq!(values, own().map(|row| row.value.to_f32()).collect::<Vec<_>>());
        assert_eq!((&there["index"], &here["index"]), (&"s3://scope/runs/tiny".into(), &"index".into()));
        for same in ["feature", "images", "tokens", "values", "groupsRead", "bytesRead", "bytes", "provenance"] {
            assert_eq!(there[same], here[same], "{same} of {feature}");
        }
    }
    // As a table.
    let table = place.answer("activations --index index --feature 17");
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(
        (lines[0], lines.len()),
        ("image\ttoken\tvalue", 1 + rows.iter().filter(|row| row.feature == 17).count())
    );

    // An index over the older one.
    json(&moto, &place, INDEX);
    assert_eq!(json(&moto, &place, &format!("{READ} 17"))["feature"], 17);
}

#[test]
fn what_is_wrong_with_a_bucket_is_one_line_and_found_before_the_work() {
    let (mut moto, place) = (start(), with_cache());
    let other = INDEX.replace("s3://scope", "s3://nowhere");
    let said = refused(&run(&moto, &place, &other), &place);
    assert!(said.contains("s3://nowhere/runs/tiny: there is no such bucket"), "{said}");
    let said = refused(&run(&moto, &place, &format!("{READ} 1")), &place);
    assert!(said.contains("s3://scope/runs/tiny/index.json: there is no such object"), "{said}");
    // A run that ends before its upload does not keep the next one from it.
    let shard = place.at("out/shards/00001.parquet");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    let said = refused(&run(&moto, &place, INDEX), &place);
    assert!(said.contains("00001.parquet"), "{said}");
    fs::write(&shard, &whole).unwrap();
    json(&moto, &place, INDEX);
    let said = refused(&run(&moto, &place, &format!("{READ} {LATENTS}")), &place);
    assert!(said.contains("--feature: feature 64 does not exist: the index has 64"), "{said}");

    let mut command = place.command(&format!("{READ} 1"));
    command.envs(moto.variables()).env("AWS_ALLOW_HTTP", "false");
    let said = refused(&command.output().unwrap(), &place);
    assert!(said.contains("has no TLS") && said.contains("AWS_ALLOW_HTTP=true"), "{said}");
    moto.lock().unwrap();
    for line in [INDEX, &format!("{READ} 1")] {
        let said = refused(&run(&moto, &place, line), &place);
        assert!(said.contains("s3://scope/runs/tiny") && said.contains("no right to do this"), "{said}");
    }
}

#[test]
fn flags_for_buckets_are_checked() {
    let nothing = |_: &Place| ();
    let case = |line: &str, says: &'static str| Case::new(line, nothing, says);
    all_refused(&[
        case("activations --index s3:// --feature 1", "`s3://` is not s3://bucket/prefix"),
        case("activations --index missing --feature 1", "missing/index.json"),
        case("activations --index missing --feature -1", "`-1` is not a whole number"),
        case("activations --feature 1", "--index"),
        case("index --cache out --sae sae --out s3://scope//x", "is not s3://bucket/prefix"),
        case("index --cache out --sae sae --out index --staging sae", "--staging: only an index for a bucket"),
        case("index --cache out --sae sae --out s3://scope/x --staging missing", "no such folder for --staging"),
    ]);
}
