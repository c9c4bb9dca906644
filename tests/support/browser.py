"""A page in headless Chromium, through chromedriver and the WebDriver protocol."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


def missing() -> str | None:
    """The first program that is not installed."""
    names = (("chromedriver",), ("chromium", "google-chrome"))
    return next((some[0] for some in names if not any(map(shutil.which, some))), None)


class Page:
    """An open page: what it logged, what it asked for, how it looks."""

    def __init__(self, session: str, url: str):
        self._session, self._url = session, url

    def console(self) -> list[dict]:
        """Messages of its console, errors of loading too."""
        return _call(f"{self._session}/se/log", {"type": "browser"})

    def requests(self) -> list[str]:
        """Addresses that the page itself asked for, not the browser's own first tab."""
        found = _call(f"{self._session}/se/log", {"type": "performance"})
        events = [json.loads(line["message"])["message"] for line in found]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        own = [event for event in sent if event["documentURL"] == self._url]
        return [event["request"]["url"] for event in own]

    def run(self, script: str):
        """What a script of the page returns."""
        return _call(f"{self._session}/execute/sync", {"script": script, "args": []})

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(_call(f"{self._session}/screenshot")))


@contextmanager
def opened(path: Path, profile: Path, width: int, height: int = 900):
    """The page of a file, in a window of a size."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        base = f"http://localhost:{port}"
        _wait_for(base)
        arguments = [*ARGUMENTS, f"--user-data-dir={profile}"]
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        made = _call(f"{base}/session", {"capabilities": {"alwaysMatch": wanted}})
        session = f"{base}/session/{made['sessionId']}"
        # A window of its own would not be narrower than 500 pixels.
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": size}
        _call(f"{session}/goog/cdp/execute", command)
        _call(f"{session}/url", {"url": path.resolve().as_uri()})
        yield Page(session, path.resolve().as_uri())
        _call(session, method="DELETE")
    finally:
        driver.terminate()
        driver.wait(10)


def _wait_for(base):
    for _ in range(100):
        try:
            if _call(f"{base}/status")["ready"]:
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise TimeoutError("chromedriver does not answer")


def _call(url, body=None, method=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["value"]
