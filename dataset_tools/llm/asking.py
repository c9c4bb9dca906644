"""The loop that asks: what the store has is taken from there, what it lacks is asked and kept.

**Batches.** A backend groups requests into units by the input alone. A unit that lacks an answer
is answered whole, so that an answer comes out of the same batch, to the same last bit, whatever
was there before; the answers that are kept already win. Only where an answer does not depend on
its unit (a server's) are those alone asked that lack one.

**Faults.** A request may get no usable answer. If the same would come another time (a lasting
fault), that is kept, and not asked again before --retry_failed; else the next run asks again.

**Shards.** Process i of n answers the units i, i+n, i+2n, ... and then waits for those of the
others; see `shards`.
"""

import logging
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.job import Job, Widths, plan
from dataset_tools.llm.keeper import Keeper, Row
from dataset_tools.llm.requests import Answer, Backend, Request, Scoring, identity_of
from dataset_tools.llm.shards import Others
from recbole_tema.errors import BackendError, DataError, TemaError
from recbole_tema.progress import ProgressBar

log = logging.getLogger(__name__)

REASONS_SHOWN = 3


@dataclass
class Tally:
    """What was asked and what came of it; add them up over several calls of `ask`.

    Attributes:
        requests: Different requests: those of the next three numbers, and after an interruption
            some that were not asked yet.
        from_store: How many the store had an answer to, or got one from other shards.
        kept: How many got an answer now, which was stored.
        faults: Requests without a usable answer, by reason.
        failed: Of these, how many have a lasting fault of an earlier run and were not asked again.
        calls: Requests that the backend answered: those that lacked an answer, and `again`.
        again: Requests whose answer was there, sent once more because their unit lacked another's.
        tokens_in: Tokens read in these calls.
        tokens_out: Tokens written.
        seconds: Time taken, waiting included.
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

    def add_kept(self, n: int) -> None:
        """`n` more answers were stored."""
        self.kept += n

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
        faults = self.faults.total()
        left = self.requests - self.from_store - self.kept - faults
        parts = [
            f"{self.from_store:,} answered from the store",
            f"{self.kept:,} by the model",
            f"{faults:,} without an answer",
            *([f"{left:,} not asked yet"] if left > 0 else []),
        ]
        again = f", {self.again:,} of them again with their batch" if self.again else ""
        text = (
            f"{self.requests:,} requests: {', '.join(parts)}. Sent to the model: "
            f"{self.calls:,}{again} ({self.tokens_in:,} tokens in, {self.tokens_out:,} out, "
            f"{self.seconds:.1f} s)"
        )
        if self.failed:
            text += f". Failed in an earlier run and not sent again: {self.failed:,}"
        common = self.faults.most_common(REASONS_SHOWN)
        shown = [f"{reason} ({count:,})" for reason, count in common]
        rest = faults - sum(count for _, count in common)
        if rest:
            shown.append(f"other reasons ({rest:,})")
        return f"{text}. Without an answer: {'; '.join(shown)}" if shown else text


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
        DataError: answers cannot be stored, vectors are of unlike widths, or another shard asks
            other questions.
        Incomplete: `wait` is off and answers of other shards are missing.
    """
    started, count = time.monotonic(), Tally()
    others = Others(store, task)
    try:
        job = plan(backend, requests, store)
        count.requests, count.from_store = len(job.unique), len(job.kept)
        widths = Widths(job.kept.values(), store)
        count.failed = len(job.failed)
        if job.failed:
            log.info("%s: %s", task, _not_again(len(job.failed)))
        others.publish(job)
        faults = job.failed | _ask_todo(backend, job, store, task, progress, count, widths)
        new = [key for key in job.keys if key not in job.kept and key not in faults]
        if others.shards and new:
            faults |= others.wait_for(job, new, progress, wait)
        answers = job.kept | faults | store.get(key for key in new if key not in faults)
        _check_all_there(job, answers, store)
        widths.check(answers.values())
        count.from_store = count.requests - count.kept - len(faults)
        count.faults = Counter(fault.fault for fault in faults.values())
        return [answers[job.keys[i]] for i in job.order]
    finally:
        count.seconds = time.monotonic() - started
        if tally is not None:
            tally += count
        log.info("%s: %s", task, count)


