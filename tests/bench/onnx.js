// The SAE's encoder as an ONNX model, written without the onnx package: top-k of relu(x · W + b).
//
// Weights and biases are initialisers outside the file (`external_data`), because onnxruntime-web then puts them on the
// GPU, or packs them for its wasm kernels, once per session; a protobuf could not hold more than 2 GB anyway. Above
// 512 MiB they come in parts, whose results are joined before TopK. The numbers below are field numbers of onnx.proto3.

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return [...bytes, value];
}

/** A message of `[field, value]`: numbers become varints, text and bytes are written with their length. */
function message(...fields) {
  const bytes = fields.flatMap(([field, value]) => {
    if (typeof value === 'number') return [...varint(field * 8), ...varint(value)];
    const content = typeof value === 'string' ? new TextEncoder().encode(value) : value;
    return [...varint(field * 8 + 2), ...varint(content.length), ...content];
  });
  return Uint8Array.from(bytes);
}

/** TensorProto.DataType. */
const TYPES = { float32: 1, int64: 7, float16: 10 };

/** A node, named after its first output. */
const node = (op, inputs, outputs, ...attributes) =>
  message(
    ...inputs.map((name) => [1, name]),
    ...outputs.map((name) => [2, name]),
    [3, outputs[0]],
    [4, op],
    ...attributes.map((attribute) => [5, attribute]),
  );

/** An integer attribute. */
const attribute = (name, value) => message([1, name], [3, value], [20, 2]);

const external = (name, type, dims) =>
  message(
    ...dims.map((size) => [1, size]),
    [2, TYPES[type]],
    [8, name],
    [13, message([1, 'location'], [2, name])],
    [14, 1],
  );

/** An input or output; a size that is text is a free dimension. */
const value = (name, type, sizes) => {
  const dims = sizes.map((size) => [1, message([typeof size === 'string' ? 2 : 1, size])]);
  return message([1, name], [2, message([1, message([1, TYPES[type]], [2, message(...dims)])])]);
};

/** Largest initialiser: software adapters allocate no more than 1 GiB at once, and it is copied to the GPU whole. */
const MAX_BYTES = 2 ** 29;

/** How many latents each part of the weights has; one part, unless it were larger than `MAX_BYTES`. */
export function partSizes({ dModel, latents, type }) {
  const parts = Math.ceil((latents * dModel * (type === 'float16' ? 2 : 4)) / MAX_BYTES);
  const size = Math.ceil(latents / parts);
  return Array.from({ length: parts }, (_, part) => Math.min(size, latents - part * size));
}

/**
 * Bytes of the model; `x` comes in, `values` and `indices` go out. Part p of the external data is called `w{p}` and
 * `b{p}`.
 *
 * `product` is `MatMul` (and Add), with weights `[d_model, latents]`, or `Gemm`, with `[latents, d_model]`.
 */
export function encoderModel({ dModel, latents, k, type, product }) {
  const sizes = partSizes({ dModel, latents, type });
  const sums = sizes.map((_, part) => `sum${part}`);
  const layer = (part) =>
    product === 'Gemm'
      ? [node('Gemm', ['x', `w${part}`, `b${part}`], [sums[part]], attribute('transB', 1))]
      : [
          node('MatMul', ['x', `w${part}`], [`product${part}`]),
          node('Add', [`product${part}`, `b${part}`], [sums[part]]),
        ];
  const joined = sizes.length > 1 ? [node('Concat', sums, ['sum'], attribute('axis', 1))] : [];
  const nodes = [
    ...sizes.flatMap((_, part) => layer(part)),
    ...joined,
    node('Relu', [joined.length ? 'sum' : sums[0]], ['acts']),
    node('TopK', ['acts', 'k'], ['values', 'indices']),
  ];
  const initialisers = sizes.flatMap((size, part) => [
    external(`w${part}`, type, product === 'Gemm' ? [size, dModel] : [dModel, size]),
    external(`b${part}`, type, [size]),
  ]);
  const count = new Uint8Array(new BigInt64Array([BigInt(k)]).buffer);
  const graph = message(
    ...nodes.map((node) => [1, node]),
    [2, 'sae_encode'],
    ...initialisers.map((initialiser) => [5, initialiser]),
    [5, message([1, 1], [2, TYPES.int64], [8, 'k'], [9, count])],
    [11, value('x', type, ['tokens', dModel])],
    [12, value('values', type, ['tokens', k])],
    [12, value('indices', 'int64', ['tokens', k])],
  );
  // Version 8 of the format, version 17 of the operators.
  return message([1, 8], [7, graph], [8, message([2, 17])]);
}
