"""`slices.geojson` of HKH: where each slice lies.

It was written with latitudes from the bottom up, while slices were cut from the top down. Where higher numbers lie
further north, footprints are mirrored north-south in the extent of their scene's; they end up too far south by the
scene's last rows, less than a tile, which are not in the file: exact within a scene, nearly so between scenes. A
footprint covers its slice but for the last 6 rows and columns, the overlap.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import PureWindowsPath
from typing import Any

import numpy as np

from ...errors import DataError
from ...reading import parse_json, refusing
from ..scenes.raster import parse_crs

__all__ = ["OVERLAP", "SLICE", "read_footprints"]

OVERLAP = 6  # of neighbouring slices, pixels
SLICE = re.compile(r"slice_(\d+)_(img|mask)_(\d+)\.npy", re.ASCII)


def read_footprints(
    where: str,  # file named in errors
    text: bytes,  # its content
    size: int,  # side of a slice, pixels
) -> tuple[dict[str, dict[str, Any]], int]:
    """Return scene, row, col, crs and transform of each tile by its id, and how many scenes are mirrored in the file.

    Raises:
        DataError: Not what it should be.
    """
    scenes, known, mirrored = defaultdict(list), {}, 0
    table = parse_json(text, where, DataError)
    with refusing(where, DataError, "damaged", "copy it again, or put it away to split by scene"):
        crs = table["crs"]["properties"]["name"] if table.get("crs") else "CRS84"  # what GeoJSON has without a word
        crs = "EPSG:4326" if crs.endswith("CRS84") else parse_crs(crs).to_string()
        for feature in table["features"]:
            about = feature["properties"]
            if m := SLICE.fullmatch(PureWindowsPath(str(about["img_slice"])).name):  # it knows both kinds of slash
                ring = np.array(feature["geometry"]["coordinates"][0], np.float64)[:, :2]
                source = PureWindowsPath(str(about.get("img_source") or f"slice_{m[1]}")).stem
                scenes[m[1]].append((m[3], source, *ring.min(0), *ring.max(0)))
        for scene, rows in scenes.items():
            left, bottom, right, top = np.array([r[2:] for r in rows]).T
            number = np.array([r[0] for r in rows], np.int64)
            if (number - number.mean()) @ (top - top.mean()) > 0:
                ends = bottom.min() + top.max()
                bottom, top, mirrored = ends - top, ends - bottom, mirrored + 1
            a, e = (right - left) / (size - OVERLAP), (top - bottom) / (size - OVERLAP)
            if not ((a > 0) & (e > 0) & np.isfinite(a + e)).all():
                raise ValueError(f"a footprint of scene {scene} has no area")
            row, col = np.rint((top.max() - top) / e), np.rint((left - left.min()) / a)
            for k, (n, source, *_) in enumerate(rows):
                corner = {"scene": source, "row": int(row[k]), "col": int(col[k]), "crs": crs}
                transform = " ".join(repr(float(v)) for v in (a[k], 0, left[k], 0, -e[k], top[k]))
                known[f"slice_{scene}_{n}"] = corner | {"transform": transform}
    return known, mirrored
