"""Batches of padded sequences in groups of like length: less padding is computed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import SequentialRecommender as Base
else:
    Base = object

GROUPS = 4


def length_groups(length: torch.Tensor) -> Iterator[tuple[torch.Tensor, int]]:
    """Rows of like length, those of a half, a quarter, ... of the longest together.

    Args:
        length: ``(B,)`` steps of each sequence.

    Yields:
        (rows ``(b,)`` ascending, steps of the longest among them), each row once.
    """
    longest = int(length.max())
    low = -1
    for half in range(GROUPS - 1, -1, -1):
        high = longest >> half
        rows = ((length > low) & (length <= high)).nonzero().squeeze(1)
        if len(rows):
            yield rows, max(1, int(length[rows].max()))
        low = high


class LossByLength(Base):
    """Mixed in before a sequential model of RecBole's whose loss is a mean over the batch.

    RecBole computes every step of ``MAX_ITEM_LIST_LENGTH`` for every sequence, most of them padding
    where histories are short. What stands at a sequence's last step, and so the loss, does not
    depend on the padding after it; only dropout draws other numbers.
    """

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """RecBole's loss of a batch of B rows: the mean of the groups' weighted by their rows."""
        total: Any = 0
        for rows, longest in length_groups(interaction[self.ITEM_SEQ_LEN]):
            part = {name: values[rows] for name, values in interaction.interaction.items()}
            part[self.ITEM_SEQ] = part[self.ITEM_SEQ][:, :longest]
            loss = super().calculate_loss(Interaction(part))
            total = total + loss * (len(rows) / len(interaction))
        return total
