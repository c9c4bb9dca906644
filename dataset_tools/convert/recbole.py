"""Source `recbole`: atomic datasets of one domain each become one, users matched by token."""

from collections.abc import Sequence
from pathlib import Path

from dataset_tools.convert.engine import Engine, quoted
from dataset_tools.convert.intake import ITEM_COLUMNS, take_events, take_items
from dataset_tools.convert.lines import Broken, separated
from recbole_tema.atomic import read_header
from recbole_tema.errors import DataError

# Columns of RecBole's own datasets -> ours.
TITLES = ("title", "movie_title", "item_name", "name")
CATEGORIES = ("category", "categories", "class", "genre", "genres")
YEARS = ("year", "release_year")


def read(engine: Engine, folders: Sequence[tuple[str | None, Path]], broken: Broken) -> None:
    """Fill `raw_events` and `raw_items` from (domain, folder of an atomic dataset).

    Raises:
        DataError: a folder or file is missing, or a column is.
    """
    for domain, folder in folders:
        name = folder.name
        inter, item = folder / f"{name}.inter", folder / f"{name}.item"
        if item.is_file():
            found = load_atomic(engine, item, broken)
            columns = {c: f'"{c}"' for c in ITEM_COLUMNS if c in found}
            for ours, theirs in (("title", TITLES), ("category", CATEGORIES), ("year", YEARS)):
                known = next((c for c in theirs if c in found), None)
                if known:
                    columns[ours] = f'"{known}"'
            take_items(
                engine,
                "loaded",
                item,
                broken,
                item='"item_id"',
                domain=quoted(domain),
                columns=columns,
            )
        needed = ("user_id", "item_id", "timestamp")
        found = load_atomic(engine, inter, broken, needed)
        take_events(
            engine,
            "loaded",
            inter,
            broken,
            user='"user_id"',
            item='"item_id"',
            timestamp='"timestamp"',
            rating='"rating"' if "rating" in found else None,
            domain=quoted(domain),
        )


def load_atomic(
    engine: Engine, path: Path, broken: Broken, needed: Sequence[str] = ("item_id",)
) -> list[str]:
    """Make `loaded` of an atomic file; the names of its fields.

    Raises:
        DataError: there is no such file, its header is none, or lacks a field of `needed`.
    """
    names = [field.name for field in read_header(path)]
    for name in needed:
        if name not in names:
            raise DataError(f"{path}, line 1: no column '{name}' (found: {', '.join(names)})")
    separated(engine, path, "loaded", broken, delimiter="\t", quote="", names=names, skip=1)
    return names
