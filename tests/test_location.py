"""The place of a scene, followed from its grid to a map, by every road on which a model may meet it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from fastai.callback.progress import ProgressCallback
from rasterio.transform import from_origin
from scenes import BANDS, TINY, made_up, make_store, tiny_recipe, write_raster

from glacier_fastai.bands import LOCATION
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.channels import channels_of
from glacier_fastai.data.scenes.opening import open_scene
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.errors import BundleError, DataNote
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.calibrate import calibrate
from glacier_fastai.model.ensemble import Ensemble, Member
from glacier_fastai.model.evaluate import evaluate, predict_tiles
from glacier_fastai.model.registry import build_model
from glacier_fastai.predict.scene import Wanted, predict_scene
from glacier_fastai.predict.source import SceneSource
from glacier_fastai.predict.submission import write_submission
from glacier_fastai.recipe import PredictRecipe
from glacier_fastai.show.interpret import GlacierInterpretation
from glacier_fastai.train.learner import glacier_learner
from glacier_fastai.train.run import crossval

SMALL = {"width": 8, "blocks": 1, "image_size": 64}
TAKEN = ("red", "latitude", "swir1", "longitude")
VIEWS = PredictRecipe(views=True, scales=(1.0, 0.5))


def bundle(arch="glavitu", bands=TAKEN, **options):
    """A model that was not trained, to which places make a difference."""
    torch.manual_seed(0)
    model = build_model(arch, bands, **(options or SMALL))
    if getattr(model, "location", None) is not None:
        torch.nn.init.normal_(model.location.layers[4].bias, 0, 0.3)
        torch.nn.init.normal_(model.location.layers[3].weight)
    mean, std = ([place if band in LOCATION else value for band in bands] for place, value in ((0, 5e3), (57.3, 2e3)))
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("auxiliary")}
    return ModelBundle(
        weights, arch, {**model.built_as[1], **({"auxiliary": 0} if arch == "glavitu" else {})}, bands, mean, std
    )


@pytest.fixture
def scene(tmp_path):
    return write_raster(tmp_path / "scene.tif", made_up(64, 64)[0], nodata=0, bands=BANDS)


def mapped(model, scene, out, window=64):
    made = predict_scene(model, scene, out, Wanted("float32", window=window), force=True)
    with rasterio.open(made["files"]["probabilities"]) as file:
        return file.read()


def both(predict=VIEWS):
    unet = bundle("unet", BANDS, encoder=TINY)
    return Ensemble((Member(bundle()), Member(unet, 2.0)), predict)


@pytest.mark.parametrize("model", [bundle, both], ids=["one", "ensemble with a U-Net, views, scales"])
def test_the_map_of_a_scene_is_that_of_its_tile(model, scene, tmp_path):
    label = write_raster(tmp_path / "label.tif", made_up(64, 64)[1][None], nodata=255)
    store = prepare_scenes([scene], tmp_path / "store", labels=[label], tile_size=64)
    (found,) = predict_tiles(model(), store)
    want, valid = mapped(model(), scene, tmp_path / "maps"), made_up(64, 64)[2]
    np.testing.assert_array_equal(found.probs[:, valid], want[:, valid])
    moved = from_origin(500_000, -5_000_000, 30, 30)
    away = write_raster(tmp_path / "away.tif", made_up(64, 64)[0], nodata=0, bands=BANDS, transform=moved)
    other = mapped(model(), away, tmp_path / "away")
    assert np.abs(other - want)[:, valid].max() > 0.01
    small = mapped(model(), scene, tmp_path / "small", window=32)  # windows of several strips see other parts
    assert np.isfinite(small[:, valid]).all()


def test_rows_and_windows_of_a_scene_know_their_place(scene, tmp_path):
    mask = write_raster(tmp_path / "mask.tif", np.zeros((1, 64, 64), np.uint8))
    with open_scene(scene, mask=mask) as opened:
        source = SceneSource(opened, channels_of(TAKEN))
        whole = source.read(0, 64)
        for row in (0, 20, 63):
            np.testing.assert_array_equal(source.read(row, 1), whole[:, row : row + 1])
        assert np.unique(whole[1][~np.isnan(whole[1])]).size > 60  # latitudes
        image, _ = source.behind(30, 10, 16)
        np.testing.assert_array_equal(image[TAKEN.index("longitude")], whole[3, 30:46, 10:26])


def test_a_scene_in_degrees_is_where_the_same_scene_in_metres_is(scene, tmp_path):
    want = mapped(bundle(), scene, tmp_path / "metres")
    degrees = from_origin(87.0, 28.0250, 30 / 98_000, 30 / 110_800)
    turned = write_raster(
        tmp_path / "degrees.tif", made_up(64, 64)[0], nodata=0, bands=BANDS, crs="EPSG:4326", transform=degrees
    )
    valid = made_up(64, 64)[2]
    np.testing.assert_allclose(mapped(bundle(), turned, tmp_path / "d")[:, valid], want[:, valid], atol=1e-3)


def test_a_scene_that_is_nowhere_is_mapped_as_one_of_an_unknown_place_and_said(scene, tmp_path):
    here = 'ENGCRS["here",EDATUM["here"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
    nowhere = write_raster(tmp_path / "n.tif", made_up(64, 64)[0], nodata=0, bands=BANDS, crs=here)
    with pytest.warns(DataNote, match=r"n\.tif: lies nowhere on the Earth by its CRS, so the models do not know where"):
        found = mapped(bundle(), nowhere, tmp_path / "maps")
    values, _, valid = made_up(64, 64)
    image = np.stack([*values, *np.zeros((2, 64, 64), np.uint16)])
    zero = write_raster(tmp_path / "z.tif", image, nodata=None, bands=(*BANDS, *LOCATION))
    np.testing.assert_array_equal(mapped(bundle(), zero, tmp_path / "zero")[:, valid], found[:, valid])
    assert "lies nowhere" in json.loads((tmp_path / "maps" / "n_prediction.json").read_text())["notes"][0]


def test_tiles_without_a_place_are_scored_and_that_is_said(tmp_path):
    store = make_store(tmp_path / "s")
    with pytest.warns(DataNote, match="2 of 2 tiles have no place on the Earth"):
        result = evaluate(bundle(), store, [0, 5], force=True)
    assert "have no place" in " ".join(result["notes"])


def test_a_learner_shows_predicts_and_takes_images_of_a_known_and_an_unknown_place(tmp_path):
    store = make_store(tmp_path / "s", placed=True)
    dls = GlacierDataLoaders.from_store(store, 0, 4, bands=TAKEN, folds=3)
    learn = glacier_learner(dls, "glavitu", seed=0, **SMALL)
    learn.remove_cbs(ProgressCallback)
    with learn.no_logging():
        learn.fit(1, 1e-3)
    learn.show_results()
    i = int(dls.valid_tiles[0])
    image, want = dls.store.read(i, dls.store.band_index(TAKEN)), learn.predict(i)[2]
    torch.testing.assert_close(torch.as_tensor(learn.predict(image)[2]), torch.as_tensor(want), rtol=1e-4, atol=1e-5)
    (found,) = predict_tiles(ModelBundle.from_learner(learn), store, [i])
    np.testing.assert_allclose(found.probs, np.asarray(want), rtol=1e-3, atol=1e-4)
    image[[1, 3]] = np.where(np.isnan(image[0]), np.nan, 0)
    assert torch.as_tensor(learn.predict(image)[2]).isfinite().all()


@pytest.mark.slow
def test_a_cross_validation_with_places_calibrates_beside_that_of_a_unet(tmp_path):
    store = make_store(tmp_path / "s", scenes=6, placed=True)
    small = "model={arch: glavitu, width: 8, options: {blocks: 1, image_size: 32}}"
    recipe = tiny_recipe(small, f"bands=[{', '.join(TAKEN)}]", "train.epochs=1")
    one = crossval(recipe, data=store.path, out=tmp_path / "glavitu")
    other = crossval(tiny_recipe("train.epochs=1"), data=store.path, out=tmp_path / "unet")
    calibrate([one, other], tmp_path / "ensemble.yaml")
    ensemble = Ensemble.load([tmp_path / "ensemble.yaml"])
    assert {m.bundle.arch for m in ensemble.members} == {"glavitu", "unet"}
    assert evaluate(ensemble, store)["mcc"] is not None


@pytest.mark.parametrize("method", ["permutation", "occlusion"])
def test_importance_of_the_place_is_that_of_both_its_bands(tmp_path, method):
    store = make_store(tmp_path / "s", placed=True)
    table = GlacierInterpretation(bundle(), store).band_importance(method, 2, tiles=3).set_index("band")
    assert table["drop"]["latitude"] == table["drop"]["longitude"]
    assert table["drop"]["red"] != table["drop"]["latitude"]


def test_what_cannot_know_a_place_says_so(tmp_path):
    unet = bundle("unet", (*BANDS, *LOCATION), encoder=TINY)
    with pytest.raises(BundleError, match="takes latitude, longitude; the competition has"):
        write_submission(Ensemble.of(unet), tmp_path / "sub")
    with pytest.raises(BundleError, match="glavitu.*takes weights of its own bands alone, red, latitude"):
        bundle().load_into(build_model("glavitu", ("red", "swir1"), **SMALL), ("red", "swir1"))
    few = make_store(tmp_path / "few", bands=("blue", "green"), placed=True)
    with pytest.raises(BundleError, match="the bundle needs band red, swir1; here are blue, green"):
        next(predict_tiles(replace(bundle()), few))
