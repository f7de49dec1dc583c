import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pyproj import CRS, Transformer
from scenes import BANDS, made_up, make_store, normalised, tiny_recipe
from sklearn.metrics import matthews_corrcoef

from glacier_fastai.core.calibration import expected_calibration_error, reliability
from glacier_fastai.data.tiles import TileStore, TileWriter
from glacier_fastai.errors import BundleError, DataError, DataNote
from glacier_fastai.model.bundle import ModelBundle, TrainedOn, trained_ground
from glacier_fastai.model.ensemble import Ensemble
from glacier_fastai.model.evaluate import evaluate, predict_tiles, score_table, tiles_to_score
from glacier_fastai.train.run import finetune


@pytest.fixture
def bundle(trained):
    return ModelBundle.load(trained[0] / "best.safetensors")


def predictions(bundle, store, i):
    x = normalised(store.read(i, store.band_index(bundle.bands)), bundle.mean, bundle.std)
    with torch.no_grad():
        return bundle.model()(torch.from_numpy(x)[None]).argmax(1)[0].numpy()


def test_scores_equal_scikit_learn(bundle, trained):
    store = trained[1]
    result = evaluate(bundle, store)
    pairs = []
    for i in range(len(store)):
        y, p = store.masks[i], predictions(bundle, store, i)
        pairs.append((y[y != 255], p[y != 255]))
    y, p = (np.concatenate(v) for v in zip(*pairs, strict=True))
    assert result["mcc"] == pytest.approx(matthews_corrcoef(y, p), abs=1e-9)
    assert result["ice_mcc"] == pytest.approx(matthews_corrcoef(np.isin(y, (1, 2)), np.isin(p, (1, 2))), abs=1e-9)
    assert result["mcc_image_mean"] == pytest.approx(np.mean([matthews_corrcoef(*pair) for pair in pairs]), abs=1e-9)
    assert {k: v["pixels"] for k, v in result["classes"].items()} == {
        n: int((y == k).sum()) for k, n in enumerate(bundle.classes)
    }
    assert set(result) == {
        *("mcc", "ice_mcc", "mean_iou", "ice_iou", "mcc_image_mean", "ece", "classes", "ice", "confusion", "notes")
    }


def test_bands_are_found_by_name(bundle, trained, tmp_path):
    swapped = make_store(tmp_path / "s", bundle.bands[::-1])
    result = evaluate(bundle, swapped)
    assert np.array(result["confusion"]).sum() == swapped.class_counts().sum()
    with pytest.raises(BundleError, match="the bundle needs band swir1, thermal; here are blue, green, red"):
        evaluate(bundle, make_store(tmp_path / "t", ("blue", "green", "red")))


def test_a_bundle_is_scored_on_the_maps_it_makes_post_processed_where_its_recipe_says_so(bundle, trained):
    store = trained[1]
    cleaned = replace(bundle, recipe={"predict": {"postprocess": {"smooth": 2}}})
    result = evaluate(cleaned, store)
    assert result["confusion"] != evaluate(bundle, store)["confusion"]
    by_hand = np.zeros((4, 4), int)
    for i, classes, _ in predict_tiles(cleaned, store):
        known = store.masks[i] != 255
        np.add.at(by_hand, (store.masks[i][known], classes[known]), 1)
    np.testing.assert_array_equal(result["confusion"], by_hand)


def test_values_under_nodata_do_not_matter(bundle, trained):
    store = trained[1]
    image = store.read(0)
    x = normalised(image, bundle.mean, bundle.std)
    assert np.isnan(image).any()
    assert (x[:, np.isnan(image[0])] == 0).all()


def test_other_classes_are_not_taken_for_ours(bundle, trained):
    with pytest.raises(BundleError, match="has classes a, b, c, d; maps are of background, glacier"):
        evaluate(replace(bundle, classes=("a", "b", "c", "d")), trained[1])


def test_without_labels_there_is_nothing_to_score(bundle, trained):
    with pytest.raises(DataError, match="no labelled pixel"):
        evaluate(bundle, trained[1], tiles=[])


