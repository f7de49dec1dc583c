"""Each size of U-Net and GlaViTU: parameters, GFLOP, images per second and memory, as a table in Markdown.

    python tests/benchmarks/sizes.py

Images are of 5 bands and 256 px, 2 at once; GFLOP of one (a multiplication and an addition are two); times the best of
several: on a CPU the seconds of one core that the work takes, which other work on the machine hardly changes; memory is
what a training step takes above the imports.
"""

import resource
import subprocess
import sys
import time
import warnings

import torch
from torch.utils.flop_counter import FlopCounterMode

from glacier_fastai.core.losses import CombinedLoss
from glacier_fastai.model.registry import architecture, build_model, of_size

ARCHS, SIZES, SHAPE, REPEATS = ("unet", "glavitu"), ("tiny", "small", "base", "large"), (2, 5, 256, 256), 5


def best(job, device):
    """Best time of a job in seconds."""
    found, clock = float("inf"), time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(REPEATS):
        began = clock()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found = min(found, clock() - began)
    return found


def row(arch, size):
    """Print the row of a network."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = of_size(architecture(arch)[0], size)
    model = build_model(arch, ["blue", "green", "red", "swir1", "thermal"], **options)
    model = model.to(device, memory_format=torch.channels_last)
    x, y = torch.randn(SHAPE, device=device), torch.randint(0, 4, (SHAPE[0], *SHAPE[2:]), device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    loss_func, opt = CombinedLoss.phase_b(), torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        loss_func(model(x), y).backward()
        opt.step()
        opt.zero_grad()

    def predict():
        with torch.inference_mode():
            model(x)

    model.eval()
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(x[:1])
    mapped = best(predict, device)
    model.train()
    trained = best(step, device)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else memory / 2**20
    number = sum(p.numel() for p in model.parameters()) / 1e6
    gflop = flops.get_total_flops() / 1e9
    rates = f"{SHAPE[0] / mapped:.2g} | {SHAPE[0] / trained:.2g}"
    print(f"| `{arch}` | `{size}` | {number:.2f} million | {gflop:.1f} | {rates} | {memory:.1f} GiB |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) == 3:
        row(*sys.argv[1:])
    else:
        print("| network | size | parameters | GFLOP | images/s, mapped | images/s, trained | memory |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for arch in ARCHS:
            for size in SIZES:  # each in a process of its own, for its memory
                subprocess.run([sys.executable, __file__, arch, size], check=True)
