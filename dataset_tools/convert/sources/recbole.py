"""Source `recbole`: atomic datasets of one domain each become one, users matched by token."""

from collections.abc import Sequence
from pathlib import Path

from dataset_tools.convert.engine import Engine, identifier, quoted
from dataset_tools.convert.intake import ITEM_COLUMNS, categories_of, take_events, take_items
from dataset_tools.convert.lines import Layout, free_names, separated
from recbole_tema.data.atomic import read_header
from recbole_tema.errors import DataError

# Columns of RecBole's own datasets -> ours.
TITLES = ("title", "movie_title", "item_name", "name")
CATEGORIES = ("category", "categories", "class", "genre", "genres")
YEARS = ("year", "release_year")
QUOTED = r'^"((?:[^"]|"")*)"((?:[^"].*)?)$'  # a quoted cell: what is in the quotes, what follows


def read(engine: Engine, folders: Sequence[tuple[str, Path]]) -> None:
    """Fill `raw_events` and `raw_items` from (domain, folder of an atomic dataset).

    Raises:
        DataError: a folder or file is missing, or a column is.
    """
    for domain, folder in folders:
        name = folder.name
        inter, item = folder / f"{name}.inter", folder / f"{name}.item"
        if item.is_file():
            found = load_atomic(engine, item, "loaded")
            texts: dict[str, str] = {c: f'"{c}"' for c in ITEM_COLUMNS if c in found}
            for ours, theirs in (("title", TITLES), ("category", CATEGORIES), ("year", YEARS)):
                known = next((c for c in theirs if c in found), None)
                if known:
                    texts[ours] = f'"{known}"'
            if "category" in texts:
                texts["category"] = categories_of(f"string_split({texts['category']}, ' ')")
            texts |= {"item_id": '"item_id"', "domain": quoted(domain)}
            take_items(engine, "loaded", item, texts)
        needed = ("user_id", "item_id", "timestamp")
        found = load_atomic(engine, inter, "loaded", needed)
        columns = {c: f'"{c}"' for c in (*needed, "rating", "split") if c in found}
        take_events(engine, "loaded", inter, columns | {"domain": quoted(domain)})


def load_atomic(
    engine: Engine, path: Path, table: str, needed: Sequence[str] = ("item_id",)
) -> list[str]:
    """Make `table` of an atomic file, as `separated` does; the names of its fields.

    Quoted cells are read as by `cells.unquoted`.

    Raises:
        DataError: there is no such file, its header is none or lacks a field of `needed`, or a
            cell opens a quote that it does not close.
    """
    names = [field.name for field in read_header(path)]
    for name in needed:
        if name not in names:
            raise DataError(f"{path}, line 1: no column '{name}' (found: {', '.join(names)})")
    separated(engine, path, table, Layout("table", "\t", "", names, skip=1))
    cells = [identifier(name) for name in free_names(names)]
    opens = {cell: f"starts_with({cell}, '\"')" for cell in cells}
    first = engine.value(f"SELECT min(_number) FROM {table} WHERE {' OR '.join(opens.values())}")
    if first is None:
        return names
    unclosed = " OR ".join(
        f"({test} AND NOT regexp_matches({cell}, {quoted(QUOTED)}))" for cell, test in opens.items()
    )
    bad = engine.value(f"SELECT min(_number) FROM {table} WHERE {unclosed}")
    if bad is not None:
        raise DataError(
            f"{path}, line {bad + 1}: a cell opens a double quote that is not closed before the "
            "next tab or line end; close it"
        )
    parts = [f"regexp_extract({{}}, {quoted(QUOTED)}, {n})" for n in (1, 2)]
    engine.see(
        table,
        {
            name: f"CASE WHEN {opens[cell]} THEN replace({parts[0].format(cell)}, '\"\"', '\"') || "
            f"{parts[1].format(cell)} ELSE {cell} END"
            for name, cell in zip(free_names(names), cells, strict=True)
        },
    )
    return names
