//! Pictures from visitors: how many are held at once, and how they arrive.

use crate::error::AppError;
use base64::Engine;
use bytes::Bytes;
use image::DynamicImage;
use tokio::sync::{Semaphore, SemaphorePermit};

pub use model::picture::{MAX_PIXELS, MAX_SIDE, PictureError, decode_picture};

/// Largest upload in bytes.
pub const MAX_UPLOAD: usize = 10 << 20;

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
    use std::io::Cursor;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::new(width, height).write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
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

    #[test]
    fn data_urls_are_read() {
        assert_eq!(bytes_from_data_url("data:image/png;base64,aGk=").unwrap(), b"hi");
        for wrong in ["", "aGk=", "data:image/png,hi", "https://example.org/a.png", "data:;base64,***"] {
            assert!(bytes_from_data_url(wrong).is_err(), "{wrong}");
        }
    }
}
