// One feature's activations over the patch grid, bilinearly upsampled to pixels.
//
// `gather` finds the feature among each patch's top k (0 where it is not listed); `main` interpolates: pixel centres
// at (i + 0.5) / size (align_corners = false), clamped at the edges.

@group(0) @binding(0) var<uniform> params: Params;
// [rows columns, k]
@group(0) @binding(1) var<storage, read> top_indices: array<u32>;
// [rows columns, k]
@group(0) @binding(2) var<storage, read> top_acts: array<f32>;
// [rows, columns]
@group(0) @binding(3) var<storage, read_write> patches: array<f32>;
// [height, width]
@group(0) @binding(4) var<storage, read_write> map: array<f32>;

struct Params {
    feature: u32,
    k: u32,
    rows: u32,
    columns: u32,
    height: u32,
    width: u32,
    // The rows of pixels first_row .. end_row.
    first_row: u32,
    end_row: u32,
}

const THREADS: u32 = 256;
const SIDE: u32 = 16;

@compute @workgroup_size(THREADS)
fn gather(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let patch_index = id.y * groups.x * THREADS + id.x;
    if patch_index >= params.rows * params.columns {
        return;
    }
    var activation = 0.0;
    for (var i = patch_index * params.k; i < (patch_index + 1u) * params.k; i++) {
        if top_indices[i] == params.feature {
            activation = top_acts[i];
        }
    }
    patches[patch_index] = activation;
}

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

@compute @workgroup_size(SIDE, SIDE)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = params.first_row + id.y;
    if id.x >= params.width || row >= params.end_row {
        return;
    }
    let x = between(id.x, params.width, params.columns);
    let y = between(row, params.height, params.rows);
    map[row * params.width + id.x] = mix(row_at(u32(y.x), x), row_at(u32(y.y), x), y.z);
}
