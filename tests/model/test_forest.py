import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from contract.models import ModelContract, run_without_epochs
from scenes import BANDS, made_up, make_store, tiny_recipe, write_raster
from sklearn.ensemble import RandomForestClassifier

from glacier_fastai.core.forest import window_statistics
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.tiles import TileStore, TileWriter
from glacier_fastai.errors import BundleError, DataError, RecipeError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.calibrate import calibrate
from glacier_fastai.model.ensemble import Ensemble
from glacier_fastai.model.evaluate import evaluate, predict_tiles
from glacier_fastai.model.forest import grow
from glacier_fastai.model.registry import build_model
from glacier_fastai.predict.scene import predict_scene
from glacier_fastai.predict.submission import write_submission
from glacier_fastai.recipe import load_recipe
from glacier_fastai.show.report import write_report
from glacier_fastai.train.learner import glacier_learner
from glacier_fastai.train.run import crossval, finetune

SMALL = {"trees": 8, "pixels": 3000}


class TestContract(ModelContract):
    """It does what every model does, but for what needs a gradient or grows into a graph."""

    name, adapts, options = "forest", False, SMALL
    test_every_parameter_gets_a_gradient = test_it_trains_frozen_and_thawed = None
    test_no_parameter_is_unused_in_two_processes = test_torch_exports_it = None

    def learner(self, store):
        dls = GlacierDataLoaders.from_store(store, 0, bs=4, folds=3)
        return glacier_learner(dls, grow(dls.store, dls.train_tiles, dls.bands, dls.stats, **SMALL))


