"""One OpenAI-compatible server: a request is sent until it is answered, refused or given up."""

import asyncio
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import Any

from dataset_tools.llm.redact import redacted
from recbole_tema.errors import BackendError

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
_FILTERED = re.compile(r"content.?(?:filter|policy|management)|moderation|safety", re.IGNORECASE)
_OUTPUT_FORMAT = re.compile(r"response_format|json_schema|json_object|grammar|guided")


@dataclass(frozen=True)
class Limits:
    """How long to wait and how often to try.

    Attributes:
        concurrency: Most requests on their way at a time.
        timeout_s: Longest time for one answer, from sending to its last byte.
        retries: Tries after the first.
        backoff_s: First wait between tries; doubled each time, with jitter.
        longest_pause_s: Longest wait, whatever the server's Retry-After asks for.
    """

    concurrency: int = 16
    timeout_s: float = 60.0
    retries: int = 6
    backoff_s: float = 0.5
    longest_pause_s: float = 60.0


class Rejected(Exception):
    """The endpoint works but will not answer this request.

    Attributes:
        parameter: The parameter at fault, if the server named one.
        status: Of HTTP, if this was said by it.
        lasting: Whether the server would refuse this request, and no other, another time.
    """

    def __init__(
        self, reason: str, parameter: str = "", status: int | None = None, lasting: bool = False
    ) -> None:
        super().__init__(reason)
        self.parameter, self.status, self.lasting = parameter, status, lasting


class _Trouble(Exception):
    """A try that failed in a way that may pass.

    Attributes:
        kind: What it is counted under.
        retries: How often to try again.
        wait_s: How long the server asked to wait, None if it did not.
        everyone: Whether all requests should wait.
        slow: Whether fewer requests at a time may help.
        settled: Whether trying again is pointless now that nothing has ever been answered.
    """

    def __init__(
        self, reason, kind, retries, wait_s=None, everyone=False, slow=False, settled=False
    ):
        super().__init__(reason)
        self.kind, self.retries, self.wait_s = kind, retries, wait_s
        self.everyone, self.slow, self.settled = everyone, slow, settled


