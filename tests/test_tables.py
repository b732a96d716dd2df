"""Metadata tables as people write them: used, or named with the reason why not; no owner becomes nobody in silence."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmv_qdrant.images import described
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.images.sources import Sources, open_sources
from gmv_qdrant.images.tables import read_rows

CSV, JSONL, TSV, JSON = "metadata.csv", "metadata.jsonl", "metadata.tsv", "metadata.json"
BOTH = {"0.png": "Ada", "1.png": "Bob"}
JOSE = unicodedata.normalize("NFD", "José")


def parquet(table: pa.Table | pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    if isinstance(table, pd.DataFrame):
        table.to_parquet(buffer)
    else:
        pq.write_table(table, buffer)
    return buffer.getvalue()


def rows(**columns: Any) -> bytes:
    return parquet(pa.table({"file_name": ["0.png", "1.png"], **columns}))


USED: dict[str, tuple[str, str | bytes, dict[str, str]]] = {
    "plain": (CSV, "file_name,owner\n0.png,Ada\n1.png,Bob\n", BOTH),
    "quoted newlines": (
        CSV,
        'file_name,caption,owner\n0.png,"one\ntwo, ""2""\r\n3",Ada\n1.png,x,Bob\n',
        BOTH,
    ),
    "BOM": (CSV, "\ufefffile_name,owner\n0.png,Ada\n1.png,Bob\n", BOTH),
    "BOM and quotes": (CSV, '\ufeff"file_name","owner"\r\n"0.png","Ada"\r\n"1.png","Bob"\r\n', BOTH),
    "CRLF": (CSV, "file_name,owner\r\n0.png,Ada\r\n1.png,Bob\r\n", BOTH),
    "mixed line ends": (CSV, "file_name,owner\n0.png,Ada\r\n1.png,Bob\r", BOTH),
    "CR": (CSV, "file_name,owner\r0.png,Ada\r1.png,Bob\r", BOTH),
    "UTF-16": (CSV, "file_name,owner\n0.png,Ada\n1.png,Bob\n".encode("utf-16"), BOTH),
    "UTF-16 without a sign for its order, but a BOM": (
        CSV,
        b"\xfe\xff" + "file_name\towner\n0.png\tAda\n1.png\tBob\n".encode("utf-16-be"),
        BOTH,
    ),
    "UTF-32": (CSV, "file_name,owner\n0.png,Ada\n1.png,Bob\n".encode("utf-32"), BOTH),
    "Windows-1252": (
        CSV,
        "file_name,owner\n0.png,Müller\n1.png,Bob\n".encode("latin-1"),
        {"0.png": "Müller", "1.png": "Bob"},
    ),
    "an index": (CSV, ",file_name,owner\n0,0.png,Ada\n1,1.png,Bob\n", BOTH),
    "blanks": (CSV, "file_name, owner, label\n0.png, Ada, cat\n1.png , Bob , dog\n", BOTH),
    "quotes after blanks": (
        CSV,
        'file_name, owner\n0.png, "Ada, Inc."\n1.png, Bob\n',
        {"0.png": "Ada, Inc.", "1.png": "Bob"},
    ),
    "blanks after quotes": (CSV, 'file_name,owner\n"0.png" ,"Ada" \n1.png,Bob\n', BOTH),
    "upper case": (CSV, "File_Name,OWNER\n0.png,Ada\n1.png,Bob\n", BOTH),
    "words": (CSV, "File Name,Owner\n0.png,Ada\n1.png,Bob\n", BOTH),
    "filename": (CSV, "filename,owner\n0.png,Ada\n1.png,Bob\n", BOTH),
    "image_path": (CSV, "image-path,owner\n./0.png,Ada\n./1.png,Bob\n", BOTH),
    "the owner first": (CSV, "owner,file_name\nAda,0.png\nBob,1.png\n", BOTH),
    "an empty head": (CSV, "file_name,owner,\n0.png,Ada,\n1.png,Bob,\n", BOTH),
    "blank lines": (CSV, "\nfile_name,owner\n\n0.png,Ada\n\n1.png,Bob\n\n\n", BOTH),
    "a separator at the end": (CSV, "file_name,owner\n0.png,Ada,\n1.png,Bob,,,\n", BOTH),
    "no last end of line": (CSV, "file_name,owner\n0.png,Ada\n1.png,Bob", BOTH),
    "semicolons": (CSV, "file_name;owner;price\n0.png;Ada;1,5\n1.png;Bob;2,5\n", BOTH),
    "Excel's hint": (CSV, "sep=;\r\nfile_name;owner\r\n0.png;Ada\r\n1.png;Bob\r\n", BOTH),
    "Excel's text": (
        CSV,
        'file_name,owner\n0.png,="007"\n1.png,"=""Bob"""\n',
        {"0.png": "007", "1.png": "Bob"},
    ),
    "tabs": (CSV, "file_name\towner\n0.png\tAda\n1.png\tBob\n", BOTH),
    "bars": (CSV, "file_name|owner\n0.png|Ada\n1.png|Bob\n", BOTH),
    "TSV": (TSV, "file_name\towner\n0.png\tAda, Inc.\n1.png\tBob\n", {"0.png": "Ada, Inc.", "1.png": "Bob"}),
    "Metadata.CSV": ("Metadata.CSV", "file_name,owner\n0.png,Ada\n1.png,Bob\n", BOTH),
    "an apostrophe": (
        CSV,
        'file_name,owner\n0.png,O\'Brien\n1.png,"Dwayne ""Rock"" J"\n',
        {"0.png": "O'Brien", "1.png": 'Dwayne "Rock" J'},
    ),
    "bare quotes": (
        CSV,
        'file_name,owner\n0.png,Dwayne "Rock" J\n1.png,5" print\n',
        {"0.png": 'Dwayne "Rock" J', "1.png": '5" print'},
    ),
    "a quoted word first": (
        CSV,
        'file_name,owner\n0.png,"Rock" Johnson\n1.png,Bob\n',
        {"0.png": "Rock Johnson", "1.png": "Bob"},
    ),
    "backslashes": (CSV, "file_name,owner\n.\\0.png,Ada\nsub\\..\\1.png,Bob\n", BOTH),
    "slashes": (CSV, "file_name,owner\n./0.png,Ada\n/1.png,Bob\n", BOTH),
    "absolute, of another machine": (
        CSV,
        "file_name,owner\n/home/ada/pics/0.png,Ada\n/home/ada/pics/1.png,Bob\n",
        BOTH,
    ),
    "absolute, of Windows": (CSV, "file_name,owner\nC:\\pics\\0.png,Ada\nC:\\pics\\1.png,Bob\n", BOTH),
    "file URLs": (CSV, "file_name,owner\nfile:///data/0.png,Ada\nfile:///data/1.png,Bob\n", BOTH),
    "another case": (CSV, "file_name,owner\n0.PNG,Ada\n1.Png,Bob\n", BOTH),
    "two forms of an accent": (
        CSV,
        f"file_name,owner\n0.png,{JOSE}\n1.png,José\n",
        {"0.png": "José", "1.png": "José"},
    ),
    "numbers with a gap": (CSV, "file_name,owner\n0.png,101.0\n1.png,\n", {"0.png": "101", "1.png": ""}),
    "numbers that aren't whole": (
        CSV,
        "file_name,owner\n0.png,101.0\n1.png,7.5\n",
        {"0.png": "101.0", "1.png": "7.5"},
    ),
    "leading zeros": (CSV, "file_name,owner\n0.png,007\n1.png,1e5\n", {"0.png": "007", "1.png": "1e5"}),
    "what programs write for nothing": (
        CSV,
        "file_name,owner\n0.png,nan\n1.png,NULL\n",
        {"0.png": "", "1.png": ""},
    ),
    "people with odd names": (
        CSV,
        "file_name,owner\n0.png,Nan\n1.png,Null\n",
        {"0.png": "Nan", "1.png": "Null"},
    ),
    "brackets that are a name": (
        CSV,
        "file_name,owner\n0.png,[deleted]\n1.png,(Ada)\n",
        {"0.png": "[deleted]", "1.png": "(Ada)"},
    ),
    "a list in a cell": (
        CSV,
        'file_name,owner\n0.png,"[""Ada"", ""Bob""]"\n1.png,"[\'Bob\']"\n',
        {"0.png": "Ada+Bob", "1.png": "Bob"},
    ),
    "JSON lines": (JSONL, '{"file_name":"0.png","owner":"Ada"}\n{"file_name":"1.png","owner":"Bob"}\n', BOTH),
    "JSON lines with a BOM": (
        JSONL,
        '\ufeff{"file_name":"0.png","owner":"Ada"}\r\n\r\n{"file_name":"1.png","owner":"Bob"}',
        BOTH,
    ),
    "JSON lines with NaN": (
        JSONL,
        '{"file_name":"0.png","owner":"Ada","x":NaN}\n{"file_name":"1.png","owner":NaN}\n',
        {"0.png": "Ada", "1.png": ""},
    ),
    "an array of JSON lines": (
        JSONL,
        '[{"file_name":"0.png","owner":"Ada"},\n {"file_name":"1.png","owner":"Bob"}]',
        BOTH,
    ),
    "escapes": (
        JSONL,
        '{"file_name":"0.png","owner":"Zo\\u00eb"}\n{"file_name":"1.png","owner":"\\ud83d\\ude00"}\n',
        {"0.png": "Zoë", "1.png": "😀"},
    ),
    "one row for two files": (
        JSONL,
        '{"file_names":["0.png","1.png"],"owner":"Ada"}\n',
        {"0.png": "Ada", "1.png": "Ada"},
    ),
    "owners as a list": (
        JSONL,
        '{"file_name":"0.png","owner":["Ada","Bob","Ada"]}\n{"file_name":"1.png","owners":["Bob",null]}\n',
        {"0.png": "Ada+Bob", "1.png": "Bob"},
    ),
    "empty lists": (
        JSONL,
        '{"file_name":"0.png","owner":[]}\n{"file_name":"1.png","owner":[null,""]}\n',
        {"0.png": "", "1.png": ""},
    ),
    "numbers": (
        JSONL,
        '{"file_name":"0.png","owner":7}\n{"file_name":"1.png","owner":7.0}\n',
        {"0.png": "7", "1.png": "7"},
    ),
    "JSON": (JSON, '[{"file_name":"0.png","owner":"Ada"},{"file_name":"1.png","owner":"Bob"}]', BOTH),
    "JSON by file": (JSON, '{"0.png":{"owner":"Ada"},\n"1.png":{"owner":"Bob"}}', BOTH),
    "indented JSON": (
        JSON,
        json.dumps(
            [{"file_name": "0.png", "owner": "Ada"}, {"file_name": "1.png", "owner": "Bob"}], indent=2
        ),
        BOTH,
    ),
    "ndjson": ("metadata.ndjson", '{"image":"0.png","owner":"Ada"}\n{"image":"1.png","owner":"Bob"}\n', BOTH),
    "Parquet": ("metadata.parquet", rows(owner=["Ada", "Bob"]), BOTH),
    "Parquet with lists": (
        "metadata.parquet",
        rows(owner=[["Ada", "Bob"], None]),
        {"0.png": "Ada+Bob", "1.png": ""},
    ),
    "Parquet with a gap": (
        "metadata.parquet",
        parquet(pd.DataFrame({"file_name": ["0.png", "1.png"], "owner": [101, None]})),
        {"0.png": "101", "1.png": ""},
    ),
    "Parquet with categories": (
        "metadata.parquet",
        rows(owner=pa.array(["Ada", "Bob"]).dictionary_encode()),
        BOTH,
    ),
    "Parquet with bytes": ("metadata.parquet", rows(owner=pa.array([b"Ada", b"Bob"], pa.binary())), BOTH),
}

