"""load_model and recommend: scores for histories that were not in the dataset."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_tema import load_model, recommend, run_recbole_tema
from recbole_tema.data.loader import EARLIER, N_EARLIER
from recbole_tema.errors import ConfigError, DataError, EvaluationError
from recbole_tema.quick_start import rank_checkpoint
from tests.support.cdr_checkout import write_checkout

pytestmark = pytest.mark.long

MODELS = ("TEMA", "LLM4CDSR", "SASRec", "GRU4Rec")
HISTORIES = [
    ["book1"],
    ["film3", "book2", "film3"],
    ["book0", "film0", "book1", "film1"],
    [f"{d}{i}" for i in range(12) for d in ("book", "film")],  # longer than the model sees
    ["film7", "film8", "film9", "film10"],
]


@pytest.fixture
def trained(settings):
    """Train briefly and load: the model with its dataset."""

    def train(model, name="tiny", **keys):
        keys = {**settings, "epochs": 1, "state": "error", **keys}
        return load_model(run_recbole_tema(model, name, config_dict=keys)["model_file"])[2]

    return train


def scores_by_hand(model, history):
    """``{item token: score}`` from one row of RecBole's own interface."""
    dataset, width = model.dataset, model.max_seq_length
    every = [dataset.token2id("item_id", token) for token in history]
    items, earlier = every[-width:], every[:-width]
    row = Interaction(
        {
            EARLIER: torch.tensor([earlier], dtype=torch.long),
            N_EARLIER: torch.tensor([len(earlier)]),
            model.ITEM_SEQ: torch.tensor([items + [0] * (width - len(items))]),
            model.ITEM_SEQ_LEN: torch.tensor([len(items)]),
        }
    )
    with torch.no_grad():
        scores = model.full_sort_predict(row).flatten().tolist()
    tokens = dataset.field2id_token["item_id"]
    return {str(tokens[item]): scores[item] for item in range(1, dataset.item_num)}


def best(scores, k, leave_out=(), domain=""):
    left = [(t, s) for t, s in scores.items() if t not in leave_out and t.startswith(domain)]
    return sorted(left, key=lambda pair: -pair[1])[:k]


