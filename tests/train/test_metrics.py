import math

import numpy as np
import pytest
import torch
from fastai.learner import Learner
from scenes import make_store
from sklearn.metrics import jaccard_score, matthews_corrcoef
from torch import nn

from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.train.callbacks import ConfusionMatrixCallback
from glacier_fastai.train.learner import glacier_learner
from glacier_fastai.train.metrics import ConfusionMetric, glacier_metrics


class Pixelwise(nn.Module):
    """A 1 x 1 convolution: quick, and wrong in interesting ways."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(5, 4, 1)

    def forward(self, x):
        return self.conv(x)


@pytest.fixture
def learn(tmp_path):
    dls = GlacierDataLoaders.from_store(make_store(tmp_path / "s"), 0, bs=3, folds=3)
    out = glacier_learner(dls, model=Pixelwise())
    out.metrics = [*glacier_metrics(per_class=True), *glacier_metrics(phase="train")]
    return out


def test_validate_equals_scikit_learn_over_all_labelled_pixels(learn):
    with learn.no_bar(), learn.no_logging():
        values = dict(zip(["valid_loss", *(m.name for m in learn.metrics)], learn.validate(), strict=False))
        preds, targets = learn.get_preds()
    y, p = targets.flatten().numpy(), preds.argmax(1).flatten().numpy()
    assert (y == 255).any()
    y, p = y[y != 255], p[y != 255]
    assert values["mcc"] == pytest.approx(matthews_corrcoef(y, p), abs=1e-9)
    assert values["ice_mcc"] == pytest.approx(matthews_corrcoef(np.isin(y, (1, 2)), np.isin(p, (1, 2))), abs=1e-9)
    iou = jaccard_score(y, p, average=None, labels=range(4))
    assert values["mean_iou"] == pytest.approx(iou.mean(), abs=1e-9)
    assert values["iou_debris"] == pytest.approx(iou[2], abs=1e-9)


def test_names_are_unique_and_can_be_monitored(learn):
    names = [m.name for m in learn.metrics]
    assert len(names) == len(set(names)) == 28
    assert names[:4] == ["mcc", "mean_iou", "ice_mcc", "ice_iou"]
    assert {"recall_lake", "f1_ice", "f1_glacier", "precision_background", "train_mcc"} <= set(names)


def test_training_and_validation_are_counted_apart(learn):
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    matrix, dls = learn.confusion_matrix.matrix, learn.dls
    assert matrix["valid"].sum() == dls.store.class_counts()[dls.valid_tiles].sum()
    assert 0 < matrix["train"].sum() <= dls.store.class_counts()[dls.train_tiles].sum()
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1], strict=False))
    assert row["mcc"] != row["train_mcc"]


def test_memory_does_not_grow_with_the_data(learn):
    with learn.no_bar(), learn.no_logging():
        learn.validate()
    for metric in learn.metrics:
        assert sum(v.numel() for v in vars(metric).values() if isinstance(v, torch.Tensor)) <= 16


def test_they_work_in_a_plain_learner_with_the_callback(tmp_path):
    dls = GlacierDataLoaders.from_store(make_store(tmp_path / "s"), 0, bs=3, folds=3)
    loss = nn.CrossEntropyLoss(ignore_index=255)
    learn = Learner(dls, Pixelwise(), loss, metrics=glacier_metrics(), cbs=ConfusionMatrixCallback())
    with learn.no_bar(), learn.no_logging():
        assert len(learn.validate()) == 5


def test_before_the_first_batch_there_is_no_value():
    assert math.isnan(ConfusionMetric(float, "x").value)
