"""The leave-one-out split of a user's sequence, for whatever reads or makes training data.

It imports NumPy alone, so that commands which never train can ask it.
"""

import numpy as np

PHASES = ("valid", "test")
# Fewest events of a user who has a target in the phase, and the target's place from the end.
_FEWEST = {"valid": (4, 2), "test": (3, 1)}


def train_lengths(lengths: np.ndarray) -> np.ndarray:
    """``(n_users,)`` number of leading events that belong to training.

    RecBole's leave-one-out on its augmented rows: with 4 or more events the last two are the
    validation and the test target; with 3, the last is the test target and there is no
    validation target; with fewer, everything is training data.

    >>> train_lengths(np.arange(7)).tolist()
    [0, 1, 2, 2, 2, 3, 4]
    """
    lengths = np.asarray(lengths)
    return lengths - sum(lengths >= fewest for fewest, _ in _FEWEST.values())


def target_positions(lengths: np.ndarray, phase: str) -> tuple[np.ndarray, np.ndarray]:
    """Users with a target in a phase, and its position in each one's sequence.

    Args:
        lengths: ``(n_users,)`` number of events of each user.
        phase: ``valid`` or ``test``.

    Returns:
        (users, positions): both ``(n,)`` int64, users ascending, positions from 0.

    Raises:
        ValueError: there is no such phase.
    """
    if phase not in PHASES:
        raise ValueError(f"phase is {phase!r}, expected 'valid' or 'test'")
    fewest, from_end = _FEWEST[phase]
    users = np.flatnonzero(np.asarray(lengths) >= fewest)
    return users, lengths[users] - from_end