def test_on_its_own_store_only_unseen_tiles_are_scored(bundle, trained, tmp_path):
    store = trained[1]
    assert bundle.trained_on.hash == store.fingerprint()
    tiles, why = tiles_to_score(bundle, store)
    assert (len(tiles), why) == (4, "the 4 tiles of fold 0")
    tiles, why = tiles_to_score(bundle, store, 1)
    assert why == "the 4 tiles of fold 1; the bundle was trained on 4 of them"
    tiles, why = tiles_to_score(bundle, store, "all")
    assert (len(tiles), why) == (12, "all 12 tiles, and the bundle was trained on 8 of them")
    other = placed_store(tmp_path / "o", range(12))
    tiles, why = tiles_to_score(bundle, other)
    assert (len(tiles), why) == (12, "all 12 tiles")
    for fold in (3, -1):
        with pytest.raises(DataError, match=f"fold {fold}: there are folds 0 to 2"):
            tiles_to_score(bundle, store, fold)
    with pytest.raises(DataError, match="fold first: use a number from 0 to 2, all or test"):
        tiles_to_score(bundle, store, "first")


def test_tiles_that_were_trained_on_are_never_scored_without_a_word(bundle, trained):
    with pytest.warns(DataNote, match="8 of 12 tiles, or the ground they lie on, were trained on"):
        result = evaluate(bundle, trained[1])
    assert any("8 of 12 tiles" in line for line in result["notes"])
    own = evaluate(bundle, trained[1], tiles_to_score(bundle, trained[1])[0])
    assert not any("trained on, so" in line for line in own["notes"])


def test_other_folds_than_those_of_the_training_are_refused(bundle, trained):
    assert len(bundle.trained_on.folds_hash) == 16
    changed = replace(bundle, trained_on=bundle.trained_on.model_copy(update={"folds_hash": "0" * 16}))
    with pytest.raises(DataError, match=r"trained on other folds of these tiles.*run's folds\.csv names; leave out"):
        tiles_to_score(changed, trained[1], 1)
    assert (
        tiles_to_score(changed, trained[1])[1] == "the 4 tiles of fold 0"
    )  # known by name, whatever the folds are now


def test_the_test_tiles_of_the_source_are_scored_on_demand(bundle, trained, tmp_path):
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "test") as writer:
        for s, split in enumerate(["test", "train", "valid", "test"]):
            writer.add(*made_up(32, 32, seed=s)[:2], scene=f"s{s}", split=split)
    tiles, why = tiles_to_score(bundle, TileStore(tmp_path / "s"), "test")
    assert (tiles.tolist(), why) == ([0, 3], "the 2 test tiles")
    with pytest.raises(DataError, match="has no test tiles"):
        tiles_to_score(bundle, trained[1], "test")


def test_ice_of_unknown_kind_counts_in_the_scores_of_ice_alone(bundle, tmp_path):
    scores = {}
    for code in (254, 255):
        with TileWriter(tmp_path / str(code), BANDS, 32, "uint16", "test") as writer:
            values, classes, valid = made_up(32, 32)
            classes[:, :16] = code
            writer.add(values, classes, valid=valid, scene="s")
        store = TileStore(tmp_path / str(code))
        if code == 254:
            with pytest.warns(DataNote, match="ice of unknown kind counts in the scores of ice"):
                scores[code] = evaluate(bundle, store)
        else:
            scores[code] = evaluate(bundle, store)
    ours, plain = scores[254], scores[255]
    apart = ("ice_mcc", "ice_iou", "ice", "confusion", "ece", "notes")
    assert {k: v for k, v in ours.items() if k not in apart} == {k: v for k, v in plain.items() if k not in apart}
    store = TileStore(tmp_path / "254")
    (found,) = predict_tiles(bundle, store)
    truth = np.where(store.masks[0] == 255, 255, np.isin(store.masks[0], (1, 2)))
    truth[:, :16] = np.where(valid[:, :16], 1, 255)
    known = truth != 255
    want = matthews_corrcoef(truth[known], np.isin(found.classes, (1, 2))[known])
    assert ours["ice_mcc"] == pytest.approx(want)
    assert ours["confusion"][:4] == plain["confusion"]
    unknown = store.masks[0] == 254
    assert ours["confusion"][4] == np.bincount(found.classes[unknown], minlength=4).tolist()
    merged = np.where(
        unknown, [found.probs[0], found.probs[1:3].sum(0), 0 * found.probs[0], found.probs[3]], found.probs
    )
    table = reliability(merged, np.where(unknown, 1, store.masks[0]), dim=0)
    assert ours["ece"] == pytest.approx(expected_calibration_error(table))


