import shutil

import numpy as np
import pytest
import rasterio
import torch
from scenes import BANDS, made_up, make_store, tiny_recipe, write_raster
from skimage.feature import graycomatrix, graycoprops

from glacier_fastai.bands import LOCATION, Bands
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.channels import Corner, Texture, channels_of, compute_channels, location, with_channels
from glacier_fastai.data.scenes.opening import open_scene
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.data.tiles import TileStore, TileWriter
from glacier_fastai.errors import BundleError, DataError, DataNote
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.ensemble import Ensemble
from glacier_fastai.model.evaluate import evaluate
from glacier_fastai.predict.scene import Wanted, predict_scene
from glacier_fastai.predict.source import SceneSource
from glacier_fastai.train.run import finetune

ALL = Bands((*BANDS, "glcm_contrast(swir1)", "glcm_energy(swir1)"))


def test_texture_bands_are_those_of_scikit_image(tmp_path):
    store = make_store(tmp_path / "store", dtype="float32", seed=4)
    texture = Texture.of_tiles(store, ALL, [0, 1, 2], levels=8)
    found = with_channels(store, ALL, texture)
    values = store.read(5, store.band_index(["swir1"]))[0]
    levels = np.where(np.isfinite(values), np.searchsorted(texture.edges["swir1"], values, side="right"), 255)
    whole = [(r, c) for r in range(3, 29) for c in range(3, 29) if (levels[r - 3 : r + 4, c - 3 : c + 4] < 255).all()]
    assert len(whole) > 20
    for r, c in whole:
        window = levels[r - 3 : r + 4, c - 3 : c + 4].astype(np.uint8)
        matrix = graycomatrix(window, [1], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], 8, symmetric=True, normed=True)
        want = [graycoprops(matrix, kind).mean() for kind in ("contrast", "energy")]
        np.testing.assert_allclose(found.images[5, 5:, r, c], want, rtol=1e-6)
    np.testing.assert_array_equal(found.images[5, :5], store.images[5])
    np.testing.assert_array_equal(found.masks, store.masks)
    assert found.table["id"].tolist() == store.table["id"].tolist()


