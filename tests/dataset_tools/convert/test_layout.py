"""Tables and sequences in the forms that datasets are published in, told or asked for."""

import json

import pytest

from tests.support.conversions import run as command
from tests.support.conversions import written

duckdb = pytest.importorskip("duckdb", reason="the extra convert is not installed")

EVENTS = [("u1", "a", 4, 1300000000), ("u2", "a", 5, 1300000001), ("u1", "b", 3, 1300000002)]
FILMS = [("u1", "f", 5, 1300000003), ("u2", "g", 2, 1300000004)]
TOLD = [(u, i, float(t)) for u, i, _, t in EVENTS + FILMS]


def table(rows, between=",", head=None):
    lines = [] if head is None else [head]
    return "".join(between.join(map(str, row)) + "\n" for row in lines + list(rows))


def convert(folder, files, *options, domains=("x", "y")):
    """Convert files (option -> texts, or names -> texts); (exit code, events, what was said)."""
    words = []
    for (option, name), text in files.items():
        path = folder / name.split("=")[-1]
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        domain = name.split("=")[0] + "=" if "=" in name else ""
        words += [option, f"{domain}{path}"]
    done = command(folder, "csv", *words, "--force", *options)
    if done.exit_code:
        last = done.output.splitlines()[-1]
        assert last.lower().startswith("error: ") and not (folder / "out" / "shop").exists()
        return done.exit_code, None, last
    inter = written(folder, "inter")
    columns = ["user_id", "item_id", "timestamp"] + ["split"] * ("split" in inter)
    return 0, list(inter[columns].itertuples(index=False, name=None)), done.output


def pair(first, second, ends=("csv", "csv")):
    """Two tables, of x and of y."""
    return {
        ("--interactions", f"x=one.{ends[0]}"): first,
        ("--interactions", f"y=two.{ends[1]}"): second,
    }


def one(rows):
    """A table with a column of the domain before the times."""
    head = ("user_id", "item_id", "domain", "timestamp")
    return {("--interactions", "e.csv"): table(rows, head=head)}


HEAD = ("user_id", "item_id", "rating", "timestamp")


@pytest.mark.parametrize("end", ["dat", "txt", "data", "csv.1"])
@pytest.mark.parametrize("between", ["\t", "::", ",", ";", "|"])
def test_the_first_lines_tell_what_the_name_does_not(tmp_path, end, between):
    files = pair(table(EVENTS, between, HEAD), table(FILMS, between, HEAD), (end, end))
    code, found, said = convert(tmp_path, files)
    assert (code, found) == (0, TOLD), said
    if (end, between) != ("txt", "\t"):
        assert said.count("taken for a table with") == 2  # never in silence
    word = {"\t": "tab"}.get(between, between)
    code, found, said = convert(tmp_path, files, "--delimiter", word)
    assert (code, found) == (0, TOLD) and "taken for" not in said


def test_parquet_and_json_by_their_content(tmp_path):
    rows = [dict(zip(HEAD, row, strict=True)) for row in FILMS]
    frame = duckdb.sql(
        f"SELECT * FROM (VALUES {', '.join(map(str, EVENTS))}) AS t{HEAD}".replace(
            "'user_id', 'item_id', 'rating', 'timestamp'", "user_id, item_id, rating, timestamp"
        )
    )
    frame.write_parquet(str(tmp_path / "one.bin"))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    files = pair((tmp_path / "one.bin").read_bytes(), text, ("bin", "log"))
    code, found, said = convert(tmp_path, files)
    assert (code, found) == (0, TOLD), said


def test_a_delimiter_that_two_can_be_is_asked_for(tmp_path):
    rows = [("u1;x", "a;y", "1"), ("u2;x", "b;y", "2")]
    code, _, said = convert(tmp_path, pair(table(rows), table(rows), ("dat", "dat")))
    assert code == 2 and "',' or ';' may be between its cells; add --delimiter" in said


def test_a_table_without_header_is_asked_about(tmp_path):
    """User and item come in either order in what is published, so nobody guesses it."""
    files = pair(table(EVENTS), table(FILMS))
    code, _, said = convert(tmp_path, files)
    assert code == 2 and "one.csv, line 1" in said
    assert "--columns user_id,item_id,rating,timestamp" in said
    code, found, _ = convert(tmp_path, files, "--columns", "user_id,item_id,rating,timestamp")
    assert (code, found) == (0, TOLD)
    turned = pair(*(table((i, "-", u, t) for u, i, _, t in part) for part in (EVENTS, FILMS)))
    code, found, _ = convert(tmp_path, turned, "--columns", "item_id,_,user_id,timestamp")
    assert (code, found) == (0, TOLD)
    files = pair(table(EVENTS, head=HEAD), table(FILMS))  # one of them has a header
    code, found, said = convert(tmp_path, files, "--columns", "user_id,item_id,rating,timestamp")
    assert (code, found) == (0, TOLD) and "one.csv: line 1 is a header" in said


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("user_id,item_id,timestamp", "4 cells (u1, a, 4, 1300000000), but --columns names 3"),
        ("user_id,item,rating,timestamp", "nearest: 'item_id'"),
        ("user_id,_,rating,timestamp", "names no 'item_id'"),
        ("user_id,item_id,item_id,timestamp", "names 'item_id' twice"),
        ("user_id,,rating,timestamp", "not of the form"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, columns, says):
    files = pair(table(EVENTS), table(FILMS))
    code, _, said = convert(tmp_path, files, "--columns", columns)
    assert code == 2 and says in said


