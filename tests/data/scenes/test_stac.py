import gzip
import json
from datetime import UTC, datetime

import numpy as np
import pytest
from products import hls
from scenes import BANDS, made_up, write_raster
from server import dripping
from web import Answer, Web

from glacier_fastai.data.scenes.opening import open_scene
from glacier_fastai.data.scenes.stac import stac_items
from glacier_fastai.errors import DataError

COMMON = {"blue": "blue", "green": "green", "red": "red", "swir1": "swir16", "thermal": "lwir11"}
VALUES = made_up(96, 80, nodata=False)[0]


def read_all(scene):
    return scene.read_window(range(len(scene.bands)), 0, 0, scene.height, scene.width)


def item(assets, **properties):
    said = {"datetime": "2020-08-01T05:00:00Z", "platform": "landsat-8"} | properties
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "scene_1",
        "geometry": None,
        "bbox": [86, 27, 87, 28],
        "properties": said,
        "assets": assets,
        "links": [],
    }


def band_asset(band, href, version="1.0", **raster):
    common, roles = COMMON.get(band, band), {"type": "image/tiff; application=geotiff", "roles": ["data"]}
    if version == "1.0":
        said = {"eo:bands": [{"name": band, "common_name": common}], "raster:bands": [raster]}
    else:
        said = {"bands": [{"name": band, "eo:common_name": common, **{f"raster:{k}": v for k, v in raster.items()}}]}
    return {"href": href, **roles, **said}


def write_item(folder, version="1.0", base="", **properties):
    """Write a file per band and an item that tells of them; return its path."""
    (folder / "bands").mkdir(parents=True, exist_ok=True)
    assets = {}
    for band, values in zip(BANDS, VALUES, strict=True):
        write_raster(folder / "bands" / f"{band}.tif", values[None])
        scale = {"scale": 0.01, "offset": 100} if band == "thermal" else {"scale": 2e-5, "offset": -0.1}
        assets[band] = band_asset(band, f"{base}./bands/{band}.tif", version, **scale)
    path = folder / "scene_1.json"
    path.write_text(json.dumps(item(assets, **properties)))
    return path


