"""Profiles: parts, questions and vectors; no held-out item ever reaches a question."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_tools.dataset.dataset import read_dataset, training_events
from dataset_tools.dataset.provenance import by_model
from dataset_tools.dataset.writer import write_dataset
from dataset_tools.enrich import profiles
from dataset_tools.enrich.profiles import (
    MAX_TITLE,
    cluster_items,
    joined_titles,
    profile_dataset,
    sentence,
    user_parts,
    write_profiles,
)
from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.prompts import MAX_FIELD
from dataset_tools.llm.requests import Answer, Embedding
from dataset_tools.llm.session import Session
from dataset_tools.options import ProfileOptions
from recbole_tema.data.feature_file import read_feature
from recbole_tema.errors import DataError
from tests.support.word_backend import NAME, WordBackend, shop_items, word_vectors, write_shop

OPTIONS = ProfileOptions(clusters=4)


def shop(folder, n_items=None, **features):
    """The shop with item vectors of its titles, of the first `n_items`."""
    items = shop_items()
    ids = items["item_id"].tolist()[:n_items]
    vectors = word_vectors(items["title"].str.split().str[1].tolist()[:n_items])
    return write_shop(folder, items=items, item_llm=(ids, vectors), **features)


def run(dataset, backend, options=OPTIONS, force=False, encoder="llm", **keys):
    with AnswerStore(dataset.folder / "llm-answers") as store:
        session = Session(backend, store, progress=False, **keys)
        return profile_dataset(dataset, session, encoder, options, force), session


# ---- parts


def test_clusters_are_those_of_the_vectors():
    words = ["tea", "oven", "knife"] * 4
    found = cluster_items(word_vectors(words), 3, seed=1)
    assert len({(word, cluster) for word, cluster in zip(words, found, strict=True)}) == 3
    assert set(cluster_items(np.eye(2), 10, seed=1)) == {0, 1}
    assert (
        cluster_items(word_vectors(words), 3, 7) == cluster_items(word_vectors(words), 3, 7)
    ).all()


def test_parts_by_hand():
    events = pd.DataFrame(
        [("u", item) for item in "abcadxe"] + [("v", "x"), ("w", "e")],
        columns=["user_id", "item_id"],
    )
    cluster_of = {"a": 0, "b": 1, "c": 1, "d": 1, "e": 2}
    options = ProfileOptions(parts=2, part_items=2)
    # The newest two of the largest part; of equal parts the lower number first; x has no vector.
    assert user_parts(events, cluster_of, options) == {"u": [["c", "d"], ["a"]], "w": [["e"]]}
    options = ProfileOptions(parts=9, part_items=9, limit=1)
    assert user_parts(events, cluster_of, options) == {"u": [["b", "c", "d"], ["a"], ["e"]]}


def test_the_newest_titles_stay_where_not_all_fit():
    titles = [f"{i:03} " + "x" * 200 for i in range(40)]
    text = joined_titles(titles)
    assert len(text) <= MAX_FIELD and text.split("; ")[-1].startswith("039")
    kept = [int(part[:3]) for part in text.split("; ")]
    assert kept == list(range(40 - len(kept), 40)) and len(kept) == MAX_FIELD // (MAX_TITLE + 2)
    assert joined_titles(["a", "b\tc"]) == "a; b c"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer('"Likes tea."'), "Likes tea."),
        (Answer(" * Likes\ttea\n"), "Likes tea"),
        (Answer(""), ""),
        (Answer("\x00 \n"), ""),
        (Answer(None, fault="x"), ""),
        (Answer([1.0]), ""),
        (Answer("x" * 9999), "x" * 600),
    ],
)
def test_sentence(answer, text):
    assert sentence(answer) == text


# ---- whole runs


def test_files_of_a_run(tmp_path):
    dataset, backend = shop(tmp_path), WordBackend(True)
    says, _ = run(dataset, backend)
    # u0 and u1 have one and two events, which are trained on.
    assert says.endswith("30 of 30 users have profiles")
    table = read_feature(dataset.path("userllm"))
    assert table.tokens == sorted(f"u{i}" for i in range(30))
    rows = [line.split("\t") for line in dataset.path("profiles.tsv").read_text().splitlines()]
    assert rows[0] == ["user_id", "profile"] and [row[0] for row in rows[1:]] == table.tokens
    asked = {r.text for r in backend.asked if isinstance(r, Embedding)}
    assert asked == {text for _, text in rows[1:]}
    for (_, text), vector in zip(rows[1:], table.values, strict=True):
        assert np.array_equal(vector, backend.one(Embedding(text)).value)
    assert by_model(dataset, "profile_emb") and "training events only" in dataset.generated(
        "profile_emb"
    )
    assert dataset.card["profiling"]["options"]["clusters"] == 4


def test_profiles_tell_of_the_users_own_words(tmp_path):
    dataset = shop(tmp_path)
    run(dataset, WordBackend(True), ProfileOptions(clusters=6, parts=9, part_items=40))
    title = dict(zip(dataset.column("item_id"), dataset.column("title"), strict=True))
    lines = dataset.path("profiles.tsv").read_text().splitlines()[1:]
    training = training_events(dataset.events)
    for line in lines:
        user, text = line.split("\t")
        words = {title[i].split()[1] for i in training.loc[training["user_id"] == user, "item_id"]}
        told = set(re.findall("tea|coffee|pasta|cake|knife|oven", text))
        assert told == words
        assert text.startswith("A person: ") == (len(words) > 1)


def test_a_second_run_asks_nothing_and_gives_the_same_bytes(tmp_path):
    dataset, backend = shop(tmp_path), WordBackend(False)
    run(dataset, backend)
    files = [dataset.path(suffix) for suffix in ("userllm", "profiles.tsv", "yaml")]
    before, n = [path.read_bytes() for path in files], len(backend.asked)
    assert "has profiles: language model" in run(dataset, backend)[0]
    run(dataset, backend, force=True)
    assert [path.read_bytes() for path in files] == before and len(backend.asked) == n


def test_limit_is_a_trial(tmp_path):
    dataset, backend = shop(tmp_path), WordBackend(True)
    run(dataset, backend, ProfileOptions(clusters=4, limit=3))
    assert len(read_feature(dataset.path("userllm")).tokens) == 3
    assert not by_model(dataset, "profile_emb")
    before = dataset.path("userllm").read_bytes()
    smaller = ProfileOptions(clusters=4, limit=2)
    assert "a larger trial, --limit 3, than --limit 2" in run(dataset, backend, smaller)[0]
    assert dataset.path("userllm").read_bytes() == before
    says, _ = run(dataset, backend, ProfileOptions(clusters=4, limit=30))
    assert by_model(dataset, "profile_emb") and says.endswith("30 of 30 users have profiles")
    assert "--force" in run(dataset, backend, smaller)[0]
    run(dataset, backend)
    assert len(read_feature(dataset.path("userllm")).tokens) == 30 and by_model(
        dataset, "profile_emb"
    )


class Terse(WordBackend):
    """Answers nothing to questions that hold a word."""

    def _text(self, request):
        silent = any(word in request.prompt.user for word in self.edits)
        return "" if silent else super()._text(request)


def test_empty_answers_leave_a_part_or_a_user_out(tmp_path):
    dataset = shop(tmp_path)
    backend = Terse(True, edits=("knife", "oven", "cake", "pasta", "coffee"))
    parts = {"a": [["f0"], ["f1"]], "b": [["f1"]], "c": [["f0"], ["k0"]]}
    with AnswerStore(tmp_path / "answers") as store:
        session = Session(backend, store, progress=False)
        found = write_profiles(dataset, session, parts)
    assert found == {"a": "Likes tea.", "c": "A person: Likes tea. Likes tea."}


def test_faults_of_the_second_question_keep_the_sentences(tmp_path):
    dataset = shop(tmp_path)
    backend = WordBackend(True, faults=("Notes: ",))
    with AnswerStore(tmp_path / "answers") as store:
        session = Session(backend, store, progress=False)
        found = write_profiles(dataset, session, {"a": [["f0"], ["f1"]]})
    assert found == {"a": "Likes tea. Likes coffee."}
    assert session.tallies["profile"].faults.total() == 1


def test_a_model_that_writes_nothing(tmp_path):
    dataset = shop(tmp_path)
    before = dataset.path("yaml").read_bytes()
    with pytest.raises(DataError, match="words: wrote no profile of 30 users"):
        run(dataset, Terse(True, edits=("",)))
    assert dataset.path("yaml").read_bytes() == before and not dataset.path("userllm").exists()


def test_without_item_vectors(tmp_path):
    dataset = write_shop(tmp_path)
    with pytest.raises(DataError, match="run 'python -m dataset_tools embed shop' first"):
        run(dataset, WordBackend(True))
    assert "item vectors come first" in run(dataset, WordBackend(True), dry=True)[0]


def test_when_no_user_has_a_training_event_with_a_vector(tmp_path):
    items = shop_items()
    last = items["item_id"].tolist()[-1:]
    dataset = write_shop(tmp_path, items=items, item_llm=(last, np.ones((1, 3), np.float32)))
    dataset.events = dataset.events[dataset.events["item_id"] != last[0]]
    with pytest.raises(DataError, match="no user has a training event"):
        run(dataset, WordBackend(True))


def test_item_text_vectors_stand_in(tmp_path):
    items = shop_items()
    vectors = word_vectors(items["title"].tolist())
    dataset = write_shop(tmp_path, items=items, item_text=(items["item_id"].tolist(), vectors))
    assert "30 of 30 users have" in run(dataset, WordBackend(True))[0]


def test_an_encoder_of_texts_by_its_name(tmp_path, monkeypatch):
    class Words:
        name = "beginnings of words"

        @staticmethod
        def texts(texts):
            return word_vectors(texts)

    monkeypatch.setattr(profiles, "load_encoder", lambda spec: Words)
    dataset, backend = shop(tmp_path), WordBackend(True)
    run(dataset, backend, encoder="words")
    assert not any(isinstance(request, Embedding) for request in backend.asked)
    lines = dataset.path("profiles.tsv").read_text().splitlines()[1:]
    expected = word_vectors([line.split("\t")[1] for line in lines])
    assert np.allclose(read_feature(dataset.path("userllm")).values, expected)
    assert "embedded by beginnings of words" in dataset.generated("profile_emb")


# ---- what must never happen


def training_part(row):
    """By hand: without both targets, the test target alone, or neither of a user of two events."""
    return row if len(row) < 3 else row[: max(2, len(row) - 2)]


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_held_out_item_reaches_a_question(tmp_path_factory, seed, likelihoods):
    """Every title is its own word, so that a question shows which items it is made of."""
    folder = tmp_path_factory.mktemp("leak") / NAME
    rng = np.random.default_rng(seed)
    n = 24
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(n)]})
    items["domain"] = np.where(np.arange(n) % 2, "food", "kitchen")
    items["title"] = [f"title{i:02}x" for i in range(n)]
    events = [
        (f"u{user}", f"i{rng.integers(n)}", int(rng.integers(0, 6)))
        for user in range(int(rng.integers(2, 9)))
        for _ in range(int(rng.integers(1, 12)))
    ] + [("u0", "i0", 0), ("u0", "i1", 0), ("u0", "i2", 0)]
    # The file is in no order of time; the written one is, ties as they come here.
    events = pd.DataFrame(events, columns=["user_id", "item_id", "timestamp"]).sample(
        frac=1, random_state=int(seed % 1000)
    )
    vectors = rng.normal(size=(n, 3)).astype(np.float32)
    write_dataset(folder, NAME, events, items, item_llm=(items["item_id"].tolist(), vectors),
                  card={"source": "made by hand"})  # fmt: skip
    dataset, backend = read_dataset(folder, NAME), WordBackend(likelihoods)
    run(dataset, backend, ProfileOptions(clusters=3, parts=9, part_items=40))

    # By hand, from the rows as they were given: a user's events in time, ties in their order.
    lists = {}
    for user, item, _ in sorted(events.itertuples(index=False), key=lambda row: row[2]):
        lists.setdefault(user, []).append(f"title{int(item[1:]):02}x")
    may = {user: set(training_part(row)) for user, row in lists.items()}
    wrote = {}
    for request in backend.asked:
        if not isinstance(request, Embedding) and "Items: " in request.prompt.user:
            titles = frozenset(re.findall(r"title\d\dx", request.prompt.user))
            assert titles
            # Some user has all of them in training, and the part was made for that user.
            wrote[titles] = [user for user, mine in may.items() if titles <= mine]
            assert wrote[titles]
        whole = str(request)
        assert not isinstance(request, Embedding) or "title" not in whole
    # Together the questions hold each user's training titles, and no user's more than these.
    assert set().union(*wrote) == set().union(*may.values())
    assert set(read_feature(dataset.path("userllm")).tokens) == {u for u, m in may.items() if m}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_parts_of_a_user_hold_training_items_alone(seed):
    rng = np.random.default_rng(seed)
    events = pd.DataFrame(
        {
            "user_id": rng.integers(0, 5, 40).astype(str),
            "item_id": rng.integers(0, 30, 40).astype(str),
            "timestamp": rng.integers(0, 10, 40).astype(float),
        }
    )
    cluster_of = {str(item): item % 3 for item in range(28)}
    options = ProfileOptions(parts=9, part_items=40)
    found = user_parts(training_events(events), cluster_of, options)
    rows = sorted(events.itertuples(index=False), key=lambda row: row.timestamp)
    for user in map(str, range(5)):
        mine = training_part([row.item_id for row in rows if row.user_id == user])
        own = {item for item in mine if item in cluster_of}
        assert {item for part in found.get(user, []) for item in part} == own
