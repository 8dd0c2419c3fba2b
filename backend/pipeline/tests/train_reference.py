"""EleutherAI's recipe for TopK SAEs in PyTorch, written anew: what `lmm-scope train-sae` is measured against.

    python train_reference.py FOLDER --latents 3072 --k 32 --tokens 200000   prints FVU and tokens per second as JSON
    python train_reference.py --check                                       prints the numbers of a small fixed case

FOLDER holds safetensors files with `hidden` [tokens, d_model]. Needs torch and safetensors. The recipe: TopK with AuxK
and MultiTopK, losses over the batch's variance, unit decoder rows with the parallel gradient removed, geometric median
as the first b_dec, gradients clipped to norm 1, Adam, 2e-4 / sqrt(latents / 2^14). As in Gao et al. (2024), what the dead
latents explain is the error itself, a constant, without b_dec. CPU code as an SAE in PyTorch is written: dense products
and autograd.
"""

import argparse
import json
import math
import pathlib
import time

import torch
from torch import nn


class Sae(nn.Module):
    def __init__(self, d_model, latents, k):
        super().__init__()
        self.k = k
        self.encoder = nn.Linear(d_model, latents)
        self.encoder.bias.data.zero_()
        self.W_dec = nn.Parameter(self.encoder.weight.data.clone())
        self.b_dec = nn.Parameter(torch.zeros(d_model))
        self.normalise()

    @torch.no_grad()
    def normalise(self):
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-30)

    @torch.no_grad()
    def remove_parallel_gradient(self):
        along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True)
        self.W_dec.grad -= along * self.W_dec

    def decode(self, values, indices):
        dense = values.new_zeros(len(values), len(self.W_dec)).scatter(-1, indices, values)
        return dense @ self.W_dec

    def losses(self, x, dead, alpha, multi_topk):
        activations = torch.relu(self.encoder(x - self.b_dec))
        variance = (x - x.mean(0)).pow(2).sum()
        top = activations.topk(self.k, sorted=False)
        error = x - (self.decode(top.values, top.indices) + self.b_dec)
        fvu = error.pow(2).sum() / variance
        loss, multi, aux = fvu, torch.zeros(()), torch.zeros(())
        if multi_topk:
            more = activations.topk(min(4 * self.k, len(self.W_dec)), sorted=False)
            multi = (x - (self.decode(more.values, more.indices) + self.b_dec)).pow(2).sum() / variance
            loss = loss + multi / 8
        count = int(dead.sum())
        if count:
            half = max(x.shape[1] // 2, 1)
            chosen = torch.where(dead, activations, -torch.inf).topk(min(half, count), sorted=False)
            guess = self.decode(chosen.values, chosen.indices)
            aux = min(count / half, 1.0) * (guess - error.detach()).pow(2).sum() / variance
            loss = loss + alpha * aux
        return loss, fvu, multi, aux, top


def geometric_median(tokens, steps=100):
    tokens = tokens.double()
    median = tokens.mean(0)
    for _ in range(steps):
        weights = 1 / (tokens - median).norm(dim=1).clamp_min(1e-12)
        median = (tokens * weights[:, None]).sum(0) / weights.sum()
    return median.float()


def rate(step, steps, peak, warmup, decay_share):
    fall = (steps - step) / (steps * decay_share) if steps * decay_share >= 1 else 1.0
    return peak * min((step + 1) / max(warmup, 1), fall, 1.0)


def train(sae, batches, steps, options, log):
    """Runs `steps` steps; the log gets one row each."""
    optimizer = torch.optim.Adam(sae.parameters())
    silent = torch.zeros(len(sae.W_dec), dtype=torch.long)
    for step in range(steps):
        x = batches(step)
        dead = silent > options.dead_tokens
        loss, fvu, multi, aux, top = sae.losses(x, dead, options.auxk_alpha, options.multi_topk)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        sae.remove_parallel_gradient()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, options.lr, options.warmup_steps, options.decay_share)
        optimizer.step()
        sae.normalise()
        silent += len(x)
        silent[top.indices[top.values > 0]] = 0
        row = {"loss": loss, "fvu": fvu, "multi_topk_fvu": multi, "auxk_loss": aux, "grad_norm": norm, "dead": dead.sum()}
        log.append({name: float(value.detach()) for name, value in row.items()})