class Endpoint:
    """Sends requests to one address, at most `limits.concurrency` at a time, in one event loop.

    When the server says "too many requests", all wait as long as it asks, and half as many are
    sent at a time; so they are when answers do not come in time. Each round of answers admits one
    more.

    Args:
        address: For messages: without credentials and query.
        limits: Times and numbers.
        key_variable: The environment variable that holds the key, for messages.
        secrets: Texts that no message may show.
        troubles: Counts failed tries by kind, across endpoints.
    """

    def __init__(
        self,
        address: str,
        limits: Limits,
        key_variable: str,
        secrets: Sequence[str],
        troubles: Counter,
    ) -> None:
        self.address, self.limits, self.key_variable = address, limits, key_variable
        self.secrets, self.troubles = secrets, troubles
        self.answered = 0  # refusals too
        self.replied = False  # with what was asked for
        self.refused: tuple[str, int] = ("", 0)  # the latest words, and how often in a row
        self.given_up = 0
        self.admitted = float(limits.concurrency)
        self.on_their_way = 0
        self.paused_until = self.halved_until = 0.0
        self.freed = asyncio.Condition()
        self.stopped = False
        self.idle: set[asyncio.Task] = set()

    async def ask(self, send: Callable[[], Awaitable[Any]]) -> dict:
        """The reply to `send()` (a raw response of the openai client) as a JSON object.

        Raises:
            Rejected: this request cannot be answered; others can.
            BackendError: the endpoint cannot go on.
        """
        tries, answered = 0, self.answered
        while True:
            try:
                reply = await self._try(send)
            except _Trouble as trouble:
                if trouble.everyone and self.answered > answered:
                    tries = 0  # others get through: waiting is all that it takes
                tries, answered = tries + 1, self.answered
                self._count(trouble)
                retries = min(self.limits.retries, trouble.retries)
                if tries > (min(retries, FEW_RETRIES) if self._never(trouble) else retries):
                    raise self._give_up(trouble) from None
                await self._back_off(tries, trouble)
            except Rejected:
                self._alive()
                raise
            except BackendError:
                self.stop()
                raise
            else:
                self._alive()
                self.replied = True
                return reply

    def count(self, refusal: Rejected) -> None:
        """A request was refused for good, in whatever form it was sent.

        Raises:
            BackendError: so were others before it in the same words, and none was answered.
        """
        if self.replied or refusal.status not in LASTING or _FILTERED.search(str(refusal)):
            return
        words = re.sub(r"\d+", "#", str(refusal))  # lengths of prompts differ
        self.refused = (words, self.refused[1] + 1 if words == self.refused[0] else 1)
        if self.refused[1] >= SAME_REFUSALS:
            self.stop()
            raise BackendError(
                f"{refusal}; the first {SAME_REFUSALS} requests were refused so: check --model, "
                "--embedding_model and --max_tokens"
            )

    def stop(self) -> None:
        """Cancel all requests that are not on their way; no further one is sent."""
        self.stopped = True
        for task in self.idle:
            task.cancel()

    async def _try(self, send: Callable[[], Awaitable[Any]]) -> dict:
        import openai

        await self._enter()
        try:
            response = await asyncio.wait_for(send(), self.limits.timeout_s)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise self._timeout(error) from None
        except openai.APIConnectionError as error:
            reason = f"{self.address} cannot be reached: {self._cause(error)}"
            raise _Trouble(reason, "no connection", self.limits.retries, settled=True) from None
        except openai.APIStatusError as error:
            raise self._status(error) from None
        finally:
            await self._leave()
        return self._json(response.http_response.content)

    async def _enter(self) -> None:
        """Wait for a place among the admitted requests, and for the end of a pause."""
        with self._waiting():
            async with self.freed:
                await self.freed.wait_for(lambda: self.on_their_way < max(1, int(self.admitted)))
                self.on_their_way += 1
        try:
            while (pause := self.paused_until - monotonic()) > 0:
                await self._sleep(pause)
        except asyncio.CancelledError:
            self.on_their_way -= 1
            raise

    async def _leave(self) -> None:
        async with self.freed:
            self.on_their_way -= 1
            self.freed.notify(2)  # its own place, and one more where more are admitted by now

    def _alive(self) -> None:
        self.answered += 1
        self.given_up = 0
        self.admitted = min(self.limits.concurrency, self.admitted + 1 / self.admitted)

    async def _back_off(self, tries: int, trouble: _Trouble) -> None:
        longest = self.limits.longest_pause_s
        wait_s = self.limits.backoff_s * 2 ** (tries - 1) * random.uniform(0.5, 1)
        wait_s = min(longest, max(wait_s, trouble.wait_s or 0))
        if trouble.slow:
            self._admit_half(self.limits.timeout_s)
        if not trouble.everyone:
            return await self._sleep(wait_s)
        self._admit_half(wait_s)
        self.paused_until = max(self.paused_until, monotonic() + wait_s)
        # Apart from each other, so that the end of the pause is no new storm.
        return await self._sleep(wait_s + random.uniform(0, min(wait_s, 1.0)) / 4)

    def _admit_half(self, seconds: float) -> None:
        """Once in so long: those who were sent before have the same to tell."""
        now = monotonic()
        if now >= self.halved_until:
            self.admitted = max(1.0, self.admitted / 2)
            self.halved_until = now + seconds

    async def _sleep(self, seconds: float) -> None:
        with self._waiting():
            await asyncio.sleep(seconds)

    @contextmanager
    def _waiting(self):
        """Mark the running task as one that may be cancelled without the loss of an answer."""
        if self.stopped:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        self.idle.add(task)
        try:
            yield
        finally:
            self.idle.discard(task)

    def _never(self, trouble: _Trouble) -> bool:
        return trouble.settled and not self.answered

    def _give_up(self, trouble: _Trouble) -> Exception:
        self.given_up += 1
        if self._never(trouble) or self.given_up >= GIVE_UP_AFTER:
            self.stop()
            return BackendError(f"{trouble}; is the server up, and is the address right?")
        return Rejected(str(trouble))

    def _count(self, trouble: _Trouble) -> None:
        self.troubles[trouble.kind] += 1
        if self.troubles[trouble.kind] == 1:
            what = "all requests wait and fewer are sent" if trouble.everyone else "trying again"
            log.warning("%s; %s (said once, counted from here on)", trouble, what)

    def _timeout(self, error: Exception) -> _Trouble:
        import openai

        cause = type(error.__cause__).__name__
        if isinstance(error, openai.APITimeoutError) and cause.startswith("Connect"):
            reason = f"{self.address} cannot be reached: no connection in time"
            return _Trouble(reason, "no connection", self.limits.retries, settled=True)
        reason = f"{self.address} gave no answer within {self.limits.timeout_s:g} s (--timeout)"
        return _Trouble(reason, "no answer in time", FEW_RETRIES, slow=True)

    def _json(self, body: bytes) -> dict:
        """The JSON object of a reply; a web page or half an object may come right next time."""
        try:
            reply = json.loads(body)
        except (ValueError, RecursionError):
            start = body[:200].lstrip().lower()
            if start.startswith(b"<"):
                reason = f"{self.address} answers with a web page, not with JSON"
            elif not start:
                reason = f"{self.address} answers with nothing"
            else:
                reason = f"{self.address} answers with broken JSON: {self._shown(body[-40:])}"
            raise _Trouble(reason, "not JSON", FEW_RETRIES) from None
        if not isinstance(reply, dict):
            reason = f"{self.address} answers with a JSON {type(reply).__name__}, not an object"
            raise _Trouble(reason, "not JSON", FEW_RETRIES)
        return reply

    def _status(self, error) -> Exception:
        """What an HTTP error means: BackendError, Rejected or a _Trouble."""
        status, code = error.status_code, str(error.code or "")
        said = f"{self.address} answers HTTP {status}: {self._shown(_message(error))}"
        if status in (401, 402) or code in ACCOUNT_CODES:
            hint = f"check the key in {self.key_variable} and the account"
            return BackendError(f"{said}; {hint}")
        if status in (403, 404, 405):
            # In the midst of answers it is this request alone, such as a filter that a title set
            # off, unless it goes on.
            hint = f"check the model, the address and the key in {self.key_variable}"
            if not self.answered:
                return BackendError(f"{said}; {hint}")
            return _Trouble(said, f"HTTP {status}", 0)
        if status >= 500 and _OUTPUT_FORMAT.search(_message(error)):
            return Rejected(said, "response_format")  # Ollama, llama.cpp
        if status in RETRIED or status >= 500:
            wait_s = retry_after_s(error.response.headers)
            everyone = status == 429 or (status == 503 and wait_s is not None)
            return _Trouble(said, f"HTTP {status}", self.limits.retries, wait_s, everyone)
        # Before the first answer it may be the server's settings, and not this request.
        lasting = status in LASTING and self.replied
        return Rejected(said, str(error.param or ""), status, lasting)

    def _shown(self, text: object) -> str:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return redacted(text, self.secrets)

    def _cause(self, error: Exception) -> str:
        cause = error.__cause__ or error
        return self._shown(str(cause) or type(cause).__name__)


def _message(error) -> str:
    """What the server said about an error; the client takes `error` out of the body."""
    body = error.body
    if isinstance(body, dict):
        for name in ("message", "detail", "error"):
            if body.get(name):
                return str(body[name])
    if isinstance(body, str) and body.lstrip().startswith("<"):
        return "a web page"
    return str(body or "no reason given")


def retry_after_s(headers) -> float | None:
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
