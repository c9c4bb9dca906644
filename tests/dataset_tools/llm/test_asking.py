"""The loop that asks: nothing twice, nothing lost, the same answers whoever stops or shares."""

import json
import logging
import multiprocessing
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_tools.llm import answers as answers_module
from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.asking import PartDone, Tally, ask
from dataset_tools.llm.estimate import estimate
from dataset_tools.llm.requests import Answer, Embedding, content, key_of
from recbole_tema.errors import BackendError, DataError
from tests.support import hash_backend
from tests.support.hash_backend import HashBackend, Served, completion, requests, scoring

pytestmark = pytest.mark.long


def values(answers):
    return [a.fault or np.asarray(a.value).tolist() for a in answers]


def ask_all(folder, wanted, backend=None, part=(1, 1), **options):
    with AnswerStore(folder, part) as store:
        options = {"task": "t", "progress": False} | options
        return ask(backend or HashBackend(), wanted, store, **options)


def direct(wanted, size=4):
    """What the hash backend says when it is asked for all different requests at once."""
    unique = list(dict.fromkeys(wanted))
    backend, answers = HashBackend(size=size), {}
    units = [[unique[i] for i in unit] for unit in backend.units(unique)]
    for place, given_answers in backend.answer(units):
        answers |= dict(zip(units[place], given_answers, strict=True))
    return values(answers[request] for request in wanted)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    places=st.lists(st.integers(0, 20), max_size=40),
    size=st.integers(1, 5),
    order=st.sampled_from([1, -1]),
    kept=st.lists(st.integers(0, 20), max_size=8),
)
def test_order_and_duplicates(tmp_path, places, size, order, kept):
    wanted = [completion(f"item {i}") for i in places]
    folder = tmp_path / str(time.monotonic_ns())
    backend = HashBackend(size=size, order=order)
    before = [completion(f"item {i}") for i in set(kept)]
    with AnswerStore(folder) as store:
        rows = [(key_of("hash", r), r, Answer(f"kept {content(r)}")) for r in before]
        store.put(rows, "t", "hash")
        answers = ask(backend, wanted, store, task="t", progress=False)
    right = direct(wanted, size)
    for request, answer, value in zip(wanted, answers, right, strict=True):
        assert answer.value == (f"kept {content(request)}" if request in before else value)
    assert max(Counter(backend.asked).values(), default=1) == 1


@pytest.mark.parametrize("make", [completion, scoring, Embedding])
def test_a_second_run_makes_no_call(tmp_path, make):
    wanted = [make(f"text {i}") for i in range(11)] * 2
    first, second = HashBackend(), HashBackend()
    tally = Tally()
    before = ask_all(tmp_path, wanted, first, tally=tally)
    after = ask_all(tmp_path, wanted, second, tally=tally)
    assert values(before) == values(after) == direct(wanted)
    assert len(first.asked) == 11 and second.asked == []
    assert (tally.requests, tally.calls, tally.kept, tally.from_store) == (22, 11, 11, 11)
    assert (tally.tokens_in, tally.faults) == (77, Counter())
    assert ask_all(tmp_path, []) == []


def test_another_model_is_asked_again(tmp_path):
    ask_all(tmp_path, requests(3))
    other = HashBackend(identity="other")
    ask_all(tmp_path, requests(3), other)
    assert len(other.asked) == 3