def served(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_item_is_its_bands_in_units(tmp_path, version):
    with open_scene(write_item(tmp_path, version)) as scene:
        assert scene.bands == BANDS and scene.sensor == "landsat8" and scene.date == "2020-08-01T05:00:00Z"
        assert [s.unit for s in scene.scaling] == ["reflectance"] * 4 + ["kelvin"]
        numbers, _ = read_all(scene)
        np.testing.assert_array_equal(numbers, VALUES)
        np.testing.assert_allclose(scene.in_units(numbers, range(5))[0], VALUES[0] * 2e-5 - 0.1, rtol=1e-5)


def test_an_item_at_an_address(tmp_path):
    write_item(tmp_path / "here")
    with Web({f"api/{k}": v for k, v in served(tmp_path / "here").items()}) as server:
        url = f"{server.url}/api/scene_1.json"
        with open_scene(f"{url}?key=SECRET", ["green", "swir1"]) as scene:
            np.testing.assert_array_equal(read_all(scene)[0], VALUES[[1, 3]])
        assert {path for path, _ in server.asked} == {f"/api/{n}" for n in ("scene_1.json", *files("green", "swir1"))}
        server.plan = lambda number, path, start: (
            Answer(ranges=False, headers={"Content-Length": None}) if path.endswith("json") else None
        )
        with open_scene(url, ["green"]) as scene:  # of an API, which sends no parts and no length
            assert scene.bands == ("green",)
        there = write_item(tmp_path / "there", base=f"{server.url}/api/")
        with open_scene(there, ["green"]) as scene:  # an item on this disk whose files are there
            np.testing.assert_array_equal(read_all(scene)[0], VALUES[[1]])


def files(*bands):
    return [f"bands/{band}.tif" for band in bands]


def test_flags_of_an_item_mask(tmp_path):
    path = write_item(tmp_path)
    said = json.loads(path.read_text())
    flags = np.full((96, 80), 64, np.uint16)
    flags[:10], flags[10:20], flags[20:30], flags[30:40] = 1, 8, 16, 32
    write_raster(tmp_path / "qa.tif", flags[None])
    said["assets"]["qa_pixel"] = {"href": "qa.tif", "roles": ["cloud", "cloud-shadow"]}
    path.write_text(json.dumps(said))
    with open_scene(path) as scene, open_scene(path, keep=["clouds"]) as kept:
        np.testing.assert_array_equal(read_all(scene)[1], flags >= 32)
        np.testing.assert_array_equal(read_all(kept)[1], (flags >= 32) | (flags == 8))


@pytest.mark.parametrize(
    ("key", "values", "clear"),
    [("SCL", [0, 1, 3, 4, 8, 9, 10, 11], [4, 11]), ("Fmask", [0, 1, 2, 4, 8, 16, 255], [0, 16])],
)
def test_schemes_of_flags(tmp_path, key, values, clear):
    path = write_item(tmp_path)
    said = json.loads(path.read_text())
    flags = np.resize(np.repeat(values, 5), (96, 80)).astype(np.uint8)
    write_raster(tmp_path / "f.tif", flags[None])
    said["assets"][key] = {"href": "f.tif"}
    path.write_text(json.dumps(said))
    with open_scene(path) as scene:
        np.testing.assert_array_equal(read_all(scene)[1], np.isin(flags, clear))


@pytest.mark.parametrize(
    ("nodata", "offset", "filled"),
    [(-9999, 0.0, True), (0, -0.2, True), (0, 0.0, False), ("nan", 0.0, False), (None, 0.0, False)],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_nodata_of_an_item(tmp_path, version, nodata, offset, filled):
    values, assets = VALUES[:2].astype(np.int16), {}
    values[0, :10] = nodata if isinstance(nodata, int) else -9999
    for band, array in zip(BANDS, values, strict=False):
        write_raster(tmp_path / f"{band}.tif", array[None])
        assets[band] = band_asset(band, f"{band}.tif", version, scale=1e-4, offset=offset, nodata=nodata)
    path = tmp_path / "scene.json"
    path.write_text(json.dumps(item(assets)))
    with open_scene(path) as scene:
        valid = read_all(scene)[1]
    assert valid[10:].all() and valid[:10].any() != filled  # 0 in one band may be dark ground


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "uint32"])
def test_a_mask_of_data_is_0_where_there_is_none(tmp_path, kind):
    path = write_item(tmp_path)
    said = json.loads(path.read_text())
    mask = np.resize(np.repeat([0, 1, 2, 127], 5), (96, 80)).astype(kind)
    write_raster(tmp_path / "m.tif", mask[None])
    said["assets"]["valid"] = {"href": "m.tif", "roles": ["data-mask"]}
    path.write_text(json.dumps(said))
    with open_scene(path) as scene:
        np.testing.assert_array_equal(read_all(scene)[1], mask != 0)


def test_the_best_asset_is_a_band(tmp_path):
    path = write_item(tmp_path)
    said = json.loads(path.read_text())
    given = said["assets"]
    given = {
        "visual": {"href": "no.tif", "roles": ["visual"], "eo:bands": [{"common_name": "red"}]},
        "red-jp2": {**band_asset("red", "no.jp2"), "type": "image/jp2"},
        "nir08": {**given.pop("blue"), "eo:bands": [{"common_name": "nir08"}]},
        **given,
    }
    path.write_text(json.dumps({**said, "assets": given}))
    with open_scene(path, ["red"]) as scene:
        np.testing.assert_array_equal(read_all(scene)[0][0], VALUES[2])
        assert scene.notes == []
    said["properties"]["platform"] = "sentinel-2b"
    path.write_text(json.dumps({**said, "assets": given}))
    with open_scene(path) as scene:
        assert scene.sensor == "sentinel2" and "nir" in scene.bands
        assert any("nir08, asset 'nir08', stands for it" in line for line in scene.notes)


