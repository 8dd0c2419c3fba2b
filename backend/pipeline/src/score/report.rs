//! The paper's table 1 over stored scores: means by category and overall, each with the mean of its random baseline,
//! the 95 % interval over the labels, and the number of labels.

use super::interval::{bootstrap, mean};
use api::{Category, Score, SteeringEffects};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use store::jobs::ComputedScore;

/// The paper's categories in its order, then the demo's.
const ROWS: [Category; 10] = [
    Category::Scene,
    Category::Object,
    Category::Part,
    Category::Material,
    Category::Texture,
    Category::Color,
    Category::Emotion,
    Category::Position,
    Category::Text,
    Category::Unknown,
];
/// The paper's scores in its order: these columns are there even when they are empty.
const COLUMNS: [&str; 3] = ["iou", "clip score", "consistency"];
/// Name of the labels that came with the features.
const BUILD: &str = "labels of the build";
/// Resamples of the intervals are the same in every report.
const SEED: u64 = 0;

/// A label that has scores.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labelled {
    /// Who said it; `None`: it came with the features.
    pub author: Option<String>,
    pub category: Category,
    pub scores: Vec<ComputedScore>,
}

/// A table for each author of labels.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    pub tables: Vec<Table>,
}

/// One author's labels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    pub labels: String,
    /// What was computed, by whom and when.
    pub columns: Vec<Column>,
    /// By category, those that nobody was filed under left out; `overall` last.
    pub rows: Vec<Row>,
}

/// One kind of score by one author.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Column {
    #[serde(rename = "type")]
    pub type_name: String,
    pub author: String,
    /// Dates, seeds and picture sets.
    pub computed: BTreeSet<String>,
    /// Of steering: what became of the answers, of all labels together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effects: Option<SteeringEffects>,
}

/// Means of one category.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub category: &'static str,
    /// Labels.
    pub n: usize,
    /// Of each column; `null` where no label of the category has the score.
    pub scores: Vec<Option<Cell>>,
}

/// Mean of one score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cell {
    pub value: f32,
    /// On the random baseline.
    pub random: f32,
    /// 95 %, over the labels.
    pub interval: [f32; 2],
    /// Labels that have this score.
    pub n: usize,
}

impl Report {
    /// Of labels in any order.
    pub fn of(labels: &[Labelled]) -> Self {
        let mut authors: BTreeMap<Option<&str>, Vec<&Labelled>> = BTreeMap::new();
        for label in labels.iter().filter(|label| !label.scores.is_empty()) {
            authors.entry(label.author.as_deref()).or_default().push(label);
        }
        let tables = authors.into_iter().map(|(author, labels)| Table::of(author.unwrap_or(BUILD), &labels));
        Self { tables: tables.collect() }
    }

    /// As Markdown tables; nothing when there are no scores.
    pub fn to_markdown(&self) -> String {
        self.tables.iter().map(Table::to_markdown).collect::<Vec<_>>().join("\n")
    }
}

impl Table {
    fn of(author: &str, labels: &[&Labelled]) -> Self {
        let columns = columns(labels);
        let categories = ROWS.into_iter().filter_map(|category| {
            let of: Vec<&Labelled> = labels.iter().copied().filter(|label| label.category == category).collect();
            (!of.is_empty()).then(|| Row::of(category.as_str(), &of, &columns))
        });
        let mut rows: Vec<Row> = categories.collect();
        rows.push(Row::of("overall", labels, &columns));
        Self { labels: author.to_owned(), columns, rows }
    }

    fn to_markdown(&self) -> String {
        let mut lines = vec![vec!["category".to_owned(), "n".to_owned()]];
        let names: Vec<String> = (0..self.columns.len()).map(|at| self.name(at)).collect();
        lines[0].extend(names.iter().map(|name| format!("{name} (random)")));
        for row in &self.rows {
            let mut line = vec![row.category.to_owned(), row.n.to_string()];
            let cells = row.scores.iter().zip(&self.columns);
            line.extend(cells.map(|(cell, column)| cell.map_or("–".into(), |cell| cell.text(column, row.n))));
            lines.push(line);
        }
        let mut text = format!("{}\n\n{}", self.labels, padded(&lines));
        for (name, column) in names.iter().zip(&self.columns).filter(|(_, column)| !column.author.is_empty()) {
            let computed: Vec<&str> = column.computed.iter().map(String::as_str).collect();
            text += &format!("\n{name}: {} ({})", column.author, computed.join("; "));
            if let Some(effects) = column.effects {
                text += &format!("; effects: {}", counted(effects));
            }
        }
        text + "\n"
    }

