"""Speed and memory of mapping a scene. Run: OMP_NUM_THREADS=2 pytest tests/benchmarks/test_scene.py -s (Linux)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from glacier_fastai.terminal import one_arena

if __name__ == "__main__":
    one_arena()  # as the command does, before torch is imported

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window

from glacier_fastai.core.tiling import starts
from glacier_fastai.data.scenes.opening import open_scene
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.ensemble import Ensemble
from glacier_fastai.model.predictor import Predictor
from glacier_fastai.model.unet import glacier_unet
from glacier_fastai.predict.scene import Wanted, map_strips, predict_scene
from glacier_fastai.predict.source import SceneSource

BANDS = ("blue", "green", "red", "swir1", "thermal")
SIZE, WINDOW = 2048, 512
TALL = 4096, 16_384


def write_noise(path: Path, height: int, width: int) -> Path:
    """A scene of smooth noise, 10 to 20 thousand, with nodata in a corner."""
    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 5, "dtype": "uint16", "nodata": 0}
    profile |= {"crs": "EPSG:32645", "transform": from_origin(5e5, 3.1e6, 30, 30), "tiled": True}
    with rasterio.open(path, "w", **profile) as file:
        file.descriptions = BANDS
        for row in range(0, height, 256):
            small = rng.integers(10_000, 20_000, (5, 16, width // 16 + 1), np.uint16)
            block = small.repeat(16, 1).repeat(16, 2)[:, :, :width] + rng.integers(0, 500, (5, 256, width), np.uint16)
            if row == 0:
                block[:, :, :256] = 0
            rows = min(256, height - row)
            file.write(block[:, :rows], window=Window(0, row, width, rows))
    return path


def bundle() -> ModelBundle:
    torch.manual_seed(0)
    weights = glacier_unet("resnet34", 5).state_dict()
    options = {"encoder": "resnet34", "attention": "scse"}
    return ModelBundle(weights, "unet", options, BANDS, (15_000.0,) * 5, (3_000.0,) * 5)


def peak(reset: bool = False) -> float:
    """The most memory that the process has held since the last reset, MB."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3


def all_at_once(scene: Path, predictor: Predictor) -> np.ndarray:
    """The common way: the whole scene as floats, every window in a list, sums for the whole scene."""
    with open_scene(scene) as opened:
        source = SceneSource(opened, predictor.ensemble.channels)
        image = source.read(0, source.height)
    at = [(r, c) for r in starts(image.shape[1], WINDOW, 128) for c in starts(image.shape[2], WINDOW, 128)]
    windows = [image[:, r : r + WINDOW, c : c + WINDOW].copy() for r, c in at]
    found = [p.numpy() for w in windows for p in predictor([w])]
    total, count = np.zeros((4, *image.shape[1:]), np.float32), np.zeros(image.shape[1:], np.float32)
    for (r, c), probs in zip(at, found, strict=True):
        total[:, r : r + WINDOW, c : c + WINDOW] += probs
        count[r : r + WINDOW, c : c + WINDOW] += 1
    return (total / count).argmax(0)


def speed(scene: Path) -> dict[str, float]:
    """Seconds of ours, of the bare model on as many windows, and of the common way; memory of ours and of that."""
    ensemble = Ensemble.of(bundle())
    predictor = Predictor(ensemble)
    model = bundle().model().to(memory_format=torch.channels_last)
    softmax, shown = predictor.models[0], []
    predictor.models[0] = lambda x: shown.append(len(x)) or softmax(x)

    def ours() -> None:
        with open_scene(scene) as opened:
            source = SceneSource(opened, ensemble.channels)
            for _ in map_strips(source, predictor, WINDOW):
                pass

    def bare(n: int) -> None:
        x = torch.randn(1, 5, WINDOW, WINDOW).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            for _ in range(n):
                model(x)

    ours()
    n, out = sum(shown), {"ours": np.inf, "bare": np.inf}
    bare(1)
    for _ in range(3):  # in turns, so that a busy machine is busy for both
        for name, job in (("ours", ours), ("bare", lambda: bare(n))):
            start = time.perf_counter()
            job()
            out[name] = min(out[name], time.perf_counter() - start)
    out |= {"windows": n, "threads": torch.get_num_threads()}
    before = peak(reset=True)
    ours()
    out["ours MB"] = peak() - before
    before = peak(reset=True)
    start = time.perf_counter()
    all_at_once(scene, predictor)
    out["all at once"], out["all at once MB"] = time.perf_counter() - start, peak() - before
    return out


def memory(scene: Path, out: Path) -> dict[str, float]:
    """MB above what was held before, of all maps of a scene, with a model that costs nothing."""
    ensemble = Ensemble.of(bundle())

    class Tiny(Predictor):
        def __init__(self, *args):
            super().__init__(*args)
            self.models = [lambda x: x[:, :4].softmax(1)]

    import glacier_fastai.predict.scene as module

    module.Predictor = Tiny
    wanted = Wanted("uint8", True)
    predict_scene(ensemble, scene.with_name("warm.tif"), out, wanted)
    before = peak(reset=True)
    start = time.perf_counter()
    predict_scene(ensemble, scene, out, wanted)
    return {"seconds": time.perf_counter() - start, "MB": peak() - before}


def measured(what: str, *paths: Path) -> dict[str, float]:
    """Call one of the functions above in a process of its own."""
    command = [sys.executable, __file__, what, *map(str, paths)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pixels_per_second_against_the_bare_model(tmp_path):
    found = measured("speed", write_noise(tmp_path / "s.tif", SIZE, SIZE))
    pixels = found["windows"] * WINDOW**2 / 1e6
    print(
        f"\n{SIZE} x {SIZE} px, ResNet34, {found['windows']:.0f} windows of {WINDOW} px, "
        f"{found['threads']:.0f} threads: "
        f"ours {pixels / found['ours']:.3f}, bare model {pixels / found['bare']:.3f} Mpx of windows per s, "
        f"ratio {found['bare'] / found['ours']:.3f}\n"
        f"against all windows in one list: time {found['ours']:.1f} against {found['all at once']:.1f} s, "
        f"memory {found['ours MB']:.0f} against {found['all at once MB']:.0f} MB above the model"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_height(tmp_path):
    width, height = TALL
    write_noise(tmp_path / "warm.tif", 600, 600)
    found = {}
    for rows in (width, height):
        scene = write_noise(tmp_path / f"{rows}.tif", rows, width)
        found[rows] = [measured("memory", scene, tmp_path / f"maps{rows}{k}") for k in range(5)]
    middle = {}
    for rows, results in found.items():  # threads meet by chance: peaks of the same scene differ by a fifth
        peaks = sorted(result["MB"] for result in results)
        middle[rows] = np.median(peaks)
        seconds = min(result["seconds"] for result in results)
        print(f"\n{rows} x {width} px, all maps: {peaks[0]:.0f} to {peaks[-1]:.0f} MB, {seconds:.0f} s", end="")
    print(f"\nratio of the medians {middle[height] / middle[width]:.3f}")


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*map(Path, sys.argv[2:]))))
