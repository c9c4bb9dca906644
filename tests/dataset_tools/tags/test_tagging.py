"""`tag` from a dataset to its files, by models whose answers are known; and what loads them."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import dataset_tools
from dataset_tools.dataset.card import changed_files
from dataset_tools.dataset.dataset import read_dataset
from dataset_tools.enrich.tags import has_llm_tags, tag_dataset
from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.prompts import load_prompt
from dataset_tools.llm.requests import Completion, Scoring
from dataset_tools.llm.session import Session
from dataset_tools.options import TagOptions
from dataset_tools.tags.clean import clean_tag
from dataset_tools.tags.pipeline import make_tags
from recbole_tema import run_recbole_tema
from recbole_tema.data.cells import tag_text
from recbole_tema.data.feature_file import read_feature
from recbole_tema.errors import ConfigError, DataError
from tests.support.encoder import needs_encoder
from tests.support.word_backend import (
    N_ITEMS,
    NAME,
    WordBackend,
    word_vectors,
    write_shop,
)

pytestmark = pytest.mark.long

OPTIONS = TagOptions(max_share=0.6)
THREE = ("food", "kitchen", "book")


def tag(dataset, backend, options=OPTIONS, force=False, **keys):
    """Run the command's function; (what it says, the session)."""
    with AnswerStore(dataset.folder / "llm-answers") as store:
        session = Session(backend, store, progress=False, **keys)
        return tag_dataset(dataset, session, "minilm", options, force), session


def made(dataset, backend, options=OPTIONS):
    """The pipeline alone, with word vectors."""
    with AnswerStore(dataset.folder / "llm-answers") as store:
        return make_tags(dataset, Session(backend, store, progress=False), word_vectors, options)


def cells(folder, suffix="item"):
    """An atomic file by pandas alone, every cell as text."""
    path = folder / f"{NAME}.{suffix}"
    frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    return frame.rename(columns=lambda head: head.partition(":")[0])


def files(folder):
    """The bytes of all files but the answers and caches."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and not path.name.endswith("safetensors")
    }


# ---- whole runs


@needs_encoder
@pytest.mark.parametrize("likelihoods", [True, False], ids=["likelihoods", "json"])
@pytest.mark.parametrize("domains", [THREE[:2], THREE], ids=["two", "three"])
def test_files_of_a_run(tmp_path, encoder, likelihoods, domains):
    dataset = write_shop(tmp_path, domains)
    events = (dataset.folder / f"{NAME}.inter").read_bytes()
    backend = WordBackend(likelihoods)
    says, _ = tag(dataset, backend)
    items = cells(dataset.folder)
    assert f"{len(items)} of {len(items)} items have" in says
    table = read_feature(dataset.path("tag"))
    where = dict(zip(table.tokens, table.extra["tag_domain"], strict=True))

    used = {}
    for tags, weights, domain in zip(items["tags"], items["tag_weights"], items["domain"],
                                     strict=True):  # fmt: skip
        tags, weights = tags.split(), [float(weight) for weight in weights.split()]
        assert 1 <= len(tags) == len(weights) <= OPTIONS.top
        assert min(weights) > 0 and (likelihoods or max(weights) <= 1)
        for token in tags:
            used.setdefault(token, set()).add(domain)
            assert clean_tag(tag_text(token)) == (tag_text(token), "")
    assert {token: " ".join(sorted(there)) for token, there in used.items()} == where
    assert len(where["breakfast" if not likelihoods else "hot_drink"].split()) >= 2
    assert not {"food", "b0013jjzwc", "tag", "category", "nbsp", "morning_"} & set(where)

    # The vectors are the encoder's own of the tag in words.
    expected = encoder.texts([tag_text(token) for token in table.tokens])
    assert np.abs(table.values - expected).max() < 1e-6
    assert (dataset.folder / f"{NAME}.inter").read_bytes() == events
    card = dataset.card
    assert changed_files(dataset.folder, card) == []
    assert "words, prompts tag " in card["generated"]["tags"] and has_llm_tags(dataset)
    assert "all-MiniLM-L6-v2" in card["generated"]["tag_emb"]
    report = dataset.path("tags.md").read_text()
    shared = sum(len(there) > 1 for there in used.values())
    assert f"have at the end: {len(used)}, of which {shared} in more than one domain" in report
    assert "repeated word" in report and "Fine tea of maker a" in report
    log = dataset.path("tag-edits.tsv").read_text().splitlines()
    assert log[0].split("\t") == ["when", "edit", "tag", "into", "why"]
    assert all(len(line.split("\t")) == 5 for line in log)
    assert "list\tmerge\tblack tea\tblack teas\tanother spelling" in log


@needs_encoder
@pytest.mark.parametrize("likelihoods", [True, False], ids=["likelihoods", "json"])
def test_a_second_run_asks_nothing_and_changes_no_byte(tmp_path, encoder, likelihoods):
    dataset = write_shop(tmp_path)
    tag(dataset, WordBackend(likelihoods))
    before = files(dataset.folder)
    backend = WordBackend(likelihoods)
    assert "has tags: language model words" in tag(dataset, backend)[0]
    again = read_dataset(dataset.folder, NAME)
    says, session = tag(again, backend, force=True)
    assert "items have" in says and backend.asked == []
    assert sum(tally.calls for tally in session.tallies.values()) == 0
    assert files(dataset.folder) == before

    # Elsewhere, with no answer kept, the same bytes come out.
    other = write_shop(tmp_path / "other")
    tag(other, backend)
    assert backend.asked and files(other.folder) == before


@needs_encoder
def test_a_kept_answer_depends_on_its_prompt_alone(tmp_path, encoder):
    dataset = write_shop(tmp_path)
    tag(dataset, WordBackend(False))
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    stated = yaml.safe_load(
        (Path(dataset_tools.__file__).parent / "prompts" / "match.yaml").read_text()
    )
    stated["domains"]["food"]["system"] += " Be strict."
    (prompts / "match.yaml").write_text(yaml.safe_dump(stated))
    backend = WordBackend(False)
    _, session = tag(dataset, backend, force=True, prompts=prompts)
    # Food is the half of the items whose question changed.
    assert session.tallies["match"].kept == N_ITEMS
    assert {type(request) for request in backend.asked} == {Scoring}


@needs_encoder
def test_an_absolute_threshold_asks_nothing_anew(tmp_path, encoder):
    """Ratings here are 0.5 for each half of a tag that the model's own words hold."""
    dataset, backend = write_shop(tmp_path), WordBackend(False)
    with pytest.raises(ConfigError, match="--min_score 2: words rates from 0 to 1"):
        tag(dataset, backend, replace(OPTIONS, min_score=2.0))
    assert not backend.asked
    tag(dataset, backend)
    weak = cells(dataset.folder)
    n = len(backend.asked)
    tag(dataset, backend, replace(OPTIONS, min_score=0.6), force=True)
    assert len(backend.asked) == n and "ratings from 0 to 1" in dataset.generated("tag_weights")
    for old, new in zip(*(f[["tags", "tag_weights"]].to_numpy() for f in (weak, cells(
        dataset.folder))), strict=True):  # fmt: skip
        pairs = zip(old[0].split(), old[1].split(), strict=True)
        assert new[0].split() == [tag for tag, score in pairs if float(score) >= 0.6]
    assert "0.5" in " ".join(weak["tag_weights"]).split()


