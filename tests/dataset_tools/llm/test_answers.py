"""The store of answers: what was stored is there, whatever is killed, damaged, full or locked."""

import ctypes
import errno
import logging
import multiprocessing
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_tools.llm import answers as answers_module
from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.requests import Answer, Embedding, key_of
from dataset_tools.llm.salvage import sound_rows
from recbole_tema.errors import DataError
from tests.support.hash_backend import completion, scoring

pytestmark = pytest.mark.long

FILE = "answers-1-of-1.sqlite"


def entry(i, answer=None, words=3):
    request = completion(f"item {i}")
    return key_of("m", request), request, answer or Answer(f"tag {i}, " * words, 10 + i, i)


def fill(folder, n, words=3, **options):
    rows = [entry(i, words=words) for i in range(n)]
    with AnswerStore(folder, **options) as store:
        store.put(rows, "tag", "m")
    return rows


def texts_of(folder, rows, **options):
    with AnswerStore(folder, **options) as store:
        found = store.get([key for key, _, _ in rows])
    return {key: answer.value for key, answer in found.items()}


def test_each_kind_of_value_comes_back_as_it_was(tmp_path):
    vector = np.random.default_rng(0).normal(size=384).astype(np.float32)
    scores = [0.1, -1e-300, float("1.7976931348623157e308"), 0.30000000000000004]
    rows = [
        ("k1", completion("a"), Answer("grüner Tee \0 \ud83d", 5, 6)),
        ("k2", scoring("b"), Answer(scores, 7, 8)),
        ("k3", Embedding("c \udc80"), Answer(vector, 9, 0)),
        ("k4", completion("d"), Answer("", 1, 0)),
    ]
    with AnswerStore(tmp_path) as store:
        store.put(rows, "tag", "m")
    with AnswerStore(tmp_path) as store:
        found = store.get(["k1", "k2", "k3", "k4", "absent"])
    assert sorted(found) == ["k1", "k2", "k3", "k4"]
    assert found["k1"] == Answer("grüner Tee \0 \ud83d", 5, 6)
    assert found["k2"] == Answer(scores, 7, 8)
    assert found["k3"].value.dtype == np.float32
    assert found["k3"].value.tobytes() == vector.tobytes()
    assert found["k4"] == Answer("", 1, 0)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.text(st.characters(), max_size=40), max_size=8),
    scores=st.lists(st.lists(st.floats(allow_nan=False, width=64), max_size=5), max_size=5),
)
def test_any_text_and_any_scores_come_back(tmp_path, texts, scores):
    rows = [(f"t{i}", completion(text), Answer(text)) for i, text in enumerate(texts)]
    rows += [(f"s{i}", scoring("x"), Answer(values)) for i, values in enumerate(scores)]
    folder = tmp_path / str(time.monotonic_ns())
    with AnswerStore(folder) as store:
        store.put(rows, "t", "m")
        assert store.get(key for key, _, _ in rows) == {key: a for key, _, a in rows}
    sound = {row.key: row.value for row in sound_rows(folder / FILE)}
    assert len(sound) == len(rows)  # the reader of raw pages agrees with SQLite
    shutil.rmtree(folder)


def test_a_human_can_look_up_what_was_asked(tmp_path):
    fill(tmp_path, 1)
    with sqlite3.connect(tmp_path / FILE) as file:
        row = file.execute("SELECT request, value, task, model, kind FROM answers").fetchone()
    assert '"user":"item 0"' in row[0]
    assert row[1:] == ("tag 0, tag 0, tag 0, ", "tag", "m", "Completion")


