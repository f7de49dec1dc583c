import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyproj import CRS, Transformer
from scenes import BANDS, made_up, make_store

from glacier_fastai.core.folds import touching
from glacier_fastai.data.folds import store_folds
from glacier_fastai.data.tiles import TileStore, TileWriter, _fixed, store_dtype
from glacier_fastai.errors import DataError, DataNote, OutputError
from glacier_fastai.files import digest
from glacier_fastai.reading import read_table

LEGACY = Path(__file__).parents[1] / "legacy"


def test_what_was_written_is_read_back(store):
    values, classes, valid = made_up(64, 64, seed=1)
    i = store.table.index[store.table["id"] == "s1_32_0"][0]
    want = np.where(valid, values, np.nan)[:, 32:, :32]
    np.testing.assert_array_equal(store.read(i), want)
    np.testing.assert_array_equal(store.masks[i], np.where(valid, classes, 255)[32:, :32])
    row = store.table.iloc[i]
    assert (row["scene"], row["row"], row["col"], row["crs"]) == ("s1", 32, 0, "EPSG:32645")


def test_bands_and_windows_are_read_by_choice(store):
    index = store.band_index(["thermal", "blue"])
    part = store.read(3, index, (slice(4, 12), slice(5, 20)))
    np.testing.assert_array_equal(part, store.read(3)[[4, 0], 4:12, 5:20])


def test_statistics_are_exact_over_valid_pixels_of_the_chosen_tiles(store):
    tiles = [0, 5, 7]
    pixels = np.concatenate([store.read(i).reshape(len(BANDS), -1) for i in tiles], 1).astype(np.float64)
    pixels = pixels[:, np.isfinite(pixels[0])]
    mean, std = store.statistics(["red", "blue"], tiles)
    np.testing.assert_allclose(mean, pixels[[2, 0]].mean(1), rtol=1e-12)
    np.testing.assert_allclose(std, pixels[[2, 0]].std(1), rtol=1e-9)


def test_the_table_counts_classes_and_valid_pixels(store):
    for i in range(len(store)):
        want = [(store.masks[i] == k).sum() for k in range(4)]
        assert store.class_counts()[i].tolist() == want
        assert store.table["n_valid"][i] == np.isfinite(store.read(i)[0]).sum()


def write_labelled(path, mask, image=None, **kwargs):
    """Write a store of one tile; return it and what was said, as it stands in the store."""
    image = made_up(*np.shape(mask), nodata=False)[0] if image is None else image
    with (
        warnings.catch_warnings(record=True, action="always") as said,
        TileWriter(path, BANDS[: len(image)], 32, image.dtype, "test") as writer,
    ):
        writer.add(image, np.asarray(mask), scene="s", **kwargs)
    store = TileStore(path)
    assert [str(w.message) for w in said] == store.info["notes"]
    assert {w.category for w in said} <= {DataNote}
    assert all(n.startswith(f"{path}: ") for n in store.info["notes"])
    return store, [n.removeprefix(f"{path}: ") for n in store.info["notes"]]


def test_ice_of_unknown_kind_is_kept_and_counted_apart(tmp_path):
    mask = made_up(32, 32)[1]
    mask[:, :16] = 254
    store, _ = write_labelled(tmp_path / "s", mask)
    np.testing.assert_array_equal(store.masks[0], mask)
    np.testing.assert_array_equal(store.labels(0), mask)
    np.testing.assert_array_equal(store.labels(0, np.s_[3:9, 10:20]), store.labels(0)[3:9, 10:20])
    assert store.labels(0).dtype == np.uint8
    assert store.ice_counts().tolist() == [512]
    counts = np.bincount(mask.ravel(), minlength=256)[:4]
    assert store.class_counts().tolist() == [counts.tolist()]
    assert store.class_counts(unknown_ice=True).tolist() == [[counts[0], counts[1] + 512, *counts[2:]]]
    assert store.ice_pixels([0]) == (counts[1] + counts[2], 512)
    assert store.ice_pixels([]) == (0, 0)


