"""The commands: for each stage its settings, its inputs, and the call; for each other command its function.

To add a stage: write its folder, then one entry here and its place in `RECIPE_KEYS`. Nothing else knows the list.
"""

from __future__ import annotations

import functools
from typing import Any

from megapairs_hf.cli.annotate import AnnotateStage
from megapairs_hf.cli.stage import Stage
from megapairs_hf.core import distributed
from megapairs_hf.core.progress import show

HERE = "megapairs_hf.cli.commands"
EVAL_HELP = (
    "Composed retrieval on held-out images: the base and the trained model. On the field's benchmarks: megapairs eval"
    " MODEL BENCHMARK --data DIR --out DIR, and megapairs eval check-data BENCHMARK --data DIR. A"
    " server's embeddings against the model's: megapairs eval parity MODEL --endpoint URL."
)
_ALL = (
    Stage(
        "corpus",
        "Images and captions from a data set, a folder, tars, or synthetic scenes.",
        "megapairs_hf.corpus.config:CorpusConfig",
        inputs=(),
        out="corpus",
        call="megapairs_hf.corpus:make_corpus",
        updates=True,
    ),
    AnnotateStage(
        "caption",
        "A caption for each image (optional): later stages take them in place of the corpus's own.",
        "megapairs_hf.annotation.config:CaptionConfig",
        inputs=("corpus",),
        out="captions",
        call="megapairs_hf.annotation:caption_images",
        step="megapairs_hf.annotation.steps:caption_step",
    ),
    Stage(
        "pretrain",
        "Small encoders trained from scratch on the corpus, for runs without downloads.",
        "megapairs_hf.training.config:PretrainConfig",
        inputs=("corpus",),
        out="encoders",
        captions=True,
        call="megapairs_hf.training:pretrain_encoders",
        needs="models",
        local=True,
    ),
    Stage(
        "align",
        "An image encoder and a text encoder in one space, by small heads trained on the captions.",
        "megapairs_hf.training.align_config:AlignConfig",
        inputs=("corpus",),
        out="aligned",
        captions=True,
        call="megapairs_hf.training:align_towers",
        needs="models",
        in_work=True,
        local=True,
    ),
    Stage(
        "embed",
        "Images and captions to embeddings, one set per encoder.",
        "megapairs_hf.embedding.config:EmbedConfig",
        inputs=("corpus",),
        out="embeddings",
        captions=True,
        call="megapairs_hf.embedding:embed_corpus",
        needs="models",
        in_work=True,
        local=True,
        updates=True,
    ),
    Stage(
        "mine",
        "Related pairs and hard negatives.",
        "megapairs_hf.mining.config:MineConfig",
        inputs=("embeddings", "corpus"),
        out="pairs",
        call="megapairs_hf.mining:mine_pairs",
        needs="mine",
        local=True,
        # embeddings that another program wrote bring ids of their own
        optional=("corpus",),
    ),
    AnnotateStage(
        "describe",
        "What the two images of a pair share and how they differ.",
        "megapairs_hf.annotation.config:DescribeConfig",
        inputs=("pairs", "corpus"),
        out="descriptions",
        captions=True,
        call="megapairs_hf.annotation:describe_pairs",
        step="megapairs_hf.annotation.steps:describe_step",
    ),
    AnnotateStage(
        "instruct",
        "Three or more search instructions per pair.",
        "megapairs_hf.annotation.config:InstructConfig",
        inputs=("descriptions", "corpus"),
        out="instructions",
        captions=True,
        call="megapairs_hf.annotation:instruct_pairs",
        step="megapairs_hf.annotation.steps:instruct_step",
        # only rules and prompts of one's own read captions
        optional=("corpus",),
    ),
    AnnotateStage(
        "verify",
        "Compare the target of each instruction with the hard negatives of its pair (optional).",
        "megapairs_hf.annotation.config:VerifyConfig",
        inputs=("instructions", "pairs", "corpus"),
        out="verified",
        call="megapairs_hf.annotation:verify_pairs",
        in_work=True,
        step="megapairs_hf.annotation.steps:verify_step",
    ),
    Stage(
        "build",
        "The data set of triplets.",
        "megapairs_hf.dataset.config:BuildConfig",
        inputs=("instructions", "pairs", "corpus"),
        out="triplets",
        captions=True,
        call="megapairs_hf.dataset:build_triplets",
    ),
    Stage(
        "train",
        "An MMRet on the triplets.",
        "megapairs_hf.training.config:TrainConfig",
        inputs=("triplets",),
        out="model",
        call="megapairs_hf.training:train",
        needs="models",
        in_work=True,
        local=True,
    ),
    Stage(
        "eval",
        EVAL_HELP,
        "megapairs_hf.evaluation.config:EvalConfig",
        inputs=("heldout", "model"),
        out="results",
        call=f"{HERE}:run_eval",
        needs="models",
        in_work=True,
        local=True,
    ),
)
STAGES = {stage.name: stage for stage in _ALL}

COMMANDS = {
    "demo": "megapairs_hf.cli.recipe:demo",
    "run": "megapairs_hf.cli.recipe:run",
    "report": "megapairs_hf.cli.share:report",
    "inspect": "megapairs_hf.cli.share:inspect",
    "verify-files": "megapairs_hf.cli.share:verify_files",
    "push": "megapairs_hf.cli.share:push",
    "dataset": "megapairs_hf.cli.dataset:dataset",
    "search": "megapairs_hf.cli.search:search",
    "explore": "megapairs_hf.cli.explore:explore",
    "env": "megapairs_hf.cli.share:env",
    "completion": "megapairs_hf.cli.share:completion",
}


def run_eval(heldout: Any, model: Any, *, config: Any, out: str, work: str, overwrite: bool) -> None:
    """Run the eval stage and print its table."""
    from megapairs_hf.artifacts.fingerprints import model_path, weights_fingerprint
    from megapairs_hf.artifacts.workspace import read_results
    from megapairs_hf.evaluation.entry import ModelSource, evaluate
    from megapairs_hf.evaluation.results_table import results_table
    from megapairs_hf.models.loading import load_model

    # the backbone that the model was trained from, as an MMRet
    base, revision = model_path(model.manifest.config["model"], work), model.manifest.config.get("revision")
    fingerprint = weights_fingerprint(base, revision)
    load = functools.partial(functools.partial, load_model, **config.loading)
    sources = {
        "base": ModelSource(load(base, "mmret", revision, None), fingerprint, fingerprint),
        "trained": ModelSource(load(model.path, "mmret", None, None), model.fingerprint, model.fingerprint),
    }
    evaluate(sources, heldout, out=out, config=config, overwrite=overwrite)
    if distributed.is_main():
        show(results_table(read_results(out)))
