"""Each image of a source exactly once, described by its metadata, readable again from its URI."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gmv_qdrant.errors import ImageError, SourceError
from gmv_qdrant.images.decode import decode
from gmv_qdrant.images.records import Record, Unusable, content_hash
from gmv_qdrant.images.sources import open_sources, read_uri

HERE = (tempfile.gettempdir(), "memory://bucket/")
"""Where tests may read from."""


def png(shade: int = 0, size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), shade % 256).save(buffer, "PNG", comment=str(shade))
    return buffer.getvalue()


def fill(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def read_all(*paths: Path | str, owner: str | None = None) -> tuple[dict[str, Record], dict[str, str]]:
    """Records by URI and reasons by URI; no URI may come twice."""
    items = list(open_sources([str(path) for path in paths], owner=owner))
    records = {item.uri: item for item in items if isinstance(item, Record)}
    reasons = {item.uri: item.reason for item in items if isinstance(item, Unusable)}
    assert len(records) + len(reasons) == len(items)
    return records, reasons


def by_name(root: Path, owner: str | None = None) -> tuple[dict[str, Record], dict[str, str]]:
    """As `read_all`, with paths relative to ``root``."""
    records, reasons = read_all(root, owner=owner)
    return (
        {os.path.relpath(uri, root): record for uri, record in records.items()},
        {os.path.relpath(uri, root): reason for uri, reason in reasons.items()},
    )


def archive(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, data in members.items():
                file.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


# Folders


def test_a_folder_without_metadata(tmp_path: Path) -> None:
    fill(tmp_path, {"cats/1.png": png(1), "cats/2.JPG": png(2), "dogs/old/3.png": png(3), "notes.txt": "no"})
    fill(
        tmp_path,
        {"cats/.hidden.png": png(), ".git/4.png": png(), "cats/odd.xyz": "junk", "cats/bare": "junk"},
    )
    records, reasons = by_name(tmp_path, owner="Ann")
    assert not reasons
    # Unknown suffixes are tried: reading works, decoding says why not.
    assert list(records) == ["cats/1.png", "cats/2.JPG", "cats/bare", "cats/odd.xyz", "dogs/old/3.png"]
    record = records["dogs/old/3.png"]
    assert ("".join(record.owners), record.label, record.licence, record.attributes) == (
        "Ann",
        "old",
        None,
        {},
    )
    stat = (tmp_path / "dogs/old/3.png").stat()
    assert (record.size, record.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert record.read() == read_uri(record.uri, HERE) == png(3)
    with pytest.raises(ImageError, match="not an image"):
        decode(records["cats/odd.xyz"].read())
    assert open_sources([str(tmp_path)]).plan().total == 5


METADATA = [
    {"file_name": "a.png", "owner": "007", "label": "cat", "licence": "CC0", "stars": 4},
    {"file_name": "./sub//b.png", "owner": None, "label": None, "licence": None, "stars": None},
    {"file_name": "gone.png", "owner": "x", "label": "y", "licence": None, "stars": 1},
]


def write_metadata(folder: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"metadata.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join("" if v is None else f'"{v}"' for v in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *lines]) + "\n")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_in_each_form(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "odd [1] *?#"
    fill(root, {"a.png": png(1), "sub/b.png": png(2), "sub/c.png": png(3)})
    write_metadata(root, kind, METADATA)
    records, reasons = by_name(root, owner="Ann")
    assert list(records) == ["a.png", "sub/b.png", "sub/c.png"]
    a, b, c = records.values()
    stars: object = "4" if kind == "csv" else 4
    assert (*a.owners, a.label, a.licence, a.attributes) == ("007", "cat", "CC0", {"stars": stars})
    assert (*b.owners, b.label, b.licence, b.attributes) == ("Ann", None, None, {})
    assert (*c.owners, c.label) == ("Ann", None)  # no row, but the table has a label column: it governs
    assert list(reasons) == ["gone.png"]
    assert "metadata." in reasons["gone.png"]
    assert "does not exist" in reasons["gone.png"]
    json.dumps([record.attributes for record in records.values()])
    single, _ = read_all(root / "a.png")
    assert single[str(root / "a.png")] == a
    assert read_uri(a.uri, HERE) == png(1)  # a "#" in a plain path


def test_json_values_keep_their_types(tmp_path: Path) -> None:
    row = {
        "file_name": "a.png",
        "owner": 7,
        "license": "MIT",
        "day": "2020-01-01",
        "tags": ["x", 1],
        "box": {"w": 1.5},
    }
    fill(tmp_path, {"a.png": png(), "metadata.jsonl": json.dumps(row) + "\n"})
    record = by_name(tmp_path)[0]["a.png"]
    assert (*record.owners, record.licence) == ("7", "MIT")
    assert record.attributes == {"day": "2020-01-01", "tags": ["x", 1], "box": {"w": 1.5}}


def test_the_nearest_metadata_governs(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            "metadata.csv": "file_path,owner\na.png,outer\nin/b.png,shadowed\nin/deep/c.png,shadowed\nin/no.png,x\n",
            "in/metadata.csv": "file_name,owner\nb.png,inner\n",
            **{name: png(i) for i, name in enumerate(["a.png", "in/b.png", "in/deep/c.png", "other/d.png"])},
        },
    )
    records, reasons = by_name(tmp_path, owner="default")
    owners = {name: "".join(record.owners) for name, record in records.items()}
    assert owners == {
        "a.png": "outer",
        "in/b.png": "inner",
        "in/deep/c.png": "default",
        "other/d.png": "default",
    }
    assert records["in/deep/c.png"].label == "deep"  # no table here has a label column
    assert list(reasons) == ["in/no.png"]


def test_rows_about_one_file_agree_on_its_names_or_it_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": png(), "b.png": png(1)})
    fill(
        tmp_path,
        {"metadata.csv": "file_name,owner,note\na.png,Ada,one\n./a.png,Ada,two\nb.png,Ada,\nb.png,Bob,\n"},
    )
    records, reasons = by_name(tmp_path)
    assert (records["a.png"].owners, records["a.png"].attributes) == (("Ada",), {"note": "one"})
    assert list(reasons) == ["b.png"]
    assert "disagree on its owner: Ada and Bob" in reasons["b.png"]


def test_rows_that_lead_elsewhere_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, {"in/metadata.csv": "file_name\n../out.png\n.h/x.png\nno/y.png\n.z.png\nthing.txt\n"})
    fill(tmp_path, {"in/.h/x.png": png(1), "in/.z.png": png(2), "out.png": png(3), "in/thing.txt": png(4)})
    records, reasons = by_name(tmp_path)
    assert list(records) == ["out.png", "in/.z.png", "in/thing.txt"]  # what a row names is tried
    assert set(reasons) == {"in/metadata.csv#../out.png", "in/metadata.csv#.h/x.png", "in/no/y.png"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"metadata.csv": "where;owner\na.png;x\n"}, "no column file_name .its columns: where;owner"),
        ({"metadata.csv": ""}, "no column file_name"),
        ({"metadata.csv": b"\x89\0\xff"}, "neither text in UTF-8"),
        ({"metadata.jsonl": '[{"file_name": "a.png"'}, "JSON is damaged"),
        ({"metadata.parquet": "junk"}, "Parquet is damaged"),
    ],
)
def test_what_a_table_of_no_use_describes_is_refused(
    tmp_path: Path, files: dict[str, bytes | str], message: str
) -> None:
    """A whoever-it-was is never a nobody, nor the owner who is the default."""
    fill(tmp_path, {"a.png": png(), "other/b.png": png(1), **{f"other/{name}": "" for name in ()}, **files})
    (table,) = files
    for path in (tmp_path, tmp_path / "a.png"):
        records, reasons = read_all(path, owner="Ada")
        assert "a.png" not in {os.path.basename(uri) for uri in records}
        assert set(reasons) >= {str(tmp_path / "a.png"), str(tmp_path / table)}
        for reason in reasons.values():
            assert re.search(message, reason)
            assert "\n" not in reason


def test_a_row_that_cannot_be_read_may_be_about_any_image_without_one(tmp_path: Path) -> None:
    fill(tmp_path, {name: png(i) for i, name in enumerate(["a.png", "b.png", "c.png"])})
    fill(tmp_path, {"metadata.csv": 'file_name,owner\na.png,Ada\nb.png,"Bob\nc.png,"Cy"\n'})
    records, reasons = by_name(tmp_path, owner="default")
    assert {name: record.owners for name, record in records.items()} == {"a.png": ("Ada",), "c.png": ("Cy",)}
    assert set(reasons) == {"b.png", "metadata.csv#line 3"}
    assert "a quote that doesn't close" in reasons["metadata.csv#line 3"]


def test_awkward_files(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": png()})
    os.symlink("nowhere", tmp_path / "broken.png")
    os.symlink("circle.png", tmp_path / "circle.png")
    os.mkfifo(tmp_path / "pipe.png")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))).write_bytes(png())
    records, reasons = by_name(tmp_path)
    assert list(records) == ["a.png"]
    assert set(reasons) == {"broken.png", "circle.png", "pipe.png", "\\xff.png"}
    assert "rename" in reasons["\\xff.png"]
    json.dumps(reasons).encode()


def test_links_to_folders_end(tmp_path: Path) -> None:
    fill(tmp_path, {"a/1.png": png(1), "b/2.png": png(2)})
    os.symlink("..", tmp_path / "a/up")
    os.symlink("../b", tmp_path / "a/b")
    os.symlink("../a", tmp_path / "b/a")
    records, _ = by_name(tmp_path)
    assert set(records) == {"a/1.png", "b/2.png"}  # each real folder once, by its own name


def test_an_unreadable_image_is_an_image_error(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": png(), "b.png": png()})
    (record, _) = open_sources([str(tmp_path)])
    assert isinstance(record, Record)
    os.unlink(record.uri)
    with pytest.raises(ImageError, match=r"a\.png cannot be read: No such file"):
        record.read()
    with pytest.raises(ImageError, match="does not exist"):
        read_uri(record.uri, HERE)


names = st.text("ab.é # ", min_size=1, max_size=3).filter(lambda n: n.strip(".") == n)
trees = st.lists(
    st.tuples(st.lists(names, max_size=2).map(tuple), names, st.booleans()), min_size=1, max_size=12
)


@settings(max_examples=25, deadline=None)
@given(trees, st.sampled_from(["csv", "jsonl", "parquet"]), st.sets(st.integers(0, 2)))
def test_each_image_exactly_once(
    tree: list[tuple[tuple[str, ...], str, bool]], kind: str, depths: set[int]
) -> None:
    """Whatever metadata there is: each file once, by the nearest table's row; each row of no file is told."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        files = {Path(*(f"d{part}" for part in where), f"{name}.png") for where, name, _ in tree}
        for file in files:
            fill(root, {str(file): png()})
        folders = {Path(".")} | {parent for file in files for parent in file.parents}
        tables = {place for place in folders if len(place.parts) in depths}
        gone = {Path(*(f"d{p}" for p in where), f"gone {name}.png") for where, name, absent in tree if absent}
        expected, absent = {}, set()
        for place in tables:
            below = [file for file in sorted(files | gone) if file.is_relative_to(place)]
            rows = [{"file_name": str(file.relative_to(place)), "owner": f"{place}:{file}"} for file in below]
            if rows:
                write_metadata(root / place, kind, rows)
            absent |= {str(file) for file in below if file in gone}
        for file in files:
            nearest = next((place for place in file.parents if place in tables), None)
            expected[str(file)] = f"{nearest}:{file}" if nearest is not None else "default"
        items = list(open_sources([str(root)], owner="default"))
        found = [
            (os.path.relpath(item.uri, root), "".join(item.owners))
            for item in items
            if isinstance(item, Record)
        ]
        assert sorted(found) == sorted(expected.items())
        assert {os.path.relpath(i.uri, root) for i in items if isinstance(i, Unusable)} == absent
        assert items == list(open_sources([str(root)], owner="default"))


