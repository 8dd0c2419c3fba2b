//! The database: import, lists, search, and what must never happen to a visitor's query.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

use api::{ActivationKind, Category, FeatureQuery, FeatureSort};
use std::time::Instant;
use store::{
    Import, MapPoint, SourceEntry, Store, StoreError,
    files::ExampleRow,
    testing::{Artifacts, small_source},
};
use tempfile::TempDir;

/// A store with the small artefacts, and the folder they came from.
async fn filled() -> (Store, SourceEntry, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    Artifacts::new(small_source(), b"webp").write(folder.path()).unwrap();
    let store = Store::open("sqlite::memory:").await.unwrap();
    store.import_artifacts(folder.path()).await.unwrap();
    let source = store.find_source("tiny", "1-res-12").await.unwrap().unwrap();
    (store, source, folder)
}

async fn indices(store: &Store, source: &SourceEntry, query: FeatureQuery) -> Vec<u32> {
    let list = store.list_features(source, &query).await.unwrap();
    list.features.iter().map(|feature| feature.index).collect()
}

fn search(q: &str) -> FeatureQuery {
    FeatureQuery { q: q.into(), sort: FeatureSort::Index, ..FeatureQuery::default() }
}

#[tokio::test]
async fn a_second_import_does_nothing_and_a_changed_one_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let database = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", database.path().join("deep/er/scope.db").display());
    let mut artifacts = Artifacts::new(small_source(), b"webp");
    artifacts.write(folder.path()).unwrap();

    let store = Store::open(&url).await.unwrap();
    let first = store.import_artifacts(folder.path()).await.unwrap();
    let Import::Done { features, pictures, examples, .. } = first else { panic!("{first:?}") };
    assert_eq!((features, pictures, examples), (12, 4, 44));
    let again = store.import_artifacts(folder.path()).await.unwrap();
    assert_eq!(again, Import::Unchanged(small_source()));
    store.close().await;

    let store = Store::open(&url).await.unwrap();
    assert_eq!(store.import_artifacts(folder.path()).await.unwrap(), Import::Unchanged(small_source()));
    artifacts.features[0].feature.explanations[0].description = "green dog".into();
    artifacts.examples.retain(|example| example.picture != "scene-1");
    artifacts.pictures.retain(|row| row.picture.id != "scene-1");
    artifacts.write(folder.path()).unwrap();
    assert!(matches!(store.import_artifacts(folder.path()).await.unwrap(), Import::Done { .. }));

    let source = store.find_source("tiny", "1-res-12").await.unwrap().unwrap();
    assert_eq!(indices(&store, &source, search("dog")).await, [0]);
    assert_eq!(indices(&store, &source, search("red")).await, [0; 0], "an old label is still found");
    assert_eq!(store.picture_webp("scene-1").await.unwrap(), None, "a dropped picture is still there");
    assert_eq!(store.list_sources().await.unwrap(), [small_source()]);
}

#[tokio::test]
async fn sources_share_pictures_but_not_different_ones() {
    let (store, source, folder) = filled().await;
    let mut other = Artifacts::new(api::Source { source_id: "2-res-12".into(), ..small_source() }, b"webp");
    other.write(folder.path()).unwrap();
    store.import_artifacts(folder.path()).await.unwrap();
    assert_eq!(store.list_sources().await.unwrap().len(), 2);
    assert_eq!(store.list_features(&source, &FeatureQuery::default()).await.unwrap().total, 12);

    other.pictures[1].webp = b"another".to_vec();
    other.write(folder.path()).unwrap();
    let error = store.import_artifacts(folder.path()).await.unwrap_err().to_string();
    assert!(error.contains("pictures.parquet") && error.contains("sample-0") | error.contains("scene-0"), "{error}");
    assert!(error.contains("--database"), "{error}");
    assert_eq!(store.picture_webp("scene-0").await.unwrap().unwrap().webp, b"webp");
}

