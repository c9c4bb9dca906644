"""Numbers of a dataset, by SQL over its atomic files.

Sequences are as the trainer sees them: a user's events by time, ties in the order of the file, and
their targets are those of a rule of `recbole_tema.data.split`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dataset_tools.convert.broken import Broken
from dataset_tools.convert.engine import Engine, identifier
from dataset_tools.convert.sources.recbole import load_atomic
from recbole_tema.data.schema import FEATURE_FILES
from recbole_tema.data.split import GIVEN, PARTS, PHASES, SPLIT_FIELD, Events, Split, SplitRule
from recbole_tema.errors import DataError

QUANTILES = (0, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
LENGTH_EDGES = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000)


@dataclass
class Part:
    """Counts of one domain, or of all.

    Attributes:
        users: With an event here.
        items: Of NAME.item.
        items_used: With an event.
        events: Events.
        density: events / (users * items used).
        only_here: Users whose events are all here; of the whole, users of one domain.
        lengths: Quantiles of a user's number of events here.
        popularity: Quantiles of an item's number of events.
        gini: Of the events over the used items: 0 all alike, 1 all on one.
        top_tenth: Share of the events on the tenth of the items with most.
        first: Time of the first event.
        last: Of the last one.
    """

    users: int
    items: int
    items_used: int
    events: int
    density: float
    only_here: int
    lengths: dict[str, float]
    popularity: dict[str, float]
    gini: float
    top_tenth: float
    first: float
    last: float


@dataclass
class Description:
    """All measures of a dataset; `plain` is what goes into JSON.

    Attributes:
        name: Of the dataset.
        whole: All domains together.
        domains: Each domain.
        overlapping: Users with events in several domains.
        pairs: "A & B" -> users with events in both.
        switches: Of the steps from one event to the user's next, the share that changes domain,
            over users of several domains; 0 if there are none.
        rule: How the events are split, in words.
        split: "train" -> events, "valid" and "test" -> targets, "held" -> other events that are
            held out, which are histories alone; "evaluated" and "unevaluated" users, by the test.
        targets: "valid", "test" -> domain -> targets.
        cold: "valid", "test" -> targets of items without a training event.
        coverage: Field -> share of items (of profiles: users) that have it.
        length_counts: (least length of a bin, users in it).
        popularity_curve: Share of items, most popular first -> share of events, per domain.
        checks: What `checks.findings` found.
        tag_weights: Least, median and most of them, and `shares`, the share of the items with tags
            whose weights sum to 1; empty where there are none.
    """

    name: str
    whole: Part
    domains: dict[str, Part]
    overlapping: int
    pairs: dict[str, int]
    switches: float
    rule: str
    split: dict[str, int]
    targets: dict[str, dict[str, int]]
    cold: dict[str, int]
    coverage: dict[str, float]
    length_counts: dict[str, list[tuple[int, int]]]
    popularity_curve: dict[str, list[tuple[float, float]]]
    checks: list[dict[str, Any]] = field(default_factory=list)
    tag_weights: dict[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Everything as dicts, lists, texts and numbers."""
        return asdict(self)


def load(engine: Engine, folder: Path, name: str, rule: SplitRule | None = None) -> Split:
    """Make the tables of the files: `it`, as NAME.item, and `ev`, the events (user, item, domain,
    t, row, part: train, valid, test or, of events that are histories alone, held).

    Args:
        rule: Of the split; None for leave-one-out on each user's events.

    Raises:
        DataError: a file or column is missing, a line is broken, or the rule does not fit.
    """
    engine.broken = Broken(strict=True)
    for suffix, table, needed in (
        ("item", "it", ("item_id", "domain")),
        ("inter", "raw", ("user_id", "item_id", "timestamp")),
    ):
        path = folder / f"{name}.{suffix}"
        load_atomic(engine, path, table, needed)
    marked = SPLIT_FIELD in [row[0] for row in engine.rows("DESCRIBE raw")]
    engine.do(
        "CREATE TABLE one AS SELECT item_id, first(domain ORDER BY _number) AS domain FROM it "
        "GROUP BY item_id;"
        "CREATE TABLE sorted AS SELECT raw.user_id AS user, raw.item_id AS item, domain, "
        "try_cast(timestamp AS DOUBLE) AS t, raw._number AS row, "
        f"{identifier(SPLIT_FIELD) if marked else 'NULL::VARCHAR'} AS mark, row_number() OVER "
        "(ORDER BY raw.user_id, try_cast(timestamp AS DOUBLE), raw._number) - 1 AS place "
        "FROM raw LEFT JOIN one ON one.item_id = raw.item_id ORDER BY place"
    )
    engine.drop("raw")
    split = _split_of(engine, rule or SplitRule(), marked)
    names = np.array([*PARTS, "held"], dtype=object)
    kinds = names[np.where((split.part > 0) & ~split.target, len(PARTS), split.part)]
    engine.sql.register("kinds", pd.DataFrame({"place": np.arange(len(kinds)), "part": kinds}))
    engine.do(
        "CREATE TABLE ev AS SELECT sorted.* EXCLUDE (mark), part FROM sorted JOIN kinds "
        "USING (place); DROP TABLE sorted"
    )
    engine.sql.unregister("kinds")
    return split


