"""What a test server would refuse of a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.core.errors import ArtifactError, EvaluationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.evaluation.benchmarks.base import Benchmark

TOP = 50
SUBSET_TOP = 3
MAX_BYTES = 5_000_000
CIRCO_QUERIES = {"test": 800, "val": 220}
CIRR_QUERIES = 4_148
CIRR_VERSION = "rc2"
CIRR_METRICS = {"recall": TOP, "recall_subset": SUBSET_TOP}
SHOWN = 3


@dataclass(frozen=True)
class Known:
    """What the annotation files say, for a thorough check.

    Attributes:
        keys: of the queries.
        references: the query's own image, by key.
        gallery: all ids or names.
        subsets: the names of a query's subset, by key.
    """

    keys: Sequence[str]
    references: Mapping[str, str]
    gallery: frozenset[str]
    subsets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, benchmark: Benchmark) -> Known:
        """From a benchmark that was read."""
        return cls(
            [query.key for query in benchmark.queries],
            {query.key: query.input.image or "" for query in benchmark.queries},
            frozenset(benchmark.gallery),
            {query.key: query.subset for query in benchmark.queries},
        )


def check_submission(path: PathLike, known: Known | None = None) -> tuple[str, list[str]]:
    """Say what kind of file it is and what is wrong with it.

    Args:
        path: the file.
        known: what the annotations say; None checks all that the file alone can tell.

    Returns:
        A description, and one sentence for each fault; none where the server will take it.

    Raises:
        EvaluationError: there is no such file.
    """
    try:
        content = storage.read_bytes(path)
    except (ArtifactError, OSError) as error:
        raise EvaluationError(f"cannot read {path}; check the path") from error
    return describe(content), problems(content, known)


def describe(content: bytes) -> str:
    """What kind of submission the bytes look like."""
    try:
        loaded = json.loads(content)
    except (ValueError, RecursionError):
        return "not JSON"
    return _kind(loaded)


def _kind(loaded: Any) -> str:
    if isinstance(loaded, dict) and {"version", "metric"} & loaded.keys():
        return f"CIRR {loaded.get('metric', '?')}"
    return "CIRCO" if isinstance(loaded, dict) else "no submission"


def problems(content: bytes, known: Known | None = None) -> list[str]:
    """Every fault of a submission, one sentence each.

    Args:
        content: of the file.
        known: what the annotations say.
    """
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice.extend(sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else [])
        return dict(pairs)

    try:
        loaded = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        return [f"it is cut off or no JSON ({error}); write it again"]
    if not isinstance(loaded, dict):
        return [f"it must be one JSON object of query to list, and is a {type(loaded).__name__}"]
    faults = [f"{len(twice):,} keys stand twice ({_some(twice)}); each query once"] if twice else []
    if len(content) > MAX_BYTES:
        faults.append(f"it has {len(content):,} bytes, and the server takes {MAX_BYTES:,}; write it without spaces")
    return faults + (_circo(loaded, known) if _kind(loaded) == "CIRCO" else _cirr(loaded, known))


def _circo(loaded: dict[str, Any], known: Known | None) -> list[str]:
    # always all 800: annotations that were cut short make no shorter file right
    expected = [str(i) for i in range(CIRCO_QUERIES["test"])]
    faults = []
    if len(loaded) == CIRCO_QUERIES["val"]:
        faults.append("it has the 220 queries of val, whose answers are public; the server takes the 800 of test")
        expected = [str(i) for i in range(CIRCO_QUERIES["val"])]
    faults += _keys(loaded, expected)
    faults += _lists(loaded, TOP, "ids")
    wrong = [k for k, v in _listed(loaded) if any(not isinstance(i, int) or isinstance(i, bool) for i in v)]
    if wrong:
        faults.append(f'{len(wrong):,} queries have ids that are no integers ({_some(wrong)}); write 123, not "123"')
    return faults + _gallery({k: v for k, v in loaded.items() if k not in wrong}, known)


def _cirr(loaded: dict[str, Any], known: Known | None) -> list[str]:
    faults = []
    if loaded.get("version") != CIRR_VERSION:
        faults.append(f'"version" is {loaded.get("version")!r} and must be "{CIRR_VERSION}"')
    metric = loaded.get("metric")
    if not isinstance(metric, str) or metric not in CIRR_METRICS:
        return [*faults, f'"metric" is {metric!r} and must be "recall" or "recall_subset"']
    queries = {key: value for key, value in loaded.items() if key not in {"version", "metric"}}
    if len(queries) != CIRR_QUERIES:
        faults.append(f"it has {len(queries):,} queries, and test1 has {CIRR_QUERIES:,}")
    if known:
        faults += _keys(queries, known.keys)
    else:
        odd = [key for key in queries if not key.isdigit()]
        if odd:
            faults.append(f"{len(odd):,} keys are no pair ids ({_some(odd)})")
    faults += _lists(queries, CIRR_METRICS[metric], "names")
    texts = [key for key, value in _listed(queries) if not all(isinstance(name, str) for name in value)]
    if texts:
        faults.append(f"{len(texts):,} queries have names that are no strings ({_some(texts)})")
    own = [k for k, v in _listed(queries) if known and known.references.get(k) in v]
    if own:
        faults.append(f"{len(own):,} queries have their own reference in the list ({_some(own)}); delete it")
    if known and metric == "recall_subset":
        strange = [k for k, v in _listed(queries) if k in known.subsets and not _within(v, known.subsets[k])]
        if strange:
            faults.append(f"{len(strange):,} queries name images outside their subset ({_some(strange)})")
    return faults + _gallery(queries, known)


def _keys(loaded: Mapping[str, Any], expected: Sequence[str]) -> list[str]:
    expected_keys = set(expected)
    absent = [key for key in expected if key not in loaded]
    foreign = [key for key in loaded if key not in expected_keys]
    faults = []
    if absent:
        faults.append(f"{len(absent):,} of {len(expected):,} queries are absent ({_some(absent)})")
    if foreign:
        faults.append(f"{len(foreign):,} keys are no queries ({_some(foreign)}); remove them")
    return faults


def _lists(loaded: Mapping[str, Any], count: int, what: str) -> list[str]:
    faults = []
    no_list = [key for key, value in loaded.items() if not isinstance(value, list)]
    if no_list:
        faults.append(f"{len(no_list):,} queries have no list ({_some(no_list)})")
    length = [f"{key}: {len(value)}" for key, value in _listed(loaded) if len(value) != count]
    if length:
        faults.append(f"{len(length):,} queries have not {count} {what} ({_some(length)})")
    again = [key for key, value in _listed(loaded) if len(set(map(str, value))) != len(value)]
    if again:
        faults.append(f"{len(again):,} queries have {what} twice ({_some(again)}); rank each image once")
    return faults


def _gallery(loaded: Mapping[str, Any], known: Known | None) -> list[str]:
    if known is None:
        return []
    strange = [key for key, value in _listed(loaded) if not _within(map(str, value), known.gallery)]
    return [f"{len(strange):,} queries name images outside the gallery ({_some(strange)})"] if strange else []


def _listed(loaded: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    return [(key, value) for key, value in loaded.items() if isinstance(value, list)]


def _within(names: Any, allowed: Any) -> bool:
    return all(isinstance(name, str) and name in allowed for name in names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