def _not_again(n: int) -> str:
    return f"{n:,} requests had lasting faults and are not asked again; --retry_failed does so"


def _check_all_there(job: Job, answers: dict[str, Answer], store: AnswerStore) -> None:
    lost = sum(key not in answers for key in job.keys)
    if lost:
        raise DataError(
            f"{store.folder}: {lost} answers that were stored cannot be read back; check the disk "
            "and that nobody removes files there, then run again"
        )


def _ask_todo(
    backend: Backend,
    job: Job,
    store: AnswerStore,
    task: str,
    progress: bool,
    count: Tally,
    widths: Widths,
) -> dict[str, Answer]:
    """Ask and store what this shard has to; the faults by key.

    On Ctrl-C, or where the store fails, what is under way at the backend is paid for: the backend
    is told, and what it still gives is kept, as far as it can be.
    """
    faults: dict[str, Answer] = {}
    if not job.todo:
        return faults
    store.prepare()
    index, n_shards = store.shard
    total = sum(len(unit) for unit in job.units[index - 1 :: n_shards])
    left = sum(len(job.lacking(unit)) for unit in job.todo)
    bar = ProgressBar(
        total=total, initial=total - left, desc=task, unit="req", disable=not progress
    )
    identity = identity_of(backend, job.unique[0])  # all requests are of one type
    taken: set[int] = set()
    with bar, Keeper(store, task, identity, count.add_kept) as keeper:
        stream, unit, answers = _answered(backend, job), None, []
        try:
            for unit, answers in stream:
                rows = _rows(job, unit, answers)
                widths.check(answer for _, _, answer in rows)
                keeper.add(rows, at_once=len(answers) > 1)
                _count(count, faults, rows, answers)
                taken.add(unit)
                if faults:
                    bar.set_postfix(faults=len(faults), refresh=False)
                bar.update(len(rows))
        except (KeyboardInterrupt, TemaError) as error:
            late = [] if unit is None or unit in taken else [(unit, answers)]
            for unit, answers in chain(late, _rest(stream, error)):
                rows = [row for row in _rows(job, unit, answers) if widths.fits(row[2])]
                keeper.hold(rows)
                _count(count, faults, rows, answers)
            raise
    return faults


def _rows(job: Job, unit: int, answers: Sequence[Answer]) -> list[Row]:
    """(key, request, answer) of those requests of a unit that lacked an answer."""
    lacking = set(job.lacking(unit))
    return [
        (job.keys[i], job.unique[i], _checked(job.unique[i], answer))
        for i, answer in zip(job.asked(unit), answers, strict=True)
        if i in lacking
    ]


def _count(
    count: Tally, faults: dict[str, Answer], rows: Sequence[Row], answers: Sequence[Answer]
) -> None:
    count.calls += len(answers)
    count.again += len(answers) - len(rows)
    count.tokens_in += sum(answer.tokens_in for answer in answers)
    count.tokens_out += sum(answer.tokens_out for answer in answers)
    for key, _, answer in rows:
        if answer.fault is not None:
            count.faults[answer.fault] += 1
            faults[key] = answer


def _answered(backend: Backend, job: Job) -> Iterator[tuple[int, list[Answer]]]:
    """(number of the unit, its answers) as they come, each unit of `job.todo` once.

    An exception that is thrown in goes on to the backend, which may have more to give before it
    raises that exception.
    """
    left = dict(enumerate(job.todo))
    units = ([job.unique[i] for i in job.asked(unit)] for unit in job.todo)
    coming = backend.answer(units)
    with closing(coming) if hasattr(coming, "close") else nullcontext():
        item = next(coming, None)
        while item is not None:
            place, answers = item
            unit = left.pop(place, None)
            if unit is None or len(answers) != len(job.asked(unit)):
                raise BackendError(
                    f"{backend.identity}: {len(answers)} answers for unit {place}, which was "
                    "answered before or has another number of requests; the backend is at fault"
                )
            try:
                yield unit, answers
            except (KeyboardInterrupt, TemaError) as error:
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
