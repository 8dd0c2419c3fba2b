use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

const SCHEME: &str = "s3://";

/// Where files lie: in a folder, or under a prefix of a bucket, `s3://bucket/prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    Folder(PathBuf),
    Bucket {
        bucket: String,
        /// Without a slash at either end; empty: the whole bucket.
        prefix: String,
    },
}

impl Location {
    /// # Errors
    /// When it begins as an address of S3 does, but is none.
    pub fn from_os(text: OsString) -> Result<Self, String> {
        let Some(rest) = text.to_str().and_then(|text| text.strip_prefix(SCHEME)) else {
            return if text.is_empty() { Err("names nothing".to_owned()) } else { Ok(Self::Folder(text.into())) };
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let parts = || prefix.split('/').filter(|_| !prefix.is_empty());
        if bucket.is_empty() || !bucket.chars().all(plain) || parts().any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!("`{SCHEME}{rest}` is not {SCHEME}bucket/prefix"));
        }
        Ok(Self::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::Bucket { bucket, prefix } if prefix.is_empty() => write!(f, "{SCHEME}{bucket}"),
            Self::Bucket { bucket, prefix } => write!(f, "{SCHEME}{bucket}/{prefix}"),
        }
    }
}

impl From<&Path> for Location {
    fn from(folder: &Path) -> Self {
        Self::Folder(folder.to_owned())
    }
}

impl From<&PathBuf> for Location {
    fn from(folder: &PathBuf) -> Self {
        Self::Folder(folder.clone())
    }
}

impl From<&Location> for Location {
    fn from(location: &Location) -> Self {
        location.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_folders() {
        let read = |text: &str| Location::from_os(text.into());
        let bucket = |bucket: &str, prefix: &str| Ok(Location::Bucket { bucket: bucket.into(), prefix: prefix.into() });
        for (text, expected, shown) in [
            ("s3://scope/runs/7", bucket("scope", "runs/7"), "s3://scope/runs/7"),
            ("s3://scope/runs/", bucket("scope", "runs"), "s3://scope/runs"),
            ("s3://scope", bucket("scope", ""), "s3://scope"),
            ("s3/scope", Ok(Location::Folder("s3/scope".into())), "s3/scope"),
        ] {
            assert_eq!(read(text), expected);
            assert_eq!(read(text).map(|location| location.to_string()), Ok(shown.to_owned()));
        }
        for wrong in ["", "s3://", "s3:///runs", "s3://a b/runs", "s3://scope//runs", "s3://scope/../runs"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
