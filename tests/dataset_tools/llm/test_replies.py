"""What a served model sends back: of a wrong form, with thoughts, cut off."""

import pytest

from dataset_tools.llm.requests import Embedding
from tests.dataset_tools.llm.test_openai_api import (
    HTML,
    SCHEMA,
    ask,
    backend_at,
    completion,
    scoring,
)
from tests.support.llm_servers import Reply, as_json, chat, embeddings, error, serve

pytestmark = pytest.mark.usefixtures("key")


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
