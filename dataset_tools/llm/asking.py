"""The loop that asks: what the store has is taken from there, what it lacks is asked and kept.

**Batches.** A backend groups requests into units by the input alone. A unit that lacks an answer
is answered whole, so that an answer comes out of the same batch, to the same last bit, whatever
was there before; the answers that are kept already win. Only where an answer does not depend on
its unit (a server's) are those alone asked that lack one.

**Faults.** A request may get no usable answer. If the same would come another time (a lasting
fault), that is kept, and not asked again before --retry_failed; else the next run asks again.

**Parts.** Part i of n asks the units i, i+n, i+2n, ... and ends there if others are missing.
"""

import logging
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.requests import (
    Answer,
    Backend,
    Request,
    Scoring,
    identity_of,
    key_of,
)
from recbole_tema.errors import BackendError, DataError, TemaError
from recbole_tema.progress import ProgressBar

log = logging.getLogger(__name__)

REASONS_SHOWN = 3


class PartDone(Exception):
    """A part has stored its answers, which have to be joined with those of the other parts."""


@dataclass
class Tally:
    """What was asked and what came of it; add them up over several calls of `ask`.

    Attributes:
        requests: Different requests: those of the next three numbers, and after an interruption
            or in a part of a run some that were not asked yet.
        from_store: How many the store had an answer to.
        kept: How many got an answer now, which was stored.
        faults: Requests without a usable answer, by reason.
        failed: Of these, how many have a lasting fault of an earlier run and were not asked again.
        calls: Requests that the backend answered: those that lacked an answer, and `again`.
        again: Requests whose answer was there, sent once more because their unit lacked another's.
        tokens_in: Tokens read in these calls.
        tokens_out: Tokens written.
        seconds: Time taken.
    """

    requests: int = 0
    from_store: int = 0
    kept: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    calls: int = 0
    again: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0

    def __iadd__(self, other: "Tally") -> "Tally":
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    def __str__(self) -> str:
        faults = self.faults.total()
        left = self.requests - self.from_store - self.kept - faults
        text = (
            f"{self.requests:,} requests: {self.from_store:,} answered from the store, "
            f"{self.kept:,} by the model, {faults:,} without an answer"
        )
        text += f", {left:,} not asked yet" if left > 0 else ""
        text += f". Sent to the model: {self.calls:,}"
        text += f", {self.again:,} of them again with their batch" if self.again else ""
        text += f" ({self.tokens_in:,} tokens in, {self.tokens_out:,} out, {self.seconds:.1f} s)"
        if self.failed:
            text += f". Failed in an earlier run and not sent again: {self.failed:,}"
        common = Counter(dict(self.faults.most_common(REASONS_SHOWN)))
        if rest := faults - common.total():
            common["other reasons"] = rest
        shown = [f"{reason} ({count:,})" for reason, count in common.items()]
        return f"{text}. Without an answer: {'; '.join(shown)}" if shown else text


class Job(NamedTuple):
    """What there is to do.

    Attributes:
        unique: The requests, each once, in the order of their first appearance.
        keys: Their keys.
        units: Indices of `unique` in groups that are answered together, all of them.
        kept: The answers that the store has, by key.
        failed: Lasting faults that are not asked again, by key.
        part: Numbers of the units of this part of the run.
        order: For each request as given, its index in `unique`.
        whole: Units are asked whole, not only what they lack.
        widths: Of the vectors so far: one at most.
    """

    unique: list[Request]
    keys: list[str]
    units: list[list[int]]
    kept: dict[str, Answer]
    failed: dict[str, Answer]
    part: range
    order: list[int]
    whole: bool
    widths: set[int]

    @property
    def todo(self) -> list[int]:
        """Numbers of this part's units that lack an answer."""
        return [unit for unit in self.part if self.lacking(unit)]

    def lacking(self, unit: int) -> list[int]:
        """Indices of a unit's requests that have no answer in the store, nor a lasting fault."""
        known = (self.kept, self.failed)
        return [i for i in self.units[unit] if not any(self.keys[i] in part for part in known)]

    def asked(self, unit: int) -> list[int]:
        """Indices of the requests that are sent to the backend for a unit."""
        return self.units[unit] if self.whole else self.lacking(unit)

    def check_widths(self, answers: Iterable[Answer], store: AnswerStore) -> None:
        """All vectors are of one width: a server may load another model by the same name.

        Raises:
            DataError: they are not.
        """
        values = [answer.value for answer in answers]
        widths = self.widths | {len(v) for v in values if isinstance(v, np.ndarray)}
        if len(widths) > 1:
            raise DataError(
                f"{store.folder}: vectors of {min(widths)} and of {max(widths)} numbers by one "
                "model's name: the server has changed its model. Name another folder (--answers) "
                "to ask all anew, or serve the former model"
            )
        self.widths.update(widths)


