"""Local inference instead of a server: batched generation with transformers, one process per GPU.

Processes come from Accelerate's launcher and take shards as everywhere. What surprises: a sampled response depends on
which other requests are in its batch. So batches are made of the rows of a shard, or of a batch of `map`, in their
order, sampled with a seed of their own, and generated as a whole: a run that was killed resumes with the same batches.
"""

from __future__ import annotations

import base64
import hashlib
import time
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.client.budget import Usage, budget_spent
from megapairs_hf.annotation.client.logprobs import TOP_LOGPROBS, yes_probability
from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.annotation.engines.journal import Journal
from megapairs_hf.annotation.tasks import Outcome, decided
from megapairs_hf.core.compatibility import check_adapter_of, pad_with_end_token, require_adapters
from megapairs_hf.core.distributed import choose_device
from megapairs_hf.core.errors import BudgetSpentError, ImageRejectedError, MegaPairsError, ModelError
from megapairs_hf.core.formatting import one_line
from megapairs_hf.core.progress import note
from megapairs_hf.images.decode import to_rgb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megapairs_hf.annotation.client.messages import Request
    from megapairs_hf.annotation.config import Local
    from megapairs_hf.annotation.engines.row_batch import RowBatch
    from megapairs_hf.artifacts.storage import PathLike

Item = tuple[int, "Request"]  # row number, request


