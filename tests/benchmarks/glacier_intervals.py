"""How often intervals of glaciers' areas hold the true ones, and how wide they are, by size class.

    python tests/benchmarks/glacier_intervals.py CROSSVAL TILES [--outlines rgi.gpkg] [--larger 0 2 4]

TILES is the store that CROSSVAL was trained on. Each fold is held out in turn: the ensemble is calibrated on the other
folds (`calibrate`, out-of-fold predictions), and the intervals of the glaciers that lie in the fold are compared with
their true areas. The map of a scene is put together of what each model says of the tiles it never saw; truth is the
label. Glaciers are those of the inventory, of which the label should be made, or without one connected true ice.

    connected ice: intervals fitted to mapped patches, as all were before
    within outlines: intervals fitted to the ice within outlines
    buffer: margin x half a pixel, as is usual in the field

--larger: outlines that are too large by some pixels all around, as those of an older inventory are.
"""

import argparse
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import rasterio
import shapely
import torch
from rasterio.features import shapes
from skimage.measure import label as components

from glacier_fastai.bands import ICE, ICE_OF_ANY_KIND
from glacier_fastai.model.calibrate import calibrate
from glacier_fastai.model.ensemble import Ensemble
from glacier_fastai.model.oof import OutOfFold
from glacier_fastai.predict.change import SIZES
from glacier_fastai.predict.glaciers import glaciers


def without(crossval, fold, out):
    """Write the out-of-fold predictions of all folds but one, and return the ensemble that is calibrated on them."""
    oof = OutOfFold(crossval)
    kept = np.flatnonzero(oof.table["fold"] != fold)
    (out / "oof").mkdir(parents=True)
    shutil.copy(oof.path / "models.json", out / "oof")
    for name in oof.models:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(oof.folder / name, out / name)
    oof.table.iloc[kept].to_csv(out / "oof" / "tiles.csv", index=False)
    for name in ("probabilities", "labels"):
        np.save(out / "oof" / f"{name}.npy", np.asarray(getattr(oof, name)[kept]))
    calibrate([out], out / "ensemble.yaml")
    return Ensemble.load([out / "ensemble.yaml"])


