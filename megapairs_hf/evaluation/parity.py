"""Whether a server (vLLM, TEI, any of OpenAI's form) gives the embeddings that the model gives here, and where not.

Twenty inputs are embedded on both sides. Where they differ, each known difference is computed with our own weights,
and the one that gives the server's embedding is named. What surprises: a server may be wrong for queries alone, since
only those have an instruction, so half of the inputs are queries; and one text is long, to show where texts are cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.parity_client import Received, Sent, image_url, request_embeddings
from megapairs_hf.evaluation.parity_inputs import ParityInput, has_template, parity_inputs, prompt_of
from megapairs_hf.evaluation.parity_variants import POOLING, Variants

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.evaluation.parity_client import ParityConfig

LOOKED_AT = 4  # diverging texts whose other ways are computed
NORM = 1e-2
# cosines that rounding explains: of half precision 0.999 and more, of eight bits some less
ROUNDED = 0.99


@dataclass(frozen=True)
class ParityReport:
    """What came out.

    Attributes:
        inputs: what was compared.
        cosines: of the server's embedding with ours, for each input.
        norms: of the server's embedding.
        differences: (where, what) of each difference; empty where there is none.
    """

    inputs: tuple[ParityInput, ...]
    cosines: tuple[float, ...]
    norms: tuple[float, ...]
    differences: tuple[tuple[str, str], ...]

    def lines(self) -> str:
        """For people."""
        lines = []
        for kind in dict.fromkeys(one.kind for one in self.inputs):
            rows = [i for i, one in enumerate(self.inputs) if one.kind == kind]
            norms = [self.norms[i] for i in rows]
            lines.append(
                f"{kind:5}  {len(rows):2} inputs  least cosine {min(self.cosines[i] for i in rows):.5f}"
                f"  norms {min(norms):.4f} to {max(norms):.4f}"
            )
        lines += [f"{where}: {what}" for where, what in self.differences]
        return "\n".join(lines if self.differences else [*lines, "the server gives the same embeddings"])


def check_parity(model: Any, config: ParityConfig, name: str = "") -> ParityReport:
    """Hold a server's embeddings against the model's.

    Args:
        model: a Sentence Transformers model, such as `load_mmret(…)`; the same that is served.
        config: the server.
        name: of the model on the server, where it lists none.

    Raises:
        EvaluationError: the server cannot be asked.
    """
    inputs = parity_inputs(model, config.inputs == "text")
    answers = request_embeddings([_sent(model, one) for one in inputs], config, name)
    refused = [one for one, answer in zip(inputs, answers, strict=True) if answer is None]
    inputs = [one for one in inputs if one not in refused]
    received = [answer for answer in answers if answer is not None]
    ours = _ours(model, inputs)
    theirs = [one.embedding for one in received]
    norms = tuple(float(np.linalg.norm(row)) for row in theirs)
    widths = {len(row) for row in theirs}
    if len(widths) > 1:
        raise EvaluationError(f"the server's embeddings have {sorted(widths)} numbers; is it one model?")
    width = widths.pop()
    shared = min(width, ours.shape[1])
    cosines = tuple(_cosine(a[:shared], b[:shared]) for a, b in zip(ours, theirs, strict=True))
    differences = _sizes(width, ours, cosines, norms, config.tolerance)
    if width == ours.shape[1]:
        differences += _causes(model, inputs, received, cosines, config.tolerance)
    differences += [_refusal(_variants(model, one)) for one in refused]
    return ParityReport(tuple(inputs), cosines, norms, tuple(differences))


def _variants(model: Any, one: ParityInput) -> Variants:
    task = "query" if one.query else "document"
    return Variants(model, str(one.text), prompt_of(model, one), task, str(_form(model, one).text))


def _refusal(ways: Variants) -> tuple[str, str]:
    count = len(ways.tokens())
    return "truncation", (
        f"it refuses a long text, of which the model takes {count} tokens; raise its limit (max-model-len), or let it"
        " cut (auto-truncate)"
    )


def _ours(model: Any, inputs: Sequence[ParityInput]) -> np.ndarray:
    """Embeddings [20, D] float32, as the model gives them."""
    rows: list[Any] = [None] * len(inputs)
    for query in (False, True):
        for kind in ("text", "image", "joint"):
            mine = [i for i, one in enumerate(inputs) if one.query == query and one.kind == kind]
            if mine:
                encode = model.encode_query if query else model.encode_document
                embeddings = encode([inputs[i].value for i in mine], show_progress_bar=False)
                for i, row in zip(mine, embeddings, strict=True):
                    rows[i] = np.asarray(row, np.float32)
    return np.stack(rows)


def _sent(model: Any, one: ParityInput) -> Sent:
    """The request that should give our embedding."""
    return replace(_form(model, one), long=one.long)


def _form(model: Any, one: ParityInput) -> Sent:
    prompt = prompt_of(model, one)
    parts = [] if one.image is None else [image_url(one.image)]
    parts += [] if one.text is None else [{"type": "text", "text": one.text}]
    if not has_template(model):
        messages = None if one.image is None else [{"role": "user", "content": parts}]
        return Sent(None if one.image is not None else (prompt or "") + str(one.text), messages, {})
    system = [{"role": "system", "content": [{"type": "text", "text": prompt}]}] if prompt else []
    messages = [*system, {"role": "user", "content": parts}]
    options = {
        k: v for k, v in (model[0].processing_kwargs or {}).get("chat_template", {}).items() if k != "restore_suffix"
    }
    text = None
    if one.image is None:
        task = "query" if one.query else "document"
        text = model[0].processor.apply_chat_template(messages, tokenize=False, task=task, **options)
    return Sent(text, messages, options)


def _cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / max(float(np.linalg.norm(left) * np.linalg.norm(right)), 1e-12))


def _sizes(
    width: int, ours: np.ndarray, cosines: Sequence[float], norms: Sequence[float], tolerance: float
) -> list[tuple[str, str]]:
    """Differences in width and length."""
    if width != ours.shape[1]:
        cut = width < ours.shape[1] and min(cosines) >= 1 - tolerance
        if cut:
            return [("dimensions", f"it cuts embeddings to the first {width} of {ours.shape[1]} numbers")]
        return [("model", f"its embeddings have {width} numbers and ours {ours.shape[1]}: it serves another model")]
    own = np.linalg.norm(ours, axis=1)
    if max(abs(np.asarray(norms) - own) / np.maximum(own, 1e-12)) <= NORM:
        return []
    ours_unit, theirs_unit = (max(abs(np.asarray(values) - 1)) <= NORM for values in (own, norms))
    if ours_unit and not theirs_unit:
        return [
            ("normalization", "its embeddings are not of unit length, as ours are; scale them, or let it normalize")
        ]
    if theirs_unit and not ours_unit:
        return [("normalization", "its embeddings are of unit length, which ours are not")]
    return [("normalization", "the lengths of its embeddings are not those of ours")]


def _causes(
    model: Any, inputs: Sequence[ParityInput], received: Sequence[Received], cosines: Sequence[float], tolerance: float
) -> list[tuple[str, str]]:
    """Where the embeddings part, in their direction."""
    apart = [i for i, cosine in enumerate(cosines) if cosine < 1 - tolerance]
    kinds = {inputs[i].kind for i in apart}
    if not apart:
        return []
    if "text" in kinds:
        texts = sorted((i for i in apart if inputs[i].kind == "text"), key=lambda i: len(str(inputs[i].text)))
        rows = [(inputs[i], received[i]) for i in texts[:LOOKED_AT]]
        return [_of_texts(model, rows, tolerance, min(cosines))]
    if "image" in kinds:
        first = next(i for i in apart if inputs[i].kind == "image")
        return [("images", f"texts agree and images do not: {_of_images(model, inputs[first], received[first])}")]
    return [("template", "texts and images agree and both together do not: its template puts them in another order")]


def _of_images(model: Any, one: ParityInput, answer: Received) -> str:
    """What the number of tokens tells of an image's size."""
    task = "query" if one.query else "document"
    features = model.preprocess([one.value], prompt=prompt_of(model, one), task=task) if has_template(model) else {}
    count = features["input_ids"].shape[1] if "input_ids" in features else None
    if None in (count, answer.tokens):
        why = "sizes or prepares them otherwise (min_pixels, max_pixels, tiles, resampling)"
        return f"its image processor {why}, or its template marks them otherwise"
    if count != answer.tokens:
        why = "compare min_pixels, max_pixels and tiles, then the template's marks of an image"
        return f"it has {answer.tokens} tokens for one where the model has {count}: it resizes them otherwise; {why}"
    why = "compare resampling, mean and standard deviation"
    return f"as many tokens as here, so sizes agree and pixels do not: {why}"


