"""Training in several processes: what `torchrun` and `accelerate launch` start, one process a GPU, or on CPUs.

The processes are told of each other by the launcher's environment (RANK, WORLD_SIZE, ...). Everything here also works,
and does nothing, in a process that stands alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from fastai.distributed import DistributedTrainer, rank_distrib
from fastai.learner import AvgLoss, AvgMetric
from fastai.torch_core import default_device
from torch import Tensor, nn

from ..core.losses import CombinedLoss
from ..data.balanced import PixelBalancedDL
from ..errors import RecipeError
from ..model.processes import all_reduce, init_processes, world_size

__all__ = ["GlacierTrainer"]


class _Total(torch.autograd.Function):
    """The sum over processes, for losses that are a function of such sums.

    DistributedDataParallel takes the mean of the processes' gradients. Each of them holds one process's share of the
    gradient, so the shares are multiplied by the number of processes: their mean is then the whole.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * world_size()


class GlacierTrainer(DistributedTrainer):
    """fastai's trainer for several processes, with exact validation and the loss of the global batch.

    - Loaders of tiles draw for their rank themselves; in validation each process takes its share of the very batches
      that one process would see, so that no tile is counted twice and none is made up.
    - A `CombinedLoss` is that of all processes' batches together (`_Total`), whatever their number.
    - Validation sees the norm statistics of rank 0, as the bundle does.
    - What is trained may change between epochs, as when an encoder thaws.
    """

    def __init__(
        self,
        sync_bn: bool = False,  # norm layers share their statistics; on GPUs only
        **kwargs,  # of accelerate's `Accelerator`
    ):
        init_processes()
        cpu = default_device().type == "cpu"
        # precision is the business of fastai's callback: accelerate's would not scale its gradients
        super().__init__(sync_bn, **{"cpu": cpu, "mixed_precision": "no", **kwargs})

    def before_fit(self):
        """Make ready."""
        if self.sync_bn:
            if self.dls.device.type == "cpu":
                raise RecipeError("sync_bn: norm statistics are shared between GPUs only; set it to false")
            # in place of the modules, for callbacks hold on to the model
            self.learn.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.single, self.trains = self.model, None
        self.combined = self.loss_func if isinstance(self.loss_func, CombinedLoss) else None  # MixUp replaces it
        self.old_dls = list(self.dls)
        self.learn.dls.loaders = [self._wrap_dl(dl) for dl in self.dls]
        self.kept_logger = self.learn.logger
        if rank_distrib():
            self.learn.logger = lambda row: None

    def _wrap_dl(self, dl):
        return dl if isinstance(dl, PixelBalancedDL) else super()._wrap_dl(dl)

    def _total(self, total: Callable | None) -> None:
        if self.combined is not None:
            self.combined.total = total

    def before_train(self):
        """Wrap the model, anew if other weights than before are trained."""
        trains = [p.requires_grad for p in self.single.parameters()]
        if trains != self.trains:
            self.trains, self.wrapped = trains, self.accelerator.prepare_model(self.single)
        self.learn.model = self.wrapped
        self._total(_Total.apply)
        super().before_train()

    def after_train(self):
        """Validate with the bare model."""
        self.learn.model = self.single
        self._total(None)

    def before_validate(self):
        """Share the batches out."""
        for buffer in self.model.buffers():
            dist.broadcast(buffer, 0)
        super().before_validate()
        if isinstance(self.dl, PixelBalancedDL):
            self.dl.share = (rank_distrib(), world_size())

    def after_validate(self):
        """Sum the validation loss, and metrics that are means over batches."""
        if not isinstance(self.dl, PixelBalancedDL):
            return
        self.dl.share = (0, 1)
        for metric in (self.recorder.loss, *self.learn.metrics):
            if isinstance(metric, (AvgLoss, AvgMetric)):
                sums = torch.tensor([metric.total, metric.count], dtype=torch.float64)
                metric.total, metric.count = all_reduce(sums).tolist()

    def after_fit(self):
        """Leave the learner as it was."""
        self._total(None)
        for dl in self.old_dls:
            if isinstance(dl, PixelBalancedDL):
                dl.share = (0, 1)  # where validation was cancelled
        self.learn.model, self.learn.dls.loaders, self.learn.logger = self.single, self.old_dls, self.kept_logger
