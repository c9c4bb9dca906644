"""Raw text files as tables of DuckDB: JSON lines and separated columns, numbered by line."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_tools.convert.broken import SHOWN
from dataset_tools.convert.engine import Engine, identifier, quoted
from dataset_tools.convert.feed import first_line
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

LONGEST_LINE = 4 << 20  # bytes; reviews and descriptions end far below
BUFFER = 8 * LONGEST_LINE
REASONS = {  # DuckDB's words -> ours
    "missing columns": "too few cells",
    "too many columns": "too many cells",
    "unquoted value": "quotes that do not fit",
    "line size over maximum": f"longer than {LONGEST_LINE >> 20} MB",
    "invalid encoding": "not UTF-8",
}
NO_BYTE = "\x01"  # a control character, which JSON cannot hold unescaped


@dataclass(frozen=True)
class Layout:
    """How to read a file.

    Attributes:
        kind: "parquet", "json", "table" (of separated columns) or "sequences" (a line a user).
        delimiter: Of a table; of sequences a further one between user and items, or None.
        quote: Of a table: around a cell that holds the delimiter; "" for none.
        names: Columns of a table without a header; None: its first line is one.
        skip: Lines before the first row, with `names`.
        encoding: Of a table: utf-8 or latin-1.
        marked: Of sequences: whether items have their times, `item|time`.
    """

    kind: str
    delimiter: str | None = None
    quote: str = '"'
    names: Sequence[str] | None = None
    skip: int = 0
    encoding: str = "utf-8"
    marked: bool = False


def text_lines(source: str, rejects: str = "ignore_errors=true") -> str:
    """A table function of the lines of a file, `line` VARCHAR; empty lines are NULL."""
    return (
        f"read_csv({source}, header=false, delim='{NO_BYTE}', quote='', escape='', "
        "columns={'line': 'VARCHAR'}, auto_detect=false, strict_mode=false, new_line='\\n', "
        f"max_line_size={LONGEST_LINE}, buffer_size={BUFFER}, {rejects})"
    )


MOST_REJECTS = 100_000  # that are kept with their reasons, in memory
REJECTS = f"store_rejects=true, rejects_limit={MOST_REJECTS}"
RESERVED = {"rowid", "_number", "_good"}  # names that a column of a file must not take


def free_names(names: Sequence[str]) -> list[str]:
    """Names of columns in our tables: those of a file, with `_` after one that is reserved."""
    return [f"{name}_" if name.lower() in RESERVED else name for name in names]


def note_rejects(
    engine: Engine, path: Path, table: str, expected: int, end: int, quoted: bool
) -> None:
    """Note the lines that DuckDB could not split or decode, and forget them.

    Args:
        expected: Lines that should be in `table` or broken, as `Tally` counts them.
        end: The last line's number.
        quoted: Whether a quote can have made one cell of several lines.
    """
    total, unclosed = 0, []
    spanned = engine.value(  # a broken row can have several lines
        "SELECT coalesce(sum(len(regexp_replace(csv_line, '\\n+', '\n', 'g')) "
        "- len(replace(csv_line, '\n', ''))), 0) FROM (SELECT line, first(csv_line) AS csv_line "
        "FROM reject_errors WHERE error_type::VARCHAR != 'UNQUOTED VALUE' GROUP BY line)"
    )
    # One line can be rejected for several reasons: the first one tells.
    for reason, count, first in engine.rows(
        f"SELECT lower(kind), count(*), min(line, {SHOWN}) FROM (SELECT line, "
        "first(error_type::VARCHAR ORDER BY column_idx) AS kind FROM reject_errors GROUP BY line) "
        "GROUP BY ALL ORDER BY ALL"
    ):
        engine.broken.add(path, REASONS.get(reason, reason), count, first)
        total += count
        if reason == "unquoted value":
            unclosed = first
    engine.do("DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans")
    lost = expected - engine.value(f"SELECT count(*) FROM {table}_rows") - total - int(spanned)
    if total >= MOST_REJECTS:
        engine.broken.add(path, f"broken; reasons are kept of the first {MOST_REJECTS:,}", lost, [])
    elif quoted:
        # A quote that is not closed makes one cell of all that follows, up to DuckDB's limit.
        reason = "read as one cell, of a quote that is not closed (see --quote)"
        where, unit = (unclosed, "after line") if unclosed else ([end - lost + 1], "from line")
        engine.broken.add(path, reason, lost, where, unit)
    elif lost > 0:
        raise DataError(
            f"{path}: {lost:,} lines were lost while it was read, for no reason that is known"
        )


def json_lines(
    engine: Engine,
    path: Path,
    table: str,
    fields: Mapping[str, str | Sequence[str]],
    present: Mapping[str, str] | None = None,
) -> None:
    """Make `table` of a file of JSON objects, one a line or in one array, plain or compressed.

    Its columns: _number BIGINT (of line or element, from 1), _good BOOLEAN (whether it is a JSON
    object; an empty line has no row), for each of `fields` (column -> JSON path, or several of
    which the first with a value counts) the value as text, NULL where the object has none, and for
    each of `present` (column -> JSON path) whether it has a value. Lines that are not UTF-8 are
    left out and noted.

    Raises:
        DataError: the file is missing or cannot be read to its end, or its array is malformed.
    """
    several = {name: [w] if isinstance(w, str) else list(w) for name, w in fields.items()}
    several |= {name: [where] for name, where in (present or {}).items()}
    paths = list(dict.fromkeys(where for found in several.values() for where in found))
    cell = {where: f"found[{n}]" for n, where in enumerate(paths, start=1)}
    columns = []
    for name, where in several.items():
        value = f"coalesce({', '.join(cell[w] for w in where)})" if where[1:] else cell[where[0]]
        columns.append(f"{value}{' IS NOT NULL' if name in (present or {}) else ''} AS {name}")
    listed = ", ".join(quoted(where) for where in paths)
    with engine.reading(path) as text:
        engine.number(
            table,
            # TRY parses a line once, where json_valid before it would parse it twice.
            "SELECT CASE WHEN line IS NOT NULL THEN found IS NOT NULL AND "
            f"starts_with(ltrim(line), '{{') END AS _good, {', '.join(columns)} FROM (SELECT line, "
            f"TRY(json_extract_string(line, [{listed}])) AS found "
            f"FROM {json_texts(path, text.sql, REJECTS)})",
            "_good IS NOT NULL",
        )
    if not is_array(path):  # of which DuckDB takes all or nothing
        note_rejects(engine, path, table, text.tally.lines, text.tally.lines, False)


def is_array(path: Path) -> bool:
    """Whether a file of JSON is one array."""
    return first_line(path).lstrip().startswith(b"[")


def json_texts(path: Path, source: str, rejects: str = "ignore_errors=true") -> str:
    """What `text_lines` gives, of a file of JSON: its lines, or the elements of its array."""
    if not is_array(path):
        return text_lines(source, rejects)
    return f"(SELECT json::VARCHAR AS line FROM read_json_objects({source}, format='array'))"


def separated(engine: Engine, path: Path, table: str, layout: Layout) -> list[str]:
    """Make `table` of a file of separated columns, plain or compressed, all of them text; the names
    of the columns.

    Its columns: _number BIGINT (of the row, from 1), _good BOOLEAN (true), and those of the
    header, or `layout.names`. Lines with too few or too many cells, or that are not UTF-8, are left
    out and noted.

    Raises:
        DataError: the file is missing or cannot be read to its end, or its header is none.
    """
    quote, header = layout.quote, layout.names is None
    delimiter = layout.delimiter or ""  # of a table it is known by now
    names = list(layout.names or header_cells(path, delimiter, quote))
    nameless = [f"column {n}" for n, name in enumerate(names, start=1) if not name]
    if nameless:  # pandas writes its index so
        log.info("%s: %s has no name in the header: left out", path, ", ".join(nameless))
        names = [name or f"column {n}" for n, name in enumerate(names, start=1)]
    if len({name.lower() for name in names}) < len(names):
        raise DataError(
            f"{path}, line 1: the columns are {', '.join(map(repr, names))}: one has the name of "
            "another; give each a name of its own"
        )
    with engine.reading(path) as text:
        names = free_names(names)
        columns = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in names)
        engine.number(
            table,
            f"SELECT true AS _good, * FROM read_csv({text.sql}, header={header}, "
            f"skip={layout.skip}, encoding='{layout.encoding}', new_line='\\n', "
            # In threads DuckDB loses good lines of files with quotes and many broken lines.
            f"parallel={not quote}, delim={quoted(delimiter)}, "
            f"quote={quoted(quote)}, escape={quoted(quote)}, "
            f"columns={{{columns}}}, auto_detect=false, max_line_size={LONGEST_LINE}, "
            f"buffer_size={BUFFER}, {REJECTS})",
        )
    expected = text.tally.lines - text.tally.blank - header - layout.skip
    expected -= _inside(engine, table, names) if quote else 0
    note_rejects(engine, path, table, expected, text.tally.lines, bool(quote))
    return names


def _inside(engine: Engine, table: str, names: Sequence[str]) -> int:
    """Lines that are not blank and go on with a cell of the line before."""
    runs = [
        f"length(regexp_replace({cell}, '\\n+', '\n', 'g')) - length(replace({cell}, '\n', ''))"
        for cell in map(identifier, names)
    ]
    total = " + ".join(f"coalesce(sum({run}), 0)" for run in runs)
    return int(engine.value(f"SELECT {total} FROM {table}"))


def header_cells(path: Path, delimiter: str, quote: str) -> list[str]:
    """The cells of the first line.

    Raises:
        DataError: it is empty, not UTF-8, or cannot be split.
    """
    line = first_line(path)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line 1: not UTF-8 ({error}); convert the file first") from None
    if not text.strip():
        raise DataError(f"{path}, line 1: no header line; the first line is empty")
    try:
        (cells,) = split_lines([text], delimiter, quote)
    except csv.Error as error:
        raise DataError(f"{path}, line 1: no header line ({error})") from None
    return [cell.strip() for cell in cells]


def split_lines(lines: Sequence[str], delimiter: str, quote: str) -> list[list[str]]:
    """The cells of lines.

    Raises:
        csv.Error: a line cannot be split.
    """
    if len(delimiter) > 1:
        return [line.split(delimiter) for line in lines]
    style = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    return [next(csv.reader([line], delimiter=delimiter, **style)) for line in lines]
