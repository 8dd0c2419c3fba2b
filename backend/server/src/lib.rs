//! The lmm-scope binary: page, API, engine
