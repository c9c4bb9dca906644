"""What is asked of a language model and what it answers: the one vocabulary of all backends.

A request is a plain value. Its `content` is what the answer depends on, and with the backend's
identity it makes the key under which the answer is kept.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

RATING_TOKENS = 8  # of one option's rating and its share of the JSON around it, about


@dataclass(frozen=True)
class Prompt:
    """A task in words: instructions, few-shot pairs (said, answered), what the user says now.

    `user` is the only part that holds text of the dataset.
    """

    system: str
    examples: tuple[tuple[str, str], ...]
    user: str


@dataclass(frozen=True)
class Completion:
    """Ask for a text.

    Attributes:
        prompt: The task.
        max_tokens: Longest answer, in tokens of the model.
        stop: Texts that end the answer and are not part of it.
        schema: A JSON schema as JSON text, where the answer is to be JSON.
    """

    prompt: Prompt
    max_tokens: int
    stop: tuple[str, ...] = ()
    schema: str | None = None


@dataclass(frozen=True)
class Scoring:
    """Ask how well each option answers the prompt; higher is better.

    Attributes:
        prompt: The task whose answer an option would be, for a model that gives likelihoods.
        rating: The same task for a model that only writes: it lists the options, numbered from 1,
            and asks for the JSON object {"scores": [a number from 0 to 1 for each option]}.
        options: The answers to compare, no empty ones.
    """

    prompt: Prompt
    rating: Prompt
    options: tuple[str, ...]


@dataclass(frozen=True)
class Embedding:
    """Ask for the vector of a text."""

    text: str


Request = Completion | Scoring | Embedding
Value = str | list[float] | np.ndarray


@dataclass(frozen=True)
class Answer:
    """What a backend gave for one request.

    Attributes:
        value: The text of a Completion, the scores (one an option) of a Scoring, the float32
            vector of an Embedding; None where there is a fault.
        tokens_in: Tokens read, as the backend counts them.
        tokens_out: Tokens written.
        fault: Why there is no usable answer; such an answer is counted, never kept as one.
        lasting: The fault would be the same another time: the next run does not ask again.
    """

    value: Value | None
    tokens_in: int = 0
    tokens_out: int = 0
    fault: str | None = None
    lasting: bool = False


class Backend(Protocol):
    """A language model behind three questions: complete, score, embed.

    A backend may also have `answer_tokens(request)` (see `estimate`), `identity_of(request)`, where
    not all answers depend on the same model, and `independent`: an answer does not depend on what
    else is in its unit, so that only those requests of a unit are asked that lack one.

    Attributes:
        likelihoods: Whether the scores of a Scoring are length-normalised log-likelihoods of the
            options (True) or ratings from 0 to 1 that the model wrote (False).
    """

    likelihoods: bool

    @property
    def identity(self) -> str:
        """What the answers depend on besides the request: kind, model, its weights or its address,
        number format. Never a secret."""

    def units(self, requests: Sequence[Request]) -> list[list[int]]:
        """Indices of `requests` (all of one type) in groups that are answered together.

        The grouping depends on `requests` alone, so that a run that was interrupted computes what
        is left in the same batches, to the same last bit.
        """

    def answer(self, units: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[Answer]]]:
        """Yield (place of the unit in `units`, an answer for each request), in any order.

        Raises:
            BackendError: no further answer can be had (key refused, endpoint gone).
        """

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, exact for a local model, else an estimate."""


def identity_of(backend: Backend, request: Request) -> str:
    """What the answer to `request` depends on besides it."""
    named = getattr(backend, "identity_of", None)
    return backend.identity if named is None else named(request)


def content(request: Request) -> str:
    """All of a request as canonical JSON: equal requests, equal text.

    >>> content(Embedding("tea"))
    '{"kind":"Embedding","text":"tea"}'
    """
    fields = {"kind": type(request).__name__, **vars(request)}
    for name in ("prompt", "rating"):
        if name in fields:  # not by `asdict`, which copies every text
            fields[name] = vars(fields[name])
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def key_of(identity: str, request: Request) -> str:
    """The key of a request's answer: SHA-256 over the backend's identity and the content."""
    text = f"{identity}\n{content(request)}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
