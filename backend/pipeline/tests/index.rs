//! `lmm-scope index` on random caches: what is in its files, against all activations in memory.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

mod s3;

use half::f16;
use model::{Cpu, SaeFile};
use pipeline::{
    cache::{
        Activation, CacheFolder, FORMAT, FilterOf, ImageSetOf, Manifest, PictureTokens, Settings, write_manifest,
        write_shard_file,
    },
    images::{Listed, Place},
    index::{FeatureIndex, IndexError, IndexOptions, Summary, index, map_features},
};
use rand::{Rng, SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
};
use store::{
    Import, Store,
    files::{FeatureRow, ImageListWriter, ImageRow, names, read_examples, read_features, read_pictures},
};
use tempfile::TempDir;

const LATENTS: u32 = 64;
/// Features that fire; those from here on are dead.
const ALIVE: u32 = 60;
const SHARD_PICTURES: u32 = 4;
/// Tokens of a picture: 16 patches and two others.
const TOKENS: u32 = 18;
const K: usize = 8;
/// Enough for all shards at once, and for two.
const ROOMY: u64 = 1 << 30;
const TIGHT: u64 = 1;

struct Made {
    place: TempDir,
    manifest: Manifest,
    /// All activations, in the order of features.
    rows: Vec<Activation>,
}

impl Made {
    fn new(shards: u32) -> Self {
        Self::with(shards, None)
    }

    /// Random activations, of some features alone if there is a filter.
    fn with(shards: u32, filter: Option<&[u32]>) -> Self {
        let pictures = shards * SHARD_PICTURES;
        let settings = Settings {
            format: FORMAT,
            model: "owner/tiny model@abc".into(),
            sae_revision: "def".into(),
            hook_point: "model.layers.1".into(),
            dtype: "f32".into(),
            k: K as u32,
            latents: LATENTS,
            d_model: 32,
            filter: filter.map(FilterOf::of),
            shard_pictures: SHARD_PICTURES,
            ..Settings::default()
        };
        let listed = Listed { pictures, digest: format!("01234567{shards:08x}"), ..Listed::default() };
        let image_set = ImageSetOf { name: "set".into(), layout: "folder".into(), listing: "l".into(), listed };
        let manifest = Manifest { settings, image_set, shards, date: "2025-01-01".into(), version: "test".into() };
        let mut made = Self { place: tempfile::tempdir().unwrap(), manifest, rows: Vec::new() };
        let folder = CacheFolder::new(&made.at("cache"));
        write_manifest(&folder, &made.manifest).unwrap();
        made.list(&folder, pictures);
        let mut random = ChaCha8Rng::seed_from_u64(u64::from(shards));
        for shard in 0..shards {
            let mut rows = Vec::new();
            for image in made.manifest.images_of(shard) {
                for token in 1..=TOKENS {
                    for feature in sample(&mut random, ALIVE as usize, K) {
                        let value = f16::from_f32(random.random_range(0.01..20.0));
                        rows.push(Activation { feature: feature as u32, image, token, value });
                    }
                }
            }
            rows.retain(|row| filter.is_none_or(|filter| filter.contains(&row.feature)));
            rows.sort_by_key(Activation::place);
            made.write_shard(shard, &rows);
            made.rows.extend(rows);
        }
        made.rows.sort_by_key(Activation::place);
        made
    }

    fn list(&self, folder: &CacheFolder, pictures: u32) {
        let path = folder.images();
        let mut file = File::create(&path).unwrap();
        let mut writer = ImageListWriter::new(&path, &mut file).unwrap();
        for image in 0..pictures {
            let place = serde_json::to_string(&Place::File { file: format!("{image}.png") }).unwrap();
            let row = ImageRow { image, id: format!("a/{image}.png"), first: image, place, ..ImageRow::default() };
            writer.push(row).unwrap();
        }
        writer.finish().unwrap();
    }

