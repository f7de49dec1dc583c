"""Training in several processes: what `torchrun` and `accelerate launch` start, one process a GPU, or on CPUs.

The processes are told of each other by the launcher's environment (RANK, WORLD_SIZE, ...). Everything here also works,
and does nothing, in a process that stands alone.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from fastai.distributed import DistributedTrainer, num_distrib, rank_distrib
from fastai.torch_core import default_device
from torch import Tensor, nn

from ..data.balanced import PixelBalancedDL
from ..errors import GlacierError, RecipeError, TrainingError

__all__ = [
    "GlacierTrainer",
    "everyone",
    "first",
    "join",
    "largest",
    "own_gpu",
    "processes",
    "sum_over_ranks",
    "unwrapped",
]

T = TypeVar("T")


def processes() -> int:
    """Return the number of processes that train together."""
    return num_distrib() or 1  # 0: not launched


def own_gpu() -> bool:
    """Take the GPU of this process of a launch, and return whether there is one; does nothing without launch or GPU.

    Raises:
        TrainingError: More processes on this machine than GPUs.
    """
    if processes() == 1 or default_device().type != "cuda":
        return False
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        raise TrainingError(
            f"process {local + 1} on this machine, which has {torch.cuda.device_count()} GPU; start one process a "
            "GPU, or set CUDA_VISIBLE_DEVICES= to use its CPUs"
        )
    torch.cuda.set_device(local)
    return True


def join() -> None:
    """Meet the other processes, and take the GPU of this one; does nothing where there is only one process.

    Raises:
        TrainingError: As `own_gpu`.
    """
    if processes() == 1 or dist.is_initialized():
        return
    patience = timedelta(days=1)  # the first process predicts and writes while the others wait
    dist.init_process_group("cpu:gloo,cuda:nccl" if own_gpu() else "gloo", timeout=patience)
    atexit.register(dist.destroy_process_group)


def _meeting() -> torch.device | None:
    """The device on which tensors of all processes meet; None if there is only one process."""
    if processes() == 1 or not dist.is_initialized():
        return None
    return torch.device("cpu" if "cpu" in dist.get_backend_config() else "cuda")  # notebooks may have NCCL alone


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, on the CPU; every process must call it."""
    device = _meeting()
    if device is None:
        return x.cpu()
    x = x.to(device, copy=True)
    dist.all_reduce(x)
    return x.cpu()


def largest(x: int) -> int:
    """Return the largest of the processes' numbers; every process must call it."""
    device = _meeting()
    if device is None:
        return x
    box = torch.tensor([x], device=device)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def everyone(what: T) -> list[T]:
    """Return what each process brings, by rank; every process must call it. Plain Python objects only."""
    if _meeting() is None:
        return [what]
    box: list[Any] = [None] * processes()
    dist.all_gather_object(box, what)
    return box


def first(job: Callable[[], T]) -> T:
    """Return what `job` returns on rank 0, where alone it runs, on every rank.

    Where it fails there, that rank raises the error and the others end silently with its exit code.
    """
    if _meeting() is None:
        return job()
    if rank_distrib():
        box = [None, None]
        dist.broadcast_object_list(box)
        if box[1] is not None:
            sys.exit(box[1])
        return box[0]
    try:
        box = [job(), None]
    except (GlacierError, OSError) as err:
        dist.broadcast_object_list([None, getattr(err, "exit_code", 2)])
        raise
    dist.broadcast_object_list(box)
    return box[0]


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
        return gradient * processes()


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of `DistributedDataParallel`, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


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
        join()
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
        self.old_dls = list(self.dls)
        self.learn.dls.loaders = [self._wrap_dl(dl) for dl in self.dls]
        self.kept_logger = self.learn.logger
        if rank_distrib():
            self.learn.logger = lambda row: None

    def _wrap_dl(self, dl):
        return dl if isinstance(dl, PixelBalancedDL) else super()._wrap_dl(dl)

    def _total(self, total: Callable | None) -> None:
        if hasattr(self.loss_func, "total"):
            self.loss_func.total = total

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
            self.dl.share = (rank_distrib(), processes())

    def after_validate(self):
        """Sum the validation loss."""
        if isinstance(self.dl, PixelBalancedDL):
            self.dl.share = (0, 1)
            loss = self.recorder.loss
            sums = torch.tensor([loss.total, loss.count], dtype=torch.float64)
            loss.total, loss.count = sum_over_ranks(sums).tolist()

    def after_fit(self):
        """Leave the learner as it was."""
        self._total(None)
        for dl in self.old_dls:
            if isinstance(dl, PixelBalancedDL):
                dl.share = (0, 1)  # where validation was cancelled
        self.learn.model, self.learn.dls.loaders, self.learn.logger = self.single, self.old_dls, self.kept_logger
