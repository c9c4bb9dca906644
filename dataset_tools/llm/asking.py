"""The loop that asks: what the store has is taken from there, what it lacks is asked and kept.

**Batches.** A backend groups requests into units by the input alone. A unit that lacks an answer
is answered whole, so that an answer comes out of the same batch, to the same last bit, whatever
was there before; the answers that are kept already win.

**Shards.** Process i of n answers the units i, i+n, i+2n, ... and then waits for those of the
others. A request that has no usable answer (a fault) is never stored as an answer, so that the
next run asks again, and yet the others must not wait for it for ever. So each writer lists the
faults that it met since it began to ask (its session). A waiting process accepts such a fault, if

- the session began after the waiting process came to this task, or
- its writer still runs: then it is the same run; or else
- GRACE_SECONDS went by: the fault is of an earlier run, and nobody began to ask again.

A writer that begins a new session drops the faults of its last one: what it may now answer is
waited for. No clock is compared between machines.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.requests import Answer, Backend, Request, Scoring, key_of
from recbole_tema.errors import BackendError, DataError, TemaError

log = logging.getLogger(__name__)

GROUP_SECONDS = 0.5  # single answers of so long a time share a transaction
GROUP_ANSWERS = 64
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between two looks at what other shards did
GRACE_SECONDS = 60.0
TOLD_SECONDS = 1.0  # so long it is not worth a word that others are awaited
REASONS_SHOWN = 3


class Incomplete(TemaError):
    """This shard has done its part, and answers of other shards are not there yet."""


@dataclass
class Tally:
    """What was asked and what came of it; add them up over several calls of `ask`.

    Attributes:
        requests: Different requests.
        from_store: Of these, how many the store had, or got from other shards.
        calls: Requests that the backend answered.
        kept: Answers that were stored.
        faults: Requests without a usable answer, by reason.
        tokens_in: Tokens read in these calls.
        tokens_out: Tokens written.
        seconds: Time taken, waiting included.
    """

    requests: int = 0
    from_store: int = 0
    calls: int = 0
    kept: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0

    def __iadd__(self, other: "Tally") -> "Tally":
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    def __add__(self, other: "Tally") -> "Tally":
        total = Tally()
        total += self
        total += other
        return total

    def __str__(self) -> str:
        text = (
            f"{self.requests:,} requests: {self.from_store:,} from the store, {self.calls:,} asked "
            f"({self.tokens_in:,} tokens in, {self.tokens_out:,} out, {self.seconds:.1f} s), "
            f"{self.kept:,} kept, {self.faults.total():,} faults"
        )
        common = self.faults.most_common(REASONS_SHOWN)
        shown = [f"{reason} ({count:,})" for reason, count in common]
        if len(self.faults) > len(common):
            shown.append(f"{len(self.faults) - len(common):,} other reasons")
        return f"{text}: {'; '.join(shown)}" if shown else text


class Job(NamedTuple):
    """What there is to do.

    Attributes:
        unique: The requests, each once, in the order of their first appearance.
        keys: Their keys.
        units: Indices of `unique` in groups that are answered together, all of them.
        kept: The answers that the store has, by key.
        todo: Numbers of this shard's units that lack an answer.
        order: For each request as given, its index in `unique`.
    """

    unique: list[Request]
    keys: list[str]
    units: list[list[int]]
    kept: dict[str, Answer]
    todo: list[int]
    order: list[int]

    def lacking(self, unit: int) -> list[int]:
        """Indices of a unit's requests that have no answer in the store."""
        return [i for i in self.units[unit] if self.keys[i] not in self.kept]


def plan(backend: Backend, requests: Sequence[Request], store: AnswerStore) -> Job:
    """What `ask` would do, without doing it."""
    place: dict[Request, int] = {}
    order = [place.setdefault(request, len(place)) for request in requests]
    unique = list(place)
    keys = [key_of(backend.identity, request) for request in unique]
    units = backend.units(unique) if unique else []
    job = Job(unique, keys, units, store.get(keys), [], order)
    index, n_shards = store.shard
    mine = range(index - 1, len(units), n_shards)
    return job._replace(todo=[unit for unit in mine if job.lacking(unit)])