@needs_encoder
def test_what_is_written_trains(tmp_path, encoder, monkeypatch):
    """TEMA reads the tags and weights as they stand in the files."""
    monkeypatch.chdir(tmp_path)
    for domains in (THREE[:2], THREE):
        root = tmp_path / str(len(domains))
        dataset = write_shop(root, domains)
        tag(dataset, WordBackend(True))
        keys = {"data_path": str(root), "epochs": 1, "hidden_size": 16, "show_progress": False}
        keys |= {"MAX_ITEM_LIST_LENGTH": 8, "train_batch_size": 64}
        result = run_recbole_tema("TEMA", NAME, config_dict=keys)
        assert 0 <= result["test_result"]["ndcg@10"] <= 1
        assert {f"{domain}/ndcg@10" for domain in domains} <= set(result["test_result"])


@needs_encoder
def test_a_dry_run_asks_and_writes_nothing(tmp_path, encoder):
    dataset = write_shop(tmp_path)
    before, backend = files(dataset.folder), WordBackend(False)
    says, session = tag(dataset, backend, dry=True, prices=(1.0, 2.0))
    assert not backend.asked and files(dataset.folder) == before
    assert "stopped before 'tag'" in says and "104 items" in says
    found = session.estimates["tag"]
    assert found.calls == found.requests == len(dataset.items) and found.cost > 0
    assert found.tokens_out == load_prompt("tag").max_tokens * found.calls
    # With all answers there, a dry run says so.
    tag(dataset, backend)
    assert "nothing would be asked" in tag(dataset, backend, force=True, dry=True)[0]
    # An empty part of another process' answers is no complete one.
    fresh = write_shop(tmp_path / "fresh")
    with AnswerStore(fresh.folder / "llm-answers", (60, 60), readonly=True) as store:
        session = Session(backend, store, progress=False, dry=True)
        assert "stopped" in tag_dataset(fresh, session, "minilm", OPTIONS, False)


