//! Image sets of every layout: the same pictures, captions and masks, whichever way they are kept.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow_schema::{DataType, Field, Fields};
use image::{ImageFormat, Rgb, RgbImage};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use pipeline::images::{
    Found, ImageSet, ImagesError, Layout, Listed, ListedPicture, Place, PlaceReader, list, read_list,
};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::Cursor,
    path::Path,
    sync::Arc,
};

/// A picture unlike those of other numbers.
fn png(number: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_pixel(6, 4, Rgb([number, 2, 3])).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn write(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Lists a set into `list.parquet` in a folder of its own, and reads every picture and mask again by its place.
fn listed(set: &ImageSet) -> (Listed, Vec<ListedPicture>, Vec<Option<Vec<u8>>>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list.parquet");
    let mut told = 0;
    let listed = list(set, &path, &mut File::create(&path).unwrap(), &mut |pictures| told = pictures).unwrap();
    let pictures = read_list(&path, 0..listed.pictures).unwrap();
    assert_eq!((told, pictures.len()), (listed.pictures, listed.pictures as usize));
    let mut reader = PlaceReader::new(set.root());
    let mut masks = Vec::new();
    for (number, picture) in pictures.iter().enumerate() {
        assert_eq!(picture.image as usize, number);
        if picture.problem.is_empty() {
            let bytes = reader.read(&picture.place).unwrap();
            let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(sha256, picture.sha256, "{}", picture.id);
        }
        masks.push(picture.mask.as_ref().map(|mask| reader.read(mask).unwrap()));
    }
    // Backwards as well: every picture without those before it.
    for picture in pictures.iter().rev().filter(|picture| picture.problem.is_empty()) {
        assert!(!PlaceReader::new(set.root()).read(&picture.place).unwrap().is_empty());
        assert!(!reader.read(&picture.place).unwrap().is_empty());
    }
    (listed, pictures, masks)
}

fn ids(pictures: &[ListedPicture]) -> Vec<&str> {
    pictures.iter().map(|picture| picture.id.as_str()).collect()
}

#[test]
fn a_folder_of_pictures() {
    let root = tempfile::tempdir().unwrap();
    for (name, number) in [("b/two.PNG", 2), ("a.png", 1), ("b/again.png", 1), ("z.jpg", 3), (".hidden.png", 4)] {
        write(root.path(), name, &png(number));
    }
    for (name, text) in [("a.txt", "a red thing\n"), ("b/readme.md", "no picture"), (".git/x.png", "no picture")] {
        write(root.path(), name, text.as_bytes());
    }
    write(root.path(), "a.mask.png", &png(9));
    write(root.path(), "broken.webp", b"no picture");
    let set = ImageSet::open(root.path(), None).unwrap();
    assert_eq!(set.layout(), Layout::Folder);
    let (all, pictures, masks) = listed(&set);
    assert_eq!(ids(&pictures), ["a.png", "b/again.png", "b/two.PNG", "broken.webp", "z.jpg"]);
    // What is in a file is found out when it is decoded.
    assert_eq!((all.pictures, all.duplicates, all.unreadable), (5, 1, 0));
    assert_eq!(pictures.iter().map(|picture| picture.first).collect::<Vec<_>>(), [0, 0, 2, 3, 4]);
    assert!(pictures[1].is_duplicate() && !pictures[0].is_duplicate());
    assert_eq!((pictures[0].caption.as_str(), pictures[1].caption.as_str()), ("a red thing", ""));
    assert_eq!(masks, [Some(png(9)), None, None, None, None]);
    assert_eq!(pictures[2].place, Place::File { file: "b/two.PNG".into() });

    let again = ImageSet::open(root.path(), Some(Layout::Folder)).unwrap();
    assert_eq!((again.listing(), listed(&again).0), (set.listing(), all));
    write(root.path(), "b/more.png", &png(7));
    assert_ne!(ImageSet::open(root.path(), None).unwrap().listing(), set.listing());
}

#[test]
fn an_image_folder_with_metadata() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "train/one.png", &png(1));
    write(root.path(), "train/deep/two.png", &png(2));
    write(root.path(), "train/masks/one.png", &png(9));
    write(root.path(), "train/unnamed.png", &png(3));
    write(
        root.path(),
        "train/metadata.jsonl",
        br#"{"file_name": "deep/two.png", "text": "two", "id": 17}
{"file_name": "one.png", "caption": " one ", "text": "other", "mask_file_name": "masks/one.png"}

{"file_name": "missing.png"}
{"file_name": "one.png"}"#,
    );
    let set = ImageSet::open(root.path(), None).unwrap();
    assert_eq!(set.layout(), Layout::ImageFolder);
    let (all, pictures, masks) = listed(&set);
    // The same id again has the picture's number.
    assert_eq!(ids(&pictures), ["17", "train/one.png", "train/missing.png", "train/one.png#3"]);
    assert_eq!((all.pictures, all.duplicates, all.unreadable), (4, 1, 1));
    let captions: Vec<&str> = pictures.iter().map(|picture| picture.caption.as_str()).collect();
    assert_eq!(captions, ["two", "one", "", ""]);
    assert_eq!(masks, [None, Some(png(9)), None, None]);
    assert!(!pictures[2].problem.is_empty() && pictures[2].sha256.is_empty());
    assert_eq!(ImageSet::open(&root.path().join("train/metadata.jsonl"), None).unwrap().layout(), Layout::ImageFolder);

    for (line, says) in [
        ("{", "line 1: not a JSON object"),
        (r#"{"image": "one.png"}"#, "there is no file_name"),
        (r#"{"file_name": "../../one.png"}"#, "not in the set's folder"),
    ] {
        write(root.path(), "train/metadata.jsonl", line.as_bytes());
        let set = ImageSet::open(root.path(), None).unwrap();
        let error = set.pictures().unwrap().find_map(Result::err).unwrap().to_string();
        assert!(error.contains("metadata.jsonl: ") && error.contains(says), "{error}");
    }
}

/// A column of structs of bytes and path, as the library `datasets` writes pictures.
fn hf_images(cells: &[(Option<Vec<u8>>, Option<&str>)]) -> ArrayRef {
    let bytes: BinaryArray = cells.iter().map(|(bytes, _)| bytes.as_deref()).collect();
    let paths: StringArray = cells.iter().map(|(_, path)| *path).collect();
    let fields =
        Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
    Arc::new(StructArray::new(fields, vec![Arc::new(bytes), Arc::new(paths)], None))
}

/// Two rows in a row group, so that places cross them.
fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_size(2).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_files_of_hugging_face() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "data/beside.png", &png(3));
    let cells = [
        (Some(png(1)), Some("one.png")),
        (Some(png(2)), None),
        (None, Some("beside.png")),
        (None, None),
        (Some(png(1)), Some("again.png")),
        (None, Some("../../elsewhere.png")),
        (Some(png(5)), Some("one.png")),
    ];
    let masks = [None, Some(png(9)), None, None, None, None, None].map(|mask| (mask, None));
    let captions = [Some("one"), None, Some("three"), None, None, None, None];
    let columns = vec![
        ("text", Arc::new(StringArray::from(captions.to_vec())) as ArrayRef),
        ("mask", hf_images(&masks)),
        ("image", hf_images(&cells)),
    ];
    write_parquet(&root.path().join("data/train-00000.parquet"), columns);
    let plain: BinaryArray = [Some(png(6)), Some(png(7)), Some(png(8))].iter().map(|bytes| bytes.as_deref()).collect();
    let numbers = Int64Array::from(vec![60, 70, 80]);
    let columns = vec![("id", Arc::new(numbers) as ArrayRef), ("webp", Arc::new(plain) as ArrayRef)];
    write_parquet(&root.path().join("data/train-00001.parquet"), columns);

    let set = ImageSet::open(root.path(), None).unwrap();
    assert_eq!(set.layout(), Layout::Parquet);
    let (all, pictures, masks) = listed(&set);
    let first = "data/train-00000.parquet";
    let expected = [
        "one.png".to_owned(),
        format!("{first}:1"),
        "beside.png".to_owned(),
        format!("{first}:3"),
        "again.png".to_owned(),
        "../../elsewhere.png".to_owned(),
        "one.png#6".to_owned(),
        "60".to_owned(),
        "70".to_owned(),
        "80".to_owned(),
    ];
    assert_eq!(ids(&pictures), expected);
    assert_eq!((all.pictures, all.duplicates, all.unreadable), (10, 1, 2));
    assert_eq!((pictures[0].caption.as_str(), pictures[2].caption.as_str()), ("one", "three"));
    assert_eq!(pictures[2].place, Place::File { file: "data/beside.png".into() });
    assert_eq!(pictures[6].place, Place::Cell { file: first.into(), row: 6, column: "image".into() });
    assert_eq!((pictures[4].first, pictures[3].problem.as_str()), (0, "the row has no picture"));
    assert!(pictures[5].problem.contains("not in the set's folder"), "{}", pictures[5].problem);
    assert_eq!(masks.iter().map(Option::is_some).collect::<Vec<_>>()[..3], [false, true, false]);
    assert_eq!(masks[1], Some(png(9)));

    let columns = vec![("label", Arc::new(Int64Array::from(vec![1])) as ArrayRef)];
    write_parquet(&root.path().join("data/labels.parquet"), columns);
    let set = ImageSet::open(&root.path().join("data/labels.parquet"), None).unwrap();
    let error = set.pictures().unwrap().find_map(Result::err).unwrap().to_string();
    assert!(error.contains("labels.parquet: no column holds pictures") && error.contains("it has label"), "{error}");
}

