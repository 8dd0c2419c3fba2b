// One feature's patch activations as light, drawn over a picture that lies under the canvas:
//
//     light = clamp(activation / scale_max, 0, 1),  activation upsampled as in `feature_map`
//     color = tint light WARM  over  black of opacity (1 - light) DIM,  premultiplied
//
// so where the feature is silent the picture steps back to 1 - DIM of its brightness, and where it fires it is warm.

@group(0) @binding(0) var<uniform> params: Params;
// [rows, columns]
@group(0) @binding(1) var<storage, read> patches: array<f32>;

struct Params {
    rows: u32,
    columns: u32,
    height: u32,
    width: u32,
    // 1 / scale_max
    inverse_scale: f32,
    tint: f32,
    // A uniform's size is a multiple of 16 bytes.
    padding: vec2<u32>,
}

const DIM: f32 = 0.75;
// In 255ths.
const WARM: vec3<f32> = vec3<f32>(255.0, 178.0, 64.0);

// Where pixel `at` of `size` lies between `cells` patch centres: (first patch, second patch, share of the second).
fn between(at: u32, size: u32, cells: u32) -> vec3<f32> {
    let position = (f32(at) + 0.5) * f32(cells) / f32(size) - 0.5;
    let clamped = clamp(position, 0.0, f32(cells - 1u));
    let first = floor(clamped);
    return vec3<f32>(first, min(first + 1.0, f32(cells - 1u)), clamped - first);
}

fn row_at(row: u32, x: vec3<f32>) -> f32 {
    let start = row * params.columns;
    return mix(patches[start + u32(x.x)], patches[start + u32(x.y)], x.z);
}

// One triangle that covers the target.
@vertex
fn cover(@builtin(vertex_index) vertex: u32) -> @builtin(position) vec4<f32> {
    let corner = vec2<f32>(f32((vertex & 1u) * 4u), f32((vertex & 2u) * 2u));
    return vec4<f32>(corner - vec2<f32>(1.0), 0.0, 1.0);
}

@fragment
fn main(@builtin(position) position: vec4<f32>) -> @location(0) vec4<f32> {
    let x = between(u32(position.x), params.width, params.columns);
    let y = between(u32(position.y), params.height, params.rows);
    let activation = mix(row_at(u32(y.x), x), row_at(u32(y.y), x), y.z);
    let light = clamp(activation * params.inverse_scale, 0.0, 1.0);
    let warmth = params.tint * light;
    let shade = (1.0 - light) * DIM;
    return vec4<f32>(WARM * (warmth / 255.0), warmth + shade * (1.0 - warmth));
}
