"""Which parser reads the captions, and the memory of what it read.

What surprises: a base without spaCy works by the auxiliary rule and says so; where spaCy is there, a model that is not
is an error, since what is written must not depend on an oversight. A re-upload of the model under a longer name
(`en_core_web_sm_…`) is the model.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.rule_based.auxiliary import parse_by_auxiliary
from megapairs_hf.core.dependencies import installed, require
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megapairs_hf.annotation.rule_based.slots import ParsedCaption

DEFAULT, NO_PARSER = "en_core_web_sm", "none"
MAX_CAPTIONS = 200_000


@lru_cache(maxsize=8)
def find_parser(name: str) -> str:
    """The installed model for a setting, with its version; empty for the auxiliary rule.

    Args:
        name: `parser` of the settings.

    Raises:
        ConfigError: spaCy has no such model.
        MissingDependencyError: spaCy is not installed, and another model than the default is asked for.
    """
    if name == NO_PARSER:
        return ""
    if name == DEFAULT and not installed("spacy"):
        note(
            "spaCy is not installed, so captions are read by the auxiliary rule, which understands fewer of them;"
            f" pip install 'megapairs-hf[captions]' and python -m spacy download {DEFAULT}, or set `parser: none`"
        )
        return ""
    require("captions", f"`parser: {name}`")
    from spacy import util

    models = util.get_installed_models()
    chosen = name if name in models else next((each for each in sorted(models) if each.startswith(f"{name}_")), None)
    if chosen is None and _is_folder(name):
        chosen = name
    if chosen is None:
        known = f"; installed: {', '.join(models)}" if models else ""
        raise ConfigError(
            f"spaCy has no model {name!r} here{known}; get it with `python -m spacy download {name}`, name another one"
            " as `parser`, or set `parser: none` for rules without a parse"
        )
    return chosen


def _is_folder(name: str) -> bool:
    from pathlib import Path

    return (Path(name) / "meta.json").is_file()


def parser_version(name: str) -> str:
    """What decides how captions are read: the model and its version, or the rule."""
    chosen = find_parser(name)
    if not chosen:
        return "auxiliary rule"
    from spacy import util

    meta = util.get_model_meta(chosen) if _is_folder(chosen) else util.get_package_path(chosen)
    version = meta["version"] if isinstance(meta, dict) else _package_version(chosen)
    return f"{chosen} {version}"


def _package_version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


class CaptionReader:
    """Captions in slots, each read once.

    Args:
        model: of spaCy; empty for the auxiliary rule.
    """

    def __init__(self, model: str) -> None:
        self.nlp: Any = None
        self.scenes: dict[str, ParsedCaption | None] = {}
        if model:
            self.nlp = _load(model)

    def read(self, captions: Iterable[str]) -> dict[str, ParsedCaption | None]:
        """The slots of each caption; None where they cannot be told."""
        texts = dict.fromkeys(captions)
        new = [text for text in texts if text not in self.scenes]
        if len(self.scenes) + len(new) > MAX_CAPTIONS:
            self.scenes, new = {}, list(texts)
        if self.nlp is None:
            self.scenes |= {text: parse_by_auxiliary(text) for text in new}
        elif new:
            from megapairs_hf.annotation.rule_based.parse import read_all

            self.scenes |= read_all(self.nlp, new)
        return {text: self.scenes[text] for text in texts}


@lru_cache(maxsize=2)
def caption_reader(name: str) -> CaptionReader:
    """The reader for a setting; loaded once per process."""
    return CaptionReader(find_parser(name))


def _load(model: str) -> Any:
    import spacy

    try:
        # names of people and firms are no slot
        nlp = spacy.load(model, exclude=["ner"])
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"spaCy cannot load {model!r}: {' '.join(str(error).split())[:200]}; install it again"
        ) from error
    if nlp.lang != "en":
        raise ConfigError(
            f"`parser` {model!r} is for {nlp.lang!r}, and the rules write English; name an English model"
        )
    lacking = [pipe for pipe in ("tagger", "parser", "lemmatizer") if pipe not in nlp.pipe_names]
    if lacking:
        raise ConfigError(
            f"`parser` {model!r} has no {lacking[0]}; name a model with a tagger, a parser and a lemmatizer"
        )
    return nlp
