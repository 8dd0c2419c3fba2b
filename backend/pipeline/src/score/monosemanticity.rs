//! MonoSemanticity (Pach et al. 2025, arXiv 2504.02821): how alike the pictures are on which a feature fires.
//!
//! `MS = Σ_{n<m} a_n a_m cos(E_n, E_m) / Σ_{n<m} a_n a_m`, with the embeddings `E` of an image encoder that knows
//! nothing of the feature, and its activations `a` scaled to 0..=1 by their minimum and maximum. It says something about
//! the feature, not about the words of its label.
//!
//! The paper's set is every picture of a data set; ours is the feature's stored examples ([`super::SHOWN`] at most, by
//! falling mean), since a picture on which it is silent has no weight anyway. An activation is the mean over the base
//! picture's patches. The minimum is 0, unless the feature fires on every picture of the set.
//!
//! The *baseline* has the same activations on random pictures: what any pictures of this set are alike.

use super::{Measured, PendingScore, ScoreError, Scorer, Shown, Subject, interval::bootstrap_by};
use std::sync::Arc;

/// Turns pictures into vectors, so that like pictures have like directions. Features share their pictures: who takes
/// long remembers them.
pub trait ImageEmbedder: Send + Sync {
    /// The embedding of a WebP, PNG or JPEG picture; of any length, the same for all pictures.
    ///
    /// # Errors
    /// When the bytes are not a picture.
    fn embed(&self, picture: &[u8]) -> Result<Vec<f32>, ScoreError>;
}

/// Likeness of the pictures on which a feature fires.
pub struct MonoSemanticity {
    embedder: Arc<dyn ImageEmbedder>,
    author: String,
}

impl MonoSemanticity {
    /// `embedder_name`: model and revision, for people.
    pub fn new(embedder: Arc<dyn ImageEmbedder>, embedder_name: &str) -> Self {
        Self { embedder, author: format!("{embedder_name}, stored examples") }
    }

    /// The picture's embedding, scaled to length 1.
    fn embedding(&self, shown: &Shown) -> Result<Vec<f32>, ScoreError> {
        let named = |error: ScoreError| ScoreError::Picture { id: shown.id().to_owned(), reason: error.to_string() };
        self.embedder.embed(&shown.picture).map(unit).map_err(named)
    }

    fn measure(&self, subject: &Subject) -> Result<Option<Measured>, ScoreError> {
        // Random pictures say nothing of it: a dense feature may fire on these as well.
        let is_silent_somewhere = subject.feature.frac_pictures < 1.0;
        let weights = weights(&subject.shown, is_silent_somewhere);
        let count = weights.len().min(subject.random.len());
        if weights.iter().filter(|weight| **weight > 0.0).count() < 2 || count < 2 {
            return Ok(None);
        }
        let embeddings = |of: &[Shown]| of.iter().map(|shown| self.embedding(shown)).collect::<Result<Vec<_>, _>>();
        let cosines = Cosines::of(&embeddings(&subject.shown)?);
        let random = Cosines::of(&embeddings(&subject.random[..count])?);
        let all: Vec<usize> = (0..weights.len()).collect();
        Ok(Some(Measured {
            value: cosines.mean(&weights, &all),
            baseline: random.mean(&weights[..count], &all[..count]),
            interval: bootstrap_by(weights.len(), subject.seed, |drawn| cosines.mean(&weights, drawn)),
            samples: u32::try_from(weights.len()).unwrap_or(u32::MAX),
            effects: None,
        }))
    }
}

impl Scorer for MonoSemanticity {
    fn type_name(&self) -> &str {
        "monosemanticity"
    }

    fn author(&self) -> &str {
        &self.author
    }

    fn score<'a>(&'a self, subject: &'a Subject) -> PendingScore<'a> {
        Box::pin(async move { tokio::task::block_in_place(|| self.measure(subject)) })
    }
}

/// Mean activations, scaled to 0..=1.
fn weights(shown: &[Shown], is_silent_somewhere: bool) -> Vec<f32> {
    let activations = || shown.iter().map(|shown| shown.activation.mean_value);
    let lowest = if is_silent_somewhere { 0.0 } else { activations().fold(f32::INFINITY, f32::min) };
    let span = activations().fold(0.0, f32::max) - lowest;
    activations().map(|activation| if span > 0.0 { (activation - lowest) / span } else { 0.0 }).collect()
}

/// The same direction with length 1; zeros stay zeros.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    vector
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Cosines of all pairs of pictures.
struct Cosines {
    count: usize,
    /// `[count, count]`
    values: Vec<f64>,
}

impl Cosines {
    /// Of vectors of length 1.
    fn of(embeddings: &[Vec<f32>]) -> Self {
        let values = embeddings.iter().flat_map(|a| embeddings.iter().map(move |b| dot(a, b))).collect();
        Self { count: embeddings.len(), values }
    }

