"""A model in this process instead of behind a server: batched generation with transformers, one process a GPU.

Processes come from Accelerate's launcher and take shards as everywhere. What surprises: a sampled reply depends on
which other questions are in its batch. So batches are made of a shard's pairs in their order, drawn by a seed of their
own, and kept in the journal as a whole: a run that was killed goes on with the very batches that it would have had.
"""

from __future__ import annotations

import base64
import hashlib
import io
import time
from itertools import count
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.annotation.tasks import Outcome
from megapairs_hf.core import distributed
from megapairs_hf.core.compatibility import check_adapter_of, require_adapters
from megapairs_hf.core.errors import BudgetSpentError, ImageRejectedError, ModelError
from megapairs_hf.core.schema import QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from megapairs_hf.annotation.client.budget import Usage
    from megapairs_hf.annotation.client.messages import Request
    from megapairs_hf.annotation.engines.journal import Journal, Reader
    from megapairs_hf.annotation.engines.shard_io import Shard, Shards
    from megapairs_hf.annotation.tasks import Row
    from megapairs_hf.core.progress import Progress

Item = tuple[int, "Row", int]  # row number, pair, attempt


class LocalModel:
    """A chat model in this process.

    Args:
        config: settings with `model` and `local`.
        vision: whether it takes images.
    """

    def __init__(self, config: Any, *, vision: bool) -> None:
        local, self.vision = config.local, vision
        if local.adapter is not None:
            require_adapters("`local.adapter`")
        check_adapter_of(config.model, local.revision)
        import torch
        import transformers

        kind = transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM
        try:
            model = kind.from_pretrained(config.model, revision=local.revision, dtype=local.dtype)
            reader = transformers.AutoProcessor if vision else transformers.AutoTokenizer
            self.processor = reader.from_pretrained(config.model, revision=local.revision)
            if local.adapter is not None:
                model.load_adapter(local.adapter)
        except (OSError, ValueError) as error:
            told = " ".join(str(error).split())[:300]
            raise ModelError(f"cannot load {config.model}: {told}; check `model` and `local`") from error
        self.device = _device(torch)
        self.model = model.to(self.device).eval()
        self.tokenizer = self.processor.tokenizer if vision else self.processor
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.processor.chat_template is None:
            raise ModelError(f"{config.model} has no chat template; use an instruction-tuned model")

    def answer(self, questions: Sequence[Request], seed: int) -> list[Response]:
        """Answer a batch; all questions are sampled alike."""
        import torch

        sampling = questions[0].parameters
        warm = sampling["temperature"] > 0
        how = {"temperature": sampling["temperature"], "top_p": sampling["top_p"] or 1.0} if warm else {}
        inputs = self.processor.apply_chat_template(
            [_content(question) if self.vision else question.messages for question in questions],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            **({"processor_kwargs": {"padding": True}} if self.vision else {"padding": True}),
        )
        # only pixels are to have the weights' type, and a tokenizer's batch takes no type at all
        inputs = inputs.to(self.device, dtype=self.model.dtype) if self.vision else inputs.to(self.device)
        torch.manual_seed(seed)
        with torch.inference_mode():
            made = self.model.generate(
                **inputs,
                do_sample=warm,
                max_new_tokens=sampling["max_tokens"],
                pad_token_id=self.tokenizer.pad_token_id,
                **how,
            )
        width = inputs["input_ids"].shape[1]
        prompts = inputs["attention_mask"].sum(dim=1).tolist()
        ends = self.model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.pad_token_id}
        return [self._reply(row[width:].tolist(), stops, n) for row, n in zip(made, prompts, strict=True)]

    def _reply(self, tokens: list[int], stops: set[int], prompt_tokens: int) -> Response:
        end = next((i for i, token in enumerate(tokens) if token in stops), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        # the token that ends a reply counts, as servers count it
        used = len(tokens) if end is None else end + 1
        return Response(text, "length" if end is None else "stop", prompt_tokens, used)


def _device(torch: Any) -> Any:
    if distributed.launched():
        from accelerate import PartialState

        return PartialState().device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _content(question: Request) -> list[dict[str, Any]]:
    """The messages with decoded images instead of data URLs."""
    from PIL import Image

    def part(one: dict[str, Any]) -> dict[str, Any]:
        if one["type"] != "image_url":
            return one
        content = base64.b64decode(one["image_url"]["url"].split(",", 1)[1])
        return {"type": "image", "image": Image.open(io.BytesIO(content)).convert("RGB")}

    return [{**message, "content": [part(one) for one in message["content"]]} for message in question.messages]


def answer_all(
    shards: Shards,
    journal: Journal,
    indices: Iterable[int],
    config: Any,
    usage: Usage,
    bar: Progress,
    *,
    vision: bool,
) -> None:
    """Ask a model in this process about all pairs of some shards.

    Raises:
        BudgetSpentError: the budget does not reach; responses so far are kept.
        ModelError: the model cannot be loaded.
    """
    model: LocalModel | None = None
    for index in indices:
        shard = shards.open(index)
        bar.advance(shard.table.num_rows - len(shard.todo))
        if shard.todo:
            model = model or LocalModel(config, vision=vision)
            _answer_shard(model, shard, journal, config, usage, bar)
        shards.close(shard)


def _answer_shard(model: LocalModel, shard: Shard, journal: Journal, config: Any, usage: Usage, bar: Progress) -> None:
    """One shard, in rounds: the first question about every pair, then the second where one is needed."""
    todo = set(shard.todo)
    for turn in count():
        with journal.reader() as reader:
            needed = _needed(shard, reader, turn)
            if not needed:
                break
            size = config.local.batch_size
            for start in range(0, len(needed), size):
                batch = needed[start : start + size]
                if any(attempt not in shard.replies(reader, row) for _, row, attempt in batch):
                    _answer_batch(model, shard, batch, journal, config.seed, usage)
                settled = sum(number in todo for number, _, _ in batch) if turn == 0 else 0
                bar.advance(settled, usage.line())


def _needed(shard: Shard, reader: Reader, turn: int) -> list[Item]:
    """What is to be asked in this round, whether it was answered already or not."""
    items = []
    for number, row in shard.rows():
        if number in shard.aside:
            continue
        replies = dict(sorted(shard.replies(reader, row).items())[:turn])
        attempt = shard.job.settle(row, replies) if len(replies) == turn else None
        if isinstance(attempt, int):
            items.append((number, row, attempt))
    return items


def _answer_batch(
    model: LocalModel, shard: Shard, batch: Sequence[Item], journal: Journal, seed: int, usage: Usage
) -> None:
    spent = usage.exhausted()
    if spent:
        raise BudgetSpentError(f"the budget is spent: {spent} is reached; raise it and run the same command again")
    questions, keys = [], []
    for number, row, attempt in batch:
        try:
            questions.append(shard.job.question(row, attempt))
            keys.append((row[QUERY_ID], row[TARGET_ID], attempt))
        except ImageRejectedError as error:
            shard.aside[number] = Outcome(None, error.reason, error.detail)
    if not questions:
        return
    start = time.monotonic()
    digest = hashlib.sha256(repr((seed, keys)).encode()).digest()
    replies = model.answer(questions, int.from_bytes(digest[:4], "big"))
    usage.sent += len(replies)
    for reply in replies:
        usage.count(reply, time.monotonic() - start)
    journal.add_all(shard.index, list(zip(keys, replies, strict=True)))
