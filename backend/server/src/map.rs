//! The map of a source's features as a picture: SVG, with a link to the page of each feature, in light and dark.

use api::{Category, Source};
use frontend::{
    api::SourceKey,
    format::count,
    links::{feature_path, source_path},
};
use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};
use store::MapPoint;

/// Points that have a link and a name of their own. Of more, those with the best labels have; the others are drawn all
/// the same, as one path for each category: a browser has trouble with a hundred thousand links, not with dots.
const LINKED: usize = 5_000;
/// Side of the square that points lie in, and where it begins.
const SIDE: f32 = 960.0;
const LEFT: f32 = 20.0;
const TOP: f32 = 110.0;
/// Size of the whole.
const WIDTH: u32 = 1000;
const HEIGHT: u32 = 1110;
/// Names of categories in a row of the legend, and how far rows and names are apart.
const IN_ROW: usize = 5;
const NAME_WIDTH: usize = 190;
const ROW_HEIGHT: usize = 22;

/// Neutral colours are the pages' own (`frontend/style/tokens.css`). Categories have none there, since pages write
/// their names: here each has a hue, as light and as strong as the pages' colour for problems.
const STYLE: &str = "\
    :root{color-scheme:light dark;background:light-dark(oklch(0.987 0.004 85),oklch(0.168 0.007 70));\
    color:light-dark(oklch(0.225 0.012 70),oklch(0.935 0.008 85))}\
    text{font:15px Inter,system-ui,sans-serif;fill:currentColor}\
    .t{font-size:24px;font-weight:600}\
    .f{fill:light-dark(oklch(0.49 0.012 70),oklch(0.715 0.012 80))}\
    .s text{text-decoration:underline}\
    path{fill:none;stroke-linecap:round;stroke-width:7px;stroke-opacity:.75;stroke:var(--c)}\
    .m path{stroke-width:5px}\
    .m a:hover path,.m a:focus path{stroke-width:15px;stroke-opacity:1}\
    .m a:focus{outline:none}";

/// The hue of a category; what has none is neutral.
fn hue(category: Category) -> Option<u32> {
    let place = Category::ALL.iter().position(|one| *one == category)? as u32;
    (category != Category::Unknown).then_some(20 + place * 40)
}

/// The picture. A source whose files have no places gets one that says so.
pub fn svg(source: &Source, points: &[MapPoint]) -> String {
    let mut text = String::with_capacity(4096 + points.len() * 16 + points.len().min(LINKED) * 128);
    // Writing into a String cannot fail.
    _ = write_svg(&mut text, source, points);
    text
}

fn write_svg(out: &mut String, source: &Source, points: &[MapPoint]) -> fmt::Result {
    let key = SourceKey::from(source);
    let (name, linked) = (format!("{} {}", key.model, key.source), linked(points));
    write!(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" lang=\"en\"")?;
    write!(out, " aria-labelledby=\"title about\"><title id=\"title\">Map of the features of {}</title>", Xml(&name))?;
    write!(out, "<desc id=\"about\">{}</desc><style>{STYLE}", Xml(&about(source, points, linked.len())))?;
    for category in Category::ALL {
        let (light, dark) = match hue(category) {
            Some(hue) => (format!("0.52 0.17 {hue}"), format!("0.76 0.125 {hue}")),
            None => ("0.74 0.008 80".to_owned(), "0.46 0.012 70".to_owned()),
        };
        write!(out, ".{}{{--c:light-dark(oklch({light}),oklch({dark}))}}", category.as_str())?;
    }
    write!(out, "</style><text class=\"t\" x=\"20\" y=\"38\">Map of the features of {}</text>", Xml(&name))?;
    write!(out, "<a class=\"s\" href=\"{}\">", Xml(&source_path(&key)))?;
    write!(out, "<text x=\"980\" y=\"38\" text-anchor=\"end\">Back to the list</text></a>")?;
    legend(out, points)?;
    write!(out, "<g class=\"m\">")?;
    let place = scale(points);
    for category in Category::ALL {
        let mut dots = points.iter().filter(|one| one.category == category && !linked.contains_key(&one.index));
        if let Some(first) = dots.next() {
            write!(out, "<path class=\"{}\" d=\"", category.as_str())?;
            std::iter::once(first).chain(dots).try_for_each(|one| dot(out, place(one)))?;
            write!(out, "\"/>")?;
        }
    }
    for one in linked.values() {
        write!(out, "<a href=\"{}\"><title>{}</title>", Xml(&feature_path(&key, one.index)), Xml(&title(one)))?;
        write!(out, "<path class=\"{}\" d=\"", one.category.as_str())?;
        dot(out, place(one))?;
        write!(out, "\"/></a>")?;
    }
    write!(out, "</g>")?;
    for (line, words) in notes(source, points.len(), linked.len()).iter().enumerate() {
        write!(out, "<text class=\"f\" x=\"20\" y=\"{}\">{}</text>", HEIGHT - 30 + 20 * line as u32, Xml(words))?;
    }
    write!(out, "</svg>")
}

