from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from learners import small_learner
from matplotlib.figure import Figure
from scenes import BANDS, TINY, made_up, make_store, normalised
from sklearn.metrics import log_loss, matthews_corrcoef

from glacier_fastai.bands import CLASSES
from glacier_fastai.core.calibration import reliability
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.tiles import TileStore, TileWriter
from glacier_fastai.errors import BundleError, DataError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.evaluate import evaluate, predict_tiles
from glacier_fastai.model.predictor import Predictor
from glacier_fastai.model.registry import architecture
from glacier_fastai.show import interpret
from glacier_fastai.show.interpret import GlacierInterpretation
from glacier_fastai.train.learner import glacier_learner


@pytest.fixture(scope="module")
def bundle(trained):
    return ModelBundle.load(trained[0] / "best.safetensors")


@pytest.fixture(scope="module")
def store(trained):
    return trained[1]


@pytest.fixture(scope="module")
def found(bundle, store):
    return GlacierInterpretation(bundle, store)


@pytest.fixture(scope="module")
def probabilities(bundle, store):
    """Of all tiles (N, K, H, W), by the model alone."""
    x = np.stack([normalised(store.read(i), bundle.mean, bundle.std) for i in range(len(store))])
    with torch.no_grad():
        return bundle.model()(torch.from_numpy(x)).softmax(1).numpy()


@pytest.mark.parametrize(
    "predict", [{}, {"views": True, "scales": (1.0, 1.5)}, {"postprocess": {"smooth": 2}}], ids=str
)
def test_maps_are_those_that_are_scored(bundle, store, predict):
    used = replace(bundle, recipe={"predict": predict})
    tiles = [1, 2, 3, 5, 7, 8, 9, 10, 11]
    scores, found = evaluate(used, store, tiles), GlacierInterpretation(used, store, tiles)
    assert found.confusion.dtype == torch.int64 and found.confusion.tolist() == scores["confusion"]
    assert found.table["mcc"].mean() == pytest.approx(scores["mcc_image_mean"])


def test_a_row_for_each_tile(found, store, probabilities):
    table = found.table
    assert list(table) == ["tile", "id", "scene", "labelled", "loss", "mcc", "ice_share", "brightness"]
    assert table["tile"].tolist() == list(range(12)) and table["id"].tolist() == store.table["id"].tolist()
    for i, row in table.iterrows():
        y, image = store.masks[i], store.read(i)
        known = y != 255
        p = probabilities[i][:, known].T.astype(np.float64)
        assert row["labelled"] == known.sum() < y.size
        assert row["loss"] == pytest.approx(log_loss(y[known], p / p.sum(1, keepdims=True), labels=range(4)), rel=1e-5)
        assert row["mcc"] == pytest.approx(matthews_corrcoef(y[known], p.argmax(1)), abs=1e-9)
        assert row["ice_share"] == pytest.approx(np.isin(y[known], (1, 2)).mean())
        assert row["brightness"] == pytest.approx(np.nanmean(image[:3]), rel=1e-6)
    np.testing.assert_allclose(found.predict(4).probs, probabilities[4], atol=1e-5)


def test_ice_of_unknown_kind_is_right_as_any_ice_and_its_mcc_is_that_of_ice(blind):
    bundle, store = ModelBundle.load(blind[0] / "fold0" / "best.safetensors"), blind[1]
    found, scores = GlacierInterpretation(bundle, store, range(8)), evaluate(bundle, store, range(8))
    assert found.confusion.tolist() == scores["confusion"] and len(scores["confusion"]) == 5
    mapped = [c for _, c, _ in predict_tiles(bundle, store, range(8))]
    for i, row in found.table.iterrows():
        known, ice = store.masks[i] != 255, store.masks[i] == 254
        assert row["mcc"] == pytest.approx(matthews_corrcoef(ice[known], np.isin(mapped[i], (1, 2))[known]))
        assert row["ice_share"] == pytest.approx(ice[known].mean())
    both = zip(mapped, store.masks, strict=False)
    wrong = sum(((c != m) & (m != 255) & ~((m == 254) & (c == 1))).sum() for c, m in both)
    for table in found.strata.values():
        assert table["errors"].sum() == wrong
        assert table["pixels_ice, kind unknown"].sum() == store.ice_counts()[:8].sum()
    assert found.band_importance(tiles=2, repeats=1)["mcc"].iloc[0] != 0
    assert "MCC of ice" in found.plot_confusion_matrix().axes[0].get_title()
    assert "ice, kind unknown" in [t.get_text() for t in found.plot_hardest(1).legends[0].get_texts()]
    found.plot_errors_by("distance")


