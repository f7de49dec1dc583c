import numpy as np
import pytest
import torch
from fastai.vision.all import Flip, FuncSplitter, RandomSplitter, Transform, noop
from folders import competition_folder
from scenes import BANDS, made_up, make_store

from glacier_fastai.bands import CLASSES
from glacier_fastai.core.balance import PixelBalance
from glacier_fastai.core.folds import ALWAYS, NEVER
from glacier_fastai.data.augment import AugmentTiles
from glacier_fastai.data.block import GlacierDataLoaders, NormalizeBands
from glacier_fastai.data.folds import folds_hash, store_folds
from glacier_fastai.data.tiles import TileStore, TileWriter
from glacier_fastai.data.types import TensorGlacierMask, TensorMultispectral
from glacier_fastai.errors import DataError, DataNote


def loaders(store, **kwargs):
    return GlacierDataLoaders.from_store(store, **{"fold": 0, "bs": 4, "folds": 3, **kwargs})


def test_batches_have_their_types_shapes_and_order_of_bands(store):
    dls = loaders(store, crop=16, bands=["thermal", "red"])
    x, y = dls.one_batch()
    assert (type(x), type(y)) == (TensorMultispectral, TensorGlacierMask)
    assert (x.shape, y.shape) == ((4, 2, 16, 16), (4, 16, 16))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    vx, vy = dls.valid.one_batch()
    assert (vx.shape, vy.shape) == ((4, 2, 32, 32), (4, 32, 32))
    i = int(dls.valid_tiles[0])
    mean, std = (np.array(s)[:, None, None] for s in dls.stats)
    want = np.nan_to_num((store.read(i, store.band_index(["thermal", "red"])) - mean) / std)
    np.testing.assert_allclose(vx[0], want, atol=1e-4)
    np.testing.assert_array_equal(vy[0], store.masks[i])


def test_statistics_come_from_the_training_tiles_alone(store):
    dls = loaders(store)
    np.testing.assert_array_equal(dls.stats, store.statistics(store.bands, dls.train_tiles))
    assert not np.array_equal(dls.stats, store.statistics(store.bands))


def test_nodata_is_zero_after_normalisation_and_nan_when_decoded(store):
    dls = loaders(store)
    b = dls.valid.one_batch()
    x, y = (t.as_subclass(torch.Tensor) for t in b)
    hole = (x == 0).all(1)
    assert hole.any()
    assert torch.equal(hole, y == 255)  # in this store every pixel with data has a label
    decoded, _ = dls.decode(b)
    assert decoded.bands == BANDS
    assert torch.equal(decoded.as_subclass(torch.Tensor).isnan().all(1), hole)
    i = int(dls.valid_tiles[0])
    np.testing.assert_allclose(decoded[0], store.read(i), rtol=1e-4)


def test_train_and_valid_tiles_are_apart_and_repeated_as_asked(store):
    dls = loaders(store, crops_per_tile=3, crop=16, bs=5)
    assert not set(dls.train_tiles) & set(dls.valid_tiles)
    assert len(dls.train_ds) == len(dls.train_tiles)
    assert len(dls.valid_ds) == len(dls.valid_tiles)
    assert len(dls.train) == 3 * len(dls.train_tiles) // 5


def test_spatial_folds_leave_a_gap(tmp_path):
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "one scene") as writer:
        values, classes, valid = made_up(160, 96)
        for row in range(0, 160, 32):
            for col in range(0, 96, 32):
                at = (slice(row, row + 32), slice(col, col + 32))
                writer.add(values[:, *at], classes[at], valid=valid[at], scene="s", row=row, col=col)
    dls = loaders(tmp_path / "s", folds=5)
    rows = dls.store.table["row"].to_numpy()
    assert set(rows[dls.valid_tiles]) == {0}
    assert set(rows[dls.train_tiles]) == {64, 96, 128}
    dls = loaders(tmp_path / "s", folds=5, spatial=False)
    assert len(dls.train_tiles) + len(dls.valid_tiles) == 15


