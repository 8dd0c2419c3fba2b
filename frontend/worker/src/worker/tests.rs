//! The worker natively, with files in memory that arrive in odd chunks.

#![allow(clippy::unwrap_used)] // tests panic on purpose

mod host;
mod numbers;

use api::gpu::{ComputePath, LoadedSae, Origin};

use super::sample::Sample;
use super::*;
use host::MemoryHost;

fn worker(sample: &Sample) -> Worker<MemoryHost> {
    Worker::new(MemoryHost::new(sample.files()))
}

fn ask(worker: &mut Worker<MemoryHost>, request: &GpuRequest, buffers: &[Vec<u8>]) -> Answer {
    pollster::block_on(worker.handle(&serde_json::to_string(request).unwrap(), buffers.to_vec())).unwrap()
}

fn load_as(worker: &mut Worker<MemoryHost>, tier: Option<Tier>, compute: Compute) -> GpuReply {
    ask(worker, &GpuRequest::Load { id: 1, base_url: "sae/".to_owned(), tier, compute }, &[]).reply
}

fn load(worker: &mut Worker<MemoryHost>, compute: Compute) -> GpuReply {
    load_as(worker, Some(Tier::F16), compute)
}

fn loaded(reply: GpuReply) -> LoadedSae {
    match reply {
        GpuReply::Loaded { id: 1, sae } => sae,
        other => panic!("{other:?}"),
    }
}

fn detail(reply: GpuReply) -> String {
    match reply {
        GpuReply::Failed { detail, .. } => detail,
        other => panic!("{other:?}"),
    }
}

/// Whether the GPU took it; where there is none, the reason is visible, and a failure where a GPU is required.
fn on_gpu(sae: &LoadedSae) -> bool {
    if sae.path != ComputePath::WebGpu {
        assert!(std::env::var("LMM_SCOPE_REQUIRE_GPU").as_deref() != Ok("1"), "{}", sae.reason);
        eprintln!("SKIP: {}. The GPU path was NOT tested (set LMM_SCOPE_REQUIRE_GPU=1 to fail).", sae.reason);
    }
    sae.path == ComputePath::WebGpu
}

#[test]
fn the_cpu_path_loads_encodes_and_maps() {
    let sample = Sample::new(301, 15, 7);
    let mut worker = worker(&sample);
    let sae = loaded(load(&mut worker, Compute::Cpu));
    assert_eq!((sae.path, sae.reason.as_str()), (ComputePath::Cpu, "as asked for in the address"));
    assert_eq!((sae.latents, sae.d_model, sae.k, sae.not_kept), (301, 15, 7, None));

    let answer = ask(&mut worker, &GpuRequest::Encode { id: 9, tokens: 6 }, &[sample.hidden_bytes(6)]);
    sample.assert_encoded(&answer, 9, 6);

    let top = sample.top(6);
    let feature = top.row(1).0[0];
    let map = ask(&mut worker, &GpuRequest::Map { id: 10, feature, start: 1, grid: [1, 1], size: [2, 3] }, &[]);
    let max = top.row(1).1[0];
    assert_eq!(map.reply, GpuReply::Map { id: 10, size: [2, 3], max });
    assert_eq!(map.buffers, [max.to_le_bytes().repeat(6)]);
}

