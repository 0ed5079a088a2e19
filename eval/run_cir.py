"""CIRCO, CIRR, FashionIQ and GeneCIS with one model; `megapairs eval` for launchers.

    accelerate launch eval/run_cir.py MODEL circo cirr --data DIR --out results

Each process encodes its share of the galleries, the first one ranks and writes.
"""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["eval"]
    runpy.run_module("megapairs_hf", run_name="__main__")
