"""Datasets that this package builds by itself when one is asked for and missing."""

import logging
import shutil
from collections.abc import Callable
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from filelock import FileLock

from dataset_tools.builtin import movielens
from dataset_tools.dataset.card import card_path, changed_files, missing_files, read_card
from dataset_tools.dataset.dataset import (
    Dataset,
    finish_update,
    install,
    read_dataset,
    update_dataset,
)
from dataset_tools.dataset.provenance import RUNS, say_replaced
from dataset_tools.dataset.writer import SUFFIXES, naming_folder, staging_folder
from dataset_tools.encoders.text_encoder import encoder_available
from recbole_tema.data.atomic import read_table, sha256_of
from recbole_tema.data.feature_file import read_feature
from recbole_tema.data.schema import FEATURE_FILES, GENERATED_FIELDS, TAG_FIELDS, types_of
from recbole_tema.errors import ConfigError, DataError

log = logging.getLogger(__name__)

AUGMENTED = "augmented_text"


class Builder(NamedTuple):
    """How a built-in dataset is made.

    Attributes:
        build: Of a folder; writes the dataset there.
        version: Of what it makes.
        notes: What the card may say of fields that it made, whatever its version.
    """

    build: Callable[[Path], Path]
    version: int
    notes: Callable[[], set[str]]


BUILTIN = {
    movielens.NAME: Builder(
        movielens.build_ml_100k_genre, movielens.BUILDER_VERSION, movielens.builder_notes
    )
}


