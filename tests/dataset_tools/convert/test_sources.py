"""Every source in its true format: what comes out, by hand."""

import gzip
import json
import shutil
import zipfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from dataset_tools.builtin.movielens import film_table
from dataset_tools.convert.engine import engine
from dataset_tools.convert.run import Conversion, convert
from dataset_tools.convert.sources import amazon, douban, movielens, recbole, tables
from dataset_tools.describe.measures import describe
from recbole_tema.errors import DataError
from tests.support.conversions import run as command
from tests.support.conversions import written
from tests.support.convert_formats import duckdb, packed


def run(folder, read, **keys):
    """Convert; (frame of NAME.inter, frame of NAME.item, what came of it)."""
    done = convert(Conversion(read, "test", threads=1, **keys), folder / "out", "out", force=True)
    frames = [
        pd.read_csv(folder / "out" / f"out.{s}", sep="\t", dtype=str, keep_default_na=False)
        for s in ("inter", "item")
    ]
    return *(f.rename(columns=lambda c: c.partition(":")[0]) for f in frames), done


def write_lines(path, lines):
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def reviews(release, domain, n=6):
    rows = []
    for i in range(n):
        user, item, stars, time = f"A{i % 4}", f"{domain[0].upper()}00{i % 3}", 1 + i % 5, 1.5e9 + i
        if release == "2023":
            row = {"rating": stars, "title": "x", "asin": f"V{i}", "parent_asin": item}
            row |= {"user_id": user, "timestamp": int(time) * 1000 + 250, "verified_purchase": True}
        else:
            row = {"reviewerID": user, "asin": item, "overall": float(stars)}
            row |= {"unixReviewTime": int(time), "reviewText": 'a "quoted"\ttext\n', "style": {}}
        rows.append(json.dumps(row))
    return rows


META = {
    "2014": [
        "{'asin': 'F000', 'title': \"Tea & 'Honey'\", 'categories': [['Grocery', 'Green Tea']], "
        "'price': 12.5, 'brand': 'Acme', 'imUrl': 'http://i.org/f.jpg', 'related': {}}",
        "{'asin': 'F001', 'categories': [['Grocery']]}",
        "{'asin': 'OTHER', 'title': 'not reviewed'}",
    ],
    "2018": [
        json.dumps(
            {"asin": "F000", "title": "Tea & 'Honey'", "category": ["Grocery", "Green Tea"]}
            | {"price": "$12.50", "brand": "Acme", "imageURLHighRes": ["http://i.org/f.jpg"]}
        ),
        json.dumps({"asin": "F001", "category": ["Grocery"], "price": "", "imageURL": []}),
    ],
    "2023": [
        json.dumps(
            {"parent_asin": "F000", "title": "Tea & 'Honey'", "store": "Acme", "price": 12.5}
            | {"categories": ["Grocery", "Green Tea"], "main_category": "Grocery"}
            | {"images": [{"thumb": "t", "large": "http://i.org/f.jpg"}], "description": ["a", "b"]}
        ),
        json.dumps({"parent_asin": "F001", "categories": [], "main_category": "Grocery"}),
    ],
}


