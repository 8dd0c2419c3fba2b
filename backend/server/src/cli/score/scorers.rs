//! Which scorers the flags name, opened.

use super::{Kind, ScoreArgs};
use crate::{
    cli::{CliError, chosen::living, device::check_device},
    config::EngineChoice,
    engine::{Device, steerer::EngineSteerer},
    revision,
};
use pipeline::{
    interpret::Dissect,
    score::{
        Peers, Scorer,
        clip::{Clip, ClipScorer, TextEmbedder},
        consistency::Consistency,
        detection::Detection,
        fuzzing::Fuzzing,
        grounder::{ExactMasks, HttpGrounder},
        iou::Iou,
        judge::Judge,
        monosemanticity::MonoSemanticity,
        steering::Steering,
    },
};
use std::{path::Path, sync::Arc, time::Duration};
use store::{SourceEntry, Store};

/// The scorers, and the larger model behind some of them.
pub(super) struct Scorers {
    pub all: Vec<Box<dyn Scorer>>,
    pub judge: Option<Arc<Judge>>,
}

impl Scorers {
    /// Opens what `--kinds` names, or, without it, all that the other flags and the files allow.
    ///
    /// # Errors
    /// When a kind needs what is not there, or nothing at all can be scored.
    pub async fn open(args: &ScoreArgs, store: &Store, source: &SourceEntry) -> Result<Self, CliError> {
        let kinds = kinds(args, Dissect::is_possible(&args.jobs.artifacts, &source.source))?;
        let has = |kind: Kind| kinds.contains(&kind);
        let mut all: Vec<Box<dyn Scorer>> = Vec::new();
        if has(Kind::Iou) {
            all.extend(overlaps(args, source).await?);
        }
        if let Some(folder) = args.clip.as_deref().filter(|_| has(Kind::Clip) || has(Kind::Monosemanticity)) {
            let (clip, name) = open_clip(folder, args.device)?;
            if has(Kind::Clip) {
                all.push(Box::new(ClipScorer::new(clip.clone(), &name)));
            }
            if has(Kind::Monosemanticity) {
                all.push(Box::new(MonoSemanticity::new(clip, &name)));
            }
        }
        let mut judge = None;
        if kinds.iter().any(|kind| kind.asks_a_judge()) {
            let asked = Arc::new(Judge::new(&args.lmm.config())?);
            let peers: Arc<Peers> = Arc::new(living(store, source).await?.into_iter().collect());
            if has(Kind::Consistency) {
                all.push(Box::new(Consistency::new(asked.clone())));
            }
            if has(Kind::Detection) {
                all.push(Box::new(Detection::new(asked.clone(), peers.clone())));
            }
            if has(Kind::Fuzzing) {
                all.push(Box::new(Fuzzing::new(asked.clone(), peers.clone())));
            }
            if let Some(EngineChoice::Remote(urls)) = args.engine.as_ref().filter(|_| has(Kind::Steering)) {
                let steerer = EngineSteerer::connect(urls, &source.source).await;
                let steerer = steerer.map_err(|error| CliError::flag("--engine", error.to_string()))?;
                all.push(Box::new(Steering::new(asked.clone(), Arc::new(steerer), peers)));
            }
            judge = Some(asked);
        }
        Ok(Self { all, judge })
    }
}

/// The kinds to compute; `masks`: the source has exact ones.
fn kinds(args: &ScoreArgs, masks: bool) -> Result<Vec<Kind>, CliError> {
    let lacks = |kind: Kind| match kind {
        Kind::Iou if !masks && args.grounder_url.is_none() => {
            Some(("--grounder-url", "this source has no masks of its own; name a grounding service"))
        }
        Kind::Clip | Kind::Monosemanticity if args.clip.is_none() => {
            Some(("--clip", "name the folder of a CLIP model"))
        }
        _ if kind.asks_a_judge() && args.lmm.lmm_url.is_none() => {
            Some(("--lmm-url", "name the server of a larger model that judges"))
        }
        _ if kind.asks_a_judge() && args.lmm.lmm_name.is_none() => Some(("--lmm-name", "name the model that judges")),
        Kind::Steering if !matches!(args.engine, Some(EngineChoice::Remote(_))) => {
            Some(("--engine", "name an engine with the model under study, such as http://127.0.0.1:8090"))
        }
        _ => None,
    };
    if args.kinds.is_empty() {
        // Steering takes many texts of the model under study: nobody gets that by chance.
        let possible = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Steering && lacks(*kind).is_none());
        let possible: Vec<Kind> = possible.collect();
        if possible.is_empty() {
            let reason = "there is nothing to score with: name a service with --grounder-url, a model with --clip, or \
                          a larger model with --lmm-url and --lmm-name";
            return Err(CliError::flag("--kinds", reason));
        }
        return Ok(possible);
    }
    match args.kinds.iter().find_map(|kind| Some((kind, lacks(*kind)?))) {
        Some((kind, (flag, reason))) => Err(CliError::flag(flag, format!("{} needs it: {reason}", kind.as_str()))),
        None => Ok(args.kinds.clone()),
    }
}

/// With exact masks, with a service, or with both: labels that have no exact masks may be grounded all the same.
async fn overlaps(args: &ScoreArgs, source: &SourceEntry) -> Result<Vec<Box<dyn Scorer>>, CliError> {
    let mut found: Vec<Box<dyn Scorer>> = Vec::new();
    if Dissect::is_possible(&args.jobs.artifacts, &source.source) {
        let (folder, source) = (args.jobs.artifacts.clone(), source.source.clone());
        let opened = tokio::task::spawn_blocking(move || Dissect::open(&folder, &source)).await;
        let truth = opened.map_err(|error| CliError::Bug(error.to_string()))??;
        found.push(Box::new(Iou::new(Arc::new(ExactMasks::new(Arc::new(truth))))));
    }
    if let Some(url) = &args.grounder_url {
        let timeout = Duration::from_secs(u64::from(args.grounder_timeout_secs));
        found.push(Box::new(Iou::new(Arc::new(HttpGrounder::connect(url, timeout).await?))));
    }
    Ok(found)
}

/// A CLIP model and its name: the folder's, and the first digits of the SHA-256 of its weights.
fn open_clip(folder: &Path, device: Device) -> Result<(Arc<dyn TextEmbedder>, String), CliError> {
    check_device(device)?;
    let clip: Arc<dyn TextEmbedder> = match device {
        Device::Cpu => Arc::new(Clip::<model::Cpu>::load(folder, &Default::default())?),
        #[cfg(feature = "cuda")]
        Device::Cuda(number) => {
            Arc::new(Clip::<model::Cuda>::load(folder, &burn::backend::cuda::CudaDevice::new(number))?)
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => return Err(CliError::flag("--device", "this build has no CUDA")),
    };
    let weights = revision::of_files(&model::weights::checkpoint_files(folder)?)?;
    let place = folder.canonicalize().map_err(|error| CliError::file(folder, error))?;
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    Ok((clip, format!("{name}@{weights}")))
}
