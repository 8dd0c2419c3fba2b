// Counts of positive values in equal bins from 0 on: value v is in bin min(floor(v * bins / largest), bins - 1).
//
// Each workgroup counts in its own memory first: values crowd in few bins, and global atomics would wait for each
// other.

@group(0) @binding(0) var<uniform> params: Params;
// Bits of f32.
@group(0) @binding(1) var<storage, read> values: array<u32>;
// [bins]
@group(0) @binding(2) var<storage, read_write> counts: array<atomic<u32>>;

struct Params {
    values: u32,
    bins: u32,
    // bins / largest, divided by the host: one multiplication rounds alike everywhere.
    factor: f32,
    // Starts at 16: the size is that of every kernel's parameters.
    padding: vec4<u32>,
}

const THREADS: u32 = 256;
const VALUES_PER_THREAD: u32 = 16;
const MAX_BINS: u32 = 1024;
const INFINITY_BITS: u32 = 0x7f800000u;

var<workgroup> found: array<atomic<u32>, MAX_BINS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first = group.x * THREADS * VALUES_PER_THREAD + thread;
    for (var i = 0u; i < VALUES_PER_THREAD; i++) {
        let at = first + i * THREADS;
        if at < params.values {
            let bits = values[at];
            // Positive and finite. By their bits: a device may take the smallest numbers for 0.
            if bits != 0u && bits < INFINITY_BITS {
                let bin = min(bitcast<f32>(bits) * params.factor, f32(params.bins - 1u));
                atomicAdd(&found[u32(bin)], 1u);
            }
        }
    }
    workgroupBarrier();
    for (var bin = thread; bin < params.bins; bin += THREADS) {
        let count = atomicLoad(&found[bin]);
        if count != 0u {
            atomicAdd(&counts[bin], count);
        }
    }
}
