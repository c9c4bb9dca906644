"""One GET of an image over HTTP(S): bounded in bytes, time and redirects, public addresses only.

The standard library's client, over a socket that was connected to a checked address; TLS verifies
the host's name, not the address. Proxies of the environment are not used: they would resolve the
name again.
"""

import http.client
import random
import socket
import ssl
import threading
import time
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from dataset_tools.images.addresses import RefusedAddressError, connect

MAX_REDIRECTS = 5
REDIRECTS = frozenset([301, 302, 303, 307, 308])
TEMPORARY = frozenset([408, 425, 429, 500, 502, 503, 504])
BLOCK = 1 << 16
MAX_URL = 8192
LONGEST_PAUSE = 30.0  # seconds before a retry, also where the server asks for more
HEADERS = {
    "User-Agent": "recbole-tema (images of a dataset)",
    "Accept": "image/jpeg, image/png, image/webp, image/gif, image/bmp;q=0.8, */*;q=0.1",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


class Fault(NamedTuple):
    """Why there are no bytes.

    Attributes:
        reason: For the user.
        lasting: Whether asking again gives the same.
        depends: Whether the answer depends on the limits and flags of this run.
        wait_s: Seconds that the server asks to wait.
    """

    reason: str
    lasting: bool
    depends: bool = False
    wait_s: float | None = None


class Rules(NamedTuple):
    """What a download may do.

    Attributes:
        timeout_s: Seconds for one image, redirects and all, without retries.
        max_bytes: Longest body.
        allow_private: Reach any address, loopback too.
    """

    timeout_s: float = 20.0
    max_bytes: int = 20 << 20
    allow_private: bool = False


def get(url: str, rules: Rules) -> bytes | Fault:
    """The body at `url`, or why there is none. What the server says of its type is not read."""
    deadline = time.monotonic() + rules.timeout_s
    seen = [url]
    try:
        while True:
            answer = _one_hop(url, deadline, rules)
            if not isinstance(answer, str):
                return answer
            url = answer
            if url in seen:
                return Fault("redirects in a circle", lasting=True)
            if len(seen) > MAX_REDIRECTS:
                return Fault(f"more than {MAX_REDIRECTS} redirects", lasting=True)
            seen.append(url)
    except RefusedAddressError as error:
        hop = f", by a redirect to {url}" if len(seen) > 1 else ""
        return Fault(f"refused: {error}{hop}", lasting=True, depends=True)
    except ssl.SSLCertVerificationError as error:
        return Fault(f"the certificate is not valid ({error.verify_message})", lasting=True)
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() >= deadline or isinstance(error, TimeoutError):
            return Fault(f"took longer than {rules.timeout_s:g} s", lasting=False)
        return Fault(_connection_reason(error), lasting=False)
    except ValueError as error:  # a host's name that cannot be one; UnicodeError is a ValueError
        return Fault(f"a malformed address ({' '.join(str(error).split())[:200]})", lasting=True)


def pause(attempt: int, fault: Fault, rng: random.Random) -> float:
    """Seconds before attempt number `attempt` (from 1): doubling, with jitter, or as asked."""
    backoff = 0.5 * 2 ** (attempt - 1) * (0.5 + rng.random())
    return min(max(backoff, fault.wait_s or 0.0), LONGEST_PAUSE)


def url_fault(url: object) -> str | None:
    """What is wrong with an address before anything is asked; None for a sound one."""
    if not isinstance(url, str) or not url.strip():
        return "no address"
    if len(url) > MAX_URL:
        return f"an address of {len(url)} characters"
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        return f"a malformed address ({error})"
    if parts.scheme not in ("http", "https"):
        return f"an address of the kind {parts.scheme or 'without a scheme'!r}, not http(s)"
    if not parts.hostname or port == 0:
        return "an address without a host"
    if parts.username is not None:
        return "an address with a user's name in it"
    return None


def _one_hop(url: str, deadline: float, rules: Rules) -> bytes | str | Fault:
    """The body, or the address that a redirect leads to, or a fault."""
    fault = url_fault(url)
    if fault:
        return Fault(fault, lasting=True)
    parts = urlsplit(url.strip())
    host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode()
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    live = [connect(host, port, deadline, rules.allow_private)]
    # Every read has a time limit, but a server that sends a byte a second meets each of them.
    watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, [live])
    watchdog.daemon = True
    watchdog.start()
    try:
        if secure:
            context = _tls()
            live[0] = context.wrap_socket(
                live[0], server_hostname=host, do_handshake_on_connect=False
            )
            live[0].do_handshake()
        connection = http.client.HTTPConnection(host, port)
        connection.sock = live[0]
        headers = {"Host": _host_header(host, parts.port), **HEADERS}
        connection.request("GET", _target(parts), headers=headers)
        return _answer(connection.getresponse(), url, deadline, rules)
    finally:
        watchdog.cancel()
        live[0].close()


def _answer(
    response: http.client.HTTPResponse, url: str, deadline: float, rules: Rules
) -> bytes | str | Fault:
    if response.status in REDIRECTS and response.headers.get("Location"):
        # Header bytes are read as Latin-1; most that are not ASCII are UTF-8.
        location = (
            response.headers["Location"].encode("latin-1", "replace").decode("utf-8", "replace")
        )
        return urljoin(url, location)
    if response.status != 200:
        temporary = response.status in TEMPORARY
        wait = _retry_after(response.headers.get("Retry-After")) if temporary else None
        reason = f"HTTP {response.status} {response.reason}".strip()[:100]
        return Fault(reason, lasting=not temporary, wait_s=wait)
    expected = response.length  # None: chunked, or up to the end of the connection
    if expected is not None and expected > rules.max_bytes:
        return Fault(f"more than {rules.max_bytes} bytes", lasting=True, depends=True)
    blocks, size = [], 0
    while expected is None or size < expected:
        block = response.read1(BLOCK)
        if not block:
            break
        size += len(block)
        if size > rules.max_bytes:
            return Fault(f"more than {rules.max_bytes} bytes", lasting=True, depends=True)
        blocks.append(block)
    if time.monotonic() >= deadline:
        return Fault(f"took longer than {rules.timeout_s:g} s", lasting=False)
    if expected is not None and size < expected:  # `read1` ends in silence
        return Fault(f"cut off, {expected - size} bytes are missing", lasting=False)
    return b"".join(blocks)


def _shut(live: list[socket.socket]) -> None:
    """End whatever waits on the socket in `live`, from another thread and under TLS too."""
    try:
        socket.socket.shutdown(live[0], socket.SHUT_RDWR)
    except OSError:  # it is closed: nobody waits
        return


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """The system's authorities, and certifi's where the system may have none."""
    context = ssl.create_default_context()
    if find_spec("certifi") is not None:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _host_header(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{port}" if port else name


def _target(parts) -> str:
    """Path and query as ASCII; what is percent-encoded stays as it is."""
    text = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return quote(text, safe="/%:=&?~#+!$,;'@()*[]", errors="replace")


def _retry_after(value: str | None) -> float | None:
    """Seconds; a date is as good as none: the backoff stands."""
    return float(value) if value and value.isascii() and value.isdigit() else None


def _connection_reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return f"the host's name does not resolve ({error.strerror})"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"the connection failed ({' '.join(str(text).split())[:200]})"
