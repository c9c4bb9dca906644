"""Compressed files are whole: DuckDB takes the end of a file that was cut short for its end."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from recbole_tema.errors import DataError

HOW_TO_GET = "pip install 'recbole-tema[convert]'"
GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
BLOCK = 1 << 16  # what it unpacks to, up to 1000 times as much, is in memory


def check_whole(path: Path) -> None:
    """Decompress a gzip or zstd file without keeping it; files of other kinds pass.

    Raises:
        DataError: it is cut short or damaged.
    """
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic.startswith(GZIP):
        _whole(path, _gzip_members)
    elif magic == ZSTD:
        _whole(path, _zstd_frames)


def _whole(path: Path, check: Callable) -> None:
    bar = tqdm(
        total=path.stat().st_size, desc=f"{path.name}: checked", unit="B", unit_scale=True, delay=2
    )
    with bar, open(path, "rb") as file:

        def blocks() -> Iterator[bytes]:
            while block := file.read(BLOCK):
                bar.update(len(block))
                yield block

        fault = check(blocks())
    if fault:
        raise DataError(f"{path}: {fault}: it is cut short or damaged; fetch it again")


def _gzip_members(blocks: Iterator[bytes]) -> str | None:
    return _ended(blocks, lambda: zlib.decompressobj(wbits=31), zlib.error)


def _zstd_frames(blocks: Iterator[bytes]) -> str | None:
    try:
        import zstandard
    except ImportError:
        raise DataError(f"zstandard is not installed, for .zst files: {HOW_TO_GET}") from None
    return _ended(blocks, lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError)


def _ended(blocks: Iterator[bytes], start: Callable, error: type[Exception]) -> str | None:
    """What is wrong with streams that follow one another; None where the last one has its end."""
    stream = None
    for block in blocks:
        while block:
            if stream is None:
                block = block.lstrip(b"\0")  # padding between streams and at the end
                if not block:
                    break
                stream = start()
            try:
                stream.decompress(block)
            except error as fault:
                return str(fault)
            block = stream.unused_data
            if stream.eof:
                stream = None
    return None if stream is None else "its end is missing"
