"""Whether a server (vLLM, TEI, any of OpenAI's form) gives the embeddings that the model gives here, and where not.

Twenty inputs are embedded on both sides. Where they differ, each known difference is computed with our own weights,
and the one that gives the server's embedding is named. What surprises: a server may be wrong for queries alone, since
only those have an instruction, so half of the inputs are queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.parity_client import Received, Sent, image_url, request_embeddings
from megapairs_hf.evaluation.parity_variants import POOLING, Variants

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.evaluation.parity_client import ParityConfig

COUNT = 20
LOOKED_AT = 4  # diverging texts whose other ways are computed
NORM = 1e-2
SIZE = (320, 224)
TEXTS = (
    "a red bicycle leaning against a brick wall",
    "the same room at night",
    "Ein Hund läuft am Strand entlang.",
    "make it blue, and turn it to the left",
    "two people playing chess in a park; one of them is laughing",
    "x",
    "価格は 1,280 円です",
    "A photograph of a harbor at dawn. Small boats lie at the pier, and the water is calm. In the distance are hills.",
    "no trees",
    "  leading and trailing blanks  ",
    "What is the name of the bird?",
    "snow",
    "line one\nline two",
    "the moon over a city, seen from above, in black and white",
    "100% cotton T-shirt with a small logo (front)",
    "cat",
    "🙂 an emoji of a smiling face",
    "replace the car by a bus and keep the street",
    "élan vital",
    "an old map of the world with sea monsters",
)


@dataclass(frozen=True)
class ParityInput:
    """One of the twenty.

    Attributes:
        text: None for an image alone.
        image: a Pillow image; None for a text alone.
        query: whether it is embedded as a query, with the model's instruction.
    """

    text: str | None
    image: Any
    query: bool

    @property
    def kind(self) -> str:
        """`text`, `image` or `joint`."""
        return "text" if self.image is None else "image" if self.text is None else "joint"

    @property
    def value(self) -> Any:
        """As `encode` takes it."""
        parts = {"image": self.image, "text": self.text}
        return self.image if self.text is None else {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True)
class ParityReport:
    """What came out.

    Attributes:
        inputs: what was compared.
        cosines: [20] of the server's embedding with ours.
        norms: [20] of the server's embedding.
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
    ours = _ours(model, inputs)
    received = request_embeddings([_sent(model, one) for one in inputs], config, name)
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
    return ParityReport(tuple(inputs), cosines, norms, tuple(differences))


def parity_inputs(model: Any, text_only: bool) -> list[ParityInput]:
    """Twenty inputs of the kinds that the model takes and a server could."""
    modalities = set(getattr(model[0], "modalities", ("text",)))
    kinds = ["text"]
    if not text_only and "image" in modalities:
        # a server of two towers has no sum of them
        kinds += ["image", "joint"] if _has_template(model) else ["image"]
    queries = bool((model.prompts or {}).get("query"))
    side = getattr(getattr(model, "preparer", None), "side", None)
    inputs = []
    for i in range(COUNT):
        kind = kinds[i % len(kinds)]
        image = None if kind == "text" else _image(i, (side, side) if side else SIZE)
        text = None if kind == "image" else TEXTS[i]
        inputs.append(ParityInput(text, image, queries and i // len(kinds) % 2 == 1))
    return inputs


def _image(seed: int, size: tuple[int, int]) -> Any:
    """A few colored rectangles."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist()))
    for _ in range(5):
        (left, right), (top, bottom) = (sorted(rng.integers(0, side, 2).tolist()) for side in size)
        ImageDraw.Draw(image).rectangle((left, top, right, bottom), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def _has_template(model: Any) -> bool:
    return bool(getattr(model[0].processor, "chat_template", None)) and "message" in set(model[0].modalities)


def _prompt(model: Any, one: ParityInput) -> str | None:
    return ((model.prompts or {}).get("query" if one.query else "document")) or None


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
    prompt = _prompt(model, one)
    parts = [] if one.image is None else [image_url(one.image)]
    parts += [] if one.text is None else [{"type": "text", "text": one.text}]
    if not _has_template(model):
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
        texts = [i for i in apart if inputs[i].kind == "text"]
        return [_of_texts(model, [(inputs[i], received[i]) for i in texts[:LOOKED_AT]], tolerance)]
    if "image" in kinds:
        why = "its image processor sizes or prepares them otherwise (min_pixels, max_pixels, tiles, resampling)"
        return [("images", f"texts agree and images do not: {why}, or its template marks them otherwise")]
    return [("template", "texts and images agree and both together do not: its template puts them in another order")]


def _of_texts(model: Any, rows: Sequence[tuple[ParityInput, Received]], tolerance: float) -> tuple[str, str]:
    """The difference that explains all of these texts, or what is known of it."""
    cosines: dict[tuple[str, str], list[float]] = {}
    counts = []
    for one, answer in rows:
        ways = Variants(model, str(one.text), _prompt(model, one), "query" if one.query else "document")
        counts.append((len(ways.tokens()), answer.tokens))
        lists = [("", "", ways.tokens()), *ways.token_lists()]
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
    other = [pair for pair in known if pair[0] != pair[1]]
    if other:
        return "template", (
            f"it counts {other[0][1]} tokens where the model has {other[0][0]}, by no difference known here {nearest};"
            " compare its chat template and special tokens"
        )
    same = "as many tokens as here, " if known else ""
    return "model", f"{same}no known difference of prompt or pooling {nearest}; compare weights, revision and adapters"
