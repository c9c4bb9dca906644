"""Raw tags, as a language model wrote them, to tags that may stand in a list.

What a small model produces besides tags (repeats, echoes of the prompt, ids, sentences) is refused
here, each with a reason that the report counts.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from recbole_tema.data.cells import tag_token, token_fault

MAX_WORDS = 3
MAX_CHARACTERS = 28
MAX_TEXT = 400  # characters of a raw tag that are looked at
MAX_RAW = 40  # raw tags of one item that are looked at: an answer that goes on and on is cut

# Words that a tag does not begin or end with, and that are no tag.
STOPPING = """
a an and are as at be but by for from has have i in into is it its more of on or other others so
than that the their them this those to very was were what which who whose why with without you
your
"""
STOP_WORDS = frozenset(STOPPING.split())
# Words about the task, or that say nothing of any item.
SAYING_NOTHING = """
tag tags keyword keywords item items product products title name category categories genre genres
description answer example examples list user assistant system json null none unknown various misc
miscellaneous general etc thing things stuff amp quot nbsp
"""
ECHOES = frozenset(SAYING_NOTHING.split())
# Words that only markup and addresses have: a tag with one of them is a piece of these.
OF_MARKUP = "amp nbsp quot apos lt gt br href http https www com html"
MARKUP = frozenset(OF_MARKUP.split())
NUMBER = re.compile(r"\d{1,2}(st|nd|rd|th)|(18|19|20)?\d0s|(1[89]|20)\d\d|[1-9]d")
# Vowel signs and accents that stand on the letter before; \w leaves them out.
MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
LETTER = f"(?:[^\\W_]|[{MARKS}])"
WORD = re.compile(rf"[^\W_]{LETTER}*(?:['\u2019&-]{LETTER}+)*")
# An element of HTML, or what is left of one where a list was split inside it.
ADDRESS = re.compile(r"\w://|\bwww\.|\w@\w")
ELEMENT = re.compile(r"<[^<>]*>|<[a-zA-Z/!][^<>]*\Z|\A[^<>]*>")


def clean_tag(raw: str) -> tuple[str, str]:
    """(tag, "") or ("", why `raw` is no tag).

    >>> clean_tag(' "Organic Teas." ')
    ('organic teas', '')
    >>> clean_tag("food food food")
    ('', 'repeated word')
    >>> clean_tag("B0013JJZWC")
    ('', 'number or id')
    """
    text = plain(raw[:MAX_TEXT])
    if ADDRESS.search(text):
        return "", "markup or address"
    # "Item: knife" repeats the form of the prompt: what stands behind the label is the tag.
    words = [without_s(word) for word in WORD.findall(text.rpartition(":")[2] or text)]
    while words and words[0] in STOP_WORDS:
        words = words[1:]
    while words and words[-1] in STOP_WORDS:
        words = words[:-1]
    if not words:
        return "", "no word"
    if len(set(map(singular, words))) < len(words):
        return "", "repeated word"
    if len(words) > MAX_WORDS or sum(map(len, words)) + len(words) - 1 > MAX_CHARACTERS:
        return "", "too long"
    if any(is_id(word) for word in words):
        return "", "number or id"
    if all(len(word) < 2 and word.isascii() for word in words):
        return "", "no word"
    if any(word in MARKUP for word in words):
        return "", "markup or address"
    if all(word in ECHOES for word in words):
        return "", "echo of the prompt"
    tag = " ".join(words)
    if token_fault(tag_token(tag)):  # "nan" would be read as a missing value
        return "", "no token of a file"
    return tag, ""


def plain(text: str) -> str:
    """A text without HTML, in the one form and case in which texts are compared."""
    for _ in range(3):  # what was escaped twice: &amp;lt;b&amp;gt;
        text = ELEMENT.sub(" ", html.unescape(text))
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return text.casefold().replace("_", " ").replace("\u2019", "'")


def without_s(word: str) -> str:
    """A word without the English possessive."""
    while word.endswith("'s"):
        word = word.removesuffix("'s")
    return word


def is_id(word: str) -> bool:
    """Whether a word is a number, code or id: digits other than a year, decade or ordinal."""
    return any(c.isdigit() for c in word) and NUMBER.fullmatch(word) is None


def singular(word: str) -> str:
    """A key under which the English singular and plural of a word meet; not always a word.

    >>> [singular(w) for w in ("teas", "dishes", "berries", "glass", "bus", "series")]
    ['tea', 'dish', 'berry', 'glass', 'bus', 'series']
    """
    if len(word) > 4 and word.endswith("ie"):
        return word[:-2] + "y"
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is", "series")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses", "zes")):
        return word[:-2]
    return word[:-1]


def merge_key(tag: str) -> str:
    """Tags of one key are one tag: number, hyphens, blanks and apostrophes do not count.

    >>> merge_key("sci-fi movies") == merge_key("scifi movie") == merge_key("Sci Fi Movie")
    True

    The order of words does count: chocolate milk is no milk chocolate.
    """
    return "".join(singular(word) for word in re.split(r"[\s-]+", tag.casefold().replace("'", "")))


def item_tags(
    raw: Iterable[str],
    title: str,
    limit: int,
    own_words: frozenset[str] = frozenset(),
    instructions: str = "",
) -> tuple[list[str], Counter]:
    """The first `limit` sound tags of one item, none twice, and why others were refused.

    Args:
        raw: The model's tags in its order.
        title: The item's; a tag that is the whole title is refused.
        own_words: Keys of tags that say nothing here, such as the names of the domains.
        instructions: What the model was told; a tag of several words out of it is an echo.
    """
    tags: list[str] = []
    reasons: Counter[str] = Counter()
    seen = set()
    whole, told = merge_key(clean_words(title)), f" {clean_words(instructions)} "
    for text in list(raw)[:MAX_RAW]:
        tag, reason = clean_tag(text)
        key = merge_key(tag)
        if not reason and key == whole:
            reason = "the whole title"
        elif not reason and key in own_words:
            reason = "name of a domain"
        elif not reason and " " in tag and f" {tag} " in told:
            reason = "echo of the prompt"
        elif not reason and key in seen:
            reason = "repeat"
        if reason:
            reasons[reason] += 1
        elif len(tags) < limit:
            seen.add(key)
            tags.append(tag)
    return tags, reasons


def clean_words(text: str) -> str:
    """The words of a text as `clean_tag` would write them, of any number and all kinds.

    >>> clean_words("The <b>Hobbit</b>: Bilbo's Tale_1")
    "the hobbit bilbo's tale 1"
    """
    return " ".join(WORD.findall(plain(text)))


def copies_of_examples(tags: Sequence[str], examples: Sequence[Sequence[str]]) -> bool:
    """Whether an answer repeats a few-shot example: three quarters of its tags and at least 3.

    A model that does not know what to say of an item says what stood before; those tags belong to
    the example, not to the item.
    """
    keys = {merge_key(tag) for tag in tags}
    return any(
        len(keys & (theirs := {merge_key(tag) for tag in example})) >= max(3, 0.75 * len(theirs))
        for example in examples
    )
