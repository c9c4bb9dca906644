"""Where the answers of language models are kept: a folder of SQLite files, one a writer.

Each writing process is a shard i of n with a file of its own, `answers-i-of-n.sqlite`, which it
alone writes; every process reads the files of all. So several processes, also on several machines
over a shared folder that has file locks (NFS 4 has), can fill one store.

An answer that was stored is on the disk: it survives kill -9 and a power cut. Before anything is
asked, some megabytes are set aside in a reserve file; when the disk is full it makes room for the
answers in hand, which have been paid for.

A file also lists the requests that got no usable answer; see `answer_notes` for the tables, and
`asking` and `shards` for what they are for.
"""

import logging
import secrets
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from dataset_tools.llm.answer_file import (
    FORMAT,
    as_text,
    check_format,
    connect,
    encode,
    failing,
    failure,
    file_number,
    insert,
    is_damaged,
    lacks_space,
    lock_of,
    select,
    set_aside,
    transaction,
    version_of,
)
from dataset_tools.llm.answer_notes import (
    begin_process,
    begin_session,
    read_asked,
    select_lasting,
    session_and_faults,
    write_asked,
)
from dataset_tools.llm.requests import Answer, Request
from dataset_tools.llm.salvage import salvage
from recbole_tema.data.atomic import sync_folder
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

RESERVE_BYTES = 8 << 20
START_SECONDS = 2.0  # others hold a writer's lock for a moment, to see whether it runs
LOOK_SECONDS = 0.3
EMERGENCY_ROWS = 16  # rows in one transaction when the disk is full


class Count(NamedTuple):
    """What the rows of one task add up to."""

    answers: int
    tokens_in: int
    tokens_out: int


