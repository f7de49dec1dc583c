"""Scenes: GeoTIFFs with any bands, and polygons or a label raster, to a tile store."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from ...bands import CLASSES, ICE, IGNORE, SENSORS, Bands, canonical_band
from ...core.tiling import starts
from ...errors import DataError, did_you_mean
from ..tiles import TileStore, TileWriter, store_dtype

__all__ = ["SceneRaster", "prepare_scenes", "read_outlines"]


class SceneRaster:
    """A scene on disk: its bands by name, its grid, and windows of values with their valid pixels.

    Use as a context manager. A pixel has no data where any band wanted declares it so (nodata value or mask), where any
    of them is NaN or infinite, or, in unsigned integers, where all of them are 0. A band named "-" is left out; if it
    is the alpha band, it masks.
    """

    def __init__(
        self,
        path: str | os.PathLike,  # a GeoTIFF or anything else that GDAL reads
        bands: Sequence[str] | None = None,  # names of its bands, default its band descriptions
        sensor: str | None = None,  # one of `bands.SENSORS`, to read names such as "B4"
    ):
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file")
        if sensor is not None and sensor not in SENSORS:
            raise DataError(f"unknown sensor {sensor!r}: use {', '.join(SENSORS)}{did_you_mean(sensor, SENSORS)}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)  # said below, as an error
                self.raster = rasterio.open(self.path)
        except RasterioError as err:
            raise DataError(f"{self.path}: not a raster, or damaged ({_line(err)})") from err
        try:
            self.bands, self._numbers = self._names(bands, sensor)
            if self.raster.crs is None:
                raise DataError(f"{self.path}: has no coordinate reference system; assign one (gdal_edit.py -a_srs)")
            if any(t.startswith("complex") for t in self.raster.dtypes):
                raise DataError(f"{self.path}: holds complex numbers; give real ones, such as amplitudes")
        except BaseException:
            self.raster.close()
            raise
        self.height, self.width = self.raster.height, self.raster.width
        self.crs, self.transform = self.raster.crs, self.raster.transform
        self.dtype = np.result_type(*self.raster.dtypes)

    def _names(self, bands: Sequence[str] | None, sensor: str | None) -> tuple[tuple[str, ...], list[int]]:
        count, where = self.raster.count, f"{self.path}: {self.raster.count} bands"
        given = list(bands) if bands else list(self.raster.descriptions)
        if bands and len(given) != count:
            raise DataError(f"{where}, but --bands names {len(given)}: name every band of the file in its order")
        if unnamed := [i + 1 for i, d in enumerate(given) if not d]:
            raise DataError(
                f"{where}, band {unnamed[0]} has no description; name all of them: --bands blue,green,red,nir"
            )
        numbers = [i + 1 for i, b in enumerate(given) if b.strip() != "-"]
        try:
            return Bands(canonical_band(given[n - 1], sensor) for n in numbers), numbers
        except DataError as err:
            raise DataError(f"{self.path}: {err}; --bands names the file's bands, '-' leaves one out") from err

    def read(
        self,
        index: Sequence[int],  # positions of the bands wanted
        row: int,  # first row
        col: int,  # first column
        height: int,  # rows
        width: int,  # columns
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return values `(C, H, W)` as delivered, and bool `(H, W)`: True where every wanted band has data."""
        window, numbers = Window(col, row, width, height), [self._numbers[i] for i in index]
        try:
            values = self.raster.read(numbers, window=window, out_dtype=self.dtype)  # bands may differ in type
            valid = np.ones(values.shape[1:], bool)
            for number in self._masks(numbers):
                valid &= self.raster.read_masks(number, window=window) > 0
        except RasterioError as err:
            raise DataError(f"{self.path}: cut short or damaged ({_line(err)}); copy it again") from err
        for band, number in zip(values, numbers, strict=True):
            nodata = self.raster.nodatavals[number - 1]
            if nodata is not None and not np.isnan(nodata):
                valid &= band != nodata
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(0)
        elif values.dtype.kind == "u":
            valid &= (values != 0).any(0)
        return values, valid

    def _masks(self, numbers: Sequence[int]) -> list[int]:
        """Return the bands whose mask counts: GDAL takes any fourth band of bytes for alpha, which nir is not."""
        flags, kinds = self.raster.mask_flag_enums, self.raster.colorinterp
        own = [n for n in numbers if MaskFlags.per_dataset in flags[n - 1] and MaskFlags.alpha not in flags[n - 1]]
        skipped_alpha = any(k == ColorInterp.alpha and n not in self._numbers for n, k in enumerate(kinds, 1))
        return own or (numbers[:1] if skipped_alpha else [])

    def __enter__(self) -> SceneRaster:
        return self

    def __exit__(self, *exc) -> None:
        self.raster.close()


def _line(err: Exception) -> str:
    return " ".join(str(err).split())