def test_a_header_of_which_one_name_is_known_is_no_event(tmp_path):
    rows = [("u1", "a"), ("u2", "b"), ("item", "date")]  # words that name columns elsewhere
    files = pair(table(rows, head=("user", "song")), table(rows[:2]))
    code, found, said = convert(tmp_path, files, "--columns", "user_id,item_id")
    assert code == 0 and "one.csv: line 1 (user, song) is taken for a header and left out" in said
    assert len(found) == 5 and "song" not in {i for _, i, _ in found}
    files = pair(table([("date", "u1"), ("x", "u1")]), table([("f", "u1")]))
    code, found, said = convert(tmp_path, files, "--columns", "item_id,user_id")
    assert code == 0 and "taken for a header" not in said and len(found) == 3


def test_a_column_that_one_file_names_differently(tmp_path):
    """The usual names still count in the other files, unless another column has them."""
    head = ("customer", "item_id", "rating", "timestamp")
    files = pair(table(EVENTS, head=head), table(FILMS, head=HEAD))
    code, found, said = convert(tmp_path, files, "--column", "user_id=customer")
    assert (code, found) == (0, TOLD), said
    items = "item_id,domain,genre\na,x,Q\nf,y,R\n", "item_id,domain,kind,genre\nb,x,S,T\n"
    files |= {("--items", f"i{n}.csv"): text for n, text in enumerate(items)}
    options = ["--column", "user_id=customer", "--column", "category=kind"]
    assert convert(tmp_path, files, *options)[0] == 0
    kept = written(tmp_path, "item").set_index("item_id")["category"]
    assert kept[["a", "b", "f"]].tolist() == ["Q", "S", "R"]
    assert convert(tmp_path, files, *options[:3], "brand=genre")[0] == 0
    assert "category" not in written(tmp_path, "item")
    (tmp_path / "new").mkdir()
    code, _, said = convert(tmp_path / "new", files, "--column", "user_id=customers")
    assert code == 2 and "nearest: 'customer'" in said


def test_double_colons_and_items_without_header(tmp_path):
    items = table([("a", 'A "b" c', "x"), ("b", '"B', "x"), ("f", "F", "y"), ("g", "G", "y")], "::")
    files = {
        ("--interactions", "ratings.dat"): table(EVENTS + FILMS, "::"),
        ("--items", "movies.dat"): items,
    }
    options = ["--columns", "user_id,item_id,rating,timestamp", "--delimiter", "::"]
    options += ["--item_columns", "item_id,title,domain"]
    code, found, said = convert(tmp_path, files, *options)
    assert (code, found) == (0, TOLD), said
    titles = written(tmp_path, "item")["title"].tolist()
    assert titles == ['A "b" c', '"B', "F", "G"]


def test_an_index_is_no_column(tmp_path):
    rows = [(n, *row) for n, row in enumerate(EVENTS)]
    files = pair(table(rows, head=("", *HEAD)), table(FILMS, head=HEAD))
    code, found, said = convert(tmp_path, files)
    assert (code, found) == (0, TOLD) and "one.csv: column 1 has no name" in said


# ---- times


def test_without_times_the_files_tell_the_order(tmp_path):
    rows = [
        ("u2", "b", "x"),
        ("u1", "a", "x"),
        ("u2", "f", "y"),
        ("u1", "b", "x"),
        ("u2", "a", "x"),
    ]
    text = table(rows, head=("user_id", "item_id", "domain"))
    code, found, said = convert(tmp_path, {("--interactions", "e.csv"): text})
    assert code == 0 and "no times: a user's events keep the order of e.csv" in said
    assert sorted(found) == [
        ("u1", "a", 0), ("u1", "b", 1), ("u2", "a", 2), ("u2", "b", 0), ("u2", "f", 1),
    ]  # fmt: skip
    assert written(tmp_path, "yaml")["timestamp"].startswith("position")
    (tmp_path / "out/shop/shop.yaml").unlink()
    for option, value in (("--after", "2018-01-01"), ("--dedupe", "60")):
        words = ("--interactions", tmp_path / "e.csv", option, value)
        done = command(tmp_path, "csv", *words, name="new")
        assert done.exit_code == 2 and "the source has no times" in done.output


def test_an_order_that_nothing_tells_is_asked_for(tmp_path):
    plain = table([row[:2] for row in EVENTS], head=HEAD[:2])
    files = pair(plain, table(FILMS, head=HEAD))
    code, _, said = convert(tmp_path, files)
    assert code == 2 and "one.csv: no times" in said and "--order file" in said
    code, found, said = convert(tmp_path, files, "--order", "file")
    assert code == 0 and {(u, i) for u, i, _ in found} == {(u, i) for u, i, _ in TOLD}
    assert "one file after the other" in said  # the order across domains is of nobody
    for path in (tmp_path / "out/shop").iterdir():
        path.unlink()
    (tmp_path / "out/shop").rmdir()
    files = pair(table(EVENTS, head=(*HEAD[:3], "when")), table(FILMS, head=(*HEAD[:3], "when")))
    code, _, said = convert(tmp_path, files)  # a column that can be of times
    assert code == 2 and "--column timestamp=NAME" in said and "--order file" in said


