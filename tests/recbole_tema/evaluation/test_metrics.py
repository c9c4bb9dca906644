"""Metrics against hand-computed values, trec_eval, scikit-learn and RecBole's own Collector."""

import math

import numpy as np
import pytest
import pytrec_eval
import torch
from recbole.evaluator import Collector, Evaluator
from sklearn.metrics import roc_auc_score

from recbole_tema.errors import ConfigError, EvaluationError
from recbole_tema.evaluation import evaluate_ranks, needs_topk_items, slice_counts, target_groups
from tests.support.evaluation_cases import (
    candidates_of,
    distinct_scores,
    make_plan,
    random_case,
    recbole_config,
)

ALL_RANK_METRICS = ["Hit", "NDCG", "MRR", "Recall", "Precision", "MAP", "GAUC"]


class Trained:
    """A dataset of which only the training popularity is asked."""

    def __init__(self, popularity):
        self.popularity = popularity

    def split_popularity(self):
        return self.popularity


@pytest.fixture(scope="module")
def config():
    return recbole_config(metrics=ALL_RANK_METRICS)


def five_targets():
    """Three targets of domain 1 and two of domain 2; 40 items each."""
    domains = np.repeat([0, 1, 2], [1, 40, 40])
    return make_plan([[9, 9, 1], [9, 9, 2], [9, 9, 3], [9, 9, 41], [9, 9, 42]], domains)


def test_hand_computed_values(config):
    result = evaluate_ranks(torch.tensor([0, 4, 9, 10, 1]), five_targets(), config)
    assert result["hit@5"] == pytest.approx(3 / 5)
    assert result["hit@10"] == pytest.approx(4 / 5)
    assert result["hit@20"] == 1.0
    assert result["mrr@10"] == pytest.approx((1 + 1 / 5 + 1 / 10 + 0 + 1 / 2) / 5)
    gains = [1 / math.log2(rank + 2) for rank in (0, 4, 9, 10, 1)]
    assert result["ndcg@10"] == pytest.approx((sum(gains) - gains[3]) / 5)
    assert result["ndcg@20"] == pytest.approx(sum(gains) / 5)
    assert result["d1/hit@5"] == pytest.approx(2 / 3)
    assert result["d2/hit@10"] == pytest.approx(1 / 2)
    assert result["d2/mrr@20"] == pytest.approx((1 / 11 + 1 / 2) / 2)
    # Beaten by 24 of 5 times 39 other candidates.
    assert result["gauc"] == pytest.approx(1 - 24 / (5 * 39))


def test_macro_counts_each_domain_alike_and_uncut_metrics_know_no_cut_off():
    uncut = recbole_config(metrics=["MRR"], topk=[2], uncut_metrics=["MRR", "NDCG"])
    groups = {"overlap=yes": np.array([True, False, False, True, False])}
    result = evaluate_ranks(np.array([0, 4, 9, 10, 1]), five_targets(), uncut, groups)
    first, second = (1 + 1 / 5 + 1 / 10) / 3, (1 / 11 + 1 / 2) / 2
    assert result["d1/mrr"] == pytest.approx(first) and result["d2/mrr"] == pytest.approx(second)
    assert result["mrr"] == pytest.approx((3 * first + 2 * second) / 5)
    assert result["macro/mrr"] == pytest.approx((first + second) / 2)
    assert result["overlap=yes/mrr"] == pytest.approx((1 + 1 / 11) / 2)
    assert result["macro/mrr@2"] == pytest.approx((1 / 3 + 1 / 4) / 2)  # beyond 2 it is 0
    gains = [1 / math.log2(rank + 2) for rank in (0, 4, 9, 10, 1)]
    assert result["ndcg"] == pytest.approx(sum(gains) / 5)
    rounded = recbole_config(metrics=["MRR"], topk=[2], metric_decimal_place=2)
    found = evaluate_ranks(np.array([0, 4, 9, 10, 1]), five_targets(), rounded)
    assert found["macro/mrr@2"] == 0.29  # of 0.3333 and 0.25, which alone round to 0.33 and 0.25


