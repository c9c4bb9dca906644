"""The dataset of our own models: flat sequences, no prefix is ever materialised."""

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction

from recbole_tema.data.cross_domain import CrossDomainMixin
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
        """The parts of the split: ``[train, valid, test]``.

        Raises:
            ConfigError: ``eval_args.order`` is not ``TO``.
        """
        if self.config["eval_args"]["order"] != "TO":
            raise ConfigError("eval_args.order must be TO: sequences are ordered by time")
        self._change_feat_format()
        return [self.copy(rows_of(self.inter_feat, index)) for index in self.split_indices()]


def rows_of(interaction: Interaction, index: np.ndarray) -> Interaction:
    """Rows of an Interaction, without the Python list that RecBole's own indexing makes."""
    index = torch.from_numpy(index)
    return Interaction({name: interaction[name][index] for name in interaction})
