"""Small learners for the tests of callbacks."""

import torch
from fastai.callback.progress import ProgressCallback
from scenes import make_store
from torch import nn

from glacier_fastai.core.losses import CombinedLoss
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.train.learner import glacier_learner


class Small(nn.Module):
    """Convolution, norm, convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x):
        return self.net(x)


def small_learner(path, bs=2, fold=0, loss=None, cbs=None, **kwargs):
    """Return a silent learner of `Small` on a made-up store, which is written to `path`."""
    dls = GlacierDataLoaders.from_store(make_store(path), fold, bs=bs, folds=3, **kwargs)
    loss = loss or CombinedLoss.phase_b()
    out = glacier_learner(dls, model=Small(), loss_func=loss, cbs=cbs)
    out.remove_cbs(ProgressCallback)
    out.logger = lambda row: None
    return out


def column(learn, name):
    """Return a column of the Recorder, a value for each epoch."""
    return [v[learn.recorder.metric_names.index(name) - 1] for v in learn.recorder.values]


def assert_same(a, b, where="state"):
    """Assert that nested states are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b) or torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            assert_same(a[k], b[k], f"{where}.{k}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{k}]")
    else:
        assert a == b or (a != a and b != b), f"{where}: {a} {b}"
