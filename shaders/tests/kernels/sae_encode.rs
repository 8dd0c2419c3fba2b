//! The encoder against f64, on awkward sizes.

use shaders::kernels::sae_encode::{Plan, SaeEncode};
use shaders::{Error, Gpu, SaeShape, TopK, WeightType};

use crate::common::{Problem, Sizes, sorted_top_k, two_worlds};

/// T = 1, d_model of 1, odd and not a multiple of 4 or 16, latents not a multiple of the tile, k from 1 to 256,
/// every variant of the kernel, both weight types.
const SIZES: [Sizes; 8] = [
    Sizes { tokens: 1, d_model: 1, latents: 1, k: 1, weight_type: WeightType::F32 },
    Sizes { tokens: 1, d_model: 192, latents: 700, k: 32, weight_type: WeightType::F16 },
    Sizes { tokens: 5, d_model: 7, latents: 65, k: 3, weight_type: WeightType::F16 },
    Sizes { tokens: 17, d_model: 33, latents: 300, k: 256, weight_type: WeightType::F32 },
    Sizes { tokens: 20, d_model: 50, latents: 257, k: 255, weight_type: WeightType::F16 },
    Sizes { tokens: 33, d_model: 18, latents: 1000, k: 1, weight_type: WeightType::F16 },
    Sizes { tokens: 65, d_model: 64, latents: 512, k: 16, weight_type: WeightType::F16 },
    Sizes { tokens: 70, d_model: 31, latents: 256, k: 256, weight_type: WeightType::F32 },
];

/// Small pieces, so that small problems have several shards, tiles and batches.
const SMALL_PLAN: Plan = Plan { shard_latents: 256, tile_latents: 128, batch_tokens: 40 };

two_worlds!(
    random_numbers_are_close_to_f64,
    whole_numbers_are_exact_with_ties,
    every_plan_gives_the_same_answer,
    an_outlier_channel_is_no_trouble,
    silent_rows_are_padded,
    weights_may_come_in_pieces,
    bad_input_is_refused,
);

fn load(gpu: &Gpu, problem: &Problem, plan: Option<Plan>) -> SaeEncode {
    let sae = match plan {
        Some(plan) => SaeEncode::with_plan(gpu, problem.shape, problem.weight_type, plan),
        None => SaeEncode::new(gpu, problem.shape, problem.weight_type).unwrap(),
    };
    sae.write_weights(gpu, 0, &problem.weight_bytes()).unwrap();
    sae.write_biases(gpu, &problem.b_enc, &problem.b_dec).unwrap();
    sae
}

async fn answer(gpu: &Gpu, problem: &Problem, plan: Option<Plan>) -> TopK {
    load(gpu, problem, plan).encode(gpu, &problem.hidden, problem.tokens).await.unwrap()
}

async fn random_numbers_are_close_to_f64(gpu: Gpu) {
    for (seed, sizes) in (1..).zip(SIZES) {
        let problem = Problem::random(sizes, seed);
        problem.assert_right(&answer(&gpu, &problem, None).await);
        problem.assert_right(&problem.answer_of_twin());
    }
}

async fn whole_numbers_are_exact_with_ties(gpu: Gpu) {
    for (seed, sizes) in (1..).zip(SIZES) {
        let problem = Problem::whole(sizes, seed);
        let answer = answer(&gpu, &problem, None).await;
        for token in 0..sizes.tokens {
            let (latents, acts) = sorted_top_k(&problem.truth(token).0, sizes.k);
            assert_eq!(answer.row(token), (&latents[..], &acts[..]), "{sizes:?}, token {token}");
        }
        assert_eq!(problem.answer_of_twin(), answer, "{sizes:?}");
    }
}

async fn every_plan_gives_the_same_answer(gpu: Gpu) {
    let sizes = Sizes { tokens: 90, d_model: 24, latents: 700, k: 20, weight_type: WeightType::F16 };
    let problem = Problem::whole(sizes, 11);
    let expected = problem.answer_of_twin();
    for shard_latents in [64, 256, 704] {
        for (tile_latents, batch_tokens) in [(64, 90), (128, 17), (1024, 1024)] {
            let plan = Plan { shard_latents, tile_latents, batch_tokens };
            assert_eq!(answer(&gpu, &problem, Some(plan)).await, expected, "{plan:?}");
        }
    }
}

async fn an_outlier_channel_is_no_trouble(gpu: Gpu) {
    let sizes = Sizes { tokens: 9, d_model: 40, latents: 400, k: 24, weight_type: WeightType::F16 };
    let mut problem = Problem::random(sizes, 5);
    for row in problem.hidden.chunks_exact_mut(40) {
        row[13] *= 1e4;
    }
    problem.assert_right(&answer(&gpu, &problem, Some(SMALL_PLAN)).await);
    problem.assert_right(&problem.answer_of_twin());
}

