"""The processes of a launch: who takes part, and what they tell each other (torch.distributed).

`torchrun` and `accelerate launch` start them, one process a GPU, or on CPUs, and tell them of each other by the
environment (RANK, WORLD_SIZE, ...). Everything here also works, and does nothing, in a process that stands alone.
accelerate's own collectives know no maximum and want its `PartialState` first, so they would not be shorter.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ..errors import GlacierError, TrainingError
from ..terminal import launched, rank
from .predictor import default_device

__all__ = [
    "all_gather",
    "all_reduce",
    "all_reduce_max",
    "init_processes",
    "on_rank_zero",
    "select_gpu",
    "world_size",
]

T = TypeVar("T")
log = logging.getLogger(__name__)
MEET = timedelta(minutes=10)  # as torchrun waits for machines
MEETING = "GLACIER_FASTAI_MEETING"  # names the file where the processes of one machine meet, see `train.launch`


def world_size() -> int:
    """Return the number of processes that train together."""
    return launched()[1]


def select_gpu() -> bool:
    """Take the GPU of this process of a launch, and return whether there is one; does nothing without launch or GPU.

    Raises:
        TrainingError: More processes on this machine than GPUs.
    """
    if world_size() == 1 or default_device().type != "cuda":
        return False
    text = os.environ.get("LOCAL_RANK", "")
    if not text.isdecimal():
        raise TrainingError(f"LOCAL_RANK={text}: the launch must number the processes of this machine, from 0")
    local = int(text)
    if local >= torch.cuda.device_count():
        raise TrainingError(
            f"process {local + 1} on this machine, which has {torch.cuda.device_count()} GPU; start one process a "
            "GPU, or set CUDA_VISIBLE_DEVICES= to use its CPUs"
        )
    torch.cuda.set_device(local)
    return True


def init_processes() -> None:
    """Meet the other processes, and take the GPU of this one; does nothing where there is only one process.

    Raises:
        TrainingError: As `select_gpu`, or the others do not come within `MEET`.
    """
    if world_size() == 1 or dist.is_initialized():
        return
    patience = timedelta(days=1)  # the first process predicts and writes while the others wait
    backend, where = "cpu:gloo,cuda:nccl" if select_gpu() else "gloo", os.environ.get(MEETING)
    if not (where or dist.is_torchelastic_launched()):
        log.info(f"the {world_size()} processes of the launch meet, within {MEET.seconds // 60} minutes")
    try:
        url = f"file://{where}" if where else "env://"
        store, number, size = next(rendezvous(url, rank(), world_size(), timeout=MEET))
        store.set_timeout(patience)
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=patience)
    except (RuntimeError, ValueError) as err:
        why = " ".join(str(err).split())[:200]
        raise TrainingError(
            f"the {world_size()} processes of the launch cannot meet ({why}); unset RANK and WORLD_SIZE to work alone"
        ) from err
    atexit.register(dist.destroy_process_group)


def _meeting() -> torch.device | None:
    """The device on which tensors of all processes meet; None if there is only one process."""
    if world_size() == 1 or not dist.is_initialized():
        return None
    return torch.device("cpu" if "cpu" in dist.get_backend_config() else "cuda")  # notebooks may have NCCL alone


def all_reduce(x: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, on the CPU; every process must call it."""
    device = _meeting()
    if device is None:
        return x.cpu()
    x = x.to(device, copy=True)
    dist.all_reduce(x)
    return x.cpu()


def all_reduce_max(x: int) -> int:
    """Return the largest of the processes' numbers; every process must call it."""
    device = _meeting()
    if device is None:
        return x
    box = torch.tensor([x], device=device)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def all_gather(what: T) -> list[T]:
    """Return what each process brings, by rank; every process must call it. Plain Python objects only."""
    if _meeting() is None:
        return [what]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, what)
    return box


def on_rank_zero(job: Callable[[], T]) -> T:
    """Return what `job` returns on rank 0, where alone it runs, on every rank.

    Where it fails there, that rank raises the error and the others end silently with its exit code.
    """
    if _meeting() is None:
        return job()
    if rank():
        box: list[Any] = [None, None]
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
