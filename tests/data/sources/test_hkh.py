import hashlib
import io
import json
import shutil

import numpy as np
import pytest
from hkh_folders import BOTTOM, LEFT, PIXEL, STEP, hkh_archive, hkh_folder, slice_name
from server import Answer, Mirror

from glacier_fastai.bands import BANDS
from glacier_fastai.data.sources import hkh
from glacier_fastai.data.sources.hkh import CHANNELS, DEFAULT_BANDS, find_hkh, hkh_files, prepare_hkh
from glacier_fastai.errors import DataError, OutputError

INDEX = [0, 1, 2, 4, 6]  # of the five default bands in an image
KEPT = [(s, n) for s in (0, 1) for n in (0, 2, 3)]  # of the made-up slices; 1 has no data, 4 and 5 have no ice


@pytest.fixture
def root(tmp_path):
    return hkh_folder(tmp_path / "data")


def load(root, s, n, part="slices"):
    return (np.load(root / part / slice_name(s, n, kind)) for kind in ("img", "mask"))


def change(root, s, n, kind, what, part="slices"):
    """Rewrite one array: `what` gets it, changes it in place or returns another one."""
    path = root / part / slice_name(s, n, kind)
    array = np.load(path)
    out = what(array)
    np.save(path, array if out is None else out)


def expected(root, s, n, index=INDEX):
    """Return values and codes of a slice, pixel by pixel as the formats are described."""
    image, mask = load(root, s, n)
    values = image[..., index].transpose(2, 0, 1)
    codes = np.zeros(mask.shape[:2], np.uint8)
    for at in np.ndindex(codes.shape):
        some, clean, debris = mask[at]
        codes[at] = 2 if debris else 1 if clean else 254 if some else 0
    gone = ~np.isfinite(values).all(0)
    return np.where(gone, np.nan, values), np.where(gone, 255, codes)


def row_of(store, name):
    return int(np.flatnonzero(store.table["id"] == name)[0])


def sorted_table(store):
    return store.table.sort_values("id").reset_index(drop=True)


def assert_same_tiles(a, b):
    assert sorted_table(a).equals(sorted_table(b))
    for name in a.table["id"]:
        np.testing.assert_array_equal(a.images[row_of(a, name)], b.images[row_of(b, name)])
        np.testing.assert_array_equal(a.masks[row_of(a, name)], b.masks[row_of(b, name)])


def refuse(tmp_path, message, path, error=DataError, **kwargs):
    with pytest.raises(error, match=message) as err:
        prepare_hkh(path, tmp_path / "store", **kwargs)
    assert "\n" not in str(err.value)
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / ".store.partial").exists()


def test_slices_become_tiles(root, tmp_path):
    store = prepare_hkh(root, tmp_path / "store")
    assert store.bands == DEFAULT_BANDS == ("blue", "green", "red", "swir1", "thermal")
    assert (store.info["source"], store.info["sensor"], store.images.dtype) == ("hkh", "landsat7", np.float32)
    assert store.table["id"].tolist() == [f"slice_{s}_{n:03}" for s, n in KEPT]
    assert set(store.table["split"]) == set(store.table["group"]) == {""}
    assert not store.standardised
    for i, (s, n) in enumerate(KEPT):
        values, codes = expected(root, s, n)
        np.testing.assert_array_equal(store.images[i], values)
        np.testing.assert_array_equal(store.masks[i], codes)
        assert set(np.unique(codes)) == {0, 1, 2, 254, 255}
    assert [p.name for p in tmp_path.iterdir() if p.name != "data"] == ["store"]


def test_the_store_says_how_it_was_made(root, tmp_path):
    store = prepare_hkh(root, tmp_path / "store")
    made = store.info["made_by"]
    masks = [np.load(p) for p in (root / "slices").glob("*_mask_*")]
    double = sum(int((m[..., 1] & m[..., 2]).sum()) for m in masks)
    assert double > 0
    assert store.ice_counts().all()
    want = {"read": 12, "dropped_by_min_ice": 4, "dropped_by_min_valid": 2}
    assert made["count"] == {**want, "doubly_labelled_pixels": double, "unlabelled_pixels": 0}
    assert (made["kind"], made["min_ice"], made["min_valid"]) == ("slices", 0.05, 0.1)
    assert made["channels"]["thermal"] == "thermal_high"
    assert made["labels"] == "clean ice 1, debris 2, both 2, ice of neither kind 254, other 0"
    assert made["mirrored_scenes"] == 2


