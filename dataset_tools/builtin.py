"""Datasets that this package builds by itself when one is asked for and missing."""

import logging
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from filelock import FileLock

from dataset_tools import movielens
from dataset_tools.card import changed_files, missing_files, read_card
from dataset_tools.text_encoder import encoder_available
from recbole_tema.errors import ConfigError, DataError

log = logging.getLogger(__name__)

# name -> build(folder, force) -> card path
BUILTIN: dict[str, Callable[..., Path]] = {movielens.NAME: movielens.build_ml_100k_genre}
VERSIONS = {movielens.NAME: movielens.BUILDER_VERSION}


def ensure_builtin(name: str, data_path: str | Path, force: bool = False) -> Path:
    """Build the built-in dataset `name` into `<data_path>/<name>` unless it is there and current.

    It is built again, with one log line that says why, when it is incomplete, made by another
    version of its builder, or made without text vectors that can be had now. Processes that ask
    at the same time wait for the first one.

    Returns:
        The dataset's folder.

    Raises:
        ConfigError: `name` is no built-in dataset.
        DataError: the dataset cannot be built, or the folder not be written.
    """
    check_builtin(name)
    data_path = Path(data_path).expanduser()
    folder = data_path / name
    if not force and rebuild_reason(name, folder) is None:
        return folder  # without the lock: the folder may be read-only
    try:
        data_path.mkdir(parents=True, exist_ok=True)
        with FileLock(data_path / f".{name}.lock"):
            reason = "asked for" if force else rebuild_reason(name, folder)
            if reason:
                log.info("building %s in %s: %s", name, folder, reason)
                BUILTIN[name](folder, force=True)
    except OSError as error:
        raise DataError(
            f"{data_path}: cannot be written ({error.strerror}); choose another data_path"
        ) from error
    return folder


def check_builtin(name: str) -> None:
    """Raise a ConfigError that names the nearest built-in dataset unless `name` is one."""
    if name not in BUILTIN:
        near = get_close_matches(name, BUILTIN, n=1, cutoff=0.0)[0]
        known = ", ".join(sorted(BUILTIN))
        raise ConfigError(f"no built-in dataset '{name}'; nearest: '{near}' (there are: {known})")


def rebuild_reason(name: str, folder: Path) -> str | None:
    """Why the dataset in `folder` must be built; None where it can be used as it is.

    Files changed by hand are no reason: they are named in the log and kept.
    """
    card = read_card(folder, name)
    if card is None:
        return "not there yet" if not folder.exists() else "an unfinished or foreign folder"
    missing = missing_files(folder, card)
    if missing:
        return f"{', '.join(missing)} missing"
    found = (card.get("builder") or {}).get("version")
    if found != VERSIONS[name]:
        return f"made by builder version {found}, now {VERSIONS[name]}"
    if not card.get("text_vectors") and encoder_available():
        return "made without text vectors, which can be had now"
    changed = changed_files(folder, card)
    if changed:
        log.warning("%s: changed since the build and kept: %s", folder, ", ".join(changed))
    return None
