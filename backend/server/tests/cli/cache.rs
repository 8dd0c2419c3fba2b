//! `cache`: what is in its files, how it goes on, and what is refused.

use crate::common::{Case, D_MODEL, K, PICTURE_TOKENS, Place, all_refused, f32_values, i32_values, read_tensors};
use half::f16;
use image::{ImageFormat, Rgb, RgbImage};
use pipeline::cache::{Activation, Cache};
use safetensors::Dtype;
use std::fs;

pub const CACHE: &str = "cache --model model --sae sae --layer 1 --images pictures --out out";

/// `pictures/`: five pictures, the last of them the first one again, and a file that is no picture.
pub fn add_pictures(place: &Place) {
    fs::create_dir(place.at("pictures")).unwrap();
    for number in 0..4u32 {
        let picture = RgbImage::from_fn(40, 30, |x, y| Rgb([(x * number) as u8, (y * 7) as u8, (x ^ y) as u8]));
        picture.save_with_format(place.at(&format!("pictures/{number}.png")), ImageFormat::Png).unwrap();
    }
    fs::write(place.at("pictures/3b.png"), "no picture").unwrap();
    fs::copy(place.at("pictures/0.png"), place.at("pictures/4.png")).unwrap();
}

fn with_pictures() -> Place {
    let place = Place::new();
    add_pictures(&place);
    place
}

pub fn rows_of(place: &Place, out: &str) -> Vec<Activation> {
    let cache = Cache::open(&place.at(out)).unwrap();
    (0..cache.manifest.shards).flat_map(|shard| cache.shard(shard).unwrap().map(Result::unwrap)).collect()
}

#[test]
fn rows_are_what_extract_and_encode_say() {
    let place = with_pictures();
    let report = place.json(&format!("{CACHE} --shard-pictures 4 --hidden"));
    assert_eq!((&report["complete"], &report["shards"], &report["pictures"]), (&true.into(), &2.into(), &4.into()));
    assert_eq!((&report["skipped"], &report["firstSkipped"][0]["id"]), (&1.into(), &"3b.png".into()));
    assert_eq!(report["manifest"]["imageSet"]["duplicates"], 1);
    assert_eq!((&report["manifest"]["k"], &report["manifest"]["dtype"]), (&K.into(), &"f32".into()));
    let skipped = fs::read_to_string(place.at("out/skipped.jsonl")).unwrap();
    assert!(skipped.lines().count() == 1 && skipped.contains("not a picture"), "{skipped}");

    let extract =
        "extract --model model --layer 1 --raw-prompt <image> --image pictures/2.png --out hidden2.safetensors";
    place.answer(extract);
    place.answer("encode --sae sae --hidden hidden2.safetensors --out top.safetensors");
    let top = read_tensors(&place.at("top.safetensors"));
    let (indices, acts) = (i32_values(&top["top_indices"]), f32_values(&top["top_acts"]));
    // Position 0 is BOS.
    let mut expected: Vec<(u32, u32, f16)> = (K..indices.len())
        .filter(|at| f16::from_f32(acts[*at]) > f16::ZERO)
        .map(|at| (indices[at] as u32, (at / K) as u32, f16::from_f32(acts[at])))
        .collect();
    expected.sort_by_key(|(feature, token, _)| (*feature, *token));
    let cache = Cache::open(&place.at("out")).unwrap();
    let shard = cache.shard(0).unwrap();
    let tokens = shard.pictures()[2];
    assert_eq!((tokens.image, tokens.kept, tokens.tokens), (2, PICTURE_TOKENS as u32, PICTURE_TOKENS as u32 + 1));
    assert_eq!((tokens.picture, tokens.base, tokens.grid), ([1, 18], [1, 17], [4, 4]));
    let found: Vec<(u32, u32, f16)> =
        shard.map(Result::unwrap).filter(|row| row.image == 2).map(|row| (row.feature, row.token, row.value)).collect();
    assert!(found.len() > PICTURE_TOKENS && found == expected, "{found:?}\n{expected:?}");

    // The second shard has the broken picture and the duplicate: nothing.
    let shard = cache.shard(1).unwrap();
    assert_eq!((shard.pictures().len(), shard.skipped().len(), shard.count()), (0, 1, 0));
    let hidden = read_tensors(&place.at("out/hidden/00000.safetensors"));
    assert_eq!((hidden["hidden"].0, &hidden["hidden"].1), (Dtype::F16, &vec![4 * PICTURE_TOKENS, D_MODEL]));
    let values: Vec<f32> =
        hidden["hidden"].2.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    let exact = f32_values(&read_tensors(&place.at("hidden2.safetensors"))["hidden"]);
    let second = &values[2 * PICTURE_TOKENS * D_MODEL..][..PICTURE_TOKENS * D_MODEL];
    for (kept, exact) in second.iter().zip(&exact[D_MODEL..]) {
        assert_eq!(*kept, f16::from_f32(*exact).to_f32());
    }
    let (images, tokens) = (i32_values(&hidden["image"]), i32_values(&hidden["token"]));
    assert_eq!((images[2 * PICTURE_TOKENS], tokens[2 * PICTURE_TOKENS], tokens[PICTURE_TOKENS - 1]), (2, 1, 17));
}

