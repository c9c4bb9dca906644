"""A softmax over sampled items: which negatives are drawn, and the cross-entropy among them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from recbole_tema.model.softmax import CHUNK_ELEMENTS, Bonus, float_blocks


class Drawn(NamedTuple):
    """Negatives of a step, each once, ascending.

    Attributes:
        column: ``(k,)`` int64 numbers of items, counted domain by domain.
        correction: ``(k,)`` float32, what their logits are lowered by: the log of how often each
            is drawn on average, less the log of how often it was.
        sizes: how many are of each domain.
    """

    column: torch.Tensor
    correction: torch.Tensor
    sizes: list[int]


class Proposal:
    """Draws items in proportion to ``(training events + 1) ** power``, with replacement.

    A step costs what its draws cost, not what the catalogue costs. The draws come from torch's
    generator of the CPU and are looked up in float64 sums, so that a seed draws the same items on
    every processor.

    Args:
        popularity: ``(n,)`` training events of the items, domain by domain.
        sizes: items of each domain. count: items to draw.
        power: 0 draws all items alike, 1 by their events.
        domains: ``all``: from the whole catalogue; ``balanced``: as many from each domain, one
            more from the first ones where they do not share evenly; ``own``: ``count`` from each.
    """

    def __init__(
        self, popularity: np.ndarray, sizes: Sequence[int], count: int, power: float, domains: str
    ) -> None:
        mass = (np.asarray(popularity, dtype=np.float64) + 1.0) ** power
        self._sums = np.concatenate([[0.0], np.cumsum(mass)])
        self._domain_ends = np.cumsum(sizes)
        if domains == "all":
            sizes, counts = [len(mass)], np.array([count])
        elif domains == "balanced":
            counts = count // len(sizes) + (np.arange(len(sizes)) < count % len(sizes))
        else:
            counts = np.full(len(sizes), count)
        ends = np.cumsum(sizes)
        low, high = self._sums[ends - sizes], self._sums[ends]
        part = np.repeat(np.arange(len(counts)), counts)
        self._low, self._width, self._last = low[part], (high - low)[part], ends[part] - 1
        self._share = np.repeat(counts / (high - low), sizes)

    def draw(self, device: torch.device) -> Drawn:
        """The negatives of one step."""
        uniform = torch.rand(len(self._low), dtype=torch.float64).numpy()
        place = np.searchsorted(self._sums, self._low + uniform * self._width, side="right") - 1
        column, times = np.unique(np.minimum(place, self._last), return_counts=True)
        expected = self.expected(column)
        correction = (np.log(expected) - np.log(times)).astype(np.float32)
        sizes = np.diff(np.searchsorted(column, self._domain_ends), prepend=0).tolist()
        column, correction = (torch.from_numpy(part).to(device) for part in (column, correction))
        return Drawn(column, correction, sizes)

    def expected(self, column: np.ndarray) -> np.ndarray:
        """``(k,)`` how often each of these items is drawn in a step on average."""
        return self._share[column] * (self._sums[column + 1] - self._sums[column])


class _SampledCrossEntropy(torch.autograd.Function):
    """As `softmax._LinearCrossEntropy`: the gradients are made in the forward pass, by chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        own: torch.Tensor,
        correction: torch.Tensor,
        weight: torch.Tensor,
        left_out: tuple[torch.Tensor, torch.Tensor],
        bonus_place: tuple[torch.Tensor, torch.Tensor],
        bonus: torch.Tensor,
        *blocks: torch.Tensor,
    ) -> torch.Tensor:
        states, tables = blocks[0::2], blocks[1::2]
        width = [len(table) for table in tables]
        lowered = (-correction).split(width)
        grad_states = [torch.empty_like(state) for state in states]
        grad_tables = [torch.zeros_like(table) for table in tables]
        grad_own, grad_bonus = torch.empty_like(own), torch.zeros_like(bonus)
        total = weight.new_zeros(())
        rows = max(16, CHUNK_ELEMENTS // max(1, sum(width)))
        firsts = list(range(0, len(own), rows))
        cuts = [_cuts(row, [*firsts, len(own)]) for row, _ in (left_out, bonus_place)]
        for number, first in enumerate(firsts):
            part = slice(first, first + rows)
            logits = [
                torch.addmm(lower, state[part], table.T)
                for lower, state, table in zip(lowered, states, tables, strict=True)
            ]
            scores = logits[0] if len(logits) == 1 else torch.cat(logits, 1)
            out, better = (
                (row[cut[number] : cut[number + 1]] - first, column[cut[number] : cut[number + 1]])
                for (row, column), cut in zip((left_out, bonus_place), cuts, strict=True)
            )
            scores[better] += bonus
            scores[out] = -torch.inf
            top = torch.maximum(scores.amax(1), own[part])
            scores.sub_(top[:, None]).exp_()
            target = (own[part] - top).exp_()
            mass = scores.sum(1) + target
            total = total + (weight[part] * (top + mass.log() - own[part])).sum()
            # From here the buffer is d loss / d logits.
            share = weight[part] / mass
            scores.mul_(share[:, None])
            grad_own[part] = target * share - weight[part]
            grad_bonus += scores[better].sum()
            for block, piece in enumerate(scores.split(width, dim=1)):
                torch.mm(piece, tables[block], out=grad_states[block][part])
                grad_tables[block].addmm_(piece.T, states[block][part])
        ctx.save_for_backward(grad_own, grad_bonus, *grad_states, *grad_tables)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_own, grad_bonus, *saved = ctx.saved_tensors
        half = len(saved) // 2
        grads = []
        for state, table in zip(saved[:half], saved[half:], strict=True):
            grads += [grad * state, grad * table]
        return grad * grad_own, None, None, None, None, grad * grad_bonus, *grads


def _cuts(row: torch.Tensor, ends: list[int]) -> list[int]:
    """Where ascending rows pass each of ``ends``."""
    return torch.searchsorted(row, row.new_tensor(ends)).tolist() if len(row) else [0] * len(ends)


def _above_mean(
    own: torch.Tensor,
    flat: Sequence[torch.Tensor],
    correction: torch.Tensor,
    left_out: tuple[torch.Tensor, torch.Tensor],
    bonus: Bonus,
) -> torch.Tensor:
    """``(n,)`` how far the targets' logits are above the mean over all items.

    The mean is estimated of the target and what was drawn, each by how rarely it is.
    """
    # In inverse proportion to how often an item is drawn on average, once for each draw.
    share = (-correction).exp()
    tables = zip(flat[0::2], flat[1::2], share.split([len(t) for t in flat[1::2]]), strict=True)
    total = own + sum(state @ (part @ table) for state, table, part in tables)
    row, column, value = bonus
    total = total.index_add(0, row, value * share[column])
    # A negative that is the row's own target has its logit, and is not counted twice.
    row, column = left_out
    total = total.index_add(0, row, -share[column] * own[row])
    count = (1 + share.sum()).expand_as(own).index_add(0, row, -share[column])
    return own - total / count


def sampled_cross_entropy(
    own: torch.Tensor,
    blocks: Sequence[tuple[torch.Tensor, torch.Tensor]],
    correction: torch.Tensor,
    left_out: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    bonus: Bonus | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Sampled softmax: the partition sum is estimated from negatives drawn from a proposal q.

    Each negative's logit is lowered by the log of its expected count K * q (log-q correction), so
    the estimate is unbiased and tends to the full softmax as K grows.

    Args:
        own: ``(n,)`` logits of the targets.
        blocks: list of (states ``(n, H)``, table ``(k_b, H)``) of the negatives, as in
            `softmax.linear_cross_entropy`.
        correction: ``(k,)`` of all blocks' columns (`Drawn`).
        left_out: rows ``(m,)`` ascending and columns ``(m,)`` where the negative drawn is the
            row's own target.
        weight: ``(n,)``, 1/n for the mean.
        bonus: None, or (rows ascending, columns, a number) added to the logits of negatives.
        smoothing: share of each target that is spread evenly over all items.
    """
    empty = left_out[0].new_zeros(0)
    if not len(correction):  # no negative of a small domain
        return own.sum() * 0.0
    row, column, value = bonus or (empty, empty, own.new_zeros(()))
    flat = float_blocks(blocks)
    own, weight, value = (part.to(flat[0].dtype) for part in (own, weight, value))
    with torch.autocast(own.device.type, enabled=False):
        correction = correction.to(own.dtype)
        loss = _SampledCrossEntropy.apply(
            own, correction, weight, left_out, (row, column), value, *flat
        )
        if smoothing:
            above = _above_mean(own, flat, correction, left_out, (row, column, value))
            loss = loss + smoothing * (weight * above).sum()
        return loss
