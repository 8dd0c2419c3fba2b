// One tile of latents of a TopK SAE's encoder, fused with what follows it:
//
//     pre[t, n] = (centred[t] . weights[n]) * scale[n] + b_enc[n]        (f32 accumulation)
//     append (n, pre[t, n]) to row t's survivors where pre[t, n] > thresholds[t]
//
// A threshold is at least 0, so the comparison is the ReLU as well. After some tiles `sae_select` keeps the k largest
// of each row and raises its threshold. Tiles come in rising order of latent, hence a later latent that only equals
// the threshold has lost the tie already and `>` is exact. A row has room for k survivors and all tiles up to the next
// selection: it cannot overflow. Each workgroup computes TILE_TOKENS x TILE_LATENTS values, each thread
// TOKENS_PER_THREAD x 4 QUADS_PER_THREAD of them.
//
// Rows are `width` channels long: d_model, filled up with zeros to whole vec4<u32> of weights.
// The lines marked "host:" are replaced when the shader is built (see `source.rs`).

@group(0) @binding(0) var<uniform> params: Params;
// [tokens, width / 4]: hidden - b_dec, subtracted by the host in f32
@group(0) @binding(1) var<storage, read> centred: array<vec4<f32>>;
// [latents of the shard, width], row-major, packed: 4 f32, 8 f16, 16 int8 or 32 int4 (less 8) in an element
@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;
// int8: [latents] bits of f32. int4: [latents of the shard, width / 32] pairs of f16. Else unused.
@group(0) @binding(3) var<storage, read> scales: array<u32>;
// [latents]
@group(0) @binding(4) var<storage, read> b_enc: array<f32>;
// [tokens]: the k-th largest activation so far; 0 before there are k
@group(0) @binding(5) var<storage, read> thresholds: array<f32>;
// [tokens]: survivors in the row
@group(0) @binding(6) var<storage, read_write> counts: array<atomic<u32>>;
// [tokens, row_capacity]: (latent, bits of the activation), in no order
@group(0) @binding(7) var<storage, read_write> survivors: array<vec2<u32>>;

struct Params {
    tokens: u32,
    width: u32,
    // The tile is latents first_latent .. end_latent.
    first_latent: u32,
    end_latent: u32,
    // The latent in row 0 of `weights`.
    shard_latent: u32,
    row_capacity: u32,
    k: u32,
    last_tile: u32,
}

const F32: u32 = 0;
const F16: u32 = 1;
const INT8: u32 = 2;
const INT4: u32 = 3;
const WEIGHTS: u32 = 1; // host:
const TOKEN_THREADS: u32 = 16; // host:
const LATENT_THREADS: u32 = 16; // host:
const TOKENS_PER_THREAD: u32 = 4; // host:
const QUADS_PER_THREAD: u32 = 1; // host:
// Quads (of 4 channels) per step of the loop; even.
const STEP_QUADS: u32 = 4; // host:
const TILE_TOKENS: u32 = TOKEN_THREADS * TOKENS_PER_THREAD;
const TILE_LATENTS: u32 = 4 * LATENT_THREADS * QUADS_PER_THREAD;
const THREADS: u32 = TOKEN_THREADS * LATENT_THREADS;
// Channels are unpacked eight at a time.
const STEP_OCTETS: u32 = STEP_QUADS / 2;

// [STEP_QUADS, rows] of 4 channels each: neighbouring threads read neighbouring quads.
var<workgroup> token_tile: array<vec4<f32>, STEP_QUADS * TILE_TOKENS>;
var<workgroup> weight_tile: array<vec4<f32>, STEP_QUADS * TILE_LATENTS>;
var<workgroup> found: array<atomic<u32>, TILE_TOKENS>;
var<workgroup> row_start: array<u32, TILE_TOKENS>;

struct Octet {
    low: vec4<f32>,
    high: vec4<f32>,
}

// The signed bytes of a word.
fn bytes_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<i32>(bitcast<i32>(word)) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// The even or the odd nibbles of a word, less 8.
fn nibbles_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u)) - 8.0;
}

// Eight channels of row `row` of the shard, from octet `octet` on.
fn unpack(row: u32, octet: u32) -> Octet {
    let at = row * (params.width >> 3u) + octet;
    if WEIGHTS == F32 {
        return Octet(bitcast<vec4<f32>>(weights[2u * at]), bitcast<vec4<f32>>(weights[2u * at + 1u]));
    }
    if WEIGHTS == F16 {
        let words = weights[at];
        return Octet(
            vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)),
            vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)),
        );
    }
    if WEIGHTS == INT8 {
        // Not scaled here: one scale for the whole row.
        let pair = weights[at >> 1u];
        let words = select(pair.xy, pair.zw, (at & 1u) == 1u);
        return Octet(bytes_of(words.x), bytes_of(words.y));
    }
    let word = weights[at >> 2u][at & 3u];
    let group = row * (params.width >> 5u) + (octet >> 2u);
    let pair = unpack2x16float(scales[group >> 1u]);
    let scale = select(pair.x, pair.y, (group & 1u) == 1u);
    let even = nibbles_of(word) * scale;
    let odd = nibbles_of(word >> 4u) * scale;
    return Octet(vec4<f32>(even.x, odd.x, even.y, odd.y), vec4<f32>(even.z, odd.z, even.w, odd.w));
}

