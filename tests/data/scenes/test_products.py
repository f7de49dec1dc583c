import re
import shutil
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from contract.scenes import ProductContract
from products import HLS_CRS, KINDS, SIZE, UL, clouds, hls, landsat, packed, sentinel2, write
from web import Web

from glacier_fastai.data.scenes import archive
from glacier_fastai.data.scenes.opening import open_scene, scene_name
from glacier_fastai.errors import DataError, OutputError


def bit(name, n):
    """Where a bit of flags is set, and the pixel is not fill."""
    return lambda codes: ((codes[name] >> n & 1) == 1) & ~((codes[name] & 1) == 1)


def is_(name, *values):
    return lambda codes: np.isin(codes[name], values)


def radsat(codes):
    return codes["QA_RADSAT"] != 0


QA_PIXEL = {kind: bit("QA_PIXEL", n) for kind, n in {"dilated": 1, "clouds": 3, "shadows": 4}.items()}
QA_PIXEL |= {"fill": is_("QA_PIXEL", 1), "saturated": radsat}
CIRRUS = {"cirrus": bit("QA_PIXEL", 2)}
BQA = {"fill": is_("BQA", 1), "clouds": is_("BQA", 2800), "shadows": is_("BQA", 2976)}
PIXEL_QA = {kind: is_("pixel_qa", code) for kind, code in {"clouds": 480, "shadows": 328, "cirrus": 834}.items()}
SCL = {"clouds": is_("SCL", 8, 9), "cirrus": is_("SCL", 10), "shadows": is_("SCL", 3), "fill": is_("SCL", 0)}


def of(name, flags, **attributes):
    """Return the tests of a kind of product."""
    write_it = KINDS[name]
    fields = {"write": lambda self, folder: write_it(folder), "flags": flags, **attributes}
    return type(f"Test{re.sub('[^A-Za-z0-9]', '', name)}", (ProductContract,), fields)


TestLC08C2L2 = of("LC08 C2 L2", QA_PIXEL | CIRRUS)
TestLC09C2L1 = of("LC09 C2 L1", QA_PIXEL | CIRRUS)
TestLO08C2L2 = of("LO08 C2 L2", QA_PIXEL | CIRRUS)
TestLE07C2L2 = of("LE07 C2 L2", QA_PIXEL)
TestLE07C2L1 = of("LE07 C2 L1", QA_PIXEL)
TestLT05C2L2 = of("LT05 C2 L2", QA_PIXEL)
TestLC08C1L1 = of("LC08 C1 L1", BQA | {"cirrus": is_("BQA", 6816)})
TestLE07C1L1 = of("LE07 C1 L1", BQA)
TestLT04C1L1 = of("LT04 C1 L1", BQA)
TestLC08C1L2 = of("LC08 C1 L2", PIXEL_QA | {"fill": is_("pixel_qa", 1), "saturated": radsat})
TestS2L2A = of("S2 L2A", SCL | {"saturated": is_("SCL", 1)})
TestS2L2AOld = of("S2 L2A old", SCL | {"saturated": is_("SCL", 1)})
TestS2L1C = of("S2 L1C", {"clouds": lambda c: c["CLASSI"][0] == 1, "cirrus": lambda c: c["CLASSI"][1] == 1})
FMASK = {"clouds": is_("Fmask", 66, 18), "dilated": is_("Fmask", 132), "shadows": is_("Fmask", 8)}
TestL30 = of("HLS L30", FMASK | {"fill": is_("Fmask", 255)}, crs=HLS_CRS)
TestS30 = of("HLS S30", FMASK | {"fill": is_("Fmask", 255)}, crs=HLS_CRS)


def read_all(path, **how):
    with open_scene(path, **how) as scene:
        every = range(len(scene.bands))
        numbers, valid = scene.read_window(every, 0, 0, scene.height, scene.width)
        return scene.in_units(numbers, every), valid


# Landsat


def test_every_language_of_an_mtl_says_the_same(tmp_path):
    made = landsat(tmp_path / "p", "LE07", "L1TP")
    read = [read_all(next((tmp_path / "p").glob(f"*_MTL.{kind}"))) for kind in ("json", "txt", "xml")]
    for values, valid in read[1:]:
        np.testing.assert_array_equal(values, read[0][0])
        np.testing.assert_array_equal(valid, read[0][1])
    assert scene_name(made.metadata) == "LE07_L1TP_140041_20201113_20210317_02_T1"


