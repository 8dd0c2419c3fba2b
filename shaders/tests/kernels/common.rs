//! What the kernel tests share: the two worlds, the device, random numbers and the f64 truth.

use shaders::cpu::sae_encode::{SaeEncode as Twin, unpack};
use shaders::pack::{Packed, pack};
use shaders::{Gpu, SaeShape, TopK, WeightType};

/// Runs async bodies `name(gpu)` as tests natively and in the browser.
macro_rules! two_worlds {
    ($($name:ident),+ $(,)?) => {
        mod two_worlds {
            $(
                #[cfg(not(target_arch = "wasm32"))]
                #[test]
                fn $name() {
                    pollster::block_on(async {
                        if let Some(gpu) = crate::common::gpu(stringify!($name)).await {
                            super::$name(gpu).await;
                        }
                    });
                }

                #[cfg(target_arch = "wasm32")]
                #[wasm_bindgen_test::wasm_bindgen_test]
                async fn $name() {
                    if let Some(gpu) = crate::common::gpu(stringify!($name)).await {
                        super::$name(gpu).await;
                    }
                }
            )+
        }
    };
}
pub(crate) use two_worlds;

/// The device; none is a failure where `LMM_SCOPE_REQUIRE_GPU=1` (read when the tests are compiled for the browser),
/// and a visible skip elsewhere.
pub async fn gpu(test: &str) -> Option<Gpu> {
    let required = std::env::var("LMM_SCOPE_REQUIRE_GPU").ok();
    let required = required.as_deref().or(option_env!("LMM_SCOPE_REQUIRE_GPU"));
    match Gpu::new().await {
        Ok(gpu) => Some(gpu),
        Err(error) if required == Some("1") => panic!("LMM_SCOPE_REQUIRE_GPU=1, but {error}"),
        Err(error) => {
            say(&format!("SKIP {test}: {error}. The kernel was NOT tested (set LMM_SCOPE_REQUIRE_GPU=1 to fail)."));
            None
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn say(line: &str) {
    eprintln!("{line}");
}

#[cfg(target_arch = "wasm32")]
fn say(line: &str) {
    wasm_bindgen_test::console_log!("{line}");
}

/// SplitMix64: the same numbers in both worlds.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 1 to `most`.
    pub fn up_to(&mut self, most: u64) -> u32 {
        // `most` is small.
        1 + (self.next() % most) as u32
    }

    /// Uniform in [-1, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn uniforms(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.uniform() * scale).collect()
    }

    /// Whole numbers from -`most` to `most`.
    pub fn wholes(&mut self, count: usize, most: u64) -> Vec<f32> {
        (0..count).map(|_| (self.next() % (2 * most + 1)) as f32 - most as f32).collect()
    }
}

/// An SAE and hidden states for it; the weights are what `weight_type` can hold.
pub struct Problem {
    pub shape: SaeShape,
    pub weight_type: WeightType,
    pub tokens: u32,
    pub hidden: Vec<f32>,
    /// As they are after rounding to the type.
    pub weights: Vec<f32>,
    pub packed: Packed,
    pub b_enc: Vec<f32>,
    pub b_dec: Vec<f32>,
}

/// Sizes of a [`Problem`].
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub tokens: u32,
    pub d_model: u32,
    pub latents: u32,
    pub k: u32,
    pub weight_type: WeightType,
}

impl Problem {
    /// Real numbers.
    pub fn random(sizes: Sizes, seed: u64) -> Self {
        let mut random = Random(seed);
        Self::new(sizes, |count, scale| random.uniforms(count, scale))
    }

    /// Small whole numbers: f32 sums are exact in any order, and ties abound.
    pub fn whole(sizes: Sizes, seed: u64) -> Self {
        let mut random = Random(seed);
        Self::new(sizes, |count, _| random.wholes(count, 2))
    }

    fn new(sizes: Sizes, mut numbers: impl FnMut(usize, f32) -> Vec<f32>) -> Self {
        let shape = SaeShape::new(sizes.d_model, sizes.latents, sizes.k).unwrap();
        let (d_model, latents) = (sizes.d_model as usize, sizes.latents as usize);
        let weights = numbers(latents * d_model, 1.0);
        let mut problem = Self {
            shape,
            weight_type: sizes.weight_type,
            tokens: sizes.tokens,
            hidden: numbers(sizes.tokens as usize * d_model, 1.0),
            weights: Vec::new(),
            packed: Packed { rows: Vec::new(), scales: Vec::new() },
            b_enc: numbers(latents, 0.5),
            b_dec: numbers(d_model, 0.5),
        };
        problem.set_weights(&weights);
        problem
    }

    /// Packs other weights `[latents, d_model]`.
    pub fn set_weights(&mut self, weights: &[f32]) {
        self.packed = pack(self.shape, self.weight_type, weights);
        self.weights = (0..self.shape.latents as usize).flat_map(|latent| self.unpacked(latent)).collect();
    }