    /// Weighted mean over the pairs of different pictures among `drawn`, which may name a picture several times; NaN
    /// when no pair has a weight.
    fn mean(&self, weights: &[f32], drawn: &[usize]) -> f32 {
        let (mut sum, mut total) = (0.0, 0.0);
        for (place, &n) in drawn.iter().enumerate() {
            for &m in drawn[place + 1..].iter().filter(|m| **m != n) {
                let weight = f64::from(weights[n]) * f64::from(weights[m]);
                sum += weight * self.values[n * self.count + m];
                total += weight;
            }
        }
        (sum / total) as f32
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use api::{Activation, ActivationImage, Feature, Picture};

    /// A picture's bytes are its embedding, of two numbers.
    struct Bytes;

    impl ImageEmbedder for Bytes {
        fn embed(&self, picture: &[u8]) -> Result<Vec<f32>, ScoreError> {
            match picture {
                [] => Err(ScoreError::Setup { reason: "no bytes".into() }),
                bytes => Ok(bytes.iter().map(|byte| f32::from(*byte)).collect()),
            }
        }
    }

    fn shown(id: &str, activation: f32, embedding: [u8; 2]) -> Shown {
        let picture = Picture { id: id.into(), ..Picture::default() };
        let image = ActivationImage { picture, grid: [2, 2] };
        let activation = Activation { image, mean_value: activation, ..Activation::default() };
        Shown { activation, picture: embedding.to_vec() }
    }

    fn subject(shown: Vec<Shown>, random: Vec<Shown>) -> Subject {
        Subject { shown, random, ..Subject::default() }
    }

    /// Three pictures: a and b alike, c at a right angle to both; random ones at 45 and 90 degrees.
    fn three() -> Subject {
        subject(
            vec![shown("a", 4.0, [1, 0]), shown("b", 2.0, [3, 0]), shown("c", 1.0, [0, 5])],
            vec![shown("x", 0.0, [1, 0]), shown("y", 0.0, [1, 1]), shown("z", 0.0, [0, 1])],
        )
    }

    async fn score(subject: &Subject) -> Option<Measured> {
        MonoSemanticity::new(Arc::new(Bytes), "bytes").score(subject).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn pairs_count_as_much_as_the_feature_fires_on_both() {
        let found = score(&three()).await.unwrap();
        // Weights 1, 1/2, 1/4: pairs ab 1/2 (cosine 1), ac 1/4 and bc 1/8 (cosine 0).
        assert!((found.value - 0.5 / 0.875).abs() < 1e-6, "{found:?}");
        // The same weights on x, y, z: xy 1/2 and yz 1/8 at 45 degrees, xz 1/4 at 90.
        let half = std::f32::consts::FRAC_1_SQRT_2;
        assert!((found.baseline - 0.625 * half / 0.875).abs() < 1e-6, "{found:?}");
        assert_eq!(found.samples, 3);
        // A resample has the pair ab alone, or a pair with c alone, or both.
        assert_eq!(found.interval, [0.0, 1.0]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_minimum_is_zero_only_where_the_feature_is_silent_somewhere() {
        let mut subject = three();
        subject.feature = Feature { frac_pictures: 1.0, ..Feature::default() };
        assert_eq!(weights(&subject.shown, false), [1.0, 1.0 / 3.0, 0.0]);
        assert_eq!(weights(&subject.shown, true), [1.0, 0.5, 0.25]);
        // The weakest picture has no weight: a and b alone are left, which are alike.
        let found = score(&subject).await.unwrap();
        assert!((found.value - 1.0).abs() < 1e-6, "{found:?}");
        assert!((found.baseline - std::f32::consts::FRAC_1_SQRT_2).abs() < 1e-6, "{found:?}");
        subject.random.clear();
        assert_eq!(score(&subject).await, None, "nothing to compare with");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_feature_that_fires_on_less_than_two_pictures_has_no_score() {
        let random = || three().random;
        assert_eq!(score(&subject(vec![shown("a", 0.0, [1, 0]), shown("b", 0.0, [1, 0])], random())).await, None);
        assert_eq!(score(&subject(vec![shown("a", 1.0, [1, 0]), shown("b", 0.0, [1, 0])], random())).await, None);
        assert_eq!(score(&subject(Vec::new(), random())).await, None);
        let two = score(&subject(vec![shown("a", 1.0, [1, 0]), shown("b", 1.0, [2, 0])], random())).await.unwrap();
        assert_eq!((two.value, two.interval), (1.0, [1.0, 1.0]), "resamples of one picture alone are left out");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_damaged_picture_is_named() {
        let scorer = MonoSemanticity::new(Arc::new(Bytes), "bytes");
        assert_eq!((scorer.type_name(), scorer.author()), ("monosemanticity", "bytes, stored examples"));
        let mut damaged = three();
        damaged.shown[1].activation.image.picture.id = "damaged".into();
        damaged.shown[1].picture.clear();
        assert_eq!(scorer.score(&damaged).await.unwrap_err().to_string(), "picture damaged: no bytes");
    }
}
