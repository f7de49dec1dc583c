import json

import pytest
import torch
from safetensors.torch import save_file
from scenes import TINY, make_store

from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.errors import BundleError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.unet import glacier_unet
from glacier_fastai.train.learner import glacier_learner


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
    for name in ("arch", "attention", "bands", "mean", "std", "classes", "recipe", "metrics", "trained_on"):
        assert getattr(other, name) == getattr(bundle, name), name
    x = torch.randn(1, 5, 64, 64)
    with torch.no_grad():
        assert torch.equal(other.model()(x), bundle.model()(x))


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
    ModelBundle(weights, "resnet34", "scse", ("red",) * 5, (0.0,) * 5, (1.0,) * 5).save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 50e6


def test_values_beyond_float16_stay_float32(bundle, tmp_path):
    weights = {k: v.clone() for k, v in bundle.weights.items()}
    weights["encoder.conv1.weight"][0, 0, 0, 0] = 1e6
    big = ModelBundle(
        weights, "unet", {"encoder": "resnet18", "attention": "scse"}, bundle.bands, bundle.mean, bundle.std
    )
    big.save(tmp_path / "m.safetensors")
    assert ModelBundle.load(tmp_path / "m.safetensors").weights["encoder.conv1.weight"][0, 0, 0, 0] == 1e6


def refuse(path, message):
    with pytest.raises(BundleError, match=message) as err:
        ModelBundle.load(path)
    assert str(path) in str(err.value)
    assert "\n" not in str(err.value)


def test_foreign_and_damaged_files_are_refused(bundle, tmp_path):
    good = tmp_path / "good.safetensors"
    bundle.save(good)
    refuse(tmp_path / "none.safetensors", "no such file")
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-1000])
    refuse(tmp_path / "cut.safetensors", "not a model bundle, or cut short")
    torch.save({"a": 1}, tmp_path / "pickle.safetensors")
    refuse(tmp_path / "pickle.safetensors", "not a model bundle, or cut short")
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
        ({"version": "2"}, "bundle version 2; this glacier_fastai reads 1"),
        ({"bands": None}, "damaged or made by other code"),
        ({"bands": "{"}, "damaged or made by other code"),
        ({"mean": "[1.0]"}, "bands and statistics differ in number"),
        ({"arch": json.dumps("resnet34")}, "damaged or made by other code"),
        ({"arch": json.dumps("nonet")}, "damaged or made by other code"),
        ({"arch": "3"}, "damaged or made by other code"),
        ({"bands": "[1, 2, 3, 4, 5]"}, "damaged or made by other code"),
        ({"std": "[1, 1, 0, 1, 1]"}, "a deviation is not positive"),
        ({"texture": "{}"}, "missing"),
        (
            {"bands": '["glcm_energy(red)", "blue", "green", "red", "nir"]', "texture": '{"window": 7, "edges": {}}'},
            "no grey levels",
        ),
        ({"recipe": "3"}, "recipe, texture, metrics or trained_on is no mapping"),
        ({"trained_on": "null"}, "recipe, texture, metrics or trained_on is no mapping"),
        ({"drop": "segmentation_head.0.bias"}, "damaged or made by other code"),
    ],
)
def test_contents_that_do_not_fit_are_refused(bundle, tmp_path, changes, message):
    resaved(bundle, tmp_path / "m.safetensors", **changes)
    refuse(tmp_path / "m.safetensors", message)


def test_loading_into_the_same_bands_needs_no_word(bundle):
    model = glacier_unet("resnet18", 5)
    assert bundle.load_into(model, bundle.bands) == []
    assert torch.equal(model.state_dict()["encoder.conv1.weight"], bundle.weights["encoder.conv1.weight"])


def test_loading_into_other_bands_and_classes_is_said(bundle):
    model = glacier_unet("resnet18", 3, 2)
    said = bundle.load_into(model, ("nir", "red", "blue"), ("debris", "rock"))
    assert said == [
        "first convolution: red, blue kept; nir start from the mean of these; green, swir1, thermal dropped",
        "last convolution: debris kept, the rest starts anew",
    ]
    w, new = bundle.weights, model.state_dict()
    assert torch.equal(new["encoder.conv1.weight"][:, 1], w["encoder.conv1.weight"][:, 2])
    assert torch.equal(new["segmentation_head.0.bias"][0], w["segmentation_head.0.bias"][2])
    assert torch.equal(new["encoder.layer1.0.conv1.weight"], w["encoder.layer1.0.conv1.weight"])


def test_another_architecture_is_refused(bundle):
    with pytest.raises(BundleError, match=r"set model.encoder=resnet18 and model.attention=\"scse\""):
        bundle.load_into(glacier_unet("resnet34", 5), bundle.bands)


def test_the_recipe_decides_whether_views_are_averaged(bundle):
    from dataclasses import replace

    from glacier_fastai.core.dihedral import view

    x, cpu = torch.randn(1, 5, 32, 32), torch.device("cpu")
    plain = bundle.probabilities(cpu)
    averaged = replace(bundle, recipe={"predict": {"views": True}}).probabilities(cpu)
    torch.testing.assert_close(plain(x).sum(1), torch.ones(1, 32, 32))
    assert not torch.allclose(plain(view(x, 5)), view(plain(x), 5), atol=1e-4)
    torch.testing.assert_close(averaged(view(x, 5)), view(averaged(x), 5), atol=1e-5, rtol=1e-4)
