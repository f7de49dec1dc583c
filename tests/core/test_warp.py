import math

import numpy as np
import pytest
import torch
from batches import STRONG, batch, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from glacier_fastai.core.dihedral import VIEWS, view
from glacier_fastai.core.terrain import aspect
from glacier_fastai.core.warp import (
    coordinates,
    elastic_nodes,
    has_data,
    random_coordinates,
    random_dihedral,
    view_matrices,
    warp,
)

EYE = torch.eye(2)[None]


def slowly(x, y, at):
    """What `warp` promises, pixel by pixel in float64."""
    (n, _, h, w), at = x.shape, at.double()
    data = (x != 0).any(1)
    image, label = torch.zeros(x.shape, dtype=torch.float64), torch.full_like(y, 255)
    for b in range(n):
        for r in range(h):
            for k in range(w):
                col, row = (float(v) for v in at[b, :, r, k])
                i, j = math.floor(row + 0.5), math.floor(col + 0.5)
                if not (0 <= i < h and 0 <= j < w):
                    continue
                label[b, r, k] = y[b, i, j]
                if not data[b, i, j]:
                    continue
                total = 0.0
                for p in (math.floor(row), math.floor(row) + 1):
                    for q in (math.floor(col), math.floor(col) + 1):
                        weight = (1 - abs(row - p)) * (1 - abs(col - q))
                        if 0 <= p < h and 0 <= q < w and data[b, p, q]:
                            image[b, :, r, k] += weight * x[b, :, p, q].double()
                            total += weight
                image[b, :, r, k] /= total
    return image, label


