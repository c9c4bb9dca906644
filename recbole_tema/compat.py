"""What RecBole 1.2.1 takes from numpy and scipy and newer releases of them no longer have.

Imported before RecBole's ``Config`` or one of its models is made. Each patch puts a removed name
back under its old meaning, and does nothing where the library still has it; nothing of RecBole's
is changed. What its SINE switches on for the whole process is switched off. RecBole's remaining
obstacle, ``ray``, is imported by ``recbole.quick_start`` alone, which nothing here imports.
"""

import importlib
import sys

import numpy as np
import torch
from scipy.sparse import dok_matrix

from recbole_tema.paths import recbole_dir

# numpy 2 dropped these; `Config.compatibility_settings` reads all three.
NUMPY_NAMES = {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}


def _update(self: dok_matrix, data: dict[tuple[int, int], float]) -> None:
    """Set entries from a dict of (row, column) -> value, without checks, as scipy < 1.13 did."""
    self._dict.update(data)


def restore_names() -> list[str]:
    """Put back what is absent; return the names that were."""
    absent = [name for name in NUMPY_NAMES if not hasattr(np, name)]
    for name in absent:
        setattr(np, name, NUMPY_NAMES[name])
    # scipy 1.13 renamed it to `_dict`; LightGCN, NGCF, NCL, GCMC, SpectralCF, KGIN and MCCLK fill
    # their graphs with it.
    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = _update
        absent.append("dok_matrix._update")
    return absent


def end_anomaly_detection() -> None:
    """Import RecBole's sequential models without PyTorch's debugging of gradients.

    SINE turns it on as it is imported, and whoever imports one of them imports all: from then on
    every model of the process trains several times slower. What was on before stays on, unless it
    is SINE that has been imported already.
    """
    package = "recbole.model.sequential_recommender"
    wanted = torch.is_anomaly_enabled() and f"{package}.sine" not in sys.modules
    importlib.import_module(package)
    torch.autograd.set_detect_anomaly(wanted)


recbole_dir()  # a RecBole that is missing or another one is told before it is imported
restore_names()
end_anomaly_detection()
