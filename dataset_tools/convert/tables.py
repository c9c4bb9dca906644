"""Source `csv`: plain tables of interactions and items (CSV, TSV, JSON lines, Parquet)."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataset_tools.convert.engine import Engine, naming_file, quoted
from dataset_tools.convert.intake import ITEM_COLUMNS, take_events, take_items, tokens_of
from dataset_tools.convert.lines import Broken, json_lines, separated, text_lines
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
    told = False
    for domain, path in tables.items:
        found = load(engine, path, "loaded", broken, tables)
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
            | ({"category": category_of(where["category"])} if where["category"] else {}),
        )
        told = True
    for domain, path in tables.interactions:
        found = load(engine, path, "loaded", broken, tables)
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


def category_of(column: str) -> str:
    """SQL: categories as tokens, of a JSON list, of texts with | between, or of tokens."""
    listed = tokens_of(f"json_extract_string({column}, '$[*]')")
    split = tokens_of(f"string_split({column}, '|')")
    return (
        f"CASE WHEN starts_with({column}, '[') AND json_valid({column}) THEN {listed} "
        f"WHEN contains({column}, '|') THEN {split} ELSE {column} END"
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
        with engine.reading(path) as text:
            keys = engine.rows(
                f"SELECT DISTINCT unnest(json_keys(line)) AS key FROM (SELECT line FROM "
                f"{text_lines(text.sql)} WHERE json_valid(line) LIMIT {SAMPLED_LINES}) ORDER BY key"
            )
        names = [name for (name,) in keys]
        if not names:
            raise DataError(
                f"{path}: no line of it is a JSON object; of one array of objects make lines, "
                "e.g. jq -c '.[]' FILE > NEW.jsonl"
            )
        json_lines(engine, path, table, {f'"{n}"': f'$."{n}"' for n in names}, broken)
        return names
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


def _number_parquet(engine: Engine, path: Path, table: str) -> list[str]:
    """Make `table` of a Parquet file, its lists as texts with | between; its columns."""
    source = f"read_parquet({engine.link(path)})"
    names, cells = [], []
    for name, kind, *_ in engine.rows(f"DESCRIBE SELECT * FROM {source}"):
        column = '"' + name.replace('"', '""') + '"'
        names.append(name)
        is_list = kind.endswith("[]")
        cells.append(f"array_to_string({column}, '|') AS {column}" if is_list else column)
    engine.number(table, f"SELECT true AS _good, {', '.join(cells)} FROM {source}")
    return names


def _column(path: Path, found: list[str], ours: str, given: Mapping[str, str]) -> str | None:
    """SQL of one of our columns, as text; None where the file has none.

    Raises:
        ConfigError: the user named a column that is not there.
    """
    by_lower = {name.lower(): name for name in found}
    if ours in given:
        name = by_lower.get(given[ours].lower())
        if name is None and ours in ("user_id", "item_id", "timestamp"):
            near = difflib.get_close_matches(given[ours], found, n=1, cutoff=0)
            raise ConfigError(
                f"{path}: no column '{given[ours]}' (found: {', '.join(found)}; "
                f"nearest: '{near[0] if near else ''}')"
            )
    else:
        name = next((by_lower[alias] for alias in NAMES[ours] if alias in by_lower), None)
    return None if name is None else '"' + name.replace('"', '""') + '"::VARCHAR'


def _needed(path: Path, found: list[str], ours: str, given: Mapping[str, str]) -> str:
    column = _column(path, found, ours, given)
    if column is None:
        raise DataError(
            f"{path}: no column '{ours}' (found: {', '.join(found)}); name it by "
            f"--column {ours}=NAME"
        )
    return column
