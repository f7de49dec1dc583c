"""What is compared between one process and two: a helper of tests, `python two_processes.py STORE OUT`, or by torchrun.

Each process sees its half of the same global batches. Writes what was found as OUT/RANK.pt.
"""

import sys
from pathlib import Path

import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.distributed import rank_distrib
from learners import Small
from torch import nn

from glacier_fastai.core.losses import CombinedLoss
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.model.bundle import unwrapped
from glacier_fastai.model.processes import all_reduce, init_processes, world_size
from glacier_fastai.train.distributed import _Total
from glacier_fastai.train.learner import glacier_learner
from glacier_fastai.train.steps import FreezeEncoder, GradientGuard

BATCH = 4


class Split(nn.Module):
    """A model without batch statistics, with an encoder that can be frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Conv2d(5, 6, 3, padding=1), nn.ReLU())
        self.decoder = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.decoder(self.encoder(x))


class GlobalBatches(Callback):
    """Hands each process its share of batches that are the same for any number of processes."""

    order = -5

    def __init__(self, spoil=()):
        self.spoil, self.seen = spoil, 0

    def before_batch(self):
        if not self.training:
            return
        g = torch.Generator().manual_seed(self.seen)
        x, y = torch.randn(BATCH, 5, 16, 16, generator=g), torch.randint(0, 4, (BATCH, 16, 16), generator=g)
        y[torch.rand(y.shape, generator=g) < 0.3] = 255
        y[0] = 255  # all of one process's pixels may be without a label
        if self.seen in self.spoil:
            x[-1, 0, 0, 0] = float("inf")  # in one process only
        mine = slice(rank_distrib(), None, world_size())
        self.learn.xb, self.learn.yb = (x[mine],), (y[mine],)
        self.seen += 1


class Note(Callback):
    """Notes the loss and, after they were averaged over processes, the gradients."""

    order = 99

    def __init__(self):
        self.losses, self.gradients, self.valid, self.seen = [], [], [], []

    def before_batch(self):
        if self.training:
            self.seen.append(float(self.x.double().sum()))

    def before_step(self):
        self.losses.append(float(self.learn.loss))
        self.gradients.append([p.grad.clone() for p in self.model.parameters() if p.grad is not None])

    def after_validate(self):
        self.valid.append(self.learn.confusion_matrix.matrix["valid"].clone())


def trained(store, model, loss, epochs, *cbs):
    """Train, and return what was noted, the learner's record and its weights."""
    dls = GlacierDataLoaders.from_store(store, 0, BATCH // world_size(), 16, folds=3, crops_per_tile=2)
    note = Note()
    learn = glacier_learner(dls, model=model, loss_func=loss, cbs=[note, GradientGuard(), *cbs])
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    with learn.distrib_ctx(sync_bn=False):
        learn.fit(epochs, 1e-2)
    names = learn.recorder.metric_names[1:]
    rows = [dict(zip(names, row, strict=False)) for row in learn.recorder.values]
    weights = {k: v.clone() for k, v in unwrapped(learn.model).state_dict().items()}
    return {**{k: v for k, v in vars(note).items() if k in ("losses", "gradients", "valid", "seen")}, "rows": rows} | {
        "weights": weights,
        "skipped": learn.gradient_guard.skipped,
    }


def of_unknown_ice(parts):
    """Return loss and gradients of batches of which one process alone has ice of unknown kind."""
    init_processes()
    found = {"losses": [], "gradients": []}
    for known in (0.0, 0.5, 1.0):
        g = torch.Generator().manual_seed(3)
        x, y = torch.randn(BATCH, 5, 16, 16, generator=g), torch.randint(0, 4, (BATCH, 16, 16), generator=g)
        y[1::2][((y == 1) | (y == 2))[1::2] & (torch.rand(y[1::2].shape, generator=g) >= known)] = 254
        mine, model, loss = slice(rank_distrib(), None, world_size()), Split(), CombinedLoss(**parts)
        loss.total = _Total.apply if world_size() > 1 else None
        value = loss(model(x[mine]), y[mine])
        value.backward()
        found["losses"].append(float(value))
        found["gradients"].append([all_reduce(p.grad) / world_size() for p in model.parameters()])
    return found


def main(store: str, out: Path) -> None:
    torch.set_num_threads(1)
    parts = {"focal": 0.2, "dice": 0.2, "mcc": 0.3, "boundary": 0.1, "bf1": 0.2}
    found = {
        "combined": trained(store, Split(), CombinedLoss(**parts), 2, GlobalBatches()),
        "learned": trained(store, Split(), CombinedLoss.phase_b(learned=True), 2, GlobalBatches()),
        "spoilt": trained(store, Split(), CombinedLoss(**parts), 2, GlobalBatches(spoil=(1, 4))),
        "frozen": trained(store, Split(), CombinedLoss(**parts), 2, GlobalBatches(), FreezeEncoder(1)),
        "unknown ice": of_unknown_ice(parts),
        "norms": trained(store, Small(), CombinedLoss.phase_b(), 1),
    }
    torch.save(found, out / f"{rank_distrib()}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
