"""Every rule of the split, by hand on small sequences and by what must hold of any."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_tema.data.split import Events, Split, read_rule
from recbole_tema.errors import DataError

NAMES = ["a", "b"]
DOMAIN = np.array([0, 1, 1, 1, 1, 2, 2, 2, 2])  # items 1 to 4 are of a, 5 to 8 of b
LS, EACH = {"LS": "valid_and_test"}, {"LS": "per_domain"}
GIVEN = {"given": "split"}
MARKS = {".": 0, "v": 1, "s": 2}


def split(value, lists, times=None, marks=None):
    """The split of users 0, 1, ... with these items, times and marks, each oldest first."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])])
    events = Events(
        np.array([item for row in lists for item in row], dtype=np.int64),
        offsets,
        DOMAIN,
        NAMES,
        np.array([t for row in times or map(range, map(len, lists)) for t in row], np.float64),
        None if marks is None else np.array([MARKS[m] for row in marks for m in row]),
        lambda user: f"u{user}",
    )
    return Split(read_rule(value), events)


def shown(found):
    """A text a user: `.` training, `v` and `s` targets, `h` held out and no target."""
    signs = np.array([*".vs"])[found.part]
    signs[(found.part > 0) & ~found.target] = "h"
    offsets = found.events.offsets
    return ["".join(signs[a:b]) for a, b in pairwise(offsets)]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (LS, ["", ".", "..", "..s", "..vs", "...vs", ".......vs"]),
        (EACH, ["", ".", "..", "..s", "..vs", "...s.", "....v.svs"]),
    ],
)
def test_leave_one_out_by_hand(value, wanted):
    lists = [[], [1], [1, 5], [1, 2, 3], [1, 2, 3, 4], [1, 2, 5, 3, 6]]
    assert shown(split(value, [*lists, [1, 5, 2, 6, 3, 7, 4, 5, 8]])) == wanted


def test_a_validation_history_holds_no_test_target_of_another_domain():
    # Of b the targets 6 and 7 come before those of a.
    found = split(EACH, [[1, 5, 5, 2, 6, 7, 3, 4]])
    assert shown(found) == ["....vsvs"]
    readable = found.readable("valid")
    assert readable.tolist() == [True] * 5 + [False, True, False]
    assert found.readable("test") is None  # what came before is known when the test comes
    assert split(LS, [[1, 5, 2, 6]]).readable("valid") is None


def test_time_by_hand():
    lists = [[1, 5, 2, 6, 3], [5, 1, 6], [2], [4, 7]]
    times = [[0, 1, 2, 7, 9], [3, 7, 8], [9], [8, 9]]
    found = split({"TO": [7, 9]}, lists, times)
    # What has nothing before it cannot be predicted: it is a history alone.
    assert shown(found) == ["...vs", ".vv", "h", "hs"]
    found.check()
    assert "2 held-out events are histories alone" in found.summary
    assert "3 validation targets of 2 users (a 1, b 2; 2 of items" in found.summary  # both of 6


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [
        ([0.5, 0.25, 0.25], "....vvss"),
        ([2, 1, 1], "....vvss"),
        ([0.6, 0.2, 0.2], "....vvss"),  # the fifth of eight ends in the tie before it
    ],
)
def test_events_of_one_time_stay_together(shares, wanted):
    times = [[0, 1, 2, 3, 4, 4, 5, 5]]
    assert shown(split({"TO": shares}, [[1, 5, 2, 6, 3, 7, 4, 8]], times)) == [wanted]


def test_dates_are_moments():
    day = 86400.0
    times = [[0.0, 10 * day - 1, 10 * day, 20 * day - 1, 20 * day]]
    lists = [[1, 5, 2, 6, 3]]
    for moments in (["1970-01-11", "1970-01-21T00:00:00+00:00"], [10 * day, 20 * day]):
        assert shown(split({"TO": moments}, lists, times)) == ["..vvs"]


def test_marks_by_hand():
    lists = [[1, 5, 2, 6], [1, 5, 3, 5], [5, 6, 7], [1], [2, 3, 4, 5], [8, 1]]
    marks = ["..vs", ".vvs", "vvv", "s", "vvss", "ss"]
    # Who has training events is predicted at each mark; who has none at the last of the part.
    found = split(GIVEN, lists, marks=marks)
    assert shown(found) == ["..vs", ".vvs", "hhv", "h", "hvss", "hs"]
    found.check()
    assert (found.cold("valid"), found.cold("test")) == (4, 2)  # of 2 5 3 7 3, and 6 5 4 5 1
    assert "5 held-out events are histories alone" in found.summary


