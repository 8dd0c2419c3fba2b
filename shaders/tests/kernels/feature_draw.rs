//! What is drawn, read back from a picture, against f64 and the twin.

use shaders::kernels::feature_draw::FeatureDraw;
use shaders::{Error, Gpu, MapShape, cpu};
use wgpu::TextureViewDescriptor;

use crate::common::{Random, two_worlds};

two_worlds!(drawings_are_close_to_f64, silent_and_lit_pictures, bad_input_is_refused);

/// Levels of a picture `[height, width, 4]` in f64.
fn truth(patches: &[f32], shape: MapShape, scale_max: f32, tint: f32) -> Vec<f64> {
    let source = |at: u32, size: u32, cells: u32| {
        let position = (f64::from(at) + 0.5) * f64::from(cells) / f64::from(size) - 0.5;
        position.clamp(0.0, f64::from(cells - 1))
    };
    // Hat functions: the bilinear weight of each patch.
    let weight = |position: f64, cell: u32| (1.0 - (position - f64::from(cell)).abs()).max(0.0);
    let mut levels = Vec::new();
    for y in 0..shape.height {
        for x in 0..shape.width {
            let (row, column) = (source(y, shape.height, shape.rows), source(x, shape.width, shape.columns));
            let mut activation = 0.0;
            for r in 0..shape.rows {
                for c in 0..shape.columns {
                    let patch = f64::from(patches[(r * shape.columns + c) as usize]);
                    activation += weight(row, r) * weight(column, c) * patch;
                }
            }
            let light = (activation / f64::from(scale_max)).clamp(0.0, 1.0);
            // A warm layer over a black one.
            let (warm, black) = (f64::from(tint) * light, 0.75 * (1.0 - light));
            levels.extend([255.0, 178.0, 64.0].map(|level: f64| level * warm));
            levels.push(255.0 * (1.0 - (1.0 - warm) * (1.0 - black)));
        }
    }
    levels
}

async fn drawn(gpu: &Gpu, patches: &[f32], shape: MapShape, scale_max: f32, tint: f32) -> Vec<u8> {
    let picture = gpu.picture(shape.width, shape.height);
    let draw = FeatureDraw::new(gpu, picture.format());
    let view = picture.create_view(&TextureViewDescriptor::default());
    draw.draw(gpu, patches, shape, scale_max, tint, &view).unwrap();
    gpu.read_picture(&picture).await.unwrap()
}

fn assert_close(levels: &[u8], expected: &[f64], what: &str) {
    assert_eq!(levels.len(), expected.len(), "{what}");
    for (at, (&level, &expected)) in levels.iter().zip(expected).enumerate() {
        // Written so that NaN fails.
        let close = (f64::from(level) - expected).abs() <= 2.0;
        assert!(close, "{what}, pixel {}, channel {}: {level}, not {expected}", at / 4, at % 4);
    }
}

async fn drawings_are_close_to_f64(gpu: Gpu) {
    let mut random = Random(4);
    let mut shapes = vec![
        ([1, 1], [1, 1], 0.5),
        ([8, 8], [64, 64], 0.35),
        ([3, 5], [50, 37], 1.0),
        ([1, 9], [3, 200], 0.0),
        ([24, 2], [11, 1], 0.2),
    ];
    for _ in 0..12 {
        let grid = [random.up_to(25), random.up_to(25)];
        shapes.push((grid, [random.up_to(90), random.up_to(90)], random.uniform().abs()));
    }
    for (grid, size, tint) in shapes {
        let shape = MapShape::new(grid, size).unwrap();
        // Some are silent, some above the scale.
        let patches: Vec<f32> = random.uniforms(shape.patches(), 5.0).iter().map(|act| act.max(0.0)).collect();
        let expected = truth(&patches, shape, 4.0, tint);
        let what = format!("{grid:?} to {size:?}");
        let picture = drawn(&gpu, &patches, shape, 4.0, tint).await;
        let twin = cpu::feature_draw::feature_draw(&patches, shape, 4.0, tint).unwrap();
        assert_close(&picture, &expected, &what);
        assert_close(&twin, &expected, &format!("{what}, twin"));
        let levels: Vec<f64> = twin.iter().map(|&level| f64::from(level)).collect();
        assert_close(&picture, &levels, &format!("{what}, against the twin"));
        // Premultiplied: no colour is stronger than its alpha.
        assert!(picture.chunks_exact(4).all(|pixel| pixel[..3].iter().all(|&level| level <= pixel[3])), "{what}");
    }
}

async fn silent_and_lit_pictures(gpu: Gpu) {
    let shape = MapShape::new([2, 3], [10, 70]).unwrap();
    // A quarter of the brightness stays; full light without a tint leaves the picture alone.
    for (activation, tint, pixel) in
        [(0.0, 0.4, [0.0, 0.0, 0.0, 191.25]), (9.0, 0.0, [0.0; 4]), (9.0, 1.0, [255.0, 178.0, 64.0, 255.0])]
    {
        let picture = drawn(&gpu, &[activation; 6], shape, 3.0, tint).await;
        assert_close(&picture, &pixel.repeat(shape.pixels()), &format!("{activation}, tint {tint}"));
    }
}

async fn bad_input_is_refused(gpu: Gpu) {
    let shape = MapShape::new([2, 2], [4, 4]).unwrap();
    let picture = gpu.picture(4, 4);
    let draw = FeatureDraw::new(&gpu, picture.format());
    let view = picture.create_view(&TextureViewDescriptor::default());
    let short = Error::Length { what: "patches [rows, columns]", given: 3, expected: 4 };
    let with_nan = [1.0, f32::NAN, 1.0, 1.0];
    let cases: [(&[f32], f32, f32, Option<Error>); 5] = [
        (&[1.0; 3], 1.0, 0.5, Some(short)),
        (&with_nan, 1.0, 0.5, Some(Error::NotFinite { what: "patches [rows columns]", row: 1 })),
        (&[1.0; 4], 0.0, 0.5, None),
        (&[1.0; 4], f32::NAN, 0.5, None),
        (&[1.0; 4], 1.0, 1.5, None),
    ];
    for (patches, scale_max, tint, expected) in cases {
        let refused = draw.draw(&gpu, patches, shape, scale_max, tint, &view).expect_err("bad input");
        assert_eq!(cpu::feature_draw::feature_draw(patches, shape, scale_max, tint), Err(refused.clone()));
        match expected {
            Some(expected) => assert_eq!(refused, expected),
            None => assert!(matches!(refused, Error::Size { .. }), "{refused:?}"),
        }
    }
    let small = gpu.picture(4, 3).create_view(&TextureViewDescriptor::default());
    let refused = draw.draw(&gpu, &[1.0; 4], shape, 1.0, 0.5, &small);
    let expected = Error::Size { what: "height of the view", given: 3, expected: "4".to_owned() };
    assert_eq!(refused, Err(expected));
}
