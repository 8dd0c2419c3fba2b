//! The SAE as browsers fetch it: made when the server starts, and served for ever.

use crate::common::{SOURCE, Server, serve_args, server, write_artifacts};
use api::shards::{MANIFEST, SaeManifest, ShardFile, Tier};
use axum::http::header;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

fn browser(folder: &Path) -> PathBuf {
    folder.join("sae/model.layers.1/browser")
}

async fn manifest(server: &Server) -> SaeManifest {
    let manifest: SaeManifest = server.json(&format!("{SOURCE}/weights/{MANIFEST}")).await;
    assert_eq!(manifest.check(), Ok(()));
    manifest
}

async fn check_shard(server: &Server, ShardFile { file, bytes, sha256, .. }: &ShardFile) {
    let path = format!("{SOURCE}/weights/{file}");
    let whole = server.get_with(&path, header::ACCEPT_ENCODING, "gzip, br").await;
    assert_eq!((whole.status.as_u16(), whole.body.len() as u64), (200, *bytes), "{file}");
    assert_eq!(whole.header("content-type"), "application/octet-stream");
    assert_eq!(whole.header("content-encoding"), "");
    assert!(whole.header("cache-control").contains("immutable"), "{file}");
    let etag = whole.header("etag");
    assert_eq!(etag, format!("\"{sha256}\""));
    assert_eq!(server::weights::sha256_of_file(&browser(server.folder.path()).join(file)).unwrap(), *sha256);
    SafeTensors::deserialize(&whole.body).unwrap();
    let part = server.get_with(&path, header::RANGE, "bytes=8-15").await;
    assert_eq!((part.status.as_u16(), part.body.as_slice()), (206, &whole.body[8..16]));
    assert_eq!(server.get_with(&path, header::IF_NONE_MATCH, etag).await.status.as_u16(), 304);
    server.get(&format!("{path}?v=000000000000")).await.problem(404, api::ErrorCode::NotFound);
}

#[tokio::test]
async fn a_server_makes_shards_and_serves_them() {
    let server = server().await;
    let manifest = manifest(&server).await;
    assert_eq!((manifest.d_model, manifest.latents, manifest.k), (32, 64, 8));
    assert_eq!(manifest.hook_point, "model.layers.1");
    let tiers: Vec<Tier> = manifest.tiers.iter().map(|tier| tier.tier).collect();
    assert_eq!(tiers, [Tier::F16, Tier::Int8, Tier::Int4]);
    for shard in manifest.files() {
        check_shard(&server, shard).await;
    }
    let listed = server.get(&format!("{SOURCE}/weights/{MANIFEST}")).await;
    assert_eq!(
        (listed.header("content-type"), listed.header("cache-control")),
        ("application/json", "public, no-cache")
    );
    let checkpoint = server.get(&format!("{SOURCE}/weights/sae.safetensors")).await;
    assert_eq!(checkpoint.header("etag"), format!("\"{}\"", manifest.source_sha256));

    // Only what the manifest names.
    let file = "f16-000-0123456789ab.safetensors";
    std::fs::write(browser(server.folder.path()).join(file), "x").unwrap();
    let problem = server.get(&format!("{SOURCE}/weights/{file}")).await.problem(404, api::ErrorCode::NotFound);
    assert!(problem.detail.contains("the files it names"), "{}", problem.detail);
}

#[tokio::test]
async fn shards_that_are_there_are_used_unless_the_checkpoint_is_another() {
    let Server { router, folder } = server().await;
    let first = manifest(&Server { router, folder: tempfile::tempdir().unwrap() }).await;
    let written = || std::fs::metadata(browser(folder.path()).join(MANIFEST)).unwrap().modified().unwrap();
    let before = written();
    drop(server::serve::app(&serve_args(folder.path())).await.unwrap());
    assert_eq!(written(), before, "found, not made");

    let other = tempfile::tempdir().unwrap();
    write_artifacts(other.path());
    std::fs::remove_dir_all(other.path().join("sae/model.layers.1")).unwrap();
    let sae = other.path().join("sae/model.layers.1");
    std::fs::create_dir_all(browser(other.path())).unwrap();
    for entry in std::fs::read_dir(browser(folder.path())).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, browser(other.path()).join(path.file_name().unwrap())).unwrap();
    }
    let own = folder.path().join("sae/model.layers.1");
    let bytes = std::fs::read(own.join("sae.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let note = [("note".to_owned(), "another file".to_owned())].into();
    let bytes = safetensors::serialize(tensors.tensors(), Some(note)).unwrap();
    std::fs::write(sae.join("sae.safetensors"), bytes).unwrap();
    std::fs::copy(own.join("cfg.json"), sae.join("cfg.json")).unwrap();
    let (router, _store) = server::serve::app(&serve_args(other.path())).await.unwrap();
    let second = manifest(&Server { router, folder: other }).await;
    assert_ne!(second.source_sha256, first.source_sha256);
    assert_eq!(second.tiers[0].rows, first.tiers[0].rows);
}

#[tokio::test]
async fn a_server_without_shards_still_serves() {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    // No half float holds this weight.
    let path = folder.path().join("sae/model.layers.1/sae.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let views = file.tensors().into_iter().map(|(name, view)| {
        let halves = view.data().chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32());
        let values: Vec<f32> = halves.map(|value| if name == "encoder.weight" { value * 1e6 } else { value }).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        (name, view.shape().to_vec(), bytes)
    });
    let views: Vec<_> = views.collect();
    let views = views.iter().map(|(name, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let large = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
    std::fs::write(&path, large).unwrap();
    let (router, _store) = server::serve::app(&serve_args(folder.path())).await.unwrap();
    let server = Server { router, folder };
    let problem = server.get(&format!("{SOURCE}/weights/{MANIFEST}")).await.problem(404, api::ErrorCode::NotFound);
    assert!(problem.detail.contains("sae.safetensors, cfg.json."), "{}", problem.detail);
    assert_eq!(server.get(&format!("{SOURCE}/weights/cfg.json")).await.status.as_u16(), 200);
}
