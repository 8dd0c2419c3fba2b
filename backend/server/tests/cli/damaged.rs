//! Files that are missing, cut off, of another shape, or not what their name says.

use crate::common::{Case, D_MODEL, LATENTS, Place, Stored, all_refused, change_tensors, f32_tensor, write_tensors};
use safetensors::Dtype;
use serde_json::Value;
use std::{collections::BTreeMap, fs};

const EXTRACT: &str =
    "extract --model model --image picture.png --prompt What~is~this? --layer 1 --out out.safetensors";
const ENCODE: &str = "encode --sae sae --hidden hidden.safetensors --out out.safetensors";
const STEER: &str = "steer --model model --sae sae --layer 1 --prompt What~is~this? --max-new-tokens 2 --ablate 1";
const ATTRIBUTE: &str = "attribute --model model --sae sae --layer 1 --prompt What~is~this? --answer-id 7 \
                         --baseline-id 8 --out out.safetensors";

const WEIGHTS: &str = "model/model.safetensors";
const SAE: &str = "sae/model.layers.1/sae.safetensors";
const SAE_CONFIG: &str = "sae/model.layers.1/cfg.json";

fn write(place: &Place, name: &str, bytes: impl AsRef<[u8]>) {
    fs::write(place.at(name), bytes).unwrap();
}

fn remove(place: &Place, name: &str) {
    fs::remove_file(place.at(name)).unwrap();
}

fn cut_in_half(place: &Place, name: &str) {
    let bytes = fs::read(place.at(name)).unwrap();
    write(place, name, &bytes[..bytes.len() / 2]);
}

fn change_json(place: &Place, name: &str, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(place.at(name)).unwrap()).unwrap();
    change(&mut json);
    write(place, name, json.to_string());
}

/// A safetensors file that begins with this length of its header.
fn header(length: u64, header: &[u8]) -> Vec<u8> {
    [length.to_le_bytes().as_slice(), header].concat()
}

/// Every value of the tensors whose name ends so becomes NaN.
fn nan(place: &Place, file: &str, ending: &str) {
    let mut found = 0;
    change_tensors(&place.at(file), |tensors| {
        for (name, (dtype, _, bytes)) in tensors.iter_mut().filter(|(name, _)| name.ends_with(ending)) {
            let value: &[u8] = match dtype {
                Dtype::F16 => &[0x00, 0x7e],
                Dtype::F32 => &[0x00, 0x00, 0xc0, 0x7f],
                other => panic!("{name} is {other:?}"),
            };
            *bytes = value.repeat(bytes.len() / value.len());
            found += 1;
        }
    });
    assert!(found > 0, "no tensor *{ending}");
}

fn one_hidden(place: &Place, stored: Stored) {
    write_tensors(&place.at("hidden.safetensors"), &BTreeMap::from([("hidden".to_owned(), stored)]));
}

#[test]
fn weights_of_the_model() {
    all_refused(&[
        Case::new(EXTRACT, |place| cut_in_half(place, WEIGHTS), "model.safetensors"),
        Case::new(EXTRACT, |place| write(place, WEIGHTS, ""), "model.safetensors"),
        Case::new(EXTRACT, |place| write(place, WEIGHTS, header(1 << 60, b"{}")), "header too large"),
        Case::new(EXTRACT, |place| write(place, WEIGHTS, header(16, b"this is not json")), "JSON in header"),
        Case::new(EXTRACT, |place| write(place, WEIGHTS, header(99, b"{}")), "header length"),
        Case::new(EXTRACT, |place| remove(place, WEIGHTS), "model.safetensors"),
        Case::new(
            EXTRACT,
            |place| nan(place, WEIGHTS, "embed_tokens.weight"),
            "tensor `language_model.model.embed_tokens.weight` holds NaN or infinite values",
        ),
        Case::new(STEER, |place| nan(place, WEIGHTS, "embed_tokens.weight"), "embed_tokens.weight` holds NaN"),
        Case::new(STEER, |place| nan(place, WEIGHTS, "lm_head.weight"), "model/model.safetensors: tensor `"),
        Case::new(ATTRIBUTE, |place| nan(place, WEIGHTS, "lm_head.weight"), "lm_head.weight` holds NaN"),
        Case::new(
            EXTRACT,
            |place| change_tensors(&place.at(WEIGHTS), |tensors| drop(tensors.remove("image_newline"))),
            "`image_newline` is missing",
        ),
        Case::new(
            EXTRACT,
            |place| {
                change_tensors(&place.at(WEIGHTS), |tensors| {
                    drop(tensors.insert("surprise.weight".into(), f32_tensor(&[1], &[1.0])));
                });
            },
            "surprise.weight",
        ),
        Case::new(
            EXTRACT,
            |place| {
                change_tensors(&place.at(WEIGHTS), |tensors| {
                    drop(tensors.insert("image_newline".into(), f32_tensor(&[31], &[0.5; 31])));
                });
            },
            "`image_newline` has shape [31], expected [32]",
        ),
        Case::new(
            EXTRACT,
            |place| {
                change_tensors(&place.at(WEIGHTS), |tensors| {
                    drop(tensors.insert("image_newline".into(), (Dtype::I32, vec![D_MODEL], vec![0; 4 * D_MODEL])));
                });
            },
            "dtype I32",
        ),
        Case::new(
            EXTRACT,
            |place| {
                let index = r#"{"weight_map": {"image_newline": "model-00001-of-00001.safetensors"}}"#;
                write(place, "model/model.safetensors.index.json", index);
            },
            "model-00001-of-00001.safetensors",
        ),
        Case::new(
            EXTRACT,
            |place| {
                let index = r#"{"weight_map": {"image_newline": "../elsewhere.safetensors"}}"#;
                write(place, "model/model.safetensors.index.json", index);
            },
            "leaves the folder",
        ),
        Case::new(EXTRACT, |place| write(place, "model/model.safetensors.index.json", "{"), "index.json"),
    ]);
}

