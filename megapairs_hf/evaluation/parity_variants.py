"""Ways in which a server may embed a text otherwise than we do, each computed with our own weights.

A way that gives the server's embedding is where the two part. What surprises: most differences change two tokens or
none, and still turn the embedding far away, because the last token is pooled: so a near miss says nothing, and only an
equal embedding names the cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

MODES = ("lasttoken", "mean", "cls", "max")
# where servers and models usually cut
MANY = 1 << 20
LIMITS = (32, 64, 77, 128, 256, 384, 512, 1024, 2048)
POOLING = {
    "lasttoken": "the last token",
    "mean": "the mean of all tokens",
    "cls": "the first token",
    "max": "the maximum",
}


class Variants:
    """Other ways to embed a text with a Sentence Transformers model.

    Args:
        model: it; its first module is a `Transformer`.
        text: of the input.
        prompt: of the input, None for none.
        task: `query` or `document`.
        written: the whole text that is sent, its prompt or template with it.
    """

    def __init__(self, model: Any, text: str, prompt: str | None, task: str, written: str = "") -> None:
        self.model, self.text, self.prompt, self.task, self.written = model, text, prompt, task, written
        self.own = self._features(prompt, task)

    def _features(self, prompt: str | None, task: str, text: str | None = None, **options: Any) -> dict[str, Any]:
        value = {"text": self.text if text is None else text}
        return dict(self.model.preprocess([value], prompt=prompt, task=task, **options))

    def tokens(self) -> list[int]:
        """The tokens of the input as we see it."""
        ids: list[int] = self.own["input_ids"][0].tolist()
        return ids

    def token_lists(self) -> Iterator[tuple[str, str, list[int]]]:
        """(where, what the server does, tokens) of every other way to write the input."""
        ids, tokenizer = self.tokens(), self.model.tokenizer
        special = set(tokenizer.all_special_ids)
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        start = tokenizer.cls_token_id if start is None else start
        end = tokenizer.sep_token_id if end is None else end
        yield from self._templates()
        first, last = ids[0] in special, len(ids) > 1 and ids[-1] in special
        where = "special tokens"
        if first:
            yield where, "it leaves the start token out", ids[1:]
            yield where, "it writes the start token twice", [ids[0], *ids]
        elif start is not None:
            yield where, "it writes a start token", [start, *ids]
        if last:
            yield where, "it leaves the end token out", ids[:-1]
            yield where, "it writes the end token twice", [*ids, ids[-1]]
        elif end is not None:
            yield where, "it writes an end token", [*ids, end]
        if first and last:
            yield where, "it leaves start and end token out", ids[1:-1]

    def truncations(self, counted: int | None) -> Iterator[tuple[str, str, list[int]]]:
        """(where, what the server does, tokens) of every other place to cut the text at.

        Args:
            counted: tokens that the server says it had; None where it does not say.
        """
        ours, tokenizer, where = self.tokens(), self.model.tokenizer, "truncation"
        whole = list(tokenizer(self.written, truncation=False, verbose=False)["input_ids"])
        if whole != ours:
            yield where, f"it does not cut a text, which the model cuts to {len(ours)} tokens", whole
        end = whole[-1:] if whole and whole[-1] in set(tokenizer.all_special_ids) else []
        for size in LIMITS if counted is None else (counted,):
            if not len(end) < size < len(whole):
                continue
            what = f"it cuts a text to {size} tokens"
            cuts = [([*whole[: size - len(end)], *end], what), (whole[-size:], f"{what}, from the left")]
            yield from ((where, why, ids) for ids, why in cuts if ids != ours)
            if end and whole[:size] != ours:
                yield where, f"{what}, and the end token with it", whole[:size]

    def _templates(self) -> Iterator[tuple[str, str, list[int]]]:
        tokenizer, where = self.model.tokenizer, "template"
        chat = bool(getattr(self.model[0].processor, "chat_template", None))
        if self.prompt:
            name = "system message" if chat else "prompt"
            yield where, f"it leaves the {name} out", self._ids(self._features(None, "document"))
        if not chat:
            for name, words in (self.model.prompts or {}).items():
                if words:
                    more = self._features(self.prompt, self.task, words + self.text)
                    yield where, f"it puts the prompt {name!r} before what is sent", self._ids(more)
            return
        yield where, "it embeds the bare text, without the chat template", list(tokenizer(self.text)["input_ids"])
        words = (self.prompt or "") + self.text
        if self.prompt:
            yield (
                where,
                "it puts the instruction before the text, without the chat template",
                list(tokenizer(words)["input_ids"]),
            )
        settings = (self.model[0].processing_kwargs or {}).get("chat_template", {})
        ours = bool(settings.get("add_generation_prompt"))
        other = self._features(
            self.prompt, self.task, processing_kwargs={"chat_template": {"add_generation_prompt": not ours}}
        )
        does = "does not write" if ours else "writes"
        yield where, f"it {does} the beginning of an answer (add_generation_prompt)", self._ids(other)

    def positions(self) -> int:
        """How many tokens the model can take at least."""
        config = getattr(getattr(self.model[0], "model", None), "config", None)
        text = config.get_text_config() if config is not None else None
        # RoBERTa's kin begins to count behind the padding token
        return int(getattr(text, "max_position_embeddings", None) or MANY) - 2

    @staticmethod
    def _ids(features: dict[str, Any]) -> list[int]:
        ids: list[int] = features["input_ids"][0].tolist()
        return ids

    def embed(self, ids: list[int]) -> dict[str | None, np.ndarray]:
        """Unit embeddings [D] of these tokens, with the model's own pooling (None) and with every other one."""
        import torch
        from sentence_transformers.sentence_transformer.modules import Pooling

        if not 0 < len(ids) <= max(len(self.tokens()), self.positions()):
            return {}
        tokens = torch.tensor([ids], device=self.model.device)
        features = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "modality": self.own["modality"]}
        results: dict[str | None, np.ndarray] = {}
        with torch.no_grad():
            encoded = self.model[0](dict(features))
            rest = list(self.model)[1:]
            pooled = "token_embeddings" in encoded and any(isinstance(module, Pooling) for module in rest)
            for mode in (None, *(MODES if pooled else ())):
                one = dict(encoded)
                for module in rest:
                    other = mode is not None and isinstance(module, Pooling)
                    part = Pooling(encoded["token_embeddings"].shape[-1], pooling_mode=mode) if other else module
                    one = part(one)
                row = one["sentence_embedding"][0].float().cpu().numpy()
                results[mode] = row / max(float(np.linalg.norm(row)), 1e-12)
        return results
