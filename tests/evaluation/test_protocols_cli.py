import json
import subprocess
import sys

import pytest

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli import main
from megapairs_hf.core.errors import StaleArtifactError
from megapairs_hf.evaluation import evaluate, submission_check
from megapairs_hf.evaluation.benchmarks import spec
from megapairs_hf.evaluation.config import benchmark_config
from megapairs_hf.models import load_mmret
from tests.annotation.double import ChatDouble
from tests.evaluation.benchmarks import make_circo, make_cirr, make_fashioniq, make_genecis, make_mmeb
from tests.small import ROOT, run

MAKERS = {"circo": make_circo, "cirr": make_cirr, "fashioniq": make_fashioniq, "genecis": make_genecis}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, make in MAKERS.items():
        make(root / name)
    make_mmeb(root / "mmeb")
    make_circo(root / "circo", split="test")
    make_cirr(root / "cirr", gallery=60, split="test1")
    return root


def results(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_all_four_end_to_end_by_one_command(models, data, tmp_path, capsys):
    words = ["eval", f"{models}/clip", *MAKERS, "--data", str(data), "--out", str(tmp_path / "out")]
    words += ["--strategies", "image only", "fused", "--name", "tiny"]
    assert main(words) == 0
    records = results(tmp_path / "out")
    assert {record["benchmark"] for record in records} == set(MAKERS)
    assert {record["strategy"] for record in records} == {"image only", "fused"}
    assert {record["model"] for record in records} == {"tiny"}
    assert {r["group"] for r in records if r["benchmark"] == "fashioniq"} == {None, "dress", "shirt", "toptee"}
    headline = {r["benchmark"]: r["metric"] for r in reversed(records)}
    assert headline == {"circo": "map@5", "cirr": "recall@1", "fashioniq": "recall@10", "genecis": "recall@1"}
    assert all(r["options"]["prompt"] for r in records)
    shown = capsys.readouterr().out
    assert "circo val: 6 queries, gallery of 60 — PARTIAL (6 of 220 queries; 60 of 123,403 gallery images)" in shown
    # again: nothing is encoded, the same is shown
    assert main(words) == 0
    assert capsys.readouterr().out == shown
    # other settings in the same folder are refused
    assert main([*words, "--set", "allow_missing=true"]) == 1
    assert "was made with another" in capsys.readouterr().err


def test_a_loaded_model_has_the_numbers_of_the_command_and_is_measured_once(models, data, tmp_path, monkeypatch):
    (tmp_path / "gqa.yaml").write_text((ROOT / "eval/mmeb.yaml").read_text().replace("parts: []", "parts: [GQA]"))
    chosen = ["cirr", str(tmp_path / "gqa.yaml")]
    words = ["eval", f"{models}/clip", *chosen, "--data", str(data), "--limit", "2"]
    words += ["--out", str(tmp_path / "c")]
    assert main(words) == 0
    model = load_mmret(f"{models}/clip")
    arguments = {"data": str(data), "out": str(tmp_path / "p"), "config": benchmark_config(limit=2)}
    evaluate(model, chosen, **arguments)
    of_command, of_python = results(tmp_path / "c"), results(tmp_path / "p")
    assert [(r["benchmark"], r["metric"], r["value"]) for r in of_command] == [
        (r["benchmark"], r["metric"], r["value"]) for r in of_python
    ]
    monkeypatch.setattr(model, "encode", None)
    evaluate(model, chosen, **arguments)
    next(model.parameters()).data += 1
    with pytest.raises(StaleArtifactError, match=r"inputs\.model"):
        evaluate(model, chosen, **arguments)


@pytest.fixture
def small_servers(monkeypatch):
    """Benchmarks and servers of the sizes that the drawn copies have."""
    monkeypatch.setitem(spec.SIZES, "circo/test", (6, 60))
    monkeypatch.setitem(spec.SIZES, "cirr/test1", (4, 60))
    monkeypatch.setitem(submission_check.CIRCO_QUERIES, "test", 6)
    monkeypatch.setattr(submission_check, "CIRR_QUERIES", 4)


def test_a_part_of_a_test_split_gives_a_note_and_no_file(models, data, tmp_path, capsys):
    words = ["eval", f"{models}/clip", "circo", "--split", "test", "--data", str(data), "--out", str(tmp_path / "o")]
    assert main(words) == 0
    assert "this is a part only (6 of 800 queries" in capsys.readouterr().err
    assert not (tmp_path / "o/submissions").exists()


def test_too_short_rankings_are_refused_before_the_model_is_loaded(data, tmp_path, capsys):
    for split in ("val", "test"):
        words = ["eval", str(tmp_path), "circo", "--split", split, "--data", str(data), "--out", str(tmp_path / "o")]
        for _ in range(2):
            assert main([*words, "--top", "10"]) == 1
            assert f"--top is 10, but circo/{split} needs rankings of 50" in capsys.readouterr().err


def test_changed_annotations_are_not_answered_by_old_numbers(models, tmp_path, capsys):
    make_circo(tmp_path / "circo")
    words = ["eval", f"{models}/clip", "circo", "--data", str(tmp_path), "--out", str(tmp_path / "o")]
    assert main(words) == 0
    file = tmp_path / "circo/annotations/val.json"
    file.write_text(file.read_text().replace("has 2 more", "has no more"))
    assert main(words) == 1
    assert "circo/val" in capsys.readouterr().err
    make_mmeb(tmp_path / "mmeb")
    words = ["eval", f"{models}/clip", "mmeb", "--data", str(tmp_path), "--set", "parts=[GQA]"]
    assert main([*words, "--out", str(tmp_path / "m")]) == 0
    file = tmp_path / "mmeb/GQA.jsonl"
    file.write_text(file.read_text().replace("word 9", "word 8"))
    assert main([*words, "--out", str(tmp_path / "m")]) == 1
    assert "mmeb/GQA" in capsys.readouterr().err


def test_the_test_splits_give_files_and_no_number(models, data, tmp_path, capsys, small_servers):
    for name, split, files in (
        ("circo", "test", ["circo_test.json"]),
        ("cirr", "test1", ["cirr_test1_recall.json", "cirr_test1_recall_subset.json"]),
    ):
        out = tmp_path / name
        words = [
            "eval",
            f"{models}/clip",
            f"eval/{name}.yaml",
            "--split",
            split,
            "--data",
            str(data),
            "--out",
            str(out),
        ]
        assert main(words) == 0
        assert "no number" in capsys.readouterr().out
        assert results(out) == []
        assert sorted(path.name for path in (out / "submissions/fused").iterdir()) == files
        for file in files:
            checked = ["eval", "--check-submission", str(out / "submissions/fused" / file), "--data", str(data)]
            assert main(checked) == 0
            assert "nothing wrong" in capsys.readouterr().out
        # again, nothing is encoded; a file that is gone is not passed over
        assert main(words) == 0
        (out / "submissions/fused" / files[0]).unlink()
        assert main(words) == 1
        assert f"{files[0]} is gone; run again with --overwrite" in capsys.readouterr().err


def test_another_prompt_finds_the_gallery_in_the_cache(models, data, tmp_path):
    words = ["eval", f"{models}/clip", "circo", "--data", str(data), "--cache", str(tmp_path / "cache")]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("shard-*.arrow")}
    assert len(kept) == 1
    assert main([*words, "--set", "prompt=searle", "--out", str(tmp_path / "b")]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("shard-*.arrow")} == kept
    assert results(tmp_path / "b")[0]["options"]["prompt"] == "{relative_caption}"


