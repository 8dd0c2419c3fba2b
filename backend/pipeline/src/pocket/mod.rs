//! `lmm-scope pocket`: builds the embedded demo from scratch, stage by stage. Every stage resumes after a kill.
//!
//! ```text
//! pack ─▶ train-tower ─▶ train-text ─▶ train-lmm ─▶ train-sae ─▶ index ─▶ shards ─▶ report
//! ```

pub mod cache;
pub mod concepts;
pub mod conversation;
pub mod credits;
pub mod dissect;
pub mod earlier;
pub mod index;
pub mod lmm;
pub mod pack;
pub mod photographs;
pub mod plan;
pub mod report;
pub mod sae;
pub mod scene;
pub mod shards;
pub mod sprites;
pub mod tower;
pub mod trainer;
pub mod words;

use anyhow::{Context, Result, bail};
use burn::tensor::backend::AutodiffBackend;
use clap::{Args, ValueEnum};
use conversation::Writer;
use earlier::Earlier;
use plan::{Plan, Size};
use sprites::Sprites;
use std::path::PathBuf;
use std::sync::Arc;
use store::files::names;

/// The photographs beside `sprites.parquet`.
pub const PHOTOGRAPHS: &str = "photographs.parquet";

/// A stage of the build, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Stage {
    /// Sprites out of the emoji packages.
    Pack,
    /// Photographs out of the resource files of `gcompris-qt-data`.
    PackPhotographs,
    /// The vision tower.
    TrainTower,
    /// Tokenizer, and the language model on texts.
    TrainText,
    /// The whole model on scenes.
    TrainLmm,
    /// The sparse autoencoder.
    TrainSae,
    /// Statistics, examples, labels, neighbours.
    Index,
    /// The autoencoder as browsers fetch it.
    Shards,
    /// Accuracies and tables, written to --report.
    Report,
}

impl Stage {
    /// Everything after the two packs, whose results are committed.
    const BUILD: [Self; 7] =
        [Self::TrainTower, Self::TrainText, Self::TrainLmm, Self::TrainSae, Self::Index, Self::Shards, Self::Report];
}

/// `lmm-scope pocket`
#[derive(Debug, Clone, Args)]
pub struct PocketArgs {
    /// Stages to run; all but the packs if none is named (those need the downloaded packages).
    #[arg(value_enum)]
    pub stages: Vec<Stage>,
    /// How large the demo is built.
    #[arg(long, value_enum, default_value_t = Size::Full, env = "LMM_SCOPE_POCKET_SIZE")]
    pub size: Size,
    /// Folder with the npm archives of the emoji packages (for `pack`).
    #[arg(long, env = "LMM_SCOPE_PACKAGES")]
    pub packages: Option<PathBuf>,
    /// Folder with the `.rcc` files of Debian's `gcompris-qt-data` (for `pack-photographs`).
    #[arg(long, default_value = "/usr/share/gcompris-qt/rcc", env = "LMM_SCOPE_RESOURCES")]
    pub resources: PathBuf,
    /// Checkpoints of the build [default: target/pocket, or target/pocket-smoke].
    #[arg(long, env = "LMM_SCOPE_POCKET_WORK")]
    pub work: Option<PathBuf>,
    /// Where the artefacts go [default: public/pocket; of the smoke size target/pocket-smoke/out].
    #[arg(long, env = "LMM_SCOPE_POCKET_OUT")]
    pub out: Option<PathBuf>,
    /// Folder of `sprites.parquet`.
    #[arg(long, default_value = "public/pocket", env = "LMM_SCOPE_SPRITES")]
    pub sprites: PathBuf,
    /// Folder of an earlier build's artefacts whose weights the stages without a checkpoint begin with.
    #[arg(long, env = "LMM_SCOPE_START_FROM")]
    pub start_from: Option<PathBuf>,
    /// The page that `report` writes [default: docs/pocket.md; of the smoke size target/pocket-smoke/pocket.md].
    #[arg(long, env = "LMM_SCOPE_POCKET_REPORT")]
    pub report: Option<PathBuf>,
    /// `cpu`, or `libtorch` in a build with that feature.
    #[arg(long, default_value = "cpu", env = "LMM_SCOPE_DEVICE")]
    pub device: String,
    /// Pictures the tower sees, instead of the size's own number; more than before goes on training.
    #[arg(long, env = "LMM_SCOPE_POCKET_TOWER_SAMPLES")]
    pub tower_samples: Option<usize>,
    /// Texts of `train-text`, likewise.
    #[arg(long, env = "LMM_SCOPE_POCKET_TEXT_SAMPLES")]
    pub text_samples: Option<usize>,
    /// Samples of `train-lmm`, likewise.
    #[arg(long, env = "LMM_SCOPE_POCKET_LMM_SAMPLES")]
    pub lmm_samples: Option<usize>,
    /// Tokens of `train-sae`, likewise.
    #[arg(long, env = "LMM_SCOPE_POCKET_SAE_TOKENS")]
    pub sae_tokens: Option<usize>,
}

