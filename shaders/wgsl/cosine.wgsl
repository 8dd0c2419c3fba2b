// Cosine of one row with each row of a matrix, one workgroup per row:
//
//     cosines[n] = (row . rows[n]) / (|row| |rows[n]|),  0 where either row is zero

@group(0) @binding(0) var<uniform> params: Params;
// [d_model]
@group(0) @binding(1) var<storage, read> row: array<f32>;
// [rows of the piece, d_model]: from first_row on
@group(0) @binding(2) var<storage, read> rows: array<f32>;
// [n]
@group(0) @binding(3) var<storage, read_write> cosines: array<f32>;

struct Params {
    // The rows first_row .. end_row of the matrix.
    first_row: u32,
    end_row: u32,
    d_model: u32,
    // 1 / |row|, or 0 if the row is zero.
    inverse_norm: f32,
    // The size is that of every kernel's parameters.
    padding: vec4<u32>,
}

const THREADS: u32 = 64;

// Dot product and squared norm.
var<workgroup> partial: array<vec2<f32>, THREADS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let n = params.first_row + group.y * groups.x + group.x;
    if n >= params.end_row {
        return;
    }
    let start = (n - params.first_row) * params.d_model;
    var sum = vec2<f32>();
    for (var channel = thread; channel < params.d_model; channel += THREADS) {
        let value = rows[start + channel];
        sum += value * vec2<f32>(row[channel], value);
    }
    partial[thread] = sum;
    for (var stride = THREADS / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if thread < stride {
            partial[thread] += partial[thread + stride];
        }
    }
    if thread == 0u {
        let total = partial[0];
        var cosine = 0.0;
        // Written so that NaN goes through.
        if total.y != 0.0 {
            cosine = total.x * params.inverse_norm / sqrt(total.y);
        }
        cosines[n] = cosine;
    }
}
