"""What every loss on logits (B, K, H, W) and labels (B, H, W) must do; the test class of a loss inherits it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glacier_fastai.errors import DataError

K, IGNORE, UNKNOWN = 4, 255, 254  # the last is ice of unknown kind

Loss = Callable[..., Tensor]


def scene(
    seed: int = 0, size: tuple[int, int, int] = (3, 12, 10), nodata: bool = True, unknown: bool = False
) -> tuple[Tensor, Tensor]:
    """Logits and blocky labels: all four classes, the debris-glacier interface, and nodata, in every image.

    With `unknown`, the ice of some columns is of unknown kind.
    """
    g = torch.Generator().manual_seed(seed)
    b, h, w = size
    target = torch.randint(0, K, (b, -(-h // 3), -(-w // 3)), generator=g)
    target = target.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :h, :w].contiguous()
    target[:, 0, :8] = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    if nodata:
        target[:, 5:8, 2:5] = IGNORE
    if unknown:
        some = target[:, :, 3:8]
        some[(some == 1) | (some == 2)] = UNKNOWN
    return torch.randn(b, K, h, w, generator=g), target


def certain(target: Tensor, height: float = 1e4) -> Tensor:
    """Logits that are sure of `target`; class 0 where ignored, glacier where it is ice of unknown kind."""
    label = target.where(target != IGNORE, 0).where(target != UNKNOWN, 1)
    return height * torch.nn.functional.one_hot(label, K).movedim(-1, 1).float()


def _one_pixel() -> tuple[Tensor, Tensor]:
    logits, target = scene()
    target[:] = 0
    target[0, 3, 3], target[1, 0, 0], target[2, 11, 9] = 1, 2, 3
    return logits, target


def _nasty() -> dict[str, tuple[Tensor, Tensor]]:
    logits, target = scene()
    only = {f"only class {k}": (logits, torch.full_like(target, k)) for k in range(K)}
    alone = torch.full_like(target, IGNORE)
    alone[1, 4, 4] = 2
    unknown = scene(unknown=True)[1]
    no_kind = unknown.where((unknown != 1) & (unknown != 2), UNKNOWN)
    lake = certain(torch.full_like(target, 3))
    return {
        **only,
        "sure and all right": (certain(target), target),
        "sure and all wrong": (certain((target + 1) % K), target),
        "sure of one class": (certain(torch.zeros_like(target)), target),
        "sure of one class, rightly": (certain(torch.zeros_like(target)), torch.zeros_like(target)),
        "sure, and one class, wrongly": (certain(torch.zeros_like(target)), torch.full_like(target, 1)),
        "logits +-1e4": (1e4 * logits.sign(), target),
        "logits near the end of float32": (3.4e38 * logits.sign(), target),
        "equal logits": (torch.zeros_like(logits), target),
        "classes of one pixel": _one_pixel(),
        "one valid pixel": (logits, alone),
        "batch of 1": (logits[:1], target[:1]),
        "image of 1 pixel": (logits[:1, :, :1, :1], target[:1, :1, :1]),
        "one row": (logits[:, :, :1], target[:, :1]),
        "one column": (logits[:, :, :, :1], target[:, :, :1]),
        "ice of unknown kind": (logits, unknown),
        "only ice of unknown kind": (logits, torch.full_like(target, UNKNOWN)),
        "ice of no known kind": (logits, no_kind),
        "one pixel of unknown kind": (logits, alone.where(alone != 2, UNKNOWN)),
        "unknown kind, sure of glacier": (certain(unknown), unknown),
        "unknown kind, sure of lake": (lake, unknown),
        "only unknown kind, sure of lake": (lake, torch.full_like(target, UNKNOWN)),
        "unknown kind, logits near the end of float32": (3.4e38 * logits.sign(), no_kind),
        "no valid pixel in one image": (logits, torch.cat([torch.full_like(target[:1], IGNORE), target[1:]])),
    }


NASTY = _nasty()


def value_and_gradient(loss: Loss, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, target)
    value.sum().backward()
    return value.detach(), logits.grad


class FastaiLike(Tensor):
    """A tensor that, as fastai's, refuses to meet others of its kind."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if len(set(types)) > 1:
            raise TypeError(f"{func}: no implementation for {types}")
        return super().__torch_function__(func, types, args, kwargs or {})


class ImageLike(FastaiLike):
    pass


class MaskLike(FastaiLike):
    pass


