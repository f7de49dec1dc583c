import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from glacier_fastai.core.dihedral import VIEWS, average_views, undo_view, view


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(list(VIEWS)))
def test_every_view_is_undone_exactly(height, width, k):
    x = torch.arange(2 * height * width).reshape(2, height, width)
    assert torch.equal(undo_view(view(x, k), k), x)
    assert torch.equal(view(undo_view(x, k), k), x)


def test_the_views_are_the_8_symmetries_of_the_square():
    grid = np.arange(9).reshape(3, 3)
    want = {np.rot90(g, k).tobytes() for g in (grid, grid.T) for k in range(4)}
    assert {np.ascontiguousarray(view(torch.from_numpy(grid), k).numpy()).tobytes() for k in VIEWS} == want
    assert torch.equal(view(torch.from_numpy(grid), 0), torch.from_numpy(grid))


def test_averaging_a_symmetric_model_changes_nothing_and_any_model_becomes_symmetric():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(average_views(torch.sin, x), x.sin())
    lopsided = torch.nn.Conv2d(3, 4, 3, padding=1).double()
    with torch.no_grad():
        mean = average_views(lopsided, x)
        for k in VIEWS:
            torch.testing.assert_close(average_views(lopsided, view(x, k)), view(mean, k))
        torch.testing.assert_close(mean, sum(undo_view(lopsided(view(x, k)), k) for k in VIEWS) / 8)
