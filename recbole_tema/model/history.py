"""What each step of packed sequences has had so far, before its window too."""

from dataclasses import dataclass
from functools import cached_property

import torch

from recbole_tema.model.packing import Layout


@dataclass(frozen=True)
class History:
    """The items that each of ``n`` rows, steps of some sequences, has had.

    An item counts from its first event on, so a sequence's items are told once, with the step they
    are had from, however many of its steps are rows: ``m`` is at most the number of events.

    Attributes:
        key: ``(m,)`` int64 ascending, ``sequence * n_items + item``, each pair once.
        since: ``(m,)`` the first step that has had it, 0 where it came before the window.
        sequence, step: ``(n,)`` sequence and step of each row.
        n_items: size of the catalogue, padding included.
    """

    key: torch.Tensor
    since: torch.Tensor
    sequence: torch.Tensor
    step: torch.Tensor
    n_items: int

    @classmethod
    def until(
        cls,
        read: torch.Tensor,
        layout: Layout,
        items: torch.Tensor,
        n_items: int,
        earlier: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> "History":
        """What the packed steps ``read (r,)`` have had, themselves included: r rows.

        Args:
            layout: how the sequences are packed (`packing.Layout`). items: ``(n,)`` packed items.
            earlier: None, or (sequences ``(e,)``, items ``(e,)``): what was had before the first
                packed step.
        """
        key, since = layout.row * n_items + items, layout.step
        if earlier is not None:
            sequence, before = earlier
            key = torch.cat([sequence * n_items + before, key])
            since = torch.cat([torch.zeros_like(before), since])
        # Stable: of a pair's events the first comes first.
        key, order = torch.sort(key, stable=True)
        first = torch.ones_like(key, dtype=torch.bool)
        first[1:] = key[1:] != key[:-1]
        return cls(key[first], since[order[first]], layout.row[read], layout.step[read], n_items)

    def only(self, rows: torch.Tensor | slice, items: torch.Tensor) -> "History":
        """Of the rows that are true in ``rows (n,)``, numbered anew, the items that are true in
        ``items (n_items,)``."""
        kept = items[self.key % self.n_items]
        sequence, step = self.sequence[rows], self.step[rows]
        return History(self.key[kept], self.since[kept], sequence, step, self.n_items)

    @cached_property
    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, items) ``(p,)`` of all that the rows have had, each pair once, rows ascending."""
        if not len(self.key) or not len(self.step):
            return self.key[:0], self.key[:0]
        # A sequence's items in the order they came: what a row has had is the front of them.
        width = 1 + torch.maximum(self.since.max(), self.step.max())
        came, order = torch.sort(self.key // self.n_items * width + self.since, stable=True)
        start = torch.searchsorted(came, self.sequence * width)
        count = torch.searchsorted(came, self.sequence * width + self.step, right=True) - start
        row = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
        shift = torch.repeat_interleave(start - (count.cumsum(0) - count), count)
        place = shift + torch.arange(len(row), device=count.device)
        return row, (self.key % self.n_items)[order][place]

    def has(self, item: torch.Tensor) -> torch.Tensor:
        """``item (n,)`` -> ``(n,)`` bool: whether each row has had its item."""
        if not len(self.key):
            return torch.zeros_like(item, dtype=torch.bool)
        wanted = self.sequence * self.n_items + item
        found = torch.searchsorted(self.key, wanted).clamp(max=len(self.key) - 1)
        return (self.key[found] == wanted) & (self.since[found] <= self.step)
