"""A whole Landsat scene as a product, against one GeoTIFF of the same pixels: time and peak memory of the map.

    python -m tests.benchmarks.product_scene [--rows 7600 --columns 7700] [--arch ratio]

Each map is made by a process of its own; the smallest of `--repeat` times counts. With a band ratio, which costs next
to nothing, reading is nearly all of the time: a network (`--arch unet`) hides it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

BANDS = {"blue": "B2", "green": "B3", "red": "B4", "nir": "B5", "swir1": "B6", "swir2": "B7"}
NAME = "LC08_L2SP_140041_20201113_20210317_02_T1"
RUN = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
import torch
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.predict.scene import Wanted, predict_scene
bundle = ModelBundle.load(sys.argv[1])
began = time.monotonic()
predict_scene(bundle, sys.argv[2], sys.argv[3], Wanted(), force=True)
print(json.dumps([time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6]))
"""


def write(folder: Path, rows: int, columns: int) -> tuple[Path, Path]:
    """Write a product in its true layout, and its pixels as one GeoTIFF; return both."""
    rng, product = np.random.default_rng(0), folder / NAME
    product.mkdir()
    place = from_origin(399_985, 3_166_015, 30, 30)
    profile = {"driver": "GTiff", "height": rows, "width": columns, "count": 1, "dtype": "uint16", "crs": "EPSG:32645"}
    profile |= {
        "transform": place,
        "nodata": 0,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
    }
    smooth = rng.integers(0, 12000, (rows // 64 + 1, columns // 64 + 1)).repeat(64, 0).repeat(64, 1)[:rows, :columns]
    one = folder / "one.tif"
    with rasterio.open(one, "w", **{**profile, "count": len(BANDS), "interleave": "band"}) as whole:
        for k, (band, number) in enumerate(BANDS.items(), 1):
            values = (8000 + smooth + rng.integers(0, 1000, (rows, columns))).astype(np.uint16)
            values[:, : columns // 20] = 0
            whole.write(values, k)
            whole.set_band_description(k, band)
            with rasterio.open(product / f"{NAME}_SR_{number}.TIF", "w", **profile) as file:
                file.write(values, 1)
        whole.scales, whole.offsets = [2.75e-5] * len(BANDS), [-0.2] * len(BANDS)
    flags = np.full((rows, columns), 1 << 6, np.uint16)
    flags[:, : columns // 20] = 1
    with rasterio.open(product / f"{NAME}_QA_PIXEL.TIF", "w", **{**profile, "nodata": 1}) as file:
        file.write(flags, 1)
    contents = {"LANDSAT_PRODUCT_ID": NAME, "PROCESSING_LEVEL": "L2SP", "COLLECTION_NUMBER": "02"}
    contents |= {f"FILE_NAME_BAND_{b[1:]}": f"{NAME}_SR_{b}.TIF" for b in BANDS.values()}
    contents |= {"FILE_NAME_QUALITY_L1_PIXEL": f"{NAME}_QA_PIXEL.TIF"}
    scale = {
        f"REFLECTANCE_{t}_BAND_{b[1:]}": v for b in BANDS.values() for t, v in (("MULT", "2.75e-05"), ("ADD", "-0.2"))
    }
    image = {"SPACECRAFT_ID": "LANDSAT_8", "SENSOR_ID": "OLI_TIRS", "DATE_ACQUIRED": "2020-11-13"}
    image |= {"SCENE_CENTER_TIME": "04:41:58.1234560Z", "SUN_ELEVATION": "39.1"}
    size = {"UTM_ZONE": "45", "REFLECTIVE_LINES": str(rows), "REFLECTIVE_SAMPLES": str(columns)}
    groups = {"PRODUCT_CONTENTS": contents, "IMAGE_ATTRIBUTES": image, "PROJECTION_ATTRIBUTES": size}
    groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"] = scale
    (product / f"{NAME}_MTL.json").write_text(json.dumps({"LANDSAT_METADATA_FILE": groups}))
    return one, product


def model(path: Path, arch: str) -> None:
    """Write an untrained model of these bands."""
    from glacier_fastai.data.profile import Profile
    from glacier_fastai.model.bundle import ModelBundle
    from glacier_fastai.model.registry import build_model

    bands = tuple(BANDS)
    options = {} if arch == "ratio" else {"encoder": "resnet18", "attention": None}
    made = build_model(arch, bands, **options)
    profile = Profile(units=dict.fromkeys(bands, "reflectance"), pixel_size=30.0)
    weights = made.state_dict()
    ModelBundle(weights, arch, made.built_as[1], bands, (0.2,) * 6, (0.1,) * 6, profile=profile).save(path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=7600)
    parser.add_argument("--columns", type=int, default=7700)
    parser.add_argument("--arch", default="ratio")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, product = write(folder, args.rows, args.columns)
        model(folder / "m.safetensors", args.arch)
        found: dict[str, list[list[float]]] = {"GeoTIFF": [], "product": []}
        for k in range(args.repeat):
            for kind, scene in (("GeoTIFF", one), ("product", product)):
                command = [sys.executable, "-c", RUN, folder / "m.safetensors", scene, folder / f"maps{k}"]
                said = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
                found[kind].append(json.loads(said))
        for kind, runs in found.items():
            seconds, memory = min(r[0] for r in runs), max(r[1] for r in runs)
            print(f"{kind:8} {seconds:7.1f} s {memory:6.2f} GB")
        print(f"ratio    {min(r[0] for r in found['product']) / min(r[0] for r in found['GeoTIFF']):7.3f}")


if __name__ == "__main__":
    main()
