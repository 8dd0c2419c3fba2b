// Sum and maximum of each feature over some tokens of a top k.
//
// `scatter` adds every activation of a range to its feature; `compact` lists the features that occurred. Sums are
// whole numbers of 1 / scale, hence the same in any order; `double_scale` is twice the scale, a power of two, so that
// the product is exact and the half is rounded up in whole numbers.

@group(0) @binding(0) var<uniform> params: Params;
// [selected tokens, k]
@group(0) @binding(1) var<storage, read> top_indices: array<u32>;
// [selected tokens, k]: bits of the activations, which order like the activations where they are positive
@group(0) @binding(2) var<storage, read> top_acts: array<u32>;
// [latents]
@group(0) @binding(3) var<storage, read_write> sums: array<atomic<u32>>;
// [latents]: bits
@group(0) @binding(4) var<storage, read_write> maxima: array<atomic<u32>>;
@group(0) @binding(5) var<storage, read_write> list: List;

struct Params {
    // The entries first_entry .. end_entry of selected tokens * k.
    first_entry: u32,
    end_entry: u32,
    latents: u32,
    double_scale: f32,
    // The size is that of every kernel's parameters.
    padding: vec4<u32>,
}

struct List {
    count: atomic<u32>,
    // In no order.
    entries: array<Entry>,
}

struct Entry {
    feature: u32,
    sum: u32,
    maximum: u32,
}

const THREADS: u32 = 256;
const INFINITY_BITS: u32 = 0x7f800000u;

fn index_of(group: vec3<u32>, groups: vec3<u32>, thread: u32) -> u32 {
    return (group.y * groups.x + group.x) * THREADS + thread;
}

@compute @workgroup_size(THREADS)
fn scatter(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let entry = params.first_entry + index_of(group, groups, thread);
    if entry >= params.end_entry {
        return;
    }
    let bits = top_acts[entry];
    // Positive: neither 0 nor with the sign bit.
    if bits == 0u || bits >= INFINITY_BITS {
        return;
    }
    let feature = top_indices[entry];
    atomicAdd(&sums[feature], (u32(bitcast<f32>(bits) * params.double_scale) + 1u) / 2u);
    atomicMax(&maxima[feature], bits);
}

@compute @workgroup_size(THREADS)
fn compact(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let feature = index_of(group, groups, thread);
    if feature >= params.latents {
        return;
    }
    let maximum = atomicLoad(&maxima[feature]);
    if maximum == 0u {
        return;
    }
    let at = atomicAdd(&list.count, 1u);
    list.entries[at] = Entry(feature, atomicLoad(&sums[feature]), maximum);
}
