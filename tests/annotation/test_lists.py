"""Lists of instructions in every form that a model gives them."""

import json

import pytest

from megapairs_hf.annotation.prompts.json_lists import completed, texts_of_json
from megapairs_hf.annotation.prompts.parsing import parse_instruct
from megapairs_hf.core.errors import ResponseParseError

ITEMS = ["make it red", "no hat [plain]", "on a table"]
CIRCLED, KEYCAPS = "①②③", ["1️⃣", "2️⃣", "3️⃣"]


def numbered(form, items=ITEMS, between="\n"):
    return between.join(form.format(n=n, text=text) for n, text in enumerate(items, 1))


def marked(marks, gap, between="\n"):
    return between.join(f"{mark}{gap}{item}" for mark, item in zip(marks, ITEMS, strict=True))


FORMS = [
    line.replace("\\n", "\n").replace("\\t", "\t")
    for line in r"""
{n}. {text}
{n}) {text}
({n}) {text}
{n}: {text}
[{n}] {text}
{n}.{text}
{n}、{text}
{n}．{text}
{n}） {text}
（{n}）{text}
【{n}】{text}
{n}\t{text}
#{n}: {text}
#{n}. {text}
№{n}. {text}
No. {n}: {text}
{n}.) {text}
  {n}. {text}
> {n}. {text}
- {n}. {text}
* {n}) {text}
**{n}.** {text}
**{n}**. {text}
**{n}:** {text}
__{n}.__ {text}
***{n}.*** {text}
*{n}.* {text}
**{n}. {text}**
**{n}.** **{text}**
**{n}. Title:** {text}
{n}. **A title**: {text}
{n}. **A title:** {text}
{n}. **A title** – {text}
{n}. "{text}"
{n}. “{text}”
{n}. *{text}*
{n}. `{text}`
Instruction {n}: {text}
instruction {n}. {text}
**Instruction {n}:** {text}
Search instruction {n}: {text}
Option {n}: {text}
Variant {n}) {text}
Query {n}: {text}
Step {n}: {text}
Instruction #{n}: {text}
指令{n}：{text}
指示{n}: {text}
第{n}条：{text}
Anweisung {n}: {text}
Instrucción {n}: {text}
Инструкция {n}: {text}
### {n}. {text}
## {n}) {text}
### Instruction {n}: {text}
### Instruction {n}\n{text}\n
## {n}\n\n{text}\n
Instruction {n}:\n{text}\n
**Instruction {n}**\n{text}
**Instruction {n}:**\n\n{text}\n
{n}.\n{text}\n
**{n}. A title**\n{text}\n
### {n}. A title\n{text}\n
- {text}
* {text}
+ {text}
• {text}
•{text}
– {text}
— {text}
· {text}
● {text}
▪ {text}
→ {text}
➤ {text}
✓ {text}
- [ ] {text}
- [x] {text}
☐ {text}
- **A title:** {text}
- {text}\n
<{n}> {text}
{n}.   {text}
{n}. {text};
""".strip("\n").split("\n")
]


@pytest.mark.parametrize("form", FORMS)
def test_numbered_and_bulleted(form):
    from megapairs_hf.annotation.filters import trim

    for before in ("", "Here are the instructions:\n\n", "Sure! Here are three:\n"):
        for after in ("", "\n\nI hope this helps.", "\n\nLet me know if you need more."):
            items = parse_instruct(before + numbered(form) + after)
            assert [trim(item).rstrip(";") for item in items] == ITEMS, (before, after)


