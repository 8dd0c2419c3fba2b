// Reconstruction by a TopK SAE, and its squared error:
//
//     reconstruction[t] = sum over i of top_acts[t, i] * W_dec[top_indices[t, i]] + b_dec        (f32)
//     squared_error[t] = |hidden[t] - reconstruction[t]|^2
//
// The decoder is never whole on the GPU: `add_rows` adds what a batch of its rows contributes, listed by the host, one
// workgroup for THREADS channels of a token; `finish` adds the bias and compares, one workgroup per token. Both take a
// range of tokens at a time.

@group(0) @binding(0) var<uniform> params: Params;
// (row of the batch, bits of the activation), by rising token
@group(0) @binding(1) var<storage, read> entries: array<vec2<u32>>;
// [tokens + 1]: token t has the entries starts[t] .. starts[t + 1]
@group(0) @binding(2) var<storage, read> starts: array<u32>;
// [rows of the batch, d_model]
@group(0) @binding(3) var<storage, read> rows: array<f32>;
// [tokens, d_model]
@group(0) @binding(4) var<storage, read_write> reconstruction: array<f32>;
// [tokens, d_model]
@group(0) @binding(5) var<storage, read> hidden: array<f32>;
// [d_model]
@group(0) @binding(6) var<storage, read> b_dec: array<f32>;
// [tokens]
@group(0) @binding(7) var<storage, read_write> squared_error: array<f32>;

struct Params {
    // The tokens first_token .. end_token.
    first_token: u32,
    end_token: u32,
    d_model: u32,
    // Starts at 16: the size is that of every kernel's parameters.
    padding: vec4<u32>,
}

const THREADS: u32 = 64;

var<workgroup> partial: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn add_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let blocks = (params.d_model + THREADS - 1u) / THREADS;
    let at = group.y * groups.x + group.x;
    let token = params.first_token + at / blocks;
    let channel = (at % blocks) * THREADS + thread;
    if token >= params.end_token || channel >= params.d_model {
        return;
    }
    var sum = 0.0;
    let end = starts[token + 1u];
    for (var i = starts[token]; i < end; i++) {
        let entry = entries[i];
        sum += bitcast<f32>(entry.y) * rows[entry.x * params.d_model + channel];
    }
    reconstruction[token * params.d_model + channel] += sum;
}

@compute @workgroup_size(THREADS)
fn finish(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let token = params.first_token + group.y * groups.x + group.x;
    if token >= params.end_token {
        return;
    }
    let start = token * params.d_model;
    var sum = 0.0;
    for (var channel = thread; channel < params.d_model; channel += THREADS) {
        let value = reconstruction[start + channel] + b_dec[channel];
        reconstruction[start + channel] = value;
        let difference = hidden[start + channel] - value;
        sum += difference * difference;
    }
    partial[thread] = sum;
    for (var stride = THREADS / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if thread < stride {
            partial[thread] += partial[thread + stride];
        }
    }
    if thread == 0u {
        squared_error[token] = partial[0];
    }
}
