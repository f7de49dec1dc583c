"""Steps of training: precision, memory format, compiling, and what never waits for the device."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from learners import Small, column, small_learner
from scenes import make_store, tiny_recipe
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from glacier_fastai.core.confusion import confusion_matrix
from glacier_fastai.core.losses import CombinedLoss
from glacier_fastai.errors import TrainingError
from glacier_fastai.train.build import compile_model, make_dls, make_learner
from glacier_fastai.train.callbacks import CombinedLossCallback, ConfusionMatrixCallback
from glacier_fastai.train.steps import AccumulateBatches, CpuMixedPrecision, GradientGuard

ALL_PARTS = {"focal": 0.2, "dice": 0.2, "mcc": 0.2, "boundary": 0.2, "bf1": 0.2}


class CpuScaled(CpuMixedPrecision):
    """bfloat16 with the scaler that float16 has on a GPU."""

    def before_fit(self):
        super().before_fit()
        self.learn.scaler = torch.amp.GradScaler("cpu", **self.kwargs)


def scaled(device, **scaler):
    found = MixedPrecision(**scaler) if device.type == "cuda" else CpuScaled()
    found.kwargs = scaler
    return found


class Overflow(Callback):
    """Makes gradients of some batches infinite before the scaler looks at them, as those of float16 become."""

    order = MixedPrecision.order - 1

    def __init__(self, *batches):
        self.batches, self.seen, self.weights = batches, 0, []

    def before_step(self):
        if self.seen in self.batches:
            next(self.model.parameters()).grad[0] = float("inf")
        self.seen += 1

    def after_batch(self):
        if self.training:
            self.weights.append([p.detach().clone() for p in self.model.parameters()])


def same(a, b):
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_that_the_scaler_skips_do_not_count_as_bad(tmp_path, device, accumulate):
    learn, overflow, guard = small_learner(tmp_path / "s", device=device), Overflow(1), GradientGuard(1.0, 2)
    precision = scaled(device, init_scale=2.0**10)
    learn.fit(2, 1e-3, cbs=[precision, overflow, guard, AccumulateBatches(accumulate)])
    first, last = 1 * accumulate, 2 * accumulate - 1  # batches of the step that was skipped
    assert (guard.skipped, guard.in_a_row) == (0, 0)
    assert same(overflow.weights[first - 1], overflow.weights[last])
    assert not same(overflow.weights[last], overflow.weights[-1])


def test_steps_that_no_scale_can_help_end_the_run(tmp_path, device):
    learn = small_learner(tmp_path / "s", device=device)
    cbs = [scaled(device, init_scale=2.0), Overflow(*range(9)), GradientGuard(1.0, 3)]
    with pytest.raises(TrainingError, match="3 batches in a row gave no finite loss or gradients"):
        learn.fit(3, 1e-3, cbs=cbs)


def test_float16_finds_its_scale(tmp_path, device):
    """On a GPU gradients overflow by themselves at first; bfloat16 on a CPU has no such end."""
    learn, guard = small_learner(tmp_path / "s", device=device), GradientGuard(1.0, 2)
    scales = []

    class Scale(Callback):
        def after_batch(self):
            scales.append(self.learn.scaler.get_scale())

    learn.fit(8, 1e-3, cbs=[scaled(device, init_scale=2.0**26), guard, Scale()])
    assert guard.skipped == 0
    assert torch.isfinite(torch.tensor(column(learn, "train_loss"))).all()
    assert device.type == "cpu" or scales[-1] < 2.0**26


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("model", ["{arch: unet, size: tiny}", "{arch: glavitu, size: tiny}"])
def test_a_network_trains_in_each_precision_channels_last(tmp_path, device, precision, model):
    """Convolutions compute in it, weights and loss stay float32, and the loss is that of float32."""
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("float16 is for GPUs")
    store, losses, seen = make_store(tmp_path / "s"), {}, []
    for name in ("fp32", precision):
        recipe = tiny_recipe(f"model={model}", f"train.precision={name}", "augment=[]", "balance=null", "ramp=null")
        dls = make_dls(recipe, store, 0)
        learn = make_learner(recipe, dls)
        learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
        convolution = next(m for m in learn.model.modules() if isinstance(m, nn.Conv2d))
        hook = convolution.register_forward_hook(lambda m, x, y: seen.append((x[0], y)))
        with learn.no_logging():
            learn.fit(1, 1e-4, cbs=[GradientGuard(1.0)])
        hook.remove()
        losses[name] = column(learn, "train_loss")[0]
    x, y = seen[-1]
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert (x.device.type, y.dtype) == (device.type, kinds[precision])
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}
    batch = dls.one_batch()[0]
    assert batch.is_contiguous(memory_format=torch.channels_last) and batch.device == dls.device
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.05)


def test_batches_come_pinned_where_there_is_a_gpu(tmp_path, device):
    learn = small_learner(tmp_path / "s", device=device, num_workers=2, bands=["green", "swir1"])
    images, masks, nodata = learn.dls.train.read([[0, 0, 0], [1, 0, 0]])
    assert {t.is_pinned() for t in (images, masks, nodata)} == {device.type == "cuda"}
    at_once, ahead = (small_learner(tmp_path / f"s{n}", device=device, num_workers=n).dls.train for n in (0, 2))
    for a, b in zip(at_once, ahead, strict=True):
        assert a[0].device.type == device.type and torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_a_compiled_model_is_the_same_model(tmp_path, device, monkeypatch):
    if device.type == "cpu":  # inductor takes a minute there
        compiled = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda self: compiled(self, backend="eager"))
    learn = small_learner(tmp_path / "s", device=device)
    x, plain = learn.dls.one_batch()[0].as_subclass(torch.Tensor), Small().to(device)
    compile_model(learn.model.to(device), x)
    assert learn.model._compiled_call_impl is not None
    assert same(learn.model.state_dict().values(), plain.state_dict().values())
    torch.testing.assert_close(learn.model(x), plain(x), rtol=1e-3, atol=1e-4)
    learn.fit(1, 1e-3, cbs=[scaled(device), GradientGuard(1.0)])
    assert not same(learn.model.parameters(), plain.parameters())


# what never waits


GPU = torch.device("cuda", 0)


def there_or_made_up(device):
    """Without a GPU, tensors of a made-up one, which have no values that anything could wait for."""
    return FakeTensorMode() if device.type == "cpu" else nullcontext()


@contextmanager
def no_waiting(device):
    """Whatever waits for a GPU is an error."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def test_what_waits_is_found(device):
    with there_or_made_up(device), no_waiting(device):
        x = torch.ones(3, device=GPU)
        with pytest.raises(Exception, match=r"synchronizing CUDA|DataDependent|aten\._local_scalar_dense"):
            float(x.sum())


