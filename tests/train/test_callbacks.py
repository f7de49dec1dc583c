import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.learner import Recorder
from fastai.optimizer import Adam
from learners import Small, column, small_learner
from scenes import make_store
from torch import nn

from glacier_fastai.bands import CLASSES
from glacier_fastai.core.balance import PixelBalance
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.errors import RecipeError, TrainingError
from glacier_fastai.train.callbacks import (
    AverageWeightsCallback,
    CombinedLossCallback,
    ProgressiveRampCallback,
    WarmupDecayCallback,
    plateau,
)
from glacier_fastai.train.console import ConsoleCallback
from glacier_fastai.train.learner import glacier_learner
from glacier_fastai.train.metrics import ConfusionMetric


@pytest.fixture
def learn(tmp_path):
    return small_learner(tmp_path / "s")


def test_the_parts_of_the_loss_are_recorded_and_add_up(learn):
    learn.fit(2, 1e-3)
    names = learn.recorder.metric_names
    for part in ("focal", "dice", "mcc", "boundary"):
        assert {f"{part}_loss", f"train_{part}_loss"} <= set(names)
    assert "bf1_loss" not in names
    w = learn.loss_func.weights
    for epoch in range(2):
        total = sum(w[p] * column(learn, f"{p}_loss")[epoch] for p in ("focal", "dice", "mcc", "boundary"))
        assert total == pytest.approx(column(learn, "valid_loss")[epoch], rel=1e-5)


def test_the_composition_that_the_loss_saw_is_recorded(tmp_path):
    balance = PixelBalance(level="pixel")
    dls = GlacierDataLoaders.from_store(make_store(tmp_path / "s"), 0, 4, 16, folds=3, balance=balance)
    learn = glacier_learner(dls, model=Small())
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    learn.fit(2, 1e-3)
    for epoch in range(2):
        dls.train.epoch = epoch
        pixels = sum(y.as_subclass(torch.Tensor).flatten().bincount(minlength=256)[:4] for _, y in dls.train)
        for k, name in enumerate(CLASSES):
            assert column(learn, f"share_{name}")[epoch] == pytest.approx(float(pixels[k] / pixels.sum()))
    before = [m.name for m in learn.metrics]
    assert not any(name.startswith("share_") for name in before)


def test_columns_go_with_the_fit_and_validate_still_works(learn):
    before = [m.name for m in learn.metrics]
    learn.fit(1, 1e-3, cbs=ProgressiveRampCallback())
    assert [m.name for m in learn.metrics] == before
    assert len(learn.validate()) >= 1 + len(before)
    assert [m.name for m in learn.metrics] == before


@pytest.mark.parametrize("by", ["epoch", "batch"])
def test_the_ramp_rises_to_full_weight_and_is_recorded(learn, by):
    seen = []

    class Watch(Callback):
        order = Recorder.order + 1

        def after_batch(self):
            if self.training:
                seen.append(dict(self.loss_func.ramp))

    learn.fit(6, 1e-4, cbs=[ProgressiveRampCallback({"boundary": 0.1, "mcc": 0.5}, epochs=4, by=by), Watch()])
    n = len(learn.dls.train)
    assert column(learn, "ramp_boundary")[4:] == [1.0, 1.0]
    for i, ramp in enumerate(seen):
        done = i // n if by == "epoch" else i / n
        assert ramp["boundary"] == pytest.approx(min(1, 0.1 + 0.9 * done / 4))
        assert ramp["mcc"] == pytest.approx(min(1, 0.5 + 0.5 * done / 4))
        assert ramp["focal"] == 1


def test_the_ramp_changes_the_gradient_and_not_only_the_log(learn):
    grads = []
    x, y = learn.dls.one_batch()
    for factor in (0.0, 1.0):
        learn.loss_func.ramp["boundary"] = factor
        learn.model.zero_grad()
        learn.loss_func(learn.model(x.as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor)).backward()
        grads.append(learn.model.net[0].weight.grad.clone())
    assert not torch.allclose(*grads)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"start": {"boundary": 2}}, "each start within 0..1"),
        ({"by": "step"}, "'epoch' or 'batch'"),
    ],
)
def test_impossible_ramps_are_refused(kwargs, message):
    with pytest.raises(RecipeError, match=message):
        ProgressiveRampCallback(**kwargs)


