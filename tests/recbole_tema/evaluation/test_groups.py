"""Groups of targets, and the table that shows them."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_tema.errors import ConfigError
from recbole_tema.evaluation import evaluate_ranks, format_table, slice_counts, target_groups
from recbole_tema.evaluation.groups import popularity_thirds
from tests.support.evaluation_cases import make_plan, random_case, recbole_config

ALL = ["overlap", "popularity", "length", "cold", "repeat"]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 3), st.sampled_from(["valid", "test"]))
def test_every_target_is_in_one_bucket_of_each_grouping(seed, n_domains, phase):
    rng = np.random.default_rng(seed)
    lists, domains = random_case(rng, n_users=30, n_domains=n_domains, longest=60)
    plan = make_plan(lists, domains, phase=phase)
    groups = target_groups(plan, ALL, rng.integers(0, 6, len(domains)))
    for name in ALL:
        buckets = [mask for key, mask in groups.items() if key.startswith(f"{name}=")]
        assert (np.sum(buckets, axis=0) == 1).all()
    assert all(mask.any() for mask in groups.values())


def test_overlap_and_length_look_at_what_came_before_the_target():
    # Items 1 to 3 are of one domain, 4 to 6 of the other.
    lists = [[1, 2, 4, 3], [1, 2, 3, 4], [4, 1, 2, 3], [1, 1, 4, 4, 1, 1, 1]]
    valid, test = (make_plan(lists, [0, 1, 1, 1, 2, 2, 2], phase=p) for p in ("valid", "test"))
    spans = target_groups(valid, ["overlap", "length"], None)
    assert spans["overlap=yes"].tolist() == [False, False, True, True]
    assert spans["length=1-5"].all()
    spans = target_groups(test, ["overlap", "length"], None)
    assert spans["overlap=yes"].tolist() == [True, False, True, True]
    assert spans["length=6-10"].tolist() == [False, False, False, True]


def test_cold_has_no_training_event_and_repeat_was_had_before():
    lists = [[1, 2, 4, 3], [1, 3, 2, 3], [5, 5, 2, 5], [4, 2, 1, 6]]
    popularity = np.array([0, 4, 3, 0, 1, 0, 2])
    plan = make_plan(lists, [0, 1, 1, 1, 1, 1, 1])
    groups = target_groups(plan, ["cold", "repeat"], popularity)
    assert {name: mask.tolist() for name, mask in groups.items()} == {
        "cold=yes": [True, True, True, False],
        "cold=no": [False, False, False, True],
        "repeat=yes": [False, True, True, False],
        "repeat=no": [True, False, False, True],
    }
    assert "repeat=yes" not in target_groups(
        make_plan(lists, [0] + [1] * 6, exclude_history=True), ["repeat"], None
    )


@pytest.mark.parametrize(
    ("length", "bucket"),
    [(5, "1-5"), (6, "6-10"), (10, "6-10"), (11, "11-20"), (20, "11-20")]
    + [(21, "21-50"), (50, "21-50"), (51, "51+"), (400, "51+")],
)
def test_length_buckets_end_where_their_names_say(length, bucket):
    plan = make_plan([[1] * length + [2]], [0, 1, 1])
    assert list(target_groups(plan, "length", None)) == [f"length={bucket}"]


@pytest.mark.parametrize(
    ("popularity", "thirds"),
    [
        ([1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 2, 2]),
        ([6, 1, 5, 2, 4, 3], [2, 0, 2, 0, 1, 1]),
        ([7, 7, 7, 7], [1, 1, 1, 1]),
        ([0, 0, 0, 1, 9, 9], [0, 0, 0, 1, 2, 2]),
        ([0, 0, 0, 0, 0, 9], [1, 1, 1, 1, 1, 2]),
        ([3], [1]),
        ([], []),
    ],
)
def test_equal_popularity_is_never_split(popularity, thirds):
    assert popularity_thirds(np.array(popularity)).tolist() == thirds


@given(st.lists(st.integers(0, 40), min_size=1))
def test_thirds_rise_with_popularity_and_are_thirds_but_for_ties(popularity):
    popularity = np.array(popularity)
    thirds = popularity_thirds(popularity)
    order = np.argsort(popularity, kind="stable")
    assert (np.diff(thirds[order]) >= 0).all()
    assert all(len(set(thirds[popularity == p])) == 1 for p in popularity)
    # A boundary moves by half of a block of ties at most.
    half = np.unique(popularity, return_counts=True)[1].max() / 2
    for cut in (1, 2):
        assert abs((thirds < cut).sum() - cut * len(popularity) / 3) <= half + 1e-9


def test_popularity_is_that_of_the_targets():
    plan = make_plan([[1, 1, 1], [1, 1, 2], [1, 1, 3]], [0, 1, 1, 1, 1])
    groups = target_groups(plan, ["popularity"], np.array([0, 500, 3, 10, 7]))
    assert {key: int(np.flatnonzero(mask)[0]) for key, mask in groups.items()} == {
        "popularity=low": 1,
        "popularity=middle": 2,
        "popularity=high": 0,
    }


def test_empty_buckets_are_left_out_and_logged(caplog):
    plan = make_plan([[1, 1, 1]], [0, 1])
    with caplog.at_level(logging.INFO):
        assert list(target_groups(plan, ["overlap"], None)) == ["overlap=no"]
    assert [r.message for r in caplog.records] == [
        "test: no target in overlap=yes, no metrics for it"
    ]
    assert target_groups(plan, [], None) == {}


def test_an_unknown_grouping_is_named():
    plan = make_plan([[1, 1, 1]], [0, 1])
    with pytest.raises(ConfigError, match="eval_groups: 'age' is none of overlap, popularity"):
        target_groups(plan, ["length", "age"], None)


@pytest.fixture(scope="module")
def results():
    config = recbole_config()
    rng = np.random.default_rng(4)
    lists, domains = random_case(rng, n_users=300, n_items=100, n_domains=3, longest=60)
    found = {}
    for phase in ("valid", "test"):
        plan = make_plan(lists, domains, phase=phase)
        groups = target_groups(plan, ALL, rng.integers(0, 50, len(domains)))
        ranks = rng.integers(0, plan.n_candidates)
        found[phase] = evaluate_ranks(ranks, plan, config, groups)
        found["counts"] = slice_counts(plan, groups)
    return found


def cells(line):
    return line.split()


def test_the_table_shows_every_slice_with_its_own_numbers(results):
    text = format_table(results["valid"], results["test"], results["counts"])
    lines = text.splitlines()
    assert cells(lines[0]) == ["valid"] * 3 + ["test"] * 4
    keys = ["ndcg@10", "hit@10", "mrr@10"]
    assert cells(lines[1]) == keys + keys + ["targets"]
    rows = {cells(line)[0]: cells(line)[1:] for line in lines[3:]}
    assert list(rows) == list(results["counts"])
    for name, row in rows.items():
        prefix = "" if name == "overall" else f"{name}/"
        shown = [results[phase][prefix + key] for phase in ("valid", "test") for key in keys]
        assert row == [f"{value:.4f}" for value in shown] + [str(results["counts"][name])]


@pytest.mark.parametrize("metrics", ["main", "all", ["hit@5", "recall@20"]])
def test_the_table_fits_a_terminal(results, metrics):
    text = format_table(results["valid"], results["test"], results["counts"], metrics)
    assert max(map(len, text.splitlines())) <= 100


def test_the_whole_table_has_every_metric_once_a_phase(results):
    text = format_table(results["valid"], results["test"], results["counts"], "all")
    shown = [word for line in text.splitlines() for word in cells(line) if "@" in word]
    every = [key for key in results["test"] if "/" not in key]
    assert sorted(shown) == sorted(every * 2)


def test_a_missing_phase_slice_or_cutoff_is_shown_as_such(results):
    alone = format_table(None, results["test"], results["counts"])
    assert cells(alone.splitlines()[0]) == ["test"] * 4
    assert format_table(None, None, {}) == ""
    valid = {"ndcg@5": 0.5, "hit@5": 0.25, "d1/ndcg@5": 0.5, "d1/hit@5": 1.0, "gauc": 0.5}
    test = {"ndcg@5": 0.125, "hit@5": 0.75, "gauc": 0.5}
    lines = format_table(valid, test, {"overall": 4}).splitlines()
    assert cells(lines[1]) == ["ndcg@5", "hit@5"] * 2 + ["targets"]
    assert cells(lines[3]) == ["overall", "0.5000", "0.2500", "0.1250", "0.7500", "4"]
    assert cells(lines[4]) == ["d1", "0.5000", "1.0000", "-", "-", "-"]
    assert "gauc" in format_table(valid, test, {"overall": 4}, "all")
