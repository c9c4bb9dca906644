"""What a run would cost: calls, tokens and money, without a call."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.asking import plan
from dataset_tools.llm.requests import (
    RATING_TOKENS,
    Backend,
    Completion,
    Embedding,
    Request,
    Scoring,
)

MILLION = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """What asking would take; add them up over several tasks.

    Attributes:
        requests: Different requests.
        kept: Of these, how many the store has, lasting faults included.
        lacking: Of the others, how many this part of a run would ask.
        calls: Requests that would be sent: those, and others that share a unit with one.
        tokens_in: Tokens to read, about.
        tokens_out: Tokens to write, about.
        cost: In the currency of the prices; None where a price is missing.
        most_out: Tokens to write if every answer is as long as it may be.
        most_cost: The cost of that. Tries that fail cost more, and are in neither.
    """

    requests: int = 0
    kept: int = 0
    lacking: int = 0
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = 0.0
    most_out: int = 0
    most_cost: float | None = 0.0

    def __add__(self, other: "Estimate") -> "Estimate":
        pairs = [(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)]
        sums: list[Any] = [None if None in pair else sum(pair) for pair in pairs]
        return Estimate(*sums)

    def __str__(self) -> str:
        missing, again = self.requests - self.kept, self.calls - self.lacking
        calls = f"calls: {self.calls:,} ({missing:,} of {self.requests:,} requests are to be asked"
        if missing > self.lacking:
            calls += f", {missing - self.lacking:,} of them by other parts"
        if again:
            calls += f", {again:,} others are sent again with their batch"
        lines = [f"{calls})", f"tokens in: about {self.tokens_in:,}"]
        lines.append(f"tokens out: {_range(self.tokens_out, self.most_out, ',')}")
        if self.cost is not None:
            lines.append(f"cost: {_range(self.cost, self.most_cost, ',.2f')}")
        return "\n".join(lines)


def _range(about: float, most: float | None, form: str) -> str:
    """ "about 20, at most about 100", or the limit alone where it is what is reckoned with."""
    limit = f"at most about {most:{form}}"
    return limit if about == most else f"about {about:{form}}, {limit}"


def estimate(
    backend: Backend,
    requests: Sequence[Request],
    store: AnswerStore,
    price_in: float | None = None,
    price_out: float | None = None,
) -> Estimate:
    """What `ask` would take with the same arguments.

    Args:
        backend: The model; it is asked for units and token counts only. How long an answer is,
            about and at most, says its `answer_tokens(request)`; without that, it is as long as
            the request allows.
        requests: All of one type.
        store: Its answers cost nothing.
        price_in: Of a million tokens read, in any currency.
        price_out: Of a million tokens written.
    """
    job = plan(backend, requests, store)
    asked = [job.unique[i] for unit in job.todo for i in job.asked(unit)]
    count = lru_cache(maxsize=4096)(backend.count_tokens)  # prompts share their longest parts
    read = sum(count(text) for request in asked for text in _texts(request, backend.likelihoods))
    length = getattr(backend, "answer_tokens", lambda request: [_longest(request, backend)] * 2)
    lengths = [length(request) for request in asked]
    about, most = sum(pair[0] for pair in lengths), sum(pair[1] for pair in lengths)
    costs = [_cost((read, price_in), (written, price_out)) for written in (about, most)]
    known = len(job.kept) + len(job.failed)
    lacking = sum(len(job.lacking(unit)) for unit in job.todo)
    return Estimate(
        len(job.unique), known, lacking, len(asked), read, about, costs[0], most, costs[1]
    )


def _cost(*bill: tuple[int, float | None]) -> float | None:
    """Of (tokens, price of a million); None where a price that counts is unknown."""
    if all(price is None for _, price in bill) or any(n and price is None for n, price in bill):
        return None
    return sum(tokens * (price or 0.0) / MILLION for tokens, price in bill)


def _texts(request: Request, likelihoods: bool) -> list[str]:
    """What a model reads of a request."""
    if isinstance(request, Embedding):
        return [request.text]
    if isinstance(request, Scoring) and not likelihoods:
        prompt, options = request.rating, ()
    else:
        prompt, options = request.prompt, getattr(request, "options", ())
    examples = [text for pair in prompt.examples for text in pair]
    return [prompt.system, prompt.user, *examples, *options]


def _longest(request: Request, backend: Backend) -> int:
    if isinstance(request, Completion):
        return request.max_tokens
    if isinstance(request, Embedding) or backend.likelihoods:
        return 0
    return RATING_TOKENS * len(request.options)
