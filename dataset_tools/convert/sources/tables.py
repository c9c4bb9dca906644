"""Source `csv`: plain tables of interactions and items (CSV, TSV, JSON, Parquet), or sequences."""

import difflib
import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dataset_tools.convert.engine import Engine, identifier, quoted
from dataset_tools.convert.intake import (
    ITEM_COLUMNS,
    SPLITS,
    categories_of,
    check_form,
    id_fault,
    list_of,
    refuse_repeats,
    take_events,
    take_items,
)
from dataset_tools.convert.layout import LEFT_OUT, NAMES, OPTIONS, USUAL, Tables
from dataset_tools.convert.reader import load
from dataset_tools.convert.sources.sequences import expand
from recbole_tema.errors import ConfigError, DataError

log = logging.getLogger(__name__)

PLURAL = ('items"', 'item_ids"')  # columns of lists, by their names


class Interactions(NamedTuple):
    """One file of events.

    Attributes:
        domain: None where a column or the items tell it.
        path: The file.
        split: One of SPLITS; None where a column tells it, or nothing.
    """

    domain: str | None
    path: Path
    split: str | None = None


def read(engine: Engine, tables: Tables) -> None:
    """Fill `raw_events` and `raw_items`.

    Raises:
        ConfigError: an option names what is no column of ours, or a file has no such column.
        DataError: a file cannot be read, lacks a column, nobody tells an item's domain, or an
            option is needed to tell what is meant.
    """
    _check_columns(tables)
    if tables.time_format:
        check_form(engine, tables.time_format)
    files = [Interactions(domain, path) for domain, path in tables.interactions]
    for split in SPLITS:  # in the order of time
        files += [Interactions(*file, split) for file in tables.splits.get(split, ())]
    if not files:
        raise ConfigError("no interactions; give --interactions, or --train, --valid and --test")
    refuse_repeats([(file.domain, file.path) for file in files])
    refuse_repeats(tables.items)
    columns_there: set[str] = set()
    for domain, path in tables.items:
        columns_there |= _read_items(engine, domain, path, tables)
    timed: dict[Path, bool] = {}
    ends = []
    prefixes = user_prefixes(files) if tables.own_users else [""] * len(files)
    for file, prefix in zip(files, prefixes, strict=True):
        found, timed[file.path] = _read_events(engine, file, tables, prefix)
        columns_there |= found
        ends.append(engine.value("SELECT coalesce(max(place), 0) FROM raw_events"))
    for ours, theirs in tables.columns.items():
        if theirs.lower() not in columns_there:
            near = difflib.get_close_matches(theirs, sorted(columns_there), n=1, cutoff=0)
            raise ConfigError(
                f"--column {ours}={theirs}: no file has a column '{theirs}'; nearest: '{near[0]}'"
            )
    _settle_order(files, timed)
    _settle_users(engine, files, tables, ends)


def _check_columns(tables: Tables) -> None:
    given = {f"--column {ours}": ours for ours in tables.columns}
    for role, names in tables.headers.items():
        given |= {f"{OPTIONS[role]}, column": name for name in names if name not in NAMES}
    for option, name in given.items():
        if name not in NAMES and name != LEFT_OUT:
            near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0)[0]
            raise ConfigError(f"{option} '{name}' is none of {', '.join(NAMES)}; nearest: '{near}'")
    for role, names in tables.headers.items():
        twice = {name for name in names if name != LEFT_OUT and list(names).count(name) > 1}
        if twice:
            raise ConfigError(f"{OPTIONS[role]} names '{min(twice)}' twice")
        needed = {"interactions": ("user_id", "item_id"), "items": ("item_id",)}[role]
        lacking = [name for name in needed if name not in names]
        if lacking:
            raise ConfigError(f"{OPTIONS[role]} names no '{lacking[0]}' ({', '.join(names)})")


def _read_items(engine: Engine, domain: str | None, path: Path, tables: Tables) -> set[str]:
    """Move a table of items to `raw_items`; its columns, in lower case."""
    found = load(engine, path, "loaded", tables, "items")
    where = {c: _column(path, found, c, tables.columns) for c in ("domain", *ITEM_COLUMNS)}
    item = _needed(path, found, "item_id", tables.columns)
    known = quoted(domain) if domain is not None else where["domain"]
    if known is None:
        raise DataError(
            f"{path}: no column 'domain' (found: {', '.join(found)}); name the domain before "
            "the file, DOMAIN=FILE, or the column by --column domain=NAME"
        )
    texts_of = {"category": category_of, "description": text_of, "image_url": first_of}
    columns = where | {c: make(sql) for c, make in texts_of.items() if (sql := where[c])}
    take_items(engine, "loaded", path, columns | {"item_id": item, "domain": known})
    return {name.lower() for name in found}


