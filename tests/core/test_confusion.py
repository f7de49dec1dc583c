from __future__ import annotations

import json
import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from contract.losses import ImageLike, MaskLike
from hypothesis import given, settings
from hypothesis import strategies as st

from glacier_fastai.bands import CLASSES
from glacier_fastai.core.confusion import (
    confusion_matrix,
    f1,
    ice,
    iou,
    mcc,
    mean_iou,
    precision,
    recall,
    scores,
    watched,
    wrong,
)
from glacier_fastai.errors import DataError

torch.set_num_threads(1)

K, IGNORE = 4, 255
LABELS = list(range(K))


def maps(seed: int, accuracy: float = 0.7, classes: int = K, nodata: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and truth, with nodata in the truth and anything under it in the prediction."""
    g = np.random.default_rng(seed)
    target = g.integers(0, classes, (3, 20, 30))
    pred = np.where(g.random(target.shape) < accuracy, target, g.integers(0, classes, target.shape))
    hidden = g.random(target.shape) < nodata
    target[hidden], pred[hidden] = IGNORE, g.integers(0, 256, hidden.sum())
    return torch.from_numpy(pred), torch.from_numpy(target)


def valid(pred: torch.Tensor, target: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    keep = target != IGNORE
    return target[keep].numpy(), pred[keep].numpy()  # in the order of scikit-learn


random_cases = given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, K), st.sampled_from([0.0, 0.3, 0.999]))


@pytest.mark.filterwarnings("ignore:A single label was found")  # of matthews_corrcoef, which cannot be told the labels
@random_cases
@settings(max_examples=50, deadline=None)
def test_equals_scikit_learn(seed, accuracy, classes, nodata):
    pred, target = maps(seed, accuracy, classes, nodata)
    y, p = valid(pred, target)
    cm = confusion_matrix(pred, target, K)
    np.testing.assert_array_equal(cm, sk.confusion_matrix(y, p, labels=LABELS) if len(y) else np.zeros((K, K)))
    if not len(y):
        return
    assert mcc(cm) == pytest.approx(sk.matthews_corrcoef(y, p), abs=1e-9)
    p_, r_, f_, _ = sk.precision_recall_fscore_support(y, p, labels=LABELS, zero_division=np.nan)
    np.testing.assert_allclose(precision(cm), p_, rtol=1e-9)
    np.testing.assert_allclose(recall(cm), r_, rtol=1e-9)
    there = np.isin(LABELS, np.union1d(y, p))
    np.testing.assert_allclose(f1(cm)[there], f_[there], rtol=1e-9)
    assert f1(cm)[~there].isnan().all()
    expected = sk.jaccard_score(y, p, labels=np.flatnonzero(there), average=None, zero_division=0)
    np.testing.assert_allclose(iou(cm)[there], expected, rtol=1e-9)
    assert iou(cm)[~there].isnan().all()
    assert mean_iou(cm) == pytest.approx(expected.mean(), rel=1e-9)
    binary = np.isin(y, (1, 2)), np.isin(p, (1, 2))
    np.testing.assert_array_equal(ice(cm), sk.confusion_matrix(*binary, labels=[False, True]))
    assert mcc(ice(cm)) == pytest.approx(sk.matthews_corrcoef(*binary), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_type(dtype):
    pred, target = maps(0)
    assert torch.equal(confusion_matrix(pred.to(dtype), target.to(dtype), K), confusion_matrix(pred, target, K))
    assert torch.equal(confusion_matrix(pred, target.to(dtype), K), confusion_matrix(pred, target, K))


def test_arrays_and_memory_maps(tmp_path):
    pred, target = maps(0)
    expected = confusion_matrix(pred, target, K)
    np.save(tmp_path / "mask.npy", target.numpy().astype(np.uint8))
    stored = np.load(tmp_path / "mask.npy", mmap_mode="r")
    assert torch.equal(confusion_matrix(pred.numpy(), stored, K), expected)
    assert torch.equal(confusion_matrix(pred, stored, K), expected)
    flipped = confusion_matrix(pred.numpy()[:, ::-1], stored[:, ::-1], K)
    assert torch.equal(flipped, expected)


def test_fastai_tensors():
    pred, target = maps(0)
    cm = confusion_matrix(pred.as_subclass(ImageLike), target.as_subclass(MaskLike), K)
    assert type(cm) is torch.Tensor
    assert torch.equal(cm, confusion_matrix(pred, target, K))


@pytest.mark.parametrize("n", [2, 16, 17, 30])
def test_any_number_of_classes(n):
    pred, target = maps(0, classes=n)
    y, p = valid(pred, target)
    np.testing.assert_array_equal(confusion_matrix(pred, target, n), sk.confusion_matrix(y, p, labels=range(n)))


@pytest.mark.parametrize("ignore", [-100, 0, 3, 300])
def test_any_ignore_label(ignore):
    pred, target = maps(0)
    keep = target != IGNORE
    target = target.where(keep, ignore)
    keep = (target != ignore).numpy()
    expected = sk.confusion_matrix(target.numpy()[keep], pred.numpy()[keep], labels=LABELS)
    np.testing.assert_array_equal(confusion_matrix(pred, target, K, ignore=ignore), expected)


def test_input_is_left_alone_and_matrices_add_up():
    pred, target = maps(0)
    before = pred.clone(), target.clone()
    whole = confusion_matrix(pred, target, K)
    assert torch.equal(pred, before[0])
    assert torch.equal(target, before[1])
    assert whole.dtype == torch.int64
    assert torch.equal(sum(confusion_matrix(p, t, K) for p, t in zip(pred, target, strict=True)), whole)


def test_nothing_valid():
    pred, target = maps(0)
    for cm in (
        confusion_matrix(pred, torch.full_like(target, IGNORE), K),
        confusion_matrix(pred[:0], target[:0], K),
    ):
        assert not cm.any()
        assert mcc(cm) == 0
        assert math.isnan(mean_iou(cm))
        assert iou(cm).isnan().all()


@pytest.mark.parametrize(
    ("where", "code", "message"),
    [
        ("pred", 4, "prediction has codes from 0 to 4: use 0 to 3"),
        ("pred", -1, "prediction has codes from -1 to 3"),
        ("target", 85, "truth has codes from 0 to 85"),
    ],
)
def test_foreign_codes_are_refused(where, code, message):
    both = dict(zip(("pred", "target"), maps(0), strict=True))
    both["target"][0, 0, 0] = both["pred"][0, 0, 0] = 0
    both[where][0, 0, 0] = code
    with pytest.raises(DataError, match=message):
        confusion_matrix(**both, n_classes=K)
    if where == "pred":
        both["target"][0, 0, 0] = IGNORE
        confusion_matrix(**both, n_classes=K)


def test_wrong_shapes_and_types_are_refused():
    pred, target = maps(0)
    with pytest.raises(DataError, match=r"prediction \(3, 20\) and truth \(3, 20, 30\) differ in shape"):
        confusion_matrix(pred[..., 0], target, K)
    with pytest.raises(DataError, match="prediction is torch.float32: use class codes of an integer type"):
        confusion_matrix(pred.float(), target, K)


# Scores


def test_mcc_of_a_perfect_and_a_worst_prediction():
    assert mcc([[5, 0], [0, 7]]) == 1
    assert mcc([[0, 5], [7, 0]]) == -1
    assert mcc(torch.diag(torch.tensor([1, 2, 3, 4]))) == pytest.approx(1)


@pytest.mark.parametrize("cm", [[[9, 0], [0, 0]], [[3, 6], [0, 0]], [[3, 0], [6, 0]], [[0, 0], [0, 0]]])
def test_mcc_is_zero_where_undefined(cm):
    # a perfect all-background prediction too, as in scikit-learn; torchmetrics says 1
    assert mcc(cm) == 0


def test_mcc_of_more_pixels_than_fit_the_square_of_int64():
    small = torch.tensor([[50, 3, 1, 0], [4, 20, 2, 1], [2, 5, 9, 0], [0, 0, 1, 2]])
    big = small * 10**12
    assert mcc(big) == pytest.approx(mcc(small), rel=1e-12)
    assert mcc(big.numpy()) == pytest.approx(mcc(small), rel=1e-12)


def test_mcc_of_one_error_in_ten_billion_pixels():
    cm = [[10**10, 1], [0, 1]]
    # phi of TP 1, FP 1, FN 0, TN 1e10
    assert mcc(cm) == pytest.approx(math.sqrt(0.5), rel=1e-9)


def test_absent_classes():
    #                  never predicted nor true: lake; only predicted: debris; only true: glacier
    cm = torch.tensor([[6, 0, 2, 0], [1, 0, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    nan = math.nan
    np.testing.assert_allclose(iou(cm), [6 / 9, 0, 0, nan])
    np.testing.assert_allclose(f1(cm), [12 / 15, 0, 0, nan])
    np.testing.assert_allclose(precision(cm), [6 / 7, nan, 0, nan])
    np.testing.assert_allclose(recall(cm), [6 / 8, 0, nan, nan])
    assert mean_iou(cm) == pytest.approx((6 / 9) / 3)


def test_ice_joins_glacier_and_debris():
    cm = torch.arange(16).view(4, 4)
    assert ice(cm).tolist() == [[0 + 3 + 12 + 15, 1 + 2 + 13 + 14], [4 + 7 + 8 + 11, 5 + 6 + 9 + 10]]
    assert ice(cm).dtype == torch.int64


def test_scores():
    pred, target = maps(3)
    cm = confusion_matrix(pred, target, K)
    s = scores(cm)
    assert list(s) == ["mcc", "ice_mcc", "mean_iou", "ice_iou", "classes", "ice", "confusion"]
    assert s["mcc"] == mcc(cm)
    assert s["ice_mcc"] == mcc(ice(cm))
    assert s["mean_iou"] == mean_iou(cm)
    assert s["ice_iou"] == iou(ice(cm))[1]
    assert s["confusion"] == cm.tolist()
    assert list(s["classes"]) == list(CLASSES)
    for k, row in enumerate(s["classes"].values()):
        expected = {"iou": iou(cm)[k], "precision": precision(cm)[k], "recall": recall(cm)[k], "f1": f1(cm)[k]}
        assert row == {**expected, "pixels": int((target == k).sum())}
        assert type(row["pixels"]) is int
    assert json.loads(json.dumps(s)) == s


def test_ice_of_unknown_kind_counts_for_ice_and_for_no_class():
    pred, target = maps(3)
    unknown = (target != IGNORE) & (torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.3)
    cm = confusion_matrix(pred, target.masked_fill(unknown, 254), K, unknown_ice=True)
    without = confusion_matrix(pred, target.masked_fill(unknown, IGNORE), K)
    assert torch.equal(cm[:K], without)
    assert cm[K].tolist() == pred[unknown].bincount(minlength=K).tolist()
    y, p = valid(pred, target.masked_fill(unknown, 1))
    np.testing.assert_array_equal(ice(cm), sk.confusion_matrix(np.isin(y, (1, 2)), np.isin(p, (1, 2))))
    ours, plain = scores(cm), scores(without)
    apart = ("ice_mcc", "ice_iou", "ice", "confusion")
    assert {k: v for k, v in ours.items() if k not in apart} == {k: v for k, v in plain.items() if k not in apart}
    assert ours["ice_mcc"] == pytest.approx(sk.matthews_corrcoef(np.isin(y, (1, 2)), np.isin(p, (1, 2))))
    assert ours["ice"]["recall"] == pytest.approx(sk.recall_score(np.isin(y, (1, 2)), np.isin(p, (1, 2))))
    assert ours["ice"]["pixels"] == np.isin(y, (1, 2)).sum()
    assert (ours["confusion"], plain["confusion"]) == (cm.tolist(), without.tolist())
    assert scores(confusion_matrix(pred, target, K, unknown_ice=True)) == scores(confusion_matrix(pred, target, K))
    assert scores(torch.tensor(ours["confusion"])) == ours
    with pytest.raises(DataError, match="truth has codes from 0 to 254: use 0 to 3"):
        confusion_matrix(pred, target.masked_fill(unknown, 254), K)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_ice_of_unknown_kind_in_any_integer_type(dtype):
    pred, target = torch.tensor([0, 1, 2, 3, 7]), torch.tensor([254, 254, 254, 254, 255])
    cm = confusion_matrix(pred.to(dtype), target.to(dtype), K, unknown_ice=True)
    assert cm.tolist() == [[0] * 4] * 4 + [[1, 1, 1, 1]]
    assert wrong(pred.numpy(), target.numpy()).tolist() == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("known", "unknown", "name"), [(0, 0, "mcc"), (5, 5, "mcc"), (5, 6, "ice_mcc"), (0, 1, "ice_mcc")]
)
def test_the_score_that_is_watched(known, unknown, name):
    assert watched(known, unknown) == name


def test_scores_of_any_kind_of_matrix():
    cm = confusion_matrix(*maps(3), K)
    assert scores(cm.numpy()) == scores(cm.tolist()) == scores(cm)
    with pytest.raises(DataError, match=r"confusion matrix \(2, 2\): use one row and column for each of background"):
        scores(ice(cm))
