//! Stage `index`: cache set and texts through the SAE; statistics, examples, labels and neighbours of every feature.

use super::cache::{CACHE_PROMPT, CachePicture, Truth, Variance, cache_set, encode_picture, sample_set};
use super::conversation::Writer;
use super::dissect::{self, Seen};
use super::plan::Plan;
use super::sprites::Sprites;
use super::tower::seeds;
use crate::index::feature::{Firing, NEIGHBOURS, QUANTILES, TopLogits, bar_edges, bar_of, strongest, top_logits};
use crate::index::map_features;
use anyhow::{Context, Result};
use api::{ActivationKind, Category, Explanation, Feature, Provenance, Score, Source};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use model::weights::f32_from_tensor;
use model::{Lmm, PromptInput, Sae, SaeFile};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use store::files::{
    ExampleRow, FeatureRow, PictureRow, SampleRow, TextRow, names, write_examples, write_features, write_pictures,
    write_samples, write_source, write_texts,
};

/// Examples kept per feature and kind.
const EXAMPLES: usize = 12;
const PER_QUANTILE: usize = 3;
/// Texts kept per feature, and tokens shown around the strongest one.
const TEXTS: usize = 6;
const TEXT_CONTEXT: usize = 12;
/// Texts read for the statistics of text tokens.
const TEXT_SAMPLES: usize = 600;
const HISTOGRAM_BARS: usize = 24;

/// Everything known about the features before rows are written.
struct Cache {
    pictures: Vec<CachePicture>,
    /// By feature, in picture order.
    firings: Vec<Vec<Firing>>,
    /// By feature: (activation, text, token).
    texts: Vec<Vec<(f32, usize, usize)>>,
    /// Token ids of the texts.
    text_ids: Vec<Vec<u32>>,
    /// By text: activations as (feature, token, value).
    text_acts: Vec<Vec<(u32, usize, f32)>>,
    /// `[latents, latents]` patches where both fire, upper triangle.
    together: Vec<u32>,
    patches: usize,
    fvu: f64,
}

/// How common words and truths are in the whole cache set.
struct Priors {
    /// Captions that have the word.
    words: BTreeMap<String, usize>,
    /// Share of all patches that show the truth.
    truths: BTreeMap<Truth, f32>,
}

