"""The items that the targets of a step are scored among, and the cross-entropy among them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from recbole_tema.model.history import History
from recbole_tema.model.packing import take_once
from recbole_tema.model.sampled_softmax import Drawn, sampled_cross_entropy
from recbole_tema.model.softmax import Bonus, linear_cross_entropy


@dataclass(frozen=True)
class ScoredItems:
    """Which rows of a step's table of ``k`` items are the ``N`` columns of its softmax.

    Attributes:
        domain: ``(k,)`` domain of each item, from 1. column: ``(k,)`` its column, -1 without one.
        rows: ``(N,)`` the item of each column, domain by domain. sizes: columns of each domain.
        correction: ``(N,)`` what the logits of drawn negatives are lowered by (`Drawn`); None
            where every item has a column, so that the softmax is exact.
        smoothing: share of each target that is spread evenly over what it is scored among.
    """

    domain: torch.Tensor
    column: torch.Tensor
    rows: torch.Tensor
    sizes: list[int]
    correction: torch.Tensor | None = None
    smoothing: float = 0.0

    @classmethod
    def drawn(
        cls, domain: torch.Tensor, rows: torch.Tensor, drawn: Drawn, smoothing: float = 0.0
    ) -> "ScoredItems":
        """Args: domain: ``(k,)``. rows: ``(N,)`` of the negatives ``drawn``."""
        column = torch.full_like(domain, -1)
        column[rows] = torch.arange(len(rows), device=rows.device)
        return cls(domain, column, rows, drawn.sizes, drawn.correction, smoothing)

    def of_domain(self, targets: torch.Tensor) -> list[torch.Tensor]:
        """``targets (n,)`` -> for each domain ``(n,)`` bool, whose target is in it."""
        domain = self.domain[targets] - 1
        return [domain == d for d in range(len(self.sizes))]

    def cross_entropy(
        self,
        scoring: torch.Tensor,
        states: torch.Tensor,
        targets: torch.Tensor,
        had: History | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Mean over the targets, each among all columns.

        Args:
            scoring: ``(k, H)``. targets: ``(n,)`` items of it.
            states: ``(n, D, H)``, one for each domain's items, or ``(n, H)``, one for all.
            had: what each target's user had before. bias: what the score of such an item gets.
        """
        weight = scoring.new_full((len(targets),), 1.0 / max(1, len(targets)))
        columns, own = take_once(scoring, self.rows), states
        if states.dim() == 2:
            blocks = [(states, columns)]
        else:
            tables = columns.split(self.sizes)
            blocks = [(states[:, d], table) for d, table in enumerate(tables)]
            number = torch.arange(len(targets), device=targets.device)
            place = number * len(self.sizes) + self.domain[targets] - 1
            own = take_once(states.flatten(0, 1), place)
        return self._among(0, len(self.rows), scoring, own, blocks, targets, weight, had, bias)

    def in_domain_cross_entropy(
        self,
        scoring: torch.Tensor,
        states: Sequence[torch.Tensor],
        targets: torch.Tensor,
        had: History | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """The same, each among the columns of its own domain.

        Args:
            states: of each domain, those of its targets in their order.
        """
        tables = take_once(scoring, self.rows).split(self.sizes)
        first, loss = 0, scoring.new_zeros(())
        for d, mine in enumerate(self.of_domain(targets)):
            own, blocks = states[d], [(states[d], tables[d])]
            weight = own.new_full((len(own),), 1.0 / max(1, len(targets)))
            seen = None if had is None else had.only(mine, self.domain == d + 1)
            end = first + self.sizes[d]
            loss = loss + self._among(
                first, end, scoring, own, blocks, targets[mine], weight, seen, bias
            )
            first = end
        return loss

    def _among(
        self,
        first: int,
        end: int,
        scoring: torch.Tensor,
        own: torch.Tensor,
        blocks: list[tuple[torch.Tensor, torch.Tensor]],
        targets: torch.Tensor,
        weight: torch.Tensor,
        had: History | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Among the columns from ``first`` to ``end``."""
        bonus = self._bonus(first, end, had, bias)
        if self.correction is None:
            place = self.column[targets] - first
            return linear_cross_entropy(blocks, place, weight, bonus, self.smoothing)
        logit = (own * F.embedding(targets, scoring)).sum(-1)
        if had is not None and bias is not None:
            logit = logit + bias * had.has(targets)
        column = self.column[targets]
        row = ((column >= first) & (column < end)).nonzero().squeeze(1)
        left_out = row, column[row] - first
        return sampled_cross_entropy(
            logit, blocks, self.correction[first:end], left_out, weight, bonus, self.smoothing
        )

    def _bonus(
        self, first: int, end: int, had: History | None, bias: torch.Tensor | None
    ) -> Bonus | None:
        if had is None or bias is None:
            return None
        if self.correction is not None:  # of most items no negative is drawn
            had = had.only(slice(None), (self.column >= first) & (self.column < end))
        row, item = had.pairs
        return row, self.column[item] - first, bias
