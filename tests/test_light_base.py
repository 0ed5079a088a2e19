"""Each part of the package works with what its extra installs, on six images; what is missing is one sentence."""

import configparser
import json
import re
import shutil

import pytest
from packaging.requirements import Requirement

from megapairs_hf.core import dependencies
from megapairs_hf.core.dependencies import explained, installed, require
from megapairs_hf.core.errors import MegaPairsError, MissingDependencyError
from megapairs_hf.embedding import EmbedConfig, embed_corpus
from megapairs_hf.mining import MineConfig, mine_pairs
from tests import fresh
from tests.annotation.double import ChatDouble, describe, instruct
from tests.small import ROOT, SIMILARITY, make_small_models, small_corpus

CAPTIONS = ("--engine", "rule_based")
TINY = (
    "{image_size: 32, patch_size: 16, width: 32, layers: 2, heads: 2, dimension: 24, vocabulary: 400, max_tokens: 24}"
)
STEPS = ("--steps", "2", "--batch_size", "2", "--warmup_steps", "0", "--negatives", "1", "--dtype", "float32")
LOOPS = [
    f"--{m}.{k}={v}" for m in ("clip", "dino") for k, v in {"steps": 2, "batch_size": 4, "warmup_steps": 0}.items()
]
CLIP = "[{name: a, model: ./encoders/clip, input: image}]"
RELATED = ("--neighbors", "5", "--similarity_range", "[0.01, 0.999]", "--range_kind", "quantile")


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A work folder as it is before the annotation, made with everything there is."""
    work = tmp_path_factory.mktemp("six")
    corpus = small_corpus(work / "corpus", 6)
    make_small_models(work / "encoders", corpus)
    settings = EmbedConfig(encoders=SIMILARITY)
    embeddings = embed_corpus(corpus, config=settings, out=work / "embeddings", work=work / "encoders")
    config = MineConfig(neighbors=5, similarity_range=(0.01, 0.999), range_kind="quantile")
    mine_pairs(embeddings, corpus, config=config, out=work / "pairs")
    return work


@pytest.fixture(scope="module")
def built(ready, tmp_path_factory):
    """The same with triplets, made by the base alone."""
    work = tmp_path_factory.mktemp("built") / "work"
    shutil.copytree(ready, work)
    at = ("--work", work)
    steps = [["describe", *at, *CAPTIONS], ["instruct", *at, *CAPTIONS], ["build", *at]]
    succeeded(fresh.commands(fresh.hide(work / "hide"), *steps))
    return work


@pytest.fixture
def work(built, tmp_path):
    shutil.copytree(built, tmp_path / "work")
    return tmp_path / "work"


def succeeded(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(done, *sentences):
    """One sentence for each command, status 1, and no traceback."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("megapairs: ")]
    assert len(told) == len(sentences), done.stderr
    for line, sentence in zip(told, sentences, strict=True):
        assert sentence in line


def test_the_base_looks_shares_imports_and_exports(work, tmp_path):
    out = tmp_path / "out"
    kinds = ("corpus", "embeddings/clip_image", "pairs", "descriptions", "instructions", "triplets")
    calls = [
        ["corpus", "--work", tmp_path / "other", "--source", "scenes", "--scenes.count", "6", "--scenes.size", "32"],
        *(["inspect", work / kind] for kind in kinds),
        ["report", work],
        ["dataset", "export", work / "triplets", out],
        ["dataset", "import", out / "train.jsonl", out / "images", "--out", tmp_path / "imported"],
        ["push", "dataset", work / "triplets", "me/six", "--license", "apache-2.0", "--dry-run"],
        ["completion", "bash"],
        ["run", ROOT / "recipes" / "emoji.yaml", "--dry-run"],
    ]
    succeeded(fresh.commands(fresh.hide(tmp_path / "hide"), *calls))
    nothing = fresh.commands(fresh.hide(tmp_path / "hide"), ["eval", "check-data", "circo", "--data", tmp_path])
    assert nothing.returncode == 1 and "get them at" in nothing.stdout and not nothing.stderr
    assert (work / "report.html").is_file()
    assert (tmp_path / "imported" / "manifest.json").is_file()
    script = f"import megapairs_hf as m\nprint(len(m.load_triplets({str(work / 'triplets')!r})))"
    assert int(succeeded(fresh.python(fresh.hide(tmp_path / "hide"), script))) > 0