#[test]
fn settings_of_the_model() {
    all_refused(&[
        Case::new(EXTRACT, |place| remove(place, "model/config.json"), "config.json"),
        Case::new(EXTRACT, |place| write(place, "model/config.json", "this is not JSON"), "config.json"),
        Case::new(EXTRACT, |place| write(place, "model/config.json", "[]"), "config.json"),
        Case::new(
            EXTRACT,
            |place| change_json(place, "model/config.json", |json| json["text_config"]["hidden_size"] = 33.into()),
            "hidden_size",
        ),
        Case::new(EXTRACT, |place| remove(place, "model/tokenizer.json"), "tokenizer.json"),
        Case::new(EXTRACT, |place| cut_in_half(place, "model/tokenizer.json"), "tokenizer.json"),
        Case::new(
            EXTRACT,
            |place| {
                let template = "{% for message in messages %}{% if message.role == 'user' %}\
                                {{ raise_exception('Only the role assistant is supported!') }}{% endif %}{% endfor %}";
                write(place, "model/chat_template.jinja", template);
            },
            "Only the role assistant is supported!",
        ),
        Case::new(EXTRACT, |place| write(place, "model/chat_template.jinja", "{% for message in"), "chat template"),
        Case::new(EXTRACT, |place| remove(place, "model/chat_template.jinja"), "chat_template"),
        Case::new(EXTRACT, |place| write(place, "model/preprocessor_config.json", "{"), "preprocessor_config.json"),
        Case::new(
            EXTRACT,
            |place| change_json(place, "model/preprocessor_config.json", |json| json["resample"] = 2.into()),
            "resample 2: only 3 is supported",
        ),
    ]);
}

#[test]
fn files_of_the_sae() {
    all_refused(&[
        Case::new(STEER, |place| cut_in_half(place, SAE), "sae.safetensors"),
        Case::new(ENCODE, |place| cut_in_half(place, SAE), "sae.safetensors"),
        Case::new(ENCODE, |place| write(place, SAE, header(1 << 60, b"{}")), "header too large"),
        Case::new(ENCODE, |place| remove(place, SAE), "sae.safetensors"),
        Case::new(STEER, |place| remove(place, SAE_CONFIG), "no cfg.json"),
        Case::new(ENCODE, |place| write(place, SAE_CONFIG, "this is not JSON"), "cfg.json"),
        Case::new(ENCODE, |place| change_json(place, SAE_CONFIG, |json| json["k"] = 0.into()), "k is 0"),
        Case::new(STEER, |place| change_json(place, SAE_CONFIG, |json| json["k"] = 65.into()), "k is 65"),
        Case::new(ENCODE, |place| change_json(place, SAE_CONFIG, |json| json["k"] = (-1).into()), "cfg.json"),
        Case::new(
            STEER,
            |place| change_json(place, SAE_CONFIG, |json| json["num_latents"] = 63.into()),
            "expected [63",
        ),
        Case::new(
            STEER,
            |place| change_tensors(&place.at(SAE), |tensors| drop(tensors.remove("W_dec"))),
            "`W_dec` is missing",
        ),
        Case::new(
            ENCODE,
            |place| change_tensors(&place.at(SAE), |tensors| drop(tensors.remove("encoder.weight"))),
            "`encoder.weight` is missing",
        ),
        Case::new(ENCODE, |place| nan(place, SAE, "encoder.bias"), "`encoder.bias` holds NaN"),
        Case::new(ENCODE, |place| nan(place, SAE, "encoder.weight"), "sae.safetensors"),
        Case::new(STEER, |place| nan(place, SAE, "W_dec"), "sae.safetensors"),
        Case::new(STEER, narrow_sae, "the SAE reads 16 values per token"),
        Case::new(ATTRIBUTE, narrow_sae, "the SAE reads 16 values per token"),
        Case::new(ENCODE, narrow_sae, "[tokens, 16]"),
        Case::new(
            ENCODE,
            |place| {
                fs::create_dir(place.at("sae/model.layers.2")).unwrap();
                for name in ["cfg.json", "sae.safetensors"] {
                    let [from, to] = [1, 2].map(|block| place.at(&format!("sae/model.layers.{block}/{name}")));
                    fs::copy(from, to).unwrap();
                }
            },
            "2 hook points",
        ),
    ]);
}

