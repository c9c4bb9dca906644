"""Images of every kind that the web has, sound and broken, made here by PIL or by hand."""

import io
import os
import struct
import time
import zlib

import numpy as np
import pytest

from dataset_tools.images import decoding
from dataset_tools.images.decoding import NO_MEMORY, image_folder, open_image
from recbole_tema.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="no pillow")


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode, colour, size=(16, 12)):
    return Image.new(mode, size, colour)


def png_header(width, height):
    """A PNG of these dimensions that ends where its pixels should begin."""

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    return start + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")


def png_chunk(kind, data):
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def centre(image):
    return image.getpixel((image.width // 2, image.height // 2))


def is_near(colour, expected, tolerance=6):
    return all(abs(a - b) <= tolerance for a, b in zip(colour, expected, strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_each_accepted_format_gives_its_colours_from_bytes_and_from_a_file(kind, tmp_path):
    content = encoded(flat("RGB", (200, 40, 90)), kind)
    (tmp_path / "without-a-suffix").write_bytes(content)
    for source in (content, tmp_path / "without-a-suffix", str(tmp_path / "without-a-suffix")):
        image = open_image(source)
        assert image.mode == "RGB" and image.size == (16, 12)
        assert is_near(centre(image), (200, 40, 90))


def test_cmyk_and_grey_jpegs_become_rgb():
    cmyk = open_image(encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG"))
    assert cmyk.mode == "RGB" and is_near(centre(cmyk), (255, 0, 0))
    grey = open_image(encoded(flat("L", 77), "JPEG"))
    assert grey.mode == "RGB" and is_near(centre(grey), (77, 77, 77))


def test_transparency_is_laid_on_white():
    half = open_image(encoded(flat("RGBA", (255, 0, 0, 51))))
    assert is_near(centre(half), (255, 204, 204), 2)
    clear_grey = open_image(encoded(flat("LA", (0, 0))))
    assert centre(clear_grey) == (255, 255, 255)
    palette = Image.new("P", (16, 12), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert centre(open_image(encoded(palette))) == (10, 200, 30)
    assert centre(open_image(encoded(palette, transparency=1))) == (255, 255, 255)
    assert centre(open_image(encoded(palette, "GIF", transparency=1))) == (255, 255, 255)
    keyed = open_image(encoded(flat("RGB", (1, 2, 3)), transparency=(1, 2, 3)))
    assert centre(keyed) == (255, 255, 255)


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257 * 128], [257 * 3, 65535]], np.uint16).repeat(8, 0).repeat(8, 1)
    image = open_image(encoded(Image.fromarray(values)))
    found = np.asarray(image)[::8, ::8, 0]
    assert np.abs(found.astype(int) - [[0, 128], [3, 255]]).max() <= 1


def test_one_bit_images_are_black_and_white():
    assert centre(open_image(encoded(flat("1", 1)))) == (255, 255, 255)


def test_an_animation_gives_its_first_frame():
    frames = [flat("RGB", colour) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    for kind in ("GIF", "WEBP"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert is_near(centre(open_image(content)), (255, 0, 0))


def test_exif_turns_the_image_and_broken_exif_does_not_matter():
    image = flat("RGB", (0, 0, 255), (20, 10))
    image.paste((255, 0, 0), (0, 0, 10, 10))  # left half red
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter to the right: the left side is at the top
    upright = open_image(encoded(image, "JPEG", exif=exif, quality=95))
    assert upright.size == (10, 20)
    assert is_near(upright.getpixel((5, 3)), (255, 0, 0), 30)
    assert is_near(upright.getpixel((5, 16)), (0, 0, 255), 30)
    broken = open_image(encoded(image, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff junk"))
    assert broken.size == (20, 10)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_file_is_broken(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    assert "broken" in open_image(content[: len(content) // 2])


def test_every_prefix_and_random_damage_gives_an_image_or_a_reason():
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        content = encoded(noise, kind)
        cuts = [content[:n] for n in range(0, len(content), max(1, len(content) // 60))]
        damaged = []
        for _ in range(60):
            copy = bytearray(content)
            for place in rng.integers(0, len(copy), 3):
                copy[place] = rng.integers(256)
            damaged.append(bytes(copy))
        for variant in cuts + damaged:
            found = open_image(variant)
            assert isinstance(found, Image.Image | str) and found != ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><title>404</title>", "HTML, XML or SVG text"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "HTML, XML or SVG text"),
        (b"This is a note named picture.jpg", "text, not an image"),
        ("Größe und Maß".encode() * 100, "text, not an image"),
        (b"\xff\xd8\xff\xe0 but no jpeg", "broken"),
        (bytes(range(256)), "not an image of JPEG"),
        (b"\x89PNG\r\n\x1a\n", "broken"),
    ],
)
def test_what_is_no_image_is_named(content, reason):
    assert reason in open_image(content)


def test_a_lack_of_memory_is_told_from_a_broken_image(monkeypatch):
    content = encoded(flat("RGB", (1, 2, 3)))

    def load(_):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert open_image(content) == NO_MEMORY


def test_formats_outside_the_list_do_not_reach_their_decoder():
    for kind in ("TIFF", "ICO", "PPM", "TGA", "PDF"):
        assert "not an image" in open_image(encoded(flat("RGB", (1, 2, 3)), kind))


def test_bombs_cost_neither_time_nor_memory():
    begin = time.process_time()
    assert "bomb" in open_image(png_header(50_000, 50_000))
    assert "bomb" in open_image(png_header(10_000, 10_000))  # of which PIL would only warn
    assert "9000 x 9000 pixels, more than" in open_image(png_header(9_000, 9_000))
    gif = bytearray(encoded(flat("P", 1), "GIF"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    assert "bomb" in open_image(bytes(gif))
    assert time.process_time() - begin < 1


def test_a_frame_larger_than_its_gif_is_refused():
    gif = bytearray(encoded(flat("P", 1), "GIF"))
    frame = gif.index(b",", 13)  # the image descriptor: left, top, width, height
    gif[frame + 5 : frame + 9] = struct.pack("<HH", 8_000, 8_000)
    assert "8000 x 8000 pixels, more than" in open_image(bytes(gif))


def test_bombs_in_a_colour_profile_or_a_comment_are_refused():
    content = encoded(flat("RGB", (1, 2, 3)))
    body = 8 + 25  # behind the signature and IHDR
    for kind in (b"iCCP", b"zTXt"):
        small, large = (
            content[:body] + png_chunk(kind, b"x\0\0" + zlib.compress(bytes(size))) + content[body:]
            for size in (100, 50_000_000)
        )
        assert open_image(small).size == (16, 12)
        assert "broken" in open_image(large)


def test_limits_on_bytes_sides_and_shape(tmp_path, monkeypatch):
    content = encoded(flat("RGB", (1, 2, 3), (30, 20)))
    (tmp_path / "a").write_bytes(content)
    assert "a placeholder" in open_image(encoded(flat("RGB", 0, (1, 1)), "GIF"))
    assert "one side over 50 times" in open_image(encoded(flat("RGB", 0, (10, 501))))
    assert open_image(encoded(flat("RGB", 0, (10, 500)))).size == (10, 500)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 600)
    assert open_image(content).size == (30, 20)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 599)
    assert "more than 599 in all" in open_image(content)
    monkeypatch.setattr(decoding, "MAX_BYTES", 50)
    assert open_image(content) == open_image(tmp_path / "a") == "more than 50 bytes"


def test_paths_that_are_no_files_have_reasons(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert open_image(tmp_path / "pipe.jpg") == "not a regular file"
    assert open_image(tmp_path) == "not a regular file"
    assert open_image(tmp_path / "none.jpg") == "no such file"
    assert "cannot be read" in open_image("a\0b.jpg")


def test_a_folder_gives_the_files_of_the_items_in_their_order(tmp_path):
    for name in ("b.png", "a.JPG", "a.png", "d.webp", "c.txt", "e.v1.gif", "f.jpeg", ".jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "g.jpg").mkdir()
    found = image_folder(tmp_path, ["d", "a", "c", "b", "e.v1", "f", "g", "", "missing"])
    names = {item: path.name for item, path in found.items()}
    assert names == {"d": "d.webp", "a": "a.JPG", "b": "b.png", "e.v1": "e.v1.gif", "f": "f.jpeg"}
    assert list(names) == ["d", "a", "b", "e.v1", "f"]


def test_no_id_leads_out_of_the_folder(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"x")
    inside = tmp_path / "images"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "x.jpg").write_bytes(b"x")
    (inside / "a%2Fb.jpg").write_bytes(b"x")
    (inside / "caf\u00e9.jpg").write_bytes(b"x")
    ids = ["../secret", "sub/x", "../../etc/passwd", "/etc/passwd", "..", ".", "a\0b", "a/b"]
    assert image_folder(inside, [*ids, "cafe\u0301"]) == {
        "a/b": inside / "a%2Fb.jpg",
        "cafe\u0301": inside / "caf\u00e9.jpg",
    }


def test_a_folder_that_is_none_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(DataError, match="cannot be listed as a folder of images"):
            image_folder(path, ["a"])
