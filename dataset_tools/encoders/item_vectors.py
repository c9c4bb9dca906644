"""Vectors of items: their images decoded in threads while the encoder computes, their texts."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset_tools.encoders.loading import Encoder
from dataset_tools.images.decoding import DEFAULT_LIMITS, Limits, open_image
from recbole_tema.progress import ProgressBar

if TYPE_CHECKING:
    from torch import Tensor

DECODERS = 4  # threads, each of which may hold an image of some 200 MB


def image_vectors(
    encoder: Encoder,
    items: Mapping[str, Path],
    limits: Limits = DEFAULT_LIMITS,
    progress: bool = True,
) -> tuple[list[str], np.ndarray, dict[str, str]]:
    """Ids (n) of the items whose image is sound, their vectors, and the others with the reason.

    A file that several items share is read once. Order and batches depend on `items` alone.

    Returns:
        ids; float32 (n, d) of norm 1, a row for each id; reasons by item.

    Raises:
        DataError: the encoder reads no images, or see `Encoder.images`.
    """
    encoder.require_images()
    files = list(dict.fromkeys(items.values()))
    rows: dict[Path, int] = {}
    refused: dict[Path, str] = {}
    parts: list[np.ndarray] = []
    bar = ProgressBar(total=len(files), desc="image vectors", unit="image", disable=not progress)
    with bar, _pool() as pool:
        try:
            for batch in _batches(pool, encoder, files, limits):
                sound = [(path, found) for path, found in batch if not isinstance(found, str)]
                refused.update((path, found) for path, found in batch if isinstance(found, str))
                if sound:
                    parts.append(encoder.encode_prepared([tensor for _, tensor in sound]))
                for path, _ in sound:
                    rows[path] = len(rows)
                bar.update(len(batch))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    matrix = np.concatenate(parts) if parts else np.empty((0, encoder.dimension), np.float32)
    ids = [item for item, path in items.items() if path in rows]
    faults = {item: refused[path] for item, path in items.items() if path in refused}
    return ids, matrix[[rows[items[item]] for item in ids]], faults


def text_vectors(encoder: Encoder, texts: Sequence[str], progress: bool = True) -> np.ndarray:
    """Vectors (n, d) float32 of norm 1 of n texts, in their order (see `Encoder.texts`)."""
    return encoder.texts(texts, progress)


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1), "decode")


def _batches(
    pool: ThreadPoolExecutor, encoder: Encoder, files: list[Path], limits: Limits
) -> "Iterator[list[tuple[Path, Tensor | str]]]":
    """Files in batches, each prepared or refused; the next batch is decoded meanwhile."""

    def prepared(path: Path) -> "Tensor | str":
        image = open_image(path, limits)
        return image if isinstance(image, str) else encoder.prepare(image)

    def submit(batch: list[Path]) -> "list[tuple[Path, Future]]":
        return [(path, pool.submit(prepared, path)) for path in batch]

    waiting = iter(files)
    ahead = submit(list(islice(waiting, encoder.batch_size)))
    while ahead:
        current, ahead = ahead, submit(list(islice(waiting, encoder.batch_size)))
        yield [(path, future.result()) for path, future in current]