/// Builds all artefacts in `out` from the model and SAE that lie there.
pub fn index<B: Backend>(
    plan: &Plan,
    sprites: &Sprites,
    photographs: &Path,
    out: &Path,
    dtype: &str,
    device: &B::Device,
) -> Result<()> {
    let lmm = Lmm::<B>::load(&out.join("model"), device)?;
    let sae = Sae::<B>::load(&out.join("sae").join(plan.hook_point()), device)?;
    let cache = collect(plan, sprites, photographs, &lmm, &sae, out)?;
    let provenance = provenance(plan, out, dtype, cache.pictures.len())?;
    let logits: Vec<TopLogits> = top_logits(&lmm, sae.w_dec.clone());
    let cosines = decoder_neighbours(&sae);
    let priors = Priors {
        words: caption_counts(&cache.pictures),
        truths: dissect::frequencies(cache.pictures.iter().map(|picture| &picture.masks)),
    };
    let (mut features, mut examples, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..sae.latents() {
        let firings = &cache.firings[index];
        let mut feature = statistics(plan, index, firings, &cache);
        (feature.pos_str, feature.pos_values, feature.neg_str, feature.neg_values) = logits[index].clone();
        (feature.topk_cos_sim_indices, feature.topk_cos_sim_values) = cosines[index].iter().copied().unzip();
        feature.provenance = provenance.clone();
        feature.explanations = explain(index, firings, &cache, &lmm, &priors, &provenance).into_iter().collect();
        examples.extend(example_rows(index as u32, firings, &cache));
        texts.extend(text_rows(index as u32, &cache, &lmm));
        let firing = firing_neighbours(index, sae.latents(), &cache);
        features.push(FeatureRow { feature, firing });
    }
    let file = SaeFile::open(&out.join("sae").join(plan.hook_point()))?;
    map_features(&file, &mut features, None, &|doing| tracing::info!("{doing}"))?;
    let source = source(plan, &sae, &cache, &features, provenance);
    write_rows(plan, sprites, &lmm, &sae, out, cache.pictures, &examples)?;
    write_features(&out.join(names::FEATURES), &features)?;
    write_examples(&out.join(names::EXAMPLES), &examples)?;
    write_texts(&out.join(names::TEXTS), &texts)?;
    write_source(&out.join(names::SOURCE), &source)?;
    tracing::info!(alive = source.alive, explained = source.explained, fvu = source.fvu, "indexed");
    Ok(())
}

/// Runs the cache set and the texts.
fn collect<B: Backend>(
    plan: &Plan,
    sprites: &Sprites,
    photographs: &Path,
    lmm: &Lmm<B>,
    sae: &Sae<B>,
    out: &Path,
) -> Result<Cache> {
    let latents = sae.latents();
    let patches = plan.vision_config().grid().pow(2);
    let mut cache = Cache {
        pictures: cache_set(plan, sprites, photographs)?,
        firings: vec![Vec::new(); latents],
        texts: vec![Vec::new(); latents],
        text_ids: Vec::new(),
        text_acts: Vec::new(),
        together: vec![0; latents * latents],
        patches,
        fvu: 0.0,
    };
    let mut variance = Variance::default();
    for number in 0..cache.pictures.len() {
        let z = encode_picture(lmm, sae, plan.layer, &cache.pictures[number].shown, &mut variance)?;
        let mut by_feature: BTreeMap<u32, (Vec<u16>, Vec<f32>)> = BTreeMap::new();
        for patch in 0..patches {
            let active: Vec<(u32, f32)> = z.row(patch).filter(|(_, act)| *act > 0.0).collect();
            for &(feature, act) in &active {
                let entry = by_feature.entry(feature).or_default();
                entry.0.push(patch as u16);
                entry.1.push(act);
            }
            for &(a, _) in &active {
                active
                    .iter()
                    .filter(|(b, _)| a < *b)
                    .for_each(|(b, _)| cache.together[a as usize * latents + *b as usize] += 1);
            }
        }
        for (feature, (indices, values)) in by_feature {
            cache.firings[feature as usize].push(Firing::new(number, indices, values, patches));
        }
        if number % 500 == 499 {
            tracing::info!(pictures = number + 1, of = cache.pictures.len(), "cached");
        }
    }
    cache.fvu = variance.unexplained();
    read_texts(plan, sprites, lmm, sae, out, &mut cache)?;
    Ok(cache)
}

/// Text tokens through the model; BOS dropped.
fn read_texts<B: Backend>(
    plan: &Plan,
    sprites: &Sprites,
    lmm: &Lmm<B>,
    sae: &Sae<B>,
    out: &Path,
    cache: &mut Cache,
) -> Result<()> {
    let writer = Writer::load(&out.join("model"))?;
    let count = if plan.cache_seen < 500 { 40 } else { TEXT_SAMPLES };
    for text in 0..count {
        let sample = writer.text_chat(sprites, seeds::TEXT + (1 << 32) + text as u64, 48);
        let ids: Vec<u32> = sample.before.into_iter().chain(sample.after).take_while(|id| *id != 0).collect();
        let prompt = lmm.tokenizer.decode(&ids[1..], false).map_err(|error| anyhow::anyhow!("{error}"))?;
        let prepared = lmm.prepare(&PromptInput { text: prompt, chat: false, image: None })?;
        let z = sae.encode(lmm.hidden_at(&prepared, plan.layer)?);
        let mut acts = Vec::new();
        for token in 1..prepared.input_ids.len() {
            for (feature, act) in z.row(token).filter(|(_, act)| *act > 0.0) {
                cache.texts[feature as usize].push((act, text, token));
                acts.push((feature, token, act));
            }
        }
        cache.text_ids.push(prepared.input_ids);
        cache.text_acts.push(acts);
    }
    for firings in &mut cache.texts {
        firings.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    }
    Ok(())
}

/// Where the numbers come from.
fn provenance(plan: &Plan, out: &Path, dtype: &str, pictures: usize) -> Result<Provenance> {
    let hash =
        |bytes: &[u8]| Sha256::digest(bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect::<String>();
    let of_file = |path: &Path| -> Result<String> {
        Ok(hash(&std::fs::read(path).with_context(|| format!("reading {}", path.display()))?))
    };
    let today = time::OffsetDateTime::now_utc().date();
    Ok(Provenance {
        model: format!("pocket@{}", of_file(&out.join("model/model.safetensors"))?),
        sae_revision: of_file(&out.join("sae").join(plan.hook_point()).join("sae.safetensors"))?,
        dtype: dtype.into(),
        prompt_hash: hash(CACHE_PROMPT.as_bytes()),
        image_set: format!("pocket-cache ({pictures} pictures)"),
        date: format!("{:04}-{:02}-{:02}", today.year(), u8::from(today.month()), today.day()),
    })
}

/// Density, means and histogram over the cache set's picture tokens.
fn statistics(plan: &Plan, index: usize, firings: &[Firing], cache: &Cache) -> Feature {
    let values: Vec<f32> = firings.iter().flat_map(|firing| firing.values.iter().copied()).collect();
    let text_max = cache.texts[index].first().map_or(0.0, |first| first.0);
    let picture_max = values.iter().copied().fold(0.0, f32::max);
    let tokens = (cache.pictures.len() * cache.patches) as f32;
    let mut heights = vec![0.0; HISTOGRAM_BARS];
    for value in &values {
        heights[bar_of(*value, picture_max, HISTOGRAM_BARS)] += 1.0;
    }
    let edges = bar_edges(picture_max, HISTOGRAM_BARS);
    Feature {
        model_id: "pocket".into(),
        layer: plan.source_id(),
        index: index as u32,
        max_act_approx: picture_max.max(text_max),
        mean_act: if values.is_empty() { 0.0 } else { values.iter().sum::<f32>() / values.len() as f32 },
        frac_nonzero: values.len() as f32 / tokens,
        frac_pictures: firings.len() as f32 / cache.pictures.len() as f32,
        freq_hist_data_bar_heights: if values.is_empty() { Vec::new() } else { heights },
        freq_hist_data_bar_values: if values.is_empty() { Vec::new() } else { edges },
        dead: values.is_empty() && text_max == 0.0,
        ..Feature::default()
    }
}

/// Nearest features by cosine of decoder rows (unit rows: a product).
fn decoder_neighbours<B: Backend>(sae: &Sae<B>) -> Vec<Vec<(u32, f32)>> {
    let latents = sae.latents();
    let norm: Tensor<B, 2> = sae.w_dec.clone().powf_scalar(2.0).sum_dim(1).sqrt().clamp_min(1e-8);
    let rows = sae.w_dec.clone() / norm;
    let cosines = f32_from_tensor(rows.clone().matmul(rows.transpose()));
    cosines
        .chunks_exact(latents)
        .enumerate()
        .map(|(own, row)| {
            let near = row.iter().enumerate().filter(|(other, _)| *other != own).map(|(i, v)| (i as u32, *v));
            strongest(near.collect(), NEIGHBOURS)
        })
        .collect()
}

/// Features that fire on the same patches, by Jaccard overlap.
fn firing_neighbours(index: usize, latents: usize, cache: &Cache) -> Vec<(u32, f32)> {
    let patches =
        |feature: usize| cache.firings[feature].iter().map(|firing| firing.indices.len()).sum::<usize>() as f32;
    let own = patches(index);
    let near = (0..latents)
        .filter(|other| *other != index)
        .filter_map(|other| {
            let both = cache.together[index.min(other) * latents + index.max(other)] as f32;
            (both > 0.0).then(|| (other as u32, both / (own + patches(other) - both)))
        })
        .collect();
    strongest(near, NEIGHBOURS)
}

fn caption_counts(pictures: &[CachePicture]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for word in pictures.iter().flat_map(|picture| dissect::caption_words(&picture.picture.caption)) {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

/// Firings by falling mean: the paper's order.
fn by_mean(firings: &[Firing]) -> Vec<&Firing> {
    let mut order: Vec<&Firing> = firings.iter().collect();
    order.sort_by(|a, b| b.mean.total_cmp(&a.mean).then(a.picture.cmp(&b.picture)));
    order
}

/// The label: by area, else by text token, else by caption words, else none.
fn explain<B: Backend>(
    index: usize,
    firings: &[Firing],
    cache: &Cache,
    lmm: &Lmm<B>,
    priors: &Priors,
    provenance: &Provenance,
) -> Option<Explanation> {
    let max = firings.iter().map(|firing| firing.max).fold(0.0, f32::max);
    let top = by_mean(firings);
    let seen: Vec<Seen<'_>> = top
        .iter()
        .filter(|firing| !cache.pictures[firing.picture].masks.is_empty())
        .take(dissect::PICTURES)
        .map(|firing| Seen {
            area: dissect::area(cache.patches, &firing.indices, &firing.values, max),
            masks: &cache.pictures[firing.picture].masks,
        })
        .collect();
    let (description, category, method, author, score) = if let Some(found) = dissect::best_match(&seen, &priors.truths)
    {
        let score = Score {
            value: found.iou,
            baseline: found.baseline,
            explanation_score_type_name: "iou".into(),
            explanation_score_model_name: "exact masks of composed scenes".into(),
            ..Score::default()
        };
        (found.truth.name, found.truth.category, "dissect", "dissection with exact masks", score)
    } else if let Some((token, share, baseline)) = text_token(index, cache, lmm) {
        let score = Score {
            value: share,
            baseline,
            explanation_score_type_name: "token share".into(),
            explanation_score_model_name: "activation on the token in texts".into(),
            ..Score::default()
        };
        (format!("the word “{token}”"), Category::Text, "token", "strongest text token", score)
    } else {
        let captions: Vec<&str> = top
            .iter()
            .take(dissect::PICTURES)
            .map(|firing| cache.pictures[firing.picture].picture.caption.as_str())
            .collect();
        let label = dissect::caption_label(&captions, &priors.words, cache.pictures.len())?;
        let score = Score {
            value: label.share,
            baseline: label.baseline,
            explanation_score_type_name: "caption share".into(),
            explanation_score_model_name: "captions of the top pictures that have the first word".into(),
            ..Score::default()
        };
        (label.description, Category::Unknown, "words", "caption words", score)
    };
    Some(Explanation {
        id: format!("{index}-{method}"),
        description,
        type_name: method.into(),
        explanation_model_name: author.into(),
        category,
        scores: vec![score],
        created_at: provenance.date.clone(),
        prompt_hash: String::new(),
    })
}

/// The text token that carries at least half of a feature's activation in texts, its share, and the token's share of
/// all text tokens.
fn text_token<B: Backend>(index: usize, cache: &Cache, lmm: &Lmm<B>) -> Option<(String, f32, f32)> {
    let firings = &cache.texts[index];
    if firings.len() < 5 {
        return None;
    }
    let mut mass: BTreeMap<u32, f32> = BTreeMap::new();
    for (act, text, token) in firings {
        *mass.entry(cache.text_ids[*text][*token]).or_default() += act;
    }
    let total: f32 = mass.values().sum();
    let (id, most) = mass.into_iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))?;
    let tokens = cache.text_ids.iter().map(Vec::len).sum::<usize>() as f32;
    let occurrences = cache.text_ids.iter().flatten().filter(|other| **other == id).count() as f32;
    let word = lmm.token_text(id).trim().to_string();
    (most / total >= 0.5 && !word.is_empty()).then(|| (word, most / total, occurrences / tokens))
}

/// Example rows of all kinds.
fn example_rows(feature: u32, firings: &[Firing], cache: &Cache) -> Vec<ExampleRow> {
    let row = |kind: ActivationKind, rank: usize, firing: &Firing, bin: (f32, f32)| {
        firing.row(feature, kind, rank, cache.pictures[firing.picture].picture.id.clone(), bin)
    };
    let whole = (0.0, firings.iter().map(|firing| firing.max).fold(0.0, f32::max));
    let ranked = |kind: ActivationKind, order: Vec<&Firing>| -> Vec<ExampleRow> {
        order.into_iter().take(EXAMPLES).enumerate().map(|(rank, firing)| row(kind, rank, firing, whole)).collect()
    };
    let means = by_mean(firings);
    let mut maxima: Vec<&Firing> = firings.iter().collect();
    maxima.sort_by(|a, b| b.max.total_cmp(&a.max).then(a.picture.cmp(&b.picture)));
    let held_out = means.iter().copied().filter(|firing| cache.pictures[firing.picture].held_out).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(u64::from(feature));
    let mut random: Vec<&Firing> = firings.iter().collect();
    random.shuffle(&mut rng);
    let mut rows = ranked(ActivationKind::Mean, means);
    rows.extend(
        quantile_rows(&maxima, &mut rng)
            .into_iter()
            .enumerate()
            .map(|(rank, (firing, bin))| row(ActivationKind::Quantile, rank, firing, bin)),
    );
    rows.extend(ranked(ActivationKind::Max, maxima));
    rows.extend(ranked(ActivationKind::Random, random));
    rows.extend(ranked(ActivationKind::Heldout, held_out));
    rows
}

/// A few firings out of each fifth of the maxima, strongest fifth first, with the fifth's bounds.
fn quantile_rows<'a>(maxima: &[&'a Firing], rng: &mut ChaCha8Rng) -> Vec<(&'a Firing, (f32, f32))> {
    let mut rows = Vec::new();
    for quantile in 0..QUANTILES {
        let (start, end) = (quantile * maxima.len() / QUANTILES, (quantile + 1) * maxima.len() / QUANTILES);
        let group = &maxima[start..end];
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let mut picked: Vec<usize> =
            (0..PER_QUANTILE.min(group.len())).map(|_| rng.random_range(0..group.len())).collect();
        picked.sort_unstable();
        picked.dedup();
        rows.extend(picked.into_iter().map(|i| (group[i], (last.max, first.max))));
    }
    rows
}

