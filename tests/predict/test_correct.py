import json

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from affine import Affine
from glacier_maps import write_map
from polygons import CRS, GRID, outlines, rectangle
from rasterio.features import shapes
from scenes import BANDS, make_store, write_raster

from glacier_fastai.bands import CLASSES
from glacier_fastai.data.sources.scene import prepare_scenes
from glacier_fastai.data.tiles import TileWriter
from glacier_fastai.errors import DataError, DataNote
from glacier_fastai.files import file_hash
from glacier_fastai.predict.correct import RIM, correct
from glacier_fastai.predict.outlines import Outlines
from glacier_fastai.predict.sink import Strip
from glacier_fastai.predict.source import Grid
from glacier_fastai.recipe import load_recipe
from glacier_fastai.train.run import train

SHAPE = (64, 96)
RECORD = {"scene": "s.tif", "wanted": {"simplify": 0.0}}


def ground():
    classes = np.zeros(SHAPE, np.uint8)
    classes[4:20, 4:40] = 1
    classes[14:20, 4:40] = 2
    classes[40:60, 50:80] = 1
    classes[46:50, 60:70] = 0  # a rock
    classes[30:34, 10:14] = 3
    return classes


def polygons(classes, grid=GRID):
    found = [(shapely.geometry.shape(p), CLASSES[int(k)]) for p, k in shapes(classes, classes > 0, transform=grid)]
    return geopandas.GeoDataFrame({"class": [k for _, k in found]}, geometry=[p for p, _ in found], crs=CRS)


@pytest.fixture
def scene(tmp_path):
    values = np.random.default_rng(0).integers(100, 5000, (5, *SHAPE)).astype(np.uint16)
    values[:, :2, :3] = 0
    return write_raster(tmp_path / "s.tif", values, nodata=0, bands=BANDS)


@pytest.fixture
def maps(tmp_path):
    """The folder of a map, with its outlines."""
    write_map(tmp_path / "maps", ground(), record=RECORD)
    path = tmp_path / "maps" / "s_outlines.gpkg"
    with Outlines(path, Grid(path, CRS, GRID, *SHAPE)) as made:
        made.write(Strip(0, ground(), np.full((4, *SHAPE), 0.25, np.float32)))
    return path.parent


def edit(maps, change, name="s_outlines.gpkg"):
    """Save the outlines of the map as a person left them; `change` takes and returns the table."""
    table = change(geopandas.read_file(maps / "s_outlines.gpkg", layer="classes"))
    table.to_file(maps / name, layer="classes")
    return maps / name


def draw(table, *drawn):
    rows = geopandas.GeoDataFrame({"class": [k for k, _ in drawn]}, geometry=[p for _, p in drawn], crs=table.crs)
    return pd.concat([table, rows], ignore_index=True)


def labels(store):
    """Put the tiles of one scene together."""
    out = np.full(SHAPE, 255, np.uint8)
    for i, tile in enumerate(store.table.itertuples()):
        out[tile.row : tile.row + store.size, tile.col : tile.col + store.size] = store.labels(i)
    return out


def around(mask, by=RIM):
    """Pixels within `by` steps along rows and columns."""
    row, col = np.nonzero(mask)
    rows, cols = np.indices(mask.shape)
    near = abs(rows[..., None] - row) + abs(cols[..., None] - col)
    return near.min(-1) <= by


def wanted(truth, looked):
    out = np.where(looked, truth, 255).astype(np.uint8)
    out[:2, :3] = 255  # without data
    return out


def corrected(scene, edited, out, **kwargs):
    return labels(correct(scene, edited, out, tile_size=32, **kwargs))


def test_what_was_changed_is_labelled_with_a_rim(scene, maps, tmp_path):
    def change(table):
        table = table.drop(index=table.index[table["class"] == "lake"])  # erased
        table.loc[table["class"] == "debris", "class"] = "glacier"
        return draw(table, ("glacier", rectangle(30, 80, 10, 10)), ("background", rectangle(50, 50, 10, 8)))

    truth = ground()
    truth[truth == 3] = 0
    truth[truth == 2] = 1
    truth[30:40, 80:90] = 1
    truth[50:60, 50:58] = 0
    differs = truth != ground()
    store = correct(scene, edit(maps, change), tmp_path / "c", tile_size=32)
    np.testing.assert_array_equal(labels(store), wanted(truth, around(differs)))
    pixels = {"added to ice": 100, "erased from ice": 80, "of another class": 16 + 6 * 36}
    assert store.info["made_by"]["pixels"] == {**pixels, "looked at": int(around(differs).sum())}
    assert store.info["made_by"]["maps"] == [str(maps / "s_classes.tif")]


