"""Probabilities that mean what they say, and decisions made for the MCC.

All of it is fitted on predictions of pixels that the model never saw (out of fold), in this order: `fit_temperature`;
on what `calibrated` returns, `fit_offsets`, and `fit_area_interval` of `areas`. It is then applied to whole scenes a
strip at a time. Probabilities are floats that sum to 1 over the K classes, on axis `dim`. Labels are class codes;
pixels of label 255 (`bands.IGNORE`) count for nothing, and their probabilities may be anything. Of ice of unknown kind
(254, `bands.ICE_OF_ANY_KIND`) the probability is that of glacier and debris together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ..bands import CLASSES, ICE, ICE_OF_ANY_KIND, IGNORE
from ..errors import DataError
from .confusion import WATCHED, confusion_matrix, plain_tensor, watched

__all__ = [
    "LEAST_GAIN",
    "Reliability",
    "all_glacier",
    "calibrated",
    "decide",
    "expected_calibration_error",
    "fit_offsets",
    "fit_temperature",
    "nll",
    "reliability",
]

LEAST_GAIN = 1e-3
"""What a move of decision offsets must add to the MCC; less is taken for noise."""

FLOOR = 2.0**-25  # least probability: half the least positive float16, so float16 and float32 give the same
TEMPERATURES = 0.05, 20.0  # bounds; without them a model that is always right would get 0, one that knows nothing inf
STEP, STEPS = 0.02, 150  # grid of offsets: spacing, and number of values either side of 0
CHUNK = 2**18  # pixels held in float64 at a time


# Probabilities


def calibrated(
    probs: Tensor,  # (K, ...), any float type
    temperature: float,  # T > 0; above 1 the model was too sure
    bias: Sequence[float],  # (K,)
    dim: int = 0,  # axis of the classes
) -> Tensor:
    """Return ``softmax(log p / T + bias)``, float32 of the shape of `probs`; probabilities below 3e-8 count as that.

    >>> calibrated(torch.tensor([0.2, 0.8]), 2.0, [0.0, 0.0])
    tensor([0.3333, 0.6667])

    Raises:
        DataError: `probs` are no probabilities, there is not one bias per class, or T is not positive and finite.
    """
    probs = _probabilities(probs, dim)
    added = _per_class("bias", bias, probs, dim).float()
    if not 0 < temperature < math.inf:
        raise DataError(f"temperature {temperature:g}: use a positive number")
    return tempered(probs, temperature, added, dim)


def tempered(
    probs: Tensor,  # (K, ...), any float type
    temperature: float,
    added: Tensor,  # biases, shaped to be added to `probs`
    dim: int = 0,  # axis of the classes
) -> Tensor:
    """Return what `calibrated` does, of arguments that nobody looks at, as where a network is exported."""
    return (probs.float().clamp(min=FLOOR).log() / temperature + added).softmax(dim)


def all_glacier(
    probs: Tensor,  # (K, ...), any float type
    dim: int = 0,  # axis of the classes
) -> Tensor:
    """Return probabilities in which all ice is glacier, of a model that was never told which ice is under debris.

    >>> all_glacier(torch.tensor([0.5, 0.25, 0.125, 0.125]))
    tensor([0.5000, 0.3750, 0.0000, 0.1250])
    """
    out, (glacier, debris) = probs.clone(), ICE
    out.select(dim, glacier).add_(out.select(dim, debris))
    out.select(dim, debris).zero_()
    return out


def decide(
    probs: Tensor,  # (K, ...), any float type
    offsets: Sequence[float],  # (K,), as from `fit_offsets`
    dim: int = 0,  # axis of the classes
) -> Tensor:
    """Return the class with the largest ``log p + offset``, uint8 without axis `dim`; the lower code of equals.

    >>> decide(torch.tensor([[0.6, 0.5, 0.1], [0.4, 0.5, 0.9]]), [0.0, 0.0])
    tensor([0, 0, 1], dtype=torch.uint8)

    Raises:
        DataError: `probs` are no probabilities, or there is not one finite offset per class.
    """
    probs = _probabilities(probs, dim)
    added = _per_class("offsets", offsets, probs, dim)
    # factors, since rounded logarithms make equals of unequal probabilities
    factors = (added - added.max()).exp().to(torch.promote_types(probs.dtype, torch.float32))
    best = probs.select(dim, 0) * factors.select(dim, 0)
    code = torch.zeros_like(best, dtype=torch.uint8)
    for k in range(1, probs.shape[dim]):  # a fifth of the time of argmax along the first axis
        score = probs.select(dim, k) * factors.select(dim, k)
        code.masked_fill_(score > best, k)
        best = torch.maximum(best, score)
    return code


def nll(
    probs: Tensor | np.ndarray,  # (N, K), or any shape with the classes on axis `dim`
    labels: Tensor | np.ndarray,  # (N,), the shape of `probs` without axis `dim`
    dim: int = -1,  # axis of the classes
) -> float:
    """Return the mean negative log-likelihood of the labels, nats per labelled pixel.

    >>> round(nll(torch.tensor([[0.5, 0.5], [0.1, 0.9]]), torch.tensor([0, 255])), 4)
    0.6931

    Raises:
        DataError: The input does not fit, or nothing is labelled.
    """
    probs, labels = _labelled(probs, labels, dim)
    probs, labels = _as_ice(probs, labels)
    chosen = probs.gather(1, labels[:, None]).double()
    return -chosen.clamp(min=FLOOR).log().mean().item()


def fit_temperature(
    probs: Tensor | np.ndarray,  # (N, K), or any shape with the classes on axis `dim`
    labels: Tensor | np.ndarray,  # (N,), the shape of `probs` without axis `dim`
    bias: bool = False,  # also fit a bias per class
    dim: int = -1,  # axis of the classes
) -> tuple[float, list[float]]:
    """Return temperature and bias per class for `calibrated`, of the least negative log-likelihood.

    The problem is convex in 1/T and the biases, and solved in float64. T stays within 0.05 to 20. Biases sum to 0; a
    class without a label keeps 0, as its best bias would be minus infinity. Ice of unknown kind is as likely as its two
    classes together, and stands for glacier where the biases are asked which classes there are.

    Sources: Guo et al. 2017, arXiv 1706.04599 (temperature); Kull et al. 2019, arXiv 1910.12656 (bias on log p).

    Raises:
        DataError: The input does not fit, or nothing is labelled.
    """
    probs, labels = _labelled(probs, labels, dim)
    unknown = labels == probs.shape[1]
    labels = labels.masked_fill(unknown, ICE[0])
    there = labels.unique() if bias else labels[:1]  # a single class leaves no bias free
    units = torch.eye(probs.shape[1], dtype=torch.float64, device=probs.device)
    basis = units[there[:-1]] - units[there[-1]]  # of the biases of the classes that are there, summing to 0

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(at).to(basis)
        value, gradient = 0.0, torch.zeros_like(x)
        for p, y, u in zip(probs.split(CHUNK), labels.split(CHUNK), unknown.split(CHUNK), strict=True):
            logits = p.double().clamp(min=FLOOR).log_()
            q = (x[0] * logits + x[1:] @ basis).log_softmax(1)
            chosen, wanted = q.gather(1, y[:, None])[:, 0], units[y]
            if u.any():
                both = q[u][:, list(ICE)]
                chosen[u] = both.logsumexp(1)
                wanted[u] = both.softmax(1) @ units[list(ICE)]
            value -= chosen.sum().item()
            error = q.exp_().sub_(wanted)
            gradient[0] += (error * logits).sum()
            gradient[1:] += basis @ error.sum(0)
        return value / len(labels), (gradient / len(labels)).cpu().numpy()

    low, high = TEMPERATURES
    bounds = [(1 / high, 1 / low)] + [(None, None)] * len(basis)
    strict = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 500}
    x = minimize(loss, [1.0] + [0.0] * len(basis), jac=True, method="L-BFGS-B", bounds=bounds, options=strict).x
    return float(1 / x[0]), (torch.from_numpy(x[1:]).to(basis) @ basis).tolist()


# Reliability


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often what was said with some confidence is true, in bins of confidence; tables add up like their pixels."""

    edges: np.ndarray  # (bins + 1,), 0 to 1; a bin holds its upper edge, the first also 0
    pixels: np.ndarray  # (bins,) int64
    confidence_sum: np.ndarray  # (bins,) float64, sum over the pixels
    hits: np.ndarray  # (bins,) int64, pixels where it is true

    @property
    def confidence(self) -> np.ndarray:
        """Mean confidence per bin, `(bins,)`; NaN where there is no pixel."""
        return self._mean(self.confidence_sum)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of the hits per bin, `(bins,)`; NaN where there is no pixel."""
        return self._mean(self.hits)

    def _mean(self, total: np.ndarray) -> np.ndarray:
        return np.divide(total, self.pixels, out=np.full(len(total), np.nan), where=self.pixels > 0)

    def __add__(self, other: Reliability) -> Reliability:
        if not np.array_equal(self.edges, other.edges):
            raise DataError(f"tables of {len(self.pixels)} and {len(other.pixels)} bins cannot be added")
        sums = (getattr(self, name) + getattr(other, name) for name in ("pixels", "confidence_sum", "hits"))
        return Reliability(self.edges, *sums)


def reliability(
    probs: Tensor | np.ndarray,  # (N, K), or any shape with the classes on axis `dim`
    labels: Tensor | np.ndarray,  # (N,), the shape of `probs` without axis `dim`
    bins: int = 15,  # of equal width
    of: Sequence[int] | None = None,  # classes: (2,) for that class alone, `bands.ICE` for ice of any kind
    dim: int = -1,  # axis of the classes
) -> Reliability:
    """Return the reliability of the most probable class, or of the summed probability of the classes `of`.

    Where nothing is labelled the table is empty, so that any tile can be added. Of ice of unknown kind, glacier and
    debris are one class; it is left out where `of` holds one of these alone.

    Source: Guo et al. 2017, arXiv 1706.04599; per class, Kull et al. 2019, arXiv 1910.12656.

    Raises:
        DataError: The input does not fit, or `bins` or `of` are out of range.
    """
    probs, labels = _labelled(probs, labels, dim, some=False)
    if bins < 1:
        raise DataError(f"{bins} bins: use at least 1")
    if of is None:
        probs, labels = _as_ice(probs, labels)
        confidence, code = probs.max(1)
        hit, confidence = code == labels, confidence.double()
    else:
        of = sorted(set(of))
        if not of or not 0 <= of[0] <= of[-1] < probs.shape[1]:
            raise DataError(f"reliability of classes {of}: use codes from 0 to {probs.shape[1] - 1}")
        if len({*of} & {*ICE}) == 1:
            known = labels != probs.shape[1]
            probs, labels = probs[known], labels[known]
        probs, labels = _as_ice(probs, labels)
        confidence, hit = probs[:, of].double().sum(1), torch.isin(labels, labels.new_tensor(of))
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=probs.device)
    which = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    sums = (torch.bincount(which, w, minlength=bins) for w in (None, confidence, hit.double()))
    pixels, confidence_sum, hits = (x.cpu().numpy() for x in sums)
    return Reliability(edges.cpu().numpy(), pixels, confidence_sum, hits.astype(np.int64))


def expected_calibration_error(
    table: Reliability,  # as from `reliability`
) -> float:
    """Return the mean over pixels of |accuracy - confidence| of their bin, 0 to 1.

    Source: Naeini et al. 2015, doi 10.1609/aaai.v29i1.9602.

    Raises:
        DataError: The table is empty.
    """
    if not table.pixels.any():
        raise DataError("no labelled pixel in the table, so there is no calibration error")
    return float(np.abs(table.hits - table.confidence_sum).sum() / table.pixels.sum())


# Decisions


def fit_offsets(
    probs: Tensor | np.ndarray,  # (N, K), or any shape with the classes on axis `dim`
    labels: Tensor | np.ndarray,  # (N,), the shape of `probs` without axis `dim`
    dim: int = -1,  # axis of the classes
) -> list[float]:
    """Return an offset per class for `decide` that raises the MCC of the labelled pixels; background's is 0.

    From zero, the offset of one class, or those of all classes but background together, go to the best of all values
    within 3 of 0 in steps of 0.02 (the nearest of those within 1e-4 of MCC), as long as that adds more than
    `LEAST_GAIN`. So the MCC on this data is that of zero offsets, or higher by more than that. A class without a label
    keeps 0. Where most ice is of unknown kind it is the MCC of ice, and glacier and debris have one offset
    (`confusion.watched`); else the MCC of the classes, for which such pixels count for nothing.

    Raises:
        DataError: The input does not fit, or nothing is labelled.
    """
    probs, labels = _labelled(probs, labels, dim)
    k = probs.shape[1]
    logs = probs.float().clamp(min=FLOOR).log_()
    pixels = labels.bincount(minlength=k + 1).tolist()
    name = watched(sum(pixels[c] for c in ICE if c < k), pixels[k])
    mcc = WATCHED[name]
    there = [c for c in range(1, k) if pixels[c]]
    groups = [[c] for c in there] + [there] * (len(there) > 1)  # together: else a model too sure of background traps it
    if name == "ice_mcc":
        groups = [list(ICE)]
    steps = [0] * k
    truth = labels.masked_fill(labels == k, ICE_OF_ANY_KIND)

    def score() -> tuple[float, list[float]]:
        offsets = [round(STEP * s, 2) for s in steps]
        return mcc(confusion_matrix(decide(probs, offsets, dim=1), truth, k, unknown_ice=True)), offsets

    start, zero = score()
    best = start
    moved = True
    while moved:
        moved = False
        for group in groups:
            low, high = -STEPS - min(steps[c] for c in group), STEPS - max(steps[c] for c in group)
            matrices = _along(logs + STEP * logs.new_tensor(steps), labels, group, low, high)
            along = zip(range(low, high + 1), matrices, strict=True)
            found, _, move = max((round(mcc(cm), 4), -abs(m), m) for m, cm in along)
            if found > best + LEAST_GAIN:
                best, moved = found, True
                for c in group:
                    steps[c] += move
    final, offsets = score()  # `decide` has the last word on pixels that rounding decides
    return offsets if final > start + LEAST_GAIN else zero


def _along(scores: Tensor, labels: Tensor, group: list[int], low: int, high: int) -> Tensor:
    """Return the confusion matrices, int64 `(high - low + 1, K + 1, K)`, with `group` raised by `low` to `high` steps.

    A pixel goes over to the group once and stays there, so that all matrices follow from one look at each pixel.
    """
    k, n = scores.shape[1], high - low + 1
    inside, outside = torch.tensor(group), torch.tensor([c for c in range(k) if c not in group])
    (win, mine), (bar, other) = scores[:, inside].max(1), scores[:, outside].max(1)
    turn = ((bar - win) / STEP).floor_().add_(1 - low).clamp_(0, n).long()  # number of the step, n for never

    def counts(code: Tensor) -> Tensor:
        at = (turn * (k + 1) + labels) * k + code
        return torch.bincount(at, minlength=(n + 1) * (k + 1) * k).view(n + 1, k + 1, k).cumsum(0)

    joined, left = counts(inside.to(mine)[mine]), counts(outside.to(other)[other])
    return (joined + left[-1] - left)[:n]


# Checks


def _probabilities(probs: Tensor | np.ndarray, dim: int) -> Tensor:
    """Check `probs` and return them as a plain tensor."""
    probs = plain_tensor(probs)
    if not probs.is_floating_point() or not -probs.ndim <= dim < probs.ndim:
        raise DataError(f"probabilities {probs.dtype} {tuple(probs.shape)}: use floats with the classes on axis {dim}")
    # written so that NaN fails
    if not ((probs.sum(dim) - 1).abs() < 0.01).all() or (probs < 0).any():
        raise DataError(f"probabilities: use finite numbers of at least 0 that sum to 1 over the classes (axis {dim})")
    return probs


def _per_class(name: str, values: Sequence[float], probs: Tensor, dim: int) -> Tensor:
    """Check `values` and return them, float64, in the shape that goes with `probs`."""
    found = torch.as_tensor(values, dtype=torch.float64)
    if found.shape != (probs.shape[dim],) or not found.isfinite().all():
        raise DataError(f"{name} {found.tolist()}: use one finite number for each of {probs.shape[dim]} classes")
    shape = [1] * probs.ndim
    shape[dim] = -1
    return found.to(probs.device).view(shape)


def _labelled(
    probs: Tensor | np.ndarray, labels: Tensor | np.ndarray, dim: int, some: bool = True
) -> tuple[Tensor, Tensor]:
    """Check both and return those of the labelled pixels, `(N, K)` and int64 `(N,)`; `some`: there must be one.

    The label of ice of unknown kind is K.
    """
    probs, labels = plain_tensor(probs), plain_tensor(labels)
    if not -probs.ndim <= dim < probs.ndim or probs.movedim(dim, -1).shape[:-1] != labels.shape:
        raise DataError(f"probabilities {tuple(probs.shape)} and labels {tuple(labels.shape)} do not fit")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"labels are {labels.dtype}: use class codes of an integer type")
    known = labels != IGNORE
    probs, labels = _probabilities(probs.movedim(dim, -1)[known], 1), labels[known].long()
    if some and not len(labels):
        raise DataError("no labelled pixel, so nothing can be fitted or measured")
    unknown = (labels == ICE_OF_ANY_KIND) & (probs.shape[1] == len(CLASSES))
    codes = labels[~unknown]
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < probs.shape[1]:
        found = f"{codes.min()} to {codes.max()}"
        raise DataError(f"labels from {found}: use 0 to {probs.shape[1] - 1}, and {IGNORE} for none")
    return probs, labels.masked_fill(unknown, probs.shape[1])


def _as_ice(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with glacier in place of ice of unknown kind, where the probability of glacier is that of all ice."""
    if not (unknown := labels == probs.shape[1]).any():
        return probs, labels
    return torch.where(unknown[:, None], all_glacier(probs, 1), probs), labels.masked_fill(unknown, ICE[0])