    fn write_shard(&self, shard: u32, rows: &[Activation]) {
        let picture = |image: u32| PictureTokens {
            image,
            tokens: TOKENS + 1,
            kept: TOKENS,
            picture: [1, TOKENS + 1],
            base: [1, 17],
            grid: [4, 4],
        };
        let pictures: Vec<PictureTokens> = self.manifest.images_of(shard).map(picture).collect();
        let folder = CacheFolder::new(&self.at("cache"));
        write_shard_file(&folder, &self.manifest, shard, &pictures, &[], rows.iter().copied()).unwrap();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn shard(&self, number: u32) -> PathBuf {
        CacheFolder::new(&self.at("cache")).shard(number)
    }

    fn index(&self, out: &str, memory: u64) -> Result<Summary, IndexError> {
        self.index_with(out, |options| options.memory = memory)
    }

    fn index_with(&self, out: &str, change: impl for<'a> FnOnce(&mut IndexOptions<'a>)) -> Result<Summary, IndexError> {
        let (cache, out) = (self.at("cache"), self.at(out));
        let mut options = IndexOptions {
            cache: &cache,
            out: &out,
            sae: None,
            images: None,
            filter: None,
            examples: 10,
            bins: 24,
            memory: ROOMY,
            threads: Some(2),
        };
        change(&mut options);
        index(&options, None, &|_| {})
    }

    fn of(&self, feature: u32) -> impl Iterator<Item = &Activation> {
        self.rows.iter().filter(move |row| row.feature == feature)
    }
}

/// Name and bytes of everything in a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

#[test]
fn activations_are_those_of_all_shards_however_many_passes_it_takes() {
    let made = Made::new(40);
    let (roomy, tight) = (made.index("roomy", ROOMY).unwrap(), made.index("tight", TIGHT).unwrap());
    // 40, 20, 10, 5, 3 and 2 files.
    assert_eq!((roomy.passes, tight.passes), (1, 6));
    assert_eq!(roomy.manifest.activations, made.rows.len() as u64);
    let (roomy, tight) = (files(&made.at("roomy")), files(&made.at("tight")));
    assert_eq!(roomy.keys().collect::<Vec<_>>(), tight.keys().collect::<Vec<_>>());
    assert!(roomy == tight, "the bytes depend on the memory");
    assert_eq!(roomy.len(), 8, "{:?}", roomy.keys());

    let index = FeatureIndex::open(&made.at("roomy")).unwrap();
    assert!(index.file().groups() > 1);
    for feature in 0..LATENTS {
        let read = index.file().groups_read();
        let expected: Vec<Activation> = made.of(feature).copied().collect();
        assert_eq!(index.activations(feature).unwrap(), expected, "feature {feature}");
        assert_eq!(index.file().groups_read() - read, u64::from(feature < ALIVE), "feature {feature}");
    }
    assert!(index.activations(LATENTS).is_err());
}

#[test]
fn the_same_run_gives_the_same_bytes_with_other_threads() {
    let made = Made::new(5);
    made.index("first", ROOMY).unwrap();
    made.index_with("second", |options| options.threads = Some(1)).unwrap();
    // Over an older index.
    made.index("first", ROOMY).unwrap();
    assert!(files(&made.at("first")) == files(&made.at("second")));
}

#[test]
fn statistics_are_those_of_a_reference_in_f64() {
    let made = Made::new(40);
    let summary = made.index("out", ROOMY).unwrap();
    let features = read_features(&made.at("out").join(names::FEATURES)).unwrap();
    assert_eq!(features.len(), LATENTS as usize);
    let pictures = f64::from(made.manifest.image_set.listed.pictures);
    let close = |found: f32, exact: f64| assert!((f64::from(found) - exact).abs() <= 1e-6 * exact, "{found} {exact}");
    for (number, row) in (0..).zip(&features) {
        let feature = &row.feature;
        let values: Vec<f64> = made.of(number).map(|row| row.value.to_f64()).collect();
        assert_eq!((feature.index, feature.dead), (number, values.is_empty()));
        if values.is_empty() {
            assert!(number >= ALIVE && feature.freq_hist_data_bar_heights.is_empty() && row.firing.is_empty());
            assert_eq!((feature.max_act_approx, feature.mean_act, feature.frac_nonzero), (0.0, 0.0, 0.0));
            continue;
        }
        let max = values.iter().copied().fold(0.0, f64::max);
        assert_eq!(f64::from(feature.max_act_approx), max);
        close(feature.mean_act, values.iter().sum::<f64>() / values.len() as f64);
        close(feature.frac_nonzero, values.len() as f64 / (pictures * f64::from(TOKENS)));
        let fired: BTreeSet<u32> = made.of(number).map(|row| row.image).collect();
        close(feature.frac_pictures, fired.len() as f64 / pictures);
        let bars = &feature.freq_hist_data_bar_heights;
        assert_eq!((bars.len(), bars.iter().sum::<f32>()), (24, values.len() as f32));
        let edges = &feature.freq_hist_data_bar_values;
        let below = |edge: f32| values.iter().filter(|value| **value < f64::from(edge)).count() as f64;
        // A value on an edge may be on either side of it after rounding.
        let first = f64::from(bars[0]);
        assert!((below(edges[1]) - first).abs() <= 1.0, "{first}");
        assert_eq!(row.firing.len(), 8);
    }
    assert_eq!((summary.manifest.features, summary.manifest.dead), (LATENTS, LATENTS - ALIVE));
}

