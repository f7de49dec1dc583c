"""Outlines of a map: polygons of glaciers and of classes, with areas, as GeoPackage and GeoParquet."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError, ProjError
from rasterio.features import shapes

from ..bands import CLASSES, ICE, IGNORE
from ..core.areas import LEAST, area_interval
from ..core.regions import Regions, RegionSums
from ..data.scenes.raster import same_crs
from ..data.scenes.scene import Place
from ..errors import DataError, OutputError, PredictionError
from ..files import whole_file
from .sink import RasterMap, Strip, writing
from .styles import write_styles

__all__ = [
    "LAYERS",
    "Outlines",
    "affine",
    "check_geoparquet",
    "check_layer",
    "check_name",
    "crs_of_areas",
    "equal_area_crs",
    "regions_of",
    "rows_digest",
    "write_layer",
]

NOT_ICE = [k for k in range(len(CLASSES)) if k not in ICE]
LAYERS = ("glaciers", "classes")


def equal_area_crs(
    crs: Any,  # coordinate reference system of the scene, as rasterio or pyproj have it
    x: float,  # a place within the scene, in it
    y: float,
) -> CRS:
    """Return the Lambert azimuthal equal-area projection around a place, on WGS 84, in metres.

    >>> equal_area_crs("EPSG:32645", 500_000, 3_100_000).coordinate_operation.method_name
    'Lambert Azimuthal Equal Area'
    """
    lon, lat = geopandas.GeoSeries([shapely.Point(x, y)], crs=CRS(crs)).to_crs("EPSG:4326").iloc[0].coords[0]
    return CRS.from_proj4(f"+proj=laea +lat_0={lat:.6f} +lon_0={lon:.6f} +datum=WGS84 +units=m +no_defs")


def regions_of(
    values: Any,  # raster band, or (H, W) of bytes
    mask: Any,  # the same, 0 where no polygon is wanted
    transform: Any,  # affine transform from (col, row)
) -> tuple[np.ndarray, np.ndarray]:
    """Return the outlines of the 4-connected regions of equal value, object array `(n,)`, and the value of each.

    They come in the order of their first pixels, as `core.regions.Regions`. GDAL reads a raster row by row.

    >>> classes = np.array([[0, 2], [1, 2]], np.uint8)
    >>> polygons, codes = regions_of(classes, classes, rasterio.Affine(30, 0, 600, 0, -30, 900))
    >>> shapely.area(polygons), codes
    (array([1800.,  900.]), array([2, 1]))
    """
    drawn = list(shapes(values, mask, transform=transform))
    found = np.array([shapely.geometry.shape(outline) for outline, _ in drawn], object)
    xy, polygon = shapely.get_coordinates(shapely.get_exterior_ring(found), return_index=True)
    corners = np.rint(affine(xy, ~transform))  # column, row
    top_left = np.lexsort((*corners.T, polygon))
    first = corners[top_left[np.unique(polygon[top_left], return_index=True)[1]]]
    order = np.lexsort(first.T)
    return found[order], np.array([int(value) for _, value in drawn], int)[order]


def affine(
    xy: np.ndarray,  # (n, 2) or (2,)
    transform: Any,  # affine transform
) -> np.ndarray:
    """Return places after a transform."""
    a, b, c, d, e, f = transform[:6]
    return xy @ np.array([[a, d], [b, e]]) + np.array([c, f])


def _in_geopackage(crs: CRS) -> bool:
    """Return whether a GeoPackage keeps it: pyogrio writes an EPSG code, else the old WKT, which knows less."""
    try:
        return crs.to_epsg() is not None or same_crs(crs, CRS(crs.to_wkt("WKT1_GDAL")))
    except CRSError:
        return False


def crs_of_areas(
    source: Place,  # size and grid of the scene
    name: str,  # of the file of polygons, for messages
) -> CRS:
    """Return `equal_area_crs` around a scene; raises `DataError` if there is none, or no GeoPackage of its CRS."""
    try:
        near = equal_area_crs(source.crs, *affine(np.array([source.width / 2, source.height / 2]), source.transform))
    except ProjError as err:
        raise DataError(
            f"{name}: no areas, as the scene's coordinate reference system does not lead to the Earth "
            f"({' '.join(str(err).split())[:200]}); assign the right one, or leave out the outlines"
        ) from err
    if not _in_geopackage(CRS(source.crs)):
        raise DataError(
            f"{name}: a GeoPackage cannot hold the scene's coordinate reference system "
            f"({CRS(source.crs).name}); bring the scene to another one (gdalwarp -t_srs), or leave out the outlines"
        )
    return near


class Outlines(RasterMap):
    """Keeps a map in a temporary raster and writes its outlines when all of it has come.

    Of the layers, `glaciers` are connected ice (clean or debris-covered), `classes` connected pixels of one class but
    background; pixels are connected along their sides. Areas are those of the pixels' outlines, whatever is simplified
    then.
    """

    def __init__(
        self,
        path: str | os.PathLike,  # GeoPackage to write
        source: Place,  # size and grid of the scene
        area: tuple[float, float] | None = None,  # of `Calibration`; None: no intervals
        simplify: float = 0.0,  # tolerance in pixels (Visvalingam-Whyatt); neighbours keep their common edges
        geoparquet: bool = False,  # write PATH_glaciers.parquet and PATH_classes.parquet beside it, too
    ):
        super().__init__(path, source, LAYERS, nodata=0)
        check_name(self.path)
        self.source, self.area, self.simplify, self.geoparquet = source, area, simplify, geoparquet
        if geoparquet:
            check_geoparquet()
        self.glaciers, self.classes = RegionSums(source.width, 3), RegionSums(source.width, 1)
        t = source.transform
        self.pixel = abs(t.a * t.e - t.b * t.d) ** 0.5
        self.near = crs_of_areas(source, self.path.name)

    def values(self, strip: Strip) -> np.ndarray:
        """Return ice of any kind as 1, and the classes."""
        return np.stack([np.isin(strip.classes, ICE), np.where(strip.classes == IGNORE, 0, strip.classes)], dtype="u1")

    def write(self, strip: Strip) -> None:
        """Take the next rows."""
        super().write(strip)
        ice, codes = self.values(strip)
        confidence = np.take_along_axis(strip.probs, codes[None].astype(np.intp), 0)[0]
        debris = codes == CLASSES.index("debris")
        self.glaciers.add(ice, [confidence, debris, strip.probs[NOT_ICE].sum(0)])
        self.classes.add(codes, [confidence])

    def tables(self) -> dict[str, geopandas.GeoDataFrame]:
        """Return the layers by name, in the scene's coordinate reference system; all rows must have come."""
        with writing(self.path):
            self.raster.close()
            self.check(self.plain)
        regions = self.glaciers.finish()
        confidence, debris, _ = (regions.sums / regions.pixels[:, None]).T
        glaciers, km2 = self._table("glaciers", regions)
        low = high = np.full(len(km2), np.nan)
        if self.area:
            ends = area_interval(regions.pixels, regions.sums[:, 2], *self.area)
            scale = np.where(regions.pixels < LEAST, np.nan, km2 / regions.pixels)
            low, high = (end * scale for end in ends)
        glaciers = glaciers.assign(
            area_km2=km2, area_low_km2=low, area_high_km2=high, debris_share=debris, confidence=confidence
        )
        regions = self.classes.finish()
        classes, km2 = self._table("classes", regions)
        names, mean = np.array(CLASSES)[regions.value], regions.sums[:, 0] / regions.pixels
        return {
            "glaciers": glaciers,
            "classes": classes.assign(**{"class": names, "area_km2": km2, "confidence": mean}),
        }

    def _table(self, layer: str, regions: Regions) -> tuple[geopandas.GeoDataFrame, np.ndarray]:
        """Return the polygons of regions with their numbers, and their areas in km2."""
        with rasterio.open(self.plain) as file:
            band = rasterio.band(file, 1 + LAYERS.index(layer))
            outlines, _ = regions_of(band, band, file.transform)
        rings, polygon = shapely.get_rings(outlines, return_index=True)
        rings = shapely.segmentize(rings, 64 * self.pixel)  # as polygons, GEOS would mend each one
        fine = geopandas.GeoSeries(shapely.polygons(rings, indices=polygon), crs=CRS(self.source.crs))
        km2 = fine.to_crs(self.near).area.to_numpy() / 1e6
        if self.simplify and len(outlines):
            outlines = shapely.coverage_simplify(outlines, self.simplify * self.pixel)
        ids = {"id": np.arange(1, len(outlines) + 1)}
        return geopandas.GeoDataFrame(ids, geometry=outlines, crs=CRS(self.source.crs)), km2

    def __exit__(self, kind, value, trace) -> None:
        try:
            if kind is None:
                for name, table in self.tables().items():
                    parquet = self.path.with_name(f"{self.path.stem}_{name}.parquet") if self.geoparquet else None
                    write_layer(table, self.path, name, "Polygon", parquet)
                write_styles(self.path, "glaciers", "classes")
        finally:
            self.discard()