def test_two_dates_of_the_same_ground_never_part(tmp_path):
    where = {0: 500_000, 1: 500_000, 2: 600_000, 3: 700_000}  # the first two scenes lie on each other
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "test") as writer:
        for i, x in where.items():
            values, classes, valid = made_up(32, 64, seed=i)
            for col in (0, 32):
                at = (slice(None), slice(col, col + 32))
                writer.add(
                    values[:, *at],
                    classes[at],
                    valid=valid[at],
                    scene=f"s{i}",
                    col=col,
                    crs="EPSG:32645",
                    transform=(30, 0, x + 30 * col, 0, -30, 3_100_000),
                )
    for k in range(3):
        dls = loaders(tmp_path / "s", fold=k)
        train, valid = ({dls.store.table["scene"][i] for i in t} for t in (dls.train_tiles, dls.valid_tiles))
        assert not train & valid
        assert not {"s0", "s1"} <= train | valid or ({"s0", "s1"} <= train or {"s0", "s1"} <= valid)


def split_store(path, splits, **info):
    """A store of a tile per name of a split, the tiles far apart."""
    with TileWriter(path, BANDS, 32, "uint16", "test") as writer:
        writer.info |= info
        for s, split in enumerate(splits):
            values, classes, valid = made_up(32, 32, seed=s)
            writer.add(values, classes, valid=valid, scene=f"s{s}", split=split)
    return TileStore(path)


def test_a_split_of_the_source_is_kept(tmp_path):
    store = split_store(tmp_path / "s", ["train", "test", "valid", "train", "test", "valid", "train"])
    assert store_folds(store, 5).tolist() == [ALWAYS, NEVER, 0, ALWAYS, NEVER, 0, ALWAYS]
    dls = GlacierDataLoaders.from_store(store, 0, 2)
    assert (dls.train_tiles, dls.valid_tiles) == ([0, 3, 6], [2, 5])
    assert GlacierDataLoaders.from_store(store, None, 2).train_tiles == [0, 2, 3, 5, 6]
    with pytest.raises(DataError, match="fold 3: there is fold 0 only"):
        GlacierDataLoaders.from_store(store, 3, 2)


def test_a_split_of_the_source_is_kept_where_its_tiles_touch(tmp_path):
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "test") as writer:
        for k, split in enumerate(["train", "valid", "train"]):
            writer.add(*made_up(32, 32, seed=k)[:2], scene="s", col=32 * k, split=split)
    dls = GlacierDataLoaders.from_store(tmp_path / "s", 0, 2)
    assert (dls.train_tiles, dls.valid_tiles) == ([0, 2], [1])


def test_a_source_without_training_tiles_is_refused(tmp_path):
    with pytest.raises(DataError, match="nothing but validation and test tiles"):
        GlacierDataLoaders.from_store(split_store(tmp_path / "s", ["valid", "test"]), 0, 2)


def test_test_tiles_are_in_no_fold(tmp_path):
    store = split_store(tmp_path / "s", ["", "test", "", "", "", "test"])
    fold = store_folds(store, 2)
    assert fold[[1, 5]].tolist() == [NEVER, NEVER]
    assert sorted(fold[[0, 2, 3, 4]]) == [0, 0, 1, 1]


def test_statistics_on_record_leave_out_what_is_not_trained_on(tmp_path):
    store = split_store(tmp_path / "s", ["train", "test", "valid"])
    np.testing.assert_allclose(store.info["mean"], store.statistics(BANDS, [0])[0])


def test_folds_do_not_depend_on_the_order_of_the_tiles(tmp_path):
    tables = []
    for order in (range(12), [7, 3, 11, 0, 1, 2, 10, 9, 8, 4, 5, 6]):
        with TileWriter(tmp_path / f"s{order[0]}", BANDS, 32, "uint16", "test") as writer:
            for s in order:
                values, classes, _ = made_up(32, 32, seed=s)
                writer.add(values, classes, scene=f"scene{s // 2}", row=40 * (s % 2))
        store = TileStore(tmp_path / f"s{order[0]}")
        for spatial in (False, True):
            fold = store_folds(store, 3, spatial)
            tables.append((spatial, dict(zip(store.table["id"], fold.tolist(), strict=True)), folds_hash(store, fold)))
    assert tables[:2] == tables[2:]
    assert tables[0][2] != tables[1][2]


