"""Writing a whole dataset: checks, exact content, stock RecBole as the reader, interruptions."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_tools.dataset.card import changed_files, missing_files, read_card
from dataset_tools.dataset.checks import number_text
from dataset_tools.dataset.writer import write_dataset
from recbole_tema.data.cells import token_fault
from recbole_tema.data.feature_file import read_feature
from recbole_tema.errors import DataError
from tests.support.stock_recbole import stock_recbole

CARD = {"source": "made by hand", "generated": {"clip_text": "by hand"}}

EVENTS = pd.DataFrame(
    [
        ("u2", "f1", 30, 4.0),
        ("u1", "b1", 20, 3.5),
        ("u1", "f1", 10, 5.0),
        ("u2", "b2", 10, 1.0),
        ("u1", "b2", 10, 2.0),
    ],
    columns=["user_id", "item_id", "timestamp", "rating"],
)
ITEMS = pd.DataFrame(
    {
        "item_id": ["b1", "b2", "f1"],
        "domain": ["book", "book", "film"],
        "title": ["A\ttale\n of\x00two ", '"Quoted" start', ""],
        "price": [1.5, None, 3],
        "brand": ["X & Co", None, "Y"],
        "category": [["Home & Kitchen", "Tea"], [], ["Drama"]],
        "tags": [["slow", "old_times"], [], "war"],
        "tag_weights": [[0.75, 0.25], [], [1]],
    }
)


def write(folder, **changes):
    arguments = {"interactions": EVENTS, "items": ITEMS, "card": CARD} | changes
    events, items = arguments.pop("interactions"), arguments.pop("items")
    return write_dataset(folder, "toy", events, items, **arguments)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tag_table(**changes):
    table = {
        "tag_id": ["old_times", "slow", "war"],
        "tag_domain": [["book"], "book", ["book", "film"]],
        "tag_emb": [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]],
    }
    return pd.DataFrame(table | changes)


def test_files_are_as_expected_to_the_byte(tmp_path):
    vectors = np.array([[1, 0.5], [0.25, -2]])
    path = write(
        tmp_path / "toy",
        tags=tag_table(),
        item_text=(["f1", "b1"], vectors),
        user_llm=(["u2"], vectors[:1]),
    )
    folder = tmp_path / "toy"
    assert path == folder / "toy.yaml"
    assert (folder / "toy.inter").read_text() == (
        "user_id:token\titem_id:token\ttimestamp:float\trating:float\n"
        "u1\tf1\t10\t5\nu2\tb2\t10\t1\nu1\tb2\t10\t2\nu1\tb1\t20\t3.5\nu2\tf1\t30\t4\n"
    )
    assert (folder / "toy.item").read_text() == (
        "item_id:token\tdomain:token\ttitle:token_seq\tprice:float\tbrand:token"
        "\tcategory:token_seq\ttags:token_seq\ttag_weights:float_seq\n"
        "b1\tbook\tA tale of two\t1.5\tX & Co\tHome_&_Kitchen Tea\tslow old_times\t0.75 0.25\n"
        'b2\tbook\t"""Quoted"" start"\t\t\t\t\t\n'
        "f1\tfilm\t\t3\tY\tDrama\twar\t1\n"
    )
    assert (folder / "toy.itemtext").read_text() == (
        "text_iid:token\tclip_text:float_seq\nf1\t1 0.5\nb1\t0.25 -2\n"
    )
    assert (folder / "toy.userllm").read_text() == (
        "profile_uid:token\tprofile_emb:float_seq\nu2\t1 0.5\n"
    )
    assert (folder / "toy.tag").read_text() == (
        "tag_id:token\ttag_domain:token_seq\ttag_emb:float_seq\n"
        "old_times\tbook\t1 0\nslow\tbook\t0 1\nwar\tbook film\t0.5 0.5\n"
    )
    assert read_feature(folder / "toy.tag").extra["tag_domain"] == ["book", "book", "book film"]
    assert sorted(os.listdir(folder)) == [
        ".toy.lock",
        *("toy.inter", "toy.item", "toy.itemtext", "toy.itemtext.safetensors"),
        *("toy.tag", "toy.tag.safetensors", "toy.userllm", "toy.userllm.safetensors", "toy.yaml"),
    ]