def test_mask_rule_pixel_by_pixel(root, tmp_path):
    def all_eight(mask):
        mask[:] = 0
        for k in range(8):
            mask[k] = k & 1, k >> 1 & 1, k >> 2  # any, clean, debris

    change(root, 0, 0, "mask", all_eight)
    change(root, 0, 0, "img", lambda image: np.nan_to_num(image, nan=99))
    change(root, 0, 2, "mask", lambda mask: mask.astype(bool))
    store = prepare_hkh(root, tmp_path / "store")
    assert store.masks[0][:9, 0].tolist() == [0, 254, 1, 1, 2, 2, 2, 2, 0]
    np.testing.assert_array_equal(store.masks[1], expected(root, 0, 2)[1])


@pytest.mark.parametrize("bands", [("thermal", "blue"), ("thermal_low", "thermal_high", "Pan", "B7"), ("slope", "nir")])
def test_bands_by_name_in_any_order(root, tmp_path, bands):
    store = prepare_hkh(root, tmp_path / "store", bands=bands)
    index = {"thermal": 6, "thermal_low": 5, "thermal_high": 6, "swir2": 7, "pan": 8, "slope": 14, "nir": 3, "blue": 0}
    assert store.bands == tuple({"Pan": "pan", "B7": "swir2"}.get(b, b) for b in bands)
    for i, (s, n) in enumerate(KEPT):
        np.testing.assert_array_equal(store.images[i], expected(root, s, n, [index[b] for b in store.bands])[0])


def test_every_channel_but_bqa_is_a_band(root, tmp_path):
    wanted = [c for c in CHANNELS if c != "bqa"]
    assert set(wanted) <= set(BANDS)
    store = prepare_hkh(root, tmp_path / "store", bands=wanted)
    np.testing.assert_array_equal(store.images[0], expected(root, 0, 0, [k for k in range(15) if k != 9])[0])


def test_bands_that_are_refused(root, tmp_path):
    refuse(tmp_path, "band 'bqa' is interpolated, useless as flags", root, bands=["red", "BQA"])
    refuse(tmp_path, "no band 'ndsi'.*sign flipped; ask for 'ndsi_flipped'", root, bands=["ndsi"])
    refuse(tmp_path, "texture bands are computed when training begins; name them", root, bands=["glcm_contrast(swir1)"])
    refuse(tmp_path, "unknown band 'blu'.*did you mean 'blue'", root, bands=["blu"])
    refuse(tmp_path, "'red' is named twice", root, bands=["red", "B3"])
    refuse(tmp_path, "no bands given", root, bands=[])


def test_nan_and_infinity_in_a_band_kept_are_nodata_in_others_they_do_not_matter(root, tmp_path):
    def spoil(image):
        image[:] = 100
        image[0, :4, 1] = np.nan, np.inf, -np.inf, 3e38
        image[1, :, 3] = np.nan  # nir is not kept
        image[2, :, 9] = -np.inf

    change(root, 0, 0, "img", spoil)
    store = prepare_hkh(root, tmp_path / "store")
    np.testing.assert_array_equal(np.isnan(store.images[0]).all(0), np.isnan(store.images[0]).any(0))
    assert np.argwhere(np.isnan(store.images[0][0])).tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert (store.masks[0] == 255)[0, :5].tolist() == [True, True, True, True, False]
    assert store.table["n_valid"][0] == 32 * 32 - 4


def test_values_of_64_bits_of_other_byte_order_and_of_columns_first_are_read(root, tmp_path):
    want = prepare_hkh(root, tmp_path / "want")
    change(root, 0, 0, "img", lambda image: image.astype(">f8"))
    change(root, 0, 2, "img", lambda image: np.asfortranarray(image))
    change(root, 0, 2, "mask", lambda mask: np.asfortranarray(mask))
    assert_same_tiles(prepare_hkh(root, tmp_path / "store"), want)
    change(root, 0, 0, "img", lambda image: np.where(np.arange(15) == 0, 1e300, image.astype(np.float64)))
    assert prepare_hkh(root, tmp_path / "huge").table["id"][0] == "slice_0_002"  # no blue that float32 can hold


