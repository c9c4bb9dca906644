"""What is sent to an OpenAI-compatible endpoint for a request, and how its reply is read."""

import base64
import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dataset_tools.llm.endpoint import FORMAT, Unusable
from dataset_tools.llm.parsing import clean_text, finished_json, finished_text, json_value, scores
from dataset_tools.llm.requests import Completion, Prompt, Scoring
from dataset_tools.llm.thoughts import was_opened
from recbole_tema.errors import BackendError

log = logging.getLogger(__name__)

JSON_OUTPUT = ("schema", "object", "text")
MOST_STOPS = 4  # OpenAI's limit; the rest is cut off here
SCORE_TOKENS = 16  # of one number in a list, with its blanks
SPARE_TOKENS = 64
CUT_OFF = (
    "the answer was cut off before anything of it was complete: give it more --max_tokens, with "
    "--retry_failed"
)
OPTIONAL = ("max_tokens", "seed", "temperature", "stop")  # what a server may not know
TEXT_PARTS = (None, "text", "output_text")  # kinds of parts of a message that are no thoughts
CUT = ("length", "max_tokens", "model_length")  # what servers say of a cut-off answer
_REFUSES = re.compile(
    r"support|unrecogni|unknown|unexpected|permitted|allowed|extra|invalid|deprecated",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(r"context|too (?:long|large|many)|exceed", re.IGNORECASE)
# ASCII is about four characters a token; a Chinese, Japanese or Korean character is about one;
# other alphabets lie between.
_WIDE = re.compile(r"[\u1100-\u11ff\u2e80-\ud7af\uf900-\ufaff\uff00-\uffef\U0001f000-\U0003ffff]")


@dataclass
class Dialect:
    """What this server understands: learned from its refusals, for the whole run.

    Attributes:
        choice: "auto", or the only JSON output to use.
        output: How JSON is asked for: by schema, as any object, or by words alone.
        refused: Optional parameters that are left out.
        opens: The server's template begins the answer within thoughts, so that a text that was cut
            off before a closing mark holds none of the answer.
    """

    choice: str = "auto"
    output: str = field(init=False)
    refused: set[str] = field(default_factory=set)
    opens: bool = False

    def __post_init__(self) -> None:
        self.output = JSON_OUTPUT[0] if self.choice == "auto" else self.choice

    def adapt(self, refusal: Unusable, body: dict) -> bool:
        """Whether `body` can be sent in another form after this refusal, which is remembered.

        Raises:
            BackendError: the JSON output that was asked for by name is refused.
        """
        text = f"{refusal.parameter} {refusal}"
        sent = body.get("response_format", {}).get("type")
        if sent and FORMAT.search(text):
            if self.choice != "auto":
                raise BackendError(
                    f"{refusal}; --json_output {self.choice} is refused: choose auto"
                )
            form = sent.removeprefix("json_")
            if self.output == form:  # else another request has been here before
                self.output = JSON_OUTPUT[JSON_OUTPUT.index(form) + 1]
                log.warning("the server refuses JSON output by %s: %s instead", form, self.output)
            return True
        if not _REFUSES.search(text) or _TOO_LONG.search(text):
            return False
        named = {name for name in OPTIONAL if name in body and re.search(rf"\b{name}\b", text)}
        for name in named - self.refused:
            log.warning("the server refuses %s: left out or replaced from here on", name)
        self.refused |= named
        return bool(named)


def longest_answer(request: Completion | Scoring, room: int) -> int:
    """The `max_tokens` that is sent: what the request takes, but at least `room`.

    A request's own limit ends the comma list of a small local model before it gets worse. A
    server's model writes JSON around the list, may think before, and ends by itself: there the
    limit only bounds the cost.
    """
    if isinstance(request, Scoring):
        return max(room, SPARE_TOKENS + SCORE_TOKENS * len(request.options))
    return max(room, request.max_tokens)


def chat_body(
    request: Completion | Scoring, dialect: Dialect, room: int, sampling: dict[str, Any]
) -> dict[str, Any]:
    """What is sent for a request, as this server takes it.

    A line break is no stop for a server: many models begin with one, or think aloud in lines
    before they answer. The answer ends there all the same, see `chat_value`.
    """
    body = {**sampling, "max_tokens": longest_answer(request, room)}
    if isinstance(request, Scoring):
        prompt, schema = request.rating, _scores_schema(len(request.options))
    else:
        prompt, schema = request.prompt, _schema_of(request)
        if stops := [stop for stop in request.stop if stop.strip()]:
            body["stop"] = stops[:MOST_STOPS]
    if "max_tokens" in dialect.refused:
        body["max_completion_tokens"] = body["max_tokens"]
    for name in dialect.refused & set(body):
        del body[name]
    system = prompt.system
    if schema is not None:
        if dialect.output == "schema":
            form = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif isinstance(request, Completion):  # a rating prompt says so itself
            text = json.dumps(schema, ensure_ascii=False)
            system = f"{system}\nAnswer with nothing but JSON of this schema: {text}".strip()
        if dialect.output == "object" and schema.get("type") == "object":
            body["response_format"] = {"type": "json_object"}
    body["messages"] = _messages(prompt, system)
    return body


def _messages(prompt: Prompt, system: str) -> list[dict[str, str]]:
    pairs = [("system", system)] if system else []
    for said, answered in prompt.examples:
        pairs += [("user", said), ("assistant", answered)]
    pairs.append(("user", prompt.user))
    return [{"role": role, "content": sendable(text)} for role, text in pairs]


def sendable(text: str) -> str:
    """`text` with "?" for lone surrogates, which UTF-8 does not have."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _schema_of(request: Completion) -> dict | None:
    if request.schema is None:
        return None
    schema = json.loads(request.schema)
    if not isinstance(schema, dict | None):
        raise ValueError(f"a Completion's schema is {request.schema[:60]!r}, not a JSON object")
    return schema


def _scores_schema(n: int) -> dict:
    number = {"type": "number", "minimum": 0, "maximum": 1}
    return {
        "type": "object",
        "properties": {"scores": {"type": "array", "items": number, "minItems": n, "maxItems": n}},
        "required": ["scores"],
        "additionalProperties": False,
    }


def chat_value(reply: dict, request: Completion | Scoring, dialect: Dialect) -> str | list[float]:
    """The text, JSON text or scores in a reply: of the final answer, not of thoughts before it.

    Of an answer that was cut off at its longest, what is complete is taken: whole entries of JSON,
    whole sentences or at least words of a text.

    Raises:
        Unusable: there is none: empty, refused, filtered, or not of the form asked for.
    """
    text, cut = _content(reply, dialect)
    try:
        if isinstance(request, Scoring):
            text = json.dumps(finished_json(text)) if cut else text
            return scores(text, len(request.options))
        if request.schema is not None:
            value = finished_json(text) if cut else json_value(text)
            return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        whole = text
        for stop in filter(None, request.stop):
            text = text.split(stop, 1)[0].strip()
        # What ends at a stop is complete, whatever came after it.
        text = finished_text(text) if cut and text == whole else text
    except ValueError as error:
        if cut:
            raise Unusable(CUT_OFF, again=False, lasting=True) from None
        raise Unusable(str(error), lasting=True) from None
    if not text:
        raise Unusable("an empty answer")
    return text


def _content(reply: dict, dialect: Dialect) -> tuple[str, bool]:
    """The final answer of the first choice, and whether it was cut off.

    Fields of a message beside its `content` (`reasoning_content`, `reasoning`) are thoughts.
    """
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        error = reply.get("error")  # OpenRouter puts errors into a reply of status 200
        said = error.get("message") if isinstance(error, dict) else error
        raise Unusable(f"an error in place of the answer: {said}" if said else "no choices")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise Unusable("a choice without a message")
    ended, content = choice.get("finish_reason"), message.get("content")
    if ended == "content_filter":
        reason = "the server's content filter held the answer back"
        raise Unusable(reason, again=False, lasting=True)
    if message.get("refusal"):
        raise Unusable(f"the model refused: {message['refusal']}", again=False, lasting=True)
    if isinstance(content, list):  # parts, as Mistral's reasoning models write
        parts = [part for part in content if isinstance(part, dict)]
        texts = [part.get("text") for part in parts if part.get("type") in TEXT_PARTS]
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str | None):
        raise Unusable(f"a {type(content).__name__} in place of the answer's text")
    content, cut = content or "", ended in CUT
    dialect.opens = dialect.opens or was_opened(content)
    text = clean_text(content, opened=cut and dialect.opens)
    if cut and not text:  # all of it went into thinking
        raise Unusable(CUT_OFF, again=False, lasting=True)
    if not text:
        raise Unusable("thoughts without an answer" if content.strip() else "an empty answer")
    return text, cut


def vectors(reply: dict, n: int) -> list[np.ndarray | Unusable]:
    """The `n` float32 vectors of an embeddings reply, in the order of the texts.

    A vector with NaN or an infinity is an Unusable in its place.

    Raises:
        Unusable: their number, order, form or widths are wrong.
    """
    data = reply.get("data")
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise Unusable("no list of embeddings")
    if len(data) != n:
        raise Unusable(f"{len(data)} embeddings for {n} texts")
    places = [item.get("index", place) for place, item in enumerate(data)]
    if any(type(place) is not int for place in places) or sorted(places) != list(range(n)):
        raise Unusable("embeddings whose indices are not those of the texts")
    found = [_vector(item.get("embedding")) for item in data]
    widths = {len(vector) for vector in found}
    if len(widths) > 1:
        raise Unusable(f"embeddings of unlike widths: {sorted(widths)}")
    broken = Unusable("an embedding with NaN or infinity", lasting=True)
    in_order = (found[places.index(place)] for place in range(n))
    return [vector if np.isfinite(vector).all() else broken for vector in in_order]


def _vector(value: Any) -> np.ndarray:
    """A list of numbers, or base64 of little-endian float32."""
    try:
        if isinstance(value, str):
            vector = np.frombuffer(base64.b64decode(value, validate=True), "<f4")
        elif isinstance(value, list) and not any(isinstance(x, str | bool) for x in value):
            # JSON has no NaN: some servers write null.
            vector = np.array([math.nan if x is None else x for x in value], np.float64)
        else:
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise Unusable("an embedding that is not a list of numbers") from None
    if vector.ndim != 1 or not vector.size:
        raise Unusable("an empty embedding")
    with np.errstate(over="ignore"):
        return vector.astype(np.float32)


def usage(reply: dict, name: str, estimate: int) -> int:
    """`usage.<name>` of a reply, or the estimate where the server counts nothing."""
    counted = reply.get("usage")
    count = counted.get(name) if isinstance(counted, dict) else None
    return count if type(count) is int and count >= 0 else estimate


def estimate_tokens(texts: Sequence[str]) -> int:
    """About how many tokens texts are: a quarter of an ASCII character, 1 of a wide one, else 1/2.

    >>> estimate_tokens(["green tea", "緑茶"])
    5
    """
    text = "".join(texts)
    ascii_count, wide = len(text.encode("ascii", "ignore")), len(_WIDE.findall(text))
    return math.ceil(ascii_count / 4 + wide + (len(text) - ascii_count - wide) / 2)