/// The texts where a feature fires most, each text once, with the values of all shown tokens.
fn text_rows<B: Backend>(feature: u32, cache: &Cache, lmm: &Lmm<B>) -> Vec<TextRow> {
    let mut shown: Vec<usize> = Vec::new();
    let mut rows = Vec::new();
    for (_, text, token) in &cache.texts[feature as usize] {
        if rows.len() >= TEXTS {
            break;
        }
        if shown.contains(text) {
            continue;
        }
        shown.push(*text);
        let ids = &cache.text_ids[*text];
        let start = token.saturating_sub(TEXT_CONTEXT).max(1);
        let end = (token + TEXT_CONTEXT / 2 + 1).min(ids.len());
        let mut values = vec![0.0; end - start];
        for (other, at, act) in &cache.text_acts[*text] {
            if *other == feature && (start..end).contains(at) {
                values[at - start] = *act;
            }
        }
        let tokens = ids[start..end].iter().map(|id| lmm.token_text(*id)).collect();
        rows.push(TextRow { feature, rank: rows.len() as u32, tokens, values });
    }
    rows
}

fn source<B: Backend>(
    plan: &Plan,
    sae: &Sae<B>,
    cache: &Cache,
    features: &[FeatureRow],
    provenance: Provenance,
) -> Source {
    let grid = plan.vision_config().grid() as u32;
    Source {
        model_id: "pocket".into(),
        source_id: plan.source_id(),
        layer: plan.layer as u32,
        hook_point: plan.hook_point(),
        latents: sae.latents() as u32,
        d_model: sae.config.d_in as u32,
        k: sae.config.k as u32,
        grid: [grid, grid],
        pictures: cache.pictures.len() as u32,
        tokens: (cache.pictures.len() * cache.patches) as u64,
        alive: features.iter().filter(|row| !row.feature.dead).count() as u32,
        fvu: Some(cache.fvu as f32),
        explained: features.iter().filter(|row| row.feature.label().is_some()).count() as u32,
        provenance,
        description: "A small LLaVA-NeXT trained from scratch on composed scenes, and the sparse autoencoder of its residual stream.".into(),
    }
}

