"""One evaluation phase: who is ranked against what, the same for every model."""

import copy
from collections.abc import Sequence
from logging import getLogger

import numpy as np
import torch

from recbole_tema.errors import ConfigError, EvaluationError
from recbole_tema.evaluation import candidates as pool
from recbole_tema.evaluation import ranks as ranking

PHASES = ("valid", "test")
# Streams of random numbers, kept apart so that the ties do not depend on the negatives.
TIES, NEGATIVES = 1, 2


class EvalPlan:
    """Targets and candidates of the validation or the test phase.

    Args:
        users: ``(n,)`` internal user ids, one as often as it has targets. targets: ``(n,)``
            internal item ids, at least 1. positions: ``(n,)`` where their histories end.
        item_domain: ``(n_items,)`` 0 for the padding item 0, then 1 to D.
        domain_names: the D names, in the order of their ids.
        candidates: ``in_domain``, the items of the target's domain, or ``all``.
        mode: ``full``, or ``uniN``: N negatives drawn without replacement from the candidates
            that are not in the user's whole sequence. The padding item is never a candidate.
        neg_seed: seed of the negatives and of the tie-breaking. Nothing else enters the draw, so
            that all models and model seeds meet the same candidates.
        sequences: (items ``(n_events,)``, offsets ``(n_users + 1,)``) every user's whole merged
            sequence, oldest event first, indexed by user id: no negative is one of its items.
        histories: the same of what the phase may read: of it what is before the position is a
            target's history; None: ``sequences``.
        exclude_history: leave out of the candidates the items that the user had before the target
            (``uniN`` draws none of them anyway). A target that the user had before is no test case
            then, in any mode: it would be the only former item among its candidates.
        phase: ``valid`` or ``test``.

    Attributes:
        users, targets, target_domain: ``(n,)`` int64. history_lengths: ``(n,)`` int64 number of
            events before each target. rows: ``(n,)`` int64 which of the targets that were given.
        n_candidates: ``(n,)`` int64, the target included.
        negatives: ``(n, N)`` int32 padded with 0 at the end, or None in ``full`` mode.
        left_out: ``(m,)`` int64 domains of the targets that ``exclude_history`` leaves out; they
            are none of the n.

    Raises:
        ConfigError: ``candidates`` or ``mode`` has no meaning.
        ValueError: the arrays contradict each other.
    """

    def __init__(
        self,
        users: np.ndarray,
        targets: np.ndarray,
        positions: np.ndarray,
        item_domain: np.ndarray,
        domain_names: Sequence[str],
        *,
        candidates: str = "in_domain",
        mode: str = "full",
        neg_seed: int = 2026,
        sequences: tuple[np.ndarray, np.ndarray],
        histories: tuple[np.ndarray, np.ndarray] | None = None,
        exclude_history: bool = False,
        phase: str = "valid",
    ) -> None:
        self.users, self.targets, self.history_lengths, self.item_domain = (
            np.asarray(a, dtype=np.int64) for a in (users, targets, positions, item_domain)
        )
        self.rows = np.arange(len(self.users))
        self.domain_names = list(domain_names)
        self.candidates, self.mode, self.phase = candidates, mode, phase
        self.sequences, self.histories = (
            (np.asarray(items, dtype=np.int64), np.asarray(offsets, dtype=np.int64))
            for items, offsets in (sequences, histories or sequences)
        )
        self.n_items = len(self.item_domain)
        self._check()
        n_negatives = pool.parse_mode(mode)
        self.pools = pool.build_pools(self.item_domain, candidates)
        self.target_domain = self.item_domain[self.targets]
        self._row_pool = self.pools.of_item[self.targets]
        self._draws = torch.from_numpy(self._rng(neg_seed, TIES).random(len(self.users)))
        self._pool_items: dict[tuple[int, torch.device], torch.Tensor] = {}
        self.negatives = self._excluded = None
        if n_negatives:
            self.negatives = self._draw_negatives(n_negatives, neg_seed)
            self.n_candidates = np.count_nonzero(self.negatives, axis=1) + 1
        else:
            self.n_candidates = self.pools.sizes(self._row_pool)
            if exclude_history:
                self._excluded = self._history_items()
                self.n_candidates = self.n_candidates - np.diff(self._excluded[0])
        self.left_out = np.empty(0, dtype=np.int64)
        if exclude_history:
            # After the draws, so that they are those of the same target without exclude_history.
            repeated = self.repeated()
            self.left_out = self.target_domain[repeated]
            self._keep(~repeated)
        self._log_empty_domains()

    def __len__(self) -> int:
        return len(self.users)

    def of_domains(self, numbers: Sequence[int] | np.ndarray) -> "EvalPlan":
        """The plan of the targets in some domains, with the candidates and draws they have here.

        Args:
            numbers: of the domains, from 1.
        """
        found = copy.copy(self)
        found.left_out = self.left_out[np.isin(self.left_out, numbers)]
        found._keep(np.isin(self.target_domain, numbers))
        return found

    def _keep(self, wanted: np.ndarray) -> None:
        """Drop the rows where ``wanted`` ``(n,)`` is false."""
        rows = np.flatnonzero(wanted)
        self.users, self.targets = self.users[rows], self.targets[rows]
        self.history_lengths, self.rows = self.history_lengths[rows], self.rows[rows]
        self.target_domain, self._row_pool = self.target_domain[rows], self._row_pool[rows]
        self._draws = self._draws[torch.from_numpy(rows)]
        self.n_candidates = self.n_candidates[rows]
        if self.negatives is not None:
            self.negatives = self.negatives[rows]
        if self._excluded is not None:
            offsets, items = self._excluded
            counts = np.diff(offsets)
            kept = np.repeat(wanted, counts)
            self._excluded = np.concatenate([[0], np.cumsum(counts[rows])]), items[kept]

    def repeated(self) -> np.ndarray:
        """``(n,)`` bool: the user had the target before."""
        rows, items = self.history_events()
        found = np.zeros(len(self), dtype=bool)
        found[rows[items == self.targets[rows]]] = True
        return found

    def history_events(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows, items): every event before each target, flat, rows ascending."""
        return pool.first_events(self.histories, self.users, self.history_lengths)

    def ranks(
        self, scores: torch.Tensor, rows: Sequence[int] | np.ndarray | torch.Tensor
    ) -> torch.Tensor:
        """Zero-based ranks of the targets of ``rows``.

        A rank is the number of candidates that score strictly higher, plus a place among the ties
        that is drawn once per row: a model that scores everything the same ends at chance, and
        neither the batch size nor the model changes the draw.

        Args:
            scores: ``(B, n_items)`` of the whole catalogue, higher is better. What non-candidates
                score is never looked at.
            rows: ``(B,)`` positions in ``users``.

        Returns:
            ``(B,)`` int64 on the CPU.

        Raises:
            EvaluationError: a candidate's score is NaN or infinite.
        """
        rows = self._check_scores(scores, rows, self.n_items)
        scores = ranking.comparable(scores)
        out = torch.empty(len(rows), dtype=torch.int64)
        if self.negatives is not None:
            step = ranking.rows_per_block(self.negatives.shape[1], scores.device)
            for low in range(0, len(rows), step):
                part = slice(low, low + step)
                items = self.candidate_items(rows[part]).to(scores.device)
                out[part] = self._rank_listed(scores[part].gather(1, items), items, rows[part])
            return out
        for number in np.unique(self._row_pool[rows]):
            where = np.flatnonzero(self._row_pool[rows] == number)
            step = ranking.rows_per_block(self.n_items, scores.device)
            for low in range(0, len(where), step):
                part = where[low : low + step]
                block = scores[torch.from_numpy(part).to(scores.device)]
                out[torch.from_numpy(part)] = self._rank_in_pool(block, int(number), rows[part])
        return out

    def candidate_items(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """``(B, 1 + N)`` int64 on the CPU: the target, then its negatives, padded with item 0.

        For models that score pairs and not the whole catalogue; only in ``uniN`` mode.
        """
        if self.negatives is None:
            raise ValueError(f"mode is {self.mode!r}: only uniN modes list their candidates")
        rows = np.asarray(rows)
        listed = np.concatenate([self.targets[rows][:, None], self.negatives[rows]], axis=1)
        return torch.from_numpy(listed)

    def ranks_from_candidates(
        self, scores: torch.Tensor, rows: Sequence[int] | np.ndarray
    ) -> torch.Tensor:
        """Like `ranks`, from scores ``(B, 1 + N)`` of `candidate_items` alone."""
        items = self.candidate_items(rows)
        rows = self._check_scores(scores, rows, items.shape[1])
        return self._rank_listed(ranking.comparable(scores), items.to(scores.device), rows)

    def topk_items(
        self, scores: torch.Tensor, rows: Sequence[int] | np.ndarray | torch.Tensor, k: int
    ) -> torch.Tensor:
        """``(B, k)`` int64 on the CPU: the candidates that score highest, best first.

        Raises:
            ConfigError: a row has fewer than ``k`` candidates.
        """
        rows = self._check_scores(scores, rows, self.n_items)
        if len(rows) and self.n_candidates[rows].min() < k:
            raise ConfigError(
                f"{self.phase}: metrics on the recommended items need {max(k, 1)} candidates, "
                f"a user has {self.n_candidates[rows].min()}; lower topk or choose other metrics"
            )
        top = []
        step = ranking.rows_per_block(self.n_items, scores.device)
        for low in range(0, len(rows), step):
            block = scores[low : low + step].detach()
            mask = self._candidate_mask(rows[low : low + step]).to(scores.device)
            top.append(block.masked_fill(~mask, -torch.inf).topk(k, dim=1).indices.cpu())
        return torch.cat(top) if top else torch.empty((0, k), dtype=torch.int64)

    def _rank_listed(
        self, scores: torch.Tensor, items: torch.Tensor, rows: np.ndarray
    ) -> torch.Tensor:
        """Ranks from candidates' scores ``(B, 1 + N)``, the target first; item 0 is padding."""
        mask = items > 0
        self._refuse_non_finite(ranking.count_non_finite(scores, mask), rows)
        above, ties = ranking.count_above(scores[:, 1:], scores[:, 0], mask[:, 1:])
        return ranking.break_ties(above.cpu(), ties.cpu(), self._draws[rows])

    def _rank_in_pool(self, scores: torch.Tensor, number: int, rows: np.ndarray) -> torch.Tensor:
        """Ranks of rows that share a pool, from their scores ``(B, n_items)``."""
        targets = torch.from_numpy(self.targets[rows]).to(scores.device)
        target = scores.gather(1, targets[:, None])[:, 0]
        members = self._members(number, scores.device)
        inside = ranking.take_columns(scores, members)
        above, equal = ranking.count_above(inside, target)
        suspect = ranking.rows_may_be_non_finite(inside)
        bad = ranking.count_non_finite(inside) if suspect.any() else torch.zeros_like(above)
        if self._excluded is not None:
            items = torch.from_numpy(_padded(*self._excluded, rows)).to(scores.device)
            former, mask = scores.gather(1, items), items > 0
            above_former, equal_former = ranking.count_above(former, target, mask)
            above, equal = above - above_former, equal - equal_former
            bad = bad - ranking.count_non_finite(former, mask)
        if suspect.any():
            self._refuse_non_finite(bad, rows)
        # The target is a member of the pool and ties with itself.
        return ranking.break_ties(above.cpu(), equal.cpu() - 1, self._draws[rows])

    def _members(self, number: int, device: torch.device) -> torch.Tensor:
        key = (number, device)
        if key not in self._pool_items:
            self._pool_items[key] = torch.from_numpy(self.pools.members(number)).to(device)
        return self._pool_items[key]

    def _candidate_mask(self, rows: np.ndarray) -> torch.Tensor:
        """``(B, n_items)`` bool: the candidates of each row."""
        if self.negatives is not None:
            mask = torch.zeros((len(rows), self.n_items), dtype=torch.bool)
            mask.scatter_(1, self.candidate_items(rows), True)
        else:
            mask = torch.from_numpy(self.pools.of_item == self._row_pool[rows][:, None])
            if self._excluded is not None:
                mask.scatter_(1, torch.from_numpy(_padded(*self._excluded, rows)), False)
        mask[:, 0] = False
        return mask

    def _refuse_non_finite(self, bad: torch.Tensor, rows: np.ndarray) -> None:
        wrong = torch.nonzero(bad.cpu()).flatten()
        if not len(wrong):
            return
        first = rows[int(wrong[0])]
        raise EvaluationError(
            f"{self.phase}: {int(bad[wrong[0]])} of {self.n_candidates[first]} candidates' scores "
            f"of row {first} (user id {self.users[first]}) are NaN or infinite, and the same in "
            f"{len(wrong) - 1} more rows of its block; lower the learning rate or check the "
            "feature values"
        )

    def _draw_negatives(self, n_negatives: int, neg_seed: int) -> np.ndarray:
        lengths = np.diff(self.sequences[1])[self.users]
        rows, items = pool.first_events(self.sequences, self.users, lengths)
        rows = np.concatenate([rows, np.arange(len(self.users))])
        items = np.concatenate([items, self.targets])
        own = pool.own_places(self.pools, self._row_pool, rows, items)
        rng = self._rng(neg_seed, NEGATIVES)
        negatives = pool.sample_negatives(self.pools, self._row_pool, *own, n_negatives, rng)
        short = int(np.count_nonzero(negatives[:, -1] == 0))
        if short:
            getLogger().warning(
                f"{self.phase}: {short} of {len(self.users)} targets have fewer than {n_negatives} "
                "items to draw negatives from; they are ranked against all of those"
            )
        return negatives

    def _history_items(self) -> tuple[np.ndarray, np.ndarray]:
        """(offsets, items): distinct earlier items of each row, in its pool, without the target."""
        rows, items = self.history_events()
        kept = items != self.targets[rows]
        offsets, places = pool.own_places(self.pools, self._row_pool, rows[kept], items[kept])
        first = np.repeat(self.pools.start[self._row_pool], np.diff(offsets))
        return offsets, self.pools.items[first + places]

    def _rng(self, neg_seed: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([int(neg_seed), PHASES.index(self.phase), stream])

    def _check(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"phase is {self.phase!r}, expected valid or test")
        shapes = [a.shape for a in (self.users, self.targets, self.history_lengths)]
        if len(set(shapes)) > 1 or self.users.ndim != 1:
            raise ValueError("{} users, {} targets and {} positions".format(*shapes))
        domains = self.item_domain[1:]
        if self.item_domain[0] or domains.min() < 1 or domains.max() > len(self.domain_names):
            raise ValueError("item_domain must be 0 for item 0 and 1 to D for all others")
        if len(self.users) == 0:
            return
        if self.targets.min() < 1 or self.targets.max() >= self.n_items:
            raise ValueError(f"targets must be items 1 to {self.n_items - 1}")
        if self.users.min() < 0 or self.users.max() >= len(self.sequences[1]) - 1:
            raise ValueError("a user has no sequence")
        # Mostly the target is at its position; of alternatives at one time only one can be.
        lengths = np.diff(self.histories[1])[self.users]
        if (self.history_lengths < 0).any() or (self.history_lengths >= lengths).any():
            raise ValueError(f"a {self.phase} target's position is not in its user's sequence")

    def _check_scores(
        self, scores: torch.Tensor, rows: Sequence[int] | np.ndarray | torch.Tensor, width: int
    ) -> np.ndarray:
        rows = np.asarray(rows.cpu() if isinstance(rows, torch.Tensor) else rows, dtype=np.int64)
        if tuple(scores.shape) != (len(rows), width):
            raise ValueError(f"scores are {tuple(scores.shape)}, expected {(len(rows), width)}")
        return rows

    def _log_empty_domains(self) -> None:
        for number, name in enumerate(self.domain_names, start=1):
            if not (self.target_domain == number).any():
                getLogger().info(f"{self.phase}: no target in domain {name}, no metrics for it")


def _padded(offsets: np.ndarray, items: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``(B, longest)`` the items of each row, padded with 0."""
    counts = offsets[rows + 1] - offsets[rows]
    columns = np.arange(max(int(counts.max(initial=0)), 1))
    inside = columns < counts[:, None]
    padded = np.zeros(inside.shape, dtype=np.int64)
    padded[inside] = items[(offsets[rows][:, None] + columns)[inside]]
    return padded
