"""How much attention goes from one domain's steps to another's (AutoCDSR, arXiv 2505.21811)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from recbole_tema.errors import ConfigError
from recbole_tema.model.encoder import Block
from recbole_tema.model.packing import Layout


def cross_domain_mass(
    qkv: torch.Tensor, layout: Layout, domain: torch.Tensor, n_heads: int
) -> torch.Tensor:
    """Share of a causal attention that is paid to other domains, mean over steps and heads.

    Args:
        qkv: ``(n, 3H)`` queries, keys and values of the packed steps. domain: ``(n,)``, from 1.
    """
    total = qkv.new_zeros(())
    padded = zip(layout.pad(qkv), layout.pad(domain[:, None]), strict=True)
    for group, own in padded:
        rows, longest, _ = group.shape
        query, key, _ = group.view(rows, longest, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
        score = query @ (key * key.size(-1) ** -0.5).transpose(-2, -1)
        later = torch.ones(longest, longest, dtype=torch.bool, device=qkv.device).triu(1)
        weight = score.masked_fill(later, -torch.inf).softmax(-1)
        other = (own != own.transpose(1, 2)) & (own > 0)  # of real steps alone
        total = total + (weight * other[:, None]).sum()
    return total / (len(qkv) * n_heads)


@contextmanager
def crossings(
    encoder: nn.Module, layout: Layout, domain: torch.Tensor
) -> Iterator[list[torch.Tensor]]:
    """A list that gets `cross_domain_mass` of each `Block` in ``encoder`` as it is called.

    Raises:
        ConfigError: the blocks have no attention that can be read so.
    """
    found: list[torch.Tensor] = []

    def add(n_heads: int) -> Any:
        return lambda _module, _inputs, qkv: found.append(
            cross_domain_mass(qkv, layout, domain, n_heads)
        )

    blocks = (block for block in encoder.modules() if isinstance(block, Block))
    hooks = [block.qkv.register_forward_hook(add(block.n_heads)) for block in blocks]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ConfigError(
            "cross_attention_weight is not 0, and the attention of this block cannot be read; set "
            "block to post_norm, pre_norm or ligr"
        )
