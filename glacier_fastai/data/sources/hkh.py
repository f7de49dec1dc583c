"""HKH: Landsat 7 tiles of the Hindu Kush Himalaya with ice outlines (ICIMOD, published by LILA), to a tile store.

    glacier_data/slices/                    slice_S_img_N.npy: float32 (512, 512, 15), raw values, NaN = no data
                                            slice_S_mask_N.npy: uint8 (512, 512, 3), 1 = any ice, clean ice, debris
                                            S scene, N slice, counted row by row from the upper left
    glacier_data/splits/{train,dev,test}/   the same names; images z-scored, masks clean ice, debris, background
    slices.geojson                          footprints; in slices/ or beside it, may be absent
    stats_train.json                        {"means": [15], "stds": [15]} of the z-scores; in or above splits/

Or the published archive, from which slices are read as it streams by, its members in any order.

Labels: clean ice is 1 glacier, debris 2, and so is a pixel with both, for debris is burned over glacier elsewhere, too.
In slices, ice of neither kind is 255 and all else 0; in splits, what is neither ice nor background is 255. No lakes.

Nodata: where a band kept is NaN or infinite. The original code set NaN to 0 before it took z-scores, so in splits it is
also where a spectral band kept holds -mean / std, if `stats_train.json` is there to tell.

Places: from `slices.geojson` (see `footprints`). Without it tiles have none, and spatial folds keep scenes together.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ...bands import BANDS, IGNORE, Bands, canonical_band, texture_of
from ...core.jit import jit
from ...errors import DataError, OutputError
from ..download import RemoteStream, fetch, members, open_stream
from ..tiles import TileStore, TileWriter
from .footprints import OVERLAP, SLICE, read_footprints
from .registry import Source

__all__ = [
    "ARCHIVE",
    "CHANNELS",
    "DEFAULT_BANDS",
    "MIRRORS",
    "SHA256",
    "SOURCE",
    "download_hkh",
    "find_hkh",
    "hkh_files",
    "prepare_hkh",
]

SPECTRAL = ("blue", "green", "red", "nir", "swir1", "thermal_low", "thermal_high", "swir2", "pan")
CHANNELS = (*SPECTRAL, "bqa", "ndvi", "ndsi_flipped", "ndwi", "elevation", "slope")
DEFAULT_BANDS = ("blue", "green", "red", "swir1", "thermal")  # what HKH and the competition have in common

ARCHIVE = "hkh_patches.tar.gz"  # 73.86 GB
SHA256 = "627dff4b0a9635cdb5d7868495552a707bb718fa33905d1bd7a4d96c3705e935"
MIRRORS = (
    f"https://storage.googleapis.com/public-datasets-lila/icimod-glacier-mapping/{ARCHIVE}",
    f"https://lilawildlife.blob.core.windows.net/lila-wildlife/icimod-glacier-mapping/{ARCHIVE}",
    f"http://us-west-2.opendata.source.coop.s3.amazonaws.com/agentmorris/lila-wildlife/icimod-glacier-mapping/{ARCHIVE}",
)

SPLITS = {"train": "train", "dev": "valid", "test": "test"}  # folder -> our name
PLACES, STATS = "slices.geojson", "stats_train.json"
LARGEST = 2048  # side of a tile, pixels
NEGATIVE = 0.01  # share of negative values in a band that is not raw; resampling leaves a few
DROPPED = ("dropped_by_min_ice", "dropped_by_min_valid")
RULES = {
    "slices": "clean ice 1, debris 2, both 2, ice of neither kind 255, other 0",
    "splits": "clean ice 1, debris 2, both 2, background 0, none of these 255",
}


class _File(NamedTuple):
    """One of the two files of a tile, or (of kind "places") slices.geojson."""

    split: str
    scene: str
    number: str
    kind: str  # "img" or "mask"
    where: str  # for messages

    def alone(self) -> DataError:
        partner = f"slice_{self.scene}_{'mask' if self.kind == 'img' else 'img'}_{self.number}.npy"
        return DataError(f"{self.where}: there is no {partner} to go with it; get that, or remove this file")


def _scan(folder: Path) -> Iterator[_File]:
    """Yield the files of tiles in a folder and in the splits in it."""
    for part, split in ((folder, SPLITS.get(folder.name, "")), *((folder / k, v) for k, v in SPLITS.items())):
        with suppress(OSError), os.scandir(part) as entries:  # what cannot be read has none
            for entry in entries:
                if m := SLICE.fullmatch(entry.name):
                    yield _File(split, m[1], m[3], m[2], entry.path)


def find_hkh(
    path: str | os.PathLike,  # glacier_data, the folder above it, slices, splits, one of the splits, or an archive
) -> Path | None:
    """Return what to read: slices, where there are none splits, or an archive (.tar.gz, .tgz, .tar); else None."""
    path = Path(os.path.abspath(path))  # the name of the folder counts, and "." has none
    if path.is_file():
        return path if path.name.endswith((".tar.gz", ".tgz", ".tar")) else None
    homes = (base / part for base in (path, path / "glacier_data") for part in (".", "slices", "splits"))
    return next((home for home in homes if any(True for _ in _scan(home))), None)


def _beside(folder: Path, name: str) -> Path | None:
    """Return a file that belongs to a folder of tiles: in it, above it, or in slices/ beside it."""
    above = (folder, *folder.parents[: 2 if folder.name in SPLITS else 1])
    return next((p for a in above for p in (a / name, a / "slices" / name) if p.is_file()), None)


def hkh_files(
    path: str | os.PathLike,  # see `find_hkh`
) -> list[Path]:
    """Return the files that a store of this folder or archive depends on, sorted. No file is opened."""
    if (folder := find_hkh(path)) is None or folder.is_file():
        return [folder] if folder else []
    files = list(_scan(folder))
    more = (_beside(folder, name) for name in ((PLACES, STATS) if files[0].split else (PLACES,)))
    return [Path(p) for p in sorted([*(f.where for f in files), *(str(p) for p in more if p)])]


def _channels(bands: Sequence[str]) -> dict[str, str]:
    """Return the channel of each band, by the band's name in our spelling."""
    names = []
    for band in bands:
        if band.strip().lower() == "bqa":
            raise DataError("HKH: band 'bqa' is interpolated, useless as flags; leave it out")
        names.append(name := canonical_band(band, "landsat7"))
        if texture_of(name):
            raise DataError(f"HKH: {name!r}: texture bands are computed when training begins; name them in the recipe")
        if name == "ndsi":
            raise DataError("HKH: no band 'ndsi', the files hold it with its sign flipped; ask for 'ndsi_flipped'")
    if {"thermal", "thermal_high"} <= set(names):
        raise DataError("HKH: 'thermal' is 'thermal_high'; name one of them")
    return {name: "thermal_high" if name == "thermal" else name for name in Bands(names)}


