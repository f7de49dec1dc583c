import json
from zipfile import ZipFile

import numpy as np
import pytest
import rasterio
from polygons import outlines, rectangle
from rasterio.transform import from_origin
from scenes import BANDS, write_raster, write_scene
from typer.testing import CliRunner
from web import Answer, Web

from glacier_fastai.cli import app
from glacier_fastai.data.scenes import web
from glacier_fastai.data.scenes.opening import open_scene
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.errors import DataError, OutputError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.predict.glaciers import ByGlacier
from glacier_fastai.predict.scene import Wanted, predict_scene


@pytest.fixture
def bundle(trained):
    return ModelBundle.load(trained[0] / "best.safetensors")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for name, value in {"LOW_SPEED_TIME": 0.5, "RETRY_DELAY": 0.01, "MAX_RETRY": 1}.items():
        monkeypatch.setenv(f"GDAL_HTTP_{name}", str(value))
    monkeypatch.setattr(web, "_cache", web._Cache())


def codes(made):
    with rasterio.open(made["files"]["classes"]) as file:
        return file.read(1)


def test_maps_are_the_same_and_hold_no_secret(bundle, scene, tmp_path):
    here = predict_scene(bundle, scene[0], tmp_path / "here")
    with Web({"a/scene.tif": scene[0].read_bytes()}) as server:
        url = f"{server.url}/a/scene.tif?sig=SECRET".replace("//", "//me:SECRET@")
        there = predict_scene(bundle, url, tmp_path / "there")
        np.testing.assert_array_equal(codes(there), codes(here))
        sent = server.sent
        again = predict_scene(bundle, url.replace("SECRET", "OTHER"), tmp_path / "there")
        assert again["done_before"] and not there["done_before"] and server.sent - sent < scene[0].stat().st_size * 2
    record = (tmp_path / "there" / "scene_prediction.json").read_text()
    assert json.loads(record)["scene"] == "scene.tif" and "SECRET" not in record and "127.0.0.1" not in record


def test_a_scene_that_changes_is_found(bundle, scene, tmp_path):
    with Web({"scene.tif": scene[0].read_bytes()}) as server:
        url = f"{server.url}/scene.tif"
        predict_scene(bundle, url, tmp_path / "maps")
        write_scene(scene[0], seed=3)
        server.files["/scene.tif"], server.version = scene[0].read_bytes(), '"2"'
        here = predict_scene(bundle, scene[0], tmp_path / "here")
        there = predict_scene(bundle, url, tmp_path / "maps", overwrite=True)
        np.testing.assert_array_equal(codes(there), codes(here))

        first = len(server.asked)

        def plan(number, path, start):
            return Answer(headers={"ETag": '"3"'}) if number > first + 3 else None

        server.plan = plan
        with pytest.raises(DataError, match="scene.tif.*was changed while it was (mapped|read)"):
            predict_scene(bundle, url, tmp_path / "new")
        assert [*(tmp_path / "new").iterdir()] == [] if (tmp_path / "new").exists() else True


def test_a_connection_lost_for_good_leaves_nothing(bundle, tmp_path):
    scene, _ = write_scene(tmp_path / "scene.tif", 300, 300)
    with Web({"scene.tif": scene.read_bytes()}) as server:
        server.plan = lambda number, path, start: Answer(drop=0) if start > 300_000 else None
        with pytest.raises(DataError, match=r"^http://127.0.0.1:\d+/scene.tif: the connection breaks off"):
            predict_scene(bundle, f"{server.url}/scene.tif", tmp_path / "maps")
    assert not (tmp_path / "maps").exists() or not [*(tmp_path / "maps").iterdir()]


def test_a_store_of_a_scene_on_the_network(scene, tmp_path):
    with Web({"scene.tif": scene[0].read_bytes(), "label.tif": scene[1].read_bytes()}) as server:
        there = f"{server.url}/{{}}?sig=SECRET"
        store = prepare_scenes(
            [there.format("scene.tif")], tmp_path / "there", labels=[there.format("label.tif")], tile_size=32
        )
    here = prepare_scenes([scene[0]], tmp_path / "here", labels=[scene[1]], tile_size=32)
    np.testing.assert_array_equal(store.images, here.images)
    np.testing.assert_array_equal(store.masks, here.masks)
    assert store.bands == BANDS and "SECRET" not in (store.path / "dataset.json").read_text()


