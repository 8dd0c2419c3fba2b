//! Reads what labels are judged by.

use super::{Shown, Subject};
use crate::interpret::list_examples;
use api::{Activation, ActivationImage, Picture};
use rand::{SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use store::{
    SourceEntry, Store, StoreError,
    jobs::{Queue, add_scores},
};

/// Pictures where the feature fires, at most.
pub const SHOWN: usize = 60;
/// Pictures where it does not, at most.
pub const RANDOM: usize = 60;
/// Pictures per question to the database, the most that it gives.
const PAGE: u32 = 200;
/// Kinds of pictures that are not part of the cache set.
const SAMPLE: &str = "sample";

/// The labels of a source's features, with what they are judged by.
#[derive(Debug, Clone)]
pub struct Subjects {
    store: Store,
    queue: Queue,
    source: SourceEntry,
    seed: u64,
    /// All pictures of the set that the store has.
    pictures: Vec<Picture>,
}

impl Subjects {
    /// Lists the pictures of the set, for random ones.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn open(store: Store, queue: Queue, source: SourceEntry, seed: u64) -> Result<Self, StoreError> {
        let mut pictures = Vec::new();
        for page in 0.. {
            let list = store.list_pictures(&source, "", page, PAGE).await?;
            if list.pictures.is_empty() {
                break;
            }
            pictures.extend(list.pictures.into_iter().filter(|picture| picture.kind != SAMPLE));
        }
        Ok(Self { store, queue, source, seed, pictures })
    }

    /// The explanations of a feature, the build's first, each as a subject; their examples and random pictures are the
    /// same. None where nobody has said anything, or where there is no such feature.
    ///
    /// # Errors
    /// When a database fails.
    pub async fn load(&self, index: u32) -> Result<Vec<Subject>, StoreError> {
        let Some(mut feature) = self.store.find_feature(&self.source, index).await? else { return Ok(Vec::new()) };
        let source = &self.source.source;
        let further = self.queue.list_explanations(source, &[index]).await?.remove(&index);
        feature.explanations.extend(further.into_iter().flatten());
        if feature.explanations.is_empty() {
            return Ok(Vec::new());
        }
        let scores = self.queue.list_scores(source, Some(&[index])).await?.remove(&index);
        add_scores(&mut feature.explanations, scores.unwrap_or_default());
        let seed = mixed(self.seed, index);
        let examples = list_examples(&self.store, &self.source, index).await?;
        let silent = self.silent(&examples, seed);
        let subject = Subject {
            shown: self.with_pictures(examples.into_iter().take(SHOWN)).await?,
            random: self.with_pictures(silent.into_iter()).await?,
            seed,
            ..Subject::default()
        };
        let explanations = feature.explanations.clone();
        let of = |explanation| Subject { explanation, feature: feature.clone(), ..subject.clone() };
        Ok(explanations.into_iter().map(of).collect())
    }

    /// Pictures that are not among the examples. A dense feature may fire on some of them all the same: the store has
    /// its examples only.
    fn silent(&self, examples: &[Activation], seed: u64) -> Vec<Activation> {
        let known: BTreeSet<&str> = examples.iter().map(|example| example.image.picture.id.as_str()).collect();
        // So many that enough are left, whichever of them are known.
        let drawn = (RANDOM + known.len()).min(self.pictures.len());
        let numbers = sample(&mut ChaCha8Rng::seed_from_u64(seed), self.pictures.len(), drawn);
        let pictures = numbers.iter().map(|number| &self.pictures[number]);
        let unknown = pictures.filter(|picture| !known.contains(picture.id.as_str())).take(RANDOM);
        let grid = self.source.source.grid;
        unknown
            .map(|picture| Activation {
                image: ActivationImage { picture: picture.clone(), grid },
                ..Activation::default()
            })
            .collect()
    }

    /// The same with the pictures' bytes; without those that the store has no bytes of.
    async fn with_pictures(&self, of: impl Iterator<Item = Activation>) -> Result<Vec<Shown>, StoreError> {
        let mut shown = Vec::new();
        for activation in of {
            if let Some(picture) = self.store.picture_webp(&activation.image.picture.id).await? {
                shown.push(Shown { activation, picture: picture.webp });
            }
        }
        Ok(shown)
    }
}

/// A seed for each feature (the finaliser of splitmix64): neighbours have nothing in common.
fn mixed(seed: u64, index: u32) -> u64 {
    let mut bits = seed.wrapping_add((u64::from(index) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use store::testing::{Artifacts, small_source};

    async fn subjects(seed: u64) -> Subjects {
        let folder = tempfile::tempdir().unwrap();
        Artifacts::new(small_source(), b"webp").write(folder.path()).unwrap();
        let store = Store::open("sqlite::memory:").await.unwrap();
        store.import_artifacts(folder.path()).await.unwrap();
        let source = store.find_source("tiny", "1-res-12").await.unwrap().unwrap();
        let queue = Queue::of_store(&store);
        Subjects::open(store, queue, source, seed).await.unwrap()
    }

    #[tokio::test]
    async fn a_label_comes_with_where_it_fires_and_where_not() {
        let subjects = subjects(0).await;
        let [subject] = <[Subject; 1]>::try_from(subjects.load(1).await.unwrap()).unwrap();
        assert_eq!((subject.feature.index, subject.explanation.description.as_str()), (1, "happy face"));
        // Examples are on sample-0, scene-0 and scene-1; sample-0 is no picture of the set.
        let ids = |shown: &[Shown]| shown.iter().map(|shown| shown.id().to_owned()).collect::<Vec<_>>();
        assert_eq!(subject.shown.len(), 3);
        assert_eq!(ids(&subject.random), ["photo-0"]);
        assert_eq!(subject.random[0].picture, b"webp");
        assert!(subject.random[0].activation.feature_acts_indices.is_empty());
        assert_eq!(subject.random[0].activation.image.grid, [2, 2]);
        assert_eq!(subjects.load(1).await.unwrap(), [subject], "the same again");
        assert!(subjects.load(8).await.unwrap().is_empty(), "nobody has said anything");
        assert!(subjects.load(99).await.unwrap().is_empty(), "there is no such feature");
    }

    #[tokio::test]
    async fn seeds_differ_by_feature_and_by_run() {
        let (first, second) = (subjects(0).await, subjects(1).await);
        let seed = |subjects: &[Subject]| subjects[0].seed;
        let seeds = [
            seed(&first.load(0).await.unwrap()),
            seed(&first.load(1).await.unwrap()),
            seed(&second.load(0).await.unwrap()),
        ];
        assert_eq!(BTreeSet::from(seeds).len(), 3, "{seeds:?}");
    }
}
