//! The worker in Chromium: real fetches (of blobs), real streams, real storage, the browser's GPU.

#![allow(clippy::unwrap_used)] // tests panic on purpose

use api::Tier;
use api::gpu::{Compute, ComputePath, Fault, LoadedSae};
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};
use web_sys::{Blob, Url};

use super::*;
use crate::store::{Store, Writer};
use crate::worker::sample::Sample;

wasm_bindgen_test_configure!(run_in_dedicated_worker);

fn host() -> BrowserHost {
    BrowserHost::new(js_sys::global().dyn_into().unwrap())
}

fn url(content: &[u8]) -> String {
    let parts = Array::of1(&Uint8Array::from(content));
    Url::create_object_url_with_blob(&Blob::new_with_u8_array_sequence(&parts).unwrap()).unwrap()
}

/// Makes the sample's files answer to fetches below `base`, as a server would: `fetch` looks names up in a table.
fn serve_files(sample: &Sample, base: &str) {
    let table = js_sys::Object::new();
    for (name, content) in sample.files() {
        Reflect::set(&table, &format!("{base}{name}").into(), &url(&content).into()).unwrap();
    }
    let install = js_sys::Function::new_with_args(
        "table",
        "self.servedFiles = Object.assign(self.servedFiles ?? {}, table);
         self.trueFetch ??= self.fetch.bind(self);
         self.fetch = (url, init) => self.trueFetch(self.servedFiles[url] ?? url, init);",
    );
    install.call1(&JsValue::NULL, &table).unwrap();
}

/// From now on nothing below `base` can be fetched but the manifest.
fn stop_serving(base: &str) {
    let stop = js_sys::Function::new_with_args(
        "base",
        "for (const url of Object.keys(self.servedFiles)) {
             if (url.startsWith(base) && !url.endsWith('manifest.json')) delete self.servedFiles[url];
         }",
    );
    stop.call1(&JsValue::NULL, &base.into()).unwrap();
}

async fn load(worker: &mut Worker<BrowserHost>, base: &str, tier: Tier, compute: Compute) -> LoadedSae {
    let request = GpuRequest::Load { id: 1, base_url: base.to_owned(), tier: Some(tier), compute };
    match worker.handle(&serde_json::to_string(&request).unwrap(), &[]).await.unwrap().reply {
        GpuReply::Loaded { id: 1, sae } => sae,
        other => panic!("{other:?}"),
    }
}

async fn encode(worker: &mut Worker<BrowserHost>, sample: &Sample, tokens: u32) -> Answer {
    let request = serde_json::to_string(&GpuRequest::Encode { id: 4, tokens }).unwrap();
    worker.handle(&request, &[sample.hidden_bytes(tokens)]).await.unwrap()
}

/// Where there is no WebGPU the reason is visible, and a failure where a GPU is required.
fn on_gpu(sae: &LoadedSae) -> bool {
    if sae.path != ComputePath::WebGpu {
        assert!(option_env!("LMM_SCOPE_REQUIRE_GPU") != Some("1"), "{}", sae.reason);
        wasm_bindgen_test::console_log!("SKIP WebGPU: {}", sae.reason);
    }
    sae.path == ComputePath::WebGpu
}

#[wasm_bindgen_test]
async fn both_paths_encode_like_the_twin() {
    let sample = Sample::new(4096, 96, 16);
    serve_files(&sample, "/both/");
    for (compute, tier) in [(Compute::Gpu, Tier::F16), (Compute::Gpu, Tier::Int8), (Compute::Cpu, Tier::Int4)] {
        let mut worker = Worker::new(host());
        let sae = load(&mut worker, "/both/", tier, compute).await;
        if compute == Compute::Gpu && on_gpu(&sae) {
            assert!(!sae.adapter.is_empty(), "the adapter has a name");
        }
        sample.assert_encoded(&encode(&mut worker, &sample, 3).await, 4, 3);
    }
}

