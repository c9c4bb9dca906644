"""RecBole's filters and column choices on cross-domain datasets."""

import numpy as np
import pytest
import torch

from recbole_tema.data.preparation import eval_plan
from recbole_tema.errors import ConfigError, DataError
from tests.recbole_tema.data.test_dataset import edit, open_dataset
from tests.support.tiny_dataset import make_dataset


@pytest.fixture
def rated(tmp_path, settings):
    """Settings of a dataset whose events have ratings 1 to 5."""
    folder = make_dataset(tmp_path / "rated")
    edit(
        folder / "tiny.inter",
        lambda x: (
            [x[0] + "\trating:float"] + [f"{row}\t{1 + i % 5}" for i, row in enumerate(x[1:])]
        ),
    )
    return {**settings, "data_path": str(tmp_path / "rated")}


@pytest.mark.parametrize("model", ["TEMA", "LLM4CDSR", "SASRec", "BPR"])
def test_rare_items_and_users_are_filtered_with_their_features(settings, model):
    interval = "[9,inf)"
    keys = {"item_inter_num_interval": interval, "user_inter_num_interval": "[4,inf)"}
    _, full = open_dataset(settings, model=model)
    _, dataset = open_dataset(settings, model=model, **keys)
    tokens = full.field2id_token["item_id"][full.sequences.items]
    users = full.field2id_token["user_id"][full.sequences.users()]
    while True:  # to the fixpoint, event by event
        item_count = {t: int((tokens == t).sum()) for t in set(tokens)}
        user_count = {u: int((users == u).sum()) for u in set(users)}
        kept = np.array(
            [item_count[t] >= 9 and user_count[u] >= 4 for t, u in zip(tokens, users, strict=True)]
        )
        if kept.all():
            break
        tokens, users = tokens[kept], users[kept]
    assert 0 < len(set(tokens)) < full.item_num - 1
    assert set(dataset.field2id_token["item_id"][1:]) == set(tokens)
    assert set(dataset.field2id_token["user_id"][1:]) == set(users)
    for id_field in ("text_iid", "llm_iid"):
        before, after = full.feature(id_field)[0], dataset.feature(id_field)[0]
        for token in set(tokens):
            old, new = full.token2id("item_id", token), dataset.token2id("item_id", token)
            assert (before[old] == after[new]).all()


@pytest.mark.parametrize("model", ["TEMA", "SASRec"])
def test_events_are_filtered_by_a_field_that_is_not_loaded_otherwise(rated, model):
    _, full = open_dataset(rated, model=model)
    _, dataset = open_dataset(rated, model=model, val_interval={"rating": "[3,inf)"})
    n_events = len(full.sequences.items)
    assert len(dataset.sequences.items) == sum(1 + i % 5 >= 3 for i in range(n_events))
    with pytest.raises(ConfigError, match=r"val_interval names the field 'stars'.*rating"):
        open_dataset(rated, model=model, val_interval={"stars": "[3,inf)"})


@pytest.mark.parametrize("model", ["TEMA", "SASRec"])
def test_the_users_columns_win(rated, model):
    columns = {
        "inter": ["user_id", "item_id", "timestamp", "rating"],
        "item": ["item_id", "domain"],
        "itemtext": ["text_iid", "clip_text"],
    }
    _, dataset = open_dataset(rated, model=model, load_col=columns)
    assert "rating" in dataset.inter_feat and dataset.tags is None
    assert dataset.feature("text_iid") is not None and dataset.feature("llm_iid") is None
    _, dataset = open_dataset(rated, model=model, unload_col={"item": ["tag_weights"]})
    assert set(dataset.tags[1].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"inter": ["user_id"], "item": ["item_id", "domain"]}, r"'item_id' of tiny\.inter"),
        ({"inter": "*", "item": ["item_id"]}, r"'domain' of tiny\.item"),
        ({"inter": "*"}, r"'item_id' of tiny\.item"),
    ],
)
def test_columns_that_every_run_reads_cannot_be_left_out(settings, columns, message):
    with pytest.raises(ConfigError, match=f"load_col leaves out {message}"):
        open_dataset(settings, load_col=columns)