#[test]
fn many_tokens_come_in_batches_and_a_cancel_is_heard_between_them() {
    let sample = Sample::new(100, 12, 5);
    for compute in [Compute::Cpu, Compute::Gpu] {
        let mut worker = worker(&sample);
        loaded(load(&mut worker, compute));
        let encode = GpuRequest::Encode { id: 9, tokens: 1300 };
        sample.assert_encoded(&ask(&mut worker, &encode, &[sample.hidden_bytes(1300)]), 9, 1300);
        // A row that is no number is counted from the first.
        let mut bytes = sample.hidden_bytes(1300);
        bytes[2 * 12 * 1250..][..2].copy_from_slice(&0x7e00u16.to_le_bytes());
        let failed = detail(ask(&mut worker, &encode, &[bytes]).reply);
        assert!(failed.contains("row 1250"), "{failed}");
    }
    let mut worker = worker(&sample);
    loaded(load(&mut worker, Compute::Cpu));
    *worker.host().cancel_at_breath.borrow_mut() = Some((2, worker.cancels().of(9)));
    let encode = GpuRequest::Encode { id: 9, tokens: 1300 };
    let failed = ask(&mut worker, &encode, &[sample.hidden_bytes(1300)]).reply;
    assert!(matches!(failed, GpuReply::Failed { id: Some(9), cancelled: true, .. }), "{failed:?}");
    sample.assert_encoded(&ask(&mut worker, &encode, &[sample.hidden_bytes(1300)]), 9, 1300);
}

#[test]
fn tile_shapes_are_measured_once_per_adapter() {
    // Just large enough to be measured.
    let sample = Sample::new(4100, 1024, 8);
    let mut worker = worker(&sample);
    if !on_gpu(&loaded(load(&mut worker, Compute::Gpu))) {
        return;
    }
    let notes = worker.host().notes.clone();
    let (key, found) = notes.borrow().iter().next().map(|(key, text)| (key.clone(), text.clone())).unwrap();
    assert!(key.starts_with("speeds ") && key.ends_with("F16") && found.split(' ').count() > 3, "{key}: {found}");
    // What is known is used, and stays.
    let known = vec![0.5f32.to_bits().to_string(); found.split(' ').count()].join(" ");
    notes.borrow_mut().insert(key.clone(), known.clone());
    loaded(load(&mut worker, Compute::Gpu));
    assert_eq!(notes.borrow().get(&key), Some(&known));
    sample.assert_encoded(&ask(&mut worker, &GpuRequest::Encode { id: 2, tokens: 2 }, &[sample.hidden_bytes(2)]), 2, 2);
    // What makes no sense is measured again.
    notes.borrow_mut().insert(key.clone(), "1 2".to_owned());
    loaded(load(&mut worker, Compute::Gpu));
    assert_eq!(notes.borrow().get(&key).map(|text| text.split(' ').count()), Some(found.split(' ').count()));
}

#[test]
fn every_tier_gives_the_same_on_both_paths() {
    let sample = Sample::new(1000, 36, 32);
    for compute in [Compute::Gpu, Compute::Cpu] {
        for tier in [Tier::F16, Tier::Int8, Tier::Int4] {
            let mut worker = worker(&sample);
            let sae = loaded(load_as(&mut worker, Some(tier), compute));
            assert_eq!(sae.tier, tier);
            if compute == Compute::Gpu {
                on_gpu(&sae);
            }
            let answer = ask(&mut worker, &GpuRequest::Encode { id: 1, tokens: 20 }, &[sample.hidden_bytes(20)]);
            sample.assert_encoded(&answer, 1, 20);
        }
    }
}

