"""One SQLite file of answers: its tables, its rows with their checksums, what its errors mean.

Files of format 1, one for each of several writers, have the same table of answers beside others
that are no longer needed; `take_over` reads them too.
"""

import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from dataset_tools.llm.requests import Answer, Request, Value, content
from recbole_tema.errors import DataError

FORMAT = 2  # the user_version of the file
LOCK_SECONDS = 20.0  # how long another process may keep the file locked; it takes milliseconds
CHUNK = 500  # rows of a transaction, keys of a query: old versions of SQLite take 999 at most
LEAST_ROW = 100  # bytes; key and checksum alone have 96

# `request` comes last: it is long, and SQLite reads a row only as far as it is asked to.
SCHEMA = f"""
BEGIN;
CREATE TABLE answers (
  key TEXT PRIMARY KEY, kind TEXT NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL,
  value BLOB NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
  created TEXT NOT NULL, checksum TEXT NOT NULL, request TEXT NOT NULL);
CREATE TABLE lasting (key TEXT PRIMARY KEY, reason TEXT NOT NULL, created TEXT);
CREATE TABLE taken (file TEXT PRIMARY KEY, size INTEGER NOT NULL, created TEXT NOT NULL);
PRAGMA user_version={FORMAT};
COMMIT;
"""


Item = TypeVar("Item")


class Row(NamedTuple):
    """A row of the table `answers`; `value` is text, or bytes where it is a vector."""

    key: str
    kind: str
    task: str
    model: str
    value: str | bytes
    tokens_in: int
    tokens_out: int
    created: str
    checksum: str
    request: str


COLUMNS = ", ".join(Row._fields)
INSERT = f"INSERT OR IGNORE INTO answers VALUES ({','.join('?' * len(Row._fields))})"
READ = "key, kind, value, tokens_in, tokens_out, checksum"


class Taken(NamedTuple):
    """What became of the answers of another file.

    Attributes:
        new: Stored here now.
        same: Were here already.
        other: Differ from the answer that is here, which stays.
        unread: Damaged; None where nobody can say how many there were.
    """

    new: int
    same: int
    other: int
    unread: int | None

    def __str__(self) -> str:
        parts = [f"{self.new:,} answers taken over", f"{self.same:,} were there"]
        if self.other:
            parts.append(f"{self.other:,} differ from those that were there, which stay")
        if self.unread is None:
            parts.append("the rest, nobody can say how many, is damaged and cannot be read")
        elif self.unread:
            parts.append(f"{self.unread:,} are damaged and cannot be read")
        return ", ".join(parts)


def now() -> str:
    """The time as text, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def encode(key: str, request: Request, answer: Answer, task: str, model: str) -> Row:
    """The row of an answer without fault.

    Raises:
        TypeError: the answer's value is not of the type that the request asks for.
    """
    kind = type(request).__name__
    value = _to_bytes(kind, answer.value)
    numbers = (int(answer.tokens_in), int(answer.tokens_out))
    check = _checksum(key.encode(), kind.encode(), value, *numbers)
    asked = plain(content(request))
    return Row(key, kind, task, model, _to_cell(kind, value), *numbers, now(), check, asked)


def decode(cells: Sequence) -> Answer | None:
    """The answer in a row's cells of READ, texts as bytes; None where the row is damaged."""
    key, kind, value, tokens_in, tokens_out, check = cells
    if not all(isinstance(cell, bytes) for cell in (key, kind, value, check)):
        return None
    if _checksum(key, kind, value, tokens_in, tokens_out).encode() != check:
        return None
    return Answer(_from_bytes(kind.decode(), value), tokens_in, tokens_out)


def _checksum(key: bytes, kind: bytes, value: bytes, tokens_in: int, tokens_out: int) -> str:
    head = b"%b\n%b\n" % (key, kind) + f"{tokens_in}\n{tokens_out}\n".encode()
    return hashlib.sha256(head + value).hexdigest()[:32]


