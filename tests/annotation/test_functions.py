"""The row functions in `datasets.map`: the stage's rows, whatever the batches, faults, interruptions and processes."""

import asyncio
import gc
import json
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value

from megapairs_hf.annotation import (
    Caption,
    Describe,
    DescribeConfig,
    Instruct,
    InstructConfig,
    Verify,
    VerifyConfig,
    describe_pairs,
    instruct_pairs,
    verify_pairs,
)
from megapairs_hf.annotation.config import Local
from megapairs_hf.annotation.corpus_reader import CorpusImages
from megapairs_hf.annotation.describe import DescribeTask
from megapairs_hf.annotation.tasks import Outcome
from megapairs_hf.artifacts.lookup import IdIndex
from megapairs_hf.core.columns import add_columns, drop_errors
from megapairs_hf.core.errors import (
    ArtifactError,
    BudgetSpentError,
    ConfigError,
    ImageRejectedError,
    ModelError,
    ServerUnavailableError,
)
from megapairs_hf.core.schema import PAIRS

from .conftest import make_artifact, make_image
from .double import instruct
from .test_runner import FAULTS
from .test_stage import NEVER_S, RULES, at, rejected
from .test_verify import nearer

QUICK = {"backoff_s": 0.01, "concurrency": 4, "timeout_s": NEVER_S, "restart_s": NEVER_S}
DESCRIPTORS = Path("/proc/self/fd")
COMMON = ("raw", "model", "finish_reason", "prompt_tokens", "completion_tokens")


def plain(artifact, names):
    return artifact.table(list(names)).to_pylist()


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_describe_by_map_gives_the_rows_of_the_stage(serve, pairs, corpus, images, rows, tmp_path, batch_size):
    stage = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(serve())), out=tmp_path / "d")
    names = ["query_id", "target_id", "description", "word_num", *COMMON]
    for source in (images, corpus, corpus.path):
        server = serve()
        function = Describe(source, urls=[server.url], journal=tmp_path / server.url[-9:-3], **QUICK)
        added = add_columns(rows, function, batch_size=batch_size)
        assert added.select_columns(names).to_list() == plain(stage, names)
        assert set(added["error"]) == {""}
        assert set(server.asked.values()) == {1}
        function.close()


def test_instruct_and_verify_by_map_give_the_rows_of_the_stage(serve, corpus, images, tmp_path):
    rows = [
        {"query_id": f"i{n}", "target_id": f"i{n + 1}", "negative_ids": ["i11", "i9", "gone"][: n % 4]}
        for n in range(8)
    ]
    mined = make_artifact(tmp_path / "p", "pairs", PAIRS, [rows[:5], rows[5:]])
    described = describe_pairs(mined, corpus, config=DescribeConfig(**RULES), out=tmp_path / "d")
    refuses = described.table().to_pylist()[2]["description"]

    def answer(body):
        return "I will not." if refuses in json.dumps(body) else instruct(body)

    final = instruct_pairs(
        described, corpus, config=InstructConfig(endpoint=at(serve(answer=answer))), out=tmp_path / "i"
    )
    source = Dataset.from_list(mined.table(["query_id", "target_id", "negative_ids"]).to_pylist())
    source = add_columns(source, Describe(images, **RULES))
    assert source["description"][:] == described.table()["description"].to_pylist()
    source = add_columns(source, Instruct(urls=[serve(answer=answer).url], **QUICK), batch_size=3)
    assert source[2]["error"] == "too_few_instructions: I will not."
    assert source[2]["instructions"] == []
    assert rejected(final) == {"i2 -> i3": ("too_few_instructions", "I will not.")}
    good = drop_errors(source)
    names = ["query_id", "target_id", "instructions", "demonstration_ids", *COMMON]
    assert good.select_columns(names).to_list() == plain(final, names)
    judged = verify_pairs(
        final, mined, corpus, config=VerifyConfig(endpoint=at(serve(answer=nearer))), out=tmp_path / "v"
    )
    verified = add_columns(good, Verify(images, urls=[serve(answer=nearer).url], **QUICK), batch_size=2)
    for row, expected in zip(verified["verified"], judged.table()["verified"].to_pylist(), strict=True):
        np.testing.assert_array_equal(row, expected)
    assert any(np.isnan(row).all() for row in verified["verified"])


