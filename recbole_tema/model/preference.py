"""TEMA's second level: inter- and intra-domain states become one preference for each domain."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from recbole_tema.model.dropout import Dropout
from recbole_tema.model.encoder import LowRank, SwiGLU


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


class AlignedPreference(nn.Module):
    """The preference for a domain is of the merged sequence and of that domain's own alone.

    As in ABXI (arXiv 2501.15118): ``LN(h + P h + A_k h) + LN(h_k + P_k h_k)`` with the inter-domain
    state h, the intra-domain state h_k, SwiGLU projectors P and a low-rank adapter A_k a domain.
    """

    def __init__(
        self,
        hidden_size: int,
        n_domains: int,
        inner_size: int,
        rank: int,
        dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.shared = SwiGLU(hidden_size, inner_size)
        self.adapter = LowRank(n_domains, hidden_size, rank) if rank else None
        self.own = nn.ModuleList(SwiGLU(hidden_size, inner_size) for _ in range(n_domains))
        self.inter_norms, self.intra_norms = (
            nn.ModuleList(nn.LayerNorm(hidden_size, eps=eps) for _ in range(n_domains))
            for _ in range(2)
        )
        self.dropout = Dropout(dropout)

    def forward(self, inter: torch.Tensor, intra: torch.Tensor) -> torch.Tensor:
        """``inter (n, H)``, ``intra (n, D, H)`` -> preferences ``(n, D, H)``, one a domain."""
        shared = inter + self.dropout(self.shared(inter))
        joined = []
        for domain, own in enumerate(intra.unbind(1)):
            merged = shared
            if self.adapter is not None:
                merged = merged + self.dropout(self.adapter(inter, domain))
            own = own + self.dropout(self.own[domain](own))
            joined.append(self.inter_norms[domain](merged) + self.intra_norms[domain](own))
        return torch.stack(joined, dim=1)


class DomainToken(nn.Module):
    """Turns one state into a preference for each domain, by a learned vector of the domain.

    State and vector pass one hidden layer, whose result is added to the state: nothing at first,
    as its weights start at 0.
    """

    def __init__(self, hidden_size: int, n_domains: int, dropout: float) -> None:
        super().__init__()
        self.token = nn.Embedding(n_domains, hidden_size)
        self.inner = nn.Linear(hidden_size, hidden_size)
        self.outer = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)

    def start(self) -> None:
        """To be called when all weights are drawn."""
        nn.init.zeros_(self.outer.weight)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """``(n, H)`` -> preferences ``(n, D, H)``, one a domain."""
        asked = F.gelu(self.inner(state)[:, None] + self.token.weight)
        return state[:, None] + self.dropout(self.outer(asked))
