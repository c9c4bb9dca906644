"""Rewriting a part of a dataset: the rest stays as it is, byte for byte, whatever happens."""

import hashlib
import os
import shutil
from itertools import count

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dataset_tools.dataset import dataset as update
from dataset_tools.dataset.card import changed_files, missing_files, read_card
from dataset_tools.dataset.dataset import read_dataset, training_events, update_dataset
from dataset_tools.dataset.writer import prepared_folder
from recbole_tema.data.feature_file import TWIN_SUFFIX, read_feature
from recbole_tema.data.sequences import build_sequences
from recbole_tema.data.split import read_rule
from recbole_tema.errors import DataError
from tests.support.kill_points import killed_at
from tests.support.word_backend import NAME, shop_items, write_shop

IDS = ["f0", "k3"]
OLD = np.float32([[1, 2], [3, 4]])
NEW = np.float32([[5, 6, 7], [8, 9, 10]])


@pytest.fixture
def dataset(tmp_path):
    items = shop_items().assign(price=1.5, color="red")
    return write_shop(tmp_path, items=items, item_text=(IDS, OLD), item_llm=(IDS, OLD))


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def tagged(dataset, tag="hot_drink"):
    """Arguments that give every item one tag."""
    items = dataset.items.copy()
    items["tags"] = [[tag] for _ in items.index]
    items["tag_weights"] = [[1.0] for _ in items.index]
    table = pd.DataFrame({"tag_id": [tag], "tag_domain": [["food"]], "tag_emb": [[1.0, 0.0]]})
    return {"items": items, "tags": table, "generated": {"tags": "by a test"}}


def test_only_what_is_given_changes(dataset):
    before = contents(dataset.folder)
    made = {"generated": {"llm_emb": "anew"}, "notes": {"trial": {"n": 1}}}
    card = update_dataset(dataset, features={"itemllm": (IDS, NEW)}, **made)
    after = contents(dataset.folder)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed - {f"{NAME}.itemllm{TWIN_SUFFIX}"} == {f"{NAME}.itemllm", f"{NAME}.yaml"}
    assert card == dataset.path("yaml")
    assert np.array_equal(read_feature(dataset.path("itemllm")).values, NEW)
    assert np.array_equal(read_feature(dataset.path("itemtext")).values, OLD)
    assert dataset.generated("llm_emb") == "anew" and dataset.card["trial"] == {"n": 1}


def test_the_card_has_the_hash_of_every_file(dataset):
    old = yaml.safe_load(dataset.path("yaml").read_text())
    update_dataset(dataset, reports={f"{NAME}.tags.md": "text\n"}, **tagged(dataset))
    card = yaml.safe_load(dataset.path("yaml").read_text())
    assert card["source"] == old["source"] and card["counts"] == old["counts"]
    assert set(card["files"]) == {
        f"{NAME}.{s}" for s in ("inter", "item", "itemtext", "itemllm", "tag")
    }
    for name, stated in card["files"].items():
        content = (dataset.folder / name).read_bytes()
        assert stated == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert dataset.path("tags.md").read_text() == "text\n"


def test_other_columns_of_the_items_stay(dataset):
    before = dataset.path("item").read_text().splitlines()
    update_dataset(dataset, **tagged(dataset))
    after = dataset.path("item").read_text().splitlines()
    assert after[0] == before[0] + "\ttags:token_seq\ttag_weights:float_seq"
    assert after[1:] == [f"{line}\thot_drink\t1" for line in before[1:]]
    again = read_dataset(dataset.folder, NAME)
    assert again.items.equals(dataset.items) and again.item_types == dataset.item_types
    # Tags again: the columns are replaced where they stand.
    update_dataset(again, **tagged(again, "tea"))
    assert dataset.path("item").read_text().splitlines()[0] == after[0]
    assert set(again.column("tags")) == {"tea"}


def test_what_another_command_wrote_meanwhile_stays_in_the_card(dataset):
    other = read_dataset(dataset.folder, NAME)
    update_dataset(other, features={"itemllm": (IDS, NEW)}, generated={"llm_emb": "by the other"})
    update_dataset(dataset, **tagged(dataset))
    assert dataset.generated("llm_emb") == "by the other" and dataset.generated("tags")
    assert changed_files(dataset.folder, dataset.card) == []


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, OSError, DataError])
@pytest.mark.parametrize("place", ["write_cells", "install"])
def test_an_exception_in_the_middle_leaves_the_old_files(dataset, monkeypatch, error, place):
    before = contents(dataset.folder)

    def fail(*_):
        raise error("stopped")

    monkeypatch.setattr(update, place, fail)
    with pytest.raises(DataError if error is OSError else error):
        update_dataset(
            dataset, features={"itemllm": (IDS, NEW)}, reports={"x.md": "x"}, **tagged(dataset)
        )
    assert contents(dataset.folder) == before
    assert not list(dataset.folder.glob(".*staging*"))
    assert "tags" not in dataset.items and not dataset.generated("tags")


def all_new(dataset):
    """Arguments that replace tags and vectors, and write a report."""
    return tagged(dataset, "tea") | {
        "features": {"itemllm": (IDS, NEW)},
        "generated": {"tags": "anew", "llm_emb": "anew"},
        "reports": {f"{NAME}.tags.md": "text\n"},
    }


