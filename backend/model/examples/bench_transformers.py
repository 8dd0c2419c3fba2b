"""The half of `cuda_bench.py` that measures `transformers`: the same checkpoint, picture and SAE, in plain PyTorch."""

import contextlib
import json
import time

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaNextForConditionalGeneration

# Tokens whose activations, and whose gathered decoder rows, exist at once.
ENCODED, DECODED = 1024, 128


def synchronize(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(device, work):
    """What `work` gives, and how long the device took."""
    synchronize(device)
    begun = time.perf_counter()
    given = work()
    synchronize(device)
    return given, time.perf_counter() - begun


class TorchSae:
    """TopK SAE: `x̂ = TopK(ReLU((x − b_dec) Wᵀ + b)) W_dec + b_dec`, latents kept as indices and values."""

    def __init__(self, folder, dtype, device):
        tensors = {name: tensor.to(device, dtype) for name, tensor in load_file(folder / "sae.safetensors").items()}
        self.w, self.b = tensors["encoder.weight"], tensors["encoder.bias"]
        self.w_dec, self.b_dec = tensors["W_dec"], tensors["b_dec"]
        self.k = json.loads((folder / "cfg.json").read_text())["k"]

    def encode(self, x):
        """`[tokens, d]` to activations and indices, `[tokens, k]` each."""
        top = [torch.relu(torch.nn.functional.linear(part - self.b_dec, self.w, self.b)).topk(self.k, dim=-1)
               for part in x.to(self.w.dtype).split(ENCODED)]
        return torch.cat([part.values for part in top]), torch.cat([part.indices for part in top])

    def decode(self, acts, ids):
        parts = [torch.bmm(a[:, None], self.w_dec[i])[:, 0] for a, i in zip(acts.split(DECODED), ids.split(DECODED))]
        return torch.cat(parts) + self.b_dec

    def reconstruct(self, x):
        return self.decode(*self.encode(x))


class Transformers:
    """The loaded model and what is asked of it."""

    def __init__(self, folder, device, dtype, layer):
        self.device, self.dtype, self.layer = device, dtype, layer
        settings = {"dtype": dtype, "attn_implementation": "sdpa", "local_files_only": True}
        loaded = LlavaNextForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **settings)
        self.model, info = loaded
        if info["missing_keys"]:
            raise RuntimeError(f"weights are missing: {sorted(info['missing_keys'])[:5]}")
        self.model = self.model.to(device).eval().requires_grad_(False)
        self.processor = self.processor_of(folder)
        self.blocks = self.model.model.language_model.layers

    @staticmethod
    def processor_of(folder):
        """With Pillow's image processor: the one whose pixels ours equals."""
        pillow = {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
        return AutoProcessor.from_pretrained(folder, local_files_only=True, **pillow)

    def inputs(self, picture, question=None):
        """Of the picture alone, or of a person's turn through the chat template."""
        text = "<image>"
        if question is not None:
            turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            text = self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        # The tokenizer writes BOS itself.
        text = text.removeprefix(self.processor.tokenizer.bos_token)
        found = self.processor(text=text, images=[picture], return_tensors="pt").to(self.device)
        found["pixel_values"] = found["pixel_values"].to(self.dtype)
        return found

    @contextlib.contextmanager
    def replacing(self, change):
        """`change` takes the hook point's output `[rows, tokens, d]` and gives another, or nothing."""

        def hook(module, inputs, output):
            x = output if torch.is_tensor(output) else output[0]
            changed = change(x)
            if changed is None:
                return None
            changed = changed.to(x.dtype)
            return changed if torch.is_tensor(output) else (changed, *output[1:])

        handle = self.blocks[self.layer].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def truncated(self):
        """Without the blocks after the hook point."""
        language = self.model.model.language_model
        language.layers = self.blocks[:self.layer + 1]
        try:
            yield
        finally:
            language.layers = self.blocks

    @torch.no_grad()
    def prefill(self, inputs):
        """As people get hidden states: the whole model, everything kept."""
        return self.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[self.layer + 1]

    @torch.no_grad()
    def hidden(self, inputs):
        """Output of the hook point `[tokens, d]`; nothing is run after it but the final norm."""
        kept = []
        with self.truncated(), self.replacing(lambda x: kept.append(x[0])):
            self.model.model(**inputs, use_cache=False)
        return kept[0]

    @torch.no_grad()
    def decode(self, inputs, count, rows=1, sae=None, through=slice(None)):
        """Greedy: token ids of the first row, seconds of every step. `sae` replaces the stream of the rows `through`."""

        def change(x):
            changed = x.clone()
            part = x[through]
            changed[through] = sae.reconstruct(part.reshape(-1, part.shape[-1])).reshape(part.shape).to(x.dtype)
            return changed

        begun = self.model(**inputs, use_cache=True, logits_to_keep=1)
        cache, token = begun.past_key_values, begun.logits[:, -1:].argmax(-1).repeat(rows, 1)
        if rows > 1:
            cache.batch_repeat_interleave(rows)
        ids, seconds = [token[0, 0].item()], []
        with self.replacing(change) if sae else contextlib.nullcontext():
            for _ in range(count - 1):
                def step(token=token):
                    logits = self.model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                    return logits[:, -1:].argmax(-1)
                token, took = seconds_of(self.device, step)
                ids.append(token[0, 0].item())
                seconds.append(took)
        return ids, seconds

    def difference(self, inputs, answer, baseline, change):
        with self.replacing(change):
            logits = self.model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        return logits[answer] - logits[baseline]

    def gradient(self, inputs, answer, baseline, sae):
        """Activations and indices at the hook point, and the difference's gradient at the reconstruction."""
        kept = {}

        def change(x):
            with torch.no_grad():
                kept["acts"], kept["ids"] = sae.encode(x[0])
                stream = sae.decode(kept["acts"], kept["ids"])[None].to(x.dtype)
            kept["stream"] = stream.requires_grad_()
            return kept["stream"]

        self.difference(inputs, answer, baseline, change).backward()
        return kept["acts"], kept["ids"], kept["stream"].grad[0]

    def attribute_one(self, inputs, answer, baseline, sae, feature):
        """The reference's cost for one latent: a forward pass as it is, one without the latent, one backward."""
        _, _, gradient = self.gradient(inputs, answer, baseline, sae)

        def without(x):
            acts, ids = sae.encode(x[0])
            return sae.decode(acts.masked_fill(ids == feature, 0), ids)[None]

        with torch.no_grad():
            self.difference(inputs, answer, baseline, without)
        return (gradient @ sae.w_dec[feature].to(gradient.dtype)).sum().item()

    def attribute_all(self, inputs, answer, baseline, sae):
        """One gradient for all latents: attributions `[latents]`."""
        acts, ids, gradient = self.gradient(inputs, answer, baseline, sae)
        total = torch.zeros(len(sae.w_dec), device=self.device)
        for a, i, g in zip(acts.split(DECODED), ids.split(DECODED), gradient.to(sae.w_dec.dtype).split(DECODED)):
            along = torch.bmm(sae.w_dec[i], g[..., None])[..., 0]
            total.index_add_(0, i.flatten(), (a * along).flatten().float())
        return total.cpu()

    @torch.no_grad()
    def cache_pictures(self, files, sae):
        """A plain loop from files to sparse activations on the host."""
        kept = []
        for file in files:
            inputs = self.inputs(Image.open(file).convert("RGB"))
            acts, ids = sae.encode(self.hidden(inputs)[1:])
            kept.append((acts.cpu(), ids.cpu()))
        return kept

    def to_f32(self):
        """Blocks up to the hook point alone, in f32."""
        self.model.model.language_model.layers = self.blocks = self.blocks[:self.layer + 1]
        self.model.lm_head = None
        self.model.float()
        self.dtype = torch.float32
