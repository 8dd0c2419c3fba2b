//! Scenes and texts as token sequences with a loss mask.

use super::concepts::Concept;
use super::scene::Scene;
use super::sprites::Sprites;
use super::words::{SceneWords, Turn, text_turn};
use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use tokenizers::Tokenizer;

/// Tokens of one sample; the picture, if any, stands between `before` and `after`.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    pub before: Vec<u32>,
    pub after: Vec<u32>,
    /// For each token of `after`: does the model learn to say it?
    pub learned: Vec<bool>,
}

/// Turns words into [`Sample`]s in the chat template's form.
#[derive(Debug, Clone)]
pub struct Writer {
    pub tokenizer: Tokenizer,
}

const BOS: u32 = 1;
const EOS: u32 = 2;

impl Writer {
    pub fn load(model_dir: &Path) -> Result<Self> {
        let path = model_dir.join("tokenizer.json");
        let tokenizer = Tokenizer::from_file(&path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        Ok(Self { tokenizer })
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, false).map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default()
    }

    /// First token of a concept's name as it stands in a sentence.
    pub fn name_token(&self, concept: &Concept) -> u32 {
        self.ids(&format!(" {}", concept.name)).first().copied().unwrap_or_default()
    }

    /// Adds a turn's question (unless it opens the sample) and answer.
    fn push_turn(&self, sample: &mut Sample, opening: &str, turn: &Turn) {
        let question = self.ids(&format!("{opening}{} ASSISTANT:", turn.question));
        sample.learned.extend(question.iter().map(|_| false));
        sample.after.extend(question);
        let answer = self.ids(&format!(" {}", turn.answer));
        sample.learned.extend(answer.iter().map(|_| true));
        sample.after.extend(answer);
        sample.after.push(EOS);
        sample.learned.push(true);
    }

    /// Questions about one scene, as many as fit into `budget` tokens.
    pub fn scene_chat(&self, sprites: &Sprites, scene: &Scene, budget: usize, rng: &mut ChaCha8Rng) -> Sample {
        let words = SceneWords::new(&sprites.concepts, scene);
        let mut sample = Sample { before: [vec![BOS], self.ids("USER: ")].concat(), ..Sample::default() };
        for turn in 0..8 {
            let mut longer = sample.clone();
            self.push_turn(&mut longer, if turn == 0 { "\n" } else { "USER: " }, &words.turn(rng));
            if longer.after.len() > budget && turn > 0 {
                break;
            }
            sample = longer;
        }
        sample.fit(budget);
        sample
    }

    /// The picture alone, then its caption: the prompt of the paper's cache.
    pub fn scene_caption(&self, sprites: &Sprites, scene: &Scene, budget: usize) -> Sample {
        let after =
            [self.ids(&format!(" {}", SceneWords::new(&sprites.concepts, scene).caption())), vec![EOS]].concat();
        let learned = vec![true; after.len()];
        let mut sample = Sample { before: vec![BOS], after, learned };
        sample.fit(budget);
        sample
    }

    /// Text-only exchanges, as many as fit into `budget` tokens.
    pub fn text_chat(&self, sprites: &Sprites, seed: u64, budget: usize) -> Sample {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut sample = Sample { before: vec![BOS], ..Sample::default() };
        for turn in 0..8 {
            let mut longer = sample.clone();
            self.push_turn(&mut longer, "USER: ", &text_turn(&sprites.concepts, &mut rng));
            if longer.after.len() > budget && turn > 0 {
                break;
            }
            sample = longer;
        }
        sample.fit(budget);
        sample
    }
}

impl Sample {
    /// Cuts or pads `after` to exactly `length` tokens; padding is not learned.
    fn fit(&mut self, length: usize) {
        self.after.resize(length, 0);
        self.learned.resize(length, false);
    }
}

/// The texts that the tokenizer is trained on.
pub fn corpus(sprites: &Sprites, lines: usize) -> Vec<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    (0..lines)
        .map(|_| {
            let turn = if rng.random_bool(0.5) {
                let scene = Scene::random(sprites, super::scene::Style::Seen, rng.random());
                SceneWords::new(&sprites.concepts, &scene).turn(&mut rng)
            } else {
                text_turn(&sprites.concepts, &mut rng)
            };
            format!("USER: {} ASSISTANT: {}", turn.question, turn.answer)
        })
        .collect()
}
