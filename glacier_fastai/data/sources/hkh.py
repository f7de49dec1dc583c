"""HKH: Landsat 7 tiles of the Hindu Kush Himalaya with ice outlines (ICIMOD, published by LILA), to a tile store.

    glacier_data/slices/                    slice_S_img_N.npy: float32 (512, 512, 15), raw values, NaN = no data
                                            slice_S_mask_N.npy: uint8 (512, 512, 3), 1 = any ice, clean ice, debris
                                            S scene, N slice, counted row by row from the upper left
    glacier_data/splits/{train,dev,test}/   the same names; images z-scored, masks clean ice, debris, background
    slices.geojson                          footprints; in slices/ or beside it, may be absent
    stats_train.json                        {"means": [15], "stds": [15]} of the z-scores; in or above splits/

Or the published archive, from which slices are read as it streams by, its members in any order.

Labels: clean ice is 1 glacier, debris 2, and so is a pixel with both, for debris is burned over glacier elsewhere, too.
In slices, ice of neither kind is 254 (of unknown kind) and all else 0; in splits, what is neither ice nor background is
255. No lakes.

Nodata: where a band kept is NaN or infinite. The original code set NaN to 0 before it took z-scores, so in splits it is
also where a spectral band kept holds -mean / std, if `stats_train.json` is there to tell.

Places: from `slices.geojson` (see `footprints`). Without it tiles have none, and spatial folds keep scenes together.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np

from ...bands import BANDS, ICE, ICE_OF_ANY_KIND, IGNORE, LOCATION, Bands, texture_of
from ...errors import DataError, OutputError
from ...reading import array_header, opened, read_array, read_json, read_text, refusing
from ..download import Progress, RemoteStream, fetch, members
from ..scenes.names import name_bands
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
SIZES = {SHA256: range(73_855_000_000, 73_865_000_001)}  # bytes, by digest
MIRRORS = (
    f"https://storage.googleapis.com/public-datasets-lila/icimod-glacier-mapping/{ARCHIVE}",
    f"https://lilawildlife.blob.core.windows.net/lila-wildlife/icimod-glacier-mapping/{ARCHIVE}",
    f"http://us-west-2.opendata.source.coop.s3.amazonaws.com/agentmorris/lila-wildlife/icimod-glacier-mapping/{ARCHIVE}",
)

SPLITS = {"train": "train", "dev": "valid", "test": "test"}  # folder -> our name
PLACES, STATS = "slices.geojson", "stats_train.json"
PLACES_MOST = 2**28  # bytes of slices.geojson
ANY_ICE = (*ICE, ICE_OF_ANY_KIND)
LARGEST = 2048  # side of a tile, pixels
NEGATIVE = 0.01  # share of negative values in a band that is not raw; resampling leaves a few
DROPPED = ("dropped_by_min_ice", "dropped_by_min_valid")
RULES = {
    "slices": "clean ice 1, debris 2, both 2, ice of neither kind 254, other 0",
    "splits": "clean ice 1, debris 2, both 2, background 0, none of these 255",
}


class _File(NamedTuple):
    """One of the two files of a tile."""

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
        name = name_bands([band], "landsat7", strict=True)[0][0] or band
        names.append(name)
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
    stats = read_json(path, DataError, link=True, finite=False)
    with refusing(path, DataError, "damaged", 'wanted are 15 "means" and 15 "stds", or no such file'):
        rows = zip(CHANNELS, map(float, stats["means"]), map(float, stats["stds"]), strict=True)
        return {channel: -mean / std for channel, mean, std in rows if std > 0 and mean == mean}


_Files = Generator[tuple[_File, IO[bytes]], None, None]


def _codes(
    mask: np.ndarray,  # (H, W, 3) of 0 and 1
    standardised: bool,  # of splits
) -> tuple[np.ndarray, int]:
    """Return class codes `(H, W)`, and how many pixels are both clean ice and debris."""
    first, second, third = (np.ascontiguousarray(mask[..., k]) for k in range(3))
    clean, debris = (first, second) if standardised else (second, third)
    ice = clean | debris
    codes = np.maximum(clean, debris << 1)
    if standardised:
        codes[(ice | third) == 0] = IGNORE
    else:
        codes[first > ice] = ICE_OF_ANY_KIND
    return codes, int(np.count_nonzero(clean & debris))


def _values(
    image: np.ndarray,  # (H, W, 15)
    channels: Sequence[str],  # those wanted
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values `(C, H, W)` float32, where all of them are finite `(H, W)`, and how often each is negative."""
    index = [CHANNELS.index(c) for c in channels]
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(np.moveaxis(image[..., index], -1, 0), np.float32)
    return values, np.asarray(np.isfinite(values).all(0)), np.asarray((values < 0).sum((1, 2)))