def test_a_store_of_before_has_no_ice_of_unknown_kind(tmp_path):
    shutil.copytree(LEGACY / "store", tmp_path / "old")
    assert "n_ice" not in (tmp_path / "old" / "tiles.csv").read_text()
    store = TileStore(tmp_path / "old")
    assert store.ice_counts().tolist() == [0] * len(store)
    np.testing.assert_array_equal(store.labels(0), store.masks[0])


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ((0, 1, 2, 3), []),
        ((0, 1, 2, 3, 254, 255), []),
        ((255,), ["no pixel has a label, so it is for prediction only"]),
        ((0, 255), ["labels hold one class only, background: no model learns from that alone"]),
        ((2,), ["labels hold one class only, debris: no model learns from that alone"]),
        ((254, 255), ["labels hold one class only, ice of unknown kind: no model learns from that alone"]),
        ((0, 3), ["labels hold no ice (glacier or debris), only background and lake"]),
        ((0, 1), ["labels hold background, glacier, but no debris, lake"]),
        ((1, 2, 3, 255), ["labels hold glacier, debris, lake, but no background"]),
        ((0, 254), ["labels hold background, ice of unknown kind, but no glacier, debris, lake"]),
    ],
)
def test_what_labels_lack_is_said(tmp_path, codes, said):
    assert write_labelled(tmp_path / "s", np.resize(codes, (32, 32)))[1] == said


def test_labels_without_data_do_not_count(tmp_path):
    mask = np.resize((0, 1, 2, 3), (32, 32))
    assert write_labelled(tmp_path / "s", mask, valid=mask != 2)[1] == [
        "labels hold background, glacier, lake, but no debris"
    ]


@pytest.mark.parametrize(("dtype", "value"), [("uint16", 65454), ("float32", 0.1), ("float32", -3e-4), ("float32", 0)])
def test_a_constant_band_is_said(tmp_path, dtype, value):
    image, _, valid = made_up(32, 32)
    image = image.astype(dtype)
    image[2] = np.where(valid, value, 77)
    mask = np.resize((0, 1, 2, 3), (32, 32))
    said = write_labelled(tmp_path / "s", mask, image, valid=valid)[1]
    assert said == [f"band red is {value:g} everywhere; leave it out, or check its file"]
    image[2, 0, 1] = 1
    assert write_labelled(tmp_path / "v", mask, image, valid=valid)[1] == []


def test_a_store_without_any_data_has_no_constant_band(tmp_path):
    said = write_labelled(tmp_path / "s", np.zeros((32, 32)), np.zeros((2, 32, 32), np.uint8))[1]
    assert said == ["no pixel has a label, so it is for prediction only"]


def test_what_lies_under_nodata_is_not_kept(tmp_path):
    values, classes, valid = made_up(32, 32)
    stores = []
    for k, junk in enumerate((0, 12345)):
        with TileWriter(tmp_path / str(k), BANDS, 32, "uint16", "test") as writer:
            writer.add(np.where(valid, values, junk).astype(np.uint16), classes, valid=valid, scene="s")
        stores.append(TileStore(tmp_path / str(k)))
    a, b = stores
    assert a.images.tobytes() == b.images.tobytes()
    assert (a.path / "tiles.csv").read_text() == (b.path / "tiles.csv").read_text()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
def test_nodata_in_every_dtype(tmp_path, dtype):
    image = np.full((2, 32, 32), 7, dtype)
    image[:, :3] = np.nan if dtype.startswith("float") else 0
    if dtype.startswith("float"):
        image[1, 5, 5] = np.nan  # one band is enough
    with TileWriter(tmp_path / "s", ["red", "nir"], 32, dtype, "test") as writer:
        writer.add(image, np.zeros((32, 32)), scene="s")
    store = TileStore(tmp_path / "s")
    assert store.images.dtype == dtype
    nodata = np.isnan(store.read(0)).all(0)
    assert nodata.sum() == 96 + dtype.startswith("float")
    np.testing.assert_array_equal(store.masks[0] == 255, nodata)


def test_a_zero_in_one_band_only_is_data(tmp_path):
    image = np.zeros((2, 32, 32), np.uint8)
    image[0] = 9
    with TileWriter(tmp_path / "s", ["red", "nir"], 32, "uint8", "test") as writer:
        writer.add(image, np.zeros((32, 32)), scene="s")
    assert TileStore(tmp_path / "s").table["valid"][0] == 1


