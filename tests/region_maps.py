"""Made-up maps that are hard to outline: long borders, diagonal touches, holes in holes."""

import numpy as np
from scipy.ndimage import gaussian_filter


def noise(height, width, share=0.6, classes=3, seed=0):
    """Return single pixels of 1 to `classes` on `share` of the map."""
    rng = np.random.default_rng(seed)
    return (rng.integers(1, classes + 1, (height, width)) * (rng.random((height, width)) < share)).astype(np.uint8)


def hills(size, sigma, seed=0):
    """Return heights in four steps."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), sigma)
    return np.digitize(field / field.std(), [-0.5, 0.3, 1]).astype(np.uint8)


def picture(text):
    """Return the map that rows of digits draw; a dot is 0."""
    return np.array([[int(c) for c in row] for row in text.replace(".", "0").split()], np.uint8)


MAPS = {
    "a few pixels": noise(60, 70, 0.1),
    "one class": noise(60, 70, 0.6, 1),  # near percolation: long outlines, many diagonal touches
    "three classes": noise(60, 70, 0.8),
    "no background": noise(60, 70, 1),
    "hills": hills(90, 2),
    "high hills": hills(90, 8),
    "one pixel": picture("... .3. ..."),
    "one column": picture("1 1 . 2 1"),
    "islands in holes": picture("1111111 1.....1 1.222.1 1.2.2.1 1.222.1 1.....1 1111111"),
    "a hole that touches the outside": picture("111 1.1 11."),
    "holes that touch": picture("1111 1.11 11.1 1111"),
}
