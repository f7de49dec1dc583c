import json

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from contract.models import ModelContract, run_without_epochs
from scenes import BANDS, made_up, make_store, tiny_recipe, write_raster

from glacier_fastai.core.morphology import majority
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.scenes.units import Scaling
from glacier_fastai.data.tiles import TileStore, TileWriter
from glacier_fastai.errors import BundleError, DataError, DataNote, RecipeError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.ensemble import Ensemble
from glacier_fastai.model.evaluate import evaluate, predict_tiles, score_table
from glacier_fastai.model.ratio import RatioThresholds, baseline, find_ratio, score, why_not
from glacier_fastai.model.registry import build_model
from glacier_fastai.predict.scene import predict_scene
from glacier_fastai.predict.submission import write_submission
from glacier_fastai.recipe import load_recipe
from glacier_fastai.show.report import write_report
from glacier_fastai.train.learner import glacier_learner
from glacier_fastai.train.run import crossval, finetune

LEVELS = {  # blue, green, red, swir1 in 1e-4 of reflectance: rock, ice, debris, lake, and ice in shade
    0: (1500, 1700, 2000, 2500),
    1: (7000, 7000, 6800, 900),
    2: (1600, 1800, 2100, 2400),
    3: (1200, 900, 700, 200),
}


class TestContract(ModelContract):
    """It does what every model does, but for what needs a gradient, other bands or other classes."""

    name = "ratio"
    test_any_number_of_bands_and_classes = test_every_parameter_gets_a_gradient = None
    test_it_starts_from_weights_of_other_bands_or_refuses = test_it_trains_frozen_and_thawed = None
    test_no_parameter_is_unused_in_two_processes = None

    def learner(self, store):
        dls = GlacierDataLoaders.from_store(store, 0, bs=4, folds=3)
        return glacier_learner(dls, build_model("ratio", dls.bands))


def numbers(seed, size=64):
    """Return numbers (4, H, W), classes and valid of a landscape in which clean ice is bright, and lakes are dark."""
    _, classes, valid = made_up(size, size, seed=seed)
    noise = np.random.default_rng(seed).integers(-150, 150, (4, size, size))
    values = np.moveaxis(np.array([LEVELS[k] for k in range(4)])[classes], -1, 0) + noise
    return np.where(valid, values, 0).astype(np.uint16), classes, valid


def landscape(path, bands=BANDS[:4], codes=(0, 1, 2, 3), unit="reflectance", scenes=3, seed=0):
    """Write a store of such landscapes, classes under other codes."""
    scaling = [Scaling(1e-4, 0.0, unit)] * len(bands)
    with TileWriter(path, bands, 32, "uint16", "test", scaling=scaling) as writer:
        for s in range(scenes):
            values, classes, valid = numbers(seed + s)
            mask = np.array(codes)[classes]
            for row in (0, 32):
                for col in (0, 32):
                    at = slice(row, row + 32), slice(col, col + 32)
                    tile = values[: len(bands), *at]
                    writer.add(tile, mask[at], valid=valid[at], scene=f"s{s}", row=row, col=col)
    return TileStore(path)