def ask(
    backend: Backend,
    requests: Sequence[Request],
    store: AnswerStore,
    *,
    task: str,
    progress: bool = True,
    wait: bool = True,
    tally: Tally | None = None,
) -> list[Answer]:
    """An answer, maybe with a fault, for each request in their order, from the store or asked.

    Every answer that arrives is stored before the call ends, however it ends.

    Args:
        backend: The model.
        requests: All of one type; equal ones are asked once.
        store: Where answers are kept; its shard says which part is asked here.
        task: What the answers are for, in a word: for progress, log and counts.
        progress: Show a bar with rate and time left.
        wait: Wait for the answers of other shards.
        tally: What was asked is added to it, also when the call ends by an exception.

    Raises:
        BackendError: no further answer can be had.
        DataError: answers cannot be stored.
        Incomplete: `wait` is off and answers of other shards are missing.
    """
    started, count = time.monotonic(), Tally()
    others = [i for i in range(1, store.shard[1] + 1) if i != store.shard[0]]
    sessions = {i: store.faults(i)[0] for i in others}
    try:
        job = plan(backend, requests, store)
        count.requests, count.from_store = len(job.unique), len(job.kept)
        faults = _ask_todo(backend, job, store, task, progress, count)
        new = [key for key in job.keys if key not in job.kept and key not in faults]
        if others and new:
            faults |= _await_others(job, new, sessions, store, task, progress, wait)
        answers = job.kept | faults | store.get(key for key in new if key not in faults)
        _check_all_there(job, answers, store)
        count.from_store = count.requests - count.kept - len(faults)
        count.faults = Counter(fault.fault for fault in faults.values())
        return [answers[job.keys[i]] for i in job.order]
    finally:
        count.seconds = time.monotonic() - started
        if tally is not None:
            tally += count
        log.info("%s: %s", task, count)


def _check_all_there(job: Job, answers: dict[str, Answer], store: AnswerStore) -> None:
    lost = sum(key not in answers for key in job.keys)
    if lost:
        raise DataError(
            f"{store.folder}: {lost} answers that were stored cannot be read back; check the disk "
            "and that nobody removes files there, then run again"
        )


def _ask_todo(
    backend: Backend, job: Job, store: AnswerStore, task: str, progress: bool, count: Tally
) -> dict[str, Answer]:
    """Ask and store what this shard has to; the faults by key."""
    faults: dict[str, Answer] = {}
    if not job.todo:
        return faults
    store.prepare()
    index, n_shards = store.shard
    total = sum(len(unit) for unit in job.units[index - 1 :: n_shards])
    left = sum(len(job.lacking(unit)) for unit in job.todo)
    bar = tqdm(total=total, initial=total - left, desc=task, unit="req", disable=not progress)
    with bar, _Keeper(store, task, backend.identity, count) as keeper:
        for unit, answers in _answered(backend, job):
            lacking = set(job.lacking(unit))
            rows = []
            for i, answer in zip(job.units[unit], answers, strict=True):
                answer = _checked(job.unique[i], answer)
                count.calls += 1
                count.tokens_in += answer.tokens_in
                count.tokens_out += answer.tokens_out
                if i not in lacking:
                    continue
                rows.append((job.keys[i], job.unique[i], answer))
                if answer.fault is not None:
                    count.faults[answer.fault] += 1
                    faults[job.keys[i]] = answer
            keeper.add(rows, at_once=len(answers) > 1)
            if faults:
                bar.set_postfix(faults=len(faults), refresh=False)
            bar.update(len(lacking))
    return faults


def _answered(backend: Backend, job: Job) -> Iterator[tuple[int, list[Answer]]]:
    """(number of the unit, its answers) as they come, each unit of `job.todo` once."""
    left = dict(enumerate(job.todo))
    units = ([job.unique[i] for i in job.units[unit]] for unit in job.todo)
    coming = backend.answer(units)
    with closing(coming) if hasattr(coming, "close") else nullcontext():
        for place, answers in coming:
            unit = left.pop(place, None)
            if unit is None or len(answers) != len(job.units[unit]):
                raise BackendError(
                    f"{backend.identity}: {len(answers)} answers for unit {place}, which was "
                    "answered before or has another number of requests; the backend is at fault"
                )
            yield unit, answers
    if left:
        raise BackendError(f"{backend.identity}: gave no answers for {len(left)} units; run again")


