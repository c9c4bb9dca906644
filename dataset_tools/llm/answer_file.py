"""One SQLite file of answers: its tables, its rows with their checksums, what its errors mean.

The file is written by one process and read by many, maybe on other machines over a network file
system. Hence a rollback journal and not a write-ahead log, which needs shared memory; and a
journal that is truncated instead of deleted, because over NFS a reader may go on seeing for
seconds that a deleted file is there, or that a new one is not.
"""

import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import Timeout

from dataset_tools.llm.requests import Answer, Request, Value, content
from recbole_tema.errors import DataError

FORMAT = 1  # the user_version of the file
PAGE_SIZE = 4096
LOCK_SECONDS = 60.0  # how long another process may keep the file locked; it takes milliseconds
CHUNK = 500  # keys in one query; old versions of SQLite take 999 at most

# `request` comes last: it is long, and SQLite reads a row only as far as it is asked to.
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY, kind TEXT NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL,
  value BLOB NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
  created TEXT NOT NULL, checksum TEXT NOT NULL, request TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS faults (key TEXT PRIMARY KEY, reason TEXT NOT NULL, created TEXT);
CREATE TABLE IF NOT EXISTS session (id TEXT PRIMARY KEY);
"""
# Tables that the first files of this format lack: their writer adds them, see `has_table`.
LATER_SCHEMA = """
CREATE TABLE IF NOT EXISTS lasting (key TEXT PRIMARY KEY, reason TEXT NOT NULL, created TEXT);
CREATE TABLE IF NOT EXISTS asked (place TEXT PRIMARY KEY, digest TEXT NOT NULL);
"""
COLUMNS = "key, kind, value, tokens_in, tokens_out, checksum"


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
    # A lone surrogate, which UTF-8 cannot write, becomes its JSON escape.
    asked = content(request).encode("utf-8", "backslashreplace").decode("utf-8")
    return Row(key, kind, task, model, to_cell(kind, value), *numbers, now(), check, asked)


def decode(cells: Sequence) -> Answer | None:
    """The answer in a row's COLUMNS, texts as bytes; None where the row is damaged."""
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


def to_cell(kind: str, value: bytes) -> str | bytes:
    """Text as SQLite's TEXT, so that a human can read it in any SQLite browser."""
    if kind == "Embedding":
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:  # a lone surrogate
        return value


def _from_bytes(kind: str, value: bytes) -> Value:
    if kind == "Embedding":
        return np.frombuffer(value, dtype="<f4").astype(np.float32)
    if kind == "Scoring":
        return json.loads(value)
    return value.decode("utf-8", "surrogatepass")


def as_text(cell: object) -> str:
    """A cell that should be a text, whatever damage made of it."""
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)


