"""Pixel balance: from which places crops are drawn, so that their pixels come near a wanted composition of classes.

Where a window of a tile may begin is divided into cells. `crop_counts` gives the labelled pixels per class that a
window beginning anywhere in a cell holds on average: exactly, and looking at each pixel once. `solve` finds the
probabilities of the cells whose composition lies nearest to the target and which still use much of the data; drawing
a cell and then a place in it is what `data.balanced.PixelBalancedDL` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np

from ..bands import CLASSES, ICE_OF_ANY_KIND
from ..errors import DataError
from .settings import LEVELS, TARGET, PixelBalance

__all__ = ["LEVELS", "TARGET", "PixelBalance", "Sampling", "cell_edges", "crop_counts", "solve"]

CELLS = 8  # per side of a crop, along each axis
STIFF, LOOSE = 1e3, 1e-6  # weights of the sample size, where drawing is even, and where it is as if there were none
BISECTIONS = 16  # of the weight at which the floor is met, within a factor of 10
STEPS, HALVINGS = 60, 20  # of Newton's method: most steps, and how often one is halved until it makes things better
LONGEST = 3.0  # step of a logarithm
EXACT = 1e-9  # of the equations, where they are taken as solved
TINY, SMALLEST, LARGEST = 1e-300, 1e-250, 1e250  # bounds that keep logarithms and their powers finite


@dataclass(frozen=True)
class Sampling:
    """Probabilities of N candidate cells and what they lead to; compositions are shares per class, `(K,)`."""

    probabilities: np.ndarray  # (N,), sum 1
    order: np.ndarray  # (N,), candidates from the least to the most wanted; batches are spread evenly along it
    target: np.ndarray  # what was asked for
    limit: np.ndarray  # the nearest to it that crops reach if a few of them are drawn for ever
    reachable: np.ndarray  # the nearest that crops reach with the effective sample size asked for
    expected: np.ndarray  # `reachable`, or with `keep` what is left of it; augmentation moves it a little
    keep: np.ndarray  # share of the pixels of each class that is kept, 1 except for level "pixel"
    supervised: float  # share of the crops' labelled pixels that is kept
    effective: float  # effective sample size, as a share of that of even drawing
    absent: tuple[str, ...] = ()  # classes of the target that there are none of; the others share their part
    notes: tuple[str, ...] = ()  # where it falls short, in words

    def draw(
        self,
        rng: np.random.Generator,  # decides
        n: int,  # number of batches
        bs: int,  # crops per batch
    ) -> np.ndarray:
        """Return candidates, int64 `(n, bs)`: each batch is a systematic sample, so that all are composed alike.

        >>> found = solve(np.array([[9, 1, 0, 0], [2, 8, 0, 0]]), np.ones(2), PixelBalance(target={"glacier": 1.0}))
        >>> found.draw(np.random.default_rng(0), 2, 4).shape
        (2, 4)
        """
        points = (rng.random((n, 1)) + np.arange(bs)) / bs
        cumulative = np.cumsum(self.probabilities[self.order])
        found = np.searchsorted(cumulative, points * cumulative[-1], side="right")
        return rng.permuted(self.order[np.minimum(found, len(self.order) - 1)], axis=1)


def cell_edges(
    size: int,  # side of a tile, pixels
    crop: int,  # side of a crop
    level: str = "crop",  # "tile" makes a single cell
) -> np.ndarray:
    """Return the edges of the cells along an axis, int64 `(G + 1,)`: windows of cell j begin at edge j .. j + 1.

    >>> cell_edges(40, 32)
    array([0, 3, 6, 9])
    """
    places = size - crop + 1
    cells = 1 if level == "tile" else min(places, ceil(places * CELLS / crop))
    return np.arange(cells + 1) * places // cells


def crop_counts(
    mask: np.ndarray,  # (S, S) class codes, 254 = ice of unknown kind, 255 = ignore
    crop: int,  # side of a crop, pixels
    edges: np.ndarray,  # (G + 1,), see `cell_edges`
    classes: int = len(CLASSES),  # number of classes K
) -> np.ndarray:
    """Return the mean labelled pixels per class over all windows that begin in each cell, float64 `(G, G, K)`.

    Ice of unknown kind counts as glacier, the commoner kind.

    Windows of a cell cover a row with a share that rises, stays and falls; so the mean is the mask between two such
    weights, which is what integral images, summed over the places of a cell, come to.

    >>> crop_counts(np.array([[0, 1], [1, 255]]), 2, cell_edges(2, 2)).tolist()
    [[[1.0, 2.0, 0.0, 0.0]]]
    """
    mask = np.where(mask == ICE_OF_ANY_KIND, CLASSES.index("glacier"), mask)
    rows = np.arange(len(mask))
    first, last = edges[:-1, None], edges[1:, None] - 1
    begins = np.minimum(rows, last) - np.maximum(rows - crop + 1, first) + 1  # windows of the cell that hold the row
    cover = (np.maximum(begins, 0) / (last - first + 1)).astype(np.float32)
    out = np.empty((len(edges) - 1, len(edges) - 1, classes))
    for k in range(classes):
        out[:, :, k] = cover @ (mask == k).astype(np.float32) @ cover.T
    return out


def solve(
    counts: np.ndarray,  # (N, K) labelled pixels per class of each candidate
    places: np.ndarray,  # (N,) windows that each stands for
    balance: PixelBalance,  # what is wanted
) -> Sampling:
    """Find probabilities that bring the expected composition as near to the target as the sample size allows.

    Minimises ``KL(target || A'p / n'p)`` over probabilities p, A being the pixels per class and n all labelled ones,
    under a floor on the effective sample size ``exp(-KL(p || p0))`` (perplexity, Martino et al. 2017,
    doi:10.1016/j.sigpro.2016.08.025); p0 draws windows in proportion to the labelled pixels they hold. A divergence
    counts what a class lacks in proportion to what it should have, so rare ones are not given up for a little more of
    the common ones. In ``p / n'p`` the problem is convex, and where it is solved
    ``p = p0 exp((A u - n) / t) / Z`` with ``u = target / composition``: one unknown per class, found by Newton's method
    while t falls to where the floor is met (where labels are extremely uneven the sample size may jump, and then stays
    above its floor). A window's factor grows with its labelled pixels: one that holds few is not drawn often for them.
    The share of a class that is not there goes to the others, in proportion to theirs.

    >>> counts = np.array([[90, 10, 0, 0], [20, 80, 0, 0]])
    >>> even = PixelBalance(target={"background": 0.5, "glacier": 0.5})
    >>> solve(counts, np.ones(2), even).expected.round(2).tolist()
    [0.5, 0.5, 0.0, 0.0]

    Raises:
        DataError: No labelled pixel, or none of the target's classes.
    """
    total = counts.sum(1)
    target = np.array([balance.target.get(c, 0.0) for c in CLASSES])
    if not total.any():
        raise DataError("no labelled pixel in any crop, so nothing can be balanced")
    some = np.flatnonzero(total)
    wanted = (target > 0) & counts.any(0)
    if not wanted.any():
        raise DataError("balance.target: the training tiles have none of its classes; change it, or set it to null")
    pixels, labelled = counts[some] / total.max(), total[some] / total.max()
    base = places[some] * labelled
    base /= base.sum()
    shares = np.where(wanted, target, 0) / target[wanted].sum()

    chosen, limit = _search(_Problem(pixels[:, wanted], labelled, base, shares[wanted]), balance.min_effective)

    def composed(p):
        return p @ pixels / (p @ labelled)

    expected = reachable = composed(chosen.p)
    keep = np.ones_like(target)
    if balance.level == "pixel":
        expected = shares
        scarce = np.min(reachable[wanted] / expected[wanted])
        keep = np.divide(expected * scarce, reachable, out=keep, where=reachable > 0)
    probabilities = np.zeros(len(counts))
    probabilities[some] = chosen.p
    result = Sampling(
        probabilities,
        some[np.argsort(chosen.p / base, kind="stable")],
        target=target,
        limit=composed(limit.p),
        reachable=reachable,
        expected=expected,
        keep=keep,
        supervised=float(reachable @ keep),
        effective=chosen.effective,
        absent=tuple(c for c, asked, there in zip(CLASSES, target, wanted, strict=True) if asked and not there),
    )
    return replace(result, notes=tuple(_notes(result, balance)))


class _Nearest(NamedTuple):
    dual: np.ndarray  # (J,), u = target / composition of the wanted classes
    p: np.ndarray  # (N,), probabilities
    effective: float  # sample size, as a share of that of even drawing


class _Problem(NamedTuple):
    pixels: np.ndarray  # (N, J), of the wanted classes
    labelled: np.ndarray  # (N,), pixels of all classes
    base: np.ndarray  # (N,), probabilities of even drawing
    target: np.ndarray  # (J,)

    def even(self) -> _Nearest:
        """Return the solution where nothing but the sample size counts."""
        return _Nearest(self.target / (self.base @ self.pixels / (self.base @ self.labelled)), self.base, 1.0)

    def at(self, u: np.ndarray, stiffness: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the probabilities of u, the composition they reach, and log(u composition / target)."""
        score = (self.pixels @ u - self.labelled) / stiffness
        p = self.base * np.exp(score - score.max())
        p /= p.sum()
        reached = p @ self.pixels / (p @ self.labelled)
        return p, reached, np.log(u) + np.log(np.maximum(reached, TINY)) - np.log(self.target)

    def solve(self, stiffness: float, u: np.ndarray) -> _Nearest | None:
        """Find the log u at which nothing is missed, from a first guess; None where rounding is in the way."""
        pixels, labelled = self.pixels, self.labelled
        p, reached, missed = self.at(u, stiffness)
        for _ in range(STEPS):
            if np.abs(missed).max() < EXACT:
                rare = p <= TINY
                return _Nearest(u, p, float(np.exp(-(p @ np.log(np.where(rare, 1, p / self.base))))))
            weighted = (pixels - p @ pixels).T * p
            change = (weighted @ pixels - np.outer(reached, weighted @ labelled)) / (p @ labelled * stiffness)
            try:
                step = -np.linalg.solve(np.eye(len(u)) + change * u / reached[:, None], missed)
            except np.linalg.LinAlgError:
                return None
            length = min(1.0, LONGEST / np.abs(step).max())
            for _ in range(HALVINGS):
                moved = np.clip(u * np.exp(length * step), SMALLEST, LARGEST)
                new = self.at(moved, stiffness)
                if np.linalg.norm(new[2]) < (1 - 1e-4 * length) * np.linalg.norm(missed):  # Armijo's condition
                    break
                length /= 2
            else:
                return None
            u, (p, reached, missed) = moved, new
        return None


