"""Filters of events, in SQL: rating, time, duplicates, users, samples, cores.

They run in the order of `Filters`' fields, whatever the order of the options. The cores, the least
number of domains among them, are repeated until nothing changes (the fixpoint), for a dropped
event can make another user or item too rare.

Table `events`: u, i, d (numbers of user, item and domain), t (seconds), r (rating or NULL),
s (number of the split or NULL), place.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from dataset_tools.convert.engine import Engine, quoted
from dataset_tools.options import option
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)


MOST_DOMAINS = 255


@dataclass(frozen=True)
class Filters:
    """What to keep; a field at its default filters nothing."""

    # Events without a rating go too.
    min_rating: float | None = option(None, "Only events of this rating or more.")
    after: float | None = option(None, "Only events at this time or later (UTC).")  # seconds
    before: float | None = option(None, "Only events earlier than this time (UTC).")
    dedupe: float | None = option(  # seconds
        None, "Of a user's events with one item, drop those so soon after the one before."
    )
    single_domain: str | int = option(
        "keep", "Users of one domain: keep, drop, or at most so many of each domain."
    )
    # Their largest is the domain with most of their events, on a tie the first by name;
    # `single_domain` no longer regards these users.
    overlap_ratio: float = option(
        1.0,
        "Share of the users of several domains that keep them all; others keep their largest.",
        least=0,
        most=1,
    )
    max_users: int | None = option(None, "At most so many users, by a sample.", least=1)
    user_core: int = option(
        1, "Least events of a user, to the fixpoint with the other cores.", least=1
    )
    domain_core: int = option(1, "Least events of a user in a domain.", least=1)
    item_core: int = option(1, "Least events of an item.", least=1)
    seed: int = option(2020, "Of the samples.")  # a user's place depends on its id alone

    def of_times(self) -> list[str]:
        """Names of the filters that need times."""
        gap = self.dedupe or 0
        asked = {"after": self.after is not None, "before": self.before is not None}
        asked["dedupe"] = 0 < gap < math.inf
        return [name for name, chosen in asked.items() if chosen]

    def stated(self) -> dict:
        """The fields that filter something, for the card."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "seed"}
        default = {f.name: f.default for f in fields(self)}
        chosen = {name: value for name, value in found.items() if value != default[name]}
        sampled = {"single_domain", "overlap_ratio", "max_users"} & set(chosen)
        return chosen | ({"seed": self.seed} if sampled else {})


@dataclass(frozen=True)
class Step:
    """What a filter left.

    Attributes:
        name: Of the filter.
        users: Users left.
        events: Events left of each domain.
        items: Items left of each domain.
    """

    name: str
    users: int
    events: dict[str, int]
    items: dict[str, int]


def encode(engine: Engine) -> list[str]:
    """Make `events` of `raw_events`, and `users`, `items`, `domains` (number, name); the domains.

    Numbers follow the names, so that they are the same whatever the order of the input. Items are
    those with an event (`used`), and the others of `raw_items`, if any item of their domain there
    has one: else ids or domains differ, and nobody knows what belongs together.

    Raises:
        DataError: there are too many domains, or no item of `raw_items` has an event.
    """
    found = engine.rows("SELECT DISTINCT domain FROM raw_events ORDER BY domain LIMIT 256")
    if len(found) > MOST_DOMAINS:
        some = ", ".join(repr(name) for (name,) in found[:3])
        raise DataError(
            f"more than {MOST_DOMAINS} domains ({some}, ...): is the column of the domain another?"
        )
    engine.do(
        "CREATE TABLE domains AS SELECT row_number() OVER (ORDER BY domain) - 1 AS d, domain "
        "FROM (SELECT DISTINCT domain FROM raw_events);"
        "CREATE TABLE users AS SELECT row_number() OVER (ORDER BY user) - 1 AS u, user "
        "FROM (SELECT DISTINCT user FROM raw_events);"
        "CREATE TABLE had AS SELECT DISTINCT item, domain FROM raw_events"
    )
    _tell_unmatched(engine)
    engine.do(
        "CREATE TABLE items AS SELECT row_number() OVER (ORDER BY domain, item) - 1 AS i, item, "
        "domain, bool_or(used) AS used FROM (SELECT item, domain, true AS used FROM had UNION ALL "
        "SELECT DISTINCT item, domain, false FROM raw_items WHERE domain IN "
        "(SELECT domain FROM raw_items SEMI JOIN had USING (item, domain))) GROUP BY item, domain;"
        "CREATE TABLE events AS SELECT u::INTEGER AS u, i::INTEGER AS i, d::UTINYINT AS d, "
        "timestamp AS t, rating::DOUBLE AS r, split AS s, place FROM raw_events "
        "JOIN users USING (user) JOIN items USING (item, domain) JOIN domains USING (domain);"
        "DROP TABLE raw_events; DROP TABLE had"
    )
    return [name for (name,) in engine.rows("SELECT domain FROM domains ORDER BY d")]


