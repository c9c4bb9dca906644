"""Batches for training and evaluation of the sequence-level models."""

from collections.abc import Iterator
from logging import getLogger
from typing import TYPE_CHECKING

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_tema.data.negatives import InDomainNegatives
from recbole_tema.data.windows import Windows, cut_windows, prefix_windows
from recbole_tema.trainer.distributed import rank, world_size

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin
    from recbole_tema.evaluation.plan import EvalPlan

TARGET_SEQ = "target_id_list"
NEGATIVE_SEQ = "neg_item_id_list"


def pad_rows(
    flat: np.ndarray, start: np.ndarray, length: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``(B, max(length))`` slices of a flat array, padded with 0 on the right."""
    step = np.arange(length.max())
    inside = step < length[:, None]
    index = np.where(inside, start[:, None] + step, 0)
    return np.where(inside, flat[index], 0), inside


class SequenceTrainLoader:
    """Windows of the training sequences in random batches of about ``train_batch_size`` targets.

    A batch is an ``Interaction`` with ``user_id (B,)``, ``item_id_list (B, L)`` padded on the
    right, ``item_length (B,)``, ``target_id_list (B, L)`` (the next item, 0 where none counts) and,
    where ``train_neg_sample_args`` asks for negatives, ``neg_item_id_list (B, L)``. Rows come
    longest first and are trimmed to the longest of the batch; a batch is a random set of users,
    because batches of one length only trained worse.

    Several processes each get a part of every batch, longest rows dealt out in turn; ``share`` is
    what a part's mean loss counts for in the mean over the processes, so that this is the mean
    loss of the whole batch.

    As in RecBole, ``train_batch_size`` counts targets: one RecBole row is one target. Everything
    random follows from the seed and the epoch, so a resumed run draws what it would have drawn.
    """

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        self.config = config
        self._dataset = dataset
        self.shuffle = True
        self.epoch = 0
        self.batch_size = int(config["train_batch_size"])
        self.max_length = int(config["MAX_ITEM_LIST_LENGTH"])
        self.stride = int(config["window_stride"] or max(1, self.max_length // 4))
        self.prefix_rows = config["train_rows"] == "prefix"
        self.sequences = dataset.train_sequences
        self.n_targets = int(np.maximum(self.sequences.lengths - 1, 0).sum())
        wants_negatives = config["train_neg_sample_args"]["distribution"] != "none"
        self.negatives = (
            InDomainNegatives(self.sequences, dataset.item_domain) if wants_negatives else None
        )
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
        return max(1, -(-self.n_targets // self.batch_size))

    @property
    def sampler(self) -> "SequenceTrainLoader":
        """What RecBole's trainers tell the epoch where several processes train."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Draw the next iteration as epoch number ``epoch``."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Interaction]:
        rng = np.random.default_rng([int(self.config["seed"]), self.epoch])
        own = rng
        if world_size() > 1:  # all draw the same batches, and each its own negatives
            own = np.random.default_rng([int(self.config["seed"]), self.epoch, 1 + rank()])
        self.epoch += 1
        if self.prefix_rows:
            windows = prefix_windows(self.sequences, self.max_length)
        else:
            windows = cut_windows(self.sequences, self.max_length, self.stride, rng)
        order = rng.permutation(len(windows.user))
        batch = (np.cumsum(windows.n_targets[order]) - 1) // self.batch_size
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
            drawn = np.zeros_like(targets)
            drawn[counted] = self.negatives.draw(users, targets[counted], rng)
            batch[NEGATIVE_SEQ] = torch.from_numpy(drawn)
        return Interaction(batch)


class SequenceEvalLoader:
    """Histories of one phase's targets: yields ``(rows, Interaction)``.

    ``rows (B,)`` are row numbers of the phase's `EvalPlan`; the interaction has
    ``user_id``, ``item_id_list`` (the last ``MAX_ITEM_LIST_LENGTH`` items before the target),
    ``item_length`` and ``item_id`` (the target, read by ``predict`` alone).
    """

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin", plan: "EvalPlan") -> None:
        self._dataset = dataset
        self.max_length = int(config["MAX_ITEM_LIST_LENGTH"])
        self.batch_size = int(config["eval_batch_size"])
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
            target = offsets[plan.users[rows]] + plan.history_lengths[rows]
            history, _ = pad_rows(items, target - length[rows], length[rows])
            user_field, item_field = self.fields
            yield (
                rows,
                Interaction(
                    {
                        user_field: torch.from_numpy(plan.users[rows]),
                        item_field: torch.from_numpy(plan.targets[rows]),
                        self.list_field: torch.from_numpy(history),
                        self.length_field: torch.from_numpy(length[rows]),
                    }
                ),
            )