def test_other_dtypes_become_float32():
    assert [store_dtype(d).name for d in ("uint8", "int16", "float64")] == ["uint8", "float32", "float32"]


def test_a_store_is_whole_or_absent(tmp_path):
    values, classes, _ = made_up(32, 32)
    with pytest.raises(RuntimeError, match="power cut"), TileWriter(tmp_path / "s", BANDS, 32, "uint16", "x") as writer:
        writer.add(values, classes, scene="s")
        raise RuntimeError("power cut")
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_cannot_be_read_is_not_taken_for_the_store(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="absent"),
        TileWriter(tmp_path / "s", BANDS, 32, "uint16", "x"),
        open(tmp_path / "absent"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_first_tile_gives_the_size_that_nobody_knew(tmp_path):
    values, classes, _ = made_up(32, 32)
    with TileWriter(tmp_path / "s", BANDS, None, "uint16", "x") as writer:
        writer.add(values, classes, scene="a")
        with pytest.raises(DataError, match=r"wanted \(5, 32, 32\)"):
            writer.add(values[:, :16, :16], classes[:16, :16], scene="b")
    store = TileStore(tmp_path / "s")
    assert (store.size, store.info["size"]) == (32, 32)
    np.testing.assert_array_equal(store.images[0], values)


def test_tiles_are_known_again_by_what_an_earlier_version_called_them():
    """Bundles and checkpoints hold these; see tests/legacy/README.md."""
    store, expected = TileStore(LEGACY / "store"), np.load(LEGACY / "expected.npz")
    assert store.keys() == expected["keys"].tolist()
    assert store.fingerprint() == str(expected["fingerprint"]) == "68428d4b4818345a"
    folds = pd.read_csv(LEGACY / "run" / "folds.csv", dtype={"id": str})
    assert store_folds(store, 3).tolist() == [folds["fold"][folds["id"] == i].item() for i in store.table["id"]]


def test_a_leftover_of_a_killed_run_is_replaced(tmp_path):
    (tmp_path / ".s.partial").mkdir()
    (tmp_path / ".s.partial" / "images.npy").write_bytes(b"half")
    make_store(tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_refusals_of_the_writer(tmp_path):
    values, classes, _ = made_up(32, 32)
    with (
        pytest.raises(OutputError, match="exists already; choose another name"),
        TileWriter(tmp_path, BANDS, 32, "uint16", "x"),
    ):
        pass
    with pytest.raises(DataError, match="not one tile to write"), TileWriter(tmp_path / "s", BANDS, 32, "uint16", "x"):
        pass
    with TileWriter(tmp_path / "t", BANDS, 32, "uint16", "x") as writer:
        with pytest.raises(DataError, match=r"image \(4, 32, 32\).*wanted \(5, 32, 32\)"):
            writer.add(values[:4], classes, scene="s")
        with pytest.raises(DataError, match=r"class codes \[9\]; allowed are 0..3 and 255"):
            writer.add(values, np.full((32, 32), 9), scene="s")
        writer.add(values, classes, scene="s")
    with (
        pytest.raises(DataError, match="tile id 's_0_0' occurs twice"),
        TileWriter(tmp_path / "u", BANDS, 32, "uint16", "x") as writer,
    ):
        writer.add(values, classes, scene="s")
        writer.add(values, classes, scene="s")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"file: cannot be made \(File exists\)"),
        TileWriter(tmp_path / "file" / "s", BANDS, 32, "uint16", "x"),
    ):
        pass


def damage_images(path):
    (path / "images.npy").write_bytes((path / "images.npy").read_bytes()[:-100])


def damage_rows(path):
    lines = (path / "tiles.csv").read_text().splitlines()
    (path / "tiles.csv").write_text("\n".join(lines[:-1]))


def damage_version(path):
    info = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps(info | {"version": 99}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "dataset.json").unlink(), "not a tile store"),
        (lambda p: (p / "dataset.json").write_text("{"), "damaged, or not JSON"),
        (lambda p: (p / "dataset.json").write_text("{}"), "not of a tile store"),
        (damage_version, "tile store version 99, this glacier_fastai reads 1"),
        (damage_images, r"images\.npy: no .npy file, or damaged"),
        (lambda p: (p / "masks.npy").unlink(), r"masks\.npy: no such file"),
        (lambda p: (p / "tiles.csv").unlink(), r"tiles\.csv: no such file"),
        (damage_rows, "not as it was written"),
    ],
)
def test_damaged_stores_are_refused(store, damage, message):
    damage(store.path)
    with pytest.raises(DataError, match=message):
        TileStore(store.path)