NAMED: dict[str, tuple[str, str | bytes, str]] = {
    "two columns that disagree": (
        CSV,
        "file_name,owner,Owner\n0.png,Ada,X\n1.png,Bob,Y\n",
        "two columns owner disagree: Ada and X",
    ),
    "two rows that disagree": (
        CSV,
        "file_name,owner\n0.png,Ada\n./0.png,Bob\n1.png,\n",
        "disagree on its owner: Ada and Bob",
    ),
    "too many cells": (CSV, "file_name,owner\n0.png,Ada,Bob\n1.png,\n", "3 cells, the header 2"),
    "a quote that doesn't close": (
        CSV,
        'file_name,owner\n0.png,"Ada\n1.png,Bob\n',
        "line 2: it has a quote that doesn't close",
    ),
    "a line break in a name": (CSV, 'file_name,owner\n0.png,"Ada\nBob"\n1.png,\n', "line break"),
    "an escape sequence in a name": (
        CSV,
        "file_name,owner\n0.png,\x1b[31mAda\n1.png,\n",
        "control character",
    ),
    "a name of a whole page": (CSV, f"file_name,owner\n0.png,{'A' * 2000}\n1.png,\n", "2,000 characters"),
    "a dict": (JSONL, '{"file_name":"0.png","owner":{"name":"Ada"}}\n{"file_name":"1.png"}\n', "is a dict"),
    "a dict in a cell": (CSV, 'file_name,owner\n0.png,"{""name"": ""Ada""}"\n1.png,\n', "is a dict"),
    "a flag": (JSONL, '{"file_name":"0.png","owner":true}\n{"file_name":"1.png"}\n', "true is a flag"),
    "a flag in a cell": (CSV, "file_name,owner\n0.png,True\n1.png,\n", "True is a flag"),
    "a list in a list": (
        JSONL,
        '{"file_name":"0.png","owner":[["Ada"]]}\n{"file_name":"1.png"}\n',
        "a list in a list",
    ),
    "a dict in a list": (
        JSONL,
        '{"file_name":"0.png","owner":["Ada",{"n":1}]}\n{"file_name":"1.png"}\n',
        "is a dict",
    ),
    "a name twice in an object": (
        JSONL,
        '{"file_name":"0.png","owner":"Ada","owner":"Bob"}\n{"file_name":"1.png"}\n',
        "two columns owner disagree",
    ),
    "a number of 5,000 digits": (
        JSONL,
        '{"file_name":"0.png","owner":' + "9" * 5000 + '}\n{"file_name":"1.png"}\n',
        "digits",
    ),
    "a number of 40 digits": (
        JSONL,
        '{"file_name":"0.png","owner":' + "9" * 40 + '}\n{"file_name":"1.png"}\n',
        "30 digits",
    ),
    "half a character": (
        JSONL,
        '{"file_name":"0.png","owner":"\\ud800"}\n{"file_name":"1.png"}\n',
        "control character",
    ),
    "half a character in an attribute": (
        JSONL,
        '{"file_name":"0.png","x":"\\ud800"}\n{"file_name":"1.png"}\n',
        "half a character",
    ),
    "a line that is no JSON": (
        JSONL,
        '{"file_name":"0.png",\n{"file_name":"1.png","owner":"Bob"}\n',
        "JSON is damaged",
    ),
    "nesting": (
        JSONL,
        '{"file_name":"0.png","x":' + "[" * 100_000 + '}\n{"file_name":"1.png"}\n',
        "JSON is damaged|nested",
    ),
    "no column of files": (CSV, "id,owner\n0,Ada\n1,Bob\n", "no column file_name"),
    "nothing": (CSV, "", "no column file_name"),
    "a git-lfs pointer": (
        CSV,
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "git lfs pull",
    ),
    "binary": (CSV, b"\x00\x01\x02\x03", "neither text in UTF-8"),
    "bytes of no encoding": (CSV, b"file_name,owner\n0.png,\x81\x8d\n", "neither UTF-8 nor Windows-1252"),
    "two licences": (
        CSV,
        "file_name,licence,license\n0.png,MIT,GPL\n1.png,,\n",
        "two columns licence disagree",
    ),
    "Parquet with invalid UTF-8": (
        "metadata.parquet",
        rows(owner=pa.array([b"\xff", b"Bob"], pa.binary())),
        "bytes that aren't text",
    ),
    "damaged Parquet": ("metadata.parquet", rows(owner=["Ada", "Bob"])[:-30], "Parquet is damaged"),
}


