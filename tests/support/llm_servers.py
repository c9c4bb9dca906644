"""OpenAI-compatible servers on loopback: real HTTP, with every fault on demand, or a real model."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic

from dataset_tools.llm.requests import Completion, Embedding, Prompt

KEY = "k3y-NotForYourEyes-0123456789"


@dataclass(frozen=True)
class Reply:
    """One HTTP response.

    Attributes:
        body: All of it; `json` of a value by custom.
        sent: How many of its bytes are sent; None: all. The length in the header is the whole.
        then: After that: go on, "close" the connection, "stall" until the server ends, or
            "trickle": a byte now and then, without end.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    then: str = ""


@dataclass
class Seen:
    """One request that came in: its place in their order, path, headers, JSON body and time."""

    place: int
    path: str
    headers: Message
    body: dict
    at: float

    @property
    def said(self) -> str:
        """The last user message, or the texts to embed."""
        return self.body["messages"][-1]["content"] if "messages" in self.body else ""


class Server(ThreadingHTTPServer):
    """Answers each POST with `reply(seen)`; keeps what it saw.

    Attributes:
        url: The address to give to a client, up to and with /v1.
        seen: All requests, in their order.
        at_once: How many requests wait for their reply now.
        most_at_once: The most that ever did.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, reply: Callable[[Seen], Reply], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.reply = reply
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.seen: list[Seen] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is part of the tests; any other error of a test's reply shows."""
        import sys

        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            seen = Seen(len(server.seen), self.path, self.headers, body, monotonic())
            server.seen.append(seen)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            reply = server.reply(seen)
        finally:  # before the reply is out, after which the client may send the next request
            with server.lock:
                server.at_once -= 1
        self.send(reply)

    def send(self, reply: Reply) -> None:
        if reply.then == "close" and reply.sent == 0:
            self.close_connection = True
            return
        self.send_response(reply.status)
        headers = {"Content-Type": "application/json", **reply.headers}
        for name, value in {**headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body[: reply.sent])
        self.wfile.flush()
        if reply.then == "stall":
            self.server.ended.wait()
        while reply.then == "trickle" and not self.server.ended.wait(0.05):
            self.wfile.write(b" ")
        self.close_connection = bool(reply.then)

    def log_message(self, *args) -> None:
        """The tests look at `seen`; standard error stays for what is wrong."""


@contextmanager
def serve(reply: Callable[[Seen], Reply], port: int = 0) -> Iterator[Server]:
    """A server on loopback that answers by `reply`."""
    server = Server(reply, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def chat(text: object, finish: str = "stop", **more) -> Reply:
    """A chat completion that says `text`; `more` replaces fields of the reply."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return as_json({"choices": [{**choice, "finish_reason": finish}], "usage": usage, **more})


def limited(text: str, body: dict) -> Reply:
    """A chat completion that says `text` as far as max_tokens reach, of 4 characters each.

    Like a server it ends before the first of the request's stops.
    """
    for stop in body.get("stop") or ():
        text = text.split(stop, 1)[0]
    most = 4 * body.get("max_tokens", body.get("max_completion_tokens"))
    counts = {"prompt_tokens": 50, "completion_tokens": -(-len(text[:most]) // 4)}
    return chat(text[:most], "length" if len(text) > most else "stop", usage=counts)


def as_json(value: object, status: int = 200, **headers: str) -> Reply:
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(json.dumps(value).encode(), status, headers)


def error(status: int, message: str, *, code=None, param=None, **headers: str) -> Reply:
    """An error in OpenAI's form."""
    about = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return as_json({"error": about}, status, **headers)


def embeddings(vectors: list, **more) -> Reply:
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    return as_json({"data": data, "usage": {"prompt_tokens": 6, "total_tokens": 6}, **more})


def serve_model(backend):
    """A server whose answers a Backend of this package gives: one at a time, greedy."""
    lock = threading.Lock()

    def ask(requests):
        with lock:
            units = [[requests[place] for place in unit] for unit in backend.units(requests)]
            answers = dict(backend.answer(units))
        places = [place for unit in backend.units(requests) for place in unit]
        found = [answer for unit in sorted(answers) for answer in answers[unit]]
        return [found[places.index(place)] for place in range(len(requests))]

    def reply(seen: Seen) -> Reply:
        if seen.path == "/v1/embeddings":
            answers = ask([Embedding(text) for text in seen.body["input"]])
            return embeddings([answer.value.tolist() for answer in answers])
        if seen.path != "/v1/chat/completions":
            return error(404, f"no such path: {seen.path}")
        form = seen.body.get("response_format")
        if form:
            return error(400, f"response_format {form['type']} is not supported")
        answer = ask([completion_of(seen.body)])[0]
        if answer.value is None:
            return error(500, answer.fault)
        counts = {"prompt_tokens": answer.tokens_in, "completion_tokens": answer.tokens_out}
        return chat(answer.value, usage=counts)

    return serve(reply)


def completion_of(body: dict) -> Completion:
    """The request that a body of /v1/chat/completions asks for."""
    texts = [(message["role"], message["content"]) for message in body["messages"]]
    system = texts.pop(0)[1] if texts[0][0] == "system" else ""
    user = texts.pop()[1]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    examples = tuple((said, answered) for (_, said), (_, answered) in pairs)
    stop = tuple(body.get("stop") or ())
    return Completion(Prompt(system, examples, user), body["max_tokens"], stop)
