"""Get the sound answers out of a damaged SQLite file.

SQLite refuses a file whose header or inner pages are damaged, though nearly all rows may be whole.
So each page is looked at by itself: the leaf pages of a table hold the rows, in the documented
format (https://www.sqlite.org/fileformat2.html, sections 1.6 and 2.1), and the checksum of each
answer says whether it is one.
"""

import logging
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dataset_tools.llm.answer_file import (
    PAGE_SIZE,
    Row,
    connect,
    decode,
    insert,
    to_cell,
    transaction,
)
from recbole_tema.data.atomic import sync_folder

log = logging.getLogger(__name__)

TABLE_LEAF = 13
LONGEST_LOCAL = PAGE_SIZE - 35  # a longer row goes on in overflow pages
SHORTEST_LOCAL = (PAGE_SIZE - 12) * 32 // 255 - 23
INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type -> length
BLOCK_ROWS = 500


def salvage(path: Path) -> Path:
    """Replace the damaged file `path` by a fresh one with its sound rows; the caller has its lock.

    The damaged file is kept beside it. Killed at any moment, `path` is the old file or the new.

    Returns:
        Where the damaged file is now.

    Raises:
        OSError, sqlite3.Error: the fresh file cannot be written.
    """
    fresh = path.with_name(f".{path.name}.salvage")
    for name in (fresh, _journal(fresh)):
        name.unlink(missing_ok=True)
    stored = 0
    connection = connect(fresh, writer=True)
    try:
        for block in _blocks(sound_rows(path)):
            with transaction(connection):
                insert(connection, block)
        stored = connection.execute("SELECT count(*) FROM answers").fetchone()[0]
    finally:
        connection.close()
    kept = _keep(path)
    if _journal(path).exists():  # it belongs to the damaged file, not to the fresh one
        os.replace(_journal(path), f"{kept}-journal")
    os.replace(fresh, path)
    _journal(fresh).unlink(missing_ok=True)
    sync_folder(path.parent)
    log.warning(
        "%s was damaged: %d sound answers were saved, others will be asked again; "
        "the damaged file is kept as %s",
        path,
        stored,
        kept.name,
    )
    return kept


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}-journal")


def _keep(path: Path) -> Path:
    """Give the damaged file a second name, or copy it where a file can have only one."""
    number = 1
    while (kept := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        os.link(path, kept)
    except OSError:
        shutil.copyfile(path, kept)
    return kept


def _blocks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    block = []
    for row in rows:
        block.append(row)
        if len(block) == BLOCK_ROWS:
            yield block
            block = []
    yield block


def sound_rows(path: Path) -> Iterator[Row]:
    """Every answer with a sound checksum in the pages of a database file, in any order."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < PAGE_SIZE:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            for start in range(0, len(pages), PAGE_SIZE):
                yield from _sound_rows(pages, start)


def _sound_rows(pages: mmap.mmap, start: int) -> Iterator[Row]:
    """The answers whose rows begin in one page."""
    page = pages[start : start + PAGE_SIZE]
    if len(page) < 8 or page[0] != TABLE_LEAF:
        return
    n_cells = int.from_bytes(page[3:5], "big")
    for place in range(8, 8 + 2 * n_cells, 2):
        cell = int.from_bytes(page[place : place + 2], "big")
        try:
            row = _row(_record(_payload(pages, page, cell)))
        except (IndexError, AttributeError):  # beyond the end, or a number in place of a text
            continue
        if row is not None:
            yield row


def _row(cells: list) -> Row | None:
    """The row that the cells of a record make; None where they are no sound answer."""
    if len(cells) != len(Row._fields):
        return None
    row = Row(*cells)
    if decode((row.key, row.kind, row.value, row.tokens_in, row.tokens_out, row.checksum)) is None:
        return None
    # The rest is for humans; damage there does not cost the answer.
    names = [name for name in Row._fields if name not in ("value", "tokens_in", "tokens_out")]
    texts = {name: (getattr(row, name) or b"").decode("utf-8", "replace") for name in names}
    return row._replace(value=to_cell(texts["kind"], row.value), **texts)


def _payload(pages: mmap.mmap, page: bytes, place: int) -> bytes:
    """The bytes of a row: those in its leaf page, then those of its chain of overflow pages."""
    length, place = _varint(page, place)
    if length > len(pages):
        raise IndexError("longer than the file")
    _, place = _varint(page, place)  # the row's number
    local = length
    if length > LONGEST_LOCAL:
        local = SHORTEST_LOCAL + (length - SHORTEST_LOCAL) % (PAGE_SIZE - 4)
        local = local if local <= LONGEST_LOCAL else SHORTEST_LOCAL
    parts = [_slice(page, place, local)]
    following = _slice(page, place + local, 4) if local < length else b""
    left = length - local
    while left > 0:
        start = (int.from_bytes(following, "big") - 1) * PAGE_SIZE
        size = min(left, PAGE_SIZE - 4)
        parts.append(_slice(pages, start + 4, size))
        following = _slice(pages, start, 4)
        left -= size
    return b"".join(parts)


def _slice(data: bytes | mmap.mmap, start: int, size: int) -> bytes:
    if start < 0 or start + size > len(data):
        raise IndexError("beyond the end")
    return data[start : start + size]


def _record(payload: bytes) -> list:
    """The cells of a row: integers, None, and bytes for both texts and blobs."""
    end, place = _varint(payload, 0)
    types, cells = [], []
    while place < end:
        kind, place = _varint(payload, place)
        types.append(kind)
    for kind in types:
        if kind in (0, 8, 9):
            cells.append({0: None, 8: 0, 9: 1}[kind])
            continue
        size = INTEGER_BYTES.get(kind, 8 if kind == 7 else (kind - 12) // 2)
        data = _slice(payload, place, size) if size >= 0 else b""
        cells.append(int.from_bytes(data, "big", signed=True) if kind in INTEGER_BYTES else data)
        place += size
    return cells


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """SQLite's variable-length integer (at most 9 bytes) at `place`, and the place behind it."""
    number = 0
    for i in range(8):
        number = number << 7 | data[place + i] & 0x7F
        if data[place + i] < 0x80:
            return number, place + i + 1
    return number << 8 | data[place + 8], place + 9
