"""Small copies of the benchmarks in the very formats of their authors, with drawn images."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
ASPECTS = ["cardinality", "addition", "negation"]


def shared_annotations() -> Path | None:
    """The real annotation files of CIRR and FashionIQ, where they are at hand."""
    shared = Path(os.environ.get("MEGAPAIRS_SHARED", ROOT.parent / "shared"))
    for folder in (shared / "data" / "annotations", shared):
        if (folder / "cirr").is_dir():
            return folder
    return None


def make_image(path: Path, number: int, size: tuple[int, int] = (24, 16)) -> None:
    """An image that no other number has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    pixels = np.kron(rng.integers(0, 256, (2, 3, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    Image.fromarray(pixels).resize(size).save(path)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_circo(root: Path, queries: int = 6, gallery: int = 60, split: str = "val", *, draw: bool = True) -> Path:
    ids = [1000 + 7 * i for i in range(gallery)]
    rows = []
    for i in range(queries):
        row = {
            "id": i,
            "reference_img_id": ids[i],
            "relative_caption": f"has {i} more",
            "shared_concept": "shows a dog",
        }
        if split == "val":
            row |= {"target_img_id": ids[i + 1], "gt_img_ids": ids[i + 1 : i + 3 + i % 3]}
            row["semantic_aspects"] = [ASPECTS[i % 3], ASPECTS[(i + 1) % 3]]
        rows.append(row)
    write(root / "annotations" / f"{split}.json", rows)
    images = [{"id": name, "file_name": f"{name:012d}.jpg", "license": 1} for name in ids]
    write(root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", {"info": {}, "images": images})
    for name in ids if draw else []:
        make_image(root / "COCO2017_unlabeled/unlabeled2017" / f"{name:012d}.jpg", name)
    return root


def make_genecis(root: Path, queries: int = 4, *, draw: bool = True) -> Path:
    for task, count in {
        "focus_object": 15,
        "change_object": 15,
        "focus_attribute": 10,
        "change_attribute": 15,
    }.items():
        rows = []
        for i in range(queries):
            if task.endswith("object"):
                items: list[dict[str, Any]] = [
                    {"val_image_id": 100 + i * 20 + j, "instance": j} for j in range(count + 1)
                ]
                for item in items if draw else []:
                    make_image(root / "val2017" / f"{item['val_image_id']:012d}.jpg", item["val_image_id"])
            else:
                items = [
                    {"image_id": 2000 + (i + j) % 8, "instance_bbox": [2 + j, 3, 6 + i, 5], "object_name": "cup"}
                    for j in range(count + 1)
                ]
                for item in items if draw else []:
                    make_image(root / "VG_100K_all" / f"{item['image_id']}.jpg", item["image_id"], (48, 32))
            rows.append({"reference": items[0], "target": items[1], "gallery": items[2:], "condition": f"color {i}"})
        write(root / "genecis" / f"{task}.json", rows)
    return root


def make_cirr(root: Path, queries: int = 4, gallery: int = 24, split: str = "val") -> Path:
    folder = {"val": "dev", "test1": "test1"}[split]
    names = [f"{folder}-{i}-0-img0" for i in range(gallery)]
    rows = []
    for i in range(queries):
        row: dict[str, Any] = {"pairid": 12060 + i, "reference": names[i], "caption": f"make it {i}"}
        row["img_set"] = {"id": i, "members": names[i : i + 6], "reference_rank": 0}
        if split == "val":
            row |= {"target_hard": names[i + 2], "target_soft": {names[i + 2]: 1.0}}
        rows.append(row)
    write(root / "captions" / f"cap.rc2.{split}.json", rows)
    write(root / "image_splits" / f"split.rc2.{split}.json", {name: f"./{folder}/{name}.png" for name in names})
    for i, name in enumerate(names):
        make_image(root / "img_raw" / folder / f"{name}.png", i)
    return root


def make_fashioniq(root: Path, queries: int = 3, gallery: int = 12) -> Path:
    for c, category in enumerate(("dress", "shirt", "toptee")):
        names = [f"B{c}{i:03d}" for i in range(gallery)]
        rows = [
            {"candidate": names[i], "target": names[i + 1], "captions": [f"is {i} longer, ", "has dots."]}
            for i in range(queries)
        ]
        write(root / "captions" / f"cap.{category}.val.json", rows)
        write(root / "image_splits" / f"split.{category}.val.json", names)
        for i, name in enumerate(names):
            make_image(root / "images" / f"{name}.{'jpg' if i % 2 else 'png'}", c * 100 + i)
    return root


def make_mmeb(root: Path, names: tuple[str, ...] = ("VOC2007", "GQA")) -> Path:
    for n, name in enumerate(names):
        rows = []
        for i in range(3):
            image = f"{name}/{i}.png"
            make_image(root / "images" / image, 500 + 10 * n + i)
            texts = [f"word {i}", f"word {(i + 1) % 3}", "word 9"]
            ask = "<|image_1|>\nWhat is it?"
            row = {"qry_text": ask, "qry_img_path": image, "tgt_text": texts, "tgt_img_path": [""] * 3}
            rows.append(json.dumps(row))
        (root / f"{name}.jsonl").write_text("\n".join(rows))
    return root
