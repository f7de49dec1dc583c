import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio import Affine
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from scenes import write_raster

from glacier_fastai.bands import Bands, natural_unit
from glacier_fastai.core.terrain import aspect, curvature, slope
from glacier_fastai.data.scenes import dem
from glacier_fastai.data.scenes.dem import SceneTerrain, Terrain
from glacier_fastai.errors import DataError, DataNote

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "inventories"
UTM, DEGREES = "EPSG:32632", "EPSG:4326"
SCENE = from_origin(500_000, 5_203_000, 30, 30)  # 9 degrees east, 47 north
SHAPE = 60, 80
ALL = Terrain.bands


def places(transform, shape, crs):
    """Return x and y of pixels in UTM."""
    cols, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    x, y = (transform[k] * cols + transform[k + 1] * rows + transform[k + 2] for k in (0, 3))
    return Transformer.from_crs(crs, UTM, always_xy=True).transform(x, y)


def hills(x, y):
    """Return height, its rise to the east and north, and curvature; everywhere steeper than 2 degrees."""
    u, v = (x - 500_000) / 1500, (y - 5_200_000) / 2000
    z = 2000 + 200 * np.sin(u) * np.cos(v) + 0.25 * (x - 500_000) + 0.1 * (y - 5_200_000)
    east, north = 200 * np.cos(u) * np.cos(v) / 1500 + 0.25, -200 * np.sin(u) * np.sin(v) / 2000 + 0.1
    return z, east, north, 200 * np.sin(u) * np.cos(v) * (1500**-2 + 2000**-2)


def wanted(transform, shape, crs):
    z, east, north, curved = hills(*places(transform, shape, crs))
    steep = np.hypot(east, north)
    return np.stack([z, np.degrees(np.arctan(steep)), -east / steep, -north / steep, curved])


def write_dem(path, crs=UTM, transform=None, shape=(200, 240), change=lambda z: z, dtype="float32", **more):
    """Write the hills as DEM; by default with pixels of 30 m that lie on those of the scene, and beyond."""
    transform = transform or from_origin(498_500, 5_204_500, 30, 30)
    z = change(hills(*places(transform, shape, crs))[0])
    return write_raster(path, z.astype(dtype)[None], crs=crs, transform=transform, **more)


def read(path, crs=UTM, transform=SCENE, shape=SHAPE, names=ALL):
    with Terrain(path) as terrain:
        return SceneTerrain(terrain, crs, transform, shape, "scene.tif").read(names, 0, 0, *shape)


def notes(path, crs=UTM, transform=SCENE, shape=SHAPE):
    with Terrain(path) as terrain:
        return SceneTerrain(terrain, crs, transform, shape, "scene.tif").notes


def test_its_bands_have_our_names_and_units(tmp_path):
    with Terrain(write_dem(tmp_path / "dem.tif")) as terrain:
        assert Bands(terrain.bands) == ALL
        assert terrain.units == {band: natural_unit(band) or "dn" for band in ALL}
        assert terrain.units["curvature"] == "1/m"
        assert terrain.files == [str(tmp_path / "dem.tif")]
        assert terrain.notes == []


def test_on_its_own_grid_it_is_what_the_formulas_say(tmp_path):
    path = write_dem(tmp_path / "dem.tif")
    with rasterio.open(path) as file:
        z = file.read(1)
    inside = slice(50, 110), slice(50, 130)
    want = [v[inside] for v in (z, slope(z, 30, 30), *aspect(z, 30, 30), curvature(z, 30, 30))]
    np.testing.assert_allclose(read(path), want, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(read(path, names=["curvature", "slope"]), read(path)[[4, 1]])


ARCSECOND = from_origin(8.99, 46.99, 1 / 3600, 1 / 3600)
MERCATOR = Transformer.from_crs(DEGREES, "EPSG:3857", always_xy=True).transform(9, 46.98)
FEET = "EPSG:2263"  # New York, US survey feet


@pytest.mark.parametrize(
    ("dem_crs", "dem_transform"),
    [
        (UTM, None),
        (UTM, Affine(30, 0, 498_500, 0, 30, 5_190_000)),
        (UTM, Affine(28, 9, 494_000, 9, -28, 5_204_500)),
        (DEGREES, ARCSECOND),
        ("EPSG:32631", None),
        ("EPSG:3035", None),
    ],
)
@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (UTM, SCENE),
        (UTM, from_origin(500_000, 5_203_000, 15, 15)),
        (UTM, from_origin(500_007, 5_203_011, 70, 70)),
        (UTM, Affine(25, 8, 500_000, 8, -25, 5_202_000)),
        (UTM, Affine(30, 0, 500_000, 0, 30, 5_201_000)),
        (DEGREES, from_origin(9, 46.98, 4e-4, 3e-4)),
        ("EPSG:3857", from_origin(*MERCATOR, 45, 45)),
    ],
)
def test_any_grid_is_brought_to_any_other(tmp_path, dem_crs, dem_transform, crs, transform):
    if dem_crs in ("EPSG:32631", "EPSG:3035"):
        x, y = Transformer.from_crs(UTM, dem_crs, always_xy=True).transform(498_000, 5_205_500)
        dem_transform = from_origin(x, y, 30, 30)
    path = write_dem(tmp_path / "dem.tif", dem_crs, dem_transform, (700, 700))
    found, want = read(path, crs, transform), wanted(transform, SHAPE, crs)
    for band, a, b, most in zip(ALL, found, want, (0.1, 0.05, 3e-3, 3e-3, 2e-6), strict=True):
        assert np.abs(a - b).max() < most, band
    assert found.dtype == np.float32


