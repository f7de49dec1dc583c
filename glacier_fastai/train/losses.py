"""Losses of others, made fit for masks: pixels without a label count for nothing, logits become classes.

Ice of unknown kind (254), which they do not know, is glacier to them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fastai.losses import BaseLoss, DiceLoss
from fastcore.basics import GetAttr
from torch import Tensor, nn

from ..bands import ICE, ICE_OF_ANY_KIND, IGNORE
from ..errors import TrainingError

__all__ = ["IceAsGlacier", "LabelledPixels", "adapted"]


class LabelledPixels(GetAttr):
    """A loss of fastai over the labelled pixels alone; without any it is 0.

    With the reduction "none" it gives a value per image, as MixUp and `get_preds(with_loss=True)` want it.
    """

    _default, y_int = "loss", True

    def __init__(
        self,
        loss: BaseLoss | DiceLoss,  # with its classes on axis 1
    ):
        self.loss, self.reduction = loss, loss.reduction

    def __call__(
        self,
        pred: Tensor,  # (B, K, H, W), logits
        targ: Tensor,  # (B, H, W), class codes
    ) -> Tensor:
        """Return the loss: 0-dim, or `(B,)` where `reduction` is "none"."""
        labelled, by_image = targ != IGNORE, self.reduction == "none"
        if isinstance(self.loss, DiceLoss) or by_image:  # fastai's Dice is one of images
            parts = [(p[:, where], t[where]) for p, t, where in zip(pred, targ, labelled, strict=True)]
        else:
            parts = [(pred.movedim(1, 0)[:, labelled], targ[labelled])]
        self.loss.reduction = "mean" if by_image else self.reduction
        values = [self.loss(p[None, :, None], t[None, None]) if len(t) else 0 * pred.sum() for p, t in parts]
        loss = torch.stack([torch.as_tensor(v).as_subclass(Tensor) for v in values])
        return loss if by_image else loss.sum() if self.reduction == "sum" else loss.mean()

    def activation(self, logits: Tensor) -> Tensor:
        """Return class probabilities `(B, K, H, W)`; fastai's label smoothing takes the softmax of another axis."""
        return logits.softmax(1, dtype=torch.float32)

    def decodes(self, logits: Tensor) -> Tensor:
        """Return class codes `(B, H, W)`."""
        return logits.argmax(1)


class IceAsGlacier(nn.Module):
    """A loss to which ice of unknown kind is glacier; all else is the loss's own.

    >>> loss = IceAsGlacier(adapted(nn.CrossEntropyLoss(ignore_index=255)))
    >>> loss(torch.tensor([[0.0, 9, 0, 0]]), torch.tensor([254])), loss.ignore_index
    (tensor(0.0004), 255)
    """

    def __init__(
        self,
        loss: Callable[..., Any],  # (logits, labels) -> number
    ):
        super().__init__()
        self.loss: Any = loss

    @property
    def reduction(self) -> str:
        """That of the loss, which fastai sets."""
        return self.loss.reduction

    @reduction.setter
    def reduction(self, value: str) -> None:
        self.loss.reduction = value

    def forward(
        self,
        pred: Tensor,  # (B, K, H, W), logits
        targ: Tensor,  # (B, H, W), class codes
        **kwargs: Any,  # such as `reduction`, which fastai hands to a loss that has none to set
    ) -> Any:
        """Return what the loss does."""
        return self.loss(pred, targ.masked_fill(targ == ICE_OF_ANY_KIND, ICE[0]), **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return what the loss has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "loss":
                raise
            return getattr(self.loss, name)


def adapted(
    loss: Callable[..., Any],  # (logits, targets) -> number
) -> Callable[..., Any]:
    """Return a loss for masks.

    Those of fastai that know no ignored pixels look at the labelled ones (`LabelledPixels`). Others come as they are:
    they must leave out pixels of the label 255. Those that say nothing of it turn logits into probabilities by softmax
    and into classes by argmax, as fastai's do (`activation`, `decodes`).

    >>> from fastai.losses import FocalLossFlat
    >>> logits = torch.zeros(1, 4, 1, 2)
    >>> loss = adapted(FocalLossFlat(axis=1, gamma=0))
    >>> [round(float(loss(logits, torch.tensor([[labels]]))), 4) for labels in ([1, 1], [1, 255], [255, 255])]
    [1.3863, 1.3863, 0.0]

    Raises:
        TrainingError: A loss of fastai that takes another axis for that of the classes.
    """
    if isinstance(loss, (BaseLoss, DiceLoss)):
        if loss.axis != 1:
            raise TrainingError(f"loss_func {type(loss).__name__}: its classes are on axis {loss.axis}; give it axis=1")
        return LabelledPixels(loss) if getattr(loss, "flatten", True) else loss
    if not isinstance(loss, nn.Module) and not hasattr(loss, "activation"):
        loss = partial(loss)  # whose attributes are its own
    for name, default in (("activation", partial(torch.softmax, dim=1)), ("decodes", partial(torch.argmax, dim=1))):
        if not hasattr(loss, name):
            setattr(loss, name, default)
    return loss
