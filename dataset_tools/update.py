"""Read a dataset of atomic files, and give it back with generated fields added or replaced."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from dataset_tools.card import card_path, count_domains, read_card, write_card
from dataset_tools.checks import check_name, checked_items
from dataset_tools.writer import (
    FEATURE_FIELDS,
    SUFFIXES,
    Feature,
    feature_job,
    naming_folder,
    staging_folder,
    tag_job,
    write_cells,
)
from recbole_tema.atomic import read_header, read_table, sync_folder
from recbole_tema.errors import DataError
from recbole_tema.feature_file import TWIN_SUFFIX, FeatureTable, read_feature

log = logging.getLogger(__name__)


@dataclass
class Dataset:
    """A dataset as its files hold it.

    Attributes:
        folder: Where it lies.
        name: Of the dataset and its files.
        items: One row an item, every cell as text; columns without their types.
        item_types: Type of each column of `items`.
        events: user_id, item_id, timestamp, in the order of the file.
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

    def column(self, name: str) -> list[str]:
        """A column of `items` as texts; empty texts where the items have no such column."""
        return list(self.items[name]) if name in self.items else [""] * len(self.items)


def read_dataset(folder: str | Path, name: str) -> Dataset:
    """Read NAME.item, NAME.inter and the card in `folder`.

    Raises:
        DataError: a file is missing or malformed, or an item has no domain.
    """
    folder = Path(folder)
    check_name(name)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such dataset; check its name and data_path")
    where = folder / f"{name}.item"
    types = {field.name: field.type for field in read_header(where)}
    wanted = {"item_id": "token", "domain": "token"}
    items = read_table(where, wanted | ({"title": None} if "title" in types else {}))
    if "title" not in types:
        raise DataError(f"{where}, line 1: no column 'title'; prompts are made of titles: add it")
    items, types = checked_items(where, items, types)
    needed = {"user_id": "token", "item_id": "token", "timestamp": "float"}
    events = read_table(folder / f"{name}.inter", needed, list(needed))
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

    Everything is written to a hidden folder first, then moved into place, the card last. A kill
    in between can leave new tags without their vectors, which a training run says; it never
    leaves half a file, and running the same again completes it.

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
        cells, types = checked_items(where, items, {**types, **_given_types(items)})
        jobs[where.name] = partial(write_cells, cells, types)
    known = {"item": cells["item_id"], "user": dataset.events["user_id"].unique()}
    if tags is not None:
        jobs[f"{dataset.name}.tag"] = tag_job(dataset.path("tag"), tags, cells)
    for suffix, feature in (features or {}).items():
        path = dataset.path(suffix)
        jobs[path.name] = feature_job(path, suffix, feature, known)
    for file, text in (reports or {}).items():
        jobs[file] = partial(_write_text, text)
    with naming_folder(dataset.folder), FileLock(dataset.folder / f".{dataset.name}.lock"):
        with staging_folder(dataset.folder, dataset.name) as staging:
            for file, write in jobs.items():
                write(staging / file)
            _swap_in(dataset, staging)
        # Read again: another command may have written its part since the dataset was read.
        card = read_card(dataset.folder, dataset.name) or dataset.card
        made_by = {**(card.get("generated") or {}), **generated}
        card = {**card, **(notes or {}), "generated": made_by}
        files = [f"{dataset.name}.{s}" for s in SUFFIXES if dataset.path(s).is_file()]
        counts = count_domains(dataset.events, cells)
        write_card(dataset.folder, dataset.name, card, counts, files)
    dataset.items, dataset.item_types = cells, types
    dataset.card = read_card(dataset.folder, dataset.name) or card
    return card_path(dataset.folder, dataset.name)


def _given_types(items: pd.DataFrame) -> dict[str, str]:
    known = {"tags": "token_seq", "tag_weights": "float_seq"}
    return {name: kind for name, kind in known.items() if name in items}


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _swap_in(dataset: Dataset, staging: Path) -> None:
    """Features that change go first, then the items, then the new features: never a mixture."""
    written = sorted(path.name for path in staging.iterdir())
    features = {f"{dataset.name}.{suffix}" for suffix in FEATURE_FIELDS} & set(written)
    for file in sorted(features):
        (dataset.folder / f"{file}{TWIN_SUFFIX}").unlink(missing_ok=True)
        (dataset.folder / file).unlink(missing_ok=True)
    items_first = sorted(written, key=lambda file: (file != f"{dataset.name}.item", file))
    for file in items_first:
        (staging / file).replace(dataset.folder / file)
    sync_folder(dataset.folder)


def training_events(events: pd.DataFrame, held_out: int = 2) -> pd.DataFrame:
    """Each user's events without the last `held_out`, in the order of time, ties in file order.

    The last two events of a sequence are the validation and the test target: nothing generated
    for a user may come from them. A user of `held_out` events or fewer has none left.
    """
    ordered = events.sort_values("timestamp", kind="stable")
    left = ordered.groupby("user_id").cumcount(ascending=False)
    return ordered[left.to_numpy() >= held_out]
