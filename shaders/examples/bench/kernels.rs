//! The other kernels.

use shaders::cpu;
use shaders::kernels::cofire::{Cofire, MAX_FEATURES};
use shaders::kernels::cosine::Cosine;
use shaders::kernels::feature_draw::FeatureDraw;
use shaders::kernels::feature_map::FeatureMap;
use shaders::kernels::feature_pool::FeaturePool;
use shaders::kernels::histogram::Histogram;
use shaders::kernels::sae_decode::SaeDecode;
use shaders::{Cancel, Decoded, Error, Gpu, MapShape, PoolBy, TopK};

use crate::measure::{Numbers, check_close, check_equal, median, once};
use crate::options::Sae;
use crate::table::Row;

/// Values of the rows that are uploaded at once, as a page would that fetches them: 64 MiB, 256 MiB.
const DECODER_VALUES: u32 = 1 << 24;
const COSINE_VALUES: u32 = 1 << 26;
/// Features that are listed.
const STRONGEST: usize = 64;
const BINS: u32 = 100;
/// Patches of a picture and its pixels, as of LLaVA.
const GRID: [u32; 2] = [24, 24];
const PICTURE: [u32; 2] = [336, 336];

/// Reconstruction from a random top k.
pub async fn sae_decode(gpu: &Gpu, Sae { d_model, latents, k }: Sae, tokens: u32) -> Result<Row, Error> {
    let mut numbers = Numbers(3);
    let top = numbers.top_k(tokens, k, latents);
    let piece = (DECODER_VALUES / d_model).clamp(1, latents);
    // Every piece of the decoder has the same values: they are not all in memory.
    let rows = numbers.take((piece * d_model) as usize);
    let (hidden, b_dec) = (numbers.take((tokens * d_model) as usize), numbers.take(d_model as usize));
    let active = top.active_latents();
    let (values, channels) = (&rows[..], d_model as usize);
    let pieces = || active.chunks(piece as usize).map(move |latents| (latents, &values[..latents.len() * channels]));
    let decode = async || -> Result<Decoded, Error> {
        let cancel = Cancel::default();
        let mut decode = SaeDecode::start(gpu, &top, d_model)?;
        for (latents, rows) in pieces() {
            decode.add_rows(gpu, latents, rows, &cancel).await?;
        }
        decode.finish(gpu, &hidden, &b_dec, &cancel).await
    };
    let (cpu_seconds, expected) = once(|| {
        let mut twin = cpu::sae_decode::SaeDecode::start(&top, d_model)?;
        for (latents, rows) in pieces() {
            twin.add_rows(latents, rows)?;
        }
        twin.finish(&hidden, &b_dec)
    })?;
    let answer = decode().await?;
    check_close("sae_decode", &answer.reconstruction, &expected.reconstruction, 1e-3)?;
    check_close("the error of sae_decode", &answer.squared_error, &expected.squared_error, 1e-3)?;
    Ok(Row {
        kernel: "sae_decode".to_owned(),
        tokens,
        d_model,
        latents,
        k,
        gpu_seconds: median(async || decode().await.map(|_| ())).await?,
        cpu_seconds: Some(cpu_seconds),
        flop: 2.0 * f64::from(tokens) * f64::from(k) * f64::from(d_model),
        bytes: 4.0 * f64::from(d_model) * (active.len() as f64 + 3.0 * f64::from(tokens)),
    })
}

/// One row beside all rows of a matrix, which come in calls of [`COSINE_VALUES`].
pub async fn cosine(gpu: &Gpu, Sae { d_model, latents, .. }: Sae) -> Result<Row, Error> {
    let mut numbers = Numbers(4);
    let row = numbers.take(d_model as usize);
    let piece = (COSINE_VALUES / d_model).clamp(1, latents);
    let rows = numbers.take((piece * d_model) as usize);
    let values = &rows[..];
    let pieces = || {
        let counts = (0..latents).step_by(piece as usize).map(move |first| piece.min(latents - first));
        counts.map(move |count| &values[..(count * d_model) as usize])
    };
    let kernel = Cosine::new(gpu);
    let answer = kernel.similarities(gpu, &row, &rows, &Cancel::default()).await?;
    check_close("cosine", &answer, &cpu::cosine::similarities(&row, &rows)?, 1e-4)?;
    let (cpu_seconds, ()) = once(|| pieces().try_for_each(|rows| cpu::cosine::similarities(&row, rows).map(|_| ())))?;
    let similarities = async || -> Result<(), Error> {
        for rows in pieces() {
            kernel.similarities(gpu, &row, rows, &Cancel::default()).await?;
        }
        Ok(())
    };
    let values = f64::from(latents) * f64::from(d_model);
    Ok(Row {
        kernel: "cosine".to_owned(),
        d_model,
        latents,
        gpu_seconds: median(similarities).await?,
        cpu_seconds: Some(cpu_seconds),
        flop: 4.0 * values,
        bytes: 4.0 * values,
        ..Row::default()
    })
}