def _checked(request: Request, answer: Answer) -> Answer:
    """`answer`, with a fault where its numbers cannot be used."""
    if answer.fault is not None:
        return answer
    fault = None
    if answer.value is None:
        fault = "no answer"
    elif not isinstance(answer.value, str) and not np.isfinite(answer.value).all():
        fault = "numbers that are not finite"
    elif isinstance(request, Scoring) and len(answer.value) != len(request.options):
        fault = "not one score for each option"
    return answer if fault is None else Answer(None, answer.tokens_in, answer.tokens_out, fault)


class _Keeper:
    """Stores answers soon after they come: those of a batch at once, single ones in groups.

    A timer stores a group that has waited for GROUP_SECONDS, also while no further answer comes.
    """

    def __init__(self, store: AnswerStore, task: str, model: str, count: Tally) -> None:
        self._store, self._task, self._model, self._count = store, task, model, count
        self._rows: list[tuple[str, Request, Answer]] = []
        self._mutex = threading.Lock()
        self._timer: threading.Timer | None = None
        self._error: Exception | None = None

    def __enter__(self) -> "_Keeper":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            with self._mutex:
                if self._timer is not None:
                    self._timer.cancel()
                self._flush()
        except TemaError as failure:
            if error is None:
                raise
            log.error("%s", failure)  # the first error is the one that goes up
        if error is None and self._error is not None:
            raise self._error

    def add(self, rows: list[tuple[str, Request, Answer]], at_once: bool) -> None:
        with self._mutex:
            self._rows += rows
            if self._error is not None:
                raise self._error
            if at_once or len(self._rows) >= GROUP_ANSWERS:
                self._flush()
            elif self._rows and self._timer is None:
                self._timer = threading.Timer(GROUP_SECONDS, self._on_time)
                self._timer.daemon = True
                self._timer.start()

    def _on_time(self) -> None:
        with self._mutex:
            self._timer = None
            try:
                self._flush()
            except Exception as error:  # raised again by the thread that adds
                self._error = error

    def _flush(self) -> None:
        """Store what has come. Rows go from the list only then: Ctrl-C in between loses none."""
        if self._rows:
            self._store.put(self._rows, self._task, self._model)
            self._count.kept += sum(answer.fault is None for _, _, answer in self._rows)
            self._rows = []


def _await_others(
    job: Job,
    new: list[str],
    sessions: dict[int, str | None],
    store: AnswerStore,
    task: str,
    progress: bool,
    wait: bool,
) -> dict[str, Answer]:
    """Wait until the other shards have stored the answers of `new` keys; faults of theirs by key.

    Raises:
        Incomplete: `wait` is off and some are missing.
    """
    n_shards = store.shard[1]
    owner = {job.keys[i]: u % n_shards + 1 for u, unit in enumerate(job.units) for i in unit}
    faults: dict[str, Answer] = {}
    started, pause, told = time.monotonic(), FIRST_PAUSE, ""
    left = store.missing(key for key in new if owner[key] in sessions)
    start = len(job.keys) - len(left)
    bar = tqdm(
        total=len(job.keys), initial=start, desc=f"{task}: all shards", unit="req", delay=1.0,
        disable=not progress or not wait,
    )  # fmt: skip
    with bar:
        while left := store.missing(left):
            waited = time.monotonic() - started
            for shard in {owner[key] for key in left}:
                faults |= _faults_of(store, shard, sessions[shard], left, waited)
            left = [key for key in left if key not in faults]
            bar.update(len(job.keys) - len(left) - bar.n)
            if not left:
                break
            text = _awaited(store, task, {owner[key] for key in left})
            if not wait:
                raise Incomplete(f"{text}: {len(left):,} answers; run again when they have ended")
            if text != told and waited > TOLD_SECONDS:
                log.info("%s. You may stop here, and later run again without --shard", text)
                told = text
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)
    return faults


def _faults_of(
    store: AnswerStore, shard: int, session_before: str | None, keys: list[str], waited: float
) -> dict[str, Answer]:
    """Those of `keys` that are faults of `shard` in this run (see the top of the module)."""
    session, reasons = store.faults(shard)
    faults = {key: Answer(None, fault=reasons[key]) for key in keys if key in reasons}
    if not faults or session != session_before or waited >= GRACE_SECONDS or store.running(shard):
        return faults
    return {}


def _awaited(store: AnswerStore, task: str, shards: set[int]) -> str:
    names = [f"{i} ({'runs' if store.running(i) else 'does not run'})" for i in sorted(shards)]
    index, n_shards = store.shard
    return f"{task}: shard {index}/{n_shards} has done its part; missing: shard {', '.join(names)}"
