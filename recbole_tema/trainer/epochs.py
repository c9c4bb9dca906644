"""One line for each epoch of a training: seconds, mean losses, the validation's score."""

from collections.abc import Sequence
from logging import getLogger
from time import perf_counter
from typing import TYPE_CHECKING, Any

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
from recbole.trainer import Trainer
from recbole.trainer import trainer as recbole_trainer

from recbole_tema.console import SCREEN
from recbole_tema.progress import PassingBar
from recbole_tema.trainer.distributed import of_all

if TYPE_CHECKING:
    from recbole_tema.trainer.trainer import TrainerLayer

# A sum over an epoch's batches, or one for each term of the loss.
Losses = float | tuple[float, ...]
SILENCE = 300  # seconds without a line, after which every epoch has one
# RecBole's trainers make their bars of this name: theirs stay, a line an epoch, and fill files.
recbole_trainer.tqdm = PassingBar


class CountedLoop(Trainer):
    """RecBole's loop over the batches: below its trainers, some of which run it more than once."""

    def _train_epoch(self, *args: Any, **kwargs: Any) -> Losses:
        before = self.report.n_batches
        total = super()._train_epoch(*args, **kwargs)
        self.report.add_loop(total, self.report.n_batches - before)
        return total


class EpochReport:
    """Collects what a trainer does in an epoch and tells it.

    Every epoch is told to the log file. The screen gets every one up to the tenth, then every fifth
    up to the 50th, every tenth up to the 100th, and so on, and the last: a long training stays
    readable, and each line names the best epoch so far.

    Args:
        trainer: RecBole's trainer with our layer on top.
    """

    def __init__(self, trainer: "TrainerLayer") -> None:
        self.trainer = trainer
        self.n_batches = 0  # of this epoch
        self.loops: list[
            tuple[Losses, int]
        ] = []  # (sum of losses, number of batches) of each loop over the training data
        self.told = True
        self._last_shown = perf_counter()

    def begin(self, epoch: int) -> None:
        """An epoch begins."""
        self.tell()
        self.epoch, self.told = epoch, False
        self.n_batches, self.loops = 0, []
        self.started = perf_counter()

    def add_loop(self, total: Losses, n_batches: int) -> None:
        """RecBole's loop over the batches is done: its sum of losses, a number or a tuple."""
        self.loops.append((total, n_batches))

    def trained(self, total: Losses) -> None:
        """The epoch's training is done; ``total`` is what the trainer gives for it."""
        # NCL's trainer has a loop of its own.
        loops = self.loops or [(total, self.n_batches)]
        means = [
            value / max(1, n)
            for losses, n in loops
            for value in (losses if isinstance(losses, tuple) else (losses,))
        ]
        self.losses = np.mean(of_all(means), axis=0)

    def tell(self, score: float | None = None) -> None:
        """Tell the epoch, if it is not told yet, with the validation's score if it has one."""
        if self.told:
            return
        self.told = True
        trainer, config = self.trainer, self.trainer.config
        decimals = config["loss_decimal_place"] or 4
        seconds = perf_counter() - self.started
        parts = [f"{seconds:.1f} s"]
        for name, value in zip(self._names(), self.losses, strict=True):
            parts.append(f"{name} {value:.{decimals}f}")
        if score is not None:
            parts.append(f"valid {config['valid_metric']} {score:.4f} ({self._best()})")
        last = self.epoch + 1 >= trainer.epochs or trainer.cur_step > trainer.stopping_step
        waited = perf_counter() - self._last_shown > SILENCE
        shown = last or waited or is_shown(self.epoch)
        if shown:
            self._last_shown = perf_counter()
        (SCREEN if shown else getLogger()).info(f"epoch {self.epoch}: {', '.join(parts)}")

    def _names(self) -> Sequence[str]:
        n_losses = len(self.losses)
        if n_losses == 1:
            return ["loss"]
        declared = getattr(self.trainer.model, "loss_names", ())
        if len(declared) == n_losses:
            return declared
        return [f"loss{number + 1}" for number in range(n_losses)]

    def _best(self) -> str:
        step = self.trainer.cur_step
        if not step:
            return "best so far"
        best = self.epoch - step * self.trainer.eval_step
        return f"best {self.trainer.best_valid_score:.4f}, epoch {best}"


def is_shown(epoch: int) -> bool:
    """Whether an epoch is one of those that a training of any length shows."""
    if epoch < 10:
        return True
    power = 10 ** (len(str(epoch)) - 1)
    return epoch % (power // 2 if epoch < 5 * power else power) == 0
