#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

use super::{column::rounded_to_half, *};
use api::{ActivationKind, Category, Explanation, Feature, Picture, PictureObject, Provenance, Rect, Score};

fn feature(index: u32) -> FeatureRow {
    let score = Score { value: 0.5, baseline: 0.125, ..Score::default() };
    let explanation = Explanation {
        id: format!("e{index}"),
        description: "a \"quoted\" cat, naïve ☕".into(),
        category: Category::Emotion,
        scores: vec![score],
        ..Explanation::default()
    };
    let feature = Feature {
        model_id: "pocket".into(),
        layer: "3-res-3k".into(),
        index,
        max_act_approx: 1.000_123_4,
        freq_hist_data_bar_heights: vec![3.0, 1.0],
        freq_hist_data_bar_values: vec![0.0, 0.5, 1.0],
        pos_str: vec!["▁cat".into(), String::new()],
        pos_values: vec![0.1, 0.2],
        topk_cos_sim_indices: vec![7, u32::MAX],
        topk_cos_sim_values: vec![0.9, -0.1],
        // The first batch has all places, the others have some.
        umap_x: (index < 1024 || index.is_multiple_of(3)).then_some(index as f32 / 7.0),
        umap_y: (index < 1024 || index.is_multiple_of(3)).then_some(-1.5),
        explanations: vec![explanation],
        dead: index % 2 == 1,
        provenance: Provenance { date: "2025-01-01".into(), ..Provenance::default() },
        ..Feature::default()
    };
    FeatureRow { feature, firing: vec![(3, 0.25), (1, 0.1)] }
}

#[test]
fn features_come_back_exactly_over_many_batches() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("features.parquet");
    let rows: Vec<_> = (0..2500).map(feature).collect();
    write_features(&path, &rows).unwrap();
    assert!(read_features(&path).unwrap() == rows, "2,500 features differ after a round trip");
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["features.parquet"], "a temporary file was left behind");
}

/// As this program wrote them before there was a map.
#[test]
fn features_without_places_are_read_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("features.parquet");
    let mut rows: Vec<_> = (0..3).map(feature).collect();
    write_features(&path, &rows).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let batch = reader.build().unwrap().next().unwrap().unwrap();
    let older = (0..batch.num_columns()).filter(|column| !batch.schema().field(*column).name().starts_with("umap_"));
    let older = batch.project(&older.collect::<Vec<_>>()).unwrap();
    assert_eq!(older.num_columns() + 2, batch.num_columns());
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, older.schema(), None).unwrap();
    writer.write(&older).unwrap();
    writer.close().unwrap();
    for row in &mut rows {
        (row.feature.umap_x, row.feature.umap_y) = (None, None);
    }
    assert!(read_features(&path).unwrap() == rows);
}

#[test]
fn empty_files_carry_their_schema() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("texts.parquet");
    write_texts(&path, &[]).unwrap();
    assert_eq!(read_texts(&path).unwrap(), []);
    let error = read_examples(&path).map(|rows| rows.len());
    assert_eq!(error.unwrap(), 0, "no rows, so no column is asked for");
}

#[test]
fn examples_keep_half_precision() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deeper/examples.parquet");
    let row = ExampleRow {
        feature: 9,
        kind: ActivationKind::Heldout,
        rank: 2,
        picture: "scene-1".into(),
        indices: vec![0, 63, u16::MAX],
        values: vec![0.1, 3.0, 1.0e6],
        max_value: 1.0e6,
        max_index: 65_535,
        mean_value: 0.3,
        bin_min: 0.1,
        bin_max: 0.9,
    };
    write_examples(&path, &[row.clone(), ExampleRow::default()]).unwrap();
    let read = read_examples(&path).unwrap();
    assert_eq!(read[0].values, [rounded_to_half(0.1), 3.0, 1.0e6]);
    assert!((read[0].values[0] - 0.1).abs() < 1e-4);
    assert_eq!(ExampleRow { values: row.values.clone(), ..read[0].clone() }, row);
    assert_eq!(read[1], ExampleRow::default());
}

