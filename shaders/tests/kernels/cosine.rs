//! Cosines against f64, and the nearest rows.

use shaders::kernels::cosine::{Cosine, nearest};
use shaders::pace::Pace;
use shaders::{Cancel, Error, Gpu, cpu};

use crate::common::{Random, two_worlds};

two_worlds!(
    cosines_are_close_to_f64,
    zero_rows_are_similar_to_nothing,
    small_submissions_give_the_same_answer,
    work_can_be_cancelled_midway,
    nearest_rows_come_first,
    bad_input_is_refused,
);

fn truth(row: &[f32], other: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(row, other) / (dot(row, row) * dot(other, other)).sqrt()
}

async fn cosines_are_close_to_f64(gpu: Gpu) {
    let kernel = Cosine::new(&gpu);
    // The last one is past a dispatch row; then any.
    let mut sizes = vec![(1, 1), (5, 3), (70, 64), (33, 257), (3, 4096), (66_000, 2)];
    let mut random = Random(31);
    sizes.extend((0..12).map(|_| (random.up_to(400) as usize, random.up_to(600) as usize)));
    for (n, d_model) in sizes {
        let mut random = Random(n as u64);
        let row = random.uniforms(d_model, 3.0);
        let mut rows = random.uniforms(n * d_model, 0.1);
        // One row is the same but longer, which is a cosine of 1.
        for (to, from) in rows[(n - 1) * d_model..].iter_mut().zip(&row) {
            *to = 2.0 * from;
        }
        let answer = kernel.similarities(&gpu, &row, &rows, &Cancel::default()).await.unwrap();
        let twin = cpu::cosine::similarities(&row, &rows).unwrap();
        assert_eq!((answer.len(), twin.len()), (n, n));
        for (i, other) in rows.chunks_exact(d_model).enumerate() {
            let expected = truth(&row, other);
            for given in [answer[i], twin[i]] {
                // Written so that NaN fails.
                let close = (f64::from(given) - expected).abs() <= 1e-5;
                assert!(close && given.abs() <= 1.0, "{n} x {d_model}, row {i}: {given}, not {expected}");
            }
        }
    }
}

async fn zero_rows_are_similar_to_nothing(gpu: Gpu) {
    let kernel = Cosine::new(&gpu);
    let rows = [1.0, 2.0, 0.0, 0.0, -3.0, -6.0];
    let cases: [([f32; 2], [f32; 3]); 2] = [([2.0, 4.0], [1.0, 0.0, -1.0]), ([0.0, 0.0], [0.0; 3])];
    for (row, expected) in cases {
        let answer = kernel.similarities(&gpu, &row, &rows, &Cancel::default()).await;
        for answer in [answer, cpu::cosine::similarities(&row, &rows)] {
            for (given, expected) in answer.unwrap().into_iter().zip(expected) {
                let close = (given - expected).abs() <= 1e-6;
                assert!(close, "{given}, not {expected}");
            }
        }
    }
    assert_eq!(kernel.similarities(&gpu, &[1.0], &[], &Cancel::default()).await, Ok(Vec::new()));
}

async fn small_submissions_give_the_same_answer(gpu: Gpu) {
    let mut random = Random(8);
    let (row, rows) = (random.uniforms(30, 1.0), random.uniforms(23 * 30, 1.0));
    let mut kernel = Cosine::new(&gpu);
    let whole = kernel.similarities(&gpu, &row, &rows, &Cancel::default()).await.unwrap();
    // One row; some, and a rest.
    for work in [1.0, 1000.0] {
        kernel.set_pace(Pace::at_most(work));
        let pieces = kernel.similarities(&gpu, &row, &rows, &Cancel::default()).await.unwrap();
        assert_eq!(pieces, whole, "{work} at a time");
    }
}

async fn work_can_be_cancelled_midway(gpu: Gpu) {
    let mut random = Random(9);
    let (row, rows) = (random.uniforms(5, 1.0), random.uniforms(12 * 5, 1.0));
    let mut kernel = Cosine::new(&gpu);
    // One submission is over before the sixth check, one of twelve is not.
    let whole = kernel.similarities(&gpu, &row, &rows, &Cancel::at_check(6)).await.unwrap();
    kernel.set_pace(Pace::at_most(1.0));
    assert_eq!(kernel.similarities(&gpu, &row, &rows, &Cancel::at_check(6)).await, Err(Error::Cancelled));
    let answer = kernel.similarities(&gpu, &row, &rows, &Cancel::default()).await;
    assert_eq!(answer, Ok(whole), "the next one is as if nothing had been");
}

async fn nearest_rows_come_first(_gpu: Gpu) {
    let similarities = [0.5, -0.0, 0.9, 0.5, 0.0, -1.0, 1.0];
    assert_eq!(nearest(&similarities, 4, Some(6)), [(2, 0.9), (0, 0.5), (3, 0.5), (1, 0.0)]);
    assert_eq!(nearest(&similarities, 1, None), [(6, 1.0)]);
    assert_eq!(nearest(&similarities, 100, None).last(), Some(&(5, -1.0)));
    assert!(nearest(&[], 3, None).is_empty());
}

async fn bad_input_is_refused(gpu: Gpu) {
    let kernel = Cosine::new(&gpu);
    let empty = Error::Size { what: "d_model", given: 0, expected: "at least 1".to_owned() };
    let ragged = Error::Length { what: "rows [n, d_model]", given: 5, expected: 4 };
    let bad = [1.0, 2.0, 3.0, f32::NAN];
    let cases: [(&[f32], &[f32], Error); 4] = [
        (&[], &[1.0], empty),
        (&[1.0, 2.0], &[1.0; 5], ragged),
        (&[1.0, 2.0], &bad, Error::NotFinite { what: "rows [n, d_model]", row: 1 }),
        (&[f32::INFINITY, 2.0], &[1.0; 4], Error::NotFinite { what: "row [d_model]", row: 0 }),
    ];
    for (row, rows, expected) in cases {
        assert_eq!(kernel.similarities(&gpu, row, rows, &Cancel::default()).await, Err(expected.clone()));
        assert_eq!(cpu::cosine::similarities(row, rows), Err(expected));
    }
}
