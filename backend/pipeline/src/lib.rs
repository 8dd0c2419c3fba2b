//! Datasets, caching, examples, training: how the numbers are made
