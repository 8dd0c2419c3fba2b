// Nothing but reads: every thread adds up its share of four buffers, neighbouring threads read neighbouring values.

// All of one length: a multiple of the threads.
@group(0) @binding(0) var<storage, read> first: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> second: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> third: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> fourth: array<vec4<f32>>;
// [threads]
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;

const THREADS: u32 = 256;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let threads = groups.x * THREADS;
    let count = arrayLength(&first);
    var sum = vec4<f32>();
    for (var i = id.x; i < count; i += threads) {
        sum += first[i] + second[i] + third[i] + fourth[i];
    }
    sums[id.x] = sum.x + sum.y + sum.z + sum.w;
}
