"""The one door for files that others wrote: regular, bounded before they are read, of the kind that is wanted.

Every reader takes the class of error to raise, whose one line names the file. No parser is called outside of here
(`tests/test_reading.py` looks for that), but for GDAL's, which have a door of their own (`data.scenes.raster`).
"""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import pickletools
import re
import stat
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from mmap import mmap
from typing import IO, Any, BinaryIO, Literal
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import yaml

from .errors import DataError, GlacierError
from .memory import fits

__all__ = [
    "array_header",
    "check_length",
    "opened",
    "parse_json",
    "parse_number",
    "parse_xml",
    "parse_yaml",
    "read_array",
    "read_arrays",
    "read_checkpoint",
    "read_json",
    "read_table",
    "read_tensors",
    "read_text",
    "read_yaml",
    "refusing",
]

DEPTH = 64  # levels of lists and mappings
JSON, YAML = (2**28, 2**23), (2**17, 20_000)  # largest file, bytes, and most values in it; an alias counts every time
TABLE, LINE, NUMBER = 2**27, 2**16, 100  # largest CSV and its header, bytes, and longest number in it
HEADER, PICKLE = 2**25, 2**22  # largest header of safetensors, and pickle of a checkpoint, bytes
STATE = 2**24  # most values in a checkpoint; what stands in several places counts in each
PICKLED = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage|_codecs encode")
AGAIN = "copy it again, or make it anew"
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # which say nothing of the file
WHOLE = 2**63  # integers are smaller, as everything that takes them wants

Kind = type[GlacierError]


@contextmanager
def refusing(
    where: str | os.PathLike,  # file or option named in the error
    error: Kind,  # what is raised
    what: str,  # what is wrong, in words
    hint: str = "",  # what to do
) -> Iterator[None]:
    """Turn whatever a parser raises into one line; there is no end to the kinds of error that damaged files cause.

    >>> with refusing("a.json", GlacierError, "not JSON", "copy it again"):
    ...     json.loads("{")
    Traceback (most recent call last):
    glacier_fastai.errors.GlacierError: a.json: not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); copy it again
    """  # noqa: E501
    try:
        yield
    except GlacierError:
        raise
    except Exception as err:
        why = err.strerror if isinstance(err, OSError) and err.strerror else str(err) or type(err).__name__
        said = f" ({' '.join(why.split())[:160]})"
        if isinstance(err, MemoryError) or isinstance(err, OSError) and err.errno in SHORT:
            raise error(f"{where}: cannot be read now{said}; try again when memory and files are free") from err
        raise error(f"{where}: {what}{said}{f'; {hint}' if hint else ''}") from err


def parse_number(text: str) -> float:
    """Return a finite number of ASCII digits; Python itself takes "1_0" and those of other scripts.

    >>> parse_number(" -2.75e-05 ")
    -2.75e-05
    >>> parse_number("1_0")
    Traceback (most recent call last):
    ValueError: '1_0' is no number
    """
    if text.isascii() and "_" not in text and math.isfinite(value := float(text)):
        return value
    raise ValueError(f"{text[:40]!r} is no number")


