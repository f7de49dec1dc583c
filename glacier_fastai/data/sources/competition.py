"""GlacierHack 2025: folders of one-band GeoTIFFs, Landsat 8, to a tile store.

    ROOT/Band1 .. Band5   blue, green, red, swir1, thermal: one .tif per tile, "B2_B2_masked_02_07.tif" or "img001.tif"
    ROOT/label            0 background, 85 glacier, 170 debris, 255 lake; a folder to predict on has none. Where no
                          label of the folder holds 85 or 170 (phase 1), 255 is ice of unknown kind

Names differ between the folders and sort differently, so files are matched by the tile id that they contain.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...bands import CLASSES, COMPETITION_CODES, ICE_OF_ANY_KIND, IGNORE, Bands, natural_unit
from ...errors import DataError, did_you_mean
from ...memory import fits
from ..scenes.raster import check_place, open_raster, placeless, reading, same_crs, same_grid
from ..scenes.units import Given, Scaling, by_band
from ..tiles import TileStore, TileWriter, store_dtype
from .registry import Source

__all__ = ["SOURCE", "competition_files", "find_competition", "prepare_competition", "tile_id"]

_FOLDERS = {"band1": "blue", "band2": "green", "band3": "red", "band4": "swir1", "band5": "thermal"}
_LABELS = ("label", "labels")
_CODES = ", ".join(f"{code} {name}" for code, name in zip(COMPETITION_CODES, CLASSES, strict=True))
_WANTED = "give the folder that holds Band1 .. Band5 and, for training, label"
_IMG = re.compile(r"img(\d+)", re.ASCII | re.IGNORECASE)
_GRID = re.compile(r"(?<!\d)(?=(\d{2}_\d{2})(?!\d))", re.ASCII)  # looks ahead, so that matches may overlap


def tile_id(
    path: str | os.PathLike,  # a band or label file
) -> str:
    """Return the tile that a file belongs to.

    >>> tile_id("Band1/img001.tif"), tile_id("Band1/B2_B2_masked_02_07.tif")
    ('001', '02_07')

    Raises:
        DataError: The name contains no tile id.
    """
    stem = Path(path).stem
    # the last one counts: dates and band numbers stand in front of it
    if found := _IMG.findall(stem) or _GRID.findall(stem):
        return found[-1]
    raise DataError(f"{path}: no tile id in its name; name it like img001.tif or B2_02_07.tif, or move it away")


def _scan(path: Path, folders: bool) -> list[Path]:
    """Return the sub-folders, or the .tif files, of a folder; what cannot be read has none."""
    try:
        with os.scandir(path) as entries:
            return sorted(
                Path(e.path)
                for e in entries
                if not e.name.startswith(".")
                and e.is_dir() == folders
                and (folders or e.name.lower().endswith((".tif", ".tiff")))
            )
    except OSError:
        return []


def _named(path: Path, *names: str) -> list[Path]:
    return [f for f in _scan(path, folders=True) if f.name.lower() in names]


def find_competition(
    path: str | os.PathLike,  # a folder
) -> Path | None:
    """Return the folder that holds `Band1`: `path`, its `Train` or `Training`, or its only child that does, or None."""
    path = Path(path)
    if _named(path, "band1"):
        return path
    found = [f for f in _scan(path, folders=True) if _named(f, "band1")]
    train = [f for f in found if f.name.lower() in ("train", "training")]
    return next(iter(train or found)) if train or len(found) == 1 else None


def _root(path: str | os.PathLike) -> Path:
    if (root := find_competition(path)) is None:
        what = "no folder Band1 in it" if Path(path).is_dir() else "no such folder"
        raise DataError(f"{path}: {what}; {_WANTED}")
    return root


def competition_files(
    path: str | os.PathLike,  # see `find_competition`
) -> list[Path]:
    """Return the band and label files that a store of this folder depends on, sorted. No file is opened.

    Raises:
        DataError: There is no folder `Band1`.
    """
    return [f for folder in _named(_root(path), *_FOLDERS, *_LABELS) for f in _scan(folder, folders=False)]


def _by_id(root: Path, *names: str) -> dict[str, Path] | None:
    """Return the files of a sub-folder by tile, None without the folder."""
    folders = _named(root, *names)
    if len(folders) > 1:
        raise DataError(f"{root}: holds both {folders[0].name} and {folders[1].name}; keep one of them")
    if not folders:
        return None
    out: dict[str, Path] = {}
    for path in _scan(folders[0], folders=False):
        if (tile := tile_id(path)) in out:
            raise DataError(f"{path}: tile {tile} is also in {out[tile].name}; keep one of them")
        out[tile] = path
    if not out:
        raise DataError(f"{folders[0]}: no .tif in it, or it cannot be read; put the tiles there, or remove the folder")
    return out


def _match(root: Path) -> tuple[list[dict[str, Path]], dict[str, Path] | None]:
    """Return the files by tile of each band, and of the labels if there are any; all hold the same tiles."""
    bands = []
    for name in _FOLDERS:
        if (files := _by_id(root, name)) is None:
            raise DataError(f"{root}: no folder {name.capitalize()}; {_WANTED}")
        bands.append(files)
    labels = _by_id(root, *_LABELS)
    known = {tile: path for files in reversed(bands) for tile, path in files.items()}
    for files in bands if labels is None else [*bands, labels]:
        folder = next(iter(files.values())).parent
        if missing := sorted(known.keys() - files.keys()):
            raise DataError(f"{folder}: no file of tile {missing[0]} ({known[missing[0]]}); add it or remove the tile")
        if extra := sorted(files.keys() - known.keys()):
            raise DataError(f"{files[extra[0]]}: label of tile {extra[0]}, which has no image; add it or remove this")
    return bands, labels


class _Header(NamedTuple):
    shape: tuple[int, int]
    dtype: str
    crs: str
    transform: tuple[float, ...]  # a b c d e f, or empty without CRS or transform
    scaling: tuple[float, float]  # scale and offset of its tags


def _header(path: Path) -> _Header:
    with open_raster(path) as raster, reading(path):
        if raster.count != 1:
            raise DataError(f"{path}: {raster.count} bands, wanted one; take one out (gdal_translate -b 1)")
        if raster.dtypes[0].startswith("complex"):
            raise DataError(f"{path}: holds complex numbers; give real ones")
        placed = raster.crs is not None and not placeless(raster.transform)
        if placed:
            check_place(raster, path)
        crs, transform = (raster.crs.to_string(), tuple(raster.transform)[:6]) if placed else ("", ())
        return _Header(raster.shape, raster.dtypes[0], crs, transform, (raster.scales[0], raster.offsets[0]))


def _size(headers: dict[Path, _Header]) -> int:
    shapes = Counter(h.shape for h in headers.values())
    height, width = shapes.most_common(1)[0][0]
    for path, header in headers.items():
        if header.shape != (height, width):
            raise DataError(
                f"{path}: {' x '.join(map(str, header.shape))} px, but the others have {height} x {width}; "
                "all files of the folder must have one size"
            )
    if height != width:
        raise DataError(f"{next(iter(headers))}: {height} x {width} px; tiles must be square, cut them so")
    return height


def _place(tile: str, files: Sequence[Path], headers: dict[Path, _Header], size: int, on_map: bool) -> dict:
    """Return what `TileWriter.add` is to know about the place of a tile: on the map, or on the grid of tile ids."""
    placed = [f for f in files if headers[f].transform]
    for path in placed[1:]:
        first, other = headers[placed[0]], headers[path]
        if not (same_crs(first.crs, other.crs) and same_grid(first.transform, other.transform, (size, size))):
            raise DataError(f"{path}: does not lie where {placed[0]} lies; warp it there (gdalwarp)")
    if on_map:
        return {"scene": tile, "crs": headers[placed[0]].crs, "transform": headers[placed[0]].transform}
    if _GRID.match(tile):
        row, col = map(int, tile.split("_"))
        return {"scene": "grid", "row": row * size, "col": col * size}
    return {"scene": tile}


def _read_image(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return values `(5, H, W)` and bool `(H, W)`: True where there is data."""
    values, known = [], True
    for path in files:
        with open_raster(path) as raster, reading(path):
            values.append(raster.read(1))
            if raster.nodata != 0:  # 0 in some bands only is data, as on bright snow
                known = known & (raster.read_masks(1) > 0)
    image = np.stack(values)
    if image.dtype.kind == "f":
        known &= np.isfinite(image).all(0)
    known &= (image != 0).any(0)
    image[:, ~known] = 0  # a declared nodata value may not fit the store's dtype
    return image, known


