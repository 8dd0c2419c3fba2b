//! Questions about an encode and light on a canvas, on both paths, against plain loops in f64.

use shaders::cpu::feature_draw::feature_draw;
use shaders::{MapShape, Screen};

use super::*;

const TOKENS: u32 = 20;
/// In no order.
const SELECTED: [u32; 6] = [4, 3, 17, 9, 5, 10];

/// A worker that has encoded, and where it computes.
fn encoded(sample: &Sample, tier: Tier, compute: Compute) -> (Worker<MemoryHost>, ComputePath) {
    let mut worker = worker(sample);
    let sae = loaded(load_as(&mut worker, Some(tier), compute));
    if compute == Compute::Gpu {
        on_gpu(&sae);
    }
    let answer = ask(&mut worker, &GpuRequest::Encode { id: 1, tokens: TOKENS }, &[sample.hidden_bytes(TOKENS)]);
    sample.assert_encoded(&answer, 1, TOKENS);
    (worker, sae.path)
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn words_of(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
}

/// The buffers of an answer with numbers.
fn numbers(answer: Answer, path: ComputePath) -> Vec<Vec<u8>> {
    match answer.reply {
        GpuReply::Numbers { id: 7, path: computed } => assert_eq!(computed, path),
        other => panic!("{other:?}"),
    }
    answer.buffers
}

/// Activation of each latent on a token, from the top k.
fn acts(sample: &Sample, token: u32) -> Vec<f32> {
    let top = sample.top(TOKENS);
    let mut acts = vec![0.0; sample.shape.latents as usize];
    let (latents, values) = top.row(token);
    latents.iter().zip(values).for_each(|(latent, value)| acts[*latent as usize] = *value);
    acts
}

/// Features that fire on the selected tokens with their sum and maximum; strongest maximum first, ties to the lower.
fn totals(sample: &Sample) -> Vec<(u32, f64, f32)> {
    let rows: Vec<Vec<f32>> = SELECTED.iter().map(|&token| acts(sample, token)).collect();
    let total = |latent: u32| {
        let values = || rows.iter().map(|row| row[latent as usize]);
        (latent, values().map(f64::from).sum::<f64>(), values().fold(0.0, f32::max))
    };
    let mut totals: Vec<_> = (0..sample.shape.latents).map(total).filter(|total| total.2 > 0.0).collect();
    totals.sort_by(|a, b| b.2.total_cmp(&a.2));
    totals
}

#[test]
fn the_strongest_features_of_some_tokens() {
    let sample = Sample::new(400, 36, 16);
    for compute in [Compute::Gpu, Compute::Cpu] {
        let (mut worker, _) = encoded(&sample, Tier::F16, compute);
        for by_mean in [false, true] {
            let mut expected: Vec<(u32, f32)> = totals(&sample)
                .iter()
                .map(|&(latent, sum, max)| (latent, if by_mean { (sum / 6.0) as f32 } else { max }))
                .collect();
            expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            expected.truncate(30);
            let (features, values): (Vec<u32>, Vec<f32>) = expected.into_iter().unzip();
            let answer = ask(&mut worker, &GpuRequest::Rank { id: 7, by_mean, count: 30 }, &[words(&SELECTED)]);
            assert_eq!(
                numbers(answer, ComputePath::Cpu),
                [words(&features), bytes_of(&values)],
                "{compute:?}, by mean {by_mean}"
            );
        }
    }
}

#[test]
fn one_feature_on_some_tokens() {
    let sample = Sample::new(400, 36, 16);
    let totals = totals(&sample);
    let rows: Vec<Vec<f32>> = SELECTED.iter().map(|&token| acts(&sample, token)).collect();
    let fires = |latent: u32, row: &[f32]| row[latent as usize] > 0.0;
    let place = 3;
    let (feature, sum, max) = totals[place];
    let mut counts = [0; 5];
    for value in rows.iter().map(|row| row[feature as usize]).filter(|value| *value > 0.0) {
        counts[((value * 5.0 / max) as usize).min(4)] += 1;
    }
    // Both, either, feature.
    let mut together: Vec<(u32, u32, u32)> = totals
        .iter()
        .filter(|total| total.0 != feature)
        .map(|&(other, ..)| {
            let count = |holds: fn(bool, bool) -> bool| {
                rows.iter().filter(|row| holds(fires(feature, row), fires(other, row))).count() as u32
            };
            (count(|a, b| a && b), count(|a, b| a || b), other)
        })
        .filter(|found| found.0 > 0)
        .collect();
    together.sort_by(|a, b| (b.0 * a.1).cmp(&(a.0 * b.1)).then(a.2.cmp(&b.2)));
    together.truncate(4);
    assert_eq!(together.len(), 4, "the sample has too few pairs");
    let mut expected = vec![place as u32 + 1, totals.len() as u32];
    expected.extend(counts);
    expected.extend(together.iter().map(|found| found.2));
    expected.extend(together.iter().map(|found| found.0));
    let silent = (0..400).find(|latent| totals.iter().all(|total| total.0 != *latent)).unwrap();

    for compute in [Compute::Gpu, Compute::Cpu] {
        let (mut worker, _) = encoded(&sample, Tier::Int8, compute);
        let mut facts = |feature: u32| {
            let request = GpuRequest::Facts { id: 7, feature, bins: 5, count: 4 };
            numbers(ask(&mut worker, &request, &[words(&SELECTED)]), ComputePath::Cpu)
        };
        let answer = facts(feature);
        assert_eq!(words_of(&answer[0]), expected, "{compute:?}");
        assert_eq!(answer[1], bytes_of(&[(sum / 6.0) as f32, max]), "{compute:?}");
        let answer = facts(silent);
        assert_eq!(words_of(&answer[0]), [&[0, totals.len() as u32][..], &[0; 5]].concat(), "{compute:?}");
        assert_eq!(answer[1], bytes_of(&[0.0, 0.0]), "{compute:?}");
    }
}

/// Fraction of variance unexplained of the selected tokens, and the mean relative error.
fn explained(sample: &Sample) -> (f64, f64) {
    let d = sample.shape.d_model as usize;
    let hidden = sample.hidden(TOKENS);
    let row = |token: u32| -> Vec<f64> { hidden[token as usize * d..][..d].iter().map(|&x| f64::from(x)).collect() };
    let count = SELECTED.len() as f64;
    let mean: Vec<f64> =
        (0..d).map(|channel| SELECTED.iter().map(|&token| row(token)[channel]).sum::<f64>() / count).collect();
    let (mut residual, mut variance, mut relative) = (0.0, 0.0, 0.0);
    for token in SELECTED {
        let (x, acts) = (row(token), acts(sample, token));
        let decoded = |channel: usize| {
            let terms =
                acts.iter().enumerate().map(|(at, &act)| f64::from(act) * f64::from(sample.decoder[at * d + channel]));
            terms.sum::<f64>() + f64::from(sample.b_dec[channel])
        };
        let error: f64 = (0..d).map(|channel| (x[channel] - decoded(channel)).powi(2)).sum();
        residual += error;
        variance += (0..d).map(|channel| (x[channel] - mean[channel]).powi(2)).sum::<f64>();
        relative += (error / x.iter().map(|x| x * x).sum::<f64>()).sqrt() / count;
    }
    (residual / variance, relative)
}

fn reconstruct(worker: &mut Worker<MemoryHost>) -> Answer {
    ask(worker, &GpuRequest::Reconstruct { id: 7 }, &[words(&SELECTED)])
}

fn assert_explained(sample: &Sample, answer: Answer, path: ComputePath) {
    let buffers = numbers(answer, path);
    assert_eq!((buffers.len(), buffers[0].len()), (1, 8));
    let (fvu, relative) = explained(sample);
    for (given, expected) in floats_of(&buffers[0]).into_iter().zip([fvu, relative]) {
        // Written so that NaN fails.
        assert!((f64::from(given) - expected).abs() <= 1e-5 * expected, "{given}, not {expected}");
    }
}

#[test]
fn how_much_is_explained_and_which_rows_are_near() {
    let sample = Sample::new(1000, 36, 16);
    let row = |latent: u32| &sample.decoder[latent as usize * 36..][..36];
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let cosine = |a: &[f32], b: &[f32]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    for compute in [Compute::Gpu, Compute::Cpu] {
        for tier in [Tier::F16, Tier::Int8, Tier::Int4] {
            let (mut worker, path) = encoded(&sample, tier, compute);
            let decoders = |worker: &Worker<MemoryHost>| {
                worker.host.opened.borrow().iter().filter(|url| url.contains("decoder")).count()
            };
            assert_eq!(decoders(&worker), 0, "it comes when it is asked for");
            assert_explained(&sample, reconstruct(&mut worker), path);
            assert_eq!(decoders(&worker), 2);

            let request = GpuRequest::Neighbours { id: 7, feature: 321, count: 5 };
            let answer = numbers(ask(&mut worker, &request, &[]), path);
            assert_eq!(decoders(&worker), 2, "the second time it comes from storage");
            let (features, cosines) = (words_of(&answer[0]), floats_of(&answer[1]));
            assert_eq!((features.len(), cosines.len()), (5, 5));
            assert!(cosines.is_sorted_by(|a, b| a >= b), "{cosines:?}");
            for (&feature, &given) in features.iter().zip(&cosines) {
                let expected = cosine(row(321), row(feature));
                assert!(feature != 321 && (f64::from(given) - expected).abs() < 1e-5, "{feature}: {given}, {expected}");
            }
            let others = (0..1000).filter(|other| *other != 321 && !features.contains(other));
            let best = others.map(|other| cosine(row(321), row(other))).fold(-1.0, f64::max);
            assert!(best <= f64::from(cosines[4]) + 1e-5, "{best} was left out");
        }
    }
}

#[test]
fn a_damaged_decoder_is_fetched_again_once_then_reported() {
    let sample = Sample::new(400, 36, 16);
    let (mut first, path) = encoded(&sample, Tier::F16, Compute::Cpu);
    assert_explained(&sample, reconstruct(&mut first), path);
    // In storage: the header's length, the header, weights.
    for at in [0, 9, 2000, 2001] {
        first.host.opened.borrow_mut().clear();
        first.host.stored.borrow_mut().get_mut("f16-decoder-0").unwrap()[at] ^= 0x7f;
        assert_explained(&sample, reconstruct(&mut first), path);
        assert_eq!(*first.host.opened.borrow(), ["sae/f16-decoder-0"]);
    }
    // On the server.
    let mut files = sample.files();
    files.get_mut("f16-decoder-0").unwrap()[3000] ^= 1;
    let mut broken = Worker::new(MemoryHost::new(files));
    loaded(load(&mut broken, Compute::Cpu));
    ask(&mut broken, &GpuRequest::Encode { id: 1, tokens: TOKENS }, &[sample.hidden_bytes(TOKENS)]);
    let said = detail(reconstruct(&mut broken).reply);
    assert!(said.contains("f16-decoder-0 arrived damaged twice"), "{said}");
    assert!(!broken.host.stored.borrow().contains_key("f16-decoder-0"), "what is damaged is not kept");
}

#[test]
fn a_lost_device_leaves_the_numbers_to_the_cpu() {
    let sample = Sample::new(400, 36, 16);
    for fault in [Fault::Lost, Fault::Memory] {
        let (mut worker, path) = encoded(&sample, Tier::F16, Compute::Gpu);
        if path != ComputePath::WebGpu {
            return;
        }
        let rank = GpuRequest::Rank { id: 7, by_mean: false, count: 9 };
        let before = numbers(ask(&mut worker, &rank, &[words(&SELECTED)]), ComputePath::Cpu);
        let json = serde_json::to_string(&GpuRequest::Break { fault }).unwrap();
        assert_eq!(pollster::block_on(worker.handle(&json, Vec::new())), None);
        let after = ask(&mut worker, &rank, &[words(&SELECTED)]);
        assert_eq!(numbers(after, ComputePath::Cpu), before);
        assert_explained(&sample, reconstruct(&mut worker), ComputePath::Cpu);
        // The page hears of it at the next encode, and loads again.
        let encode = GpuRequest::Encode { id: 2, tokens: TOKENS };
        let failed = ask(&mut worker, &encode, &[sample.hidden_bytes(TOKENS)]).reply;
        assert!(matches!(failed, GpuReply::Failed { id: Some(2), lost: true, .. }), "{failed:?}");
        loaded(load(&mut worker, Compute::Gpu));
        sample.assert_encoded(&ask(&mut worker, &encode, &[sample.hidden_bytes(TOKENS)]), 2, TOKENS);
        assert_eq!(numbers(ask(&mut worker, &rank, &[words(&SELECTED)]), ComputePath::Cpu), before);
    }
}

#[test]
fn light_is_drawn_on_the_screen_that_was_given() {
    let sample = Sample::new(400, 36, 16);
    let light: Vec<f32> = (0..12).map(|patch| patch as f32 / 11.0).collect();
    let draw = |worker: &mut Worker<MemoryHost>, size: [u32; 2]| {
        ask(worker, &GpuRequest::Draw { id: 7, grid: [3, 4], size }, &[bytes_of(&light)])
    };
    let (mut worker, path) = encoded(&sample, Tier::F16, Compute::Gpu);
    if path != ComputePath::WebGpu {
        return;
    }
    assert!(detail(draw(&mut worker, [30, 40]).reply).contains("no canvas"));
    worker.set_screen(Screen::Picture);
    let assert_drawn = |worker: &mut Worker<MemoryHost>, size: [u32; 2]| {
        assert!(numbers(draw(worker, size), path).is_empty());
        let (canvas, gpu) = (worker.canvas.as_ref().unwrap(), worker.engine.as_ref().unwrap().gpu().unwrap());
        let pixels = pollster::block_on(canvas.pixels(gpu)).unwrap();
        let expected = feature_draw(&light, MapShape::new([3, 4], size).unwrap(), 1.0, 0.2).unwrap();
        assert_eq!(pixels.len(), expected.len());
        assert!(pixels.iter().zip(&expected).all(|(given, right)| given.abs_diff(*right) <= 2), "{size:?}");
    };
    for size in [[30, 40], [30, 40], [17, 65]] {
        assert_drawn(&mut worker, size);
    }
    let wrong = ask(&mut worker, &GpuRequest::Draw { id: 7, grid: [3, 4], size: [0, 9] }, &[bytes_of(&light)]);
    assert!(detail(wrong.reply).contains("height is 0"));
    let wrong = ask(&mut worker, &GpuRequest::Draw { id: 7, grid: [3, 5], size: [9, 9] }, &[bytes_of(&light)]);
    assert!(detail(wrong.reply).contains("12 values; expected 15"));

    // Another device takes the same screen.
    let json = serde_json::to_string(&GpuRequest::Break { fault: Fault::Memory }).unwrap();
    assert_eq!(pollster::block_on(worker.handle(&json, Vec::new())), None);
    let failed = draw(&mut worker, [30, 40]).reply;
    assert!(matches!(failed, GpuReply::Failed { id: Some(7), lost: true, .. }), "{failed:?}");
    loaded(load(&mut worker, Compute::Gpu));
    assert_drawn(&mut worker, [30, 40]);

    let (mut on_cpu, _) = encoded(&sample, Tier::F16, Compute::Cpu);
    on_cpu.set_screen(Screen::Picture);
    assert!(detail(draw(&mut on_cpu, [30, 40]).reply).contains("no canvas"));
}

#[test]
fn questions_that_make_no_sense_are_clear_failures() {
    let sample = Sample::new(64, 8, 4);
    let mut worker = worker(&sample);
    let rank = GpuRequest::Rank { id: 7, by_mean: true, count: 9 };
    let facts = |feature| GpuRequest::Facts { id: 7, feature, bins: 4, count: 3 };
    let ask = |worker: &mut Worker<MemoryHost>, request: &GpuRequest, buffers: &[Vec<u8>]| {
        detail(super::ask(worker, request, buffers).reply)
    };
    assert_eq!(ask(&mut worker, &rank, &[words(&[0])]), "no SAE is loaded yet");
    assert!(loaded(load(&mut worker, Compute::Cpu)).decoder.is_some_and(|bytes| bytes > 64 * 8 * 2));
    assert!(ask(&mut worker, &rank, &[words(&[0])]).contains("nothing has been encoded yet"));
    super::ask(&mut worker, &GpuRequest::Encode { id: 1, tokens: 2 }, &[sample.hidden_bytes(2)]);
    assert!(ask(&mut worker, &rank, &[]).contains("0 buffers; expected one"));
    for request in [&rank, &facts(3), &GpuRequest::Reconstruct { id: 7 }] {
        assert!(ask(&mut worker, request, &[words(&[1, 2])]).contains("token is 2; expected less than 2"));
    }
    assert!(ask(&mut worker, &facts(64), &[words(&[1])]).contains("feature 64 does not exist"));
    let neighbours = GpuRequest::Neighbours { id: 7, feature: 64, count: 3 };
    assert!(ask(&mut worker, &neighbours, &[]).contains("feature 64 does not exist"));
    worker.cancels().of(7).cancel();
    let reply = super::ask(&mut worker, &GpuRequest::Reconstruct { id: 7 }, &[words(&[0])]).reply;
    assert!(matches!(reply, GpuReply::Failed { cancelled: true, lost: false, .. }), "{reply:?}");

    // A slice cannot reconstruct, and not every server has a decoder.
    assert_eq!(loaded(load_as(&mut worker, Some(Tier::Slice), Compute::Cpu)).decoder, None);
    let mut files = sample.files();
    let mut manifest: SaeManifest = serde_json::from_slice(&files["manifest.json"]).unwrap();
    manifest.tiers.iter_mut().for_each(|tier| tier.decoder.clear());
    files.insert("manifest.json".to_owned(), serde_json::to_vec(&manifest).unwrap());
    let mut without = Worker::new(MemoryHost::new(files));
    assert_eq!(loaded(load(&mut without, Compute::Cpu)).decoder, None);
    let neighbours = GpuRequest::Neighbours { id: 7, feature: 6, count: 3 };
    assert!(ask(&mut without, &neighbours, &[]).contains("quantize --decoder"));
}
