import re
import warnings

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC
from rasterio.shutil import copy
from rasterio.transform import from_origin
from scenes import BANDS, CRS, made_up, write_raster, write_scene

from glacier_fastai.data.scenes.geotiff import SceneRaster
from glacier_fastai.errors import DataError

VALUES, _, VALID = made_up()
REFLECTANCE = VALUES / np.float32(10_000)
EVERYTHING = range(len(BANDS))


def tagged(path, **tags):
    with rasterio.open(path, "r+") as file:
        for name, value in tags.items():
            setattr(file, name, value)
    return path


def read(path, *args, **kwargs):
    with SceneRaster(path, *args, **kwargs) as scene:
        values, valid = scene.read_window(EVERYTHING[: len(scene.bands)], 0, 0, scene.height, scene.width)
        return scene.in_units(values, EVERYTHING[: len(scene.bands)]), valid, scene


LANDSAT = ([2.75e-5] * 4 + [0.00341802], [-0.2] * 4 + [149.0])


def as_landsat(path):
    """The made-up scene with reflectances, and a thermal band from 268 to 275 K, in the numbers of Collection 2."""
    values = np.concatenate([REFLECTANCE[:4], 260 + REFLECTANCE[4:] * 10])
    numbers = np.rint((values - np.reshape(LANDSAT[1], (5, 1, 1))) / np.reshape(LANDSAT[0], (5, 1, 1)))
    numbers[:, ~VALID] = 0
    return values, write_raster(path, numbers.astype("uint16"), nodata=0, bands=BANDS)


def test_numbers_with_tags_or_with_the_users_word_are_values_in_units(tmp_path):
    want, path = as_landsat(tmp_path / "s.tif")
    word, valid, scene = read(path, scale=LANDSAT[0], offset=LANDSAT[1])
    assert [how.unit for how in scene.scaling] == ["reflectance"] * 4 + ["kelvin"]
    np.testing.assert_allclose(word[:, valid], want[:, VALID], atol=2e-3)
    by_name, _, _ = read(
        path,
        scale=dict(zip(BANDS, LANDSAT[0], strict=True)),
        offset=dict(zip(BANDS, LANDSAT[1], strict=True)),
    )
    np.testing.assert_array_equal(word, by_name)
    tagged(path, scales=LANDSAT[0], offsets=LANDSAT[1])
    tags, _, scene = read(path)
    np.testing.assert_array_equal(word, tags)
    np.testing.assert_array_equal(valid, VALID)
    assert scene.profile.units == dict(zip(BANDS, ["reflectance"] * 4 + ["kelvin"], strict=True))
    assert scene.profile.pixel_size == pytest.approx(30, rel=1e-3)
    assert scene.profile.quantiles["blue"][3] == pytest.approx(np.median(want[0][VALID]), abs=1e-3)


def test_one_number_is_for_reflected_light_and_that_is_said(tmp_path):
    path = write_raster(tmp_path / "s.tif", VALUES, nodata=0, bands=BANDS)
    with SceneRaster(path, scale=1e-4, offset=-0.1) as scene:
        assert list(scene.scaling[:2]) == [(1e-4, -0.1, "reflectance")] * 2
        assert scene.scaling[4] == (1, 0, "dn")
        assert any("thermal keep their own" in line for line in scene.look())


def test_a_word_against_the_tags_is_refused(tmp_path):
    _, path = as_landsat(tmp_path / "s.tif")
    tagged(path, scales=LANDSAT[0], offsets=LANDSAT[1])
    with SceneRaster(path, scale=2.75e-5, offset=-0.2):
        pass  # the same again
    with pytest.raises(DataError, match=r"s\.tif: scale 0\.0001 .* band blue, but the file says 2\.75e-05"):
        SceneRaster(path, scale=1e-4)
    with pytest.raises(DataError, match=r"s\.tif: offset -0\.1 "):
        SceneRaster(path, offset=-0.1)
    with pytest.raises(DataError, match="3 numbers for 5 bands"):
        SceneRaster(path, scale=[1, 2, 3])
    with pytest.raises(DataError, match="scale of 0"):
        SceneRaster(tagged(path, scales=[0.0] * 5))
    with pytest.raises(DataError, match="scale of 0"):
        SceneRaster(tagged(path, scales=[1e-320] * 5))
    with pytest.raises(DataError, match="a scale that is no number, or beyond"):
        SceneRaster(tagged(path, scales=[1e39] * 5))


