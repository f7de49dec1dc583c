"""Clouds, shadows and the like: pixels whose flags say that the ground is not seen have no data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject
from rasterio.windows import Window
from scipy.ndimage import distance_transform_edt

from ...core.tiling import spread
from ...errors import DataError, did_you_mean
from ...memory import fits
from ..sources.outlines import burn_outlines, open_outlines
from ..sources.vectors import SUFFIXES, vector_files
from .address import Address
from .nearest import blocks, columns_and_rows, read_known
from .product import Flag
from .raster import open_raster, placeless, reading, same_crs, same_grid, unknown_shift
from .scene import HALF, Scene, on_grid_of

__all__ = ["KINDS", "MaskCounts", "Masked", "check_keep"]

KINDS: dict[str, str] = {
    "clouds": "cloud",
    "dilated": "next to a cloud, as the flags say",
    "cirrus": "cirrus",
    "shadows": "shadow of a cloud",
    "saturated": "brighter than the sensor can measure, or defective",
}
"""What has no data unless it is kept. What is fill has none; snow is not among them."""

WIDENED = ("clouds", "dilated", "cirrus", "shadows")
OWN = "mask"  # the kind of what the user's own mask hides
ROWS = 256  # that are read at once
LOOKED_AT = 256  # pixels along each side of a scene that show how much of it a mask covers
COVERED = 0.99  # share of a scene from which on nothing is said of flags; coarse ones may lack a sliver at an edge
WIDEST = 10_000  # metres by which clouds are widened: that much more is read on each side of every strip

Kinds = list[tuple[str, int, tuple[int, ...]]]  # kind, mask and values of each


def check_keep(
    keep: Collection[str],
) -> frozenset[str]:
    """Return the kinds that are to be kept; raises `DataError` for one that is not known."""
    for kind in keep:
        if kind not in KINDS:
            raise DataError(f"keep {kind!r}: masks are {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    return frozenset(keep)


class MaskCounts:
    """How much of a scene is masked, of all pixels but fill.

    >>> counts = MaskCounts()
    >>> _ = counts.add({"fill": np.array([True, False, False]), "clouds": np.array([True, True, False])})
    >>> counts.share, counts.pixels, counts.text
    (0.5, {'clouds': 1}, '50.0% of it is masked (clouds 50.0%)')
    """

    def __init__(self):
        self.seen = self.lost = 0
        """Pixels but fill, and those of them that are masked."""
        self.pixels: dict[str, int] = {}
        """By kind; one may be of several."""

    @classmethod
    def of(cls, scene: Scene) -> MaskCounts:
        """Return those of a whole scene."""
        counts = cls()
        for row in range(0, scene.height, ROWS):
            counts.add(scene.masked(row, 0, min(ROWS, scene.height - row), scene.width))
        return counts

    def add(
        self,
        flags: Mapping[str, np.ndarray],  # as from `Scene.masked`
    ) -> np.ndarray | None:
        """Count some pixels; return where they are masked, None where nothing masks."""
        if not flags:
            return None
        seen = ~flags["fill"] if "fill" in flags else np.ones(next(iter(flags.values())).shape, bool)
        kinds = {kind: flag & seen for kind, flag in flags.items() if kind != "fill"}
        masked = np.logical_or.reduce([np.zeros(seen.shape, bool), *kinds.values()])
        self.seen, self.lost = self.seen + int(seen.sum()), self.lost + int(masked.sum())
        for kind, flag in kinds.items():
            self.pixels[kind] = self.pixels.get(kind, 0) + int(flag.sum())
        return masked

    @property
    def share(self) -> float:
        """Of the pixels but fill."""
        return self.lost / max(self.seen, 1)

    @property
    def text(self) -> str:
        """The share in words."""
        kinds = ", ".join(f"{kind} {n / self.seen:.1%}" for kind, n in self.pixels.items() if n)
        return f"{self.share:.1%} of it is masked ({kinds})"

    @property
    def idle(self) -> str:
        """What is said where the user's mask hides nothing, else nothing."""
        nothing = "hides no pixel of it: one hides where it is neither 0 nor what it masks or declares as nodata"
        return f"the mask that was given {nothing}" if self.pixels.get(OWN) == 0 else ""