def change(path, name, old, new):
    data = (path / name).read_bytes()
    assert old in data
    (path / name).write_bytes(data.replace(old, new, 1))


def turn_a_byte(path, name):
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 1
    (path / name).write_bytes(data)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("images.npy", b"<u2", b">u2", r"images\.npy: .*>u2 .*wanted is uint16"),
        ("images.npy", b"False", b"True ", "F order"),
        ("masks.npy", b"|u1", b"|i1", r"\|i1 .*wanted is uint8"),
        ("dataset.json", b'"uint16"', b'"uint8"', "wanted is uint8"),
        ("dataset.json", b'"uint16"', b'"object"', "dtype"),
        ("dataset.json", b'"size": 32', b'"size": 64', "wanted is"),
        ("dataset.json", b'"size": 32', b'"size": 1e999', "no finite number"),
        ("dataset.json", b'"bands": [', b'"bands": ["red",', "band 'red' is named twice"),
        ("dataset.json", b'"table"', b'"tabel"', r"no digest of tiles\.csv"),
        ("dataset.json", b'"lake"', b'"snow"', "its classes are not background, glacier, debris, lake"),
        ("dataset.json", b'"nodata": 0', b'"nodata": "nan"', "its nodata not 0"),
        ("tiles.csv", b"EPSG:32645", b"EPSG:32646", "not as it was written"),
        ("tiles.csv", b",crs,", b",crz,", "no column crs"),
    ],
)
def test_what_changes_the_meaning_of_a_store_is_refused(store, name, old, new, message):
    change(store.path, name, old, new)
    with pytest.raises(DataError, match=message):
        TileStore(store.path)


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_a_store_that_is_cut_short_in_use_is_said_not_died_of(store, kind):
    used = TileStore(store.path)
    read = used.read if kind == "image" else used.labels
    read(0)
    os.truncate(store.path / f"{kind}s.npy", 200)
    for i in (0, len(store) - 1):
        with pytest.raises(DataError, match=rf"{kind}s\.npy: was cut short while it was in use"):
            read(i)


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_a_byte_that_has_turned_is_found_when_its_tile_is_read(store, kind):
    turn_a_byte(store.path, f"{kind}s.npy")
    damaged, last = TileStore(store.path), len(store) - 1
    read = damaged.read if kind == "image" else damaged.labels
    read(0)
    name = store.table["id"][last]
    with pytest.raises(DataError, match=f"the {kind} of tile {name} is not as it was written; prepare the store again"):
        read(last)


def rewrite(path, **columns):
    """Change columns of a store as one would who wants it to look untouched."""
    table = read_table(path / "tiles.csv", DataError, {})
    table.assign(**columns).to_csv(path / "tiles.csv", index=False)
    info = json.loads((path / "dataset.json").read_text())
    told = {"table": digest(_fixed(read_table(path / "tiles.csv", DataError, {})))}
    (path / "dataset.json").write_text(json.dumps(info | told))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"n_glacier": str(2**62)}, "a number of pixels is negative, or more than a tile has"),
        ({"n_valid": "-1"}, "a number of pixels is negative, or more than a tile has"),
        ({"valid": "5"}, "a number of pixels is negative, or more than a tile has"),
        ({"id": "a"}, "tile id 'a' occurs twice"),
        ({"transform": "0 0 0 0 0 0"}, "a transform is not six numbers that place a grid"),
        ({"transform": "30 0 0 30 0 0"}, "a transform is not six numbers that place a grid"),
        ({"transform": "30 0 1e308 0 -30 1e308"}, "a transform is not six numbers that place a grid"),
        ({"split": "tests"}, "split 'tests'; use train, valid, test, or leave it empty"),
    ],
)
def test_a_table_that_cannot_be_is_refused(store, columns, message):
    rewrite(store.path, **columns)
    with pytest.raises(DataError, match=rf"tiles\.csv: {message}"):
        TileStore(store.path)