def test_where_the_map_has_no_data_nobody_looked(scene, maps, tmp_path):
    seen = ground()
    seen[:, 81:] = 255  # as under clouds
    write_map(tmp_path / "maps", seen, record=RECORD)
    found = corrected(scene, edit(maps, lambda t: draw(t, ("glacier", rectangle(30, 78, 10, 3)))), tmp_path / "c")
    assert (found[:, 81:] == 255).all() and (found[30:40, 78:81] == 1).all()


def test_what_is_drawn_lies_over_what_was_there(scene, maps, tmp_path):
    """Clean ice over debris, and debris over clean ice; what differs from the map counts."""
    drawn = ("glacier", rectangle(15, 10, 3, 10)), ("debris", rectangle(5, 10, 3, 10))
    found = corrected(scene, edit(maps, lambda t: draw(t, *drawn)), tmp_path / "c")
    truth = ground()
    truth[15:18, 10:20], truth[5:8, 10:20] = 1, 2
    np.testing.assert_array_equal(found, wanted(truth, around(truth != ground())))


def test_ground_that_was_checked_is_labelled_whole(scene, maps, tmp_path):
    area = outlines(tmp_path / "area.gpkg", [rectangle(2, 30, 30, 40)])
    edited = edit(maps, lambda t: draw(t, ("lake", rectangle(52, 4, 4, 4))))
    looked, truth = np.zeros(SHAPE, bool), ground()
    looked[2:32, 30:70] = True
    truth[52:56, 4:8] = 3
    found = corrected(scene, edited, tmp_path / "c", checked=area)
    np.testing.assert_array_equal(found, wanted(truth, looked | around(truth != ground())))
    geopandas.read_file(area).to_file(edited, layer="checked")  # a layer beside the outlines does as well
    np.testing.assert_array_equal(corrected(scene, edited, tmp_path / "b", checked=edited), found)
    # without the map, what was edited elsewhere is not known
    (maps / "s_classes.tif").unlink()
    with pytest.warns(DataNote, match="no map lies beside it, so what was changed outside"):
        found = corrected(scene, edited, tmp_path / "d", checked=area)
    np.testing.assert_array_equal(found, wanted(truth, looked))


def test_of_places_those_that_are_ticked_were_looked_at(scene, maps, tmp_path):
    boxes = [rectangle(0, 32, 16, 16), rectangle(40, 48, 16, 16), rectangle(40, 10, 16, 16)]
    looked = np.zeros(SHAPE, bool)
    looked[40:56, 48:64] = True
    for k, ticks in enumerate(([False, True, None], [0, 1, 0], ["false", "True", ""])):
        places = outlines(tmp_path / f"p{k}.gpkg", boxes, rank=[1, 2, 3], checked=pd.Series(ticks, dtype=object))
        found = corrected(scene, maps / "s_outlines.gpkg", tmp_path / f"c{k}", checked=places)
        np.testing.assert_array_equal(found, wanted(ground(), looked))


@pytest.mark.parametrize("name", ["e.geojson", "e.shp", "e.fgb"])
def test_other_formats_and_coordinate_systems_give_the_same(scene, maps, tmp_path, name):
    edited = edit(maps, lambda t: draw(t[t["class"] != "lake"], ("debris", rectangle(52, 4, 4, 4))))
    moved = geopandas.read_file(edited, layer="classes").to_crs("EPSG:4326")
    moved.to_file(tmp_path / name)
    one = corrected(scene, edited, tmp_path / "a")
    other = corrected(scene, tmp_path / name, tmp_path / "b", mapped=maps / "s_classes.tif")
    np.testing.assert_array_equal(one, other)


def test_simplified_outlines_that_nobody_edited_differ_nowhere(scene, tmp_path):
    rng = np.random.default_rng(0)
    classes = rng.choice([0, 1, 2, 3], (16, 24), p=[0.5, 0.3, 0.15, 0.05]).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    write_map(tmp_path / "maps", classes, record={**RECORD, "wanted": {"simplify": 1.5}})
    path = tmp_path / "maps" / "s_outlines.gpkg"
    with Outlines(path, Grid(path, CRS, GRID, *SHAPE), simplify=1.5) as made:
        made.write(Strip(0, classes, np.full((4, *SHAPE), 0.25, np.float32)))
    with pytest.raises(DataError, match="nothing was corrected"):
        correct(scene, path, tmp_path / "c", tile_size=32)
    found = corrected(scene, edit(path.parent, lambda t: draw(t, ("lake", rectangle(20, 20, 9, 9)))), tmp_path / "d")
    assert (found != 255).sum() <= around(np.pad(np.ones((9, 9), bool), ((20, 35), (20, 67)))).sum()


