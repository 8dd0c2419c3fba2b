//! The start-up check passes on a device that computes rightly.

use shaders::tile_shape::{ALL_SHAPES, PLAIN_SHAPES};
use shaders::{Gpu, WeightType, known_answer};

use crate::common::two_worlds;

two_worlds!(the_known_answer_is_given, a_broken_device_says_so);

async fn the_known_answer_is_given(gpu: Gpu) {
    // A software adapter in the browser compiles each for seconds.
    let shapes = if cfg!(target_arch = "wasm32") { &PLAIN_SHAPES[..] } else { &ALL_SHAPES };
    for weight_type in WeightType::ALL {
        known_answer::check(&gpu, weight_type, shapes).await.unwrap();
    }
    known_answer::check_decoder(&gpu).await.unwrap();
}

async fn a_broken_device_says_so(gpu: Gpu) {
    gpu.lose();
    let error = known_answer::check(&gpu, WeightType::F16, &PLAIN_SHAPES).await.expect_err("the device is gone");
    assert!(!error.to_string().is_empty());
    assert!(known_answer::check_decoder(&gpu).await.is_err());
}
