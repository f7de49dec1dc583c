"""Several scenes as one map: dates of one place, of which each sees some of it, or neighbours, of any UTM zone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import rasterio
import shapely
import torch
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ..bands import CLASSES, ICE, IGNORE
from ..data.scenes.opening import HowRead
from ..data.scenes.raster import block_cache, horizontal, reading, unknown_shift
from ..data.scenes.scene import Place, Scene
from ..errors import DataError, note
from ..files import check_room, digest
from ..memory import fits
from ..model.bundle import ModelBundle
from ..model.ensemble import Ensemble
from ..model.predictor import Predictor
from .glaciers import inventory_on
from .scene import add_notes, by_glacier, decided, look_at, masked_share, mean_strips, note_unused_dem, write_map
from .sink import RasterMap, Strip, check_grid, writing
from .source import Grid
from .whole import Wanted, make_whole

__all__ = ["CompositeBy", "predict_composite"]

CompositeBy = Literal["mean", "least-snow"]

VISIBLE = ("blue", "green", "red")
FULL = 65534  # probability 1 in the maps of dates, kept until they are put together; 65535 is no data
FADE = 32  # pixels from where a date ends, in which its weight falls: clouds have rims, and scenes seams
ROWS = 256  # of the composite that are put together at once
OF_A_SCENE = ("scene", "scene_sha256", "date", "sensor", "bands", "units", "scaling", "grid", "masks")
EDGE = 65  # places along each side of a scene that show how far it reaches


def predict_composite(
    model: ModelBundle | Ensemble,  # trained models
    scenes: Sequence[str | os.PathLike],  # two or more, see `data.scenes.opening.open_scene`
    out: str | os.PathLike,  # folder for the map
    name: str,  # of the map
    wanted: Wanted | None = None,  # what else is made, default the map of classes alone
    *,
    by: CompositeBy = "mean",  # mean of the dates that see a pixel, or the least snowy of them
    batch_size: int | None = None,  # windows at once, default as `Predictor`
    force: bool = False,  # map values far from those the models were trained on
    overwrite: bool = False,  # replace what is there of another prediction
    device: torch.device | None = None,  # default `predictor.default_device`
    **how: Unpack[HowRead],
) -> dict[str, Any]:
    """Write one map of several scenes, and `OUT/NAME_dates.tif`: how many of them see a pixel.

    Each is mapped by itself; probabilities are brought to one grid, that of the first scene, extended to all of them.
    With "mean", they are weighted alike, but for the last pixels before a scene or a cloud ends, over which a weight
    falls. With "least-snow", a pixel is as the scene says whose ground without ice is darkest in the visible bands.

    Returns and raises as `scene.predict_scene`; also `DataError` if scenes lie too far apart for one map.
    """
    ensemble, out = Ensemble.of(model), Path(out)
    wanted = replace(wanted or Wanted(), dates=True)
    if len(scenes) < 2:
        raise DataError(f"{name}: a composite is made of two scenes or more; here are {len(scenes)}")
    if not name or Path(name).name != name or name.startswith("."):
        raise DataError(f"composite {name!r}: give the name of the map, without a folder")
    alone = replace(wanted, glaciers=None)
    looked = [look_at(scene, ensemble, alone, force, how) for scene in scenes]
    known = dict[Any, Any]()
    for each in looked:
        if (same := known.setdefault((each.about["scene_sha256"], each.grid.transform), each)) is not each:
            raise DataError(f"{each.path}: is the same image as {same.path}, and would count twice; name it once")
    grids = [each.grid for each in looked]
    visible = [band for band in VISIBLE if all(band in each.about["bands"] for each in looked)]
    if by == "least-snow" and not visible:
        raise DataError(
            f"{name}: the least snowy scene is known by {', '.join(VISIBLE)}, of which the models take none"
        )
    grid, first = _union(out / name, grids), looked[0].about
    place = [grid.height, grid.width, *grid.transform[:6]]
    notes = list[str]()
    note_unused_dem(looked, wanted, how, notes)
    for other in grids[1:]:
        if odd := unknown_shift(grid.crs, other.crs, other.transform, (other.height, other.width)):
            note(f"{other.path}: {odd}", notes)
    inventory = inventory_on(wanted.glaciers, grid, grid.path, notes) if wanted.glaciers else None
    made_of = wanted.about(inventory, how.get("dem"))
    about = {
        **{k: v for k, v in first.items() if k not in OF_A_SCENE},
        "hash": digest([by, place, [each.about["hash"] for each in looked], *([made_of] if wanted.glaciers else [])]),
        "scene": name,
        "scene_sha256": digest([each.about["scene_sha256"] for each in looked]),
        "grid": place,
        "composite": by,
        "scenes": [{k: each.about[k] for k in OF_A_SCENE if k in each.about} for each in looked],
        "wanted": made_of,
        "notes": [*(text for each in looked for text in each.about["notes"]), *notes],
    }

    def make(partial: Path) -> dict[str, Any]:
        held = 4 * len(CLASSES) * (2 * FADE + ROWS) * grid.width * 4
        fits(held, f"{name}: {ROWS:,} rows of {grid.width:,} px", "make composites of fewer neighbours")
        check_room(out, sum(g.height * g.width for g in grids) * len(CLASSES))
        check_grid(grid, partial)
        models, files, bright = Predictor(ensemble, device, batch_size), list[Path](), list[float]()
        for k, (each, record) in enumerate(zip(looked, about["scenes"], strict=True)):
            files.append(partial / f"{k}.rows.tif")
            with each.source(ensemble, wanted) as source:
                models.normalise_by(source.statistics() if wanted.statistics == "scene" else None)
                with DateMap(files[k], source) as made:
                    for row, mean, valid in mean_strips(source, models, wanted.window):
                        made.write(Strip(row, np.where(valid, 0, IGNORE).astype(np.uint8), mean.float().cpu().numpy()))
                add_notes(source, about["notes"])
                record |= masked_share(source, models, wanted.window, about["notes"])
                if by == "least-snow":
                    bright.append(_brightness(source.scene, visible, files[k]))
        found: dict[str, Any] = {}
        order = np.argsort(bright, kind="stable").tolist() if bright else None
        if order:
            found["least_snow_first"] = [looked[k].path.name for k in order]
        with ExitStack() as stack:
            rasters = [stack.enter_context(rasterio.open(file)) for file in files]
            seen = stack.enter_context(SeenMap(partial / wanted.files(name)["dates"], grid))
            shown = [0] * len(rasters)
            strips = decided(_together(rasters, grid, order, seen, shown), ensemble)
            found["pixels"] = write_map(strips, grid, ensemble, wanted, partial, name, about["notes"])
        for each, pixels in zip(looked, shown, strict=True):
            if not pixels:
                note(f"{each.path}: shows no pixel of {name}, so the map is one of the other scenes", about["notes"])
        if wanted.glaciers:
            found |= by_glacier(wanted, inventory, partial, name, about, how.get("dem"))
        return found

    return make_whole(out, name, about, wanted, make, overwrite, [p for x in looked for p in (x.path, *x.parts)])


class DateMap(RasterMap):
    """Mean probabilities of one scene, until they are put together with the others: uint16 in steps of 1/65534."""

    def __init__(self, path: Path, source: Place):
        super().__init__(path, source, CLASSES, "uint16", FULL + 1)
        self.plain = path

    def values(self, strip: Strip) -> np.ndarray:
        """Return the probabilities as they are kept."""
        numbers = np.rint(strip.probs * FULL).astype(np.uint16)
        numbers[:, strip.classes == IGNORE] = FULL + 1
        return numbers

    def __exit__(self, kind, value, trace) -> None:
        with writing(self.path):
            self.raster.close()
            if kind is None:
                self.check(self.path)


class SeenMap(RasterMap):
    """How many scenes see a pixel, bytes."""

    resampling = "nearest"

    def __init__(self, path: Path, grid: Grid):
        super().__init__(path, grid, ("scenes that see the pixel",), nodata=0)

    def values(self, strip: Strip) -> np.ndarray:
        """Return the counts, which stand in place of classes."""
        return strip.classes[None]


def _union(path: Path, grids: Sequence[Grid]) -> Grid:
    """Return the grid of the first, extended to all of them."""
    first = grids[0]
    boxes = []
    for grid in grids:
        col, row = np.meshgrid(np.linspace(0, grid.width, EDGE), np.linspace(0, grid.height, EDGE))
        x, y = grid.transform * (col, row)
        if grid.crs != first.crs:
            x, y = Transformer.from_crs(horizontal(grid.crs), horizontal(first.crs), always_xy=True).transform(x, y)
        if first.crs.is_geographic:
            x = x + _turns(first, x)
        at = np.array(~first.transform * (x, y))
        if not np.isfinite(at).all():
            raise DataError(f"{grid.path}: does not lie where the coordinate reference system of {first.path} holds")
        boxes.append(shapely.box(*at.min((1, 2)), *at.max((1, 2))))
    for k, (grid, box) in enumerate(zip(grids, boxes, strict=True)):
        if not any(box.dwithin(other, 1) for other in boxes[:k] + boxes[k + 1 :]):
            raise DataError(f"{path.name}: {grid.path} shows no ground of the other scenes; make a map of its own")
    left, top, right, bottom = shapely.total_bounds(boxes)
    low = np.floor([left + 0.01, top + 0.01])
    width, height = (int(n) for n in np.ceil([right - 0.01, bottom - 0.01]) - low)
    return Grid(path, first.crs, first.transform * rasterio.Affine.translation(*low), height, width)


def _turns(first: Any, x: Any) -> Any:
    """Return how many degrees bring longitudes next to those of a grid, whole turns."""
    middle = (first.transform * (first.width / 2, first.height / 2))[0]
    return 360 * np.round((middle - x) / 360)


def _shifts(raster: Any, grid: Grid) -> list[float]:
    """Return by how many degrees a raster is shifted to show all of its ground: GDAL does not go around the Earth."""
    if not raster.crs.is_geographic:
        return [0.0]
    west, _, east, _ = raster.bounds
    if grid.crs.is_geographic:
        return [float(_turns(grid, (west + east) / 2))]
    return [k for k in (0.0, -360.0, 360.0) if west + k < 180 and east + k > -180]


def _brightness(scene: Scene, bands: Sequence[str], probabilities: Path) -> float:
    """Return the mean of a scene's bands where it shows no ice, infinite where there is nothing else."""
    index, total, pixels = [scene.bands.index(band) for band in bands], 0.0, 0
    with rasterio.open(probabilities) as file:
        for row in range(0, scene.height, ROWS):
            rows = min(ROWS, scene.height - row)
            numbers, valid = scene.read_window(index, row, 0, rows, scene.width)
            probs = file.read(window=Window(0, row, scene.width, rows))
            ground = valid & (probs[0] <= FULL) & (probs[list(ICE)].astype(np.uint32).sum(0) < FULL / 2)
            total += float(scene.in_units(numbers, index)[:, ground].mean(0).sum())
            pixels += int(ground.sum())
    return total / pixels if pixels else np.inf


