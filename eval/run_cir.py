"""CIRCO, CIRR, FashionIQ and GeneCIS with one model; `megapairs eval` for launchers.

    accelerate launch eval/run_cir.py MODEL circo cirr --data DIR --out results

Each process encodes its share of the galleries, the first one ranks and writes.
"""

import sys

from megapairs_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
