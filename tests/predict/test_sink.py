import re
from types import SimpleNamespace
from xml.sax.saxutils import escape

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.errors import DriverRegistrationError
from rasterio.shutil import copy
from rasterio.transform import Affine, from_origin
from scenes import TINY, made_up, write_raster

from glacier_fastai.data.scenes.raster import same_crs
from glacier_fastai.errors import DataError, DataNote, OutputError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.registry import build_model
from glacier_fastai.predict.glaciers import ByGlacier
from glacier_fastai.predict.scene import Wanted, predict_scene
from glacier_fastai.predict.sink import ClassMap, Strip, check_grid, writing

BANDS = ("green", "red")
DEGREES = from_origin(-10, 5, 0.01, 0.01)
TURNED = Affine(20, 10, 500_000, 10, -20, 3_100_000)
SOUTH_UP = Affine(30, 0, 500_000.123, 0, 30, 3_000_000)
OWN_DATUM = """PROJCS["own",GEOGCS["own",DATUM["own",SPHEROID["own",6378000,298.1]],PRIMEM["Greenwich",0],
UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],
PARAMETER["central_meridian",87],PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],
PARAMETER["false_northing",0],UNIT["metre",1]]"""
POLE = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +to_meter=0.0174532925199433"
SITE = 'ENGCRS["site",EDATUM["own"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["foot",0.3048]]'
SHIFTED = "+proj=utm +zone=45 +ellps=krass +towgs84=28,-130,-95 +geoidgrids=egm96_15.gtx +vunits=m"
PLACES = {  # CRS, transform, whether a GeoTIFF needs help to hold the CRS
    "turned": ("EPSG:32645", TURNED, False),
    "south up": ("EPSG:32645", SOUTH_UP, False),
    "degrees": ("EPSG:4326", DEGREES, False),
    "compound": ("EPSG:32645+5773", TURNED, False),
    "own datum": (OWN_DATUM, TURNED, False),
    "sphere": ("+proj=sinu +R=6371007.181", SOUTH_UP, False),
    "geostationary": ("+proj=geos +h=35786023 +lon_0=-75 +sweep=x +ellps=GRS80", SOUTH_UP, False),
    "plain site": ('LOCAL_CS["site",UNIT["metre",1]]', TURNED, False),
    "rotated pole": (POLE, DEGREES, True),
    "icosahedron": ("+proj=isea", SOUTH_UP, True),
    "site": (SITE, TURNED, True),
    "shifted datum and heights": (SHIFTED, TURNED, True),
}


@pytest.fixture
def bundle():
    weights = build_model("fpn", list(BANDS), encoder=TINY).state_dict()
    return ModelBundle(weights, "fpn", {"encoder": TINY}, BANDS, (4000.0, 4000.0), (2000.0, 2000.0))


def scene_at(path, crs, transform):
    """Write a scene as a VRT, which holds every CRS as it is."""
    plain = write_raster(
        path.with_suffix(".tif"), made_up(64, 64, BANDS)[0], nodata=0, bands=BANDS, transform=transform
    )
    copy(plain, path, driver="VRT")
    path.write_text(re.sub("(?s)<SRS.*</SRS>", f"<SRS>{escape(crs.to_wkt())}</SRS>", path.read_text()))
    return path


@pytest.mark.parametrize(("crs", "transform", "beside"), PLACES.values(), ids=PLACES)
def test_every_map_lies_where_the_scene_does(bundle, tmp_path, recwarn, crs, transform, beside):
    path, wanted = scene_at(tmp_path / "s.vrt", rasterio.CRS.from_user_input(crs), transform), Wanted("uint8", True)
    made = predict_scene(bundle, path, tmp_path / "maps", wanted)
    with rasterio.open(path) as scene:
        assert scene.transform == transform
        for file in made["files"].values():
            with rasterio.open(file) as map_:
                assert map_.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert (map_.transform, map_.shape) == (scene.transform, scene.shape)
                assert same_crs(map_.crs, scene.crs)
    names = sorted(p.name for p in (tmp_path / "maps").iterdir())
    kinds = ("classes", "confidence", "probabilities")
    sidecars = [f"s_{kind}.tif.aux.xml" for kind in kinds] if beside else []
    assert names == sorted(["s_prediction.json", *(f"s_{kind}.tif" for kind in kinds), *sidecars])
    notes = [str(w.message) for w in recwarn if w.category is DataNote]
    assert made["notes"] == notes
    apart = re.compile(r"s_classes\.tif: .* lies in s_classes\.tif\.aux\.xml beside it; keep")
    assert sum(bool(apart.search(line)) for line in notes) == beside
    assert predict_scene(bundle, path, tmp_path / "maps", wanted)["done_before"]
    if beside:
        (tmp_path / "maps" / sidecars[0]).unlink()
        assert not predict_scene(bundle, path, tmp_path / "maps", wanted)["done_before"]
        assert (tmp_path / "maps" / sidecars[0]).exists()


