"""One SQLite file of answers: its tables, its rows with their checksums, what its errors mean.

Files of format 1, one for each of several writers, have the same table of answers beside others
that are no longer needed; `take_over` reads them too.
"""

import errno
import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset_tools.llm.requests import Answer, Request, Value, content
from recbole_tema.errors import DataError
from recbole_tema.progress import PassingBar

FORMAT = 2  # the user_version of the file
LOCK_SECONDS = 20.0  # how long another process may keep the file locked; it takes milliseconds
CHUNK = 500  # rows of a transaction
LEAST_ROW = 100  # bytes; key and checksum alone have 96
# What SQLite cannot read by itself, its own tool may find page by page.
RECOVER = (
    "SQLite's own tool may read more: sqlite3 FILE .recover | sqlite3 NEW.sqlite, then "
    "python -m dataset_tools merge NAME NEW.sqlite"
)

# `request` comes last: it is long, and SQLite reads a row only as far as it is asked to.
SCHEMA = f"""
BEGIN;
CREATE TABLE answers (
  key TEXT PRIMARY KEY, kind TEXT NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL,
  value BLOB NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
  created TEXT NOT NULL, checksum TEXT NOT NULL, request TEXT NOT NULL);
CREATE TABLE lasting (key TEXT PRIMARY KEY, reason TEXT NOT NULL, created TEXT);
CREATE TABLE taken (file TEXT PRIMARY KEY, stamp INTEGER NOT NULL, created TEXT NOT NULL);
PRAGMA user_version={FORMAT};
COMMIT;
"""
INSERT = "INSERT OR IGNORE INTO answers VALUES (?,?,?,?,?,?,?,?,?,?)"
# What `decode` reads of a row.
COLUMNS = "key, kind, value, tokens_in, tokens_out, checksum"


class Taken(NamedTuple):
    """What became of the answers of another file.

    Attributes:
        new: Stored here now.
        same: Were here already.
        other: Differ from the answer that is here, which stays.
        unread: Damaged; None where nobody can say how many there were.
        damaged: Whether the file itself is, not only some of its answers.
    """

    new: int
    same: int
    other: int
    unread: int | None
    damaged: bool

    def __str__(self) -> str:
        text = f"{self.new:,} answers taken over, {self.same:,} were there"
        if self.other:
            text += f", {self.other:,} differ from those that were there, which stay"
        if self.unread:
            text += f", {self.unread:,} are damaged and cannot be read"
        elif self.unread is None:
            text += ", others, nobody can say how many, are damaged and cannot be read"
        if self.damaged:
            text += f". {RECOVER}"
        return text


def now() -> str:
    """The time as text, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(text: str) -> str:
    """`text` with JSON escapes for lone surrogates, which UTF-8 cannot write."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def encode(key: str, request: Request, answer: Answer, task: str, model: str) -> tuple:
    """The row of an answer without fault.

    Raises:
        TypeError: the answer's value is not of the type that the request asks for.
    """
    kind = type(request).__name__
    cell = _cell(kind, answer.value)
    counts = (int(answer.tokens_in), int(answer.tokens_out))
    check = _checksum(key, kind, cell, *counts)
    return key, kind, task, model, cell, *counts, now(), check, plain(content(request))


def decode(cells: Sequence) -> Answer | None:
    """The answer in a row's COLUMNS; None where the row is damaged."""
    *cells, check = cells
    _, kind, cell, tokens_in, tokens_out = cells
    if not isinstance(cell, str | bytes) or _checksum(*cells) != check:
        return None
    if kind == "Embedding":
        data = cell.encode() if isinstance(cell, str) else cell  # damage can make a TEXT of a BLOB
        return Answer(np.frombuffer(data, dtype="<f4").astype(np.float32), tokens_in, tokens_out)
    text = cell if isinstance(cell, str) else cell.decode("utf-8", "surrogatepass")
    return Answer(json.loads(text) if kind == "Scoring" else text, tokens_in, tokens_out)


