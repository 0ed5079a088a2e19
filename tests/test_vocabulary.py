"""One word for one thing: the words that the project does not use, in names, help, errors, documents and recipes.

Identifiers are taken from the syntax tree, prose from comments, docstrings and documents. A pattern that another
use of English shares has the phrases in which it may stand.
"""

import ast
import io
import re
import subprocess
import tokenize

import pytest

from tests.small import ROOT

# names of variables, fields, parameters and functions that say that something happened, not what the thing is
HAPPENED = {"told", "tells", "said", "stands_in", "found", "made", "given", "wanted", "opened", "kept"}
PARTS = re.compile(
    r"(?:^|_)(?:pictures?|vectors|verbs?|bands?|untrained|doctor|colours?|neighbours?|licences?)(?:_|$)"
    r"|Pictures?(?=[A-Z]|$)|Vectors(?=[A-Z]|$)|SimilarityModel|(?:^|_)similarity_models?(?:_|$)"
)
PROSE = {
    "picture": r"\bpictures?\b",
    "vectors": r"\bvectors\b",
    "verb": r"\bverbs?\b",
    "similarity model": r"\bsimilarity models?\b",
    "one set a": r"\bone set a\b",
    "band": r"\bbands?\b",
    "the same picture as": r"\bthe same (?:picture|image) as\b",
    "untrained": r"\buntrained\b",
    "drawn scenes": r"\bdrawn scenes?\b",
    "doctor": r"\bdoctor\b",
    "stand-in engine": r"\b(?:stand-in|captions) engine\b",
    "British spelling": r"\b\w*(?:colour|neighbour|behaviour|licence|normalis[ei]|catalogue|artefact)\w*",
}
# where a word is somebody else's: other people's sentences, grammar, the data of a test
FOREIGN = re.compile(
    r"^(LICENSE|tests/test_vocabulary\.py|megapairs_hf/core/config\.py|megapairs_hf/annotation/(filters\.py|prompts/|rule_based/)"
    r"|tests/annotation/test_(filters|caption_diff|templates|parsing)\.py|CHANGELOG\.md)"
)
ALLOWED = {"picture": ("Find a picture that also",), "verb": ("main verb",), "British spelling": ()}
TEXTS = (".md", ".jinja", ".yaml", ".cfg", ".sbatch", ".html")


def files(*suffixes):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    return [name for name in listed if name.endswith(suffixes) and (ROOT / name).is_file() and not FOREIGN.match(name)]


def names_of(tree):
    """Every name that a file gives to something, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def prose_of(name):
    """The text of a document; of a Python file its comments and strings."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if not name.endswith(".py"):
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


@pytest.mark.parametrize("folder", ["megapairs_hf", "eval", "benchmarks", "tests"])
def test_names_say_what_the_thing_is(folder):
    problems = []
    for name in files(".py"):
        if not name.startswith(folder + "/"):
            continue
        for each, line in names_of(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            if PARTS.search(each) or (folder != "tests" and each in HAPPENED):
                problems.append(f"{name}:{line} {each}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("word", PROSE)
def test_one_word_for_one_thing(word):
    problems = []
    for name in files(".py", *TEXTS):
        for line, text in prose_of(name):
            hits = re.findall(PROSE[word], text, re.IGNORECASE)
            if hits and not any(phrase in text for phrase in ALLOWED.get(word, ())):
                problems.append(f"{name}:{line} {hits[0]}: {text.strip()[:90]}")
    assert not problems, "\n".join(problems)