#[test]
fn overlaps_of_sparse_features_are_exact() {
    let made = Made::new(3);
    made.index("out", ROOMY).unwrap();
    let tokens = |feature: u32| made.of(feature).map(|row| (row.image, row.token)).collect::<BTreeSet<_>>();
    let all: Vec<BTreeSet<(u32, u32)>> = (0..LATENTS).map(tokens).collect();
    assert!(all.iter().all(|tokens| tokens.len() <= 64), "these are not sparse");
    for (own, row) in all.iter().zip(read_features(&made.at("out").join(names::FEATURES)).unwrap()) {
        let overlap = |other: u32| {
            let both = own.intersection(&all[other as usize]).count();
            (both as f64 / (own.len() + all[other as usize].len() - both).max(1) as f64) as f32
        };
        let others = (0..LATENTS).filter(|other| *other != row.feature.index);
        let mut expected: Vec<(u32, f32)> = others.map(|other| (other, overlap(other))).collect();
        expected.retain(|(_, overlap)| *overlap > 0.0);
        expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        expected.truncate(8);
        assert_eq!(row.firing, expected, "feature {}", row.feature.index);
    }
}

#[tokio::test]
async fn the_store_imports_what_an_index_writes() {
    let made = Made::new(4);
    model::testing::tiny_checkpoint::<Cpu>(made.place.path(), &Default::default()).unwrap();
    let sae = SaeFile::open(&made.at("sae/model.layers.1")).unwrap();
    let (cache, out) = (made.at("cache"), made.at("out"));
    let options = IndexOptions {
        cache: &cache,
        out: &out,
        sae: Some(&sae),
        images: None,
        filter: None,
        examples: 10,
        bins: 5,
        memory: ROOMY,
        threads: None,
    };
    let summary = index(&options, None, &|_| {}).unwrap();
    let features = read_features(&out.join(names::FEATURES)).unwrap();
    assert!(features.iter().all(|row| row.feature.topk_cos_sim_indices.len() == 8 && row.feature.pos_str.is_empty()));
    let placed = |rows: &[FeatureRow]| rows.iter().all(|row| row.feature.umap_y.is_some() != row.feature.dead);
    assert!(placed(&features));
    // A map that is made afterwards changes nothing else.
    let (mut bare, mut again) = (features.clone(), features.clone());
    bare.iter_mut().for_each(|row| (row.feature.umap_x, row.feature.umap_y) = (None, None));
    assert_eq!(map_features(&sae, &mut again, Some(2), &|_| {}).unwrap(), ALIVE as usize);
    assert!(placed(&again));
    again.iter_mut().for_each(|row| (row.feature.umap_x, row.feature.umap_y) = (None, None));
    assert!(again == bare);
    let examples = read_examples(&out.join(names::EXAMPLES)).unwrap();
    let pictures = read_pictures(&out.join(names::PICTURES)).unwrap();
    assert_eq!(pictures[0].picture.id, "01234567-0");
    assert_eq!((pictures[0].picture.caption.as_str(), pictures[0].picture.width), ("a/0.png", 96));

    let store = Store::open("sqlite::memory:").await.unwrap();
    let Import::Done { source, features, pictures: shown, examples: imported } =
        store.import_artifacts(&out).await.unwrap()
    else {
        panic!("nothing was imported")
    };
    assert_eq!((source.model_id.as_str(), source.source_id.as_str()), ("tiny-model", "1-res-64"));
    assert_eq!((source.alive, source.fvu, source.grid), (ALIVE, None, [4, 4]));
    assert_eq!((features, shown, imported), (LATENTS as usize, pictures.len(), examples.len()));
    assert_eq!(shown, summary.manifest.shown as usize);
}

