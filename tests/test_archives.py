"""Archives give what the folder would give: each member once, described, and readable again from its URI."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images import archives, limits
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.images.sources import Sources, open_sources, read_uri

Members = Sequence[tuple[str, bytes]]


def image(number: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + f"picture {number}".encode() * 40


def described(owner: str) -> bytes:
    return f'{{"owner": "{owner}"}}'.encode()


def tar(members: Members, mode: str = "w", **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(members: Members, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def arrow(kind: str) -> Callable[[Members], bytes]:
    def packed(members: Members) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, kind) as stream:
            stream.write(tar(members))
        return bytes(sink.getvalue())

    return packed


def read(path: Path, owner: str | None = None) -> tuple[dict[str, Record], dict[str, Unusable], Sources]:
    """By what follows the archive's path in the URI; each URI leads back, and the count adds up."""
    sources = open_sources([path], owner=owner)
    items = list(sources)
    records = {item.uri.removeprefix(f"{path}"): item for item in items if isinstance(item, Record)}
    unusable = {item.uri.removeprefix(f"{path}"): item for item in items if isinstance(item, Unusable)}
    assert len(records) + len(unusable) == len(items)
    census = sources.census
    assert census.seen == len(items) + sum(census.passed.values())
    for record in records.values():
        assert read_uri(record.uri, [str(path)]) == record.read()
    return records, unusable, sources


MEMBERS: Members = [
    ("sunset.png", image(1)),
    ("sunset.final.png", image(2)),
    ("sunset.v2.jpg", image(3)),
    ("late.png", image(4)),
    ("UPPER.PNG", image(5)),
    ("odd.jpg_large", image(6)),
    ("bare", image(7)),
    ("sub/v22.05.png", image(8)),
    ("sub/v22.05.json", described("Ada")),
    ("sub/v22.06.png", image(9)),
    ("notes.md", b"?"),
    ("__MACOSX/._sunset.png", b"?"),
    ("sub/.DS_Store", b"?"),
    ("UPPER.JSON", described("Bob")),
    ("late.json", described("Cy")),
]

