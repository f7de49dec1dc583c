"""What may make a pixel hard, and how many errors there are by it.

Labels are class codes; pixels of label 255 (`bands.IGNORE`) have no class, are part of no patch and count for nothing.
Ice of unknown kind (254, `bands.ICE_OF_ANY_KIND`) makes patches of its own, but no edge with glacier or debris.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt
from skimage.measure import label

from ..bands import CLASSES, ICE, ICE_OF_ANY_KIND, IGNORE

__all__ = ["count_errors", "edge_distance", "patch_size"]


def edge_distance(
    truth: np.ndarray,  # (H, W) class codes, 254 = ice of unknown kind, 255 = ignore
) -> np.ndarray:
    """Return the distance to the nearest pixel labelled as another class, centre to centre, float64 `(H, W)` in pixels.

    1 on both sides of an edge, infinite where the image has one class only; 0 where nothing is labelled.

    >>> edge_distance(np.array([[1, 1, 0, 255]], np.uint8))
    array([[2., 1., 1., 0.]])
    """
    out = np.zeros(truth.shape)
    for code in np.unique(truth[truth != IGNORE]):
        like = ICE if code == ICE_OF_ANY_KIND else (ICE_OF_ANY_KIND,) if code in ICE else ()
        here, same = truth == code, np.isin(truth, (code, *like, IGNORE))
        out[here] = np.inf if same.all() else distance_transform_edt(same)[here]
    return out


def patch_size(
    truth: np.ndarray,  # (H, W) class codes, 254 = ice of unknown kind, 255 = ignore
) -> np.ndarray:
    """Return the pixels of the patch of one class, connected along its sides, that each pixel lies in, int64 `(H, W)`.

    0 where nothing is labelled.

    >>> patch_size(np.array([[1, 1, 0, 255]], np.uint8))
    array([[2, 2, 1, 0]])
    """
    parts = label(truth, background=IGNORE, connectivity=1)
    size = np.bincount(parts.ravel())
    size[0] = 0
    return size[parts]


def count_errors(
    values: np.ndarray,  # (H, W), what to group pixels by
    wrong: np.ndarray,  # (H, W) bool
    truth: np.ndarray,  # (H, W) class codes, 254 = ice of unknown kind, 255 = ignore
    edges: Sequence[float],  # (bins + 1,) ascending; a bin holds its upper edge, the outer ones what lies beyond
) -> np.ndarray:
    """Return how many labelled pixels, and how many wrong ones, each bin has of each class, int64 `(2, bins, K + 1)`.

    The last of them is ice of unknown kind.

    >>> truth = np.array([[1, 1, 0, 255]], np.uint8)
    >>> labelled, wrong = count_errors(np.array([[1, 5, 5, 5]]), truth == 0, truth, [0, 2, 9])
    >>> labelled.tolist(), int(wrong.sum())
    ([[0, 1, 0, 0, 0], [1, 1, 0, 0, 0]], 1)
    """
    known, shape = truth != IGNORE, (len(edges) - 1, len(CLASSES) + 1)
    code = np.where(truth == ICE_OF_ANY_KIND, len(CLASSES), truth)
    at = np.searchsorted(edges[1:-1], values[known]) * shape[1] + code[known]
    counts = [np.bincount(a, minlength=shape[0] * shape[1]).reshape(shape) for a in (at, at[wrong[known]])]
    return np.stack(counts)
