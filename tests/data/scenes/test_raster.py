import os
import shutil
import struct

import numpy as np
import pyproj
import pytest
import rasterio
from listening import nobody_asks
from pyproj.exceptions import CRSError
from rasterio.shutil import copy
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from scenes import write_raster, write_scene
from scipy.io import netcdf_file

from glacier_fastai.data.scenes import raster as rasters
from glacier_fastai.data.scenes.raster import (
    _quiet,
    check_place,
    open_raster,
    parse_crs,
    pixel_size,
    reading,
    same_crs,
    same_grid,
    unknown_shift,
)
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


def raster(path, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "width": 32,
        "height": 32,
        "count": 1,
        "dtype": "uint8",
        "crs": "EPSG:32645",
        **profile,
    }
    with rasterio.open(path, "w", transform=rasterio.Affine(*UTM), **profile) as file:
        file.write(np.full((file.count, 32, 32), 7, "uint8"))
    return path


def read(path):
    with open_raster(path) as file, reading(path):
        return file.read(1), file.read_masks(1), file.read(1, out_shape=(4, 4))


def vrt(source, *, relative=1, band="", more=""):
    return (
        '<VRTDataset rasterXSize="32" rasterYSize="32"><SRS>EPSG:32645</SRS><GeoTransform>0,30,0,0,0,-30</GeoTransform>'
        f'<VRTRasterBand dataType="Byte" band="1" {band}><SimpleSource><SourceFilename relativeToVRT="{relative}">'
        f"{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>{more}</VRTDataset>"
    )


WMS = (
    '<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service><DataWindow><SizeX>32'
    "</SizeX><SizeY>32</SizeY></DataWindow><BandsCount>1</BandsCount></GDAL_WMS>"
)


@pytest.mark.parametrize("driver", ["GTiff", "PNG", "JPEG", "JP2OpenJPEG", "HFA", "ENVI"])
def test_drivers_are_named(tmp_path, driver):
    copy(raster(tmp_path / "s.tif"), tmp_path / "copy", driver=driver)
    assert (abs(read(tmp_path / "copy")[0].astype(int) - 7) < 2).all()
    with open_raster(tmp_path / "copy") as file:
        assert file.driver == driver


@pytest.mark.parametrize(
    "name", ["a!b.tif", "a;b.tif", "file:x.tif", "s3:/x.tif", "zip:/x.tif", "-x?#.tif", "vsizip/é.tif"]
)
def test_names_of_files_are_no_addresses(tmp_path, monkeypatch, name):
    raster(tmp_path / "plain.tif")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "plain.tif", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert (read(name)[0] == 7).all()


def test_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    for path, why in ((tmp_path / "pipe.tif", "pipe"), ("/dev/zero", "device"), (tmp_path, "folder"), ("a\0b", "null")):
        with pytest.raises(DataError, match=why):
            open_raster(path)
    raster(tmp_path / "s.tif")
    os.mkfifo(tmp_path / "s.tif.aux.xml")
    with pytest.raises(DataError, match="pipe"):
        open_raster(tmp_path / "s.tif")


def test_a_vrt_reads_beside_and_below_itself(tmp_path):
    raster(tmp_path / "a" / "below" / "s.tif")
    (tmp_path / "a" / "s.vrt").write_text(vrt("below/s.tif"))
    (tmp_path / "a" / "outer.vrt").write_text(vrt("s.vrt"))
    copy(tmp_path / "a" / "outer.vrt", tmp_path / "a" / "written.tif", driver="VRT")
    with rasterio.open(tmp_path / "a" / "below" / "s.tif") as file, WarpedVRT(file, crs="EPSG:4326") as warped:
        copy(warped, tmp_path / "a" / "warped.vrt", driver="VRT")
    (tmp_path / "link.vrt").symlink_to(tmp_path / "a" / "outer.vrt")
    for name in ("a/s.vrt", "a/outer.vrt", "a/written.tif"):
        assert (read(tmp_path / name)[0] == 7).all()
    assert (read(tmp_path / "a" / "warped.vrt")[0] == 7).any()


