"""Rows of the feature files (text, image, LLM vectors, profiles) against items and users."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd

from recbole_tema.console import SCREEN
from recbole_tema.data.schema import FEATURE_FILES
from recbole_tema.errors import DataError

if TYPE_CHECKING:
    from recbole_tema.data.cross_domain import CrossDomainMixin


def check_feature_rows(dataset: "CrossDomainMixin") -> None:
    """Leave out profiles of users without events, and refuse vectors of items that are not there.

    To be called before anything is filtered, on a dataset whose files are loaded.

    Raises:
        DataError: a feature file has a row for an item that ``NAME.item`` does not have.
    """
    for suffix, id_field, frame in _feature_frames(dataset):
        stray = ~frame[id_field].isin(_known(dataset, suffix))
        if not stray.any():
            continue
        path = f"{dataset.dataset_path}/{dataset.dataset_name}.{suffix}"
        line, token = stray.idxmax() + 2, frame[id_field][stray].iloc[0]
        if suffix == "userllm":
            SCREEN.info(
                f"{path}: {int(stray.sum())} users without events left out (first: line {line}, "
                f"'{token}')"
            )
            setattr(dataset, f"{suffix}_feat", frame[~stray])
            continue
        raise DataError(
            f"{path}, line {line}: {id_field} '{token}' is not in {dataset.dataset_name}.item "
            f"({int(stray.sum())} such rows); add the item or remove these rows"
        )


def drop_filtered_rows(dataset: "CrossDomainMixin") -> None:
    """Drop the features of items and users that a filter took out."""
    for suffix, id_field, frame in _feature_frames(dataset):
        kept = frame[id_field].isin(_known(dataset, suffix))
        if not kept.all():
            setattr(dataset, f"{suffix}_feat", frame[kept].reset_index(drop=True))


def _known(dataset: "CrossDomainMixin", suffix: str) -> pd.Series:
    if suffix == "userllm":
        return dataset.inter_feat[dataset.uid_field]
    return dataset.item_feat[dataset.iid_field]


def _feature_frames(dataset: "CrossDomainMixin") -> Iterator[tuple[str, str, pd.DataFrame]]:
    for suffix, (id_field, _, alias) in FEATURE_FILES.items():
        frame = getattr(dataset, f"{suffix}_feat", None)
        if alias != "tag_id" and frame is not None and id_field in frame:
            yield suffix, id_field, frame
