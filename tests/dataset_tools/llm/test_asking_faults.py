"""Faults of answers, and a run that ends in the midst of them."""

import logging
import time
from dataclasses import replace

import numpy as np
import pytest

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.asking import Tally, ask
from dataset_tools.llm.estimate import estimate
from dataset_tools.llm.openai_api import OpenAIBackend
from dataset_tools.llm.requests import Answer, key_of
from recbole_tema.errors import DataError
from tests.dataset_tools.llm.test_asking import ask_all
from tests.support.hash_backend import HashBackend, Served, completion, requests
from tests.support.llm_servers import chat, serve

pytestmark = pytest.mark.long


class Lasting(HashBackend):
    """Its faults would be the same another time."""

    def one(self, request, together):
        answer = super().one(request, together)
        return replace(answer, lasting=answer.fault is not None)


def test_lasting_faults_are_not_asked_again_before_that_is_wished(tmp_path, caplog):
    """100 requests in units of 32: the units of two faults would be 64 requests on every run."""
    wanted = requests(100)
    backend = Lasting(size=32, faults=['text 5"', 'text 40"'])
    ask_all(tmp_path, wanted, backend)
    assert len(backend.asked) == 100
    backend, tally = Lasting(size=32), Tally()
    with caplog.at_level(logging.INFO):
        answers = ask_all(tmp_path, wanted, backend, tally=tally)
    assert backend.asked == [] and "2 requests had lasting faults" in caplog.text
    assert [i for i, a in enumerate(answers) if a.fault] == [5, 40]
    assert tally.faults == {"an empty answer": 2} and tally.from_store == 98
    with AnswerStore(tmp_path, readonly=True) as store:
        forecast = estimate(backend, wanted, store)
        assert (forecast.calls, forecast.kept) == (0, 100)
    with AnswerStore(tmp_path, readonly=True, retry_failed=True) as store:
        assert estimate(backend, wanted, store).calls == 64
    backend = Lasting(size=32, faults=['text 40"'])
    with AnswerStore(tmp_path, retry_failed=True) as store:
        answers = ask(backend, wanted, store, task="t", progress=False)
        assert len(backend.asked) == 64 and [i for i, a in enumerate(answers) if a.fault] == [40]
        ask(backend, wanted, store, task="t", progress=False)  # once a run
    assert len(backend.asked) == 64
    ask_all(tmp_path, wanted, backend)
    assert len(backend.asked) == 64


def test_what_failed_in_a_unit_of_independent_requests_is_asked_alone(tmp_path):
    wanted, backend = requests(10), HashBackend(size=8, faults=["text 3"])
    ask_all(tmp_path, wanted, backend)
    again = HashBackend(size=8)
    again.independent = True
    with AnswerStore(tmp_path, readonly=True) as store:
        assert estimate(again, wanted, store).calls == 1
    answers = ask_all(tmp_path, wanted, again)
    assert again.asked == [wanted[3]] and not any(answer.fault for answer in answers)


def failing_put(monkeypatch, error, times=1):
    """The store's second `put`, and further ones up to so many, raise `error` before they store."""
    puts, put = [], AnswerStore.put

    def fails(self, *arguments):
        puts.append(arguments)
        if 2 <= len(puts) < 2 + times:
            raise error
        put(self, *arguments)

    monkeypatch.setattr(AnswerStore, "put", fails)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), DataError("locked for a minute")], ids=["ctrl-c", "store"]
)
def test_answers_under_way_are_kept_when_the_loop_is_interrupted(tmp_path, monkeypatch, error):
    failing_put(monkeypatch, error)
    wanted, backend, tally = requests(100), Served(size=1), Tally()
    with pytest.raises(type(error)):
        ask_all(tmp_path, wanted, backend, tally=tally)
    assert len(backend.asked) == 6  # two, and the four that were under way
    assert (tally.calls, tally.kept, tally.tokens_in) == (6, 6, 6 * 7)
    with AnswerStore(tmp_path, readonly=True) as store:
        keys = [key_of("hash", request) for request in wanted]
        assert sorted(store.get(keys)) == sorted(keys[:6])


def test_a_store_that_goes_on_failing_ends_the_run_with_its_first_error(tmp_path, monkeypatch):
    failing_put(monkeypatch, DataError("the disk is full"), times=99)
    backend, tally = Served(size=1), Tally()
    with pytest.raises(DataError, match="the disk is full"):
        ask_all(tmp_path, requests(100), backend, tally=tally)
    assert tally.kept == 1 and len(backend.asked) == 6


def test_ctrl_c_in_the_loop_keeps_what_a_server_still_answers(tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="pip install 'recbole-tema[features]'")
    failing_put(monkeypatch, KeyboardInterrupt())

    def reply(seen):
        time.sleep(0.1)
        return chat(seen.said)

    wanted = [completion(f"{i}") for i in range(200)]
    with serve(reply) as server:
        backend = OpenAIBackend("m", server.url, concurrency=4, grace_s=20)
        with pytest.raises(KeyboardInterrupt):
            ask_all(tmp_path, wanted, backend)
    with AnswerStore(tmp_path, readonly=True) as store:
        kept = store.get(key_of(backend.identity, request) for request in wanted)
    assert sorted(answer.value for answer in kept.values()) == sorted(s.said for s in server.seen)
    assert 2 < len(kept) < 40


class Wide(HashBackend):
    """Its vectors have `width` numbers."""

    def __init__(self, width, **keys):
        super().__init__(**keys)
        self.width = width

    def one(self, request, together):
        return Answer(np.ones(self.width, np.float32), 7, 0)


def test_vectors_of_unlike_widths_end_the_run_before_more_is_paid_for(tmp_path):
    wanted = requests(20)
    ask_all(tmp_path, wanted[:8], Wide(3))
    backend = Wide(5)
    with pytest.raises(DataError, match=r"vectors of 3 and of 5 numbers.*\(--answers\)") as caught:
        ask_all(tmp_path, wanted, backend)
    assert str(tmp_path) in str(caught.value) and len(backend.asked) == 4
    with AnswerStore(tmp_path) as store:
        assert store.n_answers == 8
        # A store that an earlier version mixed is named, too.
        store.put([(key_of("hash", wanted[9]), wanted[9], Answer(np.ones(4, np.float32)))], "t", "")
    with pytest.raises(DataError, match="vectors of 3 and of 4 numbers"):
        ask_all(tmp_path, wanted[:10], Wide(3))


class Listed(HashBackend):
    """Its answers come from an iterator that is no generator: no exception can be thrown in."""

    def answer(self, units):
        return iter(list(super().answer(units)))


def test_an_iterator_that_is_no_generator_does_not_hide_the_first_error(tmp_path, monkeypatch):
    failing_put(monkeypatch, DataError("locked for a minute"))
    tally = Tally()
    with pytest.raises(DataError, match="locked for a minute"):
        ask_all(tmp_path, requests(20), Listed(size=1), tally=tally)
    assert tally.kept == 2  # the second is stored by another try
