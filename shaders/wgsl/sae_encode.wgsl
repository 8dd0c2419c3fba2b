// One tile of latents of a TopK SAE's encoder, fused with what follows it:
//
//     pre[t, n] = (centred[t] . weights[n]) * scale[n] + b_enc[n]        (f32 accumulation)
//     append (n, pre[t, n]) to row t's survivors where pre[t, n] > thresholds[t]
//
// A threshold is at least 0, so the comparison is the ReLU as well. After some tiles `sae_select` keeps the k largest
// of each row and raises its threshold. Tiles come in rising order of latent, hence a later latent that only equals
// the threshold has lost the tie already and `>` is exact. A row has room for k survivors and all tiles up to the next
// selection: it cannot overflow.
//
// Rows are `width` channels long: d_model, filled up with zeros to whole vec4<u32> of weights.
// The lines marked "host:" are replaced when the shader is built, and loops marked "unroll" written out (see
// `source.rs`).

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

// `tiled`: each workgroup computes TILE_TOKENS x TILE_LATENTS values, each thread TOKENS_PER_THREAD x
// 4 QUADS_PER_THREAD of them.
const TOKEN_THREADS: u32 = 16; // host:
const LATENT_THREADS: u32 = 16; // host:
const TOKENS_PER_THREAD: u32 = 4; // host:
const QUADS_PER_THREAD: u32 = 1; // host:
// Quads (of 4 channels) per step of the loop; even.
const STEP_QUADS: u32 = 4; // host:
// Channels are unpacked eight at a time.
const STEP_OCTETS: u32 = STEP_QUADS / 2;
const TILE_TOKENS: u32 = TOKEN_THREADS * TOKENS_PER_THREAD;
const TILE_LATENTS: u32 = 4 * LATENT_THREADS * QUADS_PER_THREAD;
const THREADS: u32 = TOKEN_THREADS * LATENT_THREADS;
// Loads of a thread in a step: STEP_QUADS * TILE_TOKENS quads and STEP_OCTETS * TILE_LATENTS octets by THREADS.
const TOKEN_LOADS: u32 = 1; // host:
const OCTET_LOADS: u32 = 1; // host:

// `split`, for few tokens: each workgroup computes SPLIT_TOKENS x SPLIT_LATENTS values, each thread its share of their
// channels.
const LANES: u32 = 128; // host:
const SPLIT_TOKENS: u32 = 1; // host:
const SPLIT_LATENTS: u32 = 8; // host:
const SPLIT_VALUES: u32 = 8; // host:
// The sums of LANES threads are added in two rounds.
const PARTS: u32 = 8;

// `direct`: each thread computes DIRECT_TOKENS x DIRECT_LATENTS values by itself and waits for no other, for adapters
// that are slow at waiting: those in software.
const DIRECT_THREADS: u32 = 64; // host:
const DIRECT_TOKENS: u32 = 1; // host:
const DIRECT_LATENTS: u32 = 4; // host:
const DIRECT_VALUES: u32 = 4; // host:

// By channels, then by what of a thread a row is for: all indices but a thread's own place are constants, so that one
// address serves all reads. Neighbouring threads read neighbouring quads.
var<workgroup> token_tile: array<array<array<vec4<f32>, TOKEN_THREADS>, TOKENS_PER_THREAD>, STEP_QUADS>;
var<workgroup> weight_tile: array<array<array<vec4<f32>, LATENT_THREADS>, 4 * QUADS_PER_THREAD>, STEP_QUADS>;
var<workgroup> found: array<atomic<u32>, TILE_TOKENS>;
var<workgroup> row_start: array<u32, TILE_TOKENS>;
// One more than LANES: neighbours in the second round meet in no bank.
var<workgroup> partial: array<array<f32, LANES + 1>, SPLIT_VALUES>;

// The signed bytes of a word.
fn bytes_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<i32>(bitcast<i32>(word)) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// The lowest four nibbles of a word, less 8.
fn nibbles_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u)) - 8.0;
}

// Eight channels as they are stored, from octet `octet` of row `row` of the shard on.
fn words_at(row: u32, octet: u32) -> vec4<u32> {
    let at = row * (params.width >> 3u) + octet;
    var words: vec4<u32>;
    if WEIGHTS == F32 {
        words = weights[2u * at];
    } else if WEIGHTS == F16 {
        words = weights[at];
    } else if WEIGHTS == INT8 {
        let pair = weights[at >> 1u];
        words = select(pair, pair.zwzw, (at & 1u) == 1u);
    } else {
        words.x = weights[at >> 2u][at & 3u];
    }
    return words;
}

