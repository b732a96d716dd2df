"""Every way to store an image that looks the same must decode to the same pixels, or fail with a reason."""

from __future__ import annotations

import concurrent.futures
import io
import struct
import uuid
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images import decode as decode_module
from gmv_qdrant.images.decode import decode, resize, thumbnail
from gmv_qdrant.images.records import NAMESPACE, content_hash, point_id

WHITE = [255, 255, 255]


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG written by hand: Pillow can't write every depth that it reads."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def row16(*samples: int) -> bytes:
    return b"\0" + struct.pack(f">{len(samples)}H", *samples)


def pixels(data: bytes) -> list[list[int]]:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).reshape(-1, 3).tolist()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    samples = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(samples)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(2, 1, 16, 0, row16(0x1234, 0xFFFF)), [[0x12] * 3, WHITE]),
        (png(2, 1, 16, 0, row16(0x1234, 0x00FF), chunk(b"tRNS", b"\x12\x34")), [WHITE, [0, 0, 0]]),
        (png(2, 1, 16, 2, row16(0x1234, 0x8000, 0xFFFF, 1, 2, 3)), [[0x12, 0x80, 0xFF], [0, 0, 0]]),
        (png(2, 1, 16, 4, row16(0x1234, 0xFFFF, 0x1234, 0)), [[0x12] * 3, WHITE]),
        (png(2, 1, 16, 6, row16(0x1234, 0, 0, 0xFFFF, 9, 9, 9, 0)), [[0x12, 0, 0], WHITE]),
        (b"P5 2 1 65535\n" + struct.pack(">HH", 0x1234, 0xFFFF), [[0x12] * 3, WHITE]),
        (file_of(Image.fromarray(np.array([[0x1234, 0xFFFF]], np.uint16)), "TIFF"), [[0x12] * 3, WHITE]),
        (file_of(Image.fromarray(np.array([[0.5, 1.0]], np.float32)), "TIFF"), [[128] * 3, WHITE]),
        (file_of(Image.fromarray(np.array([[7.0, np.nan]], np.float32)), "TIFF"), [[7] * 3, [0, 0, 0]]),
        (file_of(Image.fromarray(np.array([[-5, 70_000]], np.int32)), "TIFF"), [[0, 0, 0], WHITE]),
    ],
    ids=[
        "grey16",
        "grey16-key",
        "rgb16",
        "la16",
        "rgba16",
        "pgm16",
        "tiff16",
        "float01",
        "float255",
        "int32",
    ],
)
def test_deep_samples_keep_their_high_byte(data: bytes, expected: list[list[int]]) -> None:
    assert pixels(data) == expected


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (file_of(Image.new("RGBA", (1, 1), (200, 10, 10, 0)), "PNG"), [WHITE]),
        (file_of(Image.new("RGBA", (1, 1), (200, 10, 10, 255)), "PNG"), [[200, 10, 10]]),
        (file_of(Image.new("LA", (1, 1), (0, 128)), "PNG"), [[127] * 3]),
        (file_of(Image.new("RGBA", (1, 1), (200, 10, 10, 0)), "WEBP", lossless=True, exact=True), [WHITE]),
        (file_of(palette_image(), "PNG", transparency=b"\x00\x80"), [WHITE, [127, 255, 127]]),
        (file_of(palette_image(), "GIF", transparency=0), [WHITE, [0, 255, 0]]),
        (file_of(palette_image(), "PNG"), [[255, 0, 0], [0, 255, 0]]),
        (png(2, 1, 8, 0, b"\0\x12\x34", chunk(b"tRNS", b"\0\x12")), [WHITE, [0x34] * 3]),
        (png(1, 1, 8, 2, b"\0\x01\x02\x03", chunk(b"tRNS", b"\0\x01\0\x02\0\x03")), [WHITE]),
        (png(2, 1, 1, 0, b"\0\x40"), [[0, 0, 0], WHITE]),
        (file_of(Image.new("1", (1, 1), 1), "TIFF"), [WHITE]),
    ],
    ids=[
        "rgba",
        "opaque",
        "la",
        "webp",
        "palette-bytes",
        "gif-key",
        "palette",
        "grey-key",
        "rgb-key",
        "bit",
        "tiff-bit",
    ],
)
def test_transparency_is_white_and_palettes_are_colours(data: bytes, expected: list[list[int]]) -> None:
    assert pixels(data) == expected


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    # Two colours above black: no two of the eight orientations look alike.
    image = Image.new("RGB", (64, 32))
    image.paste("white", (0, 0, 32, 16))
    image.paste("red", (32, 0, 64, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = file_of(image, kind, exif=exif.tobytes())
    turned = np.asarray(decode(stored)).astype(int)
    array = np.asarray(image).astype(int)
    expected = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: np.rot90(array, -1),
        7: np.rot90(array, 2).transpose(1, 0, 2),
        8: np.rot90(array),
    }[orientation]
    assert turned.shape == expected.shape
    assert np.abs(turned - expected).mean() < 6


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = file_of(noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\xff")
    assert decode(data).size == (40, 30)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    (pixel,) = {tuple(p) for p in pixels(file_of(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), kind))}
    assert np.abs(np.array(pixel) - [0, 255, 255]).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert {tuple(p) for p in pixels(data)} == {(255, 0, 0)}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "GIF", "JPEG2000"])
