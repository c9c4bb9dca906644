"""Where datasets live when the user names no folder."""

import os
from pathlib import Path

from platformdirs import user_cache_dir

DATA_VARIABLE = "RECBOLE_TEMA_DATA"


def default_data_path() -> Path:
    """The folder of all datasets, one folder a dataset inside; it need not exist yet.

    `$RECBOLE_TEMA_DATA` where that is set, else `dataset` in the user's cache folder.
    """
    chosen = os.environ.get(DATA_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(user_cache_dir("recbole-tema")) / "dataset"
