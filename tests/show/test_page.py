import json
import re
from base64 import b64decode
from functools import partial
from io import BytesIO
from pathlib import Path

import geopandas
import numpy as np
import pytest
from PIL import Image
from rasterio import Affine
from rasterio.transform import from_origin
from scenes import BANDS, CRS, made_up, write_raster, write_scene
from shapely import MultiPolygon, Polygon, box
from typer.testing import CliRunner
from web import Web

from glacier_fastai.cli import app
from glacier_fastai.errors import DataError, DataNote, OutputError
from glacier_fastai.show import page as module
from glacier_fastai.show.page import write_page
from glacier_fastai.show.pictures import page_grid

EVIL = "</script><img src=x onerror=alert(1)>&amp;\u2028'\""


def write_map(folder, stem="july", codes=None, transform=None, crs=CRS, **columns):
    """Write a map of a made-up scene of 96 x 80 px, its confidence, and two glaciers, one with a hole and two parts."""
    if codes is None:
        _, classes, valid = made_up()
        codes = np.where(valid, classes, 255).astype(np.uint8)
    where = {"nodata": 255, "transform": transform, "crs": crs}
    path = write_raster(folder / f"{stem}_classes.tif", codes[None], **where)
    write_raster(folder / f"{stem}_confidence.tif", np.full((1, *codes.shape), 200, np.uint8), **where)
    a, b = (500_000 + 30 * 20, 500_000 + 30 * 50)
    large = Polygon(
        box(a, 3_098_500, a + 600, 3_099_800).exterior, [box(a + 200, 3_099_000, a + 300, 3_099_200).exterior]
    )
    small = MultiPolygon([box(b, 3_098_500, b + 300, 3_098_800), box(b, 3_099_300, b + 100, 3_099_400)])
    table = {"id": ["RGI-1", "RGI-2"], "name": ["Rongbuk", EVIL], "area_km2": [0.1, 0.76], "debris_share": [0.5, None]}
    geopandas.GeoDataFrame({**table, **columns}, geometry=[small, large], crs=CRS).to_file(
        folder / f"{stem}_glaciers.gpkg", layer="glaciers"
    )
    return path


def data_of(path):
    html = path.read_text(encoding="utf-8")
    return json.loads(html.partition('<script id="data" type="application/json">')[2].partition("</script>")[0]), html


