"""Datasets of RecBole's own models: RecBole's classes and augmentation on the same split."""

import importlib

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_tema.data.cross_domain import CrossDomainMixin
from recbole_tema.data.dataset import rows_of
from recbole_tema.data.split import PHASES
from recbole_tema.errors import ConfigError, DataError

RECBOLE_CLASS = {
    ModelType.GENERAL: "Dataset",
    ModelType.TRADITIONAL: "Dataset",
    ModelType.CONTEXT: "Dataset",
    ModelType.SEQUENTIAL: "SequentialDataset",
    ModelType.KNOWLEDGE: "KnowledgeBasedDataset",
}


class _FlatBaseline(CrossDomainMixin):
    """General models: plain events, split at the same targets as the sequential ones."""

    def build(self) -> list[Dataset]:
        self._change_feat_format()
        train, *held_out = self.split_indices()
        if self.config["train_on"] == "target":
            inside = self.item_domain[self.sequences.items] == self.target_domain
            held_out = [index[inside[index]] for index in held_out]
        parts = [self.copy(rows_of(self.inter_feat, index)) for index in (train, *held_out)]
        self._drop_unused_col()
        return parts


class _SequentialBaseline(CrossDomainMixin):
    """Sequential models: a padded row for each target, with its history, as RecBole trains them."""

    def build(self) -> list[Dataset]:
        """The parts of the split: ``[train, valid, test]``; rows of a phase are in the order of
        its targets.

        Raises:
            DataError: no user has two training events.
        """
        Dataset._change_feat_format(self)
        self._aug_presets()
        train = self.split_indices()[0]
        rows = [self._augmented(train, train, train, histories=True)]
        if not len(rows[0]):
            raise DataError(self._no_pair())
        for phase in PHASES:
            readable = self.split.readable(phase)
            if self.config["train_on"] == "target":
                inside = self.item_domain[self.sequences.items] == self.target_domain
                readable = inside if readable is None else inside & readable
            seen = np.arange(len(self.sequences.items))
            seen = seen if readable is None else seen[readable]
            targets = self.targets(phase)
            rows.append(self._augmented(targets.events, targets.ends, seen))
        self._drop_unused_col()
        return [self.copy(part) for part in rows]

    def _no_pair(self) -> str:
        if self.config["train_on"] == "target":
            return (
                f"no user of dataset '{self.dataset_name}' has two training events in "
                f"'{self.config['target_domain']}', so with train_on target nothing can be learnt"
            )
        kept = f"overlap_ratio {self.config['overlap_ratio']} leaves"
        kept = kept if self.train_mask is not None else "the split leaves"
        return f"{kept} no user of dataset '{self.dataset_name}' two training events to learn from"

    def _augmented(
        self, targets: np.ndarray, ends: np.ndarray, seen: np.ndarray, histories: bool = False
    ) -> Interaction:
        """The rows that RecBole's augmentation would make of some events.

        Args:
            targets: ``(n,)`` events that are predicted. ends: ``(n,)`` events before which their
                histories lie. seen: the events that histories may hold, ascending.
            histories: drop the targets without a history; without it that is the padding item by
                itself, the least that RecBole's models read.
        """
        events = self.split.events
        last = np.searchsorted(seen, ends)
        start = np.searchsorted(seen, events.offsets[events.users(targets)])
        if histories:
            targets, last, start = (a[last > start] for a in (targets, last, start))
            if self.train_mask is None:
                order = self._by_first_row(targets)
                targets, last, start = (a[order] for a in (targets, last, start))
        width = self.max_item_list_len
        start = np.maximum(start, last - width)
        length = last - start
        step = np.arange(width)
        inside = torch.from_numpy(step < length[:, None])
        place = np.where(inside, start[:, None] + step, len(seen))
        index = torch.from_numpy(np.append(seen, 0)[place])
        columns = {}
        for name, values in self.inter_feat.interaction.items():
            columns[name] = values[torch.from_numpy(targets)]
            if name != self.uid_field:
                rows = values[index]
                rows[~inside] = 0
                columns[getattr(self, f"{name}_list_field")] = rows
        columns[self.item_list_length_field] = torch.from_numpy(np.maximum(length, 1))
        negatives = getattr(self, "neg_item_list", None)
        if negatives is not None:  # DIEN's, an item beside each event
            columns[self.neg_item_list_field] = torch.as_tensor(negatives)[index] * inside
        return Interaction(columns)

    def _by_first_row(self, targets: np.ndarray) -> np.ndarray:
        """The order in which RecBole leaves the rows: by the time of their users' second events,
        in its single precision. A seed's batches follow from it."""
        events = self.split.events
        second = np.minimum(events.offsets[:-1] + 1, len(self.sequences.items) - 1)
        times = self.inter_feat[self.time_field].numpy()[second]
        users = events.users(targets)
        return np.lexsort((targets, users, times[users]))


def baseline_class(model_name: str, model_type: ModelType) -> type[CrossDomainMixin]:
    """The RecBole dataset class of a model, with domains.

    Raises:
        ConfigError: the model's type cannot be ranked over a catalogue here.
    """
    module = importlib.import_module("recbole.data.dataset")
    base = getattr(module, f"{model_name}Dataset", None)
    if base is None:
        if model_type not in RECBOLE_CLASS:
            raise ConfigError(
                f"model '{model_name}' is of type {model_type.name}; this package runs RecBole's "
                f"sequential, general, context-aware and knowledge-aware models"
            )
        base = getattr(module, RECBOLE_CLASS[model_type])
    mixin = _SequentialBaseline if issubclass(base, SequentialDataset) else _FlatBaseline
    return type(f"CrossDomain{base.__name__}", (mixin, base), {"__doc__": base.__doc__})
