"""What a run would cost: calls, tokens and money, without a call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.asking import plan
from dataset_tools.llm.requests import Backend, Completion, Prompt, Request, Scoring

RATING_TOKENS = 8  # of one option's score and its share of the JSON around it
MILLION = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """What asking would take; add them up over several tasks.

    Attributes:
        requests: Different requests.
        kept: Of these, how many the store has.
        calls: Requests that would be asked.
        tokens_in: Tokens to read, about.
        tokens_out: Tokens to write, at most.
        cost: In the currency of the prices; None where a price is missing.
    """

    requests: int = 0
    kept: int = 0
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = 0.0

    def __add__(self, other: "Estimate") -> "Estimate":
        known = self.cost is not None and other.cost is not None
        return Estimate(
            self.requests + other.requests,
            self.kept + other.kept,
            self.calls + other.calls,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.cost + other.cost if known else None,
        )

    def __str__(self) -> str:
        lines = [
            f"calls: {self.calls:,} ({self.kept:,} of {self.requests:,} answers are kept)",
            f"tokens in: about {self.tokens_in:,}",
            f"tokens out: at most {self.tokens_out:,}",
        ]
        if self.cost is not None:
            lines.append(f"cost: at most about {self.cost:,.2f}")
        return "\n".join(lines)


def estimate(
    backend: Backend,
    requests: Sequence[Request],
    store: AnswerStore,
    price_in: float | None = None,
    price_out: float | None = None,
) -> Estimate:
    """What `ask` would take with the same arguments, of this store's shard.

    Args:
        backend: The model; it is asked for units and token counts only.
        requests: All of one type.
        store: Its answers cost nothing.
        price_in: Of a million tokens read, in any currency.
        price_out: Of a million tokens written.
    """
    job = plan(backend, requests, store)
    asked = [job.unique[i] for unit in job.todo for i in job.units[unit]]
    count = lru_cache(maxsize=4096)(backend.count_tokens)  # prompts share their longest parts
    read = sum(_tokens_in(request, count, backend.likelihoods) for request in asked)
    written = sum(_tokens_out(request, backend.likelihoods) for request in asked)
    bill = [(read, price_in), (written, price_out)]
    unknown = price_in is None and price_out is None
    unknown |= any(tokens and price is None for tokens, price in bill)
    cost = None if unknown else sum(tokens * (price or 0.0) / MILLION for tokens, price in bill)
    return Estimate(len(job.unique), len(job.kept), len(asked), read, written, cost)


def _tokens_in(request: Request, count: Callable[[str], int], likelihoods: bool) -> int:
    if isinstance(request, Completion):
        return _prompt_tokens(request.prompt, count)
    if isinstance(request, Scoring):
        if not likelihoods:
            return _prompt_tokens(request.rating, count)
        return _prompt_tokens(request.prompt, count) + sum(map(count, request.options))
    return count(request.text)


def _prompt_tokens(prompt: Prompt, count: Callable[[str], int]) -> int:
    texts = [prompt.system, prompt.user, *(text for pair in prompt.examples for text in pair)]
    return sum(map(count, texts))


def _tokens_out(request: Request, likelihoods: bool) -> int:
    if isinstance(request, Completion):
        return request.max_tokens
    if isinstance(request, Scoring) and not likelihoods:
        return RATING_TOKENS * len(request.options)
    return 0