@pytest.mark.parametrize("settings", [ALL_PARTS, {**ALL_PARTS, "learned": True}], ids=["all parts", "learned"])
def test_loss_and_matrix_wait_for_no_gpu(device, settings):
    with there_or_made_up(device):
        with GPU:
            logits, loss = torch.zeros(2, 4, 32, 32, requires_grad=True), CombinedLoss(**settings)
            labels = torch.ones(2, 32, 32, dtype=torch.int64)
        with no_waiting(device):
            value = loss(logits, labels)
            matrix = confusion_matrix(logits.detach().argmax(1), labels, 4, unknown_ice=True)
            if device.type == "cuda":  # autograd asks a made-up one for its streams
                value.backward()
        assert value.device == matrix.device == GPU and matrix.shape == (5, 4)
    if device.type == "cuda":
        assert logits.grad.isfinite().all() and matrix[1, 0] == 2 * 32 * 32


def test_the_records_of_a_step_wait_for_no_gpu(tmp_path, device, monkeypatch):
    """In a real fit; what fastai keeps of its own, and the guard of gradients, do wait, after a batch."""

    def guarded(job):
        def run(self, *args):
            with no_waiting(device):
                return job(self, *args)

        return run

    for kind, name in ((ConfusionMatrixCallback, "after_batch"), (CombinedLossCallback, "after_batch")):
        monkeypatch.setattr(kind, name, guarded(getattr(kind, name)))
    monkeypatch.setattr(CombinedLoss, "forward", guarded(CombinedLoss.forward))
    learn = small_learner(tmp_path / "s", device=device)
    learn.fit(2, 1e-3)
    assert 0 <= column(learn, "mean_iou")[-1] <= 1 and sum(column(learn, "share_glacier")) > 0


def test_loss_gradient_and_matrix_are_those_of_the_cpu(device):
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(4, 4, 40, 48), torch.randint(0, 4, (4, 40, 48))
    labels[:, :9], labels[:2, 9:20] = 255, 254
    found = []
    for where in (torch.device("cpu"), device):
        x = logits.to(where).requires_grad_()
        value = CombinedLoss(**ALL_PARTS)(x, labels.to(where))
        value.backward()
        matrix = confusion_matrix(x.detach().argmax(1), labels.to(where), 4, unknown_ice=True)
        found.append((value.detach().cpu(), x.grad.cpu(), matrix.cpu()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
