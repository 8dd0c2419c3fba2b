//! Stage `shards`: the SAE as browsers fetch it, beside its checkpoint, compared with f32 on the sample pictures.

use super::cache::{picture_hidden, sample_set};
use super::plan::Plan;
use super::sprites::Sprites;
use crate::quantize::{BROWSER_FOLDER, HiddenStates, QuantizeOptions, quantize};
use anyhow::Result;
use api::shards::Tier;
use burn::tensor::backend::Backend;
use model::Lmm;
use model::weights::f32_from_tensor;
use std::path::Path;

/// Writes the shards of the SAE in `out`.
///
/// # Errors
/// When model or SAE are missing: `train-lmm` and `train-sae` make them.
pub fn write_shards<B: Backend>(plan: &Plan, sprites: &Sprites, out: &Path, device: &B::Device) -> Result<()> {
    let lmm = Lmm::<B>::load(&out.join("model"), device)?;
    let pictures = sample_set(plan, sprites)?;
    let mut values = Vec::new();
    for picture in &pictures {
        values.extend(f32_from_tensor(picture_hidden(&lmm, plan.layer, &picture.shown)?));
    }
    let folder = out.join("sae").join(plan.hook_point());
    let hidden = HiddenStates { name: format!("patches of {} sample pictures", pictures.len()), values };
    let options = QuantizeOptions {
        decoder: true,
        hidden: Some(hidden),
        ..QuantizeOptions::new(&folder, folder.join(BROWSER_FOLDER), &[Tier::F16, Tier::Int8, Tier::Int4])
    };
    let manifest = quantize(&options, &|doing| tracing::info!("{doing}"))?;
    for tier in &manifest.tiers {
        let (overlap, fvu) = tier.agreement.as_ref().map(|found| (found.overlap, found.fvu)).unzip();
        tracing::info!(tier = %tier.tier, bytes = tier.bytes(), overlap, fvu, "shards");
    }
    Ok(())
}