def test_tags_of_some_bands_only_are_said(tmp_path):
    path = write_raster(tmp_path / "s.tif", VALUES, nodata=0, bands=BANDS)
    tagged(path, scales=[1e-4, 1e-4, 1.0, 1e-4, 1.0])
    with SceneRaster(path) as scene:
        (line,) = scene.look()
    assert "red are of unknown unit" in line


def test_units_that_the_file_names(tmp_path):
    path = write_raster(tmp_path / "s.tif", REFLECTANCE, bands=BANDS)
    tagged(path, units=["reflectance"] * 4 + ["degC"])
    values, _, scene = read(path)
    assert [how.unit for how in scene.scaling] == ["reflectance"] * 4 + ["kelvin"]
    np.testing.assert_allclose(values[4], REFLECTANCE[4] + 273.15, rtol=1e-6)


def test_the_scale_of_landsat_without_its_offset_is_said(tmp_path):
    _, path = as_landsat(tmp_path / "s.tif")
    line = "blue, green, red, swir1: scale 2.75e-05 without offset, where Landsat has -0.2"
    with SceneRaster(path, scale=2.75e-5) as scene:
        assert sum(line in each for each in scene.look()) == 1
    with SceneRaster(path, scale=2.75e-5, offset=-0.2) as scene:
        assert not any("without offset" in each for each in scene.look())
    with SceneRaster(tagged(path, scales=LANDSAT[0], offsets=[0.0] * 4 + [149.0])) as scene:
        assert sum(line in each for each in scene.look()) == 1


def test_tags_left_over_on_values_are_said(tmp_path):
    path = tagged(write_raster(tmp_path / "s.tif", REFLECTANCE, bands=BANDS), scales=[1e-4] * 5)
    with SceneRaster(path, bands={2: "green"}) as scene:
        line = scene.look()[0]
        assert scene.scaling[0].unit == "dn"
    assert "s.tif: band green is reflectance before its scale already" in line and "gdal_edit.py -scale 1" in line


def test_floats_without_a_word_are_known_by_their_range(tmp_path):
    path = write_raster(tmp_path / "s.tif", np.concatenate([REFLECTANCE[:4], 270 + REFLECTANCE[4:]]), bands=BANDS)
    assert [how.unit for how in SceneRaster(path).scaling] == ["reflectance"] * 4 + ["kelvin"]
    whole = write_raster(tmp_path / "w.tif", VALUES.astype("float32"), bands=BANDS)
    assert {how.unit for how in SceneRaster(whole).scaling} == {"dn"}


@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_0_in_some_bands_is_data_and_in_all_is_none_where_0_is_declared(tmp_path, kind):
    values = VALUES.astype(kind)
    values[1, 5, 5:9] = 0
    path = write_raster(tmp_path / "s.tif", values, nodata=0, bands=BANDS)
    valid = VALID.copy()
    np.testing.assert_array_equal(read(path)[1], valid)
    other = write_raster(tmp_path / "o.tif", np.where(values == 0, 9, values), nodata=9, bands=BANDS)
    valid[5, 5:9] = False  # any other value that is declared is none in any band
    np.testing.assert_array_equal(read(other)[1], valid)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("named", [True, False])
