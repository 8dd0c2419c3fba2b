//! Image sets: the pictures that a model looks at, from whatever form people keep them in.
//!
//! - [`Layout::Folder`]: files, in subfolders too. The id is the path; a caption is `NAME.txt`, a mask `NAME.mask.png`
//!   beside `NAME.jpg`.
//! - [`Layout::ImageFolder`]: what the lines of `metadata.jsonl` name as `file_name`. `id`, else the path; `caption` or
//!   `text`; `mask_file_name` or `mask`.
//! - [`Layout::Parquet`]: rows with a struct of `bytes` and `path`, or with plain bytes. `id`, `image_id` or `key`,
//!   else `path`, else file and row; `caption` or `text`; `mask`.
//! - [`Layout::WebDataset`]: samples of tars. The key; `.txt`, or `.json` with `caption` or `text`; `.mask.png` or
//!   `.seg.png`.
//!
//! [`ImageSet::pictures`] streams a set in an order that is always the same. Memory holds one picture, the names of one
//! folder (or of the entries of one tar), and one batch of a Parquet file. [`list`] numbers the pictures, finds
//! duplicates, and says where each one is, so that any of them can be read later without those before it.

mod cells;
mod error;
mod folder;
mod list;
mod metadata;
mod place;
mod walk;
mod webdataset;

pub use error::ImagesError;
pub use list::{Listed, ListedPicture, MAX_PICTURES, list, read_list};
pub use place::{MAX_PICTURE_BYTES, Place, PlaceReader};

use sha2::{Digest, Sha256};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};
use walk::Walk;

/// How a set's pictures are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Files.
    Folder,
    /// Files that a `metadata.jsonl` names (Hugging Face).
    ImageFolder,
    /// Rows of Parquet files (Hugging Face).
    Parquet,
    /// Samples of tar files.
    WebDataset,
}

impl Layout {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Folder, "folder"),
        (Self::ImageFolder, "imagefolder"),
        (Self::Parquet, "parquet"),
        (Self::WebDataset, "webdataset"),
    ];

    /// Whether this layout's pictures are in, or named by, such a file.
    fn is_part(self, name: &str) -> bool {
        match self {
            Self::Folder => folder::is_picture(name),
            Self::ImageFolder => file_name(name) == metadata::METADATA,
            Self::Parquet => name.ends_with(".parquet"),
            Self::WebDataset => name.ends_with(".tar"),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(layout, _)| layout == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Layout {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, known)| *known == name).map(|(layout, _)| *layout);
        found.ok_or_else(|| format!("`{name}` is not folder, imagefolder, parquet or webdataset"))
    }
}

/// A picture as it is come upon.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub id: String,
    /// Empty if there is none.
    pub caption: String,
    pub place: Place,
    pub mask: Option<Place>,
    /// The file's bytes, or why they cannot be had.
    pub content: Result<Vec<u8>, String>,
}

/// Pictures in order; an error ends them.
pub type Pictures<'a> = Box<dyn Iterator<Item = Result<Found, ImagesError>> + 'a>;

/// A set of pictures on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSet {
    root: PathBuf,
    name: String,
    layout: Layout,
    /// Metadata, Parquet or tar files, by their paths from the root; of a plain folder, none.
    parts: Vec<String>,
    listing: String,
}

impl ImageSet {
    /// Looks through a folder, or takes one Parquet, tar or `metadata.jsonl` file. Without `layout`, a folder with a
    /// `metadata.jsonl` is an ImageFolder, else one with Parquet files is Parquet, else one with tars is a WebDataset,
    /// else its pictures are the set. Names that begin with a dot are passed over.
    ///
    /// # Errors
    /// When there is no such thing, it cannot be read, or holds no pictures in this layout.
    pub fn open(path: &Path, layout: Option<Layout>) -> Result<Self, ImagesError> {
        let metadata = std::fs::metadata(path).map_err(|source| ImagesError::io(path, source))?;
        if metadata.is_dir() { Self::open_folder(path, layout) } else { Self::open_file(path, layout, metadata.len()) }
    }