fn write_tar(path: &Path, entries: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(File::create(path).unwrap());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap();
}

#[test]
fn tars_of_webdataset() {
    let root = tempfile::tempdir().unwrap();
    let long = format!("{}/5.png", "folder".repeat(30));
    let (one, two, three, mask) = (png(1), png(2), png(3), png(9));
    write_tar(
        &root.path().join("part-0.tar"),
        &[
            ("0001.json", br#"{"caption": "one", "width": 6}"#),
            ("0001.png", &one),
            ("0001.mask.png", &mask),
            ("./0002.txt", b"two\n"),
            ("./0002.JPG", &two),
            ("./._0002.JPG", b"a note"),
            ("0003.txt", b"words alone"),
            (&long, &three),
        ],
    );
    write_tar(&root.path().join("part-1.tar"), &[("0001.png", &one), ("0002.left.png", &png(4))]);
    let set = ImageSet::open(root.path(), None).unwrap();
    assert_eq!(set.layout(), Layout::WebDataset);
    let (all, pictures, masks) = listed(&set);
    let fourth = format!("part-0/{}", long.strip_suffix(".png").unwrap());
    let expected = ["part-0/0001", "part-0/0002", "part-0/0003", &fourth, "part-1/0001", "part-1/0002"];
    assert_eq!(ids(&pictures), expected);
    assert_eq!((all.pictures, all.duplicates, all.unreadable), (6, 1, 1));
    assert_eq!((pictures[0].caption.as_str(), pictures[1].caption.as_str()), ("one", "two"));
    assert_eq!((pictures[2].problem.as_str(), pictures[4].first), ("the sample has no picture", 0));
    assert_eq!(masks, [Some(png(9)), None, None, None, None, None]);

    // One tar: its keys alone are the ids.
    let alone = ImageSet::open(&root.path().join("part-1.tar"), None).unwrap();
    assert_eq!(ids(&listed(&alone).1), ["0001", "0002"]);

    let whole = fs::read(root.path().join("part-0.tar")).unwrap();
    fs::write(root.path().join("part-0.tar"), &whole[..whole.len() - 1600]).unwrap();
    let found: Vec<Result<Found, ImagesError>> =
        ImageSet::open(root.path(), None).unwrap().pictures().unwrap().collect();
    let error = found.into_iter().find_map(Result::err).map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("part-0.tar: "), "{error}");
}

