"""Who a download may reach, by whatever spelling, redirect or name server; TLS; Retry-After."""

import shutil
import socket
import ssl
import subprocess
import time
from email.utils import formatdate

import pytest

from dataset_tools.images import client
from dataset_tools.images.addresses import address_fault
from dataset_tools.images.client import Client
from dataset_tools.images.fetching import fetch_images
from tests.support.image_server import SOUND, serve, stop


@pytest.fixture
def server():
    """A server whose routes a test fills in; `url(path)` is the address."""
    server = serve({})
    yield server
    stop(server)


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
    _, missing = fetch_images({"x": url}, tmp_path, retries=0, progress=False)
    reason = missing["x"].reason
    assert server.hits == []
    assert "refused: " in reason or "does not resolve" in reason


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        *[("7", 7), ("1e3", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
        *[("Fri, 31 Dec 99999 23:59:59 GMT", 0), ("9" * 5000, 0)],
        (f"Fri, 31 Dec {'9' * 20} 23:59:59 GMT", 0),
    ],
    ids=lambda value: str(value)[:32],
)
def test_retry_after_is_read(server, asked, seconds):
    server.routes["/busy"] = lambda h, _: h.give(b"", 429, Retry_After=asked)
    fault = Client(20, allow_private=True).get(server.url("/busy"))
    assert fault == client.Fault("HTTP 429 Too Many Requests", lasting=False, wait_s=seconds)
    later = formatdate(time.time() + 100, usegmt=True)
    server.routes["/date"] = lambda h, _: h.give(b"", 503, Retry_After=later)
    assert 90 < Client(20, allow_private=True).get(server.url("/date")).wait_s <= 100


def resolver(monkeypatch, answers):
    """Let names resolve to `answers[host]`, one answer after the other; returns what was asked."""
    asked = []

    def getaddrinfo(host, port, *args, **options):
        queue = answers.get(host, [host])  # a literal address is its own answer
        asked.extend([host] if host in answers else [])
        address = queue.pop(0) if len(queue) > 1 else queue[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_redirect_into_the_own_network_is_refused(server, tmp_path, monkeypatch):
    """The first hop is let through by its name; the second has to be checked as well."""
    server.routes["/start"] = lambda h, _: h.give(b"", 302, Location=server.url("/secret"))
    server.routes["/secret"] = lambda h, _: h.give(SOUND)
    real = client.resolve

    def resolve(host, port, allow_private):
        return ["127.0.0.1"] if host == "shop.test" else real(host, port, allow_private)

    monkeypatch.setattr(client, "resolve", resolve)
    urls = {"x": f"http://shop.test:{server.server_port}/start"}
    _, missing = fetch_images(urls, tmp_path, progress=False)
    assert server.hits == ["/start"]
    assert "loopback address 127.0.0.1, by a redirect" in missing["x"].reason


def test_a_name_is_resolved_once_and_the_address_that_was_checked_is_connected_to(
    server, tmp_path, monkeypatch
):
    """A name server that gives a public address first and loopback then gains nothing."""
    asked = resolver(monkeypatch, {"rebind.test": ["93.184.216.34", "127.0.0.1"]})
    reached = []

    def create_connection(address, timeout):
        reached.append(address)
        raise ConnectionRefusedError(111, "refused by the test")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    url = f"http://rebind.test:{server.server_port}/a"
    assert "connection failed" in Client(20).get(url).reason
    assert asked == ["rebind.test"] and reached == [("93.184.216.34", server.server_port)]
    assert "loopback" in Client(20).get(url).reason
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
    def get(host):
        return Client(20, allow_private=True).get(f"https://{host}:{shop.server_port}/a")

    assert "certificate is not valid" in get("shop.test").reason  # signed by nobody known
    monkeypatch.setenv("SSL_CERT_FILE", str(shop.certificate))
    assert get("shop.test") == SOUND
    assert shop.names[-1] == "shop.test" and shop.hosts == [f"shop.test:{shop.server_port}"]
    assert "certificate is not valid" in get("other.test").reason  # its name is another


def test_the_time_limit_holds_under_tls_and_in_its_handshake(shop, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(shop.certificate))
    shop.routes["/a"] = lambda h, _: (h.give(b"", Content_Length="200"), h.drip(b"x" * 200, 0.1))
    patient = Client(0.7, allow_private=True)
    begin = time.monotonic()
    slow = patient.get(f"https://shop.test:{shop.server_port}/a")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = patient.get(f"https://shop.test:{silent.getsockname()[1]}/a")
    assert slow.reason == mute.reason == "took longer than 0.7 s"
    assert time.monotonic() - begin < 10
