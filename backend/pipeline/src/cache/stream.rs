//! Pictures through the model: decoded ahead of it, duplicates and what cannot be read passed over.

use super::{CacheError, Extractor, Skipped, extractor::Encoded};
use crate::images::{ImagesError, ListedPicture, PlaceReader, hex};
use burn::tensor::backend::Backend;
use image::DynamicImage;
use model::picture::decode_picture;
use sha2::{Digest, Sha256};
use std::{
    ops::ControlFlow,
    path::Path,
    sync::mpsc::{SyncSender, sync_channel},
};

/// Decoded pictures that wait for the model.
const AHEAD: usize = 4;

/// What became of a picture.
pub(crate) enum Passed {
    /// Its number, and what is kept of it.
    Encoded(u32, Encoded),
    Skipped(Skipped),
}

/// A picture on its way to the model.
enum Coming {
    /// Its number, its id, its pixels.
    Picture(u32, String, DynamicImage),
    Skipped(Skipped),
}

/// Runs pictures through the model in their order and tells what became of each, until `take` breaks off. `root` is
/// their set's.
///
/// # Errors
/// What is wrong with the set as a whole, or with the model; what `take` says.
pub(crate) fn pass<B: Backend>(
    extractor: &Extractor<B>,
    root: &Path,
    pictures: Vec<ListedPicture>,
    keep_hidden: bool,
    take: &mut dyn FnMut(Passed) -> Result<ControlFlow<()>, CacheError>,
) -> Result<(), CacheError> {
    std::thread::scope(|scope| -> Result<(), CacheError> {
        let (sender, receiver) = sync_channel(AHEAD);
        scope.spawn(move || decode_all(root, pictures, &sender));
        for coming in receiver {
            let passed = match coming? {
                Coming::Skipped(skipped) => Passed::Skipped(skipped),
                Coming::Picture(image, id, decoded) => {
                    let encoded = extractor.run(decoded, keep_hidden);
                    let encoded =
                        encoded.map_err(|error| CacheError::Picture { image, id, source: Box::new(error) })?;
                    Passed::Encoded(image, encoded)
                }
            };
            if take(passed)?.is_break() {
                break;
            }
        }
        Ok(())
    })
}

/// Reads, checks and decodes pictures, until nobody takes them any more. Duplicates are passed over.
fn decode_all(root: &Path, pictures: Vec<ListedPicture>, sender: &SyncSender<Result<Coming, ImagesError>>) {
    let mut reader = PlaceReader::new(root);
    for picture in pictures.into_iter().filter(|picture| !picture.is_duplicate()) {
        let coming = decode(&mut reader, root, picture);
        let failed = coming.is_err();
        if sender.send(coming).is_err() || failed {
            return;
        }
    }
}

fn decode(reader: &mut PlaceReader, root: &Path, picture: ListedPicture) -> Result<Coming, ImagesError> {
    let skipped = |picture: ListedPicture, reason: String| {
        Coming::Skipped(Skipped { image: picture.image, id: picture.id, reason })
    };
    if !picture.problem.is_empty() {
        let reason = picture.problem.clone();
        return Ok(skipped(picture, reason));
    }
    let bytes = reader.read(&picture.place)?;
    if hex(&Sha256::digest(&bytes)) != picture.sha256 {
        return Err(ImagesError::File {
            path: root.join(picture.place.file()),
            reason: format!("picture {} has changed since the set was listed; begin anew in another --out", picture.id),
        });
    }
    Ok(match decode_picture(&bytes) {
        Ok(decoded) => Coming::Picture(picture.image, picture.id, decoded),
        Err(error) => skipped(picture, error.to_string()),
    })
}
