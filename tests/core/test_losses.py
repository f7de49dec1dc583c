from __future__ import annotations

import inspect
import math
import pickle
import warnings
from functools import cached_property, partial

import numpy as np
import pytest
import torch
from contract.losses import IGNORE, NASTY, UNKNOWN, K, LossContract, certain, scene, value_and_gradient
from fastai.losses import CrossEntropyLossFlat
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from glacier_fastai.core import losses
from glacier_fastai.core.confusion import confusion_matrix, mcc
from glacier_fastai.core.losses import (
    CombinedLoss,
    bf1_loss,
    boundary_loss,
    dice_loss,
    focal_loss,
    mcc_loss,
)
from glacier_fastai.core.settings import LossSettings
from glacier_fastai.errors import DataError, RecipeError

torch.set_num_threads(1)

ALL = {"focal": 0.3, "dice": 0.2, "mcc": 0.25, "boundary": 0.1, "bf1": 0.15}


# Slow, plain references: pixel by pixel, in float64


def probabilities(logits: Tensor) -> np.ndarray:
    z = logits.double().numpy()
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def valid_pixels(target: Tensor) -> list[tuple[int, int, int]]:
    return [tuple(i) for i in (target != IGNORE).nonzero().tolist()]


def two_levels(slow):
    """The mean of a loss of the pixels of known class, and of that of classes in which ice is one."""

    def mixed(logits: Tensor, target: Tensor, **options) -> float:
        unknown, known_ice = int((target == UNKNOWN).sum()), int(((target == 1) | (target == 2)).sum())
        if not unknown:
            return slow(logits, target, **options)
        p = torch.from_numpy(probabilities(logits))
        three = torch.stack([p[:, 0], p[:, 1] + p[:, 2], p[:, 3]], 1).log()
        codes = {0: 0, 1: 1, 2: 1, 3: 2, UNKNOWN: 1, IGNORE: IGNORE}
        coarse = slow(three, torch.from_numpy(np.vectorize(codes.get)(target.numpy())), **options)
        if not known_ice:
            return coarse
        known = slow(logits, target.where(target != UNKNOWN, IGNORE), **options)
        return (known_ice * known + unknown * coarse) / (known_ice + unknown)

    return mixed


def slow_py(p: np.ndarray, y: int) -> float:
    return p[1] + p[2] if y == UNKNOWN else p[y]


def slow_confusion(logits: Tensor, target: Tensor) -> np.ndarray:
    p, s = probabilities(logits), np.zeros((logits.shape[1], logits.shape[1]))
    for b, i, j in valid_pixels(target):
        s[target[b, i, j]] += p[b, :, i, j]
    return s


def slow_focal(logits: Tensor, target: Tensor, alpha=(1, 2, 3, 4), gamma=2.0) -> float:
    p, total = probabilities(logits), 0.0
    pixels = valid_pixels(target)
    for b, i, j in pixels:
        y = int(target[b, i, j])
        py = slow_py(p[b, :, i, j], y)
        total -= (sum(alpha[1:3]) / 2 if y == UNKNOWN else alpha[y]) * (1 - py) ** gamma * math.log(py)
    return total / max(len(pixels), 1)


@two_levels
def slow_dice(logits: Tensor, target: Tensor, smooth=1.0) -> float:
    s = slow_confusion(logits, target)
    per_class = [
        1 - (2 * s[k, k] + smooth) / (s[k].sum() + s[:, k].sum() + smooth) for k in range(len(s)) if (target == k).any()
    ]
    return sum(per_class) / max(len(per_class), 1)


@two_levels
def slow_mcc(logits: Tensor, target: Tensor, exponent=0.7) -> float:
    c = slow_confusion(logits, target)
    t, p, s = c.sum(1), c.sum(0), c.sum()
    below = (s**2 - (p**2).sum()) * (s**2 - (t**2).sum())
    r = (c.trace() * s - (p * t).sum()) / math.sqrt(below)
    return (1 - r) ** exponent


def slow_boundary(logits: Tensor, target: Tensor, edge=3.0, interface=5.0) -> float:
    p, total = probabilities(logits), 0.0
    pixels = valid_pixels(target)
    for b, i, j in pixels:
        y = int(target[b, i, j])
        around = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
        seen = {int(target[b, r, c]) for r, c in around if 0 <= r < target.shape[1] and 0 <= c < target.shape[2]}
        seen -= {y, IGNORE} | ({1, 2} if y == UNKNOWN else {UNKNOWN} if y in (1, 2) else set())
        weight = interface if {y} | seen >= {1, 2} and y in (1, 2) else edge if seen else 1.0
        total -= weight * math.log(slow_py(p[b, :, i, j], y))
    return total / max(len(pixels), 1)