def test_a_model_that_was_never_told_debris_maps_and_scores_all_ice_as_glacier(bundle, trained):
    store, blind = trained[1], replace(bundle, tells_debris=False)
    with pytest.warns(DataNote, match="the model was never told debris from clean ice, so all ice is glacier"):
        result = evaluate(blind, store)
    assert any("none is debris" in n for n in result["notes"])
    assert not np.array(result["confusion"])[:, 2].any()
    assert result["classes"]["debris"]["recall"] == 0
    for told, (i, classes, probs) in zip(predict_tiles(bundle, store), predict_tiles(blind, store), strict=True):
        want = told.probs[[0, 1, 2, 3]]
        want[1] += want[2]
        want[2] = 0
        np.testing.assert_array_equal(probs, want)
        known = store.masks[i] != 255
        np.testing.assert_array_equal(classes[known], want.argmax(0)[known])


def test_tiles_of_nothing_but_ice_of_unknown_kind_have_scores_of_ice_alone(bundle, tmp_path):
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "test") as writer:
        values, _, valid = made_up(32, 32)
        writer.add(values, np.full((32, 32), 254), valid=valid, scene="s")
    store = TileStore(tmp_path / "s")
    result = evaluate(bundle, store)
    (found,) = predict_tiles(bundle, store)
    assert result["ice_iou"] == pytest.approx(np.isin(found.classes[valid], (1, 2)).mean())
    assert (result["mcc_image_mean"], result["mean_iou"]) == (None, None)
    assert 0 <= result["ece"] <= 1
    assert result["ice"]["pixels"] == valid.sum()
    assert "say nothing here" in result["notes"][-1]
    assert "MCC, mean of tiles  -" in score_table(result)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_standardised_values_and_values_as_delivered_are_not_mixed(bundle, trained, tmp_path):
    with TileWriter(tmp_path / "s", BANDS, 32, "float32", "test") as writer:
        writer.info["standardised"] = True
        writer.add(*made_up(32, 32)[:2], scene="s")
    with pytest.raises(BundleError, match="trained on values as delivered, these are already standardised"):
        evaluate(bundle, TileStore(tmp_path / "s"))
    with pytest.raises(BundleError, match="trained on values already standardised, these are as delivered"):
        evaluate(replace(bundle, standardised=True), trained[1])


def test_a_bundle_and_an_ensemble_of_it_have_the_same_scores(bundle, trained):
    assert evaluate(Ensemble.of(bundle), trained[1]) == evaluate(bundle, trained[1])


def test_indices_are_computed_for_whoever_takes_them(trained, tmp_path):
    """A bundle is evaluated on what it can be mapped with."""
    store = trained[1]
    recipe = tiny_recipe("train.epochs=1", "bands=[red, ndsi]")
    bundle = ModelBundle.load(finetune(recipe, store, tmp_path / "run") / "best.safetensors")
    assert bundle.bands == ("red", "ndsi") and bundle.texture is None
    image = store.read(0)
    green, swir1 = image[store.bands.index("green")], image[store.bands.index("swir1")]
    mine = np.stack([image[store.bands.index("red")], (green - swir1) / (green + swir1)])
    with torch.no_grad():
        want = bundle.model()(torch.from_numpy(normalised(mine, bundle.mean, bundle.std))[None]).softmax(1)[0]
    (found,) = predict_tiles(bundle, store, [0])
    np.testing.assert_allclose(found.probs, want, atol=1e-5)
    assert np.array_equal(found.classes == 255, np.isnan(image[0]))


def placed_store(path, tiles, bands=BANDS, labels=0):
    """A store of tiles that have a place, in the order and with the bands wanted."""
    with TileWriter(path, bands, 32, "uint16", "test") as writer:
        for s in tiles:
            values, classes, valid = made_up(32, 32, BANDS, seed=s)
            index = [BANDS.index(b) for b in bands]
            at = {"crs": "EPSG:32645", "transform": (30, 0, 9000 * s, 0, -30, 0)}
            writer.add(values[index], (classes + labels) % 4, valid=valid, scene=f"s{s}", **at)
    return TileStore(path)


