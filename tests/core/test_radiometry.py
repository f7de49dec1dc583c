import math

import numpy as np
import pytest
import torch
from batches import HEAVY, STRONG, batch, seeded
from scipy import ndimage
from torch import Tensor

from glacier_fastai.core.radiometry import gaussian_blur_, radiometry_
from glacier_fastai.core.warp import has_data, random_coordinates, random_dihedral, warp


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_arrays_of_any_layout_give_the_same(dtype):
    x, y = batch(8, 5, (70, 70))
    y = y.to(dtype)
    at = random_coordinates(8, (70, 70), flip=True, **STRONG, generator=seeded(3))
    results = []
    for how in (Tensor.contiguous, lambda t: t.mT.contiguous().mT):
        ox, oy = warp(how(x), how(y), at)
        assert oy.dtype == dtype
        results.append((ox, oy, radiometry_(how(ox.clone()), **HEAVY, generator=seeded(4))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.0, 3.0])
def test_blur_of_whole_images_is_scipy_s(sigma):
    x, _ = batch(2, 2, (30, 7), holes=0)
    got = gaussian_blur_(x.clone(), torch.tensor([sigma, 0.7]))
    for b, s in enumerate([sigma, 0.7]):
        ones = ndimage.gaussian_filter(np.ones((30, 7)), s, mode="constant", truncate=3) if s else 1
        for c in range(2):
            plane = x[b, c].double().numpy()
            want = ndimage.gaussian_filter(plane, s, mode="constant", truncate=3) / ones if s else plane
            np.testing.assert_allclose(got[b, c], want, atol=1e-5)


def test_blur_takes_neighbours_with_data_only():
    x, _ = batch(3, 2, (15, 16), holes=0.4)
    got, sigma = gaussian_blur_(x.clone(), torch.full((3,), 1.2)), 1.2
    data = has_data(x)[:, 0]
    for b in range(3):
        share = ndimage.gaussian_filter(data[b].double().numpy(), sigma, mode="constant", truncate=3)
        for c in range(2):
            total = ndimage.gaussian_filter(x[b, c].double().numpy(), sigma, mode="constant", truncate=3)
            np.testing.assert_allclose(got[b, c], np.where(data[b], total / share, 0), atol=1e-5)
    flat = torch.where(data[:, None], 5.0, 0.0).expand(3, 2, -1, -1).clone()
    torch.testing.assert_close(gaussian_blur_(flat.clone(), torch.full((3,), 2.0)), flat)


@pytest.mark.parametrize("kind", [*HEAVY, "all"])
@pytest.mark.parametrize("bands", [1, 4])
def test_radiometry_leaves_nodata_at_zero_and_gives_data_to_none(kind, bands):
    x, _ = batch(5, bands)
    x[3] = 0  # a sample without any data
    x[4] = x[4, :, :1, :1] * has_data(x)[4]  # and one without contrast
    out = radiometry_(x.clone(), **(HEAVY if kind == "all" else {kind: HEAVY[kind]}), generator=seeded(1))
    assert out.isfinite().all()
    assert torch.equal((out == 0).all(1), (x == 0).all(1))


def test_what_has_no_data_is_in_no_statistic():
    x, _ = batch(2, 3, (20, 20), holes=0)
    x += 10  # nodata, 0, is far out of the range
    holed = x.clone()
    holed[:, :, :, 10:] = 0
    for kind in ("gamma", "brightness", "contrast"):
        out = radiometry_(holed.clone(), **{kind: 0.3}, generator=seeded())
        alone = radiometry_(holed[..., :10].clone(), **{kind: 0.3}, generator=seeded())
        torch.testing.assert_close(out[..., :10], alone)


def test_gamma_keeps_range_and_order_and_bends_by_a_power():
    x, _ = batch(6, 3, (30, 30))
    out, data = radiometry_(x.clone(), gamma=0.5, generator=seeded()), has_data(x)[:, 0]
    exponents = []
    for b in range(6):
        for c in range(3):
            old, new = x[b, c][data[b]], out[b, c][data[b]]
            torch.testing.assert_close(new.aminmax(), old.aminmax(), atol=1e-5, rtol=0)
            assert (new[old.argsort()].diff() >= -1e-5).all()
            t, u = ((v - old.min()) / (old.max() - old.min()) for v in (old, new))
            middle = (t > 0.2) & (t < 0.8)
            exponent = u[middle].log() / t[middle].log()
            assert exponent.std() < 1e-3
            exponents.append(exponent.mean().item())
    assert len({round(e, 5) for e in exponents}) == 18  # each band of each sample has its own
    assert 1 / 1.5 <= min(exponents) < 0.85 and 1.15 < max(exponents) <= 1.5


