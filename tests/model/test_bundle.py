import json
import re
from dataclasses import replace

import numpy as np
import pytest
import shapely
import torch
from safetensors.torch import save_file
from scenes import BANDS, TINY, make_store

from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.errors import BundleError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.registry import build_model
from glacier_fastai.model.unet import glacier_unet
from glacier_fastai.train.learner import glacier_learner

FIRST = "encoder.model.conv1.0.weight"
TANGLE = shapely.Polygon(np.random.default_rng(0).uniform(-10, 10, (3000, 2)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    store = make_store(tmp_path_factory.mktemp("b") / "store")
    dls = GlacierDataLoaders.from_store(store, 0, bs=4, folds=3)
    learn = glacier_learner(dls, encoder=TINY, seed=1)
    return ModelBundle.from_learner(learn, metrics={"mcc": 0.5}, recipe={"seed": 1})


def test_it_loads_with_no_other_file_and_gives_the_same_model(bundle, tmp_path):
    bundle.save(tmp_path / "m.safetensors", half=False)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    other = ModelBundle.load(tmp_path / "m.safetensors")
    for name in ("arch", "options", "bands", "mean", "std", "classes", "recipe", "metrics", "trained_on"):
        assert getattr(other, name) == getattr(bundle, name), name
    x = torch.randn(1, 5, 64, 64)
    with torch.no_grad():
        assert torch.equal(other.model()(x), bundle.model()(x))


def test_a_bundle_says_whether_it_tells_debris_and_one_of_before_does(bundle, tmp_path):
    replace(bundle, tells_debris=False).save(tmp_path / "blind.safetensors")
    assert not ModelBundle.load(tmp_path / "blind.safetensors").tells_debris
    resaved(bundle, tmp_path / "before.safetensors", tells_debris=None, version="3", digest=None)
    assert bundle.tells_debris and ModelBundle.load(tmp_path / "before.safetensors").tells_debris


def test_half_precision_halves_the_file_and_hardly_changes_the_probabilities(bundle, tmp_path):
    bundle.save(tmp_path / "half.safetensors")
    bundle.save(tmp_path / "full.safetensors", half=False)
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("half", "full")]
    assert sizes[0] < 0.51 * sizes[1]
    x = torch.randn(1, 5, 64, 64)
    with torch.no_grad():
        a, b = (ModelBundle.load(tmp_path / f"{n}.safetensors").model()(x).softmax(1) for n in ("half", "full"))
    torch.testing.assert_close(a, b, atol=5e-3, rtol=0)


def test_the_default_model_fits_into_50_mb(tmp_path):
    weights = glacier_unet().state_dict()
    options = {"encoder": "resnet34", "attention": "scse"}
    ModelBundle(weights, "unet", options, BANDS, (0.0,) * 5, (1.0,) * 5).save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 50e6


def test_values_beyond_float16_stay_float32(bundle, tmp_path):
    weights = {k: v.clone() for k, v in bundle.weights.items()}
    weights[FIRST][0, 0, 0, 0] = 1e6
    replace(bundle, weights=weights).save(tmp_path / "m.safetensors")
    assert ModelBundle.load(tmp_path / "m.safetensors").weights[FIRST][0, 0, 0, 0] == 1e6


def refuse(path, message):
    with pytest.raises(BundleError, match=message) as err:
        ModelBundle.load(path)
    assert re.fullmatch(rf"{re.escape(str(path))}: .*", said := str(err.value)), said
    assert said.count(str(path)) == 1


def test_foreign_and_damaged_files_are_refused(bundle, tmp_path):
    good = tmp_path / "good.safetensors"
    bundle.save(good)
    refuse(tmp_path / "none.safetensors", "no such file")
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-1000])
    refuse(tmp_path / "cut.safetensors", "not a safetensors file, or cut short")
    torch.save({"a": 1}, tmp_path / "pickle.safetensors")
    refuse(tmp_path / "pickle.safetensors", "not a safetensors file, or cut short")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    refuse(tmp_path / "foreign.safetensors", "no model bundle of glacier_fastai")


