"""Where data lives when the user does not say so."""

import os
from pathlib import Path

import platformdirs


def default_data_path() -> str:
    """Return the folder of datasets: ``$RECBOLE_TEMA_DATA``, else one in the user's cache."""
    chosen = os.environ.get("RECBOLE_TEMA_DATA")
    return chosen or str(Path(platformdirs.user_cache_dir("recbole-tema")) / "dataset")
