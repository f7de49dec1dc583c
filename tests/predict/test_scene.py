import json
import os
import re
import resource
import sqlite3
import warnings
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from listening import nobody_asks
from polygons import outlines, rectangle
from pyproj import CRS
from rasterio.env import get_gdal_config
from rasterio.shutil import copy
from rasterio.transform import Affine
from scenes import BANDS, TINY, made_up, normalised, write_raster, write_scene

from glacier_fastai.data.profile import Profile
from glacier_fastai.data.scenes import opening
from glacier_fastai.data.scenes.product import Flag, Part, Product
from glacier_fastai.errors import BundleError, DataError, DataNote, OutputError
from glacier_fastai.model.bundle import ModelBundle
from glacier_fastai.model.ensemble import Ensemble, Member
from glacier_fastai.model.registry import build_model
from glacier_fastai.predict import scene as scene_module
from glacier_fastai.predict.glaciers import glaciers
from glacier_fastai.predict.scene import Wanted, map_strips, predict_scene
from glacier_fastai.predict.scenes import predict_scenes
from glacier_fastai.show.page import write_page

ORDERS = [0, 1, 2, 3, 4], [0, 2, 1, 3, 4]


def mapped(*args, **kwargs):
    return Path(predict_scene(*args, **kwargs)["files"]["classes"])


@pytest.fixture
def bundle(trained):
    return ModelBundle.load(trained[0] / "best.safetensors")


def test_the_map_lies_on_the_scenes_grid(bundle, scene, tmp_path):
    path = mapped(bundle, scene[0], tmp_path / "maps")
    assert path == tmp_path / "maps" / "scene_classes.tif"
    assert sorted(p.name for p in path.parent.iterdir()) == ["scene_classes.tif", "scene_prediction.json"]
    with rasterio.open(path) as out, rasterio.open(scene[0]) as source:
        assert (out.crs, out.transform, out.shape) == (source.crs, source.transform, source.shape)
        assert (out.count, out.dtypes[0], out.nodata) == (1, "uint8", 255)
        classes, colours = out.read(1), out.colormap(1)
    assert ((classes == 255) == ~made_up()[2]).all()
    assert set(np.unique(classes)) <= {0, 1, 2, 3, 255}
    assert colours[1] == (0x56, 0xB4, 0xE9, 255)


def test_a_scene_of_one_window_equals_the_model_itself(bundle, tmp_path):
    write_scene(tmp_path / "s.tif", 32, 32)
    values, _, valid = made_up(32, 32)
    x = normalised(np.where(valid, values, np.nan).astype(np.float32), bundle.mean, bundle.std)
    with torch.no_grad():
        want = bundle.model()(torch.from_numpy(x)[None]).argmax(1)[0].numpy()
    with rasterio.open(mapped(bundle, tmp_path / "s.tif", tmp_path)) as out:
        np.testing.assert_array_equal(out.read(1), np.where(valid, want, 255))


def test_the_record_says_that_the_model_was_never_told_debris(bundle, scene, tmp_path):
    with pytest.warns(
        DataNote, match=r"scene\.tif: the model was never told debris from clean ice, so all ice is glacier"
    ):
        made = predict_scene(replace(bundle, tells_debris=False), scene[0], tmp_path / "maps")
    record = json.loads((tmp_path / "maps" / "scene_prediction.json").read_text())
    assert record["tells_debris"] is False and "none is debris" in record["notes"][0]
    told = predict_scene(bundle, scene[0], tmp_path / "told")
    assert made["pixels"]["debris"] == 0 < told["pixels"]["debris"] and told["tells_debris"]
    both = Ensemble((Member(bundle), Member(replace(bundle, tells_debris=False))))
    with pytest.warns(DataNote, match="1 of 2 models were never told debris from clean ice"):
        assert predict_scene(both, scene[0], tmp_path / "both")["pixels"] == made["pixels"]


def test_bands_are_found_by_name_whatever_their_order(bundle, scene, tmp_path):
    values = made_up()[0]
    extra = np.concatenate([values[::-1], values[:1] * 0 + 7])
    write_raster(tmp_path / "other.tif", extra, nodata=0, bands=[*BANDS[::-1], "nir"])
    maps = [mapped(bundle, p, tmp_path / "maps") for p in (scene[0], tmp_path / "other.tif")]
    arrays = []
    for path in maps:
        with rasterio.open(path) as file:
            arrays.append(file.read(1))
    np.testing.assert_array_equal(*arrays)


