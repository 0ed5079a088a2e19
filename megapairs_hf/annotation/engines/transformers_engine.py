"""Local inference instead of a server: batched generation with transformers, one process per GPU.

Processes come from Accelerate's launcher and take shards as everywhere. What surprises: a sampled response depends on
which other requests are in its batch. So batches are made of a shard's pairs in their order, sampled with a seed of
their own, and kept in the journal as a whole: a run that was killed resumes with the same batches.
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
from megapairs_hf.core.compatibility import check_adapter_of, require_adapters
from megapairs_hf.core.distributed import choose_device
from megapairs_hf.core.errors import BudgetSpentError, ImageRejectedError, ModelError
from megapairs_hf.core.schema import QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from megapairs_hf.annotation.client.budget import Usage
    from megapairs_hf.annotation.client.messages import Request
    from megapairs_hf.annotation.engines.journal import Journal, JournalReader
    from megapairs_hf.annotation.engines.shard_io import PairShard, ShardIO
    from megapairs_hf.annotation.tasks import Row
    from megapairs_hf.core.progress import Progress

Item = tuple[int, "Row", int]  # row number, pair, attempt


class LocalModel:
    """A chat model for local inference.

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
            message = " ".join(str(error).split())[:300]
            raise ModelError(f"cannot load {config.model}: {message}; check `model` and `local`") from error
        self.device = torch.device(choose_device(None))
        self.model = model.to(self.device).eval()
        self.tokenizer = self.processor.tokenizer if vision else self.processor
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.processor.chat_template is None:
            raise ModelError(f"{config.model} has no chat template; use an instruction-tuned model")

    def generate(self, requests: Sequence[Request], seed: int) -> list[Response]:
        """The responses to a batch of requests with the same sampling parameters."""
        import torch

        sampling = requests[0].parameters
        do_sample = sampling["temperature"] > 0
        options = {"temperature": sampling["temperature"], "top_p": sampling["top_p"] or 1.0} if do_sample else {}
        inputs = self.processor.apply_chat_template(
            [_decoded_messages(request) if self.vision else request.messages for request in requests],
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
            outputs = self.model.generate(
                **inputs,
                do_sample=do_sample,
                max_new_tokens=sampling["max_tokens"],
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
        width = inputs["input_ids"].shape[1]
        prompts = inputs["attention_mask"].sum(dim=1).tolist()
        ends = self.model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.pad_token_id}
        return [self._response(row[width:].tolist(), stops, n) for row, n in zip(outputs, prompts, strict=True)]

    def _response(self, tokens: list[int], stops: set[int], prompt_tokens: int) -> Response:
        end = next((i for i, token in enumerate(tokens) if token in stops), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        # the token that ends a response counts, as servers count it
        num_tokens = len(tokens) if end is None else end + 1
        return Response(text, "length" if end is None else "stop", prompt_tokens, num_tokens)


def _decoded_messages(request: Request) -> list[dict[str, Any]]:
    """The messages with decoded images instead of data URLs."""
    from PIL import Image

    def decoded(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "image_url":
            return part
        content = base64.b64decode(part["image_url"]["url"].split(",", 1)[1])
        return {"type": "image", "image": Image.open(io.BytesIO(content)).convert("RGB")}

    return [{**message, "content": [decoded(part) for part in message["content"]]} for message in request.messages]


def run_batches(
    shards: ShardIO,
    journal: Journal,
    indices: Iterable[int],
    config: Any,
    usage: Usage,
    bar: Progress,
    *,
    vision: bool,
) -> None:
    """Generate the responses about all pairs of some shards.

    Raises:
        BudgetSpentError: the budget is exhausted; responses so far are kept.
        ModelError: the model cannot be loaded.
    """
    model: LocalModel | None = None
    for index in indices:
        shard = shards.read(index)
        bar.advance(shard.table.num_rows - len(shard.pending))
        if shard.pending:
            model = model or LocalModel(config, vision=vision)
            _complete_shard(model, shard, journal, config, usage, bar)
        shards.write(shard)


def _complete_shard(
    model: LocalModel, shard: PairShard, journal: Journal, config: Any, usage: Usage, bar: Progress
) -> None:
    """One shard, in rounds: the first request about every pair, then the second where one is needed."""
    pending = set(shard.pending)
    for turn in count():
        with journal.reader() as reader:
            items = _items(shard, reader, turn)
            if not items:
                break
            size = config.local.batch_size
            for start in range(0, len(items), size):
                batch = items[start : start + size]
                if any(attempt not in shard.recorded(reader, row) for _, row, attempt in batch):
                    _generate_batch(model, shard, batch, journal, config.seed, usage)
                completed = sum(number in pending for number, _, _ in batch) if turn == 0 else 0
                bar.advance(completed, usage.line())


def _items(shard: PairShard, reader: JournalReader, turn: int) -> list[Item]:
    """The requests of this round, whether they have a response already or not."""
    items = []
    for number, row in shard.rows():
        if number in shard.outcomes:
            continue
        responses = dict(sorted(shard.recorded(reader, row).items())[:turn])
        attempt = shard.task.decide(row, responses) if len(responses) == turn else None
        if isinstance(attempt, int):
            items.append((number, row, attempt))
    return items


def _generate_batch(
    model: LocalModel, shard: PairShard, batch: Sequence[Item], journal: Journal, seed: int, usage: Usage
) -> None:
    limit = usage.exhausted()
    if limit:
        raise BudgetSpentError(f"the budget is spent: {limit} is reached; raise it and run the same command again")
    requests, keys = [], []
    for number, row, attempt in batch:
        try:
            requests.append(shard.task.request(row, attempt))
            keys.append((row[QUERY_ID], row[TARGET_ID], attempt))
        except ImageRejectedError as error:
            shard.outcomes[number] = Outcome(None, error.reason, error.detail)
    if not requests:
        return
    start = time.monotonic()
    digest = hashlib.sha256(repr((seed, keys)).encode()).digest()
    responses = model.generate(requests, int.from_bytes(digest[:4], "big"))
    usage.sent += len(responses)
    for response in responses:
        usage.count(response, time.monotonic() - start)
    journal.add_all(shard.index, list(zip(keys, responses, strict=True)))