def connect(path: Path, writer: bool) -> sqlite3.Connection:
    """Open the file: as its writer, who makes it where it is missing, or to read only.

    A reader opens it for writing all the same, though it never writes: what a killed writer left
    half done has to be rolled back before anything can be read.

    Raises:
        sqlite3.DatabaseError: see `is_damaged` and the rest.
    """
    if writer and not _may_be_written(path):
        raise sqlite3.DatabaseError("file is not a database of this version of SQLite")
    uri = f"{path.resolve().as_uri()}?mode={'rwc' if writer else 'rw'}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.text_factory = bytes  # a damaged text is to fail its checksum, not the query
        for setting in ("trusted_schema=OFF", "cell_size_check=ON", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {setting}")
        if writer:
            connection.execute(f"PRAGMA page_size={PAGE_SIZE}")
            connection.execute("PRAGMA journal_mode=TRUNCATE")
            connection.execute("PRAGMA synchronous=FULL")
            _create(connection)
        else:
            connection.execute("PRAGMA query_only=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _may_be_written(path: Path) -> bool:
    """Whether the header does not forbid it: damaged there, a file would look like a locked door.

    (https://www.sqlite.org/fileformat2.html, section 1.3.3)
    """
    if not path.exists():
        return True
    with open(path, "rb") as file:
        return all(version <= 2 for version in file.read(20)[18:])


def _create(connection: sqlite3.Connection) -> None:
    version = version_of(connection)
    if version == 0:
        with transaction(connection):
            for statement in (SCHEMA + LATER_SCHEMA).split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={FORMAT}")
    elif version == FORMAT and not has_table(connection, "asked"):
        with transaction(connection):
            for statement in LATER_SCHEMA.split(";"):
                connection.execute(statement)


def has_table(connection: sqlite3.Connection, name: str) -> bool:
    """Whether a file has one of the later tables: an older version may write it just now."""
    query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(query, (name,)).fetchone()[0] > 0


def version_of(connection: sqlite3.Connection) -> int:
    """The format of the file; 0 where it has no tables yet."""
    return connection.execute("PRAGMA user_version").fetchone()[0]


def check_format(path: Path, connection: sqlite3.Connection) -> None:
    """Close a file of another version.

    Raises:
        DataError: it is one.
    """
    version = version_of(connection)
    if version not in (0, FORMAT):
        connection.close()
        raise DataError(
            f"{path}: format {version}, this version reads {FORMAT}; update recbole-tema, or name "
            "another folder"
        )


def lock_of(path: Path) -> Path:
    """The lock that the writer of a file holds."""
    return path.with_suffix(".lock")


def file_number(path: Path) -> int:
    """What tells a file from the one that replaced it; 0 where there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def set_aside(path: Path, size: int) -> None:
    """Write the reserve: random bytes, which no file system can store in less space.

    Raises:
        DataError: there is no room for it.
    """
    if path.exists() and path.stat().st_size == size:
        return
    try:
        with open(path, "wb") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise failure(path, error) from error


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


def select(connection: sqlite3.Connection, keys: Iterable[str]) -> Iterator[tuple[str, Answer]]:
    """(key, answer) of those of `keys` that have a row; the answer is None where it is damaged."""
    keys = list(keys)
    for start in range(0, len(keys), CHUNK):
        chunk = keys[start : start + CHUNK]
        marks = ",".join("?" * len(chunk))
        query = f"SELECT {COLUMNS} FROM answers WHERE key IN ({marks})"
        for cells in connection.execute(query, chunk):
            yield as_text(cells[0]), decode(cells)


def insert(
    connection: sqlite3.Connection,
    rows: Sequence[Row],
    faults: Sequence[tuple[str, str]] = (),
    lasting: Sequence[tuple[str, str]] = (),
) -> None:
    """Store rows, and (key, reason) of faults; a sound row that is there already stays.

    Call it inside a transaction.
    """
    here = dict(select(connection, [row.key for row in rows]))
    damaged = [(key,) for key, answer in here.items() if answer is None]
    connection.executemany("DELETE FROM answers WHERE key = ?", damaged)
    new = [row for row in rows if here.get(row.key) is None]
    marks = ",".join("?" * len(Row._fields))
    connection.executemany(f"INSERT OR IGNORE INTO answers VALUES ({marks})", new)
    for table, found in (("faults", faults), ("lasting", lasting)):
        connection.executemany(f"DELETE FROM {table} WHERE key = ?", [(row.key,) for row in rows])
        texts = [(key, _plain(reason), now()) for key, reason in found]
        connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?,?,?)", texts)


def _plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_damaged(error: sqlite3.Error) -> bool:
    """Whether the file is no sound SQLite database (any more)."""
    words = ("malformed", "not a database", "unsupported file format")
    # Tables and format come in one transaction: where only a table is missing, it was damaged.
    return any(word in str(error) for word in (*words, "no such table", "no such column"))


def lacks_space(error: sqlite3.Error) -> bool:
    """Whether the disk may be full: SQLite calls an exhausted quota an I/O error."""
    return "is full" in str(error) or "disk I/O error" in str(error)


def failure(path: Path, error: Exception) -> DataError:
    """What SQLite or the file system said about `path`, in words that say what to do."""
    text = getattr(error, "strerror", None) or str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "is full" in text:
        return DataError(
            f"{path}: the disk is full; nothing more was asked. Free some 50 MB and run again"
        )
    if "locked" in text:
        return DataError(
            f"{path}: another process kept it locked for over {LOCK_SECONDS:.0f} s; end that "
            "process (maybe on another machine), then run again"
        )
    return DataError(
        f"{path}: the store of answers cannot be used there ({text}); check the folder's rights "
        "and its disk, or name another folder"
    )


@contextmanager
def failing(path: Path) -> Iterator[None]:
    """Turn what SQLite or the file system raises into a DataError that names `path`.

    A Timeout of a lock, which is an OSError too, is the caller's.
    """
    try:
        yield
    except Timeout:
        raise
    except (sqlite3.Error, OSError) as error:
        raise failure(path, error) from error