def test_what_a_vrt_may_not_take(tmp_path, monkeypatch):
    other = raster(tmp_path / "other" / "s.tif")
    home = tmp_path / "home"
    raster(home / "s.tif")
    (home / "link.tif").symlink_to(other)
    with nobody_asks(monkeypatch) as url:
        (home / "wms.tif").write_text(WMS.format(url=url))
        (home / "inner.tif").write_text(vrt(f"/vsicurl/{url}/s.tif", relative=0))
        (home / "self.tif").write_text(vrt("self.tif"))
        raw = 'subClass="VRTRawRasterBand"'
        python = "<PixelFunctionLanguage>Python</PixelFunctionLanguage>"
        for k, text in enumerate(
            [
                *(
                    vrt(s)
                    for s in (
                        "../other/s.tif",
                        "link.tif",
                        "wms.tif",
                        "inner.tif",
                        "self.tif",
                        "x.tif",
                        "GTIFF_RAW:s.tif",
                    )
                ),
                *(
                    vrt(s, relative=0)
                    for s in (other, home / "s.tif", f"/vsicurl/{url}/s.tif", f"{url}/s.tif", "s.tif")
                ),
                vrt("s.tif", more=f'<Overview><SourceFilename relativeToVRT="0">{other}</SourceFilename></Overview>'),
                vrt("s.tif", more=f'<Group SourceFilename="{other}"/>'),
                vrt("s.tif").replace('relativeToVRT="1"', f'relativeToVRT="1" SourceFilename="{other}"'),
                vrt("s.tif").replace(
                    "<SourceFilename", "<SOURCEFILENAME>../other/s.tif</SOURCEFILENAME><SourceFilename"
                ),
                vrt("s.tif", band=raw),
                vrt("s.tif", more=f"<Group><SimpleSource>{raw}</SimpleSource></Group>"),
                vrt("s.tif").replace("<SimpleSource>", "<subClass>VRTRawRasterBand</subClass><SimpleSource>"),
                vrt("s.tif", more=python),
                vrt("s.tif").replace('relativeToVRT="1"', 'relativeToVRT="0" RELATIVETOVRT="1"'),
                vrt("s.tif", band='subClass="VRTRawRasterBand" SUBCLASS="VRTRasterBand"'),
                '<?xml version="1.0" encoding="ISO-8859-1"?>' + vrt("s.tif"),
                '<?xml version="1.0" encoding="UTF-16"?>' + vrt("s.tif"),
                vrt("s.tif").replace("EPSG:32645", f"{url}/crs"),
                '<!DOCTYPE a [<!ENTITY b "c">]>' + vrt("s.tif"),
                vrt("s.tif")[:-30],
            ]
        ):
            (home / f"{k}.tif").write_text(text)
            with pytest.raises(DataError, match=rf"{k}\.tif|self\.tif|inner\.tif|wms\.tif|x\.tif"):
                read(home / f"{k}.tif")


def test_a_picture_that_is_a_vrt_besides_is_one(tmp_path):
    other = raster(tmp_path / "other" / "s.tif")
    home = tmp_path / "home"
    raster(home / "s.tif")
    text = vrt(other, relative=0).encode()
    comment = b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
    copy(home / "s.tif", home / "plain.jpg", driver="JPEG")
    picture = (home / "plain.jpg").read_bytes()
    (home / "j.jpg").write_bytes(picture[:2] + comment + picture[2:])
    (home / "s.vrt").write_text(vrt("j.jpg"))
    for name in ("j.jpg", "s.vrt"):
        with pytest.raises(DataError, match="damaged, or no VRT"):
            read(home / name)