    /// Name of a column, with a number where several authors have the same kind of score.
    fn name(&self, at: usize) -> String {
        let column = &self.columns[at];
        let name = match column.type_name.as_str() {
            "iou" => "IoU",
            "clip score" => "CLIP score",
            other => other,
        };
        let same = |column: &&Column| column.type_name == self.columns[at].type_name;
        if self.columns.iter().filter(same).count() < 2 {
            return name.to_owned();
        }
        format!("{name} {}", self.columns[..at].iter().filter(same).count() + 1)
    }
}

/// The paper's columns, then all others that somebody computed.
fn columns(labels: &[&Labelled]) -> Vec<Column> {
    let mut found: BTreeMap<(usize, &str, &str), Column> = BTreeMap::new();
    let empty = |type_name: &str, author: &str| Column {
        type_name: type_name.to_owned(),
        author: author.to_owned(),
        ..Column::default()
    };
    for score in labels.iter().flat_map(|label| &label.scores) {
        let place = COLUMNS.iter().position(|name| *name == score.type_name).unwrap_or(COLUMNS.len());
        let computed = format!("{}, seed {}, {}", score.created_at, score.seed, score.image_set);
        let column = found
            .entry((place, &score.type_name, &score.author))
            .or_insert_with(|| empty(&score.type_name, &score.author));
        column.computed.insert(computed);
        if let Some(effects) = score.effects {
            *column.effects.get_or_insert_default() += effects;
        }
    }
    for (place, name) in COLUMNS.into_iter().enumerate() {
        if !found.keys().any(|(_, type_name, _)| *type_name == name) {
            found.insert((place, name, ""), empty(name, ""));
        }
    }
    found.into_values().collect()
}