def test_names_of_assets_where_nothing_is_said(tmp_path):  # as HLS in its catalogue
    write_item(tmp_path)
    assets = {f"B0{n}": {"href": f"bands/{b}.tif"} for n, b in ((2, "blue"), (3, "green"), (4, "red"))}
    path = tmp_path / "hls.json"
    path.write_text(json.dumps(item(assets | {"browse": {"href": "x.jpg", "type": "image/jpeg"}})))
    with open_scene(path) as scene:
        assert scene.bands == ("blue", "green", "red")


@pytest.mark.parametrize("kind", ["L30", "S30"])
@pytest.mark.parametrize("named", ["files", "item"])
def test_an_item_of_hls_is_the_product(tmp_path, kind, named):
    made = hls(tmp_path, kind)
    assets = {file.name.split(".")[-2]: {"href": file.name} for file in sorted(tmp_path.glob("*.tif"))}
    if kind == "S30" and named == "files":  # as Planetary Computer has it
        for key, common in (("B08", "nir"), ("B8A", "nir08")):
            assets[key]["eo:bands"] = [{"common_name": common}]
    if named == "item":
        for key, asset in assets.items():
            asset["href"] = f"{key}.tif"
            next(tmp_path.glob(f"*.{key}.tif")).rename(tmp_path / f"{key}.tif")
    said = item(assets | {"browse": {"href": "x.jpg"}}, platform=None)
    said["id"] = made.metadata.name.removesuffix(".cmr.xml") if named == "item" else "x"
    path = tmp_path / "item.json"
    path.write_text(json.dumps(said))
    with open_scene(path) as scene:
        assert (scene.sensor, scene.date, scene.notes) == (made.sensor, made.date, [])
        assert scene.bands == tuple(made.values)
        (numbers, valid), fmask = read_all(scene), made.codes["Fmask"]
        np.testing.assert_array_equal(valid, (fmask != 255) & (fmask & 15 == 0))
        values = scene.in_units(numbers, range(len(scene.bands)))
    for band, got in zip(made.values, values, strict=True):
        np.testing.assert_allclose(got[valid], made.values[band][valid], rtol=1e-4, err_msg=band)
    with open_scene(path, sensor=made.sensor) as scene:
        assert scene.sensor == made.sensor
    with pytest.raises(DataError, match="item.json: its metadata say all of its bands; leave out sensor"):
        open_scene(path, sensor="landsat7")


def test_the_users_sensor_where_an_item_says_none(tmp_path):
    write_item(tmp_path)
    path = tmp_path / "other.json"
    assets = {f"B{n}": {"href": f"bands/{b}.tif"} for n, b in ((2, "blue"), (3, "green"), (4, "red"))}
    path.write_text(json.dumps(item(assets, platform=None)))
    with pytest.raises(DataError, match="other.json: .*name the sensor"):
        open_scene(path)
    with open_scene(path, sensor="Landsat 8") as scene:
        assert scene.bands == ("blue", "green", "red") and scene.sensor == "landsat8"
    with open_scene(path, sensor="landsat7") as scene:
        assert scene.bands == ("green", "red", "nir")


@pytest.mark.parametrize(
    ("said", "scale", "offset"),
    [
        ({"earthsearch:boa_offset_applied": True}, 2e-5, 0.0),
        ({"earthsearch:boa_offset_applied": False}, 2e-5, -0.1),
        ({"s2:processing_baseline": "05.00"}, 2e-5, -0.1),
    ],
)
def test_offsets_of_sentinel2(tmp_path, said, scale, offset):
    with open_scene(write_item(tmp_path, platform="sentinel-2a", **said), ["green"]) as scene:
        assert (scene.scaling[0].scale, scene.scaling[0].offset) == (scale, offset)


def test_an_offset_that_sentinel2_should_have_is_said(tmp_path):
    for baseline, offset, said in (("05.00", None, True), ("05.00", -0.1, False), ("02.14", 0.0, False)):
        path = write_item(tmp_path, platform="sentinel-2a", **{"s2:processing_baseline": baseline})
        item = json.loads(path.read_text())
        for asset in item["assets"].values():
            asset["raster:bands"] = [{"scale": 1e-4, "offset": offset}]
        path.write_text(json.dumps(item))
        with open_scene(path, ["green"]) as scene:
            assert any("says no offset, which products since baseline 04.00" in line for line in scene.notes) == said


