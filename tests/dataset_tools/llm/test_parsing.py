"""What a model wrote, however broken, gives JSON, scores and tags, or one clear reason."""

import json
from time import process_time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataset_tools.llm.parsing import (
    LONGEST_TAG,
    MOST_TAGS,
    clean_text,
    finished_json,
    finished_text,
    json_value,
    scores,
    tag_list,
)
from dataset_tools.llm.redact import LONGEST, redacted
from dataset_tools.llm.thoughts import was_opened

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"tags": ["tea"]}', {"tags": ["tea"]}),
        ('```json\n{"tags": ["tea"]}\n```', {"tags": ["tea"]}),
        ('Sure! Here it is:\n```\n["tea", "pot"]\n```\nEnjoy.', ["tea", "pot"]),
        ('<think>{"no": 1} hm</think>\n{"yes": 2}', {"yes": 2}),
        ('I think [maybe] this: {"a": 1}', {"a": 1}),
        ('See [1]. {"tags": ["tea", "pot"]}', {"tags": ["tea", "pot"]}),
        ('{"tags": ["tea", "pot', {"tags": ["tea", "pot"]}),
        ("{'tags': ['tea', 'pot'],}", {"tags": ["tea", "pot"]}),
        ('{"a": "he said "hi" there"}', {"a": 'he said "hi" there'}),
        ('{"名": "緑茶"}', {"名": "緑茶"}),
        ('{"a": "\\ud800x"}', {"a": "\ud800x"}),
    ],
)
def test_the_json_in_a_text_is_found(text, value):
    assert json_value(text) == value


@pytest.mark.parametrize("text", ["", "tea, pot", "hello {world", "null", "3", "<html></html>"])
def test_a_text_without_json_is_a_value_error(text):
    with pytest.raises(ValueError, match="no JSON"):
        json_value(text)


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": [Infinity]}', '{"a": 1e999}'])
def test_numbers_that_json_does_not_have_are_refused(text):
    with pytest.raises(ValueError, match="NaN"):
        json_value(text)


@given(
    JSON.filter(lambda value: isinstance(value, dict | list)),
    st.sampled_from(["", "Sure!\n", "```json\n"]),
    st.sampled_from(["", "\n```", "\nI hope that this helps."]),
)
def test_whole_json_comes_back_whatever_stands_around_it(value, before, after):
    assert json_value(before + json.dumps(value) + after) == value


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 50_000, '{"' * 50_000, "{[}]" * 30_000, '"' * 99_999]
)
def test_hostile_brackets_end_soon(text):
    start = process_time()
    tag_list(text)
    with pytest.raises(ValueError, match=r"JSON|score"):
        scores(text, 3)
    assert process_time() - start < 10


@pytest.mark.parametrize(
    "text",
    [
        '{"scores": [0.9, 0.25, 0]}',
        '```json\n{"scores": ["0.9", 0.25, 0.0]}\n```',
        "[0.9, 0.25, 0]",
        '{"ratings": [0.9, 0.25, 0]}',
        '{"scores": {"1": 0.9, "3": 0, "2": 0.25}}',
        '[{"option": "tea", "score": 0.9}, {"score": 0.25}, {"score": 0}]',
        "1. tea: 0.9\n2. pot: 0.25\n3. car: 0",
        "Scores:\n- tea (0.9)\n- pot (0.25)\n- car (0)\nThat is all.",
        '{"scores": [0.9, 0.25, -0.04]}',
    ],
)
def test_scores_are_read_in_order(text):
    assert scores(text, 3) == [0.9, 0.25, 0.0]


def test_a_score_just_outside_is_clipped():
    assert scores('{"scores": [1.05, -0.05]}', 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"scores": [0.9, 0.25]}', "2 scores where 3"),
        ('{"scores": [0.9, 0.25, 0, 1]}', "4 scores where 3"),
        ('{"scores": [9, 3, 1]}', "'9' where a score from 0 to 1"),
        ('{"scores": [0.5, "high", 1]}', "'high' where"),
        ('{"scores": [true, 0.5, 1]}', "'True' where"),
        ('{"scores": [null, 0.5, 1]}', "'None' where"),
        ('{"scores": [[1], 0.5, 1]}', "where a score"),
        ('{"scores": 0.5}', "no list of scores"),
        ("The first one is best.", "no JSON in the answer, and no line for each of 3"),
        ("", "no JSON"),
    ],
)
def test_scores_that_cannot_be_used_say_why(text, reason):
    with pytest.raises(ValueError, match=reason):
        scores(text, 3)


