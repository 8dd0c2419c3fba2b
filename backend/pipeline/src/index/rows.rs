//! What is counted, and what the SAE and the model say, as the rows that the store imports.

use super::{
    IndexError, IndexOptions, Pool, Survey, TopLogits,
    feature::{NEIGHBOURS, bar_edges},
    map,
    neighbours::{Near, Wanted, decoder_neighbours, decoder_rows},
    staging::Staging,
    statistics::Studied,
    together::Sketches,
};
use crate::cache::{self, Cache};
use api::{Feature, Provenance, Source};
use model::Hook;
use store::files::{FeatureRow, FeatureWriter, names};

/// Features whose rows are written, and whose logits are computed, together.
const FEATURES_AT_ONCE: usize = 128;

/// What the rows of features are made of.
pub(super) struct Parts<'a> {
    pub options: &'a IndexOptions<'a>,
    pub cache: &'a Cache,
    pub survey: &'a Survey,
    pub pool: &'a Pool,
    pub say: &'a dyn Fn(&str),
}

impl Parts<'_> {
    /// Writes `features.parquet`, with output tokens where there are `words`.
    pub fn write_features(
        &self,
        staging: &Staging,
        studied: &[Studied],
        sketches: Sketches,
        mut words: Option<&mut dyn FnMut(&[f32]) -> Vec<TopLogits>>,
    ) -> Result<(), IndexError> {
        let (pool, say) = (self.pool, self.say);
        let listed: Vec<u32> = studied.iter().map(|one| one.feature).collect();
        say("finding features that fire together");
        let firing = sketches.finish(pool).neighbours(&listed, NEIGHBOURS, pool);
        let (nearest, places) = self.by_decoder(studied, &listed)?;
        let mut places = places.into_iter();
        let source = self.source(0);
        staging.write(names::FEATURES, |path, file| {
            let mut writer = FeatureWriter::new(path, file)?;
            let mut rest = firing.into_iter().zip(nearest);
            for (number, block) in studied.chunks(FEATURES_AT_ONCE).enumerate() {
                let mut tokens = Vec::new();
                if let (Some(words), Some(sae)) = (&mut words, self.options.sae) {
                    say(&format!("output tokens of {} of {} features", number * FEATURES_AT_ONCE, studied.len()));
                    let features: Vec<u32> = block.iter().map(|one| one.feature).collect();
                    tokens = words(&decoder_rows(sae, &features)?);
                }
                let mut tokens = tokens.into_iter();
                for (one, (firing, nearest)) in block.iter().zip(&mut rest) {
                    let mut feature = self.feature(one, &source);
                    let place = if feature.dead { None } else { places.next() };
                    (feature.umap_x, feature.umap_y) = place.map(|[x, y]| (x, y)).unzip();
                    (feature.topk_cos_sim_indices, feature.topk_cos_sim_values) = nearest.into_iter().unzip();
                    if let Some(tokens) = tokens.next() {
                        (feature.pos_str, feature.pos_values, feature.neg_str, feature.neg_values) = tokens;
                    }
                    writer.push(FeatureRow { feature, firing })?;
                }
            }
            writer.finish().map_err(IndexError::from)
        })
    }

    /// Decoder neighbours of the listed features, and the places of the living ones; nothing without an SAE.
    fn by_decoder(&self, studied: &[Studied], listed: &[u32]) -> Result<(Vec<Near>, Vec<[f32; 2]>), IndexError> {
        let (pool, say) = (self.pool, self.say);
        let Some(sae) = self.options.sae else { return Ok((vec![Near::new(); listed.len()], Vec::new())) };
        let alive: Vec<bool> = studied.iter().map(|one| one.activations > 0).collect();
        let wanted =
            [Wanted { n: NEIGHBOURS, among: None }, Wanted { n: map::NEIGHBOURS, among: Some(alive.as_slice()) }];
        let found = decoder_neighbours(sae, listed, &wanted, pool, &|done| {
            say(&format!("decoder neighbours of {done} of {} features", listed.len()));
        })?;
        let (mut nearest, mut of_living, mut living) = (Vec::with_capacity(listed.len()), Vec::new(), Vec::new());
        for ((lists, alive), feature) in found.into_iter().zip(alive).zip(listed) {
            let mut lists = lists.into_iter();
            nearest.push(lists.next().unwrap_or_default());
            if alive {
                of_living.push(lists.next().unwrap_or_default());
                living.push(*feature);
            }
        }
        Ok((nearest, map::places(&living, of_living.into_iter(), pool, say)))
    }

    fn feature(&self, studied: &Studied, source: &Source) -> Feature {
        let alive = studied.activations > 0;
        let share = |part: u64, all: u64| if all == 0 { 0.0 } else { (part as f64 / all as f64) as f32 };
        Feature {
            model_id: source.model_id.clone(),
            layer: source.source_id.clone(),
            index: studied.feature,
            max_act_approx: studied.max,
            mean_act: studied.mean,
            frac_nonzero: share(studied.activations, self.survey.tokens),
            frac_pictures: share(studied.pictures, u64::from(self.survey.pictures)),
            freq_hist_data_bar_values: if alive { bar_edges(studied.max, studied.heights.len()) } else { Vec::new() },
            freq_hist_data_bar_heights: studied.heights.clone(),
            dead: !alive,
            provenance: source.provenance.clone(),
            ..Feature::default()
        }
    }

    /// `source.json`. Dates and revisions are the cache's: the numbers are made from nothing else.
    pub fn source(&self, alive: u32) -> Source {
        let cache::Manifest { settings, image_set, .. } = &self.cache.manifest;
        let hook = settings.hook_point.parse::<Hook>().unwrap_or(Hook::Block(0));
        let (Hook::Block(layer) | Hook::Vision(layer)) = hook;
        let kind = if matches!(hook, Hook::Vision(_)) { "vis" } else { "res" };
        let size = match settings.latents {
            latents if latents >= 1000 => format!("{}k", latents / 1000),
            latents => latents.to_string(),
        };
        let name = settings.model.rsplit_once('@').map_or(settings.model.as_str(), |(name, _)| name);
        let Survey { pictures, tokens, grid, .. } = *self.survey;
        Source {
            model_id: in_address(name.rsplit('/').next().unwrap_or(name)),
            source_id: format!("{layer}-{kind}-{size}"),
            layer: layer as u32,
            hook_point: settings.hook_point.clone(),
            latents: settings.latents,
            d_model: settings.d_model,
            k: settings.k,
            grid,
            pictures,
            tokens,
            alive,
            fvu: None,
            explained: 0,
            provenance: provenance(&self.cache.manifest, pictures),
            description: format!(
                "Features of {} of {name} on the pictures of {}.",
                settings.hook_point, image_set.name
            ),
        }
    }
}

/// Where the numbers of a cache with so many pictures come from.
pub(super) fn provenance(cache: &cache::Manifest, pictures: u32) -> Provenance {
    let cache::Manifest { settings, image_set, date, .. } = cache;
    Provenance {
        model: settings.model.clone(),
        sae_revision: settings.sae_revision.clone(),
        dtype: settings.dtype.clone(),
        prompt_hash: settings.prompt_hash.clone(),
        image_set: format!("{} ({pictures} pictures)", image_set.name),
        date: date.clone(),
    }
}

/// A name as it can be part of an address.
fn in_address(name: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    name.chars().map(|letter| if plain(letter) { letter } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_addresses() {
        assert_eq!(in_address("llama3-llava v1.6 (8B)"), "llama3-llava-v1.6--8B-");
    }
}