@pytest.mark.parametrize(
    ("baseline", "offset"),
    [
        ({"s2:processing_baseline": "05.00"}, -0.1),
        ({"s2:processing_baseline": "4.0"}, -0.1),
        ({"s2:processing_baseline": 4.0}, -0.1),
        ({"processing:version": "05.11"}, -0.1),
        ({"s2:processing_baseline": "05.00", "earthsearch:boa_offset_applied": True}, 0.0),
        ({"s2:processing_baseline": "02.14"}, 0.0),
        ({"s2:processing_baseline": "2.14"}, 0.0),
        ({"s2:processing_baseline": 2.14}, 0.0),
    ],
)
def test_a_scale_that_nobody_says_is_that_of_sentinel2(tmp_path, baseline, offset):
    path = write_item(tmp_path, platform="sentinel-2a", **baseline)
    said = json.loads(path.read_text())
    for asset in said["assets"].values():
        del asset["raster:bands"]
    path.write_text(json.dumps(said))
    with open_scene(path, ["green"]) as scene:
        assert scene.scaling[0].scale == 1e-4 and scene.scaling[0].offset == offset
        assert any("says no scale" in line for line in scene.notes)


@pytest.mark.parametrize("version", ["5.11.0", "2A", "1.0"])
def test_another_version_is_no_baseline(tmp_path, version):
    path = write_item(tmp_path, platform="sentinel-2a", **{"processing:version": version})
    said = json.loads(path.read_text())
    for asset in said["assets"].values():
        del asset["raster:bands"]
    path.write_text(json.dumps(said))
    with open_scene(path, ["green"]) as scene:
        assert scene.scaling[0] == (1.0, 0.0, "dn")


def one(href):
    return item({"red": band_asset("red", href)})


BAD = {
    "no assets": (item({}), "none of its 0 assets"),
    "no bands": (item({"thumbnail": {"href": "a.png", "roles": ["thumbnail"]}}), "none of its 1 assets"),
    "unknown bands": (item({"x": band_asset("rededge", "a.tif")}), "none of its 1 assets|no band used here"),
    "collection": ({"type": "Collection", "stac_version": "1.0.0"}, "of many scenes; name one of its items"),
    "many": ({"type": "FeatureCollection", "stac_version": "1.0.0", "features": []}, "of many scenes"),
    "above": (one("../other.tif"), "does not lie beside or below it"),
    "elsewhere": (one("/etc/passwd"), "'/etc/passwd' is no file beside or below"),
    "file": (one("file:///etc/passwd"), "is no file beside or below"),
    "gdal": (one("/vsicurl/http://x.org/a.tif"), "is no file beside or below"),
    "bucket": (one("gs://b/a.tif"), "is no file beside or below"),
    "not there": (one("a.tif"), "no file a.tif for band"),
    "no href": (item({"red": {"eo:bands": [{"common_name": "red"}]}}), "no STAC item that can be read"),
    "nonsense": (item({"red": []}), "no STAC item that can be read"),
    "GeoJSON": ({"type": "Feature"}, "no product that is known"),
    "scale": (item({"red": band_asset("red", "bands/red.tif", scale="much")}), "no STAC item that can be read"),
    "true": (item({"red": band_asset("red", "bands/red.tif", scale=True)}), "scale is true or false, no number"),
    "date": (item({"red": band_asset("red", "a.tif")}, datetime="yesterday"), "no time that it was taken at"),
}


@pytest.mark.parametrize("case", BAD)
def test_items_that_are_refused(tmp_path, case):
    said, message = BAD[case]
    (tmp_path / "other.tif").touch()
    path = tmp_path / "in" / "item.json"
    path.parent.mkdir()
    path.write_text(json.dumps(said))
    with pytest.raises(DataError, match=message):
        open_scene(path)


