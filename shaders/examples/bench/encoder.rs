//! The encoder in every weight type, and the selection alone.
//!
//! Weights are made, packed and uploaded in pieces, and the CPU twin sees each piece in turn: the whole matrix is only
//! on the GPU.

use std::collections::BTreeSet;

use shaders::cpu::sae_encode::SaeEncode as Twin;
use shaders::kernels::sae_encode::SaeEncode;
use shaders::pack::pack;
use shaders::tile_shape::{ALL_SHAPES, TILE_SHAPES};
use shaders::{Cancel, Error, Gpu, SaeShape, TopK, WeightType, known_answer};

use crate::measure::{Numbers, check_equal, median, once};
use crate::options::text_of;
use crate::table::Row;

/// Weights of a piece.
const PIECE_WEIGHTS: u32 = 1 << 24;
/// The CPU twin is timed up to this many multiply-adds.
const CPU_WORK: f64 = 1e10;
/// Share of the latents that both must name, and by how much activations may differ.
const OVERLAP: f64 = 0.99;
const TOLERANCE: f32 = 1e-3;

/// One token's top k: latents and activations.
type Ranking = Vec<(u32, f32)>;

/// A row for each number of tokens, and what the tile shapes reach.
pub async fn bench(
    gpu: &Gpu,
    shape: SaeShape,
    weight_type: WeightType,
    tokens: &[u32],
) -> Result<(Vec<Row>, String), Error> {
    known_answer::check(gpu, weight_type, &ALL_SHAPES).await?;
    let mut numbers = Numbers(1);
    let most = tokens.iter().copied().max().unwrap_or(1);
    let hidden = numbers.take(most as usize * shape.d_model as usize);
    let biases = [numbers.take(shape.latents as usize), numbers.take(shape.d_model as usize)];
    let mut sae = SaeEncode::new(gpu, shape, weight_type)?;
    sae.write_biases(gpu, &biases[0], &biases[1])?;
    // Memory that ran out is reported here.
    gpu.settle().await?;
    let loaded = load(gpu, &sae, &mut numbers, &biases, &hidden, tokens).await?;

    let speeds = sae.probe(gpu, &Cancel::default()).await?;
    let rates = speeds.0.iter().zip(TILE_SHAPES);
    let rates: Vec<String> = rates
        .map(|(seconds, tile)| format!("{:.1} at {} × {}", 2e-9 / seconds, tile.tokens(), tile.latents()))
        .collect();
    let note = format!(
        "Tile shapes of {} × {} in {}, GFLOP/s at tokens × latents of a workgroup: {}.",
        shape.latents,
        shape.d_model,
        text_of(weight_type),
        rates.join(", ")
    );
    let mut rows = Vec::new();
    for (&count, cpu_seconds) in tokens.iter().zip(loaded.cpu_seconds) {
        let hidden = &hidden[..count as usize * shape.d_model as usize];
        // Also the warm-up.
        check_rankings(&sae.encode(gpu, hidden, count, &Cancel::default()).await?, &loaded.rankings)?;
        let gpu_seconds = median(async || sae.encode(gpu, hidden, count, &Cancel::default()).await.map(|_| ())).await?;
        let weight_bytes = weight_type.row_bytes(shape.d_model) + weight_type.scale_bytes(shape.d_model);
        rows.push(Row {
            kernel: format!("sae_encode, {}", text_of(weight_type)),
            tokens: count,
            d_model: shape.d_model,
            latents: shape.latents,
            k: shape.k,
            gpu_seconds,
            cpu_seconds,
            flop: 2.0 * work(shape, count),
            bytes: f64::from(shape.latents) * weight_bytes as f64 + 4.0 * hidden.len() as f64,
        });
    }
    Ok((rows, note))
}

/// Multiply-adds.
fn work(shape: SaeShape, tokens: u32) -> f64 {
    f64::from(tokens) * shape.weights() as f64
}

/// What the CPU twin says about weights that it never saw at once.
struct Loaded {
    /// By token, for some of them.
    rankings: Vec<(u32, Ranking)>,
    /// For each number of tokens; none where it takes too long.
    cpu_seconds: Vec<Option<f64>>,
}

