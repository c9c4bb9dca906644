"""What may be shown of an address and of what a server said: nothing secret, short, on one line."""

import re
from collections.abc import Iterable
from ipaddress import ip_address
from itertools import groupby
from urllib.parse import urlsplit

from recbole_tema.errors import BackendError

LONGEST = 300
PIECE = 8  # so many characters of a key in a row are not shown either
HIDDEN = "***"
HIDDEN_ADDRESS = "the address"  # where it cannot be told what in it is a password
_BEARER = re.compile(r"\b(bearer)\s+[^\s\"',;}]+", re.IGNORECASE)
_KEY_LIKE = re.compile(r"\bsk-[\w*-]{6,}")


def redacted(text: object, secrets: Iterable[str] = ()) -> str:
    """`text` on one line, at most 300 characters, without `secrets` or 8 characters of them.

    Whatever looks like a bearer token or a key of the form sk-... is hidden as well.

    >>> redacted("no access for Bearer abcdefghijkl,\\n try again", ["abcdefghijkl"])
    'no access for Bearer ***, try again'
    """
    shown = str(text)[: 20 * LONGEST]
    shown = "".join(c if c.isprintable() else " " for c in shown)
    for secret in secrets:
        shown = _without_pieces(shown, secret)
    shown = _KEY_LIKE.sub(HIDDEN, _BEARER.sub(rf"\1 {HIDDEN}", shown))
    shown = " ".join(shown.split())
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 3] + "..."


def _without_pieces(text: str, secret: str) -> str:
    size = min(PIECE, len(secret))
    pieces = {secret[start : start + size] for start in range(len(secret) - size + 1)} - {""}
    starts = (i for i in range(len(text)) if text[i : i + size] in pieces)
    covered = {place for start in starts for place in range(start, start + size)}
    runs = groupby(range(len(text)), covered.__contains__)
    return "".join(HIDDEN if hide else "".join(text[i] for i in run) for hide, run in runs)


def split_address(url: str) -> tuple[str, str, bool]:
    """The address without its query, the query, and whether it is on this machine.

    Raises:
        BackendError: it is no http(s) address, or holds a user name or password.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.username is not None or parts.password is not None:
        raise BackendError(
            f"the address of {host} holds a user name or password; leave it out: keys come from "
            "the environment"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise BackendError(f"{_shown(url)} is no address; one is http://localhost:8000/v1")
    host = f"[{host}]" if ":" in host else host
    address = f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
    return address, parts.query, _is_loopback(host.strip("[]"))


def _shown(url: str) -> str:
    """What may be shown of an address that cannot be read: nothing before an @, and no query."""
    before, _, after = url.rpartition("@")
    if re.search(r"[?#]", before):  # a query that holds an @, or a password that holds a ?
        return HIDDEN_ADDRESS
    return repr(re.split(r"[?#]", after)[0])


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
