"""The parts of the text encoder that other encoders share."""

import numpy as np
import pytest

from dataset_tools.encoders import text_encoder
from dataset_tools.encoders.text_encoder import checked_texts, in_batches
from recbole_tema.errors import DataError


def test_each_text_is_encoded_once_in_batches_of_like_length_whatever_the_order():
    batches = []

    def encode(batch):
        batches.append(list(batch))
        return np.array([[len(text), ord(text[0])] for text in batch], np.float32)

    texts = ["aa", "c", "bbbb", "aa", "ddd", "b"]
    found = in_batches(texts, encode, 2, 2, "test", progress=False)
    assert found.tolist() == [[len(text), ord(text[0])] for text in texts]
    assert batches == [["bbbb", "ddd"], ["aa", "b"], ["c"]]
    first, batches[:] = batches[:], []
    in_batches(texts[::-1], encode, 2, 2, "test", progress=False)
    assert batches == first


def test_texts_are_checked_and_made_readable():
    assert checked_texts(["tea", "\ud83d half \udc00", "\U0001f600"]) == [
        "tea",
        "\ufffd half \ufffd",
        "\U0001f600",
    ]
    with pytest.raises(DataError, match="text 1 to encode is None"):
        checked_texts(["a", None])


@pytest.mark.skipif(bool(text_encoder.missing_packages()), reason=text_encoder.HOW_TO_GET)
def test_a_batch_tells_how_many_of_its_texts_were_cut():
    _, encode = text_encoder.load_minilm()
    vectors, n_cut = encode(["word " * 255, "word " * 254, "word"])
    assert n_cut == 1 and vectors.shape == (3, 384)  # with its two marks, 254 words fit into 256
    assert text_encoder.encode_texts(["half \ud83d"], progress=False).shape == (1, 384)