def test_a_store_of_endless_coordinate_reference_systems_is_refused(store, monkeypatch):
    monkeypatch.setattr("glacier_fastai.data.tiles.SYSTEMS", 1)
    rewrite(store.path, crs=[f"EPSG:{32601 + i}" for i in range(len(store))])
    with pytest.raises(DataError, match=r"tiles\.csv: \d+ coordinate reference systems, at most 1 are read"):
        TileStore(store.path)


def test_split_and_group_may_be_edited(store):
    table = store.table.assign(split="test", group="g")
    table.to_csv(store.path / "tiles.csv", index=False)
    assert set(TileStore(store.path).table["split"]) == {"test"}


def test_no_folder_of_another_leads_out_of_itself(store, tmp_path):
    (store.path / "masks.npy").rename(tmp_path / "elsewhere.npy")
    (store.path / "masks.npy").symlink_to(tmp_path / "elsewhere.npy")
    with pytest.raises(DataError, match=r"masks\.npy: a link"):
        TileStore(store.path)


def test_missing_bands_and_empty_statistics_are_refused(store):
    with pytest.raises(DataError, match=r"no band nir, slope; it holds blue, green, red, swir1, thermal"):
        store.band_index(["blue", "nir", "slope"])
    with pytest.raises(DataError, match="no pixel with data"):
        store.statistics(["blue"], [])


def test_a_constant_band_is_refused(tmp_path):
    image = np.full((2, 32, 32), 7, np.uint8)
    image[0, 0] = 9
    with TileWriter(tmp_path / "s", ["red", "nir"], 32, "uint8", "test") as writer:
        writer.add(image, np.zeros((32, 32)), scene="s")
    with pytest.raises(DataError, match="band nir is constant"):
        TileStore(tmp_path / "s").statistics(["red", "nir"])


def test_a_store_travels_to_workers_by_its_path(store):
    data = pickle.dumps(store)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).images[2], store.images[2])


FULL = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
from pyproj import CRS, Transformer
from scenes import BANDS, made_up
from glacier_fastai.data.folds import store_folds
from glacier_fastai.data.tiles import TileWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
try:
    with TileWriter({path!r}, BANDS, 32, "uint16", "test") as writer:
        for i in range(200):
            writer.add(*made_up(32, 32)[:2], scene=f"s{{i}}")
except OSError as err:
    print(type(err).__name__, err)