// What else belongs to them: the last four in f32, a pair of scales with the right one first in int4.
fn more_at(row: u32, octet: u32) -> vec4<u32> {
    var words: vec4<u32>;
    if WEIGHTS == F32 {
        words = weights[2u * (row * (params.width >> 3u) + octet) + 1u];
    } else if WEIGHTS == INT4 {
        let group = row * (params.width >> 5u) + (octet >> 2u);
        words.x = scales[group >> 1u] >> (16u * (group & 1u));
    }
    return words;
}

// The first four channels.
fn low_of(words: vec4<u32>, more: vec4<u32>) -> vec4<f32> {
    var low: vec4<f32>;
    if WEIGHTS == F32 {
        low = bitcast<vec4<f32>>(words);
    } else if WEIGHTS == F16 {
        low = vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
    } else if WEIGHTS == INT8 {
        // Not scaled here: one scale for the whole row.
        low = bytes_of(words.x);
    } else {
        low = nibbles_of(words.x) * unpack2x16float(more.x).x;
    }
    return low;
}

// The last four.
fn high_of(words: vec4<u32>, more: vec4<u32>) -> vec4<f32> {
    var high: vec4<f32>;
    if WEIGHTS == F32 {
        high = bitcast<vec4<f32>>(more);
    } else if WEIGHTS == F16 {
        high = vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w));
    } else if WEIGHTS == INT8 {
        high = bytes_of(words.y);
    } else {
        high = nibbles_of(words.x >> 16u) * unpack2x16float(more.x).x;
    }
    return high;
}

// sum + x . w in four multiply-adds; `dot` adds its products to each other first, which takes five steps.
fn plus(sum: f32, x: vec4<f32>, w: vec4<f32>) -> f32 {
    return x.w * w.w + (x.z * w.z + (x.y * w.y + (x.x * w.x + sum)));
}

// Which row, quad or octet of a step the load `at` is for. Eight threads load eight rows: they write to eight banks.
fn token_row(at: u32) -> u32 {
    return at % 8u + 8u * (at / (8u * STEP_QUADS));
}

fn token_quad(at: u32) -> u32 {
    return at / 8u % STEP_QUADS;
}

fn latent_row(at: u32) -> u32 {
    return at % 8u + 8u * (at / (8u * STEP_OCTETS));
}

fn latent_octet(at: u32) -> u32 {
    return at / 8u % STEP_OCTETS;
}

// Four channels of `centred` in the row that begins at `row`; zeros past its end, where weights are whatever is there.
fn channels_at(row: u32, quad: u32) -> vec4<f32> {
    let quads = params.width >> 2u;
    return select(vec4<f32>(), centred[row + min(quad, quads - 1u)], quad < quads);
}

// Scales a whole sum, adds the bias, and appends it to its row's survivors if it is one.
fn keep(latent: u32, token: u32, sum: f32) {
    if latent >= params.end_latent || token >= params.tokens {
        return;
    }
    var pre = sum;
    if WEIGHTS == INT8 {
        pre *= bitcast<f32>(scales[latent]);
    }
    pre += b_enc[latent];
    if pre > thresholds[token] {
        let at = token * params.row_capacity + atomicAdd(&counts[token], 1u);
        survivors[at] = vec2<u32>(latent, bitcast<u32>(pre));
    }
}

