"""How often intervals of glaciers' areas hold the true ones, and how wide they are, by size class.

    python tests/benchmarks/glacier_intervals.py CROSSVAL TILES LABEL OUTLINES

The map is put together of what each model of a cross-validation says of the tiles it never saw, decided and calibrated
as its ensemble does; its glaciers' areas are compared with those of the label. TILES is the store of one scene, LABEL
its raster, OUTLINES the inventory. Intervals were fitted to the connected ice of the same tiles, not to glaciers.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import torch

from glacier_fastai.model.ensemble import Ensemble
from glacier_fastai.predict.change import SIZES
from glacier_fastai.predict.glaciers import glaciers


def out_of_fold(crossval, tiles, shape):
    """Return the mean probabilities `(4, H, W)`, and how many tiles say something of a pixel."""
    table = pd.read_csv(crossval / "oof" / "tiles.csv").merge(pd.read_csv(tiles / "tiles.csv"), on="id")
    said = np.load(crossval / "oof" / "probabilities.npy", mmap_mode="r")
    total, n = np.zeros((said.shape[1], *shape), np.float32), np.zeros(shape, np.float32)
    for k, tile in enumerate(table.itertuples()):
        high, wide = min(said.shape[2], shape[0] - tile.row), min(said.shape[3], shape[1] - tile.col)
        at = np.s_[tile.row : tile.row + high, tile.col : tile.col + wide]
        probs = said[k, :, :high, :wide].astype(np.float32)
        known = np.isfinite(probs).all(0)
        total[:, *at] += np.where(known, probs, 0)
        n[at] += known
    return np.where(n > 0, total / np.maximum(n, 1), 0.25), n


def write(path, values, like, **more):
    profile = {"driver": "GTiff", "count": len(values), "dtype": "uint8", "nodata": 255}
    profile |= {k: like.profile[k] for k in ("crs", "transform", "height", "width")}
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
        file.scales = more.get("scales", file.scales)
    return path


def main():
    crossval, tiles, label, outlines = map(Path, sys.argv[1:])
    warnings.simplefilter("ignore")
    ensemble = Ensemble.load([crossval / "ensemble.yaml"])
    with tempfile.TemporaryDirectory() as name, rasterio.open(label) as like:
        folder, truth = Path(name), like.read()
        mean, n = out_of_fold(crossval, tiles, like.shape)
        classes, probs = (np.asarray(x) for x in ensemble.decide(torch.from_numpy(mean.astype(np.float32))))
        mapped = write(folder / "oof_classes.tif", np.where(n > 0, classes, 255)[None].astype(np.uint8), like)
        kept = np.where(n > 0, np.rint(probs * 254), 255).astype(np.uint8)
        write(folder / "oof_probabilities.tif", kept, like, scales=[1 / 254] * 4)
        about = {"calibration": ensemble.calibration.model_dump(mode="json")}
        (folder / "oof_prediction.json").write_text(json.dumps(about))
        true = write(folder / "true_classes.tif", truth, like)
        made = [pd.read_csv(glaciers(path, outlines)["files"]["glaciers.csv"]) for path in (mapped, true)]
    found, true = (table[table["id"].notna()].set_index("id") for table in made)
    found["true"] = true["area_km2"]
    found = found[found["area_low_km2"].notna()]
    ends = {
        "calibrated": (found["area_low_km2"], found["area_high_km2"]),
        "buffer": (found["area_km2"] - found["buffer_km2"], found["area_km2"] + found["buffer_km2"]),
    }
    rows = []
    for low, high in [*zip((0, *SIZES), (*SIZES, np.inf), strict=True), (0, np.inf)]:
        part = (found["true"] >= low) & (found["true"] < high)
        row = {"km2": f"{low:g} to {high:g}", "glaciers": part.sum()}
        for kind, (lower, upper) in ends.items():
            held = (lower <= found["true"]) & (found["true"] <= upper)
            row |= {
                f"{kind} holds": held[part].mean(),
                f"{kind} width": ((upper - lower) / found["true"])[part].median(),
            }
        rows.append(row)
    print(pd.DataFrame(rows).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
