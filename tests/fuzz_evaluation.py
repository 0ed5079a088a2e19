"""Mutations of annotation files and of files for the test servers: each is used or named in one sentence.

No mutation ends in a traceback, hangs, or gives a number that is not finite; what no reader looks at (the order of
keys, white space, a byte order mark, keys that nobody knows) changes nothing.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import MegaPairsError
from megapairs_hf.evaluation.benchmarks.check_data import examine, report
from megapairs_hf.evaluation.benchmarks.load import read_benchmark
from megapairs_hf.evaluation.benchmarks.spec import read_spec
from megapairs_hf.evaluation.results import result_lines
from megapairs_hf.evaluation.run import run_benchmark
from megapairs_hf.evaluation.submission_check import Known, check_submission
from tests.evaluation.benchmarks import make_circo, make_cirr, make_fashioniq, make_genecis, make_mmeb
from tests.fuzz_tables import damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PARTS = ("GQA", "VOC2007")
FILES = {
    "circo": (make_circo, ("annotations/val.json", "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json")),
    "cirr": (make_cirr, ("captions/cap.rc2.val.json", "image_splits/split.rc2.val.json")),
    "fashioniq": (make_fashioniq, ("captions/cap.dress.val.json", "image_splits/split.shirt.val.json")),
    "genecis": (make_genecis, ("genecis/change_object.json", "genecis/focus_attribute.json")),
    "mmeb": (make_mmeb, ("GQA.jsonl", "VOC2007.jsonl")),
}
ODD = (None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 10**30, "", " ", "None", "-1", "1e9", "9" * 5000, [])
ODD += ([None], [[]], {}, {"": None}, "\ud800", "\0", "../../etc/passwd", "/dev/stdin", "a" * 5000, "é", [1, "1", 1.0])
KEYS = ("id", "target", "gallery", "captions", "members", "instance_bbox", "tgt_text", "", "\0", "images")


def changed(value: Any, dice: random.Random) -> Any:
    """A JSON value with something in it replaced, taken out, doubled or renamed."""
    value = copy.deepcopy(value)
    for _ in range(dice.choice([1, 1, 1, 2, 5])):
        inner, key = _somewhere(value, dice)
        if inner is None:
            return dice.choice(ODD)
        match dice.randrange(6):
            case 0:
                del inner[key]
            case 1 if isinstance(inner, list):
                inner.append(copy.deepcopy(inner[key]))
            case 2 if isinstance(inner, dict):
                inner[dice.choice(KEYS)] = inner.pop(key)
            case 3 if isinstance(inner[key], int | str):
                inner[key] = str(inner[key]) if dice.random() < 0.5 else [inner[key]]
            case _:
                inner[key] = dice.choice(ODD)
    return value


def _somewhere(value: Any, dice: random.Random) -> tuple[Any, Any]:
    """A list or dict inside a value, and an index or key of it; (None, None) where the value is empty or a leaf."""
    inner, key = None, None
    while isinstance(value, list | dict) and value:
        inner, key = value, dice.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if dice.random() < 0.25:
            break
        value = value[key]
    return inner, key


def rewritten(value: Any, dice: random.Random, *, more: bool = True) -> bytes:
    """The same JSON in another writing, with keys that nobody knows where `more`."""
    style = dice.choice([{"indent": dice.randrange(4)}, {"separators": (",", ":")}, {"separators": (" , ", " :  ")}])
    text = json.dumps(_turned(value, dice, more=more), ensure_ascii=dice.random() < 0.5, **style)
    return (dice.choice(["", "\n", " \t"]) + text + dice.choice(["", "\n", "\r\n\n"])).encode()


def _turned(value: Any, dice: random.Random, *, more: bool) -> Any:
    if isinstance(value, list):
        return [_turned(one, dice, more=more) for one in value]
    # a list of images by name is a dict, whose keys are known
    if not isinstance(value, dict):
        return value
    turned = {key: _turned(value[key], dice, more=more) for key in dice.sample(list(value), len(value))}
    leaves = all(isinstance(one, str) for one in value.values())
    return turned | ({"note": dice.choice(ODD[:6])} if more and not leaves and dice.random() < 0.3 else {})


def parsed(content: bytes, name: str) -> Any:
    return [json.loads(line) for line in content.splitlines()] if name.endswith(".jsonl") else json.loads(content)


def written(value: Any, name: str, write: Callable[[Any], bytes]) -> bytes:
    """A value as a file; rows of JSON lines one by one."""
    if not name.endswith(".jsonl"):
        return write(value)
    rows = value if isinstance(value, list) else [value]
    return b"\n".join(write(row).replace(b"\n", b" ").replace(b"\r", b" ") for row in rows)


def outcome(name: str, data: Path, dice: random.Random) -> str:
    """`all results`, `some results`, or the type of an error in one sentence; all else is raised."""
    changes: dict[str, Any] = {"parts": list(PARTS)} if name == "mmeb" else {}
    if dice.random() < 0.3:
        changes["allow_missing"] = True
    spec = read_spec(name, changes)
    page = report(spec, data, examine(spec, data, quick=True))
    try:
        benchmarks = list(read_benchmark(spec, data))
        lines = b"".join(result_lines(numbers(one)) for one in benchmarks)
    except MegaPairsError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000
        assert "All there" not in page or "box" in str(error)
        return type(error).__name__
    for line in lines.decode().splitlines():
        # NaN and Infinity are no JSON
        record = json.loads(line, parse_constant=lambda word: 1 / 0)
        assert 0 <= record["value"] <= 1
    return f"{len(lines.splitlines())} results of {sum(len(one.queries) for one in benchmarks)} queries"


def numbers(benchmark: Any) -> list[dict[str, Any]]:
    """The records of random embeddings; some images are decoded as an encoder would have them."""
    rng = np.random.default_rng(0)
    for query in benchmark.queries[:2]:
        targets = [benchmark.gallery[name].image for name in query.targets if name in benchmark.gallery]
        for image in (query.input.image, *targets):
            if image is not None:
                assert benchmark.image(image).mode == "RGB"
    sizes = len(benchmark.queries), len(benchmark.gallery)
    return run_benchmark(benchmark, tuple(rng.standard_normal((size, 16)) for size in sizes), model="random")


def fuzz_annotations(count: int, seed: int) -> Counter[str]:
    """Measure on mutated annotation files.

    Args:
        count: mutations of the files of each benchmark; as many again change what no reader looks at.
        seed: of the mutations.

    Returns:
        How many gave results, and how many were refused.
    """
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, silent():
        for name, (make, files) in FILES.items():
            data = make(Path(folder) / name)
            whole = {file: (data / file).read_bytes() for file in files}
            expected = outcome(name, data, random.Random(1))
            assert "results" in expected, f"{name} as it was written: {expected}"
            for i in range(count):
                dice = random.Random(f"{seed} {name} {i}")
                file = files[i % len(files)]
                value = parsed(whole[file], file)
                same = written(value, file, lambda one, dice=dice: rewritten(one, dice))
                same = dice.choice([b"", b"\xef\xbb\xbf"]) + same
                odd = damaged(whole[file], dice)
                if dice.random() < 0.7:
                    odd = written(changed(value, dice), file, lambda one: json.dumps(one).encode())
                for kind, content in (("same", same), ("odd", odd)):
                    (data / file).write_bytes(content)
                    try:
                        result = outcome(name, data, dice)
                    except Exception as error:
                        shown = content[:3000]
                        raise AssertionError(
                            f"number {i} of seed {seed}, {file}, {kind}: {error!r}\n{shown!r}"
                        ) from error
                    if kind == "same":
                        assert result == expected, f"number {i} of seed {seed}, {file}: {result} for what is ignored"
                    else:
                        results[f"{name}: {result if result.endswith('Error') else 'results'}"] += 1
                (data / file).write_bytes(whole[file])
    assert sum(results.values()) == count * len(FILES)
    return results


def submissions() -> dict[str, Any]:
    """Good files for the servers, by kind."""
    names = [f"test1-{i}-0-img0" for i in range(60)]
    head = {"version": "rc2", "metric": "recall"}
    return {
        "CIRCO": {str(i): [i + j for j in range(50)] for i in range(800)},
        "CIRR recall": head | {str(12000 + i): names[i % 9 : i % 9 + 50] for i in range(4148)},
        "CIRR recall_subset": head | {"metric": "recall_subset"} | {str(12000 + i): names[:3] for i in range(4148)},
    }


def fuzz_submissions(count: int, seed: int) -> Counter[str]:
    """Check mutated files for the test servers.

    Args:
        count: mutations of all kinds of files in turn; as many again change the writing alone.
        seed: of the mutations.

    Returns:
        How many have no fault, and how many have some.
    """
    results: Counter[str] = Counter()
    good = submissions()
    known = {kind: _known(value) for kind, value in good.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "submission.json"
        for i in range(count):
            dice = random.Random(f"{seed} {i}")
            kind = list(good)[i % len(good)]
            path.write_bytes(rewritten(good[kind], random.Random(0), more=False))
            value = dict(dice.sample(list(good[kind].items()), len(good[kind])))
            path.write_bytes(b"\n " + json.dumps(value, separators=(",", ": ")).encode() + b"\r\n")
            for facts in (None, known[kind]):
                assert check_submission(path, facts) == (kind, []), (
                    f"number {i} of seed {seed}: {kind} as it should be"
                )
            content = json.dumps(good[kind], separators=(",", ":")).encode()
            odd = json.dumps(changed(good[kind], dice)).encode() if dice.random() < 0.6 else damaged(content, dice)
            path.write_bytes(odd)
            try:
                described, faults = check_submission(path, dice.choice([None, known[kind]]))
            except Exception as error:
                raise AssertionError(f"number {i} of seed {seed}, {kind}: {error!r}") from error
            assert described
            assert all("\n" not in fault and len(fault) < 2000 for fault in faults)
            results[f"{kind}: {'faults' if faults else 'none'}"] += 1
    assert sum(results.values()) == count
    return results


def _known(value: dict[str, Any]) -> Known:
    queries = {key: names for key, names in value.items() if isinstance(names, list)}
    gallery = frozenset(str(name) for names in queries.values() for name in names)
    return Known(list(queries), {}, gallery, {key: tuple(names) for key, names in queries.items()})


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Notes about what is partial, missing or passed over are not shown."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
