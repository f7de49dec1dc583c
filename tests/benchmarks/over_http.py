"""The map of a scene over http against that of the local file: pixels, bytes that are sent, time.

PYTHONPATH=. python tests/benchmarks/over_http.py [--size 3000] [--latency 0.05]
"""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import rasterio
from rasterio.transform import from_origin

sys.path.insert(0, str(Path(__file__).parents[1]))
from web import Web

from glacier_fastai.data.scenes import web
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.registry import build_model
from glacier_fastai.predict.scene import predict_scene

BANDS = ("blue", "green", "red", "nir", "swir1", "swir2", "thermal", "pan", "elevation", "slope")
MODEL = ("blue", "green", "red", "swir1")


def write_scene(path, size, interleave):
    """Write a tiled scene of smooth ground with noise, ten bands."""
    rng, rows, cols = np.random.default_rng(0), *np.mgrid[:size, :size]
    place = {"crs": "EPSG:32645", "transform": from_origin(500_000, 3_100_000, 30, 30), "nodata": 0}
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "interleave": interleave}
    shape = {"count": len(BANDS), "height": size, "width": size, "dtype": "uint16"}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place, **tiles) as file:
        for n in range(len(BANDS)):
            ground = 4000 + 2000 * np.sin(rows / (90 + n)) * np.cos(cols / (110 + n)) + rng.integers(0, 200, rows.shape)
            file.write(ground.astype(np.uint16), n + 1)
        file.descriptions = BANDS
    return path


def main():
    """Print a line for each layout of the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=3000)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer")
    args = parser.parse_args()
    weights = build_model("ratio", MODEL).state_dict()  # so that reading is what takes time
    bundle = ModelBundle(weights, "ratio", {}, MODEL, (4000.0,) * 4, (1500.0,) * 4)
    wait = lambda number, path, start: time.sleep(args.latency)  # noqa: E731
    with TemporaryDirectory() as folder:
        for interleave in ("band", "pixel"):
            path, maps, seconds = write_scene(Path(folder) / f"{interleave}.tif", args.size, interleave), [], []
            for kind in ("warm", "local", "http"):
                with Web({path.name: path.read_bytes()}, wait) as server:
                    web._cache = web._Cache()
                    began = time.monotonic()
                    scene = f"{server.url}/{path.name}" if kind == "http" else path
                    made = predict_scene(bundle, scene, Path(folder) / interleave / kind)
                    seconds.append(time.monotonic() - began)
                    with rasterio.open(made["files"]["classes"]) as file:
                        maps.append(file.read(1))
                    sent, requests = server.sent, len(server.asked)
            size, same, found = path.stat().st_size, (maps[1] == maps[2]).mean(), np.unique(maps[1]).size
            print(
                f"{args.size} x {args.size} px, {len(BANDS)} bands by {interleave}, {len(MODEL)} of them wanted: "
                f"{same:.0%} of the pixels identical, of {found} codes; {sent / 1e6:.1f} of {size / 1e6:.1f} MB "
                f"({sent / size:.0%}) in {requests} requests; {seconds[2]:.1f} s, local {seconds[1]:.1f} s"
            )


if __name__ == "__main__":
    main()