def resaved(bundle, path, drop=None, **changes):
    bundle.save(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **changes}
        tensors = {k: file.get_tensor(k) for k in file.keys() if k != drop}  # noqa: SIM118
    save_file(tensors, path, {k: v for k, v in metadata.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "3", "mean": "[1, 1, 1, 1, 1]"}, "not as it was written"),
        ({"version": "5"}, "bundle version 5; this glacier_fastai reads 1 to 4"),
        ({"bands": None}, "damaged or made by other code"),
        ({"bands": "{"}, "bands: damaged, or not JSON"),
        ({"mean": "[1.0]"}, "bands and statistics differ in number"),
        ({"options": '{"encoder": "resnet34"}'}, "damaged or made by other code"),
        ({"arch": json.dumps("nonet")}, "no model 'nonet'"),
        ({"arch": "3"}, "arch: input should be a valid string, not 3"),
        ({"bands": "[1, 2, 3, 4, 5]"}, "damaged or made by other code"),
        ({"std": "[1, 1, 0, 1, 1]"}, "a deviation is not positive"),
        ({"texture": "{}"}, "missing"),
        (
            {"bands": '["glcm_energy(red)", "blue", "green", "red", "nir"]', "texture": '{"window": 7, "edges": {}}'},
            "no grey levels",
        ),
        ({"recipe": "3"}, "recipe: input should be a valid dictionary, not 3"),
        ({"options": "[]"}, "options: input should be a valid dictionary"),
        ({"tells_debris": "3"}, "tells_debris: input should be a valid boolean"),
        ({"trained_on": "null"}, "damaged or made by other code"),
        ({"trained_on": '{"train": 3}'}, "damaged or made by other code.*train"),
        ({"trained_on": '{"ground": "POINT (86 28)"}'}, "damaged or made by other code.*ground.*no polygons in WKT"),
        (
            {"trained_on": json.dumps({"ground": "GEOMETRYCOLLECTION(" * 300_000 + "POINT (86 28" + ")" * 300_001})},
            "damaged or made by other code.*ground.*no polygons in WKT",
        ),
        (
            {"trained_on": json.dumps({"ground": TANGLE.wkt})},
            "damaged or made by other code.*ground.*no polygons in WKT",
        ),
        ({"trained_on": '{"ground": "POLYGON ((86 28, 87"}'}, "damaged or made by other code.*ground.*no polygons"),
        ({"drop": "segmentation_head.0.bias"}, r"segmentation_head\.0\.bias is missing, wanted is \(4,\)"),
        ({"std": "[1, 1, 1e-60, 1, 1]"}, "a deviation is not positive"),
        ({"std": "[1, 1, true, 1, 1]"}, "std.2: input should be a valid number"),
        ({"tells_debris": '"no"'}, "tells_debris: input should be a valid boolean"),
        ({"mean": "[1, 1, 1e39, 1, 1]"}, "statistics are not finite"),
        ({"mean": "[1, 1, NaN, 1, 1]"}, "NaN is no number"),
        ({"classes": '["a", "b", "c"]'}, r"segmentation_head\.0\.bias is \(4,\), wanted is \(3,\)"),
        ({"options": '{"encoder": "tu-hf-hub:stranger/model"}'}, "encoder 'tu-hf-hub:stranger/model': use one of"),
        ({"options": '{"encoder": "tu-local-dir:/etc"}'}, "encoder 'tu-local-dir:/etc': use one of"),
        ({"options": '{"encoder": 5}'}, "cannot be built"),
        ({"trained_on": "[" * 100_000}, "not JSON"),
        ({"profile": '{"scaling": {"red": [0, 0]}}'}, "a scale of 0"),
        ({"profile": '{"scaling": {"red": [1e-320, 0]}}'}, "a scale of 0, or beyond all use"),
        ({"profile": '{"quantiles": {"red": [1, 2]}}'}, "quantiles are 7 numbers in rising order"),
        ({"profile": '{"quantiles": {"red": [7, 6, 5, 4, 3, 2, 1]}}'}, "quantiles are 7 numbers in rising order"),
        ({"profile": '{"pixel_size": 0}'}, "pixel_size"),
        ({"secret": "1"}, "secret: unknown key"),
    ],
)
def test_contents_that_do_not_fit_are_refused(bundle, tmp_path, changes, message):
    resaved(bundle, tmp_path / "m.safetensors", **changes)
    refuse(tmp_path / "m.safetensors", message)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (FIRST, float("nan"), f"{FIRST} is not finite"),
        ("segmentation_head.0.bias", float("inf"), r"segmentation_head\.0\.bias is not finite"),
        ("running_var", -1.0, "running_var is negative"),
    ],
)
def test_weights_that_no_training_gives_are_refused(bundle, tmp_path, name, value, message):
    weights = {k: v.clone() for k, v in bundle.weights.items()}
    next(v for k, v in weights.items() if k.endswith(name))[(..., *[0] * 1)] = value
    replace(bundle, weights=weights).save(tmp_path / "m.safetensors")
    refuse(tmp_path / "m.safetensors", message)


