import errno
import json
import os
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import glacier_fastai
from glacier_fastai.errors import DataError
from glacier_fastai.reading import (
    opened,
    parse_json,
    parse_xml,
    parse_yaml,
    read_array,
    read_arrays,
    read_checkpoint,
    read_json,
    read_table,
    read_tensors,
    read_text,
    read_yaml,
)

PARSERS = (
    r"json\.loads?\(|yaml\.\w*load|np\.load\(|torch\.load\(|safe_open|load_file\(|tarfile\.open|zipfile\.ZipFile|read_csv|"
    r"fromfile|(?<!folder)\.read_text\(|pickle\.load|lib\.format\.(read|open)_|ElementTree\.fromstring"
)
DOORS = {
    "reading.py",
    "data/download.py",  # what is in a tar, front to end
    "data/scenes/archive.py",  # what is in a zip with a product
    "data/scenes/raster.py",  # a VRT, before GDAL sees it
    "data/sources/vectors.py",  # what is in a zip, for GDAL
    "memory.py",  # what the system says of itself
    "predict/solution.py",  # the submission stands alone
}


def test_no_parser_is_called_outside_of_the_door():
    package = Path(glacier_fastai.__file__).parent
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in package.rglob("*.py")
        if path.relative_to(package).as_posix() not in DOORS
        for line in path.read_text().splitlines()
        if re.search(PARSERS, line) and not re.match(r"\s*(>>>|\.\.\.) ", line)
    ]
    assert not found


# files


READERS = {
    "text": lambda p: read_text(p, DataError),
    "json": lambda p: read_json(p, DataError),
    "yaml": lambda p: read_yaml(p, DataError),
    "table": lambda p: read_table(p, DataError, {"a": int}),
    "array": lambda p: read_array(p, DataError, "uint8"),
    "arrays": lambda p: read_arrays(p, DataError),
    "tensors": lambda p: read_tensors(p, DataError),
    "checkpoint": lambda p: read_checkpoint(p, DataError),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_only_regular_files_are_read(tmp_path, read):
    with pytest.raises(DataError, match=r"gone: no such file"):
        read(tmp_path / "gone")
    with pytest.raises(DataError, match="a folder"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="a pipe or a device"):
        read(tmp_path / "pipe")
    with pytest.raises(DataError, match="a pipe or a device"):
        read("/dev/zero")
    (tmp_path / "file").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(DataError, match=r"link: a link, which may lead anywhere"):
        read(tmp_path / "link")
    for name in ("a\0b", "\ud800"):
        with pytest.raises(DataError, match="cannot be read"):
            read(name)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\xff\xfe\xfd", b"PK\x03\x04", b"\x93NUMPY\x01\0\xff\xff", b"{" * 5000]
)
def test_what_is_of_no_kind_is_refused_in_one_line(tmp_path, read, content):
    (tmp_path / "f").write_bytes(content)
    try:
        read(tmp_path / "f")
    except DataError as err:
        assert "\n" not in str(err) and str(err).startswith(f"{tmp_path / 'f'}: ") and len(str(err)) <= 400


def test_a_link_that_the_user_names_is_followed(tmp_path):
    (tmp_path / "file.json").write_text('{"a": 1}')
    (tmp_path / "link.json").symlink_to("file.json")
    assert read_json(tmp_path / "link.json", DataError, link=True) == {"a": 1}


def test_sizes_are_known_before_anything_is_read(tmp_path):
    with open(tmp_path / "big", "wb") as file:
        file.truncate(2**40)
    for name in ("text", "json", "yaml", "table"):
        with pytest.raises(DataError, match=r"of 1,099,511,627,776 bytes; such a file has at most"):
            READERS[name](tmp_path / "big")
    with pytest.raises(DataError, match="at most 10"), opened(tmp_path / "big", DataError, 10):
        pass


# JSON and YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[" * 70 + "]" * 70, "nested 64 deep"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": 1e999}', "a is inf, no finite number"),
        (f'{{"a": {2**63}}}', "a is a whole number of 64 bits"),
        (f'{{"a": {"9" * 5000}}}', "not JSON"),
        ('{"a": "\\ud800"}', "surrogates"),
        ('{"\\ud800": 1}', "surrogates"),
        (b'"\xff"', "not JSON"),
        ('{"a": 1, "b": {"c": 2, "c": 3}}', r"\('c' stands twice\)"),
        ("[" + "[]," * 2**23 + "[]]", "more than 8,388,608 values"),
        (b"[" + b'{"":0},' * 2**23 + b"{}]", "more than 8,388,608 values"),
    ],
)
def test_json_that_no_file_of_ours_holds_is_refused(text, message):
    with pytest.raises(DataError, match=rf"^a\.json: .*{message}"):
        parse_json(text, "a.json", DataError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("a: 1\nb: {c: 1, c: 2}", r"not YAML \('c' stands twice\)"),
        ("a: " + "x" * 2**17, "more than 131,072 characters"),
        ("[" * 2000 + "]" * 2000, "not YAML"),
        ("&a [*a]", "nested 64 deep, or in itself"),
        ("&a {b: *a}", "nested 64 deep, or in itself"),
        ("a: !!int x", "not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML"),
        ("a: !!binary aGk=", "a is a bytes; use text"),
        ("a: !!set {b}", "a is a set; use text"),
        ("a: .nan", "a is nan, no finite number"),
        (f"a: {10**30}", "a whole number of 100 bits"),
        ('a: "\\ud800"', "surrogates"),
        ("? [1, 2]\n: 3", "not YAML"),
        ("a: &a {x: 1}\n? !!merge k\n: [*a, *a]", "not YAML"),
    ],
)
def test_yaml_that_no_file_of_ours_holds_is_refused(text, message):
    with pytest.raises(DataError, match=rf"^a\.yaml: .*{message}"):
        parse_yaml(text, "a.yaml", DataError)