def answer(body):
    """A vision-language model, a language model and a judge in one."""
    parts = body["messages"][0]["content"]
    shown = sum(part["type"] == "image_url" for part in parts) if isinstance(parts, list) else 0
    return {0: instruct, 2: describe, 3: lambda _: "Yes."}[shown](body)


def test_the_base_asks_servers(ready, tmp_path):
    shutil.copytree(ready, tmp_path / "work")
    server = ChatDouble(answer=answer)
    at = ("--work", tmp_path / "work", "--endpoint.urls", f"[{server.url}]")
    calls = [["describe", *at], ["instruct", *at, "--response_format", "list"], ["verify", *at, "--negatives", "1"]]
    try:
        succeeded(fresh.commands(fresh.hide(tmp_path / "hide"), *calls, ["build", *at[:2]]))
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.long
def test_the_models_pretrain_embed_train_evaluate_and_judge(work, tmp_path):
    at = ("--work", work)
    calls = [
        ["pretrain", *at, "--out", tmp_path / "encoders", "--model", TINY, *LOOPS],
        ["embed", *at, "--out", tmp_path / "embeddings", "--encoders", CLIP],
        ["train", *at, "--model", "./encoders/clip", *STEPS, "--lora_rank", "2"],
        ["eval", *at, "--heldout", work / "corpus"],
        ["verify", *at, *("--engine", "clip", "--model", "./encoders/clip")],
        ["report", work],
    ]
    shown = succeeded(fresh.commands(fresh.hide(tmp_path / "hide", "models"), *calls))
    assert "R@1" in shown


@pytest.mark.long
def test_the_mining_mines(ready, tmp_path):
    call = ["mine", "--work", ready, "--out", tmp_path / "pairs", *RELATED]
    succeeded(fresh.commands(fresh.hide(tmp_path / "hide", "mine"), call))


def test_a_report_with_a_curve_needs_no_extra(work, tmp_path):
    log = work / "model" / "training_log.jsonl"
    log.parent.mkdir()
    log.write_text("".join(json.dumps({"step": n, "loss": 1 / n}) + "\n" for n in (1, 2, 3)), encoding="utf-8")
    manifest = json.loads((work / "corpus" / "manifest.json").read_text(encoding="utf-8"))
    (work / "model" / "manifest.json").write_text(json.dumps({**manifest, "kind": "model"}), encoding="utf-8")
    succeeded(fresh.commands(fresh.hide(tmp_path / "hide"), ["report", work]))
    assert "<svg" in (work / "report.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_trackers(work, tmp_path):
    call = ["train", "--work", work, "--model", "./encoders/clip", *STEPS, "--tracker", "tensorboard"]
    succeeded(fresh.commands(fresh.hide(tmp_path / "hide", "models", "track"), call))
    assert list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.long
def test_onnx_and_mteb(ready, tmp_path):
    clip = str(ready / "encoders" / "clip")
    load = f"from megapairs_hf import load_mmret\nmodel = load_mmret({clip!r}, device='cpu')\n"
    export = f"from megapairs_hf.models.onnx import export_onnx\nexport_onnx(model, {str(tmp_path / 'onnx')!r})"
    wrap = "from megapairs_hf.models.mteb_wrapper import mteb_model\nmteb_model(model)"
    succeeded(fresh.python(fresh.hide(tmp_path / "hide", "models", "onnx"), load + export))
    assert (tmp_path / "onnx" / "joint.onnx").is_file()
    succeeded(fresh.python(fresh.hide(tmp_path / "hide", "models", "mteb"), load + wrap))


def test_metrics_for_evaluate(tmp_path):
    code = "import evaluate\nprint(evaluate.load('eval/metrics', 'recall_at_k').compute(predictions=[['a', 'b']],"
    done = fresh.python(fresh.hide(tmp_path / "hide", "evaluate"), code + " references=['b'], k=2))")
    assert "{'recall_at_k': 1.0}" in succeeded(done)


def test_what_is_missing_is_one_sentence(work, tmp_path):
    """Nothing is made of a command that could not have been finished."""
    at, hidden = ("--work", work), fresh.hide(tmp_path / "hide")
    new = ("--out", tmp_path / "new")
    calls = {
        ("pretrain", *at, *new): "pretrain needs torch, ",
        ("embed", *at, *new): "embed needs torch, ",
        (
            "mine",
            *at,
            *new,
        ): "mine needs torch, faiss and numba, which are not ",
        ("train", *at, *new): "train needs torch, ",
        ("eval", *at, *new): "eval needs torch, ",
        ("eval", "MODEL", "circo", "--data", tmp_path, *new): "eval needs torch, ",
        ("describe", *at, *new, "--engine", "transformers"): "`engine: transformers` needs torch, ",
        ("verify", *at, *new, "--engine", "clip", "--model", "./encoders/clip"): "`engine: clip` needs torch, ",
    }
    words = [[str(word) for word in call] for call in calls]
    done = fresh.python(hidden, f"sys.exit({{main(words) for words in {words!r}}} != {{1}} or 1)")
    refused(done, *calls.values())
    assert all(re.search(r"not installed; pip install 'megapairs-hf\[(models|mine)\]'$", line) for line in
               done.stderr.splitlines() if line.startswith("megapairs: "))  # fmt: skip
    assert not list((tmp_path / "new").rglob("manifest.json"))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("m.load_mmret('x')", "an MMRet needs torch, "),
        ("m.evaluation.sweep.draw_sweep({'a': [(0.0, 1.0)]}, 'x.svg')", "a drawing of the sweep needs matplotlib"),
        ("m.models.onnx.export_onnx(None, 'x')", "ONNX export needs onnx, onnxruntime and onnxscript, which are "),
        ("m.models.mteb_wrapper.mteb_model(None)", "measuring with mteb needs mteb, which is not installed"),
        ("m.training.tracking.chosen_tracker('wandb')", "`tracker: wandb` needs wandb, which is not installed"),
    ],
)
def test_python_says_the_same(code, sentence, tmp_path):
    parts = "models.onnx models.mteb_wrapper evaluation.sweep training.tracking".split()
    imports = "\n".join(["import megapairs_hf as m", *(f"import megapairs_hf.{part}" for part in parts)])
    script = f"{imports}\ntry: {code}\nexcept ImportError as error: print(type(error).__name__, error)"
    done = fresh.python(fresh.hide(tmp_path), script)
    assert succeeded(done).startswith(f"MissingDependencyError {sentence}")