def test_card_counts_and_hashes(tmp_path, caplog):
    write(tmp_path, item_llm=(["b1"], np.ones((1, 3))))
    assert "llm_emb" in caplog.text  # the card above does not say what made it
    card = yaml.safe_load((tmp_path / "toy.yaml").read_text())
    assert card["source"] == "made by hand" and card["generated"] == {"clip_text": "by hand"}
    assert card["counts"] == {
        "users": 2,
        "items": 3,
        "items_without_events": 0,
        "events": 5,
        "overlapping_users": 2,
        "domains": {
            "book": {"users": 2, "items": 2, "items_without_events": 0, "events": 3},
            "film": {"users": 2, "items": 1, "items_without_events": 0, "events": 2},
        },
    }
    assert set(card["files"]) == {"toy.inter", "toy.item", "toy.itemllm"}
    for file, entry in card["files"].items():
        data = (tmp_path / file).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert read_card(tmp_path, "toy") == card
    (tmp_path / "toy.item").write_text("other")
    (tmp_path / "toy.itemllm").unlink()
    assert changed_files(tmp_path, card) == ["toy.item"]
    assert missing_files(tmp_path, card) == ["toy.itemllm"]


def test_same_data_same_bytes(tmp_path):
    rng = np.random.default_rng(0).normal(size=(3, 4))
    for folder in ("a", "b"):
        write(tmp_path / folder, tags=tag_table(), item_text=(["b1", "b2", "f1"], rng))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def with_(frame, **columns):
    return frame.assign(**columns)


BAD = {
    "id with tab": ({"interactions": with_(EVENTS, user_id=["a\tb"] * 5)}, "user_id 'a.tb' holds"),
    "id with newline": ({"items": with_(ITEMS, item_id=["b1", "b\n2", "f1"])}, "row 1: item_id"),
    "id with NUL": ({"interactions": with_(EVENTS, user_id=["\0"] * 5)}, "control character"),
    "id read as missing": ({"interactions": with_(EVENTS, user_id=["null"] * 5)}, "as missing"),
    "id is a float": ({"interactions": with_(EVENTS, user_id=[1.0] * 5)}, "texts or integers"),
    "id is missing": ({"interactions": with_(EVENTS, user_id=["a", None, *"bcd"])}, "row 1.*None"),
    "no user column": ({"interactions": EVENTS.drop(columns="user_id")}, "no column 'user_id'"),
    "odd column": ({"interactions": with_(EVENTS, clicks=1)}, "clicks.* unknown"),
    "no events": ({"interactions": EVENTS[:0]}, "no interactions"),
    "unknown item": (
        {"interactions": with_(EVENTS, item_id=["f1", "b1", "zz", "b2", "zz"])},
        "row 2: item 'zz' is not in the items .2 such",
    ),
    "no timestamp": ({"interactions": EVENTS.drop(columns="timestamp")}, "no column 'timestamp'"),
    "time nan": ({"interactions": with_(EVENTS, timestamp=[1, 2, np.nan, 4, 5])}, "row 2: time"),
    "time inf": ({"interactions": with_(EVENTS, timestamp=[1, 2, 3, np.inf, 5])}, "row 3: time"),
    "time text": ({"interactions": with_(EVENTS, timestamp=[*"1234", "x"])}, "row 4: timestamp"),
    "time date": (
        {"interactions": with_(EVENTS, timestamp=pd.date_range("2020", periods=5))},
        "datetime64",
    ),
    "rating inf": ({"interactions": with_(EVENTS, rating=[np.inf] * 5)}, "rating is inf"),
    "events of one domain": ({"interactions": EVENTS[EVENTS["item_id"] != "f1"]}, "one domain"),
    "no domain column": ({"items": ITEMS.drop(columns="domain")}, "no column 'domain'"),
    "no domain": ({"items": with_(ITEMS, domain=["book", None, "film"])}, "row 1: domain is None"),
    "empty domain": ({"items": with_(ITEMS, domain=["book", "", "film"])}, "row 1: domain '' is"),
    "domain with blank": ({"items": with_(ITEMS, domain=["a b", "c", "c"])}, "'a b' holds a blank"),
    "one domain": ({"items": with_(ITEMS, domain="book")}, "one domain only .book"),
    "no title": ({"items": ITEMS.drop(columns="title")}, "no column 'title'"),
    "item twice": (
        {"items": with_(ITEMS, item_id=["b1", "b1", "f1"])},
        r"\[0, 1\].*more than once",
    ),
    "item in two domains": (
        {"items": with_(ITEMS, item_id=["x", "b2", "x"])},
        r"\[0, 2\]: item 'x' is in the domains book, film",
    ),
    "weights too short": (
        {"items": with_(ITEMS, tag_weights=[[1], [], [1]])},
        "row 0: 2 tags but 1 tag_weights",
    ),
    "weight below 0": (
        {"items": with_(ITEMS, tag_weights=[[1, -0.5], [], [1]])},
        "row 0: tag_weights are 1 -0.5; they are >= 0",
    ),
    "weights without tags": ({"items": ITEMS.drop(columns="tags")}, "tag_weights without tags"),
    "weight nan": ({"items": with_(ITEMS, tag_weights=[[1, np.nan], [], [1]])}, "row 0: tag_weig"),
    "tag with blank": ({"items": with_(ITEMS, tags=[["a b", "c"], [], ["d"]])}, "tag 'a b' is not"),
    "tag in capitals": ({"items": with_(ITEMS, tags=[["A", "c"], [], ["d"]])}, "tag 'A' is not"),
    "tag twice": ({"items": with_(ITEMS, tags=[["c", "c"], [], ["d"]])}, "a tag stands twice"),
    "price is text": ({"items": with_(ITEMS, price=["1", "x", "2"])}, "row 1: price is 'x'"),
    "price inf": ({"items": with_(ITEMS, price=[1, np.inf, 2])}, "row 1: price holds"),
    "column with colon": ({"items": with_(ITEMS, **{"a:b": 1})}, "name:type"),
    "unknown type": ({"item_types": {"price": "double"}}, "'double'"),
    "list as token": (
        {"items": with_(ITEMS, brand=[["a"], ["b"], ["c"]])},
        "row 0: brand is a list",
    ),
    "feature of no item": ({"item_text": (["b1", "zz"], np.eye(2))}, "1 ids are no item.*'zz'"),
    "feature of no user": ({"user_llm": (["u9"], np.eye(1))}, "no user.*'u9'"),
    "feature nan": (
        {"item_llm": (["b1"], np.array([[np.nan]]))},
        r"toy\.itemllm, line 2.*holds nan",
    ),
    "feature twice": (
        {"item_image": (["b1", "b1"], np.eye(2))},
        r"toy\.itemimage, line 3: id 'b1'",
    ),
    "feature too short": ({"item_text": (["b1"], np.eye(2))}, "for 1 ids"),
    "tags lack one": ({"tags": tag_table()[:2]}, "1 tags of items are not.*'war'"),
    "tags of no domain": ({"tags": tag_table(tag_domain="tea")}, "no domain.*'tea'"),
    "tags ragged": ({"tags": tag_table(tag_emb=[[1], [1, 2], [3]])}, "shapes"),
    "tags without vectors": ({"tags": tag_table().drop(columns="tag_emb")}, "no column 'tag_emb'"),
    "card without source": ({"card": {}}, "no 'source'"),
    "card with an object": ({"card": {"source": "s", "n": np.float64(1)}}, "not plain"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_writes_nothing(tmp_path, case):
    changes, says = BAD[case]
    with pytest.raises(DataError, match=says) as error:
        write(tmp_path / "toy", **changes)
    assert "\n" not in str(error.value) and ".staging" not in str(error.value)
    assert str(tmp_path / "toy" / "toy") in str(error.value)
    left = os.listdir(tmp_path / "toy") if (tmp_path / "toy").exists() else []
    assert left in ([], [".toy.lock"])


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "a\tb", "NA"])
def test_bad_name(tmp_path, name):
    with pytest.raises(DataError, match="plain file name"):
        write_dataset(tmp_path, name, EVENTS, ITEMS, card=CARD)


