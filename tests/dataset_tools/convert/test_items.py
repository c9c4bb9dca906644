"""Items of a conversion: which are kept, and what their texts and prices come to."""

import json
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_tools.convert.engine import engine
from dataset_tools.convert.intake import list_of, price_of
from dataset_tools.convert.markup import category_tokens, without_markup
from tests.dataset_tools.convert.test_engine import converted
from tests.support.conversions import run as command
from tests.support.conversions import written
from tests.support.convert_formats import FORMATS
from tests.support.convert_reference import Event

pytest.importorskip("duckdb", reason="the extra convert is not installed")

# Users, items of x and y, times; b of x and d of y are rare.
EVENTS = [(f"u{u}", item, 10 * u + n) for u in range(4) for n, item in enumerate("ac")]
EVENTS += [("u0", "b", 50), ("u1", "d", 51)]
ITEMS = [*("axA", "bxB", "exE", "fxF"), *("cyC", "dyD", "gyG")]  # id, domain, title


def convert(folder, *options, events=EVENTS, items=ITEMS, head=""):
    """Convert; (ids by domain, the card, all that was said)."""
    folder.mkdir(exist_ok=True)
    rows = [f"user_id,item_id,timestamp{head}", *(",".join(map(str, row)) for row in events)]
    (folder / "e.csv").write_text("\n".join(rows) + "\n")
    rows = ["item_id,domain,title", *(",".join(row) for row in items)]
    (folder / "i.csv").write_text("\n".join(rows) + "\n")
    words = ("--interactions", folder / "e.csv", "--items", folder / "i.csv", "--force")
    done = command(folder, "csv", *words, *options)
    assert done.exit_code == 0, done.output
    found = written(folder, "item").groupby("domain")["item_id"].agg("".join).to_dict()
    return found, written(folder, "yaml"), done.output


def test_items_without_events_are_kept_and_counted(tmp_path):
    found, card, said = convert(tmp_path)
    assert found == {"x": "abef", "y": "cdg"}
    counts = card["counts"]
    assert counts["items"] == 7 and counts["items_without_events"] == 3
    assert {d: c["items_without_events"] for d, c in counts["domains"].items()} == {"x": 2, "y": 1}
    assert "x: 4 users, 4 items (2 without an event), 5 events" in said
    assert "7 items (3 without an event), 10 events" in said
    found, card, said = convert(tmp_path, "--items_without_events", "drop")
    assert found == {"x": "ab", "y": "cd"} and "without an event" not in said
    assert card["counts"]["items_without_events"] == 0


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--before", "45"], {"x": "aef", "y": "cg"}),  # b and d had events, and lost them
        (["--user_core", "3"], {"x": "abef", "y": "cdg"}),
        (["--max_users", "1"], None),
        (["--item_core", "2"], {"x": "a", "y": "c"}),  # those without events are rarer still
        (["--item_core", "1"], {"x": "abef", "y": "cdg"}),
    ],
)
def test_what_a_filter_took_the_events_of_is_no_catalogue(tmp_path, options, kept):
    found, card, _ = convert(tmp_path, *options)
    inter = written(tmp_path, "inter")
    if kept is None:
        left = set(inter["item_id"])
        kept = {"x": "".join(i for i in "abef" if i in left or i in "ef")}
        kept["y"] = "".join(i for i in "cdg" if i in left or i == "g")
        assert left < set("abcd")
    assert found == kept
    idle = sum(map(len, kept.values())) - inter["item_id"].nunique()
    assert card["counts"]["items_without_events"] == idle


def test_items_that_a_core_leaves_out_are_counted(tmp_path):
    for options in ([], ["--items_without_events", "keep"]):
        found, card, said = convert(tmp_path, "--item_core", "2", *options)
        assert found == {"x": "a", "y": "c"}
        assert "items without an event left out by --item_core: 3" in said  # e, f and g
        assert card["items without an event that item_core left out"] == 3
    _, card, said = convert(tmp_path, "--item_core", "2", "--items_without_events", "drop")
    assert "by --item_core" not in said and not [key for key in card if "item_core" in key]
    _, card, said = convert(tmp_path, items=[row for row in ITEMS if row[0] in "abcd"])
    assert "by --item_core" not in said


def test_items_of_a_domain_that_matches_no_event_are_no_catalogue(tmp_path):
    """Their ids are of another kind: they would double the domain."""
    items = [*ITEMS[:4], ("C1", "y", "C"), ("D1", "y", "D")]
    events = [(*e, "x" if e[1] in "ab" else "y") for e in EVENTS]
    _, _, said = convert(tmp_path, events=events, items=items, head=",domain")
    assert "none of the 2 items of 'y' has an event" in said
    assert Counter(written(tmp_path, "item")["domain"]) == {"x": 4, "y": 2}


