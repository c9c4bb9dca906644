"""What a dataset's events become: ordered sequences, their split, and what training keeps."""

from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import pandas as pd

from recbole_tema.console import SCREEN
from recbole_tema.data.sequences import (
    Sequences,
    build_sequences,
    count_repeats,
    thin_overlap,
)
from recbole_tema.data.split import (
    GIVEN,
    MERGED,
    PARTS,
    PER_DOMAIN,
    PHASES,
    SPLIT_FIELD,
    Events,
    Split,
    read_rule,
)

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset as Base
else:
    Base = object

# exclude_history auto: True where fewer than this share of the training events are repeats.
FEW_REPEATS = 0.001


class Targets(NamedTuple):
    """A phase's targets, by user and in the order of time.

    Attributes:
        events: ``(n,)`` int64 their places among all events.
        users: ``(n,)`` int64. positions: ``(n,)`` int64 where the histories end: that of a target
            is ``histories.of(user)[:position]``, mostly what is before it.
        ends: ``(n,)`` int64 the same as places among all events.
        histories: what the phase may read.
    """

    events: np.ndarray
    users: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    histories: Sequences


class SplitMixin(Base):
    """Exactly ordered sequences and their split, of a dataset whose domains are set.

    Attributes:
        sequences: every user's merged sequence (`Sequences`); ``inter_feat`` is in its order.
        split: the part of every event (`Split`).
        train_sequences: the training events, thinned where ``overlap_ratio`` is below 1, and of
            the target domain alone where ``train_on`` is ``target``. train_mask: which of the
            split's training events these are; None: all. thinned_users: whom ``overlap_ratio``
            took events from.
        exclude_history: what the key of this name comes to, True or False.
    """

    inter_feat: Any
    item_domain: np.ndarray
    domain_names: list[str]
    target_domain: int | None

    def _set_sequences(self) -> None:
        times = self.inter_feat[self.time_field].to_numpy(dtype=np.float64)
        order, self.sequences = build_sequences(
            self.inter_feat[self.uid_field].to_numpy(),
            self.inter_feat[self.iid_field].to_numpy(),
            # Float64 here: RecBole's float32 tensors merge times that are a minute apart.
            times,
            self.user_num,
        )
        self._set_split(times, order)
        # Column by column, each let go as it is copied: the events are never there twice.
        columns = list(self.inter_feat)
        self.inter_feat = pd.DataFrame(
            {name: self.inter_feat.pop(name).to_numpy()[order] for name in columns}, copy=False
        )
        self.train_sequences = self.sequences.keep(self.split.train)
        self._set_exclude_history()
        ratio = self.config["overlap_ratio"]
        self.train_mask: np.ndarray | None = None
        self.thinned_users: np.ndarray | None = None
        full = self.train_sequences
        if ratio is not None and ratio < 1.0:
            self.train_sequences, mask = thin_overlap(
                full, self.item_domain, len(self.domain_names), ratio, self.config["eval_neg_seed"]
            )
            self.train_mask = mask
            self.thinned_users = np.bincount(full.users()[~mask]).nonzero()[0]
            SCREEN.info(
                f"overlap_ratio {ratio}: {len(full.items) - len(self.train_sequences.items)} of "
                f"{len(full.items)} training events left out"
            )
        if self.config["train_on"] == "target":
            mask = self.item_domain[full.items] == self.target_domain
            if self.train_mask is not None:
                mask &= self.train_mask
            self.train_sequences, self.train_mask = full.keep(mask), mask
            SCREEN.info(
                f"train_on target: {mask.sum()} of {len(mask)} training events are in "
                f"{self.config['target_domain']}"
            )

    def _set_split(self, times: np.ndarray, order: np.ndarray) -> None:
        """Args: times: ``(n_events,)`` in the order of the files; ``order`` sorts them."""
        rule = read_rule(self.config["eval_args"]["split"])
        marks = None
        if rule.kind == GIVEN and SPLIT_FIELD in self.inter_feat:
            names = self.field2id_token[SPLIT_FIELD]
            number = np.array([PARTS.index(name) if name in PARTS else -1 for name in names])
            marks = number[self.inter_feat[SPLIT_FIELD].to_numpy()[order]]
            # No model is to learn from it.
            self._del_col(self.inter_feat, SPLIT_FIELD)
        events = Events(
            self.sequences.items,
            self.sequences.offsets,
            self.item_domain,
            self.domain_names,
            None if rule.kind in (MERGED, PER_DOMAIN) else times[order],
            marks,
            lambda user: self.id2token(self.uid_field, user),
        )
        self.split = Split(rule, events)
        self.split.check(None if self.target_domain is None else [self.target_domain])

    def _set_exclude_history(self) -> None:
        """Resolve ``exclude_history: auto``; before training data is thinned, alike for all."""
        wanted, events = self.config["exclude_history"], len(self.train_sequences.items)
        repeats = count_repeats(self.train_sequences, self.item_num)
        few = repeats < FEW_REPEATS * events
        self.exclude_history = few if wanted == "auto" else wanted
        why = "fewer than one in a thousand" if few else "one in a thousand or more"
        SCREEN.info(
            f"exclude_history is {self.exclude_history} "
            + (f"(auto): {why}, " if wanted == "auto" else "(as given): ")
            + f"{repeats} of {events} training events, repeat an item of the user's own past"
        )

    def targets(self, phase: str) -> Targets:
        """The targets of ``valid`` or ``test``, with the histories that they are predicted from."""
        held = self.split.held(phase)
        readable = self.split.readable(phase)
        users = self.split.events.users(held)
        ends = self.split.ends(held)
        if readable is None:
            return Targets(held, users, ends - self.sequences.offsets[users], ends, self.sequences)
        seen = np.concatenate([[0], np.cumsum(readable)])
        histories = self.sequences.keep(readable)
        return Targets(held, users, seen[ends] - histories.offsets[users], ends, histories)

    def split_indices(self) -> list[np.ndarray]:
        """Rows of the events of training, validation and test: three ascending int64 arrays.

        The rows of ``inter_feat`` must be in the order of ``sequences``.
        """
        train = np.flatnonzero(self.split.train)
        if self.train_mask is not None:
            train = train[self.train_mask]
        return [train, *map(self.split.held, PHASES)]

    def training_popularity(self) -> np.ndarray:
        """``(n_items,)`` int64 number of training events of each item, as a model learns from."""
        return np.bincount(self.train_sequences.items, minlength=self.item_num)

    def split_popularity(self) -> np.ndarray:
        """``(n_items,)`` int64 number of events of each item in the training part of the split.

        Whatever ``overlap_ratio`` and ``train_on`` take out of it: for the evaluation, in which it
        is the same for every model.
        """
        return np.bincount(self.sequences.items[self.split.train], minlength=self.item_num)

    def _log_split(self) -> None:
        if self.split.rule.kind != MERGED:
            SCREEN.info(f"split {self.split.summary}")
            return
        getLogger().info(f"split {self.split.summary}")
        users = int((self.sequences.lengths[1:] > 0).sum())
        validated, tested = (len(self.split.held(phase)) for phase in PHASES)
        if users > tested:
            SCREEN.info(
                f"{users - tested} users with fewer than 3 events are trained on but not evaluated"
            )
        if tested > validated:
            SCREEN.info(
                f"{tested - validated} users with 3 events have a test target but no validation "
                f"target"
            )
