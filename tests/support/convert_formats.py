"""Events as the raw files of every source, in its true format, for the tests of `convert`.

Each of FORMATS takes a folder, events (`convert_reference.Event`) and the titles of items, writes
the source's files, and gives back its reader. `fits` are what events can be in that format: ids,
domains, times and ratings.
"""

import csv
import gzip
import io
import json
from typing import NamedTuple

import pandas as pd
import pytest

from dataset_tools.convert.sources import amazon, douban, movielens, recbole, tables

duckdb = pytest.importorskip("duckdb", reason="the extra convert is not installed")

DAY = 24 * 3600
GENRES = {"thrill": "Crime|Thriller", "heart": "Romance|Comedy"}


class Fits(NamedTuple):
    """What a format can hold."""

    domains: tuple = ("book", "film")
    users: tuple = ("u1", "u2", "u3", "u 4", "ü5", "6")
    items: tuple = ("i1", "i2", "i3", "日4")
    step: int = 1  # seconds between two times that the format tells apart
    shared: bool = True  # whether one id can stand in two domains
    rated: bool = True  # whether every event has a rating
    titled: bool = True  # whether items have titles


def packed(path, text):
    """Write a text, packed as the end of the file's name says."""
    data = text if isinstance(text, bytes) else text.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, 1)
    elif path.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


def table(rows, delimiter, quoting=csv.QUOTE_MINIMAL):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows(rows)
    return file.getvalue()


def by_domain(events):
    """Domain -> its events; all events of a domain are in one file."""
    return {d: [e for e in events if e.domain == d] for d in sorted({e.domain for e in events})}


def in_reading_order(events):
    """The events as sources with a file for each domain read them."""
    return [e for part in by_domain(events).values() for e in part]


def plain_table(end):
    """Source csv, one table of interactions with a column of the domain."""

    def write(folder, events, titles):
        head = ["user_id", "item_id", "timestamp", "rating", "domain"]
        rows = [[e.user, e.item, e.time, e.rating, e.domain] for e in events]
        path = folder / f"events.{end}"
        kind = end.split(".")[0]
        if kind == "parquet":
            duckdb.from_df(pd.DataFrame(rows, columns=head)).write_parquet(str(path))
        elif kind == "jsonl":
            packed(path, "".join(json.dumps(dict(zip(head, r, strict=True))) + "\n" for r in rows))
        else:
            packed(path, table([head, *rows], "," if kind == "csv" else "\t"))
        files = tables.Tables([(None, path)], [])
        return lambda engine: tables.read(engine, files)

    return write


def two_tables(folder, events, titles):
    """Source csv, interactions without a domain, which the table of items tells."""
    rows = [[e.user, e.item, e.time, e.rating] for e in events]
    head = ["userId", "movieId", "ts", "score"]
    path = packed(folder / "events.csv.gz", table([head, *rows], ","))
    items = [["asin", "domain", "name"], *([i, d, t] for (d, i), t in titles.items())]
    known = packed(folder / "items.tsv", table(items, "\t"))
    files = tables.Tables([(None, path)], [(None, known)])
    return lambda engine: tables.read(engine, files)


def amazon_release(release):
    """Source amazon; the metadata of 2014 are Python literals."""

    def review(e):
        if release == "2023":
            row = {"rating": e.rating, "title": "Fine", "text": 'a "b"\n\tc', "asin": "VARIANT"}
            return row | {"parent_asin": e.item, "user_id": e.user, "timestamp": e.time * 1000}
        row = {"reviewerID": e.user, "asin": e.item, "reviewText": 'a "b"\n\tc', "style": {}}
        return row | {"overall": e.rating, "summary": "Fine", "unixReviewTime": e.time}

    def write(folder, events, titles):
        end = "jsonl.gz" if release == "2023" else "json.gz"
        reviews, metadata = [], []
        for domain, part in by_domain(events).items():
            lines = "".join(json.dumps(review(e)) + "\n" for e in part)
            reviews.append((domain, packed(folder / f"{domain}.{end}", lines)))
            key = "parent_asin" if release == "2023" else "asin"
            rows = [
                {key: i, "title": t, "also": ["x"]} for (d, i), t in titles.items() if d == domain
            ]
            show = repr if release == "2014" else json.dumps
            text = "".join(show(row) + "\n" for row in rows)
            metadata.append((domain, packed(folder / f"meta_{domain}.{end}", text)))
        return lambda engine: amazon.read(engine, reviews, metadata)

    return write