def test_an_alias_counts_every_time():
    lines = [f"x0: &x0 [{', '.join('a' * 10)}]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(DataError, match="more than 20,000 values"):
        parse_yaml("\n".join(lines), "a.yaml", DataError)
    assert parse_yaml("a: &a [1]\nb: *a", "a.yaml", DataError) == {"a": [1], "b": [1]}


def test_numbers_to_base_60_are_text():
    long = "1" + ":1" * 60_000
    assert parse_yaml(f"a: 1:30\nb: 1:30.5\nc: {long}", "a.yaml", DataError) == {"a": "1:30", "b": "1:30.5", "c": long}


def test_dates_are_text_and_merges_are_keys():
    assert parse_yaml("about: 2026-02-30\nlr: 1e-4\n<<: 1", "a.yaml", DataError) == {
        "about": "2026-02-30",
        "lr": 1e-4,
        "<<": 1,
    }


# XML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not XML"),
        ("<a>", "not XML"),
        ("<a>&b;</a>", "not XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "declares types or entities"),
        ('<!DOCTYPE a SYSTEM "http://x.org/a.dtd"><a/>', "declares types or entities"),
        ("<a>" * 100 + "</a>" * 100, "nested 64 deep"),
    ],
)
def test_xml_that_is_no_metadata_is_refused(text, message):
    with pytest.raises(DataError, match=rf"^a\.xml: .*{message}"):
        parse_xml(text, "a.xml", DataError)
    assert parse_xml("<?xml version='1.0'?><a><!-- b --><c d='1'/></a>", "a.xml", DataError)[0].get("d") == "1"


# tables


def test_tables_are_of_the_kinds_that_are_wanted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufeffid,n,x,more\n01,3,0.5,NA\n")
    table = read_table(path, DataError, {"id": str, "n": int, "x": float})
    assert table.to_dict("records") == [{"id": "01", "n": 3, "x": 0.5, "more": "NA"}]
    for text, message in {
        "id,n\n1,2\n": "no column x",
        "id,n,x\n1,2.5,1\n": "column n holds what is no int",
        "id,n,x\n1,,1\n": "column n holds what is no int",
        f"id,n,x\n1,{10**30},1\n": "column n holds what is no int",
        "id,n,x\n1,2,inf\n": "column x holds what is no float",
        "id,n,x\n1,2,a\n": "column x holds what is no float",
        "": "no table in CSV",
        'id,n,x\n1,2,"3': "no table in CSV",
        "id,n,x\n1,2,3,4": "no table in CSV, or damaged.*header",
        "id,n,x,n\n1,2,3,4": r"no table in CSV, or damaged \('n' stands twice\)",
        "id,n,x,,\n1,2,3,4,5": r"\('' stands twice\)",
        "id,n,x" + ",y" * 2**15: "its first line has 65,536 bytes or more",
        "id,n,x\n" + "\0" * 100: "zeros where text should be",
        "id,n,x\n" + "\n" * 2**23: "more than 8,388,608 values",
    }.items():
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_table(path, DataError, {"id": str, "n": int, "x": float})


# arrays


