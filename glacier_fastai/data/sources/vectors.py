"""Vector files: opened by a named driver, their one layer of polygons, and the rows that are wanted.

GDAL opens a file by its content, takes some names for addresses, and some formats are but a text that names a server.
So a file's kind is found here, by how it begins, and GDAL sees it by a plain temporary name.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import sqlite3
import struct
import time
import warnings
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from pyproj import CRS

from ...errors import DataError
from ...files import SCRATCH, Scratch, check_room
from ...memory import fits
from ...reading import opened, parse_json, refusing
from ..scenes.address import Address, named
from ..scenes.raster import OFFLINE, check_within, local_file, parse_crs
from ..scenes.web import copy_to

__all__ = ["VectorLayer", "open_vector", "vector_files"]

DRIVERS = {  # suffix, and GDAL's names of what reads it
    "shp": ("ESRI Shapefile",),
    "gpkg": ("GPKG",),
    "geojson": ("GeoJSON",),
    "fgb": ("FlatGeobuf",),
    "kml": ("KML", "LIBKML"),
    "gml": ("GML",),
}
READ = "GeoPackage, Shapefile, GeoJSON, FlatGeobuf, KML, GML and GeoParquet are read; convert it (ogr2ogr)"
ZIPPED = (*DRIVERS, "json")  # what is looked for in an archive, in this order
PARQUET = (".parquet", ".geoparquet")
SUFFIXES = (*(f".{suffix}" for suffix in ZIPPED), ".zip", *PARQUET)
SIDES = ("shx", "dbf", "prj", "cpg")  # of a shapefile
NO_POLYGONS = ("Point", "LineString")

START = 2**16  # bytes that tell what a file is
BEGINS = {b"SQLite format 3\0": "gpkg", b"\0\0\x27\x0a": "shp", b"fgb\x03fgb": "fgb", b"PAR1": "parquet"}
JSON = re.compile(rb'\s*\{.*"type"\s*:\s*"(FeatureCollection|Feature|GeometryCollection|(Multi)?Polygon)"', re.DOTALL)
BEFORE_ROOT = re.compile(rb"\s*(?:<\?.*?\?>|<!--.*?-->)", re.DOTALL)  # of XML; in a loop, as nested repeats may hang
ROOT = re.compile(rb"\s*<(?:[\w.-]+:)?([\w.-]+)")
OTHERS = re.compile(rb"(?i)OGRVRT|OGRWFS|VRTDataset|GDAL_W|GDALTile|WCS_GDAL|OGCAPI|MRF_META|gdal_streamed|<!DOCTYPE")
KEY = re.compile(
    rb"""(?i)["'](?:c|\\u00[46]3)(?:r|\\u00[57]2)(?:s|\\u00[57]3)["'](?!\s*[,\]}])"""
)  # "crs", however written
OBJECT = re.compile(rb"\s*:\s*(?:(\{[^{}]*(?:\{[^{}]*\}[^{}]*)?\})|[^\s{/])")

ARCHIVE = re.compile(r"(?i)zip://(.+?)(?:!/?(.+))?|/vsizip/\{?(.+?\.zip)\}?(?:/(.+))?")
WAL = 2**28, 4  # bytes that wait to be written into a GeoPackage, and as many times its own
PACKED = 2**28, 100  # bytes that an archive or a GeoParquet may unpack to, or as many times its own
TEXT = 20  # bytes of memory for each of a text
LINES, RINGS, DEEPEST = (2, 8), (3, 17), 32  # codes of geometries in WKB; levels of them
EVERY = {"GPKG": "1 = 1"}  # has GDAL count rows itself: the count that is kept in the file may be of another time
SIDE, LONGEST = 2**20, 2**24  # largest .prj and .cpg, and header of a FlatGeobuf, bytes
CRSS = 100  # different ones of a GeoJSON that are looked at