def test_the_first_answer_stays_and_faults_are_no_answers(tmp_path):
    with AnswerStore(tmp_path) as store:
        store.put([entry(1)], "tag", "m")
        store.put([entry(1, Answer("other"))], "tag", "m")
        store.put([entry(2, Answer(None, fault="an empty answer"))], "tag", "m")
        keys = [entry(i)[0] for i in (1, 2, 3)]
        assert store.get(keys) == {keys[0]: entry(1)[2]}
        assert store.missing(keys + keys) == keys[1:]
        assert store.faults(1)[1] == {keys[1]: "an empty answer"}
        store.put([entry(2)], "tag", "m")
        assert store.faults(1)[1] == {}


def failed(i, lasting):
    return entry(i, Answer(None, fault=f"reason {i} \ud800", lasting=lasting))


def test_lasting_faults_stay_until_they_are_answered_or_forgotten(tmp_path):
    keys = [entry(i)[0] for i in range(4)]
    with AnswerStore(tmp_path, (1, 2)) as store:
        store.prepare()
        store.put([entry(0), failed(1, True), failed(2, False), failed(3, True)], "tag", "m")
    lasting = {keys[1]: "reason 1 \\ud800", keys[3]: "reason 3 \\ud800"}
    with AnswerStore(tmp_path, (1, 2)) as store, AnswerStore(tmp_path) as other:
        store.prepare()
        assert store.lasting(keys) == other.lasting(keys) == lasting
        assert store.faults(1)[1] == lasting  # the passing one was of the last session
        assert store.missing(keys) == keys[1:]
        store.put([entry(1)], "tag", "m")
        assert list(store.lasting(keys)) == [keys[3]]
    with AnswerStore(tmp_path, readonly=True, retry_failed=True) as store:
        assert store.lasting(keys) == {}
    with AnswerStore(tmp_path, (1, 2), retry_failed=True) as store:
        assert store.lasting(keys) == store.faults(1)[1] == {}
        store.put([failed(3, True)], "tag", "m")
        assert list(store.lasting(keys)) == [keys[3]]
    with AnswerStore(tmp_path, readonly=True) as store:
        assert list(store.lasting(keys)) == [keys[3]]


def test_a_file_of_the_first_version_is_read_and_written(tmp_path, caplog):
    """It lacks the later tables. Its writer may be at work with that version, when others read."""
    rows = fill(tmp_path, 20, shard=(1, 2))
    keys = [key for key, _, _ in rows]
    with sqlite3.connect(tmp_path / "answers-1-of-2.sqlite") as file:
        file.execute("DROP TABLE lasting")
        file.execute("DROP TABLE asked")
    with AnswerStore(tmp_path, (2, 2)) as other:
        assert other.missing(keys) == [] and other.lasting(keys) == {}
        assert other.published(1) == {} and other.faults(1) == (None, {})
    with AnswerStore(tmp_path, (1, 2)) as store:
        store.put([failed(30, True)], "tag", "m")
        assert store.missing(keys) == [] and len(store.lasting([entry(30)[0]])) == 1
    assert not caplog.records and not list(tmp_path.glob("*damaged*"))


def test_counts_by_task(tmp_path):
    with AnswerStore(tmp_path, (1, 2)) as one, AnswerStore(tmp_path, (2, 2)) as two:
        one.put([entry(1), entry(2)], "tag", "m")
        two.put([entry(3)], "tag", "m")
        two.put([entry(4)], "rate", "m")
        assert one.counts() == two.counts() == {"rate": (1, 14, 4), "tag": (3, 36, 6)}


def test_a_writer_sees_what_the_others_store_meanwhile(tmp_path):
    with AnswerStore(tmp_path, (1, 3)) as one, AnswerStore(tmp_path, (3, 3)) as three:
        assert one.missing([entry(5)[0]]) == [entry(5)[0]]
        three.put([entry(5)], "tag", "m")
        assert one.get([entry(5)[0]]) == {entry(5)[0]: entry(5)[2]}
        assert one.running(3) and not one.running(2)
    with AnswerStore(tmp_path) as alone:
        assert alone.missing([entry(5)[0]]) == []


