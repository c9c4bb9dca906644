"""Checks of a dataset before a byte is written: every fault is one DataError that names its row."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_tema.data.atomic import TYPES, parse_header
from recbole_tema.data.cells import plain_text, tag_token, token_fault
from recbole_tema.data.schema import GENERATED_FIELDS, ITEM_TYPES, types_of
from recbole_tema.errors import DataError

# Of columns that the data contract names; others are guessed from their values.
KNOWN_TYPES = types_of("item_id", "domain", *GENERATED_FIELDS) | ITEM_TYPES


def check_name(name: str) -> None:
    """Refuse a dataset name that is not a plain file name."""
    if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|') or token_fault(name):
        raise DataError(f"dataset name {name!r} is no plain file name; use letters, digits and -")


def id_column(where: str | Path, frame: pd.DataFrame, column: str) -> pd.Series:
    """Column `column` as text ids.

    Raises:
        DataError: the column is absent, holds something else than texts and integers, or an id
            that an atomic file cannot hold (see `token_fault`).
    """
    if column not in frame.columns:
        found = ", ".join(map(str, frame.columns))
        raise DataError(f"{where}: no column '{column}' (found: {found}); add it")
    values = frame[column].reset_index(drop=True)
    unique = values.drop_duplicates()
    for row, value in unique.items():
        if not isinstance(value, str | int | np.integer) or isinstance(value, bool):
            raise DataError(f"{where}, row {row}: {column} is {value!r}; ids are texts or integers")
        fault = token_fault(str(value))
        if fault:
            raise DataError(f"{where}, row {row}: {column} {str(value)!r} {fault}")
    return values.astype(str)


def checked_events(where: str | Path, frame: pd.DataFrame, known_items: Iterable) -> pd.DataFrame:
    """Events with text ids, sorted by timestamp, ties in the order of `frame`.

    Raises:
        DataError: no events, an unknown column or item, a bad id, or a time or rating that is not
            a finite number.
    """
    if len(frame) == 0:
        raise DataError(f"{where}: no interactions; nothing is written")
    unknown = set(frame.columns) - {"user_id", "item_id", "timestamp", "rating"}
    if unknown:
        raise DataError(
            f"{where}: columns {sorted(map(str, unknown))} are unknown; interactions have user_id, "
            "item_id, timestamp and maybe rating"
        )
    events = pd.DataFrame({name: id_column(where, frame, name) for name in ("user_id", "item_id")})
    stray = ~events["item_id"].isin(set(known_items))
    if stray.any():
        row = int(stray.to_numpy().argmax())
        raise DataError(
            f"{where}, row {row}: item {events['item_id'].iloc[row]!r} is not in the items "
            f"({int(stray.sum())} such interactions); add the item or drop them"
        )
    events["timestamp"] = _numbers(where, frame, "timestamp")
    if "rating" in frame.columns:
        events["rating"] = _numbers(where, frame, "rating")
    order = np.argsort(events["timestamp"].to_numpy(), kind="stable")
    return events.iloc[order].reset_index(drop=True)


def _numbers(where: str | Path, frame: pd.DataFrame, column: str) -> pd.Series:
    """A finite numeric column; integers stay integers, for a float64 ends at 2**53."""
    if column not in frame.columns:
        raise DataError(f"{where}: no column '{column}'; order the events by one")
    values = frame[column].reset_index(drop=True)
    if values.dtype.kind not in "iufO" or isinstance(values.dtype, pd.CategoricalDtype):
        raise DataError(f"{where}: {column} is of type {values.dtype}; give numbers, e.g. seconds")
    numbers = pd.to_numeric(values, errors="coerce")
    bad = ~np.isfinite(numbers.to_numpy(dtype=np.float64, na_value=np.nan))
    if bad.any():
        row = int(bad.argmax())
        found = values.tolist()[row]  # numpy's own numbers are shown with their type
        raise DataError(
            f"{where}, row {row}: {column} is {found!r}, not a finite number "
            f"({int(bad.sum())} such rows); correct or drop them"
        )
    return numbers


def checked_items(
    where: str | Path, frame: pd.DataFrame, types: Mapping[str, str] | None = None, domains: int = 2
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Items as text cells, one row an item, and the type of each column.

    Args:
        where: The file, for messages.
        frame: item_id, domain, title and any other columns.
        types: Type of a column where the guess from its values would be wrong.
        domains: Least number of them.

    Raises:
        DataError: no title, a bad id, an item that stands twice or in two domains, no domain, too
            few domains, tags and weights that do not fit, or a cell that does not fit its type.
    """
    items = pd.DataFrame({name: id_column(where, frame, name) for name in ("item_id", "domain")})
    if "title" not in frame.columns:
        raise DataError(f"{where}: no column 'title'; add it, with empty texts where unknown")
    _refuse_twins(where, items)
    found = sorted(items["domain"].unique())
    for domain in found:
        if "/" in domain or domain.split() != [domain]:
            raise DataError(f"{where}: domain {domain!r} holds a blank or '/'; rename it")
    if len(found) < domains:
        raise DataError(f"{where}: one domain only ({found[0] if found else 'none'}); need two")
    kinds = {"item_id": "token", "domain": "token"}
    for column in frame.columns.drop(["item_id", "domain"]):
        values = list(frame[column])
        kind = (types or {}).get(column) or KNOWN_TYPES.get(column) or _guess_type(values)
        if kind not in TYPES:
            raise DataError(f"{where}: type {kind!r} of column '{column}' is unknown; use {TYPES}")
        if column == "tags":
            items[column] = [_tags_cell(where, row, value) for row, value in enumerate(values)]
        else:
            items[column] = [_cell(where, row, column, kind, v) for row, v in enumerate(values)]
        kinds[column] = kind
    parse_header("\t".join(f"{name}:{kind}" for name, kind in kinds.items()).encode(), where)
    _check_weights(where, items)
    return items, kinds


