//! Detection (delphi): can one tell by the label on which pictures the feature fires?
//!
//! The judge sees whole pictures in random order, half of them examples of the feature and half random ones, and says
//! of each whether the label applies. The score is the balanced accuracy; the baseline is that of the same judge on the
//! same pictures with a random other feature's label, or 0.5, what answers without looking come to, where no other
//! feature has a label. Examples that labels are made from are left out, as far as others are there.

use super::{
    Measured, PendingScore, ScoreError, Scorer, Subject,
    judge::{FEWEST, Judge, held_out, label_of, rng_of, seen},
    peers::Peers,
    trials::{Asked, Trial, measure},
};
use crate::interpret::masked::{self, whole_png};
use rand::seq::{IndexedRandom, SliceRandom};
use std::sync::Arc;

/// Pictures where the feature fires, and as many where it does not.
const PER_CLASS: usize = 10;
const ASKED: Asked = Asked { name: "detection", prompt: include_str!("../../prompts/detection.md") };

/// Balanced accuracy of a judge that knows only the label.
pub struct Detection {
    judge: Arc<Judge>,
    peers: Arc<Peers>,
    author: String,
}

impl Detection {
    pub fn new(judge: Arc<Judge>, peers: Arc<Peers>) -> Self {
        let settings = format!("per class {PER_CLASS}, at once {}, {}", judge.pictures(), masked::settings());
        let author = judge.author(ASKED.prompt, &settings);
        Self { judge, peers, author }
    }

    async fn measure(&self, subject: &Subject) -> Result<Option<Measured>, ScoreError> {
        let Some(label) = label_of(subject) else { return Ok(None) };
        let firing = held_out(&subject.shown);
        let count = PER_CLASS.min(firing.len()).min(subject.random.len());
        if count < FEWEST {
            return Ok(None);
        }
        let mut rng = rng_of(subject);
        let mut trials = Vec::new();
        for (pictures, truth) in [(firing, true), (subject.random.as_slice(), false)] {
            for shown in pictures.choose_multiple(&mut rng, count) {
                trials.push(Trial { png: seen(shown, whole_png)?, truth });
            }
        }
        trials.shuffle(&mut rng);
        measure(&self.judge, ASKED, label, subject, &self.peers, &mut rng, &trials).await.map(Some)
    }
}

impl Scorer for Detection {
    fn type_name(&self) -> &str {
        "detection"
    }

    fn author(&self) -> &str {
        &self.author
    }

    fn score<'a>(&'a self, subject: &'a Subject) -> PendingScore<'a> {
        Box::pin(self.measure(subject))
    }
}
