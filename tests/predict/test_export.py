import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scenes import BANDS, TINY, made_up, write_raster

import glacier_fastai
from glacier_fastai.data.channels import Texture
from glacier_fastai.data.profile import Profile
from glacier_fastai.errors import BundleError, DataNote, OutputError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.ensemble import Calibration, Ensemble, Member
from glacier_fastai.model.registry import build_model
from glacier_fastai.predict.export import export_model
from glacier_fastai.predict.scene import Wanted, predict_scene

SCALE, OFFSET = 2.75e-5, -0.2
UNITS = {**dict.fromkeys(BANDS[:4], "reflectance"), "thermal": "dn"}


def bundle(bands=BANDS, seed=0, arch="unet", **options):
    torch.manual_seed(seed)
    options = options or {"encoder": TINY}
    model = build_model(arch, bands, **options)
    for name, value in model.named_parameters():
        if name.startswith(("segmentation_head", "head")):
            torch.nn.init.normal_(value, 0, 0.3)
    scaling = {b: (SCALE, OFFSET) for b in bands if b in BANDS[:4]}
    mean = tuple(0.4 if b != "thermal" else 5000.0 for b in bands)
    std = tuple(0.2 if b != "thermal" else 2000.0 for b in bands)
    profile = Profile(units={b: u for b, u in UNITS.items() if b in bands}, scaling=scaling, pixel_size=30.0)
    return ModelBundle(model.state_dict(), arch, model.built_as[1], bands, mean, std, profile=profile)


def run(path, numbers):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"numbers": numbers})[0]


def test_onnx_gives_the_probabilities_of_the_map(tmp_path):
    values, _, valid = made_up(64, 96)
    scene = write_raster(tmp_path / "s.tif", values, nodata=0, bands=BANDS)
    model = Ensemble(
        (Member(bundle()), Member(bundle(seed=1), 2.0)),
        calibration=Calibration(temperature=1.5, bias=(0.1, 0, 0, -0.1)),
    )
    scale = dict.fromkeys(BANDS[:4], SCALE), dict.fromkeys(BANDS[:4], OFFSET)
    made = predict_scene(
        model, scene, tmp_path, Wanted("float32", window=96), scale=scale[0], offset=scale[1], force=True
    )
    about = export_model(model, tmp_path / "m.onnx")
    assert about["difference"] < 1e-4 and about["bands"] == list(BANDS)
    probs = run(tmp_path / "m.onnx", values[None].astype(np.float32))[0]
    import rasterio

    with rasterio.open(made["files"]["probabilities"]) as file:
        want = file.read()
    np.testing.assert_allclose(probs[:, valid], want[:, valid], atol=1e-4)
    assert (probs[:, ~valid] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["unet", "fpn", "glavitu"])
