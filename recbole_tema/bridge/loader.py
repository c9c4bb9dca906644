"""Training batches for RecBole-CDR's models: both domains, one of them, or the shared users."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_tema.bridge.pair import SOURCE, TARGET, DomainPair

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin

BOTH, OVERLAP = "BOTH", "OVERLAP"
MODES = (BOTH, SOURCE.upper(), TARGET.upper(), OVERLAP)


class PairTrainLoader:
    """Batches of the events of a `DomainPair`, in the mode of the training phase.

    A batch is an ``Interaction`` in RecBole-CDR's ids and names, ``source_user_id``,
    ``source_item_id`` and so on, each ``(B,)``. For models that train on labels half of the rows
    are events (``target_label`` 1) and half the same users with an item of the domain that they
    have no training event with (0); for the others, ``neg_target_item_id`` is that item. As in
    RecBole, ``train_batch_size`` counts labelled rows, or pairs.

    ``BOTH`` has a batch of each domain side by side and ends with the target's events; the
    source's begin anew when they are through. ``OVERLAP`` has ``overlap`` ``(B, 1)``, users with
    training events in both domains.

    Everything random follows from the seed, the phase and the epoch.
    """

    MAX_ROUNDS = 20  # of drawing negatives again
    shuffle = True

    def __init__(
        self, config: "TemaConfig", dataset: "CrossDomainMixin", pair: DomainPair, pairwise: bool
    ) -> None:
        self.dataset, self.pair, self.pairwise = dataset, pair, pairwise
        self.seed = int(config["seed"])
        self.batch_size = int(config["train_batch_size"])
        self.overlap_batch_size = int(config["overlap_batch_size"] or self.batch_size)
        self.negative_prefix = config["NEG_PREFIX"]
        self.mode, self.phase, self.epoch = BOTH, 0, 0
        first_source = pair.num_overlap_item + pair.num_target_only_item
        # The domains' items are consecutive: [low, high) of each.
        self._range = {
            TARGET: (1, first_source),
            SOURCE: (first_source, pair.num_total_item),
        }
        self._seen = {
            side: np.unique(pair.side(side).users * pair.num_total_item + pair.side(side).items)
            for side in (SOURCE, TARGET)
        }

    def set_phase(self, mode: str, number: int) -> None:
        """Give batches of a mode from now on; ``number`` counts the phases from 0."""
        self.mode, self.phase = mode, number

    def set_epoch(self, epoch: int) -> None:
        """Draw the next iteration as that of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        if self.mode == OVERLAP:
            return -(-len(self.pair.shared_users) // self.overlap_batch_size)
        side = SOURCE if self.mode == SOURCE.upper() else TARGET
        return -(-len(self.pair.side(side).users) // self._events_per_batch)

    @property
    def _events_per_batch(self) -> int:
        return max(1, self.batch_size if self.pairwise else self.batch_size // 2)

    def __iter__(self) -> Iterator[Interaction]:
        rng = np.random.default_rng([self.seed, self.phase, self.epoch])
        self.epoch += 1
        if self.mode == OVERLAP:
            users = rng.permutation(self.pair.shared_users)
            for first in range(0, len(users), self.overlap_batch_size):
                part = users[first : first + self.overlap_batch_size, None]
                yield Interaction({self.pair.overlap_id_field: torch.from_numpy(part)})
        elif self.mode == BOTH:
            source = self._endless(SOURCE, rng)
            for batch in self._once(TARGET, rng):
                yield Interaction({**batch, **next(source)})
        else:
            for batch in self._once(self.mode.lower(), rng):
                yield Interaction(batch)

    def _endless(self, side: str, rng: np.random.Generator) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield from self._once(side, rng)

    def _once(self, side: str, rng: np.random.Generator) -> Iterator[dict[str, torch.Tensor]]:
        events = self.pair.side(side)
        order = rng.permutation(len(events.users))
        for first in range(0, len(order), self._events_per_batch):
            rows = order[first : first + self._events_per_batch]
            users, items = events.users[rows], events.items[rows]
            negatives = self._negatives(side, users, rng)
            if self.pairwise:
                columns = {
                    events.uid_field: users,
                    events.iid_field: items,
                    self.negative_prefix + events.iid_field: negatives,
                }
            else:
                labels = np.repeat(np.array([1, 0], dtype=np.float32), len(rows))
                columns = {
                    events.uid_field: np.tile(users, 2),
                    events.iid_field: np.concatenate([items, negatives]),
                    events.label_field: labels,
                }
            yield {name: torch.from_numpy(column) for name, column in columns.items()}

    def _negatives(self, side: str, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """``(n,)`` uniform items of a domain that the users have no training event with.

        A user who has had all of them gets any.
        """
        drawn = np.zeros(len(users), dtype=np.int64)
        todo = np.arange(len(users))
        seen = self._seen[side]
        for _ in range(self.MAX_ROUNDS):
            drawn[todo] = rng.integers(*self._range[side], size=len(todo))
            key = users[todo] * self.pair.num_total_item + drawn[todo]
            place = np.minimum(np.searchsorted(seen, key), len(seen) - 1)
            todo = todo[seen[place] == key]
            if not len(todo):
                return drawn
        for row in todo:  # few, of users who have had nearly all items
            low, high = users[row] * self.pair.num_total_item + np.array(self._range[side])
            own = seen[np.searchsorted(seen, low) : np.searchsorted(seen, high)]
            free = np.setdiff1d(np.arange(low, high), own)
            if len(free):
                drawn[row] = rng.choice(free) % self.pair.num_total_item
        return drawn