def make(root: Path, name: str, content: str | bytes, files: tuple[str, ...] = ("0.png", "1.png")) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for file in files:
        (root / file).write_bytes(b"\x89PNG" + file.encode())
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def read(root: Path, owner: str | None = None) -> tuple[dict[str, Record], dict[str, str], Sources]:
    sources = open_sources([root], owner=owner)
    items = list(sources)
    records = {os.path.relpath(item.uri, root): item for item in items if isinstance(item, Record)}
    reasons = {os.path.relpath(item.uri, root): item.reason for item in items if isinstance(item, Unusable)}
    assert len(records) + len(reasons) == len(items)
    return records, reasons, sources


@pytest.mark.parametrize("kind", USED)
def test_used(kind: str, tmp_path: Path) -> None:
    name, content, expected = USED[kind]
    records, reasons, sources = read(make(tmp_path, name, content))
    assert not reasons
    assert {file: "+".join(record.owners) for file, record in records.items()} == expected
    assert (sources.census.seen, sources.census.passed) == (3, {"descriptions": 1})
    assert sources.plan() == sources.census  # the same is known before any image is read
    for record in records.values():
        json.dumps(record.attributes).encode()


ONE_BAD_ROW: dict[str, tuple[str, bytes, bytes]] = {
    "an owner that isn't UTF-8 among those that are": (CSV, b"1.png,J\xffrg", b"0.png,Jos\xc3\xa9"),
    "Latin-1 among UTF-8": (CSV, b"1.png,Jos\xe9", b"0.png,Jos\xc3\xa9"),
    "half a character of UTF-8": (CSV, b"1.png,Jos\xc3", b"0.png,Jos\xc3\xa9"),
    "bytes of no encoding": (CSV, b"1.png,\x81\x8d", b"0.png,Jos\xe9"),
    "binary": (CSV, b"1.png,\xff\xfe\x00\x01", b"0.png,Ada"),
    "one byte": (CSV, b"1.png,\xff", b"0.png,Ada"),
    "bytes in the file's name": (CSV, b"\xff\xfe1.png,Eve", b"0.png,Ada"),
    "a cell of 200,000 characters": (CSV, b"1.png," + b"x" * 200_000, b"0.png,Ada"),
    "a line of 20 MB": (CSV, b"1.png," + b"x" * 20_000_000, b"0.png,Ada"),
    "an owner of 2,000 characters": (CSV, b"1.png," + b"x" * 2_000, b"0.png,Ada"),
    "too many cells": (CSV, b"1.png,Eve,Bob", b"0.png,Ada"),
    "an open quote": (CSV, b'1.png,"Eve', b"0.png,Ada"),
    "an open quote, and a whole one": (CSV, b'1.png,"Eve', b'0.png,"Ada"'),
    "a flag": (CSV, b"1.png,true", b"0.png,Ada"),
    "a control character": (CSV, b"1.png,E\x1b[2Jve", b"0.png,Ada"),
    "a zero byte": (CSV, b"1.png,E\0ve", b"0.png,Ada"),
    "TSV": (TSV, b"1.png\t\xff\xfe", b"0.png\tAda"),
    "JSON that is damaged": (JSONL, b'{"file_name": "1.png", "owner": Eve}', b'{"file_name": "0.png", "owner": "Ada"}'),
    "JSON with bytes of no encoding": (JSONL, b'{"file_name": "1.png", "owner": "\xff\xfe"}',
                                       b'{"file_name": "0.png", "owner": "Ada"}'),
    "a JSON line of 20 MB": (JSONL, b'{"file_name": "1.png", "owner": "' + b"x" * 20_000_000 + b'"}',
                             b'{"file_name": "0.png", "owner": "Ada"}'),
    "JSON with a dict": (JSONL, b'{"file_name": "1.png", "owner": {"n": "Eve"}}',
                         b'{"file_name": "0.png", "owner": "Ada"}'),
    "a JSON list": (JSONL, b'["1.png", "Eve"]', b'{"file_name": "0.png", "owner": "Ada"}'),
}  # fmt: skip
"""The line that is bad, between two like the other one."""


