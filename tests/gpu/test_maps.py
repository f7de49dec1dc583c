"""Maps: as those of the CPU, and in smaller batches where memory is short."""

import numpy as np
import pytest
import rasterio
import torch
from scenes import BANDS, make_store, write_scene

from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.ensemble import Ensemble
from glacier_fastai.model.evaluate import evaluate
from glacier_fastai.model.predictor import Predictor
from glacier_fastai.model.registry import architecture, build_model, of_size
from glacier_fastai.predict.scene import predict_scene
from glacier_fastai.predict.whole import Wanted

CPU = torch.device("cpu")


def bundle(arch="unet"):
    torch.manual_seed(0)
    options = of_size(architecture(arch)[0], "tiny")
    options = {**options, "auxiliary": 0} if arch == "glavitu" else options
    weights = build_model(arch, BANDS, **options).state_dict()
    return ModelBundle(weights, arch, dict(options), BANDS, (5e3,) * 5, (2e3,) * 5)


def windows(n, side):
    rng = np.random.default_rng(0)
    found = rng.normal(5e3, 2e3, (n, 5, side, side)).astype(np.float32)
    found[:, :, :3] = np.nan
    return list(found)


@pytest.mark.parametrize("arch", ["unet", "glavitu"])
def test_probabilities_are_those_of_the_cpu(device, arch):
    ensemble = Ensemble.of(bundle(arch))
    ours, theirs = (Predictor(ensemble, where)(windows(3, 64)) for where in (device, CPU))
    for a, b in zip(ours, theirs, strict=True):
        assert a.device.type == device.type
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=5e-3)  # convolutions may round to TF32


def test_a_batch_that_does_not_fit_is_halved_until_it_does(device):
    predictor = Predictor(Ensemble.of(bundle()), device, batch_size=8)
    whole, model, sizes = predictor(windows(6, 32)), predictor.models[0], []

    def cramped(x):
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return model(x)

    predictor.models = [cramped]
    found = predictor(windows(6, 32))
    assert sizes == [6, 4, 2, 2, 2] and predictor.batch_size == 2
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: this part was not run")
def test_a_gpu_whose_memory_is_short_maps_in_smaller_batches():
    device, many = torch.device("cuda", 0), windows(24, 512)
    predictor = Predictor(Ensemble.of(bundle()), device, batch_size=24)
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + 2**30) / total, device)
        found = predictor(many)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert 1 <= predictor.batch_size < 24
    (alone,) = Predictor(Ensemble.of(bundle()), device)(many[:1])
    torch.testing.assert_close(found[0], alone, rtol=0, atol=5e-3)


def test_a_scene_and_its_scores_are_those_of_the_cpu(tmp_path, device):
    scene, _ = write_scene(tmp_path / "scene.tif")
    found = []
    for where in (device, CPU):
        out = tmp_path / f"on {where}"
        wanted = Wanted(window=64)
        files = predict_scene(bundle(), scene, out, wanted, device=where, overwrite=True)["files"]
        with rasterio.open(files["classes"]) as classes:
            found.append(classes.read(1))
    assert (found[0] == found[1]).mean() > 0.99
    store = make_store(tmp_path / "s")
    ours, theirs = (evaluate(bundle(), store, device=where, force=True)["mean_iou"] for where in (device, CPU))
    assert ours == pytest.approx(theirs, abs=0.02)
