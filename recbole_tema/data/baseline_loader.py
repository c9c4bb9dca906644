"""Evaluation batches for RecBole's own models, row by row the same targets as ours."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.data.transform import construct_transform
from recbole.utils import ModelType

from recbole_tema.errors import DataError

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin


class BaselineEvalLoader:
    """Yields ``(rows, Interaction)`` for a RecBole model; rows are those of the ``EvalPlan``.

    Sequential models get RecBole's own augmented rows, all others the users' own fields.
    """

    def __init__(
        self,
        config: "TemaConfig",
        dataset: "CrossDomainMixin",
        users: np.ndarray,
        targets: np.ndarray,
    ) -> None:
        self._dataset = dataset
        self.transform = construct_transform(config)
        self.sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self.users = torch.from_numpy(users)
        # RecBole counts a batch of a general model in scores, not users; do not run out of memory.
        per_batch = int(config["eval_batch_size"])
        self.batch_size = per_batch if self.sequential else max(1, min(per_batch, 1024))
        if self.sequential:
            # RecBole orders the rows by the users' first events, the plan by user id.
            order = np.argsort(dataset.inter_feat[dataset.uid_field].numpy(), kind="stable")
            # A plan can be about one domain's targets only.
            there = dataset.inter_feat[dataset.uid_field].numpy()[order]
            self.order = order[np.isin(there, users)]
            self._check_rows(users, targets)

    def _check_rows(self, users: np.ndarray, targets: np.ndarray) -> None:
        feat = self._dataset.inter_feat
        same = (
            len(self.order) == len(users)
            and np.array_equal(feat[self._dataset.uid_field].numpy()[self.order], users)
            and np.array_equal(feat[self._dataset.iid_field].numpy()[self.order], targets)
        )
        if not same:
            raise DataError(
                f"RecBole's split of '{self._dataset.dataset_name}' differs from this package's: "
                f"{len(self.order)} rows against {len(users)} targets; filters that drop events "
                f"(val_interval, *_inter_num_interval) must be applied when the files are made"
            )

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, Interaction]]:
        for first in range(0, len(self.users), self.batch_size):
            rows = np.arange(first, min(first + self.batch_size, len(self.users)))
            if self.sequential:
                batch = self._dataset[self.order[rows]]
            else:
                users = Interaction({self._dataset.uid_field: self.users[rows]})
                batch = self._dataset.join(users)
            yield rows, self.transform(self._dataset, batch)