def check_geoparquet() -> None:
    """Raise `PredictionError` if GeoParquet cannot be written here."""
    if find_spec("pyarrow") is None:
        raise PredictionError("GeoParquet needs pyarrow: pip install 'glacier-fastai[geoparquet]'")


def check_name(path: Path) -> None:
    """Raise `OutputError` for a name that pyogrio takes for that of an archive, or of another file."""
    if "!" in str(path.absolute()) or ";" in path.name:
        raise OutputError(f"{path}: no layer can be written by a name with ! or ; in it; choose another name or folder")


def write_layer(
    table: geopandas.GeoDataFrame,
    path: Path,  # GeoPackage
    layer: str,
    kind: str,  # of its geometries, such as "MultiPolygon"
    parquet: Path | None = None,  # GeoParquet that is written, too
) -> None:
    """Write a layer and look whether it is whole; raises `OutputError`."""
    check_name(path)
    with writing(path):
        table.to_file(path, layer=layer, driver="GPKG", geometry_type=kind)
        check_layer(path, layer, len(table))
        if parquet:
            with whole_file(parquet) as file:
                table.to_parquet(file)


def rows_digest(
    path: Path,  # GeoPackage
) -> str:
    """Return the SHA-256 of the rows of all its layers, whatever viewers keep beside them; raises `OSError`."""
    found = hashlib.sha256()
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as file:
            layers = file.execute("SELECT table_name FROM gpkg_contents WHERE data_type = 'features' ORDER BY 1")
            for (layer,) in layers.fetchall():
                found.update(layer.encode())
                for row in file.execute('SELECT * FROM "{}" ORDER BY 1'.format(layer.replace('"', '""'))):
                    found.update(repr(row).encode())
    except sqlite3.Error as err:
        raise OSError(str(err)) from err
    return found.hexdigest()


def check_layer(
    path: Path,  # GeoPackage
    layer: str,
    rows: int | None = None,  # that it must have, default any number
) -> None:
    """Raise `OSError` if a layer is not whole; GDAL need not say what it could not write."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as file:
            said = file.execute("PRAGMA quick_check").fetchone()[0]
            there = file.execute(f'SELECT count(*) FROM "{layer}"').fetchone()[0]
            if rows is not None:  # as it was just written: with the spatial index
                drawn = f'SELECT (SELECT count(geom) FROM "{layer}") - (SELECT count(*) FROM "rtree_{layer}_geom")'
                there -= max(0, file.execute(drawn).fetchone()[0])
    except sqlite3.Error as err:
        raise OSError(str(err)) from err
    if said != "ok" or rows not in (None, there):
        raise OSError(f"{there} of {rows} rows of layer {layer} are there ({said})")
