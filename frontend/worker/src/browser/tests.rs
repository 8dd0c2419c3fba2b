//! The worker in Chromium: real fetches (of blobs), real streams, the browser's GPU.

#![allow(clippy::unwrap_used)] // tests panic on purpose

use api::gpu::{ComputePath, GpuRequest};
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};
use web_sys::{Blob, Url};

use super::*;
use crate::worker::sample::Sample;

wasm_bindgen_test_configure!(run_in_dedicated_worker);

fn worker() -> Worker<BrowserHost> {
    Worker::new(BrowserHost { scope: js_sys::global().dyn_into().unwrap() })
}

fn url(content: &[u8]) -> String {
    let parts = Array::of1(&Uint8Array::from(content));
    Url::create_object_url_with_blob(&Blob::new_with_u8_array_sequence(&parts).unwrap()).unwrap()
}

async fn load(worker: &mut Worker<BrowserHost>, sample: &Sample, force_cpu: bool) -> GpuReply {
    let (weights_url, config_url) = (url(&sample.file()), url(&sample.config()));
    let request = GpuRequest::Load { id: 1, weights_url, config_url, force_cpu };
    worker.handle(&serde_json::to_string(&request).unwrap(), &[]).await.reply
}

async fn encodes_like_the_twin(force_cpu: bool) -> GpuReply {
    let sample = Sample::new(4096, 96, 16);
    let mut worker = worker();
    let loaded = load(&mut worker, &sample, force_cpu).await;
    let request = serde_json::to_string(&GpuRequest::Encode { id: 4, tokens: 3 }).unwrap();
    let answer = worker.handle(&request, &[sample.hidden_bytes(3)]).await;
    sample.assert_encoded(&answer, 4, 3);
    loaded
}

#[wasm_bindgen_test]
async fn webgpu_encodes_like_the_twin() {
    let loaded = encodes_like_the_twin(false).await;
    match loaded {
        GpuReply::Loaded {
            id: 1,
            path: ComputePath::WebGpu,
            adapter,
            reason: None,
            latents: 4096,
            d_model: 96,
            k: 16,
        } => {
            assert!(!adapter.is_empty(), "the adapter has a name");
        }
        // Where there is no WebGPU the reason is visible, and a failure where a GPU is required.
        GpuReply::Loaded { path: ComputePath::Cpu, reason: Some(reason), .. } => {
            assert!(option_env!("LMM_SCOPE_REQUIRE_GPU") != Some("1"), "{reason}");
            wasm_bindgen_test::console_log!("SKIP WebGPU: {reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[wasm_bindgen_test]
async fn the_cpu_path_encodes_like_the_twin() {
    let loaded = encodes_like_the_twin(true).await;
    assert!(matches!(loaded, GpuReply::Loaded { path: ComputePath::Cpu, reason: Some(_), .. }), "{loaded:?}");
}

#[wasm_bindgen_test]
async fn a_missing_file_is_a_clear_failure() {
    let request = GpuRequest::Load {
        id: 5,
        weights_url: "blob:nothing-here".to_owned(),
        config_url: "blob:nothing-here".to_owned(),
        force_cpu: false,
    };
    let answer = worker().handle(&serde_json::to_string(&request).unwrap(), &[]).await;
    match answer.reply {
        GpuReply::Failed { id: Some(5), detail, lost: false } => {
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
}