def test_a_unit_that_lacks_one_is_answered_whole_and_the_kept_answers_stay(tmp_path):
    wanted = requests(12)
    with AnswerStore(tmp_path) as store:
        rows = [
            (key_of("hash", r), r, Answer(np.full(32, i, np.float32))) for i, r in enumerate(wanted)
        ]
        store.put([*rows[:3], *rows[4:8]], "t", "hash")
    backend, tally = HashBackend(), Tally()
    answers = ask_all(tmp_path, wanted, backend, tally=tally)
    assert backend.asked == wanted[:4] + wanted[8:]
    kept = [[float(i)] * 32 for i in range(8)]
    right = direct(wanted)
    assert values(answers) == [*kept[:3], right[3], *kept[4:], *right[8:]]
    assert (tally.from_store, tally.calls, tally.again, tally.kept) == (7, 8, 3, 5)
    told = "12 requests: 7 answered from the store, 5 by the model, 0 without an answer. Sent to "
    assert str(tally).startswith(f"{told}the model: 8, 3 of them again with their batch (")


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 14), st.integers(1, 5), st.sets(st.integers(0, 13)), st.sets(st.integers(0, 13)),
    st.booleans(),
)  # fmt: skip
def test_the_numbers_of_a_run_add_up(n, size, kept, faulty, lasting):
    """Over two runs, of answers that are kept, faulty, lastingly so, and asked with their batch."""
    wanted = requests(n)
    told = {wanted[i].text for i in faulty if i < n}
    with TemporaryDirectory() as folder:
        with AnswerStore(folder) as store:
            rows = [
                (key_of("hash", wanted[i]), wanted[i], Answer(np.ones(32, np.float32)))
                for i in kept
                if i < n
            ]
            if rows:
                store.put(rows, "t", "hash")
        for _ in range(2):
            backend, tally = Faulty(told, lasting, size), Tally()
            with AnswerStore(folder, readonly=True) as store:
                forecast = estimate(backend, wanted, store)
            ask_all(Path(folder), wanted, backend, tally=tally)
            faults = tally.faults.total()
            assert tally.requests == n == tally.from_store + tally.kept + faults
            assert tally.calls == tally.kept + faults - tally.failed + tally.again
            assert tally.calls == len(backend.asked) == forecast.calls
            assert forecast.lacking == tally.calls - tally.again
            assert forecast.kept + forecast.lacking == n
            listed = [int(x.replace(",", "")) for x in re.findall(r"\((\d+)\)", str(tally))]
            assert sum(listed) == faults


class Faulty(HashBackend):
    """Gives faults to some texts, each with a reason of its own."""

    def __init__(self, faulty, lasting, size):
        super().__init__(size=size)
        self.faulty, self.lasting = faulty, lasting

    def one(self, request, together):
        if request.text in self.faulty:
            return Answer(None, fault=f"no {request.text}", lasting=self.lasting)
        return super().one(request, together)


def test_faults_are_told_counted_and_asked_again(tmp_path, caplog):
    wanted = requests(9)
    tally = Tally()
    with caplog.at_level(logging.INFO):
        answers = ask_all(tmp_path, wanted, HashBackend(size=1, faults=["text 4"]), tally=tally)
    assert [a.fault for a in answers] == [None] * 4 + ["an empty answer"] + [None] * 4
    assert tally.faults == {"an empty answer": 1} and tally.kept == 8
    told = "0 answered from the store, 8 by the model, 1 without an answer. Sent to the model: 9 ("
    assert told in caplog.text and "Without an answer: an empty answer (1)" in caplog.text
    again = HashBackend(size=1)
    assert values(ask_all(tmp_path, wanted, again)) == direct(wanted, size=1)
    assert again.asked == [wanted[4]]


class Odd(HashBackend):
    """Gives `odd` in place of each answer."""

    def __init__(self, odd):
        super().__init__(size=1)
        self.odd = odd

    def one(self, request, together):
        return self.odd


@pytest.mark.parametrize(
    ("wanted", "odd", "reason"),
    [
        (completion("a"), Answer(None), "no answer"),
        (scoring("a"), Answer([1.0, 2.0]), "not one score for each option"),
        (scoring("a"), Answer([1.0, float("nan"), 0.0]), "numbers that are not finite"),
        (Embedding("a"), Answer(np.float32([1, np.inf])), "numbers that are not finite"),
    ],
)
def test_values_that_nobody_can_use_are_faults(tmp_path, wanted, odd, reason):
    assert [a.fault for a in ask_all(tmp_path, [wanted], Odd(odd))] == [reason]
    assert ask_all(tmp_path, [wanted])[0].fault is None


