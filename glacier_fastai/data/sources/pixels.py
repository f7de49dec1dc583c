"""Polygons of any coordinate reference system, brought to the pixels of a scene."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import shapely
from pyproj import CRS, Transformer

from ...errors import DataError
from ...reading import refusing
from ..scenes.raster import horizontal, same_crs, unknown_shift

__all__ = ["ToPixels", "finite", "make_valid", "tangled", "turn", "unwrap"]

Project = Callable[..., tuple[Any, Any]]
TANGLED = 1_000_000  # pairs of segments whose boxes overlap, each twice; repaired in seconds
GRID = 65  # places along each side of a scene that show where its ground lies in another CRS


def turn(
    crs: CRS,
) -> float | None:
    """Return what a full turn of longitude is in the unit of a geographic CRS, None for others.

    >>> turn(CRS("EPSG:4326")), turn(CRS("EPSG:4807")), turn(CRS("EPSG:3413"))
    (360.0, 400.0, None)
    """
    return round(2 * np.pi / crs.axis_info[0].unit_conversion_factor, 9) if crs.is_geographic else None


def make_valid(
    polygons: np.ndarray,  # object array of polygons, valid or not
) -> np.ndarray:
    """Return polygons whose rings neither cross nor touch themselves, and nothing else; empty without any area.

    Ground that a ring encloses, in whatever direction, belongs to the polygon; what lies in several of its parts counts
    once, and holes are cut out of all.

    >>> bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    >>> bow.area, make_valid(np.array([bow], object))[0].area
    (0.0, 2.0)
    """
    parts, index = shapely.get_parts(polygons, return_index=True)  # of collections, the polygons alone
    parts, index = shapely.get_parts(parts), np.repeat(index, shapely.get_num_geometries(parts))
    area = shapely.get_dimensions(parts) == 2
    whole = np.empty(len(polygons), object)
    whole[:] = shapely.MultiPolygon()
    shapely.multipolygons(parts[area], indices=index[area], out=whole)
    return shapely.make_valid(whole, method="structure", keep_collapsed=False)


def tangled(
    polygon: shapely.Geometry,
) -> bool:
    """Return whether a polygon's segments overlap so often, by their boxes, that `make_valid` would take for ever.

    >>> tangled(shapely.box(0, 0, 1, 1)), tangled(shapely.Polygon(np.random.default_rng(0).random((3000, 2))))
    (False, True)
    """
    xy, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(polygon)), return_index=True)
    segments = shapely.linestrings(np.stack([xy[:-1], xy[1:]], 1)[ring[1:] == ring[:-1]])
    tree, found, step = shapely.STRtree(segments), 0, max(10**7 // max(len(segments), 1), 1)
    for k in range(0, len(segments), step):
        found += tree.query(segments[k : k + step]).shape[1]
        if found > max(TANGLED, 100 * len(segments)):
            return True
    return False


def unwrap(
    polygons: np.ndarray,  # object array of polygons in longitude and latitude
    period: float,  # of longitude
) -> tuple[np.ndarray, np.ndarray]:
    """Return polygons whose edges go the short way round, and which of them went the long way.

    A polygon across 180 degrees that was projected point by point has an edge from 179.9 to -179.9; it goes on to
    180.1. One around a pole ends where it did not begin; it is closed by way of the pole. A frame of the whole world
    stays.

    >>> strip = shapely.Polygon([(179, 60), (-179, 60), (-179, 61), (179, 61)])
    >>> unwrap(np.array([strip], object), 360)[0][0].bounds
    (179.0, 60.0, 181.0, 61.0)
    """
    out, jumps = polygons.copy(), np.zeros(len(polygons), bool)
    west, _, east, _ = shapely.bounds(polygons).T
    surface = np.isin(shapely.get_type_id(polygons), (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    for i in np.flatnonzero(surface & (east - west > period / 2)):
        parts = [_unwrap_part(part, period) for part in shapely.get_parts(polygons[i])]
        jumps[i] = any(moved for _, moved in parts)
        if jumps[i]:
            out[i] = shapely.multipolygons([part for part, _ in parts]) if len(parts) > 1 else parts[0][0]
    return out, jumps


def _unwrap_part(part: Any, period: float) -> tuple[Any, bool]:
    rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(part)]
    if not any((abs(np.diff(ring[:, 0])) > period / 2).any() for ring in rings):
        return part, False
    pole = np.copysign(period / 4, rings[0][:, 1].mean())
    straight: list[np.ndarray] = []
    for xy in rings:
        turns = np.round(np.diff(xy[:, 0], prepend=xy[0, 0]) / period).cumsum()  # np.unwrap adds up rounding
        x = xy[:, 0] - period * turns
        xy = np.column_stack([x, xy[:, 1]])
        if abs(x[-1] - x[0]) > period / 2:
            if np.isclose(abs(xy[:, 1]).max(), period / 4):
                return part, False  # it goes by way of the pole already
            xy = np.vstack([xy, [[x[-1], pole], [x[0], pole], xy[0]]])
        if straight:  # a hole lies where its polygon does
            middle = straight[0][:, 0].min() + np.ptp(straight[0][:, 0]) / 2
            xy[:, 0] += period * np.round((middle - xy[:, 0].mean()) / period)
        straight.append(xy)
    moved = shapely.Polygon(straight[0], straight[1:])
    if moved.area < 1e-9 * part.area:
        return part, False
    return moved, True


class ToPixels:
    """Brings polygons to the pixels of a scene: x in columns, y in rows from its upper left corner.

    The scene's ground is looked for in the CRS of the polygons at many places, at its rim and within, as its corners do
    not tell how far it reaches near a pole. What lies beyond, with some margin, is cut off before it is projected.
    """

    def __init__(
        self,
        crs: Any,  # coordinate reference system of the polygons
        scene_crs: Any,
        transform: Any,  # affine geotransform of the scene
        shape: tuple[int, int],  # its rows and columns
        path: Any,  # the polygons' file, for messages
        scene: Any,  # the scene's
    ):
        own, to = _horizontal(crs, path), _horizontal(scene_crs, scene)
        self.shape, self.inverse = shape, ~transform
        self.turn, self.path, self.scene = turn(own), path, scene
        self.project: Project | None = None
        self.scene_turn: float | None = None  # where longitudes of the scene have to be unwrapped, too
        col, row = np.meshgrid(np.linspace(0, shape[1], GRID), np.linspace(0, shape[0], GRID))
        x, y = _affine(transform, col, row)
        self.middle = x[GRID // 2, GRID // 2]
        self.odd = ""
        """What to say of how the two CRSs go together."""
        if not same_crs(own, to):
            for which, what in ((to, scene), (own, path)):
                if which.geodetic_crs is None:
                    raise DataError(
                        f"{what}: its coordinate reference system ({which.name}) does not lead to the Earth, so "
                        f"{path} and {scene} cannot be laid on one another; assign the right one"
                    )
            what = f"cannot be brought to the coordinate reference system of {scene}"
            with refusing(path, DataError, what, "assign the right ones"):
                self.project = project = Transformer.from_crs(own, to, always_xy=True).transform
                at = Transformer.from_crs(to, own, always_xy=True).transform(x, y)
            self.odd = unknown_shift(own, to, transform, shape)
            self.scene_turn = turn(to) or _seam(project, x, *at)
            x, y = at
        self.frame, self.step = self._ground(x, y)

    def _ground(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
        """Return left, bottom, right, top around the scene in the polygons' CRS, and how long an edge may be there."""
        x, y = (np.where(np.isfinite(x) & np.isfinite(y), v, np.nan) for v in (x, y))
        if np.isnan(x).all():
            raise DataError(f"{self.scene}: does not lie where the coordinate reference system of {self.path} holds")
        if self.turn:
            middle = x[GRID // 2, GRID // 2]
            middle = np.nanmedian(x) if np.isnan(middle) else middle
            x = _about(x, middle, self.turn)
        steps = [np.hypot(np.diff(x, axis=k), np.diff(y, axis=k)) for k in (0, 1)]
        step = float(np.nanmedian(np.concatenate([s.ravel() for s in steps])))
        frame = np.array([np.nanmin(x), np.nanmin(y), np.nanmax(x), np.nanmax(y)])
        margin = 0.1 * (frame[2:] - frame[:2]) + step
        frame += np.concatenate([-margin, margin])
        if self.turn:
            for pole in (-self.turn / 4, self.turn / 4):
                if self.project is not None and self._near(*self.project(middle, pole)):
                    frame = np.array([middle - self.turn, min(frame[1], pole), middle + self.turn, max(frame[3], pole)])
            half = self.turn / 2
            frame[[0, 2]] = frame[[0, 2]].clip(middle - half, middle + half)
            if self.project is not None:
                frame[[1, 3]] = frame[[1, 3]].clip(-half / 2, half / 2)
        return frame, step * max(1 / 8, 2 * (GRID - 1) / max(self.shape))

    def _near(self, x: float, y: float) -> bool:
        """Return whether a place in the scene's CRS lies on the scene or close by."""
        col, row = _affine(self.inverse, x, y)
        height, width = self.shape
        return bool(-0.1 * width <= col <= 1.1 * width and -0.1 * height <= row <= 1.1 * height)

    def _near_middle(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _about(x, self.middle, self.scene_turn or np.inf), y

    def candidates(
        self,
        bounds: np.ndarray,  # (n, 4) left, bottom, right, top of polygons, in their CRS
    ) -> np.ndarray:
        """Return the positions of those that may lie on the scene."""
        left, bottom, right, top = bounds.T
        near = np.zeros(len(bounds), bool)
        for shift in self._shifts():
            near |= (left + shift <= self.frame[2]) & (right + shift >= self.frame[0])
        near &= (bottom <= self.frame[3]) & (top >= self.frame[1])
        if self.turn:
            near |= right - left > self.turn / 2  # across 180 degrees or around a pole: known when it is unwrapped
        return np.flatnonzero(near)

    def _shifts(self) -> list[float]:
        return [k * self.turn for k in range(-2, 3)] if self.turn else [0.0]

    def on(
        self,
        polygons: np.ndarray,  # object array, in their CRS
    ) -> np.ndarray:
        """Return where polygons meet the scene's ground, which may be wider than the scene; bool `(n,)`."""
        frame, out = shapely.box(*self.frame), np.zeros(len(polygons), bool)
        for shift in self._shifts():
            out |= shapely.intersects(_moved(polygons, shift), frame)
        return out

    def __call__(
        self,
        polygons: np.ndarray,  # object array of valid polygons, in their CRS, their longitudes unwrapped
    ) -> np.ndarray:
        """Return what of the polygons lies about the scene, in pixels; empty where nothing does."""
        frame, pieces, index = shapely.box(*self.frame), [], []
        left, bottom, right, top = shapely.bounds(polygons).T
        for shift in self._shifts():
            meets = (left + shift <= self.frame[2]) & (right + shift >= self.frame[0])
            meets &= (bottom <= self.frame[3]) & (top >= self.frame[1])
            at = np.flatnonzero(meets)
            piece = _moved(polygons[at], shift)
            inside = (left[at] + shift >= self.frame[0]) & (right[at] + shift <= self.frame[2])
            inside &= (bottom[at] >= self.frame[1]) & (top[at] <= self.frame[3])
            piece[~inside] = shapely.intersection(piece[~inside], frame)
            pieces.append(piece)
            index.append(at)
        found, of = np.concatenate(pieces), np.concatenate(index)
        if self.project is not None:
            xy, edge_of = shapely.get_coordinates(found, return_index=True)
            long = np.unique(edge_of[1:][np.hypot(*np.diff(xy, axis=0).T) > self.step])
            found[long] = shapely.segmentize(found[long], self.step)
            found = finite(shapely.transform(found, self.project, interleaved=False))
            if self.scene_turn:
                found = shapely.transform(found, self._near_middle, interleaved=False)
                found, _ = unwrap(found, self.scene_turn)
                # what lies across the seam of a scene of the whole world is seen at both of its ends
                found = np.concatenate([found, *(_moved(found, k * self.scene_turn) for k in (-1, 1))])
                of = np.tile(of, 3)
        found = shapely.transform(found, partial(_affine, self.inverse), interleaved=False)
        if self.scene_turn:
            first = np.arange(len(found)) < len(found) / 3
            kept = first | shapely.intersects(found, shapely.box(0, 0, *self.shape[::-1]))
            found, of = found[kept], of[kept]
        parts, part_of = shapely.get_parts(found, return_index=True)
        area = shapely.get_dimensions(parts) == 2  # where a polygon only touches the frame, a line is left of it
        parts, part_of = parts[area], of[part_of[area]]
        order = np.argsort(part_of, kind="stable")
        out = np.empty(len(polygons), object)
        out[:] = shapely.MultiPolygon()
        shapely.multipolygons(parts[order], indices=part_of[order], out=out)
        return out


def _horizontal(crs: Any, path: Any) -> CRS:
    with refusing(path, DataError, "its coordinate reference system cannot be read", "assign one"):
        return horizontal(crs)


def _seam(project: Project, x: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> float | None:
    """Return after how much x comes back, of a cylindrical projection whose seam the scene crosses."""
    apart = abs(x - project(lon, lat)[0])
    apart = apart[np.isfinite(apart)]
    return float(apart.max()) if apart.size and apart.max() > np.ptp(x) else None


def _affine(transform: Any, x: Any, y: Any) -> tuple[Any, Any]:
    a, b, c, d, e, f = transform[:6]
    return a * x + b * y + c, d * x + e * y + f


def _about(x: np.ndarray, middle: float, period: float) -> np.ndarray:
    """Return coordinates that come back after `period`, each as near to `middle` as it can be."""
    return middle + (x - middle + period / 2) % period - period / 2


def _moved(polygons: np.ndarray, shift: float) -> np.ndarray:
    return shapely.transform(polygons, lambda x, y: (x + shift, y), interleaved=False) if shift else polygons.copy()


def finite(
    polygons: np.ndarray,  # object array, changed in place
) -> np.ndarray:
    """Leave out vertices that are no numbers, as of places beyond the horizon of a scene's projection.

    >>> finite(np.array([shapely.Polygon([(0, 0), (2, 0), (np.inf, 1), (0, 2)])], object))[0].area
    2.0
    """
    xy, of = shapely.get_coordinates(polygons, return_index=True)
    for i in np.unique(of[~np.isfinite(xy).all(1)]):
        parts = []
        for part in shapely.get_parts(polygons[i]):
            rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(part)]
            rings = [ring[np.isfinite(ring).all(1)] for ring in rings]
            if rings and len(rings[0]) > 2:
                parts.append(shapely.Polygon(rings[0], [ring for ring in rings[1:] if len(ring) > 2]))
        polygons[i] = make_valid(np.array([shapely.MultiPolygon(parts)], object))[0]
    return polygons
