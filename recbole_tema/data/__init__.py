"""Datasets: atomic files, flat sequences, the leave-one-out split, loaders."""

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
from recbole_tema.data.dataset import CrossDomainSequentialDataset
from recbole_tema.data.preparation import create_dataset, data_preparation

__all__ = ["CrossDomainSequentialDataset", "create_dataset", "data_preparation"]