#[test]
fn rounded_activations_compress() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("examples.parquet");
    let activation = |feature: u32, patch: u32| ((feature * 64 + patch) as f32 * 0.37).sin().abs() * 9.0;
    let rows: Vec<_> = (0..2000)
        .map(|feature| ExampleRow {
            feature,
            indices: (0..64).collect(),
            values: (0..64).map(|patch| activation(feature, patch)).collect(),
            ..ExampleRow::default()
        })
        .collect();
    write_examples(&path, &rows).unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert!(bytes < 2000 * 64 * 3, "{bytes} bytes: the rounded bits are not compressed away");
}

#[test]
fn texts_pictures_samples_and_sprites_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let text = TextRow { feature: 1, rank: 0, tokens: vec!["a".into(), "▁cat".into()], values: vec![0.0, 2.5] };
    let path = folder.path().join("texts.parquet");
    write_texts(&path, std::slice::from_ref(&text)).unwrap();
    assert_eq!(read_texts(&path).unwrap(), [text]);

    let rect = Rect { x: 1.5, y: 2.0, width: 30.0, height: 40.0 };
    let object = PictureObject { concept: "cat".into(), color: "red".into(), style: "noto".into(), rect };
    let picture = Picture { id: "p1".into(), width: 192, height: 192, objects: vec![object], ..Picture::default() };
    let row = PictureRow { picture, webp: vec![0, 255, 7] };
    let path = folder.path().join("pictures.parquet");
    write_pictures(&path, std::slice::from_ref(&row)).unwrap();
    let read = read_pictures(&path).unwrap();
    assert_eq!(read[0].picture, Picture { url: "/pictures/p1.webp".into(), ..row.picture });
    assert_eq!(read[0].webp, row.webp);

    let grid = [2, 1];
    let sample = SampleRow {
        picture: "p1".into(),
        k: 2,
        grid,
        top_indices: vec![5, 6, 7, 8],
        top_acts: vec![4.0, 3.0, 2.0, 1.0],
    };
    let path = folder.path().join("samples.parquet");
    write_samples(&path, std::slice::from_ref(&sample)).unwrap();
    assert_eq!(read_samples(&path).unwrap(), std::slice::from_ref(&sample));
    write_samples(&path, &[SampleRow { k: 3, ..sample }]).unwrap();
    let error = read_samples(&path).unwrap_err().to_string();
    assert!(error.contains("samples.parquet") && error.contains("want 6 values"), "{error}");

    let sprite = SpriteRow { family: "noto".into(), concept: "cat".into(), webp: vec![1, 2], ..SpriteRow::default() };
    let path = folder.path().join("sprites.parquet");
    write_sprites(&path, std::slice::from_ref(&sprite)).unwrap();
    assert_eq!(read_sprites(&path).unwrap(), [sprite]);
}

#[test]
fn damaged_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("features.parquet");
    let missing = read_features(&path).unwrap_err();
    assert!(matches!(missing, FileError::Io { .. }) && missing.to_string().contains("features.parquet"));

    write_features(&path, &[feature(0)]).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for keep in [0, 3, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..keep]).unwrap();
        let error = read_features(&path).unwrap_err();
        assert!(matches!(error, FileError::Corrupt { .. }), "{keep} bytes: {error}");
        assert!(error.to_string().contains("features.parquet"), "{error}");
    }

    write_texts(&path, &[TextRow::default()]).unwrap();
    let error = read_features(&path).unwrap_err().to_string();
    assert!(error.contains("no column modelId"), "{error}");
}

#[test]
fn lists_of_different_length_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("examples.parquet");
    write_examples(&path, &[ExampleRow { indices: vec![1, 2], values: vec![1.0], ..ExampleRow::default() }]).unwrap();
    let error = read_examples(&path).unwrap_err().to_string();
    assert!(error.contains("has 2 items") && error.contains("has 1"), "{error}");
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("source.json");
    let source = api::Source { model_id: "pocket".into(), ..api::Source::default() };
    write_source(&path, &source).unwrap();
    let failed = write_atomically(&path, |_| Err(FileError::corrupt(&path, &"on purpose")));
    assert!(failed.is_err());
    assert_eq!(read_source(&path).unwrap(), source);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
