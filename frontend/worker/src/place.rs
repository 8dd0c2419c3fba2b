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
/// Larger SAEs race with some of their latents, and only against a software adapter: no other would lose.
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
    cancel: &Cancel,
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
        Err(Error::Shaders(error @ (shaders::Error::NoAdapter(_) | shaders::Error::NoDevice { .. }))) => {
            return on_cpu(format!("no WebGPU: {error}"));
        }
        Err(error) => return on_cpu(error.to_string()),
    };
    cancel.check()?;
    let (adapter, software) = match host.adapter().await {
        Some(found) => found,
        None => (engine.adapter().to_owned(), engine.gpu().is_some_and(Gpu::is_software)),
    };
    if compute == Compute::Gpu {
        return Ok(Place { engine, adapter, software, reason: "as asked for in the address".to_owned() });
    }
    let is_large = shape.weights() > RACED_WEIGHTS;
    if is_large && !software {
        return Ok(Place { engine, adapter, software, reason: "too large for the CPU to be faster".to_owned() });
    }
    let times = if is_large {
        let latents = (RACED_WEIGHTS as u32 / shape.d_model).max(1);
        let some = SaeShape::new(shape.d_model, latents, shape.k.min(latents))?;
        match Engine::on_gpu(some, weight_type).await {
            Ok(engine) => race(host, &engine, some, weight_type, cancel).await,
            Err(error) => Err(error),
        }
    } else {
        race(host, &engine, shape, weight_type, cancel).await
    };
    let (gpu, cpu) = match times {
        Ok(times) => times,
        Err(error) if error.is_cancelled() => return Err(error),
        Err(error) => return on_cpu(format!("the GPU failed its measurement: {error}")),
    };
    let some = if is_large { " and some of the latents" } else { "" };
    let (gpu_ms, cpu_ms) = (rounded(gpu), rounded(cpu));
    let reason = format!("measured: {gpu_ms} ms on the GPU, {cpu_ms} ms on the CPU for {TOKENS} tokens{some}");
    if gpu > cpu {
        match on_cpu(reason.clone()) {
            // Slower is better than not at all.
            Err(Error::Shaders(shaders::Error::Memory { .. })) => {}
            place => return place,
        }
    }
    Ok(Place { engine, adapter, software, reason })
}

/// Milliseconds for some tokens on the GPU and on the CPU. The weights are still zero, which takes as long as any.
async fn race<H: Host>(
    host: &H,
    engine: &Engine,
    shape: SaeShape,
    weight_type: WeightType,
    cancel: &Cancel,
) -> Result<(f64, f64), Error> {
    let hidden = vec![0.0; (TOKENS * shape.d_model) as usize];
    let some = SaeShape::new(shape.d_model, shape.latents.min(CPU_LATENTS), shape.k.min(CPU_LATENTS))?;
    let twin = Engine::on_cpu(some, weight_type)?;
    let mut times = [f64::INFINITY; 2];
    // The first round warms up.
    for _ in 0..3 {
        for (engine, time) in [engine, &twin].into_iter().zip(&mut times) {
            let start = host.now_ms();
            engine.encode(&hidden, TOKENS, cancel).await?;
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
        for nonsense in ["", "1 2", "a b c d e f g h i"] {
            assert_eq!(speeds_from_text(nonsense), None, "{nonsense}");
        }
        for bad in [-1.0, 0.0, f32::NAN, 2.0] {
            let mut speeds = speeds;
            speeds.0[3] = bad;
            assert_eq!(speeds_from_text(&text_of_speeds(&speeds)), None, "{bad}");
        }
    }
}