@pytest.mark.parametrize(
    "text",
    [
        *(marked(marks, gap) for gap in ("", " ") for marks in (CIRCLED, KEYCAPS, "⑴⑵⑶", "❶❷❸", "⒈⒉⒊", "➀➁➂")),
        marked(("a.", "b.", "c."), " "),
        marked(("(a)", "(b)", "(c)"), " "),
        marked(("i.", "ii.", "iii."), " "),
        marked(("(i)", "(ii)", "(iii)"), " "),
        marked(("一、", "二、", "三、"), ""),
        marked(("١.", "٢.", "٣."), " "),
        marked(("१.", "२.", "३."), " "),
        marked(("１．", "２．", "３．"), " "),
        numbered("{n}. {text}", between=" "),
        numbered("{n}) {text}", between="; "),
        numbered("({n}) {text}", between=", "),
        numbered("{n}、{text}", between=""),
        numbered("{n}、{text}", between="；"),
        "Here are three: " + numbered("{n}. {text}", between=" "),
        marked(CIRCLED, " ", " "),
        marked(KEYCAPS, " ", " "),
        "| # | instruction |\n|---|---|\n" + numbered("| {n} | {text} |"),
        "| Instruction | Why |\n| :--- | :---: |\n" + numbered("| {text} | it is {n} |"),
        "No | Text\n---|---\n" + numbered("{n} | {text}"),
        "Here is a table:\n\n|instruction|\n|--|\n" + numbered("|{text}|") + "\n\nDone.",
        "\n".join(ITEMS),
        "\n\n".join(ITEMS),
        "Instructions:\n" + "\n".join(ITEMS),
        "### make it red\n\n### no hat [plain]\n\n### on a table",
        "### Color\nmake it red\n### Clothes\nno hat [plain]\n### Ground\non a table",
        "\n".join(f"<instruction>{item}</instruction>" for item in ITEMS),
        "<ol><li>make it red</li><li>no hat [plain]</li><li>on a table</li></ol>",
        "<answer>make it red</answer>\n<answer>no hat [plain]</answer>\n<answer>on a table</answer>",
        "```\n" + numbered("{n}. {text}") + "\n```",
        "```markdown\n- make it red\n- no hat [plain]\n- on a table\n```",
        "1. make it red\\n2. no hat [plain]\\n3. on a table",
        '"1. make it red\\n2. no hat [plain]\\n3. on a table"',
        "1. make it red\r\n2. no hat [plain]\r\n3. on a table\r\n",
        "1. make it\n   red\n2. no hat\n   [plain]\n3. on a table",
        "1. **Color**\n   - make it red\n2. **Clothes**\n   - no hat [plain]\n3. **Ground**\n   - on a table",
    ],
)
def test_other_forms(text):
    assert parse_instruct(text) == ITEMS


