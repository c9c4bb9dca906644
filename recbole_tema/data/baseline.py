"""Datasets of RecBole's own models: RecBole's classes and augmentation on the same split."""

import importlib

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction, cat_interactions
from recbole.utils import ModelType

from recbole_tema.data.cross_domain import CrossDomainMixin
from recbole_tema.data.dataset import rows_of, split_indices
from recbole_tema.data.sequences import split_targets
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
        train, *held_out = split_indices(self)
        if self.config["train_on"] == "target":
            held_out = [index[self._in_target(index)] for index in held_out]
        parts = [self.copy(rows_of(self.inter_feat, index)) for index in (train, *held_out)]
        self._drop_unused_col()
        return parts

    def _in_target(self, index: np.ndarray) -> np.ndarray:
        return self.item_domain[self.sequences.items[index]] == self.target_domain


class _SequentialBaseline(CrossDomainMixin):
    """Sequential models: every prefix is a padded row, as RecBole trains them."""

    def build(self) -> list[Dataset]:
        plain, rows = None, {}
        if self.config["train_on"] == "target":
            rows = {phase: self._target_rows(phase) for phase in ("valid", "test")}
        if self.train_mask is not None:
            plain = self.copy(self.inter_feat)  # still a frame: the thinned events are cut here
        train, valid, test = super().build()
        if plain is not None:
            Dataset._change_feat_format(plain)
            plain.inter_feat = rows_of(plain.inter_feat, split_indices(self)[0])
            if not (np.bincount(plain.inter_feat[self.uid_field].numpy()) > 1).any():
                raise DataError(self._no_pair())
            plain.data_augmentation()
            train = self.copy(plain.inter_feat)
        if self.config["train_on"] == "target":
            valid, test = (self._joined(*rows[phase], train) for phase in ("valid", "test"))
        return [train, valid, test]

    def _no_pair(self) -> str:
        if self.config["train_on"] != "target":
            return (
                f"overlap_ratio {self.config['overlap_ratio']} leaves no user of dataset "
                f"'{self.dataset_name}' two training events to learn from"
            )
        return (
            f"no user of dataset '{self.dataset_name}' has two training events in "
            f"'{self.config['target_domain']}', so with train_on target nothing can be learnt"
        )

    def _target_rows(self, phase: str) -> tuple[Dataset, Interaction | None, Interaction]:
        """The rows of a phase's targets in the target domain, with their histories there.

        Returns:
            (a copy of the dataset, its rows of targets with a history there, None for none, the
            events of targets without one)
        """
        sequences = self.sequences
        users, positions = split_targets(sequences, phase)
        last = np.full(len(sequences.offsets) - 1, -1)
        last[users] = positions
        # Of users whose target is in another domain nothing is left.
        own = self.item_domain[sequences.items[sequences.offsets[users] + positions]]
        last[users[own != self.target_domain]] = -1
        inside = (sequences.positions <= last[sequences.users()]) & (
            self.item_domain[sequences.items] == self.target_domain
        )
        plain = self.copy(self.inter_feat)
        Dataset._change_feat_format(plain)
        plain.inter_feat = rows_of(plain.inter_feat, np.flatnonzero(inside))
        of_user = plain.inter_feat[self.uid_field].numpy()
        alone = plain.inter_feat[np.flatnonzero(np.bincount(of_user)[of_user] == 1)]
        if len(alone) == len(of_user):  # RecBole's augmentation needs a pair
            return plain, None, alone
        plain.data_augmentation()
        found = plain.inter_feat
        # RecBole makes a row of every prefix; a user's longest comes last.
        of_user = found[self.uid_field].numpy()
        found = found[np.flatnonzero(np.append(of_user[1:] != of_user[:-1], len(of_user) > 0))]
        return plain, found, alone

    def _joined(
        self, plain: Dataset, found: Interaction | None, alone: Interaction, train: Dataset
    ) -> Dataset:
        """A phase's rows as a dataset.

        A history that is empty is the padding item by itself, the least that RecBole's models
        read.

        Args:
            plain, found, alone: Of `_target_rows`. train: For the form of augmented rows.
        """
        if found is None:
            return plain.copy(_without_history(alone, train))
        if len(alone):
            found = cat_interactions([found, _without_history(alone, train)])
        return plain.copy(found)


def _without_history(events: Interaction, dataset: Dataset) -> Interaction:
    """Rows of events in the form of an augmented dataset, each with the padding item before it."""
    columns = {name: events[name] for name in events}
    for name, like in dataset.inter_feat.interaction.items():
        if name not in columns:
            columns[name] = torch.zeros((len(events), *like.shape[1:]), dtype=like.dtype)
    columns[dataset.item_list_length_field] = torch.ones(
        len(events), dtype=dataset.inter_feat[dataset.item_list_length_field].dtype
    )
    return Interaction({name: columns[name] for name in dataset.inter_feat.interaction})


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