async fn silent_rows_are_padded(gpu: Gpu) {
    let sizes = Sizes { tokens: 3, d_model: 4, latents: 300, k: 6, weight_type: WeightType::F32 };
    let mut problem = Problem::whole(sizes, 3);
    problem.b_dec.fill(0.0);
    problem.b_enc.fill(-1.0);
    // Token 0 is silent everywhere; token 1 fires latents 2 and 290 alone; token 2 is like any other.
    problem.hidden[..8].copy_from_slice(&[0.0, 0.0, 0.0, 0.0, 1e-3, 0.0, 0.0, 0.0]);
    problem.weights[2 * 4] = 3000.0;
    problem.weights[290 * 4] = 4000.0;
    let answer = answer(&gpu, &problem, Some(SMALL_PLAN)).await;
    assert_eq!(answer.row(0), (&[0, 1, 2, 3, 4, 5][..], &[0.0; 6][..]));
    assert_eq!(answer.row(1).0, [290, 2, 0, 1, 3, 4]);
    assert_eq!(answer.row(1).1[2..], [0.0; 4]);
    problem.assert_right(&answer);
    assert_eq!(problem.answer_of_twin(), answer);
}

async fn weights_may_come_in_pieces(gpu: Gpu) {
    // Odd sizes: the matrix ends within a word, and pieces cross shards.
    let sizes = Sizes { tokens: 4, d_model: 5, latents: 301, k: 7, weight_type: WeightType::F16 };
    let problem = Problem::whole(sizes, 8);
    let plan = Plan { shard_latents: 64, ..SMALL_PLAN };
    let sae = SaeEncode::with_plan(&gpu, problem.shape, problem.weight_type, plan);
    let bytes = problem.weight_bytes();
    assert_eq!(sae.weight_bytes(), bytes.len() as u64);
    for (i, piece) in bytes.chunks(1000).enumerate() {
        sae.write_weights(&gpu, 1000 * i as u64, piece).unwrap();
    }
    sae.write_biases(&gpu, &problem.b_enc, &problem.b_dec).unwrap();
    assert_eq!(sae.encode(&gpu, &problem.hidden, 4).await.unwrap(), problem.answer_of_twin());
    for (offset, length) in [(2, 8), (0, 7), (bytes.len() as u64 - 2, 4)] {
        let refused = sae.write_weights(&gpu, offset, &vec![0; length]);
        assert!(matches!(refused, Err(Error::Size { .. })), "{length} bytes at {offset}: {refused:?}");
    }
}

async fn bad_input_is_refused(gpu: Gpu) {
    let problem = Problem::random(SIZES[2], 1);
    let (sae, twin) = (load(&gpu, &problem, None), problem.twin());
    let short = &problem.hidden[1..];
    let expected = Error::Length { what: "hidden [tokens, d_model]", given: 34, expected: 35 };
    assert_eq!(sae.encode(&gpu, short, 5).await, Err(expected.clone()));
    assert_eq!(twin.encode(short, 5), Err(expected));
    for bad in [f32::NAN, f32::INFINITY] {
        let mut hidden = problem.hidden.clone();
        hidden[3 * 7 + 2] = bad;
        assert_eq!(sae.encode(&gpu, &hidden, 5).await, Err(Error::NotFinite { token: 3 }));
        assert_eq!(twin.encode(&hidden, 5), Err(Error::NotFinite { token: 3 }));
    }
    assert_eq!(sae.encode(&gpu, &[], 0).await, Ok(TopK::empty(3)));
    assert_eq!(twin.encode(&[], 0), Ok(TopK::empty(3)));
    for (d_model, latents, k) in [(0, 8, 1), (8, 0, 1), (8, 8, 0), (8, 8, 9), (8, 1000, 257)] {
        assert!(matches!(SaeShape::new(d_model, latents, k), Err(Error::Size { .. })), "{d_model} {latents} {k}");
    }
}

/// The checker itself: a test that cannot fail is none.
#[cfg(not(target_arch = "wasm32"))]
mod checker {
    use crate::common::assert_row_is_top_k;

    const TRUTH: [f64; 4] = [1.0, 3.0, 2.0, 0.0];

    #[test]
    fn accepts_the_truth() {
        assert_row_is_top_k(&[1, 2], &[3.0, 2.0], &TRUTH, 1e-6);
    }

    #[test]
    fn rejects_what_is_wrong() {
        let wrong: [(&[u32], &[f32]); 5] = [
            (&[1, 2], &[3.0, f32::NAN]),
            (&[1, 0], &[3.0, 1.0]),
            (&[2, 1], &[2.0, 3.0]),
            (&[1, 1], &[3.0, 3.0]),
            (&[1, 2], &[3.0, 2.1]),
        ];
        for (latents, acts) in wrong {
            let caught = std::panic::catch_unwind(|| assert_row_is_top_k(latents, acts, &TRUTH, 1e-6));
            assert!(caught.is_err(), "{latents:?} {acts:?} was accepted");
        }
    }
}
