import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recbole_tema.data.negatives import InDomainNegatives
from recbole_tema.data.sequences import (
    Sequences,
    build_sequences,
    domain_counts,
    thin_overlap,
)
from recbole_tema.data.windows import cut_windows, prefix_windows


def sequences_of(lists):
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])])
    return Sequences(np.array([i for x in lists for i in x], dtype=np.int64), offsets)


lists = st.lists(st.lists(st.integers(1, 9), max_size=23), min_size=1, max_size=8)


def test_events_are_ordered_by_time_with_ties_in_input_order():
    users = np.array([2, 1, 2, 1, 2])
    items = np.array([5, 6, 7, 8, 9])
    times = np.array([3.0, 1.0, 1.0, 1.0, 3.0])
    order, sequences = build_sequences(users, items, times, n_users=4)
    assert sequences.of(0).tolist() == []
    assert sequences.of(1).tolist() == [6, 8]
    assert sequences.of(2).tolist() == [7, 5, 9]
    assert sequences.of(3).tolist() == []
    assert items[order].tolist() == [6, 8, 7, 5, 9]


def test_times_closer_than_float32_keep_their_order():
    times = np.array([893286638.0 + 1, 893286638.0])
    assert np.float32(times[0]) == np.float32(times[1])
    _, sequences = build_sequences(np.array([1, 1]), np.array([4, 3]), times, n_users=2)
    assert sequences.of(1).tolist() == [3, 4]


@given(lists, st.integers(1, 9), st.data())
def test_windows_cover_each_target_once_with_enough_context(user_lists, max_length, data):
    stride = data.draw(st.integers(1, max_length))
    sequences = sequences_of(user_lists)
    windows = cut_windows(sequences, max_length, stride, np.random.default_rng(0))
    seen = []
    for user, start, length, counted in zip(
        windows.user, windows.start, windows.length, windows.n_targets, strict=True
    ):
        assert 1 <= counted <= length <= max_length
        first, end = sequences.offsets[user], sequences.offsets[user + 1]
        assert first <= start and start + length < end
        for step in range(length - counted, length):
            target = start + step + 1
            seen.append(target)
            context = step + 1
            assert context >= min(target - first, max_length - stride + 1)
    every = [sequences.offsets[u] + i for u, x in enumerate(user_lists) for i in range(1, len(x))]
    assert sorted(seen) == every


@given(lists, st.integers(1, 9))
def test_prefix_rows_are_recboles_augmentation(user_lists, max_length):
    windows = prefix_windows(sequences_of(user_lists), max_length)
    items = sequences_of(user_lists).items
    rows = [
        (user, items[start : start + length].tolist(), items[start + length])
        for user, start, length in zip(windows.user, windows.start, windows.length, strict=True)
    ]
    assert rows == [
        (user, events[max(0, i - max_length) : i], events[i])
        for user, events in enumerate(user_lists)
        for i in range(1, len(events))
    ]
    assert (windows.n_targets == 1).all()


def test_long_sequences_are_cut_elsewhere_each_epoch():
    sequences = sequences_of([[], list(range(1, 101))])
    starts = {
        tuple(cut_windows(sequences, 10, 10, np.random.default_rng(seed)).start)
        for seed in range(5)
    }
    assert len(starts) > 1


def test_negatives_are_of_the_domain_and_unseen():
    item_domain = np.array([0] + [1] * 6 + [2] * 9)
    train = sequences_of([[], [1, 2, 7, 8], [3, 9]])
    sampler = InDomainNegatives(train, item_domain)
    users = np.repeat([1, 1, 2, 2], 500)
    targets = np.repeat([1, 7, 3, 9], 500)
    negatives = sampler.draw(users, targets, np.random.default_rng(0))
    assert (item_domain[negatives] == item_domain[targets]).all()
    for user in (1, 2):
        assert not set(negatives[users == user]) & set(train.of(user))
    # Every eligible item is drawn, none much more often than another.
    counts = np.bincount(negatives[(users == 1) & (targets == 1)], minlength=16)
    assert (counts[3:7] > 90).all() and counts[3:7].sum() == 500


def test_negative_for_a_user_who_has_the_whole_domain_differs_from_the_target():
    item_domain = np.array([0, 1, 1, 2, 2])
    sampler = InDomainNegatives(sequences_of([[], [1, 2, 3]]), item_domain)
    draws = sampler.draw(np.ones(50, int), np.repeat([1, 2], 25), np.random.default_rng(0))
    assert draws.tolist() == [2] * 25 + [1] * 25


def test_thinning_leaves_one_domain_to_the_users_that_are_not_kept():
    item_domain = np.array([0, 1, 1, 2, 2])
    both, single = [1, 3, 2, 4], [1, 2]
    train = sequences_of([[]] + [both] * 40 + [single] * 10)
    thinned, mask = thin_overlap(train, item_domain, 2, ratio=0.25, seed=3)
    counts = (domain_counts(thinned, item_domain, 2) > 0).sum(axis=1)
    assert (counts[1:41] == 2).sum() == 10
    assert (counts[1:41] == 1).sum() == 30
    assert (thinned.lengths[41:] == 2).all()
    assert mask.sum() == len(thinned.items)
    kept_first = [item_domain[thinned.of(u)[0]] for u in range(1, 41) if counts[u] == 1]
    assert 5 < sum(d == 1 for d in kept_first) < 25
    whole, mask = thin_overlap(train, item_domain, 2, ratio=1.0, seed=3)
    assert mask.all() and np.array_equal(whole.items, train.items)
