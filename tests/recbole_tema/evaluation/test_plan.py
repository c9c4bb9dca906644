"""Candidates, negatives and ranks against counting by hand, and properties that must hold."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_tema.errors import ConfigError, EvaluationError
from recbole_tema.evaluation.candidates import build_pools, own_places, sample_negatives
from tests.support.evaluation_cases import (
    candidates_of,
    distinct_scores,
    flat,
    make_plan,
    random_case,
)

seeds = st.integers(0, 10_000)
domain_numbers = st.integers(2, 3)

# Items 1 to 4 are of domain 1, 5 to 7 of domain 2.
DOMAINS = [0, 1, 1, 1, 1, 2, 2, 2]
SCORES = [9.0, 0.5, 0.4, 0.3, 0.2, 3.0, 2.0, 1.0]


def all_rows(plan):
    return np.arange(len(plan))


@pytest.mark.parametrize(
    ("settings", "rank", "n_candidates"),
    [
        ({}, 2, 4),
        ({"candidates": "all"}, 5, 7),
        ({"exclude_history": True}, 1, 3),
        ({"candidates": "all", "exclude_history": True}, 3, 5),
    ],
)
def test_rank_of_a_hand_counted_example(settings, rank, n_candidates):
    # Target 3; before it the user had 1 (above it) and 6 (of the other domain, above it).
    plan = make_plan([[1, 6, 3]], DOMAINS, **settings)
    assert plan.ranks(torch.tensor([SCORES]), [0]).tolist() == [rank]
    assert plan.n_candidates.tolist() == [n_candidates]


def test_validation_knows_nothing_of_the_test_item():
    # History 1, 2; validation target 4; test target 3, which stays a candidate.
    plan = make_plan([[1, 2, 4, 3]], DOMAINS, phase="valid", exclude_history=True)
    assert plan.ranks(torch.tensor([SCORES]), [0]).tolist() == [1]
    assert plan.n_candidates.tolist() == [2]


@pytest.mark.parametrize("mode", ["full", "uni2"])
def test_a_target_that_the_user_had_before_is_no_test_case(mode):
    # Of domain 1: 3 again. Of domain 2: 6 again, and 7, which is new. 5 comes again in between.
    lists = [[1, 3, 3], [6, 1, 6], [1, 2, 3], [5, 5, 1, 7]]
    plan = make_plan(lists, DOMAINS, mode=mode, exclude_history=True)
    assert plan.users.tolist() == [3, 4] and plan.targets.tolist() == [3, 7]
    assert plan.left_out.tolist() == [1, 2]
    assert [plan.of_domains([d]).left_out.tolist() for d in (1, 2)] == [[1], [2]]
    assert [plan.of_domains([d]).users.tolist() for d in (1, 2)] == [[3], [4]]
    kept = make_plan(lists, DOMAINS, mode=mode)
    assert kept.users.tolist() == [1, 2, 3, 4] and not len(kept.left_out)


@settings(deadline=None)
@given(
    seeds,
    st.sampled_from(["in_domain", "all"]),
    st.sampled_from(["full", "uni7"]),
    st.sampled_from(["valid", "test"]),
)
def test_copying_the_past_is_worth_nothing_without_it(seed, candidates, mode, phase):
    """It ends where a model does that scores all items alike, also where much comes again."""
    rng = np.random.default_rng(seed)
    lists, domains = random_case(rng, n_users=30, n_items=12, longest=9)
    keys = {"candidates": candidates, "mode": mode, "phase": phase}
    plan = make_plan(lists, domains, **keys, exclude_history=True)
    scores = torch.zeros(len(plan), plan.n_items)
    for row, user in enumerate(plan.users):
        past = lists[user - 1][: -1 if phase == "test" else -2]
        assert plan.targets[row] not in past
        scores[row, past] = 1.0
    copied = plan.ranks(scores, all_rows(plan))
    assert torch.equal(copied, plan.ranks(torch.zeros_like(scores), all_rows(plan)))
    whole = make_plan(lists, domains, **keys)
    assert len(plan) + len(plan.left_out) == len(whole)
    if mode == "uni7":  # the same negatives and ties as with the past
        rows = np.flatnonzero(np.isin(whole.users, plan.users))
        assert np.array_equal(plan.negatives, whole.negatives[rows])
        scores = torch.from_numpy(rng.integers(0, 3, (len(whole), plan.n_items))).float()
        ranks = plan.ranks(scores[rows], all_rows(plan))
        assert torch.equal(ranks, whole.ranks(scores, all_rows(whole))[rows])


@settings(deadline=None)
@given(seeds, domain_numbers, st.sampled_from(["in_domain", "all"]), st.booleans())
def test_full_ranks_are_those_of_counting(seed, n_domains, candidates, exclude):
    rng = np.random.default_rng(seed)
    lists, domains = random_case(rng, n_users=6, n_items=15, n_domains=n_domains, longest=9)
    plan = make_plan(lists, domains, candidates=candidates, exclude_history=exclude)
    scores = distinct_scores(rng, len(plan), plan.n_items)
    counted, sizes = [], []
    for row, target in enumerate(plan.targets):
        among = candidates_of(plan, lists, row, exclude)
        counted.append(sum(float(scores[row, i] > scores[row, target]) for i in among))
        sizes.append(len(among))
    assert plan.ranks(scores, all_rows(plan)).tolist() == counted
    assert plan.n_candidates.tolist() == sizes


@settings(deadline=None)
@given(seeds, domain_numbers, st.sampled_from(["full", "uni7"]), st.booleans())
def test_batches_and_their_order_change_nothing(seed, n_domains, mode, exclude):
    rng = np.random.default_rng(seed)
    lists, domains = random_case(rng, n_users=25, n_domains=n_domains)
    plan = make_plan(lists, domains, mode=mode, exclude_history=exclude)
    scores = torch.from_numpy(rng.integers(0, 4, (len(plan), plan.n_items))).double()
    whole = plan.ranks(scores, all_rows(plan))
    shuffled = rng.permutation(len(plan))
    for rows in np.array_split(shuffled, rng.integers(2, 9)):
        assert plan.ranks(scores[rows], torch.from_numpy(rows)).tolist() == whole[rows].tolist()


@settings(deadline=None)
@given(seeds, domain_numbers, st.booleans())
def test_new_item_numbers_change_nothing(seed, n_domains, exclude):
    rng = np.random.default_rng(seed)
    lists, domains = random_case(rng, n_domains=n_domains)
    plan = make_plan(lists, domains, exclude_history=exclude)
    new = np.concatenate([[0], rng.permutation(plan.n_items - 1) + 1])
    scores = torch.from_numpy(rng.integers(0, 5, (len(plan), plan.n_items))).float()
    domains_2, scores_2 = np.zeros_like(domains), torch.empty_like(scores)
    domains_2[new] = domains
    scores_2[:, new] = scores
    plan_2 = make_plan(
        [[int(new[i]) for i in x] for x in lists], domains_2, exclude_history=exclude
    )
    ranks, ranks_2 = (p.ranks(s, all_rows(p)) for p, s in ((plan, scores), (plan_2, scores_2)))
    assert ranks.tolist() == ranks_2.tolist()


@pytest.mark.parametrize("mode", ["full", "uni49"])
@pytest.mark.parametrize("exclude", [False, True])
def test_a_constant_model_ends_at_chance(mode, exclude):
    rng = np.random.default_rng(1)
    lists, domains = random_case(rng, n_users=6000, n_items=200, n_domains=3)
    plan = make_plan(lists, domains, mode=mode, exclude_history=exclude)
    ranks = plan.ranks(torch.ones(len(plan), plan.n_items), all_rows(plan)).numpy()
    chance = 10 / plan.n_candidates
    sigma = np.sqrt((chance * (1 - chance)).sum())
    assert abs((ranks < 10).sum() - chance.sum()) < 4 * sigma
    assert (ranks < plan.n_candidates).all()


def test_ties_take_each_tied_place_equally_often_below_what_is_better():
    # One item above the target, two beside it, the target among them: ranks 1, 2 and 3.
    plan = make_plan([[5, 6, 1]] * 3000, DOMAINS)
    scores = torch.tensor([[0.0, 1, 2, 1, 1, 1, 1, 1]]).repeat(3000, 1)
    values, counts = plan.ranks(scores, all_rows(plan)).unique(return_counts=True)
    assert values.tolist() == [1, 2, 3]
    assert (abs(counts - 1000) < 4 * np.sqrt(3000 * 2 / 9)).all()


def test_scores_of_listed_candidates_give_the_same_ranks():
    rng = np.random.default_rng(6)
    lists, domains = random_case(rng, n_users=60, n_items=40, n_domains=3)
    plan = make_plan(lists, domains, mode="uni15")
    assert (plan.negatives == 0).any()
    scores = torch.from_numpy(rng.integers(0, 6, (len(plan), plan.n_items))).float()
    rows = all_rows(plan)
    listed = scores.gather(1, plan.candidate_items(rows))
    listed[plan.candidate_items(rows) == 0] = torch.nan
    assert plan.ranks_from_candidates(listed, rows).tolist() == plan.ranks(scores, rows).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_rank_by_their_own_values(dtype):
    rng = np.random.default_rng(7)
    lists, domains = random_case(rng, n_users=30, n_items=300)
    scores = torch.randn(30, len(domains), generator=torch.Generator().manual_seed(0)).to(dtype)
    scores.requires_grad_()
    for mode in ("full", "uni20"):
        plan = make_plan(lists, domains, mode=mode)
        exact = plan.ranks(scores.detach().double(), range(30))
        assert plan.ranks(scores, range(30)).tolist() == exact.tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("settings", [{}, {"exclude_history": True}, {"mode": "uni2"}])
def test_a_score_that_is_not_finite_is_refused(value, settings):
    plan = make_plan([[5, 6, 1]] * 2 + [[1, 2, 5]], DOMAINS, **settings)
    for bad_items in ([1], plan.negatives[1].tolist() if plan.negatives is not None else [2, 4]):
        scores = torch.tensor([SCORES] * 3)
        scores[1, bad_items] = value
        with pytest.raises(EvaluationError) as error:
            plan.ranks(scores, range(3))
        assert str(error.value).startswith(
            f"test: {len(bad_items)} of {plan.n_candidates[1]} candidates' scores of row 1 "
            "(user id 2) are NaN or infinite, and the same in 0 more rows"
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_candidate_may_score_anything(value):
    # Target 1 of domain 1, history 2 and 6.
    plan = make_plan([[2, 6, 1]], DOMAINS, exclude_history=True)
    scores = torch.tensor([SCORES])
    scores[0, [0, 2, 5, 6, 7]] = value
    assert plan.ranks(scores, [0]).tolist() == [0]
    scores[0, 3] = 0.6
    assert plan.ranks(scores, [0]).tolist() == [1]
    scores[0, [3, 4]] = torch.nan
    with pytest.raises(EvaluationError, match="test: 2 of 3 candidates' scores of row 0"):
        plan.ranks(scores, [0])


def test_recommended_items_are_the_best_candidates():
    rng = np.random.default_rng(8)
    lists, domains = random_case(rng, n_users=30, n_items=80)
    for values in ({}, {"exclude_history": True}, {"candidates": "all"}, {"mode": "uni9"}):
        plan = make_plan(lists, domains, **values)
        scores = distinct_scores(rng, len(plan), plan.n_items)
        top = plan.topk_items(scores, all_rows(plan), 5)
        ranks = plan.ranks(scores, all_rows(plan))
        for row, target in enumerate(plan.targets):
            if plan.negatives is not None:
                among = {target, *plan.negatives[row].tolist()}
            else:
                among = candidates_of(plan, lists, row, values.get("exclude_history", False))
            best = sorted(among, key=lambda i: -scores[row, i])[:5]
            assert top[row].tolist() == best
            assert (target in best) == bool(ranks[row] < 5)
    with pytest.raises(ConfigError, match="need 11 candidates, a user has 10"):
        plan.topk_items(scores, range(30), 11)


def test_padding_is_never_recommended():
    # Target 1, and 4 is all that is left to draw: the list of candidates is padded with item 0.
    plan = make_plan([[2, 3, 1]], DOMAINS, mode="uni3")
    assert plan.topk_items(torch.tensor([SCORES]), [0], 2).tolist() == [[1, 4]]


def test_a_pool_smaller_than_the_own_items_gives_no_negatives():
    pools = build_pools(np.array([0, 1, 2, 2]), "in_domain")
    own = own_places(pools, np.array([1, 2]), np.array([0, 1, 1]), np.array([1, 3, 3]))
    drawn = sample_negatives(pools, np.array([1, 2]), *own, 2, np.random.default_rng(0))
    assert drawn.tolist() == [[0, 0], [2, 0]]


@pytest.mark.parametrize("mode", ["uni", "uni0", "pop100", "uni-5", "Full", "", None, "full100"])
def test_an_unknown_mode_is_named(mode):
    with pytest.raises(ConfigError, match=r"evaluation mode is .*expected full, or uniN"):
        make_plan([[1, 2, 3]], DOMAINS, mode=mode)


def test_unknown_candidates_are_named():
    with pytest.raises(ConfigError, match="candidates is 'domain', expected in_domain or all"):
        make_plan([[1, 2, 3]], DOMAINS, candidates="domain")


def test_contradicting_arrays_are_refused():
    plan = make_plan([[1, 2, 3]], DOMAINS)
    with pytest.raises(ValueError, match=r"scores are \(1, 7\), expected \(1, 8\)"):
        plan.ranks(torch.zeros(1, 7), [0])
    with pytest.raises(ValueError, match="only uniN modes"):
        plan.candidate_items([0])

    def build(users=(1,), targets=(3,), places=(2,), domain=DOMAINS, phase="test"):
        sequences = flat([[1, 2, 3]])
        return type(plan)(
            users, targets, places, domain, ["a", "b"], sequences=sequences, phase=phase
        )

    assert len(build()) == 1
    for wrong, message in (
        ({"places": (3,)}, "a test target's position is not in its user's sequence"),
        ({"places": (-1,), "phase": "valid"}, "a valid target's position is not in"),
        ({"targets": (0,)}, "targets must be items 1 to 7"),
        ({"targets": (3, 3)}, "2,\\) targets and"),
        ({"users": (2,)}, "a user has no sequence"),
        ({"domain": [0, 1, 1, 1, 1, 2, 2, 3]}, "item_domain must be"),
        ({"domain": [1, 1, 1, 1, 1, 2, 2, 2]}, "item_domain must be"),
        ({"phase": "train"}, "phase is 'train'"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**wrong)


def test_a_domain_without_targets_is_logged_once(caplog):
    with caplog.at_level(logging.INFO):
        make_plan([[5, 6, 1]], DOMAINS)
    assert [r.message for r in caplog.records] == [
        "test: no target in domain d2, no metrics for it"
    ]
