"""The address of a server: what of it is sent, and what of it may be shown."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from recbole_tema.errors import BackendError

HIDDEN_ADDRESS = "the address"  # where it cannot be told what in it is a password


def split_address(url: str) -> tuple[str, str, bool]:
    """The address without its query, the query, and whether it is on this machine.

    Raises:
        BackendError: it is no http(s) address, or holds a user name or password.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.username is not None or parts.password is not None:
        raise BackendError(
            f"the address of {host} holds a user name or password; leave it out: keys come from "
            "the environment"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise BackendError(f"{_shown(url)} is no address; one is http://localhost:8000/v1")
    host = f"[{host}]" if ":" in host else host
    address = f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
    return address, parts.query, _is_loopback(host.strip("[]"))


def _shown(url: str) -> str:
    """What may be shown of an address that cannot be read: nothing before an @, and no query."""
    before, _, after = url.rpartition("@")
    if re.search(r"[?#]", before):  # a query that holds an @, or a password that holds a ?
        return HIDDEN_ADDRESS
    return repr(re.split(r"[?#]", after)[0])


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
