import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from glacier_fastai.core.morphology import context, postprocess
from glacier_fastai.predict.postprocess import postprocessed
from glacier_fastai.predict.sink import Strip
from glacier_fastai.recipe import PostprocessRecipe


def blobs(height, width, seed):
    """Codes in patches of several sizes, with nodata."""
    rng = np.random.default_rng(seed)
    out = np.zeros((height, width), np.uint8)
    for size in (7, 3, 1):
        small = rng.choice([0, 1, 2, 3, 255], (height // size + 1, width // size + 1), p=[0.4, 0.25, 0.2, 0.1, 0.05])
        grown = small.repeat(size, 0).repeat(size, 1)[:height, :width]
        out = np.where(rng.random((height, width)) < 0.5, grown, out).astype(np.uint8)
    return out


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_strips_give_the_map_that_the_whole_gives_and_probabilities_stay_beside_their_pixels(data):
    height, width = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 30))
    size = st.integers(0, 12)
    names = ("glacier", "debris", "lake")
    settings_ = PostprocessRecipe(
        min_size={n: data.draw(size) for n in names},
        fill_holes={n: data.draw(size) for n in names},
        smooth=data.draw(st.integers(0, 2)),
    )
    classes = blobs(height, width, data.draw(st.integers(0, 99)))
    probs = np.arange(4 * height * width, dtype=np.float32).reshape(4, height, width)
    cuts = sorted({0, height, *data.draw(st.lists(st.integers(0, height), max_size=8))})
    strips = [Strip(a, classes[a:b], probs[:, a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    out = list(postprocessed(strips, settings_))
    np.testing.assert_array_equal(np.concatenate([s.classes for s in out]), postprocess(classes, **settings_.by_code()))
    np.testing.assert_array_equal(np.concatenate([s.probs for s in out], 1), probs)
    assert [s.row for s in out] == [sum(len(s.classes) for s in out[:k]) for k in range(len(out))]


def test_no_more_rows_are_held_than_needed():
    settings_ = PostprocessRecipe()
    reach, given_ = context(**settings_.by_code()), 0

    def strips():
        nonlocal given_
        for row in range(0, 4096, 64):
            given_ = row + 64
            yield Strip(row, np.zeros((64, 8), np.uint8), np.zeros((4, 64, 8), np.float32))

    for strip in postprocessed(strips(), settings_):
        assert given_ - strip.row <= 2 * reach + 64 + reach


def test_nothing_to_do_passes_strips_on():
    strip = Strip(0, blobs(9, 9, 0), np.zeros((4, 9, 9), np.float32))
    (out,) = postprocessed([strip], None)
    assert out is strip
