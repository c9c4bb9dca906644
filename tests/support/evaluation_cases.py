"""Random evaluation phases, and rankings counted one by one in plain Python."""

import numpy as np
import torch
from recbole.config import Config

from recbole_tema.evaluation import EvalPlan

BACK = {"valid": 2, "test": 1}


def flat(lists):
    """(items, offsets) of a list of sequences; user 0 is padding."""
    offsets = np.concatenate([[0, 0], np.cumsum([len(x) for x in lists])])
    return np.array([i for x in lists for i in x], dtype=np.int64), offsets


def make_plan(lists, item_domain, phase="test", **settings):
    """The plan of users 1, 2, ... with these sequences, as leave-one-out splits them."""
    item_domain = np.asarray(item_domain)
    users = np.array([u for u, x in enumerate(lists, start=1) if len(x) >= 2 + BACK[phase]])
    targets = np.array([lists[u - 1][-BACK[phase]] for u in users], dtype=np.int64)
    names = [f"d{i}" for i in range(1, item_domain.max() + 1)]
    places = np.array([len(lists[u - 1]) - BACK[phase] for u in users], dtype=np.int64)
    return EvalPlan(
        users, targets, places, item_domain, names, sequences=flat(lists), phase=phase, **settings
    )


def random_case(rng, n_users=40, n_items=60, n_domains=2, longest=12):
    """(sequences, item_domain): every domain has items, sequences may repeat them."""
    item_domain = np.concatenate(
        [np.arange(n_domains + 1), rng.integers(1, n_domains + 1, n_items)]
    )
    item_domain[1:] = rng.permutation(item_domain[1:])
    lists = [
        rng.integers(1, len(item_domain), rng.integers(4, longest + 1)).tolist()
        for _ in range(n_users)
    ]
    return lists, item_domain


def distinct_scores(rng, n_rows, n_items):
    """``(n_rows, n_items)`` float32 without ties inside a row."""
    return torch.from_numpy(rng.permuted(np.tile(np.arange(n_items), (n_rows, 1)), axis=1)).float()


def candidates_of(plan, lists, row, exclude_history=False):
    """The set of candidates in full mode, from the definition."""
    user, target = plan.users[row], plan.targets[row]
    found = {
        item
        for item in range(1, plan.n_items)
        if plan.candidates == "all" or plan.item_domain[item] == plan.item_domain[target]
    }
    if exclude_history:
        found -= set(lists[user - 1][: -BACK[plan.phase]])
    return found | {target}


def recbole_config(**values):
    """RecBole's own config object, with ``values`` over its defaults."""
    settings = {
        "metrics": ["Hit", "NDCG", "MRR", "Recall"],
        "topk": [5, 10, 20],
        "valid_metric": "NDCG@10",
        "train_neg_sample_args": None,
        "metric_decimal_place": 10,
    }
    return Config(model="SASRec", dataset="ml-100k", config_dict=settings | values)