@pytest.mark.parametrize(
    "name", ["s_rpc.txt", "s_MTL.txt", "S_METADATA.XML", "s.RPB", "s.IMD", "summary.txt", "METADATA.DIM"]
)
def test_what_gdal_reads_of_a_product_beside_a_raster(tmp_path, name):
    path, side = raster(tmp_path / "s.tif"), tmp_path / name
    for k in range(1100):  # of so many, GDAL lists a part
        (tmp_path / f"x{k}").touch()
    side.write_text("a = b\n")
    assert (read(path)[0] == 7).all()
    os.truncate(side, 2**33)
    with pytest.raises(DataError, match=f"{name}: has more than .* bytes; move it away"):
        read(path)
    side.unlink()
    os.mkfifo(side)
    with pytest.raises(DataError, match=f"{name}: no regular file"):
        read(path)
    side.unlink()
    side.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=f"{name}: no regular file"):
        read(path)


def test_more_directories_than_a_tiff_of_a_scene_has(tmp_path):
    content = raster(tmp_path / "s.tif", count=2).read_bytes()
    directory = int.from_bytes(content[4:8], "little")
    size = 2 + 12 * int.from_bytes(content[directory : directory + 2], "little")
    link = directory + size
    chain = content[:link] + len(content).to_bytes(4, "little") + content[link + 4 :]
    for k in range(1100):
        one = content[directory:link]
        chain += one + (len(content) + (k + 1) * (size + 4)).to_bytes(4, "little")
    (tmp_path / "chain.tif").write_bytes(chain)
    (tmp_path / "circle.tif").write_bytes(content[:link] + content[4:8] + content[link + 4 :])
    odd = b"\x99\x99\7\0" + (2**30).to_bytes(4, "little") + bytes(4)  # a tag of a gigabyte in place of the first
    (tmp_path / "tags.tif").write_bytes(content[: directory + 2] + odd + content[directory + 14 :])
    for name, said in (("chain", "more than 1,000 directories"), ("circle", "in a circle"), ("tags", "beside its pix")):
        with pytest.raises(DataError, match=f"{name}.tif: .*{said}.*; write it anew"):
            read(tmp_path / f"{name}.tif")


def test_what_proj_writes_of_a_damaged_place_is_not_shown_but_what_others_write_is(tmp_path, capfd):
    content = raster(tmp_path / "s.tif").read_bytes()
    keys = content.index(struct.pack("<HHHHHHHH", 2054, 0, 1, 9102, 3072, 0, 1, 32645))
    odd = struct.pack("<HHHHH", 2054, 0, 1, 0, 32768)
    (tmp_path / "odd.tif").write_bytes(content[:keys] + odd + content[keys + len(odd) :])
    with _quiet("GTiff"):
        os.write(2, b"a word of another thread\n")
    with open_raster(tmp_path / "odd.tif") as file:
        assert "LOCAL" in file.crs.to_wkt()
    assert capfd.readouterr().err == "a word of another thread\n"


def test_more_bands_than_any_scene_has(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "BANDS", 2)
    assert (read(raster(tmp_path / "two.tif", count=2))[0] == 7).all()
    with pytest.raises(DataError, match=r"three\.tif: has 3 bands, at most 2 are read"):
        read(raster(tmp_path / "three.tif", count=3))


def test_names_longer_than_netcdf_allows(tmp_path):
    for n in (200, 300):
        with netcdf_file(tmp_path / f"{n}.nc", "w") as file:
            file.createDimension("y", 32)
            file.createDimension("x", 32)
            setattr(file, "a" * n, b"1")
            file.createVariable("v", "f4", ("y", "x"))[:] = 7
    assert (read(tmp_path / "200.nc")[0] == 7).all()
    with pytest.raises(DataError, match=r"300\.nc: .*a name of 300 bytes.*; write it anew"):
        read(tmp_path / "300.nc")


def test_a_vrt_takes_no_more_rasters_than_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "SOURCES", 20)
    raster(tmp_path / "s.tif")
    for name, source, times in (("a", "s.tif", 4), ("b", "a.vrt", 4), ("c", "b.vrt", 2), ("d", "s.tif", 21)):
        one = "<SimpleSource>" + vrt(source).partition("<SimpleSource>")[2].partition("</VRTRasterBand>")[0]
        (tmp_path / f"{name}.vrt").write_text(vrt(source).replace(one, one * times))
    assert (read(tmp_path / "b.vrt")[0] == 7).all()
    for name in ("c", "d"):
        with pytest.raises(DataError, match=rf"{name}\.vrt: .*takes more than 20 rasters, or the same so often"):
            read(tmp_path / f"{name}.vrt")