    fn open_folder(root: &Path, layout: Option<Layout>) -> Result<Self, ImagesError> {
        let mut seen = [false; Layout::ALL.len()];
        let mut hash = Sha256::new();
        // The few files that hold or name many pictures; pictures themselves are not kept.
        let mut parts: Vec<(Layout, String)> = Vec::new();
        for entry in Walk::new(root)? {
            let entry = entry?;
            add_to_listing(&mut hash, &entry.name, entry.bytes);
            for ((layout, _), seen) in Layout::ALL.into_iter().zip(&mut seen) {
                if layout.is_part(&entry.name) {
                    *seen = true;
                    if layout != Layout::Folder {
                        parts.push((layout, entry.name.clone()));
                    }
                }
            }
        }
        let has = |wanted: Layout| Layout::ALL.iter().zip(&seen).any(|((layout, _), seen)| *layout == wanted && *seen);
        let order = [Layout::ImageFolder, Layout::Parquet, Layout::WebDataset, Layout::Folder];
        let chosen = match layout {
            Some(layout) => Some(layout).filter(|layout| has(*layout)),
            None => order.into_iter().find(|layout| has(*layout)),
        };
        let Some(layout) = chosen else {
            let wanted = match layout {
                Some(layout) => format!("nothing here is of the layout {layout}"),
                None => "no pictures here, no metadata.jsonl, and no Parquet or tar files".to_owned(),
            };
            return Err(ImagesError::file(root, wanted));
        };
        let parts = parts.into_iter().filter(|(of, _)| *of == layout).map(|(_, name)| name).collect();
        let name = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { root: root.to_owned(), name, layout, parts, listing: hex(&hash.finalize()) })
    }

    fn open_file(path: &Path, layout: Option<Layout>, bytes: u64) -> Result<Self, ImagesError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = [Layout::ImageFolder, Layout::Parquet, Layout::WebDataset];
        let Some(found) = files.into_iter().find(|layout| layout.is_part(&name)) else {
            let reason = "a set of pictures is a folder, a metadata.jsonl, or a .parquet or .tar file (not compressed)";
            return Err(ImagesError::file(path, reason));
        };
        if let Some(layout) = layout.filter(|layout| *layout != found) {
            return Err(ImagesError::file(path, format!("this is of the layout {found}, not {layout}")));
        }
        let mut hash = Sha256::new();
        add_to_listing(&mut hash, &name, bytes);
        let root = path.parent().filter(|root| !root.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        Ok(Self { root, layout: found, parts: vec![name.clone()], name, listing: hex(&hash.finalize()) })
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Of the folder or file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What places are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// SHA-256 over the names and sizes of all files: cheap to find, and another one if files come, go or grow.
    pub fn listing(&self) -> &str {
        &self.listing
    }

    /// All pictures.
    ///
    /// # Errors
    /// When the folder cannot be read. The iterator's: a file that is damaged as a whole; what is wrong with one
    /// picture is its [`Found::content`].
    pub fn pictures(&self) -> Result<Pictures<'_>, ImagesError> {
        let root = self.root.as_path();
        let (parts, several) = (self.parts.iter(), self.parts.len() > 1);
        Ok(match self.layout {
            Layout::Folder => Box::new(folder::pictures(root)?),
            Layout::ImageFolder => Box::new(parts.flat_map(move |part| flatten(metadata::pictures(root, part)))),
            Layout::Parquet => Box::new(parts.flat_map(move |part| flatten(cells::pictures(root, part)))),
            Layout::WebDataset => {
                Box::new(parts.flat_map(move |part| flatten(webdataset::pictures(root, part, several))))
            }
        })
    }
}

/// An iterator that cannot begin gives its error once.
fn flatten<'a, I>(pictures: Result<I, ImagesError>) -> Pictures<'a>
where
    I: Iterator<Item = Result<Found, ImagesError>> + 'a,
{
    match pictures {
        Ok(pictures) => Box::new(pictures),
        Err(error) => Box::new(std::iter::once(Err(error))),
    }
}

fn add_to_listing(hash: &mut Sha256, name: &str, bytes: u64) {
    hash.update(name.as_bytes());
    hash.update([0]);
    hash.update(bytes.to_le_bytes());
}

/// The last part of a path with slashes.
fn file_name(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// A path from the root, of a name that a file in `folder` (itself from the root, or empty) gives.
fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// The folder of a path from the root; empty for the root itself.
fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// A caption, in the field that has one.
fn caption_of(json: &serde_json::Value) -> String {
    let text = ["caption", "text"].iter().find_map(|name| json.get(name)?.as_str());
    text.unwrap_or_default().trim().to_owned()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
