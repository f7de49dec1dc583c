"""Outlines of the 4-connected regions of equal value in an image that comes in strips, top to bottom.

`RegionTracer` takes the strips and gives `Regions`, the same however the image was cut. Memory grows with the width of
the image and the number of corners, never with the number of pixels. shapely makes polygons of the whole in two calls,
all of them valid::

    rings = shapely.linearrings(regions.corners, indices=regions.ring)
    polygons = shapely.polygons(rings, indices=regions.region)

One pass over the rows does it all. Wherever four pixels meet, each one whose outline turns there makes a corner, so
none lies on a straight line. A corner starts or ends one horizontal and one vertical side. Only so many sides can be
open at a time, two in the row and two per column, that a corner finds its neighbours in the ring at once, whether or
not a strip ends between them; with the last row, all rings are closed.

Where two pixels of a region touch only diagonally, its outline stays with each of them if they are of two regions. If
they turn out to be of one, it changes over: else it would touch itself, which is invalid, where now a hole touches what
encloses it, or another hole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from .jit import jit

__all__ = ["RegionTracer", "Regions"]

_MOST = 2**31 - 1  # corners that int32 can number
_COL, _ROW, _NEXT, _LABEL = range(4)  # columns of the table of corners


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions in the order of their first pixels, row by row, and the rings around them.

    Rings lie region by region, the outer one first, then holes in the order of their first corners. A ring starts at
    its upper left corner (of the topmost ones, the leftmost) and is not closed: its first corner is not repeated. Seen
    with row 0 on top, and so on a map with north up, outer rings run counter-clockwise, as GeoJSON wants it (RFC 7946),
    and holes clockwise.
    """

    value: np.ndarray  # (n,) uint8
    pixels: np.ndarray  # (n,) int64, the area
    sums: np.ndarray  # (n, n_sums) float64, of each layer over the region
    corners: np.ndarray  # (V, 2) int32, (col, row); the first pixel of the image lies between (0, 0) and (1, 1)
    ring: np.ndarray  # (V,) int32, ascending: the ring of each corner
    region: np.ndarray  # (rings,) int32, ascending: the region of each ring


