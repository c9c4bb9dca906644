"""A short run, and a dataset that a test may change."""

from pathlib import Path

import pytest

from recbole_tema import run_recbole_tema
from tests.support.tiny_dataset import make_dataset


@pytest.fixture
def run(settings):
    """Train a model for an epoch: (result, path of its checkpoint)."""

    def train(model="TEMA", name="tiny", **keys):
        result = run_recbole_tema(model, name, config_dict={**settings, "epochs": 1, **keys})
        return result, Path(result["model_file"])

    return train


@pytest.fixture
def moved(tmp_path):
    """A dataset of the test's own, which it may change."""
    return make_dataset(tmp_path / "here", "mine").parent
