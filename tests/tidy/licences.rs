//! What we ship of others, we ship with their names and licences.

use std::fs;

fn read(path: &str) -> String {
    fs::read_to_string(tests::root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_licence_is_apache_2_and_whole() {
    let licence = read("LICENSE");
    assert!(licence.contains("Apache License") && licence.contains("Version 2.0, January 2004"));
    assert!(licence.contains("END OF TERMS AND CONDITIONS"));
    assert!(read("Cargo.toml").contains("license = \"Apache-2.0\""));
}

#[test]
fn every_font_has_its_licence() {
    let folder = tests::root().join("frontend/fonts");
    let mut fonts = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "woff2") {
            continue;
        }
        fonts += 1;
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let licence = folder.join(format!("{stem}-LICENSE.txt"));
        let text = fs::read_to_string(&licence).unwrap_or_else(|error| panic!("{}: {error}", licence.display()));
        assert!(text.contains("SIL Open Font License") || text.contains("SIL OPEN FONT LICENSE"), "{stem}");
    }
    assert!(fonts > 0, "no fonts found");
}

/// Licences of the picture sets that `lmm-scope pocket` draws its scenes from.
#[test]
fn the_demos_pictures_name_their_authors_and_licences() {
    let credits = read("public/pocket/CREDITS.md");
    for licence in ["Apache-2.0", "CC-BY-4.0", "MIT", "CC0"] {
        assert!(credits.contains(licence), "public/pocket/CREDITS.md does not name {licence}");
    }
    for source in ["noto", "twemoji", "fluent"] {
        assert!(credits.to_lowercase().contains(source), "public/pocket/CREDITS.md does not name {source}");
    }
}
