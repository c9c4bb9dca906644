"""Feature files: matrices as text and as binary twins, and what is wrong with them."""

import os
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from recbole_tema.data import feature_file
from recbole_tema.data.cells import token_fault
from recbole_tema.data.feature_file import read_feature, write_feature
from recbole_tema.errors import DataError
from tests.recbole_tema.data.test_atomic import TMP_PATH, put


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.data(),
)
@TMP_PATH
def test_feature_round_trip_is_bitwise(tmp_path, matrix, data):
    word = st.text(min_size=1, max_size=8).filter(lambda token: token_fault(token) is None)
    n = len(matrix)
    tokens = data.draw(st.lists(word, min_size=n, max_size=n, unique=True))
    path = tmp_path / "x.itemtext"
    write_feature(path, "text_iid", "clip_text", tokens, matrix)
    by_hand = [line.split("\t") for line in path.read_bytes().decode().split("\n")[1:-1]]
    assert [cells[0] for cells in by_hand] == tokens
    parsed = np.array([cells[1].split(" ") for cells in by_hand]).astype(np.float32)
    assert parsed.tobytes() == matrix.tobytes()
    twin = path.with_name("x.itemtext.safetensors")
    assert load_file(twin)["values"].tobytes() == matrix.tobytes()
    from_twin = read_feature(path)
    twin.unlink()
    from_text = read_feature(path)
    assert twin.is_file()
    for table in (from_twin, from_text):
        assert (table.id_field, table.value_field) == ("text_iid", "clip_text")
        assert table.tokens == tokens
        assert table.values.dtype == np.float32 and table.values.tobytes() == matrix.tobytes()


def test_all_float32_magnitudes_survive_the_text(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**32, size=40_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    matrix = values[: len(values) // 16 * 16].reshape(-1, 16)
    path = tmp_path / "x.itemllm"
    write_feature(path, "llm_iid", "llm_emb", [f"i{n}" for n in range(len(matrix))], matrix)
    (tmp_path / "x.itemllm.safetensors").unlink()
    assert read_feature(path).values.tobytes() == matrix.tobytes()


def test_extra_column_lies_between_id_and_vector(tmp_path):
    path = tmp_path / "x.tag"
    extra = {"tag_domain:token_seq": ["book film", ""]}
    write_feature(path, "tag_id", "tag_emb", ["a", "b"], np.eye(2), extra)
    assert path.read_text() == (
        "tag_id:token\ttag_domain:token_seq\ttag_emb:float_seq\na\tbook film\t1 0\nb\t\t0 1\n"
    )
    for _ in range(2):
        table = read_feature(path)
        assert table.tokens == ["a", "b"] and table.extra == {"tag_domain": ["book film", ""]}
        (tmp_path / "x.tag.safetensors").unlink(missing_ok=True)


def test_a_changed_text_beats_its_twin_and_renews_it(tmp_path):
    path = tmp_path / "x.itemtext"
    write_feature(path, "text_iid", "clip_text", ["a", "b"], np.eye(2))
    path.write_text(path.read_text().replace("a\t1 0", "a\t5 0"))
    assert read_feature(path).values[0].tolist() == [5, 0]
    assert load_file(f"{path}.safetensors")["values"][0].tolist() == [5, 0]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "short", "nan"])
def test_a_damaged_twin_is_not_believed(tmp_path, damage):
    path, twin = tmp_path / "x.itemtext", tmp_path / "x.itemtext.safetensors"
    write_feature(path, "text_iid", "clip_text", ["a", "b"], np.eye(2))
    data, table = twin.read_bytes(), read_feature(path)
    if damage == "truncated":
        twin.write_bytes(data[:-5])
    elif damage == "garbage":
        twin.write_bytes(b"\xff" * 100)
    else:
        wrong = table.values[:1] if damage == "short" else table.values * np.float32(np.nan)
        digest = feature_file.sha256_of(path)
        feature_file._write_twin(path, table._replace(values=np.ascontiguousarray(wrong)), digest)
    assert read_feature(path).values.tolist() == [[1, 0], [0, 1]]
    assert twin.read_bytes() == data


