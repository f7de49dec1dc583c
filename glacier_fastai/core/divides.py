"""Ice complexes divided into glaciers along the drainage of an elevation model (Kienholz et al. 2013)."""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush

import numpy as np
from scipy.ndimage import binary_dilation, binary_fill_holes, distance_transform_edt, median_filter, minimum_position
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import label
from skimage.morphology import local_minima, reconstruction

from ..errors import DataError
from .jit import jit

__all__ = ["LEAST", "PARAMETERS", "divide", "margin"]

PARAMETERS = {
    "smooth_m": 200.0,  # medians of heights along this, down and across: 5 pixels of 40 m
    "gutter_m": 100.0,  # by which the ground around the ice is lowered, so that what flows off does not come back
    "pit_m": 20.0,  # shallower pits of that ground are none
    "merge_m": 14.3 * 1000 / 40,  # around the outlet of 1 km2, and as the root of the area: 14.3 m for a pixel of 40 m
    "merge_most_m": 3500.0,
    "sliver_km2": 0.1,  # smaller parts are slivers
    "thin_sliver_km2": 0.2,  # and those that are smaller than this and thin
    "thin": 0.5,  # by 2 sqrt(pi area) / perimeter, which is 1 for a circle
}
"""As Kienholz et al. found for the Juneau Icefield and used elsewhere in Alaska and Arctic Canada, in the numbers of
github.com/OGGM/partitioning and github.com/konstantin-a-maslov/massive_ice_divides. `pit_m` is ours: the error that
ASTER's global elevation model was made to (95 %)."""

LEAST = 2 * PARAMETERS["sliver_km2"]
"""Complexes smaller than this, km2, stay whole: of two parts one would be a sliver."""
STEPPED = 4 / math.pi  # a line along the sides of pixels is that much longer than a smooth one, on the average


def margin(
    sides: tuple[float, float],  # height and width of a pixel, metres
) -> int:
    """Return how many pixels around the ice `divide` looks at.

    >>> margin((30, 30))
    5
    """
    return max(_window(sides)) // 2 + 2


def divide(
    ice: np.ndarray,  # (H, W) bool, one complex, whose pixels touch; none in the first and last rows and columns
    heights: np.ndarray,  # (H, W) float, metres, on the ice and around; NaN where they are not known
    unseen: np.ndarray,  # (H, W) bool, where nobody knows whether the ice goes on, as beyond the edge of a map
    sides: tuple[float, float],  # height and width of a pixel, metres
) -> tuple[np.ndarray, int]:
    """Return the glacier of each pixel of an ice complex, int32 `(H, W)`: 1, 2, ... in reading order, 0 without ice.

    And how many pixels of ice lie in pits deeper than `pit_m`, which glaciers do not have: there heights are wrong.

    The ice that drains to one lowest place of the ground around is a flowshed: pits fill up until they overflow, and
    ways down keep to the steepest descent (Orlandini et al. 2003, doi 10.1029/2002WR001639). A shed is joined to all
    that have ice near its outlet, the further around the larger it is; slivers to what they border on most
    (`PARAMETERS`; Kienholz et al. 2013, doi 10.3189/2013JoG12J138). Ice drains across rock within the complex, but what
    hangs together by rock alone are two glaciers. Where heights are not known the nearest stand in.

    >>> row, col = np.mgrid[:40, :60]
    >>> ice = (abs(row - 20) < 12) & (abs(col - 30) < 25)
    >>> glaciers, deep = divide(ice, 3000.0 - 5 * abs(col - 30), np.zeros_like(ice), (50, 50))
    >>> glaciers[20, ::10], deep
    (array([0, 1, 1, 1, 2, 2], dtype=int32), 0)

    Raises:
        DataError: Shapes or types do not fit, ice reaches the edge, or a side is not positive and finite.
    """
    if ice.dtype != bool or ice.ndim != 2 or heights.shape != ice.shape or heights.dtype.kind != "f":
        raise DataError(f"ice {ice.dtype} {ice.shape}, heights {heights.dtype} {heights.shape}: use bool and floats")
    if unseen.dtype != bool or unseen.shape != ice.shape:
        raise DataError(f"unseen {unseen.dtype} {unseen.shape}, ice {ice.shape}: use bool of one shape")
    if ice[[0, -1]].any() or ice[:, [0, -1]].any():
        raise DataError("ice reaches the edge of the array: add rows and columns around it")
    if not (min(sides) > 0 and math.isfinite(max(sides))):
        raise DataError(f"pixels of {sides}: use positive numbers")
    known = np.isfinite(heights)
    if ice.sum() * sides[0] * sides[1] / 1e6 < LEAST or not known.any():
        return ice.astype(np.int32), 0
    if not known.all():
        nearest = distance_transform_edt(~known, sides, return_distances=False, return_indices=True)
        heights = heights[tuple(nearest)]
    high, wide = _window(sides)
    heights = median_filter(median_filter(heights.astype(np.float32), (high, 1)), (1, wide))
    sheds, outlets, deep = _flowsheds(ice, heights, sides)
    if len(outlets) > 1:
        ends = np.flatnonzero(~unseen[tuple(outlets.T)]) + 1  # where glaciers end, not the map
        sheds = _without_slivers(label(_joined(sheds, outlets, ends, ice, sides), connectivity=1), sides)
    return (sheds if len(outlets) > 1 else ice.astype(np.int32)), deep


