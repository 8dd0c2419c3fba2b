//! Who says where a picture shows something: exact masks where a set has them, else a service that finds and cuts out
//! what a text names (GroundingDINO and SAM in the paper).

use super::{ScoreError, Shown};
use crate::{
    interpret::Dissect,
    pocket::dissect::{AREA_THRESHOLD, PICTURES},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::ImageReader;
use reqwest::{StatusCode, Url, header::RETRY_AFTER};
use serde::{Deserialize, Serialize};
use std::{future::Future, io::Cursor, pin::Pin, sync::Arc, time::Duration};

/// Top pictures that are grounded by a service, as in the paper.
const TOP: usize = 5;
/// Masks that the service is less sure of are left out, as in the paper's code.
const MIN_SCORE: f32 = 0.3;
/// Requests for one answer, while the service is busy or away.
const TRIES: u32 = 3;
/// Longest wait between two of them.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// So much of a refusal is kept.
const SHOWN_CHARS: usize = 300;

/// Where a picture shows something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    pub height: usize,
    pub width: usize,
    /// `[height, width]`, row-major.
    pub on: Vec<bool>,
}

impl Mask {
    pub fn size(&self) -> [usize; 2] {
        [self.height, self.width]
    }
}

/// Which pictures are looked at, and what counts as a feature's area on them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Protocol {
    /// The first so many that have masks, by falling mean activation.
    pub pictures: usize,
    /// Of these only every other one, from the second on: the rest may have chosen the label.
    pub every_other: bool,
    /// Patches above this share of the feature's highest activation are its area; 0: wherever it fires.
    pub threshold: f32,
}

/// A mask that is being looked for.
pub type PendingMask<'a> = Pin<Box<dyn Future<Output = Result<Option<Mask>, ScoreError>> + Send + 'a>>;

/// Finds what a text names in a picture.
pub trait Grounder: Send + Sync {
    /// For people, the models' names included.
    fn author(&self) -> &str;

    fn protocol(&self) -> Protocol;

    /// Whether it can say anything about a label.
    fn knows(&self, _label: &str) -> bool {
        true
    }

    /// All that the picture shows of `label`; a mask without a pixel where it shows nothing of it. `None`: nobody knows
    /// what this picture shows.
    fn ground<'a>(&'a self, shown: &'a Shown, label: &'a str) -> PendingMask<'a>;
}

/// Exact masks of composed scenes, on their patches.
pub struct ExactMasks {
    truth: Arc<Dissect>,
    author: String,
}

impl ExactMasks {
    pub fn new(truth: Arc<Dissect>) -> Self {
        let author = format!("exact masks of composed scenes, mean of every other one of the top {PICTURES}");
        Self { truth, author }
    }
}

impl Grounder for ExactMasks {
    fn author(&self) -> &str {
        &self.author
    }

    /// That of the labels themselves.
    fn protocol(&self) -> Protocol {
        Protocol { pictures: PICTURES, every_other: true, threshold: AREA_THRESHOLD }
    }

    fn knows(&self, label: &str) -> bool {
        self.truth.knows(label)
    }

    fn ground<'a>(&'a self, shown: &'a Shown, label: &'a str) -> PendingMask<'a> {
        let [rows, columns] = shown.activation.image.grid.map(|length| length as usize);
        let on = self.truth.patches(shown.id(), label).filter(|on| on.len() == rows * columns);
        Box::pin(async move { Ok(on.map(|on| Mask { height: rows, width: columns, on })) })
    }
}

/// A service that grounds texts in pictures; docs/cli.md has its protocol.
pub struct HttpGrounder {
    http: reqwest::Client,
    url: Url,
    author: String,
}

/// What the service says about itself.
#[derive(Debug, Deserialize)]
struct About {
    model: String,
}

/// What it is asked.
#[derive(Debug, Serialize)]
struct Question<'a> {
    /// Base64 of the picture as it is stored.
    image: String,
    prompt: &'a str,
}

/// What it answers.
#[derive(Debug, Deserialize)]
struct Found {
    masks: Vec<FoundMask>,
}

#[derive(Debug, Deserialize)]
struct FoundMask {
    height: usize,
    width: usize,
    /// Lengths of runs, column by column, the first of them off: COCO's uncompressed form.
    counts: Vec<usize>,
    score: f32,
}

impl HttpGrounder {
    /// Asks the service at `url` which models it has.
    ///
    /// # Errors
    /// When the address is none, nobody answers there, or somebody else does.
    pub async fn connect(url: &str, timeout: Duration) -> Result<Self, ScoreError> {
        let setup = |reason: String| ScoreError::Setup { reason: format!("{url}: {reason}") };
        let base = url.trim_end_matches('/');
        let address = Url::parse(&format!("{base}/ground")).map_err(|error| setup(error.to_string()))?;
        if address.scheme() != "http" || !address.has_host() {
            return Err(setup("expected the address of a service such as http://127.0.0.1:8070".into()));
        }
        // The service is a neighbour, as engines are: a proxy for the internet is never meant.
        let http = reqwest::Client::builder().no_proxy().timeout(timeout).build();
        let http = http.map_err(|error| setup(error.to_string()))?;
        let mut grounder = Self { http, url: address, author: url.to_owned() };
        let request = grounder.http.get(grounder.url.clone());
        let About { model } = serde_json::from_str(&grounder.answer(request).await?)
            .map_err(|error| setup(format!("this is no grounding service: {error}")))?;
        grounder.author = format!("{model}, mean of the top {TOP}");
        Ok(grounder)
    }