@needs_encoder
def test_limit_is_a_trial_that_does_not_count_as_done(tmp_path, encoder):
    dataset = write_shop(tmp_path)
    backend = WordBackend(False)
    tag(dataset, backend, TagOptions(max_share=1.0, limit=5))
    items = cells(dataset.folder)
    assert [bool(tags) for tags in items["tags"]] == [True] * 5 + [False] * (len(items) - 5)
    asked = {user for user in backend.users(Completion) if "Food: " in user}
    assert len(asked) == 5 and not [user for user in backend.users() if "Kitchen: " in user]
    assert not has_llm_tags(dataset)
    before = files(dataset.folder)
    says, _ = tag(dataset, backend, TagOptions(max_share=1.0, limit=4))
    assert "a larger trial, --limit 5, than --limit 4; --force" in says
    assert files(dataset.folder) == before
    tag(dataset, backend)
    assert has_llm_tags(dataset) and all(cells(dataset.folder)["tags"])


@needs_encoder
def test_a_limit_that_leaves_no_item_out_is_no_trial(tmp_path, encoder):
    dataset, backend = write_shop(tmp_path), WordBackend(False)
    tag(dataset, backend, replace(OPTIONS, limit=104))
    assert has_llm_tags(dataset)
    before = files(dataset.folder)
    assert "--force" in tag(dataset, backend, replace(OPTIONS, limit=5))[0]
    assert files(dataset.folder) == before


@needs_encoder
def test_a_trial_of_three_items_says_how_many_have_tags(tmp_path, encoder):
    dataset = write_shop(tmp_path)
    says, _ = tag(dataset, WordBackend(False), TagOptions(limit=3))
    items = cells(dataset.folder)
    used = {token for tags in items["tags"] for token in tags.split()}
    told = rf"(\d+) of 104 items have tags, {len(used)} different ones; the others: 101 beyond "
    found = re.search(told + r"--limit(?:, (\d+) without a tag that fits)?$", says)
    assert int(found[1]) == sum(map(bool, items["tags"])) > 0
    assert int(found[1]) + 101 + int(found[2] or 0) == 104


@needs_encoder
@pytest.mark.parametrize(
    ("options", "advice", "no_advice"),
    [
        (TagOptions(max_share=0.01, limit=30), "raise --max_share", "--min_items"),
        (TagOptions(max_share=1e-9, limit=100), "raise --max_share", "--rounds"),
    ],
)
def test_where_no_tag_is_left_the_cause_is_named(tmp_path, encoder, options, advice, no_advice):
    dataset = write_shop(tmp_path)
    with pytest.raises(DataError, match=advice) as error:
        tag(dataset, WordBackend(False), options)
    assert no_advice not in str(error.value)
    told = re.search(r"no tag is left of (\d+) that the model gave: (.*)", str(error.value))
    said, parts = told.groups()
    numbers = re.findall(r"(?:^|, )(\d+) (?:merged|too|vague|fit)", parts)
    assert sum(map(int, numbers)) == int(said) > 0


@needs_encoder
def test_faults_of_some_items_are_counted_and_the_rest_goes_on(tmp_path, encoder):
    dataset = write_shop(tmp_path)
    says, session = tag(dataset, WordBackend(False, faults=("knife",)))
    assert "of 104 items have" in says
    assert session.tallies["tag"].faults == {"an empty answer": 13}
    assert session.tallies["match"].faults == {"an empty answer": 13}
    report = dataset.path("tags.md").read_text()
    assert "no answer: an empty answer" in report
    assert "because the model scored none: 13." in report
    kept = files(dataset.folder)
    # What failed is asked again; now it is there, and nothing else is asked twice.
    backend = WordBackend(False)
    tag(dataset, backend, force=True)
    first = [user for user in backend.users() if user.startswith("Kitchen: Fine knife")]
    assert len(first) == 13 and files(dataset.folder) != kept


@needs_encoder
@pytest.mark.parametrize("says", [{}, {"Fine": "food food food, B0013JJZWC, 12"}])
def test_a_model_that_says_nothing_leaves_the_dataset_as_it_was(tmp_path, encoder, says):
    dataset = write_shop(tmp_path)
    before = files(dataset.folder)
    with pytest.raises(DataError, match=r"shop\.item: .*no tag.*use a better model"):
        tag(dataset, WordBackend(True, says=says))
    assert files(dataset.folder) == before


@needs_encoder
def test_tags_that_pandas_takes_for_missing_do_not_end_the_run(tmp_path, encoder):
    says = {"tea": "nan, null, N/A, none, tea leaf", "Fine": "NaN, steel thing"}
    dataset = write_shop(tmp_path)
    tag(dataset, WordBackend(True, says=says), TagOptions(max_share=1.0))
    assert set(" ".join(cells(dataset.folder)["tags"]).split()) <= {"tea_leaf", "steel_thing"}


# ---- hard items
