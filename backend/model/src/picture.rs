//! Pictures from their files, with the levels that Pillow gives: checked by their header before anything is decoded.

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use std::any::Any;
use std::cell::Cell;
use std::io::{self, BufRead, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Most pixels that are decoded.
pub const MAX_PIXELS: u64 = 40_000_000;
/// Longest side that is decoded: resizing one line of 40,000,000 pixels would take gigabytes.
pub const MAX_SIDE: u32 = 16_384;
/// Decoder memory: 40 megapixels of 16-bit RGBA, and room for the decoder itself.
const MAX_DECODER_BYTES: u64 = 512 << 20;
/// A scan of twenty bytes can go over all pixels: without an end to them, a small JPEG could take hours. Progressive
/// ones have about ten.
const MAX_JPEG_SCANS: usize = 100;

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
    let format = reader.format().filter(ImageFormat::reading_enabled).ok_or(PictureError::NotAnImage)?;
    if format == ImageFormat::Jpeg {
        check_jpeg(bytes)?;
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
    let mut picture = match format {
        ImageFormat::Jpeg => decode_jpeg(bytes, width, height)?.into(),
        _ => DynamicImage::from_decoder(decoder).map_err(picture_error)?,
    };
    picture.apply_orientation(orientation);
    Ok(picture)
}

fn picture_error(error: ImageError) -> PictureError {
    match error {
        ImageError::Unsupported(_) => PictureError::NotAnImage,
        other => PictureError::Damaged(other.to_string()),
    }
}

/// Pixels of a JPEG whose header has been checked; of a grey one, three equal channels.
///
/// By the decoder that Pillow has. Decoders differ by several levels, mostly in how they enlarge colours that are
/// stored at half the size (4:2:0), and the models have learnt from this one's levels.
fn decode_jpeg(bytes: &[u8], width: u32, height: u32) -> Result<RgbImage, PictureError> {
    let ended = Cell::new(false);
    let source = JpegSource { rest: bytes, ended: &ended };
    // libjpeg's errors come as panics, without the panic hook.
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        let header = mozjpeg::Decompress::new_reader(source)?;
        // `image` has read the size for the limits; a file must not tell two readers two sizes.
        if header.size() != (width as usize, height as usize) {
            return Err(io::Error::other("its headers disagree about its size"));
        }
        // Nobody misses what may be lacking after the last line: no `finish`.
        header.rgb()?.read_scanlines::<u8>()
    }));
    let levels = match decoded {
        Ok(Ok(levels)) => levels,
        _ if ended.get() => return Err(PictureError::Damaged("its data end early".into())),
        Ok(Err(error)) => return Err(PictureError::Damaged(error.to_string())),
        Err(panic) => return Err(PictureError::Damaged(libjpeg_message(&*panic))),
    };
    RgbImage::from_raw(width, height, levels).ok_or_else(|| PictureError::Damaged("its data end early".into()))
}

fn libjpeg_message(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<String>().map_or("no reason given", String::as_str);
    message.strip_prefix("libjpeg fatal error: ").unwrap_or(message).to_owned()
}

/// The bytes of a JPEG. To ask for more of them is an error: libjpeg by itself only warns, and paints the rest grey.
struct JpegSource<'a> {
    rest: &'a [u8],
    ended: &'a Cell<bool>,
}

impl Read for JpegSource<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.rest.read(buffer)
    }
}

impl BufRead for JpegSource<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            self.ended.set(true);
            // Not `UnexpectedEof`: the decoder would make up an end.
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(self.rest)
    }

    fn consume(&mut self, count: usize) {
        self.rest.consume(count);
    }
}

// Markers of a JPEG (ITU-T T.81, table B.1).
const START_OF_FRAME: [u8; 13] = [0xc0, 0xc1, 0xc2, 0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf];
const START_OF_SCAN: u8 = 0xda;
const END_OF_IMAGE: u8 = 0xd9;

