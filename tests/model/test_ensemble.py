from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from scenes import BANDS, TINY, normalised

from glacier_fastai.core.calibration import calibrated
from glacier_fastai.core.dihedral import VIEWS, undo_view, view, view_of_image
from glacier_fastai.data.channels import Texture, compute_channels
from glacier_fastai.errors import BundleError, DataError, PredictionError, RecipeError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.ensemble import Calibration, Ensemble, Member
from glacier_fastai.model.predictor import Predictor
from glacier_fastai.model.unet import glacier_unet
from glacier_fastai.recipe import PredictRecipe

CPU = torch.device("cpu")


def made_up_bundle(seed=0, bands=BANDS, attention=None, **about):
    torch.manual_seed(seed)
    weights = glacier_unet(TINY, len(bands), attention=attention).state_dict()
    n = range(len(bands))
    mean, std = tuple(290.0 + k for k in n), tuple(140.0 + k for k in n)
    return ModelBundle(weights, "unet", {"encoder": TINY, "attention": attention}, bands, mean, std, **about)


def windows(n=3, bands=5, side=32, seed=0):
    out = np.random.default_rng(seed).normal(300, 150, (n, bands, side, side)).astype(np.float32)
    out[:, :, :4, 7:] = np.nan
    return list(out)


@pytest.fixture
def saved(tmp_path):
    paths = []
    for k, bundle in enumerate((made_up_bundle(0), made_up_bundle(1, BANDS[::-1]), made_up_bundle(2, attention="cse"))):
        paths.append(tmp_path / f"{k}.safetensors")
        bundle.save(paths[-1])
    return paths


def plain_mean(paths, weights, views, shown, bands=BANDS):
    """The mean that is wanted, computed without an ensemble."""
    total = 0
    for path, weight in zip(paths, weights, strict=True):
        bundle = ModelBundle.load(path)
        x = np.stack([w[[bands.index(b) for b in bundle.bands]] for w in shown])
        x = torch.from_numpy(np.stack([normalised(v, bundle.mean, bundle.std) for v in x]))
        with torch.no_grad():
            model = bundle.model()
            for k in views:
                total = total + weight * undo_view(model(view(x, k)).softmax(1), k)
    return total / sum(weights) / len(views)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_mean_of_models_with_other_bands_and_architectures_is_that_of_their_probabilities(saved, views, batch_size):
    members = tuple(Member.load(p, w) for p, w in zip(saved, (1.0, 2.0, 0.5), strict=True))
    ensemble = Ensemble(members, PredictRecipe(views=views))
    assert ensemble.channels == tuple((b, None) for b in BANDS)
    shown = windows()
    found = torch.stack(Predictor(ensemble, CPU, batch_size)(shown))
    want = plain_mean(saved, (1.0, 2.0, 0.5), VIEWS if views else [0], shown)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=0)