def _imputed(folder: Path) -> dict[str, float]:
    """Return what nodata became in each channel of z-scored images, as far as that is known."""
    if (path := _beside(folder, STATS)) is None:
        return {}
    try:
        stats = json.loads(path.read_bytes())
        rows = zip(CHANNELS, map(float, stats["means"]), map(float, stats["stds"]), strict=True)
        return {channel: -mean / std for channel, mean, std in rows if std > 0 and mean == mean}
    except (OSError, KeyError, TypeError, ValueError) as err:
        raise DataError(f'{path}: damaged ({err!r}); wanted are 15 "means" and 15 "stds", or no such file') from err


class _Preparation:
    """Brings the two files of each tile together as they come, filters the tiles, and writes what stays."""

    def __init__(
        self,
        out: str | os.PathLike,
        made_by: dict[str, Any],  # how the store is made; what it says of kind, bands and filters is obeyed here
        imputed: dict[str, float],  # see `_imputed`
        spooling: bool,  # whether what waits for its other half waits on disk
    ):
        self.out, self.made_by, self.spooling = out, made_by, spooling
        self.min_ice, self.min_valid = made_by["min_ice"], made_by["min_valid"]
        self.standardised = made_by["kind"] == "splits"
        self.names, channels = zip(*made_by["channels"].items(), strict=True)
        self.index = [CHANNELS.index(c) for c in channels]
        self.spectral = [k for k, c in enumerate(channels) if c in SPECTRAL]
        self.imputed = {k: imputed[channels[k]] for k in self.spectral if channels[k] in imputed}
        self.negative = not self.spectral  # whether z-scored values were seen
        self.count = dict.fromkeys(("read", *DROPPED, "doubly_labelled_pixels", "unlabelled_pixels"), 0)
        self.size, self.values = 0, np.empty(0, np.float32)
        self.writer: TileWriter | None = None
        self.waiting: dict[tuple, tuple[_File, np.ndarray | Path | None]] = {}
        self.places: tuple[str, bytes] | None = None

    def take(self, f: _File, file: BinaryIO, stack: ExitStack) -> bool:
        """Read one file; if it completes a tile, write or drop that and return True."""
        if f.kind == "places":
            self.places = f.where, file.read()
            return False
        other, half = self.waiting.pop(f[:3], (None, None))
        if other and other.kind == f.kind:
            raise DataError(f"{f.where}: occurs twice; keep one of them")
        # three of four masks hold no ice, and the image is nearly all of the work
        needless = f.kind == "img" and other and half is None
        decode = self._values if f.kind == "img" else self._codes
        mine = None if needless else decode(self._read(f, file), f.where)
        if self.writer is None:  # now the size is known
            writer = TileWriter(self.out, self.names, self.size, "float32", "hkh", "landsat7", self.made_by)
            self.writer = stack.enter_context(writer)
        if other is None:
            self.waiting[f[:3]] = f, self._spooled(f, mine) if self.spooling and mine is not None else mine
            return False
        if isinstance(half, Path):
            path, half = half, np.load(half)
            path.unlink()
        self._pair(f, *((half, mine) if f.kind == "mask" else (mine, half)))
        return True

    def _spooled(self, f: _File, half: np.ndarray) -> Path:
        path = self.writer.partial / "spool" / f"{f.scene}_{f.number}.npy"
        try:
            path.parent.mkdir(exist_ok=True)
            np.save(path, half)
        except OSError as err:
            raise OutputError(f"{path}: cannot be written ({err}); make room or choose another place") from err
        return path

    def _read(self, f: _File, file: BinaryIO) -> np.ndarray:
        depth, dtypes = (len(CHANNELS), ("float32", "float64")) if f.kind == "img" else (3, ("uint8", "bool"))
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except DataError:  # from the archive
            raise
        except (MemoryError, OSError, SyntaxError, TokenError, ValueError) as err:
            line = " ".join(str(err).split())
            raise DataError(f"{f.where}: not an .npy file, cut short or damaged ({line}); copy it again") from err
        if array.dtype.name not in dtypes:
            raise DataError(f"{f.where}: values are {array.dtype}; allowed are {' and '.join(dtypes)}")
        side = self.size or len(array) if array.ndim else 0
        if array.shape != (side, side, depth) or not OVERLAP < side <= LARGEST:
            sides = f"{self.size} as in the first tile" if self.size else f"{OVERLAP + 1} to {LARGEST}"
            raise DataError(f"{f.where}: shape {array.shape}; wanted is (N, N, {depth}) with N {sides}")
        self.size = side
        return array

    def _codes(self, mask: np.ndarray, where: str) -> np.ndarray | None:
        """Return class codes `(H, W)`, or None without any ice if some is wanted."""
        if (top := (mask := mask.view(np.uint8)).max()) > 1:
            raise DataError(f"{where}: holds {top}; allowed are 0 and 1 in each of the three channels")
        first, second, third = (np.ascontiguousarray(mask[..., k]) for k in range(3))
        clean, debris = (first, second) if self.standardised else (second, third)
        ice = clean | debris
        unknown = (ice | third) == 0 if self.standardised else first > ice
        codes = np.maximum(clean, debris << 1)
        codes[unknown] = IGNORE
        self.count["doubly_labelled_pixels"] += int(np.count_nonzero(clean & debris))
        self.count["unlabelled_pixels"] += int(np.count_nonzero(unknown))
        return codes if self.min_ice == 0 or ice.any() else None

    def _values(self, image: np.ndarray, where: str) -> np.ndarray | None:
        """Return values `(C, H, W)`, NaN in the first band where there is no data; None if there is too little.

        The next call overwrites them.
        """
        flat = image.reshape(-1, len(CHANNELS))
        flat = flat.astype(flat.dtype.newbyteorder("="), copy=False)
        values = self.values
        values.resize((len(self.index), len(flat)), refcheck=False)  # the same memory each time
        valid, negative = np.empty(len(flat), bool), np.zeros(len(self.index), np.int64)
        jit(_pick)(flat, np.array(self.index), values, valid, negative)
        low = [self.names[k] for k in self.spectral if negative[k] > NEGATIVE * len(flat)]
        self.negative |= bool(low)
        if low and not self.standardised:
            raise DataError(
                f"{where}: {low[0]} is negative, so this is z-scored, not raw; move such tiles to splits/train"
            )
        if self.imputed:
            valid &= np.all([np.abs(values[k] - v) > 1e-4 * max(1, abs(v)) for k, v in self.imputed.items()], 0)
        if np.count_nonzero(valid) < self.min_valid * len(flat):
            return None
        values[0, ~valid] = np.nan
        return values.reshape(-1, self.size, self.size)

    def _pair(self, f: _File, values: np.ndarray | None, codes: np.ndarray | None) -> None:
        self.count["read"] += 1
        if codes is None or values is None:
            self.count[DROPPED[codes is not None]] += 1
            return
        valid = np.isfinite(values[0])
        ice = np.count_nonzero(valid & ((codes == 1) | (codes == 2)))
        if self.min_ice and ice < max(1, self.min_ice * np.count_nonzero(valid & (codes != IGNORE))):
            self.count[DROPPED[0]] += 1
            return
        scene = f"slice_{f.scene}"
        self.writer.add(values, codes, valid=valid, scene=scene, split=f.split, name=f"{scene}_{f.number}")

    def finish(self, where: str) -> None:
        """Give the tiles their places and tell the store what was done."""
        for f, _ in self.waiting.values():
            raise f.alone()
        if not (n := self.count["read"]):
            raise DataError(f"{where}: no slice_S_img_N.npy with slice_S_mask_N.npy in slices/; is it {ARCHIVE}?")
        if not self.negative and self.standardised:
            raise DataError(f"{where}: no tile has negative values, so they are raw; move them to a folder slices")
        if not self.writer.rows:
            ice, data = (self.count[k] for k in DROPPED)
            why = f"{ice} by min_ice {self.min_ice:g}, {data} by min_valid {self.min_valid:g}"
            raise DataError(f"{where}: all {n} tiles were dropped, {why}; lower these")
        done = {"count": self.count}
        if self.places:
            known, done["mirrored_scenes"] = read_footprints(*self.places, self.size)
            for row in self.writer.rows:
                if (tile := row["id"]) not in known:
                    raise DataError(f"{self.places[0]}: no footprint of {tile}; put the file away to split by scene")
                row |= known[tile]
        shutil.rmtree(self.writer.partial / "spool", ignore_errors=True)
        self.writer.info["made_by"] |= done
        if self.standardised:
            self.writer.info["standardised"] = True


