"""Transformer encoders over item vectors, by default with the blocks of RecBole's SASRec.

Post-norm blocks (attention, then feed-forward, each followed by LayerNorm of the residual sum),
LayerNorm and dropout on item + position. Trained on whole sequences they end where RecBole's end
on prefix rows (``results/`` has the comparison). ``BLOCKS`` has the others.
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


class SwiGLU(nn.Module):
    """Feed-forward ``W_3 (silu(W_1 x) * W_2 x)`` without biases (arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, 2 * inner_size, bias=False)
        self.outer = nn.Linear(inner_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, H)`` -> ``(n, H)``."""
        gate, value = self.inner(x).chunk(2, dim=-1)
        return self.outer(F.silu(gate) * value)


class LowRank(nn.Module):
    """A low-rank map ``x A_s B_s`` for each of some streams; 0 to begin with (LoRA)."""

    def __init__(self, n_streams: int, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(n_streams, hidden_size, rank).normal_(std=0.02))
        self.up = nn.Parameter(torch.zeros(n_streams, rank, hidden_size))

    def forward(self, x: torch.Tensor, stream: int) -> torch.Tensor:
        """``x (n, H)`` of one stream -> ``(n, H)``."""
        return x @ self.down[stream] @ self.up[stream]


class Block(nn.Module):
    """Multi-head self-attention and feed-forward, post-norm.

    With a ``rank``, each of the ``n_streams`` that share the block has a low-rank adapter beside
    the feed-forward (ABXI, arXiv 2501.15118, where each has LayerNorms of its own too).
    """

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        n_heads: int,
        dropout: float,
        attn_dropout: float,
        act: str,
        eps: float,
        *,
        n_streams: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attn_dropout = attn_dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.attn_norm = nn.LayerNorm(hidden_size, eps=eps)
        self._feed_forward(hidden_size, inner_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = Dropout(dropout)
        self.act = ACTIVATIONS[act]
        self.adapter = LowRank(n_streams, hidden_size, rank) if rank else None

    def _feed_forward(self, hidden_size: int, inner_size: int) -> None:
        self.inner = nn.Linear(hidden_size, inner_size)
        self.outer = nn.Linear(inner_size, hidden_size)

    def forward(
        self,
        x: torch.Tensor,
        layout: Layout,
        masks: Sequence[torch.Tensor | None],
        read: torch.Tensor | None = None,
        stream: int = 0,
    ) -> torch.Tensor:
        """``x (n, H)`` packed as ``layout`` says -> ``(n, H)``, or ``(r, H)`` at ``read (r,)``.

        ``masks`` has a ``(rows, 1, 1, L)`` bool for each group of the layout, or None for causal;
        ``stream`` numbers the adapter that is read.
        """
        attended = self.mix(x, layout, masks, read)
        x = x if read is None else take_once(x, read)
        x = self.attn_norm(x + attended)
        return self.norm(x + self.feed(x, stream))

    def feed(self, x: torch.Tensor, stream: int) -> torch.Tensor:
        """``(n, H)`` -> ``(n, H)``: feed-forward, with the stream's adapter, and dropout."""
        fed = self.dropout(self.transform(x))
        return fed if self.adapter is None else fed + self.dropout(self.adapter(x, stream))

    def transform(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, H)`` -> ``(n, H)``: the feed-forward alone."""
        return self.outer(self.act(self.inner(x)))

    def mix(
        self,
        x: torch.Tensor,
        layout: Layout,
        masks: Sequence[torch.Tensor | None],
        read: torch.Tensor | None,
    ) -> torch.Tensor:
        """Self-attention and dropout: ``x (n, H)`` -> ``(n, H)``, or ``(r, H)`` at ``read``."""
        hidden = x.size(1)
        attended = []
        for group, mask in zip(layout.pad(self.qkv(x)), masks, strict=True):
            rows, longest, _ = group.shape
            heads = group.view(rows, longest, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
            query, key, value = heads
            attended.append(
                self.attend(query, key, value, mask).transpose(1, 2).reshape(-1, hidden)
            )
        return self.dropout(self.out(layout.unpad(attended, read)))

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


class PreNormBlock(Block):
    """LayerNorm before attention and feed-forward, nothing on the residual path."""

    def forward(
        self,
        x: torch.Tensor,
        layout: Layout,
        masks: Sequence[torch.Tensor | None],
        read: torch.Tensor | None = None,
        stream: int = 0,
    ) -> torch.Tensor:
        """As `Block.forward`."""
        attended = self.mix(self.attn_norm(x), layout, masks, read)
        x = (x if read is None else take_once(x, read)) + attended
        return x + self.feed(self.norm(x), stream)


class LigrBlock(Block):
    """Pre-norm with gates on what is added, and SwiGLU (LiGR, arXiv 2502.03417; eSASRec).

    ``z = x + sigmoid(W_1 x) * attention(norm(x))``, ``z + sigmoid(W_2 z) * swiglu(norm(z))``.
    """

    def _feed_forward(self, hidden_size: int, inner_size: int) -> None:
        self.swiglu = SwiGLU(hidden_size, inner_size)
        self.attn_gate = nn.Linear(hidden_size, hidden_size)
        self.gate = nn.Linear(hidden_size, hidden_size)

    def transform(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, H)`` -> ``(n, H)``: the feed-forward alone."""
        return self.swiglu(x)

    def forward(
        self,
        x: torch.Tensor,
        layout: Layout,
        masks: Sequence[torch.Tensor | None],
        read: torch.Tensor | None = None,
        stream: int = 0,
    ) -> torch.Tensor:
        """As `Block.forward`."""
        attended = self.mix(self.attn_norm(x), layout, masks, read)
        x = x if read is None else take_once(x, read)
        x = x + self.attn_gate(x).sigmoid() * attended
        return x + self.gate(x).sigmoid() * self.feed(self.norm(x), stream)