def test_readers_and_a_writer_at_once(tmp_path):
    """A reader that meets a transaction waits and sees all of it or nothing."""
    stop, seen, errors = threading.Event(), [], []

    def read():
        try:
            with AnswerStore(tmp_path, (2, 2)) as store:
                while not stop.is_set():
                    seen.append(len(store.get(entry(i)[0] for i in range(400))))
        except Exception as error:
            errors.append(error)

    with AnswerStore(tmp_path, (1, 2)) as store:
        reader = threading.Thread(target=read)
        reader.start()
        for start in range(0, 400, 10):
            store.put([entry(i) for i in range(start, start + 10)], "tag", "m")
        stop.set()
        reader.join()
    assert not errors
    assert seen == sorted(seen) and all(count % 10 == 0 for count in seen)


def test_one_process_writes_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(answers_module, "START_SECONDS", 0.1)
    with AnswerStore(tmp_path, (1, 2)):
        with pytest.raises(DataError, match="another process is writing shard 1/2"):
            AnswerStore(tmp_path, (1, 2))
        AnswerStore(tmp_path, (2, 2)).close()
        AnswerStore(tmp_path, (1, 2), readonly=True).close()
    AnswerStore(tmp_path, (1, 2)).close()
    with pytest.raises(DataError, match="shard 3/2"):
        AnswerStore(tmp_path, (3, 2))


def test_reading_only_makes_nothing(tmp_path):
    with AnswerStore(tmp_path / "absent", readonly=True) as store:
        assert store.missing(["a"]) == ["a"] and store.counts() == {}
        with pytest.raises(ValueError, match="not open for writing"):
            store.put([entry(1)], "tag", "m")
    assert not (tmp_path / "absent").exists()


def write_for_ever(folder, first, report):
    with AnswerStore(folder) as store:
        store.prepare()
        report.send("open")
        for place in range(first, 10**9, 3):
            store.put([entry(i, words=300) for i in range(place, place + 3)], "tag", "m")
            report.send(place)


def test_kill_9_loses_nothing_that_was_reported(tmp_path):
    chance, stored = random.Random(7), set()
    for _ in range(20):
        reader, report = multiprocessing.Pipe(duplex=False)
        arguments = (tmp_path / "s", max(stored, default=-1) + 1, report)
        writer = multiprocessing.get_context("fork").Process(target=write_for_ever, args=arguments)
        writer.start()
        report.close()
        assert reader.recv() == "open"
        places = [reader.recv() for _ in range(chance.randint(0, 3))]
        time.sleep(chance.uniform(0, 0.02))
        writer.kill()
        writer.join()
        try:
            while True:
                places.append(reader.recv())
        except EOFError:
            assert writer.exitcode == -9
        stored |= {i for place in places for i in range(place, place + 3)}
    assert len(stored) >= 60
    rows = [entry(i, words=300) for i in stored]
    assert texts_of(tmp_path / "s", rows) == {key: answer.value for key, _, answer in rows}
    assert not list((tmp_path / "s").glob("*.damaged-*"))


def test_a_reader_undoes_what_a_killed_writer_left_half_done(tmp_path):
    """A journal that is still there: the file holds changes that were never committed."""
    rows = fill(tmp_path, 50, shard=(1, 2))
    path = tmp_path / "answers-1-of-2.sqlite"
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
    assert texts_of(tmp_path, rows, shard=(2, 2)) == {k: a.value for k, _, a in rows}


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
    keys, key = [key for key, _, _ in rows], rows[33][0]
    with caplog.at_level(logging.WARNING), AnswerStore(tmp_path) as store:
        assert store.missing(keys) == [key]
        assert store.missing(keys) == [key]
        assert len(store.get(keys)) == 59
        assert caplog.text.count("1 damaged answers (wrong checksum)") == 1
        store.put([rows[33]], "tag", "m")
        assert store.get([key]) == {key: rows[33][2]}
    assert texts_of(tmp_path, rows) == {key: answer.value for key, _, answer in rows}