def _label(path: Path) -> np.ndarray:
    with open_raster(path) as raster, reading(path):
        return raster.read(1)  # not its mask: 0 and 255 are classes, whatever the file declares as nodata


def _class_of(labels: Sequence[Path]) -> dict[int, int]:
    """Return the class of each code that the labels of a folder hold, by all of them."""
    codes: set[int] = set()
    for path in labels:
        label = _label(path)
        if missing := int(np.isnan(label).sum()):
            raise DataError(f"{path}: {missing} pixels are NaN; allowed are {_CODES}")
        found = np.unique(label)
        if unknown := [f"{c:g}" for c in found if c not in COMPETITION_CODES]:
            raise DataError(f"{path}: unknown codes {', '.join(unknown[:8])}; allowed are {_CODES}: recode the label")
        codes.update(found.astype(int).tolist())
    if 255 in codes and codes <= {0, 255}:
        return {0: 0, 255: ICE_OF_ANY_KIND}
    return {code: k for k, code in enumerate(COMPETITION_CODES)}


def _read_label(path: Path, class_of: dict[int, int]) -> np.ndarray:
    label = _label(path)
    mask = np.full(label.shape, IGNORE, np.uint8)
    for code, k in class_of.items():
        mask[label == code] = k
    return mask


def _check_wanted(root: Path, bands: Sequence[str] | None) -> list[str]:
    there = list(_FOLDERS.values())
    wanted = there if bands is None else [b.strip().lower() for b in bands]
    for band in wanted:
        if band not in there:
            raise DataError(f"{root}: no band {band!r}; it holds {', '.join(there)}{did_you_mean(band, there)}")
    Bands(wanted)
    return [b for b in there if b in wanted]


