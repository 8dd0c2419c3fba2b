//! The encoder's CPU twin alone, without a device: all that a stored weight can be, and every remainder that its
//! vectors and groups of tokens can leave.

use shaders::WeightType;
use shaders::cpu::sae_encode::unpack;

use crate::common::{Problem, Sizes, sorted_top_k};

/// A half by its definition; `None` if it is infinite or not a number.
fn value_of_half(half: u16) -> Option<f64> {
    let (exponent, mantissa) = (i32::from(half >> 10 & 31), f64::from(half & 1023) / 1024.0);
    let magnitude = match exponent {
        0 => mantissa * 2f64.powi(-14),
        31 => return None,
        _ => (1.0 + mantissa) * 2f64.powi(exponent - 15),
    };
    Some(if half >> 15 == 0 { magnitude } else { -magnitude })
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
#[cfg_attr(target_arch = "wasm32", wasm_bindgen_test::wasm_bindgen_test)]
fn every_half_is_exact() {
    let packed: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut row = vec![0.0; 1 << 16];
    unpack(WeightType::F16, &packed, &[], &mut row);
    for (half, given) in (0..=u16::MAX).zip(row) {
        match value_of_half(half) {
            // By their bits: 0 and -0 differ.
            Some(value) => assert_eq!(given.to_bits(), (value as f32).to_bits(), "{half:#06x}: {given}, not {value}"),
            None => assert!(!given.is_finite(), "{half:#06x}: {given}, where no number is right"),
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
#[cfg_attr(target_arch = "wasm32", wasm_bindgen_test::wasm_bindgen_test)]
fn every_byte_is_exact() {
    let packed: Vec<u8> = (0..=u8::MAX).collect();
    let mut row = vec![0.0; 256];
    unpack(WeightType::Int8, &packed, &[], &mut row);
    let expected: Vec<f32> = packed.iter().map(|byte| f32::from(byte.cast_signed())).collect();
    assert_eq!(row, expected);

    // 16 groups of 32 channels, each with a scale of its own: subnormal, small, 1, large.
    let halves = [0x0001u16, 0x03ff, 0x2e66, 0x3c00, 0x7bff].into_iter().cycle().take(16);
    let scales: Vec<u8> = halves.clone().flat_map(u16::to_le_bytes).collect();
    let mut row = vec![0.0; 512];
    unpack(WeightType::Int4, &packed, &scales, &mut row);
    let scales: Vec<f64> = halves.map(|half| value_of_half(half).expect("finite")).collect();
    for (channel, given) in row.into_iter().enumerate() {
        let byte = packed[channel / 2];
        let nibble = if channel % 2 == 0 { byte & 15 } else { byte >> 4 };
        // Exact in f32: four bits times eleven.
        let value = (f64::from(nibble) - 8.0) * scales[channel / 32];
        assert_eq!(f64::from(given), value, "channel {channel}");
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
#[cfg_attr(target_arch = "wasm32", wasm_bindgen_test::wasm_bindgen_test)]
fn every_remainder_is_right() {
    for (seed, d_model) in (1..).zip([1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 50, 65]) {
        let types_by_tokens = (1..=9).flat_map(|tokens| WeightType::ALL.map(|weight_type| (tokens, weight_type)));
        for (tokens, weight_type) in types_by_tokens {
            // Odd and even; all are answered.
            let latents = 3 + (d_model + tokens) % 4;
            let sizes = Sizes { tokens, d_model, latents, k: latents, weight_type };
            let problem = Problem::random(sizes, seed);
            problem.assert_right(&problem.answer_of_twin());

            let problem = Problem::whole(sizes, seed);
            let answer = problem.answer_of_twin();
            for token in 0..tokens {
                let (latents, acts) = sorted_top_k(&problem.truth(token).0, latents);
                assert_eq!(answer.row(token), (&latents[..], &acts[..]), "{sizes:?}, token {token}");
            }
        }
    }
}
