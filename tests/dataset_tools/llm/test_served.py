"""Tags and profiles by a served model: over real HTTP, with the limits that a server keeps to."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner

from dataset_tools.__main__ import main
from dataset_tools.enrich import tags as tagging
from dataset_tools.enrich.profiles import write_profiles
from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.openai_api import OpenAIBackend
from dataset_tools.llm.requests import Answer, Completion
from dataset_tools.llm.session import Session
from dataset_tools.tags.generate import read_answers, tag_requests
from tests.support.llm_servers import chat, embeddings, error, limited, serve
from tests.support.word_backend import NAME, word_vectors, write_shop

pytestmark = pytest.mark.long

pytest.importorskip("openai", reason="pip install 'recbole-tema[features]'")

# Five tags: more than the 22 tokens that a small local model's comma list has.
SAYS = {
    "tea": [
        "black tea",
        "hot beverage",
        "breakfast table",
        "loose leaf variety",
        "birthday gift",
    ],
    "coffee": ["ground coffee", "hot beverage", "breakfast table", "dark roast", "birthday gift"],
    "": ["everyday use", "breakfast table", "family dinner", "robust material", "birthday gift"],
}
EDITS = {"merge": [], "drop": [], "add": []}


class Words:
    name = "beginnings of words"

    @staticmethod
    def texts(texts):
        return word_vectors(texts)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(tagging, "load_encoder", lambda spec: Words)
    write_shop(tmp_path)
    return tmp_path


def says(user):
    return next(tags for word, tags in SAYS.items() if word in user)


def answer_of(seen):
    """JSON, as the prompts ask for it; each tag that is said of the item is rated 1."""
    system, user = seen.body["messages"][0]["content"], seen.said
    if '"merge"' in system:
        return json.dumps(EDITS)
    if '"scores"' in system:
        options = re.findall(r"^\d+\. (.*)$", user, re.M)
        return json.dumps({"scores": [float(option in says(user)) for option in options]})
    return json.dumps({"tags": says(user)})


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def tag(root, url, *words):
    served = ("--backend", "openai", "--model", "m", "--base_url", url, "--max_share", "1")
    return run("tag", NAME, "--data_path", root, *served, "--rounds", "1", *words)


@pytest.mark.parametrize("thinks", ["", "<think>\nTea, I see.\n</think>\n\n"], ids=["", "thinking"])
def test_every_item_gets_its_tags_from_a_server_that_keeps_to_the_limit(root, thinks):
    with serve(lambda seen: limited(thinks + answer_of(seen), seen.body)) as server:
        done = tag(root, server.url)
        n = len(server.seen)
        again = tag(root, server.url, "--force")
    assert done.exit_code == 0, done.output
    assert "104 of 104 items have" in done.stdout
    assert re.search(
        r"^tag: 104 requests: .* 104 by the model, 0 without an answer", done.stdout, re.M
    )
    text = (root / NAME / f"{NAME}.tag").read_text()
    assert "black_tea" in text and "birthday_gift" in text  # the first and the last one said
    assert len(server.seen) == n and again.exit_code == 0


def test_a_run_in_parts_makes_the_dataset_of_a_whole_one(root):
    """Stage by stage: both parts, a merge, and again; then nothing is left to ask."""
    write_shop(root / "whole")
    with serve(lambda seen: limited(answer_of(seen), seen.body)) as server:
        stages, said = 0, [""]
        while stages < 11 and not all("every answer is there" in text for text in said):
            stages += 1
            said = [tag(root, server.url, "--part", part).stdout for part in ("1/2", "2/2")]
            assert run("merge", NAME, "--data_path", root).exit_code == 0
        assert 3 <= stages < 11  # tag, refine, match, maybe more
        asked = [seen.body["messages"] for seen in server.seen]
        assert not (root / NAME / f"{NAME}.tag").exists()
        done = tag(root, server.url)
        assert "104 of 104 items have" in done.stdout and len(server.seen) == len(asked)
        tag(root / "whole", server.url)
        again = [seen.body["messages"] for seen in server.seen[len(asked) :]]
    assert sorted(map(str, asked)) == sorted(map(str, again))
    for kind in ("item", "tag", "tags.md"):
        name = f"{NAME}.{kind}"
        assert (root / NAME / name).read_bytes() == (root / "whole" / NAME / name).read_bytes()


def test_what_was_cut_off_keeps_the_tags_that_are_complete(root):
    with serve(lambda seen: limited(answer_of(seen), seen.body)) as server:
        done = tag(root, server.url, "--max_tokens", "20")
    assert "104 of 104 items have" in done.stdout
    text = (root / NAME / f"{NAME}.tag").read_text()
    assert "loose_leaf_variety" in text and "gift" not in text


def test_a_limit_that_leaves_nothing_is_not_paid_for_again(root, monkeypatch):
    thinks = "<think>" + "Tea. " * 900
    with serve(lambda seen: limited(thinks, seen.body)) as server:
        done = tag(root, server.url)
        assert done.exit_code == 2 and "give it more --max_tokens" in done.output
        assert len(server.seen) == 104
        assert tag(root, server.url).exit_code == 2
        assert len(server.seen) == 104
        server.reply = lambda seen: limited(thinks + "</think>" + answer_of(seen), seen.body)
        done = tag(root, server.url, "--max_tokens", "4000", "--retry_failed")
    assert "104 of 104 items have" in done.stdout


def test_a_dry_run_reckons_with_the_server_s_limit_and_says_what_it_counts(root):
    with serve(lambda seen: chat("?")) as server:
        prices = ("--price_in", "0", "--price_out", "1000000")
        done = tag(root, server.url, "--dry-run", "--max_tokens", "500", *prices)
        assert not server.seen
    about, most = 2 * 22 * 104, 500 * 104
    assert f"tokens out: about {about:,}, at most about {most:,}" in done.stdout
    assert f"cost: about {about:,}.00, at most about {most:,}.00" in done.stdout
    assert "counted: tag. Not counted: the rounds of refinement" in done.stdout


def test_a_dry_run_of_one_stage_names_no_other(root):
    with serve(lambda seen: chat("?")) as server:
        served = ("--backend", "openai", "--model", "m", "--base_url", server.url)
        done = run("embed", NAME, "--data_path", root, *served, "--dry-run")
    assert "calls: 104" in done.stdout and "ot counted" not in done.stdout


PARTS = {"a": [["f0"], ["f1"]], "b": [["f1"]]}


def profiles_of(root, url, **keys):
    dataset = write_shop(root / "profiles")
    with AnswerStore(root / "answers") as store:
        session = Session(OpenAIBackend("m", url, backoff_s=0.01, **keys), store, progress=False)
        return write_profiles(dataset, session, PARTS), session


@pytest.mark.parametrize(
    "form",
    [
        "<think>\nThe items are\n\ntea.\n</think>\n\n{}\nMore.",
        "\n\n{}",
        "Hm.\n</think>\n{}\n",
        "{}",
    ],
    ids=["thinking", "line breaks", "thinking that the prompt began", "plain"],
)
def test_profiles_of_models_that_do_not_begin_with_the_answer(root, form):
    def reply(seen):
        # Eighty tokens and more: the prompt files allow a local model 40 and 60.
        text = ("Combines" if "Notes: " in seen.said else "Likes") + " tea" + " and tea" * 40 + "."
        return limited(form.format(text), seen.body)

    with serve(reply) as server:
        found, session = profiles_of(root, server.url)
    assert found["a"].startswith("Combines tea and tea") and found["a"].endswith(" tea.")
    assert found["b"].startswith("Likes tea") and "More" not in found["b"]
    assert not any(tally.faults for tally in session.tallies.values())
    assert not any("stop" in seen.body for seen in server.seen)


def test_a_profile_that_was_cut_off_ends_with_a_whole_sentence_or_word(root):
    def reply(seen):
        sentence = "Likes tea a lot. Often buys coffee" if "coffee" not in seen.said else "Likes it"
        return limited(sentence + " at the best shops" * 99, seen.body)

    with serve(reply) as server:
        found, _ = profiles_of(root, server.url, max_tokens=60)
    assert found["a"] == "Likes tea a lot."
    assert re.fullmatch(r"Likes it( at the best shops)*( at| at the| at the best)?", found["b"])


def test_tokens_of_several_tries_are_no_sign_of_a_list_that_was_cut_off(root):
    dataset = write_shop(root / "tries")
    session = Session(OpenAIBackend("m", "http://localhost:1/v1"), None)
    requests = tag_requests(dataset, session.prompt("tag"), [0], as_json=True)
    answer = Answer('{"tags": ["black tea", "hot beverage"]}', 150, 66)
    raw = read_answers(dataset, requests, [answer], 6)
    assert raw.tags[0] == ["black tea", "hot beverage"] and raw.refused == Counter()
    plain = {row: Completion(r.prompt, r.max_tokens) for row, r in requests.items()}
    raw = read_answers(dataset, plain, [Answer("black tea, hot beverage", 50, 22)], 6)
    assert raw.tags[0] == ["black tea"]


def test_options_of_the_backends_reach_them(root, monkeypatch):
    made = {}

    def keeps(name):
        def make(*arguments, **keys):
            made[name] = keys
            raise KeyboardInterrupt

        return make

    monkeypatch.setattr("dataset_tools.llm.openai_api.OpenAIBackend", keeps("openai"))
    monkeypatch.setattr("dataset_tools.llm.local.LocalBackend", keeps("local"))
    words = ("--timeout", "7.5", "--max_tokens", "90", "--json_output", "object")
    tag(root, "http://localhost:1/v1", *words)
    given = {"timeout_s": 7.5, "max_tokens": 90, "json_output": "object"}
    assert given.items() <= made["openai"].items()
    run("tag", NAME, "--data_path", root, "--max_context", "2048")
    assert made["local"]["max_context"] == 2048
    run("tag", NAME, "--data_path", root)
    assert "max_context" not in made["local"]


def test_a_server_s_other_model_is_named_and_not_mixed_in(root):
    """The server loads another model by the same name between two runs."""
    words = ("--data_path", root, "--backend", "openai", "--model", "m", "--concurrency", "1")
    width = 3

    def reply(seen):
        texts = seen.body["input"]
        if width == 3 and len(texts) < 64:
            return error(401, "the balance is used up")
        return embeddings([np.ones(width).tolist() for _ in texts])

    with serve(reply) as server:
        run("embed", NAME, *words, "--base_url", server.url)
        width = 4
        done = run("embed", NAME, *words, "--base_url", server.url)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert "vectors of 3 and of 4 numbers" in done.stderr and "(--answers)" in done.stderr
    with AnswerStore(root / NAME / "llm-answers") as store:
        assert store.n_answers == 64
