"""The filtered tables as atomic files, all of them or none, and the card of how they came about."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import yaml

from dataset_tools.checks import checked_items
from dataset_tools.convert.engine import Engine, quoted
from dataset_tools.convert.intake import ITEM_COLUMNS
from dataset_tools.writer import commit_dataset, write_cells
from recbole_tema.atomic import replace_file
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

PREFIXES = ("auto", "always", "never")


def name_items(engine: Engine, prefix: str) -> bool:
    """Give the kept items their ids in table `named` (i, item_id, domain); whether prefixed.

    Args:
        prefix: "always" or "never" put the domain before an item's id; "auto" does so, for all
            items, if an id stands in two domains.

    Raises:
        DataError: "never", and an id stands in two domains.
    """
    engine.do(
        "CREATE OR REPLACE TABLE kept_items AS SELECT i, item, domain FROM items "
        "WHERE i IN (SELECT i FROM events)"
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
        f"CREATE OR REPLACE TABLE named AS SELECT i, {text} AS item_id, domain FROM kept_items;"
        "DROP TABLE kept_items"
    )
    return prefixed


def item_frame(engine: Engine) -> pd.DataFrame:
    """The kept items with what is known of each; columns without a value are left out."""
    columns = ", ".join(f"m.{name}" for name in ITEM_COLUMNS)
    frame = engine.run(
        f"SELECT n.item_id, n.domain, {columns} FROM named n JOIN items USING (i) "
        "LEFT JOIN (SELECT * FROM raw_items QUALIFY row_number() OVER (PARTITION BY item, domain "
        "ORDER BY place) = 1) m ON m.item = items.item AND m.domain = items.domain ORDER BY n.i"
    ).df()
    known = [c for c in ITEM_COLUMNS if c == "title" or frame[c].fillna("").ne("").any()]
    frame = frame[["item_id", "domain", *known]]
    if "price" in frame:
        frame["price"] = pd.to_numeric(frame["price"], errors="coerce")
    return frame.astype({c: object for c in known if c != "price"}).where(frame.notna(), None)


def counts_of(engine: Engine) -> dict:
    """What `card.count_domains` counts, by SQL."""
    per_domain = engine.rows(
        "SELECT domain, count(DISTINCT u), count(DISTINCT i), count(*) FROM events "
        "JOIN domains USING (d) GROUP BY domain ORDER BY domain"
    )
    users, items, events = engine.rows(
        "SELECT count(DISTINCT u), count(DISTINCT i), count(*) FROM events"
    )[0]
    overlapping = engine.value(
        "SELECT count(*) FROM (SELECT u FROM events GROUP BY u HAVING min(d) < max(d))"
    )
    return {
        "users": users,
        "items": items,
        "events": events,
        "overlapping_users": overlapping,
        "domains": {
            domain: {"users": u, "items": i, "events": e} for domain, u, i, e in per_domain
        },
    }


def write_output(
    engine: Engine, folder: Path, name: str, card: dict, prefix: str, force: bool
) -> dict:
    """Write NAME.inter, NAME.item and the card into `folder`; the counts.

    Raises:
        DataError: one domain only, an id that an atomic file cannot hold, the dataset exists and
            `force` is not set, or the folder cannot be written.
    """
    prefixed = name_items(engine, prefix)
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
    cells, kinds = checked_items(folder / f"{name}.item", item_frame(engine))
    jobs: dict[str, Callable[[Path], None]] = {
        f"{name}.item": partial(write_cells, cells, kinds),
        f"{name}.inter": partial(write_events, engine, None),
    }
    stated = {**card, "item_prefix": prefixed}
    commit_dataset(folder, name, jobs, stated, counts, force)
    return counts


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
    frame = item_frame(engine)
    folders = []
    for domain, found in counts["domains"].items():
        part = f"{name}-{domain}"
        folder = data_path / part
        mine = frame[frame["domain"] == domain].reset_index(drop=True)
        cells, kinds = checked_items(folder / f"{part}.item", mine, domains=1)
        jobs: dict[str, Callable[[Path], None]] = {
            f"{part}.item": partial(write_cells, cells, kinds),
            f"{part}.inter": partial(write_events, engine, domain),
        }
        stated = {"part of": name, **card}
        one = {**found, "overlapping_users": 0, "domains": {domain: found}}
        commit_dataset(folder, part, jobs, stated, one, force)
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
