"""`add_columns` in several processes: each computes its part, all get the whole."""

import json
import subprocess
import sys

from tests.small import ROOT

CODE = """
import json, os, sys
from pathlib import Path
from datasets import Dataset, Value, Features, load_dataset
from megapairs_hf.core.columns import add_columns
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.row_function import RowFunction

class Length(RowFunction):
    @property
    def features(self):
        return Features({"length": Value("int32"), "error": Value("string")})

    def compute(self, rows, rank):
        with open(f"calls-{os.environ['RANK']}", "a") as file:
            file.write(f"{len(rows)}\\n")
        return {"length": [len(text) for text in rows.values("text")], "error": [""] * len(rows)}

ds = load_dataset("json", data_files="rows.jsonl", split="train")
added = add_columns(ds, Length(), batch_size=3)
try:
    add_columns(Dataset.from_dict({"text": ["a"]}), Length())
except ConfigError as error:
    message = str(error)
Path(f"out-{os.environ['RANK']}.json").write_text(json.dumps([added.to_dict(), message]))
"""


def test_each_of_two_processes_computes_its_part_and_gets_the_whole(tmp_path, monkeypatch):
    lengths = [7, 0, 3, 12, 5, 1, 9]
    lines = [json.dumps({"text": "x" * n}) + "\n" for n in lengths]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    (tmp_path / "script.py").write_text(CODE)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    done = subprocess.run([*command, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [json.loads((tmp_path / f"out-{rank}.json").read_text()) for rank in (0, 1)]
    assert outputs[0] == outputs[1]
    assert outputs[0][0]["length"] == lengths
    assert outputs[0][0]["text"] == ["x" * n for n in lengths]
    assert "run one process" in outputs[0][1]
    calls = [sum(map(int, (tmp_path / f"calls-{rank}").read_text().split())) for rank in (0, 1)]
    assert calls == [4, 3]
