"""A real HTTP(S) server on loopback that gives images, or whatever a test wants instead."""

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

Image = pytest.importorskip("PIL.Image", reason="no pillow")


def picture(colour=(10, 20, 30), size=(16, 12), kind="PNG"):
    """An image's bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


SOUND = picture()


class Handler(BaseHTTPRequestHandler):
    """Answers by `server.routes[path](self, hit)`, hit counted from 1; notes what was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with self.server.lock:
            self.server.hits.append(self.path)
            self.server.hosts.append(self.headers["Host"])
            hit = self.server.hits.count(self.path)
        try:
            self.server.routes[self.path](self, hit)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def give(self, body=b"", status=200, **headers):
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, body, pause):
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.closing.wait(pause):
                return

    def log_message(self, *args):
        """The test's output stays clean."""


def serve(routes, context=None):
    """A running server; `hits` and `hosts` are the paths and Host headers that were asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.routes, server.hits, server.hosts = routes, [], []
    server.lock, server.closing = threading.Lock(), threading.Event()
    server.url = lambda path: f"http://127.0.0.1:{server.server_port}{path}"
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    return server


def stop(server):
    """End a server and whatever it is still sending."""
    server.closing.set()
    server.shutdown()
    server.server_close()
