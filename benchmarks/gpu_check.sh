#!/usr/bin/env bash
# Everything that only a GPU can show, in at most nine minutes on one H100: nothing is downloaded, every model has random
# weights in the sizes of its configuration. Without a GPU the same code runs at tiny sizes on the processor, where its
# numbers mean nothing.
#
#     bash benchmarks/gpu_check.sh                     ratios on stdout, all numbers in gpu_check.json
#     bash benchmarks/gpu_check.sh --tiny              tiny sizes, wherever it runs
#     bash benchmarks/gpu_check.sh --only search embed_clip
#
# It runs from the checkout, with the python3 of the environment (PYTHON=… for another one), and needs CUDA's torch 2.8 or
# later, pytest, and what setup.cfg names under install_requires, models and mine. An image for GPU work usually has torch,
# numba, pandas, pyarrow, scipy, pillow, peft, accelerate, safetensors and pytest. What it usually lacks, or has too old,
# are these wheels (versions: lock.txt); bring them where the machine has no network, in a folder `wheels`:
#
#     pip download --no-deps -d wheels dacite datasets dill faiss-cpu hf-xet httpcore2 httpx2 huggingface-hub \
#         multiprocess sentence-transformers shtab tokenizers transformers
#     pip install --no-index --no-deps wheels/*.whl
#
# Wanted, not needed: cuvs-cu12 (exact search) and faiss-gpu-cu12-cuvs (IVF-PQ); the output says which library was run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error
export TOKENIZERS_PARALLELISM=false PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
