"""Scenes: GeoTIFFs with any bands, and polygons or a label raster, to a tile store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from ...bands import CLASSES, ICE, IGNORE
from ...core.tiling import starts
from ...errors import DataError
from ..scenes.geotiff import SceneRaster
from ..scenes.raster import open_raster, reading
from ..tiles import TileStore, TileWriter, store_dtype
from .outlines import Outlines, burn_outlines, open_outlines, parse_outlines

__all__ = ["SceneRaster", "parse_outlines", "prepare_scenes"]


def _label_mask(scene: SceneRaster, path: str | os.PathLike) -> np.ndarray:
    with open_raster(path) as raster, reading(path):
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
    outlines: Sequence[Outlines] = (),  # or polygons for all scenes, in any vector format: a file, or (class, file)
    class_field: str | None = None,  # column with class names or codes, in those given without class
    all_touched: bool = False,  # burn every pixel that a polygon touches, not only those whose centre it covers
    empty_is_background: bool = False,  # a scene without any polygon shows no ice; default: it is unlabelled
    bands: Sequence[str] | None = None,  # names of the bands, default the band descriptions
    sensor: str | None = None,  # one of `bands.SENSORS`
    tile_size: int = 128,  # side of a tile, pixels
    overlap: int = 0,  # least overlap of neighbouring tiles, pixels
    min_ice: float = 0.0,  # least share of labelled pixels that are ice (glacier or debris) for a tile to be kept
    min_valid: float = 0.0,  # least share of pixels with data; tiles without any are never kept
) -> TileStore:
    """Cut scenes with their labels into a tile store.

    >>> from pathlib import Path
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
    if labels and len(labels) != len(scenes):
        raise DataError(f"{len(scenes)} scenes, but {len(labels)} label rasters: give one per scene, in the same order")
    shapes = ["=".join(map(str, o)) if isinstance(o, tuple) else str(o) for o in outlines]
    made_by = {
        "scenes": [str(p) for p in scenes],
        "labels": [str(p) for p in labels],
        "outlines": shapes,
        "class_field": class_field,
        "all_touched": all_touched,
        "empty_is_background": empty_is_background,
        "overlap": overlap,
        "min_ice": min_ice,
        "min_valid": min_valid,
    }
    with ExitStack() as stack:
        opened = [stack.enter_context(SceneRaster(path, bands, sensor)) for path in scenes]
        names = opened[0].bands
        for scene in opened:
            if set(scene.bands) != set(names):
                raise DataError(f"{scene.path}: bands {', '.join(scene.bands)}, but {scenes[0]} has {', '.join(names)}")
            if (least := min(scene.height, scene.width)) < tile_size:
                raise DataError(
                    f"{scene.path}: {scene.height} x {scene.width} px, smaller than a tile of {tile_size}; set "
                    f"tile_size to at most {least}"
                )
        files, bare = open_outlines(outlines, class_field), []
        dtype = store_dtype(np.result_type(*(s.dtype for s in opened)))
        writer = stack.enter_context(TileWriter(out, names, tile_size, dtype, "scene", sensor or "", made_by))
        for k, scene in enumerate(opened):
            if labels:
                mask = _label_mask(scene, labels[k])
            else:
                grid = (scene.crs, scene.transform, (scene.height, scene.width))
                mask, found = burn_outlines(
                    files, *grid, all_touched=all_touched, notes=writer.info["notes"], scene=scene.path
                )
                if not found:
                    bare.append(scene.path)
                    mask[:] = 0 if empty_is_background else IGNORE
            if not _cut(scene, mask, writer, tile_size, overlap, min_ice, min_valid):
                raise DataError(f"{scene.path}: every pixel is nodata")
        if outlines and len(bare) == len(opened):
            raise DataError(
                f"{', '.join(shapes)}: no polygon lies on {', '.join(map(str, scenes))}; check that both show the same "
                "place"
            )
        for path in bare:
            held = "background, as empty_is_background says" if empty_is_background else "unlabelled"
            writer.note(f"{path}: no polygon lies on it, though some lie on other scenes; its tiles are {held}")
        if not writer.rows:
            raise DataError(
                f"{', '.join(map(str, scenes))}: no tile has {min_ice:.0%} ice and {min_valid:.0%} data; lower min_ice "
                "or min_valid"
            )
    return TileStore(out)


def _cut(
    scene: SceneRaster, mask: np.ndarray, writer: TileWriter, size: int, overlap: int, min_ice: float, min_valid: float
) -> bool:
    """Write the tiles of a scene that are to be kept, and return whether any of its pixels has data."""
    index = [scene.bands.index(b) for b in writer.bands]
    any_data, t = False, scene.transform
    for row in starts(scene.height, size, overlap):
        for col in starts(scene.width, size, overlap):
            values, valid = scene.read_window(index, row, col, size, size)
            any_data |= bool(valid.any())
            label = mask[row : row + size, col : col + size]
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
    return any_data
