"""One OpenAI-compatible server: a request is sent until it is answered, refused or given up.

The openai client's own retries are switched off: each request would wait by itself, where all have
to when the server says "too many requests"; and an answer that trickles in would never time out.
"""

import asyncio
import json
import logging
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import TYPE_CHECKING, Any, cast

from dataset_tools.llm.redact import redacted
from recbole_tema.errors import BackendError

if TYPE_CHECKING:
    from openai import APIStatusError

log = logging.getLogger(__name__)

# Requests given up one after the other, with no answer between them, before the endpoint is.
GIVE_UP_AFTER = 5
# Retries of what seldom passes: a stalled answer, a broken one, no connection at the beginning.
FEW_RETRIES = 2
# Refusals in the same words, with no answer before them, before it is the model's name or another
# option that is wrong, and not the request.
SAME_REFUSALS = 5
LASTING = {400, 413, 422}  # the same request would be refused another time
# The key or the account is at fault: no other request can fare better.
ACCOUNT_CODES = {"insufficient_quota", "billing_not_active", "account_deactivated"}
RETRIED = {408, 409, 423, 425, 429}
FORMAT = re.compile(r"response_format|json_schema|json_object|grammar|guided")
_FILTERED = re.compile(r"content.?(?:filter|policy|management)|moderation|safety", re.IGNORECASE)


@dataclass(eq=False)
class Unusable(Exception):
    """No answer to this request; others can have theirs.

    Attributes:
        reason: In words.
        again: Whether asking again may help: the reply held no answer. Else it was refused.
        lasting: Whether another run would fare the same with this request, and with no other.
        parameter: The parameter at fault, if the server named one.
        status: Of HTTP, if this was said by it.
    """

    reason: str
    again: bool = True
    lasting: bool = False
    parameter: str = ""
    status: int | None = None

    def __str__(self) -> str:
        return self.reason


@dataclass(eq=False)
class _Trouble(Exception):
    """A try that failed in a way that may pass.

    Attributes:
        reason: In words.
        kind: What it is counted under.
        retries: How often to try again, at most.
        wait_s: How long the server asked to wait, 0 if it did not.
        everyone: Whether all requests should wait.
        slow: Whether fewer requests at a time may help.
        settled: Whether trying again is pointless now that nothing has ever been answered.
    """

    reason: str
    kind: str
    retries: int
    wait_s: float = 0.0
    everyone: bool = False
    slow: bool = False
    settled: bool = False

    def __str__(self) -> str:
        return self.reason