@pytest.mark.parametrize("copy", [0, 1], ids=["in the first copy", "in the second copy"])
def test_a_damaged_key_can_be_stored_again(tmp_path, copy):
    """A key stands in the table and in its index."""
    rows = fill(tmp_path, 60)
    content = (tmp_path / FILE).read_bytes()
    places = [found.start() for found in re.finditer(rows[33][0][:30].encode(), content)]
    overwrite(tmp_path / FILE, places[copy] + 4, b"~")
    keys = [key for key, _, _ in rows]
    with AnswerStore(tmp_path) as store:
        missing = store.missing(keys)
        assert missing in ([], [rows[33][0]])
        store.put(rows, "tag", "m")
        assert store.get(keys) == {key: answer for key, _, answer in rows}


def test_a_damaged_row_of_another_shard_is_written_anew_in_the_own_file(tmp_path):
    rows = fill(tmp_path, 60, shard=(1, 2))
    path = tmp_path / "answers-1-of-2.sqlite"
    overwrite(path, place_of(path, b"tag 33, tag 33") + 4, b"~")
    with AnswerStore(tmp_path, (2, 2)) as store:
        assert store.missing(key for key, _, _ in rows) == [rows[33][0]]
        store.put([rows[33]], "tag", "m")
        assert store.missing(key for key, _, _ in rows) == []


def damage_header(path):
    overwrite(path, 0, b"\x17" * 100)


def damage_first_page(path):
    overwrite(path, 0, bytes(4096))


