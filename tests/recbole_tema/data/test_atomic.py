"""The atomic-file format: headers, rows, ids, feature matrices, files replaced as a whole."""

import io
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas._libs.parsers import STR_NA_VALUES

from recbole_tema.data.atomic import (
    Field,
    check_rows,
    read_header,
    read_table,
    replace_file,
    require_fields,
)
from recbole_tema.data.cells import (
    READ_AS_MISSING,
    cell_of,
    clean_text,
    plain_text,
    tag_text,
    tag_token,
    token_fault,
    unquoted,
)
from recbole_tema.data.feature_file import read_feature
from recbole_tema.errors import DataError

TMP_PATH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def put(folder, data, name="x.item"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# ---- headers and rows


def test_header_is_typed(tmp_path):
    path = put(tmp_path, "item_id:token\tt:token_seq\tp:float\tv:float_seq\r\n")
    assert read_header(path) == [
        Field("item_id", "token"),
        Field("t", "token_seq"),
        Field("p", "float"),
        Field("v", "float_seq"),
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"\n1\t2\n", "no header"),
        (b"\xef\xbb\xbfitem_id:token\n", "byte order mark"),
        ("item_id:token\n".encode("utf-16"), "byte order mark"),
        (b"item_id:token\tcaf\xe9:token\n", "UTF-8"),
        (b"item_id:token\tprice\n", "'price'"),
        (b"item_id:token\tprice:number\n", "'number'"),
        (b"item_id:token\ta:b:float\n", "name:type"),
        (b"item_id:token, domain:token\n", "name:type"),
        (b"item_id:token\t:float\n", "name:type"),
        (b"item_id:token\titem_id:float\n", "two columns named 'item_id'"),
    ],
)
def test_bad_header_names_file_and_fault(tmp_path, data, says):
    path = put(tmp_path, data)
    with pytest.raises(DataError) as error:
        read_header(path)
    assert str(path) in str(error.value) and says in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_header(tmp_path / "absent.item")
    with pytest.raises(DataError, match="cannot be read"):
        read_header(tmp_path)


def test_required_fields(tmp_path):
    path = put(tmp_path, "item_id:token\tdomain:token_seq\na\tx\n")
    fields = read_header(path)
    require_fields(path, fields, {"item_id": "token", "domain": None})
    with pytest.raises(DataError, match=r"column 'price:float' is missing .*item_id:token"):
        require_fields(path, fields, {"price": "float"})
    with pytest.raises(DataError, match=r"'domain' has type token_seq, expected token"):
        require_fields(path, fields, {"domain": "token"})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (b"b", "line 3: 1 cells, the header has 2"),
        (b"b\tx\ty", "line 3: 3 cells, the header has 2"),
        (b"", "line 3: 1 cells"),
        (b"b\0\tx", "line 3: holds a NUL"),
        (b"b\xff\tx", "line 3: not UTF-8"),
        (b'b\t"open', "line 3: a cell opens a double quote"),
    ],
)
def test_bad_row_is_named(tmp_path, row, says):
    path = put(tmp_path, b"item_id:token\tdomain:token\na\tx\n" + row + b"\nc\tx\n")
    with pytest.raises(DataError, match=says):
        check_rows(path)
    with pytest.raises(DataError, match=says):
        read_table(path)


def test_header_without_rows(tmp_path):
    with pytest.raises(DataError, match="no rows"):
        read_table(put(tmp_path, "item_id:token\n"))


