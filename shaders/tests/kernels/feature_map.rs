//! The map against f64, on awkward grids.

use shaders::kernels::feature_map::FeatureMap;
use shaders::pace::Pace;
use shaders::{Cancel, Error, Gpu, MapShape, TopK, cpu};

use crate::common::{Random, two_worlds};

two_worlds!(
    maps_are_close_to_f64,
    constant_and_absent_features,
    small_submissions_give_the_same_answer,
    work_can_be_cancelled_midway,
    bad_shapes_are_refused,
);

/// A sparse answer of `tokens` rows in which feature 5 is listed in about half the rows.
fn sparse(tokens: u32, k: u32, seed: u64) -> TopK {
    let mut random = Random(seed);
    let mut top = TopK { tokens, ..TopK::empty(k) };
    for _ in 0..tokens {
        let feature = if random.uniform() > 0.0 { 5 } else { 6 };
        let rank = ((random.uniform() + 1.0) / 2.0 * k as f32) as u32;
        top.top_indices.extend((0..k).map(|i| if i == rank { feature } else { 100 + i }));
        top.top_acts.extend(random.uniforms(k as usize, 5.0).iter().map(|act| act.abs()));
    }
    top
}

/// The definition, in f64.
fn truth(top: &TopK, feature: u32, start: u32, shape: MapShape) -> Vec<f64> {
    let patch = |row: u32, column: u32| {
        let (latents, acts) = top.row(start + row * shape.columns + column);
        latents.iter().position(|&latent| latent == feature).map_or(0.0, |rank| f64::from(acts[rank]))
    };
    let source = |at: u32, size: u32, cells: u32| {
        let position = (f64::from(at) + 0.5) * f64::from(cells) / f64::from(size) - 0.5;
        position.clamp(0.0, f64::from(cells - 1))
    };
    let mut map = Vec::new();
    for y in 0..shape.height {
        for x in 0..shape.width {
            let (row, column) = (source(y, shape.height, shape.rows), source(x, shape.width, shape.columns));
            let mut sum = 0.0;
            for r in 0..shape.rows {
                for c in 0..shape.columns {
                    // Hat functions: the bilinear weight of each patch.
                    let weight = |position: f64, cell: u32| (1.0 - (position - f64::from(cell)).abs()).max(0.0);
                    sum += weight(row, r) * weight(column, c) * patch(r, c);
                }
            }
            map.push(sum);
        }
    }
    map
}

fn assert_close(map: &[f32], truth: &[f64], what: &str) {
    assert_eq!(map.len(), truth.len(), "{what}");
    for (at, (&value, &expected)) in map.iter().zip(truth).enumerate() {
        // Written so that NaN fails.
        assert!((f64::from(value) - expected).abs() <= 1e-4, "{what}, pixel {at}: {value} where {expected} is right");
    }
}

async fn maps_are_close_to_f64(gpu: Gpu) {
    let kernel = FeatureMap::new(&gpu);
    let mut shapes = vec![
        ([1, 1], [1, 1], 0, 1),
        ([8, 8], [64, 64], 0, 32),
        ([3, 5], [50, 37], 4, 7),
        ([1, 9], [3, 200], 2, 256),
        ([24, 2], [11, 1], 1, 3),
    ];
    let mut random = Random(35);
    for _ in 0..12 {
        let grid = [random.up_to(25), random.up_to(25)];
        let size = [random.up_to(90), random.up_to(90)];
        shapes.push((grid, size, random.up_to(30), random.up_to(64)));
    }
    for (grid, size, start, k) in shapes {
        let shape = MapShape::new(grid, size).unwrap();
        let top = sparse(start + grid[0] * grid[1] + 2, k, 7);
        let expected = truth(&top, 5, start, shape);
        let what = format!("{grid:?} to {size:?}");
        assert_close(&kernel.map(&gpu, &top, 5, start, shape, &Cancel::default()).await.unwrap(), &expected, &what);
        assert_close(&cpu::feature_map::feature_map(&top, 5, start, shape).unwrap(), &expected, &what);
    }
}

async fn constant_and_absent_features(gpu: Gpu) {
    let kernel = FeatureMap::new(&gpu);
    let top = TopK { tokens: 6, k: 1, top_indices: vec![3; 6], top_acts: vec![2.5; 6] };
    let shape = MapShape::new([2, 3], [17, 9]).unwrap();
    assert_close(&kernel.map(&gpu, &top, 3, 0, shape, &Cancel::default()).await.unwrap(), &[2.5; 17 * 9], "constant");
    assert_eq!(kernel.map(&gpu, &top, 4, 0, shape, &Cancel::default()).await.unwrap(), [0.0; 17 * 9]);
}

async fn small_submissions_give_the_same_answer(gpu: Gpu) {
    let mut kernel = FeatureMap::new(&gpu);
    let top = sparse(8, 4, 3);
    let shape = MapShape::new([2, 3], [70, 20]).unwrap();
    let whole = kernel.map(&gpu, &top, 5, 1, shape, &Cancel::default()).await.unwrap();
    // A row of pixels; some, and a rest.
    for work in [1.0, 20_000.0] {
        kernel.set_pace(Pace::at_most(work));
        let pieces = kernel.map(&gpu, &top, 5, 1, shape, &Cancel::default()).await.unwrap();
        assert_eq!(pieces, whole, "{work} at a time");
    }
}

async fn work_can_be_cancelled_midway(gpu: Gpu) {
    let mut kernel = FeatureMap::new(&gpu);
    let top = sparse(6, 2, 1);
    let shape = MapShape::new([2, 3], [12, 4]).unwrap();
    // One submission is over before the sixth check, one for each of twelve rows is not.
    let whole = kernel.map(&gpu, &top, 5, 0, shape, &Cancel::at_check(6)).await.unwrap();
    kernel.set_pace(Pace::at_most(1.0));
    assert_eq!(kernel.map(&gpu, &top, 5, 0, shape, &Cancel::at_check(6)).await, Err(Error::Cancelled));
    let answer = kernel.map(&gpu, &top, 5, 0, shape, &Cancel::default()).await;
    assert_eq!(answer, Ok(whole), "the next one is as if nothing had been");
}

async fn bad_shapes_are_refused(gpu: Gpu) {
    let top = sparse(6, 2, 1);
    let shape = MapShape::new([2, 3], [4, 4]).unwrap();
    let expected = Error::Length { what: "patch tokens", given: 5, expected: 6 };
    assert_eq!(FeatureMap::new(&gpu).map(&gpu, &top, 5, 1, shape, &Cancel::default()).await, Err(expected.clone()));
    assert_eq!(cpu::feature_map::feature_map(&top, 5, 1, shape), Err(expected));
    for (grid, size) in [([0, 1], [1, 1]), ([1, 1], [1, 0]), ([1, 1], [5000, 1])] {
        assert!(matches!(MapShape::new(grid, size), Err(Error::Size { .. })), "{grid:?} {size:?}");
    }
}