/// An SAE in order, but for another model.
fn narrow_sae(place: &Place) {
    const D: usize = 16;
    change_json(place, SAE_CONFIG, |json| json["d_in"] = D.into());
    let zeros = |shape: &[usize]| f32_tensor(shape, &vec![0.0; shape.iter().product()]);
    let tensors = [
        ("encoder.weight", zeros(&[LATENTS, D])),
        ("encoder.bias", zeros(&[LATENTS])),
        ("W_dec", zeros(&[LATENTS, D])),
        ("b_dec", zeros(&[D])),
    ];
    write_tensors(&place.at(SAE), &tensors.map(|(name, stored)| (name.to_owned(), stored)).into());
}

#[test]
fn hidden_states() {
    all_refused(&[
        Case::new(
            ENCODE,
            |place| {
                change_tensors(&place.at("hidden.safetensors"), |tensors| {
                    let hidden = tensors.remove("hidden").unwrap();
                    drop(tensors.insert("states".into(), hidden));
                });
            },
            "there is no tensor `hidden`; the file has: states",
        ),
        Case::new(ENCODE, |place| one_hidden(place, f32_tensor(&[2, 16], &[0.5; 32])), "has shape [2, 16]"),
        Case::new(ENCODE, |place| one_hidden(place, f32_tensor(&[D_MODEL], &[0.5; D_MODEL])), "has shape [32]"),
        Case::new(ENCODE, |place| one_hidden(place, f32_tensor(&[0, D_MODEL], &[])), "has shape [0, 32]"),
        Case::new(
            ENCODE,
            |place| one_hidden(place, (Dtype::I32, vec![1, D_MODEL], vec![0; 4 * D_MODEL])),
            "`hidden` has dtype I32",
        ),
        Case::new(
            ENCODE,
            |place| {
                let mut values = [0.5; 2 * D_MODEL];
                values[D_MODEL + 3] = f32::NAN;
                one_hidden(place, f32_tensor(&[2, D_MODEL], &values));
            },
            "not finite: token 1 holds NaN",
        ),
        Case::new(
            ENCODE,
            |place| cut_in_half(place, "hidden.safetensors"),
            "hidden.safetensors: not a safetensors file",
        ),
        Case::new(ENCODE, |place| write(place, "hidden.safetensors", ""), "hidden.safetensors"),
        Case::new(ENCODE, |place| write(place, "hidden.safetensors", header(1 << 60, b"")), "header too large"),
        Case::new(ENCODE, |place| write(place, "hidden.safetensors", header(8, b"no json!")), "JSON in header"),
    ]);
}

#[test]
fn pictures() {
    let bomb = |place: &Place| write(place, "picture.png", bomb_png(30_000, 30_000));
    all_refused(&[
        Case::new(EXTRACT, |place| write(place, "picture.png", ""), "picture.png: The file is not a picture"),
        Case::new(EXTRACT, |place| write(place, "picture.png", "a text"), "picture.png: The file is not a picture"),
        Case::new(EXTRACT, |place| cut_in_half(place, "picture.png"), "picture.png: The picture is damaged"),
        Case::new(EXTRACT, bomb, "30000×30000"),
        // Pillow: Image.new("CMYK", (8, 8), (10, 20, 30, 40)).save("cmyk.jpg")
        Case::new(EXTRACT, |place| write(place, "picture.png", include_bytes!("fixtures/cmyk.jpg")), "CMYK"),
        Case::new(EXTRACT, |place| remove(place, "picture.png"), "picture.png"),
        Case::new(ATTRIBUTE.replace("--layer", "--image picture.png --layer"), bomb, "30000×30000"),
    ]);
}

/// A PNG that claims a size, with hardly any data.
fn bomb_png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(1, 1).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    let mut bytes = bytes.into_inner();
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