def test_filters(root, tmp_path):
    def ids(**kwargs):
        store = prepare_hkh(root, tmp_path / f"s{len(list(tmp_path.iterdir()))}", **kwargs)
        return [name.removeprefix("slice_") for name in store.table["id"]], store.info["made_by"]["count"]

    every = [f"{s}_{n:03}" for s in (0, 1) for n in range(6)]
    assert ids(min_ice=0, min_valid=0)[0] == every
    kept, count = ids(min_ice=0)
    assert kept == [e for e in every if e[-1] != "1"]
    assert (count["dropped_by_min_ice"], count["dropped_by_min_valid"]) == (0, 2)
    kept, count = ids(min_ice=1e-9, min_valid=0)
    assert kept == [e for e in every if e[-1] != "5"]
    assert (count["dropped_by_min_ice"], count["dropped_by_min_valid"]) == (2, 0)
    codes = expected(root, 0, 0)[1]  # the share is one of labelled pixels
    share = np.isin(codes, (1, 2, 254)).sum() / (codes != 255).sum()
    assert "0_000" in ids(min_ice=share)[0]
    assert "0_000" not in ids(min_ice=share + 1e-9)[0]
    valid = np.isfinite(expected(root, 0, 0)[0]).all(0).mean()
    assert "0_000" in ids(min_valid=valid)[0]
    assert "0_000" not in ids(min_valid=valid + 1e-9)[0]


def test_when_nothing_is_left(root, tmp_path):
    message = r"slices: all 12 tiles were dropped, 12 by min_ice 1, 0 by min_valid 0.1; lower these"
    for f in (root / "slices").glob("*_001.npy"):
        f.unlink()
    refuse(tmp_path, message.replace("12", "10"), root, min_ice=1)
    refuse(tmp_path, "all 10 tiles were dropped, 2 by min_ice 0.05, 8 by min_valid 1", root, min_valid=1)
    refuse(tmp_path, r"min_ice 1.5: must be a share, from 0 to 1", root, min_ice=1.5)
    refuse(tmp_path, r"min_valid -1: must be a share, from 0 to 1", root, min_valid=-1)
    refuse(tmp_path, r"min_valid nan: must be a share, from 0 to 1", root, min_valid=float("nan"))


def test_progress_is_told_of_every_tile(root, tmp_path):
    calls = []
    prepare_hkh(root, tmp_path / "a", progress=lambda *at: calls.append(at))
    assert calls == [(k, 12) for k in range(1, 13)]
    calls.clear()
    prepare_hkh(hkh_archive(root, tmp_path / "a.tar"), tmp_path / "b", progress=lambda *at: calls.append(at))
    assert calls == [(k, None) for k in range(1, 13)]


# places


