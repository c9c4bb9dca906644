"""One atomic file as the pandas frame that RecBole's dataset classes work on."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_tema.data.atomic import read_header, read_table
from recbole_tema.data.feature_file import read_feature
from recbole_tema.data.schema import check_types
from recbole_tema.errors import DataError


def read_frame(
    path: str | Path,
    load: Collection[str] | None = None,
    skip: Collection[str] | None = None,
    seq_separator: str = " ",
    required: Collection[str] = (),
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read an atomic file.

    Args:
        path: the file.
        load: names of the columns to keep, or None for all.
        skip: names of the columns to leave out, or None.
        seq_separator: separates the values of a sequence.
        required: names of the columns in which no cell may be empty.

    Returns:
        (frame, types): a frame with one column a field (tokens as str, floats as float64,
        sequences as one array a row), and a dict from field to its atomic type.

    Raises:
        DataError: the header is wrong, a row has another number of cells than the header, a
            required cell is empty, or a number is not finite; the message names the line.
    """
    path = Path(path)
    header = read_header(path)
    check_types(path, header)
    types = {
        field.name: field.type
        for field in header
        if (load is None or field.name in load) and not (skip and field.name in skip)
    }
    if sorted(types.values()) == ["float_seq", "token"]:
        table = read_feature(path)
        frame = {table.id_field: table.tokens, table.value_field: list(table.values)}
        return pd.DataFrame(frame)[list(types)], types
    frame = read_table(path, columns=list(types), categories=True)[list(types)]
    for name, kind in types.items():
        if name in required:
            _refuse(path, name, frame[name], (frame[name] == "") | frame[name].isna(), "is empty")
        if kind == "token":
            # RecBole wants texts. Equal tokens share one, read once: a column is 8 bytes a row.
            tokens = frame[name].cat.categories.to_numpy(dtype=object)
            frame[name] = tokens[frame[name].cat.codes.to_numpy()]
        if kind == "float":
            _refuse(path, name, frame[name], np.isinf(frame[name]), "is not a finite number")
        elif kind == "token_seq":
            frame[name] = [
                np.array([token for token in text.split(seq_separator) if token], dtype=str)
                for text in frame[name]
            ]
        elif kind == "float_seq":
            frame[name] = _float_rows(path, name, frame[name], seq_separator)
    return frame, types


def _refuse(path: Path, name: str, column: pd.Series, bad: pd.Series, fault: str) -> None:
    rows = np.flatnonzero(bad.to_numpy())
    if len(rows):
        found = "" if pd.isna(column.iloc[rows[0]]) else column.iloc[rows[0]]
        raise DataError(
            f"{path}, line {rows[0] + 2}: '{name}' {fault} (found '{found}'; "
            f"{len(rows)} of {len(column)} rows); mend or remove them"
        )


def _float_rows(path: Path, name: str, column: pd.Series, seq_separator: str) -> list[np.ndarray]:
    rows = []
    for line, text in enumerate(column, start=2):
        try:
            row = np.array([part for part in text.split(seq_separator) if part], dtype=np.float64)
        except ValueError as error:
            raise DataError(f"{path}, line {line}: '{name}': {error}; mend that line") from error
        if not np.isfinite(row).all():
            raise DataError(f"{path}, line {line}: '{name}' holds a value that is not finite")
        rows.append(row)
    return rows
