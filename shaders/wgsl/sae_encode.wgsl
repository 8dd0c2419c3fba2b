// One tile of latents of a TopK SAE's encoder, fused with what follows it:
//
//     pre[t, n] = (hidden[t] - b_dec) . weights[n] + b_enc[n]        (f32 accumulation)
//     append (n, pre[t, n]) to row t's survivors where pre[t, n] > thresholds[t]
//
// A threshold is at least 0, so the comparison is the ReLU as well. `sae_select` then keeps the k largest of each row
// and raises its threshold. Tiles come in rising order of latent, hence a later latent that only equals the
// threshold has lost the tie already and `>` is exact. A row has room for k survivors and a whole tile: it cannot
// overflow. Each workgroup computes TILE_TOKENS x TILE_LATENTS values, each thread TOKENS_PER_THREAD x 4 of them.
//
// The lines marked "host:" are replaced when the shader is built (see `source.rs`).

@group(0) @binding(0) var<uniform> params: Params;
// [tokens, d_model]
@group(0) @binding(1) var<storage, read> hidden: array<f32>;
// [d_model]
@group(0) @binding(2) var<storage, read> b_dec: array<f32>;
// [latents of the shard, d_model], row-major: pairs of f16 or the bits of f32
@group(0) @binding(3) var<storage, read> weights: array<u32>;
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
    d_model: u32,
    // The tile is latents first_latent .. end_latent.
    first_latent: u32,
    end_latent: u32,
    // The latent in row 0 of `weights`.
    shard_latent: u32,
    row_capacity: u32,
    k: u32,
    last_tile: u32,
}

const WEIGHTS_F16: bool = true; // host:
const TOKENS_PER_THREAD: u32 = 4; // host:
const LATENTS_PER_THREAD: u32 = 4;
const SIDE: u32 = 16;
const TILE_TOKENS: u32 = SIDE * TOKENS_PER_THREAD;
const TILE_LATENTS: u32 = 64;
// Quads (of 4 channels) of d_model per step of the loop.
const QUADS: u32 = 4;

// [QUADS, rows] of 4 channels each: neighbouring threads read neighbouring quads.
var<workgroup> hidden_tile: array<vec4<f32>, QUADS * TILE_TOKENS>;
var<workgroup> weight_tile: array<vec4<f32>, QUADS * TILE_LATENTS>;
var<workgroup> found: array<atomic<u32>, TILE_TOKENS>;
var<workgroup> row_start: array<u32, TILE_TOKENS>;

// Four channels of hidden - b_dec from `channel` on; zero outside.
fn centred_quad(token: u32, channel: u32) -> vec4<f32> {
    var quad = vec4<f32>();
    if token < params.tokens {
        let at = token * params.d_model + channel;
        for (var i = 0u; i < 4u; i++) {
            if channel + i < params.d_model {
                quad[i] = hidden[at + i] - b_dec[channel + i];
            }
        }
    }
    return quad;
}

fn weight(at: u32) -> f32 {
    if WEIGHTS_F16 {
        let pair = unpack2x16float(weights[at >> 1u]);
        return select(pair.x, pair.y, (at & 1u) == 1u);
    }
    return bitcast<f32>(weights[at]);
}

// Four channels of a latent's row from `channel` on; zero outside.
fn weight_quad(latent: u32, channel: u32) -> vec4<f32> {
    var quad = vec4<f32>();
    if latent >= params.end_latent || channel >= params.d_model {
        return quad;
    }
    let at = (latent - params.shard_latent) * params.d_model + channel;
    if WEIGHTS_F16 && (params.d_model & 3u) == 0u {
        let word = at >> 1u;
        return vec4<f32>(unpack2x16float(weights[word]), unpack2x16float(weights[word + 1u]));
    }
    for (var i = 0u; i < 4u; i++) {
        if channel + i < params.d_model {
            quad[i] = weight(at + i);
        }
    }
    return quad;
}

@compute @workgroup_size(SIDE, SIDE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first_token = group.y * TILE_TOKENS;
    let first_latent = params.first_latent + group.x * TILE_LATENTS;

    // acc[t][j]: token local.y + SIDE t, latent local.x + SIDE j of the workgroup's tile.
    var acc: array<vec4<f32>, TOKENS_PER_THREAD>;
    for (var channel = 0u; channel < params.d_model; channel += 4u * QUADS) {
        for (var i = thread; i < QUADS * TILE_TOKENS; i += SIDE * SIDE) {
            let quad = i % QUADS;
            hidden_tile[quad * TILE_TOKENS + i / QUADS] = centred_quad(first_token + i / QUADS, channel + 4u * quad);
        }
        for (var i = thread; i < QUADS * TILE_LATENTS; i += SIDE * SIDE) {
            let quad = i % QUADS;
            weight_tile[quad * TILE_LATENTS + i / QUADS] = weight_quad(first_latent + i / QUADS, channel + 4u * quad);
        }
        workgroupBarrier();
        for (var quad = 0u; quad < QUADS; quad++) {
            let at = quad * TILE_LATENTS + local.x;
            let w0 = weight_tile[at];
            let w1 = weight_tile[at + SIDE];
            let w2 = weight_tile[at + 2u * SIDE];
            let w3 = weight_tile[at + 3u * SIDE];
            for (var t = 0u; t < TOKENS_PER_THREAD; t++) {
                let h = hidden_tile[quad * TILE_TOKENS + local.y + t * SIDE];
                acc[t] += vec4<f32>(dot(h, w0), dot(h, w1), dot(h, w2), dot(h, w3));
            }
        }
        workgroupBarrier();
    }

    // Bias, and the places of this thread's survivors within the workgroup's share of each row.
    let latents = vec4<u32>(first_latent + local.x) + SIDE * vec4<u32>(0u, 1u, 2u, 3u);
    var bias = vec4<f32>();
    for (var j = 0u; j < LATENTS_PER_THREAD; j++) {
        if latents[j] < params.end_latent {
            bias[j] = b_enc[latents[j]];
        }
    }
    var place: array<u32, TOKENS_PER_THREAD>;
    var survives: array<vec4<bool>, TOKENS_PER_THREAD>;
    for (var t = 0u; t < TOKENS_PER_THREAD; t++) {
        let row = local.y + t * SIDE;
        if first_token + row < params.tokens {
            acc[t] += bias;
            let above = acc[t] > vec4<f32>(thresholds[first_token + row]);
            survives[t] = above & (latents < vec4<u32>(params.end_latent));
            let ones = select(vec4<u32>(0u), vec4<u32>(1u), survives[t]);
            place[t] = atomicAdd(&found[row], ones.x + ones.y + ones.z + ones.w);
        }
    }
    workgroupBarrier();
    // One global atomic per row and workgroup.
    if thread < TILE_TOKENS {
        let count = atomicLoad(&found[thread]);
        if count > 0u {
            row_start[thread] = atomicAdd(&counts[first_token + thread], count);
        }
    }
    workgroupBarrier();
    for (var t = 0u; t < TOKENS_PER_THREAD; t++) {
        let row = local.y + t * SIDE;
        var at = (first_token + row) * params.row_capacity + row_start[row] + place[t];
        for (var j = 0u; j < LATENTS_PER_THREAD; j++) {
            if survives[t][j] {
                survivors[at] = vec2<u32>(latents[j], bitcast<u32>(acc[t][j]));
                at++;
            }
        }
    }
}
