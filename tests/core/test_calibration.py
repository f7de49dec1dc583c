from __future__ import annotations

import itertools
import math
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from contract.losses import ImageLike
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.metrics import log_loss, matthews_corrcoef

from glacier_fastai.bands import ICE, IGNORE
from glacier_fastai.core import calibration
from glacier_fastai.core.calibration import (
    LEAST_GAIN,
    calibrated,
    decide,
    expected_calibration_error,
    fit_offsets,
    fit_temperature,
    nll,
    reliability,
)
from glacier_fastai.core.confusion import confusion_matrix, mcc
from glacier_fastai.errors import DataError

K = 4
SHARES = torch.tensor([3.0, 1.0, 0.0, -2.0])  # logits: much background, few lakes


def pixels(seed: int, n: int = 3000, temperature: float = 1.0, bias=(0.0,) * K) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities that `temperature` and `bias` make right, and labels."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, K, generator=g) * 1.5 + SHARES
    true = (logits / temperature + torch.tensor(bias)).softmax(1)
    return logits.softmax(1), torch.multinomial(true, 1, generator=g)[:, 0]


def with_ignored(probs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same between pixels without a label, whose probabilities are anything."""
    anything = torch.tensor([[math.nan] * K, [5.0] * K, [-1.0, 0, 0, 0]], dtype=probs.dtype)
    nothing = torch.full((3,), IGNORE, dtype=labels.dtype)
    return torch.cat([anything, probs, anything]), torch.cat([nothing, labels, nothing])


seeds = st.integers(0, 2**32 - 1)


# Temperature and bias


def test_nothing_is_changed_by_temperature_1_and_bias_0():
    probs, _ = pixels(0)
    probs[:4] = torch.eye(K)
    out = calibrated(probs.T, 1.0, [0.0] * K)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, probs.T, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_calibrated_maps(dtype):
    probs, _ = pixels(0, n=30)
    probs[:4] = torch.eye(K)
    maps = probs.T.reshape(K, 5, 6).to(dtype)
    bias = np.array([0.3, -0.1, 0.0, 0.5])
    logits = np.log(maps.double().numpy().clip(2.0**-25)) / 1.7 + bias[:, None, None]
    expected = np.exp(log_softmax(logits, axis=0))
    np.testing.assert_allclose(calibrated(maps, 1.7, bias), expected, atol=1e-6)
    last = calibrated(maps.movedim(0, -1), 1.7, bias, dim=-1)
    np.testing.assert_allclose(last.movedim(-1, 0), expected, atol=1e-6)


def test_fastai_tensors_become_plain():
    probs, _ = pixels(0)
    assert type(calibrated(probs.T.as_subclass(ImageLike), 2.0, [0.0] * K)) is torch.Tensor
    assert type(decide(probs.T.as_subclass(ImageLike), [0.0] * K)) is torch.Tensor


def test_nll_equals_scikit_learn():
    probs, labels = pixels(0)
    expected = log_loss(labels, probs.double() / probs.double().sum(1, keepdim=True), labels=range(K))
    assert nll(probs, labels) == pytest.approx(expected, abs=1e-6)
    assert nll(probs.T.reshape(K, 30, 100), labels.view(30, 100), dim=0) == nll(probs, labels)
    assert nll(torch.eye(K)[:1], torch.tensor([1])) == pytest.approx(25 * math.log(2))


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
@pytest.mark.parametrize("bias", [(0.0,) * K, (0.2, -0.6, 0.1, 0.3)])
def test_the_truth_is_recovered(temperature, bias):
    probs, labels = pixels(1, 300_000, temperature, bias)
    t, b = fit_temperature(probs, labels, bias=any(bias))
    assert t == pytest.approx(temperature, rel=0.02)
    assert b == pytest.approx(bias, abs=0.04)
    after = reliability(calibrated(probs, t, b, dim=1), labels)
    assert expected_calibration_error(after) < 0.004
    if temperature != 1:
        assert expected_calibration_error(reliability(probs, labels)) > 0.02


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_fit_equals_a_slow_plain_one(seed, bias, monkeypatch):
    monkeypatch.setattr(calibration, "CHUNK", 700)
    probs, labels = pixels(seed, 3000, 1.8, (0.1, -0.4, 0.1, 0.2))
    logs, y = np.log(probs.double().numpy()), labels.numpy()

    def loss(x):
        return -log_softmax(logs / x[0] + np.append(0, x[1:]) * bias, axis=1)[np.arange(len(y)), y].mean()

    x = minimize(loss, [1.0, 0, 0, 0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-13, "maxiter": 5000}).x
    b = np.append(0, x[1:]) * bias
    fitted = fit_temperature(probs, labels, bias=bias)
    assert fitted[0] == pytest.approx(x[0], abs=1e-4)
    assert fitted[1] == pytest.approx(b - b.mean(), abs=1e-4)
    assert fit_temperature(probs, labels, bias=bias) == fitted


@given(seeds, st.integers(1, 40), st.floats(0.01, 30), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_nll_is_never_raised(seed, n, spread, bias, half):
    g = torch.Generator().manual_seed(seed)
    probs = (torch.randn(n, K, generator=g) * spread).softmax(1)
    probs = probs.half() if half else probs
    labels = torch.randint(K, (n,), generator=g)
    t, b = fit_temperature(probs, labels, bias=bias)
    assert 0.05 - 1e-9 <= t <= 20 + 1e-9
    assert sum(b) == pytest.approx(0, abs=1e-9)
    before = nll(calibrated(probs, 1, [0] * K, dim=1), labels)
    assert nll(calibrated(probs, t, b, dim=1), labels) <= before + 1e-5


def test_classes_without_a_label_keep_bias_0():
    probs, labels = pixels(0, 20_000, 2.0, (0.0, 0.0, 0.5, 0.0))
    kept = (labels == 0) | (labels == 2)
    t, b = fit_temperature(probs[kept], labels[kept], bias=True)
    assert b[1] == b[3] == 0
    assert b[0] == pytest.approx(-b[2])
    assert 1 < t < 20
    kept = (labels == 1) | (labels == 2)  # without background, too
    _, b = fit_temperature(probs[kept], labels[kept], bias=True)
    assert b[0] == b[3] == 0
    assert b[1] == pytest.approx(-b[2])
    only = labels == 1
    assert fit_temperature(probs[only], labels[only], bias=True) == fit_temperature(probs[only], labels[only])


def test_temperature_stays_within_bounds():
    sure = torch.full((8, K), 0.23) + 0.08 * torch.eye(K).repeat(2, 1)
    right = torch.arange(K).repeat(2)
    assert fit_temperature(sure, right)[0] == pytest.approx(0.05)
    assert fit_temperature(sure, (right + 1) % K)[0] == pytest.approx(20)
    assert fit_temperature(torch.full((8, K), 0.25), right, bias=True) == (1, pytest.approx([0] * K))


# Reliability


def slow_table(confidence: np.ndarray, hit: np.ndarray, bins: int) -> tuple[list, float]:
    rows, error = [], 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins) | (confidence == 0) * (k == 0)
        n = inside.sum()
        rows.append((n, confidence[inside].mean(), hit[inside].mean()) if n else (0, math.nan, math.nan))
        error += n / len(hit) * abs(rows[-1][1] - rows[-1][2]) if n else 0
    return rows, error


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("of", [None, (2,), ICE, (3, 0)])
def test_reliability_equals_a_slow_plain_one(bins, of):
    probs, labels = pixels(2, 4000, 2.0)
    p, y = probs.double().numpy(), labels.numpy()
    p[:K], probs[:K] = np.eye(K), torch.eye(K)
    confidence, hit = (p.max(1), p.argmax(1) == y) if of is None else (p[:, list(of)].sum(1), np.isin(y, of))
    rows, error = slow_table(confidence, hit, bins)
    table = reliability(probs, labels, bins, of)
    np.testing.assert_allclose(np.c_[table.pixels, table.confidence, table.accuracy], rows, rtol=1e-12)
    np.testing.assert_allclose(table.edges, np.arange(bins + 1) / bins)
    assert expected_calibration_error(table) == pytest.approx(error, rel=1e-12)


def test_tables_add_up():
    probs, labels = pixels(3)
    labels[500:1000] = IGNORE  # a whole chunk without labels
    whole = reliability(probs, labels)
    total = reduce(add, (reliability(p, y) for p, y in zip(probs.split(500), labels.split(500), strict=True)))
    np.testing.assert_array_equal(total.pixels, whole.pixels)
    np.testing.assert_array_equal(total.hits, whole.hits)
    np.testing.assert_allclose(total.confidence_sum, whole.confidence_sum, rtol=1e-12)
    assert expected_calibration_error(total) == pytest.approx(expected_calibration_error(whole))
    with pytest.raises(DataError, match="tables of 15 and 10 bins cannot be added"):
        whole + reliability(probs, labels, bins=10)


def test_arrays_and_memory_maps(tmp_path):
    probs, labels = pixels(3)
    np.save(tmp_path / "p.npy", probs.numpy())
    np.save(tmp_path / "y.npy", labels.byte().numpy())
    stored = np.load(tmp_path / "p.npy", mmap_mode="r"), np.load(tmp_path / "y.npy", mmap_mode="r")
    assert nll(*stored) == nll(probs, labels)
    assert fit_temperature(*stored, bias=True) == fit_temperature(probs, labels, bias=True)


def test_ignored_pixels_change_nothing():
    probs, labels = pixels(4, 3000, 2.0, (1.0, 0.0, 0.0, 0.0))
    more = with_ignored(probs, labels)
    assert nll(*more) == nll(probs, labels)
    assert fit_temperature(*more, bias=True) == fit_temperature(probs, labels, bias=True)
    assert fit_offsets(*more) == fit_offsets(probs, labels)
    for a, b in zip(vars(reliability(*more)).values(), vars(reliability(probs, labels)).values(), strict=True):
        np.testing.assert_array_equal(a, b)


# Decisions


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_without_offsets_the_most_probable_class_is_chosen(dtype):
    probs, _ = pixels(0, 10_000)
    probs = probs.to(dtype).T.reshape(K, 100, 100)
    near = torch.tensor([0.3, torch.nextafter(torch.tensor(0.3), torch.tensor(1.0)), 0.2, 0.2], dtype=dtype)
    probs[:, 0, 0] = near
    probs[:, 0, 1] = torch.tensor([0.2, 0.3, 0.2, 0.3])
    out = decide(probs, [0.0] * K)
    assert out.dtype == torch.uint8
    assert torch.equal(out.long(), probs.argmax(0))
    assert out[0, 1] == 1
    assert torch.equal(decide(probs, [1.5] * K), out)


def test_offsets_are_added_to_logarithms():
    probs, _ = pixels(0)
    offsets = torch.tensor([0.0, 0.4, 1.1, -0.7], dtype=torch.float64)
    expected = (probs.double().log() + offsets).argmax(1)
    assert torch.equal(decide(probs, offsets.tolist(), dim=1).long(), expected)
    assert torch.equal(decide(probs.T.reshape(K, 30, 100), offsets.tolist()).long().flatten(), expected)
    assert decide(torch.eye(K), [0, 30, 30, 30]).tolist() == [0, 1, 2, 3]  # what cannot be never is


def imbalanced(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of a model that was trained on balanced classes, labels mostly background."""
    probs, labels = pixels(seed, 3000)
    return (probs.log() - SHARES).softmax(1), labels


def score(probs: torch.Tensor, labels: torch.Tensor, offsets) -> float:
    return mcc(confusion_matrix(decide(probs, offsets, dim=1), labels, K))


@pytest.mark.parametrize("seed", range(3))
def test_offsets_are_as_good_as_the_best_of_a_grid(seed):
    probs, labels = imbalanced(seed)
    offsets = fit_offsets(probs, labels)
    assert offsets[0] == 0
    assert max(map(abs, offsets)) <= 3
    grid = np.linspace(-3, 3, 9)
    best = max(score(probs, labels, (0, *o)) for o in itertools.product(grid, repeat=K - 1))
    got, zero = score(probs, labels, offsets), score(probs, labels, [0] * K)
    assert got > zero + 0.1
    assert got > best - 2 * LEAST_GAIN
    held_out = imbalanced(seed + 10)
    assert score(*held_out, offsets) > score(*held_out, [0] * K) + 0.1
    assert fit_offsets(probs, labels) == offsets


@given(seeds, st.integers(1, 60), st.booleans())
@settings(max_examples=40, deadline=None)
def test_offsets_never_lower_the_mcc(seed, n, half):
    g = torch.Generator().manual_seed(seed)
    probs = (torch.randn(n, K, generator=g) * 2).softmax(1)
    probs = probs.half() if half else probs
    labels = torch.randint(K, (n,), generator=g)
    offsets = fit_offsets(probs, labels)
    gain = score(probs, labels, offsets) - score(probs, labels, [0] * K)
    assert gain > LEAST_GAIN if any(offsets) else gain == 0
    assert offsets[0] == 0
    assert all(o == 0 for k, o in enumerate(offsets) if not (labels == k).any())


def test_offsets_stay_0_where_there_is_nothing_to_gain():
    probs = torch.eye(K).repeat(50, 1) * 0.8 + 0.05
    labels = torch.arange(K).repeat(50)
    assert fit_offsets(probs, labels) == [0] * K
    assert fit_offsets(probs[labels == 0], labels[labels == 0]) == [0] * K


@pytest.mark.parametrize("seed", range(2))
def test_offsets_undo_what_a_model_adds_to_background(seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(3000, K, generator=g) * 0.7 + torch.tensor([1.0, 0, 0, 0])
    labels = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    right, lopsided = logits.softmax(1), (logits + torch.tensor([2.0, 0, 0, 0])).softmax(1)
    got = score(lopsided, labels, fit_offsets(lopsided, labels))
    assert got == pytest.approx(score(right, labels, fit_offsets(right, labels)), abs=LEAST_GAIN)


def test_a_class_is_left_where_moving_it_gains_next_to_nothing():
    probs = torch.tensor([[0.6, 0.4, 0, 0], [0.9, 0.1, 0, 0], [0, 0, 0, 1], [0.6, 0, 0, 0.4]])
    times = torch.tensor([3000, 3000, 1000, 1])
    labels = torch.tensor([1, 0, 3, 3]).repeat_interleave(times)
    assert fit_offsets(probs.repeat_interleave(times, 0), labels) == [0, 0.42, 0, 0]


def test_offsets_that_decide_does_not_confirm_are_dropped(monkeypatch):
    def promise(scores, labels, group, low, high):
        matrices = torch.zeros(high - low + 1, K, K, dtype=torch.int64)
        matrices[-1] = torch.eye(K)
        return matrices

    monkeypatch.setattr(calibration, "_along", promise)
    assert fit_offsets(*pixels(0)) == [0] * K


def test_matrices_along_a_line_equal_those_of_each_decision():
    probs, labels = imbalanced(0)
    for group in ([2], [1, 3], [1, 2, 3]):
        found = calibration._along(probs.log(), labels, group, -20, 30)
        for m in (-20, -7, 0, 11, 30):
            offsets = [0.02 * m * (k in group) for k in range(K)]
            expected = confusion_matrix(decide(probs, offsets, dim=1), labels, K, unknown_ice=True)
            assert torch.equal(found[m + 20], expected)


# Ice of unknown kind


def half_unknown(seed, n=4000):
    """Probabilities and labels in which half of the ice has no kind."""
    probs, labels = pixels(seed, n)
    g = torch.Generator().manual_seed(seed)
    unknown = ((labels == 1) | (labels == 2)) & (torch.rand(n, generator=g) < 0.5)
    return probs, labels.masked_fill(unknown, 254)


def slow_nll(probs, labels):
    p = probs.double().numpy()
    chosen = [q[1] + q[2] if y == 254 else q[y] for q, y in zip(p, labels.tolist(), strict=True)]
    return -np.log(chosen).mean()


@pytest.mark.parametrize("bias", [False, True])
def test_ice_of_unknown_kind_is_as_likely_as_both_kinds_together(bias):
    probs, labels = half_unknown(1)
    assert nll(probs, labels) == pytest.approx(slow_nll(probs, labels), rel=1e-5)
    temperature, added = fit_temperature(probs, labels, bias)
    best = slow_nll(calibrated(probs, temperature, added, 1), labels)
    for dt, db in ((0.02, 0), (-0.02, 0), *(((0, k) for k in range(K)) if bias else ())):
        moved = [b + 0.02 * (k == db) for k, b in enumerate(added)] if dt == 0 else added
        assert slow_nll(calibrated(probs, temperature + dt, moved, 1), labels) > best - 1e-7
    assert nll(probs, labels.masked_fill(labels == 254, IGNORE)) != pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("kinds", [(0, 254), (0, 3, 254)])
def test_where_no_ice_has_a_kind_everything_is_fitted_to_ice(kinds):
    probs, labels = imbalanced(0)
    labels = labels.masked_fill((labels == 1) | (labels == 2), 254)
    labels = torch.where(torch.isin(labels, torch.tensor(kinds)), labels, IGNORE)
    temperature, bias = fit_temperature(probs, labels, True)
    assert 0.05 <= temperature <= 20
    assert bias[2] == 0
    offsets = fit_offsets(probs, labels)
    assert offsets[0] == offsets[3] == 0
    assert offsets[1] == offsets[2] != 0

    def ice_mcc(offsets):
        known = labels != IGNORE
        said = torch.isin(decide(probs, offsets, dim=1), torch.tensor([1, 2]))
        return matthews_corrcoef((labels == 254)[known], said[known])

    best = max(ice_mcc([0, o / 50, o / 50, 0]) for o in range(-150, 151))
    assert ice_mcc(offsets) == pytest.approx(best, abs=LEAST_GAIN)


def test_few_pixels_of_unknown_kind_do_not_change_the_decisions():
    probs, labels = imbalanced(0)
    more, kind = torch.cat([probs, probs[:50]]), torch.cat([labels, torch.full((50,), 254)])
    assert fit_offsets(more, kind) == fit_offsets(probs, labels)


def test_reliability_of_ice_of_unknown_kind():
    probs = torch.tensor([[0.4, 0.35, 0.2, 0.05], [0.5, 0.1, 0.1, 0.3], [0.1, 0.2, 0.6, 0.1]])
    labels = torch.tensor([254, 254, 2])
    top = reliability(probs, labels, 10)
    assert top.hits.sum() == 2
    assert top.confidence_sum.sum() == pytest.approx(0.55 + 0.5 + 0.6)
    assert (
        reliability(probs, labels, 10, of=(1,)).pixels.sum() == reliability(probs, labels, 10, of=(2,)).hits.sum() == 1
    )
    ice = reliability(probs, labels, 10, of=(1, 2))
    assert (ice.hits.sum(), ice.confidence_sum.sum()) == (3, pytest.approx(0.55 + 0.2 + 0.8))
    assert reliability(probs, labels, 10, of=(0,)).pixels.sum() == 3


# What is refused


PROBS, LABELS = pixels(0, 50)


@pytest.mark.parametrize("fit", [nll, fit_temperature, reliability, fit_offsets])
@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        (PROBS, LABELS[:-1], r"probabilities \(50, 4\) and labels \(49,\) do not fit"),
        (PROBS[0], LABELS[:4], r"probabilities \(4,\) and labels \(4,\) do not fit"),
        (PROBS, LABELS.float(), "labels are torch.float32: use class codes of an integer type"),
        (PROBS, LABELS > 0, "labels are torch.bool: use class codes of an integer type"),
        (PROBS, LABELS + 1, "labels from 1 to 4: use 0 to 3, and 255 for none"),
        (PROBS, LABELS - 1, "labels from -1 to 2: use 0 to 3"),
        (PROBS.log(), LABELS, "finite numbers of at least 0 that sum to 1 over the classes"),
        (PROBS * math.nan, LABELS, "finite numbers of at least 0 that sum to 1"),
        (PROBS / 0, LABELS, "finite numbers of at least 0 that sum to 1"),
        (PROBS + torch.tensor([1.0, -1, 0, 0]), LABELS, "finite numbers of at least 0 that sum to 1"),
        (PROBS.gt(0.5).byte(), LABELS, r"probabilities torch.uint8 \(50, 4\): use floats"),
    ],
)
def test_pixels_that_cannot_be_used(fit, probs, labels, message):
    with pytest.raises(DataError, match=message) as e:
        fit(probs, labels)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("fit", [nll, fit_temperature, fit_offsets])
