"""Label rasters: where they lie and what their codes say, to masks of class codes on the grids of scenes.

    0 background, 1 glacier, 2 debris, 3 lake, 254 ice of unknown kind, 255 no label

Odd uses of 0 and 255 are told by all labels of one call together, see `label_masks`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rasterio.enums import ColorInterp

from ...bands import CLASSES, ICE_OF_ANY_KIND, IGNORE
from ...errors import DataError
from ..scenes.address import Address, named
from ..scenes.nearest import applied, blocks
from ..scenes.raster import check_place, horizontal, open_raster, placeless, reading, same_crs, same_grid, unknown_shift
from ..scenes.scene import Place

__all__ = ["label_masks"]

ALLOWED = {*range(len(CLASSES)), ICE_OF_ANY_KIND, IGNORE}
_CODES = ", ".join(f"{k} {c}" for k, c in enumerate(CLASSES)) + (
    f", {ICE_OF_ANY_KIND} ice of unknown kind and {IGNORE} (no label)"
)


class _Label(NamedTuple):
    path: Path | Address
    scene: Place
    moved: bool  # whether it has to be brought to the scene's grid
    nodata: float | None  # as declared
    codes: set[Any]  # of the pixels that have a label
    zeros: bool  # whether pixels of 0 have none because 0 is declared as nodata


def label_masks(
    paths: Sequence[str | os.PathLike],  # a label raster for each scene
    scenes: Sequence[Place],  # on which they lie
    align: bool,  # bring labels on another grid to that of the scene, nearest pixel
    note: Callable[[str], None],  # takes what is odd but can be used, a line each
) -> Iterator[np.ndarray]:
    """Look at all labels, and return an iterator over their masks: `(H, W)` uint8 on the grid of the scene.

    Declared nodata, masked pixels and NaN have no label. Beside one other code, 0 is background although it is declared
    as nodata. Where all labels hold 0 and 255 only, and none declares 255 as nodata, 255 is ice of unknown kind.

    >>> from tempfile import TemporaryDirectory
    >>> from glacier_fastai.data.scenes.opening import open_scene
    >>> from glacier_fastai.data.sources.synthetic import write_scene
    >>> with TemporaryDirectory() as folder:
    ...     scene, label = write_scene(Path(folder) / "scene.tif", size=64)
    ...     with open_scene(scene) as opened:
    ...         masks = list(label_masks([label], [opened], align=False, note=print))
    >>> masks[0].shape, masks[0].dtype
    ((64, 64), dtype('uint8'))

    Raises:
        DataError: A label that cannot be read, is no raster of codes, lies elsewhere, or holds unknown codes.
    """
    found = [_look(named(path), scene, align, note) for path, scene in zip(paths, scenes, strict=True)]
    zeros = [x for x in found if x.zeros]
    background = [x for x in zeros if len((x.codes - {0, IGNORE}) or x.codes) == 1]
    background += [x for x in zeros if background and not x.codes]  # such a scene without ice
    codes = set().union(*(x.codes for x in found), {0} if background else ())
    for x in found:
        if unknown := x.codes - ALLOWED:
            raise DataError(f"{x.path}: {_unknown(unknown, codes)}")
    if background:
        others = ", ".join(map(_text, sorted(set().union(*(x.codes for x in background)))))
        note(
            f"{_names(background)}: declares 0 as nodata, but holds only {others} beside it, so 0 is read as "
            f"background; where it means no label, write {IGNORE}"
        )
    if lost := [x for x in zeros if x not in background]:
        note(
            f"{_names(lost)}: declares 0 as nodata, so 0 is read as no label, and no pixel is background; where it is "
            "background, take the declaration away (gdal_edit.py -unsetnodata)"
        )
    elif 0 not in codes and len(codes - {ICE_OF_ANY_KIND, IGNORE}) > 1:
        note(f"{_names(found)}: no pixel is 0, background; are classes counted from 1? Then subtract 1: {_CODES}")
    ice = codes == {0, IGNORE} and not any(x.nodata == IGNORE for x in found)
    if ice:
        note(
            f"{_names([x for x in found if IGNORE in x.codes])}: holds only 0 and {IGNORE}, so it is read as a binary "
            f"mask, and {IGNORE} as ice of unknown kind (glacier or debris); where {IGNORE} means no label, declare it "
            f"as nodata (gdal_edit.py -a_nodata {IGNORE})"
        )
    return (_mask(x, x in background, ice) for x in found)


def _names(labels: Sequence[_Label]) -> str:
    return f"{labels[0].path}" + (f" and {len(labels) - 1} more" if len(labels) > 1 else "")


def _text(code: Any) -> str:
    text = str(code).removesuffix(".0")
    return f"{code:.8g}" if "." in text else text


def _unknown(unknown: Collection[Any], codes: set[Any]) -> str:
    texts = ", ".join(map(_text, sorted(unknown)[:8]))
    from_one = 4 in unknown and codes <= {1, 2, 3, 4, ICE_OF_ANY_KIND, IGNORE}
    what = "are classes counted from 1? Then subtract 1" if from_one else "recode it; declare no label as nodata"
    return f"unknown codes {texts}; allowed are {_CODES}: {what}"


def _look(path: Path | Address, scene: Place, align: bool, note: Callable[[str], None]) -> _Label:
    """Check what a label is and where it lies, and find its codes."""
    codes: set[Any] = set()
    zeros, covered = False, 0
    with open_raster(path) as raster, reading(path):
        _check_kind(raster, path)
        if raster.crs is not None:
            check_place(raster, path)
        off = _off(raster, path, scene, note)
        if off and not align:
            raise DataError(f"{path}: {off}; set align to bring it there (nearest pixel), or warp it (gdalwarp)")
        place = scene.crs, scene.transform, (scene.height, scene.width)
        odd = unknown_shift(raster.crs, *place) if off and raster.crs else ""
        nodata, placed = raster.nodata, "" if raster.crs else ", taken to be in its CRS"
        for _, values, known in blocks(raster, path, scene, bool(off)):
            covered += int(known.sum())
            declared = _is(values, nodata)
            codes.update(np.unique(values[known & ~declared]))
            zeros |= nodata == 0 and bool((known & declared).any())
            if len(unknown := codes - ALLOWED) > 8:  # no raster of codes; there may be millions
                raise DataError(f"{path}: {_unknown(unknown, codes)}")
    if off and not covered:
        raise DataError(f"{path}: {off}, and covers no pixel of it; check that both show the same place")
    if off:
        share = covered / (scene.height * scene.width)
        note(f"{path}: {off}; brought to its grid (nearest pixel){placed}, of which it covers {share:.1%}")
        if odd:
            note(f"{path}: {odd}")
    return _Label(path, scene, bool(off), nodata, codes, zeros)


def _mask(label: _Label, zeros: bool, ice: bool) -> np.ndarray:
    """Return the mask of a label; whether its 0 counts although declared as nodata, and whether 255 is ice."""
    out = np.full((label.scene.height, label.scene.width), IGNORE, np.uint8)
    with open_raster(label.path) as raster, reading(label.path):
        for at, values, known in blocks(raster, label.path, label.scene, label.moved):
            if not zeros:
                known &= ~_is(values, label.nodata)
            out[at][known] = values[known]
            if ice:
                out[at][known & (values == IGNORE)] = ICE_OF_ANY_KIND
    return out


def _is(values: np.ndarray, nodata: float | None) -> np.ndarray:
    return np.zeros(values.shape, bool) if nodata is None else values == nodata


def _check_kind(raster: Any, path: Path | Address) -> None:
    kinds = raster.colorinterp
    if {ColorInterp.red, ColorInterp.green, ColorInterp.blue} <= set(kinds):
        raise DataError(
            f"{path}: {raster.count} bands, a picture of colours; a label raster has one band of codes, {_CODES}"
        )
    if raster.count != 1 and not (raster.count == 2 and kinds[1] == ColorInterp.alpha):
        raise DataError(f"{path}: {raster.count} bands; a label raster has one, of codes")
    if raster.dtypes[0].startswith("complex"):
        raise DataError(f"{path}: holds complex numbers; a label raster holds codes, {_CODES}")


def _off(raster: Any, path: Path | Address, scene: Place, note: Callable[[str], None]) -> str:
    """Return how a label differs from the grid of the scene, empty if it lies on it."""
    if raster.crs is not None and not same_crs(raster.crs, scene.crs):
        return f"is in {horizontal(raster.crs).name}, but {scene.path} in {horizontal(scene.crs).name}"
    shape, wanted = (raster.height, raster.width), (scene.height, scene.width)
    parts = [] if shape == wanted else [f"{shape[0]} x {shape[1]} px, but {scene.path} has {wanted[0]} x {wanted[1]}"]
    a, b, c, d, e, f = raster.transform[:6]
    if placeless(raster.transform):
        if raster.gcps[0] or raster.tags(ns="RPC"):
            raise DataError(
                f"{path}: placed by control points or RPCs only; warp it to the grid of {scene.path} (gdalwarp)"
            )
        if parts:
            raise DataError(f"{path}: {parts[0]}; without a geotransform it must be of that size")
        note(f"{path}: has no geotransform; taken as it lies, pixel on pixel of {scene.path}")
        return ""
    if scene.crs.is_geographic:
        c += 360 * round((scene.transform.c - c) / 360)
    if not parts and same_grid(scene.transform, (a, b, c, d, e, f), wanted):
        return ""
    corners = np.array([[0, wanted[1], 0], [0, 0, wanted[0]]])
    cols, rows = applied(~scene.transform, *applied((a, b, c, d, e, f), *corners)) - corners
    if max(np.ptp(cols), np.ptp(rows)) > 0.01:
        transforms = (raster.transform, scene.transform)
        own, other = (f"{np.hypot(t.a, t.d):.9g} x {np.hypot(t.b, t.e):.9g}" for t in transforms)
        how = f"turned against those of {scene.path}" if own == other else f"but {scene.path} of {other}"
        parts.append(f"has pixels of {own}, {how}")
    elif not parts or max(abs(cols[0]), abs(rows[0])) > 0.01:
        shift = zip((cols[0], rows[0]), ("left", "up"), ("right", "down"), strict=True)
        words = [f"{round(abs(v), 2):.10g} px {more if v > 0 else less}" for v, less, more in shift if abs(v) >= 0.005]
        parts.append(f"does not lie on the grid of {scene.path} but {' and '.join(words)}")
    return ", and ".join(parts)