def test_a_backend_that_leaves_requests_out_is_named(tmp_path):
    class Lazy(HashBackend):
        def answer(self, units):
            yield next(super().answer(units))

    with pytest.raises(BackendError, match="no answers for 2 units"):
        ask_all(tmp_path, requests(12), Lazy())
    again = HashBackend()
    ask_all(tmp_path, requests(12), again)
    assert len(again.asked) == 8


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("error", [KeyboardInterrupt, BackendError("gone"), RuntimeError("bug")])
def test_all_that_arrived_is_stored_whatever_ends_the_run(tmp_path, size, error):
    class Ending(HashBackend):
        def answer(self, units):
            for place, answers in super().answer(units):
                if place == 5:
                    raise error
                yield place, answers

    wanted, tally = requests(40), Tally()
    with pytest.raises(error if isinstance(error, type) else type(error)):
        ask_all(tmp_path, wanted, Ending(size=size), tally=tally)
    assert tally.kept == 5 * size and tally.calls == 5 * size
    again = HashBackend(size=size)
    assert values(ask_all(tmp_path, wanted, again)) == direct(wanted, size)
    assert again.asked == wanted[5 * size :]


def test_an_answer_is_stored_while_the_next_is_awaited(tmp_path):
    """What arrived is there for others, though the server then stalls."""
    go_on = threading.Event()

    class Stalling(HashBackend):
        def answer(self, units):
            for place, answers in super().answer(units):
                if place == 3:
                    assert go_on.wait(30)
                yield place, answers

    wanted = requests(5)
    keys = [key_of("hash", request) for request in wanted]
    thread = threading.Thread(target=ask_all, args=(tmp_path, wanted, Stalling(size=1)))
    thread.start()
    try:
        limit, found = time.monotonic() + 20, {}
        while len(found) < 3 and time.monotonic() < limit:
            time.sleep(0.02)
            with AnswerStore(tmp_path, readonly=True) as store:
                found = store.get(keys)
        assert sorted(found) == sorted(keys[:3])
    finally:
        go_on.set()
        thread.join()


def test_a_disk_that_fills_up_ends_the_run_while_there_is_room_for_what_is_under_way(
    tmp_path, monkeypatch
):
    class Filling(Served):
        def one(self, request, together):
            if len(self.asked) == 20:
                monkeypatch.setattr(answers_module, "LEAST_FREE_BYTES", 1 << 62)
            return super().one(request, together)

    backend, tally = Filling(size=1), Tally()
    with pytest.raises(DataError, match=r"the disk is full: .* nothing more is asked"):
        ask_all(tmp_path, requests(100), backend, tally=tally)
    assert tally.kept == tally.calls == len(backend.asked) < 30
    with pytest.raises(DataError, match="the disk is full"):
        ask_all(tmp_path, requests(100), Filling(size=1))
    with AnswerStore(tmp_path) as store:
        assert store.n_answers == len(backend.asked)


def result(folder):
    return json.loads((folder / "result.json").read_text())


def asked(folder, part="1-1"):
    log = folder / f"asked-{part}.log"
    return log.read_text().split("\n")[:-1] if log.exists() else []


def run_forked(folder, n, seconds, part="1/1"):
    arguments = (str(folder), part, n, seconds)
    process = multiprocessing.get_context("fork").Process(target=hash_backend.main, args=arguments)
    process.start()
    return process


def test_kill_9_costs_no_more_than_the_unit_in_flight(tmp_path):
    pauses, kills, n = np.random.default_rng(3), 0, 400
    while True:
        process = run_forked(tmp_path, n, 0.004)
        process.join(float(pauses.uniform(0.02, 0.15)) if kills < 20 else 60)
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        kills += 1
    assert kills >= 3
    assert result(tmp_path) == direct(requests(n))
    times = Counter(asked(tmp_path))
    assert len(times) == n
    assert sum(times.values()) - n <= 4 * kills  # a unit has 4 requests
    assert ask_all(tmp_path / "store", requests(n), HashBackend(log=tmp_path / "asked-1-1.log"))
    assert Counter(asked(tmp_path)) == times  # a further run asks nothing