def same(found, expected):
    assert [token for token, _ in found] == [token for token, _ in expected]
    assert [s for _, s in found] == pytest.approx([s for _, s in expected], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("model_name", MODELS)
def test_the_best_items_are_those_of_full_sort_predict(trained, model_name):
    model = trained(model_name)
    scores = [scores_by_hand(model, history) for history in HISTORIES]
    for found, row, history in zip(
        recommend(model, HISTORIES, k=4, exclude_history=True), scores, HISTORIES, strict=True
    ):
        same(found, best(row, 4, leave_out=history))
    for found, row in zip(
        recommend(model, HISTORIES, 4, exclude_history=False), scores, strict=True
    ):
        same(found, best(row, 4))
    for domain in ("book", "film"):
        found = recommend(model, HISTORIES, k=3, domain=domain, exclude_history=True)
        for one, row, history in zip(found, scores, HISTORIES, strict=True):
            same(one, best(row, 3, leave_out=history, domain=domain))


@pytest.mark.parametrize("model_name", MODELS)
def test_the_batch_size_changes_nothing(trained, model_name):
    model = trained(model_name)
    histories = HISTORIES * 3
    whole = recommend(model, histories, k=5)
    for size in (1, 2, 7):
        for found, expected in zip(
            recommend(model, histories, k=5, batch_size=size), whole, strict=True
        ):
            same(found, expected)
    for found, expected in zip(whole[:5], whole[5:10], strict=True):
        same(found, expected)


def test_only_the_last_items_count_but_all_are_left_out(trained):
    model = trained("TEMA", repeat_bias=False)
    long, last = HISTORIES[3], HISTORIES[3][-model.max_seq_length :]
    assert len(long) > model.max_seq_length
    assert recommend(model, [long], 30, exclude_history=False) == recommend(
        model, [last], 30, exclude_history=False
    )
    found = {token for token, _ in recommend(model, [long], k=30, exclude_history=True)[0]}
    assert found == set(model.dataset.field2id_token["item_id"][1:]) - set(long)


def test_k_beyond_the_domain_gives_the_whole_domain(trained):
    model = trained("SASRec", exclude_history=True)
    (found,) = recommend(model, [["book1", "film2"]], k=500, domain="film")
    assert {token for token, _ in found} == {f"film{i}" for i in range(15)} - {"film2"}
    (found,) = recommend(model, [["book1"]], k=500)
    assert len(found) == 29 and np.isfinite([score for _, score in found]).all()
    books = [[f"book{i}" for i in range(15)]]
    assert recommend(model, books, k=3, domain="book") == [[]]
    assert recommend(model, [], k=3) == []


@pytest.mark.parametrize("model_name", ["TEMA", "LLM4CDSR", "SASRec"])
def test_three_domains(trained, model_name):
    model = trained(model_name, "three")
    history = ["game1", "book2", "film3", "game4"]
    row = scores_by_hand(model, history)
    for domain in ("book", "film", "game"):
        (found,) = recommend(model, [history], k=4, domain=domain, exclude_history=True)
        same(found, best(row, 4, leave_out=history, domain=domain))


def test_wrong_calls_are_named(trained):
    model = trained("TEMA")
    for histories, message in [
        ([["book1"], []], "history 1 is empty"),
        ([["book1", "bok2"]], "history 0: unknown item 'bok2'"),
        ([["[PAD]"]], r"unknown item '\[PAD\]'"),
        (["book1"], "history 0 is the text 'book1'; give a list of ids"),
        ("book1", "histories is the text 'book1'; give a list of ids"),
        (5, "histories is 5; give a list of ids"),
        ([5], "history 0 is 5; give a list of ids"),
        ([["book1"], {"book1"}], "history 1 is a set; give a list of ids"),
        ({"u1": ["book1"]}, "histories is a dict; give a list of ids"),
        ([[None]], "history 0: unknown item 'None'"),
    ]:
        with pytest.raises(DataError, match=message):
            recommend(model, histories)
    for keys, message in [
        ({"domain": "books"}, "unknown domain 'books'; the dataset has book, film"),
        ({"k": 0}, "k is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"k": "3"}, "k is '3'; it must be an integer"),
        ({"k": True}, "k is True; it must be an integer"),
        ({"k": 2.0}, "k is 2.0; it must be an integer"),
        ({"exclude_history": "auto"}, "exclude_history is 'auto'; allowed: True, False or None"),
        ({"users": ["u5"]}, "give either histories or users="),
    ]:
        with pytest.raises(ConfigError, match=message):
            recommend(model, [["book1"]], **keys)
    with pytest.raises(ConfigError, match="give either histories or users="):
        recommend(model)
    with pytest.raises(ConfigError, match="model is a tuple without a dataset; give the model"):
        recommend((None, model.dataset, model), [["book1"]])


def test_rows_may_be_of_any_ordered_kind(trained):
    model = trained("TEMA")
    rows = [["book1", "film2"], ["film3"]]
    wanted = recommend(model, rows, 3)
    for given in (
        tuple(map(tuple, rows)),
        [np.array(row) for row in rows],
        [np.array(row, dtype=object) for row in rows],
        pd.Series(rows),
        [pd.Series(row, index=range(7, 7 + len(row))) for row in rows],
        (iter(row) for row in rows),
    ):
        assert recommend(model, given, np.int64(3)) == wanted
    one = recommend(model, users=["u7"])
    for given in (("u7",), np.array(["u7"]), pd.Series(["u7"], index=[9]), iter(["u7"])):
        assert recommend(model, users=given) == one


def events_of(model, user):
    """Tokens of a user's events in the file, oldest first."""
    dataset = model.dataset
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.inter"
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [item for name, item, _ in sorted(rows, key=lambda row: int(row[2])) if name == user]


@pytest.mark.parametrize("model_name", MODELS)
def test_a_known_user_of_a_sequential_model_is_all_its_events(trained, model_name):
    model = trained(model_name)
    users = ["u7", "u30", "u0", "u7"]
    histories = [events_of(model, user) for user in users]
    for keys in ({}, {"exclude_history": True, "domain": "film"}, {"batch_size": 1}):
        found = recommend(model, users=users, k=40, **keys)
        for one, other in zip(found, recommend(model, histories, k=40, **keys), strict=True):
            same(one, other)


@pytest.mark.parametrize("model_name", ["BPR", "LightGCN", "Pop", "NeuMF", "FPMC", "DeepFM"])
def test_known_users_by_the_models_own_predict(trained, model_name):
    """Pair by pair, as RecBole scores one item for one user."""
    model = trained(model_name)
    dataset = model.dataset
    users = ["u7", "u30", "u1"]
    tokens = [str(token) for token in dataset.field2id_token["item_id"][1:]]
    for user, found, unseen in zip(
        users,
        recommend(model, users=users, k=100),
        recommend(model, users=users, k=100, exclude_history=True, batch_size=2),
        strict=True,
    ):
        n = len(tokens)
        items = torch.arange(1, n + 1)
        row = {"user_id": torch.full((n,), dataset.token2id("user_id", user)), "item_id": items}
        own = events_of(model, user)
        if model_name == "FPMC":
            history = [dataset.token2id("item_id", token) for token in own][-8:]
            padded = history + [0] * (8 - len(history))
            row["item_id_list"] = torch.tensor([padded]).repeat(n, 1)
            row["item_length"] = torch.full((n,), len(history))
        row = Interaction(row)
        row.update(dataset.item_feat[items])
        with torch.no_grad():
            scores = dict(zip(tokens, model.predict(row).flatten().tolist(), strict=True))
        assert dict(found) == pytest.approx(scores, rel=1e-4, abs=1e-5)
        assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)
        assert {token for token, _ in unseen} == set(tokens) - set(own)


def test_items_of_equal_score_come_in_the_order_of_their_ids(trained):
    model = trained("Pop")
    users = [f"u{u}" for u in range(3, 30)]
    whole = recommend(model, users=users, k=4)
    order = {token: n for n, token in enumerate(model.dataset.field2id_token["item_id"])}
    for found in whole:
        assert found == sorted(found, key=lambda pair: (-pair[1], order[pair[0]]))
        assert found == recommend(model, users=users[:1], k=30)[0][:4]
    assert whole == recommend(model, users=users, k=4, batch_size=5)


def test_unknown_users_are_counted_and_named(trained):
    model = trained("BPR")
    for users, message in [
        (["u7", "x1"], "users: 1 of 2 are unknown to dataset 'tiny': 'x1'; recommend by"),
        (["U7"], "users: 1 of 1 are unknown.*'U7'; did you mean u7"),
        (
            [f"y{n}" for n in range(9)],
            "9 of 9 are unknown.*'y0', 'y1', 'y2', 'y3', 'y4' and 4 more",
        ),
        (["[PAD]"], r"users: 1 of 1 are unknown.*'\[PAD\]'"),
        ("u7", "users is the text 'u7'; give a list of ids"),
        ({"u7"}, "users is a set; give a list of ids"),
        (7, "users is 7; give a list of ids"),
    ]:
        with pytest.raises(DataError, match=message) as error:
            recommend(model, users=users)
        assert "\n" not in str(error.value)
    assert recommend(model, users=[]) == []


@pytest.mark.parametrize("model_name", ["SASRec", "BPR"])
def test_users_without_events_are_named(settings, tiny_root, tmp_path, model_name):
    """A user of the table of users alone has an id, and no history or vector that was trained."""
    shutil.copytree(tiny_root / "tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / "tiny.user").write_text("user_id:token\tage:float\nnew\t4\nu7\t5\n")
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "domain"]}
    keys = {**settings, "data_path": str(tmp_path), "epochs": 1, "state": "error"}
    keys["load_col"] = {**columns, "user": ["user_id", "age"]}
    model = load_model(run_recbole_tema(model_name, "tiny", config_dict=keys)["model_file"])[2]
    assert "new" in model.dataset.field2token_id["user_id"]
    with pytest.raises(DataError, match=r"users: 1 of 2 are without any event in.*'new'; leave"):
        recommend(model, users=["u7", "new"])