def _of_texts(
    model: Any, rows: Sequence[tuple[ParityInput, Received]], tolerance: float, least: float
) -> tuple[str, str]:
    """The difference that explains all of these texts, or what is known of it."""
    cosines: dict[tuple[str, str], list[float]] = {}
    counts = []
    for one, answer in rows:
        ways = _variants(model, one)
        counts.append((len(ways.tokens()), answer.tokens))
        lists = [("", "", ways.tokens()), *ways.token_lists(), *ways.truncations(answer.tokens)]
        for where, what, ids in lists:
            for mode, row in ways.embed(ids).items():
                pooled = "" if mode is None else f"it pools {POOLING[mode]}"
                key = (
                    " and ".join(filter(None, (where, "pooling" if mode else ""))),
                    "; ".join(filter(None, (what, pooled))),
                )
                cosines.setdefault(key, []).append(_cosine(row, answer.embedding))
    complete = {key: min(values) for key, values in cosines.items() if len(values) == len(rows) and key[0]}
    explaining = [key for key, cosine in complete.items() if cosine >= 1 - tolerance]
    if explaining:
        # of two that explain it, the simpler
        return min(explaining, key=lambda key: (key[0].count(" and "), -complete[key]))
    best = max(complete, key=lambda key: complete[key])
    nearest = f"(nearest: {best[1]}, cosine {complete[best]:.3f})"
    known = [(ours, theirs) for ours, theirs in counts if theirs is not None]
    if all(one.long for one, _ in rows):
        tokens = f" ({known[0][1]} tokens, and {known[0][0]} here)" if known else ""
        return "truncation", f"only the long text differs{tokens}: one of both cuts it, or cuts it elsewhere"
    other = [pair for pair in known if pair[0] != pair[1]]
    if other:
        return "template", (
            f"it counts {other[0][1]} tokens where the model has {other[0][0]}, by no difference known here {nearest};"
            " compare its chat template and special tokens"
        )
    if least >= ROUNDED:
        why = "as other arithmetic gives (dtype, quantization, attention); compare with its `--dtype`, or raise"
        return "precision", f"every cosine is {least:.5f} or more, {why} `--tolerance`"
    same = "as many tokens as here, " if known else ""
    return "model", f"{same}no known difference of prompt or pooling {nearest}; compare weights, revision and adapters"
