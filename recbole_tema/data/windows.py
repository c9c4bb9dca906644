"""Cutting training sequences into windows, whose targets an epoch trains on, each of them once."""

from dataclasses import dataclass

import numpy as np

from recbole_tema.data.sequences import Sequences


@dataclass(frozen=True)
class Windows:
    """Windows over flat sequences, one entry a window.

    Attributes:
        user: ``(n,)`` the user of the window.
        start: ``(n,)`` index into the flat items of the first input.
        length: ``(n,)`` number of inputs; input ``i`` is followed by its target, item ``i + 1``.
        n_targets: ``(n,)`` how many of the last inputs have a target that counts here.
    """

    user: np.ndarray
    start: np.ndarray
    length: np.ndarray
    n_targets: np.ndarray


def cut_windows(
    sequences: Sequences, max_length: int, stride: int, rng: np.random.Generator
) -> Windows:
    """Windows of at most ``max_length`` inputs that cover every target once.

    A user with ``m`` events has the targets 1..m-1 (the first event has no history). Up to
    ``max_length`` targets are one window. Longer sequences are cut from their end: the cut nearest
    to the end falls at random, the others follow ``stride`` targets apart, and every window but
    the first reaches back to ``max_length`` inputs, so that its targets keep at least
    ``max_length - stride`` events of context.

    Args:
        stride: targets a window, 1..``max_length``.
        rng: numpy generator, draws where long sequences are cut.
    """
    n_targets = np.maximum(sequences.lengths - 1, 0)
    users = np.flatnonzero(n_targets)
    total = n_targets[users]
    long = total > max_length
    offset = rng.integers(1, stride + 1, size=len(users))
    rest = np.maximum(total - offset - max_length, 0)
    n_cuts = np.where(long, 2 + -(-rest // stride), 1)
    row = np.repeat(np.arange(len(users)), n_cuts)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(n_cuts) - n_cuts, n_cuts)
    # Window 0 ends with the user's last target, window j ends offset + (j-1) strides earlier.
    last = total[row] - np.where(nth > 0, offset[row] + (nth - 1) * stride, 0)
    is_oldest = nth == n_cuts[row] - 1
    following = total[row] - (offset[row] + nth * stride)
    counted = np.where(is_oldest, last, last - following)
    length = np.minimum(last, max_length)
    start = sequences.offsets[users[row]] + last - length
    return Windows(users[row], start, length, counted)


def prefix_windows(sequences: Sequences, max_length: int) -> Windows:
    """RecBole's augmentation: one window for each target, with the history before it.

    Many times slower than `cut_windows`; it is there to compare both ways of training.
    """
    n_targets = np.maximum(sequences.lengths - 1, 0)
    user = np.repeat(np.arange(len(n_targets)), n_targets)
    position = np.arange(len(user)) - np.repeat(np.cumsum(n_targets) - n_targets, n_targets) + 1
    length = np.minimum(position, max_length)
    start = sequences.offsets[user] + position - length
    return Windows(user, start, length, np.ones_like(user))


def latest_windows(sequences: Sequences, max_length: int) -> Windows:
    """One window a user, of the last ``max_length`` inputs; older events are no targets."""
    length = np.minimum(np.maximum(sequences.lengths - 1, 0), max_length)
    user = np.flatnonzero(length)
    length = length[user]
    return Windows(user, sequences.offsets[user + 1] - 1 - length, length, length)
