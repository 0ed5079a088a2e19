"""The commands: for each stage its settings, its inputs, and the call; for each other command its function.

To add a stage: write its folder, then one entry here. Nothing else knows the list.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from megapairs_hf.artifacts.storage import join
from megapairs_hf.cli.stage import Stage
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ArtifactError, IncompleteArtifactError
from megapairs_hf.core.progress import note

ENDPOINT = {
    "endpoint": "megapairs_hf.annotation.client.endpoint:Endpoint",
    "budget": "megapairs_hf.annotation.client.budget:Budget",
}
HERE = "megapairs_hf.cli.commands"
STAGES = {
    "corpus": Stage(
        "Images and captions from a data set, a folder, tars, or drawn.",
        "megapairs_hf.corpus.config:CorpusConfig",
        (),
        "corpus",
        f"{HERE}:run_corpus",
    ),
    "pretrain": Stage(
        "Small encoders trained on the corpus, where no weights can be had.",
        "megapairs_hf.training.config:PretrainConfig",
        ("corpus",),
        "encoders",
        f"{HERE}:run_pretrain",
        needs="models",
    ),
    "embed": Stage(
        "Images and captions to embeddings, one set per encoder.",
        "megapairs_hf.embedding.config:EmbedConfig",
        ("corpus",),
        "embeddings",
        f"{HERE}:run_embed",
        needs="models",
    ),
    "mine": Stage(
        "Related pairs and hard negatives.",
        "megapairs_hf.mining.config:MineConfig",
        ("embeddings", "corpus"),
        "pairs",
        f"{HERE}:run_mine",
        needs="mine",
    ),
    "describe": Stage(
        "What the two images of a pair share and how they differ.",
        "megapairs_hf.annotation.config:DescribeConfig",
        ("pairs", "corpus"),
        "descriptions",
        f"{HERE}:run_describe",
        ENDPOINT,
    ),
    "instruct": Stage(
        "Three or more search instructions a pair.",
        "megapairs_hf.annotation.config:InstructConfig",
        ("descriptions", "corpus"),
        "instructions",
        f"{HERE}:run_instruct",
        ENDPOINT,
    ),
    "verify": Stage(
        "Hold each instruction against the hard negatives of its pair (optional).",
        "megapairs_hf.annotation.config:VerifyConfig",
        ("instructions", "pairs", "corpus"),
        "verified",
        f"{HERE}:run_verify",
        ENDPOINT,
    ),
    "build": Stage(
        "The data set of triplets.",
        "megapairs_hf.dataset.config:BuildConfig",
        ("instructions", "pairs", "corpus"),
        "triplets",
        f"{HERE}:run_build",
    ),
    "train": Stage(
        "An MMRet on the triplets.",
        "megapairs_hf.training.config:TrainConfig",
        ("triplets",),
        "model",
        f"{HERE}:run_train",
        needs="models",
    ),
    "eval": Stage(
        "Composed retrieval on held-out images: the base and the trained model. On the field's benchmarks:"
        " megapairs eval MODEL BENCHMARK --data DIR --out DIR, and megapairs eval check-data BENCHMARK --data DIR.",
        "megapairs_hf.evaluation.config:EvalConfig",
        ("heldout", "model"),
        "results",
        f"{HERE}:run_eval",
        needs="models",
    ),
}

COMMANDS = {
    "demo": "megapairs_hf.cli.recipe:demo",
    "run": "megapairs_hf.cli.recipe:run",
    "report": "megapairs_hf.cli.share:report",
    "inspect": "megapairs_hf.cli.share:inspect",
    "push": "megapairs_hf.cli.share:push",
    "dataset": "megapairs_hf.cli.dataset:dataset",
    "env": "megapairs_hf.cli.share:env",
}


def run_corpus(config: Any, places: dict[str, str], out: str, work: str, overwrite: bool) -> None:
    """Run the corpus stage."""
    from megapairs_hf.corpus import make_corpus

    tell(make_corpus(config, out=out, overwrite=overwrite))


def run_pretrain(config: Any, places: dict[str, str], out: str, work: str, overwrite: bool) -> None:
    """Run the pretrain stage."""
    from megapairs_hf.training import pretrain_encoders

    tell(pretrain_encoders(opened(places["corpus"], "corpus"), config=config, out=out, overwrite=overwrite))


def run_embed(config: Any, places: dict[str, str], out: str, work: str, overwrite: bool) -> None:
    """Run the embed stage."""
    from megapairs_hf.embedding import embed_corpus

    corpus = opened(places["corpus"], "corpus")
    for artifact in embed_corpus(corpus, config=config, out=out, work=work, overwrite=overwrite).values():
        tell(artifact)


def run_mine(config: Any, places: dict[str, str], out: str, work: str, overwrite: bool) -> None:
    """Run the mine stage."""
    from megapairs_hf.mining import mine_pairs

    folder = Path(places["embeddings"])
    names = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
    begun = sorted(path.parent.name for path in folder.glob("*/.plan.json"))
    if set(begun) - set(names):
        raise IncompleteArtifactError(f"{folder}/{begun[0]} is not finished; run `megapairs embed` again to continue")
    if not names:
        raise ArtifactError(f"{folder} holds no finished embeddings; run `megapairs embed` first")
    embeddings = {name: opened(str(folder / name), "embeddings") for name in names}
    tell(mine_pairs(embeddings, opened(places["corpus"], "corpus"), config=config, out=out, overwrite=overwrite))


def run_describe(config: Any, places: dict[str, str], out: str, work: str, overwrite: bool, **sections: Any) -> None:
    """Run the describe stage."""
    from megapairs_hf.annotation import describe_pairs

    pairs, corpus = opened(places["pairs"], "pairs"), opened(places["corpus"], "corpus")
    tell(describe_pairs(pairs, corpus, config=config, out=out, overwrite=overwrite, **sections))


def run_instruct(config: Any, places: dict[str, str], out: str, work: str, overwrite: bool, **sections: Any) -> None:
    """Run the instruct stage."""
    from megapairs_hf.annotation import instruct_pairs

    descriptions, corpus = opened(places["descriptions"], "descriptions"), opened(places["corpus"], "corpus")
    tell(instruct_pairs(descriptions, corpus, config=config, out=out, overwrite=overwrite, **sections))


def run_verify(config: Any, places: dict[str, str], out: str, work: str, overwrite: bool, **sections: Any) -> None:
    """Run the verify stage."""
    from megapairs_hf.annotation import verify_pairs

    instructions, pairs = opened(places["instructions"], "instructions"), opened(places["pairs"], "pairs")
    corpus = opened(places["corpus"], "corpus")
    tell(verify_pairs(instructions, pairs, corpus, config=config, out=out, work=work, overwrite=overwrite, **sections))


def run_build(config: Any, places: dict[str, str], out: str, work: str, overwrite: bool) -> None:
    """Run the build stage."""
    from megapairs_hf.dataset import build_triplets

    instructions, pairs = opened(places["instructions"], "instructions"), opened(places["pairs"], "pairs")
    corpus = opened(places["corpus"], "corpus")
    tell(build_triplets(instructions, pairs, corpus, config=config, out=out, overwrite=overwrite))


def run_train(config: Any, places: dict[str, str], out: str, work: str, overwrite: bool) -> None:
    """Run the train stage."""
    from megapairs_hf.artifacts.storage import HUB_ID
    from megapairs_hf.training import train_mmret

    path = places["triplets"]
    folder = path == join(work, "triplets") or Path(path).exists() or not HUB_ID.fullmatch(path)
    triplets = opened(path, "triplets") if folder else path
    tell(train_mmret(triplets, config=config, out=out, work=work, overwrite=overwrite))


def run_eval(config: Any, places: dict[str, str], out: str, work: str, overwrite: bool) -> None:
    """Run the eval stage and print its table."""
    from megapairs_hf.artifacts.fingerprints import model_place, weights_fingerprint
    from megapairs_hf.artifacts.workspace import read_results
    from megapairs_hf.evaluation.entry import evaluate
    from megapairs_hf.evaluation.results_table import results_table
    from megapairs_hf.models import load_mmret

    model = opened(places["model"], "model")
    # the backbone that the model was trained from, as an MMRet
    base, revision = model_place(model.manifest.config["model"], work), model.manifest.config.get("revision")
    evaluate(
        opened(places["heldout"], "corpus"),
        {
            "base": functools.partial(load_mmret, base, revision=revision),
            "trained": functools.partial(load_mmret, model.path),
        },
        fingerprints={"base": weights_fingerprint(base, revision), "trained": model.fingerprint},
        config=config,
        out=out,
        overwrite=overwrite,
    )
    if distributed.is_main():
        print(results_table(read_results(out)))  # noqa: T201


def opened(path: str, kind: str) -> Any:
    """Open an input."""
    from megapairs_hf.artifacts.artifact import open_artifact

    return open_artifact(path, kind)


def tell(artifact: Any) -> None:
    """Say what was made and what was left out."""
    manifest = artifact.manifest
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in manifest.rejected.items())
    steps = manifest.stats.get("steps")
    rows = f"{manifest.rows:,} rows" if manifest.rows or steps is None else f"{steps:,} steps"
    if manifest.kind == "encoders":
        rows = f"{len(manifest.shards):,} files"
    if manifest.kind == "triplets":
        from megapairs_hf.artifacts.shards import part_rows

        rows = f"{part_rows(artifact, 'triplets'):,} rows, {part_rows(artifact, 'images'):,} images"
    what = manifest.kind if manifest.kind != "embeddings" else f"embeddings {os.path.basename(artifact.path)}"  # noqa: PTH119
    note(f"{what}: {rows}{'; left out: ' + left_out if left_out else ''} ({artifact.path})")
