//! The encoder against f64, on awkward sizes.

use shaders::kernels::sae_encode::{Plan, SaeEncode};
use shaders::pace::Pace;
use shaders::tile_shape::{ALL_SHAPES, PLAIN_SHAPES, Speeds, TILE_SHAPES};
use shaders::{Cancel, Error, Gpu, SaeShape, TopK, WeightType};

use crate::common::{Problem, Random, Sizes, sorted_top_k, two_worlds};

/// T = 1, d_model of 1, odd and not a multiple of 4 or 16, latents not a multiple of the tile, k from 1 to 1,024,
/// every weight type.
const SIZES: [Sizes; 15] = [
    Sizes { tokens: 1, d_model: 1, latents: 1, k: 1, weight_type: WeightType::F32 },
    Sizes { tokens: 1, d_model: 192, latents: 700, k: 32, weight_type: WeightType::F16 },
    Sizes { tokens: 5, d_model: 7, latents: 65, k: 3, weight_type: WeightType::F16 },
    Sizes { tokens: 17, d_model: 33, latents: 300, k: 256, weight_type: WeightType::F32 },
    Sizes { tokens: 20, d_model: 50, latents: 257, k: 255, weight_type: WeightType::F16 },
    Sizes { tokens: 33, d_model: 18, latents: 1000, k: 1, weight_type: WeightType::F16 },
    Sizes { tokens: 65, d_model: 64, latents: 512, k: 16, weight_type: WeightType::F16 },
    Sizes { tokens: 70, d_model: 31, latents: 256, k: 256, weight_type: WeightType::F32 },
    Sizes { tokens: 1, d_model: 192, latents: 700, k: 32, weight_type: WeightType::Int8 },
    Sizes { tokens: 19, d_model: 37, latents: 321, k: 40, weight_type: WeightType::Int8 },
    Sizes { tokens: 66, d_model: 64, latents: 512, k: 16, weight_type: WeightType::Int8 },
    Sizes { tokens: 1, d_model: 192, latents: 700, k: 32, weight_type: WeightType::Int4 },
    Sizes { tokens: 21, d_model: 37, latents: 321, k: 40, weight_type: WeightType::Int4 },
    Sizes { tokens: 67, d_model: 128, latents: 512, k: 16, weight_type: WeightType::Int4 },
    Sizes { tokens: 6, d_model: 24, latents: 1500, k: 1024, weight_type: WeightType::Int8 },
];

/// Small pieces, so that small problems have several shards, tiles and batches.
const SMALL_PLAN: Plan = Plan { shard_latents: 256, tile_latents: 128, batch_tokens: 40 };

two_worlds!(
    random_numbers_are_close_to_f64,
    whole_numbers_are_exact_with_ties,
    every_plan_gives_the_same_answer,
    every_shape_gives_the_same_answer,
    any_shape_is_right,
    thousands_of_tokens_come_in_batches,
    a_probe_measures_every_shape,
    small_submissions_give_the_same_answer,
    work_can_be_cancelled_midway,
    an_outlier_channel_is_no_trouble,
    silent_rows_are_padded,
    weights_may_come_in_pieces,
    bad_input_is_refused,
);

fn load(gpu: &Gpu, problem: &Problem, plan: Option<Plan>) -> SaeEncode {
    let mut sae = match plan {
        Some(plan) => SaeEncode::with_plan(gpu, problem.shape, problem.weight_type, plan),
        None => SaeEncode::new(gpu, problem.shape, problem.weight_type).unwrap(),
    };
    sae.write_rows(gpu, 0, &problem.packed.rows).unwrap();
    sae.write_scales(gpu, 0, &problem.packed.scales).unwrap();
    sae.write_biases(gpu, &problem.b_enc, &problem.b_dec).unwrap();
    sae
}