@two_levels
def slow_bf1(logits: Tensor, target: Tensor, t0=3, t=5) -> float:
    p = probabilities(logits)
    n, h, w = target.shape

    def window(field: np.ndarray, i: int, j: int, width: int) -> float:
        r = width // 2
        return field[max(i - r, 0) : i + r + 1, max(j - r, 0) : j + r + 1].max()

    def grow(field: np.ndarray, width: int) -> np.ndarray:
        return np.array([[window(field, i, j, width) for j in range(w)] for i in range(h)])

    per_class = []
    for k in range(p.shape[1]):
        sums = np.zeros(4)
        for b in range(n):
            valid = (target[b] != IGNORE).numpy()
            outside_true = np.where(valid, (target[b] != k).numpy(), 0).astype(float)
            outside_pred = np.where(valid, 1 - p[b, k], 0)
            true_edge = np.where(valid, grow(outside_true, t0) - outside_true, 0)
            pred_edge = np.where(valid, grow(outside_pred, t0) - outside_pred, 0)
            sums += [
                (pred_edge * grow(true_edge, t)).sum(),
                pred_edge.sum(),
                (true_edge * grow(pred_edge, t)).sum(),
                true_edge.sum(),
            ]
        if sums[3]:
            precision, recall = sums[0] / sums[1], sums[2] / sums[3]
            per_class.append(1 - 2 * precision * recall / (precision + recall))
    return sum(per_class) / max(len(per_class), 1)


SLOW = {"focal": slow_focal, "dice": slow_dice, "mcc": slow_mcc, "boundary": slow_boundary, "bf1": slow_bf1}
FAST = {"focal": focal_loss, "dice": dice_loss, "mcc": mcc_loss, "boundary": boundary_loss, "bf1": bf1_loss}


def plain_statistics(logits: Tensor, onehot: Tensor) -> tuple[Tensor, Tensor]:
    """What `_Statistics` computes, in operations that torch differentiates."""
    log_p = logits.log_softmax(1)
    rows = torch.cat([log_p, log_p[:, 1:3].logsumexp(1, keepdim=True)], 1)[:, : onehot.shape[1]]
    return (rows * onehot).sum(1), torch.einsum("bkhw,blhw->bkl", onehot, log_p.exp())


# The contract


class TestFocal(LossContract):
    def loss(self, logits, target):
        return focal_loss(logits, target)

    def per_image(self, logits, target):
        return focal_loss(logits, target, reduction="none")


class TestFocalSmallGamma(TestFocal):
    def loss(self, logits, target):
        return focal_loss(logits, target, gamma=0.5)

    def per_image(self, logits, target):
        return focal_loss(logits, target, gamma=0.5, reduction="none")


class TestDice(LossContract):
    def loss(self, logits, target):
        return dice_loss(logits, target)

    def per_image(self, logits, target):
        return dice_loss(logits, target, reduction="none")


class TestMCC(LossContract):
    def loss(self, logits, target):
        return mcc_loss(logits, target)

    def per_image(self, logits, target):
        return mcc_loss(logits, target, reduction="none")


class TestBoundary(LossContract):
    spatial = True

    def loss(self, logits, target):
        return boundary_loss(logits, target)

    def per_image(self, logits, target):
        return boundary_loss(logits, target, reduction="none")


class TestBF1(LossContract):
    spatial = True

    def loss(self, logits, target):
        return bf1_loss(logits, target)

    def per_image(self, logits, target):
        return bf1_loss(logits, target, reduction="none")


class CombinedContract(LossContract):
    spatial = True

    def make(self) -> CombinedLoss:
        raise NotImplementedError

    @cached_property
    def made(self) -> CombinedLoss:
        return self.make()

    def loss(self, logits, target):
        self.made.reduction = "mean"
        return self.made.to(logits.device)(logits, target)

    def per_image(self, logits, target):
        self.made.reduction = "none"
        return self.made.to(logits.device)(logits, target)


class TestPhaseA(CombinedContract):
    spatial = False

    def make(self):
        return CombinedLoss.phase_a()


class TestPhaseB(CombinedContract):
    def make(self):
        return CombinedLoss.phase_b()


class TestAllParts(CombinedContract):
    def make(self):
        return CombinedLoss(**ALL)


class TestLearned(CombinedContract):
    perfect = 4.0  # the log-variances stay

    def make(self):
        return CombinedLoss.phase_b(learned=True)


# Formulas


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("name", FAST)
def test_equals_the_slow_reference(name, unknown, seed):
    logits, target = scene(seed, (2, 9, 11), unknown=unknown)
    logits *= 3
    assert FAST[name](logits.double(), target).item() == pytest.approx(SLOW[name](logits, target), rel=1e-9)
    assert FAST[name](logits, target).item() == pytest.approx(SLOW[name](logits, target), rel=2e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("focal", {"alpha": (0.5, 1.5, 0.1, 7.0), "gamma": 1.5}),
        ("focal", {"alpha": (1.0, 1.0, 1.0, 1.0), "gamma": 0.0}),
        ("dice", {"smooth": 20.0}),
        ("mcc", {"exponent": 1.0}),
        ("mcc", {"exponent": 2.0}),
        ("boundary", {"edge": 1.5, "interface": 9.0}),
        ("bf1", {"t0": 5, "t": 3}),
    ],
)
def test_options_equal_the_slow_reference(name, options):
    logits, target = scene(5, (2, 9, 11), unknown=True)
    fast = FAST[name](logits.double(), target, **options).item()
    assert fast == pytest.approx(SLOW[name](logits, target, **options), rel=1e-9)


