//! An index that was made on this machine, on its way into a bucket.
//!
//! As in a folder: `index.json` and `source.json` go first and come last, so that what a killed upload leaves is either
//! the older index, or nothing that a reader takes for one.

use super::{
    IndexError,
    staging::{COMMITTING, FILES, not_ours},
};
use std::path::Path;
use store::{files::names, objects::Bucket};

/// A bucket that takes an index. Two of them for one prefix, in two processes, are not kept apart.
#[derive(Debug)]
pub struct Upload {
    bucket: Bucket,
}

impl Upload {
    /// Looks into the bucket, writes a mark and removes it, so that what would stop the upload shows before there is
    /// anything to upload.
    ///
    /// # Errors
    /// When there is no such bucket, no right to read, write and remove in it, or artefacts of something else in it.
    pub fn begin(bucket: Bucket) -> Result<Self, IndexError> {
        let upload = Self { bucket };
        let marked = upload.look()?;
        upload.bucket.write(COMMITTING, "")?;
        if !marked {
            // It says that what is there is ours: a run that ends before its upload leaves none.
            upload.bucket.remove(COMMITTING)?;
        }
        Ok(upload)
    }

    /// Whether there is a mark. Artefacts of something else are an error.
    fn look(&self) -> Result<bool, IndexError> {
        let found = self.bucket.names()?;
        match not_ours(|name| found.contains(name)) {
            Some(reason) => Err(IndexError::other(&self.bucket.at(""), reason)),
            None => Ok(found.contains(COMMITTING)),
        }
    }

    /// Uploads the index in `folder`; tells `say` what it does. An older index ends here, not before.
    ///
    /// # Errors
    /// When artefacts of something else have come meanwhile, or the bucket takes no more: then there is no index in it.
    pub fn commit(self, folder: &Path, say: &dyn Fn(&str)) -> Result<(), IndexError> {
        self.look()?;
        self.bucket.write(COMMITTING, "")?;
        for name in [names::INDEX, names::SOURCE] {
            self.bucket.remove(name)?;
        }
        for name in FILES {
            say(&format!("uploading {name}"));
            self.bucket.upload(name, &folder.join(name))?;
        }
        Ok(self.bucket.remove(COMMITTING)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use std::{collections::BTreeSet, fs, sync::Arc};

    /// What is kept when a bucket is opened again.
    fn opened(store: &Arc<object_store::memory::InMemory>) -> Bucket {
        Bucket::new(store.clone(), "s3://scope/run", "run").unwrap()
    }

    fn named(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn fill(folder: &Path, text: &str) {
        for name in FILES {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn an_upload_is_whole_or_no_index() {
        let (store, place) = (Arc::default(), tempfile::tempdir().unwrap());
        drop(Upload::begin(opened(&store)).unwrap());
        assert!(opened(&store).names().unwrap().is_empty(), "a run that failed, or was killed, leaves nothing");

        fill(place.path(), "first");
        Upload::begin(opened(&store)).unwrap().commit(place.path(), &|_| {}).unwrap();
        opened(&store).write("other", "kept").unwrap();
        let mut all = named(&FILES);
        all.insert("other".to_owned());
        assert_eq!(opened(&store).names().unwrap(), all);

        // A run that fails before its upload leaves the older index.
        drop(Upload::begin(opened(&store)).unwrap());
        assert_eq!(opened(&store).names().unwrap(), all);
        assert_eq!(opened(&store).read(names::INDEX).unwrap(), "first");

        // Half of it cannot be uploaded: what says that it is an index is gone.
        fill(place.path(), "second");
        fs::remove_file(place.path().join(names::TEXTS)).unwrap();
        let uploaded = std::cell::RefCell::new(Vec::new());
        let say = |doing: &str| uploaded.borrow_mut().push(doing.to_owned());
        assert!(Upload::begin(opened(&store)).unwrap().commit(place.path(), &say).is_err());
        assert_eq!(uploaded.borrow().first().map(String::as_str), Some("uploading activations.parquet"));
        let left = opened(&store).names().unwrap();
        assert!(!left.contains(names::INDEX) && !left.contains(names::SOURCE), "{left:?}");
        assert!(left.contains(names::FEATURES) && left.contains("other"), "{left:?}");

        // The next run may go on from there, though one that failed at once lies between.
        drop(Upload::begin(opened(&store)).unwrap());
        fill(place.path(), "third");
        Upload::begin(opened(&store)).unwrap().commit(place.path(), &|_| {}).unwrap();
        assert_eq!(opened(&store).names().unwrap(), all);
        assert_eq!(opened(&store).read(names::INDEX).unwrap(), "third");
    }

    #[test]
    fn artefacts_of_something_else_are_not_replaced() {
        let store = Arc::default();
        opened(&store).write(names::FEATURES, "of the pocket demo").unwrap();
        let said = Upload::begin(opened(&store)).unwrap_err().to_string();
        assert!(said.contains("s3://scope/run: its features.parquet was not made by `index`"), "{said}");
        assert_eq!(opened(&store).names().unwrap(), named(&[names::FEATURES]));

        // What came while the index was made is not replaced either.
        let (store, place) = (Arc::default(), tempfile::tempdir().unwrap());
        fill(place.path(), "an index");
        let upload = Upload::begin(opened(&store)).unwrap();
        opened(&store).write(names::FEATURES, "of the pocket demo").unwrap();
        let said = upload.commit(place.path(), &|_| {}).unwrap_err().to_string();
        assert!(said.contains("was not made by `index`"), "{said}");
        assert_eq!(opened(&store).names().unwrap(), named(&[names::FEATURES]));
        assert_eq!(opened(&store).read(names::FEATURES).unwrap(), "of the pocket demo");
    }
}
