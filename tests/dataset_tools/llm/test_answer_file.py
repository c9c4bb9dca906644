"""Files of answers: of former versions, damaged, on a full or a read-only disk."""

import ctypes
import errno
import hashlib
import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_tools.llm import answers as answers_module
from dataset_tools.llm.answer_file import encode
from dataset_tools.llm.answers import FILE, AnswerStore
from dataset_tools.llm.requests import Answer, Embedding, key_of
from recbole_tema.errors import DataError
from tests.dataset_tools.llm.test_answers import entry, fill, kept, keys_of, merged

FORMER = """
CREATE TABLE answers (
  key TEXT PRIMARY KEY, kind TEXT NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL,
  value BLOB NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
  created TEXT NOT NULL, checksum TEXT NOT NULL, request TEXT NOT NULL);
CREATE TABLE faults (key TEXT PRIMARY KEY, reason TEXT NOT NULL, created TEXT);
CREATE TABLE session (id TEXT PRIMARY KEY);
CREATE TABLE lasting (key TEXT PRIMARY KEY, reason TEXT NOT NULL, created TEXT);
CREATE TABLE asked (place TEXT PRIMARY KEY, digest TEXT NOT NULL);
INSERT INTO faults VALUES ('f1', 'no answer in time', '2026-01-01');
INSERT INTO lasting VALUES ('f2', 'held back', '2026-01-01');
PRAGMA user_version=1;
"""

pytestmark = pytest.mark.long


def former(folder, n, name="answers-1-of-1.sqlite", lasting=True):
    """A file of the former format with `n` answers, by nothing of the package but the rows."""
    folder.mkdir(exist_ok=True)
    rows = [entry(i, words=40) for i in range(n)]
    with closing(sqlite3.connect(folder / name)) as file:
        file.executescript(FORMER if lasting else re.sub("(?m)^.*(lasting|asked).*$", "", FORMER))
        for key, _, answer in rows:
            text = f"{key}\nCompletion\n{answer.tokens_in}\n{answer.tokens_out}\n{answer.value}"
            check = hashlib.sha256(text.encode()).hexdigest()[:32]
            cells = (key, "Completion", "tag", "m", answer.value, answer.tokens_in)
            cells += (answer.tokens_out, "2026-01-01T00:00:00+00:00", check, "{}")
            file.execute("INSERT INTO answers VALUES (?,?,?,?,?,?,?,?,?,?)", cells)
        file.commit()
    return rows


@pytest.mark.parametrize("lasting", [True, False], ids=["latest", "first version"])
def test_former_files_are_taken_over_once(tmp_path, caplog, lasting):
    caplog.set_level(logging.INFO)
    rows = former(tmp_path, 30, "answers-1-of-2.sqlite", lasting)
    former(tmp_path, 10, "answers-2-of-2.sqlite", lasting)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options in ({"readonly": True}, {"part": (1, 2)}, {}):
        assert sorted(kept(tmp_path, rows, **options)) == sorted(keys_of(rows))
    assert "answers-1-of-2.sqlite: 30 answers taken over" in caplog.text
    assert "answers-2-of-2.sqlite: 0 answers taken over" in caplog.text
    with AnswerStore(tmp_path) as store:
        assert store.lasting(["f1", "f2"]) == ({"f2": "held back"} if lasting else {})
    assert caplog.text.count("answers-") == 2
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.iterdir()}.items()