def test_focal_without_its_weights_is_cross_entropy():
    logits, target = scene()
    expected = torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORE)
    torch.testing.assert_close(focal_loss(logits, target, alpha=[1] * K, gamma=0), expected)
    torch.testing.assert_close(boundary_loss(logits, target, edge=1, interface=1), expected)


def soft_confusion(logits: Tensor, target: Tensor) -> Tensor:
    """Return the soft confusion matrix of the known classes, as the region parts see it."""
    with losses._batch(logits, target, IGNORE, "mean") as b:
        return b.confusion[: logits.shape[1]]


def test_soft_confusion():
    logits, target = scene()
    s = soft_confusion(logits, target)
    assert s.shape == (K, K)
    assert s.dtype == torch.float32
    np.testing.assert_allclose(s, slow_confusion(logits, target), rtol=1e-5)
    np.testing.assert_allclose(s.sum(1), [(target == k).sum() for k in range(K)], rtol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(soft_confusion(logits, target), s)
    unknown = scene(unknown=True)[1]
    known = unknown.where(unknown != UNKNOWN, IGNORE)
    torch.testing.assert_close(soft_confusion(logits, unknown), soft_confusion(logits, known))


@given(st.integers(0, 2**32 - 1), st.integers(0, 120), st.sampled_from([1.0, 0.5, 0.02]))
@settings(max_examples=60, deadline=None)
def test_soft_confusion_of_certain_predictions_is_the_confusion_matrix(seed, ignored, rare):
    g = np.random.default_rng(seed)
    pred = torch.from_numpy(g.integers(0, K, (1, 11, 12)))
    target = torch.from_numpy(np.where(g.random((1, 11, 12)) < rare, g.integers(0, K, (1, 11, 12)), 0))
    target.view(-1)[:ignored] = IGNORE
    hard = confusion_matrix(pred, target, K)
    assert torch.equal(soft_confusion(certain(pred), target).long(), hard)
    # and so the loss goes with the metric
    assert mcc_loss(certain(pred), target, exponent=1).item() == pytest.approx(1 - mcc(hard), abs=2e-6)


def test_every_region_part_is_a_function_of_the_soft_confusion_matrix():
    # other pixels, same S: the probabilities of two pixels of one class are averaged
    logits, target = scene(nodata=False)
    p = logits.softmax(1)
    other = p.clone()
    for k in range(K):
        here = (target == k)[:, None].expand_as(p)
        mean = p.movedim(1, 0)[:, target == k].mean(1)
        other = torch.where(here, mean.view(1, K, 1, 1), other)
    torch.testing.assert_close(soft_confusion(other.log(), target), soft_confusion(logits, target))
    for loss in (dice_loss, mcc_loss):
        torch.testing.assert_close(loss(other.log(), target), loss(logits, target))
    assert not torch.isclose(focal_loss(other.log(), target), focal_loss(logits, target))


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("name", FAST)
def test_gradient_is_right(name, unknown):
    logits, target = scene(1, (2, 5, 8), unknown=unknown)
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: FAST[name](z, target), logits)
    assert torch.autograd.gradcheck(lambda z: FAST[name](z, target, reduction="none"), logits)


@pytest.mark.parametrize("unknown", [False, True])
def test_gradient_of_the_statistics_equals_the_plain_one(unknown):
    logits, target = scene(2, unknown=unknown)
    logits = logits.double().requires_grad_()
    onehot = losses._Batch(logits, target, IGNORE, "mean").onehot
    assert onehot.shape[1] == K + unknown
    assert torch.autograd.gradcheck(losses._Statistics.apply, (logits, onehot))
    ours, plain = losses._Statistics.apply(logits, onehot), plain_statistics(logits, onehot)
    weights = [torch.randn_like(x) for x in plain]
    gradients = [torch.autograd.grad(x, logits, weights) for x in (ours, plain)]
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", [n for n in NASTY if "end of float32" not in n])  # there the plain version overflows
def test_combined_loss_equals_plain_operations(name, monkeypatch):
    logits, target = NASTY[name]
    ours = value_and_gradient(CombinedLoss(**ALL), logits, target)
    monkeypatch.setattr(losses._Statistics, "apply", plain_statistics)
    plain = (x.float() for x in value_and_gradient(CombinedLoss(**ALL), logits.double(), target))
    torch.testing.assert_close(ours, tuple(plain), rtol=1e-4, atol=1e-7)


def smp():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script, at import of its own libraries
        import segmentation_models_pytorch

        return segmentation_models_pytorch