def _read_events(
    engine: Engine, file: Interactions, tables: Tables, prefix: str
) -> tuple[set[str], bool]:
    """Move a table of interactions to `raw_events`, `prefix` before the ids of its users; its
    columns, in lower case, and whether it has times."""
    domain, path, split = file
    found = load(engine, path, "loaded", tables, "interactions")
    item = _needed(path, found, "item_id", tables.columns)
    columns: dict[str, str | None] = {
        "user_id": _needed(path, found, "user_id", tables.columns),
        "item_id": item,
        "timestamp": _time_column(path, found, tables),
        **{c: _column(path, found, c, tables.columns) for c in ("rating", "domain", "split")},
    }
    if domain is None and columns["domain"] is None and not tables.items:
        raise DataError(
            f"{path}: no column 'domain' (found: {', '.join(found)}) and no table of items "
            "that tells it; give --items, or DOMAIN=FILE"
        )
    plural = item.strip('"').lower().startswith(PLURAL)
    if listed := expand(engine, path, "loaded", columns, tables.sequences, plural):
        columns = {**listed}
    table, own = "loaded", quoted(domain) if domain is not None else columns.get("domain")
    if own is None:
        own, table = _domains_of_items(engine, path, str(columns["item_id"])), "joined"
    user = str(columns["user_id"])
    if prefix:
        sound = f"{id_fault(user)} IS NULL"  # with something before it every text is an id
        user = f"CASE WHEN {sound} THEN {quoted(prefix)} || {user} ELSE {user} END"
    columns = {**columns, "user_id": user, "domain": own}
    if split:
        columns["split"] = quoted(split)
    take_events(engine, table, path, columns, tables.time_format)
    return {name.lower() for name in found}, columns.get("timestamp") is not None


def _time_column(path: Path, found: list[str], tables: Tables) -> str | None:
    """SQL of the column of times; None where the order of the file is that of the events.

    Raises:
        DataError: there is none, and a column that can be one.
    """
    if tables.order == "file":
        return None
    column = _column(path, found, "timestamp", tables.columns)
    if column or (not tables.order and "timestamp" in tables.columns):
        return column
    known = USUAL | {theirs.lower() for theirs in tables.columns.values()}
    other = [c for c in found if c.lower() not in known and not _is_left_out(c)]
    if other or tables.order == "time":
        raise DataError(
            f"{path}: no column 'timestamp' (found: {', '.join(found)}); name it by --column "
            "timestamp=NAME, or take a user's events in the order of the file: --order file"
        )
    return None


def _is_left_out(name: str) -> bool:
    """Whether a column has a name that we gave it, for want of one."""
    return name.startswith(("column ", "left out "))


def _settle_order(files: Sequence[Interactions], timed: dict[Path, bool]) -> None:
    """Say what the order of the events is where files have no times.

    Raises:
        DataError: some files have times.
    """
    none = [path for path, times in timed.items() if not times]
    if not none:
        return
    if len(none) < len(timed):
        other = next(path for path, times in timed.items() if times)
        raise DataError(
            f"{none[0]}: no times, but {other} has some: nothing tells their order; give times for "
            "all, or take the events in the order of the files: --order file"
        )
    log.info("no times: a user's events keep the order of %s", ", ".join(p.name for p in none))
    parts = defaultdict(set)
    for file in files:
        parts[file.split].add(file.domain)
    if all(len(domains) == 1 for domains in parts.values()):
        return
    log.warning(
        "no times, and a file for each domain: events of a user in both stand one file after the "
        "other, so nothing that is learnt of the order across domains is of the users"
    )