@pytest.mark.parametrize(
    "text",
    [
        '["green tea", "loose leaf", "7.1 surround"]',
        '{"tags": ["green tea", "loose leaf", "7.1 surround"]}',
        '{"green tea": 0.9, "loose leaf": 0.5, "7.1 surround": 0.1}',
        '[{"tag": "green tea"}, {"tag": "loose leaf"}, {"tag": "7.1 surround"}]',
        "green tea, loose leaf, 7.1 surround",
        "Tags: green tea; loose leaf; 7.1 surround.",
        "Sure, here are the tags: green tea, loose leaf, 7.1 surround",
        "1. green tea\n2. loose leaf\n3. 7.1 surround",
        "1) **green tea**\n2) **loose leaf**\n3) **7.1 surround**",
        "Here are three tags:\n- green tea\n* loose leaf\n\u2022 7.1 surround\n",
        '"green tea", "loose leaf", "7.1 surround"',
        "\u201cgreen tea\u201d, 'loose leaf', `7.1 surround`",
        "green tea | loose leaf | 7.1 surround",
        "#green tea\n#loose leaf\n#7.1 surround",
        "green  tea\n\nloose leaf\n7.1 surround",
    ],
)
def test_tags_come_out_of_every_form(text):
    assert tag_list(text) == ["green tea", "loose leaf", "7.1 surround"]


def test_tags_of_other_scripts_are_kept():
    assert tag_list("緑茶、抹茶\uff0c茶\uff1bčaj") == ["緑茶", "抹茶", "茶", "čaj"]


def test_a_cut_off_list_gives_what_there_is():
    assert tag_list('["green tea", "loose leaf", "jap') == ["green tea", "loose leaf", "jap"]


@given(st.text() | st.text(alphabet="[]{}\",':;- \n*1.ax"))
@example("[" * 3000)
@example('{"a": ' * 500)
@example("a" * 5000)
@example("x," * 5000)
@example("\ud800, \x00, \u202e")
@settings(deadline=None)
def test_tags_of_any_text_are_a_bounded_list_of_texts(text):
    tags = tag_list(text)
    assert len(tags) <= MOST_TAGS
    for tag in tags:
        assert isinstance(tag, str)
        assert 0 < len(tag) <= LONGEST_TAG
        assert tag == tag.strip()
        tag.encode("utf-8")


@given(st.text(), st.integers(1, 4))
@settings(deadline=None)
def test_scores_of_any_text_are_scores_or_a_value_error(text, n):
    try:
        found = scores(text, n)
    except ValueError:
        return
    assert len(found) == n
    assert all(0 <= score <= 1 for score in found)


KEY = "k3y-0123456789abcdefghij"


@given(st.text(max_size=40), st.integers(0, 16), st.integers(8, 24), st.text(max_size=40))
def test_no_piece_of_a_key_gets_through(before, start, size, after):
    text = before + KEY[start : start + size] + after
    shown = redacted(text, [KEY])
    assert len(shown) <= LONGEST
    assert not any(KEY[i : i + 8] in shown for i in range(len(KEY) - 7))


