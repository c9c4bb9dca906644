"""One trainer layer over RecBole's trainers, for our models and RecBole's own alike.

RecBole's loop, optimizers, early stopping and TensorBoard stay; replaced are the checkpoints, what
is needed to resume, and the evaluation (in-domain candidates, per-domain and group metrics).
"""

import hashlib
import json
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator.register import Register
from recbole.utils import get_trainer, set_color
from tqdm import tqdm

from recbole_tema.checkpoint import (
    check_belongs,
    dataset_fingerprint,
    pack_other,
    plain_config,
    random_state,
    read_checkpoint,
    set_random_state,
    unpack_other,
    write_checkpoint,
)
from recbole_tema.errors import CheckpointError, TrainingError
from recbole_tema.evaluation import evaluate_ranks

# Keys that say where or how long a run goes, not what it computes.
NOT_IN_RUN_NAME = {
    "checkpoint_dir", "data_path", "device", "epochs", "gpu_id", "ip", "local_rank", "nproc",
    "offset", "port", "resume", "show_progress", "state", "stopping_step", "verbose", "worker",
    "log_wandb", "wandb_project", "single_spec", "use_gpu", "benchmark_filename",
}  # fmt: skip


class EvalData:
    """A phase's batches with the plan that ranks them."""

    def __init__(self, loader, plan, groups=None):
        self.loader, self.plan, self.groups = loader, plan, groups
        self._dataset = loader._dataset

    def __len__(self):
        return len(self.loader)


