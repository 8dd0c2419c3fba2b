//! Confidence intervals by the percentile bootstrap (Efron 1979): the statistic of many resamples with replacement, and
//! the middle 95 % of them. Seeded, so that the same samples give the same interval.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Resamples of one interval: the ends then move by less than a tenth of its width from seed to seed.
pub const RESAMPLES: usize = 1000;
/// Share of the resamples below and above the interval.
const TAIL: f64 = 0.025;

/// Arithmetic mean, summed in f64; 0 of nothing.
pub fn mean(values: &[f32]) -> f32 {
    let sum: f64 = values.iter().copied().map(f64::from).sum();
    (sum / values.len().max(1) as f64) as f32
}

/// 95 % interval of the mean of `samples`; `[0, 0]` of nothing, a point of one sample.
pub fn bootstrap(samples: &[f32], seed: u64) -> [f32; 2] {
    bootstrap_by(samples.len(), seed, |drawn| {
        let sum: f64 = drawn.iter().map(|&i| f64::from(samples[i])).sum();
        (sum / drawn.len() as f64) as f32
    })
}

/// 95 % interval of a statistic of `count` samples. `statistic` gets the numbers of `count` samples drawn with
/// replacement; it is not asked when there are none. A resample that it has no value of, `NaN`, is left out.
pub fn bootstrap_by(count: usize, seed: u64, mut statistic: impl FnMut(&[usize]) -> f32) -> [f32; 2] {
    if count == 0 {
        return [0.0; 2];
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = vec![0; count];
    let mut found: Vec<f32> = (0..RESAMPLES)
        .map(|_| {
            drawn.iter_mut().for_each(|sample| *sample = rng.random_range(0..count));
            statistic(&drawn)
        })
        .collect();
    found.retain(|value| !value.is_nan());
    found.sort_by(f32::total_cmp);
    [percentile(&found, TAIL), percentile(&found, 1.0 - TAIL)]
}

/// The value below which a share of the sorted values lies, linear between neighbours (as numpy's default).
fn percentile(sorted: &[f32], share: f64) -> f32 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = share * last as f64;
    let below = (at.floor() as usize).min(last);
    let (low, high) = (f64::from(sorted[below]), f64::from(sorted[(below + 1).min(last)]));
    (low + (high - low) * (at - below as f64)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_constant_samples_is_a_point_and_of_none_is_zero() {
        assert_eq!(bootstrap(&[0.25; 7], 3), [0.25, 0.25]);
        assert_eq!(bootstrap(&[0.5], 3), [0.5, 0.5]);
        assert_eq!(bootstrap(&[], 3), [0.0, 0.0]);
    }

    #[test]
    fn the_same_seed_gives_the_same_interval_and_another_seed_nearly_so() {
        let samples: Vec<f32> = (0..40).map(|i| (i * 37 % 101) as f32 / 101.0).collect();
        let first = bootstrap(&samples, 1);
        assert_eq!(first, bootstrap(&samples, 1));
        let other = bootstrap(&samples, 2);
        assert_ne!(first, other);
        let width = first[1] - first[0];
        assert!((first[0] - other[0]).abs() < 0.15 * width && (first[1] - other[1]).abs() < 0.15 * width);
    }

    /// Of a fair coin thrown 100 times the mean's standard error is 0.05, so the interval is about 0.5 ± 0.098.
    #[test]
    fn the_width_is_that_of_the_normal_approximation() {
        let samples: Vec<f32> = (0..100).map(|i| (i % 2) as f32).collect();
        let [low, high] = bootstrap(&samples, 0);
        assert!((low - 0.402).abs() < 0.02 && (high - 0.598).abs() < 0.02, "{low} {high}");
    }

    /// Of 300 samples of 50 throws each with chance 0.3, about 95 % of the intervals hold 0.3: 93.5 to 97 % by the
    /// exact binomial distribution, as 9 and 22 hits of 50 are on the edge; one standard deviation is 3 or 4 of 300.
    #[test]
    fn about_95_of_100_intervals_hold_the_truth() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let holds = (0..300)
            .filter(|&seed| {
                let throws: Vec<f32> = (0..50).map(|_| f32::from(u8::from(rng.random_range(0.0..1.0) < 0.3))).collect();
                let [low, high] = bootstrap(&throws, seed);
                low <= 0.3 && 0.3 <= high
            })
            .count();
        assert!((268..=299).contains(&holds), "{holds} of 300");
    }

    #[test]
    fn resamples_without_a_value_are_left_out() {
        let fraction = |drawn: &[usize]| if drawn[0] == 0 { f32::NAN } else { 0.5 };
        assert_eq!(bootstrap_by(4, 0, fraction), [0.5, 0.5]);
        assert_eq!(bootstrap_by(4, 0, |_| f32::NAN), [0.0, 0.0]);
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        let sorted = [0.0, 1.0, 2.0, 3.0, 4.0];
        assert_eq!(percentile(&sorted, 0.5), 2.0);
        assert!((percentile(&sorted, 0.025) - 0.1).abs() < 1e-6);
        assert!((percentile(&sorted, 0.975) - 3.9).abs() < 1e-6);
    }
}