def test_values_that_came_standardised_are_not_normalised_again(tmp_path):
    store = split_store(tmp_path / "s", ["train", "valid"], standardised=True)
    dls = GlacierDataLoaders.from_store(store, 0, 1)
    assert dls.stats[0].tolist() == [0] * 5 and dls.stats[1].tolist() == [1] * 5
    x = dls.valid.one_batch()[0][0]
    np.testing.assert_array_equal(x, np.nan_to_num(store.read(1)))


def test_a_competition_folder_is_loaded_straight_away(tmp_path):
    ids = [f"{r:02}_{c:02}" for r in range(0, 10, 2) for c in (0, 1)]
    root = competition_folder(tmp_path / "comp", ids=ids).root
    dls = GlacierDataLoaders.from_competition(tmp_path / "comp", fold=3, bs=2, crop=24)
    assert (len(dls.train_tiles), len(dls.valid_tiles)) == (8, 2)
    valid = dls.store.table["id"][dls.valid_tiles].tolist()
    assert valid[0][:2] == valid[1][:2]  # 02_00 and 02_01 touch
    assert dls.train.one_batch()[0].shape == (2, 5, 24, 24)
    assert GlacierDataLoaders.from_competition(root, fold=3, bs=2).store.path == dls.store.path
    with pytest.raises(DataError, match="no folder Band1 in it"):
        GlacierDataLoaders.from_competition(dls.store.path)


def test_a_folder_without_labels_cannot_be_trained_on(tmp_path):
    competition_folder(tmp_path / "test", "phase2", labels=False)
    with pytest.raises(DataError, match="fold 0: no validation tile has a label"):
        GlacierDataLoaders.from_competition(tmp_path / "test", fold=0, folds=3)


def test_a_validation_fold_without_labels_is_refused(tmp_path):
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "test") as writer:
        for i in range(3):
            values, classes, valid = made_up(32, 32, seed=i)
            writer.add(values, classes if i else classes * 0 + 255, valid=valid, scene=f"s{i}")
    messages = []
    for k in range(3):
        try:
            loaders(tmp_path / "s", fold=k)
        except DataError as err:
            messages.append(str(err))
    assert len(messages) == 1
    assert "no validation tile has a label" in messages[0]


def test_without_a_fold_every_tile_is_trained_on(store):
    dls = loaders(store, fold=None)
    assert (len(dls.train_tiles), len(dls.valid_tiles), len(dls.valid)) == (12, 0, 0)


def test_a_batch_larger_than_the_data_still_trains(store):
    dls = loaders(store, bs=100)
    assert len(dls.train) == 1
    assert dls.one_batch()[0].shape[0] == len(dls.train_tiles)


def test_tiles_without_labels_or_data_are_not_trained_on(tmp_path):
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "test") as writer:
        for i in range(6):
            values, classes, valid = made_up(32, 32, seed=i)
            if i == 1:
                classes = np.full_like(classes, 255)
            if i == 2:
                valid[4:] = False
            writer.add(values, classes, valid=valid, scene=f"s{i}")
    assert loaders(tmp_path / "s", fold=None, min_valid=0.2).train_tiles == [0, 3, 4, 5]


def with_unknown_ice(path, code=254, kept=(0, 1, 2, 3)):
    """A store of six tiles, half of each ice of unknown kind or `code`, of `kept` classes otherwise."""
    with TileWriter(path, BANDS, 32, "uint16", "test") as writer:
        for i in range(6):
            values, classes, valid = made_up(32, 32, seed=i)
            classes = np.where(np.isin(classes, kept), classes, 254)
            classes[:, :16] = code
            writer.add(values, classes, valid=valid, scene=f"s{i}")
    return TileStore(path)