#[tokio::test]
async fn files_that_do_not_fit_together_change_nothing() {
    let (store, source, folder) = filled().await;
    let good = Artifacts::new(small_source(), b"webp");
    let broken: [(&str, fn(&mut Artifacts)); 7] = [
        ("feature 12 of an SAE with 12 latents", |files| files.features[0].feature.index = 12),
        ("feature 1 occurs twice", |files| files.features[0].feature.index = 1),
        ("is of other/1-res-12", |files| files.features[3].feature.model_id = "other".into()),
        ("not finite", |files| files.features[3].feature.pos_values = vec![f32::NAN]),
        ("picture nowhere is not in", |files| files.examples[0].picture = "nowhere".into()),
        ("patch 4 of a grid with 4", |files| files.examples[0].indices[1] = 4),
        ("cannot be part of an address", |files| files.pictures[2].picture.id = "../x".into()),
    ];
    for (expected, damage) in broken {
        let mut files = good.clone();
        damage(&mut files);
        files.write(folder.path()).unwrap();
        let error = store.import_artifacts(folder.path()).await.unwrap_err();
        assert!(matches!(error, StoreError::Artefact { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error} lacks {expected:?}");
    }
    good.write(folder.path()).unwrap();
    std::fs::write(folder.path().join("texts.parquet"), b"PAR1 but not really").unwrap();
    let error = store.import_artifacts(folder.path()).await.unwrap_err().to_string();
    assert!(error.contains("texts.parquet"), "{error}");
    std::fs::remove_file(folder.path().join("texts.parquet")).unwrap();
    let error = store.import_artifacts(folder.path()).await.unwrap_err().to_string();
    assert!(error.contains("texts.parquet"), "{error}");
    assert_eq!(store.list_features(&source, &FeatureQuery::default()).await.unwrap().total, 12);
}

#[tokio::test]
async fn the_map_has_all_features_with_a_place_and_none_when_the_files_have_none() {
    let (store, source, folder) = filled().await;
    let points = store.list_map(&source).await.unwrap();
    assert_eq!(points.iter().map(|point| point.index).collect::<Vec<_>>(), (0..11).collect::<Vec<_>>());
    let happy = MapPoint {
        index: 1,
        x: -0.5,
        y: 1.0,
        label: Some("happy face".into()),
        category: Category::Emotion,
        score: Some(0.9 - 0.1),
    };
    assert_eq!(points[1], happy);
    let feature = store.find_feature(&source, 1).await.unwrap().unwrap();
    assert_eq!((feature.umap_x, feature.umap_y), (Some(-0.5), Some(1.0)));
    assert_eq!(store.find_feature(&source, 11).await.unwrap().unwrap().umap_x, None);

    let mut without = Artifacts::new(small_source(), b"webp");
    without.features[2].feature.umap_x = Some(f32::INFINITY);
    without.features[3].feature.umap_y = None;
    without.write(folder.path()).unwrap();
    store.import_artifacts(folder.path()).await.unwrap();
    let source = store.find_source("tiny", "1-res-12").await.unwrap().unwrap();
    assert_eq!(store.list_map(&source).await.unwrap().len(), 9, "neither 2 nor 3");
    for row in &mut without.features {
        (row.feature.umap_x, row.feature.umap_y) = (None, None);
    }
    without.write(folder.path()).unwrap();
    store.import_artifacts(folder.path()).await.unwrap();
    let source = store.find_source("tiny", "1-res-12").await.unwrap().unwrap();
    assert_eq!(store.list_map(&source).await.unwrap(), []);
}

#[tokio::test]
async fn search_finds_prefixes_numbers_and_never_fails() {
    let (store, source, _folder) = filled().await;
    assert_eq!(indices(&store, &source, search("cat")).await, [0, 3]);
    assert_eq!(indices(&store, &source, search("CAT re")).await, [0]);
    assert_eq!(indices(&store, &source, search("cafe")).await, [4], "accents are not needed");
    assert_eq!(indices(&store, &source, search(" 7 ")).await, [7]);
    assert_eq!(indices(&store, &source, search("#7")).await, [7]);
    assert_eq!(indices(&store, &source, search("   ")).await.len(), 12, "blanks are no search");
    for odd in ["\"", "'", "*", "cat*\"", "AND", "NEAR(", "label:cat", "-", "a OR", "(", "\0", "😀", "%", ";--", "^cat"]
    {
        let found = store.list_features(&source, &search(odd)).await;
        assert!(found.is_ok(), "{odd:?}: {found:?}");
    }
    assert_eq!(indices(&store, &source, search("\"")).await, [0; 0]);
    assert_eq!(indices(&store, &source, search("zebra")).await, [0; 0]);
    assert_eq!(indices(&store, &source, search("99999999999999")).await, [0; 0]);
}

#[tokio::test]
async fn lists_filter_sort_and_page() {
    let (store, source, _folder) = filled().await;
    let all = store.list_features(&source, &FeatureQuery::default()).await.unwrap();
    assert_eq!((all.total, all.page, all.per_page, all.features.len()), (12, 0, 48, 12));
    let first: Vec<_> = all.features.iter().take(7).map(|feature| feature.index).collect();
    assert_eq!(first, [0, 1, 2, 3, 4, 5, 6], "best scores first, then those without one");

    let query = FeatureQuery { sort: FeatureSort::Index, per_page: 5, page: 2, ..FeatureQuery::default() };
    assert_eq!(indices(&store, &source, query.clone()).await, [10, 11]);
    assert_eq!(indices(&store, &source, FeatureQuery { page: u32::MAX, ..query }).await, [0; 0]);
    let query = FeatureQuery { per_page: 100_000, ..FeatureQuery::default() };
    assert_eq!(store.list_features(&source, &query).await.unwrap().per_page, 200);

    let query = FeatureQuery { category: Some(Category::Object), ..FeatureQuery::default() };
    assert_eq!(indices(&store, &source, query).await, [0, 4]);
    let query = FeatureQuery { min_score: Some(0.65), ..FeatureQuery::default() };
    assert_eq!(indices(&store, &source, query).await, [0, 1, 2]);
    assert_eq!(indices(&store, &source, FeatureQuery { dead: Some(true), ..FeatureQuery::default() }).await, [11]);
    let query = FeatureQuery { ids: "9, 2".into(), ..FeatureQuery::default() };
    assert_eq!(indices(&store, &source, query).await, [2, 9]);
    for sort in [FeatureSort::Density, FeatureSort::Max] {
        let list = store.list_features(&source, &FeatureQuery { sort, ..FeatureQuery::default() }).await.unwrap();
        let values = list.features.iter().map(|feature| match sort {
            FeatureSort::Density => feature.frac_nonzero,
            _ => feature.max_act_approx,
        });
        assert!(values.is_sorted_by(|a, b| a >= b), "{sort:?}");
    }

    for query in [
        FeatureQuery { ids: "1,x".into(), ..FeatureQuery::default() },
        FeatureQuery { min_score: Some(f32::NAN), ..FeatureQuery::default() },
    ] {
        let error = store.list_features(&source, &query).await.unwrap_err();
        assert!(matches!(error, StoreError::Query { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_card_has_its_best_picture() {
    let (store, source, _folder) = filled().await;
    let list = store.list_features(&source, &search("red")).await.unwrap();
    let card = &list.features[0];
    assert_eq!((card.label.as_deref(), card.category, card.dead), (Some("red cat"), Category::Object, false));
    assert_eq!(card.score.as_ref().map(|score| (score.value, score.baseline)), Some((0.9, 0.05)));
    let thumbnail = card.thumbnail.as_ref().unwrap();
    assert_eq!(thumbnail.image.picture.url, "/pictures/sample-0.webp");
    assert_eq!(thumbnail.image.grid, [2, 2]);
    assert_eq!((&*thumbnail.feature_acts_indices, &*thumbnail.feature_acts_values), (&[0, 3][..], &[4.0, 0.5][..]));
    let dead = store.list_features(&source, &FeatureQuery { dead: Some(true), ..FeatureQuery::default() }).await;
    assert_eq!(dead.unwrap().features[0].thumbnail, None);
}

#[tokio::test]
async fn a_feature_has_examples_texts_and_neighbours() {
    let (store, source, _folder) = filled().await;
    let feature = store.find_feature(&source, 1).await.unwrap().unwrap();
    assert_eq!(feature, Artifacts::new(small_source(), b"webp").features[1].feature);
    assert_eq!(store.find_feature(&source, 12).await.unwrap(), None);

    let activations = store.list_activations(&source, 1, ActivationKind::Mean, 2).await.unwrap().unwrap();
    assert_eq!((activations.activations.len(), activations.total), (2, 3));
    assert!(activations.activations[0].max_value > activations.activations[1].max_value);
    assert_eq!(activations.texts[0].max_value_token_index, 1);
    let none = store.list_activations(&source, 1, ActivationKind::Heldout, 24).await.unwrap().unwrap();
    assert_eq!((none.activations.len(), none.total), (0, 0));
    assert_eq!(store.list_activations(&source, 12, ActivationKind::Mean, 24).await.unwrap(), None);

    let near = store.find_neighbours(&source, 10).await.unwrap().unwrap();
    let of = |list: &[api::Neighbour]| list.iter().map(|n| (n.feature.index, n.value)).collect::<Vec<_>>();
    assert_eq!(of(&near.by_decoder), [(11, 0.9), (0, 0.8)]);
    assert_eq!(of(&near.by_firing), [(1, 0.25)]);
    assert!(near.by_firing[0].feature.thumbnail.is_some());
    assert_eq!(store.find_neighbours(&source, 12).await.unwrap(), None);

    let random = store.random_feature(&source).await.unwrap().unwrap();
    assert!(random.label.is_some() && !random.dead, "{random:?}");
}

#[tokio::test]
async fn pictures_are_listed_found_and_encoded() {
    let (store, source, _folder) = filled().await;
    let all = store.list_pictures(&source, "", 0, 0).await.unwrap();
    let ids: Vec<_> = all.pictures.iter().map(|picture| picture.id.as_str()).collect();
    assert_eq!((ids, all.total), (vec!["sample-0", "scene-0", "scene-1", "photo-0"], 4));
    let second = store.list_pictures(&source, "scene", 1, 1).await.unwrap();
    assert_eq!((second.pictures[0].id.as_str(), second.total), ("scene-1", 2));
    assert_eq!(store.find_picture(&source, "photo-0").await.unwrap().unwrap().caption, "a photo");
    assert_eq!(store.find_picture(&source, "nowhere").await.unwrap(), None);

    let bytes = store.picture_webp("photo-0").await.unwrap().unwrap();
    assert_eq!((bytes.webp.as_slice(), bytes.etag.len()), (&b"webp"[..], 64));
    assert_eq!(store.picture_etag("photo-0").await.unwrap(), Some(bytes.etag));

    let sample = store.find_picture_activations(&source, "sample-0").await.unwrap().unwrap();
    assert_eq!((sample.grid, sample.k, sample.top_indices.len()), ([2, 2], 2, 8));
    let named: Vec<_> = sample.features.iter().map(|feature| feature.index).collect();
    assert_eq!(named, [0, 1, 2, 3, 4]);
    assert_eq!(store.find_picture_activations(&source, "scene-0").await.unwrap(), None);
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_is_named() {
    let error = Store::open("postgres://nowhere").await.unwrap_err().to_string();
    assert!(error.contains("postgres://nowhere"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("not-a.db");
    std::fs::write(&file, vec![7; 8192]).unwrap();
    let error = Store::open(&format!("sqlite://{}", file.display())).await.unwrap_err().to_string();
    assert!(error.contains("not-a.db"), "{error}");
}

/// As many rows as the demo has: 3,072 features with 45 examples each, 3,200 pictures of 8 KB.
fn full_size() -> Artifacts {
    let source = api::Source { latents: 3072, ..small_source() };
    let mut files = Artifacts::new(source, b"");
    let mut noise = 1u32;
    let mut random_byte = || {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    };
    let picture = files.pictures[0].clone();
    files.pictures = (0..3200)
        .map(|number| {
            let mut row = picture.clone();
            row.picture.id = format!("scene-{number}");
            row.webp = (0..8192).map(|_| random_byte()).collect();
            row
        })
        .collect();
    let example = files.examples[0].clone();
    let place = |number: u32| (number / 45, number % 45, format!("scene-{}", number * 7 % 3200));
    files.examples = (0..3072 * 45)
        .map(place)
        .map(|(feature, rank, picture)| ExampleRow { feature, rank, picture, ..example.clone() })
        .collect();
    files.samples.clear();
    files
}

#[tokio::test]
async fn a_second_start_at_full_size_takes_less_than_a_second() {
    let folder = tempfile::tempdir().unwrap();
    full_size().write(folder.path()).unwrap();
    let url = format!("sqlite://{}", folder.path().join("scope.db").display());
    let store = Store::open(&url).await.unwrap();
    assert!(matches!(store.import_artifacts(folder.path()).await.unwrap(), Import::Done { .. }));
    store.close().await;

    let started = Instant::now();
    let store = Store::open(&url).await.unwrap();
    assert!(matches!(store.import_artifacts(folder.path()).await.unwrap(), Import::Unchanged(_)));
    let source = store.find_source("tiny", "1-res-12").await.unwrap().unwrap();
    let list = store.list_features(&source, &FeatureQuery { per_page: 200, ..FeatureQuery::default() }).await.unwrap();
    assert_eq!((list.total, list.features.len()), (3072, 200));
    assert!(list.features.iter().all(|feature| feature.thumbnail.is_some()));
    let took = started.elapsed();
    assert!(took.as_secs_f32() < 1.0, "{took:?}");
}