def _window(sides: tuple[float, float]) -> list[int]:
    return [2 * int(PARAMETERS["smooth_m"] / side / 2) + 1 for side in sides]


def _flowsheds(ice: np.ndarray, heights: np.ndarray, sides: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the flowshed of each pixel of ice, from 1 on, the pixel of each one's outlet, `(n, 2)`, and `deep`."""
    surface = heights.copy()
    inside = binary_fill_holes(ice)
    gutter = binary_dilation(inside, np.ones((3, 3))) & ~inside
    surface[gutter] -= PARAMETERS["gutter_m"]
    surface[~(inside | gutter)] = surface.max() + 1000
    filled = reconstruction(surface + np.float32(PARAMETERS["pit_m"]), surface, "erosion", np.ones((3, 3)))
    lowest = label(local_minima(filled, connectivity=2) & gutter, connectivity=2).astype(np.int32)
    del filled
    down, right = np.gradient(heights, *sides)
    outlets = minimum_position(surface, lowest, range(1, int(lowest.max()) + 1))
    jit(_grow)(lowest, surface, inside | gutter, down, right, float(sides[0]), float(sides[1]))
    deep = ice & (surface - heights > PARAMETERS["pit_m"])
    return np.where(ice, lowest, 0), np.array(outlets, np.intp).reshape(-1, 2), int(deep.sum())


def _grow(sheds, level, area, down, right, high, wide):
    """Fill an area from its outlets upwards, in place: `sheds`, and `level`, heights, up to where pits overflow.

    Of the lower pixels beside it a pixel takes that which keeps its way down closest to the steepest descent.
    """
    h, w = sheds.shape
    state = np.zeros((h, w), np.uint8)  # 1 in the queue, 2 done
    off = np.zeros((h, w), np.float32)  # how far to the side a pixel's way down leads, metres
    queue = [(level[0, 0], np.int64(0), np.int64(0)) for _ in range(0)]
    for i in range(h):
        for j in range(w):
            if sheds[i, j] > 0:
                queue.append((level[i, j], np.int64(i * w + j), np.int64(i * w + j)))
                state[i, j] = 2
    heapify(queue)
    age = np.int64(h * w)
    while len(queue) > 0:
        z, _, at = heappop(queue)
        i, j = at // w, at % w
        if state[i, j] == 1:
            state[i, j] = 2
            slope = math.sqrt(down[i, j] ** 2 + right[i, j] ** 2)
            least, most = np.inf, 0.0
            for r in range(max(i - 1, 0), min(i + 2, h)):
                for c in range(max(j - 1, 0), min(j + 2, w)):
                    if state[r, c] != 2 or level[r, c] >= z:
                        continue
                    y, x = (r - i) * high, (c - j) * wide
                    far = math.sqrt(y * y + x * x)
                    along, aside = -(down[i, j] * y + right[i, j] * x), right[i, j] * y - down[i, j] * x
                    if along > 0.7 * far * slope:
                        turn = aside / slope + off[r, c]
                        if abs(turn) < least:
                            least, off[i, j], sheds[i, j] = abs(turn), turn, sheds[r, c]
                    elif least == np.inf and (z - level[r, c]) / far > most:
                        most, off[i, j], sheds[i, j] = (z - level[r, c]) / far, off[r, c], sheds[r, c]
        for r in range(max(i - 1, 0), min(i + 2, h)):
            for c in range(max(j - 1, 0), min(j + 2, w)):
                if area[r, c] and state[r, c] == 0:
                    state[r, c] = 1
                    sheds[r, c] = sheds[i, j]  # unless another is steeper
                    level[r, c] = max(level[r, c], z)
                    heappush(queue, (level[r, c], age, r * w + c))
                    age += 1


def _joined(
    sheds: np.ndarray, outlets: np.ndarray, ends: np.ndarray, ice: np.ndarray, sides: tuple[float, float]
) -> np.ndarray:
    """Join flowsheds to those that have ice near their outlets."""
    km2 = np.bincount(sheds.ravel(), minlength=len(outlets) + 1) * sides[0] * sides[1] / 1e6
    reach = np.minimum(PARAMETERS["merge_m"] * np.sqrt(km2), PARAMETERS["merge_most_m"])
    pairs, (rows, cols) = [(0, 0)], np.ogrid[: ice.shape[0], : ice.shape[1]]
    for k in ends[km2[ends] > 0].tolist():
        outlet = outlets[k - 1]
        low, high = (np.array(outlet) + sign * reach[k] / sides for sign in (-1, 1))
        around = tuple(slice(max(int(a), 0), int(b) + 2) for a, b in zip(low, high, strict=True))
        away = ((rows[around[0]] - outlet[0]) * sides[0]) ** 2 + ((cols[:, around[1]] - outlet[1]) * sides[1]) ** 2
        near = ice[around] & (away <= reach[k] ** 2)
        if near.any():
            parts = label(near, connectivity=2)
            own = parts == parts[near][away[near].argmin()]  # not what lies beyond rock
            pairs += [(k, other) for other in np.unique(sheds[around][own]).tolist()]
    a, b = np.array(pairs).T
    links = coo_array((np.ones(len(a)), (a, b)), (len(km2), len(km2)))
    return connected_components(links, directed=False)[1][sheds].astype(np.int32)


def _without_slivers(labels: np.ndarray, sides: tuple[float, float]) -> np.ndarray:
    """Join slivers to what they border on most, the smallest first, and number what is left in reading order."""
    n = int(labels.max())
    km2 = (np.bincount(labels.ravel(), minlength=n + 1) * sides[0] * sides[1] / 1e6).tolist()
    borders: list[dict[int, float]] = [{} for _ in range(n + 1)]  # with each neighbour, km; also with no ice, 0
    for a, b, side in ((labels[:, :-1], labels[:, 1:], sides[0]), (labels[:-1], labels[1:], sides[1])):
        pair, count = np.unique(np.stack([a[a != b], b[a != b]]), axis=1, return_counts=True)
        for one, other, length in zip(*pair.tolist(), (count * side / 1e3).tolist(), strict=True):
            _add(borders, one, other, length)
    into = np.arange(n + 1)
    queue = [(km2[k], k) for k in range(1, n + 1)]
    heapify(queue)
    while queue:
        size, k = heappop(queue)
        beside = [other for other in borders[k] if other]
        if into[k] != k or size != km2[k] or not beside or not _is_sliver(size, sum(borders[k].values())):
            continue
        kept = max(beside, key=lambda other: (borders[k][other], -other))
        into[k], km2[kept] = kept, km2[kept] + size
        for other, length in borders[k].items():
            del borders[other][k]
            if other != kept:
                _add(borders, kept, other, length)
        heappush(queue, (km2[kept], kept))
    while ((further := into[into]) != into).any():
        into = further
    labels = into[labels]
    _, first, found = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int32)
    order[np.argsort(np.where(labels.ravel()[first] == 0, -1, first))] = np.arange(len(first))
    return order[found].reshape(labels.shape)


def _add(borders: list[dict[int, float]], one: int, other: int, length: float) -> None:
    for a, b in ((one, other), (other, one)):
        borders[a][b] = borders[a].get(b, 0.0) + length


def _is_sliver(km2: float, perimeter: float) -> bool:
    compact = 2 * math.sqrt(math.pi * km2) * STEPPED / perimeter
    least = PARAMETERS["thin_sliver_km2"] if compact < PARAMETERS["thin"] else PARAMETERS["sliver_km2"]
    return km2 < least