/// What only the markers of a JPEG tell.
fn check_jpeg(bytes: &[u8]) -> Result<(), PictureError> {
    // Four inks would be decoded as if they were light: with wrong colours, the model would see another picture.
    if jpeg_components(bytes) == Some(4) {
        return Err(PictureError::Cmyk);
    }
    let mut scans = jpeg_segments(bytes).filter(|(marker, _)| *marker == START_OF_SCAN);
    if scans.nth(MAX_JPEG_SCANS).is_some() {
        return Err(PictureError::Damaged(format!("it has more than {MAX_JPEG_SCANS} scans")));
    }
    Ok(())
}

/// Colour components of a JPEG, from its frame header (ITU-T T.81, B.2.2): 1 grey, 3 colour, 4 CMYK or YCCK.
fn jpeg_components(bytes: &[u8]) -> Option<u8> {
    let mut header = jpeg_segments(bytes).take_while(|(marker, _)| *marker != START_OF_SCAN);
    let (_, frame) = header.find(|(marker, _)| START_OF_FRAME.contains(marker))?;
    // Length (2 bytes), precision (1), height (2), width (2), components (1).
    frame.get(7).copied()
}

/// Markers that have a segment, each with its segment, up to the end of the picture or of the file.
///
/// Compressed data and what else is between segments is passed over the way libjpeg does it, so that it finds no scan
/// that is not here.
fn jpeg_segments(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = bytes.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        loop {
            let start = rest.iter().position(|byte| *byte == 0xff)?;
            // Markers may be preceded by any number of fill bytes.
            let at = start + rest[start..].iter().position(|byte| *byte != 0xff)?;
            let marker = rest[at];
            rest = &rest[at + 1..];
            match marker {
                END_OF_IMAGE => rest = &[],
                // A stuffed zero, reserved, a restart, the start of the image: nothing belongs to them.
                0..0xc0 | 0xd0..=0xd8 => {}
                _ => {
                    // The length counts its own two bytes.
                    let length = usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])).max(2);
                    let (segment, after) = rest.split_at_checked(length)?;
                    rest = after;
                    return Some((marker, segment));
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;
    use image::{GrayImage, Luma, Rgb};

    fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn png(width: u32, height: u32) -> Vec<u8> {
        encoded(RgbImage::new(width, height), ImageFormat::Png)
    }

    /// Levels that no decoder can guess from their neighbours.
    fn noise(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([0u32, 1, 2]
                .map(|channel| ((x * 7919 + y * 104_729 + channel * 31).wrapping_mul(2_654_435_761) >> 24) as u8))
        })
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
    }

    #[test]
    fn pictures_that_are_cut_off_are_refused() {
        let whole = png(64, 64);
        for keep in [20, 40, whole.len() / 2] {
            assert!(matches!(decode_picture(&whole[..keep]), Err(PictureError::Damaged(_))), "{keep} bytes");
        }
        let whole = encoded(noise(64, 64), ImageFormat::Jpeg);
        assert!(decode_picture(&whole).is_ok());
        for keep in (4..whole.len() - 20).step_by(97) {
            assert!(matches!(decode_picture(&whole[..keep]), Err(PictureError::Damaged(_))), "{keep} bytes");
        }
        let message = decode_picture(&whole[..whole.len() / 2]).unwrap_err().to_string();
        assert!(message.contains("its data end early"), "{message}");
    }

    #[test]
    fn a_jpeg_libjpeg_cannot_read_is_refused_with_its_reason() {
        let mut bytes = encoded(noise(16, 16), ImageFormat::Jpeg);
        let scan = bytes.windows(2).position(|pair| pair == [0xff, START_OF_SCAN]).unwrap();
        // The scan's first component becomes one that the frame has not.
        bytes[scan + 5] = 77;
        let error = decode_jpeg(&bytes, 16, 16).unwrap_err();
        assert!(matches!(&error, PictureError::Damaged(reason) if reason.contains("component")), "{error}");
        let error = decode_jpeg(&encoded(noise(16, 16), ImageFormat::Jpeg), 16, 8).unwrap_err();
        assert!(error.to_string().contains("disagree about its size"), "{error}");
    }

    #[test]
    fn jpegs_become_rgb() {
        let colour = RgbImage::from_pixel(19, 11, Rgb([200, 60, 30]));
        let decoded = decode_picture(&encoded(colour, ImageFormat::Jpeg)).unwrap().to_rgb8();
        assert_eq!(decoded.dimensions(), (19, 11));
        for pixel in decoded.pixels() {
            assert!(
                pixel.0.iter().zip([200u8, 60, 30]).all(|(found, expected)| found.abs_diff(expected) <= 4),
                "{pixel:?}"
            );
        }
        let grey = GrayImage::from_fn(19, 11, |x, y| Luma([(x * 9 + y * 5) as u8]));
        let decoded = decode_picture(&encoded(grey.clone(), ImageFormat::Jpeg)).unwrap();
        let DynamicImage::ImageRgb8(decoded) = decoded else { panic!("{:?}", decoded.color()) };
        for (found, expected) in decoded.pixels().zip(grey.pixels()) {
            assert!(found.0 == [found.0[0]; 3] && found.0[0].abs_diff(expected.0[0]) <= 12, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn a_jpeg_is_turned_by_its_exif_orientation() {
        let bytes = encoded(RgbImage::new(20, 10), ImageFormat::Jpeg);
        // One entry: orientation (0x112), a short, once, 6 (a quarter turn clockwise).
        let exif = b"\xff\xe1\0\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let turned = [&bytes[..2], exif, &bytes[2..]].concat();
        let picture = decode_picture(&turned).unwrap();
        assert_eq!((picture.width(), picture.height()), (10, 20));
    }

    #[test]
    fn four_inks_are_refused() {
        let cmyk = b"\xff\xd8\xff\xc0\0\x14\x08\0\x08\0\x08\x04\0\x11\0\x01\x11\0\x02\x11\0\x03\x11\0";
        let error = decode_picture(cmyk).unwrap_err();
        assert!(matches!(error, PictureError::Cmyk) && error.to_string().contains("CMYK"), "{error}");
        let (colour, grey) = (DynamicImage::from(RgbImage::new(3, 2)), DynamicImage::from(GrayImage::new(3, 2)));
        for (picture, components) in [(colour, 3), (grey, 1)] {
            let bytes = encoded(picture, ImageFormat::Jpeg);
            assert_eq!(jpeg_components(&bytes), Some(components));
            assert!(decode_picture(&bytes).is_ok());
        }
        for cut in [&b""[..], b"\xff\xd8", b"\xff\xd8\xff\xe0\0", b"\xff\xd8\xff\xff\xff", b"\xff\xd8\xff\xda\0\x08"] {
            assert_eq!(jpeg_components(cut), None, "{cut:?}");
        }
    }

    #[test]
    fn segments_are_found_where_libjpeg_finds_them() {
        let bytes = b"\xff\xd8\xff\xfe\0\x04\xff\xda..\xff\xff\xda\0\x03a..\xff\0.\xff\xd3.\xff\x05\xff\xda\0\x02\
                      \xff\xe0\0\0\xff\xd9\xff\xda\0\x02";
        let found: Vec<(u8, &[u8])> = jpeg_segments(bytes).collect();
        let expected: [(u8, &[u8]); 4] =
            [(0xfe, b"\0\x04\xff\xda"), (START_OF_SCAN, b"\0\x03a"), (START_OF_SCAN, b"\0\x02"), (0xe0, b"\0\0")];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_jpeg_of_too_many_scans_is_refused_by_its_markers() {
        let bytes = encoded(RgbImage::new(8, 8), ImageFormat::Jpeg);
        let end = bytes.len() - 2;
        let with_scans = |more: usize| [&bytes[..end], &b"\xff\xda\0\x02".repeat(more), &bytes[end..]].concat();
        let error = decode_picture(&with_scans(MAX_JPEG_SCANS)).unwrap_err();
        assert!(error.to_string().contains("more than 100 scans"), "{error}");
        assert!(check_jpeg(&with_scans(MAX_JPEG_SCANS - 1)).is_ok());
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let bomb = bomb_png(30_000, 30_000);
        let error = decode_picture(&bomb).unwrap_err();
        assert!(matches!(error, PictureError::TooLarge { width: 30_000, height: 30_000 }), "{error}");
        let mut bomb = encoded(RgbImage::new(8, 8), ImageFormat::Jpeg);
        let frame = bomb.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        bomb[frame + 5..frame + 9].copy_from_slice(b"\x75\x30\x75\x30");
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
}
