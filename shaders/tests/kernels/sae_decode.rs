//! The decode against f64, with the decoder's rows in pieces.

use shaders::kernels::sae_decode::SaeDecode;
use shaders::pace::Pace;
use shaders::{Cancel, Decoded, Error, Gpu, TopK, cpu};

use crate::common::{Random, two_worlds};
use crate::sparse::random_top_k;

two_worlds!(
    random_numbers_are_close_to_f64,
    rows_beyond_one_buffer_are_split,
    a_perfect_decode_explains_everything,
    small_submissions_give_the_same_answer,
    work_can_be_cancelled_midway,
    missing_and_repeated_rows_are_refused,
    bad_input_is_refused,
);

/// A decoder and the hidden states that it should give.
struct Problem {
    top: TopK,
    d_model: u32,
    /// `[latents, d_model]`
    decoder: Vec<f32>,
    b_dec: Vec<f32>,
    hidden: Vec<f32>,
}

impl Problem {
    fn new(tokens: u32, k: u32, latents: u32, d_model: u32) -> Self {
        let mut random = Random(u64::from(tokens * d_model));
        Self {
            top: random_top_k(tokens, k, latents, u64::from(latents)),
            d_model,
            decoder: random.uniforms((latents * d_model) as usize, 1.0),
            b_dec: random.uniforms(d_model as usize, 1.0),
            hidden: random.uniforms((tokens * d_model) as usize, 3.0),
        }
    }

    fn rows(&self, latents: &[u32]) -> Vec<f32> {
        let d_model = self.d_model as usize;
        latents.iter().flat_map(|&latent| &self.decoder[latent as usize * d_model..][..d_model]).copied().collect()
    }

    /// On the GPU and on the CPU, `piece` rows at a time.
    async fn answers(&self, gpu: &Gpu, piece: usize) -> [Decoded; 2] {
        let mut decode = SaeDecode::start(gpu, &self.top, self.d_model).unwrap();
        let mut twin = cpu::sae_decode::SaeDecode::start(&self.top, self.d_model).unwrap();
        for latents in self.top.active_latents().chunks(piece) {
            decode.add_rows(gpu, latents, &self.rows(latents), &Cancel::default()).await.unwrap();
            twin.add_rows(latents, &self.rows(latents)).unwrap();
        }
        let answer = decode.finish(gpu, &self.hidden, &self.b_dec, &Cancel::default()).await.unwrap();
        [answer, twin.finish(&self.hidden, &self.b_dec).unwrap()]
    }

    /// Reconstruction `[tokens, d_model]` in f64, and the error that f32 sums may have in each value.
    fn truth(&self) -> Vec<(f64, f64)> {
        let d_model = self.d_model as usize;
        let mut truth = Vec::with_capacity(self.hidden.len());
        for token in 0..self.top.tokens {
            let (latents, acts) = self.top.row(token);
            for channel in 0..d_model {
                let weight = |latent: u32| f64::from(self.decoder[latent as usize * d_model + channel]);
                let products: Vec<f64> =
                    latents.iter().zip(acts).map(|(&latent, &act)| f64::from(act) * weight(latent)).collect();
                let bias = f64::from(self.b_dec[channel]);
                let magnitude: f64 = products.iter().map(|product| product.abs()).sum::<f64>() + bias.abs();
                truth.push((products.iter().sum::<f64>() + bias, 8.0 * f64::from(f32::EPSILON) * magnitude));
            }
        }
        truth
    }

    fn assert_right(&self, answer: &Decoded) {
        let (tokens, d_model) = (self.top.tokens as usize, self.d_model as usize);
        let truth = self.truth();
        assert_eq!((answer.reconstruction.len(), answer.squared_error.len()), (tokens * d_model, tokens));
        for (at, (&value, &(expected, tolerance))) in answer.reconstruction.iter().zip(&truth).enumerate() {
            // Written so that NaN fails.
            assert!((f64::from(value) - expected).abs() <= tolerance, "value {at}: {value}, not {expected}");
        }
        let mut total = 0.0;
        let rows = truth.chunks_exact(d_model).zip(self.hidden.chunks_exact(d_model));
        for (&error, (truth, hidden)) in answer.squared_error.iter().zip(rows) {
            let (mut expected, mut tolerance) = (0.0, 0.0);
            for (&(value, uncertain), &x) in truth.iter().zip(hidden) {
                let off = (f64::from(x) - value).abs();
                expected += off * off;
                tolerance += 2.0 * off * uncertain + uncertain * uncertain;
            }
            tolerance += 1e-5 * expected;
            assert!((f64::from(error) - expected).abs() <= tolerance, "error {error}, not {expected}");
            total += expected;
        }
        let fvu = total / self.variance();
        assert!(answer.fvu == fvu || (answer.fvu - fvu).abs() <= 1e-4 * fvu, "fvu {}, not {fvu}", answer.fvu);
    }

