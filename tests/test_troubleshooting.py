"""docs/troubleshooting.md has every class of `core/errors.py` and every reason of a rejection."""

import ast
import re

import pytest

from megapairs_hf.annotation import filters
from megapairs_hf.annotation.prompts.refusals import KINDS
from megapairs_hf.annotation.response_watch import ADVICE
from megapairs_hf.core import columns
from tests.small import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (?P<names>`[^|]+) \| (?P<cause>[^|]+) \| (?P<remedy>[^|]+) \|$", re.MULTILINE)
REJECTIONS = {"ImageRejectedError", "ResponseRejectedError", "ResponseParseError", "RejectedError", "LineError"}
# where a reason stands among the arguments of what holds one
PLACES = {"Outcome": 1, "Line": 2, "Response": 4, "format_error": 0} | dict.fromkeys(REJECTIONS, 0)
REASON = re.compile(r"[a-z]+(_[a-z]+)*")
# in a column `error`
FORMATTED = re.compile(r"([a-z]+(?:_[a-z]+)+): ")
MODULES = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "megapairs_hf").rglob("*.py"))]


def documented():
    return {name for row in ROW.finditer(PAGE) for name in re.findall(r"`([^`]+)`", row["names"])}


def constants():
    """Names in capitals that stand for a text, of all modules."""
    known = {}
    for module in MODULES:
        for node in module.body:
            if isinstance(node, ast.Assign):
                target = node.targets[0]
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                for name, value in zip(names, values, strict=False):
                    if isinstance(name, ast.Name) and isinstance(value, ast.Constant):
                        known[name.id] = value.value
    return known


def texts_of(node, known):
    """The reasons that an expression may be."""
    if isinstance(node, ast.IfExp):
        return texts_of(node.body, known) | texts_of(node.orelse, known)
    value = node.value if isinstance(node, ast.Constant) else known.get(getattr(node, "id", None))
    return {value} if isinstance(value, str) and REASON.fullmatch(value) else set()


def of_call(node, known):
    """The reasons among the arguments of an error, an outcome or a line."""
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    place = PLACES.get(name)
    given = [node.args[place]] if place is not None and len(node.args) > place else []
    given += [word.value for word in node.keywords if word.arg in {"reason", "refused"}]
    return set().union(*(texts_of(each, known) for each in given))


def of_tuple(node, known):
    """The reason of a row of `rejected.parquet`, (key, reason, detail), or of (reason, detail)."""
    if len(node.elts) == 3:
        key, reason, detail = node.elts
        about = getattr(key, "id", "") in {"key", "name"} or isinstance(key, ast.Call | ast.JoinedStr)
        told = isinstance(detail, ast.Constant | ast.JoinedStr | ast.Subscript)
        return texts_of(reason, known) if about and told else set()
    if len(node.elts) == 2 and isinstance(node.elts[0], ast.Constant):
        reason, detail = node.elts
        # a detail is a sentence
        sentence = isinstance(detail, ast.JoinedStr) or " " in str(getattr(detail, "value", ""))
        return {text for text in texts_of(reason, known) if "_" in text} if sentence else set()
    return set()


def reasons_of(module, known):
    """The reasons that a module gives."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (match := FORMATTED.match(node.value)):
            found.add(match[1])
        elif isinstance(node, ast.Call):
            found |= of_call(node, known)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "reason":
            found |= texts_of(node.value, known)
        elif isinstance(node, ast.Tuple):
            found |= of_tuple(node, known)
    return found


def classes():
    tree = ast.parse((ROOT / "megapairs_hf" / "core" / "errors.py").read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("name", classes())
def test_every_error_class_has_cause_and_remedy(name):
    assert name in documented()


def test_no_class_is_told_that_there_is_not():
    assert {name for name in documented() if name.endswith("Error")} == set(classes())


def test_every_reason_has_cause_and_remedy():
    known = constants()
    found = set().union(*(reasons_of(module, known) for module in MODULES))
    # a message may begin with the name of a function
    found -= {node.name for each in MODULES for node in ast.walk(each) if isinstance(node, ast.FunctionDef)}
    assert {"truncated", "near_duplicate", "no_list", "malformed_line", "missing_value", "deadline"} <= found
    found |= set(ADVICE) | {kind.reason for kind in KINDS} | {columns.DUPLICATE_ID, columns.DUPLICATE_IMAGE}
    assert sorted(found - documented()) == []


def test_every_reason_against_an_instruction_has_cause_and_remedy():
    source = (ROOT / "megapairs_hf" / "annotation" / "filters.py").read_text(encoding="utf-8")
    [checks] = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "checks"
    ]
    reasons = {each.elts[0].value for each in checks.elts} | {"duplicate"}
    assert filters.__doc__ and len(reasons) == 9
    assert sorted(reasons - documented()) == []


def test_every_row_says_something():
    rows = list(ROW.finditer(PAGE))
    assert len(rows) > 60
    for row in rows:
        assert len(row["cause"].split()) >= 3 and len(row["remedy"].split()) >= 2, row["names"]