@pytest.mark.parametrize("nodata", [False, True])
def test_dice_equals_smp(nodata):
    logits, target = scene(nodata=nodata)
    # by way of Tversky, smp's smooth counts twice
    peer = smp().losses.DiceLoss("multiclass", smooth=0.5, ignore_index=IGNORE if nodata else None)
    torch.testing.assert_close(dice_loss(logits, target), peer(logits, target))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_of_two_classes_equals_smp(gamma):
    # smp sums one-against-rest terms for many classes, so only two compare
    logits, target = scene(nodata=False)
    z, y = logits[:, :1], target % 2
    peer = smp().losses.FocalLoss("binary", alpha=0.3, gamma=gamma)
    ours = focal_loss(torch.cat([torch.zeros_like(z), z], 1), y, alpha=(0.7, 0.3), gamma=gamma)
    torch.testing.assert_close(ours, peer(z, y[:, None].float()))


# Absent classes and other edges


def test_dice_leaves_an_absent_class_out():
    logits, target = scene()
    target[target == 3] = 0
    s = slow_confusion(logits, target)
    three = [1 - (2 * s[k, k] + 1) / (s[k].sum() + s[:, k].sum() + 1) for k in range(3)]
    assert dice_loss(logits, target).item() == pytest.approx(sum(three) / 3, rel=1e-5)


@pytest.mark.parametrize("loss", [dice_loss, mcc_loss])
def test_probability_of_an_absent_class_costs(loss):
    logits, target = scene()
    target[target == 3] = 0
    more, less = logits.clone(), logits.clone()
    more[:, 3] += 1
    less[:, 3] -= 1
    assert loss(less, target) < loss(logits, target) < loss(more, target)


def test_mcc_counts_an_absent_class_as_false_positives():
    logits, target = scene()
    target[target == 3] = 0
    assert mcc_loss(logits, target).item() == pytest.approx(slow_mcc(logits, target), rel=1e-5)


def test_mcc_of_one_class_is_undefined():
    logits, target = scene()
    value, gradient = value_and_gradient(mcc_loss, logits, torch.zeros_like(target))
    assert value == 1
    assert not gradient.any()


def test_mcc_of_a_rare_class_keeps_float32_precision():
    # 1 lake pixel in a million, all predictions nearly certain: 1 - sum p^2 is 1e-6
    target = torch.zeros(4, 500, 500, dtype=torch.int64)
    target[0, 250, 250] = 3
    logits = torch.zeros(4, K, 500, 500)
    logits[:, 0] = 16
    logits[0, :, 250, 250] = torch.tensor([0.0, 0, 0, 3])
    ours = value_and_gradient(mcc_loss, logits, target)
    exact = value_and_gradient(mcc_loss, logits.double(), target)
    torch.testing.assert_close(ours, tuple(x.float() for x in exact), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("height", [3.0, 6.0, 8.0, 10.0, 14.0])
def test_mcc_power_is_exact_above_0001_and_straight_below(height):
    _, target = scene()
    logits = certain(target, height).double()
    x, x_gradient = value_and_gradient(lambda z, y: mcc_loss(z, y, exponent=1), logits, target)
    value, gradient = value_and_gradient(mcc_loss, logits, target)
    slope = 0.7 * x**-0.3 if x > 1e-3 else torch.tensor(1e-3**-0.3, dtype=x.dtype)
    torch.testing.assert_close(value, x**0.7 if x > 1e-3 else x * slope)
    torch.testing.assert_close(gradient, slope * x_gradient)


def test_edges_of_nodata_are_no_class_edges():
    target = torch.zeros(1, 6, 6, dtype=torch.int64)
    target[0, 2:4, 2:4] = IGNORE
    logits = torch.randn(1, K, 6, 6, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORE)
    torch.testing.assert_close(boundary_loss(logits, target), plain)
    assert bf1_loss(logits, target) == 0


def test_edge_weights_by_hand():
    target = torch.tensor([[[0, 0, 1, 2], [0, 255, 1, 1], [0, 0, 0, 3]]])
    batch = losses._Batch(torch.zeros(1, K, 3, 4), target, IGNORE, "mean")
    weight = losses._edge_weights(batch, 3.0, 5.0)
    assert weight[0].where(target[0] != IGNORE, 0).tolist() == [[1, 3, 5, 5], [1, 0, 3, 5], [1, 1, 3, 3]]


def test_edge_weights_of_ice_of_unknown_kind_by_hand():
    target = torch.tensor([[[0, 254, 1, 254], [3, 254, 254, 254], [255, 254, 2, 1]]])
    batch = losses._Batch(torch.zeros(1, K, 3, 4), target, IGNORE, "mean")
    weight = losses._edge_weights(batch, 3.0, 5.0)
    assert weight[0].where(target[0] != IGNORE, 0).tolist() == [[3, 3, 1, 1], [3, 3, 1, 1], [0, 1, 5, 5]]


def test_many_classes():
    g = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 12, 6, 6, generator=g), torch.randint(0, 12, (2, 6, 6), generator=g)
    combined = CombinedLoss(**ALL, alpha=[1] * 12)
    value, gradient = value_and_gradient(combined, logits, target)
    assert value.isfinite()
    assert gradient.isfinite().all()
    # the number of a class does not matter to its edges
    few = scene(unknown=True)[1]
    many = few.masked_fill(few == 3, 11)
    weights = [
        losses._edge_weights(losses._Batch(x, y, IGNORE, "mean"), 3.0, 5.0)
        for x, y in ((torch.zeros(3, K, 12, 10), few), (torch.zeros(3, 12, 12, 10), many))
    ]
    assert torch.equal(*weights)