def pixels(uri):
    return np.array(Image.open(BytesIO(b64decode(uri.partition(",")[2]))).convert("RGBA"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Page of a map with its scene."""
    folder = tmp_path_factory.mktemp("page")
    scene, _ = write_scene(folder / "july.tif")
    path = folder / "july_map.html"
    write_page([write_map(folder)], path, [scene])
    return path


@pytest.fixture(scope="module")
def dates(tmp_path_factory):
    """Page of two maps, of which the second lies elsewhere."""
    folder = tmp_path_factory.mktemp("page")
    later = np.full((96, 80), 1, np.uint8)
    maps = [write_map(folder), write_map(folder, "later", later, from_origin(500_300, 3_100_000, 30, 30))]
    write_page(maps, folder / "two.html", [write_scene(folder / f"{k}.tif", seed=k)[0] for k in range(2)])
    return folder / "two.html"


def test_pictures_are_those_of_the_map_pixel_by_pixel(made):
    data, _ = data_of(made)
    _, classes, valid = made_up()
    assert data["size"] == [80, 96] and data["metres"] == pytest.approx([30, 30], rel=2e-3)
    (shown,) = data["maps"]
    drawn = pixels(shown["layers"]["classes"])
    assert (drawn[..., 3] == 0)[valid].tolist() == (classes == 0)[valid].tolist()  # background shows the image
    assert (drawn[~valid][:, 3] == 0).all()  # nor has the image any data there
    assert drawn[valid & (classes == 2)].tolist()[0] == [0xD5, 0x5E, 0x00, 255]
    assert pixels(shown["layers"]["image"]).shape == (96, 80, 4)
    assert ((pixels(shown["layers"]["image"])[..., 3] > 0) == valid).all()
    assert len(np.unique(pixels(shown["layers"]["confidence"]).reshape(-1, 4), axis=0)) == 1
    assert shown["composite"] == "snow and ice (no nir)"


def test_what_clouds_hide_of_the_map_is_grey_over_the_image(tmp_path):
    codes = np.zeros((96, 80), np.uint8)
    codes[:40] = 255
    scene, _ = write_scene(tmp_path / "july.tif")
    write_page([write_map(tmp_path, codes=codes)], tmp_path / "p.html", [scene])
    drawn, valid = pixels(data_of(tmp_path / "p.html")[0]["maps"][0]["layers"]["classes"]), made_up()[2]
    assert (drawn[:40, :, 3] > 0).tolist() == valid[:40].tolist()


def test_rows_are_the_glaciers_with_their_outlines(made):
    data, _ = data_of(made)
    first, second = data["rows"]
    assert (first["id"], first["name"], first["area_km2"]) == ("RGI-2", EVIL, 0.76)  # the largest first
    assert first["debris_share"] is None and second["debris_share"] == 0.5 and "share_seen" not in data["columns"]
    assert [column[0] for column in data["columns"]] == ["area_km2", "debris_share"]
    (rings,) = first["outline"]
    corners = [np.cumsum(np.reshape(ring, (-1, 2)), 0) / data["part"] for ring in rings]
    assert corners[0].min(0) == pytest.approx([20, 200 / 30], abs=0.13)
    assert corners[0].max(0) == pytest.approx([40, 50], abs=0.13) and len(corners[1]) == 4
    assert len(second["outline"]) == 2


def test_nothing_of_a_strangers_file_is_markup_and_nothing_is_asked_of_the_network(made):
    data, html = data_of(made)
    assert EVIL.split(">")[0] + ">" not in html.partition('id="data"')[2].partition("</script>")[0]
    assert html.count("</script>") == 2 and "onerror=alert(1)>" not in html
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//|url\((?!'?data:|#)|@import|sourceMappingURL""", html)
    assert "default-src 'none'; img-src data:;" in html and "script-src 'sha256-" in html
    assert "Redistribution and use in source and binary forms" in html  # the library's licence


def test_a_large_scene_is_shown_smaller_and_outlines_simpler(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "page_grid", partial(page_grid, pixels=40 * 48))
    monkeypatch.setattr(module, "CORNERS", 9)
    monkeypatch.setattr(module, "GLACIERS", 1)
    scene, _ = write_scene(tmp_path / "july.tif")
    with pytest.warns(DataNote, match="the 1 smallest of 2 glaciers, 0.100 km2, are left out"):
        write_page([write_map(tmp_path)], tmp_path / "p.html", [scene])
    data, _ = data_of(tmp_path / "p.html")
    assert data["size"][0] * data["size"][1] <= 40 * 49 and data["metres"][0] > 59
    assert [row["id"] for row in data["rows"]] == ["RGI-2"]
    assert sum(len(ring) for part in data["rows"][0]["outline"] for ring in part) <= 18
    assert pixels(data["maps"][0]["layers"]["image"]).shape[:2] == tuple(data["size"][::-1])


def test_two_dates_of_other_grids_lie_on_one(dates):
    data, html = data_of(dates)
    assert data["size"] == [90, 96]  # 10 pixels further east
    first, second = (pixels(each["layers"]["classes"])[..., 3] for each in data["maps"])
    assert not first[:, 80:].any() and (second[:, 80:] == 255).all() and (second[:, :10] < 255).all()
    assert [row["map"] for row in data["rows"]] == [0, 0, 1, 1] and "outlines later" in html


@pytest.mark.parametrize(("crs", "side"), [("EPSG:4326", 3e-4), ("EPSG:32644", 30)])
def test_a_scene_in_another_projection_than_the_map_is_brought_to_it(tmp_path, crs, side):
    from pyproj import Transformer

    x, y = Transformer.from_crs(CRS, crs, always_xy=True).transform(501_200, 3_098_560)
    values, _, _ = made_up(400, 400, nodata=False)
    place = Affine(side, 0, x - 200 * side, 0, -side, y + 200 * side)
    scene = write_raster(tmp_path / "s.tif", values, bands=BANDS, crs=crs, transform=place)
    write_page([write_map(tmp_path)], tmp_path / "p.html", [scene])
    assert (pixels(data_of(tmp_path / "p.html")[0]["maps"][0]["layers"]["image"])[..., 3] == 255).mean() > 0.99


def test_a_map_in_degrees_is_shown_with_right_shapes(tmp_path):
    codes = np.ones((100, 200), np.uint8)  # at 60 degrees north, as high as it is wide
    path = write_raster(
        tmp_path / "n.tif", codes[None], nodata=255, crs="EPSG:4326", transform=from_origin(10, 60, 3e-4, 3e-4)
    )
    with pytest.warns(DataNote, match="no outlines beside it"):
        write_page([path], tmp_path / "p.html")
    data, html = data_of(tmp_path / "p.html")
    (width, height), (wide, high) = data["size"], data["metres"]
    assert width * wide / (height * high) == pytest.approx(1, abs=0.03)
    assert data["rows"] == [] and "no scene is given, so its image is not on the page" in html


def test_patches_of_outlines_stand_in_for_glaciers(tmp_path):
    path = write_map(tmp_path)
    (tmp_path / "july_glaciers.gpkg").unlink()
    for layer in ("glaciers", "classes"):
        table = geopandas.GeoDataFrame({"id": [1]}, geometry=[box(500_600, 3_098_500, 501_200, 3_099_500)], crs=CRS)
        table.to_file(tmp_path / "july_outlines.gpkg", layer=layer)
    with pytest.warns(DataNote, match="no column area_km2, so areas are those of its polygons"):
        write_page([path], tmp_path / "p.html")
    (row,) = data_of(tmp_path / "p.html")[0]["rows"]
    assert row["id"] == "Patch 1" and row["area_km2"] == pytest.approx(0.6, rel=2e-3)


def test_glaciers_without_ice_have_a_row_and_no_outline(tmp_path):
    path = write_map(tmp_path)
    table = geopandas.GeoDataFrame({"id": ["gone"], "area_km2": [0.0]}, geometry=[None], crs=CRS)
    table.to_file(tmp_path / "july_glaciers.gpkg", layer="glaciers", geometry_type="MultiPolygon")
    write_page([path], tmp_path / "p.html")
    assert data_of(tmp_path / "p.html")[0]["rows"][0]["outline"] == []


def test_what_cannot_be_shown_is_refused_and_leaves_nothing(tmp_path):
    path, out = write_map(tmp_path), tmp_path / "p.html"
    far = write_map(tmp_path, "far", transform=from_origin(700_000, 3_100_000, 30, 30))
    odd = write_map(tmp_path, "odd", np.full((96, 80), 7, np.uint8))
    scene = write_raster(
        tmp_path / "s.tif", made_up()[0], bands=BANDS, transform=from_origin(700_000, 3_100_000, 30, 30)
    )
    for maps, scenes, said in (
        ([odd], [], "odd_classes.tif: holds 7; a map of classes has 0, 1, 2, 3, 254, and 255 without data"),
        ([path, far], [], "far_classes.tif: shows other ground than"),
        ([path, path], [], "two different ones"),
        ([path, odd, far], [], "3 maps; give one, or two"),
        ([path], [scene], "s.tif: shows nothing of the ground of the map"),
        ([scene], [], "s.tif: 5 bands of uint16, so no map of classes"),
        ([path, odd], [scene], "1 scenes for two maps"),
        ([tmp_path / "none.tif"], [], "none.tif: no such file"),
    ):
        with pytest.raises(DataError, match=re.escape(said)):
            write_page(maps, out, scenes)
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_page([path], out)
    assert out.read_text() == "mine"
    write_page([path], out, overwrite=True)
    assert out.stat().st_size > 1000


def test_the_command_says_a_scene_of_another_name(tmp_path):
    path, (scene, _) = write_map(tmp_path), write_scene(tmp_path / "august.tif")
    (tmp_path / "july_prediction.json").write_text(
        json.dumps({"scene": "july.tif", "date": "2020-07-01T04:00:00Z", "notes": [EVIL]})
    )
    words = ["page", str(path), "--scene", str(scene), "--out", str(tmp_path / "p.html")]
    with pytest.warns(DataNote, match="august.tif: july_classes.tif was made of july.tif; shown all the same"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert (
        "<title>Map of july, 2020-07-01</title>" in html
        and "&lt;img src=x onerror" in html
        and "<img src=x" not in html
    )


def test_numbers_that_are_none_are_left_out(tmp_path):
    path = write_map(tmp_path, area_km2=["1e999", "0.25"], debris_share=[1e300, 0.5])
    with pytest.warns(DataNote, match=r"july_glaciers\.gpkg: 2 of its numbers are too large to be any"):
        write_page([path], tmp_path / "p.html")
    data, _ = data_of(tmp_path / "p.html")
    assert sorted((row["area_km2"], row["debris_share"]) for row in data["rows"][:1]) == [(0.25, 0.5)]
    assert data["rows"][1]["area_km2"] is None and data["maps"][0]["total"]["km2"] == 0.25


def test_the_scene_of_a_page_may_be_an_address(tmp_path):
    path, (scene, _) = write_map(tmp_path), write_scene(tmp_path / "july.tif")
    with Web({"july.tif": Path(scene).read_bytes()}) as web:
        write_page([path], tmp_path / "p.html", [f"{web.url}/july.tif?sig=secret"])
        words = ["page", str(path), "--scene", f"{web.url}/july.tif", "--out", str(tmp_path / "q.html")]
        CliRunner().invoke(app, words, catch_exceptions=False)
    for page in ("p.html", "q.html"):
        data, html = data_of(tmp_path / page)
        assert "image" in data["maps"][0]["layers"] and "secret" not in html


def test_predict_writes_a_page_beside_each_map(tmp_path, trained, scene):
    words = ["predict", str(trained[0] / "best.safetensors"), str(scene[0]), "--out", str(tmp_path / "maps"), "--page"]
    words += ["--set", "predict.views=false"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    page = tmp_path / "maps" / "scene_map.html"
    assert done.output.splitlines()[-1] == str(page)
    data, _ = data_of(page)
    assert data["rows"] and {*data["maps"][0]["layers"]} == {"image", "classes"}
    before = page.stat().st_mtime_ns
    CliRunner().invoke(app, words, catch_exceptions=False)
    assert page.stat().st_mtime_ns == before
    whole = page.read_bytes()
    for damage in (page.unlink, lambda: page.write_bytes(b""), lambda: page.write_bytes(whole[:1000])):
        damage()  # the map is kept, the page is made
        CliRunner().invoke(app, words, catch_exceptions=False)
        assert page.stat().st_size > 100_000
    page.unlink()
    page.mkdir()
    with pytest.raises(OutputError, match="scene_map.html: stands in the way and is no file"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    page.rmdir()
    CliRunner().invoke(app, [*words[:-3], "--stats", "scene", "--overwrite", *words[-2:]], catch_exceptions=False)
    assert not page.exists()  # it was that of another map


def test_a_composite_has_one_page_of_all_its_scenes(tmp_path, trained):
    scenes = [str(write_scene(tmp_path / f"{k}.tif", seed=k)[0]) for k in range(2)]
    words = ["predict", str(trained[0] / "best.safetensors"), *scenes, "--out", str(tmp_path), "--composite", "both"]
    CliRunner().invoke(app, [*words, "--page", "--set", "predict.views=false"], catch_exceptions=False)
    (shown,) = data_of(tmp_path / "both_map.html")[0]["maps"]
    assert shown["name"] == "both" and pixels(shown["layers"]["image"])[..., 3].any()


# In a browser


@pytest.fixture
def opened(opened):
    """Open a page, and expect beside that it is no wider than the screen."""
    pages = []

    def show(path, width=1280, **context):
        pages.append(opened(path, viewport={"width": width, "height": 800}, **context))
        return pages[-1]

    yield show
    for page in pages:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def chosen(page):
    return page.locator("tr[aria-current] button").all_inner_texts()


def click_on(page, row):
    """Click on the map where a glacier is, at the corner of its outline."""
    at = page.evaluate(
        "k => { const {map, rows} = glacierMap, corner = rows[k].shape.getBounds().getNorthWest(),"
        " p = map.latLngToContainerPoint(corner), box = map.getContainer().getBoundingClientRect();"
        " return [box.x + p.x, box.y + p.y] }",
        row,
    )
    page.mouse.click(at[0] + 1, at[1] + 1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_table_and_map_find_each_other(made, opened, width, scheme):
    page = opened(made, width, color_scheme=scheme)
    rows = page.locator("tbody button")
    assert rows.first.evaluate("b => b.firstChild.textContent") == EVIL
    before = page.evaluate("glacierMap.map.getCenter()")
    rows.nth(1).focus()
    page.keyboard.press("Enter")
    assert chosen(page) == ["Rongbuk\nRGI-1"] and page.evaluate("glacierMap.map.getCenter()") != before
    assert page.evaluate("glacierMap.map.getBounds().contains(glacierMap.rows[1].shape.getBounds())")
    assert page.locator("#said").inner_text() == "Rongbuk, area 0.100 km², debris 50 %"
    page.locator("#whole").click()
    click_on(page, 0)
    assert "RGI-2" in chosen(page)[0] and page.evaluate("document.activeElement.innerText").endswith("RGI-2")
    assert page.locator("tr[aria-current]").evaluate(
        "row => { const a = row.getBoundingClientRect(); return a.top >= 0 && a.top < innerHeight }"
    )
    page.keyboard.press("Escape")
    assert chosen(page) == []
    back = [int(v) for v in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))]
    assert max(back) < 60 if scheme == "dark" else min(back) > 200


@pytest.mark.parametrize("width", [390, 1280])
def test_the_line_moves_by_keyboard_and_pointer(dates, opened, width):
    page = opened(dates, width)
    clip = "getComputedStyle(document.querySelector('.leaflet-left-pane')).clipPath"
    before, line = page.evaluate(clip), page.locator("#swipe")
    line.focus()
    page.keyboard.press("ArrowRight")
    assert line.input_value() == "51" and page.evaluate(clip) != before
    assert line.get_attribute("aria-valuetext") == "51 % july, classes, the rest later, classes"
    box, place = line.bounding_box(), page.evaluate("glacierMap.map.getCenter()")
    centre = box["x"] + 22 + (box["width"] - 44) * 0.51, box["y"] + 22
    page.mouse.move(*centre)
    page.mouse.down()
    page.mouse.move(centre[0] - 100, centre[1])
    page.mouse.up()
    assert int(line.input_value()) < 51
    assert page.evaluate("glacierMap.map.getCenter()") == place


def test_sides_opacity_order_and_search(dates, opened):
    page = opened(dates)
    assert page.locator("#left").input_value() == "0 classes" and page.locator("#right").input_value() == "1 classes"
    page.locator("#left").select_option("0 image")
    images = ".leaflet-left-pane img"
    assert page.locator(images).count() == 1 and page.locator("#left-name").inner_text() == "july, image"
    page.locator("#left").select_option("1 confidence")
    page.locator("#opacity").focus()
    page.keyboard.press("Home")
    assert [i.evaluate("i => i.style.opacity") for i in page.locator(images).all()][1] == "0"
    assert page.eval_on_selector_all("img", "all => all.every(i => i.complete && i.naturalWidth === 90)")
    head = page.locator("thead th")
    assert head.nth(1).get_attribute("aria-sort") == "descending"
    head.nth(1).locator("button").press("Enter")
    assert head.nth(1).get_attribute("aria-sort") == "ascending"
    assert page.locator("tbody button").first.inner_text().startswith("Rongbuk")
    page.locator("#find").fill("rongbuk")
    assert page.locator("tbody tr:visible").count() == 2 and page.locator("#count").inner_text() == "2 of 4"
    page.locator("#outlines").uncheck()
    page.locator("tbody button").first.press("Enter")
    assert len(chosen(page)) == 1


def test_every_control_has_a_name_and_the_map_moves_by_keyboard(made, opened):
    page = opened(made, 390)
    nameless = "all => all.filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.innerText)).length"
    assert page.eval_on_selector_all("input, select, button, a", nameless) == 0
    zoom = page.evaluate("glacierMap.map.getZoom()")
    page.locator("#map").focus()
    page.keyboard.press("+")
    assert page.evaluate("glacierMap.map.getZoom()") > zoom
