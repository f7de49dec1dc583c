"""Time and memory of outlines. Run: OMP_NUM_THREADS=1 pytest tests/benchmarks/test_outlines.py -s."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio.features
import shapely
from rasterio.transform import from_origin
from scipy.ndimage import zoom
from skimage.measure import label

from glacier_fastai.predict.outlines import Outlines
from glacier_fastai.predict.sink import Strip

SIZE, STRIP = 10_000, 400
WAVES = {500: 1.0, 100: 0.6, 20: 0.35, 4: 0.15}  # length in px and height: valleys, glaciers, their margins, specks


def made_up(size: int) -> np.ndarray:
    """Return a map of 4 classes, 71 % of it background."""
    rng = np.random.default_rng(0)
    field = np.zeros((size, size), np.float32)
    for length, height in WAVES.items():
        field += height * zoom(rng.normal(size=(size // length,) * 2).astype(np.float32), length, order=1)
    return np.digitize(field, np.array([0.5, 1.2, 1.8]) * field.std()).astype(np.uint8)


def strips(path: Path):
    for row in range(0, SIZE, STRIP):
        classes = np.array(np.load(path, mmap_mode="r")[row : row + STRIP])  # mapped anew: pages would count as ours
        yield Strip(row, classes, np.full((4, *classes.shape), 0.25, np.float32))


def ours(path: Path) -> dict:
    source = SimpleNamespace(
        height=SIZE, width=SIZE, crs=rasterio.CRS.from_epsg(32645), transform=from_origin(5e5, 3e6, 30, 30)
    )
    outlines, found = Outlines(path.with_suffix(".gpkg"), source), {}
    start = time.perf_counter()
    outlines.__enter__()
    for strip in strips(path):
        outlines.write(strip)
    found["written_s"] = time.perf_counter() - start
    tables = outlines.tables()
    outlines.__exit__(KeyboardInterrupt, None, None)
    return found | {"polygons": [len(t) for t in tables.values()], "area": float(tables["classes"].area.sum() / 900)}


def whole(path: Path) -> dict:
    """GDAL and scikit-image on the whole map at once."""
    classes = np.load(path)
    confidence, polygons, area = np.full(classes.shape, 0.25, np.float32), [], 0.0
    for values in (((classes == 1) | (classes == 2)).astype(np.uint8), classes):
        found = rasterio.features.shapes(values, mask=values > 0, connectivity=4)
        shapes = [shapely.geometry.shape(geometry) for geometry, _ in found]
        np.bincount(label(values, background=0, connectivity=1).ravel(), confidence.ravel())
        polygons.append(len(shapes))
        area = float(shapely.area(shapes).sum())
    return {"polygons": polygons, "area": area}


def peak() -> float:
    """Return the most memory that the process has held, in MB; ru_maxrss would start at what the parent held."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_outlines_in_strips_against_the_whole(tmp_path):
    np.save(tmp_path / "map.npy", made_up(SIZE))
    runs = []
    for who in ("ours", "whole"):
        command = [sys.executable, __file__, who, str(tmp_path / "map.npy")]
        runs.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    strips, whole = runs
    assert (strips["polygons"], strips["area"]) == (whole["polygons"], whole["area"])
    print(
        f"\noutlines of {SIZE:,}^2 px, {sum(strips['polygons']):,} polygons: in strips {strips['s']:.1f} s "
        f"({strips['written_s']:.1f} s of it while the map comes) and {strips['mb']:,.0f} MB; GDAL and scikit-image on "
        f"the whole {whole['s']:.1f} s and {whole['mb']:,.0f} MB, areas and projection not counted"
    )


if __name__ == "__main__":
    before, began = peak(), time.perf_counter()
    found = {"ours": ours, "whole": whole}[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps(found | {"s": time.perf_counter() - began, "mb": peak() - before}))
