"""TEMA's second attention level: inter- and intra-domain states become the preference."""

import math

import torch
from torch import nn

from recbole_tema.model.dropout import Dropout


class PreferenceAttention(nn.Module):
    """Attention over the states of the threads, with one query for each domain of candidates.

    At every step the threads give ``D + 1`` states: the inter-domain one and one intra-domain
    state for each domain. What a user wants next among books need not be what the threads say of
    films, so the query is the inter-domain state marked with the domain it is asked about; the
    result is added to it and normalised.
    """

    def __init__(
        self, hidden_size: int, n_domains: int, n_heads: int, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.thread = nn.Embedding(n_domains + 1, hidden_size)
        self.asked = nn.Embedding(n_domains, hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = Dropout(dropout)

    def forward(self, inter: torch.Tensor, intra: torch.Tensor) -> torch.Tensor:
        """``inter (n, H)``, ``intra (n, D, H)`` -> preferences ``(n, D, H)``, one a domain."""
        n, domains, hidden = intra.shape
        threads = torch.cat([inter[:, None], intra], dim=1) + self.thread.weight
        split = (self.n_heads, hidden // self.n_heads)
        query = self.query(inter[:, None] + self.asked.weight).view(n, domains, *split)
        key = self.key(threads).view(n, domains + 1, *split)
        value = self.value(threads).view(n, domains + 1, *split)
        score = torch.einsum("nqhc,nkhc->nhqk", query, key) / math.sqrt(split[1])
        read = torch.einsum("nhqk,nkhc->nqhc", score.softmax(-1), value).reshape(n, domains, hidden)
        return self.norm(inter[:, None] + self.dropout(self.out(read)))