class LocalModel:
    """A chat model for local inference.

    Args:
        path: a folder or Hub id.
        local: how it is run.
        vision: whether it takes images.
        device: None for that of this process.
    """

    def __init__(self, path: str, local: Local, *, vision: bool, device: str | None = None) -> None:
        self.vision = vision
        if local.adapter is not None:
            require_adapters("`local.adapter`")
        check_adapter_of(path, local.revision)
        import torch
        import transformers

        self.device = torch.device(choose_device(device))
        kind = transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM
        try:
            # shard by shard to where it runs: a process for each of eight GPUs would hold eight copies in host memory
            device_map = {"": str(self.device)}
            model = kind.from_pretrained(path, revision=local.revision, dtype=local.dtype, device_map=device_map)
            reader = transformers.AutoProcessor if vision else transformers.AutoTokenizer
            self.processor = reader.from_pretrained(path, revision=local.revision)
            if local.adapter is not None:
                model.load_adapter(local.adapter)
        except (MegaPairsError, MemoryError):
            raise
        except Exception as error:  # safetensors, tokenizers and each architecture have exceptions of their own
            message = f"{one_line(error, 300)} ({type(error).__name__})"
            raise ModelError(f"cannot load {path}: {message}; check `model` and `local`") from error
        self.model = model.eval()
        self.tokenizer = self.processor.tokenizer if vision else self.processor
        self.tokenizer.padding_side = "left"
        pad_with_end_token(self.tokenizer, path)
        if self.processor.chat_template is None:
            raise ModelError(f"{path} has no chat template; use an instruction-tuned model")

    def generate(self, requests: Sequence[Request], seed: int) -> list[Response]:
        """The responses to a batch of requests with the same sampling parameters."""
        import torch

        sampling = requests[0].parameters
        do_sample = sampling["temperature"] > 0
        options = {"temperature": sampling["temperature"], "top_p": sampling["top_p"] or 1.0} if do_sample else {}
        options["output_logits"] = bool(sampling.get("logprobs"))
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
                return_dict_in_generate=True,
                **options,
            )
        width = inputs["input_ids"].shape[1]
        prompts = inputs["attention_mask"].sum(dim=1).tolist()
        ends = self.model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.pad_token_id}
        tokens = [row[width:].tolist() for row in outputs.sequences]
        responses = [self._response(row, stops, n) for row, n in zip(tokens, prompts, strict=True)]
        yes = self._yes(tokens, outputs.logits, [response.text for response in responses])
        return [replace(response, yes=one) for response, one in zip(responses, yes, strict=True)]

    def _yes(self, tokens: list[list[int]], logits: Any, texts: Sequence[str]) -> list[float | None]:
        """The probability of yes in each response, from the same tokens that a server would list."""
        import torch

        if not logits:
            return [None] * len(tokens)
        top = torch.stack(logits).float().log_softmax(-1).topk(min(TOP_LOGPROBS, logits[0].shape[-1]))
        # [response][position][k]
        values, indices = (part.transpose(0, 1).tolist() for part in top)
        return [
            yes_probability(
                {
                    "content": [
                        {
                            "token": self.tokenizer.decode([token]),
                            "top_logprobs": [
                                {"token": self.tokenizer.decode([each]), "logprob": value}
                                for each, value in zip(indices[row][place], values[row][place], strict=True)
                            ],
                        }
                        for place, token in enumerate(own)
                    ]
                },
                texts[row],
            )
            for row, own in enumerate(tokens)
        ]

    def _response(self, tokens: list[int], stops: set[int], prompt_tokens: int) -> Response:
        end = next((i for i, token in enumerate(tokens) if token in stops), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        # the token that ends a response counts, as servers count it
        num_tokens = len(tokens) if end is None else end + 1
        return Response(text, "length" if end is None else "stop", prompt_tokens, num_tokens)


def _decoded_messages(request: Request) -> list[dict[str, Any]]:
    """The messages with decoded images instead of data URLs."""

    def decoded(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "image_url":
            return part
        content = base64.b64decode(part["image_url"]["url"].split(",", 1)[1])
        return {"type": "image", "image": to_rgb(content)}

    return [{**message, "content": [decoded(part) for part in message["content"]]} for message in request.messages]


class LocalSession:
    """A local model and the journal of one row function in one process, or of a stage.

    Args:
        config: settings with `local` and `budget`.
        folder: of the journal.
        model: path of the model, and the fingerprint of its weights.
        vision: whether the model takes images.
        device: None for that of this process.

    Attributes:
        rows_left: how many rows have no outcome yet, the others of a stage among them; None where that is not known.
        timed: whether the time of a batch was said.
    """

    def __init__(
        self, config: Any, folder: PathLike, model: tuple[str, str], *, vision: bool, device: str | None = None
    ) -> None:
        self.config, self.model, self.vision, self.device = config, model, vision, device
        self.rows_left: Callable[[], int] | None = None
        self.timed = False
        self.journal = Journal(folder)
        self.usage = Usage(config.budget, self.journal.sums())

    def complete(self, batch: RowBatch, advance: Callable[[], None] = lambda: None) -> None:
        """Generate the responses about a batch, in rounds: the first request about every row, then the second.

        Raises:
            BudgetSpentError: the budget is exhausted; responses so far are kept.
            ModelError: the model cannot be loaded.
        """
        pending = set(batch.pending)
        for turn in count() if pending else ():
            items = _items(batch, self.journal, turn)
            if not items:
                break
            size = self.config.local.batch_size
            for start in range(0, len(items), size):
                part = items[start : start + size]
                if any(self.journal.get(request.key) is None for _, request in part):
                    self._generate(batch, part)
                for number, _ in part if turn == 0 else ():
                    if number in pending:
                        advance()

    def _generate(self, batch: RowBatch, items: Sequence[Item]) -> None:
        limit = self.usage.exhausted()
        if limit:
            raise BudgetSpentError(budget_spent(limit, self.journal.folder))
        requests, keys = [], []
        for number, request in items:
            try:
                requests.append(request.filled(batch.task.address))
                keys.append(request.key)
            except ImageRejectedError as error:
                batch.outcomes[number] = Outcome(None, error.reason, error.detail)
        if not requests:
            return
        digest = hashlib.sha256(repr((self.config.seed, keys)).encode()).digest()
        model = load(*self.model, self.config.local, self.device, vision=self.vision)
        start = time.monotonic()
        responses = model.generate(requests, int.from_bytes(digest[:4], "big"))
        if not self.timed:
            self.timed = True
            left = None if self.rows_left is None else self.rows_left() - len(items)
            note(time_estimate(time.monotonic() - start, len(requests), left, f"{self.model[0]} on {model.device}"))
        self.usage.sent += len(responses)
        for response in responses:
            self.usage.count(response, time.monotonic() - start)
        self.journal.add_all(list(zip(keys, responses, strict=True)))

    def close(self) -> None:
        """Close the journal."""
        self.journal.close()


def time_estimate(seconds: float, requests: int, left: int | None, model: str) -> str:
    """What the first batch took, and what the rows that are left will take at that rate.

    Args:
        seconds: of the batch, without the loading of the model.
        requests: in it.
        left: rows of this process without an outcome; None where that is not known.
        model: and its device.
    """
    text = f"{model}: the first {requests:,} responses took {_duration(seconds)}, {seconds / requests:,.1f} s each"
    if left is None:
        return text
    if left <= 0:
        return f"{text}; nothing is left"
    return (
        f"{text}; at that rate the {left:,} rows that are left take at least {_duration(seconds / requests * left)}"
        " (one request each). Ctrl-C keeps what is there, and the same command continues"
    )


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


@lru_cache(maxsize=2)
def load(path: str, _weights: str, local: Local, device: str | None, *, vision: bool) -> LocalModel:
    """A model, loaded once per process, and again when its weights are others."""
    return LocalModel(path, local, vision=vision, device=device)


def _items(batch: RowBatch, journal: Journal, turn: int) -> list[Item]:
    """The requests of this round, whether they have a response already or not."""
    items = []
    for number, row in batch.rows():
        outcome = batch.outcomes.get(number)
        if outcome is not None and not outcome.cost[0]:
            continue
        responses: dict[int, Response] = {}
        for _ in range(turn + 1):
            attempt = decided(batch.task, row, responses)
            if not isinstance(attempt, int):
                break
            request = batch.task.request(row, attempt)
            if len(responses) == turn:
                items.append((number, request))
                break
            response = journal.get(request.key)
            if response is None:
                break
            responses[attempt] = response
    return items