@pytest.mark.parametrize("href", ["file:///etc/passwd", "gs://b/a.tif", "ftp://x.org/a.tif"])
def test_an_address_leads_to_no_file(href):
    with Web({"i.json": json.dumps(one(href)).encode()}) as server, pytest.raises(DataError, match="leads to"):
        open_scene(f"{server.url}/i.json")


def test_json_of_other_things_at_an_address():
    with Web({"a.json": b"{}", "b.json": b'{"a": '}) as server:
        with pytest.raises(DataError, match="no STAC item"):
            open_scene(f"{server.url}/a.json")
        with pytest.raises(DataError, match="not JSON"):
            open_scene(f"{server.url}/b.json")


class Api(Web):
    """A STAC API of items of twelve months, in pages of five."""

    def __init__(self, next_host=""):
        super().__init__({})
        self.next_host = next_host or self.url
        landing = {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": "api",
            "description": "",
            "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
            "links": [{"rel": "self", "href": self.url}, {"rel": "root", "href": self.url}]
            + [{"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json", "method": "GET"}],
        }
        self.files["/"] = json.dumps(landing).encode()
        self.found = [
            item({}, datetime=f"2020-{m:02}-10T00:00:00Z", **{"eo:cloud_cover": 5 * m}) for m in range(12, 0, -1)
        ]
        for n, each in enumerate(self.found):
            each["id"] = f"s{n}"
            each["links"] = [{"rel": "self", "href": f"{self.url}/items/s{n}"}]
        for page in range(3):
            links = [{"rel": "next", "href": f"{self.next_host}/page{page + 1}", "method": "GET"}] if page < 2 else []
            body = {"type": "FeatureCollection", "features": self.found[5 * page : 5 * page + 5], "links": links}
            self.files[f"/page{page}" if page else "/search"] = json.dumps(body).encode()
        self.plan = lambda number, path, start: Answer(headers={"Content-Type": "application/json"})


BBOX = (86, 27, 87, 28)


def test_items_of_an_api():
    with Api() as api:
        found = stac_items(
            api.url, BBOX, "2020-01-01", "2020-12-31", max_cloud=40, months=[6, 7, 8, 9], collections=["c"]
        )
        assert [f.datetime for f in found] == [datetime(2020, m, 10, tzinfo=UTC) for m in (6, 7, 8)]
        assert found[0].get_self_href().startswith(f"{api.url}/items/")
        assert [path for path, _ in api.asked] == ["/", "/", "/search", "/page1", "/page2"]
        with pytest.raises(DataError, match="finds no item"):
            stac_items(api.url, BBOX, max_cloud=1)


@pytest.mark.parametrize("href", ["/etc/passwd", "file:///etc/hosts", "evil.safetensors", "../x.yaml"])
def test_items_of_an_api_are_no_files_here(monkeypatch, href):
    with Api() as api:
        monkeypatch.setattr("pystac.Item.get_self_href", lambda item: href)
        with pytest.raises(DataError, match="https?, http"):
            stac_items(api.url, BBOX)


def test_an_answer_is_bounded_however_small_it_was_when_packed(monkeypatch):
    monkeypatch.setattr("glacier_fastai.data.scenes.stac.ANSWER", 2**14)
    with Api() as api:
        assert stac_items(api.url, BBOX)
        packed = gzip.compress(b'{"a": "' + bytes(2**20) + b'"}')
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        first = api.plan
        api.files["/search"] = packed
        api.plan = lambda number, path, start: (
            Answer(headers=headers) if path == "/search" else first(number, path, start)
        )
        with pytest.raises(DataError, match="an answer of more than 16,384 bytes"):
            stac_items(api.url, BBOX)