@pytest.mark.parametrize("kind", ["files", "bands"])
def test_other_bands_named_of_the_same_files_are_another_prediction(bundle, tmp_path, kind):
    values, names = made_up()[0], [*BANDS, "-"]
    if kind == "files":
        (tmp_path / "s").mkdir()
        for k, value in enumerate(values):
            write_raster(tmp_path / "s" / f"B{k}.tif", value[None], nodata=0)
        scene, ways = tmp_path / "s", [{b: f"B{k}.tif" for b, k in zip(BANDS, o, strict=True)} for o in ORDERS]
    else:
        scene = write_raster(tmp_path / "s.tif", np.concatenate([values, values[:1] // 2 + 1]), nodata=0)
        ways = [names, ["-", *BANDS]]
    first = predict_scene(bundle, scene, tmp_path / "maps", bands=ways[0], force=True)
    assert predict_scene(bundle, scene, tmp_path / "maps", bands=ways[0], force=True)["done_before"]
    with pytest.raises(OutputError, match="exists already, of another scene, models or settings"):
        predict_scene(bundle, scene, tmp_path / "maps", bands=ways[1], force=True)
    assert not first["done_before"]


def test_values_under_nodata_do_not_matter(bundle, tmp_path):
    values, _, valid = made_up()
    values = values.astype(np.float32)
    arrays = []
    for k, junk in enumerate((-999.0, np.nan)):
        path = write_raster(tmp_path / f"{k}.tif", np.where(valid, values, junk), nodata=-999, bands=BANDS)
        with rasterio.open(mapped(bundle, path, tmp_path / "maps")) as file:
            arrays.append(file.read(1))
    np.testing.assert_array_equal(*arrays)


def test_a_rotated_grid_is_kept(bundle, tmp_path):
    turned = Affine(20, 10, 500_000, 10, -20, 3_100_000)
    path = write_raster(tmp_path / "t.tif", made_up()[0], nodata=0, bands=BANDS, transform=turned)
    with rasterio.open(mapped(bundle, path, tmp_path / "maps")) as out:
        assert out.transform.almost_equals(turned)


def test_undeclared_zero_fill_is_nodata_as_in_a_store(bundle, tmp_path):
    write_raster(tmp_path / "s.tif", made_up()[0], bands=BANDS)
    with rasterio.open(mapped(bundle, tmp_path / "s.tif", tmp_path / "maps")) as out:
        assert ((out.read(1) == 255) == ~made_up()[2]).all()


def test_refusals_leave_no_map_behind(bundle, scene, tmp_path):
    out = tmp_path / "maps"

    def refuse(error, message, path, **kwargs):
        with pytest.raises(error, match=message):
            predict_scene(bundle, path, out, **kwargs)
        assert not out.exists() or list(out.iterdir()) == []

    refuse(DataError, "no such file", tmp_path / "x.tif")
    few = write_raster(tmp_path / "few.tif", made_up()[0][:3], bands=BANDS[:3])
    refuse(BundleError, "the bundle needs band swir1, thermal; here are blue, green, red", few)
    refuse(DataError, "5 bands, but `bands` names 1", scene[0], bands=["red"])
    empty = write_raster(tmp_path / "empty.tif", made_up()[0] * 0, nodata=0, bands=BANDS)
    refuse(DataError, "every pixel is nodata, so there is nothing to map", empty)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(scene[0].read_bytes()[:-40_000])
    refuse(DataError, "cut short or damaged|not a raster", cut)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        predict_scene(bundle, scene[0], tmp_path / "file")


def test_gdals_cache_is_bounded_while_a_scene_is_mapped(bundle, scene, tmp_path, monkeypatch):
    limits = []

    def noted(*args):
        limits.append(get_gdal_config("GDAL_CACHEMAX"))
        yield from map_strips(*args)

    monkeypatch.setattr("glacier_fastai.predict.scene.map_strips", noted)
    predict_scene(bundle, scene[0], tmp_path / "maps")
    assert limits == [2**25]


def test_what_is_done_is_not_done_again_and_what_is_other_is_kept(bundle, scene, tmp_path):
    first = predict_scene(bundle, scene[0], tmp_path)
    path = Path(first["files"]["classes"])
    before = path.stat().st_mtime_ns
    again = predict_scene(bundle, scene[0], tmp_path)
    assert (first["done_before"], again["done_before"]) == (False, True)
    assert again["pixels"] == first["pixels"] and path.stat().st_mtime_ns == before
    assert "glacier" not in first["calibration"]  # as in records of before, so that their maps are found
    other = Wanted(window=64, confidence=True)
    with pytest.raises(OutputError, match=r"scene_classes\.tif: exists already.*overwrite it"):
        predict_scene(bundle, scene[0], tmp_path, other)
    assert path.stat().st_mtime_ns == before
    assert "confidence" in predict_scene(bundle, scene[0], tmp_path, other, overwrite=True)["files"]
    assert path.stat().st_mtime_ns > before
    predict_scene(bundle, scene[0], tmp_path, overwrite=True)
    assert not (tmp_path / "scene_confidence.tif").exists()  # of other settings than the map
    path.unlink()
    assert not predict_scene(bundle, scene[0], tmp_path)["done_before"]
    write_scene(scene[0], seed=5)
    with pytest.raises(OutputError, match="exists already"):
        predict_scene(bundle, scene[0], tmp_path)


# what lies beside a scene


RGB = ("red", "green", "blue")


def put(band, what):
    return lambda xml: xml.replace(f'<PAMRasterBand band="{band}">', f'<PAMRasterBand band="{band}">{what}')


SIDECARS = {  # what is changed in it, and whether that makes another scene
    "georeference": (lambda xml: xml.replace("5.0000000000000000e+05", "5.1000000000000000e+05"), True),
    "crs": (lambda xml: re.sub("(?s)<SRS.*</SRS>", "<SRS>EPSG:32644</SRS>", xml), True),
    "nodata": (put(1, "<NoDataValue>7</NoDataValue>"), True),
    "scale": (put(2, "<Scale>0.5</Scale>"), True),
    "offset": (put(2, "<Offset>3</Offset>"), True),
    "unit": (put(2, "<UnitType>counts</UnitType>"), True),
    "names": (lambda xml: xml.replace("red", "x").replace("green", "red").replace("x<", "green<"), True),
    "statistics": (put(1, '<Metadata><MDI key="STATISTICS_MEAN">9</MDI></Metadata>'), False),
    "histogram": (put(1, "<Histograms></Histograms>"), False),
    "layout": (lambda xml: xml.replace("  ", "    "), False),
}


@pytest.fixture
def rgb(tmp_path):
    """A PNG, whose georeference lies in an .aux.xml, and a model of its bands."""
    values = (made_up(64, 64, RGB)[0] // 50).astype("uint8")
    write_raster(tmp_path / "src.tif", values, bands=RGB)
    copy(tmp_path / "src.tif", tmp_path / "s.png", driver="PNG")
    weights = build_model("fpn", list(RGB), encoder=TINY).state_dict()
    bundle = ModelBundle(weights, "fpn", {"encoder": TINY}, RGB, (90.0,) * 3, (40.0,) * 3)
    return bundle, tmp_path / "s.png", tmp_path / "maps"


@pytest.mark.parametrize(("edit", "other"), SIDECARS.values(), ids=SIDECARS)
def test_what_an_aux_xml_says_is_part_of_a_scene_but_not_what_viewers_add(rgb, edit, other):
    predict_scene(*rgb)
    sidecar = Path(f"{rgb[1]}.aux.xml")
    before = sidecar.read_text()
    sidecar.write_text(edit(before))
    assert sidecar.read_text() != before
    if not other:
        assert predict_scene(*rgb)["done_before"]
        return
    with pytest.raises(OutputError, match=r"s_classes\.tif: exists already, of another scene, .*overwrite it"):
        predict_scene(*rgb)
    made = predict_scene(*rgb, overwrite=True)
    with rasterio.open(made["files"]["classes"]) as map_, rasterio.open(rgb[1]) as scene:
        assert not made["done_before"] and (map_.crs, map_.transform) == (scene.crs, scene.transform)


def test_statistics_and_overviews_of_a_viewer_make_no_other_scene(bundle, scene, tmp_path):
    predict_scene(bundle, scene[0], tmp_path / "maps")
    with rasterio.open(scene[0]) as file:
        file.stats()
    Path(f"{scene[0]}.aux.xml").write_text("<PAMDataset></PAMDataset>")
    Path(f"{scene[0]}.ovr").write_bytes(b"")
    assert predict_scene(bundle, scene[0], tmp_path / "maps")["done_before"]


def test_what_lies_beside_the_polygons_of_a_mask_is_part_of_them(bundle, scene, tmp_path):
    mask = outlines(tmp_path / "mask.shp", [rectangle(10, 20, 30, 40)])
    predict_scene(bundle, scene[0], tmp_path / "maps", mask=mask)
    assert predict_scene(bundle, scene[0], tmp_path / "maps", mask=mask)["done_before"]
    mask.with_suffix(".prj").write_text(CRS.from_epsg(32646).to_wkt("WKT1_ESRI"))
    with pytest.raises(OutputError, match="exists already, of another scene"):
        predict_scene(bundle, scene[0], tmp_path / "maps", mask=mask)


def test_masks_and_world_files_beside_a_scene_are_part_of_it(rgb):
    predict_scene(*rgb)
    sidecar = Path(f"{rgb[1]}.aux.xml")
    sidecar.write_text(re.sub("(?s)<GeoTransform>.*</GeoTransform>", "", sidecar.read_text()))
    world = rgb[1].with_suffix(".wld")
    world.write_text("30\n0\n0\n-30\n500015\n3099985\n")  # centre of the first pixel
    with pytest.raises(OutputError, match="exists already"):  # the same place, but another file says so
        predict_scene(*rgb)
    predict_scene(*rgb, overwrite=True)
    world.write_text("30\n0\n0\n-30\n600015\n3099985\n")
    made = predict_scene(*rgb, overwrite=True)
    with rasterio.open(made["files"]["classes"]) as file:
        assert not made["done_before"] and file.transform.c == 600_000
    right = np.repeat([[0, 255]], 32, 1).astype("uint8").repeat(64, 0)
    with rasterio.open(write_raster(Path(f"{rgb[1]}.msk"), right[None]), "r+") as mask:
        mask.update_tags(INTERNAL_MASK_FLAGS_1="2")
    made = predict_scene(*rgb, overwrite=True)
    with rasterio.open(made["files"]["classes"]) as file:
        assert (file.read(1)[right == 0] == 255).all() and (file.read(1)[right > 0] < 255).any()


# what is there at the end is whole, and of one thing

ALL = Wanted("float32", True, True, window=64)


def test_on_a_disk_that_fills_up_there_is_no_map_and_one_line(bundle, scene, tmp_path):
    sizes = [
        p.stat().st_size for p in map(Path, predict_scene(bundle, scene[0], tmp_path / "whole", ALL)["files"].values())
    ]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for k, limit in enumerate(int(share * max(sizes)) for share in (0.1, 0.5, 0.8, 0.9, 0.95, 0.99)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OutputError, match="cannot be written") as err:
                predict_scene(bundle, scene[0], tmp_path / f"out{k}", ALL)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "\n" not in str(err.value)
        assert not (tmp_path / f"out{k}").exists()


@pytest.mark.parametrize("kind", ["classes", "probabilities", "outlines"])
def test_a_map_that_is_cut_short_is_made_again(bundle, scene, tmp_path, kind):
    path = Path(predict_scene(bundle, scene[0], tmp_path, ALL)["files"][kind])
    assert predict_scene(bundle, scene[0], tmp_path, ALL)["done_before"]
    os.truncate(path, path.stat().st_size * 3 // 4)
    with pytest.warns(DataNote, match=f"{path.name}: is damaged, so it is made again"):
        assert not predict_scene(bundle, scene[0], tmp_path, ALL)["done_before"]
    assert predict_scene(bundle, scene[0], tmp_path, ALL)["done_before"]


def test_a_map_that_was_edited_is_kept_or_replaced_as_wanted(bundle, scene, tmp_path):
    path = mapped(bundle, scene[0], tmp_path)
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.write(np.full(file.shape, 3, np.uint8), 1)
    edited = path.read_bytes()
    with pytest.raises(OutputError, match=r"scene_classes\.tif: was changed after it was made; overwrite it, or move"):
        predict_scene(bundle, scene[0], tmp_path)
    assert path.read_bytes() == edited
    assert not predict_scene(bundle, scene[0], tmp_path, overwrite=True)["done_before"]
    assert path.read_bytes() != edited


def test_outlines_that_were_edited_are_kept_and_that_is_said(bundle, scene, tmp_path):
    path = Path(predict_scene(bundle, scene[0], tmp_path, Wanted(outlines=True))["files"]["outlines"])
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE notes_of_a_viewer (a)")
    with warnings.catch_warnings(record=True) as said:
        assert predict_scene(bundle, scene[0], tmp_path, Wanted(outlines=True))["done_before"]
    assert not any("was changed" in str(w.message) for w in said)
    with closing(sqlite3.connect(path)) as file:
        file.execute("DELETE FROM classes WHERE fid = 1")
        file.commit()
    with pytest.warns(DataNote, match=r"scene_outlines\.gpkg: was changed after it was made; it stays as it is"):
        assert predict_scene(bundle, scene[0], tmp_path, Wanted(outlines=True))["done_before"]


def test_what_a_viewer_left_beside_outlines_is_not_played_into_new_ones(bundle, scene, tmp_path):
    path = Path(predict_scene(bundle, scene[0], tmp_path, Wanted(outlines=True))["files"]["outlines"])
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA journal_mode = wal")
        file.execute("DELETE FROM classes")
        file.commit()
        left = Path(f"{path}-wal").read_bytes()
    Path(f"{path}-wal").write_bytes(left)
    predict_scene(bundle, scene[0], tmp_path, Wanted(outlines=True, window=64), overwrite=True)
    assert [p.name for p in tmp_path.glob("*.gpkg*")] == [path.name]
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT count(*) FROM classes").fetchone()[0]


def test_a_file_that_appears_while_a_scene_is_mapped_is_kept(bundle, scene, tmp_path, monkeypatch):
    write = scene_module.write_map

    def slow(*args):
        (tmp_path / "maps" / "scene_classes.tif").write_text("mine")
        return write(*args)

    monkeypatch.setattr(scene_module, "write_map", slow)
    with pytest.raises(OutputError, match=r"scene_classes\.tif: exists already"):
        predict_scene(bundle, scene[0], tmp_path / "maps")
    assert [(p.name, p.read_text()) for p in (tmp_path / "maps").glob("scene*")] == [("scene_classes.tif", "mine")]


def test_a_scene_that_changes_while_it_is_mapped_has_no_map(bundle, scene, tmp_path, monkeypatch):
    write = scene_module.write_map

    def changing(*args):
        os.utime(scene[0], ns=(1, 1))
        return write(*args)

    monkeypatch.setattr(scene_module, "write_map", changing)
    with pytest.raises(DataError, match=r"scene\.tif was changed while it was mapped"):
        predict_scene(bundle, scene[0], tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_one_model_maps_all_scenes_though_its_file_is_replaced(bundle, scene, tmp_path, monkeypatch):
    bundle.save(tmp_path / "m.safetensors")
    ensemble = Ensemble.load([tmp_path / "m.safetensors"])
    again = Path(tmp_path / "again.tif")
    again.write_bytes(scene[0].read_bytes())
    want = predict_scenes(ensemble, [scene[0], again], tmp_path / "want")
    write = scene_module.write_map

    def replacing(*args):
        counts = write(*args)
        replace(bundle, mean=tuple(m + 50 for m in bundle.mean)).save(tmp_path / "m.safetensors")
        return counts

    monkeypatch.setattr(scene_module, "write_map", replacing)
    found = predict_scenes(ensemble, [scene[0], again], tmp_path / "found")
    assert found["state"].tolist() == ["done", "done"]
    assert found[list(want.columns[4:8])].equals(want[list(want.columns[4:8])])
    with pytest.raises(BundleError, match=r"m\.safetensors: was replaced while it was in use"):
        ensemble.members[0].loaded()


def test_the_record_tells_names_and_no_folders(bundle, scene, tmp_path):
    bundle.save(tmp_path / "m.safetensors")
    predict_scene(Ensemble.load([tmp_path / "m.safetensors"]), scene[0], tmp_path / "maps")
    text = (tmp_path / "maps" / "scene_prediction.json").read_text()
    assert str(tmp_path) not in text and str(Path(scene[0]).parent) not in text
    assert json.loads(text)["models"][0]["bundle"] == "m.safetensors"


def test_the_record_tells_no_folder_with_a_space_in_its_name(bundle, tmp_path):
    (tmp_path / "jane doe").mkdir()
    path, _ = write_scene(tmp_path / "jane doe" / "s.tif", 64, 64)
    made = tmp_path / "jane doe" / "maps"
    with pytest.warns(DataNote, match=f"^{tmp_path}/jane doe/s.tif: has no flags"):
        predict_scene(bundle, path, made, keep=["clouds"])
    assert "doe" not in (made / "s_prediction.json").read_text()
    with pytest.warns(DataNote, match=f"^{tmp_path}/jane doe/maps/s_classes.tif: no scene"):
        write_page([made / "s_classes.tif"], made / "p.html")
    assert "jane" not in (made / "p.html").read_text()


def test_what_stands_in_the_way_is_refused_before_anything_is_removed(bundle, scene, tmp_path):
    predict_scene(bundle, scene[0], tmp_path, Wanted(confidence=True))
    for name in ("scene_prediction.json", "scene_map.html", "scene_classes.tif.ovr", "scene_confidence.tif"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).mkdir()
        before = sorted(tmp_path.iterdir())
        with pytest.raises(OutputError, match=rf"{name}: stands in the way and is no file; move it away"):
            predict_scene(bundle, scene[0], tmp_path, Wanted(window=64), overwrite=True)
        assert sorted(tmp_path.iterdir()) == before
        (tmp_path / name).rmdir()


def test_an_address_as_the_folder_for_maps_is_refused_and_nobody_asked(bundle, scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rgi = outlines(tmp_path / "rgi.gpkg", [rectangle(5, 5, 50, 50)], id=["A"])
    path, there = mapped(bundle, scene[0], "maps"), sorted(tmp_path.iterdir())
    with nobody_asks(monkeypatch) as address:
        for out in (f"{address}/maps", Path(f"{address}/maps"), "S3://bucket/maps", "s3:", "/vsimem/maps"):
            with pytest.raises(
                OutputError, match=r"\.\.\.: an address; what is made is written to this disk, so choose"
            ):
                predict_scene(bundle, scene[0], out)
            with pytest.raises(OutputError, match=r"\.\.\.: an address"):
                glaciers(path, rgi, out)
    assert sorted(tmp_path.iterdir()) == there


def test_a_folder_that_gdal_takes_for_more_holds_the_maps_or_is_refused(bundle, scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in ("file:x", "ftp:x", "a!b"):
        assert mapped(bundle, scene[0], out) == Path(out) / "scene_classes.tif"
        assert (tmp_path / out / "scene_classes.tif").is_file()
    predict_scene(bundle, scene[0], "file:y", Wanted(outlines=True))
    assert (tmp_path / "file:y" / "scene_outlines.gpkg").is_file()
    with pytest.raises(OutputError, match=r"scene_outlines\.gpkg: no layer can be written by a name with ! or ;"):
        predict_scene(bundle, scene[0], "c!d", Wanted(outlines=True), predictor=lambda: pytest.fail("has worked"))
    assert not (tmp_path / "c!d").exists()


def test_overviews_and_masks_of_the_map_before_do_not_stay(bundle, scene, tmp_path):
    made = mapped(bundle, scene[0], tmp_path / "maps")
    for end in (".ovr", ".msk"):
        made.with_name(made.name + end).write_text("")
    assert predict_scene(bundle, scene[0], made.parent)["done_before"] and len([*made.parent.iterdir()]) == 4
    predict_scene(bundle, scene[0], made.parent, Wanted(window=64), overwrite=True)
    assert sorted(p.name for p in made.parent.iterdir()) == ["scene_classes.tif", "scene_prediction.json"]


NO_PIXELS = dict.fromkeys(("background", "glacier", "debris", "lake"), 0)


@pytest.mark.parametrize(
    "changed",
    [{"sidecars": 5}, {"sidecars": ["../../etc/hosts.aux.xml"]}, {"pixels": {}}, {"pixels": NO_PIXELS}]
    + [{"seconds": None}, {"sha256": {"scene_classes.tif": 5}}],
    ids=str,
)
def test_a_record_that_is_not_as_we_write_it_counts_as_none(bundle, scene, tmp_path, changed):
    predict_scene(bundle, scene[0], tmp_path)
    record = tmp_path / "scene_prediction.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **changed}))
    with pytest.raises(OutputError, match="exists already, of another scene, models or settings"):
        predict_scene(bundle, scene[0], tmp_path)
    assert not predict_scene(bundle, scene[0], tmp_path, overwrite=True)["done_before"]


def test_what_is_masked_is_said_and_recorded(bundle, tmp_path, monkeypatch):
    values = made_up(nodata=False)[0]
    (tmp_path / "product").mkdir()
    write_raster(tmp_path / "product" / "all.tif", values, bands=BANDS)
    bits = np.zeros((1, 96, 80), np.uint8)
    bits[:, 10:50, 20:60] = 2
    bits[:, :5] = 1
    write_raster(tmp_path / "product" / "flags.tif", bits)
    flag = Flag("flags.tif", {"fill": (1, (1,)), "clouds": (2, (2,))})
    product = Product({b: Part("all.tif", k) for k, b in enumerate(BANDS, 1)}, (flag,))
    monkeypatch.setitem(opening.READERS, "own", lambda folder: product)
    monkeypatch.setattr("glacier_fastai.predict.source.ROWS", 64)
    with pytest.warns(DataNote, match=r"product: 22\.0% of it is masked \(clouds 22\.0%\); the models would call "):
        made = predict_scene(bundle, tmp_path / "product", tmp_path / "maps", Wanted(window=64))
    assert made["masked"]["share"] == round(1600 / (91 * 80), 4) and made["masked"]["pixels"] == {"clouds": 1600}
    plain = predict_scene(bundle, tmp_path / "product", tmp_path / "kept", Wanted(window=64), keep=["clouds"])
    assert plain["masked"] == {"share": 0.0, "pixels": {}}
    with rasterio.open(made["files"]["classes"]) as file, rasterio.open(plain["files"]["classes"]) as kept:
        np.testing.assert_array_equal(file.read() == 255, bits > 0)
        np.testing.assert_array_equal(kept.read() == 255, bits == 1)
        ice = np.isin(kept.read(1), (1, 2))[bits[0] == 2].mean()
    assert made["masked"]["looked_at"] == 1600 and abs(made["masked"]["ice"] - ice) < 0.1
    with pytest.raises(OutputError, match="exists already, of another scene, models or settings"):
        predict_scene(bundle, tmp_path / "product", tmp_path / "maps", Wanted(window=64), mask_buffer=30.0)


def test_a_model_that_takes_terrain_asks_for_it(scene, tmp_path):
    bands = ("red", "elevation", "slope")
    weights = build_model("unet", bands, encoder=TINY).state_dict()
    model = ModelBundle(weights, "unet", {"encoder": TINY}, bands, (5e3, 4000.0, 10.0), (2e3, 200.0, 10.0))
    model = replace(model, profile=Profile(units={"red": "dn", "elevation": "metre", "slope": "degree"}))
    with pytest.raises(
        BundleError, match=r"needs band elevation, slope; here are .*an elevation model gives it \(dem\)"
    ):
        predict_scene(model, scene[0], tmp_path / "maps")
    heights = (4000 + 3 * np.arange(110)[:, None] + np.zeros((1, 1, 100))).astype(np.float32)
    heights[0, 40, 40] = -9999
    place = Affine(30, 0, 500_000 - 210, 0, -30, 3_100_000 + 210)
    dem = write_raster(tmp_path / "dem.tif", heights, nodata=-9999, transform=place)
    with rasterio.open(mapped(model, scene[0], tmp_path / "maps", dem=dem, force=True)) as file:
        classes = file.read(1)
    assert classes[33, 33] == 255 and ((classes == 255) == ~made_up()[2]).mean() > 0.99
