// What a tab needs while our worker loads an SAE and encodes: every byte of its JS heaps, garbage and ArrayBuffers
// included, and of its wasm memory, as Chromium's debugging protocol tells them.
//
// `tests/browser/memory/mod.rs` opens this page, calls `window.visit(…)` and waits for `window.outcome`.

/** Milliseconds between two looks at the heaps. */
const INTERVAL_MS = 50;

/** The debugging protocol, spoken to this very tab: what that costs is counted as well. */
async function openDevtools(address) {
  const socket = new WebSocket(address);
  const waiting = new Map();
  const workers = [];
  let lastId = 0;
  await new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onerror = () => reject(new Error(`no debugging protocol at ${address}`));
  });
  socket.onmessage = ({ data }) => {
    const { id, method, params, result, error } = JSON.parse(data);
    if (method === 'Target.attachedToTarget') workers.push(params.sessionId);
    const { resolve, reject } = waiting.get(id) ?? {};
    waiting.delete(id);
    if (error) reject?.(new Error(error.message));
    else resolve?.(result);
  };
  const send = (method, params = {}, sessionId = undefined) =>
    new Promise((resolve, reject) => {
      lastId += 1;
      waiting.set(lastId, { resolve, reject });
      socket.send(JSON.stringify({ id: lastId, method, params, sessionId }));
    });
  await send('Target.setAutoAttach', { autoAttach: true, waitForDebuggerOnStart: false, flatten: true });
  return { send, workers, close: () => socket.close() };
}

/** Bytes of one JS heap: objects, those of the DOM, and ArrayBuffers but for wasm memory; live or not collected yet. */
async function heapBytes({ send }, sessionId) {
  const { usedSize, embedderHeapUsedSize, backingStorageSize } = await send('Runtime.getHeapUsage', {}, sessionId);
  const bytes = usedSize + embedderHeapUsedSize + backingStorageSize;
  if (!Number.isFinite(bytes)) throw new Error('this Chromium does not tell the sizes of ArrayBuffers');
  return bytes;
}

/** Looks at the heaps of the page and its workers until `stop` is called, which answers with the largest sum. */
function watchHeaps(devtools) {
  let [peak, samples, watching] = [0, 0, true];
  const watch = async () => {
    while (watching) {
      const sessions = [undefined, ...devtools.workers];
      const bytes = await Promise.all(sessions.map((session) => heapBytes(devtools, session)));
      peak = Math.max(peak, bytes.reduce((sum, heap) => sum + heap));
      samples += 1;
      await new Promise((resolve) => setTimeout(resolve, INTERVAL_MS));
    }
  };
  const watched = watch();
  // Told by `stop`.
  watched.catch(() => {});
  return {
    async stop() {
      watching = false;
      await watched;
      return { heapBytes: peak, samples };
    },
  };
}

/** Bytes of a worker's wasm memory. It never shrinks, so this is the most that there was. */
async function wasmBytes({ send }, sessionId) {
  const { result } = await send('Runtime.evaluate', { expression: 'WebAssembly.Memory.prototype' }, sessionId);
  const { objects } = await send('Runtime.queryObjects', { prototypeObjectId: result.objectId }, sessionId);
  const functionDeclaration =
    'function () { return this.reduce((sum, memory) => sum + memory.buffer.byteLength, 0); }';
  const call = { objectId: objects.objectId, functionDeclaration, returnByValue: true };
  return (await send('Runtime.callFunctionOn', call, sessionId)).result.value;
}

/** Our worker, in its own messages (`backend/api/src/gpu.rs`). */
async function openWorker(script) {
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
  const ask = async (request, name, buffers = []) => {
    const [start, answered] = [performance.now(), answer(name)];
    worker.postMessage([JSON.stringify(request), ...buffers], buffers);
    const reply = await answered;
    return { ...reply, ms: performance.now() - start };
  };
  await answer('ready');
  return { ask, close: () => worker.terminate() };
}

/** Loads the SAE at `base` and encodes `hidden`: half floats as their bits, `[tokens, d_model]`. */
async function visit({ devtools: address, script, base, tier, tokens, hidden }) {
  const devtools = await openDevtools(address);
  const worker = await openWorker(script);
  if (devtools.workers.length !== 1) throw new Error(`${devtools.workers.length} workers are watched`);
  const heaps = watchHeaps(devtools);
  const base_url = new URL(base, location.href).href;
  const loaded = await worker.ask({ load: { id: 1, base_url, tier, compute: 'gpu' } }, 'loaded');
  const encoded = await worker.ask({ encode: { id: 2, tokens } }, 'encoded', [new Uint16Array(hidden).buffer]);
  const heap = await heaps.stop();
  const wasm = await wasmBytes(devtools, devtools.workers[0]);
  worker.close();
  devtools.close();
  const [indices, acts] = [new Uint32Array(encoded.buffers[0]), new Float32Array(encoded.buffers[1])];
  return {
    sae: loaded.sae,
    loadMs: loaded.ms,
    encodeMs: encoded.ms,
    ...heap,
    wasmBytes: wasm,
    indices: Array.from(indices),
    acts: Array.from(acts),
  };
}

/** Starts; what came of it arrives in `window.outcome`, as JSON. */
window.visit = (wanted) => {
  const tell = (outcome) => (window.outcome = JSON.stringify(outcome));
  visit(wanted).then(
    (done) => tell({ done }),
    (error) => tell({ failed: error?.stack ?? String(error) }),
  );
};
