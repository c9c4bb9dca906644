"""`exclude_history`: what `auto` comes to, and targets that their users had before."""

import re
import shutil

import numpy as np
import pytest

from recbole_tema import load_model, recommend, run_recbole_tema
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset
from recbole_tema.quick_start import evaluate_checkpoint, rank_checkpoint
from recbole_tema.trainer.checkpoint import read_checkpoint
from tests.recbole_tema.data.test_train_on import shop
from tests.support.cdr_checkout import write_checkout

pytestmark = pytest.mark.long

MODELS = [
    ("TEMA", {}),
    ("SASRec", {}),
    ("FPMC", {}),
    ("BPR", {}),
    ("Pop", {}),
    ("SASRec", {"target_domain": "film", "train_on": "target"}),
    ("TEMA", {"target_domain": "film"}),
    ("EMCDR", {"target_domain": "film", "latent_factor_model": "BPR"}),
]


def walks(n_users, length, n_items=60):
    """Users through books and films in turn, no item twice."""
    return [
        [f"{'bf'[at % 2]}{(7 * user + at // 2) % n_items}" for at in range(length)]
        for user in range(n_users)
    ]


@pytest.fixture
def repeated(settings, tmp_path):
    """Keys of a dataset whose held-out events come again, and none of whose training events do.

    Test targets are films, validation targets are books. Of users 0 to 3 the test target is an
    item that they had before, of users 2 to 6 the validation target is one.
    """
    events = walks(12, 8, n_items=10)
    for user in range(4):
        events[user][7] = events[user][1]
    for user in range(2, 7):
        events[user][6] = events[user][0]
    # Of user 11 the targets are of the other domain each, new to the user.
    events[11][6:] = events[11][:5:-1]
    shop(tmp_path, events)
    return {**settings, "data_path": str(tmp_path), "epochs": 1, "state": "info"}


@pytest.mark.parametrize("mode", ["full", "uni3"])
@pytest.mark.parametrize(("model", "keys"), MODELS, ids=str)
def test_every_model_leaves_the_same_targets_out(repeated, tmp_path, caplog, model, keys, mode):
    if model == "EMCDR":
        pytest.importorskip("recbole_cdr")
        keys = {**keys, "recbole_cdr_path": str(write_checkout(tmp_path / "checkout"))}
        del repeated["hidden_size"]
    caplog.set_level("INFO")  # pytest's handlers keep RecBole from setting it
    keys = {**repeated, **keys, "eval_args": {"mode": mode}}
    result = run_recbole_tema(model, "shop", config_dict=keys)
    one_domain = "target_domain" in keys
    # Films: 4 of 11 test targets were had before, no validation target (of user 11) was.
    told = re.findall(r"^(.*): (\d+) of (\d+) targets left out", "\n".join(caplog.messages), re.M)
    expected = [("test", "4", "11")] if one_domain else [("valid", "5", "12"), ("test", "4", "12")]
    if model == "EMCDR":  # learns in the source, the books, first
        expected.append(("source valid", "5", "11"))
    assert told == expected
    left = {"test": {*range(4, 11)} if one_domain else {*range(4, 12)}}
    left["valid"] = {11} if one_domain else {0, 1, *range(7, 12)}
    line = next(line for line in result["table"].splitlines() if line.startswith("overall"))
    assert int(line.split()[-1]) == len(left["test"])
    for phase, (metrics, ranks, plan, data) in rank_checkpoint(result["model_file"]).items():
        users = data.field2id_token["user_id"][plan.users]
        assert {int(user[1:]) for user in users} == left[phase] and len(ranks) == len(users)
        assert metrics["hit@3"] == pytest.approx((ranks < 3).mean(), abs=1e-6)
    with_past = rank_checkpoint(result["model_file"], {"exclude_history": False})
    assert len(with_past["test"][1]) == (11 if one_domain else 12)
    assert not len(with_past["test"][2].left_out)


def test_a_phase_all_of_whose_targets_are_left_out(settings, tmp_path, caplog):
    shop(tmp_path, [[*row[:5], row[2], row[1]] for row in walks(9, 5)])
    keys = {**settings, "data_path": str(tmp_path), "epochs": 1, "exclude_history": True}
    for model in ("TEMA", "SASRec", "BPR"):
        result = run_recbole_tema(model, "shop", config_dict=keys)
        assert result["test_result"] == {} and not result["best_valid_result"]
        assert (
            "test: no user has a target, so there are no metrics; exclude_history leaves 9 out"
            in (caplog.messages)
        )
        caplog.clear()