def test_footprints_are_put_where_the_slices_lie(root, tmp_path):
    store = prepare_hkh(root, tmp_path / "store", min_ice=0, min_valid=0)
    assert set(store.table["crs"]) == {"EPSG:32645"}
    assert store.table["scene"].tolist() == ["LE07_140000_20051012"] * 6 + ["LE07_140001_20051012"] * 6
    assert store.table["row"].tolist() == [0, 0, 0, 26, 26, 26] * 2
    assert store.table["col"].tolist() == [0, 26, 52] * 4
    for k, text in enumerate(store.table["transform"]):
        a, b, left, d, e, top = map(float, text.split())
        # the original pixels are W / (W - 1) too large, which in scenes of 84 x 58 px is much
        assert (a, b, d, e) == pytest.approx((PIXEL * 84 / 83, 0, 0, -PIXEL * 58 / 57))
        assert left == pytest.approx(LEFT + STEP * (k // 6) + 26 * a * (k % 3))
        assert top == pytest.approx(BOTTOM - e * (26 if k % 6 > 2 else 52))


def test_neighbours_touch_and_scenes_do_not(root, tmp_path):
    place = prepare_hkh(root, tmp_path / "store", min_ice=0, min_valid=0).footprints()
    left, top, right, bottom = place["box"].T
    assert np.allclose(right - left, 32 * PIXEL * 84 / 83)
    assert left[1] < right[0]
    assert bottom[0] > top[3]
    assert right[:6].max() < left[6:].min()
    assert len(set(place["frame"])) == 1


def test_footprints_the_right_way_round_are_left_alone(root, tmp_path):
    want = prepare_hkh(root, tmp_path / "want")
    path = root / "slices.geojson"
    table = json.loads(path.read_text())
    ends = 2 * BOTTOM + PIXEL * 52 * 58 / 57
    for feature in table["features"]:
        feature["geometry"]["coordinates"] = [[[x, ends - y] for x, y in feature["geometry"]["coordinates"][0]]]
    path.write_text(json.dumps(table))
    store = prepare_hkh(root, tmp_path / "store")
    assert store.info["made_by"]["mirrored_scenes"] == 0
    for a, b in zip(store.table["transform"], want.table["transform"], strict=True):
        assert list(map(float, a.split())) == pytest.approx(list(map(float, b.split())))
    assert store.table["row"].tolist() == want.table["row"].tolist()


def test_geojson_of_longitude_and_latitude_beside_the_slices_and_with_windows_paths(root, tmp_path):
    text = (root / "slices.geojson").read_text().replace("/mnt/blobfuse/slices/", r"D:\\glaciers\\slices\\")
    table = json.loads(text)
    (root / "slices.geojson").unlink()
    for crs in (None, {"properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}):
        table["crs"] = crs
        for feature in table["features"]:
            feature["properties"].pop("img_source", None)
        (root / "slices" / "slices.geojson").write_text(json.dumps(table))
        store = prepare_hkh(root, tmp_path / f"store{crs is None}")
        assert set(store.table["crs"]) == {"EPSG:4326"}
        assert set(store.table["scene"]) == {"slice_0", "slice_1"}


def test_without_geojson_a_scene_is_one_unit(root, tmp_path):
    (root / "slices.geojson").unlink()
    store = prepare_hkh(root, tmp_path / "store")
    assert store.table["scene"].tolist() == ["slice_0"] * 3 + ["slice_1"] * 3
    assert set(store.table["crs"]) == set(store.table["transform"]) == {""}
    assert set(store.table["row"]) == set(store.table["col"]) == {0}
    assert len(set(store.groups())) == len(set(store.footprints()["frame"])) == 2


def test_bad_geojson(root, tmp_path):
    path = root / "slices.geojson"
    table = json.loads(path.read_text())
    few = {**table, "features": [f for f in table["features"] if "slice_1_img_000" not in f["properties"]["img_slice"]]}
    path.write_text(json.dumps(few))
    refuse(tmp_path, r"slices\.geojson: no footprint of slice_1_000; put the file away to split by scene", root)
    path.write_text(json.dumps(table)[:-50])
    refuse(tmp_path, r"slices\.geojson: damaged, or not JSON .*; copy it again", root)
    for other in ([], {"type": "Feature"}, {"features": [{}]}, {**table, "crs": {"properties": {"name": "moon"}}}):
        path.write_text(json.dumps(other))
        refuse(tmp_path, r"slices\.geojson: damaged", root)
    table["features"][3]["geometry"]["coordinates"] = [[[0, 0], [0, 1], [0, 0]]]
    path.write_text(json.dumps(table))
    refuse(tmp_path, "damaged .*footprint of scene 0 has no area", root)
    table["features"][3]["geometry"] = None
    path.write_text(json.dumps(table))
    refuse(tmp_path, r"slices\.geojson: damaged", root)


# splits


def test_splits_are_standardised_and_keep_their_parts(root, tmp_path):
    store = prepare_hkh(root / "splits", tmp_path / "store")
    assert store.standardised
    assert store.info["made_by"]["kind"] == "splits"
    assert store.info["made_by"]["min_ice"] == 0
    assert dict(zip(store.table["id"], store.table["split"], strict=True)) == {
        f"slice_{s}_{n:03}": split for s in (0, 1) for n, split in ((0, "train"), (2, "valid"), (3, "test"))
    }
    stats = json.loads((root / "stats_train.json").read_text())
    mean, std = (np.array(stats[k])[INDEX, None, None] for k in ("means", "stds"))
    for t in store.table.itertuples():
        s, n = map(int, t.id.removeprefix("slice_").split("_"))
        raw, mask = load(root, s, n)
        values = np.nan_to_num(raw[..., INDEX].transpose(2, 0, 1), nan=0)
        gone = (values == 0).any(0)
        assert gone.any()
        np.testing.assert_allclose(
            store.images[t.Index], np.where(gone, np.nan, (values - mean) / std), rtol=0, atol=1e-5
        )
        codes = np.where(mask[..., 2] > 0, 2, mask[..., 1])
        np.testing.assert_array_equal(store.masks[t.Index], np.where(gone, 255, codes))


def test_one_split_alone(root, tmp_path):
    for part, split, n in (("train", "train", 0), ("dev", "valid", 2), ("test", "test", 3)):
        store = prepare_hkh(root / "splits" / part, tmp_path / part)
        assert set(store.table["split"]) == {split}
        assert store.table["id"].tolist() == [f"slice_0_{n:03}", f"slice_1_{n:03}"]
        assert store.standardised
        assert store.table["scene"][0] == "LE07_140000_20051012"
        assert (store.table["n_valid"] < 32 * 32).all()  # it found the statistics


def test_without_statistics_only_nan_is_nodata_in_splits(root, tmp_path):
    (root / "stats_train.json").unlink()

    def hole(image):
        image[5, 6, 2] = np.nan

    change(root, 0, 0, "img", hole, "splits/train")
    store = prepare_hkh(root / "splits", tmp_path / "store")
    i = row_of(store, "slice_0_000")
    assert np.argwhere(np.isnan(store.images[i][0])).tolist() == [[5, 6]]
    assert (store.table["n_valid"].drop(i) == 32 * 32).all()


def test_a_constant_channel_tells_nothing_of_nodata(root, tmp_path):
    want = prepare_hkh(root / "splits", tmp_path / "want")
    path = root / "stats_train.json"
    stats = json.loads(path.read_text())
    stats["stds"][1] = 0  # the original code set such a channel to 0

    def flat(image):
        image[..., 1] = 0

    for file in (root / "splits").rglob("*_img_*.npy"):
        change(file.parent, *(int(p) for p in file.stem.split("_")[1::2]), "img", flat, "")
    path.write_text(json.dumps(stats))
    store = prepare_hkh(root / "splits", tmp_path / "store")
    np.testing.assert_array_equal(store.masks, want.masks)
    path.write_text(json.dumps({**stats, "means": [float("nan")] * 15}))
    assert set(prepare_hkh(root / "splits", tmp_path / "nothing").table["n_valid"]) == {32 * 32}


def test_one_hot_masks_pixel_by_pixel(root, tmp_path):
    def all_eight(mask):
        mask[:] = 0, 0, 1
        for k in range(8):
            mask[k] = k & 1, k >> 1 & 1, k >> 2  # clean, debris, background

    (root / "stats_train.json").unlink()
    change(root, 0, 0, "mask", all_eight, "splits/train")
    store = prepare_hkh(root / "splits/train", tmp_path / "store")
    assert store.masks[0][:9, 0].tolist() == [255, 1, 2, 2, 0, 1, 2, 2, 0]
    assert store.info["made_by"]["count"]["unlabelled_pixels"] == 32
    assert store.info["made_by"]["labels"] == "clean ice 1, debris 2, both 2, background 0, none of these 255"


def test_splits_without_ice_are_kept(root, tmp_path):
    def bare(mask):
        mask[:] = 0, 0, 1

    change(root, 0, 0, "mask", bare, "splits/train")
    assert len(prepare_hkh(root / "splits", tmp_path / "kept", min_ice=0.9)) == 6
    refuse(tmp_path, r"all 6 tiles were dropped, 0 by min_ice 0, 6 by min_valid 1", root / "splits", min_valid=1)


def test_values_that_contradict_the_folder(root, tmp_path):
    shutil.copy(root / "splits/train/slice_0_img_000.npy", root / "slices")
    refuse(tmp_path, r"slice_0_img_000\.npy: blue is negative, so this is z-scored, not raw; move such tiles", root)
    for name in ("dev", "test"):
        shutil.rmtree(root / "splits" / name)
    for file in (root / "splits/train").iterdir():
        shutil.copy(root / "slices" / file.name.replace("000", "002"), file)
    refuse(tmp_path, r"splits: no tile has negative values, so they are raw; move them to", root / "splits")
    store = prepare_hkh(root / "splits", tmp_path / "terrain", bands=["elevation"])  # cannot be told from this
    assert len(store) == 2


def test_a_few_negative_values_do_not_make_raw_tiles_z_scored(root, tmp_path):
    def resampled(image):
        image[8, 8:13] = -0.5

    change(root, 0, 0, "img", resampled)
    assert len(prepare_hkh(root, tmp_path / "store")) == 6


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"means": [1]}', '{"means": [1], "stds": [1]}', '{"means": 3, "stds": 4}', '{"means": "x"}']
)
def test_bad_statistics(root, tmp_path, text):
    (root / "stats_train.json").write_text(text)
    refuse(tmp_path, r"stats_train\.json: (damaged|holds list|wanted are)", root / "splits")
    assert len(prepare_hkh(root, tmp_path / "slices")) == 6  # which do not need them


def test_a_tile_in_two_splits(root, tmp_path):
    for kind in ("img", "mask"):
        shutil.copy(root / "splits/train" / slice_name(0, 0, kind), root / "splits/test")
    refuse(tmp_path, "tile id 'slice_0_000' occurs twice", root / "splits")


# finding


def test_what_is_found(root, tmp_path, monkeypatch):
    slices, splits = root / "slices", root / "splits"
    assert find_hkh(root.parent) == find_hkh(root) == find_hkh(slices) == slices
    assert find_hkh(splits) == splits
    assert find_hkh(splits / "dev") == splits / "dev"
    monkeypatch.chdir(splits / "dev")
    assert find_hkh(".") == splits / "dev"
    assert find_hkh("..") == splits
    assert set(prepare_hkh(".", tmp_path / "store").table["split"]) == {"valid"}
    slices.rename(tmp_path / "elsewhere")
    assert find_hkh(root.parent) == splits
    assert find_hkh(str(tmp_path / "elsewhere")) == tmp_path / "elsewhere"
    assert find_hkh(tmp_path) is None
    assert find_hkh(tmp_path / "missing") is None
    for name, right in (("a.tar.gz", True), ("a.tgz", True), ("a.tar", True), ("a.zip", False), ("a.npy", False)):
        (tmp_path / name).touch()
        assert find_hkh(tmp_path / name) == (tmp_path / name if right else None)


def test_files_that_a_store_depends_on(root, tmp_path):
    files = hkh_files(root)
    assert files == sorted(files, key=str)
    assert set(files) == {root / "slices.geojson", *(root / "slices").glob("*.npy")}
    assert len(files) == 25
    assert set(hkh_files(root / "splits")) == {
        *(root / "splits").rglob("*.npy"),
        root / "slices.geojson",
        root / "stats_train.json",
    }
    assert set(hkh_files(root / "splits/test")) >= {root / "slices.geojson", root / "stats_train.json"}
    archive = hkh_archive(root, tmp_path / "a.tar")
    assert hkh_files(archive) == [archive]
    assert hkh_files(tmp_path / "nowhere") == []


def test_what_cannot_be_found(tmp_path):
    refuse(tmp_path, r"nowhere: no such file or folder; give the folder glacier_data, slices", tmp_path / "nowhere")
    refuse(tmp_path, "no HKH tiles in it; give the folder glacier_data, slices or splits, or hkh_patches", tmp_path)
    (tmp_path / "hkh.zip").touch()
    refuse(tmp_path, r"hkh\.zip: no HKH tiles in it", tmp_path / "hkh.zip")


def test_other_files_are_ignored(root, tmp_path):
    want = prepare_hkh(root, tmp_path / "want")
    for name in ("slice_0_img_000.npy.part", "slice_a_img_000.npy", "img_000.npy", "xslice_0_img_999.npy", "notes.txt"):
        (root / "slices" / name).write_text("hello")
    assert_same_tiles(prepare_hkh(root, tmp_path / "store"), want)


# damage


@pytest.mark.parametrize("kind, other", [("img", "mask"), ("mask", "img")])
def test_half_a_tile(root, tmp_path, kind, other):
    message = rf"slice_0_{other}_003\.npy: there is no slice_0_{kind}_003\.npy to go with it; get that, or remove"
    (root / "slices" / slice_name(0, 3, kind)).unlink()
    calls = []
    refuse(tmp_path, message, root, progress=lambda *at: calls.append(at))
    assert calls == []  # not after hours
    for order in ("images", "masks", "mixed"):
        refuse(tmp_path, message, hkh_archive(root, tmp_path / f"{order}.tar", order))


@pytest.mark.parametrize("kind", ["img", "mask"])
@pytest.mark.parametrize("archived", [False, True])
def test_damaged_files(root, tmp_path, kind, archived):
    path = root / "slices" / slice_name(1, 3, kind)
    whole = path.read_bytes()

    def check(message, content):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content)
        source = hkh_archive(root, tmp_path / "a.tar") if archived else root
        refuse(tmp_path, rf"slice_1_{kind}_003\.npy: {message}", source)

    good, depth = np.load(path), 15 if kind == "img" else 3
    check("not an .npy file, cut short or damaged .*; copy it again", whole[:-5000])
    check("not an .npy file, cut short or damaged", whole[:100])
    check("not an .npy file, cut short or damaged", b"")
    check("not an .npy file, cut short or damaged", b"hello, world" * 1000)
    check("not an .npy file, cut short or damaged", whole[:6] + b"\x09" + whole[7:])
    check(rf"shape \(32, 31, {depth}\); wanted is \(N, N, {depth}\) with N 32 as in the first tile", good[:, :31])
    check(rf"shape \(16, 16, {depth}\); wanted is \(N, N, {depth}\) with N 32 as in the first tile", good[:16, :16])
    check(rf"shape \(32, 32, {depth - 1}\); wanted is \(N, N, {depth}\)", good[..., 1:])
    check(r"shape \(\); wanted is", good[0, 0, 0])
    dtypes = "float32 and float64" if kind == "img" else "uint8 and bool"
    check(rf"values are int64; allowed are {dtypes}", np.zeros(good.shape, np.int64))
    check(r"not an .npy file.*\(values are object; wanted are numbers", np.full(good.shape, {}, object))


def test_the_first_file_is_checked_too(tmp_path):
    root = hkh_folder(tmp_path / "data", scenes=1, rows=1, cols=1)
    for array, shape in ((np.zeros((4, 4, 3)), r"\(4, 4, 3\)"), (np.zeros((2049, 2049, 3)), r"\(2049, 2049, 3\)")):
        np.save(root / "slices" / slice_name(0, 0, "mask"), array.astype(np.uint8))
        refuse(tmp_path, rf"shape {shape}; wanted is \(N, N, 3\) with N 7 to 2048", root)


def test_images_without_ice_are_not_read(root, tmp_path):
    want = prepare_hkh(root, tmp_path / "want")
    (root / "slices" / slice_name(0, 5, "img")).write_bytes(b"")
    assert_same_tiles(prepare_hkh(root, tmp_path / "store"), want)
    refuse(tmp_path / "all", r"slice_0_img_005\.npy: not an .npy file", root, min_ice=0)


def test_masks_of_other_values(root, tmp_path):
    for value in (2, 255):
        change(root, 1, 0, "mask", lambda mask, value=value: np.where(mask > 0, value, 0).astype(np.uint8))
        refuse(tmp_path, rf"slice_1_mask_000\.npy: holds {value}; allowed are 0 and 1 in each of the three", root)


def test_headers_of_random_bytes_are_damage(root, tmp_path):
    path = root / "slices" / slice_name(0, 0, "mask")
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(150):
        broken = whole.copy()
        for at in rng.integers(0, 128, rng.integers(1, 4)):
            broken[at] = rng.integers(32, 127)
        path.write_bytes(broken)
        try:
            prepare_hkh(root, tmp_path / "store")
        except DataError as err:
            assert slice_name(0, 0, "mask") in str(err)  # noqa: PT017
            assert "\n" not in str(err)  # noqa: PT017
        shutil.rmtree(tmp_path / "store", ignore_errors=True)


def test_a_store_or_file_that_cannot_be_written_or_read(root, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="there: exists already"):
        prepare_hkh(root, tmp_path / "there")
    (root / "slices" / slice_name(0, 0, "mask")).unlink()
    (root / "slices" / slice_name(0, 0, "mask")).mkdir()
    refuse(tmp_path, r"slice_0_mask_000\.npy: a folder; give a file", root)


# archives


@pytest.mark.parametrize("order", ["images", "masks", "mixed"])
@pytest.mark.parametrize("suffix", ["tar.gz", "tar"])
def test_an_archive_in_any_order_gives_the_tiles_of_the_folder(root, tmp_path, order, suffix):
    want = prepare_hkh(root, tmp_path / "want")
    store = prepare_hkh(hkh_archive(root, tmp_path / f"hkh.{suffix}", order), tmp_path / "store")
    assert_same_tiles(store, want)
    assert store.info["made_by"]["count"] == want.info["made_by"]["count"]
    assert not store.standardised
    assert sorted(p.name for p in store.path.iterdir()) == ["dataset.json", "images.npy", "masks.npy", "tiles.csv"]


def test_an_archive_as_a_stream_that_can_only_be_read(root, tmp_path):
    class Pipe(io.RawIOBase):
        def __init__(self, path):
            self.file = open(path, "rb")  # noqa: SIM115  closed below

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.file.readinto(memoryview(buffer)[:1000])

        def close(self):
            self.file.close()
            super().close()

    want = prepare_hkh(root, tmp_path / "want")
    with Pipe(hkh_archive(root, tmp_path / "hkh.tar.gz")) as stream:
        assert_same_tiles(prepare_hkh(stream, tmp_path / "store"), want)


def test_what_waits_on_disk_is_freed(root, tmp_path):
    def waiting(source, name):
        counts, spool = [], tmp_path / f".{name}.partial" / "spool"

        def count(done, total):
            counts.append(len(list(spool.iterdir())) if spool.exists() else 0)

        prepare_hkh(source, tmp_path / name, progress=count)
        return counts

    # the images of slices 1 have too little data to wait, and those that a mask has called are gone
    images = hkh_archive(root, tmp_path / "i.tar", "images")
    assert waiting(images, "i") == [9, 9, 8, 7, 6, 5, 4, 4, 3, 2, 1, 0]
    masks = hkh_archive(root, tmp_path / "m.tar", "masks")
    assert waiting(masks, "m") == [9, 8, 7, 6, 5, 5, 4, 3, 2, 1, 0, 0]  # masks without ice do not wait
    assert waiting(root, "f") == [0] * 12


def test_archives_that_are_refused(root, tmp_path):
    whole = hkh_archive(root, tmp_path / "hkh.tar.gz")
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:-20_000])
    refuse(tmp_path, r"cut\.tar\.gz", tmp_path / "cut.tar.gz")
    (tmp_path / "text.tar").write_text("hello")
    refuse(tmp_path, r"text\.tar", tmp_path / "text.tar")
    shutil.rmtree(root / "slices")
    only_splits = hkh_archive(root, tmp_path / "splits.tar")
    refuse(tmp_path, r"splits\.tar: no slice_S_img_N\.npy with slice_S_mask_N\.npy in slices/; is it", only_splits)


