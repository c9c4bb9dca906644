"""Where datasets live when the user names no folder, and where RecBole is."""

import os
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_dir

from recbole_tema.errors import ConfigError

DATA_VARIABLE = "RECBOLE_TEMA_DATA"


def default_data_path() -> Path:
    """The folder of all datasets, one folder a dataset inside; it need not exist yet.

    `$RECBOLE_TEMA_DATA` where that is set, else `dataset` in the user's cache folder.
    """
    chosen = os.environ.get(DATA_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(user_cache_dir("recbole-tema")) / "dataset"


RECBOLE_VERSION = "1.2.1"
# Without --no-deps pip looks for ray<=2.6.3, which nothing here needs and Python 3.12 has not.
INSTALL_RECBOLE = f"run: pip install --no-deps recbole=={RECBOLE_VERSION}"


@lru_cache(maxsize=1)
def recbole_dir() -> Path:
    """Return RecBole's folder without importing it (that import takes seconds).

    Raises:
        ConfigError: RecBole is not there, or is of another version.
    """
    spec = find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"RecBole is not installed; {INSTALL_RECBOLE}")
    try:
        found = version("recbole")
    except PackageNotFoundError:
        found = "of an unknown version (a folder without metadata)"
    if found != RECBOLE_VERSION:
        raise ConfigError(
            f"RecBole {found} is installed, this package works with {RECBOLE_VERSION}; "
            f"{INSTALL_RECBOLE}"
        )
    return Path(spec.submodule_search_locations[0])
