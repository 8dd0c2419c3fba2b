//! A small SAE for the tests of both worlds: its files, hidden states for it and the right answer.

#![allow(clippy::unwrap_used)] // tests panic on purpose

use api::gpu::GpuReply;
use half::f16;
use shaders::{SaeShape, TopK, cpu};

use super::Answer;

/// Whole numbers, so that every path gives exactly the same answer.
pub struct Sample {
    pub shape: SaeShape,
    pub weights: Vec<f32>,
    pub b_enc: Vec<f32>,
    pub b_dec: Vec<f32>,
}

impl Sample {
    pub fn new(latents: u32, d_model: u32, k: u32) -> Self {
        let shape = SaeShape::new(d_model, latents, k).unwrap();
        Self {
            shape,
            weights: wholes(1, shape.weights()),
            b_enc: wholes(2, latents as usize),
            b_dec: wholes(3, d_model as usize),
        }
    }

    pub fn config(&self) -> Vec<u8> {
        let SaeShape { d_model, latents, k } = self.shape;
        format!(r#"{{"k": {k}, "num_latents": {latents}, "d_in": {d_model}, "normalize_decoder": true}}"#).into_bytes()
    }

    /// `sae.safetensors` as the trainer orders it: the decoder first, the encoder last, all f16.
    pub fn file(&self) -> Vec<u8> {
        let SaeShape { d_model, latents, .. } = self.shape;
        let decoder = vec![0.0; self.shape.weights()];
        let tensors = [
            ("W_dec", format!("[{latents},{d_model}]"), &decoder),
            ("b_dec", format!("[{d_model}]"), &self.b_dec),
            ("encoder.bias", format!("[{latents}]"), &self.b_enc),
            ("encoder.weight", format!("[{latents},{d_model}]"), &self.weights),
        ];
        let (mut entries, mut data) = (Vec::new(), Vec::new());
        for (name, shape, values) in tensors {
            let start = data.len();
            data.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()));
            let end = data.len();
            entries.push(format!(r#""{name}":{{"dtype":"F16","shape":{shape},"data_offsets":[{start},{end}]}}"#));
        }
        let header = format!("{{{}}}", entries.join(","));
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
    }

    fn hidden(&self, tokens: u32) -> Vec<f32> {
        wholes(4, (tokens * self.shape.d_model) as usize)
    }

    pub fn hidden_bytes(&self, tokens: u32) -> Vec<u8> {
        self.hidden(tokens).iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()
    }

    pub fn top(&self, tokens: u32) -> TopK {
        let tensors = (self.weights.clone(), self.b_enc.clone(), self.b_dec.clone());
        let twin = cpu::sae_encode::SaeEncode::new(self.shape, tensors.0, tensors.1, tensors.2).unwrap();
        twin.encode(&self.hidden(tokens), tokens).unwrap()
    }

    /// Panics unless `answer` is the encode of [`Self::hidden_bytes`].
    pub fn assert_encoded(&self, answer: &Answer, id: u32, tokens: u32) {
        let top = self.top(tokens);
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
        assert_eq!((indices, acts), (top.top_indices, top.top_acts));
    }
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
