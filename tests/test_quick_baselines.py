"""Models of RecBole's that are computed at less work: the same losses, gradients and scores."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.utils import get_model

from recbole_tema import run_recbole_tema
from recbole_tema.config import TemaConfig
from recbole_tema.data import create_dataset, data_preparation
from recbole_tema.model.by_length import length_groups
from recbole_tema.names import get_model_class
from recbole_tema.randomness import seeded

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0}
FEATURES = ("FDSA", "GRU4RecF", "SASRecF")
CASES = [
    *((name, {"pooling_mode": mode}) for name in FEATURES for mode in ("mean", "sum", "max")),
    ("FDSA", {"selected_features": ["domain"]}),
    ("BERT4Rec", {"mask_ratio": 0.5, "ft_ratio": 0.0}),
    ("BERT4Rec", {"mask_ratio": 0.5, "ft_ratio": 1.0}),
]


def both(model, settings, keys):
    """(our class's model, RecBole's with the same parameters, training batches)."""
    features = {"selected_features": ["title", "domain"]} if model in FEATURES else {}
    keys = {**settings, **NO_DROPOUT, **features, "MAX_ITEM_LIST_LENGTH": 12, **keys}
    known = TemaConfig(model, "tiny", None, None, None).final_config_dict
    config = TemaConfig(model, "tiny", None, {k: v for k, v in keys.items() if k in known}, None)
    found = create_dataset(config, config.model_class)
    prepared = data_preparation(config, found, config.model_class)
    train = prepared.train_data
    with seeded(config):
        ours = get_model_class(model)(config, train.dataset)
    with seeded(config):
        theirs = get_model(model)(config, train.dataset)
    assert type(ours) is not type(theirs)
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])
    return ours, theirs, list(train)


@pytest.mark.parametrize(("model", "keys"), CASES)
def test_loss_and_gradients_are_recboles(model, keys, settings):
    ours, theirs, batches = both(model, settings, keys)
    assert len({int(n) for n in batches[0]["item_length"]}) > 4
    for batch in batches[:3]:
        losses = [network.train().calculate_loss(batch) for network in (ours, theirs)]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
        for network, loss in zip((ours, theirs), losses, strict=True):
            network.zero_grad()
            loss.backward()
        grads = {name: weight.grad for name, weight in ours.named_parameters()}
        for name, weight in theirs.named_parameters():
            torch.testing.assert_close(grads[name], weight.grad, rtol=1e-4, atol=1e-7)
        assert any(grad is not None and grad.abs().max() > 1e-4 for grad in grads.values())


@pytest.mark.parametrize(("model", "keys"), CASES)
def test_scores_are_recboles(model, keys, settings):
    ours, theirs, batches = both(model, settings, keys)
    with torch.no_grad():
        found = [network.eval().full_sort_predict(batches[0]) for network in (ours, theirs)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert found[0].std() > 0


def test_a_batch_without_a_masked_step_ends_in_recboles_own_words(settings):
    """RecBole's loss is then 0 / 0, and its trainer says so; nothing here hides it."""
    ours, theirs, batches = both("BERT4Rec", settings, {})
    batch = batches[0]
    batch["MASK_INDEX"].zero_()
    assert ours.calculate_loss(batch).isnan()
    assert theirs.calculate_loss(batch).isnan()


def test_bpr_is_recboles(settings):
    ours, theirs, batches = both("BERT4Rec", settings, {"loss_type": "BPR"})
    losses = [network.calculate_loss(batches[0]) for network in (ours, theirs)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("model", [*FEATURES, "BERT4Rec"])
def test_gradients_are_not_debugged(model, settings):
    """RecBole's sequential models switch that on when they are imported."""
    features = {"selected_features": ["title"]} if model in FEATURES else {}
    result = run_recbole_tema(model, "tiny", config_dict={**settings, **features})
    assert not torch.is_anomaly_enabled()
    assert result["test_result"]["hit@5"] > 0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_groups_hold_each_row_once_and_pad_less_than_twice(lengths):
    groups = [(rows.tolist(), longest) for rows, longest in length_groups(torch.tensor(lengths))]
    assert sorted(row for rows, _ in groups for row in rows) == list(range(len(lengths)))
    shortest = max(lengths) / 8  # of what is padded to less than twice its length
    for rows, longest in groups:
        assert longest == max(1, max(lengths[row] for row in rows))
        if longest > shortest:
            assert all(2 * lengths[row] >= longest - 1 for row in rows)
