"""RecBole's own metrics on ranks: overall, per domain, per group of targets, and of one target.

Keys: ``ndcg@10`` overall, ``macro/ndcg@10`` the unweighted mean over the domains that have targets,
``<domain>/ndcg@10`` for each of these, then ``<grouping>=<bucket>/ndcg@10`` for each group that has
any, as in ``overlap=yes/ndcg@10``. Metrics without a cut-off have no ``@k``: ``macro/mrr``.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.evaluator import Evaluator
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metric_information

from recbole_tema.errors import ConfigError, EvaluationError
from recbole_tema.evaluation.plan import EvalPlan

if TYPE_CHECKING:
    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin

# What a metric may ask for: of each target's rank, and of the recommended items as a whole.
RANK_NEEDS = {"rec.topk", "rec.meanrank"}
ITEM_NEEDS = {"rec.items", "data.num_items", "data.count_items"}
# Name of the slice of all targets; its metrics have no prefix.
OVERALL = "overall"
MACRO = "macro"  # the slice that counts each domain alike
EXACT = 15  # decimals of what is averaged before it is rounded
# The metrics that `per_target` gives; reports show these alone.
PER_TARGET = ("hit", "ndcg", "mrr", "recall", "precision", "map")


def metric_names(config: "TemaConfig", needs: set[str]) -> list[str]:
    """The configured metrics, lower case, that need nothing but ``needs``.

    Raises:
        ConfigError: a metric is unknown, or needs the labels of rated pairs.
    """
    configured = config["metrics"]
    names = [name.lower() for name in ([configured] if isinstance(configured, str) else configured)]
    for name in names:
        if name not in metric_information:
            raise ConfigError(f"metrics: {name!r} is none of {', '.join(metric_information)}")
        if not set(metric_information[name]) <= RANK_NEEDS | ITEM_NEEDS:
            raise ConfigError(
                f"metrics: {name} compares scores with labels and cannot be had from a ranking; "
                "choose hit, ndcg, mrr, recall, precision, map, or one on recommended items"
            )
    return [name for name in names if set(metric_information[name]) <= needs]


def needs_topk_items(config: "TemaConfig") -> bool:
    """Whether a configured metric looks at the recommended items (``EvalPlan.topk_items``)."""
    rank_only = metric_names(config, RANK_NEEDS)
    return len(metric_names(config, RANK_NEEDS | ITEM_NEEDS)) > len(rank_only)


def metric_key(name: str, k: int | None) -> str:
    """``ndcg@10``; ``mrr`` where k is None, without a cut-off."""
    return name if k is None else f"{name}@{k}"


def metric_parts(key: str) -> tuple[str, int | None]:
    """(metric, k) of ``ndcg@10``; k is None for a metric without one."""
    name, _, k = key.partition("@")
    return name, int(k) if k else None


def per_target(name: str, ranks: np.ndarray, k: int | None) -> np.ndarray:
    """``(n,)`` float64: a metric at k of each target, one relevant item in each ranking.

    With one relevant item recall is hit, and map is mrr; ndcg is 1 / log2(rank + 1) within k.

    Args:
        name: of PER_TARGET. ranks: ``(n,)`` from 1. k: None for no cut-off.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    inside = ranks <= (np.inf if k is None else k)
    if name in ("hit", "recall"):
        return inside.astype(np.float64)
    if name == "precision" and k is not None:
        return inside / k
    if name in ("mrr", "map"):
        return np.where(inside, 1 / ranks, 0.0)
    if name == "ndcg":
        return np.where(inside, 1 / np.log2(ranks + 1), 0.0)
    raise ValueError(f"{name} is no metric of ranks")


def evaluate_ranks(
    ranks: np.ndarray | torch.Tensor,
    plan: EvalPlan,
    config: "TemaConfig",
    groups: Mapping[str, np.ndarray] | None = None,
    topk_items: np.ndarray | None = None,
    dataset: "CrossDomainMixin | None" = None,
) -> OrderedDict:
    """All metrics of one phase, as plain floats.

    Args:
        ranks: ``(n,)`` int64, zero-based, in the order of the plan's rows.
        config: RecBole's config: ``metrics``, ``topk``, ``metric_decimal_place``, ``tail_ratio``.
        groups: name -> ``(n,)`` bool, from ``groups.target_groups``.
        topk_items: ``(n, max(topk))`` recommended items, only for metrics that look at them
            (ItemCoverage, GiniIndex, ...). These are given overall, not per domain or group.
        dataset: its ``split_popularity()`` ``(n_items,)`` is asked for by AveragePopularity
            and TailPercentage alone.

    Returns:
        Name of the metric -> value, in the order of the module's documentation. A domain or group
        without targets has no key.

    Raises:
        ConfigError: a metric is unknown, or lacks what it needs.
        EvaluationError: the phase has no targets.
    """
    ranks = np.asarray(ranks, dtype=np.int64)
    if ranks.shape != plan.users.shape or ((ranks < 0) | (ranks >= plan.n_candidates)).any():
        raise ValueError(f"{ranks.shape} ranks are not one place of each of {len(plan)} targets")
    if not len(ranks):
        raise EvaluationError(
            f"{plan.phase}: no user has a target, so there is nothing to evaluate; the data needs "
            f"users with {3 if plan.phase == 'test' else 4} or more events"
        )
    data = _rank_data(ranks, plan.n_candidates, max(_topk(config)))
    names = metric_names(config, RANK_NEEDS | ITEM_NEEDS)
    if needs_topk_items(config):
        _add_item_data(data, names, plan, topk_items, dataset)
    result = _evaluate(config, names, data) | _uncut(config, ranks)
    names = metric_names(config, RANK_NEEDS)
    parts = {}
    for label, mask in slices(plan, groups).items():
        part = _rank_data(ranks[mask], plan.n_candidates[mask], max(_topk(config)))
        parts[label] = _evaluate(config, names, part) | _uncut(config, ranks[mask])
    domains = [parts[name] for name in plan.domain_names if name in parts]
    macro = {key: float(np.mean([part[key] for part in domains])) for key in domains[0]}
    for label, part in {MACRO: macro, **parts}.items():
        result.update((f"{label}/{key}", value) for key, value in part.items())
    decimals = config["metric_decimal_place"]
    return OrderedDict((key, round(value, decimals)) for key, value in result.items())


