"""Who a download may reach, by whatever spelling, redirect or name server; TLS; pauses."""

import shutil
import socket
import ssl
import subprocess
import time

import pytest

from dataset_tools.images import addresses, http_get
from dataset_tools.images.addresses import address_fault
from dataset_tools.images.fetching import fetch_images
from tests.support.image_server import SOUND, serve, stop


@pytest.fixture
def server():
    """A server whose routes a test fills in; `url(path)` is the address."""
    server = serve({})
    yield server
    stop(server)


def test_pauses_double_and_honour_what_the_server_asks_within_reason():
    class Half:
        def random(self):
            return 0.5

    fault = http_get.Fault("x", lasting=False)
    assert [http_get.pause(n, fault, Half()) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert http_get.pause(1, fault._replace(wait_s=7.0), Half()) == 7.0
    assert http_get.pause(1, fault._replace(wait_s=1e9), Half()) == http_get.LONGEST_PAUSE


REFUSED = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "private",
    "10.0.0.1": "private",
    "100.64.0.1": "not public",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "169.254.169.254": "link-local",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.2.1": "private",
    "192.168.1.1": "private",
    "198.18.0.1": "private",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:10.1.2.3": "private",
    "::ffff:169.254.169.254": "link-local",
    "::127.0.0.1": "reserved",
    "64:ff9b::10.0.0.1": "private",
    "64:ff9b:1::1": "reserved",
    "2002:7f00:1::": "loopback",
    "2002:c0a8:101::1": "private",
    "2001:0:7f00:1::": "loopback",
    "fe80::1": "link-local",
    "fe80::1%1": "link-local",
    "fc00::1": "private",
    "fd12:3456::1": "private",
    "fec0::1": "private",
    "ff02::1": "multicast",
    "ff0e::1": "multicast",
    "2001:db8::1": "private",
    "100::1": "reserved",
}
PUBLIC = ["8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "198.20.0.1"]
PUBLIC += ["2606:4700::1111", "2a00:1450:4001:81b::200e", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_not_public_are_refused(address):
    assert address_fault(address) == REFUSED[address]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_reached(address):
    assert address_fault(address) is None


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]"]
    + ["[::ffff:127.0.0.1]", "0", "127.0.0.1."],
)
def test_no_spelling_of_loopback_reaches_the_server(server, tmp_path, host):
    server.routes["/a"] = lambda h, _: h.give(SOUND)
    url = f"http://{host}:{server.server_port}/a"
    fetched = fetch_images({"x": url}, tmp_path, retries=0, progress=False)
    reason = fetched.missing["x"].reason
    assert server.hits == []
    assert "refused: " in reason or "does not resolve" in reason


def resolver(monkeypatch, answers):
    """Let names resolve to `answers[host]`, one answer after the other; returns what was asked."""
    asked = []

    def getaddrinfo(host, port, *args, **options):
        queue = answers.get(host, [host])  # a literal address is its own answer
        asked.extend([host] if host in answers else [])
        address = queue.pop(0) if len(queue) > 1 else queue[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_redirect_into_the_own_network_is_refused(server, tmp_path, monkeypatch):
    """The first hop is let through by its name; the second has to be checked as well."""
    server.routes["/start"] = lambda h, _: h.give(b"", 302, Location=server.url("/secret"))
    server.routes["/secret"] = lambda h, _: h.give(SOUND)
    real = addresses.resolve

    def resolve(host, port, allow_private):
        return ["127.0.0.1"] if host == "shop.test" else real(host, port, allow_private)

    monkeypatch.setattr(addresses, "resolve", resolve)
    urls = {"x": f"http://shop.test:{server.server_port}/start"}
    fetched = fetch_images(urls, tmp_path, progress=False)
    assert server.hits == ["/start"]
    assert "loopback address 127.0.0.1, by a redirect" in fetched.missing["x"].reason


def test_a_name_is_resolved_once_and_the_address_that_was_checked_is_connected_to(
    server, tmp_path, monkeypatch
):
    """A name server that gives a public address first and loopback then gains nothing."""
    asked = resolver(monkeypatch, {"rebind.test": ["93.184.216.34", "127.0.0.1"]})
    reached = []

    def create_connection(address, timeout):
        reached.append(address)
        raise ConnectionRefusedError(111, "refused by the test")

    monkeypatch.setattr(addresses.socket, "create_connection", create_connection)
    url = f"http://rebind.test:{server.server_port}/a"
    assert "connection failed" in http_get.get(url, http_get.Rules()).reason
    assert asked == ["rebind.test"] and reached == [("93.184.216.34", server.server_port)]
    assert "loopback" in http_get.get(url, http_get.Rules()).reason
    assert len(reached) == 1 and server.hits == []


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """An HTTPS server whose certificate is for shop.test, which resolves to it; names noted."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
    command += f"-subj /CN=shop.test -addext subjectAltName=DNS:shop.test -keyout {key}"
    subprocess.run([*command.split(), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    names = []
    context.sni_callback = lambda sock, name, _: names.append(name)
    server = serve({"/a": lambda h, _: h.give(SOUND)}, context)
    server.names, server.certificate = names, certificate
    resolver(monkeypatch, {"shop.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
    yield server
    stop(server)


def test_tls_verifies_the_name_over_the_checked_address(shop, monkeypatch):
    rules = http_get.Rules(allow_private=True)

    def get(host):
        return http_get.get(f"https://{host}:{shop.server_port}/a", rules)

    assert "certificate is not valid" in get("shop.test").reason  # signed by nobody known
    trusting = ssl.create_default_context(cafile=shop.certificate)
    monkeypatch.setattr(http_get, "_tls", lambda: trusting)
    assert get("shop.test") == SOUND
    assert shop.names[-1] == "shop.test" and shop.hosts == [f"shop.test:{shop.server_port}"]
    assert "certificate is not valid" in get("other.test").reason  # its name is another


def test_the_time_limit_holds_under_tls_and_in_its_handshake(shop, monkeypatch):
    trusting = ssl.create_default_context(cafile=shop.certificate)
    monkeypatch.setattr(http_get, "_tls", lambda: trusting)
    shop.routes["/a"] = lambda h, _: (h.give(b"", Content_Length="200"), h.drip(b"x" * 200, 0.1))
    rules = http_get.Rules(timeout_s=0.7, allow_private=True)
    begin = time.monotonic()
    slow = http_get.get(f"https://shop.test:{shop.server_port}/a", rules)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = http_get.get(f"https://shop.test:{silent.getsockname()[1]}/a", rules)
    assert slow.reason == mute.reason == "took longer than 0.7 s"
    assert time.monotonic() - begin < 10