# Parquet


def hub_table(n: int) -> pa.Table:
    """As the hub's own writer leaves it: an Image column, a ClassLabel, types in the schema's metadata."""
    table = pa.table(
        {
            "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(n)],
            "label": [i % 2 if i else -1 for i in range(n)],
            "owner": [f"o{i % 3}" if i % 3 else None for i in range(n)],
            "score": [float("nan") if i == 0 else i / 2 for i in range(n)],
        }
    )
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
        "owner": {"dtype": "string", "_type": "Value"},
    }
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "odd [1]#2.parquet"
    pq.write_table(hub_table(100), path, row_group_size=40)
    records, reasons = read_all(path, owner="Ann")
    assert not reasons
    assert list(records) == [f"{path}#{row}" for row in range(100)]
    first, second, third = list(records.values())[:3]
    assert (*first.owners, first.label, first.attributes) == ("Ann", None, {})
    assert (*second.owners, second.label, second.attributes) == ("o1", "dog", {"score": 0.5})
    assert third.label == "cat"
    assert (first.size, first.mtime_ns) == (None, None)
    for row in (0, 39, 40, 77, 99):
        uri = f"{path}#{row}"
        assert read_uri(uri, HERE) == records[uri].read() == png(row)
    assert open_sources([str(path)]).plan().total == 100
    for bad in ("#100", "#x", "#-1"):
        with pytest.raises(ImageError, match="row"):
            read_uri(f"{path}{bad}", HERE)