def test_what_a_killed_writer_of_a_former_file_left_half_done_is_undone(tmp_path):
    rows = former(tmp_path, 50)
    path = tmp_path / "answers-1-of-1.sqlite"
    half = """
import os, sqlite3, sys
file = sqlite3.connect(sys.argv[1], isolation_level=None)
file.execute("PRAGMA cache_size=2")
file.execute("BEGIN IMMEDIATE")
file.execute("UPDATE answers SET value = 'half done'")
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", half, str(path)])
    assert path.with_name(f"{path.name}-journal").stat().st_size > 0
    assert len(kept(tmp_path, rows)) == 50


def overwrite(path, place, data):
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(data)


def place_of(path, data):
    place = path.read_bytes().find(data)
    assert place >= 0
    return place


@pytest.mark.parametrize("junk", [b"~", b"\xff"], ids=["another letter", "not UTF-8"])
def test_a_damaged_row_is_counted_and_written_anew(tmp_path, caplog, junk):
    rows = fill(tmp_path, 60)
    overwrite(tmp_path / FILE, place_of(tmp_path / FILE, b"tag 33, tag 33") + 4, junk)
    with caplog.at_level(logging.WARNING), AnswerStore(tmp_path) as store:
        for _ in range(2):
            assert set(keys_of(rows)) - store.get(keys_of(rows)).keys() == {rows[33][0]}
        assert caplog.text.count("1 damaged answers (wrong checksum)") == 1
        store.put([rows[33]], "tag", "m")
    assert len(kept(tmp_path, rows)) == 60
    assert "damaged and cannot be read" not in merged(tmp_path / "other", tmp_path / FILE).stdout


def damage_header(data):
    data[:100] = b"\x17" * 100


def damage_end(data):
    del data[len(data) * 2 // 3 + 123 :]


def pages_of(data, kind):
    return [start for start in range(4096, len(data), 4096) if data[start] == kind]


def damage_rows(data):
    """One leaf page of the table in the midst."""
    leaves = pages_of(data, 13)
    start = leaves[len(leaves) // 2]
    data[start : start + 4096] = b"\xaa" * 4096


def damage_index(data):
    for start in pages_of(data, 10):
        data[start : start + 4096] = b"\xaa" * 4096


DAMAGES = {damage_header: 0, damage_end: 0.4, damage_rows: 0.9, damage_index: 1}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("is_former", [False, True], ids=["this format", "former"])
def test_of_a_damaged_file_what_sqlite_can_read_is_taken_over(tmp_path, damage, is_former, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "s"
    rows = former(folder, 600) if is_former else fill(folder, 600, words=40)
    path = folder / ("answers-1-of-1.sqlite" if is_former else FILE)
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    if is_former:
        with pytest.raises(DataError, match="damaged") as caught:
            AnswerStore(folder)
        assert path.read_bytes() == data and "sqlite3 FILE .recover" in str(caught.value)
        path.rename(tmp_path / "aside.sqlite")  # then it stops nothing, and what was read is there
        found = kept(folder, rows)
        assert DAMAGES[damage] * 600 <= len(found)
        assert (not found) or f"{len(found)} answers taken over" in caplog.text
        return
    with pytest.raises(DataError, match=r"is damaged.*merge NAME FILE") as caught:
        kept(folder, rows)
        fill(folder, 1, start=600)
    assert "\n" not in str(caught.value)
    path.rename(tmp_path / "aside.sqlite")
    for name in ("-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    done = merged(folder, tmp_path / "aside.sqlite")
    found = kept(folder, rows)
    assert DAMAGES[damage] * 600 <= len(found)
    if not found:
        assert done.exit_code == 2 and "no answer can be read in it" in done.output
        return
    said = done.stdout
    assert f"{len(found)} answers taken over" in said
    assert (len(found) < 600) == ("damaged and cannot be read" in said)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_damage_brings_a_wrong_answer_or_a_traceback(tmp_path, data):
    sound = tmp_path / "sound"
    if not sound.exists():
        fill(sound, 120)
    content = bytearray((sound / FILE).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        junk = data.draw(st.binary(min_size=1, max_size=200))
        content[place : place + len(junk)] = junk
    rows = [entry(i) for i in range(120)]
    for name in (FILE, "answers-1-of-1.sqlite"):
        folder = tmp_path / str(time.monotonic_ns())
        folder.mkdir()
        (folder / name).write_bytes(content[: data.draw(st.integers(1, len(content)))])
        try:
            with AnswerStore(folder) as store:
                for key, answer in store.get(keys_of(rows)).items():
                    assert answer in [a for k, _, a in rows if k == key]
                store.put(rows, "tag", "m")
        except DataError as error:
            assert re.search(
                "damaged|format|cannot be kept|no file of answers|later version", str(error)
            )
        shutil.rmtree(folder)


def test_a_file_of_another_version_is_named(tmp_path):
    fill(tmp_path, 1)
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        file.execute("PRAGMA user_version=9")
    with pytest.raises(DataError, match="format 9"):
        AnswerStore(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "store", tmp_path / "file"):
        with pytest.raises(DataError, match=r"cannot be kept there.*another folder"):
            AnswerStore(folder)


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of so many bytes, for root only."""
    mounted = []
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        target = str(folder).encode()
        if os.geteuid() != 0 or libc.mount(b"none", target, b"tmpfs", 0, b"size=%d" % size):
            pytest.skip("needs root with the right to mount a small tmpfs")
        mounted.append(target)
        return folder

    yield mount
    for target in mounted:
        libc.umount2(target, 2)


READ_ONLY = 1 | 32  # MS_RDONLY, MS_REMOUNT


def test_a_read_only_folder(small_disk):
    folder = small_disk(1 << 22)
    rows = fill(folder / "store", 5)
    ctypes.CDLL(None).mount(b"none", str(folder).encode(), b"tmpfs", READ_ONLY, None)
    with pytest.raises(DataError, match=r"Read-only file system.*name another folder"):
        AnswerStore(folder / "new")
    with pytest.raises(DataError, match=r"[Rr]ead-only file system.*name another folder"):
        AnswerStore(folder / "store")
    assert len(kept(folder / "store", rows, readonly=True)) == 5


