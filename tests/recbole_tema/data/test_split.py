"""One leave-one-out: what tools make of training events is what RecBole trains on."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recbole.data.dataset import SequentialDataset

from dataset_tools.builtin.movielens import mean_profiles
from dataset_tools.dataset.dataset import read_dataset, training_events
from dataset_tools.dataset.writer import write_dataset
from dataset_tools.describe.measures import load
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.data.preparation import create_dataset

NAME = "short"
# Times of each user's events, in the order of the file: 0 to 6 events, with ties.
TIMES = st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=7)


def written(folder, times):
    """A dataset whose users 0, 1, ... have events at `times`, each of an item of its own."""
    rows = [(f"u{user}", time) for user, row in enumerate(times) for time in row]
    rows += [("long", 10 + place) for place in range(5)]  # RecBole wants some row in each part
    events = pd.DataFrame(rows, columns=["user_id", "timestamp"])
    events["item_id"] = [f"i{row}" for row in range(len(events))]
    items = pd.DataFrame({"item_id": events["item_id"], "title": "t"})
    items["domain"] = ["food", "kitchen"] * (len(items) // 2) + ["food"] * (len(items) % 2)
    write_dataset(folder / NAME, NAME, events, items, card={"source": "made by hand"})
    return TemaConfig("TEMA", NAME, config_dict={"data_path": str(folder)})


def recboles(config):
    """(events that RecBole's own class does not hold out, those that its rows aim at)."""
    data = SequentialDataset(config)
    tokens = np.array(data.field2id_token["item_id"])
    every = set(tokens[data.inter_feat["item_id"].to_numpy()])  # a row an event, before `build`
    train, valid, test = (set(tokens[part.inter_feat["item_id"].numpy()]) for part in data.build())
    assert not train & (valid | test)
    return every - valid - test, train


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(TIMES)
def test_every_part_trains_on_recboles_events(tmp_path_factory, times):
    from dataset_tools.convert.engine import engine

    folder = tmp_path_factory.mktemp("split")
    config = written(folder, times)
    ours = create_dataset(config, config.model_class)
    expected, aimed_at = recboles(config)
    dataset = read_dataset(folder / NAME, NAME)

    found = training_events(dataset.events)
    assert set(found["item_id"]) == expected and found["item_id"].is_unique
    # Each training event is aimed at but a user's first one, which is a history alone.
    first = found.groupby("user_id")["item_id"].first()
    assert expected - aimed_at == set(first)

    ids = dataset.column("item_id")
    users, means = mean_profiles(dataset.events, ids, np.eye(len(ids)))
    assert set(users) == set(found["user_id"])
    assert {ids[i] for i in np.flatnonzero(means.any(0))} == expected

    part = ours.build()[0].inter_feat["item_id"].numpy()
    assert set(ours.id2token("item_id", part)) == expected
    assert set(ours.id2token("item_id", ours.train_sequences.items)) == expected

    work = folder / "work"
    work.mkdir()
    with engine(work, "256MB", 1) as tables:
        load(tables, folder / NAME, NAME)
        assert {i for (i,) in tables.rows("SELECT item FROM ev WHERE part = 'train'")} == expected


def test_the_rule_is_had_without_recbole_and_torch():
    code = (
        "import json, sys, recbole_tema.data.split, dataset_tools.dataset.dataset; "
        "print(json.dumps([name in sys.modules for name in ('recbole', 'torch')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, False]
