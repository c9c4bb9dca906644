"""Targets of one domain, and baselines that learn from that domain alone."""

import numpy as np
import pytest

from recbole_tema import run_recbole_tema
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.errors import ConfigError, DataError
from recbole_tema.quick_start import rank_checkpoint
from tests.support.tiny_dataset import make_dataset, write

pytestmark = pytest.mark.long


def prepared(settings, model, **keys):
    config = TemaConfig(model, "tiny", config_dict={**settings, **keys})
    data = create_dataset(config, config.model_class)
    return config, data, data_preparation(config, data, config.model_class)


@pytest.mark.parametrize("mode", ["full", "uni5"])
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("model", ["TEMA", "SASRec", "BPR"])
def test_targets_of_one_domain_keep_their_candidates(settings, model, mode, exclude):
    keys = {"eval_args": {"mode": mode}, "exclude_history": exclude}
    whole = run_recbole_tema(model, "tiny", config_dict={**settings, **keys, "epochs": 1})
    ranked = rank_checkpoint(whole["model_file"])
    for domain in ("book", "film"):
        part = rank_checkpoint(whole["model_file"], {"target_domain": domain})
        for phase, (metrics, ranks, plan, data) in part.items():
            _, all_ranks, everyone, _ = ranked[phase]
            inside = everyone.target_domain == data.domain_names.index(domain) + 1
            assert 0 < inside.sum() < len(inside)
            assert np.array_equal(plan.users, everyone.users[inside])
            assert np.array_equal(ranks, all_ranks[inside])
            assert metrics["ndcg@3"] == metrics[f"{domain}/ndcg@3"]
            assert metrics["ndcg@3"] == ranked[phase][0][f"{domain}/ndcg@3"]


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_a_single_domain_baseline_sees_its_domain_only(settings, tmp_path, model):
    make_dataset(tmp_path, n_users=80, max_events=5)  # some have nothing else in the domain
    keys = {"target_domain": "film", "train_on": "target", "data_path": str(tmp_path)}
    _, data, ready = prepared(settings, model, **keys)
    film = data.domain_names.index("film") + 1
    train = ready.train_data.dataset.inter_feat
    rows = set()
    for user in range(1, data.user_num):
        items = data.sequences.of(user).tolist()
        kept = items if len(items) < 3 else items[: max(2, len(items) - 2)]
        kept = [item for item in kept if data.item_domain[item] == film]
        rows |= {(user, item, tuple(kept[:at][-8:])) for at, item in enumerate(kept) if at}
    columns = (train["user_id"], train["item_id"], train["item_id_list"], train["item_length"])
    found = [
        (int(u), int(i), tuple(h[: int(n)].tolist())) for u, i, h, n in zip(*columns, strict=True)
    ]
    assert len(found) == len(set(found)) == len(rows) and set(found) == rows
    for phase, last in (("valid", 2), ("test", 1)):
        plan = ready.plans[phase]
        histories = {}
        for rows_, batch in ready.eval_data[phase]:
            for row, h, n in zip(rows_, batch["item_id_list"], batch["item_length"], strict=True):
                histories[int(plan.users[row])] = h[: int(n)].tolist()
        assert len(histories) == len(plan) > 0
        empty = 0
        for user, history in histories.items():
            items = data.sequences.of(user).tolist()
            before = [i for i in items[: len(items) - last] if data.item_domain[i] == film][-8:]
            empty += not before
            assert history == (before or [0])
        assert empty  # such users are in the data, and ranked


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec", "FPMC", "BPR", "LightGCN", "Pop"])
def test_single_domain_baselines_run_on_the_same_targets(settings, model):
    keys = {"target_domain": "film", "train_on": "target"}
    result = run_recbole_tema(model, "tiny", config_dict={**settings, **keys})
    other = run_recbole_tema("Pop", "tiny", config_dict=settings)
    mine = rank_checkpoint(result["model_file"])["test"][2]
    _, _, plan, data = rank_checkpoint(other["model_file"])["test"]
    inside = plan.target_domain == data.domain_names.index("film") + 1
    assert np.array_equal(mine.targets, plan.targets[inside])


def test_negatives_of_a_single_domain_baseline_are_of_its_domain(settings):
    keys = {"target_domain": "film", "train_on": "target"}
    _, data, ready = prepared(settings, "BPR", **keys)
    film = data.domain_names.index("film") + 1
    for batch in ready.train_data:
        for field in ("item_id", "neg_item_id"):
            assert (data.item_domain[batch[field].numpy()] == film).all()


