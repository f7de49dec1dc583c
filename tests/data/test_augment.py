import inspect
import pickle

import pytest
import torch

from glacier_fastai.bands import LOCATION
from glacier_fastai.core.dihedral import VIEWS, view
from glacier_fastai.core.settings import Augmentation
from glacier_fastai.data.augment import AugmentTiles, UnknownPlace
from glacier_fastai.data.types import TensorGlacierMask, TensorMultispectral
from glacier_fastai.errors import DataError, RecipeError
from glacier_fastai.recipe import load_recipe

STRONG = {"rotate": 90, "scale": 0.3, "shift": 0.2, "elastic": 4, "grid": 0.3}


def batch(n=8, c=3, size=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, size, size, generator=g)
    y = torch.randint(0, 4, (n, size, size), generator=g)
    hole = torch.rand(n, size, size, generator=g) < 0.1
    y[hole] = 255
    return x * ~hole[:, None], y


def augmented(x, y, tfm=None, seed=0, **kwargs):
    tfm = tfm or AugmentTiles(**kwargs)
    tfm.generator = torch.Generator().manual_seed(seed)
    return [t.as_subclass(torch.Tensor) for t in tfm((x, y), split_idx=0)]


def test_ice_of_unknown_kind_goes_where_its_pixels_go():
    x, y = batch()
    unknown = y.masked_fill(y == 1, 254)
    plain, other = (augmented(x, target, flip=True, brightness=0.2, **STRONG)[1] for target in (y, unknown))
    assert torch.equal(other.masked_fill(other == 254, 1), plain)
    assert set(other.unique().tolist()) == {0, 2, 3, 254, 255}


