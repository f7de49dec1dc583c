"""Error and coverage of `change` on two made-up dates whose true change is known.

    python tests/benchmarks/glacier_change.py [--glaciers 400] [--seed 0]

Lobed glaciers lose up to a fifth of their radius from one date to the other. Each date is mapped with its margin
displaced by as much as is said, in pixels (standard deviation): alike all around a glacier ("whole"), or on its own
every 15 degrees ("parts"). The intervals are those of the buffer method.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import rasterio
import shapely
from rasterio.features import rasterize
from rasterio.transform import from_origin

from glacier_fastai.predict.change import SIZES, change

CELL, PIXEL, X, Y = 160, 30, 400_000, 3_500_000
ANGLE = np.linspace(0, 2 * np.pi, 360, endpoint=False)


def rings(middles, radii):
    around = np.stack([np.cos(ANGLE), np.sin(ANGLE)], 1)
    return np.array([shapely.Polygon(m + r[:, None] * around) for m, r in zip(middles, radii, strict=True)], object)


def write(folder, name, polygons, size, date):
    grid = from_origin(X, Y, PIXEL, PIXEL)
    profile = {"driver": "GTiff", "height": size, "width": size, "count": 1, "dtype": "uint8", "nodata": 255}
    with rasterio.open(folder / f"{name}_classes.tif", "w", crs="EPSG:32645", transform=grid, **profile) as file:
        file.write(rasterize(polygons, (size, size), dtype="uint8"), 1)
    record = {"date": date, "scene": name, "models": [{"weight": 1, "sha256": "0"}]}
    (folder / f"{name}_prediction.json").write_text(json.dumps(record))
    return folder / f"{name}_classes.tif"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glaciers", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    rng, n = np.random.default_rng(asked.seed), asked.glaciers
    per_side = int(np.ceil(n**0.5))
    middles = (np.stack(np.divmod(np.arange(n), per_side), 1)[:, ::-1] + rng.uniform(0.45, 0.55, (n, 2))) * CELL
    waves = sum(rng.normal(0, 0.3 / f, (n, 1)) * np.cos(f * ANGLE + rng.uniform(0, 7, (n, 1))) for f in range(1, 7))
    before = 10 ** rng.uniform(0.45, 1.75, (n, 1)) * np.exp(waves).clip(0.5, 1.35)
    after = before * rng.uniform(0.8, 1.0, (n, 1))
    truth = [shapely.area(rings(middles, r)) * PIXEL**2 / 1e6 for r in (before, after)]
    rows = []
    for kind in ("whole", "parts"):
        for error in (0.0, 0.25, 0.5, 1.0):
            with tempfile.TemporaryDirectory() as folder:
                maps = []
                for name, radii, date in (("a", before, "2000-08-01"), ("b", after, "2020-08-01")):
                    off = rng.normal(0, error, (n, 1 if kind == "whole" else 24)).repeat(
                        360 if kind == "whole" else 15, 1
                    )
                    drawn = rings(middles, (radii + off).clip(0.3))
                    maps.append(write(Path(folder), name, drawn, per_side * CELL, date))
                placed = shapely.transform(rings(middles, before), lambda xy: xy * (PIXEL, -PIXEL) + (X, Y))
                ids = [f"G{k:05}" for k in range(n)]
                table = geopandas.GeoDataFrame({"rgi_id": ids}, geometry=placed, crs="EPSG:32645")
                table.to_file(Path(folder) / "rgi.gpkg")
                made = change(*maps, Path(folder) / "out", inventory=Path(folder) / "rgi.gpkg")
                found = pd.read_csv(made["files"]["change csv"])
            true = truth[1] - truth[0]
            scale = found["area_a_km2"].sum() / truth[0].sum()  # map to ground: as areas are equal-area, 1.0008
            held = (found["low_km2"] <= true) & (true <= found["high_km2"])
            row = {"margin": f"{kind} {error:g} px", "bias_percent": 100 * (found["change_km2"].sum() / true.sum() - 1)}
            row |= {"scale": scale, "covered": held.mean(), "beyond_noise": found["beyond_noise"].mean()}
            width = (found["high_km2"] - found["low_km2"]) / truth[0]
            for low, high in zip((0, *SIZES), (*SIZES, np.inf), strict=True):
                part = (truth[0] >= low) & (truth[0] < high)
                if part.any():
                    row[f">={low:g} km2 (n {part.sum()})"] = f"{held[part].mean():.2f} / {width[part].median():.2f}"
            rows.append(row)
    print("covered / median width of the interval of change in areas, by size class")
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