def recipe(*overrides):
    return load_recipe("ratio", ["data.tile_size=32", "data.crop=32", "data.folds=3", *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the ratio, and its store."""
    base = tmp_path_factory.mktemp("ratio")
    store = landscape(base / "store")
    return finetune(recipe("balance.level=pixel", "train.ema=0.9"), store, base / "run", fold=0), store


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A run of a network that learns nothing, and its store."""
    base = tmp_path_factory.mktemp("network")
    store = landscape(base / "store")
    small = tiny_recipe('bands=["red", "blue"]', "train.epochs=1", "train.lr=1e-9")
    with pytest.warns(DataNote, match="does not beat the band ratio: MCC of ice"):
        return finetune(small, store, base / "run", fold=0), store


def by_hand(store, i, found):
    """Return the ratio's map (H, W), by the plain formula, and the filter that maps are cleaned with."""
    band = dict(zip(store.bands, store.read(i).astype(float), strict=True))
    ratio = {"red_swir1": "red", "nir_swir1": "nir", "ndsi": "green"}[found.index]
    cut = (1 + found.threshold) / (1 - found.threshold)
    with np.errstate(invalid="ignore"):
        said = (band[ratio] >= cut * band["swir1"]) & (band["blue"] >= found.light)
    return majority(np.where(np.isnan(band["blue"]), 255, said).astype(np.uint8), 1)


def test_a_run_is_a_run_like_others_without_an_epoch(run, tmp_path):
    path, store = run
    bundle, record = run_without_epochs(path, store)
    assert bundle.metrics["ice_mcc"] == record["ice_mcc"] > 0.6 and "ratio_ice_mcc" not in record
    assert "Ratio(" in (card := (path / "MODEL_CARD.md").read_text()) and "flatters" not in card
    write_report([path], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert 'class="notes"' not in page and "No band ratio beside" not in page
    with pytest.raises(BundleError, match="is a ratio .*a submission carries a unet"):
        write_submission(Ensemble.of(bundle), tmp_path / "sub")


def test_its_maps_are_those_of_the_plain_formula_and_thresholds_of_training_tiles(run, tmp_path):
    path, store = run
    bundle = ModelBundle.load(path / "best.safetensors")
    train = np.flatnonzero(bundle.trained_on.knows(store, "train"))
    found = find_ratio(store, train, bundle.bands)
    for i, classes, probs in predict_tiles(bundle, store):
        np.testing.assert_array_equal(classes, by_hand(store, i, found))
        ice = probs[1][classes == 1]
        np.testing.assert_allclose(ice, found.called, atol=2e-3)
    values, _, _ = numbers(7)
    scene = write_raster(tmp_path / "s.tif", values, bands=BANDS[:4], nodata=0)
    with rasterio.open(scene, "r+") as file:
        file.scales = [1e-4] * 4
    with rasterio.open(predict_scene(bundle, scene, tmp_path / "maps")["files"]["classes"]) as file:
        assert set(np.unique(file.read(1))) == {0, 1, 255}


def test_every_fold_and_all_tiles_can_be_fitted(run, tmp_path):
    out = crossval(recipe(), run[1], tmp_path / "cv")
    assert len(pd.read_csv(out / "crossval.csv")) == 3 and (out / "ensemble.yaml").exists()
    bundle = ModelBundle.load(finetune(recipe(), run[1], tmp_path / "all", fold=None) / "best.safetensors")
    assert bundle.metrics == {} and bundle.trained_on.fold is None


def test_ice_of_unknown_kind_is_ice_and_what_has_no_label_counts_for_nothing(tmp_path):
    plain = landscape(tmp_path / "a", codes=(0, 1, 1, 0))
    found = find_ratio(plain, range(12))
    assert find_ratio(landscape(tmp_path / "b", codes=(0, 254, 2, 3)), range(12)) == found
    unlabelled = landscape(tmp_path / "c", codes=(0, 254, 255, 255))
    other = find_ratio(unlabelled, range(12))
    assert other.called == 1 and other.missed == 0 and score(other, unlabelled, range(12)) > 0.95
    assert 0 < found.missed < 0.5 < found.called <= 1  # debris is not found


def test_the_index_is_the_best_that_the_bands_allow_or_the_one_that_is_wanted(tmp_path):
    store = landscape(tmp_path / "s")
    best = find_ratio(store, range(12))
    scores = {}
    for index in ("red_swir1", "ndsi"):
        found = find_ratio(store, range(12), index=index)
        assert found.index == index and found.shade == "blue"
        scores[index] = score(found, store, range(12))
    assert best.index in scores
    assert find_ratio(store, range(12), bands=["swir1", "green"]).bands == ("green", "swir1")  # green tells shade, too
    finetune(recipe("model.options.index=ndsi"), store, tmp_path / "run", fold=0)
    model = ModelBundle.load(tmp_path / "run" / "best.safetensors").model()
    assert str(model).startswith("Ratio(ndsi >= ")


def refused(error, match, made, *args, **kwargs):
    with pytest.raises(error, match=match) as caught:
        finetune(made, *args, fold=0, **kwargs)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)


def test_what_it_cannot_be_had_of_is_refused_and_nothing_is_left(run, tmp_path):
    path, store = run
    out = tmp_path / "run"
    dn = landscape(tmp_path / "dn", unit="dn")
    said = (
        r"dn: blue, green, red, swir1 are in unknown units \(dn\).*needs reflectance; prepare it with scale and offset"
    )
    refused(DataError, said, recipe(), dn, out)
    refused(
        RecipeError,
        "'ratio': needs swir1 and red, nir or green; the bands are blue, red",
        recipe("bands=[blue, red]"),
        store,
        out,
    )
    refused(RecipeError, "index nir_swir1 needs nir and swir1", recipe("model.options.index=nir_swir1"), store, out)
    refused(RecipeError, "no index 'ndzi'.*did you mean 'ndsi'", recipe("model.options.index=ndzi"), store, out)
    refused(
        RecipeError,
        "arch=ratio: starts from no weights; leave out",
        recipe(),
        store,
        out,
        weights=path / "best.safetensors",
    )
    refused(DataError, "hold no ice, so no threshold", recipe(), landscape(tmp_path / "r", codes=(0, 0, 0, 3)), out)
    refused(DataError, "hold nothing but ice, so", recipe(), landscape(tmp_path / "i", codes=(1, 1, 2, 2)), out)
    assert not out.exists()
    with pytest.raises(RecipeError, match="'ratio': is not trained by gradients"):
        glacier_learner(GlacierDataLoaders.from_store(store, 0, folds=3), "ratio")
    with pytest.raises(RecipeError, match="maps background, glacier, debris, lake, not a, b"):
        build_model("ratio", BANDS, ("a", "b"))


def test_thresholds_that_tell_nothing_are_refused(tmp_path):
    same = np.full((4, 32, 32), 3000)
    with TileWriter(tmp_path / "s", BANDS[:4], 32, "uint16", "t", scaling=[Scaling(1e-4, 0.0, "reflectance")] * 4) as w:
        w.add(same, np.arange(1024).reshape(32, 32) % 2, scene="a")
    store = TileStore(tmp_path / "s")
    with pytest.raises(DataError, match="s: no threshold of red_swir1, ndsi tells ice from the rest"):
        find_ratio(store, [0])
    assert baseline(store, [0]) is None


@pytest.mark.slow
def test_a_network_has_the_ratio_of_its_training_tiles_beside_it(network, tmp_path):
    path, store = network
    bundle, record = ModelBundle.load(path / "best.safetensors"), json.loads((path / "metrics.json").read_text())
    train, valid = (np.flatnonzero(bundle.trained_on.knows(store, part)) for part in ("train", "valid"))
    assert bundle.baseline == find_ratio(store, train) != find_ratio(store, valid)
    total = np.zeros((2, 2), int)
    for i in valid:
        known = store.masks[i] != 255
        np.add.at(
            total, (np.isin(store.masks[i], (1, 2))[known].astype(int), by_hand(store, i, bundle.baseline)[known]), 1
        )
    (tn, fp), (fn, tp) = total.tolist()
    mcc = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert record["ice_mcc"] < record["ratio_ice_mcc"] == pytest.approx(mcc)
    assert "does not beat the band ratio" in record["notes"][0]
    write_report([path], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert f"ice MCC, band ratio</th><td>{mcc:.3f}</td>" in page and "No band ratio beside" not in page
    other = landscape(tmp_path / "other", seed=9)
    result = evaluate(bundle, other)
    assert result["ratio_ice_mcc"] == score(bundle.baseline, other, range(12))  # fitted on nothing there
    assert f"ice MCC, band ratio {result['ratio_ice_mcc']:.4f}" in score_table(result)


@pytest.mark.slow
def test_where_there_is_no_ratio_only_the_report_says_so(trained, network, tmp_path):
    bundle = ModelBundle.load(trained[0] / "best.safetensors")
    assert bundle.baseline is None
    assert "ratio_ice_mcc" not in (result := evaluate(bundle, trained[1]))
    assert not any("ratio" in note for note in result["notes"])
    assert "ratio" not in score_table(result)
    write_report([trained[0]], tmp_path / "r.html")
    assert (
        "No band ratio beside run: blue, green, red, swir1 are in unknown units (dn)"
        in (tmp_path / "r.html").read_text()
    )
    assert "it needs swir1" in why_not({"blue": "reflectance", "red": "reflectance"})
    known = ModelBundle.load(network[0] / "best.safetensors")
    assert "ratio_ice_mcc" not in evaluate(known, landscape(tmp_path / "s", bands=("blue", "green", "red")))
    assert score(known.baseline, make_store(tmp_path / "dn"), [0]) is None


def test_a_bundle_with_an_impossible_baseline_is_refused(network, tmp_path):
    bundle = ModelBundle.load(network[0] / "best.safetensors")
    object.__setattr__(bundle, "baseline", RatioThresholds.model_construct(index="red", threshold=0.1))
    bundle.save(tmp_path / "b.safetensors")
    with pytest.raises(BundleError, match="b.safetensors: damaged"):
        ModelBundle.load(tmp_path / "b.safetensors")


def test_pixels_beside_nodata_follow_those_with_data():
    model = build_model("ratio", BANDS[:4], index="ndsi")
    x = torch.zeros(1, 4, 3, 3)
    x[:, :, 1, 1] = torch.tensor([0.5, 0.5, 0.5, 0.1])
    assert model(x).argmax(1)[0, 1, 1] == 1
    x[:, :, 0] = x[:, :, 1, :1] = torch.tensor([0.1, 0.1, 0.1, 0.4])[:, None]
    assert model(x).argmax(1)[0, 1, 1] == 0