def test_a_ramp_of_an_unknown_part_is_refused(learn):
    with pytest.raises(RecipeError, match="the loss has no part border"):
        learn.fit(1, cbs=ProgressiveRampCallback({"border": 0.1}))


def test_plateau_has_pytorchs_meaning(learn):
    class Fake(Callback):
        """Give the metrics that a list says."""

        order = Recorder.order + 1
        values = [0.5, 0.4, 0.4, 0.4, 0.6, 0.1, 0.1, 0.1, 0.1]

        def after_epoch(self):
            self.recorder.values[-1][self.recorder.metric_names.index("mcc") - 1] = self.values[self.epoch]
            rates.append(self.opt.hypers[-1]["lr"])

    rates = []
    learn.fit(len(Fake.values), 1.0e-3, cbs=[plateau("mcc", 0.5, 2), Fake()])
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, "max", factor=0.5, patience=2, threshold=0)
    want = []
    for value in Fake.values:
        want.append(optimiser.param_groups[0]["lr"])
        reference.step(value)
    np.testing.assert_allclose(rates, want)
    assert rates[-1] < rates[0]


def test_a_plateau_lowers_the_rate_of_each_group(tmp_path):
    learn = small_learner(tmp_path / "s")
    learn.splitter = lambda model: [list(model.net[0].parameters()), list(model.net[1:].parameters())]
    learn.fit(2, slice(1e-4, 1e-3), cbs=[callback := plateau("mcc", 0.5, 0), Never()])
    assert isinstance(callback, ReduceLROnPlateau) and callback.name == "reduce_lr_on_plateau"
    assert [g["lr"] for g in learn.opt.param_groups] == pytest.approx([5e-5, 5e-4])


class Never(Callback):
    """No epoch is better than the first."""

    order = Recorder.order + 1

    def after_epoch(self):
        self.recorder.values[-1][self.recorder.metric_names.index("mcc") - 1] = -self.epoch


