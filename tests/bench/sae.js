// The SAE's files (`backend/api/src/shards.rs`) as this page needs them for onnxruntime-web: the weights of the tier
// f16, which are exact in 32-bit floats.

/** The tensors of a safetensors file: name → { shape, bytes }. */
function readSafetensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  delete header.__metadata__;
  const tensor = ({ shape, data_offsets: [start, end] }) => ({
    shape,
    // A copy, because views of numbers want aligned bytes.
    bytes: buffer.slice(8 + length + start, 8 + length + end),
  });
  return Object.fromEntries(Object.entries(header).map(([name, entry]) => [name, tensor(entry)]));
}

async function fetchOk(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: the server answered ${response.status}`);
  return response;
}

const fetchTensors = async (base, { file }) => readSafetensors(await (await fetchOk(base + file)).arrayBuffer());

/**
 * Weights and biases in parts of so many latents: the bytes of `{ w, b }` of each, w as `[latents, d_model]` or, if it
 * is to be `transposed`, the other way round. `b_dec` is zero in the SAEs of this bench.
 */
export async function fetchWeights(base, { sizes, type, transposed }) {
  const { dModel, biases, tiers } = await (await fetchOk(`${base}manifest.json`)).json();
  const Numbers = type === 'float16' ? Float16Array : Float32Array;
  const parts = sizes.map((size) => new Numbers(size * dModel));
  for (const shard of tiers.find(({ tier }) => tier === 'f16').shards) {
    const { weight } = await fetchTensors(base, shard);
    const [count, width] = weight.shape;
    if (width !== dModel) throw new Error(`rows of ${width} channels where d_model is ${dModel}`);
    const rows = new Numbers(new Float16Array(weight.bytes));
    for (let row = 0; row < count; row += 1) {
      const part = Math.floor((shard.firstRow + row) / sizes[0]);
      const [w, size, latent] = [parts[part], sizes[part], (shard.firstRow + row) % sizes[0]];
      if (transposed) {
        for (let at = 0; at < dModel; at += 1) w[at * size + latent] = rows[row * dModel + at];
      } else {
        w.set(rows.subarray(row * dModel, (row + 1) * dModel), latent * dModel);
      }
    }
  }
  const b = new Numbers(new Float32Array((await fetchTensors(base, biases)).b_enc.bytes));
  return parts.map((w, part) => {
    const start = part * sizes[0];
    return { w: new Uint8Array(w.buffer), b: new Uint8Array(b.slice(start, start + sizes[part]).buffer) };
  });
}

/** Pseudo-random hidden states in [-1, 1), the same in every run, as halves. */
export function randomHidden(tokens, dModel, seed = 1) {
  let state = seed;
  const next = () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 31 - 1;
  };
  return Float16Array.from({ length: tokens * dModel }, next);
}
