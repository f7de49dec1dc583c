"""One process that takes itself for one of several: `torchrun --nproc-per-node 1 one_process.py DEVICE STORE`."""

import os
import sys

import torch
import torch.distributed as dist
from fastai.callback.progress import ProgressCallback
from learners import Small

from glacier_fastai.core.losses import CombinedLoss
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.model import processes
from glacier_fastai.train.learner import glacier_learner
from glacier_fastai.train.steps import GradientGuard


def trained(store, device, together):
    """Return weights and losses of a small model."""
    dls = GlacierDataLoaders.from_store(store, 0, bs=4, folds=3, device=device)
    learn = glacier_learner(dls, Small(), loss_func=CombinedLoss.phase_b())
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    if together:
        learn.to_distributed(sync_bn=device == "cuda")
    learn.fit(2, 1e-3, cbs=[GradientGuard(1.0)])
    if together and device == "cuda":
        assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in learn.model.modules())
    return {k: v.cpu() for k, v in learn.model.state_dict().items()}, learn.recorder.values[-1]


def main(device, store):
    alone, values = trained(store, device, together=False)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # all that is told goes over the network, also without others
    processes._meeting = lambda: torch.device("cpu")
    x = torch.arange(3, device=device)
    assert processes.all_reduce(x).tolist() == [0, 1, 2] and processes.all_reduce_max(7) == 7
    assert processes.all_gather(["a"]) == [["a"]] and processes.on_rank_zero(lambda: 5) == 5
    shared, others = trained(store, device, together=True)
    for name in ("net.0.weight", "net.3.weight", "net.1.running_var"):  # biases before a norm layer have no gradient
        torch.testing.assert_close(shared[name], alone[name], rtol=1e-3, atol=1e-5)
    assert abs(values[0] - others[0]) < 1e-4 and abs(values[1] - others[1]) < 1e-4
    print("nccl" if "nccl" in dist.get_backend_config() else "gloo", "same")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
