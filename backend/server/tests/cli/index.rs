//! `index`: from a cache to what `serve` imports, and what is refused.

use crate::cache::{CACHE, add_pictures, rows_of};
use crate::common::{Case, LATENTS, Place, all_refused, change_tensors};
use pipeline::{cache::Activation, index::FeatureIndex};
use std::{collections::BTreeMap, fs};
use store::{
    Import, Store,
    files::{names, read_examples, read_features, read_pictures},
};

const INDEX: &str = "index --cache out --sae sae --out index";

/// Four pictures, a file that is none and a duplicate, in shards of one.
fn with_cache(place: &Place) {
    add_pictures(place);
    place.answer(&format!("{CACHE} --shard-pictures 1"));
}

fn files(place: &Place, out: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(place.at(out)).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

#[tokio::test]
async fn an_index_is_what_the_cache_says_and_what_the_store_imports() {
    let place = Place::new();
    with_cache(&place);
    let report = place.json(&format!("{INDEX} --model model --images pictures --examples 3 --bins 10"));
    let mut rows = rows_of(&place, "out");
    rows.sort_by_key(Activation::place);
    assert_eq!(report["manifest"]["activations"], rows.len());
    assert_eq!((&report["passes"], &report["manifest"]["pictures"]), (&1.into(), &4.into()));
    assert_eq!((&report["manifest"]["outputTokens"], &report["manifest"]["images"]), (&true.into(), &true.into()));

    let index = FeatureIndex::open(&place.at("index")).unwrap();
    let found: Vec<Activation> = (0..LATENTS as u32).flat_map(|feature| index.activations(feature).unwrap()).collect();
    assert_eq!(found, rows);
    let features = read_features(&place.at("index").join(names::FEATURES)).unwrap();
    assert_eq!(features.len(), LATENTS);
    for (number, row) in (0..).zip(&features) {
        let own = rows.iter().filter(|row| row.feature == number).count();
        assert_eq!((row.feature.dead, row.feature.freq_hist_data_bar_heights.len()), (own == 0, 10 * own.min(1)));
        assert_eq!((row.feature.pos_str.len(), row.feature.topk_cos_sim_indices.len()), (8, 8));
        assert!(row.feature.pos_values.is_sorted_by(|a, b| a >= b) && row.feature.neg_values[0] < 0.0);
    }
    let pictures = read_pictures(&place.at("index").join(names::PICTURES)).unwrap();
    assert!(pictures.iter().all(|row| (row.picture.width, row.picture.height) == (40, 30)), "the pictures themselves");
    let examples = read_examples(&place.at("index").join(names::EXAMPLES)).unwrap();

    let store = Store::open("sqlite::memory:").await.unwrap();
    let imported = store.import_artifacts(&place.at("index")).await.unwrap();
    let source = imported.source().clone();
    assert_eq!((source.model_id.as_str(), source.hook_point.as_str()), ("model", "model.layers.1"));
    let expected = Import::Done { source, features: LATENTS, pictures: pictures.len(), examples: examples.len() };
    assert_eq!(imported, expected);
}

#[test]
fn little_memory_few_threads_and_an_older_index_change_nothing() {
    let place = Place::new();
    with_cache(&place);
    place.answer(INDEX);
    let report = place.json(&format!("{} --memory 1 --threads 1", INDEX.replace("--out index", "--out tight")));
    assert!(report["passes"].as_u64().unwrap() > 1, "{report}");
    let first = files(&place, "index");
    assert!(first == files(&place, "tight"));
    place.answer(INDEX);
    assert!(first == files(&place, "index"));
    // Beside files of others.
    fs::write(place.at("index/notes.txt"), "mine").unwrap();
    place.answer(INDEX);
    assert_eq!(fs::read_to_string(place.at("index/notes.txt")).unwrap(), "mine");
}

#[test]
fn a_damaged_shard_leaves_the_older_index() {
    let place = Place::new();
    with_cache(&place);
    place.answer(INDEX);
    let before = files(&place, "index");
    let shard = place.at("out/shards/00001.parquet");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    let output = place.run(INDEX);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.starts_with("error: ") && stderr.contains("00001.parquet") && stderr.lines().count() == 1);
    assert!(files(&place, "index") == before);
}

fn case(line: &str, damage: fn(&Place), says: &'static str) -> Case {
    Case::new(line, damage, says)
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let missing = |place: &Place| {
        with_cache(place);
        fs::remove_file(place.at("out/shards/00002.parquet")).unwrap();
    };
    let hidden = |place: &Place| {
        add_pictures(place);
        place.answer("cache --model model --layer 1 --images pictures --out out --hidden");
    };
    let other_sae = |place: &Place| {
        with_cache(place);
        change_tensors(&place.at("sae/model.layers.1/sae.safetensors"), |tensors| {
            tensors.get_mut("b_dec").unwrap().2[0] ^= 1;
        });
    };
    let other_pictures = |place: &Place| {
        with_cache(place);
        fs::copy(place.at("pictures/1.png"), place.at("pictures/9.png")).unwrap();
    };
    let filtered = |place: &Place| {
        add_pictures(place);
        fs::write(place.at("filter.json"), r#"{"model.layers.1": [1, 2]}"#).unwrap();
        fs::write(place.at("other.json"), r#"{"model.layers.1": [1, 3]}"#).unwrap();
        place.answer(&format!("{CACHE} --filter filter.json"));
    };
    all_refused(&[
        case("index --sae sae --out index", add_pictures, "--cache"),
        case("index --cache out --out index", add_pictures, "--sae"),
        case(INDEX, add_pictures, "manifest.json"),
        case(INDEX, missing, "shard 2 of 6 is missing"),
        case(INDEX, hidden, "hidden states alone"),
        case(INDEX, other_sae, "but the cache was made with"),
        case(&format!("{INDEX} --images pictures"), other_pictures, "other pictures than the cache was made of"),
        case(INDEX, filtered, "this cache was made with --filter"),
        case(&format!("{INDEX} --filter other.json"), filtered, "another --filter"),
        case(&format!("{INDEX} --layout folder"), with_cache, "--images"),
        case(&format!("{INDEX} --bins 0"), with_cache, "not a whole number from 1 up"),
        case(&format!("{INDEX} --examples 1001"), with_cache, "--examples: at most 1000"),
        case(&INDEX.replace("--out index", "--out out"), with_cache, "--out is the folder of the cache"),
        case(&INDEX.replace("--out index", "--out missing/index"), with_cache, "there is no folder missing"),
        case(&INDEX.replace("--out index", "--out picture.png"), with_cache, "--out names a file"),
    ]);
}