def test_lossless_formats_agree(kind: str) -> None:
    image = noise()
    if kind == "GIF":
        image = image.quantize(16).convert("RGB")
    assert np.array_equal(np.asarray(decode(file_of(image, kind))), np.asarray(image))


def test_metadata_does_not_survive() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    data = file_of(noise(), "JPEG", comment=b"a secret", exif=exif.tobytes())
    image = decode(data)
    assert not image.info
    small = thumbnail(image, 16)
    assert b"secret" not in small
    assert Image.open(io.BytesIO(small)).size == (16, 12)
    image.info["comment"] = b"a secret"
    assert b"secret" not in thumbnail(image, 16)
    assert decode(thumbnail(image, 500)).size == (40, 30)  # never enlarged


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000"])
def test_truncated_files_are_refused(kind: str) -> None:
    data = file_of(noise(200, 200), kind)
    for length in (len(data) // 2, 20):
        with pytest.raises(ImageError) as caught:
            decode(data[:length])
        assert "\n" not in str(caught.value)
        assert "<_io" not in str(caught.value)


def test_reasons_name_the_trouble() -> None:
    jpeg = file_of(noise(200, 200), "JPEG")
    with pytest.raises(ImageError, match=r"^truncated JPEG: "):
        decode(jpeg[: len(jpeg) // 2])
    with pytest.raises(ImageError, match=r"^empty file: 0 bytes"):
        decode(b"")
    with pytest.raises(ImageError, match=r"^not an image.*b'hello"):
        decode(b"hello world")
    with pytest.raises(ImageError, match=r"^/a/b.png: not an image"):
        decode(b"hello world", uri="/a/b.png")
    with pytest.raises(ImageError, match=r"^not an image"):  # Pillow would hand PostScript to Ghostscript
        decode(file_of(noise(), "EPS"))


def test_one_limit_on_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"^too large"):
        decode(png(20_000, 20_000, 8, 0, b""))
    rows = b"".join(b"\0" + bytes(1250) for _ in range(10_000))
    large = png(10_000, 10_000, 1, 0, rows)  # Pillow warns here, and a warning would fail this test
    assert decode(large).size == (10_000, 10_000)
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 99)
    with pytest.raises(ImageError, match=r"^too large: 40 x 30, the limit is 99 pixels"):
        decode(file_of(noise(), "PNG"))


def test_a_bomb_in_a_text_chunk_is_refused() -> None:
    text = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(200_000_000)))
    with pytest.raises(ImageError, match=r"^damaged .*too large"):
        decode(png(1, 1, 8, 0, b"\0\x07", text))


def test_threads_see_the_same_pixels() -> None:
    files = [file_of(noise(), kind) for kind in ("PNG", "TIFF", "BMP")] * 20
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda data: np.asarray(decode(data)), files))
    assert all(np.array_equal(result, results[0]) for result in results)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_damage_gives_an_image_or_an_image_error(kind: str, data: st.DataObject) -> None:
    file = bytearray(file_of(noise(8, 6), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(file))
    except ImageError:
        return
    assert image.mode == "RGB"


@pytest.mark.parametrize("resolution", [32, 64])
def test_resize_is_pillow_bicubic(resolution: int) -> None:
    image = noise(100, 50)
    expected = image.resize((resolution, resolution), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(resize(image, resolution)), np.asarray(expected))
    flat = resize(Image.fromarray(np.indices((256, 256)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB"), 8)
    assert np.abs(np.asarray(flat).astype(int) - 127).max() <= 2  # a checkerboard is grey: antialiased


def test_identity() -> None:
    digest = content_hash(b"abc")
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    # Point ids are kept in users' collections: this value must never change.
    assert uuid.uuid5(uuid.NAMESPACE_URL, "gmv-qdrant") == NAMESPACE
    assert point_id(digest) == uuid.UUID("5d97fab8-ceb2-54c1-bdad-57732672901c")


@pytest.mark.shared
def test_real_digits_round_trip(shared: Path) -> None:
    images = np.load(shared / "data/images/mnist_train_10k_A.npz")["images"][:20]
    for image in images:
        decoded = np.asarray(decode(file_of(Image.fromarray(image), "PNG")))
        assert np.array_equal(decoded, np.repeat(image[:, :, None], 3, axis=2))
