"""Raw tags to tags: what a small model writes besides tags does not survive."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_tools.llm.parsing import tag_list
from dataset_tools.tags.clean import (
    MAX_CHARACTERS,
    MAX_RAW,
    MAX_WORDS,
    clean_tag,
    copies_of_examples,
    item_tags,
    merge_key,
)
from recbole_tema.data.cells import tag_text, tag_token, token_fault

GOOD = {
    "Green Tea": "green tea",
    '  "Organic Teas." ': "organic teas",
    "#film_noir": "film noir",
    "for kids": "kids",
    "science-fiction": "science-fiction",
    "Bob's oats": "bob oats",
    "1980s": "1980s",
    "80s music": "80s music",
    "19th century": "19th century",
    "3D film": "3d film",
    "1999": "1999",
    "rock & roll": "rock roll",
    "R&B": "r&b",
    "Tea &amp; Coffee": "tea coffee",
    "<b>Tea</b>": "tea",
    "tea<br": "tea",
    "br/>tea": "tea",
    "&amp;lt;i&amp;gt;tea": "tea",
    "Genre: Fantasy": "fantasy",
    "Item: knife": "knife",
    "thé vert": "thé vert",
    "the\u0301": "thé",
    "Käse": "käse",
    "GROSS": "gross",
    "Straße": "strasse",
    "緑茶": "緑茶",
    "茶": "茶",
    "चाय": "चाय",
    "ﬁlm": "film",
}
BAD = {
    "no word": ["", " ", "...", "the", "of the", "\x00\x07", "—", "a b c", "x —", "&nbsp;", "<br>"],
    "repeated word": ["food food food", "tea Tea", "tea teas", "x-ray and x-ray"],
    "too long": ["the best of the west", "a very long phrase about something else", "x" * 29],
    "number or id": ["B0013JJZWC", "12345", "32 oz", "tag1", "v2", "1/2 cup", "3.5", "2nd4", "007"],
    "echo of the prompt": ["tags", "Item", "Category:", "null", "product title", "keywords:"],
    "markup or address": ["https://x.y", "www.tea.org", "me@home", "br tea", "amp", "tea com"],
    "no token of a file": ["nan", "NaN"],
}


@pytest.mark.parametrize("raw", GOOD)
def test_good_tags(raw):
    assert clean_tag(raw) == (GOOD[raw], "")


@pytest.mark.parametrize(("reason", "raw"), [(r, raw) for r, raws in BAD.items() for raw in raws])
def test_bad_tags(reason, raw):
    assert clean_tag(raw) == ("", reason)


PIECES = st.sampled_from(
    ["tea", "the", "Item:", "<b>", "</b>", "&amp;", "nan", "'s", "_", "-", "B00X1", "1980s"]
    + ["\u2019s", "\u0130", "\u00df", "\U0001d4fdea", "\u0345", "\u200d", "\u01f0", "\u017f"]
    + [">", "http://", "\u0663"]
)
RAW = st.one_of(
    st.text(), st.lists(PIECES, max_size=6).map("".join), st.lists(PIECES).map(" ".join)
)


@given(RAW)
def test_whatever_comes_out_is_a_sound_tag_and_stays(raw):
    tag, reason = clean_tag(raw)
    assert bool(tag) != bool(reason)
    if not tag:
        return
    assert clean_tag(tag) == (tag, "")
    words = tag.split(" ")
    assert 1 <= len(words) <= MAX_WORDS and len(tag) <= MAX_CHARACTERS
    assert not set(tag) & set('<>"\t\n\r_,;:') and "&amp" not in tag
    assert len({merge_key(word) for word in words}) == len(words)
    token = tag_token(tag)
    assert token_fault(token) is None and token.split() == [token]
    assert tag_token(tag_text(token)) == token


@given(st.text(st.characters(codec="utf-8")), st.text(), st.integers(0, 8))
def test_an_answer_of_any_form_gives_sound_tags(answer, title, limit):
    tags, reasons = item_tags(tag_list(answer), title, limit)
    assert len(tags) <= limit and len({merge_key(tag) for tag in tags}) == len(tags)
    assert all(clean_tag(tag) == (tag, "") for tag in tags)
    assert sum(reasons.values()) + len(tags) <= MAX_RAW


@given(st.text("abcdefghij", min_size=1, max_size=9), st.sampled_from(["b", "i", "p", "span"]))
def test_html_around_a_tag_is_not_seen(word, element):
    bare = clean_tag(word)
    assert clean_tag(f"<{element} class='x'>{word}</{element}>") == bare
    assert clean_tag(html.escape(f"<{element}>{word}</{element}>")) == bare


def test_a_long_text_is_quick():
    for raw in ("x" * 50_000, "<" * 50_000, "&" * 50_000, "a " * 25_000, "a'" * 25_000):
        assert clean_tag(raw)[0] == ""


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("sci-fi movies", "scifi movie", True),
        ("gluten free", "gluten-free", True),
        ("hot dogs", "hotdog", True),
        ("berries", "berry", True),
        ("dishes", "dish", True),
        ("bob's", "bobs", True),
        ("milk chocolate", "chocolate milk", False),
        ("glass", "glas", False),
        ("tea", "team", False),
        ("bus", "bu", False),
    ],
)
def test_merge_key(one, other, same):
    assert (merge_key(one) == merge_key(other)) == same


def test_tags_of_an_item():
    raw = ["Tea", "teas", "The Hobbit", "food food", "Shop", "hot drink", "separated by commas",
           "commas", "green tea", "late"]  # fmt: skip
    tags, reasons = item_tags(
        raw, "Hobbit", 4, frozenset([merge_key("shop")]), "Short tags, separated by commas."
    )
    assert tags == ["tea", "hot drink", "commas", "green tea"]
    assert reasons == {
        "repeat": 1,
        "the whole title": 1,
        "repeated word": 1,
        "name of a domain": 1,
        "echo of the prompt": 1,
    }


def test_an_answer_without_end_is_cut():
    tags, reasons = item_tags((f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(500)),
                              "t", 500)  # fmt: skip
    assert len(tags) == MAX_RAW and not reasons


def test_copies_of_examples():
    example = ["shark", "beach", "fear", "small town"]
    assert copies_of_examples(["Sharks", "beach", "small towns", "love"], [[], example])
    assert not copies_of_examples(["shark", "beach", "love"], [example])
    assert not copies_of_examples(["shark"], [["shark"]])
    assert not copies_of_examples([], [[]])
