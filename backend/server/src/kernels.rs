//! Where CUDA kernels stay between runs.

/// Lets compiled kernels, and which of them is the fastest, be kept in the user's cache: the first prefill of an 8B model
/// compiles and tries them for minutes. A `cubecl.toml` in the working directory has the last word.
pub fn keep() {
    use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        if let (None, Some(folder)) = (&config.compilation.cache, dirs::cache_dir()) {
            let folder = CacheConfig::File(folder.join("lmm-scope").join("kernels"));
            (config.autotune.cache, config.compilation.cache) = (folder.clone(), Some(folder));
            CubeClRuntimeConfig::set(config);
        }
    });
}