@pytest.mark.parametrize("release", ["2014", "2018", "2023"])
def test_amazon(tmp_path, release):
    end = "jsonl.gz" if release == "2023" else "json.gz"
    files = [
        (domain, write_lines(tmp_path / f"{domain}.{end}", reviews(release, domain)))
        for domain in ("food", "kitchen")
    ]
    meta = [("food", write_lines(tmp_path / f"meta.{end}", META[release]))]
    inter, items, done = run(tmp_path, lambda engine: amazon.read(engine, files, meta))
    assert done.broken.total() == 0 and len(inter) == 12
    start = 1500000000.25 if release == "2023" else 1500000000.0
    assert inter["timestamp"].astype(float).tolist() == [start + i // 2 for i in range(12)]
    assert inter["user_id"][:4].tolist() == ["A0", "A0", "A1", "A1"]
    assert inter["rating"][:6].tolist() == ["1", "1", "2", "2", "3", "3"]
    other = ["OTHER"] if release == "2014" else []  # has no review
    assert items["item_id"].tolist() == ["F000", "F001", "F002", *other, "K000", "K001", "K002"]
    tea = items.iloc[0]
    assert tea["title"] == "Tea & 'Honey'" and tea["category"] == "Grocery Green_Tea"
    assert (tea["brand"], tea["price"], tea["image_url"]) == ("Acme", "12.5", "http://i.org/f.jpg")
    assert items["category"][1] == "Grocery" and items["title"][2] == ""
    assert list(items["domain"]) == ["food"] * (3 + len(other)) + ["kitchen"] * 3
    assert done.counts["items_without_events"] == len(other)


def test_amazon_metadata_of_another_category(tmp_path):
    files = [
        (domain, write_lines(tmp_path / f"{domain}.json", reviews("2018", domain)))
        for domain in ("food", "kitchen")
    ]
    meta = [("kitchen", write_lines(tmp_path / "meta.json", META["2018"]))]
    with pytest.raises(DataError, match="another category"):
        run(tmp_path, lambda engine: amazon.read(engine, files, meta))
    with pytest.raises(DataError, match="no reviewerID or user_id"):
        swapped = [("food", meta[0][1]), files[1]]
        run(tmp_path, lambda engine: amazon.read(engine, swapped, []))


@pytest.mark.parametrize("release", ["2014", "2018"])
def test_amazon_metadata_is_judged_by_all_of_its_lines(tmp_path, release):
    """Not by the lines of reviewed items, of which a category has few."""
    files = [
        (domain, write_lines(tmp_path / f"{domain}.json", reviews("2018", domain)))
        for domain in ("food", "kitchen")
    ]
    idle = (json.dumps({"asin": f"N{n}", "title": "t"}) for n in range(298))
    lines = [*META[release][:2], *idle, "{"]
    meta = [("food", write_lines(tmp_path / "meta.json", lines))]
    words = [*(f"{domain}={path}" for domain, path in files), "--force"]
    words += ["--metadata", f"food={meta[0][1]}"]
    for options in (["--item_core", "2"], ["--items_without_events", "drop"], []):
        done = command(tmp_path, "amazon", *words, *options)
        assert done.exit_code == 0 and "; lines left out: 1" in done.output, done.output
        assert ("left out by --item_core: 298" in done.output) == ("--item_core" in options)
        done = command(tmp_path, "amazon", *words, "--max_broken", "0.003", *options)
        assert done.exit_code == 2 and "1 of its 301 lines are broken" in done.output
    assert (written(tmp_path, "item")["title"] != "").sum() == 1 + 298


def ml_100k(folder):
    write_lines(folder / "u.data", ["1\t1\t5\t100", "2\t2\t3\t90", "1\t2\t4\t100", "2\t3\t1\t95"])
    none = ["0"] * 19

    def flags(*which):
        return "|".join("1" if i in which else "0" for i in range(len(none)))

    rows = [
        f"1|Copycat (1995)|01-Jan-1995||http://a|{flags(6, 8, 16)}",
        f"2|Caf\u00e9 (1994)|01-Jan-1994||http://b|{flags(14, 17)}",
        f"3|unknown||||{flags(0)}",
    ]
    (folder / "u.item").write_bytes("".join(row + "\n" for row in rows).encode("latin-1"))


def ml_1m(folder):
    write_lines(
        folder / "ratings.dat", ["1::1::5::100", "2::2::3::90", "1::2::4::100", "2::3::1::95"]
    )
    rows = [
        "1::Copycat (1995)::Crime|Drama|Thriller",
        "2::Caf\u00e9 (1994)::Romance|War",
        "3::unknown::",
    ]
    (folder / "movies.dat").write_bytes("".join(row + "\n" for row in rows).encode("latin-1"))


def ml_32m(folder):
    head = ["userId,movieId,rating,timestamp"]
    write_lines(
        folder / "ratings.csv", head + ["1,1,5.0,100", "2,2,3.0,90", "1,2,4.0,100", "2,3,1.0,95"]
    )
    rows = ["movieId,title,genres", "1,Copycat (1995),Crime|Drama|Thriller"]
    rows += ["2,Caf\u00e9 (1994),Romance|War", "3,unknown,(no genres listed)"]
    write_lines(folder / "movies.csv", rows)


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("write", [ml_100k, ml_1m, ml_32m])
def test_movielens(tmp_path, write, packed):
    folder = tmp_path / "ml"
    folder.mkdir()
    write(folder)
    place = folder
    if packed:
        place = tmp_path / "ml.zip"
        with zipfile.ZipFile(place, "w") as file:
            for path in folder.iterdir():
                file.write(path, f"ml/{path.name}")
    inter, items, done = run(tmp_path, lambda engine: movielens.read(engine, place))
    assert done.broken.total() == 0
    assert inter.values.tolist() == [
        ["2", "2", "90", "3"],
        ["2", "3", "95", "1"],
        ["1", "1", "100", "5"],
        ["1", "2", "100", "4"],
    ]
    rows = items.set_index("item_id")
    # Two of Copycat's three genres are of thrill; of Cafe's two the first one, Romance, decides.
    assert rows["domain"].to_dict() == {"1": "thrill", "2": "heart", "3": "heart"}
    assert rows["title"].to_dict() == {"1": "Copycat", "2": "Caf\u00e9", "3": "unknown"}
    assert rows["year"].to_dict() == {"1": "1995", "2": "1994", "3": ""}
    assert rows["category"].to_dict() == {"1": "Crime Drama Thriller", "2": "Romance War", "3": ""}


RECBOLES = Path(find_spec("recbole").submodule_search_locations[0]) / "dataset_example/ml-100k"


def test_movielens_of_recboles_copy_is_the_built_in_dataset(tmp_path):
    inter, items, done = run(tmp_path, lambda engine: movielens.read(engine, RECBOLES))
    assert done.broken.total() == 0 and done.counts["users"] == 943
    raw = pd.read_csv(RECBOLES / "ml-100k.item", sep="\t", dtype=str, keep_default_na=False)
    films = film_table(raw.rename(columns=lambda head: head.partition(":")[0]))
    expected = films.set_index("item_id")
    found = items.set_index("item_id").loc[expected.index]
    assert found["domain"].equals(expected["domain"])
    assert found["category"].str.split().tolist() == expected["category"].tolist()
    known = expected["title"] != ""
    assert found["title"][known].equals(expected["title"][known])
    raw = pd.read_csv(RECBOLES / "ml-100k.inter", sep="\t", dtype=str)
    raw = raw.sort_values("timestamp:float", kind="stable")  # all of one length
    assert inter["user_id"].tolist() == raw["user_id:token"].tolist()
    assert inter["item_id"].tolist() == raw["item_id:token"].tolist()


def test_categories_of_plain_tables(tmp_path):
    cells = ["Green Tea|Sweets & Co", '["Green Tea", "Sweets"]', "Tea Sweets", "", "[not json"]
    rows = [{"item_id": f"i{n}", "domain": "ab"[n % 2], "category": c} for n, c in enumerate(cells)]
    packed(tmp_path / "items.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    lists = [["Green Tea", "Sweets & Co"], ["Green Tea", "Sweets"], ["Tea", "Sweets"], [], None]
    frame = pd.DataFrame(rows).assign(category=lists)  # noqa: F841 (DuckDB finds it by name)
    duckdb.sql("SELECT * FROM frame").write_parquet(str(tmp_path / "items.parquet"))
    events = [{"user_id": "u", "item_id": f"i{n}", "timestamp": n} for n in range(len(cells))]
    inter = packed(tmp_path / "e.jsonl", "".join(json.dumps(event) + "\n" for event in events))
    found = {}
    for end in ("jsonl", "parquet"):
        files = tables.Tables([(None, inter)], [(None, tmp_path / f"items.{end}")])
        _, items, _ = run(tmp_path / end, lambda e, files=files: tables.read(e, files))
        found[end] = dict(zip(items["item_id"], items["category"], strict=True))
    first = ["Green_Tea Sweets_&_Co", "Green_Tea Sweets", "Tea Sweets", ""]
    assert [found["jsonl"][f"i{n}"] for n in range(5)] == [*first, "[not json"]
    assert [found["parquet"][f"i{n}"] for n in range(5)] == [*first, ""]


def test_recboles_own_copies(tmp_path):
    source = RECBOLES
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for suffix in ("inter", "item"):
            shutil.copy(source / f"ml-100k.{suffix}", tmp_path / name / f"{name}.{suffix}")
    folders = [("a", tmp_path / "first"), ("b", tmp_path / "second")]
    inter, items, done = run(tmp_path, lambda engine: recbole.read(engine, folders))
    assert len(inter) == 200000 and done.counts["overlapping_users"] == 943
    assert len(items) == 2 * 1682 and items["item_id"].str.match("[ab]_").all()
    row = items.set_index("item_id").loc["a_1"]
    assert (row["title"], row["year"], row["category"]) == (
        "Toy Story", "1995", "Animation Children's Comedy",
    )  # fmt: skip


def test_quoted_cells_of_atomic_files(tmp_path):
    """As RecBole reads them: `"b"` is the item b, in both files, for `describe` too."""
    titles = {"a": '"Sunday Drive" on the coast', "b": '"""Quoted"" twice"', "c": 'A 12" disc'}
    for name in "xy":
        (tmp_path / name).mkdir()
        rows = "".join(f"{i}\t{title}\tTea Tea\n" for i, title in titles.items())
        rows = rows.replace("b\t", '"b"\t')
        text = f"item_id:token\ttitle:token_seq\tclass:token_seq\n{rows}"
        (tmp_path / name / f"{name}.item").write_text(text)
        text = 'user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\n"u"\t"b"\t2\nu\tc\t3\n'
        (tmp_path / name / f"{name}.inter").write_text(text)
    folders = [(name, tmp_path / name) for name in "xy"]
    inter, items, _ = run(tmp_path, lambda e: recbole.read(e, folders))
    assert Counter(inter["user_id"]) == {"u": 6}
    assert set(inter["item_id"]) == {f"{d}_{i}" for d in "xy" for i in "abc"}
    assert items["title"].tolist() == [
        "Sunday Drive on the coast", '"Quoted" twice', 'A 12" disc',
    ] * 2  # fmt: skip
    assert set(items["category"]) == {"Tea"}
    path = tmp_path / "x" / "x.item"
    lines = path.read_text().replace("item_id:token", "item_id:token\tdomain:token").splitlines()
    rows = [line.replace("\t", f"\t{d}\t", 1) for line, d in zip(lines[1:], "xyx", strict=True)]
    lines[1:] = rows
    path.write_text("\n".join(lines) + "\n")
    with engine(tmp_path / "out", "1GB", 1) as database:
        found = describe(database, tmp_path / "x", "x")
    assert found.whole.users == 1 and found.domains["y"].events == 1  # of the item b
    path.write_text(path.read_text().replace('A 12" disc', '"A 12 disc'))
    with pytest.raises(DataError, match=r"x\.item, line 4: a cell opens a double quote"):
        run(tmp_path, lambda e: recbole.read(e, folders))


def test_douban(tmp_path):
    head = '"user_id"\t"{}_id"\t"rating"\t"labels"\t"comment"\t"time"\t"ID"'
    write_lines(
        tmp_path / "bookreviews_cleaned.txt",
        [
            head.format("book"),
            '"7"\t"11"\t"4"\t"novel|sci fi"\t"good, ""very"" good"\t"2011-02-03"\t"1"',
            '"8"\t"11"\t"5"\t"novel"\t""\t"2011-02-04"\t"2"',
            '"8"\t"12"\t""\t""\t"two\nlines"\t"2011-02-02"\t"3"',
        ],
    )
    write_lines(tmp_path / "books_cleaned.txt", ['"UID"\t"name"\t"book_id"', '"11"\t"Dune"\t"b9"'])
    write_lines(
        tmp_path / "musicreviews_cleaned.txt",
        [
            head.format("music"),
            '"7"\t"11"\t"3"\t"[\'indie pop\', \'calm\']"\t"x"\t"2011-02-05"\t"4"',
        ],
    )
    write_lines(tmp_path / "music_cleaned.txt", ['"UID"\t"name"\t"music_id"', '"11"\t"Low"\t"m9"'])
    inter, items, _ = run(
        tmp_path,
        lambda engine: douban.read(engine, tmp_path, ["book", "music"]),
    )
    assert inter[["user_id", "item_id", "rating"]].values.tolist() == [
        ["8", "book_12", ""],
        ["7", "book_11", "4"],
        ["8", "book_11", "5"],
        ["7", "music_11", "3"],
    ]
    day = 24 * 3600
    times = inter["timestamp"].astype(int).tolist()
    assert [(t - times[0]) // day for t in times] == [0, 1, 2, 3] and times[0] == 1296604800
    rows = items.set_index("item_id")
    assert rows["title"].to_dict() == {"book_11": "Dune", "book_12": "", "music_11": "Low"}
    assert rows["category"].to_dict() == {
        "book_11": "novel sci_fi", "book_12": "", "music_11": "calm indie_pop",
    }  # fmt: skip


def test_a_film_that_stands_twice_has_one_domain(tmp_path):
    ml_32m(tmp_path)
    with open(tmp_path / "movies.csv", "a") as file:
        file.write("1,Copycat (1995),Romance|Comedy\n")
    inter, items, _ = run(tmp_path, lambda e: movielens.read(e, tmp_path))
    assert len(inter) == 4 and items["item_id"].tolist() == ["2", "3", "1"]
    (tmp_path / "ratings.csv").write_text("user,movie,rating,timestamp\n1,1,5,100\n")
    with pytest.raises(DataError, match="no column 'userId'"):
        run(tmp_path, lambda e: movielens.read(e, tmp_path))


def test_rows_of_one_item_and_prices(tmp_path):
    items = packed(
        tmp_path / "items.csv",
        "item_id,domain,title,price\na,x,,\na,x,Title,$1\n"
        'b,y,B,"1,299.00 EUR"\nc,y,C,inf\nd,x,D,12\n',
    )
    events = packed(tmp_path / "e.csv", "user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,3\nu,d,4\n")
    files = tables.Tables([(None, events)], [(None, items)])
    _, found, _ = run(tmp_path, lambda e: tables.read(e, files))
    found = found.set_index("item_id")
    assert found["title"].to_dict() == {"a": "Title", "b": "B", "c": "C", "d": "D"}
    assert found["price"].to_dict() == {"a": "1", "b": "1299", "c": "", "d": "12"}


def test_metadata_of_2014_that_json_cannot_hold(tmp_path):
    files = [
        (domain, write_lines(tmp_path / f"{domain}.json", reviews("2014", domain)))
        for domain in ("food", "kitchen")
    ]
    rows = [*META["2014"], "{'asin': {1, 2}}", "{'asin': b'x'}", "[" * 100_000]
    meta = [("food", write_lines(tmp_path / "meta.json", rows))]
    _, items, done = run(tmp_path, lambda e: amazon.read(e, files, meta), max_broken=0.5)
    assert done.broken.total() == 3 and items["title"][0] == "Tea & 'Honey'"