def test_steps_in_feet_are_metres(tmp_path):
    """A plane of 45 degrees in a CRS of feet, its heights in feet by their own unit."""
    rows = np.mgrid[:40, :40][0] * 100.0
    path = write_raster(tmp_path / "dem.tif", rows[None], crs=FEET, transform=from_origin(1e6, 2e5, 100, 100))
    with rasterio.open(path, "r+") as file:
        file.units = ["US survey foot"]
    out = read(path, FEET, from_origin(1e6 + 1000, 2e5 - 1000, 100, 100), (10, 10))
    np.testing.assert_allclose(out[1], 45, atol=1e-3)
    np.testing.assert_allclose(out[3], 1, atol=1e-6)
    np.testing.assert_allclose(out[0, :, 0], np.arange(10, 20) * 100 * 1200 / 3937, rtol=1e-6)


@pytest.mark.parametrize(
    ("unit", "crs", "metres"),
    [
        ("m", UTM, 1),
        ("ft", UTM, 0.3048),
        ("Feet", UTM, 0.3048),
        ("US survey foot", UTM, 1200 / 3937),
        ("cm", UTM, 0.01),
        ("", UTM, 1),
        ("", "EPSG:32632+5773", 1),
        ("", "EPSG:32632+6360", 1200 / 3937),  # NAVD88 in US survey feet
        ("", "EPSG:32632+8228", 0.3048),
    ],
)
def test_heights_are_in_metres_by_the_unit_of_band_or_crs(tmp_path, unit, crs, metres):
    transform = from_origin(498_500, 5_204_500, 30, 30)
    z = np.full((1, 200, 240), 1000, np.float32) + np.arange(240, dtype=np.float32)
    path = write_raster(tmp_path / "dem.tif", z, crs=crs, transform=transform)
    if unit:
        with rasterio.open(path, "r+") as file:
            file.units = [unit]
    with Terrain(path) as terrain:
        assert terrain.notes == []
        out = SceneTerrain(terrain, UTM, SCENE, SHAPE, "scene.tif").read(["elevation"], 0, 0, 5, 5)
    np.testing.assert_allclose(out[0, 0], np.arange(1050, 1055) * metres, rtol=1e-6)


def test_scale_and_offset_count(tmp_path):
    path = write_dem(tmp_path / "dem.tif", change=lambda z: (z - 1000) * 10, dtype="int16")
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [0.1], [1000]
    np.testing.assert_allclose(read(path)[0], wanted(SCENE, SHAPE, UTM)[0], atol=0.2)


def test_an_unknown_unit_is_said_and_taken_for_metres(tmp_path):
    path = write_dem(tmp_path / "dem.tif")
    with rasterio.open(path, "r+") as file:
        file.units = ["fathom"]
    (said,) = notes(path)
    assert "dem.tif: its heights are in 'fathom', which is not known: taken as metres" in said
    np.testing.assert_allclose(read(path)[0], wanted(SCENE, SHAPE, UTM)[0], rtol=1e-5)
    path = write_raster(tmp_path / "feet.tif", np.ones((1, 9, 9)), crs=FEET, transform=from_origin(1e6, 2e5, 9, 9))
    with Terrain(path) as terrain:
        assert (
            "nothing says the unit of its heights, and its CRS is in US survey foot: taken as metres"
            in terrain.notes[0]
        )


def test_two_units_that_differ_are_said(tmp_path):
    path = write_dem(tmp_path / "dem.tif", "EPSG:32632+6360")
    with rasterio.open(path, "r+") as file:
        file.units = ["m"]
    with Terrain(path) as terrain:
        assert "in 'm' by its band, in 'US survey foot' by its CRS: the band's is taken" in terrain.notes[0]


