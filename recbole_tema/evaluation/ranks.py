"""Ranks of targets among the scores of their candidates, on CPU or an accelerator."""

import numpy as np
import torch

# Scores looked at in one go: what fits a CPU's cache, and what a GPU has room for.
CPU_BLOCK = 1 << 20
ACCELERATOR_BLOCK = 1 << 27


def rows_per_block(width: int, device: torch.device) -> int:
    """Rows of ``width`` scores to look at in one go."""
    block = CPU_BLOCK if device.type == "cpu" else ACCELERATOR_BLOCK
    return max(1, block // max(width, 1))


def comparable(scores: torch.Tensor) -> torch.Tensor:
    """Scores without gradient; half precision on the CPU as float32, which NumPy can read."""
    scores = scores.detach()
    if scores.device.type == "cpu" and scores.dtype not in (torch.float32, torch.float64):
        return scores.float()
    return scores


def take_columns(scores: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """``scores[:, items]``; NumPy's take is several times faster than PyTorch's on a CPU."""
    if scores.device.type == "cpu":
        return torch.from_numpy(np.take(scores.numpy(), items.numpy(), axis=1))
    return scores.index_select(1, items)


def count_true(mask: torch.Tensor) -> torch.Tensor:
    """``(B,)`` true values of each row of ``mask`` ``(B, C)``."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1))
    return mask.sum(dim=1)


def count_above(
    candidates: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates that beat or tie the target.

    Args:
        candidates: ``(B, C)`` scores. target: ``(B,)`` scores. mask: ``(B, C)`` bool of the
            columns that count, all without it.

    Returns:
        (above, equal): both ``(B,)`` int64.
    """
    above, equal = candidates > target[:, None], candidates == target[:, None]
    if mask is not None:
        above, equal = above & mask, equal & mask
    return count_true(above), count_true(equal)


def rows_may_be_non_finite(candidates: torch.Tensor) -> torch.Tensor:
    """``(B,)`` rows that hold a NaN or infinite score: both extremes are finite in the others."""
    return ~(torch.isfinite(candidates.amin(dim=1)) & torch.isfinite(candidates.amax(dim=1)))


def count_non_finite(candidates: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """``(B,)`` NaN or infinite scores of each row, among the columns of ``mask``."""
    bad = ~torch.isfinite(candidates)
    return count_true(bad if mask is None else bad & mask)


def break_ties(above: torch.Tensor, ties: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Zero-based rank: the target takes one of the ``ties + 1`` tied places at random.

    Args:
        above, ties: ``(B,)`` other candidates that score higher, and the same.
        draw: ``(B,)`` float64 in [0, 1), the row's own random number.
    """
    return above + (draw * (ties + 1).double()).long()