def test_what_is_no_secret_stays():
    assert redacted("the model 'tea'\n is not  loaded", [KEY]) == "the model 'tea' is not loaded"
    assert redacted("Incorrect key sk-ab***xyz, Bearer x.y-z") == "Incorrect key ***, Bearer ***"
    assert redacted("a k3y-012 b", ["k3y-012"]) == "a *** b"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"tags": ["tea", "po', {"tags": ["tea"]}),
        ('{"tags": ["tea", "pot"', {"tags": ["tea", "pot"]}),
        ('Sure: ```json\n{"tags": ["a \\" ] }", "b', {"tags": ['a " ] }']}),
        ('<think>["x", "y"]</think>{"tags": ["tea", ', {"tags": ["tea"]}),
        ('{"tags": ["tea"]} I chose thi', {"tags": ["tea"]}),
        ('["tea", "po', ["tea"]),
        ("[0.5, 0.2", [0.5]),
        ('{"a": 1, "b": ["x"], "c": 12', {"a": 1, "b": ["x"]}),
        ('{"merge": [{"tag": "a", "into": "tea"}, {"tag": "b", "into": "te',
         {"merge": [{"tag": "a", "into": "tea"}]}),
        ('Okay, tags. Draft: {"tags": ["draft one", "draft two"]} Hmm, but wait, let', None),
        ('Okay, tags. Draft: {"tags": ["draft one", "dra', None),
        ('{"merge": [{"tag": ["a"', None),
        ('{"tags": ["te', None),
        ('{"tags": [], "x', None),
        ('{"tags', None),
        ("tea, pot", None),
        ("", None),
        ("[" * 100_000, None),
    ],
)  # fmt: skip
def test_of_json_that_was_cut_off_what_is_complete_is_taken(text, value):
    if value is None:
        with pytest.raises(ValueError):
            finished_json(text)
    else:
        assert finished_json(text) == value


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6), st.data())
def test_a_list_that_was_cut_off_anywhere_has_only_whole_entries(tags, data):
    written = [json.dumps(tag, ensure_ascii=data.draw(st.booleans())) for tag in tags]
    text = '{"tags": [' + ", ".join(written) + "]}"
    cut = text[: data.draw(st.integers(0, len(text)))]
    whole = sum(
        len('{"tags": [' + ", ".join(written[: n + 1])) <= len(cut) for n in range(len(tags))
    )
    try:
        found = finished_json(cut)["tags"]
    except ValueError:
        found = []
    assert found == tags[:whole]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Likes strong black tea. Often bu", "Likes strong black tea."),
        ("Likes strong black tea.", "Likes strong black tea."),
        ('Says "I like tea!" Often bu', 'Says "I like tea!"'),
        ("Likes Dr. Pepper and other sweet dri", "Likes Dr. Pepper and other sweet"),
        ("Likes version 3.5 of every tool he buys and", "Likes version 3.5 of every tool he buys"),
        ("喜欢喝绿茶。经常", "喜欢喝绿茶。"),
        ("Likes te", None),
        ("Supercalifragilistic", None),
        ("", None),
    ],
)
def test_of_a_text_that_was_cut_off_whole_sentences_or_words_are_taken(text, kept):
    if kept is None:
        with pytest.raises(ValueError):
            finished_text(text)
    else:
        assert finished_text(text) == kept


# ---- thoughts

# What stands before the thoughts, between them and the answer, and behind it.
MARKS = [
    ("<think>", "</think>", ""),
    ("\n<think>\n", "\n</think>\n\n", ""),
    ("<THINK>", "</Think>", ""),
    ("[THINK]", "[/THINK]", ""),
    ("<thinking>", "</thinking>", ""),
    ("<thought>", "</thought>", ""),
    ("<reasoning>", "</reasoning>", ""),
    ("<seed:think>", "</seed:think>", ""),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7", ""),
    ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>\n<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<think>", "</think><answer>", "</answer>"),
    ("<|channel|>analysis<|message|>",
     "<|end|><|start|>assistant<|channel|>final<|message|>", "<|return|>"),
    ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>",
     "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>", "<|end|>"),
    ("analysisWell. ", "assistantfinal", ""),  # the same without its special tokens
    ("<|channel>thought\n", "<channel|>", ""),
    ("Here is my thought process:\n", "\nHere is my response:\n", ""),
]  # fmt: skip
OPENED = [(closes, after) for opens, closes, after in MARKS if "/think" in closes.lower()]
DRAFT = 'Maybe {"tags": ["too vague", "also vague", "third idea"]}, or ["x", "y"]? No.'
FINAL = '{"tags": ["tea", "herbs"]}'


