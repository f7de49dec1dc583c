import copy
import math
import os
import pickle
import random
import resource

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.tracker import EarlyStoppingCallback
from learners import assert_same, small_learner
from torch import nn

from glacier_fastai.errors import CheckpointError, OutputError
from glacier_fastai.train.callbacks import (
    AverageWeightsCallback,
    ProgressiveRampCallback,
    WarmupDecayCallback,
    plateau,
)
from glacier_fastai.train.checkpoint import CheckpointCallback, differences, load_checkpoint, save_checkpoint
from glacier_fastai.train.record import TensorBoardRecord
from glacier_fastai.train.steps import AccumulateBatches, FreezeEncoder, GradientGuard
from glacier_fastai.train.stop import StopCallback


@pytest.fixture
def small(tmp_path):
    save_checkpoint(tmp_path / "a.ckpt", {"identity": {"seed": 1}, "at": (1, 0), "ended": False, "x": torch.arange(3)})
    return tmp_path / "a.ckpt"


# the file


def test_a_checkpoint_comes_back_as_it_was(small):
    state = load_checkpoint(small)
    assert state["x"].tolist() == [0, 1, 2]
    assert state["identity"] == {"seed": 1}
    assert state["torch"] == str(torch.__version__)


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_one_that_was_cut_short_is_refused(small, share):
    data = small.read_bytes()
    small.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"a\.ckpt: no checkpoint, or cut short .*; take another one"):
        load_checkpoint(small)


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("write", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what, 2))])
def test_no_code_in_a_file_is_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write({"format": Harm()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "harm").exists()


def test_files_of_others_and_of_other_versions_are_refused(small):
    state = torch.load(small, weights_only=True)
    for change, message in (
        ({"version": 9}, r"made by glacier_fastai \S+ \(format 9\), this is \S+ \(format 1\); go on with that one, or"),
        ({"code": "0.0.1"}, r"made by glacier_fastai 0\.0\.1 "),
        ({"format": "other"}, "a file of torch, but no checkpoint of glacier_fastai"),
    ):
        torch.save({**state, **change}, small)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(small)
    torch.save(torch.zeros(2), small)
    with pytest.raises(CheckpointError, match="a file of torch"):
        load_checkpoint(small)


def test_differences_name_their_place():
    there = {"recipe": {"train": {"lr": 1.0, "epochs": 2}, "bands": ["a"]}, "fold": 0}
    here = {"recipe": {"train": {"lr": 2.0, "epochs": 2}, "bands": ["a", "b"]}, "fold": 0, "new": 1}
    assert differences(there, there) == []
    assert differences(there, here) == [
        "recipe.train.lr: 1.0 there, 2.0 here",
        "recipe.bands: ['a'] there, ['a', 'b'] here",
        "new: None there, 1 here",
    ]


# the callback


class Random(nn.Module):
    """A model that draws random numbers of every kind while it trains."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.encoder = nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.3))
        self.decoder = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        if self.training:
            x = x * (1 + 0.1 * random.random() + 0.1 * np.random.rand())
        return self.decoder(self.encoder(x))


class Stop(StopCallback):
    """Ends the fit after a batch, as if a signal had come."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = (epoch, batch)

    def after_batch(self):
        if self.training and (self.epoch, self.iter + 1) == self.at:
            self.reason = "told to"
            raise CancelFitException


def fit(path, folder, resume=None, stop=None, cbs=lambda: [], epochs=3, **kwargs):
    """Train `Random` with the callbacks of a run; return the learner."""
    learn = small_learner(path, **kwargs)
    learn.model, learn.opt = Random(), None
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    save = CheckpointCallback(folder / "last.ckpt", {}, resume)
    more = [plateau("mcc", 0.5, 0), ProgressiveRampCallback(by="batch", epochs=5), AverageWeightsCallback(0.9)]
    more += [GradientGuard(1.0), AccumulateBatches(3), FreezeEncoder(1), WarmupDecayCallback(0.2, 0.7)]
    more += [stop] if stop else []
    learn.fit(epochs, 1e-3, cbs=[save, *more, *cbs()])
    return learn


@pytest.mark.parametrize("at", [(0, 1), (0, 4), (1, 2), (2, 3), (2, 4)])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, at):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = fit(tmp_path / "s", tmp_path / "a")
    fit(tmp_path / "t", tmp_path / "b", stop=Stop(*at))
    state = load_checkpoint(tmp_path / "b" / "last.ckpt")
    assert (state["at"], state["ended"]) == (at, False)
    resumed = fit(tmp_path / "u", tmp_path / "b", resume=state)
    assert_same(load_checkpoint(tmp_path / "a" / "last.ckpt"), load_checkpoint(tmp_path / "b" / "last.ckpt"))
    assert_same(whole.model.state_dict(), resumed.model.state_dict())
    assert_same([list(row) for row in whole.recorder.values], [list(row) for row in resumed.recorder.values])
    assert resumed.first_epoch == 0  # the next fit begins anew


