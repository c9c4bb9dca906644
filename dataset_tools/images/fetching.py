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

from dataset_tools.images.decoding import NO_MEMORY, Limits, open_image
from dataset_tools.images.http_get import Fault, Rules, get, pause, url_fault
from recbole_tema.data.atomic import clean_text, replace_file
from recbole_tema.errors import DataError
from recbole_tema.progress import ProgressBar

log = logging.getLogger(__name__)

NOTE_SUFFIX = ".missing"
DECODERS = 4  # images decoded at once: each may take some 200 MB
DEFAULT_RULES = Rules()
DEFAULT_LIMITS = Limits()


class Missing(NamedTuple):
    """An item without an image: its address and the reason."""

    url: str
    reason: str


class Fetched(NamedTuple):
    """What `fetch_images` found.

    Attributes:
        paths: File of each item that has an image, in the order of the items.
        missing: Items without one, in their order.
        downloaded: Images that were downloaded now.
        cached: Images that were there.
    """

    paths: dict[str, Path]
    missing: dict[str, Missing]
    downloaded: int
    cached: int


class _Job(NamedTuple):
    """What all downloads of one run share."""

    folder: Path
    rules: Rules
    limits: Limits
    retries: int
    retry_failed: bool
    stop: threading.Event
    decoding: threading.Semaphore

    @property
    def conditions(self) -> list:
        """What a note of a failure that depends on the run's settings is valid for."""
        return [self.limits.max_bytes, self.limits.max_pixels, self.rules.allow_private]


def fetch_images(
    urls: Mapping[str, str],
    cache_folder: str | Path,
    *,
    workers: int = 16,
    timeout_s: float = DEFAULT_RULES.timeout_s,
    max_bytes: int = DEFAULT_LIMITS.max_bytes,
    max_pixels: int = DEFAULT_LIMITS.max_pixels,
    allow_private: bool = False,
    retries: int = 3,
    retry_failed: bool = False,
    progress: bool = True,
) -> Fetched:
    """The images of the items, from the cache or from their addresses (`urls`, by item).

    Each address is asked once, however many items share it. Only sound images within the limits
    are kept. A run that was interrupted loses the images under way alone.

    Args:
        urls: Address of each item's image; one that is empty or no text counts as missing.
        cache_folder: Where the images are kept; made if need be.
        workers: Downloads at once.
        timeout_s: Seconds for one attempt, redirects included; looking up the host's name is
            bounded by the system's resolver alone.
        max_bytes, max_pixels: See `images.Limits`.
        allow_private: Reach private, loopback and other addresses that are not public.
        retries: Further attempts after a failure that may pass (timeouts, HTTP 5xx and 429).
        retry_failed: Ask also for what a former run found to be missing for good, and for kept
            images that do not open any more.
        progress: Show a progress bar.

    Raises:
        DataError: the cache cannot be written, or a number is out of range.
    """
    _check(workers=workers, timeout_s=timeout_s, retries=retries + 1)
    limits = Limits(max_bytes, max_pixels)
    rules = Rules(timeout_s, max_bytes, allow_private)
    job = _Job(
        Path(cache_folder), rules, limits, retries, retry_failed,
        threading.Event(), threading.Semaphore(DECODERS),
    )  # fmt: skip
    faults = {item: url_fault(url) for item, url in urls.items()}
    distinct = list(dict.fromkeys(urls[i].strip() for i, fault in faults.items() if not fault))
    outcomes = _run(job, distinct, workers, progress)
    paths, missing = {}, {}
    for item, url in urls.items():
        reason = faults[item] or outcomes[url.strip()][1]
        if reason:
            missing[item] = Missing(url if isinstance(url, str) else "", reason)
        else:
            paths[item] = image_path(job.folder, url.strip())
    new = sum(is_new for is_new, reason in outcomes.values() if not reason)
    found = sum(not reason for _, reason in outcomes.values())
    if missing:
        log.warning("%d of %d items have no image", len(missing), len(urls))
    return Fetched(paths, missing, new, found - new)


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


def _check(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise DataError(f"{name} is {value}; use a number over 0")


def _run(
    job: _Job, urls: list[str], workers: int, progress: bool
) -> dict[str, tuple[bool, str | None]]:
    """For each address whether it was downloaded now, and the reason why there is no image."""
    outcomes: dict[str, tuple[bool, str | None]] = {}
    bar = ProgressBar(total=len(urls), desc="images", unit="image", disable=not progress)
    with bar, ThreadPoolExecutor(workers, "images") as pool:
        futures = {pool.submit(_obtain, job, url): url for url in urls}
        try:
            for future in as_completed(futures):
                outcomes[futures[future]] = future.result()
                bar.update()
        except OSError as error:
            raise DataError(
                f"{job.folder}: the cache of images cannot be written ({error.strerror or error}); "
                "check rights and space and run again: what is there stays"
            ) from error
        finally:  # after an interrupt too: what has not begun does not begin
            job.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return outcomes


def _obtain(job: _Job, url: str) -> tuple[bool, str | None]:
    path = image_path(job.folder, url)
    if path.is_file() and not (job.retry_failed and _drop_damaged(job, path)):
        return False, None
    note = path.with_suffix(NOTE_SUFFIX)
    reason = None if job.retry_failed else _noted(note, job.conditions)
    if reason:
        return False, reason
    content = _download(job, url, random.Random(path.name))
    if not isinstance(content, Fault):
        _keep(path, content)
        note.unlink(missing_ok=True)
        return True, None
    if content.lasting:
        conditions = job.conditions if content.depends else None
        entry = {"url": url, "reason": content.reason, "conditions": conditions}
        _keep(note, json.dumps(entry, ensure_ascii=True).encode())
    return False, content.reason


def _download(job: _Job, url: str, rng: random.Random) -> bytes | Fault:
    """The bytes of a sound image, after as many attempts as it takes, or the last fault."""
    for attempt in range(1, job.retries + 2):
        if job.stop.is_set():
            return Fault("interrupted", lasting=False)
        content = get(url, job.rules)
        if not isinstance(content, Fault):
            fault = _decoding_fault(job, content)
            if fault is None:
                return content
            content = Fault(fault, lasting=fault != NO_MEMORY, depends=True)
        if content.lasting or attempt > job.retries:
            break
        job.stop.wait(pause(attempt, content, rng))
    return content


def _decoding_fault(job: _Job, source: bytes | Path) -> str | None:
    with job.decoding:
        picture = open_image(source, job.limits)
    return picture if isinstance(picture, str) else None


def _drop_damaged(job: _Job, path: Path) -> bool:
    """Remove a kept image that does not open; whether it did not."""
    fault = _decoding_fault(job, path)
    if fault in (None, NO_MEMORY):
        return False
    log.info("%s: %s; downloading it again", path, fault)
    path.unlink(missing_ok=True)
    return True


def _keep(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        file.write(content)


def _noted(note: Path, conditions: list) -> str | None:
    """The reason that a former run noted, where it still holds under this run's settings."""
    try:
        entry = json.loads(note.read_bytes())
        holds = entry["conditions"] is None or entry["conditions"] == conditions
        holds = holds and entry["reason"] != NO_MEMORY  # older versions took that for lasting
        return str(entry["reason"]) if holds else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None  # a damaged note is as good as none: the address is asked again
