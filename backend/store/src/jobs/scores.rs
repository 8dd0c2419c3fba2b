//! Scores that `lmm-scope score` computed, beside those that explanations have of their own.
//!
//! One per explanation, type and author: a rerun replaces it. A score is of words: when the explanation says something
//! else by now, nobody sees the score any more.

use super::{Queue, on_pool, read::date, row};
use crate::{StoreError, begin::begin};
use api::{Explanation, Score, Source, SteeringEffects};
use std::collections::BTreeMap;

/// A score of one explanation, and where it comes from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ComputedScore {
    pub feature: u32,
    /// Id of the explanation as on the wire, and what it said.
    pub explanation: String,
    pub description: String,
    /// e.g. `iou`.
    pub type_name: String,
    /// Who computed it, for people.
    pub author: String,
    pub value: f32,
    pub baseline: f32,
    /// 95 % interval of the value.
    pub interval: [f32; 2],
    pub samples: u32,
    /// Of steering.
    pub effects: Option<SteeringEffects>,
    pub seed: u64,
    /// Name and size of the picture set.
    pub image_set: String,
    /// `YYYY-MM-DD`. Not written: the database's own date counts.
    pub created_at: String,
}

#[derive(Debug, sqlx::FromRow)]
struct ScoreRow {
    feature: i64,
    explanation: String,
    description: String,
    type_name: String,
    author: String,
    value: f64,
    baseline: f64,
    low: f64,
    high: f64,
    samples: i64,
    effect_none: Option<i64>,
    effect_mentions: Option<i64>,
    effect_reasons: Option<i64>,
    effect_unrelated: Option<i64>,
    seed: i64,
    image_set: String,
    created_at: i64,
}

impl Queue {
    /// Writes scores of features of `source`, all or none. One of the same explanation, type and author is replaced.
    ///
    /// # Errors
    /// When the database fails, or a number is not finite.
    pub async fn save_scores(&self, source: &Source, scores: &[ComputedScore]) -> Result<(), StoreError> {
        if let Some(wrong) = scores.iter().find(|score| !score.is_finite()) {
            let reason = format!("the {} of feature {} is not finite", wrong.type_name, wrong.feature);
            return Err(StoreError::Row { what: "score", reason });
        }
        on_pool!(self, |pool, dialect, Db| {
            let mut transaction = begin(pool, dialect.begin).await?;
            let sql = format!(
                "INSERT INTO score (model_id, source_id, sae_revision, feature, explanation, type_name, author,
                                    description, value, baseline, low, high, samples, seed, image_set,
                                    effect_none, effect_mentions, effect_reasons, effect_unrelated, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, {})
                 ON CONFLICT (model_id, source_id, sae_revision, feature, explanation, type_name, author) DO UPDATE SET
                     description = excluded.description, value = excluded.value, baseline = excluded.baseline,
                     low = excluded.low, high = excluded.high, samples = excluded.samples, seed = excluded.seed,
                     image_set = excluded.image_set, effect_none = excluded.effect_none,
                     effect_mentions = excluded.effect_mentions, effect_reasons = excluded.effect_reasons,
                     effect_unrelated = excluded.effect_unrelated, created_at = excluded.created_at",
                dialect.now
            );
            for score in scores {
                let [none, mentions, reasons, unrelated] =
                    score.effects.map_or([None; 4], |effects| effects.counts().map(|count| Some(i64::from(count))));
                sqlx::query(&sql)
                    .bind(source.model_id.as_str())
                    .bind(source.source_id.as_str())
                    .bind(source.provenance.sae_revision.as_str())
                    .bind(i64::from(score.feature))
                    .bind(score.explanation.as_str())
                    .bind(score.type_name.as_str())
                    .bind(score.author.as_str())
                    .bind(score.description.as_str())
                    .bind(f64::from(score.value))
                    .bind(f64::from(score.baseline))
                    .bind(f64::from(score.interval[0]))
                    .bind(f64::from(score.interval[1]))
                    .bind(i64::from(score.samples))
                    .bind(score.seed.cast_signed())
                    .bind(score.image_set.as_str())
                    .bind(none)
                    .bind(mentions)
                    .bind(reasons)
                    .bind(unrelated)
                    .execute(&mut *transaction)
                    .await?;
            }
            transaction.commit().await?;
        });
        Ok(())
    }

    /// Computed scores by feature, then by explanation, type and author; of all features of `source`, or of these.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_scores(
        &self,
        source: &Source,
        features: Option<&[u32]>,
    ) -> Result<BTreeMap<u32, Vec<ComputedScore>>, StoreError> {
        let mut scores: BTreeMap<u32, Vec<ComputedScore>> = BTreeMap::new();
        if features.is_some_and(<[u32]>::is_empty) {
            return Ok(scores);
        }
        let rows: Vec<ScoreRow> = on_pool!(self, |pool, _dialect, Db| {
            let mut query = sqlx::QueryBuilder::<Db>::new(
                "SELECT feature, explanation, description, type_name, author, value, baseline, low, high, samples,
                        effect_none, effect_mentions, effect_reasons, effect_unrelated, seed, image_set, created_at
                 FROM score WHERE model_id = ",
            );
            query.push_bind(source.model_id.as_str()).push(" AND source_id = ").push_bind(source.source_id.as_str());
            query.push(" AND sae_revision = ").push_bind(source.provenance.sae_revision.as_str());
            if let Some(features) = features {
                query.push(" AND feature IN (");
                let mut list = query.separated(", ");
                for feature in features {
                    list.push_bind(i64::from(*feature));
                }
                query.push(")");
            }
            query.build_query_as().fetch_all(pool).await?
        });
        for row in rows {
            let score = row.into_score();
            scores.entry(score.feature).or_default().push(score);
        }
        // Not by the databases: they order texts differently.
        for scores in scores.values_mut() {
            scores.sort_by(|a, b| {
                (&a.explanation, &a.type_name, &a.author).cmp(&(&b.explanation, &b.type_name, &b.author))
            });
        }
        Ok(scores)
    }
}