def user_prefixes(files: Sequence[Interactions]) -> list[str]:
    """What goes before the ids of the users of each file: as much of its name as tells it from
    the others, then its domain and folder.

    Raises:
        DataError: not even these differ.
    """
    whole = [re.sub(r"(?i)(\.(gz|zstd?))?$", "", file.path.name) for file in files]
    stems = [Path(name).stem for name in whole]
    candidates = [
        [name.split(".")[0] for name in whole],
        stems,
        whole,
        [f"{file.domain}_{stem}" for file, stem in zip(files, stems, strict=True)],
        [f"{f.path.resolve().parent.name}_{name}" for f, name in zip(files, whole, strict=True)],
    ]
    for names in candidates:
        if len(set(names)) == len(names):
            return [f"{name}_" for name in names]
    raise DataError(
        f"--user_ids own: {files[0].path.name} and others have one name in folders of one name, so "
        "nothing tells their users apart; name the files differently"
    )


def _settle_users(
    engine: Engine, files: Sequence[Interactions], tables: Tables, ends: Sequence[int]
) -> None:
    """Refuse ids of users that may be numbers of the lines of their file, and users of several
    splits of which nothing tells whether they are one.

    Args:
        ends: The last `place` of each file.

    Raises:
        DataError: a number is a user of two files of one domain, or any id of two splits, there
            are no times that would order the two, and `tables` do not say whether it is one user.
    """
    if tables.own_users is not None:
        if tables.own_users:
            _refuse_merged(engine, files, ends)
        return
    of_domain = defaultdict(list)
    for file, first, last in zip(files, [0, *ends], ends, strict=False):
        of_domain[file.domain].append((file, first, last))
    for parts in of_domain.values():
        if len(parts) < 2:
            continue
        spans = ", ".join(
            f"({n}, {file.split is not None}, {first}, {last})"
            for n, (file, first, last) in enumerate(parts)
        )
        count, example = engine.rows(
            "SELECT count(*), min(user) FROM (SELECT user FROM raw_events JOIN "
            f"(VALUES {spans}) AS parts(n, given, first, last) ON place > first AND place <= last "
            "WHERE timestamp IS NULL AND (given OR regexp_full_match(user, '[0-9]+')) "
            "GROUP BY user HAVING count(DISTINCT n) > 1)"
        )[0]
        if count:
            names = ", ".join(file.path.name for file, _, _ in parts)
            raise DataError(
                f"{count:,} users, such as '{example}', are in several of {names}: is it one user? "
                "Say --user_ids shared, or --user_ids own if each file counts its own from the "
                "start"
            )


def _refuse_merged(engine: Engine, files: Sequence[Interactions], ends: Sequence[int]) -> None:
    """Raise a DataError where prefix and id of users of two files are one text."""
    spans = ", ".join(f"({n}, {last})" for n, last in enumerate(ends))
    users = (
        "SELECT user, list_sort(list(DISTINCT n)) AS parts FROM raw_events "
        f"ASOF JOIN (VALUES {spans}) AS parts(n, last) ON place <= last GROUP BY user"
    )
    for user, parts in engine.rows(f"SELECT * FROM ({users}) WHERE len(parts) > 1 LIMIT 1"):
        names = " and ".join(files[n].path.name for n in parts)
        raise DataError(
            f"--user_ids own: '{user}' would be a user of {names}; name the files differently"
        )


def category_of(column: str) -> str:
    """SQL: categories of a list, of texts with | between, or of tokens."""
    return categories_of(
        f"coalesce({list_of(column)}, CASE WHEN contains({column}, '|') "
        f"THEN string_split({column}, '|') ELSE string_split({column}, ' ') END)"
    )


def text_of(column: str) -> str:
    """SQL: a text, or the texts of a list in one."""
    return f"coalesce(array_to_string({list_of(column)}, ' '), {column})"


def first_of(column: str) -> str:
    """SQL: a text, or the first of a list."""
    found = list_of(column)
    return f"CASE WHEN ({found}) IS NULL THEN {column} ELSE ({found})[1] END"


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


def _column(path: Path, found: list[str], ours: str, given: Mapping[str, str]) -> str | None:
    """SQL of one of our columns, as text: of the name that the user gave, in a file without it of
    a usual one that names nothing else; None where the file has none.

    Raises:
        ConfigError: the user named a column, and neither it nor a usual one is there.
    """
    by_lower = {name.lower(): name for name in reversed(found)}
    by_lower |= {name: name for name in found}  # an exact name counts more
    taken = {theirs.lower() for other, theirs in given.items() if other != ours}
    wanted = [alias for alias in NAMES[ours] if alias not in taken]
    if ours in given:
        wanted = [given[ours], given[ours].lower(), *wanted]
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
