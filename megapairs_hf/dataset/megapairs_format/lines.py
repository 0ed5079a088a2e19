"""The released set's lines (`q_img`, `q_text`, `t_img`, `hns`) read and checked, and rows written as such lines.

One JSON object a line, images as paths below a folder (VectorSpaceLab/MegaPairs). What surprises: a path in such a
file may come from a stranger, so one that is absolute or climbs out of the folder is rejected and never opened.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.literals import list_of_texts, looks_like_list
from megapairs_hf.dataset.layout import COMPOSED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from megapairs_hf.artifacts.writer import Rejection

# written beside the lines by our export: ids, captions and clusters of the images, which the format has no place for
NAMES = "image_ids.jsonl"
# columns of ours that a line may have besides the released ones
EXTRAS = ("relation", "scores", "task", "language", "verified", "candidate_scores")


@dataclass(frozen=True)
class Line:
    """A row of a line: the line's number from 1, the row or why there is none, and what was put right in the line."""

    number: int
    row: dict[str, Any] | None
    reason: str = ""
    detail: str = ""
    mended: tuple[str, ...] = ()

    def rejection(self, file: str) -> Rejection:
        """As a row of `rejected.parquet`."""
        return f"{file} line {self.number}", self.reason, self.detail


class LineError(ValueError):
    """A line that cannot be used: a short reason and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def read_lines(path: Path, offset: int = 0, first: int = 1, count: int | None = None) -> Iterator[Line]:
    """The rows of a file's lines; a blank line has no row and no reason, one with several targets a row for each.

    Args:
        path: the file.
        offset: the byte where line `first` begins.
        first: number of the first line that is read.
        count: how many lines to read; None for all.

    Raises:
        ArtifactError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            for number, line in enumerate(file, start=first):
                if count is not None and number >= first + count:
                    return
                try:
                    rows, mended = parse_line(line) if line.strip() else ([None], ())
                    for i, row in enumerate(rows):
                        yield Line(number, row, mended=() if i else mended)
                except LineError as error:
                    yield Line(number, None, error.reason, error.detail)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}; check the path") from error


