//! Features to change: `--clamp 12=50,7=3 --add 3=-2 --ablate 9`.

use super::{CliError, args};
use model::{Edit, EditOp};
use serde::Serialize;
use std::collections::BTreeSet;

/// Edits of a steer run; at least one.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = true)]
pub struct FeatureArgs {
    /// Set the feature's activation to a value of zero or more before TopK.
    #[arg(long, env = "LMM_SCOPE_CLAMP", value_name = "ID=VALUE", value_parser = clamp,
        value_delimiter = ',', num_args = 1.., allow_negative_numbers = true)]
    clamp: Vec<FeatureValue>,

    /// Add this many times the feature's decoder row to the stream.
    #[arg(long, env = "LMM_SCOPE_ADD", value_name = "ID=STRENGTH", value_parser = feature_value,
        value_delimiter = ',', num_args = 1.., allow_negative_numbers = true)]
    add: Vec<FeatureValue>,

    /// Set the stream's component along the feature's decoder row, as a unit vector, to a value; the rest stays.
    #[arg(long, env = "LMM_SCOPE_ORTHOGONAL", value_name = "ID=VALUE", value_parser = feature_value,
        value_delimiter = ',', num_args = 1.., allow_negative_numbers = true)]
    orthogonal: Vec<FeatureValue>,

    /// Set the feature's activation to zero; no other feature takes its place.
    #[arg(long, env = "LMM_SCOPE_ABLATE", value_name = "ID", value_parser = feature_id,
        value_delimiter = ',', num_args = 1.., allow_negative_numbers = true)]
    ablate: Vec<usize>,
}

/// A feature and a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeatureValue {
    feature: usize,
    value: f32,
}

/// One edit in the answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EditReport {
    pub feature: usize,
    /// `clamp`, `add`, `orthogonal` or `ablate`.
    pub op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f32>,
}

impl FeatureArgs {
    /// All edits, kind by kind.
    pub fn edits(&self) -> Vec<Edit> {
        let all = |given: &[FeatureValue], op: fn(f32) -> EditOp| -> Vec<Edit> {
            given.iter().map(|given| Edit { feature: given.feature, op: op(given.value) }).collect()
        };
        let mut edits = all(&self.clamp, EditOp::Clamp);
        edits.extend(all(&self.add, EditOp::Add));
        edits.extend(all(&self.orthogonal, EditOp::Orthogonal));
        edits.extend(self.ablate.iter().map(|&feature| Edit { feature, op: EditOp::Ablate }));
        edits
    }

    /// Every feature exists, and is named once.
    pub fn check(&self, latents: usize) -> Result<(), CliError> {
        let mut seen = BTreeSet::new();
        for edit in self.edits() {
            let flag = flag_of(edit.op);
            check_feature(flag, edit.feature, latents)?;
            if !seen.insert(edit.feature) {
                return Err(CliError::flag(flag, format!("feature {} is named twice; name it once", edit.feature)));
            }
        }
        Ok(())
    }
}

impl From<Edit> for EditReport {
    fn from(edit: Edit) -> Self {
        let value = match edit.op {
            EditOp::Clamp(value) | EditOp::Add(value) | EditOp::Orthogonal(value) => Some(value),
            EditOp::Ablate => None,
        };
        Self { feature: edit.feature, op: flag_of(edit.op).trim_start_matches('-'), value }
    }
}

fn flag_of(op: EditOp) -> &'static str {
    match op {
        EditOp::Clamp(_) => "--clamp",
        EditOp::Add(_) => "--add",
        EditOp::Orthogonal(_) => "--orthogonal",
        EditOp::Ablate => "--ablate",
    }
}

/// Refuses a feature that the SAE does not have.
pub fn check_feature(flag: &'static str, feature: usize, latents: usize) -> Result<(), CliError> {
    if feature < latents {
        return Ok(());
    }
    Err(CliError::flag(flag, model::Error::UnknownFeature { index: feature, latents }.to_string()))
}

/// A feature's id.
pub fn feature_id(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|_| format!("`{text}` is not the id of a feature, a whole number from 0 up"))
}

fn feature_value(text: &str) -> Result<FeatureValue, String> {
    let (feature, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not ID=VALUE, such as 12=50"))?;
    Ok(FeatureValue { feature: feature_id(feature)?, value: args::finite(value.trim())? })
}

fn clamp(text: &str) -> Result<FeatureValue, String> {
    let clamp = feature_value(text)?;
    if clamp.value < 0.0 {
        let reason = "activations are never negative; use --ablate, or --add with a negative strength";
        return Err(format!("{} is below zero: {reason}", clamp.value));
    }
    Ok(clamp)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn values_are_read_and_odd_ones_refused() {
        assert_eq!(feature_value("12=-3.5").unwrap(), FeatureValue { feature: 12, value: -3.5 });
        assert_eq!(clamp(" 7 = 0").unwrap(), FeatureValue { feature: 7, value: 0.0 });
        for wrong in ["", "12", "=3", "12=", "-1=3", "1.5=3", "12=x", "12=NaN", "12=inf", "12=1e99"] {
            assert!(feature_value(wrong).is_err(), "{wrong}");
        }
        assert!(clamp("7=-1").unwrap_err().contains("--ablate"));
    }
}
