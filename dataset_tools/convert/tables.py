"""Source `csv`: plain tables of interactions and items (CSV, TSV, JSON lines, Parquet)."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataset_tools.convert.engine import Engine, identifier, naming_file, quoted
from dataset_tools.convert.intake import (
    ITEM_COLUMNS,
    refuse_repeats,
    take_events,
    take_items,
    tokens_of,
)
from dataset_tools.convert.lines import (
    Broken,
    free_names,
    json_lines,
    separated,
    text_lines,
)
from recbole_tema.errors import ConfigError, DataError

log = logging.getLogger(__name__)

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
JSON = {".json", ".jsonl", ".ndjson"}
SAMPLED_LINES = 1000  # of a file of JSON lines, whose keys are its columns
PACKED = {".gz", ".zst", ".zstd"}

# Column of ours -> names that the field's datasets have for it, in lower case.
NAMES = {
    "user_id": ("user_id", "user", "userid", "uid", "reviewerid", "user_id:token"),
    "item_id": (
        "item_id",
        "item",
        "itemid",
        "iid",
        "asin",
        "parent_asin",
        "movieid",
        "item_id:token",
    ),
    "timestamp": ("timestamp", "time", "ts", "unixreviewtime", "date", "timestamp:float"),
    "rating": ("rating", "overall", "score", "stars", "rating:float"),
    "domain": ("domain", "domain:token"),
    "title": ("title", "name", "title:token_seq"),
    "category": ("category", "categories", "genres", "genre", "category:token_seq"),
    "brand": ("brand", "store", "brand:token"),
    "price": ("price", "price:float"),
    "year": ("year",),
    "description": ("description",),
    "image_url": ("image_url", "imurl", "image"),
}


@dataclass(frozen=True)
class Tables:
    """Files of one conversion.

    Attributes:
        interactions: (domain or None, file): None where a column or the items tell the domain.
        items: Likewise.
        columns: Column of ours -> its name in the files, where it is none of the usual ones.
        delimiter: Between the cells of text tables; None: a comma in .csv, a tab in .tsv and .txt.
        quote: Around a cell of a text table that holds the delimiter or a line break; "": nothing.
    """

    interactions: Sequence[tuple[str | None, Path]]
    items: Sequence[tuple[str | None, Path]]
    columns: Mapping[str, str] = field(default_factory=dict)
    delimiter: str | None = None
    quote: str = '"'


def read(engine: Engine, tables: Tables, broken: Broken) -> None:
    """Fill `raw_events` and `raw_items`.

    Raises:
        ConfigError: `columns` names what is no column of ours, or a file has no such column.
        DataError: a file cannot be read, lacks a column, or nobody tells an item's domain.
    """
    for name in tables.columns:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0)[0]
            raise ConfigError(f"column '{name}' is none of {', '.join(NAMES)}; nearest: '{near}'")
    refuse_repeats(tables.interactions)
    refuse_repeats(tables.items)
    told, columns_there = False, set()
    texts_of = {"category": category_of, "description": text_of, "image_url": first_of}
    for domain, path in tables.items:
        found = load(engine, path, "loaded", broken, tables)
        columns_there |= {name.lower() for name in found}
        where = {c: _column(path, found, c, tables.columns) for c in ("domain", *ITEM_COLUMNS)}
        item = _needed(path, found, "item_id", tables.columns)
        known = quoted(domain) if domain is not None else where["domain"]
        if known is None:
            raise DataError(
                f"{path}: no column 'domain' (found: {', '.join(found)}); name the domain before "
                "the file, DOMAIN=FILE, or the column by --column domain=NAME"
            )
        take_items(
            engine,
            "loaded",
            path,
            broken,
            item=item,
            domain=known,
            columns={c: where[c] for c in ITEM_COLUMNS if where[c]}
            | {c: texts_of[c](where[c]) for c in texts_of if where[c]},
        )
        told = True
    for domain, path in tables.interactions:
        found = load(engine, path, "loaded", broken, tables)
        columns_there |= {name.lower() for name in found}
        columns = {
            c: _needed(path, found, c, tables.columns) for c in ("user_id", "item_id", "timestamp")
        }
        own = quoted(domain) if domain is not None else None
        own = own or _column(path, found, "domain", tables.columns)
        if own is None and not told:
            raise DataError(
                f"{path}: no column 'domain' (found: {', '.join(found)}) and no table of items "
                "that tells it; give --items, or DOMAIN=FILE"
            )
        table = "loaded"
        if own is None:
            own, table = _domains_of_items(engine, path, columns["item_id"]), "joined"
        take_events(
            engine,
            table,
            path,
            broken,
            user=columns["user_id"],
            item=columns["item_id"],
            timestamp=columns["timestamp"],
            rating=_column(path, found, "rating", tables.columns),
            domain=own,
        )
    for ours, theirs in tables.columns.items():
        if theirs.lower() not in columns_there:
            near = difflib.get_close_matches(theirs, sorted(columns_there), n=1, cutoff=0)
            raise ConfigError(
                f"--column {ours}={theirs}: no file has a column '{theirs}'; nearest: '{near[0]}'"
            )
    if told:
        _tell_unmatched(engine)


def _tell_unmatched(engine: Engine) -> None:
    """Say so where no item of a domain has an event: names or domains may differ.

    Raises:
        DataError: so it is in all domains.
    """
    rows = engine.rows(
        "SELECT domain, count(*), count(*) FILTER (EXISTS (SELECT 1 FROM raw_events e "
        "WHERE e.item = i.item AND e.domain = i.domain)) FROM raw_items i GROUP BY domain "
        "ORDER BY domain"
    )
    idle = [(domain, total) for domain, total, known in rows if not known]
    if not idle:
        return
    found = ", ".join(
        d for (d,) in engine.rows("SELECT DISTINCT domain FROM raw_events ORDER BY 1")
    )
    text = ", ".join(f"none of the {total:,} items of '{domain}'" for domain, total in idle)
    text += f" has an event (domains of events: {found}); ids or domains differ between the tables"
    if len(idle) == len(rows):
        raise DataError(text)
    log.warning("%s", text)


def category_of(column: str) -> str:
    """SQL: categories as tokens, of a JSON list, of texts with | between, or of tokens."""
    listed = tokens_of(f"json_extract_string({column}, '$[*]')")
    split = tokens_of(f"string_split({column}, '|')")
    return (
        f"CASE WHEN starts_with({column}, '[') AND json_valid({column}) THEN {listed} "
        f"WHEN contains({column}, '|') THEN {split} ELSE {column} END"
    )


def text_of(column: str) -> str:
    """SQL: a text, or the texts of a JSON list in one."""
    return (
        f"CASE WHEN starts_with({column}, '[') AND json_valid({column}) "
        f"THEN array_to_string(json_extract_string({column}, '$[*]'), ' ') ELSE {column} END"
    )


def first_of(column: str) -> str:
    """SQL: a text, or the first of a JSON list."""
    return (
        f"CASE WHEN starts_with({column}, '[') AND json_valid({column}) "
        f"THEN json_extract_string({column}, '$[0]') ELSE {column} END"
    )


def _domains_of_items(engine: Engine, path: Path, item: str) -> str:
    """Make `joined` of the events in `loaded` with the items' domains; SQL of the domain.

    Raises:
        DataError: an item has two domains.
    """
    twice = engine.rows(
        "SELECT item, string_agg(DISTINCT domain, ', ' ORDER BY domain) FROM raw_items "
        "GROUP BY item HAVING count(DISTINCT domain) > 1 ORDER BY item LIMIT 1"
    )
    if twice:
        raise DataError(
            f"{path}: item '{twice[0][0]}' is in the domains {twice[0][1]} of the items, and the "
            "interactions do not tell which is meant: add a column 'domain' to them"
        )
    engine.do(
        "CREATE OR REPLACE TABLE joined AS SELECT l.*, r.domain AS domain_of_item FROM loaded l "
        f"LEFT JOIN (SELECT DISTINCT item, domain FROM raw_items) r ON r.item = l.{item}"
    )
    engine.drop("loaded")
    return "domain_of_item"


def load(
    engine: Engine, path: Path, table: str, broken: Broken, tables: Tables | None = None
) -> list[str]:
    """Make `table` (_number, _good, and the file's columns as text); the names of the columns.

    Raises:
        DataError: there is no such file, or of no kind that is known by its name.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    kinds = [suffix.lower() for suffix in path.suffixes]
    kind = next((suffix for suffix in reversed(kinds) if suffix not in PACKED), "")
    if kind == ".parquet":
        with naming_file(path):
            names = _number_parquet(engine, path, table)
        return names
    if kind in JSON:
        return _load_json(engine, path, table, broken, tables or Tables([], []))
    if kind not in DELIMITERS:
        known = ", ".join([*DELIMITERS, *sorted(JSON), ".parquet"])
        raise DataError(f"{path}: what kind of table '{kind}' is cannot be told; known: {known}")
    tables = tables or Tables([], [])
    delimiter = tables.delimiter or DELIMITERS[kind]
    names = separated(engine, path, table, broken, delimiter=delimiter, quote=tables.quote)
    if len(names) == 1:
        other = next((d for d in ",;\t|" if d in names[0]), None)
        if other:
            raise DataError(
                f"{path}, line 1: one column only, {names[0]!r}; if {other!r} is between the "
                f"cells, add --delimiter {'tab' if other == chr(9) else repr(other)}"
            )
    return names


def _load_json(engine: Engine, path: Path, table: str, broken: Broken, tables: Tables) -> list[str]:
    """Make `table` of JSON lines: the columns that can be meant; their names.

    Keys are those of the first lines, and the usual names, which can come later.
    """
    with engine.reading(path) as text:
        seen = engine.rows(
            "SELECT DISTINCT unnest(json_keys(line)) AS key FROM (SELECT line FROM "
            f"{text_lines(text.sql)} WHERE json_valid(line) AND starts_with(ltrim(line), '{{') "
            f"LIMIT {SAMPLED_LINES}) ORDER BY key"
        )
    usual = {alias for names in NAMES.values() for alias in names}
    usual |= set(tables.columns.values())
    meant = {name.lower() for name in usual}
    first = [key for (key,) in seen if key.lower() in meant]
    keys = first + sorted(usual - set(first))
    names = dict(zip(free_names(keys), keys, strict=True))
    pointers = {
        # A JSON pointer: unlike a path it can name every key.
        identifier(f"k{i}"): "/" + key.replace("~", "~0").replace("/", "~1")
        for i, key in enumerate(names.values())
    }
    json_lines(engine, path, table, pointers, broken)
    counts = engine.rows(
        f"SELECT {', '.join(f'count({column})' for column in pointers)}, count(*) FILTER (_good) "
        f"FROM {table}"
    )[0]
    if not counts[-1]:
        raise DataError(
            f"{path}: no line of it is a JSON object; of one array of objects make lines, "
            "e.g. jq -c '.[]' FILE > NEW.jsonl"
        )
    found = {
        name: column
        for (name, key), column, count in zip(names.items(), pointers, counts, strict=False)
        if count or key in first
    }
    # Names that differ by case alone are one identifier to DuckDB: the exact one is kept.
    chosen: dict[str, str] = {}
    for name in sorted(found, key=lambda name: name not in usual):
        chosen.setdefault(name.lower(), name)
    kept = [name for name in found if chosen[name.lower()] == name]
    engine.see(table, {name: found[name] for name in kept})
    if not kept:
        other = ", ".join(key for (key,) in seen[:10])
        raise DataError(f"{path}: no key of its objects is known (found: {other}); see --column")
    return kept


def _number_parquet(engine: Engine, path: Path, table: str) -> list[str]:
    """Make `table` of a Parquet file, its lists as JSON; its columns."""
    source = f"read_parquet({engine.link(path)})"
    cells, described = [], engine.rows(f"DESCRIBE SELECT * FROM {source}")
    names = free_names([row[0] for row in described])
    for (column, kind, *_), name in zip(described, names, strict=True):
        cell = identifier(column)
        cell = f"to_json({cell})::VARCHAR" if kind.endswith("[]") else cell
        cells.append(f"{cell} AS {identifier(name)}")
    engine.number(table, f"SELECT true AS _good, {', '.join(cells)} FROM {source}")
    return names


def _column(path: Path, found: list[str], ours: str, given: Mapping[str, str]) -> str | None:
    """SQL of one of our columns, as text; None where the file has none.

    Raises:
        ConfigError: the user named a column that is not there.
    """
    by_lower = {name.lower(): name for name in reversed(found)}
    by_lower |= {name: name for name in found}  # an exact name counts more
    wanted = [given[ours].lower(), given[ours]] if ours in given else NAMES[ours]
    name = next((by_lower[alias] for alias in wanted if alias in by_lower), None)
    if name is None and ours in given and ours in ("user_id", "item_id", "timestamp"):
        near = difflib.get_close_matches(given[ours], found, n=1, cutoff=0)
        raise ConfigError(
            f"{path}: no column '{given[ours]}' (found: {', '.join(found)}; "
            f"nearest: '{near[0] if near else ''}')"
        )
    return None if name is None else f"{identifier(name)}::VARCHAR"


def _needed(path: Path, found: list[str], ours: str, given: Mapping[str, str]) -> str:
    column = _column(path, found, ours, given)
    if column is None:
        raise DataError(
            f"{path}: no column '{ours}' (found: {', '.join(found)}); name it by "
            f"--column {ours}=NAME"
        )
    return column
