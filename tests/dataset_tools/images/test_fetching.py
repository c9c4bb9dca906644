"""Downloads from real servers on loopback: sound, broken, slow, lying, and their cache."""

import json
import socket
import threading
import time

import pytest

from dataset_tools.images import decoding, fetching
from dataset_tools.images.client import Client
from dataset_tools.images.decoding import NO_MEMORY
from dataset_tools.images.fetching import fetch_images, image_path, write_missing
from recbole_tema.errors import DataError
from tests.support.image_server import SOUND, picture, serve, stop


@pytest.fixture
def server():
    """A server whose routes a test fills in; `url(path)` is the address."""
    server = serve({})
    yield server
    stop(server)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Retries wait a hundredth of what they would."""
    monkeypatch.setattr(fetching, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(fetching, "LONGEST_PAUSE", 0.3)


def fetch(server, paths, folder, **options):
    urls = {path: server.url(path) for path in paths}
    return fetch_images(urls, folder, **{"allow_private": True, "progress": False, **options})


def reasons(fetched):
    return {item: entry.reason for item, entry in fetched[1].items()}


def test_images_are_kept_by_the_hash_of_their_address_and_not_asked_for_twice(server, tmp_path):
    bodies = {f"/{n}.jpg": picture((n, 0, 0)) for n in range(30)}
    for path, body in bodies.items():
        server.routes[path] = lambda h, _, body=body: h.give(body, Content_Type="text/plain")
    first, missing = fetch(server, bodies, tmp_path)
    assert list(first) == list(bodies) and missing == {}
    for path, body in bodies.items():
        assert first[path].read_bytes() == body
        assert first[path] == image_path(tmp_path, server.url(path))
    assert fetch(server, bodies, tmp_path) == (first, {})
    assert len(server.hits) == 30
    first["/7.jpg"].unlink()
    assert fetch(server, bodies, tmp_path) == (first, {}) and server.hits[30:] == ["/7.jpg"]


def test_items_that_share_an_address_share_one_download(server, tmp_path):
    server.routes["/a"] = lambda h, _: h.give(SOUND)
    urls = {"x": server.url("/a"), "y": f" {server.url('/a')} ", "z": server.url("/a")}
    paths, _ = fetch_images(urls, tmp_path, allow_private=True, progress=False)
    assert list(paths) == ["x", "y", "z"] and server.hits == ["/a"]


def test_addresses_that_cannot_be_asked_are_missing_with_their_reason(tmp_path):
    urls = {
        "empty": "",
        "nan": float("nan"),
        "none": None,
        "file": "file:///etc/passwd",
        "ftp": "ftp://example.org/a.jpg",
        "bare": "example.org/a.jpg",
        "data": "data:image/png;base64,AAAA",
        "no host": "http:///a.jpg",
        "port": "http://example.org:99999/a",
        "user": "http://me:word@example.org/a",
        "long": "http://example.org/" + "a" * 9000,
        "bracket": "http://[::1/a",
        "label": "http://" + "a" * 70 + ".example/a",
        "dots": "http://a..b/a",
    }
    fetched = fetch_images(urls, tmp_path, progress=False, retries=0)
    found = reasons(fetched)
    assert list(found) == list(urls) and not fetched[0]
    for item in ("empty", "nan", "none"):
        assert found[item] == "no address"
    for item in ("file", "ftp", "bare", "data"):
        assert "not http(s)" in found[item]
    assert found["no host"] == "an address without a host"
    assert "user's name" in found["user"] and "9019 characters" in found["long"]
    for item in ("port", "bracket", "label", "dots"):
        assert "malformed" in found[item]


def test_failures_for_good_are_noted_and_asked_again_only_on_demand(server, tmp_path):
    server.routes["/gone"] = lambda h, hit: h.give(b"", 404) if hit == 1 else h.give(SOUND)
    server.routes["/html"] = lambda h, _: h.give(b"<html>sorry</html>", Content_Type="image/jpeg")
    server.routes["/text"] = lambda h, _: h.give(b"plain words", Content_Type="image/png")
    server.routes["/half"] = lambda h, _: h.give(SOUND[:40])
    server.routes["/void"] = lambda h, _: h.give(b"")
    paths = list(server.routes)
    for _ in range(2):
        found = reasons(fetch(server, paths, tmp_path))
        assert found["/gone"] == "HTTP 404 Not Found"
        assert "HTML" in found["/html"] and "text" in found["/text"]
        assert "broken" in found["/half"] and "empty" in found["/void"]
        assert sorted(server.hits) == sorted(paths)  # no retry, and none by the second run
    image_path(tmp_path, server.url("/text")).with_suffix(".missing").write_bytes(b"{damaged")
    again = fetch(server, paths, tmp_path)
    assert server.hits[5:] == ["/text"] and len(again[1]) == 5
    retried, _ = fetch(server, paths, tmp_path, retry_failed=True)
    assert list(retried) == ["/gone"] and len(server.hits) == 11
    assert "/gone" in fetch(server, paths, tmp_path)[0] and len(server.hits) == 11


def test_a_lack_of_memory_passes(server, tmp_path, monkeypatch):
    server.routes["/large"] = lambda h, _: h.give(SOUND)
    short, real = [2], fetching.open_image

    def open_image(source):
        short[0] -= 1
        return NO_MEMORY if short[0] >= 0 else real(source)

    monkeypatch.setattr(fetching, "open_image", open_image)
    assert reasons(fetch(server, ["/large"], tmp_path, retries=0)) == {"/large": NO_MEMORY}
    assert not list(tmp_path.rglob("*.missing"))
    assert not fetch(server, ["/large"], tmp_path, retries=1)[1]
    # What an older version noted of it is no reason to leave the image out for ever.
    path = image_path(tmp_path, server.url("/large"))
    path.unlink()
    note = {"url": "", "reason": NO_MEMORY, "conditions": None}
    path.with_suffix(".missing").write_text(json.dumps(note))
    assert not fetch(server, ["/large"], tmp_path)[1]


def test_kept_images_that_do_not_open_are_downloaded_again_on_demand(server, tmp_path, monkeypatch):
    for path in ("/cut", "/empty", "/gone", "/sound", "/large"):
        server.routes[path] = lambda h, _: h.give(SOUND)
    paths = list(server.routes)
    kept, _ = fetch(server, paths, tmp_path)
    kept["/cut"].write_bytes(SOUND[:40])
    kept["/empty"].write_bytes(b"")
    kept["/gone"].write_bytes(b"junk")
    server.routes["/gone"] = lambda h, _: h.give(b"", 404)
    assert len(fetch(server, paths, tmp_path)[0]) == 5 and len(server.hits) == 5
    real = fetching.open_image
    monkeypatch.setattr(
        fetching,
        "open_image",
        lambda source: NO_MEMORY if source == kept["/large"] else real(source),
    )
    again = fetch(server, paths, tmp_path, retry_failed=True)
    assert sorted(server.hits[5:]) == ["/cut", "/empty", "/gone"]
    assert [path.read_bytes() for path in again[0].values()] == [SOUND] * 4
    assert reasons(again) == {"/gone": "HTTP 404 Not Found"} and not kept["/gone"].exists()


def test_failures_that_may_pass_are_tried_again_and_never_noted(server, tmp_path):
    server.routes["/flaky"] = lambda h, hit: h.give(SOUND) if hit == 3 else h.give(b"", 500)
    server.routes["/busy"] = lambda h, hit: (
        h.give(SOUND) if hit == 2 else h.give(b"", 429, Retry_After="1")
    )
    server.routes["/down"] = lambda h, _: h.give(b"", 503)
    fetched = fetch(server, list(server.routes), tmp_path, retries=2)
    assert set(fetched[0]) == {"/flaky", "/busy"}
    assert reasons(fetched) == {"/down": "HTTP 503 Service Unavailable"}
    assert [server.hits.count(path) for path in ("/flaky", "/busy", "/down")] == [3, 2, 3]
    fetch(server, ["/down"], tmp_path, retries=0)
    assert server.hits.count("/down") == 4


def test_a_refused_connection_and_an_unknown_host_may_pass(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        urls = {"closed": f"http://127.0.0.1:{port}/a", "unknown": "http://no-such.invalid/a"}
        fetched = fetch_images(urls, tmp_path, allow_private=True, retries=0, progress=False)
    assert "connection failed" in fetched[1]["closed"].reason
    assert "does not resolve" in fetched[1]["unknown"].reason
    assert not list(tmp_path.rglob("*.missing"))


def test_redirects_are_followed_up_to_five_and_not_in_a_circle(server, tmp_path):
    def to(place):
        return lambda h, _: h.give(b"", 302, Location=place)

    server.routes["/a"] = to("/b?x=1")
    server.routes["/b?x=1"] = to(server.url("/c%20d"))
    server.routes["/c%20d"] = lambda h, _: h.give(SOUND)
    server.routes["/loop"] = to("/loop2")
    server.routes["/loop2"] = to("/loop")
    server.routes["/ftp"] = to("ftp://127.0.0.1/a")
    server.routes["/bracket"] = to("http://[::1/a")
    for n in range(6):
        server.routes[f"/chain{n}"] = to(f"/chain{n + 1}")
    server.routes["/chain6"] = lambda h, _: h.give(SOUND)
    fetched = fetch(server, ["/a", "/loop", "/ftp", "/bracket", "/chain0", "/chain1"], tmp_path)
    assert set(fetched[0]) == {"/a", "/chain1"}
    found = reasons(fetched)
    assert found["/loop"] == "redirects in a circle"
    assert found["/chain0"] == "more than 5 redirects"
    assert "'ftp', not http(s)" in found["/ftp"] and "malformed" in found["/bracket"]


def test_addresses_are_sent_percent_encoded(server, tmp_path):
    server.routes["/gr%C3%B6%C3%9Fe%20a%2Fb.png?q=%20x"] = lambda h, _: h.give(SOUND)
    fetched = fetch(server, ["/größe a%2Fb.png?q=%20x#part"], tmp_path)
    assert not fetched[1]


def test_the_size_limit_holds_while_the_body_comes(server, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(decoding, "MAX_BYTES", 50_000)

    def endless(handler, _):
        handler.give(b"", Content_Length=None, Connection="close")
        for _ in range(10_000):
            handler.wfile.write(b"x" * 10_000)
            sent.append(10_000)

    def chunked(handler, _):
        handler.give(b"", Content_Length=None, Transfer_Encoding="chunked")
        for _ in range(100):
            handler.wfile.write(b"2710\r\n" + b"y" * 10_000 + b"\r\n")

    server.routes["/endless"] = endless
    server.routes["/chunked"] = chunked
    server.routes["/honest"] = lambda h, _: h.give(b"z" * 60_000)
    found = reasons(fetch(server, list(server.routes), tmp_path))
    assert set(found.values()) == {"more than 50000 bytes"} and len(found) == 3
    assert sum(sent) < 20_000_000  # the connection was closed long before the 100 MB
    server.routes["/chunked"] = server.routes["/endless"] = lambda h, _: h.give(SOUND)
    n_hits = len(server.hits)
    assert len(fetch(server, ["/endless", "/chunked"], tmp_path)[1]) == 2
    assert len(server.hits) == n_hits  # noted under this limit; under another it is asked again
    monkeypatch.setattr(decoding, "MAX_BYTES", 60_000)
    assert not fetch(server, ["/endless", "/chunked"], tmp_path)[1]


def test_a_content_length_that_lies_is_found_out(server, tmp_path):
    server.routes["/less"] = lambda h, _: h.give(SOUND, Content_Length=str(len(SOUND) // 2))
    server.routes["/more"] = lambda h, _: h.give(
        SOUND, Content_Length=str(len(SOUND) + 20), Connection="close"
    )
    server.routes["/word"] = lambda h, _: h.give(SOUND, Content_Length="many", Connection="close")

    def cut_chunks(handler, _):
        handler.give(b"", Content_Length=None, Transfer_Encoding="chunked", Connection="close")
        handler.wfile.write(b"%x\r\n" % (len(SOUND) + 5) + SOUND)

    server.routes["/chunks"] = cut_chunks
    fetched = fetch(server, list(server.routes), tmp_path, retries=1)
    found = reasons(fetched)
    assert set(fetched[0]) == {"/word"}
    assert "broken" in found["/less"] and "20 more expected" in found["/more"]
    assert "connection failed" in found["/chunks"]
    assert [server.hits.count(path) for path in ("/less", "/more", "/chunks")] == [1, 2, 2]


def test_the_time_limit_is_of_the_whole_image(server, tmp_path):
    server.routes["/silent"] = lambda h, _: h.server.closing.wait(20)

    def slow_body(handler, _):
        handler.give(b"", Content_Length=str(len(SOUND)))
        handler.drip(SOUND, 0.3)

    def slow_body_without_length(handler, _):
        handler.give(b"", Content_Length=None, Connection="close")
        handler.drip(SOUND, 0.3)

    server.routes["/slow-body"] = slow_body
    server.routes["/no-length"] = slow_body_without_length
    server.routes["/slow-head"] = lambda h, _: h.drip(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200, 0.1)

    for n in range(5):
        server.routes[f"/hop{n}"] = lambda h, _, n=n: (
            h.server.closing.wait(0.4),
            h.give(b"", 302, Location=f"/hop{n + 1}"),
        )
    begin = time.monotonic()
    paths = ["/silent", "/slow-body", "/no-length", "/slow-head", "/hop0"]
    found = reasons(fetch(server, paths, tmp_path, timeout_s=1, retries=0))
    assert time.monotonic() - begin < 10  # the answers would take 20 s and more
    assert found == dict.fromkeys(paths, "took longer than 1 s")
    assert not list(tmp_path.rglob("*.missing"))


def test_a_garbage_answer_is_a_failed_connection(server, tmp_path):
    server.routes["/junk"] = lambda h, _: h.wfile.write(b"\0\1\2 this is not http\r\n\r\n")
    server.routes["/hang-up"] = lambda h, _: h.connection.shutdown(socket.SHUT_RDWR)
    found = reasons(fetch(server, list(server.routes), tmp_path, retries=0))
    assert all("connection failed" in reason for reason in found.values()) and len(found) == 2


def test_pixel_limits_hold_for_what_is_downloaded(server, tmp_path, monkeypatch):
    server.routes["/big"] = lambda h, _: h.give(picture(size=(60, 50)))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 2999)
    found = reasons(fetch(server, ["/big"], tmp_path))
    assert "60 x 50 pixels, more than 2999" in found["/big"]
    monkeypatch.setattr(decoding, "MAX_PIXELS", 3000)
    assert not fetch(server, ["/big"], tmp_path)[1]


def test_downloads_run_side_by_side(server, tmp_path):
    together = threading.Barrier(16, timeout=30)  # nobody gets an answer before all have asked
    for n in range(16):
        server.routes[f"/{n}"] = lambda h, _: (together.wait(), h.give(SOUND))
    fetched = fetch(server, list(server.routes), tmp_path, workers=16, timeout_s=40)
    assert not fetched[1]


def test_a_cache_that_cannot_be_written_ends_the_run(server, tmp_path):
    server.routes["/a"] = lambda h, _: h.give(SOUND)
    (tmp_path / "cache").write_bytes(b"a file in the way")
    with pytest.raises(DataError, match="the cache of images cannot be written"):
        fetch(server, ["/a"], tmp_path / "cache")


def test_an_interrupt_keeps_what_is_there(server, tmp_path, monkeypatch):
    for n in range(20):
        server.routes[f"/{n}"] = lambda h, _: h.give(SOUND)
    real, count = Client.get, []

    def get(client, url):
        count.append(url)
        if len(count) == 8:
            raise KeyboardInterrupt
        return real(client, url)

    monkeypatch.setattr(Client, "get", get)
    with pytest.raises(KeyboardInterrupt):
        fetch(server, list(server.routes), tmp_path, workers=1)
    monkeypatch.setattr(Client, "get", real)
    n_kept = len(server.hits)
    assert n_kept >= 7
    paths, _ = fetch(server, list(server.routes), tmp_path)
    assert len(paths) == 20 and len(server.hits) == 20  # none that was kept is asked again


def test_the_list_of_missing_images_is_a_sound_table(tmp_path):
    missing = {
        "a\tb": fetching.Missing("http://x/\n1", "HTTP 404 Not\tFound"),
        "c": fetching.Missing("", "no address"),
    }
    write_missing(tmp_path / "missing.tsv", missing)
    lines = (tmp_path / "missing.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "item_id\turl\treason"
    assert lines[1:] == ["a b\thttp://x/ 1\tHTTP 404 Not Found", "c\t\tno address"]
    with pytest.raises(DataError, match="cannot be written"):
        write_missing(tmp_path / "none" / "missing.tsv", missing)


def test_pauses_double_and_honour_what_the_server_asks_within_reason(monkeypatch):
    monkeypatch.setattr(fetching, "FIRST_PAUSE", 0.5)
    monkeypatch.setattr(fetching, "LONGEST_PAUSE", 30.0)
    for attempt, middle in enumerate([0.5, 1.0, 2.0, 4.0]):
        drawn = [fetching.pause(attempt) for _ in range(50)]
        assert middle / 2 <= min(drawn) < middle < max(drawn) <= 1.5 * middle
    assert fetching.pause(0, 7.0) == 7.0 and fetching.pause(20) == fetching.pause(0, 1e9) == 30.0


def test_a_note_says_in_plain_json_what_was_asked(server, tmp_path):
    server.routes["/gone"] = lambda h, _: h.give(b"", 410)
    fetch(server, ["/gone"], tmp_path)
    note = json.loads(next(tmp_path.rglob("*.missing")).read_bytes())
    conditions = [decoding.MAX_BYTES, decoding.MAX_PIXELS, True]
    assert note == {"url": server.url("/gone"), "reason": "HTTP 410 Gone", "conditions": conditions}
    fetch(server, ["/gone"], tmp_path)
    assert server.hits == ["/gone"]
    path = next(tmp_path.rglob("*.missing"))
    path.write_text(json.dumps({**note, "conditions": None}))  # as older versions noted it
    assert reasons(fetch(server, ["/gone"], tmp_path)) == {"/gone": "HTTP 410 Gone"}
    assert server.hits == ["/gone"]


def test_the_flag_is_no_part_of_what_is_noted_under_the_other(server, tmp_path):
    server.routes["/a"] = lambda h, _: h.give(SOUND)
    assert "refused" in reasons(fetch(server, ["/a"], tmp_path, allow_private=False))["/a"]
    assert not fetch(server, ["/a"], tmp_path, allow_private=True)[1]