def test_an_atomic_dataset_whose_items_match_no_event_is_told(tmp_path):
    for name, event, items in (("x", "a", "ab"), ("y", "c", "de")):
        (tmp_path / name).mkdir()
        rows = f"user_id:token\titem_id:token\ttimestamp:float\nu\t{event}\t1\n"
        (tmp_path / name / f"{name}.inter").write_text(rows)
        rows = "item_id:token\ttitle:token_seq\n" + "".join(f"{i}\tT {i}\n" for i in items)
        (tmp_path / name / f"{name}.item").write_text(rows)
    words = ("recbole", f"x={tmp_path / 'x'}", f"y={tmp_path / 'y'}", "--force")
    done = command(tmp_path, *words)
    assert done.exit_code == 0 and "none of the 2 items of 'y' has an event" in done.output
    (tmp_path / "x" / "x.item").unlink()
    done = command(tmp_path, *words)
    assert done.exit_code == 2 and "none of the 2 items of 'y' has an event" in done.output


@pytest.mark.parametrize("source", [name for name, (_, fits) in FORMATS.items() if fits.titled])
def test_every_source_keeps_its_catalogue(tmp_path, source):
    write, fits = FORMATS[source]
    domains, ids = fits.domains[:2], fits.items
    halves = {d: ids if fits.shared else ids[k::2] for k, d in enumerate(domains)}
    day = 24 * 3600 * 18000
    events = [
        Event(user, halves[d][0], d, day + n * fits.step, 3.0 if fits.rated else None)
        for n, (user, d) in enumerate((u, d) for u in fits.users[:3] for d in domains)
    ]
    titles = {(d, i): f"Title {i}" for d in domains for i in halves[d]}
    for kept, n in (("keep", len(titles)), ("drop", 2)):
        folder = tmp_path / kept
        folder.mkdir()
        reader = write(folder, events, titles)
        _, items = converted(folder, reader, items_without_events=kept)
        assert len(items) - 1 == n


# ---- texts


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("Salt &amp;amp; Pepper", "Salt & Pepper"),
        ("5&#39;9&quot; &#x2013; tall&nbsp;one", "5'9\" \u2013 tall one"),
        ("<b>Bold</b> and <span class='x'>more</span>", "Bold and more"),
        ("one<br/>two<p>three</p>", "one two three"),
        ("&lt;i&gt;Emma&lt;/i&gt;", "Emma"),
        ("Lamp <!-- sale --> red<script>var a = 1 < 2;</script>", "Lamp red"),
        (".box{background-color:#fff} Lamp", "Lamp"),
        (".box-inner{color:#fff}#widget .chosen{background:#fffbf3;padding:0 1px}", ""),
        ("var aPageStart = (new Date()).getTime();", ""),
        ("$(document).ready(function() { go(); })", ""),
        # What only looks like it.
        ("AT&T and R&D", "AT&T and R&D"),
        ("Black&copy 5 < 6 > 4", "Black&copy 5 < 6 > 4"),
        ("I <3 you, <Untitled>", "I <3 you, <Untitled>"),
        ("{Limited: Edition} #1 {a}", "{Limited: Edition} #1 {a}"),
        ("The function of beauty (new)", "The function of beauty (new)"),
        ("Mail.Ru {x} var a", "Mail.Ru {x} var a"),
    ],
)
def test_markup_and_code_are_no_title(text, clean):
    assert " ".join(without_markup(text).split()) == clean


@given(st.text(max_size=60))
@settings(deadline=None)
def test_a_cleaned_text_is_clean(text):
    once = without_markup(text)
    if not set(text) & set("<&{"):
        assert once in (text, "")
    assert without_markup(once) in (once, "") or "&" in text or "<" in text


def test_a_category_stands_once():
    joined = "Home\x1fHome &amp; Kitchen\x1fHome\x1f \x1fHome & Kitchen\x1f<b>Tea</b>&nbsp;Pots"
    assert category_tokens(joined, "\x1f") == "Home Home_&_Kitchen Tea_Pots"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8").filter(str.isprintable), max_size=8)))
def test_a_list_that_python_printed_is_read(texts):
    duckdb = pytest.importorskip("duckdb")
    query = f"SELECT {list_of('t')} FROM (SELECT $1::VARCHAR AS t)"
    assert duckdb.execute(query, [repr(texts)]).fetchone()[0] == texts
    if texts:
        assert duckdb.execute(query, [f"{repr(texts)[:-1]}, None, nan]"]).fetchone()[0] == texts