def test_keys_come_overall_then_by_domain_then_by_group_as_plain_floats(config):
    plan = five_targets()
    groups = {"overlap=yes": plan.targets < 3, "overlap=no": plan.targets >= 3}
    result = evaluate_ranks(np.arange(5), plan, config, groups)
    assert {type(value) for value in result.values()} == {float}
    prefixes = [key.rpartition("/")[0] for key in result]
    assert list(dict.fromkeys(prefixes)) == ["", "macro", "d1", "d2", "overlap=yes", "overlap=no"]
    names = [key for key in result if "/" not in key]
    assert names == [f"{m.lower()}@{k}" for m in ALL_RANK_METRICS[:-1] for k in (5, 10, 20)] + [
        "gauc"
    ]
    assert len(result) == 6 * len(names)
    assert dict(slice_counts(plan, groups)) == {
        "overall": 5,
        "macro": 5,
        "d1": 3,
        "d2": 2,
        "overlap=yes": 2,
        "overlap=no": 3,
    }


def test_overall_is_the_weighted_mean_of_the_domains_and_of_each_grouping(config):
    rng = np.random.default_rng(0)
    lists, domains = random_case(rng, n_users=200, n_items=150, n_domains=3, longest=30)
    plan = make_plan(lists, domains)
    groups = target_groups(
        plan, ["overlap", "popularity", "length"], rng.integers(0, 9, len(domains))
    )
    ranks = plan.ranks(distinct_scores(rng, len(plan), plan.n_items), range(len(plan)))
    result, counts = evaluate_ranks(ranks, plan, config, groups), slice_counts(plan, groups)
    for prefix in ("d", "overlap", "popularity", "length"):
        names = [name for name in counts if name.startswith(prefix)]
        assert sum(counts[name] for name in names) == 200
        for key in ("hit@5", "ndcg@10", "mrr@20", "gauc"):
            mean = sum(counts[name] * result[f"{name}/{key}"] for name in names) / 200
            assert mean == pytest.approx(result[key], abs=1e-9)


@pytest.mark.parametrize("settings", [{}, {"candidates": "all"}, {"exclude_history": True}])
def test_trec_eval_and_scikit_learn_agree(config, settings):
    rng = np.random.default_rng(1)
    lists, domains = random_case(rng, n_users=150, n_items=120, n_domains=3)
    plan = make_plan(lists, domains, phase="valid", **settings)
    scores = distinct_scores(rng, len(plan), plan.n_items)
    # Something to find: half of the targets end near the top.
    half = np.arange(0, len(plan), 2)
    scores[half, plan.targets[half]] = (
        plan.n_items - torch.from_numpy(rng.geometric(0.2, len(half))) - 0.5
    )
    relevant, run, auc = {}, {}, []
    for row, target in enumerate(plan.targets):
        among = sorted(candidates_of(plan, lists, row, settings.get("exclude_history", False)))
        run[str(row)] = {str(item): float(scores[row, item]) for item in among}
        relevant[str(row)] = {str(target): 1}
        labels = [item == target for item in among]
        auc.append(roc_auc_score(labels, scores[row, among]))
    names = {"ndcg_cut": "ndcg", "success": "hit", "recall": "recall", "P": "precision"}
    names["map_cut"] = "map"
    judge = pytrec_eval.RelevanceEvaluator(relevant, {f"{name}.5,10,20" for name in names})
    judged = judge.evaluate(run).values()
    result = evaluate_ranks(plan.ranks(scores, range(len(plan))), plan, config)
    for theirs, ours in names.items():
        for k in (5, 10, 20):
            mean = np.mean([user[f"{theirs}_{k}"] for user in judged])
            assert 0.05 / k < mean < 1
            assert result[f"{ours}@{k}"] == pytest.approx(mean, abs=1e-9)
    for k in (5, 10, 20):
        best = {q: dict(sorted(r.items(), key=lambda x: -x[1])[:k]) for q, r in run.items()}
        judged = pytrec_eval.RelevanceEvaluator(relevant, {"recip_rank"}).evaluate(best)
        mean = np.mean([user["recip_rank"] for user in judged.values()])
        assert result[f"mrr@{k}"] == pytest.approx(mean, abs=1e-9)
    assert result["gauc"] == pytest.approx(np.mean(auc), abs=1e-9)