@pytest.mark.parametrize("kind", ONE_BAD_ROW)
def test_one_bad_row_is_named_by_its_number_and_the_rest_is_used(kind: str, tmp_path: Path) -> None:
    name, bad, good = ONE_BAD_ROW[kind]
    head = {CSV: [b"file_name,owner"], TSV: [b"file_name\towner"], JSONL: []}[name]
    content = b"\n".join([*head, good, bad, good.replace(b"0.png", b"2.png"), b""])
    root = make(tmp_path, name, content, ("0.png", "1.png", "2.png"))
    records, reasons, sources = read(root, owner="default")
    assert list(records) == ["0.png", "2.png"]
    assert records["0.png"].owners == records["2.png"].owners
    assert records["0.png"].owners[0] in ("Ada", "José")
    assert any(f"line {len(head) + 2}" in uri + reason for uri, reason in reasons.items()), reasons
    assert sources.census.seen == len(records) + len(reasons) + sum(sources.census.passed.values())


def test_what_is_damaged_in_its_midst_is_used_up_to_there(tmp_path: Path) -> None:
    text = "file_name,owner\n0.png,Ada\n1.png,Eve\n".encode("utf-16")
    records, reasons, _ = read(make(tmp_path / "utf-16", CSV, text[:-1]), owner="default")
    assert [record.owners for record in records.values()] == [("Ada",)]
    assert "aren't UTF-16" in reasons["1.png"]
    table = pa.table(
        {"file_name": [f"{n}.png" for n in range(9000)], "owner": [f"{n:064}" for n in range(9000)]}
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=3000, compression="none", use_dictionary=False)
    data = bytearray(buffer.getvalue())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    names = ("0.png", "1.png", "8999.png")
    records, reasons, _ = read(
        make(tmp_path / "parquet", "metadata.parquet", bytes(data), names), owner="default"
    )
    assert {"0.png", "1.png"} <= set(records)
    assert "8999.png" in records or "8999.png" in reasons


