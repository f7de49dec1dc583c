"""Glaciers of a map without an inventory: its ice complexes, divided along the drainage of an elevation model."""

from __future__ import annotations

import os
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import rasterio
import shapely
from pyproj import CRS
from rasterio import Affine
from rasterio.features import shapes
from scipy.ndimage import find_objects, label

from ..bands import ICE, IGNORE
from ..core.divides import LEAST, PARAMETERS, divide, margin
from ..data.scenes.address import named
from ..data.scenes.dem import SceneTerrain, Terrain
from ..data.scenes.raster import reading
from ..data.scenes.scene import Place
from ..data.scenes.web import fingerprint
from ..data.sources.inventory import Inventory
from ..errors import DataError, note
from ..files import digest, file_hash
from ..memory import fits
from .glacier_sums import pixel_sides
from .inventories import glims_ids

__all__ = ["PER_PIXEL", "check_divides", "divided"]

SOURCE = "Kienholz et al. 2013, doi 10.3189/2013JoG12J138"
HELD = 6  # bytes for each pixel of a map
PER_PIXEL = 140
"""Bytes for each pixel of the frame around the complex that is divided."""
DEEP = 0.01
"""Share of the ice in deep pits from which on it is said."""


def check_divides(
    dem: str | os.PathLike,  # elevation model, see `data.scenes.dem.Terrain`
    grid: Place,  # of the map
    name: str | os.PathLike,  # what it is called in messages
) -> None:
    """Raise `DataError` if the elevation model cannot be read, or shows other ground."""
    with Terrain(dem) as terrain:
        SceneTerrain(terrain, grid.crs, grid.transform, (grid.height, grid.width), name)


def divided(
    classes: rasterio.DatasetReader,  # map of classes, open
    path: Path,  # its file, for messages
    grid: Place,  # its size and grid
    dem: str | os.PathLike,  # elevation model, see `data.scenes.dem.Terrain`
    min_area: float,  # km2; smaller patches of ice are no glaciers
    notes: list[str],  # see `errors.note`
) -> Inventory:
    """Return the glaciers of a map, each with an id made of a place in it as GLIMS makes them; see `core.divide`.

    Outlines are those of the pixels. What there is no elevation for is noted.

    Raises:
        DataError: The elevation model cannot be read, or shows no ground under the ice; or a complex is too large to be
            held.
    """
    dem, sides, size = named(dem), pixel_sides(grid), (grid.height, grid.width)
    around, held = margin(sides), f"{path}: {size[0]:,} x {size[1]:,} px"
    fits(float(HELD) * (size[0] + 2 * around) * (size[1] + 2 * around), held, "cut the map")
    with reading(path):
        codes = np.pad(classes.read(1), around, constant_values=IGNORE)
    complexes, _ = label(np.isin(codes, ICE))  # whose pixels touch along their sides
    km2 = np.bincount(complexes.ravel()) * sides[0] * sides[1] / 1e6
    found, known, asked, deep = [], 0, 0, 0
    with Terrain(dem) as file:
        terrain = SceneTerrain(file, grid.crs, grid.transform, size, path.name)
        for k, window in enumerate(find_objects(complexes), 1):
            if km2[k] < min_area:
                continue
            frame = tuple(slice(span.start - around, span.stop + around) for span in window)
            mask = complexes[frame] == k
            parts, (row, col) = mask.astype(np.int32), (span.start - around for span in frame)
            if km2[k] >= LEAST:
                what = f"{path}: {mask.shape[0]:,} x {mask.shape[1]:,} px around a complex of {km2[k]:,.0f} km2"
                fits(float(PER_PIXEL) * mask.size, what, "cut the map, or give an inventory")
                (heights,) = terrain.read(("elevation",), row, col, *mask.shape)
                known, asked = known + np.isfinite(heights[mask]).sum(), asked + mask.sum()
                parts, wrong = divide(mask, heights, codes[frame] == IGNORE, sides)
                deep += wrong
            drawn = shapes(parts, parts > 0, transform=Affine.translation(col, row))
            found += [shapely.geometry.shape(polygon) for polygon, _ in drawn]
        odd = terrain.notes
    for text in odd:
        note(text, notes)
    if asked and not known:
        raise DataError(f"{dem}: has no heights under the ice of {path.name}; give another elevation model")
    if known < asked:
        share = max(1 - known / asked, 1e-4)
        note(f"{dem}: has no heights under {share:.2%} of the ice that is divided; the nearest stand in there", notes)
    if deep > DEEP * asked:
        note(
            f"{dem}: {deep / asked:.0%} of the ice that is divided lies in pits deeper than {PARAMETERS['pit_m']:g} m, "
            "which glaciers do not have; do not trust divides there, and give a better elevation model",
            notes,
        )
    polygons = np.array(found, object)
    xy = geopandas.GeoSeries(shapely.point_on_surface(polygons)).affine_transform(
        [grid.transform[k] for k in (0, 1, 3, 4, 2, 5)]
    )
    places = xy.set_crs(CRS(grid.crs)).to_crs("EPSG:4326")
    ids = glims_ids(places.x.to_numpy(), places.y.to_numpy())
    table = pd.DataFrame({"id": ids, "glims_id": ids}).assign(name="", date="", km2=np.nan)
    order = np.argsort(table["id"].to_numpy(object), kind="stable")
    made = {"dem": dem.name, "dem_sha256": fingerprint(dem), "by": SOURCE, **PARAMETERS}
    sha256 = digest([made, file_hash(path), min_area], 64)
    n = len(polygons)
    return Inventory(
        str(dem), sha256, table.iloc[order].reset_index(drop=True), polygons[order], np.ones(n), np.zeros(n, bool), made
    )