def test_a_kill_at_any_moment_leaves_all_of_the_old_or_all_of_the_new(dataset, tmp_path):
    update_dataset(dataset, **tagged(dataset))
    arguments = all_new(dataset)
    shutil.copytree(dataset.folder, tmp_path / "whole")
    update_dataset(read_dataset(tmp_path / "whole", NAME), **arguments)
    old, new = contents(dataset.folder), contents(tmp_path / "whole")
    assert old != new
    ends = []
    for n in count(1):
        folder = tmp_path / str(n)
        shutil.copytree(dataset.folder, folder)
        opened = read_dataset(folder, NAME)
        killed = killed_at(n, lambda opened=opened: update_dataset(opened, **arguments))
        left = contents(folder)
        assert old.keys() <= left.keys() <= new.keys()  # no file is away at any moment
        assert all(data in (old.get(file), new[file]) for file, data in left.items())
        again = read_dataset(folder, NAME)
        found = contents(folder)
        assert found in (old, new)
        assert missing_files(folder, again.card) == changed_files(folder, again.card) == []
        ends.append(found == new)
        update_dataset(again, **arguments)
        assert contents(folder) == new
        assert not list(folder.glob(".*.tmp")) and not list(folder.glob(".*.staging-*"))
        if not killed:
            break
    # Old up to the one renaming that counts, new from there on, and that with files still to move.
    assert ends == sorted(ends) and ends.count(False) > 5 and ends.count(True) > 5


def half_moved(dataset):
    """Leave an update of `dataset` that a kill ended when one file was in place."""
    opened, before = read_dataset(dataset.folder, NAME), contents(dataset.folder)
    for n in count(1):
        assert killed_at(n, lambda: update_dataset(opened, **all_new(opened)))
        if contents(dataset.folder) != before:
            return before


def test_a_folder_that_cannot_be_written_is_read_as_it_is(dataset, monkeypatch, caplog):
    half_moved(dataset)
    left = contents(dataset.folder)

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    assert read_dataset(dataset.folder, NAME).items.shape[0] == 104
    assert "cannot be completed: " in caplog.text and contents(dataset.folder) == left
    monkeypatch.undo()
    assert read_dataset(dataset.folder, NAME).generated("llm_emb") == "anew"


def test_a_replaced_dataset_gets_nothing_of_the_formers_update(dataset):
    half_moved(dataset)
    assert prepared_folder(dataset.folder, NAME).is_dir()
    again = write_shop(dataset.folder.parent, item_text=(IDS, OLD), force=True)
    assert not again.generated("llm_emb") and not again.path("itemllm").exists()
    assert missing_files(again.folder, again.card) == changed_files(again.folder, again.card) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            {"features": {"itemllm": (["f0", "zz"], OLD)}},
            "ids are no item of the dataset, e.g. 'zz'",
        ),
        ({"features": {"userllm": (["f0"], OLD[:1])}}, "ids are no user of the dataset"),
        ({"features": {"itemllm": (IDS, OLD * np.nan)}}, "itemllm"),
        ({"tags": pd.DataFrame({"tag_id": ["a"]})}, "no column 'tag_domain'"),
    ],
)
def test_wrong_features_change_nothing(dataset, arguments, says):
    before = contents(dataset.folder)
    with pytest.raises(DataError, match=says):
        update_dataset(dataset, generated={}, **arguments)
    assert contents(dataset.folder) == before


def test_a_tag_that_is_not_in_the_table_is_refused(dataset):
    arguments = tagged(dataset)
    arguments["tags"] = arguments["tags"].assign(tag_id=["other"])
    with pytest.raises(
        DataError, match=r"tags of items are not in the tags table, e\.g\. 'hot_drink'"
    ):
        update_dataset(dataset, **arguments)


def test_a_folder_without_a_card_gets_one(dataset):
    dataset.path("yaml").unlink()
    again = read_dataset(dataset.folder, NAME)
    update_dataset(again, **tagged(again))
    assert "not stated" in read_card(dataset.folder, NAME)["source"]


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=40
    )
)
def test_training_events_are_all_but_the_targets(rows):
    """Against the split of the training program: no target is left, and all others are."""
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    events["place"] = range(len(events))
    left = training_events(events)
    users, times = events["user_id"].to_numpy(), events["timestamp"].to_numpy(np.float64)
    order, sequences = build_sequences(users, events["item_id"].to_numpy(), times, 5)
    held = set()  # RecBole's rule: the last, and the one before of four and more
    for user in range(5):
        mine = order[sequences.offsets[user] : sequences.offsets[user + 1]].tolist()
        held |= set(mine[-2:] if len(mine) > 3 else mine[-1:] if len(mine) == 3 else [])
    assert set(left["place"]) == set(events["place"]) - held
    for user in range(5):
        mine = events[events["user_id"] == user].sort_values("timestamp", kind="stable")["place"]
        assert left.loc[left["user_id"] == user, "place"].tolist() == [
            place for place in mine if place not in held
        ]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 5)), min_size=9, max_size=40
    )
)
def test_training_events_of_other_splits_by_hand(rows):
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    events["place"] = range(len(events))
    domain_of = {item: "even" if item % 2 == 0 else "odd" for item in range(8)}
    in_time = events.sort_values("timestamp", kind="stable")

    left = training_events(events, read_rule({"LS": "per_domain"}), domain_of)
    expected = []
    for _, mine in in_time.groupby([in_time["user_id"], in_time["item_id"] % 2]):
        n = len(mine)
        expected += mine["place"].tolist()[: n - 2 if n > 3 else n - 1 if n == 3 else n]
    assert sorted(left["place"]) == sorted(expected)

    left = training_events(events, read_rule({"TO": [2, 4]}), domain_of)
    assert left["place"].tolist() == in_time.loc[in_time["timestamp"] < 2, "place"].tolist()

    marked = events.assign(split=np.select([events["timestamp"] < 2, events["timestamp"] < 4],
                                           ["train", "valid"], "test"))  # fmt: skip
    if set(marked["split"]) == {"train", "valid", "test"}:
        again = training_events(marked, read_rule({"given": "split"}), domain_of)
        assert again["place"].tolist() == left["place"].tolist()