def test_parquet_with_plain_bytes_and_gaps(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "picture": [png(1), None], "thumb": [b"x", b"y"]}), path)
    records, reasons = read_all(path)
    assert records[f"{path}#0"].attributes == {"id": 1}
    assert reasons == {f"{path}#1": "the row has no image"}
    with pytest.raises(ImageError, match="no image"):
        read_uri(f"{path}#1", HERE)


def test_a_table_cannot_send_us_to_other_files(tmp_path: Path) -> None:
    fill(tmp_path, {"secret.png": png()})
    paths = [f"file://{tmp_path}/secret.png", str(tmp_path / "secret.png"), "http://127.0.0.1:9/x.png"]
    images = pa.array(
        [{"bytes": None, "path": path} for path in paths],
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    )
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    records, reasons = read_all(tmp_path / "a.parquet")
    assert not records
    assert all("holds no image bytes, only the name" in reason for reason in reasons.values())


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "none.parquet")
    pq.write_table(
        hub_table(0).select(["label"]).append_column("image", pa.array([], pa.binary())),
        tmp_path / "0.parquet",
    )
    fill(tmp_path, {"junk.parquet": "junk"})
    for name, message in (
        ("none", "tables without images"),
        ("0", "tables without rows"),
        ("junk", "cannot be read"),
    ):
        with contextlib.nullcontext() if name == "junk" else pytest.raises(SourceError, match=message):
            open_sources([tmp_path / f"{name}.parquet"]).plan()
    # In a folder they are reported, and the rest of the folder is still used.
    fill(tmp_path, {"a.png": png()})
    records, reasons = by_name(tmp_path)
    assert list(records) == ["a.png"]
    assert set(reasons) == {"junk.parquet"}
    assert "this Parquet file can't be read" in reasons["junk.parquet"]


