"""The packaged text encoder, loaded once for a module."""

import pytest

from dataset_tools.enrich import tags as tagging


@pytest.fixture(scope="module")
def minilm():
    """The packaged encoder, loaded once for all tests of this module."""
    from dataset_tools.encoders.loading import load_encoder

    return load_encoder("minilm")


@pytest.fixture
def encoder(minilm, monkeypatch):
    monkeypatch.setattr(tagging, "load_encoder", lambda spec: minilm)
    return minilm
