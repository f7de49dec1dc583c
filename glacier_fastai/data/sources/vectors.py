"""Vector files: opened by name, their one layer of polygons, and the rows that are wanted."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pyproj import CRS
from pyproj.exceptions import CRSError

from ...errors import DataError

__all__ = ["VectorLayer", "open_vector"]

ZIPPED = ("shp", "gpkg", "geojson", "fgb", "kml", "gml", "json")  # what is looked for in an archive, in this order
PARQUET = (".parquet", ".geoparquet")
NO_POLYGONS = ("Point", "LineString")


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
                return read_dataframe(self.source, **options).iloc[rows].set_axis(rows)
            wanted = self.fids[rows]
            table = read_dataframe(self.source, **options, fids=wanted, fid_as_index=True)
            return table.loc[wanted].set_axis(rows)


def open_vector(
    path: str | os.PathLike,  # any vector format, GeoParquet, a zipped file, or zip://FILE!MEMBER
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
        DataError: No file on this disk, unreadable, without polygons or coordinate reference system, several layers.
    """
    text = os.fspath(path)
    source = _source(text)
    if source.lower().endswith(PARQUET):
        return _open_parquet(text, source)
    from pyogrio import list_layers, read_bounds, read_info

    with _reading(text):
        layers = {str(name): str(kind) for name, kind in list_layers(source) if kind is not None}
        lines = {name: kind for name, kind in layers.items() if any(k in kind for k in NO_POLYGONS)}
        if lines and len(lines) == len(layers):
            raise DataError(f"{text}: holds {', '.join(sorted(set(lines.values())))}; outlines must be polygons")
        names = [name for name in layers if name not in lines]
        if not names:
            raise DataError(f"{text}: holds no geometry; give polygons")
        if len(names) > 1:
            raise DataError(
                f"{text}: has layers {', '.join(names)}; keep one (ogr2ogr one.gpkg {Path(text).name} {names[0]})"
            )
        info = read_info(source, layer=names[0])
        fids, bounds = read_bounds(source, layer=names[0])
    if info["crs"] is None:
        _no_crs(text)
    return VectorLayer(
        path=text,
        crs=_crs(info["crs"], text),
        driver=info["driver"],
        columns=[str(c) for c in info["fields"]],
        bounds=bounds.T,
        left_out=", ".join(f"{name} ({kind})" for name, kind in lines.items()),
        source=source,
        name=names[0],
        fids=fids if info["capabilities"]["random_read"] else None,
    )


def _open_parquet(text: str, source: str) -> VectorLayer:
    if find_spec("pyarrow") is None:
        raise DataError(f"{text}: GeoParquet needs pyarrow: pip install 'glacier-fastai[geoparquet]'")
    import geopandas

    try:
        with _reading(text):
            table = geopandas.read_parquet(source)
            bounds = table.geometry.bounds.to_numpy()
    except (KeyError, NotImplementedError, OSError, ValueError) as err:  # as those of pyarrow are
        if "geo metadata" in str(err).lower():
            raise DataError(f"{text}: Parquet without geometry metadata; write it as GeoParquet") from err
        raise DataError(f"{text}: not a GeoParquet file, or damaged ({_line(err)})") from err
    if table.crs is None:
        _no_crs(text)
    columns = [str(c) for c in table.columns if c != table.geometry.name]
    return VectorLayer(text, _crs(table.crs, text), "Parquet", columns, bounds, table=table)


def _crs(given: Any, text: str) -> CRS:
    try:
        return CRS.from_user_input(given)
    except CRSError as err:
        raise DataError(f"{text}: its coordinate reference system cannot be read ({_line(err)}); assign one") from err


def _no_crs(text: str) -> None:
    why = ", as no .prj file lies beside it" if text.lower().endswith(".shp") else ""
    raise DataError(f"{text}: has no coordinate reference system{why}; assign one (ogr2ogr -a_srs)")


def _source(text: str) -> str:
    """Return the name for GDAL of a file on this disk."""
    if Path(text).exists():
        file, member = Path(text), ""
        if file.suffix.lower() != ".zip" or not file.is_file():
            return str(file.absolute())
    elif found := re.fullmatch(r"zip://(.+?)(?:!/?(.+))?|/vsizip/\{?(.+?\.zip)\}?(?:/(.+))?", text, re.IGNORECASE):
        archive, inner, other, deeper = found.groups()
        file, member = Path(archive or other), (inner or deeper or "").strip("/")
    elif re.match(r"[a-z][a-z0-9+.-]+://|/vsi", text, re.IGNORECASE):
        raise DataError(f"{text}: only files on this disk are read; copy it here (an archive: zip://FILE.zip!MEMBER)")
    else:
        raise DataError(f"{text}: no such file")
    if not file.is_file():
        raise DataError(f"{text}: no such file ({file})")
    return f"/vsizip/{{{file.absolute()}}}/{_member(text, file, member)}"


def _member(text: str, file: Path, member: str) -> str:
    """Return the one vector file of an archive, or that which is named, as GDAL finds it."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
    except (OSError, zipfile.BadZipFile) as err:
        raise DataError(f"{text}: not a zip archive, or damaged ({_line(err)})") from err
    within = [n for n in names if not member or n == member or n.startswith(member + "/")]
    if member in names:
        return member
    for suffix in ZIPPED:
        found = [n for n in within if n.lower().endswith("." + suffix)]
        if len(found) > 1:
            raise DataError(f"{text}: holds {', '.join(found[:8])}; name one: zip://{file}!{found[0]}")
        if found:
            return found[0]
    held = ", ".join(names[:8]) or "nothing"
    raise DataError(f"{text}: no {member or 'vector file'} in the archive; it holds {held}")


@contextmanager
def _reading(text: str) -> Iterator[None]:
    """Turn what cannot be read into a `DataError`, and keep the warnings of libraries quiet."""
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError
    from shapely.errors import ShapelyError

    broken = (DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError, ShapelyError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnicodeDecodeError as err:
        raise DataError(
            f"{text}: its text is not in the encoding that it declares ({_line(err)}); write it anew as UTF-8 "
            "(ogr2ogr -oo ENCODING=...)"
        ) from err
    except broken as err:
        raise DataError(f"{text}: not a vector file, or damaged ({_line(err)})") from err


def _line(err: Exception) -> str:
    return " ".join(str(err).split())[:200]
