"""Raw text files on their way into the database: unpacked, checked and counted while it reads.

DuckDB takes the end of a compressed file that was cut short for its end, and tells nobody how far
it is. So a thread unpacks the file into a named pipe, from which DuckDB reads: the file is read
once, its end is checked, a bar shows how much is left, and nothing unpacked meets the disk.
"""

import errno
import os
import re
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_tema.errors import DataError, how_to_get
from recbole_tema.progress import ProgressBar

HOW_TO_GET = how_to_get("convert")
GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
ZIP = b"PK\x03\x04"
WIDE = (b"\xff\xfe", b"\xfe\xff")  # byte order marks of UTF-16 and UTF-32
MARK = b"\xef\xbb\xbf"  # that of UTF-8
BLANK = re.compile(rb"\n(?=\n)")
LONGEST_REST = 8 << 20  # bytes without a line end that are waited for
BLOCK = 1 << 16  # of a gzip file: what it unpacks to, up to 1000 times as much, is in memory
ZSTD_BLOCK = 1 << 11  # zstd packs a run of one byte 30,000 times
PLAIN_BLOCK = 1 << 20
PIPE = 1 << 20  # bytes; Linux lets anybody's pipe hold so much
WAIT = 0.2  # seconds between looks whether the reader has gone
SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ, which Python 3.10 knows no name for everywhere


@dataclass
class Tally:
    """Lines of a text, and the blank ones among them."""

    lines: int = 0
    blank: int = 0


def unpacked(path: Path, counted: Callable[[int], object] = lambda size: None) -> Iterator[bytes]:
    """The bytes of a file, plain, gzip or zstd, told by its first bytes; in blocks.

    Args:
        counted: Called with the size of each block that was read, before it is unpacked.

    Raises:
        DataError: it is cut short or damaged, a zip, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
            file.seek(0)
            if magic == ZIP:
                raise DataError(f"{path}: a zip archive; unpack it, and give the file in it")
            start = _unpacker(magic)
            size = PLAIN_BLOCK if start is None else ZSTD_BLOCK if magic == ZSTD else BLOCK
            yield from _streams(path, iter(lambda: file.read(size), b""), start, counted)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def texts(
    path: Path, counted: Callable[[int], object] = lambda size: None, tally: Tally | None = None
) -> Iterator[bytes]:
    """The text of a file in blocks of whole lines that end in LF, without byte order marks.

    Files that were joined can have them within, and lines that end in CR LF among others: DuckDB
    stumbles over both.

    Args:
        counted: As of `unpacked`.
        tally: Counts the lines.

    Raises:
        DataError: as `unpacked`, or the text is UTF-16 or has lines that end in CR alone.
    """
    tally = tally or Tally()
    rest, first, whole_line = b"", True, True
    for block in unpacked(path, counted):
        block = rest + block if rest else block
        if first and block:
            _refuse_text(path, block)
            first = False
        end = block.rfind(b"\n") + 1
        if not end and len(block) > LONGEST_REST:
            end = len(block)  # no line of a table; it goes on as it is
        rest, block = block[end:], block[:end]
        if block:
            yield _plain(block, whole_line, tally)
            whole_line = block.endswith(b"\n")
    if rest:
        yield _plain(rest + b"\n", whole_line, tally)


def _plain(block: bytes, whole_line: bool, tally: Tally) -> bytes:
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    if MARK in block:
        block = block.replace(b"\n" + MARK, b"\n")
        block = block.removeprefix(MARK) if whole_line else block
    tally.lines += block.count(b"\n")
    if b"\n\n" in block or block.startswith(b"\n"):
        # Each line end that follows another, or opens the block, ends a blank line.
        tally.blank += len(BLANK.findall(block)) + (whole_line and block.startswith(b"\n"))
    return block


def _unpacker(magic: bytes) -> tuple[Callable[[], Any], type[Exception]] | None:
    try:
        if magic.startswith(GZIP):
            from isal import isal_zlib  # three times as fast as zlib

            return (lambda: isal_zlib.decompressobj(wbits=31)), isal_zlib.error  # type: ignore[return-value]  # its stub calls a class an instance
        if magic == ZSTD:
            import zstandard

            return (lambda: zstandard.ZstdDecompressor().decompressobj()), zstandard.ZstdError
    except ImportError as error:
        raise DataError(f"{error.name} is not installed: {HOW_TO_GET}") from None
    return None


def _streams(
    path: Path,
    blocks: Iterator[bytes],
    start: tuple[Callable[[], Any], type[Exception]] | None,
    counted: Callable,
) -> Iterator[bytes]:
    """Unpack streams that follow one another."""
    if start is None:
        for block in blocks:
            counted(len(block))
            yield block
        return
    make, fault = start
    stream = None
    for block in blocks:
        counted(len(block))
        while block:
            if stream is None:
                block = block.lstrip(b"\0")  # padding between streams and at the end
                if not block:
                    break
                stream = make()
            try:
                yield stream.decompress(block)
            except fault as error:
                raise DataError(
                    f"{path}: {error}: it is cut short or damaged; fetch it again"
                ) from None
            block = stream.unused_data
            if stream.eof:
                stream = None
    if stream is not None:
        raise DataError(f"{path}: its end is missing: it is cut short; fetch it again")


def _refuse_text(path: Path, block: bytes) -> None:
    if block.startswith(WIDE):
        raise DataError(
            f"{path}: its text is UTF-16 or UTF-32; convert it to UTF-8 first, e.g. "
            "iconv -f UTF-16 -t UTF-8 FILE > NEW"
        )
    if b"\r" in block and b"\n" not in block:
        raise DataError(
            f"{path}: its lines end in CR alone; convert it first, e.g. tr '\\r' '\\n' < FILE > NEW"
        )


def first_line(path: Path) -> bytes:
    """The first line of a text file, without its end; as much of it as is of use."""
    return next(texts(path), b"").split(b"\n", 1)[0][:LONGEST_REST]


@contextmanager
def fed(path: Path, place: Path) -> Iterator[Tally]:
    """Have the text of `path` come out of `place`, which can be read once; its lines are counted.

    The reader reads within the context; at its end comes what was wrong with the file.

    Raises:
        DataError: as `texts`.
    """
    tally = Tally()
    with _bar(path) as counted:
        if hasattr(os, "mkfifo"):
            with _through_pipe(texts(path, counted, tally), place):
                yield tally
        else:  # Windows
            with open(place, "wb") as file:
                file.writelines(texts(path, counted, tally))
            try:
                yield tally
            finally:
                place.unlink()


@contextmanager
def _bar(path: Path) -> Iterator[Callable[[int], None]]:
    """A progress bar over a file's bytes; where it cannot be shown, there is none."""
    bar = ProgressBar(
        total=path.stat().st_size,
        desc=path.name,
        unit="B",
        unit_scale=True,
        delay=1,
        leave=False,
        disable=_Bars.broken,
    )

    def counted(size: int) -> None:
        try:
            bar.update(size)
        except (OSError, ValueError):  # stderr is closed or full; the work goes on without
            _Bars.broken = bar.disable = True

    try:
        yield counted
    finally:
        bar.close()


