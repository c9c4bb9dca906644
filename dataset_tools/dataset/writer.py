"""Write one dataset: checked, as RecBole atomic files with features and a provenance card."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from dataset_tools.dataset.card import card_path, check_card, count_domains, write_card
from dataset_tools.dataset.checks import (
    check_known,
    check_name,
    checked_events,
    checked_items,
    number_text,
)
from recbole_tema.data.atomic import replace_file, sync_folder
from recbole_tema.data.cells import cell_of
from recbole_tema.data.feature_file import TWIN_SUFFIX, write_feature
from recbole_tema.data.schema import FEATURE_FILES, types_of
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

Feature = tuple[Sequence[str], np.ndarray]

SUFFIXES = ("inter", "item", *FEATURE_FILES)
BLOCK_ROWS = 100_000


def write_dataset(
    folder: str | Path,
    name: str,
    interactions: pd.DataFrame,
    items: pd.DataFrame,
    *,
    tags: pd.DataFrame | None = None,
    item_text: Feature | None = None,
    item_image: Feature | None = None,
    item_llm: Feature | None = None,
    user_llm: Feature | None = None,
    card: Mapping[str, Any],
    item_types: Mapping[str, str] | None = None,
    force: bool = False,
) -> Path:
    """Check a dataset and write it into `folder`, all of it or nothing.

    Everything is written to a hidden folder first and then moved into place, the card last. An
    interruption before that leaves an old dataset as it was; the old card goes first, so that a
    mixture can never pass for a complete dataset.

    Args:
        folder: The dataset's own folder, by RecBole's custom `<data_path>/<name>`.
        name: Of the dataset and its files.
        interactions: user_id, item_id, timestamp and maybe rating. Written in the order of the
            timestamp, ties in the order given.
        items: item_id, domain, title; maybe category, brand, price, tags, tag_weights and any
            other columns. A cell may be a list, a text (tags: separated by blanks), a number, or
            missing.
        tags: tag_id, tag_domain (domains where the tag is used: list, or text separated by
            blanks) and tag_emb (a vector each).
        item_text: (item ids, matrix (n, d)); a feature's ids may leave items or users out.
        item_image: As item_text.
        item_llm: As item_text.
        user_llm: (user ids, matrix (n, d)).
        card: At least `source`; by custom `filters`, `builder` (name and version) and `generated`
            (field -> model or rule behind it). Counts and hashes are added.
        item_types: Type of an item column where the guess from its values would be wrong.
        force: Replace an existing dataset, its features included.

    Returns:
        The card's path.

    Raises:
        DataError: something is wrong with the data (see `checks`), the dataset exists and `force`
            is not set, or the folder cannot be written.
    """
    folder = Path(folder)
    check_name(name)
    check_card(card_path(folder, name), card)
    cells, kinds = checked_items(folder / f"{name}.item", items, item_types)
    events = checked_events(folder / f"{name}.inter", interactions, cells["item_id"])
    given = {"itemtext": item_text, "itemimage": item_image, "itemllm": item_llm}
    given |= {"userllm": user_llm, "tag": tags}
    features = {suffix: value for suffix, value in given.items() if value is not None}
    counts = count_domains(events, cells)
    if sum(domain["events"] > 0 for domain in counts["domains"].values()) < 2:
        raise DataError(f"{folder / name}.inter: interactions of one domain only; need two")

    jobs: dict[str, Callable[[Path], None]] = {
        f"{name}.item": partial(write_cells, cells, kinds),
        f"{name}.inter": partial(_write_events, events),
    }
    jobs |= feature_jobs(folder, name, cells, events, features)
    stated = card.get("generated") or {}
    if silent := [f for suffix in features if (f := FEATURE_FILES[suffix][1]) not in stated]:
        log.warning("%s: the card does not say what made %s", name, ", ".join(silent))
    commit_dataset(folder, name, jobs, card, counts, force)
    return card_path(folder, name)


def write_cells(cells: pd.DataFrame, kinds: Mapping[str, str], path: Path) -> None:
    """Write checked item cells (see `checked_items`) as NAME.item."""
    heads = [f"{column}:{kinds[column]}" for column in cells.columns]
    columns = [map(cell_of, cells[column].tolist()) for column in cells.columns]
    _write_rows(path, heads, columns)


def _write_events(events: pd.DataFrame, path: Path) -> None:
    kinds = types_of(*events.columns)
    columns = [
        events[name].tolist() if kind == "token" else map(number_text, events[name].tolist())
        for name, kind in kinds.items()
    ]
    _write_rows(path, [f"{name}:{kind}" for name, kind in kinds.items()], columns)


def _write_rows(path: Path, heads: list[str], columns: list) -> None:
    rows = iter(zip(*columns, strict=True))
    with replace_file(path) as file:
        file.write(("\t".join(heads) + "\n").encode())
        while block := list(islice(rows, BLOCK_ROWS)):
            file.write("".join("\t".join(row) + "\n" for row in block).encode())


def feature_jobs(
    folder: Path, name: str, cells: pd.DataFrame, events: pd.DataFrame, features: Mapping[str, Any]
) -> dict[str, Callable]:
    """The writes of feature files, checked against the items and users: file name -> write.

    Args:
        features: suffix -> (ids, matrix), for `tag` the table.
    """
    known = {"item_id": cells["item_id"], "user_id": events["user_id"].unique()}
    jobs = {}
    for suffix, feature in features.items():
        where = folder / f"{name}.{suffix}"
        if suffix == "tag":
            jobs[where.name] = _tag_job(where, feature, cells)
            continue
        id_field, value_field, owner = FEATURE_FILES[suffix]
        tokens = [str(token) for token in feature[0]]
        check_known(where, tokens, known[owner], owner.removesuffix("_id"))
        columns = (id_field, value_field, tokens, feature[1])
        jobs[where.name] = lambda path, columns=columns: write_feature(path, *columns)
    return jobs


def _tag_job(where: Path, tags: pd.DataFrame, cells: pd.DataFrame) -> Callable:
    """Check the tag table against the items: every tag of an item is in it, domains exist."""
    for column in ("tag_id", "tag_domain", "tag_emb"):
        if column not in tags.columns:
            raise DataError(
                f"{where}: no column '{column}'; the tags table has tag_id, tag_domain and tag_emb"
            )
    ids = tags["tag_id"].tolist()
    used = set(" ".join(cells["tags"]).split()) if "tags" in cells.columns else set()
    absent = used - set(ids)
    if absent:
        raise DataError(
            f"{where}: {len(absent)} tags of items are not in the tags table, e.g. "
            f"{min(absent)!r}; add them or drop them from the items"
        )
    domains = [d.split() if isinstance(d, str) else list(d) for d in tags["tag_domain"]]
    check_known(where, (d for row in domains for d in row), cells["domain"], "domain")
    widths = {np.shape(vector) for vector in tags["tag_emb"]}
    if len(widths) != 1:
        raise DataError(f"{where}: tag_emb has vectors of the shapes {sorted(widths)}; need one")
    matrix = np.stack([np.asarray(vector) for vector in tags["tag_emb"]])
    extra = {"tag_domain:token_seq": [" ".join(row) for row in domains]}
    return lambda path: write_feature(path, "tag_id", "tag_emb", ids, matrix, extra)


def commit_dataset(
    folder: Path, name: str, jobs: Mapping, card: Mapping, counts: Mapping, force: bool
) -> None:
    """Run the jobs (file name -> what writes a file of a given path) in a staging folder, then
    move the files into place and write the card.

    Raises:
        DataError: the dataset exists and `force` is not set, or the folder cannot be written.
    """
    with naming_folder(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            refuse_existing(folder, name, force)
            with staging_folder(folder, name) as staging:
                for file, write in jobs.items():
                    write(staging / file)
                _swap(folder, name, staging)
            write_card(folder, name, card, counts, jobs)


def refuse_existing(folder: Path, name: str, force: bool) -> None:
    """Raise a DataError if the dataset is there and `force` is not set."""
    for path in (card_path(folder, name), folder / f"{name}.inter", folder / f"{name}.item"):
        if path.exists() and not force:
            raise DataError(f"{path} exists; replace the dataset with force, or name another one")


def prepared_folder(folder: Path, name: str) -> Path:
    """Where the files of an update wait that only have to be moved, see `update.install`."""
    return folder / f".{name}.prepared"


@contextmanager
def staging_folder(folder: Path, name: str) -> Iterator[Path]:
    """A new hidden folder; those that killed writers left behind go first (the lock is held)."""
    prefix = f".{name}.staging-"
    for old in folder.glob(f"{escape(prefix)}*"):
        shutil.rmtree(old, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(folder: Path, name: str, staging: Path) -> None:
    """Move the finished files into `folder`; features of a former dataset do not outlive it."""
    card_path(folder, name).unlink(missing_ok=True)
    # An update of the former dataset that a kill left must not be finished on this one.
    shutil.rmtree(prepared_folder(folder, name), ignore_errors=True)
    written = {path.name for path in staging.iterdir()}
    former = {f"{name}.{suffix}{end}" for suffix in SUFFIXES for end in ("", TWIN_SUFFIX)}
    for file in former - written:
        (folder / file).unlink(missing_ok=True)
    for file in sorted(written):
        (staging / file).replace(folder / file)
    sync_folder(folder)


@contextmanager
def naming_folder(folder: Path) -> Iterator[None]:
    """Turn failures of the file system into a DataError, and name files by their final place."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or folder})"
        raise DataError(f"{folder}: cannot be written: {reason}; check rights and space") from error
    except DataError as error:
        head, sep, tail = str(error).partition(".staging-")
        if not sep:
            raise
        place = head.rpartition("/")[0] + "/" + tail.partition("/")[2]
        raise DataError(place) from None