def test_a_file_twice_in_an_archive(root, tmp_path):
    import tarfile

    archive = hkh_archive(root, tmp_path / "a.tar", "images")
    with tarfile.open(archive, "a") as tar:
        tar.add(root / "slices" / slice_name(0, 0, "img"), "glacier_data/slices/" + slice_name(0, 0, "img"))
        tar.add(root / "slices" / slice_name(0, 0, "mask"), "glacier_data/slices/" + slice_name(0, 0, "mask"))
    refuse(tmp_path, "tile id 'slice_0_000' occurs twice", archive)
    with tarfile.open(archive, "w") as tar:
        for _ in range(2):
            tar.add(root / "slices" / slice_name(0, 0, "img"), "slices/" + slice_name(0, 0, "img"))
    refuse(tmp_path, r"a\.tar: slices/slice_0_img_000\.npy: occurs twice; keep one of them", archive)


def test_a_full_disk(root, tmp_path, monkeypatch):
    def full(path, array):
        raise OSError(28, "No space left on device")

    archive = hkh_archive(root, tmp_path / "a.tar", "images")
    monkeypatch.setattr(np, "save", full)
    refuse(
        tmp_path,
        r"store: cannot be written \(No space left.*\); nothing was kept; make room",
        archive,
        error=OutputError,
    )