    /// A packed row as f32 `[d_model]`, its scale included.
    fn unpacked(&self, latent: usize) -> Vec<f32> {
        let d_model = self.shape.d_model;
        let [row_bytes, scale_bytes] =
            [self.weight_type.row_bytes(d_model), self.weight_type.scale_bytes(d_model)].map(|bytes| bytes as usize);
        let rows = &self.packed.rows[latent * row_bytes..][..row_bytes];
        let scales = &self.packed.scales[latent * scale_bytes..][..scale_bytes];
        let mut row = vec![0.0; self.weight_type.width(d_model) as usize];
        unpack(self.weight_type, rows, scales, &mut row);
        if self.weight_type == WeightType::Int8 {
            let scale = f32::from_le_bytes(scales.try_into().unwrap());
            row.iter_mut().for_each(|weight| *weight *= scale);
        }
        row.truncate(d_model as usize);
        row
    }

    pub fn twin(&self) -> Twin {
        let mut twin = Twin::new(self.shape, self.weight_type).unwrap();
        twin.write_rows(0, &self.packed.rows).unwrap();
        twin.write_scales(0, &self.packed.scales).unwrap();
        twin.write_biases(&self.b_enc, &self.b_dec).unwrap();
        twin
    }

    pub fn answer_of_twin(&self) -> TopK {
        self.twin().encode(&self.hidden, self.tokens).unwrap()
    }

    /// ReLU(pre) of one token in f64, and the error that f32 sums may have.
    pub fn truth(&self, token: u32) -> (Vec<f64>, f64) {
        let d_model = self.shape.d_model as usize;
        let hidden = &self.hidden[token as usize * d_model..][..d_model];
        let centred: Vec<f64> = hidden.iter().zip(&self.b_dec).map(|(&x, &b)| f64::from(x) - f64::from(b)).collect();
        let mut largest = 0.0f64;
        let activations = self
            .weights
            .chunks_exact(d_model)
            .zip(&self.b_enc)
            .map(|(row, &b_enc)| {
                let products = || centred.iter().zip(row).map(|(x, &w)| x * f64::from(w));
                largest = largest.max(products().map(f64::abs).sum::<f64>() + f64::from(b_enc.abs()));
                (products().sum::<f64>() + f64::from(b_enc)).max(0.0)
            })
            .collect();
        // A few roundings of partial sums, each at most 2^-24 of the sum of magnitudes.
        (activations, 16.0 * f64::from(f32::EPSILON) * largest)
    }

    /// Panics unless `answer` is a top k of every row of the truth, up to what rounding can exchange.
    pub fn assert_right(&self, answer: &TopK) {
        let k = self.shape.k as usize;
        assert_eq!((answer.tokens, answer.k), (self.tokens, self.shape.k));
        assert_eq!(
            (answer.top_indices.len(), answer.top_acts.len()),
            (self.tokens as usize * k, self.tokens as usize * k)
        );
        for token in 0..self.tokens {
            let (truth, tolerance) = self.truth(token);
            let (latents, acts) = answer.row(token);
            assert_row_is_top_k(latents, acts, &truth, tolerance);
        }
    }
}

/// Panics unless the row is sorted, its activations are those of the truth and nothing larger was left out.
pub fn assert_row_is_top_k(latents: &[u32], acts: &[f32], truth: &[f64], tolerance: f64) {
    let mut left_out: Vec<bool> = vec![true; truth.len()];
    for (&latent, &act) in latents.iter().zip(acts) {
        let expected = truth[latent as usize];
        // Written so that NaN fails.
        let close = (f64::from(act) - expected).abs() <= tolerance;
        assert!(close, "latent {latent}: {act} where {expected} ± {tolerance} is right");
        assert!(std::mem::replace(&mut left_out[latent as usize], false), "latent {latent} is listed twice");
    }
    for (i, pair) in acts.windows(2).enumerate() {
        let sorted = pair[0] > pair[1] || (pair[0] == pair[1] && latents[i] < latents[i + 1]);
        assert!(
            sorted,
            "ranks {i} and {}: ({}, {}) before ({}, {})",
            i + 1,
            latents[i],
            pair[0],
            latents[i + 1],
            pair[1]
        );
    }
    let smallest = f64::from(*acts.last().expect("k is at least 1"));
    for (latent, &expected) in truth.iter().enumerate() {
        let fair = !left_out[latent] || expected <= smallest + 2.0 * tolerance;
        assert!(fair, "latent {latent} with {expected} was left out; the smallest listed is {smallest}");
    }
}

/// The top k by a plain sort: rising latent among equals, padding included.
pub fn sorted_top_k(truth: &[f64], k: u32) -> (Vec<u32>, Vec<f32>) {
    let mut order: Vec<u32> = (0..truth.len() as u32).collect();
    // Stable: equal activations stay in rising order of latent.
    order.sort_by(|&a, &b| truth[b as usize].total_cmp(&truth[a as usize]));
    order.truncate(k as usize);
    let acts = order.iter().map(|&latent| truth[latent as usize] as f32).collect();
    (order, acts)
}
