import pickle
import random
import threading

import numpy as np
import pytest
import torch
from scenes import BANDS, made_up

from glacier_fastai.bands import CLASSES
from glacier_fastai.core.balance import TARGET, PixelBalance
from glacier_fastai.data.augment import AugmentTiles
from glacier_fastai.data.balanced import IgnoreSurplus
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.tiles import TileStore, TileWriter
from glacier_fastai.data.types import TensorGlacierMask, TensorMultispectral
from glacier_fastai.errors import DataError, DataNote

WANT = np.array(list(TARGET.values()))


def loaders(store, fold=None, bs=4, crop=16, **kwargs):
    return GlacierDataLoaders.from_store(store, fold, bs, crop, **{"folds": 3, "balance": PixelBalance(), **kwargs})


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """12 tiles of 64 px, mostly background, with debris, and lakes of 9 px in a third of them."""
    path = tmp_path_factory.mktemp("big") / "store"
    rng = np.random.default_rng(0)
    with TileWriter(path, BANDS, 64, "uint16", "test") as writer:
        for s in range(12):
            values, classes, valid = made_up(64, 64, seed=s)
            classes[:] = 0
            row, col = rng.integers(0, 44, 2)
            classes[row : row + 20, col : col + 12] = 1
            classes[row : row + 6, col : col + 12] = 2
            if s % 3 == 0:
                classes[row + 2 : row + 5, col + 2 : col + 5] = 3
            writer.add(values, classes, valid=valid, scene=f"s{s}")
    return TileStore(path)


def passes(dls, n=1):
    return [tuple(t.as_subclass(torch.Tensor) for t in b) for _ in range(n) for b in dls.train]