# download


@pytest.fixture
def mirrors(root, tmp_path, monkeypatch):
    """Two mirrors of the archive, the first of which breaks off again and again."""
    content = hkh_archive(root, tmp_path / "packed.tar.gz").read_bytes()
    drops = [Answer(drop=len(content) // 3), Answer(drop=100)]
    servers = Mirror(content, *drops), Mirror(content)
    monkeypatch.setattr(hkh, "MIRRORS", [s.url for s in servers])
    monkeypatch.setattr(hkh, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before it tries again
    yield servers
    for server in servers:
        server.close()


@pytest.mark.parametrize("kept", [True, False])
def test_a_download_becomes_the_store_of_the_folder(root, tmp_path, mirrors, kept):
    folder = tmp_path / "archive"
    store = hkh.download_hkh(folder if kept else None, tmp_path / "store")
    want = prepare_hkh(root / "slices", tmp_path / "want")
    a, b = (s.table.drop(columns=["row", "col"]).sort_values("id") for s in (store, want))
    assert a["id"].tolist() == b["id"].tolist()
    for x, y in zip(a.index, b.index, strict=True):
        np.testing.assert_array_equal(store.images[x], want.images[y])
        np.testing.assert_array_equal(store.masks[x], want.masks[y])
    assert folder.exists() == kept
    asked = sum(len(s.requests) for s in mirrors)
    assert asked >= 2
    if kept:  # the archive is there: nothing is asked for again
        hkh.download_hkh(folder, tmp_path / "again", bands=["red"])
        assert sum(len(s.requests) for s in mirrors) == asked


@pytest.mark.parametrize("kept", [True, False])
def test_a_wrong_archive_becomes_no_store(tmp_path, mirrors, monkeypatch, kept):
    monkeypatch.setattr(hkh, "SHA256", "0" * 64)
    with pytest.raises(DataError, match="SHA-256 is [0-9a-f]{64}, not 0000"):
        hkh.download_hkh(tmp_path / "archive" if kept else None, tmp_path / "store")
    left = {p.name for p in tmp_path.iterdir()} - {"data", "packed.tar.gz"}
    assert left <= {"archive"}
    assert not (tmp_path / "archive" / hkh.ARCHIVE).exists()


def test_what_cannot_be_written_is_said_before_the_download(tmp_path, mirrors):
    with pytest.raises(OutputError, match="exists already"):
        hkh.download_hkh(None, tmp_path)
    with pytest.raises(DataError, match="useless as flags"):
        hkh.download_hkh(None, tmp_path / "store", bands=["bqa"])
    assert not any(s.requests for s in mirrors)