@pytest.mark.parametrize(("warmup", "decay"), [(0.3, 0.5), (0.1, 0.9), (0.0, 1.0), (0.25, 0.0)])
@pytest.mark.parametrize("optimiser", [None, Adam])
def test_warmup_and_decay_multiply_what_the_plateau_leaves(tmp_path, warmup, decay, optimiser):
    learn, seen, shown = small_learner(tmp_path / "s"), [], []
    learn.splitter = lambda model: [list(model.net[0].parameters()), list(model.net[1:].parameters())]
    learn.opt_func = optimiser or learn.opt_func

    class Watch(Callback):
        order = ConsoleCallback.order

        def before_step(self):
            seen.append([h["lr"] for h in self.opt.hypers])

        def after_epoch(self):
            shown.append(self.opt.hypers[-1]["lr"])

    learn.fit(5, slice(1e-4, 1e-3), cbs=[plateau("mcc", 0.5, 1), WarmupDecayCallback(warmup, decay), Never(), Watch()])
    n, want, rates = 5 * len(learn.dls.train), [], np.array([1e-4, 1e-3])
    for k in range(n):
        rising = (k + 1) / (warmup * n) if warmup else 1
        falling = (n - k) / (decay * n) if decay else 1
        want.append(rates * min(rising, falling, 1))
        if (k + 1) % (n // 5) == 0 and k // (n // 5) in (2, 4):  # twice without a better one
            rates = rates / 2
    np.testing.assert_allclose(seen, want, rtol=1e-9)
    np.testing.assert_allclose(learn.recorder.lrs, np.array(want)[:, 1], rtol=1e-9)
    assert shown == [learn.recorder.lrs[k] for k in range(n // 5 - 1, n, n // 5)]
    assert learn.opt.hypers[-1]["lr"] == pytest.approx(rates[1])


def test_a_growing_plateau_is_refused():
    with pytest.raises(TrainingError, match="it must be below 1"):
        plateau("mcc", 2.0, 5)


def test_fastais_own_plateau_reaches_the_optimiser(learn):
    learn.fit(3, 1e-3, cbs=ReduceLROnPlateau("valid_loss", comp=np.greater, patience=1, factor=10, min_delta=1e9))
    assert learn.opt.opt.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_the_average_follows_every_step_buffers_included(learn):
    steps = []

    class Watch(Callback):
        order = AverageWeightsCallback.order - 1

        def after_step(self):
            steps.append({k: v.clone() for k, v in self.model.state_dict().items()})

    start = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.fit(2, 1e-2, cbs=[AverageWeightsCallback(0.9), Watch()])
    want = {k: v.double() for k, v in start.items()}
    for i, state in enumerate(steps):
        keep = min(0.9, (1 + i) / (10 + i)) if i else 0.0  # the first step is the start of the average
        want = {k: keep * want[k] + (1 - keep) * state[k].double() for k in want}
    for name, tensor in learn.model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), want[name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_average_is_what_is_validated_and_training_goes_on_without_it(learn):
    trained, validated = [], []

    class Watch(Callback):
        order = AverageWeightsCallback.order + 1

        def before_validate(self):
            validated.append(self.model.net[0].weight.clone())

        def before_train(self):
            trained.append(self.model.net[0].weight.clone())

        def after_step(self):
            self.last = self.model.net[0].weight.clone()

        def before_epoch(self):
            if self.epoch:
                assert torch.equal(self.model.net[0].weight, self.last)

    learn.fit(3, 1e-2, cbs=[AverageWeightsCallback(0.9), Watch()])
    assert torch.equal(learn.model.net[0].weight, validated[-1])
    assert not any(torch.equal(t, v) for t, v in zip(trained[1:], validated, strict=False))


def test_the_callback_for_parts_keeps_out_of_other_losses(tmp_path):
    dls = GlacierDataLoaders.from_store(make_store(tmp_path / "s"), 0, bs=4, folds=3)
    learn = glacier_learner(dls, model=Small(), loss_func=nn.CrossEntropyLoss(ignore_index=255))
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    learn.fit(1, 1e-3)
    assert not any("focal" in n for n in learn.recorder.metric_names)
    assert learn.combined_loss.order == CombinedLossCallback.order


def test_scores_are_known_to_a_process_that_validates_no_batch(learn):
    class Deal(Callback):
        order = 0

        def before_validate(self):
            self.dl.share = (6, 7)  # of two batches

    learn.fit(1, 1e-3, cbs=Deal())
    learn.dls.valid.share = (0, 1)
    assert all(m.source is learn.confusion_matrix for m in learn.metrics if isinstance(m, ConfusionMetric))
    assert not learn.confusion_matrix.matrix["valid"].any()


def test_ice_of_unknown_kind_has_a_row_and_a_share(tmp_path):
    dls = GlacierDataLoaders.from_store(make_store(tmp_path / "s", kinds=False), 0, 4, folds=3)
    learn = glacier_learner(dls, model=Small())
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    learn.fit(1, 1e-3)
    matrix = learn.confusion_matrix.matrix["train"]
    dls.train.epoch = 0
    pixels = sum(y.as_subclass(torch.Tensor).flatten().bincount(minlength=256) for _, y in dls.train)
    assert matrix.sum(1).tolist() == [*pixels[:4].tolist(), int(pixels[254])]
    assert column(learn, "share_ice")[0] == pytest.approx(float(pixels[254] / pixels[:255].sum()))
    assert not matrix[:, 2].any()  # as in its maps


def test_a_matrix_of_a_checkpoint_of_before_is_counted_on(learn):
    counted = learn.confusion_matrix
    counted.load_epoch_state(torch.eye(4, dtype=torch.int64))
    assert counted.epoch_state().tolist() == [*torch.eye(4, dtype=torch.int64).tolist(), [0] * 4]
    counted.load_epoch_state(counted.epoch_state())
    assert counted.epoch_state().shape == (5, 4)