/// Writes the pictures that examples and samples show, and every patch's features on the samples.
fn write_rows<B: Backend>(
    plan: &Plan,
    sprites: &Sprites,
    lmm: &Lmm<B>,
    sae: &Sae<B>,
    out: &Path,
    pictures: Vec<CachePicture>,
    examples: &[ExampleRow],
) -> Result<()> {
    let shown: std::collections::BTreeSet<&str> = examples.iter().map(|row| row.picture.as_str()).collect();
    let mut rows: Vec<PictureRow> = pictures
        .into_iter()
        .filter(|picture| shown.contains(picture.picture.id.as_str()))
        .map(|picture| PictureRow { picture: picture.picture, webp: picture.webp })
        .collect();
    let grid = plan.vision_config().grid() as u32;
    let mut samples = Vec::new();
    for picture in sample_set(plan, sprites)? {
        let z = encode_picture(lmm, sae, plan.layer, &picture.shown, &mut Variance::default())?;
        samples.push(SampleRow {
            picture: picture.picture.id.clone(),
            k: z.k as u32,
            grid: [grid, grid],
            top_indices: z.indices,
            top_acts: z.acts,
        });
        rows.push(PictureRow { picture: picture.picture, webp: picture.webp });
    }
    write_pictures(&out.join(names::PICTURES), &rows)?;
    write_samples(&out.join(names::SAMPLES), &samples)?;
    Ok(())
}