class Endpoint:
    """Sends requests to one address, at most `concurrency` at a time, in one event loop.

    When the server says "too many requests", all wait as long as it asks, and half as many are
    sent at a time; so they are when answers do not come in time. Each round of answers admits one
    more.

    Args:
        backend: An OpenAIBackend, for the address, times and numbers; its `troubles` are counted.
        secrets: Texts that no message may show.
    """

    def __init__(self, backend: Any, secrets: Sequence[str]) -> None:
        self.backend, self.address, self.secrets = backend, backend.address, secrets
        self._answered = 0  # refusals too
        self._replied = False  # with what was asked for
        self._refused: tuple[str, int] = ("", 0)  # the latest words, and how often in a row
        self._given_up = 0
        self._admitted = float(backend.concurrency)
        self._on_their_way = 0
        self._paused_until = self._halved_until = 0.0
        self._freed = asyncio.Condition()
        self._stopped = False
        self._idle: set[asyncio.Task] = set()

    async def ask(self, send: Callable[[], Awaitable[Any]]) -> dict:
        """The reply to `send()` (a raw response of the openai client) as a JSON object.

        Raises:
            Unusable: this request cannot be answered; others can.
            BackendError: the endpoint cannot go on.
        """
        tries, answered = 0, self._answered
        while True:
            try:
                reply = self._json(await self._sent(send))
            except _Trouble as trouble:
                if trouble.everyone and self._answered > answered:
                    tries = 0  # others get through: waiting is all that it takes
                tries, answered = tries + 1, self._answered
                self._note(trouble)
                hopeless = trouble.settled and not self._answered
                most = min(self.backend.retries, FEW_RETRIES if hopeless else trouble.retries)
                if tries > most:
                    raise self._give_up(trouble, hopeless) from None
                await self._back_off(tries, trouble)
            except Unusable:
                self._alive()
                raise
            except BackendError:
                self.stop()
                raise
            else:
                self._alive()
                self._replied = True
                return reply

    def count(self, refusal: Unusable) -> None:
        """A request was refused for good, in whatever form it was sent.

        Raises:
            BackendError: so were others before it in the same words, and none was answered.
        """
        if self._replied or refusal.status not in LASTING or _FILTERED.search(str(refusal)):
            return
        words = re.sub(r"\d+", "#", str(refusal))  # lengths of prompts differ
        self._refused = (words, self._refused[1] + 1 if words == self._refused[0] else 1)
        if self._refused[1] >= SAME_REFUSALS:
            self.stop()
            raise BackendError(
                f"{refusal}; the first {SAME_REFUSALS} requests were refused so: check --model, "
                "--embedding_model and --max_tokens"
            )

    def stop(self) -> None:
        """Cancel all requests that are not on their way; no further one is sent."""
        self._stopped = True
        for task in self._idle:
            task.cancel()

    def shown(self, text: object) -> str:
        """`text` without secrets, short and on one line."""
        return redacted(text, self.secrets)

    async def _sent(self, send: Callable[[], Awaitable[Any]]) -> bytes:
        """The body of the reply, in a turn of its own among the admitted requests."""
        import openai

        with self._waiting():
            async with self._freed:
                await self._freed.wait_for(lambda: self._on_their_way < max(1, int(self._admitted)))
                self._on_their_way += 1
        try:
            while (pause := self._paused_until - monotonic()) > 0:
                await self._sleep(pause)
            response = await asyncio.wait_for(send(), self.backend.timeout_s)
            return response.http_response.content
        except (TimeoutError, openai.APITimeoutError) as error:
            raise self._timeout(error) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            reason = f"{self.address} cannot be reached: "
            reason += self.shown(str(cause) or type(cause).__name__)
            raise _Trouble(reason, "no connection", self.backend.retries, settled=True) from None
        except openai.APIStatusError as error:
            raise self._status(error) from None
        finally:
            self._on_their_way -= 1
            async with self._freed:
                self._freed.notify(2)  # its own place, and one more where more are admitted by now

    def _alive(self) -> None:
        self._answered += 1
        self._given_up = 0
        self._admitted = min(self.backend.concurrency, self._admitted + 1 / self._admitted)

    async def _back_off(self, tries: int, trouble: _Trouble) -> None:
        wait_s = self.backend.backoff_s * 2 ** (tries - 1) * random.uniform(0.5, 1)
        wait_s = min(self.backend.longest_pause_s, max(wait_s, trouble.wait_s))
        now = monotonic()
        # Half as many once in so long: those who were sent before have the same to tell.
        if (trouble.slow or trouble.everyone) and now >= self._halved_until:
            self._admitted = max(1.0, self._admitted / 2)
            self._halved_until = now + (self.backend.timeout_s if trouble.slow else wait_s)
        if trouble.everyone:
            self._paused_until = max(self._paused_until, now + wait_s)
            # Apart from each other, so that the end of the pause is no new storm.
            wait_s += random.uniform(0, min(wait_s, 1.0)) / 4
        await self._sleep(wait_s)

    async def _sleep(self, seconds: float) -> None:
        with self._waiting():
            await asyncio.sleep(seconds)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Mark the running task as one that may be cancelled without the loss of an answer."""
        if self._stopped:
            raise asyncio.CancelledError
        task = cast(asyncio.Task, asyncio.current_task())  # a coroutine runs in one
        self._idle.add(task)
        try:
            yield
        finally:
            self._idle.discard(task)

    def _give_up(self, trouble: _Trouble, hopeless: bool) -> Exception:
        self._given_up += 1
        if hopeless or self._given_up >= GIVE_UP_AFTER:
            self.stop()
            return BackendError(f"{trouble}; is the server up, and is the address right?")
        return Unusable(str(trouble), again=False)

    def _note(self, trouble: _Trouble) -> None:
        self.backend.troubles[trouble.kind] += 1
        if self.backend.troubles[trouble.kind] == 1:
            what = "all requests wait and fewer are sent" if trouble.everyone else "trying again"
            log.warning("%s; %s (said once, counted from here on)", trouble, what)

    def _timeout(self, error: Exception) -> _Trouble:
        if type(error.__cause__).__name__.startswith("ConnectTimeout"):
            reason = f"{self.address} cannot be reached: no connection in time"
            return _Trouble(reason, "no connection", self.backend.retries, settled=True)
        reason = f"{self.address} gave no answer within {self.backend.timeout_s:g} s (--timeout)"
        return _Trouble(reason, "no answer in time", FEW_RETRIES, slow=True)

    def _json(self, body: bytes) -> dict:
        """The JSON object of a reply; a web page or half an object may come right next time."""
        try:
            reply = json.loads(body)
            if isinstance(reply, dict):
                return reply
            found = f"a JSON {type(reply).__name__}, not an object"
        except (ValueError, RecursionError):
            start = body[:200].lstrip()
            found = "a web page, not with JSON" if start.startswith(b"<") else "nothing"
            if start and not start.startswith(b"<"):
                found = f"broken JSON: {self.shown(body[-40:].decode('utf-8', 'replace'))}"
        raise _Trouble(f"{self.address} answers with {found}", "not JSON", FEW_RETRIES)

    def _status(self, error: "APIStatusError") -> Exception:
        """What an HTTP error means: BackendError, Unusable or a _Trouble."""
        status, message = error.status_code, _message(error.body)
        said = f"{self.address} answers HTTP {status}: {self.shown(message)}"
        if status in (401, 402) or str(error.code or "") in ACCOUNT_CODES:
            return BackendError(
                f"{said}; check the key in {self.backend.key_variable} and the account"
            )
        if status in (403, 404, 405):
            # In the midst of answers it is this request alone, such as a filter that a title set
            # off, unless it goes on.
            if self._answered:
                return _Trouble(said, f"HTTP {status}", 0)
            hint = f"check the model, the address and the key in {self.backend.key_variable}"
            return BackendError(f"{said}; {hint}")
        if status >= 500 and FORMAT.search(message):
            return Unusable(said, False, parameter="response_format")  # Ollama, llama.cpp
        if status in RETRIED or status >= 500:
            wait_s = retry_after_s(error.response.headers)
            everyone = status == 429 or (status == 503 and wait_s is not None)
            return _Trouble(said, f"HTTP {status}", self.backend.retries, wait_s or 0, everyone)
        # Before the first answer it may be the server's settings, and not this request.
        lasting = status in LASTING and self._replied
        return Unusable(said, False, lasting, str(error.param or ""), status)


def _message(body: object) -> str:
    """What the server said about an error; the client takes `error` out of the body."""
    if isinstance(body, dict):
        for name in ("message", "detail", "error"):
            if body.get(name):
                return str(body[name])
    if isinstance(body, str) and body.lstrip().startswith("<"):
        return "a web page"
    return str(body or "no reason given")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After` (seconds or an HTTP date), or None."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        text = headers.get(name) or ""
        if re.fullmatch(r"\s*\d{1,9}(\.\d{0,9})?\s*", text):
            return float(text) / unit
    try:
        until = parsedate_to_datetime(headers.get("retry-after") or "")
        return max(0.0, until.timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return None
