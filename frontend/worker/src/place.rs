//! Where to compute: chosen by measurement, and said why.

use api::gpu::Compute;
use shaders::tile_shape::Speeds;
use shaders::{Cancel, Gpu, SaeShape, WeightType};

use crate::Error;
use crate::engine::Engine;
use crate::worker::Host;

/// Tokens of the measurement: about those of a small picture.
const TOKENS: u32 = 64;
/// Latents of the CPU's measurement; the rest is a multiplication.
const CPU_LATENTS: u32 = 256;
/// SAEs of more weights go to the GPU without a race: a software adapter is the only one that would lose it.
const RACED_WEIGHTS: usize = 1 << 24;

/// An empty engine, and why this one.
pub struct Place {
    pub engine: Engine,
    pub adapter: String,
    /// The adapter is the CPU in disguise.
    pub software: bool,
    pub reason: String,
}

/// An engine for this SAE.
///
/// # Errors
/// [`Error::Shaders`] if nothing here can hold it; [`Error::OnServer`].
pub async fn choose<H: Host>(
    host: &H,
    shape: SaeShape,
    weight_type: WeightType,
    compute: Compute,
) -> Result<Place, Error> {
    let on_cpu = |reason: String| {
        let engine = Engine::on_cpu(shape, weight_type)?;
        Ok(Place { engine, adapter: String::new(), software: false, reason })
    };
    match compute {
        Compute::Server => return Err(Error::OnServer),
        Compute::Cpu => return on_cpu("as asked for in the address".to_owned()),
        Compute::Auto | Compute::Gpu => {}
    }
    let engine = match Engine::on_gpu(shape, weight_type).await {
        Ok(engine) => engine,
        Err(error) => return on_cpu(format!("no WebGPU: {error}")),
    };
    let (adapter, software) = match host.adapter().await {
        Some(found) => found,
        None => (engine.adapter().to_owned(), engine.gpu().is_some_and(Gpu::is_software)),
    };
    if compute == Compute::Gpu {
        return Ok(Place { engine, adapter, software, reason: "as asked for in the address".to_owned() });
    }
    if shape.weights() > RACED_WEIGHTS {
        return Ok(Place { engine, adapter, software, reason: "too large for the CPU to be faster".to_owned() });
    }
    let (gpu, cpu) = match race(host, &engine, shape, weight_type).await {
        Ok(times) => times,
        Err(error) => return on_cpu(format!("the GPU failed its measurement: {error}")),
    };
    let times = format!("{} ms on the GPU, {} ms on the CPU for {TOKENS} tokens", rounded(gpu), rounded(cpu));
    if gpu <= cpu {
        return Ok(Place { engine, adapter, software, reason: format!("measured: {times}") });
    }
    drop(engine);
    on_cpu(format!("measured: {times}"))
}

/// Milliseconds for some tokens on the GPU and on the CPU. The weights are still zero, which takes as long as any.
async fn race<H: Host>(
    host: &H,
    engine: &Engine,
    shape: SaeShape,
    weight_type: WeightType,
) -> Result<(f64, f64), Error> {
    let hidden = vec![0.0; (TOKENS * shape.d_model) as usize];
    let some = SaeShape::new(shape.d_model, shape.latents.min(CPU_LATENTS), shape.k.min(CPU_LATENTS))?;
    let twin = Engine::on_cpu(some, weight_type)?;
    let mut times = [f64::INFINITY; 2];
    // The first round warms up.
    for _ in 0..3 {
        for (engine, time) in [engine, &twin].into_iter().zip(&mut times) {
            let start = host.now_ms();
            engine.encode(&hidden, TOKENS, &Cancel::default()).await?;
            *time = time.min(host.now_ms() - start);
        }
    }
    let [gpu, cpu] = times;
    Ok((gpu, cpu * f64::from(shape.latents) / f64::from(some.latents)))
}

/// Milliseconds with one digit after the point. (Formatting a float costs the bundle 5 KB; nothing here does.)
fn rounded(ms: f64) -> String {
    let tenths = (10.0 * ms) as u64;
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// The tile shapes' speeds on this adapter, from an earlier visit or measured now.
///
/// # Errors
/// [`Error::Shaders`].
pub async fn tune<H: Host>(host: &H, place: &mut Place, weight_type: WeightType, cancel: &Cancel) -> Result<(), Error> {
    let key = format!("speeds {} {weight_type:?}", place.adapter);
    let known = match host.recall(&key).await {
        Some(text) => speeds_from_text(&text),
        None => None,
    };
    if let Some(Speeds(found)) = place.engine.tune(known, cancel).await? {
        host.remember(&key, &text_of_speeds(&Speeds(found))).await;
    }
    Ok(())
}

/// The bits of each.
fn text_of_speeds(speeds: &Speeds) -> String {
    let bits: Vec<String> = speeds.0.iter().map(|seconds| seconds.to_bits().to_string()).collect();
    bits.join(" ")
}

fn speeds_from_text(text: &str) -> Option<Speeds> {
    let bits = text.split(' ').map_while(|bits| bits.parse().ok());
    let values: Vec<f32> = bits.map(f32::from_bits).collect();
    let plausible = values.iter().all(|seconds| *seconds > 0.0 && *seconds < 1.0);
    values.try_into().ok().filter(|_| plausible).map(Speeds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_survive_as_text_and_nonsense_does_not() {
        let speeds = Speeds::default();
        assert_eq!(speeds_from_text(&text_of_speeds(&speeds)), Some(speeds));
        let negative = [(-1f32).to_bits(); 6].map(|bits| bits.to_string()).join(" ");
        for nonsense in ["", "1 2", "a b c d e f", "0 0 0 0 0 0", &negative, &"4294967295 ".repeat(6)] {
            assert_eq!(speeds_from_text(nonsense), None, "{nonsense}");
        }
    }
}
