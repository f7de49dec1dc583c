import json
import shutil
import warnings

import numpy as np
import pytest
import rasterio
from folders import competition_folder, write_one
from hypothesis import given
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.transform import from_origin
from scenes import BANDS, CRS

from glacier_fastai.bands import COMPETITION_CODES
from glacier_fastai.core.folds import touching
from glacier_fastai.data.sources.competition import competition_files, find_competition, prepare_competition, tile_id
from glacier_fastai.errors import DataError, DataNote, OutputError

CODES = np.array(COMPETITION_CODES, np.uint8)


def check(store, made, labelled=True):
    """Compare a whole store with the arrays that its folder was made from."""
    assert store.table["id"].tolist() == sorted(made.tiles)
    for i, name in enumerate(store.table["id"]):
        tile = made.tiles[name]
        np.testing.assert_array_equal(store.read(i), np.where(tile.valid, tile.values, np.nan))
        np.testing.assert_array_equal(store.masks[i], np.where(tile.valid & labelled, tile.classes, 255))


def both(tmp_path, made):
    store = prepare_competition(made.root, tmp_path / "store")
    check(store, made)
    return store


def refuse(tmp_path, message, path, error=DataError, **kwargs):
    with pytest.raises(error, match=message) as err:
        prepare_competition(path, tmp_path / "store", **kwargs)
    assert "\n" not in str(err.value)
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / ".store.partial").exists()


@pytest.fixture
def made(tmp_path):
    return competition_folder(tmp_path / "c")


# ids


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("B2_B2_masked_02_07.tif", "02_07"),
        ("B10_B10_masked_02_07.TIF", "02_07"),
        ("Y_output_resized_02_07.tif", "02_07"),
        ("Y02_07.tif", "02_07"),
        ("img001.tif", "001"),
        ("IMG001.tif", "001"),
        ("img001_02_07.tif", "001"),
        ("B10_20_02_07.tif", "02_07"),  # 20_02 and 02_07 share digits
        ("2025_02_07.tif", "02_07"),
        ("11_12/img003.tif", "003"),
    ],
)
def test_the_tile_id_of_the_names_that_occur(name, want):
    assert tile_id(name) == want


@given(st.text("BYm019_.-", max_size=12), st.sampled_from("_Y"), st.integers(0, 99), st.integers(0, 99))
def test_a_grid_id_is_found_behind_any_prefix(prefix, before, row, col):
    assert tile_id(f"{prefix}{before}{row:02}_{col:02}.tif") == f"{row:02}_{col:02}"


@given(st.text("imgB_-. ", max_size=12), st.from_regex(r"[0-9]{1,6}", fullmatch=True), st.sampled_from(["tif", "TIFF"]))
def test_an_img_id_is_kept_as_spelled(prefix, digits, suffix):
    assert tile_id(f"x{prefix}img{digits}.{suffix}") == digits


@pytest.mark.parametrize(
    "name", ["a.tif", "img.tif", "002_07.tif", "02_007.tif", "2_7.tif", "٠٢_٠٧.tif", "img٠١.tif", "02_07/x.tif"]
)
def test_a_name_without_tile_id_is_refused(name):
    with pytest.raises(DataError, match="no tile id in its name; name it like img001.tif"):
        tile_id(name)


# the folder


@pytest.mark.parametrize("child", [None, "Train", "train", "Training", "TRAIN", "GlacierHack phase 2"])
def test_the_folder_is_found(tmp_path, child):
    root = tmp_path / child if child else tmp_path
    (root / "BAND1").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden" / "Band1").mkdir(parents=True)
    assert find_competition(str(tmp_path)) == root


@pytest.mark.parametrize("train", ["train", "Training"])
def test_train_comes_before_other_folders_and_nothing_is_guessed(tmp_path, train):
    for name in ("A", "Test"):
        (tmp_path / name / "Band1").mkdir(parents=True)
    assert find_competition(tmp_path) is None
    (tmp_path / train / "band1").mkdir(parents=True)
    assert find_competition(tmp_path) == tmp_path / train
    assert find_competition(tmp_path / "A") == tmp_path / "A"
    assert find_competition(tmp_path / "A" / "Band1") is None
    assert find_competition(tmp_path / "absent") is None
    (tmp_path / "file").write_text("Band1")
    assert find_competition(tmp_path / "file") is None