def test_an_array_is_what_it_was_written_as(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(6, dtype="uint16").reshape(2, 3))
    assert read_array(path, DataError, "uint16", (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read_array(path, DataError, ("uint8", "uint16")).shape == (2, 3)
    for dtype, shape in (("uint8", (2, 3)), ("uint16", (3, 2)), ("uint16", (6,))):
        with pytest.raises(DataError, match=r"wanted is uint.*; do it again"):
            read_array(path, DataError, dtype, shape, "do it again")
    data = path.read_bytes()
    for other in (data[:-1], data + b"\0", data.replace(b"<u2", b">u2"), data.replace(b"(2, 3)", b"(2,-3)")):
        path.write_bytes(other)
        with pytest.raises(DataError, match="damaged"):
            read_array(path, DataError, "uint16", (2, 3))


def test_arrays_of_objects_are_never_made(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object))
    with pytest.raises(DataError, match="values are object; wanted are numbers"):
        read_array(tmp_path / "a.npy", DataError, "uint8")
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    with pytest.raises(DataError, match="values are object; wanted are numbers"):
        read_arrays(tmp_path / "a.npz", DataError)


def test_an_archive_of_arrays(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(3), b=np.ones((2, 2), "uint8"))
    assert {k: v.tolist() for k, v in read_arrays(tmp_path / "a.npz", DataError).items()} == {
        "a": [0, 1, 2],
        "b": [[1, 1], [1, 1]],
    }


# tensors


def test_a_header_of_safetensors_is_bounded(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2)}, path, {"b": "c"})
    metadata, tensors = read_tensors(path, DataError)
    assert (metadata, tensors["a"].tolist()) == ({"b": "c"}, [1.0, 1.0])
    path.write_bytes(struct.pack("<Q", 2**40) + path.read_bytes()[8:])
    with pytest.raises(DataError, match="a header of 1,099,511,627,776 bytes"):
        read_tensors(path, DataError)


def test_shapes_and_memory_are_looked_at_before_tensors_are_read(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.safetensors", []
    header = json.dumps({"a": {"dtype": "F16", "shape": [2**9, 2**20], "data_offsets": [0, 2**30]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + 2**30)
    monkeypatch.setattr("glacier_fastai.memory.available", lambda: 2**31)
    with pytest.raises(DataError, match=r"a\.safetensors: its values need 3.2 GB of memory, but 2.1 GB are free"):
        read_tensors(path, DataError, check=lambda *about: seen.append(about))
    assert seen == [({}, {"a": (2**9, 2**20)})]


def test_what_says_nothing_of_a_file_is_not_said_of_it(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("{}")

    def short(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("json.loads", short)
    with pytest.raises(DataError, match=r"a\.json: cannot be read now \(Too many open files\); try again"):
        read_json(tmp_path / "a.json", DataError)


def test_a_checkpoint_takes_no_more_than_its_file(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.arange(3)}, path)
    assert read_checkpoint(path, DataError)["a"].tolist() == [0, 1, 2]
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data + bytes(2**20) if name.endswith("/data/0") else data)
    with pytest.raises(DataError, match="larger than torch writes it"):
        read_checkpoint(path, DataError)


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R", "builtins bytearray is not of a checkpoint"),
        (b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R", "torch FloatTensor is not of a checkpoint"),
        (b"(ibuiltins\nbytearray\n", "builtins bytearray is not of a checkpoint"),
        (b"]" * 2**22, "larger than torch writes it"),
    ],
)
def test_a_checkpoint_makes_nothing_but_tensors(tmp_path, pickled, message):
    path = tmp_path / "a.ckpt"
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, b"\x80\x02" + pickled + b"." if name.endswith(".pkl") else data)
    with pytest.raises(DataError, match=message):
        read_checkpoint(path, DataError)


def test_a_bit_that_has_turned_is_found(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.arange(1000)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(500, 503).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is not as it was written"):
        read_checkpoint(path, DataError)


def test_bundles_hold_no_json_but_plain_data():
    assert parse_json(json.dumps({"a": [1, 2.5, None, True, "é"]}), "a", DataError) == {"a": [1, 2.5, None, True, "é"]}


def test_a_checkpoint_is_no_larger_in_memory_than_in_its_file(tmp_path):
    bomb, path = ["a"] * 9, tmp_path / "a.ckpt"
    for _ in range(9):
        bomb = [bomb] * 9
    itself = {}
    itself["a"] = itself
    refused = {
        "more than 16,777,216 values": bomb,
        "nested 64 deep, or in itself": itself,
        "a tensor of more values than are stored": {"a": torch.zeros(1).expand(10**9)},
    }
    for said, state in refused.items():
        torch.save(state, path)
        with pytest.raises(DataError, match=f"a.ckpt: no checkpoint, or cut short .{said}"):
            read_checkpoint(path, DataError)
    shared = torch.arange(6.0).reshape(2, 3).T
    torch.save([shared, shared, shared[1], torch.zeros(3, 1), torch.zeros(0)], path)
    assert read_checkpoint(path, DataError)[0].tolist() == shared.tolist()
