"""What a file is, by its first bytes: an image, a container of images, or something to be named in a refusal."""

from __future__ import annotations

from typing import NamedTuple

HEAD = 1024
"""First bytes of a file that tell what it is."""


class Kind(NamedTuple):
    name: str
    """One word: ``image``, ``zip``, ``tar``, ``parquet``, or the kind of a quarantine row."""
    reason: str = ""
    """Why it isn't read, if it isn't."""


IMAGE = Kind("image")
_CONVERT = "convert it to JPEG or PNG"
_LFS = Kind("lfs-pointer", "a git-lfs pointer in place of the file: run 'git lfs pull'")
_HEIC = Kind("heic", f"a HEIC image, which isn't read: {_CONVERT}")
_VIDEO = Kind("video", "a video, not an image")

_STARTS: tuple[tuple[bytes, Kind], ...] = (
    (b"\x89PNG\r\n\x1a\n", IMAGE),
    (b"\xff\xd8\xff", IMAGE),
    (b"GIF8", IMAGE),
    (b"BM", IMAGE),
    (b"II*\0", IMAGE),
    (b"MM\0*", IMAGE),
    (b"II+\0", IMAGE),
    (b"MM\0+", IMAGE),
    (b"\0\0\1\0", IMAGE),
    (b"\0\0\0\x0cjP  \r\n\x87\n", IMAGE),
    (b"\xff\x4f\xff\x51", IMAGE),
    (b"PK\3\4", Kind("zip")),
    (b"PK\5\6", Kind("zip")),
    (b"PAR1", Kind("parquet")),
    (b"\x1f\x8b", Kind("tar")),
    (b"BZh", Kind("tar")),
    (b"\xfd7zXZ\0", Kind("tar")),
    (b"\x28\xb5\x2f\xfd", Kind("tar")),
    (b"\x04\x22\x4d\x18", Kind("tar")),
    (b"version https://git-lfs.github.com/", _LFS),
    (b"version https://hawser.github.com/", _LFS),
    (b"\xff\x0a", Kind("jxl", f"a JPEG XL image, which isn't read: {_CONVERT}")),
    (b"\0\0\0\x0cJXL ", Kind("jxl", f"a JPEG XL image, which isn't read: {_CONVERT}")),
    (b"8BPS", Kind("psd", "a Photoshop document, which isn't read: export it as PNG or TIFF")),
    (b"%PDF", Kind("pdf", "a PDF document, not an image")),
    (b"%!PS", Kind("postscript", f"a PostScript document, which isn't read: {_CONVERT}")),
    (b"\xc5\xd0\xd3\xc6", Kind("postscript", f"a PostScript document, which isn't read: {_CONVERT}")),
    (
        b"FUJIFILMCCD-RAW",
        Kind("raw", "a camera RAW image (Fujifilm), which isn't read: develop it to JPEG or TIFF"),
    ),
    (b"IIRO", Kind("raw", "a camera RAW image (Olympus), which isn't read: develop it to JPEG or TIFF")),
    (b"IIRS", Kind("raw", "a camera RAW image (Olympus), which isn't read: develop it to JPEG or TIFF")),
    (b"MMOR", Kind("raw", "a camera RAW image (Olympus), which isn't read: develop it to JPEG or TIFF")),
    (b"IIU\0", Kind("raw", "a camera RAW image (Panasonic), which isn't read: develop it to JPEG or TIFF")),
    (b"FOVb", Kind("raw", "a camera RAW image (Sigma), which isn't read: develop it to JPEG or TIFF")),
    (b"\0MRM", Kind("raw", "a camera RAW image (Minolta), which isn't read: develop it to JPEG or TIFF")),
    (b"II\xbc", Kind("jxr", f"a JPEG XR image, which isn't read: {_CONVERT}")),
    (b"v/1\x01", Kind("exr", f"an OpenEXR image, which isn't read: {_CONVERT}")),
    (b"#?RADIANCE", Kind("hdr", f"a Radiance HDR image, which isn't read: {_CONVERT}")),
    (b"SIMPLE  =", Kind("fits", f"a FITS file, which isn't read: {_CONVERT}")),
    (b"gimp xcf", Kind("xcf", "a GIMP document, which isn't read: export it as PNG")),
    (b"DDS ", Kind("dds", f"a DDS texture, which isn't read: {_CONVERT}")),
    (b"\x93NUMPY", Kind("numpy", "a numpy array, not an image file")),
    (b"\x1aE\xdf\xa3", _VIDEO),
    (b"FLV", _VIDEO),
    (b"\0\0\1\xba", _VIDEO),
    (b"7z\xbc\xaf\x27\x1c", Kind("archive", "a 7z archive, which isn't read: unpack it")),
    (b"Rar!", Kind("archive", "a RAR archive, which isn't read: unpack it")),
    (b"\x1f\x9d", Kind("archive", "a file compressed by 'compress', which isn't read: unpack it")),
    (b"SQLite format 3", Kind("database", "a database, not an image")),
    (b"\x7fELF", Kind("program", "a program, not an image")),
    (b"MZ", Kind("program", "a program, not an image")),
)