def damage_truncated(path):
    os.truncate(path, path.stat().st_size * 2 // 3 + 123)


def damage_inner_pages(path):
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        if data[start] in (2, 5):  # inner pages of index and table
            data[start : start + 4096] = b"\xaa" * 4096
    path.write_bytes(data)


def damage_index(path):
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        if data[start] == 10:  # leaf pages of an index
            data[start : start + 4096] = b"\xaa" * 4096
    path.write_bytes(data)


DAMAGES = {
    damage_header: 1.0,  # the share of rows that must survive
    damage_first_page: 1.0,
    damage_truncated: 0.5,
    damage_inner_pages: 1.0,
    damage_index: 1.0,
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("reader", ["own", "other"])
def test_the_sound_rows_of_a_damaged_file_survive(tmp_path, caplog, damage, reader):
    rows = fill(tmp_path, 1500)
    rows += [entry(i, words=2000) for i in range(1500, 1520)]  # rows over several pages
    vector = np.arange(3000, dtype=np.float32)
    rows.append(("vector", Embedding("v"), Answer(vector, 1, 0)))
    with AnswerStore(tmp_path) as store:
        store.put(rows[1500:], "tag", "m")
    damage(tmp_path / FILE)
    bad = (tmp_path / FILE).read_bytes()
    shard = (1, 1) if reader == "own" else (2, 2)
    with caplog.at_level(logging.WARNING), AnswerStore(tmp_path, shard) as store:
        found = store.get(key for key, _, _ in rows)
        assert len(found) >= DAMAGES[damage] * len(rows)
        for key, _, answer in rows:
            if key in found:
                assert np.array_equal(found[key].value, answer.value)
        lost = [row for row in rows if row[0] not in found]
        store.put(lost, "tag", "m")
        assert len(store.get(key for key, _, _ in rows)) == len(rows)
    assert "was damaged" in caplog.text and f"{FILE}.damaged-1" in caplog.text
    assert (tmp_path / f"{FILE}.damaged-1").read_bytes() == bad
    with AnswerStore(tmp_path) as store:
        assert sum(task.answers for task in store.counts().values()) >= len(found)
    assert not (tmp_path / f"{FILE}.damaged-2").exists()


def test_kill_9_while_a_damaged_file_is_repaired(tmp_path):
    rows, pauses = fill(tmp_path, 1500), random.Random(5)
    for _ in range(10):
        damage_header(tmp_path / FILE)
        repair = multiprocessing.get_context("fork").Process(target=AnswerStore, args=(tmp_path,))
        repair.start()
        repair.join(pauses.uniform(0.01, 0.12))
        repair.kill()
        repair.join()
        with AnswerStore(tmp_path) as store:
            assert store.missing(key for key, _, _ in rows) == []


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_damage_brings_a_wrong_answer_or_a_traceback(tmp_path, data):
    sound = tmp_path / "sound"
    if not sound.exists():
        fill(sound, 120)
    folder = tmp_path / str(time.monotonic_ns())
    folder.mkdir()
    content = bytearray((sound / FILE).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        junk = data.draw(st.binary(min_size=1, max_size=200))
        content[place : place + len(junk)] = junk
    (folder / FILE).write_bytes(content[: data.draw(st.integers(1, len(content)))])
    rows = [entry(i) for i in range(120)]
    try:
        with AnswerStore(folder) as store:
            for key, answer in store.get(key for key, _, _ in rows).items():
                assert answer in [a for k, _, a in rows if k == key]
            store.put(rows, "tag", "m")
            assert len(store.get(key for key, _, _ in rows)) == 120
    except DataError as error:  # bytes that say: made by another version
        assert "format" in str(error)
    shutil.rmtree(folder)


def test_a_damaged_file_that_another_process_writes_is_left_out(tmp_path, caplog):
    fill(tmp_path, 20, shard=(1, 2))
    damage_header(tmp_path / "answers-1-of-2.sqlite")
    with FileLock(tmp_path / "answers-1-of-2.lock"), AnswerStore(tmp_path, (2, 2)) as store:
        keys = [entry(i)[0] for i in range(20)]
        assert store.missing(keys) == store.missing(keys) == keys
    assert caplog.text.count("another process writes it") == 1


def test_a_file_of_another_version_is_named(tmp_path):
    fill(tmp_path, 1)
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute("PRAGMA user_version=9")
    with pytest.raises(DataError, match="format 9"):
        AnswerStore(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used there"):
        AnswerStore(tmp_path / "file" / "store")
    with pytest.raises(DataError, match="cannot be used there"):
        AnswerStore(tmp_path / "file")


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of so many bytes, for root only."""
    mounted = []
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(size, flags=0):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        target = str(folder).encode()
        if os.geteuid() != 0 or libc.mount(b"none", target, b"tmpfs", flags, b"size=%d" % size):
            pytest.skip("needs root with the right to mount a small tmpfs")
        mounted.append(target)
        return folder

    yield mount
    for target in mounted:
        libc.umount2(target, 2)


def test_a_read_only_folder(small_disk):
    with pytest.raises(DataError, match=r"Read-only file system.*name another folder"):
        AnswerStore(small_disk(1 << 20, flags=1) / "store")


def fill_disk(folder):
    with open(folder / "filler", "ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)) > 0:
                continue
        except OSError as error:
            assert error.errno == errno.ENOSPC


def test_a_full_disk_stores_the_answers_in_hand_and_keeps_all_others(small_disk, monkeypatch):
    monkeypatch.setattr(answers_module, "RESERVE_BYTES", 1 << 20)
    folder = small_disk(4 << 20)
    rows = [entry(i, words=100) for i in range(400)]
    with AnswerStore(folder / "store") as store:
        store.prepare()
        store.put(rows[:100], "tag", "m")
        fill_disk(folder)
        with pytest.raises(DataError, match=r"Of the 300 answers in hand 300 were stored; all"):
            store.put(rows[100:], "tag", "m")
        fill_disk(folder)
        more = [entry(i, words=3000) for i in range(400, 900)]
        with pytest.raises(DataError, match=r"in hand \d+ were stored, \d+ are lost"):
            store.put(more, "tag", "m")
    with AnswerStore(folder / "store") as store, pytest.raises(DataError, match="disk is full"):
        store.prepare()  # says so before anything is paid for
    with AnswerStore(folder / "store") as store:
        assert store.get(key for key, _, _ in rows) == {key: a for key, _, a in rows}
    (folder / "filler").unlink()
    with AnswerStore(folder / "store") as store:
        store.prepare()
        store.put(more[:10], "tag", "m")
        assert store.missing(key for key, _, _ in more[:10]) == []


class SmallDisk:
    """Lets SQLite's file grow by so many pages, and by those of the reserve when that is gone."""

    def __init__(self, store, monkeypatch):
        self.store, self.sync = store, answers_module.sync_folder
        monkeypatch.setattr(answers_module, "sync_folder", self.freed)

    def pages(self, name, value=""):
        query = f"PRAGMA {name}{f'={value}' if value else ''}"
        return self.store._connection.execute(query).fetchone()[0]

    def fill(self, free=0):
        self.pages("max_page_count", self.pages("page_count") + free)

    def freed(self, folder):
        assert not self.store._reserve.exists()
        self.pages("max_page_count", self.pages("max_page_count") + (1 << 20) // 4096)
        self.sync(folder)


def test_a_disk_without_room_needs_no_mount(tmp_path, monkeypatch):
    """The write fails as it does on a full disk, with SQLite's own error."""
    monkeypatch.setattr(answers_module, "RESERVE_BYTES", 1 << 20)
    rows = [entry(i, words=100) for i in range(400)]
    more = [entry(i, words=3000) for i in range(400, 900)]
    with AnswerStore(tmp_path) as store:
        disk = SmallDisk(store, monkeypatch)
        store.prepare()
        store.put(rows[:100], "tag", "m")
        disk.fill(free=3)
        with pytest.raises(DataError, match=r"full.*Of the 300 answers in hand 300 were stored; "):
            store.put(rows[100:], "tag", "m")
        disk.fill()
        with pytest.raises(DataError, match=r"in hand \d+ were stored, \d+ are lost"):
            store.put(more, "tag", "m")
        assert store.get(key for key, _, _ in rows) == {key: a for key, _, a in rows}
    with AnswerStore(tmp_path) as store:  # there is room again
        store.put(more, "tag", "m")
        assert store.missing(key for key, _, _ in rows + more) == []


def test_no_room_for_the_reserve_is_said_before_anything_is_paid_for(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with AnswerStore(tmp_path) as store:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(DataError, match="disk is full; nothing more was asked"):
                store.prepare()
        assert not list(tmp_path.glob("*.reserve"))
        store.prepare()


LIMITED = """
import resource, sys
from pathlib import Path
from tests.dataset_tools.llm.test_answers import entry
from dataset_tools.llm.answers import AnswerStore
from recbole_tema.errors import DataError
with AnswerStore(sys.argv[1]) as store:
    store.put([entry(i) for i in range(50)], "tag", "m")
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    try:
        store.put([entry(i, words=500) for i in range(50, 150)], "tag", "m")
    except DataError as error:
        print(error)
"""


def test_a_file_that_may_not_grow(tmp_path):
    """Without root: the limit of a file's size, which SQLite calls an I/O error."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "are lost; all earlier ones are kept" in result.stdout, result.stderr
    rows = [entry(i) for i in range(50)]
    assert len(texts_of(tmp_path, rows)) == 50


def test_a_hundred_thousand_keys_are_looked_up_in_seconds(tmp_path):
    request = completion("x" * 2000)
    keys = [f"{i:064x}" for i in np.random.default_rng(0).permutation(100_000).tolist()]
    with AnswerStore(tmp_path) as store:
        store.put([(key, request, Answer("a, b", 1, 1)) for key in keys[::10]], "tag", "m")
        started = time.process_time()
        assert len(store.get(keys)) == 10_000
        assert time.process_time() - started < 5