def _tell_unmatched(engine: Engine) -> None:
    """Say so where no item of a domain has an event: names or domains may differ.

    Raises:
        DataError: so it is in all domains.
    """
    rows = engine.rows(
        "SELECT domain, count(*), count(h.item) FROM raw_items LEFT JOIN had h "
        "USING (item, domain) GROUP BY domain ORDER BY domain"
    )
    idle = [(domain, total) for domain, total, known in rows if not known]
    if not idle:
        return
    found = ", ".join(name for (name,) in engine.rows("SELECT domain FROM domains ORDER BY d"))
    text = ", ".join(f"none of the {total:,} items of '{domain}'" for domain, total in idle)
    text += f" has an event (domains of events: {found}); ids or domains differ between the tables"
    if len(idle) == len(rows):
        raise DataError(text)
    log.warning("%s; these items are left out", text)


def apply(engine: Engine, filters: Filters) -> list[Step]:
    """Filter `events` in place; what each filter left, beginning with what was read.

    Raises:
        DataError: a filter left a domain without events; it is named.
    """
    domains = [name for (name,) in engine.rows("SELECT domain FROM domains ORDER BY d")]
    steps = [_count(engine, "read", domains)]
    for name, condition in _conditions(engine, filters):
        before = steps[-1].events
        for text in condition:
            _keep(engine, text)
        steps.append(_count(engine, name, domains))
        _refuse_empty(steps, before)
        log.info("%s: %s", name, _told(steps[-1]))
    return steps


def _conditions(engine: Engine, filters: Filters) -> Iterator[tuple[str, Iterable[str]]]:
    """(name, conditions that events must fulfil) of each filter, made when its turn comes."""
    if filters.min_rating is not None:
        yield f"min_rating {filters.min_rating:g}", [f"r >= {float(filters.min_rating)!r}"]
    if filters.after is not None or filters.before is not None:
        bounds = [(">=", filters.after), ("<", filters.before)]
        parts = [f"t {sign} {float(bound)!r}" for sign, bound in bounds if bound is not None]
        yield "time window", [" AND ".join(parts)]
    if filters.dedupe is not None:
        gap = "'infinity'::DOUBLE" if math.isinf(filters.dedupe) else repr(float(filters.dedupe))
        engine.do(
            "CREATE OR REPLACE TABLE repeats AS SELECT place FROM (SELECT place, t - lag(t) OVER "
            f"(PARTITION BY u, i ORDER BY t, place) AS gap FROM events) WHERE gap <= {gap}"
        )
        yield f"dedupe {filters.dedupe:g}", ["place NOT IN (SELECT place FROM repeats)"]
    if filters.single_domain != "keep":
        yield f"single_domain {filters.single_domain}", [_single_domain(engine, filters)]
    if filters.overlap_ratio < 1:
        yield f"overlap_ratio {filters.overlap_ratio:g}", [_overlap(engine, filters)]
    if filters.max_users is not None:
        chosen = _hashed(filters, "SELECT DISTINCT u FROM events")
        engine.do(
            f"CREATE OR REPLACE TABLE chosen AS SELECT u FROM ({chosen}) ORDER BY hash, u "
            f"LIMIT {filters.max_users}"
        )
        yield f"max_users {filters.max_users}", ["u IN (SELECT u FROM chosen)"]
    by = {"user_core": "u", "domain_core": "u, d", "item_core": "i"}
    cores = [(least, by[name], name) for name in by if (least := getattr(filters, name)) > 1]
    if cores:
        told = ", ".join(f"{name} {least}" for least, _, name in cores)
        yield told, _fixpoint(engine, cores, filters)


