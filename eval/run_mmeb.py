"""MMEB with one model.

    accelerate launch eval/run_mmeb.py MODEL --images DIR --out results/mmeb
    python eval/run_mmeb.py MODEL --source COPY --images DIR --datasets VOC2007 GQA --out results/mmeb

Each process encodes its share of the candidates, the first one ranks and writes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Measure, write, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument("--config", default=str(Path(__file__).with_name("mmeb.yaml")), metavar="F.yaml")
    parser.add_argument("--source", metavar="S", help="Hub id, or folder with the rows")
    parser.add_argument("--images", metavar="DIR", help="the unpacked images.zip")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="instead of all 36")
    parser.add_argument("--placeholder", metavar="P", help="what <|image_1|> becomes")
    parser.add_argument("--loader", choices=("mmret", "sentence-transformers"), default="mmret")
    parser.add_argument("--revision", metavar="R", help="of the model on the Hub")
    parser.add_argument("--device", metavar="D")
    parser.add_argument("--batch-size", type=int, default=128, metavar="B")
    parser.add_argument("--out", required=True, metavar="DIR")
    options = parser.parse_args()

    from megapairs_hf.errors import MegaPairsError

    try:
        return run(options)
    except MegaPairsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Measure what the words ask for."""
    from megapairs_hf import launch
    from megapairs_hf.cli import evaluating
    from megapairs_hf.config import build_config, read_yaml
    from megapairs_hf.evaluation.mmeb import MMEBConfig
    from megapairs_hf.evaluation.mmeb_means import mean_records, mmeb_table, run_mmeb
    from megapairs_hf.evaluation.run import RunConfig, write_runs
    from megapairs_hf.evaluation.stage import read_results

    keys = ("source", "images", "datasets", "placeholder")
    changes = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
    config = build_config(MMEBConfig, read_yaml(options.config).get("mmeb", {}) | changes, options.config)
    revision = options.revision or evaluating.fingerprint_of(options.model)
    sizes = RunConfig(top=10, batch_size=options.batch_size)

    def make():
        model = evaluating.load_model(options.model, options.loader, options.revision, options.device)
        return run_mmeb(model, config, name=options.model, revision=revision, run=sizes)

    inputs = {"model": revision or options.model, "loader": options.loader}
    write_runs(make, out=options.out, config=config, inputs=inputs)
    if launch.is_main():
        print(mmeb_table(mean_records(read_results(options.out))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
