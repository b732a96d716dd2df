"""Inputs that ought to stop a run, each beside a good image: the good one comes in, the bad one is refused by name.

    python scripts/bad_inputs.py                 all of them: kinds tried, kinds survived
    python scripts/bad_inputs.py --depth 1       one of each kind, in a few seconds
    python scripts/bad_inputs.py --only archives

A bad input survives when reading ends within a minute without an error of its own, the good image beside it is taken
with its pixels, and what is seen adds up: images, unusable, passed over.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import resource
import signal
import socket
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from PIL import Image, PngImagePlugin

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images.decode import decode
from gmv_qdrant.images.records import Record
from gmv_qdrant.images.sources import open_sources, read_uri

Make = Callable[[Path], None]
SECONDS = 60
_Y, _X = np.mgrid[0:48, 0:64]
PICTURE = np.stack([_X * 4, _Y * 5, (_X + _Y) * 2], axis=-1).astype(np.uint8)


def encoded(kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, kind, **options)
    return buffer.getvalue()


GOOD = encoded()


def write(name: str, data: bytes | str) -> Make:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))

    return make


def together(*makes: Make) -> Make:
    def make(folder: Path) -> None:
        for one in makes:
            one(folder)

    return make


def cut(name: str, data: bytes, depth: int) -> Iterator[tuple[str, Make]]:
    for part in range(1, depth + 1):
        yield f"{name} cut at {part}/{depth + 1}", write(name, data[: len(data) * part // (depth + 1)])


def flipped(name: str, data: bytes, depth: int) -> Iterator[tuple[str, Make]]:
    for seed in range(depth):
        damaged, draw = bytearray(data), random.Random(seed)
        for _ in range(1 + seed * 3):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        yield f"{name} with {1 + seed * 3} bytes changed", write(name, bytes(damaged))


# -- images ----------------------------------------------------------------------------------------------------------


def images(depth: int) -> Iterator[tuple[str, Make]]:
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "ICO"):
        data = encoded(kind)
        yield from cut(f"a.{kind.lower()}", data, depth)
        yield from flipped(f"a.{kind.lower()}", data, depth)


def not_images(_: int) -> Iterator[tuple[str, Make]]:
    found: dict[str, bytes] = {
        "empty.png": b"",
        "one.png": b"\x89",
        "zeros.png": bytes(4096),
        "noise.png": random.Random(0).randbytes(4096),
        "lfs.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "a.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
        "a.cr2": b"II*\0\x10\0\0\0CR\2\0" + bytes(99),
        "a.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "a.psd": b"8BPS\0\1" + bytes(99),
        "page.jpg": b"<!DOCTYPE html><html>404</html>",
        "denied.jpg": b'<?xml version="1.0"?><Error/>',
        "error.jpg": b'{"error": "gone"}',
        "video.jpg": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2",
        "document.png": b"%PDF-1.7\n",
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "archive.png": b"PK\3\4" + bytes(99),
        "array.png": b"\x93NUMPY\1\0",
        "a.jxl": b"\xff\x0a" + bytes(99),
    }
    yield from ((name, write(name, data)) for name, data in found.items())


def tiffs(_: int) -> Iterator[tuple[str, Make]]:
    grey = PICTURE[..., 0]

    def stored(samples: np.ndarray, photometric: str = "minisblack", **options: object) -> Make:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, samples, photometric=photometric, **options)
        return write("a.tif", buffer.getvalue())

    numbers = "uint16 uint32 uint64 int8 int16 int32 float16 float32 float64 complex64"
    for kind in numbers.split():
        yield f"TIFF of {kind}", stored(grey.astype(kind))
    yield "TIFF of NaN", stored(np.full((8, 8), np.nan, np.float32))
    yield "TIFF of a million", stored(grey * np.float32(1e6))
    yield "TIFF of negative numbers", stored(grey.astype(np.int16) - 200)
    yield "TIFF with 9 bands", stored(np.dstack([grey] * 9))
    yield "TIFF of a mosaic", stored(grey.astype(np.uint16), "cfa")
    yield "TIFF with white at zero", stored(grey.astype(np.uint16), "miniswhite")
    yield (
        "TIFF in planes",
        stored(np.moveaxis(PICTURE, 2, 0).astype(np.uint16) << 8, "rgb", planarconfig="separate"),
    )
    yield "TIFF in tiles of 16 bits", stored(PICTURE.astype(np.uint16) << 8, "rgb", tile=(16, 16))
    yield "TIFF of L*a*b*", stored(PICTURE, "cielab")
    yield (
        "TIFF with two alphas",
        stored(np.dstack([PICTURE, grey, grey]), "rgb", extrasamples=["unassalpha"] * 2),
    )
    yield "TIFF of CMYK in 16 bits", stored(np.dstack([PICTURE, grey]).astype(np.uint16) << 8, "separated")
    yield "TIFF of a preview alone", stored(PICTURE, "rgb", subfiletype=1)
    yield "TIFF that is big", stored(grey, bigtiff=True)
    yield "TIFF whose pages are in a circle", write("a.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0")
    yield "TIFF without pages", write("a.tif", b"II*\0\0\0\0\0")
    whole = encoded("TIFF")
    yield "TIFF that points out of itself", write("a.tif", whole[:4] + b"\xff\xff\xff\x7f" + whole[8:])


def odd_pixels(_: int) -> Iterator[tuple[str, Make]]:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    yield "PNG with a workflow", write("a.png", encoded(pnginfo=text))
    yield (
        "PNG with a huge profile",
        write("a.png", encoded(icc_profile=random.Random(1).randbytes(2_000_000))),
    )
    for size in ((1, 1), (1, 20_000), (20_000, 1)):
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, "PNG")
        yield f"PNG of {size[0]} x {size[1]}", write("a.png", buffer.getvalue())


# -- tables ----------------------------------------------------------------------------------------------------------

_TABLES: dict[str, tuple[str, bytes | str]] = {
    "nothing": ("metadata.csv", ""),
    "no files": ("metadata.csv", "id,owner\n1,Ada\n"),
    "two owners' columns": ("metadata.csv", "file_name,owner,owner\na.png,Ada,Bob\n"),
    "two rows": ("metadata.csv", "file_name,owner\na.png,Ada\na.png,Bob\n"),
    "an open quote": ("metadata.csv", 'file_name,owner\na.png,"Ada\n'),
    "an open quote in the header": ("metadata.csv", 'file_name,"owner\na.png,Ada\n'),
    "too many cells": ("metadata.csv", "file_name,owner\na.png,Ada,Bob,Cy\n"),
    "zero bytes": ("metadata.csv", b"file_name,owner\0\na.png,A\0da\n"),
    "no encoding": ("metadata.csv", b"file_name,owner\na.png,\x81\xff\n"),
    "half of UTF-16": ("metadata.csv", b"\xff\xfef\0i\0l"),
    "an owner that escapes": ("metadata.csv", "file_name,owner\na.png,\x1b[2J\n"),
    "a path out": ("metadata.csv", "file_name,owner\n../../../etc/passwd,Ada\n"),
    "an absolute path": ("metadata.csv", "file_name,owner\n/etc/passwd,Ada\n"),
    "a path with a zero byte": ("metadata.jsonl", '{"file_name": "a\\u0000.png", "owner": "Ada"}\n'),
    "a path of half a character": ("metadata.jsonl", '{"file_name": "\\ud800.png", "owner": "Ada"}\n'),
    "a line of 20 MB": ("metadata.csv", "file_name,owner\n" + "a" * 20_000_000),
    "a field of 1 MB": ("metadata.csv", 'file_name,owner\na.png,"' + "a" * 1_000_000 + '"\n'),
    "a git-lfs pointer": ("metadata.csv", "version https://git-lfs.github.com/spec/v1\nsize 1\n"),
    "an image": ("metadata.csv", GOOD),
    "JSON cut short": ("metadata.jsonl", '{"file_name": "a.png"'),
    "JSON that is no object": ("metadata.jsonl", '"a.png"\n17\n'),
    "JSON with 5,000 digits": ("metadata.jsonl", '{"file_name": "a.png", "owner": ' + "9" * 5000 + "}\n"),
    "JSON nested 100,000 deep": (
        "metadata.jsonl",
        '{"file_name": "a.png", "x": ' + "[" * 100_000 + "]" * 100_000 + "}\n",
    ),
    "JSON nested 900 deep": (
        "metadata.jsonl",
        '{"file_name": "a.png", "x": ' + "[" * 900 + "]" * 900 + "}\n",
    ),
    "JSON with half a character": ("metadata.jsonl", '{"file_name": "a.png", "owner": "\\ud800"}\n'),
    "JSON with infinities": ("metadata.jsonl", '{"file_name": "a.png", "owner": Infinity, "x": -Infinity}\n'),
    "JSON with a dict as owner": ("metadata.jsonl", '{"file_name": "a.png", "owner": {"n": "Ada"}}\n'),
    "JSON with a flag as owner": ("metadata.jsonl", '{"file_name": "a.png", "owner": false}\n'),
    "JSON with a list of lists": ("metadata.jsonl", '{"file_name": "a.png", "owner": [["Ada"]]}\n'),
    "JSON with files as numbers": ("metadata.jsonl", '{"file_name": 17, "owner": "Ada"}\n'),
    "JSON with a million names": ("metadata.json", json.dumps([{f"c{n}": n for n in range(100_000)}])),
    "junk as Parquet": ("metadata.parquet", b"PAR1junkPAR1"),
    "a row of Latin-1 among UTF-8": ("metadata.csv", b"file_name,owner\na.png,Jos\xe9\nb.png,Jos\xc3\xa9\n"),
    "a row of bytes": ("metadata.csv", b"file_name,owner\na.png,Ada\n\xff\xfe\x81,\xff\n"),
    "half of UTF-32": ("metadata.csv", "file_name,owner\na.png,Ada\n".encode("utf-32")[:-3]),
    "an owner of 5,000 characters": ("metadata.csv", "file_name,owner\na.png," + "a" * 5000),
    "10,000 columns": ("metadata.csv", "file_name" + ",x" * 10_000 + "\na.png" + ",y" * 10_000 + "\n"),
    "open quotes in 2,000 rows": ("metadata.csv", "file_name,owner\n" + 'a.png,"Ada\n' * 2_000),
    "formulas": ("metadata.csv", "file_name,owner\na.png,=cmd|'/C calc'!A0\n"),
    "an owner that turns writing round": ("metadata.csv", "file_name,owner\na.png,\u202eadA\n"),
    "a JSON line of 20 MB": (
        "metadata.jsonl",
        '{"file_name": "a.png", "owner": "' + "a" * 20_000_000 + '"}\n',
    ),
    "JSON of bytes": ("metadata.jsonl", b'{"file_name": "a.png", "owner": "\xff\xfe"}\n'),
    "an object of rows that are none": ("metadata.json", '{"a.png": 17, "b.png": null}'),
    "TSV with commas": ("metadata.tsv", "file_name,owner\na.png,Ada\n"),
    "a credential": ("metadata.csv", "file_name,url\na.png,https://me:hunter2@host/x?sig=secret\n"),
}


def tables(_: int) -> Iterator[tuple[str, Make]]:
    for what, (name, content) in _TABLES.items():
        yield f"a table: {what}", together(write("a.png", GOOD), write(name, content))


def sidecars(_: int) -> Iterator[tuple[str, Make]]:
    contents = {
        "junk": b"{",
        "a list": b"[1, 2]",
        "a number": b"17",
        "half a character": b'{"owner": "\\ud800"}',
        "5,000 digits": b'{"owner": ' + b"9" * 5000 + b"}",
        "deep": b'{"x": ' + b"[" * 100_000 + b"}",
        "of 20 MB": b'{"x": "' + b"x" * 20_000_000 + b'"}',
        "binary": bytes(range(256)),
    }
    for what, content in contents.items():
        yield f"a sidecar: {what}", together(write("a.png", GOOD), write("a.json", content))


# -- Parquet ---------------------------------------------------------------------------------------------------------


def parquets(depth: int) -> Iterator[tuple[str, Make]]:
    def stored(table: pa.Table, metadata: bytes | None = None) -> bytes:
        buffer = io.BytesIO()
        if metadata is not None:
            table = table.replace_schema_metadata({b"huggingface": metadata})
        pq.write_table(table, buffer, version="2.6")
        return buffer.getvalue()

    def column(values: list[object], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind)

    images = column([GOOD, GOOD], pa.binary())
    whole = stored(pa.table({"image": images, "owner": ["Ada", "Bob"]}))
    yield from cut("a.parquet", whole, depth)
    yield from flipped("a.parquet", whole, depth)
    invalid = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 3], np.int32)), pa.py_buffer(b"\xff\xfeB")]
    )
    far = {
        "invalid UTF-8": invalid,
        "a timestamp after 9999": column([2**62, 0], pa.timestamp("us")),
        "a timestamp of nanoseconds": column([2**62, -(2**62)], pa.timestamp("ns")),
        "a date after 9999": column([2**31 - 1, 0], pa.date32()),
        "a long duration": column([2**62, 0], pa.duration("s")),
        "an odd zone": column([0, 0], pa.timestamp("us", tz="Nowhere/Land")),
        "lists of lists": column([[["Ada"]], None], pa.list_(pa.list_(pa.string()))),
        "dicts": column([{"n": "Ada"}, None], pa.struct([("n", pa.string())])),
        "flags": column([True, False], pa.bool_()),
        "bytes": column([b"\xff", b"Bob"], pa.binary()),
        "infinity": column([float("inf"), float("nan")], pa.float64()),
    }
    for what, values in far.items():
        for name in ("owner", "taken"):
            yield (
                f"a column {name} of {what}",
                write("a.parquet", stored(pa.table({"image": images, name: values}))),
            )
    for number, metadata in enumerate(
        [
            b"",
            b"{",
            b"[]",
            b"17",
            b'{"info": 1}',
            b'{"info": {"features": [1]}}',
            b"\xff",
            b"[" * 100_000,
            b'{"info": {"features": {"owner": {"_type": "ClassLabel", "names": 3}}}}',
        ]
    ):
        table = pa.table({"image": images, "owner": ["Ada", "Bob"]})
        yield f"hub metadata, malformed {number}", write("a.parquet", stored(table, metadata))
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for path in (
        "/etc/passwd",
        "/etc/passwd::hf://x",
        "file:///etc/passwd",
        "ftp://127.0.0.1:9/x",
        "http://127.0.0.1:9/x",
        "zip://a::http://127.0.0.1:9/x",
        "../../etc/passwd",
        "hf://datasets/x/y/z.png",
    ):
        table = pa.table({"image": column([{"bytes": None, "path": path}], struct), "owner": ["eve"]})
        yield f"a path in place of bytes: {path}", write("a.parquet", stored(table))
    yield "no rows", write("a.parquet", stored(pa.table({"image": column([], pa.binary())})))
    yield "no images", write("a.parquet", stored(pa.table({"a": [1]})))
    yield "text as images", write("a.parquet", stored(pa.table({"image": ["/etc/passwd"]})))
    yield (
        "two columns of one name",
        write("a.parquet", stored(pa.Table.from_arrays([images, images], names=["image", "image"]))),
    )


# -- archives --------------------------------------------------------------------------------------------------------


def tarred(*members: tuple[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def archives(depth: int) -> Iterator[tuple[str, Make]]:
    members = [(f"{n}.png", GOOD) for n in range(4)] + [("0.json", b'{"owner": "Ada"}')]
    packed = {f"a.{mode}": tarred(*members, mode=mode and f"w:{mode}") for mode in ("gz", "bz2", "xz")}
    packed = {name.replace("a.", "a.tar."): data for name, data in packed.items()}
    packed["a.tar"] = tarred(*members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    packed["a.zip"] = buffer.getvalue()
    for name, data in packed.items():
        yield from cut(name, data, depth)
        yield from flipped(name, data, depth)
        yield f"{name} with junk behind it", write(name, data + random.Random(2).randbytes(5000))
        yield f"{name} with zeros behind it", write(name, data + bytes(5000))
    for name in ("a.tar", "a.tgz", "a.zip", "a.tar.zst", "a.parquet"):
        yield f"{name} that is empty", write(name, b"")
        yield f"{name} that is an image", write(name, GOOD)
        yield (
            f"{name} that is a git-lfs pointer",
            write(name, b"version https://git-lfs.github.com/spec/v1\n"),
        )
    yield "a tar of links", _links
    yield "a bomb, tar.gz", _tar_bomb
    yield "a bomb, zip", _zip_bomb
    yield (
        "a zip with a password",
        write("a.zip", packed["a.zip"].replace(b"PK\1\2\x14\x03\x14\0\0", b"PK\1\2\x14\x03\x14\0\1")),
    )
    yield (
        "an archive in an archive",
        write("a.tar", tarred(("inner.zip", packed["a.zip"]), ("inner.tar", packed["a.tar"]))),
    )
    for size in (1 << 33, 1 << 60):
        info = tarfile.TarInfo("a.png")
        info.size = size
        yield f"a member of {size:,} bytes", write("a.tar", info.tobuf(tarfile.GNU_FORMAT) + GOOD)
        info.type = tarfile.GNUTYPE_LONGNAME
        yield f"a name of {size:,} bytes", write("a.tar", info.tobuf(tarfile.GNU_FORMAT) + GOOD)


def _links(folder: Path) -> None:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name, kind, target in (
            ("a.png", b"2", "/etc/passwd"),
            ("b.png", b"1", "../x"),
            ("c.png", b"2", "c.png"),
            ("d.png", b"6", ""),
            ("e.png", b"3", ""),
            ("f.png", b"S", ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)


def _tar_bomb(folder: Path) -> None:
    with gzip.open(folder / "a.tar.gz", "wb", compresslevel=9) as file:
        info = tarfile.TarInfo("a.png")
        info.size = 900 << 20
        file.write(info.tobuf())
        for _ in range(900):
            file.write(bytes(1 << 20))


def _zip_bomb(folder: Path) -> None:
    with (
        zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("a.png", "w") as member,
    ):
        for _ in range(900):
            member.write(bytes(1 << 20))


# -- the file system -------------------------------------------------------------------------------------------------


def file_system(_: int) -> Iterator[tuple[str, Make]]:
    for name in ("a.png", "metadata.csv", "a.tar", "a.zip", "a.parquet", "bare", "metadata.parquet"):
        yield f"a pipe called {name}", lambda folder, name=name: os.mkfifo(folder / name)
        for target in ("/dev/zero", "/etc/passwd", "nowhere", name):
            yield (
                f"{name}, a link to {target}",
                lambda folder, name=name, target=target: os.symlink(target, folder / name),
            )
    yield "a socket", _socket
    yield "a file of 8 TB", _sparse
    yield "a link to the folder above", lambda folder: os.symlink("..", folder / "up")
    yield "a link to /", lambda folder: os.symlink("/", folder / "root")
    yield "a labyrinth", _labyrinth
    yield "a file of the year 2300", _future
    yield (
        "a name that isn't UTF-8",
        lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(GOOD),
    )
    yield "a name with a line break", write("a\nb.png", GOOD)
    yield "a name with an escape sequence", write("\x1b[2Ja.png", GOOD)
    yield (
        "system folders",
        together(*(write(f"{name}/a.png", GOOD) for name in ("@eaDir", "#recycle", "__MACOSX", ".git"))),
    )
    yield "a folder called like an image", lambda folder: (folder / "a.png").mkdir()
    yield "a folder called like a table", lambda folder: (folder / "metadata.csv").mkdir()


def _socket(folder: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)  # names of sockets are short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind("a.png")
    os.fchdir(here)
    os.close(here)


def _sparse(folder: Path) -> None:
    with open(folder / "a.png", "wb") as file:
        file.truncate(8 << 40)


def _labyrinth(folder: Path) -> None:
    for number in range(25):
        (folder / str(number)).mkdir()
        for way in ("a", "b"):
            os.symlink(f"../{(number + 1) % 25}", folder / str(number) / way)


def _future(folder: Path) -> None:
    (folder / "a.png").write_bytes(GOOD)
    os.utime(folder / "a.png", (11_000_000_000, 11_000_000_000))


KINDS = {
    "damaged images": images,
    "files that are no images": not_images,
    "TIFF": tiffs,
    "odd pixels": odd_pixels,
    "tables": tables,
    "sidecars": sidecars,
    "Parquet": parquets,
    "archives": archives,
    "file system": file_system,
}

# -- trying them -----------------------------------------------------------------------------------------------------


class TooSlow(BaseException):
    pass


def _stop(*_: object) -> None:
    raise TooSlow


def keep_time() -> None:
    signal.signal(signal.SIGALRM, _stop)


def survives(make: Make) -> str:
    """What went wrong, if anything did."""
    with tempfile.TemporaryDirectory() as root:
        given = Path(root).resolve() / "given"
        (given / "bad").mkdir(parents=True)
        (given / "good.png").write_bytes(GOOD)
        make(given / "bad")
        signal.alarm(SECONDS)
        try:
            return _tried(given)
        except TooSlow:
            return f"takes more than {SECONDS} s"
        except Exception as error:  # noqa: BLE001 - that there is none is what is tried
            return f"{type(error).__name__}: {error}"[:300]
        finally:
            signal.alarm(0)


def _tried(given: Path) -> str:
    sources = open_sources([given], owner="default")
    sources.plan()
    good, seen = False, 0
    for item in sources:
        seen += 1
        if not isinstance(item, Record):
            item.reason.encode()
            if "\n" in item.reason:
                return f"a reason of several lines: {item.reason!r}"
            continue
        item.uri.encode()
        json.dumps([item.owners, item.label, item.licence, item.attributes]).encode()
        if "hunter2" in str(item.attributes) or "secret" in str(item.attributes):
            return "a credential was kept"
        try:
            data = item.read()
            if data != read_uri(item.uri, [str(given)]):
                return f"{item.uri} doesn't lead back"
            image = decode(data)
        except ImageError:
            continue
        good |= item.uri == str(given / "good.png") and np.array_equal(np.asarray(image), PICTURE)
        if b"root:" in data[:5]:
            return f"{item.uri} was read out of what was given"
    if seen + sum(sources.census.passed.values()) != sources.census.seen:
        return "what was seen doesn't add up"
    return "" if good else "the good image beside it is lost"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=5, help="cuts and changes of each file  [default: 5]")
    parser.add_argument("--only", choices=KINDS, help="one kind")
    options = parser.parse_args(arguments)
    keep_time()
    tried: dict[str, int] = defaultdict(int)
    failed: dict[str, list[str]] = defaultdict(list)
    started = time.perf_counter()
    for kind, makes in KINDS.items():
        if options.only in (None, kind):
            for name, make in makes(options.depth):
                tried[kind] += 1
                if wrong := survives(make):
                    failed[kind].append(f"{name}: {wrong}")
    print(f"{'kind':<28}{'tried':>7}{'survived':>10}")
    for kind, count in tried.items():
        print(f"{kind:<28}{count:>7}{count - len(failed[kind]):>10}")
    bad = sum(map(len, failed.values()))
    print(f"{'all':<28}{sum(tried.values()):>7}{sum(tried.values()) - bad:>10}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{time.perf_counter() - started:.0f} s, {memory:,} MB at most")
    for kind, sentences in failed.items():
        for sentence in sentences:
            print(f"  {kind}: {sentence}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
