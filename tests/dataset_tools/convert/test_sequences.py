"""Sequences, lists in cells and given splits, in the forms that datasets are published in."""

import gzip
import json
import os
from pathlib import Path

import pytest

from tests.dataset_tools.convert.test_layout import EVENTS, HEAD, convert, table
from tests.support.conversions import run as command
from tests.support.conversions import written

PUBLISHED = os.environ.get("CDSR_DATA_PATH")  # a folder of the data that papers published


ITEMS = "item_id,domain\n" + "".join(f"{i},{d}\n" for i, d in zip("abcdef", "xxxyyy", strict=True))


ORDERED = {"1": "adbe", "2": "fa", "3": "bcd"}


@pytest.mark.parametrize("style", ["{} {}", "{}\t{}", "{}\t{},", "{}: {}"])
def test_a_line_a_user(tmp_path, style):
    between = {"{}\t{},": ","}.get(style, " ")
    text = "".join(f"{style.format(u, between.join(s))}\n" for u, s in ORDERED.items())
    files = {("--interactions", "s.txt"): text, ("--items", "i.csv"): ITEMS}
    options = []
    if style == "{} {}":  # could be a table with blanks
        code, _, said = convert(tmp_path, files)
        assert code == 2 and "add --sequences" in said
        options = ["--sequences"]
    if style == "{}: {}":
        options = ["--sequences", "--delimiter", ":"]
    code, found, said = convert(tmp_path, files, *options)
    assert code == 0, said
    if not options:
        assert "s.txt: taken for sequences" in said
    for user, items in ORDERED.items():
        assert sorted((t, i) for u, i, t in found if u == user) == list(enumerate(items))


def test_sequences_with_times_lengths_and_a_line_for_each_target(tmp_path):
    lines = [
        "1\t3\ta|5|0\td|7|1\tb|7|2\t",
        "1\t3\ta|5|0\td|7|1\te|7|2\t",
        "2\t4\tf|1|0\tf|1|1\tc|2",
    ]
    lines += ["3\t1", "4\t1\tb|soon", "5\t2\tc|9\td|8"]
    files = {("--interactions", "s.txt"): "\n".join(lines) + "\n", ("--items", "i.csv"): ITEMS}
    code, _, said = convert(tmp_path, files)
    assert code == 2 and "1 of its 6 lines are broken" in said and "no item (line 4)" in said
    files["--interactions", "s.txt"] = "\n".join(lines[:3] + lines[5:]) + "\n"
    code, found, said = convert(tmp_path, files)
    assert code == 0 and "1 users have several lines" in said and "(2 left out)" in said
    assert sorted(found) == [
        ("1", "a", 5), ("1", "b", 7), ("1", "d", 7), ("1", "e", 7), ("2", "c", 2),
        ("2", "f", 1), ("2", "f", 1), ("5", "c", 9), ("5", "d", 8),
    ]  # fmt: skip


def test_most_items_tell_whether_they_have_times(tmp_path):
    """One exception made ids of all cells, `a|100`, whose times were lost."""
    lines = ["u1 a|100 b|200 d|300", "u2 a|150 c", "u4 e|50 b|10", "u5 3 f|7", "u6 c f"]
    files = {("--interactions", "s.txt"): "\n".join(lines) + "\n", ("--items", "i.csv"): ITEMS}
    for options in ([], ["--sequences"]):
        code, found, said = convert(tmp_path, files, "--max_broken", "0.5", *options)
        assert code == 0 and "1 line left out: no item (line 5)" in said
        assert "1 line left out: no time" in said and "; lines left out: 2\n" in said
        assert sorted(found) == [
            ("u1", "a", 100), ("u1", "b", 200), ("u1", "d", 300), ("u2", "a", 150),
            ("u4", "b", 10), ("u4", "e", 50), ("u5", "f", 7),
        ]  # fmt: skip


def test_an_item_without_a_time_among_many_is_counted(tmp_path):
    lines = [f"u{n} a|1 f|2" for n in range(1000)] + ["uX a|5 b d|7"]
    files = {("--interactions", "s.txt"): "\n".join(lines) + "\n", ("--items", "i.csv"): ITEMS}
    code, found, said = convert(tmp_path, files)
    assert code == 0 and "1 line left out: no time" in said
    assert [(i, t) for u, i, t in found if u == "uX"] == [("a", 5), ("d", 7)]
    (tmp_path / "new").mkdir()
    assert convert(tmp_path / "new", files, "--strict")[0] == 2