def _dropped(values: np.ndarray | None, codes: np.ndarray | None, min_ice: float) -> str | None:
    """Return by which of `DROPPED` a tile is, None if it is kept; a half is None where it alone decided that."""
    if codes is None:
        return DROPPED[0]
    if values is None:
        return DROPPED[1]
    valid = np.isfinite(values[0])
    ice = np.count_nonzero(valid & np.isin(codes, ANY_ICE))
    few = min_ice and ice < max(1, min_ice * np.count_nonzero(valid & (codes != IGNORE)))
    return DROPPED[0] if few else None


@dataclass
class _Reader:
    """Reads the files of tiles, and remembers what all of them have in common."""

    channels: dict[str, str]  # channel of each band
    min_ice: float
    min_valid: float
    standardised: bool = False  # files of splits, not of slices
    imputed: dict[str, float] = field(default_factory=dict)  # see `_imputed`
    size: int = 0

    def __post_init__(self):
        self.spectral = {k: c for k, c in enumerate(self.channels.values()) if c in SPECTRAL}
        self.negative = not self.spectral  # whether z-scored values were seen
        self.count = dict.fromkeys(("read", *DROPPED, "doubly_labelled_pixels", "unlabelled_pixels"), 0)

    def __call__(self, f: _File, file: IO[bytes]) -> np.ndarray | None:
        """Return codes of a mask or values of an image, NaN without data; None if its tile is dropped for it."""
        array = self._array(f, file)
        return self._mask(array, f.where) if f.kind == "mask" else self._image(array, f.where)

    def _array(self, f: _File, file: IO[bytes]) -> np.ndarray:
        depth, dtypes = (len(CHANNELS), ("float32", "float64")) if f.kind == "img" else (3, ("uint8", "bool"))
        with refusing(f.where, DataError, "not an .npy file, cut short or damaged", "copy it again"):
            shape, dtype, order = array_header(file)
            if dtype.name not in dtypes:
                raise DataError(f"{f.where}: values are {dtype}; allowed are {' and '.join(dtypes)}")
            side = self.size or (shape[0] if shape else 0)
            if shape != (side, side, depth) or not OVERLAP < side <= LARGEST:
                sides = f"{self.size} as in the first tile" if self.size else f"{OVERLAP + 1} to {LARGEST}"
                raise DataError(f"{f.where}: shape {shape}; wanted is (N, N, {depth}) with N {sides}")
            self.size = side
            return np.frombuffer(bytearray(file.read(math.prod(shape) * dtype.itemsize)), dtype).reshape(
                shape, order=order
            )

    def _mask(self, array: np.ndarray, where: str) -> np.ndarray | None:
        if (top := (mask := array.view(np.uint8)).max()) > 1:
            raise DataError(f"{where}: holds {top}; allowed are 0 and 1 in each of the three channels")
        codes, doubly = _codes(mask, self.standardised)
        self.count["doubly_labelled_pixels"] += doubly
        self.count["unlabelled_pixels"] += int(np.count_nonzero(codes == IGNORE))
        return codes if self.min_ice == 0 or np.isin(codes, ANY_ICE).any() else None

    def _image(self, array: np.ndarray, where: str) -> np.ndarray | None:
        names = list(self.channels)
        values, valid, negative = _values(array, list(self.channels.values()))
        low = [names[k] for k in self.spectral if negative[k] > NEGATIVE * valid.size]
        self.negative |= bool(low)
        if low and not self.standardised:
            raise DataError(
                f"{where}: {low[0]} is negative, so this is z-scored, not raw; move such tiles to splits/train"
            )
        for k, channel in self.spectral.items():
            if (v := self.imputed.get(channel)) is not None:
                valid &= np.abs(values[k] - v) > 1e-4 * max(1, abs(v))
        if np.count_nonzero(valid) < self.min_valid * valid.size:
            return None
        values[:, ~valid] = np.nan
        return values