def test_another_ignore_label():
    logits, target = scene()
    for ignore in (-100, 254, 300):
        other = target.masked_fill(target == IGNORE, ignore)
        for loss in FAST.values():
            assert torch.equal(loss(logits, other, ignore_index=ignore), loss(logits, target))
        assert torch.equal(CombinedLoss(**ALL, ignore_index=ignore)(logits, other), CombinedLoss(**ALL)(logits, target))


# Ice of unknown kind


def test_where_no_ice_is_of_unknown_kind_looking_for_it_changes_nothing():
    for name, (logits, target) in NASTY.items():
        if not (target == UNKNOWN).any():
            looks = CombinedLoss(**ALL)
            looks.total = torch.clone  # as one of several processes, which may have some
            ours, plain = (value_and_gradient(f, logits, target) for f in (looks, CombinedLoss(**ALL)))
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-8, msg=name)


@pytest.mark.parametrize("name", FAST)
def test_ice_of_no_known_kind_is_a_loss_of_three_classes(name):
    logits, target = NASTY["ice of no known kind"]
    three = torch.stack([logits[:, 0], logits[:, 1:3].logsumexp(1), logits[:, 3]], 1)
    codes = target.where(target != 3, 2).where(target != UNKNOWN, 1)
    options = {"focal": {"alpha": (1, 2.5, 4)}, "boundary": {"interface": 3.0}}.get(name, {})
    if name == "boundary":  # glacier and lake would meet as glacier and debris do
        options["edge"] = 3.0
    torch.testing.assert_close(FAST[name](logits, target), FAST[name](three, codes, **options))


def test_ice_of_unknown_kind_pulls_ice_up_and_keeps_its_composition():
    logits = torch.tensor([2.0, 0.5, -0.5, 0.0]).view(1, K, 1, 1).double()
    _, gradient = value_and_gradient(partial(focal_loss, gamma=0), logits, torch.tensor([[[UNKNOWN]]]))
    p, g = logits.softmax(1).flatten(), -gradient.flatten()
    assert (g > 0).tolist() == [False, True, True, False]
    torch.testing.assert_close(g[1] / g[2], p[1] / p[2])


@pytest.mark.parametrize("unknown", [lambda y: y, lambda y: y[:1], lambda y: y[2:]], ids=["uneven", "first", "last"])
def test_over_processes_it_is_the_loss_of_the_whole_batch(unknown):
    logits, target = scene(nodata=True)
    logits = logits.double()
    ice = unknown(target)
    ice[(ice == 1) | ((ice == 2) & (torch.arange(10) > 4))] = UNKNOWN
    whole = value_and_gradient(CombinedLoss(**ALL), logits, target)
    shares, given = (slice(0, 2), slice(2, 3)), ([], [])
    logits.requires_grad_()

    def process(rank: int, total) -> Tensor:
        loss = CombinedLoss(**ALL)
        loss.total = total
        return loss(logits[shares[rank]], target[shares[rank]])

    for rank in (0, 1):  # what each process hands in does not depend on what it gets
        process(rank, lambda x, rank=rank: given[rank].append(x) or x)
    sums = [sum(both) for both in zip(*given, strict=True)]
    values = [process(rank, lambda x, rest=[*sums]: rest.pop(0)) for rank in (0, 1)]
    for value in values:
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        torch.testing.assert_close((value.detach(), gradient), whole)


@pytest.mark.parametrize("loss", [*FAST.values(), CombinedLoss(dice=1)])
def test_ice_of_unknown_kind_needs_both_kinds(loss):
    options = {"alpha": (1, 2)} if loss is focal_loss else {}
    with pytest.raises(DataError, match=r"labels hold 254, ice of unknown kind.*logits have 2 classes: use") as e:
        loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, UNKNOWN]]]), **options)
    assert "\n" not in str(e.value)


def test_a_part_of_ones_own_gets_glacier_unless_it_knows_ice():
    seen = []

    def look(logits, target):
        seen.append(target)
        return logits.mean()

    logits, target = scene(unknown=True)
    glacier = target.where(target != UNKNOWN, 1)
    combined = CombinedLoss(extra={"look": (1, look), "dice_too": (1, partial(dice_loss, smooth=2))}, dice=1)
    combined(logits, target)
    assert torch.equal(seen.pop(), glacier)
    assert combined.parts["dice_too"] == dice_loss(logits, target, smooth=2)
    combined.reduction = "none"
    combined(logits, target)
    assert torch.equal(torch.cat(seen), glacier)
    look.knows_ice = True
    CombinedLoss(extra={"look": (1, look)})(logits, target)
    assert torch.equal(seen.pop(), target)