def test_an_alpha_band_masks_in_files_of_any_number_of_bands(tmp_path, count, named):
    opaque = np.full((96, 80), 65535, "uint16")
    opaque[:, :20] = 0
    values = np.concatenate([VALUES[:count] + 1, opaque[None]])
    path = write_raster(tmp_path / "s.tif", values, bands=[*BANDS[:count], "-" if named else ""])
    tagged(path, colorinterp=[ColorInterp.gray, *[ColorInterp.undefined] * (count - 1), ColorInterp.alpha])
    np.testing.assert_array_equal(read(path)[1], opaque > 0)
    if named:
        with pytest.raises(DataError, match=rf"band {count + 1}, named nir, is the alpha band"):
            SceneRaster(path, [*BANDS[:count], "nir"])


def test_an_alpha_band_of_floats_is_none_either(tmp_path):
    opaque = np.ones((1, 96, 80), "float32")
    opaque[:, :, :20] = 0
    path = write_raster(tmp_path / "s.tif", np.concatenate([REFLECTANCE[:2], opaque]), bands=[*BANDS[:2], "red"])
    kinds = [ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha]
    with pytest.raises(DataError, match="band 3, named red, is the alpha band"):
        SceneRaster(tagged(path, colorinterp=kinds))
    assert (read(path, [*BANDS[:2], "-"])[1] == (opaque[0] > 0)).all()


