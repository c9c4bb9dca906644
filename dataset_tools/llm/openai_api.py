"""Any OpenAI-compatible endpoint as a backend: DeepSeek, vLLM, Ollama, llama.cpp, OpenAI."""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import accumulate, pairwise
from typing import Any
from urllib.parse import parse_qs

from dataset_tools.llm.background import as_completed, background_loop
from dataset_tools.llm.endpoint import Endpoint, Unusable
from dataset_tools.llm.parsing import HOW_TO_GET
from dataset_tools.llm.redact import HIDDEN, split_address
from dataset_tools.llm.replies import (
    JSON_OUTPUT,
    Dialect,
    chat_body,
    chat_value,
    estimate_tokens,
    longest_answer,
    sendable,
    usage,
    vectors,
)
from dataset_tools.llm.requests import (
    RATING_TOKENS,
    Answer,
    Completion,
    Embedding,
    Request,
    Scoring,
)
from recbole_tema.errors import BackendError, DataError

MAX_TOKENS = 1000
JSON_SHARE = 2  # tokens of a list as JSON, to those of the same list with commas
OPENAI_URL = "https://api.openai.com/v1"
PACKAGES = ("openai", "json_repair")
NO_KEY = "none-needed"  # what a local server without keys is sent
ANSWER_RETRIES = 2  # of a reply without a usable answer
CONNECT_S = 10.0
GROUP_TEXTS = 64  # embeddings asked for in one call
GROUP_CHARACTERS = 200_000
SHORTEST_SECRET = 8  # a shorter key, such as vLLM's EMPTY, is a word that answers may hold
# At INFO these write the URL of every request, at DEBUG the headers of every response.
CHATTY = ("httpx", "httpx2", "httpcore", "httpcore2", "openai")