@dataclass(frozen=True)
class VectorLayer:
    """A layer of a vector file: what is known of it before its rows are read."""

    path: str  # as the user wrote it
    crs: CRS
    driver: str  # GDAL's name of the format, or "Parquet"
    columns: list[str]  # without the geometry
    bounds: np.ndarray  # (n, 4) float: left, bottom, right, top of each row, NaN without geometry
    left_out: str = ""  # layers of the file that hold no polygons
    source: str = ""  # the path for GDAL
    name: str = ""  # of the layer
    fids: np.ndarray | None = None  # (n,) GDAL's number of each row; None: rows cannot be read one by one
    table: Any = None  # all rows, where they had to be read

    def read(
        self,
        rows: np.ndarray,  # positions in the file, ascending
        columns: Sequence[str] = (),  # those wanted beside the geometry
    ) -> Any:
        """Return a GeoDataFrame of some rows, 2-dimensional, whose index is their positions in the file.

        A geometry that cannot be made is None. Raises `DataError`.
        """
        from geopandas import GeoDataFrame
        from pyogrio import read_dataframe

        if self.table is not None:
            table = self.table.iloc[rows].set_axis(rows)
            return GeoDataFrame(table[list(columns)], geometry=table.geometry.force_2d())
        options: dict[str, Any] = {"layer": self.name, "columns": list(columns), "force_2d": True, "on_invalid": "fix"}
        with _reading(self.path):
            if self.fids is None or 2 * len(rows) > len(self.bounds):  # then quicker than one by one
                where = EVERY.get(self.driver)
                return read_dataframe(self.source, **options, where=where).iloc[rows].set_axis(rows)
            wanted = self.fids[rows]
            table = read_dataframe(self.source, **options, fids=wanted, fid_as_index=True)
            return table.loc[wanted].set_axis(rows)


def open_vector(
    path: str | os.PathLike,  # of one of `DRIVERS`, GeoParquet, a zipped file, zip://FILE!MEMBER, or an address
    layer: str = "",  # that is taken where there are several
) -> VectorLayer:
    """Open the one layer of a file that can hold polygons.

    >>> from tempfile import TemporaryDirectory
    >>> from geopandas import GeoSeries
    >>> from shapely import box
    >>> with TemporaryDirectory() as folder:
    ...     GeoSeries([box(86, 28, 87, 29), None], crs="EPSG:4326").to_file(Path(folder) / "o.gpkg")
    ...     layer = open_vector(Path(folder) / "o.gpkg")
    ...     len(layer.bounds), layer.bounds[0].tolist(), layer.read(np.array([0])).geometry[0].area
    (2, [86.0, 28.0, 87.0, 29.0], 1.0)

    Raises:
        DataError: Not there, unreadable, without polygons or coordinate reference system, several layers.
    """
    text = os.fspath(path)
    if not os.path.exists(text) and not ARCHIVE.fullmatch(text):
        text = where if isinstance(where := named(path), Address) else text
    scratch = Scratch()
    try:
        file, kind = _linked(text, scratch.path)
        found = _open_parquet(text, file) if kind == "parquet" else _open(text, file, kind, layer)
    except BaseException:
        scratch.close()
        raise
    weakref.finalize(found, scratch.close)
    return found


def vector_files(
    path: str | os.PathLike,  # as for `open_vector`, which has opened it
) -> list[Path | Address]:
    """Return what polygons are read from: their file or its archive, and what lies beside that and belongs to it."""
    text = os.fspath(path)
    if os.path.exists(text):
        return [Path(text), *_beside(Path(text))]
    return [Path(found[1] or found[3]) if (found := ARCHIVE.fullmatch(text)) else named(path)]


