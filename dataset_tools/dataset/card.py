"""The provenance card NAME.yaml: what a dataset was made from, how, and the hash of each file.

The card is written last: a folder with a card that lists only files that are there is complete.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from recbole_tema.data.atomic import replace_file, sha256_of
from recbole_tema.errors import DataError

CARD_FORMAT = 1


def card_path(folder: str | Path, name: str) -> Path:
    """Where the card of dataset `name` lies."""
    return Path(folder) / f"{name}.yaml"


def check_card(path: Path, card: Mapping[str, Any]) -> None:
    """Refuse what a maker of a dataset must not leave out, or cannot be written as plain YAML.

    Raises:
        DataError: no `source`, or a value that is not plain (text, number, list, dict).
    """
    if not isinstance(card, Mapping) or not card.get("source"):
        raise DataError(f"{path}: the card has no 'source'; say where the raw data come from")
    try:
        yaml.safe_dump(dict(card))
    except yaml.YAMLError as error:
        reason = str(error).replace("\n", " ")
        raise DataError(f"{path}: the card holds a value that is not plain: {reason}") from None


def write_card(
    folder: Path,
    name: str,
    card: Mapping[str, Any],
    counts: Mapping[str, Any],
    files: Iterable,
    staging: Path | None = None,
) -> None:
    """Write NAME.yaml over the finished `files` (names inside `folder`).

    With `staging`, the card goes there, and of files that are there and in `folder` it describes
    those there: they are to replace the others.
    """
    paths = {file: folder / file for file in files}
    if staging is not None:
        paths |= {file: staging / file for file in paths if (staging / file).is_file()}
    hashes = {
        file: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for file, path in paths.items()
    }
    stated = {key: value for key, value in card.items() if key not in ("counts", "files")}
    whole = {"name": name, "format": CARD_FORMAT, **stated, "counts": counts, "files": hashes}
    text = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=100)
    with replace_file(card_path(staging or folder, name)) as file:
        file.write(text.encode())


def read_card(folder: str | Path, name: str) -> dict[str, Any] | None:
    """The card of a dataset; None where there is none or it is not a card of this format."""
    try:
        card = yaml.safe_load(card_path(folder, name).read_bytes())
    except (OSError, yaml.YAMLError):
        return None
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT or card.get("name") != name:
        return None
    return card if isinstance(card.get("files"), dict) and card["files"] else None


def missing_files(folder: str | Path, card: Mapping[str, Any]) -> list[str]:
    """Files that the card lists and that are absent or empty."""
    paths = {file: Path(folder) / file for file in card["files"]}
    return [f for f, path in paths.items() if not path.is_file() or path.stat().st_size == 0]


def changed_files(folder: str | Path, card: Mapping[str, Any]) -> list[str]:
    """Files that are there but whose content is not what the card says."""
    found = {file: Path(folder) / file for file in card["files"]}
    return [
        file
        for file, path in found.items()
        if path.is_file() and sha256_of(path) != card["files"][file].get("sha256")
    ]


def count_domains(events: pd.DataFrame, items: pd.DataFrame) -> dict[str, Any]:
    """Users, items and events, overall and per domain, and the users of more than one domain.

    `items` counts the rows of NAME.item, `items_without_events` those of them that no event is of;
    `users` those with an event.
    """
    domain = events["item_id"].map(items.set_index("item_id")["domain"])
    domains_of_user = domain.groupby(events["user_id"]).nunique()
    item_counts = items["domain"].value_counts()
    idle = items.loc[~items["item_id"].isin(set(events["item_id"])), "domain"].value_counts()
    per_domain = {
        name: {
            "users": int(events.loc[domain == name, "user_id"].nunique()),
            "items": int(item_counts[name]),
            "items_without_events": int(idle.get(name, 0)),
            "events": int(np.count_nonzero(domain == name)),
        }
        for name in sorted(item_counts.index)
    }
    return {
        "users": len(domains_of_user),
        "items": len(items),
        "items_without_events": int(idle.sum()),
        "events": len(events),
        "overlapping_users": int((domains_of_user > 1).sum()),
        "domains": per_domain,
    }
