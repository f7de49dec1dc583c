"""Values that stand for no data though nobody said so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["NO_VALUE", "likely_fill"]

NO_VALUE = 1e20
"""No band holds a number so far from 0; -3.4e38 and 1e30 say that there is no data, declared or not."""

LEAST = 0.005  # share of the pixels from which on a repeated value is looked at
GAP = 0.5  # distance from all other values, in widths of their range, that no measurement has
RIM = 0.1  # least share of the outermost pixels


def likely_fill(
    bands: Sequence[str],  # names of C bands
    values: np.ndarray,  # (C, n), some pixels of a scene
    valid: np.ndarray,  # (n,) bool, True where there is data, as far as that is declared
    rim: np.ndarray,  # (n,) bool, True for pixels on the outermost rows and columns
) -> list[tuple[list[str], float, float]]:
    """Return bands, value, and share of the pixels of values that look like fill, the most frequent first.

    A value does that stands at an end of those of its band, far from all others; or that is in all bands alike, 0 or
    the end of the type's range, and more frequent at the rim than elsewhere: saturation is not.

    >>> values = np.array([[-9999.0, -9999.0, 0.1, 0.2, 0.4]])
    >>> likely_fill(["red"], values, np.ones(5, bool), np.zeros(5, bool))
    [(['red'], -9999.0, 0.4)]
    """
    values, rim = values[:, valid], rim[valid]
    if not rim.size:
        return []
    found: dict[float, list[str]] = {}
    for band, numbers in zip(bands, values, strict=True):
        levels, counts = np.unique(numbers, return_counts=True)
        if len(levels) < 3:
            continue
        low, high = np.quantile(numbers[(numbers != levels[0]) & (numbers != levels[-1])], (0.01, 0.99))
        for value, count, other in ((levels[0], counts[0], levels[1]), (levels[-1], counts[-1], levels[-2])):
            apart = abs(float(value) - float(other)) > GAP * max(float(high) - float(low), 1e-6 * abs(float(high)))
            if count >= max(LEAST * numbers.size, 2) and apart:
                found.setdefault(float(value), []).append(band)
    ends = [0] if values.dtype.kind == "f" else [0, np.iinfo(values.dtype).min, np.iinfo(values.dtype).max]
    for end in dict.fromkeys(ends):
        alike = (values == end).all(0)
        if len(values) == 1 or end in found or alike.mean() < LEAST:
            continue
        outermost = rim.any() and alike[rim].mean() > max(RIM, 2 * alike.mean())
        if outermost or (end == 0 and values.dtype.kind == "f"):
            found[float(end)] = list(bands)
    out = []
    for value, names in found.items():
        here = values[[bands.index(b) for b in names]] == value
        out.append((names, value, float(here.any(0).mean())))
    return sorted(out, key=lambda each: -each[2])