def test_the_stage_applies_the_inner_part_of_the_function(serve, pairs, corpus, rows, tmp_path, monkeypatch):
    evaluate = DescribeTask.evaluate

    def shout(self, row, attempt, response):
        outcome = evaluate(self, row, attempt, response)
        return Outcome({**outcome.row, "description": outcome.row["description"].upper()})

    monkeypatch.setattr(DescribeTask, "evaluate", shout)
    server = serve()
    stage = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(server)), out=tmp_path / "d")
    mapped = add_columns(rows, Describe(corpus, urls=[server.url], **QUICK))
    assert mapped["description"][:] == stage.table()["description"].to_pylist()
    assert all(text.isupper() for text in mapped["description"])


def test_faults_lose_and_double_nothing_and_keep_the_order(serve, images, rows, tmp_path):
    calm = add_columns(rows, Describe(images, urls=[serve().url], journal=tmp_path / "a", **QUICK))
    bad = serve(script=lambda body, n: FAULTS[(body["seed"] + n) % len(FAULTS)] if n < 5 else None)
    patient = QUICK | {"timeout_s": 0.5, "max_retries": 1000, "max_backoff_s": 0.1}
    wild = add_columns(rows, Describe(images, urls=[bad.url], journal=tmp_path / "b", **patient), batch_size=5)
    assert wild.to_list() == calm.to_list()
    lines = [json.loads(line) for file in (tmp_path / "b").iterdir() for line in file.read_bytes().split(b"\n")[:-1]]
    assert len(lines) == len({line["key"] for line in lines}) == 11


def test_a_server_that_is_gone_raises_once_and_the_answers_are_kept(serve, images, rows):
    server = serve(script=lambda *_: ("status", 503) if len(server.answered) >= 5 else None)
    dead = QUICK | {"max_retries": 1, "concurrency": 1, "restart_s": 0.5}
    function = Describe(images, urls=[server.url], **dead)
    with pytest.raises(ServerUnavailableError, match="responses so far are kept"):
        rows.map(function, batched=True)
    server.script = None
    assert len(rows.map(function, batched=True, load_from_cache_file=False)) == 11
    assert set(server.answered.values()) == {1}
    with pytest.raises(ServerUnavailableError, match="nothing answers"):
        Describe(images, urls=["http://127.0.0.1:9/v1"], seed=1).one(make_image(), make_image())


def test_a_budget_stops_and_a_larger_one_goes_on(serve, images, rows):
    server = serve()
    settings = {"urls": [server.url], **QUICK, "concurrency": 1}
    with pytest.raises(BudgetSpentError, match=r"`budget.requests` \(6\)"):
        rows.map(Describe(images, budget={"requests": 6}, **settings), batched=True)
    assert len(server.bodies) == 6
    assert set(rows.map(Describe(images, **settings), batched=True)["error"]) == {""}
    assert len(server.bodies) == 11


def test_one_pair_and_one_text(serve, images):
    server = serve()
    describe = Describe(images, urls=[server.url], **QUICK)
    made = describe.one(make_image((200, 0, 0)), make_image((0, 0, 200)))
    assert "64x32 (200, 0, 0)" in made["description"] and made["error"] == ""
    assert describe.one(make_image((200, 0, 0)), make_image((0, 0, 200))) == made
    assert len(server.bodies) == 1
    by_id = describe.one(query_id="i0", target_id="i1")
    assert "64x32 (0, 0, 0)" in by_id["description"]
    text = serve(answer=instruct)
    assert len(Instruct(urls=[text.url], **QUICK).one("Both show a dog. The target dog is wet.")["instructions"]) == 3
    assert describe.one(make_image(), b"no image")["error"].startswith("unreadable_image: b")


