"""Once all files are read: every event has a time and, where a split is given, one split."""

import logging

from dataset_tools.convert.engine import Engine
from dataset_tools.convert.intake import SPLITS
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)


def settle_times(engine: Engine) -> bool:
    """Give events without times their positions in the user's sequence, as they were read; whether
    that was done.

    Raises:
        DataError: some have times and some have none.
    """
    none, total = engine.rows(
        "SELECT count(*) FILTER (timestamp IS NULL), count(*) FROM raw_events"
    )[0]
    if not none:
        return False
    if none < total:
        raise DataError(
            f"{none:,} of {total:,} events are of files without times: nothing tells their order "
            "among the others; give times for all, or use the order of the files: --order file"
        )
    engine.do(
        "CREATE TABLE ordered AS SELECT * REPLACE ((row_number() OVER "
        "(PARTITION BY user ORDER BY place) - 1)::DOUBLE AS timestamp) FROM raw_events;"
        "DROP TABLE raw_events; ALTER TABLE ordered RENAME TO raw_events"
    )
    return True


def settle_splits(engine: Engine) -> int:
    """Have each event in one split, the earliest that names it; how many others were left out.

    An event is of one user, item, domain and time. Splits without times that repeat the events of
    the earlier ones, `a b`, `a b c`, are known by each list beginning with the one before it.
    Call it before `settle_times`.

    Raises:
        DataError: some events have a split and some have none.
    """
    none, total = engine.rows("SELECT count(*) FILTER (split IS NULL), count(*) FROM raw_events")[0]
    if none == total:
        return 0
    if none:
        raise DataError(
            f"{none:,} of {total:,} events are of no split, the others of {', '.join(SPLITS)}; "
            "give a split for all, or for none"
        )
    key = "user, item, domain, timestamp"
    if engine.value("SELECT count(timestamp) FROM raw_events") == 0:
        if not _repeated_lists(engine):
            return 0
        key = "user, item, domain, seat"
    engine.do(
        "CREATE TABLE settled AS SELECT * EXCLUDE (nth, seat) FROM (SELECT *, row_number() OVER "
        f"(PARTITION BY {key}, split ORDER BY place) AS nth FROM (SELECT *, row_number() OVER "
        "(PARTITION BY user, split ORDER BY place) AS seat FROM raw_events)) "
        # Two events of one user, item and time in one split stay two.
        f"QUALIFY row_number() OVER (PARTITION BY {key}, nth ORDER BY split, place) = 1;"
        "DROP TABLE raw_events; ALTER TABLE settled RENAME TO raw_events"
    )
    left = total - engine.value("SELECT count(*) FROM raw_events")
    if left:
        log.warning(
            "%s events stand in several of %s: each counts in the earliest alone",
            *(f"{left:,}", ", ".join(SPLITS)),
        )
    return left


def _repeated_lists(engine: Engine) -> bool:
    """Whether the lists of all users of several splits begin with those of the split before."""
    several, repeated = engine.rows(
        "SELECT count(*), count(*) FILTER (items[:len(former)] = former) FROM (SELECT items, "
        "lag(items) OVER (PARTITION BY user ORDER BY split) AS former FROM (SELECT user, split, "
        "list((item, domain) ORDER BY place) AS items FROM raw_events GROUP BY user, split)) "
        "WHERE former IS NOT NULL"
    )[0]
    if 0 < repeated < several:
        log.warning(
            "%s of %s lists of users in several splits begin with that of the split before, the "
            "others do not: all are taken one after another, so these events count again",
            *(f"{repeated:,}", f"{several:,}"),
        )
    return 0 < repeated == several
