"""What kind of a table a raw file is: told by the user, its name or its first lines, in that order.

What first lines tell is said; where they leave a doubt, the error names the option that ends it.
"""

import csv
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dataset_tools.convert.feed import texts
from dataset_tools.convert.lines import Layout, header_cells, split_lines
from dataset_tools.options import option
from recbole_tema.errors import ConfigError, DataError

log = logging.getLogger(__name__)

DELIMITERS = {".csv": ",", ".tsv": "\t"}
GUESSED = ("\t", "::", ",", ";", "|")  # delimiters that are looked for
WORDS = {"\t": "tab", " ": "space"}  # of delimiters, on the command line
JSON = {".json", ".jsonl", ".ndjson"}
PACKED = {".gz", ".zst", ".zstd"}
PARQUET = b"PAR1"
SAMPLED_LINES = 1000
LEFT_OUT = "_"  # for a column of a table without a header
MARKED = re.compile(r"[^|\s]+\|-?\d+(\.\d+)?(\|[^|\s]*)*")  # item|time, and maybe more

# Column of ours -> names that the field's datasets have for it, in lower case.
NAMES = {
    "user_id": ("user_id", "user", "userid", "uid", "reviewerid", "user_id:token"),
    "item_id": (
        *("item_id", "item", "itemid", "iid", "asin", "parent_asin", "movieid", "item_id:token"),
        *("items", "item_ids"),
    ),
    "timestamp": (
        *("timestamp", "time", "ts", "unixreviewtime", "date", "timestamp:float", "unix_time"),
        *("unixtime", "datetime", "reviewtime", "review_time", "timestamps", "created_at"),
    ),
    "rating": ("rating", "overall", "score", "stars", "rating:float"),
    "domain": ("domain", "domain:token"),
    "split": ("split", "split:token"),
    "title": ("title", "name", "title:token_seq"),
    "category": ("category", "categories", "genres", "genre", "category:token_seq"),
    "brand": ("brand", "store", "brand:token"),
    "price": ("price", "price:float"),
    "year": ("year",),
    "description": ("description",),
    "image_url": ("image_url", "imurl", "image"),
}
USUAL = frozenset(name for names in NAMES.values() for name in names)
LIKELY = {  # columns of a table without a header, for messages
    "interactions": ("user_id", "item_id", "rating", "timestamp"),
    "items": ("item_id", "domain", "title", "category"),
}
FREE_TEXT = {"title", "category", "brand", "description"}  # any word can be one
OPTIONS = {"interactions": "--columns", "items": "--item_columns"}


@dataclass(frozen=True)
class Tables:
    """Files of one conversion.

    Attributes:
        interactions: (domain or None, file): None where a column or the items tell the domain.
        items: Likewise.
        splits: "train", "valid" or "test" -> its files, as of `interactions`.
        columns: Column of ours -> its name in the files, where it is none of the usual ones.
        headers: "interactions" or "items" -> the columns of its tables, which have no header, in
            their order; LEFT_OUT for one that is of no use.
        own_users: Whether one id in two files of interactions names two users; None: such ids are
            an error where they leave a doubt.
    """

    interactions: Sequence[tuple[str | None, Path]] = ()
    items: Sequence[tuple[str | None, Path]] = ()
    splits: Mapping[str, Sequence[tuple[str | None, Path]]] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    delimiter: str | None = option(
        None,
        "Between the cells of a text table: up to 4 characters, tab or space.  [default: a comma "
        "in .csv, a tab in .tsv, else as the first lines tell]",
    )
    quote: str | None = option(  # "": nothing
        None,
        "Around a cell that holds the delimiter or a line break: a character, or none.  "
        "[default: a double quote; none, if the delimiter has several characters]",
    )
    sequences: bool | None = option(
        None,
        "Whether a line of interactions holds all items of a user.  [default: as they tell]",
        flag="--sequences/--no-sequences",
    )
    order: Literal["time", "file"] | None = option(
        None, "What orders a user's events.  [default: time; file, if no column can be of times]"
    )
    time_format: str | None = option(
        None,
        "Form of the times, as of strptime, e.g. '%d/%m/%Y %H:%M'.  [default: numbers, and dates "
        "that can be read in one way only]",
    )
    own_users: bool | None = None


