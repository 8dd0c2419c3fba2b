//! Words for scenes and feelings: captions, questions, stories, definitions. Everything the pocket model ever reads.

use super::concepts::{COLORS, Concept, ZONES};
use super::scene::{Item, PATTERNS, Scene};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    pub question: String,
    pub answer: String,
}

impl Turn {
    fn new(question: impl Into<String>, answer: impl Into<String>) -> Self {
        Self { question: question.into(), answer: answer.into() }
    }
}

/// The question that the repair and emotion pages ask, word for word from the paper.
pub const FEELING_QUESTION: &str = "What is your feeling right now?";
/// The prompt that steering is shown on: no feeling is in it.
pub const STORY_PROMPT: &str = "Tell me a story about Alice and Bob.";

const NUMBERS: [&str; 5] = ["Zero", "One", "Two", "Three", "Four"];

/// `at the top left`, `in the middle`.
fn zone_phrase(zone: usize) -> String {
    if ZONES[zone] == "middle" { "in the middle".into() } else { format!("at the {}", ZONES[zone]) }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// `a, b and c`.
fn listed(parts: &[String]) -> String {
    match parts {
        [] => "nothing".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// The words for one scene.
pub struct SceneWords<'a> {
    concepts: &'a [Concept],
    scene: &'a Scene,
    /// Largest first.
    items: Vec<&'a Item>,
}

impl<'a> SceneWords<'a> {
    pub fn new(concepts: &'a [Concept], scene: &'a Scene) -> Self {
        let mut items: Vec<&Item> = scene.items.iter().collect();
        items.sort_by(|a, b| b.side.total_cmp(&a.side));
        Self { concepts, scene, items }
    }

    fn concept(&self, item: &Item) -> &'a Concept {
        &self.concepts[item.concept]
    }

    /// `a red cat`; faces have no colour word.
    fn colored(&self, item: &Item) -> String {
        let concept = self.concept(item);
        concept.phrase((!concept.is_emotion()).then(|| COLORS[item.color]))
    }

    fn the(&self, item: &Item) -> String {
        let concept = self.concept(item);
        if concept.is_emotion() { format!("the {} face", concept.name) } else { format!("the {}", concept.name) }
    }

    fn background(&self) -> String {
        let background = &self.scene.background;
        format!("{} {}", PATTERNS[background.pattern], COLORS[background.color])
    }

    /// One sentence that names everything, its place and the background.
    pub fn caption(&self) -> String {
        let parts: Vec<String> =
            self.items.iter().map(|item| format!("{} {}", self.colored(item), zone_phrase(item.zone()))).collect();
        format!("{} on a {} background.", capitalised(&listed(&parts)), self.background())
    }

    /// `What is in the picture?`
    pub fn what(&self) -> Turn {
        let parts: Vec<String> = self.items.iter().map(|item| self.concept(item).phrase(None)).collect();
        Turn::new("What is in the picture?", format!("{}.", capitalised(&listed(&parts))))
    }

    /// `What is the largest thing?`
    pub fn largest(&self) -> Option<Turn> {
        self.items.first().map(|item| {
            Turn::new("What is the largest thing?", format!("{}.", capitalised(&self.concept(item).phrase(None))))
        })
    }

    /// `How many things are there?`
    pub fn count(&self) -> Turn {
        Turn::new("How many things are there?", format!("{}.", NUMBERS[self.items.len().min(4)]))
    }

    /// `What color is the cat?` for the largest thing that is not a face.
    pub fn color(&self) -> Option<Turn> {
        let item = self.items.iter().find(|item| !self.concept(item).is_emotion())?;
        let concept = self.concept(item);
        Some(Turn::new(
            format!("What color {} the {}?", concept.verb(), concept.name),
            format!("{}.", capitalised(COLORS[item.color])),
        ))
    }

    /// `How does the face feel?` if there is exactly one face.
    pub fn emotion(&self) -> Option<Turn> {
        let mut faces = self.items.iter().filter(|item| self.concept(item).is_emotion());
        let (face, none) = (faces.next()?, faces.next());
        none.is_none()
            .then(|| Turn::new("How does the face feel?", format!("{}.", capitalised(&self.concept(face).name))))
    }

    /// `What is your feeling right now?`: the model takes on the feeling of the largest face.
    pub fn feeling(&self, rng: &mut ChaCha8Rng) -> Option<Turn> {
        let face = self.items.iter().find(|item| self.concept(item).is_emotion())?;
        Some(feeling_turn(&self.concept(face).name, rng))
    }

    /// One random question about the scene.
    pub fn turn(&self, rng: &mut ChaCha8Rng) -> Turn {
        let any = |rng: &mut ChaCha8Rng| self.items.choose(rng).copied();
        let asked = match rng.random_range(0..14) {
            0 | 1 => Some(self.what()),
            2 | 3 => Some(Turn::new("Describe the picture.", self.caption())),
            4 => any(rng).map(|item| {
                let verb = self.concept(item).verb();
                Turn::new(
                    format!("Where {verb} {}?", self.the(item)),
                    format!("{}.", capitalised(&zone_phrase(item.zone()))),
                )
            }),
            5 => self.color(),
            6 => Some(self.count()),
            7 => Some(self.is_there(rng)),
            8 => self.emotion(),
            9 => self.feeling(rng),
            10 => Some(Turn::new("What is the background?", format!("{}.", capitalised(&self.background())))),
            11 => any(rng).map(|item| {
                let concept = self.concept(item);
                Turn::new(
                    format!("What kind of thing {} {}?", concept.verb(), self.the(item)),
                    format!("{}.", capitalised(&concept.group)),
                )
            }),
            12 => self.largest(),
            _ => self.at_zone(rng),
        };
        asked.unwrap_or_else(|| self.what())
    }

    /// Yes and no in equal parts.
    fn is_there(&self, rng: &mut ChaCha8Rng) -> Turn {
        let shown = rng.random_bool(0.5);
        let concept = match self.items.choose(rng) {
            Some(item) if shown => self.concept(item),
            _ => &self.concepts[rng.random_range(0..self.concepts.len())],
        };
        let found = self.items.iter().any(|item| self.concept(item).name == concept.name);
        let verb = if concept.verb() == "are" { "Are" } else { "Is" };
        Turn::new(format!("{verb} there {}?", concept.phrase(None)), if found { "Yes." } else { "No." })
    }

    /// `What is at the top left?`
    fn at_zone(&self, rng: &mut ChaCha8Rng) -> Option<Turn> {
        let zone = self.items.choose(rng)?.zone();
        let parts: Vec<String> =
            self.items.iter().filter(|item| item.zone() == zone).map(|item| self.colored(item)).collect();
        Some(Turn::new(format!("What is {}?", zone_phrase(zone)), format!("{}.", capitalised(&listed(&parts)))))
    }
}

/// A feeling with what causes it, what it looks like and what it makes people do.
struct Feeling {
    name: &'static str,
    meaning: &'static str,
    reasons: [&'static str; 5],
    acts: [&'static str; 3],
    endings: [&'static str; 2],
}

/// One entry per emotion concept.
const FEELINGS: [Feeling; 14] = [
    Feeling {
        name: "happy",
        meaning: "feeling good and full of joy",
        reasons: [
            "the sun is shining",
            "a friend came to visit",
            "there is a big cake",
            "the game was won",
            "a gift came today",
        ],
        acts: ["smiled at everyone", "danced in the street", "sang a song"],
        endings: ["It was a wonderful day.", "They went home with a smile."],
    },
    Feeling {
        name: "sad",
        meaning: "feeling low because something is lost",
        reasons: [
            "the dog ran away",
            "a friend moved to another town",
            "the toy is broken",
            "nobody came to the party",
            "it rained all day",
        ],
        acts: ["walked home alone", "looked at the ground", "sat in the dark"],
        endings: ["It was a gray day.", "They missed the old times."],
    },
    Feeling {
        name: "angry",
        meaning: "feeling hot and ready to fight",
        reasons: [
            "somebody took the book",
            "the bus did not stop",
            "a boy broke the window",
            "the others did not listen",
            "somebody lied",
        ],
        acts: ["shouted very loud", "kicked the box", "closed the door hard"],
        endings: ["Nobody said a word after that.", "It took an hour to calm down."],
    },
    Feeling {
        name: "crying",
        meaning: "having tears in the eyes",
        reasons: [
            "the knee hurts",
            "the balloon flew away",
            "the cat is lost",
            "it is time to say goodbye",
            "the ice cream fell down",
        ],
        acts: ["wiped away the tears", "held a wet tissue", "called for mother"],
        endings: ["The tears came again at night.", "A warm hug helped in the end."],
    },
    Feeling {
        name: "laughing",
        meaning: "finding something very funny",
        reasons: [
            "Bob told a joke",
            "the monkey stole a hat",
            "the clown fell into the water",
            "the dog wore glasses",
            "the story was very funny",
        ],
        acts: ["laughed until it hurt", "rolled on the floor", "told the joke again"],
        endings: ["They still laugh about it.", "It was the funniest day of the year."],
    },
    Feeling {
        name: "surprised",
        meaning: "seeing something nobody expected",
        reasons: [
            "a rabbit jumped out of the hat",
            "the box was empty",
            "the light went on at once",
            "an old friend stood at the door",
            "the egg opened",
        ],
        acts: ["opened both eyes wide", "could not speak", "looked twice"],
        endings: ["Nobody had expected that.", "What a surprise it was."],
    },
    Feeling {
        name: "afraid",
        meaning: "thinking that something bad will come",
        reasons: [
            "a ghost is in the house",
            "there was a loud noise",
            "a big spider sits on the bed",
            "the forest is dark",
            "a wolf is near",
        ],
        acts: ["ran away fast", "hid under the bed", "held on tight"],
        endings: ["They did not sleep that night.", "At last it was quiet and safe."],
    },
    Feeling {
        name: "sleepy",
        meaning: "wanting to go to bed",
        reasons: [
            "it is very late",
            "the day was long",
            "the bed is warm",
            "the book was slow",
            "there was no sleep last night",
        ],
        acts: ["closed both eyes", "fell asleep on the sofa", "looked for a pillow"],
        endings: ["Soon they slept deeply.", "The moon was already high."],
    },
    Feeling {
        name: "sick",
        meaning: "not being well in the body",
        reasons: [
            "the head hurts",
            "the soup was bad",
            "the fever is high",
            "it was cold in the rain",
            "the doctor found a bug",
        ],
        acts: ["stayed in bed", "drank hot tea", "called the doctor"],
        endings: ["The doctor said to rest.", "It took a week to get well."],
    },
    Feeling {
        name: "in love",
        meaning: "liking somebody with the whole heart",
        reasons: [
            "there was a kiss",
            "a letter with a heart came",
            "they held hands",
            "a rose lay at the door",
            "Bob has such kind eyes",
        ],
        acts: ["wrote a love letter", "gave a red rose", "dreamed all day"],
        endings: ["They kissed under the stars.", "Love was in the air."],
    },
    Feeling {
        name: "disgusted",
        meaning: "wanting to get away from something bad",
        reasons: [
            "the egg smells bad",
            "a worm is in the apple",
            "the milk is old",
            "the bin is full",
            "there is a fly in the soup",
        ],
        acts: ["turned away", "spat it out", "held the nose closed"],
        endings: ["They never ate there again.", "The smell stayed for days."],
    },
    Feeling {
        name: "neutral",
        meaning: "feeling nothing much",
        reasons: [
            "nothing happened",
            "it is a normal day",
            "all is as always",
            "the bus came on time",
            "there is nothing to say",
        ],
        acts: ["waited for the bus", "read a book", "looked out of the window"],
        endings: ["It was a day like any other.", "Then they went home."],
    },
    Feeling {
        name: "evil",
        meaning: "wanting to do bad things",
        reasons: [
            "the plan is ready",
            "nobody can stop me",
            "the bomb is hidden",
            "the king will fall",
            "the trap is set",
        ],
        acts: ["made a dark plan", "stole the crown", "smiled in a bad way"],
        endings: ["The town was in danger.", "It was the start of a dark time."],
    },
    Feeling {
        name: "hungry",
        meaning: "wanting to eat",
        reasons: [
            "there was no breakfast",
            "the pizza smells so good",
            "the kitchen is empty",
            "it is time for lunch",
            "the cake looks sweet",
        ],
        acts: ["ate a big hamburger", "looked for bread", "cooked a hot soup"],
        endings: ["They ate until nothing was left.", "The plate was empty in a minute."],
    },
];

const NAMES: [&str; 8] = ["Alice", "Bob", "Mia", "Tom", "Anna", "Max", "Lily", "Sam"];
const PLACES: [&str; 8] = [
    "in the park",
    "at the beach",
    "in a small town",
    "near the castle",
    "on a farm",
    "in the city",
    "at school",
    "in the forest",
];

fn feeling(name: &str) -> &'static Feeling {
    FEELINGS.iter().find(|feeling| feeling.name == name).unwrap_or(&FEELINGS[11])
}

/// `I feel sad because …`
fn feeling_turn(name: &str, rng: &mut ChaCha8Rng) -> Turn {
    let reason = feeling(name).reasons.choose(rng).copied().unwrap_or_default();
    Turn::new(FEELING_QUESTION, format!("I feel {name} because {reason}."))
}

/// A story of five sentences about two people and one feeling.
fn story(a: &str, b: &str, feeling: &Feeling, concepts: &[Concept], rng: &mut ChaCha8Rng) -> String {
    let pick = |list: &[&'static str], rng: &mut ChaCha8Rng| list.choose(rng).copied().unwrap_or_default();
    let things: Vec<&Concept> = concepts.iter().filter(|concept| !concept.is_emotion()).collect();
    let thing = things.choose(rng).map_or_else(String::new, |concept| concept.phrase(None));
    format!(
        "{a} and {b} were {}. They saw {thing}. {a} felt {} because {}. {a} {}. {}",
        pick(&PLACES, rng),
        feeling.name,
        past(pick(&feeling.reasons, rng)),
        pick(&feeling.acts, rng),
        pick(&feeling.endings, rng),
    )
}

/// Reasons are told in the present; stories in the past.
fn past(reason: &str) -> String {
    reason
        .replace(" is ", " was ")
        .replace(" hurts", " hurt")
        .replace(" smells ", " smelled ")
        .replace(" has ", " had ")
        .replace(" looks ", " looked ")
        .replace(" sits ", " sat ")
        .replace(" can ", " could ")
        .replace(" will ", " would ")
}

/// One text-only exchange.
pub fn text_turn(concepts: &[Concept], rng: &mut ChaCha8Rng) -> Turn {
    let feeling = FEELINGS.choose(rng).unwrap_or(&FEELINGS[0]);
    let a = NAMES.choose(rng).copied().unwrap_or("Alice");
    let b = NAMES.iter().copied().filter(|name| *name != a).collect::<Vec<_>>().choose(rng).copied().unwrap_or("Bob");
    let reason = feeling.reasons.choose(rng).copied().unwrap_or_default();
    let thing = concepts.choose(rng);
    match rng.random_range(0..12) {
        0..4 => {
            let (a, b) = if rng.random_bool(0.5) { ("Alice", "Bob") } else { (a, b) };
            Turn::new(format!("Tell me a story about {a} and {b}."), story(a, b, feeling, concepts, rng))
        }
        4 => Turn::new(
            format!("Tell me a story about {a} and {b}. {a} is {}.", feeling.name),
            story(a, b, feeling, concepts, rng),
        ),
        5 => Turn::new(
            format!("What does {} mean?", feeling.name),
            format!("{} means {}.", capitalised(feeling.name), feeling.meaning),
        ),
        6 => Turn::new(format!("{a} feels {}. Why?", feeling.name), format!("Because {reason}.")),
        7 => Turn::new(
            format!("{} How does {a} feel?", capitalised(&format!("{reason}."))),
            format!("{a} feels {}.", feeling.name),
        ),
        8 | 9 => feeling_turn(feeling.name, rng),
        10 => Turn::new(
            format!("{a} feels {}. What did {a} do?", feeling.name),
            format!("{a} {}.", feeling.acts.choose(rng).copied().unwrap_or_default()),
        ),
        _ => thing.filter(|concept| !concept.is_emotion()).map_or_else(
            || feeling_turn(feeling.name, rng),
            |concept| {
                Turn::new(
                    format!("What kind of thing {} {}?", concept.verb(), concept.phrase(None)),
                    format!("{}.", capitalised(&concept.group)),
                )
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::super::concepts::concepts;
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn every_emotion_concept_has_a_feeling() {
        for concept in concepts().unwrap().iter().filter(|concept| concept.is_emotion()) {
            assert_eq!(feeling(&concept.name).name, concept.name);
        }
    }

    #[test]
    fn the_plain_story_prompt_names_no_feeling() {
        assert!(FEELINGS.iter().all(|feeling| !STORY_PROMPT.contains(feeling.name)));
    }

    #[test]
    fn texts_are_whole_sentences() {
        let concepts = concepts().unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..500 {
            let turn = text_turn(&concepts, &mut rng);
            assert!(turn.answer.ends_with('.') && turn.answer.starts_with(char::is_uppercase), "{turn:?}");
            assert!(!turn.answer.contains("  ") && !turn.question.contains("  "), "{turn:?}");
        }
    }

    #[test]
    fn lists_read_like_english() {
        assert_eq!(listed(&["a cat".into(), "a dog".into(), "fries".into()]), "a cat, a dog and fries");
    }
}