def run_name(config) -> str:
    """``MODEL-DATASET-seedSEED-HASH``: the hash covers every key that changes the result."""
    relevant = {k: v for k, v in plain_config(config).items() if k not in NOT_IN_RUN_NAME}
    text = json.dumps(relevant, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{config['model']}-{config['dataset']}-seed{config['seed']}-{digest}"


class TrainerLayer:
    """Mixed in before one of RecBole's trainer classes."""

    def __init__(self, config, model, dataset):
        super().__init__(config, model)
        folder = Path(config["checkpoint_dir"])
        name = run_name(config)
        self.saved_model_file = str(folder / f"{name}.pth")
        self.last_file = folder / f"{name}.last.pth"
        self.fingerprint = dataset_fingerprint(dataset)
        self.dataset = dataset
        self.finished = False
        self.ranks = {}
        self.epoch_seconds = []
        self._train_data = None
        self._resumed_random_state = None

    # ---------------------------------------------------------------- checkpoints

    def _state(self, epoch, with_training):
        state = {
            "model": self.config["model"],
            "dataset": self.config["dataset"],
            "fingerprint": self.fingerprint,
            "config": plain_config(self.config),
            "epoch": epoch,
            "state_dict": self.model.state_dict(),
            "other_parameter": pack_other(self.model.other_parameter()),
        }
        if with_training:
            state |= {
                "cur_step": self.cur_step,
                "best_valid_score": float(self.best_valid_score),
                "best_valid_result": dict(self.best_valid_result or {}),
                "finished": self.cur_step > self.stopping_step,
                "optimizer": self.optimizer.state_dict(),
                "random": random_state(self._train_data),
            }
        return state

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        if not self.config["single_spec"] and self.config["local_rank"] != 0:
            return
        path = kwargs.pop("saved_model_file", self.saved_model_file)
        write_checkpoint(path, self._state(epoch, with_training=False))
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}")

    def save_pretrained_model(self, epoch, saved_model_file):
        """RecBole's pretraining trainers write here between their stages."""
        self._save_checkpoint(epoch, verbose=False, saved_model_file=saved_model_file)

    def resume_checkpoint(self, resume_file):
        """Continue a run from its ``.last.pth``: weights, optimizer, random states, early stopping.

        Raises:
            CheckpointError: the file is damaged, or of another model, dataset or config.
        """
        state = read_checkpoint(resume_file, self.device)
        check_belongs(state, resume_file, self.config["model"], self.fingerprint)
        if "optimizer" not in state:
            raise CheckpointError(f"{resume_file} holds a finished model, not a run to resume")
        self._load_state(state, resume_file)
        self.optimizer.load_state_dict(state["optimizer"])
        self.start_epoch = state["epoch"] + 1
        self.cur_step = state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        self.best_valid_result = state["best_valid_result"] or None
        self.finished = state["finished"] or self.start_epoch >= self.epochs
        self._resumed_random_state = state["random"]
        self.logger.info(f"Resuming after epoch {state['epoch']} from {resume_file}")

    def _load_state(self, state, path):
        try:
            self.model.load_state_dict(state["state_dict"])
        except RuntimeError as error:
            raise CheckpointError(
                f"{path} does not fit the model as configured: {str(error).splitlines()[-1].strip()}"
            ) from error
        self.model.load_other_parameter(unpack_other(state.get("other_parameter")))

    # ---------------------------------------------------------------- training

    def fit(
        self,
        train_data,
        valid_data=None,
        verbose=True,
        saved=True,
        show_progress=False,
        callback_fn=None,
    ):
        """RecBole's ``fit``; after each evaluation the whole state of the run is kept on disk."""
        self._train_data = train_data
        self._saves_last = saved
        if self.finished:
            return self.best_valid_score, self.best_valid_result
        if self._resumed_random_state is not None:
            set_random_state(self._resumed_random_state, train_data)

        def after_evaluation(epoch, score):
            self._save_last(epoch)
            if callback_fn:
                callback_fn(epoch, score)

        return super().fit(train_data, valid_data, verbose, saved, show_progress, after_evaluation)

    def _save_last(self, epoch):
        if self._saves_last and self.config["local_rank"] == 0:
            write_checkpoint(self.last_file, self._state(epoch, with_training=True))

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        if hasattr(train_data, "set_epoch"):
            train_data.set_epoch(epoch_idx)
        start = perf_counter()
        loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        self.epoch_seconds.append(perf_counter() - start)
        return loss

    def _check_nan(self, loss):
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the training loss became {loss.item()}; lower learning_rate or set "
                f"clip_grad_norm, e.g. --clip_grad_norm=\"{{'max_norm': 1.0}}\""
            )

    # ---------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """Rank every target of a phase among its candidates.

        Returns:
            OrderedDict of metrics, overall, per domain (``thrill/ndcg@10``) and per group; the
            ranks themselves stay in ``self.ranks[phase]``, ``(n_targets,)`` int64, 0 is first.
        """
        if not eval_data:
            return None
        if load_best_model:
            path = model_file or self.saved_model_file
            state = read_checkpoint(path, self.device)
            check_belongs(state, path, self.config["model"], self.fingerprint)
            self._load_state(state, path)
            self.logger.info(f"Loading model structure and parameters from {path}")
        self.model.eval()
        plan = eval_data.plan
        ranks = np.full(len(plan.users), -1, dtype=np.int64)
        needs_items = Register(self.config).need("rec.items")
        top = (
            np.zeros((len(ranks), max(self.config["topk"])), dtype=np.int64)
            if needs_items
            else None
        )
        batches = eval_data.loader
        if show_progress:
            batches = tqdm(batches, ncols=100, desc=set_color("Evaluate   ", "pink"))
        for rows, interaction in batches:
            scores = self._scores(interaction.to(self.device))
            ranks[rows] = plan.ranks(scores, torch.as_tensor(rows)).numpy()
            if needs_items:
                top[rows] = plan.topk_items(scores, torch.as_tensor(rows), top.shape[1]).numpy()
        self.ranks[plan.phase] = ranks
        result = evaluate_ranks(
            ranks, plan, self.config, groups=eval_data.groups, topk_items=top, dataset=self.dataset
        )
        self.wandblogger.log_eval_metrics(result, head="eval")
        return result

    def _scores(self, interaction):
        """``(B, n_items)`` scores of the whole catalogue."""
        n_items = self.dataset.item_num
        try:
            scores = self.model.full_sort_predict(interaction)
        except NotImplementedError:
            scores = self._scores_pairwise(interaction, n_items)
        return scores.view(len(interaction), -1)[:, :n_items]

    def _scores_pairwise(self, interaction, n_items):
        """For models that only score (user, item) pairs: every pair, in pieces."""
        if self.item_tensor is None:
            self.item_tensor = self.dataset.get_item_feature().to(self.device)
        per_piece = max(1, self.test_batch_size // n_items)
        pieces = []
        for first in range(0, len(interaction), per_piece):
            part = interaction[first : first + per_piece]
            pairs = part.repeat_interleave(n_items)
            pairs.update(self.item_tensor.repeat(len(part)))
            pieces.append(self.model.predict(Interaction(pairs.interaction)).view(len(part), -1))
        return torch.cat(pieces)


def build_trainer(config, model, dataset):
    """The RecBole trainer of a model, with our layer on top."""
    base = get_trainer(config["MODEL_TYPE"], config["model"])
    trainer_class = type(f"Tema{base.__name__}", (TrainerLayer, base), {})
    return trainer_class(config, model, dataset)
