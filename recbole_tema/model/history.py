"""What each step of packed sequences has had so far, as pairs of a row and an item."""

from dataclasses import dataclass

import torch

from recbole_tema.model.packing import Layout


@dataclass(frozen=True)
class History:
    """The items that each of ``n`` rows has had, each pair once, ascending by row, then item.

    Attributes:
        row, item: ``(m,)`` int64. n_items: size of the catalogue, padding included.
    """

    row: torch.Tensor
    item: torch.Tensor
    n_items: int

    @classmethod
    def until(
        cls, read: torch.Tensor, layout: Layout, items: torch.Tensor, n_items: int
    ) -> "History":
        """What the packed steps ``read (r,)`` have had, themselves included: r rows.

        Args:
            layout: how the sequences are packed (`packing.Layout`). items: ``(n,)`` packed items.
        """
        start = layout.start[layout.row[read]]
        count = read - start + 1
        row = torch.repeat_interleave(torch.arange(len(read), device=read.device), count)
        # Counted from the start of each step's own sequence.
        shift = torch.repeat_interleave(start - (count.cumsum(0) - count), count)
        had = items[shift + torch.arange(len(row), device=read.device)]
        key = torch.unique(row * n_items + had)
        return cls(key // n_items, key % n_items, n_items)

    def only(self, rows: torch.Tensor, items: torch.Tensor) -> "History":
        """Of the rows that are true in ``rows (n,)``, numbered anew, the items that are true in
        ``items (n_items,)``."""
        number = rows.cumsum(0) - 1
        kept = rows[self.row] & items[self.item]
        return History(number[self.row[kept]], self.item[kept], self.n_items)

    def has(self, item: torch.Tensor) -> torch.Tensor:
        """``item (n,)`` -> ``(n,)`` bool: whether each row has had its item."""
        rows = torch.arange(len(item), device=item.device)
        return torch.isin(rows * self.n_items + item, self.row * self.n_items + self.item)

    def has_each(self, drawn: torch.Tensor, n: int) -> torch.Tensor:
        """``drawn (K,)`` items -> ``(n, K)`` bool: which of them each of the n rows has had."""
        if not len(drawn):  # no negative of a small domain
            return torch.zeros(n, 0, dtype=torch.bool, device=drawn.device)
        values, place = drawn.unique(return_inverse=True)
        found = torch.searchsorted(values, self.item).clamp(max=len(values) - 1)
        hit = values[found] == self.item
        mask = torch.zeros(n, len(values), dtype=torch.bool, device=drawn.device)
        mask[self.row[hit], found[hit]] = True
        return mask[:, place]
