"""Pop: the most popular items for everyone, by counts that do not depend on the batches."""

from typing import TYPE_CHECKING

import torch
from recbole.data.interaction import Interaction
from recbole.model.general_recommender.pop import Pop as RecBolePop

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin


class Pop(RecBolePop):
    """RecBole's Pop with true counts: an item's score is its number of training events.

    RecBole 1.2.1 adds to an item's count at most once a batch, however often the batch has the
    item, and adds the negatives that its loader draws for it too. Its scores follow the shuffle
    and the batch size, and stand for popularity only loosely; no paper means that by Pop.
    """

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        super().__init__(config, dataset)
        self.label_field = config["LABEL_FIELD"]
        negatives = config["train_neg_sample_args"] or {}
        self.has_negatives = negatives.get("distribution", "none") != "none"

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Count a batch's events.

        Args:
            interaction: the training events of a batch; ``item_id`` is ``(B,)``. Where the loader
                adds negatives, its label tells them apart.

        Returns:
            Tensor: 0, as there is nothing to learn by gradients.
        """
        item = interaction[self.ITEM_ID]
        # Without negatives a label is RecBole's `threshold` on ratings; an event is an event.
        if self.has_negatives:
            item = item[interaction[self.label_field] > 0]
        self.item_cnt += torch.bincount(item, minlength=self.n_items).view(-1, 1)
        self.max_cnt = self.item_cnt.max(dim=0).values
        return torch.zeros(1, device=self.device, requires_grad=True)