class _Bars:
    """Whether a bar failed: tqdm then holds its lock, and another bar would wait for it."""

    broken = False


@contextmanager
def _through_pipe(blocks: Iterator[bytes], place: Path) -> Iterator[None]:
    os.mkfifo(place)
    stop = threading.Event()
    faults: list[Exception] = []
    thread = threading.Thread(target=_write, args=(blocks, place, stop, faults), daemon=True)
    thread.start()
    try:
        yield
    finally:
        # A reader that read all has seen the pipe closed. This one can have failed before it came,
        # or was stopped and holds the pipe open.
        stop.set()
        thread.join()
        place.unlink(missing_ok=True)  # Ctrl-C can have its folder removed first
        if faults:  # of more use than what the reader made of half a file
            raise faults[0]


def _write(blocks: Iterator[bytes], place: Path, stop: threading.Event, faults: list) -> None:
    try:
        pipe = _opened(place, stop)
        if pipe is None:
            return
        try:
            _widen(pipe)
            room = select.poll()
            room.register(pipe, select.POLLOUT)
            for block in blocks:
                left = memoryview(block)
                while left:
                    if stop.is_set():
                        return
                    if room.poll(WAIT * 1000):
                        left = left[os.write(pipe, left) :]
        finally:
            os.close(pipe)
    except BrokenPipeError:
        return  # the reader has what it wants, or failed and says so itself
    except Exception as fault:  # the main thread raises it: here nobody would see it
        faults.append(fault)


def _opened(place: Path, stop: threading.Event) -> int | None:
    """The pipe, once it has a reader; None if it will have none."""
    while not stop.wait(0.002):
        try:
            return os.open(place, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads yet
                raise DataError(f"{place}: {error.strerror}") from None
    return None


def _widen(pipe: int) -> None:
    """Let the pipe hold more, where the system can: fewer turns between the two threads."""
    import fcntl  # not on Windows

    try:
        fcntl.fcntl(pipe, SET_PIPE_SIZE, PIPE)
    except OSError:
        return  # not Linux, or all of the user's pipes are wide already: it goes on as it is
