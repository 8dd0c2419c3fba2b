// Measures our SAE encoder beside onnxruntime-web in one page, on the same weights and hidden states.
//
// `tests/examples/browser_bench` opens this page once per SAE and backend, so that each begins with empty memory and a
// new device. It waits for `window.adapter`, asks `window.peaks()` once, calls `window.bench(sae)` and waits for
// `window.benchResult`; `window.benchLog` tells what is going on meanwhile.

import { openOrt, openOurs } from './engines.js';
import { compare, differs, fastestWays, inTurns, median, textOf, warmUp } from './measure.js';
import { measurePeaks } from './peaks.js';
import { randomHidden } from './sae.js';

window.benchLog = [];
const say = (line) => window.benchLog.push(line);

/**
 * onnxruntime-web's precisions on this backend, and the ways to ask for each: with either product, and with TopK on
 * the GPU or on the CPU. Which is fastest depends on the sizes and on the adapter.
 */
function theirPlayers(sae, halves) {
  const player = (precision, ways) => ({
    engine: 'onnxruntime-web',
    precision,
    ways: ways.map((way) => () => openOrt(sae, way)),
  });
  const products = ['Gemm', 'MatMul'];
  if (sae.backend === 'wasm') {
    const wasm = { library: 'ort.wasm.min.mjs', provider: 'wasm', type: 'float32' };
    return [player('f32', products.map((product) => ({ ...wasm, product })))];
  }
  const onGpu = (type) =>
    products.flatMap((product) =>
      [false, true].map((selectOnCpu) => ({
        library: 'ort.webgpu.min.mjs',
        provider: 'webgpu',
        type,
        product,
        selectOnCpu,
      })),
    );
  return [player('f32', onGpu('float32')), ...(halves ? [player('f16 sums', onGpu('float16'))] : [])];
}

/** Closes what a player has open. A device that was lost cannot be closed either. */
async function close(player) {
  await player.open?.close().catch(() => {});
  player.open = undefined;
}

/** Opens `way` for a player, unless it is open; what goes wrong becomes its note. */
async function reopen(player, way) {
  if (player.open && player.way === way) return;
  await close(player);
  try {
    player.open = await way();
    player.way = way;
  } catch (error) {
    player.note = textOf(error);
    say(`    ${player.engine}, ${player.precision}: ${player.note}`);
  }
}

/** Warms up, compares with `reference` (or becomes it), and drops who cannot go on. */
async function prepare(player, input, k, reference) {
  const top = await warmUp(player, input);
  if (!top) return reference;
  if (!reference) return { top, from: player };
  if (reference.from !== player) {
    player.agreement = compare(reference.top, top, input.tokens, k);
    if (differs(player.agreement, player.precision)) {
      const { overlap, error } = player.agreement;
      Object.assign(player, { wrong: true, times: [] });
      player.note = `differs: ${overlap.toFixed(4)} of the latents, activations by ${error.toExponential(1)}`;
    }
  }
  return reference;
}

function row(player, input, times) {
  const { engine, precision, agreement, wrong, note, open } = player;
  const measured = times.length > 0 && {
    ms: median(times),
    least: Math.min(...times),
    most: Math.max(...times),
    runs: times.length,
  };
  return {
    tokens: input.tokens,
    engine,
    precision,
    detail: open?.detail,
    note,
    wrong: wrong ?? false,
    ...agreement,
    ...measured,
  };
}

/** Rows of one number of tokens: each tier of ours in turns with theirs, one tier at a time for the memory's sake. */
async function benchTokens(site, sae, theirs, input, at) {
  const rows = [];
  const pooled = theirs.map(() => []);
  for (const player of theirs) {
    Object.assign(player, { note: player.failed, wrong: undefined, agreement: undefined });
    const { way } = player.best[at];
    if (way) await reopen(player, way);
    else player.note ??= 'no way to ask it worked';
  }
  let reference;
  for (const tier of sae.tiers) {
    const ours = { engine: 'ours', precision: tier };
    // Theirs in f32 is the first to answer, and so what the others are compared with; without it, our first tier.
    const [inFull, ...inHalves] = theirs;
    const players = [inFull, ours, ...inHalves].filter(Boolean);
    await reopen(ours, () => openOurs(site.worker.js, sae, tier));
    for (const player of players) {
      Object.assign(player, { times: [], slow: false });
      if (!player.note) reference = await prepare(player, input, sae.k, reference);
    }
    // Ours first: ours, theirs, ours, theirs.
    await inTurns([ours, ...theirs], input);
    const ratios = theirs.map(({ precision, times, wrong }) => [
      precision,
      times.length > 0 && ours.times.length > 0 && !wrong ? median(times) / median(ours.times) : null,
    ]);
    rows.push({ ...row(ours, input, ours.times), faster: Object.fromEntries(ratios) });
    theirs.forEach(({ times }, player) => pooled[player].push(...times));
    for (const { engine, precision, times, note } of players) {
      const took = times.length > 0 ? `${median(times).toFixed(2)} ms` : note;
      say(`    T = ${input.tokens}: ${engine}, ${precision}: ${took}`);
    }
    await close(ours);
  }
  return [...rows, ...theirs.map((player, number) => row(player, input, pooled[number]))];
}

/** Rows of one SAE on one backend. */
async function benchSae(site, sae) {
  say(`${sae.dModel} → ${sae.latents}, ${sae.backend}`);
  const inputs = sae.tokens.map((tokens) => ({ tokens, x: randomHidden(tokens, sae.dModel) }));
  const theirs = sae.ort ? theirPlayers(sae, window.adapter.halves) : [];
  for (const player of theirs) {
    say(`  ways to ask onnxruntime-web for ${player.precision}`);
    Object.assign(player, await fastestWays(player.ways, inputs, say));
  }
  say('  in turns');
  const rows = [];
  for (const [at, input] of inputs.entries()) rows.push(...(await benchTokens(site, sae, theirs, input, at)));
  for (const player of theirs) await close(player);
  return rows;
}

async function describeAdapter() {
  const about = {
    browser: navigator.userAgent.match(/Chrome\/\d+/)?.[0] ?? 'a browser',
    threads: crossOriginIsolated ? navigator.hardwareConcurrency : 1,
  };
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) return about;
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info;
  const name = description || [vendor, architecture, device].filter(Boolean).join(' ') || 'an unnamed adapter';
  const software = isFallbackAdapter || /swiftshader|llvmpipe|basic render/i.test(name);
  return { ...about, name, software, halves: adapter.features.has('shader-f16') };
}

/** What this adapter reaches at most. */
window.peaks = () => measurePeaks(window.adapter.software);

/** Starts; the rows, or what stopped them, arrive in `window.benchResult`. */
window.bench = (sae) => {
  const run = async () => ({ rows: await benchSae(await (await fetch('/assets/site.json')).json(), sae) });
  run().then(
    (result) => (window.benchResult = result),
    (error) => (window.benchResult = { rows: [], failed: error?.stack ?? String(error) }),
  );
};

window.adapter = await describeAdapter();