@pytest.mark.parametrize(
    ("dtype", "void", "declared"),
    [
        ("int16", -32768, None),
        ("int16", -32768, -32768),
        ("int16", -9999, None),
        ("float32", np.nan, None),
        ("float32", -9999, -9999),
        ("float32", -3.4028235e38, None),
        ("uint16", 65535, None),
    ],
)
@pytest.mark.parametrize("crs", [UTM, DEGREES])
def test_voids_are_nan_in_what_looks_at_them_and_reach_no_further(tmp_path, dtype, void, declared, crs):
    def holed(z):
        z = np.round(z)
        z[80:90, 60:75] = void
        return z

    transform = ARCSECOND if crs == DEGREES else None
    shape = (200, 240)
    with np.errstate(invalid="ignore"):
        path = write_dem(tmp_path / "dem.tif", crs, transform, shape, holed, dtype, nodata=declared)
        clean = write_dem(tmp_path / "clean.tif", crs, transform, shape, np.round, dtype)
    found, want = read(path), read(clean)
    assert not np.isnan(want).any()
    missing = np.isnan(found).sum((1, 2))
    size = (10 * 15, 12 * 17, 12 * 17, 12 * 17, 14 * 19)
    if crs == UTM:
        assert missing.tolist() == list(size)
    else:
        assert (np.abs(missing - np.array(size) * 0.72) < 70).all()  # pixels of 31 m by 21 m
    assert np.nanmin(found[0]) > 1900
    near = np.abs(found - want)[1:4]
    assert np.nanmax(near) < (1e-4 if crs == UTM else 3)  # bilinear in place of cubic


def test_a_mask_band_and_an_alpha_band_say_where_voids_are(tmp_path):
    z = np.stack([hills(*places(SCENE, SHAPE, UTM))[0], np.full(SHAPE, 255)]).astype("uint16")
    z[1, 20:30, 20:30] = 0
    path = write_raster(tmp_path / "dem.tif", z, crs=UTM, transform=SCENE)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    assert np.isnan(read(path)[0]).sum() == 100
    path = write_dem(tmp_path / "masked.tif")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        mask = np.full(file.shape, 255, np.uint8)
        mask[60:70, 60:70] = 0
        file.write_mask(mask)
    assert np.isnan(read(path)[0]).sum() == 100


@pytest.mark.filterwarnings("error::glacier_fastai.errors.DataNote")
@pytest.mark.parametrize("crs", [UTM, DEGREES])
@pytest.mark.parametrize("side", [15, 30, 95])
def test_a_window_is_a_part_of_the_whole_and_memory_is_bounded(tmp_path, monkeypatch, crs, side):
    def holed(z):
        z[40:43, 50:90] = -9999
        return z

    transform = from_origin(8.98, 46.99, 1 / 3600, 1 / 3600) if crs == DEGREES else None
    path = write_dem(tmp_path / "dem.tif", crs, transform, (600, 600), holed, nodata=-9999)
    grid = from_origin(499_000, 5_203_000, side, side)
    whole = read(path, UTM, grid)
    monkeypatch.setattr(dem, "CHUNK", 900)
    np.testing.assert_array_equal(read(path, UTM, grid), whole)
    with Terrain(path) as terrain:
        on, held = SceneTerrain(terrain, UTM, grid, SHAPE, "scene.tif"), []
        heights = terrain.heights
        monkeypatch.setattr(terrain, "heights", lambda *a: held.append(a[2] * a[3]) or heights(*a))
        np.testing.assert_array_equal(on.read(ALL, 7, 13, 31, 40), whole[:, 7:38, 13:53])
    assert max(held) < 6000


def test_larger_pixels_are_means_of_which_half_must_be_there(tmp_path):
    def holed(z):
        z[50:53, 50:52] = -9999  # 6 of the 9 pixels of the first
        z[50:53, 53:54] = -9999  # 3 of the second
        return z

    path = write_dem(tmp_path / "dem.tif", change=holed, nodata=-9999)
    found = read(path, UTM, from_origin(500_000, 5_203_000, 90, 90), (4, 5), ["elevation"])[0]
    with rasterio.open(path) as file:
        z = file.read(1, masked=True)[50:62, 50:65].filled(np.nan).reshape(4, 3, 5, 3)
    assert np.isnan(found[0, 0])
    np.testing.assert_allclose(found.ravel()[1:], np.nanmean(z, (1, 3)).ravel()[1:], rtol=1e-6)