    /// The body of a good answer. A busy service is asked again.
    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<String, ScoreError> {
        let mut wait = Duration::from_secs(1);
        for attempt in 1.. {
            let Some(again) = request.try_clone() else { break };
            let (reason, after) = match again.send().await {
                Ok(response) if response.status().is_success() => {
                    return response.text().await.map_err(|error| self.failed(causes(&error)));
                }
                Ok(response) => {
                    let status = response.status();
                    let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                    let said: String = response.text().await.unwrap_or_default().chars().take(SHOWN_CHARS).collect();
                    let reason = format!("the service answered {status}: {}", said.trim());
                    if !is_worth_another_try(status) {
                        return Err(self.failed(reason));
                    }
                    (reason, after.map(Duration::from_secs))
                }
                Err(error) => (causes(&error), None),
            };
            if attempt == TRIES {
                return Err(self.failed(reason));
            }
            tokio::time::sleep(after.unwrap_or(wait).min(MAX_WAIT)).await;
            wait *= 2;
        }
        Err(self.failed("a request that cannot be repeated".into()))
    }

    fn failed(&self, reason: String) -> ScoreError {
        ScoreError::Service { who: self.author.clone(), reason }
    }

    async fn find(&self, shown: &Shown, label: &str) -> Result<Option<Mask>, ScoreError> {
        let broken = |reason: String| ScoreError::Picture { id: shown.id().to_owned(), reason };
        let reader = ImageReader::new(Cursor::new(&shown.picture)).with_guessed_format();
        let reader = reader.map_err(|error| broken(error.to_string()))?;
        let (width, height) = reader.into_dimensions().map_err(|error| broken(error.to_string()))?;
        let question = Question { image: STANDARD.encode(&shown.picture), prompt: label };
        let answer = self.answer(self.http.post(self.url.clone()).json(&question)).await?;
        let found: Found = serde_json::from_str(&answer)
            .map_err(|error| self.failed(format!("the service's answer has no masks: {error}")))?;
        let mask = union(&found.masks, height as usize, width as usize);
        mask.map(Some).map_err(|reason| self.failed(format!("picture {}: {reason}", shown.id())))
    }
}

impl Grounder for HttpGrounder {
    fn author(&self) -> &str {
        &self.author
    }

    fn protocol(&self) -> Protocol {
        Protocol { pictures: TOP, every_other: false, threshold: 0.0 }
    }

    fn ground<'a>(&'a self, shown: &'a Shown, label: &'a str) -> PendingMask<'a> {
        Box::pin(self.find(shown, label))
    }
}

fn is_worth_another_try(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500..=599)
}

/// An error with what it came from.
fn causes(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        said += &format!(": {cause}");
        source = cause.source();
    }
    said
}

/// All masks that are sure enough as one, of the picture's size.
fn union(masks: &[FoundMask], height: usize, width: usize) -> Result<Mask, String> {
    let mut all = Mask { height, width, on: vec![false; height * width] };
    for mask in masks {
        if [mask.height, mask.width] != [height, width] {
            return Err(format!("a mask has {} by {} pixels, not {height} by {width}", mask.height, mask.width));
        }
        if !mask.score.is_finite() {
            return Err("a mask's score is not a number".to_owned());
        }
        let covered = mask.counts.iter().try_fold(0_usize, |sum, count| sum.checked_add(*count));
        if covered != Some(height * width) {
            return Err(format!("the runs of a mask are not {height} by {width} pixels"));
        }
        if mask.score < MIN_SCORE {
            continue;
        }
        let mut at = 0;
        for (number, count) in mask.counts.iter().enumerate() {
            if number % 2 == 1 {
                for pixel in at..at + count {
                    all.on[pixel % height * width + pixel / height] = true;
                }
            }
            at += count;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(counts: &[usize], score: f32) -> FoundMask {
        FoundMask { height: 2, width: 3, counts: counts.to_vec(), score }
    }

    #[test]
    fn runs_go_down_the_columns() {
        // One pixel off, two on (bottom of the first column, top of the second), three off.
        let found = union(&[mask(&[1, 2, 3], 0.9)], 2, 3);
        let expected = vec![false, true, false, true, false, false];
        assert_eq!(found, Ok(Mask { height: 2, width: 3, on: expected }));
    }

    #[test]
    fn masks_come_together_and_unsure_ones_are_left_out() {
        let found = union(&[mask(&[0, 1, 5], 0.9), mask(&[5, 1], 0.31), mask(&[0, 6], 0.29)], 2, 3);
        let expected = vec![true, false, false, false, false, true];
        assert_eq!(found, Ok(Mask { height: 2, width: 3, on: expected }));
        assert_eq!(union(&[], 1, 2), Ok(Mask { height: 1, width: 2, on: vec![false, false] }));
    }

    #[test]
    fn what_is_no_mask_of_the_picture_is_refused() {
        let other_size = FoundMask { height: 3, ..mask(&[9], 0.5) };
        let cases = [
            (other_size, "3 by 3 pixels, not 2 by 3"),
            (mask(&[5], 0.5), "are not 2 by 3 pixels"),
            (mask(&[6, 1], 0.5), "are not 2 by 3 pixels"),
            (mask(&[usize::MAX, 7], 0.5), "are not 2 by 3 pixels"),
            (mask(&[6], f32::NAN), "not a number"),
        ];
        for (wrong, says) in cases {
            let error = union(&[wrong], 2, 3);
            assert!(error.as_ref().is_err_and(|error| error.contains(says)), "{error:?}");
        }
    }
}
