//! `--device`: which backend computes.

use super::CliError;
use crate::engine::Device;
use burn::tensor::backend::Backend;

/// Work that runs on any backend.
pub trait OnBackend {
    fn run<B: Backend>(self, device: &B::Device) -> Result<(), CliError>;
}

/// Fails if this build cannot compute there.
pub fn check_device(device: Device) -> Result<(), CliError> {
    match device {
        Device::Cuda(_) if !cfg!(feature = "cuda") => Err(no_cuda()),
        _ => Ok(()),
    }
}

/// Does `work` on `device`.
pub fn run_on(device: Device, work: impl OnBackend) -> Result<(), CliError> {
    match device {
        Device::Cpu => work.run::<model::Cpu>(&Default::default()),
        #[cfg(feature = "cuda")]
        Device::Cuda(number) => work.run::<model::Cuda>(&burn::backend::cuda::CudaDevice::new(number)),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(no_cuda()),
    }
}

fn no_cuda() -> CliError {
    CliError::flag("--device", "this build has no CUDA; build with --features cuda")
}
