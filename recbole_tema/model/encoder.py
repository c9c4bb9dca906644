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

    With a ``width``, steps of padding are keys too, zero vectors, ``width`` keys a row. With a
    ``rank``, each of the ``n_streams`` that share the block has a low-rank adapter beside
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
        width: int = 0,
        n_streams: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.width = width
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

        ``masks`` has a ``(rows, 1, 1 or L, keys)`` bool for each group of the layout, or None for
        causal; ``stream`` numbers the adapter that is read.
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
        return self.dropout(self.out(self.attended(self.qkv(x), layout, masks, read)))

    def attended(
        self,
        qkv: torch.Tensor,
        layout: Layout,
        masks: Sequence[torch.Tensor | None],
        read: torch.Tensor | None,
    ) -> torch.Tensor:
        """``qkv (n, 3H)``, queries, keys and values -> what was read ``(n or r, H)``."""
        bias = self.qkv.bias  # all that is left of the projection of zeros
        hidden = self.out.in_features
        attended = []
        groups = layout.pad(qkv, bias if self.width else None)
        for group, mask in zip(groups, masks, strict=True):
            rows, longest, _ = group.shape
            heads = group.view(rows, longest, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
            query, key, value = heads
            if self.width:
                zeros = bias.view(3, 1, self.n_heads, 1, -1)[1:]
                zeros = zeros.expand(-1, rows, -1, self.width - longest, -1)
                key, value = torch.cat([key, zeros[0]], 2), torch.cat([value, zeros[1]], 2)
            attended.append(
                self.attend(query, key, value, mask).transpose(1, 2).reshape(-1, hidden)
            )
        return layout.unpad(attended, read)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """``(B, n_heads, L, C)``, keys and values ``(B, n_heads, K, C)`` -> as the queries."""
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


class SASRecBlock(Block):
    """The block of the first SASRec (arXiv 1808.09781), as PyTorch code has it.

    Queries are normalised, keys and values are not; what was read is added to the normalised input,
    and the feed-forward to the normalised sum. There is dropout on the attention weights and on
    both layers of the feed-forward.
    """

    def transform(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, H)`` -> ``(n, H)``: the feed-forward alone."""
        return self.outer(self.act(self.dropout(self.inner(x))))

    def forward(
        self,
        x: torch.Tensor,
        layout: Layout,
        masks: Sequence[torch.Tensor | None],
        read: torch.Tensor | None = None,
        stream: int = 0,
    ) -> torch.Tensor:
        """As `Block.forward`."""
        hidden = x.size(1)
        (of_query, of_memory), (query_bias, memory_bias) = (
            part.split([hidden, 2 * hidden]) for part in (self.qkv.weight, self.qkv.bias)
        )
        normed = self.attn_norm(x)
        query, memory = F.linear(normed, of_query, query_bias), F.linear(x, of_memory, memory_bias)
        attended = self.attended(torch.cat([query, memory], dim=1), layout, masks, read)
        normed = normed if read is None else take_once(normed, read)
        x = self.norm(normed + self.out(attended))
        return x + self.feed(x, stream)


BLOCKS: dict[str, type[Block]] = {
    "post_norm": Block,
    "pre_norm": PreNormBlock,
    "ligr": LigrBlock,
    "sasrec": SASRecBlock,
}


class SequenceEncoder(nn.Module):
    """Positions, LayerNorm, dropout and ``n_layers`` blocks over packed sequences.

    Blocks that do not end with a LayerNorm are followed by one, after the last; the first SASRec's
    have none before them.

    Where sequences are padded for the attention, they are padded on the right: with a causal mask
    no real step can see a padded one, so no key mask is needed. Without ``padding_mask`` every step
    sees ``max_length`` keys, those of padding being zero vectors, as in code that pads all
    sequences to one length and masks no keys.
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
        padding_mask: bool = True,
        n_streams: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.width = 0 if padding_mask else max_length
        self.position = nn.Embedding(max_length, hidden_size)
        self.norm = None if block == "sasrec" else nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = Dropout(dropout)
        sizes = (hidden_size, inner_size, n_heads, dropout, attn_dropout, act, eps)
        self.blocks = nn.ModuleList(
            BLOCKS[block](*sizes, width=self.width, n_streams=n_streams, rank=rank)
            for _ in range(n_layers)
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
        x = vectors + self.position(layout.step)
        x = self.dropout(x if self.norm is None else self.norm(x))
        masks = self.masks(layout)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, layout, masks, stream=stream)
        x = last(x, layout, masks, read, stream)
        return x if self.last_norm is None else self.last_norm(x)

    def masks(self, layout: Layout) -> Sequence[torch.Tensor | None]:
        """For each group, which keys a step sees, as `Block` takes it."""
        if not self.width:
            return [None] * len(layout.groups) if self.causal else layout.key_masks()
        step = torch.arange(self.width, device=layout.length.device)
        if not self.causal:
            return [step[None, None, None] >= 0] * len(layout.groups)
        return [
            (step >= length[:, None, None]).logical_or(step <= step[:longest, None])[:, None]
            for (_, longest), length in zip(layout.groups, layout.group_lengths, strict=True)
        ]

    def of_nothing(self) -> torch.Tensor:
        """``(H,)``: what is left where there is no step, only padding."""
        if self.last_norm is None:
            return torch.zeros_like(self.position.weight[0])
        return self.last_norm.bias


def init_as_recbole(module: nn.Module, std: float = 0.02) -> None:
    """RecBole's initialisation: N(0, std) for Linear and Embedding, no bias, unit LayerNorm."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.data.normal_(mean=0.0, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        module.bias.data.zero_()
    if isinstance(module, nn.LayerNorm):
        module.bias.data.zero_()
        module.weight.data.fill_(1.0)


def init_as_xavier(module: nn.Module) -> None:
    """The initialisation of LLM4CDSR's authors: Xavier normal for all matrices, PyTorch's biases.

    PyTorch's own attention starts with biases of 0, and so does the one here.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.xavier_normal_(module.weight)
    if isinstance(module, Block):
        nn.init.zeros_(module.qkv.bias)
        nn.init.zeros_(module.out.bias)
