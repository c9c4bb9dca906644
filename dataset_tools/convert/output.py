"""The filtered tables as atomic files, all of them or none, and the card of how they came about."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import yaml

from dataset_tools.convert.engine import Engine, quoted
from dataset_tools.convert.intake import ITEM_COLUMNS, SEPARATOR, SPLITS
from dataset_tools.convert.markup import category_tokens, without_markup
from dataset_tools.dataset.checks import checked_items
from dataset_tools.dataset.writer import commit_dataset, refuse_existing
from recbole_tema.data.atomic import replace_file
from recbole_tema.data.cells import cell_of
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

BLOCK_VECTORS = 2  # of 2048 items each


def name_items(engine: Engine, prefix: str, catalogue: bool = False) -> bool:
    """Give the kept items their ids in table `named` (i, item_id, domain); whether prefixed.

    An item that had events and lost all of them to the filters is not kept.

    Args:
        catalogue: Whether to keep items that never had an event.
        prefix: "always" or "never" put the domain before an item's id; "auto" does so, for all
            items, if an id stands in two domains.

    Raises:
        DataError: "never", and an id stands in two domains.
    """
    engine.do(
        "CREATE OR REPLACE TABLE kept_items AS SELECT i, item, domain FROM items "
        f"WHERE i IN (SELECT i FROM events){' OR NOT used' if catalogue else ''}"
    )
    twice = engine.rows(
        "SELECT item, string_agg(domain, ', ' ORDER BY domain) FROM kept_items GROUP BY item "
        "HAVING count(*) > 1 ORDER BY item LIMIT 1"
    )
    if twice and prefix == "never":
        item, domains = twice[0]
        raise DataError(f"item '{item}' is in the domains {domains}; use --item_prefix auto")
    prefixed = prefix == "always" or (prefix == "auto" and bool(twice))
    text = "domain || '_' || item" if prefixed else "item"
    engine.do(
        # Of several files with an item the first counts whose row has a title.
        "CREATE OR REPLACE TABLE described AS SELECT item, domain, coalesce(min(place) "
        "FILTER (coalesce(title, '') != ''), min(place)) AS described FROM raw_items "
        "GROUP BY item, domain;"
        f"CREATE OR REPLACE TABLE named AS SELECT i, {text} AS item_id, domain, described "
        "FROM kept_items LEFT JOIN described USING (item, domain)"
    )
    engine.drop("kept_items", "described")
    same = engine.rows(
        "SELECT item_id, string_agg(DISTINCT domain, ', ' ORDER BY domain) FROM named "
        "GROUP BY item_id HAVING count(*) > 1 ORDER BY item_id LIMIT 1"
    )
    if same:
        raise DataError(
            f"with the domain before them, items of {same[0][1]} have the same id "
            f"'{same[0][0]}'; name a domain differently"
        )
    return prefixed


def known_columns(engine: Engine, domain: str | None = None) -> list[str]:
    """The columns that a kept item has a value of; `title` always."""
    counts = ", ".join(f"count(nullif(m.{name}, ''))" for name in ITEM_COLUMNS)
    found = engine.rows(f"SELECT {counts} {_items_of(domain)}")[0]
    return [n for n, count in zip(ITEM_COLUMNS, found, strict=True) if count or n == "title"]


def _items_of(domain: str | None) -> str:
    """SQL: the kept items, n, each with its row of `raw_items`, m."""
    where = f"WHERE n.domain = {quoted(domain)}" if domain is not None else ""
    return f"FROM named n LEFT JOIN raw_items m ON m.place = n.described {where}"


def write_items(engine: Engine, domain: str | None, path: Path) -> None:
    """Write the kept items, of one domain or all, in the order of their ids; in blocks, so that
    their texts need not fit the memory.

    Raises:
        DataError: a domain that an atomic file cannot hold.
    """
    columns = known_columns(engine, domain)
    cursor = engine.run(
        f"SELECT n.item_id, n.domain, {', '.join(f'm.{name}' for name in columns)} "
        f"{_items_of(domain)} ORDER BY n.i"
    )
    markup = [name for name in ("title", "brand", "description") if name in columns]
    emptied = 0
    with replace_file(path) as file:
        heads = True
        while len(frame := cursor.fetch_df_chunk(BLOCK_VECTORS)):
            if "price" in frame:
                frame["price"] = pd.to_numeric(frame["price"], errors="coerce")
            texts = {c: object for c in columns if c != "price"}
            frame = frame.astype(texts).where(frame.notna(), None)
            for name in markup:
                cleaned = [text and without_markup(text) for text in frame[name]]
                emptied += sum(
                    bool(a and a.strip()) and not b.strip()
                    for a, b in zip(frame[name], cleaned, strict=True)
                )
                frame[name] = cleaned
            if "category" in frame:
                frame["category"] = [
                    text and category_tokens(text, SEPARATOR) for text in frame["category"]
                ]
            cells, kinds = checked_items(path, frame, domains=1)
            if heads:
                file.write(("\t".join(f"{c}:{kinds[c]}" for c in cells) + "\n").encode())
                heads = False
            rows = zip(*(map(cell_of, cells[c].tolist()) for c in cells), strict=True)
            file.write("".join("\t".join(row) + "\n" for row in rows).encode())
    if emptied:
        log.warning(
            "%s: %s texts (%s) were markup or code alone: left empty",
            *(path.name, f"{emptied:,}", ", ".join(markup)),
        )


def counts_of(engine: Engine) -> dict:
    """What `card.count_domains` counts, by SQL."""
    per_domain = engine.rows(
        "SELECT domain, count(DISTINCT u), count(DISTINCT i), count(*) FROM events "
        "JOIN domains USING (d) GROUP BY domain ORDER BY domain"
    )
    items = dict(engine.rows("SELECT domain, count(*) FROM named GROUP BY domain"))
    users, used, events = engine.rows(
        "SELECT count(DISTINCT u), count(DISTINCT i), count(*) FROM events"
    )[0]
    total = sum(items.values())
    overlapping = engine.value(
        "SELECT count(*) FROM (SELECT u FROM events GROUP BY u HAVING min(d) < max(d))"
    )
    return {
        "users": users,
        "items": total,
        "items_without_events": total - used,
        "events": events,
        "overlapping_users": overlapping,
        "domains": {
            domain: {
                **{"users": u, "items": items[domain]},
                **{"items_without_events": items[domain] - i, "events": e},
            }
            for domain, u, i, e in per_domain
        },
    }


def write_output(
    engine: Engine,
    folder: Path,
    name: str,
    card: dict,
    prefix: str,
    force: bool,
    catalogue: bool = False,
) -> dict:
    """Write NAME.inter, NAME.item and the card into `folder`; the counts. `prefix` and `catalogue`
    are those of `name_items`.

    Raises:
        DataError: one domain only, an id that an atomic file cannot hold, the dataset exists and
            `force` is not set, or the folder cannot be written.
    """
    prefixed = name_items(engine, prefix, catalogue)
    counts = counts_of(engine)
    if len(counts["domains"]) < 2:
        found = ", ".join(counts["domains"]) or "none"
        raise DataError(f"events of one domain only ({found}); a cross-domain dataset needs two")
    if not counts["overlapping_users"]:
        users = ", ".join(f"{d['users']:,} {name}" for name, d in counts["domains"].items())
        log.warning(
            "no user has events in two domains (%s users): ids may differ between the sources; "
            "models train, but nothing is carried from one domain to the other",
            users,
        )
    jobs = _jobs(engine, name)
    commit_dataset(folder, name, jobs, {**card, "item_prefix": prefixed}, counts, force)
    return counts


def _jobs(engine: Engine, name: str, domain: str | None = None) -> dict[str, Callable]:
    """File name -> what writes it."""
    return {
        f"{name}.item": partial(write_items, engine, domain),
        f"{name}.inter": partial(write_events, engine, domain),
    }


def refuse_parts(engine: Engine, data_path: Path, name: str, force: bool) -> None:
    """Raise a DataError if something that `write_recbole_cdr` writes is there, without `force`."""
    for (domain,) in engine.rows("SELECT domain FROM domains ORDER BY d"):
        refuse_existing(data_path / f"{name}-{domain}", f"{name}-{domain}", force)
    path = data_path / f"{name}-recbole_cdr.yaml"
    if path.exists() and not force:
        raise DataError(f"{path} exists; replace it with --force, or name another dataset")


def write_recbole_cdr(
    engine: Engine, data_path: Path, name: str, card: dict, counts: dict, force: bool
) -> list[Path]:
    """Write each domain as an atomic dataset of its own, NAME-DOMAIN, as RecBole-CDR reads them,
    and NAME-recbole_cdr.yaml, the part of its configuration that names them; the folders.

    Users keep their tokens, by which RecBole-CDR finds those of both domains. Of three domains
    and more the configuration names the first two. Call it after `write_output`.

    Raises:
        DataError: a dataset exists and `force` is not set, or cannot be written.
    """
    folders = []
    for domain, found in counts["domains"].items():
        part = f"{name}-{domain}"
        folder = data_path / part
        one = {**found, "overlapping_users": 0, "domains": {domain: found}}
        jobs = _jobs(engine, part, domain)
        commit_dataset(folder, part, jobs, {"part of": name, **card}, one, force)
        folders.append(folder)
    keys = {
        f"{role}_domain": {
            "dataset": folder.name,
            "data_path": str(data_path),
            "seq_separator": " ",
            "USER_ID_FIELD": "user_id",
            "ITEM_ID_FIELD": "item_id",
            "RATING_FIELD": "rating",
            "TIME_FIELD": "timestamp",
            "NEG_PREFIX": "neg_",
            "LABEL_FIELD": "label",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        }
        for role, folder in zip(("source", "target"), folders, strict=False)
    }
    with replace_file(data_path / f"{name}-recbole_cdr.yaml") as file:
        file.write(yaml.safe_dump(keys, sort_keys=False).encode())
    return folders


def write_events(engine: Engine, domain: str | None, path: Path) -> None:
    """Write the events, of one domain or all, in the order of time, ties in that of the input."""
    columns = f'user AS "user_id:token", item_id AS "item_id:token", {_number("t")} AS '
    columns += '"timestamp:float"'
    if engine.value("SELECT count(r) FROM events"):
        columns += f", coalesce({_number('r')}, '') AS \"rating:float\""
    if engine.value("SELECT count(s) FROM events"):
        names = ", ".join(map(quoted, SPLITS))
        columns += f", coalesce([{names}][s], '') AS \"split:token\""
    where = f"WHERE domain = {quoted(domain)}" if domain is not None else ""
    engine.do(
        f"COPY (SELECT {columns} FROM events JOIN users USING (u) JOIN named USING (i) {where} "
        f"ORDER BY t, place) TO {quoted(path)} (FORMAT csv, DELIMITER '\t', HEADER true, "
        "QUOTE '', ESCAPE '')"
    )
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _number(column: str) -> str:
    """SQL: a number as `checks.number_text` writes it."""
    whole = f"{column} = floor({column}) AND abs({column}) < 9007199254740992"
    return f"CASE WHEN {whole} THEN {column}::BIGINT::VARCHAR ELSE {column}::VARCHAR END"