def test_batch_and_size_are_free_and_the_file_says_what_it_is(tmp_path, arch):
    options = {"width": 8, "blocks": 1, "image_size": 64} if arch == "glavitu" else {"encoder": TINY}
    export_model(replace(bundle(arch=arch, **options), tells_debris=False), tmp_path / "m.onnx")
    for batch, height, width in ((1, 32, 64), (4, 96, 32)):
        probs = run(tmp_path / "m.onnx", np.full((batch, 5, height, width), 9000, np.float32))
        assert probs.shape == (batch, 4, height, width)
        np.testing.assert_allclose(probs.sum(1), 1, atol=1e-4)
        assert (probs[:, 2] == 0).all()
    said = {p.key: json.loads(p.value) for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert said["model_type"] == "Segmentor" and said["resolution"] == 3000 and said["tiles_size"] == 512
    assert said["class_names"] == {"0": "background", "1": "glacier", "2": "debris", "3": "lake"}
    assert said["tells_debris"] is False and "never told debris" in said["glacier"]
    assert said["bands"] == list(BANDS) and said["scaling"]["red"] == [SCALE, OFFSET]


@pytest.mark.slow
def test_torch_export_computes_indices_too(tmp_path):
    model = bundle(("green", "ndsi"))
    about = export_model(model, tmp_path / "m.pt2", "torch")
    assert about["bands"] == ["green", "swir1"] and about["difference"] < 1e-4
    program = torch.export.load(tmp_path / "m.pt2", extra_files=(extra := {"about.json": ""}))
    assert json.loads(extra["about.json"])["bands"] == ["green", "swir1"]
    assert program.module()(torch.full((1, 2, 64, 96), 9000.0)).shape == (1, 4, 64, 96)


@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_no_path_of_this_computer_is_in_the_file(tmp_path, to):
    export_model(bundle(), tmp_path / "m", to)
    content = [(tmp_path / "m").read_bytes()]
    if to == "torch":
        with zipfile.ZipFile(tmp_path / "m") as file:
            content = [file.read(name) for name in file.namelist()]
    places = (
        sys.prefix,
        sys.base_prefix,
        Path(torch.__file__).parent,
        Path(glacier_fastai.__file__).parent,
        Path.home(),
    )
    for part in content:
        assert not [place for place in places if f"{place}/".encode() in part]


def test_what_is_left_out_is_said_and_what_cannot_be_is_refused(tmp_path):
    bands = ("green", "glcm_contrast(green)")
    texture = {"window": 7, "edges": {"green": [1.0, 2.0]}}
    assert Texture(**texture)
    with pytest.raises(BundleError, match=r"glcm_contrast\(green\): texture is counted"):
        export_model(replace(bundle(bands), texture=texture), tmp_path / "m.onnx")
    assert not any(tmp_path.iterdir())
    views = replace(bundle(), recipe={"predict": {"views": True}})
    with pytest.warns(DataNote, match="views and scales"):
        export_model(views, tmp_path / "m.pt2", "torch")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_a_network_at_half_the_size_is_exported_with_the_stride_it_needs(tmp_path, to):
    about = export_model(bundle(encoder=TINY, scale=0.5), tmp_path / "m", to)
    assert about["stride"] == 64 and about["difference"] < 1e-4


def test_numbers_that_models_do_not_agree_on_are_refused(tmp_path):
    with pytest.raises(BundleError, match="scale 0.3: .* multiples of 320 px"):
        export_model(bundle(encoder=TINY, scale=0.3), tmp_path / "m.onnx")
    with pytest.raises(BundleError, match="came standardised"):
        export_model(replace(bundle(), standardised=True), tmp_path / "m.onnx")
    other = bundle(seed=1)
    other = replace(other, profile=other.profile.model_copy(update={"scaling": {}}))
    with pytest.raises(BundleError, match=f"band {BANDS[0]}: the models take its numbers by different scale"):
        export_model(Ensemble((Member(bundle()), Member(other))), tmp_path / "m.onnx")
    assert not any(tmp_path.iterdir())
    bundle().save(tmp_path / "m.safetensors")
    with pytest.raises(OutputError, match="m.safetensors: exists already; choose another name"):
        export_model(bundle(), tmp_path / "m.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_the_place_is_two_more_bands_and_unknown_where_they_are_0(tmp_path, to):
    bands = ("red", "latitude", "swir1", "longitude")
    own = bundle(bands, arch="glavitu", width=8, blocks=1, image_size=64)
    own.weights["location.layers.3.weight"] += 1
    own = replace(own, mean=(0.4, 0, 0.4, 0), std=(0.2, 57.29578, 0.2, 57.29578))
    about = export_model(Ensemble((Member(own), Member(bundle(("red", "green"))))), tmp_path / "m", to)
    assert about["bands"] == [*bands, "green"] and about["difference"] < 1e-4
    assert (about["units"]["latitude"], about["units"]["red"]) == ("degree", "reflectance")
    if to == "torch":
        return
    values, _, valid = made_up(64, 64)
    scene = write_raster(tmp_path / "s.tif", values, nodata=0, bands=BANDS)
    how = {"scale": dict.fromkeys(BANDS[:4], SCALE), "offset": dict.fromkeys(BANDS[:4], OFFSET), "force": True}
    only = Ensemble((Member(own), Member(bundle(("red", "green")))))
    made = predict_scene(only, scene, tmp_path, Wanted("float32", window=64), **how)
    import rasterio

    with rasterio.open(made["files"]["probabilities"]) as file:
        want = file.read()[:, valid]
    red, swir1, green = (values[BANDS.index(b)] for b in ("red", "swir1", "green"))

    def found(*place):
        flat = np.stack([red, red * 0 + place[0], swir1, red * 0 + place[1], green]) * valid
        return run(tmp_path / "m", flat[None].astype(np.float32))[0][:, valid]

    np.testing.assert_allclose(found(28.017, 87.01), want, atol=1e-3)
    assert np.abs(found(0, 0) - want).max() > 1e-3
