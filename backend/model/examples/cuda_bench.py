"""LMM Scope beside `transformers` on one NVIDIA GPU: prefill, decoding, the SAE, attribution, caching, exactness.

    make bench-cuda PYTHON=venv/bin/python

Needs `torch`, `transformers` (4.57 or 5), `safetensors`, `tokenizers` and Pillow; no network. The checkpoint is a
random one of the 8B model's size (16 GB) with an SAE of 131,072 latents (2 GB), written if it is missing. Every number
is printed as soon as it is there, as a row of a Markdown table and, with `--out`, as a line of JSON; a step that fails
says why, and the next one begins. `--steps` picks some of them, in the order of `STEPS`.

Ours is the binary, asked over HTTP; its prefill contains the picture's preparation and the way back to the host. `ours`
writes three texts at once (as it is, reconstructed, steered), so theirs is measured with one row and with three.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load, load_file, save_file

import random_checkpoint as made
from bench_engine import ANSWER, BASELINE, FEATURE, QUESTION, Engine

STEPS = ["checkpoint", "ours", "cache", "theirs", "exact", "plain"]
BEGUN = time.perf_counter()


class Report:
    """Rows that are printed at once."""

    def __init__(self, out):
        self.out = out.open("a") if out else None
        print("| s | who | what | value | | |\n|---:|---|---|---:|---|---|", flush=True)

    def row(self, who, what, value, unit="", note=""):
        at = round(time.perf_counter() - BEGUN, 1)
        shown = f"{value:.4g}" if isinstance(value, float) else value
        shown = f"{value:,.0f}" if isinstance(value, float) and abs(value) >= 1000 else shown
        print(f"| {at} | {who} | {what} | {shown} | {unit} | {note} |", flush=True)
        if self.out:
            line = {"at": at, "who": who, "what": what, "value": value, "unit": unit, "note": note}
            self.out.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.out.flush()

    @contextlib.contextmanager
    def step(self, name):
        """Says how long it took; what goes wrong is told and ends here."""
        begun = time.perf_counter()
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self.row("failed", name, reason[0].replace("|", "/")[:300])
        self.row("bench", name, time.perf_counter() - begun, "s", "the step as a whole")


class DeviceMemory:
    """The most that all programs together had on the card since the block began, in GiB; `None` without a card."""

    def __init__(self, device):
        self.card, self.most, self.before = device.startswith("cuda"), 0.0, 0.0

    def used(self):
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30

    def __enter__(self):
        self.over = threading.Event()
        if self.card:
            self.before = self.used()
            threading.Thread(target=self.watch, daemon=True).start()
        return self

    def watch(self):
        while not self.over.wait(0.05):
            self.most = max(self.most, self.used() - self.before)

    def __exit__(self, *_):
        self.over.set()


def random_picture(side, seed):
    """Soft noise, so that a PNG of it is small."""
    coarse = torch.randint(0, 256, (side // 28 + 1, side // 28 + 1, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(coarse.to(torch.uint8).numpy()).resize((side, side), Image.Resampling.BICUBIC)


def png(picture):
    bytes_of = io.BytesIO()
    picture.save(bytes_of, "PNG")
    return bytes_of.getvalue()


def per_second(seconds):
    """Of steps, the first few left out."""
    return 1 / statistics.median(seconds[min(4, len(seconds) // 2):])


def steps_between(times):
    return [after - before for before, after in zip(times, times[1:])]


def write_checkpoint(args, report):
    if not (args.checkpoint / "config.json").is_file():
        begun = time.perf_counter()
        count = made.write_checkpoint(args.checkpoint, args, args.device)
        report.row("bench", "checkpoint written", time.perf_counter() - begun, "s", f"{count / 1e9:.1f} GB, bf16")
    for folder, latents, width, k in (
        (args.sae, args.latents, args.hidden, args.k),
        (args.vision_sae, 64, args.vision_hidden, 8),
    ):
        if not (folder / "cfg.json").is_file():
            begun = time.perf_counter()
            count = made.write_sae(folder, latents, width, k, args.device)
            what = f"SAE of {latents:,} × {width} written"
            report.row("bench", what, time.perf_counter() - begun, "s", f"{count / 1e9:.1f} GB")
    if args.device.startswith("cuda"):
        torch.cuda.empty_cache()


@contextlib.contextmanager
def running(args, report, sae, what):
    """An engine that is loaded, and what it took of memory in the end."""
    begun = time.perf_counter()
    with DeviceMemory(args.device) as memory:
        engine = Engine(args, sae)
        try:
            engine.wait()
            report.row("ours", f"{what}: loaded", time.perf_counter() - begun, "s", "from starting the program")
            most, _ = engine.host_memory()
            report.row("ours", f"{what}: host memory, loading", most, "GiB", "at most, mapped files included")
            yield engine
            report.row("ours", f"{what}: host memory, running", engine.host_memory()[1], "GiB", "without mapped files")
            report.row("ours", f"{what}: device memory", memory.most, "GiB", "at most")
        finally:
            engine.stop()


def measure_ours(args, report, state):
    # Of an earlier run: not to be compared with this one's.
    (args.work / "ours.safetensors").unlink(missing_ok=True)
    picture = png(random_picture(args.picture, 0))
    with running(args, report, args.sae, "engine") as engine:
        with report.step("ours: prefill"):
            begun = time.perf_counter()
            given, _ = engine.extract(picture, dtype="f32")
            report.row("ours", "first prefill", time.perf_counter() - begun, "s", "kernels are compiled and tuned")
            (args.work / "ours.safetensors").write_bytes(given)
            tokens = len(load(given)["input_ids"])
            took = [engine.extract(picture)[1] for _ in range(args.warm_up + args.times)][args.warm_up:]
            state["prefill"] = statistics.median(took)
            note = f"{tokens} tokens, {state['prefill'] * 1e3:.0f} ms, with preparation and the copy to the host"
            report.row("ours", "prefill up to the hook point", tokens / state["prefill"], "tokens/s", note)
        with report.step("ours: steer"):
            report_steering(args, report, engine, picture, "with the SAE in two of three texts", state)
        with report.step("ours: encode"):
            took = [engine.extract(picture, threshold="true")[1] for _ in range(1 + args.times)][1:]
            seconds = statistics.median(took) - state["prefill"]
            report.row("ours", f"SAE, {tokens} tokens", seconds, "s", "prefill with thresholds less prefill")
        with report.step("ours: attribute"):
            for number in range(1 + args.few):
                begun = time.perf_counter()
                found = engine.attribute(picture)
                passes = found["passes"]
                note = f"all latents, {passes['forward']} forward, {passes['backward']} backward after the hook point"
                what = "attribution, first" if number == 0 else "attribution"
                report.row("ours", what, time.perf_counter() - begun, "s", note)


def report_steering(args, report, engine, picture, what, state=None):
    for number in range(2):
        times, ids, total = engine.steer(picture, args.tokens)
        first = ", first" if number == 0 else ""
        report.row("ours", f"time to first token, {what}{first}", times[0], "s", "three texts")
        report.row("ours", f"decoding, {what}{first}", per_second(steps_between(times)), "tokens/s",
                   f"each of three texts; {total / times[-1]:.1f} of all texts per second of the whole request")
    if state is not None:
        state["ids"] = ids


def measure_plain(args, report):
    """Decoding without an SAE on the way: steering in the vision tower is over when the text begins."""
    picture = png(random_picture(args.picture, 0))
    with running(args, report, args.vision_sae, "engine for the tower") as engine:
        report_steering(args, report, engine, picture, "without an SAE in the text")


def picture_files(args):
    folder = args.work / "pictures"
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number:03}.jpg" for number in range(args.pictures)]
    for number, file in enumerate(files):
        if not file.is_file():
            random_picture(640, 100 + number).save(file, quality=90)
    return files


def measure_cache(args, report):
    """Pace between the first shard and the last, so without loading and compiling."""
    files, per_shard = picture_files(args), max(1, args.pictures // 5)
    out = args.work / f"cache-{os.getpid()}"
    command = [args.bin, "cache", "--model", args.checkpoint, "--sae", args.sae, "--layer", args.layer, "--images",
               args.work / "pictures", "--out", out, "--device", args.device, "--dtype", args.dtype, "--shard-pictures",
               per_shard, "--json"]
    begun = time.perf_counter()
    with DeviceMemory(args.device) as memory:
        run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"cache: {run.stderr.strip()[-600:]}")
    found = json.loads(run.stdout)
    report.row("ours", "cache, the whole command", time.perf_counter() - begun, "s",
               f"{len(files)} pictures, {found['activations']:,} activations, {memory.most:.1f} GiB on the device")
    written = sorted(shard.stat().st_mtime for shard in (out / "shards").glob("*.parquet"))
    if len(written) > 1:
        pace = (len(files) - per_shard) / (written[-1] - written[0])
        report.row("ours", "cache", pace, "pictures/s", "after the first shard")


def difference(a, b):
    """Norms of the difference beside norms of `b`, over tokens: mean, largest."""
    relative = (a.float() - b.float()).norm(dim=-1) / b.float().norm(dim=-1)
    return relative.mean().item(), relative.max().item()


def report_difference(report, what, a, b):
    mean, largest = difference(a, b)
    report.row("exact", what, mean, "mean", "norm of a token's difference beside its norm")
    report.row("exact", what, largest, "largest", "of all tokens")


def measure_theirs(args, report, state):
    import transformers
    from bench_transformers import TorchSae, Transformers, seconds_of

    device, dtype = args.device, {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[args.dtype]
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, sdpa, {args.dtype}"
    their, took = seconds_of(device, lambda: Transformers(args.checkpoint, device, dtype, args.layer))
    report.row("theirs", "loaded", took, "s", versions)
    state["their"] = their
    picture = random_picture(args.picture, 0)
    inputs, took = seconds_of(device, lambda: their.inputs(picture))
    tokens = inputs["input_ids"].shape[1]
    report.row("theirs", "the picture's preparation", took, "s", f"{tokens} tokens")

    def timed(work, times=args.times, warm_up=args.warm_up):
        return statistics.median([seconds_of(device, work)[1] for _ in range(warm_up + times)][warm_up:])

    with report.step("theirs: prefill"):
        seconds = timed(lambda: their.prefill(inputs))
        report.row("theirs", "prefill, output_hidden_states", tokens / seconds, "tokens/s",
                   f"all blocks, {seconds * 1e3:.0f} ms")
        seconds = timed(lambda: their.hidden(inputs))
        report.row("theirs", "prefill up to the hook point", tokens / seconds, "tokens/s",
                   f"later blocks cut off, {seconds * 1e3:.0f} ms, neither preparation nor copy")
    state["hidden"] = their.hidden(inputs).float().cpu()
    save_file({"hidden": state["hidden"], "input_ids": inputs["input_ids"][0].cpu()}, args.work / "theirs.safetensors")
    with report.step("theirs: exactness"):
        ours = load_file(args.work / "ours.safetensors")
        if ours["input_ids"].tolist() != inputs["input_ids"][0].tolist():
            raise RuntimeError("input ids differ")
        report_difference(report, f"ours and theirs, both in {args.dtype}", ours["hidden"], state["hidden"])
    chat = their.inputs(picture, QUESTION)
    with report.step("theirs: decoding"):
        for rows in (1, 3):
            ids, seconds = their.decode(chat, args.tokens, rows)
            report.row("theirs", f"decoding, {rows} rows", per_second(seconds), "tokens/s", "each row, no SAE")
            if rows == 1 and "ids" in state:
                pairs = list(zip(ids, state["ids"]))
                same = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
                report.row("exact", "greedy tokens alike before one differs", same, "tokens", f"of {len(pairs)}")
    sae = TorchSae(args.sae, dtype, device)
    with report.step("theirs: SAE"):
        for rows, through in ((1, slice(0, 1)), (3, slice(1, 3))):
            _, seconds = their.decode(chat, args.tokens, rows, sae, through)
            report.row("theirs", f"decoding with the SAE, {rows} rows", per_second(seconds), "tokens/s",
                       f"each row, SAE in {args.dtype} in {through.stop - through.start} of them")
        hidden = their.hidden(inputs)
        with torch.no_grad():
            report.row("theirs", f"SAE, {tokens} tokens", timed(lambda: sae.encode(hidden)), "s", args.dtype)
    with report.step("theirs: attribute"):
        seconds = timed(lambda: their.attribute_one(chat, ANSWER, BASELINE, sae, FEATURE), args.few, 1)
        active = sae.encode(their.hidden(chat))[1].unique().numel()
        report.row("theirs", "attribution of one latent", seconds, "s",
                   f"2 forward, 1 backward; {active:,} latents are active")
        seconds = timed(lambda: their.attribute_all(chat, ANSWER, BASELINE, sae), args.few, 1)
        report.row("theirs", "attribution of all latents by one gradient", seconds, "s")
    with report.step("theirs: cache"):
        files = picture_files(args)[:16]
        their.cache_pictures(files[:2], sae)
        _, seconds = seconds_of(device, lambda: their.cache_pictures(files, sae))
        report.row("theirs", "cache", len(files) / seconds, "pictures/s", "one at a time, nothing written")
    if device.startswith("cuda"):
        report.row("theirs", "device memory", torch.cuda.max_memory_allocated() / 2**30, "GiB", "at most, of tensors")


def measure_exactness(args, report, state):
    """Both beside `transformers` in f32 without TF32, on the same stored weights."""
    from bench_transformers import Transformers

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    their = state.pop("their", None) or Transformers(args.checkpoint, args.device, torch.bfloat16, args.layer)
    gc.collect()
    their.to_f32()
    exact = their.hidden(their.inputs(random_picture(args.picture, 0))).cpu()
    for who in ("ours", "theirs"):
        hidden = load_file(args.work / f"{who}.safetensors")["hidden"]
        report_difference(report, f"{who} in {args.dtype} and theirs in f32", hidden, exact)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    binary = os.environ.get("LMM_SCOPE_BIN", "target/debug/lmm-scope")
    add("--bin", type=Path, default=binary, help="the binary, with CUDA")
    add("--work", type=Path, default="target/bench-cuda", help="folder for everything that is written")
    add("--checkpoint", type=Path, help="made if missing; WORK/checkpoint")
    add("--out", type=Path, help="file for lines of JSON")
    add("--steps", default=",".join(STEPS), help="some of them, comma separated")
    add("--until", type=float, default=float("inf"), help="seconds after which no step begins")
    add("--device", default="cuda", choices=["cuda", "cpu"])
    add("--dtype", default="bf16", choices=["bf16", "f16", "f32"])
    add("--times", type=int, default=5, help="measurements of a median")
    add("--warm-up", type=int, default=2, help="runs before them")
    add("--few", type=int, default=2, help="measurements of what takes long")
    add("--tokens", type=int, default=64, help="that are written")
    add("--picture", type=int, default=1344, help="pixels of a side")
    add("--pictures", type=int, default=80, help="that are cached")
    sizes = {"layers": 32, "hidden": 4096, "intermediate": 14_336, "heads": 32, "kv-heads": 8, "vision-layers": 24,
             "vision-hidden": 1024, "vision-heads": 16, "latents": 131_072, "k": 256, "layer": 24}
    for name, size in sizes.items():
        add(f"--{name}", type=int, default=size)
    args = parser.parse_args()
    args.layer = min(args.layer, args.layers - 1)
    args.checkpoint = args.checkpoint or args.work / "checkpoint"
    args.sae = args.work / "sae" / f"model.layers.{args.layer}"
    args.vision_sae = args.work / "vision-sae" / f"vision.{args.vision_layers - 2}"
    return args


def main():
    # Whoever cuts the run off leaves no engine behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    report, state = Report(args.out), {}
    if args.device == "cuda":
        report.row("bench", torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1] / 2**30, "GiB")
    work = {
        "checkpoint": lambda: write_checkpoint(args, report),
        "ours": lambda: measure_ours(args, report, state),
        "cache": lambda: measure_cache(args, report),
        "theirs": lambda: measure_theirs(args, report, state),
        "exact": lambda: measure_exactness(args, report, state),
        "plain": lambda: measure_plain(args, report),
    }
    asked = args.steps.split(",")
    if unknown := set(asked) - set(STEPS):
        sys.exit(f"error: --steps: {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    for name in STEPS:
        if name not in asked:
            continue
        if time.perf_counter() - BEGUN > args.until:
            report.row("bench", name, "left out", "", "--until")
            continue
        if name == "plain" and args.device == "cuda":
            # Theirs gives its memory back first.
            state.clear()
            gc.collect()
            torch.cuda.empty_cache()
        with report.step(name):
            work[name]()


main()