def _fixpoint(engine: Engine, cores: list, filters: Filters) -> Iterator[str]:
    """Conditions that are repeated until they all hold of all events."""
    left = -1
    while (now := engine.value("SELECT count(*) FROM events")) != left:
        left = now
        for least, by, _ in cores:
            yield (
                f"({by}) IN (SELECT ({by}) FROM (SELECT {by} FROM events GROUP BY {by} "
                f"HAVING count(*) >= {least}))"
            )
        if filters.single_domain == "drop":
            thinned = " OR u IN (SELECT u FROM thinned)"
            yield f"(u IN ({SEVERAL}){thinned if filters.overlap_ratio < 1 else ''})"


SEVERAL = "SELECT u FROM events GROUP BY u HAVING min(d) < max(d)"


def _hashed(filters: Filters, users: str) -> str:
    """SQL: u and its hash under the seed; by the id's text, so that no number matters."""
    return (
        f"SELECT u, md5({quoted(f'{filters.seed}:')} || user) AS hash FROM users "
        f"WHERE u IN ({users})"
    )


def _single_domain(engine: Engine, filters: Filters) -> str:
    if filters.single_domain == "drop":
        return f"u IN ({SEVERAL})"
    single = "SELECT u FROM events GROUP BY u HAVING min(d) = max(d)"
    engine.do(
        "CREATE OR REPLACE TABLE chosen AS SELECT u FROM "
        f"({_hashed(filters, single)}) JOIN (SELECT u, min(d) AS d FROM events GROUP BY u) "
        "USING (u) QUALIFY row_number() OVER (PARTITION BY d ORDER BY hash, u) "
        f"<= {int(filters.single_domain)}"
    )
    return f"(u IN ({SEVERAL}) OR u IN (SELECT u FROM chosen))"


def _overlap(engine: Engine, filters: Filters) -> str:
    n = engine.value(f"SELECT count(*) FROM ({SEVERAL})")
    engine.do(
        f"CREATE OR REPLACE TABLE thinned AS SELECT u FROM ({_hashed(filters, SEVERAL)}) "
        f"ORDER BY hash, u OFFSET {round(filters.overlap_ratio * n)};"
        "CREATE OR REPLACE TABLE chosen AS SELECT u, d FROM (SELECT u, d, count(*) AS n "
        "FROM events WHERE u IN (SELECT u FROM thinned) GROUP BY u, d) "
        "QUALIFY row_number() OVER (PARTITION BY u ORDER BY n DESC, d) = 1"
    )
    return "(u NOT IN (SELECT u FROM thinned) OR (u, d) IN (SELECT (u, d) FROM chosen))"


def _keep(engine: Engine, condition: str) -> None:
    engine.do(
        f"CREATE OR REPLACE TABLE kept AS SELECT * FROM events WHERE {condition};"
        "DROP TABLE events; ALTER TABLE kept RENAME TO events"
    )


def _count(engine: Engine, name: str, domains: list[str]) -> Step:
    counts = {
        d: (events, items)
        for d, events, items in engine.rows(
            "SELECT d, count(*), count(DISTINCT i) FROM events GROUP BY d"
        )
    }
    users = engine.value("SELECT count(DISTINCT u) FROM events")
    events = {domain: counts.get(d, (0, 0))[0] for d, domain in enumerate(domains)}
    items = {domain: counts.get(d, (0, 0))[1] for d, domain in enumerate(domains)}
    return Step(name, users, events, items)


def _refuse_empty(steps: list[Step], before: dict[str, int]) -> None:
    step = steps[-1]
    empty = [domain for domain, count in step.events.items() if not count and before[domain]]
    if empty:
        raise DataError(
            f"the filter '{step.name}' leaves no event of {', '.join(empty)}, which had "
            f"{', '.join(f'{before[domain]:,}' for domain in empty)} before it; loosen it"
        )


def _told(step: Step) -> str:
    parts = [f"{count:,} {domain}" for domain, count in step.events.items()]
    return f"{step.users:,} users; events: {', '.join(parts)}"