@pytest.mark.parametrize("suffix", [".msk", ".ovr", ".MSK"])
def test_what_gdal_opens_with_a_raster(tmp_path, monkeypatch, suffix):
    with nobody_asks(monkeypatch) as url:
        path = raster(tmp_path / "s.tif")
        side = tmp_path / f"s.tif{suffix}"
        for text in (WMS.format(url=url), vrt(f"/vsicurl/{url}/s.tif", relative=0)):
            side.write_text(text)
            with pytest.raises(DataError, match="no mask or overviews"):
                read(path)
        side.unlink()
        side.symlink_to(raster(tmp_path / "other" / "s.tif"))
        path = (tmp_path / "linked.tif").with_name("s.tif")
        assert (read(path)[0] == 7).all()  # below it


def test_overviews_in_another_file(tmp_path, monkeypatch):
    with nobody_asks(monkeypatch) as url:
        for how in ("xml", "tag"):
            path = raster(tmp_path / f"{how}.tif")
            if how == "tag":
                with rasterio.open(path, "r+") as file:
                    file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{url}/o.tif")
            else:
                item = f'<MDI key="OVERVIEW_FILE">/vsicurl/{url}/o.tif</MDI>'
                text = f'<PAMDataset><SRS>{url}/crs</SRS><Metadata domain="OVERVIEWS">{item}</Metadata></PAMDataset>'
                path.with_name("xml.tif.aux.xml").write_text(text)
            with pytest.raises(DataError, match="overviews"):
                read(path)


@pytest.mark.parametrize("text", ["<GDAL_WMTS/>", "<MRF_META/>", "\x89HDF\r\n\x1a\n", "hello", ""])
def test_other_kinds_are_refused(tmp_path, text):
    (tmp_path / "s.tif").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"s\.tif: not a raster, cut short or damaged .*GeoTIFF"):
        open_raster(tmp_path / "s.tif")


def test_a_block_that_does_not_fit(tmp_path, monkeypatch):
    big = {
        "width": 60_000,
        "height": 60_000,
        "blockxsize": 16384,
        "blockysize": 16384,
        "tiled": True,
        "transform": rasterio.Affine(*UTM),
    }
    with rasterio.open(tmp_path / "s.tif", "w", driver="GTiff", count=1, dtype="uint8", SPARSE_OK=True, **big):
        pass
    monkeypatch.setattr("glacier_fastai.memory.available", lambda: 10**8)
    with pytest.raises(DataError, match=r"s\.tif: its blocks of 16384 x 16384 px need 0\.5 GB"):
        open_raster(tmp_path / "s.tif")


UTM_WKT = rasterio.CRS.from_epsg(32645).to_wkt()


@pytest.mark.parametrize(
    "crs",
    [
        "EPSG:32645", "urn:ogc:def:crs:EPSG::32645", "http://www.opengis.net/def/crs/EPSG/0/32645", UTM_WKT, 32645,
        pyproj.CRS(32645).to_json(), pyproj.CRS(32645).to_json_dict(), rasterio.CRS.from_epsg(32645), pyproj.CRS(32645),
        "+proj=utm +zone=45 +datum=WGS84",
    ],
)  # fmt: skip
def test_how_a_crs_is_written(crs):
    assert same_crs(parse_crs(crs), "EPSG:32645")


def test_a_crs_without_a_file():
    assert parse_crs("+proj=merc +a=6378137 +b=6378137 +nadgrids=@null +units=m")
    assert parse_crs('LOCAL_CS["site grid",UNIT["metre",1]]')


