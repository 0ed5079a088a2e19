"""Text of others in cards: whatever manifests and records hold, a card has the shape that it has with plain words."""

import html
import json
import shutil

import pytest

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.manifest import read_manifest
from megapairs_hf.core.errors import CardError
from megapairs_hf.core.formatting import code_block, code_span, plain_words, printable, table_cell
from megapairs_hf.core.yaml_values import load_yaml
from megapairs_hf.hub.cards import dataset_card, model_card
from megapairs_hf.hub.config import PushConfig
from tests.making import make_work

CONFIG = PushConfig("org/scenes", license="cc-by-4.0")
CARDS = {"dataset": dataset_card, "model": model_card}
PLAIN = "word"
HOSTILE = [
    "```\n\n# Title\n\n<script>alert(1)</script>\n\n```yaml",
    "````` ~~~",
    "`a` ``b``",
    "](javascript:alert(1)) [b](http://a.example) ![c](http://a.example/c.png)",
    "<img src=x onerror=alert(1)><b>",
    "| a | b |\n|---|---|",
    "\n\n# Title\n\n- item\n\n> quote\n\n---\n\n1. one",
    "**bold** _it_ ***x*** \\",
    "\x1b[31mred\x07\x00\x9b",
    "\u202egnp.exe\u2066",
    "{{ repo_id }}{% raw %}",
    "<!-- /results --> <!-- results -->",
    "</details></summary>",
    "&lt;b&gt; <http://a.example> <a@b.example>",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("untrusted") / "work")


def marked(value, text):
    """Every text in a value, keys too, with another behind it."""
    if isinstance(value, str):
        return f"{value} {text}"
    if isinstance(value, dict):
        return {f"{key} {text}": marked(inner, text) for key, inner in value.items()}
    return [marked(inner, text) for inner in value] if isinstance(value, list) else value


def of_others(work, folder, text):
    """A copy of a work folder, in which a stranger wrote into every manifest and record."""
    shutil.copytree(work, folder)
    for file in folder.rglob("manifest.json"):
        manifest = json.loads(file.read_text())
        stats = manifest.get("stats", {})
        # what code looks up by name keeps its name
        manifest["stats"] = {key: marked(value, text) for key, value in stats.items() if key != "triplets"}
        manifest["stats"] |= {"warnings": [text, f"a {text}"], "relations": {text: 3, f"a {text}": 1}, text: text}
        manifest["stats"] |= {"models": {text: 2}, "spend": text}
        manifest["rejected"] = marked(manifest.get("rejected", {}), text) | {text: 1}
        manifest["config"] = {k: marked(v, text) if k != "engine" else v for k, v in manifest["config"].items()}
        manifest["config"] |= {"note": text}
        file.write_text(json.dumps(manifest))
        read_manifest(str(file))
    for file in folder.rglob("results.jsonl"):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            record.update({key: f"{record[key]} {text}" for key in ("benchmark", "model") if key in record})
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def shape(card):
    """Which elements a card has, in order, and the keys of its metadata."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    _, front, text = card.split("---\n", 2)
    kinds = []
    for token in markdown.parse(text):
        kinds.append((token.type, token.tag, token.attrs.get("href")))
        kinds += [
            (inner.type, inner.tag, inner.attrs.get("href"))
            for inner in token.children or []
            if inner.type not in {"text", "softbreak"}
        ]
    return kinds, list(load_yaml(front))


@pytest.fixture(scope="module")
def plain(work, tmp_path_factory):
    folder = of_others(work, tmp_path_factory.mktemp("plain") / "work", PLAIN)
    return {kind: shape(card(folder, CONFIG)) for kind, card in CARDS.items()}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_keeps_its_shape_whatever_others_wrote(work, plain, tmp_path, text):
    folder = of_others(work, tmp_path / "work", text)
    for kind, card in CARDS.items():
        rendered = card(folder, CONFIG)
        assert shape(rendered) == plain[kind]
        assert all(line.isprintable() for line in rendered.split("\n")), kind


@pytest.mark.parametrize(
    "stats",
    [{"relations": {"a": "many"}}, {"relations": {"a": None, "b": 2}}, {"relations": ["a"]}, {"models": {"a": [1]}}],
)
def test_a_manifest_with_other_values_is_one_sentence(work, tmp_path, stats):
    shutil.copytree(work, tmp_path / "work")
    for name in ("triplets", "pairs"):
        file = tmp_path / "work" / name / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["stats"] = manifest.get("stats", {}) | stats
        file.write_text(json.dumps(manifest))
    with pytest.raises(CardError) as caught:
        dataset_card(tmp_path / "work", CONFIG, open_artifact(tmp_path / "work" / "triplets"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [*HOSTILE, "", "`", "``", "a`", "plain", "a|b", "```", "a\n```\nb"])
def test_code_holds_its_text_and_ends_where_it_ends(text):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    tokens = markdown.parse(f"before\n\n{code_block(text, 'yaml')}\n\nafter")
    assert [token.type for token in tokens if token.type in {"fence", "paragraph_open"}] == [
        "paragraph_open",
        "fence",
        "paragraph_open",
    ]
    if text.strip():
        [paragraph] = [token for token in markdown.parse(f"a {code_span(text)} b") if token.type == "inline"]
        assert [inner.type for inner in paragraph.children] == ["text", "code_inline", "text"]
        table = markdown.parse(f"|x|y|\n|---|---|\n|{code_span(text)}|{table_cell(text)}|\n")
        assert sum(token.type == "td_open" for token in table) == 2


@pytest.mark.parametrize("text", [*HOSTILE, "a_b", "_a_", "__", r"a\_b", r"\\_", "clip_image and _dino_", "é_é"])
@pytest.mark.parametrize("escape", [table_cell, plain_words])
def test_escaped_text_reads_as_it_was_written(text, escape):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark")
    [paragraph] = [token for token in markdown.parse(escape(text)) if token.type == "inline"]
    assert {inner.type for inner in paragraph.children} <= {"text"}
    # what stands for a letter in HTML is read as that letter, as in any Markdown
    assert "".join(inner.content for inner in paragraph.children) == html.unescape(printable(" ".join(text.split())))