@pytest.mark.parametrize("mode", ["full", "uni30"])
def test_recboles_collector_and_evaluator_agree(mode):
    config = recbole_config(
        metrics=[
            *ALL_RANK_METRICS,
            *("ItemCoverage", "GiniIndex", "ShannonEntropy", "AveragePopularity", "TailPercentage"),
        ],
        metric_decimal_place=6,
        device="cpu",
        use_gpu=False,
    )
    rng = np.random.default_rng(2)
    lists, domains = random_case(rng, n_users=120, n_items=200)
    plan = make_plan(lists, domains, mode=mode)
    scores, rows = distinct_scores(rng, len(plan), plan.n_items), torch.arange(len(plan))
    popularity = np.bincount(rng.integers(1, 150, 900), minlength=plan.n_items)

    masked = torch.full_like(scores, -torch.inf)
    for row, target in enumerate(plan.targets):
        among = candidates_of(plan, lists, row)
        if plan.negatives is not None:
            among = {target, *plan.negatives[row].tolist()}
        masked[row, sorted(among)] = scores[row, sorted(among)]
    collector = Collector(config)
    collector.data_struct.set("data.num_items", torch.tensor(plan.n_items))
    for part in rows.split(50):
        collector.eval_batch_collect(
            masked[part], None, torch.arange(len(part)), torch.from_numpy(plan.targets[part])
        )
    collected = collector.get_data_struct()
    collected.set("data.num_items", plan.n_items)
    collected.set("data.count_items", {i: int(n) for i, n in enumerate(popularity) if n})
    theirs = Evaluator(config).evaluate(collected)

    assert needs_topk_items(config)
    ours = evaluate_ranks(
        plan.ranks(scores, rows),
        plan,
        config,
        topk_items=plan.topk_items(scores, rows, 20),
        dataset=Trained(popularity),
    )
    overall = {key: value for key, value in ours.items() if "/" not in key}
    assert list(overall) == list(theirs)
    # Of these metrics RecBole computes GAUC in single precision.
    assert overall == pytest.approx(dict(theirs), abs=1e-7)
    assert {key.split("@")[0] for key in ours if "/" in key} == {
        f"{d}/{m.lower()}" for d in ("macro", "d1", "d2") for m in ALL_RANK_METRICS
    }


def test_a_domain_without_targets_has_no_metrics(config):
    plan = make_plan([[1, 2, 3]], [0, 1, 1, 1, 2])
    result = evaluate_ranks([0], plan, config)
    assert {key.rpartition("/")[0] for key in result} == {"", "macro", "d1"}
    assert result["macro/hit@5"] == result["d1/hit@5"]
    assert "d2" not in slice_counts(plan)


@pytest.mark.parametrize("name", ["AUC", "LogLoss", "MAE", "RMSE"])
def test_metrics_on_labels_are_refused(name):
    values = {"metrics": ["Hit", name], "topk": [10], "metric_decimal_place": 4}
    with pytest.raises(ConfigError, match=f"metrics: {name.lower()} compares scores with labels"):
        evaluate_ranks([0, 1, 2, 3, 4], five_targets(), values)


def test_unknown_metrics_are_named():
    with pytest.raises(ConfigError, match=r"metrics: 'hits' is none of .*hit.*ndcg"):
        needs_topk_items({"metrics": ["NDCG", "Hits"]})


def test_what_a_metric_lacks_is_named():
    ranks, plan = [0, 1, 2, 3, 4], five_targets()
    coverage = recbole_config(metrics=["ItemCoverage"], topk=10)
    with pytest.raises(ConfigError, match="recommended items need the top-k items"):
        evaluate_ranks(ranks, plan, coverage)
    top = np.arange(1, 11)[None].repeat(5, axis=0)
    result = evaluate_ranks(ranks, plan, coverage, topk_items=top)
    assert result == {"itemcoverage@10": pytest.approx(10 / 81)}
    popularity = recbole_config(metrics=["AveragePopularity"])
    with pytest.raises(ConfigError, match=r"averagepopularity needs data\.count_items"):
        evaluate_ranks(ranks, plan, popularity, topk_items=top)


def test_a_phase_without_targets_is_an_error(config):
    plan = make_plan([[1, 2, 3]], [0, 1, 1, 1, 2], phase="valid")
    assert len(plan) == 0
    assert plan.ranks(torch.zeros(0, 5), []).tolist() == []
    with pytest.raises(EvaluationError, match=r"valid: no user has a target.* 4 or more events"):
        evaluate_ranks([], plan, config)


@pytest.mark.parametrize("ranks", [[0, 1, 2, 3], [0, 1, 2, 3, -1], [0, 1, 2, 3, 40]])
def test_ranks_that_no_target_can_have_are_refused(config, ranks):
    with pytest.raises(ValueError, match="not one place of each of 5 targets"):
        evaluate_ranks(ranks, five_targets(), config)