def parse_line(line: bytes) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """A line as rows of `triplets`, one for each target, and what was put right in it.

    `q_text` may be one text or several, or be called `q_texts`; a list may be written as a text. The targets leave the
    negatives, and a negative that stands twice is taken once.

    Raises:
        LineError: it is no such line.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineError("malformed_line", f"no JSON: {str(error)[:200]}") from error
    if not isinstance(record, dict):
        advice = "; write each object on a line of its own (`jq -c '.[]'`)" if isinstance(record, list) else ""
        raise LineError("malformed_line", f"a {type(record).__name__}, not an object{advice}")
    texts, queries, targets = (_listed(record, *names) for names in (("q_text", "q_texts"), ("q_img",), ("t_img",)))
    negatives: Any = record.get("hns")
    negatives = _listed(record, "hns") if looks_like_list(negatives) else negatives
    query = queries[0] if isinstance(queries, list) and len(queries) == 1 else None
    for name, value in (("q_img", [query]), ("t_img", targets)):
        if not isinstance(value, list) or not value or not all(isinstance(part, str) and part for part in value):
            raise LineError("malformed_line", f"`{name}` is no path")
    for name, value in (("q_text", texts), ("hns", negatives)):
        if not isinstance(value, list) or not value or not all(isinstance(part, str) and part for part in value):
            raise LineError("malformed_line", f"`{name}` is no list of texts")
    if negatives[0] != query:
        raise LineError("first_negative_not_query", "`hns` must begin with the query image")
    extras = _extras(record, len(texts), len(negatives))
    _check_texts([query, *targets, *negatives], [*texts, *extras["relation"], extras["task"], extras["language"]])
    remaining = [target for target in dict.fromkeys(targets) if target != query]
    if not remaining:
        raise LineError("target_is_query", f"{query} is query and target")
    hard = [name for name in dict.fromkeys(negatives) if name not in remaining]
    if hard != negatives or len(targets) > 1:
        # they are of other candidates then
        extras["candidate_scores"] = []
    row = {"q_img": query, "q_text": texts, "hns": hard}
    return [row | {"t_img": target} | extras for target in remaining], _mended(targets, remaining, negatives)


def _listed(record: dict[str, Any], *names: str) -> Any:
    """A value of a line as a list: one text, or several, or the text of a list."""
    value = next((record[name] for name in names if name in record), None)
    if not isinstance(value, str):
        return value
    listed = list_of_texts(value)
    if listed is None and looks_like_list(value) and names[0] != "q_text":
        raise LineError("malformed_line", f"`{names[0]}` is {value[:100]!r}, no list that can be read")
    return [value] if listed is None else listed


def _mended(targets: list[str], remaining: list[str], negatives: list[str]) -> tuple[str, ...]:
    faults = {
        "target_is_query": len(set(targets)) > len(remaining),
        "target_is_negative": bool(set(remaining) & set(negatives)),
        "repeated_image": len(set(negatives)) < len(negatives) or len(set(targets)) < len(targets),
    }
    return tuple(name for name, holds in faults.items() if holds)


def _check_texts(paths: list[str], texts: list[str]) -> None:
    for name in paths:
        if not storage.is_inside(name):
            raise LineError("unsafe_path", repr(name)[:200])
    try:
        "".join([*paths, *texts]).encode()
    except UnicodeEncodeError as error:
        raise LineError("malformed_line", "half a surrogate pair, which is no text") from error


def _extras(record: dict[str, Any], texts: int, negatives: int) -> dict[str, Any]:
    """The columns that the released lines lack, blank where a line has them not."""
    relation, scores = record.get("relation") or [], record.get("scores") or []
    _check_extras(relation, scores)
    task, language, verified = record.get("task") or COMPOSED, record.get("language") or "", record.get("verified")
    if not isinstance(task, str) or not isinstance(language, str):
        raise LineError("malformed_line", "`task` or `language` is no text")
    rates: list[Any] = verified if isinstance(verified, list) else [] if verified is None else [verified]
    if rates and (len(rates) != texts or not all(rate is None or _is_float(rate) for rate in rates)):
        raise LineError("malformed_line", "`verified` is no list of one number for each text")
    return {
        "relation": relation,
        "scores": [{**part, "score": float(part["score"])} for part in scores],
        "task": task,
        "language": language,
        "verified": [math.nan if rate is None else float(rate) for rate in rates],
        "candidate_scores": _read_scores(record.get("candidate_scores"), texts, negatives),
    }


def _read_scores(value: Any, texts: int, negatives: int) -> list[list[float]]:
    """A score per text of the target and each negative; empty where a line has none.

    Raises:
        LineError: they are not as many, or no numbers.
    """
    if value is None:
        return []
    rows: list[Any] = value if isinstance(value, list) else [None]
    fits = len(rows) in {0, texts} and all(isinstance(row, list) and len(row) == 1 + negatives for row in rows)
    if not fits or not all(score is None or _is_float(score) for row in rows for score in row):
        raise LineError("malformed_line", "`candidate_scores` is no score per text of the target and each negative")
    return [[math.nan if score is None else float(score) for score in row] for row in rows]


def _check_extras(relation: Any, scores: Any) -> None:
    if not isinstance(relation, list) or not all(isinstance(part, str) for part in relation):
        raise LineError("malformed_line", "`relation` is no list of texts")
    parts: list[Any] = scores if isinstance(scores, list) else [None]
    for part in parts:
        known = isinstance(part, dict) and part.keys() == {"relation", "score"}
        if not known or not isinstance(part["relation"], str) or not _is_float(part["score"]):
            raise LineError("malformed_line", "`scores` is no list of relations with scores")


def _is_float(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and isinstance(float(value), float)
    except OverflowError:
        # JSON knows numbers of any length
        return False


def format_line(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A row as a line, with the file of each image; columns of ours are added where the row has them."""
    line = {
        "q_img": names[row["q_img"]],
        "q_text": row["q_text"],
        "t_img": names[row["t_img"]],
        "hns": [names[name] for name in row["hns"]],
    }
    line |= {name: row[name] for name in EXTRAS if row.get(name) and row[name] != COMPOSED}
    # JSON has no NaN
    if row["verified"]:
        line["verified"] = [_number(rate) for rate in row["verified"]]
    if row.get("candidate_scores"):
        line["candidate_scores"] = [[_number(score) for score in scores] for scores in row["candidate_scores"]]
    return json.dumps(line, ensure_ascii=False) + "\n"


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
