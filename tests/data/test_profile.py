import numpy as np
import pytest
from scenes import BANDS, CRS, made_up, make_store

from glacier_fastai.core.ranges import QUANTILES
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.channels import with_channels
from glacier_fastai.data.scenes.units import Scaling
from glacier_fastai.data.tiles import TileStore, TileWriter

HOW = [Scaling(1e-4, -0.1, "reflectance")] * 4 + [Scaling(0.01, 200.0, "kelvin")]


def scaled_store(path, how=HOW, dtype="uint16"):
    with TileWriter(path, BANDS, 32, dtype, "made up", "landsat8", scaling=how) as writer:
        for s in range(4):
            values, classes, valid = made_up(32, 32, seed=s)
            at = (30.0, 0.0, 500_000.0 + 960 * s, 0.0, -30.0, 3_100_000.0)
            writer.add(values, classes, valid=valid, scene=f"s{s}", crs=CRS, transform=at)
    return TileStore(path)


@pytest.fixture
def plain(tmp_path):
    """The same values, kept as they are."""
    units = [h._replace(scale=1.0, offset=0.0) for h in HOW]
    with TileWriter(tmp_path / "plain", BANDS, 32, "float32", "made up", scaling=units) as writer:
        for s in range(4):
            values, classes, valid = made_up(32, 32, seed=s)
            scale, offset = (np.array(v)[:, None, None] for v in zip(*[h[:2] for h in HOW], strict=True))
            writer.add((values * scale + offset).astype("f4"), classes, valid=valid, scene=f"s{s}")
    return TileStore(tmp_path / "plain")


def test_compact_numbers_are_read_as_values(tmp_path, plain):
    store = scaled_store(tmp_path / "t")
    assert store.images.dtype == np.uint16
    assert store.scaled
    assert not plain.scaled
    assert store.units == plain.units
    for i in range(4):
        np.testing.assert_allclose(store.read(i), plain.read(i), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(store.read(i, [4, 1]), store.read(i)[[4, 1]])
    for ours, theirs in zip(store.statistics(BANDS, [1, 2]), plain.statistics(BANDS, [1, 2]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert store.info["mean"] == pytest.approx(plain.info["mean"], rel=1e-4)


def test_batches_indices_and_texture_see_values(tmp_path, plain):
    store = scaled_store(tmp_path / "t")
    bands = ["green", "ndsi", "thermal", "glcm_contrast(swir1)"]
    found = []
    for each in (store, plain):
        dls = GlacierDataLoaders.from_store(each, bs=2, bands=bands, crop=16, seed=3, num_workers=0, glcm_levels=8)
        found.append((dls.one_batch()[0], dls.stats))
    np.testing.assert_allclose(found[0][0].cpu(), found[1][0].cpu(), atol=2e-3)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-3)
    derived = with_channels(store, ["green", "ndsi"])
    assert derived.units == {"green": "reflectance", "ndsi": "dn"}


def test_batches_of_compact_numbers_are_those_of_their_values(tmp_path, plain):
    batches = []
    for each in (scaled_store(tmp_path / "t"), plain):
        dls = GlacierDataLoaders.from_store(each, 0, 4, 16, bands=["swir1", "green"], folds=2, spatial=False, seed=3)
        batches.append([dls.one_batch()[0].cpu(), dls.valid.one_batch()[0].cpu()])
    for ours, theirs in zip(*batches, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
        assert ours.std() > 0.5


def test_the_profile_is_that_of_the_tiles_asked(tmp_path):
    store = scaled_store(tmp_path / "t")
    profile = store.profile([0, 2])
    values = np.concatenate([store.read(i).reshape(5, -1) for i in (0, 2)], 1)
    values = values[:, ~np.isnan(values[0])]
    np.testing.assert_allclose(profile.quantiles["thermal"], np.quantile(values[4], QUANTILES), rtol=1e-6)
    assert profile.units["swir1"] == "reflectance"
    assert profile.pixel_size == pytest.approx(30, rel=1e-3)
    assert profile.sensor == "landsat8"
    assert profile.scaling["thermal"] == (0.01, 200.0)


def test_stores_of_before_have_numbers(tmp_path):
    profile = make_store(tmp_path / "s").profile()
    assert set(profile.units.values()) == {"dn"}
    assert profile.pixel_size is None
    assert profile.scaling == {}
    assert profile.sensor == ""
