import pytest

from glacier_fastai.data.scenes.raster import open_raster, pixel_size, same_crs, same_grid
from glacier_fastai.errors import DataError

UTM = (30, 0, 500_000, 0, -30, 3_100_000)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("EPSG:32645", "EPSG:32645+5773", True),
        ("EPSG:4326", "OGC:CRS84", True),
        ("EPSG:4326", "EPSG:4979", True),
        ("EPSG:32645", "EPSG:32644", False),
        ("EPSG:4326", "EPSG:4269", False),
    ],
)
def test_crss_are_compared_as_maps_are_drawn(a, b, same):
    assert same_crs(a, b) is same


@pytest.mark.parametrize("unit", [1.0, 1e-5, 1e3])
@pytest.mark.parametrize(("shift", "same"), [(0.0, True), (0.009, True), (0.02, False), (3, False)])
def test_a_hundredth_of_a_pixel_whatever_the_unit(unit, shift, same):
    a = [v * unit for v in UTM]
    b = [*a]
    b[2] += shift * 30 * unit
    assert same_grid(a, b, (100, 100)) is same
    c = [*a]
    c[0] *= 1 + shift / 100  # adds up over the raster
    assert same_grid(a, c, (100, 100)) is same


def test_rotated_and_south_up_grids():
    turned = (20.0, 10.0, 0.0, 10.0, -20.0, 0.0)
    assert same_grid(turned, turned, (64, 64))
    assert not same_grid(turned, (20.0, 10.0, 9.0, 10.0, -20.0, 0.0), (64, 64))
    assert not same_grid(UTM, (*UTM[:4], 30, UTM[5]), (64, 64))


@pytest.mark.parametrize(
    ("crs", "transform", "metres"),
    [
        ("EPSG:32645", UTM, 30),
        ("EPSG:2277", (100, 0, 2_300_000, 0, -100, 10_000_000), 30.48),  # feet
        ("EPSG:4326", (1 / 3600, 0, 86, 0, -1 / 3600, 60), 21.9),
        ("EPSG:3413", (720, 0, -92_160, 0, -720, -800_000), 727),
        ("EPSG:32645", (21.2132, 21.2132, 500_000, 21.2132, -21.2132, 3_100_000), 30),
    ],
)
def test_the_side_of_a_pixel_on_the_ground(crs, transform, metres):
    assert pixel_size(crs, transform, (64, 64)) == pytest.approx(metres, rel=0.02)


def test_where_nothing_leads_to_the_ground():
    assert pixel_size('LOCAL_CS["site grid",UNIT["metre",1]]', UTM, (64, 64)) is None


@pytest.mark.parametrize("name", ["/vsicurl/http://127.0.0.1/a.tif", "https://127.0.0.1/a.tif", "s3://a/b.tif"])
def test_only_files_on_this_disk_are_opened(name, tmp_path):
    with pytest.raises(DataError, match="only files on this disk"):
        open_raster(name)
    with pytest.raises(DataError, match="is a folder"):
        open_raster(tmp_path)