def test_training_tiles_are_known_again_in_any_other_store(tmp_path):
    """In another order, with other bands, labels or company: what was trained on is never scored without a word."""
    store = placed_store(tmp_path / "store", range(6))
    run = finetune(tiny_recipe("train.epochs=1", "bands=[red, swir1]"), fold=0, data=store, out=tmp_path / "run")
    bundle = ModelBundle.load(run / "best.safetensors")
    valid = {store.table["id"][i] for i in tiles_to_score(bundle, store)[0]}
    others = {
        "order": placed_store(tmp_path / "order", [5, 2, 0, 4, 1, 3]),
        "bands": placed_store(tmp_path / "bands", range(6), ("red", "swir1", "thermal")),
        "labels": placed_store(tmp_path / "labels", range(6), labels=1),
        "company": placed_store(tmp_path / "company", range(9)),
    }
    for other in others.values():
        tiles, why = tiles_to_score(bundle, other)
        assert {other.table["id"][i] for i in tiles} == valid
        assert why == "the 2 tiles of fold 0"
    train = sorted(set(range(6)) - {int(v[1]) for v in valid})
    some = placed_store(tmp_path / "some", [*train, 7, 8])
    assert tiles_to_score(bundle, some)[1] == "the 2 tiles of 6 that the bundle was not trained on"
    seen = placed_store(tmp_path / "seen", train)
    assert tiles_to_score(bundle, seen)[1] == "all 4 tiles, and the bundle was trained on them: these scores say little"
    assert tiles_to_score(bundle, placed_store(tmp_path / "new", [7, 8, 9]))[1] == "all 3 tiles"


# ground


def cut(path, size, *, scene="s", crs="EPSG:32645", left=500_000.0, pixel=30.0, top=3_100_000.0, n=128):
    """A store of the tiles of a scene of `n` px."""
    values, classes, valid = made_up(n, n, BANDS, nodata=False)
    with TileWriter(path, BANDS, size, "uint16", "test") as writer:
        for row in range(0, n, size):
            for col in range(0, n, size):
                at, where = (slice(row, row + size), slice(col, col + size)), (left + pixel * col, top - pixel * row)
                transform = (pixel, 0, where[0], 0, -pixel, where[1])
                part = {"valid": valid[at], "scene": scene, "row": row, "col": col, "crs": crs, "transform": transform}
                writer.add(values[:, *at], classes[at], **part)
    return TileStore(path)


def trained_on_tiles(bundle, store, train, valid=(), **more):
    """The bundle as if it had been trained on some tiles of a store."""
    keys = store.keys()
    about = TrainedOn(
        train=tuple(keys[i] for i in train),
        valid=tuple(keys[i] for i in valid),
        tile_size=store.size,
        ground=trained_ground(store.ground()[list(train)]),
        **{"fold": 0, **more},
    )
    return replace(bundle, trained_on=about)


ROWS = range(8)  # two of the four rows of tiles


@pytest.fixture
def on_rows(bundle, tmp_path):
    """A bundle that was trained on the northern half of a scene, and validated on the last row of tiles."""
    return trained_on_tiles(bundle, cut(tmp_path / "own", 32), ROWS, range(12, 16))


def test_its_own_tiles_are_known_by_name(on_rows, tmp_path):
    store = TileStore(tmp_path / "own")
    assert tiles_to_score(on_rows, store)[1] == "the 4 tiles of fold 0"
    assert tiles_to_score(on_rows, store, "all")[1] == "all 16 tiles, and the bundle was trained on 8 of them"


@pytest.mark.parametrize(
    "how",
    [
        {"size": 32, "scene": "renamed"},
        {"size": 16},
        {"size": 64},
        {"size": 32, "crs": "EPSG:32645+5773"},
        {"size": 32, "crs": CRS("EPSG:32645").to_wkt("WKT1_ESRI")},
    ],
    ids=["renamed", "smaller", "larger", "compound", "spelling"],
)
def test_ground_that_was_trained_on_is_known_however_it_is_cut(on_rows, tmp_path, how):
    store = cut(tmp_path / "other", **how)
    tiles, why = tiles_to_score(on_rows, store)
    half = len(store) // 2
    assert tiles.tolist() == list(range(half, len(store)))  # those that only share an edge are not trained on
    assert f"the {half} tiles of {len(store)} that the bundle was not trained on; {half} of the others lie on g" in why
    assert tiles_to_score(on_rows, store, "all")[1].endswith(f"and the bundle was trained on {half} of them")


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32644", "EPSG:32646"])
def test_a_reprojected_copy_is_the_same_ground(on_rows, tmp_path, crs):
    left, top = Transformer.from_crs("EPSG:32645", crs, always_xy=True).transform(500_000, 3_100_000)
    pixel = 30.0 if crs != "EPSG:4326" else 30 / 111_000
    tiles, why = tiles_to_score(on_rows, cut(tmp_path / "other", 32, crs=crs, left=left, top=top, pixel=pixel))
    assert not set(tiles) & {0, 1, 2, 3} and {13, 14, 15} <= set(tiles)
    assert "not trained on" in why and "lie on ground that was" in why