@pytest.mark.parametrize(
    "crs",
    [
        "http://127.0.0.1/crs", "/etc/hosts", "x.wkt", "file:x", "", "{", '{"a": 1}', "[" * 10_000, "PROJCS[" * 10_000,
        "+proj=longlat +ellps=bessel +nadgrids=/x/y.gsb", "+init=/etc/hosts:1", "\udcff:1", "a\0b", None, [], 10**30,
        UTM_WKT.replace('AUTHORITY["EPSG","32645"]', 'EXTENSION["PROJ4","+proj=utm +nadgrids=http://127.0.0.1/g"]'),
        UTM_WKT.replace('AUTHORITY["EPSG","32645"]', 'EXTENSION["PROJ4","+proj=utm +nadgrids=""/x/y.gsb"" "]'),
        '+proj=tinshift +file="/x/y.json" +type=crs', "+proj=defmodel +model=/x/y.json +type=crs",
    ],
)  # fmt: skip
def test_what_is_no_crs(tmp_path, monkeypatch, crs):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.wkt").write_text(UTM_WKT)
    with pytest.raises(CRSError):
        parse_crs(crs)


def test_a_raster_far_longer_than_its_pixels_is_refused(tmp_path):
    scene, _ = write_scene(tmp_path / "s.tif")
    os.truncate(scene, 2**40)
    with pytest.raises(DataError, match=r"s\.tif: has 1,099,511,627,776 bytes for 76,800 of pixels; write it anew"):
        open_raster(scene)


@pytest.mark.parametrize(("driver", "profile"), [("PNG", {}), ("ENVI", {"count": 2, "dtype": "uint16"})])
def test_a_raster_that_is_cut_short_is_refused(tmp_path, driver, profile):
    path = raster(tmp_path / "s.img", driver=driver, **profile)
    content = path.read_bytes()
    path.write_bytes(content + b"and more")
    assert (read(path)[0] == 7).all()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"s\.img: cut short, at {len(content) - 1:,} bytes; copy it again"):
        open_raster(path)


def test_the_offset_of_an_envi_file_counts(tmp_path):
    path = raster(tmp_path / "s.img", driver="ENVI")
    header = path.with_suffix(".hdr")
    header.write_text(header.read_text().replace("header offset = 0", "header offset = 100"))
    with pytest.raises(DataError, match=r"s\.img: cut short, at 1,024 bytes"):
        open_raster(path)
    path.write_bytes(bytes(100) + path.read_bytes())
    assert (read(path)[0] == 7).all()
    header.write_text(
        header.read_text().replace("header offset", "file compression = x\nheader offset")
    )  # so it is not
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"s\.img: cut short, at 1,123 bytes"):
        open_raster(path)


@pytest.mark.parametrize(
    ("option", "value"),
    [("GDAL_DISABLE_READDIR_ON_OPEN", "EMPTY_DIR"), ("GDAL_PAM_ENABLED", "NO"), ("GTIFF_POINT_GEO_IGNORE", "YES")]
    + [("GDAL_GEOREF_SOURCES", "WORLDFILE,INTERNAL")],
)
def test_what_is_set_for_gdal_changes_nothing(tmp_path, monkeypatch, option, value):
    path = raster(tmp_path / "s.tif")
    with rasterio.open(path, "r+") as file:
        file.update_tags(AREA_OR_POINT="Point")
    mask = raster(tmp_path / "m.tif")
    with rasterio.open(mask, "r+") as file:
        file.write(np.eye(32, dtype="uint8"), 1)
        file.update_tags(INTERNAL_MASK_FLAGS_1="2")
    mask.rename(tmp_path / "s.tif.msk")
    scaled = '<PAMDataset><PAMRasterBand band="1"><Scale>0.5</Scale></PAMRasterBand></PAMDataset>'
    (tmp_path / "s.tif.aux.xml").write_text(scaled)
    (tmp_path / "s.tfw").write_text("10\n0\n0\n-10\n600000\n3200000\n")
    monkeypatch.setenv(option, value)
    with open_raster(path) as file, reading(path):
        assert (file.scales, file.transform[:6]) == ((0.5,), UTM)
        np.testing.assert_array_equal(file.read_masks(1) > 0, np.eye(32, dtype=bool))


