"""Settings of the two annotation steps (MegaPairs §3.1 and appendix A), and of the check that may follow.

What surprises: the batch size of a model that runs in process is a setting of what, not of how: a sampled reply
depends on which others were sampled with it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from megapairs_hf.annotation.client.budget import Budget
from megapairs_hf.annotation.client.endpoint import Endpoint
from megapairs_hf.annotation.language import LANGUAGES
from megapairs_hf.core.config import RUNTIME_ONLY, require

ENGINES = ("openai", "transformers", "rule_based")
VERIFY_ENGINES = ("openai", "transformers", "clip")
VERIFY_MODEL = "OpenGVLab/InternVL2-26B"
REPLY_FORMATS = ("auto", "list", "json")
DTYPES = ("auto", "bfloat16", "float16", "float32")
STAND_IN = "captions (stand-in, no model)"


@dataclass(frozen=True)
class Local:
    """How `engine: transformers` runs a model in process. All defaults are ours.

    Attributes:
        batch_size: questions that are answered together.
        dtype: of the weights: auto, bfloat16, float16 or float32.
        revision: of the model on the Hub.
        adapter: folder or Hub id of a LoRA adapter to put on the model.
    """

    batch_size: int = 8
    dtype: str = "auto"
    revision: str | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.dtype in DTYPES, "dtype", self.dtype, " or ".join(DTYPES))


@dataclass(frozen=True)
class DescribeConfig:
    """Settings of `describe_pairs`.

    Attributes:
        engine: `openai` for a TGI or OpenAI-compatible endpoint; `transformers` to run the model in process;
            `captions` for the stand-in without a model.
        model: what the endpoint calls the vision-language model; a folder or Hub id in process.
        seed: of everything that is drawn; each pair's own seed is a hash of this and its key.
        word_num: WORD_NUM is drawn between these two, both included.
        max_image_side: longer side in pixels of the images that are sent; ours.
        jpeg_quality: of the images that are sent; ours.
        with_captions: give the two captions to the model as context; ours.
        temperature: of the model's sampling; ours.
        top_p: of the model's sampling; ours.
        max_tokens: longest reply; ours.
        prompt: a jinja file to use instead of the package's `describe.jinja`.
        attributes: `captions` only: fields of the corpus's `meta` column whose differences are told.
        local: how the model runs in process.
        endpoint: where the servers are and how hard they are pressed; changes no result.
        budget: what may be spent; changes no result.
    """

    engine: str = "openai"
    model: str = "OpenGVLab/InternVL2-26B"  # §3.1: "InternVL2-26B and LLaMA3-8B"
    seed: int = 0
    word_num: tuple[int, int] = (60, 100)  # figure 3: "WORD_NUM ranges from 60 to 100"
    max_image_side: int = 768
    jpeg_quality: int = 90
    with_captions: bool = False
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 400
    prompt: str | None = None
    attributes: tuple[str, ...] = ()
    local: Local = Local()
    endpoint: Endpoint = field(default=Endpoint(), metadata=RUNTIME_ONLY)
    budget: Budget = field(default=Budget(), metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        low, high = self.word_num if len(self.word_num) == 2 else (0, 0)
        require(1 <= low <= high, "word_num", self.word_num, "two whole numbers, the smaller first")
        require(self.max_image_side >= 28, "max_image_side", self.max_image_side, "at least 28 pixels")
        require(1 <= self.jpeg_quality <= 100, "jpeg_quality", self.jpeg_quality, "from 1 to 100")
        _check_common(self)


@dataclass(frozen=True)
class InstructConfig:
    """Settings of `instruct_pairs`.

    Attributes:
        engine: `openai` for a TGI or OpenAI-compatible endpoint; `transformers` to run the model in process;
            `captions` for the stand-in without a model.
        model: what the endpoint calls the language model; a folder or Hub id in process.
        seed: of everything that is drawn; each pair's own seed is a hash of this and its key.
        demonstrations: how many demonstrations are drawn for each pair.
        pool: a JSON file to draw them from instead of the package's 50.
        min_instructions: a pair with fewer good ones is left out.
        wanted: how many are asked for; ours, so that some may be rejected.
        min_words: shortest instruction; ours.
        max_words: longest instruction; ours.
        language: of the instructions; a text that is plainly in another one is rejected; ours.
        reply_format: `json` sends a JSON schema as `response_format`; `list` asks for a numbered list; `auto` asks
            each server once whether it keeps to a schema, and takes `json` where all do; ours.
        with_captions: give the two captions to the model as context; ours.
        temperature: of the model's sampling; ours.
        top_p: of the model's sampling; ours.
        max_tokens: longest reply; ours.
        prompt: a jinja file to use instead of the package's `instruct.jinja`.
        attributes: `captions` only: fields of the corpus's `meta` column whose differences are told.
        local: how the model runs in process.
        endpoint: where the servers are and how hard they are pressed; changes no result.
        budget: what may be spent; changes no result.
    """

    engine: str = "openai"
    model: str = "meta-llama/Meta-Llama-3-8B-Instruct"  # §3.1: "InternVL2-26B and LLaMA3-8B"
    seed: int = 0
    demonstrations: int = 5  # figure 4: "five demonstrations are randomly selected from a pool of 50"
    pool: str | None = None
    min_instructions: int = 3  # §3.1: "we create at least three different textual instructions"
    wanted: int = 5
    min_words: int = 2
    max_words: int = 60
    language: str = "en"
    reply_format: str = "auto"
    with_captions: bool = False
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 400
    prompt: str | None = None
    attributes: tuple[str, ...] = ()
    local: Local = Local()
    endpoint: Endpoint = field(default=Endpoint(), metadata=RUNTIME_ONLY)
    budget: Budget = field(default=Budget(), metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        require(self.demonstrations >= 0, "demonstrations", self.demonstrations, "0 or more")
        require(self.min_instructions >= 1, "min_instructions", self.min_instructions, "at least 1")
        require(self.wanted >= self.min_instructions, "wanted", self.wanted, f"at least {self.min_instructions}")
        require(1 <= self.min_words <= self.max_words, "min_words", self.min_words, "from 1 to `max_words`")
        require(self.language in LANGUAGES, "language", self.language, "one of " + ", ".join(LANGUAGES))
        require(self.reply_format in REPLY_FORMATS, "reply_format", self.reply_format, " or ".join(REPLY_FORMATS))
        _check_common(self)


@dataclass(frozen=True)
class VerifyConfig:
    """Settings of `verify_pairs`. All defaults are ours.

    Attributes:
        engine: `openai` for an endpoint; `transformers` for the same in process; `clip` for a CLIP model's scores.
        model: of the endpoint, or a folder or Hub id; for `clip` it must be named, and `./…` is in the work folder.
        seed: of the order of the candidates.
        negatives: how many hard negatives of a pair are held against its target.
        max_image_side: longer side in pixels of the images that are sent.
        jpeg_quality: of the images that are sent.
        prompt: a jinja file to use instead of the package's `verify.jinja`.
        local: how the model runs in process.
        endpoint: where the servers are and how hard they are pressed; changes no result.
        budget: what may be spent; changes no result.
    """

    engine: str = "openai"
    model: str = VERIFY_MODEL
    seed: int = 0
    negatives: int = 5
    max_image_side: int = 512
    jpeg_quality: int = 90
    prompt: str | None = None
    local: Local = Local()
    endpoint: Endpoint = field(default=Endpoint(), metadata=RUNTIME_ONLY)
    budget: Budget = field(default=Budget(), metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        require(self.engine in VERIFY_ENGINES, "engine", self.engine, " or ".join(VERIFY_ENGINES))
        require(bool(self.model.strip()), "model", self.model, "the name by which the endpoint knows the model")
        named = self.engine != "clip" or self.model != VERIFY_MODEL
        require(named, "model", self.model, "a CLIP-like model for engine 'clip', such as ./encoders/clip")
        require(self.negatives >= 1, "negatives", self.negatives, "at least 1")
        require(self.max_image_side >= 28, "max_image_side", self.max_image_side, "at least 28 pixels")
        require(1 <= self.jpeg_quality <= 100, "jpeg_quality", self.jpeg_quality, "from 1 to 100")


def _check_common(config: DescribeConfig | InstructConfig) -> None:
    require(config.engine in ENGINES, "engine", config.engine, " or ".join(ENGINES))
    require(bool(config.model.strip()), "model", config.model, "the name by which the endpoint knows the model")
    require(config.temperature >= 0, "temperature", config.temperature, "0 or more")
    require(0 < config.top_p <= 1, "top_p", config.top_p, "above 0 and at most 1")
    require(config.max_tokens >= 1, "max_tokens", config.max_tokens, "at least 1")
    unused = bool(config.attributes) and config.engine != "rule_based"
    require(not unused, "attributes", config.attributes, "left out unless `engine` is rule_based")


def pair_seed(seed: int, query_id: str, target_id: str, attempt: int = 0) -> int:
    """A pair's own seed, in 31 bits: the same in every process, on every machine, in whatever order pairs are done."""
    text = f"{seed}\0{query_id}\0{target_id}\0{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def pair_key(query_id: str, target_id: str) -> str:
    """How a pair is named in `rejected.parquet`."""
    return f"{query_id} -> {target_id}"
