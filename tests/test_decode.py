"""Every way to store an image that looks the same must decode to the same pixels, or fail with a reason."""

from __future__ import annotations

import concurrent.futures
import io
import os
import resource
import struct
import uuid
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images import limits
from gmv_qdrant.images.decode import decode, thumbnail
from gmv_qdrant.images.records import NAMESPACE, content_hash, point_id
from gmv_qdrant.models.encoders.network import resize

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
    with pytest.raises(ImageError, match=r"^a PostScript document"):  # Pillow would hand it to Ghostscript
        decode(file_of(noise(), "EPS"))


def test_one_limit_on_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"^too large"):
        decode(png(20_000, 20_000, 8, 0, b""))
    rows = b"".join(b"\0" + bytes(1250) for _ in range(10_000))
    large = png(10_000, 10_000, 1, 0, rows)  # Pillow warns here, and a warning would fail this test
    assert decode(large).size == (10_000, 10_000)
    monkeypatch.setattr(limits, "PIXELS", 99)
    with pytest.raises(ImageError, match=r"^too large: 40 x 30, the limit is 99 pixels"):
        decode(file_of(noise(), "PNG"))


WORKFLOW = b"workflow\0" + b'{"nodes": []}' * 300_000
BALLAST = {
    "a large text": chunk(b"tEXt", WORKFLOW),
    "a large packed text": chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(200_000_000))),
    "a large international text": chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
    "many texts": b"".join(chunk(b"tEXt", b"note\0" + bytes([65 + n % 26]) * 900_000) for n in range(80)),
    "a large profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(os.urandom(1_600_000))),
    "a profile that is a bomb": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(500_000_000))),
    "a profile that is none": chunk(b"iCCP", b"p\0\0" + zlib.compress(b"nonsense" * 50)),
    "a wrong sum of a text": chunk(b"tEXt", b"a\0b")[:-1] + b"!",
    "a wrong sum of a time": chunk(b"tIME", bytes(7))[:-1] + b"!",
    "a wrong sum of a profile": chunk(b"iCCP", b"p\0\0x")[:-1] + b"!",
    "a wrong sum of EXIF": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0")[:-1] + b"!",
    "EXIF that is none": chunk(b"eXIf", b"nonsense"),
    "a chunk that nobody knows": chunk(b"prVt", b"?" * 100),
}


@pytest.mark.parametrize("what", BALLAST)
def test_what_has_nothing_to_do_with_pixels_costs_none(what: str) -> None:
    assert pixels(png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", BALLAST[what])) == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("kind", [b"IDAT", b"tRNS"])
def test_a_wrong_sum_of_what_makes_the_pixels_is_damage(kind: bytes) -> None:
    data = bytearray(png(2, 1, 8, 0, b"\0\x12\x34", chunk(b"tRNS", b"\0\x12")))
    data[data.index(kind) + 5] ^= 1
    with pytest.raises(ImageError, match="damaged"):
        decode(bytes(data))


def test_which_way_is_up_may_stand_in_a_text() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    lines = f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode()
    text = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(lines))
    assert decode(png(2, 1, 8, 0, b"\0\x12\x34", text)).size == (1, 2)


def matrix_profile(*, swapped: bool = False, gamma: float = 2.2, space: bytes = b"RGB ") -> bytes:
    """An ICC profile written by hand: sRGB's primaries, or red and blue exchanged."""
    red, green, blue = (0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
    if swapped:
        red, blue = blue, red

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    description = b"desc" + bytes(4) + struct.pack(">I", 5) + b"mine\0" + bytes(78)
    tags = [(b"desc", description + bytes(-len(description) % 4))]
    tags += [(b"wtpt", b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249))]
    if space == b"RGB ":
        tags += [
            (name, b"XYZ " + bytes(4) + fixed(*value))
            for name, value in ((b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue))
        ]
        tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    else:
        tags.append((b"kTRC", curve))
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags:
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    white = fixed(0.9642, 1.0, 0.8249)
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"none", 0x02400000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + white + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_colour_profiles_are_applied(kind: str) -> None:
    """Red as a profile says that exchanges it with blue is blue; as alpha goes, too."""
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind in ("JPEG", "AVIF") else {}
    image = Image.new("RGB", (16, 16), (220, 30, 30))
    as_blue = pixels(file_of(image, kind, icc_profile=matrix_profile(swapped=True), **options))[0]
    assert np.abs(np.array(as_blue) - [30, 30, 220]).max() < 12
    if kind in ("PNG", "WEBP", "TIFF"):
        transparent = Image.new("RGBA", (16, 16), (220, 30, 30, 128))
        mixed = pixels(file_of(transparent, kind, icc_profile=matrix_profile(swapped=True), **options))[0]
        assert np.abs(np.array(mixed) - [142, 142, 237]).max() < 12


def test_profiles_that_change_nothing_change_nothing() -> None:
    image = noise()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"nonsense", matrix_profile()[:200], matrix_profile(space=b"GRAY")):
        assert np.array_equal(
            np.asarray(decode(file_of(image, "PNG", icc_profile=profile))), np.asarray(image)
        )


def test_grey_and_palettes_have_profiles_too() -> None:
    grey = Image.new("L", (4, 4), 128)
    lighter = pixels(file_of(grey, "PNG", icc_profile=matrix_profile(gamma=1.0, space=b"GRAY")))[0]
    assert min(lighter) > 170
    palette = Image.new("RGB", (4, 4), (220, 30, 30)).quantize(2)
    as_blue = pixels(file_of(palette, "PNG", icc_profile=matrix_profile(swapped=True)))[0]
    assert as_blue[2] > 200 > 60 > as_blue[0]


NAMED = {
    "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "raw": b"II*\0\x10\0\0\0CR\2\0" + bytes(100),
    "svg": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "psd": b"8BPS\0\1" + bytes(50),
    "pdf": b"%PDF-1.7\n",
    "html": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "json": b'{"error": "not found"}',
    "jxl": b"\xff\x0a\xfa\x1f",
    "video": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2",
    "exr": b"v/1\x01\2\0\0\0",
    "dicom": bytes(128) + b"DICM",
    "numpy": b"\x93NUMPY\1\0",
    "archive": b"7z\xbc\xaf\x27\x1c",
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_is_no_image_is_named_as_what_it_is(kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(NAMED[kind])
    assert caught.value.kind == kind
    assert "\n" not in str(caught.value)


def test_a_bomb_is_refused_before_it_unpacks() -> None:
    """13,000 x 13,000 pixels in 0.7 MB: nothing of it is decoded."""
    row = zlib.compressobj(9)
    body = b"".join(row.compress(bytes(13_000 * 4 + 1) * 100) for _ in range(130)) + row.flush()
    header = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 6, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    assert len(bomb) < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match="as only a bomb has it") as caught:
        decode(bomb)
    assert caught.value.kind == "bomb"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_large_images_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many at once as there is room for; and none waits for ever."""
    monkeypatch.setattr(limits, "DECODED_BYTES", 40 * 30 * 8)
    files = [file_of(noise(), "PNG")] * 12
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(decode, files))) == 12


def test_no_memory_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", full)
    with pytest.raises(ImageError, match=r"x\.png: there isn't enough memory"):
        decode(file_of(noise(), "PNG"), uri="x.png")


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