def _to_bytes(kind: str, value: Value | None) -> bytes:
    if kind == "Completion" and isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if kind == "Scoring" and isinstance(value, list):
        return json.dumps([float(score) for score in value]).encode()
    if kind == "Embedding" and isinstance(value, np.ndarray) and value.ndim == 1:
        return np.ascontiguousarray(value, dtype="<f4").tobytes()
    raise TypeError(f"the answer to a {kind} is a {type(value).__name__}, which cannot be kept")


def _from_bytes(kind: str, value: bytes) -> Value:
    if kind == "Embedding":
        return np.frombuffer(value, dtype="<f4").astype(np.float32)
    return json.loads(value) if kind == "Scoring" else value.decode("utf-8", "surrogatepass")


def _to_cell(kind: str, value: bytes) -> str | bytes:
    """Text as SQLite's TEXT, so that a human can read it in any SQLite browser."""
    try:
        return value if kind == "Embedding" else value.decode("utf-8")
    except UnicodeDecodeError:  # a lone surrogate
        return value


def plain(text: str) -> str:
    """`text` with JSON escapes for lone surrogates, which UTF-8 cannot write."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of CHUNK items, the last one shorter."""
    items = iter(items)
    while chunk := list(islice(items, CHUNK)):
        yield chunk


def connect(path: Path | str, write: bool = False) -> sqlite3.Connection:
    """Open a file, or ":memory:": to write it, which makes it where it is missing, or to read.

    A reader opens it for writing all the same where it may: what a killed writer left half done
    has to be completed or undone before anything can be read.

    Raises:
        sqlite3.Error: see `failure`.
    """
    uri = "file::memory:"
    if isinstance(path, Path):
        mode = "mode=rwc" if write else "mode=rw"
        if not write and not os.access(path.parent, os.W_OK):
            mode = "immutable=1"  # the files that a reader shares with a writer cannot be made
        uri = f"{path.resolve().as_uri()}?{mode}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.text_factory = bytes  # a damaged text is to fail its checksum, not the query
        for setting in ("trusted_schema=OFF", "cell_size_check=ON", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {setting}")
        if write:
            connection.execute("PRAGMA journal_mode=WAL")
            if version_of(connection) == 0:
                connection.executescript(SCHEMA)
        else:
            connection.execute("PRAGMA query_only=ON")
            # Else nothing could be read of a file that has lost its end.
            connection.execute("PRAGMA writable_schema=ON")
            version_of(connection)  # reads the file, whose faults show here
    except BaseException:
        connection.close()
        raise
    return connection


def version_of(connection: sqlite3.Connection) -> int:
    """The format of the file; 0 where it has no tables yet."""
    return connection.execute("PRAGMA user_version").fetchone()[0]


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of what is done inside, or, on any exception, nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def select(
    connection: sqlite3.Connection, columns: str, table: str, keys: Iterable[str]
) -> Iterator[tuple[str, tuple]]:
    """(key, cells of `columns`) of those of `keys` that have a row in `table`."""
    for chunk in chunks(keys):
        marks = ",".join("?" * len(chunk))
        query = f"SELECT key, {columns} FROM {table} WHERE key IN ({marks})"
        for key, *cells in connection.execute(query, chunk):
            yield key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key), cells


