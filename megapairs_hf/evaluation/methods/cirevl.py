"""CIReVL (arXiv:2310.09291): caption the reference image, let a language model edit the caption, search by text.

What surprises: the language model never sees an image, and the retriever never sees the reference. A query whose
responses are no use is searched by its own text, as `text only` does, and counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.methods.vlm_client import image_part, request_all, text_part, usable

if TYPE_CHECKING:
    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
    from megapairs_hf.evaluation.config import RequestConfig

DESCRIBE = "Describe this image in one sentence. Reply with the sentence only."
# after the prompt in CIReVL's appendix, in our words
COMPOSE = (
    "An image shows: {caption}\nIt is to be changed like this: {text}\n"
    "Describe the changed image in one short sentence. Name only what is in it, not what was changed or removed."
    " Reply with one line that begins with `Edited description:`."
)
EDITED = re.compile(r"^edited description:\s*(\S.*)$", re.IGNORECASE | re.MULTILINE)
LONGEST = 400


@dataclass(frozen=True)
class Composed:
    """Captions of composed queries.

    Attributes:
        captions: of the reference image, one per query; empty where the response was no use.
        texts: of the changed image; the query's own text where a response was no use.
        unusable: queries with such a response.
    """

    captions: list[str]
    texts: list[str]
    unusable: int


def caption_then_compose(benchmark: Benchmark, captioner: RequestConfig, composer: RequestConfig) -> Composed:
    """Caption each distinct reference once, and edit the captions.

    Args:
        benchmark: queries with images.
        captioner: a vision language model.
        composer: a language model; may be the same.

    Returns:
        Texts to search by, and captions, from which `zero_shot.pdv` takes its base.

    Raises:
        EvaluationError: a query has no image.
        ServerUnavailableError: an endpoint fails everything.
    """
    names = list(dict.fromkeys(query.input.image for query in benchmark.queries))
    if None in names:
        raise EvaluationError(f"{benchmark.name} has queries without an image, so there is nothing to caption")
    responses = request_all([_describe(benchmark, str(name), captioner) for name in names], captioner)
    captions = {name: parse_caption(response) for name, response in zip(names, responses, strict=True)}
    captioned = [query for query in benchmark.queries if captions[query.input.image]]
    edits = request_all([_compose(query, captions[query.input.image]) for query in captioned], composer)
    edited = {query.key: parse_edited(response) for query, response in zip(captioned, edits, strict=True)}
    return Composed(
        [captions[query.input.image] for query in benchmark.queries],
        [edited.get(query.key) or words_of(query) for query in benchmark.queries],
        sum(not edited.get(query.key) for query in benchmark.queries),
    )


def words_of(query: Query) -> str:
    """The benchmark's own words, before any prompt."""
    return query.caption or query.input.text or ""


def _describe(benchmark: Benchmark, name: str, config: RequestConfig) -> Any:
    return lambda: [image_part(benchmark.image(name), config.max_image_side), text_part(DESCRIBE)]


def _compose(query: Query, caption: str) -> Any:
    return lambda: [text_part(COMPOSE.format(caption=caption, text=words_of(query)))]


def parse_caption(response: Response) -> str:
    """A caption of one line; empty where the response is something else."""
    text = response.text.strip()
    return text if usable(response) and "\n" not in text and len(text) <= LONGEST else ""


def parse_edited(response: Response) -> str:
    """The one line that begins as the prompt says; empty where there is none, or several."""
    lines = EDITED.findall(response.text) if usable(response) else []
    return lines[0].strip() if len(lines) == 1 and len(lines[0]) <= LONGEST else ""