def ensure_builtin(name: str, data_path: str | Path, force: bool = False) -> Path:
    """Build the built-in dataset `name` into `<data_path>/<name>` unless it is there and current.

    It is built again, with one log line that says why, when it is incomplete, made by another
    version of its builder, or made without text vectors that can be had now. What commands made
    for it since (tags, vectors, profiles) comes over into the new build; with `force` the build is
    as the package ships it. What does not come over is kept in a folder beside the files, which
    the log names. Processes that ask at the same time wait for the first one.

    Returns:
        The dataset's folder.

    Raises:
        ConfigError: `name` is no built-in dataset.
        DataError: the dataset cannot be built, or the folder not be written.
    """
    check_builtin(name)
    data_path = Path(data_path).expanduser()
    folder = data_path / name
    finish_update(folder, name)
    if not force and rebuild_reason(name, folder) is None:
        return folder  # without the lock: the folder may be read-only
    try:
        data_path.mkdir(parents=True, exist_ok=True)
        with FileLock(data_path / f".{name}.lock"):
            reason = "asked for" if force else rebuild_reason(name, folder)
            if reason:
                say_replaced(folder, name)
                log.info("building %s in %s: %s", name, folder, reason)
                _build(name, folder, keep=not force)
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

    Files changed by hand are no reason: they are named in the log and kept. Nor are missing files
    that a build would not give back, because a command made them.
    """
    card = read_card(folder, name)
    if card is None:
        return "not there yet" if not folder.exists() else "an unfinished or foreign folder"
    made = [f"{name}.{suffix}" for suffix in _made_since(name, card) if suffix != "item"]
    missing = missing_files(folder, card)
    if set(missing) - set(made):
        return f"{', '.join(missing)} missing"
    if missing:
        log.warning(
            "%s: %s missing; 'python -m dataset_tools enrich %s' makes what is missing, from the "
            "answers that are kept", folder, ", ".join(missing), name
        )  # fmt: skip
    found = (card.get("builder") or {}).get("version")
    if found != BUILTIN[name].version:
        return f"made by builder version {found}, now {BUILTIN[name].version}"
    if not card.get("text_vectors") and encoder_available():
        return "made without text vectors, which can be had now"
    changed = changed_files(folder, card)
    if changed:
        log.warning("%s: changed since the build and kept: %s", folder, ", ".join(changed))
    return None


def _made_since(name: str, card: dict[str, Any]) -> set[str]:
    """Suffixes of the files with fields that the builder's card does not know: commands made them.

    "item" and "tag" stand for tags of the items, which are in both files, "item" alone for texts
    that a model wrote of them.
    """
    made = _made_fields(name, card)
    suffixes = {suffix for suffix, (_, field, _) in FEATURE_FILES.items() if field in made}
    suffixes |= {"item", "tag"} if "tags" in made else set()
    return suffixes | ({"item"} if AUGMENTED in made else set())


def _made_fields(name: str, card: dict[str, Any]) -> set[str]:
    own = BUILTIN[name].notes()
    return {f for f, note in (card.get("generated") or {}).items() if str(note) not in own}


def _build(name: str, folder: Path, keep: bool) -> None:
    """Build into a hidden folder, bring over what was made since, then replace the old files."""
    with naming_folder(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"), staging_folder(folder, name) as staging:
            BUILTIN[name].build(staging)
            came_over = _bring_over(name, folder, staging) if keep else set()
            _set_aside(name, folder, staging, came_over)
            install(folder, name, staging)


def _bring_over(name: str, folder: Path, staging: Path) -> set[str]:
    """Give the new build the fields that were made since; returns the suffixes of their files."""
    card = read_card(folder, name)
    made = _made_since(name, card) if card else set()
    came_over: set[str] = set()
    if not card or not made:
        return came_over
    fresh = read_dataset(staging, name)
    together = {"item", "tag"} if "tags" in _made_fields(name, card) else set()
    parts = [tuple(sorted(together))] if together else []
    parts += [(suffix,) for suffix in sorted(made - together)]
    for part in parts:
        try:
            fields, tables = _tables(folder, fresh, part, AUGMENTED in card["generated"])
            generated = {f: n for f, n in card["generated"].items() if f in fields}
            notes = {RUNS[f]: card[RUNS[f]] for f in fields if RUNS.get(f) in card}
            update_dataset(fresh, **tables, generated=generated, notes=notes)
            came_over.update(part)
            log.info("%s: kept as they were: %s", folder, ", ".join(fields))
        except (DataError, ValueError) as error:
            log.warning("%s: .%s does not go with the new build: %s", folder, part[0], error)
    return came_over


def _tables(
    folder: Path, fresh: Dataset, part: tuple[str, ...], augmented: bool
) -> tuple[list[str], dict[str, Any]]:
    """The fields of the files `part` in `folder`, and them as arguments of `update_dataset`."""
    last = part[-1]
    if last == "item":
        return [AUGMENTED], {"items": _with_columns(folder, fresh, [AUGMENTED])}
    table = read_feature(folder / f"{fresh.name}.{last}")
    if last != "tag":
        _, field, owner = FEATURE_FILES[last]
        known = set(fresh.column("item_id") if owner == "item_id" else fresh.events["user_id"])
        rows = [row for row, token in enumerate(table.tokens) if token in known]
        feature = [table.tokens[row] for row in rows], table.values[rows]
        return [field], {"features": {last: feature}}
    domains = table.extra.get("tag_domain", [""] * len(table.tokens))
    rows = {"tag_id": table.tokens, "tag_domain": domains, "tag_emb": list(table.values)}
    fields, tables = ["tag_emb"], {"tags": pd.DataFrame(rows)}
    if "item" in part:
        columns = list(GENERATED_FIELDS if augmented else TAG_FIELDS)
        tables["items"] = _with_columns(folder, fresh, columns)
        fields += columns
    return fields, tables


def _with_columns(folder: Path, fresh: Dataset, columns: list[str]) -> pd.DataFrame:
    """The items of the new build with columns of those in `folder`."""
    wanted = types_of("item_id", *columns)
    former = read_table(folder / f"{fresh.name}.item", wanted, list(wanted))
    former = former.drop_duplicates("item_id").set_index("item_id")
    rows = former.reindex(fresh.items["item_id"]).fillna("")
    return fresh.items.assign(**{column: rows[column].tolist() for column in columns})


def _set_aside(name: str, folder: Path, staging: Path, came_over: set[str]) -> None:
    """Copy the files that are about to be lost and are not the builder's into a folder.

    Those are files made by commands or changed by hand, and where no card says what they are, all.
    """
    card = read_card(folder, name)
    own: set[str] = set()  # files of the builder, and those whose whole content came over
    if card is not None:
        known = card["files"].keys() - set(changed_files(folder, card))
        made = {f"{name}.{suffix}" for suffix in _made_since(name, card) - came_over}
        own = known - made | {f"{name}.{suffix}" for suffix in came_over - {"item"}}
    there = [path for s in SUFFIXES if (path := folder / f"{name}.{s}").is_file()]
    new = {path.name: sha256_of(path) for path in staging.iterdir() if path.is_file()}
    lost = [
        path
        for path in there
        if path.stat().st_size and path.name not in own and sha256_of(path) != new.get(path.name)
    ]
    if not lost:
        return
    aside = next(f for n in count(1) if not (f := folder / f"{name}.former-{n}").exists())
    aside.mkdir()
    if card is not None:
        shutil.copy2(card_path(folder, name), aside)
    for path in lost:
        shutil.copy2(path, aside)
    names = ", ".join(path.name for path in lost)
    log.warning("%s: replaced by the build, and kept in %s: %s", folder, aside.name, names)