def equal(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def composition(batches):
    pixels = sum(np.bincount(y.numpy().ravel(), minlength=256)[:4] for _, y in batches)
    return pixels / pixels.sum()


# what is drawn


def test_the_same_batches_with_any_number_of_threads_and_any_global_state(big):
    found = []
    for threads in (0, 1, 2, 50):
        random.seed(threads), np.random.seed(threads), torch.manual_seed(threads)
        heavy = AugmentTiles(rotate=30, brightness=0.2, noise=0.1)
        found.append(passes(loaders(big, num_workers=threads, crops_per_tile=3, augment=heavy), 2))
    assert all(equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("balance", [None, PixelBalance(level="pixel")])
def test_global_random_states_are_left_as_they_are(big, balance):
    dls = loaders(big, balance=balance, augment=AugmentTiles(noise=0.1))
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    passes(dls)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("balance", [None, PixelBalance()])
def test_epochs_differ_and_can_be_repeated_and_looking_changes_nothing(big, balance):
    dls = loaders(big, balance=balance)
    peek = [t.as_subclass(torch.Tensor) for t in dls.one_batch()]
    first = passes(dls)
    assert equal([tuple(peek)], first[:1])
    assert dls.train.epoch == 1
    second = passes(dls)
    assert not equal(first, second)
    dls.train.epoch = 0
    assert equal(passes(dls), first)
    assert not equal(passes(loaders(big, balance=balance, seed=1)), first)


def test_ranks_draw_for_themselves_and_share_the_epoch(big, monkeypatch):
    found = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        dls = loaders(big, crops_per_tile=40, bs=8)
        assert len(dls.train) == 12 * 40 // 2 // 8
        found.append(passes(dls))
        expected = dls.train.crops.sampling.expected
        np.testing.assert_allclose(composition(found[-1]), expected, atol=0.03)
    assert not any(torch.equal(a[0], b[0]) for a in found[0] for b in found[1])


def test_no_rank_repeats_another_in_another_epoch(big, monkeypatch):
    drawn, states = {}, []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        dls = loaders(big, crops_per_tile=4)
        for epoch in range(3):
            dls.train.epoch = epoch
            drawn[rank, epoch] = str(dls.train.get_idxs())
            dls.one_batch()
            states.append(dls.train.generator.initial_seed())
    assert len(set(drawn.values())) == len(set(states)) == 6  # nor what augmentation draws


def test_without_balance_ranks_see_every_tile_once(big, monkeypatch):
    seen = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        seen += [i for i, _, _ in loaders(big, balance=None, crops_per_tile=2).train.get_idxs()]
    assert sorted(seen) == sorted([*range(12)] * 2)


def test_every_process_has_a_batch_or_it_is_said(big, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "5")
    dls = loaders(big, bs=8)
    assert (dls.train.bs, len(dls.train), len(passes(dls))) == (2, 1, 1)
    monkeypatch.setenv("WORLD_SIZE", "13")
    with pytest.raises(DataError, match="fewer crops per epoch than processes; raise data.crops_per_tile"):
        loaders(big)


@pytest.mark.parametrize("crops", [5, 12, 20, 31])
@pytest.mark.parametrize("world", [1, 2])
def test_of_epochs_of_any_length_every_tile_comes_as_often_as_any_other(big, monkeypatch, crops, world):
    """Over the whole run, within one."""
    dls, crops = [], crops // world * world
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        dls.append(loaders(big, bs=2, balance=None, epoch_crops=crops))
        assert len(dls[-1].train) == crops // world // 2
    seen = np.zeros(12, int)
    for epoch in range(9):
        for rank, each in enumerate(dls):
            monkeypatch.setenv("RANK", str(rank))
            each.train.epoch = epoch
            seen += np.bincount([tile for tile, _, _ in each.train.get_idxs()], minlength=12)
        assert seen.sum() == (epoch + 1) * crops and np.ptp(seen) <= 1


def test_balanced_epochs_have_the_crops_that_are_asked_for(big):
    assert [len(y) for _, y in passes(loaders(big, bs=4, epoch_crops=20))] == [4] * 5


def test_without_balance_windows_lie_anywhere(big):
    windows = np.array(loaders(big, balance=None, crops_per_tile=400).train.get_idxs())
    assert set(np.bincount(windows[:, 0])) == {400}
    for axis in (1, 2):
        assert set(windows[:, axis]) == set(range(64 - 16 + 1))


@pytest.mark.parametrize("level", ["tile", "crop", "pixel"])
def test_what_is_achieved_is_what_was_expected(big, level):
    dls = loaders(big, bs=8, crops_per_tile=270, balance=PixelBalance(level=level))
    found = composition(passes(dls))
    sampling = dls.train.crops.sampling
    np.testing.assert_allclose(found, sampling.expected, atol=0.02)
    if level == "pixel":
        np.testing.assert_allclose(found, WANT, atol=0.02)
    even = big.class_counts().sum(0) / big.class_counts().sum()
    assert (WANT * np.log(sampling.expected / even)).sum() > 0.1  # nearer to the target than without balance


def test_every_place_of_one_class_is_as_likely_as_any_other(tmp_path):
    values, classes, _ = made_up(40, 40)
    with TileWriter(tmp_path / "s", BANDS, 40, "uint16", "test") as writer:
        writer.add(values, np.zeros_like(classes), scene="s")
    dls = loaders(
        tmp_path / "s", bs=8, crop=20, crops_per_tile=21_000, balance=PixelBalance(target={"background": 1.0})
    )
    assert len(set(np.diff(dls.train.crops.edges))) == 2  # cells of 2 and of 3 places
    for axis in (1, 2):
        places = np.bincount(np.array(dls.train.get_idxs())[:, axis], minlength=21)
        np.testing.assert_allclose(places, 1000, atol=150)


def test_a_class_that_only_validation_tiles_have_is_left_out(tmp_path):
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "test") as writer:
        for k, split in enumerate(["train", "valid", "train"]):
            values, classes, valid = made_up(32, 32, seed=k)
            classes[classes == 3] = 3 if split == "valid" else 0
            writer.add(values, classes, valid=valid, scene=f"s{k}", split=split)
    with pytest.warns(DataNote, match="s: no training tile has lake: the other classes share its part of the balance"):
        dls = loaders(tmp_path / "s", 0)
    assert len(dls.notes) == 1 and dls.train.crops.sampling.expected[3] == 0


def test_crops_come_nearer_to_the_target_than_tiles(big):
    tile, crop = (loaders(big, balance=PixelBalance(level=k)).train.crops.sampling.reachable for k in ("tile", "crop"))
    assert (WANT * np.log(crop / tile)).sum() > 0.1


def test_crops_as_large_as_tiles_need_no_mask(big, monkeypatch):
    crops = loaders(big, crop=64).train.crops
    monkeypatch.setattr(big, "masks", None)
    again = type(crops)(big, range(12), 64, PixelBalance())
    np.testing.assert_array_equal(crops.sampling.probabilities, again.sampling.probabilities)


# what is read


def test_batches_are_the_windows_of_the_store(big):
    dls = loaders(big, bands=["red", "blue"], balance=None)
    windows = dls.train.get_idxs()
    mean, std = (np.array(s)[:, None, None] for s in dls.stats)
    for k, (x, y) in enumerate(dls.train):
        assert (type(x), type(y)) == (TensorMultispectral, TensorGlacierMask)
        assert x.is_contiguous(memory_format=torch.channels_last)
        for j, (tile, row, col) in enumerate(windows[4 * k : 4 * k + 4]):
            at = (slice(row, row + 16), slice(col, col + 16))
            i = dls.train_tiles[tile]
            want = np.nan_to_num((big.read(i, [2, 0], at) - mean) / std)
            np.testing.assert_allclose(x[j], want, atol=1e-4)
            np.testing.assert_array_equal(y[j], big.masks[(i, *at)])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
def test_a_value_of_0_is_no_nodata_while_another_band_has_a_value(tmp_path, dtype):
    values, classes, valid = made_up(32, 32)
    values = np.where(valid, values // 100 + 1, 0)
    values[:2, 4:9] = 0  # a dark place: only three of five bands have a value
    values = values.astype(dtype)
    if dtype.startswith("float"):
        values[:, ~valid] = np.nan
    with TileWriter(tmp_path / "s", BANDS, 32, dtype, "test") as writer:
        for k in range(3):
            writer.add(values, classes, valid=valid, scene=f"s{k}")
    for bands in (BANDS, BANDS[:2], BANDS[1:2]):
        dls = GlacierDataLoaders.from_store(tmp_path / "s", None, 3, bands=bands, balance=None)
        dl = dls.train.new(shuffle=False)
        index = dls.store.band_index(bands)
        mean, std = (np.array(s)[:, None, None] for s in dls.stats)
        (x, _), *rest = list(dl)
        assert not rest
        for k, i in enumerate(dls.train_tiles):
            np.testing.assert_allclose(x[k], np.nan_to_num((dls.store.read(i, index) - mean) / std), atol=1e-4)
        assert (x[0][:, ~torch.from_numpy(valid)] == 0).all()


def test_whole_tiles_are_as_the_store_has_them(big):
    balance, augment = PixelBalance(level="pixel"), AugmentTiles.preset("heavy")
    dls = loaders(big, balance=balance, augment=augment)
    passes(dls)
    whole = dls.train.new(shuffle=False, drop_last=False)
    np.testing.assert_array_equal(torch.cat([y for _, y in whole]), big.masks[dls.train_tiles])
    assert float((passes(dls)[0][1] == 255).float().mean()) > 0.5


def test_validation_covers_every_tile_once_in_order(big):
    dls = loaders(big, 0, bs=3)
    masks = torch.cat([y.as_subclass(torch.Tensor) for _, y in dls.valid])
    np.testing.assert_array_equal(masks, big.masks[dls.valid_tiles])
    assert dls.valid.crops is None
    shuffled = dls.valid.new(shuffle=True)
    assert shuffled.one_batch()[0].shape == (3, 5, 64, 64)
    whole = dls.train.new(shuffle=False, drop_last=False)
    np.testing.assert_array_equal(torch.cat([y for _, y in whole]), big.masks[dls.train_tiles])


def test_other_tiles_and_images_can_be_given(big):
    dls = loaders(big, 0)
    (x,) = dls.test_dl([3, 5]).one_batch()
    mean, std = (np.array(s)[:, None, None] for s in dls.stats)
    np.testing.assert_allclose(x[1], np.nan_to_num((big.read(5) - mean) / std), atol=1e-4)
    (image,) = dls.test_dl([TensorMultispectral(torch.from_numpy(big.read(5)))]).one_batch()
    np.testing.assert_allclose(image[0], x[1], atol=1e-5)
    x, y = dls.test_dl([3, 5], with_labels=True).one_batch()
    np.testing.assert_array_equal(y, big.masks[[3, 5]])


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_positions_may_be_integers_of_numpy(big, kind):
    dls = loaders(big, 0)
    for with_labels in (False, True):
        plain, other = (dls.test_dl([k(3), k(5)], with_labels=with_labels) for k in (int, kind))
        assert other.direct
        assert equal([tuple(plain.one_batch())], [tuple(other.one_batch())])


@pytest.mark.parametrize("position", [-1, 12])
def test_positions_beyond_the_store_are_refused(big, position):
    with pytest.raises(DataError, match=f"store: no tile {position}; positions are 0 to 11"):
        loaders(big, 0).test_dl([0, position])


def test_loaders_are_emptied_and_pickled_as_fastai_does_to_export(big):
    dls = loaders(big, 0, balance=PixelBalance(level="pixel"))
    assert [len(dl) for dl in dls.new_empty()] == [0, 0]
    again = pickle.loads(pickle.dumps(dls.train))
    assert equal([tuple(again.one_batch())], [tuple(dls.one_batch())])


def test_an_abandoned_pass_leaves_no_thread(big):
    dls = loaders(big, bs=1, num_workers=3, crops_per_tile=20)
    before = threading.active_count()
    batches = iter(dls.train)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_an_error_of_a_thread_is_raised(big, monkeypatch):
    dls = loaders(big, num_workers=2)

    def broken(windows):
        raise OSError("the disk is gone")

    monkeypatch.setattr(dls.train, "read", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        passes(dls)


def test_batches_show_and_decode(big):
    dls = loaders(big, balance=PixelBalance(level="pixel"), augment=AugmentTiles())
    dls.show_batch()
    dls.show_batch(unique=True)
    x, y = dls.train.decode(dls.one_batch())
    assert (x.bands, type(y)) == (BANDS, TensorGlacierMask)


# what may be odd


def test_a_store_of_one_tile_batches_of_one_and_more_threads_than_tiles(tmp_path):
    values, classes, valid = made_up(32, 32)
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "test") as writer:
        writer.add(values, classes, valid=valid, scene="s")
    for bs, crops, batches in ((8, 1, 1), (1, 3, 3), (2, 8, 4)):
        dls = loaders(tmp_path / "s", bs=bs, crop=8, crops_per_tile=crops, num_workers=9)
        assert len(passes(dls)) == len(dls.train) == batches
    assert len(passes(loaders(tmp_path / "s", crop=32))) == 1


def test_tiles_without_a_label_cannot_be_balanced(tmp_path):
    values, classes, _ = made_up(32, 32)
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "test") as writer:
        writer.add(values, np.full_like(classes, 255), scene="s")
    with pytest.raises(DataError, match="no labelled tile"):
        loaders(tmp_path / "s")


def test_crops_without_a_label_are_not_drawn(tmp_path):
    values, classes, _ = made_up(64, 64)
    classes[:, 20:] = 255
    with TileWriter(tmp_path / "s", BANDS, 64, "uint16", "test") as writer:
        writer.add(values, classes, scene="s")
    present = [CLASSES[k] for k in np.unique(classes)[:-1]]
    target = {name: 1 / len(present) for name in present}
    dls = loaders(tmp_path / "s", crop=8, crops_per_tile=200, balance=PixelBalance(target=target))
    assert min((y != 255).float().mean() for _, y in passes(dls)) > 0
    assert max(col for _, _, col in dls.train.get_idxs()) < 20


def test_a_target_of_nothing_that_is_there_is_refused_by_the_name_of_the_store(tmp_path):
    values, classes, _ = made_up(32, 32)
    with TileWriter(tmp_path / "s", BANDS, 32, "uint16", "test") as writer:
        writer.add(values, np.where(classes == 3, 0, classes), scene="s")
    with pytest.raises(DataError, match="s: balance.target: the training tiles have none of its classes; change it"):
        loaders(tmp_path / "s", balance=PixelBalance(target={"lake": 1.0}))


# pixels


def test_ice_of_unknown_kind_is_thinned_out_as_glacier_is():
    y = torch.randint(0, 4, (8, 64, 64), generator=torch.Generator().manual_seed(0))
    unknown = y.masked_fill(y == 1, 254)
    found = []
    for target in (y, unknown):
        tfm = IgnoreSurplus([0.1, 0.5, 1.0, 0.0])
        tfm.generator = torch.Generator().manual_seed(1)
        found.append(tfm((torch.zeros(8, 1, 64, 64), target), split_idx=0)[1].as_subclass(torch.Tensor))
    assert torch.equal(found[1].masked_fill(found[1] == 254, 1), found[0])
    assert 0.3 < (found[1] == 254).sum() / (y == 1).sum() < 0.7


def test_surplus_becomes_ignore_in_squares_and_nothing_else_changes():
    y = torch.randint(0, 4, (64, 64, 64))
    y[:, :4] = 255
    tfm = IgnoreSurplus([0.1, 0.5, 1.0, 0.0])
    tfm.generator = torch.Generator().manual_seed(0)
    x = TensorMultispectral(torch.zeros(64, 2, 64, 64))
    new_x, new_y = tfm((x, TensorGlacierMask(y)), split_idx=0)
    assert new_x is x
    kept = new_y.as_subclass(torch.Tensor)
    assert ((kept == y) | (kept == 255)).all()
    shares = [float((kept == k).sum() / (y == k).sum()) for k in range(4)]
    np.testing.assert_allclose(shares, [0.1, 0.5, 1, 0], atol=0.04)
    square = kept[:, 16:32, 16:32]
    for k in (0, 1):  # a square keeps all of a class or nothing
        of_class = [(s[o == k] == k) for s, o in zip(square, y[:, 16:32, 16:32], strict=True)]
        assert all(v.all() or not v.any() for v in of_class)
    assert all((s == 1).any() for s in square if (s == 0).any())  # where background stays, glacier stays
    assert tfm((x, TensorGlacierMask(y)), split_idx=1)[1].eq(y).all()
    assert IgnoreSurplus.order > AugmentTiles.order  # what augmentation moves out of sight is not counted


# going on, and sharing


@pytest.mark.parametrize("threads", [0, 2])
def test_a_pass_can_begin_at_a_batch(big, threads):
    dls = loaders(big, num_workers=threads, augment=AugmentTiles(rotate=20))
    whole = passes(dls, 2)
    n = len(dls.train)
    dls.train.epoch, dls.train.start = 0, 2
    assert equal(passes(dls), whole[2:n])
    assert (dls.train.epoch, dls.train.start) == (1, 0)
    assert equal(passes(dls), whole[n:])
    dls.train.epoch, dls.train.start = 0, n  # all that is left is nothing
    assert passes(dls) == []
    assert dls.train.epoch == 1


def test_batches_name_their_tiles(big):
    train = loaders(big).train
    names = big.table["id"].tolist()
    list(train)
    for k in range(len(train)):
        wanted = {names[train.tiles[item]] for item, _, _ in train.windows[k * 4 : k * 4 + 4]}
        named = train.tile_names(k)
        assert set(named) == wanted
        assert len(named) == len(wanted)


@pytest.mark.parametrize("shares", [2, 3, 7])
def test_shares_of_whole_tiles_are_all_batches_once(big, shares):
    valid = loaders(big, 0, bs=3, folds=2, spatial=False).valid
    whole = [x.as_subclass(torch.Tensor) for x, _ in valid]
    dealt = []
    for rank in range(shares):
        valid.share = (rank, shares)
        mine = [x.as_subclass(torch.Tensor) for x, _ in valid]
        assert len(mine) == len(valid)
        dealt.append(mine)
    assert sum(map(len, dealt)) == len(whole)
    for k, x in enumerate(whole):
        assert torch.equal(dealt[k % shares][k // shares], x)
