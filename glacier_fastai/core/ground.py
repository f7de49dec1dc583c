"""Ground: where tiles lie on the Earth, in whatever CRS they are written, and how much of it was seen before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from shapely import STRtree
from shapely.geometry.base import BaseGeometry

__all__ = ["SEEN", "coarse", "latitude_longitude", "outlines", "share"]

SEEN = 0.05
"""Share of a tile above which it lies on other ground: neighbours share less, for outlines are rounded."""

STEPS = 8  # an edge is bent in another projection: so many pieces follow it
FINEST = 500  # a coarse footprint is rounded to less than this part of a tile's side


def outlines(
    crs: CRS,  # of the tiles, without heights
    transform: np.ndarray,  # (N, 6) affine coefficients a b c d e f of each
    size: int,  # side of a tile, pixels
    grow: float = 0.0,  # by this share of its side each tile is made larger, so that what touches overlaps
) -> np.ndarray:
    """Return the outline of each tile in longitude and latitude, degrees: object array `(N,)` of polygons.

    Longitudes are from -180 to 180: a polygon across the antimeridian is cut there. None stands for a tile that has no
    place on the Earth, or lies where its projection has none.

    >>> tile = outlines(CRS("EPSG:32660"), np.array([[30, 0, 800_000, 0, -30, 10_000]]), 64)[0]
    >>> tile.geom_type, [round(x, 2) for x in tile.bounds]
    ('Polygon', [179.7, 0.07, 179.71, 0.09])
    """
    found = np.full(len(transform), None, object)
    try:
        degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    except ProjError:  # a local grid, or another planet's
        return found
    t = np.arange(STEPS) / STEPS
    ring = np.stack([np.r_[t, t * 0 + 1, 1 - t, t * 0], np.r_[t * 0, t, t * 0 + 1, 1 - t]])
    # without growth a hair smaller: a corner at a pole would have no longitude
    col, row = (0.5 + (ring - 0.5) * (1 + (grow or -1e-6))) * size
    a, b, c, d, e, f = np.asarray(transform, np.float64).T[:, :, None]
    lon, lat = degrees.transform(a * col + b * row + c, d * col + e * row + f)
    on_earth = np.isfinite(lon).all(1) & np.isfinite(lat).all(1)
    for i in np.flatnonzero(on_earth):
        polygon = _polygon(lon[i], lat[i].clip(-90, 90))
        found[i] = polygon if polygon.area else None
    return found


def latitude_longitude(
    crs: CRS,  # of a grid, without heights
    transform: Sequence[float],  # its affine coefficients a b c d e f
    size: tuple[int, int],  # rows and columns wanted
    first: tuple[int, int] = (0, 0),  # row and column of the first of them
) -> np.ndarray:
    """Return latitude and longitude of the centres of pixels, degrees, float32 `(2, H, W)`; 0 where there is none.

    >>> latitude_longitude(CRS("EPSG:4326"), (0.5, 0, 86, 0, -0.5, 28), (1, 2)).tolist()
    [[[27.75, 27.75]], [[86.25, 86.75]]]
    """
    row, col = (np.arange(n)[:, None] + start + 0.5 for n, start in zip(size, first, strict=True))
    a, b, c, d, e, f = transform[:6]
    try:
        degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    except ProjError:  # a local grid, or another planet's
        return np.zeros((2, *size), np.float32)
    lon, lat = degrees.transform(a * col.T + b * row + c, d * col.T + e * row + f)
    on_earth = np.isfinite(lon) & np.isfinite(lat)
    lon = np.where(on_earth, lon, 0)
    return np.where(on_earth, [lat, lon - 360 * np.floor((lon + 180) / 360)], 0).astype(np.float32)


def _polygon(lon: np.ndarray, lat: np.ndarray) -> BaseGeometry:
    """Return the polygon of a ring that is not closed."""
    lon, lat = np.unwrap(np.r_[lon, lon[0]], period=360), np.r_[lat, lat[0]]
    lon -= 360 * np.floor((lon.mean() + 180) / 360)
    if abs(lon[-1] - lon[0]) > 180:  # it runs around a pole, which lies inside
        lon, lat = np.r_[lon, lon[-1], lon[0]], np.r_[lat, [math.copysign(90, lat.mean())] * 2]
    polygon = shapely.Polygon(np.column_stack([lon, lat]))
    if not polygon.is_valid:
        polygon = shapely.make_valid(polygon, method="structure", keep_collapsed=False)
    if lon.min() >= -180 and lon.max() <= 180:
        return polygon
    turned = [shapely.transform(polygon, lambda xy, by=by: xy + (by, 0)) for by in (-360, 0, 360)]
    parts = shapely.get_parts(shapely.intersection(turned, shapely.box(-180, -90, 180, 90)))
    return shapely.union_all(parts[shapely.get_dimensions(parts) == 2])


def coarse(
    tiles: np.ndarray,  # as from `outlines`
) -> BaseGeometry:
    """Return the ground that tiles cover together, rounded to less than 1/500 of the side of the smallest.

    >>> print(coarse(np.array([shapely.box(0, 0, 1, 1.00004), None, shapely.box(1, 0, 2, 1)])).wkt)
    POLYGON ((0 0, 0 1, 2 1, 2 0, 0 0))
    """
    tiles = tiles[~shapely.is_missing(tiles)]
    if not len(tiles):
        return shapely.Polygon()
    _, south, _, north = shapely.bounds(tiles).T
    grid = 10.0 ** math.floor(math.log10((north - south).min() / FINEST))
    ground = shapely.union_all(shapely.set_precision(tiles, grid))
    return shapely.set_precision(shapely.simplify(ground, grid), grid).normalize()


def share(
    tiles: np.ndarray,  # (N,), as from `outlines`
    ground: BaseGeometry,  # as from `coarse`
) -> np.ndarray:
    """Return the share of each tile that lies on some ground, float64 `(N,)`; 0 where it has no place.

    >>> share(np.array([shapely.box(0, 0, 1, 1), None]), shapely.box(0, 0, 0.5, 1)).tolist()
    [0.5, 0.0]
    """
    parts = shapely.get_parts(ground)
    shapely.prepare(parts)
    i, k = STRtree(parts).query(tiles, predicate="intersects")
    area = shapely.area(shapely.intersection(tiles[i], parts[k]))
    return np.bincount(i, area, len(tiles)) / np.nan_to_num(shapely.area(tiles), nan=1.0)