class AnswerStore:
    """Answers by key, in `folder`.

    A store may be used by several threads. Use it as a context manager, or `close` it.

    Args:
        folder: Made where it is missing.
        shard: (i, n): this process is the i-th of n writers, counted from 1.
        readonly: Take no lock, make and repair no file; the folder need not be there.
        retry_failed: Forget the lasting faults, so that those requests are asked anew.

    Raises:
        DataError: the folder cannot be made or written, or another process writes this shard.
    """

    def __init__(
        self,
        folder: str | Path,
        shard: tuple[int, int] = (1, 1),
        *,
        readonly: bool = False,
        retry_failed: bool = False,
    ) -> None:
        index, n_shards = shard
        if not 1 <= index <= n_shards:
            raise DataError(f"shard {index}/{n_shards}: the first number must be 1 to {n_shards}")
        self.folder = Path(folder)
        self.shard = shard
        self._path = self._file_of(index)
        self._reserve = self._path.with_suffix(".reserve")
        self._mutex = threading.RLock()
        self._session: str | None = None
        self.readonly, self.retry_failed = readonly, retry_failed
        self._n_asked: Counter[str] = Counter()
        self._unsound: set[tuple[Path, str]] = set()
        self._unread: set[Path] = set()
        self._connection: sqlite3.Connection | None = None
        self._lock = FileLock(lock_of(self._path), thread_local=False)
        if not readonly:
            self._open()

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; the store cannot be used any more."""
        with self._mutex:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
                with suppress(OSError):  # one that is left behind serves the next run
                    self._reserve.unlink(missing_ok=True)
            self._lock.release()

    def get(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers of those of `keys` that are kept; the first file by name has precedence.

        A row whose checksum is wrong counts as missing, and their number is logged once.

        Raises:
            DataError: a file cannot be read, or stays locked.
        """
        left = dict.fromkeys(keys)
        found: dict[str, Answer] = {}
        unsound = set()
        for path in self._files() if left else []:
            for key, answer in self._read(path, lambda file: list(select(file, left))) or []:
                if answer is None:
                    unsound.add((path, key))
                else:
                    found[key] = answer
                    del left[key]
        if new := unsound - self._unsound:
            self._unsound |= new
            names = ", ".join(sorted({path.name for path, _ in new}))
            text = "%s: %d damaged answers (wrong checksum) in %s count as missing"
            log.warning(text, self.folder, len(new), names)
        return found

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that `get` would not find, each once, in their order."""
        keys = list(dict.fromkeys(keys))
        found = self.get(keys)
        return [key for key in keys if key not in found]

    def counts(self) -> dict[str, Count]:
        """Answers and tokens by task; an answer that two writers paid for counts twice."""
        query = (
            "SELECT task, count(*), coalesce(sum(tokens_in), 0), coalesce(sum(tokens_out), 0) "
            "FROM answers GROUP BY task"
        )
        total: dict[str, Count] = {}
        for path in self._files():
            rows = self._read(path, lambda file: file.execute(query).fetchall())
            for task, *numbers in rows or []:
                name = as_text(task)
                before = total.get(name, Count(0, 0, 0))
                total[name] = Count(*map(sum, zip(before, numbers, strict=True)))
        return dict(sorted(total.items()))

    def prepare(self) -> None:
        """Get ready to store what is about to be asked: call it before anything is paid for.

        Sets the reserve aside and, the first time, begins a new session, without faults.

        Raises:
            DataError: the disk is full, or the folder cannot be written.
        """
        with self._mutex:
            self._writable()
            set_aside(self._reserve, RESERVE_BYTES)
            if self._session is None:
                name = secrets.token_hex(8)
                with failing(self._path):
                    self._change(lambda file: begin_session(file, name))
                self._session = name

    def put(self, rows: Sequence[tuple[str, Request, Answer]], task: str, model: str) -> None:
        """Store (key, request, answer) of each row, all in one transaction.

        An answer that is there already stays as it is. An answer with a fault is not stored: its
        reason goes to the list of faults, or to that of the lasting ones.

        Args:
            rows: What was asked and answered.
            task: What the answers are for, in a word.
            model: The identity of the backend that answered.

        Raises:
            DataError: the disk is full (how much could be stored all the same, thanks to the
                reserve, is in the message), or the folder cannot be written.
        """
        sound = [encode(*row, task, model) for row in rows if row[2].fault is None]
        failed = [(key, answer) for key, _, answer in rows if answer.fault is not None]
        passing = [(key, answer.fault) for key, answer in failed if not answer.lasting]
        lasting = [(key, answer.fault) for key, answer in failed if answer.lasting]
        with self._mutex:
            self._writable()
            try:
                self._change(lambda file: insert(file, sound, passing, lasting))
            except sqlite3.Error as error:
                if not lacks_space(error):
                    raise failure(self._path, error) from error
                raise DataError(self._put_at_last(sound, error)) from error

    def faults(self, index: int) -> tuple[str | None, dict[str, str]]:
        """What writer `index` of this store's n recorded: its latest session, reasons by key."""
        path = self._file_of(index)
        if not path.exists():
            return None, {}
        session, faults = self._read(path, session_and_faults) or (None, {})
        return session, faults

    def lasting(self, keys: Iterable[str]) -> dict[str, str]:
        """Reasons of those of `keys` that have a lasting fault, which is not asked again.

        With `retry_failed` only what this process asked anew counts.
        """
        keys = list(keys)
        found: dict[str, str] = {}
        mine = [] if self.readonly else [self._path]
        for path in (mine if self.retry_failed else self._files()) if keys else ():
            found |= self._read(path, lambda file: select_lasting(file, keys)) or {}
        return found

    def publish(self, task: str, digest: str) -> str:
        """Let the other shards know what is asked now; returns the place, such as "tag 1".

        Raises:
            DataError: the folder cannot be written.
        """
        self._n_asked[task] += 1
        place = f"{task} {self._n_asked[task]}"
        with self._mutex, failing(self._path):
            self._writable()
            self._change(lambda file: write_asked(file, place, digest))
        return place

    def published(self, index: int) -> dict[str, str]:
        """Digest by place of what writer `index` of this store's n asks, if it runs."""
        path = self._file_of(index)
        return (self._read(path, read_asked) or {}) if path.exists() else {}

    def running(self, index: int) -> bool:
        """Whether writer `index` of this store's n has its file open, in any process."""
        lock_path = lock_of(self._file_of(index))
        if not lock_path.exists():
            return False
        lock = FileLock(lock_path, thread_local=False)
        try:  # long enough for another process that only looks, too
            with failing(lock_path), lock.acquire(timeout=LOOK_SECONDS):
                return False
        except Timeout:
            return True

    def _file_of(self, index: int) -> Path:
        return self.folder / f"answers-{index}-of-{self.shard[1]}.sqlite"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("answers-*-of-*.sqlite"))

    def _open(self) -> None:
        try:
            with failing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=START_SECONDS)
        except Timeout:
            index, n_shards = self.shard
            raise DataError(
                f"{self._lock.lock_file}: another process is writing shard {index}/{n_shards} of "
                "these answers; wait until it ends, or share the work by --shard i/n"
            ) from None
        try:
            self._connect()
            with failing(self._path):
                self._change(lambda file: begin_process(file, self.retry_failed))
        except BaseException:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._lock.release()
            raise

    def _connect(self) -> None:
        """Open the own file; a damaged one is replaced by its sound rows first."""
        with failing(self._path):
            try:
                self._connection = connect(self._path, writer=True)
            except sqlite3.DatabaseError as error:
                if not is_damaged(error):
                    raise
                salvage(self._path)
                self._connection = connect(self._path, writer=True)
        check_format(self._path, self._connection)

    def _writable(self) -> None:
        if self._connection is None:
            raise ValueError(f"{self._path} is not open for writing")

    def _change(self, change) -> None:
        """Run `change(connection)` as one transaction; once more if the file was damaged."""
        try:
            with transaction(self._connection):
                change(self._connection)
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
            self._repair_own()
            with transaction(self._connection):
                change(self._connection)

    def _repair_own(self) -> None:
        self._connection.close()
        with failing(self._path):
            salvage(self._path)
        self._connect()

    def _put_at_last(self, rows: Sequence, error: sqlite3.Error) -> str:
        """Store what fits once the reserve is gone; says how much that was."""
        self._reserve.unlink(missing_ok=True)
        sync_folder(self.folder)  # some file systems free the space only then
        stored = 0
        for start in range(0, len(rows), EMERGENCY_ROWS):
            part = rows[start : start + EMERGENCY_ROWS]
            try:
                self._change(lambda file, part=part: insert(file, part))
            except sqlite3.Error:
                break
            stored += len(part)
        lost = f", {len(rows) - stored} are lost" if stored < len(rows) else ""
        return (
            f"{self.folder}: the disk is full or fails ({error}). Of the {len(rows)} answers in "
            f"hand {stored} were stored{lost}; all earlier ones are kept. Free space and run again"
        )

    def _read(self, path: Path, query):
        """The value of `query(connection)` on one file; None where there is nothing to read yet."""
        for may_repair in (True, False):
            number = file_number(path)
            try:
                return self._query(path, query)
            except sqlite3.DatabaseError as error:
                if is_damaged(error):
                    if may_repair and self._repair(path, number):
                        continue
                elif path.exists():
                    raise failure(path, error) from error
                return None  # damaged, or just being replaced
        return None

    def _query(self, path: Path, query):
        if path == self._path and self._connection is not None:
            with self._mutex:
                return query(self._connection)
        # Opened anew each time: its writer may have replaced the file.
        with closing(connect(path, writer=False)) as connection:
            check_format(path, connection)
            # A file that is just being made has no format and no tables yet.
            return query(connection) if version_of(connection) == FORMAT else None

    def _repair(self, path: Path, number: int) -> bool:
        """Whether the damaged file `number` was replaced: not while another process writes it."""
        if path == self._path and self._connection is not None:
            with self._mutex:
                self._repair_own()
            return True
        reason: object = "only read here"
        if not self.readonly:
            try:
                with FileLock(lock_of(path), thread_local=False).acquire(timeout=START_SECONDS):
                    if file_number(path) == number:  # else another reader was faster
                        salvage(path)
                return True
            except Timeout:
                reason = "another process writes it"
            except (OSError, sqlite3.Error) as error:
                reason = error
        if path not in self._unread:
            self._unread.add(path)
            log.warning("%s is damaged and not repaired (%s); it is left out", path, reason)
        return False
