//! `cargo run -p shaders --example bench`: every kernel on the GPU, beside its CPU twin and beside what the device
//! reaches at most. A kernel is checked against its twin before it is timed. `bench_pytorch.py` has the encoder in
//! PyTorch.

mod encoder;
mod kernels;
mod measure;
mod options;
mod peaks;
mod table;

use std::error::Error;

use shaders::{Gpu, SaeShape};

use options::{Options, text_of};
use peaks::Peaks;

fn main() -> Result<(), Box<dyn Error>> {
    pollster::block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let mut gpu = Gpu::new().await?;
    let options = Options::from_args(std::env::args().skip(1), gpu.is_software())?;
    let peaks = Peaks::measure(&gpu).await?;
    table::print_head(&peaks, gpu.adapter());
    let mut notes = Vec::new();
    let most = options.tokens.iter().copied().max().unwrap_or(1);
    for &sae in &options.saes {
        let shape = SaeShape::new(sae.d_model, sae.latents, sae.k)?;
        for &weight_type in &options.weight_types {
            let measured = encoder::bench(&gpu, shape, weight_type, &options.tokens).await;
            match measured {
                Ok((rows, note)) => {
                    rows.iter().for_each(|row| row.print(&peaks));
                    notes.push(note);
                }
                Err(shaders::Error::OutOfMemory(reason)) => {
                    let (latents, d_model) = (sae.latents, sae.d_model);
                    notes.push(format!("{latents} × {d_model} in {} left out: {reason}.", text_of(weight_type)));
                    // The device keeps its first trouble.
                    gpu = Gpu::new().await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        encoder::bench_select(&gpu, sae.latents, sae.k, most).await?.print(&peaks);
        kernels::sae_decode(&gpu, sae, most).await?.print(&peaks);
        kernels::cosine(&gpu, sae).await?.print(&peaks);
        kernels::feature_pool(&gpu, sae, most).await?.print(&peaks);
        kernels::cofire(&gpu, sae, most).await?.print(&peaks);
        kernels::feature_map(&gpu, sae).await?.print(&peaks);
    }
    kernels::feature_draw(&gpu).await?.print(&peaks);
    kernels::histogram(&gpu, options.values).await?.print(&peaks);
    println!();
    notes.iter().for_each(|note| println!("{note}"));
    Ok(())
}
