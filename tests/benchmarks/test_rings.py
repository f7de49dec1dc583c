"""Time and memory of tracing outlines. Run: OMP_NUM_THREADS=1 pytest tests/benchmarks/test_rings.py -s."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio.features
import shapely
from scipy.ndimage import zoom

from glacier_fastai.core.rings import Regions, RegionTracer

SIZE, STRIP = 10_000, 512
WAVES = {500: 1.0, 100: 0.6, 20: 0.35, 4: 0.15}  # length in px and height: valleys, glaciers, their margins, specks


def made_up(size: int) -> np.ndarray:
    """Return a map of 4 classes, 71 % of it background."""
    rng = np.random.default_rng(0)
    field = np.zeros((size, size), np.float32)
    for length, height in WAVES.items():
        field += height * zoom(rng.normal(size=(size // length,) * 2).astype(np.float32), length, order=1)
    return np.digitize(field, np.array([0.5, 1.2, 1.8]) * field.std()).astype(np.uint8)


def trace(path: Path) -> Regions:
    tracer = RegionTracer(np.load(path, mmap_mode="r").shape[1])
    for top in range(0, SIZE, STRIP):
        tracer.add(np.load(path, mmap_mode="r")[top : top + STRIP])  # mapped anew, or pages read would count as ours
    return tracer.finish()


def polygons(regions: Regions) -> np.ndarray:
    return shapely.polygons(shapely.linearrings(regions.corners, indices=regions.ring), indices=regions.region)


def peer(values: np.ndarray) -> list[shapely.Polygon]:
    shapes = rasterio.features.shapes(values, mask=values > 0, connectivity=4)
    return [shapely.geometry.shape(geometry) for geometry, _ in shapes]


def peak() -> int:
    """Return the most memory that the process has held, in kB.

    ru_maxrss would start at what the parent held, as it outlives exec.
    """
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure(who: str, path: Path) -> dict:
    """Trace the map in this process; return seconds and MB above what was held before."""
    warm = np.eye(8, dtype=np.uint8)
    values = np.load(path) if who == "peer" else None
    tracer = RegionTracer(8)
    tracer.add(warm)
    polygons(tracer.finish())
    peer(warm)
    found, before, start = {}, peak(), time.perf_counter()
    if who == "peer":
        shapes = peer(values)
    else:
        regions = trace(path)
        found |= {"trace_s": time.perf_counter() - start, "trace_mb": (peak() - before) / 1024}
        found |= {"corners": len(regions.corners)}
        shapes = polygons(regions)
    found |= {"s": time.perf_counter() - start, "mb": (peak() - before) / 1024}
    return found | {"polygons": len(shapes), "area": float(shapely.area(shapes).sum())}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rings_against_rasterio(tmp_path):
    np.save(tmp_path / "map.npy", made_up(SIZE))
    runs = {"ours": [], "peer": []}
    for who in ("ours", "peer") * 2:
        command = [sys.executable, __file__, who, str(tmp_path / "map.npy")]
        runs[who].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    ours, theirs = (min(found, key=lambda run: run["s"]) for found in runs.values())
    assert (ours["polygons"], ours["area"]) == (theirs["polygons"], theirs["area"])
    print(
        f"\noutlines of {SIZE:,}^2 px, {ours['polygons']:,} polygons of {ours['corners']:,} corners: "
        f"in strips of {STRIP} rows {ours['s']:.1f} s and {ours['mb']:,.0f} MB, "
        f"{ours['trace_s']:.2f} s and {ours['trace_mb']:,.0f} MB of it before shapely; "
        f"rasterio.features.shapes {theirs['s']:.1f} s and {theirs['mb']:,.0f} MB: "
        f"{theirs['s'] / ours['s']:.0f} times as fast, {theirs['mb'] / ours['mb']:.1f} times less memory"
    )


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
