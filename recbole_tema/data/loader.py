"""Batches for training and evaluation of the sequence-level models."""

from collections.abc import Iterator
from logging import getLogger
from typing import TYPE_CHECKING

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_tema.config.keys import may_read
from recbole_tema.data.negatives import InDomainNegatives
from recbole_tema.data.windows import Windows, cut_windows, latest_windows, prefix_windows
from recbole_tema.errors import DataError
from recbole_tema.trainer.distributed import rank, world_size

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin
    from recbole_tema.evaluation.plan import EvalPlan

TARGET_SEQ = "target_id_list"
NEGATIVE_SEQ = "neg_item_id_list"
LOCAL_NEGATIVE_SEQ = "local_neg_item_id_list"
# What was had before a window, for models that ask: the items of all rows, one row after another,
# in a tensor (1, e), and how many each row has, (B,).
EARLIER = "earlier_item_ids"
N_EARLIER = "earlier_length"


def pad_rows(
    flat: np.ndarray, start: np.ndarray, length: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``(B, max(length))`` slices of a flat array, padded with 0 on the right."""
    step = np.arange(length.max())
    inside = step < length[:, None]
    index = np.where(inside, start[:, None] + step, 0)
    return np.where(inside, flat[index], 0), inside


def pack_rows(flat: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """``(sum(length),)`` slices of a flat array, one after another."""
    shift = np.repeat(start - (np.cumsum(length) - length), length)
    return flat[shift + np.arange(len(shift))]


def earlier_events(flat: np.ndarray, start: np.ndarray, end: np.ndarray) -> dict[str, torch.Tensor]:
    """The fields ``EARLIER`` and ``N_EARLIER`` of rows that had ``flat[start:end]``.

    Memory is that of the events, however much longer than others one row's history is.
    """
    length = end - start
    items = torch.from_numpy(pack_rows(flat, start, length))
    return {EARLIER: items[None], N_EARLIER: torch.from_numpy(length)}


class SequenceTrainLoader:
    """Windows of the training sequences in random batches of about ``train_batch_size`` targets.

    A batch is an ``Interaction`` with ``user_id (B,)``, ``item_id_list (B, L)`` padded on the
    right, ``item_length (B,)``, ``target_id_list (B, L)`` (the next item, 0 where none counts) and,
    where ``train_neg_sample_args`` asks for negatives, ``neg_item_id_list (B, L)`` of the targets'
    domains; with ``negative_domain: input`` of the inputs', and ``local_neg_item_id_list (B, L)``
    of the targets'; with ``repeat_bias`` also the user's events before the window
    (`earlier_events`). Rows come longest first and are trimmed to the longest of the batch; a batch
    is a random set of users, because batches of one length only trained worse.

    Several processes each get a part of every batch, longest rows dealt out in turn; ``share`` is
    what a part's mean loss counts for in the mean over the processes, so that this is the mean
    loss of the whole batch.

    As in RecBole, ``train_batch_size`` counts targets: one RecBole row is one target; with
    ``batch_unit: rows`` it counts windows. Everything random follows from the seed and the epoch,
    so a resumed run draws what it would have drawn.
    """

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        self.config = config
        self._dataset = dataset
        self.shuffle = True
        self.epoch = 0
        self.batch_size = int(config["train_batch_size"])
        self.max_length = int(config["MAX_ITEM_LIST_LENGTH"])
        self.stride = int(config["window_stride"] or max(1, self.max_length // 4))
        self.train_rows = config["train_rows"]
        # Of a model that does not declare the key it is told to be idle.
        reads_unit = may_read(config.model_class, "batch_unit")
        self.counts_rows = reads_unit and config["batch_unit"] == "rows"
        self.of_inputs = config["negative_domain"] == "input"
        self.sequences = dataset.train_sequences
        targets = np.maximum(self.sequences.lengths - 1, 0)
        if self.train_rows == "latest":
            targets = np.minimum(targets, self.max_length)
        self.n_targets = int(targets.sum())
        # Windows of long sequences are more than the users, and their number is drawn.
        by_user = self.counts_rows and self.train_rows != "prefix"
        self.n_counted = int((targets > 0).sum()) if by_user else self.n_targets
        wants_negatives = config["train_neg_sample_args"]["distribution"] != "none"
        self.negatives = (
            InDomainNegatives(self.sequences, dataset.item_domain) if wants_negatives else None
        )
        self.wants_earlier = bool(config["repeat_bias"])
        self.share = 1.0
        self.fields = {
            name: config[key]
            for name, key in (("user", "USER_ID_FIELD"), ("item", "ITEM_ID_FIELD"))
        }
        self.list_field = self.fields["item"] + config["LIST_SUFFIX"]
        self.length_field = config["ITEM_LIST_LENGTH_FIELD"]

    @property
    def dataset(self) -> "CrossDomainMixin":
        """The training dataset, under the name that RecBole's trainers use."""
        return self._dataset

    def __len__(self) -> int:
        """Number of batches of an epoch (an epoch with many long windows can have one less)."""
        return max(1, -(-self.n_counted // self.batch_size))

    @property
    def sampler(self) -> "SequenceTrainLoader":
        """What RecBole's trainers tell the epoch where several processes train."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Draw the next iteration as epoch number ``epoch``."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Interaction]:
        if not self.n_targets:
            raise DataError(
                "no user has two training events, so nothing is left to train on; give longer "
                "histories, a larger overlap_ratio or another eval_args.split"
            )
        rng = np.random.default_rng([int(self.config["seed"]), self.epoch])
        own = rng
        if world_size() > 1:  # all draw the same batches, and each its own negatives
            own = np.random.default_rng([int(self.config["seed"]), self.epoch, 1 + rank()])
        self.epoch += 1
        if self.train_rows == "prefix":
            windows = prefix_windows(self.sequences, self.max_length)
        elif self.train_rows == "latest":
            windows = latest_windows(self.sequences, self.max_length)
        else:
            windows = cut_windows(self.sequences, self.max_length, self.stride, rng)
        order = rng.permutation(len(windows.user))
        counted = np.ones_like(order) if self.counts_rows else windows.n_targets[order]
        batch = (np.cumsum(counted) - 1) // self.batch_size
        for rows in np.split(order, np.flatnonzero(np.diff(batch)) + 1):
            rows = rows[np.argsort(-windows.length[rows], kind="stable")]
            yield self._interaction(windows, self._part(windows, rows), own)

    def _part(self, windows: Windows, rows: np.ndarray) -> np.ndarray:
        """This process's rows of a batch; sets what its loss counts for."""
        if world_size() == 1:
            return rows
        # Dealt to and fro, so that no process has the longer row of every pair.
        turn = np.arange(len(rows)) % (2 * world_size())
        part = rows[np.minimum(turn, 2 * world_size() - 1 - turn) == rank()]
        total = windows.n_targets[rows].sum()
        self.share = float(windows.n_targets[part].sum() * world_size() / total)
        # All processes take every step: one without rows takes one that counts nothing.
        return part if len(part) else rows[:1]

    def _interaction(
        self, windows: Windows, rows: np.ndarray, rng: np.random.Generator
    ) -> Interaction:
        start, length = windows.start[rows], windows.length[rows]
        inputs, inside = pad_rows(self.sequences.items, start, length)
        targets, _ = pad_rows(self.sequences.items, start + 1, length)
        step = np.arange(inputs.shape[1])
        counted = inside & (step >= (length - windows.n_targets[rows])[:, None])
        targets = np.where(counted, targets, 0)
        batch = {
            self.fields["user"]: torch.from_numpy(windows.user[rows]),
            self.list_field: torch.from_numpy(inputs),
            self.length_field: torch.from_numpy(length),
            TARGET_SEQ: torch.from_numpy(targets),
        }
        if self.negatives is not None:
            users = np.broadcast_to(windows.user[rows][:, None], targets.shape)[counted]
            wanted = {NEGATIVE_SEQ: targets}
            if self.of_inputs:
                wanted = {NEGATIVE_SEQ: inputs, LOCAL_NEGATIVE_SEQ: targets}
            for field, like in wanted.items():
                drawn = np.zeros_like(targets)
                drawn[counted] = self.negatives.draw(users, like[counted], rng)
                batch[field] = torch.from_numpy(drawn)
        if self.wants_earlier:
            first = self.sequences.offsets[windows.user[rows]]
            batch |= earlier_events(self.sequences.items, first, start)
        return Interaction(batch)


class SequenceEvalLoader:
    """Histories of one phase's targets: yields ``(rows, Interaction)``.

    ``rows (B,)`` are row numbers of the phase's `EvalPlan`; the interaction has
    ``user_id``, ``item_id_list`` (the last ``MAX_ITEM_LIST_LENGTH`` items before the target),
    ``item_length`` and ``item_id`` (the target, read by ``predict`` alone); with ``repeat_bias``
    also the events before those (`earlier_events`).
    """

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin", plan: "EvalPlan") -> None:
        self._dataset = dataset
        self.max_length = int(config["MAX_ITEM_LIST_LENGTH"])
        self.batch_size = int(config["eval_batch_size"])
        self.wants_earlier = bool(config["repeat_bias"])
        self.plan = plan
        self.fields = (config["USER_ID_FIELD"], config["ITEM_ID_FIELD"])
        self.list_field = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
        self.length_field = config["ITEM_LIST_LENGTH_FIELD"]
        if not len(plan):
            getLogger().warning(f"no user has a {plan.phase} target")

    def __len__(self) -> int:
        return -(-len(self.plan) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, Interaction]]:
        plan = self.plan
        items, offsets = plan.histories
        length = np.minimum(plan.history_lengths, self.max_length)
        # Rows of like length together: short histories are not padded to the longest.
        order = np.argsort(length, kind="stable")
        for first in range(0, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            start = offsets[plan.users[rows]]
            target = start + plan.history_lengths[rows]
            begin = target - length[rows]
            history, _ = pad_rows(items, begin, length[rows])
            user_field, item_field = self.fields
            batch = {
                user_field: torch.from_numpy(plan.users[rows]),
                item_field: torch.from_numpy(plan.targets[rows]),
                self.list_field: torch.from_numpy(history),
                self.length_field: torch.from_numpy(length[rows]),
            }
            if self.wants_earlier:
                batch |= earlier_events(items, start, begin)
            yield rows, Interaction(batch)