def test_hand_written_text_is_accepted(tmp_path):
    path = put(tmp_path, "v:float_seq\tiid:token\r\n 1  2 \ta b\r\n3 -4e1\tc\r\n", "x.itemtext")
    table = read_feature(path)
    assert table.tokens == ["a b", "c"] and table.values.tolist() == [[1, 2], [3, -40]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("iid:token\tv:float_seq\n", "no rows"),
        ("iid:token\tv:float\na\t1\n", "line 1: .*float_seq"),
        ("v:float_seq\n1 2\n", "line 1: .*id column"),
        ("iid:token\tv:float_seq\tw:float_seq\na\t1\t2\n", "line 1: .*one vector column"),
        ("iid:token\tv:float_seq\na\t1 2\nb\t1 2 3\n", "line 3: a vector of 3 numbers"),
        ("iid:token\tv:float_seq\na\t1 2\nb\t1\n", "line 3: a vector of 1 numbers"),
        ("iid:token\tv:float_seq\na\t1 2\nb\t1  \n", "line 3: a vector of 1 numbers"),
        ("iid:token\tv:float_seq\na\t\nb\t1\n", "line 2: a vector of 0 numbers"),
        ("iid:token\tv:float_seq\na\t1 2\nb\t1 x\n", "line 3: .*'x'"),
        ("iid:token\tv:float_seq\na\t1 2\nb\t1 nan\n", "line 3: the vector of id 'b' holds nan"),
        ("iid:token\tv:float_seq\na\t1 -inf\nb\t1 2\n", "line 2: the vector of id 'a' holds -inf"),
        ("iid:token\tv:float_seq\na\t1 2\nb\t1 1e39\n", "line 3: the vector of id 'b' holds inf"),
        ("iid:token\tv:float_seq\na\t1\nb\t2\na\t3\n", "line 4: id 'a' stands in line 2"),
        ("iid:token\tv:float_seq\na\t1\nb\n", "line 3: 1 cells"),
        ("iid:token\tv:float_seq\na\t1\n\t2\n", "line 3: the id is empty"),
        ("", "empty"),
    ],
)
def test_bad_feature_text(tmp_path, text, says):
    path = put(tmp_path, text, "x.itemtext")
    with pytest.raises(DataError, match=says) as error:
        read_feature(path)
    assert str(path) in str(error.value)
    assert os.listdir(tmp_path) == ["x.itemtext"]


@pytest.mark.parametrize(
    ("tokens", "matrix", "says"),
    [
        (["a"], np.eye(2), r"shape \(2, 2\) for 1 ids"),
        ([], np.empty((0, 3)), "shape"),
        (["a"], np.empty((1, 0)), "shape"),
        (["a", "b"], np.ones(2), "shape"),
        (["a", "a"], np.eye(2), "line 3: id 'a'"),
        (["a", "b\tc"], np.eye(2), "control character"),
        (["a", 3], np.eye(2), "not a text"),
        (["a", "b"], np.array([[1, 2], [3, np.nan]]), "line 3: the vector of id 'b' holds nan"),
        (["a"], np.array([[1e39]]), "inf"),
        (["a"], np.array([["1"]]), "real numbers"),
        (["a"], np.array([[1j]]), "real numbers"),
    ],
)
def test_bad_feature_is_not_written(tmp_path, tokens, matrix, says):
    with pytest.raises(DataError, match=says):
        write_feature(tmp_path / "x.itemtext", "iid", "v", tokens, matrix)
    assert os.listdir(tmp_path) == []


def test_large_feature_loads_in_time(tmp_path):
    """A tenth of 36,298 x 512: 3 s from text and 0.3 s from the twin, doubled for busy machines."""
    matrix = np.random.default_rng(0).normal(size=(3630, 512)).astype(np.float32)
    path = tmp_path / "x.itemtext"
    write_feature(path, "text_iid", "clip_text", [f"B{n:09d}" for n in range(3630)], matrix)
    twin, times = tmp_path / "x.itemtext.safetensors", {}
    for way in ("twin", "text"):
        best = []
        for _ in range(3):
            if way == "text":
                twin.unlink()
            start = time.process_time()
            table = read_feature(path)
            best.append(time.process_time() - start)
        times[way] = min(best)
        assert table.values.tobytes() == matrix.tobytes()
    assert times["twin"] < 0.06 and times["text"] < 0.6, times
