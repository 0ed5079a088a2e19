"""What a corpus costs: hours, memory, disk and network, from throughputs and the formulas of docs/scale.md.

    python benchmarks/scale.py                                    the tables of docs/scale.md
    python benchmarks/scale.py --search-tflops 250 --images-per-second 1500    with your own machine's figures

Nothing is measured here; `benchmarks/embed.py` and `benchmarks/mine.py` measure.
"""

from __future__ import annotations

import argparse
import math

SIZES = (1_000_000, 20_000_000, 1_000_000_000)
GPUS = (1, 8, 64)
RELATIONS = 3
NAMES = {1_000_000: "1 M", 20_000_000: "20 M", 1_000_000_000: "1 B"}
# an index by cells looks into so many embeddings for a query, about; see `probes` in the manifest
LOOKED_INTO = 16_000


def exact_hours(count: int, told: argparse.Namespace) -> float:
    """Hours of one GPU: 2 N² D operations for each relation."""
    return RELATIONS * 2.0 * count * count * told.dimension / (told.search_tflops * 1e12) / 3600


def cells_hours(count: int, told: argparse.Namespace) -> float:
    """Hours of two processor cores: assigning to 4√N cells and comparing with the embeddings looked into."""
    cells = 4 * math.sqrt(count)
    operations = 2.0 * count * told.dimension * (cells + LOOKED_INTO)
    scored = count * told.hits * told.dimension / 512 * 100e-9 / 2
    return RELATIONS * (operations / (told.cpu_tops * 1e12) + scored) / 3600


def duration(hours: float) -> str:
    """A time as people say it."""
    if hours < 1:
        return f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.0f} days"


def size(amount: float) -> str:
    """Bytes as people say them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if amount >= scale:
            return f"{amount / scale:,.1f} {unit}"
    return f"{amount:,.0f} B"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-second", type=float, default=1150, help="a GPU, all models together")
    parser.add_argument("--search-tflops", type=float, default=300, help="a GPU, products and top-k together")
    parser.add_argument("--cpu-tops", type=float, default=1.2, help="eight-bit products of two cores, 10^12/s")
    parser.add_argument("--hits", type=float, default=400, help="pairs scored exactly for a query")
    parser.add_argument(
        "--decode-per-core", type=float, default=400, help="images a core decodes and resizes a second"
    )
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--neighbors", type=int, default=100)
    parser.add_argument("--image-kb", type=float, default=40)
    parser.add_argument(
        "--quick", action="store_true", help="accepted like every benchmark's; this one is always quick"
    )
    told = parser.parse_args()
    print("| images | GPUs | embed, 3 models | mine, exact | mine, cells (2 cores each) |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for count in SIZES:
        for gpus in GPUS:
            embed = count / told.images_per_second / 3600
            hours = [duration(h / gpus) for h in (embed, exact_hours(count, told), cells_hours(count, told))]
            print(f"| {NAMES[count]} | {gpus} | {hours[0]} | {hours[1]} | {hours[2]} |")
    print()
    head = "| images | read over the network | embeddings | neighbors, while mining | pairs | memory, cells |"
    print(f"{head} cores to decode, a GPU |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for count in SIZES:
        disk = [
            count * told.image_kb * 1e3,
            RELATIONS * 2 * count * told.dimension,
            RELATIONS * 8 * count * (told.neighbors + 1),
            count * 4 * 350,
            count * (3 * told.dimension + 96),
        ]
        cores = math.ceil(told.images_per_second / told.decode_per_core)
        print(f"| {NAMES[count]} | {' | '.join(size(amount) for amount in disk)} | {cores} |")


if __name__ == "__main__":
    main()
