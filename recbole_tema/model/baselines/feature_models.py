"""RecBole's models of item features: FDSA, GRU4RecF and SASRecF embed each item's once a batch.

They and DIN and DIEN take more than one field of numbers, which RecBole's layers do not.
"""

from typing import TYPE_CHECKING

import torch
from recbole.model.layers import ContextSeqEmbLayer, FeatureSeqEmbLayer
from recbole.model.sequential_recommender.dien import DIEN as RecBoleDIEN
from recbole.model.sequential_recommender.din import DIN as RecBoleDIN
from recbole.model.sequential_recommender.fdsa import FDSA as RecBoleFDSA
from recbole.model.sequential_recommender.gru4recf import GRU4RecF as RecBoleGRU4RecF
from recbole.model.sequential_recommender.sasrecf import SASRecF as RecBoleSASRecF
from torch.nn import functional as F

from recbole_tema.model.by_length import LossByLength

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import ContextRecommender as Model
    from recbole.model.layers import ContextSeqEmbAbstractLayer as Layer

    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin
else:
    Layer = Model = object


class ManyNumbers(Layer):
    """Mixed in before RecBole's layers of features: it joins fields of numbers side by side."""

    def embed_float_fields(
        self, float_fields: torch.Tensor | None, type: str, embed: bool = True
    ) -> torch.Tensor | None:
        """RecBole's embedding of numbers.

        Args:
            float_fields: ``(..., 1, 2 F)``, value and bucket of each field in turn, as RecBole
                1.2.1 joins them; its embedding wants ``(..., F, 2)``. None for no fields.
            type: ``"item"`` or ``"user"``.

        Returns:
            ``(..., F, H)``, or None.
        """
        if float_fields is not None:
            float_fields = float_fields.reshape(*float_fields.shape[:-2], -1, 2)
        return super().embed_float_fields(float_fields, type, embed)


class ContextNumbers(ManyNumbers, ContextSeqEmbLayer):
    """RecBole's layer of user and item features, for any number of fields of numbers."""


class OncePerItem(ManyNumbers, FeatureSeqEmbLayer):
    """RecBole's layer of item features, with the work done once for each item of a batch.

    RecBole 1.2.1 looks up and pools the features of every step, padding included: a field of
    words costs ``B * L * W * H`` numbers several times over, W the longest list of words. A batch
    has few different items in comparison, and most lists of words are far shorter
    (`benchmarks/baseline_speed.py`).
    """

    def forward(
        self, user_idx: torch.Tensor | None, item_idx: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor | None], ...]:
        """RecBole's features of the items, the same numbers.

        Args:
            user_idx: None. item_idx: ``(B, L)``.

        Returns:
            Two dicts, of sparse and of dense features: ``"item"`` -> ``(B, L, fields, H)``, or
            None where there are none of that kind.
        """
        items, place = item_idx.unique(return_inverse=True)
        found = super().forward(user_idx, items[None])
        return tuple({name: spread(table, place) for name, table in kind.items()} for kind in found)

    def embed_token_seq_fields(
        self, token_seq_fields: list[torch.Tensor], type: str
    ) -> torch.Tensor | None:
        """RecBole's pooled words, summed in place where the pooling is a sum or a mean.

        Args:
            token_seq_fields: list of ``(..., W)`` words, 0 for padding. type: ``"item"``.

        Returns:
            ``(..., fields, H)``; None for no fields.
        """
        if self.pooling_mode not in ("mean", "sum") or not token_seq_fields:
            return super().embed_token_seq_fields(token_seq_fields, type)
        tables = self.token_seq_embedding_table[type]
        pooled = [
            F.embedding_bag(
                words.flatten(0, -2), table.weight, mode=self.pooling_mode, padding_idx=0
            ).view(*words.shape[:-1], 1, -1)
            for words, table in zip(token_seq_fields, tables, strict=True)
        ]
        return torch.cat(pooled, dim=-2)


def spread(table: torch.Tensor | None, place: torch.Tensor) -> torch.Tensor | None:
    """``(1, n, fields, H)`` and ``(B, L)`` -> ``(B, L, fields, H)``; None stays None."""
    if table is None:
        return None
    # As an embedding: the gradient of `table[place]` adds up in any order where threads are many.
    flat = F.embedding(place, table[0].flatten(1))
    return flat.view(*place.shape, *table.shape[2:])


class QuickFeatures(LossByLength):
    """Mixed in before a model of RecBole's that has a layer of item features."""

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        super().__init__(config, dataset)
        # The layer has its parameters and its place in the order of random numbers by now.
        self.feature_embed_layer.__class__ = OncePerItem


class FDSA(QuickFeatures, RecBoleFDSA):
    """RecBole's FDSA, its features embedded once for each item of a batch."""


class GRU4RecF(QuickFeatures, RecBoleGRU4RecF):
    """RecBole's GRU4RecF, its features embedded once for each item of a batch."""


class SASRecF(QuickFeatures, RecBoleSASRecF):
    """RecBole's SASRecF, its features embedded once for each item of a batch."""


class ContextFeatures(Model):
    """Mixed in before a model of RecBole's that reads features of users and of all items."""

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
        super().__init__(config, dataset)
        self.embedding_layer.__class__ = ContextNumbers


class DIN(ContextFeatures, RecBoleDIN):
    """RecBole's DIN, with any number of fields of numbers."""


class DIEN(ContextFeatures, RecBoleDIEN):
    """RecBole's DIEN, with any number of fields of numbers."""