def fill_disk(folder):
    with open(folder / "filler", "ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)) > 0:
                continue
        except OSError as error:
            assert error.errno == errno.ENOSPC


def test_a_full_disk_keeps_what_was_stored(small_disk, monkeypatch):
    monkeypatch.setattr(answers_module, "LEAST_FREE_BYTES", 1 << 20)
    folder = small_disk(4 << 20)
    rows = [entry(i, words=100) for i in range(400)]
    with AnswerStore(folder / "store") as store:
        store.prepare()
        store.put(rows[:100], "tag", "m")
        fill_disk(folder)
        with pytest.raises(
            DataError, match=r"full.*300 answers in hand are lost; all earlier ones"
        ):
            store.put(rows[100:], "tag", "m")
        with pytest.raises(DataError, match="the disk is full: 0 MB are free, and nothing more is"):
            store.prepare()  # says so before anything is paid for
        assert store.get(keys_of(rows)) == {key: a for key, _, a in rows[:100]}
    (folder / "filler").unlink()
    with AnswerStore(folder / "store") as store:
        store.prepare()
        store.put(rows[100:], "tag", "m")
    assert len(kept(folder / "store", rows)) == 400


LIMITED = """
import resource, sys
from tests.dataset_tools.llm.test_answers import entry
from dataset_tools.llm.answers import AnswerStore
from recbole_tema.errors import DataError
with AnswerStore(sys.argv[1]) as store:
    store.put([entry(i) for i in range(50)], "tag", "m")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        store.put([entry(i, words=500) for i in range(50, 150)], "tag", "m")
    except DataError as error:
        print(error)
"""


def test_a_file_that_may_not_grow(tmp_path):
    """Without root: the limit of a file's size, which SQLite calls an I/O error."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "100 answers in hand are lost; all earlier ones are kept" in result.stdout, result.stderr
    rows = [entry(i) for i in range(50)]
    assert len(kept(tmp_path, rows)) == 50


def test_a_vector_that_a_damaged_row_calls_a_text_is_read_all_the_same(tmp_path):
    request = Embedding("tea")
    row = (key_of("m", request), request, Answer(np.zeros(4, np.float32)))
    with AnswerStore(tmp_path) as store:
        store.put([row], "embed", "m")
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as file:
        file.execute("UPDATE answers SET value = CAST(value AS TEXT)")
        assert file.execute("SELECT typeof(value) FROM answers").fetchone() == ("text",)
    assert kept(tmp_path, [row]) == [row[0]]


def test_what_changes_in_a_former_file_is_taken_over_too(tmp_path):
    rows = former(tmp_path, 20)
    assert sorted(kept(tmp_path, rows)) == sorted(keys_of(rows))
    path = tmp_path / "answers-1-of-1.sqlite"
    size = path.stat().st_size
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        # Another answer in place of the first: the file keeps its size.
        key, request, answer = entry(900)
        cells = encode(key, request, answer, "tag", "m")
        file.execute("DELETE FROM answers WHERE key = ?", (rows[0][0],))
        file.execute(f"INSERT INTO answers VALUES ({','.join('?' * len(cells))})", cells)
    assert path.stat().st_size == size
    assert len(kept(tmp_path, [*rows, entry(900)])) == 21


def test_retry_failed_forgets_the_faults_of_former_files_too(tmp_path):
    former(tmp_path, 5)
    path = tmp_path / "answers-1-of-1.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("INSERT INTO lasting VALUES (?, 'refused', '')", (entry(7)[0],))
    with AnswerStore(tmp_path, retry_failed=True) as store:
        assert not store.lasting([entry(7)[0]])


@pytest.mark.parametrize("what", ["text", "database", "later"])
def test_a_file_that_is_none_of_ours_is_not_joined(tmp_path, what):
    rows, path = fill(tmp_path / "s", 3), tmp_path / "x.sqlite"
    path.write_text("no database, but a text of some length " * 50)
    if what != "text":
        path.unlink()
        with closing(sqlite3.connect(path)) as file:
            file.execute("CREATE TABLE answers (name TEXT)")
            file.execute(f"PRAGMA user_version={9 if what == 'later' else 0}")
    done = merged(tmp_path / "s", path)
    says = {"text": "no answer can be read", "database": "no file of answers", "later": "update"}
    assert done.exit_code == 2 and says[what] in done.output and str(path) in done.output
    assert sorted(kept(tmp_path / "s", rows)) == sorted(keys_of(rows))


KILLED = """
import os, signal, sys
from dataset_tools.llm.answers import AnswerStore
from tests.dataset_tools.llm.test_answers import entry
store = AnswerStore(sys.argv[1])
store.put([entry(i) for i in range(8)], "tag", "m")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "shared", [True, False], ids=["with the file that readers share", "without"]
)
def test_a_read_only_folder_is_read_with_what_a_killed_writer_left(small_disk, shared):
    folder = small_disk(1 << 23)
    command = [sys.executable, "-c", KILLED, str(folder / "s")]
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run(command, cwd=root, check=False).returncode == -signal.SIGKILL
    assert (folder / "s" / f"{FILE}-wal").stat().st_size
    if not shared:
        (folder / "s" / f"{FILE}-shm").unlink()
    ctypes.CDLL(None).mount(b"none", str(folder).encode(), b"tmpfs", READ_ONLY, None)
    rows = [entry(i) for i in range(8)]
    assert sorted(kept(folder / "s", rows, readonly=True)) == sorted(keys_of(rows))
