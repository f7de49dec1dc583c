import math

import pytest
import torch
from fastai.callback.core import Callback
from learners import Small, column, small_learner
from scenes import make_store, tiny_recipe
from torch import nn

from glacier_fastai.errors import TrainingError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.train.run import finetune
from glacier_fastai.train.steps import (
    AccumulateBatches,
    CpuMixedPrecision,
    FiniteLossCallback,
    FreezeEncoder,
    GradientGuard,
)


@pytest.fixture
def learn(tmp_path):
    return small_learner(tmp_path / "s")  # 4 batches of 2


class Spoil(Callback):
    """Makes inputs or gradients of some batches of training infinite; counts from 0 over all epochs."""

    order = 0

    def __init__(self, *batches, what="input"):
        self.batches, self.what, self.seen = batches, what, 0

    def before_batch(self):
        if not self.training:
            return
        self.bad = self.seen in self.batches
        self.seen += 1
        if self.bad and self.what == "input":
            self.learn.xb = (self.xb[0].clone().fill_(float("inf")),)

    def before_step(self):
        if self.bad and self.what == "gradient":
            next(self.model.parameters()).grad[0] = float("nan")


class Steps(Callback):
    order = 90

    def before_fit(self):
        self.gradients, self.losses = [], []

    def after_loss(self):
        if self.training:
            self.losses.append(self.loss_grad.detach().clone())

    def before_step(self):
        self.gradients.append([p.grad.clone() for p in self.model.parameters()])


def weights(learn):
    return {k: v.clone() for k, v in learn.model.state_dict().items() if v.is_floating_point()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


# accumulation


def test_a_step_is_the_mean_of_its_batches_also_the_last_of_an_epoch(learn):
    class Keep(Callback):
        batches = []

        def before_batch(self):
            if self.training:
                self.batches.append((self.x.clone(), self.y.clone()))

    keep, steps = Keep(), Steps()
    learn.fit(1, 0.0, wd=0, cbs=[AccumulateBatches(3), keep, steps])
    assert len(keep.batches) == 4
    assert len(steps.gradients) == 2
    model = Small().train()
    for got, batches in zip(steps.gradients, (keep.batches[:3], keep.batches[3:]), strict=True):
        model.zero_grad()
        for x, y in batches:
            (learn.loss_func(model(x.as_subclass(torch.Tensor)), y) / len(batches)).backward()
        for a, p in zip(got, model.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad, rtol=1e-5, atol=1e-7)


def test_nothing_accumulated_is_carried_into_the_next_epoch_or_fit(learn):
    steps = Steps()
    learn.fit(2, 0.0, wd=0, cbs=[AccumulateBatches(3), steps])
    assert len(steps.gradients) == 4
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())


# clipping and its guard


@pytest.mark.parametrize("limit", [0.05, 1e6])
def test_gradients_are_clipped_to_a_norm(learn, limit):
    free, held = Steps(), Steps()
    learn.fit(1, 0.0, wd=0, cbs=[free])
    learn.dls.train.epoch = 0
    learn.model.load_state_dict(Small().state_dict())
    learn.fit(1, 0.0, wd=0, cbs=[GradientGuard(limit), held])
    for a, b in zip(free.gradients, held.gradients, strict=True):
        norm = torch.cat([g.flatten() for g in a]).norm()
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x * min(1.0, limit / float(norm)), y, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("what", ["input", "gradient"])
def test_a_bad_batch_changes_nothing_and_its_tiles_are_named(learn, what, caplog):
    class Watch(Callback):
        order, seen = 95, []

        def before_batch(self):
            if self.training:
                self.seen.append(weights(self.learn))

    watch, guard = Watch(), GradientGuard()
    learn.fit(2, 1e-3, cbs=[Spoil(1, 5, what=what), guard, watch])
    assert same(watch.seen[1], watch.seen[2])  # the norm statistics, too
    assert same(watch.seen[5], watch.seen[6])
    assert not same(watch.seen[0], watch.seen[1])
    assert (guard.skipped, guard.in_a_row) == (2, 0)
    said = caplog.text
    assert "epoch 1, batch 2 of 4: loss or gradients are not finite, so it is skipped (1 so far); tiles s" in said
    assert "epoch 2, batch 2 of 4" in said
    assert all(map(math.isfinite, column(learn, "train_loss") + column(learn, "train_focal_loss")))
    labelled = sum(column(learn, f"share_{name}")[0] for name in ("background", "glacier", "debris", "lake"))
    assert labelled == pytest.approx(1)


def test_the_tiles_that_are_named_are_those_of_the_batch(learn):
    class Check(Callback):
        order, checked = 96, 0

        def after_cancel_batch(self):
            positions = self.dl.windows[self.iter * 2 : self.iter * 2 + 2]
            wanted = {self.dls.store.table["id"][self.dls.train_tiles[int(p[0])]] for p in positions}
            assert set(self.learn.gradient_guard.tiles) == wanted
            self.checked += 1

    check = Check()
    learn.fit(1, 1e-3, cbs=[Spoil(2), GradientGuard(), check])
    assert check.checked == 1