def test_nothing_labelled(fit):
    with pytest.raises(DataError, match="no labelled pixel, so nothing can be fitted or measured"):
        fit(PROBS, torch.full_like(LABELS, IGNORE))


def test_tables_that_cannot_be_made():
    empty = reliability(PROBS, torch.full_like(LABELS, IGNORE))
    assert np.isnan(empty.accuracy).all()
    with pytest.raises(DataError, match="no labelled pixel in the table"):
        expected_calibration_error(empty)
    with pytest.raises(DataError, match="0 bins: use at least 1"):
        reliability(PROBS, LABELS, bins=0)
    for of in ((), (4,), (-1, 0)):
        with pytest.raises(DataError, match="reliability of classes .*: use codes from 0 to 3"):
            reliability(PROBS, LABELS, of=of)


def test_what_does_not_fit_the_classes():
    for bias in ([0.0] * 3, [0, 0, 0, math.nan], 0.0):
        with pytest.raises(DataError, match="use one finite number for each of 4 classes"):
            calibrated(PROBS.T, 1.0, bias)
        with pytest.raises(DataError, match="offsets .*: use one finite number for each of 4 classes"):
            decide(PROBS.T, bias)
    for temperature in (0, -1, math.inf, math.nan):
        with pytest.raises(DataError, match="temperature .*: use a positive number"):
            calibrated(PROBS.T, temperature, [0] * K)
    with pytest.raises(DataError, match=r"sum to 1 over the classes \(axis 0\)"):
        decide(PROBS, [0] * K)
    with pytest.raises(DataError, match="use floats with the classes on axis 2"):
        decide(PROBS, [0] * K, dim=2)
