"""What a finished run leaves: `run.json`, with what the run depends on."""

import hashlib
import json
from pathlib import Path
from typing import Any

from recbole_tema.errors import DataError

RECORD = "run.json"
STATED = "stated"  # of a record: SHA-256 of what the run depends on


def statement_of(statement: dict[str, Any], label: str) -> dict[str, Any]:
    """What the runs of one row depend on: the dataset's content and the row's keys.

    Args:
        statement: Of a folder of results (`spec.stated`).
    """
    return {"content": statement["content"], "keys": statement["entries"][label]["keys"]}


def fingerprint(stated: dict[str, Any]) -> str:
    """SHA-256 of what a run depends on (`statement_of`)."""
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def read_record(path: Path, stated: dict[str, Any]) -> dict[str, Any]:
    """The record of a finished run.

    Args:
        stated: What a run has to depend on to be taken (`statement_of`).

    Raises:
        DataError: it is damaged, or of a run of other keys or data.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path}: no JSON ({error}); delete the run's folder to have it run again"
        ) from None
    if not isinstance(record, dict) or record.get(STATED) != fingerprint(stated):
        raise DataError(
            f"{path} is of a run with other keys or other data than these; delete the run's folder "
            "to have it run again, or give another --results_dir"
        )
    return record
