"""What a map is written to, strip by strip."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from matplotlib.colors import to_rgb
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj.exceptions import CRSError
from rasterio._err import CPLE_BaseError
from rasterio.errors import DriverRegistrationError, RasterioError
from rasterio.shutil import copy
from rasterio.windows import Window

from ..bands import CLASS_COLOURS, CLASSES, IGNORE
from ..data.scenes.raster import same_crs, same_grid
from ..data.scenes.scene import Place
from ..errors import DataError, OutputError
from ..files import write_text
from .source import Grid

__all__ = [
    "SIDECAR",
    "ClassMap",
    "ConfidenceMap",
    "ProbabilityMap",
    "Strip",
    "check_grid",
    "checksums",
    "writing",
]

SIDECAR = ".aux.xml"  # beside a raster: what its format cannot hold, such as some coordinate reference systems

PROBABILITIES = tuple(f"probability of {c}" for c in CLASSES)
ROWS = 512  # that are read at once; blocks of a Cloud-Optimized GeoTIFF have as many
BYTE = 254  # probability 1 in a map of bytes; 255 is no data


class Strip(NamedTuple):
    """Some rows of a map."""

    row: int  # the first of them
    classes: np.ndarray  # (h, W) uint8 class codes, 255 where there is no data
    probs: np.ndarray  # (K, h, W) float32, calibrated


class RasterMap:
    """A Cloud-Optimized GeoTIFF on the scene's grid; the file appears when all rows are written, or never."""

    resampling = "average"  # of the overviews

    def __init__(
        self,
        path: str | os.PathLike,  # file to write
        source: Place,  # size and grid of the scene
        bands: tuple[str, ...],  # descriptions of the bands
        dtype: str = "uint8",
        nodata: float = IGNORE,
    ):
        self.path, self.bands, self.sums = Path(path), bands, [0] * len(bands)
        self.plain = self.path.with_suffix(".rows.tif")  # a COG cannot be written row by row
        self.profile = {
            "driver": "GTiff",
            "height": source.height,
            "width": source.width,
            "count": len(bands),
            "dtype": dtype,
            "crs": source.crs,
            "transform": source.transform,
            "nodata": nodata,
            "compress": "deflate",
            "zlevel": 1,
            "interleave": "band",
            "blockysize": 64,
            "bigtiff": "if_safer",
        }

    def __enter__(self) -> Self:
        with writing(self.path):
            self.raster = rasterio.open(self.plain, "w", **self.profile)
            self.raster.descriptions = self.bands
        return self

    def write(self, strip: Strip) -> None:
        """Write the next rows."""
        values = np.ascontiguousarray(self.values(strip))
        self.sums = [zlib.crc32(band, total) for band, total in zip(values, self.sums, strict=True)]
        with writing(self.path):
            self.raster.write(values, window=Window(0, strip.row, values.shape[2], values.shape[1]))

    def values(self, strip: Strip) -> np.ndarray:
        """Return what is written of a strip, `(bands, h, W)`."""
        raise NotImplementedError

    def __exit__(self, kind, value, trace) -> None:
        try:
            if kind is None:
                with writing(self.path):
                    self.raster.close()
                    options = {"compress": "deflate", "blocksize": 512, "bigtiff": "if_safer"}
                    copy(self.plain, self.path, driver="COG", overview_resampling=self.resampling, **options)
                    self.check(self.path)
                    if not lies_on(self.path, self.profile):
                        wkt = rasterio.CRS.from_user_input(self.profile["crs"]).to_wkt()
                        xml = f"<PAMDataset>\n  <SRS>{escape(wkt)}</SRS>\n</PAMDataset>\n"  # before the GeoTIFF's own
                        write_text(self.path.with_name(self.path.name + SIDECAR), xml)
        finally:
            self.discard()

    def check(
        self,
        path: Path,  # raster of what was written
    ) -> None:
        """Raise `OSError` if a raster is not whole: GDAL says nothing of what it could not write when it closed one."""
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # some drives know only now that they are full
        if checksums(path) != self.sums:
            raise OSError(errno.EIO, "it is not what was written")

    def discard(self) -> None:
        """Remove the rows, which are in the map now, or never will be."""
        with suppress(RasterioError, CPLE_BaseError), rasterio.Env():  # of a disk that is full
            self.raster.close()
        for path in (self.plain, self.plain.with_name(self.plain.name + SIDECAR)):
            path.unlink(missing_ok=True)


@contextmanager
def writing(
    path: Path,  # file named in the error
) -> Iterator[None]:
    """Turn what GDAL says of a full disk into one line, of rasters and of layers."""
    try:
        with rasterio.Env():  # else GDAL prints what it cannot do; in this thread, too
            yield
    except (RasterioError, DriverRegistrationError, CPLE_BaseError, DataLayerError, DataSourceError, OSError) as err:
        if isinstance(err, OutputError):
            raise
        first = err if isinstance(err, DataLayerError | DataSourceError) else err.__cause__ or err
        cause = " ".join(str(first).split())[:200]
        raise OutputError(f"{path}: cannot be written ({cause}); make room, or choose another folder") from err