def litter(made):
    for folder in {f.parent for files in (*made.bands, made.labels) for f in files.values()}:
        for name in ("._img001.tif", ".DS_Store", "Thumbs.db", "img001.tif.aux.xml", "notes.txt", "img001.tfw"):
            (folder / name).write_bytes(b"\0")
        (folder / "old_02_07.tif").mkdir()


def test_the_files_a_store_depends_on(made):
    litter(made)
    want = [f for files in (*made.bands, made.labels) for f in files.values()]
    assert competition_files(made.root.parent) == competition_files(made.root) == sorted(want)
    shutil.rmtree(made.root / "Band3")
    assert competition_files(made.root) == sorted(f for f in want if f.parent.name != "Band3")
    with pytest.raises(DataError, match="no folder Band1 in it"):
        competition_files(made.root / "Band2")


# stores


def test_phase_1(tmp_path, made):
    store = both(tmp_path, made)
    assert store.bands == BANDS
    assert store.images.dtype == np.uint16
    assert (store.info["source"], store.info["sensor"], store.info["nodata"]) == ("competition", "landsat8", 0)
    assert store.info["made_by"]["folder"] == str(made.root)
    assert set(store.masks.ravel()) == {0, 1, 2, 3, 255}


def test_both_layouts_give_the_same_pixels(tmp_path):
    ids = ("001", "002", "003"), ("02_07", "02_08", "10_01")
    a, b = (competition_folder(tmp_path / p, p, ids=i) for p, i in zip(("phase2", "phase1"), ids, strict=True))
    a, b = prepare_competition(a.root, tmp_path / "a"), prepare_competition(b.root, tmp_path / "b")
    assert a.images.tobytes() == b.images.tobytes()
    assert a.masks.tobytes() == b.masks.tobytes()
    place = ["id", "scene", "row", "col"]
    assert a.table.drop(columns=place).equals(b.table.drop(columns=place))


@pytest.mark.parametrize("folder", ["label", "labels", "Label", "LABELS"])
@pytest.mark.parametrize("name", ["Y{}", "Y_output_resized_{}"])
def test_every_spelling_of_the_labels(tmp_path, folder, name):
    both(tmp_path, competition_folder(tmp_path / "c", label_folder=folder, label_name=name))


def test_folder_names_in_any_case_and_other_files_among_the_tiles(tmp_path, made):
    litter(made)
    made.bands[3]["02_07"].rename(made.root / "Band4" / "x_02_07.TIFF")
    (made.root / "Band2").rename(made.root / "BAND2")
    (made.root / "Band5").rename(made.root / "band5")
    both(tmp_path, made)


def test_files_are_matched_by_id_where_the_folders_sort_differently(tmp_path, made):
    for b, files in enumerate((*made.bands, made.labels)):
        for k, file in enumerate(sorted(files.values())):
            file.rename(file.with_name(f"{'cab'[(k * (2 - b % 2) + b) % 3]}_{file.name}"))
    orders = {tuple(map(tile_id, sorted(f.iterdir()))) for f in made.root.iterdir()}
    assert len(orders) > 3
    both(tmp_path, made)


def test_without_labels_every_mask_is_ignored(tmp_path):
    made = competition_folder(tmp_path / "c", "phase2", labels=False)
    with pytest.warns(DataNote, match="no pixel has a label, so it is for prediction only"):
        store = prepare_competition(made.root, tmp_path / "store")
    check(store, made, labelled=False)
    assert (store.masks == 255).all()
    assert store.table["n_valid"].tolist() == [made.tiles[t].valid.sum() for t in sorted(made.tiles)]


@pytest.mark.parametrize("nodata", [0, 255])
def test_a_label_has_no_nodata_whatever_it_declares(tmp_path, made, nodata):
    for tile, path in made.labels.items():
        write_one(path, CODES[made.tiles[tile].classes], nodata=nodata)
    assert (both(tmp_path, made).class_counts() > 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])  # float32 as delivered