def test_existing_is_kept_without_force_and_replaced_whole_with_it(tmp_path):
    write(tmp_path, item_text=(["b1"], np.ones((1, 2))), tags=tag_table())
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"exists.*force"):
        write(tmp_path, interactions=EVENTS[:4])
    assert contents(tmp_path) == before
    write(tmp_path, interactions=EVENTS[:4], force=True)
    assert sorted(os.listdir(tmp_path)) == [".toy.lock", "toy.inter", "toy.item", "toy.yaml"]
    assert read_card(tmp_path, "toy")["counts"]["events"] == 4


def test_failure_in_the_middle_leaves_the_old_dataset(tmp_path):
    write(tmp_path, item_text=(["b1"], np.ones((1, 2))))
    before = contents(tmp_path)
    # .item and .inter of the new one are written by the time that its vectors are found bad
    with pytest.raises(DataError, match="holds nan"):
        write(
            tmp_path,
            interactions=EVENTS[:4],
            item_text=(["b1"], np.array([[1, np.nan]])),
            force=True,
        )
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write(tmp_path / "file" / "toy")


KILLED = """
import sys, time
import numpy as np
sys.path.insert(0, sys.argv[2])
from tests.dataset_tools.dataset.test_writer import EVENTS, write
class Slow(np.ndarray):
    def tolist(self):
        print("half", flush=True)
        time.sleep(60)
import recbole_tema.data.feature_file as f
checked = f._checked_matrix
f._checked_matrix = lambda *a: checked(*a).view(Slow)
write(sys.argv[1], interactions=EVENTS[:4], item_text=(["b1"], np.ones((1, 2))), force=True)
"""


