"""load_model and recommend: scores for histories that were not in the dataset."""

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_tema import load_model, recommend, run_recbole_tema
from recbole_tema.errors import ConfigError, DataError, EvaluationError

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
    items = [dataset.token2id("item_id", token) for token in history][-width:]
    row = Interaction(
        {
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
        recommend(model, HISTORIES, k=4), scores, HISTORIES, strict=True
    ):
        same(found, best(row, 4, leave_out=history))
    for found, row in zip(
        recommend(model, HISTORIES, 4, exclude_history=False), scores, strict=True
    ):
        same(found, best(row, 4))
    for domain in ("book", "film"):
        found = recommend(model, HISTORIES, k=3, domain=domain)
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
    model = trained("TEMA")
    long, last = HISTORIES[3], HISTORIES[3][-model.max_seq_length :]
    assert len(long) > model.max_seq_length
    assert recommend(model, [long], 30, exclude_history=False) == recommend(
        model, [last], 30, exclude_history=False
    )
    found = {token for token, _ in recommend(model, [long], k=30)[0]}
    assert found == set(model.dataset.field2id_token["item_id"][1:]) - set(long)


def test_k_beyond_the_domain_gives_the_whole_domain(trained):
    model = trained("SASRec")
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
        (found,) = recommend(model, [history], k=4, domain=domain)
        same(found, best(row, 4, leave_out=history, domain=domain))


def test_wrong_calls_are_named(trained):
    model = trained("TEMA")
    for histories, message in [
        ([["book1"], []], "history 1 is empty"),
        ([["book1", "bok2"]], "history 0: unknown item 'bok2'"),
        ([["[PAD]"]], r"unknown item '\[PAD\]'"),
        (["book1"], "history 0 is the text 'book1'"),
        (3, "histories is 3; give a list of lists"),
        (None, "histories is None"),
        ("book1", "histories is 'book1'"),
        ({"u1": ["book1"]}, "histories is {'u1'"),
        ([3], "history 0 is 3; give a list of item ids"),
        ([None], "history 0 is None"),
    ]:
        with pytest.raises(DataError, match=message):
            recommend(model, histories)
    for keys, message in [
        ({"domain": "books"}, "unknown domain 'books'; the dataset has book, film"),
        ({"k": 0}, "k is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"k": "5"}, "k is '5'"),
        ({"k": 2.5}, "k is 2.5"),
        ({"k": None}, "k is None"),
        ({"k": True}, "k is True"),
        ({"batch_size": [8]}, r"batch_size is \[8\]"),
        ({"domain": ["book"]}, r"unknown domain '\['book'\]'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            recommend(model, [["book1"]], **keys)


@pytest.mark.parametrize("model_name", ["Pop", "LightGCN"])
def test_models_of_known_users_are_refused(trained, model_name):
    with pytest.raises(ConfigError, match=f"{model_name} scores known users only"):
        recommend(trained(model_name), [["book1"]])


def test_models_that_read_more_than_the_items_are_refused(trained):
    with pytest.raises(ConfigError, match="FPMC reads the field 'user_id'"):
        recommend(trained("FPMC"), [["book1"]])


def test_damaged_weights_are_an_error_not_a_short_list(trained):
    model = trained("SASRec")
    with torch.no_grad():
        model.item_embedding.weight[3] = torch.nan
    with pytest.raises(EvaluationError, match=r"SASRec gives NaN.*histories 0\.\.4"):
        recommend(model, HISTORIES, k=5)