_BRANDS: dict[bytes, Kind] = {
    **dict.fromkeys([b"avif", b"avis"], IMAGE),
    **dict.fromkeys([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"heif"], _HEIC),
    b"crx ": Kind("raw", "a camera RAW image (Canon), which isn't read: develop it to JPEG or TIFF"),
}


def kind_of(head: bytes) -> Kind | None:
    """What begins with these bytes, as many as there are of `HEAD`; None when that can't be told.

    A compressed file is believed to be a tar until it was opened.
    """
    return (
        _by_structure(head)
        or next((kind for start, kind in _STARTS if head.startswith(start)), None)
        or _text(head)
    )


def _by_structure(head: bytes) -> Kind | None:
    """Of what isn't told by how it begins alone."""
    if head[:4] == b"RIFF":
        return IMAGE if head[8:12] == b"WEBP" else _VIDEO
    if head[4:8] == b"ftyp":
        return _boxed(head)
    if head[8:10] == b"CR" and head[:4] in (b"II*\0", b"MM\0*"):
        return Kind("raw", "a camera RAW image (Canon), which isn't read: develop it to JPEG or TIFF")
    if head[:1] == b"P" and head[1:2] in b"1234567fF" and head[2:3] in b" \t\r\n#":
        return IMAGE
    if head[128:132] == b"DICM":
        return Kind("dicom", f"a DICOM image, which isn't read: {_CONVERT}")
    return Kind("tar") if head[257:262] == b"ustar" or _is_old_tar(head) else None


def _boxed(head: bytes) -> Kind:
    """Of a file in boxes (ISO base media), by its brands: AVIF, HEIC, Canon's RAW, or else a video."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[place : place + 4] for place in range(16, size, 4))]
    known = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    if IMAGE in known:  # AVIF names mif1 as well
        return IMAGE
    return known[0] if known else _VIDEO


def _is_old_tar(head: bytes) -> bool:
    """A tar from before there were magic numbers: its first header adds up."""
    field = head[148:156].strip(b" \0")
    if len(head) < 512 or not head[0] or not field or not all(48 <= digit < 56 for digit in field):
        return False
    return int(field, 8) == sum(head[:148]) + 8 * 32 + sum(head[156:512])


def _text(head: bytes) -> Kind | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return Kind("html", "an HTML page, not an image: what a server answers in place of a file")
    if start.startswith(b"<svg") or (
        start.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in start
    ):
        return Kind("svg", "an SVG drawing, which isn't read: render it to PNG")
    if start.startswith((b"<?xml", b"<error")):
        return Kind("xml", "an XML document, not an image: what a server answers in place of a file")
    if start.startswith((b'{"', b"[{")):
        return Kind("json", "JSON, not an image")
    return None
