//! The vocabulary of the pocket demo: what can be drawn, and the words for it.

use anyhow::{Context, Result};

/// The committed table: concept, group, article, emoji labels.
const TABLE: &str = include_str!("../../data/concepts.tsv");

/// Something a sprite shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concept {
    pub name: String,
    pub group: String,
    /// `a`, `an`, `some` (plural) or empty (mass nouns).
    pub article: String,
    /// CLDR short names of the emoji that show it.
    pub emoji_labels: Vec<String>,
}

impl Concept {
    /// True for faces: the concept is the emotion.
    pub fn is_emotion(&self) -> bool {
        self.group == "emotion"
    }

    /// The thing as a noun phrase without colour: `a cat`, `fries`, `a happy face`.
    pub fn phrase(&self, adjective: Option<&str>) -> String {
        let noun = if self.is_emotion() { format!("{} face", self.name) } else { self.name.clone() };
        let words = match adjective {
            Some(adjective) => format!("{adjective} {noun}"),
            None => noun,
        };
        let vowel = words.starts_with(['a', 'e', 'i', 'o', 'u']);
        match self.article.as_str() {
            "a" | "an" => format!("{} {words}", if vowel { "an" } else { "a" }),
            _ if self.is_emotion() => format!("{} {words}", if vowel { "an" } else { "a" }),
            _ => words,
        }
    }

    /// `is` or `are`.
    pub fn verb(&self) -> &'static str {
        if self.article == "some" { "are" } else { "is" }
    }
}

/// All concepts in the table's order; their position is their class.
pub fn concepts() -> Result<Vec<Concept>> {
    TABLE
        .lines()
        .skip(1)
        .map(|line| {
            let mut fields = line.split('\t').map(str::to_string);
            let mut next = || fields.next().with_context(|| format!("concepts.tsv: too few columns in `{line}`"));
            Ok(Concept {
                name: next()?,
                group: next()?,
                article: next()?,
                emoji_labels: next()?.split('|').map(str::to_string).collect(),
            })
        })
        .collect()
}

/// Colour words, in the order of their class.
pub const COLORS: [&str; 11] =
    ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray"];

/// The nearest colour word to an sRGB colour.
pub fn color_word(rgb: [f32; 3]) -> usize {
    let [r, g, b] = rgb;
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = max - min;
    let name = |word: &str| COLORS.iter().position(|color| *color == word).unwrap_or(0);
    if max < 60.0 {
        return name("black");
    }
    if chroma < 32.0 {
        return name(if max > 205.0 { "white" } else { "gray" });
    }
    let hue = if max == r {
        60.0 * ((g - b) / chroma).rem_euclid(6.0)
    } else if max == g {
        60.0 * ((b - r) / chroma + 2.0)
    } else {
        60.0 * ((r - g) / chroma + 4.0)
    };
    let dark = max < 165.0;
    name(match hue {
        h if h < 14.0 => {
            if dark && chroma < 110.0 {
                "brown"
            } else {
                "red"
            }
        }
        h if h < 40.0 => {
            if max < 190.0 {
                "brown"
            } else {
                "orange"
            }
        }
        h if h < 68.0 => {
            if dark {
                "brown"
            } else {
                "yellow"
            }
        }
        h if h < 165.0 => "green",
        h if h < 255.0 => "blue",
        h if h < 292.0 => "purple",
        h if h < 345.0 => {
            if dark {
                "purple"
            } else {
                "pink"
            }
        }
        _ => {
            if chroma < 120.0 && max > 220.0 {
                "pink"
            } else {
                "red"
            }
        }
    })
}

/// The nine zones of a picture, row by row.
pub const ZONES: [&str; 9] =
    ["top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right"];

/// Zone of a point given in fractions of the picture's sides.
pub fn zone(x: f32, y: f32) -> usize {
    let third = |value: f32| ((value * 3.0) as usize).min(2);
    third(y) * 3 + third(x)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let concepts = concepts().unwrap();
        assert!(concepts.len() > 100);
        assert!(concepts.iter().all(|concept| !concept.emoji_labels.is_empty()));
        assert!(concepts.iter().filter(|concept| concept.is_emotion()).count() >= 10);
        let mut names: Vec<&str> = concepts.iter().map(|concept| concept.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), concepts.len(), "concept names are unique");
    }

    #[test]
    fn articles_follow_the_next_word() {
        let concepts = concepts().unwrap();
        let find = |name: &str| concepts.iter().find(|concept| concept.name == name).unwrap();
        assert_eq!(find("apple").phrase(None), "an apple");
        assert_eq!(find("apple").phrase(Some("red")), "a red apple");
        assert_eq!(find("cat").phrase(Some("orange")), "an orange cat");
        assert_eq!(find("fries").phrase(Some("yellow")), "yellow fries");
        assert_eq!(find("angry").phrase(None), "an angry face");
    }

    #[test]
    fn colors_have_their_usual_names() {
        let word = |rgb| COLORS[color_word(rgb)];
        assert_eq!(word([220.0, 30.0, 30.0]), "red");
        assert_eq!(word([255.0, 200.0, 40.0]), "yellow");
        assert_eq!(word([60.0, 120.0, 230.0]), "blue");
        assert_eq!(word([120.0, 80.0, 50.0]), "brown");
        assert_eq!(word([250.0, 250.0, 250.0]), "white");
        assert_eq!(word([20.0, 20.0, 25.0]), "black");
        assert_eq!(word([255.0, 150.0, 190.0]), "pink");
    }
}
