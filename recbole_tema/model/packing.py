"""Ragged sequences packed one after another; padding exists only where attention needs it.

All that a Transformer does but the attention itself is done step by step, so padded steps would be
work for nothing: two thirds of the work where each sequence is also cut into its domains'
subsequences. A ``(B, L, H)`` batch becomes ``(n, H)``, n real steps, row after row.
"""

from typing import Any

import torch


class Layout:
    """Where the steps of ``B`` sequences lie, packed and padded.

    Rows of like length are padded together: those longer than half the longest, than a quarter, an
    eighth, and the rest.

    Attributes:
        length: ``(B,)`` steps of each sequence, 0 allowed. start: ``(B,)`` its first packed step.
        row, step: ``(n,)`` sequence of each packed step, and position in it.
        groups: list of (rows, longest), the shapes of the padded groups.
        place: ``(n,)`` place of each packed step among the padded ones of all groups.
    """

    GROUPS = 4
    # With fewer padded steps than this many times the real ones, one group is quicker.
    LITTLE_PADDING = 1.2

    def __init__(self, length: torch.Tensor) -> None:
        self.length = length
        ends = length.cumsum(0)
        self.start = ends - length
        rows = torch.arange(len(length), device=length.device)
        self.row = torch.repeat_interleave(rows, length)
        self.step = torch.arange(len(self.row), device=length.device) - self.start[self.row]
        self._group(length)

    def _group(self, length: torch.Tensor) -> None:
        ordered, order = torch.sort(length, descending=True, stable=True)
        longest = int(ordered[0])
        used = int((ordered > 0).sum())
        cuts = [used]
        if used * longest >= self.LITTLE_PADDING * len(self.row):
            halves = torch.tensor([longest >> half for half in range(1, self.GROUPS)])
            shorter = (ordered[:, None] <= halves.to(length.device)).sum(0)
            cuts = [*(len(length) - shorter).clamp(max=used).tolist(), used]
        first, self.size, self.groups = 0, 0, []
        padded_start = torch.zeros_like(length)
        for cut in cuts:
            if cut == first:
                continue
            rows, longest = cut - first, int(ordered[first])
            offsets = torch.arange(rows, device=length.device) * longest + self.size
            padded_start[order[first:cut]] = offsets
            self.groups.append((rows, longest))
            self.size += rows * longest
            first = cut
        self.place = padded_start[self.row] + self.step
        self.group_lengths = ordered[:used].split([rows for rows, _ in self.groups])

    def key_masks(self) -> list[torch.Tensor]:
        """``(rows, 1, 1, longest)`` for each group, true for real steps."""
        return [
            (torch.arange(longest, device=length.device) < length[:, None])[:, None, None]
            for (_, longest), length in zip(self.groups, self.group_lengths, strict=True)
        ]

    def pad(self, packed: torch.Tensor, filling: torch.Tensor | None = None) -> list[torch.Tensor]:
        """``(n, C)`` -> a tensor ``(rows, longest, C)`` for each group, padded with 0, or with
        ``filling (C,)``."""
        if filling is None:
            flat = _PutOnce.apply(packed, self.place, self.size)
        else:
            flat = filling.expand(self.size, -1).index_copy(0, self.place, packed)
        pieces = flat.split([rows * longest for rows, longest in self.groups])
        return [
            piece.view(rows, longest, -1)
            for piece, (rows, longest) in zip(pieces, self.groups, strict=True)
        ]

    def unpad(self, padded: list[torch.Tensor], read: torch.Tensor | None = None) -> torch.Tensor:
        """The inverse of `pad`: a tensor ``(rows * longest, C)`` a group -> ``(n, C)``.

        With ``read (r,)``, packed steps without repetitions, theirs alone: ``(r, C)``.
        """
        flat = padded[0] if len(padded) == 1 else torch.cat(padded)
        return take_once(flat, self.place if read is None else self.place[read])


class _TakeOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.shape = table.shape
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(0, index, grad), None


class _PutOnce(torch.autograd.Function):
    """Rows in other places among zeros, without the copy that ``index_copy`` makes of these."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, place: torch.Tensor, size: int) -> torch.Tensor:
        ctx.save_for_backward(place)
        return rows.new_zeros(size, rows.size(1)).index_copy_(0, place, rows)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return grad.index_select(0, place), None, None


def take_once(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``table[index]`` for an ``index (n,)`` without repetitions: its gradient needs no sums."""
    return _TakeOnce.apply(table, index)