#[test]
fn a_slice_is_exact_for_its_latents() {
    let sample = Sample::new(300, 24, 16);
    let mut worker = worker(&sample);
    let sae = loaded(load_as(&mut worker, Some(Tier::Slice), Compute::Cpu));
    assert_eq!((sae.tier, sae.latents, sae.k), (Tier::Slice, 300, 16));
    let (tokens, top) = (5, sample.top(5));
    let thresholds: Vec<u8> = (0..tokens).flat_map(|token| top.row(token).1[15].to_le_bytes()).collect();
    let encode = GpuRequest::Encode { id: 4, tokens };
    let answer = ask(&mut worker, &encode, &[sample.hidden_bytes(tokens), thresholds]);
    let (indices, acts) = sample.read(&answer, 4, tokens);
    for token in 0..tokens {
        let threshold = top.row(token).1[15];
        let range = token as usize * 16..(token as usize + 1) * 16;
        let sliced = indices[range.clone()].iter().zip(&acts[range]).filter(|(_, act)| **act > 0.0);
        let sliced: Vec<(u32, f32)> = sliced.map(|(latent, act)| (*latent, *act)).collect();
        // Latents that only equal the threshold may have lost the tie in the whole SAE.
        let (latents, acts) = top.row(token);
        let whole = latents.iter().copied().zip(acts.iter().copied());
        let expected: Vec<(u32, f32)> =
            whole.filter(|(latent, act)| sample.slice.contains(latent) && *act > 0.0).collect();
        let surely = |pairs: &[(u32, f32)]| -> Vec<(u32, f32)> {
            pairs.iter().copied().filter(|(_, act)| *act > threshold).collect()
        };
        assert_eq!(surely(&sliced), surely(&expected), "token {token}");
        assert!(expected.iter().all(|pair| sliced.contains(pair)), "token {token}");
    }
    let missing = ask(&mut worker, &encode, &[sample.hidden_bytes(tokens)]);
    assert!(detail(missing.reply).contains("1 buffers; expected 2"));
}

#[test]
fn the_faster_path_is_chosen_and_said() {
    let sample = Sample::new(400, 32, 8);
    let mut worker = worker(&sample);
    let sae = loaded(load(&mut worker, Compute::Auto));
    let measured = sae.reason.starts_with("measured: ") && sae.reason.ends_with("on the CPU for 64 tokens");
    assert!(measured || sae.reason.starts_with("no WebGPU"), "{}", sae.reason);
    let answer = ask(&mut worker, &GpuRequest::Encode { id: 1, tokens: 3 }, &[sample.hidden_bytes(3)]);
    sample.assert_encoded(&answer, 1, 3);
}

#[test]
fn a_broken_device_says_so_and_the_next_load_comes_from_storage() {
    for fault in [Fault::Lost, Fault::Memory] {
        let sample = Sample::new(300, 24, 8);
        let mut worker = worker(&sample);
        if !on_gpu(&loaded(load(&mut worker, Compute::Gpu))) {
            return;
        }
        let json = serde_json::to_string(&GpuRequest::Break { fault }).unwrap();
        assert_eq!(pollster::block_on(worker.handle(&json, Vec::new())), None);
        let encode = GpuRequest::Encode { id: 2, tokens: 4 };
        let answer = ask(&mut worker, &encode, &[sample.hidden_bytes(4)]);
        assert!(matches!(answer.reply, GpuReply::Failed { id: Some(2), lost: true, .. }), "{:?}", answer.reply);
        let again = loaded(load(&mut worker, Compute::Gpu));
        assert_eq!((again.path, again.origin.fetched), (ComputePath::WebGpu, 0));
        let answer = ask(&mut worker, &encode, &[sample.hidden_bytes(4)]);
        sample.assert_encoded(&answer, 2, 4);
    }
}

#[test]
fn a_second_visit_needs_no_network_but_for_the_manifest() {
    let sample = Sample::new(2000, 64, 4);
    let mut first = worker(&sample);
    let origin = loaded(load(&mut first, Compute::Cpu)).origin;
    assert!(origin.fetched > 2 * 2000 * 64 && origin.stored == 0, "{origin:?}");
    let mut second = Worker::new(first.host.clone());
    second.host.offline_shards.set(true);
    let again = loaded(load(&mut second, Compute::Cpu)).origin;
    assert_eq!(again, Origin { stored: origin.fetched, fetched: 0 });
    let answer = ask(&mut second, &GpuRequest::Encode { id: 1, tokens: 2 }, &[sample.hidden_bytes(2)]);
    sample.assert_encoded(&answer, 1, 2);
}