def recipe(*overrides):
    settings = ["data.tile_size=32", "data.crop=32", "data.folds=3", f"model.options={json.dumps(SMALL)}"]
    return load_recipe("forest", [*settings, *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the forest, and its store, of unknown units."""
    base = tmp_path_factory.mktemp("forest")
    store = make_store(base / "store")
    return finetune(recipe("balance.level=pixel", "train.ema=0.9"), store, base / "run", fold=0), store


def coded(path, codes, scenes=3):
    """Write a store like `make_store`'s, classes under other codes."""
    with TileWriter(path, BANDS, 32, "uint16", "test") as writer:
        for s in range(scenes):
            values, classes, valid = made_up(32, 32, seed=s)
            writer.add(values, np.array(codes)[classes], valid=valid, scene=f"s{s}")
    return TileStore(path)


def statistics(store):
    return store.statistics(store.bands, range(len(store)))


def test_a_run_is_a_run_like_others_without_an_epoch(run, tmp_path):
    path, store = run
    bundle, record = run_without_epochs(path, store)
    assert "Forest(8 trees, " in (path / "MODEL_CARD.md").read_text()
    train = np.flatnonzero(bundle.trained_on.knows(store, "train"))
    assert evaluate(bundle, store, train)["mcc"] > 0.9
    write_report([path], tmp_path / "r.html")
    with pytest.raises(BundleError, match="is a forest .*a submission carries a unet"):
        write_submission(Ensemble.of(bundle), tmp_path / "sub")


def test_its_bundle_says_what_scikit_learn_says_of_the_same_pixels(run):
    store, tiles = run[1], [0, 1, 4, 5]
    stats = statistics(store)
    found = ModelBundle.load(run[0] / "best.safetensors").model()
    found.load_state_dict(grow(store, tiles, BANDS, stats, trees=8, pixels=10**6, seed=7).state_dict())
    mean, std = (np.float32(s)[:, None, None] for s in stats)
    images = torch.from_numpy(np.stack([np.nan_to_num((store.read(i) - mean) / std) for i in range(len(store))]))
    x = window_statistics(images).movedim(1, -1).numpy()
    known = store.masks[tiles] != 255
    peer = RandomForestClassifier(8, min_samples_leaf=5, random_state=7, n_jobs=1)
    peer.fit(x[tiles][known], store.masks[tiles][known])
    wanted = np.full((*x.shape[:-1], 4), 1e-3)
    wanted[..., peer.classes_] = peer.predict_proba(x.reshape(-1, 25)).reshape(*x.shape[:-1], -1).clip(1e-3)
    got = found(images).exp().movedim(1, -1).numpy()
    data = ~np.isnan([store.read(i)[0] for i in range(len(store))])
    np.testing.assert_allclose(got[data], wanted[data], atol=1e-5)


def test_the_same_seed_grows_the_same_trees(run):
    store = run[1]
    about = store, range(8), BANDS, statistics(store)
    one, again, other = (grow(*about, seed=s, **SMALL).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not torch.equal(one["roots"], other["roots"])
    seeded = [r.state_dict() for r in (made(run[1], s) for s in (1, 2))]
    assert not torch.equal(seeded[0]["roots"], seeded[1]["roots"])


def made(store, seed):
    from glacier_fastai.train.build import make_dls, make_learner

    settings = recipe(f"seed={seed}")
    return make_learner(settings, make_dls(settings, store, 0)).model


def test_pixels_are_drawn_as_they_come_from_those_with_a_label(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(RandomForestClassifier, "fit", lambda self, x, y: seen.extend((x, y)) or 1 / 0)
    store = coded(tmp_path / "s", (0, 254, 255, 3))
    labels = store.masks[:2]
    for pixels in (500, 10**6):
        with pytest.raises(ZeroDivisionError):
            grow(store, [0, 1], BANDS, statistics(store), pixels=pixels)
        x, y = seen[-2:]
        n = min(pixels, (labels != 255).sum())
        assert x.shape == (n, 25) and y.shape == (n,)
        shares = [np.isin(labels, code).sum() / (labels != 255).sum() for code in (0, 254, 3)]
        np.testing.assert_allclose([(y == k).mean() for k in (0, 1, 3)], shares, atol=0.06 if n == 500 else 1e-9)


def test_classes_without_a_label_are_all_but_impossible(tmp_path):
    store = coded(tmp_path / "s", (0, 254, 0, 255))
    model = grow(store, range(3), BANDS, statistics(store), **SMALL)
    probs = model(torch.randn(1, 5, 20, 20)).softmax(1)
    assert (probs[:, 2:] <= 1e-3).all() and (probs[:, :2].sum(1) > 0.99).all()


def test_a_scene_is_mapped_as_its_tiles_are(run, tmp_path):
    values, classes, valid = made_up(32, 32, seed=9)
    bundle = ModelBundle.load(run[0] / "best.safetensors")
    scene = write_raster(tmp_path / "s.tif", values, bands=BANDS, nodata=0)
    with TileWriter(tmp_path / "t", BANDS, 32, "uint16", "test") as writer:
        writer.add(values, classes, valid=valid, scene="s")
    tile = next(predict_tiles(bundle, TileStore(tmp_path / "t"))).classes
    with rasterio.open(predict_scene(bundle, scene, tmp_path / "maps", force=True)["files"]["classes"]) as file:
        np.testing.assert_array_equal(file.read(1), np.where(valid, tile, 255))


@pytest.mark.slow
def test_forest_and_network_are_calibrated_as_one_ensemble(run, tmp_path):
    store = run[1]
    forest = crossval(recipe(), store, tmp_path / "forest")
    shown = ("predict.views=true", "predict.scales=[0.5, 1.0]")
    network = crossval(tiny_recipe("train.epochs=1", *shown), store, tmp_path / "network")
    calibrate([forest, network], tmp_path / "both.yaml")
    both = Ensemble.load([tmp_path / "both.yaml"])
    assert len(both.predict.passes) == 16
    assert {m.bundle.arch for m in both.members} == {"forest", "unet"} and len(both.members) == 6
    assert -1 <= evaluate(both, make_store(tmp_path / "other", seed=5))["mcc"] <= 1
    one = [Ensemble.of(ModelBundle.load(p / "fold0/best.safetensors")) for p in (forest, network)]
    pair = Ensemble.load([p / "fold0/best.safetensors" for p in (forest, network)])
    assert pair.predict == both.predict
    alone = [next(predict_tiles(e, store, [0])).probs for e in one]
    np.testing.assert_allclose(next(predict_tiles(pair, store, [0])).probs, np.mean(alone, 0), atol=1e-6)
    scene = write_raster(tmp_path / "s.tif", made_up(seed=0)[0], bands=BANDS, nodata=0)
    assert predict_scene(both, scene, tmp_path / "maps", force=True)["files"]["classes"]


def refused(error, match, made, *args, **kwargs):
    with pytest.raises(error, match=match) as caught:
        finetune(made, *args, fold=0, **kwargs)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)


def test_what_it_cannot_be_grown_of_is_refused_and_nothing_is_left(run, tmp_path):
    path, store = run
    out = tmp_path / "run"
    weights = path / "best.safetensors"
    refused(RecipeError, "arch=forest: starts from no weights", recipe(), store, out, weights=weights)
    refused(RecipeError, "'forest': trees is 0; use a whole", recipe("model.options.trees=0"), store, out)
    refused(RecipeError, "no option treez.*did you mean 'trees'", recipe("model.options.treez=9"), store, out)
    refused(RecipeError, "no option scale", recipe("model.scale=0.5"), store, out)
    for name, codes, said in (
        ("ice", (254, 254, 1, 255), "ice: the training tiles have no label but glacier; a forest needs two"),
        ("none", (255,) * 4, "none"),
    ):
        refused(DataError, said, recipe(), coded(tmp_path / name, codes), out)
    assert not out.exists()
    with pytest.raises(RecipeError, match="'forest': is not trained by gradients"):
        glacier_learner(GlacierDataLoaders.from_store(store, 0, folds=3), "forest")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("branches", lambda v: v.fill_(0)),  # round in circles
        ("branches", lambda v: v.sub_(10**6)),
        ("branches", lambda v: v[:, 1:]),
        ("roots", lambda v: v.fill_(10**6)),
        ("roots", lambda v: v[:0]),
        ("feature", lambda v: v.fill_(25)),
        ("threshold", lambda v: v[1:]),
        ("shares", lambda v: v[1:]),
    ],
)
def test_a_bundle_of_trees_that_lead_astray_is_refused(run, tmp_path, name, change):
    bundle = ModelBundle.load(run[0] / "best.safetensors")
    weights = {**bundle.weights, name: change(bundle.weights[name].clone())}
    replace(bundle, weights=weights).save(tmp_path / "b.safetensors")
    with pytest.raises(BundleError, match="b.safetensors: damaged.*forest"):
        ModelBundle.load(tmp_path / "b.safetensors")


def test_it_maps_any_classes():
    assert build_model("forest", ["red"], ("rock", "ice"))(torch.ones(1, 1, 3, 3)).shape == (1, 2, 3, 3)
