"""What is wrong or odd in a dataset, each finding with a number and an example."""

from typing import Any

from dataset_tools.convert.engine import Engine
from recbole_tema.data.split import SplitRule

LOOKS_LIKE_SECONDS = 3e8  # times below, of 1979, are numbers of an order and no moments
ERROR, WARNING, NOTE = "error", "warning", "note"


CHECKS = (  # level, what is found, the query of examples of it
    (
        ERROR,
        "items that stand more than once in the item table",
        "SELECT item_id AS example FROM it GROUP BY item_id HAVING count(*) > 1",
    ),
    (
        ERROR,
        "rows of the item table without an id",
        "SELECT 'row ' || _number AS example FROM it WHERE coalesce(item_id, '') = ''",
    ),
    (
        ERROR,
        "events without a user or an item",
        "SELECT 'row ' || row AS example FROM ev WHERE coalesce(user, '') = '' "
        "OR coalesce(item, '') = ''",
    ),
    (
        ERROR,
        "items without a domain",
        "SELECT item_id AS example FROM it WHERE domain IS NULL OR domain = ''",
    ),
    (
        ERROR,
        "events of items that are not in the item table",
        "SELECT item AS example FROM ev WHERE NOT EXISTS "
        "(SELECT 1 FROM one WHERE one.item_id = ev.item)",
    ),
    (
        ERROR,
        "events without a time",
        "SELECT 'row ' || row AS example FROM ev WHERE t IS NULL OR NOT isfinite(t)",
    ),
    (
        WARNING,
        "events that stand twice: one user, item and time",
        "SELECT user || ', ' || item AS example FROM ev GROUP BY user, item, t HAVING count(*) > 1",
    ),
    (
        WARNING,
        "users whose events do not stand in the order of time in the file",
        "SELECT DISTINCT user AS example FROM (SELECT user, t, lag(t) OVER "
        "(PARTITION BY user ORDER BY row) AS before FROM ev) WHERE t < before",
    ),
    (
        WARNING,
        "users whose validation and test target have one time, so that the file's order "
        "decides which is which",
        # By rules of time, or as given, the order of the file does not part them.
        "SELECT DISTINCT a.user AS example FROM ev a JOIN ev b ON a.user = b.user AND a.t = b.t "
        "WHERE a.part = 'valid' AND b.part = 'test' "
        "AND ({0} = 'merged' OR {0} = 'per_domain' AND a.domain = b.domain)",
    ),
    (
        NOTE,
        "test targets that the user had before, in training or validation",
        "SELECT a.user || ', ' || a.item AS example FROM ev a WHERE a.part = 'test' "
        "AND EXISTS (SELECT 1 FROM ev b WHERE b.user = a.user AND b.item = a.item "
        "AND b.place < a.place)",
    ),
    (
        NOTE,
        "test targets of items without any training event",
        "SELECT item AS example FROM ev a WHERE part = 'test' AND NOT EXISTS "
        "(SELECT 1 FROM ev b WHERE b.part = 'train' AND b.item = a.item)",
    ),
    (
        NOTE,
        "training events later than half of the test targets: the split is of each user, not of "
        "time, so models see what was popular later",
        "SELECT 'row ' || row AS example FROM ev WHERE part = 'train' AND t > "
        "(SELECT median(t) FROM ev WHERE part = 'test') "
        f"AND (SELECT min(t) FROM ev) > {LOOKS_LIKE_SECONDS}",
    ),
    (
        NOTE,
        "items without an event",
        "SELECT item_id AS example FROM one WHERE NOT EXISTS "
        "(SELECT 1 FROM ev WHERE ev.item = one.item_id)",
    ),
)


def findings(engine: Engine, rule: SplitRule) -> list[dict[str, Any]]:
    """The findings on the tables of `measures.load`, split by this rule, the worst first.

    Each has a level (error: results would be wrong; warning: look at it; note: good to know),
    what was found, how often, and an example.
    """
    found = []
    for level, what, query in CHECKS:
        query = query.replace("{0}", f"'{rule.kind}'")
        count, example = engine.rows(f"SELECT count(*), min(example) FROM ({query})")[0]
        if count:
            found.append({"level": level, "what": what, "count": count, "example": str(example)})
    return found