/// Puts the computed scores of a feature with what they are of, after the explanations' own. One that is of the same
/// type and author as an explanation's own takes its place.
pub fn add_scores(explanations: &mut [Explanation], scores: Vec<ComputedScore>) {
    for score in scores {
        let of =
            explanations.iter_mut().find(|said| said.id == score.explanation && said.description == score.description);
        let Some(explanation) = of else { continue };
        explanation.scores.retain(|own| {
            own.explanation_score_type_name != score.type_name || own.explanation_score_model_name != score.author
        });
        explanation.scores.push(score.into());
    }
}

impl ComputedScore {
    fn is_finite(&self) -> bool {
        [self.value, self.baseline, self.interval[0], self.interval[1]].iter().all(|number| number.is_finite())
    }
}

impl ScoreRow {
    /// All four, or none.
    fn effects(&self) -> Option<SteeringEffects> {
        Some(SteeringEffects {
            none: count(self.effect_none?),
            mentions: count(self.effect_mentions?),
            reasons: count(self.effect_reasons?),
            unrelated: count(self.effect_unrelated?),
        })
    }

    fn into_score(self) -> ComputedScore {
        ComputedScore {
            effects: self.effects(),
            feature: u32::try_from(self.feature).unwrap_or(u32::MAX),
            explanation: self.explanation,
            description: self.description,
            type_name: self.type_name,
            author: self.author,
            // They were f32 before.
            value: self.value as f32,
            baseline: self.baseline as f32,
            interval: [self.low as f32, self.high as f32],
            samples: count(self.samples),
            seed: self.seed.cast_unsigned(),
            image_set: self.image_set,
            created_at: date(self.created_at),
        }
    }
}

fn count(stored: i64) -> u32 {
    u32::try_from(row::count(stored)).unwrap_or(u32::MAX)
}

impl From<ComputedScore> for Score {
    fn from(computed: ComputedScore) -> Self {
        let ComputedScore { created_at, seed, image_set, interval: [low, high], samples, .. } = &computed;
        let mut provenance =
            format!("{created_at}, seed {seed}, {image_set}; 95% interval {low:.3} to {high:.3} (n = {samples})");
        if let Some(meaning) = meaning_of(&computed.type_name) {
            provenance = format!("{provenance}; {meaning}");
        }
        Self {
            value: computed.value,
            baseline: computed.baseline,
            explanation_score_type_name: computed.type_name,
            explanation_score_model_name: computed.author,
            interval: Some(computed.interval),
            samples: computed.samples,
            effects: computed.effects,
            provenance,
        }
    }
}

/// What a score measures, for people, where its name does not say it.
fn meaning_of(type_name: &str) -> Option<&'static str> {
    Some(match type_name {
        "clip score" => "likeness of label and pictures, 100 times the cosine of their embeddings",
        "monosemanticity" => "likeness of the pictures on which the feature fires",
        "consistency" => "share of groups of top pictures that a judge finds the label to fit",
        "detection" => "how well a judge tells by the label on which pictures the feature fires",
        "fuzzing" => "how well a judge tells by the label where on a picture the feature fires",
        "steering" => "how much of the label a judge finds in what the steered model says",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn computed(explanation: &str, description: &str, author: &str) -> ComputedScore {
        ComputedScore {
            explanation: explanation.into(),
            description: description.into(),
            type_name: "iou".into(),
            author: author.into(),
            value: 0.5,
            interval: [0.4, 0.6],
            samples: 20,
            seed: 7,
            image_set: "a set".into(),
            created_at: "2026-01-31".into(),
            ..ComputedScore::default()
        }
    }

    #[test]
    fn a_score_goes_to_the_words_that_it_is_of() {
        let own = Score {
            value: 0.9,
            explanation_score_type_name: "iou".into(),
            explanation_score_model_name: "the build".into(),
            ..Score::default()
        };
        let said = |id: &str, description: &str| Explanation {
            id: id.into(),
            description: description.into(),
            scores: vec![own.clone()],
            ..Explanation::default()
        };
        let mut explanations = [said("1-dissect", "cat"), said("job-4", "a cat")];
        let scores = vec![
            computed("1-dissect", "cat", "somebody"),
            computed("1-dissect", "dog", "somebody else"),
            computed("job-4", "a cat", "the build"),
            computed("job-5", "a cat", "somebody"),
        ];
        add_scores(&mut explanations, scores);
        let authors = |said: &Explanation| {
            let names = said.scores.iter().map(|score| score.explanation_score_model_name.as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(authors(&explanations[0]), "the build, somebody", "the one of other words is left out");
        assert_eq!(
            explanations[0].scores[1].provenance,
            "2026-01-31, seed 7, a set; 95% interval 0.400 to 0.600 (n = 20)"
        );
        assert_eq!((explanations[0].scores[1].interval, explanations[0].scores[1].samples), (Some([0.4, 0.6]), 20));
        assert_eq!(authors(&explanations[1]), "the build");
        assert_eq!(explanations[1].scores[0].value, 0.5, "computed anew");
    }
}