@pytest.mark.parametrize("nodata", [None, 0])
def test_labels_of_0_and_255_in_all_of_the_folder_are_ice_of_unknown_kind(tmp_path, made, dtype, nodata):
    for tile, path in made.labels.items():
        ice = np.isin(made.tiles[tile].classes, (1, 2)) & (tile != "02_08")  # a tile may hold none
        write_one(path, np.where(ice, 255, 0).astype(dtype), nodata=nodata)
    with pytest.warns(DataNote, match="hold only 0 and 255, as in phase 1, so 255 is read as ice of unknown kind"):
        store = prepare_competition(made.root, tmp_path / "store")
    assert [n.startswith(f"{made.root}: labels hold only") for n in store.info["notes"]] == [True, False]
    for i, name in enumerate(store.table["id"]):
        tile = made.tiles[name]
        want = np.where(np.isin(tile.classes, (1, 2)) & (name != "02_08"), 254, 0)
        np.testing.assert_array_equal(store.masks[i], np.where(tile.valid, want, 255))


@pytest.mark.parametrize("code", [85, 170])
def test_one_tile_with_other_codes_makes_a_folder_one_of_phase_2(tmp_path, made, code):
    for tile, path in made.labels.items():
        codes = np.where(made.tiles[tile].classes == 3, 255, 0).astype(np.uint8)
        codes[-1] = code if tile == "10_01" else 0
        write_one(path, codes)
    store = prepare_competition(made.root, tmp_path / "store")
    assert store.class_counts()[:, 3].all()
    assert not store.ice_counts().any()
    assert not [n for n in store.info["notes"] if "phase 1" in n]


def test_a_folder_of_background_only_is_of_neither_phase(tmp_path, made):
    for path in made.labels.values():
        write_one(path, np.zeros((32, 32), np.uint8))
    with pytest.warns(DataNote, match="labels hold one class only, background"):
        store = prepare_competition(made.root, tmp_path / "store")
    assert len(store.info["notes"]) == 1


def test_all_labels_are_looked_at_before_a_tile_is_written(tmp_path, made, monkeypatch):
    write_one(made.labels["10_01"], np.full((32, 32), 7, np.uint8))
    monkeypatch.setattr("glacier_fastai.data.tiles.TileWriter.add", lambda *_, **__: pytest.fail("written"))
    refuse(tmp_path, r"10_01\.tif: unknown codes 7; allowed are 0 background, 85 glacier", made.root)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16", "int32"])
def test_labels_of_any_type_with_whole_values(tmp_path, made, dtype):
    for tile, path in made.labels.items():
        write_one(path, CODES[made.tiles[tile].classes].astype(dtype))
    both(tmp_path, made)


@pytest.mark.parametrize(("dtype", "kept"), [("uint8", "uint8"), ("int16", "float32"), ("float64", "float32")])
def test_values_are_kept_as_delivered_where_a_store_can(tmp_path, dtype, kept):
    made = competition_folder(tmp_path / "c")
    for tile, t in made.tiles.items():
        made.tiles[tile] = t._replace(values=np.where(t.valid, t.values % 97 + 1, 0).astype(dtype))
        for b, files in enumerate(made.bands):
            write_one(files[tile], made.tiles[tile].values[b])
    assert both(tmp_path, made).images.dtype == kept


def test_in_floats_too_all_bands_zero_and_nan_are_nodata(tmp_path):
    made = competition_folder(tmp_path / "c", dtype="float32")
    tile = made.tiles["02_08"]
    tile.values[1, 0, 1] = 0  # one band of 0 is data
    for value, pixel in ((np.nan, (2, 3)), (np.inf, (4, 5))):
        assert tile.valid[pixel]
        tile.values[3, *pixel] = value  # one such band is not
        tile.valid[pixel] = False
    for b, files in enumerate(made.bands):
        write_one(files["02_08"], tile.values[b])
    store = both(tmp_path, made)
    assert store.info["nodata"] == "nan"
    np.testing.assert_array_equal(np.isnan(store.images[1]).all(0), ~tile.valid)


def test_mixed_types_become_what_holds_all(tmp_path, made):
    tile = made.tiles["10_01"]
    values = tile.values.astype(np.float32)
    values[4][tile.valid] += 0.5
    made.tiles["10_01"] = tile._replace(values=values)
    write_one(made.bands[4]["10_01"], values[4])
    assert both(tmp_path, made).images.dtype == np.float32