def test_what_was_changed_since_is_refused(bundle, tmp_path):
    resaved(bundle, tmp_path / "m.safetensors", standardised="true")
    refuse(tmp_path / "m.safetensors", "not as it was written")
    bundle.save(tmp_path / "n.safetensors")
    data = bytearray((tmp_path / "n.safetensors").read_bytes())
    data[-4] ^= 1
    (tmp_path / "n.safetensors").write_bytes(data)
    refuse(tmp_path / "n.safetensors", "not as it was written")


def test_no_network_is_built_that_the_file_does_not_hold(bundle, tmp_path, monkeypatch):
    resaved(bundle, tmp_path / "m.safetensors", options='{"encoder": "resnet152", "attention": "scse"}')
    taken = []
    monkeypatch.setattr(torch.nn.Conv2d, "reset_parameters", lambda self: taken.append(self.weight.device.type))
    refuse(tmp_path / "m.safetensors", "wanted is")
    assert taken
    assert set(taken) == {"meta"}


def test_no_weights_are_read_that_the_network_has_not(bundle, tmp_path, monkeypatch):
    resaved(bundle, tmp_path / "m.safetensors", drop="segmentation_head.0.bias")
    read = []
    monkeypatch.setattr("glacier_fastai.reading.fits", lambda *about: read.append(about))
    refuse(tmp_path / "m.safetensors", r"bias is missing, wanted is \(4,\)")
    assert not read


def test_loading_into_the_same_bands_needs_no_word(bundle):
    model = build_model("unet", BANDS, encoder=TINY)
    assert bundle.load_into(model, bundle.bands) == []
    assert torch.equal(model.state_dict()[FIRST], bundle.weights[FIRST])


def test_loading_into_other_bands_and_classes_is_said(bundle):
    model = build_model("unet", ("nir", "red", "blue"), ("debris", "rock"), encoder=TINY)
    said = bundle.load_into(model, ("nir", "red", "blue"), ("debris", "rock"))
    assert said == [
        "first convolution: red, blue kept; nir start from the mean of these; green, swir1, thermal dropped",
        "last convolution: debris kept, the rest starts anew",
    ]
    w, new = bundle.weights, model.state_dict()
    assert torch.equal(new[FIRST][:, 1], w[FIRST][:, 2])
    assert torch.equal(new["segmentation_head.0.bias"][0], w["segmentation_head.0.bias"][2])
    assert torch.equal(new["encoder.model.layer1.0.conv1.weight"], w["encoder.model.layer1.0.conv1.weight"])


def test_weights_go_on_at_another_scale_which_is_said(bundle):
    model = build_model("unet", bundle.bands, encoder=TINY, attention="scse", scale=0.5)
    assert bundle.load_into(model, bundle.bands) == ["from images at scale 1 to scale 0.5"]


def test_another_architecture_is_refused(bundle):
    with pytest.raises(BundleError, match=f'set model.arch="unet", model.encoder="{TINY}", model.attention="scse"'):
        bundle.load_into(glacier_unet("resnet34", 5), bundle.bands)


def test_a_network_without_a_place_for_other_bands_keeps_to_its_own(bundle):
    with pytest.raises(BundleError, match="the bundle is a unet .*, the recipe wants a fpn"):
        bundle.load_into(build_model("fpn", BANDS, encoder=TINY), BANDS)