def test_a_geotiff_whose_crs_lies_beside_it_is_mapped_and_its_map_replaced_whole(bundle, tmp_path):
    path, values = tmp_path / "s.tif", made_up(64, 64, BANDS)[0]
    write_raster(path, values, nodata=0, bands=BANDS, crs=POLE, transform=DEGREES)
    predict_scene(bundle, path, tmp_path / "maps", Wanted(confidence=True))
    (tmp_path / "s.tif.aux.xml").unlink()
    write_raster(path, values, nodata=0, bands=BANDS)
    made = predict_scene(bundle, path, tmp_path / "maps", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["s_classes.tif", "s_prediction.json"]
    with rasterio.open(made["files"]["classes"]) as file:
        assert file.crs.to_epsg() == 32645


def test_a_place_that_no_map_can_hold_is_refused_before_anything_is_mapped(bundle, tmp_path, monkeypatch):
    path = scene_at(tmp_path / "s.vrt", rasterio.CRS.from_user_input(POLE), DEGREES)
    monkeypatch.setattr("glacier_fastai.predict.scene.map_strips", None)
    with (
        rasterio.Env(GDAL_PAM_ENABLED=False),
        pytest.raises(DataError, match=r"s\.vrt: a GeoTIFF cannot hold.*gdalwarp"),
    ):
        predict_scene(bundle, path, tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_a_map_used_alone_leaves_no_rows_behind(tmp_path):
    source = SimpleNamespace(path="s", height=4, width=4, crs=rasterio.CRS.from_user_input(POLE), transform=DEGREES)
    with ClassMap(tmp_path / "m.tif", source) as made:
        made.write(Strip(0, np.ones((4, 4), "uint8"), np.zeros((4, 4, 4), "float32")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.tif", "m.tif.aux.xml"]
    check_grid(source, tmp_path)
    source.crs = "EPSG:32645"  # as text
    check_grid(source, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.tif", "m.tif.aux.xml"]


def test_what_was_only_needed_meanwhile_leaves_nothing_beside_a_map(bundle, tmp_path):
    crs, transform, _ = PLACES["icosahedron"]
    path = scene_at(tmp_path / "s.vrt", rasterio.CRS.from_user_input(crs), transform)
    outline = geopandas.GeoSeries([shapely.box(500_300, 3_000_300, 501_500, 3_001_500)], crs=crs).to_crs("EPSG:4326")
    geopandas.GeoDataFrame({"id": ["A"]}, geometry=outline).to_file(tmp_path / "inventory.gpkg")
    made = predict_scene(bundle, path, tmp_path / "maps", Wanted(glaciers=ByGlacier(tmp_path / "inventory.gpkg")))
    files = [*(f"s_glaciers.{end}" for end in ("csv", "gpkg", "json")), "s_classes.tif", "s_classes.tif.aux.xml"]
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == sorted([*files, "s_prediction.json"])
    assert made["sidecars"] == ["s_classes.tif.aux.xml"]
    assert list(made["sha256"]) == sorted(files)


def test_a_format_that_gdal_lacks_is_one_line(tmp_path):
    with pytest.raises(OutputError, match=r"m\.tif: cannot be written \("), writing(tmp_path / "m.tif"):
        raise DriverRegistrationError("driver COG is not registered")  # GDAL_SKIP=COG
