"""One view of a scene, whatever it was delivered as: named bands with units, what has data, a grid, read by window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.warp import reproject

from ...bands import Bands, natural_unit
from ...core.fill import likely_fill
from ...core.tiling import spread
from ...errors import DataError
from ..profile import QUANTILES, Profile
from .address import Address
from .raster import FINEST, block_rows, pixel_size, reading, same_crs, same_grid
from .units import ZERO_CELSIUS, Scaling, no_offset, unit_of

__all__ = ["Declared", "Place", "Resampled", "Sample", "Scene", "Stack", "on_grid_of", "on_one_grid"]

SAMPLE = 8, 32  # windows along each side of a scene, and their side, pixels
LARGE_BLOCK = 512  # side, pixels, from which on fewer windows are looked at: each costs a whole block
HALF = 0.4999  # share of a pixel that has data for it to have; less what sums of float32 lose
WHOLE = 0.95  # share of the ground of the finest band that the others show, from which on nothing is said
MARGIN = 2  # pixels beyond a window that resampling looks at


class Sample(NamedTuple):
    """Some pixels of a scene, from windows spread evenly over it, those at its edges included."""

    numbers: np.ndarray  # (C, n), as delivered
    valid: np.ndarray  # (n,) bool, True where there is data
    rim: np.ndarray  # (n,) bool, True on the outermost rows and columns


class Declared(NamedTuple):
    """What is said of a band's numbers."""

    scale: float = 1.0
    offset: float = 0.0
    unit: str | None = None  # as written
    zero_is_fill: bool | None = False  # whether 0 in all bands is no data; None: has no say, 0 is like other numbers


class Place(Protocol):
    """Where a scene lies, whatever else is known of it."""

    path: Path | Address
    height: int
    width: int
    crs: Any
    transform: Any


