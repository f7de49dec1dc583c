"""The tile store: one folder that every source writes and every loader reads.

    STORE/dataset.json   format version, bands, their units, scale and offset, classes, tile size, dtype, nodata, mean,
                         std, source, sensor, notes of what is odd, how made, digest of tiles.csv
    STORE/tiles.csv      one row per tile: id, scene, row, col, crs, transform, group, split, valid share, pixels per
                         class and of ice of unknown kind (n_ice), sum and sum of squares of the numbers per band over
                         valid pixels, and CRC-32 of image and mask. `split` is "train", "valid", "test" or empty; test
                         tiles are never trained on, validated on or measured
    STORE/images.npy     (N, C, H, W), numbers (uint8, uint16, float16 or float32), memory-mapped: values are
                         scale * number + offset, in the band's unit
    STORE/masks.npy      (N, H, W) uint8, class codes, 254 = ice of unknown kind, 255 = ignore

A pixel has no data where all its bands hold the store's nodata value (0 for integers, NaN for floats); its mask
is then 255. Because sums and class counts stand in `tiles.csv`, the statistics of any subset of tiles are exact
and need no image.
"""

from __future__ import annotations

import json
import os
import weakref
import zlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError, model_validator
from pyproj import CRS
from pyproj.exceptions import CRSError

from ..bands import CLASSES, ICE, ICE_OF_ANY_KIND, IGNORE, LOCATION, UNITS, Bands, texture_of
from ..core.fill import NO_VALUE
from ..core.ground import outlines
from ..core.moments import constant, fixed_statistics, moments
from ..core.settings import Section, explain
from ..errors import DataError, note
from ..files import digest, held, identity, whole_folder
from ..reading import check_length, read_array, read_json, read_table, refusing
from .profile import QUANTILES, Profile
from .scenes.raster import FAR, horizontal, pixel_size
from .scenes.units import Scaling

__all__ = ["TileStore", "TileWriter", "store_dtype"]

FORMAT = "glacier_fastai tile store"
VERSION = 3
READS = (1, 2, 3)  # 1: every band had unit dn; before 3 nothing told whether arrays are as they were written
AGAIN = "prepare the store again"
TEXT = ("id", "scene", "crs", "transform", "group", "split")  # columns of tiles.csv
SPLITS = ("train", "valid", "test", "")
SYSTEMS = 1000  # most coordinate reference systems of a store, as each pair is compared
SYNC = 2**26  # bytes after which what was written is sent to the disk
LOOK = 256  # tiles that are looked at for a profile
DTYPES = ("uint8", "uint16", "float16", "float32")
TOUCHING = 0.01  # share of a tile's side by which outlines of different CRSs may miss each other


def store_dtype(dtype: Any) -> np.dtype:
    """Return the dtype in which values of `dtype` are kept: unchanged where the store can, else float32.

    >>> store_dtype("uint16"), store_dtype("int16")
    (dtype('uint16'), dtype('float32'))
    """
    dtype = np.dtype(dtype)
    return dtype if dtype.name in DTYPES else np.dtype("float32")


MEANING = ("bands", "units", "scale", "offset", "classes", "nodata")
ADDED = ("standardised", "texture", "base")  # that only some stores have


