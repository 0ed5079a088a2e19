import random

import pytest

from megapairs_hf.annotation import response_watch
from megapairs_hf.annotation.response_watch import ADVICE, FIRST, ResponseWatch, advice, excerpt
from megapairs_hf.core.errors import AnnotationError

SORRY = "I'm sorry, but I can't assist with that request."


def fill(watch, outcomes):
    for n, reason in enumerate(outcomes):
        watch.add(SORRY if reason else f"Both show {n} dogs.", reason)


def test_most_of_the_first_hundred_stop_the_run_as_soon_as_they_are_most():
    watch = ResponseWatch("descriptions")
    with pytest.raises(AnnotationError) as error:
        fill(watch, ["refusal"] * 200)
    assert watch.seen == 51
    text = str(error.value)
    assert text.startswith("51 of the first 51 responses are no descriptions (51 refusal), such as \"I'm sorry")
    assert "the model refuses: change `model` or `prompt`, then run the same command again" in text


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("useless", "stops"), [(0, False), (30, False), (50, False), (51, True), (80, True)])
def test_the_order_of_responses_does_not_matter(seed, useless, stops):
    outcomes = ["no_image_seen"] * useless + [""] * (FIRST - useless)
    random.Random(seed).shuffle(outcomes)
    watch = ResponseWatch("descriptions")
    if stops:
        with pytest.raises(AnnotationError, match="the model sees no images"):
            fill(watch, outcomes)
    else:
        fill(watch, outcomes)
        # what comes later is counted in the artifact
        fill(watch, ["no_image_seen"] * 1000)
        assert watch.warning() == ""


def test_the_commonest_reason_gives_the_advice():
    watch = ResponseWatch("instructions")
    with pytest.raises(AnnotationError, match=r"\(38 only_thoughts, 13 cut_off\).*switch thinking off"):
        fill(
            watch,
            (["cut_off", "only_thoughts", "only_thoughts", "", "only_thoughts"] * 20)[:80] + ["only_thoughts"] * 30,
        )


@pytest.mark.parametrize(
    ("count", "useless", "warns"), [(9, 9, False), (20, 10, False), (20, 11, True), (60, 40, True)]
)
def test_a_short_run_ends_with_a_warning(count, useless, warns):
    watch = ResponseWatch("descriptions")
    fill(watch, ["refusal"] * useless + [""] * (count - useless))
    assert bool(watch.warning()) is warns
    assert not warns or f"{useless} of the first {count} responses" in watch.warning()


def test_the_same_response_for_many_pairs_is_noticed_once(monkeypatch):
    notes = []
    monkeypatch.setattr(response_watch, "note", notes.append)
    watch = ResponseWatch("descriptions")
    for n in range(300):
        watch.add("Both images look alike." if n % 3 == 0 else f"Both show {n} dogs.")
    assert len(notes) == 1
    assert notes[0].startswith("20 of the first 58 responses are the same, 'Both images look alike.'; see")


def test_responses_that_differ_are_not_noticed_and_do_not_fill_the_memory(monkeypatch):
    notes = []
    monkeypatch.setattr(response_watch, "note", notes.append)
    monkeypatch.setattr(response_watch, "MAX_TEXTS", 100)
    watch = ResponseWatch("descriptions")
    for n in range(2000):
        watch.add(f"Both show {n} dogs.")
        watch.add(f"Both show {n // 15} cats.")
    assert notes == []
    assert len(watch.texts) == 100


def test_every_reason_has_an_advice():
    assert advice("something_new", {}).startswith("look at them")
    for reason in ADVICE:
        assert advice(reason, {})


def test_excerpt():
    assert excerpt("a\n b") == "'a b'"
    assert len(excerpt("word " * 1000)) < 110
