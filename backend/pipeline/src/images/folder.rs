//! A plain folder: every file with a picture's extension, in subfolders too.

use super::{Found, ImagesError, Place, file_name, place::read_file, walk::Walk};
use std::{fs, path::Path};

/// Extensions of pictures that are decoded, in lower case.
const EXTENSIONS: [&str; 6] = ["png", "jpg", "jpeg", "webp", "gif", "bmp"];
/// Ending of a picture's mask, in place of its extension.
const MASK: &str = ".mask.png";
/// Longest caption that is read from a file, in bytes.
const MAX_CAPTION_BYTES: u64 = 1 << 16;

/// Whether a file is a picture by its name; masks are not.
pub(super) fn is_picture(name: &str) -> bool {
    let lower = file_name(name).to_ascii_lowercase();
    let extension = lower.rsplit_once('.').map(|(_, extension)| extension);
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) && !lower.ends_with(MASK)
}

pub(super) fn pictures(root: &Path) -> Result<impl Iterator<Item = Result<Found, ImagesError>> + '_, ImagesError> {
    let entries = Walk::new(root)?;
    Ok(entries.filter_map(move |entry| match entry {
        Ok(entry) => is_picture(&entry.name).then(|| Ok(found(root, entry.name))),
        Err(error) => Some(Err(error)),
    }))
}

fn found(root: &Path, name: String) -> Found {
    let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
    let mask = format!("{stem}{MASK}");
    Found {
        caption: caption(&root.join(format!("{stem}.txt"))),
        mask: root.join(&mask).is_file().then_some(Place::File { file: mask }),
        content: read_file(&root.join(&name)),
        place: Place::File { file: name.clone() },
        id: name,
    }
}

/// What is in a caption's file, if it is one.
fn caption(path: &Path) -> String {
    let short = fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_CAPTION_BYTES);
    let text = if short { fs::read_to_string(path).unwrap_or_default() } else { String::new() };
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::is_picture;

    #[test]
    fn pictures_are_known_by_their_names() {
        for name in ["a.png", "b/c.JPEG", "a.mask.webp", "x.y.jpg"] {
            assert!(is_picture(name), "{name}");
        }
        for name in ["a", "png", "a.mask.png", "b.MASK.PNG", "a.png.txt", "b.png/c"] {
            assert!(!is_picture(name), "{name}");
        }
    }
}
