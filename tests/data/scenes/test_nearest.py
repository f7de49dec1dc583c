from types import SimpleNamespace

import numpy as np
import pytest
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.warp import Resampling, reproject
from scenes import write_raster

from glacier_fastai.data.scenes import nearest
from glacier_fastai.data.scenes.nearest import applied, blocks, columns_and_rows
from glacier_fastai.data.scenes.raster import open_raster
from glacier_fastai.errors import DataError

UTM = Affine(30, 0, 500_000, 0, -30, 3_100_000)


def place(crs, transform, height, width):
    return SimpleNamespace(path="s.tif", crs=CRS.from_string(crs), transform=transform, height=height, width=width)


@pytest.fixture
def raster(tmp_path):
    values = np.random.default_rng(0).integers(1, 255, (1, 40, 50)).astype("uint8")
    path = tmp_path / "r.tif"
    write_raster(path, values, transform=UTM, crs="EPSG:32645")
    with open_raster(path) as file:
        yield file


def brought(raster, scene, moved):
    values, known = np.zeros((scene.height, scene.width), "uint8"), np.zeros((scene.height, scene.width), bool)
    for at, *found in blocks(raster, "r.tif", scene, moved):
        values[at], known[at] = found
    return values, known


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32645", Affine(17, 0, 499_900, 0, -23, 3_100_200)),
        ("EPSG:32645", UTM * Affine.rotation(30)),
        ("EPSG:4326", Affine(0.0004, 0, 86.9991, 0, -0.0003, 28.027)),
        ("EPSG:4326", Affine(0.0004, 0, 446.9991, 0, -0.0003, 28.027)),
    ],
)
def test_pixels_are_those_that_gdal_takes(raster, crs, transform, monkeypatch):
    monkeypatch.setattr(nearest, "SIDE", 13)
    scene = place(crs, transform, 60, 70)
    wanted = np.zeros((60, 70), "uint8")
    start = transform if transform.c < 360 or crs != "EPSG:4326" else Affine.translation(-360, 0) * transform
    how = {"dst_transform": start, "dst_crs": crs, "resampling": Resampling.nearest, "tolerance": 0}
    reproject(raster.read(1), wanted, src_transform=UTM, src_crs=raster.crs, **how)
    values, known = brought(raster, scene, True)
    assert known.sum() > 100
    np.testing.assert_array_equal(values, wanted)
    np.testing.assert_array_equal(known, wanted > 0)


def test_on_the_same_grid_it_is_read_as_it_is(raster, monkeypatch):
    monkeypatch.setattr(nearest, "STRIP", 170)
    values, known = brought(raster, place("EPSG:32645", UTM, 40, 50), False)
    np.testing.assert_array_equal(values, raster.read(1))
    assert known.all()


def test_a_crs_that_leads_nowhere_is_refused(raster):
    with pytest.raises(DataError, match=r"^r\.tif: is in WGS 84 / UTM zone 45N, which cannot be brought to Mars"):
        columns_and_rows(raster, "r.tif", place("IAU_2015:49900", Affine(1, 0, 0, 0, -1, 0), 2, 2))


def test_affine_transforms_are_applied():
    assert applied(UTM, np.array([0, 2]), np.array([0, 1])).tolist() == [[500_000, 500_060], [3_100_000, 3_099_970]]