@pytest.mark.parametrize("model_name", ["Pop", "LightGCN"])
def test_models_of_known_users_are_refused(trained, model_name):
    wanted = rf"{model_name} scores known users only: give users=\[...\] in place of histories"
    with pytest.raises(ConfigError, match=wanted):
        recommend(trained(model_name), [["book1"]])


def test_models_that_read_more_than_the_items_are_refused(trained):
    wanted = r"FPMC reads the field 'user_id'.*give users=\[...\] in place of histories"
    with pytest.raises(ConfigError, match=wanted):
        recommend(trained("FPMC"), [["book1"]])


def test_a_single_domain_model_recommends_and_reads_there_alone(trained):
    model = trained("SASRec", target_domain="film", train_on="target", exclude_history=False)
    mixed = [["book1", "film3", "book2", "film5", "book0"], ["book1"]]
    found = recommend(model, mixed, k=40)
    assert {token for token, _ in found[0]} == {f"film{i}" for i in range(15)}
    same(found[0], recommend(model, [["film3", "film5"]], k=40)[0])
    # Without any event there, the padding item by itself, as in the evaluation.
    row = {model.ITEM_SEQ: torch.zeros(1, 8, dtype=torch.long), model.ITEM_SEQ_LEN: torch.ones(1)}
    with torch.no_grad():
        scores = model.full_sort_predict(Interaction({n: v.long() for n, v in row.items()}))
    names = model.dataset.field2id_token["item_id"]
    wanted = {str(names[i]): s for i, s in enumerate(scores[0].tolist()) if i}
    same(found[1], best(wanted, 40, domain="film"))
    with pytest.raises(ConfigError, match=r"domain is 'book'.*recommend in 'film' \(target_domain"):
        recommend(model, mixed, domain="book")


