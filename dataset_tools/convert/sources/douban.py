"""Source `douban`: book, movie and music reviews with their labels (the corpus of GA-DTCDR).

Files of a folder, tab-separated and quoted: `bookreviews_cleaned.txt`, `moviereviews_cleaned.txt`,
`musicreviews_cleaned.txt` (user_id, KIND_id, rating, labels, comment, time, ...), and the items'
`books_cleaned.txt`, `movies_cleaned.txt`, `music_cleaned.txt`, whose UID or KIND_id the reviews
name. Labels that users gave, and an item's own tags, become its category.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from dataset_tools.convert.engine import Engine, quoted
from dataset_tools.convert.intake import categories_of, list_of, take_events, take_items
from dataset_tools.convert.lines import Layout, separated
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

KINDS = {  # domain -> (reviews, items)
    "book": ("bookreviews_cleaned.txt", "books_cleaned.txt"),
    "movie": ("moviereviews_cleaned.txt", "movies_cleaned.txt"),
    "music": ("musicreviews_cleaned.txt", "music_cleaned.txt"),
}
LAYOUT = Layout("table", "\t")
MOST_LABELS = 10  # of an item, those that most users gave


def read(engine: Engine, folder: Path, domains: Sequence[str]) -> None:
    """Fill `raw_events` and `raw_items`.

    Args:
        domains: Of book, movie and music; two or three.

    Raises:
        DataError: a file or column is missing.
    """
    for domain in domains:
        reviews, items = (folder / name for name in KINDS[domain])
        if not reviews.is_file():
            there = ", ".join(sorted(path.name for path in folder.glob("*_cleaned.txt"))) or "none"
            raise DataError(f"{reviews}: no such file (of the corpus there are: {there})")
        found = separated(engine, reviews, "loaded", LAYOUT)
        for column in ("user_id", f"{domain}_id", "time"):
            if column not in found:
                raise DataError(f"{reviews}, line 1: no column '{column}' ({', '.join(found)})")
        labels = "labels" if "labels" in found else "NULL"
        engine.do(
            f"CREATE OR REPLACE TABLE labelled AS SELECT trim({domain}_id) AS id, "
            f"{labels_of(labels)} AS labels FROM loaded"
        )
        if items.is_file():
            _read_items(engine, domain, items)
        else:
            log.warning("%s: no such file: items of '%s' have no title", items, domain)
        columns = {
            "user_id": "trim(user_id)",
            "item_id": f"trim({domain}_id)",
            "timestamp": 'trim("time")',
            "rating": "nullif(trim(rating), '')" if "rating" in found else None,
            "domain": quoted(domain),
        }
        take_events(engine, "loaded", reviews, columns)
        engine.drop("labelled")


def labels_of(column: str) -> str:
    """SQL: a list of the labels in `a|b|c` or `['a', 'b']`, which may be cut short."""
    bare = f"regexp_replace({column}::VARCHAR, '^\\s*\\[\\s*''|''\\s*\\]\\s*$', '', 'g')"
    split = f"regexp_split_to_array({bare}, '\\||''\\s*,\\s*''')"
    split = f"coalesce({list_of(f'{column}::VARCHAR')}, {split})"
    return f"list_filter(list_transform({split}, lambda x: trim(x)), lambda x: x NOT IN ('', '[]'))"


def _read_items(engine: Engine, domain: str, path: Path) -> None:
    found = separated(engine, path, "titles", LAYOUT)
    lower = {name.lower(): f'"{name}"' for name in found}
    ids = [lower[name] for name in ("uid", f"{domain}_id") if name in lower]
    if not ids:
        raise DataError(f"{path}, line 1: neither UID nor {domain}_id ({', '.join(found)})")
    # The reviews name an item by one of the two: by that which more of them know.
    shares = [
        engine.value(f"SELECT count(*) FROM labelled WHERE id IN (SELECT trim({c}) FROM titles)")
        for c in ids
    ]
    item = ids[shares.index(max(shares))]
    title = next((lower[c] for c in ("name", "title", f"{domain}_name") if c in lower), "NULL")
    tags = next((lower[c] for c in ("tag", "tags", "genre", "genres") if c in lower), "NULL")
    engine.do(
        # Labels of all users, the most frequent first, ties by name.
        "CREATE OR REPLACE TABLE given AS SELECT id, list(label ORDER BY n DESC, label)"
        f"[1:{MOST_LABELS}] AS labels FROM (SELECT id, label, count(*) AS n FROM "
        "(SELECT id, unnest(labels) AS label FROM labelled) GROUP BY ALL) GROUP BY id;"
        f"CREATE OR REPLACE TABLE joined AS SELECT _number, _good, trim({item}) AS own, "
        f"{title} AS name, list_concat({labels_of(tags)}, coalesce(labels, [])) AS words "
        f"FROM titles LEFT JOIN given ON given.id = trim({item})"
    )
    engine.drop("titles", "given")
    columns = {"title": "trim(name::VARCHAR)", "category": categories_of("words")}
    columns |= {"item_id": "own", "domain": quoted(domain)}
    take_items(engine, "joined", path, columns)
