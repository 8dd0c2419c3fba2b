//! The CLIP score of a label (paper, section 4.1): `100 · cos` of its words and of the feature's top pictures, mean
//! over these.
//!
//! Not clipped at 0, as in the paper, whose own code has `openai/clip-vit-base-patch16`. The pictures are whole:
//! nothing says where in them the feature fires.
//!
//! The *baseline* is the same label beside random pictures on which the feature is not known to fire. It is far from 0:
//! any words are somewhat like any picture, and the paper's own is 18.2 beside 23.6.

use super::{Measured, PendingScore, ScoreError, Scorer, Shown, Subject, monosemanticity::ImageEmbedder};
use burn::tensor::backend::Backend;
use model::{ClipModel, clip_score::cosine, picture::decode_picture};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Top pictures, as in the paper.
const TOP: usize = 5;
/// Random pictures: more than top ones, so that a single feature's baseline is not one picture's luck.
const RANDOM: usize = 20;

/// Turns words into vectors as well, in the same space as pictures.
pub trait TextEmbedder: ImageEmbedder {
    /// The embedding of a text, of length 1; those of pictures must be so too.
    ///
    /// # Errors
    /// When the model fails.
    fn embed_text(&self, text: &str) -> Result<Vec<f32>, ScoreError>;
}

/// [`ClipModel`] that remembers the pictures it has seen: features share them, and so do scores.
pub struct Clip<B: Backend> {
    model: ClipModel<B>,
    /// Embeddings by the SHA-256 of the picture's bytes.
    known: Mutex<HashMap<[u8; 32], Arc<[f32]>>>,
}

impl<B: Backend> Clip<B> {
    /// Loads a checkpoint folder onto `device`.
    ///
    /// # Errors
    /// Those of [`ClipModel::load`].
    pub fn load(dir: &Path, device: &B::Device) -> Result<Self, model::Error> {
        Ok(Self { model: ClipModel::load(dir, device)?, known: Mutex::default() })
    }
}

fn setup(error: impl ToString) -> ScoreError {
    ScoreError::Setup { reason: error.to_string() }
}

impl<B: Backend> ImageEmbedder for Clip<B> {
    fn embed(&self, picture: &[u8]) -> Result<Vec<f32>, ScoreError> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key: [u8; 32] = Sha256::digest(picture).into();
        let found = known().get(&key).cloned();
        if let Some(found) = found {
            return Ok(found.to_vec());
        }
        // Not under the lock: it takes long. At worst two scores embed the same picture.
        let embedding = self.model.image_embedding(&decode_picture(picture).map_err(setup)?).map_err(setup)?;
        known().insert(key, embedding.as_slice().into());
        Ok(embedding)
    }
}

impl<B: Backend> TextEmbedder for Clip<B> {
    fn embed_text(&self, text: &str) -> Result<Vec<f32>, ScoreError> {
        self.model.text_embedding(text).map_err(setup)
    }
}

/// How well a label fits the pictures on which its feature fires most.
pub struct ClipScorer {
    embedder: Arc<dyn TextEmbedder>,
    author: String,
}

impl ClipScorer {
    /// `embedder_name`: model and revision, for people.
    pub fn new(embedder: Arc<dyn TextEmbedder>, embedder_name: &str) -> Self {
        Self { embedder, author: format!("{embedder_name}, top {TOP} pictures, 100·cos") }
    }

    fn measure(&self, subject: &Subject) -> Result<Option<Measured>, ScoreError> {
        let label = subject.explanation.description.trim();
        if label.is_empty() || subject.shown.is_empty() || subject.random.is_empty() {
            return Ok(None);
        }
        let text = self.embedder.embed_text(label)?;
        let score = |shown: &Shown| match self.embedder.embed(&shown.picture) {
            Ok(picture) => Ok(100.0 * cosine(&picture, &text)),
            Err(error) => Err(ScoreError::Picture { id: shown.id().to_owned(), reason: error.to_string() }),
        };
        let scores = |of: &[Shown], count: usize| of.iter().take(count).map(score).collect::<Result<Vec<f32>, _>>();
        Ok(Measured::mean(&scores(&subject.shown, TOP)?, &scores(&subject.random, RANDOM)?, subject.seed))
    }
}

impl Scorer for ClipScorer {
    fn type_name(&self) -> &str {
        "clip score"
    }

    fn author(&self) -> &str {
        &self.author
    }