@pytest.mark.parametrize(
    "value",
    [
        ITEMS,
        {"instructions": ITEMS},
        {"Instructions": ITEMS},
        {"search_instructions": ITEMS, "count": 3},
        {"result": {"instructions": ITEMS}},
        {"thoughts": "The first is dark.", "instructions": ITEMS},
        {"1": ITEMS[0], "2": ITEMS[1], "3": ITEMS[2]},
        {"instruction_1": ITEMS[0], "instruction_2": ITEMS[1], "instruction_3": ITEMS[2]},
        [{"instruction": text} for text in ITEMS],
        [{"type": "color", "instruction": text} for text in ITEMS],
        [{"id": str(n), "text": text} for n, text in enumerate(ITEMS)],
        [{"id": n, "query": text, "score": 0.5, "ok": True, "none": None} for n, text in enumerate(ITEMS)],
        [{"a": "x", "b": text} for text in ITEMS],
        [[text] for text in ITEMS],
        [{str(n): text} for n, text in enumerate(ITEMS)],
        {"instructions": [{"category": "c", "instruction": text} for text in ITEMS]},
        {"instructions": "\n".join(f"{n}. {text}" for n, text in enumerate(ITEMS, 1))},
        [*ITEMS, 4, None, {}, []],
        {"instructions": [f"{n}. {text}" for n, text in enumerate(ITEMS, 1)]},
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_json_of_any_shape(value):
    for text in (
        json.dumps(value),
        json.dumps(value, indent=2),
        f"```json\n{json.dumps(value)}\n```",
        f"Here: {json.dumps(value)} Done.",
        json.dumps(json.dumps(value)),
        str(value),
    ):
        assert parse_instruct(text) == ITEMS, text


def test_json_with_what_json_has_not():
    assert parse_instruct('["make it red", "no hat [plain]", "on a table",]') == ITEMS
    assert parse_instruct('{"instructions": ["make it red", "no hat [plain]", "on a table",],}') == ITEMS
    assert parse_instruct('{"a": "make it red", "b": "no hat [plain]", "c": "on a table",}') == ITEMS
    assert parse_instruct("['make it red', \"no hat [plain]\", 'on a table']") == ITEMS
    assert parse_instruct('["make it red" "no hat [plain]" "on a table"]') == ITEMS
    assert parse_instruct('["make it\nred", "no hat [plain]", "on a table"]')[1:] == ITEMS[1:]
    lines = "\n".join(json.dumps({"type": "x", "instruction": text}) for text in ITEMS)
    assert parse_instruct(lines) == ITEMS
    assert parse_instruct(lines[:-8], "length") == ITEMS[:2]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "value",
    [
        ITEMS,
        {"instructions": ITEMS},
        [{"type": "color", "instruction": t} for t in ITEMS],
        {str(n): t for n, t in enumerate(ITEMS)},
    ],
)
def test_json_cut_off_anywhere_gives_whole_items_alone(value, indent):
    text = json.dumps(value, indent=indent)
    counts = []
    for end in range(1, len(text)):
        try:
            items = parse_instruct(text[:end], "length")
        except ResponseParseError:
            items = []
        assert items == ITEMS[: len(items)], text[:end]
        counts.append(len(items))
    assert counts == sorted(counts)
    assert counts[-1] >= 2


def test_letters_written_by_their_numbers():
    assert parse_instruct(
        '{"instructions": ["a caf\\u00e9 table", "a \\ud83d\\ude00 face", "show it in a p', "length"
    ) == [
        "a café table",
        "a 😀 face",
    ]
    assert parse_instruct("1. a caf\\u00e9 table\n2. caf&eacute; &amp; bar") == ["a café table", "café & bar"]
    assert parse_instruct('["half \\ud83d of it", "a \\\\u00e9 b"]') == ["half \ud83d of it", "a é b"]


def test_lists_that_were_cut_off_lose_the_last_item():
    assert parse_instruct("1、make it red\n2、no hat [plain]\n3、on a t", "length") == ITEMS[:2]
    assert parse_instruct("| # | text |\n|---|---|\n| 1 | make it red |\n| 2 | no hat [pl", "length") == ITEMS[:1]


@pytest.mark.parametrize(
    "text",
    [
        "1960s car\n2 dogs, not 1\n3D rendering",
        "the 2. floor at night\nwith 1.5 times the light\nbe at no. 10",
        "in red\nin blue\nin green",
        "a 3:1 crop\n16:9 please\n4K",
    ],
)
def test_numbers_that_belong_to_an_instruction_stay(text):
    assert parse_instruct(text) == text.splitlines()
    assert (
        parse_instruct("\n".join(f"{n}. {line}" for n, line in enumerate(text.splitlines(), 1))) == text.splitlines()
    )


@pytest.mark.parametrize(
    "text", ["no", "I'm sorry, but I can't.", "red and blue", "Hm.\nNo.", "{}", "[]", '{"a": 1}', "[1, 2, 3]", "null"]
)
def test_what_is_no_list(text):
    with pytest.raises(ResponseParseError, match="no_list"):
        parse_instruct(text)


def test_completed():
    assert completed('["a", "b') == '["a"]'
    assert completed('{"x": {"y": ["a", "b"], "z": ["c"') == '{"x": {"y": ["a", "b"], "z": ["c"]}}'
    assert completed('{"a": "b", "c": "d') == '{"a": "b"}'
    assert completed("[") is None
    assert completed("[}") is None
    assert texts_of_json("[" * 200_000) is None
    assert texts_of_json('{"a":' * 200_000) is None
