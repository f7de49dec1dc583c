"""Slope, aspect and curvature against xdem on real elevation models: the largest difference of each.

    pip install xdem
    python tests/benchmarks/terrain.py DATA/inventories/*.tif

A model in degrees is brought to UTM first, for xdem wants metres. Aspect is compared where the slope is over 1 degree;
xdem's curvature along and across the slope (Zevenbergen and Thorne's, per 100 m) add up to ours where it is not flat.
"""

import sys
import time
import warnings

import numpy as np
import rasterio
import xdem
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from glacier_fastai.core.terrain import aspect, curvature, slope


def heights(path):
    with rasterio.open(path) as dem:
        crs = None
        if dem.crs.is_geographic:
            crs = f"EPSG:{32600 + int((dem.bounds.left + 180) // 6) + 1}"
        with WarpedVRT(dem, crs=crs, resampling=Resampling.cubic, nodata=-9999, dtype="float32") as warped:
            return warped.read(1, masked=True).filled(np.nan), abs(warped.transform.a)


def main(paths):
    warnings.simplefilter("ignore")
    print(f"xdem {xdem.__version__}")
    for path in paths:
        z, side = heights(path)
        began = time.perf_counter()
        ours = {"slope (degree)": slope(z, side, side), "curvature (1/m)": curvature(z, side, side)}
        sin, cos = aspect(z, side, side)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        names = ["slope", "aspect"]
        steep, facing = xdem.terrain.get_terrain_attribute(z, names, resolution=side, surface_fit="Horn")
        names = ["profile_curvature", "tangential_curvature"]
        how = {"resolution": side, "surface_fit": "Florinsky", "curv_method": "directional"}
        curved = sum(xdem.terrain.get_terrain_attribute(z, names, **how)) / 100
        theirs = {"slope (degree)": steep, "curvature (1/m)": np.where(curved == 0, np.nan, curved)}
        seconds_theirs = time.perf_counter() - began
        print(f"{path}: {z.shape[0]} x {z.shape[1]} px of {side:.1f} m, {np.isnan(z).mean():.1%} voids")
        for name, mine in ours.items():
            yours = theirs[name]
            same = np.isnan(mine) == np.isnan(yours) if name.startswith("slope") else np.isnan(mine) <= np.isnan(yours)
            both = np.isfinite(mine) & np.isfinite(yours)
            off = np.abs(mine - yours)[both].max()
            print(f"  {name:16} {off:.1e} at most, of up to {np.abs(mine[both]).max():.3g}; voids agree {same.all()}")
        turn = np.angle(np.exp(1j * (np.arctan2(sin, cos) - np.radians(facing))))[steep > 1]
        print(f"  aspect (degree)  {np.degrees(np.abs(turn).max()):.1e} at most, where it is steeper than 1 degree")
        print(f"  {seconds:.2f} s, xdem {seconds_theirs:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
