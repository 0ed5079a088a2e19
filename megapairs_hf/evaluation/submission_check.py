"""What a test server would refuse of a file.

What surprises: whose file it is, is decided by what it holds, names or numbers of images, pairs or queries; a file of
CIRR that lacks both `version` and `metric` is one of CIRR all the same, and is told what it lacks.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
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
HEADER = {"version", "metric"}
SUFFIX = re.compile(r"\.(?:png|jpe?g|webp|gif|bmp)$", re.IGNORECASE)
MARKS = {
    codecs.BOM_UTF8: "a byte order mark",
    codecs.BOM_UTF16_LE: "the mark of UTF-16",
    codecs.BOM_UTF16_BE: "the mark of UTF-16",
}


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
        return _kind(json.loads(content))
    except (ValueError, RecursionError):
        return "not JSON"


def _kind(loaded: Any) -> str:
    if not isinstance(loaded, dict):
        return "no submission"
    if not _is_cirr(loaded):
        return "CIRCO"
    metric = loaded.get("metric")
    return f"CIRR {metric if isinstance(metric, str) else _metric_of(loaded)}"


def _is_cirr(loaded: Mapping[str, Any]) -> bool:
    """Whether the images are names, not numbers; where no list says so, whether it has CIRR's header or pair ids."""
    images = [image for _, value in _listed(loaded) for image in value]
    names = sum(isinstance(image, str) and not SUFFIX.sub("", image).isdecimal() for image in images)
    if images:
        return 2 * names > len(images)
    pairs = [key for key in loaded if key.isdecimal() and int(key[:9]) >= CIRCO_QUERIES["test"]]
    return bool(HEADER & loaded.keys()) or 2 * len(pairs) > len(loaded)


def _metric_of(queries: Mapping[str, Any]) -> str:
    """The metric of a file that names none: as long as most of its lists."""
    lengths = Counter(len(value) for _, value in _listed(queries)).most_common(1)
    return "recall_subset" if lengths and lengths[0][0] <= SUBSET_TOP + 2 else "recall"


def problems(content: bytes, known: Known | None = None) -> list[str]:
    """Every fault of a submission, one sentence each.

    Args:
        content: of the file.
        known: what the annotations say.
    """
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1))
        return dict(pairs)

    try:
        loaded = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        return [f"it is cut off or no JSON ({error}); write it again"]
    faults = [f"it begins with {MARKS[mark]}; save it as UTF-8 without" for mark in MARKS if content.startswith(mark)]
    if not isinstance(loaded, dict):
        return [*faults, f"it must be one JSON object of query to list, and is a {type(loaded).__name__}"]
    faults += [f"{len(twice):,} keys stand twice ({_some(twice)}); each query once"] if twice else []
    if len(content) > MAX_BYTES:
        faults.append(f"it has {len(content):,} bytes, and the server takes {MAX_BYTES:,}; write it without spaces")
    return faults + (_cirr(loaded, known) if _is_cirr(loaded) else _circo(loaded, known))


def _circo(loaded: dict[str, Any], known: Known | None) -> list[str]:
    # always all 800: annotations that were cut short make no shorter file right
    expected = [str(i) for i in range(CIRCO_QUERIES["test"])]
    faults = _suffixes(loaded, "write 123")
    if len(loaded) == CIRCO_QUERIES["val"]:
        faults.append("it has the 220 queries of val, whose answers are public; the server takes the 800 of test")
        expected = [str(i) for i in range(CIRCO_QUERIES["val"])]
    faults += _keys(loaded, expected)
    queries = set(expected)
    loaded = {key: value for key, value in loaded.items() if key in queries}
    faults += _lists(loaded, TOP, "ids")
    wrong = [k for k, v in _listed(loaded) if any(not isinstance(i, int) or isinstance(i, bool) for i in v)]
    if wrong:
        faults.append(f'{len(wrong):,} queries have ids that are no integers ({_some(wrong)}); write 123, not "123"')
    return faults + _gallery({k: v for k, v in loaded.items() if k not in wrong}, known)


def _cirr(loaded: dict[str, Any], known: Known | None) -> list[str]:
    faults = []
    if loaded.get("version") != CIRR_VERSION:
        faults.append(f'"version" is {loaded.get("version")!r} and must be "{CIRR_VERSION}"')
    queries = {key: value for key, value in loaded.items() if key not in HEADER}
    metric = loaded.get("metric")
    if not isinstance(metric, str) or metric not in CIRR_METRICS:
        faults.append(f'"metric" is {metric!r} and must be "recall" or "recall_subset"')
        metric = _metric_of(queries)
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
    faults += _suffixes(queries, "write test1-1-0-img0")
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


def _suffixes(loaded: Mapping[str, Any], right: str) -> list[str]:
    """The fault of images that are named as files."""
    named = [key for key, value in _listed(loaded) if any(isinstance(i, str) and SUFFIX.search(i) for i in value)]
    if not named:
        return []
    suffix = next(match[0] for i in loaded[named[0]] if isinstance(i, str) and (match := SUFFIX.search(i)))
    return [f"{len(named):,} queries have images with the suffix {suffix} ({_some(named)}); {right}"]


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
