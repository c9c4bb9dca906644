"""Exact cross-entropy over a catalogue, without storing the logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

# Logits held at once: 8 MB of float32 stay near the processor and fit any memory.
CHUNK_ELEMENTS = 1 << 21
# Rows and columns of logits, and the number that is added to each of them.
Bonus = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of weighted cross-entropies whose logits are blocks ``states_b @ table_b.T``.

    The gradients are made in the forward pass, a chunk of rows at a time: the ``(n, N)`` logits
    are neither kept nor computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        column: torch.Tensor,
        weight: torch.Tensor,
        bonus_row: torch.Tensor,
        bonus_column: torch.Tensor,
        bonus: torch.Tensor,
        smoothing: float,
        *blocks: torch.Tensor,
    ) -> torch.Tensor:
        states, tables = blocks[0::2], blocks[1::2]
        width = [len(table) for table in tables]
        certain, spread = 1 - smoothing, smoothing / sum(width)
        grad_states = [torch.zeros_like(state) for state in states]
        grad_tables = [torch.zeros_like(table) for table in tables]
        grad_bonus = torch.zeros_like(bonus)
        total = weight.new_zeros(())
        rows = max(16, CHUNK_ELEMENTS // max(1, sum(width)))
        firsts = list(range(0, len(column), rows))
        cuts = [0] * (len(firsts) + 1)
        if len(bonus_row):
            ends = bonus_row.new_tensor([*firsts, len(column)])
            cuts = torch.searchsorted(bonus_row, ends).tolist()
        for number, first in enumerate(firsts):
            part = slice(first, first + rows)
            logits = torch.cat(
                [state[part] @ table.T for state, table in zip(states, tables, strict=True)], 1
            )
            mine = slice(cuts[number], cuts[number + 1])
            place = bonus_row[mine] - first, bonus_column[mine]
            logits[place] += bonus
            wanted = certain * logits.gather(1, column[part, None]).squeeze(1)
            if smoothing:
                wanted += spread * logits.sum(1)
            top = logits.amax(1, keepdim=True)
            logits.sub_(top).exp_()
            mass = logits.sum(1, keepdim=True)
            loss = top.squeeze(1) + mass.squeeze(1).log() - wanted
            total = total + (weight[part] * loss).sum()
            # From here the buffer is d loss / d logits.
            logits.mul_(weight[part, None] / mass)
            logits.scatter_add_(1, column[part, None], -certain * weight[part, None])
            if smoothing:
                logits.sub_(spread * weight[part, None])
            grad_bonus += logits[place].sum()
            for block, piece in enumerate(logits.split(width, dim=1)):
                grad_states[block][part] = piece @ tables[block]
                grad_tables[block].addmm_(piece.T, states[block][part])
        ctx.save_for_backward(grad_bonus, *grad_states, *grad_tables)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_bonus, *saved = ctx.saved_tensors
        half = len(saved) // 2
        grads = []
        for state, table in zip(saved[:half], saved[half:], strict=True):
            grads += [grad * state, grad * table]
        return None, None, None, None, grad * grad_bonus, None, *grads


def float_blocks(blocks: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    """The blocks' tensors in one list, those of 16 bits as float32: sums over a catalogue have no
    place in 16 bits, under mixed precision too."""
    halves = (torch.float16, torch.bfloat16)
    return [
        tensor.float() if tensor.dtype in halves else tensor for block in blocks for tensor in block
    ]


def linear_cross_entropy(
    blocks: Sequence[tuple[torch.Tensor, torch.Tensor]],
    column: torch.Tensor,
    weight: torch.Tensor,
    bonus: Bonus | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """``sum_i weight_i * CE(logits_i, column_i)``; ``logits = [s_1 @ t_1.T, s_2 @ t_2.T, ...]``.

    Args:
        blocks: list of (states ``(n, H_b)``, table ``(N_b, H_b)``); the blocks' columns stand side
            by side, so that each domain's items can be scored by that domain's own state.
        column: ``(n,)`` index of the target among all columns.
        weight: ``(n,)`` weights, 1/n for the mean.
        bonus: None, or (rows ``(m,)`` ascending, columns ``(m,)``, a number): what is added to
            the logits in these places, each named once.
        smoothing: share of each target that is spread evenly over all columns (arXiv 1512.00567).
    """
    flat = float_blocks(blocks)
    if bonus is None:
        bonus = column.new_zeros(0), column.new_zeros(0), flat[0].new_zeros(())
    row, place, value = bonus
    with torch.autocast(column.device.type, enabled=False):
        weight, value = weight.to(flat[0].dtype), value.to(flat[0].dtype)
        return _cross_entropy(flat, column, weight, (row, place, value), smoothing)


def _cross_entropy(
    flat: list[torch.Tensor],
    column: torch.Tensor,
    weight: torch.Tensor,
    bonus: Bonus,
    smoothing: float,
) -> torch.Tensor:
    if not torch.is_grad_enabled():
        blocks = zip(flat[0::2], flat[1::2], strict=True)
        logits = torch.cat([state @ table.T for state, table in blocks], 1)
        logits[bonus[:2]] += bonus[2]
        each = F.cross_entropy(logits, column, reduction="none", label_smoothing=smoothing)
        return (weight * each).sum()
    return _LinearCrossEntropy.apply(column, weight, *bonus, smoothing, *flat)
