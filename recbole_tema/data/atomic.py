"""RecBole's atomic files: typed headers, checked tables, sound ids, files replaced atomically.

An atomic file is UTF-8 text, tab-separated, whose first line types every column (`name:type`).
This module is the only home of that format; feature matrices build on it in `feature_file`.
"""

import hashlib
import io
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd

from recbole_tema.data.cells import QUOTED
from recbole_tema.errors import DataError

TYPES = ("token", "token_seq", "float", "float_seq")

STALE_SECONDS = 3600
CHECKED_BYTES = 1 << 20  # what is checked at once fits a CPU's cache


class Field(NamedTuple):
    """One header cell `name:type`."""

    name: str
    type: str

    def __str__(self) -> str:
        return f"{self.name}:{self.type}"


def parse_header(line: bytes, path: str | Path) -> list[Field]:
    """Fields of the header `line` of `path`.

    Raises:
        DataError: empty line, byte order mark, not UTF-8, a cell that is not `name:type`, an
            unknown type, or two columns of one name.
    """
    if line.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{path}, line 1: starts with a byte order mark; save it as plain UTF-8 without BOM"
        )
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line 1: not UTF-8 ({error.reason}); save it as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path}: no header in line 1; write one such as 'item_id:token<TAB>...'")
    fields = [_parse_cell(cell, path) for cell in text.split("\t")]
    seen = set()
    for field in fields:
        if field.name in seen:
            raise DataError(f"{path}, line 1: two columns named '{field.name}'; rename one of them")
        seen.add(field.name)
    return fields


def _parse_cell(cell: str, path: str | Path) -> Field:
    name, colon, kind = cell.partition(":")
    if not colon or not name or ":" in kind or name != name.strip():
        raise DataError(
            f"{path}, line 1: header cell {cell!r} is not of the form name:type "
            f"(types: {', '.join(TYPES)}; columns are separated by tabs)"
        )
    if kind not in TYPES:
        raise DataError(
            f"{path}, line 1: type {kind!r} of field '{name}' is unknown; use one of "
            f"{', '.join(TYPES)}"
        )
    return Field(name, kind)


def read_header(path: str | Path) -> list[Field]:
    """Fields of an atomic file, in the order of its columns.

    Raises:
        DataError: the file is missing or empty, or its header is malformed (see `parse_header`).
    """
    with open_atomic(path) as file:
        return parse_header(file.readline(), path)


