//! All SQL and all file formats
