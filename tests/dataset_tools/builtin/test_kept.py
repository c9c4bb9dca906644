"""What commands made for a built-in dataset outlives kills, new builders and lost files.

The built-in dataset is a small one, registered here, with the tags that its "package" ships.
"""

import shutil
from itertools import count

import numpy as np
import pandas as pd
import pytest
import yaml

from dataset_tools.builtin import datasets as builtin
from dataset_tools.builtin.datasets import Builder, ensure_builtin, rebuild_reason
from dataset_tools.dataset.card import changed_files, missing_files
from dataset_tools.dataset.dataset import read_dataset, update_dataset
from dataset_tools.dataset.writer import write_dataset
from recbole_tema.data.feature_file import read_feature
from tests.support.kill_points import killed_at
from tests.support.word_backend import shop_events, shop_items

pytestmark = pytest.mark.long

NAME = "built-shop"
SHIPPED = "language model shipped, prompts tag 1"
PAID = "language model paid for, prompts tag 2, inputs 0123"
SIZE = 3
NOTES = {SHIPPED, "scores", "stand-in", "genres"}


def build(folder, force=False):
    """The builder: every item has one shipped tag; vectors of texts, items and users."""
    items = shop_items()
    ids, events = items["item_id"].tolist(), shop_events(items)
    users = sorted(set(events["user_id"]))
    items = items.assign(tags=[["shipped_tag"]] * len(items), tag_weights=[[1.0]] * len(items))
    notes = dict.fromkeys(["clip_text", "llm_emb", "profile_emb", "tag_emb"], "stand-in")
    card = {
        "source": "made by hand",
        "builder": {"name": "tests", "version": 2},
        "text_vectors": True,
        "generated": notes | {"tags": SHIPPED, "tag_weights": "scores"},
        "tagging": {"by": "the package"},
    }
    return write_dataset(
        folder,
        NAME,
        events,
        items,
        tags=pd.DataFrame(
            {"tag_id": ["shipped_tag"], "tag_domain": [["food"]], "tag_emb": [[0.0] * SIZE]}
        ),
        item_text=(ids, np.zeros((len(ids), SIZE))),
        item_llm=(ids, np.zeros((len(ids), SIZE))),
        user_llm=(users, np.zeros((len(users), SIZE))),
        card=card,
        force=force,
    )


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The built-in dataset as shipped, in its folder."""
    monkeypatch.setitem(builtin.BUILTIN, NAME, Builder(build, 2, lambda: NOTES))
    return ensure_builtin(NAME, tmp_path)


def paid_tags(dataset, tag="paid_tag"):
    """Arguments that give every item a tag of a language model."""
    items = dataset.items.copy()
    items["tags"] = [[tag] for _ in items.index]
    items["tag_weights"] = [[0.5] for _ in items.index]
    return {
        "items": items,
        "tags": pd.DataFrame(
            {"tag_id": [tag], "tag_domain": [["food"]], "tag_emb": [[1.0] * SIZE]}
        ),
        "generated": {"tags": PAID, "tag_weights": "scores", "tag_emb": "an encoder"},
        "notes": {"tagging": {"by": "the user"}},
    }


def paid_texts(dataset):
    """Arguments that give every item a text of a language model."""
    return {
        "items": dataset.items.assign(augmented_text=[f"of {i}" for i in dataset.items["item_id"]]),
        "generated": {"augmented_text": PAID},
        "notes": {"augmenting": {"options": {"limit": None}}},
    }


def paid_vectors(value=1.0):
    """Arguments for vectors of two items and two users, and of one image."""
    two = np.full((2, SIZE), value)
    return {
        "features": {
            "itemllm": (["f0", "k1"], two),
            "userllm": (["u5", "u6"], two),
            "itemimage": (["f0"], two[:1]),
        },
        "generated": dict.fromkeys(["llm_emb", "profile_emb", "clip_image"], PAID),
        "notes": {"profiling": {"options": {"parts": 4}}},
    }


@pytest.fixture
def enriched(shop):
    """The dataset with paid tags and vectors."""
    dataset = read_dataset(shop, NAME)
    update_dataset(dataset, **paid_tags(dataset))
    update_dataset(dataset, **paid_vectors())
    return shop


def contents(folder):
    """Every file of the dataset, without hidden ones and folders."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".")
    }


def edit_card(folder, **changes):
    path = folder / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def tags_of(folder):
    return set(read_dataset(folder, NAME).column("tags"))


def former(folder, n=1):
    """Names of what a build set aside."""
    return sorted(path.name for path in (folder / f"{NAME}.former-{n}").iterdir())


