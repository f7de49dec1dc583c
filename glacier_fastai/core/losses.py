"""Segmentation losses that agree about nodata, absent classes and precision, and their weighted sum.

Every loss takes logits ``(B, K, H, W)`` and integer labels ``(B, H, W)``, in which `ignore_index` marks pixels that
count for nothing. Two small facts carry the module. The region losses (Dice, MCC) are functions of the soft confusion
matrix ``S[k, l]``, the sum over valid pixels of ``[y = k] p_l``. The pixel losses (focal, boundary) are functions of
``log p_y``. So one softmax serves all parts of `CombinedLoss`, and no part looks at the pixels by itself.

What an absent class does:

- Dice: a class that no valid pixel of the batch carries is left out of the mean. False positives in it still cost,
  through the classes which they take the pixels from.
- MCC: by the formula; probability given to an absent class is a soft false positive in its column. Where R_K is 0/0
  (one class in the truth, or one class predicted everywhere with certainty) it is 0, as in scikit-learn: the loss is
  1 and its gradient 0.
- Boundary F1: a class without a boundary in the truth is left out of the mean.
- A batch without a valid pixel: every loss is 0 and its gradient 0.

Ice of unknown kind (label 254, `ICE_OF_ANY_KIND`) is glacier or debris, nobody says which. The loss of such a pixel
depends on ``p_ice = p_glacier + p_debris`` alone:

- Focal, boundary: ``p_y`` is p_ice, alpha the mean of the two classes. Beside glacier or debris is no edge.
- Dice, MCC, boundary F1: computed with four classes, of the pixels of a known class, and with three, ice being one, of
  all. The loss is ``(1 - w) four + w three`` with w the share of unknown kind among the labelled ice.

All is computed in float32 (float64 if the logits are), also inside autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..bands import ICE, ICE_OF_ANY_KIND, IGNORE
from ..errors import DataError, RecipeError
from .settings import PARTS, PHASE_A, LossSettings, takes

__all__ = [
    "CombinedLoss",
    "bf1_loss",
    "boundary_loss",
    "dice_loss",
    "focal_loss",
    "knows_ice",
    "mcc_loss",
]

_DEFAULT = LossSettings()
_WINDOWS = (3, 5)  # of the boundary F1: that finds a boundary, and within which boundaries match
_ICE = slice(ICE[0], ICE[-1] + 1)  # a tuple as index would make the host wait for a GPU

_FLAT = 1e-3  # below this 1 - R_K the power of the MCC loss goes on as a straight line: slope 7.9 at exponent 0.7


class _Batch:
    """What the parts share about one batch, computed at first use."""

    def __init__(
        self,
        logits: Tensor,  # (B, K, H, W), any float type
        target: Tensor,  # (B, H, W), any integer type
        ignore_index: int,  # label of pixels that count for nothing
        reduction: str,  # "mean": one value for the batch; "none": one per image
        total: Callable[[Tensor], Tensor] | None = None,  # sums a tensor over processes, with gradients
    ):
        # fastai's tensor types cost a Python call per operation and refuse to meet other types
        logits, target = logits.as_subclass(Tensor), target.as_subclass(Tensor)
        if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
            raise DataError(
                f"logits {tuple(logits.shape)} and labels {tuple(target.shape)} do not fit: "
                "use (B, K, H, W) and (B, H, W)"
            )
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise DataError(f"labels are {target.dtype}: use an integer type")
        if reduction not in ("mean", "none"):
            raise RecipeError(f"unknown reduction {reduction!r}: use 'mean' or 'none'")
        self.logits = logits if logits.dtype == torch.float64 else logits.float()
        self.target, self.ignore_index, self.reduction, self.classes = target, ignore_index, reduction, logits.shape[1]
        self.total = total

    def pool(self, per_image: Tensor) -> Tensor:
        """Sum ``(B, ...)`` over the batch, of all processes if there are several; or keep the images apart."""
        if self.reduction == "none":
            return per_image
        return per_image.sum(0) if self.total is None else self.total(per_image.sum(0))

    @cached_property
    def p(self) -> Tensor:
        """Probabilities, ``(B, K, H, W)``, for a part that the statistics are not enough for."""
        return self.logits.softmax(1)

    @cached_property
    def valid(self) -> Tensor:
        """Pixels that count, ``(B, H, W)`` bool."""
        return self.target != self.ignore_index

    @cached_property
    def count(self) -> Tensor:
        """Number of valid pixels."""
        return self.pool(self.valid.sum((1, 2)))

    @cached_property
    def unknown(self) -> Tensor:
        """Pixels of ice of unknown kind, ``(B, H, W)`` bool."""
        return (self.target == ICE_OF_ANY_KIND) & self.valid

    @cached_property
    def mixed(self) -> bool:
        """Whether there may be ice of unknown kind; False where all processes are known to have none."""
        classes, labels = self.classes, self.target * self.valid
        low, high = labels.aminmax()
        on_gpu = labels.is_cuda  # the host does not wait for what it holds
        mixed = classes > ICE[-1] and (on_gpu or self.total is not None or bool(high == ICE_OF_ANY_KIND))
        if mixed:
            low, high = labels.masked_fill(self.unknown, 0).aminmax()
        # a foreign code (85, 170) would count as valid and belong to no class
        wrong = f"labels other than 0 to {classes - 1} and the ignored one"
        if on_gpu:
            torch._assert_async((low >= 0) & (high < classes), wrong)
        elif high == ICE_OF_ANY_KIND:
            raise DataError(
                f"labels hold {ICE_OF_ANY_KIND}, ice of unknown kind, and the logits have {classes} classes: "
                f"use at least {ICE[-1] + 1}, or label such pixels {ICE[0]}"
            )
        elif low < 0 or high >= classes:
            raise DataError(f"{wrong}: {int(low)} to {int(high)}")
        return mixed

    @cached_property
    def label(self) -> Tensor:
        """Row of the one-hot, ``(B, H, W)`` int16: the class, K for ice of unknown kind; -1 where ignored."""
        mixed = self.mixed  # before anything is made of labels: it refuses foreign ones
        label = self.target.to(torch.int16).masked_fill(~self.valid, -1)
        return label.masked_fill_(self.unknown, self.classes) if mixed else label

    @cached_property
    def onehot(self) -> Tensor:
        """``[y = k]``, ``(B, K, H, W)``, 0 where ignored; where `mixed`, row K is ice of unknown kind."""
        label, rows = self.label, self.classes + self.mixed
        codes = torch.arange(rows, device=label.device, dtype=torch.int16).view(-1, 1, 1)
        out = torch.empty(len(label), rows, *label.shape[1:], device=label.device, dtype=self.logits.dtype)
        return torch.eq(label[:, None], codes, out=out)  # a quarter of the time of == and .to(dtype)

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        return _Statistics.apply(self.logits, self.onehot)

    @property
    def log_py(self) -> Tensor:
        """Log-probability of the true class, or of ice, ``(B, H, W)``; 0 where ignored."""
        return self._statistics[0]

    @cached_property
    def confusion(self) -> Tensor:
        """Soft confusion matrix, ``(K, K)`` or ``(B, K, K)``, with a row more where `mixed`."""
        return self.pool(self._statistics[1])

    def at_both_levels(self, known: Tensor, ice: Callable[[], Tensor]) -> Tensor:
        """Mix a loss of four classes with that of three, by the share of ice whose kind is unknown."""
        if not self.mixed:
            return known
        n = self.confusion.detach().sum(-1)
        unknown = n[..., self.classes]
        return known.lerp(ice(), unknown / (unknown + n[..., _ICE].sum(-1)).clamp(min=0.5))

    def ice_as_one(self, x: Tensor, dim: int) -> Tensor:
        """Sum glacier, debris and, behind the classes, ice of unknown kind along an axis."""
        sizes = [ICE[0], len(ICE), self.classes - ICE[-1] - 1, x.shape[dim] - self.classes]
        before, ice, after, unknown = x.split(sizes, dim)
        return torch.cat([before, torch.cat([ice, unknown], dim).sum(dim, keepdim=True), after], dim)

    def mean(self, pixels: Tensor) -> Tensor:
        """Mean over valid pixels of ``(B, H, W)`` values that are 0 where ignored."""
        return self.pool(pixels.sum((1, 2))) / self.count.clamp(min=1)


class _Statistics(torch.autograd.Function):
    """Logits and one-hot labels -> ``log p_y`` ``(B, H, W)`` and the soft confusion matrix of each image ``(B, K, K)``.

    The one-hot may have a row K for ice of unknown kind, whose p_y is p_ice; so then has the matrix.
    In plain operations the same takes a third more time and memory (``tests/benchmarks/test_loss.py``).
    With ``u_l = p_l sum_k [y = k] dS[k, l] + [y = l] d(log p_y)`` the gradient by logit l is ``u_l - p_l sum u``; in
    place of ``[y = l]`` such a pixel has ``p_l / p_ice`` for glacier and debris.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, onehot: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits.log_softmax(1).clamp_(min=-1e30)  # -inf for logits near the end of float32; 0 * inf is NaN
        classes, share = logits.shape[1], None
        log_py = (log_p * onehot[:, :classes]).sum(1)
        if onehot.shape[1] > classes:
            glacier, debris = (log_p[:, k] for k in ICE)
            log_py.addcmul_(onehot[:, classes], torch.logaddexp(glacier, debris).clamp_(max=0))
            share = (glacier - debris).sigmoid_()
        p = log_p.exp_()
        ctx.save_for_backward(p, onehot, share)
        return log_py, onehot.flatten(2) @ p.flatten(2).mT

    @staticmethod
    @once_differentiable
    def backward(ctx, d_log_py: Tensor, d_confusion: Tensor) -> tuple[Tensor, None]:
        p, onehot, share = ctx.saved_tensors
        with torch.autocast(p.device.type, enabled=False):  # backward may be called inside autocast
            u = (d_confusion.mT @ onehot.flatten(2)).view_as(p).mul_(p)
        u.addcmul_(onehot[:, : p.shape[1]], d_log_py[:, None])
        if share is not None:
            d_ice = onehot[:, -1] * d_log_py
            for k, part in zip(ICE, (share, 1 - share), strict=True):
                u[:, k].addcmul_(d_ice, part)
        return u.addcmul_(p, u.sum(1, keepdim=True), value=-1), None


