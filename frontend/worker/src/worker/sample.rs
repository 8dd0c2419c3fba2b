//! A small SAE for the tests of both worlds: its files, hidden states for it and the right answer.

#![allow(clippy::unwrap_used)] // tests panic on purpose

use std::collections::BTreeMap;

use api::gpu::GpuReply;
use api::shards::{MANIFEST, MANIFEST_FORMAT};
use api::{SaeManifest, ShardFile, Tier, TierShards};
use half::f16;
use sha2::{Digest, Sha256};
use shaders::pack::{Packed, pack};
use shaders::{SaeShape, TopK, cpu};

use super::Answer;
use crate::engine::weight_type;

/// Whole numbers, so that every path gives exactly the same answer.
pub struct Sample {
    pub shape: SaeShape,
    pub weights: Vec<f32>,
    /// `[latents, d_model]`
    pub decoder: Vec<f32>,
    pub b_enc: Vec<f32>,
    pub b_dec: Vec<f32>,
    /// Latents of the slice.
    pub slice: Vec<u32>,
}

impl Sample {
    pub fn new(latents: u32, d_model: u32, k: u32) -> Self {
        let shape = SaeShape::new(d_model, latents, k).unwrap();
        Self {
            shape,
            weights: wholes(1, shape.weights()),
            decoder: wholes(5, shape.weights()),
            b_enc: wholes(2, latents as usize),
            b_dec: wholes(3, d_model as usize),
            slice: (0..latents).filter(|latent| latent % 3 == 1).collect(),
        }
    }

    /// Every file by its name, the manifest among them: all tiers, two shards each, with decoders but for the slice.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let SaeShape { d_model, latents, k } = self.shape;
        let mut files = BTreeMap::new();
        let mut add = |name: &str, bytes: Vec<u8>, first_row: u32, rows: u32| {
            let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            let file = ShardFile { file: name.to_owned(), bytes: bytes.len() as u64, sha256, first_row, rows };
            files.insert(name.to_owned(), bytes);
            file
        };
        let biases = file(&[
            ("b_enc", "F32", vec![latents.into()], bytes_of(&self.b_enc)),
            ("b_dec", "F32", vec![d_model.into()], bytes_of(&self.b_dec)),
        ]);
        let biases = add("biases", biases, 0, 0);
        let tiers = Tier::ALL.map(|tier| {
            let all: Vec<u32> = (0..latents).collect();
            let rows = if tier == Tier::Slice { &self.slice } else { &all };
            // An even number of rows: int4's scales begin on whole words.
            let half = (rows.len() / 4 * 2).max(1);
            let mut shards = |name: &str, matrix: &[f32]| {
                let halves = [0..half, half..rows.len()].map(|range| {
                    let (first, count) = (range.start as u32, range.len() as u32);
                    add(&format!("{tier}{name}-{first}"), self.shard(tier, matrix, &rows[range]), first, count)
                });
                Vec::from(halves)
            };
            let encoder = shards("", &self.weights);
            let decoder = if tier == Tier::Slice { Vec::new() } else { shards("-decoder", &self.decoder) };
            TierShards { tier, rows: rows.len() as u32, shards: encoder, decoder, agreement: None }
        });
        let manifest = SaeManifest {
            format: MANIFEST_FORMAT,
            hook_point: "model.layers.3".to_owned(),
            d_model,
            latents,
            k,
            source_sha256: "00".to_owned(),
            biases,
            tiers: tiers.into(),
        };
        manifest.check().unwrap();
        files.insert(MANIFEST.to_owned(), serde_json::to_vec(&manifest).unwrap());
        files
    }

    fn shard(&self, tier: Tier, matrix: &[f32], latents: &[u32]) -> Vec<u8> {
        let d_model = self.shape.d_model as usize;
        let rows = latents.iter().flat_map(|&latent| &matrix[latent as usize * d_model..][..d_model]);
        let shape = SaeShape { latents: latents.len() as u32, ..self.shape };
        let Packed { rows, scales } = pack(shape, weight_type(tier), &rows.copied().collect::<Vec<f32>>());
        let (count, width) = (latents.len() as u64, u64::from(tier.width(self.shape.d_model)));
        let ids = latents.iter().flat_map(|latent| latent.to_le_bytes()).collect();
        match tier {
            Tier::F16 => file(&[("weight", "F16", vec![count, width], rows)]),
            Tier::Int8 => file(&[("scale", "F32", vec![count], scales), ("weight", "I8", vec![count, width], rows)]),
            Tier::Int4 => file(&[
                ("scale", "F16", vec![count, width / 32], scales),
                ("weight", "U8", vec![count, width / 2], rows),
            ]),
            Tier::Slice => file(&[("latents", "I32", vec![count], ids), ("weight", "F16", vec![count, width], rows)]),
        }
    }

    pub fn hidden(&self, tokens: u32) -> Vec<f32> {
        wholes(4, (tokens * self.shape.d_model) as usize)
    }

    pub fn hidden_bytes(&self, tokens: u32) -> Vec<u8> {
        self.hidden(tokens).iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()
    }

    pub fn top(&self, tokens: u32) -> TopK {
        let mut twin = cpu::sae_encode::SaeEncode::new(self.shape, shaders::WeightType::F32).unwrap();
        twin.write_rows(0, &pack(self.shape, shaders::WeightType::F32, &self.weights).rows).unwrap();
        twin.write_biases(&self.b_enc, &self.b_dec).unwrap();
        twin.encode(&self.hidden(tokens), tokens).unwrap()
    }

    /// Panics unless `answer` is the encode of [`Self::hidden_bytes`].
    pub fn assert_encoded(&self, answer: &Answer, id: u32, tokens: u32) {
        let top = self.top(tokens);
        assert_eq!(self.read(answer, id, tokens), (top.top_indices, top.top_acts));
    }

    /// Indices and activations of an answer.
    pub fn read(&self, answer: &Answer, id: u32, tokens: u32) -> (Vec<u32>, Vec<f32>) {
        match answer.reply {
            GpuReply::Encoded { id: answered, tokens: encoded, k, ms } => {
                assert_eq!((answered, encoded, k), (id, tokens, self.shape.k));
                assert!(ms >= 0.0, "{ms} ms");
            }
            ref other => panic!("{other:?}"),
        }
        let [indices, acts] = &answer.buffers[..] else { panic!("{} buffers", answer.buffers.len()) };
        let indices: Vec<u32> = indices.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
        let acts: Vec<f32> = acts.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        (indices, acts)
    }
}

/// A safetensors file of these tensors, in this order.
fn file(tensors: &[(&str, &str, Vec<u64>, Vec<u8>)]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        let end = data.len();
        entries.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#));
    }
    let header = format!("{{{}}}", entries.join(","));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Pseudo-random whole numbers from -2 to 2.
fn wholes(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 16) % 5) as f32 - 2.0
        })
        .collect()
}