def plan(backend: Backend, requests: Sequence[Request], store: AnswerStore) -> Job:
    """What `ask` would do, without doing it."""
    place: dict[Request, int] = {}
    order = [place.setdefault(request, len(place)) for request in requests]
    unique = list(place)
    keys = [key_of(identity_of(backend, request), request) for request in unique]
    units = backend.units(unique) if unique else []
    kept = store.get(keys)
    reasons = store.lasting(key for key in keys if key not in kept)
    failed = {key: Answer(None, fault=why, lasting=True) for key, why in reasons.items()}
    index, n_parts = store.part
    part = range(index - 1, len(units), n_parts)
    whole = not getattr(backend, "independent", False)
    return Job(unique, keys, units, kept, failed, part, order, whole, set())


def ask(
    backend: Backend,
    requests: Sequence[Request],
    store: AnswerStore,
    *,
    task: str,
    progress: bool = True,
    tally: Tally | None = None,
) -> list[Answer]:
    """An answer, maybe with a fault, for each request in their order, from the store or asked.

    Every answer that arrives is stored before the call ends, however it ends.

    Args:
        backend: The model.
        requests: All of one type; equal ones are asked once.
        store: Where answers are kept; it says which part is asked here.
        task: What the answers are for, in a word: for progress, log and counts.
        progress: Show a bar with rate and time left.
        tally: What was asked is added to it, also when the call ends by an exception.

    Raises:
        BackendError: no further answer can be had.
        DataError: answers cannot be stored, or vectors are of unlike widths.
        PartDone: answers of other parts are missing, or those of this one are not joined yet.
    """
    started, count = time.monotonic(), Tally()
    try:
        job = plan(backend, requests, store)
        count.requests, count.from_store = len(job.unique), len(job.kept)
        count.failed = len(job.failed)
        count.faults.update(_reasons(job.failed))
        if job.failed:
            failed = f"{len(job.failed):,} requests had lasting faults and are not asked again"
            log.info("%s: %s; --retry_failed does so", task, failed)
        job.check_widths(job.kept.values(), store)
        faults = dict(job.failed)
        if job.todo:
            _ask_todo(backend, job, store, task, progress, count, faults)
        answers = job.kept | faults
        answers |= store.get(key for key in job.keys if key not in answers)
        missing = sum(key not in answers for key in job.keys)
        if missing or (store.part[1] > 1 and store.apart(job.keys)):
            raise _missing(store, task, missing)
        return [answers[job.keys[i]] for i in job.order]
    finally:
        count.seconds = time.monotonic() - started
        if tally is not None:
            tally += count
        log.info("%s: %s", task, count)


def _reasons(answers: dict[str, Answer]) -> list[str]:
    return [answer.fault for answer in answers.values() if answer.fault is not None]


