"""Requests to a served model: refused parameters, limits, an endpoint that is down or slow."""

import socket
import time
from email.utils import formatdate

import pytest

from dataset_tools.llm.endpoint import GIVE_UP_AFTER, retry_after_s
from dataset_tools.llm.requests import Embedding
from recbole_tema.errors import BackendError
from tests.dataset_tools.llm.test_openai_api import (
    HTML,
    SCHEMA,
    ask,
    backend_at,
    completion,
    no_threads_left,
)
from tests.support.llm_servers import Reply, chat, error, serve

pytestmark = pytest.mark.usefixtures("key")


@pytest.mark.parametrize(
    ("known", "sent"),
    [
        ({"json_object"}, ["json_schema", "json_object", "json_object"]),
        (set(), ["json_schema", "json_object", None, None]),
    ],
)
@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_refused_output_format_is_not_sent_again(known, sent, status, caplog):
    def reply(seen):
        form = seen.body.get("response_format", {}).get("type")
        if form and form not in known:
            return error(status, f"response_format {form} is not available")
        return chat('Sure: {"tags": ["tea"]}')

    with serve(reply) as server:
        backend = backend_at(server.url, concurrency=1)
        answers = ask(backend, completion(schema=SCHEMA), completion(schema=SCHEMA))
        assert ask(backend, completion(schema=SCHEMA))[0].value == '{"tags":["tea"]}'
    assert [answer.value for answer in answers] == ['{"tags":["tea"]}'] * 2
    types = [seen.body.get("response_format", {}).get("type") for seen in server.seen]
    assert types == [*sent, sent[-1]]
    assert '"additionalProperties"' in server.seen[-1].body["messages"][0]["content"]
    assert caplog.text.count("refuses JSON output") == len(sent) - 2


def test_many_refusals_at_once_are_one_step():
    def reply(seen):
        time.sleep(0.02)
        if seen.body.get("response_format", {}).get("type") == "json_schema":
            return error(400, "json_schema is not supported", param="response_format")
        return chat('{"tags": ["tea"]}')

    with serve(reply) as server:
        backend = backend_at(server.url, concurrency=8)
        answers = ask(backend, *[completion(f"{i}", schema=SCHEMA) for i in range(8)])
    assert all(answer.value == '{"tags":["tea"]}' for answer in answers)
    types = [seen.body["response_format"]["type"] for seen in server.seen]
    assert sorted(types) == ["json_object"] * 8 + ["json_schema"] * 8


def test_a_format_asked_for_by_name_is_not_given_up():
    with serve(lambda seen: error(400, "response_format is not available")) as server:
        backend = backend_at(server.url, json_output="schema")
        with pytest.raises(BackendError, match="--json_output schema is refused: choose auto"):
            ask(backend, completion(schema=SCHEMA))


def test_refused_parameters_are_left_out_from_then_on():
    def reply(seen):
        for name in ("max_tokens", "temperature", "seed"):
            if name in seen.body:
                told = f"Unsupported parameter: '{name}' is not supported with this model."
                return error(400, told, code="unsupported_parameter", param=name)
        return chat("tea")

    with serve(reply) as server:
        backend = backend_at(server.url, concurrency=1)
        assert [a.value for a in ask(backend, completion("a"), completion("b"))] == ["tea"] * 2
    assert len(server.seen) == 5
    assert server.seen[-1].body.keys() == {"model", "messages", "max_completion_tokens"}
    assert server.seen[-1].body["max_completion_tokens"] == 1000


def test_a_storm_of_429_slows_all_down_and_loses_nothing(caplog):
    """A server that takes 3 at a time: every request of 40 gets its answer, by few tries."""

    def reply(seen):
        if server.at_once > 3:
            return error(429, "slow down", Retry_After="0.05")
        time.sleep(0.01)
        return chat(seen.said)

    with serve(reply) as server:
        backend = backend_at(server.url, concurrency=16, retries=4)
        answers = ask(backend, *[completion(f"{i}") for i in range(40)])
    assert [answer.value for answer in answers] == [f"{i}" for i in range(40)]
    refused = backend.troubles["HTTP 429"]
    assert refused == len(server.seen) - 40
    assert 0 < refused < 80
    assert caplog.text.count("HTTP 429") == 1


@pytest.mark.parametrize("form", ["seconds", "date", "milliseconds"])
def test_retry_after_makes_all_wait(form):
    ends = []

    def reply(seen):
        if seen.place:
            time.sleep(0.05)
            return chat("tea")
        # A date has whole seconds: this one is between 1 and 2 s ahead.
        wait = {
            "seconds": {"Retry-After": "0.6"},
            "date": {"Retry-After": formatdate(time.time() + 2, usegmt=True)},
            "milliseconds": {"retry-after-ms": "600", "Retry-After": "60"},
        }[form]
        ends.append(time.monotonic() + (0.95 if form == "date" else 0.6))
        return Reply(error(429, "wait").body, 429, wait)

    with serve(reply) as server:
        backend = backend_at(server.url, concurrency=2, longest_pause_s=5)
        answers = ask(backend, *[completion(f"{i}") for i in range(8)])
    assert [answer.value for answer in answers] == ["tea"] * 8
    assert len(server.seen) == 9
    # One more was under way when the first was refused; all others waited.
    assert all(seen.at >= ends[0] - 0.01 for seen in server.seen[2:])


def test_retry_after_has_a_limit():
    def reply(seen):
        return chat("tea") if seen.place else error(503, "busy", Retry_After="86400")

    with serve(reply) as server:
        start = time.monotonic()
        answer = ask(backend_at(server.url, longest_pause_s=0.2), completion())[0]
    assert answer.value == "tea"
    assert 0.2 <= time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3", 3), ("0.5", 0.5), ("", None), ("soon", None), ("-1", None), ("nan", None)],
)
def test_retry_after_is_read_with_care(text, seconds):
    assert retry_after_s({"retry-after": text}) == seconds
    assert retry_after_s({}) is None
    assert retry_after_s({"retry-after": formatdate(0, usegmt=True)}) == 0


