"""Two processes that train a network together over gloo, forked from one that has imported everything: a helper."""

import os
import traceback

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from glacier_fastai.model.registry import build_model


def outputs_square(model, x):
    """Return a loss of all that a network in training gives."""
    out = model(x)
    extra = getattr(getattr(model, "module", model), "auxiliary_logits", None)
    return out.square().mean() + (0 if extra is None else extra.square().mean())


def trains_in_two_processes(name, options, bands, folder):
    """Return whether two processes can make two steps of a network; parameters without a gradient stop the second."""
    pids = [_forked(rank, name, options, bands, folder) for rank in range(2)]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]


def _forked(rank, name, options, bands, folder):
    if pid := os.fork():
        return pid
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
        torch.manual_seed(0)
        model = DistributedDataParallel(build_model(name, bands, **options))
        for _ in range(2):
            outputs_square(model, torch.randn(2, len(bands), 64, 64)).backward()
        os._exit(0)
    except BaseException:  # a child must never come back into pytest
        traceback.print_exc()
        os._exit(1)
