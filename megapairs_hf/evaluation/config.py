"""Settings of the evaluation: of a held-out corpus, of benchmarks, and of requests; names of strategies."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Any, Literal

from megapairs_hf.annotation.client.endpoint import Endpoint
from megapairs_hf.core.config import RUNTIME_ONLY, require

RERANKER_NAMES = ("yes-no", "listwise")
FUSED, WEIMOCIR, PDV, CIREVL = "fused", "weimocir", "pdv", "CIReVL"
COMPOSED_NAMES = ("image only", "text only", "sum", "product")
NAMES = (FUSED, *COMPOSED_NAMES, f"{WEIMOCIR} A", PDV, CIREVL)
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]


@dataclass(frozen=True)
class RuleConfig:
    """Composed queries from attributes: images that agree in some and differ in one.

    Attributes:
        name: of the rule, in the results.
        same: `meta` columns in which query and target agree.
        change: the `meta` column in which they differ.
        text: what is asked for, with `{value}` for the target's value.
        values: words for the values, where the column's own are not what a person would write; if any are given, only
            rows with one of these values count.
    """

    name: str
    same: tuple[str, ...]
    change: str
    text: str
    values: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        slots = [name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None]
        require(slots == ["value"], "text", self.text, "a text with one {value}")
        require(bool(self.same), "same", list(self.same), "at least one column")


@dataclass(frozen=True)
class EvalConfig:
    """Settings of the evaluation. All defaults are ours; the reference rule of a corpus is CIRR's.

    Attributes:
        name: of a held-out corpus, in the results.
        queries: of a corpus: `edits` reads the columns `edit_of` and `edit` of `meta` (synthetic scenes have them);
            `attributes` derives queries by `rules`.
        rules: for `attributes`.
        remove_reference: whether a corpus query's own image is deleted from its ranking (CIRR does, CIRCO does not).
        max_queries: sample at most so many queries of a corpus; None for all.
        seed: random seed of the sample.
        recall_at: k of the recalls on a corpus.
        map_at: k of the mean average precisions on a corpus.
        strategies: how image and text become a score: `fused` by the model, `image only`, `text only`, `sum`,
            `weimocir A`, `pdv`, `product` (after BASIC, without its projection and expansion), `CIReVL`.
        top: ids of each ranking that are kept; the servers of CIRCO and CIRR take 50.
        limit: the first queries of each benchmark only, which the records call partial; None for all.
        dtype: of the models' weights; `auto` is bfloat16 for language models on CUDA, else as they are stored.
        attn_implementation: of the models; `auto` is the choice of transformers.
        batch_size: images per forward pass; of a language model at most so many.
        max_tokens_per_pass: of a language model, most tokens of a forward pass, with padding and those of images; null
            for its default (16,384).
        rerank: ways to re-rank the first candidates of every strategy, `yes-no` or `listwise`; each gives further
            records beside those of the first ranking.
        rerank_top: how many candidates are re-ranked.
        vlm: the vision language model that re-ranks, and captions for `CIReVL`.
        llm: the language model that edits captions for `CIReVL`; None for `vlm`.
    """

    name: str = "composed"
    queries: Literal["edits", "attributes"] = "edits"
    rules: tuple[RuleConfig, ...] = ()
    remove_reference: bool = True
    max_queries: int | None = None
    seed: int = 0
    recall_at: tuple[int, ...] = (1, 5, 10)
    map_at: tuple[int, ...] = (5,)
    strategies: tuple[str, ...] = ("image only", "text only", FUSED)
    top: int = 10
    limit: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: Attention = "auto"
    batch_size: int = field(default=128, metadata=RUNTIME_ONLY)
    max_tokens_per_pass: int | None = field(default=None, metadata=RUNTIME_ONLY)
    rerank: tuple[str, ...] = ()
    rerank_top: int = 10
    vlm: RequestConfig | None = None
    llm: RequestConfig | None = None

    def __post_init__(self) -> None:
        require(self.queries == "edits" or bool(self.rules), "rules", [], "given for queries 'attributes'")
        require(self.max_queries is None or self.max_queries > 0, "max_queries", self.max_queries, "positive")
        require(all(k > 0 for k in self.recall_at), "recall_at", list(self.recall_at), "positive numbers")
        require(all(k > 0 for k in self.map_at), "map_at", list(self.map_at), "positive numbers")
        known = bool(self.strategies) and all(known_strategy(name) for name in self.strategies)
        require(known, "strategies", list(self.strategies), f"some of {list(NAMES)}")
        require(self.top > 0, "top", self.top, "a positive number")
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive number")
        budget = self.max_tokens_per_pass is None or self.max_tokens_per_pass > 0
        require(budget, "max_tokens_per_pass", self.max_tokens_per_pass, "a positive number of tokens, or null")
        self._check_models()

    def _check_models(self) -> None:
        known = all(name in RERANKER_NAMES for name in self.rerank) and len(set(self.rerank)) == len(self.rerank)
        require(known, "rerank", list(self.rerank), f"some of {list(RERANKER_NAMES)}, each once")
        fits = not self.rerank or 2 <= self.rerank_top <= self.top
        require(fits, "rerank_top", self.rerank_top, f"from 2 to `top` ({self.top})")
        requests = bool(self.rerank) or CIREVL in self.strategies
        require(self.vlm is not None or not requests, "vlm", None, "the model that re-ranks and captions for CIReVL")

    @property
    def loading(self) -> dict[str, Any]:
        """What is asked of how a model is loaded; empty for all defaults."""
        values = {name: getattr(self, name) for name in ("dtype", "attn_implementation", "max_tokens_per_pass")}
        return {name: value for name, value in values.items() if value not in {"auto", None}}

    @property
    def labels(self) -> tuple[str, ...]:
        """What the records call each ranking: the strategies, each also as it is re-ranked."""
        return tuple(label for name in self.strategies for label in (name, *(f"{name}, {how}" for how in self.rerank)))


def benchmark_config(**changes: Any) -> EvalConfig:
    """The settings for the benchmarks of the field: the model's own fusion, rankings as long as the servers take."""
    defaults: dict[str, Any] = {"strategies": (FUSED,), "top": 50}
    return EvalConfig(**(defaults | changes))


@dataclass(frozen=True)
class RequestConfig:
    """Requests to a language model. All defaults are ours.

    Attributes:
        model: what the endpoint calls the model.
        max_new_tokens: tokens of the longest response.
        temperature: of the sampling; 0 for the likeliest words.
        seed: of the sampling.
        max_image_side: images are shrunk to it.
        endpoint: addresses of the servers, and limits.
    """

    model: str
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    max_image_side: int = 448
    endpoint: Endpoint = field(default=Endpoint(), metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        require(bool(self.model.strip()), "model", self.model, "the name by which the endpoint knows the model")
        require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        require(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        require(self.max_image_side >= 28, "max_image_side", self.max_image_side, "at least 28 pixels")


def known_strategy(name: str) -> bool:
    """Whether it is one of `NAMES`, where A is a number from 0 to 1."""
    return name in {FUSED, PDV, CIREVL} or name in COMPOSED_NAMES or alpha_of(name) is not None


def alpha_of(name: str) -> float | None:
    """The weight of the text in `weimocir 0.7`; None for any other name."""
    word, _, number = name.partition(" ")
    try:
        alpha = float(number)
    except ValueError:
        return None
    return alpha if word == WEIMOCIR and 0 <= alpha <= 1 else None
