// What the adapter reaches at most: the kernels and the checks of the native bench (`shaders/examples/bench/peaks.rs`),
// in this browser. Their sums are known beforehand and compared, so that a kernel that did not run is no record.

/** A run grows until it takes this long: the way to the GPU and back is then too short to matter. */
const LONG_MS = 150;
/** The fastest counts: a peak is what was reached. */
const RUNS = 8;
/** Threads of a workgroup in both shaders. */
const THREADS = 256;
const FMA_GROUPS = 8192;
const READ_GROUPS = 1024;
/** A vector for each thread of `read.wgsl`. */
const READ_GRAIN = 16 * THREADS * READ_GROUPS;
/** Buffers that are read at once, and the most bytes of one: together larger than any cache. */
const READ_BUFFERS = 4;
const READ_BYTES = 2 ** 27;

async function source(name) {
  const response = await fetch(`/peaks/${name}.wgsl`);
  if (!response.ok) throw new Error(`${name}.wgsl: the server answered ${response.status}`);
  return response.text();
}

const buffer = (device, size, usage) =>
  device.createBuffer({ size, usage: usage | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC });

/** The first four bytes of a buffer. */
async function readFirst(device, from) {
  const copy = device.createBuffer({ size: 4, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(from, 0, copy, 0, 4);
  device.queue.submit([encoder.finish()]);
  await copy.mapAsync(GPUMapMode.READ);
  const content = copy.getMappedRange().slice(0);
  copy.destroy();
  return content;
}

/** A kernel with its buffers: `run(times)` gives the milliseconds of so many dispatches. */
async function kernel(device, code, groups, buffers) {
  const module = device.createShaderModule({ code });
  const pipeline = await device.createComputePipelineAsync({ layout: 'auto', compute: { module, entryPoint: 'main' } });
  const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }));
  const group = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
  return async (times) => {
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group);
    for (let at = 0; at < times; at += 1) pass.dispatchWorkgroups(groups);
    pass.end();
    const commands = encoder.finish();
    const start = performance.now();
    device.queue.submit([commands]);
    await device.queue.onSubmittedWorkDone();
    return performance.now() - start;
  };
}

/** Milliseconds of one repetition, when enough of them are run together. */
async function fastest(run) {
  // Also the warm-up.
  await run(1);
  let repetitions = 1;
  while ((await run(repetitions)) < LONG_MS && repetitions < 2 ** 24) repetitions *= 2;
  let best = Infinity;
  for (let at = 0; at < RUNS; at += 1) best = Math.min(best, (await run(repetitions)) / repetitions);
  return best;
}

function check(what, sum, expected, tolerance) {
  // Written so that NaN fails.
  const close = Math.abs(sum - expected) <= tolerance;
  if (!close) throw new Error(`${what} gives ${sum} where ${expected} is right`);
}

/** GFLOP/s of multiply-adds, each of which counts as two; in halves with `type` f16. */
async function fmaPeak(device, type) {
  const halves = type === 'f16';
  const code = halves ? `enable f16;\n${(await source('fma')).replaceAll('f32', 'f16')}` : await source('fma');
  const Numbers = halves ? Float16Array : Float32Array;
  const params = buffer(device, 16, GPUBufferUsage.UNIFORM);
  const sums = buffer(device, 16 * 256, GPUBufferUsage.STORAGE);
  const dispatch = await kernel(device, code, FMA_GROUPS, [params, sums]);
  const ms = await fastest((rounds) => {
    const content = new ArrayBuffer(16);
    new Uint32Array(content)[0] = rounds;
    // factor, term, never
    new Numbers(content, 4, 3).set([0.5, 0.5, -1]);
    device.queue.writeBuffer(params, 0, content);
    return dispatch(1);
  });
  // The first component of four chains, each of which has come to 1 when there were enough rounds.
  check(`fma in ${type}`, new Numbers(await readFirst(device, sums))[0], 4, 0.2);
  const fmasOfRound = 4 * code.match(/= fma\(/g).length;
  return (2e-6 * fmasOfRound * THREADS * FMA_GROUPS) / ms;
}

/** GB/s of reads. */
async function readPeak(device, software) {
  const { maxStorageBufferBindingSize } = device.limits;
  const grains = Math.floor(Math.min(maxStorageBufferBindingSize, READ_BYTES) / READ_GRAIN);
  const bytes = grains * READ_GRAIN;
  // A CPU's memory may be short, and its caches are small: it reads one four times.
  const count = software ? 1 : READ_BUFFERS;
  const values = Array.from({ length: count }, () => buffer(device, bytes, GPUBufferUsage.STORAGE));
  const ones = new Float32Array(READ_GRAIN / 4).fill(1);
  for (const value of values) {
    for (let grain = 0; grain < grains; grain += 1) device.queue.writeBuffer(value, grain * READ_GRAIN, ones);
  }
  const sums = buffer(device, 4 * THREADS * READ_GROUPS, GPUBufferUsage.STORAGE);
  const bound = Array.from({ length: READ_BUFFERS }, (_, at) => values[at % count]);
  const ms = await fastest(await kernel(device, await source('read'), READ_GROUPS, [...bound, sums]));
  const ofAThread = 4 * grains * READ_BUFFERS;
  check('read', new Float32Array(await readFirst(device, sums))[0], ofAThread, 0);
  return (1e-6 * READ_BUFFERS * bytes) / ms;
}

/** `{ f32, f16, read }`: GFLOP/s, GFLOP/s (null without shader-f16), GB/s. */
export async function measurePeaks(software) {
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' });
  const halves = adapter.features.has('shader-f16');
  const device = await adapter.requestDevice({ requiredFeatures: halves ? ['shader-f16'] : [] });
  const f32 = await fmaPeak(device, 'f32');
  const f16 = halves ? await fmaPeak(device, 'f16') : null;
  const read = await readPeak(device, software);
  device.destroy();
  return { f32, f16, read };
}
