//! A small fixed problem run at start-up.
//!
//! In the browser a shader that does not compile is only logged and its results are garbage; drivers have bugs. So
//! the GPU earns its trust: small whole numbers, for which f32 arithmetic is exact in any order, must give exactly
//! what the CPU twin gives, ties and padding included.

use crate::kernels::cosine::Cosine;
use crate::kernels::feature_map::FeatureMap;
use crate::kernels::sae_decode::SaeDecode;
use crate::kernels::sae_encode::{Plan, SaeEncode};
use crate::pack::pack;
use crate::tile_shape::{Speeds, TILE_SHAPES};
use crate::{Cancel, Error, Gpu, MapShape, SaeShape, TopK, WeightType, cpu};

const D_MODEL: u32 = 20;
const LATENTS: u32 = 150;
const K: u32 = 12;
/// Two shards of two tiles each.
const PLAN: Plan = Plan { shard_latents: 128, tile_latents: 64, batch_tokens: 64 };
/// Tokens beyond a workgroup's, so that the last one is not full.
const MORE_TOKENS: u32 = 3;

/// Encodes and maps the fixed problem with weights stored as `weight_type`, in these of [`TILE_SHAPES`]. (Compiling all of
/// them takes seconds on a software adapter.)
///
/// # Errors
/// [`Error::WrongAnswer`] if the GPU disagrees with the CPU twin; [`Error::Gpu`], [`Error::Lost`].
pub async fn check(gpu: &Gpu, weight_type: WeightType, shapes: &[usize]) -> Result<(), Error> {
    check_encode(gpu, weight_type, shapes).await?;
    check_map(gpu).await
}

async fn check_encode(gpu: &Gpu, weight_type: WeightType, shapes: &[usize]) -> Result<(), Error> {
    let shape = SaeShape::new(D_MODEL, LATENTS, K)?;
    let weights = whole_numbers(1, shape.weights(), 2);
    // Mostly negative, at most 1: a row that equals b_dec has few positive activations, and its list is padded.
    let b_enc: Vec<f32> = whole_numbers(2, LATENTS as usize, 12).iter().map(|value| value - 11.0).collect();
    let b_dec = whole_numbers(3, D_MODEL as usize, 1);
    let packed = pack(shape, weight_type, &weights);
    let mut sae = SaeEncode::with_plan(gpu, shape, weight_type, PLAN);
    sae.write_rows(gpu, 0, &packed.rows)?;
    sae.write_scales(gpu, 0, &packed.scales)?;
    sae.write_biases(gpu, &b_enc, &b_dec)?;
    let mut twin = cpu::sae_encode::SaeEncode::new(shape, weight_type)?;
    twin.write_rows(0, &packed.rows)?;
    twin.write_scales(0, &packed.scales)?;
    twin.write_biases(&b_enc, &b_dec)?;
    for &at in shapes {
        sae.set_speeds(Speeds::only(&[at]));
        let tokens = TILE_SHAPES[at].tokens() + MORE_TOKENS;
        let mut hidden = whole_numbers(4, (tokens * D_MODEL) as usize, 3);
        hidden[..D_MODEL as usize].copy_from_slice(&b_dec);
        let answer = sae.encode(gpu, &hidden, tokens, &Cancel::default()).await?;
        let expected = twin.encode(&hidden, tokens)?;
        if answer != expected {
            return Err(Error::WrongAnswer(first_difference(&answer, &expected, weight_type)));
        }
    }
    Ok(())
}

/// Decodes and compares rows of a fixed problem.
///
/// # Errors
/// As of [`check`].
pub async fn check_decoder(gpu: &Gpu) -> Result<(), Error> {
    // More channels than a workgroup has threads.
    const CHANNELS: u32 = 70;
    let none = Cancel::default();
    let top =
        TopK { tokens: 3, k: 2, top_indices: vec![4, 0, 2, 1, 0, 3], top_acts: vec![3.0, 2.0, 5.0, 0.0, 1.0, 1.0] };
    let latents = top.active_latents();
    let values = |seed: u32, rows: usize| whole_numbers(seed, rows * CHANNELS as usize, 3);
    let (rows, hidden, b_dec) = (values(6, latents.len()), values(7, 3), values(8, 1));
    let mut decode = SaeDecode::start(gpu, &top, CHANNELS)?;
    decode.add_rows(gpu, &latents, &rows, &none).await?;
    let answer = decode.finish(gpu, &hidden, &b_dec, &none).await?;
    let mut twin = cpu::sae_decode::SaeDecode::start(&top, CHANNELS)?;
    twin.add_rows(&latents, &rows)?;
    if answer != twin.finish(&hidden, &b_dec)? {
        return Err(Error::WrongAnswer("sae_decode gives another reconstruction than its twin".to_owned()));
    }
    let answer = Cosine::new(gpu).similarities(gpu, &b_dec, &rows, &none).await?;
    let expected = cpu::cosine::similarities(&b_dec, &rows)?;
    let close = answer.iter().zip(&expected).all(|(answer, expected)| (answer - expected).abs() <= 1e-5);
    if close { Ok(()) } else { Err(Error::WrongAnswer("cosine gives other numbers than its twin".to_owned())) }
}

async fn check_map(gpu: &Gpu) -> Result<(), Error> {
    // One feature per patch in turn; 2x upsampling of whole numbers is exact.
    let top = TopK { tokens: 12, k: 1, top_indices: [7, 9].repeat(6), top_acts: whole_numbers(5, 12, 100) };
    let shape = MapShape::new([3, 4], [6, 8])?;
    let answer = FeatureMap::new(gpu).map(gpu, &top, 7, 0, shape, &Cancel::default()).await?;
    let expected = cpu::feature_map::feature_map(&top, 7, 0, shape)?;
    let worst = answer.iter().zip(&expected).find(|(answer, expected)| {
        let off = (*answer - *expected).abs();
        off.is_nan() || off > 1e-3
    });
    match worst {
        Some((answer, expected)) => {
            let [answer, expected] = [answer, expected].map(|value| *value as i64);
            Err(Error::WrongAnswer(format!("feature_map gives about {answer} where {expected} is right")))
        }
        None => Ok(()),
    }
}

fn first_difference(answer: &TopK, expected: &TopK, weight_type: WeightType) -> String {
    // The right ones are whole numbers.
    let acts = |top: &TopK| top.top_acts.iter().map(|act| *act as i64).collect::<Vec<_>>();
    let pairs = |top: &TopK| top.top_indices.iter().copied().zip(acts(top)).collect::<Vec<_>>();
    let (answered, wanted) = (pairs(answer), pairs(expected));
    match answered.iter().zip(&wanted).position(|(a, b)| a != b) {
        Some(at) => format!(
            "sae_encode with {weight_type:?} weights gives {:?} at token {}, rank {}, where {:?} is right",
            answered[at],
            at / expected.k as usize,
            at % expected.k as usize,
            wanted[at]
        ),
        None => format!("sae_encode gives {} values where {} are right", answered.len(), wanted.len()),
    }
}

/// Pseudo-random whole numbers from -`most` to `most` (a 32-bit LCG; its high bits).
fn whole_numbers(seed: u32, count: usize, most: u32) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 16) % (2 * most + 1)) as f32 - most as f32
        })
        .collect()
}
