"""Sums over the connected regions of an image that comes in strips, top to bottom, the same however it was cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import label

from ..errors import DataError

__all__ = ["RegionSums", "Regions"]


class Regions(NamedTuple):
    """Regions of equal value, connected along their pixels' sides, in the order of their first pixels."""

    value: np.ndarray  # (n,) uint8
    first: np.ndarray  # (n,) int64, the first pixel in reading order: row * width + column
    pixels: np.ndarray  # (n,) int64, the area
    sums: np.ndarray  # (n, layers) float64, of each layer over the region


class RegionSums:
    """Takes the strips of one image (`add`) and returns its regions (`finish`).

    A strip is labelled on its own; what touches across its edge is joined at the end. Memory grows with the number of
    regions and the width of the image, not with its height.

    >>> sums = RegionSums(3, layers=1)
    >>> sums.add(np.array([[1, 0, 2], [1, 0, 0]], np.uint8), np.ones((1, 2, 3)))
    >>> sums.add(np.array([[1, 1, 2]], np.uint8), np.full((1, 1, 3), 10.0))
    >>> sums.finish()
    Regions(value=array([1, 2, 2], dtype=uint8), first=array([0, 2, 8]), pixels=array([4, 1, 1]), sums=array([[22.],
           [ 1.],
           [10.]]))
    """

    def __init__(
        self,
        width: int,  # of the image, in pixels
        layers: int = 0,  # that come with each strip, to be summed
    ):
        self._width, self._layers, self._row, self._n = width, layers, 0, 0
        self._above = np.zeros(width, np.uint8), np.zeros(width, np.int64)  # values and labels of the last row
        self._found = [
            Regions(np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, layers)))
        ]
        self._joined = [np.empty((2, 0), np.int64)]  # pairs of labels that touch across the edge of a strip

    def add(
        self,
        values: np.ndarray,  # (h, width) uint8, any number of rows; 0 belongs to no region
        layers: np.ndarray | Sequence[np.ndarray] = (),  # (layers, h, width)
    ) -> None:
        """Take the next rows of the image.

        Raises:
            DataError: Shapes do not fit.
        """
        wanted = (self._layers, len(values), self._width)
        if values.shape != wanted[1:] or len(layers) != wanted[0] or any(x.shape != wanted[1:] for x in layers):
            raise DataError(f"strip {values.shape} with {len(layers)} layers: use {wanted[1:]} and {wanted[0]} layers")
        if not values.size:
            return
        labels = label(values, background=0, connectivity=1).ravel()
        n = int(labels.max())
        first = np.empty(n + 1, np.int64)
        first[labels[::-1]] = np.arange(len(labels))[::-1]  # the last one that is assigned stays
        first = first[1:]
        pixels = np.bincount(labels, minlength=n + 1)[1:]
        sums = [np.bincount(labels, x.ravel(), n + 1)[1:] for x in layers]
        value = values.ravel()[first]
        self._found.append(
            Regions(value, first + self._row * self._width, pixels, np.array(sums).reshape(len(sums), n).T)
        )
        labels = labels.reshape(values.shape) + self._n - 1
        touch = (values[0] == self._above[0]) & (values[0] > 0)
        self._joined.append(np.unique(np.stack([self._above[1][touch], labels[0][touch]]), axis=1))
        self._above = values[-1].copy(), labels[-1].copy()
        self._row, self._n = self._row + len(values), self._n + n

    def finish(self) -> Regions:
        """Return the regions of all rows."""
        value, first, pixels, sums = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        above, below = np.concatenate(self._joined, 1)
        touches = coo_array((np.ones(len(above), bool), (above, below)), shape=(self._n, self._n))
        n, region = connected_components(touches, directed=False) if self._n else (0, first)
        start, area, total = np.full(n, np.iinfo(np.int64).max), np.zeros(n, np.int64), np.zeros((n, self._layers))
        np.minimum.at(start, region, first)
        np.add.at(area, region, pixels)
        np.add.at(total, region, sums)
        code = np.empty(n, np.uint8)
        code[region] = value
        order = start.argsort()
        return Regions(code[order], start[order], area[order], total[order])
