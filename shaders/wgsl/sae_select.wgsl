// Exact top-k of each row's survivors, one workgroup per row, after some tiles of `sae_encode`.
//
// The key of a survivor is (bits of the activation, ~latent), compared in that order: activations are positive, so
// their bits order like their values, and equal activations go to the lower latent. A radix select over the eight
// bytes of the key finds the k-th largest one; it stops as soon as a byte's bin is kept whole, which without ties is
// after at most four.
// After the last tile the row is sorted and written out: falling activation, then lower latent. A row with fewer
// than k positive activations continues with activation 0 and the lowest latents not yet listed: the top k of
// ReLU(pre) with ties to the lower index.

@group(0) @binding(0) var<uniform> params: Params;
// [tokens, row_capacity]: (latent, bits of the activation)
@group(0) @binding(1) var<storage, read_write> survivors: array<vec2<u32>>;
// [tokens]
@group(0) @binding(2) var<storage, read_write> counts: array<u32>;
// [tokens]
@group(0) @binding(3) var<storage, read_write> thresholds: array<f32>;
// [2, tokens, k]: top_indices, then the bits of top_acts
@group(0) @binding(4) var<storage, read_write> top: array<u32>;

struct Params {
    tokens: u32,
    width: u32,
    first_latent: u32,
    end_latent: u32,
    shard_latent: u32,
    row_capacity: u32,
    k: u32,
    last_tile: u32,
}

const THREADS: u32 = 256; // host:
// Of one byte.
const BINS: u32 = 256;
const BLOCKS: u32 = 16;
const BLOCK_BINS: u32 = BINS / BLOCKS;
const MAX_K: u32 = 1024;

var<workgroup> row_count: u32;
var<workgroup> histogram: array<atomic<u32>, BINS>;
// Sums of the histogram over blocks of bins.
var<workgroup> blocks: array<u32, BLOCKS>;
// byte, keys above its bin, keys in its bin
var<workgroup> chosen: vec3<u32>;
var<workgroup> kept: array<vec2<u32>, MAX_K>;
var<workgroup> kept_count: atomic<u32>;
var<workgroup> lowest_kept: atomic<u32>;

fn key_of(survivor: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(survivor.y, ~survivor.x);
}

fn at_least(key: vec2<u32>, bound: vec2<u32>) -> bool {
    return key.x > bound.x || (key.x == bound.x && key.y >= bound.y);
}

// The smallest key, in its leading bytes, of the `wanted` largest keys of the row.
fn bound_of_largest(start: u32, count: u32, thread: u32) -> vec2<u32> {
    var bound = vec2<u32>();
    var known = vec2<u32>();
    var wanted = params.k;
    for (var byte = 0u; byte < 8u; byte++) {
        let shift = 24u - 8u * (byte % 4u);
        for (var bin = thread; bin < BINS; bin += THREADS) {
            atomicStore(&histogram[bin], 0u);
        }
        workgroupBarrier();
        for (var i = thread; i < count; i += THREADS) {
            let key = key_of(survivors[start + i]);
            if all((key & known) == bound) {
                atomicAdd(&histogram[(select(key.x, key.y, byte >= 4u) >> shift) & 255u], 1u);
            }
        }
        workgroupBarrier();
        // How many keys are above each bin: two short loops, where a scan would wait sixteen times.
        for (var block = thread; block < BLOCKS; block += THREADS) {
            var sum = 0u;
            for (var i = 0u; i < BLOCK_BINS; i++) {
                sum += atomicLoad(&histogram[block * BLOCK_BINS + i]);
            }
            blocks[block] = sum;
        }
        workgroupBarrier();
        for (var bin = thread; bin < BINS; bin += THREADS) {
            let block = bin / BLOCK_BINS;
            var above = 0u;
            for (var i = block + 1u; i < BLOCKS; i++) {
                above += blocks[i];
            }
            if above < wanted && wanted <= above + blocks[block] {
                for (var i = bin + 1u; i < (block + 1u) * BLOCK_BINS; i++) {
                    above += atomicLoad(&histogram[i]);
                }
                let here = atomicLoad(&histogram[bin]);
                if above < wanted && wanted <= above + here {
                    chosen = vec3<u32>(bin, above, here);
                }
            }
        }
        let choice = workgroupUniformLoad(&chosen);
        let digit = vec2<u32>(select(choice.x << shift, 0u, byte >= 4u), select(0u, choice.x << shift, byte >= 4u));
        let mask = vec2<u32>(select(255u << shift, 0u, byte >= 4u), select(0u, 255u << shift, byte >= 4u));
        bound |= digit;
        known |= mask;
        wanted -= choice.y;
        if choice.z == wanted {
            break;
        }
    }
    return bound;
}

// The row in its final order. `listed`: how many of `kept` count.
fn write_top(row: u32, listed: u32, thread: u32) {
    let indices = row * params.k;
    let acts = (params.tokens + row) * params.k;
    for (var at = thread; at < listed; at += THREADS) {
        let key = key_of(kept[at]);
        var rank = 0u;
        for (var i = 0u; i < listed; i++) {
            rank += select(0u, 1u, i != at && at_least(key_of(kept[i]), key));
        }
        top[indices + rank] = kept[at].x;
        top[acts + rank] = kept[at].y;
    }
    // Numbers as latents: the padding, if they are not listed and low enough.
    for (var latent = thread; latent < params.k && listed < params.k; latent += THREADS) {
        var below = 0u;
        var unlisted = true;
        for (var i = 0u; i < listed; i++) {
            below += select(0u, 1u, kept[i].x < latent);
            unlisted = unlisted && kept[i].x != latent;
        }
        let rank = listed + latent - below;
        if unlisted && rank < params.k {
            top[indices + rank] = latent;
            top[acts + rank] = 0u;
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x;
    let start = row * params.row_capacity;
    if thread == 0u {
        row_count = counts[row];
        atomicStore(&lowest_kept, 0xffffffffu);
    }
    let count = workgroupUniformLoad(&row_count);

    var bound = vec2<u32>();
    if count > params.k {
        bound = bound_of_largest(start, count, thread);
    }
    for (var i = thread; i < count; i += THREADS) {
        let survivor = survivors[start + i];
        if at_least(key_of(survivor), bound) {
            kept[atomicAdd(&kept_count, 1u)] = survivor;
            atomicMin(&lowest_kept, survivor.y);
        }
    }
    workgroupBarrier();
    let listed = min(count, params.k);
    if params.last_tile == 1u {
        write_top(row, listed, thread);
        return;
    }
    for (var i = thread; i < listed; i += THREADS) {
        survivors[start + i] = kept[i];
    }
    if thread == 0u {
        counts[row] = listed;
        if listed == params.k {
            thresholds[row] = bitcast<f32>(atomicLoad(&lowest_kept));
        }
    }
}
