"""What many targets say together: intervals, tests, and the metrics that a page shows."""

from collections.abc import Sequence
from math import comb

import numpy as np

LEVEL = 0.05  # of a test that holds
SHOWN = ("hit@10", "ndcg@10", "mrr@10")
UNCUT = ("mrr", "ndcg")  # without a cut-off: shown where they are asked for


def shown(names: Sequence[str]) -> list[str]:
    """The metrics that fit a page: those at 10 where there are, else the first three; and those
    without a cut-off."""
    there = list(dict.fromkeys(names))
    found = [name for name in SHOWN if name in there] or there[:3]
    return found + [name for name in UNCUT if name in there and name not in found]


def by_user(values: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sums, counts), both ``(n_users,)``, of the ``(n,)`` values of each user.

    A user's targets are no independent observations: users are what is drawn and compared. With
    one target each, the sums are the values.
    """
    _, place, counts = np.unique(users, return_inverse=True, return_counts=True)
    return np.bincount(place, weights=values), counts


def bootstrap_interval(
    values: np.ndarray,
    seed: int = 2020,
    draws: int = 2000,
    level: float = 0.95,
    counts: np.ndarray | None = None,
) -> tuple[float, float]:
    """Percentile interval of the mean of ``(n,)`` values, users drawn with replacement.

    Args:
        counts: ``(n,)`` how many values each one is the sum of; None: one.
    """
    values = np.asarray(values, dtype=np.float64)
    counts = np.ones(len(values), dtype=np.int64) if counts is None else counts
    if len(values) < 2 or np.ptp(values / counts) == 0:
        return (float(values.sum() / counts.sum()),) * 2
    rng = np.random.default_rng(seed)
    # Drawing n users with replacement is drawing how often each distinct value comes.
    distinct, often = np.unique(np.stack([values, counts]), axis=1, return_counts=True)
    drawn = rng.multinomial(len(values), often / len(values), size=draws)
    means = (drawn @ distinct[0]) / (drawn @ distinct[1])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Two-sided p-value of Student's paired test on ``(n,)`` values of the same targets.

    1 if they are all alike. Where every target differs by the same, which leaves Student's test no
    spread to go by, that of the sign test: 2 / 2^n.
    """
    from scipy.stats import ttest_rel

    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if len(difference) < 2 or not difference.any():
        return 1.0
    if np.ptp(difference) <= 1e-12 * np.abs(difference).max():
        return float(2.0 ** (1 - len(difference)))
    return float(ttest_rel(ours, theirs).pvalue)


def above_by_seed(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether a model's means of each seed, ``(a,)``, lie above another's, ``(b,)``.

    By Mann-Whitney's U, one-sided and exact, p <= 0.05. Where there are too few seeds for that to
    be reached (fewer than three of each), every mean has to be above every other.
    """
    from scipy.stats import mannwhitneyu

    if comb(len(ours) + len(theirs), len(ours)) < 1 / LEVEL:
        return bool(np.min(ours) > np.max(theirs))
    found = mannwhitneyu(ours, theirs, alternative="greater", method="exact")
    return bool(found.pvalue <= LEVEL + 1e-12)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, corrected by Holm's method (Scandinavian J. of Statistics, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = highest
    return corrected
