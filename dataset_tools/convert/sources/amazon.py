"""Source `amazon`: reviews and metadata of the 2014, 2018 and 2023 releases, told by content.

    2014  reviewerID, asin, overall, unixReviewTime; metadata lines are Python literals
    2018  the same names; metadata is JSON: category, price as text, imageURLHighRes
    2023  user_id, parent_asin, rating, timestamp in milliseconds; metadata: categories, images

Metadata of items without a review are those of a whole category; where they are not to be kept
their texts are left out at once, and need no memory.
"""

import ast
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from dataset_tools.convert.broken import SHOWN
from dataset_tools.convert.engine import Engine, quoted
from dataset_tools.convert.feed import texts
from dataset_tools.convert.intake import categories_of, refuse_repeats, take_events, take_items
from dataset_tools.convert.lines import json_lines
from dataset_tools.convert.sources.tables import text_of
from recbole_tema.errors import DataError
from recbole_tema.progress import ProgressBar

log = logging.getLogger(__name__)

REVIEW = {
    "user_id": ("$.reviewerID", "$.user_id"),
    "item_id": ("$.parent_asin", "$.asin"),
    "rating": ("$.overall", "$.rating"),
    "timestamp": ("$.unixReviewTime", "$.timestamp"),
}
RELEASES = {"old": "$.reviewerID", "new": "$.user_id"}
META = {
    "item": ("$.parent_asin", "$.asin"),
    "title": "$.title",
    "categories": "$.categories",
    "category": "$.category",
    "main_category": "$.main_category",
    "brand": "$.brand",
    "store": "$.store",
    "price": "$.price",
    "description": "$.description",
    "image_url": (
        "$.images[0].hi_res",
        "$.images[0].large",
        "$.imageURLHighRes[0]",
        "$.imageURL[0]",
        "$.imUrl",
    ),
}
LITERAL_LINES = 1000  # so many lines tell whether a file's lines are Python literals
MAX_LITERAL = 1 << 20  # bytes of a line; a longer one is no metadata


def read(
    engine: Engine,
    reviews: Sequence[tuple[str, Path]],
    metadata: Sequence[tuple[str, Path]],
    catalogue: bool = True,
) -> None:
    """Fill `raw_events` and `raw_items` from (domain, file); the latter with texts of items
    that have no review, if `catalogue`.

    Raises:
        DataError: a file is missing or cannot be read to its end, holds no review, or metadata
            of which no item has a review: it is of another category.
    """
    for domain, path in [*reviews, *metadata]:
        if not path.is_file():
            raise DataError(f"{path}: no such file ({domain})")
    refuse_repeats([*reviews, *metadata])
    for domain, path in metadata:
        if domain not in {name for name, _ in reviews}:
            raise DataError(f"{path}: metadata of '{domain}', of which no reviews are given")
    for domain, path in reviews:
        json_lines(engine, path, "loaded", REVIEW, RELEASES)
        _tell_release(engine, path)
        columns = {column: column for column in REVIEW} | {"domain": quoted(domain)}
        take_events(engine, "loaded", path, columns)
    for domain, path in metadata:
        _read_metadata(engine, domain, path, catalogue)


def _tell_release(engine: Engine, path: Path) -> None:
    old, new, rows = engine.rows(
        "SELECT count(*) FILTER (old), count(*) FILTER (new), count(*) FILTER (_good) FROM loaded"
    )[0]
    if not old and not new:
        if not rows:
            raise DataError(f"{path}: no line of it is a JSON object")
        raise DataError(
            f"{path}: {rows:,} lines of JSON and no reviewerID or user_id in any: these are no "
            "Amazon reviews; is it the metadata?"
        )
    if old and new:
        log.warning("%s: reviews of two releases in one file: %s and %s", path, old, new)
    else:
        log.info("%s: reviews of the release of %s", path, "2014 or 2018" if old else "2023")


def _read_metadata(engine: Engine, domain: str, path: Path, catalogue: bool) -> None:
    file = path
    if _is_literal(path):
        file = engine.folder / f"{path.name}.json"
        _literals_to_json(engine, path, file)
    json_lines(engine, file, "loaded", META)
    engine.do(
        "CREATE OR REPLACE TABLE wanted AS SELECT DISTINCT item AS id FROM raw_events "
        f"WHERE domain = {quoted(domain)}"
    )
    total, known = engine.rows(
        "SELECT count(*), count(*) FILTER (_good AND item IN (SELECT id FROM wanted)) FROM loaded"
    )[0]
    wanted = engine.value("SELECT count(*) FROM wanted")
    if not known:
        raise DataError(
            f"{path}: none of its {total:,} items is among the {wanted:,} reviewed items of "
            f"'{domain}': it is the metadata of another category"
        )
    log.info("%s: metadata of %s of %s items of '%s'", path, f"{known:,}", f"{wanted:,}", domain)
    table = "loaded"
    if not catalogue:
        table = "chosen"
        texts_of = ", ".join(f"CASE WHEN known THEN {c} END AS {c}" for c in META if c != "item")
        engine.do(
            f"CREATE OR REPLACE TABLE chosen AS SELECT _number, _good, item, {texts_of} "
            "FROM (SELECT *, item IN (SELECT id FROM wanted) AS known FROM loaded)"
        )
    columns = {
        "item_id": "item",
        "domain": quoted(domain),
        "title": "title",
        "category": category_of(),
        "brand": "coalesce(nullif(brand, ''), store)",
        "price": "price",
        "description": text_of("description"),
        "image_url": "image_url",
    }
    take_items(engine, table, path, columns)
    engine.drop("loaded", "wanted")


def category_of() -> str:
    """SQL: categories as `categories_of` has them, of a list, of a list of lists, or of a text."""
    nested = "json_extract_string(categories, '$[*][*]')"
    flat = "json_extract_string(categories, '$[*]')"
    older = "json_extract_string(category, '$[*]')"
    chosen = (
        f"CASE WHEN starts_with(categories, '[[') THEN {nested} "
        f"WHEN starts_with(categories, '[') AND categories != '[]' THEN {flat} "
        f"WHEN starts_with(category, '[') THEN {older} "
        "WHEN main_category IS NOT NULL THEN [main_category] END"
    )
    return categories_of(chosen)


def _lines(path: Path) -> Iterator[bytes]:
    return (line for block in texts(path) for line in block.splitlines())


def _is_literal(path: Path) -> bool:
    """Whether the first lines are Python literals and not JSON, as those of 2014."""
    for number, line in enumerate(_lines(path)):
        if number >= LITERAL_LINES:
            break
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            if line.lstrip().startswith(b"{'"):
                return True
            continue
        return False
    return False


def _literals_to_json(engine: Engine, path: Path, target: Path) -> None:
    """Write lines of Python literals as lines of JSON. They are parsed, never executed."""
    bad: list[int] = []
    with open(target, "w", encoding="utf-8") as file:
        bar = ProgressBar(_lines(path), desc=f"{path.name}: metadata", unit="item", delay=2)
        for number, line in enumerate(bar, start=1):
            text = _literal(line)
            if not text and line.strip():
                bad.append(number)
            file.write(text + "\n")
    engine.broken.add(path, "no Python literal of a dict", len(bad), bad[:SHOWN])


def _literal(line: bytes) -> str:
    """A line as JSON; empty where it is no literal of a dict that JSON can hold."""
    if len(line) > MAX_LITERAL:
        return ""
    try:
        value = ast.literal_eval(line.decode("utf-8").strip())
        return json.dumps(value) if isinstance(value, dict) else ""
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ""