/// A dot is a line without length and with round ends.
fn dot(out: &mut String, (x, y): (f32, f32)) -> fmt::Result {
    write!(out, "M{x:.1} {y:.1}h0")
}

/// The points that have links, by index: all, or those with the best labels.
fn linked(points: &[MapPoint]) -> BTreeMap<u32, &MapPoint> {
    let mut chosen: Vec<&MapPoint> = points.iter().collect();
    if chosen.len() > LINKED {
        let worth = |one: &MapPoint| (one.score.unwrap_or(-1.0), one.label.is_some());
        chosen.sort_by(|a, b| {
            let ((a_score, a_label), (b_score, b_label)) = (worth(a), worth(b));
            b_score.total_cmp(&a_score).then(b_label.cmp(&a_label)).then(a.index.cmp(&b.index))
        });
        chosen.truncate(LINKED);
    }
    chosen.into_iter().map(|one| (one.index, one)).collect()
}

/// From the map's coordinates to the picture's: the same scale for both, and the middle in the middle.
fn scale(points: &[MapPoint]) -> impl Fn(&MapPoint) -> (f32, f32) {
    let bounds = |of: fn(&MapPoint) -> f32| {
        let (low, high) = points.iter().map(of).fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(v), h.max(v)));
        if points.is_empty() { (0.0, 0.0) } else { (low, high) }
    };
    let ((left, right), (bottom, top)) = (bounds(|one| one.x), bounds(|one| one.y));
    let scale = SIDE / (right - left).max(top - bottom).max(f32::MIN_POSITIVE);
    // Halves first: coordinates of other programs may be as large as floats are.
    let (middle_x, middle_y) = (left / 2.0 + right / 2.0, bottom / 2.0 + top / 2.0);
    let scale = if scale.is_finite() { scale } else { 0.0 };
    move |one: &MapPoint| {
        let (x, y) = ((one.x - middle_x) * scale, (middle_y - one.y) * scale);
        (LEFT + SIDE / 2.0 + x.clamp(-SIDE, SIDE), TOP + SIDE / 2.0 + y.clamp(-SIDE, SIDE))
    }
}

/// How many points each category has, largest first.
fn counts(points: &[MapPoint]) -> Vec<(Category, usize)> {
    let points_of = |category: Category| (category, points.iter().filter(|one| one.category == category).count());
    let mut counts: Vec<(Category, usize)> = Category::ALL.map(points_of).into_iter().filter(|one| one.1 > 0).collect();
    counts.sort_by_key(|one| std::cmp::Reverse(one.1));
    counts
}

fn legend(out: &mut String, points: &[MapPoint]) -> fmt::Result {
    for (number, (category, points)) in counts(points).into_iter().enumerate() {
        let (x, y) = (26 + number % IN_ROW * NAME_WIDTH, 70 + number / IN_ROW * ROW_HEIGHT);
        write!(out, "<path class=\"{}\" d=\"M{x} {}h0\"/>", category.as_str(), y - 5)?;
        write!(out, "<text x=\"{}\" y=\"{y}\">{} {}</text>", x + 12, category_name(category), grouped(points))?;
    }
    Ok(())
}

fn grouped(points: usize) -> String {
    count(points as u64)
}

fn category_name(category: Category) -> &'static str {
    if category == Category::Unknown { "no category" } else { category.as_str() }
}

fn title(one: &MapPoint) -> String {
    let MapPoint { index, label, category, .. } = one;
    match label {
        None => format!("#{index}"),
        Some(label) if *category == Category::Unknown => format!("#{index} {label}"),
        Some(label) => format!("#{index} {label} ({})", category.as_str()),
    }
}

/// The picture in words.
fn about(source: &Source, points: &[MapPoint], linked: usize) -> String {
    let categories: Vec<String> = counts(points)
        .iter()
        .map(|&(category, points)| format!("{} {}", category_name(category), grouped(points)))
        .collect();
    let (all, categories) = (notes(source, points.len(), linked).join(" "), categories.join(", "));
    if points.is_empty() { all } else { format!("{all} By category: {categories}.") }
}