def _pick(flat, index, values, valid, negative):
    """Copy channels into bands, and note where all are finite (in float32) and how often each is negative."""
    for i in range(len(flat)):
        valid[i] = True
        for k in range(len(index)):
            value = np.float32(flat[i, index[k]])
            values[k, i] = value
            valid[i] &= np.isfinite(value)
            negative[k] += value < 0


def _folder(files: Sequence[_File], places: Path | None) -> Iterator[tuple[_File, BinaryIO]]:
    """Yield slices.geojson, if there is one, and mask and image of each tile by split, scene and number."""
    files = sorted(files, key=lambda f: (f.split, int(f.scene), int(f.number), f.number, f.kind == "img"))
    both = Counter(f[:3] for f in files)
    for f in files:
        if both[f[:3]] == 1:
            raise f.alone()
    for f in [*([_File("", "", "", "places", str(places))] if places else []), *files]:
        try:
            with open(f.where, "rb") as file:
                yield f, file
        except OSError as err:
            raise DataError(f"{f.where}: cannot be read ({err.strerror})") from err


def _archive(archive: Path | BinaryIO, where: str) -> Iterator[tuple[_File, BinaryIO]]:
    def wanted(name: str) -> bool:
        *folders, base = name.split("/")
        return (base == PLACES or bool(SLICE.fullmatch(base))) and not {"splits", *SPLITS} & set(folders)

    for name, file in members(archive, wanted):
        m = SLICE.fullmatch(name.split("/")[-1])
        yield _File("", *((m[1], m[3], m[2]) if m else ("", "", "places")), f"{where}: {name}"), file
    if isinstance(archive, RemoteStream):
        archive.verify()