def test_pages_without_an_end_are_given_up(monkeypatch):
    with Api() as api:
        link = {"rel": "next", "href": f"{api.url}/page1", "method": "GET"}
        page = {"type": "FeatureCollection", "features": api.found[:5], "links": [link]}
        api.files["/page1"] = json.dumps(page).encode()
        with pytest.raises(DataError, match="no answer of a STAC API .*lead in a circle"):
            stac_items(api.url, BBOX)
        monkeypatch.setattr("glacier_fastai.data.scenes.stac.ANSWERS", 2)
        with pytest.raises(DataError, match="no answer of a STAC API .*more than 2 answers"):
            stac_items(api.url, BBOX)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("page", ["/", "/search"])
def test_an_api_that_sends_on_to_another_host_is_refused(status, page):
    with Web({}) as other, Api() as api:
        first = api.plan
        moved = Answer(status=status, headers={"Location": f"{other.url}/search"}, body=b"")
        api.plan = lambda number, path, start: moved if path == page else first(number, path, start)
        with pytest.raises(DataError, match="leads to another host, 127.0.0.1"):
            stac_items(api.url, BBOX)
        assert not other.asked


def test_the_next_page_may_be_named_from_the_last():
    with Api() as api:
        api.files["/search"] = api.files["/search"].replace(f"{api.url}/page1".encode(), b"page1")
        assert len(stac_items(api.url, BBOX)) == 12


def test_an_api_that_drips_is_given_up(monkeypatch):
    monkeypatch.setattr("glacier_fastai.data.scenes.stac.SECONDS", 0.5)
    with Api() as api, dripping(b"HTTP/1.1 200 OK\r\nX: ") as url:
        monkeypatch.setattr("glacier_fastai.data.scenes.web.TEXT", 0.5)
        monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "0.5")
        with pytest.raises(DataError, match="sends what was asked for over more than"):
            stac_items(url, BBOX)
        monkeypatch.setattr("urllib3.Retry", lambda *args, **kwargs: 0)
        monkeypatch.setattr("glacier_fastai.data.scenes.stac.text_at", lambda *args: "")
        with pytest.raises(DataError, match="no answer of a STAC API"):
            stac_items(url, BBOX)
        monkeypatch.setattr("glacier_fastai.data.scenes.stac.ALL", 0.0)
        with pytest.raises(DataError, match="its answers take more than 0 s"):
            stac_items(api.url, BBOX)


def test_an_api_that_is_busy_is_asked_again_but_not_when_it_says():
    with Api() as api:
        first, searches = api.plan, []

        def busy(number, path, start):
            if path != "/search" or searches:
                return first(number, path, start)
            searches.append(number)
            return Answer(status=503, headers={"Retry-After": "100000"}, body=b"")

        api.plan = busy
        assert len(stac_items(api.url, BBOX)) == 12


def test_what_an_api_is_refused_for():
    with Api() as api:
        for bbox in [(), (1, 2, 3), (86, 28, 87, 27), (86, 27, 400, 28), ("a", 1, 2, 3), (float("nan"), 1, 2, 3)]:
            with pytest.raises(DataError, match="bbox.*west, south, east, north"):
                stac_items(api.url, bbox)
        with pytest.raises(DataError, match="month 13"):
            stac_items(api.url, BBOX, months=[13])
        with pytest.raises(DataError, match="no answer of a STAC API.*dates"):
            stac_items(api.url, BBOX, "yesterday")
        assert api.asked == [] or {path for path, _ in api.asked} == {"/"}
        api.plan = lambda number, path, start: Answer(status=403, body=b"SECRET")
        with pytest.raises(DataError, match=f"^{api.url}/: HTTP 403"):
            stac_items(f"{api.url}?key=SECRET", BBOX)
        api.plan = lambda number, path, start: Answer(ranges=False, body=b"{}")
        with pytest.raises(DataError, match="no answer of a STAC API") as caught:
            stac_items(f"{api.url}?key=SECRET", BBOX)
        assert "SECRET" not in str(caught.value)
    with pytest.raises(DataError, match="no STAC API"):
        stac_items("s3://b/api", BBOX)
    with Web({}) as other, Api(other.url) as api:
        with pytest.raises(DataError, match="leads to another host"):
            stac_items(api.url, BBOX)
        assert not other.asked