def test_a_table_is_read_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path, CSV, "file_name,owner\n0.png,Ada\n1.png,Bob\n1.png,Bob\n9.png,x\n")
    read_tables: list[str] = []
    monkeypatch.setattr(
        described, "read_rows", lambda name, *rest: read_tables.append(name) or read_rows(name, *rest)
    )
    sources = open_sources([root])
    plan = sources.plan()
    first, second = list(sources), list(sources)
    assert first == second
    assert (read_tables, plan) == ([CSV], sources.census)
    assert any("several rows for one image" in note for note in sources.census.notes)
    (root / CSV).write_text("file_name,owner\n0.png,Eve\n1.png,Bobby\n")
    assert [item.owners for item in sources if isinstance(item, Record)] == [("Eve",), ("Bobby",)]
    assert list(pickle.loads(pickle.dumps(sources))) == list(sources)


@pytest.mark.parametrize("kind", NAMED)
def test_named(kind: str, tmp_path: Path) -> None:
    """The image that may have an owner isn't given to anybody else: neither to nobody nor to the default."""
    name, content, message = NAMED[kind]
    records, reasons, sources = read(make(tmp_path, name, content), owner="default")
    assert "0.png" not in records
    assert all("\n" not in reason for reason in reasons.values())
    assert [reason for reason in reasons.values() if re.search(message, reason)], reasons
    assert sources.census.seen == len(records) + len(reasons) + sum(sources.census.passed.values())


