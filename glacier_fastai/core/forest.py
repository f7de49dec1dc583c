"""What a forest of pixels sees and says: statistics in windows around each pixel, and the mean of its trees."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .jit import jit
from .warp import has_data

__all__ = ["STATISTICS", "WINDOWS", "packed", "tree_mean", "window_statistics"]

WINDOWS = (5, 15)  # sides, pixels
STATISTICS = 1 + 2 * len(WINDOWS)  # of each band
_BLOCK = 4096  # pixels that go through a tree, which so stays in the cache, before the next one


def window_statistics(
    x: Tensor,  # (B, C, H, W), normalised; 0 in every band where there is no data
) -> Tensor:
    """Return `(B, 5 C, H, W)` float32: each band, then means and deviations over the pixels with data in `WINDOWS`.

    What lies outside of the image counts for nothing.

    >>> window_statistics(torch.tensor([[[[1.0, 0.0, 3.0]]]]))[0, :, 0].tolist()
    [[1.0, 0.0, 3.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]
    """
    x = x.float().contiguous()
    known, found = has_data(x).float(), [x]
    for side in WINDOWS:
        share, first, second = (_box(v, side) for v in (known, x, x.square()))
        share = share.clamp(min=side**-2)
        mean = first / share
        found += [mean, (second / share - mean.square()).clamp(min=0).sqrt()]
    return torch.cat(found, 1)


def _box(x: Tensor, side: int) -> Tensor:
    rows = F.avg_pool2d(x, (side, 1), 1, (side // 2, 0))
    return F.avg_pool2d(rows, (1, side), 1, (0, side // 2))


def packed(
    trees: list[Any],  # scikit-learn's `Tree` of each estimator
) -> dict[str, np.ndarray]:
    """Return the trees as arrays for `tree_mean`, in which -1 - i is the leaf with the row i of `shares`."""
    features, thresholds, branches, leaves, roots, splits, ends = [], [], [], [], [], 0, 0
    for tree in trees:
        split = tree.children_left >= 0
        place = np.where(split, splits + np.cumsum(split) - 1, -ends - np.cumsum(~split))
        roots.append(place[0])
        features.append(tree.feature[split])
        # the nearest float32 that is not above: x <= threshold then is the same for every float32 x
        exact, near = tree.threshold[split], tree.threshold[split].astype(np.float32)
        thresholds.append(np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near))
        branches.append(place[[tree.children_right[split], tree.children_left[split]]])
        counts = tree.value[~split, 0]
        leaves.append(counts / counts.sum(1, keepdims=True))
        splits, ends = splits + len(exact), ends + len(counts)
    rows, row = np.unique(np.concatenate(leaves).astype(np.float32), axis=0, return_inverse=True)
    row = row.reshape(-1)

    def shared(place: np.ndarray) -> np.ndarray:
        return np.where(place < 0, -1 - row[-1 - np.minimum(place, -1)], place).astype(np.int32)

    return {
        "feature": np.concatenate(features).astype(np.int16),
        "threshold": np.concatenate(thresholds).astype(np.float32),
        "branches": shared(np.concatenate(branches, 1)),
        "roots": shared(np.array(roots)),
        "shares": rows,
    }


def tree_mean(
    x: np.ndarray,  # (N, D) float32, C order: features of pixels
    feature: np.ndarray,  # (S,) int16 of each split
    threshold: np.ndarray,  # (S,) float32 of each split
    branches: np.ndarray,  # (2, S) int32 of each split: above its threshold, and up to it
    roots: np.ndarray,  # (T,) int32
    shares: np.ndarray,  # (R, K) float32: class shares in leaves
) -> np.ndarray:
    """Return the mean class shares `(N, K)` float32 of the leaves that each pixel comes to, as in Breiman 2001.

    >>> split = np.array([0], np.int16), np.array([0.5], np.float32), np.array([[-1], [-2]], np.int32)
    >>> tree_mean(np.float32([[0.5], [0.6]]), *split, np.int32([0]), np.float32([[0.9, 0.1], [0.2, 0.8]]))
    array([[0.2, 0.8],
           [0.9, 0.1]], dtype=float32)

    Source: Breiman 2001, doi 10.1023/A:1010933404324; splits and leaves as scikit-learn has them.
    """
    total = np.zeros((len(x), shares.shape[1]), np.float64)

    def fill(start: int) -> None:
        block = slice(start, start + _BLOCK)
        jit(_descend)(x[block], feature, threshold, branches, roots, shares, total[block])

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(0, len(x), _BLOCK)))  # the list raises what a thread raised
    return (total / len(roots)).astype(np.float32)


def _descend(x, feature, threshold, branches, roots, shares, total):
    for root in roots:
        for i in range(len(x)):
            node = root
            while node >= 0:
                node = branches[1 if x[i, feature[node]] <= threshold[node] else 0, node]
            for k in range(total.shape[1]):
                total[i, k] += shares[-1 - node, k]