def read_outlines(
    path: str | os.PathLike,  # polygons in any vector format
    crs: Any,  # the scene's coordinate reference system, to which they are brought
    class_field: str | None = None,  # column of class names or codes, default: every polygon is of `class_name`
    class_name: str = "glacier",  # class of every polygon, without `class_field`
    bounds: tuple[float, float, float, float] | None = None,  # left, bottom, right, top in `crs`: look there only
) -> list[tuple[Any, int]]:
    """Return `(polygon, class code)` pairs, sorted so that debris is burned over glacier, and lake over both.

    Raises:
        DataError: Unreadable, without coordinate reference system, geometry other than polygons, invalid polygons, or
            a class column that is absent or holds an unknown class.
    """
    import geopandas
    from pyogrio import list_layers, read_info
    from pyogrio.errors import DataSourceError
    from shapely import is_valid_reason
    from shapely.geometry import box

    path = Path(path)
    near = geopandas.GeoSeries([box(*bounds).buffer(0.01 * (bounds[2] - bounds[0]))], crs=crs) if bounds else None
    if not path.exists():
        raise DataError(f"{path}: no such file")
    try:
        layers = [name for name, kind in list_layers(path) if kind is not None]
        if len(layers) > 1:
            raise DataError(
                f"{path}: has layers {', '.join(layers)}; keep one (ogr2ogr one.gpkg {path.name} {layers[0]})"
            )
        if not layers or read_info(path)["crs"] is None:
            raise DataError(f"{path}: has no geometry or no coordinate reference system; assign one (ogr2ogr -a_srs)")
        table = geopandas.read_file(path, bbox=near)
    except DataSourceError as err:
        raise DataError(f"{path}: not a vector file, or damaged ({_line(err)})") from err
    table = table[~(table.geometry.isna() | table.geometry.is_empty)]
    if not len(table):
        return []
    if not (kinds := set(table.geom_type)) <= {"Polygon", "MultiPolygon"}:
        raise DataError(f"{path}: holds {', '.join(sorted(kinds))}; outlines must be polygons")
    if not table.geometry.is_valid.all():
        table = geopandas.read_file(path)  # all of it, so that rows are those of the file
        ok = table.geometry.is_valid | table.geometry.isna()
        row = int(np.flatnonzero(~ok)[0])
        reason = is_valid_reason(table.geometry.iloc[row])
        raise DataError(
            f"{path}: {int((~ok).sum())} invalid polygons, the first in row {row} ({reason}); repair them in QGIS "
            "(Fix geometries) or with shapely.make_valid"
        )
    if class_field is None:
        codes = [CLASSES.index(class_name)] * len(table)
    elif class_field not in table.columns:
        columns = [c for c in table.columns if c != "geometry"]
        raise DataError(
            f"{path}: no column {class_field!r}; it has {', '.join(columns)}{did_you_mean(class_field, columns)}"
        )
    else:
        codes = [_class_code(v, path, class_field) for v in table[class_field]]
    geometry = table.geometry.to_crs(crs)
    return sorted(zip(geometry, codes, strict=True), key=lambda pair: pair[1])


def _class_code(value: Any, path: Path, field: str) -> int:
    text = str(value).strip().lower()
    if text in CLASSES:
        return CLASSES.index(text)
    try:
        if float(text) in range(len(CLASSES)):
            return int(float(text))
    except ValueError:
        pass
    names = ", ".join(f"{c} ({k})" for k, c in enumerate(CLASSES))
    raise DataError(f"{path}: {field} holds {value!r}; allowed are {names}{did_you_mean(text, CLASSES)}")


def _outline_mask(
    scene: SceneRaster, outlines: Sequence[str | os.PathLike], class_field: str | None
) -> tuple[np.ndarray, bool]:
    """Return the mask, and whether any polygon lies on the scene."""
    from rasterio.features import rasterize
    from shapely.geometry import box

    shapes, bounds = [], tuple(scene.raster.bounds)
    for text in outlines:
        name, sign, rest = str(text).partition("=")
        if sign and name in CLASSES:
            shapes += read_outlines(rest, scene.crs, None, name, bounds)
        elif sign and not Path(text).exists() and Path(rest).exists():
            raise DataError(f"{text}: {name!r} is no class; use {', '.join(CLASSES)}{did_you_mean(name, CLASSES)}")
        else:
            shapes += read_outlines(text, scene.crs, class_field, bounds=bounds)
    frame = box(*bounds)
    shapes = sorted((s for s in shapes if frame.intersects(s[0])), key=lambda pair: pair[1])
    size = (scene.height, scene.width)
    if not shapes:
        return np.zeros(size, np.uint8), False
    return rasterize(shapes, out_shape=size, transform=scene.transform, fill=0, dtype="uint8"), True


