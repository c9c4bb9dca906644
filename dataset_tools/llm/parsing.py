"""JSON, scores and tags out of the text that a language model wrote: untrusted, often broken."""

import json
import math
import re
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from typing import Any

from dataset_tools.llm.thoughts import BRACKET, MOST_BRACKETS, without_thoughts
from recbole_tema.errors import DataError

HOW_TO_GET = "pip install 'recbole-tema[features]'"
LONGEST_TEXT = 100_000
# json_repair takes time in the square of its input: of so much at worst a second or two.
LONGEST_REPAIR = 4_000
MOST_STARTS = 64
DEEPEST = 40  # levels of a JSON answer that was cut off
MOST_TAGS = 100
LEAST_WORDS = 3  # of a sentence that was cut off, for it to say anything
LONGEST_TAG = 200
# A score so far outside 0..1 is rounding and is clipped; more is another scale, and no answer.
SCORE_SLACK = 0.05
LONGEST_SCORE = 40  # characters at the end of a line in which its score is looked for

# What may stand before the JSON of an answer without an end: a fence, a few words before that.
_LEAD = re.compile(r"\s*(?:[^\n`]{0,60}```\w*\s*)?")
_SENTENCES = re.compile(
    r"\A.*(?:[.!?][\"')\u201d\u2019]*(?=\s|\Z)|[\u3002\uff01\uff1f])", re.DOTALL
)
_SCORE_LINE = re.compile(r"(?:^|[\s:=(|-])([01]?\.\d+|[01])\s*[),.;]?$")
_LIST_MARK = re.compile(r"^\s*(?:(?:[-*+\u2022\u00b7\u2013\u2014>#]+|\(?\d{1,3}[.):](?!\d))\s*)+")
_LABEL = re.compile(
    r"^(?:[^,;|:]{1,40}|[^:]{0,80}\b(?:tags?|keywords?|labels?|list)\b[^:]{0,20}):(?=\s|$)",
    re.IGNORECASE,
)
# With the Chinese and Japanese commas and semicolon, bullets and middle dots.
_SEPARATOR = re.compile(r"[,;|\t\u3001\uff0c\uff1b\u2022\u00b7]")
_WRAPPING = " \t\"'`*_#.:()[]{}<>\\" + "\u201c\u201d\u2018\u2019\u00ab\u00bb"
_DECODER = json.JSONDecoder()
# Of JSON: a whole string, or a quote, a bracket, a comma.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|["\[\]{},]', re.DOTALL)
_CLOSING = str.maketrans("[{", "]}")


def clean_text(text: str, opened: bool = False) -> str:
    """A model's final answer: without its thoughts (see `thoughts`) and lone surrogates.

    >>> clean_text("<think>Hm, tea.</think> green tea"), clean_text("Hm.\\n</think>\\n\\ntea")
    ('green tea', 'tea')
    """
    text = without_thoughts(text, opened)[:LONGEST_TEXT]
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def json_value(text: str) -> dict | list:
    """The JSON object or array in a text, whatever stands around it; repaired if it is broken.

    Whole JSON is preferred, and the longest where there are several; only without any is broken
    or cut-off JSON repaired, from its first bracket on.

    >>> json_value('Sure! ```json\\n{"tags": ["tea", "herbs"]}\\n```')
    {'tags': ['tea', 'herbs']}
    >>> json_value('{"scores": [0.5, 0.25')
    {'scores': [0.5, 0.25]}

    Raises:
        ValueError: there is none, or it holds NaN or an infinity.
        DataError: the package json_repair is not installed.
    """
    text = clean_text(text)
    value = _whole_value(text)
    if value is None:
        value = _repaired_value(text)
    if value is None:
        raise ValueError("no JSON in the answer")
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        raise ValueError("JSON with NaN, an infinity or too many levels in the answer") from None
    return value


def _whole_value(text: str) -> dict | list | None:
    best, length, position = None, 0, 0
    for _ in range(MOST_STARTS):
        if (bracket := BRACKET.search(text, position)) is None:
            break
        start, position = bracket.span()
        try:
            value, position = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if position - start > length:
            best, length = value, position - start
    return best


def _repaired_value(text: str) -> dict | list | None:
    if find_spec("json_repair") is None:
        raise DataError(f"reading a model's answers needs json_repair; run: {HOW_TO_GET}")
    import json_repair

    starts = {text.find("{"): dict, text.find("["): list}
    for start, kind in sorted(starts.items()):
        part = text[start : start + LONGEST_REPAIR] if start >= 0 else ""
        too_many = next(islice(BRACKET.finditer(part), MOST_BRACKETS, None), None)
        try:
            value = json_repair.loads(part[: too_many.start()] if too_many else part)
        except Exception:  # whatever a parser stumbles over in such a text: it is no JSON
            continue
        if isinstance(value, kind) and value:
            return value
    return None


def finished_json(text: str) -> dict | list:
    """What is complete of the JSON of a text that was cut off; of a list, the whole entries.

    JSON behind other words counts as none: without an end they may be thoughts, and it a draft.

    >>> finished_json('{"tags": ["tea", "hot dri')
    {'tags': ['tea']}
    >>> finished_json('{"merge": [{"tag": "a", "into": "b"}, {"tag": "c", "in')
    {'merge': [{'tag': 'a', 'into': 'b'}]}

    Raises:
        ValueError: nothing is.
    """
    text = clean_text(text)
    first = BRACKET.search(text)
    if first is None or not _LEAD.fullmatch(text[: first.start()]):
        raise ValueError("no JSON at the beginning of the answer")
    text = text[first.start() :]
    end, ends_with = _last_complete(text)
    value = json_value(text[:end] + ends_with) if end else None
    if not value or (isinstance(value, dict) and not any(value.values())):
        raise ValueError("no complete entry in the answer")
    return value


