"""How events are split into training, validation and test: every rule, for whatever asks.

It imports NumPy and no RecBole, so that commands which never train can ask it. Events come user by
user, a user's oldest first, as in `Sequences`. A user may have several targets in a phase. A
target's history is what its user had before it, but for events that a later phase holds: nobody
knows the test when a model is chosen. Training events are those that no phase holds.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

import numpy as np

from recbole_tema.errors import DataError

PHASES = ("valid", "test")
PARTS = ("train", *PHASES)  # by their numbers: a phase reads what is of its own or a lower one
NAMES = {"valid": "validation", "test": "test"}
SPLIT_FIELD = "split"  # of NAME.inter: one of PARTS, where the split is given
# Fewest events, of a user or of a user in a domain, to have a target in the phase; the target's
# place from the end. RecBole's leave-one-out on its augmented rows.
_FEWEST = {"valid": (4, 2), "test": (3, 1)}
MERGED, PER_DOMAIN, SHARES, MOMENTS, GIVEN = "merged", "per_domain", "shares", "moments", "given"
ALLOWED = (
    "{'LS': 'valid_and_test'} and {'LS': 'per_domain'}, leave-one-out of each user and of each "
    "user in each domain; {'TO': [0.8, 0.1, 0.1]}, shares of all events by time; "
    "{'TO': ['2014-01-31', '2014-06-30']}, the times from which events are validation and test; "
    "{'given': 'split'}, that column of NAME.inter"
)
# Times in this range are shown as dates.
_SECONDS = (1e8, 1e10)


class SplitRule(NamedTuple):
    """What ``eval_args.split`` says: the kind, and its shares or moments."""

    kind: str = MERGED
    cuts: tuple[float, ...] = ()

    @property
    def words(self) -> str:
        """The rule in words."""
        if self.kind in (SHARES, MOMENTS):
            shown = [f"{c:.3g}" if self.kind == SHARES else show_moment(c) for c in self.cuts]
            return f"by time ({', '.join(shown)})"
        return {
            MERGED: "leave-one-out",
            PER_DOMAIN: "leave-one-out in each domain",
            GIVEN: f"as given (column '{SPLIT_FIELD}')",
        }[self.kind]


def read_rule(value: Any) -> SplitRule:
    """The rule of a value of ``eval_args.split``; None is the leave-one-out of each user.

    Raises:
        ValueError: it is none; the text says what is allowed.

    >>> read_rule({"TO": [8, 1, 1]})
    SplitRule(kind='shares', cuts=(0.8, 0.1, 0.1))
    """
    if value is None:
        return SplitRule()
    key, given = next(iter(value.items()), ("", None)) if isinstance(value, dict) else ("", None)
    if isinstance(value, dict) and len(value) == 1:
        words = {("LS", "valid_and_test"): MERGED, ("LS", PER_DOMAIN): PER_DOMAIN}
        words["given", SPLIT_FIELD] = GIVEN
        if isinstance(given, str) and (key, given) in words:
            return SplitRule(words[key, given])
        if key == "TO" and isinstance(given, list | tuple):
            if len(given) == 3 and all(_is_number(part) and part > 0 for part in given):
                return SplitRule(SHARES, tuple(float(part) / sum(given) for part in given))
            moments = tuple(time for time in map(_moment, given) if time is not None)
            if len(given) == len(moments) == 2 and moments[0] < moments[1]:
                return SplitRule(MOMENTS, moments)
    raise ValueError(ALLOWED)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < np.inf


def _moment(value: Any) -> float | None:
    """Seconds of a date, or the number that is given; None for anything else."""
    if _is_number(value):
        return float(value)
    try:
        time = datetime.fromisoformat(value if isinstance(value, str) else value.isoformat())
    except (ValueError, AttributeError, TypeError):
        return None
    return time.replace(tzinfo=time.tzinfo or UTC).timestamp()


def show_moment(time: float) -> str:
    """A time as a date where it looks like seconds since 1970, else as the number it is."""
    if _SECONDS[0] <= time <= _SECONDS[1]:
        return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M}"
    return f"{time:g}"


class Events(NamedTuple):
    """What rules go by, user by user, a user's oldest event first.

    Attributes:
        items: ``(n_events,)`` int64 numbers of the items.
        offsets: ``(n_users + 1,)`` int64; user ``u`` owns the events from ``offsets[u]`` to
            ``offsets[u + 1]``.
        item_domain: ``(n_items,)`` int64, the domain of each item, from 1. names: of the domains.
        times: ``(n_events,)`` float64, for rules that go by time, and GIVEN.
        marks: ``(n_events,)`` int, the number of the part that each is marked with, for GIVEN.
        user_name: the name of a user's number, for messages.
    """

    items: np.ndarray
    offsets: np.ndarray
    item_domain: np.ndarray
    names: Sequence[str]
    times: np.ndarray | None = None
    marks: np.ndarray | None = None
    user_name: Callable[[int], str] = str

    def users(self, numbers: np.ndarray) -> np.ndarray:
        """The users of some events, by the events' numbers."""
        return np.searchsorted(self.offsets, numbers, side="right") - 1

    def domains(self) -> np.ndarray:
        """``(n_events,)`` the domain of each event."""
        return self.item_domain[self.items]

    def first(self) -> np.ndarray:
        """``(n_events,)`` bool: a user's first event."""
        found = np.zeros(len(self.items), dtype=bool)
        found[self.offsets[:-1][np.diff(self.offsets) > 0]] = True
        return found


