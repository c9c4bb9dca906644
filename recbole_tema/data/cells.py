"""Cells of atomic files: what text, ids and tags may be in one, and how they are written."""

import re
import unicodedata

# Texts that pandas, and so stock RecBole, reads as "missing": an id of this form would be dropped.
READ_AS_MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"]
    + ["<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)
PADDING_TOKEN = "[PAD]"  # RecBole's own id for padding
QUOTED = re.compile(r'"((?:[^"]|"")*)"(?!")')  # the quoted part of a cell that opens with one


def unquoted(cell: str) -> str | None:
    """The text of a cell as CSV readers give it; None where an opening quote is not closed.

    Only a cell that opens with a double quote is quoted. What follows its closing quote is text
    as it stands.

    >>> unquoted('"Sunday Drive" on the "coast"')
    'Sunday Drive on the "coast"'
    """
    if not cell.startswith('"'):
        return cell
    found = QUOTED.match(cell)
    return found and found[1].replace('""', '"') + cell[found.end() :]


def cell_of(text: str) -> str:
    """`text`, without tabs and line ends, as a cell that readers give back as it is: a text that
    opens with a double quote is put in quotes, and each quote in it is written twice.
    """
    return '"' + text.replace('"', '""') + '"' if text.startswith('"') else text


def token_fault(token: str) -> str | None:
    """Why `token` cannot stand as an id in an atomic file that stock RecBole reads; None if it can.

    >>> token_fault("B00 4X'") is None
    True
    >>> token_fault("NA")
    'is read as missing by pandas; prefix it, e.g. by its domain'
    """
    if token == "":
        return "is empty"
    if token in READ_AS_MISSING:
        return "is read as missing by pandas; prefix it, e.g. by its domain"
    if token == PADDING_TOKEN:
        return "is RecBole's padding id; rename it"
    if token.startswith('"'):
        return "starts with a double quote, which opens a quoted cell; remove it"
    if token.isascii() and token.isprintable():
        return None
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c == "\ufeff" for c in token):
        return "holds a tab, line break, control character or byte order mark; remove it"
    return None


def plain_text(text: str) -> str:
    """`text` in one line: runs of blanks and control characters become one blank.

    >>> plain_text(' "Great\\tDay"\\n in Harlem')
    '"Great Day" in Harlem'
    """
    plain = text.isascii() and text.isprintable()
    if not plain:
        text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    if not plain or "  " in text or text[:1] == " " or text[-1:] == " ":
        text = " ".join(text.split())
    return text


def clean_text(text: str) -> str:
    """`plain_text` that opens no quoted cell: if it opens with a double quote, its double quotes
    become single ones.

    >>> clean_text(' "Great\\tDay"\\n in Harlem')
    "'Great Day' in Harlem"
    """
    text = plain_text(text)
    return text.replace('"', "'") if text.startswith('"') else text


def tag_token(tag: str) -> str:
    """A tag as one token, lower case, its blanks as `_`: a `token_seq` splits at blanks.

    >>> tag_token("  Film  Noir ")
    'film_noir'
    """
    return "_".join(clean_text(tag).lower().split())


def tag_text(token: str) -> str:
    """A tag token as a text encoder should read it: `film_noir` is `film noir`."""
    return token.replace("_", " ")