/// What became of a steered model's answers: `2 none, 5 mentions, 3 reasons, 0 unrelated`.
pub fn counted(effects: SteeringEffects) -> String {
    let counts = SteeringEffects::NAMES.into_iter().zip(effects.counts());
    counts.map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

impl Row {
    fn of(category: &'static str, labels: &[&Labelled], columns: &[Column]) -> Self {
        let of = |column: &Column| {
            let scores: Vec<&ComputedScore> = labels
                .iter()
                .flat_map(|label| &label.scores)
                .filter(|score| score.type_name == column.type_name && score.author == column.author)
                .collect();
            let values: Vec<f32> = scores.iter().map(|score| score.value).collect();
            let random: Vec<f32> = scores.iter().map(|score| score.baseline).collect();
            (!scores.is_empty()).then(|| Cell {
                value: mean(&values),
                random: mean(&random),
                interval: bootstrap(&values, SEED),
                n: scores.len(),
            })
        };
        Self { category, n: labels.len(), scores: columns.iter().map(of).collect() }
    }
}

impl Cell {
    /// `0.391 [0.352, 0.430] (0.050)`, with the number of labels where it is not that of the row.
    fn text(self, column: &Column, n: usize) -> String {
        let score = Score { explanation_score_type_name: column.type_name.clone(), ..Score::default() };
        let decimals = if score.full().is_some() { 1 } else { 3 };
        let Self { value, random, interval: [low, high], .. } = self;
        let text = format!("{value:.decimals$} [{low:.decimals$}, {high:.decimals$}] ({random:.decimals$})");
        if self.n == n { text } else { format!("{text} n {}", self.n) }
    }
}

/// A Markdown table whose columns stand below each other in a terminal as well.
fn padded(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (cell, &width) in line.iter().zip(&widths) {
            text += &format!("| {cell:<width$} ");
        }
        text += "|\n";
        if number == 0 {
            widths.iter().for_each(|width| text += &format!("|{}", "-".repeat(width + 2)));
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(type_name: &str, author: &str, value: f32, baseline: f32) -> ComputedScore {
        ComputedScore {
            type_name: type_name.into(),
            author: author.into(),
            value,
            baseline,
            seed: 7,
            image_set: "a set".into(),
            created_at: "2026-01-31".into(),
            ..ComputedScore::default()
        }
    }

    fn label(category: Category, scores: Vec<ComputedScore>) -> Labelled {
        Labelled { author: None, category, scores }
    }

    fn labels() -> Vec<Labelled> {
        vec![
            label(Category::Emotion, vec![score("iou", "masks", 0.5, 0.25)]),
            label(
                Category::Scene,
                vec![
                    score("clip score", "a model", 24.0, 18.0),
                    score("fuzzing", "a judge", 0.75, 0.5),
                    score("iou", "masks", 0.25, 0.125),
                ],
            ),
            label(Category::Scene, vec![score("iou", "masks", 0.75, 0.375)]),
            // Never scored: not part of any mean.
            label(Category::Part, Vec::new()),
        ]
    }

    #[test]
    fn means_are_by_category_and_overall() {
        let report = Report::of(&labels());
        let [table] = report.tables.as_slice() else { panic!("{report:?}") };
        let names: Vec<&str> = table.columns.iter().map(|column| column.type_name.as_str()).collect();
        assert_eq!(names, ["iou", "clip score", "consistency", "fuzzing"], "the paper's, then others");
        let rows: Vec<(&str, usize)> = table.rows.iter().map(|row| (row.category, row.n)).collect();
        assert_eq!(rows, [("scene", 2), ("emotion", 1), ("overall", 3)]);
        let scene = Cell { value: 0.5, random: 0.25, interval: [0.25, 0.75], n: 2 };
        assert_eq!(table.rows[0].scores[0], Some(scene));
        assert_eq!(table.rows[0].scores[1].map(|cell| (cell.value, cell.random, cell.n)), Some((24.0, 18.0, 1)));
        assert_eq!(table.rows[0].scores[2], None);
        let overall = table.rows[2].scores[0].map(|cell| (cell.value, cell.random, cell.n));
        assert_eq!(overall, Some((0.5, 0.25, 3)));
    }

    #[test]
    fn the_table_says_every_number_with_its_baseline_and_who_computed_it() {
        let text = Report::of(&labels()).to_markdown();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "labels of the build");
        let words = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let head = ["category", "n", "IoU (random)", "CLIP score (random)", "consistency (random)", "fuzzing (random)"];
        assert_eq!(words(lines[2])[1..7], head);
        assert!(lines[3].chars().all(|letter| "|-".contains(letter)) && lines[3].len() == lines[2].len(), "{text}");
        let scene = [
            "scene",
            "2",
            "0.500 [0.250, 0.750] (0.250)",
            "24.0 [24.0, 24.0] (18.0) n 1",
            "–",
            "0.750 [0.750, 0.750] (0.500) n 1",
        ];
        assert_eq!(words(lines[4])[1..7], scene, "{text}");
        assert!(text.contains("\nIoU: masks (2026-01-31, seed 7, a set)\n"), "{text}");
        assert!(!text.contains("consistency:"), "nobody computed it\n{text}");
    }

    #[test]
    fn effects_of_steering_are_added_up_over_labels() {
        let steered = |counts| {
            let effects = Some(SteeringEffects::from_counts(counts));
            vec![ComputedScore { effects, ..score("steering", "a judge", 0.5, 0.25) }]
        };
        let labels = [
            label(Category::Scene, steered([1, 2, 2, 0])),
            label(Category::Object, steered([0, 0, 4, 1])),
            label(Category::Object, vec![score("iou", "masks", 0.5, 0.25)]),
        ];
        let report = Report::of(&labels);
        let effects: Vec<_> = report.tables[0].columns.iter().map(|column| column.effects).collect();
        assert_eq!(effects, [None, None, None, Some(SteeringEffects::from_counts([1, 2, 6, 1]))]);
        let text = report.to_markdown();
        let says =
            "\nsteering: a judge (2026-01-31, seed 7, a set); effects: 1 none, 2 mentions, 6 reasons, 1 unrelated\n";
        assert!(text.contains(says), "{text}");
    }

    #[test]
    fn authors_of_labels_have_tables_and_authors_of_scores_columns() {
        let mut labels = labels();
        labels[0].author = Some("a larger model".into());
        labels[1].scores.push(score("iou", "a grounder", 0.5, 0.0));
        let report = Report::of(&labels);
        let names: Vec<&str> = report.tables.iter().map(|table| table.labels.as_str()).collect();
        assert_eq!(names, ["labels of the build", "a larger model"]);
        let text = report.to_markdown();
        assert!(text.contains("IoU 1 (random)") && text.contains("IoU 2 (random)"), "{text}");
        assert!(text.contains("\nIoU 1: a grounder (") && text.contains("\nIoU 2: masks ("), "{text}");
        assert_eq!(Report::of(&[]), Report::default());
        assert_eq!(Report::default().to_markdown(), "");
    }
}
