"""Tiny CLIP models, once for a module."""

import pytest

from tests.support.tiny_clip import make_clip, make_open_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIPModel's folder, the model, its tokenizer and its image processor."""
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    return folder, *make_clip(folder)


@pytest.fixture(scope="module")
def openclip(tmp_path_factory):
    """A folder of open_clip and its model."""
    folder = tmp_path_factory.mktemp("models") / "tiny-open-clip"
    return folder, make_open_clip(folder)