def _search(problem: _Problem, least: float) -> tuple[_Nearest, _Nearest]:
    """Return the solution nearest to the target with the least sample size, and the nearest of all."""
    chosen = limit = problem.even()
    enough, few = STIFF * float((problem.pixels @ chosen.dual).max()), 0.0  # 0: not yet too few
    for stiffness in np.geomspace(enough, LOOSE, ceil(np.log10(enough / LOOSE))):
        tried = problem.solve(stiffness, limit.dual)
        if tried is None:  # as far as rounding allows
            break
        limit = tried
        if not few and limit.effective >= least:
            enough, chosen = float(stiffness), limit
        elif not few:
            few = float(stiffness)
    for _ in range(BISECTIONS if few else 0):
        middle = sqrt(enough * few)
        tried = problem.solve(middle, chosen.dual)
        if tried is not None and tried.effective >= least:
            enough, chosen = middle, tried
        else:
            few = middle
    return chosen, limit


def _notes(found: Sampling, balance: PixelBalance):
    for k, name in enumerate(CLASSES):
        if found.reachable[k] < 0.5 * found.target[k] and name not in found.absent:
            yield (
                f"{name} pixels are too few or too scattered for a share of {found.target[k]:.3g}: crops reach "
                f"{found.reachable[k]:.2g} with an effective sample size of {found.effective:.0%}, "
                f"{found.limit[k]:.2g} if a few are drawn for ever"
                + ("" if balance.level == "pixel" else "; level: pixel meets the target by ignoring pixels of the rest")
            )
    if balance.level == "pixel":
        yield f"{found.supervised:.2%} of the crops' labelled pixels are trained on, the rest is ignored"
