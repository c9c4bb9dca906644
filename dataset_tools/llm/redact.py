"""What a server said, made fit for a log: short, on one line, without secrets."""

import re
from collections.abc import Iterable

LONGEST = 300
PIECE = 8  # so many characters of a key in a row are not shown either
_BEARER = re.compile(r"\b(bearer)\s+[^\s\"',;}]+", re.IGNORECASE)
_KEY_LIKE = re.compile(r"\bsk-[\w*-]{6,}")
HIDDEN = "***"


def redacted(text: object, secrets: Iterable[str] = ()) -> str:
    """`text` on one line, at most 300 characters, without `secrets` or pieces of them.

    Whatever looks like a bearer token or a key of the form sk-... is hidden as well.

    >>> redacted("no access for Bearer abcdefghijkl,\\n try again", ["abcdefghijkl"])
    'no access for Bearer ***, try again'
    """
    shown = str(text)[: 20 * LONGEST]
    shown = "".join(c if c.isprintable() else " " for c in shown)
    for secret in secrets:
        shown = without_pieces(shown, secret)
    shown = _KEY_LIKE.sub(HIDDEN, _BEARER.sub(rf"\1 {HIDDEN}", shown))
    shown = " ".join(shown.split())
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 3] + "..."


def without_pieces(text: str, secret: str) -> str:
    """`text` with every stretch hidden that `secret`, or 8 characters of it in a row, covers."""
    size = min(PIECE, len(secret))
    if not size:
        return text
    pieces = {secret[start : start + size] for start in range(len(secret) - size + 1)}
    covered = [False] * len(text)
    for start in range(len(text) - size + 1):
        if text[start : start + size] in pieces:
            covered[start : start + size] = [True] * size
    parts, start = [], 0
    while start < len(text):
        end = start
        while end < len(text) and covered[end] == covered[start]:
            end += 1
        parts.append(HIDDEN if covered[start] else text[start:end])
        start = end
    return "".join(parts)
