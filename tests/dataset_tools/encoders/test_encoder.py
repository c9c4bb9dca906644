"""What every encoder shares: order, batches, unreadable texts, images that are none."""

import logging

import numpy as np
import pytest

from dataset_tools.encoders.encoder import Encoder
from dataset_tools.images import decoding
from recbole_tema.errors import DataError
from tests.support.tiny_clip import pictures, torch


class Letters(Encoder):
    """A text is its length and its first letter, an image its mean and its largest value."""

    has_images = True

    def __init__(self, max_tokens=None, batch_size=2):
        self.batches, self.limit = [], max_tokens
        super().__init__("letters", "nowhere", {}, torch.device("cpu"), batch_size)

    def load(self, source, options):
        return torch.nn.Linear(2, 2), self.limit

    def encode_batch(self, texts):
        self.batches.append(list(texts))
        return torch.tensor([[len(text), ord(text[0])] for text in texts])

    def count_tokens(self, text):
        return len(text.split())

    def prepare_image(self, image):
        assert image.mode == "RGB"
        return torch.from_numpy(np.array(image.resize((8, 8)), np.float32))

    def encode_image_batch(self, images):
        self.batches.append(len(images))
        return torch.stack([images.mean((1, 2, 3)), images.amax((1, 2, 3))], dim=-1)


def unit(rows):
    rows = np.array(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_each_text_is_encoded_once_in_batches_of_like_length_whatever_the_order():
    encoder = Letters()
    texts = ["aa", "c", "bbbb", "aa", "ddd", "b"]
    encoder.batches.clear()
    found = encoder.texts(texts, progress=False)
    assert np.allclose(found, unit([[len(text), ord(text[0])] for text in texts]))
    assert encoder.batches == [["bbbb", "ddd"], ["aa", "b"], ["c"]]
    first, encoder.batches = encoder.batches, []
    assert np.array_equal(encoder.texts(texts[::-1], progress=False), found[::-1])
    assert encoder.batches == first
    assert encoder.texts([], progress=False).shape == (0, 2) and encoder.dimension == 2


def test_what_is_no_text_is_refused_and_half_characters_are_replaced():
    encoder = Letters(batch_size=9)
    encoder.texts(["tea", "\ud83d half \udc00", "\U0001f600"], progress=False)
    assert encoder.batches[-1] == ["\ufffd half \ufffd", "tea", "\U0001f600"]
    for wrong in (None, float("nan"), 3):
        with pytest.raises(DataError, match="text 1 to encode is"):
            encoder.texts(["a", wrong])


def test_texts_that_were_cut_are_counted_and_said(caplog):
    encoder = Letters(max_tokens=3)
    with caplog.at_level(logging.INFO):
        encoder.texts(["a b c", "a b c d", "a b c d", "a b c d e"], progress=False)
    assert encoder.n_cut == 2
    said = "letters: 2 texts are longer than the 3 tokens that it reads and were cut"
    assert [record.message for record in caplog.records] == [said]
    encoder.texts(["a b c"], progress=False)
    assert encoder.n_cut == 0
    encoder.texts(["a  " * 1000], progress=False)  # whole, some tokenizers would take minutes
    assert encoder.batches[-1] == [("a " * 1000)[: 64 * 3]] and encoder.n_cut == 1
    unlimited = Letters()
    unlimited.texts(["a  " * 1000], progress=False)
    assert unlimited.batches[-1] == ["a  " * 1000] and unlimited.n_cut == 0


def test_images_leave_out_what_is_broken_and_read_a_shared_file_once(tmp_path, monkeypatch):
    items, images = {}, pictures()
    for n, image in enumerate(images):
        image.save(tmp_path / f"{n}.png")
        items[f"item {n}"] = tmp_path / f"{n}.png"
    (tmp_path / "text.jpg").write_text("not a picture")
    items |= {"text": tmp_path / "text.jpg", "gone": tmp_path / "gone.png"}
    items["twin"] = items["item 3"]
    encoder = Letters(batch_size=2)
    encoder.batches.clear()
    ids, matrix, refused = encoder.images(items, progress=False)
    assert ids == [*(f"item {n}" for n in range(7)), "twin"]
    prepared = [encoder.prepare_image(image.convert("RGB")).numpy() for image in images]
    assert np.allclose(matrix[:7], unit([[array.mean(), array.max()] for array in prepared]))
    assert np.array_equal(matrix[7], matrix[3]) and encoder.batches == [2, 2, 2, 1]
    assert refused == {"text": f"text, not an image ({decoding.ACCEPTED})", "gone": "no such file"}
    assert encoder.images({}, progress=False)[1].shape == (0, 2)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    ids, matrix, refused = encoder.images(items, progress=False)
    assert ids == [] and matrix.shape == (0, 2) and len(refused) == 10


def test_vectors_that_are_not_finite_and_models_without_images_are_refused(tmp_path):
    class Bad(Letters):
        has_images = False

        def encode_batch(self, texts):
            return super().encode_batch(texts) * torch.nan

    with pytest.raises(DataError, match="letters: vectors that are not finite"):
        Bad().texts(["a"])
    with pytest.raises(DataError, match=r"letters reads no images; use a CLIP model, clip:"):
        Bad().images({"a": tmp_path / "a.png"})


def test_a_batch_that_does_not_fit_names_the_way_out():
    class Large(Letters):
        def encode_batch(self, texts):
            if len(texts) > 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().encode_batch(texts)

    with pytest.raises(DataError, match=r"a batch of 2 does not fit.*--batch_size"):
        Large().texts(["a", "b"])