KINDS: dict[str, Callable[[Members], bytes]] = {
    "a.tar": tar,
    "a.tar.gz": lambda members: tar(members, "w:gz"),
    "a.tar.bz2": lambda members: tar(members, "w:bz2"),
    "a.tar.xz": lambda members: tar(members, "w:xz"),
    "a.tar.zst": arrow("zstd"),
    "a.tar.lz4": arrow("lz4"),
    "gzip called.tar": lambda members: tar(members, "w:gz"),
    "plain called.tgz": tar,
    "zip called.tar": zipped,
    "tar called.zip": tar,
    "without a suffix": tar,
    "old.tar": lambda members: tar(members, format=tarfile.USTAR_FORMAT),
    "gnu.tar": lambda members: tar(members, format=tarfile.GNU_FORMAT),
    "a.zip": zipped,
    "deflated.zip": lambda members: zipped(members, zipfile.ZIP_DEFLATED),
    "bz2.zip": lambda members: zipped(members, zipfile.ZIP_BZIP2),
    "lzma.zip": lambda members: zipped(members, zipfile.ZIP_LZMA),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_member_is_an_image_or_is_counted(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(KINDS[name](MEMBERS))
    records, unusable, sources = read(path)
    assert not unusable
    owners = {uri.removeprefix("#"): "".join(record.owners) for uri, record in records.items()}
    assert owners == {
        **dict.fromkeys(["sunset.png", "sunset.final.png", "sunset.v2.jpg", "odd.jpg_large", "bare"], ""),
        "late.png": "Cy",
        "UPPER.PNG": "Bob",
        "sub/v22.05.png": "Ada",
        "sub/v22.06.png": "",
    }
    assert sources.census.passed == {"descriptions": 3, ".md": 1, "hidden or system files": 2}
    contents = dict(MEMBERS)
    assert all(record.read() == contents[uri.removeprefix("#")] for uri, record in records.items())
    assert sources.plan() == sources.census


def test_a_folder_gives_the_same(tmp_path: Path) -> None:
    for name, data in MEMBERS:
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(data)
    path = tmp_path / "a.zip"
    path.write_bytes(zipped(MEMBERS))
    folder, _, _ = read(tmp_path / "f")
    archive, _, _ = read(path)
    facts = {uri.removeprefix("/"): (record.owners, record.label) for uri, record in folder.items()}
    assert facts == {uri.removeprefix("#"): (record.owners, record.label) for uri, record in archive.items()}


TABLE = b"file_name,owner\n0.png,Ada\n1.png,Bob\n"
TWO: Members = [("0.png", image(0)), ("1.png", image(1))]


@pytest.mark.parametrize(
    "pack", [tar, zipped, lambda members: tar(members, "w:gz")], ids=["tar", "zip", "tgz"]
)
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("table", ["metadata.csv", "Metadata.CSV", "metadata.parquet"])
def test_a_table_inside_is_used_wherever_it_stands(
    pack: Callable[[Members], bytes], order: int, table: str, tmp_path: Path
) -> None:
    content = TABLE
    if table.endswith("parquet"):
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(pa.table({"file_name": ["0.png", "1.png"], "owner": ["Ada", "Bob"]}), buffer)
        content = buffer.getvalue()
    members = [(f"train/{table}", content), *((f"train/{name}", data) for name, data in TWO)][::order]
    (tmp_path / "a").write_bytes(pack(members))
    records, unusable, _ = read(tmp_path / "a", owner="default")
    assert not unusable
    assert {uri: record.owners for uri, record in records.items()} == {
        "#train/0.png": ("Ada",),
        "#train/1.png": ("Bob",),
    }


@pytest.mark.parametrize("names", ["0.png", "images/0.png", "images.zip/0.png"])
def test_a_table_beside_an_archive_is_about_its_members(names: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(f"file_name,owner\n{names},Ada\n{names.replace('0', '1')},Bob\n")
    (tmp_path / "images.zip").write_bytes(zipped(TWO))
    records, unusable, _ = read(tmp_path)
    assert not unusable
    assert [record.owners for record in records.values()] == [("Ada",), ("Bob",)]


def test_a_row_is_about_one_image(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_bytes(TABLE)
    for name in ("a.zip", "b.zip"):
        (tmp_path / name).write_bytes(zipped(TWO))
    records, unusable, _ = read(tmp_path, owner="default")
    assert list(records) == ["/a.zip#0.png", "/a.zip#1.png"]
    assert all("about another image already" in item.reason for item in unusable.values())


def test_one_name_several_times_is_told_apart_by_number(tmp_path: Path) -> None:
    members = [
        ("0.png", image(1)),
        ("0.json", described("Ada")),
        ("0.png", image(2)),
        ("0.json", described("Eve")),
    ]
    for name, data in (("d.tar", tar(members)), ("d.tgz", tar(members, "w:gz"))):
        (tmp_path / name).write_bytes(data)
        records, unusable, _ = read(tmp_path / name)
        assert not unusable
        assert {uri: (record.read(), record.owners) for uri, record in records.items()} == {
            "#0.png": (image(1), ("Ada",)),
            "#0.png#2": (image(2), ("Eve",)),
        }


def test_names_of_other_times_and_systems(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    latin = [("café/0.png", image(0)), ("café/0.json", described("Ada"))]
    path.write_bytes(tar(latin, encoding="latin-1", format=tarfile.GNU_FORMAT))
    records, _, _ = read(path)
    assert {uri: (record.owners, record.label) for uri, record in records.items()} == {
        "#café/0.png": (("Ada",), None)
    }
    odd = [("d/" + "long" * 60 + "/é.png", image(1)), ("./d/2.png", image(2)), ("/abs/3.png", image(3))]
    path.write_bytes(tar([*odd, ("../up.png", image(4)), ("a#b.png", image(5))], format=tarfile.PAX_FORMAT))
    assert len(read(path)[0]) == 5
    windows = zipped([("cats\\0.png", image(0)), ("cats\\metadata.csv", TABLE)])
    (tmp_path / "w.zip").write_bytes(windows)
    records, _, _ = read(tmp_path / "w.zip")
    assert [(uri, record.owners, record.label) for uri, record in records.items()] == [
        ("#cats\\0.png", ("Ada",), "cats")
    ]
    unmarked = bytearray(
        zipped([("é.png", image(1)), ("metadata.csv", "file_name,owner\né.png,Ada\n".encode())])
    )
    for place in range(len(unmarked) - 4):  # clear the mark that says UTF-8
        if unmarked[place : place + 4] == b"PK\3\4":
            unmarked[place + 7] &= ~8
        if unmarked[place : place + 4] == b"PK\1\2":
            unmarked[place + 9] &= ~8
    (tmp_path / "u.zip").write_bytes(unmarked)
    assert [record.owners for record in read(tmp_path / "u.zip")[0].values()] == [("Ada",)]


def linked(*links: tuple[str, bytes, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("all/0.png")
        info.size = len(image(0))
        archive.addfile(info, io.BytesIO(image(0)))
        for name, kind, target in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    return buffer.getvalue()


def test_links_lead_to_members_or_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(
        linked(
            ("train/hard.png", tarfile.LNKTYPE, "all/0.png"),
            ("train/soft.png", tarfile.SYMTYPE, "../all/0.png"),
            ("train/chain.png", tarfile.SYMTYPE, "soft.png"),
            ("out.png", tarfile.SYMTYPE, "../../etc/passwd"),
            ("abs.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("circle.png", tarfile.SYMTYPE, "circle.png"),
            ("ping.png", tarfile.SYMTYPE, "pong.png"),
            ("pong.png", tarfile.SYMTYPE, "ping.png"),
            ("pipe.png", tarfile.FIFOTYPE, ""),
            ("device.png", tarfile.CHRTYPE, ""),
        )
    )
    records, unusable, _ = read(path)
    assert {uri: record.read() for uri, record in records.items()} == dict.fromkeys(
        ["#all/0.png", "#train/hard.png", "#train/soft.png", "#train/chain.png"], image(0)
    )
    assert {uri: item.kind for uri, item in unusable.items()} == {
        **dict.fromkeys(["#out.png", "#abs.png", "#circle.png", "#ping.png", "#pong.png"], "link"),
        **dict.fromkeys(["#pipe.png", "#device.png"], "not-a-file"),
    }


def test_links_in_a_zip(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("all/0.png", image(0))
        for name, target in (("in.png", "all/0.png"), ("out.png", "../../etc/passwd")):
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    (tmp_path / "a.zip").write_bytes(buffer.getvalue())
    records, unusable, _ = read(tmp_path / "a.zip")
    assert [record.read() for record in records.values()] == [image(0)] * 2
    assert {uri: item.kind for uri, item in unusable.items()} == {"#out.png": "link"}


def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    """A file called like a member's URI would be read in its place."""
    path = tmp_path / "a.tar"
    path.write_bytes(tar(TWO))
    (tmp_path / "a.tar#0.png").write_bytes(image(99))
    records, unusable, _ = read(path)
    assert list(records) == ["#1.png"]
    assert unusable["#0.png"].kind == "name"


def test_tars_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar([("0.png", image(0))]) + tar([("1.png", image(1))]))
    assert list(read(path)[0]) == ["#0.png", "#1.png"]


def test_archives_in_archives_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zipped([("0.png", image(0)), ("inner.zip", zipped(TWO)), ("inner", tar(TWO))]))
    _, _, sources = read(path)
    assert sources.census.passed == {"archives or tables in an archive": 2}
    assert any("inner.zip" in note and "and 1 more" in note for note in sources.census.notes)


# What would cost too much


def sparse_header(real: int) -> bytes:
    """A GNU header of four kilobytes that promises terabytes."""
    info = tarfile.TarInfo("0.png")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = b"S"
    block[386:398] = b"00000000000\0"
    block[398:410] = b"00000000000\0"
    block[483:495] = b"\x80" + real.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def test_bombs_are_refused_in_little_time_and_memory(tmp_path: Path) -> None:
    zeros = bytes(1 << 20)
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=9) as file:
        info = tarfile.TarInfo("0.png")
        info.size = 1 << 30
        file.write(info.tobuf())
        for _ in range(700):
            file.write(zeros)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        with archive.open("0.png", "w") as member:
            for _ in range(700):
                member.write(zeros)
        archive.writestr("1.png", image(1))
    (tmp_path / "sparse.tar").write_bytes(sparse_header(8 << 40))
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(8 << 40)
    started = time.perf_counter()
    records, unusable, _ = read(tmp_path)
    assert time.perf_counter() - started < 20
    assert list(records) == ["/bomb.zip#1.png"]
    assert {uri: item.kind for uri, item in unusable.items()} == {
        "/bomb.tar.gz": "archive",
        "/bomb.tar.gz#0.png": "bomb",
        "/bomb.zip#0.png": "bomb",
        "/sparse.tar#0.png": "not-a-file",
        "/sparse.png": "too-large",
    }


def test_an_archive_of_very_many_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ARCHIVE_MEMBERS", 3)
    (tmp_path / "a.zip").write_bytes(zipped([(f"{n}.png", image(n)) for n in range(5)]))
    (tmp_path / "a.tar").write_bytes(tar([(f"{n}.png", image(n)) for n in range(5)]))
    records, unusable, _ = read(tmp_path)
    assert len(records) == 3  # of the tar, which is read as far as allowed
    assert all("more than 3 members" in item.reason for item in unusable.values())


def test_headers_of_any_size_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    _, unusable, _ = read(tmp_path)
    assert "a header of 1.1 TB" in unusable["/a.tar"].reason


def test_a_labyrinth_of_links_ends(tmp_path: Path) -> None:
    """25 folders, each with two links into the next: 2 ** 24 paths, of 25 folders."""
    for number in range(25):
        (tmp_path / "l" / str(number)).mkdir(parents=True)
        (tmp_path / "l" / str(number) / "0.png").write_bytes(image(number))
        for way in ("a", "b"):
            os.symlink(f"../{(number + 1) % 25}", tmp_path / "l" / str(number) / way)
    started = time.perf_counter()
    records, unusable, sources = read(tmp_path / "l")
    assert time.perf_counter() - started < 5
    assert len(records) == 25
    assert not unusable
    assert sources.census.passed == {"links to folders already walked": 50}


def test_links_out_of_what_was_given_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "1.png").write_bytes(image(1))
    (tmp_path / "given").mkdir()
    os.symlink("../private/1.png", tmp_path / "given" / "file.png")
    os.symlink("../private", tmp_path / "given" / "folder")
    os.symlink("../private/1.png", tmp_path / "given" / "metadata.csv")
    records, unusable, _ = read(tmp_path / "given")
    assert not records
    assert {"/file.png", "/folder", "/metadata.csv"} == set(unusable)
    (tmp_path / "given" / "metadata.csv").unlink()
    allowed = open_sources([tmp_path / "given"], allowed=[str(tmp_path / "private")])
    assert all(isinstance(item, Record) for item in allowed)
    with pytest.raises(ImageError, match="--allow its folder"):
        read_uri(str(tmp_path / "given" / "file.png"), [str(tmp_path / "given")])


def test_a_directory_that_fills_the_memory_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped(TWO))
    at = data.rindex(b"PK\5\6")
    data[at + 12 : at + 16] = struct.pack("<L", 0xFFFFFFFE)
    (tmp_path / "a.zip").write_bytes(data)
    assert "its directory has 4.3 GB" in read(tmp_path)[1]["/a.zip"].reason


def test_reading_in_any_order_from_many_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    members = [(f"{n}.png", image(n)) for n in range(40)]
    for name in ("a.tar", "a.tar.gz", "a.zip"):
        (tmp_path / name).write_bytes(KINDS[name](members))
        uris = [f"{tmp_path / name}#{n}.png" for n in (*range(0, 40, 2), *range(39, 0, -2))]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda uri: read_uri(uri, [str(tmp_path)]), uris))
        assert found == [image(int(uri.rpartition("#")[2].removesuffix(".png"))) for uri in uris]
    assert len(archives._OPEN) <= 4