# CombinedLoss


@pytest.mark.parametrize("unknown", [False, True])
def test_combined_loss_is_the_weighted_sum(unknown):
    logits, target = scene(unknown=unknown)
    combined = CombinedLoss(**ALL)
    expected = {name: loss(logits, target) for name, loss in FAST.items()}
    value = combined(logits, target)
    torch.testing.assert_close(value, sum(ALL[name] * part for name, part in expected.items()))
    assert combined.parts.keys() == expected.keys()
    for name, part in combined.parts.items():
        assert part.shape == ()
        assert not part.requires_grad
        torch.testing.assert_close(part, expected[name])


def test_options_reach_their_parts():
    logits, target = scene()
    combined = CombinedLoss(
        **ALL, alpha=(4, 3, 2, 1), gamma=1, smooth=5, mcc_exponent=1, edge_weight=2, interface_weight=7
    )
    combined(logits, target)
    assert combined.parts["focal"] == focal_loss(logits, target, alpha=(4, 3, 2, 1), gamma=1)
    assert combined.parts["dice"] == dice_loss(logits, target, smooth=5)
    assert combined.parts["mcc"] == mcc_loss(logits, target, exponent=1)
    assert combined.parts["boundary"] == boundary_loss(logits, target, edge=2, interface=7)


def test_phases_and_overrides():
    a, b = CombinedLoss.phase_a(), CombinedLoss.phase_b()
    assert a.weights == {"focal": 0.60, "dice": 0.40, "mcc": 0, "boundary": 0, "bf1": 0}
    assert b.weights == {"focal": 0.25, "dice": 0.25, "mcc": 0.35, "boundary": 0.15, "bf1": 0}
    assert CombinedLoss.phase_b(mcc=0, bf1=0.1).weights["mcc"] == 0
    assert CombinedLoss.phase_a(gamma=3).settings.gamma == 3
    assert repr(b) == "CombinedLoss(focal=0.25, dice=0.25, mcc=0.35, boundary=0.15)"


def test_part_of_weight_zero_is_not_computed(monkeypatch):
    for name in ("_mcc", "_boundary", "_bf1"):
        monkeypatch.setattr(losses, name, None)
    combined = CombinedLoss.phase_a()
    combined(*scene())
    assert combined.parts.keys() == {"focal", "dice"}


def test_ramp():
    logits, target = scene()
    combined = CombinedLoss.phase_b()
    full = combined(logits, target)
    boundary = combined.parts["boundary"]
    combined.ramp["boundary"] = 0.05
    torch.testing.assert_close(combined(logits, target), full - 0.95 * 0.15 * boundary)
    combined.ramp["boundary"] = 0.0
    assert torch.equal(
        value_and_gradient(combined, logits, target)[1],
        value_and_gradient(CombinedLoss.phase_b(boundary=0), logits, target)[1],
    )
    assert combined.parts["boundary"] == boundary
    assert combined.weights["boundary"] == 0.15


def test_all_parts_ramped_to_nothing():
    combined = CombinedLoss.phase_a()
    combined.ramp = dict.fromkeys(combined.ramp, 0.0)
    value, gradient = value_and_gradient(combined, *scene())
    assert value == 0
    assert not gradient.any()


def test_learned_weights_start_at_the_given_ones():
    logits, target = scene()
    fixed, learned = CombinedLoss.phase_b(), CombinedLoss.phase_b(learned=True)
    torch.testing.assert_close(
        value_and_gradient(learned, logits, target)[1], value_and_gradient(fixed, logits, target)[1]
    )
    assert not list(fixed.parameters())
    assert {n for n, _ in learned.named_parameters()} == {f"log_variance.{n}" for n in fixed.weights if n != "bf1"}


def test_learned_weights_find_their_optimum():
    # of exp(-s) L / 2 + s / 2 it is s = log L, whatever the ramp
    logits, target = scene()
    learned = CombinedLoss(focal=0.5, boundary=0.5, learned=True)
    learned.ramp["boundary"] = 0.05
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        learned(logits, target).backward()
        optimizer.step()
    for name, s in learned.log_variance.items():
        assert s.item() == pytest.approx(learned.parts[name].log().item(), abs=1e-2)


def test_learned_weights_stay_when_nothing_is_valid():
    logits, target = scene()
    learned = CombinedLoss.phase_b(learned=True)
    learned(logits.requires_grad_(), torch.full_like(target, IGNORE)).backward()
    assert all(s.grad == 0 for s in learned.parameters())


def test_what_fastai_needs():
    logits, target = scene()
    combined = CombinedLoss.phase_b()
    assert combined.reduction == "mean"
    assert combined(logits, target).shape == ()
    combined.reduction = "none"
    assert combined(logits, target).shape == (3,)
    assert all(part.shape == () for part in combined.parts.values())
    torch.testing.assert_close(combined.activation(logits), logits.softmax(1))
    assert combined.activation(logits.bfloat16()).dtype == torch.float32
    assert torch.equal(combined.decodes(logits), logits.argmax(1))
    assert torch.equal(combined.decodes(combined.activation(logits)), logits.argmax(1))


