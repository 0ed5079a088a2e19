"""The class that `load_mmret` returns: a SentenceTransformer that takes lists of texts, images and both, mixed.

Inside, a list is sorted into texts, images and joint inputs, each group goes through the stock `encode` in full
batches, and the order is restored. Images are decoded in threads while the model works on those before. What
surprises: nothing of this is saved. The folder is that of a plain SentenceTransformer, which knows nothing of us.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.util import quantize_embeddings

from megapairs_hf.core.errors import ModelError
from megapairs_hf.core.progress import STDERR
from megapairs_hf.models.inputs import KINDS, describe_mistake, mistaken_path, read_input, refuse_pair
from megapairs_hf.models.mllm import MllmProcessor
from megapairs_hf.models.processor import DualProcessor, Prepared, Processor
from megapairs_hf.models.strict_loading import CheckedTransformer
from megapairs_hf.models.token_passes import token_passes
from megapairs_hf.models.weighted_fusion import check_fusion, joined, parted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megapairs_hf.core.inputs import Input

LOG = logging.getLogger(__name__)
WINDOW = 4


class MMRet(SentenceTransformer):
    """A retriever for texts, images, and both together.

    Attributes:
        preparer: turns inputs into the model's features.
        max_tokens_per_pass: of a language model, most tokens of a forward pass, padding and those of images counted,
            however large `batch_size` is; a longer input is alone in its pass. None for no such limit.
        warned_of_path: whether a text that looks like a path was warned of.
    """

    preparer: Processor
    max_tokens_per_pass: int | None = None
    warned_of_path = False

    def _load_module_class_from_ref(self, class_ref: str, *arguments: Any, **settings: Any) -> Any:
        module_class = super()._load_module_class_from_ref(class_ref, *arguments, **settings)
        # old folders name a subclass, which differs only in what it guesses of the model
        return CheckedTransformer if issubclass(module_class, Transformer) else module_class

    def _post_init(self) -> None:
        super()._post_init()
        if isinstance(self[0], CheckedTransformer):
            self[0].stock()

    def encode(  # type: ignore[override]
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        strict: bool = False,
        fusion_weight: float | None = None,
        **settings: Any,
    ) -> Any:
        """Embeddings of texts, images and joint inputs in any order.

        Args:
            inputs: one input or a list of them: a text, an image (path, bytes, data URI, Pillow, array, tensor, a
                data set's cell), or a dict with `text`, `image` or both.
            prompt_name: name of a prompt of the model.
            prompt: a prompt; put before the texts of a dual encoder, the instruction of a multimodal language model.
            batch_size: inputs per forward pass; of a language model at most so many (`max_tokens_per_pass`).
            show_progress_bar: whether to show one.
            output_value: as in Sentence Transformers.
            precision: `float32`, or as in Sentence Transformers' quantization.
            convert_to_numpy: whether the result is an array.
            convert_to_tensor: whether the result is a tensor.
            strict: refuse a text that looks like the path of an image; otherwise the first is warned of.
            fusion_weight: of the image against the text of a joint input, 0 to 1; None is the plain sum of a dual
                encoder's towers, as published scores are.
            settings: everything else that `SentenceTransformer.encode` takes.

        Returns:
            [N, D] as array (float32, whatever the weights are in) or tensor, [D] for a single input, [0, D] for none.

        Raises:
            ModelError: an input is nothing that the model takes.
        """
        refuse_pair(inputs)
        single = self.is_singular_input(inputs)
        items = self._read([inputs] if single else list(inputs), strict)
        embeddings = output_value == "sentence_embedding"
        if fusion_weight is not None:
            check_fusion(fusion_weight, dual=isinstance(self.preparer, DualProcessor), embeddings=embeddings)
            items, parts = parted(items)
        common = {"prompt_name": prompt_name, "prompt": prompt, "batch_size": batch_size, "output_value": output_value}
        common |= {"convert_to_tensor": embeddings, "convert_to_numpy": False, "show_progress_bar": False, **settings}
        results: list[Any] = [None] * len(items)
        for rows, some in self._groups(items, batch_size, show_progress_bar, settings):
            for chosen in self._passes(some, prompt_name, prompt, settings):
                embedded = super().encode([some[i] for i in chosen], **common)
                for i, embedding in zip(chosen, embedded, strict=True):
                    results[rows[i]] = embedding
        if not embeddings:
            return results[0] if single else results
        if fusion_weight is not None:
            results = joined(results, parts, fusion_weight)
        return self._results(results, single, precision, convert_to_tensor, convert_to_numpy, settings)

    def _read(self, values: Sequence[Any], strict: bool) -> list[Input]:
        """The inputs; of a text that looks like the path of an image it warns once, or refuses it."""
        items = [read_input(value, i) for i, value in enumerate(values)]
        for i, (value, item) in enumerate(zip(values, items, strict=True)):
            if self.warned_of_path and not strict:
                break
            if mistaken_path(value, item):
                if strict:
                    raise ModelError(describe_mistake(value, i))
                LOG.warning("%s; further ones are not logged", describe_mistake(value, i))
                self.warned_of_path = True
        return items

    def _results(
        self, rows: list[Any], single: bool, precision: str, as_tensor: bool, as_array: bool, settings: dict[str, Any]
    ) -> Any:
        """The embeddings in the requested form."""
        if rows:
            embeddings = torch.stack(rows)
        else:
            width = settings.get("truncate_dim") or self.truncate_dim or self.get_embedding_dimension()
            embeddings = torch.zeros((0, int(width or 0)), device=self.device)
        if precision != "float32":
            # of all rows at once, because the eight-bit form is measured on them; of none, for width and type alone
            floats = embeddings.float().cpu().numpy() if rows else np.zeros((1, embeddings.shape[1]), np.float32)
            ranges = None if rows else np.array([[-1.0], [1.0]]).repeat(embeddings.shape[1], 1)
            embeddings = torch.from_numpy(quantize_embeddings(floats, precision, ranges=ranges)[: len(rows)])
        if as_tensor or not as_array:
            result: Any = embeddings if as_tensor else list(embeddings)
        else:
            # numpy has no bfloat16, and both halves are given alike
            result = (
                (embeddings.float() if embeddings.dtype in {torch.bfloat16, torch.float16} else embeddings)
                .cpu()
                .numpy()
            )
        return result[0] if single else result

    def _groups(
        self, items: Sequence[Input], batch_size: int, shown: bool | None, settings: dict[str, Any]
    ) -> Iterator[tuple[list[int], list[Any]]]:
        """Rows and prepared inputs of one kind, a few batches at a time; the next are prepared meanwhile."""
        from tqdm.auto import tqdm

        groups = [[row for row, one in enumerate(items) if one.kind == kind] for kind in KINDS]
        parted = settings.get("pool") is not None or isinstance(settings.get("device"), list)
        # other processes prepare for themselves, so they get whole groups
        size = len(items) if parted else WINDOW * batch_size
        windows = [rows[i : i + size] for rows in groups for i in range(0, len(rows), max(1, size))]
        with (
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
            tqdm(total=len(items), unit="inputs", disable=not shown, file=STDERR) as bar,
        ):

            def submit(rows: list[int]) -> list[Any]:
                if parted:
                    return [raw(items[row]) for row in rows]
                return [pool.submit(self.preparer.one, items[row], row) for row in rows]

            ahead = submit(windows[0]) if windows else []
            try:
                for i, rows in enumerate(windows):
                    current, ahead = ahead, submit(windows[i + 1]) if i + 1 < len(windows) else []
                    yield rows, [one.result() if isinstance(one, Future) else one for one in current]
                    bar.update(len(rows))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _passes(
        self, some: Sequence[Any], prompt_name: str | None, prompt: str | None, settings: dict[str, Any]
    ) -> Iterator[list[int]]:
        """Numbers of the inputs of each call of the stock `encode`, of a language model within its tokens."""
        # other processes get whole groups, unprepared
        if self.max_tokens_per_pass is None or not all(isinstance(one, Prepared) for one in some):
            yield list(range(len(some)))
            return
        assert isinstance(self.preparer, MllmProcessor)
        prompt = (self.prompts or {}).get(prompt_name or self.default_prompt_name or "") if prompt is None else prompt
        task = {name: settings[name] for name in ("task",) if name in settings}
        stock = super().preprocess
        lengths = [self.preparer.tokens(one, prompt, stock, task) for one in some]
        order = sorted(range(len(some)), key=lengths.__getitem__, reverse=True)
        for part in token_passes([lengths[i] for i in order], self.max_tokens_per_pass):
            yield order[part]

    def preprocess(self, inputs: Any, prompt: str | None = None, **settings: Any) -> dict[str, Any]:
        """Features of a batch of one kind, or of any mix for a multimodal language model.

        Args:
            inputs: as in `encode`.
            prompt: as in `encode`.
            settings: as in Sentence Transformers.

        Raises:
            ModelError: an input is nothing that the model takes.
        """
        if not inputs:
            return {}
        ready = [
            one if isinstance(one, Prepared) else self.preparer.one(read_input(one, i), i)
            for i, one in enumerate(inputs)
        ]
        return self.preparer.features(ready, prompt, super().preprocess, settings)

    @staticmethod
    def _input_length(sample: Any) -> int:
        # by the length of the text; the size of an image says nothing about its tokens
        return (
            len(sample.get("text") or "")
            if isinstance(sample, Prepared)
            else SentenceTransformer._input_length(sample)
        )

    def save(self, path: str, model_name: str | None = None, create_model_card: bool = False, **settings: Any) -> None:
        """Save a plain Sentence Transformers folder that loads with and without this package.

        Args:
            path: the folder.
            model_name: for the card.
            create_model_card: whether Sentence Transformers writes its card, which copies training images into
                itself and fails on joint inputs.
            settings: as in Sentence Transformers.
        """
        super().save(str(path), model_name, create_model_card, **settings)
        self.preparer.finish(path)


def raw(item: Input) -> dict[str, Any]:
    """An input as another process takes it."""
    parts = {"text": item.text, "image": item.image}
    return {name: part for name, part in parts.items() if part is not None}
