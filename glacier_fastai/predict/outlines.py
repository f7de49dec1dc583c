"""Outlines of a map: polygons of glaciers and of classes, with areas, as GeoPackage and GeoParquet."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import shapely
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError
from pyproj import CRS
from pyproj.exceptions import ProjError

from ..bands import CLASSES, ICE, IGNORE
from ..core.areas import LEAST, area_interval
from ..core.rings import Regions, RegionTracer
from ..errors import DataError, OutputError, PredictionError
from .sink import Strip

__all__ = ["Outlines", "equal_area_crs", "polygons"]

NOT_ICE = [k for k in range(len(CLASSES)) if k not in ICE]


def equal_area_crs(
    crs: Any,  # coordinate reference system of the scene, as rasterio or pyproj have it
    x: float,  # a place within the scene, in it
    y: float,
) -> CRS:
    """Return the Lambert azimuthal equal-area projection around a place, on WGS 84, in metres."""
    lon, lat = geopandas.GeoSeries([shapely.Point(x, y)], crs=CRS(crs)).to_crs("EPSG:4326").iloc[0].coords[0]
    return CRS.from_proj4(f"+proj=laea +lat_0={lat:.6f} +lon_0={lon:.6f} +datum=WGS84 +units=m +no_defs")


def polygons(
    regions: Regions,
    transform: Any,  # affine transform from (col, row) to the coordinates wanted
) -> np.ndarray:
    """Return the polygons of regions, object array `(n,)`; edges are those of pixels, holes are holes."""
    col, row = regions.corners.T.astype(np.float64)
    t = transform
    xy = np.stack([t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f], 1)
    if not len(xy):
        return np.empty(0, object)
    return shapely.polygons(shapely.linearrings(xy, indices=regions.ring), indices=regions.region)


class Outlines:
    """Traces a map and writes its outlines when all of it has come: layers `glaciers` and `classes`.

    `glaciers` are connected ice (clean or debris-covered), `classes` connected pixels of one class but background;
    pixels are connected along their sides. Areas are those of the pixels' outlines, whatever is simplified then.
    """

    def __init__(
        self,
        path: str | os.PathLike,  # GeoPackage to write
        source: Any,  # a `Source`: size and grid of the scene
        area: tuple[float, float] | None = None,  # of `Calibration`; None: no intervals
        simplify: float = 0.0,  # tolerance in pixels (Visvalingam-Whyatt); neighbours keep their common edges
        geoparquet: bool = False,  # write PATH_glaciers.parquet and PATH_classes.parquet beside it, too
    ):
        self.path, self.source, self.area = Path(path), source, area
        self.simplify, self.geoparquet = simplify, geoparquet
        if geoparquet and find_spec("pyarrow") is None:
            raise PredictionError("GeoParquet needs pyarrow: pip install 'glacier-fastai[geoparquet]'")
        self.glaciers, self.classes = RegionTracer(source.width, 3), RegionTracer(source.width, 1)
        t = source.transform
        self.pixel = abs(t.a * t.e - t.b * t.d) ** 0.5
        x, y = source.width / 2, source.height / 2
        try:
            self.near = equal_area_crs(source.crs, t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f)
        except ProjError as err:
            raise DataError(
                f"{self.path.name}: no areas, as the scene's coordinate reference system does not lead to the Earth "
                f"({' '.join(str(err).split())[:200]}); assign the right one, or leave out --outlines"
            ) from err

    def __enter__(self) -> Outlines:
        return self

    def write(self, strip: Strip) -> None:
        """Take the next rows."""
        codes = np.where(strip.classes == IGNORE, 0, strip.classes)
        ice = np.isin(codes, ICE)
        confidence = np.take_along_axis(strip.probs, codes[None].astype(np.intp), 0)[0]
        not_ice = strip.probs[NOT_ICE].sum(0)
        debris = (codes == CLASSES.index("debris")).astype(np.float32)
        self.glaciers.add(ice.astype(np.uint8), np.stack([confidence, debris, not_ice]))
        self.classes.add(codes, confidence[None])

    def tables(self) -> dict[str, geopandas.GeoDataFrame]:
        """Return the layers by name, in the scene's coordinate reference system."""
        regions = self.glaciers.finish()
        confidence, debris, doubt = (regions.sums / np.maximum(regions.pixels, 1)[:, None]).T
        glaciers, km2 = self._table(regions)
        low = high = np.full(len(km2), np.nan)
        if self.area and len(km2):
            ends = area_interval(regions.pixels, regions.sums[:, 2], *self.area)
            scale = np.where(regions.pixels < LEAST, np.nan, km2 / np.maximum(regions.pixels, 1))
            low, high = (end * scale for end in ends)
        glaciers = glaciers.assign(
            area_km2=km2, area_low_km2=low, area_high_km2=high, debris_share=debris, confidence=confidence
        )
        regions = self.classes.finish()
        classes, km2 = self._table(regions)
        names = np.array(CLASSES)[regions.value]
        mean = regions.sums[:, 0] / np.maximum(regions.pixels, 1)
        return {
            "glaciers": glaciers,
            "classes": classes.assign(**{"class": names, "area_km2": km2, "confidence": mean}),
        }

    def _table(self, regions: Regions) -> tuple[geopandas.GeoDataFrame, np.ndarray]:
        """Return polygons with their numbers, and their areas in km2."""
        shapes = polygons(regions, self.source.transform)
        fine = geopandas.GeoSeries(shapely.segmentize(shapes, 64 * self.pixel), crs=CRS(self.source.crs))
        km2 = fine.to_crs(self.near).area.to_numpy() / 1e6
        if self.simplify and len(shapes):
            shapes = shapely.coverage_simplify(shapes, self.simplify * self.pixel)
        table = geopandas.GeoDataFrame({"id": np.arange(1, len(shapes) + 1)}, geometry=shapes, crs=CRS(self.source.crs))
        return table, km2

    def __exit__(self, kind, value, trace) -> None:
        if kind is not None:
            return
        try:
            for name, table in self.tables().items():
                table.to_file(self.path, layer=name, driver="GPKG", geometry_type="Polygon")
                if self.geoparquet:
                    table.to_parquet(self.path.with_name(f"{self.path.stem}_{name}.parquet"))
        except (DataLayerError, DataSourceError, FeatureError, OSError) as err:
            cause = " ".join(str(err).split())
            raise OutputError(f"{self.path}: cannot be written ({cause}); make room, or choose another --out") from err
