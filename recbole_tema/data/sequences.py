"""Every user's merged sequence as flat arrays."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sequences:
    """Users' item sequences, oldest event first.

    Attributes:
        items: ``(n_events,)`` int64 internal item ids, user after user.
        offsets: ``(n_users + 1,)`` int64; user ``u`` owns ``items[offsets[u]:offsets[u + 1]]``.
            User 0 is RecBole's padding user and owns nothing.
    """

    items: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """``(n_users,)`` number of events of each user."""
        return np.diff(self.offsets)

    @property
    def positions(self) -> np.ndarray:
        """``(n_events,)`` place of each event in its user's sequence, from 0."""
        return np.arange(len(self.items)) - np.repeat(self.offsets[:-1], self.lengths)

    def of(self, user: int) -> np.ndarray:
        """``(length,)`` item ids of one user."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def users(self) -> np.ndarray:
        """``(n_events,)`` the user of each event."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)

    def keep(self, mask: np.ndarray) -> "Sequences":
        """The sequences of the events where ``mask`` ``(n_events,)`` is true."""
        kept = np.concatenate([[0], np.cumsum(mask)])
        return Sequences(self.items[mask], kept[self.offsets])


def build_sequences(
    users: np.ndarray, items: np.ndarray, times: np.ndarray, n_users: int
) -> tuple[np.ndarray, Sequences]:
    """Group events by user and order them by time, ties in the order of the input.

    Args:
        users, items: ``(n_events,)`` internal ids. times: ``(n_events,)`` float64, any unit.
        n_users: number of user ids, the padding user included.

    Returns:
        (order, sequences): ``order`` ``(n_events,)`` sorts the input by user, then time.
    """
    if (times[1:] >= times[:-1]).all():  # as our converters write them
        order = np.argsort(users, kind="stable")
    else:
        # Two stable sorts are cheaper than lexsort.
        by_time = np.argsort(times, kind="stable")
        order = by_time[np.argsort(users[by_time], kind="stable")]
    counts = np.bincount(users, minlength=n_users)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return order, Sequences(np.ascontiguousarray(items[order], dtype=np.int64), offsets)


def count_repeats(sequences: Sequences, n_items: int) -> int:
    """Number of events whose item the same user has had in an earlier event."""
    # What is no first event of its (user, item) pair.
    pairs = sequences.users() * n_items + sequences.items
    pairs.sort()
    return int(np.count_nonzero(pairs[1:] == pairs[:-1]))


def domain_counts(sequences: Sequences, item_domain: np.ndarray, n_domains: int) -> np.ndarray:
    """``(n_users, n_domains)`` number of events of each user in each domain (domains from 1)."""
    n_users = len(sequences.offsets) - 1
    key = sequences.users() * n_domains + item_domain[sequences.items] - 1
    return np.bincount(key, minlength=n_users * n_domains).reshape(n_users, n_domains)


def thin_overlap(
    train: Sequences, item_domain: np.ndarray, n_domains: int, ratio: float, seed: int
) -> tuple[Sequences, np.ndarray]:
    """Make some overlapping users single-domain, in the training data only.

    Of the users with training events in two or more domains the share ``ratio`` keeps everything;
    each of the others keeps the events of one domain, drawn at random among its own.

    Returns:
        (sequences, mask): the thinned sequences and the kept events ``(n_events,)``.
    """
    counts = domain_counts(train, item_domain, n_domains)
    overlapping = np.flatnonzero((counts > 0).sum(axis=1) >= 2)
    rng = np.random.default_rng(seed)
    thinned = rng.permutation(overlapping)[round(ratio * len(overlapping)) :]
    # The largest of independent uniform numbers over the user's own domains is a fair draw.
    kept_domain = np.zeros(len(counts), dtype=np.int64)
    draw = rng.random((len(thinned), n_domains)) * (counts[thinned] > 0)
    kept_domain[thinned] = draw.argmax(axis=1) + 1
    wanted = kept_domain[train.users()]
    mask = (wanted == 0) | (item_domain[train.items] == wanted)
    return train.keep(mask), mask