def take_over(target: sqlite3.Connection, where: Path, path: Path) -> Taken:
    """Store the answers and lasting faults of another file, of either format; first answers stay.

    Of a damaged file comes what SQLite can read of it. It may be done again: nothing comes twice.

    Args:
        target: The file that gets them.
        where: Its path, for messages.
        path: The other file.

    Raises:
        DataError: the other file cannot be opened for another reason than damage, or the target
            cannot be written.
    """
    new = same = other = 0
    unread: int | None = None
    with failing(path):
        try:
            with closing(connect(path)) as source:
                for chunk in chunks(_sound_rows(source, path.stat().st_size // LEAST_ROW)):
                    with failing(where), transaction(target):
                        here = dict(select(target, "checksum", "answers", [r.key for r in chunk]))
                        target.executemany(INSERT, chunk)
                    equal = [here[r.key] == [r.checksum.encode()] for r in chunk if r.key in here]
                    new, same = new + len(chunk) - len(equal), same + sum(equal)
                    other += equal.count(False)
                with failing(where), transaction(target):
                    _take_lasting(target, source)
                total = _count_answers(source)
                unread = None if total is None else total - new - same - other
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
    return Taken(new, same, other, unread)


def _take_lasting(target: sqlite3.Connection, source: sqlite3.Connection) -> None:
    """Nothing where there is no such table, as in the first files, or no sound one."""
    found = []
    with suppress(sqlite3.DatabaseError):
        found = source.execute("SELECT key, reason, created FROM lasting").fetchall()
    texts = [[(cell or b"").decode("utf-8", "replace") for cell in row] for row in found]
    answered = dict(select(target, "1", "answers", [row[0] for row in texts]))
    rows = [row for row in texts if row[0] not in answered]
    target.executemany("INSERT OR IGNORE INTO lasting VALUES (?,?,?)", rows)


def _count_answers(source: sqlite3.Connection) -> int | None:
    """How many answers a file has, by its index or its table, whichever is sound."""
    for index in ("", "NOT INDEXED"):
        with suppress(sqlite3.DatabaseError):
            return source.execute(f"SELECT count(*) FROM answers {index}").fetchone()[0]
    return None


def _sound_rows(source: sqlite3.Connection, most: int) -> Iterator[Row]:
    """The rows in the order in which they were stored; behind the first damage one by one.

    Args:
        source: Of either format.
        most: No row has a higher number.
    """
    query, last = f"SELECT rowid, {COLUMNS} FROM answers NOT INDEXED", 0
    try:
        for row in source.execute(f"{query} ORDER BY rowid"):
            last = row[0]
            yield from _sound(row[1:])
        return
    except sqlite3.DatabaseError as error:
        if not is_damaged(error):
            raise
    for number in range(last + 1, most + 1):
        try:
            found = source.execute(f"{query} WHERE rowid = ?", (number,)).fetchone()
        except sqlite3.DatabaseError:
            continue  # counted by what is there in all
        if found:
            yield from _sound(found[1:])


def _sound(cells: Sequence) -> list[Row]:
    """The row that cells make, texts as bytes; none where its checksum is wrong."""
    row = Row(*cells)
    if decode([getattr(row, name) for name in READ.split(", ")]) is None:
        return []
    texts = [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell for cell in row]
    return [Row(*texts)._replace(value=_to_cell(row.kind.decode(), row.value))]


def is_damaged(error: sqlite3.Error) -> bool:
    """Whether the file is no sound SQLite database (any more)."""
    words = ("malformed", "not a database", "unsupported file format", "no such table")
    return any(word in str(error) for word in words)


def failure(path: Path, error: Exception, lost: str = "") -> DataError:
    """What SQLite or the file system said about `path`, in words that say what to do.

    Args:
        path: The file or its folder.
        error: What was raised.
        lost: What could not be stored, where something was to be.
    """
    text = getattr(error, "strerror", None) or str(error)
    lost = f" {lost}; all earlier ones are kept." if lost else ""
    if isinstance(error, sqlite3.Error) and is_damaged(error):
        return DataError(
            f"{path}: is damaged ({text}).{lost} Move it and its -wal elsewhere and run 'python -m "
            "dataset_tools merge NAME FILE', which takes over what can still be read"
        )
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "is full" in text
    if full or "disk I/O error" in text:  # SQLite's word for an exhausted quota
        return DataError(
            f"{path}: the disk is full or fails ({text}).{lost} Free some 50 MB and run again"
        )
    if "locked" in text:
        return DataError(
            f"{path}: another process kept it locked for over {LOCK_SECONDS:.0f} s.{lost} End that "
            "process, then run again"
        )
    return DataError(
        f"{path}: answers cannot be kept there ({text}).{lost} Check the folder's rights and its "
        "disk, or name another folder (--answers)"
    )


@contextmanager
def failing(path: Path, lost: str = "") -> Iterator[None]:
    """Turn what SQLite or the file system raises into the DataError of `failure`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise failure(path, error, lost) from error
