"""Raw text files as tables of DuckDB: JSON lines and separated columns, numbered by line."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataset_tools.convert.engine import Engine, naming_file, quoted
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

SHOWN = 5  # line numbers in a message
LONGEST_LINE = 4 << 20  # bytes; reviews and descriptions end far below
BUFFER = 8 * LONGEST_LINE
REASONS = {  # DuckDB's words -> ours
    "missing columns": "too few cells",
    "too many columns": "too many cells",
    "unquoted value": "a quote that is not closed",
    "line size over maximum": f"longer than {LONGEST_LINE >> 20} MB",
    "invalid encoding": "not UTF-8",
}
NO_BYTE = "\x01"  # a control character, which JSON cannot hold unescaped


@dataclass
class Broken:
    """Lines that were left out.

    Attributes:
        strict: Whether one is an error.
        files: Path -> reason -> how many.
    """

    strict: bool = False
    files: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(
        self, path: Path, reason: str, count: int, first: Sequence[int], unit: str = "line"
    ) -> None:
        """Note `count` broken lines of `path`, the first of them with the numbers `first`.

        Args:
            unit: What the numbers count: "line" of the file, or "row" of those that it could be
                split into.

        Raises:
            DataError: `strict`, and there is one.
        """
        if not count:
            return
        numbers = ", ".join(map(str, first[:SHOWN])) + (", ..." if count > SHOWN else "")
        plural = "" if count == 1 else "s"
        text = f"{path}: {count:,} line{plural} left out: {reason} ({unit}{plural} {numbers})"
        if self.strict:
            raise DataError(f"{text}; mend the file, or run without --strict")
        log.warning("%s", text)
        reasons = self.files.setdefault(path.name, {})
        reasons[reason] = reasons.get(reason, 0) + count

    def total(self) -> int:
        """How many lines were left out."""
        return sum(sum(reasons.values()) for reasons in self.files.values())


def text_lines(link: str, rejects: str = "ignore_errors=true") -> str:
    """A table function of the lines of a file, `line` VARCHAR; empty lines are NULL."""
    return (
        f"read_csv({link}, header=false, delim='{NO_BYTE}', quote='', escape='', "
        "columns={'line': 'VARCHAR'}, auto_detect=false, strict_mode=false, "
        f"max_line_size={LONGEST_LINE}, buffer_size={BUFFER}, {rejects})"
    )


REJECTS = "store_rejects=true, rejects_limit=0"


def _note_rejects(engine: Engine, path: Path, broken: Broken) -> None:
    """Note the lines that DuckDB could not split or decode, and forget them."""
    # One line can be rejected for several reasons: the first one tells.
    for reason, count, first in engine.rows(
        f"SELECT lower(kind), count(*), min(line, {SHOWN}) FROM (SELECT line, "
        "first(error_type::VARCHAR ORDER BY column_idx) AS kind FROM reject_errors GROUP BY line) "
        "GROUP BY ALL ORDER BY ALL"
    ):
        broken.add(path, REASONS.get(reason, reason), count, first)
    engine.do("DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans")


def json_lines(
    engine: Engine, path: Path, table: str, fields: Mapping[str, str], broken: Broken
) -> None:
    """Make `table` of a file of JSON objects, one a line, plain or compressed.

    Its columns: number BIGINT (of the line, from 1), good BOOLEAN (whether the line is a JSON
    object; an empty line has no row), and for each of `fields` (column -> JSON path) the value as
    text, NULL where the object has none. Lines that are not UTF-8 are left out and noted.

    Raises:
        DataError: the file is missing or cannot be read to its end.
    """
    paths = ", ".join(quoted(where) for where in fields.values())
    columns = ", ".join(f"found[{i}] AS {name}" for i, name in enumerate(fields, start=1))
    with naming_file(path):
        engine.do(
            f"CREATE OR REPLACE TABLE {table} AS SELECT number, good, {columns} FROM ("
            f"SELECT number, good, CASE WHEN good THEN json_extract_string(line, [{paths}]) END "
            "AS found FROM (SELECT number, line, json_valid(line) AND ltrim(line)[1] = '{' AS good "
            "FROM (SELECT row_number() OVER () AS number, line "
            f"FROM {text_lines(engine.link(path), REJECTS)}) WHERE line IS NOT NULL))"
        )
    _note_rejects(engine, path, broken)


def separated(
    engine: Engine,
    path: Path,
    table: str,
    broken: Broken,
    *,
    delimiter: str,
    quote: str = '"',
    names: Sequence[str] | None = None,
    skip: int = 0,
    encoding: str = "utf-8",
) -> list[str]:
    """Make `table` of a file of separated columns, plain or compressed, all of them text.

    Its columns: number BIGINT (of the row, from 1), and those of the header, or `names`. Lines
    with too few or too many cells, or that are not UTF-8, are left out and noted in `broken`.

    Args:
        delimiter: Between the columns.
        quote: Around a cell that holds the delimiter; "" for none.
        names: The columns of a file without a header line; None: its first line is one.
        skip: Lines to pass over, with `names`.
        encoding: Of the file, utf-8 or latin-1.

    Returns:
        The names of the columns.

    Raises:
        DataError: the file is missing or cannot be read to its end, or its header is none.
    """
    link, header = engine.link(path), names is None
    with naming_file(path):
        names = list(names or _header(engine, link, delimiter, quote))
        if not all(names) or len({name.lower() for name in names}) < len(names):
            raise DataError(
                f"{path}, line 1: the columns are {', '.join(map(repr, names))}: one has no name "
                "or the name of another; give the file a header line with a name for each"
            )
        columns = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in names)
        engine.do(
            f"CREATE OR REPLACE TABLE {table} AS SELECT row_number() OVER () AS number, * "
            f"FROM read_csv({link}, header={header}, skip={skip}, encoding='{encoding}', "
            f"delim={quoted(delimiter)}, quote={quoted(quote)}, escape={quoted(quote)}, "
            f"columns={{{columns}}}, auto_detect=false, max_line_size={LONGEST_LINE}, "
            f"buffer_size={BUFFER}, {REJECTS})"
        )
    _note_rejects(engine, path, broken)
    return names


def _header(engine: Engine, link: str, delimiter: str, quote: str) -> list[str]:
    first = engine.rows(f"SELECT line FROM {text_lines(link)} LIMIT 1")
    if not first or first[0][0] is None:
        raise DataError("no header in line 1")
    style = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    cells = next(csv.reader([first[0][0]], delimiter=delimiter, **style))
    return [cell.strip() for cell in cells]