"""


@pytest.mark.parametrize("room", [100, 3_000, 300_000, 1_000_000])
def test_a_full_disk_is_said_in_a_line_and_leaves_nothing(tmp_path, room):
    """A limit on the size of files stands for the disk; it strikes in the header, in a tile, or at the end."""
    code = FULL.format(tests=str(Path(__file__).parents[1]), path=str(tmp_path / "store"), room=room)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.startswith(
        f"OutputError {tmp_path / 'store'}: cannot be written (File too large); nothing was kept"
    )
    assert out.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_cannot_begin_leaves_nothing_and_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(TileWriter, "_headers", lambda self, size: (_ for _ in ()).throw(OSError(28, "No space left")))
    with (
        pytest.raises(OutputError, match=r"s: cannot be written \(No space left"),
        TileWriter(tmp_path / "s", BANDS, 32, "uint16", "x"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    make_store(tmp_path / "s")


def test_two_writers_of_one_store_do_not_mix(tmp_path):
    values, classes, _ = made_up(32, 32)
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "x") as first:
        first.add(values, classes, scene="a")
        with (
            pytest.raises(OutputError, match="s: another process is writing it; wait, or choose another name"),
            TileWriter(tmp_path / "s", BANDS, 32, "uint16", "x"),
        ):
            pass
    assert TileStore(tmp_path / "s").table["scene"].tolist() == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


# ground

EAST = (30, 0, 500_000, 0, -30, 3_100_000)  # of EPSG:32645


def placed(path, *scenes, size=32):
    """A store of tiles, each a scene of its own, with the CRS and the transform given."""
    values, classes, _ = made_up(size, size)
    with TileWriter(path, BANDS, size, "uint16", "test") as writer:
        for s, (crs, transform) in enumerate(scenes):
            writer.add(values, classes, scene=f"s{s}", crs=crs, transform=transform)
    return TileStore(path)


def moved(dx, to, size=32):
    """The tile that is `dx` tiles east of `EAST`, from the corner that it has in another CRS."""
    x, y = Transformer.from_crs("EPSG:32645", to, always_xy=True).transform(500_000 + 30 * size * dx, 3_100_000)
    pixel = 30 if CRS(to).is_projected else 30 / 111_000
    return to, (pixel, 0, x, 0, -pixel, y)


def test_spellings_of_one_system_are_one_frame(tmp_path):
    crs = CRS("EPSG:32645")
    compound = CRS("EPSG:32645+5773").to_wkt("WKT1_GDAL")
    spelled = ["EPSG:32645", "EPSG:32645+5773", compound, crs.to_wkt(), crs.to_wkt("WKT1_ESRI")]
    place = placed(tmp_path / "s", *((text, EAST) for text in spelled)).footprints()
    assert set(place["frame"]) == {"crs EPSG:32645"} and "ground" not in place
    assert touching(np.arange(5) == 0, **place).all()


@pytest.mark.parametrize("to", ["EPSG:4326", "EPSG:32644", "EPSG:32646", "EPSG:3857", "EPSG:6933"])
def test_the_same_ground_in_another_system_touches(tmp_path, to):
    store = placed(tmp_path / "s", ("EPSG:32645", EAST), moved(0, to), moved(0.5, to), moved(40, to), ("", ()))
    place = store.footprints()
    assert touching(np.arange(5) == 0, **place).tolist() == [True, True, True, False, False]
    assert touching(np.arange(5) == 4, **place).tolist() == [False] * 4 + [True]
    fold = store_folds(store, 2)
    assert len(set(fold[:3])) == 1 and set(fold) == {0, 1}


def test_systems_that_lead_nowhere_are_frames_of_their_own(tmp_path):
    local = 'LOCAL_CS["arbitrary",UNIT["metre",1]]'
    scenes = [("EPSG:32645", EAST), (local, EAST), ("no CRS at all", EAST), ("", ()), (local, EAST)]
    store = placed(tmp_path / "s", *scenes)
    assert [tile is not None for tile in store.ground()] == [True, False, False, False, False]
    near = [np.flatnonzero(touching(np.arange(5) == i, **store.footprints())).tolist() for i in range(5)]
    assert near == [[0], [1, 4], [2], [3], [1, 4]]


def test_longitudes_meet_around_the_earth(tmp_path):
    degrees = [-10, 350, -180, 179, 20]  # of tiles of one degree
    store = placed(tmp_path / "s", *(("EPSG:4326", (1 / 32, 0, x, 0, -1 / 32, 10)) for x in degrees))
    near = [np.flatnonzero(touching(np.arange(5) == i, **store.footprints())).tolist() for i in range(5)]
    assert near == [[0, 1], [0, 1], [2, 3], [2, 3], [4]]


def test_tiles_of_one_system_are_compared_in_it_as_ever(tmp_path):
    place = placed(tmp_path / "s", ("EPSG:32645", EAST), moved(1, "EPSG:32645"), moved(3, "EPSG:32645")).footprints()
    assert set(place) == {"frame", "box"} and set(place["frame"]) == {"crs EPSG:32645"}
    assert place["box"][0].tolist() == [500_000, -3_100_000, 500_960, -3_099_040]


@pytest.mark.parametrize(("key", "value"), [("offset", 1.0), ("scale", 2.0), ("units", "kelvin")])
def test_what_numbers_mean_is_as_it_was_written(tmp_path, key, value):
    make_store(tmp_path / "store")
    path = tmp_path / "store" / "dataset.json"
    info = json.loads(path.read_text())
    before, info[key][0] = info[key][0], value
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"dataset\.json: its bands, units, scale, .* are not as they were written"):
        TileStore(tmp_path / "store")
    info[key][0] = before
    path.write_text(json.dumps({**info, "standardised": True}))
    with pytest.raises(DataError, match=r"standardised, texture, base are not as they were written"):
        TileStore(tmp_path / "store")
    info[key][0] = value
    del info["meaning"]
    path.write_text(json.dumps(info))
    assert len(TileStore(tmp_path / "store"))  # written before it was known
    info["scale"] = [1e308] * len(info["scale"])
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match="scale or offset beyond 1e.20"):
        TileStore(tmp_path / "store")