def test_damage_is_not_passed_over_whatever_is_set_for_gdal(tmp_path, monkeypatch):
    path = raster(tmp_path / "s.tif", compress="deflate")
    whole = path.read_bytes()
    at = whole.rindex(b"\x78")  # the strip, as zlib begins it
    path.write_bytes(whole[: at + 2] + bytes(8) + whole[at + 10 :])
    monkeypatch.setenv("GTIFF_IGNORE_READ_ERRORS", "YES")
    damaged = pytest.raises(DataError, match=r"s\.tif: not a raster, cut short or damaged")
    with open_raster(path) as file, damaged, reading(path):
        file.read(1)


def test_a_netcdf_is_not_turned_upside_down(tmp_path, monkeypatch):
    copy(raster(tmp_path / "s.tif"), tmp_path / "s.nc", driver="netCDF", FORMAT="NC")
    with open_raster(tmp_path / "s.nc") as file, reading(tmp_path):
        assert file.transform[:6] == UTM
    monkeypatch.setenv("GDAL_NETCDF_BOTTOMUP", "NO")
    with pytest.raises(DataError, match=r"s\.nc: GDAL_NETCDF_BOTTOMUP, in the environment, .*; unset it"):
        open_raster(tmp_path / "s.nc")


@pytest.mark.parametrize("a", [0.0, float("nan"), float("inf"), 1e300])
def test_a_raster_that_places_its_pixels_nowhere_is_refused(tmp_path, a):
    scene, _ = write_scene(tmp_path / "s.tif")
    copy(scene, tmp_path / "s.vrt", driver="VRT")
    text = (tmp_path / "s.vrt").read_text()
    place = "<GeoTransform>"
    (tmp_path / "s.vrt").write_text(
        f"{text[: text.index(place)]}{place}500000, {a}, 0, 3100000, 0, -30{text[text.index('</GeoTransform>') :]}"
    )
    with pytest.raises(DataError, match=r"s\.vrt: has no geotransform that says where its pixels lie"):
        open_raster(tmp_path / "s.vrt")


EVEREST_1830 = (
    'GEOGCS["unknown",DATUM["D_unknown",SPHEROID["Everest 1830",6377276.345,300.8017]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433]]'
)
METRES, DEGREES = from_origin(500_000, 3_100_000, 30, 30), from_origin(87, 28, 3e-4, 3e-4)


@pytest.mark.parametrize(
    ("crs", "transform", "odd"),
    [
        ("EPSG:32645", DEGREES, r"WGS 84 / UTM zone 45N, in which it has pixels of 0\.0003 m; assign .*EPSG:CODE"),
        ("EPSG:4326", METRES, r"WGS 84, in which it reaches to latitude 3100000"),
        ("EPSG:4807", from_origin(2, 103, 3e-4, 3e-4), r"reaches to latitude 103"),  # grads
        ("EPSG:32645", from_origin(5e7, 3_100_000, 30, 30), "lies nowhere on the Earth"),
        ("EPSG:3857", from_origin(0, 3e9, 30, 30), "lies nowhere on the Earth"),
    ],
)
def test_a_place_that_cannot_be_of_its_crs_is_refused(tmp_path, crs, transform, odd):
    path = write_raster(tmp_path / "s.tif", np.ones((1, 9, 9)), crs=crs, transform=transform)
    with open_raster(path) as raster, pytest.raises(DataError, match=odd):
        check_place(raster, path)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", from_origin(-180.5, 90.5, 1, 1)),  # pixels around the pole
        ("EPSG:4326", from_origin(286.9, -46, 3e-4, 3e-4)),
        ("EPSG:4807", from_origin(5, 95, 3e-4, 3e-4)),
        ("EPSG:3857", from_origin(20_100_000, 1e7, 30, 30)),  # beyond 180 degrees
        ("EPSG:32601", from_origin(-400_000, 7.4e6, 30, 30)),  # beyond its zone
        ("EPSG:3413", from_origin(-450, 450, 100, 100)),  # the pole in its middle
        ("EPSG:32645", from_origin(500_000, 3_100_000, 0.01, 0.01)),  # of a drone
        ("ESRI:54008", from_origin(-20_015_109, 7_783_653, 463.3, 463.3)),  # a tile of MODIS that holds little ground
        ('LOCAL_CS["site grid",UNIT["metre",1]]', from_origin(0, 100, 0.5, 0.5)),
        ("EPSG:32645+5773", METRES),
        ("EPSG:4267", from_origin(-150, 61, 3e-4, 3e-4)),
        ("EPSG:2193", from_origin(1_370_000, 5_170_000, 10, 10)),
        ("EPSG:5514", from_origin(-450_000, -1_200_000, 10, 10)),
    ],
)
def test_odd_places_that_can_be_are_taken(tmp_path, crs, transform):
    with open_raster(write_raster(tmp_path / "s.tif", np.ones((1, 9, 9)), crs=crs, transform=transform)) as raster:
        check_place(raster, "s.tif")