    fn variance(&self) -> f64 {
        let column = |channel| self.hidden.iter().skip(channel).step_by(self.d_model as usize).map(|&x| f64::from(x));
        let variance = |channel| {
            let mean = column(channel).sum::<f64>() / f64::from(self.top.tokens);
            column(channel).map(|x| (x - mean).powi(2)).sum::<f64>()
        };
        (0..self.d_model as usize).map(variance).sum()
    }
}

async fn random_numbers_are_close_to_f64(gpu: Gpu) {
    // The last one is past a dispatch row; then any.
    let mut sizes = vec![
        (1, 1, 1, 1, 1),
        (2, 3, 7, 5, 2),
        (5, 32, 700, 192, 50),
        (33, 7, 20, 65, 3),
        (3, 1024, 1500, 64, 10_000),
        (66_000, 2, 9, 1, 4),
    ];
    let mut random = Random(32);
    for most_tokens in [3000, 100, 9].repeat(4) {
        let latents = random.up_to(1200);
        let d_model = random.up_to(60_000 / most_tokens);
        let k = random.up_to(u64::from(latents).min(if most_tokens > 100 { 40 } else { 1024 }));
        sizes.push((random.up_to(most_tokens), k, latents, d_model.min(300), random.up_to(700) as usize));
    }
    for (tokens, k, latents, d_model, piece) in sizes {
        let problem = Problem::new(tokens, k, latents, d_model);
        for answer in problem.answers(&gpu, piece).await {
            problem.assert_right(&answer);
        }
    }
}

async fn rows_beyond_one_buffer_are_split(gpu: Gpu) {
    // 17 rows of 4 MiB; every latent adds act / 2 to every channel.
    let d_model = 1 << 20;
    let top = TopK { tokens: 1, k: 17, top_indices: (0..17).collect(), top_acts: vec![2.0; 17] };
    let mut decode = SaeDecode::start(&gpu, &top, d_model).unwrap();
    let cancel = Cancel::default();
    decode.add_rows(&gpu, &top.active_latents(), &vec![0.5; 17 << 20], &cancel).await.unwrap();
    let answer = decode.finish(&gpu, &vec![18.0; 1 << 20], &vec![1.0; 1 << 20], &cancel).await.unwrap();
    assert!(answer.reconstruction.iter().all(|&value| value == 18.0));
    assert_eq!((answer.squared_error, answer.fvu), (vec![0.0], 0.0));
}

async fn a_perfect_decode_explains_everything(gpu: Gpu) {
    // Token t is latent t alone; token 3 is silent, and its padding needs no row.
    let top = TopK { tokens: 4, k: 1, top_indices: vec![0, 1, 2, 0], top_acts: vec![1.0, 2.0, 3.0, 0.0] };
    let mut problem = Problem {
        top,
        d_model: 2,
        decoder: vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0],
        b_dec: vec![1.0, -1.0],
        hidden: vec![2.0, -1.0, 1.0, 1.0, 4.0, 2.0, 1.0, -1.0],
    };
    for answer in problem.answers(&gpu, 2).await {
        assert_eq!(answer.reconstruction, problem.hidden);
        assert_eq!((answer.squared_error, answer.fvu), (vec![0.0; 4], 0.0));
    }
    // Without variance nothing can be explained.
    problem.hidden.fill(1.0);
    for answer in problem.answers(&gpu, 2).await {
        assert_eq!(answer.fvu, f64::INFINITY);
    }
    let empty = SaeDecode::start(&gpu, &TopK::empty(3), 2).unwrap();
    assert_eq!(empty.finish(&gpu, &[], &[0.0; 2], &Cancel::default()).await, Ok(Decoded::default()));
}

async fn small_submissions_give_the_same_answer(gpu: Gpu) {
    let problem = Problem::new(11, 6, 30, 7);
    let [whole, _] = problem.answers(&gpu, 20).await;
    let latents = problem.top.active_latents();
    // A token; some, of which the last may be silent.
    for work in [1.0, 500.0] {
        let mut decode = SaeDecode::start(&gpu, &problem.top, problem.d_model).unwrap();
        decode.set_pace(Pace::at_most(work));
        for latents in latents.chunks(20) {
            decode.add_rows(&gpu, latents, &problem.rows(latents), &Cancel::default()).await.unwrap();
        }
        let answer = decode.finish(&gpu, &problem.hidden, &problem.b_dec, &Cancel::default()).await.unwrap();
        assert_eq!(answer, whole, "{work} at a time");
    }
}