def test_outlines_and_inventories_on_the_network(bundle, scene, tmp_path, monkeypatch):
    made = outlines(tmp_path / "o.gpkg", [rectangle(10, 10, 30, 40)], rgi_id=["A"])
    here = prepare_scenes([scene[0]], tmp_path / "here", outlines=[("glacier", made)], tile_size=32)
    packed = tmp_path / "o.zip"
    with ZipFile(packed, "w") as file:
        file.write(made, "in/o.gpkg")
    with Web({"o.gpkg": made.read_bytes(), "o.zip": packed.read_bytes()}) as server:
        for name in ("o.gpkg", "o.zip"):
            url = f"{server.url}/{name}?sig=SECRET"
            store = prepare_scenes([scene[0]], tmp_path / f"store {name}", outlines=[("glacier", url)], tile_size=32)
            np.testing.assert_array_equal(store.masks, here.masks)
            assert "SECRET" not in (store.path / "dataset.json").read_text()
        url = f"{server.url}/o.gpkg?sig=SECRET"
        how = {"wanted": Wanted(glaciers=ByGlacier(url)), "force": True}
        made_by = predict_scene(bundle, scene[0], tmp_path / "maps", **how)
        assert predict_scene(bundle, scene[0], tmp_path / "maps", **how)["done_before"] and not made_by["done_before"]
        assert "SECRET" not in "".join(p.read_text() for p in (tmp_path / "maps").glob("*.json"))
        server.version = '"2"'
        with pytest.raises(OutputError, match="exists already, of another scene, models or settings"):
            predict_scene(bundle, scene[0], tmp_path / "maps", **how)
        monkeypatch.setattr(web, "_cache", web._Cache())
        server.plan = lambda number, path, start: Answer(drop=0) if start else None
        with pytest.raises(DataError, match=r"/o\.gpkg: the connection breaks off"):
            prepare_scenes([scene[0]], tmp_path / "none", outlines=[f"{server.url}/o.gpkg"], tile_size=32)
    assert not (tmp_path / "none").exists()


def test_an_elevation_model_on_the_network(scene, tmp_path):
    place = from_origin(499_000, 3_101_000, 30, 30)
    heights = np.add.outer(np.arange(200.0), np.arange(200.0)).astype(np.float32)[None]
    dem = write_raster(tmp_path / "dem.tif", heights, transform=place)
    with Web({"dem.tif": dem.read_bytes()}) as server:
        with open_scene(scene[0], ["slope"], dem=f"{server.url}/dem.tif?sig=SECRET") as there:
            found = there.read_window([0], 0, 0, 20, 20)[0]
            assert not any("SECRET" in str(file) for file in there.files)
        with open_scene(scene[0], ["slope"], dem=dem) as here:
            np.testing.assert_array_equal(found, here.read_window([0], 0, 0, 20, 20)[0])


def test_ice_is_divided_along_an_elevation_model_on_the_network(bundle, scene, tmp_path):
    heights = np.add.outer(np.arange(200.0), np.arange(200.0)).astype(np.float32)[None]
    dem = write_raster(tmp_path / "dem.tif", heights, transform=from_origin(499_000, 3_101_000, 30, 30))
    with Web({"dem.tif": dem.read_bytes()}) as server:
        how = {"wanted": Wanted(glaciers=ByGlacier(divides=f"{server.url}/dem.tif?sig=SECRET")), "force": True}
        made = predict_scene(bundle, scene[0], tmp_path / "maps", **how)
        assert predict_scene(bundle, scene[0], tmp_path / "maps", **how)["done_before"] and not made["done_before"]
    about = json.loads((tmp_path / "maps" / "scene_glaciers.json").read_text())
    assert about["inventory"]["name"] == "divides of dem.tif"
    assert "SECRET" not in "".join(p.read_text() for p in (tmp_path / "maps").glob("*.json"))


def test_items_of_an_api_are_mapped(trained, scene, tmp_path):
    href = scene[0].name
    assets = {
        "all": {"href": href, "eo:bands": [{"common_name": b} for b in ("blue", "green", "red", "swir16", "lwir11")]}
    }
    said = {"type": "Feature", "stac_version": "1.0.0", "id": "one", "geometry": None, "bbox": [86, 27, 87, 28]}
    said |= {"properties": {"datetime": "2020-08-01T00:00:00Z", "eo:cloud_cover": 3}, "assets": assets}
    with Web({"items/scene.tif": scene[0].read_bytes()}) as server:
        said["links"] = [{"rel": "self", "href": f"{server.url}/items/one"}]
        links = [{"rel": rel, "href": server.url} for rel in ("self", "root")]
        links.append({"rel": "search", "href": f"{server.url}/search", "type": "application/geo+json", "method": "GET"})
        core = "https://api.stacspec.org/v1.0.0/"
        api = {"type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": "", "links": links}
        api["conformsTo"] = [core + "core", core + "item-search"]
        found = {"type": "FeatureCollection", "features": [said], "links": []}
        for name, what in {"/": api, "/search": found, "/items/one": said}.items():
            server.files[name] = json.dumps(what).encode()
        model = str(trained[0] / "best.safetensors")
        words = ["predict", model, "--stac", server.url, "--bbox", "86,27,87,28", "--from", "2020-07-01"]
        words += ["--to", "2020-09-30", "--max-cloud", "30", "--collection", "c", "--out", str(tmp_path / "maps")]
        outcome = CliRunner().invoke(app, words)
        assert outcome.exit_code == 0, outcome.output
        here = predict_scene(ModelBundle.load(model), scene[0], tmp_path / "here")
        with rasterio.open(tmp_path / "maps" / "one_classes.tif") as file:
            np.testing.assert_array_equal(file.read(1), codes(here))
        refused = CliRunner().invoke(
            app, ["predict", model, str(scene[0]), "--bbox", "1,2,3,4", "--out", str(tmp_path)]
        )
        assert "--stac" in str(refused.exception)
