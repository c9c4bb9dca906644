"""Feature matrices: an atomic text file (id, vector) and its binary twin, which is loaded.

The text is the portable form that stock RecBole reads. The twin `PATH.safetensors` holds the same
float32 values bit by bit and the SHA-256 of the text it belongs to, so a changed text is noticed.
"""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_tensors

from recbole_tema.data.atomic import Field, open_atomic, parse_header, replace_file, sha256_of
from recbole_tema.data.cells import token_fault, unquoted
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

TWIN_SUFFIX = ".safetensors"
TWIN_FORMAT = "recbole-tema feature 1"
BLOCK_NUMBERS = 250_000


class FeatureTable(NamedTuple):
    """One feature file: row i of `values` (n, d), float32, belongs to `tokens[i]`.

    `extra` holds the further columns as text, e.g. `tag_domain` of NAME.tag.
    """

    id_field: str
    value_field: str
    tokens: list[str]
    values: np.ndarray
    extra: dict[str, list[str]] = {}


def write_feature(
    path: str | Path,
    id_field: str,
    value_field: str,
    tokens: Sequence[str],
    matrix: np.ndarray,
    extra: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write `tokens` (n) and `matrix` (n, d) as text and twin, each replaced atomically.

    Args:
        path: The text file; the twin lies beside it as `path + ".safetensors"`.
        id_field: Name of the `token` column.
        value_field: Name of the `float_seq` column, written last.
        tokens: Unique ids.
        matrix: Finite values; stored as float32.
        extra: Further columns between the two, header cell (`name:type`) -> n texts.

    Raises:
        DataError: no rows, no columns, lengths differ, an id that is duplicate or cannot stand in
            an atomic file, or a value that is not finite in float32.
    """
    tokens, extra = list(tokens), dict(extra or {})
    values = _checked_matrix(path, tokens, matrix)
    for cell, column in extra.items():
        _check_extra(path, cell, column, len(tokens))
    heads = [f"{id_field}:token", *extra, f"{value_field}:float_seq"]
    fields = parse_header("\t".join(heads).encode(), path)
    columns = [tokens, *extra.values()]
    digest = hashlib.sha256()
    with replace_file(path) as file:
        for block in _text_blocks(heads, columns, values):
            digest.update(block)
            file.write(block)
    named = {f.name: list(c) for f, c in zip(fields[1:], extra.values(), strict=False)}
    _write_twin(
        path, FeatureTable(id_field, value_field, tokens, values, named), digest.hexdigest()
    )


def _checked_matrix(path: str | Path, tokens: list[str], matrix: np.ndarray) -> np.ndarray:
    """`matrix` as contiguous float32 (n, d) after all checks of `write_feature`."""
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != len(tokens) or matrix.size == 0:
        raise DataError(
            f"{path}: matrix of shape {matrix.shape} for {len(tokens)} ids; it must be "
            "(ids, width), neither 0 (leave the file out where there are no vectors)"
        )
    if matrix.dtype.kind not in "fiu":
        raise DataError(f"{path}: matrix of type {matrix.dtype}; it must hold real numbers")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(matrix, dtype=np.float32)
    _refuse_non_finite(path, values, tokens)
    _refuse_duplicates(path, tokens)
    for token in tokens:
        fault = token_fault(token) if isinstance(token, str) else "is not a text"
        if fault:
            raise DataError(f"{path}: id {token!r} {fault}")
    return values


def _check_extra(path: str | Path, cell: str, column: Sequence[str], n_rows: int) -> None:
    if len(column) != n_rows:
        raise DataError(f"{path}: column '{cell}' has {len(column)} cells for {n_rows} ids")
    for text in column:
        if text and token_fault(text):
            raise DataError(f"{path}: column '{cell}', cell {text!r} {token_fault(text)}")


def _refuse_non_finite(path: str | Path, values: np.ndarray, tokens: Sequence[str]) -> None:
    if np.isfinite(values).all():
        return
    row = int((~np.isfinite(values)).any(axis=1).argmax())
    bad = values[row][~np.isfinite(values[row])][0]
    raise DataError(
        f"{path}, line {row + 2}: the vector of id {tokens[row]!r} holds {bad}; "
        "leave the id out or give it finite float32 numbers"
    )


def _refuse_duplicates(path: str | Path, tokens: Sequence[str]) -> None:
    if len(set(tokens)) == len(tokens):
        return
    first: dict[str, int] = {}
    for line, token in enumerate(tokens, start=2):
        if token in first:
            raise DataError(
                f"{path}, line {line}: id {token!r} stands in line {first[token]} already; "
                "keep one row an id"
            )
        first[token] = line


def _text_blocks(
    heads: Sequence[str], columns: Sequence[Sequence[str]], values: np.ndarray
) -> Iterator[bytes]:
    """The file's bytes in blocks; nine significant digits give each float32 back exactly."""
    yield ("\t".join(heads) + "\n").encode()
    row_format = " ".join(["%.9g"] * values.shape[1]) + "\n"
    step = max(1, BLOCK_NUMBERS // values.shape[1])
    for start in range(0, len(values), step):
        ids = zip(*(column[start : start + step] for column in columns), strict=True)
        rows = zip(ids, values[start : start + step].tolist(), strict=True)
        yield "".join("\t".join(c) + "\t" + row_format % tuple(r) for c, r in rows).encode()


def read_feature(path: str | Path) -> FeatureTable:
    """Read a feature file, from its twin where that belongs to the text as it is now.

    Otherwise the text is parsed, and the twin written again if the folder allows it.

    Raises:
        DataError: the file is missing, empty or malformed: not exactly one `float_seq` column or
            no `token` column, rows of different widths, duplicate ids, or non-finite values.
    """
    if _twin_path(path).is_file():
        with open_atomic(path):
            table = _read_twin(path, sha256_of(path))
        if table is not None:
            return table
    table, digest = _parse_text(path)
    try:
        _write_twin(path, table, digest)
    except OSError as error:
        log.debug("no binary twin of %s: %s", path, error)
    return table


def _twin_path(path: str | Path) -> Path:
    return Path(f"{path}{TWIN_SUFFIX}")


def _write_twin(path: str | Path, table: FeatureTable, digest: str) -> None:
    columns = {"tokens": table.tokens}
    columns.update({f"extra.{name}": column for name, column in table.extra.items()})
    tensors = {name: np.frombuffer("\n".join(c).encode(), np.uint8) for name, c in columns.items()}
    tensors["values"] = table.values
    about = {
        "format": TWIN_FORMAT,
        "text_sha256": digest,
        "id_field": table.id_field,
        "value_field": table.value_field,
    }
    # One metadata entry, because safetensors writes several in random order: same data, same bytes.
    metadata = {"feature": json.dumps(about)}
    with replace_file(_twin_path(path)) as file:
        file.write(save_tensors(tensors, metadata=metadata))


def _read_twin(path: str | Path, digest: str) -> FeatureTable | None:
    """The twin's table, or None where it is damaged or of another text."""
    twin = _twin_path(path)
    try:
        with safe_open(str(twin), framework="numpy") as file:
            meta = json.loads((file.metadata() or {})["feature"])
            if meta.get("format") != TWIN_FORMAT or meta.get("text_sha256") != digest:
                log.info("%s is not of the present %s: reading the text", twin, Path(path).name)
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values = tensors.pop("values")
        columns = {n: t.tobytes().decode("utf-8").split("\n") for n, t in tensors.items()}
        tokens = columns.pop("tokens")
        extra = {name.removeprefix("extra."): column for name, column in columns.items()}
        table = FeatureTable(meta["id_field"], meta["value_field"], tokens, values, extra)
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        log.warning("%s is damaged (%s): reading the text", twin, error)
        return None
    sound = values.dtype == np.float32 and values.ndim == 2 and np.isfinite(values).all()
    if not sound or any(len(c) != len(values) for c in [tokens, *extra.values()]):
        log.warning("%s contradicts itself: reading the text", twin)
        return None
    return table


def _parse_text(path: str | Path) -> tuple[FeatureTable, str]:
    """The table and the SHA-256 of the very bytes that it was parsed from."""
    with open_atomic(path) as file:
        data = file.read()
    digest = hashlib.sha256(data).hexdigest()
    header, *lines = data.split(b"\n")
    del data
    fields = parse_header(header, path)
    id_column, value_column = _feature_columns(path, fields)
    while lines and lines[-1] in (b"", b"\r"):
        lines.pop()
    if not lines:
        raise DataError(f"{path}: a header but no rows; write the vectors or remove the file")
    vectors, columns = _split_cells(path, lines, fields, value_column)
    del lines
    tokens = columns.pop(fields[id_column].name)
    _refuse_duplicates(path, tokens)
    values = _parse_vectors(path, vectors)
    _refuse_non_finite(path, values, tokens)
    names = fields[id_column].name, fields[value_column].name
    return FeatureTable(*names, tokens, values, columns), digest


def _feature_columns(path: str | Path, fields: list[Field]) -> tuple[int, int]:
    """Index of the id column (the first `token`) and of the only `float_seq` column."""
    ids = [i for i, f in enumerate(fields) if f.type == "token"]
    vectors = [i for i, f in enumerate(fields) if f.type == "float_seq"]
    if not ids or len(vectors) != 1:
        raise DataError(
            f"{path}, line 1: a feature file has an id column of type token and one vector column "
            f"of type float_seq; found: {', '.join(map(str, fields))}"
        )
    return ids[0], vectors[0]


def _split_cells(
    path: str | Path, lines: list[bytes], fields: list[Field], value_column: int
) -> tuple[list[bytes], dict[str, list[str]]]:
    """The vectors as bytes, and the other columns as text by name."""
    vectors, others = [], []
    for number, line in enumerate(lines, start=2):
        cells = line.rstrip(b"\r").split(b"\t")
        if len(cells) != len(fields):
            raise DataError(
                f"{path}, line {number}: {len(cells)} cells, the header has {len(fields)}; "
                "separate cells by exactly one tab"
            )
        vectors.append(cells.pop(value_column))
        try:
            others.append([_cell(path, number, cell.decode("utf-8")) for cell in cells])
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from None
        if others[-1][0] == "":
            raise DataError(f"{path}, line {number}: the id is empty; name the row or remove it")
    names = [field.name for i, field in enumerate(fields) if i != value_column]
    columns = {name: list(c) for name, c in zip(names, zip(*others, strict=True), strict=True)}
    return vectors, columns


def _cell(path: str | Path, number: int, cell: str) -> str:
    text = unquoted(cell)
    if text is None:
        raise DataError(
            f"{path}, line {number}: a cell opens a double quote that is not closed before the "
            f"next tab or line end ({cell[:40]}); close it"
        )
    return text


def _parse_vectors(path: str | Path, vectors: list[bytes]) -> np.ndarray:
    """Blank-separated numbers (n texts) to float32 (n, d).

    pandas' C parser takes 0.1 microseconds a number, given blocks that fit the cache; what it
    refuses is parsed again line by line, which accepts uneven blanks or finds the line at fault.
    """
    width = vectors[0].count(b" ") + 1
    if any(vector.count(b" ") + 1 != width for vector in vectors):
        return _parse_slowly(path, vectors)
    values = np.empty((len(vectors), width), np.float32)
    step = max(1, BLOCK_NUMBERS // width)
    for start in range(0, len(vectors), step):
        block = b"\n".join(vectors[start : start + step]).replace(b" ", b"\n")
        try:
            with np.errstate(over="ignore"):  # becomes inf, which is refused with its line
                column = pd.read_csv(
                    io.BytesIO(block),
                    header=None,
                    dtype=np.float32,
                    float_precision="high",
                    quoting=csv.QUOTE_NONE,
                    na_filter=False,
                    skip_blank_lines=False,
                    low_memory=False,
                )
            values[start : start + step] = column.to_numpy().reshape(-1, width)
        except ValueError:
            log.debug("%s: parsing line by line", path)
            return _parse_slowly(path, vectors)
    return values


def _parse_slowly(path: str | Path, vectors: list[bytes]) -> np.ndarray:
    rows = []
    for number, vector in enumerate(vectors, start=2):
        try:
            rows.append(np.array(vector.split(), dtype=np.float64))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}; write plain numbers") from None
        if len(rows[-1]) != len(rows[0]) or len(rows[-1]) == 0:
            raise DataError(
                f"{path}, line {number}: a vector of {len(rows[-1])} numbers, the first one has "
                f"{len(rows[0])}; all must have one width, at least 1"
            )
    with np.errstate(over="ignore"):
        return np.stack(rows).astype(np.float32)