@contextmanager
def opened(
    path: str | os.PathLike,
    error: Kind,  # what is raised
    most: int | None = None,  # largest size, bytes
    *,
    link: bool = False,  # whether it may be a link: where the user named it
) -> Iterator[BinaryIO]:
    """Open a regular file for reading: no folder, pipe or device, and no link to another place."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | (0 if link else getattr(os, "O_NOFOLLOW", 0))
    try:
        file = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115  closed below
    except FileNotFoundError as err:
        raise error(f"{path}: no such file") from err
    except IsADirectoryError as err:
        raise error(f"{path}: a folder; give a file") from err
    except (OSError, ValueError) as err:  # of a NUL, or a lone surrogate
        is_link = os.path.islink(path) if isinstance(err, OSError) else False
        why = "a link, which may lead anywhere; put the file itself there" if is_link and not link else "cannot be read"
        raise error(f"{path}: {why} ({err.strerror if isinstance(err, OSError) else err})") from err
    with file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise error(f"{path}: no regular file (a pipe or a device); give a file")
        if most is not None and about.st_size > most:
            raise error(f"{path}: of {about.st_size:,} bytes; such a file has at most {most:,}")
        yield file


def _check_memory(path: str | os.PathLike, error: Kind, size: int) -> None:
    try:
        fits(size, f"{path}: its values", "take a smaller one")
    except DataError as err:
        raise error(str(err)) from None


def read_text(
    path: str | os.PathLike,
    error: Kind,  # what is raised
    most: int = 2**24,  # largest size, bytes
    *,
    link: bool = False,  # see `opened`
) -> str:
    """Return the text of a file in UTF-8."""
    with opened(path, error, most, link=link) as file, refusing(path, error, "no text in UTF-8"):
        return file.read().decode("utf-8-sig")


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        _named_once(name for name, _ in pairs)
    return found


def _check_count(signs: Iterable[int]) -> None:
    """Raise `ValueError` for a text of more values than are read, before any is made, by the signs between them."""
    if sum(signs) >= JSON[1]:
        raise ValueError(f"more than {JSON[1]:,} values")


def parse_json(
    text: str | bytes,
    where: str | os.PathLike,  # named in errors
    error: Kind,  # what is raised
    *,
    finite: bool = True,  # refuse NaN and infinity
) -> Any:
    """Return what a text in JSON says: numbers, no lone surrogates, of bounded size and depth.

    >>> parse_json('{"a": [1, 2.5]}', "a.json", GlacierError)
    {'a': [1, 2.5]}
    """
    with refusing(where, error, "damaged, or not JSON", AGAIN):
        if len(text) > JSON[0]:
            raise ValueError(f"more than {JSON[0]:,} bytes")
        text = text if isinstance(text, str) else text.decode()
        _check_count(map(text.count, ",[{"))
        tree = json.loads(text, parse_constant=_no_number if finite else None, object_pairs_hook=_mapping)
    with refusing(where, error, "cannot be used"):
        return _bounded(tree, JSON[1], finite)


def read_json(
    path: str | os.PathLike,
    error: Kind,  # what is raised
    *,
    link: bool = False,  # see `opened`
    finite: bool = True,  # see `parse_json`
) -> dict[str, Any]:
    """Return the mapping that a JSON file holds, see `parse_json`."""
    tree = parse_json(read_text(path, error, JSON[0], link=link), path, error, finite=finite)
    if not isinstance(tree, dict):
        raise error(f"{path}: holds {type(tree).__name__}; wanted is a mapping")
    return tree


def _named_once(names: Iterable[str]) -> None:
    """Raise `ValueError` where a name stands twice, of which one would count without a word."""
    for name, n in Counter(names).items():
        if n > 1:
            raise ValueError(f"{name!r} stands twice")


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as everyone expects, a date is text, and mappings are not merged."""

    def flatten_mapping(self, node: Any) -> None:
        """Merge nothing: a mapping that merges two of the same grows without bound."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a name that stands twice."""
        _named_once(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        return super().construct_mapping(node, deep)

    def construct_plain(self, node: Any) -> Any:
        """Return a number, but 1:30 as text: to base 60 it would be 90, and a long one takes for ever."""
        whole = self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float
        return node.value if ":" in node.value else whole(node)

    yaml_implicit_resolvers = {  # noqa: RUF012  as of its base
        first: [(tag, form) for tag, form in found if not tag.endswith((":timestamp", ":merge"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


for _number in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_number, _Loader.construct_plain)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(
    text: str,
    where: str | os.PathLike,  # named in errors
    error: Kind,  # what is raised
) -> Any:
    """Return what a text in YAML says, within the bounds of `parse_json`.

    >>> parse_yaml("lr: 1e-4", "r.yaml", GlacierError)
    {'lr': 0.0001}
    """
    with refusing(where, error, "not YAML"):
        if len(text) > YAML[0]:
            raise ValueError(f"more than {YAML[0]:,} characters")
        tree = yaml.load(text, _Loader)
    with refusing(where, error, "cannot be used"):
        return _bounded(tree, YAML[1])


def read_yaml(
    path: str | os.PathLike,
    error: Kind,  # what is raised
    *,
    link: bool = False,  # see `opened`
) -> Any:
    """Return what a YAML file holds, see `parse_yaml`."""
    return parse_yaml(read_text(path, error, YAML[0], link=link), path, error)


def parse_xml(
    text: str,
    where: str | os.PathLike,  # named in errors
    error: Kind,  # what is raised
) -> ElementTree.Element:
    """Return the root of a text in XML that declares nothing: no entities, no types.

    >>> parse_xml("<a><b>1</b></a>", "a.xml", GlacierError).findtext("b")
    '1'
    """
    with refusing(where, error, "damaged, or not XML", AGAIN):
        if re.search(r"<!(?!--|\[CDATA\[)", text):
            raise ValueError("it declares types or entities, which no metadata need")
        root = ElementTree.fromstring(text)
        level, depth = [root], 0
        while level := [child for element in level for child in element]:
            if (depth := depth + 1) == DEPTH:
                raise ValueError(f"nested {DEPTH} deep")
        return root


def _bounded(tree: Any, most: int, finite: bool = True) -> Any:
    """Return plain data as they are; raises `ValueError` for what no file of ours holds."""
    waiting: list[tuple[Any, int, Any]] = [(tree, 0, "")]
    for _ in range(most):
        if not waiting:
            return tree
        value, depth, key = waiting.pop()
        if isinstance(value, (dict, list)):
            if depth == DEPTH:
                raise ValueError(f"nested {DEPTH} deep, or in itself")
            waiting += [(v, depth + 1, key) for v in value] if isinstance(value, list) else ()
            for name, v in value.items() if isinstance(value, dict) else ():
                waiting += [(name, depth + 1, name), (v, depth + 1, name)]
        elif isinstance(value, str):
            value.encode()  # no lone surrogates
        elif isinstance(value, int):
            if abs(value) >= WHOLE:
                raise ValueError(
                    f"{key or 'it'} is a whole number of {value.bit_length()} bits; at most 63 can be used"
                )
        elif isinstance(value, float):
            if finite and not math.isfinite(value):
                raise ValueError(f"{key or 'it'} is {value}, no finite number")
        elif value is not None:
            raise ValueError(f"{key or 'it'} is a {type(value).__name__}; use text, numbers, lists and mappings")
    raise ValueError(f"more than {most:,} values")


def read_table(
    path: str | os.PathLike,
    error: Kind,  # what is raised
    columns: Mapping[str, type],  # those wanted: str, int, float (finite)
    *,
    link: bool = False,  # see `opened`
) -> pd.DataFrame:
    """Return a CSV file with a header; columns that are not wanted stay text."""
    with opened(path, error, TABLE, link=link) as file, refusing(path, error, "no table in CSV, or damaged"):
        _named_once(next(csv.reader([_first_line(file)]), []))
        text = file.read()
        if b"\0" in text:
            raise ValueError("zeros where text should be")
        _check_count(map(text.count, (b",", b"\n")))
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows longer than the header
            table = pd.read_csv(BytesIO(text), dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
        if lacking := [c for c in columns if c not in table]:
            raise error(f"{path}: no column {', '.join(lacking)}; it has {', '.join(map(str, table.columns))}")
        for name, kind in columns.items():
            if kind is not str:
                with refusing(path, error, f"column {name} holds what is no {kind.__name__}"):
                    if len(table) and table[name].str.len().max() > NUMBER:  # else each takes the longest one's room
                        raise ValueError("a very long text")
                    numbers = table[name].to_numpy(str).astype(np.dtype(kind))
                    if not np.isfinite(numbers).all():
                        raise ValueError("nan or inf")
                    table[name] = numbers
        return table


def _first_line(file: BinaryIO) -> str:
    line = file.readline(LINE)
    file.seek(0)
    if len(line) == LINE:
        raise ValueError(f"its first line has {LINE:,} bytes or more")
    return line.decode("utf-8-sig")


def array_header(
    file: IO[bytes],  # at the start of an .npy file
) -> tuple[tuple[int, ...], np.dtype, Literal["C", "F"]]:
    """Return shape, dtype and order of an array, and leave the file where its values begin; raises `ValueError`.

    >>> from io import BytesIO
    >>> np.save(file := BytesIO(), np.zeros((2, 3), "uint8")), file.seek(0)
    (None, 0)
    >>> array_header(file)
    ((2, 3), dtype('uint8'), 'C')
    """
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version}")
    shape, fortran, dtype = read(file)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"values are {dtype}; wanted are numbers")
    return shape, dtype, "F" if fortran else "C"


def read_array(
    path: str | os.PathLike,
    error: Kind,  # what is raised
    dtype: Any,  # that it must have, or several
    shape: Sequence[int] | None = None,  # that it must have
    hint: str = "",  # what to do if it has not
) -> np.ndarray:
    """Return an .npy file, memory-mapped for reading."""
    allowed = [np.dtype(d) for d in (dtype if isinstance(dtype, (tuple, list)) else [dtype])]
    with opened(path, error) as file, refusing(path, error, "no .npy file, or damaged", hint):
        there, kind, order = array_header(file)
        whole = kind.byteorder in "=|" and (order == "C" or len(there) < 2)
        if kind not in allowed or not whole or shape is not None and there != tuple(shape):
            wanted = " or ".join(d.name for d in allowed) + (f" {tuple(shape)}" if shape is not None else "")
            raise ValueError(f"{kind.str} {there} in {order} order; wanted is {wanted}")
        if os.fstat(file.fileno()).st_size != file.tell() + math.prod(there) * kind.itemsize:
            raise ValueError("cut short, or longer than its header says")
        return np.memmap(file, kind, "r", file.tell(), there) if math.prod(there) else np.zeros(there, kind)


def check_length(
    array: np.ndarray,  # of `read_array`
    path: str | os.PathLike,  # its file, for the message
    error: Kind,  # what is raised
) -> None:
    """Raise if the file has become shorter since: of a memory map of what is gone, a process dies without a word."""
    if (
        isinstance(array, np.memmap)
        and isinstance(array.base, mmap)
        and array.base.size() < array.offset + array.nbytes
    ):
        raise error(f"{path}: was cut short while it was in use; {AGAIN}")


def read_arrays(
    path: str | os.PathLike,
    error: Kind,  # what is raised
) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name."""
    found: dict[str, np.ndarray] = {}
    with opened(path, error) as file, refusing(path, error, "no .npz file, or damaged"):
        for record in zipfile.ZipFile(file).infolist():
            with zipfile.ZipFile(file).open(record) as array:
                shape, dtype, order = array_header(array)
                if (size := math.prod(shape) * dtype.itemsize) > record.file_size:
                    raise ValueError(f"{record.filename}: cut short")
                found[record.filename.removesuffix(".npy")] = np.frombuffer(array.read(size), dtype).reshape(
                    shape, order=order
                )
    return found


def read_tensors(
    path: str | os.PathLike,
    error: Kind,  # what is raised
    *,
    link: bool = False,  # see `opened`
    hint: str = "",  # what to do if it is none
    check: Callable[[dict[str, str], dict[str, tuple[int, ...]]], None] | None = None,  # of metadata and shapes
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return metadata and tensors of a safetensors file, which holds no code; `check` refuses before these are read."""
    from safetensors import safe_open

    what = "not a safetensors file, or cut short"
    with opened(path, error, link=link) as file:
        with refusing(path, error, what, hint):
            if (header := int.from_bytes(file.read(8), "little")) > HEADER:
                raise ValueError(f"a header of {header:,} bytes; at most {HEADER:,} are read")
            with safe_open(path, "pt") as tensors:
                names, metadata = list(tensors.keys()), tensors.metadata() or {}
                shapes = {k: tuple(tensors.get_slice(k).get_shape()) for k in names}
        if check:
            check(metadata, shapes)
        _check_memory(path, error, 3 * os.fstat(file.fileno()).st_size)  # of half precision, floats are made
        with refusing(path, error, what, hint), safe_open(path, "pt") as tensors:
            return metadata, {k: tensors.get_tensor(k) for k in names}


def read_checkpoint(
    path: str | os.PathLike,
    error: Kind,  # what is raised
) -> Any:
    """Return what `torch.save` wrote: tensors, numbers, text, lists and mappings; no code in it is run."""
    import torch

    hint = "take another one, or remove it to start anew"
    with opened(path, error) as file, refusing(path, error, "no checkpoint, or cut short", hint):
        archive = zipfile.ZipFile(file)
        records = archive.infolist()
        packed = [r.filename for r in records if r.compress_type != zipfile.ZIP_STORED or r.file_size > r.compress_size]
        pickles = [r for r in records if r.filename.endswith(".pkl")]
        size = os.fstat(file.fileno()).st_size
        if packed or sum(r.file_size for r in records) > size or max(r.file_size for r in pickles) > PICKLE:
            raise ValueError("larger than torch writes it")
        if not any(r.CRC for r in records):  # as in earlier ones, and where torch was told not to
            for record in records:
                record.CRC = None  # type: ignore[assignment]  # so zipfile looks at none
        if bad := archive.testzip():
            raise ValueError(f"{bad} is not as it was written")
        for record in pickles:  # torch allows more than it writes, such as arrays of any length
            for op, what, _ in pickletools.genops(archive.read(record)):
                if "GLOBAL" in op.name and not PICKLED.fullmatch(str(what)) or op.name in ("INST", "OBJ", "NEWOBJ_EX"):
                    raise ValueError(f"{what} is not of a checkpoint")
        _check_memory(path, error, 2 * size)
        file.seek(0)
        state = torch.load(file, map_location="cpu", weights_only=True)
        if _count(state, 0, {}) > STATE:
            raise ValueError(f"more than {STATE:,} values")
        return state


def _count(value: Any, depth: int, known: dict[int, int]) -> int:
    """Return how many values there are; raises `ValueError` for one in itself, and a tensor that repeats its values."""
    if isinstance(value, (dict, list, tuple)):
        if id(value) not in known:
            if depth == DEPTH:
                raise ValueError(f"nested {DEPTH} deep, or in itself")
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            known[id(value)] = 1 + sum(_count(part, depth + 1, known) for part in parts)
        return known[id(value)]
    if hasattr(value, "untyped_storage"):
        repeats = any(step == 0 and n > 1 for step, n in zip(value.stride(), value.shape, strict=True))
        if repeats or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError("a tensor of more values than are stored")
    return 1
