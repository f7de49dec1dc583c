import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glacier_fastai.data.augment import AugmentTiles, random_dihedral, warp
from glacier_fastai.data.types import TensorGlacierMask, TensorMultispectral


def batch(n=8, c=3, size=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, size, size, generator=g)
    y = torch.randint(0, 4, (n, size, size), generator=g)
    hole = torch.rand(n, size, size, generator=g) < 0.1
    y[hole] = 255
    return x * ~hole[:, None], y


def test_dihedral_moves_image_and_mask_together_and_reaches_all_8_views():
    torch.manual_seed(0)
    y = torch.arange(16).reshape(1, 4, 4).repeat(200, 1, 1)
    x = y[:, None].float()
    ox, oy = random_dihedral(x, y)
    assert torch.equal(ox[:, 0], oy.float())
    views = {tuple(v.flatten().tolist()) for v in oy}
    grid = np.arange(16).reshape(4, 4)
    want = {tuple(np.rot90(g, k).ravel().tolist()) for g in (grid, grid.T) for k in range(4)}
    assert views == want


def test_the_identity_map_changes_nothing():
    x, y = batch()
    grid = F.affine_grid(torch.eye(2, 3).expand(8, 2, 3), [8, 1, 32, 32], align_corners=False)
    ox, oy = warp(x, y, grid)
    torch.testing.assert_close(ox, x, atol=1e-4, rtol=0)
    assert torch.equal(oy, y)


STRONG = {"rotate": 90, "scale": 0.3, "shift": 0.2, "elastic": 3, "grid": 0.3}


@pytest.mark.parametrize("kind", [*STRONG, "all"])
def test_image_and_mask_stay_aligned_to_half_a_pixel(kind):
    torch.manual_seed(1)
    rows, cols = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    board = ((rows // 8 + cols // 8) % 2 + 1).long()  # a checkerboard of classes 1 and 2
    x = torch.stack([rows, cols, torch.ones(64, 64)])[None].repeat(16, 1, 1, 1)  # says where each pixel came from
    ox, oy = AugmentTiles(flip=True, **(STRONG if kind == "all" else {kind: STRONG[kind]}))(
        (x, board.repeat(16, 1, 1)), split_idx=0
    )
    (row, col, whole), oy = ox.as_subclass(torch.Tensor).unbind(1), oy.as_subclass(torch.Tensor)
    assert set(oy.unique().tolist()) <= {1, 2, 255}
    between = ((row % 1 - 0.5).abs() < 1e-2) | ((col % 1 - 0.5).abs() < 1e-2)  # either neighbour is right
    sure = (whole > 1 - 1e-5) & ~between
    assert sure.float().mean() > 0.3
    assert torch.equal(oy[sure], board[row[sure].round().long(), col[sure].round().long()])
    assert (oy[whole == 0] == 255).all()


def test_no_label_appears_that_was_not_there_and_one_pixel_classes_stay_whole():
    torch.manual_seed(2)
    y = torch.zeros(32, 32, 32, dtype=torch.int64)
    y[:, 16, 16] = 3
    x = torch.ones(32, 2, 32, 32)
    _, oy = AugmentTiles(rotate=45, elastic=2)((x, y), split_idx=0)
    assert set(oy.as_subclass(torch.Tensor).unique().tolist()) <= {0, 3, 255}


def test_outside_is_ignored_and_without_data():
    torch.manual_seed(3)
    x, y = torch.ones(4, 2, 32, 32), torch.ones(4, 32, 32, dtype=torch.int64)
    ox, oy = AugmentTiles(flip=False, shift=0.4, brightness=1.0)((x, y), split_idx=0)
    ox, oy = ox.as_subclass(torch.Tensor), oy.as_subclass(torch.Tensor)
    assert (oy == 255).any()
    nothing = (ox == 0).all(1)
    assert (oy[nothing] == 255).all()


def test_radiometry_leaves_nodata_at_exactly_zero():
    x, y = batch()
    ox, oy = AugmentTiles(flip=False, brightness=0.5, contrast=0.5, noise=0.5)((x, y), split_idx=0)
    hole = (x == 0).all(1)
    assert hole.any()
    assert torch.equal((ox.as_subclass(torch.Tensor) == 0).all(1), hole)
    assert torch.equal(oy.as_subclass(torch.Tensor), y)


def test_types_are_kept_and_validation_is_left_alone():
    x, y = (t(v) for t, v in zip((TensorMultispectral, TensorGlacierMask), batch(), strict=True))
    ox, oy = AugmentTiles(rotate=45)((x, y), split_idx=0)
    assert (type(ox), type(oy), oy.dtype) == (TensorMultispectral, TensorGlacierMask, torch.int64)
    vx, vy = AugmentTiles(rotate=45)((x, y), split_idx=1)
    assert vx is x
    assert vy is y


def test_the_seed_decides():
    x, y = batch()
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(AugmentTiles(rotate=45, brightness=0.2)((x, y), split_idx=0))
    assert torch.equal(*(r[0].as_subclass(torch.Tensor) for r in results))