def _split_of(engine: Engine, rule: SplitRule, marked: bool) -> Split:
    """The split of the table `sorted`."""
    found = engine.run(
        "SELECT dense_rank() OVER (ORDER BY user) - 1 AS user, dense_rank() OVER (ORDER BY item) "
        "- 1 AS item, coalesce(domain, '') AS domain, t, mark FROM sorted ORDER BY place"
    ).fetchnumpy()
    users, items = (np.asarray(found[name], dtype=np.int64) for name in ("user", "item"))
    domains, names = pd.factorize(np.asarray(found["domain"], dtype=object), sort=True)
    item_domain = np.zeros(int(items.max(initial=-1)) + 1, dtype=np.int64)
    nameless = int("" in names)  # of items without a row: the checks tell of them
    item_domain[items] = domains + 1 - nameless
    marks = None
    if marked:
        numbers = {part: number for number, part in enumerate(PARTS)}
        marks = np.array([numbers.get(mark, -1) for mark in found["mark"]], dtype=np.int64)
        if rule.kind == GIVEN and (marks < 0).any():
            wrong = found["mark"][int(np.argmin(marks))]
            raise DataError(f"{SPLIT_FIELD} is '{wrong}'; an event is marked {', '.join(PARTS)}")
    n_users = int(users.max(initial=-1)) + 1
    events = Events(
        items,
        np.searchsorted(users, np.arange(n_users + 1)),
        item_domain,
        list(names[nameless:]),
        np.ma.filled(np.ma.asarray(found["t"], dtype=np.float64), np.nan),
        marks,
        lambda user: engine.value(
            f"SELECT user FROM (SELECT DISTINCT user FROM sorted) "
            f"ORDER BY user LIMIT 1 OFFSET {user}"
        ),
    )
    split = Split(rule, events)
    split.check()
    return split


def describe(engine: Engine, folder: Path, name: str, rule: SplitRule | None = None) -> Description:
    """All measures, without the checks.

    Args:
        rule: Of the split; None for leave-one-out on each user's events.

    Raises:
        DataError: a file or column is missing, or a line is broken.
    """
    parts = load(engine, folder, name, rule)
    names = [d for (d,) in engine.rows("SELECT DISTINCT domain FROM it ORDER BY domain")]
    names = [d for d in names if d is not None]
    several = "SELECT user FROM ev GROUP BY user HAVING count(DISTINCT domain) > 1"
    switches = engine.value(
        "SELECT avg((domain != before)::INT) FROM (SELECT domain, lag(domain) OVER "
        f"(PARTITION BY user ORDER BY t, row) AS before FROM ev WHERE user IN ({several})) "
        "WHERE before IS NOT NULL"
    )
    split, targets = _split(engine, names)
    return Description(
        name,
        _part(engine, None),
        {domain: _part(engine, domain) for domain in names},
        engine.value(f"SELECT count(*) FROM ({several})"),
        _pairs(engine),
        float(switches or 0),
        parts.rule.words,
        split,
        targets,
        {phase: parts.cold(phase) for phase in PHASES},
        coverage(engine, folder, name),
        {d: _length_counts(engine, d) for d in [None, *names] if d} | {"": _length_counts(engine)},
        {domain: _curve(engine, domain) for domain in names},
        tag_weights=_tag_weights(engine),
    )


def _tag_weights(engine: Engine) -> dict[str, float]:
    """See `Description.tag_weights`."""
    if "tag_weights" not in [row[0] for row in engine.rows("DESCRIBE it")]:
        return {}
    least, median, most, shares = engine.rows(
        "WITH flat AS (SELECT _number, try_cast(part AS DOUBLE) AS w FROM (SELECT _number, "
        "unnest(string_split(tag_weights, ' ')) AS part FROM it) WHERE w IS NOT NULL) "
        "SELECT min(w), median(w), max(w), (SELECT avg((abs(total - 1) < 0.001)::INT) FROM "
        "(SELECT sum(w) AS total FROM flat GROUP BY _number)) FROM flat"
    )[0]
    if shares is None:
        return {}
    return {"least": least, "median": median, "most": most, "shares": shares}


def _where(domain: str | None) -> str:
    return "true" if domain is None else "domain = '" + domain.replace("'", "''") + "'"


