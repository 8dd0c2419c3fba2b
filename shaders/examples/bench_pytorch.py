"""The SAE's encoder in PyTorch, on the sizes of the native bench: `relu(linear(x - b_dec)).topk`, from memory to memory.

Prints a Markdown table. Needs `torch`, nothing else; without it, says so and ends well.

    python bench_pytorch.py [small|full] [saes=4096x16384x256,...] [tokens=1,64,...] [device=cpu|cuda]

device: an NVIDIA GPU if PyTorch sees one, else the CPU. On a GPU products of f32 are those of f32, not of tf32.

saes: d_model x latents x k of each. Arguments are those of `bench/options.rs`; `weights=` is understood and ignored, as
PyTorch has f32 and bf16.
"""

import datetime
import os
import sys
import time

try:
    import torch
except ImportError:
    print(f"{sys.executable} has no torch: the encoder in PyTorch is left out. PYTHON=... names another Python.")
    sys.exit()

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# Timed runs after the warm-up: at least so many; more, up to the most, within the budget.
LEAST, MOST, BUDGET_S = 5, 15, 10.0

SMALL = {"saes": [(1024, 8192, 32), (4096, 16_384, 256)], "tokens": [1, 64]}
FULL = {"saes": [(4096, 16_384, 256), (4096, 131_072, 256)], "tokens": [1, 64, 576]}


def options(arguments):
    """Sizes of the SAEs and numbers of tokens."""
    chosen = {**FULL, "device": "cuda" if torch.cuda.is_available() else "cpu"}
    for argument in arguments:
        name, _, value = argument.partition("=")
        try:
            if argument in ("small", "full"):
                chosen.update(SMALL if argument == "small" else FULL)
            elif name == "saes":
                saes = [tuple(int(size) for size in sae.split("x")) for sae in value.split(",")]
                if any(len(sae) != 3 for sae in saes):
                    raise ValueError
                chosen["saes"] = saes
            elif name == "tokens":
                chosen["tokens"] = [int(count) for count in value.split(",")]
            elif name == "device":
                chosen["device"] = torch.device(value).type
            elif name != "weights":
                raise ValueError
        except (ValueError, RuntimeError):
            sys.exit(f"{argument!r} is no argument of\n{__doc__}")
    return chosen["saes"], chosen["tokens"], chosen["device"]


def runs(encode):
    """Seconds of each timed run, in rising order."""
    encode()
    times, begun = [], time.perf_counter()
    while len(times) < MOST and (len(times) < LEAST or time.perf_counter() - begun < BUDGET_S):
        start = time.perf_counter()
        encode()
        times.append(time.perf_counter() - start)
    return sorted(times)


def free_bytes(device):
    """Memory that can be had, caches included; 4 GiB where the system does not say."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 4 << 30


def row(*cells):
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def bench(d_model, latents, k, tokens, name, device):
    """A row for each number of tokens."""
    dtype = DTYPES[name]
    # The weights and how they are made, pre-activations, what relu and topk make of them, and room to breathe.
    needed = 2 * 4 * latents * d_model + 4 * 4 * latents * max(tokens) + (1 << 30)
    if needed > free_bytes(device):
        reason = f"needs {needed >> 20} MiB, {free_bytes(device) >> 20} are free"
        row(name, "", d_model, latents, k, reason, "", "", "", "")
        return
    weight = (torch.randn(latents, d_model, device=device) / d_model**0.5).to(dtype)
    bias = (torch.randn(latents, device=device) * 0.01).to(dtype)
    b_dec = torch.randn(d_model, device=device).to(dtype)
    for count in tokens:
        x = torch.randn(count, d_model)

        def encode():
            # From memory to memory, as ours: copies to the host wait for all before them.
            centred = x.to(device).to(dtype) - b_dec
            values, indices = torch.relu(torch.nn.functional.linear(centred, weight, bias)).topk(k, dim=-1)
            return values.float().cpu(), indices.int().cpu()

        times = runs(encode)
        middle = (times[len(times) // 2] + times[(len(times) - 1) // 2]) / 2
        spread = f"{1e3 * times[0]:.2f}–{1e3 * times[-1]:.2f}"
        gflops = 2e-9 * count * d_model * latents / middle
        gigabytes = 1e-9 * dtype.itemsize * d_model * latents / middle
        measured = (f"{1e3 * middle:.2f}", spread, len(times), f"{gflops:.1f}", f"{gigabytes:.1f}")
        row(name, count, d_model, latents, k, *measured)


@torch.inference_mode()
def main():
    saes, tokens, device = options(sys.argv[1:])
    today = datetime.datetime.now(datetime.timezone.utc).date()
    where = f"the CPU, {torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()
    print(f"Measured on {today}: PyTorch {torch.__version__} on {where}.")
    print("Times are medians of whole encodes.\n")
    print("| PyTorch | T | D | N | k | ms | least–most | runs | GFLOP/s | GB/s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for d_model, latents, k in saes:
        for name in DTYPES:
            bench(d_model, latents, k, tokens, name, device)


main()
