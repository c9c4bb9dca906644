"""Compressed files are whole: DuckDB takes the end of a file that was cut short for its end."""

import zlib
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from recbole_tema.errors import DataError

HOW_TO_GET = "pip install 'recbole-tema[convert]'"
GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
BLOCK = 1 << 20


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


def _whole(path: Path, check) -> None:
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
    member = None
    for block in blocks:
        while block:
            if member is None:
                block = block.lstrip(b"\0")  # padding between members and at the end
                if not block:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                member.decompress(block)
            except zlib.error as error:
                return str(error)
            block = member.unused_data
            if member.eof:
                member = None
    return None if member is None else "the end of the gzip stream is missing"


def _zstd_frames(blocks: Iterator[bytes]) -> str | None:
    try:
        import zstandard
    except ImportError:
        raise DataError(f"zstandard is not installed, for .zst files: {HOW_TO_GET}") from None
    frame = None
    for block in blocks:
        while block:
            if frame is None:
                frame = zstandard.ZstdDecompressor().decompressobj()
            try:
                frame.decompress(block)
            except zstandard.ZstdError as error:
                return str(error)
            block = frame.unused_data
            if frame.eof:
                frame = None
    return None if frame is None else "the end of the zstd stream is missing"
