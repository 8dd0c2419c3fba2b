"""A random LLaVA-NeXT checkpoint of any size and random SAEs for it, as `cuda_bench.py` measures them.

The form is that of published checkpoints: `config.json`, bf16 shards with an index, tokenizer, chat template, image
processor. Speed does not depend on what the weights are; they are drawn as a model is initialised before training, so
that all numbers stay finite.
"""

import json

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SIDE, PATCH = 336, 14
# The 8B model's: words, then 256 special tokens, then `<image>` and `<pad>`, filled up to whole 64s.
WORDS, IMAGE, PAD, VOCABULARY = 128_000, 128_256, 128_257, 128_320
SPECIAL = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>",
           9: "<|eot_id|>"}
BOS, EOT = WORDS, WORDS + 9
SHARD_BYTES = 4 << 30
TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- for part in message['content'] | selectattr('type', 'equalto', 'image') %}
        {{- '<image>\\n' }}
    {%- endfor %}
    {%- for part in message['content'] | selectattr('type', 'equalto', 'text') %}
        {{- part['text'] | trim }}
    {%- endfor %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


def tokenizer():
    """Byte-level BPE without merges: a token for each byte. The other words are only written by the model."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = letters + [f"w{number}" for number in range(len(letters), WORDS)]
    built = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")
    built.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    built.decoder = decoders.ByteLevel()
    special = [SPECIAL.get(number, f"<|reserved_special_token_{number}|>") for number in range(256)]
    special += ["<image>", "<pad>"]
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    assert [built.token_to_id(token) for token in ("<|eot_id|>", "<image>", "<pad>")] == [EOT, IMAGE, PAD]
    bos = SPECIAL[0]
    built.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, BOS)]),
    ])
    return built


def config(size):
    """`config.json`; without arguments of `cuda_bench.py`, of the 8B model."""
    return {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "image_grid_pinpoints": PINPOINTS,
        "image_seq_length": (SIDE // PATCH) ** 2,
        "image_token_index": IMAGE,
        "multimodal_projector_bias": True,
        "pad_token_id": PAD,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": "llama", "hidden_size": size.hidden, "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers, "num_attention_heads": size.heads, "num_key_value_heads": size.kv_heads,
            "head_dim": size.hidden // size.heads, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
            "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "rope_scaling": None, "max_position_embeddings": 8192,
            "vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOT, "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": size.vision_hidden,
            "intermediate_size": 4 * size.vision_hidden, "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.vision_heads, "image_size": SIDE, "patch_size": PATCH, "num_channels": 3,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 768,
        },
    }


def shapes(size):
    """Keys of published checkpoints with the shapes of their tensors, in the order of the forward pass."""
    vision, hidden, inner = size.vision_hidden, size.hidden, size.intermediate
    kv = hidden // size.heads * size.kv_heads
    tower = "vision_tower.vision_model"

    def with_bias(key, out, into):
        return [(f"{key}.weight", (out, into)), (f"{key}.bias", (out,))]

    def norm(key):
        return [(f"{key}.weight", (vision,)), (f"{key}.bias", (vision,))]

    found = [("image_newline", (hidden,)), (f"{tower}.embeddings.class_embedding", (vision,)),
             (f"{tower}.embeddings.patch_embedding.weight", (vision, 3, PATCH, PATCH)),
             (f"{tower}.embeddings.position_embedding.weight", ((SIDE // PATCH) ** 2 + 1, vision))]
    found += norm(f"{tower}.pre_layrnorm") + norm(f"{tower}.post_layernorm")
    for block in range(size.vision_layers):
        key = f"{tower}.encoder.layers.{block}"
        found += norm(f"{key}.layer_norm1") + norm(f"{key}.layer_norm2")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found += with_bias(f"{key}.self_attn.{name}", vision, vision)
        found += with_bias(f"{key}.mlp.fc1", 4 * vision, vision) + with_bias(f"{key}.mlp.fc2", vision, 4 * vision)
    found += with_bias("multi_modal_projector.linear_1", hidden, vision)
    found += with_bias("multi_modal_projector.linear_2", hidden, hidden)
    found.append(("language_model.model.embed_tokens.weight", (VOCABULARY, hidden)))
    for block in range(size.layers):
        key = f"language_model.model.layers.{block}"
        found += [(f"{key}.{name}_layernorm.weight", (hidden,)) for name in ("input", "post_attention")]
        found += [(f"{key}.self_attn.{name}_proj.weight", (out, hidden))
                  for name, out in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden))]
        found += [(f"{key}.mlp.gate_proj.weight", (inner, hidden)), (f"{key}.mlp.up_proj.weight", (inner, hidden)),
                  (f"{key}.mlp.down_proj.weight", (hidden, inner))]
    found.append(("language_model.model.norm.weight", (hidden,)))
    return found + [("language_model.lm_head.weight", (VOCABULARY, hidden))]


def drawn(key, shape, generator, device):
    """One tensor in bf16: norms are one, biases zero, all else normal with deviation 0.02."""
    if key.endswith(".bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if "norm" in key:  # CLIP's `pre_layrnorm` too
        return torch.ones(shape, dtype=torch.bfloat16)
    normal = torch.empty(shape, dtype=torch.float32, device=device).normal_(0.0, 0.02, generator=generator)
    return normal.to(torch.bfloat16).cpu()


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_words(folder):
    """Tokenizer, chat template and image processor."""
    tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "LlavaNextProcessor", "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[9], "pad_token": "<pad>", "clean_up_tokenization_spaces": False, "model_max_length": 8192,
        "model_input_names": ["input_ids", "attention_mask"],
    })
    special = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[9], "pad_token": "<pad>"}
    write_json(folder / "special_tokens_map.json", special)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    write_json(folder / "preprocessor_config.json", {
        "crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True, "image_grid_pinpoints": PINPOINTS,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor", "resample": 3,
        "rescale_factor": 1 / 255, "size": {"shortest_edge": SIDE},
    })
    write_json(folder / "processor_config.json", {
        "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": PATCH,
        "processor_class": "LlavaNextProcessor", "vision_feature_select_strategy": "default",
    })
    write_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOT, "pad_token_id": PAD})


def write_checkpoint(folder, size, device, seed=0):
    """Writes everything; `config.json` last, so that a folder with one is whole. Returns bytes of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(seed)
    shards, sizes = [[]], [0]
    for key, shape in shapes(size):
        count = 2 * torch.Size(shape).numel()
        if sizes[-1] and sizes[-1] + count > SHARD_BYTES:
            shards.append([])
            sizes.append(0)
        shards[-1].append((key, shape))
        sizes[-1] += count
    places = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {key: drawn(key, shape, generator, device) for key, shape in shard}
        save_file(tensors, folder / name, {"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": sum(sizes)}, "weight_map": places})
    write_words(folder)
    write_json(folder / "config.json", config(size))
    return sum(sizes)


def write_sae(folder, latents, width, k, device, seed=1):
    """A TopK SAE in the reference layout, f16: rows of norm 1, the encoder is the decoder. Returns bytes of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(seed)
    rows = torch.empty(latents, width, device=device).normal_(generator=generator)
    rows = torch.nn.functional.normalize(rows).to(torch.float16).cpu()
    tensors = {"encoder.weight": rows, "encoder.bias": torch.zeros(latents),
               "W_dec": rows.clone(), "b_dec": torch.zeros(width)}
    save_file(tensors, folder / "sae.safetensors", {"format": "pt"})
    write_json(folder / "cfg.json", {
        "expansion_factor": latents // width, "normalize_decoder": True, "num_latents": latents, "k": k,
        "multi_topk": False, "skip_connection": False, "signed": False, "d_in": width,
    })
    return 4 * latents * width
