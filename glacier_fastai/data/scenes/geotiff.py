"""Scenes in one file that GDAL reads, such as a GeoTIFF: bands by name, their units, what has data, the grid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import rasterio
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from ...bands import Bands, natural_unit
from ...core.fill import NO_VALUE, likely_fill
from ...errors import DataError, note
from ..profile import QUANTILES, Profile
from .names import described_otherwise, name_bands
from .raster import open_raster, parse_crs, pixel_size, reading
from .units import ZERO_CELSIUS, Given, Scaling, by_band, unit_of

__all__ = ["SceneRaster"]

SAMPLE = 8, 32  # windows along each side of a scene, and their side, pixels


class Sample(NamedTuple):
    """Some pixels of a scene, from windows spread evenly over it, those at its edges included."""

    numbers: np.ndarray  # (C, n), as delivered
    valid: np.ndarray  # (n,) bool, True where there is data
    rim: np.ndarray  # (n,) bool, True on the outermost rows and columns


class SceneRaster:
    """A scene on disk: its bands by name, their units, its grid, and windows of values with their valid pixels.

    Use as a context manager. A pixel has no data where any band wanted declares it so (mask, alpha band, or a nodata
    value other than 0), where any of them is NaN or infinite, or where all of them are 0 and 0 is declared as nodata or
    they are unsigned integers: 0 in some of the bands is data. A band named "-" is left out; if it is the alpha band,
    it masks.
    """

    def __init__(
        self,
        path: str | os.PathLike,  # a GeoTIFF, or another of `raster.DRIVERS`
        bands: Sequence[str] | None = None,  # names of its bands, default its band descriptions
        sensor: str | None = None,  # as `names.canonical_sensor` takes it, to read names such as "B4"
        *,
        scale: Given = None,  # what numbers are multiplied with, see `units.by_band`; default as the file says
        offset: Given = None,  # what is added then
    ):
        self.path = Path(path)
        self.notes: list[str] = []  # what is odd about it; said by those who use it
        self.raster = open_raster(self.path)
        try:
            with reading(self.path):
                self._check_kind()
                self._alpha = [n for n, k in enumerate(self.raster.colorinterp, 1) if k == ColorInterp.alpha]
                self.bands, self._numbers = self._names(bands, sensor)
                self._check_bands()
                self.height, self.width = self.raster.height, self.raster.width
                self.crs, self.transform = self.raster.crs, self.raster.transform
                self._check_place()
                self.dtype = np.result_type(*(self.raster.dtypes[n - 1] for n in self._numbers))
                self._scale, self._offset = self._scaled(scale, offset)
        except BaseException:
            self.raster.close()
            raise

    def _check_kind(self) -> None:
        if not self.raster.count:
            inside = [name.rpartition(":")[2] for name in self.raster.subdatasets]
            what = f"{len(inside)} subdatasets, {', '.join(inside[:6])}" if inside else "no band"
            first = self.raster.subdatasets[0] if inside else "SUBDATASET"
            raise DataError(
                f"{self.path}: holds {what}; make one file of those wanted (gdal_translate '{first}' band.tif, then "
                "gdalbuildvrt -separate)"
            )
        mask = self.path.with_name(f"{self.path.name}.msk")
        if mask.is_file():  # GDAL leaves one of another size out without a word
            with open_raster(mask) as raster:
                if raster.shape != self.raster.shape:
                    raise DataError(
                        f"{mask}: {raster.height} x {raster.width} px, but {self.path.name} has {self.raster.height} x "
                        f"{self.raster.width}: no mask of it; make it anew, or move it away"
                    )

    def _check_place(self) -> None:
        raster, path, copy = self.raster, self.path, f"{self.path.stem}_placed.tif"
        at_home = raster.transform.is_identity
        if at_home and raster.gcps[0]:
            raise DataError(
                f"{path}: is placed by {len(raster.gcps[0])} ground control points only; warp it to a grid "
                f"(gdalwarp -t_srs {_named(raster.gcps[1])} {path.name} {copy})"
            )
        if at_home and raster.rpcs:
            raise DataError(
                f"{path}: is placed by rational polynomial coefficients (RPC) only; warp it to a grid (gdalwarp -rpc "
                f"-t_srs EPSG:326XX {path.name} {copy})"
            )
        if raster.crs is None:
            raise DataError(f"{path}: has no coordinate reference system; assign one (gdal_edit.py -a_srs)")
        try:
            parse_crs(raster.crs)
        except CRSError as err:
            why = f"its coordinate reference system cannot be used ({err})"
            raise DataError(f"{path}: {why}; assign one (gdal_edit.py -a_srs)") from err
        if at_home or raster.transform.is_degenerate:
            raise DataError(
                f"{path}: has a coordinate reference system, but no geotransform that says where its pixels lie; "
                f"assign its edges (gdal_edit.py -a_ullr LEFT TOP RIGHT BOTTOM {path.name})"
            )

    def _check_bands(self) -> None:
        kinds = self.raster.colorinterp
        for name, n in zip(self.bands, self._numbers, strict=True):
            if self.raster.dtypes[n - 1].startswith("complex"):
                raise DataError(f"{self.path}: holds complex numbers; give real ones, such as amplitudes")
            if kinds[n - 1] == ColorInterp.palette:
                raise DataError(
                    f"{self.path}: band {n} has a colour table, whose indices are no brightness, so it cannot be "
                    f"{name}; give the bands as measured"
                )
            if n in self._alpha:  # GDAL takes any fourth band of bytes for alpha, which nir is not
                window = self.raster.read(n, out_shape=(min(self.raster.height, 256), min(self.raster.width, 256)))
                opaque = np.iinfo(window.dtype).max if window.dtype.kind in "iu" else 1
                if len(found := np.unique(window)) <= 2 and found[-1] == opaque:
                    raise DataError(
                        f"{self.path}: band {n}, named {name}, is the alpha band, which says where there is data; name "
                        "it '-'"
                    )

    def _names(self, bands: Sequence[str] | None, sensor: str | None) -> tuple[Bands, list[int]]:
        """Return the names of the bands wanted, and which of the file's they are; sets `sensor`."""
        count, described = self.raster.count, list(self.raster.descriptions)
        given: list[str | None] = list(bands) if bands else described
        for n in self._alpha:  # it needs no name
            if len(given) < count:
                given.insert(n - 1, "-")
            given[n - 1] = given[n - 1] or "-"
        if len(given) != count:
            raise DataError(
                f"{self.path}: {count} bands, but `bands` names {len(given)}: name every band of the file in its order"
            )
        try:
            names, self.sensor, odd = name_bands(given, sensor, strict=bands is not None)
            for n, says, called in described_otherwise([b or "-" for b in names], described) if bands else []:
                odd.append(f"band {n} is described as {says}, but taken for {called}, as `bands` says")
            if bands and not any(described):
                odd += self._against_colours(names)
            self.notes += [f"{self.path}: {line}" for line in odd]
            return Bands(b for b in names if b), [n for n, b in enumerate(names, 1) if b]
        except DataError as err:
            raise DataError(f"{self.path}: {count} bands; {err}; '-' leaves one out") from err

    def _against_colours(self, names: Sequence[str | None]) -> list[str]:
        shown = [kind.name for kind in self.raster.colorinterp]
        return [
            f"band {n} is shown as {says}, but taken for {b}, as `bands` says"
            for n, (says, b) in enumerate(zip(shown, names, strict=True), 1)
            if b and says != b and says in ("red", "green", "blue")
        ]

    def _scaled(self, scale: Given, offset: Given) -> tuple[list[float], list[float]]:
        """Return scale and offset of each band, as the file or the user says."""
        count, found = self.raster.count, []
        tags = [(self.raster.scales[n - 1], self.raster.offsets[n - 1]) for n in self._numbers]
        for k, (what, given) in enumerate((("scale", scale), ("offset", offset))):
            try:
                mine = by_band(given, what, self.bands, self._numbers, count)
            except DataError as err:
                raise DataError(f"{self.path}: {err}") from err
            for band, own, tag in zip(self.bands, mine, tags, strict=True):
                if own is not None and tag != (1.0, 0.0) and not np.isclose(own, tag[k], rtol=1e-6, atol=0):
                    raise DataError(
                        f"{self.path}: {what} {own:g} is asked for band {band}, but the file says {tag[k]:g} (scale "
                        f"{tag[0]:g}, offset {tag[1]:g}); leave it out, or mend the file (gdal_edit.py -{what} {own:g})"
                    )
            found.append([tag[k] if own is None else own for own, tag in zip(mine, tags, strict=True)])
            if given is not None and None in mine and not isinstance(given, Mapping):
                other = [band for band, own in zip(self.bands, mine, strict=True) if own is None]
                self.notes.append(
                    f"{self.path}: {what} {given} is for reflected light, {', '.join(other)} keep their own"
                )
        for name, values in zip(("scale", "offset"), found, strict=True):
            if not np.isfinite(values).all():
                raise DataError(
                    f"{self.path}: its tags hold a {name} that is no number; mend it (gdal_edit.py -{name})"
                )
        if 0 in found[0]:
            raise DataError(f"{self.path}: its tags hold a scale of 0; mend it (gdal_edit.py -scale 1)")
        return found[0], found[1]

    @cached_property
    def scaling(self) -> tuple[Scaling, ...]:
        """How the numbers of each band become values, and the unit of these."""
        out = []
        for k, (band, n) in enumerate(zip(self.bands, self._numbers, strict=True)):
            scale, offset = self._scale[k], self._offset[k]
            scaled, some = (scale, offset) != (1.0, 0.0), self.sample.numbers[k, self.sample.valid]
            values = some * np.float64(scale) + offset if scaled else some
            unit, odd = unit_of(band, self.raster.units[n - 1], scaled, values)
            if odd:
                self.notes.append(f"{self.path}: {odd}")
            if unit == "celsius":
                unit, offset = "kelvin", offset + ZERO_CELSIUS
            out.append(Scaling(scale, offset, unit))
        return tuple(out)

    @cached_property
    def sample(self) -> Sample:
        """Some of its pixels, the same ones each time; a small scene whole."""
        many, side = SAMPLE
        index = list(range(len(self.bands)))
        if self.height <= many * side and self.width <= many * side:
            places = [(0, 0, self.height, self.width)]
        else:
            h, w = min(side, self.height), min(side, self.width)
            rows, cols = (_spread(length, s, many) for length, s in ((self.height, h), (self.width, w)))
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
            if value == 0 and 0 in self.raster.nodatavals:
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
            if sample.valid.any():
                found = np.quantile(numbers[sample.valid].astype(np.float64), QUANTILES) * how.scale + how.offset
                quantiles[band] = tuple(sorted(found.tolist()))
        return Profile(
            units={band: how.unit for band, how in zip(self.bands, self.scaling, strict=True)},
            quantiles=quantiles,
            pixel_size=pixel_size(self.crs, self.transform, (self.height, self.width)),
            sensor=self.sensor or "",
        )

    def read_window(
        self,
        index: Sequence[int],  # positions of the bands wanted
        row: int,  # first row
        col: int,  # first column
        height: int,  # rows
        width: int,  # columns
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers `(C, H, W)` as delivered, and bool `(H, W)`: True where there is data."""
        window, numbers = Window(col, row, width, height), [self._numbers[i] for i in index]
        with reading(self.path):
            values = self.raster.read(numbers, window=window, out_dtype=self.dtype)  # bands may differ in type
            valid = np.ones(values.shape[1:], bool)
            for n in self._masks(numbers):
                valid &= self.raster.read_masks(n, window=window) > 0
            for n in self._alpha:
                if n not in self._numbers:
                    valid &= self.raster.read(n, window=window) > 0
        nodata = [self.raster.nodatavals[n - 1] for n in numbers]
        for band, declared in zip(values, nodata, strict=True):
            if declared and not np.isnan(declared):
                valid &= band != declared
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(0)
            if (far := valid & (np.abs(values) >= NO_VALUE).any(0)).any():
                note(f"{self.path}: holds numbers beyond {NO_VALUE:g}; such pixels have no data", self.notes)
                valid &= ~far
        if values.dtype.kind == "u" or all(declared == 0 for declared in nodata):
            valid &= (values != 0).any(0)
        return values, valid

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

    def _masks(self, numbers: Sequence[int]) -> list[int]:
        """Return the bands whose mask band counts; alpha is looked at by itself."""
        flags = self.raster.mask_flag_enums
        return [n for n in numbers if MaskFlags.per_dataset in flags[n - 1] and MaskFlags.alpha not in flags[n - 1]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc) -> None:
        self.raster.close()


def _spread(length: int, side: int, many: int) -> list[int]:
    """Return where windows begin along an axis, evenly spread from one end to the other."""
    return sorted({round(k * (length - side) / (many - 1)) for k in range(many)})


def _named(crs: rasterio.CRS | None) -> str:
    return f"EPSG:{crs.to_epsg()}" if crs and crs.to_epsg() else "EPSG:326XX"