def _pairs(
    files: _Files,
    read: Callable[[_File, IO[bytes]], np.ndarray | None],
    spool: Path | None,  # folder where what waits for its other half waits; None: in memory
) -> Iterator[tuple[_File, np.ndarray | None, np.ndarray | None]]:
    """Yield each tile as soon as both its files came, in any order: one of them, its values, its codes."""
    waiting: dict[tuple[str, str, str], tuple[_File, np.ndarray | Path | None]] = {}
    for f, file in files:
        other, half = waiting.pop(f[:3], (None, None))
        if other and other.kind == f.kind:
            raise DataError(f"{f.where}: occurs twice; keep one of them")
        # three of four masks hold no ice, and the image is nearly all of the work
        needless = f.kind == "img" and other and half is None
        mine = None if needless else read(f, file)
        if other is None:
            waiting[f[:3]] = f, mine
            if spool and mine is not None:
                spool.mkdir(exist_ok=True)
                np.save(path := spool / f"{f.scene}_{f.number}.npy", mine)
                waiting[f[:3]] = f, path
            continue
        if isinstance(half, Path):
            path, half = half, np.array(read_array(half, DataError, (np.uint8, np.float32)))
            path.unlink()
        yield (f, half, mine) if f.kind == "mask" else (f, mine, half)
    for f, _ in waiting.values():
        raise f.alone()


def _folder(files: Iterable[_File]) -> _Files:
    """Yield mask and image of each tile by split, scene and number."""
    files = sorted(files, key=lambda f: (f.split, int(f.scene), int(f.number), f.number, f.kind == "img"))
    both = Counter(f[:3] for f in files)
    for f in files:
        if both[f[:3]] == 1:
            raise f.alone()
    for f in files:
        with opened(f.where, DataError, link=True) as file:
            yield f, file


def _archive(
    archive: Path | BinaryIO | RawIOBase,
    where: str,
    places: dict[str, bytes],  # slices.geojson is put here as it comes by
) -> _Files:
    """Yield masks and images in the order of the archive."""

    def wanted(name: str) -> bool:
        *folders, base = name.split("/")
        return (base == PLACES or bool(SLICE.fullmatch(base))) and not {"splits", *SPLITS} & set(folders)

    for name, file in members(archive, wanted):
        if m := SLICE.fullmatch(name.split("/")[-1]):
            yield _File("", m[1], m[3], m[2], f"{where}: {name}"), file
        else:
            places[f"{where}: {name}"] = file.read(PLACES_MOST)
    if isinstance(archive, RemoteStream):
        archive.verify()


def prepare_hkh(
    path: str | os.PathLike | BinaryIO | RawIOBase,  # see `find_hkh`; or an archive as an open stream
    out: str | os.PathLike,  # folder of the store to make
    *,
    bands: Sequence[str] = DEFAULT_BANDS,  # of `CHANNELS` without bqa; "thermal" is thermal_high, nearest to Landsat 8
    min_ice: float = 0.05,  # least share of ice among the labelled pixels of a tile; splits are not asked
    min_valid: float = 0.1,  # least share of pixels with data
    progress: Progress | None = None,  # called after each tile: done, total (None: unknown)
) -> TileStore:
    """Write the tiles of HKH as a tile store; labels, nodata and places are told above.

    Splits were made from tiles of at least 5 % ice, so `min_ice` drops none of theirs. Tiles of a folder stand in the
    order of scene and number, those of an archive in the order in which they become whole. What of an archive waits for
    its other half waits on disk beside `out`, at worst the chosen bands of all images.

    Raises:
        DataError: Anything about the input that cannot be used, in one line.
        OutputError: `out` exists already or cannot be written.
    """
    read = _Reader(_channels(bands), min_ice, min_valid)
    for name, share in (("min_ice", min_ice), ("min_valid", min_valid)):
        if not 0 <= share <= 1:
            raise DataError(f"{name} {share}: must be a share, from 0 to 1")
    source: Path | BinaryIO | RawIOBase
    if isinstance(path, (str, os.PathLike)):
        if (found := find_hkh(path)) is None:
            what = "no HKH tiles in it" if Path(path).exists() else "no such file or folder"
            raise DataError(f"{path}: {what}; give the folder glacier_data, slices or splits, or {ARCHIVE}")
        source, where = found, str(found)
    else:
        source, where = path, str(getattr(path, "name", "archive"))
    places, total = dict[str, bytes](), None
    if isinstance(source, Path) and source.is_dir():
        listed = list(_scan(source))
        files, total = _folder(listed), len(listed) // 2
        if beside := _beside(source, PLACES):
            places[str(beside)] = read_text(beside, DataError, PLACES_MOST, link=True).encode()
        if listed[0].split:
            read = _Reader(read.channels, 0, min_valid, True, _imputed(source))
    else:
        files = _archive(source, where, places)
    kind = "splits" if read.standardised else "slices"
    about = {k: getattr(read, k) for k in ("channels", "min_ice", "min_valid")}
    made_by = {"function": "prepare_hkh", **about, "path": where, "kind": kind, "labels": RULES[kind]}
    writing = TileWriter(out, tuple(read.channels), None, "float32", "hkh", "landsat7", made_by)
    with writing as writer, closing(files):
        spool = writer.partial / "spool" if total is None else None
        for f, values, codes in _pairs(files, read, spool):
            read.count["read"] += 1
            if reason := _dropped(values, codes, read.min_ice):
                read.count[reason] += 1
            elif values is not None and codes is not None:
                scene = f"slice_{f.scene}"
                writer.add(values, codes, scene=scene, split=f.split, name=f"{scene}_{f.number}")
            if progress:
                progress(read.count["read"], total)
        _check(read, where, len(writer.rows))
        made_by["count"] = read.count
        if places:
            made_by["mirrored_scenes"] = _place(writer.rows, *places.popitem(), read.size)
        if spool:
            shutil.rmtree(spool, ignore_errors=True)
        if read.standardised:
            writer.info["standardised"] = True
    return TileStore(out)