def test_state_holds_only_learned_weights():
    assert not CombinedLoss.phase_b().state_dict()
    learned = CombinedLoss.phase_b(learned=True)
    assert len(learned.state_dict()) == 4


def test_any_number_of_classes_without_focal():
    logits, target = scene()
    assert CombinedLoss(dice=1)(logits[:, :2], target % 2) == dice_loss(logits[:, :2], target % 2)


@pytest.mark.parametrize("alpha", [[4, 3, 2, 1], np.array([4.0, 3, 2, 1]), torch.tensor([4.0, 3, 2, 1])])
def test_alpha_may_be_a_list_or_an_array(alpha):
    logits, target = scene()
    assert CombinedLoss(focal=1, alpha=alpha)(logits, target) == focal_loss(logits, target, alpha=(4, 3, 2, 1))


def test_the_signature_and_help_name_every_setting():
    named = inspect.signature(CombinedLoss).parameters
    assert {*named} == {*LossSettings.model_fields, "extra", "ignore_index"}
    assert (named["gamma"].default, named["mcc"].default) == (2.0, 0.0)
    assert "gamma: focal exponent (default 2.0)" in CombinedLoss.__doc__


# Parts of the user's own


def entropy(logits, target):
    """Mean cross-entropy over valid pixels, 0 where there are none."""
    valid = target != IGNORE
    log_p = logits.log_softmax(1).clamp(min=-1e30)
    loss = torch.nn.functional.nll_loss(log_p, target.where(valid, 0), reduction="none")
    return (loss * valid).sum() / valid.sum().clamp(min=1)