#[wasm_bindgen_test]
async fn a_second_visit_and_a_broken_device_load_from_storage() {
    let sample = Sample::new(2048, 64, 8);
    serve_files(&sample, "/second/");
    let mut worker = Worker::new(host());
    // Another test of this run may have stored files of these names.
    for name in sample.files().keys() {
        worker.host().remove(name).await;
    }
    let first = load(&mut worker, "/second/", Tier::Int8, Compute::Gpu).await;
    assert_eq!((first.not_kept, first.origin.stored), (None, 0));
    stop_serving("/second/");
    let mut worker = Worker::new(host());
    let again = load(&mut worker, "/second/", Tier::Int8, Compute::Gpu).await;
    assert_eq!((again.origin.fetched, again.origin.stored), (0, first.origin.fetched));
    for fault in [Fault::Lost, Fault::Memory] {
        let broken = serde_json::to_string(&GpuRequest::Break { fault }).unwrap();
        assert_eq!(worker.handle(&broken, &[]).await, None);
        if again.path == ComputePath::WebGpu {
            let failed = encode(&mut worker, &sample, 3).await.reply;
            assert!(matches!(failed, GpuReply::Failed { lost: true, .. }), "{failed:?}");
        }
        load(&mut worker, "/second/", Tier::Int8, Compute::Gpu).await;
        sample.assert_encoded(&encode(&mut worker, &sample, 3).await, 4, 3);
    }
}

#[wasm_bindgen_test]
async fn a_file_grows_in_place_and_is_read_from_the_beginning() {
    let host = host();
    assert!(host.room().await.unwrap() > 1 << 20);
    host.remove("grows").await;
    assert_eq!(host.length("grows").await, 0);
    for (at, piece) in [(0, &b"one "[..]), (4, b"two "), (8, b"three")] {
        let mut writer = host.append("grows", at).await.unwrap();
        assert!(writer.write(at, piece));
    }
    assert_eq!(host.length("grows").await, 13);
    let mut content = [0; 32];
    let mut stream = host.read("grows").await.unwrap();
    assert_eq!(stream.read(&mut content).await.unwrap(), 13);
    assert_eq!(&content[..13], b"one two three");
    // A second writer of the same file has to do without.
    let first = host.append("grows", 13).await.unwrap();
    assert!(host.append("grows", 13).await.is_none());
    drop(first);
    host.remove("grows").await;
    assert_eq!(host.length("grows").await, 0);
    host.remember("a key/with: signs", "1 2 3").await;
    assert_eq!(host.recall("a key/with: signs").await.as_deref(), Some("1 2 3"));
}

#[wasm_bindgen_test]
async fn the_cache_api_will_do() {
    let caches = host().scope.caches().unwrap();
    let cache = JsFuture::from(caches.open("sae-shards")).await.unwrap().dyn_into().unwrap();
    let sample = Sample::new(512, 32, 8);
    serve_files(&sample, "/cache/");
    let mut origins = Vec::new();
    for _ in 0..2 {
        let host = host();
        host.shelf.replace(Some(Shelf::Cache(Clone::clone(&cache))));
        if origins.is_empty() {
            for name in sample.files().keys() {
                host.remove(name).await;
            }
        }
        let mut worker = Worker::new(host);
        origins.push(load(&mut worker, "/cache/", Tier::F16, Compute::Cpu).await.origin);
        sample.assert_encoded(&encode(&mut worker, &sample, 3).await, 4, 3);
        stop_serving("/cache/");
    }
    assert_eq!(origins[1].fetched, 0, "{origins:?}");
}

#[wasm_bindgen_test]
async fn a_missing_file_is_a_clear_failure() {
    let base_url = "blob:nothing-here/".to_owned();
    let request = GpuRequest::Load { id: 5, base_url, tier: None, compute: Compute::Auto };
    let answer = Worker::new(host()).handle(&serde_json::to_string(&request).unwrap(), &[]).await.unwrap();
    match answer.reply {
        GpuReply::Failed { id: Some(5), detail, lost: false, .. } => {
            assert!(detail.starts_with("could not fetch blob:"), "{detail}")
        }
        other => panic!("{other:?}"),
    }
}

#[wasm_bindgen_test]
fn messages_are_arrays_of_json_and_buffers() {
    let buffer = Uint8Array::from(&[1u8, 2, 3][..]).buffer();
    let message = Array::of2(&"{}".into(), &buffer);
    assert_eq!(read_message(&message).unwrap(), ("{}".to_owned(), vec![vec![1, 2, 3]]));
    for wrong in [JsValue::NULL, Array::new().into(), Array::of2(&"{}".into(), &1.into()).into()] {
        assert!(matches!(read_message(&wrong), Err(Error::Message(_))), "{wrong:?}");
    }
    let cancels = Cancels::default();
    let cancel = Array::of1(&r#"{"cancel":{"id":7}}"#.into());
    assert!(cancels_at_once(&cancel, &cancels) && cancels.of(7).check().is_err());
    assert!(!cancels_at_once(&message, &cancels));
}