def test_the_map_of_another_grid_is_brought_to_the_scene(scene, maps, tmp_path):
    wide = np.pad(ground(), 8)
    write_map(tmp_path / "maps", wide, grid=GRID * Affine.translation(-8, -8), record=RECORD)
    edited = edit(maps, lambda t: draw(t, ("lake", rectangle(52, 4, 4, 4))))
    truth = ground()
    truth[52:56, 4:8] = 3
    with pytest.warns(DataNote, match=r"s_classes\.tif: .*brought to its grid"):
        found = corrected(scene, edited, tmp_path / "c")
    np.testing.assert_array_equal(found, wanted(truth, around(truth != ground())))


def test_a_map_of_another_scene_is_said(scene, maps, tmp_path):
    (maps / "s_prediction.json").write_text(json.dumps({**RECORD, "scene": "other.tif"}))
    edited = edit(maps, lambda t: draw(t, ("lake", rectangle(52, 4, 4, 4))))
    with pytest.warns(DataNote, match=r"a map of other\.tif, not of s"):
        correct(scene, edited, tmp_path / "c", tile_size=32)
    (maps / "s_prediction.json").write_text(json.dumps({"scene": "all", "scenes": [{"scene": "s.tif"}]}))
    correct(scene, edited, tmp_path / "d", tile_size=32)  # a note would be an error


def test_a_map_that_was_changed_is_said(scene, maps, tmp_path):
    path = maps / "s_classes.tif"
    record = {**RECORD, "sha256": {path.name: file_hash(path)}}
    (maps / "s_prediction.json").write_text(json.dumps(record))
    edited = edit(maps, lambda t: draw(t, ("lake", rectangle(52, 4, 4, 4))))
    correct(scene, edited, tmp_path / "c", tile_size=32)  # a note would be an error
    with rasterio.open(path, "r+") as file:
        file.write(np.where(file.read() == 2, 1, file.read()))
    with pytest.warns(DataNote, match=r"s_classes\.tif: was changed since it was made; if after its outlines"):
        correct(scene, edited, tmp_path / "d", tile_size=32)
    (maps / "s_prediction.json").write_text(json.dumps(RECORD))
    with rasterio.open(path, "r+") as file:
        file.write(np.where(file.read() == 1, 254, file.read()))
    refused(r"s_classes\.tif: holds 254, which no map of classes does", scene, edited, tmp_path / "e")


def test_a_part_of_the_outlines_erases_the_rest_and_that_is_said(scene, maps, tmp_path):
    with pytest.warns(DataNote, match=r"\d+% of the ice mapped on .* has no polygon any more, and counts as erased"):
        correct(scene, edit(maps, lambda t: t[t["class"] == "lake"]), tmp_path / "c", tile_size=32)


def refused(message, source, edited, out, **kwargs):
    size = {} if source.is_dir() else {"tile_size": 32}
    with pytest.raises(DataError, match=message) as err:
        correct(source, edited, out, **size, **kwargs)
    assert "\n" not in str(err.value)
    assert not out.exists()


def test_what_cannot_be_used_is_one_line(scene, maps, tmp_path):
    out, good = tmp_path / "c", maps / "s_outlines.gpkg"
    far = rectangle(5000, 5000, 10, 10)
    area = outlines(tmp_path / "far.gpkg", [far])
    refused(r"s_outlines\.gpkg: on .*s\.tif it says what the map says, so nothing was corrected", scene, good, out)
    lost = edit(maps, lambda t: t.drop(columns="class"), "lost.gpkg")
    refused(r"lost\.gpkg: no column 'class', so what .* is not known; it has id, area_km2, conf", scene, lost, out)
    typo = edit(maps, lambda t: t.assign(**{"class": "glacer"}), "typo.gpkg")
    refused(r"typo\.gpkg: class holds 'glacer'; .* did you mean 'glacier'", scene, typo, out)
    void = edit(maps, lambda t: draw(t, (None, rectangle(30, 80, 10, 10))), "void.gpkg")
    refused(r"void\.gpkg: class is empty in 1 rows near .*; give each a class", scene, void, out)
    empty = edit(maps, lambda t: t[:0], "empty.gpkg")
    refused(r"empty\.gpkg: holds no polygon; .* draw one of class background", scene, empty, out)
    elsewhere = edit(maps, lambda t: draw(t[:0], ("lake", far)), "elsewhere.gpkg")
    refused(r"elsewhere\.gpkg: no polygon lies on .*s\.tif; was another scene edited", scene, elsewhere, out)
    refused(r"far\.gpkg: no polygon lies on .*s\.tif, so it says of no ground", scene, good, out, checked=area)
    alone = edit(maps, lambda t: draw(t, ("lake", far)), "alone.gpkg")
    (maps / "s_classes.tif").rename(maps / "moved.tif")
    refused(r"alone\.gpkg: its map \(alone_classes\.tif\) does not lie beside it.*name the map, or", scene, alone, out)
    other = write_raster(
        tmp_path / "o_classes.tif", ground()[None], nodata=255, transform=GRID * Affine.translation(900, 0)
    )
    refused(r"o_classes\.tif: the map covers no pixel of .*s\.tif", scene, good, out, mapped=other)
    places = outlines(tmp_path / "p.gpkg", [rectangle(0, 0, 9, 9)], checked=[False])
    refused(r"p\.gpkg: none of its 1 polygons on .*s\.tif is ticked as checked", scene, good, out, checked=places)
    both = outlines(tmp_path / "g.gpkg", [rectangle(0, 0, 9, 9)])
    geopandas.read_file(both).to_file(both, layer="more")
    refused(r"g\.gpkg: has layers g, more; keep one", scene, both, out)