@compute @workgroup_size(LATENT_THREADS, TOKEN_THREADS)
fn tiled(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first_token = group.y * TILE_TOKENS;
    let first_latent = params.first_latent + group.x * TILE_LATENTS;
    let quads = params.width >> 2u;
    let last_octet = (params.width >> 3u) - 1u;

    // Rows past the end are the last one again, and their sums are dropped.
    var token_rows: array<u32, TOKEN_LOADS>;
    var latent_rows: array<u32, OCTET_LOADS>;
    for (var i = 0u; i < TOKEN_LOADS; i++) { // unroll
        let at = min(thread + THREADS * i, STEP_QUADS * TILE_TOKENS - 1u);
        token_rows[i] = min(first_token + token_row(at), params.tokens - 1u) * quads;
    }
    for (var i = 0u; i < OCTET_LOADS; i++) { // unroll
        let at = min(thread + THREADS * i, STEP_OCTETS * TILE_LATENTS - 1u);
        latent_rows[i] = min(first_latent + latent_row(at), params.end_latent - 1u) - params.shard_latent;
    }

    // What the next step needs is on its way while this one multiplies.
    var next_tokens: array<vec4<f32>, TOKEN_LOADS>;
    var next_words: array<vec4<u32>, OCTET_LOADS>;
    var next_more: array<vec4<u32>, OCTET_LOADS>;
    for (var i = 0u; i < TOKEN_LOADS; i++) { // unroll
        next_tokens[i] = channels_at(token_rows[i], token_quad(thread + THREADS * i));
    }
    for (var i = 0u; i < OCTET_LOADS; i++) { // unroll
        let octet = min(latent_octet(thread + THREADS * i), last_octet);
        next_words[i] = words_at(latent_rows[i], octet);
        next_more[i] = more_at(latent_rows[i], octet);
    }
    // acc[t, q][j]: token local.y + TOKEN_THREADS t, latent local.x + LATENT_THREADS (4 q + j) of the tile.
    var acc: array<vec4<f32>, TOKENS_PER_THREAD * QUADS_PER_THREAD>;
    for (var quad = 0u; quad < quads; quad += STEP_QUADS) {
        for (var i = 0u; i < TOKEN_LOADS; i++) { // unroll
            let at = thread + THREADS * i;
            if at < STEP_QUADS * TILE_TOKENS {
                let row = token_row(at);
                token_tile[token_quad(at)][row / TOKEN_THREADS][row % TOKEN_THREADS] = next_tokens[i];
            }
        }
        for (var i = 0u; i < OCTET_LOADS; i++) { // unroll
            let at = thread + THREADS * i;
            if at < STEP_OCTETS * TILE_LATENTS {
                let row = latent_row(at);
                let to = 2u * latent_octet(at);
                weight_tile[to][row / LATENT_THREADS][row % LATENT_THREADS] = low_of(next_words[i], next_more[i]);
                weight_tile[to + 1u][row / LATENT_THREADS][row % LATENT_THREADS] = high_of(next_words[i], next_more[i]);
            }
        }
        workgroupBarrier();
        let next = quad + STEP_QUADS;
        for (var i = 0u; i < TOKEN_LOADS; i++) { // unroll
            next_tokens[i] = channels_at(token_rows[i], next + token_quad(thread + THREADS * i));
        }
        for (var i = 0u; i < OCTET_LOADS; i++) { // unroll
            let octet = min((next >> 1u) + latent_octet(thread + THREADS * i), last_octet);
            next_words[i] = words_at(latent_rows[i], octet);
            next_more[i] = more_at(latent_rows[i], octet);
        }
        for (var step = 0u; step < STEP_QUADS; step++) { // unroll
            for (var q = 0u; q < QUADS_PER_THREAD; q++) { // unroll
                let w0 = weight_tile[step][4u * q][local.x];
                let w1 = weight_tile[step][4u * q + 1u][local.x];
                let w2 = weight_tile[step][4u * q + 2u][local.x];
                let w3 = weight_tile[step][4u * q + 3u][local.x];
                for (var t = 0u; t < TOKENS_PER_THREAD; t++) { // unroll
                    let x = token_tile[step][t][local.y];
                    let sums = acc[t * QUADS_PER_THREAD + q];
                    acc[t * QUADS_PER_THREAD + q] = vec4<f32>(
                        plus(sums.x, x, w0), plus(sums.y, x, w1), plus(sums.z, x, w2), plus(sums.w, x, w3));
                }
            }
        }
        workgroupBarrier();
    }

    // Scale, bias, and the places of this thread's survivors within the workgroup's share of each row.
    let first = vec4<u32>(first_latent + local.x) + LATENT_THREADS * vec4<u32>(0u, 1u, 2u, 3u);
    var place: array<u32, TOKENS_PER_THREAD>;
    for (var q = 0u; q < QUADS_PER_THREAD; q++) { // unroll
        let latents = first + 4u * LATENT_THREADS * q;
        var scale = vec4<f32>(1.0);
        var bias = vec4<f32>();
        for (var j = 0u; j < 4u; j++) { // unroll
            if latents[j] < params.end_latent {
                bias[j] = b_enc[latents[j]];
                if WEIGHTS == INT8 {
                    scale[j] = bitcast<f32>(scales[latents[j]]);
                }
            }
        }
        for (var t = 0u; t < TOKENS_PER_THREAD; t++) { // unroll
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
    for (var t = 0u; t < TOKENS_PER_THREAD; t++) { // unroll
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
    for (var t = 0u; t < TOKENS_PER_THREAD; t++) { // unroll
        let row = local.y + TOKEN_THREADS * t;
        var at = (first_token + row) * params.row_capacity + row_start[row] + place[t];
        for (var q = 0u; q < QUADS_PER_THREAD; q++) { // unroll
            let kept = acc[t * QUADS_PER_THREAD + q];
            for (var j = 0u; j < 4u; j++) { // unroll
                if kept[j] > 0.0 {
                    survivors[at] = vec2<u32>(first[j] + 4u * LATENT_THREADS * q, bitcast<u32>(kept[j]));
                    at++;
                }
            }
        }
    }
}

@compute @workgroup_size(LANES)
fn split(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_token = group.y * SPLIT_TOKENS;
    let first_latent = params.first_latent + group.x * SPLIT_LATENTS;
    let octets = params.width >> 3u;

    // acc[n, t]; rows past the end are the last one again, and their sums are dropped.
    var acc: array<f32, SPLIT_VALUES>;
    for (var octet = thread; octet < octets; octet += LANES) {
        var low_x: array<vec4<f32>, SPLIT_TOKENS>;
        var high_x: array<vec4<f32>, SPLIT_TOKENS>;
        for (var t = 0u; t < SPLIT_TOKENS; t++) { // unroll
            let at = 2u * (min(first_token + t, params.tokens - 1u) * octets + octet);
            low_x[t] = centred[at];
            high_x[t] = centred[at + 1u];
        }
        for (var n = 0u; n < SPLIT_LATENTS; n++) { // unroll
            let row = min(first_latent + n, params.end_latent - 1u) - params.shard_latent;
            let words = words_at(row, octet);
            let more = more_at(row, octet);
            let low = low_of(words, more);
            let high = high_of(words, more);
            for (var t = 0u; t < SPLIT_TOKENS; t++) { // unroll
                acc[n * SPLIT_TOKENS + t] = plus(plus(acc[n * SPLIT_TOKENS + t], low_x[t], low), high_x[t], high);
            }
        }
    }
    for (var i = 0u; i < SPLIT_VALUES; i++) { // unroll
        partial[i][thread] = acc[i];
    }
    workgroupBarrier();
    for (var i = thread; i < SPLIT_VALUES * PARTS; i += LANES) {
        let part = i % PARTS * (LANES / PARTS);
        var sum = 0.0;
        for (var j = 0u; j < LANES / PARTS; j++) {
            sum += partial[i / PARTS][part + j];
        }
        partial[i / PARTS][part] = sum;
    }
    workgroupBarrier();
    for (var i = thread; i < SPLIT_VALUES; i += LANES) {
        var sum = 0.0;
        for (var j = 0u; j < PARTS; j++) {
            sum += partial[i][j * (LANES / PARTS)];
        }
        keep(first_latent + i / SPLIT_TOKENS, first_token + i % SPLIT_TOKENS, sum);
    }
}

@compute @workgroup_size(DIRECT_THREADS)
fn direct(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_token = group.y * DIRECT_TOKENS;
    let first_latent = params.first_latent + group.x * (DIRECT_THREADS * DIRECT_LATENTS) + thread;
    let octets = params.width >> 3u;

    // Rows past the end are the last one again, and their sums are dropped.
    var token_rows: array<u32, DIRECT_TOKENS>;
    for (var t = 0u; t < DIRECT_TOKENS; t++) { // unroll
        token_rows[t] = 2u * octets * min(first_token + t, params.tokens - 1u);
    }
    // acc[n, t]
    var acc: array<f32, DIRECT_VALUES>;
    for (var octet = 0u; octet < octets; octet++) {
        var low_x: array<vec4<f32>, DIRECT_TOKENS>;
        var high_x: array<vec4<f32>, DIRECT_TOKENS>;
        for (var t = 0u; t < DIRECT_TOKENS; t++) { // unroll
            low_x[t] = centred[token_rows[t] + 2u * octet];
            high_x[t] = centred[token_rows[t] + 2u * octet + 1u];
        }
        for (var n = 0u; n < DIRECT_LATENTS; n++) { // unroll
            let row = min(first_latent + DIRECT_THREADS * n, params.end_latent - 1u) - params.shard_latent;
            let words = words_at(row, octet);
            let more = more_at(row, octet);
            let low = low_of(words, more);
            let high = high_of(words, more);
            for (var t = 0u; t < DIRECT_TOKENS; t++) { // unroll
                acc[n * DIRECT_TOKENS + t] = plus(plus(acc[n * DIRECT_TOKENS + t], low_x[t], low), high_x[t], high);
            }
        }
    }
    for (var n = 0u; n < DIRECT_LATENTS; n++) { // unroll
        let latent = first_latent + DIRECT_THREADS * n;
        for (var t = 0u; t < DIRECT_TOKENS; t++) { // unroll
            keep(latent, first_token + t, acc[n * DIRECT_TOKENS + t]);
        }
    }
}