# Archives

SAMPLES = {
    "000.png": png(0),
    "000.json": b'{"owner": "Ann", "label": "cat", "stars": 3}',
    "001.jpg": png(1),
    "001.cls": b"7\n",
    "001.mask.png": png(255),
    "001.txt": b"a digit",
    "002.png": png(2),
    "003.json": b'{"owner": "nobody"}',
    "dogs/rex.01.png": png(3),
    "dogs/rex.02.png": png(4),
    "dogs/.hidden.png": png(5),
    "readme": b"?",
    "004.png": png(6),
    "004.json": b"{",
}


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
def test_archives(tmp_path: Path, suffix: str) -> None:
    path = archive(tmp_path / f"a#b{suffix}", SAMPLES)
    records, reasons = read_all(path, owner="default")
    described = {
        uri.removeprefix(f"{path}#"): ("".join(r.owners), r.label, r.attributes) for uri, r in records.items()
    }
    assert described == {
        **({"001.mask.png": ("default", None, {})} if suffix == ".zip" else {}),  # a zip is no WebDataset
        "readme": ("default", None, {}),  # whatever it is, decoding will say
        "000.png": ("Ann", "cat", {"stars": 3}),
        "001.jpg": ("default", "7", {"txt": "a digit"}),
        "002.png": ("default", None, {}),
        "dogs/rex.01.png": ("default", "dogs", {}),
        "dogs/rex.02.png": ("default", "dogs", {}),
    }
    assert list(reasons) == [f"{path}#004.png"]
    assert f"{path}#004.json can't be read" in reasons[f"{path}#004.png"]
    for uri, record in records.items():
        assert read_uri(uri, HERE) == record.read() == SAMPLES[uri.removeprefix(f"{path}#")]
    with pytest.raises(ImageError, match=r"no member nope\.png"):
        read_uri(f"{path}#nope.png", HERE)


