"""Pop ranks by true counts of the training events."""

from collections import Counter

import numpy as np
import pytest
import torch

from recbole_tema import load_model, run_recbole_tema
from recbole_tema.quick_start import rank_checkpoint
from tests.support.tiny_dataset import make_dataset


def expected_counts(data):
    """Each item's training events, counted one by one from the users' sequences."""
    counts = Counter()
    for user in range(1, data.user_num):
        items = data.sequences.of(user).tolist()
        counts.update(items if len(items) < 3 else items[: max(2, len(items) - 2)])
    return [counts[item] for item in range(data.item_num)]


@pytest.mark.parametrize("batch_size", [1, 7, 2048])
def test_counts_do_not_depend_on_batches_or_seed(settings, batch_size):
    keys = {"train_batch_size": batch_size, "seed": batch_size}
    result = run_recbole_tema("Pop", "tiny", config_dict={**settings, **keys})
    _, data, model = load_model(result["model_file"])
    assert model.item_cnt.view(-1).tolist() == expected_counts(data)
    assert max(expected_counts(data)) > 1


def test_a_threshold_on_ratings_is_no_negative(settings, tmp_path):
    """RecBole labels events by it; the sequential models train on all of them."""
    path = make_dataset(tmp_path) / "tiny.inter"
    head, *rows = path.read_text().splitlines()
    rated = [f"{head}\trating:float", *(f"{row}\t{1 + i % 5}" for i, row in enumerate(rows))]
    path.write_text("\n".join(rated) + "\n")
    keys = {**settings, "data_path": str(tmp_path), "threshold": {"rating": 3}}
    result = run_recbole_tema("Pop", "tiny", config_dict=keys)
    _, data, model = load_model(result["model_file"])
    assert model.item_cnt.view(-1).tolist() == expected_counts(data)


def test_negatives_are_not_counted(settings):
    """A user may still ask for negatives, as RecBole draws them for Pop."""
    keys = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 3}}
    result = run_recbole_tema("Pop", "tiny", config_dict={**settings, **keys})
    _, data, model = load_model(result["model_file"])
    assert model.item_cnt.view(-1).tolist() == expected_counts(data)


def test_targets_are_ranked_by_popularity_in_their_domain(settings):
    result = run_recbole_tema("Pop", "tiny", config_dict=settings)
    _, ranks, plan, data = rank_checkpoint(result["model_file"])["test"]
    counts = np.array(expected_counts(data))
    for rank, target in zip(ranks, plan.targets, strict=True):
        rivals = counts[data.item_domain == data.item_domain[target]]
        more, as_many = (rivals > counts[target]).sum(), (rivals == counts[target]).sum()
        assert more <= rank < more + as_many  # ranks count from 0


def test_with_train_on_target_the_domain_alone_is_counted(settings):
    keys = {"target_domain": "film", "train_on": "target"}
    result = run_recbole_tema("Pop", "tiny", config_dict={**settings, **keys})
    _, data, model = load_model(result["model_file"])
    film = data.domain_names.index("film") + 1
    counts = torch.tensor(expected_counts(data)) * torch.from_numpy(data.item_domain == film)
    assert torch.equal(model.item_cnt.view(-1), counts)
