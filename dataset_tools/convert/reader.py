"""A raw file of any kind as a table of DuckDB, by its layout."""

from pathlib import Path

from dataset_tools.convert.engine import Engine, identifier, naming_file
from dataset_tools.convert.layout import SAMPLED_LINES, USUAL, Tables, layout_of
from dataset_tools.convert.lines import free_names, json_lines, json_texts, separated
from dataset_tools.convert.sources.sequences import read_sequences
from recbole_tema.errors import DataError


def load(
    engine: Engine, path: Path, table: str, tables: Tables, role: str = "interactions"
) -> list[str]:
    """Make `table` (_number, _good, and the file's columns as text); the names of the columns.

    Raises:
        DataError: there is no such file, or what kind of table it is cannot be told.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    layout = layout_of(path, tables, role)
    if layout.kind == "parquet":
        with naming_file(path):
            return _number_parquet(engine, path, table)
    if layout.kind == "json":
        return _load_json(engine, path, table, tables)
    if layout.kind == "sequences":
        return read_sequences(engine, path, table, layout.delimiter, layout.marked)
    return separated(engine, path, table, layout)


def _load_json(engine: Engine, path: Path, table: str, tables: Tables) -> list[str]:
    """Make `table` of JSON objects: the columns that can be meant; their names.

    Keys are those of the first objects, and the usual names, which can come later.
    """
    with engine.reading(path) as text:
        seen = engine.rows(
            "SELECT DISTINCT unnest(json_keys(line)) AS key FROM (SELECT line FROM "
            f"{json_texts(path, text.sql)} WHERE json_valid(line) "
            f"AND starts_with(ltrim(line), '{{') LIMIT {SAMPLED_LINES}) ORDER BY key"
        )
    usual = USUAL | set(tables.columns.values())
    meant = {name.lower() for name in usual}
    first = [key for (key,) in seen if key.lower() in meant]
    keys = first + sorted(usual - set(first))
    names = dict(zip(free_names(keys), keys, strict=True))
    pointers = {
        # A JSON pointer: unlike a path it can name every key.
        identifier(f"k{i}"): "/" + key.replace("~", "~0").replace("/", "~1")
        for i, key in enumerate(names.values())
    }
    json_lines(engine, path, table, pointers)
    counts = engine.rows(
        f"SELECT {', '.join(f'count({column})' for column in pointers)}, count(*) FILTER (_good) "
        f"FROM {table}"
    )[0]
    if not counts[-1]:
        raise DataError(
            f"{path}: no line of it is a JSON object; write one a line, or all in one array"
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