def merge(folder, n_parts):
    with AnswerStore(folder / "store") as store:
        for i in range(n_parts):
            store.merge(folder / "store" / f"part-{i + 1}-of-{n_parts}.sqlite")


def test_three_processes_share_a_run(tmp_path):
    """Once joined, the whole run asks nothing, and has what it would have by itself."""
    processes = [run_forked(tmp_path, 50, 0.01, f"{i}/3") for i in (1, 2, 3)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert not (tmp_path / "result.json").exists()
    lists = [asked(tmp_path, f"{i}-3") for i in (1, 2, 3)]
    assert sorted(line for part in lists for line in part) == sorted(
        content(r) for r in requests(50)
    )
    assert [len(part) for part in lists] == [18, 16, 16]  # 13 units of 4, the last one of 2
    merge(tmp_path, 3)
    backend = HashBackend()
    assert values(ask_all(tmp_path / "store", requests(50), backend)) == direct(requests(50))
    assert backend.asked == []


def test_a_whole_run_completes_what_killed_parts_left(tmp_path):
    one, two = run_forked(tmp_path, 40, 0.01, "1/2"), run_forked(tmp_path, 40, 0.15, "2/2")
    limit = time.monotonic() + 120
    while len(asked(tmp_path, "2-2")) < 8 and time.monotonic() < limit:
        time.sleep(0.01)
    two.kill()
    for process in (one, two):
        process.join(60)
    merge(tmp_path, 2)
    hash_backend.main(str(tmp_path), "1/1", 40, 0)
    assert result(tmp_path) == direct(requests(40))
    assert len(asked(tmp_path, "1-2")) == 20
    assert len(asked(tmp_path, "2-2")) + len(asked(tmp_path)) <= 20 + 4


def test_a_part_says_what_is_missing_and_what_to_do_next(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    wanted, tally = requests(20), Tally()
    ask_all(tmp_path, wanted[:3])
    said = r"t: part 1/2 is done, its answers are in .*part-1-of-2\.sqlite; 8 of other parts are "
    with pytest.raises(PartDone, match=said + "missing.*dataset_tools merge NAME FILE"):
        ask_all(tmp_path, wanted, part=(1, 2), tally=tally)
    assert (tally.from_store, tally.kept, tally.again) == (3, 9, 3)
    assert "8 not asked yet" in caplog.text
    backend = HashBackend()
    with pytest.raises(PartDone):  # a second time nothing is asked
        ask_all(tmp_path, wanted, backend, part=(1, 2))
    assert backend.asked == []
    AnswerStore(tmp_path).close()  # joins it
    # With the other part's answers there the last one has all, but in a file of its own.
    with pytest.raises(PartDone, match=r"part-2-of-2\.sqlite\. When all 2 are done, join them"):
        ask_all(tmp_path, wanted, part=(2, 2))
    AnswerStore(tmp_path).close()
    backend = HashBackend()
    assert len(ask_all(tmp_path, wanted, backend, part=(2, 2))) == 20
    assert len(ask_all(tmp_path, wanted, backend)) == 20 and backend.asked == []


def test_the_bar_counts_what_is_kept_as_done(tmp_path, capsys, monkeypatch):
    ask_all(tmp_path, requests(8), progress=True)
    assert capsys.readouterr().err == ""  # a file or pipe gets no bar
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    ask_all(tmp_path, requests(24), HashBackend(seconds=0.12), progress=True)
    shown = re.findall(r"(\d+)/24", capsys.readouterr().err)
    assert shown[0] == "8" and shown[-1] == "24"


# ---- lasting faults


# ---- Ctrl-C and a store that fails, with answers under way


# ---- vectors of unlike widths