@pytest.mark.parametrize("options", [{}, {"balance": PixelBalance()}, {"getters": [noop, noop], "crop": None}])
def test_ice_of_unknown_kind_comes_where_glacier_would(tmp_path, options):
    a, b = (with_unknown_ice(tmp_path / str(code), code) for code in (254, 1))
    assert set(np.unique(a.masks)) == {0, 1, 2, 3, 254, 255}
    for part in (0, 1):
        found = []
        for store in (a, b):
            torch.manual_seed(0)
            dls = loaders(store, **{"crop": 24, "num_workers": 0, **options})
            found.append([y.as_subclass(torch.Tensor) for _, y in dls[part]])
        assert all(torch.equal(y.masked_fill(y == 254, 1), z) for y, z in zip(*found, strict=True))
        assert set(torch.cat([y.ravel() for y in found[0]]).tolist()) == {0, 1, 2, 3, 254, 255}


@pytest.mark.parametrize("kept", [(0,), (0, 3), ()])
@pytest.mark.parametrize("fold", [None, 0])
def test_where_all_ice_is_of_unknown_kind_it_is_trained_on(tmp_path, kept, fold):
    dls = loaders(with_unknown_ice(tmp_path / "s", kept=kept), fold=fold)
    assert set(dls.one_batch()[1].unique().tolist()) == {*kept, 254, 255}
    assert (dls.watched, dls.tells_debris()) == ("ice_mcc", False)
    assert dls.tells_debris(before=True)
    assert not dls.tells_debris(before=False)


def test_what_tells_debris_from_clean_ice(tmp_path):
    mixed = loaders(with_unknown_ice(tmp_path / "mixed"), fold=None)
    assert mixed.tells_debris() and mixed.tells_debris(before=False)
    assert mixed.watched == "ice_mcc"  # half of each tile, and some of the rest is background
    without = loaders(with_unknown_ice(tmp_path / "without", 0, kept=(0, 3, 1, 2)), fold=None)
    assert without.tells_debris() and without.watched == "mcc"
    for kind in (1, 2):
        one = loaders(with_unknown_ice(tmp_path / f"one{kind}", kept=(0, kind)), fold=None)
        assert not one.tells_debris() and not one.tells_debris(before=False) and one.tells_debris(before=True)


def test_tiles_of_ice_of_unknown_kind_are_divided_like_those_of_glacier(tmp_path):
    a, b = (with_unknown_ice(tmp_path / str(code), code) for code in (254, 1))
    np.testing.assert_array_equal(store_folds(a, 3, spatial=False), store_folds(b, 3, spatial=False))


def test_workers_read_the_same(store):
    batches = [loaders(store, num_workers=n).valid.one_batch()[0].as_subclass(torch.Tensor) for n in (0, 1)]
    assert torch.equal(*batches)


def test_augmentation_reaches_training_only(store):
    dls = loaders(store, augment=AugmentTiles(flip=False, shift=0.4))
    torch.manual_seed(0)
    assert (dls.train.one_batch()[1] == 255).float().mean() > (dls.valid.one_batch()[1] == 255).float().mean()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"crop": 64}, "crop 64 is larger than its tiles of 32 px"),
        ({"fold": 3}, "fold 3: there are folds 0 to 2"),
        ({"folds": 50}, "12 tiles cannot make 50 folds"),
        ({"bands": ["nir"]}, "no band nir; it holds blue"),
        ({"min_valid": 1.0}, "no labelled tile with at least 100% data"),
    ],
)
def test_refusals_name_the_store(store, kwargs, message):
    with pytest.raises(DataError, match=message) as err:
        loaders(store, **kwargs)
    assert str(store.path) in str(err.value)


def test_statistics_must_fit_the_bands():
    with pytest.raises(DataError, match="2 bands, but 1 means and 2 deviations"):
        NormalizeBands(["red", "nir"], [1.0], [1.0, 2.0])


def test_a_store_is_given_by_path_too(tmp_path):
    make_store(tmp_path / "s")
    assert len(GlacierDataLoaders.from_store(tmp_path / "s", fold=1, folds=3, bs=2).valid_ds) == 4


