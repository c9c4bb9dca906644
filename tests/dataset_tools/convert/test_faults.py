"""Raw files with faults: what is left out is counted with its line, and nothing else is lost."""

import gzip
import json

import pytest

from dataset_tools.convert.engine import Engine
from dataset_tools.convert.intake import prepare
from dataset_tools.convert.sources.tables import Tables, read
from tests.support.conversions import run as command

pytest.importorskip("duckdb", reason="the extra convert is not installed")

HEAD = "user_id,item_id,timestamp,domain\n"
ROWS = [f"u{i % 4},{'bf'[i % 2]}{i % 6},{100 + i},{('book', 'film')[i % 2]}\n" for i in range(40)]
UPPER, LOWER = "".join(ROWS[:20]), "".join(ROWS[20:])
JSON = [
    f'{{"user_id": "u{i % 4}", "item_id": "{"bf"[i % 2]}{i % 6}", "timestamp": {100 + i}, '
    f'"domain": "{("book", "film")[i % 2]}"}}\n'
    for i in range(40)
]
MARK = "\ufeff"


def convert(folder, name, text, *options):
    """Convert one table; (exit code, kept events, all that it said)."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    words = (
        "--interactions",
        path,
        "--force",
        "--max_broken",
        1,
    )  # an option that comes later counts
    done = command(folder, "csv", *words, *options)
    inter = folder / "out" / "shop" / "shop.inter"
    kept = inter.read_text().splitlines()[1:] if done.exit_code == 0 else []
    return done.exit_code, kept, done.output


WHOLE = {
    "a byte order mark": MARK + HEAD + UPPER + LOWER,
    "joined files with marks": MARK + HEAD + UPPER + MARK + LOWER,
    "lines end in CR LF": (HEAD + UPPER + LOWER).replace("\n", "\r\n"),
    "some lines end in CR LF": HEAD + UPPER.replace("\n", "\r\n") + LOWER,
    "blank lines": HEAD + UPPER + "\n\n\n" + LOWER + "\n",
    "no end of the last line": (HEAD + UPPER + LOWER).rstrip("\n"),
    "gzip without the name of it": gzip.compress((HEAD + UPPER + LOWER).encode()),
}


@pytest.mark.parametrize("case", WHOLE)
def test_nothing_is_lost_of_a_table_with(tmp_path, case):
    _, expected, _ = convert(tmp_path, "plain.csv", HEAD + UPPER + LOWER)
    code, kept, said = convert(tmp_path, "table.csv", WHOLE[case])
    assert (code, kept) == (0, expected) and len(kept) == 40
    assert "left out" not in said


LEFT_OUT = {  # text, what is said, lines lost beside the bad one
    "Latin-1 among UTF-8": (
        (HEAD + UPPER).encode() + "café,b1,5,book\n".encode("latin-1") + LOWER.encode(),
        "1 line left out: not UTF-8 (line 22)",
        0,
    ),
    "NUL": (HEAD + UPPER + "u\x001,b1,5,book\n" + LOWER, "control character (row 21)", 0),
    "a line break in an id": (HEAD + UPPER + '"u\n1",b1,5,book\n' + LOWER, "(row 21)", 0),
    "a mark in an id": (HEAD + UPPER + f"u1,{MARK}b1,5,book\n" + LOWER, "(row 21)", 0),
    "too few cells": (HEAD + UPPER + "u1,b1,5\n" + LOWER, "too few cells (line 22)", 0),
    "too many cells": (HEAD + UPPER + "u1,b1,5,book,1\n" + LOWER, "too many cells (line 22)", 0),
    "another header": (HEAD + UPPER + "domain,user_id,item_id,time\n" + LOWER, "(row 21)", 0),
    "stray quotes": (HEAD + UPPER + 'u1,"b"1,5,book\n' + LOWER, "quotes that do not fit", 0),
    "a quote that is not closed": (
        HEAD + UPPER + 'u1,"b1,5,book\n' + LOWER,
        "21 lines left out: read as one cell, of a quote that is not closed (see --quote) "
        "(from line 22)",
        20,
    ),
    "a quote that is closed far below": (
        HEAD + UPPER + 'u1,"b1,5,book\n' + "".join(ROWS[20:30]) + '",1,film\n' + "".join(ROWS[30:]),
        "control character (row 21)",
        10,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_line_is_left_out_for(tmp_path, case):
    text, says, more = LEFT_OUT[case]
    code, kept, said = convert(tmp_path, "table.csv", text)
    assert code == 0 and says in said
    assert len(kept) == 40 - more
    assert convert(tmp_path, "table.csv", text, "--strict")[0] == 2


def test_a_quote_swallows_no_line_in_silence_in_a_large_file(tmp_path):
    """DuckDB gives up a cell at its longest line, and tells of that one line."""
    lines = [row for i in range(10_000) for row in ROWS]
    text = HEAD + "".join(lines[:20]) + 'u1,"b1,5,book\n' + "".join(lines[20:])
    code, kept, said = convert(tmp_path, "table.csv", text)
    assert code == 0 and len(kept) < len(lines)
    assert f"lines left out: {len(lines) + 1 - len(kept):,}\n" in said
    code, kept, said = convert(tmp_path, "table.csv", text, "--quote", "none")
    assert code == 0 and len(kept) == len(lines)
    assert "1 line left out: item opens with a quote (row 21)" in said


def test_cells_of_several_lines_are_no_lines_lost(tmp_path):
    cells = ['"a\nb"', '"a\n\n\nb"', '"\n"', '"a\r\nb"', '""', '"a ""b"" c"', "plain"]
    head = HEAD.replace("\n", ",text\n")
    text = head + "".join(
        row.replace("\n", f",{cells[i % len(cells)]}\n") + "\n" * (i % 3 == 0)
        for i, row in enumerate(ROWS)
    )
    code, kept, said = convert(tmp_path, "table.csv", text)
    assert code == 0 and len(kept) == 40 and "left out" not in said


def test_broken_lines_of_json(tmp_path):
    bad = '{"user_id": "u1", "item\n[1, 2]\n"text"\n\n' + JSON[0].replace("100", "NaN")
    text = MARK + "".join(JSON[:20]) + bad + "".join(JSON[20:])
    code, kept, said = convert(tmp_path, "table.jsonl", text)
    assert code == 0 and len(kept) == 40
    assert "3 lines left out: no JSON object (rows 21, 22, 23)" in said
    assert "1 line left out: time is no number or known date, such as 'NaN' (row 25)" in said


REFUSED = {
    "UTF-16": ((HEAD + UPPER).encode("utf-16"), "UTF-16"),
    "lines end in CR": ((HEAD + UPPER).replace("\n", "\r"), "CR alone"),
    "a zip": (b"PK\x03\x04" + b"x" * 50, "zip archive"),
    "nothing": ("", "no header line"),
    "a header alone": (HEAD, "no sound event"),
    "one name twice": (HEAD.replace("domain", "user_id") + UPPER, "name of another"),
    "another delimiter": ((HEAD + UPPER).replace(",", ";"), "--delimiter ';'"),
    "all of it broken": (HEAD + "u1,b1,5\n" * 5, "all of its 5 lines are broken: too few cells"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_is_refused_that_is(tmp_path, case):
    text, says = REFUSED[case]
    code, _, said = convert(tmp_path, "table.csv", text)
    assert code == 2 and says in said and "table.csv" in said
    assert not (tmp_path / "out" / "shop").exists()


def test_other_delimiters_and_quotes(tmp_path):
    text = (HEAD + UPPER + LOWER).replace(",", ";")
    code, kept, _ = convert(tmp_path, "table.csv", text, "--delimiter", ";")
    assert code == 0 and len(kept) == 40
    text = (HEAD + UPPER + LOWER).replace(",", "\t").replace("u1", "'u1'")
    code, kept, _ = convert(tmp_path, "table.csv", text, "--delimiter", "tab", "--quote", "'")
    assert code == 0 and sum(line.startswith("u1\t") for line in kept) == 10
    code, _, said = convert(tmp_path, "table.csv", text, "--delimiter", "::::::")
    assert code == 2 and "not 1 to 4 characters" in said
    code, _, said = convert(tmp_path, "table.csv", text, "--quote", "''")
    assert code == 2 and "not one character" in said


@pytest.mark.parametrize("name", ["table.json", "table.json.gz", "table.dat"])
@pytest.mark.parametrize("between", ["", "\n", "\n\n  "], ids=["one line", "lines", "blanks"])
def test_an_array_of_json_is_read(tmp_path, name, between):
    _, expected, _ = convert(tmp_path, "plain.jsonl", "".join(JSON))
    rows = [json.dumps(json.loads(line), indent=2 if between else None) for line in JSON]
    text = f" [{between}" + f",{between}".join(rows) + f"{between}]\n"
    data = gzip.compress(text.encode()) if name.endswith(".gz") else text
    code, kept, said = convert(tmp_path, name, data, "--max_broken", "0")
    assert (code, kept) == (0, expected) and len(kept) == 40, said
    code, _, said = convert(tmp_path, "cut.json", text[:-3])
    assert code == 2 and "cut.json" in said and "Traceback" not in said


def test_more_than_a_small_share_of_broken_lines_is_an_error(tmp_path):
    """A hundredth: 100 lines may have one, whatever is wrong with it, and not two."""
    rows = [ROWS[i % 40] for i in range(99)]
    for bad in ("u1,b1,5\n", "u1,,5,book\n", "u1,b1,soon,book\n", "u1,b1,5,\n"):
        text = HEAD + "".join(rows[:50]) + bad + "".join(rows[50:])
        code, kept, said = convert(tmp_path, "table.csv", text, "--max_broken", "0.01")
        assert code == 0 and len(kept) == 99 and "lines left out: 1\n" in said
        assert not convert(tmp_path, "table.csv", text)[0]
        done = tmp_path / "out" / "shop" / "shop.inter"
        before = done.read_bytes()
        (tmp_path / "table.csv").write_text(text + bad)
        words = ("--interactions", tmp_path / "table.csv", "--force")
        for more in ([], ["--max_broken", "0.019"]):
            result = command(tmp_path, "csv", *words, *more)
            assert result.exit_code == 2 and done.read_bytes() == before
            assert "2 of its 101 lines are broken" in result.output
            assert "--max_broken 0.02" in result.output.splitlines()[-1]
        assert command(tmp_path, "csv", *words, "--max_broken", "0.02").exit_code == 0


@pytest.mark.parametrize("source", ["interactions", "items"])
def test_the_last_message_names_the_cause(tmp_path, source):
    """Not what follows of it: that no id is known, or no event is left."""
    events, items = tmp_path / "e.csv", tmp_path / "i.csv"
    times = ["28/03/2015 10:00", "29/03/2015 10:00"] if source == "interactions" else ["1", "2"]
    domain = ["", ""] if source == "items" else ["x", "y"]
    events.write_text(f"user_id,item_id,timestamp\nu1,a,{times[0]}\nu1,b,{times[1]}\n")
    items.write_text(f"item_id,domain,title\na,{domain[0]},A\nb,{domain[1]},B\n")
    words = ("--interactions", events, "--items", items)
    done = command(tmp_path, "csv", *words)
    last = done.output.splitlines()[-1]
    assert done.exit_code == 2 and last.startswith("error: ")
    if source == "items":
        assert "i.csv" in last and "no domain (rows 1, 2)" in last
        return
    assert "e.csv" in last and "'28/03/2015 10:00' (rows 1, 2)" in last
    assert "--time_format '%d/%m/%Y %H:%M'" in last
    done = command(tmp_path, "csv", *words, "--time_format", "%d/%m/%Y %H:%M")
    assert done.exit_code == 0, done.output
    found = (tmp_path / "out/shop/shop.inter").read_text().splitlines()[1:]
    assert [row.split("\t")[2] for row in found] == ["1427536800", "1427623200"]


def test_a_key_of_json_is_never_sql(tmp_path):
    """Keys are names of columns, and the file is not ours."""
    target = tmp_path / "written.csv"
    keys = [
        f"x\" FROM (SELECT '1' AS line); COPY (SELECT 42) TO '{target}'; --",
        'say "hi"', "", "a/b~c", "$.x[0]", "rowid", "_number", "_good", "User_ID",
    ]  # fmt: skip
    rows = [{**dict.fromkeys(keys, "other"), **json.loads(line)} for line in JSON]
    code, kept, _ = convert(tmp_path, "table.jsonl", "\n".join(map(json.dumps, rows)))
    assert code == 0 and len(kept) == 40 and not target.exists()
    _, expected, _ = convert(tmp_path, "plain.jsonl", "".join(JSON))
    assert kept == expected
    words = ["--column", "domain=a/b~c", "--column", "user_id=User_ID"]
    code, kept, _ = convert(tmp_path, "table.jsonl", "\n".join(map(json.dumps, rows)), *words)
    assert code == 2  # one domain, `other`


@pytest.mark.parametrize("name", ["rowid", "_number", "_good", 'a"b', "select", "n o"])
def test_columns_of_any_name(tmp_path, name):
    quoted = '"' + name.replace('"', '""') + '"'
    text = HEAD.replace("\n", f",{quoted}\n") + "".join(r.replace("\n", ",9\n") for r in ROWS)
    code, kept, _ = convert(tmp_path, "table.csv", text)
    assert code == 0 and len(kept) == 40


def test_keys_that_come_late_count(tmp_path):
    first = JSON * 30
    late = [line.replace("{", '{"rating": 4, ') for line in JSON]
    code, kept, _ = convert(tmp_path, "table.jsonl", "".join(first + late))
    assert code == 0 and sum(line.endswith("\t4") for line in kept) == 40


def test_times_of_zones_and_units(tmp_path):
    day = 1517385600  # 2018-01-31 08:00 UTC
    times = ["2018-01-31T10:00:00+02:00", "2018-01-31 08:00:00", "2018-01-31T08:00:00Z"]
    times += [str(day), f"{day}000", f"{day}000000", f"{day}000000000"]
    rows = [f"u,{'bf'[i % 2]}{i},{time},{'xy'[i % 2]}\n" for i, time in enumerate(times)]
    code, kept, _ = convert(tmp_path, "table.csv", HEAD + "".join(rows))
    assert code == 0 and {line.split("\t")[2] for line in kept} == {str(day)} and len(kept) == 7


def test_half_of_the_lines_broken_loses_no_other(tmp_path):
    """In threads DuckDB lost a quarter of the good ones."""
    cut = [row.replace(",book", "").replace(",film", "") for row in ROWS]
    rows = [(cut, ROWS)[i % 2][i // 2 % 40] for i in range(300_000)]
    good = sum(row.count(",") == 3 for row in rows)
    code, kept, said = convert(tmp_path, "table.csv", HEAD + "".join(rows))
    assert code == 0 and len(kept) == good
    assert f"lines left out: {len(rows) - good:,}\n" in said and "quote" not in said


def test_a_column_that_is_in_no_file(tmp_path):
    code, _, said = convert(tmp_path, "table.csv", HEAD + UPPER, "--column", "rating=ratng")
    assert code == 2 and "no file has a column 'ratng'" in said


def test_a_file_given_twice(tmp_path):
    path = tmp_path / "table.csv"
    code, _, said = convert(tmp_path, "table.csv", HEAD + UPPER, "--interactions", str(path))
    assert code == 2 and "given twice" in said


def test_one_table_can_tell_of_events_and_of_items(tmp_path):
    text = HEAD.replace("\n", ",title\n") + "".join(r.replace("\n", ",A title\n") for r in ROWS)
    code, kept, _ = convert(tmp_path, "table.csv", text, "--items", str(tmp_path / "table.csv"))
    assert code == 0 and len(kept) == 40
    assert "A title" in (tmp_path / "out/shop/shop.item").read_text()


def test_a_broken_line_of_a_table_of_events_and_items_counts_once(tmp_path):
    text = HEAD + UPPER + "u1,b1\nu1,,5,book\n" + LOWER
    code, kept, said = convert(tmp_path, "table.csv", text, "--items", str(tmp_path / "table.csv"))
    assert code == 0 and len(kept) == 40 and "; lines left out: 2\n" in said
    assert said.count("too few cells") == 1 and said.count("no item") == 1
    text += "u1,b1\n" * 6  # 7 of the 48 lines have too few cells
    for file in (["--items", str(tmp_path / "table.csv")], []):
        words = [*file, "--max_broken", "0.14"]
        code, _, said = convert(tmp_path, "table.csv", text, *words)
        assert code == 2 and "8 of its 48 lines are broken" in said


@pytest.mark.parametrize("name", ["table.csv", "table.jsonl"])
def test_nothing_read_stays_in_memory_but_events_and_items(tmp_path, name):
    (tmp_path / name).write_text(HEAD + UPPER if name == "table.csv" else "".join(JSON))
    (tmp_path / "work").mkdir()
    engine = Engine(tmp_path / "work", 1 << 30, 1)
    prepare(engine)
    read(engine, Tables([(None, tmp_path / name)], []))
    tables = engine.rows("SELECT table_name FROM information_schema.tables ORDER BY 1")
    assert tables == [("raw_events",), ("raw_items",)]


def test_items_of_other_domains_are_told(tmp_path):
    items = tmp_path / "items.csv"
    items.write_text("item_id,domain,title\nb0,Book,x\nf1,Film,y\n")
    code, _, said = convert(tmp_path, "table.csv", HEAD + UPPER, "--items", str(items))
    assert code == 2 and "none of the 1 items of 'Book'" in said and "book, film" in said


@pytest.mark.parametrize(
    "option, value, says",
    [
        ("--min_rating", "nan", "no finite number"),
        ("--overlap_ratio", "nan", "no finite number"),
        ("--after", "2018", "2018-01-31"),
        ("--before", "20180131", "can be a date or seconds"),
        ("--memory", "9999999TB", "more than any machine"),
    ],
)
def test_options_are_refused_in_one_line(tmp_path, option, value, says):
    code, _, said = convert(tmp_path, "table.csv", HEAD + UPPER, option, value)
    assert code == 2 and says in said and "Traceback" not in said


def test_presets_with_dates_and_faults(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("convert:\n  after: 1970-01-01\n  before: 2016-01-01 10:00:00\n")
    assert convert(tmp_path, "table.csv", HEAD + UPPER, "--preset", str(preset))[0] == 0
    for text in ("convert:\n  single_domain: 0.5\n", "convert: [\n"):
        preset.write_text(text)
        code, _, said = convert(tmp_path, "table.csv", HEAD + UPPER, "--preset", str(preset))
        assert code == 2 and "Traceback" not in said


def test_too_many_domains(tmp_path):
    rows = "".join(f"u,i{i},1,d{i}\n" for i in range(300))
    code, _, said = convert(tmp_path, "table.csv", HEAD + rows)
    assert code == 2 and "more than 255 domains" in said


def test_one_id_of_two_names_and_domains(tmp_path):
    rows = "u,b_c,1,a\nu,c,2,a_b\nu,c,3,a\n"
    code, _, said = convert(tmp_path, "table.csv", HEAD + rows)
    assert code == 2 and "have the same id 'a_b_c'" in said


def test_parts_for_recbole_cdr_are_refused_before_the_work(tmp_path):
    done = tmp_path / "out" / "shop-film"
    done.mkdir(parents=True)
    (done / "shop-film.inter").write_text("mine")
    path = tmp_path / "table.csv"
    path.write_text(HEAD + UPPER)
    words = ("--interactions", path, "--recbole_cdr")
    result = command(tmp_path, "csv", *words)
    assert result.exit_code == 2 and "shop-film.inter exists" in result.output
    assert not (tmp_path / "out" / "shop").exists()
    (done / "shop-film.inter").unlink()
    (tmp_path / "out" / "shop-recbole_cdr.yaml").write_text("mine")
    result = command(tmp_path, "csv", *words)
    assert result.exit_code == 2 and "shop-recbole_cdr.yaml exists" in result.output


def test_what_a_killed_conversion_left_goes_with_the_next(tmp_path):
    old = tmp_path / "out" / ".shop.convert-old"
    old.mkdir(parents=True)
    (old / "spill").write_text("x")
    assert convert(tmp_path, "table.csv", HEAD + UPPER)[0] == 0
    assert not old.exists()