class RegionTracer:
    """Traces one image: `add` its strips, then `finish`.

    Takes some 20 bytes per corner while the image comes, and up to twice that in `finish`. Runs on the thread that
    calls it, and lets others run meanwhile.
    """

    def __init__(
        self,
        width: int,  # of the image, in pixels
        n_sums: int = 0,  # layers that come with each strip, to be summed over each region
    ):
        if width < 1:
            raise DataError(f"image of {width} columns: use at least 1")
        self._width, self._n_sums, self._row = width, n_sums, 0
        self._above = np.zeros(width, np.uint8)  # the last row, and its labels
        self._labels = np.zeros(width, np.int32)
        self._edges = np.zeros((2, width + 1), np.int32)  # corner above on each grid line, of the region left and right
        self._corners, self._n_corners = np.empty((0, 4), np.int32), 0
        # a label is a region, as far as it is known; labels that meet later point to the least of them
        self._parent, self._n_labels = np.empty(0, np.int32), 0
        self._value, self._pixels = np.empty(0, np.uint8), np.empty(0, np.int64)
        self._sums = np.empty((0, n_sums))

    def add(
        self,
        values: np.ndarray,  # (h, width) uint8, any number of rows; 0 belongs to no region
        sums: np.ndarray | None = None,  # (n_sums, h, width) float32; what lies outside of regions does not count
    ) -> None:
        """Take the next rows of the image.

        Raises:
            DataError: Another shape or type, more than 2^31 - 1 corners, or `finish` was called before.
        """
        if self._corners is None:
            raise DataError("the image is finished: use another RegionTracer for the next one")
        if values.ndim != 2 or values.shape[1] != self._width or values.dtype != np.uint8:
            raise DataError(f"strip {values.dtype} {values.shape}: use uint8 (rows, {self._width})")
        layers = (self._n_sums, *values.shape)
        if sums is None and not self._n_sums:
            sums = np.empty(layers, np.float32)
        if sums is None or sums.shape != layers or sums.dtype != np.float32:
            got = "none" if sums is None else f"{sums.dtype} {sums.shape}"
            raise DataError(f"layers to sum: got {got}, use float32 {layers} for this strip")
        # one type for all, or numba would compile once more for a memory map or a part of a larger array
        values, sums = (np.require(x, requirements="CWE") for x in (values, sums))
        y = 0
        while True:
            y, self._n_corners, self._n_labels = jit(_trace)(
                values, sums, y, self._row, self._above, self._labels, self._edges, self._corners, self._n_corners,
                self._parent, self._value, self._pixels, self._sums, self._n_labels,
            )  # fmt: skip
            if y == len(values):
                break
            self._grow()
        self._row += len(values)

    def finish(self) -> Regions:
        """Return the regions. The tracer cannot be used after that.

        Raises:
            DataError: As `add`.
        """
        self.add(np.zeros((1, self._width), np.uint8), np.zeros((self._n_sums, 1, self._width), np.float32))
        corners, self._corners = self._corners[: self._n_corners], None
        parent, value, pixels, sums = (
            x[: self._n_labels] for x in (self._parent, self._value, self._pixels, self._sums)
        )
        n = jit(_merge)(parent, value, pixels, sums)
        start, length, region = np.empty((3, len(corners) // 4), np.int32)
        rings = jit(_walk)(corners, parent, start, length, region)
        order = np.argsort(region[:rings], kind="stable")  # stable: outer rings stay first, as they start first
        start, length, region = start[order], length[order], region[order]
        out = np.empty((len(corners), 2), np.int32)
        jit(_write)(corners, start, length, out)
        del corners
        ring = np.repeat(np.arange(rings, dtype=np.int32), length)
        return Regions(value[:n].copy(), pixels[:n].copy(), sums[:n].copy(), out, ring, region)

    def _grow(self) -> None:
        """Make room for at least one row, in place: large arrays move without a copy."""
        corners, labels = 4 * (self._width + 1), self._width  # the most that a row can add
        if self._n_corners + corners > _MOST:
            raise DataError(f"outlines of more than {_MOST:,} corners: trace the image in parts")
        if len(self._corners) - self._n_corners < corners:
            self._corners.resize((len(self._corners) * 5 // 4 + corners, 4), refcheck=False)
        if len(self._parent) - self._n_labels < labels:
            rows = len(self._parent) * 5 // 4 + labels
            for table in (self._parent, self._value, self._pixels, self._sums):
                table.resize((rows, *table.shape[1:]), refcheck=False)


def _trace(values, sums, y, top, above, labels, edges, corners, n, parent, value, pixels, total, m):
    """Go on from row y while there is room; return the row, corners and labels reached."""
    height, width = values.shape
    side = np.zeros(2, np.int64)  # the corner to the left on this grid line, of the region above and below
    while y < height and len(corners) - n >= 4 * (width + 1) and len(parent) - m >= width:
        ne = se = np.uint8(0)
        ne_label = se_label = run = 0
        for x in range(width + 1):
            nw, sw, nw_label, sw_label = ne, se, ne_label, se_label
            ne = se = np.uint8(0)
            if x < width:
                ne, se, ne_label = above[x], values[y, x], labels[x]
            if sw != se or x == width:
                if sw:
                    pixels[sw_label] += x - run
                    for k in range(total.shape[1]):
                        s = 0.0
                        for i in range(run, x):
                            s += sums[k, y, i]
                        total[sw_label, k] += s
                run = x
                if se and se == ne:
                    se_label = ne_label
                elif se:
                    se_label = m
                    parent[m], value[m] = m, se  # pixels and total are 0 already: resize fills with zeros
                    m += 1
            elif se and se == ne and nw != ne:
                # Rem's union: both chains are followed towards lower labels, and shortened on the way
                a, b = se_label, ne_label
                while parent[a] != parent[b]:
                    if parent[a] < parent[b]:
                        a, b = b, a
                    up = parent[a]
                    parent[a] = parent[b]
                    if up == a:
                        break
                    a = up
            if x < width:
                above[x], labels[x] = se, se_label
            if (nw == ne and sw == se) or (nw == sw and ne == se):
                continue
            four, four_labels = (nw, ne, sw, se), (nw_label, ne_label, sw_label, se_label)
            for q in range(4):  # in this order, a side that ends here is taken before one that starts takes its place
                beside = four[q] == four[q ^ 1]
                if not four[q] or beside != (four[q] == four[q ^ 2]) or (beside and four[q] == four[q ^ 3]):
                    continue
                low, right = q >> 1, q & 1
                corners[n, _COL], corners[n, _ROW], corners[n, _LABEL] = x, top + y, four_labels[q]
                # the sides of a corner that juts out run along its pixel, of one that recedes along the neighbours
                if right != beside:
                    side[low] = n
                elif low:
                    corners[n, _NEXT] = side[1]
                else:
                    corners[side[0], _NEXT] = n
                if low != beside:
                    edges[right, x] = n
                elif right:
                    corners[edges[1, x], _NEXT] = n
                else:
                    corners[n, _NEXT] = edges[0, x]
                n += 1
        y += 1
    return y, n, m


def _merge(parent, value, pixels, total):
    """Gather each region at its number, put that into `parent` for every label, and return how many there are."""
    n = 0
    for label in range(len(parent)):
        region = parent[parent[label]]
        if parent[label] == label:  # the least of its region: the regions come in the order of their first pixels
            region = n
            value[n], pixels[n] = value[label], pixels[label]
            for k in range(total.shape[1]):
                total[n, k] = total[label, k]
            n += 1
        else:
            pixels[region] += pixels[label]
            for k in range(total.shape[1]):
                total[region, k] += total[label, k]
        parent[label] = region
    return n


def _walk(corners, parent, start, length, region):
    """Note first corner, length and region of each ring, and return how many there are."""
    for v in range(len(corners)):
        corners[v, _LABEL] = parent[corners[v, _LABEL]]
        for u in range(max(0, v - 3), v):
            same = corners[u, _COL] == corners[v, _COL] and corners[u, _ROW] == corners[v, _ROW]
            if same and corners[u, _LABEL] == corners[v, _LABEL]:
                # two pixels of one region touch here: change over
                corners[u, _NEXT], corners[v, _NEXT] = corners[v, _NEXT], corners[u, _NEXT]
    rings = 0
    for v in range(len(corners)):
        if corners[v, _LABEL] < 0:
            continue
        start[rings], length[rings], region[rings] = v, 0, corners[v, _LABEL]
        u = v
        while corners[u, _LABEL] >= 0:
            corners[u, _LABEL] = -1
            length[rings] += 1
            u = corners[u, _NEXT]
        rings += 1
    return rings


def _write(corners, start, length, out):
    n = 0
    for ring in range(len(start)):
        u = start[ring]
        for _ in range(length[ring]):
            out[n, 0], out[n, 1] = corners[u, _COL], corners[u, _ROW]
            u = corners[u, _NEXT]
            n += 1
