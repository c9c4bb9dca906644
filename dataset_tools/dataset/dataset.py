"""Read a dataset of atomic files, and give it back with generated fields added or replaced."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from dataset_tools.dataset.card import card_path, count_domains, read_card, write_card
from dataset_tools.dataset.checks import check_name, checked_items
from dataset_tools.dataset.writer import (
    SUFFIXES,
    Feature,
    feature_jobs,
    naming_folder,
    prepared_folder,
    staging_folder,
    write_cells,
)
from recbole_tema.data.atomic import read_header, read_table, replace_file, sync_folder
from recbole_tema.data.feature_file import TWIN_SUFFIX, FeatureTable, read_feature
from recbole_tema.data.schema import FEATURE_FILES, GENERATED_FIELDS, types_of
from recbole_tema.data.split import PARTS, SPLIT_FIELD, Events, Split, SplitRule
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)


@dataclass
class Dataset:
    """A dataset as its files hold it.

    Attributes:
        folder: Where it lies.
        name: Of the dataset and its files.
        items: One row an item, every cell as text; columns without their types.
        item_types: Type of each column of `items`.
        events: user_id, item_id, timestamp and, where the file has it, split, in its order.
        card: The provenance card; a minimal one where the folder has none.
    """

    folder: Path
    name: str
    items: pd.DataFrame
    item_types: dict[str, str]
    events: pd.DataFrame
    card: dict[str, Any]

    def path(self, suffix: str) -> Path:
        """The file NAME.suffix."""
        return self.folder / f"{self.name}.{suffix}"

    def feature(self, suffix: str) -> FeatureTable | None:
        """The feature file NAME.suffix; None where there is none."""
        return read_feature(self.path(suffix)) if self.path(suffix).is_file() else None

    def generated(self, field: str) -> str:
        """What the card says made `field`; empty where it says nothing."""
        return str((self.card.get("generated") or {}).get(field) or "")

    def has(self, field: str) -> bool:
        """Whether a generated field is there: its file, or a value of it in some item."""
        files = {value: suffix for suffix, (_, value, _) in FEATURE_FILES.items()}
        return self.path(files[field]).is_file() if field in files else any(self.column(field))

    def column(self, name: str) -> list[str]:
        """A column of `items` as texts; empty texts where the items have no such column."""
        return list(self.items[name]) if name in self.items else [""] * len(self.items)


def read_dataset(folder: str | Path, name: str) -> Dataset:
    """Read NAME.item, NAME.inter and the card in `folder`, after what `finish_update` does.

    Raises:
        DataError: a file is missing or malformed, or an item has no domain.
    """
    folder = Path(folder)
    check_name(name)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such dataset; check its name and data_path")
    finish_update(folder, name)
    where = folder / f"{name}.item"
    types = {field.name: field.type for field in read_header(where)}
    wanted = types_of("item_id", "domain")
    items = read_table(where, wanted | ({"title": None} if "title" in types else {}))
    if "title" not in types:
        raise DataError(f"{where}, line 1: no column 'title'; prompts are made of titles: add it")
    items, types = checked_items(where, items, types)
    needed = types_of("user_id", "item_id", "timestamp")
    columns = list(needed)
    if SPLIT_FIELD in {field.name for field in read_header(folder / f"{name}.inter")}:
        columns.append(SPLIT_FIELD)
    events = read_table(folder / f"{name}.inter", needed, columns)
    card = read_card(folder, name) or {"source": "not stated: the folder had no card"}
    return Dataset(folder, name, items, types, events, card)


def update_dataset(
    dataset: Dataset,
    *,
    items: pd.DataFrame | None = None,
    tags: pd.DataFrame | None = None,
    features: Mapping[str, Feature] | None = None,
    generated: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
    reports: Mapping[str, str] | None = None,
) -> Path:
    """Replace some files of a dataset; the others stay as they are, byte for byte.

    Everything is written to a hidden folder first, the card too, then moved into place. A kill
    before that leaves the dataset as it was; after a kill between two moves every file is there,
    old or new, and whatever opens the dataset next moves the rest (see `install`).

    Args:
        dataset: As read; changed in place to what was written.
        items: Replaces the item table.
        tags: tag_id, tag_domain, tag_emb, as in `write_dataset`.
        features: suffix -> (ids, matrix), for itemtext, itemimage, itemllm and userllm.
        generated: field -> what made it, for the card.
        notes: Further keys of the card.
        reports: file name -> text, written beside the dataset.

    Returns:
        The card's path.

    Raises:
        DataError: see `write_dataset`.
    """
    where = dataset.path("item")
    cells, types = dataset.items, dataset.item_types
    jobs: dict[str, Any] = {}
    if items is not None:
        cells, types = checked_items(where, items, {**types, **types_of(*GENERATED_FIELDS)})
    given = {**(features or {}), **({} if tags is None else {"tag": tags})}
    jobs |= feature_jobs(dataset.folder, dataset.name, cells, dataset.events, given)
    for file, text in (reports or {}).items():
        jobs[file] = partial(_write_text, text)
    folder, name = dataset.folder, dataset.name
    lock = FileLock(folder / f".{name}.lock")
    with naming_folder(folder), lock, staging_folder(folder, name) as staging:
        _move_in(folder, name)
        # Read again: another command may have written its part since the dataset was read.
        if items is not None:
            cells, types = _with_latest(where, cells, types, dataset.items)
            jobs[where.name] = partial(write_cells, cells, types)
        for file, write in jobs.items():
            write(staging / file)
        card = read_card(folder, name) or dataset.card
        made_by = {**(card.get("generated") or {}), **generated}
        card = {**card, **(notes or {}), "generated": made_by}
        paths = [dataset.path(suffix) for suffix in SUFFIXES]
        files = [path.name for path in paths if path.name in jobs or path.is_file()]
        write_card(folder, name, card, count_domains(dataset.events, cells), files, staging)
        install(folder, name, staging)
    dataset.items, dataset.item_types = cells, types
    dataset.card = read_card(folder, name) or card
    return card_path(folder, name)


def _with_latest(
    where: Path, cells: pd.DataFrame, types: dict[str, str], before: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The items with those columns that models wrote as they are on the disk now that are as in
    the items `before`, so not what the update is about; and the types of all columns."""
    old, new = (
        [list(items[f]) if f in items else None for f in GENERATED_FIELDS]
        for items in (before, cells)
    )
    others = [f for f, was, is_now in zip(GENERATED_FIELDS, old, new, strict=True) if was == is_now]
    there = [field.name for field in read_header(where) if field.name in others]
    wanted = types_of("item_id", *there)
    former = read_table(where, wanted, list(wanted)).drop_duplicates("item_id")
    rows = former.set_index("item_id").reindex(cells["item_id"]).fillna("")
    kept = cells.drop(columns=[field for field in others if field in cells and field not in there])
    kept = kept.assign(**{field: rows[field].tolist() for field in there})
    return kept, {column: types.get(column) or wanted[column] for column in kept}