DATES = [  # a day each: 3 May 2014
    "05 3, 2014", "May 3, 2014", "3 May 2014", "03-May-2014", "2014/05/03", "2014.05.03",
    "2014-05-03", "Sat, 03 May 2014 00:00:00 GMT", "Sat May 03 02:00:00 +0200 2014",
    "May 03, 2014 00:00:00", "2014-05-03T00:00:00Z", "1399075200", "1399075200000",
]  # fmt: skip


def test_dates_that_can_be_read_in_one_way(tmp_path):
    rows = [("u1", f"i{n}", "xy"[n % 2], f'"{date}"') for n, date in enumerate(DATES)]
    code, found, said = convert(tmp_path, one(rows))
    assert code == 0 and "left out" not in said
    assert {i: t for _, i, t in found} == {f"i{n}": 1399075200 for n in range(len(DATES))}


@pytest.mark.parametrize(
    ("dates", "form"),
    [(("20140503", "20140504"), "%Y%m%d"), (("20140503000000", "20140504000000"), "%Y%m%d%H%M%S")],
)
def test_numbers_that_are_dates_are_said_to_be(tmp_path, dates, form):
    rows = [("u1", "a", "x", dates[0]), ("u1", "b", "y", dates[1])]
    code, found, said = convert(tmp_path, one(rows))
    assert code == 0 and f"dates of the form {form}" in said
    assert [t for *_, t in found] == [1399075200, 1399075200 + 86400]


@pytest.mark.parametrize("broken", ["unknown", "0", "20141399", "NaN"])
@pytest.mark.parametrize("end", ["", ".0"])
def test_a_cell_that_is_no_date_leaves_the_others_dates(tmp_path, broken, end):
    days = [f"2014050{n}{end}" for n in range(1, 6)]
    rows = [("u1", f"b{n}", "x", day) for n, day in enumerate(days)] + [("u2", "b0", "x", broken)]
    rows += [("u1", "f0", "y", f"20130501{end}"), ("u2", "f1", "y", f"20130502{end}")]
    code, found, said = convert(tmp_path, one(rows), "--max_broken", "0.5")
    assert code == 0 and "dates of the form %Y%m%d" in said and "1 line left out" in said
    assert [t for u, _, t in found if u == "u1"] == [1367366400] + [  # 2013-05-01
        1398902400 + 86400 * n
        for n in range(5)  # from 2014-05-01
    ]


def test_dates_of_two_forms_of_which_one_can_be_seconds_are_asked_about(tmp_path):
    dates = ["20140501", "20140502", "20140503", "2014-05-04"]
    rows = [("u1", f"i{n}", "xy"[n % 2], date) for n, date in enumerate(dates)]
    code, _, said = convert(tmp_path, one(rows))
    assert code == 2 and "'2014-05-04'" in said and "--time_format" in said
    # These are seconds, and may stand beside a date.
    rows = [(*row[:3], row[3].replace("201405", "1405")) for row in rows]
    code, found, _ = convert(tmp_path, one(rows))
    assert code == 0 and len(found) == 4


@pytest.mark.parametrize(
    ("date", "asks"),
    [
        ("28/03/2015", "--time_format '%d/%m/%Y'"),
        ("03/28/2015 10:00", "--time_format '%m/%d/%Y %H:%M'"),
        ("03/04/15", "--time_format '%d/%m/%y' or '%m/%d/%y'"),
        ("03-04-15", "--time_format '%d-%m-%y' or '%m-%d-%y'"),
        ("May 3, 14", "--time_format, of strptime"),
        ("03/04/2015", "--time_format '%d/%m/%Y' or '%m/%d/%Y'"),
        ("3.4.15", "--time_format '%d.%m.%y' or '%m.%d.%y'"),
        ("soon", "--time_format, of strptime"),
    ],
)
def test_dates_that_can_be_read_in_two_ways_are_asked_about(tmp_path, date, asks):
    rows = [("u1", "a", "x", f'"{date}"'), ("u1", "b", "y", f'"{date}"')]
    code, _, said = convert(tmp_path, one(rows))
    assert code == 2 and repr(date) in said and asks in said


def test_a_form_of_times_is_checked(tmp_path):
    rows = [("u1", "a", "x", "03/04/2015"), ("u1", "b", "y", "04/04/2015")]
    files = one(rows)
    code, _, said = convert(tmp_path, files, "--time_format", "%Q")
    assert code == 2 and "no form of strptime" in said
    code, found, _ = convert(tmp_path, files, "--time_format", "%d/%m/%Y")
    assert code == 0 and [t for *_, t in found] == [1428019200, 1428105600]


# ---- sequences


# ---- what is published
