"""Fast and strict reading of one atomic file into a pandas frame."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_tema.atomic import read_feature, read_header
from recbole_tema.data.schema import check_types
from recbole_tema.errors import DataError


def read_frame(
    path,
    load=None,
    skip=None,
    separator="\t",
    seq_separator=" ",
    encoding="utf-8",
    required=(),
):
    """Read an atomic file.

    Args:
        path: the file.
        load: names of the columns to keep, or None for all.
        skip: names of the columns to leave out, or None.
        required: names of the columns in which no cell may be empty.

    Returns:
        (frame, types): a frame with one column a field (tokens as str, floats as float64,
        sequences as one array a row), and a dict from field to its atomic type.

    Raises:
        DataError: the header is wrong, a row has another number of cells than the header, or a
            number is not finite; the message names the line.
    """
    path = Path(path)
    header = read_header(path)
    check_types(path, header)
    wanted = [
        field
        for field in header
        if (load is None or field.name in load) and not (skip and field.name in skip)
    ]
    types = {field.name: field.type for field in wanted}
    if [field.type for field in header] == ["token", "float_seq"] and len(wanted) == 2:
        return _feature_frame(path), types
    names = [field.name for field in header]
    try:
        frame = pd.read_csv(
            path,
            sep=separator,
            names=names,
            header=0,
            usecols=list(types),
            dtype=dict.fromkeys(types, str),
            encoding=encoding,
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            na_filter=False,
            engine="c",
            on_bad_lines="error",
        )[list(types)]
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {str(error).strip()}; mend or remove that line") from error
    if frame.empty:
        raise DataError(f"{path} has a header but no rows")
    for name, kind in types.items():
        if name in required:
            _check_filled(path, name, frame[name])
        if kind == "token":
            continue
        if kind == "float":
            frame[name] = _floats(path, name, frame[name])
        elif kind == "token_seq":
            frame[name] = [
                np.array([token for token in text.split(seq_separator) if token], dtype=str)
                for text in frame[name]
            ]
        else:
            frame[name] = _float_rows(path, name, frame[name], seq_separator)
    return frame, types


def _feature_frame(path):
    table = read_feature(path)
    return pd.DataFrame({table.id_field: table.tokens, table.value_field: list(table.values)})


def _check_filled(path, name, column):
    empty = np.flatnonzero((column == "").to_numpy())
    if len(empty):
        raise DataError(
            f"{path}, line {empty[0] + 2}: '{name}' is empty ({len(empty)} such rows); every row "
            f"needs one"
        )


def _floats(path, name, column):
    # An empty cell is a missing value, as RecBole reads it.
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values) & (column != "").to_numpy())
    if len(bad):
        raise DataError(
            f"{path}, line {bad[0] + 2}: '{name}' is {column.iloc[bad[0]]!r}, not a finite number"
        )
    return values


def _float_rows(path, name, column, seq_separator):
    rows = []
    for line, text in enumerate(column, start=2):
        try:
            row = np.array([part for part in text.split(seq_separator) if part], dtype=np.float64)
        except ValueError as error:
            raise DataError(f"{path}, line {line}: '{name}': {error}") from error
        if not np.isfinite(row).all():
            raise DataError(f"{path}, line {line}: '{name}' holds a value that is not finite")
        rows.append(row)
    return rows