def prepare_hkh(
    path: str | os.PathLike | BinaryIO,  # see `find_hkh`; or an archive as an open stream
    out: str | os.PathLike,  # folder of the store to make
    *,
    bands: Sequence[str] = DEFAULT_BANDS,  # of `CHANNELS` without bqa; "thermal" is thermal_high, nearest to Landsat 8
    min_ice: float = 0.05,  # least share of ice among the labelled pixels of a tile; splits are not asked
    min_valid: float = 0.1,  # least share of pixels with data
    progress: Callable[[int, int | None], None] | None = None,  # called after each tile: done, total (None: unknown)
) -> TileStore:
    """Write the tiles of HKH as a tile store; labels, nodata and places are told above.

    Splits were made from tiles of at least 5 % ice, so `min_ice` drops none of theirs. Tiles of a folder stand in the
    order of scene and number, those of an archive in the order in which they become whole. What of an archive waits for
    its other half waits on disk beside `out`, at worst the chosen bands of all images.

    Raises:
        DataError: Anything about the input that cannot be used, in one line.
        OutputError: `out` exists already or cannot be written.
    """
    made_by = {"function": "prepare_hkh", "channels": _channels(bands), "min_ice": min_ice, "min_valid": min_valid}
    for name in ("min_ice", "min_valid"):
        if not 0 <= made_by[name] <= 1:
            raise DataError(f"{name} {made_by[name]}: must be a share, from 0 to 1")
    on_disk = isinstance(path, (str, os.PathLike))
    if (source := find_hkh(path) if on_disk else path) is None:
        what = "no HKH tiles in it" if Path(path).exists() else "no such file or folder"
        raise DataError(f"{path}: {what}; give the folder glacier_data, slices or splits, or {ARCHIVE}")
    where = str(source if on_disk else getattr(source, "name", "archive"))
    kind, imputed, total = "slices", {}, None
    if on_disk and source.is_dir():
        listed = list(_scan(source))
        files, total = _folder(listed, _beside(source, PLACES)), len(listed) // 2
        if listed[0].split:
            kind, imputed, made_by["min_ice"] = "splits", _imputed(source), 0
    else:
        files = _archive(source, where)
    made_by |= {"path": where, "kind": kind, "labels": RULES[kind]}
    with ExitStack() as stack, closing(files):
        work = _Preparation(out, made_by, imputed, spooling=total is None)
        for f, file in files:
            if work.take(f, file, stack) and progress:
                progress(work.count["read"], total)
        work.finish(where)
    return TileStore(out)