def test_tags_that_are_cut_off_take_their_weights_along(settings):
    _, dataset = open_dataset(settings, seq_len={"tags": 1})
    ids, weights = dataset.tags
    assert ids.shape == weights.shape == (dataset.item_num, 1)
    assert weights[1:].tolist() == [[pytest.approx(0.7)]] * (dataset.item_num - 1)


def test_profiles_of_strangers_are_left_out_and_said(tmp_path, settings, caplog):
    caplog.set_level("INFO")
    folder = make_dataset(tmp_path / "strangers")
    n_users = open_dataset({**settings, "data_path": str(folder.parent)})[1].user_num
    edit(folder / "tiny.userllm", lambda x: x + [x[-1].replace("u", "stranger", 1)])
    _, dataset = open_dataset({**settings, "data_path": str(folder.parent)})
    assert dataset.user_num == n_users
    assert "tiny.userllm: 1 users without events left out" in caplog.text


@pytest.mark.parametrize("model", ["TEMA", "SASRec", "BPR"])
def test_a_given_split_is_said_to_be_unread(tmp_path, settings, caplog, model):
    """Runs split leave-one-out, whatever the column says; nobody should take them for others."""
    folder = make_dataset(tmp_path / "given")
    keys = {**settings, "data_path": str(folder.parent)}
    _, plain = open_dataset(keys, model=model)
    assert "which is not read" not in caplog.text
    edit(
        folder / "tiny.inter",
        lambda x: [x[0] + "\tsplit:token"] + [f"{row}\ttrain" for row in x[1:]],
    )
    _, dataset = open_dataset(keys, model=model)
    said = [record for record in caplog.records if "which is not read" in record.getMessage()]
    assert len(said) == 1 and said[0].levelname == "WARNING"
    assert "tiny.inter tells a split in its column 'split'" in said[0].getMessage()
    assert dataset.sequences.items.tolist() == plain.sequences.items.tolist()


@pytest.mark.parametrize("model", ["TEMA", "SASRec", "BPR"])
def test_items_without_events_are_candidates(tmp_path, settings, model):
    folder = make_dataset(tmp_path / "idle")
    keys = {**settings, "data_path": str(folder.parent)}
    _, before = open_dataset(keys, model=model)

    def with_idle(lines):
        cells = lines[1].split("\t")
        return [*lines, "\t".join(["idle", *cells[1:]])]

    edit(folder / "tiny.item", with_idle)
    config, dataset = open_dataset(keys, model=model)
    assert dataset.item_num == before.item_num + 1
    idle = dataset.token2id("item_id", "idle")
    assert idle not in set(dataset.sequences.items.tolist())
    domain = dataset.item_domain[idle]
    counts = [np.count_nonzero(data.item_domain == domain) for data in (before, dataset)]
    assert counts[1] == counts[0] + 1
    plan = eval_plan(config, dataset, "test")
    scores = torch.zeros(len(plan), dataset.item_num)
    scores[torch.arange(len(plan)), torch.as_tensor(plan.targets)] = 1
    scores[:, idle] = 2  # before the targets of its domain, and in no other list
    ranks = plan.ranks(scores, np.arange(len(plan)))
    assert ranks.tolist() == [int(d == domain) for d in plan.target_domain]


def test_filters_that_leave_nothing_are_named(settings):
    with pytest.raises(DataError, match=r"user_inter_num_interval \(.1000,inf.\) leaves no"):
        open_dataset(settings, user_inter_num_interval="[1000,inf)")


def test_the_domain_field_has_to_be_a_token(settings):
    with pytest.raises(DataError, match="'title' has type token_seq, expected token"):
        open_dataset(settings, DOMAIN_FIELD="title")