@pytest.mark.parametrize(("opens", "closes", "after"), MARKS)
def test_thoughts_are_no_answer(opens, closes, after):
    said = f"{opens}{DRAFT}{closes}{FINAL}{after}"
    assert json_value(said) == json.loads(FINAL)
    assert tag_list(said) == ["tea", "herbs"]
    assert finished_json(f'{opens}{DRAFT}{closes}{{"tags": ["tea", "he') == {"tags": ["tea"]}
    assert scores(f"{opens}[0.1, 0.2]{closes}[0.5, 0.25]{after}", 2) == [0.5, 0.25]
    profile = f"{opens}Buys tea often.\n\nLikes it?{closes}Likes herbal tea.{after}"
    assert clean_text(profile) == "Likes herbal tea."
    # Longer than any answer may be.
    assert clean_text(f"{opens}{'Hm. ' * 50_000}{closes}Likes herbal tea.{after}") == (
        "Likes herbal tea."
    )


@pytest.mark.parametrize(("closes", "after"), OPENED)
def test_thoughts_that_the_prompt_opened_are_no_answer(closes, after):
    assert len(OPENED) >= 6
    assert json_value(f"{DRAFT}{closes}{FINAL}{after}") == json.loads(FINAL)
    assert clean_text(f"Buys tea often.{closes}Likes herbal tea.{after}") == "Likes herbal tea."
    assert was_opened(f"{DRAFT}{closes}{FINAL}{after}") and not was_opened(FINAL)


@pytest.mark.parametrize("opens", [opens for opens, _, _ in MARKS])
def test_thoughts_that_never_end_have_no_answer(opens):
    assert clean_text(f"{opens}{DRAFT}") == "" and tag_list(f"{opens}{DRAFT}") == []
    for read in (json_value, finished_json, lambda text: scores(text, 2)):
        with pytest.raises(ValueError):
            read(f"{opens}[0.5, 0.25] {DRAFT}")
    assert not was_opened(f"{opens}{DRAFT}")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("\n\n tea", "tea"),
        ("I think of tea, and a thought of cake.", "I think of tea, and a thought of cake."),
        ("think, analysis, final", "think, analysis, final"),
        ("tea <think>or not", "tea"),
        ("<think>a</think>tea<think>b", "tea"),
        ("<think>a <think> b</think> c</think>tea", "tea"),  # they speak of their own marks
        ('{"a": "</think>"} <think>{"b": ["longer than it"]}', '{"a": "</think>"}'),
    ],
)
def test_what_is_left_of_a_text(text, clean):
    assert clean_text(text) == clean


_words = [part for marks in MARKS for part in marks] + ["think", '"', "\\", "{", "[", "```", "x"]
MARKED = st.lists(st.sampled_from(_words), max_size=6).map("".join)
MARKED_JSON = st.recursive(
    MARKED | st.integers(),
    lambda inner: st.lists(inner, min_size=1) | st.dictionaries(MARKED, inner, min_size=1),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict | list))


@given(MARKED_JSON, st.sampled_from(MARKS), st.booleans(), st.booleans())
@example(["</think>"], MARKS[0], False, True)
def test_marks_within_json_are_text(value, marks, thinks, ascii_only):
    opens, closes, after = marks
    text = json.dumps(value, ensure_ascii=ascii_only)
    if thinks:
        text = f"{opens}{DRAFT}{closes}{text}{after}"
    assert json_value(text) == value
    assert json_value(f"Sure!\n```json\n{text}\n```") == value
    assert clean_text(clean_text(text)) == clean_text(text)


@given(st.lists(MARKED, min_size=1, max_size=5), st.sampled_from(MARKS), st.booleans(), st.data())
def test_marks_within_json_that_was_cut_off_are_text(tags, marks, thinks, data):
    begins = f"{marks[0]}{DRAFT}{marks[1]}" if thinks else ""
    written = [json.dumps(tag) for tag in tags]
    cut = data.draw(st.integers(0, len(", ".join(written))))
    whole = sum(len(", ".join(written[: n + 1])) <= cut for n in range(len(tags)))
    try:
        found = finished_json(f"{begins}[{', '.join(written)[:cut]}")
    except ValueError:
        found = []
    assert found == tags[:whole]


@pytest.mark.parametrize("piece", ["[", '["a",', "<think>", "</think>[", "final", '{"a": "<think>'])
def test_marks_are_looked_for_in_bounded_time(piece):
    started = process_time()
    clean_text(piece * (200_000 // len(piece)) + "</think>tea")
    assert process_time() - started < 5