@given(k=st.integers(0, 7), h=st.integers(1, 40), w=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_map_of_a_view_alone_is_that_view_exactly(k, h, w, seed):
    w = h if k & 4 else w
    x, y = batch(2, 2, (h, w), seed=seed)
    ox, oy = warp(x, y, coordinates((h, w), view_matrices(torch.tensor([k, k]))))
    assert torch.equal(ox, view(x, k))
    assert torch.equal(oy, view(y, k))


@given(first=st.sampled_from(VIEWS), second=st.sampled_from(VIEWS), size=st.integers(1, 20))
@settings(max_examples=64, deadline=None)
def test_views_compose_as_their_matrices_do(first, second, size):
    x, y = batch(1, 2, (size, size))
    both = view_matrices(torch.tensor([first])) @ view_matrices(torch.tensor([second]))
    ox, oy = warp(x, y, coordinates((size, size), both))
    assert torch.equal(ox, view(view(x, first), second))
    assert torch.equal(oy, view(view(y, first), second))


@pytest.mark.parametrize("size", [(24, 20), (511, 37)])
def test_the_identity_changes_nothing_at_all(size):
    x, y = batch(size=size)
    nodes = torch.zeros(4, 2, *elastic_nodes(size))
    cells = torch.ones(4, 4), torch.ones(4, 4)
    at = coordinates(size, EYE.expand(4, 2, 2), torch.zeros(4, 2), nodes=nodes)
    ox, oy = warp(x, y, at)
    assert torch.equal(ox, x)
    assert torch.equal(oy, y)
    torch.testing.assert_close(coordinates(size, EYE.expand(4, 2, 2), cells=cells), at, atol=1e-4, rtol=0)


@pytest.mark.parametrize("holes", [0, 0.1, 0.6])
@pytest.mark.parametrize("size", [(24, 20), (17, 33)])
def test_warp_is_what_it_promises_pixel_by_pixel(size, holes):
    x, y = batch(size=size, holes=holes)
    at = random_coordinates(4, size, flip=True, **STRONG, generator=seeded(1))
    ox, oy = warp(x, y, at)
    want_x, want_y = slowly(x, y, at)
    assert 0.1 < (want_y == 255).float().mean() < 0.9
    assert torch.equal(oy, want_y)
    torch.testing.assert_close(ox.double(), want_x, atol=1e-5, rtol=0)


def test_warp_is_bilinear_as_scipy_has_it():
    x, y = batch(2, 2, holes=0)
    at = random_coordinates(2, (24, 20), rotate=30, elastic=2, generator=seeded(2))
    ox, oy = warp(x, y, at)
    inner = ((at >= 0) & (at <= torch.tensor([19, 23]).view(2, 1, 1))).all(1)
    for b in range(2):
        rows_cols = at[b].flip(0).double().numpy()
        for c in range(2):
            want = ndimage.map_coordinates(x[b, c].double().numpy(), rows_cols, order=1)
            np.testing.assert_allclose(ox[b, c][inner[b]], want[inner[b].numpy()], atol=1e-5)
        inside = (at[b].round() >= 0).all(0) & (at[b, 0].round() <= 19) & (at[b, 1].round() <= 23)
        want = ndimage.map_coordinates(y[b].numpy(), rows_cols, order=0, mode="nearest")
        assert torch.equal(oy[b], torch.where(inside, torch.from_numpy(want), 255))


def test_what_is_outside_is_zero_and_ignored():
    x, y = torch.ones(1, 2, 10, 10), torch.ones(1, 10, 10, dtype=torch.int64)
    ox, oy = warp(x, y, coordinates((10, 10), EYE, torch.tensor([[3.0, -2.0]])))
    inside = torch.zeros(10, 10, dtype=torch.bool)
    inside[2:, :7] = True
    assert torch.equal(oy[0] == 255, ~inside)
    assert torch.equal((ox[0] == 1).all(0), inside)
    assert torch.equal((ox[0] == 0).all(0), ~inside)


def test_rims_of_nodata_and_of_the_image_keep_whole_values():
    x, y = torch.full((1, 2, 12, 12), 7.0), torch.ones(1, 12, 12, dtype=torch.int64)
    x[:, :, 4:7, 5:8], y[:, 4:7, 5:8] = 0, 255
    ox, oy = warp(x, y, coordinates((12, 12), EYE, torch.tensor([[0.3, -0.4]])))
    assert ((ox == 0) | ((ox - 7).abs() < 1e-5)).all()  # neither 0 of nodata nor of outside was mixed in
    assert torch.equal((ox == 0).all(1), oy == 255)
    assert (oy == 255).sum() == 9  # to the nearest pixel, holes neither grow nor shrink


def test_a_pixel_with_data_but_no_label_keeps_its_image():
    x, y = batch(holes=0)
    y[:, 5:15, 5:15] = 255
    ox, oy = warp(x, y, coordinates((24, 20), EYE.expand(4, 2, 2), torch.full((4, 2), 0.2)))
    assert (oy[:, 5:15, 5:15] == 255).all()
    assert has_data(ox).all()


def test_a_pixel_whose_neighbours_cancel_out_still_has_data():
    x = torch.tensor([1.0, -1.0]).repeat(4)[None, None, None].expand(1, 1, 8, 8).contiguous()
    ox, _ = warp(x, torch.zeros(1, 8, 8, dtype=torch.uint8), coordinates((8, 8), EYE, torch.tensor([[0.5, 0.0]])))
    assert torch.equal(has_data(ox)[0, 0], torch.arange(8).expand(8, 8) < 7)
    assert ox.abs()[..., :7].max() < 1e-6


def test_labels_under_nodata_and_values_of_other_samples_change_nothing():
    x, y = batch(2)
    at = random_coordinates(2, (24, 20), **STRONG, generator=seeded(5))
    ox, oy = warp(x, y, at)
    x2 = x.clone()
    x2[1] = 99
    px, py = warp(x2, torch.where(y == 255, 3, y), at)
    assert torch.equal(px[0], ox[0])
    assert torch.equal(py[0][oy[0] != 255], oy[0][oy[0] != 255])


def test_a_rotation_a_shift_and_a_scale_go_where_they_should():
    angle = math.radians(30)
    matrix = 2 * torch.tensor([[[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]])
    at = coordinates((11, 21), matrix, torch.tensor([[3.0, -1.0]]))
    assert at.shape == (1, 2, 11, 21)
    np.testing.assert_allclose(at[0, :, 5, 10], [10 + 3, 5 - 1], atol=1e-5)  # the centre
    np.testing.assert_allclose(at[0, :, 5, 12], [13 + 4 * math.cos(angle), 4 + 4 * math.sin(angle)], atol=1e-5)
    np.testing.assert_allclose(at[0, :, 8, 10], [13 - 6 * math.sin(angle), 4 + 6 * math.cos(angle)], atol=1e-5)


@pytest.mark.parametrize("azimuth", [0, 135, 150])
def test_a_mirror_about_the_sun_keeps_where_the_light_comes_from(azimuth):
    at = random_coordinates(64, (33, 33), sun=azimuth, generator=seeded(0)) - 16
    toward = torch.tensor([math.sin(math.radians(azimuth)), -math.cos(math.radians(azimuth))])
    there = coordinates((33, 33), EYE) - 16
    along, across = (torch.einsum("c,bchw->bhw", d, at) for d in (toward, toward[[1, 0]] * torch.tensor([1, -1])))
    assert torch.allclose(along, torch.einsum("c,bchw->bhw", toward, there).expand(64, -1, -1), atol=1e-4)
    mirrored = torch.tensor([not torch.allclose(a, there[0], atol=1e-4) for a in at])
    assert 16 < mirrored.sum() < 48
    moved = torch.einsum("c,bchw->bhw", toward[[1, 0]] * torch.tensor([1, -1]), there)
    assert torch.allclose(across[mirrored], -moved.expand(64, -1, -1)[mirrored], atol=1e-4)


def test_a_distorted_grid_bends_at_its_lines_and_fills_the_image():
    cells = torch.tensor([[1.0, 2, 1, 1]]), torch.tensor([[1.0, 1, 1, 1]])
    at = coordinates((9, 21), EYE, cells=cells)[0]
    want = np.interp(np.arange(21), [0, 5, 10, 15, 20], [0, 4, 12, 16, 20])
    np.testing.assert_allclose(at[0], np.broadcast_to(want, (9, 21)), atol=1e-5)
    np.testing.assert_allclose(at[1], np.broadcast_to(np.arange(9)[:, None], (9, 21)), atol=1e-5)


def test_the_elastic_field_goes_through_its_nodes_smoothly_and_with_the_view():
    size = (65, 80)
    assert elastic_nodes(size) == (3, 4)
    nodes = 4 * torch.randn(1, 2, 3, 4, generator=seeded())
    still = coordinates(size, EYE)
    moved = coordinates(size, EYE, nodes=nodes) - still
    torch.testing.assert_close(moved[:, :, ::32, ::32], nodes[..., :3], atol=1e-4, rtol=0)
    assert (moved.diff(dim=2).abs().max() < 1.5) and (moved.diff(dim=3).abs().max() < 1.5)
    turned = view_matrices(torch.tensor([3]))
    torch.testing.assert_close(coordinates(size, turned, nodes=nodes) - coordinates(size, turned), -moved)


def test_draws_stay_within_what_was_asked_for():
    n, size = 2000, (33, 65)
    at = random_coordinates(n, size, rotate=30, scale=0.25, shift=0.1, generator=seeded())
    right, down = at[:, :, 16, 33] - at[:, :, 16, 32], at[:, :, 17, 32] - at[:, :, 16, 32]
    zoom = right.norm(dim=1)
    assert 0.8 - 1e-4 <= zoom.min() < 0.81 and 1.24 < zoom.max() <= 1.25 + 1e-4
    angle = torch.atan2(right[:, 1], right[:, 0]).rad2deg()
    assert -30 - 1e-2 <= angle.min() < -29 and 29 < angle.max() <= 30 + 1e-2
    torch.testing.assert_close((right * down).sum(1), torch.zeros(n), atol=1e-4, rtol=0)
    centre = at[:, :, 16, 32] - torch.tensor([32.0, 16.0])
    assert (centre.abs().amax(0) <= torch.tensor([6.5, 3.3]) + 1e-3).all()
    assert (centre.abs().amax(0) > torch.tensor([6.3, 3.2])).all()


def test_dihedral_moves_image_and_mask_together_and_reaches_all_views():
    y = torch.arange(16).reshape(1, 4, 4).repeat(200, 1, 1)
    ox, oy = random_dihedral(y[:, None].float(), y, seeded())
    assert torch.equal(ox[:, 0], oy.float())
    grid = np.arange(16).reshape(4, 4)
    want = {tuple(np.rot90(g, k).ravel().tolist()) for g in (grid, grid.T) for k in range(4)}
    assert {tuple(v.flatten().tolist()) for v in oy} == want


def test_an_oblong_image_is_flipped_only():
    y = torch.arange(6).reshape(1, 2, 3).repeat(100, 1, 1)
    grid = np.arange(6).reshape(2, 3)
    want = {tuple(g[::a, ::b].ravel().tolist()) for g in [grid] for a in (1, -1) for b in (1, -1)}
    for ox, oy in (
        random_dihedral(y[:, None].float(), y, seeded()),
        warp(y[:, None] + 1.0, y, random_coordinates(100, (2, 3), flip=True, generator=seeded())),
    ):
        assert {tuple(v.flatten().tolist()) for v in oy} == want
        assert torch.equal(ox[:, 0] - ox[0, 0].min(), oy.float())


@pytest.mark.parametrize(
    "how", [{"flip": True}, {"rotate": 180}, {"sun": 150}, {"rotate": 90, "scale": 0.3, "elastic": 4, "grid": 0.3}]
)
def test_in_a_warped_image_the_ground_faces_where_it_falls_in_it(how):
    """Faces as the warped heights do, by the chain rule: a rotation, a mirror or a bend turns both."""
    rows, cols = (v / 20 for v in np.mgrid[:64, :64])
    z = 5 + 2 * cols + rows + np.sin(2 * cols) * np.cos(2 * rows)
    image = np.nan_to_num(np.stack([z, *aspect(z, 1 / 20, 1 / 20)]))
    x = torch.from_numpy(image).float().repeat(8, 1, 1, 1)
    at = random_coordinates(8, (64, 64), **how, generator=seeded())
    out, _ = warp(x, torch.zeros(8, 64, 64, dtype=torch.int64), at, (1, 2))
    turned = 0
    for sample, plain in zip(out.double().numpy(), warp(x, x[:, 0].long(), at)[0].double().numpy(), strict=True):
        seen = sample[0] != 0
        want = np.stack(aspect(np.where(seen, sample[0], np.nan), 1, 1))
        inner = np.isfinite(want[0]) & (np.hypot(*sample[1:]) > 0.9)
        assert inner.mean() > 0.2
        off = np.abs(np.arctan2(*sample[1:]) - np.arctan2(*want) + np.pi) % (2 * np.pi) - np.pi
        assert np.degrees(np.quantile(np.abs(off[inner]), 0.95)) < 4
        np.testing.assert_allclose(np.hypot(*sample[1:]), np.hypot(*plain[1:]), atol=1e-5)
        turned += np.abs(sample[1:] - plain[1:])[:, inner].max() > 0.2
    assert turned >= 3
    assert torch.equal((out == 0).all(1), (warp(x, x[:, 0].long(), at)[0] == 0).all(1))


def test_turned_pixels_without_data_stay_without_and_flat_ground_faces_nowhere():
    x, y = torch.zeros(8, 3, 16, 16), torch.zeros(8, 16, 16, dtype=torch.int64)
    x[:, 0, :8] = 1
    out, _ = warp(x, y, random_coordinates(8, (16, 16), rotate=180, generator=seeded()), (1, 2))
    assert (out[:, 1:] == 0).all()
    assert ((out[:, 0] == 0).any(), (out[:, 0] == 1).any()) == (True, True)
    out, _ = random_dihedral(x, y, seeded(), (1, 2))
    assert (out[:, 1:] == 0).all()
