"""Training negatives from the domain of their target, drawn for a whole batch at once."""

from typing import TYPE_CHECKING

import numpy as np

from recbole_tema.data.sequences import Sequences
from recbole_tema.errors import DataError

if TYPE_CHECKING:
    from recbole.sampler.sampler import AbstractSampler


class InDomainNegatives:
    """Draws, for each target, an item of its domain that the user has no training event with.

    Validation and test items are not known here: they can be drawn like any other item, so the
    training gives no hint of them.
    """

    # A user who has nearly all of a domain would be redrawn for ever.
    MAX_ROUNDS = 20

    def __init__(self, train: Sequences, item_domain: np.ndarray) -> None:
        self.n_items = len(item_domain)
        self.item_domain = item_domain
        self.by_domain = np.argsort(item_domain, kind="stable")
        self.domain_start = np.searchsorted(
            item_domain[self.by_domain], np.arange(item_domain.max() + 2)
        )
        self.seen = np.unique(train.users() * self.n_items + train.items)

    def draw(self, users: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Uniform negatives.

        Args:
            users, targets: ``(n,)`` int64.

        Returns:
            ``(n,)`` int64 items of the targets' domains. Where a user has events with all but
            very few items of a domain, the last draw is kept even if the user has it; it still
            differs from the target unless the domain has a single item.
        """
        negatives = np.zeros(len(targets), dtype=np.int64)
        todo = np.arange(len(targets))
        for _ in range(self.MAX_ROUNDS):
            negatives[todo] = self._uniform(targets[todo], rng)
            todo = todo[self._has(users[todo], negatives[todo])]
            if not len(todo):
                return negatives
        same = todo[negatives[todo] == targets[todo]]
        negatives[same] = self._next_in_domain(targets[same])
        return negatives

    def _uniform(self, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        domain = self.item_domain[targets]
        first = self.domain_start[domain]
        size = self.domain_start[domain + 1] - first
        return self.by_domain[first + (rng.random(len(targets)) * size).astype(np.int64)]

    def _has(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        key = users * self.n_items + items
        place = np.minimum(np.searchsorted(self.seen, key), len(self.seen) - 1)
        return self.seen[place] == key

    def _next_in_domain(self, items: np.ndarray) -> np.ndarray:
        place = np.empty(self.n_items, dtype=np.int64)
        place[self.by_domain] = np.arange(self.n_items)
        domain = self.item_domain[items]
        first = self.domain_start[domain]
        size = self.domain_start[domain + 1] - first
        return self.by_domain[first + (place[items] - first + 1) % size]


def within(sampler: "AbstractSampler | None", items: np.ndarray) -> "AbstractSampler | None":
    """RecBole's sampler, drawing its uniform negatives from some of the items only.

    Args:
        sampler: a RecBole sampler, or None for models without negatives. items: int64 item ids.

    Raises:
        DataError: a user has training events with all of them.
    """
    if sampler is None:
        return None
    everything = set(items.tolist())
    if any(everything <= used for used in sampler.used_ids if len(used) >= len(everything)):
        raise DataError(
            "a user has had every item of the target domain, so there are no negatives for it; "
            "take out that user or add items"
        )
    base = type(sampler)

    def _uni_sampling(self: "AbstractSampler", n: int) -> np.ndarray:
        return np.random.choice(items, n)

    sampler.__class__ = type(f"Within{base.__name__}", (base,), {"_uni_sampling": _uni_sampling})
    return sampler