async fn answer(gpu: &Gpu, problem: &Problem, plan: Option<Plan>) -> TopK {
    load(gpu, problem, plan).encode(gpu, &problem.hidden, problem.tokens, &Cancel::default()).await.unwrap()
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

async fn every_shape_gives_the_same_answer(gpu: Gpu) {
    for (seed, weight_type) in (21..).zip(WeightType::ALL) {
        let problem = Problem::whole(Sizes { tokens: 67, d_model: 40, latents: 600, k: 20, weight_type }, seed);
        let mut sae = load(&gpu, &problem, Some(SMALL_PLAN));
        let expected = problem.answer_of_twin();
        // A software adapter in the browser compiles each for seconds: there, all of one type and few of the others.
        let few = cfg!(target_arch = "wasm32") && weight_type != WeightType::F16;
        let is_of_few = |at: &&usize| PLAIN_SHAPES.contains(at) || TILE_SHAPES[**at].waits_for_nobody();
        for &at in ALL_SHAPES.iter().filter(|at| !few || is_of_few(at)) {
            sae.set_speeds(Speeds::only(&[at]));
            let answer = sae.encode(&gpu, &problem.hidden, problem.tokens, &Cancel::default()).await.unwrap();
            assert_eq!(answer, expected, "{weight_type:?} {:?}", TILE_SHAPES[at]);
        }
    }
}

/// Random sizes, every weight type with all that is awkward: rows that are all negative, channels that are ten thousand
/// times larger than the others (as in LLaMA's residual stream), denormal hidden states, ties, weights that f16 and int4
/// scales hold as denormals.
async fn any_shape_is_right(gpu: Gpu) {
    let mut random = Random(77);
    for round in 0..24u64 {
        let weight_type = WeightType::ALL[(round % 4) as usize];
        // Many tokens, long rows, many latents with a large k, or some of each: not all at once, for the f64's sake.
        let [tokens, d_model, latents] = match (round + round / 4) % 4 {
            0 => [3000, 24, 300],
            1 => [8, 2100, 500],
            2 => [20, 70, 1500],
            _ => [90, 70, 900],
        };
        let latents = random.up_to(latents);
        let sizes = Sizes {
            tokens: random.up_to(tokens),
            d_model: random.up_to(d_model),
            latents,
            k: random.up_to(latents.min(1024).into()),
            weight_type,
        };
        let mut problem = Problem::random(sizes, round);
        let d_model = sizes.d_model as usize;
        match round / 4 {
            1 => problem.b_enc.fill(-1e3),
            2 => problem.hidden.chunks_exact_mut(d_model).for_each(|row| row[d_model / 2] *= 1e4),
            3 => {
                problem.b_dec.fill(0.0);
                problem.hidden.iter_mut().for_each(|value| *value *= f32::MIN_POSITIVE);
            }
            4 => {
                let repeated: Vec<f32> = problem.weights[..d_model].repeat(sizes.latents as usize);
                problem.set_weights(&repeated);
                problem.b_enc.fill(0.25);
            }
            5 => {
                let small: Vec<f32> = problem.weights.iter().map(|weight| weight * 3e-5).collect();
                problem.set_weights(&small);
                problem.b_enc.fill(0.0);
            }
            _ => {}
        }
        let plan = Plan {
            shard_latents: 256 * random.up_to(3),
            tile_latents: 64 * random.up_to(8),
            batch_tokens: random.up_to(1000),
        };
        let mut sae = load(&gpu, &problem, Some(plan));
        // Also in the shapes that only slow adapters would choose.
        if round % 3 == 0 {
            sae.set_speeds(Speeds::only(&[TILE_SHAPES.len() - 1 - (round / 3 % 2) as usize]));
        }
        let answer = sae.encode(&gpu, &problem.hidden, problem.tokens, &Cancel::default()).await.unwrap();
        problem.assert_right(&answer);
        problem.assert_right(&problem.answer_of_twin());
    }
}

async fn thousands_of_tokens_come_in_batches(gpu: Gpu) {
    let sizes = Sizes { tokens: 3000, d_model: 6, latents: 130, k: 5, weight_type: WeightType::Int8 };
    let problem = Problem::whole(sizes, 4);
    assert_eq!(answer(&gpu, &problem, None).await, problem.answer_of_twin());
}

async fn a_probe_measures_every_shape(gpu: Gpu) {
    let sizes = Sizes { tokens: 5, d_model: 64, latents: 512, k: 8, weight_type: WeightType::F16 };
    let problem = Problem::whole(sizes, 6);
    let mut sae = load(&gpu, &problem, None);
    let speeds = sae.probe(&gpu, &Cancel::default()).await.unwrap();
    assert!(speeds.0.iter().all(|seconds| *seconds > 0.0 && *seconds < 1.0), "{speeds:?}");
    let answer = sae.encode(&gpu, &problem.hidden, 5, &Cancel::default()).await.unwrap();
    assert_eq!(answer, problem.answer_of_twin());
}

async fn small_submissions_give_the_same_answer(gpu: Gpu) {
    // Between selections a row gathers several tiles.
    let sizes = Sizes { tokens: 70, d_model: 24, latents: 1500, k: 20, weight_type: WeightType::F16 };
    let problem = Problem::whole(sizes, 12);
    let mut sae = load(&gpu, &problem, None);
    sae.set_pace(Pace::at_most(1.0));
    let answer = sae.encode(&gpu, &problem.hidden, problem.tokens, &Cancel::default()).await.unwrap();
    assert_eq!(answer, problem.answer_of_twin());
}

async fn work_can_be_cancelled_midway(gpu: Gpu) {
    let problem = Problem::whole(SIZES[6], 2);
    let mut sae = load(&gpu, &problem, None);
    let cancel = Cancel::default();
    cancel.cancel();
    assert_eq!(sae.probe(&gpu, &cancel).await, Err(Error::Cancelled));
    // One submission is over before the fourth check, one for each workgroup's latents is not.
    let whole = sae.encode(&gpu, &problem.hidden, problem.tokens, &Cancel::at_check(4)).await;
    assert_eq!(whole, Ok(problem.answer_of_twin()));
    sae.set_pace(Pace::at_most(1.0));
    let cancelled = sae.encode(&gpu, &problem.hidden, problem.tokens, &Cancel::at_check(4)).await;
    assert_eq!(cancelled, Err(Error::Cancelled));
    let answer = sae.encode(&gpu, &problem.hidden, problem.tokens, &Cancel::default()).await;
    assert_eq!(answer, whole, "the next one is as if nothing had been");
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
    let mut weights = problem.weights.clone();
    (weights[2 * 4], weights[290 * 4]) = (3000.0, 4000.0);
    problem.set_weights(&weights);
    let answer = answer(&gpu, &problem, Some(SMALL_PLAN)).await;
    assert_eq!(answer.row(0), (&[0, 1, 2, 3, 4, 5][..], &[0.0; 6][..]));
    assert_eq!(answer.row(1).0, [290, 2, 0, 1, 3, 4]);
    assert_eq!(answer.row(1).1[2..], [0.0; 4]);
    problem.assert_right(&answer);
    assert_eq!(problem.answer_of_twin(), answer);
}

async fn weights_may_come_in_pieces(gpu: Gpu) {
    let plan = Plan { shard_latents: 64, ..SMALL_PLAN };
    for weight_type in WeightType::ALL {
        // Pieces cross shards, and int4's scales end within a word.
        let problem = Problem::whole(Sizes { tokens: 4, d_model: 5, latents: 301, k: 7, weight_type }, 8);
        let mut sae = SaeEncode::with_plan(&gpu, problem.shape, weight_type, plan);
        let mut twin = shaders::cpu::sae_encode::SaeEncode::new(problem.shape, weight_type).unwrap();
        let rows = &problem.packed.rows;
        assert_eq!(sae.row_bytes(), rows.len() as u64);
        for (i, piece) in rows.chunks(1000).enumerate() {
            sae.write_rows(&gpu, 1000 * i as u64, piece).unwrap();
            twin.write_rows(1000 * i as u64, piece).unwrap();
        }
        for (i, piece) in problem.packed.scales.chunks(100).enumerate() {
            sae.write_scales(&gpu, 100 * i as u64, piece).unwrap();
            twin.write_scales(100 * i as u64, piece).unwrap();
        }
        sae.write_biases(&gpu, &problem.b_enc, &problem.b_dec).unwrap();
        twin.write_biases(&problem.b_enc, &problem.b_dec).unwrap();
        let answer = sae.encode(&gpu, &problem.hidden, 4, &Cancel::default()).await.unwrap();
        assert_eq!(answer, problem.answer_of_twin(), "{weight_type:?}");
        assert_eq!(answer, twin.encode(&problem.hidden, 4).unwrap(), "{weight_type:?}");
        for (offset, length) in [(2, 8), (0, 7), (rows.len() as u64 - 4, 8)] {
            let refused = sae.write_rows(&gpu, offset, &vec![0; length]);
            assert!(matches!(refused, Err(Error::Size { .. })), "{length} bytes at {offset}: {refused:?}");
        }
        let beyond = twin.write_rows(rows.len() as u64 - 4, &[0; 8]);
        assert!(matches!(beyond, Err(Error::Size { .. })), "{beyond:?}");
    }
}

async fn bad_input_is_refused(gpu: Gpu) {
    let problem = Problem::random(SIZES[2], 1);
    let (sae, twin) = (load(&gpu, &problem, None), problem.twin());
    let short = &problem.hidden[1..];
    let expected = Error::Length { what: "hidden [tokens, d_model]", given: 34, expected: 35 };
    assert_eq!(sae.encode(&gpu, short, 5, &Cancel::default()).await, Err(expected.clone()));
    assert_eq!(twin.encode(short, 5), Err(expected));
    for bad in [f32::NAN, f32::INFINITY] {
        let mut hidden = problem.hidden.clone();
        hidden[3 * 7 + 2] = bad;
        assert_eq!(
            sae.encode(&gpu, &hidden, 5, &Cancel::default()).await,
            Err(Error::NotFinite { what: "hidden [tokens, d_model]", row: 3 })
        );
        assert_eq!(twin.encode(&hidden, 5), Err(Error::NotFinite { what: "hidden [tokens, d_model]", row: 3 }));
    }
    assert_eq!(sae.encode(&gpu, &[], 0, &Cancel::default()).await, Ok(TopK::empty(3)));
    assert_eq!(twin.encode(&[], 0), Ok(TopK::empty(3)));
    for (d_model, latents, k) in [(0, 8, 1), (8, 0, 1), (8, 8, 0), (8, 8, 9), (8, 2000, 1025)] {
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