def _cell(kind: str, value: Value | None) -> str | bytes:
    """A vector as bytes; all else as text, so that a human can read it in any SQLite browser."""
    if kind == "Embedding" and isinstance(value, np.ndarray) and value.ndim == 1:
        return np.ascontiguousarray(value, dtype="<f4").tobytes()
    if kind == "Scoring" and isinstance(value, list):
        return json.dumps([float(score) for score in value])
    if kind == "Completion" and isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return value if plain(value) == value else data  # a lone surrogate is no TEXT
    raise TypeError(f"the answer to a {kind} is a {type(value).__name__}, which cannot be kept")


def _checksum(key: str, kind: str, cell: str | bytes, tokens_in: int, tokens_out: int) -> str:
    head = f"{key}\n{kind}\n{tokens_in}\n{tokens_out}\n".encode()
    data = cell.encode() if isinstance(cell, str) else cell
    return hashlib.sha256(head + data).hexdigest()[:32]


def stamp(path: Path) -> int:
    """A number that is another one once the file, or what a writer has still beside it, changes."""
    files = [file for file in (path, Path(f"{path}-wal")) if file.exists()]
    found = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return int.from_bytes(hashlib.sha256(repr(found).encode()).digest()[:7])


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?{mode}",
        uri=True,
        timeout=LOCK_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _to_read(path: Path) -> sqlite3.Connection:
    """Open a file to read, also where the files that readers share with a writer cannot be made:
    the folder is read-only, or its disk full."""
    for mode in ("mode=rw", "mode=ro"):
        connection = _opened(path, mode)
        try:
            # Else nothing could be read of a file that has lost its end.
            connection.execute("PRAGMA writable_schema=ON")
            version_of(connection)
            return connection
        except sqlite3.OperationalError as error:
            connection.close()
            if "locked" in str(error) or not path.is_file():
                raise
        except BaseException:
            connection.close()
            raise
    log = Path(f"{path}-wal")
    if not log.is_file() or not log.stat().st_size:
        return _opened(path, "immutable=1")  # no writer, or it would have a log
    memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    with tempfile.TemporaryDirectory() as folder:  # what a killed writer has in its log counts too
        for file in (path, log):
            shutil.copyfile(file, Path(folder) / file.name)
        with closing(_opened(Path(folder) / path.name, "mode=rw")) as copy:
            copy.backup(memory)
    return memory


def connect(path: Path, write: bool = False) -> sqlite3.Connection:
    """Open a file: to write it, which makes it where it is missing, or to read.

    A reader opens it for writing all the same where it may: what a killed writer left half done
    has to be completed or undone before anything can be read.

    Raises:
        sqlite3.Error: see `failure`.
    """
    connection = _opened(path, "mode=rwc") if write else _to_read(path)
    try:
        # A damaged text is to fail its checksum, not the query.
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
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
) -> list[tuple]:
    """The cells of `columns` of those of `keys` that have a row in `table`."""
    query = f"SELECT {columns} FROM {table} WHERE key IN (SELECT value FROM json_each(?))"
    return connection.execute(query, (json.dumps(list(keys)),)).fetchall()