def shop(root, events):
    """A dataset of users u0, u1, ... with these items each, named by the first letter's domain."""
    folder = root / "shop"
    folder.mkdir()
    rows = [(f"u{u}", item, at) for u, items in enumerate(events) for at, item in enumerate(items)]
    heads = ["user_id:token", "item_id:token", "timestamp:float"]
    write(folder / "shop.inter", heads, rows)
    names = {"b": "book", "f": "film"}
    items = sorted({item for _, item, _ in rows})
    columns = ["item_id:token", "domain:token"]
    write(folder / "shop.item", columns, [(item, names[item[0]]) for item in items])


@pytest.mark.parametrize("model", ["SASRec", "BPR", "Pop"])
def test_a_domain_that_nobody_is_tested_in(settings, tmp_path, model):
    """There are films to learn from, and every target is a book."""
    shop(tmp_path, [[*(f"f{u + n}" for n in range(3)), f"b{u % 3}", f"b{u % 4}"] for u in range(9)])
    keys = {**settings, "data_path": str(tmp_path), "train_on": "target"}
    result = run_recbole_tema(model, "shop", config_dict={**keys, "target_domain": "film"})
    ranked = rank_checkpoint(result["model_file"])
    assert [len(ranked[phase][1]) for phase in ("valid", "test")] == [0, 0]


def test_validation_targets_without_any_history(settings, tmp_path):
    """Each user has the one book to validate on, or none before it: still ranked."""
    shop(
        tmp_path,
        [["f1", f"f{u}", f"b{u}", f"f{u + 1}"] for u in range(2, 7)] + [["b1", "b2", "f1", "f2"]],
    )
    keys = {"data_path": str(tmp_path), "train_on": "target", "target_domain": "book"}
    config = TemaConfig("SASRec", "shop", config_dict={**settings, **keys})
    data = create_dataset(config, config.model_class)
    ready = data_preparation(config, data, config.model_class)
    assert len(ready.plans["valid"]) == 5 and len(ready.plans["test"]) == 0
    for _, batch in ready.eval_data["valid"]:
        assert batch["item_length"].eq(1).all() and batch["item_id_list"].eq(0).all()


def test_nothing_to_learn_in_a_domain(settings, tmp_path):
    shop(tmp_path, [["f1", f"f{u}", "f3", f"b{u}"] for u in range(4, 9)])
    keys = {"data_path": str(tmp_path), "train_on": "target", "target_domain": "book"}
    with pytest.raises(DataError, match="no user of dataset 'shop' has two training events in"):
        run_recbole_tema("SASRec", "shop", config_dict={**settings, **keys})


@pytest.mark.parametrize("model, keys", [("BPR", {}), ("GRU4Rec", {"loss_type": "BPR"})])
def test_negatives_by_popularity_know_nothing_of_held_out_events(settings, tmp_path, model, keys):
    make_dataset(tmp_path, n_users=12, items_per_domain=40)
    popular = {"train_neg_sample_args": {"distribution": "popularity", "sample_num": 4}}
    keys = {**keys, **popular, "data_path": str(tmp_path)}
    _, data, ready = prepared(settings, model, **keys)
    learnt = set(data.train_sequences.items.tolist())
    held_out = set(data.sequences.items.tolist()) - learnt
    drawn = set()
    for _ in range(20):
        for batch in ready.train_data:
            drawn |= set(batch["neg_item_id"].tolist())
    assert len(held_out) > 5 and len(drawn) > 10
    assert drawn <= learnt


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        ("TEMA", {"train_on": "target", "target_domain": "film"}, "train_on is 'target'.*merged"),
        ("BPR", {"train_on": "target"}, "train_on is 'target'.*target_domain names a domain"),
        (
            "BPR",
            {
                **{"train_on": "target", "target_domain": "film"},
                "train_neg_sample_args": {"distribution": "popularity"},
            },
            "a uniform distribution",
        ),
        ("BPR", {"train_on": "source"}, "train_on is 'source'.*merged, target"),
        ("BPR", {"target_domain": "flim"}, "target_domain is 'flim'; the domains"),
        (
            "BPR",
            {"train_on": "target", "target_domain": "film", "candidates": "all"},
            "candidates is 'all'.*in_domain",
        ),
    ],
)
def test_refusals(settings, model, keys, message):
    with pytest.raises(ConfigError, match=message):
        run_recbole_tema(model, "tiny", config_dict={**settings, **keys})
