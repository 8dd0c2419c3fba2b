//! Pictures from visitors: checked by their header before anything is decoded.

use crate::error::AppError;
use base64::Engine;
use bytes::Bytes;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};
use std::io::Cursor;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Largest upload in bytes.
pub const MAX_UPLOAD: usize = 10 << 20;
/// Most pixels that are decoded.
pub const MAX_PIXELS: u64 = 40_000_000;
/// Decoder memory: 40 megapixels of 16-bit RGBA, and room for the decoder itself.
const MAX_DECODER_BYTES: u64 = 512 << 20;

/// Pictures in memory at once; each may take a few hundred megabytes.
const SLOTS: usize = 4;
static PICTURE_SLOTS: Semaphore = Semaphore::const_new(SLOTS);

/// The right to hold a decoded picture.
pub type Slot = SemaphorePermit<'static>;

/// Decodes a visitor's picture off the request threads. Keep the slot as long as the picture lives.
///
/// # Errors
/// "Busy" when all slots are taken; what is wrong with the picture.
pub async fn decode_in_slot(bytes: Bytes) -> Result<(DynamicImage, Slot), AppError> {
    let slot = PICTURE_SLOTS.try_acquire().map_err(|_| AppError::busy())?;
    let decoded = tokio::task::spawn_blocking(move || decode_picture(&bytes)).await.map_err(AppError::internal)?;
    Ok((decoded?, slot))
}

/// Why a picture is refused.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    #[error("The file is not a picture. Send a PNG, JPEG, WebP, GIF or BMP.")]
    NotAnImage,
    #[error("The picture is damaged or cut off ({0}). Save it again and retry.")]
    Damaged(String),
    #[error("The picture has {width}×{height} pixels; at most {} megapixels are taken. Send a smaller one.", MAX_PIXELS / 1_000_000)]
    TooLarge { width: u32, height: u32 },
}

/// Decodes a picture the way browsers show it (turned by its EXIF orientation). Blocking work.
///
/// # Errors
/// When it is not a picture, is damaged, or has too many pixels (known from its header alone).
pub fn decode_picture(bytes: &[u8]) -> Result<DynamicImage, PictureError> {
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| PictureError::Damaged(error.to_string()))?;
    if reader.format().is_none_or(|format| !format.reading_enabled()) {
        return Err(PictureError::NotAnImage);
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(picture_error)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(PictureError::TooLarge { width, height });
    }
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(picture_error)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

fn picture_error(error: ImageError) -> PictureError {
    match error {
        ImageError::Unsupported(_) => PictureError::NotAnImage,
        other => PictureError::Damaged(other.to_string()),
    }
}

/// The bytes of a `data:…;base64,…` URL.
///
/// # Errors
/// When it is not one.
pub fn bytes_from_data_url(url: &str) -> Result<Vec<u8>, PictureError> {
    let (head, data) = url.split_once(',').ok_or(PictureError::NotAnImage)?;
    if !head.starts_with("data:") || !head.ends_with(";base64") {
        return Err(PictureError::NotAnImage);
    }
    base64::engine::general_purpose::STANDARD
        .decode(data)
        .map_err(|error| PictureError::Damaged(format!("the data URL is not base64: {error}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;
    use image::{ImageFormat, RgbImage};

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::new(width, height).write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn good_pictures_are_decoded() {
        let picture = decode_picture(&png(5, 3)).unwrap();
        assert_eq!((picture.width(), picture.height()), (5, 3));
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [&b""[..], b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0\0\0\x18ftypheic"] {
            assert!(matches!(decode_picture(bytes), Err(PictureError::NotAnImage)), "{bytes:?}");
        }
        let whole = png(64, 64);
        for keep in [20, 40, whole.len() / 2] {
            assert!(matches!(decode_picture(&whole[..keep]), Err(PictureError::Damaged(_))), "{keep} bytes");
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let bomb = bomb_png(30_000, 30_000);
        let error = decode_picture(&bomb).unwrap_err();
        assert!(matches!(error, PictureError::TooLarge { width: 30_000, height: 30_000 }), "{error}");
    }

    /// A PNG that claims a size, with hardly any data.
    fn bomb_png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = png(1, 1);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let checksum = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        })
    }

    #[test]
    fn data_urls_are_read() {
        assert_eq!(bytes_from_data_url("data:image/png;base64,aGk=").unwrap(), b"hi");
        for wrong in ["", "aGk=", "data:image/png,hi", "https://example.org/a.png", "data:;base64,***"] {
            assert!(bytes_from_data_url(wrong).is_err(), "{wrong}");
        }
    }
}