def test_a_few_items_that_look_like_times_are_said_to_be_ids(tmp_path):
    files = {("--interactions", "s.txt"): "u1 a b d|7\nu2 e f\n"}
    files["--items", "i.csv"] = ITEMS + "d|7,x\n"
    code, found, said = convert(tmp_path, files, "--sequences")
    assert code == 0 and "1 of the first 5 items have the form item|time" in said
    assert ("u1", "d|7", 2) in found


def test_lists_in_the_cells_of_a_table(tmp_path):
    rows = ["\tuser_id\titem\ttype\tunix_time", "0\tu\ta,f,b\tx,y,x\t5,6,7", "1\tv\tf,a\ty,x\t3,2"]
    files = {("--interactions", "s.txt"): "\n".join(rows) + "\n"}
    code, found, said = convert(tmp_path, files, "--column", "domain=type")
    assert code == 0 and "rows are taken for sequences: lists of" in said
    assert sorted(found) == [
        ("u", "a", 5), ("u", "b", 7), ("u", "f", 6), ("v", "a", 2), ("v", "f", 3),
    ]  # fmt: skip
    (tmp_path / "s.txt").write_text("\n".join([*rows, "2\tw\ta,b\tx\t5,6"]) + "\n")
    words = ("--interactions", tmp_path / "s.txt", "--column", "domain=type")
    done = command(tmp_path, "csv", *words, name="other")
    assert done.exit_code == 2 and "lists of different lengths (row 3)" in done.output