def test_levels_and_statistics_come_from_the_training_tiles_only(tmp_path):
    """Whatever the validation tiles hold, training sees the very same values."""
    batches = []
    for change in (False, True):
        path = tmp_path / f"store{change}"
        with TileWriter(path, BANDS, 32, "uint16", "test") as writer:
            for s in range(9):
                values, classes, valid = made_up(32, 32, seed=s)
                values = values * 2 + 99 if change and s in (0, 1, 2) else values
                writer.add(values, classes, valid=valid, scene=f"s{s}", split="valid" if s < 3 else "train")
        dls = GlacierDataLoaders.from_store(path, 0, 2, bands=ALL)
        assert dls.valid_tiles == [0, 1, 2]
        batches.append([dls.train_ds[i][0] for i in range(len(dls.train_ds))])
        batches[-1].append(torch.tensor(np.array(dls.stats)))
    for a, b in zip(*batches, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_each_training_set_has_its_own_levels_and_finds_them_again(store):
    a, b = (GlacierDataLoaders.from_store(store, k, 2, bands=ALL, folds=3) for k in (0, 1))
    assert a.store.info["texture"] != b.store.info["texture"]
    assert a.store.path != b.store.path
    assert a.store.fingerprint() == b.store.fingerprint() == store.fingerprint()
    made = (a.store.path / "images.npy").stat().st_mtime_ns
    again = GlacierDataLoaders.from_store(store, 0, 2, bands=ALL, folds=3)
    assert (again.store.path, (again.store.path / "images.npy").stat().st_mtime_ns) == (a.store.path, made)
    other = GlacierDataLoaders.from_store(store, 0, 2, bands=ALL, folds=3, glcm_levels=16)
    assert len(other.store.info["texture"]["edges"]["swir1"]) == 15


def test_a_pixel_without_neighbours_is_smooth_and_keeps_its_data():
    image = np.full((1, 9, 9), np.nan, np.float32)
    image[0, 4, 4] = 3.0
    bands = [f"glcm_{k}(red)" for k in ("contrast", "energy", "asm", "homogeneity", "dissimilarity")]
    found = compute_channels(image, ["red"], channels_of(bands, Texture(7, {"red": [1.0, 2.0]})))
    assert found[:, 4, 4].tolist() == [0, 1, 1, 1, 0]
    assert np.isfinite(found).sum() == 5


def test_a_band_that_is_not_there_cannot_have_texture(store):
    with pytest.raises(DataError, match="no band nir; it holds blue, green"):
        GlacierDataLoaders.from_store(store, 0, 2, bands=("red", "glcm_energy(nir)"), folds=3)


def test_texture_of_standardised_bands_is_normalised_while_they_are_not(tmp_path):
    with TileWriter(tmp_path / "s", BANDS, 32, "float32", "test") as writer:
        writer.info["standardised"] = True
        for s in range(4):
            values, classes, valid = made_up(32, 32, seed=s)
            writer.add((values - 5000.0) / 2000, classes, valid=valid, scene=f"s{s}", split="train" if s else "valid")
    dls = GlacierDataLoaders.from_store(tmp_path / "s", 0, 1, bands=(*BANDS, "GLCM_contrast( swir1 )", ALL[6]))
    assert dls.bands == ALL
    assert (dls.stats[0][:5].tolist(), dls.stats[1][:5].tolist()) == ([0] * 5, [1] * 5)
    pixels = np.concatenate([dls.store.images[i][5:][:, dls.store.masks[i] != 255] for i in (1, 2, 3)], 1)
    np.testing.assert_allclose(dls.stats[0][5:], pixels.mean(1, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(dls.stats[1][5:], pixels.std(1, dtype=np.float64), rtol=1e-6)


def test_a_store_that_was_moved_with_its_cache_finds_itself(tmp_path):
    make_store(tmp_path / "old" / "store")
    GlacierDataLoaders.from_store(tmp_path / "old" / "store", 0, 2, bands=ALL, folds=3)
    (tmp_path / "old").rename(tmp_path / "new")
    dls = GlacierDataLoaders.from_store(tmp_path / "new" / "store", 0, 2, bands=ALL, folds=3)
    assert dls.store.base().path == tmp_path / "new" / "store"


def test_other_tiles_at_the_same_place_have_their_own_texture(tmp_path):
    texture = Texture(7, {"swir1": [4000.0, 6000.0]})
    old = with_channels(make_store(tmp_path / "store", seed=1), ALL, texture)
    (tmp_path / "store").rename(tmp_path / "away")
    new = with_channels(make_store(tmp_path / "store", seed=2), ALL, texture)
    assert new.path != old.path
    assert not np.array_equal(new.images, old.images, equal_nan=True)


def test_another_version_computes_texture_anew(store, monkeypatch):
    texture = Texture.of_tiles(store, ALL, [0], levels=8)
    old = with_channels(store, ALL, texture)
    monkeypatch.setattr("glacier_fastai.data.raw.__version__", "99")
    assert with_channels(store, ALL, texture).path != old.path


def test_texture_of_another_fold_is_not_taken_over(store):
    first = GlacierDataLoaders.from_store(store, 0, 2, bands=ALL, folds=3).store
    again = GlacierDataLoaders.from_store(first, 1, 2, bands=ALL, folds=3).store
    assert again.path == GlacierDataLoaders.from_store(store, 1, 2, bands=ALL, folds=3).store.path != first.path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with texture bands, and the plain store it was trained on."""
    base = tmp_path_factory.mktemp("texture")
    store = make_store(base / "store")
    recipe = tiny_recipe(f"bands=[{', '.join(ALL)}]", "texture.levels=8", "train.epochs=1")
    return finetune(recipe, fold=0, data=store.path, out=base / "run"), store


def test_a_bundle_carries_its_levels_and_scores_a_plain_store(run, tmp_path):
    bundle = ModelBundle.load(run[0] / "best.safetensors")
    assert bundle.bands == ALL
    assert bundle.texture["window"] == 7 and len(bundle.texture["edges"]["swir1"]) == 7
    assert bundle.trained_on.path == run[1].path.name
    other = make_store(tmp_path / "other", seed=50)

    def scores(tiles):
        return {**evaluate(bundle, tiles), "notes": None}  # which name the store

    plain = scores(other)
    assert scores(with_channels(other, ALL, Texture(**bundle.texture))) == plain
    foreign = with_channels(other, ALL, Texture.of_tiles(other, ALL, [0], levels=8))  # its levels are not the bundle's
    assert scores(foreign) == plain
    with pytest.raises(DataError, match="m: was computed of .*other, which has other tiles now"):
        path = shutil.copytree(foreign.path, tmp_path / "m")
        shutil.rmtree(other.path)
        make_store(tmp_path / "other", scenes=2)
        TileStore(path).base()
    with pytest.raises(BundleError, match=r"few: .*needs band swir1; here are blue"):
        evaluate(bundle, make_store(tmp_path / "few", bands=("blue", "green", "red", "thermal")))


def test_a_scene_gets_the_texture_that_a_store_of_it_has(run, tmp_path):
    bundle = ModelBundle.load(run[0] / "best.safetensors")
    values, classes, valid = made_up(96, 80, seed=3)
    path = write_raster(tmp_path / "scene.tif", values, nodata=0, bands=BANDS)
    label = write_raster(tmp_path / "label.tif", np.where(valid, classes, 255)[None].astype(np.uint8), nodata=255)
    store = prepare_scenes([path], tmp_path / "store", labels=[label], tile_size=80)
    tile = with_channels(store, ALL, Texture(**bundle.texture)).read(0)
    mean, std = (np.float32(v)[:, None, None] for v in (bundle.mean, bundle.std))
    want = np.nan_to_num((tile - mean) / std)
    with open_scene(path) as opened:
        source = SceneSource(opened, Ensemble.of(bundle).channels)
        whole = source.read(0, 96)
        normal = np.nan_to_num((whole - mean) / std)
        np.testing.assert_array_equal(normal[:, :77], want[:, :77])  # the tile ends at row 80, the scene does not
        for row in (0, 16, 64):  # strips look beyond their edge
            np.testing.assert_array_equal(source.read(row, 32), whole[:, row : row + 32])
    with rasterio.open(predict_scene(bundle, path, tmp_path / "maps", Wanted(window=64))["files"]["classes"]) as file:
        np.testing.assert_array_equal(file.read(1) == 255, ~valid)


def test_an_index_of_reflectances_below_0_stays_within_its_bounds():
    green, swir1 = [0.05, 0.002, -0.01, 0.3, np.nan], [-0.1, -0.0019, -0.02, 0.1, np.nan]
    image = np.float32([[green], [swir1]])
    (found,) = compute_channels(image, ["green", "swir1"], channels_of(["ndsi"]))
    np.testing.assert_allclose(found[0], [1, 1, 0, 0.5, np.nan], rtol=1e-6)


def test_labels_that_are_not_as_they_were_written_get_no_new_checksum(tmp_path):
    store = make_store(tmp_path / "store")
    data = bytearray((store.path / "masks.npy").read_bytes())
    data[-1] ^= 1
    (store.path / "masks.npy").write_bytes(data)
    damaged = TileStore(store.path)
    with pytest.raises(DataError, match="the mask of tile .* is not as it was written"):
        with_channels(damaged, ALL, Texture.of_tiles(damaged, ALL, [0]))


def test_a_store_has_the_places_of_its_tiles_and_nodata_has_none(tmp_path):
    store = make_store(tmp_path / "s", placed=True)
    made = with_channels(store, ("red", *LOCATION))
    for i in (0, 5):
        red, lat, lon = made.read(i)
        row, col = store.table["row"][i], store.table["col"][i]
        nodata = np.isnan(red)
        assert nodata.any() and (np.isnan(lat) == nodata).all() and (np.isnan(lon) == nodata).all()
        rows, cols = np.mgrid[:32, :32]
        np.testing.assert_allclose(lat[~nodata], (28 - 3e-4 * (row + rows + 0.5))[~nodata], rtol=1e-6)
        np.testing.assert_allclose(lon[~nodata], (86 + i // 4 + 3e-4 * (col + cols + 0.5))[~nodata], rtol=1e-6)
    mean, std = made.statistics(("red", *LOCATION))
    assert mean[1:].tolist() == [0, 0] and std[1:] == pytest.approx([180 / np.pi] * 2)
    with pytest.warns(DataNote, match="12 of 12 tiles have no place on the Earth, so their latitude and longitude are"):
        dls = GlacierDataLoaders.from_store(make_store(tmp_path / "nowhere"), 0, 2, bands=("red", *LOCATION), folds=3)
    assert len(dls.notes) == 1 and (dls.valid.one_batch()[0][:, 1:] == 0).all()


def test_places_of_standardised_tiles_are_radians_all_the_same(tmp_path):
    store = make_store(tmp_path / "s", dtype="float32", placed=True)
    store.info["standardised"] = True
    mean, std = with_channels(store, ("red", *LOCATION)).statistics(("red", *LOCATION))
    assert (mean[1], std[1]) == (0, pytest.approx(57.29578))


def test_a_band_of_the_file_is_taken_as_it_is():
    image = np.float32([[[3.0]], [[45.0]]])
    corner = Corner("EPSG:4326", (1, 0, 10, 0, -1, 20))
    found = compute_channels(image, ["red", "latitude"], channels_of(["red", *LOCATION]), corner)
    assert found.ravel().tolist() == [3.0, 45.0, 10.5]


@pytest.mark.parametrize("crs", ["", "nonsense", 'LOCAL_CS["here",UNIT["metre",1]]', None])
def test_a_grid_that_is_nowhere_tells_no_place(crs):
    assert not location(Corner(crs, (1, 0, 10, 0, -1, 20)), (2, 3)).any()


def test_a_scene_has_the_places_that_its_tiles_have(tmp_path):
    values, classes, valid = made_up(64, 64, seed=3)
    path = write_raster(tmp_path / "scene.tif", values, nodata=0, bands=BANDS)
    label = write_raster(tmp_path / "label.tif", np.where(valid, classes, 255)[None].astype(np.uint8), nodata=255)
    store = with_channels(prepare_scenes([path], tmp_path / "store", labels=[label], tile_size=64), (*BANDS, *LOCATION))
    with open_scene(path, ("red", *LOCATION)) as opened:
        source = SceneSource(opened, channels_of((*BANDS, *LOCATION)))
        whole = source.read(0, 64)
        np.testing.assert_array_equal(whole, store.read(0))
        np.testing.assert_array_equal(np.concatenate([source.read(0, 24), source.read(24, 40)], 1), whole)
        opened.masked = lambda row, col, height, width: {"cloud": np.ones((height, width), bool)}
        np.testing.assert_array_equal(source.behind(40, 40, 16)[0], whole[:, 40:56, 40:56])
    assert (round(np.nanmean(whole[5]), 2), round(np.nanmean(whole[6]), 2)) == (28.02, 87.01)  # 45 N, 0.96 km off