def test_one_pair_by_ids_and_by_rows(serve, images):
    server = serve()
    describe = Describe(images, urls=[server.url], **QUICK)
    by_id = describe.one("i0", "i1")
    assert by_id == describe.one(query_id="i0", target_id="i1") and "64x32 (20, 0, " in by_id["description"]
    assert describe.one(images[0], images[1])["description"] == by_id["description"]
    assert describe.one(images[0]["image"], images.cast_column("image", Image(decode=False))[1])["error"] == ""
    rules = Describe(**RULES)
    assert "circles" in rules.one(images[0], images[1])["description"]
    assert Describe(images, **RULES, attributes=("color",)).one("i0", "i1")["error"] == ""
    assert Describe(**RULES, attributes=("color",)).one(images[0], images[1])["error"] == ""
    assert Caption(urls=[server.url], **QUICK).one(images[0])["caption"]
    with pytest.raises(ConfigError, match="the images have none; make some with `Caption`"):
        rules.one(make_image(), make_image())


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Describe(**RULES).one("a.jpg", "b.jpg", foo=1), r"Describe\.one takes two images, .*, not foo$"),
        (lambda: Describe(**RULES).one("a.jpg"), r"Describe\.one takes two images, .*, not one image$"),
        (lambda: Describe(**RULES).one(), r"a row by name \(query_id, target_id\), not nothing$"),
        (lambda: Describe(**RULES).one(query="a"), "not query$"),
        (
            lambda: Describe(**RULES).one({"photo": 1}, {"photo": 2}),
            "a row for Describe.one needs `image`; its",
        ),
        (lambda: Instruct().one(foo="x"), r"Instruct\.one takes one description, or a row by name .*, not foo$"),
        (lambda: Instruct().one("x", foo="x"), "not foo$"),
        (lambda: Instruct().one({"description": "x"}), "not a dict$"),
        (lambda: Caption().one(photo=b""), r"Caption\.one takes an image, or a row with `image`, not photo$"),
        (
            lambda: Verify().one("a", "b"),
            r"Verify\.one takes a row by name .*, not something without a name$",
        ),
        (lambda: Verify().one(query_id="a"), "not query_id$"),
    ],
)
def test_one_of_something_else_says_what_it_takes(call, told):
    with pytest.raises(ConfigError, match=told):
        call()


def test_verify_says_once_that_nothing_was_verified(serve, images, capsys, tmp_path):
    pairs = {"query_id": ["i0", "i1"], "target_id": ["i1", "i2"], "instructions": [["redder"]] * 2}
    compared = Dataset.from_dict({**pairs, "negative_ids": [["i5"], ["i6"]]})
    dumb = Verify(images, urls=[serve(answer=lambda _: "Hm").url], **QUICK)
    assert add_columns(compared, dumb, batch_size=1)["error"][:] == ["", ""]
    assert capsys.readouterr().err.count("nothing was verified: no response says yes or no") == 1
    honest = Verify(images, urls=[serve(answer=nearer).url], journal=tmp_path / "honest", **QUICK)
    add_columns(compared, honest)
    assert "nothing was verified" not in capsys.readouterr().err
    alone = Dataset.from_dict({**pairs, "negative_ids": [["gone"], ["gone"]]})
    add_columns(alone, honest)
    assert "nothing was verified: no pair has a hard negative" in capsys.readouterr().err


def test_hints_are_checked_against_the_id(serve, images, rows, monkeypatch):
    server = serve()
    plain_rows = rows.map(Describe(images, urls=[server.url], **QUICK), batched=True)
    where = {name: row for row, name in enumerate(images["image_id"])}
    hinted = rows.add_column("query_row", [where[name] for name in rows["query_id"]])
    hinted = hinted.add_column("target_row", [where[name] for name in rows["target_id"]])
    shuffled = images.shuffle(seed=3)
    for source in (images, shuffled):
        described = hinted.map(Describe(source, urls=[server.url], **QUICK), batched=True)
        assert described["description"][:] == plain_rows["description"][:]
    monkeypatch.setattr("megapairs_hf.annotation.corpus_reader.IdIndex", None)
    hinted.map(Describe(images, urls=[server.url], **QUICK), batched=True, batch_size=3)