@pytest.mark.parametrize(("dtype", "nodata"), [("uint16", 65535), ("float32", np.nan), ("float64", -1.79e308)])
def test_what_stands_under_nodata_does_not_matter(tmp_path, dtype, nodata):
    clean, dirty = (competition_folder(tmp_path / name, "phase2", dtype=dtype) for name in "ab")
    for name, tile in dirty.tiles.items():
        # in one band the declared value, in the others anything
        for b, files in enumerate(dirty.bands):
            band = np.where(tile.valid, tile.values[b], nodata if b == 2 else 17).astype(dtype)
            write_one(files[name], band, nodata=nodata if b == 2 else None)
    a, b = both(tmp_path / "a", clean), both(tmp_path / "b", dirty)
    assert a.images.tobytes() == b.images.tobytes()
    assert (a.path / "tiles.csv").read_text() == (b.path / "tiles.csv").read_text()


def test_a_tile_of_nodata_alone_is_kept(tmp_path, made):
    for files in made.bands:
        write_one(files["02_07"], np.zeros((32, 32), np.uint16))
    store = prepare_competition(made.root, tmp_path / "store")
    assert len(store) == 3
    assert (store.masks[0] == 255).all()
    assert store.table["n_valid"][0] == 0


def test_some_bands_with_nodata_judged_on_all(tmp_path):
    made = competition_folder(tmp_path / "c", dtype="float32")
    tile = made.tiles["02_07"]
    tile.values[[0, 3], 0, 1] = 0  # data in the bands that are left out
    tile.values[1, 0, 2:4] = np.nan, np.inf  # so is this nodata
    tile.valid[0, 2:4] = False
    for b, files in enumerate(made.bands):
        write_one(files["02_07"], tile.values[b])
    store = prepare_competition(made.root, tmp_path / "store", bands=["SWIR1", "blue"])
    assert store.bands == ("blue", "swir1")
    np.testing.assert_array_equal(store.read(0), np.where(tile.valid, tile.values[[0, 3]], np.nan))
    np.testing.assert_array_equal(store.masks[0] == 255, ~tile.valid)


def test_integers_cannot_tell_data_of_0_in_every_kept_band_from_nodata(tmp_path, made):
    tile = made.tiles["02_07"]
    assert tile.valid[0, 1]
    tile.values[:4, 0, 1] = 0
    for b, files in enumerate(made.bands):
        write_one(files["02_07"], tile.values[b])
    assert prepare_competition(made.root, tmp_path / "all").masks[0][0, 1] == tile.classes[0, 1]
    assert prepare_competition(made.root, tmp_path / "four", bands=BANDS[:4]).masks[0][0, 1] == 255


# place


def test_grid_ids_touch_on_their_grid(tmp_path, made):
    table = both(tmp_path, made).table.set_index("id")
    assert set(table["scene"]) == {"grid"}
    assert table[["row", "col"]].to_dict("index") == {
        "02_07": {"row": 64, "col": 224},
        "02_08": {"row": 64, "col": 256},
        "10_01": {"row": 320, "col": 32},
    }
    assert set(table["crs"]) == set(table["transform"]) == {""}


def test_a_crs_alone_is_no_place(tmp_path, made):
    for b, files in enumerate(made.bands):
        for tile, file in files.items():
            write_one(file, made.tiles[tile].values[b], crs=CRS, transform=Affine.identity())
    table = both(tmp_path, made).table
    assert set(table["scene"]) == {"grid"}
    assert set(table["crs"]) == {""}


def test_img_ids_without_georeference_lie_nowhere(tmp_path):
    table = both(tmp_path, competition_folder(tmp_path / "c", "phase2")).table
    assert table["scene"].tolist() == table["id"].tolist() == ["001", "002", "007"]
    assert not table[["row", "col"]].any(axis=None)
    assert set(table["crs"]) == set(table["transform"]) == {""}


@pytest.mark.parametrize("layout", ["phase1", "phase2"])
def test_a_georeference_is_kept(tmp_path, layout):
    made = competition_folder(tmp_path / "c", layout, georeferenced=True)
    table = both(tmp_path, made).table.set_index("id")
    assert table["scene"].tolist() == table.index.tolist()
    assert set(table["crs"]) == {CRS}
    for k, tile in enumerate(made.tiles):
        want = (30, 0, 500_000 + 960 * k, 0, -30, 3_100_000)
        assert tuple(map(float, table["transform"][tile].split())) == want


