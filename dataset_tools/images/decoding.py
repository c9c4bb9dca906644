"""Images from untrusted bytes: an RGB picture, or the reason why there is none. Never an exception.

What the header says is checked before a pixel is decoded, so that an image bomb costs nothing.
"""

import io
import logging
import os
import stat
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from recbole_tema.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # PIL's decoders that foreign bytes may reach
ACCEPTED = "JPEG, PNG, WebP, GIF, BMP"
MAX_BYTES = 20 << 20
MAX_PIXELS = 50_000_000  # width times height; over 89 million, PIL itself takes it for a bomb
MIN_SIDE = 4  # shops answer with 1 x 1 pixels for an image that is gone
# An encoder scales the shorter side up to its own size: 10 x 5,000,000 pixels would become 25
# thousand million.
MAX_RATIO = 50
NO_MEMORY = "does not fit into memory"  # the one reason that may be gone the next time


def open_image(source: str | Path | bytes) -> "Image | str":
    """The first frame of a file, or of its bytes, as RGB, turned as its EXIF says; or the reason.

    Transparency is laid on white, 16-bit grey is scaled to 8 bits, CMYK is converted.
    """
    content = source if isinstance(source, bytes) else _read(Path(source))
    if isinstance(content, str):
        return content
    if not content:
        return "an empty file"
    if len(content) > MAX_BYTES:
        return f"more than {MAX_BYTES} bytes"
    return _decode(content)


def _read(path: Path) -> bytes | str:
    """The bytes of a regular file (a pipe would block for ever), or what is wrong with it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "not a regular file"
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def _decode(content: bytes) -> "Image | str":
    from PIL import Image, UnidentifiedImageError

    # Filters are the process's: `catch_warnings` is not safe in the threads that decode.
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            fault = _size_fault(*image.size)
            if fault:
                return fault
            image.load()
            # A GIF's first frame may be larger than the canvas in its header.
            return _size_fault(*image.size) or _as_rgb(image)
    except UnidentifiedImageError:
        return _unidentified(content)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"an image bomb ({_one_line(error)})"
    except MemoryError:
        return NO_MEMORY
    # PIL's decoders raise whatever the foreign bytes lead them to: struct.error, SyntaxError,
    # IndexError, zlib.error, ... One image must not end the run.
    except Exception as error:
        return f"a broken image ({_one_line(error) or type(error).__name__})"


def _size_fault(width: int, height: int) -> str | None:
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels, more than {MAX_PIXELS} in all"
    if min(width, height) < MIN_SIDE:
        return f"{width} x {height} pixels, a placeholder (a side under {MIN_SIDE})"
    if max(width, height) > MAX_RATIO * min(width, height):
        return f"{width} x {height} pixels, one side over {MAX_RATIO} times the other"
    return None


def _unidentified(content: bytes) -> str:
    """Say what the file is rather, where its first bytes tell."""
    head = content[:512].lstrip()
    if head.startswith(b"<"):
        return f"HTML, XML or SVG text, not an image ({ACCEPTED})"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(head):  # not merely a character cut at the end of the head
            return f"not an image of {ACCEPTED}, or a broken one"
    return f"text, not an image ({ACCEPTED})"


def _as_rgb(image: "Image") -> "Image":
    """A loaded image as RGB of 8 bits, upright, on white."""
    from PIL import Image, ImageOps

    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # EXIF that cannot be read, common on the web, says nothing
        log.debug("EXIF ignored: %s", error)
    if image.mode.startswith("I"):  # PIL would clip 16 bits at 255, to white
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def image_folder(path: str | Path, item_ids: Iterable[str]) -> dict[str, Path]:
    """Files ITEM_ID.(jpg|jpeg|png|webp|gif) of a folder, by item, in the order of the ids.

    The folder is listed and its names are matched, so that no path is ever made from an id. An id
    with a slash or another character that a file name cannot hold is found percent-encoded
    (`a/b` as `a%2Fb.jpg`). Of several files for one item the first suffix counts.

    Raises:
        DataError: no such folder, or it cannot be listed.
    """
    try:
        with os.scandir(path) as entries:
            names = [os.path.splitext(entry.name) for entry in entries if entry.is_file()]
    except OSError as error:
        raise DataError(
            f"{path}: cannot be listed as a folder of images ({error.strerror}); name the folder "
            f"that holds ITEM_ID{'|'.join(SUFFIXES)}"
        ) from None
    found: dict[str, list[str]] = {}
    images = [(stem, suffix) for stem, suffix in names if suffix.lower() in SUFFIXES]
    for stem, suffix in sorted(images, key=lambda name: (SUFFIXES.index(name[1].lower()), name)):
        found.setdefault(unicodedata.normalize("NFC", stem), []).append(stem + suffix)
    files, doubled = {}, 0
    for item in item_ids:
        stem = unicodedata.normalize("NFC", item)
        matches = found.get(stem) or found.get(quote(stem, safe="", errors="replace"), [])
        doubled += len(matches) > 1
        if matches:
            files[item] = Path(path) / matches[0]
    if doubled:
        log.warning("%s: %d items have several images; %s counts first", path, doubled, SUFFIXES[0])
    return files
