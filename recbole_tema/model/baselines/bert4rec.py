"""BERT4Rec: RecBole's, whose loss is computed for the masked steps alone."""

import torch
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender.bert4rec import BERT4Rec as RecBoleBERT4Rec

from recbole_tema.model.by_length import length_groups
from recbole_tema.model.softmax import linear_cross_entropy


class BERT4Rec(RecBoleBERT4Rec):
    """RecBole's BERT4Rec with the same loss at a part of the work.

    RecBole 1.2.1 gives each sequence ``mask_ratio * MAX_ITEM_LIST_LENGTH`` masked places, fills
    those that it does not need with padding, computes the logits of all of them over the whole
    catalogue, and multiplies the padding's losses by 0. Most places are padding where histories
    are short. Here the logits are those of the masked steps, a chunk at a time
    (`benchmarks/baseline_speed.py`).
    """

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """The mean cross-entropy of the masked steps, as RecBole's but for rounding.

        Args:
            interaction: a batch of RecBole's ``mask_itemseq``: the masked sequences ``(B, L)``;
                places ``(B, M)`` of the masked steps in them, 0 for padding, and their items.
        """
        if self.loss_type != "CE":
            return super().calculate_loss(interaction)
        places = interaction[self.MASK_INDEX]
        # As in RecBole, which tells padding by place 0: a masked first step is not learned.
        if not (places > 0).any():  # RecBole would divide by 0
            return super().calculate_loss(interaction)
        states, wanted = [], []
        for rows, longest in length_groups(interaction[self.ITEM_SEQ_LEN]):
            output = self.forward(interaction[self.MASK_ITEM_SEQ][rows, :longest])
            row, column = (places[rows] > 0).nonzero(as_tuple=True)
            states.append(output[row, places[rows[row], column]])
            wanted.append(interaction[self.POS_ITEMS][rows[row], column])
        states, wanted = torch.cat(states), torch.cat(wanted)
        # The bias of each item is one more column, which every state has 1 in.
        states = torch.cat([states, states.new_ones(len(states), 1)], 1)
        table = torch.cat(
            [self.item_embedding.weight[: self.n_items], self.output_bias[:, None]], 1
        )
        # In float32 under mixed precision too: 1/n of 16 bits does not sum to 1.
        weight = torch.full((len(states),), 1 / len(states), device=states.device)
        return linear_cross_entropy([(states, table)], wanted, weight)