def test_without_the_random_state_it_would_not(tmp_path):
    """The test above can fail: a checkpoint that lacks one thing gives another run."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = fit(tmp_path / "s", tmp_path / "a")
    fit(tmp_path / "t", tmp_path / "b", stop=Stop(1, 2))
    state = load_checkpoint(tmp_path / "b" / "last.ckpt")
    for k, spoil in enumerate(
        (
            lambda s: s["ranks"][0]["random"].update(torch=torch.Generator().manual_seed(99).get_state()),
            lambda s: s["ranks"][0]["random"].update(python=random.Random(9).getstate()),
            lambda s: s.update(gradients=[]),
            lambda s: s["optimizer"]["state"].clear(),
            lambda s: s["ranks"][0]["epoch"].update(warmup_decay=[1.0]),
            lambda s: s.update(at=(1, 1)),
        )
    ):
        changed = copy.deepcopy(state)
        spoil(changed)
        resumed = fit(tmp_path / f"u{k}", tmp_path / "b", resume=changed)
        with pytest.raises(AssertionError):
            assert_same(whole.model.state_dict(), resumed.model.state_dict())


def test_state_of_another_kind_is_refused_in_one_line_and_trackers_keep_their_settings(tmp_path):
    fit(tmp_path / "t", tmp_path, stop=Stop(1, 2))
    state = load_checkpoint(tmp_path / "last.ckpt")
    for k, spoil in enumerate(
        (
            lambda s: s["recorder"].update(iters="x"),
            lambda s: s["recorder"].update(losses=torch.zeros(3, 4)),
            lambda s: s["recorder"].update(smooth_loss=("x", 1)),
            lambda s: s["recorder"].update(smooth_loss=(torch.tensor(1), 1)),
            lambda s: s["recorder"].update(smooth_loss=(torch.tensor(1.0), 2**70)),
            lambda s: s.update(train_iter="x"),
            lambda s: s.update(loader=-1),
            lambda s: [group.update(lr="x") for group in s["optimizer"]["param_groups"]],
            lambda s: [group.update(betas=5) for group in s["optimizer"]["param_groups"]],
            lambda s: [kept.update(exp_avg=torch.zeros(7)) for kept in s["optimizer"]["state"].values()],
            lambda s: [group.update(lr=torch.tensor(0.1)) for group in s["optimizer"]["param_groups"]],
            lambda s: [group.update(weight_decay=math.nan) for group in s["optimizer"]["param_groups"]],
            lambda s: [group.update(amsgrad=True) for group in s["optimizer"]["param_groups"]],
            lambda s: [kept.pop("exp_avg") for kept in s["optimizer"]["state"].values()],
            lambda s: [kept.update(exp_avg_sq=None) for kept in s["optimizer"]["state"].values()],
            lambda s: [kept["exp_avg"].fill_(math.nan) for kept in s["optimizer"]["state"].values()],
            lambda s: [kept["exp_avg_sq"].sub_(1) for kept in s["optimizer"]["state"].values()],
            lambda s: [tracker.update(best="x") for tracker in s["trackers"].values()],
        )
    ):
        changed = copy.deepcopy(state)
        spoil(changed)
        with pytest.raises(CheckpointError, match=r"last\.ckpt: damaged, or not of this run"):
            fit(tmp_path / f"u{k}", tmp_path, resume=changed, cbs=lambda: [TensorBoardRecord(tmp_path / "tb")])
        assert not (tmp_path / "tb").exists()
    for tracker in state["trackers"].values():
        tracker["monitor"] = "nothing"
    assert fit(tmp_path / "v", tmp_path, resume=state).recorder.values


class Scaled(Callback):
    """A gradient scaler, as fp16 has one on CUDA; here on the CPU."""

    order = 20

    def before_fit(self):
        self.learn.scaler, self.seen = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3), []

    def after_loss(self):
        if self.training:
            self.learn.loss_grad = self.scaler.scale(self.loss_grad)

    def before_step(self):
        self.scaler.unscale_(self.opt.opt)

    def after_step(self):
        self.scaler.step(self.opt.opt)
        self.scaler.update()
        self.seen.append(self.scaler.get_scale())


def test_a_gradient_scaler_goes_on_with_its_scale_and_count(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, a, b = Scaled(), Scaled(), Scaled()
    fit(tmp_path / "s", tmp_path / "a", cbs=lambda: [whole])
    fit(tmp_path / "t", tmp_path / "b", stop=Stop(1, 3), cbs=lambda: [a])
    fit(tmp_path / "u", tmp_path / "b", resume=load_checkpoint(tmp_path / "b" / "last.ckpt"), cbs=lambda: [b])
    assert whole.seen == a.seen + b.seen
    assert len(set(whole.seen)) > 1


def test_early_stopping_ends_a_run_for_good(tmp_path):
    fit(tmp_path / "s", tmp_path, cbs=lambda: [EarlyStoppingCallback("mcc", min_delta=9, patience=1)], epochs=5)
    state = load_checkpoint(tmp_path / "last.ckpt")
    assert state["ended"]
    assert len(state["recorder"]["values"]) == state["at"][0] < 5


def test_every_n_epochs_and_the_last_k_are_kept(tmp_path):
    learn = small_learner(tmp_path / "s")
    written = []

    class Seen(Callback):
        order = 102

        def after_epoch(self):
            written.append(load_checkpoint(tmp_path / "last.ckpt")["at"][0] if self.epoch else 0)

    learn.fit(7, 1e-3, cbs=[CheckpointCallback(tmp_path / "last.ckpt", {}, every=2, keep=2), Seen()])
    assert written == [0, 2, 2, 4, 4, 6, 7]
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["epoch0006.ckpt", "epoch0007.ckpt", "last.ckpt"]
    assert load_checkpoint(tmp_path / "epoch0006.ckpt")["at"] == (6, 0)


def test_it_is_saved_within_an_epoch_after_so_many_minutes(tmp_path):
    learn, at = small_learner(tmp_path / "s"), []

    class Seen(Callback):
        order = 102

        def after_batch(self):
            if self.training:
                at.append(load_checkpoint(tmp_path / "last.ckpt")["at"])

    learn.fit(1, 1e-3, cbs=[CheckpointCallback(tmp_path / "last.ckpt", {}, minutes=1e-9), Seen()])
    assert at == [(0, 1), (0, 2), (0, 3), (0, 4)]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, request):
    learn = small_learner(tmp_path / "s")

    class Fill(Callback):
        def before_epoch(self):
            if self.epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most[1]))

    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, most))
    says = r"last\.ckpt: cannot be written \(File too large\); the one before it is kept"
    with pytest.raises(OutputError, match=says):
        learn.fit(3, 1e-3, cbs=[CheckpointCallback(tmp_path / "last.ckpt", {}), Fill()])
    resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert load_checkpoint(tmp_path / "last.ckpt")["at"] == (1, 0)
    assert [p.name for p in tmp_path.iterdir() if p.name != "s"] == ["last.ckpt"]