def _missing(store: AnswerStore, task: str, n: int) -> Exception:
    index, n_parts = store.part
    if n_parts == 1:
        return DataError(
            f"{store.path}: {n} answers that were stored cannot be read back; check the disk and "
            "that nobody changes the file, then run again"
        )
    return PartDone(
        f"{task}: part {index}/{n_parts} is done, its answers are in {store.path}"
        + (f"; {n:,} of other parts are missing" if n else "")
        + f". When all {n_parts} are done, join them: python -m dataset_tools merge "
        "NAME FILE...; then run this again, without --part, or with it for what comes next"
    )


def _ask_todo(
    backend: Backend,
    job: Job,
    store: AnswerStore,
    task: str,
    progress: bool,
    count: Tally,
    faults: dict[str, Answer],
) -> None:
    """Ask and store what this part has to; `faults` by key grow.

    On Ctrl-C, or where the store fails, what is under way at the backend is paid for: the backend
    is told, and what it still gives is kept, as far as it can be.
    """
    identity = identity_of(backend, job.unique[0])  # all requests are of one type

    def keep(unit: int, answers: Sequence[Answer]) -> int:
        """Store a unit's answers; how many of its requests had lacked one."""
        lacking = set(job.lacking(unit))
        rows = [
            (job.keys[i], job.unique[i], _checked(job.unique[i], answer))
            for i, answer in zip(job.asked(unit), answers, strict=True)
            if i in lacking
        ]
        job.check_widths((answer for _, _, answer in rows), store)
        store.put(rows, task, identity)
        new = {key: answer for key, _, answer in rows if answer.fault is not None}
        faults.update(new)
        count.faults.update(_reasons(new))
        count.kept += len(rows) - len(new)
        return len(rows)

    store.prepare()
    total = sum(len(job.units[unit]) for unit in job.part)
    left = sum(len(job.lacking(unit)) for unit in job.part)
    stream, item = _answered(backend, job, count), None
    with ProgressBar(
        total=total, initial=total - left, desc=task, unit="req", disable=not progress
    ) as bar:
        try:
            for item in stream:
                bar.update(keep(*item))
                item = None
                if faults:
                    bar.set_postfix(faults=len(faults), refresh=False)
                store.prepare()
        except (KeyboardInterrupt, TemaError) as error:
            for late in chain([item] if item else [], _rest(stream, error)):
                with suppress(TemaError):  # the first error is the one that goes up
                    keep(*late)
            raise


def _answered(
    backend: Backend, job: Job, count: Tally
) -> Generator[tuple[int, list[Answer]], None, None]:
    """(number of the unit, its answers) as they come, each unit that lacks one once.

    An exception that is thrown in goes on to the backend, which may have more to give before it
    raises that exception.
    """
    left = dict(enumerate(job.todo))
    coming = backend.answer([job.unique[i] for i in job.asked(unit)] for unit in job.todo)
    with closing(coming) if isinstance(coming, Generator) else nullcontext():
        item = next(coming, None)
        while item is not None:
            place, answers = item
            unit = left.pop(place, None)
            if unit is None or len(answers) != len(job.asked(unit)):
                raise BackendError(
                    f"{backend.identity}: {len(answers)} answers for unit {place}, which was "
                    "answered before or has another number of requests; the backend is at fault"
                )
            count.calls += len(answers)
            count.again += len(answers) - len(job.lacking(unit))
            count.tokens_in += sum(answer.tokens_in for answer in answers)
            count.tokens_out += sum(answer.tokens_out for answer in answers)
            try:
                yield unit, answers
            except (KeyboardInterrupt, TemaError) as error:
                if not isinstance(coming, Generator):  # it cannot be told
                    raise
                try:
                    item = coming.throw(error)
                except StopIteration:
                    raise error from None
            else:
                item = next(coming, None)
    if left:
        raise BackendError(f"{backend.identity}: gave no answers for {len(left)} units; run again")


def _rest(stream: Generator, error: BaseException) -> Iterator[tuple[int, list[Answer]]]:
    """What a stream still gives after `error`, which it then raises itself, or another."""
    try:
        item = stream.throw(error)
        while True:
            yield item
            item = next(stream)
    except (type(error), TemaError, StopIteration):
        return


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