fn load_step(first_token: u32, first_latent: u32, first_quad: u32, thread: u32) {
    let quads = params.width >> 2u;
    for (var i = thread; i < STEP_QUADS * TILE_TOKENS; i += THREADS) {
        let token = first_token + i / STEP_QUADS;
        let quad = i % STEP_QUADS;
        var channels = vec4<f32>();
        if token < params.tokens && first_quad + quad < quads {
            channels = centred[token * quads + first_quad + quad];
        }
        token_tile[quad * TILE_TOKENS + i / STEP_QUADS] = channels;
    }
    for (var i = thread; i < STEP_OCTETS * TILE_LATENTS; i += THREADS) {
        let latent = first_latent + i / STEP_OCTETS;
        let quad = 2u * (i % STEP_OCTETS);
        var octet = Octet();
        if latent < params.end_latent && first_quad + quad < quads {
            octet = unpack(latent - params.shard_latent, (first_quad + quad) >> 1u);
        }
        let to = quad * TILE_LATENTS + i / STEP_OCTETS;
        weight_tile[to] = octet.low;
        weight_tile[to + TILE_LATENTS] = octet.high;
    }
}

@compute @workgroup_size(LATENT_THREADS, TOKEN_THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first_token = group.y * TILE_TOKENS;
    let first_latent = params.first_latent + group.x * TILE_LATENTS;

    // acc[t, q][j]: token local.y + TOKEN_THREADS t, latent local.x + LATENT_THREADS (4 q + j) of the tile.
    var acc: array<vec4<f32>, TOKENS_PER_THREAD * QUADS_PER_THREAD>;
    let quads = params.width >> 2u;
    for (var quad = 0u; quad < quads; quad += STEP_QUADS) {
        load_step(first_token, first_latent, quad, thread);
        workgroupBarrier();
        for (var step = 0u; step < STEP_QUADS; step++) {
            for (var q = 0u; q < QUADS_PER_THREAD; q++) {
                let at = step * TILE_LATENTS + local.x + 4u * LATENT_THREADS * q;
                let w0 = weight_tile[at];
                let w1 = weight_tile[at + LATENT_THREADS];
                let w2 = weight_tile[at + 2u * LATENT_THREADS];
                let w3 = weight_tile[at + 3u * LATENT_THREADS];
                for (var t = 0u; t < TOKENS_PER_THREAD; t++) {
                    let x = token_tile[step * TILE_TOKENS + local.y + TOKEN_THREADS * t];
                    acc[t * QUADS_PER_THREAD + q] += vec4<f32>(dot(x, w0), dot(x, w1), dot(x, w2), dot(x, w3));
                }
            }
        }
        workgroupBarrier();
    }

    // Scale, bias, and the places of this thread's survivors within the workgroup's share of each row.
    let first = vec4<u32>(first_latent + local.x) + LATENT_THREADS * vec4<u32>(0u, 1u, 2u, 3u);
    var place: array<u32, TOKENS_PER_THREAD>;
    for (var q = 0u; q < QUADS_PER_THREAD; q++) {
        let latents = first + 4u * LATENT_THREADS * q;
        var scale = vec4<f32>(1.0);
        var bias = vec4<f32>();
        for (var j = 0u; j < 4u; j++) {
            if latents[j] < params.end_latent {
                bias[j] = b_enc[latents[j]];
                if WEIGHTS == INT8 {
                    scale[j] = bitcast<f32>(scales[latents[j]]);
                }
            }
        }
        for (var t = 0u; t < TOKENS_PER_THREAD; t++) {
            let row = local.y + TOKEN_THREADS * t;
            var kept = vec4<f32>(-1.0);
            if first_token + row < params.tokens {
                let pre = acc[t * QUADS_PER_THREAD + q] * scale + bias;
                let above = pre > vec4<f32>(thresholds[first_token + row]);
                kept = select(kept, pre, above & (latents < vec4<u32>(params.end_latent)));
            }
            acc[t * QUADS_PER_THREAD + q] = kept;
            let ones = select(vec4<u32>(0u), vec4<u32>(1u), kept > vec4<f32>());
            place[t] += ones.x + ones.y + ones.z + ones.w;
        }
    }
    for (var t = 0u; t < TOKENS_PER_THREAD; t++) {
        place[t] = atomicAdd(&found[local.y + TOKEN_THREADS * t], place[t]);
    }
    workgroupBarrier();
    // One global atomic per row and workgroup.
    for (var row = thread; row < TILE_TOKENS; row += THREADS) {
        let count = atomicLoad(&found[row]);
        if count > 0u {
            row_start[row] = atomicAdd(&counts[first_token + row], count);
        }
    }
    workgroupBarrier();
    for (var t = 0u; t < TOKENS_PER_THREAD; t++) {
        let row = local.y + TOKEN_THREADS * t;
        var at = (first_token + row) * params.row_capacity + row_start[row] + place[t];
        for (var q = 0u; q < QUADS_PER_THREAD; q++) {
            let kept = acc[t * QUADS_PER_THREAD + q];
            for (var j = 0u; j < 4u; j++) {
                if kept[j] > 0.0 {
                    survivors[at] = vec2<u32>(first[j] + 4u * LATENT_THREADS * q, bitcast<u32>(kept[j]));
                    at++;
                }
            }
        }
    }
}
