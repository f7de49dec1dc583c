"""Made-up maps of classes with what lies beside them, and inventories."""

import json
import warnings

import geopandas
import numpy as np
import pandas as pd
import rasterio
from polygons import CRS, GRID, outlines, rectangle
from scenes import write_raster

from glacier_fastai.errors import DataNote
from glacier_fastai.files import file_hash
from glacier_fastai.predict.glaciers import glaciers

RECORD = {"scene": "s.tif", "sensor": "landsat8", "date": "2020-08-01", "hash": "h", "predict": {}}
RECORD |= {"models": [{"bundle": "b", "weight": 1.0, "sha256": "0" * 64}], "calibration": {"area": [-2.0, 1.0]}}


def ground(height=60, width=80):
    """Two glaciers side by side with debris below, a lake, far ice, a speck of ice, and a corner without data."""
    classes = np.zeros((height, width), np.uint8)
    classes[10:30, 10:50] = 1
    classes[25:30, 10:50] = 2
    classes[30:33, 20:24] = 3
    classes[40:50, 60:72] = 1
    classes[55:57, 5:8] = 2
    classes[:8, 70:] = 255
    return classes


TWO = [rectangle(10, 10, 20, 20), rectangle(10, 30, 20, 20)]  # row, column, height, width


def inventory(path, shapes=TWO, grid=None, crs=CRS, **columns):
    shapes = list(shapes)
    columns = columns or {"rgi_id": [f"G{k}" for k in range(len(shapes))]}
    return outlines(path, shapes, crs, **columns)


def write_map(folder, classes, probs=None, stem="s", record=RECORD, grid=GRID, crs=CRS, confidence=True):
    """Write a map, of probabilities in bytes, too, and its record; return its path."""
    where = {"crs": crs, "transform": grid}
    folder.mkdir(exist_ok=True)
    path = write_raster(folder / f"{stem}_classes.tif", classes[None], nodata=255, **where)
    if probs is not None:
        shown = np.take_along_axis(probs, np.where(classes == 255, 0, classes)[None].astype(int), 0)
        for name, values in {"probabilities": probs, "confidence": shown}.items():
            if name == "confidence" and not confidence:
                continue
            kept = np.where(classes == 255, 255, np.rint(values * 254)).astype(np.uint8)
            write_raster(folder / f"{stem}_{name}.tif", kept, nodata=255, **where)
            with rasterio.open(folder / f"{stem}_{name}.tif", "r+") as file:
                file.scales = [1 / 254] * file.count
    if record is not None:
        about = {**record, "sha256": {p.name: file_hash(p) for p in folder.glob(f"{stem}_*.tif")}}
        (folder / f"{stem}_prediction.json").write_text(json.dumps(about))
    return path


def tabled(path, rgi, **options):
    """Return the table as CSV and as GeoPackage, and what was returned."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of libraries
        warnings.simplefilter("ignore", DataNote)
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # of affine's operators
        made = glaciers(path, rgi, **options)
    table = pd.read_csv(made["files"]["glaciers.csv"], dtype={"id": str}).fillna({"id": ""})
    return table, geopandas.read_file(made["files"]["glaciers.gpkg"], layer="glaciers"), made