def _together(
    rasters: Sequence[Any],  # open `DateMap`
    grid: Grid,
    order: Sequence[int] | None,  # the first of them that sees a pixel decides; None: the mean of all that do
    seen: SeenMap,
    pixels: list[int],  # of each of them that are seen, counted here
) -> Iterator[tuple[int, Tensor, np.ndarray]]:
    """Yield first row, probabilities `(K, h, W)`, and where any scene has data, top to bottom."""
    place = {"crs": grid.crs, "transform": grid.transform, "height": grid.height, "width": grid.width}
    with ExitStack() as stack, block_cache(sum(r.width * 2 * len(CLASSES) * ROWS for r in rasters)):
        warped = list[list[WarpedVRT]]()
        for raster in rasters:
            coarser = grid.crs == raster.crs and abs((~raster.transform * grid.transform).determinant) > 1.0001
            how = Resampling.average if coarser else Resampling.bilinear
            turned = [rasterio.Affine.translation(shift, 0) * raster.transform for shift in _shifts(raster, grid)]
            vrts = [WarpedVRT(raster, resampling=how, src_transform=transform, **place) for transform in turned]
            warped.append([stack.enter_context(vrt) for vrt in vrts])
        for row in range(0, grid.height, ROWS):
            top, bottom = max(row - FADE, 0), min(row + ROWS + FADE, grid.height)
            inner = slice(row - top, min(row + ROWS, grid.height) - top)
            shape = inner.stop - inner.start, grid.width
            total, weights = np.zeros((len(CLASSES), *shape), np.float32), np.zeros(shape, np.float32)
            counts = np.zeros(shape, np.uint8)
            for k in order or range(len(warped)):
                with reading(grid.path):
                    numbers, *others = (vrt.read(window=Window(0, top, grid.width, bottom - top)) for vrt in warped[k])
                known = (numbers <= FULL).all(0)
                for other in others:
                    numbers[:, ~known] = other[:, ~known]
                    known = (numbers <= FULL).all(0)
                pixels[k] += int(known[inner].sum())
                if not known.any():
                    continue
                if order:
                    weight = (known[inner] & (weights == 0)).astype(np.float32)
                else:
                    far = np.float32(FADE) if known.all() else distance_transform_edt(known)[inner]
                    weight = np.minimum(far, np.float32(FADE)) * known[inner].astype(np.float32)
                total += np.where(known[inner], numbers[:, inner], 0) * (weight / np.float32(FULL))
                weights += weight
                counts += known[inner]
            valid = weights > 0
            total /= np.where(valid, weights, 1)
            total[:, ~valid] = 1 / len(CLASSES)
            seen.write(Strip(row, counts, total))
            yield row, torch.from_numpy(total), valid