def test_marked_alternatives_of_one_time_share_a_history():
    # As URLLM's sequences are published: once ending in each domain.
    lists = [[1, 5, 2, 6], [1, 5, 2, 6], [1, 5], [1, 5, 2, 6], [1, 5, 2, 3]]
    times = [[0, 1, 2, 2], [0, 1, 2, 2], [3, 3], [0, 1, 2, 2], [0, 2, 2, 3]]
    found = split(GIVEN, lists, times, ["vvvv", "ssss", "ss", "..vv", "vvvs"])
    assert shown(found) == ["hhvv", "hhss", "hs", "..vv", "hvvs"]
    assert found.ends(found.held("valid")).tolist() == [2, 2, 12, 13, 15, 15]
    assert found.ends(found.held("test")).tolist() == [6, 6, 9, 17]


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (["..vs", "..v."], r"user 'u1' has a train event after a valid event \(1 users"),
        (["..sv", "...."], "user 'u0' has a valid event after a test event"),
        (["...s", "...."], "no event is marked valid"),
        (["...v", "...."], "no event is marked test"),
        (["vvss", "vvvs"], "no event is marked train"),
    ],
)
def test_marks_that_leak_or_lack_a_part_are_refused(marks, message):
    with pytest.raises(DataError, match=message) as caught:
        split(GIVEN, [[1, 5, 2, 6], [2, 6, 1, 5]], marks=marks)
    assert "\n" not in str(caught.value)


def test_marked_targets_are_of_known_items_somewhere_and_have_a_history():
    with pytest.raises(DataError, match="no validation target's item has a training event"):
        split(GIVEN, [[1, 5, 2, 6], [1, 5, 3, 5]], marks=["..vs", "..vs"]).check()
    with pytest.raises(DataError, match="no validation target with an event before it"):
        split(GIVEN, [[1, 5, 6], [5]], marks=["..s", "v"]).check()
    with pytest.raises(DataError, match="no column 'split:token'"):
        split(GIVEN, [[1, 5, 6]])


def test_a_domain_that_time_leaves_without_targets_is_named():
    lists, times = [[1, 5, 2, 3, 4], [5, 1, 2, 3, 6]], [[0, 1, 2, 3, 4], [0, 1, 2, 3, 5]]
    found = split({"TO": [2, 4]}, lists, times)
    with pytest.raises(DataError, match=r"domain 'b' without a validation target.*from 0 to 5"):
        found.check()
    found.check([1])  # only a is evaluated
    with pytest.raises(DataError, match="leaves no training event"):
        split({"TO": [-5, 2]}, lists, times).check()


@pytest.mark.parametrize(
    "value",
    [{"RS": [8, 1, 1]}, {"LS": "valid_only"}, {"TO": [9, 1]}, {"TO": [1, 0, 1]}, {}, "LS"]
    + [{"TO": ["2014-02-30", "2014-05-01"]}, {"TO": [7, 7]}, {"given": "part"}, [1]]
    + [{"LS": "per_domain", "TO": [1, 2]}, {"TO": [True, 5]}, {"TO": [[1], [2]]}, {"LS": []}],
)
def test_what_is_no_rule_is_told_what_is(value):
    with pytest.raises(ValueError, match=r"per_domain.*shares.*given"):
        read_rule(value)


EVENTS = st.lists(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 9)), max_size=12), min_size=1, max_size=7
)
RULES = [LS, EACH, {"TO": [0.6, 0.2, 0.2]}, {"TO": [4, 7]}, GIVEN]


@pytest.mark.parametrize("value", [LS, EACH, {"TO": [0.6, 0.2, 0.2]}, {"TO": [4, 7]}])
def test_no_event_is_no_target(value):
    assert not len(split(value, [[]], [[]]).part)


@given(EVENTS, st.sampled_from(RULES), st.data())
def test_nothing_that_is_held_out_is_learnt_from_or_known_too_early(users, value, data):
    users = [sorted(row, key=lambda event: event[1]) for row in users]
    lists = [[item for item, _ in row] for row in users]
    times = [[time for _, time in row] for row in users]
    marks = None
    if value == GIVEN:
        marks = [
            "".join(sorted(data.draw(st.text(".vs", min_size=n, max_size=n)), key=".vs".index))
            for n in map(len, lists)
        ]
        if {*"".join(marks)} != {*".vs"}:
            return
    found = split(value, lists, times, marks)
    offsets = found.events.offsets
    held = {phase: found.held(phase) for phase in ("valid", "test")}
    train = set(np.flatnonzero(found.train))
    assert not train & {*held["valid"]} and not train & {*held["test"]}
    assert not {*held["valid"]} & {*held["test"]}
    flat = [time for row in times for time in row]
    for phase, events in held.items():
        mask = found.readable(phase)
        mask = np.ones(len(found.part), dtype=bool) if mask is None else mask
        for event in events:
            user = int(found.events.users(np.array([event]))[0])
            before = [e for e in range(offsets[user], event) if mask[e]]
            assert before, "a target has a history"
            assert mask[event] and all(found.part[e] <= found.part[event] for e in before)
            if phase == "valid":
                assert not {*before} & {*held["test"]}
            if "TO" in value:
                latest = max((flat[e] for e in train), default=-1)
                assert flat[event] > latest or flat[event] >= max(flat[e] for e in before)
                assert all(flat[e] < flat[event] for e in train)
    if value == GIVEN:
        assert train == {e for e, m in enumerate("".join(marks)) if m == "."}
    if value == EACH:
        for user, row in enumerate(lists):
            for domain in (1, 2):
                mine = [offsets[user] + i for i, item in enumerate(row) if DOMAIN[item] == domain]
                expected = {2: mine[-1:] if len(mine) > 2 else []}
                expected[1] = mine[-2:-1] if len(mine) > 3 else []
                for number, wanted in expected.items():
                    assert [e for e in mine if found.part[e] == number] == wanted
