"""Dropout that draws its random numbers several times faster on a CPU than PyTorch's."""

import torch
from torch import nn
from torch.nn import functional as F

LEVELS = 1 << 16


class Dropout(nn.Module):
    """``torch.nn.Dropout``, but on a CPU one 64-bit draw decides over four elements.

    PyTorch draws one Bernoulli number an element, which took a sixth of TEMA's training time. Here
    each element gets 16 random bits: ``p`` is rounded to a multiple of 1/65536, and the scale of
    what is kept follows the rounded value, so the expectation is exact. Draws come from PyTorch's
    default generator, so seeds and saved random states work as ever.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape -> the same shape."""
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Functional form of `Dropout`."""
    if not training or p == 0.0:
        return x
    dropped = round(p * LEVELS)
    if x.device.type != "cpu" or dropped >= LEVELS:
        return F.dropout(x, p, training)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    bits.random_(torch.iinfo(torch.int64).min, None)
    level = bits.view(torch.int16)[: x.numel()].view(x.shape)
    keep = (level >= dropped - LEVELS // 2).to(x.dtype)
    return x * keep.mul_(LEVELS / (LEVELS - dropped))
