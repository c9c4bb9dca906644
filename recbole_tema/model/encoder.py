"""Transformer encoders over item vectors, with the blocks of RecBole's SASRec.

Post-norm blocks (attention, then feed-forward, each followed by LayerNorm of the residual sum),
LayerNorm and dropout on item + position. Trained on whole sequences they end where RecBole's end
on prefix rows (``results/`` has the comparison).
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from recbole_tema.model.dropout import Dropout, dropout
from recbole_tema.model.packing import Layout, take_once

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


class Block(nn.Module):
    """Multi-head self-attention and feed-forward, post-norm."""

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        n_heads: int,
        dropout: float,
        attn_dropout: float,
        act: str,
        eps: float,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attn_dropout = attn_dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.attn_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.inner = nn.Linear(hidden_size, inner_size)
        self.outer = nn.Linear(inner_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = Dropout(dropout)
        self.act = ACTIVATIONS[act]

    def forward(
        self,
        x: torch.Tensor,
        layout: Layout,
        masks: Sequence[torch.Tensor | None],
        read: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``x (n, H)`` packed as ``layout`` says -> ``(n, H)``, or ``(r, H)`` at ``read (r,)``.

        ``masks`` has a ``(rows, 1, 1, L)`` bool for each group of the layout, or None for causal.
        """
        hidden = x.size(1)
        attended = []
        for group, mask in zip(layout.pad(self.qkv(x)), masks, strict=True):
            rows, longest, _ = group.shape
            heads = group.view(rows, longest, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
            query, key, value = heads
            attended.append(
                self.attend(query, key, value, mask).transpose(1, 2).reshape(-1, hidden)
            )
        attended = layout.unpad(attended, read)
        x = x if read is None else take_once(x, read)
        x = self.attn_norm(x + self.dropout(self.out(attended)))
        return self.norm(x + self.dropout(self.outer(self.act(self.inner(x)))))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Each ``(B, n_heads, L, C)`` -> ``(B, n_heads, L, C)``."""
        if not (self.training and self.attn_dropout and query.device.type == "cpu"):
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=self.attn_dropout if self.training else 0.0,
            )
        # What PyTorch does on a CPU where there is dropout, with the quicker draws.
        if mask is None:
            mask = torch.ones(query.size(2), query.size(2), dtype=torch.bool).tril()
        score = query @ (key * key.size(-1) ** -0.5).transpose(-2, -1)
        weight = score.masked_fill(~mask, -torch.inf).softmax(-1)
        return dropout(weight, self.attn_dropout, True) @ value


class SequenceEncoder(nn.Module):
    """Positions, LayerNorm, dropout and ``n_layers`` blocks over packed sequences.

    Where sequences are padded for the attention, they are padded on the right: with a causal mask
    no real step can see a padded one, so no key mask is needed.
    """

    def __init__(
        self,
        hidden_size: int,
        max_length: int,
        *,
        n_layers: int,
        n_heads: int,
        inner_size: int,
        dropout: float,
        attn_dropout: float,
        act: str = "gelu",
        eps: float = 1e-12,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.position = nn.Embedding(max_length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(hidden_size, inner_size, n_heads, dropout, attn_dropout, act, eps)
            for _ in range(n_layers)
        )

    def forward(
        self, vectors: torch.Tensor, layout: Layout, read: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``vectors (n, H)``, packed as ``layout`` says -> states ``(n, H)``.

        With ``read (r,)``, packed steps without repetitions, only their states ``(r, H)``: the last
        block leaves out what nobody reads.
        """
        if not len(vectors):
            return vectors
        x = self.dropout(self.norm(vectors + self.position(layout.step)))
        masks = [None] * len(layout.groups) if self.causal else layout.key_masks()
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, layout, masks)
        return last(x, layout, masks, read)


def init_as_recbole(module: nn.Module, std: float = 0.02) -> None:
    """RecBole's initialisation: N(0, std) for Linear and Embedding, no bias, unit LayerNorm."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.data.normal_(mean=0.0, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        module.bias.data.zero_()
    if isinstance(module, nn.LayerNorm):
        module.bias.data.zero_()
        module.weight.data.fill_(1.0)