def test_kill_in_the_middle_leaves_the_old_dataset(tmp_path):
    write(tmp_path, item_text=(["b1"], np.zeros((1, 2))))
    before = contents(tmp_path)
    root = str(Path(__file__).resolve().parents[3])
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), root], stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    after = set(os.listdir(tmp_path))
    assert {file: (tmp_path / file).read_bytes() for file in before} == before
    (left,) = after - set(before)
    assert left.startswith(".toy.staging-")
    write(tmp_path, interactions=EVENTS[:4], force=True)  # the lock went with its process
    assert not (tmp_path / left).exists()


@given(st.one_of(st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_keep_their_value(value):
    text = number_text(value)
    assert (int(text) if isinstance(value, int) else float(text)) == value


def test_order_and_text_of_fine_timestamps(tmp_path):
    """Integers past 2**53 and fractions are neither rounded nor reordered."""
    times = [2**60 + 1, 2**60, 2**60 + 2, 2**60 + 1, 0]
    write(tmp_path / "int", interactions=with_(EVENTS, timestamp=times))
    rows = [line.split("\t") for line in (tmp_path / "int/toy.inter").read_text().split("\n")]
    assert [int(row[2]) for row in rows[1:-1]] == sorted(times)
    assert [row[0] for row in rows[1:-1]] == ["u1", "u1", "u2", "u2", "u1"]
    times = [881250949.123456, 0.1, 1e300, 881250949.123457, -1.5]
    write(tmp_path / "float", interactions=with_(EVENTS, timestamp=times))
    rows = [line.split("\t") for line in (tmp_path / "float/toy.inter").read_text().split("\n")]
    assert [float(row[2]) for row in rows[1:-1]] == sorted(times)


# ---- stock RecBole reads what was written


def test_stock_recbole_reads_the_same(tmp_path):
    vectors = np.array([[1, 0.5], [0.25, -2]], dtype=np.float32)
    write(tmp_path / "toy", item_text=(["f1", "b1"], vectors), tags=tag_table())
    seen = stock_recbole(tmp_path, "toy", ["itemtext"])
    assert (seen["users"], seen["items"], seen["events"], seen["domains"]) == (2, 3, 5, 2)
    assert seen["pairs"] == sorted(
        map(list, zip(EVENTS["user_id"], EVENTS["item_id"], strict=True))
    )
    assert seen["fields"]["tag_weights"] == "float_seq" and seen["fields"]["brand"] == "token"
    assert seen["vectors"]["f1"] == [1, 0.5] and seen["vectors"]["b1"] == [0.25, -2]


def test_stock_recbole_reads_odd_ids(tmp_path):
    """Every printable ASCII character, and some beyond, as part of ids."""
    odd = [chr(c) for c in range(33, 127)] + ["é", "中", "\U0001f600", "a b", "\u00a0", "1.0"]
    odd = [c for c in odd if token_fault(c) is None]
    items = pd.DataFrame(
        {"item_id": odd, "domain": ["x", "y"] * (len(odd) // 2) + ["x"] * (len(odd) % 2)}
    ).assign(title=odd)
    events = pd.DataFrame({"user_id": odd[::-1], "item_id": odd, "timestamp": range(len(odd))})
    write_dataset(tmp_path / "toy", "toy", events, items, card=CARD)
    seen = stock_recbole(tmp_path, "toy")
    assert seen["pairs"] == sorted(map(list, zip(odd[::-1], odd, strict=True)))
    assert (seen["users"], seen["items"]) == (len(odd), len(odd))


@given(st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=6, unique=True))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_ids_come_back_or_are_refused(tmp_path, ids):
    items = pd.DataFrame({"item_id": ids, "domain": ["x"] + ["y"] * (len(ids) - 1), "title": ids})
    events = pd.DataFrame({"user_id": ids, "item_id": ids, "timestamp": 0})
    if any(token_fault(token) for token in ids):
        with pytest.raises(DataError):
            write_dataset(tmp_path / "bad", "toy", events, items, card=CARD)
        return
    write_dataset(tmp_path / "good", "toy", events, items, card=CARD, force=True)
    lines = (tmp_path / "good" / "toy.inter").read_bytes().decode().split("\n")[1:-1]
    assert [line.split("\t")[:2] for line in lines] == [[token, token] for token in ids]