def test_bands_with_and_without_georeference_or_rounded_agree(tmp_path):
    made = competition_folder(tmp_path / "c", "phase2", ids=["1"], georeferenced=True)
    values = made.tiles["1"].values
    write_one(made.bands[0]["1"], values[0])
    write_one(made.bands[1]["1"], values[1], crs=None, transform=from_origin(9, 9, 30, 30))  # nowhere in particular
    write_one(made.bands[3]["1"], values[3], crs=CRS, transform=from_origin(500_000.001, 3_100_000, 30.0001, 30))
    assert both(tmp_path, made).table["transform"].tolist() == ["30.0 0.0 500000.0 0.0 -30.0 3100000.0"]


@pytest.mark.parametrize(
    ("crs", "place"),
    [
        (CRS, (500_015, 3_100_000, 30, 30)),
        (CRS, (500_000, 3_100_000, 30, 30.1)),
        ("EPSG:32644", (500_000, 3_100_000, 30, 30)),
    ],
)
def test_bands_of_one_tile_must_lie_in_one_place(tmp_path, crs, place):
    made = competition_folder(tmp_path / "c", ids=["02_08"], georeferenced=True)
    write_one(made.bands[3]["02_08"], made.tiles["02_08"].values[3], crs=crs, transform=from_origin(*place))
    message = r"B6_B6_masked_02_08\.tif: does not lie where .*B2_B2_masked_02_08\.tif lies"
    refuse(tmp_path, message, made.root)


@pytest.mark.parametrize(
    "place",
    [from_origin(500_015, 3_100_000, 30, 30), Affine(30, 0, 500_000, 0, 30, 3_100_000 - 32 * 30)],  # or south-up
)
def test_a_label_must_lie_where_its_bands_lie(tmp_path, place):
    made = competition_folder(tmp_path / "c", ids=["02_08"], georeferenced=True)
    write_one(made.labels["02_08"], CODES[made.tiles["02_08"].classes], crs=CRS, transform=place)
    refuse(tmp_path, r"Y_output_resized_02_08\.tif: does not lie where .*B2_B2_masked_02_08\.tif lies", made.root)


@pytest.mark.parametrize("crs", [None, "EPSG:32645+5773"])
def test_a_label_without_a_place_or_with_heights_in_its_crs_lies_there(tmp_path, crs):
    made = competition_folder(tmp_path / "c", ids=["02_08"], georeferenced=True)
    corner = from_origin(500_000, 3_100_000, 30, 30) if crs else None
    write_one(made.labels["02_08"], CODES[made.tiles["02_08"].classes], crs=crs, transform=corner)
    assert set(both(tmp_path, made).table["crs"]) == {CRS}


def test_in_degrees_half_a_pixel_is_not_the_same_place(tmp_path):
    made = competition_folder(tmp_path / "c", "phase2", ids=["1"])
    for b, files in enumerate(made.bands):
        corner = from_origin(86 + (b == 4) * 1.5e-4, 28, 3e-4, 3e-4)
        write_one(files["1"], made.tiles["1"].values[b], crs="EPSG:4326", transform=corner)
    refuse(tmp_path, r"Band5/img1\.tif: does not lie where", made.root)


# refusals


def test_folders_that_are_none(tmp_path):
    refuse(tmp_path, "absent: no such folder; give the folder that holds Band1", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path, "empty: no folder Band1 in it; give the folder", tmp_path / "empty")
    for b in range(1, 6):
        (tmp_path / "empty" / f"Band{b}").mkdir()
    refuse(tmp_path, r"empty/Band1: no \.tif in it", tmp_path / "empty")


def test_missing_or_doubled_folders(tmp_path, made):
    made.labels["02_07"].parent.rename(made.root / "labels")
    (made.root / "label").mkdir()
    refuse(tmp_path, "Train: holds both label and labels; keep one", made.root)
    shutil.rmtree(made.root / "labels")
    refuse(tmp_path, r"label: no \.tif in it, .* or remove the folder", made.root)
    (made.root / "label").rmdir()
    shutil.rmtree(made.root / "Band3")
    refuse(tmp_path, "Train: no folder Band3; give", made.root)


