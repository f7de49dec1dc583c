"""Scenes in one file that GDAL reads, such as a GeoTIFF: bands by name, their units, what has data, the grid."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from ...bands import Bands, natural_unit
from ...core.fill import NO_VALUE
from ...errors import DataError, note
from ...reading import parse_xml, refusing
from .address import Address
from .names import described_otherwise, name_bands
from .raster import check_place, open_raster, placeless, reading
from .scene import Declared, Scene
from .units import Given, by_band
from .web import unversioned

__all__ = ["SceneRaster"]

SIDES = ("xOff", "yOff", "xSize", "ySize")  # of a place in a VRT, pixels


class SceneRaster(Scene):
    """A scene in one file.

    A pixel has no data where any band wanted declares it so (mask, alpha band, or a nodata
    value other than 0), where any of them is NaN or infinite, or where all of them are 0 and 0 is declared as nodata or
    they are unsigned integers: 0 in some of the bands is data. A band named "-" is left out; if it is the alpha band,
    it masks.
    """

    def __init__(
        self,
        path: str | os.PathLike,  # a GeoTIFF, or another of `raster.DRIVERS`; or the `web.Address` of one
        # names of its bands, all or by number from 1 (0: see `Part.band`), default its band descriptions
        bands: Sequence[str] | Mapping[int, str] | None = None,
        sensor: str | None = None,  # as `names.canonical_sensor` takes it, to read names such as "B4"
        *,
        scale: Given = None,  # what numbers are multiplied with, see `units.by_band`; default as the file says
        offset: Given = None,  # what is added then
        own_scaling: bool = True,  # whether the file's own scale, offset and units count
        fill: float | None = None,  # number of pixels without data, beside what the file declares
        called: str = "",  # how messages call it, default its path
    ):
        self.path = path if isinstance(path, Address) else Path(called or path)
        self.raster = open_raster(path, called)
        self.notes, self.fill = unversioned(self.raster), fill
        self.rasters = [self.raster]
        try:
            self.notes += _uncovered(self.raster, self.path)
            with reading(self.path):
                self._check_kind()
                self._alpha = [n for n, k in enumerate(self.raster.colorinterp, 1) if k == ColorInterp.alpha]
                self.bands, self.numbers = self._names(bands, sensor)
                self._check_bands()
                self.height, self.width = self.raster.height, self.raster.width
                self.crs, self.transform = self.raster.crs, self.raster.transform
                self._check_place()
                self.dtype = np.result_type(*(self.raster.dtypes[n - 1] for n in self.numbers))
                self.declared = self._declared(scale, offset, own_scaling)
        except BaseException:
            self.raster.close()
            raise

    def leave_out_others(
        self,
        wanted: Collection[str],  # bands that will be read
    ) -> None:
        """Leave out other bands, where those wanted are there: nobody looks at them, so they are not sent."""
        if {*wanted} <= {*self.bands}:
            kept = [i for i, band in enumerate(self.bands) if band in wanted]
            self.bands, self.numbers = Bands(self.bands[i] for i in kept), [self.numbers[i] for i in kept]
            self.declared = [self.declared[i] for i in kept]
            self.dtype = np.result_type(*(self.raster.dtypes[n - 1] for n in self.numbers))

    def _check_kind(self) -> None:
        if not self.raster.count:
            inside = [name.rpartition(":")[2] for name in self.raster.subdatasets]
            what = f"{len(inside)} subdatasets, {', '.join(inside[:6])}" if inside else "no band"
            first = self.raster.subdatasets[0] if inside else "SUBDATASET"
            raise DataError(
                f"{self.path}: holds {what}; make one file of those wanted (gdal_translate '{first}' band.tif, then "
                "gdalbuildvrt -separate)"
            )
        if isinstance(self.path, Address):
            return
        mask = Path(f"{self.raster.name}.msk")
        if mask.is_file():  # GDAL leaves one of another size out without a word
            with open_raster(mask) as raster:
                if raster.shape != self.raster.shape:
                    raise DataError(
                        f"{mask}: {raster.height} x {raster.width} px, but {self.path.name} has {self.raster.height} x "
                        f"{self.raster.width}: no mask of it; make it anew, or move it away"
                    )

    def _check_place(self) -> None:
        raster, path, copy = self.raster, self.path, f"{self.path.stem}_placed.tif"
        at_home = placeless(raster.transform)
        if at_home and raster.gcps[0]:
            raise DataError(
                f"{path}: is placed by {len(raster.gcps[0])} ground control points only; warp it to a grid "
                f"(gdalwarp -t_srs {_named(raster.gcps[1])} {path.name} {copy})"
            )
        if at_home and raster.tags(ns="RPC"):  # read or not
            raise DataError(
                f"{path}: is placed by rational polynomial coefficients (RPC) only; warp it to a grid (gdalwarp -rpc "
                f"-t_srs EPSG:326XX {path.name} {copy})"
            )
        check_place(raster, path)
        if at_home:
            raise DataError(
                f"{path}: has a coordinate reference system, but no geotransform that says where its pixels lie; "
                f"assign its edges (gdal_edit.py -a_ullr LEFT TOP RIGHT BOTTOM {path.name})"
            )

    def _check_bands(self) -> None:
        kinds = self.raster.colorinterp
        for name, n in zip(self.bands, self.numbers, strict=True):
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

    def _names(self, bands: Sequence[str] | Mapping[int, str] | None, sensor: str | None) -> tuple[Bands, list[int]]:
        """Return the names of the bands wanted, and which of the file's they are; sets `sensor`."""
        count, described = self.raster.count, list(self.raster.descriptions)
        if isinstance(bands, Mapping):
            bands = {n or self._only(name): name for n, name in bands.items()}
            if missing := [n for n in bands if not 1 <= n <= count]:
                raise DataError(f"{self.path}: {count} bands, so no band {missing[0]}, {bands[missing[0]]}")
            bands = [bands.get(n, "-") for n in range(1, count + 1)]
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

    def _only(self, band: str) -> int:
        """Return which of the file's bands is meant where the file is named for one, by a name of ours."""
        numbers = [n for n in range(1, self.raster.count + 1) if n not in self._alpha]
        if len(numbers) > 1:
            described = [self.raster.descriptions[n - 1] or "-" for n in numbers]
            try:
                names = name_bands(described)[0]
            except DataError:  # such as "B4", which says nothing by itself
                names = list(map(str.lower, described))
            numbers = [n for n, name in zip(numbers, names, strict=True) if name == band]
        if len(numbers) != 1:
            raise DataError(
                f"{self.path}: {self.raster.count} bands, and {len(numbers) or 'none'} of them described as {band}; "
                f"give a file of that band alone (gdal_translate -b NUMBER {self.path.name} {band}.tif)"
            )
        return numbers[0]

    def _against_colours(self, names: Sequence[str | None]) -> list[str]:
        shown = [kind.name for kind in self.raster.colorinterp]
        return [
            f"band {n} is shown as {says}, but taken for {b}, as `bands` says"
            for n, (says, b) in enumerate(zip(shown, names, strict=True), 1)
            if b and says != b and says in ("red", "green", "blue")
        ]

    def _declared(self, scale: Given, offset: Given, own: bool) -> list[Declared]:
        """Return what the file or the user says of each band."""
        raster, count, found = self.raster, self.raster.count, []
        tags = [(raster.scales[n - 1], raster.offsets[n - 1]) if own else (1.0, 0.0) for n in self.numbers]
        for k, (what, given) in enumerate((("scale", scale), ("offset", offset))):
            try:
                mine = by_band(given, what, self.bands, self.numbers, count)
            except DataError as err:
                raise DataError(f"{self.path}: {err}") from err
            for band, asked, tag in zip(self.bands, mine, tags, strict=True):
                if asked is not None and tag != (1.0, 0.0) and not np.isclose(asked, tag[k], rtol=1e-6, atol=0):
                    raise DataError(
                        f"{self.path}: {what} {asked:g} is asked for band {band}, but the file says {tag[k]:g} (scale "
                        f"{tag[0]:g}, offset {tag[1]:g}); leave it out, or mend the file (gdal_edit.py -{what} "
                        f"{asked:g})"
                    )
            found.append([tag[k] if asked is None else asked for asked, tag in zip(mine, tags, strict=True)])
            if given is not None and None in mine and not isinstance(given, Mapping):
                other = [band for band, asked in zip(self.bands, mine, strict=True) if asked is None]
                self.notes.append(
                    f"{self.path}: {what} {given} is for reflected light, {', '.join(other)} keep their own"
                )
        for name, values in zip(("scale", "offset"), found, strict=True):
            if not (np.abs(values) < NO_VALUE).all():
                raise DataError(
                    f"{self.path}: its tags hold a {name} that is no number, or beyond {NO_VALUE:g}; mend it "
                    f"(gdal_edit.py -{name})"
                )
        if (np.abs(found[0]) <= 1 / NO_VALUE).any():
            raise DataError(f"{self.path}: its tags hold a scale of 0; mend it (gdal_edit.py -scale 1)")
        zeros = [self.dtype.kind == "u" or raster.nodatavals[n - 1] == 0 for n in self.numbers]
        names = zip(self.numbers, self.bands, strict=True)
        units = [raster.units[n - 1] if own else natural_unit(band) for n, band in names]
        return [Declared(*each) for each in zip(*found, units, zeros, strict=True)]

    def _read(self, index, row, col, height, width):
        window, numbers = Window(col, row, width, height), [self.numbers[i] for i in index]
        with reading(self.path):
            values = self.raster.read(numbers, window=window, out_dtype=self.dtype)  # bands may differ in type
            valid = np.ones(values.shape[1:], bool)
            for n in self._masks(numbers):
                valid &= self.raster.read_masks(n, window=window) > 0
            for n in self._alpha:
                if n not in self.numbers:
                    valid &= self.raster.read(n, window=window) > 0
        nodata = [self.raster.nodatavals[n - 1] for n in numbers]
        for band, declared in zip(values, nodata, strict=True):
            if declared and not np.isnan(declared):
                valid &= band != declared
        if self.fill is not None:
            valid &= (values != self.fill).all(0)
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(0)
            if (far := valid & (np.abs(values) >= NO_VALUE).any(0)).any():
                note(f"{self.path}: holds numbers beyond {NO_VALUE:g}; such pixels have no data", self.notes)
                valid &= ~far
        return values, valid

    def _masks(self, numbers: Sequence[int]) -> list[int]:
        """Return the bands whose mask band counts, one of all or their own; alpha is looked at by itself."""
        flags = self.raster.mask_flag_enums  # none: a mask of the band's own
        own = [not flags[n - 1] or MaskFlags.per_dataset in flags[n - 1] for n in numbers]
        return [n for n, counts in zip(numbers, own, strict=True) if counts and MaskFlags.alpha not in flags[n - 1]]