def test_a_cut_that_is_shifted_by_half_a_tile_is_the_same_ground(on_rows, tmp_path):
    tiles, why = tiles_to_score(on_rows, cut(tmp_path / "other", 32, top=3_100_000 + 16 * 30))
    assert tiles.tolist() == [12, 13, 14, 15] and "12 of the others lie on ground" in why
    whole = cut(tmp_path / "whole", 32, n=64, left=500_000 + 16 * 30)
    assert tiles_to_score(on_rows, whole)[1].endswith("the bundle was trained on them: these scores say little")


def test_scenes_that_only_touch_were_not_trained_on(on_rows, tmp_path):
    for name, place in {"east": {"left": 500_000 + 128 * 30.0}, "north": {"top": 3_100_000 + 128 * 30.0}}.items():
        assert tiles_to_score(on_rows, cut(tmp_path / name, 64, **place))[1] == "all 4 tiles"


def test_validation_tiles_on_ground_that_was_trained_on_are_counted(bundle, tmp_path):
    """Two dates of one ground, in folds that do not mind it."""
    with TileWriter(tmp_path / "dates", BANDS, 32, "uint16", "test") as writer:
        for scene in ("2000", "2020"):
            for col in range(4):
                at = {"crs": "EPSG:32645", "transform": (30, 0, 500_000 + 960 * col, 0, -30, 3_100_000)}
                writer.add(*made_up(32, 32)[:2], scene=scene, col=32 * col, **at)
    store = TileStore(tmp_path / "dates")
    dated = trained_on_tiles(bundle, store, [0, 1, 2], [3, 4, 5], spatial=False)
    tiles, why = tiles_to_score(dated, store)
    assert tiles.tolist() == [3, 4, 5]
    assert why == "the 3 tiles of fold 0; 2 of them lie on ground that was trained on"


def test_an_ensemble_has_seen_what_one_of_its_models_has(bundle, on_rows, tmp_path):
    store = TileStore(tmp_path / "own")
    other = trained_on_tiles(bundle, store, [8, 9])
    ensemble = Ensemble((*Ensemble.of(on_rows).members, *Ensemble.of(other).members), on_rows.predict)
    assert tiles_to_score(ensemble, store)[0].tolist() == [10, 11]  # 12 to 15 are what one was validated on
    renamed = cut(tmp_path / "renamed", 32, scene="renamed")
    tiles, why = tiles_to_score(ensemble, renamed)
    assert tiles.tolist() == list(range(10, 16))
    assert why == "the 6 tiles of 16 that models were not trained on; 10 of the others lie on ground that was"


def test_bundles_that_know_no_ground_know_names_alone(on_rows, tmp_path):
    def without(**fields):
        return replace(on_rows, trained_on=on_rows.trained_on.model_copy(update={"ground": "", **fields}))

    renamed, larger = cut(tmp_path / "renamed", 32, scene="renamed"), cut(tmp_path / "larger", 64)
    assert tiles_to_score(without(), TileStore(tmp_path / "own"))[1] == "the 4 tiles of fold 0"
    assert tiles_to_score(without(), renamed)[1] == "all 16 tiles"
    assert tiles_to_score(without(), larger)[1] == "all 4 tiles"  # a larger tile with the same corner is another
    assert "trained on" in tiles_to_score(without(tile_size=None), larger)[1]


def test_ground_is_kept_by_bundles_and_handed_on_with_the_weights(tmp_path):
    store = cut(tmp_path / "first", 32, n=64)
    first = finetune(tiny_recipe("train.epochs=1", "data.folds=2", "data.spatial=false"), store, tmp_path / "run")
    bundle = ModelBundle.load(first / "best.safetensors")
    assert bundle.trained_on.covers(store.ground()).tolist() == bundle.trained_on.knows(store, "train").tolist()
    far = cut(tmp_path / "far", 32, n=64, left=600_000.0)
    second = finetune(
        tiny_recipe("train.epochs=1"), far, tmp_path / "run2", fold=None, weights=first / "best.safetensors"
    )
    tuned = ModelBundle.load(second / "best.safetensors").trained_on
    assert tuned.covers(far.ground()).all()
    assert tuned.covers(store.ground()).tolist() == bundle.trained_on.covers(store.ground()).tolist()