def assert_kept(folder, *fields):
    """The paid `fields` are in the dataset, and all of it is as its card says."""
    dataset = read_dataset(folder, NAME)
    assert rebuild_reason(NAME, folder) is None
    assert missing_files(folder, dataset.card) == changed_files(folder, dataset.card) == []
    assert dataset.card["builder"]["version"] == 2
    for field in fields:
        assert dataset.generated(field) == PAID
    if "tags" in fields:
        assert tags_of(folder) == {"paid_tag"} and set(dataset.column("tag_weights")) == {"0.5"}
        assert read_feature(dataset.path("tag")).tokens == ["paid_tag"]
        assert dataset.card["tagging"] == {"by": "the user"}
    if "profile_emb" in fields:
        assert read_feature(dataset.path("userllm")).tokens == ["u5", "u6"]
        assert dataset.card["profiling"] == {"options": {"parts": 4}}
    if "llm_emb" in fields:
        assert read_feature(dataset.path("itemllm")).tokens == ["f0", "k1"]
    if "clip_image" in fields:
        assert read_feature(dataset.path("itemimage")).tokens == ["f0"]


ALL = ("tags", "llm_emb", "profile_emb", "clip_image")


def test_a_kill_while_it_is_updated_never_brings_the_shipped_fields_back(enriched, tmp_path):
    """At any moment: what was paid for before the update, or what the update brought."""
    again = {**paid_vectors(2.0), **paid_tags(read_dataset(enriched, NAME), "new_tag")}
    again["generated"] = dict.fromkeys([*ALL, "tag_emb"], PAID)
    shutil.copytree(enriched, tmp_path / "whole" / NAME)
    update_dataset(read_dataset(tmp_path / "whole" / NAME, NAME), **again)
    old, new = contents(enriched), contents(tmp_path / "whole" / NAME)
    ends = []
    for n in count(1):
        root = tmp_path / str(n)
        shutil.copytree(enriched, root / NAME)
        opened = read_dataset(root / NAME, NAME)
        killed = killed_at(n, lambda opened=opened: update_dataset(opened, **again))
        assert old.keys() <= contents(root / NAME).keys() <= new.keys()
        ensure_builtin(NAME, root)
        found = contents(root / NAME)
        assert found in (old, new) and not list((root / NAME).glob("*former*"))
        ends.append(found == new)
        if not killed:
            break
    assert ends == sorted(ends) and ends.count(False) > 5 and ends.count(True) > 5


def test_a_kill_while_it_is_built_again_loses_nothing(enriched, tmp_path, monkeypatch):
    build(tmp_path / "plain")

    def copied(folder, force=False):  # a builder has no moment at which the old files are touched
        shutil.copytree(tmp_path / "plain", folder, dirs_exist_ok=True)

    monkeypatch.setitem(builtin.BUILTIN, NAME, Builder(copied, 2, lambda: NOTES))
    edit_card(enriched, builder={"name": "tests", "version": 1})
    for n in count(1, 2):
        root = tmp_path / str(n)
        shutil.copytree(enriched, root / NAME)
        killed = killed_at(n, lambda root=root: ensure_builtin(NAME, root))
        ensure_builtin(NAME, root)
        assert_kept(root / NAME, *ALL)
        assert not list((root / NAME).glob(f".{NAME}.staging-*"))
        if not killed:
            break
    assert n > 20


def test_a_kill_while_it_is_built_first_leaves_nothing_to_set_aside(shop, tmp_path):
    whole = contents(shop)
    for n in count(1, 3):
        root = tmp_path / str(n)
        killed = killed_at(n, lambda root=root: ensure_builtin(NAME, root))
        ensure_builtin(NAME, root)
        assert contents(root / NAME) == whole and not list((root / NAME).glob("*former*"))
        if not killed:
            break
    assert n > 20


@pytest.mark.parametrize("version", [1, 3, None])
def test_another_version_of_the_builder_keeps_what_was_made(enriched, version, caplog):
    caplog.set_level("INFO")
    before = contents(enriched)
    edit_card(enriched, builder={"name": "tests", "version": version})
    ensure_builtin(NAME, enriched.parent)
    assert_kept(enriched, *ALL)
    after = contents(enriched)
    assert {f for f in before if before[f] != after[f]} <= {f"{NAME}.yaml"}
    assert "kept as they were: llm_emb" in caplog.text
    assert not list(enriched.glob("*former*"))


def test_what_a_former_builder_shipped_is_nobodys_and_goes(shop):
    good = contents(shop)
    dataset = read_dataset(shop, NAME)
    update_dataset(dataset, **(paid_tags(dataset) | {"generated": {"tags": "genres"}}))
    edit_card(shop, builder={"name": "tests", "version": 1})
    ensure_builtin(NAME, shop.parent)
    assert contents(shop) == good and not list(shop.glob("*former*"))