/// All tokens of a random top k.
pub async fn feature_pool(gpu: &Gpu, Sae { latents, k, .. }: Sae, tokens: u32) -> Result<Row, Error> {
    let top = Numbers(5).top_k(tokens, k, latents);
    let all: Vec<u32> = (0..tokens).collect();
    let kernel = FeaturePool::new(gpu, latents)?;
    let twin = || cpu::feature_pool::feature_pool(&top, latents, &all, PoolBy::Mean, STRONGEST);
    let (cpu_seconds, expected) = once(twin)?;
    let strongest = async || kernel.strongest(gpu, &top, &all, PoolBy::Mean, STRONGEST, &Cancel::default()).await;
    check_equal("feature_pool", &strongest().await?, &expected)?;
    Ok(Row {
        kernel: "feature_pool".to_owned(),
        tokens,
        latents,
        k,
        gpu_seconds: median(async || strongest().await.map(|_| ())).await?,
        cpu_seconds: Some(cpu_seconds),
        bytes: entry_bytes(&top) + 8.0 * f64::from(latents),
        ..Row::default()
    })
}

/// As many features as are compared at most, of a random top k.
pub async fn cofire(gpu: &Gpu, Sae { latents, k, .. }: Sae, tokens: u32) -> Result<Row, Error> {
    let top = Numbers(6).top_k(tokens, k, latents);
    let features: Vec<u32> = (0..latents).take(MAX_FEATURES).collect();
    let kernel = Cofire::new(gpu);
    let (cpu_seconds, expected) = once(|| cpu::cofire::cofire(&top, &features))?;
    let counts = async || kernel.counts(gpu, &top, &features, &Cancel::default()).await;
    check_equal("cofire", &counts().await?, &expected)?;
    Ok(Row {
        kernel: format!("cofire, {} features", features.len()),
        tokens,
        latents,
        k,
        gpu_seconds: median(async || counts().await.map(|_| ())).await?,
        cpu_seconds: Some(cpu_seconds),
        bytes: entry_bytes(&top),
        ..Row::default()
    })
}

/// Random values, half of them positive.
pub async fn histogram(gpu: &Gpu, count: usize) -> Result<Row, Error> {
    let values = Numbers(7).take(count);
    let kernel = Histogram::new(gpu);
    let (cpu_seconds, expected) = once(|| cpu::histogram::histogram(&values, BINS, 1.0))?;
    let counts = async || kernel.counts(gpu, &values, BINS, 1.0, &Cancel::default()).await;
    check_equal("histogram", &counts().await?, &expected)?;
    Ok(Row {
        kernel: format!("histogram, {count} values in {BINS} bins"),
        gpu_seconds: median(async || counts().await.map(|_| ())).await?,
        cpu_seconds: Some(cpu_seconds),
        bytes: 4.0 * count as f64,
        ..Row::default()
    })
}

/// One feature of a picture, as numbers.
pub async fn feature_map(gpu: &Gpu, Sae { latents, k, .. }: Sae) -> Result<Row, Error> {
    let shape = MapShape::new(GRID, PICTURE)?;
    let top = Numbers(8).top_k(GRID[0] * GRID[1], k, latents);
    let feature = top.top_indices[0];
    let kernel = FeatureMap::new(gpu);
    let (cpu_seconds, expected) = once(|| cpu::feature_map::feature_map(&top, feature, 0, shape))?;
    let map = async || kernel.map(gpu, &top, feature, 0, shape, &Cancel::default()).await;
    check_close("feature_map", &map().await?, &expected, 1e-3)?;
    Ok(Row {
        kernel: format!("feature_map, {} × {} pixels", shape.width, shape.height),
        tokens: top.tokens,
        latents,
        k,
        gpu_seconds: median(async || map().await.map(|_| ())).await?,
        cpu_seconds: Some(cpu_seconds),
        bytes: entry_bytes(&top) + 4.0 * shape.pixels() as f64,
        ..Row::default()
    })
}

/// One feature of a picture, as light.
pub async fn feature_draw(gpu: &Gpu) -> Result<Row, Error> {
    let shape = MapShape::new(GRID, PICTURE)?;
    let patches: Vec<f32> = Numbers(9).take(shape.patches()).iter().map(|act| act.max(0.0)).collect();
    let picture = gpu.picture(shape.width, shape.height);
    let kernel = FeatureDraw::new(gpu, picture.format());
    let view = picture.create_view(&wgpu::TextureViewDescriptor::default());
    let (cpu_seconds, expected) = once(|| cpu::feature_draw::feature_draw(&patches, shape, 0.8, 0.3))?;
    let draw = async || {
        kernel.draw(gpu, &patches, shape, 0.8, 0.3, &view)?;
        gpu.settle().await
    };
    draw().await?;
    // Levels from 0 to 1: two of 255 apart at most.
    let levels = |pixels: &[u8]| pixels.iter().map(|&level| f32::from(level) / 255.0).collect::<Vec<_>>();
    check_close("feature_draw", &levels(&gpu.read_picture(&picture).await?), &levels(&expected), 2.5 / 255.0)?;
    Ok(Row {
        kernel: format!("feature_draw, {} × {} pixels, not read back", shape.width, shape.height),
        tokens: GRID[0] * GRID[1],
        gpu_seconds: median(draw).await?,
        cpu_seconds: Some(cpu_seconds),
        bytes: 4.0 * shape.pixels() as f64,
        ..Row::default()
    })
}

/// Latents and activations.
fn entry_bytes(top: &TopK) -> f64 {
    8.0 * top.top_acts.len() as f64
}
