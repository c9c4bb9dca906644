"""A model's scores of one evaluation phase, ranked among the phase's candidates."""

from logging import getLogger

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_gpu_usage, set_color

from recbole_tema.evaluation import evaluate_ranks, needs_topk_items
from recbole_tema.progress import PassingBar
from recbole_tema.trainer.distributed import joined, rank, same_statistics, world_size
from recbole_tema.trainer.seeding import seeded


class EvalData:
    """A phase's batches with the plan that ranks them; its length is the number of batches.

    Attributes:
        groups: name -> ``(n_targets,)`` bool. notes: lines that say what these hold.
    """

    def __init__(self, loader, plan, groups=None, notes=()):
        self.loader, self.plan, self.groups, self.notes = loader, plan, groups, notes

    def __len__(self):
        return len(self.loader)


@torch.no_grad()
def evaluate_model(model, eval_data, config, dataset, show_progress=False):
    """Rank every target of a phase among its candidates; several processes share the batches.

    Args:
        model: any RecBole model, on ``config["device"]``. eval_data: an :class:`EvalData`.
        dataset: the whole dataset, for the items' features and popularity.

    Returns:
        (result, ranks): metrics overall, per domain (``thrill/ndcg@10``) and per group, in an
        OrderedDict; and ``(n_targets,)`` int64 ranks, 0 is first. Both are empty, with a warning
        in the log, where the phase has no targets.

    Raises:
        EvaluationError: a candidate's score is NaN or infinite.
    """
    plan = eval_data.plan
    ranks = np.full(len(plan), -1, dtype=np.int64)
    if not len(plan):
        told = f"; exclude_history leaves {len(plan.left_out)} out" if len(plan.left_out) else ""
        getLogger().warning(f"{plan.phase}: no user has a target, so there are no metrics{told}")
        return {}, ranks
    model.eval()
    needs_items = needs_topk_items(config)
    top = np.full((len(ranks), max(config["topk"])), -1) if needs_items else None
    batches = eval_data.loader
    if show_progress:
        title = set_color("Evaluate   ", "pink")
        batches = PassingBar(batches, total=len(eval_data), ncols=100, desc=title)
    # A few models add noise to their scores: it depends on the seed alone, and training goes on
    # drawing where it was.
    same_statistics(model)
    with seeded(config):
        for number, (rows, interaction) in enumerate(batches):
            if number % world_size() != rank():
                continue
            scores = score_items(model, interaction.to(config["device"]), dataset)
            ranks[rows] = plan.ranks(scores, rows).numpy()
            if needs_items:
                top[rows] = plan.topk_items(scores, rows, top.shape[1]).numpy()
            if show_progress and config["device"].type == "cuda":
                usage = get_gpu_usage(config["device"])
                batches.set_postfix_str(set_color(f"GPU RAM: {usage}", "yellow"))
    ranks = joined(ranks, config["device"])
    if needs_items:
        top = joined(top, config["device"])
    result = evaluate_ranks(
        ranks, plan, config, groups=eval_data.groups, topk_items=top, dataset=dataset
    )
    return result, ranks


def score_items(model, interaction, dataset):
    """``(B, n_items)`` scores of the whole catalogue for each row of ``interaction``.

    Args:
        interaction: what the model reads of a user or a history, on the model's device.
        dataset: the dataset with all items, for models that read their features.
    """
    try:
        scores = model.full_sort_predict(interaction)
    except NotImplementedError:
        scores = _score_pairs(model, interaction, dataset)
    # A few of RecBole's models score a mask token too, after the items.
    return scores.view(len(interaction), -1)[:, : dataset.item_num]


def _score_pairs(model, interaction, dataset):
    """For models that only score (user, item) pairs: every pair, in pieces."""
    n_items = dataset.item_num
    device = next(iter(interaction.interaction.values())).device
    items = dataset.get_item_feature().to(device)
    per_piece = max(1, int(dataset.config["eval_batch_size"]) // n_items)
    pieces = []
    for first in range(0, len(interaction), per_piece):
        part = interaction[first : first + per_piece]
        pairs = part.repeat_interleave(n_items)
        pairs.update(items.repeat(len(part)))
        pieces.append(model.predict(Interaction(pairs.interaction)).view(len(part), -1))
    return torch.cat(pieces)