#[test]
fn what_is_no_set_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let error = |path: &Path, layout| ImageSet::open(path, layout).unwrap_err().to_string();
    assert!(error(&root.path().join("missing"), None).contains("missing"));
    assert!(error(root.path(), None).contains("no pictures here"));
    write(root.path(), "a.png", &png(1));
    assert!(error(root.path(), Some(Layout::Parquet)).contains("nothing here is of the layout parquet"));
    write(root.path(), "set.tar.gz", b"x");
    assert!(error(&root.path().join("set.tar.gz"), None).contains("not compressed"));
    write(root.path(), "set.tar", b"x");
    assert!(error(&root.path().join("set.tar"), Some(Layout::Parquet)).contains("webdataset, not parquet"));
    // A folder with pictures and a tar is a WebDataset, unless it is said otherwise.
    assert_eq!(ImageSet::open(root.path(), None).unwrap().layout(), Layout::WebDataset);
    assert_eq!(ImageSet::open(root.path(), Some(Layout::Folder)).unwrap().layout(), Layout::Folder);
    for name in ["folder", "imagefolder", "parquet", "webdataset"] {
        assert_eq!(name.parse::<Layout>().unwrap().to_string(), name);
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(root.path(), root.path().join("loop")).unwrap();
        assert!(error(root.path(), None).contains("folders deep"));
    }
}
