"""Conversion of every source against plain loops, on any input order and any filters."""

import csv
import gzip
import random
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_tools.convert.filters import Filters
from dataset_tools.convert.run import Conversion, convert
from dataset_tools.convert.sources.tables import Tables, read
from recbole_tema.errors import DataError
from tests.support.convert_formats import A_FILE_EACH, FORMATS, in_reading_order
from tests.support.convert_reference import Event, filtered, named

pytestmark = pytest.mark.long

pytest.importorskip("duckdb", reason="the extra convert is not installed")

DOMAINS = ("book", "film")
ITEMS = [(f"{d[0]}{i}", d, f"Title {i}") for d in DOMAINS for i in range(4)]
START = 1_500_000_000 - 1_500_000_000 % 86400  # a midnight


def write_csv(path, header, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def converted(folder, reader, filters=Filters(), **keys):  # noqa: B008
    """Convert; (rows of NAME.inter, rows of NAME.item), as text."""
    conversion = Conversion(reader, "test", filters, threads=2, **keys)
    convert(conversion, folder / "out", "out", force=True)
    return [
        [line.split("\t") for line in (folder / "out" / f"out.{s}").read_text().splitlines()]
        for s in ("inter", "item")
    ]


def run(folder, events, items, filters=Filters(), **keys):  # noqa: B008
    """Convert lists of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    head = ["user_id", "item_id", "timestamp", "rating"]
    tables = Tables(
        [(None, write_csv(folder / "e.csv.gz", head, events))],
        [(None, write_csv(folder / "i.csv", ["item_id", "domain", "title"], items))],
    )
    return converted(folder, lambda engine: read(engine, tables), filters, **keys)


def events_of(fits):
    """Lists of events that a format can hold; times and users repeat."""
    items = dict.fromkeys(fits.domains, fits.items)
    if not fits.shared:
        items = {d: fits.items[k :: len(items)] for k, d in enumerate(items)}
    ratings = st.sampled_from([1.0, 2.0, 5.0])
    return st.lists(
        st.sampled_from([(d, i) for d, known in items.items() for i in known]).flatmap(
            lambda found: st.builds(
                Event,
                user=st.sampled_from(fits.users),
                item=st.just(found[1]),
                domain=st.just(found[0]),
                time=st.integers(0, 12).map(lambda n: START + n * fits.step),
                rating=ratings if fits.rated else st.none() | ratings,
            )
        ),
        min_size=1,
        max_size=60,
    )


def filters_of(fits):
    """Every filter, at values that matter for so few events."""
    return st.builds(
        Filters,
        min_rating=st.none() | st.sampled_from([1, 2, 3]),
        after=st.none() | st.integers(0, 5).map(lambda n: START + n * fits.step),
        before=st.none() | st.integers(6, 13).map(lambda n: START + n * fits.step),
        dedupe=st.none() | st.sampled_from([0, 2 * fits.step, float("inf")]),
        single_domain=st.sampled_from(["keep", "drop", 0, 1, 2]),
        overlap_ratio=st.sampled_from([1.0, 0.75, 0.5, 0.0]),
        max_users=st.none() | st.integers(1, 5),
        user_core=st.integers(1, 3),
        domain_core=st.integers(1, 3),
        item_core=st.integers(1, 3),
        seed=st.integers(0, 3),
    )


@pytest.mark.parametrize("examples", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("source", FORMATS)
def test_events_are_those_of_the_reference(tmp_path, source, examples):
    write, fits = FORMATS[source]

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(events_of(fits), filters_of(fits))
    def check(events, filters):
        folder = tmp_path / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        titles = {(e.domain, e.item): f"Title of {e.item}" for e in events}
        reader = write(folder, events, titles)
        read_order = in_reading_order(events) if source in A_FILE_EACH else events
        expected = filtered(read_order, filters)
        rows, ids = named(expected)
        had = {e.domain for e in events}
        if len(had) < 2 or {e.domain for e in expected} != had:
            with pytest.raises(DataError, match=r"leaves no event|events of one domain only"):
                converted(folder, reader, filters)
            assert not (folder / "out").exists()
            return
        inter, items = converted(folder, reader, filters)
        rated = any(row[3] is not None for row in rows)
        assert inter[0] == ["user_id:token", "item_id:token", "timestamp:float"] + (
            ["rating:float"] if rated else []
        )
        found = [(u, i, float(t), float(r[0]) if r and r[0] else None) for u, i, t, *r in inter[1:]]
        assert found == rows
        assert [row[0] for row in items[1:]] == ids

    check()


@pytest.mark.parametrize("source", FORMATS)
def test_the_order_of_the_input_tells_only_ties(tmp_path, source):
    write, fits = FORMATS[source]
    rng = random.Random(3)
    known = [(d, i) for k, d in enumerate(fits.domains) for i in fits.items[k % 2 :: 2]]
    events = []
    for number in range(60):
        domain, item = rng.choice(known)
        user, time = rng.choice(fits.users), START + number * fits.step
        events.append(Event(user, item, domain, time, float(rng.randint(1, 5))))
    titles = {(e.domain, e.item): f"Title of {e.item}" for e in events}
    filters = Filters(user_core=2, item_core=2, max_users=4, overlap_ratio=0.5)
    results = []
    orders = {"sorted": events, "reversed": events[::-1], "shuffled": rng.sample(events, 60)}
    for name, shown in orders.items():
        folder = tmp_path / name
        folder.mkdir()
        reader = write(folder, shown, dict(rng.sample(list(titles.items()), len(titles))))
        results.append(converted(folder, reader, filters))
    assert results[0] == results[1] == results[2]
    heads, *items = results[0][1]
    cell = heads.index("title:token_seq")
    for row in items:
        item = row[0].split("_")[-1]  # without its domain
        assert row[cell] == (f"Title of {item}" if fits.titled else "")
