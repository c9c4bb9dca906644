"""Download the images of a dataset, many at once, into a cache that a later run goes on from.

The cache holds, by the SHA-256 of the address, either the bytes of a sound image or a note of why
there is none and will be none; what failed for the time being is asked for again by the next run.
What was kept is not opened again, unless `retry_failed` asks for it: then files that were damaged
since are downloaded anew.
"""

import hashlib
import json
import logging
import random
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from dataset_tools.images import decoding
from dataset_tools.images.client import Client, Fault
from dataset_tools.images.decoding import NO_MEMORY, open_image
from recbole_tema.data.atomic import replace_file
from recbole_tema.data.cells import clean_text
from recbole_tema.errors import DataError
from recbole_tema.progress import ProgressBar

log = logging.getLogger(__name__)

NOTE_SUFFIX = ".missing"
DECODERS = 4  # images decoded at once: each may take some 200 MB
FIRST_PAUSE = 0.5  # seconds before the second attempt
LONGEST_PAUSE = 30.0  # seconds before any, also where the server asks for more


class Missing(NamedTuple):
    """An item without an image: its address and the reason."""

    url: str
    reason: str


def fetch_images(
    urls: Mapping[str, str],
    cache_folder: str | Path,
    *,
    workers: int = 16,
    timeout_s: float = 20.0,
    allow_private: bool = False,
    retries: int = 3,
    retry_failed: bool = False,
    progress: bool = True,
) -> tuple[dict[str, Path], dict[str, Missing]]:
    """The images of the items, from the cache or from their addresses (`urls`, by item).

    Each address is asked once, however many items share it. Only sound images are kept. A run that
    was interrupted loses the images under way alone.

    Args:
        urls: Address of each item's image; one that is empty or no text counts as missing.
        cache_folder: Where the images are kept; made if need be.
        workers: Downloads at once.
        timeout_s: Seconds for one attempt, redirects included; looking up the host's name is
            bounded by the system's resolver alone.
        allow_private: Reach private, loopback and other addresses that are not public.
        retries: Further attempts after a failure that may pass (timeouts, HTTP 5xx and 429).
        retry_failed: Ask also for what a former run found to be missing for good, and for kept
            images that do not open any more.
        progress: Show a progress bar.

    Returns:
        The file of each item that has an image, and the items without one, in their order.

    Raises:
        DataError: the cache cannot be written.
    """
    urls = {item: url.strip() if isinstance(url, str) else "" for item, url in urls.items()}
    cache = _Cache(Path(cache_folder), Client(timeout_s, allow_private), retries, retry_failed)
    reasons: dict[str, str | None] = {"": "no address"}
    asked = dict.fromkeys(url for url in urls.values() if url)
    bar = ProgressBar(total=len(asked), desc="images", unit="image", disable=not progress)
    with bar, ThreadPoolExecutor(workers, "images") as pool:
        futures = {pool.submit(cache.obtain, url): url for url in asked}
        try:
            for future in as_completed(futures):
                reasons[futures[future]] = future.result()
                bar.update()
        except OSError as error:
            raise DataError(
                f"{cache_folder}: the cache of images cannot be written ({error.strerror or error})"
                "; check rights and space and run again: what is there stays"
            ) from error
        finally:  # after an interrupt too: what has not begun does not begin
            cache.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    missing = {item: Missing(url, fault) for item, url in urls.items() if (fault := reasons[url])}
    if missing:
        log.warning("%d of %d items have no image", len(missing), len(urls))
    paths = {item: image_path(cache_folder, urls[item]) for item in urls if item not in missing}
    return paths, missing


def image_path(cache_folder: str | Path, url: str) -> Path:
    """Where the image of an address is kept: 256 folders, so that none is slow to list."""
    name = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    return Path(cache_folder) / name[:2] / name


def write_missing(path: str | Path, missing: Mapping[str, Missing]) -> None:
    """Write the list of items without an image: item_id, url, reason, tab-separated.

    Raises:
        DataError: it cannot be written.
    """
    rows = [("item_id", "url", "reason"), *((item, *entry) for item, entry in missing.items())]
    text = "".join("\t".join(map(clean_text, row)) + "\n" for row in rows)
    try:
        with replace_file(path) as file:
            file.write(text.encode("utf-8", "replace"))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); check its rights") from None


class _Cache:
    """The folder of images, and how one that it lacks is obtained; threads share it."""

    def __init__(self, folder: Path, client: Client, retries: int, retry_failed: bool) -> None:
        self.folder, self.client = folder, client
        self.retries, self.retry_failed = retries, retry_failed
        # What a note of a failure is valid for: the limits and flags that may have been its cause.
        self.conditions = [decoding.MAX_BYTES, decoding.MAX_PIXELS, client.allow_private]
        self.stop, self.decoding = threading.Event(), threading.Semaphore(DECODERS)

    def obtain(self, url: str) -> str | None:
        """See that the image of an address is there; else the reason why not."""
        path = image_path(self.folder, url)
        if path.is_file():
            fault = self._fault(path) if self.retry_failed else None
            if fault in (None, NO_MEMORY):
                return None
            log.info("%s: %s; downloading it again", path, fault)
            path.unlink(missing_ok=True)
        note = path.with_suffix(NOTE_SUFFIX)
        reason = None if self.retry_failed else self._noted(note)
        if reason:
            return reason
        content = self._download(url)
        if not isinstance(content, Fault):
            _keep(path, content)
            note.unlink(missing_ok=True)
            return None
        if content.lasting:
            entry = {"url": url, "reason": content.reason, "conditions": self.conditions}
            _keep(note, json.dumps(entry).encode())
        return content.reason

    def _download(self, url: str) -> bytes | Fault:
        """The bytes of a sound image, after as many attempts as it takes, or the last fault."""
        for attempt in range(self.retries + 1):
            if self.stop.is_set():
                return Fault("interrupted", lasting=False)
            content = self.client.get(url)
            if not isinstance(content, Fault):
                fault = self._fault(content)
                if fault is None:
                    return content
                content = Fault(fault, lasting=fault != NO_MEMORY)
            if content.lasting or attempt == self.retries:
                break
            self.stop.wait(pause(attempt, content.wait_s))
        return content

    def _fault(self, source: bytes | Path) -> str | None:
        """Why an image does not open."""
        with self.decoding:
            picture = open_image(source)
        return picture if isinstance(picture, str) else None

    def _noted(self, note: Path) -> str | None:
        """The reason that a former run noted, where it still holds under this run's settings."""
        try:
            entry = json.loads(note.read_bytes())
            holds = entry["conditions"] in (None, self.conditions)  # None: older versions' of a 404
            holds = holds and entry["reason"] != NO_MEMORY  # older versions took that for lasting
            return str(entry["reason"]) if holds else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None  # a damaged note is as good as none: the address is asked again


def pause(attempt: int, asked_s: float = 0.0) -> float:
    """Seconds before another try after the `attempt`-th (from 0): doubling, or as the server asks.

    Jitter keeps the threads from coming back all at once.
    """
    backoff = FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5)
    return min(max(backoff, asked_s), LONGEST_PAUSE)


def _keep(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        file.write(content)
