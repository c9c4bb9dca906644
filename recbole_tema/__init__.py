"""recbole-tema: LLM-enhanced cross-domain sequential recommendation for RecBole 1.2.1."""

import importlib
import os
from typing import Any

# Threads of GNU's OpenMP, which torch uses, spin while they wait. Where other programs want the
# cores too, that made an epoch of 8 s one of more than 4 minutes; with short spins it was 40 s
# there and still 8 s on idle cores. To be set before torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

__version__ = "0.1.0"

# Resolved on first use: RecBole's imports take seconds, `recbole_tema.errors` should not.
_HOME = {
    "run_recbole_tema": "recbole_tema.quick_start",
    "load_model": "recbole_tema.quick_start",
    "recommend": "recbole_tema.inference",
    "TEMA": "recbole_tema.model.tema",
    "LLM4CDSR": "recbole_tema.model.llm4cdsr",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'recbole_tema' has no attribute '{name}'")