@pytest.mark.parametrize("repeats", [0, 1, 2])
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("TEMA", {}),
        ("TEMA", {"overlap_ratio": 0.0}),
        ("SASRec", {"target_domain": "film", "train_on": "target"}),
        ("Pop", {"overlap_ratio": 0.5, "seed": 7}),
    ],
    ids=str,
)
def test_auto_is_fewer_than_one_in_a_thousand(
    settings, tmp_path, caplog, model, keys, repeats, more
):
    """1,000 or 1,002 training events; held-out events and what is thinned count for nothing."""
    events = walks(10, 102)
    for user in range(repeats):
        events[user][50] = events[user][3]
    for row in events:  # 20 held-out repeats
        row[100:] = row[:2]
    if more:
        events.append(["b1", "f1", "b1"])  # two of three are training events
    shop(tmp_path, events)
    caplog.set_level("INFO")
    config = TemaConfig(model, "shop", config_dict={**settings, **keys, "data_path": str(tmp_path)})
    data = create_dataset(config, config.model_class)
    few = repeats == 0 or (repeats == 1 and more)
    assert data.exclude_history is few and config["exclude_history"] == "auto"
    words = "fewer than one in a thousand" if few else "one in a thousand or more"
    assert (
        f"exclude_history is {few} (auto): {words}, {repeats} of {1002 if more else 1000} training "
        f"events, repeat an item of the user's own past"
    ) in caplog.messages
    for given in (True, False):
        config["exclude_history"] = given
        assert create_dataset(config, config.model_class).exclude_history is given
        words = f"exclude_history is {given} (as given): {repeats} of 10"
        assert any(line.startswith(words) for line in caplog.messages)


@pytest.mark.parametrize("model", ["TEMA", "BPR"])
def test_a_checkpoint_keeps_what_was_given_and_what_it_came_to(repeated, tmp_path, model):
    result = run_recbole_tema(model, "shop", config_dict=repeated)
    state = read_checkpoint(result["model_file"])
    assert state["config"]["exclude_history"] == "auto" and state["exclude_history"] is True
    network = load_model(result["model_file"])[2]
    own = {f"f{i}" for i in (7, 8, 9)} | {f"b{i}" for i in (7, 8, 9, 0)}
    (served,) = recommend(network, users=["u1"], k=50)
    assert own.isdisjoint(token for token, _ in served) and len(served) == 20 - len(own)
    assert len(recommend(network, users=["u1"], k=50, exclude_history=False)[0]) == 20
    # Later events of the same users and items, much of which comes again.
    path = tmp_path / "shop" / "shop.inter"
    with open(path, "a") as file:
        file.writelines(
            f"u{user}\tb{user % 4}\t{100 + n}\n" for user in range(12) for n in range(5)
        )
    config = TemaConfig(model, "shop", config_dict=repeated)
    assert create_dataset(config, config.model_class).exclude_history is False
    network = load_model(result["model_file"])[2]
    assert network.dataset.exclude_history is True  # as the model was evaluated
    assert len(recommend(network, users=["u1"], k=50)[0]) < 20
    served = evaluate_checkpoint(result["model_file"], {"exclude_history": False}, ["test"])
    assert served["test"]["hit@3"] >= 0


@pytest.mark.parametrize("model", ["TEMA", "SASRec", "BPR", "Pop"])
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_groups_by_popularity_are_those_without_overlap_ratio(settings, model, ratio):
    keys = {**settings, "epochs": 1, "eval_groups": ["popularity", "overlap", "length"]}
    keys |= {"metrics": ["Hit", "NDCG", "AveragePopularity"], "exclude_history": False}
    masks = {}
    for share in (1.0, ratio):
        result = run_recbole_tema(model, "three", config_dict={**keys, "overlap_ratio": share})
        _, ranks, plan, data = rank_checkpoint(result["model_file"])["test"]
        # Training events by hand: all but the last two, of users with more than three.
        count = np.zeros(data.item_num, dtype=int)
        for user in range(1, data.user_num):
            items = data.sequences.of(user)
            np.add.at(count, items if len(items) < 3 else items[: max(2, len(items) - 2)], 1)
        assert np.array_equal(count, data.split_popularity())
        below = [line for line in result["table"].splitlines() if line.startswith("popularity=")]
        rows, notes = below[:3], below[3:]
        masks[share] = notes
        for row, note in zip(rows, notes, strict=True):
            assert note.startswith(row.split()[0] + ": " + row.split()[-1] + " targets of ")
        low = [int(number) for number in re.findall(r"\d+", notes[0])]
        inside = count[plan.targets]
        assert low[0] == ((inside >= low[1]) & (inside <= low[-1])).sum()
        assert low[1] == inside.min()
        assert len(ranks) == len(inside)
    assert masks[1.0] == masks[ratio]


def test_a_model_is_measured_by_the_history_rule_that_it_was_trained_under(settings, tmp_path):
    """Later events, in which users repeat, would turn `auto` over."""
    shop(tmp_path, walks(12, 8))
    keys = {**settings, "data_path": str(tmp_path), "epochs": 1}
    path = run_recbole_tema("SASRec", "shop", config_dict=keys)["model_file"]
    shutil.rmtree(tmp_path / "shop")
    shop(tmp_path, [[*row, row[0]] for row in walks(12, 8)])
    _, _, plan, data = rank_checkpoint(path)["test"]
    assert data.exclude_history and len(plan.left_out) == 12
    _, _, plan, _ = rank_checkpoint(path, {"exclude_history": False})["test"]
    assert not len(plan.left_out)