def _last_complete(text: str) -> tuple[int, str]:
    """Where the last complete entry of the JSON at the start of `text` ends, and what closes it.

    An entry is an element of a list, or a member of an object that is in no list: half an object
    of a list is no entry.
    """
    is_open, end, closing = "", 0, ""
    for token in _TOKEN.finditer(text):
        mark, after = token[0], token.end()
        if mark == '"' or len(is_open) > DEEPEST:  # a string without an end
            break
        if mark in "[{":
            is_open += mark
            continue
        if mark in "]}":
            is_open = is_open[:-1]
        elif mark == ",":
            after = token.start()
        elif is_open[-1:] != "[":  # a key, or the value of a member that may go on
            continue
        if "{" not in is_open.partition("[")[2]:
            end, closing = after, is_open[::-1].translate(_CLOSING)
        if not is_open:
            break
    return end, closing


def finished_text(text: str) -> str:
    """A text that was cut off, up to its last whole sentence; without one, its whole words.

    >>> finished_text("Likes tea and cake. Often bu")
    'Likes tea and cake.'
    >>> finished_text("Likes strong tea, cakes and goo")
    'Likes strong tea, cakes and'

    Raises:
        ValueError: it is not even some words.
    """
    sentences = _SENTENCES.match(text)
    found = sentences[0].strip() if sentences else ""
    # "Likes Dr." is no sentence; Chinese and Japanese ones have no blanks.
    if len(found.split()) >= LEAST_WORDS or found[-1:] in ("\u3002", "\uff01", "\uff1f"):
        return found
    words = text.split()[:-1]
    if len(words) < LEAST_WORDS:
        raise ValueError("a few words")
    return " ".join(words)


def scores(text: str, n: int) -> list[float]:
    """The `n` scores from 0 to 1 in a text, in order.

    Reads `{"scores": [...]}`, a bare list, an object of number -> score, a list of objects that
    hold a `score`, and lines that end in a score. Up to 0.05 outside 0..1 is clipped.

    >>> scores('{"scores": [0.9, "0.25", 0]}', 3)
    [0.9, 0.25, 0.0]

    Raises:
        ValueError: there are not `n` scores, or one of them is no number or lies outside 0..1.
    """
    try:
        found = _score_values(json_value(text), n)
    except ValueError as error:
        ends = (line.rstrip()[-LONGEST_SCORE:] for line in clean_text(text).splitlines())
        found = [line[1] for end in ends if (line := _SCORE_LINE.search(end))]
        if len(found) != n:
            raise ValueError(f"{error}, and no line for each of {n} scores") from None
    if len(found) != n:
        raise ValueError(f"{len(found)} scores where {n} were asked for")
    return [_score(value) for value in found]


def _score_values(value: dict | list, n: int) -> list:
    """The list of what should be scores in a parsed answer."""
    if isinstance(value, dict):
        only = next(iter(value.values()), None) if len(value) == 1 else value
        value = value.get("scores", only)
    if isinstance(value, dict):
        numbers = [str(number) for number in range(1, n + 1)]
        return [value[k] for k in numbers] if set(value) == set(numbers) else list(value.values())
    if not isinstance(value, list):
        raise ValueError("no list of scores in the answer")
    return [item.get("score") if isinstance(item, dict) else item for item in value]


def _score(value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not -SCORE_SLACK <= number <= 1 + SCORE_SLACK:
        raise ValueError(f"{str(value)[:40]!r} where a score from 0 to 1 was asked for")
    return min(1.0, max(0.0, number))


def tag_list(text: str) -> list[str]:
    """The raw tags in a text, in order: out of JSON, bullets, numbered lines, or a comma list.

    At most 100 tags of at most 200 characters; quotes, bullets and labels ("Tags:") are taken
    off, nothing else is: whether a tag is any good is for the caller to say. Never raises on what
    a model wrote.

    >>> tag_list('Tags: "green tea", herbal; loose leaf')
    ['green tea', 'herbal', 'loose leaf']
    >>> tag_list("1. Green tea\\n2. Herbal")
    ['Green tea', 'Herbal']
    """
    found: list[str] = []
    with suppress(ValueError):
        found = _strings(json_value(text))
    if not found:
        lines = (_LIST_MARK.sub("", line) for line in clean_text(text).splitlines())
        found = [part for line in lines for part in _SEPARATOR.split(_LABEL.sub("", line))]
    tags = (_unwrapped(part) for part in found)
    return [tag for tag in tags if tag][:MOST_TAGS]


def _unwrapped(part: str) -> str:
    part = _LIST_MARK.sub("", part[: 4 * LONGEST_TAG])
    return " ".join(part.strip(_WRAPPING).split())[:LONGEST_TAG].strip()


def _strings(value: dict | list) -> list[str]:
    """The texts in a JSON value, in order; an object of text -> number is a list of its keys."""
    found: list[str] = []
    todo = [value]
    while todo and len(found) < MOST_TAGS:
        value = todo.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list):
            todo.extend(reversed(value))
        elif isinstance(value, dict) and all(type(x) in (int, float, bool) for x in value.values()):
            found.extend(value)
        elif isinstance(value, dict):
            todo.extend(reversed(list(value.values())))
    return found