def _write_text(text: str, path: Path) -> None:
    with replace_file(path) as file:
        file.write(text.encode())


def install(folder: Path, name: str, staging: Path) -> None:
    """Replace files of a dataset by those in `staging`, its card among them; the lock is held.

    The one moment before which all is old, and after which all becomes new, is the renaming of
    the staging folder. A kill later leaves that folder, which `finish_update` completes.
    """
    for hidden in staging.glob(".*"):  # the lock of a dataset that was built there
        hidden.unlink()
    _move_in(folder, name)
    sync_folder(staging)
    os.replace(staging, prepared_folder(folder, name))
    sync_folder(folder)
    _move_in(folder, name)


def finish_update(folder: Path, name: str) -> None:
    """Complete an update that a kill ended while its files were moved into place, if there is one.

    Where the folder cannot be written it stays as it is, which is logged: each file is whole, but
    some may be older than others.
    """
    if not prepared_folder(folder, name).is_dir():
        return
    try:
        with FileLock(folder / f".{name}.lock"):
            _move_in(folder, name)
        log.info("%s: completed an update that was interrupted", folder)
    except OSError as error:
        log.warning("%s: an interrupted update cannot be completed: %s", folder, error)


def _move_in(folder: Path, name: str) -> None:
    """Move the files of `prepared_folder`, the items first and the card last."""
    prepared = prepared_folder(folder, name)
    if not prepared.is_dir():
        return
    card, last = read_card(prepared, name), card_path(folder, name).name
    if card is not None:
        features = {f"{name}.{suffix}" for suffix in FEATURE_FILES}
        former = features & (read_card(folder, name) or card)["files"].keys()
        for file in former - card["files"].keys():
            (folder / f"{file}{TWIN_SUFFIX}").unlink(missing_ok=True)
            (folder / file).unlink(missing_ok=True)
    # A text before its binary twin: a twin of another text is never loaded.
    waiting = sorted(path.name for path in prepared.iterdir())
    for file in sorted(waiting, key=lambda file: (file == last, file != f"{name}.item")):
        os.replace(prepared / file, folder / file)
    prepared.rmdir()
    sync_folder(folder)


def training_events(
    events: pd.DataFrame, rule: SplitRule | None = None, domain_of: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Each user's training events, in the order of time, ties in file order.

    Nothing generated for a user may come from the validation or the test targets.

    Args:
        events: As of `Dataset`. rule: Of the split; None for leave-one-out on each user's events.
        domain_of: Item -> domain; None where the rule asks for no domains.

    Raises:
        DataError: the rule does not fit the events.
    """
    ordered = events.sort_values("timestamp", kind="stable")
    users, names = pd.factorize(ordered["user_id"])
    by_user = users.argsort(kind="stable")
    of_user = ordered.iloc[by_user]
    items, tokens = pd.factorize(of_user["item_id"])
    named = pd.Series([(domain_of or {}).get(token, "") for token in tokens], dtype=object)
    domains, domain_names = pd.factorize(named)
    marks = None
    if SPLIT_FIELD in of_user:
        marks = of_user[SPLIT_FIELD].map(dict(zip(PARTS, range(len(PARTS)), strict=True)))
        if marks.isna().any():
            raise DataError(f"column '{SPLIT_FIELD}': an event is marked {', '.join(PARTS)}")
    split = Split(
        rule or SplitRule(),
        Events(
            items,
            np.searchsorted(users[by_user], np.arange(len(names) + 1)),
            domains + 1,
            list(domain_names),
            of_user["timestamp"].to_numpy(np.float64),
            None if marks is None else marks.to_numpy(np.int64),
            lambda user: str(names[user]),
        ),
    )
    train = np.empty(len(ordered), dtype=bool)
    train[by_user] = split.train
    return ordered[train]