impl PocketArgs {
    /// A path that was named, or its default; the smoke size never writes over the committed demo.
    fn or_default(&self, named: &Option<PathBuf>, full: &str, smoke: &str) -> PathBuf {
        let default = if self.size == Size::Full { full } else { smoke };
        named.clone().unwrap_or_else(|| default.into())
    }

    fn work(&self) -> PathBuf {
        self.or_default(&self.work, "target/pocket", "target/pocket-smoke")
    }

    fn out(&self) -> PathBuf {
        self.or_default(&self.out, "public/pocket", "target/pocket-smoke/out")
    }

    fn report(&self) -> PathBuf {
        self.or_default(&self.report, "docs/pocket.md", "target/pocket-smoke/pocket.md")
    }
}

/// Runs the stages that were named.
///
/// # Errors
/// A stage whose inputs are missing; an unreadable package or checkpoint; an unknown device.
pub fn run(args: PocketArgs) -> Result<()> {
    match args.device.as_str() {
        "cpu" => run_on::<burn::backend::Autodiff<burn::backend::Flex>>(&args, Default::default()),
        #[cfg(feature = "libtorch")]
        "libtorch" => run_on::<burn::backend::Autodiff<burn::backend::LibTorch<f32>>>(
            &args,
            burn::backend::libtorch::LibTorchDevice::Cpu,
        ),
        other => bail!(
            "--device {other}: this build knows cpu{}",
            if cfg!(feature = "libtorch") { " and libtorch" } else { "" }
        ),
    }
}

fn plan(args: &PocketArgs) -> Plan {
    let mut plan = Plan::new(args.size);
    plan.tower_samples = args.tower_samples.unwrap_or(plan.tower_samples);
    plan.text_samples = args.text_samples.unwrap_or(plan.text_samples);
    plan.lmm_samples = args.lmm_samples.unwrap_or(plan.lmm_samples);
    plan.sae_tokens = args.sae_tokens.unwrap_or(plan.sae_tokens);
    plan
}

fn run_on<B: AutodiffBackend>(args: &PocketArgs, device: B::Device) -> Result<()> {
    let plan = plan(args);
    let sprite_file = args.sprites.join(names::SPRITES);
    let stages: &[Stage] = if args.stages.is_empty() { &Stage::BUILD } else { &args.stages };
    for stage in stages {
        tracing::info!(?stage, "stage");
        if *stage == Stage::Pack {
            let packages =
                args.packages.as_deref().context("`pack` needs --packages, the folder of the npm archives")?;
            pack::pack(packages, &sprite_file)?;
            continue;
        }
        if *stage == Stage::PackPhotographs {
            photographs::pack_photographs(&args.resources, plan.display_side as u32, &args.sprites.join(PHOTOGRAPHS))?;
            continue;
        }
        let sprites = Arc::new(Sprites::load(&sprite_file)?);
        run_stage::<B>(*stage, args, &plan, &sprites, &device)?;
    }
    Ok(())
}

fn run_stage<B: AutodiffBackend>(
    stage: Stage,
    args: &PocketArgs,
    plan: &Plan,
    sprites: &Arc<Sprites>,
    device: &B::Device,
) -> Result<()> {
    let (work, out) = (&args.work(), &args.out());
    let earlier = args.start_from.as_deref().map(Earlier::open).transpose()?;
    let earlier = earlier.as_ref();
    if stage == Stage::TrainTower {
        return tower::train_tower::<B>(plan, sprites, &work.join("tower"), earlier, device);
    }
    let model_dir = out.join("model");
    if stage == Stage::TrainText && !model_dir.join("tokenizer.json").exists() {
        let corpus = conversation::corpus(sprites, 20_000);
        let tokenizer = model::tokenize::train_tokenizer(corpus.into_iter(), plan.vocabulary)?;
        model::tokenize::save_tokenizer(&tokenizer, &model_dir)?;
    }
    let writer = Writer::load(&model_dir).context("`train-text` makes the tokenizer: run it first")?;
    let config = plan.config(writer.tokenizer.get_vocab_size(true));
    match stage {
        Stage::TrainText => lmm::train_text::<B>(plan, sprites, &writer, &config, &work.join("text"), earlier, device),
        Stage::TrainLmm => {
            lmm::train_lmm::<B>(plan, sprites, &writer, &config, work, earlier, device)?;
            lmm::load_lmm::<B>(&config, work, device)?.save(&config, &model_dir)?;
            Ok(())
        }
        Stage::TrainSae => sae::train_sae::<B>(plan, sprites, &writer, &config, work, out, device),
        Stage::Index => {
            let photographs = args.sprites.join(PHOTOGRAPHS);
            credits::write_credits(&args.sprites.join(names::SPRITES), &photographs, out)?;
            index::index::<B::InnerBackend>(plan, sprites, &photographs, out, "f32 (weights f16)", device)
        }
        Stage::Shards => shards::write_shards::<B::InnerBackend>(plan, sprites, out, device),
        Stage::Report => {
            let paths = report::Paths { work, out, photographs: &args.sprites.join(PHOTOGRAPHS), doc: &args.report() };
            report::report::<B::InnerBackend>(plan, sprites, &paths, device)
        }
        Stage::Pack | Stage::PackPhotographs | Stage::TrainTower => Ok(()),
    }
}