#[test]
fn a_download_that_broke_off_goes_on() {
    let sample = Sample::new(3000, 64, 4);
    for ranges in [true, false] {
        let mut first = worker(&sample);
        // The connection dies for good after this many bytes.
        first.host.dies_after.set(Some(100_000));
        assert!(detail(load(&mut first, Compute::Cpu)).contains("could not fetch"));
        let mut second = Worker::new(first.host.clone());
        second.host.dies_after.set(None);
        second.host.ranges.set(ranges);
        let origin = loaded(load(&mut second, Compute::Cpu)).origin;
        assert!(origin.stored > 90_000, "{origin:?}");
        let answer = ask(&mut second, &GpuRequest::Encode { id: 1, tokens: 2 }, &[sample.hidden_bytes(2)]);
        sample.assert_encoded(&answer, 1, 2);
    }
}

#[test]
fn a_connection_that_stutters_is_taken_up_again() {
    let sample = Sample::new(3000, 64, 4);
    let mut worker = worker(&sample);
    worker.host.stutters_every.set(Some(40_000));
    loaded(load(&mut worker, Compute::Cpu));
    assert!(worker.host.pauses.get() > 3, "{} pauses", worker.host.pauses.get());
    let answer = ask(&mut worker, &GpuRequest::Encode { id: 1, tokens: 2 }, &[sample.hidden_bytes(2)]);
    sample.assert_encoded(&answer, 1, 2);
}

#[test]
fn a_damaged_shard_is_fetched_again_once_then_reported() {
    let sample = Sample::new(500, 32, 4);
    let mut worker = worker(&sample);
    loaded(load(&mut worker, Compute::Cpu));
    // In storage: a byte in the middle, or in the header.
    for at in [0, 3, 9, 2000] {
        worker.host.stored.borrow_mut().get_mut("f16-0").unwrap()[at] ^= 0x55;
        let origin = loaded(load(&mut worker, Compute::Cpu)).origin;
        assert!(origin.fetched > 0 && origin.stored > 0, "{origin:?}");
        let answer = ask(&mut worker, &GpuRequest::Encode { id: 1, tokens: 2 }, &[sample.hidden_bytes(2)]);
        sample.assert_encoded(&answer, 1, 2);
    }
    // On the server.
    let mut files = sample.files();
    files.get_mut("f16-0").unwrap()[3000] ^= 1;
    let mut broken = Worker::new(MemoryHost::new(files));
    let said = detail(load(&mut broken, Compute::Cpu));
    assert!(said.contains("f16-0 arrived damaged twice"), "{said}");
    assert_eq!(broken.host.opened.borrow().iter().filter(|url| *url == "sae/f16-0").count(), 2);
    assert!(!broken.host.stored.borrow().contains_key("f16-0"), "what is damaged is not kept");
}

#[test]
fn without_room_nothing_is_kept_and_it_is_said() {
    let sample = Sample::new(500, 32, 4);
    for (room, word) in [(Ok(1000), "there is room for 1 MiB"), (Err("private window"), "private window")] {
        let mut worker = worker(&sample);
        *worker.host.room.borrow_mut() = room.map_err(str::to_owned);
        let sae = loaded(load(&mut worker, Compute::Cpu));
        let said = sae.not_kept.unwrap();
        assert!(said.contains(word), "{said}");
        assert!(worker.host.stored.borrow().is_empty());
        let answer = ask(&mut worker, &GpuRequest::Encode { id: 1, tokens: 2 }, &[sample.hidden_bytes(2)]);
        sample.assert_encoded(&answer, 1, 2);
    }
}

#[test]
fn progress_ends_full_and_a_load_can_be_cancelled() {
    let sample = Sample::new(20_000, 120, 4);
    let mut worker = worker(&sample);
    load(&mut worker, Compute::Cpu);
    let received: Vec<(u64, u64)> = worker.host.progress();
    assert!(received.len() >= 4 && received.is_sorted(), "{received:?}");
    let (last, total) = *received.last().unwrap();
    assert_eq!(last, total);

    worker.cancels().of(1).cancel();
    let reply = load(&mut worker, Compute::Cpu);
    assert!(matches!(reply, GpuReply::Failed { cancelled: true, lost: false, .. }), "{reply:?}");
    // A number is used once; the flag is gone with its request.
    loaded(load(&mut worker, Compute::Cpu));
}

