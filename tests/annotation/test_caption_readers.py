"""Which parser reads the captions: the model of the settings, its re-upload, or the auxiliary rule."""

import shutil

import pytest

from megapairs_hf.annotation import DescribeConfig, InstructConfig, describe_pairs, instruct_pairs
from megapairs_hf.annotation.rule_based import readers
from megapairs_hf.annotation.rule_based.readers import caption_reader, find_parser, parser_version
from megapairs_hf.cli import main
from megapairs_hf.core.errors import ConfigError, MissingDependencyError

SENTENCE = "python -m spacy download"


@pytest.fixture(autouse=True)
def no_memory():
    find_parser.cache_clear()
    caption_reader.cache_clear()
    yield
    find_parser.cache_clear()
    caption_reader.cache_clear()


@pytest.fixture
def models(monkeypatch):
    """Set which models spaCy has."""
    util = pytest.importorskip("spacy.util")
    return lambda *names: monkeypatch.setattr(util, "get_installed_models", lambda: list(names))


def test_the_model_or_its_reupload(models):
    models("en_core_web_sm", "en_core_web_sm_again", "de_core_news_sm")
    assert find_parser("en_core_web_sm") == "en_core_web_sm"
    find_parser.cache_clear()
    models("de_core_news_sm", "en_core_web_sm_again")
    assert find_parser("en_core_web_sm") == "en_core_web_sm_again"
    assert find_parser("none") == ""


@pytest.mark.parametrize("name", ["en_core_web_sm", "en_core_web_lg", "./nowhere", "en"])
def test_a_model_that_is_not_there(models, name):
    models("de_core_news_sm")
    with pytest.raises(ConfigError, match=f"{SENTENCE} {name}`.*`parser: none`"):
        find_parser(name)


def test_without_spacy(monkeypatch, capsys):
    monkeypatch.setattr(readers, "installed", lambda _: False)
    monkeypatch.setattr("megapairs_hf.core.dependencies.installed", lambda _: False)
    assert [find_parser("en_core_web_sm") for _ in range(2)] == ["", ""]
    assert capsys.readouterr().err.count(f"{SENTENCE} en_core_web_sm") == 1
    assert parser_version("en_core_web_sm") == "auxiliary rule"
    with pytest.raises(MissingDependencyError, match=r"megapairs-hf\[captions\]"):
        find_parser("en_core_web_lg")


def test_a_model_for_another_language_or_without_a_parser(tmp_path):
    spacy = pytest.importorskip("spacy")
    for language, told in (("de", "for 'de', and the rules write English"), ("en", "has no tagger")):
        spacy.blank(language).to_disk(tmp_path / language)
        assert find_parser(str(tmp_path / language)) == str(tmp_path / language)
        assert parser_version(str(tmp_path / language)).endswith(" 0.0.0")
        with pytest.raises(ConfigError, match=told):
            caption_reader(str(tmp_path / language))
    shutil.rmtree(tmp_path / "en" / "vocab", ignore_errors=True)
    (tmp_path / "en" / "config.cfg").write_text("[nlp]\nlang = 'x'\n")
    find_parser.cache_clear()
    with pytest.raises(ConfigError, match="cannot load"):
        caption_reader(str(tmp_path / "en"))


def test_the_parser_stands_in_the_inputs_and_instruct_takes_it(corpus, pairs, tmp_path):
    described = describe_pairs(
        pairs, corpus, config=DescribeConfig(engine="rule_based", parser="none"), out=tmp_path / "d"
    )
    made = instruct_pairs(described, corpus, config=InstructConfig(engine="rule_based"), out=tmp_path / "i")
    assert [each.manifest.inputs["model"] for each in (described, made)] == ["auxiliary rule"] * 2
    assert made.manifest.config["parser"] == "none"


def test_only_english_is_written():
    with pytest.raises(ConfigError, match="`language` is 'de', but must be en for engine rule_based"):
        InstructConfig(engine="rule_based", language="de")
    assert InstructConfig(language="de").language == "de"


def test_no_stage_begins_without_the_model(models, tmp_path, capsys):
    models("de_core_news_sm")
    assert main(["describe", "--work", str(tmp_path), "--engine", "rule_based"]) == 1
    assert f"{SENTENCE} en_core_web_sm" in capsys.readouterr().err
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("corpus: {source: scenes}\ndescribe: {engine: rule_based}\ninstruct: {engine: rule_based}\n")
    assert main(["run", str(recipe), "--work", str(tmp_path / "work")]) == 1
    assert f"{SENTENCE} en_core_web_sm" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
