"""Groups of targets to report beside the domains: by history, popularity, and both together.

Every target is in exactly one bucket of each grouping.

- ``overlap=yes|no``: the history has events in two or more domains, or not.
- ``popularity=low|middle|high``: thirds of the targets by the training events of the target.
- ``length=1-5|6-10|11-20|21-50|51+``: events before the target.
- ``cold=yes|no``: the target item has no training event, or has some.
- ``repeat=yes|no``: the user had the target item before, or not.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from logging import getLogger

import numpy as np

from recbole_tema.errors import ConfigError
from recbole_tema.evaluation.plan import EvalPlan

BUCKETS = {
    "overlap": ("yes", "no"),
    "popularity": ("low", "middle", "high"),
    "length": ("1-5", "6-10", "11-20", "21-50", "51+"),
    "cold": ("yes", "no"),
    "repeat": ("yes", "no"),
}
LENGTH_BOUNDS = (5, 10, 20, 50)  # the longest history of each bucket but the last


def target_groups(
    plan: EvalPlan, names: str | Iterable[str] | None, train_popularity: np.ndarray
) -> OrderedDict:
    """Buckets of the plan's targets.

    Args:
        names: groupings wanted, of BUCKETS (``eval_groups``).
        train_popularity: ``(n_items,)`` training events of each item.

    Returns:
        ``<grouping>=<bucket>`` -> ``(n,)`` bool, buckets without targets left out.

    Raises:
        ConfigError: a name is not a grouping.
    """
    names = [names] if isinstance(names, str) else list(names or [])
    for name in names:
        if name not in BUCKETS:
            raise ConfigError(f"eval_groups: {name!r} is none of {', '.join(BUCKETS)}")
    popularity = None
    if not {"popularity", "cold"}.isdisjoint(names):
        popularity = np.asarray(train_popularity)[plan.targets]
    masks = group_masks(
        overlap=spans_domains(plan) if "overlap" in names else None,
        popularity=popularity,
        length=plan.history_lengths if "length" in names else None,
        repeat=plan.repeated() if "repeat" in names else None,
    )
    empty = [f"{name}={b}" for name in names for b in BUCKETS[name] if b not in masks[name]]
    if empty:
        getLogger().info(f"{plan.phase}: no target in {', '.join(empty)}, no metrics for it")
    return OrderedDict(
        (f"{name}={bucket}", mask) for name in names for bucket, mask in masks[name].items()
    )


def group_masks(
    overlap: np.ndarray | None = None,
    popularity: np.ndarray | None = None,
    length: np.ndarray | None = None,
    repeat: np.ndarray | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Grouping -> bucket -> ``(n,)`` bool of what is given, buckets without targets left out.

    Args:
        overlap: ``(n,)`` bool, the history lies in several domains. popularity: ``(n,)`` training
            events of each target item. length: ``(n,)`` events before each target. repeat:
            ``(n,)`` bool, the user had the target before.
    """
    codes = {}
    if overlap is not None:
        codes["overlap"] = np.where(overlap, 0, 1)
    if popularity is not None:
        codes["popularity"] = popularity_thirds(popularity)
        codes["cold"] = np.where(popularity == 0, 0, 1)
    if length is not None:
        codes["length"] = np.searchsorted(LENGTH_BOUNDS, length)
    if repeat is not None:
        codes["repeat"] = np.where(repeat, 0, 1)
    return {
        name: {b: found == i for i, b in enumerate(BUCKETS[name]) if (found == i).any()}
        for name, found in codes.items()
    }


def popularity_thirds(popularity: np.ndarray) -> np.ndarray:
    """``(n,)`` 0, 1 or 2: the least, middle and most popular third of the targets.

    Targets of equal popularity stay together: the bucket is that of the middle of their block in
    the sorted targets. With many ties the thirds are therefore of unequal size.

    Args:
        popularity: ``(n,)`` training events of each target item.
    """
    _, block, counts = np.unique(popularity, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    return np.minimum((3 * middle / max(len(popularity), 1)).astype(np.int64), 2)[block]


def popularity_notes(popularity: np.ndarray, buckets: Mapping[str, np.ndarray]) -> list[str]:
    """What buckets by popularity hold, a line each: their targets and the bounds.

    Args:
        popularity: ``(n,)`` training events of each target item. buckets: name -> ``(n,)`` bool,
            none of them empty.

    >>> popularity_notes(np.array([4, 0, 9]), {"low": np.array([True, True, False])})
    ['low: 2 targets of 0 to 4 training events']
    """
    lines = []
    for name, mask in buckets.items():
        low, high = int(popularity[mask].min()), int(popularity[mask].max())
        events = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        count = f"{int(mask.sum()):,} target{'' if mask.sum() == 1 else 's'}"
        lines.append(f"{name}: {count} of {events} training event{'' if high == 1 else 's'}")
    return lines


def spans_domains(plan: EvalPlan) -> np.ndarray:
    """``(n,)`` bool: the events before the target lie in two or more domains."""
    rows, items = plan.history_events()
    n_domains = len(plan.domain_names)
    key = rows * n_domains + plan.item_domain[items] - 1
    counts = np.bincount(key, minlength=len(plan) * n_domains).reshape(len(plan), n_domains)
    return (counts > 0).sum(axis=1) >= 2