def test_a_colour_table_is_no_brightness(tmp_path):
    path = write_raster(tmp_path / "s.tif", (VALUES[:1] // 40).astype("uint8"))
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {k: (k, 255 - k, 0, 255) for k in range(256)})
    with pytest.raises(DataError, match=r"s\.tif: band 1 has a colour table.*red"):
        SceneRaster(path, ["red"])


def unplaced(path, **about):
    profile = {"driver": "GTiff", "count": 5, "height": 96, "width": 80, "dtype": "uint16"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as file:
            file.write(VALUES)
            file.descriptions = BANDS
            for name, value in about.items():
                setattr(file, name, value)
    return path


def test_scenes_that_lie_nowhere_are_refused_with_what_mends_them(tmp_path):
    with pytest.raises(DataError, match=r"s\.tif: .*no geotransform.*gdal_edit\.py -a_ullr"):
        SceneRaster(unplaced(tmp_path / "s.tif", crs=rasterio.CRS.from_string(CRS)))
    with pytest.raises(DataError, match=r"u\.tif: .*no geotransform"):
        SceneRaster(unplaced(tmp_path / "u.tif", crs=rasterio.CRS.from_string(CRS), transform=from_origin(0, 0, 1, 1)))
    with pytest.raises(DataError, match="no coordinate reference system"):
        SceneRaster(unplaced(tmp_path / "n.tif"))
    corners = [GroundControlPoint(r, c, 5e5 + 30 * c, 3.1e6 - 30 * r) for r in (0, 96) for c in (0, 80)]
    with pytest.raises(DataError, match=r"g\.tif: .*4 ground control points.*gdalwarp -t_srs EPSG:32645"):
        SceneRaster(unplaced(tmp_path / "g.tif", gcps=(corners, rasterio.CRS.from_string(CRS))))
    line = [1.0] + [0.0] * 19
    rpc = RPC(0, 1, 28, 1, line, line, 1, 1, 87, 1, line, line, 1, 1, None, None)
    with pytest.raises(DataError, match=r"r\.tif: .*RPC.*gdalwarp -rpc"):
        SceneRaster(unplaced(tmp_path / "r.tif", rpcs=rpc))
    rpc_of_text = '<Metadata domain="RPC"><MDI key="HEIGHT_OFF">x</MDI></Metadata>'
    (tmp_path / "s.tif.aux.xml").write_text(f"<PAMDataset>{rpc_of_text}</PAMDataset>")
    with pytest.raises(DataError, match=r"s\.tif: .*RPC"):
        SceneRaster(tmp_path / "s.tif")


def test_subdatasets_are_named(tmp_path):
    from rasterio.shutil import copy

    write_raster(tmp_path / "s.tif", VALUES[:2], bands=BANDS[:2])
    copy(str(tmp_path / "s.tif"), str(tmp_path / "s.nc"), driver="netCDF")
    with pytest.raises(DataError, match=r"s\.nc: .*Band1, Band2.*gdalbuildvrt -separate"):
        SceneRaster(tmp_path / "s.nc")


def test_fill_that_nobody_declared_is_said(tmp_path):
    values = made_up(nodata=False)[0] / np.float32(10_000)
    values[:, :, :12] = -9999
    path = write_raster(tmp_path / "s.tif", values, bands=BANDS)
    with SceneRaster(path) as scene:
        assert any("-9999" in line and "gdal_edit.py -a_nodata" in line for line in scene.look())
    path = write_raster(tmp_path / "d.tif", values, bands=BANDS, nodata=-9999)
    with SceneRaster(path) as scene:
        assert scene.look() == []


def test_a_large_scene_is_looked_at_in_windows_up_to_its_edges(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(100, 900, (2, 700, 400), np.uint16)
    path = write_raster(tmp_path / "s.tif", values, bands=BANDS[:2], nodata=0)
    with SceneRaster(path) as scene:
        sample = scene.sample
        assert sample.numbers.shape == (2, 64 * 32 * 32)
        assert sample.rim.sum() == 4 * 8 * 32 - 4  # of each side, windows' outer edges
        np.testing.assert_allclose(
            scene.profile.quantiles["blue"], np.quantile(values[0], (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)), atol=8
        )


def test_masks_of_single_bands_count(tmp_path):
    path = write_raster(tmp_path / "s.tif", VALUES, bands=BANDS)
    masks = np.full(VALUES.shape, 255, "uint8")
    masks[1, :9] = 0
    write_raster(tmp_path / "m.tif", masks).rename(tmp_path / "s.tif.msk")
    with rasterio.open(tmp_path / "s.tif.msk", "r+") as file:
        file.update_tags(**{f"INTERNAL_MASK_FLAGS_{n}": "0" for n in range(1, len(BANDS) + 1)})
    assert (read(path)[1] == (VALID & (masks[1] > 0))).all()


def test_a_mask_file_of_another_size_is_refused(tmp_path):
    path = write_raster(tmp_path / "s.tif", VALUES, bands=BANDS)
    mask = np.full((96, 80), 255, "uint8")
    mask[:, :9] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    assert (read(path)[1] == (VALID & (mask > 0))).all()
    (tmp_path / "s.tif.msk").unlink()
    write_raster(tmp_path / "m.tif", mask[None, :40]).rename(tmp_path / "s.tif.msk")
    with pytest.raises(DataError, match=r"s\.tif\.msk: 40 x 80 px, but s\.tif has 96 x 80"):
        SceneRaster(path)


def test_a_band_of_a_vrt_that_its_sources_cover_less_than_others_is_said(tmp_path):
    scene, _ = write_scene(tmp_path / "s.tif")
    copy(scene, tmp_path / "s.vrt", driver="VRT")
    text = re.sub(r'relativeToVRT="0">[^<]*', 'relativeToVRT="1">s.tif', (tmp_path / "s.vrt").read_text())
    begin, band, end = text.partition('band="2"')
    (tmp_path / "s.vrt").write_text(text)
    with SceneRaster(tmp_path / "s.vrt") as whole:
        assert not [line for line in whole.notes if "cover" in line]
    half = re.sub(r'(<DstRect .* ySize=")(\d+)', lambda m: f"{m[1]}{int(m[2]) // 2}", end, count=1)
    for part, share in ((half, "50.0%"), (re.sub(r"(?s)<SimpleSource>.*?</SimpleSource>", "", end, count=1), "0.0%")):
        (tmp_path / "s.vrt").write_text(begin + band + part)
        with SceneRaster(tmp_path / "s.vrt") as scene_of_less:
            (line,) = [line for line in scene_of_less.notes if "cover" in line]
        assert f"its sources cover {share} of band 2, more of others" in line