def take_over(target: sqlite3.Connection, where: Path, path: Path) -> Taken:
    """Store the answers and lasting faults of another file, of either format; first answers stay.

    Of a damaged file comes what SQLite can read of it. It may be done again: nothing comes twice,
    and what is damaged in the target is replaced.

    Args:
        target: The file that gets them.
        where: Its path, for messages.
        path: The other file.

    Raises:
        DataError: the other file cannot be opened for another reason than damage, has no answers
            that can be read, or the target cannot be written.
    """
    new = same = other = 0
    damaged = True
    unread: int | None = None
    bar = PassingBar(desc=f"taking over {path.name}", unit="answer", delay=1.0)
    with bar, failing(path), suppress_damage(), closing(connect(path)) as source:
        _check_format(source, path)
        rows = _sound_rows(source, path.stat().st_size // LEAST_ROW)
        while chunk := list(islice(rows, CHUNK)):
            with failing(where), transaction(target):
                found = select(target, COLUMNS, "answers", [row[0] for row in chunk])
                here = {cells[0]: cells[-1] for cells in found if decode(cells) is not None}
                unsound = [cells[:1] for cells in found if cells[0] not in here]
                target.executemany("DELETE FROM answers WHERE key = ?", unsound)
                target.executemany(INSERT, chunk)
            equal = [here[row[0]] == row[-2] for row in chunk if row[0] in here]
            new, same = new + len(chunk) - len(equal), same + sum(equal)
            other += equal.count(False)
            bar.update(len(chunk))
        lasting = []
        with suppress_damage():  # the first files have no such table
            lasting = source.execute("SELECT key, reason, created FROM lasting").fetchall()
        with failing(where), transaction(target):
            found = select(target, "key", "answers", [row[0] for row in lasting])
            left = [row for row in lasting if row[:1] not in found]
            target.executemany("INSERT OR IGNORE INTO lasting VALUES (?,?,?)", left)
        for index in ("", "NOT INDEXED"):  # by its index or its table, whichever is sound
            with suppress_damage():
                total = source.execute(f"SELECT count(*) FROM answers {index}").fetchone()[0]
                unread = total - new - same - other
                break
        damaged = source.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok"
    if damaged and not new + same + other:
        raise DataError(
            f"{path}: no answer can be read in it: damaged, or none of our files. {RECOVER}"
        )
    return Taken(new, same, other, unread, damaged)


def _check_format(source: sqlite3.Connection, path: Path) -> None:
    """Refuse a sound database that is none of ours, or of a later version."""
    with suppress_damage():
        if version_of(source) > FORMAT:
            version = version_of(source)
            raise DataError(f"{path}: of a later version ({version}); update recbole-tema")
        try:
            source.execute(f"SELECT {COLUMNS}, task, model, created, request FROM answers LIMIT 0")
        except sqlite3.OperationalError as error:
            sound = source.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
            if sound and "no such" in str(error):
                text = f"{path}: no file of answers ({error}); give those of parts"
                raise DataError(text) from None


def _sound_rows(source: sqlite3.Connection, most: int) -> Iterator[tuple]:
    """The sound rows in the order in which they were stored; behind the first damage one by one.

    Args:
        source: Of either format.
        most: No row has a higher number.
    """
    query, last = f"SELECT {COLUMNS}, rowid, answers.* FROM answers NOT INDEXED", 0
    with suppress_damage():
        for cells in source.execute(f"{query} ORDER BY rowid"):
            last = cells[6]
            if decode(cells[:6]) is not None:
                yield cells[7:]
        return
    for number in range(last + 1, most + 1):
        with suppress_damage():
            cells = source.execute(f"{query} WHERE rowid = ?", (number,)).fetchone()
            if cells and decode(cells[:6]) is not None:
                yield cells[7:]


def is_damaged(error: Exception) -> bool:
    """Whether the file is no sound SQLite database (any more)."""
    words = ("malformed", "not a database", "unsupported file format", "no such table")
    return isinstance(error, sqlite3.Error) and any(word in str(error) for word in words)


@contextmanager
def suppress_damage() -> Iterator[None]:
    """Leave what is inside where SQLite says that the file is damaged."""
    try:
        yield
    except sqlite3.Error as error:
        if not is_damaged(error):
            raise


@contextmanager
def suppress_missing(table: str) -> Iterator[None]:
    """Leave what is inside where the file has no such table of `lasting` faults."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if table != "lasting" or "no such table" not in str(error):
            raise


@contextmanager
def failing(path: Path, lost: str = "") -> Iterator[None]:
    """Turn what SQLite or the file system raises into a DataError that says what to do.

    Args:
        path: The file or its folder.
        lost: What could not be stored, where something was to be.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        text = getattr(error, "strerror", None) or str(error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if is_damaged(error):
            what = f"is damaged ({text})"
            remedy = (
                "Move it and its -wal elsewhere and run 'python -m dataset_tools merge NAME FILE', "
                f"which takes over what can still be read. {RECOVER}"
            )
        # SQLite calls an exhausted quota an I/O error.
        elif full or "is full" in text or "disk I/O error" in text:
            what, remedy = f"the disk is full or fails ({text})", "Free some 50 MB and run again"
        elif "locked" in text:
            what = f"another process kept it locked for over {LOCK_SECONDS:.0f} s"
            remedy = "End that process, then run again"
        else:
            what = f"answers cannot be kept there ({text})"
            remedy = "Check the folder's rights and its disk, or name another folder (--answers)"
        lost = f" {lost}; all earlier ones are kept." if lost else ""
        raise DataError(f"{path}: {what}.{lost} {remedy}") from error
