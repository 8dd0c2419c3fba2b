//! Unpacking and products in the browser, in instructions of `simd128`, which every browser with WebGPU has: loops over
//! lanes and accumulators stay loops in a bundle that is compiled for its size.

use std::arch::wasm32::*;

use crate::WeightType;

/// Tokens that share the loads of a pair of weights. Eight accumulators, and one vector of each row at a time: with
/// two, V8 took a fifth longer on x86-64, which has sixteen registers.
pub const TOKENS: usize = 4;
/// Rows of hidden states come in any number.
pub const PAD: usize = 1;
pub const LATENTS: usize = 2;

/// All dot products of `hidden` with `weights`, each `[width]`; a token that is not there is empty, and last.
pub fn dots(hidden: [&[f32]; TOKENS], weights: [&[f32]; LATENTS]) -> [[f32; LATENTS]; TOKENS] {
    if !hidden[TOKENS - 1].is_empty() {
        return dots_of_four(hidden, weights);
    }
    let mut dots = [[0.0; LATENTS]; TOKENS];
    for (dots, hidden) in dots.iter_mut().zip(hidden).take_while(|(_, hidden)| !hidden.is_empty()) {
        *dots = dots_of_one(hidden, weights);
    }
    dots
}

#[target_feature(enable = "simd128")]
fn dots_of_four(hidden: [&[f32]; TOKENS], weights: [&[f32]; LATENTS]) -> [[f32; LATENTS]; TOKENS] {
    let first = vectors(weights[0]);
    // Each by name: of what `map` makes, the length is not known in the loop where size counts.
    let second = &vectors(weights[1])[..first.len()];
    let (hidden0, hidden1) = (&vectors(hidden[0])[..first.len()], &vectors(hidden[1])[..first.len()]);
    let (hidden2, hidden3) = (&vectors(hidden[2])[..first.len()], &vectors(hidden[3])[..first.len()]);
    let (mut sums0, mut sums1, mut sums2, mut sums3) = (zero(), zero(), zero(), zero());
    each(0..first.len(), |i| {
        let weights = [bytemuck::cast(first[i]), bytemuck::cast(second[i])];
        sums0 = add_products(sums0, bytemuck::cast(hidden0[i]), weights);
        sums1 = add_products(sums1, bytemuck::cast(hidden1[i]), weights);
        sums2 = add_products(sums2, bytemuck::cast(hidden2[i]), weights);
        sums3 = add_products(sums3, bytemuck::cast(hidden3[i]), weights);
    });
    [totals(sums0), totals(sums1), totals(sums2), totals(sums3)]
}

/// Two vectors a step: an addition waits for the one before, so four accumulators are under way at once.
#[target_feature(enable = "simd128")]
fn dots_of_one(hidden: &[f32], weights: [&[f32]; LATENTS]) -> [f32; LATENTS] {
    let (mut sums, mut others) = (zero(), zero());
    let [first, second] = [pairs(weights[0]), pairs(weights[1])];
    each(pairs(hidden).iter().zip(first.iter().zip(second)), |(x, (first, second))| {
        let x: [v128; 2] = bytemuck::cast(*x);
        let [first, second]: [[v128; 2]; LATENTS] = [bytemuck::cast(*first), bytemuck::cast(*second)];
        sums = add_products(sums, x[0], [first[0], second[0]]);
        others = add_products(others, x[1], [first[1], second[1]]);
    });
    totals([f32x4_add(sums[0], others[0]), f32x4_add(sums[1], others[1])])
}

/// `for`, with the test at the end of the loop: LLVM does not move it there where size counts, and only there it lets
/// V8 keep constants in registers.
#[inline(always)]
fn each<T>(mut items: impl Iterator<Item = T>, mut body: impl FnMut(T)) {
    let Some(mut item) = items.next() else { return };
    loop {
        body(item);
        match items.next() {
            Some(next) => item = next,
            None => return,
        }
    }
}

/// A row `[width]` in vectors. Nothing is left over: widths are multiples of eight.
#[inline(always)]
fn vectors(row: &[f32]) -> &[[f32; 4]] {
    row.as_chunks().0
}

/// A row `[width]` in pairs of vectors.
#[inline(always)]
fn pairs(row: &[f32]) -> &[[f32; 8]] {
    row.as_chunks().0
}

/// Written out: `[zero; 2]` is a loop where size counts.
#[inline(always)]
fn zero() -> [v128; LATENTS] {
    [f32x4_splat(0.0), f32x4_splat(0.0)]
}

#[inline(always)]
fn add_products(sums: [v128; LATENTS], x: v128, weights: [v128; LATENTS]) -> [v128; LATENTS] {
    [f32x4_add(sums[0], f32x4_mul(x, weights[0])), f32x4_add(sums[1], f32x4_mul(x, weights[1]))]
}

