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
from dataclasses import dataclass
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
PIL_PIXELS = 89_478_485  # above, PIL itself takes an image for a bomb
NO_MEMORY = "does not fit into memory"  # the one reason that may be gone the next time
HOW_TO_GET = "pip install 'recbole-tema[features]'"


@dataclass(frozen=True)
class Limits:
    """What an image may cost.

    Attributes:
        max_bytes: Size of the file.
        max_pixels: Width times height as the header gives them, at most PIL's own 89 million.
        min_side: Shorter side; shops answer with 1 x 1 pixels for an image that is gone.
        max_ratio: Longer side over the shorter. An encoder scales the shorter side up to its own
            size: 10 x 5,000,000 pixels would become 25 thousand million.

    Raises:
        DataError: a limit is out of range.
    """

    max_bytes: int = 20 << 20
    max_pixels: int = 50_000_000
    min_side: int = 4
    max_ratio: float = 50.0

    def __post_init__(self):
        for name in ("max_bytes", "max_pixels", "min_side", "max_ratio"):
            if not getattr(self, name) >= 1:
                raise DataError(f"image limit {name} is {getattr(self, name)}; use 1 or more")
        if self.max_pixels > PIL_PIXELS:
            raise DataError(
                f"image limit max_pixels is {self.max_pixels}; use at most {PIL_PIXELS}"
            )


DEFAULT_LIMITS = Limits()


def open_image(source: str | Path | bytes, limits: Limits = DEFAULT_LIMITS) -> "Image | str":
    """The first frame of a file, or of its bytes, as RGB, turned as its EXIF says; or the reason.

    Transparency is laid on white, 16-bit grey is scaled to 8 bits, CMYK is converted.

    Raises:
        DataError: Pillow is not installed. A bad image never raises.
    """
    content = source if isinstance(source, bytes) else _read(Path(source), limits.max_bytes)
    if isinstance(content, str):
        return content
    if not content:
        return "an empty file"
    if len(content) > limits.max_bytes:
        return f"more than {limits.max_bytes} bytes"
    return _decode(content, limits)


def _read(path: Path, max_bytes: int) -> bytes | str:
    """The bytes of a regular file (a pipe would block for ever), or what is wrong with it."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        if status.st_size > max_bytes:
            return f"{status.st_size} bytes, more than {max_bytes}"
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def _decode(content: bytes, limits: Limits) -> "Image | str":
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise DataError(f"images need pillow, not installed here; run: {HOW_TO_GET}") from None
    # Filters are the process's: `catch_warnings` is not safe in the threads that decode.
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            fault = _size_fault(*image.size, limits)
            if fault:
                return fault
            image.load()
            # A GIF's first frame may be larger than the canvas in its header.
            return _size_fault(*image.size, limits) or _as_rgb(image)
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


def _size_fault(width: int, height: int, limits: Limits) -> str | None:
    if width * height > limits.max_pixels:
        return f"{width} x {height} pixels, more than {limits.max_pixels} in all"
    if min(width, height) < limits.min_side:
        return f"{width} x {height} pixels, a placeholder (a side under {limits.min_side})"
    if max(width, height) > limits.max_ratio * min(width, height):
        return f"{width} x {height} pixels, one side over {limits.max_ratio:g} times the other"
    return None


def _unidentified(content: bytes) -> str:
    """Say what the file is rather, where its first bytes tell."""
    head = content[:512].lstrip()
    if head[:1] == b"<":
        return f"HTML, XML or SVG text, not an image ({ACCEPTED})"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(head):  # not merely a character cut at the end of the head
            return f"not an image of {ACCEPTED}, or a broken one"
    return f"text, not an image ({ACCEPTED})"


def _as_rgb(image: "Image") -> "Image":
    """A loaded image as RGB of 8 bits, upright, on white."""
    from PIL import Image

    image = _upright(image)
    if image.mode.startswith("I"):  # PIL would clip 16 bits at 255, to white
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _upright(image: "Image") -> "Image":
    """Turned as EXIF says. EXIF that cannot be read, common on the web, says nothing."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the EXIF parser raises as variously as the decoders
        log.debug("EXIF ignored: %s", error)
        return image


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
    path = Path(path)
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be listed as a folder of images ({error.strerror}); name the folder "
            f"that holds ITEM_ID{'|'.join(SUFFIXES)}"
        ) from None
    found: dict[str, list[str]] = {}
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if stem and dot + suffix.lower() in SUFFIXES:
            found.setdefault(unicodedata.normalize("NFC", stem), []).append(name)
    files, doubled = {}, 0
    for item in item_ids:
        stem = unicodedata.normalize("NFC", item)
        matches = found.get(stem) or found.get(quote(stem, safe="", errors="replace"), [])
        doubled += len(matches) > 1
        if matches:
            files[item] = path / min(matches, key=_rank)
    if doubled:
        log.warning("%s: %d items have several images; %s counts first", path, doubled, SUFFIXES[0])
    return files


def _rank(name: str) -> tuple[int, str]:
    return SUFFIXES.index("." + name.rpartition(".")[2].lower()), name
