//! The start-up check passes on a device that computes rightly.

use shaders::{Gpu, WeightType, known_answer};

use crate::common::two_worlds;

two_worlds!(the_known_answer_is_given, a_broken_device_says_so);

async fn the_known_answer_is_given(gpu: Gpu) {
    for weight_type in [WeightType::F16, WeightType::F32] {
        known_answer::check(&gpu, weight_type).await.unwrap();
    }
}

async fn a_broken_device_says_so(gpu: Gpu) {
    gpu.lose();
    let error = known_answer::check(&gpu, WeightType::F16).await.expect_err("the device is gone");
    assert!(!error.to_string().is_empty());
}