/// What is drawn, and what it is made of.
fn notes(source: &Source, points: usize, linked: usize) -> Vec<String> {
    if points == 0 {
        return vec![
            "The files of this source have no places of features.".to_owned(),
            "lmm-scope map --artifacts DIR adds them; then start the server again.".to_owned(),
        ];
    }
    let links = if linked < points {
        format!(", {} of them, those with the best labels, with a link and a name", grouped(linked))
    } else {
        String::new()
    };
    let Source { provenance, latents, .. } = source;
    vec![
        format!(
            "{} of {} features{links}. Near each other: their decoder rows are alike.",
            grouped(points),
            count(*latents)
        ),
        format!(
            "UMAP of the decoder rows by cosine; distances have no unit. SAE {}, {}.",
            provenance.sae_revision, provenance.model
        ),
    ]
}

/// Text within an element or an attribute. Labels may be anything that a model has written.
struct Xml<'a>(&'a str);

impl fmt::Display for Xml<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                // XML has no place for these.
                '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => f.write_char(' ')?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use resvg::usvg;
    use std::collections::BTreeSet;

    fn point(index: u32) -> MapPoint {
        let angle = index as f32 * 0.1;
        let label = index.is_multiple_of(2).then(|| "a <b> & \"c\"\u{1}".to_owned());
        let category = if index.is_multiple_of(2) { Category::ALL[index as usize % 9] } else { Category::Unknown };
        let score = index.is_multiple_of(4).then_some(index as f32 / 1e6);
        MapPoint { index, x: 3.0 + angle.cos() * angle, y: angle.sin() * angle, label, category, score }
    }

    fn source() -> Source {
        Source { model_id: "tiny".into(), source_id: "1-res-64".into(), latents: 100_000, ..Source::default() }
    }

    /// Parses it, so that it is well formed.
    fn parsed(text: &str) -> usvg::Tree {
        usvg::Tree::from_str(text, &usvg::Options::default()).unwrap_or_else(|error| panic!("{error}: {text:.500}"))
    }

    #[test]
    fn every_feature_is_a_dot_with_a_link_and_a_name() {
        let points: Vec<MapPoint> = (0..40).map(point).collect();
        let text = svg(&source(), &points);
        parsed(&text);
        assert_eq!(text.matches("<a href=\"/tiny/1-res-64/").count(), 40);
        assert!(text.contains("<a href=\"/tiny/1-res-64/4\"><title>#4 a &lt;b&gt; &amp; &quot;c&quot; "), "{text}");
        assert!(text.contains("<title>#3</title>") && text.contains("40 of 100,000 features. "));
        assert!(text.contains("By category: no category 20, "), "{text}");
        assert!(!text.contains("NaN") && !text.contains("inf"));
    }

    #[test]
    fn a_hundred_thousand_features_stay_small() {
        let points: Vec<MapPoint> = (0..100_000).map(point).collect();
        let text = svg(&source(), &points);
        parsed(&text);
        assert_eq!((text.matches("<a href").count(), text.matches("h0").count()), (LINKED, 100_000 + 10));
        assert!(text.len() < 3 << 20, "{} bytes", text.len());
        // The best labels are linked.
        assert!(text.contains("/99996\">") && !text.contains("/99997\">") && !text.contains("/4\">"));
    }

    #[test]
    fn places_fill_the_picture_whatever_their_scale() {
        for (by, equal) in [(1.0, false), (1e-3, false), (1e30, false), (1.0, true)] {
            let mut points: Vec<MapPoint> = (0..50).map(point).collect();
            for one in &mut points {
                (one.x, one.y) = if equal { (2.5, 2.5) } else { (one.x * by, one.y * by) };
            }
            let place = scale(&points);
            let places: Vec<(f32, f32)> = points.iter().map(place).collect();
            let inside = |value: f32, from: f32| (from - 0.1..=from + SIDE + 0.1).contains(&value);
            assert!(places.iter().all(|(x, y)| inside(*x, LEFT) && inside(*y, TOP)), "{by}: {places:?}");
            let ends = places.iter().fold((SIDE, 0.0f32), |(low, high), (_, y)| (low.min(y - TOP), high.max(y - TOP)));
            assert!(equal || (ends.0 < 1.0 && ends.1 > SIDE - 1.0), "{by}: {ends:?}");
        }
    }

    #[test]
    fn no_places_are_said() {
        let text = svg(&source(), &[]);
        parsed(&text);
        assert!(text.contains("have no places") && !text.contains("<path class"));
    }

    #[test]
    fn categories_have_colours_of_their_own() {
        let hues: BTreeSet<Option<u32>> = Category::ALL.into_iter().map(hue).collect();
        assert_eq!(hues.len(), Category::ALL.len());
        assert!(hues.iter().flatten().all(|hue| *hue < 380));
    }
}
