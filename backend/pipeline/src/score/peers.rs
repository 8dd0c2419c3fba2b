//! Other features of the source: their labels, and steering with them, are baselines.

use super::{Subject, judge::label_of};
use api::FeatureSummary;
use rand::{Rng, seq::IndexedRandom};

/// A feature that may stand in for another.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    pub index: u32,
    pub label: Option<String>,
    /// Its largest activation.
    pub max: f32,
}

/// All living features of a source.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Peers(Vec<Peer>);

impl FromIterator<FeatureSummary> for Peers {
    /// Dead features are left out.
    fn from_iter<I: IntoIterator<Item = FeatureSummary>>(features: I) -> Self {
        let living = features.into_iter().filter(|feature| !feature.dead && feature.max_act_approx > 0.0);
        let peer = |feature: FeatureSummary| Peer {
            index: feature.index,
            label: feature.label.filter(|label| !label.trim().is_empty()),
            max: feature.max_act_approx,
        };
        Self(living.map(peer).collect())
    }
}

impl Peers {
    /// A random other feature's label that says something else; `None` where there is none.
    pub(super) fn other_label(&self, subject: &Subject, rng: &mut impl Rng) -> Option<&str> {
        let mine = label_of(subject).unwrap_or_default().to_lowercase();
        let labels: Vec<&str> = self
            .others(subject)
            .filter_map(|peer| peer.label.as_deref())
            .filter(|label| label.trim().to_lowercase() != mine)
            .collect();
        labels.choose(rng).copied()
    }

    /// So many random other features, each time drawn anew; none where there is no other.
    pub(super) fn draw(&self, subject: &Subject, count: usize, rng: &mut impl Rng) -> Vec<&Peer> {
        let others: Vec<&Peer> = self.others(subject).collect();
        (0..count).filter_map(|_| others.choose(rng).copied()).collect()
    }

    fn others(&self, subject: &Subject) -> impl Iterator<Item = &Peer> {
        let mine = subject.feature.index;
        self.0.iter().filter(move |peer| peer.index != mine)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::judge::rng_of, *};
    use api::{Explanation, Feature};

    fn feature(index: u32, label: Option<&str>, dead: bool) -> FeatureSummary {
        let max_act_approx = if dead { 0.0 } else { 2.0 };
        FeatureSummary { index, label: label.map(str::to_owned), max_act_approx, dead, ..FeatureSummary::default() }
    }

    fn subject(seed: u64) -> Subject {
        Subject {
            feature: Feature { index: 1, ..Feature::default() },
            explanation: Explanation { description: "Cat ".into(), ..Explanation::default() },
            seed,
            ..Subject::default()
        }
    }

    #[test]
    fn another_label_is_of_another_feature_and_says_something_else() {
        let features = [
            feature(0, Some("cat"), false),
            feature(1, Some("dog"), false),
            feature(2, None, false),
            feature(3, Some(" "), false),
            feature(4, Some("sky"), false),
            feature(5, Some("tree"), true),
        ];
        let peers: Peers = features.into_iter().collect();
        for seed in 0..20 {
            let subject = subject(seed);
            assert_eq!(peers.other_label(&subject, &mut rng_of(&subject)), Some("sky"));
            let drawn: Vec<u32> =
                peers.draw(&subject, 8, &mut rng_of(&subject)).iter().map(|peer| peer.index).collect();
            assert!(drawn.len() == 8 && drawn.iter().all(|index| [0, 2, 3, 4].contains(index)), "{drawn:?}");
        }
        let alone: Peers = [feature(1, Some("dog"), false)].into_iter().collect();
        let subject = subject(0);
        assert_eq!(alone.other_label(&subject, &mut rng_of(&subject)), None);
        assert!(alone.draw(&subject, 8, &mut rng_of(&subject)).is_empty());
    }
}
