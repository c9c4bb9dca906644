"""The store of answers: what was stored is there, whatever is killed, damaged, full or locked."""

import logging
import multiprocessing
import random
import shutil
import sqlite3
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_tools.__main__ import main
from dataset_tools.llm import answers as answers_module
from dataset_tools.llm.answers import FILE, AnswerStore
from dataset_tools.llm.requests import Answer, Embedding, key_of
from recbole_tema.errors import DataError
from tests.support.hash_backend import completion, scoring

pytestmark = pytest.mark.long


def entry(i, answer=None, words=3):
    request = completion(f"item {i}")
    return key_of("m", request), request, answer or Answer(f"tag {i}, " * words, 10 + i, i)


def failed(i, lasting):
    return entry(i, Answer(None, fault=f"reason {i} \ud800", lasting=lasting))


def fill(folder, n, words=3, start=0, **options):
    rows = [entry(i, words=words) for i in range(start, start + n)]
    with AnswerStore(folder, **options) as store:
        store.put(rows, "tag", "m")
    return rows


def kept(folder, rows, **options):
    """Those of rows that are in the store, which must be as they were stored."""
    with AnswerStore(folder, **options) as store:
        found = store.get(key for key, _, _ in rows)
    right = {key: answer for key, _, answer in rows}
    assert all(np.array_equal(answer.value, right[key].value) for key, answer in found.items())
    return list(found)


def keys_of(rows):
    return [key for key, _, _ in rows]


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
    assert found["k3"].value.dtype == np.float32
    assert found["k3"].value.tobytes() == vector.tobytes()
    assert all(found[key] == answer for key, _, answer in rows if key != "k3")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.text(st.characters(), max_size=40), max_size=8),
    scores=st.lists(st.lists(st.floats(allow_nan=False, width=64), max_size=5), max_size=5),
)
def test_any_text_and_any_scores_come_back_also_by_a_merge(tmp_path, texts, scores):
    rows = [(f"t{i}", completion(text), Answer(text)) for i, text in enumerate(texts)]
    rows += [(f"s{i}", scoring("x"), Answer(values)) for i, values in enumerate(scores)]
    folder = tmp_path / str(time.monotonic_ns())
    with AnswerStore(folder / "a") as store:
        store.put(rows, "t", "m")
        assert store.get(keys_of(rows)) == {key: a for key, _, a in rows}
    with AnswerStore(folder / "b") as store:
        store.merge(folder / "a" / FILE)
        assert store.get(keys_of(rows)) == {key: a for key, _, a in rows}
    shutil.rmtree(folder)


def test_a_human_can_look_up_what_was_asked(tmp_path):
    fill(tmp_path, 1)
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        row = file.execute("SELECT request, value, task, model, kind FROM answers").fetchone()
    assert '"user":"item 0"' in row[0]
    assert row[1:] == ("tag 0, tag 0, tag 0, ", "tag", "m", "Completion")


def test_the_first_answer_stays_and_faults_are_no_answers(tmp_path):
    with AnswerStore(tmp_path) as store:
        store.put([entry(1)], "tag", "m")
        store.put([entry(1, Answer("other"))], "tag", "m")
        store.put([entry(2, Answer(None, fault="an empty answer"))], "tag", "m")
        assert store.get(entry(i)[0] for i in (1, 2, 3)) == {entry(1)[0]: entry(1)[2]}


def test_lasting_faults_stay_until_they_are_answered_or_forgotten(tmp_path):
    keys = [entry(i)[0] for i in range(4)]
    lasting = {keys[1]: "reason 1 \\ud800", keys[3]: "reason 3 \\ud800"}
    with AnswerStore(tmp_path) as store:
        store.put([entry(0), failed(1, True), failed(2, False), failed(3, True)], "tag", "m")
        assert store.lasting(keys) == lasting
    with AnswerStore(tmp_path, (1, 2)) as part:
        assert part.lasting(keys) == lasting
    with AnswerStore(tmp_path, (1, 2), retry_failed=True) as part:
        assert part.lasting(keys) == {}
        part.put([failed(3, True)], "tag", "m")
        assert list(part.lasting(keys)) == [keys[3]]
    with AnswerStore(tmp_path) as store:
        assert store.lasting(keys) == lasting
        store.put([entry(1)], "tag", "m")
        assert list(store.lasting(keys)) == [keys[3]]
    with AnswerStore(tmp_path, readonly=True, retry_failed=True) as store:
        assert store.lasting(keys) == {}
    with AnswerStore(tmp_path, retry_failed=True) as store:
        assert store.lasting(keys) == {}
    with AnswerStore(tmp_path, readonly=True) as store:
        assert store.lasting(keys) == {}


# ---- several processes