class OpenAIBackend:
    """A language model behind an OpenAI-compatible address. Scores are ratings that it wrote.

    Failed tries are repeated with growing waits; a request that stays without a usable answer gets
    a fault, the rest goes on. `troubles` counts the failed tries by kind ("HTTP 429"). Of an answer
    that was cut off what is complete is taken; where nothing is, that is a fault at once.

    Args:
        model: Name of the model, as the server knows it.
        base_url: Address up to and with /v1, where the server has that; a query is sent with each
            request. None: the environment's OPENAI_BASE_URL, or OpenAI.
        key_variable: Environment variable that holds the key. A loopback address needs none.
        embedding_model: Name of the model for embeddings; None: `model`.
        concurrency: Most requests on their way at a time.
        timeout_s: Longest time for one answer, from sending to its last byte.
        retries: Tries after the first, for what may pass.
        max_tokens: Longest answer, thinking included, where a request does not allow more itself:
            a bound of the cost. No key of an answer depends on it.
        json_output: How JSON is asked for: "schema", "object" (any JSON object), "text" (by words
            alone), or "auto": the first of these that the server does not refuse.
        temperature: Of sampling; 0 is the likeliest answer.
        seed: Of sampling, for servers that have one; None sends none.
        backoff_s: First wait before another try; doubled each time, with jitter.
        longest_pause_s: Longest wait, whatever the server's Retry-After asks for.
        grace_s: How long answers on their way are waited for after Ctrl-C or an error.
        dry: Nothing will be asked, so that no key is needed.

    Raises:
        BackendError: the key is missing, the address is none, or a number is out of range.
        DataError: a package of the `features` extra is not installed.
    """

    likelihoods = False
    independent = True

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        key_variable: str = "OPENAI_API_KEY",
        embedding_model: str | None = None,
        concurrency: int = 16,
        timeout_s: float = 60.0,
        retries: int = 6,
        max_tokens: int = MAX_TOKENS,
        json_output: str = "auto",
        temperature: float = 0.0,
        seed: int | None = 0,
        backoff_s: float = 0.5,
        longest_pause_s: float = 60.0,
        grace_s: float = 5.0,
        dry: bool = False,
    ) -> None:
        missing = [name for name in PACKAGES if find_spec(name) is None]
        if missing:
            raise DataError(f"served models need {', '.join(missing)}; run: {HOW_TO_GET}")
        if json_output not in ("auto", *JSON_OUTPUT):
            choices = ", ".join(JSON_OUTPUT)
            raise BackendError(f"--json_output {json_output!r} is unknown: choose auto, {choices}")
        if min(concurrency, max_tokens) < 1 or retries < 0 or not timeout_s > 0:
            raise BackendError(
                "--concurrency, --max_tokens and --timeout have to be over 0, retries not under 0"
            )
        self.model, self.embedding_model = model, embedding_model or model
        url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        self.address, self._query, self._loopback = split_address(url)
        self.key_variable = key_variable
        if not dry:
            self._key()
        self.concurrency, self.timeout_s, self.retries = concurrency, timeout_s, retries
        self.backoff_s, self.longest_pause_s = backoff_s, longest_pause_s
        self._grace_s, self._room = grace_s, max_tokens
        self._sampling = {"temperature": temperature, "seed": seed}
        self._dialect = Dialect(json_output)
        self.troubles: Counter[str] = Counter()
        self._rest = f"@{self.address} temperature={temperature:g} seed={seed}"
        self.identity = f"openai:{model}{self._rest}"
        if self.embedding_model != model:
            self.identity += f" embeddings={self.embedding_model}"

    def __repr__(self) -> str:
        return f"OpenAIBackend({self.identity!r})"

    def identity_of(self, request: Request) -> str:
        """The identity of the one model that answers `request`."""
        model = self.embedding_model if isinstance(request, Embedding) else self.model
        return f"openai:{model}{self._rest}"

    def answer_tokens(self, request: Request) -> tuple[int, int]:
        """How many tokens an answer has: about (without thinking), and at most."""
        if isinstance(request, Embedding):
            return 0, 0
        most = longest_answer(request, self._room)
        if isinstance(request, Scoring):
            return min(most, RATING_TOKENS * len(request.options)), most
        return min(most, request.max_tokens * (JSON_SHARE if request.schema else 1)), most

    def units(self, requests: Sequence[Request]) -> list[list[int]]:
        """Each completion and scoring alone; embeddings 64 texts, or 200,000 characters, a call."""
        groups: list[list[int]] = []
        room = -1  # of the last group, in characters
        for place, request in enumerate(requests):
            single = not isinstance(request, Embedding)
            size = len(request.text) if isinstance(request, Embedding) else GROUP_CHARACTERS
            if size > room or len(groups[-1]) == GROUP_TEXTS:
                groups.append([])
                room = GROUP_CHARACTERS
            groups[-1].append(place)
            room = -1 if single else room - size
        return groups

    def answer(self, units: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[Answer]]]:
        """Answer units, `concurrency` at a time, each yielded as soon as it is there.

        Network traffic goes on in a thread of its own, which ends with the iteration, also when
        that is left early. After Ctrl-C or a BackendError the answers on their way are waited for
        up to `grace_s` seconds and yielded before the exception is raised.

        Raises:
            BackendError: the key is refused, or the endpoint is not there or gone.
        """
        run = _Run(self)
        with background_loop("openai", run.client.close) as loop:
            yield from as_completed(
                loop,
                units,
                run.answers,
                # As many again wait for their turn while the caller keeps what it got.
                ahead=2 * self.concurrency,
                stop=run.endpoint.stop,
                grace_s=self._grace_s,
            )

    def count_tokens(self, text: str) -> int:
        """An estimate: a quarter of an ASCII character, 1 of a wide one, 1/2 of any other."""
        return estimate_tokens([text])

    def _key(self) -> str:
        """The key, read anew each time, so that no object holds it.

        Raises:
            BackendError: there is none, or it cannot be sent.
        """
        key = os.environ.get(self.key_variable, "").strip()
        if not key and self._loopback:
            return NO_KEY
        if not key:
            raise BackendError(
                f"{self.address} needs a key and the environment variable {self.key_variable} "
                f"holds none; run: export {self.key_variable}=..."
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise BackendError(
                f"the key in the environment variable {self.key_variable} holds characters that "
                "no key has (blanks, line breaks, letters beyond ASCII); set it again"
            )
        return key


class _Run:
    """One call of `answer`: the client, the endpoint, and how each unit is answered."""

    def __init__(self, backend: OpenAIBackend) -> None:
        import openai

        for name in CHATTY:
            if logging.getLogger(name).level == logging.NOTSET:
                logging.getLogger(name).setLevel(logging.WARNING)
        self.backend, self.dialect, key = backend, backend._dialect, backend._key()
        self.key = key if len(key) >= SHORTEST_SECRET and key != NO_KEY else None
        self.width = 0  # of the embeddings, once there is one
        seconds, query = backend.timeout_s, parse_qs(backend._query)
        timeout = openai.Timeout(seconds, connect=min(CONNECT_S, seconds / 2))
        self.client = openai.AsyncOpenAI(
            api_key=key,
            base_url=backend.address,
            default_query={name: values[-1] for name, values in query.items()},
            max_retries=0,
            timeout=timeout,
            # A proxy of the environment cannot know what listens on this machine.
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=timeout, trust_env=not backend._loopback
            ),
        )
        hidden = [value for values in query.values() for value in values]
        hidden = [value for value in hidden if len(value) >= SHORTEST_SECRET]
        if key != NO_KEY:
            hidden.append(key)
        self.endpoint = Endpoint(backend, hidden)

    async def answers(self, unit: Sequence[Request]) -> list[Answer]:
        # All are of one type.
        texts = [sendable(request.text) for request in unit if isinstance(request, Embedding)]
        if texts:
            return await self._embed(texts)
        chats = [self._chat(request) for request in unit if not isinstance(request, Embedding)]
        return list(await asyncio.gather(*chats))

    async def _chat(self, request: Completion | Scoring) -> Answer:
        """One completion or scoring, asked again where the reply holds no usable answer."""
        tokens_in = tokens_out = 0
        sent: dict[str, Any] = {}
        for again in range(ANSWER_RETRIES + 1):
            reply: dict[str, Any] = {}
            try:
                reply = await self._reply(request, again, sent)
                texts = [message["content"] for message in sent["messages"]]
                tokens_in += usage(reply, "prompt_tokens", estimate_tokens(texts))
                value = chat_value(reply, request, self.dialect)
            except Unusable as error:
                fault, lasting = self.endpoint.shown(error), error.lasting
                tokens_out += usage(reply, "completion_tokens", 0)
                if not error.again:
                    break
            else:
                said = value if isinstance(value, str) else " ".join(map(str, value))
                tokens_out += usage(reply, "completion_tokens", estimate_tokens([said]))
                if self.key and isinstance(value, str):  # the key does not get into the store
                    value = value.replace(self.key, HIDDEN)
                return Answer(value, tokens_in, tokens_out)
        return Answer(None, tokens_in, tokens_out, fault, lasting)

    async def _reply(
        self, request: Completion | Scoring, again: int, sent: dict[str, Any]
    ) -> dict[str, Any]:
        """The reply to a request in a form that the server takes, which becomes `sent`."""
        create = self.client.chat.completions.with_raw_response.create

        def send() -> Awaitable[Any]:
            """As the server is known to take it by now."""
            sampling = {name: n for name, n in self.backend._sampling.items() if n is not None}
            if "seed" in sampling:  # the same once more would be of no use
                sampling["seed"] += again
            sent.clear()
            sent.update(chat_body(request, self.dialect, self.backend._room, sampling))
            # As `extra_body` the client sends it as it stands: walking through the messages, to put
            # them into a form that they have already, would take a third of the time of a call.
            return create(model=self.backend.model, messages=[], extra_body=sent)

        while True:
            try:
                return await self.endpoint.ask(send)
            except Unusable as error:
                if not self.dialect.adapt(error, sent):
                    self.endpoint.count(error)
                    raise

    async def _embed(self, texts: list[str]) -> list[Answer]:
        """Vectors of one call; where that is refused or wrong, of one call for each text."""
        create = self.client.embeddings.with_raw_response.create
        model = self.backend.embedding_model
        for _ in range(ANSWER_RETRIES + 1):
            try:
                reply = await self.endpoint.ask(
                    lambda: create(model=model, input=texts, encoding_format="float")
                )
                found = vectors(reply, len(texts))
                widths = {len(vector) for vector in found if not isinstance(vector, Unusable)}
                self.width = self.width or next(iter(widths), 0)
                if widths - {self.width}:
                    width = widths.pop()
                    raise Unusable(f"embeddings of width {width}, those before had {self.width}")
            except Unusable as error:
                fault, lasting = self.endpoint.shown(error), error.lasting
                if not error.again and len(texts) == 1:  # of many, one may be at fault
                    self.endpoint.count(error)
                if not error.again:
                    break
            else:
                total = usage(reply, "prompt_tokens", estimate_tokens(texts))
                return [
                    Answer(None, tokens, fault=str(vector), lasting=vector.lasting)
                    if isinstance(vector, Unusable)
                    else Answer(vector, tokens)
                    for vector, tokens in zip(found, _shares(total, texts), strict=True)
                ]
        if len(texts) == 1:
            return [Answer(None, fault=fault, lasting=lasting)]
        alone = await asyncio.gather(*(self._embed([text]) for text in texts))
        return [answer for answers in alone for answer in answers]


def _shares(total: int, texts: list[str]) -> list[int]:
    """`total` tokens over texts by their lengths: whole numbers that add up to it."""
    lengths = [len(text) + 1 for text in texts]
    ends = [total * reached // sum(lengths) for reached in accumulate(lengths, initial=0)]
    return [end - start for start, end in pairwise(ends)]