def download_hkh(
    folder: str | os.PathLike | None,  # where the archive is kept; None: nowhere, tiles are cut out of the stream
    out: str | os.PathLike,  # folder of the store to make
    *,
    bands: Sequence[str] = DEFAULT_BANDS,  # this and all others as in `prepare_hkh`
    **options: Any,
) -> TileStore:
    """Download HKH's archive and write its tiles as a tile store.

    In a folder the archive stays, and an interrupted download goes on where it ended. Without, only a broken connection
    does; the store appears only after the SHA-256 was found right.

    Raises:
        DataError: No mirror delivers the right file; or as `prepare_hkh`.
        OutputError: `out` exists already; no room; or another process downloads to the folder.
    """
    TileWriter(out, tuple(_channels(bands)), 0, "float32", "hkh")  # refuse before 74 GB, not after
    if folder is not None:
        archive = fetch(MIRRORS, Path(folder) / ARCHIVE, SHA256)
        return prepare_hkh(archive, out, bands=bands, **options)
    with open_stream(MIRRORS, SHA256) as stream:
        return prepare_hkh(stream, out, bands=bands, **options)


SOURCE = Source(
    "hkh",
    "HKH: slices, splits, or their archive",
    find_hkh,
    hkh_files,
    prepare_hkh,
    lambda bands: {"bands": list(Bands(bands or DEFAULT_BANDS).made_of(BANDS))},
)