def _check(read: _Reader, where: str, kept: int) -> None:
    """Raise `DataError` if what was read is no store."""
    if not (n := read.count["read"]):
        raise DataError(f"{where}: no slice_S_img_N.npy with slice_S_mask_N.npy in slices/; is it {ARCHIVE}?")
    if read.standardised and not read.negative:
        raise DataError(f"{where}: no tile has negative values, so they are raw; move them to a folder slices")
    if not kept:
        ice, data = (read.count[k] for k in DROPPED)
        why = f"{ice} by min_ice {read.min_ice:g}, {data} by min_valid {read.min_valid:g}"
        raise DataError(f"{where}: all {n} tiles were dropped, {why}; lower these")


def _place(rows: list[dict[str, Any]], where: str, text: bytes, size: int) -> int:
    """Give the rows of tiles their places, and return how many scenes are mirrored in slices.geojson."""
    known, mirrored = read_footprints(where, text, size)
    for row in rows:
        if (tile := row["id"]) not in known:
            raise DataError(f"{where}: no footprint of {tile}; put the file away to split by scene")
        row |= known[tile]
    return mirrored


def download_hkh(
    folder: str | os.PathLike | None,  # where the archive is kept; None: nowhere, tiles are cut out of the stream
    out: str | os.PathLike,  # folder of the store to make
    *,
    bands: Sequence[str] = DEFAULT_BANDS,  # this and all others as in `prepare_hkh`
    progress: Progress | None = None,  # called with bytes done and total; with a folder, then with tiles
    **options: Any,
) -> TileStore:
    """Download HKH's archive and write its tiles as a tile store.

    In a folder the archive stays, and an interrupted download goes on where it ended. Without, only a broken connection
    does; the store appears only after the SHA-256 was found right.

    Raises:
        DataError: No mirror delivers the right file; or as `prepare_hkh`.
        OutputError: `out` exists already; no room; or another process downloads to the folder.
    """
    _channels(bands)  # refuse before 74 GB, not after
    if Path(out).exists():
        raise OutputError(f"{out}: exists already; choose another name or remove it first")
    if folder is not None:
        archive = fetch(MIRRORS, Path(folder) / ARCHIVE, SHA256, size=SIZES.get(SHA256), progress=progress)
        return prepare_hkh(archive, out, bands=bands, progress=progress, **options)
    with RemoteStream(MIRRORS, SHA256, size=SIZES.get(SHA256), progress=progress) as stream:
        return prepare_hkh(stream, out, bands=bands, **options)


SOURCE = Source(
    "hkh",
    "HKH: slices, splits, or their archive",
    find_hkh,
    hkh_files,
    prepare_hkh,
    lambda bands: {"bands": list(Bands(bands or DEFAULT_BANDS).made_of({*BANDS} - {*LOCATION}))},
)
