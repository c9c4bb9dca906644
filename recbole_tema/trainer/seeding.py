"""The states of all generators of random numbers: kept, put back, and seeded for a while."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.utils import init_seed

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig


def random_state(loader: Any = None) -> dict:
    """States of every generator that training draws from, as tensors and plain values."""
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = legacy
    state = {
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    generator = getattr(loader, "generator", None)
    if generator is not None:
        state["loader"] = generator.get_state()
    return state


def set_random_state(state: dict, loader: Any = None) -> None:
    """Put every generator back where `random_state` found it."""
    torch.set_rng_state(state["torch"].cpu())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    if "loader" in state and getattr(loader, "generator", None) is not None:
        loader.generator.set_state(state["loader"].cpu())


@contextmanager
def seeded(config: "TemaConfig") -> Iterator[None]:
    """Draw from the config's seed inside, and leave every generator as it was outside."""
    before = random_state()
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    try:
        yield
    finally:
        set_random_state(before)