def checksums(
    path: str | os.PathLike,  # raster
) -> list[int]:
    """Return the CRC-32 of each band, by rows; raises `RasterioError` if a block, also of overviews, is cut short."""
    sums: list[int] = []
    with rasterio.open(path) as file:
        levels = len(file.overviews(1))
    for level in (None, *range(levels)):
        with rasterio.open(path, **({} if level is None else {"overview_level": level})) as file:
            found = [0] * file.count
            for row in range(0, file.height, ROWS):
                window = Window(0, row, file.width, min(ROWS, file.height - row))
                found = [zlib.crc32(file.read(k, window=window), total) for k, total in enumerate(found, 1)]
        sums = sums or found
    return sums


def lies_on(
    path: Path,  # map
    profile: dict[str, Any],  # what it was written with
) -> bool:
    """Return whether a map, opened again, has the coordinate reference system and the grid it was given."""
    with rasterio.open(path) as file:
        try:
            same = file.crs == profile["crs"] or (file.crs is not None and same_crs(file.crs, profile["crs"]))
        except CRSError:
            same = False
        return same and same_grid(file.transform, profile["transform"], (profile["height"], profile["width"]))


def check_grid(
    source: Place,
    folder: Path,  # where a file may be written
) -> None:
    """Raise `DataError` if a map of the scene, opened again, would not lie where the scene does."""
    path = folder / "grid.tif"
    pixel = Grid(source.path, source.crs, source.transform, 1, 1)
    with ClassMap(path, pixel) as made:
        made.write(Strip(0, np.zeros((1, 1), np.uint8), np.zeros((len(CLASSES), 1, 1), np.float32)))
    lies = lies_on(path, {**made.profile, "height": source.height, "width": source.width})
    path.unlink()
    path.with_name(path.name + SIDECAR).unlink(missing_ok=True)
    if not lies:
        raise DataError(
            f"{source.path}: a GeoTIFF cannot hold where it lies ({source.crs.to_string()[:80]}), so there can be no "
            "map of it; bring it to another coordinate reference system (gdalwarp -t_srs)"
        )


class ClassMap(RasterMap):
    """Class codes, uint8 with a colour table, nodata 255."""

    resampling = "mode"

    def __init__(self, path: str | os.PathLike, source: Place):
        super().__init__(path, source, ("class: " + ", ".join(f"{k} {c}" for k, c in enumerate(CLASSES)),))

    def __enter__(self) -> Self:
        super().__enter__()
        rgb = [tuple(round(255 * v) for v in to_rgb(c)) for c in CLASS_COLOURS]
        self.raster.write_colormap(1, {k: (*colour, 255) for k, colour in enumerate(rgb)})
        return self

    def values(self, strip: Strip) -> np.ndarray:
        """Return the codes."""
        return strip.classes[None]


class ProbabilityMap(RasterMap):
    """Probabilities of the classes, a band each: float32, or bytes of 1/254 (as the file's scale says)."""

    def __init__(
        self,
        path: str | os.PathLike,
        source: Place,
        dtype: str = "uint8",  # or float32
        bands: tuple[str, ...] = PROBABILITIES,
    ):
        super().__init__(path, source, bands, dtype, IGNORE if dtype == "uint8" else np.nan)

    def __enter__(self) -> Self:
        super().__enter__()
        if self.profile["dtype"] == "uint8":
            self.raster.scales = [1 / BYTE] * len(self.bands)
        return self

    def values(self, strip: Strip) -> np.ndarray:
        """Return the probabilities as they are kept."""
        return self.kept(strip, strip.probs)

    def kept(self, strip: Strip, probs: np.ndarray) -> np.ndarray:
        """Return probabilities `(bands, h, W)` in the file's type, nodata where the map has none."""
        unknown = strip.classes == IGNORE
        if self.profile["dtype"] == "uint8":
            scaled = probs * np.float32(BYTE)
            kept = np.rint(scaled, out=scaled).astype(np.uint8)
            kept[:, unknown] = IGNORE
            return kept
        return np.where(unknown, np.float32(np.nan), probs)


class ConfidenceMap(ProbabilityMap):
    """Calibrated probability that the class in the map is right, bytes of 1/254. Disagreement of models lowers it."""

    def __init__(self, path: str | os.PathLike, source: Place):
        super().__init__(path, source, bands=("confidence",))

    def values(self, strip: Strip) -> np.ndarray:
        """Return the probability of the class that the map shows."""
        at = np.where(strip.classes == IGNORE, 0, strip.classes)[None]
        return self.kept(strip, np.take_along_axis(strip.probs, at.astype(np.intp), 0))
