"""Time and memory of `glaciers`: python tests/benchmarks/glaciers.py [--size 10000] [--outlines 5000]."""

import argparse
import os
import resource
import tempfile
import time
import warnings
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from rasterio.features import rasterize
from rasterio.transform import from_origin

from glacier_fastai.predict.glaciers import glaciers, summary

CORNERS = 300  # of an outline


def made_up(folder, size, n, seed=0):
    """Write an inventory of lobed outlines, side by side, and a map of them, frayed, with specks and new ice."""
    rng, per_side = np.random.default_rng(seed), int(np.ceil(n**0.5))
    cell, grid = size / per_side, from_origin(400_000, 3_500_000, 30, 30)
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    polygons = []
    for k in range(n):
        waves = sum(rng.normal(0, 0.25 / f) * np.cos(f * angle + rng.uniform(0, 7)) for f in range(1, 12))
        radius = cell * 0.35 * np.exp(waves).clip(0.2, 1.6)
        middle = (np.array(divmod(k, per_side))[::-1] + 0.5) * cell
        polygons.append(shapely.Polygon(np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None] + middle))
    with rasterio.open(
        folder / "s_classes.tif", "w", driver="GTiff", width=size, height=size, count=1, dtype="uint8", nodata=255,
        crs="EPSG:32645", transform=grid, compress="deflate", tiled=True, blockxsize=512, blockysize=512,
    ) as file:  # fmt: skip
        ice = rasterize(polygons, (size, size), dtype="uint8")
        for row in range(0, size, 500):
            part = ice[row : row + 500]
            part[rng.random(part.shape) < 0.002] ^= 1
            part[:6, :: size // 50] = 1
            part[part.astype(bool) & (rng.random(part.shape) < 0.2)] = 2
        file.write(ice, 1)
    placed = shapely.transform(np.array(polygons, object), lambda xy: xy * (30, -30) + (400_000, 3_500_000))
    table = geopandas.GeoDataFrame({"rgi_id": [f"G{k:05}" for k in range(n)]}, geometry=placed, crs="EPSG:32645")
    table.to_crs("EPSG:4326").to_file(folder / "rgi.gpkg")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=10_000)
    parser.add_argument("--outlines", type=int, default=5_000)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        if not (child := os.fork()):  # so that what it takes is not counted
            made_up(Path(folder), asked.size, asked.outlines)
            os._exit(0)
        os.waitpid(child, 0)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        made = glaciers(Path(folder) / "s_classes.tif", Path(folder) / "rgi.gpkg")
        seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(summary(made))
    print(
        f"{asked.size} x {asked.size} px, {asked.outlines} outlines: {seconds:.0f} s, peak {after / 1024:.0f} MB",
        end="",
    )
    print(f" ({before / 1024:.0f} MB before)")


if __name__ == "__main__":
    main()
