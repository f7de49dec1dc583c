"""Where looking at a map pays most: boxes of doubt, of which the largest are taken, none upon another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import DataError

__all__ = ["BLOCK", "DoubtSums", "Places"]

BLOCK = 8
"""Side of the blocks that are summed, pixels; a box is 2 x 2 of them."""


class Places(NamedTuple):
    """Boxes of a map, in the order in which looking pays."""

    row: np.ndarray  # (n,) first row of the box, pixels
    col: np.ndarray  # (n,) first column
    wrong: np.ndarray  # (n,) pixels that are expected to be wrong
    known: np.ndarray  # (n,) pixels that the map shows


class DoubtSums:
    """Takes the strips of a map (`add`) and returns the places where most of it is expected to be wrong (`places`).

    Memory is 5 bytes for each block of 64 pixels.

    >>> doubt = np.zeros((32, 32))
    >>> doubt[4:12, 4:12], doubt[20:24, 30:] = 0.5, 0.9
    >>> sums = DoubtSums(32, 32)
    >>> for row in range(0, 32, 10):
    ...     sums.add(row, doubt[row : row + 10], np.ones_like(doubt[row : row + 10], bool))
    >>> found = sums.places(5)
    >>> found.row.tolist(), found.col.tolist(), found.wrong.round(1).tolist()
    ([0, 8], [0, 16], [32.0, 7.2])
    """

    def __init__(
        self,
        height: int,  # of the map, pixels
        width: int,
    ):
        rows, cols = (max(2, -(-n // BLOCK)) for n in (height, width))
        self._wrong, self._known = np.zeros((rows, cols), np.float32), np.zeros((rows, cols), np.uint8)
        self._width = width

    def add(
        self,
        row: int,  # first of the strip
        doubt: np.ndarray,  # (h, width), probability that a pixel is wrong
        known: np.ndarray,  # (h, width) bool, what the map shows
    ) -> None:
        """Take some rows.

        Raises:
            DataError: Shapes do not fit.
        """
        if doubt.shape != known.shape or doubt.shape[1] != self._width:
            raise DataError(f"doubt {doubt.shape} and known {known.shape}: use (rows, {self._width})")
        edges, blocks = np.arange(0, self._width, BLOCK), (row + np.arange(len(doubt))) // BLOCK
        for sums, values in ((self._wrong, np.where(known, doubt, 0)), (self._known, known)):
            columns = np.add.reduceat(values, edges, axis=1, dtype=sums.dtype)
            np.add.at(sums[:, : len(edges)], blocks, columns)

    def places(
        self,
        n: int,  # number of places, at most
    ) -> Places:
        """Return places whose boxes do not overlap, each the most doubtful of what the ones before left.

        What lies less than a box away from a place counts half: who looks there sees much of it. There are fewer than
        `n` where nothing more is in doubt.
        """
        wrong, known = (
            x[:-1, :-1] + x[1:, :-1] + x[:-1, 1:] + x[1:, 1:]
            for x in (self._wrong.astype(np.float64), self._known.astype(np.int64))
        )
        left, found = wrong.copy(), list[tuple[int, int]]()
        while len(found) < n and (at := int(left.argmax()), left.flat[at])[1] > 0:
            row, col = divmod(at, left.shape[1])
            found.append((row, col))
            left[max(row - 3, 0) : row + 4, max(col - 3, 0) : col + 4] /= 2
            left[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2] = 0
        rows, cols = np.array(found, int).reshape(-1, 2).T
        return Places(rows * BLOCK, cols * BLOCK, wrong[rows, cols], known[rows, cols])
