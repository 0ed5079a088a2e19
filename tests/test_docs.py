"""What is written is executed: every command of the documents parses, every YAML block is valid."""

import re
import shlex

import pytest
import yaml

from megapairs_hf.cli.parser import parse
from megapairs_hf.core.config import build_config
from megapairs_hf.embedding import EmbedConfig
from megapairs_hf.mining import MineConfig
from tests.small import ROOT

PAGES = [ROOT / "README.md", ROOT / "recipes" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands():
    for page in PAGES:
        for line in "\n".join(blocks(page, "bash")).splitlines():
            for part in re.split(r"; (?:do )?", line):
                words = shlex.split(part, comments=True)
                if words[:1] == ["megapairs"]:
                    yield pytest.param(words[1:], id=" ".join(words[:3]))
                elif "megapairs_hf" in words:
                    yield pytest.param(words[words.index("megapairs_hf") + 1 :], id=" ".join(words[:5]))


@pytest.mark.parametrize("words", commands())
def test_every_command_of_the_documents_parses(words):
    assert callable(parse([word.replace("$seed", "0") for word in words]))


def test_the_two_commands_are_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme


def test_yaml_of_the_documents_is_valid():
    found = [yaml.safe_load(block) for block in blocks(ROOT / "docs" / "artifacts.md", "yaml")]
    embed, mine = build_config(EmbedConfig, found[0]), build_config(MineConfig, found[1])
    assert {relation.name for relation in mine.relations} - {model.name for model in embed.encoders} == {"image_text"}