#[test]
fn a_filter_and_kinds_of_tokens_choose_rows() {
    let place = with_pictures();
    place.answer(&format!("{CACHE} --prompt What~is~this? --tokens image,text"));
    let all = rows_of(&place, "out");
    let features: Vec<u32> = {
        let mut features: Vec<u32> = all.iter().map(|row| row.feature).collect();
        features.dedup();
        features.into_iter().step_by(3).collect()
    };
    fs::write(place.at("filter.json"), serde_json::json!({ "model.layers.1": features }).to_string()).unwrap();
    let line = CACHE.replace(" out", " few");
    place.answer(&format!("{line} --prompt What~is~this? --tokens text --filter filter.json"));
    let few = rows_of(&place, "few");
    let tokens = Cache::open(&place.at("few")).unwrap().shard(0).unwrap().pictures()[0];
    let in_picture = |row: &Activation| (tokens.picture[0]..tokens.picture[1]).contains(&row.token);
    let expected: Vec<Activation> =
        all.into_iter().filter(|row| features.contains(&row.feature) && !in_picture(row)).collect();
    assert!(!few.is_empty());
    assert_eq!(few, expected);
    assert!(few.iter().all(|row| row.token > 0), "BOS is kept");
}

#[test]
fn hidden_states_need_no_sae() {
    let place = with_pictures();
    let report = place.json("cache --model model --layer 1 --images pictures --out out --hidden --dtype f32");
    assert_eq!((&report["activations"], &report["manifest"]["saeRevision"]), (&0.into(), &"".into()));
    assert!(report.get("bytesPerActivation").is_none());
    let hidden = read_tensors(&place.at("out/hidden/00000.safetensors"));
    assert_eq!(hidden["hidden"].1, [4 * PICTURE_TOKENS, D_MODEL]);
}

#[test]
fn the_tower_has_hook_points_too() {
    let place = with_pictures();
    place.answer("cache --model model --hook vision.0 --images pictures --out out --hidden");
    let cache = Cache::open(&place.at("out")).unwrap();
    let tokens = cache.shard(0).unwrap().pictures()[0];
    assert_eq!((tokens.tokens, tokens.kept, tokens.base, tokens.grid), (16, 16, [0, 16], [4, 4]));
}

#[test]
fn shares_make_the_whole() {
    let place = with_pictures();
    place.answer(&format!("{CACHE} --shard-pictures 1"));
    let line = CACHE.replace(" out", " parts");
    let half = place.json(&format!("{line} --shard-pictures 1 --shard 1/2"));
    assert_eq!((&half["complete"], &half["shardsDone"], &half["shards"]), (&false.into(), &3.into(), &6.into()));
    assert!(Cache::open(&place.at("parts")).unwrap_err().to_string().contains("shard 0 of 6 is missing"));
    let whole = place.json(&format!("{line} --shard-pictures 1 --shard 0/2"));
    assert_eq!((&whole["complete"], &whole["skipped"]), (&true.into(), &1.into()));
    assert_eq!(rows_of(&place, "parts"), rows_of(&place, "out"));
}

#[test]
fn a_cache_that_is_done_is_left_as_it_is() {
    let place = with_pictures();
    let first = place.json(CACHE);
    let before = fs::metadata(place.at("out/shards/00000.parquet")).unwrap().modified().unwrap();
    assert_eq!(place.json(CACHE), first);
    assert_eq!(fs::metadata(place.at("out/shards/00000.parquet")).unwrap().modified().unwrap(), before);
}