def test_a_model_of_recbole_cdr_recommends_in_its_target_domain(trained, tmp_path):
    pytest.importorskip("recbole_cdr")
    keys = {"recbole_cdr_path": str(write_checkout(tmp_path / "checkout"))}
    model = trained("CMF", target_domain="film", hidden_size=None, **keys)
    (found,) = recommend(model, users=["u7"], k=40, exclude_history=True)
    own = events_of(model, "u7")
    assert {token for token, _ in found} == {f"film{i}" for i in range(15)} - set(own)
    with pytest.raises(ConfigError, match=r"domain is 'book'.*recommend in 'film'"):
        recommend(model, users=["u7"], domain="book")


@pytest.mark.parametrize("exclude", ["auto", True, False])
@pytest.mark.parametrize("model_name", ["TEMA", "SASRec"])
def test_what_is_measured_is_what_is_served(trained, model_name, exclude):
    """A test target is among the k best of its history by default where its rank says so."""
    model = trained(model_name, exclude_history=exclude)
    path = next(Path(model.dataset.config["checkpoint_dir"]).glob(f"{model_name}-*.pth"))
    _, ranks, plan, data = rank_checkpoint(path, phases=["test"])["test"]
    tokens = data.field2id_token["item_id"]
    assert model.dataset.exclude_history is {"auto": False}.get(exclude, exclude)
    hits = 0
    for number, domain in enumerate(plan.domain_names, start=1):
        rows = np.flatnonzero(plan.target_domain == number)
        histories = [tokens[data.sequences.of(plan.users[row])[:-1]] for row in rows]
        for row, found in zip(rows, recommend(model, histories, 3, domain=domain), strict=True):
            inside = str(tokens[plan.targets[row]]) in {token for token, _ in found}
            assert inside == (ranks[row] < 3)
            hits += inside
    assert 0 < hits < len(plan)


def test_damaged_weights_are_an_error_not_a_short_list(trained):
    model = trained("SASRec")
    with torch.no_grad():
        model.item_embedding.weight[3] = torch.nan
    with pytest.raises(EvaluationError, match=r"SASRec gives NaN.*histories 0\.\.4"):
        recommend(model, HISTORIES, k=5)