def layout_of(path: Path, tables: Tables, role: str) -> Layout:
    """The layout of a file.

    Args:
        role: "interactions" or "items".

    Raises:
        DataError: the file cannot be read, or its first lines leave a doubt.
        ConfigError: an option does not fit it.
    """
    kinds = [suffix.lower() for suffix in path.suffixes]
    suffix = next((kind for kind in reversed(kinds) if kind not in PACKED), "")
    if suffix == ".parquet" or _starts(path, PARQUET):
        return Layout("parquet")
    if suffix in JSON:
        return Layout("json")
    lines = _first_lines(path)
    if (
        suffix not in DELIMITERS
        and not tables.delimiter
        and lines[:1]
        and lines[0].lstrip()[0] in "{["
    ):
        log.info("%s: taken for JSON, by its first character", path)
        return Layout("json")
    names = tables.headers.get(role)
    delimiter = own = DELIMITERS.get(suffix)
    if tables.delimiter:
        delimiter = tables.delimiter
        if own and lines and own in lines[0] and delimiter not in lines[0]:
            log.info("%s: no %r in line 1: read as its name tells", path, delimiter)
            delimiter = own
    if role == "interactions" and not names:
        found = _sequences(path, lines, delimiter, tables)
        if found:
            return found
    delimiter = delimiter or _guessed(path, lines, suffix, names)
    quote = tables.quote
    if quote is None:
        quote = '"' if len(delimiter) == 1 else ""
    known = USUAL | {theirs.lower() for theirs in tables.columns.values()}
    first = header_cells(path, delimiter, quote)
    if names is None:
        _check_header(path, first, known, role, delimiter)
        return Layout("table", delimiter, quote)
    if len(first) != len(names):
        raise ConfigError(
            f"{path}, line 1: {len(first)} cells ({', '.join(first[:8])}), but "
            f"{OPTIONS[role]} names {len(names)}; name each, {LEFT_OUT} for one of no use"
        )
    header = _is_header(path, first, names, known, tables)
    if header:
        log.info("%s: line 1 is a header; the columns are those of %s", path, OPTIONS[role])
    # A name that is none of ours is taken for none.
    named = [f"left out {n}" if name == LEFT_OUT else name for n, name in enumerate(names, start=1)]
    return Layout("table", delimiter, quote, tuple(named), int(header))


def _is_header(
    path: Path, first: list[str], names: Sequence[str], known: Collection[str], tables: Tables
) -> bool:
    """Whether line 1 of a table whose columns the user names is a header all the same: it has known
    names alone, or that of a column in its place, where no event or item has one."""
    lower = [cell.lower() for cell in first]
    if all(cell in known for cell in lower):
        return True
    aliases = {
        name: {*NAMES.get(name, ()), tables.columns.get(name, name).lower()} for name in names
    }
    placed = [
        cell
        for cell, name in zip(lower, names, strict=True)
        if name not in FREE_TEXT and cell in aliases[name] and name != LEFT_OUT
    ]
    if not placed:
        return False
    log.warning(
        "%s: line 1 (%s) is taken for a header and left out, as %r is the name of a column",
        *(path, ", ".join(first[:8]), placed[0]),
    )
    return True


