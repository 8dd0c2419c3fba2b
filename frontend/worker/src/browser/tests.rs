//! The worker in Chromium: real fetches (of blobs), real streams, real storage, the browser's GPU.

#![allow(clippy::unwrap_used)] // tests panic on purpose

use api::Tier;
use api::gpu::{Compute, ComputePath, Fault, LoadedSae};
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};
use web_sys::{Blob, OffscreenCanvasRenderingContext2d, Url};

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
    match worker.handle(&serde_json::to_string(&request).unwrap(), Vec::new()).await.unwrap().reply {
        GpuReply::Loaded { id: 1, sae } => sae,
        other => panic!("{other:?}"),
    }
}

async fn encode(worker: &mut Worker<BrowserHost>, sample: &Sample, tokens: u32) -> Answer {
    let request = serde_json::to_string(&GpuRequest::Encode { id: 4, tokens }).unwrap();
    worker.handle(&request, vec![sample.hidden_bytes(tokens)]).await.unwrap()
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
        assert_eq!(worker.handle(&broken, Vec::new()).await, None);
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
async fn a_stream_is_read_in_pieces_whether_it_fills_our_buffer_or_brings_its_own() {
    let own = js_sys::Function::new_no_args(
        "return new ReadableStream({ start(controller) {
             controller.enqueue(new Uint8Array([1, 2, 3]));
             controller.enqueue(new Uint8Array([4, 5]));
             controller.close();
         } });",
    );
    let own: ReadableStream = own.call0(&JsValue::NULL).unwrap().dyn_into().unwrap();
    let parts = Array::of1(&Uint8Array::from(&[1u8, 2, 3, 4, 5][..]));
    let ours = Blob::new_with_u8_array_sequence(&parts).unwrap().stream();
    for (stream, reuses) in [(own, false), (ours, true)] {
        let mut stream = BodyStream::new("five bytes", stream, 0).unwrap();
        assert_eq!(matches!(stream.reader, BodyReader::Reusing(_)), reuses);
        let (mut content, mut piece) = (Vec::new(), [0; 2]);
        loop {
            match stream.read(&mut piece).await.unwrap() {
                0 => break,
                length => content.extend_from_slice(&piece[..length]),
            }
        }
        assert_eq!((content, stream.position()), (vec![1, 2, 3, 4, 5], 5));
        assert_eq!(stream.read(&mut piece).await, Ok(0), "the end stays the end");
    }
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
    let answer = Worker::new(host()).handle(&serde_json::to_string(&request).unwrap(), Vec::new()).await.unwrap();
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
    assert_eq!(read_message(&message).unwrap(), ("{}".to_owned(), vec![vec![1, 2, 3]], None));
    let canvas = OffscreenCanvas::new(2, 2).unwrap();
    let with_canvas = Array::of2(&"{}".into(), &canvas);
    assert_eq!(read_message(&with_canvas).unwrap(), ("{}".to_owned(), Vec::new(), Some(canvas)));
    for wrong in [JsValue::NULL, Array::new().into(), Array::of2(&"{}".into(), &1.into()).into()] {
        assert!(matches!(read_message(&wrong), Err(Error::Message(_))), "{wrong:?}");
    }
    let cancels = Cancels::default();
    let cancel = Array::of1(&r#"{"cancel":{"id":7}}"#.into());
    assert!(cancels_at_once(&cancel, &cancels) && cancels.of(7).check().is_err());
    assert!(!cancels_at_once(&message, &cancels));
}

/// What a canvas shows, `[height, width, 4]`.
fn pixels(canvas: &OffscreenCanvas) -> Vec<u8> {
    let (width, height) = (canvas.width(), canvas.height());
    let copy = OffscreenCanvas::new(width, height).unwrap();
    let context: OffscreenCanvasRenderingContext2d = copy.get_context("2d").unwrap().unwrap().dyn_into().unwrap();
    context.draw_image_with_offscreen_canvas(canvas, 0.0, 0.0).unwrap();
    context.get_image_data(0.0, 0.0, f64::from(width), f64::from(height)).unwrap().data().0
}

#[wasm_bindgen_test]
async fn light_is_drawn_on_a_canvas_also_by_the_next_device() {
    let sample = Sample::new(512, 32, 8);
    serve_files(&sample, "/canvas/");
    let mut worker = Worker::new(host());
    if !on_gpu(&load(&mut worker, "/canvas/", Tier::F16, Compute::Gpu).await) {
        return;
    }
    let canvas = OffscreenCanvas::new(1, 1).unwrap();
    worker.set_screen(Screen::Canvas(canvas.clone()));
    // The upper left is silent, the lower right is lit.
    let light: Vec<u8> = [0.0f32, 0.25, 0.5, 1.0].iter().flat_map(|share| share.to_le_bytes()).collect();
    for size in [[40, 60], [40, 60], [8, 300]] {
        let request = serde_json::to_string(&GpuRequest::Draw { id: 3, grid: [2, 2], size }).unwrap();
        let drawn = worker.handle(&request, vec![light.clone()]).await.unwrap();
        assert_eq!(drawn.reply, GpuReply::Numbers { id: 3, path: ComputePath::WebGpu });
        // At once: a canvas that nobody looks at is empty in the next task.
        let shown = pixels(&canvas);
        let [height, width] = size.map(|side| side as usize);
        assert_eq!([canvas.height(), canvas.width()], size);
        let pixel = |y: usize, x: usize| &shown[4 * (y * width + x)..][..4];
        let (dark, lit) = (pixel(0, 0), pixel(height - 1, width - 1));
        assert!(dark[3].abs_diff(191) <= 2 && dark[..3].iter().all(|level| *level == 0), "{dark:?}");
        assert!(lit[3].abs_diff(51) <= 2 && lit[0] > 235 && lit[1].abs_diff(178) <= 8, "{lit:?}");

        let broken = serde_json::to_string(&GpuRequest::Break { fault: Fault::Memory }).unwrap();
        assert_eq!(worker.handle(&broken, Vec::new()).await, None);
        let failed = worker.handle(&request, vec![light.clone()]).await.unwrap().reply;
        assert!(matches!(failed, GpuReply::Failed { lost: true, .. }), "{failed:?}");
        load(&mut worker, "/canvas/", Tier::F16, Compute::Gpu).await;
    }
}
