"""The PyTorch half of `make bench`: reads a case's name per line, runs it once, answers with the milliseconds.

Needs `torch` and `transformers`; started by `beside_pytorch.rs` with the Python that $PYTHON names.
"""

import sys
import time

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding


def sae_encode():
    latents, d, tokens, k = 16_384, 4096, 64, 256
    x, b_dec = torch.randn(tokens, d), torch.randn(d)
    weight, bias = torch.randn(latents, d) / d**0.5, torch.randn(latents) * 0.01
    return lambda: torch.relu(torch.nn.functional.linear(x - b_dec, weight, bias)).topk(k, dim=-1)


def clip_tower():
    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14
    )
    tower, pixels = CLIPVisionModel(config).eval(), torch.randn(1, 3, 336, 336)
    # The language model reads the output of block 22: the last block is not needed.
    tower.vision_model.encoder.layers = tower.vision_model.encoder.layers[:23]
    return lambda: tower(pixels).last_hidden_state


def llama_block():
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14_336, num_attention_heads=32, num_key_value_heads=8, rope_theta=500_000.0,
        num_hidden_layers=1, vocab_size=64,
    )
    config._attn_implementation = "sdpa"
    block, rope = LlamaDecoderLayer(config, 0).eval(), LlamaRotaryEmbedding(config)
    x, ids = torch.randn(1, 600, 4096), torch.arange(600)[None]
    return lambda: block(x, position_ids=ids, position_embeddings=rope(x, ids))


CASES = {"sae-encode": sae_encode, "clip-tower": clip_tower, "llama-block": llama_block}


def main():
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    ready = {}
    with torch.inference_mode():
        for line in sys.stdin:
            name = line.strip()
            if name not in ready:
                ready = {name: CASES[name]()}
                ready[name]()
            begun = time.perf_counter()
            ready[name]()
            print((time.perf_counter() - begun) * 1e3, flush=True)


main()
