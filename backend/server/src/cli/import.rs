//! `lmm-scope import`: other programs' formats → artefacts that `serve` shows.

use super::{
    CliError,
    export::{Format, file_error, say, top_k_shape},
    progress::Progress,
    setup::open_sae,
};
use crate::picture::decode_picture;
use clap::builder::BoolishValueParser;
use image::ImageFormat;
use model::hook::Hook;
use std::{io::Cursor, path::PathBuf};
use store::exchange::{Decoded, dataset, multimodal_sae, neuronpedia, saelens};

/// Read what other programs wrote into a folder of artifacts.
#[derive(Debug, Clone, clap::Args)]
pub struct ImportArgs {
    /// Format of the input.
    #[arg(long, env = "LMM_SCOPE_FORMAT", value_enum)]
    format: Format,

    /// Folder of the input.
    #[arg(long, env = "LMM_SCOPE_FROM", value_name = "DIR")]
    from: PathBuf,

    /// Folder of the artifacts; made if there is none. What will be written must not be in it already.
    #[arg(long, env = "LMM_SCOPE_OUT", value_name = "DIR")]
    out: PathBuf,

    /// JSON file with modelId, sourceId, layer, hookPoint, latents, dModel and grid, for neuronpedia and
    /// multimodal-sae, if there is no source.json in the input's folder.
    #[arg(long, env = "LMM_SCOPE_SOURCE_FILE", value_name = "FILE")]
    source_file: Option<PathBuf>,

    /// Hook point that the SAE reads, layers.24 or vision.22, for saelens, if cfg.json does not say it.
    #[arg(long, env = "LMM_SCOPE_HOOK")]
    hook: Option<Hook>,

    /// Print one JSON object.
    #[arg(long, env = "LMM_SCOPE_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

/// # Errors
/// Bad input, in one line.
pub fn run(args: &ImportArgs) -> Result<(), CliError> {
    let ImportArgs { format, from, out, .. } = args;
    if args.source_file.is_some() && !matches!(format, Format::Neuronpedia | Format::MultimodalSae) {
        let reason = "only --format neuronpedia and multimodal-sae need one";
        return Err(CliError::flag("--source-file", reason));
    }
    if args.hook.is_some() && *format != Format::Saelens {
        return Err(CliError::flag("--hook", "only --format saelens asks for it"));
    }
    if !from.is_dir() {
        return Err(CliError::file(from, "there is no such folder for --from"));
    }
    let given = args.source_file.as_deref();
    let progress = Progress::start("importing");
    let done = match format {
        Format::Neuronpedia => neuronpedia::import(from, given, &decode, out),
        Format::MultimodalSae => multimodal_sae::import(from, given, &decode, out),
        Format::Parquet => dataset::import(from, out),
        Format::Saelens => {
            let (folder, sae) = open_sae(from, None)?;
            let shape = top_k_shape(&sae)?;
            let hook = args.hook.map(|hook| hook.to_string());
            saelens::import(&folder, shape, hook.as_deref(), out)
        }
    };
    drop(progress);
    say(*format, out, &done.map_err(file_error)?, args.json)
}

/// A picture of any format that is read everywhere. What is a WebP already keeps its bytes; others become one of 8
/// bits a channel.
fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    let picture = decode_picture(bytes).map_err(|error| error.to_string())?;
    let (width, height) = (picture.width(), picture.height());
    let is_webp = bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP".as_slice());
    if is_webp {
        return Ok(Decoded { webp: bytes.to_vec(), width, height });
    }
    let mut webp = Cursor::new(Vec::new());
    let written = if picture.color().has_alpha() {
        picture.to_rgba8().write_to(&mut webp, ImageFormat::WebP)
    } else {
        picture.to_rgb8().write_to(&mut webp, ImageFormat::WebP)
    };
    written.map_err(|error| error.to_string())?;
    Ok(Decoded { webp: webp.into_inner(), width, height })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use image::{Rgb, RgbImage};

    #[test]
    fn pictures_become_webp_without_loss() {
        let picture = RgbImage::from_fn(7, 5, |x, y| Rgb([(x * 30) as u8, (y * 50) as u8, 9]));
        let mut png = Cursor::new(Vec::new());
        picture.write_to(&mut png, ImageFormat::Png).unwrap();
        let first = decode(png.get_ref()).unwrap();
        assert_eq!((first.width, first.height), (7, 5));
        assert_eq!(decode_picture(&first.webp).unwrap().to_rgb8(), picture);
        assert_eq!(decode(&first.webp).unwrap(), first, "a WebP keeps its bytes");
        assert!(decode(b"no picture").is_err());
    }
}