def _beside(file: Path) -> list[Path]:
    """Return the sides of a shapefile; of a GeoPackage that somebody has open, what is not yet written into it."""
    with opened(file, DataError, link=True) as content:
        start = content.read(19)
    kind = next((k for begin, k in BEGINS.items() if start.startswith(begin)), "")
    if kind == "shp":
        sides = (side for side in file.parent.iterdir() if side.stem == file.stem)
        return sorted(side for side in sides if side.suffix[1:].lower() in SIDES)
    wal = Path(f"{os.path.realpath(file)}-wal")
    return [wal] if kind == "gpkg" and start.endswith(b"\2") and wal.is_file() and wal.stat().st_size else []


def _open(text: str, file: Path, kind: str, layer: str) -> VectorLayer:
    from pyogrio import list_layers, read_bounds, read_info

    source, size = f"GeoJSON:{file}" if kind == "geojson" else str(file), file.stat().st_size
    with _reading(text):
        layers = {str(name): str(form) for name, form in list_layers(source) if form is not None}
        lines = {name: form for name, form in layers.items() if any(k in form for k in NO_POLYGONS)}
        if lines and len(lines) == len(layers):
            raise DataError(f"{text}: holds {', '.join(sorted(set(lines.values())))}; outlines must be polygons")
        names = [name for name in layers if name not in lines]
        names = [layer] if layer in names else names
        if not names:
            raise DataError(f"{text}: holds no geometry; give polygons")
        if len(names) > 1:
            raise DataError(
                f"{text}: has layers {', '.join(names)}; keep one (ogr2ogr one.gpkg {Path(text).name} {names[0]})"
            )
        info = read_info(source, layer=names[0])
        if info["driver"] not in DRIVERS[kind]:
            raise DataError(f"{text}: is {info['driver']}; {READ}")
        if info["features"] > size:
            raise DataError(f"{text}: says it has {info['features']:,} rows, in {size:,} bytes; copy it again")
        fids, bounds = read_bounds(source, layer=names[0], where=EVERY.get(info["driver"]))
    return VectorLayer(
        path=text,
        crs=_crs(info["crs"], text),
        driver=info["driver"],
        columns=[str(c) for c in info["fields"]],
        bounds=bounds.T,
        left_out=", ".join(f"{name} ({form})" for name, form in lines.items()),
        source=source,
        name=names[0],
        fids=fids if info["capabilities"]["random_read"] else None,
    )


