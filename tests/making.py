"""A small work folder of a whole pipeline, made by hand: every stage's artifact, with drawn images.

No stage runs here. The folder has the shape that the stages write (DESIGN section 5), so that what reads it (reports,
cards, pushes) can be tested on its own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import make_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from megapairs_hf.artifacts.arrow_arrays import embedding_table
from megapairs_hf.artifacts.writer import ArtifactWriter, create_artifact
from megapairs_hf.core.schema import (
    DESCRIPTIONS,
    INSTRUCTIONS,
    PAIRS,
    RANKINGS,
    TRIPLETS,
    corpus_schema,
    with_features,
)
from megapairs_hf.dataset.layout import image_table
from megapairs_hf.images.decode import encode_image, pixel_sha256

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.artifacts.artifact import Artifact

COLORS = ["crimson", "seagreen", "royalblue", "orange", "purple", "teal"]
SHAPES = ["circle", "square", "triangle", "star"]
GROUNDS = ["white", "lightgrey", "lightyellow"]


def draw(color: str, shape: str, ground: str, size: tuple[int, int] = (120, 96)) -> Image.Image:
    image = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(image)
    x, y, r = size[0] // 2, size[1] // 2, 34
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=color)
    else:
        pen.regular_polygon((x, y, r), 3 if shape == "triangle" else 5, fill=color)
    return image


def image_rows(prefix: str, captions: dict[int, str] | None = None) -> list[dict[str, Any]]:
    rows = []
    everything = [(c, s, g) for g in GROUNDS for c in COLORS for s in SHAPES]
    for i, (color, shape, ground) in enumerate(everything):
        image = draw(color, shape, ground)
        caption = (captions or {}).get(i, f"a {color} {shape} on a {ground} ground")
        content = encode_image(image)
        rows.append(
            {
                "image_id": f"{prefix}{i:03d}",
                "image": {"bytes": content, "path": None},
                "caption": caption,
                "captions": [caption],
                "width": image.width,
                "height": image.height,
                "num_bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "pixels_sha256": pixel_sha256(image),
            }
        )
    return rows


def begin(
    path: Path, kind: str, names: list[str], inputs: dict[str, str] | None = None, **config: Any
) -> ArtifactWriter:
    settings = make_dataclass("Settings", list(config), frozen=True)(**config)
    writer = create_artifact(path, kind=kind, config=settings, inputs=inputs or {}, names=names)
    assert isinstance(writer, ArtifactWriter)
    return writer


def one_table(
    path: Path,
    kind: str,
    rows: list[dict[str, Any]],
    schema: pa.Schema,
    stats: dict[str, Any] | None = None,
    rejected: list[tuple[str, str, str]] | None = None,
    inputs: dict[str, str] | None = None,
    **config: Any,
) -> Artifact:
    with begin(path, kind, ["shard-00000-of-00001.parquet"], inputs, **config) as writer:
        writer.write(0, pa.Table.from_pylist(rows, schema=schema), rejected or [])
        return writer.finish(stats)


def make_corpus(work: Path, name: str, captions: dict[int, str] | None = None) -> Artifact:
    return one_table(
        work / name,
        "corpus",
        image_rows(name[0], captions),
        corpus_schema(None),
        rejected=[("bad.png", "truncated", "image file is truncated"), ("same.png", "duplicate", f"{name[0]}000")],
        source="scenes",
        max_side=512,
    )


def make_pairs(work: Path, corpus: Artifact) -> Artifact:
    inputs = {"corpus": corpus.fingerprint}
    for model, dimension in {"clip_image": 16, "dino_image": 8}.items():
        names, made_of = ["shard-00000-of-00001.arrow"], {"corpus": corpus.fingerprint}
        with begin(work / "embeddings" / model, "embeddings", names, made_of, model=f"./encoders/{model}") as writer:
            embeddings = np.random.default_rng(0).standard_normal((corpus.rows, dimension))
            embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float16)
            writer.write(0, embedding_table(corpus.table(["image_id"])["image_id"], embeddings))
            inputs[model] = writer.finish({"dimension": dimension}).fingerprint
    near = {i: [(i + n) % 72 for n in range(1, 6)] for i in range(40)}
    rows = [
        {
            "query_id": f"c{i:03d}",
            "target_id": f"c{(i + 24) % 72:03d}",
            "query_row": i,
            "target_row": (i + 24) % 72,
            "relation": ["clip_image", "dino_image"] if i % 3 == 0 else ["clip_image"],
            "scores": [{"relation": "clip_image", "score": 0.91}, {"relation": "dino_image", "score": 0.84}],
            "negative_ids": [f"c{n:03d}" for n in near[i]],
            "negative_rows": near[i],
            "query_cluster": i,
            "target_cluster": (i + 24) % 72,
            "negative_clusters": near[i],
        }
        for i in range(40)
    ]
    stats = {
        "relations": {"clip_image": 40, "dino_image": 14},
        "pairs_per_relation_count": {"1": 26, "2": 14},
        "negatives": {"pairs_with_all": 40, "mean": 5.0},
    }
    left_out = [(f"c{i:03d}", "no_neighbor_in_range", "best 0.7712") for i in range(40, 72)]
    return one_table(work / "pairs", "pairs", rows, PAIRS, stats, left_out, inputs, similarity_range=[0.8, 0.96])


def make_texts(work: Path, pairs: Artifact, engine: str, texts: dict[int, str]) -> tuple[Artifact, list[list[str]]]:
    base = {"raw": "raw reply, not for the Hub", "model": engine, "finish_reason": "stop"}
    base |= {"prompt_tokens": 0, "completion_tokens": 0}
    keys = [{"query_id": r["query_id"], "target_id": r["target_id"]} for r in pairs.table().to_pylist()]
    described = [{**k, **base, "description": "they differ in their ground", "word_num": 60} for k in keys]
    descriptions = one_table(
        work / "descriptions",
        "descriptions",
        described,
        DESCRIPTIONS,
        inputs={"pairs": pairs.fingerprint},
        engine=engine,
    )
    said = [
        [texts.get(i, "make the ground darker"), "the same on another ground", "change what is behind"]
        for i in range(38)
    ]
    instructed = [
        {**k, **base, "instructions": s, "demonstration_ids": [1, 2]} for k, s in zip(keys[:38], said, strict=True)
    ]
    left_out = [(f"{k['query_id']} -> {k['target_id']}", "too_few_instructions", "2 of 3") for k in keys[38:]]
    instructions = one_table(
        work / "instructions",
        "instructions",
        instructed,
        INSTRUCTIONS,
        {"instructions": {"total": 114, "distinct": 3}},
        left_out,
        {"descriptions": descriptions.fingerprint},
        engine=engine,
    )
    return instructions, said


def make_triplets(
    work: Path, corpus: Artifact, pairs: Artifact, instructions: Artifact, said: list[list[str]]
) -> Artifact:
    rows = [
        {
            "q_img": r["query_id"],
            "q_text": s,
            "t_img": r["target_id"],
            "hns": [r["query_id"], *r["negative_ids"]],
            "relation": r["relation"],
            "scores": r["scores"],
            "task": "composed_image_retrieval",
            "language": "en",
            "verified": [],
            "candidate_scores": [],
        }
        for r, s in zip(pairs.table().to_pylist()[:38], said, strict=True)
    ]
    tables = {
        "triplets/train-00000-of-00001.parquet": pa.Table.from_pylist(rows[:30], schema=with_features(TRIPLETS)),
        "triplets/validation-00000-of-00001.parquet": pa.Table.from_pylist(rows[30:], schema=with_features(TRIPLETS)),
    }
    images = corpus.table(["image_id", "image", "caption"]).to_pylist()
    for i in range(2):
        tables[f"images/train-0000{i}-of-00002.parquet"] = image_table(images[i * 36 : i * 36 + 36])
    made_of = {"instructions": instructions, "pairs": pairs, "corpus": corpus}
    inputs = {name: artifact.fingerprint for name, artifact in made_of.items()}
    with begin(work / "triplets", "triplets", list(tables), inputs, validation=8) as writer:
        for i, table in enumerate(tables.values()):
            writer.write(i, table)
        return writer.finish()


def make_model(work: Path, triplets: Artifact) -> None:
    weights = {"file": "model.safetensors"}
    with begin(
        work / "model", "model", [weights["file"]], {"triplets": triplets.fingerprint}, steps=200, lr=5e-6
    ) as writer:
        (work / "model" / weights["file"]).write_bytes(b"weights")
        lines = [
            {
                "step": s,
                "loss": 4.2 * 0.985**s + 0.3 * np.cos(s * 1.7) ** 2,
                "lr": 5e-6 * (1 - s / 200),
                "seconds": s * 0.5,
            }
            for s in range(1, 201)
        ]
        (work / "model" / "training_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        writer.adopt(0, 1, [], {})
        writer.finish({"steps": 200, "final_loss": 0.51})


VALUES = {
    ("base", "image only"): (0.08, 0.21, 0.33, 0.12),
    ("base", "text only"): (0.0, 0.04, 0.06, 0.01),
    ("base", "fused"): (0.114, 0.26, 0.38, 0.16),
    ("trained", "image only"): (0.07, 0.22, 0.35, 0.12),
    ("trained", "text only"): (0.03, 0.1, 0.17, 0.05),
    ("trained", "fused"): (0.257, 0.45, 0.56, 0.33),
}


def result_records() -> list[dict[str, Any]]:
    return [
        {
            "benchmark": "held-out scenes",
            "split": "test",
            "metric": metric,
            "value": value,
            "unit": "fraction",
            "queries": 70,
            "gallery": 72,
            "model": model,
            "strategy": strategy,
            "options": {"remove_reference": True},
            "ties": 0,
            "version": "1",
        }
        for (model, strategy), values in VALUES.items()
        for metric, value in zip(("recall@1", "recall@5", "recall@10", "map@5"), values, strict=True)
    ]


def make_results(work: Path, text: str = "the same on a lightgrey ground") -> None:
    rows = []
    for model in ("base", "trained"):
        for q in range(12):
            target = f"h{q + 24:03d}"
            others = [f"h{(q * 5 + n * 7) % 24:03d}" for n in range(9)]
            rank = 1 + q % 3 if model == "trained" else 4 + q % 4
            top = [*others[: rank - 1], target, *others[rank - 1 :]]
            rows.append(
                {
                    "model": model,
                    "strategy": "fused",
                    "query": f"q{q:03d}",
                    "image_id": f"h{q:03d}",
                    "text": text,
                    "target_ids": [target],
                    "top_ids": top,
                    "top_scores": [0.9 - 0.03 * n for n in range(10)],
                    "rank": rank,
                }
            )
    with begin(
        work / "results", "results", ["rankings.parquet"], strategies=["image only", "text only", "fused"]
    ) as writer:
        writer.write(0, pa.Table.from_pylist(rows, schema=RANKINGS))
        (work / "results" / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in result_records()))
        writer.finish()


def make_work(
    work: Path,
    *,
    engine: str = "rule_based",
    captions: dict[int, str] | None = None,
    texts: dict[int, str] | None = None,
) -> Path:
    """A finished pipeline: 72 images, 40 pairs, 38 triplets, a model and its results."""
    corpus = make_corpus(work, "corpus", captions)
    make_corpus(work, "heldout", captions)
    with begin(work / "encoders", "encoders", ["model.json"], seed=0) as writer:
        (work / "encoders" / "model.json").write_text("{}")
        writer.adopt(0, 1, [], {})
        writer.finish({"stands_in_for": {"clip_image": "the EVA-CLIP image encoder", "dino_image": "DINOv2"}})
    pairs = make_pairs(work, corpus)
    instructions, said = make_texts(work, pairs, engine, texts or {})
    make_model(work, make_triplets(work, corpus, pairs, instructions, said))
    make_results(work)
    return work


def read_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
