"""Where the answers of language models are kept: one SQLite file, which one process writes.

It is `answers.sqlite` in its folder; of a run that several machines share, each has a file of its
own, `part-2-of-4.sqlite`, and reads the common one beside it, where there is one; `merge` joins
them. Others may read a file while it is written.

An answer that was stored survives kill -9; a power cut costs those of half a second at most.
Nothing is asked unless the disk has room for the answers that are then under way.
"""

import logging
import shutil
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from dataset_tools.llm.answer_file import (
    COLUMNS,
    FORMAT,
    INSERT,
    RECOVER,
    Taken,
    connect,
    decode,
    encode,
    failing,
    now,
    plain,
    select,
    stamp,
    suppress_damage,
    suppress_missing,
    take_over,
    transaction,
    version_of,
)
from dataset_tools.llm.requests import Answer, Request
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

FILE = "answers.sqlite"
PARTS, FORMER = "part-*-of-*.sqlite", "answers-*-of-*.sqlite"
LEAST_FREE_BYTES = 8 << 20
SYNC_SECONDS = 0.5
START_SECONDS = 2.0  # how long to wait for the process before, which may be about to end


class AnswerStore:
    """Answers by key, in `folder`, for one thread at a time.

    Use it as a context manager, or `close` it. Files of the former format, `answers-i-of-n.sqlite`,
    are taken over once and stay as they are.

    Args:
        folder: Made where it is missing.
        part: (i, n): the i-th of n parts, counted from 1, with a file of its own.
        readonly: Make and change no file; the folder need not be there.
        retry_failed: Forget the lasting faults, so that those requests are asked anew.
        join: Take over the answers of parts that lie in the folder.

    Raises:
        DataError: the file is damaged, of another version, or written by another process; or the
            folder cannot be made or written.
    """

    def __init__(
        self,
        folder: str | Path,
        part: tuple[int, int] = (1, 1),
        *,
        readonly: bool = False,
        retry_failed: bool = False,
        join: bool = True,
    ) -> None:
        index, n_parts = part
        if not 1 <= index <= n_parts:
            raise DataError(f"part {index}/{n_parts}: the first number must be 1 to {n_parts}")
        self.folder, self.part = Path(folder), part
        self.path = self.folder / (FILE if n_parts == 1 else f"part-{index}-of-{n_parts}.sqlite")
        self.readonly, self._retry_failed, self._joins = readonly, retry_failed, join
        self._own: sqlite3.Connection | None = None
        self._all: dict[Path, sqlite3.Connection] = {}
        self._lock = FileLock(self.path.with_suffix(".lock"), thread_local=False)
        self._unsound: set[str] = set()
        self._synced = 0.0
        try:
            if not readonly:
                self._open()
            if readonly or n_parts > 1:
                self._open_others()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; the store cannot be used any more."""
        for connection in self._all.values():
            connection.close()
        self._all, self._own = {}, None
        self._lock.release()

    def get(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers of those of `keys` that are kept.

        A row whose checksum is wrong counts as missing, and their number is logged once.

        Raises:
            DataError: a file cannot be read.
        """
        found: dict[str, Answer] = {}
        unsound = set()
        for cells in self._select(COLUMNS, "answers", keys):
            answer = decode(cells)
            if answer is None:
                unsound.add(str(cells[0]))
            else:
                found.setdefault(cells[0], answer)
        unsound -= found.keys() | self._unsound
        if unsound:
            self._unsound |= unsound
            text = "%s: %d damaged answers (wrong checksum) count as missing"
            log.warning(text, self.path, len(unsound))
        return found

    def lasting(self, keys: Iterable[str]) -> dict[str, str]:
        """Reasons of those of `keys` that have a lasting fault, which is not asked again.

        With `retry_failed` only what this process asked anew counts.
        """
        return dict(self._select("key, reason", "lasting", keys, only_own=self._retry_failed))

    def prepare(self) -> None:
        """Check that there is room for what is asked and under way.

        Raises:
            DataError: the disk is full.
        """
        with failing(self.folder):
            free = shutil.disk_usage(self.folder).free
        if free < LEAST_FREE_BYTES:
            raise DataError(
                f"{self.folder}: the disk is full: {free >> 20} MB are free, and nothing more is "
                "asked; all answers so far are kept. Free some 50 MB and run again"
            )

    def put(self, rows: Sequence[tuple[str, Request, Answer]], task: str, model: str) -> None:
        """Store (key, request, answer) of each row, all in one transaction.

        An answer that is there already stays as it is. An answer with a fault is not stored; if
        that is a lasting one, its reason is.

        Args:
            rows: What was asked and answered.
            task: What the answers are for, in a word.
            model: The identity of the backend that answered.

        Raises:
            DataError: the rows cannot be stored.
        """
        own = self._writable
        sound = [encode(*row, task, model) for row in rows if row[2].fault is None]
        lasting = [(k, plain(a.fault), now()) for k, _, a in rows if a.fault and a.lasting]
        # One sync makes all transactions before it proof against a power cut, too.
        if full := time.monotonic() - self._synced > SYNC_SECONDS:
            self._synced = time.monotonic()
        with failing(self.path, f"{len(sound)} answers in hand are lost"):
            own.execute(f"PRAGMA synchronous={'FULL' if full else 'NORMAL'}")
            with transaction(own):
                damaged = [row[:1] for row in sound if row[0] in self._unsound]
                own.executemany("DELETE FROM answers WHERE key = ?", damaged)
                own.executemany(INSERT, sound)
                answered = [row[:1] for row in sound]
                own.executemany("DELETE FROM lasting WHERE key = ?", answered)
                own.executemany("INSERT OR REPLACE INTO lasting VALUES (?,?,?)", lasting)

    def merge(self, path: Path) -> Taken:
        """Take over the answers and lasting faults of another file; see `take_over`.

        Raises:
            DataError: it is not there or cannot be read, or they cannot be stored.
        """
        if not path.is_file():
            raise DataError(f"{path}: no such file of answers; give those of the parts")
        needed, free = path.stat().st_size, shutil.disk_usage(self.folder).free
        if free < needed + LEAST_FREE_BYTES:
            raise DataError(
                f"{self.folder}: {free >> 20:,} MB are free, and the answers of {path.name} may "
                f"take {needed >> 20:,} MB more; make room, or name another folder (--answers)"
            )
        with failing(path), suppress_damage():
            connect(path).close()  # what a killed writer left half done is completed or undone
        before = stamp(path)
        taken = take_over(self._writable, self.path, path)
        if not taken.damaged:
            with failing(self.path):
                row = (path.name, before, now())
                self._writable.execute("INSERT OR REPLACE INTO taken VALUES (?,?,?)", row)
        return taken

    def apart(self, keys: Iterable[str]) -> int:
        """How many of `keys` have their answer in the file of this part alone."""
        own: set[str] = set()
        common: set[str] = set()
        keys = list(keys)
        for path, connection in self._all.items():
            with failing(path):
                found = {row[0] for row in select(connection, "key", "answers", keys)}
            own, common = (found, common) if connection is self._own else (own, common | found)
        return len(own - common)

    @property
    def n_answers(self) -> int:
        """How many answers the own file has."""
        return self._writable.execute("SELECT count(*) FROM answers").fetchone()[0]

    @property
    def _writable(self) -> sqlite3.Connection:
        if self._own is None:
            raise ValueError(f"{self.path} is not open for writing")
        return self._own

    def _select(
        self, columns: str, table: str, keys: Iterable[str], only_own: bool = False
    ) -> list[tuple]:
        keys, found = list(keys), []
        for path, connection in self._all.items():
            if connection is self._own or not only_own:
                # The first files of the former format have no table of lasting faults.
                with failing(path), suppress_missing(table):
                    found += select(connection, columns, table, keys)
        return found

    def _open(self) -> None:
        with failing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=START_SECONDS)
            except Timeout:
                raise DataError(
                    f"{self._lock.lock_file}: another process is writing these answers; wait until "
                    "it ends, or share the work by --part i/n, one file each"
                ) from None
        with failing(self.path):
            taken = self._connect(self.path, write=True)
            self._own = self._all[self.path]
        if self.part[1] == 1:
            self._join(taken)
        if self._retry_failed:
            with failing(self.path):
                self._own.execute("DELETE FROM lasting")

    def _join(self, taken: dict[str, int]) -> None:
        """Take over files of the former format, and of parts that lie in the folder."""
        parts = self._left(PARTS, taken) if self._joins else []
        for path in [*self._left(FORMER, taken), *parts]:
            found = self.merge(path)
            log.info("%s: %s", path, found)
            if found.damaged:
                raise DataError(
                    f"{path}: is damaged; {found.new + found.same:,} of its answers are in "
                    f"{self.path.name} now. Move it elsewhere to go on without others. {RECOVER}"
                )

    def _open_others(self) -> None:
        """Open what is only read, former files that nobody has taken over yet too."""
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder}: is no folder; name another one (--answers)")
        taken: dict[str, int] = {}
        common = self.folder / FILE
        for path in dict.fromkeys([common, self.path]) if self.readonly else [common]:
            if path.is_file():
                with failing(path):
                    taken |= self._connect(path)
        parts = self._left(PARTS, taken) if self.part[1] == 1 else []
        for path in [*self._left(FORMER, taken), *parts]:
            with failing(path):
                self._all[path] = connect(path)

    def _connect(self, path: Path, write: bool = False) -> dict[str, int]:
        """Open a file; returns the names of those that it has taken over, and their stamps then."""
        connection = connect(path, write)
        version = version_of(connection)
        if version == FORMAT:
            self._all[path] = connection
            return dict(connection.execute("SELECT file, stamp FROM taken"))
        connection.close()
        if version == 0:  # another process is just making it
            return {}
        raise DataError(
            f"{path}: format {version}, this version reads {FORMAT}; update recbole-tema, or name "
            "another folder (--answers)"
        )

    def _left(self, pattern: str, taken: dict[str, int]) -> list[Path]:
        """Files in the folder that were not taken over as they are now."""
        paths = sorted(self.folder.glob(pattern))
        return [path for path in paths if taken.get(path.name) != stamp(path)]
