//! Exact top-k of each row's survivors (`wgsl/sae_select.wgsl`).

use std::sync::OnceLock;

use wgpu::{Buffer, ComputePipeline};

use crate::gpu::{Dispatch, Gpu};
use crate::source::with_constant;

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/sae_select.wgsl"));

/// Threads of a row: many, or few where waiting for each other is dear (software adapters). Mesa's llvmpipe ends a
/// thread's loops after 65,535 iterations in all: with 32 threads the ranks of k = 1024 can exceed them.
const THREADS: [u32; 2] = [256, 64];

/// The shader with many threads, and with few.
#[must_use]
pub fn sources() -> [String; THREADS.len()] {
    THREADS.map(|threads| with_constant(WGSL, "THREADS", &threads.to_string()))
}

/// The kernel, compiled when first used.
#[derive(Default)]
pub(crate) struct SaeSelect {
    pipelines: [OnceLock<ComputePipeline>; THREADS.len()],
}

impl SaeSelect {
    /// One workgroup per row, with `few` threads or many.
    pub fn dispatch<'a>(
        &'a self,
        gpu: &Gpu,
        few: bool,
        tokens: u32,
        bindings: &'a [(u32, &'a Buffer)],
    ) -> Dispatch<'a> {
        let at = usize::from(few);
        let pipeline = self.pipelines[at].get_or_init(|| gpu.pipeline("sae_select", &sources()[at], "main"));
        Dispatch { pipeline, bindings, groups: [tokens, 1] }
    }
}

#[cfg(test)]
mod tests {
    use super::WGSL;
    use crate::MAX_K;
    use crate::source::constant;

    #[test]
    fn one_workgroup_holds_the_largest_k() {
        assert_eq!(constant(WGSL, "MAX_K"), MAX_K);
    }
}
