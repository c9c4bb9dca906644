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

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin
    from recbole_tema.evaluation.plan import EvalPlan


class BaselineEvalLoader:
    """Yields ``(rows, Interaction)`` for a RecBole model; rows are those of the ``EvalPlan``.

    Sequential models get the rows of ``dataset``, which are the phase's targets in their order;
    all others the users' own fields.
    """

    def __init__(self, config: "TemaConfig", dataset: "CrossDomainMixin", plan: "EvalPlan") -> None:
        self._dataset, self.plan = dataset, plan
        self.transform = construct_transform(config)
        self.sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        # RecBole counts a batch of a general model in scores, not users; do not run out of memory.
        per_batch = int(config["eval_batch_size"])
        self.batch_size = per_batch if self.sequential else max(1, min(per_batch, 1024))

    def __len__(self) -> int:
        return -(-len(self.plan) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, Interaction]]:
        for first in range(0, len(self.plan), self.batch_size):
            rows = np.arange(first, min(first + self.batch_size, len(self.plan)))
            if self.sequential:
                batch = self._dataset[self.plan.rows[rows]]
            else:
                users = torch.from_numpy(self.plan.users[rows])
                batch = self._dataset.join(Interaction({self._dataset.uid_field: users}))
            yield rows, self.transform(self._dataset, batch)