class Scaled(nn.Module):
    """A part with a weight and a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("offset", torch.tensor(0.0))

    def forward(self, logits, target):
        return self.scale * entropy(logits, target) + self.offset


class TestWithAPartOfOnesOwn(CombinedContract):
    knows_ice = False

    def make(self):
        return CombinedLoss.phase_b(extra={"entropy": (0.3, entropy)})


class TestAPartOfOnesOwnLearned(CombinedContract):
    knows_ice = False
    spatial = False
    perfect = 4.0  # the log-variances stay

    def make(self):
        return CombinedLoss(dice=0.5, extra={"entropy": (0.3, entropy)}, learned=True)


def test_a_part_of_ones_own_is_weighted_ramped_and_recorded():
    logits, target = scene()
    combined = CombinedLoss(dice=0.5, extra={"entropy": (0.3, entropy), "off": (0, print)})
    dice, own = dice_loss(logits, target), entropy(logits, target)
    torch.testing.assert_close(combined(logits, target), 0.5 * dice + 0.3 * own)
    assert combined.weights == {"focal": 0, "dice": 0.5, "mcc": 0, "boundary": 0, "bf1": 0, "entropy": 0.3, "off": 0}
    assert combined.parts.keys() == {"dice", "entropy"}
    torch.testing.assert_close(combined.parts["entropy"], own)
    combined.ramp["entropy"] = 0.1
    torch.testing.assert_close(combined(logits, target), 0.5 * dice + 0.03 * own)
    assert repr(combined) == "CombinedLoss(dice=0.5, entropy=0.3)"
    torch.testing.assert_close(CombinedLoss(extra={"mine": (2, entropy)})(logits, target), 2 * own)


def test_a_part_of_ones_own_gets_float32_and_int64_in_any_precision():
    seen = []

    def look(logits, target):
        seen.append((type(logits), logits.dtype, target.dtype, (logits @ logits.mT).dtype))
        return logits.mean()

    logits, target = scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        CombinedLoss(extra={"look": (1, look)})(logits.bfloat16(), target.to(torch.uint8))
    assert seen == [(Tensor, torch.float32, torch.int64, torch.float32)]


def test_a_module_moves_and_is_trained_and_kept_with_the_loss():
    combined = CombinedLoss(dice=0.5, extra={"scaled": (0.5, Scaled())})
    assert {n for n, _ in combined.named_parameters()} == {"extra_scaled.scale"}
    combined(*scene()).backward()
    assert combined.extra["scaled"].scale.grad
    combined.to("meta")
    assert combined.extra["scaled"].offset.device.type == "meta"
    again = CombinedLoss(dice=0.5, extra={"scaled": (0.5, Scaled())})
    again.load_state_dict({"extra_scaled.scale": torch.tensor(7.0), "extra_scaled.offset": torch.tensor(1.0)})
    assert again.extra["scaled"].scale == 7
    copied = pickle.loads(pickle.dumps(again))
    assert copied(*scene()) == again(*scene())
    assert copied.extra["scaled"] is copied.extra_scaled


@pytest.mark.parametrize(
    "part", [CrossEntropyLossFlat(axis=1, ignore_index=IGNORE), nn.CrossEntropyLoss(ignore_index=IGNORE)]
)
def test_losses_of_others_are_parts(part):
    logits, target = scene()
    value = CombinedLoss(extra={"other": (1, part)})(logits, target)
    torch.testing.assert_close(value, entropy(logits, target))


def test_a_mean_over_nothing_counts_as_0():
    logits, target = scene()
    combined = CombinedLoss(extra={"other": (1, nn.CrossEntropyLoss(ignore_index=IGNORE))})
    target[0] = IGNORE
    combined.reduction = "none"
    assert (combined(logits, target) > 0).tolist() == [False, True, True]
    combined.reduction = "mean"
    value, gradient = value_and_gradient(combined, logits, torch.full_like(target, IGNORE))
    assert not value
    assert not gradient.any()


def test_a_part_of_ones_own_is_the_mean_over_processes():
    logits, target = scene()
    combined = CombinedLoss(extra={"entropy": (1, entropy), "mean": (2, lambda logits, target: logits.mean())})
    combined.total = lambda x: 2 * x + torch.tensor([6.0, 4.0, 1.0])  # two others of this batch's size, and a third
    combined(logits, target)
    torch.testing.assert_close(combined.parts["entropy"], (2 * entropy(logits, target) + 6) / 3)
    torch.testing.assert_close(combined.parts["mean"], (2 * logits.mean() + 4) / 3)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"dice": (0.1, entropy)}, "extra: a part cannot be called 'dice': use a name other than focal, dice"),
        ({"valid": (0.1, entropy)}, "extra: a part cannot be called 'valid'"),
        ({"my part": (0.1, entropy)}, "extra: a part cannot be called 'my part'"),
        (
            {"mine": entropy},
            r"extra: mine is <function entropy .*: give its weight and a function, as \(0.1, my_loss\)",
        ),
        ({"mine": (entropy, 0.1)}, "extra: mine is .*give its weight and a function"),
        ({"mine": (0.1, "entropy")}, "extra: mine is .*give its weight and a function"),
        ({"mine": (-0.1, entropy)}, "extra: mine has weight -0.1: use 0 or a positive number"),
        ({"mine": (math.nan, entropy)}, "extra: mine has weight nan"),
        ({"mine": (0, entropy)}, "the weights of all parts are 0: give one of focal, dice, mcc, boundary, bf1, mine a"),
    ],
)
def test_parts_that_cannot_be_are_refused(extra, message):
    with pytest.raises(RecipeError, match=message) as e:
        CombinedLoss(extra=extra)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda z, y: z.mean(1), r"loss part mine returns torch.float32 \(3, 12, 10\): return a float tensor of shape"),
        (lambda z, y: 0.5, "loss part mine returns float"),
        (lambda z, y: None, "loss part mine returns NoneType"),
        (lambda z, y: (y == 0).sum(), r"loss part mine returns torch.int64 \(\)"),
    ],
)
def test_parts_that_return_no_scalar_are_refused(part, message):
    combined = CombinedLoss.phase_a(extra={"mine": (0.1, part)})
    for combined.reduction in ("mean", "none"):
        with pytest.raises(RecipeError, match=message.replace("(3,", "([13],")) as e:
            combined(*scene())
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the weights of all parts are 0: give one of focal, dice, mcc, boundary, bf1 a weight"),
        ({"focal": -0.1, "dice": 1}, "focal: input should be greater than or equal to 0, not -0.1"),
        ({"mcc": math.nan}, "mcc: input should be a finite number"),
        ({"mcc": math.inf}, "mcc: input should be a finite number"),
        ({"focal": "1"}, 'focal: input should be a valid number, not "1"'),
        ({"focal": 1, "alpha": (1, 2, 3, -4)}, r"alpha.3: input should be greater than or equal to 0, not -4"),
        ({"focal": 1, "gama": 2}, "gama: unknown key; allowed are focal, .*; did you mean 'gamma'?"),
        ({"focal": 1, "gamma": -1, "smooth": 0}, "gamma: input .*; smooth: input should be greater than 0, not 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(RecipeError, match=message) as e:
        CombinedLoss(**options)
    assert "\n" not in str(e.value)


def test_refusals_at_use():
    logits, target = scene()
    with pytest.raises(RecipeError, match="alpha has 4 values for 3 classes: give one per class"):
        CombinedLoss.phase_a()(logits[:, :3], target.where(target == IGNORE, target % 3))
    combined = CombinedLoss.phase_a()
    combined.reduction = "sum"
    with pytest.raises(RecipeError, match="unknown reduction 'sum': use 'mean' or 'none'"):
        combined(logits, target)
    with pytest.raises(RecipeError, match="alpha has 2 values for 4 classes"):
        focal_loss(logits, target, alpha=(1, 2))
    with pytest.raises(RecipeError, match="windows of 4 and 5 pixels have no centre"):
        bf1_loss(logits, target, t0=4)
    with pytest.raises(DataError, match="labels are torch.bool"):
        dice_loss(logits, target == 1)