def test_accumulated_gradients_are_dropped_with_a_bad_batch(learn):
    steps = Steps()
    learn.fit(1, 0.0, wd=0, cbs=[AccumulateBatches(2), Spoil(1), GradientGuard(), steps])
    assert len(steps.gradients) == 1  # of batches 3 and 4


@pytest.mark.parametrize("what", ["input", "gradient"])
def test_too_many_bad_batches_end_the_run_with_the_last_good_weights(learn, what):
    with pytest.raises(TrainingError, match=r"epoch 1, batch 4 of 4: 3 batches in a row gave no finite") as err:
        learn.fit(3, 1e-3, cbs=[Spoil(1, 2, 3, what=what), GradientGuard(limit=3)])
    assert "lower train.lr, or set train.precision=fp32" in str(err.value)
    assert all(v.isfinite().all() for v in weights(learn).values())


def test_a_model_without_norm_layers_is_guarded_too(learn):
    learn.model = nn.Conv2d(5, 4, 1)
    learn.opt = None
    guard = GradientGuard(1.0)
    learn.fit(1, 1e-3, cbs=[Spoil(0), guard])
    assert guard.skipped == 1


def test_a_loss_that_is_not_finite_ends_the_run_after_its_epoch(learn):
    with pytest.raises(TrainingError, match=r"the loss is not finite after epoch 1; lower train\.lr"):
        learn.fit(2, 1e30, cbs=FiniteLossCallback())


# precision


def test_bfloat16_on_the_cpu_is_real_and_the_loss_stays_float32(learn):
    seen = {}

    class Watch(Callback):
        order = CpuMixedPrecision.order - 1

        def after_pred(self):
            seen["pred"] = self.pred.dtype

        def after_loss(self):
            seen["loss"] = self.loss.dtype

    learn.add_cbs([CpuMixedPrecision(), Watch()])
    learn.fit(1, 1e-3)
    assert seen == {"pred": torch.bfloat16, "loss": torch.float32}
    assert learn.model.net[0].weight.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")
    assert math.isfinite(column(learn, "valid_loss")[0])


# a frozen encoder


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.decoder = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))

    def forward(self, x):
        return self.decoder(self.encoder(x))


def test_a_frozen_encoder_keeps_weights_and_norm_statistics_and_thaws(learn):
    class Watch(Callback):
        order = 95

        def before_fit(self):
            self.seen = [weights(self.learn)]

        def after_train(self):
            self.seen.append(weights(self.learn))

    learn.model, learn.opt = Parts(), None
    watch = Watch()
    learn.fit(3, 1e-2, cbs=[FreezeEncoder(2), watch])
    start, *epochs = watch.seen
    encoder = [k for k in start if k.startswith("encoder")]
    assert {"encoder.1.running_mean", "encoder.0.weight"} <= set(encoder)
    for frozen in epochs[:2]:
        assert all(torch.equal(start[k], frozen[k]) for k in encoder)
        assert not any(torch.equal(start[k], frozen[k]) for k in start if k.startswith("decoder") and "norm" not in k)
    assert not any(torch.equal(start[k], epochs[2][k]) for k in encoder)
    assert all(p.requires_grad for p in learn.model.parameters())


def test_a_model_without_an_encoder_cannot_be_frozen(learn):
    with pytest.raises(TrainingError, match="train.freeze_epochs: model Small has no `encoder`"):
        learn.fit(1, cbs=FreezeEncoder(1))


@pytest.mark.slow
def test_a_recipe_freezes_and_slows_the_encoder(tmp_path):
    data = make_store(tmp_path / "s").path
    pre = finetune(tiny_recipe("train.epochs=1"), fold=0, data=data, out=tmp_path / "pre") / "best.safetensors"
    before = ModelBundle.load(pre).weights

    def moved(name, wanted, *overrides):
        run = finetune(tiny_recipe(*overrides), data, tmp_path / name, fold=None, weights=pre)
        after = ModelBundle.load(run / "best.safetensors").weights
        return {
            part: max(float((after[k] - before[k]).abs().max()) for k in after if k.startswith(part) and wanted(k))
            for part in ("encoder", "decoder")
        }

    frozen = moved("frozen", lambda name: True, "train.freeze_epochs=2", "train.weight_decay=0.1")
    assert frozen["encoder"] == 0 < frozen["decoder"]
    slow = moved(
        "slow", lambda name: "running" not in name and "num" not in name, "train.encoder_lr_factor=0.01", "train.ema=0"
    )
    assert 0 < slow["encoder"] < 0.1 * slow["decoder"]