def test_a_store_keeps_its_labels_where_nobody_looked(scene, maps, tmp_path):
    label = np.where(ground() > 0, 254, 0).astype(np.uint8)
    label[:, 60:] = 255
    write_raster(tmp_path / "l.tif", label[None], nodata=255)
    before = prepare_scenes([scene], tmp_path / "tiles", labels=[tmp_path / "l.tif"], tile_size=48)
    edited = edit(maps, lambda t: draw(t[t["class"] != "lake"], ("debris", rectangle(46, 58, 4, 6))))
    truth = ground()
    truth[truth == 3] = 0
    truth[46:50, 58:64] = 2
    looked = around(truth != ground())
    after = correct(before.path, edited, tmp_path / "c")
    want = np.where(looked, truth, label)
    want[:2, :3] = 255
    np.testing.assert_array_equal(labels(after), want)
    np.testing.assert_array_equal(after.images, before.images)
    same = ["id", "scene", "row", "col", "crs", "transform", "group", "split", "n_valid", "crc_image"]
    pd.testing.assert_frame_equal(after.table[same], before.table[same])
    assert (after.bands, after.units, after.info["source"]) == (before.bands, before.units, before.info["source"])
    assert after.info["made_by"]["tiles"] == str(before.path)
    assert after.keys() == before.keys()


def test_a_store_of_several_scenes_is_corrected_where_the_map_is(scene, maps, tmp_path):
    """Other scenes of the store, which the edited outlines do not show, are left as they are."""
    away = GRID * Affine.translation(300, 0)
    values = np.full((5, *SHAPE), 700, np.uint16)
    far = write_raster(tmp_path / "t.tif", values, bands=BANDS, transform=away)
    names = [
        write_raster(tmp_path / f"l{k}.tif", ground()[None], transform=grid) for k, grid in enumerate((GRID, away))
    ]
    before = prepare_scenes([scene, far], tmp_path / "tiles", labels=names, tile_size=32)
    after = correct(before.path, edit(maps, lambda t: t[t["class"] != "lake"]), tmp_path / "c")
    changed = (before.masks != after.masks).any((1, 2))
    assert set(before.table["scene"][changed]) == {"s"}


def test_stores_that_cannot_be_corrected(maps, tmp_path):
    store = make_store(tmp_path / "tiles")
    edited = edit(maps, lambda t: t[t["class"] != "lake"])
    refused(r"tiles: its tiles do not say where they lie", store.path, edited, tmp_path / "c")
    refused(
        r"tiles: a tile store says all of itself; leave out sensor",
        store.path,
        edited,
        tmp_path / "c",
        sensor="landsat8",
    )
    with TileWriter(tmp_path / "odd", BANDS, 32, "uint16", source="made up for tests") as writer:
        place = {"scene": "s", "row": 0, "col": 0, "crs": "http://127.0.0.1/crs", "transform": GRID[:6]}
        writer.add(np.ones((5, 32, 32), np.uint16), np.zeros((32, 32), np.uint8), **place)
    refused(r"odd: the coordinate reference system of s cannot be used", tmp_path / "odd", edited, tmp_path / "c")


def test_a_store_that_the_edits_do_not_touch(scene, maps, tmp_path):
    write_raster(tmp_path / "l.tif", ground()[None])
    store = prepare_scenes([scene], tmp_path / "tiles", labels=[tmp_path / "l.tif"], tile_size=32, min_ice=0.25)
    assert len(store) == 3
    edited = edit(maps, lambda t: draw(t, ("lake", rectangle(8, 74, 4, 4))))
    refused(r"s_outlines\.gpkg: what was corrected lies on no tile of .*tiles", store.path, edited, tmp_path / "c")


def test_a_correction_is_trained_on(scene, maps, tmp_path):
    area = outlines(tmp_path / "area.gpkg", [rectangle(0, 0, 40, 60)])
    edited = edit(maps, lambda t: t[t["class"] != "lake"])
    store = correct(scene, edited, tmp_path / "c", checked=area, tile_size=32)
    recipe = load_recipe("forest", ["data.tile_size=32", "data.crop=32", "model.options={trees: 3}"])
    train(recipe, store, tmp_path / "run", fold=None)
    assert (tmp_path / "run" / "best.safetensors").is_file()