def slices(plan: EvalPlan, groups: Mapping[str, np.ndarray] | None = None) -> OrderedDict:
    """Name -> ``(n,)`` bool of each domain, then of each group, that has targets."""
    found = OrderedDict()
    for number, name in enumerate(plan.domain_names, start=1):
        found[name] = plan.target_domain == number
    found.update(groups or {})
    return OrderedDict((name, mask) for name, mask in found.items() if mask.any())


def slice_counts(plan: EvalPlan, groups: Mapping[str, np.ndarray] | None = None) -> OrderedDict:
    """Number of targets: ``overall``, ``macro``, then each domain and group that has any."""
    counts = OrderedDict({OVERALL: len(plan), MACRO: len(plan)})
    counts.update((name, int(mask.sum())) for name, mask in slices(plan, groups).items())
    return counts


def _uncut(config: "TemaConfig", ranks: np.ndarray) -> dict[str, float]:
    """The metrics without a cut-off of ``(n,)`` zero-based ranks."""
    names = config["uncut_metrics"] or ()
    return {
        name.lower(): float(per_target(name.lower(), ranks + 1, None).mean())
        for name in ([names] if isinstance(names, str) else names)
    }


def _topk(config: "TemaConfig") -> list[int]:
    topk = config["topk"]
    return [topk] if isinstance(topk, int) else list(topk)


def _rank_data(ranks: np.ndarray, n_candidates: np.ndarray, width: int) -> DataStruct:
    """What RecBole's Collector would have kept of these rankings, one positive in each.

    ``rec.topk`` ``(n, width + 1)``: hits by position, then the number of positives.
    ``rec.meanrank`` ``(n, 3)``: the positive's rank from 1, the candidates, the positives.
    """
    topk = torch.zeros((len(ranks), width + 1), dtype=torch.int32)
    inside = np.flatnonzero(ranks < width)
    topk[inside, ranks[inside]] = 1
    topk[:, -1] = 1
    data = DataStruct()
    data.set("rec.topk", topk)
    mean = np.stack([ranks + 1, n_candidates, np.ones_like(ranks)], axis=1)
    data.set("rec.meanrank", torch.from_numpy(mean))
    return data


def _add_item_data(
    data: DataStruct,
    names: list[str],
    plan: EvalPlan,
    topk_items: np.ndarray | None,
    dataset: "CrossDomainMixin | None",
) -> None:
    if topk_items is None:
        raise ConfigError("metrics: the metrics on recommended items need the top-k items")
    data.set("rec.items", torch.as_tensor(topk_items).cpu())
    data.set("data.num_items", plan.n_items)
    counted = any("data.count_items" in metric_information[name] for name in names)
    if counted and dataset is not None:
        popularity = np.asarray(dataset.split_popularity())
        trained = np.flatnonzero(popularity)
        counts = zip(trained.tolist(), popularity[trained].tolist(), strict=True)
        data.set("data.count_items", Counter(dict(counts)))


def _evaluate(config: "TemaConfig", names: list[str], data: DataStruct) -> OrderedDict:
    """RecBole's Evaluator on some of the configured metrics, not rounded yet."""
    settings = {
        "metrics": names,
        "topk": _topk(config),
        "metric_decimal_place": EXACT,
        "tail_ratio": config["tail_ratio"],
    }
    for name in names:
        lacking = [need for need in metric_information[name] if need not in data]
        if lacking:
            raise ConfigError(f"metrics: {name} needs {lacking[0]}, which is not known here")
    result = Evaluator(settings).evaluate(data)
    # Plain floats: a checkpoint that holds results must load without NumPy's types.
    return OrderedDict((key, float(value)) for key, value in result.items())