def test_a_refusal_is_the_error_of_its_row_and_is_asked_again(serve, images, rows):
    server = serve(script=lambda body, _: ("refuse", "too long") if len(server.bodies) == 4 else None)
    function = Describe(images, urls=[server.url], **QUICK | {"concurrency": 1})
    errors = rows.map(function, batched=True)["error"][:]
    assert sorted(errors)[:10] == [""] * 10
    assert max(errors) == "refused: HTTP 400: too long"
    assert set(rows.map(function, batched=True, load_from_cache_file=False)["error"]) == {""}
    assert len(server.bodies) == 12


def test_a_row_with_an_error_is_passed_over_and_missing_images_are_errors(serve, images):
    server = serve()
    rows = Dataset.from_list(
        [{"query_id": "i0", "target_id": t, "error": e} for t, e in (("i1", ""), ("i2", "bad: x"), ("gone", ""))]
    )
    made = add_columns(rows, Describe(images, urls=[server.url], **QUICK))
    assert made["error"][:] == ["", "bad: x", "missing_image: gone is not in the corpus"]
    assert made["word_num"][1] == 0 and made["description"][1:] == ["", ""]
    assert len(server.bodies) == 1


def test_wrong_settings_and_columns_say_what_to_do(images, rows):
    with pytest.raises(ConfigError, match="Describe: unknown key 'temprature'; did you mean 'temperature'"):
        Describe(images, temprature=1.0)
    with pytest.raises(ConfigError, match="Describe: unknown key 'url'; did you mean 'urls'"):
        Describe(images, url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="there is no column 'description'; columns: query_id, target_id"):
        Instruct()(rows[:2])
    with pytest.raises(ConfigError, match=r"Describe needs images here; name them: Describe\(images=…\)"):
        Describe(urls=["http://127.0.0.1:9/v1"])(rows[:2])
    with pytest.raises(ConfigError, match="the images have no column 'image'; columns: image_id, caption"):
        Describe(images.select_columns(["image_id", "caption"]))(rows[:2])
    with pytest.raises(ConfigError, match="writes from captions, and the images have none; make some with `Caption`"):
        Describe(images.remove_columns(["caption", "captions"]), **RULES)(rows[:2])
    with pytest.raises(ArtifactError, match="check the path"):
        Describe("/no/such/folder")
    for make in (Describe, Verify, Instruct):
        with pytest.raises(ConfigError, match=f"{make.__name__} .* so it cannot take a stream"):
            make(images.to_iterable_dataset())
        with pytest.raises(ConfigError, match=f"{make.__name__} takes one split of a data set; take one of 'train'"):
            make(DatasetDict({"train": images}))
        with pytest.raises(ConfigError, match=f"{make.__name__} takes a datasets.Dataset, not list"):
            make([1])


def test_a_row_without_a_value_gets_an_error_and_the_others_their_rows(serve, images):
    server = serve()
    ids = Features({"query_id": Value("string"), "target_id": Value("string")})
    rows = Dataset.from_dict({"query_id": ["i0", None, "i2"], "target_id": ["i1", "i2", None]}, features=ids)
    missing = ["", "missing_value: there is no query_id", "missing_value: there is no target_id"]
    for function in (Describe(images, urls=[server.url], **QUICK), Describe(images, **RULES)):
        made = add_columns(rows, function)
        assert made["error"][:] == missing
        assert bool(made["description"][0]) and made["description"][1:] == ["", ""]
    assert add_columns(rows.select([1]), Describe(images, **RULES))["error"][:] == missing[1:2]
    # lists that are not there are empty, as in an artifact
    lists = Features({**ids, "instructions": List(Value("string")), "negative_ids": List(Value("string"))})
    values = {
        "query_id": ["i0"] * 2,
        "target_id": ["i1"] * 2,
        "instructions": [None, ["x"]],
        "negative_ids": [["i3"], None],
    }
    made = add_columns(Dataset.from_dict(values, features=lists), Verify(images, urls=[server.url], **QUICK))
    assert made["error"][:] == ["", ""]
    assert made["verified"][0] == [] and np.isnan(made["verified"][1]).all()


