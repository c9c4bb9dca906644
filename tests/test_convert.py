"""Conversion of plain tables against a plain-Python reference, on any input order."""

import csv
import gzip
from collections import Counter, defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_tools.convert.filters import Filters
from dataset_tools.convert.run import Conversion, convert
from dataset_tools.convert.tables import Tables, read
from recbole_tema.errors import DataError

pytest.importorskip("duckdb", reason="the extra convert is not installed")

DOMAINS = ("book", "film")


def write_csv(path, header, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def run(folder, events, items, filters=Filters(), **keys):  # noqa: B008
    """Convert lists of rows; (rows of NAME.inter, rows of NAME.item)."""
    folder.mkdir(parents=True, exist_ok=True)
    head = ["user_id", "item_id", "timestamp", "rating"]
    tables = Tables(
        [(None, write_csv(folder / "e.csv.gz", head, events))],
        [(None, write_csv(folder / "i.csv", ["item_id", "domain", "title"], items))],
    )
    conversion = Conversion(
        lambda engine, broken: read(engine, tables, broken), "test", filters, threads=1, **keys
    )
    convert(conversion, folder / "out", "out", force=True)
    return [
        [line.split("\t") for line in (folder / "out" / f"out.{s}").read_text().splitlines()]
        for s in ("inter", "item")
    ]


def reference(events, items, f):
    """The same by loops: the kept events (user, item, time, rating) in their order."""
    domain = {item: d for item, d, _ in items}
    kept = [(u, i, t, r, place) for place, (u, i, t, r) in enumerate(events)]
    if f.min_rating is not None:
        kept = [e for e in kept if e[3] >= f.min_rating]
    kept = [e for e in kept if f.after is None or e[2] >= f.after]
    kept = [e for e in kept if f.before is None or e[2] < f.before]
    kept.sort(key=lambda e: (e[2], e[4]))
    if f.dedupe is not None:
        last, left = {}, []
        for e in kept:
            if e[:2] not in last or e[2] - last[e[:2]] > f.dedupe:
                left.append(e)
            last[e[:2]] = e[2]
        kept = left

    def several(events):
        domains = defaultdict(set)
        for e in events:
            domains[e[0]].add(domain[e[1]])
        return {u for u, d in domains.items() if len(d) > 1}

    if f.single_domain == "drop":
        kept = [e for e in kept if e[0] in several(kept)]
    while True:
        n = len(kept)
        for least, key in (
            (f.user_core, lambda e: e[0]),
            (f.domain_core, lambda e: (e[0], domain[e[1]])),
            (f.item_core, lambda e: e[1]),
        ):
            counts = Counter(map(key, kept))
            kept = [e for e in kept if counts[key(e)] >= least]
        if f.single_domain == "drop":
            kept = [e for e in kept if e[0] in several(kept)]
        if len(kept) == n:
            return [e[:4] for e in kept]


ITEMS = [(f"{d[0]}{i}", d, f"Title {i}") for d in DOMAINS for i in range(4)]
events_of = st.lists(
    st.tuples(
        st.sampled_from(["u1", "u2", "u3", "u 4", "ü5"]),
        st.sampled_from([item for item, _, _ in ITEMS]),
        st.integers(0, 12),
        st.sampled_from([1.0, 2.5, 5.0]),
    ),
    min_size=1,
    max_size=60,
)
filters_of = st.builds(
    Filters,
    min_rating=st.none() | st.sampled_from([1, 2.5, 3]),
    after=st.none() | st.integers(0, 5),
    before=st.none() | st.integers(6, 13),
    dedupe=st.none() | st.sampled_from([0, 2, float("inf")]),
    single_domain=st.sampled_from(["keep", "drop"]),
    user_core=st.integers(1, 3),
    domain_core=st.integers(1, 3),
    item_core=st.integers(1, 3),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events_of, filters_of)
def test_events_are_those_of_the_reference(tmp_path_factory, events, filters):
    folder = tmp_path_factory.mktemp("convert")
    expected = reference(events, ITEMS, filters)
    domain_of = {item: domain for item, domain, _ in ITEMS}
    domains = {domain_of[e[1]] for e in expected}
    had = {domain_of[e[1]] for e in events}
    if len(domains) < 2:
        with pytest.raises(DataError, match=r"leaves no event|events of one domain only"):
            run(folder, events, ITEMS, filters)
        assert len(had) == 1 or not (folder / "out" / "out.inter").exists()
        return
    inter, items = run(folder, events, ITEMS, filters)
    assert inter[0] == ["user_id:token", "item_id:token", "timestamp:float", "rating:float"]
    assert [(u, i, float(t), float(r)) for u, i, t, r in inter[1:]] == expected
    assert [row[0] for row in items[1:]] == sorted({e[1] for e in expected})