@contextmanager
def open_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """Open an atomic file for reading bytes; DataError where it is missing, a folder, or empty."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the dataset's name and data_path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its rights") from None
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise DataError(f"{path}: the file is empty; write it again")
        yield file


def require_fields(
    path: str | Path, fields: Sequence[Field], required: Mapping[str, str | None]
) -> None:
    """Check that `fields` holds each name of `required` with its type (None: any type).

    Raises:
        DataError: a column is missing or has another type.
    """
    types = dict(fields)
    for name, kind in required.items():
        if name not in types:
            found = ", ".join(map(str, fields))
            wanted = f"{name}:{kind}" if kind else name
            raise DataError(
                f"{path}, line 1: column '{wanted}' is missing (found: {found}); add it"
            )
        if kind and types[name] != kind:
            raise DataError(
                f"{path}, line 1: field '{name}' has type {types[name]}, expected {kind}; "
                f"change the header to '{name}:{kind}'"
            )


def check_rows(path: str | Path) -> int:
    """Check each row's shape and encoding in one pass of constant memory; the number of rows.

    Blank lines behind the last row do not count, as in a feature file.

    Raises:
        DataError: no rows, a row with another number of cells than the header, a NUL byte, text
            that is not UTF-8, or a cell whose opening double quote is not closed before the next
            tab or line end (a CSV reader, RecBole's too, would read on into other cells).
    """
    with open_atomic(path) as file:
        n_tabs = len(parse_header(file.readline(), path)) - 1
        number, end = 1, _end_of_rows(file)
        while (place := file.tell()) < end:
            block = file.read(min(CHECKED_BYTES, end - place)) + file.readline()
            if not _is_plain(block, n_tabs):
                for offset, line in enumerate(io.BytesIO(block), start=1):
                    _check_line(path, number + offset, line, n_tabs)
            number += block.count(b"\n") + (not block.endswith(b"\n"))
    if number == 1:
        raise DataError(f"{path}: a header but no rows; write the data or remove the file")
    return number - 1


def _end_of_rows(file: BinaryIO) -> int:
    """Offset behind the last line of `file` that is not blank; the place in the file stays."""
    place, end = file.tell(), file.seek(0, os.SEEK_END)
    content = b""
    while end > 0 and not content:
        start = max(0, end - 4096)
        file.seek(start)
        content = file.read(end - start).rstrip(b"\r\n")
        end = start + len(content)
    file.seek(place)
    return end


def _is_plain(block: bytes, n_tabs: int) -> bool:
    """Whether every line of `block` is ASCII without quotes and has `n_tabs` tabs."""
    if b'"' in block or b"\0" in block or b"\r" in block or not block.isascii():
        return False
    characters = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    tabs = np.searchsorted(np.flatnonzero(characters == ord("\t")), ends)
    last_line = block[ends[-1] + 1 :] if len(ends) else block
    return bool((np.diff(tabs, prepend=0) == n_tabs).all()) and (
        not last_line or last_line.count(b"\t") == n_tabs
    )


def _check_line(path: str | Path, number: int, line: bytes, n_tabs: int) -> None:
    where = f"{path}, line {number}"
    cells = line.rstrip(b"\r\n").split(b"\t")
    for cell in cells:
        if cell.startswith(b'"') and not QUOTED.match(cell.decode("utf-8", "replace")):
            raise DataError(
                f"{where}: a cell opens a double quote that is not closed before the next tab or "
                f"line end ({cell[:40].decode('utf-8', 'replace')}), so readers go on into other "
                'cells; close it, or put the cell in quotes and write each quote in it as ""'
            )
    if len(cells) != n_tabs + 1:
        raise DataError(
            f"{where}: {len(cells)} cells, the header has {n_tabs + 1}; "
            "separate cells by exactly one tab"
        )
    if b"\0" in line:
        raise DataError(f"{where}: holds a NUL byte; write the file again as UTF-8 text")
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from None


def read_table(
    path: str | Path,
    required: Mapping[str, str | None] | None = None,
    columns: Sequence[str] | None = None,
    categories: bool = False,
) -> pd.DataFrame:
    """Read an atomic file by pandas' C parser, columns named without their types.

    `float` columns become float64 (an empty cell: NaN); all others stay text, an empty cell is "".

    Args:
        path: The file.
        required: Columns that must be there, with their type or None for any.
        columns: Load these columns only.
        categories: `token` columns as pandas categories, which takes a tenth of the memory.

    Raises:
        DataError: see `read_header`, `require_fields`, `check_rows`; or a float is malformed.
    """
    fields = read_header(path)
    require_fields(path, fields, required or {})
    require_fields(path, fields, dict.fromkeys(columns or ()))
    n_rows = check_rows(path)
    wanted = [f for f in fields if columns is None or f.name in columns]
    token_type = "category" if categories else str
    dtypes: dict[str, Any] = {str(f): token_type if f.type == "token" else str for f in wanted}
    dtypes.update({str(f): np.float64 for f in wanted if f.type == "float"})
    options = {"sep": "\t", "encoding": "utf-8", "usecols": list(dtypes), "skip_blank_lines": False}
    options["nrows"] = n_rows  # without the blank lines at the end
    missing = {str(f): ([""] if f.type == "float" else []) for f in wanted}
    options |= {"dtype": dtypes, "keep_default_na": False, "na_values": missing}
    options["low_memory"] = False  # in one piece: there are no categories of pieces to join
    try:
        # Whole numbers, as times are, come out exact either way, and in half the time this way.
        table = pd.read_csv(path, float_precision="high", **options)
        if not _whole_numbers(table):
            table = pd.read_csv(path, float_precision="round_trip", **options)
    except ValueError:
        _name_bad_float(path, [f for f in wanted if f.type == "float"], n_rows)
        raise
    table.columns = [f.name for f in fields if str(f) in dtypes]
    return table


def _whole_numbers(table: pd.DataFrame) -> bool:
    """Whether all numbers are whole and so small that float64 tells them from their neighbours."""
    numbers = [column.to_numpy() for _, column in table.select_dtypes("float").items()]
    return all(
        bool(((np.floor(n) == n) & (np.abs(n) < 2**53) | np.isnan(n)).all()) for n in numbers
    )


def _name_bad_float(path: str | Path, floats: list[Field], n_rows: int) -> None:
    """Raise the DataError for the first cell of the `floats` columns that is not a number."""
    table = pd.read_csv(
        path,
        sep="\t",
        encoding="utf-8",
        skip_blank_lines=False,
        nrows=n_rows,
        usecols=[str(f) for f in floats],
        dtype=str,
        keep_default_na=False,
    )
    for field in floats:
        column = table[str(field)]
        finite = pd.to_numeric(column, errors="coerce").abs() < np.inf
        bad = ~finite & (column != "")
        if bad.any():
            row = int(bad.to_numpy().argmax())
            raise DataError(
                f"{path}, line {row + 2}: field '{field.name}' holds {column.iloc[row]!r}, "
                f"{_number_fault(column.iloc[row])}; correct it"
            )


def _number_fault(text: str) -> str:
    try:
        float(text)
    except ValueError:
        return "not a number"
    large = any(character.isdigit() for character in text)
    return "beyond the range of a float" if large else "not a finite number"


@contextmanager
def replace_file(path: str | Path) -> Iterator[BinaryIO]:
    """Write `path` as a whole or not at all: yields a binary file that takes its place at the end.

    The bytes go to a hidden temporary file in the same folder, are flushed to the disk, and the
    temporary is renamed over `path`. On any exception the temporary is removed and `path` is as
    it was; after a kill `path` is as it was and the temporary, over an hour old, is removed by
    the next write of the same file. A symbolic link is followed.
    """
    path = Path(os.path.realpath(path))
    _remove_stale(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _remove_stale(path: Path) -> None:
    prefix, limit = f".{path.name}.", time.time() - STALE_SECONDS
    for entry in path.parent.glob(".*.tmp"):
        if entry.name.startswith(prefix) and entry.stat().st_mtime < limit:
            entry.unlink(missing_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Make the renames inside `folder` survive a power cut; a no-op where folders have no fsync."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