def test_table_keeps_text_and_numbers(tmp_path):
    path = put(
        tmp_path,
        "item_id:token\ttitle:token_seq\tprice:float\tnote:token\n"
        '007\tA 12" disc \u2028 \U0001f600\t1e-3\tNA\n'
        "1.0\t\t\tnull\n"
        '8\t"quoted"\t9007199254740993\t x \n',
    )
    table = read_table(path, {"item_id": "token", "price": "float"})
    assert table["item_id"].tolist() == ["007", "1.0", "8"]
    assert table["title"].tolist() == ['A 12" disc \u2028 \U0001f600', "", "quoted"]
    assert table["price"].tolist()[::2] == [0.001, float(9007199254740993)]
    assert np.isnan(table["price"][1])
    assert table["note"].tolist() == ["NA", "null", " x "]
    part = read_table(path, columns=["price", "item_id"], categories=True)
    assert list(part.columns) == ["item_id", "price"]
    assert part["item_id"].astype(str).tolist() == ["007", "1.0", "8"]
    with pytest.raises(DataError, match="'brand'"):
        read_table(path, columns=["brand"])


QUOTES = [
    '"Sunday Drive" on the coast', '"a""b" c "d"', '"a" "b"', '""', '""" x"', '"""x"" y"', '"a"b',
    'x"y"z', ' "x" y', '"" x', '"', '"open', '"a""', 'a"', '12" disc', '"a"""', '"""', '""""',
]  # fmt: skip


def read_by_pandas(path, engine, n_rows):
    """Titles as a CSV reader gives them; None where it refuses the file or loses a row."""
    options = {"sep": "\t", "engine": engine, "dtype": str, "keep_default_na": False}
    try:
        frame = pd.read_csv(path, encoding="utf-8", **options)
    except pd.errors.ParserError:
        return None
    return frame.iloc[:, 1].tolist() if len(frame) == n_rows else None


def check_quotes(folder, cell):
    """Our reader against pandas' two; RecBole uses the one in Python, which refuses what follows a
    closing quote."""
    path = put(folder, f"item_id:token\ttitle:token_seq\nb\t{cell}\nc\tlast\n")
    lenient, strict = (read_by_pandas(path, engine, 2) for engine in ("c", "python"))
    try:
        found = read_table(path)["title"].tolist()
    except DataError as error:
        assert "line 2: a cell opens a double quote that is not closed" in str(error)
        assert lenient is None and strict is None and unquoted(cell) is None
        return
    assert found == lenient == [unquoted(cell), "last"]
    assert strict in (None, found)


@pytest.mark.parametrize("cell", QUOTES)
def test_quoted_cells_are_what_a_csv_reader_gives(tmp_path, cell):
    check_quotes(tmp_path, cell)


@given(st.text('"a ', min_size=1, max_size=9))
@TMP_PATH
def test_any_quotes_are_what_a_csv_reader_gives(tmp_path, cell):
    check_quotes(tmp_path, cell)


def test_a_quoted_title_is_read(tmp_path):
    text = 'item_id:token\ttitle:token_seq\na\t"Sunday Drive" on the coast\n'
    assert read_table(put(tmp_path, text))["title"].tolist() == ["Sunday Drive on the coast"]


@given(st.text(max_size=30))
@TMP_PATH
def test_what_is_written_is_read_back_by_both(tmp_path, text):
    text = plain_text(text)
    path = put(tmp_path, f"item_id:token\ttitle:token_seq\nb\t{cell_of(text)}\nc\tlast\n")
    assert read_table(path)["title"].tolist() == [text, "last"]
    assert read_by_pandas(path, "python", 2) == [text, "last"]


def test_quoted_ids_of_vectors_are_those_of_the_items(tmp_path):
    path = put(tmp_path, 'iid:token\tv:float_seq\n"a b"\t1\nc\t2\n', "x.itemtext")
    assert read_feature(path).tokens == ["a b", "c"]
    path = put(tmp_path, 'iid:token\tv:float_seq\na\t1\n"c\t2\n', "y.itemtext")
    with pytest.raises(DataError, match="line 3: a cell opens a double quote that is not closed"):
        read_feature(path)