def hidden_states(folder):
    from safetensors.torch import load_file

    folder = pathlib.Path(folder)
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    files = files or sorted((folder / "hidden").glob("*.safetensors"))
    return torch.cat([load_file(file)["hidden"] for file in files]).float()


def run(options):
    torch.manual_seed(options.seed)
    hidden = hidden_states(options.folder)
    batch = options.batch_tokens
    steps = options.tokens // batch
    options.lr = options.lr or 2e-4 / math.sqrt(options.latents / 2**14)
    options.warmup_steps = min(steps // 10, 1000) if options.warmup_steps is None else options.warmup_steps
    epochs = [torch.randperm(len(hidden)) for _ in range(math.ceil(steps * batch / len(hidden)))]
    order = torch.cat(epochs)[: steps * batch].view(steps, batch)
    sae = Sae(hidden.shape[1], options.latents, options.k)
    sae.b_dec.data = geometric_median(hidden[order[0][:8192]])
    log, begun = [], time.perf_counter()
    train(sae, lambda step: hidden[order[step]], steps, options, log)
    seconds = time.perf_counter() - begun
    last = log[-max(len(log) // 10, 1) :]
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "steps": steps,
                "fvu": sum(row["fvu"] for row in last) / len(last),
                "tokens_per_second": steps * batch / seconds,
            }
        )
    )


def wave(count, frequency, phase):
    """Numbers that any language can make."""
    return (torch.arange(count, dtype=torch.float64) * frequency + phase).sin()


def check():
    """A few steps of a small case; `src/train/step/tests.rs` has the same numbers in, and compares those out."""
    d, latents, k, batch, steps = 12, 40, 3, 300, 6
    sae = Sae(d, latents, k)
    sae.encoder.weight.data = (wave(latents * d, 1.7, 0.3) * 0.3).float().view(latents, d)
    sae.encoder.bias.data = (wave(latents, 0.9, 0.1) * 0.05).float()
    # Some latents never fire on their own: they are dead at once, and AuxK works.
    sae.encoder.bias.data[::7] = -0.35
    sae.W_dec.data = (wave(latents * d, 2.3, 0.7)).float().view(latents, d)
    sae.normalise()
    sae.b_dec.data = (wave(d, 1.1, 0.2) * 0.2).float()
    x = wave(steps * batch * d, 0.731, 0.5) + 0.5 * wave(steps * batch * d, 0.0173, 0.9)
    x = x.float().view(steps, batch, d)
    options = argparse.Namespace(
        lr=0.01, warmup_steps=2, decay_share=0.5, auxk_alpha=1 / 32, multi_topk=True, dead_tokens=batch
    )
    log = []
    train(sae, lambda step: x[step], steps, options, log)
    weights = {
        "encoder.weight": sae.encoder.weight.flatten(),
        "encoder.bias": sae.encoder.bias.flatten(),
        "W_dec": sae.W_dec.flatten(),
        "b_dec": sae.b_dec,
    }
    weights = {name: [round(value, 6) for value in values.tolist()] for name, values in weights.items()}
    print(json.dumps({"torch": torch.__version__, "log": log, "weights": weights}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--latents", type=int, default=3072)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--warmup-steps", type=int)
    parser.add_argument("--decay-share", type=float, default=0.2)
    parser.add_argument("--auxk-alpha", type=float, default=1 / 32)
    parser.add_argument("--no-multi-topk", dest="multi_topk", action="store_false")
    parser.add_argument("--dead-tokens", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.check:
        check()
    elif options.folder:
        run(options)
    else:
        parser.error("a folder of hidden states, or --check")


main()