class _Info(Section):
    """What dataset.json says."""

    format: Literal["glacier_fastai tile store"]
    version: Literal[1, 2, 3]
    bands: list[str] = Field(min_length=1)
    size: int = Field(ge=1, le=2**16)
    dtype: Literal["uint8", "uint16", "float16", "float32"]
    classes: list[str]
    units: list[str] | None = None
    scale: list[float] | None = None
    offset: list[float] | None = None
    table: str | None = None  # digest of tiles.csv, but for split and group
    nodata: Literal[0, "nan"] | None = None
    meaning: str | None = None  # digest of what `MEANING` and `ADDED` name, without which numbers mean something else
    source: str = ""
    sensor: str = ""
    notes: list[str] = []
    standardised: bool = False
    base: str | None = None  # the store that computed bands were added to
    texture: dict[str, Any] | None = None

    model_config = {**Section.model_config, "extra": "allow"}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        n = len(Bands(self.bands))
        if any(v is not None and len(v) != n for v in (self.units, self.scale, self.offset)):
            raise ValueError("units, scale or offset do not fit the bands")
        if not {*(self.units or ())} <= {*UNITS} or any(abs(v) <= 1 / NO_VALUE for v in self.scale or ()):
            raise ValueError("an unknown unit, or a scale of 0")
        if any(abs(v) >= NO_VALUE for v in (*(self.scale or ()), *(self.offset or ()))):
            raise ValueError(f"a scale or offset beyond {NO_VALUE:g}")
        if self.version == 3 and not self.table:
            raise ValueError("no digest of tiles.csv")
        if self.classes != list(CLASSES) or self.nodata not in (None, _nodata(self.dtype)):
            raise ValueError(f"its classes are not {', '.join(CLASSES)}, or its nodata not {_nodata(self.dtype)}")
        return self


def _numbers(values: np.ndarray) -> np.ndarray:
    """Return where all bands of `(C, H, W)` floats hold a value, bool `(H, W)`."""
    return (np.abs(values) < np.float32(NO_VALUE)).all(0)  # float16 holds no such number


def _nodata(dtype: str) -> int | str:
    return 0 if dtype.startswith("u") else "nan"


def _meaning(info: dict[str, Any]) -> str:
    return digest([*(info.get(key) for key in MEANING), *([key, info[key]] for key in ADDED if info.get(key))])


def _fixed(table: pd.DataFrame) -> str:
    """Return the columns of a table of text that nobody may edit."""
    kept = table.drop(columns=["split", "group"])
    return "\n".join("\t".join(row) for row in [kept.columns, *kept.to_numpy(object)])


