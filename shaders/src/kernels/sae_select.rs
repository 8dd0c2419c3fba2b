//! Exact top-k of each row's survivors (`wgsl/sae_select.wgsl`).

use wgpu::{Buffer, ComputePipeline};

use crate::gpu::{Dispatch, Gpu};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/sae_select.wgsl"));

/// The kernel, compiled.
pub(crate) struct SaeSelect {
    pipeline: ComputePipeline,
}

impl SaeSelect {
    pub fn new(gpu: &Gpu) -> Self {
        Self { pipeline: gpu.pipeline("sae_select", WGSL, "main") }
    }

    /// One workgroup per row.
    pub fn dispatch<'a>(&'a self, tokens: u32, bindings: &'a [(u32, &'a Buffer)]) -> Dispatch<'a> {
        Dispatch { pipeline: &self.pipeline, bindings, groups: [tokens, 1] }
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