@pytest.mark.parametrize("suffix", [".tar", ".tgz", ".zip"])
def test_damaged_archives(tmp_path: Path, suffix: str) -> None:
    path = archive(tmp_path / f"x{suffix}", {f"{i}.png": os.urandom(40_000) for i in range(9)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    if suffix == ".zip":  # its directory is at the end
        assert "neither a tar nor a zip, or is damaged" in read_all(path)[1][str(path)]
        at = whole.index(b"3.png") + 1000
        path.write_bytes(whole[:at] + b"!!!!" + whole[at + 4 :])
        records, reasons = read_all(path)
        assert len(records) == 8
        assert "damaged" in reasons[f"{path}#3.png"]
        return
    records, reasons = read_all(path)
    assert 2 <= len(records) <= 5
    assert re.search(r"what follows \d.png in it is lost", reasons[str(path)])
    for content in (b"junk", b""):
        path.write_bytes(content)
        assert "is damaged at its start" in read_all(path)[1][str(path)]
    archive(path, {"a.txt": b"x"})
    with pytest.raises(SourceError, match=r"holds no images.*\.txt about no image: 1"):
        open_sources([path]).plan()


def test_a_folder_of_shards(tmp_path: Path) -> None:
    archive(tmp_path / "s0.tar", {"a.png": png(1)})
    archive(tmp_path / "s1.tar", {"b.png": png(2)})
    pq.write_table(hub_table(2), tmp_path / "t.parquet")
    records, _ = read_all(tmp_path)
    assert [os.path.relpath(uri, tmp_path) for uri in records] == [
        "s0.tar#a.png", "s1.tar#b.png", "t.parquet#0", "t.parquet#1",
    ]  # fmt: skip


# The stream as a whole


def test_paths_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    fill(tmp_path, {"a/1.png": png(), "empty/notes.txt": "x", "empty/deeper/.hidden.png": png()})
    for paths, message in (
        (["a", "gone", "lost"], "gone does not exist .nor do 1 more"),
        (["empty"], "empty holds no images"),
        ([], "No path was given"),
    ):
        with pytest.raises(SourceError, match=message):
            open_sources([str(tmp_path / path) for path in paths]).plan()


def test_several_paths_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"b/2.png": png(2), "a/1.png": png(1), "a/10.png": png(3)})
    monkeypatch.chdir(tmp_path)
    uris = [item.uri for item in open_sources(["b/2.png", "./a", "b/../b"])]
    assert uris == [str(tmp_path / name) for name in ("b/2.png", "a/1.png", "a/10.png", "b/2.png")]


def test_links_are_not_resolved(tmp_path: Path) -> None:
    fill(tmp_path, {"store/1.png": png(1)})
    os.symlink("store", tmp_path / "link")
    assert list(read_all(tmp_path / "link")[0]) == [str(tmp_path / "link/1.png")]


def test_other_urls(tmp_path: Path) -> None:
    import fsspec

    fill(tmp_path, {"a.png": png(1)})
    assert read_uri(f"file://{tmp_path}/a.png", HERE) == png(1)
    with fsspec.open("memory://bucket/a.png", "wb") as file:
        file.write(png(2))
    assert read_uri("memory://bucket/a.png", HERE) == png(2)
    for url in ("memory://bucket/gone.png", f"file://{tmp_path}/gone.png", "nonsense://x/y.png"):
        with pytest.raises(ImageError):
            read_uri(url, HERE)
    for uri in ("", "no/such.png", str(tmp_path), "/gone.tar#a.png", "a\0b.png"):
        with pytest.raises(ImageError):
            read_uri(uri, HERE)


def test_a_row_may_name_columns_like_ours(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {"a.png": png(), "metadata.csv": 'file_name,name,folder,place,"a ""b\'s"""\na.png,n,f,p,q\n'},
    )
    record = by_name(tmp_path)[0]["a.png"]
    assert record.attributes == {"name": "n", "folder": "f", "place": "p", 'a "b\'s"': "q"}


def test_attributes_fit_the_ledger(tmp_path: Path) -> None:
    query = (
        "SELECT 'a.png' AS file_name, DATE '2020-01-02' AS day, 1.50::DECIMAL(4,2) AS price, 'x'::BLOB AS raw"
    )
    fill(tmp_path, {"a.png": png()})
    with duckdb.connect() as database:
        database.execute(f"COPY ({query}) TO '{tmp_path}/metadata.parquet'")
    attributes = by_name(tmp_path)[0]["a.png"].attributes
    assert json.loads(json.dumps(attributes)) == {"day": "2020-01-02", "price": "1.50"}


@pytest.mark.shared
def test_real_images_from_every_source(tmp_path: Path, shared: Path) -> None:
    """The same forty digits, as a folder, a Parquet file, a tar and a zip: the same contents."""
    data = np.load(shared / "data/images/mnist_train_10k_A.npz")
    files = {}
    for index, (image, label) in enumerate(zip(data["images"][:40], data["labels"][:40], strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files[f"{label}/{index:03}.png"] = buffer.getvalue()
    fill(tmp_path / "folder", dict(files))
    table = pa.table({"image": list(files.values()), "label": [name[0] for name in files]})
    pq.write_table(table, tmp_path / "t.parquet")
    archive(tmp_path / "t.tar", files)
    archive(tmp_path / "t.zip", files)
    expected = sorted((content_hash(data), name[0]) for name, data in files.items())
    for name in ("folder", "t.parquet", "t.tar", "t.zip"):
        records, _ = read_all(tmp_path / name)
        assert sorted((content_hash(r.read()), r.label) for r in records.values()) == expected
        assert all(decode(read_uri(uri, HERE)).size == (28, 28) for uri in records)
