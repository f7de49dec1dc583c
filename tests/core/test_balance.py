import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from glacier_fastai.core.balance import LEVELS, TARGET, PixelBalance, cell_edges, crop_counts, solve
from glacier_fastai.errors import DataError, RecipeError

WANT = np.array(list(TARGET.values()))


def candidates(n, seed=0, lakes=0.3, scale=1000):
    """Counts of n crops: mostly background, some glacier and debris, `lakes` of them with a little lake."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([2, 0.8, 0.3, 0.05], n)
    shares[rng.random(n) > lakes, 3] = 0
    return np.round(shares * scale * rng.uniform(0.3, 1, (n, 1)))


def composed(p, counts):
    pixels = p @ counts
    return pixels / pixels.sum()


# cells and counts


@given(st.integers(1, 40), st.integers(0, 40), st.sampled_from(LEVELS))
def test_cells_hold_every_place_once(crop, more, level):
    edges = cell_edges(crop + more, crop, level)
    assert (edges[0], edges[-1]) == (0, more + 1)
    assert (np.diff(edges) > 0).all()
    if level == "tile":
        assert len(edges) == 2
    else:
        assert np.diff(edges).max() <= max(1, -(-crop // 8))


@settings(max_examples=25, deadline=None)
@given(st.integers(6, 24), st.integers(1, 6), st.sampled_from(LEVELS), st.integers(0, 99))
def test_counts_are_the_mean_over_all_windows_of_a_cell(size, less, level, seed):
    crop = size - min(less, size - 2)
    mask = np.random.default_rng(seed).choice([0, 1, 2, 3, 255], (size, size)).astype(np.uint8)
    edges = cell_edges(size, crop, level)
    found = crop_counts(mask, crop, edges)
    for i in range(len(edges) - 1):
        for j in range(len(edges) - 1):
            windows = [
                [(mask[r : r + crop, c : c + crop] == k).sum() for k in range(4)]
                for r in range(edges[i], edges[i + 1])
                for c in range(edges[j], edges[j + 1])
            ]
            np.testing.assert_allclose(found[i, j], np.mean(windows, 0), atol=1e-3)


def test_ignored_pixels_are_not_counted():
    mask = np.full((16, 16), 255, np.uint8)
    mask[3, 4] = 2
    assert crop_counts(mask, 16, cell_edges(16, 16))[0, 0].tolist() == [0, 0, 1, 0]


# the solution


def reference(counts, least):
    """Minimise KL(target || composition) over probabilities p, with a floor on perplexity, by SLSQP."""
    total = counts.sum(1)
    p0 = total / total.sum()

    def entropy(p):
        return (p * np.log(np.maximum(p, 1e-300) / p0)).sum()

    def slope(p):
        pixels = p @ counts
        return -counts @ (WANT / pixels) + total / pixels.sum()

    found = minimize(
        lambda p: -(WANT * np.log(composed(p, counts))).sum(),
        p0,
        jac=slope,
        bounds=[(1e-12, 1)] * len(p0),
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1},
            {"type": "ineq", "fun": lambda p: -np.log(least) - entropy(p)},
        ],
        options={"maxiter": 1000, "ftol": 1e-10},
    )
    assert found.success
    return composed(found.x, counts)


@pytest.mark.parametrize("least", [0.1, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_no_probabilities_come_nearer_with_as_large_a_sample(least, seed):
    counts = candidates(40, seed, lakes=0.6)
    found = solve(counts, np.ones(40), PixelBalance(min_effective=least))
    np.testing.assert_allclose(found.reachable, reference(counts, least), atol=2e-4)
    assert least <= found.effective
    assert found.effective < least + 1e-3 or np.allclose(found.reachable, found.limit, atol=1e-4)


def test_the_expected_composition_is_that_of_the_probabilities():
    counts, places = candidates(500), np.random.default_rng(1).integers(1, 9, 500)
    found = solve(counts, places, PixelBalance())
    np.testing.assert_allclose(found.probabilities.sum(), 1)
    np.testing.assert_allclose(composed(found.probabilities, counts), found.expected, atol=1e-9)
    np.testing.assert_allclose(found.reachable, found.expected)
    np.testing.assert_array_equal(found.keep, 1)


def test_a_target_that_can_be_met_is_met():
    counts = np.vstack([np.eye(4) * 100] * 50)
    found = solve(counts, np.ones(200), PixelBalance(min_effective=0.01))
    np.testing.assert_allclose(found.reachable, WANT, atol=1e-4)
    np.testing.assert_allclose(found.limit, WANT, atol=1e-4)
    assert found.effective > 0.7  # all crops of a class are as good as each other
    assert found.notes == ()


def test_without_room_drawing_stays_even():
    counts = candidates(200)
    found = solve(counts, np.full(200, 3.0), PixelBalance(min_effective=1.0))
    even = counts.sum(1) / counts.sum()  # in proportion to what is labelled
    np.testing.assert_allclose(found.probabilities, even, rtol=1e-3)
    assert found.effective == pytest.approx(1)


def test_the_limit_is_the_nearest_of_all():
    counts = candidates(300, lakes=0.1)
    spread, narrow = (solve(counts, np.ones(300), PixelBalance(min_effective=m)) for m in (0.5, 1e-6))
    np.testing.assert_allclose(spread.limit, narrow.reachable, atol=1e-3)
    distance = [(WANT * np.log(WANT / c)).sum() for c in (spread.reachable, spread.limit)]
    assert distance[1] < distance[0]


def test_ice_of_unknown_kind_counts_as_glacier():
    mask = np.random.default_rng(0).choice([0, 1, 2, 3, 254, 255], (40, 40)).astype(np.uint8)
    glacier = np.where(mask == 254, 1, mask)
    edges = cell_edges(40, 24)
    np.testing.assert_array_equal(crop_counts(mask, 24, edges), crop_counts(glacier, 24, edges))


def test_empty_crops_are_never_drawn():
    counts = candidates(100)
    counts[::3] = 0
    found = solve(counts, np.ones(100), PixelBalance())
    assert (found.probabilities[::3] == 0).all()
    drawn = found.draw(np.random.default_rng(0), 200, 8)
    assert not (drawn % 3 == 0).any()


def test_places_count():
    counts = np.vstack([candidates(50)] * 2)
    found = solve(counts, np.repeat([1, 3], 50), PixelBalance())
    np.testing.assert_allclose(found.probabilities[50:], 3 * found.probabilities[:50])


# drawing


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.integers(0, 1000))
def test_draws_follow_the_probabilities_whatever_the_batch(bs, seed):
    found = solve(candidates(30, seed % 7, lakes=1), np.ones(30), PixelBalance())
    n = 6000 // bs
    drawn = found.draw(np.random.default_rng(seed), n, bs)
    assert drawn.shape == (n, bs)
    frequency = np.bincount(drawn.ravel(), minlength=30) / drawn.size
    np.testing.assert_allclose(frequency, found.probabilities, atol=5 * np.sqrt(0.25 / drawn.size))


def test_batches_are_composed_more_alike_than_by_chance():
    counts = candidates(400)
    found = solve(counts, np.ones(400), PixelBalance())
    rng = np.random.default_rng(0)
    systematic = found.draw(rng, 500, 8)
    chance = rng.choice(400, (500, 8), p=found.probabilities)
    lakes = [counts[d][..., 3].sum(1).std() for d in (systematic, chance)]
    assert lakes[0] < 0.8 * lakes[1]


# pixels


def test_pixels_are_kept_so_that_the_target_is_met():
    counts = candidates(300)
    found = solve(counts, np.ones(300), PixelBalance(level="pixel"))
    np.testing.assert_allclose(found.expected, WANT)
    kept = found.reachable * found.keep
    np.testing.assert_allclose(kept / kept.sum(), WANT)
    np.testing.assert_allclose(found.supervised, kept.sum())
    assert found.keep.max() == pytest.approx(1)
    assert found.keep.argmax() == 3


def test_a_class_of_target_0_is_ignored_at_level_pixel():
    target = {"background": 0.5, "glacier": 0.5}
    found = solve(candidates(300), np.ones(300), PixelBalance(target=target, level="pixel"))
    assert found.keep[2:].tolist() == [0, 0]
    np.testing.assert_allclose(found.expected, [0.5, 0.5, 0, 0])


# words and refusals


def test_lakes_too_small_are_told_in_words():
    found = solve(candidates(300, lakes=0.02), np.ones(300), PixelBalance())
    (note,) = [n for n in found.notes if "lake" in n]
    assert "lake pixels are too few or too scattered for a share of 0.15" in note
    assert "level: pixel meets the target" in note
    counts = candidates(300, lakes=0.02)
    counts[:, 3] = np.minimum(counts[:, 3], 5)
    found = solve(counts, np.ones(300), PixelBalance(level="pixel"))
    assert found.supervised < 0.05
    assert found.notes[-1].startswith(f"{found.supervised:.2%} of the crops' labelled pixels are trained on")


def test_the_share_of_a_class_that_is_not_there_goes_to_the_others():
    counts = candidates(100, lakes=0)
    told = {"background": 0.10 / 0.85, "glacier": 0.35 / 0.85, "debris": 0.40 / 0.85}
    for level in ("crop", "pixel"):
        found, want = (solve(counts, np.ones(100), PixelBalance(level=level, **t)) for t in ({}, {"target": told}))
        assert (found.absent, want.absent) == (("lake",), ())
        np.testing.assert_allclose(found.probabilities, want.probabilities)
        np.testing.assert_allclose(found.expected, want.expected, atol=1e-12)
    np.testing.assert_allclose(found.expected[:3], WANT[:3] / 0.85)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"target": {"background": 0.5, "glacier": 0.4}}, "target: .*sum to 1, not to 0.9"),
        ({"target": {"background": 1.2, "glacier": -0.2}}, "target.glacier: .*greater than or equal to 0, not -0.2"),
        ({"target": {}}, "sum to 1"),
        ({"target": {"backgroud": 1.0}}, "target: no class 'backgroud'; .*did you mean 'background'"),
        ({"target": {"background": float("nan"), "lake": 0.5}}, "target.background: input should be a finite number"),
        ({"level": "pixels"}, "level: input should be 'tile', 'crop' or 'pixel', not \"pixels\"; did you mean 'pixel'"),
        ({"min_effective": 0.0}, "min_effective: input should be greater than 0"),
        ({"min_effective": 1.5}, "min_effective: input should be less than or equal to 1"),
        ({"levl": "tile"}, "levl: unknown key; .*did you mean 'level'"),
    ],
)
def test_settings_that_cannot_be_are_refused(kwargs, message):
    with pytest.raises(RecipeError, match=message) as e:
        PixelBalance(**kwargs)
    assert "\n" not in str(e.value)


def test_the_default_target_is_not_shared():
    PixelBalance().target["lake"] = 9.0
    assert PixelBalance().target == TARGET


def test_what_no_tile_has_cannot_be_asked_for():
    with pytest.raises(DataError, match="no labelled pixel"):
        solve(np.zeros((5, 4)), np.ones(5), PixelBalance())
    only_lake = PixelBalance(target={"lake": 1.0})
    with pytest.raises(DataError, match="none of its classes"):
        solve(candidates(50, lakes=0), np.ones(50), only_lake)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60), st.sampled_from([1e-4, 0.05, 0.2, 0.6, 1.0]))
def test_the_sample_size_holds_whatever_the_labels(seed, n, least):
    rng = np.random.default_rng(seed)
    counts = np.round(rng.dirichlet([1, 0.3, 0.1, 0.01], n) * 10.0 ** rng.uniform(0, 5, (n, 1)))
    counts[rng.random((n, 4)) < 0.3] = 0
    counts[0] = [0, 0, 0, 10 ** rng.integers(0, 4)]  # a class that a scribble alone has
    counts[1, :3] = 10**5
    found = solve(counts, rng.integers(1, 1000, n), PixelBalance(min_effective=least))
    assert found.effective >= least * (1 - 1e-6)
    np.testing.assert_allclose(composed(found.probabilities, counts), found.reachable, atol=1e-9)
    near, nearest = (-(WANT * np.log(np.maximum(c, 1e-300))).sum() for c in (found.reachable, found.limit))
    assert nearest <= near + 1e-6


def test_windows_with_few_labels_are_not_drawn_for_them():
    counts = candidates(500, scale=60_000)
    counts[::4] = [[0, 0, 600, 0]]  # a hundredth of a window is labelled, all of it debris
    found = solve(counts, np.ones(500), PixelBalance(min_effective=0.2))
    assert found.probabilities[::4].sum() < 0.05  # they are a quarter of all


def test_the_order_of_the_target_does_not_matter():
    counts = candidates(100)
    turned = PixelBalance(target=dict(reversed(TARGET.items())))
    np.testing.assert_array_equal(*(solve(counts, np.ones(100), b).probabilities for b in (PixelBalance(), turned)))