def test_missing_doubled_and_nameless_tiles(tmp_path, made):
    kept = made.bands[3]["02_08"].read_bytes()
    made.bands[3]["02_08"].unlink()
    refuse(tmp_path, r"Band4: no file of tile 02_08 \(.*B2_B2_masked_02_08\.tif\); add it", made.root)
    made.bands[3]["02_08"].write_bytes(kept)

    made.bands[0]["02_08"].rename(tmp_path / "away.tif")
    refuse(tmp_path, r"Band1: no file of tile 02_08 \(.*Band2", made.root)
    (tmp_path / "away.tif").rename(made.bands[0]["02_08"])

    twin = made.labels["02_07"].with_name("Y02_07.tif")
    twin.write_bytes(made.labels["02_07"].read_bytes())
    refuse(tmp_path, r"Y_output_resized_02_07\.tif: tile 02_07 is also in Y02_07\.tif; keep one", made.root)
    made.labels["02_07"].unlink()
    twin.rename(twin.with_name("Y03_01.tif"))
    refuse(tmp_path, r"label: no file of tile 02_07 \(", made.root)
    (made.root / "label" / "Y02_07.tif").write_bytes(made.labels["02_08"].read_bytes())
    refuse(tmp_path, r"Y03_01\.tif: label of tile 03_01, which has no image", made.root)
    (made.root / "label" / "Y03_01.tif").unlink()

    write_one(made.root / "Band2" / "mean.tif", made.tiles["02_07"].values[0])
    refuse(tmp_path, r"Band2/mean\.tif: no tile id in its name", made.root)


def test_bad_shapes(tmp_path):
    made = competition_folder(tmp_path / "c")
    path, values = made.bands[2]["02_08"], made.tiles["02_08"].values[2]
    write_one(path, values[:30])
    refuse(tmp_path, r"B4_B4_masked_02_08\.tif: 30 x 32 px, but the others have 32 x 32", made.root)
    write_one(path, np.stack([values] * 2))
    refuse(tmp_path, r"B4_B4_masked_02_08\.tif: 2 bands, wanted one", made.root)
    write_one(path, values)
    write_one(made.labels["10_01"], np.zeros((64, 64), np.uint8))
    refuse(tmp_path, r"resized_10_01\.tif: 64 x 64 px, but the others have 32 x 32", made.root)
    write_one(made.labels["10_01"], np.zeros((32, 32), np.uint8))
    for files in made.bands:  # the first tile is the odd one here
        write_one(files["02_07"], np.ones((16, 16), np.uint16))
    refuse(tmp_path, r"B2_B2_masked_02_07\.tif: 16 x 16 px, but the others have 32 x 32", made.root)
    for files in (*made.bands, made.labels):
        for file in files.values():
            write_one(file, np.zeros((32, 24), np.uint16))
    refuse(tmp_path, r"B2_B2_masked_02_07\.tif: 32 x 24 px; tiles must be square", made.root)


def test_bad_labels(tmp_path, made):
    path, label = made.labels["02_08"], CODES[made.tiles["02_08"].classes]
    allowed = "allowed are 0 background, 85 glacier, 170 debris, 255 lake"
    write_one(path, np.where(label == 85, 84, label).astype(np.uint8))
    refuse(tmp_path, rf"resized_02_08\.tif: unknown codes 84; {allowed}", made.root)
    write_one(path, made.tiles["02_08"].classes)
    refuse(tmp_path, r"resized_02_08\.tif: unknown codes 1, 2, 3; allowed", made.root)
    values = label.astype(np.float32)
    values[0, :2] = 84.5, np.inf
    write_one(path, values)
    refuse(tmp_path, r"unknown codes 84\.5, inf; allowed", made.root)
    values[0, :3] = np.nan
    write_one(path, values)
    refuse(tmp_path, rf"resized_02_08\.tif: 3 pixels are NaN; {allowed}", made.root)
    write_one(path, np.stack([label] * 3))
    refuse(tmp_path, r"resized_02_08\.tif: 3 bands, wanted one; take one out \(gdal_translate -b 1\)", made.root)


@pytest.mark.parametrize("where", ["image", "label"])
@pytest.mark.parametrize("damage", ["text", "empty", "cut"])
def test_damaged_files(tmp_path, made, where, damage):
    path = made.labels["10_01"] if where == "label" else made.bands[4]["10_01"]
    data = path.read_bytes()
    # cut by little, so that the header can be read and the store has been begun
    path.write_bytes({"text": b"hello", "empty": b"", "cut": data[:-100]}[damage])
    refuse(tmp_path, rf"{path.name}: not a raster, cut short or damaged \(.*; copy it again", made.root)


