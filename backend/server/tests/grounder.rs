//! IoU by a grounding service, against one that speaks the protocol of docs/cli.md strictly: what is not in it, it
//! refuses.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

use api::{Activation, ActivationImage, Explanation, Picture};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use frontend::api::SourceKey;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use pipeline::score::{
    Scorer, Shown, Subject,
    grounder::{Grounder, HttpGrounder, Mask},
    iou::Iou,
};
use serde_json::{Value, json};
use server::catalogue::Catalogue;
use std::{
    collections::VecDeque,
    io::Cursor,
    process::{Command, Output},
    sync::{Arc, Mutex},
    time::Duration,
};
use store::{
    Store,
    jobs::Queue,
    testing::{Artifacts, LABELS, small_source},
};

const MODEL: &str = "some/detector and some/segmenter";

/// What the service says next instead of a good answer.
#[derive(Debug, Clone, Copy)]
enum Mood {
    Says(&'static str),
    Refuses(u16),
}

#[derive(Clone, Default)]
struct Double {
    moods: Arc<Mutex<VecDeque<Mood>>>,
    /// Prompts of all requests.
    seen: Arc<Mutex<Vec<String>>>,
}

fn refuse(status: u16, why: &str) -> Response {
    (StatusCode::from_u16(status).unwrap(), [("retry-after", "0")], why.to_owned()).into_response()
}

async fn about() -> Json<Value> {
    Json(json!({ "model": MODEL }))
}

/// `Json` refuses other types of content, the route other methods.
async fn ground(State(double): State<Double>, Json(body): Json<Value>) -> Response {
    let fields = body.as_object().map(|fields| fields.keys().map(String::as_str).collect::<Vec<_>>());
    if fields.as_deref() != Some(&["image", "prompt"][..]) {
        return refuse(400, &format!("fields {fields:?}"));
    }
    let (Some(image), Some(prompt)) = (body["image"].as_str(), body["prompt"].as_str()) else {
        return refuse(400, "image and prompt are texts");
    };
    double.seen.lock().unwrap().push(prompt.to_owned());
    match double.moods.lock().unwrap().pop_front() {
        Some(Mood::Says(text)) => return text.into_response(),
        Some(Mood::Refuses(status)) => return refuse(status, "not now"),
        None => {}
    }
    let Some(picture) = STANDARD.decode(image).ok().and_then(|bytes| image::load_from_memory(&bytes).ok()) else {
        return refuse(400, "not a picture");
    };
    let (height, width) = (picture.height() as usize, picture.width() as usize);
    let half = height * (width / 2);
    let mask =
        |counts: Vec<usize>, score: f32| json!({ "height": height, "width": width, "counts": counts, "score": score });
    let masks = match prompt {
        "nothing" => vec![],
        "unsure" => vec![mask(vec![0, height * width], 0.1)],
        // Columns are contiguous.
        _ => vec![mask(vec![0, half, height * width - half], 0.9)],
    };
    Json(json!({ "masks": masks })).into_response()
}

/// The double's address.
async fn serve(double: &Double) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Router::new().route("/ground", get(about).post(ground));
    let app = routes.layer(DefaultBodyLimit::max(16 << 20)).with_state(double.clone());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    format!("http://{address}")
}

async fn connect(double: &Double) -> HttpGrounder {
    HttpGrounder::connect(&serve(double).await, Duration::from_secs(10)).await.unwrap()
}

fn webp(side: u32) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let picture = RgbImage::from_fn(side, side, |x, y| Rgb([x as u8 * 7, y as u8 * 7, 90]));
    DynamicImage::ImageRgb8(picture).write_to(&mut bytes, ImageFormat::WebP).unwrap();
    bytes.into_inner()
}

/// A picture of 8 by 8 pixels; the feature fires on the left two of its 2 by 2 patches.
fn shown(id: &str) -> Shown {
    let picture = Picture { id: id.into(), ..Picture::default() };
    let activation = Activation {
        image: ActivationImage { picture, grid: [2, 2] },
        feature_acts_indices: vec![0, 2],
        feature_acts_values: vec![4.0, 1.0],
        max_value: 4.0,
        ..Activation::default()
    };
    Shown { activation, picture: webp(8) }
}

fn columns(left: usize) -> Mask {
    Mask { height: 8, width: 8, on: (0..64).map(|pixel| pixel % 8 < left).collect() }
}

#[tokio::test]
async fn a_label_is_grounded_in_the_picture_as_it_is_stored() {
    let double = Double::default();
    let grounder = connect(&double).await;
    assert_eq!(grounder.author(), format!("{MODEL}, mean of the top 5"));
    let found = |label: &'static str| {
        let grounder = &grounder;
        async move { grounder.ground(&shown("a"), label).await.unwrap().unwrap() }
    };
    assert_eq!(found("left half").await, columns(4));
    assert_eq!(found("nothing").await, columns(0));
    assert_eq!(found("unsure").await, columns(0), "a mask that the service itself hardly believes");
    assert_eq!(*double.seen.lock().unwrap(), ["left half", "nothing", "unsure"]);
}