class Scene:
    """A scene: its bands by name, their units, its grid, and windows of numbers with their valid pixels.

    Those that read it set the attributes and give `_read`. Use as a context manager.
    """

    path: Path | Address
    """What the user named."""
    bands: Bands
    declared: list[Declared]
    """Of each band."""
    height: int
    width: int
    crs: Any
    transform: Any
    dtype: np.dtype
    sensor: str | None = None
    """One of `names.SENSORS`, None where unknown."""
    date: str = ""
    """When it was taken: ISO 8601, UTC; empty where unknown."""
    notes: list[str]
    """What is odd about it; said by those who use it."""
    rasters: list[rasterio.DatasetReader]
    """What is read from."""
    other_files: Sequence[str] = ()
    """What else it is made of."""
    unpacked_from: str = ""
    """The archive that its rasters were unpacked from."""
    also_close: Sequence[Callable[[], None]] = ()
    """What else is done when it is closed."""
    by_hand: Sequence[Any] = ()
    """Which file, or band of a file, is which band, where the user said so."""

    def _begin_as(self, scene: Scene) -> None:
        """Take what is known of another scene, of which this one is made; what differs is set after it."""
        for name in Scene.__annotations__:
            setattr(self, name, getattr(scene, name))

    def _read(self, index: Sequence[int], row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers and where there is data, as `read_window`, but 0 is data."""
        raise NotImplementedError

    def close(self) -> None:
        """Close its files."""
        with ExitStack() as stack:
            for each in (*self.also_close, *(raster.close for raster in self.rasters)):
                stack.callback(each)

    def masked(
        self,
        row: int,  # of a window, as in `read_window`
        col: int,
        height: int,
        width: int,
    ) -> dict[str, np.ndarray]:
        """Return where pixels have no data because of a mask, by its kind, bool `(H, W)` each; none here."""
        return {}

    @property
    def unmasked(self) -> Scene:
        """The scene as if nothing were masked."""
        return self

    def read_window(
        self,
        index: Sequence[int],  # positions of the bands wanted
        row: int,  # first row
        col: int,  # first column
        height: int,  # rows
        width: int,  # columns
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers `(C, H, W)` as delivered, and bool `(H, W)`: True where there is data."""
        numbers, valid = self._read(index, row, col, height, width)
        said = [self.declared[i].zero_is_fill for i in index]
        voters = [k for k, zero in enumerate(said) if zero is not None]
        if voters and all(said[k] for k in voters):
            valid &= (numbers[voters] != 0).any(0)
        return numbers, valid

    def in_units(
        self,
        numbers: np.ndarray,  # (C, H, W), as from `read_window`
        index: Sequence[int],  # the bands they are of
    ) -> np.ndarray:
        """Return the values of numbers, float32, in the units of `scaling`."""
        with np.errstate(over="ignore"):
            values = numbers.astype(np.float32)
        how = [self.scaling[i] for i in index]
        if any((h.scale, h.offset) != (1.0, 0.0) for h in how):
            values *= np.array([h.scale for h in how], np.float32)[:, None, None]
            values += np.array([h.offset for h in how], np.float32)[:, None, None]
        return values

    @cached_property
    def scaling(self) -> tuple[Scaling, ...]:
        """How the numbers of each band become values, and the unit of these."""
        out = []
        for k, (band, (scale, offset, tag, _)) in enumerate(zip(self.bands, self.declared, strict=True)):
            scaled, some = (scale, offset) != (1.0, 0.0), self.sample.numbers[k, self.sample.valid]
            values = some * np.float64(scale) + offset if scaled else some
            unit, odd = unit_of(band, tag, scaled, values, some)
            if odd:
                self.notes.append(f"{self.path}: {odd}")
            if unit == "celsius":
                unit, offset = "kelvin", offset + ZERO_CELSIUS
            out.append(Scaling(scale, offset, unit))
        if odd := no_offset(dict(zip(self.bands, out, strict=True))):
            self.notes.append(f"{self.path}: {odd}")
        return tuple(out)

    @cached_property
    def sample(self) -> Sample:
        """Some of its pixels, the same ones each time; a small scene whole."""
        many, side = SAMPLE
        if min(max(min(shape) for shape in r.block_shapes) for r in self.rasters) >= LARGE_BLOCK:
            many, side = many // 2, 2 * side
        index = list(range(len(self.bands)))
        if self.height <= many * side and self.width <= many * side:
            places = [(0, 0, self.height, self.width)]
        else:
            h, w = min(side, self.height), min(side, self.width)
            rows, cols = (spread(length, s, many) for length, s in ((self.height, h), (self.width, w)))
            places = [(row, col, h, w) for row in rows for col in cols]
        found = []
        for row, col, h, w in places:
            numbers, valid = self.read_window(index, row, col, h, w)
            rim = np.zeros((h, w), bool)
            rim[0], rim[-1] = row == 0, row + h == self.height
            rim[:, 0] |= col == 0
            rim[:, -1] |= col + w == self.width
            found.append((numbers.reshape(len(index), -1), valid.ravel(), rim.ravel()))
        numbers, valid, rim = (np.concatenate(parts, -1) for parts in zip(*found, strict=True))
        return Sample(numbers, valid, rim)

    def look(self) -> list[str]:
        """Return what is odd about the scene, a line each: also of its values, by a sample of them."""
        units = {b: how.unit for b, how in zip(self.bands, self.scaling, strict=True)}
        notes = [*self.notes]  # finding units adds to them
        light = [b for b in self.bands if natural_unit(b) == "reflectance"]
        if plain := [b for b in light if units[b] == "dn" and {units[other] for other in light} != {"dn"}]:
            notes.append(
                f"{self.path}: {', '.join(plain)} are of unknown unit, the other bands of reflected light are not; "
                "give scale and offset of all"
            )
        for names, value, share in likely_fill(self.bands, *self.sample):
            if value == 0 and any(0 in raster.nodatavals for raster in self.rasters):
                notes.append(
                    f"{self.path}: 0 in {', '.join(names)} on {share:.0%} of the pixels is declared as nodata, but "
                    "taken for data where other bands have some"
                )
                continue
            notes.append(
                f"{self.path}: {value:g} in {', '.join(names)} on {share:.0%} of the pixels looks like a fill value, "
                "but is not declared as nodata, so it is taken for data; declare it "
                f"(gdal_edit.py -a_nodata {value:g})"
            )
        return list(dict.fromkeys(notes))

    @cached_property
    def profile(self) -> Profile:
        """What its values are, by a sample of them."""
        sample, quantiles = self.sample, {}
        for band, numbers, how in zip(self.bands, sample.numbers, self.scaling, strict=True):
            if (known := sample.valid & np.isfinite(numbers)).any():
                found = np.quantile(numbers[known].astype(np.float64), QUANTILES) * how.scale + how.offset
                quantiles[band] = tuple(sorted(found.tolist()))
        return Profile(
            units={band: how.unit for band, how in zip(self.bands, self.scaling, strict=True)},
            quantiles=quantiles,
            pixel_size=self.pixel_size or None,
            sensor=self.sensor or "",
        )

    @property
    def pixel_size(self) -> float | None:
        """Metres on the ground, None where the CRS does not tell."""
        return pixel_size(self.crs, self.transform, (self.height, self.width))

    @property
    def files(self) -> list[str]:
        """The files that it is made of, as those that a VRT names."""
        found = [name for raster in self.rasters for name in (raster.name, *raster.files)]
        return list(dict.fromkeys([*([self.unpacked_from] if self.unpacked_from else found), *self.other_files]))

    def seen(self) -> list[Any]:
        """Return what is said of it beside its values, wherever that lies, as in an .aux.xml, or by the user."""
        said = [
            [
                raster.crs.to_wkt(),
                raster.transform[:6],
                [raster.nodatavals, raster.scales, raster.offsets, raster.units, raster.descriptions],
                [[kind.name for kind in raster.colorinterp], [[f.name for f in m] for m in raster.mask_flag_enums]],
            ]
            for raster in self.rasters
        ]
        return [*said, *([[*self.by_hand]] if self.by_hand else [])]

    @property
    def cached_bytes(self) -> int:
        """Bytes of a row of blocks, which are read once where they are kept."""
        return sum(map(block_rows, self.rasters))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


class Stack(Scene):
    """Scenes on one grid as one, with the bands of all; a pixel has data where all bands wanted do."""

    def __init__(
        self,
        path: Path | Address,  # what the user named
        scenes: Sequence[Scene],  # at least one, on the same grid
    ):
        self._begin_as(scenes[0])
        self.path, self.scenes = path, list(scenes)
        self.bands = Bands(band for scene in scenes for band in scene.bands)
        self.declared = [each for scene in scenes for each in scene.declared]
        self.rasters = [raster for scene in scenes for raster in scene.rasters]
        self.other_files = [file for scene in scenes for file in scene.other_files]
        self.dtype = np.result_type(*(scene.dtype for scene in scenes))
        self.notes = list(dict.fromkeys(note for scene in scenes for note in scene.notes))
        self._at = [(scene, i) for scene in scenes for i in range(len(scene.bands))]

    @cached_property
    def scaling(self) -> tuple[Scaling, ...]:
        """As of its scenes, where these are brought from another grid: their values are in units already."""
        own = super().scaling
        out = tuple(
            scene.scaling[i] if isinstance(scene, Resampled) else how
            for how, (scene, i) in zip(own, self._at, strict=True)
        )
        self.notes += [line for scene in self.scenes for line in scene.notes if line not in self.notes]
        return out

    def _read(self, index, row, col, height, width):
        numbers = np.empty((len(index), height, width), self.dtype)
        valid = np.ones((height, width), bool)
        for scene in self.scenes:
            if here := [k for k, i in enumerate(index) if self._at[i][0] is scene]:
                window = row, col, height, width
                numbers[here], known = scene._read([self._at[index[k]][1] for k in here], *window)
                valid &= known
        return numbers, valid


class Resampled(Scene):
    """A scene on another grid: means of its pixels where they become larger, bilinear where they become smaller.

    Its numbers are values in units. A pixel has data where at least half of it has.
    """

    def __init__(
        self,
        scene: Scene,  # in the same CRS
        transform: Any,  # affine geotransform wanted
        height: int,  # rows wanted
        width: int,  # columns wanted
    ):
        self._begin_as(scene)
        self.scene, self.height, self.width, self.transform = scene, height, width, transform
        self.dtype = np.dtype("float32")
        self.declared = [Declared()] * len(self.bands)
        self._finer = ~scene.transform * transform  # from our pixels to those of the scene
        larger = abs(self._finer.determinant) > 1.0001
        self._how = Resampling.average if larger else Resampling.bilinear

    @cached_property
    def scaling(self) -> tuple[Scaling, ...]:
        """The units of the scene."""
        return tuple(Scaling(unit=how.unit) for how in self.scene.scaling)

    def _read(self, index, row, col, height, width):
        corners = np.array([[col, col + width, col, col + width], [row, row, row + height, row + height]], float)
        a, b, c, d, e, f = self._finer[:6]
        x, y = a * corners[0] + b * corners[1] + c, d * corners[0] + e * corners[1] + f
        left, right = max(int(np.floor(x.min())) - MARGIN, 0), min(int(np.ceil(x.max())) + MARGIN, self.scene.width)
        top, bottom = max(int(np.floor(y.min())) - MARGIN, 0), min(int(np.ceil(y.max())) + MARGIN, self.scene.height)
        out = np.zeros((len(index) + 1, height, width), np.float32)
        if left >= right or top >= bottom:
            return out[:-1], np.zeros((height, width), bool)
        numbers, valid = self.scene.read_window(index, top, left, bottom - top, right - left)
        values = self.scene.in_units(numbers, index)
        valid &= np.isfinite(values).all(0)
        values[:, ~valid] = 0  # so that sums over what is valid, divided by its share, are means of that
        values = np.concatenate([values, valid[None].astype(np.float32)])
        with reading(self.path):
            reproject(
                values,
                out,
                src_transform=self.scene.transform * rasterio.Affine.translation(left, top),
                dst_transform=self.transform * rasterio.Affine.translation(col, row),
                src_crs=self.crs,
                dst_crs=self.crs,
                resampling=self._how,
            )
        return out[:-1] / np.maximum(out[-1], 1e-6), out[-1] >= HALF


def on_one_grid(
    path: Path | Address,  # what the user named
    scenes: Iterable[Scene],  # of one place
    size: float | None = None,  # side of a pixel wanted, metres; default that of the finest
) -> Scene:
    """Return scenes of one place as one, on the grid of the finest, or on one of another pixel size with its origin.

    Raises:
        DataError: They are in several coordinate reference systems, or do not show the same ground.
    """
    groups: list[list[Scene]] = []
    for scene in scenes:
        group = next((g for g in groups if on_grid_of(g[0], scene)), None)
        groups.append([scene]) if group is None else group.append(scene)
    if other := next((g[0] for g in groups if not same_crs(g[0].crs, groups[0][0].crs)), None):
        raise DataError(
            f"{path}: {', '.join(other.bands)} in another coordinate reference system than "
            f"{', '.join(groups[0][0].bands)}; bring them to one (gdalwarp -t_srs)"
        )
    whole = [g[0] if len(g) == 1 else Stack(path, g) for g in groups]
    finest = min(whole, key=lambda s: abs(s.transform.determinant))
    transform, height, width = finest.transform, finest.height, finest.width
    if size:
        side = finest.pixel_size
        if side is None:
            raise DataError(f"{path}: its coordinate reference system does not tell how large a pixel is on the ground")
        if size < FINEST:
            raise DataError(f"{path}: a pixel of {size:g} m is asked for; use {FINEST:g} m or more")
        factor = size / side
        # 30 m are 3/2 of 20 m, though the metres of a map are not quite those of the ground
        near = Fraction(factor).limit_denominator(6)
        factor = float(near) if abs(factor - near) < 0.01 * factor else factor
        transform = transform * rasterio.Affine.scale(factor)
        height, width = (max(1, int(np.ceil(n / factor - 0.01))) for n in (height, width))
    for scene in whole:
        _check_cover(path, scene, finest)
    whole = [_brought(scene, transform, height, width) for scene in whole]
    return whole[0] if len(whole) == 1 and whole[0].path == path else Stack(path, whole)


def _check_cover(path: Path | Address, scene: Scene, finest: Scene) -> None:
    """Refuse a scene that shows other ground than the finest, and say if it shows only a part of it."""
    corners = [(0, 0), (scene.width, 0), (0, scene.height), (scene.width, scene.height)]
    places = np.array([~finest.transform * (scene.transform * at) for at in corners])
    size = finest.width, finest.height
    # of whole rows and columns; a band may be south-up
    shares = (np.minimum(places.max(0), size) - np.maximum(places.min(0), 0)) / size
    if (shares <= 0).any():
        raise DataError(f"{path}: {', '.join(scene.bands)} show other ground than its other bands")
    if (share := shares.prod()) < WHOLE:
        scene.notes.append(
            f"{path}: {', '.join(scene.bands)} show {share:.0%} of the ground of {', '.join(finest.bands)}; where any "
            "of them has no data, none has"
        )


def _brought(scene: Scene, transform: Any, height: int, width: int) -> Scene:
    if same_grid(transform, scene.transform, (height, width)) and (height, width) == (scene.height, scene.width):
        return scene
    return Resampled(scene, transform, height, width)


def on_grid_of(
    a: Any,  # scene, raster, or `Place`
    b: Any,
) -> bool:
    """Return whether one lies on the other, pixel by pixel."""
    shape = a.height, a.width
    return shape == (b.height, b.width) and same_crs(a.crs, b.crs) and same_grid(a.transform, b.transform, shape)