# parts that a caller may replace


def test_classes_are_known_as_fastai_knows_them(store):
    dls = loaders(store)
    assert (dls.vocab, dls.c) == (CLASSES, 4)


def test_a_splitter_decides_in_place_of_the_fold(tmp_path):
    store = split_store(tmp_path / "s", ["", "test", "", "", ""])
    splitter = FuncSplitter(lambda i: store.table["scene"][i] == "s3")
    dls = GlacierDataLoaders.from_store(store, bs=2, splitter=splitter)
    assert (dls.train_tiles, dls.valid_tiles) == ([0, 2, 4], [3])
    assert dls.fold_of.tolist() == [ALWAYS, NEVER, ALWAYS, 0, ALWAYS]


def test_transforms_of_batches_are_added(store):
    class Double(Transform):
        order = 200

        def encodes(self, x: TensorMultispectral):
            return x * 2

    plain, doubled = loaders(store), loaders(store, batch_tfms=[Double()])
    for one, two in ((plain.train, doubled.train), (plain.valid, doubled.valid)):
        torch.testing.assert_close(two.one_batch()[0], one.one_batch()[0] * 2)


def test_getters_are_fastais_and_read_whole_tiles(store):
    dls = loaders(store, getters=[lambda i: 0, noop])
    x, y = dls.valid.one_batch()
    want = loaders(store).test_dl([0]).one_batch()[0][0]
    torch.testing.assert_close(x[0], want)
    assert torch.equal(x[0], x[3])
    np.testing.assert_array_equal(y[1], store.masks[dls.valid_tiles[1]])
    with pytest.raises(DataError, match="getters: fastai reads whole tiles; leave out crop and balance"):
        loaders(store, getters=[noop, noop], crop=16)


def test_the_block_stands_alone(store):
    dls = GlacierDataLoaders.block(store, ["red", "swir1"], splitter=RandomSplitter(0.25)).dataloaders(
        range(len(store)), bs=3, num_workers=0
    )
    assert dls.one_batch()[0].shape == (3, 2, 32, 32)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (9, 3)


def test_aspect_is_normalised_so_that_it_can_be_turned_and_turns(tmp_path):
    rng = np.random.default_rng(0)
    bands, angle = ("red", "aspect_sin", "aspect_cos"), rng.normal(1.0, 0.3, (6, 16, 16))
    with TileWriter(tmp_path / "s", bands, 16, "float32", "made up for tests") as writer:
        for k, facing in enumerate(angle):
            image = np.stack([rng.random((16, 16)), np.sin(facing), np.cos(facing)]).astype(np.float32)
            writer.add(image, rng.integers(0, 4, (16, 16)).astype(np.uint8), scene=f"s{k}", row=0, col=0)
    store = TileStore(tmp_path / "s")
    for stats in (None, ([0.5, 0.8, 0.5], [0.3, 0.1, 0.1])):
        dls = loaders(store, stats=stats, augment=AugmentTiles())
        assert [v[1:].round(4).tolist() for v in dls.stats] == [[0, 0], [0.7071, 0.7071]]
        x = torch.cat([dls.one_batch()[0] for _ in range(4)]).as_subclass(torch.Tensor) * 0.5**0.5
        torch.testing.assert_close(x[:, 1:].norm(dim=1), torch.ones(len(x), 16, 16).to(x))
        assert x[:, 1].min() < -0.5  # which no tile has
    with pytest.raises(DataError, match="aspect_sin alone"):
        loaders(store, bands=["red", "aspect_sin"], augment=AugmentTiles())
    assert loaders(store, bands=["red", "aspect_sin"]).one_batch()[0].shape[1] == 2
    with pytest.warns(DataNote, match="Flip turns images, but not the directions in aspect_sin and aspect_cos"):
        assert loaders(store, bands=bands, batch_tfms=[Flip()]).notes
    assert loaders(store, bands=["red"], batch_tfms=[Flip()]).notes == []
