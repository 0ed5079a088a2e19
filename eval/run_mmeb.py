"""MMEB with one model; `megapairs eval MODEL mmeb` for launchers.

    accelerate launch eval/run_mmeb.py MODEL --data DIR --out results/mmeb
    python eval/run_mmeb.py MODEL --data DIR --set 'parts=[VOC2007, GQA]' --out results/mmeb

DIR has `images` (the unpacked images.zip) and may have a copy of the rows, which otherwise come from the Hub. Each
process encodes its share of the candidates, the first one ranks and writes.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    words = sys.argv[1:]
    # a model first, then the benchmark; `--help` alone goes on as it is
    named = [words[0], str(Path(__file__).with_name("mmeb.yaml")), *words[1:]] if words else words
    sys.argv[1:] = ["eval", *named]
    runpy.run_module("megapairs_hf", run_name="__main__")
