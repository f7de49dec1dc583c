"""Time of a window by an exported model (ONNX, onnxruntime) against ours (torch), on one CPU core, as a table.

    python tests/benchmarks/export.py

Windows are of 5 bands and 256 px, from numbers to probabilities. Both take turns with one thread each; times are the
best of several, in seconds of the core itself, which other work on the machine hardly changes. The networks were not
trained, which does not change the time; their norm layers know the noise that they are shown.
"""

import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from glacier_fastai.bands import CLASSES
from glacier_fastai.data.profile import Profile
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.ensemble import Ensemble
from glacier_fastai.model.predictor import Predictor
from glacier_fastai.model.registry import architecture, build_model, of_size
from glacier_fastai.predict.export import export_model

NETWORKS, SIDE, REPEATS = (("unet", "base"), ("glavitu", "small"), ("glavitu", "base")), 256, 7
BANDS = ("blue", "green", "red", "swir1", "thermal")


def row(arch, size, folder):
    """Print the row of a network."""
    options = dict(of_size(architecture(arch)[0], size))
    model = build_model(arch, BANDS, CLASSES, **{**options, **({"auxiliary": 0} if arch == "glavitu" else {})})
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the mean of what it saw
    with torch.no_grad():
        model.train()(torch.randn(4, len(BANDS), SIDE, SIDE))
    units = Profile(units=dict.fromkeys(BANDS, "dn"))
    bundle = ModelBundle(model.state_dict(), arch, model.built_as[1], BANDS, (8e3,) * 5, (2e3,) * 5, profile=units)
    export_model(bundle, folder / "m.onnx")
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = threads.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "m.onnx"), threads, providers=["CPUExecutionProvider"])
    window = np.random.default_rng(0).normal(8e3, 2e3, (len(BANDS), SIDE, SIDE)).astype(np.float32)
    ours = Predictor(Ensemble.of(bundle), torch.device("cpu"))
    jobs = {
        "torch": lambda: ours([window])[0].numpy(),
        "onnx": lambda: session.run(None, {"numbers": window[None]})[0][0],
    }
    difference = np.abs(jobs["torch"]() - jobs["onnx"]()).max()
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(REPEATS):
        for name, job in jobs.items():
            began = time.process_time()
            job()
            best[name] = min(best[name], time.process_time() - began)
    onnx, plain, megabytes = best["onnx"], best["torch"], (folder / "m.onnx").stat().st_size / 1e6
    times = f"{plain:.2f} s | {onnx:.2f} s | {onnx / plain:.2f}"
    print(f"| `{arch}` | `{size}` | {times} | {megabytes:.1f} MB | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| network | size | torch | ONNX | ONNX / torch | file | largest difference |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for arch, size in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            row(arch, size, Path(folder))
