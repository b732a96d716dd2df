"""Names of files: how they are compared, printed and sorted into images, descriptions and everything else."""

from __future__ import annotations

import posixpath
import unicodedata


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


IMAGE_SUFFIXES = words("""
    .png .apng .jpg .jpeg .jpe .jfif .mpo .gif .webp .tif .tiff .bmp .dib .ppm .pgm .pbm .pnm .pfm .avif .jp2 .j2k .jpx
    .ico .heic .heif .jxl .svg .svgz .psd .psb .dng .cr2 .cr3 .nef .nrw .arw .sr2 .raf .orf .rw2 .pef .srw .raw .3fr
    .iiq .exr .hdr .tga .dds .xcf .jxr
""")
"""Names that promise an image. Those that can't be decoded are tried too, so that each is refused as what it is."""

OTHER_SUFFIXES = words("""
    .txt .json .jsonl .ndjson .csv .tsv .md .rst .html .htm .xml .xmp .yaml .yml .toml .ini .cfg .log .pdf .lock .md5
    .sha1 .sha256 .caption .cls .py .ipynb .sh .npy .npz .pt .pth .pkl .safetensors .ckpt .h5 .arrow .db .sqlite .duckdb
    .xlsx .xls .ods .docx .7z .rar .mp3 .wav .mp4 .avi .mov .mkv .webm
""")
"""Names that promise none: counted and said. A name in neither list is tried."""

SIDECAR_SUFFIXES = (".json", ".cls", ".txt", ".caption")
"""What stands beside an image under its name and describes it."""
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Of ``metadata``, a table of descriptions."""
TAR_SUFFIXES = (
    ".tar",
    ".tgz",
    ".tbz2",
    ".txz",
    ".tzst",
    ".tar.gz",
    ".tar.bz2",
    ".tar.xz",
    ".tar.zst",
    ".tar.lz4",
)
CONTAINER_SUFFIXES = (".parquet", ".zip", *TAR_SUFFIXES)

_SYSTEM = words(
    "__macosx @eadir #recycle #snapshot $recycle.bin lost+found thumbs.db desktop.ini __pycache__"
) | {"system volume information"}


def printable(path: str) -> str:
    """A path that can be printed and stored: bytes that aren't UTF-8 are written as ``\\xNN``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def key(path: str) -> str:
    """What a path is compared by: NFC, ``/`` between names, no ``.``, nothing before the first name."""
    composed = path if path.isascii() else unicodedata.normalize("NFC", path)
    return posixpath.normpath("/" + composed.replace("\\", "/")).lstrip("/")


def suffix(name: str) -> str:
    """In lower case: ``.jpg`` of ``A.JPG``."""
    return posixpath.splitext(name)[1].lower()


def without_suffix(path: str) -> str:
    """Of a container: ``a/b`` of ``a/b.tar.gz``."""
    ending = max((known for known in CONTAINER_SUFFIXES if path.lower().endswith(known)), key=len, default="")
    return path[: len(path) - len(ending)] if ending else posixpath.splitext(path)[0]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is its system's own or was hidden by its maker: ``.git``, ``@eaDir``, ``._a.png``."""
    return name.startswith(".") or name.lower() in _SYSTEM


def is_table(name: str) -> bool:
    """Whether a file of this name describes the images at and below its folder."""
    stem, ending = posixpath.splitext(name.lower())
    return stem == "metadata" and ending in TABLE_SUFFIXES


def is_container(name: str) -> bool:
    """Whether a file of this name promises to hold many images."""
    return name.lower().endswith(CONTAINER_SUFFIXES)
