"""Made-up competition folders in the true layouts, with what a store of them must hold."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin
from scenes import CRS, made_up

from glacier_fastai.bands import COMPETITION_CODES

LANDSAT8 = ("B2", "B3", "B4", "B6", "B10")
IDS = {"phase1": ("10_01", "02_07", "02_08"), "phase2": ("007", "001", "002")}


class Tile(NamedTuple):
    values: np.ndarray  # (5, H, W), 0 where not valid
    classes: np.ndarray  # (H, W), a class also where not valid
    valid: np.ndarray  # (H, W) bool


class Competition(NamedTuple):
    root: Path  # the folder that holds Band1
    tiles: dict[str, Tile]  # by id
    bands: list[dict[str, Path]]  # per band folder, files by id
    labels: dict[str, Path]  # empty without labels


def write_one(path, values, *, nodata=None, crs=None, transform=None, driver="GTiff"):
    """Write (H, W) or (C, H, W) values as GeoTIFF, like the competition's without georeference unless one is given."""
    values = values.reshape(-1, *values.shape[-2:])
    profile = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    place = {} if transform is None else {"crs": crs, "transform": transform}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver=driver, nodata=nodata, **profile, **place) as file:
            file.write(values)
    return path


def competition_folder(
    path,
    layout="phase1",
    ids=None,
    size=32,
    dtype="uint16",
    georeferenced=False,
    labels=True,
    label_folder="label",
    label_name=None,  # "Y_output_resized_{}", "Y{}" or "img{}", default as the layout has it
    seed=0,
):
    """Make a competition folder at `path`; tile k holds the same pixels in every layout."""
    ids = IDS[layout] if ids is None else ids
    root = path / "Train" if layout == "phase1" else path
    image_name = "{0}_{0}_masked_{1}.tif" if layout == "phase1" else "img{1}.tif"
    label_name = label_name or ("Y_output_resized_{}" if layout == "phase1" else "img{}")
    folders = [root / f"Band{b}" for b in range(1, 6)]
    for folder in [*folders, root / label_folder] if labels else folders:
        folder.mkdir(parents=True)
    made = Competition(root, {}, [{} for _ in folders], {})
    for k, tile in enumerate(ids):
        # rolled, for `made_up` puts the classes of every seed in one place, which would hide swapped labels
        values, classes, valid = (np.roll(a, 3 * k, -2) for a in made_up(size, size, seed=seed + k))
        made.tiles[tile] = Tile(values.astype(dtype), classes, valid)
        corner = from_origin(500_000 + 30 * size * k, 3_100_000, 30, 30) if georeferenced else None
        for b, folder in enumerate(folders):
            file = folder / image_name.format(LANDSAT8[b], tile)
            made.bands[b][tile] = write_one(file, values[b].astype(dtype), crs=CRS, transform=corner)
        if labels:
            codes = np.array(COMPETITION_CODES, np.uint8)[classes]
            file = root / label_folder / f"{label_name.format(tile)}.tif"
            made.labels[tile] = write_one(file, codes, crs=CRS, transform=corner)
    return made