#[tokio::test]
async fn the_service_scores_the_top_five_pictures() {
    let iou = Iou::new(Arc::new(connect(&Double::default()).await));
    let subject = |label: &str| Subject {
        explanation: Explanation { description: label.into(), ..Explanation::default() },
        shown: (0..7).map(|number| shown(&number.to_string())).collect(),
        ..Subject::default()
    };
    let found = iou.score(&subject("left half")).await.unwrap().unwrap();
    // Upsampled, the left patches reach over six of the eight columns; the mask has four of these.
    assert!((found.value - 4.0 / 6.0).abs() < 1e-6, "{found:?}");
    assert_eq!((found.samples, found.interval), (5, [found.value; 2]));
    assert!(found.baseline > 0.0 && found.baseline < found.value, "{found:?}");
    let nothing = iou.score(&subject("nothing")).await.unwrap().unwrap();
    assert_eq!((nothing.value, nothing.baseline, nothing.samples), (0.0, 0.0, 5), "a picture without it counts 0");
}

#[tokio::test]
async fn a_busy_service_is_asked_again_and_a_refusal_is_final() {
    let double = Double::default();
    let grounder = connect(&double).await;
    let asked = || std::mem::take(&mut *double.seen.lock().unwrap()).len();
    double.moods.lock().unwrap().extend([Mood::Refuses(503), Mood::Refuses(429)]);
    assert_eq!(grounder.ground(&shown("a"), "left half").await.unwrap(), Some(columns(4)));
    assert_eq!(asked(), 3);
    double.moods.lock().unwrap().extend([Mood::Refuses(500); 3]);
    let error = grounder.ground(&shown("a"), "left half").await.unwrap_err().to_string();
    assert!(error.contains(MODEL) && error.contains("500") && error.contains("not now"), "{error}");
    assert_eq!(asked(), 3);
    double.moods.lock().unwrap().push_back(Mood::Refuses(422));
    let error = grounder.ground(&shown("a"), "left half").await.unwrap_err().to_string();
    assert!(error.contains("422"), "{error}");
    assert_eq!(asked(), 1);
}

#[tokio::test]
async fn what_is_no_answer_is_said() {
    let double = Double::default();
    let grounder = connect(&double).await;
    for (answer, says) in [
        ("<html>", "has no masks"),
        ("{\"masks\": [{\"height\": 8, \"width\": 8, \"score\": 0.9}]}", "counts"),
        (
            "{\"masks\": [{\"height\": 4, \"width\": 4, \"counts\": [16], \"score\": 0.9}]}",
            "picture a: a mask has 4 by 4",
        ),
        ("{\"masks\": [{\"height\": 8, \"width\": 8, \"counts\": [60], \"score\": 0.9}]}", "runs of a mask"),
    ] {
        double.moods.lock().unwrap().push_back(Mood::Says(answer));
        let error = grounder.ground(&shown("a"), "left half").await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let damaged = Shown { picture: b"no picture".to_vec(), ..shown("broken") };
    let error = grounder.ground(&damaged, "left half").await.unwrap_err().to_string();
    assert!(error.starts_with("picture broken: "), "{error}");

    let timeout = Duration::from_secs(10);
    for address in ["", "127.0.0.1:8070", "ftp://host"] {
        assert!(HttpGrounder::connect(address, timeout).await.is_err(), "{address}");
    }
    // Somebody else lives there.
    let url = serve(&double).await;
    assert!(HttpGrounder::connect(&format!("{url}/elsewhere"), timeout).await.is_err());
}

fn lmm_scope(folder: &std::path::Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lmm-scope"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LMM_SCOPE_") || name == "RUST_LOG" {
            command.env_remove(&name);
        }
    }
    let database = format!("sqlite://{}", folder.join("scope.db").display());
    command.args(line.split_whitespace()).arg("--artifacts").arg(folder).args(["--database", &database]);
    command.current_dir(folder).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_are_kept_and_stand_beside_the_label_that_they_are_of() {
    let folder = tempfile::tempdir().unwrap();
    Artifacts::new(small_source(), &webp(32)).write(folder.path()).unwrap();
    let url = serve(&Double::default()).await;
    let run = |line: String| {
        let folder = folder.path().to_owned();
        tokio::task::spawn_blocking(move || lmm_scope(&folder, &line))
    };
    for _ in 0..2 {
        let output = run(format!("score --kinds iou --grounder-url {url} --seed 3 --json")).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let done: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&done["scores"]["iou"], &done["unlabelled"]), (&LABELS.len().into(), &5.into()), "{done}");
    }
    let store = Store::open(&format!("sqlite://{}", folder.path().join("scope.db").display())).await.unwrap();
    let catalogue = Catalogue::new(store.clone(), SourceKey::new("tiny", "1-res-12"));
    let feature = catalogue.feature(&SourceKey::new("tiny", "1-res-12"), 1).await.unwrap();
    let [own, computed] = feature.explanations[0].scores.as_slice() else { panic!("{feature:?}") };
    assert!((own.value - 0.8).abs() < 1e-6 && own.interval.is_none() && own.samples == 0, "the label's own: {own:?}");
    assert_eq!(computed.explanation_score_type_name, "iou");
    assert_eq!(computed.explanation_score_model_name, format!("{MODEL}, mean of the top 5"));
    let [low, high] = computed.interval.unwrap();
    assert!(0.0 < low && low <= computed.value && computed.value <= high && high < 1.0, "{computed:?}");
    assert_eq!(computed.samples, 3);
    assert!(computed.provenance.contains(", seed 3, "), "{computed:?}");

    // What the feature is called by now is what the score must be of.
    let scores = Queue::of_store(&store).list_scores(&small_source(), Some(&[1])).await.unwrap().remove(&1).unwrap();
    assert_eq!((scores.len(), scores[0].description.as_str()), (1, LABELS[1].0));
    store.close().await;
    let wrong = run("score --kinds iou".into()).await.unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(wrong.status.code() == Some(2) && said.starts_with("error: --grounder-url: iou needs it: "), "{said}");
}