def test_what_has_no_label_or_no_data_is_nan(bundle, tmp_path):
    values, classes, valid = made_up(32, 32)
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "test") as writer:
        writer.add(values, classes, valid=valid, scene="a")
        writer.add(values, np.full_like(classes, 255), valid=valid, scene="b")
        writer.add(values, classes, valid=np.zeros_like(valid), scene="c")
    found = GlacierInterpretation(bundle, TileStore(tmp_path / "s"))
    assert found.table["labelled"].tolist() == [valid.sum(), 0, 0]
    assert found.table[["loss", "mcc", "ice_share"]].isna().all(axis=1).tolist() == [False, True, True]
    assert found.table["brightness"].isna().tolist() == [False, False, True]
    assert found.hardest()["scene"].tolist() == ["a"]
    with pytest.raises(DataError, match="no labelled pixel in these tiles, so nothing to interpret"):
        GlacierInterpretation(bundle, TileStore(tmp_path / "s"), [1, 2])


def test_reliability_is_of_all_tiles_together(found, store, probabilities):
    assert list(found.reliability) == ["most probable class", *CLASSES]
    for of, table in zip((None, [0], [1], [2], [3]), found.reliability.values(), strict=True):
        whole = reliability(probabilities, np.array(store.masks), of=of, dim=1)
        assert table.pixels.sum() == whole.pixels.sum()
        np.testing.assert_allclose(table.confidence_sum.sum(), whole.confidence_sum.sum(), rtol=1e-5)
        assert table.hits.sum() == whole.hits.sum()


def test_every_labelled_pixel_is_in_one_bin_of_each_stratum(found, store):
    wrong = int(found.confusion.sum() - found.confusion.trace())
    assert list(found.strata) == ["distance", "area", "brightness"] and wrong
    for table in found.strata.values():
        assert list(table)[:5] == ["low", "high", "pixels", "errors", "share"]
        assert (table["low"][1:].to_numpy() == table["high"][:-1].to_numpy()).all()
        assert (table["pixels"].sum(), table["errors"].sum()) == (store.class_counts().sum(), wrong)
        np.testing.assert_array_equal(table["share"], table["errors"] / table["pixels"])
        by_class = table[[f"pixels_{name}" for name in CLASSES]]
        assert (by_class.sum(axis=1) == table["pixels"]).all()
        assert by_class.sum().tolist() == store.class_counts().sum(0).tolist()
        shares = table[[f"share_{name}" for name in CLASSES]].fillna(0).to_numpy()
        np.testing.assert_allclose((shares * by_class.to_numpy()).sum(1), table["errors"])


def test_brightness_is_that_of_the_visible_bands_in_deviations_of_training(found, bundle, store, probabilities):
    assert found.bright == ("blue", "green", "red")
    images = np.stack([store.read(i) for i in range(len(store))])[:, :3]
    mean, std = (np.array(v)[:3, None, None] for v in (bundle.mean, bundle.std))
    known = store.masks != 255
    value = ((images - mean) / std).mean(1)[known]
    wrong = (probabilities.argmax(1) != store.masks)[known]
    table = found.strata["brightness"]
    bins = pd.cut(value, [*table["low"], np.inf])
    assert table["pixels"].tolist() == bins.value_counts().tolist()
    assert table["errors"].tolist() == bins[wrong].value_counts().tolist()


def test_without_visible_bands_the_first_band_is_the_brightness(tmp_path):
    learn = learner(make_store(tmp_path / "s"), bands=("glcm_contrast(swir1)", "thermal"))
    found = GlacierInterpretation.from_learner(learn)
    image = learn.dls.store.read(learn.dls.valid_tiles[0])
    assert found.bright == ("glcm_contrast(swir1)",)
    assert found.table["brightness"][0] == pytest.approx(np.nanmean(image[0]), rel=1e-5)