def test_no_more_requests_are_under_way_than_allowed():
    def reply(seen):
        while len(server.seen) < 5:
            time.sleep(0.001)
        time.sleep(0.02)
        return chat("tea")

    with serve(reply) as server:
        ask(backend_at(server.url, concurrency=5), *[completion(f"{i}") for i in range(40)])
    assert server.most_at_once == 5


def test_an_endpoint_that_is_down_is_named_soon():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        start = time.monotonic()
        with pytest.raises(BackendError, match=f"{url} cannot be reached") as caught:
            ask(backend_at(url, backoff_s=0.1, retries=20), *[completion("a"), completion("b")])
    assert time.monotonic() - start < 5
    assert "is the server up" in str(caught.value)
    assert no_threads_left()


def test_a_server_that_takes_no_more_connections_is_named_soon():
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filling in (first, second):
            filling.setblocking(False)
            filling.connect_ex(full.getsockname())
        backend = backend_at(f"http://127.0.0.1:{full.getsockname()[1]}/v1", timeout_s=0.4)
        with pytest.raises(BackendError, match=r"cannot be reached: no connection in time"):
            ask(backend, completion())


def test_a_slow_server_is_asked_for_less_at_a_time():
    at_once, most = [], []

    def reply(seen):
        if seen.place < 4:
            return Reply(b" ", sent=0, then="stall")
        at_once.append(seen)
        most.append(len(at_once))
        time.sleep(0.1)
        at_once.remove(seen)
        return chat(seen.said)

    with serve(reply) as server:
        backend = backend_at(server.url, concurrency=4, timeout_s=2)
        answers = ask(backend, *[completion(f"{i}") for i in range(4)])
    assert [answer.value for answer in answers] == ["0", "1", "2", "3"]
    assert backend.troubles == {"no answer in time": 4}
    assert max(most) == 2


def test_a_server_that_takes_the_connection_and_says_nothing_is_given_up():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        backend = backend_at(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", timeout_s=0.2)
        with pytest.raises(BackendError, match=r"no answer within 0\.2 s"):
            ask(backend, *[completion(f"{i}") for i in range(10)])


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (error(401, "unknown key"), "HTTP 401: unknown key; check the key in OPENAI_API_KEY"),
        (error(402, "no balance"), "HTTP 402"),
        (error(403, "not in your region"), "HTTP 403: not in your region"),
        (error(404, "the model 'small' does not exist"), "HTTP 404: the model 'small'"),
        (Reply(b"<html>nothing here</html>", 404), "HTTP 404: a web page; check the model"),
        (error(429, "quota", code="insufficient_quota"), "HTTP 429: quota; check the key"),
    ],
)
def test_a_refusal_of_all_requests_ends_the_run_at_once(reply, reason):
    with serve(lambda seen: reply) as server, pytest.raises(BackendError, match=reason):
        ask(backend_at(server.url, concurrency=2), *[completion(f"{i}") for i in range(50)])
    assert len(server.seen) <= 4
    assert no_threads_left()


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("kind", ["chat", "embeddings"])
def test_a_model_that_the_server_refuses_by_400_ends_the_run_soon(status, kind):
    """Whatever it counts in its message."""

    def reply(seen):
        return error(status, f"Model small is not supported (request {seen.place})")

    requests = [completion(f"{i}") if kind == "chat" else Embedding(f"{i}") for i in range(500)]
    with serve(reply) as server:
        backend = backend_at(server.url, concurrency=4)
        units = [[requests[i] for i in unit] for unit in backend.units(requests)]
        with pytest.raises(BackendError, match=r"Model small is not supported.*--model") as caught:
            got = list(backend.answer(units))
            assert not got
    assert f"HTTP {status}" in str(caught.value)
    assert len(server.seen) < 20
    assert no_threads_left()


@pytest.mark.parametrize(
    "told", [lambda i: "the content filter was triggered", lambda i: f"cannot read {chr(97 + i)}"]
)
def test_refusals_of_single_requests_do_not_end_the_run(told):
    """Seven at the beginning, by a filter or each in other words; and some after an answer."""

    def reply(seen):
        number = int(seen.said)
        if number < 7 or number > 10:
            return error(400, told(number) if number < 7 else "no, not this")
        return chat("tea")

    with serve(reply) as server:
        backend = backend_at(server.url, concurrency=1)
        answers = ask(backend, *[completion(f"{i}") for i in range(20)])
    assert [i for i, answer in enumerate(answers) if answer.value] == [7, 8, 9, 10]
    # Before the first answer nobody knows whose fault it was.
    assert [i for i, answer in enumerate(answers) if answer.lasting] == list(range(11, 20))


@pytest.mark.parametrize("reply", [HTML, error(500, "crash"), error(429, "no"), error(404, "no")])
def test_an_endpoint_that_dies_in_the_midst_gives_what_it_gave_and_an_error(reply):
    with serve(lambda seen: chat(seen.said) if seen.place < 7 else reply) as server:
        backend = backend_at(server.url, concurrency=2, retries=1, longest_pause_s=0.05)
        got = {}
        with pytest.raises(BackendError, match=server.url):
            for place, answers in backend.answer([completion(f"{i}")] for i in range(1000)):
                got[place] = answers[0]
    answered = [place for place, answer in got.items() if answer.value is not None]
    assert len(answered) == 7
    assert len(got) - len(answered) <= GIVE_UP_AFTER
    assert len(server.seen) < 40