def _refuse_twins(where: str | Path, items: pd.DataFrame) -> None:
    twins = items[items["item_id"].duplicated(keep=False)]
    if twins.empty:
        return
    item = twins["item_id"].iloc[0]
    rows = twins.index[twins["item_id"] == item].tolist()
    domains = sorted(set(twins.loc[rows, "domain"]))
    if len(domains) > 1:
        raise DataError(
            f"{where}, rows {rows}: item {item!r} is in the domains {', '.join(domains)}; "
            "prefix its id by the domain or choose one"
        )
    raise DataError(f"{where}, rows {rows}: item {item!r} stands more than once; keep one row")


def _is_missing(value: object) -> bool:
    return (
        value is None
        or value is pd.NA
        or (isinstance(value, float | np.floating) and np.isnan(value))
    )


def _guess_type(values: Sequence) -> str:
    present = [v for v in values if not _is_missing(v)]
    if present and all(isinstance(v, list | tuple | np.ndarray) for v in present):
        flat = [x for v in present for x in v]
        return "float_seq" if flat and not any(isinstance(x, str) for x in flat) else "token_seq"
    if present and not any(isinstance(v, str) for v in present):
        return "float"
    return "token"


def _cell(where: str | Path, row: int, column: str, kind: str, value: Any) -> str:
    """The text of one item cell; a missing value is an empty cell."""
    if type(value) is str and not kind.startswith("float"):
        return plain_text(value)
    if _is_missing(value):
        return ""
    if kind.startswith("float"):
        parts = [value] if kind == "float" else value
        parts = parts.split() if isinstance(parts, str) else parts
        try:
            numbers = [float(part) for part in parts]
        except (TypeError, ValueError):
            raise DataError(f"{where}, row {row}: {column} is {value!r}, not {kind}") from None
        if not all(map(math.isfinite, numbers)):
            raise DataError(f"{where}, row {row}: {column} holds a number that is not finite")
        return " ".join(map(number_text, numbers))
    if isinstance(value, list | tuple | np.ndarray):
        if kind == "token":
            raise DataError(f"{where}, row {row}: {column} is a list, its type is one token")
        return plain_text(" ".join("_".join(str(part).split()) for part in value))
    return plain_text(str(value))


def number_text(value: float | np.generic) -> str:
    """A number as the shortest text that gives it back exactly: `3`, `0.25`, `881250949`."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return repr(value)


def _tags_cell(where: str | Path, row: int, value: Any) -> str:
    if _is_missing(value):
        return ""
    tags = value.split() if isinstance(value, str) else list(value)
    for tag in tags:
        if not isinstance(tag, str) or tag != tag_token(tag) or token_fault(tag):
            raise DataError(
                f"{where}, row {row}: tag {tag!r} is not one token in lower case with '_' for "
                "blanks; pass it through tag_token"
            )
    if len(set(tags)) != len(tags):
        raise DataError(f"{where}, row {row}: a tag stands twice in {' '.join(tags)!r}; keep one")
    return " ".join(tags)


def _check_weights(where: str | Path, items: pd.DataFrame) -> None:
    if "tag_weights" not in items.columns:
        return
    if "tags" not in items.columns:
        raise DataError(f"{where}: tag_weights without tags; give both or neither")
    for row, (tags, weights) in enumerate(zip(items["tags"], items["tag_weights"], strict=True)):
        if len(tags.split()) != len(weights.split()):
            raise DataError(
                f"{where}, row {row}: {len(tags.split())} tags but {len(weights.split())} "
                "tag_weights; give one weight a tag"
            )
        if "-" in weights and min(map(float, weights.split())) < 0:
            raise DataError(f"{where}, row {row}: tag_weights are {weights}; they are >= 0")


def check_known(where: str | Path, tokens: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse `tokens` of a feature that are no `what` ("item", "user", ...) of the dataset."""
    unknown = set(tokens) - set(known)
    if unknown:
        raise DataError(
            f"{where}: {len(unknown)} ids are no {what} of the dataset, e.g. "
            f"{min(map(str, unknown))!r}; drop their rows"
        )
