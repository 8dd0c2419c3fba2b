//! Parts of pages. They take data and callbacks, never fetch.

#[cfg(not(feature = "ssr"))]
mod at_once;
mod chrome;
mod controls;
mod erase;
mod examples;
mod feature_card;
mod feature_row;
mod lit_picture;
mod load;
mod patch_picture;
mod plots;
mod tokens;

pub use chrome::{Footer, Header, Help};
pub use controls::{Choice, Pager, Picker, SearchField, Switch, View};
pub use erase::Erase;
pub use examples::{ColourBar, Examples};
pub use feature_card::{FeatureCard, MiniFeature, category_name};
pub use feature_row::FeatureRow;
pub use lit_picture::LitPicture;
pub use load::{Load, ProblemView, Skeleton};
pub use patch_picture::PatchPicture;
pub use plots::{HistogramPlot, ProvenanceNote, ScoreAxis, ScoreMark, Stat, WordBars};
pub use tokens::{TextExample, TokenStrip};
