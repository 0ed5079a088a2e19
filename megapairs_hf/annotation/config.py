"""Settings of the two annotation steps (MegaPairs §3.1 and appendix A), of captions, and of the check that may follow.

What surprises: the batch size of local inference is part of the hash: a sampled response depends on which others were
sampled with it.
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
JUDGMENTS = ("pairwise", "pointwise")
CAPTION_ENGINES = ("openai", "transformers")
VERIFY_MODEL = "OpenGVLab/InternVL2-26B"
EDITS = ("captions", "attributes")
RESPONSE_FORMATS = ("list", "json")
DTYPES = ("auto", "bfloat16", "float16", "float32")
RULE_BASED = "rule-based (no model)"


@dataclass(frozen=True)
class Local:
    """Local inference: how `engine: transformers` runs a model. All defaults are ours.

    Attributes:
        batch_size: requests that are sampled together.
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
class CaptionConfig:
    """Settings of `caption_images`. All defaults are ours.

    Attributes:
        engine: `openai` for TGI and OpenAI-compatible servers; `transformers` for local inference.
        model: the vision-language model, as the servers name it; for local inference a folder or Hub id.
        seed: random seed; each image's own seed is a hash of this and its content.
        max_words: the longest caption that the prompt asks for.
        max_image_side: longer side in pixels of the images that are sent.
        temperature: sampling temperature.
        top_p: nucleus sampling.
        max_new_tokens: most tokens of a response.
        prompt: a jinja file to use instead of the package's `caption.jinja`.
        local: local inference.
        endpoint: the servers, and the limits of requests to them; changes no result.
        budget: what the artifact may cost; changes no result.
    """

    engine: str = "openai"
    model: str = VERIFY_MODEL
    seed: int = 0
    max_words: int = 30
    max_image_side: int = 768
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 120
    prompt: str | None = None
    local: Local = Local()
    endpoint: Endpoint = field(default=Endpoint(), metadata=RUNTIME_ONLY)
    budget: Budget = field(default=Budget(), metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        require(self.engine in CAPTION_ENGINES, "engine", self.engine, " or ".join(CAPTION_ENGINES))
        require(self.max_words >= 1, "max_words", self.max_words, "at least 1")
        require(self.max_image_side >= 28, "max_image_side", self.max_image_side, "at least 28 pixels")
        _check_sampling(self)


@dataclass(frozen=True)
class DescribeConfig:
    """Settings of `describe_pairs`.

    Attributes:
        engine: `openai` for TGI and OpenAI-compatible servers; `transformers` for local inference; `rule_based` for
            texts made of the two captions, without a model.
        model: the vision-language model, as the servers name it; for local inference a folder or Hub id.
        seed: random seed; each pair's own seed is a hash of this and its key.
        word_num: WORD_NUM is sampled between these two, both included.
        max_image_side: longer side in pixels of the images that are sent; ours.
        temperature: sampling temperature; ours.
        top_p: nucleus sampling; ours.
        max_new_tokens: most tokens of a response; ours.
        prompt: a jinja file to use instead of the package's `describe.jinja`.
        edits: `rule_based` only: `captions`, or `attributes` to write from metadata alone, which is exact. `instruct`
            takes what `describe` was given where it has no setting of its own, and so for the next two.
        attributes: `rule_based` only: fields of the images' `meta`, or columns of theirs, whose differences go into
            the text; with a label, `{main_color: color}`, where the name is no word; the label `noun` says what the
            thing is.
        parser: `rule_based` only: the model of spaCy that parses captions, or `none` for rules without a parse.
        local: local inference.
        endpoint: the servers, and the limits of requests to them; changes no result.
        budget: what the artifact may cost; changes no result.
    """

    engine: str = "openai"
    model: str = "OpenGVLab/InternVL2-26B"  # §3.1: "InternVL2-26B and LLaMA3-8B"
    seed: int = 0
    word_num: tuple[int, int] = (60, 100)  # figure 3: "WORD_NUM ranges from 60 to 100"
    max_image_side: int = 768
    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 400
    prompt: str | None = None
    edits: str = "captions"
    attributes: tuple[str | dict[str, str], ...] = ()
    parser: str = "en_core_web_sm"
    local: Local = Local()
    endpoint: Endpoint = field(default=Endpoint(), metadata=RUNTIME_ONLY)
    budget: Budget = field(default=Budget(), metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        low, high = self.word_num if len(self.word_num) == 2 else (0, 0)
        require(1 <= low <= high, "word_num", self.word_num, "two whole numbers, the smaller first")
        require(self.max_image_side >= 28, "max_image_side", self.max_image_side, "at least 28 pixels")
        _check_common(self)


@dataclass(frozen=True)
class InstructConfig:
    """Settings of `instruct_pairs`.

    Attributes:
        engine: `openai` for TGI and OpenAI-compatible servers; `transformers` for local inference; `rule_based` for
            texts made of the two captions, without a model.
        model: the language model, as the servers name it; for local inference a folder or Hub id.
        seed: random seed; each pair's own seed is a hash of this and its key.
        num_few_shot: how many few-shot examples are sampled for each pair.
        few_shot_file: a JSON file to sample them from instead of the package's 50.
        min_instructions: a pair with fewer good ones is rejected.
        num_instructions: how many the prompt asks for; ours, so that some may be rejected.
        min_words: shortest instruction; ours.
        max_words: longest instruction; ours.
        language: of the instructions; a text that is plainly in another one is rejected; ours.
        response_format: `list` for a numbered list; `json` for a JSON object by a schema, where the server takes one;
            ours.
        temperature: sampling temperature; ours.
        top_p: nucleus sampling; ours.
        max_new_tokens: most tokens of a response; ours.
        prompt: a jinja file to use instead of the package's `instruct.jinja`.
        edits: `rule_based` only: `captions`, or `attributes` to write from metadata alone, which is exact. `instruct`
            takes what `describe` was given where it has no setting of its own, and so for the next two.
        attributes: `rule_based` only: fields of the images' `meta`, or columns of theirs, whose differences go into
            the text; with a label, `{main_color: color}`, where the name is no word; the label `noun` says what the
            thing is.
        parser: `rule_based` only: the model of spaCy that parses captions, or `none` for rules without a parse.
        local: local inference.
        endpoint: the servers, and the limits of requests to them; changes no result.
        budget: what the artifact may cost; changes no result.
    """

    engine: str = "openai"
    model: str = "meta-llama/Meta-Llama-3-8B-Instruct"  # §3.1: "InternVL2-26B and LLaMA3-8B"
    seed: int = 0
    num_few_shot: int = 5  # figure 4: "five demonstrations are randomly selected from a pool of 50"
    few_shot_file: str | None = None
    min_instructions: int = 3  # §3.1: "we create at least three different textual instructions"
    num_instructions: int = 5
    min_words: int = 2
    max_words: int = 60
    language: str = "en"
    response_format: str = "list"
    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 400
    prompt: str | None = None
    edits: str = "captions"
    attributes: tuple[str | dict[str, str], ...] = ()
    parser: str = "en_core_web_sm"
    local: Local = Local()
    endpoint: Endpoint = field(default=Endpoint(), metadata=RUNTIME_ONLY)
    budget: Budget = field(default=Budget(), metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        require(self.num_few_shot >= 0, "num_few_shot", self.num_few_shot, "0 or more")
        require(self.min_instructions >= 1, "min_instructions", self.min_instructions, "at least 1")
        enough = self.num_instructions >= self.min_instructions
        require(enough, "num_instructions", self.num_instructions, f"at least {self.min_instructions}")
        require(1 <= self.min_words <= self.max_words, "min_words", self.min_words, "from 1 to `max_words`")
        english = self.language == "en" or self.engine != "rule_based"
        require(english, "language", self.language, "en for engine rule_based, which writes English; take a model")
        require(self.language in LANGUAGES, "language", self.language, "one of " + ", ".join(LANGUAGES))
        require(
            self.response_format in RESPONSE_FORMATS,
            "response_format",
            self.response_format,
            " or ".join(RESPONSE_FORMATS),
        )
        _check_common(self)


@dataclass(frozen=True)
class VerifyConfig:
    """Settings of `verify_pairs`. All defaults are ours.

    Attributes:
        engine: `openai` for servers; `transformers` for local inference; `clip` for a CLIP model's scores.
        model: as the servers name it, or a folder or Hub id; for `clip` it must be set; `./…` is in the work folder.
        seed: random seed of the order of the candidates.
        judgment: what a model judges: `pairwise`, whether the target fits better than a hard negative; `pointwise`,
            how well each candidate fits by itself, a score from 0 to 1 that training can learn from: the probability
            of yes where the server says it, else a rating of 1 to 5. A CLIP model scores each candidate either way.
        negatives: how many hard negatives of a pair are compared with its target.
        max_image_side: longer side in pixels of the images that are sent.
        prompt: a jinja file to use instead of the package's `verify.jinja`, for `pointwise` `verify_candidate.jinja`.
        local: local inference.
        endpoint: the servers, and the limits of requests to them; changes no result.
        budget: what the artifact may cost; changes no result.
    """

    engine: str = "openai"
    model: str = VERIFY_MODEL
    seed: int = 0
    judgment: str = "pairwise"
    negatives: int = 5
    max_image_side: int = 512
    prompt: str | None = None
    local: Local = Local()
    endpoint: Endpoint = field(default=Endpoint(), metadata=RUNTIME_ONLY)
    budget: Budget = field(default=Budget(), metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        require(self.engine in VERIFY_ENGINES, "engine", self.engine, " or ".join(VERIFY_ENGINES))
        require(bool(self.model.strip()), "model", self.model, "the name that the servers have for the model")
        chosen = self.engine != "clip" or self.model != VERIFY_MODEL
        require(chosen, "model", self.model, "a CLIP-like model for engine 'clip', such as ./encoders/clip")
        require(self.judgment in JUDGMENTS, "judgment", self.judgment, " or ".join(JUDGMENTS))
        by_model = self.engine != "clip" or self.judgment == "pairwise"
        require(by_model, "judgment", self.judgment, "left out for engine 'clip', which scores each candidate anyway")
        require(self.negatives >= 1, "negatives", self.negatives, "at least 1")
        require(self.max_image_side >= 28, "max_image_side", self.max_image_side, "at least 28 pixels")


def _check_common(config: DescribeConfig | InstructConfig) -> None:
    require(config.engine in ENGINES, "engine", config.engine, " or ".join(ENGINES))
    _check_sampling(config)
    by_rules = config.engine == "rule_based"
    require(
        by_rules or not config.attributes, "attributes", config.attributes, "left out unless `engine` is rule_based"
    )
    require(config.edits in EDITS, "edits", config.edits, " or ".join(EDITS))
    alone = config.edits == "attributes"
    require(by_rules or not alone, "edits", config.edits, "captions unless `engine` is rule_based")
    require(bool(config.attributes) or not alone, "attributes", config.attributes, "the fields that `edits` is about")
    require(bool(config.parser.strip()), "parser", config.parser, "the name of a model of spaCy, or none")


def _check_sampling(config: CaptionConfig | DescribeConfig | InstructConfig) -> None:
    require(bool(config.model.strip()), "model", config.model, "the name that the servers have for the model")
    require(config.temperature >= 0, "temperature", config.temperature, "0 or more")
    require(0 < config.top_p <= 1, "top_p", config.top_p, "above 0 and at most 1")
    require(config.max_new_tokens >= 1, "max_new_tokens", config.max_new_tokens, "at least 1")


def pair_seed(seed: int, query_id: str, target_id: str, attempt: int = 0) -> int:
    """A pair's own seed, in 31 bits: the same in every process, on every machine, in whatever order of the pairs."""
    text = f"{seed}\0{query_id}\0{target_id}\0{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def pair_key(query_id: str, target_id: str) -> str:
    """The key of a pair in `rejected.parquet`."""
    return f"{query_id} -> {target_id}"