class LossContract:
    """Inherit, and give `loss`; `per_image` is the same loss with one value per image."""

    perfect = 1e-5  # at most this for a perfect, certain prediction
    spatial = False  # neighbours matter, so pixels may not be shuffled
    knows_ice = True  # ice of unknown kind is not just glacier to it

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def per_image(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    @pytest.mark.parametrize("name", NASTY)
    def test_finite_on_nasty_input(self, name):
        for loss in (self.loss, self.per_image):
            value, gradient = value_and_gradient(loss, *NASTY[name])
            assert value.isfinite().all()
            assert gradient.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_logits(self, dtype):
        logits, target = scene()
        value, gradient = value_and_gradient(self.loss, logits.to(dtype), target)
        assert value.dtype == torch.float32
        assert gradient.dtype == dtype
        torch.testing.assert_close(value, self.loss(logits.to(dtype).float(), target))

    def test_float32_under_autocast(self):
        logits, target = scene()
        expected = value_and_gradient(self.loss, logits, target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value, gradient = value_and_gradient(self.loss, logits, target)
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[0])
        assert torch.equal(gradient, expected[1])

    def test_nothing_valid_is_zero_and_connected(self):
        logits, target = scene()
        for loss in (self.loss, self.per_image):
            value, gradient = value_and_gradient(loss, logits, torch.full_like(target, IGNORE))
            assert not value.any()
            assert not gradient.any()

    @pytest.mark.parametrize("fill", [-1e4, 1e4, 3.4e38])
    def test_ignored_pixels_change_nothing(self, fill):
        logits, target = scene(unknown=True)
        expected = value_and_gradient(self.loss, logits, target)
        ignored = (target == IGNORE)[:, None].expand_as(logits)
        other = logits.clone()
        other[:, ::2] = other[:, ::2].where(~ignored[:, ::2], fill)
        other[:, 1::2] = other[:, 1::2].where(~ignored[:, 1::2], -fill)
        value, gradient = value_and_gradient(self.loss, other, target)
        assert torch.equal(value, expected[0])
        assert torch.equal(gradient, expected[1])
        assert not gradient[ignored].any()

    def test_other_ignore_pixels_elsewhere_do_matter(self):
        # the twin of the test above: it would pass for a loss that ignores everything
        logits, target = scene()
        changed = target.clone()
        changed[:, 1:3] = IGNORE
        assert self.loss(logits, target) != self.loss(logits, changed)

    def test_gradient_descends(self):
        logits, target = scene()
        value, gradient = value_and_gradient(self.loss, logits, target)
        step = logits - gradient * (1e-2 / gradient.norm())
        assert self.loss(step, target) < value

    @pytest.mark.parametrize("unknown", [False, True])
    def test_gradient_is_the_slope(self, unknown):
        logits, target = scene(unknown=unknown)
        logits = logits.double()
        _, gradient = value_and_gradient(self.loss, logits, target)
        direction = gradient / gradient.norm()
        slope = (self.loss(logits + 1e-5 * direction, target) - self.loss(logits - 1e-5 * direction, target)) / 2e-5
        torch.testing.assert_close(slope, gradient.norm(), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("unknown", [False, True])
    def test_perfect_prediction_is_best(self, unknown):
        logits, target = scene(unknown=unknown)
        best = self.loss(certain(target), target)
        assert abs(best) <= self.perfect
        for other in (logits, certain(target, 1.0), certain((target + 1) % K), torch.zeros_like(logits)):
            assert self.loss(other, target) > best

    def test_of_ice_of_unknown_kind_the_sum_of_both_counts_alone(self):
        if not self.knows_ice:
            pytest.skip("a part of it takes such pixels for glacier")
        logits, target = scene(unknown=True)
        logits = logits.double()
        at = target == UNKNOWN
        other, p = logits.clone(), logits.softmax(1)
        share = torch.rand(at.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype)
        norm, ice = logits.logsumexp(1), p[:, 1] + p[:, 2]
        other[:, 1] = torch.where(at, (ice * share).log() + norm, logits[:, 1])
        other[:, 2] = torch.where(at, (ice * (1 - share)).log() + norm, logits[:, 2])
        for loss in (self.loss, self.per_image):
            value, gradient = value_and_gradient(loss, logits, target)
            torch.testing.assert_close(value_and_gradient(loss, other, target)[0], value)
            # along the direction that takes from one what it gives to the other
            between = gradient[:, 1] / p[:, 1] - gradient[:, 2] / p[:, 2]
            assert between[at].abs().max() < 1e-12
            assert between[(target == 1) | (target == 2)].abs().min() > 0
            assert gradient[:, 0][at].abs().min() > 0

    def test_ice_of_unknown_kind_is_neither_ignored_nor_glacier(self):
        logits, target = scene(unknown=True)
        for label in (IGNORE, *((1, 2) if self.knows_ice else ())):
            assert self.loss(logits, target) != self.loss(logits, target.where(target != UNKNOWN, label))

    def test_order_of_images_does_not_matter(self):
        logits, target = scene()
        order = torch.tensor([2, 0, 1])
        torch.testing.assert_close(self.loss(logits[order], target[order]), self.loss(logits, target))

    @pytest.mark.parametrize("dims", [(-1,), (-2,), (-2, -1)])
    def test_orientation_does_not_matter(self, dims):
        logits, target = scene(unknown=True)
        torch.testing.assert_close(self.loss(logits.flip(dims).mT, target.flip(dims).mT), self.loss(logits, target))

    def test_order_of_pixels(self):
        logits, target = scene()
        order = torch.randperm(target[0].numel(), generator=torch.Generator().manual_seed(0))
        shuffled = logits.flatten(2)[..., order].view_as(logits), target.flatten(1)[..., order].view_as(target)
        same = torch.allclose(self.loss(*shuffled), self.loss(logits, target), rtol=1e-5)
        assert same is not self.spatial

    @pytest.mark.parametrize("unknown", [False, True])
    def test_one_value_per_image_is_the_loss_of_that_image(self, unknown):
        logits, target = scene(unknown=unknown)
        target[0] = target[0].where(target[0] != UNKNOWN, 2)
        values = self.per_image(logits, target)
        alone = [self.loss(logits[i : i + 1], target[i : i + 1]) for i in range(len(logits))]
        torch.testing.assert_close(values, torch.stack(alone))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
    def test_any_integer_labels(self, dtype):
        logits, target = scene(unknown=True)
        assert torch.equal(self.loss(logits, target.to(dtype)), self.loss(logits, target))

    def test_memory_layout_does_not_matter(self):
        logits, target = scene()
        other = logits.contiguous(memory_format=torch.channels_last)
        value, gradient = value_and_gradient(self.loss, logits, target)
        torch.testing.assert_close(value_and_gradient(self.loss, other, target), (value, gradient))

    def test_fastai_tensors(self):
        logits, target = scene()
        value = self.loss(logits.as_subclass(ImageLike), target.as_subclass(MaskLike))
        assert type(value) is Tensor
        assert torch.equal(value, self.loss(logits, target))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
    def test_leaves_its_input_alone(self, dtype):
        logits, target = scene(unknown=True)
        target = target.to(dtype)
        before = logits.clone(), target.clone()
        value_and_gradient(self.loss, logits, target)
        self.loss(logits, target)
        assert torch.equal(logits, before[0])
        assert torch.equal(target, before[1])

    @pytest.mark.parametrize("code", [-1, 4, 85, 170, 253])
    @pytest.mark.parametrize("unknown", [False, True])
    def test_foreign_codes_are_refused(self, code, unknown):
        logits, target = scene(unknown=unknown)
        target[0, 0, 0] = code
        with pytest.raises(DataError, match=f"labels other than 0 to 3 and the ignored one: .*{code}"):
            self.loss(logits, target)

    def test_wrong_shapes_are_refused(self):
        logits, target = scene()
        with pytest.raises(DataError, match=r"logits \(3, 4, 12, 10\) and labels \(3, 1, 12, 10\) do not fit"):
            self.loss(logits, target[:, None])
        with pytest.raises(DataError, match=r"labels \(3, 10, 12\) do not fit"):
            self.loss(logits, target.mT)
        with pytest.raises(DataError, match=r"labels are torch.float32: use an integer type"):
            self.loss(logits, target.float())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("unknown", [False, True])
    def test_gpu_agrees_and_does_not_wait(self, unknown):
        logits, target = scene(unknown=unknown)
        expected = value_and_gradient(self.loss, logits, target)
        self.loss(logits.cuda(), target.cuda())
        moved = logits.cuda(), target.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            value, gradient = value_and_gradient(self.loss, *moved)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close((value.cpu(), gradient.cpu()), expected)
