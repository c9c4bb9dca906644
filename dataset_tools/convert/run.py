"""One conversion from its source to its dataset."""

import logging
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dataset_tools.convert.broken import Broken
from dataset_tools.convert.engine import Engine, engine
from dataset_tools.convert.filters import Filters, Step, apply, encode
from dataset_tools.convert.intake import prepare
from dataset_tools.convert.output import refuse_parts, write_output, write_recbole_cdr
from dataset_tools.convert.settle import settle_splits, settle_times
from dataset_tools.dataset.checks import check_name
from dataset_tools.dataset.provenance import say_replaced
from dataset_tools.dataset.writer import naming_folder, refuse_existing
from dataset_tools.options import ConversionOptions
from recbole_tema.errors import ConfigError, DataError

log = logging.getLogger(__name__)

LOCK = "lock"
POSITIONS = "position in the user's sequence: the source has no times"
VERSION = 2  # of what a conversion makes of the same input; in the card

Source = Callable[[Engine], None]  # fills raw_events and raw_items


@dataclass(frozen=True)
class Conversion(ConversionOptions):
    """What to convert, and how.

    Attributes:
        read: The source.
        source: The card's word on where the data come from.
        filters: What to keep.
    """

    read: Source
    source: str
    filters: Filters = field(default_factory=Filters)


@dataclass(frozen=True)
class Converted:
    """What came of it.

    Attributes:
        folder: Of the dataset.
        counts: As in the card.
        steps: What each filter left.
        broken: Lines that were left out.
        rare: Items without an event that were to be kept, and that `item_core` left out.
        parts: Folders of the domains by themselves.
    """

    folder: Path
    counts: dict
    steps: list[Step]
    broken: Broken
    rare: int
    parts: list[Path]


def convert(conversion: Conversion, folder: Path, name: str, force: bool = False) -> Converted:
    """Write the dataset NAME into `folder`, by custom `<data_path>/<name>`.

    The database of the work lies in a hidden folder beside it and goes at the end.

    Raises:
        ConfigError: an option does not fit the source.
        DataError: the input cannot be read, a filter leaves a domain empty, the dataset exists
            and `force` is not set, or the folder cannot be written.
    """
    check_name(name)
    refuse_existing(folder, name, force)
    say_replaced(folder, name)
    broken = Broken(conversion.strict, conversion.max_broken)
    work, lock = _work_folder(folder, name)
    written = False
    try:
        with engine(work, conversion.memory, conversion.threads, broken) as database:
            prepare(database)
            conversion.read(database)
            if not database.value("SELECT count(*) FROM raw_events"):
                raise DataError(
                    f"{conversion.source}: no sound event in it ({broken.total():,} broken lines)"
                )
            repeated = settle_splits(database)
            positions = settle_times(database)
            if positions and conversion.filters.of_times():
                raise ConfigError(
                    f"the source has no times, so there is nothing to filter by "
                    f"{' and '.join(conversion.filters.of_times())}; leave that out"
                )
            encode(database)
            if conversion.recbole_cdr:
                refuse_parts(database, folder.parent, name, force)
            cored = conversion.filters.item_core > 1
            catalogue = conversion.items_without_events == "keep"
            rare = 0
            if catalogue and cored:
                rare = database.value("SELECT count(*) FROM items WHERE NOT used")
            steps = apply(database, conversion.filters)
            card = {
                "source": conversion.source,
                "filters": conversion.filters.stated() or "none",
                "builder": {"name": "dataset_tools.convert", "version": VERSION},
                **({"timestamp": POSITIONS} if positions else {}),
                "steps": [dict(vars(step)) for step in steps],
            }
            left_out: dict[str, Any] = {
                "items without an event that item_core left out": rare,
                "events left out that an earlier split has": repeated,
                "lines left out": broken.files,
                "cells left empty": broken.cells,
            }
            card |= {what: found for what, found in left_out.items() if found}
            counts = write_output(
                database, folder, name, card, conversion.item_prefix, force, catalogue and not cored
            )
            written = True
            parts = []
            if conversion.recbole_cdr:
                parts = write_recbole_cdr(database, folder.parent, name, card, counts, force)
    except KeyboardInterrupt:
        left = f"{folder} is written, its parts are not; again with --force"
        raise KeyboardInterrupt(left if written else "nothing was written") from None
    finally:
        lock.release()
        shutil.rmtree(work, ignore_errors=True)
    return Converted(folder, counts, steps, broken, rare, parts)


def _work_folder(folder: Path, name: str) -> tuple[Path, FileLock]:
    """A hidden folder beside the dataset, locked; those that killed conversions left go first."""
    with naming_folder(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for old in folder.parent.glob(f".{escape(name)}.convert-*"):
            with suppress(Timeout), FileLock(old / LOCK, timeout=0):
                shutil.rmtree(old, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}.convert-", dir=folder.parent))
        lock = FileLock(work / LOCK)
        lock.acquire()
    return work, lock