@pytest.mark.parametrize("kind", [*STRONG, "all"])
def test_image_and_mask_stay_aligned_to_half_a_pixel(kind):
    rows, cols = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    board = ((rows // 8 + cols // 8) % 2 + 1).long()  # a checkerboard of classes 1 and 2
    x = torch.stack([rows + 1, cols + 1])[None].repeat(16, 1, 1, 1)  # says where each pixel came from
    asked = STRONG if kind == "all" else {kind: STRONG[kind]}
    ox, oy = augmented(x, board.repeat(16, 1, 1), flip=True, **asked)
    assert set(oy.unique().tolist()) <= {1, 2, 255}
    row, col = ox.unbind(1)
    assert torch.equal((row == 0) & (col == 0), oy == 255)
    row, col = row - 1, col - 1
    between = ((row % 1 - 0.5).abs() < 1e-2) | ((col % 1 - 0.5).abs() < 1e-2)  # either neighbour is right
    sure = (oy != 255) & ~between
    assert sure.float().mean() > 0.3
    assert torch.equal(oy[sure], board[row[sure].round().long(), col[sure].round().long()])


@pytest.mark.parametrize("kind", [*STRONG, "all"])
def test_no_label_appears_that_was_not_there_and_one_pixel_classes_stay_whole(kind):
    y = torch.zeros(32, 33, 33, dtype=torch.int64)
    y[:, 16, 16] = 3
    x = torch.where(y == 3, 9.0, 1.0)[:, None]
    ox, oy = augmented(x, y, **(STRONG if kind == "all" else {kind: STRONG[kind]}))
    assert set(oy.unique().tolist()) <= {0, 3, 255}
    assert (oy == 3).any()
    # the share of the pixel in a mixture is at least a quarter where it is the nearest
    assert (ox[:, 0][oy == 3] >= 1 + 8 / 4 - 1e-4).all()
    assert (ox[:, 0][oy == 0] <= 1 + 8 / 2 + 1e-4).all()


def test_a_sun_in_the_north_alone_mirrors_east_and_west():
    x, y = batch(32)
    ox, oy = augmented(x, y, flip=False, sun=0)
    mirrored = [bool(torch.equal(a, b.flip(-1))) for a, b in zip(oy, y, strict=True)]
    assert 4 < sum(mirrored) < 28
    for a, b, c, d, turned in zip(ox, x, oy, y, mirrored, strict=True):
        torch.testing.assert_close(a, b.flip(-1) if turned else b, atol=1e-4, rtol=0)
        assert torch.equal(c, d.flip(-1) if turned else d)


def test_flips_alone_are_exact_permutations():
    x, y = batch(64)
    ox, oy = augmented(x, y)
    seen = set()
    for i in range(64):
        (k,) = [k for k in VIEWS if torch.equal(oy[i], view(y[i], k))]
        assert torch.equal(ox[i], view(x[i], k))
        seen.add(k)
    assert seen == set(VIEWS)


def test_with_nothing_asked_for_nothing_changes():
    x, y = batch()
    ox, oy = augmented(x, y, flip=False)
    assert torch.equal(ox, x)
    assert torch.equal(oy, y)


@pytest.mark.parametrize("tfm", ["light", "heavy", None])
def test_the_batch_given_is_not_changed(tfm):
    x, y = batch()
    kept = x.clone(), y.clone()
    tfm = AugmentTiles.preset(tfm) if tfm else AugmentTiles(flip=False, brightness=1, blur=1, noise=1, gamma=0.5)
    ox, _ = augmented(x, y, tfm)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert not torch.equal(ox, x)


def test_outside_is_ignored_and_without_data():
    x, y = torch.ones(4, 2, 32, 32), torch.ones(4, 32, 32, dtype=torch.int64)
    ox, oy = augmented(x, y, flip=False, shift=0.4, brightness=1.0)
    assert 0 < (oy == 255).float().mean() < 1
    assert torch.equal((ox == 0).all(1), oy == 255)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("bands", [1, 7])
@pytest.mark.parametrize("name", ["light", "heavy"])
def test_any_number_of_bands_and_samples_and_no_data_where_there_was_none(name, bands, n):
    x, y = batch(n, bands)
    ox, oy = augmented(x, y, AugmentTiles.preset(name))
    assert ox.shape == x.shape
    assert oy.shape == y.shape
    assert ox.isfinite().all()
    assert torch.equal((ox == 0).all(1), oy == 255)  # in this batch, no data is where no label is
    assert (oy != 255).float().mean() > 0.3


def test_types_are_kept_and_validation_is_left_alone():
    x, y = (t(v) for t, v in zip((TensorMultispectral, TensorGlacierMask), batch(), strict=True))
    heavy = AugmentTiles.preset("heavy")
    ox, oy = heavy((x, y), split_idx=0)
    assert (type(ox), type(oy), ox.dtype, oy.dtype) == (
        TensorMultispectral,
        TensorGlacierMask,
        torch.float32,
        torch.int64,
    )
    vx, vy = heavy((x, y), split_idx=1)
    assert vx is x
    assert vy is y


def test_plain_tensors_are_taken_too():
    ox, oy = AugmentTiles.preset("heavy")(batch(), split_idx=0)
    assert (type(ox), type(oy)) == (TensorMultispectral, TensorGlacierMask)


@pytest.mark.parametrize("name", ["light", "heavy"])
def test_the_generator_decides_and_without_one_torch_s_own(name):
    x, y = batch()
    tfm = AugmentTiles.preset(name)
    torch.manual_seed(1)
    first = augmented(x, y, tfm, seed=7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert all(map(torch.equal, first, augmented(x, y, tfm, seed=7)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[0], augmented(x, y, tfm, seed=8)[0])
    tfm.generator = None
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(tfm((x, y), split_idx=0)[0].as_subclass(torch.Tensor))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["light", "heavy"])
def test_a_preset_is_what_a_recipe_has_by_that_name(name):
    x, y = batch()
    fields = load_recipe("demo", [f"augment={name}"]).augment.model_dump()
    want = augmented(x, y, AugmentTiles(**fields))
    assert all(map(torch.equal, want, augmented(x, y, AugmentTiles.preset(name))))


def test_an_unknown_preset_is_refused():
    with pytest.raises(RecipeError, match="unknown name 'hevy': use light, heavy.*did you mean 'heavy'"):
        AugmentTiles.preset("hevy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotat": 45}, "rotat: unknown key; allowed are flip, sun, rotate, .*did you mean 'rotate'"),
        ({"rotate": 200}, "rotate: input should be less than or equal to 180, not 200"),
        ({"flip": "yes"}, 'flip: input should be a valid boolean, not "yes"'),
        ({"shift": -0.1, "blur": 99}, "shift: input .*; blur: input should be less than or equal to 10"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(settings, message):
    with pytest.raises(RecipeError, match=message) as e:
        AugmentTiles(**settings)
    assert "\n" not in str(e.value)


def test_the_signature_and_help_name_every_setting():
    named = inspect.signature(AugmentTiles).parameters
    assert {*named} == {*Augmentation.model_fields}
    assert (named["flip"].default, named["rotate"].default) == (True, 0.0)
    assert "rotate: largest rotation, degrees (default 0.0)" in AugmentTiles.__doc__


def test_it_can_be_exported():
    x, y = batch()
    heavy = AugmentTiles.preset("heavy")
    again = pickle.loads(pickle.dumps(heavy))
    assert all(map(torch.equal, augmented(x, y, heavy), augmented(x, y, again)))


def test_aspect_turns_with_the_image_once_the_bands_are_known():
    x, y = batch(8, 4)
    plain, told = AugmentTiles(), AugmentTiles().for_bands(["red", "aspect_cos", "nir", "aspect_sin"])
    (ox, _), (tx, _) = augmented(x, y, plain), augmented(x, y, told)
    assert torch.equal(ox[:, [0, 2]], tx[:, [0, 2]])
    torch.testing.assert_close(ox[:, [1, 3]].norm(dim=1), tx[:, [1, 3]].norm(dim=1))
    assert not torch.equal(ox, tx)
    assert plain.aspect is None
    assert pickle.loads(pickle.dumps(told)).aspect == (3, 1)
    with pytest.raises(DataError, match="aspect_cos alone cannot be turned with the image: name aspect_sin and aspect"):
        AugmentTiles().for_bands(["red", "aspect_cos"])


def test_a_place_has_no_radiometry_and_moves_with_its_pixels():
    x, y = batch(c=4)
    bands = ("red", *LOCATION, "nir")
    has = (x != 0).any(1)
    x[:, 1], x[:, 2] = 0.5 * has, 1.5 * has
    heavy = AugmentTiles.preset("heavy").for_bands(bands)
    found, labels = augmented(x.clone(), y, heavy)
    seen = (found != 0).any(1)
    assert seen.any() and not seen.all()
    torch.testing.assert_close(found[:, 1], 0.5 * seen)
    torch.testing.assert_close(found[:, 2], 1.5 * seen)
    assert heavy.location == (1, 2) and AugmentTiles().for_bands(["red"]).location == ()


def test_a_tenth_of_the_places_is_unknown_by_the_batch_s_own_draw():
    forget = UnknownPlace(("red", *LOCATION))

    def after(seed, split=0):
        forget.generator = torch.Generator().manual_seed(seed)
        return forget((TensorMultispectral(torch.ones(1000, 3, 2, 2)),), split_idx=split)[0].as_subclass(torch.Tensor)

    x = after(0)
    assert (x[:, 0] == 1).all()
    assert torch.equal(x[:, 1], x[:, 2]) and ((x[:, 1] == 0).all((1, 2)) | (x[:, 1] == 1).all((1, 2))).all()
    assert 0.07 < (x[:, 1] == 0).float().mean() < 0.13
    assert torch.equal(x, after(0)) and not torch.equal(x, after(1))
    assert (after(0, split=1) == 1).all()
