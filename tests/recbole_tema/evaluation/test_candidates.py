"""Negatives: distinct, unseen, of the pool, each as likely, and drawn by the seed alone."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recbole_tema.evaluation.test_plan import DOMAINS, SCORES, all_rows, domain_numbers, seeds
from tests.support.evaluation_cases import (
    candidates_of,
    distinct_scores,
    make_plan,
    random_case,
)


@settings(deadline=None)
@given(seeds, domain_numbers, st.sampled_from([1, 3, 20]), st.sampled_from(["in_domain", "all"]))
def test_negatives_are_distinct_unseen_and_of_the_pool(seed, n_domains, n, candidates):
    rng = np.random.default_rng(seed)
    lists, domains = random_case(rng, n_users=20, n_items=50, n_domains=n_domains)
    plan = make_plan(lists, domains, mode=f"uni{n}", candidates=candidates, neg_seed=seed)
    for row in all_rows(plan):
        eligible = candidates_of(plan, lists, row) - set(lists[plan.users[row] - 1])
        drawn = plan.negatives[row][plan.negatives[row] > 0].tolist()
        assert len(set(drawn)) == len(drawn) == min(n, len(eligible))
        assert set(drawn) <= eligible
        assert plan.n_candidates[row] == len(drawn) + 1
        listed = plan.candidate_items([row])[0].tolist()
        width = plan.negatives.shape[1]
        assert listed == [plan.targets[row], *drawn, *[0] * (width - len(drawn))]
    assert plan.negatives.shape[1] <= min(n, len(domains))


def test_more_negatives_than_items_are_all_items():
    domains = np.repeat([0, 1, 2], [1, 30, 10])
    plan = make_plan([[2, 3, 35, 17]] * 3, domains, mode="uni99999999999")
    assert plan.negatives.shape == (3, 30)
    assert [set(row) for row in plan.negatives.tolist()] == [{*range(31)} - {2, 3, 17}] * 3


@pytest.mark.parametrize("n", [4, 12, 24])  # drawn again on collision, by keys, nearly everything
def test_every_eligible_item_is_drawn_equally_often(n):
    # 30 items of domain 1, five of them the user's own; ten of domain 2.
    domains = np.repeat([0, 1, 2], [1, 30, 10])
    plan = make_plan([[2, 3, 35, 17, 29, 30]] * 5000, domains, mode=f"uni{n}")
    counts = np.bincount(plan.negatives.ravel(), minlength=41)
    own_or_other = np.r_[0, 2, 3, 17, 29, 30, 31:41]
    assert counts[own_or_other].sum() == 0
    share = n / 25
    expected = np.delete(counts, own_or_other)
    assert len(expected) == 25
    assert (abs(expected - 5000 * share) < 4.5 * np.sqrt(5000 * share * (1 - share))).all()


@pytest.mark.parametrize("n", [10, 60])
def test_sampled_ranks_agree_with_full_ones_in_expectation(n):
    rng = np.random.default_rng(3)
    lists, domains = random_case(rng, n_users=3000, n_items=250, n_domains=2)
    plan = make_plan(lists, domains, mode=f"uni{n}")
    scores = distinct_scores(rng, len(plan), plan.n_items)
    ranks = plan.ranks(scores, all_rows(plan)).numpy()
    # Hypergeometric: of E eligible items K score higher, n are drawn.
    eligible = domains == plan.target_domain[:, None]
    for row, user in enumerate(plan.users):
        eligible[row, lists[user - 1]] = False
    higher = scores.numpy() > scores.numpy()[all_rows(plan), plan.targets][:, None]
    size, above = eligible.sum(1), (eligible & higher).sum(1)
    share = above / size
    variance = n * share * (1 - share) * (size - n) / (size - 1)
    assert abs((ranks - n * share).sum()) < 4 * np.sqrt(variance.sum())


def test_a_user_with_nearly_all_of_a_domain_is_ranked_against_the_rest(caplog):
    lists = [[*range(1, 19), 25, 5], [25, 26, 27, 28], [1, 2, 3, 25]]
    domains = np.repeat([0, 1, 2], [1, 20, 30])
    with caplog.at_level(logging.WARNING):
        plan = make_plan(lists, domains, mode="uni10")
    assert sorted(plan.negatives[0]) == [0] * 8 + [19, 20]
    assert plan.n_candidates.tolist() == [3, 11, 11]
    assert [r.message for r in caplog.records if "fewer than 10" in r.message] == [
        "test: 1 of 3 targets have fewer than 10 items to draw negatives from; they are ranked "
        "against all of those"
    ]
    scores = torch.zeros(3, 51)
    scores[0, 19] = 1.0
    scores[0, 6] = 9.0
    scores[0, 20] = -1.0
    assert plan.ranks(scores, all_rows(plan))[0] == 1


def test_a_user_who_has_the_whole_domain_competes_with_nothing():
    plan = make_plan([[1, 2, 3, 4]], DOMAINS, mode="uni3")
    assert plan.n_candidates.tolist() == [1]
    assert plan.ranks(torch.tensor([SCORES]), [0]).tolist() == [0]


def test_the_draw_depends_on_its_seed_and_the_phase_alone():
    lists, domains = random_case(np.random.default_rng(0), n_users=50, n_items=300)
    first = make_plan(lists, domains, mode="uni20")
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state().clone()
    again = make_plan(lists, domains, mode="uni20")
    constant = torch.zeros(50, first.n_items)
    assert (first.negatives == again.negatives).all()
    assert first.ranks(constant, range(50)).tolist() == again.ranks(constant, range(50)).tolist()
    assert torch.equal(torch.get_rng_state(), state)
    other_seed = make_plan(lists, domains, mode="uni20", neg_seed=1)
    other_phase = make_plan([[*x, 1] for x in lists], domains, mode="uni20", phase="valid")
    assert (first.targets == other_phase.targets).all()
    for other in (other_seed, other_phase):
        assert (first.negatives != other.negatives).mean() > 0.5
        assert (
            first.ranks(constant, range(50)).tolist() != other.ranks(constant, range(50)).tolist()
        )


def test_ten_thousand_users_are_drawn_in_chunks_as_in_one():
    # More rows than one chunk, the last one short: every row still has its full number.
    rng = np.random.default_rng(5)
    lists, domains = random_case(rng, n_users=2500, n_items=900)
    plan = make_plan(lists, domains, mode="uni99")
    assert (plan.negatives > 0).all()
    assert (np.diff(np.sort(plan.negatives, axis=1), axis=1) > 0).all()
    assert (domains[plan.negatives] == plan.target_domain[:, None]).all()