def test_pan_is_read_where_it_is_wanted(tmp_path):
    made = landsat(tmp_path / "p", "LC08", "L1TP")
    with open_scene(made.path, ["pan", "red"]) as scene, open_scene(made.path, ["pan", "red"], 30) as coarse:
        assert (scene.height, scene.width) == (2 * SIZE, 2 * SIZE) and {*scene.bands} == {"pan", "red"}
        assert (coarse.height, coarse.width) == (SIZE, SIZE)


def changed(made, old, new):
    """Change the text of all metadata of a product."""
    for path in made.path.rglob("*"):
        if path.suffix in (".json", ".txt", ".xml"):
            path.write_text(re.sub(old, new, path.read_text()))
    return made.path


def test_what_of_landsat_is_refused(tmp_path):
    made = landsat(tmp_path / "p", "LC08", "L1TP")
    keep = {path: path.read_text() for path in made.path.glob("*_MTL.*")}
    for old, new, message in (
        (r'(REFLECTIVE_LINES"?\D+)96', r"\g<1>97", r"B2\.TIF: 96 x 96 px, but \S+_MTL\.json says 97 x 96"),
        (r'(UTM_ZONE"?\D+)45', r"\g<1>46", r"B2\.TIF: in UTM zone 45, but \S+_MTL\.json says 46"),
        (r'(SUN_ELEVATION"?\D+)38', r"\g<1>-38", r"_MTL\.json: taken at night \(SUN_ELEVATION -38"),
        (r'(SUN_ELEVATION"?\D+)38', r"\g<1>x38", r"_MTL\.json: SUN_ELEVATION is .*, no number"),
        ("K1_CONSTANT_BAND_10", "K", r"_MTL\.json: lacks K1_CONSTANT_BAND_10"),
        (r'(K1_CONSTANT_BAND_10"?\D+)774', r"\g<1>-774", r"_MTL\.json: K1 or K2 of band 10 is not positive"),
        (r'(SUN_ELEVATION"?\D+)38', r"\g<1>138", r"_MTL\.json: SUN_ELEVATION is 138\.\d+, more than 90"),
        (r'(REFLECTANCE_MULT_BAND_4"?\D+)2', r"\g<1>-2", r"the scale of red is -\S+, and not positive"),
        ("2020-11-13", "2020-99-99", "its metadata name no time that it was taken at"),
        (r"(\")[^\"]*_B4\.TIF", r"\1../b/B4.TIF", r"names \.\./b/B4\.TIF, which does not lie in its folder"),
        (r"(\")[^\"]*_B4\.TIF", r"\1/b/B4.TIF", "names /b/B4.TIF, which does not lie in its folder"),
        ("OLI_TIRS", "MSS", "LANDSAT_8 MSS is not read"),
        ("METADATA_FILE", "X", "no metadata of Landsat"),
        ("{", "", r"_MTL\.json: damaged, or not JSON"),
        (r"_B4\.TIF", "_B4_COPY.TIF", r"no file \S+_B4_COPY\.TIF for band red, which \S+_MTL\.json names"),
    ):
        with pytest.raises(DataError, match=message), open_scene(changed(made, old, new)):
            pass
        for path, text in keep.items():
            path.write_text(text)


@pytest.mark.parametrize("kind", ["txt", "xml"])
def test_what_stands_twice_in_an_mtl(tmp_path, kind):
    made = landsat(tmp_path / "p", "LC08", "L1TP", kinds=(kind,))
    path = next(made.path.glob("*_MTL.*"))
    text = path.read_text()
    line = next(line for line in text.splitlines(True) if "SUN_ELEVATION" in line)
    path.write_text(text.replace(line, line * 2))
    open_scene(made.path).close()
    path.write_text(text.replace(line, line + line.replace("38", "39")))
    with pytest.raises(DataError, match=rf"_MTL\.{kind}: no metadata that can be used \(SUN_ELEVATION stands twice\)"):
        open_scene(made.path)
    if kind == "txt":
        path.write_text("GROUP = A\n" * 3000 + "END_GROUP = A\n" * 3000)
        with pytest.raises(DataError, match="groups nested more than 64 deep"):
            open_scene(made.path)


