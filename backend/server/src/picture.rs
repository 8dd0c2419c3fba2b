//! Pictures from visitors: checked by their header before anything is decoded.

use crate::error::AppError;
use base64::Engine;
use bytes::Bytes;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};
use std::io::Cursor;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Largest upload in bytes.
pub const MAX_UPLOAD: usize = 10 << 20;
/// Most pixels that are decoded.
pub const MAX_PIXELS: u64 = 40_000_000;
/// Longest side that is decoded: resizing one line of 40,000,000 pixels would take gigabytes.
pub const MAX_SIDE: u32 = 16_384;
/// Decoder memory: 40 megapixels of 16-bit RGBA, and room for the decoder itself.
const MAX_DECODER_BYTES: u64 = 512 << 20;

/// Visitors' pictures in memory at once; each may take a few hundred megabytes.
const SLOTS: usize = 4;
static PICTURE_SLOTS: Semaphore = Semaphore::const_new(SLOTS);

/// The right to hold a visitor's decoded picture.
pub type Slot = SemaphorePermit<'static>;

/// A decoded picture; a visitor's keeps its slot for as long as it lives.
#[derive(Debug)]
pub struct HeldPicture {
    image: DynamicImage,
    slot: Option<Slot>,
}

impl HeldPicture {
    /// Keep the slot as long as the picture lives.
    pub fn into_parts(self) -> (DynamicImage, Option<Slot>) {
        (self.image, self.slot)
    }
}

/// Decodes a visitor's picture off the request threads.
///
/// # Errors
/// "Busy" when all slots are taken; what is wrong with the picture.
pub async fn decode_in_slot(bytes: Bytes) -> Result<HeldPicture, AppError> {
    let slot = PICTURE_SLOTS.try_acquire().map_err(|_| AppError::busy())?;
    // The slot goes with the work: a decoder that has begun goes on when its client leaves.
    decode_off_thread(bytes, Some(slot)).await
}

/// Decodes a picture of the store. It is small, so that the engine's queue is bound enough.
///
/// # Errors
/// What is wrong with the picture.
pub async fn decode_stored(bytes: Bytes) -> Result<HeldPicture, AppError> {
    decode_off_thread(bytes, None).await
}

async fn decode_off_thread(bytes: Bytes, slot: Option<Slot>) -> Result<HeldPicture, AppError> {
    let decode = move || decode_picture(&bytes).map(|image| HeldPicture { image, slot });
    Ok(tokio::task::spawn_blocking(decode).await.map_err(AppError::internal)??)
}

/// Why a picture is refused.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    #[error("The file is not a picture. Send a PNG, JPEG, WebP, GIF or BMP.")]
    NotAnImage,
    #[error("The picture is damaged or cut off ({0}). Save it again and retry.")]
    Damaged(String),
    #[error("The picture is a CMYK JPEG; save it as RGB.")]
    Cmyk,
    #[error(
        "The picture has {width}×{height} pixels; at most {} megapixels and {} pixels on a side are taken. \
         Send a smaller one.",
        MAX_PIXELS / 1_000_000,
        MAX_SIDE
    )]
    TooLarge { width: u32, height: u32 },
}

/// Decodes a picture the way browsers show it (turned by its EXIF orientation). Blocking work.
///
/// # Errors
/// When it is not a picture, is damaged, or is too large (known from its header alone).
pub fn decode_picture(bytes: &[u8]) -> Result<DynamicImage, PictureError> {
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| PictureError::Damaged(error.to_string()))?;
    if reader.format().is_none_or(|format| !format.reading_enabled()) {
        return Err(PictureError::NotAnImage);
    }
    // Four inks would be decoded as if they were light: with wrong colours, the model would see another picture.
    if reader.format() == Some(ImageFormat::Jpeg) && jpeg_components(bytes) == Some(4) {
        return Err(PictureError::Cmyk);
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(picture_error)?;
    let (width, height) = decoder.dimensions();
    if width.max(height) > MAX_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(PictureError::TooLarge { width, height });
    }
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(picture_error)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// Colour components of a JPEG, from its frame header (ITU-T T.81, B.2.2): 1 grey, 3 colour, 4 CMYK or YCCK.
fn jpeg_components(bytes: &[u8]) -> Option<u8> {
    const START_OF_FRAME: [u8; 13] = [0xc0, 0xc1, 0xc2, 0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf];
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2;
    loop {
        match bytes.get(at..at + 2)? {
            // Markers may be preceded by any number of fill bytes.
            [0xff, 0xff] => at += 1,
            [0xff, START_OF_SCAN] => return None,
            // Length (2 bytes), precision (1), height (2), width (2), components (1).
            [0xff, marker] if START_OF_FRAME.contains(marker) => return bytes.get(at + 9).copied(),
            [0xff, _] => at += 2 + usize::from(u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?])),
            _ => return None,
        }
    }
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
    use image::{GrayImage, RgbImage};

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
    fn four_inks_are_refused() {
        let error = decode_picture(include_bytes!("../tests/fixtures/cmyk.jpg")).unwrap_err();
        assert!(matches!(error, PictureError::Cmyk) && error.to_string().contains("CMYK"), "{error}");
        let jpeg = |picture: DynamicImage| {
            let mut bytes = Cursor::new(Vec::new());
            picture.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
            bytes.into_inner()
        };
        for (picture, components) in
            [(DynamicImage::from(RgbImage::new(3, 2)), 3), (DynamicImage::from(GrayImage::new(3, 2)), 1)]
        {
            let bytes = jpeg(picture);
            assert_eq!(jpeg_components(&bytes), Some(components));
            assert!(decode_picture(&bytes).is_ok());
        }
        for cut in [&b""[..], b"\xff\xd8", b"\xff\xd8\xff\xe0\0", b"\xff\xd8\xff\xff\xff", b"\xff\xd8\xff\xda\0\x08"] {
            assert_eq!(jpeg_components(cut), None, "{cut:?}");
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let bomb = bomb_png(30_000, 30_000);
        let error = decode_picture(&bomb).unwrap_err();
        assert!(matches!(error, PictureError::TooLarge { width: 30_000, height: 30_000 }), "{error}");
    }

    #[test]
    fn a_line_of_many_pixels_is_refused_by_its_header() {
        for (width, height) in [(1, 40_000_000), (40_000_000, 1), (MAX_SIDE + 1, 1)] {
            let error = decode_picture(&bomb_png(width, height)).unwrap_err();
            assert!(matches!(error, PictureError::TooLarge { .. }), "{error}");
            let message = error.to_string();
            assert!(message.contains(&format!("{width}×{height}")) && message.contains("16384"), "{message}");
        }
        assert!(decode_picture(&png(1, MAX_SIDE)).is_ok());
    }

    #[tokio::test]
    async fn a_slot_is_taken_as_long_as_its_picture_lives() {
        let own = || decode_in_slot(png(2, 2).into());
        let mut held = Vec::new();
        for _ in 0..SLOTS {
            held.push(own().await.unwrap());
        }
        assert_eq!(own().await.unwrap_err().problem("").code, api::ErrorCode::EngineBusy);
        assert!(decode_stored(png(2, 2).into()).await.is_ok(), "a stored picture needs no slot");
        drop(held.pop());
        assert!(decode_in_slot(Bytes::from_static(b"no picture")).await.is_err());
        assert!(own().await.is_ok(), "a picture that is refused gives its slot back");
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
