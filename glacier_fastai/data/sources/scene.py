"""Scenes: GeoTIFFs with any bands, and polygons or a label raster, to a tile store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ...bands import CLASSES, ICE, ICE_OF_ANY_KIND, IGNORE
from ...core.tiling import starts
from ...errors import DataError, did_you_mean
from ..scenes.geotiff import SceneRaster
from ..scenes.units import Given, Scaling
from ..tiles import TileStore, TileWriter, store_dtype
from .labels import label_masks

__all__ = ["SceneRaster", "parse_outlines", "prepare_scenes", "read_outlines"]

Outlines = str | os.PathLike | tuple[str, str | os.PathLike]
"""A file of polygons, or a class and the file of its polygons."""


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
    if class_name not in CLASSES:
        raise DataError(
            f"{path}: {class_name!r} is no class; use {', '.join(CLASSES)}{did_you_mean(class_name, CLASSES)}"
        )
    around = geopandas.GeoSeries([box(*bounds).buffer(0.01 * (bounds[2] - bounds[0]))], crs=crs) if bounds else None
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
        table = geopandas.read_file(path, bbox=around)
    except DataSourceError as err:
        raise DataError(f"{path}: not a vector file, or damaged ({' '.join(str(err).split())})") from err
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


def parse_outlines(
    texts: Iterable[str],  # FILE, or CLASS=FILE, as people write them
) -> list[Outlines]:
    """Return outlines as `prepare_scenes` takes them.

    >>> parse_outlines(["rgi.gpkg", "debris=covered.shp", "a=b.gpkg"])
    ['rgi.gpkg', ('debris', 'covered.shp'), ('a', 'b.gpkg')]
    """
    out: list[Outlines] = []
    for text in texts:
        name, sign, path = text.partition("=")
        whole = not sign or (name not in CLASSES and Path(text).exists())  # a file's name may hold the sign
        out.append(text if whole else (name, path))
    return out


def _outline_mask(scene: SceneRaster, outlines: Sequence[Outlines], class_field: str | None) -> tuple[np.ndarray, bool]:
    """Return the mask, and whether any polygon lies on the scene."""
    from rasterio.features import rasterize
    from shapely.geometry import box

    shapes, bounds = [], tuple(scene.raster.bounds)
    for item in outlines:
        if isinstance(item, tuple):
            shapes += read_outlines(item[1], scene.crs, None, item[0], bounds)
        else:
            shapes += read_outlines(item, scene.crs, class_field, bounds=bounds)
    frame = box(*bounds)
    shapes = sorted((s for s in shapes if frame.intersects(s[0])), key=lambda pair: pair[1])
    size = (scene.height, scene.width)
    if not shapes:
        return np.zeros(size, np.uint8), False
    return rasterize(shapes, out_shape=size, transform=scene.transform, fill=0, dtype="uint8"), True


def prepare_scenes(
    scenes: Sequence[str | os.PathLike],  # GeoTIFFs, all with the same bands
    out: str | os.PathLike,  # folder of the store to make
    *,
    labels: Sequence[str | os.PathLike] = (),  # one label raster per scene, see `labels.label_masks`
    align: bool = False,  # bring labels on another grid to that of the scene, nearest pixel
    outlines: Sequence[Outlines] = (),  # or polygons for all scenes, in any vector format: a file, or (class, file)
    class_field: str | None = None,  # column with class names or codes, in those given without class
    bands: Sequence[str] | None = None,  # names of the bands, default the band descriptions
    sensor: str | None = None,  # one of `data.scenes.names.SENSORS`
    scale: Given = None,  # what the files' numbers are multiplied with, default as each says; see `data.scenes.units`
    offset: Given = None,  # what is added then
    tile_size: int = 128,  # side of a tile, pixels
    overlap: int = 0,  # least overlap of neighbouring tiles, pixels
    min_ice: float = 0.0,  # least share of labelled pixels that are ice (glacier or debris) for a tile to be kept
    min_valid: float = 0.0,  # least share of pixels with data; tiles without any are never kept
) -> TileStore:
    """Cut scenes with their labels into a tile store.

    >>> from tempfile import TemporaryDirectory
    >>> from glacier_fastai.data.sources.synthetic import write_scene
    >>> with TemporaryDirectory() as folder:
    ...     scene, label = write_scene(Path(folder) / "scene.tif", size=64)
    ...     store = prepare_scenes([scene], Path(folder) / "tiles", labels=[label], tile_size=32)
    >>> len(store), store.bands
    (4, ('blue', 'green', 'red', 'swir1', 'thermal'))

    Raises:
        DataError: Anything about the input that cannot be used, in one line.
        OutputError: `out` exists already or cannot be written.
    """
    if bool(labels) == bool(outlines):
        raise DataError("give either label rasters (`labels`) or polygons (`outlines`)")
    if align and not labels:
        raise DataError("`align` is for label rasters; polygons are brought to the scene's grid as they are")
    if labels and len(labels) != len(scenes):
        raise DataError(f"{len(scenes)} scenes, but {len(labels)} label rasters: give one per scene, in the same order")
    shapes = ["=".join(map(str, o)) if isinstance(o, tuple) else str(o) for o in outlines]
    made_by = {
        "scenes": [str(p) for p in scenes],
        "labels": [str(p) for p in labels],
        "align": align,
        "outlines": shapes,
        "class_field": class_field,
        "overlap": overlap,
        "min_ice": min_ice,
        "min_valid": min_valid,
    }
    with ExitStack() as stack:
        read: dict[str, Any] = {"scale": scale, "offset": offset}
        opened = [stack.enter_context(SceneRaster(path, bands, sensor, **read)) for path in scenes]
        names = opened[0].bands
        for scene in opened:
            if set(scene.bands) != set(names):
                raise DataError(f"{scene.path}: bands {', '.join(scene.bands)}, but {scenes[0]} has {', '.join(names)}")
            if (least := min(scene.height, scene.width)) < tile_size:
                raise DataError(
                    f"{scene.path}: {scene.height} x {scene.width} px, smaller than a tile of {tile_size}; set "
                    f"tile_size to at most {least}"
                )
        outlined = False
        scaling, dtype = _kept(opened)
        writer = TileWriter(out, names, tile_size, dtype, "scene", opened[0].sensor or "", made_by, scaling)
        stack.enter_context(writer)
        for scene in opened:
            for text in scene.look():
                writer.note(text)
        masks = label_masks(labels, opened, align, writer.note) if labels else iter(())
        for scene in opened:
            if labels:
                mask = next(masks)
            else:
                mask, found = _outline_mask(scene, outlines, class_field)
                outlined |= found
            if not _cut(scene, mask, writer, tile_size, overlap, min_ice, min_valid):
                raise DataError(f"{scene.path}: every pixel is nodata")
        if outlines and not outlined:
            raise DataError(
                f"{', '.join(shapes)}: no polygon lies on {', '.join(map(str, scenes))}; check that both show the same "
                "place"
            )
        if not writer.rows:
            raise DataError(
                f"{', '.join(map(str, scenes))}: no tile has {min_ice:.0%} ice and {min_valid:.0%} data; lower min_ice "
                "or min_valid"
            )
    return TileStore(out)


def _kept(scenes: Sequence[SceneRaster]) -> tuple[list[Scaling], np.dtype]:
    """Return what turns the numbers that are kept into values, and their type: as in the files where all are alike.

    Raises:
        DataError: A band is in other units than in the first scene.
    """
    first = scenes[0]
    scaling = [dict(zip(s.bands, s.scaling, strict=True)) for s in scenes]
    for scene, how in zip(scenes, scaling, strict=True):
        for band in first.bands:
            if how[band].unit != scaling[0][band].unit:
                raise DataError(
                    f"{scene.path}: band {band} is in {how[band].unit}, but in {scaling[0][band].unit} in {first.path} "
                    "(dn: unit unknown); give scale and offset of those without units, or make a store of each"
                )
    dtype = store_dtype(np.result_type(*(s.dtype for s in scenes)))
    if all(how[band] == scaling[0][band] for how in scaling for band in first.bands):
        return [scaling[0][band] for band in first.bands], dtype
    return [Scaling(unit=scaling[0][band].unit) for band in first.bands], np.dtype("float32")


def _cut(
    scene: SceneRaster, mask: np.ndarray, writer: TileWriter, size: int, overlap: int, min_ice: float, min_valid: float
) -> bool:
    """Write the tiles of a scene that are to be kept, and return whether any of its pixels has data."""
    index = [scene.bands.index(b) for b in writer.bands]
    any_data, t = False, scene.transform
    in_units = any(scene.scaling[i] != how for i, how in zip(index, writer.scaling, strict=True))
    for row in starts(scene.height, size, overlap):
        for col in starts(scene.width, size, overlap):
            values, valid = scene.read_window(index, row, col, size, size)
            if in_units:
                values = scene.in_units(values, index)
            any_data |= bool(valid.any())
            label = mask[row : row + size, col : col + size]
            known = label[valid & (label != IGNORE)]
            least = max(1, min_ice * known.size) if min_ice else 0
            if not valid.any() or valid.mean() < min_valid or np.isin(known, (*ICE, ICE_OF_ANY_KIND)).sum() < least:
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
    return any_data
