"""The tag list: counts are conserved, spellings and near tags meet, extremes go."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_tools.tags.clean import merge_key
from dataset_tools.tags.listing import BLOCK, TagList, drop_extremes, first_list, merge_near
from dataset_tools.tags.matching import own_tags

SPELLINGS = ["tea", "teas", "cup", "cups", "war", "film", "films", "oats"]
ROWS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(SPELLINGS), unique=True),
        st.sampled_from("abc"),
    ),
    max_size=20,
)


def listed(**counts):
    """A list with tags of so many items of domain "a", "b", ..."""
    tags = {
        t.replace("_", " "): Counter(dict(zip("abc", n, strict=False))) for t, n in counts.items()
    }
    return TagList(tags, {tag: tag for tag in tags})


@given(ROWS)
def test_first_list_counts_every_raw_tag_once(rows):
    raw, domains = [tags for tags, _ in rows], [domain for _, domain in rows]
    tags = first_list(raw, domains)
    assert Counter(tags.counts) or not any(raw)
    expected = Counter((merge_key(tag), d) for row, d in rows for tag in row)
    found = Counter(
        {(merge_key(tag), d): n for tag, counts in tags.counts.items() for d, n in counts.items()}
    )
    assert found == expected
    assert all(tags.resolve(tag) in tags.counts for row in raw for tag in row)
    assert len(tags.log) == len({tag for row in raw for tag in row}) - len(tags.counts)
    assert tags.shared() == sorted(t for t, c in tags.counts.items() if len(+c) > 1)


def test_the_most_used_spelling_stays():
    tags = first_list([["sci-fi"], ["scifi"], ["scifi"], ["cups"], ["cup"]], "ababb")
    assert tags.counts == {"scifi": {"a": 2, "b": 1}, "cup": {"b": 2}}
    assert tags.resolve("sci-fi") == "scifi" and tags.resolve("cups") == "cup"
    assert tags.shared() == ["scifi"]


def test_near_tags_merge_into_the_more_used():
    tags = listed(movie=(5, 1), film=(3,), motion_picture=(1,), tea=(9,))
    order = ["film", "motion picture", "movie", "tea"]
    vectors = np.float32([[1, 0, 0], [0.8, 0.6, 0], [0.96, 0.28, 0], [0, 0, 1]])
    merge_near(tags, vectors, order, 0.9)
    # "motion picture" is 0.936 from "movie" and 0.8 from "film".
    assert tags.counts == {"movie": {"a": 9, "b": 1}, "tea": {"a": 9}}
    assert tags.log == [
        ("list", "merge", "film", "movie", "text vectors 0.96 alike"),
        ("list", "merge", "motion picture", "movie", "text vectors 0.94 alike"),
    ]


def test_a_merged_tag_draws_no_others():
    """b is near a, c is near b but not near a: c stays."""
    tags = listed(a=(3,), b=(2,), c=(1,))
    turn = np.deg2rad([0, 20, 40])
    vectors = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    merge_near(tags, vectors, ["a", "b", "c"], 0.9)
    assert set(tags.counts) == {"a", "c"}


def greedy(tags, vectors, order, least):
    """Which tags stay, by the definition, one after the other."""
    ranked = sorted(order, key=lambda tag: (-tags.items(tag), tag))
    row, kept = dict(zip(order, vectors, strict=True)), []
    for tag in ranked:
        if not any(row[tag] @ row[other] >= least for other in kept):
            kept.append(tag)
    return set(kept)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_near_merges_are_greedy_from_the_most_used(n, seed):
    rng = np.random.default_rng(seed)
    order = [f"t{i}" for i in rng.permutation(n)]
    counts = {tag: Counter(a=int(rng.integers(1, 5))) for tag in order}
    vectors = rng.normal(size=(n, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tags = TagList(counts, {tag: tag for tag in order})
    total = sum(map(Counter.total, counts.values()))
    expected = greedy(tags, vectors, order, 0.8)
    merge_near(tags, vectors, order, 0.8)
    assert set(tags.counts) == expected
    assert sum(map(Counter.total, tags.counts.values())) == total
    assert {tags.resolve(tag) for tag in order} == expected


def test_near_merges_reach_over_blocks():
    n = 2 * BLOCK + 3
    order = [f"t{i:05}" for i in range(n)]
    tags = TagList({tag: Counter(a=1) for tag in order}, {tag: tag for tag in order})
    vectors = np.eye(n, dtype=np.float32)
    vectors[-1] = vectors[0]
    vectors[BLOCK + 1] = vectors[BLOCK - 1]
    merge_near(tags, vectors, order, 0.9)
    assert tags.resolve(order[-1]) == order[0]
    assert tags.resolve(order[BLOCK + 1]) == order[BLOCK - 1]
    assert len(tags.counts) == n - 2


def test_extremes():
    tags = listed(rare=(1, 1), fine=(2, 1), wide=(20, 21), of_a=(25,), half_of_a=(24,))
    drop_extremes(tags, {"a": 48, "b": 48, "c": 4}, min_items=3, max_share=0.25)
    assert set(tags.counts) == {"fine", "half of a"}
    why = {tag: reason for _, _, tag, _, reason in tags.log}
    assert why == {
        "rare": "too rare: 2 items",
        "wide": "too common: 41 items",
        "of a": "too common: 25 items",
    }
    assert own_tags([["rare", "fine", "wide", "never seen"]], tags) == [["fine"]]


def test_everything_may_be_dropped():
    tags = listed(x=(1,))
    drop_extremes(tags, {"a": 5}, 3, 0.5)
    assert not tags.counts and tags.shared() == [] and own_tags([["x"]], tags) == [[]]
    merge_near(tags, np.empty((0, 3)), [], 0.9)
    assert first_list([[], []], "ab").counts == {}


def test_resolve_follows_chains_and_ends_in_cycles():
    tags = listed(a=(1,), b=(1,), c=(1,))
    tags.merge("1", "a", "b", "")
    tags.merge("2", "b", "c", "")
    assert [tags.resolve(tag) for tag in "abc"] == ["c"] * 3
    assert tags.counts == {"c": {"a": 3}}
    tags.drop("3", "c", "")
    assert [tags.resolve(tag) for tag in "abcz"] == [""] * 4
    tags.add("4", "b", {"a": 2}, "")
    assert tags.resolve("a") == tags.resolve("b") == "b" and tags.resolve("c") == ""
    cycle = TagList({}, {"a": "b", "b": "a"})
    assert cycle.resolve("a") == cycle.resolve("b") == ""
    assert [entry[:3] for entry in tags.log] == [
        ("1", "merge", "a"), ("2", "merge", "b"), ("3", "drop", "c"), ("4", "add", "b"),
    ]  # fmt: skip


def test_a_merge_of_what_is_not_there_is_an_error():
    with pytest.raises(KeyError):
        listed(a=(1,)).merge("x", "a", "b", "")
