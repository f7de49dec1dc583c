"""The same ground, however its numbers are written, is mapped alike; what is of another kind is refused or said."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from scenes import BANDS, made_up, tiny_recipe, write_raster

from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.errors import BundleError, DataError, DataNote
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.evaluate import evaluate
from glacier_fastai.predict.scene import Wanted, predict_scene
from glacier_fastai.train.run import finetune

VALUES, CLASSES, VALID = made_up(96, 96)
REFLECTANCE = np.concatenate([VALUES[:4] / 1e4, 250 + VALUES[4:] / 200]).astype("float32")
LANDSAT = ([2.75e-5] * 4 + [0.00341802], [-0.2] * 4 + [149.0])
SENTINEL = ([1e-4] * 4 + [0.01], [0.0] * 5)
SENTINEL_2022 = ([1e-4] * 4 + [0.01], [-0.1] * 4 + [0.0])


def written(path, how=None, tags=False, dtype="uint16", **kwargs):
    """Write the scene in units, or in the numbers of a product, with or without tags."""
    if how is None:
        return write_raster(path, np.where(VALID, REFLECTANCE, np.nan), bands=BANDS, nodata=np.nan, **kwargs)
    scale, offset = (np.reshape(v, (5, 1, 1)) for v in how)
    numbers = np.where(VALID, np.rint((REFLECTANCE - offset) / scale), 0).astype(dtype)
    write_raster(path, numbers, bands=BANDS, nodata=0, **kwargs)
    if tags:
        with rasterio.open(path, "r+") as file:
            file.scales, file.offsets = how
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of reflectance and kelvin with an index, and its store."""
    base = tmp_path_factory.mktemp("units")
    label = write_raster(base / "l.tif", np.where(VALID, CLASSES, 255)[None].astype("u1"), nodata=255)
    store = prepare_scenes([written(base / "s.tif")], base / "tiles", labels=[label], tile_size=32)
    recipe = tiny_recipe('bands=["blue", "green", "swir1", "thermal", "ndsi"]', "train.epochs=6", "data.spatial=false")
    run = finetune(recipe, store, base / "run", fold=0)
    return ModelBundle.load(run / "best.safetensors"), store, label


def mapped(bundle, scene, out, **kwargs):
    made = predict_scene(bundle, scene, out, **kwargs)
    with rasterio.open(made["files"]["classes"]) as file:
        return file.read(1)


def test_a_model_of_units_maps_every_spelling_of_them_alike(trained, tmp_path):
    bundle, _, _ = trained
    want = mapped(bundle, written(tmp_path / "f.tif"), tmp_path / "m")
    assert len(np.unique(want)) > 2
    spellings = {
        "tags": ({"how": LANDSAT, "tags": True}, {}),
        "word": ({"how": LANDSAT}, {"scale": LANDSAT[0], "offset": LANDSAT[1]}),
        "before": ({"how": SENTINEL}, {"scale": SENTINEL[0]}),
        "since": ({"how": SENTINEL_2022}, {"scale": SENTINEL_2022[0], "offset": SENTINEL_2022[1]}),
        "names": ({"how": SENTINEL}, {"scale": {**dict.fromkeys(BANDS[:4], 1e-4), "thermal": 0.01}}),
    }
    for name, (how, read) in spellings.items():
        got = mapped(bundle, written(tmp_path / f"{name}.tif", **how), tmp_path / "m", **read)
        assert (got == want).mean() > 0.995, name
        record = json.loads((tmp_path / "m" / f"{name}_prediction.json").read_text())
        assert record["units"] == ["reflectance"] * 4 + ["kelvin"]
        assert record["notes"] == []


def test_stores_of_every_spelling_hold_the_same_values(trained, tmp_path):
    _, store, label = trained
    for name, how, dtype in (("tags", LANDSAT, "uint16"), ("signed", SENTINEL, "int16")):
        scene = written(tmp_path / f"{name}.tif", how, tags=True, dtype=dtype)
        same = prepare_scenes([scene], tmp_path / name, labels=[label], tile_size=32)
        assert same.units == store.units
        np.testing.assert_allclose(same.read(2), store.read(2), atol=6e-3)
        np.testing.assert_allclose(same.statistics(BANDS), store.statistics(BANDS), rtol=1e-3)
    pair = [written(tmp_path / "a.tif", LANDSAT, tags=True), written(tmp_path / "b.tif", SENTINEL, tags=True)]
    both = prepare_scenes(pair, tmp_path / "both", labels=[label, label], tile_size=32)
    assert both.images.dtype == np.float32  # no scale fits both
    np.testing.assert_allclose(both.read(0), both.read(len(both) // 2), atol=8e-3)


def test_mixed_units_are_refused_and_leave_nothing(trained, tmp_path):
    _, _, label = trained
    pair = [written(tmp_path / "a.tif"), written(tmp_path / "b.tif", LANDSAT)]
    with pytest.raises(DataError, match=r"b\.tif: band blue is in dn, but in reflectance in .*a\.tif"):
        prepare_scenes(pair, tmp_path / "out", labels=[label, label], tile_size=32)
    assert not (tmp_path / "out").exists()


def test_numbers_for_a_model_of_units_are_refused_before_anything_is_written(trained, tmp_path):
    bundle, _, _ = trained
    with pytest.raises(BundleError, match=r"s\.tif: .*dn.*trained on.*reflectance.*scale and offset"):
        mapped(bundle, written(tmp_path / "s.tif", LANDSAT), tmp_path / "m", force=True)
    assert not (tmp_path / "m").exists()


def test_values_far_away_are_refused_or_forced_and_then_said(trained, tmp_path):
    bundle, store, label = trained
    values = np.where(VALID, np.concatenate([REFLECTANCE[:4] + 1.2, REFLECTANCE[4:] + 60]), np.nan)
    far = write_raster(tmp_path / "far.tif", values, bands=BANDS)
    with pytest.raises(BundleError, match=r"far\.tif: values far.*unless it is forced"):
        mapped(bundle, far, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    with pytest.warns(DataNote, match="values far"):
        mapped(bundle, far, tmp_path / "m", force=True)
    assert "values far" in json.loads((tmp_path / "m" / "far_prediction.json").read_text())["notes"][0]
    other = prepare_scenes([far], tmp_path / "far", labels=[label], tile_size=32)
    with pytest.raises(BundleError, match="values far"):
        evaluate(bundle, other)
    assert evaluate(bundle, other, statistics="scene")["mcc"] == pytest.approx(
        evaluate(bundle, store, statistics="scene")["mcc"], abs=0.15
    )


def test_a_scenes_own_statistics_are_the_same_for_maps_and_scores(trained, tmp_path):
    bundle, store, _ = trained
    scores = evaluate(bundle, store, statistics="scene")
    got = mapped(bundle, written(tmp_path / "s.tif"), tmp_path / "m", wanted=Wanted(statistics="scene"))
    assert scores["mcc"] > 0.3
    known = VALID & (got != 255)
    agree = (got[known] == CLASSES[known]).mean()
    assert agree == pytest.approx(np.diag(scores["confusion"]).sum() / np.sum(scores["confusion"]), abs=0.1)


def test_a_bundle_knows_what_it_was_trained_on(trained):
    bundle, store, _ = trained
    assert bundle.profile.units == store.units
    assert bundle.profile.pixel_size == pytest.approx(30, rel=1e-3)
    assert Path(bundle.trained_on.path).name == "tiles"