def test_a_spreadsheet_is_named(tmp_path: Path) -> None:
    sources = open_sources([make(tmp_path, "metadata.xlsx", b"PK\3\4")])
    assert any("save them as CSV" in note for note in sources.plan().notes)


def test_a_label_that_is_no_name_is_an_attribute(tmp_path: Path) -> None:
    """It isn't money: the image comes in, and what was decided is said."""
    lines = '{"file_name":"0.png","owner":"Ada","label":["cat","dog"]}\n{"file_name":"1.png","label":true}\n'
    records, reasons, sources = read(make(tmp_path, JSONL, lines))
    assert not reasons
    assert [(record.label, record.attributes) for record in records.values()] == [
        (None, {"label": ["cat", "dog"]}),
        (None, {"label": True}),
    ]
    assert len(sources.census.notes) == 2


def test_a_table_in_the_folder_above_is_named(tmp_path: Path) -> None:
    make(tmp_path / "cats", "x.txt", "")
    (tmp_path / CSV).write_text("file_name,owner\ncats/0.png,Ada\n")
    assert any("in the folder above" in note for note in open_sources([tmp_path / "cats"]).plan().notes)


def test_single_files_are_described_by_what_is_beside_them(tmp_path: Path) -> None:
    root = make(tmp_path, CSV, "file_name,owner\n0.png,Ada\n1.png,Bob\n")
    (root / "1.json").write_text('{"licence": "CC0"}')
    sources = open_sources([root / "1.png"], owner="default")
    (record,) = sources
    assert isinstance(record, Record)
    assert (record.owners, record.licence) == (("Bob",), "CC0")
    assert sources.census.seen == 2  # what wasn't asked for isn't counted, but for the table


def test_one_row_and_one_sidecar_that_disagree(tmp_path: Path) -> None:
    root = make(tmp_path, CSV, "file_name,owner\n0.png,Ada\n1.png,Bob\n")
    (root / "0.json").write_text('{"owner": "Eve"}')
    records, reasons, _ = read(root)
    assert list(records) == ["1.png"]
    assert "disagree on its owner: Ada and Eve" in reasons["0.png"]
