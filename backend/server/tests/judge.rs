//! Scores by a judge, against a server that speaks the protocol strictly. It looks at the pictures that it is sent: one
//! who sees gets everything right, one who guesses half of it.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

mod double;

use api::{Activation, ActivationImage, Explanation, Feature, FeatureSummary, Picture, SteeringEffects};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use double::{Double, MODEL, MOST_PICTURES, Mood, config};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use pipeline::{
    interpret::{Engine, OpenAiConfig},
    score::{
        Measured, Peers, ScoreError, Scorer, Shown, Subject,
        consistency::Consistency,
        detection::Detection,
        fuzzing::Fuzzing,
        judge::Judge,
        steering::{Effect, FACTOR, PendingTexts, QUESTIONS, Steered, Steerer, Steering},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    io::Cursor,
    sync::{Arc, Mutex},
};

const LABEL: &str = "red square";
/// The feature that is scored.
const INDEX: u32 = 3;
/// Rows and columns of the pictures' patches, of 16 pixels each.
const GRID: u32 = 4;

/// A grey picture; on one patch a red square, if `red` says where.
fn picture(number: u32, red: Option<u32>) -> Vec<u8> {
    let pixels = RgbImage::from_fn(16 * GRID, 16 * GRID, |x, y| match red {
        Some(patch) if y / 16 * GRID + x / 16 == patch => Rgb([250, 10, 10]),
        _ => Rgb([60 + number as u8; 3]),
    });
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(pixels).write_to(&mut bytes, ImageFormat::WebP).unwrap();
    bytes.into_inner()
}

fn shown(number: u32, red: Option<u32>) -> Shown {
    let id = if red.is_some() { format!("red-{number}") } else { format!("grey-{number}") };
    let image = ActivationImage { picture: Picture { id, ..Picture::default() }, grid: [GRID, GRID] };
    let activation = Activation {
        image,
        feature_acts_indices: red.into_iter().collect(),
        feature_acts_values: red.iter().map(|_| 2.0).collect(),
        max_value: if red.is_some() { 2.0 } else { 0.0 },
        ..Activation::default()
    };
    Shown { activation, picture: picture(number, red) }
}

/// A feature that fires on red squares, and nowhere else.
fn subject(seed: u64) -> Subject {
    Subject {
        feature: Feature { index: INDEX, max_act_approx: 2.0, ..Feature::default() },
        explanation: Explanation { description: LABEL.into(), ..Explanation::default() },
        shown: (0..30).map(|number| shown(number, Some(number * 7 % (GRID * GRID)))).collect(),
        random: (0..20).map(|number| shown(number, None)).collect(),
        seed,
    }
}

/// The scored feature and one other.
fn peers() -> Arc<Peers> {
    let feature = |index, label: &str, max_act_approx| FeatureSummary {
        index,
        label: Some(label.to_owned()),
        max_act_approx,
        ..FeatureSummary::default()
    };
    Arc::new([feature(INDEX, LABEL, 2.0), feature(8, "blue sky", 5.0)].into_iter().collect())
}

/// What a request shows.
fn pictures(body: &Value) -> Vec<RgbImage> {
    let urls = body["messages"][1]["content"].as_array().unwrap().iter();
    let urls = urls.filter_map(|part| part["image_url"]["url"].as_str());
    let png = |url: &str| STANDARD.decode(url.split_once(',').unwrap().1).unwrap();
    urls.map(|url| image::load_from_memory(&png(url)).unwrap().to_rgb8()).collect()
}

/// A red square, not darkened.
fn has_red(picture: &RgbImage) -> bool {
    picture.pixels().any(|pixel| pixel.0[0] > 200 && pixel.0[1] < 60)
}

fn is_about_red(body: &Value) -> bool {
    body["messages"][1]["content"][0]["text"] == format!("Label: {LABEL:?}")
}

/// An answer in the form that the instructions ask for, of what `sees` says of each picture.
fn answer(body: &Value, sees: impl FnMut(&RgbImage) -> bool) -> String {
    let seen: Vec<bool> = pictures(body).iter().map(sees).collect();
    if body["messages"][0]["content"].as_str().unwrap().contains("{\"consistent\"") {
        json!({ "consistent": u8::from(seen.iter().all(|seen| *seen)) }).to_string()
    } else {
        json!({ "answers": seen }).to_string()
    }
}

/// Sees red squares, when it is asked about them, and nothing else.
fn seeing() -> Double {
    Double::new(|body| answer(body, |picture| is_about_red(body) && has_red(picture)))
}

async fn judge(double: &Double) -> Arc<Judge> {
    Arc::new(Judge::new(&config(double.serve().await)).unwrap().with_tries(1))
}

/// The scorers that look at pictures.
async fn scorers(double: &Double) -> [Box<dyn Scorer>; 3] {
    let judge = judge(double).await;
    [
        Box::new(Consistency::new(judge.clone())),
        Box::new(Detection::new(judge.clone(), peers())),
        Box::new(Fuzzing::new(judge, peers())),
    ]
}

async fn measured(scorer: &dyn Scorer, subject: &Subject) -> Measured {
    scorer.score(subject).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_judge_who_sees_gets_everything_right_and_nothing_under_another_label() {
    let double = seeing();
    let expected = [("consistency", 0.0, 4), ("detection", 0.5, 20), ("fuzzing", 0.5, 20)];
    for (scorer, (type_name, baseline, samples)) in scorers(&double).await.iter().zip(expected) {
        assert_eq!(scorer.type_name(), type_name);
        assert!(scorer.author().starts_with(&format!("{MODEL}, prompt ")), "{}", scorer.author());
        for seed in 0..3 {
            let expected = Measured { value: 1.0, baseline, interval: [1.0, 1.0], samples, effects: None };
            assert_eq!(measured(scorer.as_ref(), &subject(seed)).await, expected, "{type_name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_judge_who_sees_the_opposite_gets_everything_wrong() {
    let double = Double::new(|body| answer(body, |picture| !has_red(picture)));
    for scorer in scorers(&double).await {
        let Measured { value, interval, .. } = measured(scorer.as_ref(), &subject(0)).await;
        assert_eq!((value, interval), (0.0, [0.0, 0.0]), "{}", scorer.type_name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_judge_who_guesses_is_right_half_of_the_time() {
    let coin = Mutex::new(StdRng::seed_from_u64(5));
    let double = Double::new(move |body| answer(body, |_| coin.lock().unwrap().random()));
    let [_, detection, fuzzing] = scorers(&double).await;
    for scorer in [detection, fuzzing] {
        let mut values = Vec::new();
        for seed in 0..15 {
            let Measured { value, interval: [low, high], .. } = measured(scorer.as_ref(), &subject(seed)).await;
            assert!(high - low > 0.2 && low <= value && value <= high, "{low} {value} {high}");
            values.push(value);
        }
        // Of 300 guesses: 3.4 standard deviations.
        let mean = values.iter().sum::<f32>() / 15.0;
        assert!((mean - 0.5).abs() < 0.1, "{}: {mean}", scorer.type_name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_the_pictures_are_true_in_an_order_that_only_the_seed_knows() {
    let double = seeing();
    let [_, detection, fuzzing] = scorers(&double).await;
    let mut firsts = Vec::new();
    for scorer in [detection, fuzzing] {
        let mut asked = Vec::new();
        for seed in [0, 0, 1] {
            double.seen.lock().unwrap().clear();
            measured(scorer.as_ref(), &subject(seed)).await;
            asked.push(double.seen.lock().unwrap().clone());
        }
        assert_eq!(asked[0], asked[1], "the same seed, the same questions");
        assert_ne!(asked[0], asked[2], "another seed, other ones");
        let own = asked[0].iter().filter(|body| is_about_red(body));
        let seen: Vec<bool> = own.flat_map(pictures).map(|picture| has_red(&picture)).collect();
        assert_eq!((seen.len(), seen.iter().filter(|red| **red).count()), (20, 10));
        assert!(seen.windows(2).filter(|pair| pair[0] != pair[1]).count() > 2, "not in order: {seen:?}");
        for body in &asked[0] {
            assert_eq!(pictures(body).len(), MOST_PICTURES);
            let schema = &body["response_format"]["json_schema"]["schema"];
            assert_eq!(schema["properties"]["answers"]["minItems"], MOST_PICTURES);
        }
        firsts.push(asked[0][0]["messages"][0].clone());
    }
    assert_ne!(firsts[0], firsts[1], "detection and fuzzing are other questions");
}

#[tokio::test(flavor = "multi_thread")]
async fn random_pictures_lie_under_the_maps_of_the_shown_ones() {
    // A judge that takes brightness for a sign of the feature must not gain by it.
    let is_bright = |picture: &RgbImage| picture.pixels().any(|pixel| pixel.0.iter().all(|level| *level > 55));
    let bright = Double::new(move |body| answer(body, |picture| is_bright(picture) || has_red(picture)));
    let consistency = Consistency::new(judge(&bright).await);
    let Measured { value, baseline, .. } = measured(&consistency, &subject(0)).await;
    assert_eq!((value, baseline), (1.0, 1.0));
    let once = Consistency::with_groups(judge(&bright).await, 1);
    assert_eq!(measured(&once, &subject(0)).await.samples, 1);
    assert_ne!(once.author(), consistency.author(), "another protocol");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_answer_gets_one_more_chance_and_then_there_is_no_score() {
    let double = seeing();
    let judge = judge(&double).await;
    let scorer = Detection::new(judge.clone(), peers());
    double.moods.lock().unwrap().push_back(Mood::Says("The first and the third."));
    assert_eq!(measured(&scorer, &subject(0)).await.value, 1.0);
    let asked = double.seen.lock().unwrap().clone();
    let schemas: Vec<bool> = asked.iter().take(3).map(|body| body["response_format"].is_object()).collect();
    assert_eq!(schemas, [true, false, true]);
    assert_eq!(judge.usage().input_tokens, 100 * asked.len() as u64, "what the wrong answer took counts");
    for (moods, says) in [
        (vec![Mood::Says("{\"answers\": []}"), Mood::Says("{\"answers\": [true]}")], "1 answers for 5 pictures"),
        (vec![Mood::Says(""), Mood::Says("I cannot help with that.")], "I cannot help"),
        (vec![Mood::Refuses(403)], "403"),
        (vec![Mood::Refuses(422), Mood::Refuses(422)], "422"),
        (vec![Mood::Refuses(429)], "429"),
    ] {
        double.moods.lock().unwrap().extend(moods);
        let error = scorer.score(&subject(0)).await.unwrap_err();
        let is_away = matches!(error, ScoreError::Away { .. });
        let (ScoreError::Service { who, reason } | ScoreError::Away { who, reason, .. }) = error else {
            panic!("{error}")
        };
        assert_eq!(is_away, says == "429", "{reason}");
        assert!(who.starts_with(MODEL) && reason.contains(says), "{who}: {reason}");
        assert!(double.moods.lock().unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_is_asked_again() {
    let double = Double { retry_after_secs: 0, ..seeing() };
    let judge = Judge::new(&config(double.serve().await)).unwrap().with_tries(2);
    let consistency = Consistency::with_groups(Arc::new(judge), 1);
    double.moods.lock().unwrap().push_back(Mood::Refuses(503));
    assert_eq!(measured(&consistency, &subject(0)).await.value, 1.0);
    double.moods.lock().unwrap().extend([Mood::Refuses(503), Mood::Refuses(503)]);
    let error = consistency.score(&subject(0)).await.unwrap_err();
    assert!(matches!(&error, ScoreError::Away { reason, .. } if reason.contains("503")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sglang_is_told_of_several_pictures() {
    let double = Double { engine_is_sglang: true, ..seeing() };
    let url = double.serve().await;
    let ask = async |engine| {
        let judge = Judge::new(&OpenAiConfig { engine, ..config(url.clone()) }).unwrap();
        Consistency::with_groups(Arc::new(judge), 1).score(&subject(0)).await
    };
    assert!(ask(Engine::Sglang).await.unwrap().is_some());
    assert!(ask(Engine::Vllm).await.is_err());
    assert!(Judge::new(&config("127.0.0.1:8000".into())).is_err(), "no address");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_judged_has_no_score_and_nobody_is_asked() {
    let double = seeing();
    for scorer in scorers(&double).await {
        let unlabelled = Subject { explanation: Explanation::default(), ..subject(0) };
        let alone = Subject { shown: subject(0).shown[..1].to_vec(), random: Vec::new(), ..subject(0) };
        for subject in [unlabelled, alone] {
            assert_eq!(scorer.score(&subject).await.unwrap(), None, "{}", scorer.type_name());
        }
        let mut damaged = subject(0);
        damaged.shown.iter_mut().for_each(|shown| shown.picture.truncate(20));
        let error = scorer.score(&damaged).await.unwrap_err();
        assert!(matches!(&error, ScoreError::Picture { id, .. } if id.starts_with("red-")), "{error}");
    }
    assert!(double.seen.lock().unwrap().is_empty());
}

/// Speaks of red squares when the scored feature is strong, and of the moon when another one is.
#[derive(Default)]
struct Speaker {
    /// What it was asked to do.
    calls: Mutex<Vec<(u32, f32, String)>>,
    /// Says the same whatever is strong.
    is_deaf: bool,
}

impl Steerer for Speaker {
    fn settings(&self) -> String {
        "a speaker".into()
    }

    fn steer<'a>(&'a self, feature: u32, strength: f32, prompt: &'a str) -> PendingTexts<'a> {
        self.calls.lock().unwrap().push((feature, strength, prompt.to_owned()));
        let steered = match feature {
            _ if self.is_deaf => "a wall",
            INDEX => "I can only think of a red square",
            _ => "the moon",
        };
        let texts = Steered { original: "a room".into(), reconstructed: "a wall".into(), steered: steered.to_owned() };
        Box::pin(async move { Ok(texts) })
    }
}

/// Finds the description in what the steered model says.
fn reading() -> Double {
    Double::new(|body| {
        let described: Value = serde_json::from_str(body["messages"][1]["content"].as_str().unwrap()).unwrap();
        let [description, steered] = ["description", "steered"].map(|name| described[name].as_str().unwrap());
        assert_eq!((&described["original"], &described["reconstructed"]), (&json!("a room"), &json!("a wall")));
        assert!(QUESTIONS.contains(&described["question"].as_str().unwrap()));
        let answer = if steered.contains(description) {
            json!({ "score": 10, "effect": "reasons" })
        } else {
            json!({ "score": 2, "effect": "unrelated" })
        };
        answer.to_string()
    })
}

#[tokio::test]
async fn steering_is_judged_by_the_description_beside_another_feature() {
    let double = reading();
    let speaker = Arc::new(Speaker::default());
    let steering = Steering::new(judge(&double).await, speaker.clone(), peers());
    let found = measured(&steering, &subject(0)).await;
    assert_eq!((steering.type_name(), found.value, found.interval), ("steering", 1.0, [1.0, 1.0]));
    assert!((found.baseline - 1.0 / 9.0).abs() < 1e-6, "2 of 10: {found:?}");
    let asked = QUESTIONS.len();
    assert_eq!((found.samples as usize, double.seen.lock().unwrap().len()), (asked, 2 * asked));
    let calls = speaker.calls.lock().unwrap().clone();
    let own: Vec<_> = QUESTIONS.map(|question| (INDEX, FACTOR * 2.0, question.to_owned())).into();
    let other: Vec<_> = QUESTIONS.map(|question| (8_u32, FACTOR * 5.0, question.to_owned())).into();
    let of = |feature| calls.iter().filter(|call| call.0 == feature).cloned().collect::<Vec<_>>();
    assert_eq!((of(INDEX), of(8)), (own, other));

    let reasons = asked as u32;
    assert_eq!(found.effects, Some(SteeringEffects { reasons, ..SteeringEffects::default() }), "of its own feature");
    let verdicts = steering.verdicts(&subject(0)).await.unwrap().unwrap();
    assert!(
        verdicts
            .random
            .iter()
            .all(|verdict| verdict.effect == Effect::Unrelated && verdict.texts.steered == "the moon")
    );
    // Another label than what it says.
    let explanation = Explanation { description: "blue sky".into(), ..Explanation::default() };
    let wrong = measured(&steering, &Subject { explanation, ..subject(0) }).await;
    assert!((wrong.value - 1.0 / 9.0).abs() < 1e-6, "{wrong:?}");
}

#[tokio::test]
async fn texts_that_stay_are_not_judged() {
    let double = reading();
    let speaker = Arc::new(Speaker { is_deaf: true, ..Speaker::default() });
    let steering = Steering::new(judge(&double).await, speaker, peers());
    let found = measured(&steering, &subject(0)).await;
    assert_eq!((found.value, found.baseline), (0.0, 0.0));
    let none = QUESTIONS.len() as u32;
    assert_eq!(found.effects, Some(SteeringEffects { none, ..SteeringEffects::default() }));
    assert!(double.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn steering_needs_a_label_a_feature_that_fires_and_another_one() {
    let double = reading();
    let judge = judge(&double).await;
    let speaker = Arc::new(Speaker::default());
    let steering = Steering::new(judge.clone(), speaker.clone(), peers());
    let unlabelled = Subject { explanation: Explanation::default(), ..subject(0) };
    let silent = Subject { feature: Feature { index: INDEX, ..Feature::default() }, ..subject(0) };
    for subject in [unlabelled, silent] {
        assert_eq!(steering.score(&subject).await.unwrap(), None);
    }
    let alone = Steering::new(judge, speaker.clone(), Arc::default());
    assert_eq!(alone.score(&subject(0)).await.unwrap(), None);
    assert!(speaker.calls.lock().unwrap().is_empty());
    double.moods.lock().unwrap().extend([Mood::Says("{\"score\": 0}"), Mood::Says("ten of ten")]);
    let error = steering.score(&subject(0)).await.unwrap_err();
    assert!(matches!(&error, ScoreError::Service { reason, .. } if reason.contains("ten of ten")), "{error}");
}
