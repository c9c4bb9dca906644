"""From the columns of a raw file to sound events: faulty rows are counted and left out.

Every source makes its events by `take_events` and its items by `take_items`, so that ids, times
and ratings are judged the same way whatever the format.

Tables: `raw_events` (user VARCHAR, item VARCHAR, domain VARCHAR, timestamp DOUBLE, rating DOUBLE,
place BIGINT), where `place` counts the rows as they were read, for the order of events of one
time; and `raw_items` (item VARCHAR, domain VARCHAR, place BIGINT, and a VARCHAR for each of
ITEM_COLUMNS).
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from dataset_tools.convert.engine import Engine, quoted
from dataset_tools.convert.lines import SHOWN, Broken
from recbole_tema.atomic import PADDING_TOKEN, READ_AS_MISSING

log = logging.getLogger(__name__)

ITEM_COLUMNS = ("title", "category", "brand", "price", "year", "description", "image_url")
MILLISECONDS = 1e11  # seconds until the year 5138, milliseconds from 1973 on
MICROSECONDS = 1e14
# What `recbole_tema.atomic.token_fault` refuses for its characters, as a regular expression.
CONTROL = r"[\x00-\x1f\x7f\x{80}-\x{9f}\x{2028}\x{2029}]"


def prepare(engine: Engine) -> None:
    """Make the empty tables."""
    columns = ", ".join(f"{name} VARCHAR" for name in ITEM_COLUMNS)
    engine.do(
        "CREATE TABLE raw_events (user VARCHAR, item VARCHAR, domain VARCHAR, timestamp DOUBLE, "
        "rating DOUBLE, place BIGINT)"
    )
    engine.do(f"CREATE TABLE raw_items (item VARCHAR, domain VARCHAR, place BIGINT, {columns})")


def id_fault(column: str) -> str:
    """SQL: why a column's text cannot be an id; NULL where it can. Of items it is a half: an id
    that pandas takes for missing is sound with its domain before it."""
    missing = ", ".join(quoted(text) for text in sorted(READ_AS_MISSING - {""}))
    return (
        f"CASE WHEN {column} IS NULL OR {column} = '' THEN 'no {column}' "
        f"WHEN {column} IN ({missing}, {quoted(PADDING_TOKEN)}) THEN 'no {column}' "
        f"WHEN starts_with({column}, '\"') THEN '{column} opens with a quote' "
        f"WHEN regexp_matches({column}, {quoted(CONTROL)}) "
        f"THEN '{column} with a tab, line break or control character' END"
    )


def time_of(text: str) -> str:
    """SQL: seconds of a text that is a number or a date."""
    number = f"try_cast({text} AS DOUBLE)"
    date = f"epoch(try_cast({text} AS TIMESTAMP))"
    return f"CASE WHEN isfinite({number}) THEN {number} WHEN {number} IS NULL THEN {date} END"


def take_events(
    engine: Engine,
    table: str,
    path: Path,
    broken: Broken,
    *,
    user: str,
    item: str,
    timestamp: str,
    rating: str | None,
    domain: str,
    good: str = "true",
) -> int:
    """Move the sound rows of `table` (with a column `number`) to `raw_events`; their number.

    Args:
        path: The file, for messages.
        user: SQL of the user's id, a text; the others likewise.
        timestamp: A number of seconds, or of milli- or microseconds, or a date.
        rating: None where the source has none.
        domain: SQL of the domain.
        good: SQL: whether the line could be read at all.
    """
    place = engine.value("SELECT coalesce(max(place), 0) FROM raw_events")
    engine.do(
        f"CREATE OR REPLACE TABLE taken AS SELECT number, {user} AS user, {item} AS item, "
        f"{domain} AS domain, {time_of(timestamp)} AS time, "
        f"{rating or 'NULL'} AS rating, try_cast({rating or 'NULL'} AS DOUBLE) AS stars, "
        f"NOT coalesce({good}, false) AS bad FROM {table}"
    )
    fault = (
        f"CASE WHEN bad THEN 'no JSON object' ELSE coalesce({id_fault('user')}, "
        f"{id_fault('item')}, CASE WHEN domain IS NULL OR domain = '' THEN 'no domain' "
        "WHEN time IS NULL THEN 'no time' WHEN rating IS NOT NULL AND rating != '' AND "
        "(stars IS NULL OR NOT isfinite(stars)) THEN 'rating is no number' END) END"
    )
    engine.do(f"CREATE OR REPLACE TABLE judged AS SELECT *, {fault} AS fault FROM taken")
    engine.do("DROP TABLE taken")
    for reason, count, first in engine.rows(
        f"SELECT fault, count(*), min(number, {SHOWN}) FROM judged WHERE fault IS NOT NULL "
        "GROUP BY fault ORDER BY fault"
    ):
        broken.add(path, reason, count, first, unit="row")
    _tell_units(engine, path)
    seconds = (
        f"CASE WHEN abs(time) >= {MICROSECONDS} THEN time / 1e6 "
        f"WHEN abs(time) >= {MILLISECONDS} THEN time / 1e3 ELSE time END"
    )
    engine.do(
        f"INSERT INTO raw_events SELECT user, item, domain, {seconds}, stars, {place} + number "
        "FROM judged WHERE fault IS NULL ORDER BY number"
    )
    taken = engine.value("SELECT count(*) FROM judged WHERE fault IS NULL")
    engine.do(f"DROP TABLE judged; DROP TABLE IF EXISTS {table}")
    return taken


def _tell_units(engine: Engine, path: Path) -> None:
    """Say so where one file holds times in several units."""
    counts = engine.rows(
        f"SELECT count(*) FILTER (abs(time) < {MILLISECONDS}), "
        f"count(*) FILTER (abs(time) >= {MILLISECONDS} AND abs(time) < {MICROSECONDS}), "
        f"count(*) FILTER (abs(time) >= {MICROSECONDS}) FROM judged WHERE fault IS NULL"
    )[0]
    units = dict(zip(("seconds", "milliseconds", "microseconds"), counts, strict=True))
    found = {unit: count for unit, count in units.items() if count}
    if len(found) > 1:
        text = ", ".join(f"{count:,} in {unit}" for unit, count in found.items())
        log.warning("%s: times of several units: %s; all are taken as seconds", path, text)


def take_items(
    engine: Engine,
    table: str,
    path: Path,
    broken: Broken,
    *,
    item: str,
    domain: str,
    columns: Mapping[str, str],
    good: str = "true",
) -> int:
    """Move the sound rows of `table` to `raw_items`, the first of each item; their number.

    Args:
        columns: Of ITEM_COLUMNS -> SQL of a text, empty or NULL where unknown.
    """
    place = engine.value("SELECT coalesce(max(place), 0) FROM raw_items")
    values = ", ".join(f"{columns.get(name, 'NULL')} AS {name}" for name in ITEM_COLUMNS)
    fault = (
        f"CASE WHEN bad THEN 'no JSON object' ELSE coalesce({id_fault('item')}, "
        "CASE WHEN domain IS NULL OR domain = '' THEN 'no domain' END) END"
    )
    engine.do(
        f"CREATE OR REPLACE TABLE judged AS SELECT *, {fault} AS fault FROM (SELECT number, "
        f"{item} AS item, {domain} AS domain, NOT coalesce({good}, false) AS bad, {values} "
        f"FROM {table})"
    )
    for reason, count, first in engine.rows(
        f"SELECT fault, count(*), min(number, {SHOWN}) FROM judged WHERE fault IS NOT NULL "
        "GROUP BY fault ORDER BY fault"
    ):
        broken.add(path, reason, count, first, unit="row")
    names = ", ".join(ITEM_COLUMNS)
    engine.do(
        f"INSERT INTO raw_items SELECT item, domain, {place} + number, {names} FROM judged "
        "WHERE fault IS NULL QUALIFY row_number() OVER (PARTITION BY item, domain ORDER BY number) "
        "= 1 ORDER BY number"
    )
    taken = engine.value("SELECT count(*) FROM judged WHERE fault IS NULL")
    engine.do(f"DROP TABLE judged; DROP TABLE IF EXISTS {table}")
    return taken