class TileStore:
    """A tile store on disk, opened for reading.

    >>> from tempfile import TemporaryDirectory
    >>> image, mask = np.full((2, 32, 32), 700), np.ones((32, 32))
    >>> with TemporaryDirectory() as folder:
    ...     with TileWriter(Path(folder) / "tiles", ["red", "nir"], 32, "uint16", "an example") as writer:
    ...         writer.add(image, mask, scene="a")
    ...     store = TileStore(Path(folder) / "tiles")
    >>> len(store), store.bands, store.class_counts().tolist(), store.read(0)[:, 0, 0].tolist()
    (1, ('red', 'nir'), [[0, 1024, 0, 0]], [700.0, 700.0])
    """

    def __init__(
        self,
        path: str | os.PathLike,  # folder that holds `dataset.json`
    ):
        self.path = Path(path)
        info_path, table_path = self.path / "dataset.json", self.path / "tiles.csv"
        if not info_path.is_file():
            raise DataError(f"{self.path}: not a tile store (no dataset.json); make one with `glacier-fastai prepare`")
        self._base: TileStore | None = None  # that was open when computed bands were added to it
        try:
            with held(info_path) as file:  # nobody removes it while it is in use (`data.raw`)
                self._held = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._held)
        except OSError as err:
            raise DataError(f"{info_path}: cannot be read ({err.strerror})") from err
        told = read_json(info_path, DataError)
        if told.get("format") != FORMAT:
            raise DataError(f"{info_path}: not of a tile store; make one with `glacier-fastai prepare`")
        if told.get("version") not in READS:
            raise DataError(
                f"{info_path}: tile store version {told.get('version')}, this glacier_fastai reads 1 to "
                f"{VERSION}; {AGAIN}"
            )
        try:
            about = _Info.model_validate(told)
        except ValidationError as err:
            raise DataError(f"{info_path}: damaged ({explain(err, _Info)}); {AGAIN}") from err
        if about.meaning and about.meaning != _meaning(told):
            raise DataError(f"{info_path}: its {', '.join((*MEANING, *ADDED))} are not as they were written; {AGAIN}")
        self.info: dict[str, Any] = about.model_dump(exclude_unset=True)
        self.bands: tuple[str, ...] = Bands(about.bands)
        self.size = about.size
        n = len(self.bands)
        self.units = dict(zip(self.bands, about.units or ["dn"] * n, strict=True))
        self.scale = np.array(about.scale or [1.0] * n)
        self.offset = np.array(about.offset or [0.0] * n)
        numbers = ["row", "col", "n_valid", *(f"n_{c}" for c in CLASSES)]
        numbers += ["n_ice", "crc_image", "crc_mask"] if about.table else []
        sums = [f"{kind}_{b}" for kind in ("sum", "sumsq") for b in self.bands]
        kinds = {**dict.fromkeys(TEXT, str), **dict.fromkeys(numbers, int), **dict.fromkeys(["valid", *sums], float)}
        self.table = read_table(table_path, DataError, kinds)
        if about.table and digest(_fixed(read_table(table_path, DataError, {}))) != about.table:
            raise DataError(f"{table_path}: not as it was written, and not in split and group alone; {AGAIN}")
        counts = self.table[[k for k in numbers if k.startswith("n_")]]
        if ((counts < 0) | (counts > self.size**2)).any(axis=None) or not self.table["valid"].between(0, 1).all():
            raise DataError(f"{table_path}: a number of pixels is negative, or more than a tile has; {AGAIN}")
        if (twice := self.table["id"].duplicated()).any():
            raise DataError(f"{table_path}: tile id {self.table['id'][twice].iat[0]!r} occurs twice; {AGAIN}")
        if not (known := self.table["split"].isin(SPLITS)).all():
            odd = self.table["split"][~known].iat[0]
            raise DataError(f"{table_path}: split {odd!r}; use {', '.join(filter(None, SPLITS))}, or leave it empty")
        if (systems := self.table["crs"].nunique()) > SYSTEMS:
            raise DataError(f"{table_path}: {systems:,} coordinate reference systems, at most {SYSTEMS:,} are read")
        with refusing(table_path, DataError, "a transform is not six numbers that place a grid", AGAIN):
            placed = [text.split() for text in self.table["transform"] if text]
            places = np.array(placed, np.float64).reshape(-1, 6)
            if not (np.abs(places) < FAR).all() or (np.linalg.det(places[:, [[0, 1], [3, 4]]]) == 0).any():
                raise ValueError("nan or inf, beyond 1e12, or without area")
        if "n_ice" not in self.table:  # written before there was ice of unknown kind
            self.table["n_ice"] = 0
        shape = (len(self.table), self.size, self.size)
        self.images = read_array(self.path / "images.npy", DataError, about.dtype, (shape[0], n, *shape[1:]), AGAIN)
        self.masks = read_array(self.path / "masks.npy", DataError, "uint8", shape, AGAIN)
        self._known = {kind: np.full(len(self.table), about.table is None) for kind in ("image", "mask")}

    def __reduce__(self):
        return _reopened, (self.path, identity(self._held), self._base)  # worker processes map the files themselves

    def check(
        self,
        i: int,  # position of the tile
        kind: str,  # "image" or "mask"
    ) -> None:
        """Make sure, once in a process, that what is read of a tile is what was written; raises `DataError`."""
        every = self.images if kind == "image" else self.masks
        check_length(every, self.path / f"{kind}s.npy", DataError)
        if not self._known[kind][i]:
            array = np.ascontiguousarray(every[i])
            if zlib.crc32(array.data) != self.table[f"crc_{kind}"].iat[i]:
                name = self.table["id"].iat[i]
                raise DataError(f"{self.path}: the {kind} of tile {name} is not as it was written; {AGAIN}")
            self._known[kind][i] = True

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"TileStore({str(self.path)!r}: {len(self)} tiles of {self.size} px, {', '.join(self.bands)})"

    @property
    def standardised(self) -> bool:
        """Whether the values came with mean 0 and deviation 1, and must not be normalised again."""
        return bool(self.info.get("standardised", False))

    @property
    def has_split(self) -> bool:
        """Whether the source came with validation tiles of its own, which then are its only fold."""
        return bool((self.table["split"] == "valid").any())

    def base(self) -> TileStore:
        """Return the store that computed bands were added to, if this one is of that kind, else the store itself."""
        if self._base or not self.info.get("base"):
            return self._base or self
        if (base := TileStore(self.info["base"])).keys() != self.keys():
            raise DataError(f"{self.path}: was computed of {base.path}, which has other tiles now; {AGAIN}")
        return base

    def keys(self) -> list[str]:
        """Return what tells each tile from all others: a hash of its name and place, or without place of its labels.

        It does not depend on the values, the order or the number of the tiles, nor on where the store lies.
        """
        t = self.table
        place = t[["id", "scene", "row", "col", "crs", "transform"]].astype(str).agg("\t".join, axis=1)
        labels = t[[f"n_{c}" for c in CLASSES]].astype(str).agg("\t".join, axis=1)
        lines = place.where(t["transform"] != "", place + labels)
        return [digest(line, 12) for line in lines]

    def fingerprint(self) -> str:
        """Return a hash of which tiles these are, by their `keys`."""
        return digest(" ".join(sorted(self.keys())))

    def groups(self) -> list[str]:
        """Return what each tile belongs to in spatial folds: its group, or without one its scene."""
        t = self.table
        return [f"group {g}" if g else f"scene {s}" for g, s in zip(t["group"], t["scene"], strict=True)]

    def footprints(self) -> dict[str, Any]:
        """Return where the tiles lie, as `frame`, `box` and if needed `ground` of `core.folds.touching`.

        In units of the coordinate reference system, so that scenes of the same ground meet; tiles without transform
        are measured in pixels of their scene. CRSs that differ in heights or spelling alone are one frame; of several,
        or of longitudes all around the Earth, `ground` tells what meets.
        """
        t, s = self.table, self.size
        frame = np.where((t["crs"] != "") & (t["transform"] != ""), "crs " + t["crs"], "scene " + t["scene"])
        systems: dict[str, CRS] = {}
        for name in sorted({f for f in frame if f.startswith("crs ")}, key=lambda f: (len(f), f)):
            if crs := _horizontal(name.removeprefix("crs ")):
                first = next((k for k, known in systems.items() if crs.equals(known, ignore_axis_order=True)), name)
                frame[frame == name] = first
                systems.setdefault(first, crs)
        box = np.stack([t["col"], t["row"], t["col"] + s, t["row"] + s], 1).astype(np.float64)
        for i, text in enumerate(t["transform"]):
            if frame[i].startswith("crs "):
                a, b, c, d, e, f = map(float, text.split())
                x, y = ([m, m + s * p, m + s * q, m + s * (p + q)] for m, p, q in ((c, a, b), (-f, -d, -e)))
                box[i] = min(x), min(y), max(x), max(y)
        around = (c.is_geographic and np.ptp(box[frame == k, ::2]) > 359.999 for k, c in systems.items())
        missed = len(systems) > 1 or any(around)
        return {"frame": frame, "box": box, **({"ground": self.ground(TOUCHING)} if missed else {})}

    place = footprints  # as it was called before

    def ground(
        self,
        grow: float = 0.0,  # as in `core.ground.outlines`
    ) -> np.ndarray:
        """Return where each tile lies on the Earth, as `core.ground.outlines`; None without CRS or transform."""
        t, out = self.table, np.full(len(self), None, object)
        placed = (t["crs"] != "") & (t["transform"] != "")
        for name in t["crs"][placed].unique():
            if crs := _horizontal(name):
                mine = np.flatnonzero(placed & (t["crs"] == name))
                transform = np.array([text.split() for text in t["transform"].iloc[mine]], np.float64)
                out[mine] = outlines(crs, transform, self.size, grow)
        return out

    def band_index(self, bands: Sequence[str]) -> list[int]:
        """Return the positions of `bands` in `images`.

        Raises:
            DataError: A band is not in the store; the message names what is missing and what is there.
        """
        missing = [b for b in bands if b not in self.bands]
        if missing:
            raise DataError(f"{self.path}: no band {', '.join(missing)}; it holds {', '.join(self.bands)}")
        return [self.bands.index(b) for b in bands]

    def read(
        self,
        i: int,  # position of the tile
        index: Sequence[int] | None = None,  # positions of bands, default all
        window: tuple[slice, slice] = (slice(None), slice(None)),  # rows, columns
    ) -> np.ndarray:
        """Return a tile's values, in units, float32 `(C, H, W)`, NaN in every band where there is no data."""
        self.check(i, "image")
        return self._values(i, index, window)

    def _values(self, i: int, index: Sequence[int] | None, window: tuple[slice, slice]) -> np.ndarray:
        raw = np.asarray(self.images[(i, slice(None), *window)])
        nodata = ~_numbers(raw) if raw.dtype.kind == "f" else (raw == 0).all(0)
        chosen = list(range(len(self.bands)) if index is None else index)
        out = raw[chosen].astype(np.float32)
        if self.scaled:
            out *= self.scale[chosen, None, None].astype(np.float32)
            out += self.offset[chosen, None, None].astype(np.float32)
        out[:, nodata] = np.nan
        return out

    @property
    def scaled(self) -> bool:
        """Whether the numbers kept are not the values."""
        return bool((self.scale != 1).any() or (self.offset != 0).any())

    def profile(
        self,
        tiles: Sequence[int] | np.ndarray | None = None,  # positions of those to look at, default all
    ) -> Profile:
        """Return what the values of some tiles are, by a sample of their pixels."""
        chosen = np.arange(len(self)) if tiles is None else np.asarray(tiles)
        some = chosen[np.unique(np.linspace(0, len(chosen) - 1, min(len(chosen), LOOK)).round().astype(int))]
        step = slice(None, None, max(1, self.size // 32))
        none = np.empty((len(self.bands), 0), np.float32)
        found = np.concatenate([none, *(self._values(i, None, (step, step)).reshape(len(none), -1) for i in some)], 1)
        found = found[:, ~np.isnan(found[0])].astype(np.float64)
        quantiles = np.quantile(found, QUANTILES, axis=1).T.tolist() if found.size else []
        rows = self.table.iloc[some[:: max(1, len(some) // 8)]][["crs", "transform"]].to_numpy()
        placed = [(crs, [float(v) for v in at.split()]) for crs, at in rows if crs and at]
        sizes = [s for crs, at in placed if (s := pixel_size(crs, at, (self.size, self.size)))]
        scaling = zip(self.bands, zip(self.scale.tolist(), self.offset.tolist(), strict=True), strict=True)
        return Profile(
            units=self.units,
            quantiles={b: tuple(sorted(q)) for b, q in zip(self.bands, quantiles, strict=False)},
            pixel_size=float(np.median(sizes)) if sizes else None,
            sensor=self.info.get("sensor") or "",
            scaling={band: both for band, both in scaling if both != (1.0, 0.0)},
        )

    def labels(
        self,
        i: int,  # position of the tile
        window: tuple[slice, slice] = (slice(None), slice(None)),  # rows, columns
    ) -> np.ndarray:
        """Return a tile's mask `(H, W)` uint8."""
        self.check(i, "mask")
        return np.array(self.masks[(i, *window)])

    def class_counts(
        self,
        unknown_ice: bool = False,  # count ice of unknown kind, as glacier: to draw and to divide tiles alike
    ) -> np.ndarray:
        """Return the labelled pixels per tile and class, int64 of shape `(N, K)`."""
        counts = self.table[[f"n_{c}" for c in CLASSES]].to_numpy(np.int64)
        if unknown_ice:
            counts[:, CLASSES.index("glacier")] += self.ice_counts()
        return counts

    def ice_counts(self) -> np.ndarray:
        """Return the pixels of ice of unknown kind per tile, int64 of shape `(N,)`."""
        return self.table["n_ice"].to_numpy(np.int64)

    def ice_pixels(
        self,
        tiles: Sequence[int] | np.ndarray,  # positions of the tiles to look at
    ) -> tuple[int, int]:
        """Return the pixels of ice of known kind, glacier or debris, and of unknown kind."""
        positions = np.asarray(tiles, np.int64)
        return int(self.class_counts()[positions][:, ICE].sum()), int(self.ice_counts()[positions].sum())

    def statistics(
        self,
        bands: Sequence[str],  # bands wanted, in this order
        tiles: Sequence[int] | None = None,  # positions of the tiles that may be looked at, default all
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation per band over valid pixels, each float64 of shape `(C,)`.

        Bands that came standardised (`info["standardised"]`) are left as they are: mean 0, deviation 1.

        Raises:
            DataError: The tiles hold no valid pixel, or a band is constant.
        """
        index = self.band_index(bands)
        rows = self.table if tiles is None else self.table.iloc[list(tiles)]
        if rows["n_valid"].sum() == 0:
            raise DataError(f"{self.path}: the chosen tiles hold no pixel with data, so no statistics")
        mean, std = fixed_statistics(bands, *_moments(rows, bands, self.scale[index], self.offset[index]))
        if self.standardised:
            came = [texture_of(b) is None and b not in LOCATION for b in bands]
            mean[came], std[came] = 0, 1
        for band, m, s in zip(bands, mean, std, strict=True):
            if constant(m, s):
                raise DataError(f"{self.path}: band {band} is constant ({m:g}); leave it out of `bands`")
        return mean, std


def _reopened(path: Path, before: tuple[int, ...], base: TileStore | None) -> TileStore:
    """Return a store that another process has open; raises `DataError` if it was made anew since."""
    store = TileStore(path)
    if identity(store._held) != before:
        raise DataError(f"{path}: was made anew while it was in use; start again")
    store._base = base
    return store


def _horizontal(crs: str) -> CRS | None:
    """Return a tile's CRS without heights, None if it cannot be read."""
    try:
        return horizontal(crs)
    except CRSError:
        return None


def _moments(
    rows: pd.DataFrame, bands: Sequence[str], scale: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    n = max(float(rows["n_valid"].sum()), 1.0)
    mean = np.array([rows[f"sum_{b}"].sum() for b in bands]) / n
    square = np.array([rows[f"sumsq_{b}"].sum() for b in bands]) / n
    return scale * mean + offset, np.abs(scale) * np.sqrt(np.maximum(square - mean**2, 0))


class TileWriter:
    """Writes a tile store tile by tile; the folder appears under its name only when it is whole.

    Use as a context manager. On an exception nothing stays behind.
    """

    def __init__(
        self,
        path: str | os.PathLike,  # folder to make; must not exist
        bands: Sequence[str],  # names of the bands, in the order of the images to come
        size: int | None,  # side of a tile in pixels; None: that of the first
        dtype: Any,  # dtype of the values, see `store_dtype`
        source: str,  # what the tiles were made from, in words
        sensor: str = "",  # one of `data.scenes.names.SENSORS`, or empty
        made_by: dict[str, Any] | None = None,  # how they were made: command or function and its settings
        scaling: Sequence[Scaling] = (),  # of each band: what turns the numbers into values; default values of unit dn
    ):
        self.path = Path(path)
        self.bands, self.size, self.dtype = Bands(bands), size, store_dtype(dtype)
        self.scaling = scaling = list(scaling) or [Scaling()] * len(self.bands)
        self.info: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "bands": list(self.bands),
            "units": [s.unit for s in scaling],
            "scale": [float(s.scale) for s in scaling],
            "offset": [float(s.offset) for s in scaling],
            "classes": list(CLASSES),
            "size": size,
            "dtype": self.dtype.name,
            "nodata": _nodata(self.dtype.name),
            "source": source,
            "sensor": sensor,
            "made_by": made_by or {},
            "notes": [],
        }
        self.rows: list[dict[str, Any]] = []
        self.partial: Path  # the folder while it is being written

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.partial = stack.enter_context(whole_folder(self.path))
            self._images = stack.enter_context(open(self.partial / "images.npy", "wb"))
            self._masks = stack.enter_context(open(self.partial / "masks.npy", "wb"))
            self._pool, self._pending = ThreadPoolExecutor(1), deque[Future]()
            stack.callback(self._pool.shutdown, cancel_futures=True)
            if self.size is not None:
                self._headers(self.size)
            self._closing = stack.pop_all()
        return self

    def _headers(self, s: int) -> None:
        # numpy pads a header so that its first axis can grow in place: the final count is written over this one
        n = len(self.rows)
        for file, shape, dtype in (
            (self._images, (n, len(self.bands), s, s), self.dtype),
            (self._masks, (n, s, s), np.dtype("uint8")),
        ):
            file.seek(0)
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)

    def add(
        self,
        image: np.ndarray,  # (C, H, W), numbers: values before `scaling`
        mask: np.ndarray,  # (H, W) class codes, 254 = ice of unknown kind, 255 = no label
        *,
        valid: np.ndarray | None = None,  # (H, W) True where there is data, default everywhere
        scene: str,  # name of the scene the tile was cut from
        row: int = 0,  # first row of the tile in the scene, pixels
        col: int = 0,  # first column
        crs: str = "",  # coordinate reference system, as rasterio's `CRS.to_string()`
        transform: Sequence[float] = (),  # affine coefficients a b c d e f of the tile
        group: str = "",  # tiles of one group stay together in spatial folds, as those of a scene do without it
        split: str = "",  # "train", "valid", "test" or empty, where the source has a split of its own
        name: str = "",  # id of the tile, default SCENE_ROW_COL
    ) -> None:
        """Append one tile. Pixels without data lose their label and their values."""
        if self.size is None:
            self.size = image.shape[-1]
            self._headers(self.size)
        shape = (len(self.bands), self.size, self.size)
        if image.shape != shape or mask.shape != shape[1:]:
            raise DataError(f"tile of scene {scene}: image {image.shape}, mask {mask.shape}; wanted {shape}")
        with np.errstate(over="ignore"):
            values = image.astype(self.dtype, order="C")
        has_data = _numbers(values) if self.dtype.kind == "f" else (values != 0).any(0)
        if self.dtype.kind == "f" and (np.isfinite(image).all(0) & ~has_data).any():
            self.note(f"{self.path}: holds numbers beyond {NO_VALUE:g}; such pixels have no data")
        valid = has_data if valid is None else valid & has_data
        sums, squares = moments(values, valid)
        values[:, ~valid] = 0 if self.dtype.kind == "u" else np.nan
        mask = np.where(valid, mask, IGNORE).astype(np.uint8)
        counts = np.bincount(mask.ravel(), minlength=256)
        allowed = (*range(len(CLASSES)), ICE_OF_ANY_KIND, IGNORE)
        if unknown := [int(c) for c in np.flatnonzero(counts) if c not in allowed]:
            raise DataError(
                f"tile of scene {scene}: class codes {unknown}; allowed are 0..{len(CLASSES) - 1} and {IGNORE}, and "
                f"{ICE_OF_ANY_KIND} for ice of unknown kind"
            )
        self.rows.append(
            {
                "id": name or f"{scene}_{row}_{col}",
                "scene": scene,
                "row": row,
                "col": col,
                "crs": crs,
                "transform": " ".join(repr(float(v)) for v in transform),
                "group": group,
                "split": split,
                "valid": float(valid.mean()),
                "n_valid": int(valid.sum()),
                **{f"n_{c}": int(counts[k]) for k, c in enumerate(CLASSES)},
                "n_ice": int(counts[ICE_OF_ANY_KIND]),
                **{f"sum_{b}": float(v) for b, v in zip(self.bands, sums, strict=True)},
                **{f"sumsq_{b}": float(v) for b, v in zip(self.bands, squares, strict=True)},
                "crc_image": 0,
                "crc_mask": 0,
            }
        )
        self._pending.append(self._pool.submit(self._write, values, mask, self.rows[-1]))
        if len(self._pending) > 2:
            self._pending.popleft().result()

    def note(self, text: str) -> None:
        """Say what is odd about the input (`errors.note`), and keep it in `dataset.json`."""
        note(text, self.info["notes"])

    def _write(self, image: np.ndarray, mask: np.ndarray, row: dict[str, Any]) -> None:
        """Write a tile, in a thread of its own: the next one is made meanwhile, and the disk is kept busy."""
        for kind, file, array in (("image", self._images, image), ("mask", self._masks, mask)):
            row[f"crc_{kind}"] = zlib.crc32(array.data)
            before = file.tell()
            file.write(array.data)
            if before // SYNC != file.tell() // SYNC:
                os.fsync(file.fileno())

    def __exit__(self, kind, value, trace) -> None:
        with self._closing:
            if value is not None:
                raise value
            self._finish()

    def _finish(self) -> None:
        if self.size is None or not self.rows:
            raise DataError(f"{self.path}: not one tile to write; nothing was kept of the source")
        while self._pending:
            self._pending.popleft().result()
        table = pd.DataFrame(self.rows)
        if twice := sorted(table["id"][table["id"].duplicated()]):
            raise DataError(f"{self.path}: tile id {twice[0]!r} occurs twice; name the scenes apart")
        scale, offset = np.array(self.info["scale"]), np.array(self.info["offset"])
        mean, std = _moments(table[table["split"].isin(["", "train"])], self.bands, scale, offset)
        self.info |= {"size": self.size, "tiles": len(table), "mean": mean.tolist(), "std": std.tolist()}
        if "base" not in self.info:  # whose notes were said of it
            self._note_labels(table)
            self._note_constant(table)
        self._headers(self.size)
        for file in (self._images, self._masks):
            file.flush()
            os.fsync(file.fileno())
        text = table.to_csv(index=False)
        (self.partial / "tiles.csv").write_text(text, encoding="utf-8")
        self.info["table"] = digest(_fixed(read_table(self.partial / "tiles.csv", DataError, {})))
        self.info["meaning"] = _meaning(self.info)
        (self.partial / "dataset.json").write_text(json.dumps(self.info, indent=1), encoding="utf-8")

    def _note_labels(self, table: pd.DataFrame) -> None:
        """Say which classes the labels lack."""
        counts = {c: table[f"n_{c}"].sum() for c in CLASSES} | {"ice of unknown kind": table["n_ice"].sum()}
        there, lacking = [c for c, n in counts.items() if n], [c for c in CLASSES if not counts[c]]
        if not there:
            self.note(f"{self.path}: no pixel has a label, so it is for prediction only")
        elif len(there) == 1:
            self.note(f"{self.path}: labels hold one class only, {there[0]}: no model learns from that alone")
        elif set(there) <= {c for k, c in enumerate(CLASSES) if k not in ICE}:
            self.note(f"{self.path}: labels hold no ice (glacier or debris), only {' and '.join(there)}")
        elif lacking:
            self.note(f"{self.path}: labels hold {', '.join(there)}, but no {', '.join(lacking)}")

    def _note_constant(self, table: pd.DataFrame) -> None:
        """Say which bands have one value everywhere."""
        if table["n_valid"].sum():
            scale, offset = np.array(self.info["scale"]), np.array(self.info["offset"])
            for band, m, s in zip(self.bands, *_moments(table, self.bands, scale, offset), strict=True):
                if constant(m, s):
                    self.note(f"{self.path}: band {band} is {m:g} everywhere; leave it out, or check its file")