#[test]
fn what_is_wrong_with_a_shard_is_said_and_an_older_index_stays() {
    let made = Made::new(6);
    made.index("out", ROOMY).unwrap();
    let before = files(&made.at("out"));
    let whole = fs::read(made.shard(3)).unwrap();
    let refused = |says: &str| {
        let error = made.index("out", TIGHT).unwrap_err().to_string();
        assert!(error.contains("00003.parquet") || error.contains("shard 3"), "{error}");
        assert!(error.contains(says) && error.lines().count() == 1, "{error}");
        assert!(files(&made.at("out")) == before, "{says}");
        assert!(made.index("new", TIGHT).is_err() && !made.at("new").exists(), "{says}");
        fs::write(made.shard(3), &whole).unwrap();
    };
    fs::remove_file(made.shard(3)).unwrap();
    refused("shard 3 of 6 is missing");
    fs::write(made.shard(3), &whole[..whole.len() / 2]).unwrap();
    refused("damaged");
    let mut holed = whole.clone();
    holed[4..400].fill(0);
    fs::write(made.shard(3), &holed).unwrap();
    refused("damaged");
    fs::copy(made.shard(2), made.shard(3)).unwrap();
    refused("the shard is of images 12 to 15");
    let row = |feature: u32, value: f32| Activation { feature, image: 12, token: 1, value: f16::from_f32(value) };
    for (wrong, says) in [(row(LATENTS, 1.0), "the SAE has 64 features"), (row(1, -1.0), "the value is -1")] {
        made.write_shard(3, &[wrong]);
        refused(says);
    }
    assert!(files(&made.at("out")) == before);
    made.index("out", TIGHT).unwrap();
}

#[test]
fn an_index_that_was_not_finished_does_not_count() {
    let made = Made::new(2);
    made.index("out", ROOMY).unwrap();
    fs::remove_file(made.at("out").join(names::INDEX)).unwrap();
    assert!(FeatureIndex::open(&made.at("out")).unwrap_err().to_string().contains("index.json"));
    // What says of itself that it is no index is not replaced.
    let error = made.index("out", ROOMY).unwrap_err().to_string();
    assert!(error.contains("was not made by `index`"), "{error}");
    fs::remove_dir_all(made.at("out")).unwrap();
    // Activations of another cache.
    let other = Made::new(3);
    other.index("out", ROOMY).unwrap();
    let activations = other.at("out").join(names::ACTIVATIONS);
    made.index("out", ROOMY).unwrap();
    fs::copy(activations, made.at("out").join(names::ACTIVATIONS)).unwrap();
    let error = FeatureIndex::open(&made.at("out")).unwrap_err().to_string();
    assert!(error.contains("activations of another cache") || error.contains("rows"), "{error}");
}

#[test]
fn a_filter_is_asked_for_and_its_features_alone_are_there() {
    let few = [3, 17, 62];
    let made = Made::with(3, Some(&few));
    let error = made.index("out", ROOMY).unwrap_err().to_string();
    assert!(error.contains("made with --filter"), "{error}");
    let with = |filter: &'static [u32]| made.index_with("out", |options| options.filter = Some(filter));
    assert!(with(&[3, 17]).unwrap_err().to_string().contains("another --filter"));
    let summary = with(&[3, 17, 62]).unwrap();
    assert_eq!((summary.manifest.features, summary.manifest.dead), (3, 1), "62 is dead");
    let features = read_features(&made.at("out").join(names::FEATURES)).unwrap();
    assert_eq!(features.iter().map(|row| row.feature.index).collect::<Vec<_>>(), few);
    assert!(Made::new(2).index_with("out", |options| options.filter = Some(&[1])).is_err());
}