/// Each vector's sum.
#[inline(always)]
fn totals([first, second]: [v128; LATENTS]) -> [f32; LATENTS] {
    let sums = f32x4_add(i32x4_shuffle::<0, 4, 1, 5>(first, second), i32x4_shuffle::<2, 6, 3, 7>(first, second));
    [
        f32x4_extract_lane::<0>(sums) + f32x4_extract_lane::<2>(sums),
        f32x4_extract_lane::<1>(sums) + f32x4_extract_lane::<3>(sums),
    ]
}

/// One packed row as f32 `[width]`. int8 comes without its scale, which is one for the whole row; int4 with its scales.
#[target_feature(enable = "simd128")]
pub fn unpack(weight_type: WeightType, packed: &[u8], scales: &[u8], row: &mut [f32]) {
    match weight_type {
        WeightType::F32 => bytemuck::cast_slice_mut(row).copy_from_slice(packed),
        WeightType::F16 => {
            each(row.as_chunks_mut::<8>().0.iter_mut().zip(packed.as_chunks::<16>().0), |(to, halves)| {
                let halves = bytemuck::cast(*halves);
                let floats = [i32x4_extend_low_i16x8(halves), i32x4_extend_high_i16x8(halves)];
                *to = bytemuck::cast([from_halves(floats[0]), from_halves(floats[1])]);
            });
        }
        WeightType::Int8 => {
            each(row.as_chunks_mut::<16>().0.iter_mut().zip(packed.as_chunks::<16>().0), |(to, bytes)| {
                *to = bytemuck::cast(from_bytes(bytemuck::cast(*bytes)));
            });
        }
        WeightType::Int4 => {
            let groups = packed.as_chunks::<16>().0.iter().zip(scales.as_chunks::<2>().0);
            each(row.as_chunks_mut::<32>().0.iter_mut().zip(groups), |(to, (pairs, scale))| {
                let scale = from_halves(i32x4_splat(i16::from_le_bytes(*scale).into()));
                let pairs = bytemuck::cast(*pairs);
                let (even, odd) = (v128_and(pairs, u8x16_splat(15)), u8x16_shr(pairs, 4));
                let low = i8x16_shuffle::<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(even, odd);
                let high = i8x16_shuffle::<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(even, odd);
                *to = bytemuck::cast([scaled(low, scale), scaled(high, scale)]);
            });
        }
    }
}

/// Signed bytes as f32, in their order.
#[inline(always)]
fn from_bytes(bytes: v128) -> [v128; 4] {
    let [low, high] = [i16x8_extend_low_i8x16(bytes), i16x8_extend_high_i8x16(bytes)];
    [
        f32x4_convert_i32x4(i32x4_extend_low_i16x8(low)),
        f32x4_convert_i32x4(i32x4_extend_high_i16x8(low)),
        f32x4_convert_i32x4(i32x4_extend_low_i16x8(high)),
        f32x4_convert_i32x4(i32x4_extend_high_i16x8(high)),
    ]
}

/// Nibbles as weights of int4.
#[inline(always)]
fn scaled(nibbles: v128, scale: v128) -> [v128; 4] {
    let [a, b, c, d] = from_bytes(i8x16_sub(nibbles, i8x16_splat(8)));
    [f32x4_mul(a, scale), f32x4_mul(b, scale), f32x4_mul(c, scale), f32x4_mul(d, scale)]
}

/// Halves, each sign-extended to 32 bits, as f32: exactly; what is infinite or not a number becomes not a number.
///
/// With exponent `e` and mantissa `m` a half is `2^(e - 15) (1 + m / 1024)`, or `2^-14 m / 1024` if `e` is 0. As if it
/// were the first in both cases, and doubled, it is `double`; what is too much is `double / 2`, or `2^-14` if `e` is 0,
/// which is the larger of both either way. No f32 on the way is subnormal: those are slow on some CPUs.
#[inline(always)]
fn from_halves(halves: v128) -> v128 {
    let magnitude = v128_and(i32x4_shl(halves, 13), i32x4_splat(0x0fff_e000));
    // Exponent 31 becomes 255: `2^111` times `double`.
    let large = i32x4_add(magnitude, i32x4_splat(224 << 23));
    let [double, single] = [f32x4_mul(large, power_of_two(-111)), f32x4_mul(large, power_of_two(-112))];
    let float = f32x4_sub(double, f32x4_pmax(single, power_of_two(-14)));
    v128_or(float, v128_and(halves, i32x4_splat(i32::MIN)))
}

#[inline(always)]
fn power_of_two(exponent: i32) -> v128 {
    i32x4_splat((127 + exponent) << 23)
}