def _scaling(root: Path, bands: Sequence[str], scale: Given, offset: Given) -> list[Scaling]:
    numbers = range(1, len(bands) + 1)
    try:
        given = [by_band(v, name, bands, numbers, len(bands)) for v, name in ((scale, "scale"), (offset, "offset"))]
    except DataError as err:
        raise DataError(f"{root}: {err}") from err
    out = []
    for band, s, o in zip(bands, *given, strict=True):
        known = s is not None or o is not None
        out.append(Scaling(1.0 if s is None else s, o or 0.0, natural_unit(band) or "dn") if known else Scaling())
    return out


def prepare_competition(
    path: str | os.PathLike,  # see `find_competition`
    out: str | os.PathLike,  # folder of the store to make
    bands: Sequence[str] | None = None,  # names of the bands to keep, default all five
    *,
    scale: Given = None,  # what the numbers of the bands kept are multiplied with, see `data.scenes.units`
    offset: Given = None,  # what is added then
) -> TileStore:
    """Write the tiles of a competition folder as a tile store; without a label folder every mask is 255.

    A pixel has no data where a file declares so, where a band is NaN or infinite, or where all five bands are 0,
    whichever are kept; in integers, where every kept band is 0, too. Labels of 0 and 255 only, over the whole folder,
    are those of phase 1: 255 is ice of unknown kind, which is noted. The bands stand in the order of their folders.
    They are of unit dn, unless `scale` or `offset` say what turns them into units.
    Unless all tiles have a georeference, those with grid ids are placed on their grid, so that 02_07 and 02_08 touch.

    Raises:
        DataError: Anything about the folder that cannot be used, in one line.
        OutputError: `out` exists already or cannot be written.
    """
    root = _root(path)
    keep = _check_wanted(root, bands)
    images, labels = _match(root)
    tiles = {tile: [files[tile] for files in images] for tile in sorted(images[0])}
    headers = {f: _header(f) for files in tiles.values() for f in files}
    dtype = store_dtype(np.result_type(*(h.dtype for h in headers.values())))
    scaled = [f for f, header in headers.items() if header.scaling != (1, 0)]
    headers |= {labels[tile]: _header(labels[tile]) for tile in tiles} if labels else {}
    size = _size(headers)
    held = len(images) * (3 * dtype.itemsize + 16) * size**2  # bands, their stack, and what is computed of it
    fits(held, f"{root}: its tiles of {size:,} x {size:,} px", "cut them into smaller ones")
    index = [list(_FOLDERS.values()).index(b) for b in keep]
    # neighbours are known only if all tiles are placed in the same way
    on_map = all(any(headers[f].transform for f in files) for files in tiles.values())
    how = _scaling(root, keep, scale, offset)
    made_by = {"function": "prepare_competition", "folder": str(root), "labels": labels is not None}
    with TileWriter(out, keep, size, dtype, "competition", "landsat8", made_by, how) as writer:
        if scaled and scale is None and offset is None:
            s, o = headers[scaled[0]].scaling
            writer.note(
                f"{scaled[0]}: its tags have scale {s:.6g} and offset {o:.6g}, not applied; give scale and offset"
            )
        class_of = _class_of([labels[tile] for tile in tiles]) if labels else {}
        if ICE_OF_ANY_KIND in class_of.values():
            writer.note(
                f"{root}: labels hold only 0 and 255, as in phase 1, so 255 is read as ice of unknown kind (glacier or "
                "debris) and not as lake; where it is lake, give the whole folder of phase 2, with 85 and 170"
            )
        for tile, files in tiles.items():
            image, valid = _read_image(files)
            mask = _read_label(labels[tile], class_of) if labels else np.full((size, size), IGNORE, np.uint8)
            every = [*files, labels[tile]] if labels else files
            writer.add(image[index], mask, valid=valid, name=tile, **_place(tile, every, headers, size, on_map))
    return TileStore(out)


SOURCE = Source(
    "competition", "GlacierHack 2025: Band1 .. Band5", find_competition, competition_files, prepare_competition
)
