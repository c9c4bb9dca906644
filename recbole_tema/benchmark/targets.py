"""The targets of a phase, each with its rank, as a table on disk."""

import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from recbole_tema.data.atomic import replace_file
from recbole_tema.errors import DataError, how_to_get
from recbole_tema.evaluation.groups import spans_domains
from recbole_tema.library_errors import duckdb_interrupts

if TYPE_CHECKING:
    from recbole_tema.data.cross_domain import CrossDomainMixin
    from recbole_tema.evaluation.plan import EvalPlan

COLUMNS = ("user", "item", "domain", "rank", "candidates", "history", "overlap", "popularity")


def target_table(ranks: np.ndarray, plan: "EvalPlan", dataset: "CrossDomainMixin") -> pd.DataFrame:
    """One row a target, in the order of the plan's rows.

    Args:
        ranks: ``(n,)`` int, 0 is the first place. plan: an ``EvalPlan`` of n targets.

    Returns:
        user, item: their ids in the atomic files. domain: of the target. rank: from 1.
        candidates: how many were ranked. history: events before the target. overlap: whether they
        lie in several domains. popularity: training events of the target, before any are thinned.
    """
    popularity = dataset.split_popularity()
    names = np.asarray(["", *plan.domain_names], dtype=object)
    return pd.DataFrame(
        {
            "user": dataset.id2token(dataset.uid_field, plan.users).astype(object),
            "item": dataset.id2token(dataset.iid_field, plan.targets).astype(object),
            "domain": names[plan.target_domain],
            "rank": np.asarray(ranks, dtype=np.int64) + 1,
            "candidates": plan.n_candidates.astype(np.int64),
            "history": plan.history_lengths.astype(np.int64),
            "overlap": spans_domains(plan),
            "popularity": popularity[plan.targets].astype(np.int64),
        },
        columns=list(COLUMNS),
    )


def duckdb_package() -> ModuleType:
    """The package duckdb.

    Raises:
        DataError: it is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise DataError(f"duckdb is not installed: {how_to_get('benchmark')}") from None
    return duckdb


def write_targets(table: pd.DataFrame, path: Path) -> None:
    """Write `target_table`'s table as Parquet, whole or not at all."""
    duckdb = duckdb_package()
    part = path.with_name(f".{path.name}.part")
    try:
        with duckdb.connect() as database, duckdb_interrupts(database):
            database.from_df(table).write_parquet(str(part), compression="zstd")
        with replace_file(path) as file:
            file.write(part.read_bytes())
    finally:
        if part.exists():
            os.unlink(part)


def read_targets(path: Path) -> pd.DataFrame:
    """The table of `write_targets`.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    duckdb = duckdb_package()
    try:
        with duckdb.connect() as database, duckdb_interrupts(database):
            return database.read_parquet(str(path)).df()
    except duckdb.Error as error:
        words = str(error).splitlines()[0]
        raise DataError(f"{path}: {words}; delete the run's folder to have it run again") from None
