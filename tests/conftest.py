"""What all tests share: small datasets, settings of a quick run, one thread."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each start a thread a core are slower than one worker; before torch is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import settings as examples

from tests.support.small_genre import write_small_genre
from tests.support.tiny_dataset import make_dataset

# A suite that passed once passes again; `--hypothesis-profile=random` looks at other examples.
# How long an example takes is the machine's matter: a busy one failed a health check, a deadline.
anywhere = {"suppress_health_check": [HealthCheck.too_slow], "deadline": None}
examples.register_profile("same", derandomize=True, **anywhere)
examples.register_profile("random", derandomize=False, **anywhere)
examples.load_profile("same")


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A data path with ``tiny`` (two domains), ``three`` (three) and ``bare`` (no features)."""
    root = tmp_path_factory.mktemp("data")
    make_dataset(root)
    make_dataset(root, "three", domains=("book", "film", "game"), seed=1)
    make_dataset(root, "bare", features=(), seed=2)
    return root


@pytest.fixture(scope="session")
def small_root(tmp_path_factory):
    """A data path with ``genre-small``, the first users of ml-100k-genre."""
    root = tmp_path_factory.mktemp("small")
    write_small_genre(root)
    return root


@pytest.fixture
def settings(tiny_root, tmp_path, monkeypatch):
    """Config keys for a quick run on the tiny datasets, writing under a temporary folder."""
    monkeypatch.chdir(tmp_path)
    return {
        "data_path": str(tiny_root),
        "checkpoint_dir": str(tmp_path / "saved"),
        "epochs": 2,
        "train_batch_size": 64,
        "eval_batch_size": 16,
        "MAX_ITEM_LIST_LENGTH": 8,
        "hidden_size": 16,
        "show_progress": False,
        "topk": [1, 3, 5],
        "valid_metric": "NDCG@3",
        "metrics": ["Hit", "NDCG", "MRR", "Recall"],
    }


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny models are fastest on one thread, also where other programs use the other cores."""
    torch.set_num_threads(1)