class Masked(Scene):
    """A scene of which pixels that flags speak of have no data."""

    def __init__(
        self,
        scene: Scene,
        flags: Sequence[tuple[Path | Address, str, Flag]],  # with their files, and how messages call these
        keep: Collection[str] = (),  # of `KINDS`: what has data all the same
        buffer: float = 0.0,  # metres by which clouds and shadows are widened
        own: Path | Address | None = None,  # the user's mask: a raster, not 0 where it masks, or polygons
        polygons: Mapping[str, Sequence[Any]] | None = None,  # see `Product`
    ):
        self._begin_as(scene)
        self.scene, self.keep, self.rasters = scene, check_keep(keep), [*scene.rasters]
        self._own: tuple[Path | Address, Any, bool] | None = None
        self._layers: dict[tuple[Path | Address, int], tuple[Any, str, Kinds]] = {}
        self._last: tuple[tuple[int, ...], dict[str, np.ndarray]] = ((0, 0, 0, 0), {})
        self._burnt: dict[str, np.ndarray] = {}
        if not 0 <= buffer <= WIDEST:
            raise DataError(f"mask buffer {buffer:g}: give metres, 0 to {WIDEST:,}")
        size = scene.pixel_size if buffer else 1.0
        if size is None:
            raise DataError(f"{scene.path}: its coordinate reference system does not tell how far a metre is")
        self.buffer = buffer / size
        try:
            for path, called, flag in flags:
                if kinds := [(kind, *of) for kind, of in flag.kinds.items() if kind not in self.keep]:
                    self._add(path, called, flag.band, kinds)
            for kind, shapes in (polygons or {}).items():
                if kind not in self.keep and shapes:
                    self._burnt[kind] = self._burn(shapes)
            if own is not None:
                self._add_own(own)
        except BaseException:
            self.close()
            raise

    @property
    def scaling(self):
        """As of the scene."""
        return self.scene.scaling

    @property
    def unmasked(self) -> Scene:
        """The scene within."""
        return self.scene

    def _add(self, path: Path | Address, called: str, band: int, kinds: Kinds) -> None:
        if (path, band) in self._layers:
            self._layers[path, band][2].extend(kinds)
            return
        raster = open_raster(path, called)
        self.rasters.append(raster)
        if not 1 <= band <= raster.count:
            raise DataError(f"{called}: {raster.count} bands, so no band {band} of flags")
        if not np.issubdtype(raster.dtypes[band - 1], np.integer):
            raise DataError(f"{called}: holds {raster.dtypes[band - 1]}, no whole numbers, so no flags; copy it again")
        if raster.crs is None:
            raise DataError(f"{called}: has no coordinate reference system, so it masks nothing; assign one")
        self._say_shift(raster, called)
        self._check_reach(raster, called)
        if same_crs(raster.crs, self.crs):
            self._layers[path, band] = raster, called, kinds
        else:
            self._layers[path, band] = self._warped(raster, called, Resampling.nearest), called, kinds

    def _check_reach(self, raster: Any, called: str) -> None:
        """Refuse flags that lie elsewhere, and say if they lie on a part of the scene only, before it is resampled."""
        grid = self.rasters[0]
        at, there, inside = _on(raster, called, grid)
        if same_crs(raster.crs, grid.crs):  # they are not read around the Earth
            inside &= np.isclose(~raster.transform * grid.transform * at, there, atol=1).all(0)
        if not (share := inside.mean()):
            raise DataError(f"{called}: has the masks of {self.path}, but lies elsewhere; download the product again")
        line = f"{called}: covers {share:.1%} of {self.path}; elsewhere nothing is masked by it"
        if share < COVERED and line not in self.notes:
            self.notes.append(line)

    def _say_shift(self, raster: Any, called: Any) -> None:
        if odd := unknown_shift(raster.crs, self.crs, self.transform, (self.height, self.width)):
            self.notes.append(f"{called}: {odd}")

    def _warped(self, raster: Any, called: str, how: Resampling) -> WarpedVRT:
        with reading(called):
            grid = {"crs": self.crs, "transform": self.transform, "height": self.height, "width": self.width}
            warped = WarpedVRT(raster, resampling=how, **grid)
        self.also_close = [*self.also_close, warped.close]
        return warped

    def _burn(self, shapes: Sequence[Any]) -> np.ndarray:
        fits(2 * self.height * self.width, f"{self.path}: its masks", "cut the scene (gdal_translate -srcwin)")
        with reading(self.path):
            return rasterize(shapes, (self.height, self.width), transform=self.transform, dtype="uint8") != 0

    def _add_own(self, path: Path | Address) -> None:
        if Path(path.name).suffix.lower() in SUFFIXES:
            fits(
                2 * self.height * self.width, f"{path}: burnt on {self.path}", "cut the scene (gdal_translate -srcwin)"
            )
            grid = (self.crs, self.transform, (self.height, self.width))
            mask, found = burn_outlines(
                open_outlines([path], None), *grid, all_touched=True, notes=self.notes, scene=self.path
            )
            if found:
                self._burnt[OWN] = mask != 0
            else:
                self.notes.append(f"{path}: no polygon lies on {self.path}, so nothing is masked by it")
            read = [file if isinstance(file, Address) else str(file) for file in vector_files(path)]
            self.other_files = [*self.other_files, *read]
            return
        raster = open_raster(path)
        self.rasters.append(raster)
        if raster.count != 1 or raster.dtypes[0].startswith("complex"):
            raise DataError(f"{path}: {raster.count} bands; a mask has one, not 0 where pixels are to be left out")
        if raster.crs is None or placeless(raster.transform):
            lacks = "coordinate reference system" if raster.crs is None else "geotransform that says where it lies"
            raise DataError(f"{path}: has no {lacks}, so it masks nothing; assign one (gdal_edit.py -a_srs, -a_ullr)")
        self._say_shift(raster, path)
        if on_grid_of(self, raster):
            self._own = path, raster, False
            return
        at, there, inside = _on(raster, path, self)
        if not inside.any() and not _on(self, path, raster)[2].any():
            self.notes.append(f"{path}: does not reach {self.path}, so nothing is masked by it")
            return
        if (share := inside.mean()) < 0.9995:
            self.notes.append(f"{path}: covers {share:.1%} of {self.path}; elsewhere nothing is masked by it")
        plain = ~raster.transform * self.transform
        if same_crs(raster.crs, self.crs) and np.allclose(plain * at, there, atol=0.01):
            how = Resampling.mode if abs(plain.determinant) > 1.0001 else Resampling.nearest
            self._own = path, self._warped(raster, str(path), how), False
        else:  # GDAL does not go around the Earth
            self._own = path, raster, True

    def masked(self, row: int, col: int, height: int, width: int) -> dict[str, np.ndarray]:
        """Return where pixels have no data because of a mask: of `KINDS` that are not kept, "fill", and "mask"."""
        (top, left, high, wide), flags = self._last
        if not (top <= row and left <= col and row + height <= top + high and col + width <= left + wide and flags):
            top, left, flags = row, col, self._flags(row, col, height, width)
            self._last = (row, col, height, width), flags
        at = np.s_[row - top : row - top + height, col - left : col - left + width]
        return {kind: flag[at] for kind, flag in flags.items()}

    def _flags(self, row: int, col: int, height: int, width: int) -> dict[str, np.ndarray]:
        halo = int(np.ceil(self.buffer))
        top, left = max(row - halo, 0), max(col - halo, 0)
        bottom, right = min(row + height + halo, self.height), min(col + width + halo, self.width)
        if halo:  # distances are made of whole numbers of four bytes and of floats of eight, two each
            held = 48 * (bottom - top) * (right - left)
            fits(held, f"{self.path}: its masks, widened", "widen them less, or cut the scene (gdal_translate -srcwin)")
        window, out = Window(left, top, right - left, bottom - top), dict[str, np.ndarray]()
        for (_, band), (raster, called, kinds) in self._layers.items():
            for kind, flag in self._kinds(called, raster, band, kinds, window).items():
                out[kind] = out.get(kind, False) | flag
        for kind, burnt in self._burnt.items():
            if kind != OWN:
                out[kind] = out.get(kind, False) | burnt[top:bottom, left:right]
        if "fill" in out:
            seen = ~out["fill"]
            out |= {kind: flag & seen for kind, flag in out.items() if kind not in ("fill", OWN)}
        inner = np.s_[row - top : row - top + height, col - left : col - left + width]
        for kind in [k for k in out if halo and k in WIDENED and out[k].any()]:
            out[kind] = distance_transform_edt(~out[kind]) <= self.buffer
        out = {kind: flag[inner] for kind, flag in out.items()}
        if OWN in self._burnt:
            out[OWN] = self._burnt[OWN][row : row + height, col : col + width]
        if self._own:
            out[OWN] = self._hidden(*self._own, row, col, height, width)
        return out

    def _hidden(
        self, path: Path | Address, raster: Any, moved: bool, row: int, col: int, height: int, width: int
    ) -> np.ndarray:
        """Return where the user's raster masks pixels of a window."""
        out, here = np.zeros((height, width), bool), self.transform * rasterio.Affine.translation(col, row)
        place: Any = SimpleNamespace(path=self.path, crs=self.crs, transform=here, height=height, width=width)
        with reading(path):
            if moved:
                parts: Any = blocks(raster, path, place, True)
            else:
                parts = [(np.s_[:, :], *read_known(raster, Window(col, row, width, height)))]
            for at, numbers, known in parts:
                out[at] = known & (numbers != 0)
                if raster.nodata is not None:
                    out[at] &= numbers != raster.nodata
        return out

    def _kinds(self, called: str, raster: Any, band: int, kinds: Kinds, window: Window) -> dict[str, np.ndarray]:
        """Return where pixels are of some kinds; on another grid than that of the flags, by majority."""
        here = self.transform * rasterio.Affine.translation(window.col_off, window.row_off)
        there = ~raster.transform * here  # from our pixels to those of the flags
        size = int(window.height), int(window.width)
        corners = [there * at for at in ((0, 0), (size[1], size[0]))]
        (left, top), (right, bottom) = np.floor(np.min(corners, 0)), np.ceil(np.max(corners, 0))
        out = {kind: np.zeros(size, bool) for kind, _, _ in kinds}
        if same_grid(there, rasterio.Affine.translation(round(there.c), round(there.f)), size):
            left, top = round(there.c), round(there.f)
            right, bottom = left + size[1], top + size[0]
        left, top = int(max(left, 0)), int(max(top, 0))
        right, bottom = int(min(right, raster.width)), int(min(bottom, raster.height))
        if left >= right or top >= bottom:
            return out
        with reading(called):
            numbers = raster.read(band, window=Window(left, top, right - left, bottom - top))
        numbers = numbers.astype(np.int64, copy=False)  # a mask of all bits is -1
        if any(mask == 255 for _, mask, _ in kinds):
            odd = numbers[((numbers < 0) | (numbers > 255)) & (numbers != raster.nodata)]
            if odd.size:
                raise DataError(f"{called}: holds {odd[0]}, no code of flags, 0 to 255; download it again")
        found = {kind: np.zeros(numbers.shape, bool) for kind in out}
        for kind, mask, values in kinds:
            bits = numbers & mask
            for value in values:
                found[kind] |= bits == value
        if abs(there.determinant - 1) < 1e-4 and numbers.shape == size:
            return found
        how = Resampling.average if abs(there.determinant) > 1.0001 else Resampling.nearest
        for kind, flag in found.items():
            if flag.any():
                share = np.zeros(size, np.float32)
                with reading(called):
                    reproject(
                        flag.astype(np.float32),
                        share,
                        src_transform=raster.transform * rasterio.Affine.translation(left, top),
                        dst_transform=here,
                        src_crs=self.crs,
                        dst_crs=self.crs,
                        resampling=how,
                    )
                out[kind] = share >= HALF
        return out

    def _read(self, index, row, col, height, width):
        numbers, valid = self.scene._read(index, row, col, height, width)
        for flag in self.masked(row, col, height, width).values():
            valid &= ~flag
        return numbers, valid


def _on(raster: Any, path: Path | str, scene: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return pixels spread over a scene, where they lie in a raster, and which lie on it."""
    at = np.meshgrid(*(np.array(spread(n, 1, LOOKED_AT)) + 0.5 for n in (scene.width, scene.height)))
    there = columns_and_rows(raster, path, scene)(*at)
    return at, there, (there >= 0).all(0) & (there[0] < raster.width) & (there[1] < raster.height)
