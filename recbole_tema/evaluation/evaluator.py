"""A model's scores of one evaluation phase, ranked among the phase's candidates."""

from collections.abc import Mapping, Sequence
from logging import getLogger
from typing import TYPE_CHECKING, Any

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_gpu_usage, set_color

from recbole_tema.errors import ConfigError
from recbole_tema.evaluation import (
    EvalPlan,
    evaluate_ranks,
    needs_topk_items,
    popularity_notes,
    slice_counts,
    target_groups,
)
from recbole_tema.progress import PassingBar
from recbole_tema.trainer.distributed import joined, rank, same_statistics, world_size
from recbole_tema.trainer.seeding import seeded

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin
    from recbole_tema.data.preparation import PreparedData


class EvalData:
    """A phase's batches with the plan that ranks them; its length is the number of batches.

    Attributes:
        groups: name -> ``(n_targets,)`` bool. notes: lines that say what these hold.
    """

    def __init__(
        self,
        loader: Any,
        plan: EvalPlan,
        groups: Mapping[str, np.ndarray] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.loader, self.plan, self.groups, self.notes = loader, plan, groups, notes

    def __len__(self) -> int:
        return len(self.loader)


def evaluation_data(
    config: "TemaConfig",
    dataset: "CrossDomainMixin",
    prepared: "PreparedData",
    validates: bool = False,
) -> dict[str, EvalData]:
    """Phase -> `EvalData`, with the groups that ``eval_groups`` asks for.

    Args:
        validates: whether ``valid_metric`` chooses an epoch by them.

    Raises:
        ConfigError: ``valid_metric`` is of a slice that has no targets.
    """
    # Not what overlap_ratio and train_on leave: the groups are the same for all of them.
    popularity = dataset.split_popularity()
    found = {}
    for phase, plan in prepared.plans.items():
        groups = target_groups(plan, config["eval_groups"], popularity)
        thirds = {name: mask for name, mask in groups.items() if name.startswith("popularity=")}
        notes = popularity_notes(popularity[plan.targets], thirds)
        found[phase] = EvalData(prepared.eval_data[phase], plan, groups, notes)
        if validates and config["eval_step"] and phase != "test":
            _check_valid_slice(config, found[phase])
    return found


def _check_valid_slice(config: "TemaConfig", eval_data: EvalData) -> None:
    part = config["valid_metric"].rpartition("/")[0]
    counts = slice_counts(eval_data.plan, eval_data.groups)
    if part and not counts.get(part):
        there = ", ".join(name for name, count in counts.items() if count) or "none has any"
        raise ConfigError(
            f"valid_metric is {config['valid_metric']!r}, but no validation target is in the slice "
            f"'{part}'; slices with targets: {there}"
        )


@torch.no_grad()
def evaluate_model(
    model: "AbstractRecommender",
    eval_data: EvalData,
    config: "TemaConfig",
    dataset: "CrossDomainMixin",
    show_progress: bool = False,
) -> tuple[dict[str, float], np.ndarray]:
    """Rank every target of a phase among its candidates; several processes share the batches.

    Args:
        model: any RecBole model, on ``config["device"]``. eval_data: an `EvalData`.
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
    top = None
    if needs_topk_items(config):
        top = np.full((len(ranks), max(config["topk"])), -1)
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
            if top is not None:
                top[rows] = plan.topk_items(scores, rows, top.shape[1]).numpy()
            if show_progress and config["device"].type == "cuda":
                usage = get_gpu_usage(config["device"])
                batches.set_postfix_str(set_color(f"GPU RAM: {usage}", "yellow"))
    ranks = joined(ranks, config["device"])
    if top is not None:
        top = joined(top, config["device"])
    result = evaluate_ranks(
        ranks, plan, config, groups=eval_data.groups, topk_items=top, dataset=dataset
    )
    return result, ranks


def score_items(
    model: "AbstractRecommender", interaction: Interaction, dataset: "CrossDomainMixin"
) -> torch.Tensor:
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


def _score_pairs(
    model: "AbstractRecommender", interaction: Interaction, dataset: "CrossDomainMixin"
) -> torch.Tensor:
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
