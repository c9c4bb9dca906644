"""`augment`: what a model says of each item, and that `clip` encodes it."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dataset_tools.dataset.card import changed_files
from dataset_tools.dataset.dataset import read_dataset, update_dataset
from dataset_tools.enrich import features
from dataset_tools.enrich.augment import (
    MAX_SENTENCE,
    augment_dataset,
    augment_requests,
    described,
    labelled,
    read_answers,
)
from dataset_tools.enrich.embeddings import item_words
from dataset_tools.enrich.features import clip_dataset
from dataset_tools.enrich.tags import item_digest
from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.prompts import load_prompt
from dataset_tools.llm.requests import Answer
from dataset_tools.llm.session import Session
from dataset_tools.options import AugmentOptions, ClipOptions
from recbole_tema.errors import DataError
from tests.support.word_backend import NAME, WordBackend, shop_items, word_vectors, write_shop

FIELD = "augmented_text"
# By hand, of what the model says: junk is left out as among tags.
SAID = {
    "tea": "black teas, hot drink, breakfast. A fine tea. For people who like tea.",
    "oven": "baking, black tea, dinner. A fine oven. For people who like oven.",
}


def augment(dataset, backend, limit=None, force=False, **keys):
    with AnswerStore(dataset.folder / "llm-answers") as store:
        session = Session(backend, store, progress=False, **keys)
        return augment_dataset(dataset, session, AugmentOptions(limit), force), session


def contents(dataset):
    return {
        path.name: path.read_bytes()
        for path in dataset.folder.iterdir()
        if path.is_file() and path.name[0] != "."
    }


@pytest.mark.parametrize("likelihoods", [True, False], ids=["text", "json"])
def test_files_of_a_run(tmp_path, likelihoods):
    dataset, backend = write_shop(tmp_path), WordBackend(likelihoods)
    digest, before = item_digest(dataset), contents(dataset)
    said, _ = augment(dataset, backend)
    assert "104 of 104 items have augmented texts" in said
    # Junk of the answers: repeats and ids of tea, 26 times, and of coffee, pasta and the oven.
    assert re.search(r"left out of the answers: .*repeated word \(26\)", said)
    fresh = read_dataset(dataset.folder, NAME)
    assert fresh.item_types[FIELD] == "token_seq"
    for word, text in SAID.items():
        found = {
            told
            for title, told in zip(fresh.column("title"), fresh.column(FIELD), strict=True)
            if f" {word} " in title
        }
        assert found == {text}
    assert all(told.endswith(".") for told in fresh.column(FIELD))
    note = fresh.generated(FIELD)
    assert note.startswith("language model words, prompts augment ") and f"inputs {digest}" in note
    assert changed_files(dataset.folder, fresh.card) == []
    # Questions about the items, and so kept answers and tags, do not depend on the new column.
    assert item_digest(fresh) == digest
    after = contents(dataset)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {f"{NAME}.item", f"{NAME}.yaml"}


def test_a_second_run_asks_nothing_and_changes_no_byte(tmp_path):
    dataset, backend = write_shop(tmp_path), WordBackend(False)
    augment(dataset, backend)
    before, n = contents(dataset), len(backend.asked)
    assert n == 104
    assert "has augmented texts: language model words" in augment(dataset, backend)[0]
    augment(read_dataset(dataset.folder, NAME), backend, force=True)
    assert contents(dataset) == before and len(backend.asked) == n
    assert "--force" in augment(dataset, WordBackend(False, identity="other"))[0]


def test_a_dry_run_a_trial_and_faults(tmp_path):
    items = shop_items()
    items.loc[3, "title"] = ""
    dataset, backend = write_shop(tmp_path, items=items), WordBackend(False, faults=("knife",))
    said, session = augment(dataset, backend, dry=True, prices=(1.0, 2.0))
    assert said == "nothing was asked" and not backend.asked
    assert session.estimates["augment"].calls == 103 and session.estimates["augment"].cost > 0
    said, _ = augment(dataset, backend, limit=5)
    assert said.splitlines()[0].endswith(
        "4 of 104 items have augmented texts; the others: 99 beyond --limit, 1 without a title"
    )
    assert [bool(text) for text in dataset.column(FIELD)[:6]] == [True] * 3 + [False, True, False]
    said, _ = augment(dataset, backend)
    assert "90 of 104 items" in said and "13 of which the model said nothing" in said
    assert (
        "no answer: an empty answer (13)" in said and "--force" in augment(dataset, backend, 5)[0]
    )
    sound = WordBackend(False)
    augment(dataset, sound, force=True)
    assert len(sound.asked) < 103 and dataset.column(FIELD).count("") == 1


def test_what_another_command_wrote_meanwhile_stays(tmp_path):
    dataset = write_shop(tmp_path)
    other = read_dataset(dataset.folder, NAME)
    items = other.items.assign(tags=[["tea"]] * 104, tag_weights=[[0.5]] * 104)
    tags = pd.DataFrame({"tag_id": ["tea"], "tag_domain": [["food"]], "tag_emb": [[1.0]]})
    made = {"tags": "words", "tag_weights": "words", "tag_emb": "words"}
    update_dataset(other, items=items, tags=tags, generated=made)
    augment(dataset, WordBackend(False))
    assert set(dataset.column("tags")) == {"tea"} and all(dataset.column(FIELD))
    fresh = read_dataset(dataset.folder, NAME)
    assert fresh.items.equals(dataset.items) and fresh.item_types == dataset.item_types
    update_dataset(other, items=items.assign(tag_weights=[[0.7]] * 104), generated=made)
    fresh = read_dataset(dataset.folder, NAME)
    assert set(fresh.column("tag_weights")) == {"0.7"} and all(fresh.column(FIELD))


def test_where_a_model_says_nothing_the_dataset_stays(tmp_path):
    dataset = write_shop(tmp_path)
    before = contents(dataset)
    with pytest.raises(DataError, match="said nothing that can be used of 104 items"):
        augment(dataset, WordBackend(True, faults=("Fine",)))
    dataset.items["title"] = ""
    with pytest.raises(DataError, match="no item has a title"):
        augment(dataset, WordBackend(True))
    assert contents(dataset) == before


# ---- answers


def asked(dataset, as_json):
    return augment_requests(dataset, load_prompt("augment"), [0], as_json)


@pytest.mark.parametrize("as_json", [True, False])
def test_examples_show_the_form_that_is_asked_for(tmp_path, as_json):
    request = asked(write_shop(tmp_path), as_json)[0]
    assert request.prompt.user == "Food: Fine tea of maker a"
    assert ("JSON object" in request.prompt.system) == as_json == (request.schema is not None)
    terms = ["black tea", "bergamot", "hot drink", "breakfast", "tea bags"]
    first = request.prompt.examples[0][1]
    if as_json:
        assert json.loads(first)["key_terms"] == terms
        assert json.loads(request.schema)["required"] == list(json.loads(first))
    else:
        assert first.splitlines()[0] == f"Key terms: {', '.join(terms)}"


LONG = "A pan of iron. " * 40
AS_JSON = [
    ({"key_terms": ["Tea"], "summary": "Good.", "audience": "For all"}, "tea. Good. For all."),
    ({"key_terms": "tea, Cup", "summary": None}, "tea, cup."),
    ({"summary": "<b>Hot</b> &amp; strong"}, "Hot & strong."),
    ({"summary": '"Hot\ttea\n"'}, "Hot tea."),
    ({"summary": "see https://x.org", "key_terms": ["B0013JJZWC"]}, ""),
    ({"summary": "Fine tea of maker a."}, ""),
    ({"summary": "", "audience": "tea lovers"}, ""),
    ({"summary": LONG}, LONG[:MAX_SENTENCE].strip()),  # of 15 characters each
    ({"summary": "Oh, " + LONG}, "Oh, " + LONG[: MAX_SENTENCE - 15].strip()),
    ({"summary": "x" * 999}, ""),
    (["tea"], ""),
    ({"summary": "A black tea in bags with the citrus scent of bergamot."}, ""),
    ({"key_terms": ["black tea", "bergamot", "hot drink", "breakfast"], "summary": "Mine."}, ""),
]


@pytest.mark.parametrize(("value", "text"), AS_JSON)
def test_texts_of_json(tmp_path, value, text):
    dataset = write_shop(tmp_path)
    found = read_answers(dataset, asked(dataset, True), [Answer(json.dumps(value), 5, 9)])
    assert found.texts[0] == text and found.asked == 1
    assert bool(text) or found.refused.total() >= 1


AS_TEXT = [
    ("Key terms: tea, cup\nSummary: Good.\nFor: all", 9, "tea, cup. Good. For all."),
    ("**Key Terms**: tea\n- summary : Good\nchat\nSummary: no", 9, "tea. Good."),
    ("Key terms:\n * tea\n * cup\nSummary:\nGood.\nFor:\n", 9, "tea, cup. Good."),
    ("Summary: One.\nKey terms: a tea\nSummary: Two.\n- x\nFor: all", 9, "tea. One. For all."),
    ("Sure, here is what I know.", 9, ""),
    # The answer is as long as may be: its last part is cut.
    ("Key terms: tea, cup, pla", 90, "tea, cup."),
    ("Key terms: tea\nSummary: Good. Very st", 90, "tea."),
    ("Key terms: tea\nSummary: Strong tea for all. Very st", 90, "tea. Strong tea for all."),
    ("Key terms: tea\nSummary: Go", 90, "tea."),
]


@pytest.mark.parametrize(("said", "tokens", "text"), AS_TEXT)
def test_texts_of_labelled_lines(tmp_path, said, tokens, text):
    dataset = write_shop(tmp_path)
    found = read_answers(dataset, asked(dataset, False), [Answer(said, 5, tokens)])
    assert found.texts[0] == text


def test_an_answer_about_the_example_itself_is_no_copy(tmp_path):
    items = shop_items()
    items.loc[0, "title"] = "Twinings Earl Grey Tea, 100-Count"
    dataset = write_shop(tmp_path, items=items)
    requests = asked(dataset, False)
    own = requests[0].prompt.examples[0][1]
    found = read_answers(dataset, requests, [Answer(own, 5, 9)])
    assert found.texts[0] == described(labelled(own), "")[0] and not found.refused


# ---- clip


class Encoder:
    """An encoder that reads eight words, and keeps what it was given."""

    name, max_tokens, has_images = "words (weights sha256 00)", 8, False

    def texts(self, texts):
        self.given = list(texts)
        self.n_cut = sum(len(text.split()) > 8 for text in {*texts})
        return word_vectors(texts)


@pytest.fixture
def encoder(monkeypatch):
    made = Encoder()
    monkeypatch.setattr(features, "load_encoder", lambda *spec: made)
    return made


def test_clip_encodes_the_texts_and_says_so(tmp_path, encoder):
    items = shop_items()
    items["description"] = ["Sold"] * len(items)
    dataset = write_shop(tmp_path, items=items)
    plain, options = item_words(dataset), ClipOptions()
    assert "augmented" not in clip_dataset(dataset, "words", options, False)
    assert encoder.given == plain and plain[0] == "food: Fine tea of maker a. Sold"
    augment(dataset, WordBackend(False), limit=52)
    # What the dataset outgrew is made anew by itself.
    said = clip_dataset(dataset, "words", options, False)
    assert encoder.given[0] == f"food: Fine tea of maker a. {SAID['tea']} Sold"
    assert encoder.given[52:] == plain[52:]  # without such a text: as before
    of = "augmented texts of 52 items, 52 of 104 different texts cut after 8 tokens"
    note = dataset.generated("clip_text")
    assert of in said and note.startswith(f"{encoder.name} of domain, texts and tags, {of}, inputs")
    assert item_words(dataset) == plain  # of `embed`, whose answers are paid for


def test_texts_that_were_left_out_stay_out(tmp_path, encoder):
    dataset = write_shop(tmp_path)
    alone, both = replace(ClipOptions(), without_augmented=True), ClipOptions()
    clip_dataset(dataset, "words", alone, False)
    assert dataset.generated("clip_text").startswith(
        f"{encoder.name} of domain, texts and tags, in"
    )
    augment(dataset, WordBackend(False))
    clip_dataset(dataset, "words", both, False)
    with_texts = dataset.path("itemtext").read_bytes()
    assert "--force" in clip_dataset(dataset, "words", alone, False)
    assert dataset.path("itemtext").read_bytes() == with_texts
    clip_dataset(dataset, "words", alone, True)
    assert encoder.given == item_words(dataset)
    assert " of domain, texts and tags alone, inputs" in dataset.generated("clip_text")
    assert "--force" in clip_dataset(dataset, "words", both, False)
    assert dataset.path("itemtext").read_bytes() != with_texts
    assert np.array_equal(dataset.feature("itemtext").values, word_vectors(item_words(dataset)))