@pytest.mark.parametrize(
    ("crs", "scene", "place", "unknown"),
    [
        ("EPSG:4144", "EPSG:32645", (87, 28), True),  # Kalianpur 1937, whose shift is known elsewhere
        (EVEREST_1830, "EPSG:32645", (87, 28), True),
        ("EPSG:32645", EVEREST_1830, (87, 28), True),
        ("EPSG:4214", "EPSG:4326", (90, 36), True),  # Beijing 1954
        (EVEREST_1830, EVEREST_1830, (87, 28), False),
        ("EPSG:4146", "EPSG:32645", (79, 31), False),  # Kalianpur 1975
        ("EPSG:4284", "EPSG:32643", (75, 43), False),  # Pulkovo 1942
        ("EPSG:4267", "EPSG:32606", (-147, 62), False),  # NAD27
        ("EPSG:4269", "EPSG:32606", (-147, 62), False),
        ("EPSG:4269", "EPSG:4258", (-20, 65), False),  # NAD83 and ETRS89: PROJ knows none, and needs none
        ("EPSG:4490", "EPSG:32646", (95, 36), False),  # CGCS2000, too
        ("EPSG:2056", "EPSG:32632", (8, 46.5), False),
        ("EPSG:31255", "EPSG:25832", (12, 47), False),
        ("EPSG:2193", "EPSG:32759", (170, -43.5), False),
        ("EPSG:27200", "EPSG:2193", (170, -43.5), False),
        ("EPSG:7855", "EPSG:4283", (147, -37), False),
        ("EPSG:31978", "EPSG:32718", (-73, -46), False),
        ("EPSG:5360", "EPSG:4326", (-73, -46), False),
        ("EPSG:22181", "EPSG:32718", (-72.5, -49), False),
        ("EPSG:8088", "EPSG:32628", (-17, 64.5), False),
        ('LOCAL_CS["site grid",UNIT["metre",1]]', "EPSG:4326", (8, 46), False),
        ("+proj=sinu +R=6371007.181 +units=m", "EPSG:32645", (87, 28), False),  # of MODIS
    ],
)
def test_a_shift_of_datum_is_unknown_where_none_is_known_and_it_matters(crs, scene, place, unknown):
    crs = parse_crs(crs) if not crs.startswith("+") else pyproj.CRS(crs)
    to = parse_crs(scene)
    x, y = pyproj.Transformer.from_crs(to.geodetic_crs, to, always_xy=True).transform(*place)
    side = 3e-4 if to.is_geographic else 30
    said = unknown_shift(crs, to, (side, 0, x, 0, -side, y), (64, 64))
    assert bool(said) == unknown and ("not known here, so it may lie some 100 m off" in said) == unknown


def test_overviews_of_overviews_are_looked_at_once(tmp_path, monkeypatch):
    chain, opened = [tmp_path / ("s.tif" + ".ovr" * k) for k in range(9)], []
    for path in chain:
        raster(path)
    looked = rasters._open
    monkeypatch.setattr(rasters, "_open", lambda path, *args: opened.append(path.name) or looked(path, *args))
    open_raster(chain[0]).close()
    assert sorted(opened) == sorted(path.name for path in chain)


def test_a_long_crs_is_read_in_one_go():
    with pytest.raises(CRSError):
        parse_crs("+proj=longlat +" + "grids=" * 20_000)
