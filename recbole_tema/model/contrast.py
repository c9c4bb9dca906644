"""The symmetric contrastive loss with soft targets of LLM4CDSR (arXiv 2504.18383)."""

import torch
from torch.nn import functional as F


def soft_contrastive_loss(x: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy between the similarities of pairs and a soft target from within each side.

    Args:
        x, y: ``(n, H)``; row ``i`` of ``x`` belongs to row ``i`` of ``y``.

    Returns:
        scalar, the mean over rows and both directions; 0 where there are fewer than two pairs.
    """
    if len(x) < 2:
        return x.sum() * 0.0
    logits = x @ y.T / temperature
    target = F.softmax((x @ x.T + y @ y.T) / 2 * temperature, dim=-1)
    forward = -(target * F.log_softmax(logits, dim=-1)).sum(1)
    backward = -(target.T * F.log_softmax(logits.T, dim=-1)).sum(1)
    return ((forward + backward) / 2).mean()
