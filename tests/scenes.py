"""Tiny made-up scenes: a real CRS, named bands, nodata, all four classes."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from glacier_fastai.data.tiles import TileStore, TileWriter
from glacier_fastai.recipe import load_recipe

EVEREST = Path(__file__).resolve().parents[2] / "shared" / "data" / "everest"
BANDS = ("blue", "green", "red", "swir1", "thermal")
CRS = "EPSG:32645"
TINY = "tu-test_resnet.r160_in1k"  # the encoder with which smp tests itself


def made_up(height=96, width=80, bands=BANDS, seed=0, nodata=True):
    """Return values (C, H, W) uint16, classes (H, W) and valid (H, W): one patch of each class, noise on top."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    classes = np.zeros((height, width), np.uint8)
    classes[(rows < height * 0.6) & (abs(cols - width / 2) < width * 0.3)] = 1
    classes[(rows >= height * 0.4) & (rows < height * 0.6) & (abs(cols - width / 2) < width * 0.3)] = 2
    classes[(rows >= height * 0.62) & (rows < height * 0.75) & (abs(cols - width / 2) < width * 0.1)] = 3
    level = rng.integers(2000, 9000, (len(bands), 4))
    values = np.take_along_axis(level[:, :, None], classes.reshape(1, 1, -1).repeat(len(bands), 0), 1)
    values = values.reshape(len(bands), height, width) + rng.integers(-300, 300, (len(bands), height, width))
    valid = np.ones((height, width), bool)
    if nodata:
        valid[(rows + cols) % 23 == 0] = False
    values[:, ~valid] = 0
    return values.astype(np.uint16), classes, valid


def write_raster(path, values, *, nodata=None, bands=None, crs=CRS, transform=None):
    """Write (C, H, W) values as GeoTIFF."""
    profile = {
        "driver": "GTiff",
        "count": len(values),
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
        "crs": crs,
        "transform": transform or from_origin(500_000, 3_100_000, 30, 30),
        "nodata": nodata,
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
        if bands:
            file.descriptions = bands
    return path


def write_scene(path, height=96, width=80, bands=BANDS, seed=0):
    """Write a made-up scene and beside it its labels; return both paths."""
    values, classes, valid = made_up(height, width, bands, seed)
    label = np.where(valid, classes, 255)[None].astype(np.uint8)
    write_raster(path, values, nodata=0, bands=bands)
    return path, write_raster(path.with_name(f"{path.stem}_label.tif"), label, nodata=255)


def make_store(path, bands=BANDS, scenes=3, size=32, dtype="uint16", seed=0, kinds=True, placed=False):
    """Write a store of four tiles from each of `scenes` made-up scenes; without `kinds` all ice is of unknown kind.

    If they are `placed`, each scene is a degree of longitude east of the one before.
    """
    with TileWriter(path, bands, size, dtype, source="made up for tests") as writer:
        for s in range(scenes):
            values, classes, valid = made_up(2 * size, 2 * size, bands, seed + s)
            if not kinds:
                classes[(classes == 1) | (classes == 2)] = 254
            for row in (0, size):
                for col in (0, size):
                    at = (slice(row, row + size), slice(col, col + size))
                    about = {"scene": f"s{s}", "row": row, "col": col, "crs": "EPSG:4326" if placed else CRS}
                    if placed:
                        about["transform"] = (3e-4, 0, 86 + s + 3e-4 * col, 0, -3e-4, 28 - 3e-4 * row)
                    writer.add(values[:, *at], classes[at], valid=valid[at], **about)
    return TileStore(path)


def changed(store, path, image=lambda values: values, mask=lambda codes: codes):
    """Write a store again with other values or labels."""
    with TileWriter(path, store.bands, store.size, store.info["dtype"], "made up for tests") as writer:
        for i, row in enumerate(store.table.to_dict("records")):
            about = {k: row[k] for k in ("scene", "row", "col", "crs")}
            writer.add(image(np.array(store.images[i])), mask(np.array(store.masks[i])), **about)
    return TileStore(path)


def tiny_recipe(*overrides):
    """Return the demo recipe, made as small as it goes."""
    small = ["model.size=tiny", "record.panels_every=0", "data.tile_size=32", "data.crop=32", "data.folds=3"]
    small += ["train.epochs=2", "train.batch_size=4", "data.crops_per_tile=1", "train.precision=fp32", "train.lr=1e-3"]
    return load_recipe("demo", [*small, *overrides])


def normalised(image, mean, std):
    """Return (C, H, W) standardised by the plain formula, 0 without data."""
    shape = (-1, 1, 1)
    return np.nan_to_num((image - np.float32(mean).reshape(shape)) / np.float32(std).reshape(shape), nan=0.0)