@pytest.mark.parametrize("text", ["[New] it's 'great'", "['cut', 'b", "[it's a 'test']", "[x] y]"])
def test_what_is_no_list_stays_a_text(text):
    duckdb = pytest.importorskip("duckdb")
    query = f"SELECT {list_of('t')} IS NULL FROM (SELECT $1::VARCHAR AS t)"
    assert duckdb.execute(query, [text]).fetchone()[0]


def test_lists_that_pandas_wrote_are_categories(tmp_path):
    lists = [["Action", "Sci Fi"], ["Children's"], [], ["A", 'say "b"']]
    frame = pd.DataFrame({"item_id": list("abcd"), "domain": list("xxyy"), "category": lists})
    frame["title"] = ["A", " ", "C", "D"]
    frame["description"] = [["one", "two"], ["three"], [], ["four"]]
    frame["image_url"] = [["http://i.org/1", "http://i.org/2"], ["http://i.org/3"], [], []]
    frame.to_csv(tmp_path / "i.csv", index=False)
    rows = "".join(f"u,{item},1\n" for item in "abcd")
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\n" + rows)
    words = ("--interactions", tmp_path / "e.csv", "--items", tmp_path / "i.csv")
    done = command(tmp_path, "csv", *words)
    assert done.exit_code == 0 and "markup" not in done.output  # a title of blanks is none
    found = written(tmp_path, "item").set_index("item_id")
    assert found["category"].tolist() == ["Action Sci_Fi", "Children's", "", 'A say_"b"']
    assert found["description"].tolist() == ["one two", "three", "", "four"]
    assert found["image_url"].tolist() == ["http://i.org/1", "http://i.org/3", "", ""]


PRICES = {
    "$5.99": 5.99, "5.99 USD": 5.99, "USD 12": 12, "US$7": 7, "\u20ac 3,50": 3.5, "12": 12,
    "1,299.00 EUR": 1299, "1.299,00": 1299, "12,345,678": 12345678, "0": 0, "\u00a31,000": 1000,
    "1e1": 10, ".5": 0.5, "Rs. 250": 250,
}  # fmt: skip
NO_PRICES = (
    ".box-inner{background-color:#fff}#widget .chosen{padding:0 1px}", "-1", "$-3", "- 5",
    "$1.99 - $2.99", "from 8.99", "5 stars", "A5", "inf", "nan", "1e999", "1,29,9", "see 2 offers",
    "1.2.3", "3,1415", "5 5", "", "\u2014",
)  # fmt: skip


def test_a_price_is_an_amount_and_nothing_else(tmp_path):
    with engine(tmp_path, "1GB", 1) as database:
        query = f"SELECT {price_of('p')} FROM (SELECT $1::VARCHAR AS p)"

        def read(text):
            return database.sql.execute(query, [text]).fetchone()[0]

        assert {text: read(text) for text in PRICES} == PRICES
        assert {text: read(text) for text in NO_PRICES} == dict.fromkeys(NO_PRICES)


def test_texts_and_prices_of_amazon(tmp_path):
    code = ".box-inner{background-color:#fff}#widget .chosen{background-color:#fffbf3}"
    words = []
    for d in "xy":
        rows = [
            {"reviewerID": f"A{u}", "asin": f"{d}{k}", "overall": 5.0, "unixReviewTime": 13 + k}
            for u in range(4)
            for k in range(4)
        ]
        (tmp_path / f"r{d}").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows = [
            {
                **{"asin": f"{d}{k}", "title": f'"Salt &amp; <b>Pep</b>per" {k}', "price": price},
                **{
                    "category": ["Home", "Home &amp; Co", "Home"],
                    "brand": code if k else "A&amp;B",
                },
            }
            for k, price in enumerate([code, "-1", "$5.99", ""])
        ]
        (tmp_path / f"m{d}").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words += [f"{d}={tmp_path / f'r{d}'}", "--metadata", f"{d}={tmp_path / f'm{d}'}"]
    done = command(tmp_path, "amazon", *words)
    assert done.exit_code == 0 and "; prices not read: 4\n" in done.output
    assert "6 texts (title, brand) were markup or code alone" in done.output
    cells = {"mx": {"price": 2}, "my": {"price": 2}}
    assert written(tmp_path, "yaml")["cells left empty"] == cells
    path = tmp_path / "out/shop/shop.item"
    stock = pd.read_csv(path, sep="\t", engine="python", keep_default_na=False, dtype=str)
    table = written(tmp_path, "item")
    assert table["title"].tolist() == stock["title:token_seq"].tolist()
    assert table["title"].tolist() == [f'"Salt & Pepper" {k}' for k in range(4)] * 2
    assert table["category"].tolist() == ["Home Home_&_Co"] * 8
    assert table["brand"].tolist() == ["A&B", "", "", ""] * 2
    assert stock["price:float"].tolist() == ["", "", "5.99", ""] * 2