def _named(crs: rasterio.CRS | None) -> str:
    return f"EPSG:{crs.to_epsg()}" if crs and crs.to_epsg() else "EPSG:326XX"


def _uncovered(raster: rasterio.DatasetReader, path: Path | Address) -> list[str]:
    """Return a note where the sources of a band of a VRT cover less of it than those of another one do.

    Elsewhere it is 0, and that is data where another band is not 0.
    """
    if raster.driver != "VRT":
        return []
    root, shares = parse_xml(raster.tags(ns="xml:VRT").get("xml:VRT", "<a/>"), path, DataError), dict[int, float]()
    if root.get("subClass"):  # a warped one has no sources by band
        return []
    whole = raster.height * raster.width
    with refusing(path, DataError, "a VRT that cannot be used", "make a GeoTIFF of it (gdal_translate)"):
        for number, band in enumerate(root.iterfind("VRTRasterBand"), 1):
            area = 0.0
            for source in band:
                if not source.tag.endswith("Source"):
                    continue
                if (at := source.find("DstRect")) is None:  # all of it
                    area = whole
                    break
                x, y, width, height = (float(at.get(k, "nan")) for k in SIDES)
                across = min(x + width, raster.width) - max(x, 0)
                area += max(across, 0) * max(min(y + height, raster.height) - max(y, 0), 0)
            shares[number] = min(area / whole, 1.0)
    least = min(shares, key=lambda number: shares[number], default=0)
    if not least or shares[least] > max(shares.values()) - 0.001 or raster.nodatavals[least - 1]:
        return []
    text = f"its sources cover {shares[least]:.1%} of band {least}, more of others; elsewhere it is 0, taken for data"
    return [f"{path}: {text}; give the VRT another nodata value (gdalbuildvrt -vrtnodata)"]