#[test]
fn bad_files_are_clear_failures() {
    let sample = Sample::new(64, 8, 4);
    let with = |name: &str, content: &[u8]| {
        let mut files = sample.files();
        files.insert(name.to_owned(), content.to_vec());
        detail(load(&mut Worker::new(MemoryHost::new(files)), Compute::Cpu))
    };
    assert!(with("manifest.json", b"{").contains("not the manifest of an SAE"));
    let manifest = String::from_utf8(sample.files()["manifest.json"].clone()).unwrap();
    assert!(with("manifest.json", manifest.replace("\"k\":4", "\"k\":65").as_bytes()).contains("make no SAE"));
    assert!(with("manifest.json", &vec![b' '; 5 << 20]).contains("longer than"));
    assert!(with("f16-0", b"<!DOCTYPE html>").contains("f16-0"));
    assert!(with("biases", &[]).contains("biases ends after 0 bytes"));
    let mut empty = worker(&sample);
    empty.host.files = Default::default();
    assert_eq!(detail(load(&mut empty, Compute::Cpu)), "could not fetch sae/manifest.json: 404");
    let later = ask(&mut empty, &GpuRequest::Encode { id: 3, tokens: 1 }, &[sample.hidden_bytes(1)]);
    assert_eq!(detail(later.reply), "no SAE is loaded yet");
    let mut files = sample.files();
    let tiers = manifest.replace("\"tier\":\"int4\"", "\"tier\":\"int8\"");
    files.insert("manifest.json".to_owned(), tiers.into_bytes());
    let none = detail(load_as(&mut Worker::new(MemoryHost::new(files)), Some(Tier::Int4), Compute::Cpu));
    assert!(none.contains("no weights in tier int4; it has f16, int8"), "{none}");
}

#[test]
fn bad_requests_are_clear_failures() {
    let sample = Sample::new(64, 8, 4);
    let mut worker = worker(&sample);
    let failed = |answer: Answer| detail(answer.reply);
    let encode = GpuRequest::Encode { id: 1, tokens: 2 };
    let map = GpuRequest::Map { id: 2, feature: 3, start: 0, grid: [1, 2], size: [4, 4] };
    assert_eq!(failed(ask(&mut worker, &map, &[])), "no SAE is loaded yet");
    assert!(detail(load(&mut worker, Compute::Server)).contains("does not compute on the server"));
    load(&mut worker, Compute::Cpu);
    assert!(failed(ask(&mut worker, &map, &[])).contains("nothing has been encoded yet"));
    assert!(failed(ask(&mut worker, &encode, &[])).contains("0 buffers; expected 1"));
    assert!(failed(ask(&mut worker, &encode, &[vec![0; 31]])).contains("31 bytes; expected 2 tokens × 8 f16 = 32"));
    let nan = half::f16::NAN.to_le_bytes().repeat(16);
    assert!(failed(ask(&mut worker, &encode, &[nan])).contains("row 0"));
    ask(&mut worker, &encode, &[sample.hidden_bytes(2)]);
    let unknown = GpuRequest::Map { id: 2, feature: 64, start: 0, grid: [1, 2], size: [4, 4] };
    assert_eq!(failed(ask(&mut worker, &unknown, &[])), "feature 64 does not exist: the SAE has 64 latents");
    let outside = GpuRequest::Map { id: 2, feature: 3, start: 1, grid: [1, 2], size: [4, 4] };
    assert!(failed(ask(&mut worker, &outside, &[])).contains("patch tokens has 1 values; expected 2"));
    let answer = pollster::block_on(worker.handle("{\"dance\":{}}", Vec::new())).unwrap();
    assert!(failed(answer).contains("not understood"));
}
