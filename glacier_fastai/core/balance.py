"""Pixel balance: from which places crops are drawn, so that their pixels come near a wanted composition of classes.

Where a window of a tile may begin is divided into cells. `crop_counts` gives the labelled pixels per class that a
window beginning anywhere in a cell holds on average: exactly, and looking at each pixel once. `solve` finds the
probabilities of the cells whose composition lies nearest to the target and which still use much of the data; drawing
a cell and then a place in it is what `data.balanced.PixelBalancedDL` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from typing import NamedTuple

import numpy as np

from ..bands import CLASSES
from ..errors import DataError, RecipeError, did_you_mean

__all__ = ["LEVELS", "TARGET", "PixelBalance", "Sampling", "cell_edges", "crop_counts", "solve"]

LEVELS = ("tile", "crop", "pixel")
"""What is chosen by its pixels: whole tiles (a crop lies anywhere in them), crops, or crops and then pixels in them."""

TARGET = {"background": 0.10, "glacier": 0.35, "debris": 0.40, "lake": 0.15}
CELLS = 8  # per side of a crop, along each axis
STIFF, LOOSE = 1e8, 1e-6  # weights of the entropy: even drawing, and as if there were none


@dataclass(frozen=True)
class PixelBalance:
    """What is wanted of the pixels that are trained on."""

    target: Mapping[str, float] = field(default_factory=TARGET.copy)  # class -> share of the labelled pixels; sum 1
    level: str = "crop"  # one of `LEVELS`
    min_effective: float = 0.6  # least effective sample size, as a share of the labelled pixels

    def __post_init__(self):
        for name in self.target:
            if name not in CLASSES:
                near = did_you_mean(name, CLASSES)
                raise RecipeError(f"target.{name}: no such class; use {', '.join(CLASSES)}{near}")
        total = sum(self.target.values())
        if min(self.target.values(), default=-1) < 0 or not abs(total - 1) < 1e-6:
            raise RecipeError(f"target: shares must be at least 0 and sum to 1, not to {total:g}")
        if self.level not in LEVELS:
            raise RecipeError(f"level: {self.level!r} is none of {', '.join(LEVELS)}")
        if not 0 < self.min_effective <= 1:
            raise RecipeError(f"min_effective: {self.min_effective:g} is not above 0 and at most 1")


@dataclass(frozen=True)
class Sampling:
    """Probabilities of N candidate cells and what they lead to; compositions are shares per class, `(K,)`."""

    probabilities: np.ndarray  # (N,), sum 1
    order: np.ndarray  # (N,), candidates from the least to the most wanted; batches are spread evenly along it
    target: np.ndarray  # what was asked for
    limit: np.ndarray  # the nearest to it that crops reach if a few of them are drawn for ever
    reachable: np.ndarray  # the nearest that crops reach with the effective sample size asked for
    expected: np.ndarray  # of the pixels that the loss sees: `reachable`, or with `keep` what is left of it
    keep: np.ndarray  # share of the pixels of each class that is kept, 1 except for level "pixel"
    supervised: float  # share of the crops' labelled pixels that is kept
    effective: float  # effective sample size, as a share of the labelled pixels
    notes: tuple[str, ...] = ()  # where it falls short, in words

    def draw(
        self,
        rng: np.random.Generator,  # decides
        n: int,  # number of batches
        bs: int,  # crops per batch
    ) -> np.ndarray:
        """Return candidates, int64 `(n, bs)`: each batch is a systematic sample, so that all are composed alike."""
        points = (rng.random((n, 1)) + np.arange(bs)) / bs
        cumulative = np.cumsum(self.probabilities[self.order])
        found = np.searchsorted(cumulative, points * cumulative[-1], side="right")
        return rng.permuted(self.order[np.minimum(found, len(self.order) - 1)], axis=1)


def cell_edges(
    size: int,  # side of a tile, pixels
    crop: int,  # side of a crop
    level: str = "crop",  # "tile" makes a single cell
) -> np.ndarray:
    """Return the edges of the cells along an axis, int64 `(G + 1,)`: windows of cell j begin at edge j .. j + 1."""
    places = size - crop + 1
    cells = 1 if level == "tile" else min(places, ceil(places * CELLS / crop))
    return np.arange(cells + 1) * places // cells


def crop_counts(
    mask: np.ndarray,  # (S, S) class codes, 255 = ignore
    crop: int,  # side of a crop, pixels
    edges: np.ndarray,  # (G + 1,), see `cell_edges`
    classes: int = len(CLASSES),  # number of classes K
) -> np.ndarray:
    """Return the mean labelled pixels per class over all windows that begin in each cell, float64 `(G, G, K)`.

    Windows of a cell cover a row with a share that rises, stays and falls; so the mean is the mask between two such
    weights, which is what integral images, summed over the places of a cell, come to.
    """
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
    elsewhere: np.ndarray | None = None,  # (K,) bool, classes that other tiles of the data have
) -> Sampling:
    """Find probabilities that bring the expected composition as near to the target as the sample size allows.

    Minimises, over the shares q of pixels that come from each candidate, ``KL(target || C'q) + t KL(q || q0)``: C holds
    the candidates' compositions, q0 is even drawing. A divergence counts what a class lacks in proportion to what it
    should have, so rare ones are not given up for a little more of the common ones. The problem is convex; its dual
    has one unknown per class and is solved by Newton's method. The weight t is the smallest at which the effective
    sample size ``exp(-KL(q || q0))`` (perplexity, Martino et al. 2017, doi:10.1016/j.sigpro.2016.08.025) keeps its
    floor, so no other probabilities that keep it come nearer. Windows are drawn in proportion to the labelled pixels
    they hold, times a factor that depends on their composition alone.

    Raises:
        DataError: No labelled pixel, or a class of the target that no tile has.
    """
    total = counts.sum(1)
    target = np.array([balance.target.get(c, 0.0) for c in CLASSES])
    if not total.any():
        raise DataError("no labelled pixel in any crop, so nothing can be balanced")
    absent = (counts.sum(0) == 0) & (target > 0)
    unknown = absent if elsewhere is None else absent & ~elsewhere
    if unknown.any():
        raise DataError(
            f"balance.target asks for {', '.join(np.array(CLASSES)[unknown])}, but no tile has a pixel of it; "
            "give shares that sum to 1 for the classes there are, or set balance to null"
        )
    some = np.flatnonzero(total)
    composition = counts[some] / total[some, None]
    base = places[some] * total[some].astype(np.float64)
    even = base * total[some]
    even /= even.sum()

    wanted = (target > 0) & ~absent
    if not wanted.any():
        raise DataError("balance.target: the training tiles have none of its classes; change it, or set it to null")
    nearest = partial(_newton, composition[:, wanted], even, target[wanted])
    limit = chosen = nearest(STIFF)
    enough, few = STIFF, None
    for stiffness in np.geomspace(STIFF, LOOSE, 15)[1:]:
        limit = nearest(stiffness, limit.dual)
        if few is None and limit.effective >= balance.min_effective:
            enough, chosen = stiffness, limit
        elif few is None:
            few = stiffness
    for _ in range(12 if few else 0):
        middle = np.sqrt(enough * few)
        tried = nearest(middle, chosen.dual)
        if tried.effective >= balance.min_effective:
            enough, chosen = middle, tried
        else:
            few = middle

    p = base * np.exp(chosen.score - chosen.score.max())
    expected = reachable = chosen.q @ composition
    keep = np.ones_like(target)
    if balance.level == "pixel":
        expected = np.where(wanted, target, 0) / target[wanted].sum()
        scarce = np.min(reachable[wanted] / expected[wanted])
        keep = np.divide(expected * scarce, reachable, out=keep, where=reachable > 0)
    probabilities = np.zeros(len(counts))
    probabilities[some] = p / p.sum()
    result = Sampling(
        probabilities,
        some[np.argsort(chosen.score, kind="stable")],
        target=target,
        limit=limit.q @ composition,
        reachable=reachable,
        expected=expected,
        keep=keep,
        supervised=float(reachable @ keep),
        effective=chosen.effective,
    )
    return replace(result, notes=tuple(_notes(result, balance, absent)))


class _Nearest(NamedTuple):
    dual: np.ndarray  # (J,), how much nearer a little more of each wanted class brings
    score: np.ndarray  # (N,), log of the factor by which each candidate is drawn more often than evenly
    q: np.ndarray  # (N,), share of the pixels that come from each candidate
    effective: float


def _newton(composition, even, target, stiffness, dual=None) -> _Nearest:
    def at(u):
        score = composition @ (u / stiffness)
        top = score.max()
        q = even * np.exp(score - top)
        free = top + np.log(q.sum())
        return stiffness * free - target @ np.log(u), score - free, q / q.sum()

    dual = target / (even @ composition) if dual is None else dual
    value, score, q = at(dual)
    for _ in range(100):
        reached = q @ composition
        gradient = reached - target / dual
        if np.abs(gradient).max() < 1e-10:
            break
        centred = composition - reached
        curvature = np.diag(target / dual**2) + (centred.T * q) @ centred / stiffness
        step = -np.linalg.solve(curvature, gradient)
        length = min(1.0, 0.9 / max(1e-9, (-step / dual).max()))  # the dual stays positive
        while (new := at(dual + length * step))[0] > value + 1e-4 * length * (gradient @ step) and length > 1e-8:
            length /= 2
        if length <= 1e-8:  # as far as rounding allows
            break
        dual, (value, score, q) = dual + length * step, new
    return _Nearest(dual, score, q, float(np.exp(-(q @ score))))


def _notes(found: Sampling, balance: PixelBalance, absent: np.ndarray):
    if absent.any():
        yield f"no training tile has {', '.join(np.array(CLASSES)[absent])}; the other classes share its part"
    for k, name in enumerate(CLASSES):
        if found.reachable[k] < 0.5 * found.target[k] and not absent[k]:
            yield (
                f"{name} pixels are too few or too scattered for a share of {found.target[k]:.3g}: crops reach "
                f"{found.reachable[k]:.2g} while at least {balance.min_effective:.0%} of the data is used, and "
                f"{found.limit[k]:.2g} at the very most"
                + ("" if balance.level == "pixel" else "; level: pixel meets the target by ignoring pixels of the rest")
            )
    if found.supervised < 0.05:
        yield f"only {found.supervised:.1%} of the crops' labelled pixels are trained on, the rest is ignored"