async fn work_can_be_cancelled_midway(gpu: Gpu) {
    let problem = Problem::new(12, 6, 9, 7);
    let latents = problem.top.active_latents();
    let rows = problem.rows(&latents);
    for pace in [Pace::default(), Pace::at_most(1.0)] {
        // One submission is over before the sixth check, one for each of twelve tokens is not.
        let expected = if pace == Pace::default() { Ok(()) } else { Err(Error::Cancelled) };
        let mut decode = SaeDecode::start(&gpu, &problem.top, problem.d_model).unwrap();
        decode.set_pace(pace);
        assert_eq!(decode.add_rows(&gpu, &latents, &rows, &Cancel::at_check(6)).await, expected);
        let mut decode = SaeDecode::start(&gpu, &problem.top, problem.d_model).unwrap();
        decode.set_pace(pace);
        decode.add_rows(&gpu, &latents, &rows, &Cancel::default()).await.unwrap();
        let finished = decode.finish(&gpu, &problem.hidden, &problem.b_dec, &Cancel::at_check(6)).await;
        assert_eq!(finished.map(|decoded| problem.assert_right(&decoded)), expected);
    }
}

async fn missing_and_repeated_rows_are_refused(gpu: Gpu) {
    let top = TopK { tokens: 2, k: 2, top_indices: vec![4, 0, 9, 4], top_acts: vec![1.0, 0.0, 2.0, 1.0] };
    assert_eq!(top.active_latents(), [4, 9]);
    let mut decode = SaeDecode::start(&gpu, &top, 1).unwrap();
    let mut twin = cpu::sae_decode::SaeDecode::start(&top, 1).unwrap();
    // Row 5 is not needed.
    decode.add_rows(&gpu, &[4, 5], &[1.0, 1.0], &Cancel::default()).await.unwrap();
    twin.add_rows(&[4, 5], &[1.0, 1.0]).unwrap();
    for latents in [[3, 4], [9, 9], [9, 8]] {
        let refused = decode.add_rows(&gpu, &latents, &[1.0; 2], &Cancel::default()).await;
        for refused in [refused, twin.add_rows(&latents, &[1.0; 2])] {
            assert!(matches!(refused, Err(Error::Size { what: "latent of a row", .. })), "{latents:?}: {refused:?}");
        }
    }
    let missing = Error::Length { what: "decoder rows of active latents", given: 1, expected: 2 };
    assert_eq!(decode.finish(&gpu, &[1.0, 1.0], &[0.0], &Cancel::default()).await, Err(missing.clone()));
    assert_eq!(twin.finish(&[1.0, 1.0], &[0.0]), Err(missing));
}

async fn bad_input_is_refused(gpu: Gpu) {
    let problem = Problem::new(2, 3, 7, 5);
    let start = |top: &TopK, d_model| {
        let twin = cpu::sae_decode::SaeDecode::start(top, d_model).err();
        assert_eq!(SaeDecode::start(&gpu, top, d_model).err(), twin);
        twin
    };
    assert!(matches!(start(&problem.top, 0), Some(Error::Size { what: "d_model", .. })));
    let mut bad = problem.top.clone();
    bad.top_acts[4] = f32::NAN;
    assert_eq!(start(&bad, 5), Some(Error::NotFinite { what: "top_acts [tokens, k]", row: 1 }));
    bad.top_acts.pop();
    let expected = Error::Length { what: "top_acts [tokens, k]", given: 5, expected: 6 };
    assert_eq!(start(&bad, 5), Some(expected));

    let mut decode = SaeDecode::start(&gpu, &problem.top, 5).unwrap();
    let expected = Error::Length { what: "rows [n, d_model]", given: 4, expected: 5 };
    let cancel = Cancel::default();
    assert_eq!(decode.add_rows(&gpu, &[1], &[1.0; 4], &cancel).await, Err(expected));
    let expected = Error::NotFinite { what: "rows [n, d_model]", row: 0 };
    assert_eq!(decode.add_rows(&gpu, &[1], &[f32::INFINITY; 5], &cancel).await, Err(expected));
    let (mut hidden, mut b_dec) = (problem.hidden.clone(), problem.b_dec.clone());
    hidden[7] = f32::NAN;
    b_dec[3] = f32::INFINITY;
    for (hidden, b_dec, what, row) in
        [(&hidden, &problem.b_dec, "hidden [tokens, d_model]", 1), (&problem.hidden, &b_dec, "b_dec [d_model]", 3)]
    {
        let mut decode = SaeDecode::start(&gpu, &problem.top, 5).unwrap();
        let mut twin = cpu::sae_decode::SaeDecode::start(&problem.top, 5).unwrap();
        let latents = problem.top.active_latents();
        decode.add_rows(&gpu, &latents, &problem.rows(&latents), &cancel).await.unwrap();
        twin.add_rows(&latents, &problem.rows(&latents)).unwrap();
        let expected = Err(Error::NotFinite { what, row });
        assert_eq!(decode.finish(&gpu, hidden, b_dec, &cancel).await, expected);
        assert_eq!(twin.finish(hidden, b_dec), expected);
    }
}
