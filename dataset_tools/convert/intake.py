"""From the columns of a raw file to sound events: faulty rows are counted and left out.

Every source makes its events by `take_events` and its items by `take_items`, so that ids, times
and ratings are judged the same way whatever the format.

Tables: `raw_events` (user VARCHAR, item VARCHAR, domain VARCHAR, timestamp DOUBLE, rating DOUBLE,
place BIGINT), where `place` counts the rows as they were read, for the order of events of one
time; and `raw_items` (item VARCHAR, domain VARCHAR, place BIGINT, and a VARCHAR for each of
ITEM_COLUMNS).
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataset_tools.convert.engine import Engine, quoted
from dataset_tools.convert.lines import SHOWN, Broken
from recbole_tema.atomic import PADDING_TOKEN, READ_AS_MISSING
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

ITEM_COLUMNS = ("title", "category", "brand", "price", "year", "description", "image_url")
MILLISECONDS = 1e11  # seconds until the year 5138, milliseconds from 1973 on
MICROSECONDS = 1e14
NANOSECONDS = 1e17
# What `recbole_tema.atomic.token_fault` refuses for its characters, as a regular expression.
CONTROL = r"[\x00-\x1f\x7f\x{80}-\x{9f}\x{2028}\x{2029}\x{FEFF}]"


def prepare(engine: Engine) -> None:
    """Make the empty tables."""
    columns = ", ".join(f"{name} VARCHAR" for name in ITEM_COLUMNS)
    engine.do(
        "CREATE TABLE raw_events (user VARCHAR, item VARCHAR, domain VARCHAR, timestamp DOUBLE, "
        "rating DOUBLE, place BIGINT)"
    )
    engine.do(f"CREATE TABLE raw_items (item VARCHAR, domain VARCHAR, place BIGINT, {columns})")


def id_fault(column: str) -> str:
    """SQL: why a column's text cannot be an id; NULL where it can. What pandas takes for
    missing is none."""
    missing = ", ".join(quoted(text) for text in sorted(READ_AS_MISSING - {""}))
    return (
        f"CASE WHEN {column} IS NULL OR {column} = '' THEN 'no {column}' "
        f"WHEN {column} IN ({missing}, {quoted(PADDING_TOKEN)}) THEN 'no {column}' "
        f"WHEN starts_with({column}, '\"') THEN '{column} opens with a quote' "
        f"WHEN regexp_matches({column}, {quoted(CONTROL)}) "
        f"THEN '{column} with a tab, line break or control character' END"
    )


def refuse_repeats(files: Sequence[tuple[str | None, Path]]) -> None:
    """Refuse a file that is given twice.

    Raises:
        DataError: so it is; its events would count twice.
    """
    seen = set()
    for _, path in files:
        if path.resolve() in seen:
            raise DataError(f"{path} is given twice")
        seen.add(path.resolve())


def tokens_of(texts: str) -> str:
    """SQL: a list of texts as the tokens of a `token_seq`; blanks within a text become `_`."""
    return (
        f"array_to_string(list_transform({texts}, lambda x: "
        r"regexp_replace(trim(x), '\s+', '_', 'g')), ' ')"
    )


def time_of(text: str) -> str:
    """SQL: seconds of a text that is a number or a date."""
    number = f"try_cast({text} AS DOUBLE)"
    date = f"epoch(try_cast({text} AS TIMESTAMPTZ))"  # UTC where it names no zone
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
) -> int:
    """Move the sound rows of `table` (with `_number` and `_good`) to `raw_events`; how many.

    `table` is dropped.

    Args:
        path: The file, for messages.
        user: SQL of the user's id, a text; the others likewise.
        timestamp: A number of seconds, or of milli-, micro- or nanoseconds, or a date.
        rating: None where the source has none.
        domain: SQL of the domain.
    """
    place = engine.value("SELECT coalesce(max(place), 0) FROM raw_events")
    fault = (
        f"CASE WHEN bad THEN 'no JSON object' ELSE coalesce({id_fault('user')}, "
        f"{id_fault('item')}, CASE WHEN domain IS NULL OR domain = '' THEN 'no domain' "
        "WHEN time IS NULL THEN 'no time' WHEN rating IS NOT NULL AND rating != '' AND "
        "(stars IS NULL OR NOT isfinite(stars)) THEN 'rating is no number' END) END"
    )
    engine.do(
        "CREATE OR REPLACE TABLE judged AS SELECT _number, user, item, domain, time, stars, "
        f"{fault} AS fault FROM (SELECT _number, {user} AS user, {item} AS item, "
        f"{domain} AS domain, {time_of(timestamp)} AS time, {rating or 'NULL'} AS rating, "
        f"try_cast({rating or 'NULL'} AS DOUBLE) AS stars, NOT _good AS bad "
        f"FROM {table})"
    )
    engine.drop(table)
    for reason, count, first in engine.rows(
        f"SELECT fault, count(*), min(_number, {SHOWN}) FROM judged WHERE fault IS NOT NULL "
        "GROUP BY fault ORDER BY fault"
    ):
        broken.add(path, reason, count, first, unit="row")
    _tell_units(engine, path)
    seconds = (
        f"CASE WHEN abs(time) >= {NANOSECONDS} THEN time / 1e9 "
        f"WHEN abs(time) >= {MICROSECONDS} THEN time / 1e6 "
        f"WHEN abs(time) >= {MILLISECONDS} THEN time / 1e3 ELSE time END"
    )
    engine.do(
        f"INSERT INTO raw_events SELECT user, item, domain, {seconds}, stars, {place} + _number "
        "FROM judged WHERE fault IS NULL"  # in any order: `place` keeps that of the file
    )
    taken = engine.value("SELECT count(*) FROM judged WHERE fault IS NULL")
    engine.drop("judged")
    return taken


def _tell_units(engine: Engine, path: Path) -> None:
    """Say so where one file holds times in several units."""
    counts = engine.rows(
        f"SELECT count(*) FILTER (abs(time) < {MILLISECONDS}), "
        f"count(*) FILTER (abs(time) >= {MILLISECONDS} AND abs(time) < {MICROSECONDS}), "
        f"count(*) FILTER (abs(time) >= {MICROSECONDS} AND abs(time) < {NANOSECONDS}), "
        f"count(*) FILTER (abs(time) >= {NANOSECONDS}) FROM judged WHERE fault IS NULL"
    )[0]
    names = ("seconds or dates", "milliseconds", "microseconds", "nanoseconds")
    units = dict(zip(names, counts, strict=True))
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
) -> int:
    """Move the sound rows of `table` to `raw_items`, one of each item; how many.

    Of several rows the first with a title counts. A price is its first number, without the commas.

    `table` is dropped.

    Args:
        columns: Of ITEM_COLUMNS -> SQL of a text, empty or NULL where unknown.
    """
    place = engine.value("SELECT coalesce(max(place), 0) FROM raw_items")
    if "price" in columns:
        price = f"regexp_extract(replace({columns['price']}, ',', ''), '\\d+(\\.\\d+)?')"
        columns = {**columns, "price": f"nullif({price}, '')"}
    values = ", ".join(f"{columns.get(name, 'NULL')}::VARCHAR AS {name}" for name in ITEM_COLUMNS)
    fault = (
        f"CASE WHEN bad THEN 'no JSON object' ELSE coalesce({id_fault('item')}, "
        "CASE WHEN domain IS NULL OR domain = '' THEN 'no domain' END) END"
    )
    engine.do(
        f"CREATE OR REPLACE TABLE judged AS SELECT *, {fault} AS fault FROM (SELECT _number, "
        f"{item} AS item, {domain} AS domain, NOT _good AS bad, {values} "
        f"FROM {table})"
    )
    for reason, count, first in engine.rows(
        f"SELECT fault, count(*), min(_number, {SHOWN}) FROM judged WHERE fault IS NOT NULL "
        "GROUP BY fault ORDER BY fault"
    ):
        broken.add(path, reason, count, first, unit="row")
    names = ", ".join(ITEM_COLUMNS)
    engine.do(
        f"INSERT INTO raw_items SELECT item, domain, {place} + _number, {names} FROM judged "
        "WHERE fault IS NULL QUALIFY 1 = "
        "row_number() OVER (PARTITION BY item, domain "
        "ORDER BY coalesce(title, '') = '', _number) ORDER BY _number"
    )
    taken = engine.value("SELECT count(*) FROM judged WHERE fault IS NULL")
    engine.drop("judged", table)
    return taken
