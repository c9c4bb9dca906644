"""Answers of a served model as they come, and what is under way when a run ends."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dataset_tools.llm.background import as_completed, background_loop
from recbole_tema.errors import BackendError
from tests.dataset_tools.llm.test_openai_api import backend_at, completion, no_threads_left
from tests.support.llm_servers import chat, error, serve

pytestmark = pytest.mark.usefixtures("key")


def test_answers_on_their_way_are_given_before_the_error():
    def reply(seen):
        while len(server.seen) < 4:
            time.sleep(0.01)
        if "key" in seen.said:
            return error(401, "revoked")
        time.sleep(0.3)
        return chat(seen.said)

    with serve(reply) as server:
        got = []
        with pytest.raises(BackendError, match="revoked"):
            for _, answers in backend_at(server.url).answer(
                [completion(text)] for text in ["a", "b", "key", "c"]
            ):
                got.append(answers[0].value)
    assert sorted(got) == ["a", "b", "c"]


def test_an_error_of_the_caller_comes_after_the_answers_that_are_paid_for():
    def units():
        yield [completion("a")]
        yield [completion("b")]
        while len(server.seen) < 2:
            time.sleep(0.01)
        raise OSError("the disk is full")

    with serve(lambda seen: chat(seen.said)) as server:
        got = []
        with pytest.raises(OSError, match="the disk is full"):
            for _, answers in backend_at(server.url).answer(units()):
                got.append(answers[0].value)
    assert sorted(got) == ["a", "b"]
    assert no_threads_left()


def test_answers_come_as_they_are_there_and_units_are_read_lazily():
    read = []
    held = threading.Event()

    def units():
        for i in range(1000):
            read.append(threading.current_thread())
            yield [completion("slow" if i == 0 else f"{i}")]

    def reply(seen):
        if seen.said == "slow":
            held.wait(10)
        return chat(seen.said)

    with serve(reply) as server:
        stream = backend_at(server.url, concurrency=4, timeout_s=20).answer(units())
        places = [next(stream)[0] for _ in range(20)]
        assert 0 not in places
        assert len(read) <= 20 + 8
        assert set(read) == {threading.current_thread()}  # a database of the caller may be there
        held.set()
        stream.close()
    assert no_threads_left()
    assert len(server.seen) < 60


def test_a_slow_caller_does_not_leave_the_endpoint_idle():
    with serve(lambda seen: chat(seen.said)) as server:
        stream = backend_at(server.url, concurrency=4).answer(
            [completion(f"{i}")] for i in range(50)
        )
        next(stream)
        end = time.monotonic() + 20
        while len(server.seen) < 8 and time.monotonic() < end:  # the caller's disk is slow
            time.sleep(0.01)
        assert len(server.seen) >= 8
        stream.close()


CTRL_C = """
import sys, threading
from dataset_tools.llm.openai_api import OpenAIBackend
from dataset_tools.llm.requests import Completion, Prompt
backend = OpenAIBackend("small", sys.argv[1], concurrency=4, grace_s=30)
units = ([Completion(Prompt("", (), f"{i}"), 9)] for i in range(10_000))
got = []
try:
    for place, answers in backend.answer(units):
        got.append(answers[0].value)
        print(len(got), flush=True)
except KeyboardInterrupt:
    print("stopped", threading.active_count(), *got)
"""


def test_ctrl_c_keeps_what_is_paid_for_and_ends():
    held = threading.Event()

    def reply(seen):
        if seen.place >= 8:
            held.wait(20)
        return chat(seen.said)

    with serve(reply) as server:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", CTRL_C, server.url]
        # A shell starts what it runs in the background deaf to Ctrl-C, the tests too.
        hearing = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=env, **hearing
        ) as process:
            for _ in range(8):
                process.stdout.readline()
            while len(server.seen) < 12:
                time.sleep(0.01)
            time.sleep(0.3)  # it has nothing to do but to wait for the four on their way
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            held.set()
            told, _ = process.communicate(timeout=40)
    assert process.returncode == 0
    stopped, threads, *got = told.splitlines()[-1].split()
    assert (stopped, threads) == ("stopped", "1")
    assert len(got) == 12
    assert sorted(got) == sorted(seen.said for seen in server.seen)


def test_ctrl_c_while_the_caller_works_can_be_passed_on():
    """A caller that is interrupted between two answers may throw that in, to get the rest."""

    def reply(seen):
        time.sleep(0.1)
        return chat(seen.said)

    with serve(reply) as server:
        backend = backend_at(server.url, concurrency=4)
        stream = backend.answer([completion(f"{i}")] for i in range(100))
        got = [next(stream), stream.throw(KeyboardInterrupt())]
        with pytest.raises(KeyboardInterrupt):
            while True:
                got.append(next(stream))
    assert len(got) == len(server.seen) <= 12
    assert no_threads_left()


def test_the_background_loop_ends_with_work_that_never_does():
    cleaned = []

    async def cleanup():
        cleaned.append(True)

    async def forever(unit):
        import asyncio

        await asyncio.Event().wait()

    with pytest.raises(ZeroDivisionError), background_loop("test-loop", cleanup) as loop:
        stream = as_completed(
            loop, (1 // i for i in (1, 0)), forever, ahead=2, stop=lambda: None, grace_s=0.1
        )
        next(stream)
    assert cleaned == [True]
    assert no_threads_left("test-loop")