def test_ids_with_commas_are_asked_about(tmp_path):
    text = 'user_id,item_id,domain\nu,"a,b",x\nv,"f,a",y\n'
    files = {("--interactions", "e.csv"): text}
    code, _, said = convert(tmp_path, files)
    assert code == 2 and "'a,b'" in said and "--sequences" in said and "--no-sequences" in said
    code, found, _ = convert(tmp_path, files, "--no-sequences")
    assert code == 0 and [i for _, i, _ in found] == ["a,b", "f,a"]
    code, found, _ = convert(tmp_path, files, "--sequences")
    assert code == 0 and sorted((u, i, t) for u, i, t in found) == [
        ("u", "x_a", 0), ("u", "x_b", 1), ("v", "y_a", 1), ("v", "y_f", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["items", "item_ids"])
def test_cells_under_a_plural_name_are_lists(tmp_path, name):
    for lists in (['"a,b"', "f", "e"], ["a b", "f", "e"], ["\"['a', 'b']\"", "['f']", "[e]"]):
        text = table(
            zip("uvw", lists, "111", "xyy", strict=True),
            head=f"user_id,{name},ts,domain".split(","),
        )
        code, found, said = convert(tmp_path, {("--interactions", "e.csv"): text})
        assert code == 0 and "rows are taken for sequences: lists of item_id" in said
        assert found == [("u", "a", 1), ("u", "b", 1), ("v", "f", 1), ("w", "e", 1)]
        code, found, _ = convert(tmp_path, {("--interactions", "e.csv"): text}, "--no-sequences")
        assert code == 0 and len(found) == 3


def test_ids_with_blanks_are_asked_about_and_a_few_are_told(tmp_path):
    files = {("--interactions", "e.csv"): "user_id,item_id,domain\nu,i1 i2,x\nv,j1 i1,y\nv,k,y\n"}
    code, _, said = convert(tmp_path, files)
    assert code == 2 and "'i1 i2'" in said and "--sequences" in said and "--no-sequences" in said
    rows = "u,k,x\nv,k,y\n" * 3
    code, found, said = convert(
        tmp_path, {("--interactions", "e.csv"): files["--interactions", "e.csv"] + rows}
    )
    assert code == 0 and "2 of 9 item ids have commas or blanks, such as 'i1 i2'" in said
    assert len(found) == 9


def test_broken_lists_are_compared_with_lists(tmp_path):
    """Not with their items: of 20 rows one is broken, whatever the others hold."""
    items = ",".join(f"i{n}" for n in range(50))
    times = ",".join(map(str, range(50)))
    rows = [f"u{n}\t{items}\t{times}\t{'xy'[n % 2]}" for n in range(19)]
    for bad in ("u\ti1,i2\t5\tx", "u\t\t\tx", "u\t[]\t[]\tx"):
        text = "\n".join(["user_id\titem_id\ttimestamp\tdomain", *rows, bad]) + "\n"
        code, _, said = convert(tmp_path, {("--interactions", "e.tsv"): text})
        assert code == 2 and "1 of its 20 lines are broken" in said and "(row 20)" in said
    (tmp_path / "new").mkdir()
    text = {("--interactions", "e.tsv"): text}
    code, found, said = convert(tmp_path / "new", text, "--max_broken", "0.05")
    assert code == 0 and len(found) == 19 * 50 and "; lines left out: 1\n" in said


def splits(users=("1", "2", "3")):
    sequences = ["adbe", "fa", "bcd"]
    return {
        (f"--{split}", f"{split}.txt"): f"{user}\t{','.join(items)}\n{user}9\ta,d,b,c,e\n"
        for user, split, items in zip(users, ("train", "valid", "test"), sequences, strict=True)
    } | {("--items", "i.csv"): ITEMS}


def test_files_of_a_given_split(tmp_path):
    code, found, said = convert(tmp_path, splits())
    assert code == 0, said
    parts = {split: "".join(i for u, i, _, s in found if s == split and len(u) == 1)
             for split in ("train", "valid", "test")}  # fmt: skip
    assert parts == {"train": "adbe", "valid": "fa", "test": "bcd"}
    header = (tmp_path / "out/shop/shop.inter").read_text().splitlines()[0]
    assert header == "user_id:token\titem_id:token\ttimestamp:float\tsplit:token"
    # A dataset of its own takes the split along.
    words = ("recbole", f"z={tmp_path / 'out/shop'}", f"w={tmp_path / 'w'}")
    (tmp_path / "w").mkdir()
    text = "user_id:token\titem_id:token\ttimestamp:float\n1\tq\t9\n"
    (tmp_path / "w/w.inter").write_text(text)
    done = command(tmp_path, *words, name="again")
    assert done.exit_code == 2 and "1 of 25 events are of no split" in done.output
    assert not (tmp_path / "out/again").exists()
    text = text.replace("float\n", "float\tsplit:token\n").replace("9\n", "9\ttest\n")
    (tmp_path / "w/w.inter").write_text(text)
    done = command(tmp_path, *words, name="again")
    assert done.exit_code == 0, done.output
    again = written(tmp_path, "inter", "again")
    assert again["split"].value_counts().to_dict() == {"train": 9, "valid": 7, "test": 9}


def test_numbers_of_users_that_each_file_counts_are_asked_about(tmp_path):
    files = splits(("1", "1", "1"))
    code, _, said = convert(tmp_path, files)
    assert (
        code == 2
        and "2 users, such as '1', are in several of train.txt, valid.txt, test.txt" in said
    )
    code, found, _ = convert(tmp_path, files, "--user_ids", "own")
    assert code == 0 and {u for u, *_ in found} == {
        *("train_1", "train_19", "valid_1", "valid_19", "test_1", "test_19"),
    }
    code, found, _ = convert(tmp_path, files, "--user_ids", "shared")
    assert code == 0  # train, then valid, then test
    assert [(i, s) for u, i, _, s in sorted(found, key=lambda row: row[2]) if u == "1"] == [
        *((i, "train") for i in "adbe"), *((i, "valid") for i in "fa"),
        *((i, "test") for i in "bcd"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("places", "prefixes"),
    [
        (("r.book.csv", "r.film.csv"), ("r.book_", "r.film_")),
        (("bk/data.csv", "fl/data.csv"), ("x_data_", "y_data_")),
        (("s.csv", "s.tsv.gz"), ("s.csv_", "s.tsv_")),
    ],
)
def test_users_of_each_file_are_kept_apart(tmp_path, places, prefixes):
    """The beginning of a name, which was taken, can be that of another file too."""
    words = ["--user_ids", "own"]
    for domain, place in zip("xy", places, strict=True):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        rows = [*EVENTS, ("", "a", 1, 1300000000), ("NA", "a", 1, 1300000000)]  # of nobody
        text = table(rows, "\t" if ".tsv" in place else ",", HEAD)
        path.write_bytes(gzip.compress(text.encode()) if ".gz" in place else text.encode())
        words += ["--interactions", f"{domain}={path}"]
    done = command(tmp_path, "csv", *words, "--max_broken", "1")
    assert done.exit_code == 0 and done.output.count("2 lines left out: no user") == 2
    users = written(tmp_path, "inter")["user_id"]
    assert set(users) == {prefix + user for prefix in prefixes for user in ("u1", "u2")}


def test_users_of_files_without_a_domain_are_told_by_their_folders_or_refused(tmp_path):
    words = ("csv", "--user_ids", "own", "--force")
    for domain, place in (("x", "bk"), ("y", "fl")):
        (tmp_path / place / "s").mkdir(parents=True)
        text = table([(*row, domain) for row in EVENTS], head=(*HEAD, "domain"))
        for path in (tmp_path / place / "data.csv", tmp_path / place / "s" / "data.csv"):
            path.write_text(text)
    given = [f"--interactions={tmp_path / place / 'data.csv'}" for place in ("bk", "fl")]
    assert command(tmp_path, *words, *given).exit_code == 0
    users = written(tmp_path, "inter")["user_id"]
    assert set(users) == {f"{p}_data.csv_{u}" for p in ("bk", "fl") for u in ("u1", "u2")}
    given = [f"--interactions={tmp_path / place / 's/data.csv'}" for place in ("bk", "fl")]
    done = command(tmp_path, *words, *given)
    assert done.exit_code == 2 and "name the files differently" in done.output
    for name, user in (("a.csv", "b_1"), ("a_b.csv", "1")):
        (tmp_path / name).write_text(f"user_id,item_id,timestamp,domain\n{user},i,1,{name[:-4]}\n")
    given = [f"--interactions={tmp_path / name}" for name in ("a.csv", "a_b.csv")]
    done = command(tmp_path, *words, *given)
    assert done.exit_code == 2 and "'a_b_1' would be a user of a.csv and a_b.csv" in done.output


CUMULATIVE = {"train": "adb", "valid": "adbe", "test": "adbef"}


ONCE = {("a", "train"), ("d", "train"), ("b", "train"), ("e", "valid"), ("f", "test")}


def test_an_event_of_several_splits_counts_in_the_earliest(tmp_path):
    """Each file holds the history before its targets, as many that are published."""
    files = {("--items", "i.csv"): ITEMS}
    for split, items in CUMULATIVE.items():
        cells = " ".join(f"{item}|{n}" for n, item in enumerate(items))
        files[f"--{split}", f"{split}.txt"] = f"u1 {cells} a|0\nu2 {cells} a|0\n"
    code, found, said = convert(tmp_path, files)
    assert code == 0 and "18 events stand in several of train, valid, test" in said
    assert len(found) == 12  # `a|0` stands twice in each line, and remains two events
    for user in ("u1", "u2"):
        assert {(i, s) for u, i, _, s in found if u == user} == ONCE
    assert written(tmp_path, "yaml")["events left out that an earlier split has"] == 18


def test_lists_of_several_splits_without_times(tmp_path):
    files = {("--items", "i.csv"): ITEMS}
    for split, items in CUMULATIVE.items():
        rows = f"u1\t{','.join(items)}\nu2\t{','.join(items)}\n{split}\ta,b\n"
        files[f"--{split}", f"{split}.txt"] = rows
    code, _, said = convert(tmp_path, files)
    assert code == 2 and "2 users, such as 'u1', are in several of train.txt" in said
    code, found, said = convert(tmp_path, files, "--user_ids", "shared")
    assert code == 0 and "14 events stand in several" in said
    assert [(i, t) for u, i, t, _ in found if u == "u1"] == list(
        zip("adbef", range(5), strict=True)
    )
    assert {(i, s) for u, i, _, s in found if u == "u2"} == ONCE
    code, found, _ = convert(tmp_path, files, "--user_ids", "own")
    assert code == 0 and len(found) == 2 * 12 + 6  # nothing is left out of users of their own


def test_a_column_of_the_split(tmp_path):
    rows = [
        (*row, "xy"[n % 2], s)
        for n, (row, s) in enumerate(zip(EVENTS, ("Train", "val", "test"), strict=True))
    ]
    text = table(rows, head=(*HEAD, "domain", "split"))
    code, found, _ = convert(tmp_path, {("--interactions", "e.csv"): text})
    assert code == 0 and [s for *_, s in found] == ["train", "valid", "test"]
    text = text.replace("val", "third")
    (tmp_path / "e.csv").write_text(text)
    for more in ((), ("--max_broken", "1")):  # never some without
        words = ("--interactions", tmp_path / "e.csv", *more)
        done = command(tmp_path, "csv", *words, name="new")
        assert done.exit_code == 2 and "split is none of train, valid, test (row 2)" in done.output


def published(folder):
    path = Path(PUBLISHED or "") / folder
    if not PUBLISHED or not path.is_dir():
        pytest.skip(f"no published data {folder}: CDSR_DATA_PATH names no folder that has them")
    return path


def unpacked(path):
    return gzip.decompress(path.read_bytes()).decode()


def run_published(tmp_path, *words):
    done = command(tmp_path, "csv", *words)
    assert done.exit_code == 0, done.output
    return written(tmp_path, "yaml")["counts"]


def test_the_published_sequences_of_abxi(tmp_path):
    folder = published("abxi-food-kitchen")
    known = json.loads(unpacked(folder / "map_item_50.txt.gz"))
    rows = "".join(f"{i},{('food', 'kitchen')[d]}\n" for i, d in known.values())
    (tmp_path / "i.csv").write_text("item_id,domain\n" + rows)
    events = folder / "afk_50_preprocessed.txt.gz"
    counts = run_published(tmp_path, "--interactions", events, "--items", tmp_path / "i.csv")
    assert (counts["users"], counts["items"], counts["events"]) == (7144, 28095, 173548)
    assert counts["overlapping_users"] == 7144 and counts["items_without_events"] == 0


def test_the_published_lists_of_five_domains(tmp_path):
    folder = published("amazon-five-domains")
    events = folder / "amazon_seq.txt.gz"
    counts = run_published(tmp_path, "--interactions", events, "--column", "domain=type")
    lines = unpacked(folder / "voca_type.txt.gz").splitlines()[1:]
    assert {d: c["events"] for d, c in counts["domains"].items()} == {
        name: int(count) for _, name, count in (line.split("\t") for line in lines)
    }


def test_the_published_split_of_urllm(tmp_path):
    folder = published("art-office")
    rows = unpacked(folder / "items.csv.gz").splitlines()[1:]
    rows = [row.split(",")[:2] for row in rows if row.startswith("i")]
    (tmp_path / "i.csv").write_text("item_id,domain\n" + "".join(f"{i[1:]},{d}\n" for i, d in rows))
    words = ["--items", tmp_path / "i.csv"]
    for split in ("train", "valid", "test"):
        words += [f"--{split}", folder / f"{split}data_new.txt.gz"]
    counts = run_published(tmp_path, *words)
    assert counts["users"] == 8000 + 577 + 1000 and counts["items"] == 38396
    inter = written(tmp_path, "inter")
    users = inter.groupby("split")["user_id"].nunique().to_dict()
    assert users == {"train": 8000, "valid": 577, "test": 1000}
    # Of each user two lines that differ in their last item.
    text = unpacked(folder / "validdata_new.txt.gz")
    expected = {tuple(cell.split("|")[:2]) for cell in text.splitlines()[0].split("\t")[2:] if cell}
    expected |= {
        tuple(cell.split("|")[:2]) for cell in text.splitlines()[1].split("\t")[2:] if cell
    }
    user = inter[inter["user_id"] == text.split("\t")[0]]
    found = {(i, f"{t:g}") for i, t in zip(user["item_id"], user["timestamp"], strict=True)}
    assert found == expected and len(user) == len(expected)
