"""Which items a target is ranked against: the pool of its domain, and negatives drawn from it."""

import re
from dataclasses import dataclass

import numpy as np

from recbole_tema.errors import ConfigError

CANDIDATES = ("in_domain", "all")
# Rows drawn at a time. The draw depends on it, so it is a constant and not a setting.
CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Pools:
    """Disjoint sets of items: one pool per domain, or a single one of all items.

    Attributes:
        items: ``(n_items,)`` item ids, pool after pool, ascending inside a pool. Pool 0 is the
            padding item; pools 1 to D are candidates.
        start: ``(D + 2,)``; pool ``p`` owns ``items[start[p]:start[p + 1]]``.
        place: ``(n_items,)`` position of each item in ``items``.
        of_item: ``(n_items,)`` pool of each item.
    """

    items: np.ndarray
    start: np.ndarray
    place: np.ndarray
    of_item: np.ndarray

    def members(self, pool: int) -> np.ndarray:
        """Item ids of one pool, ascending."""
        return self.items[self.start[pool] : self.start[pool + 1]]

    def sizes(self, pools: np.ndarray) -> np.ndarray:
        """Number of items of each of the given pools."""
        return self.start[pools + 1] - self.start[pools]


def build_pools(item_domain: np.ndarray, candidates: str) -> Pools:
    """Pools for ``candidates: in_domain`` (one per domain) or ``all`` (one of every item).

    Args:
        item_domain: ``(n_items,)`` int64, 0 for the padding item 0, domains from 1.

    Raises:
        ConfigError: ``candidates`` is neither.
    """
    if candidates not in CANDIDATES:
        raise ConfigError(f"candidates is {candidates!r}, expected {' or '.join(CANDIDATES)}")
    of_item = item_domain if candidates == "in_domain" else (item_domain > 0).astype(np.int64)
    items = np.argsort(of_item, kind="stable")
    start = np.searchsorted(of_item[items], np.arange(of_item.max() + 2))
    place = np.empty_like(items)
    place[items] = np.arange(len(items))
    return Pools(items, start, place, of_item)


def parse_mode(mode: str) -> int:
    """Number of negatives a target: 0 for ``full``, N for ``uniN``.

    Raises:
        ConfigError: any other text.
    """
    found = re.fullmatch(r"full|uni([1-9]\d*)", str(mode))
    if not found:
        raise ConfigError(
            f"evaluation mode is {mode!r}, expected full, or uniN with N negatives (uni100)"
        )
    return int(found.group(1) or 0)


def first_events(
    sequences: tuple[np.ndarray, np.ndarray], users: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first ``counts`` events of each row's user.

    Args:
        sequences: (items ``(n_events,)``, offsets ``(n_users + 1,)``).
        users, counts: ``(n,)``.

    Returns:
        (rows, items): flat arrays, rows ascending, items oldest first.
    """
    items, offsets = sequences
    rows = np.repeat(np.arange(len(users)), counts)
    inside = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, items[offsets[users][rows] + inside]


def own_places(
    pools: Pools, row_pool: np.ndarray, rows: np.ndarray, items: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct items of each row that lie in the row's pool, as positions inside the pool.

    Args:
        row_pool: ``(n,)`` pool of each row. rows, items: flat (row, item) pairs in any order.

    Returns:
        (offsets ``(n + 1,)``, places): row ``r`` owns ``places[offsets[r]:offsets[r + 1]]``,
        ascending.
    """
    inside = pools.of_item[items] == row_pool[rows]
    rows, items = rows[inside], items[inside]
    place = pools.place[items] - pools.start[row_pool[rows]]
    key = np.unique(rows * len(pools.items) + place)
    row, place = np.divmod(key, len(pools.items))
    counts = np.bincount(row, minlength=len(row_pool))
    return np.concatenate([[0], np.cumsum(counts)]), place


def sample_negatives(
    pools: Pools,
    row_pool: np.ndarray,
    offsets: np.ndarray,
    places: np.ndarray,
    n_negatives: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Negatives drawn uniformly, without replacement, from the row's pool less its own items.

    Args:
        row_pool: ``(n,)``. offsets, places: the own items, from `own_places`.

    Returns:
        ``(n, N)`` int32 item ids, N the smaller of ``n_negatives`` and the size of the largest
        pool. A row with fewer eligible items has all of them, and zeros (the padding item) behind.
    """
    n_negatives = min(n_negatives, int(pools.sizes(row_pool).max(initial=1)))
    negatives = np.zeros((len(row_pool), n_negatives), dtype=np.int32)
    for low in range(0, len(row_pool), CHUNK_ROWS):
        part = slice(low, min(low + CHUNK_ROWS, len(row_pool)))
        own = offsets[part.start : part.stop + 1]
        eligible = pools.sizes(row_pool[part]) - np.diff(own)
        drawn = _draw_distinct(eligible, n_negatives, rng)
        absent = drawn < 0
        place = _skip_own(drawn, own - own[0], places[own[0] : own[-1]])
        place += pools.start[row_pool[part]][:, None]
        place[absent] = 0
        chunk = pools.items[place]
        chunk[absent] = 0
        negatives[part] = chunk
    return negatives


def _draw_distinct(eligible: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``(B, n)`` distinct numbers below ``eligible`` ``(B,)``; -1 where there are too few."""
    drawn = np.empty((len(eligible), n), dtype=np.int64)
    # Redrawing the collisions is fast while they are rare, and never ends when n is everything.
    scarce = eligible <= 2 * n
    if scarce.any():
        drawn[scarce] = _smallest_keys(eligible[scarce], n, rng)
    if not scarce.all():
        drawn[~scarce] = _redraw_collisions(eligible[~scarce], n, rng)
    return drawn


def _smallest_keys(eligible: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Give every number a random key and keep the n smallest keys."""
    width = max(int(eligible.max()), n)
    keys = rng.random((len(eligible), width))
    keys[np.arange(width) >= eligible[:, None]] = 2.0
    kept = np.argpartition(keys, n - 1, axis=1)[:, :n]
    kept[kept >= eligible[:, None]] = -1
    return -np.sort(-kept, axis=1)


def _redraw_collisions(eligible: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw until distinct: the first n distinct values of independent draws are a fair subset."""
    drawn = (rng.random((len(eligible), n)) * eligible[:, None]).astype(np.int32)
    todo = np.arange(len(eligible))
    while len(todo):
        part = np.sort(drawn[todo], axis=1)
        again = np.zeros(part.shape, dtype=bool)
        again[:, 1:] = part[:, 1:] == part[:, :-1]
        counts = again.sum(axis=1)
        bound = np.repeat(eligible[todo], counts)
        part[again] = (rng.random(len(bound)) * bound).astype(np.int32)
        drawn[todo] = part
        todo = todo[counts > 0]
    return drawn


def _skip_own(drawn: np.ndarray, offsets: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The ``drawn``-th position ``(B, n)`` among those that are not the row's own.

    The own position h_j (j-th of the row, from 0) has h_j - j eligible positions before it, so
    that an eligible number r lies behind every own position with h_j - j <= r.
    """
    counts = np.diff(offsets)
    row = np.repeat(np.arange(len(counts)), counts)
    before = places - (np.arange(len(places)) - offsets[row])
    width = max(int(drawn.max(initial=0)), int(places.max(initial=0))) + 2
    found = np.searchsorted(
        row * width + before,
        (np.arange(len(counts))[:, None] * width + np.maximum(drawn, 0)).ravel(),
        side="right",
    )
    return drawn + found.reshape(drawn.shape) - offsets[:-1, None]