class Split:
    """The part of every event, and which events are targets.

    Attributes:
        part: ``(n_events,)`` int8, 0 for training, 1 if validation holds the event, 2 if test does.
        target: ``(n_events,)`` bool; other held events are histories alone.
    """

    def __init__(self, rule: SplitRule, events: Events) -> None:
        self.rule, self.events = rule, events
        if rule.kind in (MERGED, PER_DOMAIN):
            self.part = self._leave_one_out()
            self.target = self.part > 0
        elif rule.kind == GIVEN:
            self.part = self._marked()
            self.target = self._of_marks()
        else:
            self.part = self._by_time()
            # What nothing is known of before it cannot be predicted from a history.
            self.target = (self.part > 0) & ~events.first()

    def held(self, phase: str) -> np.ndarray:
        """``(n,)`` event numbers of a phase's targets.

        Raises:
            ValueError: there is no such phase.
        """
        if phase not in PHASES:
            raise ValueError(f"phase is {phase!r}, expected 'valid' or 'test'")
        return np.flatnonzero(self.target & (self.part == PARTS.index(phase)))

    def readable(self, phase: str) -> np.ndarray | None:
        """``(n_events,)`` bool: what the histories of a phase's targets may hold; None for all.

        In each domain a user's test target can lie before the validation target of another one.
        """
        if self.rule.kind != PER_DOMAIN or phase != "valid":
            return None  # what a later phase holds comes after all targets of the phase
        return self.part <= PARTS.index(phase)

    @property
    def train(self) -> np.ndarray:
        """``(n_events,)`` bool: the training events."""
        return self.part == 0

    def _leave_one_out(self) -> np.ndarray:
        """The last event of each user, or of each user in each domain, is test's, the one before
        validation's."""
        events = self.events
        order, offsets = np.arange(len(events.items)), events.offsets
        if self.rule.kind == PER_DOMAIN:
            domains = events.domains()
            users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            order = np.lexsort((order, domains, users))
            counts = np.bincount(users * (len(events.names) + 1) + domains)
            offsets = np.concatenate([[0], np.cumsum(counts)])
        part = np.zeros(len(events.items), dtype=np.int8)
        for phase, (fewest, from_end) in _FEWEST.items():
            groups = np.flatnonzero(np.diff(offsets) >= fewest)
            part[order[offsets[groups + 1] - from_end]] = PARTS.index(phase)
        return part

    def _by_time(self) -> np.ndarray:
        times, cuts = cast(np.ndarray, self.events.times), self.rule.cuts
        if not len(times):
            return np.zeros(0, dtype=np.int8)
        if self.rule.kind == SHARES:
            ordered = np.sort(times)
            # Events of one time stay in one part, the later.
            places = [int(len(times) * share + 1e-9) for share in np.cumsum(cuts)[:2]]
            cuts = tuple(ordered[min(place, len(times) - 1)] for place in places)
        return ((times >= cuts[0]).astype(np.int8) + (times >= cuts[1])).astype(np.int8)

    def _marked(self) -> np.ndarray:
        marks = self.events.marks
        if marks is None:
            raise DataError(
                f"eval_args.split is {{'given': '{SPLIT_FIELD}'}}, but NAME.inter has no column "
                f"'{SPLIT_FIELD}:token'; add it, or choose another split"
            )
        late = np.flatnonzero(~self.events.first()[1:] & (marks[1:] < marks[:-1])) + 1
        if len(late):
            users = self.events.users(late)
            before, after = PARTS[marks[late[0] - 1]], PARTS[marks[late[0]]]
            name, count = self.events.user_name(int(users[0])), len(np.unique(users))
            raise DataError(
                f"column '{SPLIT_FIELD}': user '{name}' has a {after} event after a {before} event "
                f"({count:,} users have their parts out of order), so later events would tell of "
                f"what is held out; mark a user's events train, then valid, then test, in the "
                f"order of time"
            )
        for number, part in enumerate(PARTS):
            if not (marks == number).any():
                raise DataError(
                    f"column '{SPLIT_FIELD}': no event is marked {part}; mark some, or choose "
                    f"another split"
                )
        return marks.astype(np.int8)

    def _of_marks(self) -> np.ndarray:
        """Marked events after an earlier part of their user; of a user's first part the last
        event, with those of its time, if anything is before them."""
        part, starts = self.part, self.events.first()
        first = part[np.flatnonzero(starts)][np.cumsum(starts) - 1]
        begins, last = self._last_blocks()
        known = begins > self.events.offsets[self.events.users(begins)]
        ends = np.append(starts[1:] | (part[1:] != part[:-1]), True)
        return (part > 0) & ~starts & ((part > first) | np.where(known, last, ends))

    def _last_blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """For each event the first of its user's events of its part and time, and whether these
        are the last of the part."""
        part, starts = self.part, self.events.first()
        times = cast(np.ndarray, self.events.times)
        new_part = np.append(True, part[1:] != part[:-1]) | starts
        block = np.append(True, times[1:] != times[:-1]) | new_part
        places = np.flatnonzero(block)
        number = np.cumsum(block) - 1
        last = np.append(new_part[places[1:]], True)
        return places[number], last[number]

    def ends(self, held: np.ndarray) -> np.ndarray:
        """``(n,)`` event numbers at which the histories of targets end: at themselves.

        Marked targets of one time that begin their user's held-out part are alternatives, as where
        a sequence is published once for each domain: none is in the history of another.
        """
        if self.rule.kind != GIVEN:
            return held
        begins = self._last_blocks()[0][held]
        offsets = self.events.offsets[self.events.users(held)]
        alone = (self.part[offsets] == self.part[held]) & (begins > offsets)
        return np.where(alone, begins, held)

    def check(self, needed: Sequence[int] | None = None) -> None:
        """Refuse a split that nothing can be learnt from, or measured by.

        Args:
            needed: numbers of the domains that are evaluated; None: all that have events.

        Raises:
            DataError: says what is missing and what to do.
        """
        events, said = self.events, f"eval_args.split {self.rule.words}"
        if self.rule.kind == MERGED:
            return
        if not self.train.any():
            raise DataError(f"{said} leaves no training event; hold out less")
        domains = events.domains()
        there = np.bincount(domains, minlength=len(events.names) + 1) > 0
        for phase in PHASES if self.rule.kind in (SHARES, MOMENTS) else ():
            found = np.bincount(domains[self.held(phase)], minlength=len(there))
            for number in range(1, len(there)) if needed is None else needed:
                if there[number] and not found[number]:
                    times = cast(np.ndarray, events.times)[domains == number]
                    raise DataError(
                        f"{said} leaves the domain '{events.names[number - 1]}' without a "
                        f"{NAMES[phase]} target: its events run from {show_moment(times.min())} to "
                        f"{show_moment(times.max())}; give it other shares or times, or another "
                        f"split"
                    )
        for phase in PHASES if self.rule.kind == GIVEN else ():
            if not len(self.held(phase)):
                raise DataError(
                    f"{said} has no {NAMES[phase]} target with an event before it; mark others"
                )
            if self.cold(phase) == len(self.held(phase)):
                raise DataError(
                    f"{said}: no {NAMES[phase]} target's item has a training event, so there is "
                    f"nothing to learn about them; mark others"
                )

    def cold(self, phase: str) -> int:
        """How many of a phase's targets are of items without a training event."""
        items = self.events.items
        trained = np.bincount(items[self.train], minlength=int(items.max(initial=0)) + 1) > 0
        return int(np.count_nonzero(~trained[items[self.held(phase)]]))

    @property
    def summary(self) -> str:
        """One line: the events of each part, targets by domain, and what is neither."""
        events = self.events
        shown = [f"{self.rule.words}: {int(self.train.sum()):,} training events"]
        for phase in PHASES:
            held = self.held(phase)
            users = len(np.unique(events.users(held)))
            domains = events.item_domain[events.items[held]]
            counts = np.bincount(domains, minlength=len(events.names) + 1)[1:]
            named = ", ".join(f"{name} {n:,}" for name, n in zip(events.names, counts, strict=True))
            shown.append(
                f"{len(held):,} {NAMES[phase]} targets of {users:,} users ({named}; "
                f"{self.cold(phase):,} of items without a training event)"
            )
        rest = int(np.count_nonzero((self.part > 0) & ~self.target))
        shown += [f"{rest:,} held-out events are histories alone"] if rest else []
        return "; ".join(shown)
