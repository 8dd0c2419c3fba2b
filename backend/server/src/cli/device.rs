//! `--device`: which backend computes.

use super::CliError;
use crate::engine::Device;
use burn::tensor::backend::Backend;

/// Work that runs on any backend.
pub trait OnBackend {
    fn run<B: Backend>(self, device: &B::Device) -> Result<(), CliError>;
}

/// Fails if nothing can be computed there.
pub fn check_device(device: Device) -> Result<(), CliError> {
    match device {
        Device::Cpu => Ok(()),
        #[cfg(feature = "cuda")]
        Device::Cuda(number) => check_card(device, &burn::backend::cuda::CudaDevice::new(number)),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(no_cuda()),
    }
}

/// Computes something: a driver or a card that is missing is a panic in the libraries that look for it.
#[cfg(feature = "cuda")]
fn check_card(device: Device, card: &burn::backend::cuda::CudaDevice) -> Result<(), CliError> {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    crate::kernels::keep();
    let computed = AssertUnwindSafe(|| burn::tensor::Tensor::<model::Cuda, 1>::ones([8], card).sum().into_data());
    match catch_unwind(computed) {
        Ok(_) => Ok(()),
        Err(_) => Err(CliError::flag("--device", format!("{device} cannot be used: {}", super::first_panic()))),
    }
}

/// Does `work` on `device`.
pub fn run_on(device: Device, work: impl OnBackend) -> Result<(), CliError> {
    match device {
        Device::Cpu => work.run::<model::Cpu>(&Default::default()),
        #[cfg(feature = "cuda")]
        Device::Cuda(number) => {
            crate::kernels::keep();
            work.run::<model::Cuda>(&burn::backend::cuda::CudaDevice::new(number))
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(no_cuda()),
    }
}

#[cfg(not(feature = "cuda"))]
fn no_cuda() -> CliError {
    CliError::flag("--device", "this build has no CUDA; build with --features cuda")
}