def test_a_dem_of_other_ground_is_refused_and_one_of_a_part_is_said(tmp_path):
    path = write_dem(tmp_path / "dem.tif")
    for place in (from_origin(700_000, 5_203_000, 30, 30), from_origin(498_500 + 240 * 30, 5_203_000, 30, 30)):
        with pytest.raises(DataError, match=r"dem.tif: does not cover scene.tif: it shows other ground"):
            notes(path, UTM, place)
    with pytest.raises(DataError, match="does not cover"):
        notes(path, "EPSG:32719", SCENE)
    half = from_origin(498_500 + 200 * 30, 5_203_000, 30, 30)
    (said,) = notes(path, UTM, half)
    assert "dem.tif: covers about 52% of scene.tif; the rest has no heights" in said
    found = read(path, UTM, half)
    assert np.isnan(found[0]).tolist() == [[False] * 40 + [True] * 40] * 60
    small = write_dem(tmp_path / "small.tif", shape=(20, 20), transform=from_origin(500_000, 5_203_000, 2, 2))
    big = from_origin(450_010, 5_250_010, 1000, 1000)
    assert "covers about 1% of" in notes(small, UTM, big, (100, 100))[0]
    assert notes(path) == []


@pytest.mark.parametrize("start", [-180, 0, 179.9])
@pytest.mark.parametrize("crs", ["EPSG:32660", DEGREES])
def test_a_scene_may_cross_the_antimeridian(tmp_path, start, crs):
    """Height is the distance from 179.95 degrees east; the DEM goes around the Earth, or crosses the line itself."""
    step = 1 / 120
    width = 360 * 120 if start != 179.9 else 36
    lon = start + (np.arange(width) + 0.5) * step
    z = np.tile(1000 + 1000 * ((lon - 179.95 + 180) % 360 - 180).clip(-1, 1), (12, 1))
    path = write_raster(
        tmp_path / "dem.tif",
        z[None].astype("float32"),
        crs=DEGREES,
        transform=from_origin(start, 70.05, step, step),
    )
    x, y = Transformer.from_crs(DEGREES, crs, always_xy=True).transform(179.96, 70.03)
    grid = from_origin(x, y, 500, 500) if crs != DEGREES else from_origin(179.96, 70.03, step / 2, step / 2)
    out = read(path, crs, grid, (6, 10))
    assert np.isfinite(out).all()
    cols, rows = np.meshgrid(np.arange(10) + 0.5, np.arange(6) + 0.5)
    x, y = grid.c + grid.a * cols, grid.f + grid.e * rows
    lon = Transformer.from_crs(crs, DEGREES, always_xy=True).transform(x, y)[0] % 360
    np.testing.assert_allclose(out[0], 1000 + 1000 * (lon - 179.95), atol=2)


def refused(name, **change):
    def write(path):
        z = np.full((1, 40, 40), 1000, np.float32) + np.arange(40, dtype=np.float32)
        options = {"crs": change.get("crs", UTM), "transform": SCENE, "bands": change.get("bands")}
        return write_raster(path, change.get("values", lambda z: z)(z), **options)

    return pytest.param(write, change["match"], id=name)


@pytest.mark.parametrize(
    ("write", "match"),
    [
        refused("bands", values=lambda z: z.repeat(3, 0), match="has 3 bands, but an elevation model has one"),
        refused("no CRS", crs=None, match="has no coordinate reference system; assign one"),
        refused(
            "centimetres", values=lambda z: z * 100, match="holds 100000 to 103900, which are no heights in metres"
        ),
        refused("reflectance", values=lambda z: -z, match="holds -1039 to -1000, which are no heights"),
        refused("hillshade", bands=("Hillshade",), match="its band is described as Hillshade, no heights"),
        refused("thickness", bands=("ice_thickness (m)",), match="its band is described as ice_thickness, no heights"),
        refused("voids", values=lambda z: z * np.nan, match="holds no heights, only voids"),
        refused("fill", values=lambda z: z * 0 - 9999, match="holds .*no heights"),
        refused(
            "complex", values=lambda z: z.astype("complex64"), match="holds colours or complex numbers, no heights"
        ),
    ],
)
def test_what_is_no_elevation_model_is_refused(tmp_path, write, match):
    path = write(tmp_path / "dem.tif")
    with pytest.raises(DataError, match=rf"dem.tif: {match}") as err:
        Terrain(path)
    assert "\n" not in str(err.value)


@pytest.mark.parametrize("said", ["elevation", "height (m)", "slope-filtered DEM", "DEM without hillshade"])
def test_other_descriptions_may_be_of_heights(tmp_path, said):
    with Terrain(write_dem(tmp_path / "dem.tif", bands=(said,))) as terrain:
        assert terrain.notes == []