@pytest.mark.parametrize("rename", [str.lower, str.upper])
def test_names_of_files_in_another_case(tmp_path, rename):
    made = landsat(tmp_path / "p")
    want = read_all(made.path)
    for path in [*made.path.glob("*.TIF")]:
        path.rename(path.with_name(rename(path.stem) + rename(path.suffix)))
    for got, expected in zip(read_all(made.path), want, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_level_2_takes_nothing_of_level_1(tmp_path):
    made = landsat(tmp_path / "p")
    path = changed(made, "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS", "OTHER")
    with pytest.raises(DataError, match="lacks REFLECTANCE_MULT_BAND_2"):
        open_scene(path)


def test_levels_that_are_mixed(tmp_path):
    both = tmp_path / "p"
    landsat(both, "LC08", "L1TP")
    second = landsat(both, "LC08", "L2SP")
    with pytest.raises(DataError, match=r"holds 2 products, LC08_L1TP_\S+ and LC08_L2SP_\S+; name its metadata file"):
        open_scene(both)
    with open_scene(second.metadata) as scene:
        assert scene.scaling[0].scale == 2.75e-5
    espa = landsat(tmp_path / "c1", "LC08", "SR", 1, ("txt",))
    landsat(tmp_path / "c1", "LC08", "L1TP", 1, ())
    with pytest.raises(DataError, match=r"bands of both levels .*_B2\.TIF and"):
        open_scene(espa.path)


def test_without_flags_nothing_is_masked_and_that_is_said(tmp_path):
    made = landsat(tmp_path / "p")
    next(made.path.glob("*_QA_PIXEL.TIF")).unlink()
    with open_scene(made.path) as scene:
        assert any("has no flags of clouds, so none are masked" in note for note in scene.look())


# Sentinel-2


@pytest.mark.parametrize("quantification", [10000, 1000])
def test_offset_and_quantification_of_sentinel_2(tmp_path, quantification):
    for level in ("1C", "2A"):
        new = sentinel2(tmp_path / level, level, quantification=quantification)
        old = sentinel2(tmp_path / level, level, "03.01", quantification=quantification)
        for band in new.values:
            a, b = (read_all(made.path, keep=["clouds", "cirrus", "shadows", "saturated"]) for made in (new, old))
            np.testing.assert_allclose(a[0][:, 4:], b[0][:, 4:], atol=1.1 / quantification, err_msg=band)


def test_an_offset_that_should_be_there_is_said(tmp_path):
    made = sentinel2(tmp_path, "1C")
    changed(made, "<RADIO_ADD_OFFSET.*</RADIO_ADD_OFFSET>", "")
    for before, baseline, said in (("05.00", "05.00", True), ("05.00", "5.00", True), ("5.00", "03.01", False)):
        changed(made, f">{before}<", f">{baseline}<")
        with open_scene(made.path) as scene:
            assert any("names no offset" in note for note in scene.notes) == said


def test_coarser_images_where_the_finest_are_not_there(tmp_path):
    made = sentinel2(tmp_path)
    for path in made.path.rglob("*_10m.jp2"):
        path.unlink()
    with open_scene(made.path) as scene:
        assert scene.bands == ("blue", "green", "red", "nir", "swir1", "swir2")
        assert (scene.height, scene.width) == (SIZE // 2, SIZE // 2)
        assert sum("as no finer image is there" in note for note in scene.notes) == 4


def test_a_place_that_libgeotiff_cannot_read_is_one_line(tmp_path, capfd):
    made = sentinel2(tmp_path)
    data = bytearray(made.files["red"].read_bytes())
    at = data.index(b"II*\0") if b"II*\0" in data else data.index(b"MM\0*")
    (entry,) = [k for k in range(at, at + 400) if data[k : k + 4] == b"\xaf\x87\x03\0"]  # GeoKeyDirectory, of shorts
    data[int.from_bytes(data[entry + 8 : entry + 12], "little") + at + 12] = 0  # its first key has a count of 0
    made.files["red"].write_bytes(data)
    with pytest.raises(DataError, match="no coordinate reference system"):
        open_scene(made.path, ["red"])
    with Web({"x.jp2": bytes(data)}) as server, pytest.raises(DataError, match="no coordinate reference system"):
        open_scene(f"{server.url}/x.jp2", bands=["red"])
    assert capfd.readouterr().err == ""


def test_polygons_of_clouds(tmp_path):
    (x, y), k = UL, 60
    box = [(x + k, y - 3 * k), (x + 4 * k, y - 3 * k), (x + 4 * k, y - 5 * k), (x + k, y - 5 * k), (x + k, y - 3 * k)]
    want = np.zeros((SIZE, SIZE), bool)
    want[18:30, 6:24] = True
    made = sentinel2(tmp_path, "1C", "02.09", gml=clouds(OPAQUE=box))
    with open_scene(made.path) as scene:
        assert scene.look() == []
        np.testing.assert_array_equal(scene.masked(0, 0, SIZE, SIZE)["clouds"], want)
        np.testing.assert_array_equal(scene.masked(20, 3, 15, 10)["clouds"], want[20:35, 3:13])
    made = sentinel2(tmp_path / "clear", "1C", "02.09", gml=clouds())
    with open_scene(made.path, keep=["clouds"]) as scene:
        assert scene.look() == []
    made = sentinel2(tmp_path / "bad", "1C", "02.09", gml=clouds(CIRRUS=[(1, "x")]))
    with pytest.raises(DataError, match=r"MSK_CLOUDS_B00\.gml: holds a damaged polygon"):
        open_scene(made.path)


def test_what_of_sentinel_2_is_refused(tmp_path):
    made = sentinel2(tmp_path)
    keep = {path: path.read_text() for path in made.path.rglob("*.xml")}
    for old, new, message in (
        ("<NROWS>96", "<NROWS>97", r"B02_10m\.jp2: 96 x 96 px, but MTD_MSIL2A\.xml says 97 x 96"),
        ("EPSG:32645", "EPSG:32646", "in UTM zone 45, but"),
        (">10000<", ">0<", "BOA_QUANTIFICATION_VALUE is 0"),
        (">10000<", "><", "BOA_QUANTIFICATION_VALUE is '', no number"),
        (">-1000<", ">many<", "BOA_ADD_OFFSET is 'many', no number"),
        (">-1000<", ">-1_0<", "BOA_ADD_OFFSET is '-1_0', no number"),
        (">10000<", ">١٠٠٠٠<", "BOA_QUANTIFICATION_VALUE is '١٠٠٠٠', no number"),
        ('band_id="2">-1000', 'band_id="3">-900', r"MTD_MSIL2A\.xml: band_id 3 has two offsets"),
        (
            "(<BOA_QUANTIFICATION_VALUE[^>]*>)10000(<[^>]*>)",
            r"\g<1>10000\g<2>\g<1>20000\g<2>",
            "BOA_QUANTIFICATION_VALUE is 10000 and 20000",
        ),
        ("2021-01-01T04", "2021-77-01T04", "its metadata name no time that it was taken at"),
        ('band_id="12"', 'band_id="13"', "band_id 13; bands are 0 to 12"),
        ("2021-01-01T04", "yesterday", "PRODUCT_START_TIME is 'yesterday"),
        ("<n1:General_Info>", "", r"MTD_MSIL2A\.xml: damaged, or not XML"),
        (r"<\?xml.*\?>", '<!DOCTYPE a [<!ENTITY b "c">]>', "declares types or entities"),
    ):
        with pytest.raises(DataError, match=message), open_scene(changed(made, old, new)):
            pass
        for path, text in keep.items():
            path.write_text(text)
    image = next(made.path.rglob("*_B02_10m.jp2"))
    other = shutil.copy(
        image.with_name(image.name.replace("B02", "B03")), image.with_name(f"T45RVL_2099_{image.name[-11:]}")
    )
    with pytest.raises(DataError, match="B02_10m.jp2 are both B02; remove the wrong one"):
        open_scene(made.path)
    other.unlink()
    shutil.copytree(
        next((made.path / "GRANULE").iterdir()), made.path / "GRANULE" / "L2A_T45RVM_A020006_20210101T044321"
    )
    with pytest.raises(DataError, match="holds 2 tiles"):
        open_scene(made.path)


def test_images_of_another_level_are_not_taken(tmp_path):
    made = sentinel2(tmp_path, "2A")
    made.metadata.rename(made.path / "MTD_MSIL1C.xml")
    with pytest.raises(DataError, match="names no image of a band"):
        open_scene(made.path)


# HLS


def test_fill_is_no_cloud_to_be_widened(tmp_path):
    made = hls(tmp_path / "p")
    values, valid = read_all(made.path, mask_buffer=60)
    plain = read_all(made.path)[1]
    np.testing.assert_array_equal(valid[:10], plain[:10])  # fill is 255, all bits set
    assert valid.sum() < plain.sum()


def test_units_are_known_where_no_pixel_that_is_looked_at_has_data(tmp_path):
    made = sentinel2(tmp_path)
    for band, file in made.files.items():
        write(file, np.zeros_like(made.values[band], np.uint16), 10 * SIZE // len(made.values[band]))
    with open_scene(made.path, ["green", "swir1"]) as scene:
        assert [how.unit for how in scene.scaling] == ["reflectance", "reflectance"]
        assert not scene.read_window([0, 1], 0, 0, SIZE, SIZE)[1].any()


def test_the_grid_is_that_of_the_product_whichever_bands_are_read(tmp_path):
    made = sentinel2(tmp_path)
    grids = set()
    for wanted in (["green"], ["swir1"], ["green", "swir1"]):
        with open_scene(made.path, wanted, 30.0) as scene:
            grids.add((scene.height, scene.width, scene.transform))
    assert len(grids) == 1 and grids.pop()[2].a == 30


def test_products_of_several_kinds(tmp_path):
    hls(tmp_path)
    made = landsat(tmp_path)
    with pytest.raises(DataError, match="products of several kinds, Landsat, HLS"):
        open_scene(tmp_path)
    with open_scene(made.metadata) as scene:
        assert scene.date.startswith("2020-11-13")
    hls(tmp_path / "hls", "L30")
    both = hls(tmp_path / "hls", "S30")
    with pytest.raises(DataError, match=r"holds 2 products, HLS\.L30\S+ and HLS\.S30"):
        open_scene(tmp_path / "hls")
    with open_scene(both.metadata) as scene:
        assert scene.sensor == "sentinel2"


def test_flags_are_coarsened_kind_by_kind(tmp_path):
    made = sentinel2(tmp_path)
    file = next(made.path.rglob("*_SCL_20m.jp2"))
    codes = np.full((SIZE // 2, SIZE // 2), 4, np.uint8)
    codes[:4, :4] = [[8, 8, 8, 8], [8, 9, 9, 9], [9, 4, 4, 4], [4, 4, 4, 4]]  # clouds most, 4 the most frequent code
    codes[:4, 4:8] = [[8, 8, 8, 9], [9, 9, 9, 4], [4, 4, 4, 4], [4, 4, 4, 4]]
    write(file, codes, 20)
    with open_scene(made.path, resolution=80) as scene:
        found = scene.masked(0, 0, scene.height, scene.width)
    assert found["clouds"].sum() == 1 and found["clouds"][0, 0]


@pytest.mark.parametrize("odd", [259, -3])
def test_flags_of_one_byte_that_are_no_byte_are_refused(tmp_path, odd):
    made = sentinel2(tmp_path)
    file = next(made.path.rglob("*_SCL_20m.jp2"))
    codes = made.codes["SCL"].astype(np.int16)
    write(file, codes, 20)
    with open_scene(made.path, ["red"]) as scene:
        assert scene.masked(0, 0, SIZE, SIZE)["clouds"].any()
    codes[3, 5] = odd
    write(file, codes, 20)
    with open_scene(made.path, ["red"]) as scene, pytest.raises(DataError, match=f"SCL.*holds {odd}, no code of flags"):
        scene.masked(0, 0, SIZE, SIZE)


def test_hls_of_a_day_that_its_year_has_not_is_refused(tmp_path):
    made = hls(tmp_path)
    for file in [*tmp_path.iterdir()]:
        file.rename(file.with_name(re.sub(r"\.20\d{5}T", ".2021366T", file.name)))
    with pytest.raises(DataError, match="2021366T.* is no day of a year .*has 365 days"):
        open_scene(made.path)


def test_terrain_of_a_product(tmp_path):
    made = landsat(tmp_path / "p")
    dem = write(tmp_path / "dem.tif", np.tile(np.arange(SIZE, dtype=np.float32) * 30 + 3000, (SIZE, 1)), 30)
    made.files["red"].unlink()
    path = packed(made, "tar")
    for what in (made.path, path):
        with open_scene(what, ["green", "slope"], dem=dem) as scene:
            assert scene.bands == ("green", "slope") and scene.sensor == "landsat8"
            assert str(dem) in scene.files
            numbers, valid = scene.read_window([1], 0, 0, SIZE, SIZE)
            np.testing.assert_allclose(numbers[0][valid], 45, rtol=1e-3)


# archives


@pytest.mark.parametrize("kind", ["tar", "gztar", "zip"])
@pytest.mark.parametrize("product", ["LE07 C1 L1", "S2 L2A"])
def test_archives_are_read_as_folders_are(tmp_path, monkeypatch, product, kind):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    made = KINDS[product](tmp_path / "product")
    path = packed(made, kind)
    with open_scene(made.path, ["ndsi"]) as folder, open_scene(path, ["ndsi"]) as scene:
        assert (scene.bands, scene.date, scene.sensor) == (folder.bands, folder.date, folder.sensor)
        assert scene.files == [str(path)]
        size = 0, 0, scene.height, scene.width
        for a, b in zip(folder.read_window([0, 1], *size), scene.read_window([0, 1], *size), strict=True):
            np.testing.assert_array_equal(a, b)
        unpacked = [*(tmp_path / "temporary").rglob("*.jp2"), *(tmp_path / "temporary").rglob("*.TIF")]
        assert len(unpacked) == 3  # two bands and flags
    assert list((tmp_path / "temporary").iterdir()) == []
    made.files["red"].write_bytes(made.files["red"].read_bytes()[:500])
    path = packed(made, kind)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}.*{made.files['red'].name}"):
        read_all(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(DataError, match=f"{re.escape(path.name)}.*(cut short|damaged)"):
        open_scene(path)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_archives_that_are_hostile(tmp_path, monkeypatch):
    made = landsat(tmp_path / "p")
    path = tmp_path / "a.tar"
    for name in ("../x.TIF", "/etc/x.TIF", "C:\\x.TIF"):
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo(name))
        with pytest.raises(DataError, match="leads outside the archive"):
            open_scene(path)
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            file.writestr(name, "")
        with pytest.raises(DataError, match="leads outside the archive"):
            open_scene(tmp_path / "a.zip")
    big = tarfile.TarInfo("B4.TIF")
    for big.size in (2**50, 2**31):  # too much for any, and for so small an archive
        path.write_bytes(big.tobuf())
        with pytest.raises(DataError, match="far more than"):
            open_scene(path)
    with tarfile.open(path, "w") as tar:  # a link where a band should be
        for file in made.path.iterdir():
            tar.add(file, file.name, filter=lambda info: link(info) if info.name.endswith("SR_B4.TIF") else info)
    with pytest.raises(DataError, match=r"no file \S+_SR_B4\.TIF for band red"):
        open_scene(path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises((DataError, OutputError), match="needs|allowed are 1000"):
        open_scene(packed(made, "zip"))
    with pytest.raises((DataError, OutputError), match="needs|allowed are 1000"):
        open_scene(packed(made, "tar"))
    monkeypatch.setattr(archive, "MOST", 3)
    with pytest.raises(DataError, match="more than 3 files"):
        open_scene(packed(made, "zip"))


def test_an_archive_that_holds_a_file_twice(tmp_path):
    made = landsat(tmp_path / "p")
    red, other = made.files["red"], made.files["nir"]
    with tarfile.open(packed(made, "tar"), "a") as tar:
        tar.add(other, red.name)
    with pytest.raises(DataError, match=rf"\.tar: holds \S*{red.name} more than once; download it again"):
        open_scene(tar.name)
    path = packed(made, "zip")
    with zipfile.ZipFile(path, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (name,) = {n for n in file.namelist() if n.endswith(red.name)}
        file.write(red, name)
    open_scene(path).close()  # it is the same
    with zipfile.ZipFile(path, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.write(other, name)
    with pytest.raises(DataError, match=rf"\.zip: holds \S*{red.name} more than once; download it again"):
        open_scene(path)


def link(info):
    info.type, info.linkname, info.size = tarfile.SYMTYPE, "B1.TIF", 0
    return info


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/S2A_X.SAFE.zip", "S2A_X"), ("LC08_X.tar.gz", "LC08_X"), ("HLS.L30.v2.0.cmr.xml", "HLS.L30.v2.0")],
)
def test_names_of_archives(path, name):
    assert scene_name(path) == name
