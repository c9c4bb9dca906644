"""The dataset of our own models: flat sequences, no prefix is ever materialised."""

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction

from recbole_tema.data.cross_domain import CrossDomainMixin
from recbole_tema.data.sequences import split_targets
from recbole_tema.data.split import train_lengths
from recbole_tema.errors import ConfigError


class CrossDomainSequentialDataset(CrossDomainMixin, SequentialDataset):
    """Merged sequences of users over two or more domains, in O(interactions) memory.

    ``build()`` gives the training, validation and test datasets as RecBole does; they share the
    flat arrays, and their ``inter_feat`` holds the events of that part.
    """

    def _change_feat_format(self) -> None:
        # SequentialDataset would turn every prefix into a padded row here.
        Dataset._change_feat_format(self)

    def build(self) -> list[Dataset]:
        """Split leave-one-out: ``[train, valid, test]``, the same targets as RecBole's.

        Raises:
            ConfigError: ``eval_args.order`` is not ``TO``.
        """
        if self.config["eval_args"]["order"] != "TO":
            raise ConfigError("eval_args.order must be TO: sequences are ordered by time")
        self._change_feat_format()
        return [self.copy(rows_of(self.inter_feat, index)) for index in self.split_indices()]

    def split_indices(self) -> list[np.ndarray]:
        """Row numbers of ``inter_feat`` (user by user, oldest first) in each part of the split."""
        return split_indices(self)


def rows_of(interaction: Interaction, index: np.ndarray) -> Interaction:
    """Rows of an Interaction, without the Python list that RecBole's own indexing makes."""
    index = torch.from_numpy(index)
    return Interaction({name: interaction[name][index] for name in interaction})


def split_indices(dataset: CrossDomainMixin) -> list[np.ndarray]:
    """Rows of the events of training, validation and test: three int64 arrays.

    The rows of ``dataset.inter_feat`` must be in the order of ``dataset.sequences``.
    """
    sequences = dataset.sequences
    in_train = sequences.positions < np.repeat(train_lengths(sequences.lengths), sequences.lengths)
    train = np.flatnonzero(in_train)
    if dataset.train_mask is not None:
        train = train[dataset.train_mask]
    parts = [train]
    for phase in ("valid", "test"):
        users, positions = split_targets(sequences, phase)
        parts.append(sequences.offsets[users] + positions)
    return parts