def test_the_hardest_tiles_come_first(found):
    by_loss, by_mcc = found.hardest(), found.hardest(20, "mcc")
    assert len(by_loss) == 9 and len(by_mcc) == 12
    assert by_loss["loss"].is_monotonic_decreasing and by_loss["loss"].iloc[0] == found.table["loss"].max()
    assert by_mcc["mcc"].is_monotonic_increasing
    with pytest.raises(DataError, match="^by 'los': use loss or mcc; did you mean 'loss'[?]$"):
        found.hardest(by="los")
    with pytest.raises(DataError, match="^0 tiles: use at least 1$"):
        found.plot_hardest(0)


def learner(store, fold=0, **kwargs):
    dls = GlacierDataLoaders.from_store(store, fold, bs=4, folds=3, **kwargs)
    return glacier_learner(dls, encoder=TINY, attention=None, seed=0)


@pytest.mark.parametrize("bands", [None, ("thermal", "red", "glcm_contrast(swir1)")])
def test_a_learner_is_interpreted_by_its_own_maps(tmp_path, bands):
    learn = learner(make_store(tmp_path / "s"), bands=bands, glcm_levels=8)
    with learn.no_bar():
        probs, y = learn.get_preds(act=lambda x: x.softmax(1))
    found = GlacierInterpretation.from_learner(learn)
    assert found.table["tile"].tolist() == learn.dls.valid_tiles
    for i, p, truth in zip(learn.dls.valid_tiles, probs, y, strict=True):
        np.testing.assert_allclose(found.predict(i).probs, p, atol=1e-4)
        truth, p = truth.numpy(), p.argmax(0).numpy()
        known = truth != 255
        assert found.table.set_index("tile")["mcc"][i] == pytest.approx(matthews_corrcoef(truth[known], p[known]))
    assert GlacierInterpretation.from_learner(learn, [0, 2]).table["tile"].tolist() == [0, 2]


def test_what_cannot_be_interpreted_is_refused(found, bundle, store, tmp_path):
    with pytest.raises(BundleError, match="model Small: no bundle can hold it.*register_model"):
        GlacierInterpretation.from_learner(small_learner(tmp_path / "s"))
    with pytest.raises(DataError, match="there are no validation tiles .fold=None.: name tiles"):
        GlacierInterpretation.from_learner(learner(TileStore(tmp_path / "s"), fold=None))
    with pytest.raises(BundleError, match="the bundle needs band swir1, thermal"):
        GlacierInterpretation(bundle, make_store(tmp_path / "t", ("blue", "green", "red")))
    for tile in (12, -1):
        with pytest.raises(DataError, match=f"no tile {tile}; use 0 to 11"):
            GlacierInterpretation(bundle, store, [0, tile])
        with pytest.raises(DataError, match=f"no tile {tile}; use 0 to 11"):
            found.predict(tile)
    with pytest.raises(DataError, match="^method 'shuffle': use permutation or occlusion$"):
        found.band_importance("shuffle")
    with pytest.raises(DataError, match="0 repeats, 24 tiles: use at least 1 of each"):
        found.band_importance(repeats=0)
    with pytest.raises(DataError, match="errors by 'size': use distance or area or brightness"):
        found.plot_errors_by("size")


@pytest.mark.parametrize("method", ["permutation", "occlusion"])
def test_a_band_that_the_model_does_not_look_at_is_worth_nothing(bundle, store, method):
    weights = {k: v.clone() for k, v in bundle.weights.items()}
    weights[architecture(bundle.arch)[0].first(bundle.model())][:, 2] = 0
    table = GlacierInterpretation(replace(bundle, weights=weights), store).band_importance(method, 2, tiles=4)
    assert list(table)[:4] == ["band", "drop", "spread", "method"] and table["band"].tolist() == list(BANDS)
    assert (table["drop"][2], table["spread"][2]) == (0, 0)
    assert (table["drop"].drop(2) != 0).any()
    assert (table["tiles"] == 4).all() and (table["method"] == method).all()


