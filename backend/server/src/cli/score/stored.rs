//! `lmm-scope score --report`: the means of what is stored.

use super::ScoreArgs;
use crate::cli::{
    CliError,
    output::{print, print_json},
};
use api::Source;
use pipeline::score::report::{Labelled, Report};
use serde::Serialize;
use std::collections::BTreeMap;
use store::{
    SourceEntry, Store,
    jobs::{ComputedScore, Queue},
};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    /// `model/source`.
    source: String,
    sae_revision: &'a str,
    #[serde(flatten)]
    report: Report,
}

/// # Errors
/// When a database fails, or a feature does not exist.
pub(super) async fn report(args: &ScoreArgs) -> Result<(), CliError> {
    let opened = args.jobs.open().await?;
    let entry = args.jobs.source(&opened.store).await?;
    let mut scores = opened.queue.list_scores(&entry.source, None).await?;
    if args.of.are_named() {
        let wanted = args.of.indices(&opened.store, &entry).await?;
        scores.retain(|feature, _| wanted.binary_search(feature).is_ok());
    }
    let labels = labels(&opened.store, &opened.queue, &entry, scores).await?;
    let report = Report::of(&labels);
    let Source { model_id, source_id, provenance, .. } = &entry.source;
    let source = format!("{model_id}/{source_id}");
    if args.json {
        return print_json(&Answer { source, sae_revision: &provenance.sae_revision, report });
    }
    if report.tables.is_empty() {
        return print(&format!("no scores of {source} are stored; lmm-scope score computes them"));
    }
    print(&format!("{source}, SAE {}\n\n{}", provenance.sae_revision, report.to_markdown().trim_end()))
}

/// Labels as they are now with their scores; scores of what is not said any more are left out.
async fn labels(
    store: &Store,
    queue: &Queue,
    source: &SourceEntry,
    scores: BTreeMap<u32, Vec<ComputedScore>>,
) -> Result<Vec<Labelled>, CliError> {
    let mut labels = Vec::new();
    for (index, mut scores) in scores {
        let build = store.find_feature(source, index).await?.map(|feature| feature.explanations);
        let by_jobs = queue.list_explanations(&source.source, &[index]).await?.remove(&index);
        let build = build.into_iter().flatten().map(|said| (None, said));
        let by_jobs = by_jobs.into_iter().flatten().map(|said| (Some(said.explanation_model_name.clone()), said));
        for (author, said) in build.chain(by_jobs) {
            let of = |score: &mut ComputedScore| score.explanation == said.id && score.description == said.description;
            let scores: Vec<ComputedScore> = scores.extract_if(.., of).collect();
            labels.push(Labelled { author, category: said.category, scores });
        }
    }
    Ok(labels)
}