def test_readers_and_a_writer_at_once(tmp_path):
    """A reader sees all of a transaction or nothing, and does not wait for it."""
    stop, seen, errors = threading.Event(), [], []

    def read():
        try:
            while not stop.is_set():
                with AnswerStore(tmp_path, readonly=True) as store:
                    seen.append(len(store.get(entry(i)[0] for i in range(400))))
        except Exception as error:
            errors.append(error)

    with AnswerStore(tmp_path) as store:
        reader = threading.Thread(target=read)
        reader.start()
        for start in range(0, 400, 10):
            store.put([entry(i) for i in range(start, start + 10)], "tag", "m")
        stop.set()
        reader.join()
    assert not errors
    assert seen == sorted(seen) and all(count % 10 == 0 for count in seen)


def test_one_process_writes_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(answers_module, "START_SECONDS", 0.1)
    with AnswerStore(tmp_path):
        with pytest.raises(DataError, match=r"another process is writing .*; wait .*--part i/n"):
            AnswerStore(tmp_path)
        AnswerStore(tmp_path, (1, 2)).close()
        AnswerStore(tmp_path, readonly=True).close()
    AnswerStore(tmp_path).close()
    with pytest.raises(DataError, match="part 3/2"):
        AnswerStore(tmp_path, (3, 2))


def test_reading_only_makes_nothing(tmp_path):
    with AnswerStore(tmp_path / "absent", readonly=True) as store:
        assert store.get(["a"]) == {}
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
    for options in ({"readonly": True}, {"part": (1, 2)}, {}):
        assert sorted(kept(tmp_path / "s", rows, **options)) == sorted(keys_of(rows))


# ---- parts and merge


def merged(folder, *files):
    return CliRunner().invoke(main, ["merge", "any", "--answers", str(folder), *map(str, files)])


def test_parts_are_joined_and_nothing_comes_twice(tmp_path):
    common = fill(tmp_path, 10)
    one = fill(tmp_path, 20, start=10, part=(1, 2))
    two = fill(tmp_path, 15, start=25, part=(2, 2))  # five of them are in the other part, too
    with AnswerStore(tmp_path, (2, 2)) as part:
        part.put([entry(0, Answer("another answer")), failed(90, True)], "tag", "m")
        assert set(keys_of(common)) | set(keys_of(two)) == set(part.get(keys_of(common + two)))
        assert not part.get(keys_of(one[:15]))
    done = merged(tmp_path)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].endswith("part-1-of-2.sqlite: 20 answers taken over, 0 were there")
    assert lines[1].endswith(
        "part-2-of-2.sqlite: 10 answers taken over, 5 were there, "
        "1 differ from those that were there, which stay"
    )
    assert lines[2].endswith("answers.sqlite: 40 answers")
    assert len(kept(tmp_path, common + one + two)) == 40
    with AnswerStore(tmp_path) as store:
        assert list(store.lasting([entry(90)[0]])) == [entry(90)[0]]
    assert "0 answers taken over, 20 were there" in merged(tmp_path).stdout


def test_files_of_other_machines_are_named(tmp_path, caplog):
    fill(tmp_path / "far", 5, part=(2, 3))
    done = merged(tmp_path / "here", tmp_path / "far" / "part-2-of-3.sqlite")
    assert "5 answers taken over" in done.stdout and done.exit_code == 0
    for files, said in (((), "holds no files of parts"), ((tmp_path / "no",), "no such file of")):
        done = merged(tmp_path / "here", *files)
        assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_parts_in_the_folder_are_joined_by_whoever_writes_there(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = fill(tmp_path, 5, part=(1, 2))
    assert sorted(kept(tmp_path, rows, readonly=True)) == sorted(keys_of(rows)), (
        "a dry run reads them too"
    )
    assert sorted(kept(tmp_path, rows)) == sorted(keys_of(rows))
    assert "part-1-of-2.sqlite: 5 answers taken over" in caplog.text
    caplog.clear()
    AnswerStore(tmp_path).close()
    assert not caplog.records
    rows += fill(tmp_path, 3, start=5, part=(1, 2))  # it goes on, and is read again
    assert sorted(kept(tmp_path, rows)) == sorted(keys_of(rows))


def test_a_damaged_answer_is_replaced_by_a_merge(tmp_path):
    rows = fill(tmp_path / "a", 4)
    fill(tmp_path / "b", 4)
    with closing(sqlite3.connect(tmp_path / "a" / FILE, isolation_level=None)) as file:
        file.execute("UPDATE answers SET value = 'other' WHERE key = ?", (rows[2][0],))
    assert len(kept(tmp_path / "a", rows)) == 3
    with AnswerStore(tmp_path / "a") as store:
        store.merge(tmp_path / "b" / FILE)
    assert sorted(kept(tmp_path / "a", rows)) == sorted(keys_of(rows))
