"""Time and memory of the combined loss. Run: pytest tests/benchmarks -k loss -s."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from benchmarks.timing import interleaved

from glacier_fastai.core import losses
from glacier_fastai.core.losses import CombinedLoss, boundary_loss, dice_loss, focal_loss, mcc_loss

WEIGHTS = CombinedLoss.phase_b().weights


def scene(batch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (batch, size // 16, size // 16), generator=g)
    target = target.repeat_interleave(16, 1).repeat_interleave(16, 2)
    target[:, :20, :50] = 255
    return torch.randn(batch, 4, size, size, generator=g), target


def cross_entropy(logits, target):
    return F.cross_entropy(logits, target, ignore_index=255)


def separately(logits, target):
    parts = {"focal": focal_loss, "dice": dice_loss, "mcc": mcc_loss, "boundary": boundary_loss}
    return sum(WEIGHTS[name] * loss(logits, target) for name, loss in parts.items())


def plain_statistics(logits, onehot):
    log_p = logits.log_softmax(1)
    return (log_p * onehot).sum(1), onehot.flatten(2) @ log_p.exp().flatten(2).mT


def in_plain_operations(logits, target):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses._Statistics, "apply", plain_statistics)
        return CombinedLoss.phase_b()(logits, target)


def kept_for_backward(loss, logits, target) -> float:
    """MB of memory that the graph holds between forward and backward, beside the logits and labels."""
    held = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        value = loss(logits, target)
    for x in (logits, target):
        held.pop(x.untyped_storage().data_ptr(), None)
    del value
    return sum(held.values()) / 2**20


LOSSES = {
    "combined": CombinedLoss.phase_b(),
    "cross_entropy": cross_entropy,
    "plain": in_plain_operations,
    "separately": separately,
    "unknown": lambda logits, target: LOSSES["combined"](logits, target.where(target != 2, 254)),
}


def test_loss_time_and_memory():
    logits, target = scene(8, 256)
    logits.requires_grad_()
    gradients = {}

    def step(name: str) -> None:
        logits.grad = None
        LOSSES[name](logits, target).backward()
        gradients[name] = logits.grad

    best = interleaved({name: lambda name=name: step(name) for name in LOSSES}, 15)
    ours = best["combined"]
    mb = {name: kept_for_backward(loss, logits, target) for name, loss in LOSSES.items()}
    print(
        f"\nCombinedLoss.phase_b fwd+bwd 8x4x256x256, CPU, 1 thread: {ours:.1f} ms; "
        f"{ours / best['cross_entropy']:.1f} of F.cross_entropy ({best['cross_entropy']:.1f} ms), "
        f"{ours / best['plain']:.2f} of the same in plain operations ({best['plain']:.1f} ms), "
        f"{ours / best['separately']:.2f} of the four parts computed separately ({best['separately']:.1f} ms); "
        f"with ice of unknown kind {best['unknown']:.1f} ms"
        f"\nkept for backward: {mb['combined']:.0f} MB; F.cross_entropy {mb['cross_entropy']:.0f} MB, "
        f"plain operations {mb['plain']:.0f} MB, separately {mb['separately']:.0f} MB"
    )
    for peer in ("plain", "separately"):
        torch.testing.assert_close(gradients["combined"], gradients[peer])


def test_loss_share_of_a_training_step():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script, at import of its own libraries
        import segmentation_models_pytorch as smp
    torch.manual_seed(0)
    model = smp.Unet("resnet34", encoder_weights=None, in_channels=5, classes=4, decoder_attention_type="scse").train()
    images = torch.randn(2, 5, 128, 128)
    logits, target = scene(2, 128)
    logits.requires_grad_()
    combined = CombinedLoss.phase_b()

    def step() -> None:
        model.zero_grad()
        combined(model(images), target).backward()

    best = interleaved({"step": step, "loss": lambda: combined(logits, target).backward()}, 5)
    print(
        f"\nCombinedLoss.phase_b within fwd+bwd of a ResNet34 U-Net with scSE, 2x5x128x128, CPU, 1 thread: "
        f"{best['loss']:.1f} of {best['step']:.0f} ms ({best['loss'] / best['step']:.1%})"
    )
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