def _starts(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _first_lines(path: Path) -> list[str]:
    """The first lines that are not blank."""
    found: list[str] = []
    for block in texts(path):
        found += (line.decode("utf-8", "replace") for line in block.split(b"\n") if line.strip())
        if len(found) >= SAMPLED_LINES:
            break
    return found[:SAMPLED_LINES]


def _check_header(
    path: Path, first: list[str], known: Collection[str], role: str, delimiter: str
) -> None:
    """Refuse a first line that names no column that is known."""
    if any(cell.lower() in known for cell in first):
        return
    if len(first) == 1:
        other = next((d for d in (*GUESSED, " ") if d != delimiter and d in first[0]), None)
        if other:
            raise DataError(
                f"{path}, line 1: one column only, {first[0]!r}; if {other!r} is between the "
                f"cells, add --delimiter {WORDS.get(other, repr(other))}"
            )
    likely = list(LIKELY[role][: len(first)]) + [LEFT_OUT] * (len(first) - len(LIKELY[role]))
    raise DataError(
        f"{path}, line 1: no column of a known name (found: {', '.join(first[:8])}); if the file "
        f"has no header, name its {len(first)} columns in their order, e.g. {OPTIONS[role]} "
        f"{','.join(likely)}; if it has one, name them by --column {LIKELY[role][0]}=NAME ..."
    )


def _guessed(path: Path, lines: list[str], suffix: str, names: Sequence[str] | None) -> str:
    """The delimiter that splits the first lines into columns.

    Raises:
        DataError: none does, or several do.
    """
    found = {d: width for d in GUESSED if (width := _width(lines, d)) > 1}
    if names:
        found = {d: width for d, width in found.items() if width == len(names)} or found
    titled = [
        d for d in found if USUAL & {cell.strip().strip('"').lower() for cell in lines[0].split(d)}
    ]
    chosen = titled if len(titled) == 1 else list(found)
    if "\t" in chosen and suffix == ".txt":
        chosen = ["\t"]
    if len(chosen) == 1:
        word = WORDS.get(chosen[0], f"'{chosen[0]}'")
        if (suffix, word) != (".txt", "tab"):
            log.info(
                "%s: taken for a table with %s between its cells, by its first lines", path, word
            )
        return chosen[0]
    if not lines:
        raise DataError(f"{path}, line 1: no header line; the file is empty")
    several = " or ".join(WORDS.get(d, repr(d)) for d in chosen)
    what = f"{several} may be between its cells" if chosen else "its first lines do not tell"
    raise DataError(
        f"{path}: what kind of table it is cannot be told: {what}; add --delimiter, or name a "
        f"table of JSON or Parquet .jsonl or .parquet"
    )


def _width(lines: list[str], delimiter: str) -> int:
    """Into how many cells each line is split; 0 if not all into the same number."""
    try:
        widths = {len(cells) for cells in split_lines(lines, delimiter, '"')}
    except csv.Error:
        return 0
    return widths.pop() if len(widths) == 1 else 0


def _marked(path: Path, rows: list[list[str]]) -> bool:
    """Whether most cells behind the users, and the lengths behind those, are `item|time`."""
    items = [
        cell
        for row in rows
        for cell in (row[2:] if row[1:2] and row[1].isdecimal() else row[1:])
        if cell
    ]
    timed = sum(bool(MARKED.fullmatch(cell)) for cell in items)
    plain = len(items) - timed
    if 0 < timed <= plain:
        log.warning(
            "%s: %s of the first %s items have the form item|time; as most have not, all are "
            "taken for ids",
            *(path, f"{timed:,}", f"{timed + plain:,}"),
        )
    return timed > plain


def _sequences(
    path: Path, lines: list[str], delimiter: str | None, tables: Tables
) -> Layout | None:
    """The layout of sequences, where the lines are such."""
    if tables.sequences is False or not lines:
        return None
    first = re.split(r"[\s,;:|]+", lines[0].lower())
    known = USUAL | {theirs.lower() for theirs in tables.columns.values()}
    if set(first) & known:  # a table with lists in its cells, see `sequences.expand`
        return None
    cells = [re.split(r"[\s,]+", line.strip()) for line in lines]
    marked = _marked(path, cells)
    if tables.sequences:
        return Layout("sequences", tables.delimiter, marked=marked)
    one_tab = all(line.strip("\n").count("\t") == 1 for line in lines)
    # Columns of a table are as many in each line.
    varied = len({len(row) for row in cells}) > 1 and not any('"' in line for line in lines)
    if marked or (delimiter in (None, "\t") and one_tab and varied):
        form = "item|time item|time ..." if marked else "item item ..."
        log.info("%s: taken for sequences, a line a user: user, %s", path, form)
        return Layout("sequences", tables.delimiter, marked=marked)
    if delimiter is None and varied:
        raise DataError(
            f"{path}, line 1: {lines[0][:60]!r}: no column of a known name, and lines of different "
            "lengths; if each is a user and its items, add --sequences"
        )
    return None
