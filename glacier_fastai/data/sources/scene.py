"""Scenes with any bands, and polygons or a label raster, to a tile store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from ...bands import ICE, ICE_OF_ANY_KIND, IGNORE
from ...core.ranges import unlike
from ...core.tiling import starts
from ...errors import DataError
from ...files import check_room
from ...memory import fits
from ..profile import LARGER, Profile
from ..scenes.address import Address, named
from ..scenes.masks import MaskCounts
from ..scenes.opening import HowRead, open_scene, scene_name
from ..scenes.raster import block_cache
from ..scenes.scene import Scene
from ..scenes.units import Scaling
from ..tiles import TileStore, TileWriter, store_dtype
from .labels import label_masks
from .outlines import Outlines, burn_outlines, open_outlines, unused_classes

__all__ = ["cut_scenes", "prepare_scenes"]


def prepare_scenes(
    scenes: Sequence[str | os.PathLike],  # see `scenes.opening.open_scene`; all with the same bands
    out: str | os.PathLike,  # folder of the store to make
    *,
    labels: Sequence[str | os.PathLike] = (),  # one label raster per scene, see `labels.label_masks`
    align: bool = False,  # bring labels on another grid to that of the scene, nearest pixel
    outlines: Sequence[Outlines] = (),  # or polygons for all scenes, see `vectors`: a file, or (class, file)
    class_field: str | None = None,  # column of classes, in files given without class; default: ice of unknown kind
    all_touched: bool = False,  # burn every pixel that a polygon touches, not only those whose centre it covers
    empty_is_background: bool = False,  # a scene without any polygon shows no ice; default: it is unlabelled
    tile_size: int = 128,  # side of a tile, pixels
    overlap: int = 0,  # least overlap of neighbouring tiles, pixels
    min_ice: float = 0.0,  # least share of labelled pixels that are ice (glacier or debris) for a tile to be kept
    min_valid: float = 0.0,  # least share of pixels with data; tiles without any are never kept
    **how: Unpack[HowRead],
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
    paths = [named(scene) for scene in scenes]
    if bool(labels) == bool(outlines):
        raise DataError("give either label rasters (`labels`) or polygons (`outlines`)")
    if align and not labels:
        raise DataError("`align` is for label rasters; polygons are brought to the scene's grid as they are")
    if labels and len(labels) != len(paths):
        raise DataError(f"{len(paths)} scenes, but {len(labels)} label rasters: give one per scene, in the same order")
    files = open_outlines(outlines, class_field)
    shapes = [f"{o[0]}={f.path}" if isinstance(o, tuple) else f.path for o, f in zip(outlines, files, strict=True)]
    made_by = {
        "scenes": [str(p) for p in paths],
        "labels": [str(named(p)) for p in labels],
        "align": align,
        "outlines": shapes,
        "class_field": class_field,
        "all_touched": all_touched,
        "empty_is_background": empty_is_background,
        "overlap": overlap,
        "min_ice": min_ice,
        "min_valid": min_valid,
    }

    def masks(looked: Sequence[_Looked], writer: TileWriter) -> Iterator[np.ndarray]:
        if labels:
            yield from label_masks(labels, looked, align, writer.note)
            return
        for text in filter(None, map(unused_classes, files)):
            writer.note(text)
        bare = []
        for scene in looked:
            grid = (scene.crs, scene.transform, (scene.height, scene.width))
            mask, found = burn_outlines(
                files, *grid, all_touched=all_touched, notes=writer.info["notes"], scene=scene.path
            )
            if not found:
                bare.append(scene.path)
                mask[:] = 0 if empty_is_background else IGNORE
            yield mask
        if len(bare) == len(looked):
            raise DataError(
                f"{', '.join(shapes)}: no polygon lies on {', '.join(map(str, paths))}; check that both show the same "
                "place"
            )
        for path in bare:
            held = "background, as empty_is_background says" if empty_is_background else "unlabelled"
            writer.note(f"{path}: no polygon lies on it, though some lie on other scenes; its tiles are {held}")

    return cut_scenes(paths, out, masks, made_by, tile_size, overlap, min_ice, min_valid, **how)


def cut_scenes(
    scenes: Sequence[Path | Address],
    out: str | os.PathLike,  # folder of the store to make
    masks: Callable[[Sequence[_Looked], TileWriter], Iterator[np.ndarray]],  # yields the mask of each scene, `(H, W)`
    made_by: dict[str, Any],  # for the record of the store
    tile_size: int,  # these as in `prepare_scenes`
    overlap: int = 0,
    min_ice: float = 0.0,
    min_valid: float = 0.0,
    labelled: bool = False,  # keep only tiles with a label
    **how: Unpack[HowRead],
) -> TileStore:
    """Cut scenes with any masks into a tile store; returns and raises as `prepare_scenes`."""
    looked: list[_Looked] = []
    for path in scenes:  # open one at a time: a process may not have so many files, and products have many each
        with open_scene(path, **how) as opened:
            looked.append(_look(opened, looked[0] if looked else None, tile_size))
    first = looked[0]
    scaling, dtype = _kept(looked)
    pixel = dtype.itemsize * len(first.bands) + 1
    if not (min_ice or min_valid or labelled):
        check_room(out, sum(s.height * s.width * s.valid for s in looked) * pixel / 2)
    sensors = {scene.sensor or "" for scene in looked}
    sensor = sensors.pop() if len(sensors) == 1 else ""
    writer = TileWriter(out, first.bands, tile_size, dtype, "scene", sensor, made_by, scaling)
    with writer, block_cache(max(scene.cached_bytes for scene in looked)):
        for scene in looked:
            for text in (*scene.notes, *_unlike_first(first, scene)):
                writer.note(text)
        for scene, mask in zip(looked, masks(looked, writer), strict=True):
            with open_scene(scene.path, **how) as opened:
                if _look(opened, first, tile_size) != scene:
                    raise DataError(f"{scene.path}: was changed while it was read; begin again when nobody writes it")
                if not _cut(opened, mask, writer, tile_size, overlap, min_ice, min_valid, labelled):
                    raise DataError(f"{scene.path}: every pixel is nodata")
                counts = MaskCounts.of(opened)
                for text in (counts.text if counts.lost else "", counts.idle):
                    if text:
                        writer.note(f"{scene.path}: {text}")
        if not writer.rows:
            lacking = (
                "a label" if labelled else f"{min_ice:.0%} ice and {min_valid:.0%} data; lower min_ice or min_valid"
            )
            raise DataError(f"{', '.join(map(str, scenes))}: no tile has {lacking}")
    return TileStore(out)


@dataclass
class _Looked:
    """What is known of a scene that is not open now."""

    path: Path | Address
    bands: tuple[str, ...]
    height: int
    width: int
    crs: Any
    transform: Any
    dtype: np.dtype
    sensor: str | None
    scaling: tuple[Scaling, ...]
    profile: Profile
    valid: float  # share of pixels with data, by a sample
    cached_bytes: int
    notes: list[str]


def _look(scene: Scene, first: _Looked | None, tile_size: int) -> _Looked:
    """Return what a scene is; raises `DataError` if it is of no use beside the first one, too small or too large."""
    names = scene.bands if first is None else first.bands
    if first and set(scene.bands) != set(names):
        raise DataError(f"{scene.path}: bands {', '.join(scene.bands)}, but {first.path} has {', '.join(names)}")
    if (least := min(scene.height, scene.width)) < tile_size:
        raise DataError(
            f"{scene.path}: {scene.height} x {scene.width} px, smaller than a tile of {tile_size}; set tile_size to at "
            f"most {least}"
        )
    size = f"{scene.path}: its {scene.height:,} x {scene.width:,} px"
    # the mask of one, while that of the next is made
    fits(2 * scene.height * scene.width, size, "cut it into several (gdal_translate -srcwin)")
    notes = scene.look()
    return _Looked(
        *(scene.path, scene.bands, scene.height, scene.width, scene.crs, scene.transform, scene.dtype, scene.sensor),
        *(scene.scaling, scene.profile, float(scene.sample.valid.mean()), scene.cached_bytes, notes),
    )


def _kept(scenes: Sequence[_Looked]) -> tuple[list[Scaling], np.dtype]:
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


def _unlike_first(first: _Looked, scene: _Looked) -> list[str]:
    """Return what to say of a scene that is of another kind than the first."""
    found = []
    if scene.sensor and first.sensor and scene.sensor != first.sensor:
        found.append(f"is of {scene.sensor}, but {first.path} of {first.sensor}, so the store names no sensor")
    one, other = first.profile.pixel_size, scene.profile.pixel_size
    if one and other and max(one, other) > LARGER * min(one, other):
        say = "bring all to one size (resolution), or make a store of each"
        found.append(f"pixels of {other:.3g} m, but of {one:.3g} m in {first.path}; {say}")
    return [f"{scene.path}: {text}" for text in (*found, *_other_values(first, scene))]


def _other_values(first: _Looked, scene: _Looked) -> list[str]:
    ours, theirs = first.profile.quantiles, scene.profile.quantiles
    other = [band for band in ours if band in theirs and unlike(ours[band], theirs[band])]
    if 2 * len(other) <= len(ours):
        return []
    band = other[0]
    return [
        f"values far from those of {first.path} in {', '.join(other)} ({band} {theirs[band][1]:.4g} to "
        f"{theirs[band][-2]:.4g}, there {ours[band][1]:.4g} to {ours[band][-2]:.4g}); are both in the same units?"
    ]


def _cut(
    scene: Scene,
    mask: np.ndarray,
    writer: TileWriter,
    size: int,
    overlap: int,
    min_ice: float,
    min_valid: float,
    labelled: bool,
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
            ice, least = np.isin(known, (*ICE, ICE_OF_ANY_KIND)).sum(), max(1, min_ice * known.size) if min_ice else 0
            if not valid.any() or valid.mean() < min_valid or ice < least or (labelled and not known.size):
                continue
            writer.add(
                values,
                label,
                valid=valid,
                scene=scene_name(scene.path),
                row=row,
                col=col,
                crs=scene.crs.to_string(),
                transform=(t.a, t.b, t.c + col * t.a + row * t.b, t.d, t.e, t.f + col * t.d + row * t.e),
            )
    return any_data
