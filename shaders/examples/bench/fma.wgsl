// Nothing but multiply-adds: 16 chains in registers, none of which waits for another.

@group(0) @binding(0) var<uniform> params: Params;
// [256]
@group(0) @binding(1) var<storage, read_write> sums: array<vec4<f32>>;

struct Params {
    rounds: u32,
    // Known to the host only, or the chains were computed when this is compiled. They run to term / (1 - factor).
    factor: f32,
    term: f32,
    // Less than any sum.
    never: f32,
}

const THREADS: u32 = 256;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let factor = vec4<f32>(params.factor);
    let term = vec4<f32>(params.term);
    var a = vec4<f32>(1.0, 1.1, 1.2, 1.3) + f32(id.x % 64u) * 0.001;
    var b = a + 0.01;
    var c = a + 0.02;
    var d = a + 0.03;
    for (var i = 0u; i < params.rounds; i++) {
        a = fma(a, factor, term);
        b = fma(b, factor, term);
        c = fma(c, factor, term);
        d = fma(d, factor, term);
        a = fma(a, factor, term);
        b = fma(b, factor, term);
        c = fma(c, factor, term);
        d = fma(d, factor, term);
        a = fma(a, factor, term);
        b = fma(b, factor, term);
        c = fma(c, factor, term);
        d = fma(d, factor, term);
        a = fma(a, factor, term);
        b = fma(b, factor, term);
        c = fma(c, factor, term);
        d = fma(d, factor, term);
    }
    let sum = a + b + c + d;
    // One thread writes; that the others never do is not known when this is compiled.
    if id.x == 0u || dot(sum, vec4<f32>(1.0)) < params.never {
        sums[id.x % 256u] = sum;
    }
}