def douban_corpus(folder, events, titles):
    """Source douban; times are days."""
    domains = list(by_domain(events))
    for domain, part in by_domain(events).items():
        head = ["user_id", f"{domain}_id", "rating", "labels", "comment", "time", "ID"]
        rows = [
            [e.user, e.item, "" if e.rating is None else e.rating, "a|b", 'so "so"\ttwo\nlines']
            + [pd.Timestamp(e.time, unit="s").strftime("%Y-%m-%d"), str(number)]
            for number, e in enumerate(part)
        ]
        reviews, items = douban.KINDS[domain]
        packed(folder / reviews, table([head, *rows], "\t", csv.QUOTE_ALL))
        rows = [[i, t] for (d, i), t in titles.items() if d == domain]
        packed(folder / items, table([["UID", "name"], *rows], "\t", csv.QUOTE_ALL))
    return lambda engine: douban.read(engine, folder, domains)


def movielens_release(release):
    """Source movielens; the domain is that of the genres."""

    def write(folder, events, titles):
        rows = [[e.user, e.item, f"{e.rating:g}", e.time] for e in events]
        films = [[i, f"{t} (1995)", GENRES[d]] for (d, i), t in titles.items()]
        if release == "100k":
            packed(folder / "u.data", table(rows, "\t"))
            flags = [
                [str(int(genre in row[2].split("|"))) for genre in movielens.GENRES_100K]
                for row in films
            ]
            lines = [
                "|".join([i, title, "01-Jan-1995", "", "http://x", *flag])
                for (i, title, _), flag in zip(films, flags, strict=True)
            ]
            packed(folder / "u.item", "".join(f"{line}\n" for line in lines).encode("latin-1"))
        elif release == "1m":
            packed(folder / "ratings.dat", "".join("::".join(map(str, r)) + "\n" for r in rows))
            text = "".join("::".join(row) + "\n" for row in films)
            packed(folder / "movies.dat", text.encode("latin-1"))
        else:
            packed(folder / "ratings.csv", table([movielens.RATING_COLUMNS, *rows], ","))
            packed(folder / "movies.csv", table([["movieId", "title", "genres"], *films], ","))
        return lambda engine: movielens.read(engine, folder)

    return write


def atomic_datasets(folder, events, titles):
    """Source recbole: a dataset for each domain."""
    folders = []
    for domain, part in by_domain(events).items():
        place = folder / domain
        place.mkdir()
        head = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
        rows = [[e.user, e.item, e.rating, e.time] for e in part]
        lines = ["\t".join(map(str, row)) + "\n" for row in [head, *rows]]
        packed(place / f"{domain}.inter", "".join(lines))
        rows = [["item_id:token", "movie_title:token_seq"]]
        rows += [[i, t] for (d, i), t in titles.items() if d == domain]
        packed(place / f"{domain}.item", "".join("\t".join(row) + "\n" for row in rows))
        folders.append((domain, place))
    return lambda engine: recbole.read(engine, folders)


NUMBERS = Fits(
    ("heart", "thrill"), ("1", "2", "3", "10", "11"), ("1", "2", "30", "31"), shared=False
)
FORMATS = {
    "csv": (plain_table("csv.gz"), Fits(titled=False)),
    "tsv": (plain_table("tsv.zst"), Fits(titled=False)),
    "jsonl": (plain_table("jsonl.gz"), Fits(titled=False)),
    "parquet": (plain_table("parquet"), Fits(titled=False)),
    "two tables": (two_tables, Fits(shared=False)),
    "amazon 2014": (amazon_release("2014"), Fits()),
    "amazon 2018": (amazon_release("2018"), Fits()),
    "amazon 2023": (amazon_release("2023"), Fits()),
    "douban": (douban_corpus, Fits(("book", "movie", "music"), step=DAY, rated=False)),
    "ml-100k": (movielens_release("100k"), NUMBERS),
    "ml-1m": (movielens_release("1m"), NUMBERS),
    "ml-32m": (movielens_release("32m"), NUMBERS),
    "recbole": (atomic_datasets, Fits()),
}
# Formats whose events come from a file for each domain, one after another.
A_FILE_EACH = ("amazon 2014", "amazon 2018", "amazon 2023", "douban", "recbole")
