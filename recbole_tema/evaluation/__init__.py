"""Ranking every model's scores against the same candidates, and RecBole's metrics on the ranks."""

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
from recbole_tema.evaluation.groups import popularity_notes, target_groups
from recbole_tema.evaluation.metrics import evaluate_ranks, needs_topk_items, slice_counts
from recbole_tema.evaluation.plan import EvalPlan
from recbole_tema.evaluation.table import format_table

__all__ = [
    "EvalPlan",
    "evaluate_ranks",
    "format_table",
    "needs_topk_items",
    "popularity_notes",
    "slice_counts",
    "target_groups",
]
