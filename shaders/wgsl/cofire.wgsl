// On how many tokens two features fire together, for all pairs of a short list of features:
//
//     counts[a, b] = |{t : a fires on t and b fires on t}|,  counts[a, a] = |{t : a fires on t}|
//
// `mark` sets the bit of each token on which a feature of the list fires; `count` adds the common bits. Both take a
// range at a time: of the activations, of the words.

@group(0) @binding(0) var<uniform> params: Params;
// [tokens, k]
@group(0) @binding(1) var<storage, read> top_indices: array<u32>;
// [tokens, k]: bits of the activations
@group(0) @binding(2) var<storage, read> top_acts: array<u32>;
// [features]: (latent, place in the list), by rising latent
@group(0) @binding(3) var<storage, read> listed: array<vec2<u32>>;
// [features, words]: bit t % 32 of word t / 32 is token t
@group(0) @binding(4) var<storage, read_write> fires: array<atomic<u32>>;
// [features, features]
@group(0) @binding(5) var<storage, read_write> counts: array<u32>;

struct Params {
    // Of the activations (`mark`) or the words (`count`): first .. end.
    first: u32,
    end: u32,
    k: u32,
    features: u32,
    // 32 tokens each.
    words: u32,
    // Starts at 24: the size is that of every kernel's parameters.
    padding: vec2<u32>,
}

const THREADS: u32 = 64;
const SIDE: u32 = 8;
const SIGN_BIT: u32 = 0x80000000u;

@compute @workgroup_size(THREADS)
fn mark(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let entry = params.first + (group.y * groups.x + group.x) * THREADS + thread;
    if entry >= params.end {
        return;
    }
    let bits = top_acts[entry];
    if bits == 0u || bits >= SIGN_BIT {
        return;
    }
    let latent = top_indices[entry];
    var low = 0u;
    var high = params.features;
    while low < high {
        let middle = (low + high) / 2u;
        if listed[middle].x < latent {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    if low < params.features && listed[low].x == latent {
        let token = entry / params.k;
        atomicOr(&fires[listed[low].y * params.words + token / 32u], 1u << (token % 32u));
    }
}

@compute @workgroup_size(SIDE, SIDE)
fn count(@builtin(global_invocation_id) id: vec3<u32>) {
    // The matrix is symmetric: half of it is counted, both are written.
    if id.x >= params.features || id.y > id.x {
        return;
    }
    var both = 0u;
    for (var word = params.first; word < params.end; word++) {
        let a = atomicLoad(&fires[id.x * params.words + word]);
        let b = atomicLoad(&fires[id.y * params.words + word]);
        both += countOneBits(a & b);
    }
    let total = counts[id.x * params.features + id.y] + both;
    counts[id.x * params.features + id.y] = total;
    counts[id.y * params.features + id.x] = total;
}
