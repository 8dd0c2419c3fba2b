// How engines are timed: warmed up, compared, then in turns, because what else a machine does comes and goes.
//
// A player is an engine in a comparison: `{ engine, precision, open, note, times, slow }`. Once it has a `note`, which
// says why, it is out.

/** Rounds after the warm-up: at least so many; more, up to `most`, while all of them took less than the budget. */
const ROUNDS = { least: 5, most: 9, budgetMs: 10_000 };
/** Who takes longer is timed once: minutes need no median. */
const SLOW_MS = 30_000;
/** Who warms up faster than this does so twice: the first run compiles, the second finds its pace. */
const SHORT_MS = 2_000;
/** A way to ask that is this much slower than the fastest so far is not run again. */
const HOPELESS = 1.5;

/**
 * Share of the k latents that both must name, and by how much activations may differ. f16 and int8 hold the weights of
 * this bench exactly, so only sums in 32-bit floats differ; int4 rounds the weights, and halves the sums.
 */
const EXACT = { overlap: 0.99, error: 1e-3 };
const SAME = {
  f32: EXACT,
  f16: EXACT,
  int8: EXACT,
  int4: { overlap: 0.7, error: 0.3 },
  'f16 sums': { overlap: 0.7, error: 0.3 },
};

export const textOf = (error) => String(error?.message ?? error).slice(0, 200);

export function median(times) {
  const sorted = [...times].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** One encode, from memory to memory. */
async function time(engine, { x, tokens }) {
  const start = performance.now();
  const top = await engine.encode(x, tokens);
  return { ms: performance.now() - start, top };
}

/** Share of latents that both name, and the largest difference of activations, relative to `1 + |activation|`. */
export function compare(reference, other, tokens, k) {
  let shared = 0;
  let error = 0;
  for (let token = 0; token < tokens; token += 1) {
    const row = (list) => Array.from(list.subarray(token * k, (token + 1) * k), Number);
    const named = new Set(row(reference.indices));
    shared += row(other.indices).filter((latent) => named.has(latent)).length;
    const values = row(reference.values);
    row(other.values).forEach((value, rank) => {
      const difference = Math.abs(value - values[rank]) / (1 + Math.abs(values[rank]));
      // Written so that NaN stays.
      error = difference <= error ? error : difference;
    });
  }
  return { overlap: shared / (tokens * k), missing: tokens * k - shared, error };
}

/** Whether that is too far apart for this precision. Of few latents, one may be the k-th for one engine only. */
export function differs({ overlap, missing, error }, precision) {
  const same = SAME[precision];
  // Written so that NaN differs.
  const agrees = (overlap >= same.overlap || missing <= 1) && error <= same.error;
  return !agrees;
}

/** Runs a player until it is warm. Its answer; nothing if it failed. */
export async function warmUp(player, input) {
  try {
    let { ms, top } = await time(player.open, input);
    if (ms < SHORT_MS) ({ ms, top } = await time(player.open, input));
    if (ms > SLOW_MS) Object.assign(player, { slow: true, times: [ms] });
    return top;
  } catch (error) {
    player.note = textOf(error);
    return undefined;
  }
}

/** Adds to the `times` of each player: one run of each, then again from the first. */
export async function inTurns(players, input) {
  const begun = performance.now();
  for (let round = 0; round < ROUNDS.most; round += 1) {
    if (round >= ROUNDS.least && performance.now() - begun > ROUNDS.budgetMs) return;
    for (const player of players.filter(({ note, slow }) => !note && !slow)) {
      try {
        player.times.push((await time(player.open, input)).ms);
      } catch (error) {
        Object.assign(player, { note: textOf(error), times: [] });
      }
    }
  }
}

/** Milliseconds of an engine that may be slower than `best`: run again only while it can still win. */
async function trial(engine, input, best) {
  const first = (await time(engine, input)).ms;
  // Compiling does not take seconds, so a long first run says enough.
  if (first > SLOW_MS || (first > SHORT_MS && first > HOPELESS * best)) return first;
  const second = (await time(engine, input)).ms;
  if (second > HOPELESS * best) return second;
  return Math.min(second, (await time(engine, input)).ms);
}

/** The fastest of several ways to open an engine, `{ way, ms }` for each input; and, if none opened, why. */
export async function fastestWays(ways, inputs, say) {
  const best = inputs.map(() => ({ ms: Infinity }));
  let failed;
  for (const way of ways) {
    let engine;
    try {
      engine = await way();
      for (const [at, input] of inputs.entries()) {
        const ms = await trial(engine, input, best[at].ms);
        say(`    T = ${input.tokens}: ${engine.detail}: ${ms.toFixed(2)} ms`);
        if (ms < best[at].ms) best[at] = { ms, way };
      }
    } catch (error) {
      failed = textOf(error);
      say(`    ${engine?.detail ?? 'not opened'}: ${failed}`);
    }
    // A device that was lost cannot be closed either.
    await engine?.close().catch(() => {});
  }
  return { best, failed: best.some(({ way }) => way) ? undefined : failed };
}