def test_brightness_and_contrast_are_an_offset_and_a_gain_per_band():
    x, _ = batch(200, 2, (4, 4), holes=0)
    out = radiometry_(x.clone(), brightness=0.3, generator=seeded())
    offset = (out - x).flatten(2)
    torch.testing.assert_close(offset, offset[..., :1].expand_as(offset), atol=1e-5, rtol=0)
    assert -0.3 - 1e-5 <= offset.min() < -0.28 and 0.28 < offset.max() <= 0.3 + 1e-5
    assert (offset[:, 0, 0] != offset[:, 1, 0]).all()
    gain = (radiometry_(x.clone(), contrast=0.4, generator=seeded()) / x).flatten(2)
    torch.testing.assert_close(gain, gain[..., :1].expand_as(gain), atol=1e-4, rtol=0)
    assert 0.6 - 1e-4 <= gain.min() < 0.62 and 1.38 < gain.max() <= 1.4 + 1e-4


def test_gamma_keeps_what_contrast_and_brightness_do():
    x, _ = batch(6, 3, (20, 20))
    plain, with_gamma = (
        radiometry_(x.clone(), contrast=0.4, brightness=0.3, gamma=g, generator=seeded()) for g in (0, 1e-7)
    )
    torch.testing.assert_close(with_gamma, plain, atol=1e-4, rtol=0)


def test_noise_is_gaussian_with_a_level_per_sample():
    x, _ = batch(40, 2, (64, 64), holes=0)
    noise = (radiometry_(x.clone(), noise=0.5, generator=seeded()) - x).flatten(1)
    level = noise.std(1)
    assert level.min() < 0.05 and 0.4 < level.max() < 0.52
    z = noise / level[:, None]
    assert z.mean().abs() < 0.01
    assert abs((z.abs() < 1).float().mean() - math.erf(1 / math.sqrt(2))) < 0.01
    assert abs((z.abs() < 2).float().mean() - math.erf(math.sqrt(2))) < 0.005
    assert 2.9 < (z**4).mean() < 3.1
    for apart in (4096, 1, 2, 3, 4):  # bands and neighbours have their own
        assert abs(np.corrcoef(z[:, :-apart].flatten(), z[:, apart:].flatten())[0, 1]) < 0.01
    assert not torch.equal(*(radiometry_(x.clone(), noise=0.5, generator=seeded(s)) for s in (1, 2)))


def test_the_blur_s_deviation_is_each_sample_s_own():
    x = torch.zeros(300, 1, 15, 15) + 1e-9
    x[:, :, 7, 7] = 1
    peak = radiometry_(x, blur=1.0, generator=seeded())[:, 0, 7, 7]
    assert peak.max() > 0.99 and 0.15 < peak.min() < 0.17  # 1 / (2 pi), by a kernel that reaches 3 deviations


def test_dropout_takes_one_band_of_its_share_of_samples():
    x = torch.ones(4000, 3, 2, 2)
    gone = (radiometry_(x, dropout=0.25, noise=0.1, brightness=0.1, generator=seeded()) == 0).all((2, 3))
    assert gone.sum(1).max() == 1
    assert abs(gone.any(1).float().mean() - 0.25) < 0.03
    assert (gone.float().mean(0) - 0.25 / 3).abs().max() < 0.02
    assert (radiometry_(torch.ones(50, 1, 2, 2), dropout=1.0, generator=seeded()) == 1).all()


def test_a_pixel_left_with_nothing_still_has_data():
    x = torch.zeros(50, 2, 2, 2)
    x[:, 0] = 1  # the other band is at its mean
    out = radiometry_(x, dropout=1.0, generator=seeded())
    assert has_data(out).all()
    assert out.unique().numel() == 3  # 0, 1 and next to nothing
    assert 0 < out[out > 0].min() < 1e-6


def everything(generator):
    x, y = batch(3, 3, (40, 40))
    ox, oy = warp(x, y, random_coordinates(3, (40, 40), flip=True, **STRONG, generator=generator))
    return radiometry_(ox, **HEAVY, generator=generator), oy, *random_dihedral(x, y, generator)


def test_the_generator_decides_and_torch_s_own_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = everything(seeded(7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = everything(seeded(7)), everything(seeded(8))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_without_a_generator_torch_s_own_decides():
    torch.manual_seed(1)
    first, second = everything(None), everything(None)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, everything(None), strict=True))
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_work_too(dtype):
    x, y = batch(2, 3, (32, 32))
    at = random_coordinates(2, (32, 32), flip=True, **STRONG, generator=seeded())
    want_x, want_y = warp(x, y, at)
    ox, oy = warp(x.to(dtype), y, at)
    assert ox.dtype == dtype
    assert torch.equal(oy, want_y)
    torch.testing.assert_close(ox.float(), want_x, atol=1e-2 if dtype == torch.float16 else 1e-5, rtol=0)
    out = radiometry_(ox.clone(), **HEAVY, generator=seeded())
    assert out.isfinite().all()
    assert torch.equal(has_data(out), has_data(ox))