def test_paths_that_are_urls_are_not_fetched(serve, images):
    server = serve()
    cells = [{"bytes": None, "path": f"{server.url}/{name}.png"} for name in ("a", "b")]
    named = Dataset.from_dict({"image_id": ["a", "b"], "image": cells}).cast_column("image", Image())
    made = add_columns(
        Dataset.from_dict({"query_id": ["a"], "target_id": ["b"]}), Describe(named, urls=[server.url], **QUICK)
    )
    assert "is not fetched; download the images first" in made["error"][0]
    made = add_columns(named, Caption(urls=[server.url], **QUICK))
    assert all("is not fetched" in error for error in made["error"])
    assert server.bodies == []


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="needs /proc")
def test_what_failed_leaves_no_descriptor_and_no_thread(images, rows):
    function = Describe(images, urls=["http://127.0.0.1:9/v1"], connect_timeout_s=1.0, restart_s=0.0)

    def open_now():
        with pytest.raises(ServerUnavailableError):
            function(rows[:2])
        return len(list(DESCRIPTORS.iterdir())), threading.active_count()

    first = open_now()
    assert [open_now() for _ in range(3)] == [first] * 3


def test_nothing_is_asked_about_an_empty_description(serve, corpus, tmp_path):
    texts = ["Both show circles. The target has one more.", "", " ", None]
    rows = [{"query_id": f"i{n}", "target_id": f"i{n + 1}", "description": text} for n, text in enumerate(texts)]
    data = Dataset.from_list(rows)
    server = serve(answer=instruct)
    made = add_columns(data, Instruct(urls=[server.url], **QUICK))
    assert made["error"][:] == ["", *["no_description: the pair has no description"] * 3]
    assert len(server.bodies) == 1
    stage = instruct_pairs(data, corpus, config=InstructConfig(endpoint=at(server)), out=tmp_path / "i")
    assert stage.table(["instructions"]).to_pylist() == [{"instructions": made[0]["instructions"]}]
    assert {reason for reason, _ in rejected(stage).values()} == {"no_description"}
    assert len(server.bodies) == 2


def test_ids_that_are_numbers_are_text_as_in_the_stage(serve, images, tmp_path):
    numbers = images.remove_columns(["image_id"]).add_column("image_id", list(range(12)))
    rows = [
        {"query_id": n, "target_id": n + 1, "negative_ids": [n + 2], "instructions": ["make it red", "more red"]}
        for n in range(4)
    ]
    data = Dataset.from_list(rows)
    stage = describe_pairs(data, numbers, config=DescribeConfig(endpoint=at(serve())), out=tmp_path / "d")
    made = add_columns(data, Describe(numbers, urls=[serve().url], journal=tmp_path / "j", **QUICK))
    names = ["description", "word_num", *COMMON]
    assert made.select_columns(names).to_list() == plain(stage, names)
    assert set(made["error"]) == {""}
    hinted = data.add_column("query_row", range(4)).add_column("target_row", range(1, 5))
    assert add_columns(hinted, Describe(numbers, engine="rule_based"))["error"][:] == [""] * 4
    assert not np.isnan(add_columns(data, Verify(numbers, urls=[serve(answer=nearer).url], **QUICK))["verified"]).any()
    one = numbers.select([0])
    assert add_columns(one, Caption(urls=[serve().url], **QUICK))["error"][:] == [""]


