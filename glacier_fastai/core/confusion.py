"""Scores from one confusion matrix: rows are the truth, columns the prediction.

Below the K rows of the classes there may be one more: ice of unknown kind (label 254, `bands.ICE_OF_ANY_KIND`), which
is right where it is predicted as any ice. `ice` counts that row; the scores of the classes leave it out.

Matrices add up over batches, tiles and processes, so the scores of any amount of data need K x K numbers of memory.
The score functions take such a matrix of counts as a tensor, a NumPy array or nested lists, and compute in float64.

What an absent class does:

- IoU and F1: NaN for a class that is neither in the truth nor predicted; 0 if only predicted.
- Precision: NaN for a class that is never predicted. Recall: NaN for a class that is not in the truth.
- Mean IoU leaves NaN out. MCC is 0 where undefined (one class in the truth, or one predicted), as in scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..bands import CLASSES, ICE, ICE_OF_ANY_KIND, IGNORE
from ..errors import DataError

__all__ = [
    "WATCHED",
    "confusion_matrix",
    "f1",
    "ice",
    "iou",
    "mcc",
    "mean_iou",
    "plain_tensor",
    "precision",
    "recall",
    "scores",
    "watched",
    "with_ice",
    "wrong",
]

Matrix = Tensor | np.ndarray | Sequence[Sequence[float]]


def confusion_matrix(
    pred: Tensor | np.ndarray,  # class codes, any integer type and shape
    target: Tensor | np.ndarray,  # true class codes, of the same shape and on the same device
    n_classes: int,  # K
    ignore: int = IGNORE,  # label in `target` of pixels that count for nothing
    unknown_ice: bool = False,  # count label 254, too, in a row of its own below the others: ``(K + 1, K)``
) -> Tensor:
    """Return the int64 matrix ``(K, K)`` of pixel counts, on the device of the input, without waiting for a GPU.

    >>> confusion_matrix(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 255]), 2)
    tensor([[1, 1],
            [0, 1]])

    Raises:
        DataError: Shapes or types do not fit, or a counted pixel has a code outside 0 to K - 1; on a GPU that is an
            assertion of the device.
    """
    pred, target = plain_tensor(pred), plain_tensor(target)
    if pred.shape != target.shape:
        raise DataError(f"prediction {tuple(pred.shape)} and truth {tuple(target.shape)} differ in shape")
    valid, rows = target != ignore, n_classes
    if unknown_ice:
        target, rows = target.masked_fill(target == ICE_OF_ANY_KIND, n_classes), n_classes + 1
    # bytes while they suffice: the time goes into moving memory
    narrow = torch.uint8 if rows * n_classes <= 256 else torch.int64
    pred = _codes("prediction", pred, valid, n_classes, narrow)
    target = _codes("truth", target, valid, rows, narrow)
    both, n = target * n_classes + pred, rows * n_classes
    if both.is_cuda and n <= 64:  # bincount waits for a GPU
        counts = torch.stack([(both == k).sum() for k in range(n)])
    else:
        counts = torch.bincount(both.flatten(), minlength=n)
    counts[0] -= (~valid).sum()  # ignored pixels went there
    return counts.view(rows, n_classes)


def plain_tensor(x: Tensor | np.ndarray) -> Tensor:
    """Return a plain tensor, of an array without a copy where torch can.

    >>> plain_tensor(np.arange(2))
    tensor([0, 1])
    """
    if isinstance(x, Tensor):
        return x.as_subclass(Tensor)
    return torch.from_numpy(np.require(x, requirements=["C", "W"]))  # torch warns of read-only memory maps


def _codes(name: str, codes: Tensor, valid: Tensor, n_classes: int, dtype: torch.dtype) -> Tensor:
    """Check `codes` and return them with 0 where ignored."""
    if codes.is_floating_point() or codes.is_complex():
        raise DataError(f"{name} is {codes.dtype}: use class codes of an integer type")
    codes = codes * valid  # a fifth of the time of masked_fill
    if codes.numel():
        low, high = codes.aminmax()
        if codes.is_cuda:  # the host does not wait for what it holds
            torch._assert_async((low >= 0) & (high < n_classes), f"{name} has codes other than 0 to {n_classes - 1}")
        elif low < 0 or high >= n_classes:
            raise DataError(f"{name} has codes from {int(low)} to {int(high)}: use 0 to {n_classes - 1}")
    return codes.to(dtype)


def mcc(cm: Matrix) -> float:
    """Return the multi-class Matthews correlation R_K, -1 to 1; 0 where undefined.

    >>> round(mcc([[5, 0], [0, 5]]), 6)
    1.0

    Source: Gorodkin 2004, doi 10.1016/j.compbiolchem.2004.09.006.
    """
    rows = cm.tolist() if isinstance(cm, Tensor | np.ndarray) else cm  # Python's integers have no largest one
    rows = rows[: len(rows[0])]
    truth, pred = [sum(row) for row in rows], [sum(column) for column in zip(*rows, strict=True)]
    total, hits = sum(truth), sum(row[k] for k, row in enumerate(rows))
    spread_truth = total * total - sum(t * t for t in truth)
    spread_pred = total * total - sum(p * p for p in pred)
    if not spread_truth or not spread_pred:
        return 0.0
    top = hits * total - sum(t * p for t, p in zip(truth, pred, strict=True))
    return top / (math.sqrt(spread_truth) * math.sqrt(spread_pred))


def _counts(cm: Matrix) -> tuple[Tensor, Tensor, Tensor]:
    """Return hits, pixels in the truth and pixels predicted, each ``(K,)``."""
    cm = torch.as_tensor(cm).as_subclass(Tensor).cpu().double()
    cm = cm[: cm.shape[1]]
    return cm.diagonal(), cm.sum(1), cm.sum(0)


def iou(cm: Matrix) -> Tensor:
    """Return intersection over union per class, ``(K,)`` float64; NaN for a class nowhere to be found.

    >>> iou([[3, 1], [0, 4]])
    tensor([0.7500, 0.8000], dtype=torch.float64)
    """
    hit, truth, pred = _counts(cm)
    return hit / (truth + pred - hit)


def precision(cm: Matrix) -> Tensor:
    """Return the share of the pixels predicted as a class that are right, ``(K,)`` float64; NaN if never predicted.

    >>> precision([[3, 1], [0, 4]])
    tensor([1.0000, 0.8000], dtype=torch.float64)
    """
    hit, _, pred = _counts(cm)
    return hit / pred


def recall(cm: Matrix) -> Tensor:
    """Return the share of a class's pixels that are found, ``(K,)`` float64; NaN for a class not in the truth.

    >>> recall([[3, 1], [0, 4]])
    tensor([0.7500, 1.0000], dtype=torch.float64)
    """
    hit, truth, _ = _counts(cm)
    return hit / truth


def f1(cm: Matrix) -> Tensor:
    """Return F1 (Dice) per class, ``(K,)`` float64; NaN for a class nowhere to be found.

    >>> f1([[3, 1], [0, 3]])
    tensor([0.8571, 0.8571], dtype=torch.float64)
    """
    hit, truth, pred = _counts(cm)
    return 2 * hit / (truth + pred)


def mean_iou(cm: Matrix) -> float:
    """Return the mean IoU of the classes that are in the truth or predicted; NaN for an empty matrix.

    >>> round(mean_iou([[3, 1], [0, 4]]), 3)
    0.775
    """
    return iou(cm).nanmean().item()


def ice(cm: Matrix) -> Tensor:
    """Return the ``(2, 2)`` matrix of the rest (0) against ice of any kind (1), glacier or debris.

    >>> ice([[5, 1, 0, 0], [0, 3, 2, 0], [0, 0, 1, 0], [1, 0, 0, 4]])
    tensor([[10,  1],
            [ 0,  6]])
    """
    cm = torch.as_tensor(cm).as_subclass(Tensor)
    of = torch.zeros(cm.shape[1] + 1, dtype=torch.int64, device=cm.device)
    of[[*ICE, -1]] = 1
    return cm.new_zeros(2, 2).index_put_((of[: len(cm), None], of[None, :-1]), cm, accumulate=True)


def with_ice(
    score: Callable[..., Tensor],  # `iou`, `precision`, `recall` or `f1`
    cm: Matrix,
) -> list[float]:
    """Return a score of each class, and of ice of any kind.

    >>> with_ice(recall, [[8, 0, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 1], [4, 0, 2, 0]])
    [1.0, 0.5, 1.0, 1.0, 0.6]
    """
    return [*score(cm).tolist(), score(ice(cm))[1].item()]


WATCHED: dict[str, Callable[[Matrix], float]] = {"mcc": mcc, "ice_mcc": lambda cm: mcc(ice(cm))}
"""Scores that may tell which model is best, by name."""


def watched(
    known: int,  # pixels of glacier and debris
    unknown: int,  # pixels of ice of unknown kind
) -> str:
    """Return the name of the score that tells which model is best: of four classes, or of ice where few have a kind.

    >>> watched(10, 10), watched(10, 11)
    ('mcc', 'ice_mcc')
    """
    return "ice_mcc" if unknown > known else "mcc"


def wrong(
    pred: np.ndarray,  # class codes
    truth: np.ndarray,  # true codes of the same shape, 254 = ice of unknown kind, 255 = ignore
) -> np.ndarray:
    """Return where a prediction is wrong, bool; any ice is right where the truth says no kind.

    >>> wrong(np.array([0, 1, 2, 0, 0]), np.array([0, 2, 254, 254, 255])).tolist()
    [False, True, False, True, False]
    """
    return (pred != truth) & (truth != IGNORE) & ~((truth == ICE_OF_ANY_KIND) & np.isin(pred, ICE))


def scores(
    cm: Matrix,  # of the four classes, with or without a row of ice of unknown kind
) -> dict:
    """Return every score of a matrix of the four classes, as plain numbers; an undefined one is None (JSON has no NaN).

    Returns:
        ``mcc``, ``ice_mcc``, ``mean_iou``, ``ice_iou``; ``classes``, by name ``iou``, ``precision``, ``recall``,
        ``f1`` and ``pixels`` (in the truth), and ``ice``, the same of ice of any kind; ``confusion``, the matrix as
        nested lists, whose fifth row is ice of unknown kind, where there is any.

    Raises:
        DataError: The matrix has not a row and a column for each class.
    """
    cm = torch.as_tensor(cm).as_subclass(Tensor).cpu()
    if cm.shape not in ((k := len(CLASSES), k), (k + 1, k)):
        raise DataError(f"confusion matrix {tuple(cm.shape)}: use one row and column for each of {', '.join(CLASSES)}")
    binary = ice(cm)
    table = {fn.__name__: with_ice(fn, cm) for fn in (iou, precision, recall, f1)}
    table["pixels"] = [*cm.sum(1)[:k].tolist(), binary[1].sum().item()]
    *classes, any_ice = [{key: _known(value[i]) for key, value in table.items()} for i in range(k + 1)]
    return {
        "mcc": mcc(cm),
        "ice_mcc": mcc(binary),
        "mean_iou": _known(mean_iou(cm)),
        "ice_iou": any_ice["iou"],
        "classes": dict(zip(CLASSES, classes, strict=True)),
        "ice": any_ice,
        "confusion": cm[: k + int(cm[k:].any())].tolist(),
    }


def _known(value: float) -> float | None:
    return None if value != value else value