def test_a_launcher_without_accelerate(work, tmp_path):
    hidden = fresh.hide(tmp_path / "hide") | {"WORLD_SIZE": "2", "RANK": "0"}
    done = fresh.commands(hidden, ["build", "--work", work, "--out", tmp_path / "new"])
    refused(
        done, "a run of 2 processes (WORLD_SIZE) needs torch and accelerate, which are not installed; pip install "
    )


def test_an_import_that_nobody_asked_about(monkeypatch, capsys):
    from megapairs_hf import cli

    def parse(_):
        raise ModuleNotFoundError("No module named 'faiss.contrib'", name="faiss.contrib")

    monkeypatch.setattr("megapairs_hf.cli.parser.parse", parse)
    assert cli.main(["mine"]) == 1
    sentence = "megapairs: mine needs faiss, which is not installed; pip install 'megapairs-hf[mine]'\n"
    assert capsys.readouterr().err == sentence
    assert explained(ModuleNotFoundError("a mistake of ours", name="megapairs_hf.nothing"), "mine") is None
    assert explained(ModuleNotFoundError("without a name"), "mine") is None


def test_require(monkeypatch):
    monkeypatch.setitem(dependencies.EXTRAS, "toys", ("json", "no_such_toy", "nor_this"))
    require("toys", "playing", "json")
    with pytest.raises(MissingDependencyError) as caught:
        require("toys", "playing")
    told = "playing needs no_such_toy and nor_this, which are not installed; pip install 'megapairs-hf[toys]'"
    assert str(caught.value) == told
    assert caught.value.extra == "toys"
    assert isinstance(caught.value, MegaPairsError)
    assert isinstance(caught.value, ImportError)
    monkeypatch.setitem(__import__("sys").modules, "json", None)
    assert not installed("json")


def requirements():
    """What setup.cfg names, by extra; the base is the extra `""`."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        extra: {fresh.normal(Requirement(line).name) for line in lines.split("\n") if line.strip()}
        for extra, lines in listed.items()
    }


def test_setup_cfg_names_what_was_tried_here():
    named = requirements()
    assert named[""] == set(map(fresh.normal, fresh.BASE))
    for extra, packages in fresh.EXTRAS.items():
        assert set(map(fresh.normal, packages)) <= named[extra]
    assert set(dependencies.EXTRAS) <= set(named)
