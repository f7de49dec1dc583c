"""Rasters of a map page: maps and scenes brought to one grid of limited size, and packed as images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Unpack

import numpy as np
import rasterio
from matplotlib.colors import to_rgb
from PIL import Image
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject

from ..bands import CLASS_COLOURS, COMPOSITES, ICE_COLOUR, ICE_OF_ANY_KIND, IGNORE, composite
from ..data.scenes.opening import HowRead, open_scene
from ..data.scenes.raster import block_cache, horizontal, pixel_size, reading, same_crs
from ..data.scenes.scene import Resampled, Scene, on_grid_of
from ..errors import DataError
from ..predict.outlines import equal_area_crs
from ..predict.sink import BYTE
from .validation import data_uri

__all__ = ["CODES", "CONFIDENCE", "PageGrid", "ScenePicture", "class_picture", "confidence_picture", "page_grid"]

PIXELS = 4096**2  # of all pictures of a kind together: what phones can show
READ = 2**22  # pixels of a scene that are read at once
IMAGES = 12_000_000  # characters of all pictures of a page, before the quality of images falls
QUALITIES = (82, 70, 55, 40, 25)  # of WebP
EDGE = 33  # places along each side of a raster that show how far it reaches
CODES = {**dict(enumerate(CLASS_COLOURS)), ICE_OF_ANY_KIND: ICE_COLOUR}
"""Codes in a map of classes, and their colours."""
NO_DATA, CLEAR = (128, 128, 128, 150), (0, 0, 0, 0)
CONFIDENCE = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
"""Colours of confidence, evenly from 20 to 100 % (viridis)."""
LEAST = 0.2  # confidence of the first of them


@dataclass(frozen=True)
class PageGrid:
    """Where pixels of a page lie: north up in a projection."""

    crs: Any
    transform: Any  # affine, without rotation
    height: int
    width: int

    @property
    def metres(self) -> tuple[float, float]:
        """Width and height of a pixel on the ground; in units of the CRS, where that does not tell."""
        wide, high = self.transform.a, -self.transform.e
        side = pixel_size(self.crs, self.transform, (self.height, self.width))
        scale = (side or np.sqrt(wide * high)) / np.sqrt(wide * high)
        return wide * scale, high * scale


def page_grid(
    maps: Sequence[rasterio.DatasetReader],  # with coordinate reference system; named by their paths in messages
    names: Sequence[str | os.PathLike],
    pixels: int = PIXELS,  # at most, of all maps together
) -> PageGrid:
    """Return a grid that holds all maps: the first one's own where that is projected and north up, coarser if need be.

    Otherwise, as in degrees, it lies in an equal-area projection around the first map, so that shapes are right.

    >>> from rasterio.io import MemoryFile
    >>> place = {"crs": "EPSG:32645", "transform": Affine(30, 0, 600, 0, -30, 900)}
    >>> one = MemoryFile().open(driver="GTiff", count=1, height=8192, width=64, dtype="uint8", **place)
    >>> grid = page_grid([one], ["one"], 2048**2)
    >>> grid.height, grid.width, grid.transform.a
    (2048, 16, 120.0)

    Raises:
        DataError: Maps do not show the same ground, or one does not lie on Earth.
    """
    first, t = maps[0], maps[0].transform
    crs = horizontal(first.crs)
    wide, high = abs(t.determinant) ** 0.5, abs(t.determinant) ** 0.5
    own = crs.is_projected and t.b == t.d == 0 and t.a > 0 > t.e
    if own:
        wide, high = t.a, -t.e
    elif crs.is_geographic:
        try:
            crs = equal_area_crs(crs, *(t * (first.width / 2, first.height / 2)))
        except (ProjError, ValueError) as err:
            raise DataError(f"{names[0]}: does not lie on Earth; assign the right coordinates") from err
        wide = high = pixel_size(first.crs, t, first.shape) or 0.0
    boxes = np.array([_box(raster, crs, name) for raster, name in zip(maps, names, strict=True)])
    if (boxes[:, :2].max(0) >= boxes[:, 2:].min(0)).any():
        raise DataError(f"{names[-1]}: shows other ground than {names[0]}; give two maps of one place")
    (left, bottom), (right, top) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    side = (pixels / len(maps)) ** 0.5
    factor = max(1.0, (right - left) / wide / side, (top - bottom) / high / side)
    wide, high = wide * factor, high * factor
    if own:  # pixels stay where they are
        left = t.c - wide * np.ceil((t.c - left) / wide - 0.01)
        top = t.f + high * np.ceil((top - t.f) / high - 0.01)
    width, height = (max(1, int(np.ceil(n - 0.01))) for n in ((right - left) / wide, (top - bottom) / high))
    return PageGrid(crs, Affine(wide, 0, left, 0, -high, top), height, width)


def _box(raster: rasterio.DatasetReader, crs: Any, name: str | os.PathLike) -> tuple[float, ...]:
    """Return left, bottom, right and top of a raster in a projection."""
    k = np.linspace(0, 1, EDGE)
    cols = np.concatenate([k, k, 0 * k, 0 * k + 1]) * raster.width
    rows = np.concatenate([0 * k, 0 * k + 1, k, k]) * raster.height
    a, b, c, d, e, f = raster.transform[:6]
    x, y = a * cols + b * rows + c, d * cols + e * rows + f
    if not same_crs(raster.crs, crs):
        x, y = Transformer.from_crs(horizontal(raster.crs), crs, always_xy=True).transform(x, y)
    box = x.min(), y.min(), x.max(), y.max()
    if not np.isfinite(box).all():
        raise DataError(f"{name}: cannot be shown in {crs.name}; bring it to another projection (gdalwarp -t_srs)")
    return tuple(float(v) for v in box)


def _on(grid: PageGrid, raster: rasterio.DatasetReader, path: str | os.PathLike, how: Resampling) -> np.ndarray:
    """Return the numbers of a raster of one band on a grid, 255 without data."""
    with reading(path):
        if on_grid_of(raster, grid):
            return raster.read(1)
        place: Any = {"transform": grid.transform, "height": grid.height, "width": grid.width}
        with WarpedVRT(
            raster, crs=grid.crs.to_wkt(), **place, resampling=how, src_nodata=IGNORE, nodata=IGNORE
        ) as warped:
            return warped.read(1)


def class_picture(
    raster: rasterio.DatasetReader,  # map of classes
    path: str | os.PathLike,  # for messages
    grid: PageGrid,
    image: np.ndarray | None = None,  # bool (H, W), where there is one: background is clear, and no data beyond it
) -> tuple[str, set[int]]:
    """Return a PNG of a map as data URI, of most of the pixels where they become larger, and the codes in it.

    Raises:
        DataError: It cannot be read, or holds other codes.
    """
    codes = _on(grid, raster, path, Resampling.mode)
    there = set(np.unique(codes).tolist())
    if odd := sorted(there - {*CODES, IGNORE}):
        known = ", ".join(map(str, CODES))
        raise DataError(f"{path}: holds {odd[0]}; a map of classes has {known}, and {IGNORE} without data")
    palette = [(*_bytes(CODES[code]), 255) if image is None or code else CLEAR for code in CODES]
    table = np.full(256, len(CODES), np.uint8)
    table[list(CODES)] = range(len(CODES))
    numbers = table[codes]
    if image is not None:
        numbers[(codes == IGNORE) & ~image] = 0
    return _png(numbers, [*palette, NO_DATA]), there


def confidence_picture(
    raster: rasterio.DatasetReader,  # map of confidence
    path: str | os.PathLike,  # for messages
    grid: PageGrid,
) -> str:
    """Return a PNG of a map of confidence as data URI, in steps."""
    values = _on(grid, raster, path, Resampling.average)
    steps = len(CONFIDENCE)
    step = np.rint((np.arange(256) / BYTE - LEAST) / (1 - LEAST) * (steps - 1)).clip(0, steps - 1).astype(np.uint8)
    step[IGNORE] = steps
    return _png(step[values], [*((*_bytes(colour), 255) for colour in CONFIDENCE), CLEAR])


def _bytes(colour: str) -> tuple[int, ...]:
    return tuple(round(255 * v) for v in to_rgb(colour))


def _png(numbers: np.ndarray, palette: Sequence[tuple[int, ...]]) -> str:
    image = Image.frombytes("P", numbers.shape[::-1], numbers.tobytes())
    image.putpalette([v for colour in palette for v in colour[:3]])
    file = BytesIO()
    image.save(file, "PNG", transparency=bytes(colour[3] for colour in palette), bits=4, optimize=True)
    return data_uri("png", file)


class ScenePicture:
    """Scenes in false colour on the grid of a page; where several see a pixel, the first does."""

    def __init__(self, grid: PageGrid):
        self.grid = grid
        self.rgba = np.zeros((grid.height, grid.width, 4), np.uint8)
        self.composites: list[str] = []
        """The names of the bands that are shown, of each scene."""
        self.dates: list[str] = []
        """When scenes were taken, ISO 8601, as far as it is known."""

    def add(
        self,
        path: str | os.PathLike,  # see `open_scene`
        **how: Unpack[HowRead],
    ) -> None:
        """Read a scene by windows, clouds and all, each band stretched from its 2nd to its 98th percentile.

        Raises:
            DataError: It cannot be read, or shows other ground.
        """
        how = {**how, "dem": None}
        with open_scene(path, next(iter(COMPOSITES.values())), **how) as scene, block_cache(scene.cached_bytes):
            name, rgb = composite(scene.bands)
            whole = scene.unmasked
            if scene.crs is None:
                raise DataError(f"{path}: has no coordinate reference system; assign one (gdal_edit.py -a_srs)")
            picture = self._brought(whole, rgb, _stretch(whole, rgb))
            if scene.date:
                self.dates.append(scene.date)
        if not picture[..., 3].any():
            raise DataError(f"{path}: shows nothing of the ground of the map; give the scene that was mapped")
        new = self.rgba[..., 3] == 0
        self.rgba[new] = picture[new]
        self.composites.append(name)

    def _brought(self, scene: Scene, rgb: tuple[int, ...], stretch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        grid = self.grid
        if same_crs(scene.crs, grid.crs):
            return _read(scene, rgb, stretch, grid)
        factor = max(1.0, min(grid.metres) / (scene.pixel_size or 1e-9), max(scene.height, scene.width) / PIXELS**0.5)
        transform = scene.transform * Affine.scale(factor)
        height, width = (int(np.ceil(n / factor)) for n in (scene.height, scene.width))
        own = _read(scene, rgb, stretch, PageGrid(horizontal(scene.crs), transform, height, width))
        out = np.zeros((4, grid.height, grid.width), np.uint8)
        with reading(scene.path):
            reproject(
                own.transpose(2, 0, 1),
                out,
                src_transform=transform,
                src_crs=scene.crs,
                dst_transform=grid.transform,
                dst_crs=grid.crs.to_wkt(),
                resampling=Resampling.nearest,
            )
        return out.transpose(1, 2, 0)

    def uri(
        self,
        most: int = IMAGES,  # characters, which it has at most unless quality is least
    ) -> str:
        """Return the picture as data URI."""
        image, uri = Image.fromarray(self.rgba), ""
        for quality in QUALITIES:
            image.save(file := BytesIO(), "WEBP", quality=quality)
            if len(uri := data_uri("webp", file)) <= most:
                break
        return uri


def _stretch(scene: Scene, rgb: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return lower and upper end of what is shown of each band."""
    sample = scene.sample
    values = scene.in_units(sample.numbers[list(rgb)][:, None], rgb)[:, 0]
    values = values[:, sample.valid & np.isfinite(values).all(0)]
    if not values.size:
        return np.zeros(3, np.float32), np.ones(3, np.float32)
    low, high = np.percentile(values, [2, 98], axis=1).astype(np.float32)
    return low, high


def _read(scene: Scene, rgb: Sequence[int], stretch: tuple[np.ndarray, np.ndarray], grid: PageGrid) -> np.ndarray:
    """Return a scene in the CRS of a grid on it, RGBA bytes `(H, W, 4)`."""
    low, high = (end[:, None, None] for end in stretch)
    source = scene if on_grid_of(scene, grid) else Resampled(scene, grid.transform, grid.height, grid.width)
    larger = max(1.0, abs((~scene.transform * grid.transform).determinant))
    rows = max(1, int(READ / (grid.width * larger)))
    out = np.zeros((grid.height, grid.width, 4), np.uint8)
    for row in range(0, grid.height, rows):
        numbers, valid = source.read_window(rgb, row, 0, min(rows, grid.height - row), grid.width)
        values = source.in_units(numbers, rgb)
        valid = valid & np.isfinite(values).all(0)
        shown = 255 * (np.where(valid, values, 0) - low) / np.maximum(high - low, 1e-6)
        out[row : row + rows, :, :3] = np.where(valid, shown.clip(0, 255), 0).transpose(1, 2, 0).round()
        out[row : row + rows, :, 3] = 255 * valid
    return out