def test_malformed_number_names_its_line(tmp_path):
    path = put(tmp_path, "item_id:token\tprice:float\na\t1\nb\t\nc\t1,5\n")
    with pytest.raises(DataError, match=r"line 4: field 'price' holds '1,5'"):
        read_table(path)


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("1e999", "beyond the range of a float; correct it"),
        ("x", "not a number; correct it"),
        ("1 2", "not a number; correct it"),
    ],
)
def test_a_number_that_cannot_be_read_is_told_apart(tmp_path, cell, says):
    path = put(tmp_path, f"item_id:token\tprice:float\na\t\nb\t{cell}\nc\t1\n")
    with pytest.raises(DataError, match=f"line 3: field 'price' holds '{cell}', {says}$"):
        read_table(path)


@pytest.mark.parametrize("end", [b"\n", b"", b"\n\n", b"\n\n\n\n", b"\r\n\r\n", b"\n" * 9000])
def test_blank_lines_at_the_end_are_no_rows(tmp_path, end):
    path = put(tmp_path, b"item_id:token\tprice:float\na\t1\nb\t" + end)
    assert check_rows(path) == 2
    table = read_table(path)
    assert table["item_id"].tolist() == ["a", "b"]
    assert table["price"].isna().tolist() == [False, True]
    with pytest.raises(DataError, match="no rows"):
        read_table(put(tmp_path, b"item_id:token\tprice:float\n" + end))


# ---- ids, titles, tags


def test_texts_that_pandas_takes_for_missing():
    assert READ_AS_MISSING == STR_NA_VALUES


@pytest.mark.parametrize(
    "token", ["", "NA", "nan", "a\tb", "a\nb", "a\rb", "a\0b", "\x1fa", "\x85", '"a', "[PAD]"]
)
def test_bad_ids(token):
    assert token_fault(token)


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=8, unique=True))
@TMP_PATH
def test_sound_ids_survive_the_reader_that_recbole_uses(tmp_path, tokens):
    tokens = [token for token in tokens if token_fault(token) is None]
    if not tokens:
        return
    text = "id:token\tx:token\n" + "".join(f"{token}\t{token}\n" for token in tokens)
    path = put(tmp_path, text)
    frame = pd.read_csv(path, delimiter="\t", dtype=str, encoding="utf-8", engine="python")
    assert frame.iloc[:, 0].tolist() == tokens
    assert read_table(path)["id"].tolist() == tokens


@given(st.text(max_size=40))
@settings(deadline=None)
def test_clean_text_fits_a_cell(text):
    cleaned = clean_text(text)
    assert cleaned == " ".join(cleaned.split()) and not cleaned.startswith('"')
    frame = pd.read_csv(
        io.StringIO(f"a\tb\nx\t{cleaned}\ny\tz\n"),
        sep="\t",
        dtype=str,
        engine="python",
        keep_default_na=False,
    )
    assert frame["b"].tolist() == [cleaned, "z"]


def test_a_tag_is_one_token():
    assert tag_token("  Slow   Cooker\tMeals ") == "slow_cooker_meals"
    assert tag_text("slow_cooker_meals") == "slow cooker meals"


# ---- feature files


# ---- replacing files


def test_a_failure_leaves_the_old_file(tmp_path):
    path = put(tmp_path, b"old")
    with pytest.raises(KeyboardInterrupt), replace_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.item"]
    with replace_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["x.item"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "big").mkdir()
    real, link = put(tmp_path / "big", b"old"), tmp_path / "x.item"
    link.symlink_to(real)
    with replace_file(link) as file:
        file.write(b"new")
    assert link.is_symlink() and real.read_bytes() == b"new"


def test_kill_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path):
    path = put(tmp_path, b"old")
    code = (
        "import sys, time\nfrom recbole_tema.data.atomic import replace_file\n"
        "with replace_file(sys.argv[1]) as file:\n"
        "    file.write(b'x' * 100_000); file.flush(); print('half', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert path.read_bytes() == b"old"
    (left,) = (entry for entry in tmp_path.iterdir() if entry != path)
    with replace_file(path) as file:
        file.write(b"new")
    assert left.exists()  # may belong to a living writer
    os.utime(left, (0, 0))
    with replace_file(path) as file:
        file.write(b"newer")
    assert os.listdir(tmp_path) == ["x.item"] and path.read_bytes() == b"newer"
