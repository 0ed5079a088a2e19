import pytest

from megapairs_hf.annotation.filters import filter_instructions
from megapairs_hf.annotation.language import LANGUAGES, is_language
from megapairs_hf.annotation.prompts.few_shot import load_examples
from megapairs_hf.annotation.text_stats import distinct, text_stats

SENTENCES = {
    "en": "make the mug dark blue with gold stars",
    "de": "der gleiche Hund im Schnee und ohne Leine",
    "fr": "le même chien dans la neige et sans laisse",
    "es": "el mismo perro en la nieve y sin correa",
    "it": "il cane nella neve con la palla e senza guinzaglio",
    "pt": "o mesmo cão na neve com uma bola e sem coleira",
    "nl": "dezelfde hond in het park met een bal en zonder riem",
    "pl": "ten sam pies na śniegu i bez smyczy ale z piłką",
    "ru": "та же собака на снегу",
    "ja": "同じ犬を雪の中で見せて",
    "zh": "同一只狗在雪地里",
    "ko": "눈 속의 같은 개",
    "ar": "نفس الكلب في الثلج",
    "hi": "बर्फ में वही कुत्ता",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_passes_in_its_own_language_and_english_fails_elsewhere(language):
    assert is_language(SENTENCES[language], language)
    # languages of one script are told apart from English only
    assert is_language(SENTENCES[language], "en") is (LANGUAGES[language].scripts == ("LATIN",))
    assert not is_language("the same dog is on the snow with a ball", language) or language == "en"


def test_every_few_shot_example_is_english():
    assert all(is_language(text, "en") for d in load_examples(None, 5) for text in d.instructions)


@pytest.mark.parametrize("text", ["café au lait in a jug", "a Renault 4", "Tokyo (東京) at night", "blue"])
def test_foreign_words_are_no_foreign_language(text):
    assert is_language(text, "en")


def test_the_reason_is_told():
    kept, rejected = filter_instructions(
        ["雪の中の 犬です", "a dog on the grass"], min_words=2, max_words=60, language="en"
    )
    assert kept == ["a dog on the grass"]
    assert rejected == {"other_language": 1}
    assert filter_instructions(["雪の中の犬"], min_words=2, max_words=60, language="ja")[0] == ["雪の中の犬"]


def test_distinct_by_hand():
    assert distinct(["a b a b"], 1) == 2 / 4
    assert distinct(["a b a b"], 2) == 2 / 3
    assert distinct(["one"], 2) == 0


@pytest.mark.parametrize("language", ["de", "fr", "es", "it", "pt", "nl", "pl"])
@pytest.mark.parametrize("text", ["of", "is wit of zwart", "as flores no vaso", "to jest kot", "La Niña at Sea"])
def test_small_words_of_other_languages_are_no_english(language, text):
    assert is_language(text, language)


def test_facts_by_hand():
    lists = [["make it red", "now in blue"], ["make it red", "with a hat on"]]
    stats = text_stats(lists, 4, {"too_short": 1})
    assert stats["words"] == {"mean": 3.25, "p5": 3, "p50": 3, "p95": 4}
    assert stats["share_in_several_pairs"] == 0.5
    assert stats["share_rejected"] == {"too_short": 0.2}
    assert stats["distinct_1"] == round(10 / 13, 4)