def test_models_that_do_not_fit_into_memory_together_are_read_one_by_one(saved, monkeypatch):
    ensemble = Ensemble.load(saved)
    together = Predictor(ensemble, CPU)
    monkeypatch.setattr("glacier_fastai.model.predictor._free", lambda device: 1000)
    one_by_one = Predictor(ensemble, CPU, 2)
    assert together.models and one_by_one.models is None
    for a, b in zip(together(windows()), one_by_one(windows()), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_the_batch_size_is_found_where_memory_runs_out(saved):
    predictor = Predictor(Ensemble.load(saved), CPU, 64)
    want, seen, models = predictor(windows(8)), [], predictor.models

    def limited(model, most):
        def run(x):
            seen.append(len(x))
            if len(x) > most:
                raise torch.OutOfMemoryError("no more")
            return model(x)

        return run

    predictor.models = [limited(m, 3) for m in models]
    found = predictor(windows(8))
    assert predictor.batch_size == 2 and max(seen[-12:]) == 2
    for a, b in zip(want, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    predictor.models = [limited(models[0], 0), *models[1:]]  # not even one window beside the other models
    predictor(windows(2))
    assert predictor.models is None and predictor.batch_size == 1
    alone = Predictor(Ensemble.load(saved[:1]), CPU)
    alone.models = [limited(models[0], 0)]
    with pytest.raises(PredictionError, match="one window of 32 x 32 px; use a smaller window"):
        alone(windows(1))


def test_disagreement_lowers_the_confidence_and_decisions_follow_offsets():
    ensemble = Ensemble((Member(made_up_bundle()),))
    a, b = (torch.tensor([0.96, 0.02, 0.01, 0.01]), torch.tensor([0.02, 0.96, 0.01, 0.01]))
    classes, probs = ensemble.decide(((a + b) / 2)[:, None, None])
    assert classes.item() == 0 and probs[0].item() == pytest.approx(0.49)
    tipped = replace(ensemble, calibration=Calibration(offsets=(0, 0.1, 0, 0), temperature=2.0))
    classes, probs = tipped.decide(((a + b) / 2)[:, None, None])
    assert classes.item() == 1
    torch.testing.assert_close(torch.from_numpy(probs), calibrated(((a + b) / 2)[:, None, None], 2.0, (0, 0, 0, 0)))


def test_an_ensemble_is_saved_and_read_wherever_it_lies(saved, tmp_path):
    ensemble = replace(
        Ensemble.load(saved, ["predict.views=true"]), calibration=Calibration(temperature=1.5, area=(-1, 2))
    )
    (tmp_path / "sub").mkdir()
    ensemble.save(tmp_path / "sub" / "e.yaml", {"mcc": 0.5})
    tree = yaml.safe_load((tmp_path / "sub" / "e.yaml").read_text())
    assert [m["bundle"] for m in tree["members"]] == [f"../{k}.safetensors" for k in range(3)]
    again = Ensemble.load([tmp_path / "sub" / "e.yaml"])
    assert (again.predict, again.calibration) == (ensemble.predict, ensemble.calibration)
    assert [m.fingerprint for m in again.members] == [m.fingerprint for m in ensemble.members]
    other = Ensemble.load([tmp_path / "sub" / "e.yaml"], ["predict.views=false"])
    assert other.predict.views is False
    assert other.calibration == Calibration(temperature=1.5)  # area intervals were fitted to other maps
    (tmp_path / "link.yaml").symlink_to(tmp_path / "sub" / "e.yaml")
    assert Ensemble.load([tmp_path / "link.yaml"]).calibration == ensemble.calibration
    tree["members"][0]["weight"] = 3.0
    (tmp_path / "sub" / "e.yaml").write_text(yaml.safe_dump(tree))
    assert Ensemble.load([tmp_path / "sub" / "e.yaml"]).members[0].weight == 3.0


def test_indices_are_computed_of_bands(tmp_path):
    ensemble = Ensemble.of(made_up_bundle(bands=("red", "ndsi")))
    ensemble.check("scene.tif", ("green", "swir1", "red"))
    with pytest.raises(BundleError, match=r"scene\.tif: the bundle needs band ndsi; here are green, red"):
        ensemble.check("scene.tif", ("green", "red"))


def test_texture_of_an_index_is_that_of_the_index_as_a_band():
    texture = Texture(edges={"ndsi": (-1.0, -0.5, 0.0, 0.5, 1.0)}, window=5)
    rng = np.random.default_rng(0)
    image = rng.uniform(1, 9, (3, 20, 20)).astype(np.float32)
    image[:, 3, 4] = np.nan
    ndsi = (image[1] - image[2]) / (image[1] + image[2])
    wanted = [("red", None), ("glcm_contrast(ndsi)", texture)]
    computed = compute_channels(image, ("red", "green", "swir1"), wanted)
    given = compute_channels(np.stack([*image, ndsi]), ("red", "green", "swir1", "ndsi"), wanted)
    np.testing.assert_array_equal(computed, given)
    assert np.nanstd(computed[1]) > 0


def test_refusals(saved, tmp_path):
    other = replace(ModelBundle.load(saved[0]), classes=("background", "glacier", "debris", "cloud"))
    other.save(tmp_path / "o.safetensors")
    with pytest.raises(BundleError, match=r"o\.safetensors: has classes .*, cloud; maps are of"):
        Ensemble.load([saved[0], tmp_path / "o.safetensors"])
    replace(ModelBundle.load(saved[0]), standardised=True).save(tmp_path / "s.safetensors")
    with pytest.raises(BundleError, match="one was trained on standardised values"):
        Ensemble.load([saved[0], tmp_path / "s.safetensors"])
    with pytest.raises(BundleError, match="no such file"):
        Ensemble.load([tmp_path / "x.safetensors"])
    with pytest.raises(RecipeError, match="train.lr=1: a trained model's section predict alone"):
        Ensemble.load(saved, ["train.lr=1"])
    with pytest.raises(RecipeError, match="predict.view: unknown key.*did you mean 'views'"):
        Ensemble.load(saved, ["predict.view=true"])
    file = tmp_path / "e.yaml"

    def refuse(text, message):
        file.write_text(text)
        with pytest.raises(BundleError, match=message):
            Ensemble.load([file])

    refuse("members: [", "not YAML")
    refuse("3", "no ensemble")
    refuse("members: []", "members")
    refuse("members: [{bundl: a}]", "members.0.bundl: unknown key; allowed are bundle, weight; did you mean 'bundle'")
    refuse("members: [{bundle: a, weight: -1}]", "members.0.weight")
    refuse("members: [{bundle: a}]\ncalibration: {bias: [1, 2]}", "calibration.bias")
    refuse("members: [{bundle: a}]\ncalibration: {area: [2, 1]}", "calibration.area: .*ascending")
    refuse("members: [{bundle: a}]\ncalibration: {glacier: [1, 0, 0, 2, 1]}", "calibration.glacier: .*ascending")
    refuse("members: [{bundle: a}]\ncalibration: {glacier: [-1, 0, 0, 1, 2]}", "calibration.glacier.*0")
    refuse("members: [{bundle: a}]\ncalibration: {glacier: [1, 2]}", "calibration.glacier")
    refuse(f"members: {[{'bundle': 'a'}, {'bundle': './a'}]}", "members: .*named twice")
    refuse(f"members: {[{'bundle': f'{n}'} for n in range(1001)]}", "members: .*1000")
    refuse(f"members: [{{bundle: {'a' * 5000}}}]", "File name too long")
    refuse('members: [{bundle: "a\\0b"}]', "null byte")
    refuse("members: [{bundle: a.safetensors}]", r"a\.safetensors: no such file")
    with pytest.raises(BundleError, match="names its own bundles; leave out"):
        Ensemble.load([file, saved[0]])
    with pytest.raises(BundleError, match="no such file"):
        Ensemble.load([tmp_path / "no.yaml"])


def test_what_is_no_bundle_is_refused_whatever_its_length(tmp_path):
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(BundleError, match="not a safetensors file"):
        Ensemble.load([tmp_path / "a.safetensors"])


@pytest.mark.parametrize("bands", [("red", "aspect_sin", "aspect_cos"), ("aspect_cos", "aspect_sin", "red")])
def test_aspect_turns_with_the_views(bands):
    bundle, shown = made_up_bundle(0, bands), windows(1, 3)
    index = bands.index("aspect_sin"), bands.index("aspect_cos")
    x = torch.from_numpy(np.stack([normalised(w, bundle.mean, bundle.std) for w in shown]))
    model = bundle.model()
    with torch.no_grad():
        each = [undo_view(model(view_of_image(x, k, index)).softmax(1), k) for k in VIEWS]
    found = Predictor(Ensemble((Member(bundle),), PredictRecipe(views=True)), CPU)(shown)[0]
    valid = np.isfinite(shown[0]).all(0)
    torch.testing.assert_close(found[:, valid], (sum(each) / 8)[0][:, valid], atol=1e-5, rtol=1e-4)


def test_half_an_aspect_has_no_views():
    members = (Member(made_up_bundle(0, ("red", "aspect_sin"))),)
    Predictor(Ensemble(members, PredictRecipe(views=False)), CPU)
    with pytest.raises(DataError, match="aspect_sin alone cannot be turned"):
        Predictor(Ensemble(members, PredictRecipe(views=True)), CPU)