#[test]
fn another_run_in_the_same_folder_is_refused() {
    let begun = |place: &Place| {
        add_pictures(place);
        place.answer(CACHE);
    };
    let more = |place: &Place| {
        add_pictures(place);
        place.answer(CACHE);
        fs::copy(place.at("pictures/1.png"), place.at("pictures/9.png")).unwrap();
    };
    let other = |place: &Place| {
        add_pictures(place);
        place.answer(&format!("{CACHE} --shard-pictures 1"));
        fs::remove_file(place.at("out/shards/00001.parquet")).unwrap();
        // As long as the one before.
        let bytes = fs::read(place.at("pictures/1.png")).unwrap();
        let changed: Vec<u8> = bytes.iter().rev().copied().collect();
        fs::write(place.at("pictures/1.png"), changed).unwrap();
    };
    all_refused(&[
        Case::new(format!("{CACHE} --dtype bf16"), begun, "begun with dtype \"f32\", but \"bf16\" is asked for"),
        Case::new(format!("{CACHE} --tokens text,image"), begun, "begun with tokens [\"image\"]"),
        Case::new(format!("{CACHE} --hidden"), begun, "begun with hidden false"),
        Case::new(format!("{CACHE} --shard-pictures 3"), begun, "begun with shardPictures 64"),
        Case::new(format!("{CACHE} --raw-prompt <image>a"), begun, "begun with prompt"),
        Case::new(CACHE, more, "begun on other pictures"),
        Case::new(format!("{CACHE} --shard-pictures 1"), other, "picture 1.png has changed since the set was listed"),
    ]);
}

#[test]
fn flags_are_checked() {
    let case = |line: String, says| Case::new(line, add_pictures, says);
    let to = |out: &str| CACHE.replace("--out out", &format!("--out {out}"));
    let of = |images: &str| CACHE.replace("--images pictures", &format!("--images {images}"));
    all_refused(&[
        case("cache --model model --layer 1 --images pictures --out out".into(), "--sae"),
        case("cache --model model --sae sae --images pictures --out out".into(), "--layer"),
        case("cache --model model --sae sae --layer 1 --out out".into(), "--images"),
        case(to("picture.png"), "--out names a file; name a folder"),
        case(to("missing/out"), "there is no folder missing for --out"),
        case(to("pictures/out"), "--out is among the pictures"),
        case(of("missing"), "missing: "),
        case(of("model"), "no pictures here"),
        case(of("picture.png"), "a set of pictures is a folder"),
        case(format!("{CACHE} --layout webdataset"), "nothing here is of the layout webdataset"),
        case(format!("{CACHE} --layout zip"), "`zip` is not folder, imagefolder"),
        case(format!("{CACHE} --tokens patches"), "`patches` is not image or text"),
        case(format!("{CACHE} --shard 2/2"), "`2/2` is not a share"),
        case(format!("{CACHE} --shard-pictures 0"), "not a whole number from 1 up"),
        case(format!("{CACHE} --shard-pictures 5000"), "--shard-pictures: at most 4096"),
        case(format!("{CACHE} --raw-prompt What"), "--raw-prompt: the prompt names 0 pictures"),
        case(format!("{CACHE} --prompt <image>"), "--prompt: the prompt names 2 pictures"),
        case(format!("{CACHE} --filter missing.json"), "missing.json: "),
        case(
            "cache --model model --hook vision.0 --images pictures --out out --hidden --tokens text".into(),
            "sees no",
        ),
        case(CACHE.replace("--layer 1", "--layer 2"), "reads model.layers.1, but model.layers.2 is asked for"),
    ]);
}

/// What a run needs at its peak must not grow with the set.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_set() {
    let place = Place::new();
    let (few, many, side) = (8u32, 128u32, 512u32);
    for (name, count) in [("few", few), ("many", many)] {
        fs::create_dir(place.at(name)).unwrap();
        for number in 0..count {
            let picture = RgbImage::from_pixel(side, side, Rgb([number as u8, (number / 2) as u8, 7]));
            picture.save_with_format(place.at(&format!("{name}/{number:04}.bmp")), ImageFormat::Bmp).unwrap();
        }
    }
    let peak = |name: &str| {
        let line =
            format!("cache --model model --sae sae --layer 1 --images {name} --out {name}.out --shard-pictures 4");
        let mut child = place.command(&line).stdout(std::process::Stdio::null()).spawn().unwrap();
        let mut peak = 0;
        loop {
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            peak = peak.max(kibibytes.unwrap_or_default() << 10);
            if let Some(ended) = child.try_wait().unwrap() {
                assert!(ended.success());
                break peak;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    };
    let (few_peak, many_peak) = (peak("few"), peak("many"));
    let decoded = u64::from(many - few) * u64::from(side * side * 3);
    eprintln!("{few} pictures: {few_peak} bytes, {many}: {many_peak}; decoded pictures are {decoded} more");
    assert!(few_peak > 0 && many_peak < few_peak + decoded / 2, "{few_peak} and {many_peak} bytes");
}
