"""From the columns of a raw file to sound events: faulty rows are counted and left out.

Every source makes its events by `take_events` and its items by `take_items`, so that ids, times
and ratings are judged the same way whatever the format.

Tables: `raw_events` (user VARCHAR, item VARCHAR, domain VARCHAR, timestamp DOUBLE, rating DOUBLE,
split UTINYINT, place BIGINT), where `place` counts the rows as they were read, for the order of
events of one time, and `split` numbers SPLITS from 1; and `raw_items` (item VARCHAR, domain
VARCHAR, place BIGINT, and a VARCHAR for each of ITEM_COLUMNS, that of `category` with SEPARATOR
between the texts).
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataset_tools.convert.broken import SHOWN
from dataset_tools.convert.engine import Engine, quoted
from recbole_tema.data.cells import PADDING_TOKEN, READ_AS_MISSING
from recbole_tema.errors import ConfigError, DataError

log = logging.getLogger(__name__)

ITEM_COLUMNS = ("title", "category", "brand", "price", "year", "description", "image_url")
SEPARATOR = "\x1f"  # between the texts of categories; no text that is kept holds it
SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {"train": 1, "valid": 2, "test": 3}
SPLIT_NAMES |= {"training": 1, "validation": 2, "val": 2, "dev": 2, "testing": 3}
DAYS = (
    *("%m %d, %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y", "%d %b %Y", "%d %B %Y"),
    *("%d-%b-%Y", "%a, %d %b %Y", "%a %b %d %Y", "%d %b, %Y", "%d %B, %Y"),
)
# Forms of dates that can be read in one way only: of no zone, of an offset, of a zone's name.
# DuckDB reads them right if they are asked for apart. ISO 8601 is read without them.
CLOCKS = (" %H:%M", " %H:%M:%S")
DATES = (
    (*(day + clock for day in DAYS for clock in ("", *CLOCKS)), "%a %b %d %H:%M:%S %Y"),
    (*(day + clock + " %z" for day in DAYS for clock in CLOCKS), "%a %b %d %H:%M:%S %z %Y"),
    (*(day + clock + " %Z" for day in DAYS for clock in CLOCKS), "%a %b %d %H:%M:%S %Z %Y"),
)
DIGITS = {  # numbers that are dates, if most of a file are -> least, greatest
    "%Y%m%d": (19000101, 21001231),
    "%Y%m%d%H%M%S": (19000101000000, 21001231235959),
}
SLASHED = re.compile(r"\s*(\d{1,2})([/.-])(\d{1,2})[/.-](\d{4}|\d{2})(?:\s+(\d+:\d+)(:\d+)?)?\s*")
# A price: a currency may stand before or behind it, and nothing else.
CURRENCY = r"(?:[A-Za-z]{0,3}\p{Sc}|[A-Z]{3}|Rs\.?)?"
AMOUNTS = {  # -> SQL of what float64 reads
    r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+|\d{1,3}(?:,\d{3})+(?:\.\d+)?": "replace({}, ',', '')",
    r"\d{1,3}(?:\.\d{3})*,\d{1,2}": "replace(replace({}, '.', ''), ',', '.')",
}
# A list as Python prints it, and pandas' `to_csv` with it; with blanks between as numpy does.
PYTHON_TEXT = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
PYTHON_ITEM = rf"(?:{PYTHON_TEXT}|None|nan)"
PYTHON_LIST = rf"(?s)\s*\[\s*{PYTHON_ITEM}(?:\s*,?\s*{PYTHON_ITEM})*\s*,?\s*\]\s*"
BAD_TIME = "time is no number or known date"
BAD_SPLIT = f"split is none of {', '.join(SPLITS)}"
NO_PRICE = READ_AS_MISSING | {"-", "\u2013", "\u2014"}
YEAR_1900 = -2208988800  # seconds; an earlier date is none
MILLISECONDS = 1e11  # seconds until the year 5138, milliseconds from 1973 on
MICROSECONDS = 1e14
NANOSECONDS = 1e17
# What `recbole_tema.data.cells.token_fault` refuses for its characters, as a regular expression.
CONTROL = r"[\x00-\x1f\x7f\x{80}-\x{9f}\x{2028}\x{2029}\x{FEFF}]"


def prepare(engine: Engine) -> None:
    """Make the empty tables."""
    columns = ", ".join(f"{name} VARCHAR" for name in ITEM_COLUMNS)
    engine.do(
        "CREATE TABLE raw_events (user VARCHAR, item VARCHAR, domain VARCHAR, timestamp DOUBLE, "
        "rating DOUBLE, split UTINYINT, place BIGINT)"
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


def categories_of(texts: str) -> str:
    """SQL: a list of texts as a cell `category` of `raw_items`."""
    return f"array_to_string({texts}, {quoted(SEPARATOR)})"


def list_of(text: str) -> str:
    """SQL: the texts of a list in JSON, or as Python prints it (read, never run); NULL of what is
    no list."""
    bare = "substr(x, 2, length(x) - 2)"
    bare = rf"regexp_replace({bare}, '(^|[^\\])\\(?:xa0|[nrt])', '\1 ', 'g')"
    bare = rf"regexp_replace({bare}, '\\([''\"\\])', '\1', 'g')"
    return (
        f"CASE WHEN NOT starts_with(ltrim({text}), '[') THEN NULL "
        f"WHEN json_valid({text}) THEN json_extract_string({text}, '$[*]')::VARCHAR[] "
        f"WHEN regexp_full_match({text}, {quoted(PYTHON_LIST)}) THEN "
        f"list_transform(regexp_extract_all({text}, {quoted(PYTHON_TEXT)}), lambda x: {bare}) END"
    )


def time_of(text: str, form: str | None = None) -> str:
    """SQL: seconds of a text that is a number or a date, or of the form `form` of strptime."""
    if form:
        return f"epoch(try_strptime(trim({text}), {quoted(form)}))"
    number = f"try_cast({text} AS DOUBLE)"
    plain = rf"regexp_replace({text}, '^\s*(\d{{4}})[./](\d\d?)[./](\d\d?)', '\1-\2-\3')"
    dates = [f"epoch(try_cast({plain} AS TIMESTAMPTZ))"]  # UTC where it names no zone
    for forms in DATES:
        listed = ", ".join(map(quoted, forms))
        dates.append(f"epoch(try_strptime(trim({text}), [{listed}]))")
    # DuckDB takes 3-4-15 for a day of the year 3.
    date = f"coalesce({', '.join(f'if({one} >= {YEAR_1900}, {one}, NULL)' for one in dates)})"
    return f"CASE WHEN isfinite({number}) THEN {number} WHEN {number} IS NULL THEN {date} END"


def check_form(engine: Engine, form: str) -> None:
    """Refuse a form of times that strptime does not know.

    Raises:
        ConfigError: so it is.
    """
    import duckdb

    try:
        engine.value(f"SELECT try_strptime('', {quoted(form)})")
    except duckdb.Error as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"--time_format {form!r} is no form of strptime such as '%d/%m/%Y %H:%M' ({first})"
        ) from None


def form_of(engine: Engine, table: str, column: str, path: Path) -> str | None:
    """The form of DIGITS that most times of a file that are numbers have; None where they are
    other numbers. A cell that is no such date is then no time.

    Raises:
        DataError: dates of another form stand beside them.
    """
    number = f"try_cast({column} AS BIGINT)"
    for form, (least, most) in DIGITS.items():
        fits = (
            f"CASE WHEN {number} BETWEEN {least} AND {most} "
            f"THEN try_strptime({digits_of(column)}, {quoted(form)}) IS NOT NULL ELSE false END"
        )
        dates, numbers = engine.rows(
            f"SELECT count(*) FILTER ({fits}), count({number}) FROM {table}"
        )[0]
        if 2 * dates <= numbers:
            continue
        other = engine.value(
            f"SELECT arg_min({column}, _number) FROM {table} WHERE {number} IS NULL "
            f"AND {time_of(column)} IS NOT NULL"
        )
        if other is not None:
            raise DataError(
                f"{path}: {dates:,} times are dates of the form {form} or seconds, and others are "
                f"dates such as {other!r}; write all in one form, and give it by --time_format"
            )
        log.info("%s: times are taken as dates of the form %s", path, form)
        return form
    return None


def digits_of(text: str) -> str:
    """SQL: a whole number without `.0`, which pandas writes where a column lacks some."""
    return rf"regexp_replace(trim({text}), '\.0+$', '')"


def time_remedy(example: str) -> str:
    """What to do about times such as `example`."""
    found = SLASHED.fullmatch(example)
    if not found:
        return "give the form of its times by --time_format, of strptime"
    first, between, second, year, clock, seconds = found.groups()
    clock = (" %H:%M" if clock else "") + (":%S" if seconds else "")
    day, month = (between.join((*two, "%Y" if len(year) == 4 else "%y")) + clock
                  for two in (("%d", "%m"), ("%m", "%d")))  # fmt: skip
    if int(first) > 12:
        return f"say so if the day comes first: --time_format '{day}'"
    if int(second) > 12:
        return f"say so if the month comes first: --time_format '{month}'"
    return f"say whether day or month comes first: --time_format '{day}' or '{month}'"


def take_events(
    engine: Engine,
    table: str,
    path: Path,
    columns: Mapping[str, str | None],
    form: str | None = None,
) -> None:
    """Move the sound rows of `table` (with `_number` and `_good`) to `raw_events`, and drop it.

    Args:
        path: The file, for messages.
        columns: user_id, item_id, domain, and maybe others -> SQL of a text: timestamp, a number of
            seconds, or of milli-, micro- or nanoseconds, or a date (where the source has none see
            `settle.settle_times`); rating; split, one of SPLIT_NAMES in any case.
        form: Of the times, as of strptime; None: numbers and known dates.

    Raises:
        DataError: too many rows are broken, see `Broken.judge`, or a split is no known one.
    """
    timestamp, split = columns.get("timestamp"), columns.get("split")
    rating = columns.get("rating") or "NULL"
    place = engine.value("SELECT coalesce(max(place), 0) FROM raw_events")
    names = ", ".join(f"{quoted(name)}: {n}" for name, n in SPLIT_NAMES.items())
    part = f"MAP {{{names}}}[lower(trim({split}))]" if split else "NULL"
    written = timestamp
    if timestamp and not form:
        form = form_of(engine, table, timestamp, path)
        written = digits_of(timestamp) if form else timestamp
    no_time = (
        "WHEN time IS NULL AND coalesce(shown, '') = '' THEN 'no time' "
        f"WHEN time IS NULL THEN {quoted(BAD_TIME)} "
    )
    fault = (
        f"CASE WHEN bad THEN 'no JSON object' ELSE coalesce({id_fault('user')}, "
        f"{id_fault('item')}, CASE WHEN domain IS NULL OR domain = '' THEN 'no domain' "
        f"{no_time if timestamp else ''}"
        "WHEN rating IS NOT NULL AND rating != '' AND "
        "(stars IS NULL OR NOT isfinite(stars)) THEN 'rating is no number' "
        f"{'WHEN split IS NULL THEN ' + quoted(BAD_SPLIT) if split else ''} END) END"
    )
    time = time_of(str(written), form) if timestamp else "NULL::DOUBLE"
    engine.do(
        "CREATE OR REPLACE TABLE judged AS SELECT _number, user, item, domain, time, stars, "
        f"split, CASE WHEN time IS NULL THEN shown END AS shown, {fault} AS fault FROM "
        f"(SELECT _number, {columns['user_id']} AS user, {columns['item_id']} AS item, "
        f"{columns['domain']} AS domain, {time} AS time, {rating} AS rating, "
        f"left({timestamp or 'NULL'}, 40) AS shown, {part}::UTINYINT AS split, "
        f"try_cast({rating} AS DOUBLE) AS stars, NOT _good AS bad "
        f"FROM {table})"
    )
    engine.drop(table)
    _note_faults(engine, path, form)
    _tell_units(engine, path)
    seconds = (
        f"CASE WHEN abs(time) >= {NANOSECONDS} THEN time / 1e9 "
        f"WHEN abs(time) >= {MICROSECONDS} THEN time / 1e6 "
        f"WHEN abs(time) >= {MILLISECONDS} THEN time / 1e3 ELSE time END"
    )
    engine.do(
        "INSERT INTO raw_events SELECT user, item, domain, "
        f"{'time' if form else seconds}, stars, split, {place} + _number "
        "FROM judged WHERE fault IS NULL"  # in any order: `place` keeps that of the file
    )
    engine.drop("judged")


def _note_faults(engine: Engine, path: Path, form: str | None = None) -> None:
    """Note the rows of `judged` that are not sound.

    Raises:
        DataError: too many others, or a split that is no known one.
    """
    for reason, count, first, shown in engine.rows(
        f"SELECT fault, count(*), min(_number, {SHOWN}), arg_min(shown, _number) FROM judged "
        "WHERE fault IS NOT NULL GROUP BY fault ORDER BY fault"
    ):
        if reason == BAD_SPLIT:  # without it the event would go to a part that nobody chose
            raise DataError(
                f"{path}: {count:,} row{'' if count == 1 else 's'}: {reason} (row {first[0]}); "
                "write one of these in each"
            )
        example = shown if reason == BAD_TIME else None
        remedy = time_remedy(shown) if example and not form else ""
        engine.broken.add(path, reason, count, first, "row", example, remedy)
    engine.broken.judge(path, engine.value("SELECT count(*) FROM judged WHERE fault IS NULL"))


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


def take_items(engine: Engine, table: str, path: Path, columns: Mapping[str, str | None]) -> None:
    """Move the sound rows of `table` to `raw_items`, one of each item, and drop it.

    Of several rows the first with a title counts. A price is an amount with a currency or none;
    what else stands there is left empty and counted.

    Args:
        columns: item_id, domain and maybe of ITEM_COLUMNS -> SQL of a text, empty or NULL where
            unknown; of `category` that of `categories_of`.

    Raises:
        DataError: too many rows are broken, see `Broken.judge`.
    """
    place = engine.value("SELECT coalesce(max(place), 0) FROM raw_items")
    shown = f"trim({columns['price']})" if columns.get("price") else "NULL"
    found = {**columns, "price": price_of("shown")}
    values = ", ".join(f"{found.get(c) or 'NULL'}::VARCHAR AS {c}" for c in ITEM_COLUMNS)
    fault = (
        f"CASE WHEN bad THEN 'no JSON object' ELSE coalesce({id_fault('item')}, "
        "CASE WHEN domain IS NULL OR domain = '' THEN 'no domain' END) END"
    )
    engine.do(
        f"CREATE OR REPLACE TABLE judged AS SELECT * REPLACE (CASE WHEN price IS NULL THEN "
        f"left(shown, 40) END AS shown), {fault} AS fault FROM (SELECT _number, "
        f"{found['item_id']} AS item, {found['domain']} AS domain, NOT _good AS bad, {values}, "
        f"shown FROM (SELECT *, {shown}::VARCHAR AS shown FROM {table}))"
    )
    _note_faults(engine, path)
    none = ", ".join(map(quoted, sorted(NO_PRICE)))
    count, example = engine.rows(
        "SELECT count(*), arg_min(shown, _number) FROM judged "
        f"WHERE fault IS NULL AND shown NOT IN ({none})"
    )[0]
    engine.broken.leave_empty(path, "price", count, example)
    names = ", ".join(ITEM_COLUMNS)
    engine.do(
        f"INSERT INTO raw_items SELECT item, domain, {place} + _number, {names} FROM judged "
        "WHERE fault IS NULL QUALIFY 1 = "
        "row_number() OVER (PARTITION BY item, domain "
        "ORDER BY coalesce(title, '') = '', _number) ORDER BY _number"
    )
    engine.drop("judged", table)


def price_of(text: str) -> str:
    """SQL: the number in a text that is an amount, maybe with a currency; else NULL.

    Commas stand between thousands, or one of them before one or two decimals.
    """
    cases = []
    for amount, plain in AMOUNTS.items():
        whole = rf"{CURRENCY}\s*({amount})\s*{CURRENCY}"
        found = f"regexp_extract({text}, {quoted(f'^(?:{whole})$')}, 1)"
        cases.append(f"nullif({plain.format(found)}, '')")
    number = f"try_cast(coalesce({', '.join(cases)}) AS DOUBLE)"
    return f"CASE WHEN isfinite({number}) THEN {number} END"
