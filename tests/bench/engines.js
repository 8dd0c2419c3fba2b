// What is measured. An engine is opened on an SAE and has `encode(x, tokens)`: hidden states (a Float16Array) in, and
// `{ values, indices }` of the k largest activations out, from memory to memory; and `close()`. `detail` says how it
// was asked.

import { encoderModel, partSizes } from './onnx.js';
import { fetchWeights } from './sae.js';

/** Our worker. Only this function speaks its protocol (`backend/api/src/gpu.rs`). */
export async function openOurs(script, { base, backend }, tier) {
  const worker = new Worker(script, { type: 'module' });
  let waiting;
  const answer = (name) =>
    new Promise((resolve, reject) => {
      waiting = { name, resolve, reject };
    });
  worker.onerror = (event) => waiting.reject(new Error(event.message || 'the worker did not start'));
  worker.onmessage = ({ data: [json, ...buffers] }) => {
    const reply = JSON.parse(json);
    if (reply.failed) waiting.reject(new Error(reply.failed.detail));
    else if (reply === waiting.name || reply[waiting.name]) waiting.resolve({ ...reply[waiting.name], buffers });
  };
  const ask = (request, name, buffers = []) => {
    const answered = answer(name);
    worker.postMessage([JSON.stringify(request), ...buffers], buffers);
    return answered;
  };
  try {
    await answer('ready');
    const base_url = new URL(base, location.href).href;
    const compute = backend === 'webgpu' ? 'gpu' : 'cpu';
    const { sae } = await ask({ load: { id: 1, base_url, tier, compute } }, 'loaded');
    if ((sae.path === 'web_gpu') !== (compute === 'gpu')) throw new Error(`it computes by ${sae.path}: ${sae.reason}`);
  } catch (error) {
    worker.terminate();
    throw error;
  }
  return {
    detail: '',
    async encode(x, tokens) {
      // Buffers are transferred, so the worker gets a copy.
      const { buffers } = await ask({ encode: { id: 2, tokens } }, 'encoded', [x.slice().buffer]);
      return { indices: new Uint32Array(buffers[0]), values: new Float32Array(buffers[1]) };
    },
    close: async () => worker.terminate(),
  };
}

/** onnxruntime-web. `library` is one of its builds; `selectOnCpu`: its WebGPU backend leaves TopK to the CPU. */
export async function openOrt(sae, { library, provider, type, product, selectOnCpu }) {
  const ort = await import(`/ort/${library}`);
  ort.env.wasm.wasmPaths = '/ort/';
  ort.env.wasm.numThreads = navigator.hardwareConcurrency;
  // Of two GPUs the one that ours takes.
  ort.env.webgpu.powerPreference = 'high-performance';
  ort.env.logLevel = 'error';
  const sizes = partSizes({ ...sae, type });
  const parts = await fetchWeights(sae.base, { sizes, type, transposed: product === 'MatMul' });
  const session = await ort.InferenceSession.create(encoderModel({ ...sae, type, product }), {
    executionProviders: [{ name: provider, ...(selectOnCpu && { forceCpuNodeNames: ['values'] }) }],
    externalData: parts.flatMap(({ w, b }, part) => [
      { path: `w${part}`, data: w },
      { path: `b${part}`, data: b },
    ]),
    // Of warnings it has some that nobody can act upon.
    logSeverityLevel: 3,
  });
  return {
    detail: selectOnCpu ? `${product}, TopK on the CPU` : product,
    async encode(x, tokens) {
      const input = type === 'float16' ? x : new Float32Array(x);
      const feeds = { x: new ort.Tensor(type, input, [tokens, sae.dModel]) };
      const { values, indices } = await session.run(feeds);
      return { values: values.data, indices: indices.data };
    },
    close: () => session.release(),
  };
}