BLOCKS: dict[str, type[Block]] = {
    "post_norm": Block,
    "pre_norm": PreNormBlock,
    "ligr": LigrBlock,
}


class SequenceEncoder(nn.Module):
    """Positions, LayerNorm, dropout and ``n_layers`` blocks over packed sequences.

    Blocks that do not end with a LayerNorm are followed by one, after the last.

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
        block: str = "post_norm",
        n_streams: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.position = nn.Embedding(max_length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = Dropout(dropout)
        sizes = (hidden_size, inner_size, n_heads, dropout, attn_dropout, act, eps)
        self.blocks = nn.ModuleList(
            BLOCKS[block](*sizes, n_streams=n_streams, rank=rank) for _ in range(n_layers)
        )
        self.last_norm = None if block == "post_norm" else nn.LayerNorm(hidden_size, eps=eps)

    def forward(
        self,
        vectors: torch.Tensor,
        layout: Layout,
        read: torch.Tensor | None = None,
        stream: int = 0,
    ) -> torch.Tensor:
        """``vectors (n, H)``, packed as ``layout`` says -> states ``(n, H)``.

        With ``read (r,)``, packed steps without repetitions, only their states ``(r, H)``: the last
        block leaves out what nobody reads. ``stream`` numbers the blocks' adapters, if they have.
        """
        if not len(vectors):
            return vectors
        x = self.dropout(self.norm(vectors + self.position(layout.step)))
        masks = [None] * len(layout.groups) if self.causal else layout.key_masks()
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, layout, masks, stream=stream)
        x = last(x, layout, masks, read, stream)
        return x if self.last_norm is None else self.last_norm(x)


def init_as_recbole(module: nn.Module, std: float = 0.02) -> None:
    """RecBole's initialisation: N(0, std) for Linear and Embedding, no bias, unit LayerNorm."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.data.normal_(mean=0.0, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        module.bias.data.zero_()
    if isinstance(module, nn.LayerNorm):
        module.bias.data.zero_()
        module.weight.data.fill_(1.0)