def test_lost_interactions_come_back_and_all_else_stays(enriched):
    before = contents(enriched)
    (enriched / f"{NAME}.inter").unlink()
    ensure_builtin(NAME, enriched.parent)
    assert_kept(enriched, *ALL)
    after = contents(enriched)
    assert {f for f in before if before[f] != after[f]} <= {f"{NAME}.yaml"}


def test_lost_items_take_their_tags_along_and_nothing_else(enriched, caplog):
    (enriched / f"{NAME}.item").unlink()
    ensure_builtin(NAME, enriched.parent)
    assert_kept(enriched, "llm_emb", "profile_emb", "clip_image")
    assert tags_of(enriched) == {"shipped_tag"}
    assert read_dataset(enriched, NAME).card["tagging"] == {"by": "the package"}
    assert former(enriched) == [f"{NAME}.tag", f"{NAME}.yaml"]
    assert f"kept in {NAME}.former-1: {NAME}.tag" in caplog.text


def test_a_lost_file_of_the_builder_comes_back(enriched):
    (enriched / f"{NAME}.itemtext").unlink()
    assert rebuild_reason(NAME, enriched) == f"{NAME}.itemtext missing"
    ensure_builtin(NAME, enriched.parent)
    assert_kept(enriched, *ALL)


@pytest.mark.parametrize("suffix", ["itemllm", "userllm", "itemimage", "tag"])
def test_a_lost_file_that_was_paid_for_is_named_and_no_reason_to_build(enriched, suffix, caplog):
    path = enriched / f"{NAME}.{suffix}"
    path.unlink()
    before = contents(enriched)
    ensure_builtin(NAME, enriched.parent)
    assert contents(enriched) == before
    assert f"{NAME}.{suffix} missing; 'python -m dataset_tools enrich {NAME}'" in caplog.text


def test_damaged_vectors_are_set_aside(enriched, caplog):
    path = enriched / f"{NAME}.itemllm"
    path.write_text("llm_iid:token\tllm_emb:float_seq\nf0\tone two\n")
    edit_card(enriched, builder={"name": "tests", "version": 1})
    ensure_builtin(NAME, enriched.parent)
    assert_kept(enriched, "tags", "profile_emb", "clip_image")
    assert read_dataset(enriched, NAME).generated("llm_emb") == "stand-in"
    assert former(enriched) == [f"{NAME}.itemllm", f"{NAME}.yaml"]
    assert ".itemllm does not go with the new build" in caplog.text and "line 2" in caplog.text


def test_force_gives_the_shipped_dataset_and_sets_the_rest_aside(enriched, shop, caplog):
    ensure_builtin(NAME, enriched.parent, force=True)
    shutil.rmtree(enriched.parent / "other", ignore_errors=True)
    assert contents(enriched) == contents(ensure_builtin(NAME, enriched.parent / "other"))
    files = [f"{NAME}.{s}" for s in ("item", "itemimage", "itemllm", "tag", "userllm", "yaml")]
    assert former(enriched) == files
    ensure_builtin(NAME, enriched.parent, force=True)
    assert len(list(enriched.glob("*former*"))) == 1  # nothing more was to be lost


def test_without_a_card_every_file_that_the_build_does_not_give_back_is_set_aside(enriched):
    (enriched / f"{NAME}.yaml").unlink()
    ensure_builtin(NAME, enriched.parent)
    assert tags_of(enriched) == {"shipped_tag"}
    names = [f"{NAME}.{s}" for s in ("item", "itemimage", "itemllm", "tag", "userllm")]
    assert former(enriched) == names


def test_items_changed_by_hand_are_set_aside_when_built_again(enriched):
    path = enriched / f"{NAME}.item"
    path.write_text(path.read_text().replace("Fine tea", "Good tea"))
    edit_card(enriched, builder={"name": "tests", "version": 1})
    ensure_builtin(NAME, enriched.parent)
    assert_kept(enriched, *ALL)
    assert "Good tea" not in path.read_text()
    assert "Good tea" in (enriched / f"{NAME}.former-1" / f"{NAME}.item").read_text()


@pytest.mark.parametrize("tags", [False, True])
def test_texts_that_a_model_wrote_come_over_into_a_new_build(shop, tags):
    dataset = read_dataset(shop, NAME)
    if tags:
        update_dataset(dataset, **paid_tags(dataset))
    update_dataset(dataset, **paid_texts(dataset))
    edit_card(shop, builder={"name": "tests", "version": 1})
    ensure_builtin(NAME, shop.parent)
    assert_kept(shop, "augmented_text", *(["tags"] if tags else []))
    dataset = read_dataset(shop, NAME)
    assert dataset.column("augmented_text") == [f"of {i}" for i in dataset.column("item_id")]
    assert dataset.card["augmenting"] == {"options": {"limit": None}}
    assert tags or tags_of(shop) == {"shipped_tag"}
    assert not (shop / f"{NAME}.former-1").exists()
