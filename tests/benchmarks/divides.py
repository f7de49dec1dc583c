"""Divides without an inventory against those of the RGI: python tests/benchmarks/divides.py DATA [--pictures FOLDER].

DATA has `oetztal_rgi50.shp` and `oetztal_srtm.tif`, `exploradores_rgi60.gpkg` and `exploradores_aster_dem.tif`
(GlacioHack/geoutils-data, OGGM/oggm-sample-data), or more pairs given as `--area NAME OUTLINES DEM`. All outlines are
burned as one map of ice on a grid of 30 m, as far as the elevation model has heights, and divided along its drainage.
The share is that of the ice whose pixels lie in the same glacier as in the RGI, of each two at most one pair.
"""

import argparse
import tempfile
import warnings
from pathlib import Path
from unittest.mock import patch

import geopandas
import matplotlib.pyplot as plt
import numpy as np
import rasterio
from matplotlib.colors import LightSource
from rasterio.features import rasterize
from rasterio.transform import from_origin
from scipy.ndimage import label
from scipy.optimize import linear_sum_assignment

from glacier_fastai.core import divides as module
from glacier_fastai.data.scenes.dem import SceneTerrain, Terrain
from glacier_fastai.predict.glaciers import glaciers

PIXEL = 30
PLAIN = {"merge_m": 0.0, "sliver_km2": 0.0, "thin_sliver_km2": 0.0}  # each outlet's flowshed
AREAS = {
    "Oetztal": ("oetztal_rgi50.shp", "oetztal_srtm.tif"),
    "Exploradores": ("exploradores_rgi60.gpkg", "exploradores_aster_dem.tif"),
}


def burned(outlines, dem):
    """Return RGI's glaciers as 1, 2, ..., heights, and their grid."""
    table = geopandas.read_file(outlines)
    table = table.to_crs(table.estimate_utm_crs())
    table["geometry"] = table.make_valid()
    with rasterio.open(dem) as file:
        west, south, east, north = rasterio.warp.transform_bounds(file.crs, table.crs, *file.bounds)
    left, bottom, right, top = table.total_bounds
    west, south, east, north = (
        max(west, left - 900),
        max(south, bottom - 900),
        min(east, right + 900),
        min(north, top + 900),
    )
    grid, shape = from_origin(west, north, PIXEL, PIXEL), (int((north - south) / PIXEL), int((east - west) / PIXEL))
    order = table.area.argsort()[::-1]
    ids = rasterize(((table.geometry[k], k + 1) for k in order), shape, transform=grid, dtype="int32")
    with Terrain(dem) as terrain:
        (heights,) = SceneTerrain(terrain, table.crs, grid, shape, "map").read(("elevation",), 0, 0, *shape)
    ids[np.isnan(heights)] = -1
    return ids, heights, grid, table.crs


def matched(truth, found):
    """Return share of the ice in the same glacier, glaciers found, those found with IoU > 0.8, and their pairs."""
    overlap = np.zeros((truth.max() + 1, found.max() + 1), np.int64)
    np.add.at(overlap, (truth[truth > 0], found[truth > 0]), 1)
    mine = overlap[:, 1:]
    row, col = linear_sum_assignment(-mine)
    both = mine[row, col]
    union = overlap[row].sum(1) + mine.sum(0)[col] - both
    good = both > 0.8 * union
    return both.sum() / overlap.sum(), (mine.sum(0) > 0).sum(), good.sum(), dict(zip(col + 1, row, strict=True))


def divided(truth, dem, grid, crs, folder):
    profile = {"driver": "GTiff", "height": truth.shape[0], "width": truth.shape[1], "count": 1, "dtype": "uint8"}
    with rasterio.open(folder / "s_classes.tif", "w", crs=crs, transform=grid, nodata=255, **profile) as file:
        file.write(np.where(truth < 0, 255, truth > 0).astype(np.uint8), 1)
    made = glaciers(folder / "s_classes.tif", divides=dem, buffer=0, min_area=0, overwrite=True)
    assert made["totals"]["inventory"]["pixels"] == (truth > 0).sum() == made["totals"]["ice"]["pixels"]
    table = geopandas.read_file(made["files"]["glaciers.gpkg"])
    burn = ((polygon, k) for k, polygon in enumerate(table.geometry, 1))
    return rasterize(burn, truth.shape, transform=grid, dtype="int32")


def picture(path, name, heights, truth, found, pairs):
    shade = LightSource(315, 45).hillshade(np.nan_to_num(heights, nan=np.nanmin(heights)), dx=PIXEL, dy=PIXEL)
    rng = np.random.default_rng(0)
    colours = np.concatenate(
        [[[0, 0, 0]], plt.get_cmap("hsv")(rng.permutation(np.linspace(0, 0.95, truth.max())))[:, :3]]
    )
    figure, axes = plt.subplots(
        1, 2, figsize=(20, 20 * truth.shape[0] / truth.shape[1] / 2 + 0.6), layout="constrained"
    )
    ours = np.zeros_like(truth)
    for k, of in pairs.items():
        ours[found == k] = of
    for axis, ids, shown, title in zip(
        axes,
        (truth, found),
        (truth, ours),
        ("RGI", "divides (colour: the glacier of RGI it is matched to; grey: none)"),
        strict=True,
    ):
        axis.imshow(shade, cmap="gray", vmin=-0.3, vmax=1.2)
        axis.imshow(np.dstack([colours[shown.clip(0)], np.where(ids > 0, np.where(shown > 0, 0.55, 0.7), 0)]))
        edge, ids = np.zeros(ids.shape, bool), ids.clip(0)
        edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
        edge[1:] |= ids[1:] != ids[:-1]
        axis.imshow(np.dstack([np.zeros((*ids.shape, 3)), edge]))
        axis.set(title=f"{name}: {title}", xticks=[], yticks=[])
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--area", nargs=3, action="append", default=[], metavar=("NAME", "OUTLINES", "DEM"))
    parser.add_argument("--pictures", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'area':14} {'km2':>7}  {'divided by':22} {'glaciers':>8} {'IoU > 0.8':>9} {'share':>6}")
    for name, (outlines, dem) in (AREAS | {n: (o, d) for n, o, d in asked.area}).items():
        truth, heights, grid, crs = burned(asked.data / outlines, asked.data / dem)
        with tempfile.TemporaryDirectory() as folder:
            ways = {"divides": divided(truth, asked.data / dem, grid, crs, Path(folder))}
            with patch.dict(module.PARAMETERS, PLAIN):
                ways["flowsheds, not merged"] = divided(truth, asked.data / dem, grid, crs, Path(folder))
        ways["connected patches"], _ = label(truth > 0)
        km2 = (truth > 0).sum() * PIXEL**2 / 1e6
        n = len(np.unique(truth[truth > 0]))
        print(f"{name:14} {km2:7.1f}  {'RGI':22} {n:8} {n:9} {1:6.3f}")
        for way, found in ways.items():
            share, count, good, pairs = matched(truth, found)
            print(f"{name:14} {'':7}  {way:22} {count:8} {good:9} {share:6.3f}")
            if way == "divides" and asked.pictures:
                asked.pictures.mkdir(parents=True, exist_ok=True)
                picture(asked.pictures / f"{name.lower()}.png", name, heights, truth, found, pairs)


if __name__ == "__main__":
    main()