    fn score<'a>(&'a self, subject: &'a Subject) -> PendingScore<'a> {
        Box::pin(async move { tokio::task::block_in_place(|| self.measure(subject)) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use api::{Activation, ActivationImage, Explanation, Picture};
    use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
    use model::Cpu;
    use std::io::Cursor;

    /// A picture's first byte is its angle in degrees; texts lie at 0.
    struct Angles;

    impl ImageEmbedder for Angles {
        fn embed(&self, picture: &[u8]) -> Result<Vec<f32>, ScoreError> {
            let angle = f32::from(*picture.first().ok_or_else(|| setup("no bytes"))?).to_radians();
            Ok(vec![angle.cos(), angle.sin()])
        }
    }

    impl TextEmbedder for Angles {
        fn embed_text(&self, _: &str) -> Result<Vec<f32>, ScoreError> {
            Ok(vec![1.0, 0.0])
        }
    }

    fn shown(id: &str, picture: Vec<u8>) -> Shown {
        let image = ActivationImage { picture: Picture { id: id.into(), ..Picture::default() }, grid: [2, 2] };
        Shown { activation: Activation { image, ..Activation::default() }, picture }
    }

    fn subject(label: &str, top: &[&[u8]], random: &[&[u8]]) -> Subject {
        let all = |name: &str, of: &[&[u8]]| {
            of.iter().enumerate().map(|(at, bytes)| shown(&format!("{name}-{at}"), bytes.to_vec())).collect::<Vec<_>>()
        };
        let explanation = Explanation { description: label.into(), ..Explanation::default() };
        Subject { explanation, shown: all("top", top), random: all("random", random), ..Subject::default() }
    }

    async fn score(subject: &Subject) -> Result<Option<Measured>, ScoreError> {
        ClipScorer::new(Arc::new(Angles), "angles").score(subject).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_score_is_a_hundred_cosines_of_the_top_pictures_and_may_be_negative() {
        let (straight, right, back): (&[u8], &[u8], &[u8]) = (&[0], &[90], &[180]);
        let measured = score(&subject("a cat", &[&[60], straight], &[right])).await.unwrap().unwrap();
        assert!((measured.value - 75.0).abs() < 1e-4 && measured.baseline.abs() < 1e-4, "{measured:?}");
        assert_eq!(measured.samples, 2);
        assert!(measured.interval[0] < 51.0 && measured.interval[1] > 99.0, "{measured:?}");
        // The sixth is not a top picture any more.
        let six = [straight, straight, straight, straight, straight, back];
        let measured = score(&subject("a cat", &six, &[back])).await.unwrap().unwrap();
        assert!((measured.value - 100.0).abs() < 1e-4 && (measured.baseline + 100.0).abs() < 1e-4, "{measured:?}");
        assert_eq!(measured.samples, 5);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_words_or_pictures_there_is_no_score() {
        assert_eq!(score(&subject(" ", &[&[0]], &[&[0]])).await.unwrap(), None);
        assert_eq!(score(&subject("a cat", &[], &[&[0]])).await.unwrap(), None);
        assert_eq!(score(&subject("a cat", &[&[0]], &[])).await.unwrap(), None, "nothing to compare with");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_damaged_picture_is_named() {
        let error = score(&subject("a cat", &[&[0], &[]], &[&[0]])).await.unwrap_err();
        assert_eq!(error.to_string(), "picture top-1: no bytes");
        let scorer = ClipScorer::new(Arc::new(Angles), "angles");
        assert_eq!((scorer.type_name(), scorer.author()), ("clip score", "angles, top 5 pictures, 100·cos"));
    }

    fn png(level: u8) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let picture = RgbImage::from_fn(40, 30, |x, y| Rgb([level, (x * 6) as u8, (y * 8) as u8]));
        DynamicImage::from(picture).write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    /// The small random checkpoint that the model's own tests compare with `transformers`.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_real_model_sees_each_picture_once_and_gives_its_own_score() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/clip/newer");
        let clip = Arc::new(Clip::<Cpu>::load(&folder, &Default::default()).unwrap());
        let (first, second) = (png(0), png(255));
        let subject = subject("a red boat", &[&first, &first], &[&second]);
        let scorer = ClipScorer::new(clip.clone(), "clip");
        let measured = scorer.score(&subject).await.unwrap().unwrap();
        let expected = |bytes: &[u8]| clip.model.clip_score(&decode_picture(bytes).unwrap(), "a red boat").unwrap();
        assert!((measured.value - expected(&first)).abs() < 1e-3, "{measured:?}");
        assert!((measured.baseline - expected(&second)).abs() < 1e-3, "{measured:?}");
        assert!((measured.value - measured.baseline).abs() > 0.1, "{measured:?}");
        let known = || clip.known.lock().unwrap().len();
        assert_eq!(known(), 2);
        assert_eq!(clip.embed(&first).unwrap(), clip.embed(&first).unwrap());
        assert_eq!(known(), 2);
        assert!(clip.embed(b"no picture").unwrap_err().to_string().contains("not a picture"));
    }
}
