"""GET of images over HTTP(S): bounded in bytes, time and redirects, public addresses only.

urllib3's connection, over a socket that was connected to a checked address; TLS verifies the
host's name, not the address. Proxies of the environment are not used: they would resolve the name
again.
"""

import http.client
import logging
import socket
import threading
import time
from contextlib import suppress
from ssl import SSLCertVerificationError, SSLContext, create_default_context
from typing import NamedTuple
from urllib.parse import urljoin

import certifi
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.response import HTTPResponse
from urllib3.util import Retry, Url, parse_url

from dataset_tools.images import decoding
from dataset_tools.images.addresses import RefusedAddressError, resolve

MAX_REDIRECTS = 5
TEMPORARY = frozenset([408, 425, 429, 500, 502, 503, 504])
BLOCK = 1 << 16
MAX_URL = 8192
HEADERS = {
    "User-Agent": "recbole-tema (images of a dataset)",
    "Accept": "image/jpeg, image/png, image/webp, image/gif, image/bmp;q=0.8, */*;q=0.1",
    "Accept-Encoding": "identity",
    "Connection": "close",
}

# It warns of malformed headers, which images come with too, by a traceback.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


class Fault(NamedTuple):
    """Why there are no bytes.

    Attributes:
        reason: For the user.
        lasting: Whether asking again gives the same.
        wait_s: Seconds that the server asks to wait.
    """

    reason: str
    lasting: bool
    wait_s: float = 0.0


class Client:
    """What downloads may do; several threads may use it at once.

    Attributes:
        timeout_s: Seconds for one image, redirects and all, without retries.
        allow_private: Reach any address, loopback too.
    """

    def __init__(self, timeout_s: float, allow_private: bool = False) -> None:
        self.timeout_s, self.allow_private = timeout_s, allow_private
        self._tls = create_default_context()
        self._tls.load_verify_locations(certifi.where())  # where the system has no authorities

    def get(self, url: str) -> bytes | Fault:
        """The body at `url`, or why there is none. What the server says of its type is not read."""
        deadline = time.monotonic() + self.timeout_s
        seen: list[str] = []
        try:
            while len(seen) <= MAX_REDIRECTS:
                if url in seen:
                    return Fault("redirects in a circle", lasting=True)
                seen.append(url)
                answer = self._one_hop(url, deadline)
                if not isinstance(answer, str):
                    return answer
                url = answer
            return Fault(f"more than {MAX_REDIRECTS} redirects", lasting=True)
        except RefusedAddressError as error:
            hop = f", by a redirect to {url}" if len(seen) > 1 else ""
            return Fault(f"refused: {error}{hop}", lasting=True)
        except SSLCertVerificationError as error:
            return Fault(f"the certificate is not valid ({error.verify_message})", lasting=True)
        except ValueError as error:  # urllib3's LocationParseError, the resolver's UnicodeError
            words = " ".join(str(error).split())[:200]
            return Fault(f"a malformed address ({words})", lasting=True)
        except (OSError, http.client.HTTPException, HTTPError) as error:
            if time.monotonic() >= deadline or isinstance(error, TimeoutError):
                return Fault(f"took longer than {self.timeout_s:g} s", lasting=False)
            # urllib3's errors carry their cause beside the text.
            words = error.args[0] if isinstance(error, HTTPError) and error.args else error
            words = getattr(error, "strerror", None) or str(words) or type(error).__name__
            unknown = isinstance(error, socket.gaierror)
            what = "the host's name does not resolve" if unknown else "the connection failed"
            return Fault(f"{what} ({' '.join(words.split())[:200]})", lasting=False)

    def _one_hop(self, url: str, deadline: float) -> bytes | str | Fault:
        """The body, or the address that a redirect leads to, or a fault."""
        parts = parse_url(url)
        fault = _url_fault(url, parts)
        if fault:
            return Fault(fault, lasting=True)
        tls = self._tls if parts.scheme == "https" else None
        hop = _Hop(parts, deadline, tls, self.allow_private)
        # Every read has a time limit, but a server that sends a byte a second meets each of them.
        watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), hop.end)
        watchdog.daemon = True
        watchdog.start()
        try:
            headers = {"Host": parts.netloc or "", **HEADERS}
            hop.request("GET", parts.request_uri, headers=headers, preload_content=False)
            answer = _answer(hop.getresponse(), url)
        finally:
            watchdog.cancel()
            hop.end()
            hop.close()
        if time.monotonic() >= deadline:
            raise TimeoutError
        return answer


class _Hop(HTTPConnection):
    """A connection to an address that was checked, which ends at its deadline."""

    def __init__(
        self, url: Url, deadline: float, tls: SSLContext | None, allow_private: bool
    ) -> None:
        port = url.port or (443 if tls else 80)
        super().__init__((url.host or "").strip("[]"), port, timeout=deadline - time.monotonic())
        self.deadline, self.tls, self.allow_private = deadline, tls, allow_private
        self.live: socket.socket | None = None

    def connect(self) -> None:
        """The name is resolved once, and an address that was checked is connected to."""
        failure: OSError = TimeoutError("timed out")
        for address in resolve(self.host, self.port, self.allow_private):
            left = self.deadline - time.monotonic()
            if left <= 0:
                break
            try:
                self.sock = socket.create_connection((address, self.port), timeout=left)
            except OSError as error:
                failure = error
                continue
            if self.tls:
                self.sock.settimeout(max(self.deadline - time.monotonic(), 0.001))
                self.sock = self.tls.wrap_socket(self.sock, server_hostname=self.host)
            self.live = self.sock  # http.client lets go of its own before the body has come
            return
        raise failure

    def end(self) -> None:
        """End whatever waits on the socket, from another thread and under TLS too."""
        if self.live is not None:
            with suppress(OSError):  # it is closed: nobody waits
                socket.socket.shutdown(self.live, socket.SHUT_RDWR)


def _answer(response: HTTPResponse, url: str) -> bytes | str | Fault:
    location = response.get_redirect_location()
    if location:
        # Header bytes are read as Latin-1; most that are not ASCII are UTF-8.
        return urljoin(url, location.encode("latin-1", "replace").decode("utf-8", "replace"))
    if response.status != 200:
        wait_s = None
        with suppress(InvalidHeader, ValueError, OverflowError):  # a year or a number of no sense
            wait_s = Retry().get_retry_after(response)
        reason = f"HTTP {response.status} {response.reason}".strip()[:100]
        return Fault(reason, lasting=response.status not in TEMPORARY, wait_s=wait_s or 0.0)
    body = bytearray()
    if (response.length_remaining or 0) <= decoding.MAX_BYTES:
        for block in response.stream(BLOCK, decode_content=False):
            body += block
            if len(body) > decoding.MAX_BYTES:
                break
        else:
            return bytes(body)
    return Fault(f"more than {decoding.MAX_BYTES} bytes", lasting=True)


def _url_fault(url: str, parts: Url) -> str | None:
    """Why an address is not asked; None for a sound one."""
    if len(url) > MAX_URL:
        return f"an address of {len(url)} characters"
    if parts.scheme not in ("http", "https"):
        return f"an address of the kind {parts.scheme or 'without a scheme'!r}, not http(s)"
    if not parts.host or parts.port == 0:
        return "an address without a host"
    if parts.auth is not None:
        return "an address with a user's name in it"
    return None