def test_a_file_without_a_grid_or_that_is_none_is_refused(tmp_path):
    path = tmp_path / "dem.tif"
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_raster(path, np.ones((1, 9, 9)), transform=Affine.identity())
    with pytest.raises(DataError, match="no geotransform that says where its pixels lie"):
        Terrain(path)
    with pytest.raises(DataError, match="none.tif: no such file"):
        Terrain(tmp_path / "none.tif")


def test_pixels_finer_than_can_be_averaged_are_refused(tmp_path):
    path = write_dem(tmp_path / "dem.tif", transform=from_origin(500_900, 5_202_100, 0.005, 0.005))
    with (
        Terrain(path) as terrain,
        pytest.raises(DataError, match=r"dem\.tif: .* 4096 times finer than those of s\.tif"),
    ):
        SceneTerrain(terrain, UTM, SCENE, SHAPE, "s.tif")


def test_a_file_cut_short_is_refused(tmp_path):
    path = write_dem(tmp_path / "dem.tif")
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(DataError, match=r"dem.tif: not a raster, cut short or damaged"):
        read(path)


def test_a_few_heights_that_cannot_be_are_voids_and_said_once(tmp_path):
    def spike(z):
        z[60, 60] = 12_000
        return z

    path = write_dem(tmp_path / "dem.tif", change=spike)
    with Terrain(path) as terrain:
        on = SceneTerrain(terrain, UTM, SCENE, SHAPE, "scene.tif")
        with pytest.warns(DataNote, match="dem.tif: holds heights below -500 m or above 9000 m: taken for voids"):
            assert np.isnan(on.read(["elevation"], 0, 0, 30, 30)).sum() == 1
        assert len(on.notes) == 1
        on.read(["slope"], 0, 0, 30, 30)
        assert len(on.notes) == 1


def test_a_fill_value_that_nobody_declared_is_said(tmp_path):
    def filled(z):
        z[:, 200:] = 0
        return z

    def shore(z):
        return np.clip(z - np.quantile(z, 0.3), 0, None)

    (said,) = notes(write_dem(tmp_path / "dem.tif", change=filled))
    assert "dem.tif: 0 on " in said
    assert "taken for voids; declare it (gdal_edit.py -a_nodata 0)" in said
    (said,) = notes(path := write_dem(tmp_path / "both.tif", change=filled, nodata=-9999))  # beside another
    assert "taken for voids; make it -9999" in said
    with Terrain(path) as terrain:
        assert np.isnan(terrain.heights(5, 210, 9, 9)).all()
    for nodata in (None, -9999):
        assert notes(write_dem(tmp_path / "sea.tif", change=shore, nodata=nodata)) == []


def test_a_datum_whose_shift_is_not_known_is_said(tmp_path):
    path = write_dem(tmp_path / "dem.tif", "EPSG:4144", ARCSECOND, (700, 700))
    assert any("dem.tif: the shift from the datum of Kalianpur 1937" in text for text in notes(path))


def test_a_scene_that_is_not_north_up_is_said(tmp_path):
    path = write_dem(tmp_path / "dem.tif")
    (said,) = notes(path, UTM, Affine(30, 0, 500_000, 0, 30, 5_201_000))
    assert "scene.tif: its rows do not run from west to east and north to south: aspect counts from north" in said


@pytest.mark.skipif(not REAL.exists(), reason="needs shared/data/inventories")
def test_real_models_are_read():
    with Terrain(REAL / "oetztal_srtm.tif") as terrain:
        assert terrain.notes == []
        on = SceneTerrain(terrain, "EPSG:32632", from_origin(630_000, 5_200_000, 30, 30), (300, 400), "scene.tif")
        out = on.read(ALL, 0, 0, 300, 400)
        assert np.isfinite(out).all()
        assert 1500 < out[0].min() < out[0].max() < 3800
        assert 10 < out[1].mean() < 40
    with Terrain(REAL / "exploradores_aster_dem.tif") as terrain:
        on = SceneTerrain(terrain, terrain.crs, terrain.transform, terrain.raster.shape, "scene.tif")
        out = on.read(ALL, 0, 0, *terrain.raster.shape)
        z = terrain.raster.read(1, masked=True).filled(np.nan)
        np.testing.assert_array_equal(out[0], z)
        np.testing.assert_allclose(out[1], slope(z, 30, 30), rtol=1e-5, atol=1e-5)
        assert math.isclose(np.isnan(out[1]).mean(), np.isnan(slope(z, 30, 30)).mean())
