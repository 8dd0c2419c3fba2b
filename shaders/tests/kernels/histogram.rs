//! Counts against a plain loop in f64, and exactly against the twin.

use shaders::cpu::histogram::histogram;
use shaders::kernels::histogram::{Histogram, MAX_BINS};
use shaders::pace::Pace;
use shaders::{Cancel, Error, Gpu};

use crate::common::{Random, two_worlds};

two_worlds!(
    whole_numbers_are_counted_as_in_f64,
    kernel_and_twin_agree_at_the_edges,
    what_is_not_positive_is_not_counted,
    small_submissions_give_the_same_answer,
    work_can_be_cancelled_midway,
    bad_input_is_refused,
);

/// The definition, in f64.
fn truth(values: &[f32], bins: u32, max: f32) -> Vec<u32> {
    let mut counts = vec![0; bins as usize];
    for value in values.iter().copied().map(f64::from).filter(|&value| value > 0.0) {
        let bin = (value * f64::from(bins) / f64::from(max)).floor();
        counts[bin.min(f64::from(bins - 1)) as usize] += 1;
    }
    counts
}

async fn whole_numbers_are_counted_as_in_f64(gpu: Gpu) {
    let kernel = Histogram::new(&gpu);
    // The last one is more than one submission; then any.
    let mut sizes = vec![(1, 1), (255, 2), (4097, 64), (10_000, MAX_BINS), ((1 << 22) + 5, 16)];
    let mut random = Random(33);
    sizes.extend((0..12).map(|_| (random.up_to(50_000) as usize, random.up_to(MAX_BINS.into()))));
    for (count, bins) in sizes {
        // The bins' width is 1/4: values and edges are exact in f32.
        let max = bins as f32 / 4.0;
        let values: Vec<f32> = Random(3).wholes(count, u64::from(bins)).iter().map(|value| value / 4.0).collect();
        let expected = truth(&values, bins, max);
        assert_eq!(
            kernel.counts(&gpu, &values, bins, max, &Cancel::default()).await.unwrap(),
            expected,
            "{count} in {bins}"
        );
        assert_eq!(histogram(&values, bins, max).unwrap(), expected, "{count} in {bins}, twin");
    }
}

async fn kernel_and_twin_agree_at_the_edges(gpu: Gpu) {
    let kernel = Histogram::new(&gpu);
    let mut random = Random(1);
    for (bins, max) in [(7, 0.3), (50, 12.7), (100, 1e-20), (1000, 3e20)] {
        let mut values = random.uniforms(5000, 1.1 * max);
        // Edges of bins, and the floats beside them.
        for bin in 0..=bins {
            let edge = bin as f32 * (max / bins as f32);
            values.extend([edge, f32::from_bits(edge.to_bits() + 1), f32::from_bits(edge.to_bits().max(1) - 1)]);
        }
        let answer = kernel.counts(&gpu, &values, bins, max, &Cancel::default()).await.unwrap();
        assert_eq!(histogram(&values, bins, max).unwrap(), answer, "{bins} to {max}");
        let positive = values.iter().filter(|value| **value > 0.0).count();
        assert_eq!(answer.iter().map(|&count| count as usize).sum::<usize>(), positive, "{bins} to {max}");
    }
}

async fn what_is_not_positive_is_not_counted(gpu: Gpu) {
    let kernel = Histogram::new(&gpu);
    let silent = [0.0, -0.0, -1.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let smallest = f32::from_bits(1);
    let positive = [smallest, 0.5, 2.0, 3.0, 1e6];
    let values = [&silent[..], &positive[..]].concat();
    let expected = [1, 1, 0, 3];
    // The last bin is closed and holds what is larger.
    assert_eq!(kernel.counts(&gpu, &values, 4, 2.0, &Cancel::default()).await.unwrap(), expected);
    assert_eq!(histogram(&values, 4, 2.0).unwrap(), expected);
    assert_eq!(kernel.counts(&gpu, &[], 4, 2.0, &Cancel::default()).await.unwrap(), [0; 4]);
}

async fn small_submissions_give_the_same_answer(gpu: Gpu) {
    let mut kernel = Histogram::new(&gpu);
    for (count, work) in [(20, 1.0), (10_000, 5000.0)] {
        let values = Random(count as u64).uniforms(count, 1.0);
        kernel.set_pace(Pace::at_most(work));
        let answer = kernel.counts(&gpu, &values, 9, 1.0, &Cancel::default()).await;
        assert_eq!(answer, histogram(&values, 9, 1.0), "{count} values, {work} at a time");
    }
}

async fn work_can_be_cancelled_midway(gpu: Gpu) {
    let values = Random(6).uniforms(12, 1.0);
    let mut kernel = Histogram::new(&gpu);
    // One submission is over before the sixth check, one of twelve is not.
    let whole = kernel.counts(&gpu, &values, 3, 1.0, &Cancel::at_check(6)).await.unwrap();
    kernel.set_pace(Pace::at_most(1.0));
    assert_eq!(kernel.counts(&gpu, &values, 3, 1.0, &Cancel::at_check(6)).await, Err(Error::Cancelled));
    let answer = kernel.counts(&gpu, &values, 3, 1.0, &Cancel::default()).await;
    assert_eq!(answer, Ok(whole), "the next one is as if nothing had been");
}

async fn bad_input_is_refused(gpu: Gpu) {
    let kernel = Histogram::new(&gpu);
    let bad = [(0, 1.0), (MAX_BINS + 1, 1.0), (4, 0.0), (4, -1.0), (4, f32::NAN), (4, f32::INFINITY)];
    for (bins, max) in bad {
        let refused = kernel.counts(&gpu, &[1.0], bins, max, &Cancel::default()).await;
        assert!(matches!(refused, Err(Error::Size { .. })), "{bins} to {max}: {refused:?}");
        assert_eq!(histogram(&[1.0], bins, max), refused);
    }
}