/// Fills `sae` with random weights.
async fn load(
    gpu: &Gpu,
    sae: &SaeEncode,
    numbers: &mut Numbers,
    [b_enc, b_dec]: &[Vec<f32>; 2],
    hidden: &[f32],
    tokens: &[u32],
) -> Result<Loaded, Error> {
    let (shape, weight_type) = (sae.shape(), sae.weight_type());
    let d_model = shape.d_model as usize;
    let checked: BTreeSet<u32> = tokens.iter().flat_map(|&count| [0, count / 2, count - 1]).collect();
    let checked_hidden: Vec<f32> =
        checked.iter().flat_map(|&token| &hidden[token as usize * d_model..][..d_model]).copied().collect();
    let mut rankings: Vec<(u32, Ranking)> = checked.iter().map(|&token| (token, Vec::new())).collect();
    let mut cpu_seconds: Vec<Option<f64>> =
        tokens.iter().map(|&count| (work(shape, count) <= CPU_WORK).then_some(0.0)).collect();
    // A multiple of 8: pieces begin on whole words.
    let piece = (PIECE_WEIGHTS / shape.d_model / 8 * 8).max(8);
    for first in (0..shape.latents).step_by(piece as usize) {
        let count = piece.min(shape.latents - first);
        let part = SaeShape::new(shape.d_model, count, shape.k.min(count))?;
        let packed = pack(part, weight_type, &numbers.take(part.weights()));
        sae.write_rows(gpu, u64::from(first) * weight_type.row_bytes(shape.d_model), &packed.rows)?;
        sae.write_scales(gpu, u64::from(first) * weight_type.scale_bytes(shape.d_model), &packed.scales)?;
        // One piece at a time is on its way.
        gpu.settle().await?;
        let mut twin = Twin::new(part, weight_type)?;
        twin.write_rows(0, &packed.rows)?;
        twin.write_scales(0, &packed.scales)?;
        twin.write_biases(&b_enc[first as usize..(first + count) as usize], b_dec)?;
        // Fits: a handful.
        let top = twin.encode(&checked_hidden, checked.len() as u32)?;
        for (row, (_, ranking)) in (0..).zip(&mut rankings) {
            let (latents, acts) = top.row(row);
            ranking.extend(latents.iter().map(|latent| first + latent).zip(acts.iter().copied()));
        }
        for (&count, seconds) in tokens.iter().zip(&mut cpu_seconds) {
            if let Some(seconds) = seconds {
                *seconds += once(|| twin.encode(&hidden[..count as usize * d_model], count))?.0;
            }
        }
    }
    // The top k of all is among the top k of the pieces.
    for (_, ranking) in &mut rankings {
        ranking.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranking.truncate(shape.k as usize);
    }
    Ok(Loaded { rankings, cpu_seconds })
}

/// An error if one of the tokens that `top` has is ranked otherwise.
fn check_rankings(top: &TopK, rankings: &[(u32, Ranking)]) -> Result<(), Error> {
    for (token, ranking) in rankings.iter().filter(|(token, _)| *token < top.tokens) {
        let (latents, acts) = top.row(*token);
        let named: BTreeSet<u32> = latents.iter().copied().collect();
        let shared = ranking.iter().filter(|(latent, _)| named.contains(latent)).count() as f64 / ranking.len() as f64;
        // Written so that NaN fails.
        let close = |(&act, &(_, expected)): (&f32, &(u32, f32))| {
            let off: f32 = (act - expected).abs();
            off <= TOLERANCE * (1.0 + expected)
        };
        let same = latents.len() == ranking.len() && shared >= OVERLAP && acts.iter().zip(ranking).all(close);
        if !same {
            let what =
                format!("token {token} shares {shared:.3} of its latents with the CPU twin, or differs in value");
            return Err(Error::WrongAnswer(what));
        }
    }
    Ok(())
}

/// An encode with one channel and weights of 0: next to nothing but the selection, from random biases.
pub async fn bench_select(gpu: &Gpu, latents: u32, k: u32, tokens: u32) -> Result<Row, Error> {
    let shape = SaeShape::new(1, latents, k)?;
    let b_enc = Numbers(2).take(latents as usize);
    let mut sae = SaeEncode::new(gpu, shape, WeightType::F32)?;
    sae.write_biases(gpu, &b_enc, &[0.0])?;
    let mut twin = Twin::new(shape, WeightType::F32)?;
    twin.write_biases(&b_enc, &[0.0])?;
    let hidden = vec![0.0; tokens as usize];
    let (cpu_seconds, expected) = once(|| twin.encode(&hidden, tokens))?;
    check_equal("sae_select", &sae.encode(gpu, &hidden, tokens, &Cancel::default()).await?, &expected)?;
    let gpu_seconds = median(async || sae.encode(gpu, &hidden, tokens, &Cancel::default()).await.map(|_| ())).await?;
    let cpu_seconds = Some(cpu_seconds);
    let kernel = "sae_select, in an encode".to_owned();
    Ok(Row { kernel, tokens, d_model: 1, latents, k, gpu_seconds, cpu_seconds, ..Row::default() })
}
