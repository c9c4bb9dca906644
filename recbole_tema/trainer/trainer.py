"""One trainer layer over RecBole's trainers, for our models and RecBole's own alike.

RecBole's loop, optimizers, early stopping and TensorBoard stay; replaced are the checkpoints, what
is needed to resume, and the evaluation (in-domain candidates, per-domain and group metrics).
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.utils import set_color

from recbole_tema.config.keys import may_read
from recbole_tema.config.rules import result_key
from recbole_tema.console import SCREEN
from recbole_tema.errors import CheckpointError, EvaluationError, TrainingError
from recbole_tema.evaluation.evaluator import EvalData, evaluate_model
from recbole_tema.trainer.average import WeightAverage
from recbole_tema.trainer.checkpoint import (
    check_belongs,
    dataset_fingerprint,
    events_fingerprint,
    load_weights,
    other_parameter,
    plain,
    plain_config,
    read_checkpoint,
    run_name,
    write_checkpoint,
)
from recbole_tema.trainer.distributed import (
    SharedGradients,
    SilentBoard,
    from_main,
    is_main,
    of_all,
    rank,
    world_size,
)
from recbole_tema.trainer.epochs import EpochReport, Losses
from recbole_tema.trainer.optimizer import LazyRows, decay_groups, fused, step_by_rows
from recbole_tema.trainer.seeding import random_state, set_random_state

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender
    from recbole.trainer import Trainer as Base

    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin
else:
    Base = object


class TrainerLayer(Base):
    """Mixed in before one of RecBole's trainer classes.

    Attributes:
        saved_model_file: the checkpoint of the best model.
        last_file: the whole state of the run after its last epoch; there while it is unfinished.
        epoch_seconds: training time of each epoch of this process.
        ranks: phase -> ``(n_targets,)`` int64 ranks of its last evaluation, 0 is first.
    """

    tensorboard: Any
    pretrain_epochs: int  # of RecBole's trainers that pretrain

    def __init__(
        self, config: "TemaConfig", model: "AbstractRecommender", dataset: "CrossDomainMixin"
    ) -> None:
        # RecBole would wrap the model for CUDA alone, and send frozen features at each step.
        single, config["single_spec"] = config["single_spec"], True
        self._train_data: Any = None
        self._shared: SharedGradients | None = None
        reads = may_read(config.model_class, "ema_decay")  # of others it is told to be idle
        self._average = WeightAverage(model, config["ema_decay"] if reads else None)
        self._lazy: LazyRows | None = None
        if not single and config["device"].type != "cpu":
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        super().__init__(config, model)
        config["single_spec"] = single
        folder = Path(config["checkpoint_dir"])
        self.fingerprint = dataset_fingerprint(dataset)
        name = run_name(config, self.fingerprint)
        self.saved_model_file = str(folder / f"{name}.pth")
        self.last_file = folder / f"{name}.last.pth"
        self.events = events_fingerprint(dataset)
        self.dataset, self.finished = dataset, False
        self.valid_metric = result_key(config["valid_metric"])
        self.ranks: dict[str, np.ndarray] = {}
        self.epoch_seconds: list[float] = []
        self.report = EpochReport(self)
        self._saves_last, self._validates, self._resumed_random_state = False, False, None
        if not is_main():
            self.tensorboard.close()
            self.tensorboard = SilentBoard()
        # RecBole would clip each process's own gradients, and cannot clip those of rows.
        if world_size() > 1 or self._lazy:
            self.clip_grad_norm = None

    def _state(self, epoch: int) -> dict[str, Any]:
        return {
            "model": self.config["model"],
            "dataset": self.config["dataset"],
            "fingerprint": self.fingerprint,
            "events": self.events,
            "config": plain_config(self.config),
            "given": plain(self.config.external_config_dict),
            "exclude_history": bool(self.dataset.exclude_history),
            "epoch": epoch,
            "state_dict": self.model.state_dict(),
            "other_parameter": other_parameter(self.model),
        }

    def _score_state(self) -> dict[str, Any]:
        return {
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": dict(self.best_valid_result or {}),
        }

    def _training_state(self) -> dict[str, Any]:
        return {
            "cur_step": self.cur_step,
            "optimizers": {name: o.state_dict() for name, o in self._optimizers().items()},
            "average": self._average.state_dict(),
            **self._score_state(),
        }

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Every optimizer once, by the name of its attribute: some trainers have several."""
        found: dict[str, torch.optim.Optimizer] = {}
        for name, value in sorted(vars(self).items(), reverse=True):
            if isinstance(value, torch.optim.Optimizer) and value not in found.values():
                found[name] = value
        return found

    def _save_checkpoint(self, epoch: int, verbose: bool = True) -> None:
        if is_main():
            with self._average.in_place():
                write_checkpoint(self.saved_model_file, self._state(epoch))
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {self.saved_model_file}")
        if not self._validates and epoch >= 0:
            self._save_last(epoch)

    def _save_last(self, epoch: int) -> None:
        if not self._saves_last:
            return
        states = of_all(random_state(self._train_data))
        if is_main():
            random = {"random": states[0], "random_of_others": states[1:]}
            state = {**self._state(epoch), **self._training_state(), **random}
            write_checkpoint(self.last_file, state)

    def pretrain(
        self, train_data: Any, verbose: bool = True, show_progress: bool = False
    ) -> tuple[float, dict[str, float] | None]:
        """RecBole's pretraining; its last epoch's model is kept.

        Where the user gave ``epochs`` and not ``pretrain_epochs``, for at most ``epochs``.
        """
        given = self.config.sources
        if "epochs" in given and "pretrain_epochs" not in given:
            self.pretrain_epochs = min(self.pretrain_epochs, self.epochs)
        own = self.saved_model_file
        result = super().pretrain(train_data, verbose, show_progress)
        if self.pretrain_epochs == 0 or self.pretrain_epochs % self.save_step:
            self.save_pretrained_model(self.pretrain_epochs - 1, own)
        return result

    def save_pretrained_model(self, epoch: int, saved_model_file: str | os.PathLike[str]) -> None:
        """RecBole's pretraining trainers write here; the last file is their result."""
        self.saved_model_file = str(saved_model_file)
        if is_main():
            write_checkpoint(saved_model_file, self._state(epoch))

    def resume(self) -> bool:
        """Go on with the run of this very configuration: unfinished, or finished before.

        Returns:
            Whether there was one.

        Raises:
            CheckpointError: a file of the run is damaged, or of another dataset.
        """
        unfinished, there = from_main(
            lambda: (self.last_file.is_file(), Path(self.saved_model_file).is_file())
        )
        if unfinished:
            self.resume_checkpoint(self.last_file)
            return True
        if not there:
            return False
        state = self._read_own(self.saved_model_file)
        if "best_valid_score" not in state:
            return False
        self._set_scores(state)
        self.finished = True
        SCREEN.info(f"{self.saved_model_file} is this run, finished: evaluating it again")
        return True

    def resume_checkpoint(self, resume_file: str | os.PathLike[str]) -> None:
        """Continue a run from its ``.last.pth``: weights, optimizer, random states, early stopping.

        Raises:
            CheckpointError: the file is damaged, or of another model, dataset or config.
        """
        state = self._read_own(resume_file)
        if "optimizers" not in state:
            raise CheckpointError(f"{resume_file} holds a finished model, not a run to resume")
        load_weights(self.model, state, resume_file, self.device)
        self._restore(state)
        if self.best_valid_result:
            # Found now, not after the last epoch: the best model so far is a file of its own.
            self._read_own(self.saved_model_file)
        SCREEN.info(f"Resuming after epoch {state['epoch']} from {resume_file}")

    def _restore(self, state: dict[str, Any]) -> None:
        for name, values in state["optimizers"].items():
            getattr(self, name).load_state_dict(values)
        self._average.load_state_dict(state.get("average", {}))
        self._set_scores(state)
        self.start_epoch = state["epoch"] + 1
        self.cur_step = state["cur_step"]
        self.finished = self.cur_step > self.stopping_step or self.start_epoch >= self.epochs
        states = [state["random"], *state.get("random_of_others", ())]
        self._resumed_random_state = states[rank()]

    def _set_scores(self, state: dict[str, Any]) -> None:
        self.best_valid_score = state["best_valid_score"]
        self.best_valid_result = state["best_valid_result"] or None

    def _read_own(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """A checkpoint of this model on these very data.

        Raises:
            CheckpointError: it is damaged or of other data.
        """
        state = self._read(path)
        check_belongs(state, path, self.config["model"], self.fingerprint)
        if state.get("events") != self.events:
            raise CheckpointError(
                f"{path} was trained on other interactions of dataset '{self.config['dataset']}' "
                f"than there are now; train again (without --resume=True)"
            )
        return state

    def _read(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """A checkpoint, read by the first process; of several, all get it on the CPU."""
        device = self.device if world_size() == 1 else "cpu"
        return from_main(lambda: read_checkpoint(path, device))

    def end_run(self) -> None:
        """Mark the best model's checkpoint as that of a finished run; drop what resuming needs."""
        if not is_main():
            return
        state = read_checkpoint(self.saved_model_file)
        write_checkpoint(self.saved_model_file, {**state, **self._score_state()})
        self.last_file.unlink(missing_ok=True)

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's optimizer, quicker; several processes average their gradients before a step."""
        if self.learner.lower() == "adamw" and getattr(self.model, "sequence_level", False):
            kwargs.setdefault("params", decay_groups(self.model, self.weight_decay))
        optimizer = fused(super()._build_optimizer(**kwargs))
        self._average.after_steps_of(optimizer)
        clip = self.config["clip_grad_norm"]
        if world_size() > 1:
            if self._shared is None:
                share = lambda: getattr(self._train_data, "share", 1.0)  # noqa: E731
                self._shared = SharedGradients(self.model, share, clip)
            self._shared.before_steps_of(optimizer)
        if not self._average.decay:  # which is of whole tables
            self._lazy = step_by_rows(self.model, optimizer, clip if world_size() == 1 else None)
        return optimizer

    def fit(
        self,
        train_data: Any,
        valid_data: EvalData | None = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], object] | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """RecBole's ``fit``; after each epoch the whole state of the run is kept on disk."""
        self._train_data = train_data
        self._saves_last = saved
        self._validates = bool(valid_data) and self.eval_step > 0
        if self._resumed_random_state is not None:
            set_random_state(self._resumed_random_state, train_data)
        if self.finished:
            return self.best_valid_score, self.best_valid_result
        if valid_data is not None and not len(valid_data) and self.eval_step > 0:
            self.logger.warning(
                "no user has a validation target (4 events): training goes on for all epochs, "
                "without early stopping, and the last epoch's model is evaluated"
            )

        def after_evaluation(epoch: int, score: float) -> None:
            self._save_last(epoch)
            self.report.tell(score)
            if callback_fn:
                callback_fn(epoch, score)

        result = super().fit(
            train_data, valid_data, verbose, saved, show_progress, after_evaluation
        )
        self.report.tell()
        if self.epochs == 0 and valid_data:
            self.best_valid_score, self.best_valid_result = self._valid_epoch(
                valid_data, show_progress
            )
            return self.best_valid_score, self.best_valid_result
        return result

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Callable[..., Any] | None = None,
        show_progress: bool = False,
    ) -> Losses:
        if hasattr(train_data, "set_epoch"):
            train_data.set_epoch(epoch_idx)
        self.report.begin(epoch_idx)
        start = perf_counter()
        loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        if self._lazy:
            self._lazy.settle_all()
        self.epoch_seconds.append(perf_counter() - start)
        self.report.trained(loss)
        if not self._validates:
            self.report.tell()
        elif (epoch_idx + 1) % self.eval_step:
            self.report.tell()
            self._save_last(epoch_idx)
        return loss

    def set_reduce_hook(self) -> None:
        """Nothing: gradients are shared before the optimizer's step, not during the backward."""

    def sync_grad_loss(self) -> int:
        """Nothing to add to the loss, for the same reason."""
        return 0

    def _check_nan(self, loss: torch.Tensor) -> None:
        self.report.n_batches += 1  # RecBole checks each batch
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the training loss became {loss.item()}; lower learning_rate or set "
                f"clip_grad_norm, e.g. --clip_grad_norm=\"{{'max_norm': 1.0}}\""
            )

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> tuple[float, dict[str, float]]:
        """RecBole's; early stopping would compare with NaN and keep no model at all.

        Raises:
            EvaluationError: the score of the validation is not finite.
        """
        score, result = super()._valid_epoch(*args, **kwargs)
        if not math.isfinite(score):
            raise EvaluationError(
                f"the validation's {self.config['valid_metric']} is {score}, so no model can be "
                f"chosen by it; check metrics and metric_decimal_place"
            )
        return score, result

    def evaluate(
        self,
        eval_data: EvalData,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> dict[str, float]:
        """Rank every target of a phase among its candidates: its metrics, as in `evaluate_model`.

        Raises:
            CheckpointError: the best model's file is damaged, or of another model or dataset.
        """
        if load_best_model:
            path = model_file or self.saved_model_file
            state = self._read(path)
            check_belongs(state, path, self.config["model"], self.fingerprint)
            load_weights(self.model, state, path, self.device)
            self._average.forget()
            of_epoch = f" (epoch {state['epoch']})" if state["epoch"] >= 0 else ""
            SCREEN.info(f"Loading model structure and parameters from {path}{of_epoch}")
        with self._average.in_place():
            found = evaluate_model(self.model, eval_data, self.config, self.dataset, show_progress)
        result, self.ranks[eval_data.plan.phase] = found
        self.wandblogger.log_eval_metrics(result, head="eval")
        return result