def test_bands_that_are_not_there(tmp_path, made):
    there = "it holds blue, green, red, swir1, thermal"
    refuse(tmp_path, f"Train: no band 'nir'; {there}", made.root, bands=["red", "nir"])
    refuse(tmp_path, f"no band 'swir'; {there}; did you mean 'swir1'", made.root, bands=["swir"])
    refuse(tmp_path, "'red' is named twice", made.root, bands=["red", "Red"])
    refuse(tmp_path, "no bands given", made.root, bands=[])


def test_an_existing_store_is_left_alone(tmp_path, made):
    store = prepare_competition(made.root, tmp_path / "store")
    before = json.loads((store.path / "dataset.json").read_text())
    with pytest.raises(OutputError, match="store: exists already"):
        prepare_competition(made.root, tmp_path / "store")
    assert json.loads((store.path / "dataset.json").read_text()) == before


def test_where_some_tiles_have_no_georeference_the_grid_counts_for_all(tmp_path):
    made = competition_folder(tmp_path / "c", ids=("02_07", "02_08", "02_09"), georeferenced=True)
    for files in [*made.bands, made.labels]:
        with rasterio.open(files["02_08"]) as file:
            values = file.read(1)
        write_one(files["02_08"], values)
    store = prepare_competition(made.root, tmp_path / "store")
    assert store.table["transform"].tolist() == [""] * 3
    assert touching(np.array([False, True, False]), **store.footprints()).all()


def test_0_in_some_bands_is_data_even_where_0_is_declared(tmp_path, made):
    for b, files in enumerate(made.bands):
        for tile, path in files.items():
            values = made.tiles[tile].values[b].copy()
            if (b, tile) == (3, "02_07"):
                values[4, 4:8] = 0
            write_one(path, values, nodata=0)
    store = prepare_competition(made.root, tmp_path / "s")
    i = store.table["id"].tolist().index("02_07")
    valid = made.tiles["02_07"].valid
    np.testing.assert_array_equal(~np.isnan(store.read(i)[0]), valid)
    assert (store.read(i)[3, 4, 4:8][valid[4, 4:8]] == 0).all()


def test_numbers_become_units_by_the_users_word(tmp_path, made):
    plain = prepare_competition(made.root, tmp_path / "dn")
    how = {"scale": [2.75e-5] * 4 + [0.00341802], "offset": [-0.2] * 4 + [149.0]}
    store = prepare_competition(made.root, tmp_path / "s", **how)
    assert list(store.units.values()) == ["reflectance"] * 4 + ["kelvin"]
    assert set(plain.units.values()) == {"dn"}
    np.testing.assert_array_equal(store.images, plain.images)
    scale, offset = (np.reshape(v, (5, 1, 1)) for v in how.values())
    np.testing.assert_allclose(store.read(1), plain.read(1) * scale + offset, rtol=1e-5, atol=1e-6)
    with warnings.catch_warnings(action="ignore"), rasterio.open(made.bands[1]["02_07"], "r+") as file:
        file.scales, file.offsets = (2.75e-5,), (-0.2,)
    line = f"{made.bands[1]['02_07']}: its tags have scale 2.75e-05 and offset -0.2, not applied; give scale and offset"
    with pytest.warns(DataNote) as said:
        prepare_competition(made.root, tmp_path / "tagged")
    assert line in [str(each.message) for each in said]
    light = prepare_competition(made.root, tmp_path / "l", scale=1e-4)
    assert list(light.units.values()) == ["reflectance"] * 4 + ["dn"]
    with pytest.raises(DataError, match=rf"{made.root}: scale: no band 'nir'"):
        prepare_competition(made.root, tmp_path / "x", scale={"nir": 1.0})
    assert not (tmp_path / "x").exists()


def test_complex_numbers_are_refused(tmp_path, made):
    path = sorted(tmp_path.rglob("Band1/*.tif"))[0]
    with warnings.catch_warnings(action="ignore"), rasterio.open(path) as file:
        profile, values = {**file.profile, "crs": CRS, "transform": from_origin(5e5, 3.1e6, 30, 30)}, file.read()
    with rasterio.open(path, "w", **{**profile, "dtype": "complex64", "nodata": None}) as file:
        file.write(values.astype("complex64"))
    with pytest.raises(DataError, match="holds complex numbers; give real ones"):
        prepare_competition(path.parents[1], tmp_path / "store")
