"""The final answer of a model that thinks aloud before it, told from its thoughts.

Thoughts stand between marks (`<think>`, `[THINK]`, `<thought>`, ...), or in channels of their own
(gpt-oss). A chat template may have given the opening mark already, so that only the closing one is
in the answer. A mark within a string of JSON is no mark: a title may be "<think>".
"""

import json
import re
from collections.abc import Iterator

BRACKET = re.compile(r"[{\[]")
MOST_BRACKETS = 400  # that are looked at for JSON around a mark
_CUT_ESCAPE = 6  # characters of the longest escape or word of JSON, where a text was cut off

_NAME = r"(?:\w{1,12}:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)"
_ANSWER = r"(?:final[_ ])?(?:answer|response|solution|output)"
# gpt-oss: `<|channel|>final <|constrain|>json<|message|>`; without its special tokens, as some
# servers give it, `analysisWe need tags.assistantfinaltea`.
_HEADER = r"[^<\n]{0,80}(?:<\|constrain\|>[^<\n]{0,20})?<\|message\|>"
_OPENING = (
    rf"(?i:<\|?(?:begin_of_|start_)?{_NAME}\|?>|\[think\]|\u25c1think\u25b7|<\|channel>thought\b"
    r"|^[ \t]*here(?:'s| is) my thought process:"
    rf"|(?:<\|channel\|>)?(?:analysis|commentary){_HEADER}"
    r"|assistant(?:analysis|commentary))|\A\s*analysis(?=[A-Z])"
)
_CLOSING = (
    rf"(?i:<\|?(?:/|end_of_|end_){_NAME}\|?>|\[/think\]|\u25c1/think\u25b7|<channel\|>"
    r"|^[ \t]*here(?:'s| is) my response:)"
)
_BEGINNING = (  # of the answer, whatever stands before it
    rf"(?i:(?:<\|channel\|>)?final{_HEADER}|assistantfinal"
    rf"|<\|?(?:begin_of_|start_)?{_ANSWER}\|?>|\[begin {_ANSWER}\])"
)
_END = (
    rf"(?i:<\|?(?:/|end_of_|end_){_ANSWER}\|?>|\[end {_ANSWER}\]|<\|(?:end|return|call|start)\|>)"
)
_MARK = re.compile(
    rf"(?P<opening>{_OPENING})|(?P<closing>{_CLOSING})|(?P<beginning>{_BEGINNING})|(?P<end>{_END})",
    re.MULTILINE,
)
_OPENED = re.compile(rf"(?:{_OPENING})\s*\Z", re.MULTILINE)
_PIECES = ("<|channel|>", "<|message|>", "<|constrain|>")  # tokens that are a mark together
_NOTHING = re.compile(r"\s*(?:```\w*\s*)?\Z")  # what may stand between a mark and JSON
_DECODER = json.JSONDecoder()


def without_thoughts(text: str, opened: bool = False) -> str:
    """The part of a text that is the answer; the very text where it has no marks.

    It begins behind the last mark that closes thoughts, and ends where others begin. Thoughts that
    are never closed have no answer behind them.

    Args:
        text: What the model wrote.
        opened: The prompt ended within thoughts.

    >>> without_thoughts("[THINK]Tea?[/THINK]tea"), without_thoughts("Tea?</think>\\ntea")
    ('tea', 'tea')
    >>> without_thoughts("<|channel|>analysis<|message|>Tea?"), without_thoughts("T", opened=True)
    ('', '')
    """
    start, end = len(text) if opened else 0, None
    for mark in _marks(text):
        if mark.lastgroup in ("closing", "beginning"):
            start, end = mark.end(), None
        elif end is None:
            end = mark.start()
    return text if (start, end) == (0, None) else text[start:end].lstrip()


def was_opened(text: str) -> bool:
    """Whether a text closes thoughts that it did not open: the prompt has done so.

    >>> was_opened("Tea?</think>tea"), was_opened("<think>Tea?</think>tea"), was_opened("tea")
    (True, False, False)
    """
    first = next(_marks(text), None)
    return first is not None and first.lastgroup == "closing"


def ends_opened(prompt: str) -> bool:
    """Whether a prompt ends with a mark that opens thoughts."""
    return bool(_OPENED.search(prompt))


def is_mark(token: str) -> bool:
    """Whether a special token of a model is a mark of its thoughts, or a part of one."""
    return token in _PIECES or bool(_MARK.fullmatch(token))


def _marks(text: str) -> Iterator[re.Match]:
    """The marks that are not within JSON, in order."""
    looked = behind = tries = 0  # places: up to where JSON was looked for, end of the last mark
    thinking = False  # where an answer that was cut off cannot begin
    for mark in _MARK.finditer(text):
        while tries < MOST_BRACKETS and (found := BRACKET.search(text, looked, mark.start())):
            tries += 1
            answer = not thinking and bool(_NOTHING.match(text, behind, found.start()))
            looked = _end_of_json(text, found.start(), answer) or found.end()
        if looked <= mark.start():
            looked = behind = mark.end()
            thinking = mark.lastgroup == "opening"
            yield mark


def _end_of_json(text: str, start: int, may_be_cut: bool) -> int | None:
    """Where the JSON value at `start` ends; at the end of the text where it was cut off there."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except json.JSONDecodeError as error:
        to_the_end = error.msg.startswith("Unterminated") or error.pos >= len(text) - _CUT_ESCAPE
        return len(text) if may_be_cut and to_the_end else None
    except RecursionError:
        return None