def _label_mask(scene: SceneRaster, path: str | os.PathLike) -> np.ndarray:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with rasterio.open(path) as raster:
            if raster.count != 1:
                raise DataError(f"{path}: {raster.count} bands; a label raster has one")
            if (raster.height, raster.width) != (scene.height, scene.width):
                raise DataError(
                    f"{path}: {raster.height} x {raster.width} px, but {scene.path} has {scene.height} x "
                    f"{scene.width}; the label must lie on the scene's grid"
                )
            if raster.crs is not None and (
                raster.crs != scene.crs or not raster.transform.almost_equals(scene.transform, 1e-3)
            ):
                raise DataError(f"{path}: does not lie on the grid of {scene.path}; warp it there (gdalwarp)")
            label = raster.read(1)
            known = raster.read_masks(1) > 0
    except RasterioError as err:
        raise DataError(f"{path}: not a raster, or damaged ({_line(err)})") from err
    if label.dtype.kind == "f":
        known &= np.isfinite(label)
    codes = np.unique(label[known])
    if unknown := [f"{c:g}" for c in codes if c not in (*range(len(CLASSES)), IGNORE)]:
        names = ", ".join(f"{k} {c}" for k, c in enumerate(CLASSES))
        raise DataError(f"{path}: unknown codes {', '.join(unknown[:8])}; allowed are {names} and {IGNORE} (no label)")
    return np.where(known, label, IGNORE).astype(np.uint8)


def prepare_scenes(
    scenes: Sequence[str | os.PathLike],  # GeoTIFFs, all with the same bands
    out: str | os.PathLike,  # folder of the store to make
    *,
    labels: Sequence[str | os.PathLike] = (),  # one label raster per scene, codes 0..3 and 255 = no label
    outlines: Sequence[str | os.PathLike] = (),  # or polygons for all scenes, in any vector format: FILE or CLASS=FILE
    class_field: str | None = None,  # column with class names or codes, in those given without class
    bands: Sequence[str] | None = None,  # names of the bands, default the band descriptions
    sensor: str | None = None,  # one of `bands.SENSORS`
    tile_size: int = 128,  # side of a tile, pixels
    overlap: int = 0,  # least overlap of neighbouring tiles, pixels
    min_ice: float = 0.0,  # least share of labelled pixels that are ice (glacier or debris) for a tile to be kept
    min_valid: float = 0.0,  # least share of pixels with data; tiles without any are never kept
) -> TileStore:
    """Cut scenes with their labels into a tile store.

    Raises:
        DataError: Anything about the input that cannot be used, in one line.
        OutputError: `out` exists already or cannot be written.
    """
    if bool(labels) == bool(outlines):
        raise DataError("give either label rasters (--label) or outlines (--outlines)")
    if labels and len(labels) != len(scenes):
        raise DataError(f"{len(scenes)} scenes, but {len(labels)} label rasters: give one per scene, in the same order")
    opened: list[SceneRaster] = []
    try:
        for path in scenes:
            opened.append(SceneRaster(path, bands, sensor))
        names = opened[0].bands
        for scene in opened:
            if set(scene.bands) != set(names):
                raise DataError(f"{scene.path}: bands {', '.join(scene.bands)}, but {scenes[0]} has {', '.join(names)}")
            if min(scene.height, scene.width) < tile_size:
                raise DataError(
                    f"{scene.path}: {scene.height} x {scene.width} px, smaller than a tile of {tile_size}; "
                    f"use --tile-size {min(scene.height, scene.width)} or less"
                )
        made_by = {
            "scenes": [str(p) for p in scenes],
            "labels": [str(p) for p in labels],
            "outlines": [str(p) for p in outlines],
            "class_field": class_field,
            "overlap": overlap,
            "min_ice": min_ice,
            "min_valid": min_valid,
        }
        outlined = False
        dtype = store_dtype(np.result_type(*(s.dtype for s in opened)))
        with TileWriter(out, names, tile_size, dtype, "scene", sensor or "", made_by) as writer:
            for k, scene in enumerate(opened):
                if labels:
                    mask = _label_mask(scene, labels[k])
                else:
                    mask, found = _outline_mask(scene, outlines, class_field)
                    outlined |= found
                index = [scene.bands.index(b) for b in names]
                blank, t = True, scene.transform
                for row in starts(scene.height, tile_size, overlap):
                    for col in starts(scene.width, tile_size, overlap):
                        values, valid = scene.read(index, row, col, tile_size, tile_size)
                        blank &= not valid.any()
                        label = mask[row : row + tile_size, col : col + tile_size]
                        known = label[valid & (label != IGNORE)]
                        least = max(1, min_ice * known.size) if min_ice else 0
                        if not valid.any() or valid.mean() < min_valid or np.isin(known, ICE).sum() < least:
                            continue
                        writer.add(
                            values,
                            label,
                            valid=valid,
                            scene=scene.path.stem,
                            row=row,
                            col=col,
                            crs=scene.crs.to_string(),
                            transform=(t.a, t.b, t.c + col * t.a + row * t.b, t.d, t.e, t.f + col * t.d + row * t.e),
                        )
                if blank:
                    raise DataError(f"{scene.path}: every pixel is nodata")
            if outlines and not outlined:
                raise DataError(
                    f"{', '.join(map(str, outlines))}: no polygon lies on {', '.join(map(str, scenes))}; "
                    "check that both show the same place"
                )
            if not writer.rows:
                raise DataError(
                    f"{', '.join(map(str, scenes))}: no tile has {min_ice:.0%} ice and {min_valid:.0%} data; "
                    "lower --min-ice or --min-valid"
                )
    finally:
        for scene in opened:
            scene.raster.close()
    return TileStore(out)