class Mosaic:
    """Probabilities, labels and folds of a scene: of each pixel those of the tile whose centre is nearest."""

    def __init__(self, oof, tiles):
        first, size = tiles.iloc[0], oof.labels.shape[1]
        shape = tiles["row"].max() + size, tiles["col"].max() + size
        self.crs = first["crs"]
        numbers = first["transform"].strip("[]()").replace(",", " ").split()
        shift = rasterio.Affine.translation(-first["col"], -first["row"])
        self.transform = rasterio.Affine(*map(float, numbers[:6])) @ shift
        self.probs = np.full((oof.probabilities.shape[1], *shape), 0.25, np.float32)
        self.labels, self.fold = np.full(shape, 255, np.uint8), np.full(shape, -1)
        away = np.hypot(*np.meshgrid(*[np.arange(size) - size / 2] * 2, indexing="ij"))
        nearest = np.full(shape, np.inf)
        for tile in tiles.itertuples():
            at = np.s_[tile.row : tile.row + size, tile.col : tile.col + size]
            probs, labels = oof.tile(tile.place)
            here = (away < nearest[at]) & (labels != 255)
            nearest[at][here] = away[here]
            self.probs[:, *at][:, here], self.labels[at][here] = probs[:, here], labels[here]
            self.fold[at][here] = tile.fold

    def write(self, path, values, **more):
        profile = {"driver": "GTiff", "count": len(values), "dtype": "uint8", "nodata": 255, "crs": self.crs}
        profile |= {"transform": self.transform, "height": values.shape[1], "width": values.shape[2]}
        with rasterio.open(path, "w", **profile) as file:
            file.write(values)
            file.scales = more.get("scales", file.scales)
        return path

    def outlines(self, path, inventory, larger):
        """Write the inventory, or connected true ice as one, `larger` pixels too large all around."""
        side = abs(self.transform.a)
        if inventory:
            table = geopandas.read_file(inventory).to_crs(self.crs)
        else:
            regions = components(np.isin(self.labels, (*ICE, ICE_OF_ANY_KIND)), connectivity=1).astype(np.int32)
            found = [(shapely.geometry.shape(s), int(k)) for s, k in shapes(regions, transform=self.transform) if k]
            ids = {"rgi_id": [f"{k:05}" for _, k in found]}
            table = geopandas.GeoDataFrame(ids, geometry=[s for s, _ in found], crs=self.crs)
        if larger:
            table.geometry = table.make_valid().buffer(larger * side)
        if table.empty:
            return None
        table.to_file(path)
        return path

    def run(self, ensembles, inventory, larger):
        """Return a row per glacier, held out by the ensemble of its fold."""
        rows, seen = [], self.fold >= 0
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rgi = self.outlines(folder / "rgi.gpkg", inventory, larger)
            if rgi is None:
                return []
            truth = np.where(self.labels == ICE_OF_ANY_KIND, ICE[0], self.labels)
            true = glaciers(self.write(folder / "true_classes.tif", truth[None]), rgi)
            true = geopandas.read_file(true["files"]["glaciers.gpkg"]).query("id != ''").set_index("id")
            points = true.geometry.representative_point()
            for fold in np.unique(self.fold[seen]):
                tables = {}
                for kind in ("connected ice", "within outlines"):
                    ensemble, stem = ensembles[fold], f"{fold}{kind[:4]}"
                    fitted = ensemble.calibration
                    if kind == "connected ice":
                        fitted = fitted.model_copy(update={"glacier": None})
                    elif fitted.glacier is None:
                        raise SystemExit("too few glaciers to fit intervals to")
                    classes, probs = ensemble.decide(torch.from_numpy(self.probs))
                    path = self.write(folder / f"{stem}_classes.tif", np.where(seen, classes, 255)[None].astype("u1"))
                    kept = np.where(seen, np.rint(probs * 254), 255).astype(np.uint8)
                    self.write(folder / f"{stem}_probabilities.tif", kept, scales=[1 / 254] * len(kept))
                    about = json.dumps({"calibration": fitted.model_dump(mode="json")})
                    (folder / f"{stem}_prediction.json").write_text(about)
                    found = glaciers(path, rgi)["files"]["glaciers.gpkg"]
                    tables[kind] = geopandas.read_file(found).query("id != ''").set_index("id")
                table = tables["within outlines"]
                for key in table.index[table["area_low_km2"].notna() & (true["area_km2"] > 0)]:
                    col, row = ~self.transform * (points[key].x, points[key].y)
                    if self.fold[int(row), int(col)] != fold:
                        continue
                    own = {"true": true["area_km2"][key], "mapped": table["area_km2"][key], "fold": fold}
                    own["debris"] = table["debris_share"][key]
                    for kind, each in tables.items():
                        own[kind] = each["area_low_km2"][key], each["area_high_km2"][key]
                    own["buffer"] = tuple(own["mapped"] + k * table["buffer_km2"][key] for k in (-1, 1))
                    rows.append(own)
        return rows


def told(found):
    """Return the table that is printed."""
    rows = []
    classes = [*zip((0, *SIZES), (*SIZES, np.inf), strict=True), (0, np.inf)]
    parts = {f"{a:g} to {b:g}": (found["true"] >= a) & (found["true"] < b) for a, b in classes}
    parts |= {"debris < 0.25": found["debris"] < 0.25, "debris >= 0.25": found["debris"] >= 0.25}
    parts |= {f"fold {k}": found["fold"] == k for k in np.unique(found["fold"])} if found["fold"].nunique() < 9 else {}
    for name, part in parts.items():
        if not part.any():
            continue
        row = {"km2": name, "glaciers": part.sum()}
        for kind in ("connected ice", "within outlines", "buffer"):
            low, high = np.array(found[kind][part].tolist()).T
            true = found["true"][part].to_numpy()
            row |= {f"{kind} holds": ((low <= true) & (true <= high)).mean(), "width": np.median((high - low) / true)}
            row[f"{kind} width"] = row.pop("width")
        rows.append(row)
    return pd.DataFrame(rows).round(2).to_string(index=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crossval", type=Path)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--outlines", type=Path)
    parser.add_argument("--larger", type=float, nargs="+", default=[0.0])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    oof, tiles = OutOfFold(args.crossval), pd.read_csv(args.tiles / "tiles.csv")
    table = oof.table.assign(place=np.arange(len(oof.table))).merge(tiles, on="id")
    with tempfile.TemporaryDirectory(dir=args.crossval.parent) as name:  # beside it, for links
        ensembles = {k: without(args.crossval, k, Path(name) / str(k)) for k in oof.table["fold"].unique()}
        scenes = [Mosaic(oof, part) for _, part in table.groupby("scene")]
        for larger in args.larger:
            found = pd.DataFrame([row for scene in scenes for row in scene.run(ensembles, args.outlines, larger)])
            print(f"\noutlines too large by {larger:g} px, {len(scenes)} scenes\n{told(found)}", flush=True)


if __name__ == "__main__":
    main()