@contextmanager
def _batch(
    logits: Tensor, target: Tensor, ignore_index: int, reduction: str, total: Callable[[Tensor], Tensor] | None = None
) -> Iterator[_Batch]:
    with torch.autocast(logits.device.type, enabled=False):
        yield _Batch(logits, target, ignore_index, reduction, total)


def _focal(b: _Batch, alpha: Tensor, gamma: float) -> Tensor:
    if len(alpha) != b.classes:
        raise RecipeError(f"alpha has {len(alpha)} values for {b.classes} classes: give one per class")
    # the bound keeps the gradient of a power below 1 finite where p_y is 1
    miss = (1 - b.log_py.exp()).clamp(min=1e-7) ** gamma
    alpha = alpha.to(b.onehot, non_blocking=True)
    if b.mixed:
        alpha = torch.cat([alpha, alpha[_ICE].mean(0, keepdim=True)])
    weight = (alpha @ b.onehot.flatten(2)).view_as(miss)
    return -b.mean(weight * miss * b.log_py)


def _region(b: _Batch, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a loss of the soft confusion matrix, ``(..., K, K)``."""
    s = b.confusion
    known = s[..., : b.classes, :] if b.mixed else s  # a slice would sum gradients in another order
    return b.at_both_levels(loss(known), lambda: loss(b.ice_as_one(b.ice_as_one(s, -2), -1)))


def _dice(s: Tensor, smooth: float) -> Tensor:
    truth, pred, hit = s.sum(-1), s.sum(-2), s.diagonal(dim1=-2, dim2=-1)
    here = truth > 0
    loss = 1 - (2 * hit + smooth) / (truth + pred + smooth)
    return torch.where(here, loss, 0).sum(-1) / here.sum(-1).clamp(min=1)


def _mcc(s: Tensor, exponent: float) -> Tensor:
    x = 1 - _soft_mcc(s)
    return torch.where(s.sum((-2, -1)) > 0, x * x.clamp(min=_FLAT) ** (exponent - 1), 0)


def _soft_mcc(s: Tensor) -> Tensor:
    """R_K of ``(..., K, K)``; 0 where undefined.

    The numerator is written as the sum over classes of TP TN - FP FN, and 1 - sum p^2 as the sum of p_k p_l over
    k != l: equal to Gorodkin's, but no small difference of large numbers, so float32 does.
    """
    c = s / s.sum((-2, -1), keepdim=True).clamp(min=0.5)
    other = 1 - torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)
    tp, wrong = c.diagonal(dim1=-2, dim2=-1), c * other
    tn = (c.unsqueeze(-3) * other[:, :, None] * other[:, None, :]).sum((-2, -1))
    top = (tp * tn - wrong.sum(-2) * wrong.sum(-1)).sum(-1)
    spread = [(m.unsqueeze(-1) * m.unsqueeze(-2) * other).sum((-2, -1)) for m in (c.sum(-1), c.sum(-2))]
    below = spread[0] * spread[1]
    defined = below > 1e-24
    return torch.where(defined, top / torch.where(defined, below, 1).sqrt(), 0)


def _edge_weights(b: _Batch, edge: float, interface: float) -> Tensor:
    """Weight per pixel, ``(B, H, W)``: 1, `edge` beside another class, `interface` where glacier meets debris.

    Of an ignored pixel it is anything.
    """
    dtype = torch.uint8 if b.classes < 8 else torch.int64
    bit = (torch.ones((), dtype=dtype, device=b.target.device) << b.label.to(dtype)) * b.valid
    seen = bit.clone()  # one bit per class at the pixel and its four neighbours; nodata has no bit
    seen[:, 1:] |= bit[:, :-1]
    seen[:, :-1] |= bit[:, 1:]
    seen[:, :, 1:] |= bit[:, :, :-1]
    seen[:, :, :-1] |= bit[:, :, 1:]
    ice = sum(1 << k for k in ICE)
    is_ice = (bit & ice) != 0
    on_interface = ((seen & ice) == ice) & is_ice
    own = bit  # what may be the pixel's own class
    if b.mixed:
        unknown = 1 << b.classes
        own = torch.where(is_ice, bit | unknown, torch.where(bit == unknown, unknown | ice, bit))
    on_edge = (seen | own) != own
    weight = torch.ones_like(b.target, dtype=b.logits.dtype)
    return weight.masked_fill_(on_edge, edge).masked_fill_(on_interface, interface)


def _boundary(b: _Batch, edge: float, interface: float) -> Tensor:
    return -b.mean(_edge_weights(b, edge, interface) * b.log_py)


def _bf1(b: _Batch, t0: int, t: int) -> Tensor:
    known = (b.onehot[:, : b.classes], b.p, b.valid & ~b.unknown if b.mixed else b.valid)
    loss = partial(_boundary_f1, b.pool, t0, t)
    return b.at_both_levels(loss(*known), lambda: loss(b.ice_as_one(b.onehot, 1), b.ice_as_one(b.p, 1), b.valid))


def _boundary_f1(pool: Callable[[Tensor], Tensor], t0: int, t: int, onehot: Tensor, p: Tensor, valid: Tensor) -> Tensor:
    valid = valid[:, None]

    def grow(x: Tensor, width: int) -> Tensor:
        return F.max_pool2d(x, width, 1, width // 2)

    def edges(x: Tensor) -> Tensor:
        outside = (1 - x) * valid  # nodata is not outside, so its rim is no boundary
        return (grow(outside, t0) - outside) * valid

    def total(x: Tensor) -> Tensor:
        return pool(x.sum((2, 3)))

    with torch.no_grad():
        true_edge = edges(onehot)
        near_true = grow(true_edge, t)
        length = total(true_edge)
    edge = edges(p)
    precision = total(edge * near_true) / total(edge).clamp(min=1e-6)
    recall = total(true_edge * grow(edge, t)) / length.clamp(min=1)
    loss = 1 - 2 * precision * recall / (precision + recall).clamp(min=1e-6)
    here = length > 0
    return torch.where(here, loss, 0).sum(-1) / here.sum(-1).clamp(min=1)


def focal_loss(
    logits: Tensor,  # (B, K, H, W)
    target: Tensor,  # (B, H, W), any integer type
    alpha: Sequence[float] | Tensor = _DEFAULT.alpha,  # weight per class
    gamma: float = _DEFAULT.gamma,  # how far well-classified pixels are discounted
    ignore_index: int = IGNORE,  # label of pixels that count for nothing
    reduction: str = "mean",  # "mean": over the batch's valid pixels; "none": a mean per image, (B,)
) -> Tensor:
    """Return the mean over valid pixels of ``-alpha_y (1 - p_y)^gamma log p_y``.

    >>> logits = torch.tensor([[[[2.0, 0, 0, 0]] * 4, [[0.0, 1, 1, 0]] * 4]])
    >>> target = torch.tensor([[[0, 0, 1, 255]] * 4])
    >>> focal_loss(logits, target, alpha=(1, 2))
    tensor(0.2497)

    Source: Lin et al. 2017, arXiv 1708.02002.
    """
    with _batch(logits, target, ignore_index, reduction) as b:
        return _focal(b, torch.as_tensor(alpha), gamma)


def dice_loss(
    logits: Tensor,  # (B, K, H, W)
    target: Tensor,  # (B, H, W), any integer type
    smooth: float = _DEFAULT.smooth,  # pixels added to numerator and denominator
    ignore_index: int = IGNORE,  # label of pixels that count for nothing
    reduction: str = "mean",  # "mean": counts pooled over the batch; "none": per image, (B,)
) -> Tensor:
    """Return the mean of ``1 - (2 sum p y + smooth) / (sum p + sum y + smooth)`` over the classes in the truth.

    >>> logits = torch.tensor([[[[2.0, 0, 0, 0]] * 4, [[0.0, 1, 1, 0]] * 4]])
    >>> target = torch.tensor([[[0, 0, 1, 255]] * 4])
    >>> dice_loss(logits, target)
    tensor(0.3502)
    """
    with _batch(logits, target, ignore_index, reduction) as b:
        return _region(b, partial(_dice, smooth=smooth))


def mcc_loss(
    logits: Tensor,  # (B, K, H, W)
    target: Tensor,  # (B, H, W), any integer type
    exponent: float = _DEFAULT.mcc_exponent,  # of Focal Phi; 1 is the plain soft MCC loss
    ignore_index: int = IGNORE,  # label of pixels that count for nothing
    reduction: str = "mean",  # "mean": counts pooled over the batch; "none": per image, (B,)
) -> Tensor:
    """Return ``(1 - R_K)^exponent`` of the soft confusion matrix.

    Exact from ``1 - R_K = 0.001`` up; below, a straight line to 0, as the slope of the power grows without bound.

    >>> logits = torch.tensor([[[[2.0, 0, 0, 0]] * 4, [[0.0, 1, 1, 0]] * 4]])
    >>> target = torch.tensor([[[0, 0, 1, 255]] * 4])
    >>> mcc_loss(logits, target)
    tensor(0.7877)

    Source: Gorodkin 2004, doi 10.1016/j.compbiolchem.2004.09.006 (R_K); Abhishek & Hamarneh 2021, arXiv 2010.13454
    (soft counts); Jaffari et al. 2021, doi 10.3390/s21082803 (the exponent).
    """
    with _batch(logits, target, ignore_index, reduction) as b:
        return _region(b, partial(_mcc, exponent=exponent))


def boundary_loss(
    logits: Tensor,  # (B, K, H, W)
    target: Tensor,  # (B, H, W), any integer type
    edge: float = _DEFAULT.edge_weight,  # weight of a pixel with another class among its 4 neighbours
    interface: float = _DEFAULT.interface_weight,  # weight where glacier and debris touch, on both sides
    ignore_index: int = IGNORE,  # label of pixels that count for nothing; beside them is no edge
    reduction: str = "mean",  # "mean": over the batch's valid pixels; "none": a mean per image, (B,)
) -> Tensor:
    """Return the mean over valid pixels of weight times cross-entropy; pixels off the edges weigh 1.

    >>> logits = torch.tensor([[[[2.0, 0, 0, 0]] * 4, [[0.0, 1, 1, 0]] * 4]])
    >>> target = torch.tensor([[[0, 0, 1, 255]] * 4])
    >>> boundary_loss(logits, target)
    tensor(1.6688)
    """
    with _batch(logits, target, ignore_index, reduction) as b:
        return _boundary(b, edge, interface)


def bf1_loss(
    logits: Tensor,  # (B, K, H, W)
    target: Tensor,  # (B, H, W), any integer type
    t0: int = _WINDOWS[0],  # width of the window that finds a boundary, pixels, odd
    t: int = _WINDOWS[1],  # width of the window within which boundaries match, pixels, odd
    ignore_index: int = IGNORE,  # label of pixels that count for nothing; beside them is no boundary
    reduction: str = "mean",  # "mean": lengths pooled over the batch; "none": per image, (B,)
) -> Tensor:
    """Return 1 minus the boundary F1 score, the mean over the classes with a boundary in the truth.

    >>> logits = torch.tensor([[[[2.0, 0, 0, 0]] * 4, [[0.0, 1, 1, 0]] * 4]])
    >>> target = torch.tensor([[[0, 0, 1, 255]] * 4])
    >>> bf1_loss(logits, target)
    tensor(0.2408)

    Source: Bokhovkin & Burnaev 2019, arXiv 1905.07852.
    """
    if t0 % 2 == 0 or t % 2 == 0:
        raise RecipeError(f"windows of {t0} and {t} pixels have no centre: use odd widths")
    with _batch(logits, target, ignore_index, reduction) as b:
        return _bf1(b, t0, t)


for _loss in (focal_loss, dice_loss, mcc_loss, boundary_loss, bf1_loss):
    vars(_loss)["knows_ice"] = True


def knows_ice(
    loss: Callable[..., Any],  # (logits, labels) -> number
) -> bool:
    """Return whether a loss says, by an attribute `knows_ice`, that it can do with ice of unknown kind (label 254).

    >>> knows_ice(CombinedLoss.phase_b()), knows_ice(partial(focal_loss, gamma=1)), knows_ice(F.cross_entropy)
    (True, True, False)
    """
    return bool(getattr(loss.func if isinstance(loss, partial) else loss, "knows_ice", False))


@takes(LossSettings)
class CombinedLoss(nn.Module):
    """Weighted sum of focal, Dice, MCC, boundary and boundary-F1 losses over one softmax, and of parts of your own.

    ``loss = sum of weights[part] * ramp[part] * part``; the weights are not renormalised. `ramp` is for a callback to
    set between steps. A part of weight 0 is not computed; a part whose ramp is 0 still is, and is recorded in `parts`.

    A part of your own is any function or module that takes logits, float32 ``(B, K, H, W)``, and labels, int64
    ``(B, H, W)``, and returns a tensor of shape ``()``. Leaving out pixels labelled `ignore_index` is its business;
    where there are no others it counts as 0. Ice of unknown kind (254) comes to it as glacier, unless its attribute
    `knows_ice` is true. It has a weight, a ramp and a place in `parts` as the others have. Where `reduction` is "none"
    it is called for each image alone. Over processes it is the mean of what each of them finds for its own batch.

    With `learned`, a part adds ``ramp * (exp(-s) part / 2 + s / 2)`` with a trained s in `log_variance`, which starts
    where ``exp(-s) / 2`` is the given weight (Kendall et al. 2018, arXiv 1705.07115). The optimizer must be given these
    parameters, and the loss can be negative.

    >>> from functools import partial
    >>> entropy = partial(F.cross_entropy, ignore_index=255)
    >>> loss_func = CombinedLoss(dice=0.5, mcc=0.4, extra={"entropy": (0.1, entropy)})
    >>> loss_func(torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 1], [2, 255]]]))
    tensor(0.7659)
    >>> loss_func.parts["entropy"]
    tensor(1.3863)

    Attributes:
        weights: Part -> weight.
        ramp: Part -> factor, 1 unless somebody sets it.
        parts: Part -> its last value, unweighted and detached, a 0-dim tensor on the device of the logits.
        reduction: "mean" for one value, "none" for one value per image, as fastai sets in `get_preds(with_loss=True)`.
        total: None, or what sums a tensor over the processes of a launch, with gradients (`train.distributed`): the
            statistics are then those of the batches of all processes, and so is the loss.

    Raises:
        RecipeError: A setting that is unknown or out of bounds, all weights 0, a part of your own that takes the name
            of another or returns no scalar, or `alpha` does not fit the classes.
        DataError: Shapes or types of logits and labels do not fit.
    """

    alpha: Tensor
    knows_ice = True
    y_int = True  # its values by image can be mixed, as fastai's MixUp asks

    def __init__(
        self,
        *,
        focal: float = 0.0,  # weight of the focal loss
        dice: float = 0.0,  # weight of the Dice loss
        mcc: float = 0.0,  # weight of the MCC loss
        boundary: float = 0.0,  # weight of the boundary loss
        bf1: float = 0.0,  # weight of the boundary F1 loss
        extra: Mapping[str, tuple[float, Callable[[Tensor, Tensor], Tensor]]] | None = None,  # name -> weight, part
        ignore_index: int = IGNORE,  # label of pixels that count for nothing
        **settings: Any,  # further fields of `LossSettings`
    ):
        super().__init__()
        s = LossSettings(focal=focal, dice=dice, mcc=mcc, boundary=boundary, bf1=bf1, **settings)
        self.settings, self.ignore_index = s, ignore_index
        self.weights: dict[str, float] = {name: float(getattr(s, name)) for name in PARTS}
        self.extra: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        for name, part in (extra or {}).items():
            self._add(name, part)
        if not any(self.weights.values()):
            raise RecipeError(f"the weights of all parts are 0: give one of {', '.join(self.weights)} a weight")
        self.ramp: dict[str, float] = dict.fromkeys(self.weights, 1.0)
        self.parts: dict[str, Tensor] = {}
        self.reduction = "mean"
        self.total: Callable[[Tensor], Tensor] | None = None
        self.register_buffer("alpha", torch.tensor(s.alpha), persistent=False)
        self.log_variance: nn.ParameterDict | None = None
        if s.learned:
            start = {name: -math.log(2 * weight) for name, weight in self.weights.items() if weight}
            self.log_variance = nn.ParameterDict({n: nn.Parameter(torch.tensor(v)) for n, v in start.items()})

    def _add(self, name: str, part: Any) -> None:
        if not str(name).isidentifier() or name in (*PARTS, "train", "valid"):  # `valid_loss` is the whole
            raise RecipeError(f"extra: a part cannot be called {name!r}: use a name other than {', '.join(PARTS)}")
        weight, function = part if isinstance(part, (tuple, list)) and len(part) == 2 else (None, None)
        if not isinstance(weight, (int, float)) or not callable(function):
            raise RecipeError(f"extra: {name} is {part!r}: give its weight and a function, as (0.1, my_loss)")
        if not 0 <= weight < math.inf:
            raise RecipeError(f"extra: {name} has weight {weight}: use 0 or a positive number")
        self.weights[name], self.extra[name] = float(weight), function
        if isinstance(function, nn.Module):
            self.add_module(f"extra_{name}", function)  # its weights move and are trained with the loss

    @classmethod
    def phase_a(cls, **settings: Any) -> CombinedLoss:
        """Return the loss of pretraining, 0.60 focal + 0.40 Dice, with any setting changed.

        >>> CombinedLoss.phase_a(gamma=3)
        CombinedLoss(focal=0.6, dice=0.4)
        """
        return cls(**{**PHASE_A, **settings})

    @classmethod
    def phase_b(cls, **settings: Any) -> CombinedLoss:
        """Return the loss of fine-tuning, 0.25 focal + 0.25 Dice + 0.35 MCC + 0.15 boundary, with any setting changed.

        >>> CombinedLoss.phase_b(boundary=0)
        CombinedLoss(focal=0.25, dice=0.25, mcc=0.35)
        """
        return cls(**{**_DEFAULT.model_dump(), **settings})

    def forward(
        self,
        logits: Tensor,  # (B, K, H, W), any float type
        target: Tensor,  # (B, H, W), any integer type
    ) -> Tensor:
        """Return the loss, 0-dim; ``(B,)`` where `reduction` is "none". Waits for no device."""
        with _batch(logits, target, self.ignore_index, self.reduction, self.total) as b:
            if self.alpha.device != b.logits.device:
                self.to(b.logits.device, non_blocking=True)
            s = self.settings
            functions: dict[str, Callable[[], Tensor]] = {
                "focal": lambda: _focal(b, self.alpha, s.gamma),
                "dice": lambda: _region(b, partial(_dice, smooth=s.smooth)),
                "mcc": lambda: _region(b, partial(_mcc, exponent=s.mcc_exponent)),
                "boundary": lambda: _boundary(b, s.edge_weight, s.interface_weight),
                "bf1": lambda: _bf1(b, *_WINDOWS),
            }
            parts = {name: f() for name, f in functions.items() if self.weights[name]} | self._extra_parts(b)
            self.parts = {name: part.detach().mean() for name, part in parts.items()}
            zero = b.logits.new_zeros(())
            if self.log_variance is None:
                return sum((self.weights[name] * self.ramp[name] * part for name, part in parts.items()), zero)
            # the ramp takes in s / 2 too, or the weight would grow until it made up for the ramp
            variance = self.log_variance
            terms = (self.ramp[n] * 0.5 * ((-variance[n]).exp() * part + variance[n]) for n, part in parts.items())
            return sum(terms, zero) * (b.count > 0)

    def _extra_parts(self, b: _Batch) -> dict[str, Tensor]:
        names = [name for name in self.extra if self.weights[name]]
        if not names:
            return {}
        target = b.target.long()
        glacier = target.masked_fill(b.unknown, ICE[0])
        labels = {name: target if knows_ice(self.extra[name]) else glacier for name in names}
        if b.reduction == "none":
            images = {name: zip(b.logits.split(1), labels[name].split(1), strict=True) for name in names}
            return {name: torch.stack([self._value(name, *image) for image in images[name]]) for name in names}
        values = torch.stack([self._value(name, b.logits, labels[name]) for name in names])
        if b.total is not None:
            *sums, processes = b.total(torch.cat([values, values.new_ones(1)]))
            values = torch.stack(sums) / processes
        return dict(zip(names, values, strict=True))

    def _value(self, name: str, logits: Tensor, target: Tensor) -> Tensor:
        value = self.extra[name](logits, target)
        if not isinstance(value, Tensor) or value.shape or not value.is_floating_point():
            what = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise RecipeError(f"loss part {name} returns {what}: return a float tensor of shape (), such as a mean")
        some = (target != self.ignore_index).any()
        return torch.where(some, value.as_subclass(Tensor).to(logits), 0)  # a mean over nothing is NaN

    def activation(self, logits: Tensor) -> Tensor:
        """Return class probabilities ``(B, K, H, W)``, float32."""
        return logits.softmax(1, dtype=torch.float32)

    def decodes(self, logits: Tensor) -> Tensor:
        """Return class codes ``(B, H, W)`` of logits or probabilities."""
        return logits.argmax(1)

    def extra_repr(self) -> str:
        """Show the weights in ``repr``."""
        return ", ".join(f"{name}={weight:g}" for name, weight in self.weights.items() if weight)
