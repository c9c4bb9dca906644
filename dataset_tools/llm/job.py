"""What there is to do: which requests lack an answer, in which units, and whose part they are."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.requests import Answer, Backend, Request, identity_of, is_independent, key_of
from recbole_tema.errors import DataError


class Job(NamedTuple):
    """What there is to do.

    Attributes:
        unique: The requests, each once, in the order of their first appearance.
        keys: Their keys.
        units: Indices of `unique` in groups that are answered together, all of them.
        kept: The answers that the store has, by key.
        failed: Lasting faults that are not asked again, by key.
        todo: Numbers of this shard's units that lack an answer.
        order: For each request as given, its index in `unique`.
        whole: Units are asked whole, not only what they lack.
    """

    unique: list[Request]
    keys: list[str]
    units: list[list[int]]
    kept: dict[str, Answer]
    failed: dict[str, Answer]
    todo: list[int]
    order: list[int]
    whole: bool

    def lacking(self, unit: int) -> list[int]:
        """Indices of a unit's requests that have no answer in the store, nor a lasting fault."""
        known = (self.kept, self.failed)
        return [i for i in self.units[unit] if not any(self.keys[i] in part for part in known)]

    def asked(self, unit: int) -> list[int]:
        """Indices of the requests that are sent to the backend for a unit."""
        return self.units[unit] if self.whole else self.lacking(unit)


def plan(backend: Backend, requests: Sequence[Request], store: AnswerStore) -> Job:
    """What `ask` would do, without doing it."""
    place: dict[Request, int] = {}
    order = [place.setdefault(request, len(place)) for request in requests]
    unique = list(place)
    keys = [key_of(identity_of(backend, request), request) for request in unique]
    units = backend.units(unique) if unique else []
    kept = store.get(keys)
    failed = lasting_faults(store, (key for key in keys if key not in kept))
    job = Job(unique, keys, units, kept, failed, [], order, not is_independent(backend))
    index, n_shards = store.shard
    mine = range(index - 1, len(units), n_shards)
    return job._replace(todo=[unit for unit in mine if job.lacking(unit)])


def lasting_faults(store: AnswerStore, keys: Iterable[str]) -> dict[str, Answer]:
    """Faulty answers for those of `keys` that need not be asked again."""
    return {
        key: Answer(None, fault=reason, lasting=True) for key, reason in store.lasting(keys).items()
    }


class Widths:
    """Watches that all vectors are of one width: a server may load another model by the same name.

    Args:
        answers: Those that are kept.
        store: Where they are, for the message.

    Raises:
        DataError: they are not of one width.
    """

    def __init__(self, answers: Iterable[Answer], store: AnswerStore) -> None:
        self.width: int | None = None
        self._folder = store.folder
        self.check(answers)

    def fits(self, answer: Answer) -> bool:
        """Whether an answer may stand beside the others; the first vector says how wide."""
        if not isinstance(answer.value, np.ndarray):
            return True
        if self.width is None:
            self.width = len(answer.value)
        return len(answer.value) == self.width

    def check(self, answers: Iterable[Answer]) -> None:
        """Raise where one of `answers` does not fit.

        Raises:
            DataError: see there.
        """
        for answer in answers:
            if not self.fits(answer):
                one, other = sorted((self.width, len(answer.value)))
                raise DataError(
                    f"{self._folder}: vectors of {one} and of {other} numbers by one model's name: "
                    "the server has changed its model. Name another folder (--answers) to ask all "
                    "anew, or serve the former model"
                )