def _part(engine: Engine, domain: str | None) -> Part:
    where = _where(domain)
    users, used, events, first, last = engine.rows(
        "SELECT count(DISTINCT user), count(DISTINCT item), count(*), min(t), max(t) FROM ev "
        f"WHERE {where}"
    )[0]
    items = engine.value(f"SELECT count(DISTINCT item_id) FROM it WHERE {where}")
    only = engine.value(
        "SELECT count(*) FROM (SELECT user FROM ev GROUP BY user HAVING "
        f"count(DISTINCT domain) = 1 AND bool_and({where}))"
    )
    by_user = f"SELECT count(*) AS n FROM ev WHERE {where} GROUP BY user"
    by_item = f"SELECT count(*) AS n FROM ev WHERE {where} GROUP BY item"
    gini, top = engine.rows(
        "SELECT 2 * sum(i * n) / (max(i) * sum(n)) - (max(i) + 1) / max(i), "
        "sum(n) FILTER (WHERE max_i - i < ceil(max_i / 10)) / sum(n) FROM "
        "(SELECT n, row_number() OVER (ORDER BY n) AS i, count(*) OVER () AS max_i "
        f"FROM ({by_item}))"
    )[0]
    return Part(
        users,
        items,
        used,
        events,
        events / (users * used) if users and used else 0.0,
        only,
        _quantiles(engine, by_user),
        _quantiles(engine, by_item),
        max(0.0, float(gini or 0)),
        float(top or 0),
        first,
        last,
    )


def _quantiles(engine: Engine, counts: str) -> dict[str, float]:
    row = engine.rows(f"SELECT quantile_disc(n, {list(QUANTILES)}), avg(n) FROM ({counts})")[0]
    values = row[0] or [0] * len(QUANTILES)
    named = {f"{q:g}": float(v) for q, v in zip(QUANTILES, values, strict=True)}
    return named | {"mean": float(row[1] or 0)}


def _pairs(engine: Engine) -> dict[str, int]:
    rows = engine.rows(
        "SELECT a.domain, b.domain, count(*) FROM (SELECT DISTINCT user, domain FROM ev) a JOIN "
        "(SELECT DISTINCT user, domain FROM ev) b ON a.user = b.user AND a.domain < b.domain "
        "GROUP BY ALL ORDER BY ALL"
    )
    return {f"{a} & {b}": n for a, b, n in rows}


def _split(engine: Engine, domains: Sequence[str]) -> tuple[dict, dict]:
    rows = engine.rows(
        "SELECT part, domain, count(*) FROM ev WHERE part IN ('valid', 'test') GROUP BY ALL"
    )
    targets = {part: dict.fromkeys(domains, 0) for part in ("valid", "test")}
    for part, domain, count in rows:
        if domain is not None:
            targets[part][domain] = count
    split = dict.fromkeys((*PARTS, "held"), 0)
    split |= dict(engine.rows("SELECT part, count(*) FROM ev GROUP BY part"))
    evaluated = engine.value("SELECT count(DISTINCT user) FROM ev WHERE part = 'test'")
    users = engine.value("SELECT count(DISTINCT user) FROM ev")
    return split | {"evaluated": evaluated, "unevaluated": users - evaluated}, targets


def coverage(engine: Engine, folder: Path, name: str) -> dict[str, float]:
    """Field -> share of the items, or users, that have a value or a row of it."""
    items = engine.value("SELECT count(DISTINCT item_id) FROM it") or 1  # not of rows
    users = engine.value("SELECT count(DISTINCT user) FROM ev") or 1
    found = {}
    columns = [row[0] for row in engine.rows("DESCRIBE it")]
    for column in columns:
        if column not in ("_number", "_good", "item_id", "domain"):
            full = engine.value(
                f"SELECT count(DISTINCT item_id) FROM it WHERE {identifier(column)} != ''"
            )
            found[column] = full / items
    for suffix, (_, value, owner) in FEATURE_FILES.items():
        path = folder / f"{name}.{suffix}"
        if path.is_file() and owner != "tag_id":
            with open(path, "rb") as file:
                rows = sum(bool(line.strip()) for line in file)
            found[value] = max(0, rows - 1) / (users if owner == "user_id" else items)
    return found


def _length_counts(engine: Engine, domain: str | None = None) -> list[tuple[int, int]]:
    edges = list(LENGTH_EDGES)
    rows = dict(
        engine.rows(
            f"SELECT (SELECT max(e) FROM unnest({edges}) AS x(e) WHERE e <= c.n) AS edge, count(*) "
            f"FROM (SELECT count(*) AS n FROM ev WHERE {_where(domain)} GROUP BY user) c GROUP BY 1"
        )
    )
    last = max(rows, default=0)
    return [(edge, rows.get(edge, 0)) for edge in edges if edge <= last]


def _curve(engine: Engine, domain: str) -> list[tuple[float, float]]:
    rows = engine.rows(
        "SELECT ceil(100 * i / max_i) / 100 AS share, max(cumulated / total) FROM (SELECT i, "
        "max_i, sum(n) OVER (ORDER BY i) AS cumulated, sum(n) OVER () AS total FROM (SELECT n, "
        "row_number() OVER (ORDER BY n DESC) AS i, count(*) OVER () AS max_i FROM "
        f"(SELECT count(*) AS n FROM ev WHERE {_where(domain)} GROUP BY item))) "
        "GROUP BY 1 ORDER BY 1"
    )
    return [(0.0, 0.0), *((float(x), float(y)) for x, y in rows)]