def test_the_ids_of_a_data_set_in_memory_are_sorted_once(serve, images, rows, monkeypatch):
    made = []
    monkeypatch.setattr("megapairs_hf.annotation.corpus_reader.IdIndex", lambda data: made.append(1) or IdIndex(data))
    add_columns(rows, Describe(images, urls=[serve().url], **QUICK), batch_size=2)
    assert len(made) == 1


def test_a_function_finds_what_another_has_asked_meanwhile(serve, images, rows, tmp_path):
    server = serve()
    first, second = (Describe(images, urls=[server.url], journal=tmp_path / "j", **QUICK) for _ in range(2))
    parts = [rows.select(range(5)), rows.select(range(5, 11))]
    add_columns(parts[0], first)
    add_columns(parts[1], second)
    assert len(server.bodies) == 11
    assert set(add_columns(parts[1], first, load_from_cache_file=False)["error"]) == {""}
    assert len(server.bodies) == 11
    third = Describe(images, urls=[server.url], journal=tmp_path / "j", budget={"requests": 11}, seed=2, **QUICK)
    with pytest.raises(BudgetSpentError, match=f"responses so far are kept, and count, in {tmp_path / 'j'}"):
        add_columns(parts[0], third)


def test_a_model_on_the_hub_is_loaded_by_the_commit_that_is_hashed(images, rows, monkeypatch, tmp_path):
    commit, loaded = "0123456789abcdef0123456789abcdef01234567", []

    def load(*arguments, **_):
        local = next(value for value in arguments if isinstance(value, Local))
        loaded.append((f"org/m@{commit}" in arguments, local.revision))
        raise ModelError("not loaded")

    monkeypatch.setattr("megapairs_hf.annotation.function.commit_of", lambda *_: commit)
    monkeypatch.setattr("megapairs_hf.annotation.engines.transformers_engine.load", load)
    monkeypatch.setattr("megapairs_hf.annotation.verify.load", load)
    settings = {"model": "org/m", "local": {"revision": "branch"}}
    config = DescribeConfig(engine="transformers", model="org/m")
    data = rows.select([0]).map(lambda _: {"instructions": ["x"], "negative_ids": ["i3"]})
    for call in (
        lambda: add_columns(data, Describe(images, engine="transformers", **settings)),
        lambda: describe_pairs(rows, images, config=config, out=tmp_path / "d"),
        lambda: add_columns(data, Verify(images, engine="clip", **settings)),
    ):
        with pytest.raises(ModelError, match="not loaded"):
            call()
    assert loaded == [(True, commit)] * 3


def test_closing_hides_no_error(serve, images, rows, monkeypatch):
    async def forever(_):
        await asyncio.sleep(60)

    monkeypatch.setattr("megapairs_hf.annotation.engines.session.CLOSE_S", 0.1)
    monkeypatch.setattr("megapairs_hf.annotation.engines.session.Session._stop", forever)
    function = Describe(images, urls=[serve().url], budget={"requests": 1}, **QUICK | {"concurrency": 1})
    with pytest.raises(BudgetSpentError, match="the budget is spent"):
        add_columns(rows, function)


def test_what_no_engine_reaches_is_a_plain_error():
    caption = Caption(urls=["http://127.0.0.1:9/v1"], model="m")
    with pytest.raises(
        ConfigError, match="Caption asks a model and has no engine 'openai'; set `engine` to openai or"
    ):
        caption.by_function([], lambda: None)
    instruct_task = Instruct(urls=["http://127.0.0.1:9/v1"], model="m").make_task(pa.table({}))
    with pytest.raises(ImageRejectedError, match="i1: no request of this step has an image"):
        instruct_task.address("i1")


def test_the_file_of_the_images_is_closed_with_the_function_that_reads_it():
    images = CorpusImages(None, 64)
    number = images.file.fileno()
    # as a function and its engine hold one another
    images.circle = images
    del images
    # a file that is left open would warn here, which fails the test
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