@pytest.mark.parametrize("method", ["permutation", "occlusion"])
def test_only_what_a_band_says_of_pixels_with_data_is_changed(found, bundle, store, method, monkeypatch):
    seen = []

    class Watched(Predictor):
        def __call__(self, windows):
            seen.extend(w.copy() for w in windows)
            return super().__call__(windows)

    monkeypatch.setattr(interpret, "Predictor", Watched)
    first = found.band_importance(method, 2, tiles=3)
    per_tile = 1 + len(BANDS) * (2 if method == "permutation" else 1)
    assert len(seen) == 3 * per_tile
    for t, i in enumerate((0, 6, 11)):
        plain, *changed = seen[t * per_tile : (t + 1) * per_tile]
        np.testing.assert_array_equal(plain, store.read(i))
        valid = ~np.isnan(plain[0])
        for n, image in enumerate(changed):
            band = n * len(BANDS) // len(changed)
            np.testing.assert_array_equal(np.isnan(image), np.isnan(plain))
            np.testing.assert_array_equal(np.delete(image, band, 0), np.delete(plain, band, 0))
            if method == "permutation":
                assert not np.array_equal(image[band, valid], plain[band, valid])
                np.testing.assert_array_equal(np.sort(image[band, valid]), np.sort(plain[band, valid]))
            else:
                assert (normalised(image, bundle.mean, bundle.std)[band] == 0).all()
    pd.testing.assert_frame_equal(first, found.band_importance(method, 2, tiles=3))


def test_importance_is_the_fall_of_the_score_and_its_spread_is_over_shuffles_or_tiles(found, bundle, store):
    tiles = [0, 4, 7, 11]
    whole = GlacierInterpretation(bundle, store, tiles).band_importance("occlusion")
    assert whole["mcc"][0] == pytest.approx(evaluate(bundle, store, tiles)["mcc"])
    without = [
        GlacierInterpretation(bundle, store, [i for i in tiles if i != left]).band_importance("occlusion")["drop"]
        for left in tiles
    ]
    parts = np.array(without)
    np.testing.assert_allclose(whole["spread"], np.sqrt(3 / 4 * ((parts - parts.mean(0)) ** 2).sum(0)), atol=1e-12)
    three, one = found.band_importance(repeats=3, tiles=2), found.band_importance(repeats=1, tiles=2)
    assert (three["spread"] > 0).any() and one["spread"].isna().all()
    assert not found.band_importance(repeats=1, tiles=2, seed=1)["drop"].equals(one["drop"])


def words(fig):
    """All text of a figure, drawn."""
    fig.canvas.draw()
    return "\n".join(t.get_text() for t in fig.findobj(plt.Text))


def test_figures_say_what_they_show_of_how_much(found):
    n = f"n = {int(found.confusion.sum()):,} labelled px of 12 tiles"
    importance = found.band_importance(tiles=2, repeats=1)
    drawn = {
        found.plot_confusion_matrix: ("class in the map", "class in the truth", n, f"{found.confusion[0, 0]:,}"),
        found.plot_reliability: ("probability of the class", "share of pixels", n, "lake, ECE 0."),
        lambda: found.plot_hardest(2): ("n = 12 tiles by loss", "nats", "px", found.hardest()["id"].iloc[0]),
        found.plot_errors_by: ("class edge of the truth, px", "share of pixels", n, "16–32\n"),
        lambda: found.plot_errors_by("area"): ("area of the patch in the truth, px", n, "100–1,000\n"),
        lambda: found.plot_errors_by("brightness"): ("mean of blue, green, red, standard deviations", n, "−0.5 to 0\n"),
        lambda: found.plot_band_importance(importance): ("fall of the MCC", "n = 2 tiles", "shuffles", *BANDS),
    }
    for plot, wanted in drawn.items():
        fig = plot()
        assert isinstance(fig, Figure)
        text = words(fig)
        for part in wanted:
            assert part in text
        plt.close(fig)


def test_what_has_no_data_is_hatched_in_every_picture(found, store):
    fig = found.plot_hardest(1)
    (i,) = found.hardest(1)["tile"]
    images = [ax.get_images()[0].get_array() for ax in fig.axes if ax.get_images()]
    assert len(images) == 4
    for rgba in images:
        np.testing.assert_array_equal(rgba[..., 3] == 0, store.masks[i] == 255)
