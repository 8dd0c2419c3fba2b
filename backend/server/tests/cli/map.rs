//! `map`: places for artefacts that have none.

use crate::cache::{CACHE, add_pictures};
use crate::common::{Case, LATENTS, Place, all_refused, change_tensors};
use std::fs;
use store::files::{FeatureRow, names, read_features, write_features};

/// An index, as it was before there was a map; the SAE lies beside it.
fn with_artifacts(place: &Place) {
    add_pictures(place);
    place.answer(CACHE);
    place.answer("index --cache out --sae sae --out index");
    let path = place.at("index").join(names::FEATURES);
    let mut rows = read_features(&path).unwrap();
    assert!(rows.iter().all(|row| row.feature.umap_x.is_some() != row.feature.dead), "an index has a map");
    without_places(&mut rows);
    write_features(&path, &rows).unwrap();
}

fn without_places(rows: &mut [FeatureRow]) {
    for row in rows {
        (row.feature.umap_x, row.feature.umap_y) = (None, None);
    }
}

#[test]
fn features_get_places_and_keep_all_else() {
    let place = Place::new();
    with_artifacts(&place);
    let path = place.at("index").join(names::FEATURES);
    let bare = read_features(&path).unwrap();
    let said = place.json("map --artifacts index --sae sae");
    let mut rows = read_features(&path).unwrap();
    let alive = rows.iter().filter(|row| !row.feature.dead).count();
    assert_eq!((&said["features"], &said["placed"]), (&LATENTS.into(), &alive.into()));
    assert!(alive > 3 && rows.iter().all(|row| row.feature.umap_x.is_some() != row.feature.dead));
    let first = fs::read(&path).unwrap();
    // The SAE where `serve` looks for it.
    fs::create_dir(place.at("index/sae")).unwrap();
    fs::rename(place.at("sae/model.layers.1"), place.at("index/sae/model.layers.1")).unwrap();
    let said = place.answer("map --artifacts index");
    assert!(said.contains(&format!("{alive} of {LATENTS} features have a place")), "{said}");
    assert!(fs::read(&path).unwrap() == first, "the same map again");
    without_places(&mut rows);
    assert!(rows == bare);
}

#[test]
fn another_sae_is_refused() {
    let other = |place: &Place| {
        with_artifacts(place);
        change_tensors(&place.at("sae/model.layers.1/sae.safetensors"), |tensors| {
            tensors.get_mut("b_dec").unwrap().2[0] ^= 1;
        });
    };
    let case = |line: &str, damage: fn(&Place), says: &'static str| Case::new(line, damage, says);
    all_refused(&[
        case("map --artifacts index --sae sae", other, "but the artifacts were made with"),
        case("map --artifacts index", with_artifacts, "there is no SAE here; name one with --sae"),
        case("map --artifacts model --sae sae", |_| (), "source.json"),
    ]);
}