def _open_parquet(text: str, file: Path) -> VectorLayer:
    if find_spec("pyarrow") is None:
        raise DataError(f"{text}: GeoParquet needs pyarrow: pip install 'glacier-fastai[geoparquet]'")
    import geopandas
    from pyarrow import parquet  # type: ignore[import-untyped]

    with refusing(text, DataError, "not a GeoParquet file, or damaged"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if (geo := (parquet.read_metadata(file).metadata or {}).get(b"geo")) is None:
            raise DataError(f"{text}: Parquet without geometry metadata; write it as GeoParquet")
        shapes = parse_json(geo, text, DataError)["columns"]
        for column in shapes.values():
            if column.get("crs") is not None:
                _crs(column["crs"], text)
        table = geopandas.read_parquet(file, columns=_columns_that_fit(text, file, shapes))
        bounds = table.geometry.bounds.to_numpy()
    columns = [str(c) for c in table.columns if c != table.geometry.name]
    return VectorLayer(text, _crs(table.crs, text), "Parquet", columns, bounds, table=table)


def _columns_that_fit(text: str, file: Path, shapes: dict[str, Any]) -> list[str]:
    """Return the columns of a GeoParquet file that are read: its geometries, and what is no list.

    A value that repeats is kept once in a file, but in each row of a table: so values are counted before that is made.
    """
    import pyarrow as pa
    from pyarrow import compute, parquet

    about = parquet.read_metadata(file)
    schema, kept = about.schema.to_arrow_schema(), [about.schema.column(k) for k in range(about.num_columns)]
    flat = [f.name for f in schema if not pa.types.is_nested(f.type) and not f.name.startswith("__index_level")]
    names = {*flat, *(name for name in shapes if name in schema.names)}
    texts = [c.path for c in kept if c.physical_type == "BYTE_ARRAY" and c.path in flat]
    if fixed := [c.path for c in kept if c.physical_type == "FIXED_LEN_BYTE_ARRAY" and c.path in shapes]:
        raise DataError(f"{text}: its {fixed[0]} is of a fixed length, as no geometries are; write it anew (ogr2ogr)")
    parts = [g.column(k) for g in map(about.row_group, range(about.num_row_groups)) for k in range(g.num_columns)]
    read = [part for part in parts if {part.path_in_schema, part.path_in_schema.split(".")[0]} & names]
    size = sum(part.total_uncompressed_size + 16 * part.num_values for part in read)

    def check() -> None:
        what, packed = f"{text}: its {about.num_rows:,} rows", file.stat().st_size
        fits(4 * size, what, "take a part of it")
        if size > max(PACKED[0], PACKED[1] * packed):
            raise DataError(f"{what} unpack to {size:,} bytes and more, from {packed:,}; take a part of it")

    check()
    for batch in parquet.ParquetFile(file, read_dictionary=texts).iter_batches(columns=texts):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_dictionary(column.type):
                size += compute.sum(compute.binary_length(column.dictionary).take(column.indices)).as_py() or 0
                if name in shapes:
                    for wkb in column.dictionary.to_pylist():
                        _check_depth(wkb)
        check()
    return [name for name in schema.names if name in names]


def _check_depth(wkb: bytes) -> None:
    """Raise `ValueError` for a geometry (WKB, as ISO and PostGIS write it) that is nested deeper than GEOS can read."""
    at, waiting = 0, [1]  # geometries to come at each level
    while waiting:
        if not waiting[-1]:
            waiting.pop()
            continue
        waiting[-1] -= 1
        order = "<" if wkb[at : at + 1] == b"\1" else ">"
        (kind,) = struct.unpack_from(f"{order}I", wkb, at + 1)
        kind, flags = kind & 0xFFFFFFF, kind >> 28
        point = 8 * (2 + (kind // 1000 + 1) // 2 + flags // 8 + flags // 4 % 2)
        at += 9 if flags // 2 % 2 else 5
        if kind % 1000 == 1:
            at += point
            continue
        (n,) = struct.unpack_from(f"{order}I", wkb, at)
        at += 4
        if kind % 1000 in RINGS:
            for _ in range(n):
                (m,) = struct.unpack_from(f"{order}I", wkb, at)
                at += 4 + m * point
        elif kind % 1000 in LINES:
            at += n * point
        else:
            waiting.append(n)
            if len(waiting) > DEEPEST:
                raise ValueError(f"a geometry is nested more than {DEEPEST} deep")


def _crs(given: Any, text: str) -> CRS:
    if given is None:
        why = ", as no .prj file lies beside it" if text.lower().endswith(".shp") else ""
        raise DataError(f"{text}: has no coordinate reference system{why}; assign one (ogr2ogr -a_srs)")
    with refusing(text, DataError, "its coordinate reference system cannot be read", "assign one"):
        return parse_crs(given)


def _linked(text: str, folder: Path) -> tuple[Path, str]:
    """Return a plain name of a file in a temporary folder, with what belongs to it, and what kind of file it is."""
    inside, member = text, ""
    if isinstance(text, Address):
        file = folder / text.name
        copy_to(text, file)
    elif not os.path.exists(text) and (found := ARCHIVE.fullmatch(text)):
        inside, member = found[1] or found[3], (found[2] or found[4] or "").strip("/")
        if not os.path.isfile(inside):
            raise DataError(f"{text}: no such file ({inside})")
        file = local_file(inside)
    else:
        file = local_file(text)
    if inside is not text or file.suffix.lower() == ".zip":
        file = _unpacked(text, file, inside, member, folder)
    with opened(file, DataError, link=True) as content:
        start = content.read(START)
    kind = next((k for begin, k in BEGINS.items() if start.startswith(begin)), "")
    if not kind and file.suffix.lower() in PARQUET:
        kind = "parquet"
    if not kind and not OTHERS.search(start):
        start = start.removeprefix(b"\xef\xbb\xbf")
        at = 0
        while before := BEFORE_ROOT.match(start, at):
            at = before.end()
        root = ROOT.match(start, at)
        kind = "geojson" if JSON.match(start) else "kml" if root and root[1] == b"kml" else ""
        kind = kind or ("gml" if root and b"opengis.net/gml" in start else "")
    if not kind:
        raise DataError(f"{text}: not a vector file, or damaged; {READ}")
    stem = re.sub(r"[^\w-]", "_", file.stem, flags=re.ASCII)
    link = folder / f"{stem}.{kind}"
    _link(file, link)
    if kind == "shp":
        for side in _beside(file):
            if side.is_symlink():
                check_within(side, os.path.dirname(os.path.realpath(file)), text)
            if side.suffix.lower() in (".prj", ".cpg") and side.stat().st_size > SIDE:
                raise DataError(f"{side}: has more than {SIDE:,} bytes; copy the shapefile again")
            _link(local_file(side), folder / f"{stem}{side.suffix.lower()}")
        _check_index(link.with_suffix(".shx"), text)
    elif kind == "gpkg":
        if wal := start[18:19] == b"\2":  # SQLite would make files beside it
            _copy_database(file, link, text)
        _check_database(link, text, wal)
    elif kind in ("geojson", "kml", "gml"):
        fits(TEXT * (size := file.stat().st_size), f"{text}: its {size:,} bytes", "make a GeoPackage of it (ogr2ogr)")
        if kind == "geojson":
            _check_named_crs(link, text)
    elif kind == "fgb":
        _check_count(link, text)
    return link, kind


def _link(file: Path, link: Path) -> None:
    if file != link:  # else it was unpacked there
        link.symlink_to(file)


def _unpacked(text: str, file: Path, named: str, member: str, folder: Path) -> Path:
    """Unpack a member of an archive, and what belongs to it, under plain names."""
    with refusing(text, DataError, "not a zip archive, or damaged"), zipfile.ZipFile(file) as archive:
        name = _member(text, named, member, archive.namelist())
        stem, _, suffix = name.rpartition(".")
        wanted = {s: f"{stem}.{s}" for s in (suffix, *SIDES)} if suffix.lower() == "shp" else {suffix: name}
        at = {n.lower(): n for n in archive.namelist()}
        for end, inner in wanted.items():
            if (there := at.get(inner.lower())) is None:
                continue
            about = archive.getinfo(there)
            if about.file_size > max(PACKED[0], PACKED[1] * about.compress_size):
                size = f"{about.file_size:,} bytes in {about.compress_size:,}"
                raise DataError(f"{text}: {there} unpacks to {size}; unpack it yourself, if you trust it")
            plain = re.sub(r"[^\w-]", "_", stem.rpartition("/")[2], flags=re.ASCII)
            with archive.open(there) as source, open(folder / f"{plain}.{end.lower()}", "xb") as out:
                shutil.copyfileobj(source, out)
        return folder / f"{plain}.{suffix.lower()}"


def _member(text: str, archive: str, member: str, every: Sequence[str]) -> str:
    """Return the one vector file of an archive, or that which is named."""
    names = [n for n in every if not n.endswith("/") and not n.startswith("__MACOSX/")]
    within = [n for n in names if not member or n == member or n.startswith(member + "/")]
    if member in names:
        return member
    for suffix in ZIPPED:
        found = [n for n in within if n.lower().endswith("." + suffix)]
        if len(found) > 1:
            raise DataError(f"{text}: holds {', '.join(found[:8])}; name one: zip://{archive}!{found[0]}")
        if found:
            return found[0]
    held = ", ".join(names[:8]) or "nothing"
    raise DataError(f"{text}: no {member or 'vector file'} in the archive; it holds {held}")


def _check_index(path: Path, text: str) -> None:
    """Refuse an index of a shapefile that has the same polygons read again and again."""
    if not path.exists():
        raise DataError(f"{text}: its .shx is missing; copy the shapefile with all its files")
    size, most = path.stat().st_size, path.with_suffix(".shp").stat().st_size
    rows = np.zeros((0, 2), np.int64)
    if size <= most:  # of a polygon it holds less
        fits(8 * size, f"{text}: the {size:,} bytes of its .shx", "take a part of it")
        with opened(path, DataError, link=True) as file, refusing(text, DataError, "its .shx is cut short or damaged"):
            rows = np.frombuffer(file.read()[100:], ">i4").reshape(-1, 2).astype(np.int64)
    if size > most or (held := (2 * rows[:, 1] + 8).sum()) > most:
        raise DataError(f"{text}: its .shx names more than the .shp holds; copy the shapefile again")
    if 100 + held != most and (last := _last_record(path.with_suffix(".shp"))) > len(rows):
        raise DataError(
            f"{text}: its .shp holds {last:,} records, and its .shx names {len(rows):,}; copy the shapefile again with "
            "all its files"
        )


def _last_record(path: Path) -> int:
    """Return the highest number of a record of a .shp; 0 where they do not follow on one another, as after edits.

    A record that has grown in an edit stands at the end, under its old number, and once more where it was.
    """
    with opened(path, DataError, link=True) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at, end, last = 100, 2 * int.from_bytes(content[24:28]), 0
        while at + 8 <= min(end, len(content)):
            number, words = struct.unpack_from(">ii", content, at)
            if number < 1 or words < 2:
                return 0
            at, last = at + 8 + 2 * words, max(last, number)
    return last if at == end else 0


def _check_count(path: Path, text: str) -> None:
    """Refuse a FlatGeobuf that holds more rows than its header says, of which GDAL would read no more.

    With an index, GDAL itself finds that it does not fit.
    """
    with opened(path, DataError, link=True) as file, refusing(text, DataError, "not a FlatGeobuf file, or damaged"):
        start = file.read(12)
        header = file.read(min(int.from_bytes(start[8:], "little"), LONGEST))
        (root,) = struct.unpack_from("<I", header)
        fields = root - struct.unpack_from("<i", header, root)[0]

        def number(field: int, form: str, default: int) -> int:
            slots = struct.unpack_from("<H", header, fields)[0] // 2 - 2
            slot = struct.unpack_from("<H", header, fields + 4 + 2 * field)[0] if field < slots else 0
            return struct.unpack_from(form, header, root + slot)[0] if slot else default

        rows, found = number(8, "<Q", 0), 0
        if not rows or number(9, "<H", 16):
            return
        while found <= rows and len(length := file.read(4)) == 4:
            file.seek(int.from_bytes(length, "little"), os.SEEK_CUR)
            found += 1
    if found > rows:
        raise DataError(f"{text}: says it has {rows:,} rows, and holds more; copy it again, or write it anew (ogr2ogr)")


def _copy_database(file: Path, link: Path, text: str) -> None:
    """Copy a GeoPackage with what is not yet written into it; raises `DataError` for one longer than its pages."""
    if file != link:
        with opened(file, DataError, link=True) as content, refusing(text, DataError, "not a GeoPackage, or damaged"):
            page, pages = struct.unpack(">16xH10xI", content.read(32))
        size, wals = file.stat().st_size, _beside(file)
        if (
            size > (65536 if page == 1 else page) * pages
            or sum(w.stat().st_size for w in wals) > WAL[0] + WAL[1] * size
        ):
            raise DataError(f"{text}: longer than its pages; close it where it is open, and write it anew (ogr2ogr)")
        for source, target in ((file, link), *((wal, Path(f"{link}-wal")) for wal in wals)):
            check_room(target, source.stat().st_size)
            target.unlink(missing_ok=True)
            shutil.copyfile(source, target)


def _check_database(path: Path, text: str, wal: bool) -> None:
    """Refuse a GeoPackage whose reading may not end: what is computed, or pages that lead to themselves."""
    real, size = path.resolve(), path.stat().st_size
    kept = "" if wal else "&immutable=1"
    end = time.monotonic() + 5 + size / 5e6
    with (
        refusing(text, DataError, "not a GeoPackage, or damaged"),
        closing(sqlite3.connect(f"file:{quote(str(real))}?mode=ro{kept}", uri=True)) as db,
    ):
        db.set_progress_handler(lambda: time.monotonic() > end, 10_000)
        held = "SELECT name FROM sqlite_master WHERE "
        views = {name.casefold() for (name,) in db.execute(held + "type = 'view'")}
        if "gpkg_contents" not in {name.casefold() for (name,) in db.execute(held + "type = 'table'")}:
            raise ValueError("no table gpkg_contents")
        if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise ValueError(found)
        layers = {str(name).casefold() for (name,) in db.execute("SELECT table_name FROM gpkg_contents")}
        odd = [v for v in views if v in layers or v.startswith(("gpkg_", "rtree_", "ogr_"))]
        odd += [n for (n,) in db.execute(held + "sql LIKE 'CREATE VIRTUAL%' AND sql NOT LIKE '%USING rtree(%'")]
        computed = "SELECT m.name FROM sqlite_master m, pragma_table_xinfo(m.name) x WHERE m.type = 'table' "
        odd += [n for (n,) in db.execute(computed + "AND m.sql NOT LIKE 'CREATE VIRTUAL%' AND x.hidden > 1")]
    if odd:
        raise DataError(f"{text}: {odd[0]} is a view, or computed; make a plain table of it (ogr2ogr)")


def _check_named_crs(path: Path, text: str) -> None:
    """Refuse a GeoJSON whose `crs` is anything but a name or a code: of links, GDAL asks the network."""
    hint = "write its coordinates as longitude and latitude, without crs (ogr2ogr -lco RFC7946=YES)"
    seen: set[bytes] = set()
    with opened(path, DataError, link=True) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for key in KEY.finditer(content):
            if (found := OBJECT.match(content, key.end())) is None:
                raise DataError(f"{text}: its crs cannot be read; {hint}")
            if found[1] and found[1] not in seen:
                seen.add(found[1])
                if len(seen) > CRSS:
                    raise DataError(f"{text}: has more than {CRSS} different crs; {hint}")
                with refusing(text, DataError, "its crs cannot be used", hint):
                    crs = parse_json(found[1], text, DataError)  # GDAL takes names in any case, so all is looked at
                    ((what, given),) = crs.pop("properties").items()
                    if (kind := crs.pop("type").lower(), what) not in (("name", "name"), ("epsg", "code")) or crs:
                        raise ValueError(f"a {kind} with {what}; use a name or the code of EPSG, and nothing beside")
                    parse_crs(given if kind == "name" else f"EPSG:{int(given)}")


@contextmanager
def _reading(text: str) -> Iterator[None]:
    """Turn what cannot be read into a `DataError`, keep GDAL from the network, and libraries' warnings quiet."""
    from pyogrio import get_gdal_config_option, set_gdal_config_options

    # the environment's own would be kept for ever if they were put back
    before = {name: None if name in os.environ else get_gdal_config_option(name) for name in OFFLINE}
    set_gdal_config_options(OFFLINE)
    try:
        with refusing(text, DataError, "not a vector file, or damaged"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError as err:
        if isinstance(err.__cause__, UnicodeDecodeError):
            raise DataError(
                f"{text}: its text is not in the encoding that it declares ({err.__cause__}); write it anew as "
                "UTF-8 (ogr2ogr -oo ENCODING=...)"
            ) from err
        raise DataError(re.sub(rf"\S*/{SCRATCH}\w+/\w+/", "", str(err))) from err.__cause__
    finally:
        set_gdal_config_options(before)