def test_a_limit_is_labeled_and_gives_no_file(models, data, tmp_path, capsys):
    words = ["eval", f"{models}/clip", "circo", "--data", str(data), "--limit", "2"]
    assert main([*words, "--split", "test", "--out", str(tmp_path / "t")]) == 0
    assert "a part only (first 2 of 6 queries" in capsys.readouterr().err
    assert not (tmp_path / "t/submissions").exists()
    assert main([*words, "--out", str(tmp_path / "v")]) == 0
    assert "first 2 of 6 queries" in results(tmp_path / "v")[0]["options"]["partial"]


def test_two_processes_give_the_numbers_of_one(models, data, tmp_path, capsys):
    words = [str(ROOT / "eval/run_cir.py"), f"{models}/clip", "cirr", "genecis", "--data", str(data), "--out"]
    assert main(["eval", *words[1:], str(tmp_path / "one")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    both = run([*launcher, *words, str(tmp_path / "two")], {"CUDA_VISIBLE_DEVICES": ""})
    assert both.returncode == 0, both.stderr
    assert both.stdout == capsys.readouterr().out
    assert [r["value"] for r in results(tmp_path / "two")] == [r["value"] for r in results(tmp_path / "one")]
    left = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert left == ["README.md", "manifest.json", "rankings.parquet", "rejected.parquet", "results.jsonl"]


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_data_check_of_an_empty_folder_reads_like_help(name, tmp_path, capsys):
    assert main(["eval", "check-data", name, "--data", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.err == ""
    for word in ("put them in", "get them at", "license", "look again with the same command", str(tmp_path)):
        assert word in told.out
    assert "rror" not in told.out


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_data_check_names_what_is_missing_and_what_is_cut_off(name, tmp_path, capsys):
    MAKERS[name](tmp_path / name)
    assert main(["eval", "check-data", name, "--data", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert f"--data {tmp_path / name} --out" in told
    tmp_path /= name
    assert main(["eval", "check-data", name, "--data", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert f"All there. Next: megapairs eval MODEL {name}" in told
    gone, cut = sorted(path for path in tmp_path.rglob("*") if path.suffix in {".jpg", ".png"})[2:4]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-40])
    assert main(["eval", "check-data", name, "--data", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "1 missing, 1 unreadable" in told
    assert f"{cut.name} (truncated" in told
    assert "All there" not in told
    assert main(["eval", "check-data", name, "--data", str(tmp_path), "--quick"]) == 1
    assert "unreadable" not in capsys.readouterr().out
    # of several, one that is whole does not make up for another
    MAKERS["cirr" if name != "cirr" else "circo"](tmp_path / "more/whole")
    assert main(["eval", "check-data", "cirr" if name != "cirr" else "circo", name, "--data", str(tmp_path)]) == 1


def test_a_cut_off_image_stops_the_run_with_its_name(models, tmp_path, capsys):
    make_cirr(tmp_path / "d")
    victim = tmp_path / "d/img_raw/dev/dev-7-0-img0.png"
    victim.write_bytes(victim.read_bytes()[:-40])
    assert main(["eval", f"{models}/clip", "cirr", "--data", str(tmp_path / "d"), "--out", str(tmp_path / "o")]) == 1
    told = capsys.readouterr().err
    assert "dev-7-0-img0" in told
    assert "check-data" in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["circ"], "did you mean 'circo'"),
        (["circo", "--set", "prompt"], "must be key=value"),
        (["circo", "--set", "promt=searle"], "did you mean 'prompt'"),
        (["circo", "--split", "dev"], "`split` is 'dev'"),
        (["circo", "--limit", "0"], "--limit is 0"),
        (["circo", "--strategies", "both"], "`strategies`"),
        (["cirr", "--strategies", "CIReVL"], "`vlm`"),
        (["cirr", "--rerank", "pairwise", "--vlm", "m", "--vlm-urls", "http://127.0.0.1:9"], "`rerank`"),
        (["cirr", "--rerank", "yes-no", "--vlm", "m"], "--vlm-urls URL belong together"),
        (["cirr", "--rerank", "yes-no", "--vlm", "m", "--vlm-urls", "http://127.0.0.1:9"], "start the server"),
    ],
)
def test_wrong_words_are_answered_by_one_sentence(words, said, data, tmp_path, capsys):
    assert main(["eval", "MODEL", *words, "--data", str(data), "--out", str(tmp_path / "o")]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") <= 2


def test_a_bad_submission_is_explained_with_status_1(tmp_path, capsys):
    (tmp_path / "s.json").write_text(json.dumps({"0": [1, 1]}))
    assert main(["eval", "--check-submission", str(tmp_path / "s.json")]) == 1
    told = capsys.readouterr().out
    assert "CIRCO, 3 things wrong" in told
    assert "799 of 800 queries are absent" in told


def test_the_stage_keeps_its_flags():
    told = subprocess.run(
        [sys.executable, "-m", "megapairs_hf", "eval", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert "--recall_at" in told
    assert "megapairs eval MODEL BENCHMARK" in " ".join(told.split())


def test_mmeb_by_the_same_command_says_that_it_is_partial(models, data, tmp_path, capsys):
    words = ["eval", f"{models}/clip", "mmeb", "--data", str(data), "--set", "parts=[VOC2007, GQA]"]
    assert main([*words, "--out", str(tmp_path / "o")]) == 0
    told = capsys.readouterr().out
    assert "| fused | all — partial (2 of 36, 6 of 2,000 queries) |" in told
    assert {r["benchmark"] for r in results(tmp_path / "o")} == {"mmeb/VOC2007", "mmeb/GQA"}
    assert main([*words, "--limit", "2", "--out", str(tmp_path / "two")]) == 0
    assert "| all — partial (2 of 36, 4 of 2,000 queries) |" in capsys.readouterr().out
    assert {r["queries"] for r in results(tmp_path / "two")} == {2}
    assert main([*words, "--limit", "0", "--out", str(tmp_path / "none")]) == 1
    assert "`limit` is 0" in capsys.readouterr().err
    assert main(["eval", f"{models}/clip", "mmeb", "cirr", "--set", "x=y", "--data", "d", "--out", "o"]) == 1
    assert "command of its own" in capsys.readouterr().err


def test_the_data_check_of_mmeb_names_the_data_sets_and_images_that_are_missing(tmp_path, capsys):
    assert main(["eval", "check-data", "mmeb", "--data", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "rows of 36 data sets: none of 36 there yet" in told
    assert "images.zip" in told
    make_mmeb(tmp_path)
    (tmp_path / "images/GQA/1.png").unlink()
    assert main(["eval", "check-data", "mmeb", "--data", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "2 of 36 good, 34 missing" in told
    assert "5 of 6 good, 1 missing" in told
    assert "GQA/1.png" in told
    cut = tmp_path / "images/GQA/2.png"
    cut.write_bytes(cut.read_bytes()[:40])
    assert main(["eval", "check-data", "mmeb", "--data", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "4 of 6 good, 1 missing, 1 unreadable" in told
    assert main(["eval", "check-data", "mmeb", "--quick", "--data", str(tmp_path)]) == 1
    assert "unreadable" not in capsys.readouterr().out


@pytest.fixture
def served():
    servers = []

    def start(answer):
        servers.append(ChatDouble(answer=answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_captions_and_reranking_stand_beside_the_other_strategies(models, data, tmp_path, capsys, served):
    def answer(body):
        said = body["messages"][0]["content"][-1]["text"]
        if "one sentence. Reply with the sentence only" in said:
            return "A thing on a ground."
        if "Edited description" in said:
            return "Edited description: another thing on a ground"
        # the last candidate to the front, read strictly; one query in three gets a reply of no use
        images = sum(part["type"] == "image_url" for part in body["messages"][0]["content"]) - 1
        if "is 1 longer" in said:
            return "The last one is best."
        return f"Ranking: {', '.join(str(n) for n in range(images, 0, -1))}"

    server = served(answer)
    words = ["eval", f"{models}/clip", "cirr", "fashioniq", "--data", str(data), "--out", str(tmp_path / "o")]
    words += ["--strategies", "text only", "CIReVL", "--rerank", "listwise", "--rerank-top", "3"]
    words += ["--vlm", "double", "--vlm-urls", server.url]
    assert main(words) == 0
    records = results(tmp_path / "o")
    labels = ["text only", "text only, listwise", "CIReVL", "CIReVL, listwise"]
    assert [name for name in dict.fromkeys(r["strategy"] for r in records)] == labels
    whole = {r["strategy"]: r for r in records if r["benchmark"] == "fashioniq" and r["group"] is None}
    parts = {r["group"]: r for r in records if r["benchmark"] == "fashioniq" and r["strategy"] == labels[3]}
    told = whole["CIReVL, listwise"]["options"]
    assert (told["rerank"], told["reranker"], told["captioner"]) == ("listwise, first 3", "double", "double")
    assert told["requests"] == sum(r["options"]["requests"] for group, r in parts.items() if group) > 0
    table = open_artifact(tmp_path / "o").table().to_pylist()
    silent = {row["query"] for row in table if "is 1 longer" in row["text"]}
    assert len(silent) == 3
    assert (told["unusable"], told["unusable_rerank"]) == (0, 3)
    assert "rerank" not in whole["CIReVL"]["options"]
    rows = open_artifact(tmp_path / "o").table().to_pylist()
    tops = {(row["strategy"], row["query"]): row["top_ids"] for row in rows}
    for (strategy, query), top in tops.items():
        if strategy in labels[1::2]:
            before = tops[strategy.removesuffix(", listwise"), query]
            assert top == (before if query in silent else [*before[:3][::-1], *before[3:]])
    # all queries of CIReVL search by the same words, so they find the same where nothing is deleted
    dress = [top for (strategy, query), top in tops.items() if strategy == "CIReVL" and "/dress/" in query]
    assert len(dress) > 1
    assert all(top == dress[0] for top in dress)
    asked = len(server.bodies)
    assert main(words) == 0
    assert len(server.bodies) == asked
    capsys.readouterr()


def script(name, *words):
    return run([sys.executable, f"eval/{name}.py", *words], {})


def test_sheets_and_sweeps_by_scripts(models, data, tmp_path, capsys):
    words = ["eval", f"{models}/clip", "fashioniq", "--data", str(data), "--name", "tiny"]
    assert main([*words, "--strategies", "image only", "fused", "--out", str(tmp_path / "base")]) == 0
    common = ["--benchmark", "fashioniq", "--data", str(data)]
    done = script("sheet", str(tmp_path / "base"), *common, "--count", "1", "--out", str(tmp_path / "sheets"))
    assert done.returncode == 0, done.stderr
    parts = {path.name for path in (tmp_path / "sheets").iterdir()}
    assert parts == {f"fashioniq-val-{part}.html" for part in ("dress", "shirt", "toptee")}
    page = (tmp_path / "sheets/fashioniq-val-dress.html").read_text()
    assert page.count("<section>") == 1
    assert page.count('<div class="row">') == 2
    assert "tiny (fused)" in page
    wrong = ["--benchmark", "cirr", "--data", str(data), "--out", str(tmp_path / "sheets")]
    done = script("sheet", str(tmp_path / "base"), *wrong)
    assert done.returncode == 1
    assert "there are no rankings of cirr" in done.stderr

    done = script(
        "sweep", f"{models}/clip", *common, "--alphas", "0", "1", "--k", "10", "--out", str(tmp_path / "alpha.svg")
    )
    assert done.returncode == 0, done.stderr
    records = results(tmp_path / "base")
    dress = next(
        r["value"] for r in records if (r["group"], r["strategy"], r["metric"]) == ("dress", "image only", "recall@10")
    )
    line = next(line for line in done.stdout.splitlines() if "dress" in line)
    assert line.split("|")[2].strip() == f"{100 * dress:.1f}"
    assert (tmp_path / "alpha.svg").read_text().startswith("<?xml")


def test_two_rules_are_not_tested_against_each_other_and_two_prompts_of_a_model_are(models, data, tmp_path):
    words = ["eval", f"{models}/clip", "--data", str(data), "--name", "tiny", "--out"]
    for name, changed in (("deleted", "true"), ("kept", "false")):
        assert main([*words, str(tmp_path / name), "cirr", "--set", f"remove_reference={changed}"]) == 0
    done = script("compare", str(tmp_path / "deleted"), str(tmp_path / "kept"), "--paired", "recall@1")
    assert done.returncode == 1
    assert "there are no two runs of one benchmark" in done.stderr
    for name in ("mmret", "searle"):
        assert main([*words, str(tmp_path / name), "fashioniq", "--set", f"join={name}"]) == 0
    done = script("compare", str(tmp_path / "mmret"), str(tmp_path / "searle"), "--paired", "recall@10")
    assert done.returncode == 0, done.stderr
    assert "| mmret: tiny | fused |" in done.stdout
    assert "| searle: tiny | fused |" in done.stdout
    assert f"tiny (fused) of {tmp_path / 'mmret'} - tiny (fused) of {tmp_path / 'searle'}" in done.stdout
