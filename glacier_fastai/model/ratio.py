"""The band ratio, the field's own baseline: an index and two thresholds, found on training tiles. It knows no debris.

Red/SWIR1, NIR/SWIR1 or NDSI must reach one threshold, and blue another one, against shade; then a 3 x 3 median filter.
Source: Hall et al. 1995, doi 10.1016/0034-4257(95)00137-P; Paul et al. 2013, doi 10.3189/2013AoG63A296.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..bands import CLASSES, ICE, ICE_OF_ANY_KIND, IGNORE
from ..core.confusion import confusion_matrix, mcc
from ..core.ratio import best_thresholds, contrast, counts
from ..data.tiles import TileStore
from ..errors import DataError, RecipeError, did_you_mean
from ..recipe import Section
from .registry import Architecture, build_model

__all__ = ["Ratio", "RatioThresholds", "baseline", "find_ratio", "score", "why_not"]

RATIOS: dict[str, tuple[str, str]] = {
    "red_swir1": ("red", "swir1"),
    "nir_swir1": ("nir", "swir1"),
    "ndsi": ("green", "swir1"),
}
"""Name -> bands a and b of `core.ratio.contrast`."""
SHADE = ("blue", "green", "red", "nir")
"""Bands that tell lit ice from shade, the first that there is."""
NEVER = 1e-3
"""Odds of what it knows nothing of, debris and lakes; 0 would make one pixel's loss infinite."""


class RatioThresholds(Section):
    """An index, and what was found for it on training tiles."""

    index: Literal["red_swir1", "nir_swir1", "ndsi"]
    threshold: float  # of the contrast of its bands
    shade: Literal["blue", "green", "red", "nir"]
    light: float  # threshold of the band `shade`, reflectance
    called: float  # share of ice among what reaches both
    missed: float  # and among the rest

    @property
    def bands(self) -> tuple[str, ...]:
        """What it reads."""
        return tuple(dict.fromkeys((*RATIOS[self.index], self.shade)))

    def model(
        self,
        bands: Sequence[str],  # of its images
        stats: tuple[Sequence[float], Sequence[float]],  # mean and deviation per band that these are normalised with
    ) -> nn.Module:
        """Return the model of these thresholds."""
        model = build_model("ratio", bands, index=self.index)
        of = [list(bands).index(b) for b in (*RATIOS[self.index], self.shade)]
        found = {name: [float(values[i]) for i in of] for name, values in zip(("mean", "std"), stats, strict=True)}
        found["thresholds"] = [self.threshold, self.light]
        # what is called ice is mapped as ice, however rarely that is right
        found["share"] = [max(self.called, 0.51), min(self.missed, 0.49)]
        model.load_state_dict({name: torch.tensor(values) for name, values in found.items()})
        return model.eval()


class Ratio(nn.Module):
    """A band ratio as a network without parameters, which undoes the normalisation of its images."""

    mean: torch.Tensor  # (3,) of its bands: a and b of the ratio, and the one that tells shade
    std: torch.Tensor  # (3,)
    thresholds: torch.Tensor  # (2,) of the contrast, and of light
    share: torch.Tensor  # (2,) probability of ice in what reaches both, and in the rest

    def __init__(
        self,
        bands: Sequence[str],  # names of the bands
        classes: Sequence[str],  # ours
        index: str | None = None,  # one of `RATIOS`, default the first that the bands allow
    ):
        super().__init__()
        if tuple(classes) != CLASSES:
            raise RecipeError(f"model 'ratio' maps {', '.join(CLASSES)}, not {', '.join(classes)}")
        self.index = _indices(bands, index)[0]
        self.bands = (*RATIOS[self.index], _shade(bands))
        self.at = [list(bands).index(b) for b in self.bands]
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))
        self.register_buffer("thresholds", torch.tensor([1 / 3, 0.0]))
        self.register_buffer("share", torch.tensor([0.9, 0.1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `(B, 4, H, W)` of normalised images `(B, C, H, W)`."""
        data = (x != 0).any(1, keepdim=True)
        a, b, light = (x[:, self.at].float() * self.std[:, None, None] + self.mean[:, None, None]).split(1, 1)
        said = (contrast(a, b) >= self.thresholds[0]) & (light.clip(0) >= self.thresholds[1]) & data
        # the median of the pixels with data around; where as many are ice as not, the pixel's own
        lead = F.avg_pool2d(2.0 * said - 1.0 * data, 3, 1, 1)
        ice = torch.where((lead > 0) | (lead == 0) & said, self.share[0], self.share[1])
        return torch.cat([1 - ice, ice, *[torch.full_like(ice, NEVER)] * 2], 1).log()

    def extra_repr(self) -> str:
        """Return the thresholds in words."""
        cut, light = self.thresholds.tolist()
        cut = cut if self.index == "ndsi" else (1 + cut) / (1 - cut)
        return f"{self.index.replace('_', '/')} >= {cut:.3g}, {self.bands[2]} >= {light:.3g}"


def _shade(bands: Sequence[str]) -> Any:
    return next(b for b in SHADE if b in bands)


def _indices(bands: Sequence[str], index: str | None) -> list[str]:
    """Return the indices that bands allow; raises `RecipeError` if there is none, or not the one that is wanted."""
    if index not in (None, *RATIOS):
        near = did_you_mean(str(index), RATIOS)
        raise RecipeError(f"model 'ratio' has no index {index!r}; use {', '.join(RATIOS)}, or null for the best{near}")
    found = [i for i in ([index] if index else RATIOS) if {*RATIOS[i]} <= {*bands}]
    if not found:
        needs = f"index {index} needs {' and '.join(RATIOS[index])}" if index else "needs swir1 and red, nir or green"
        raise RecipeError(f"model 'ratio': {needs}; the bands are {', '.join(bands)}")
    return found


def why_not(
    units: Mapping[str, str],  # unit of each band that there is
    index: str | None = None,  # one of `RATIOS`, default any of them
) -> str | None:
    """Return why a ratio cannot be had of bands, in words, or None.

    >>> why_not({"green": "dn", "swir1": "reflectance"})
    'green is in unknown units (dn), and a band ratio needs reflectance'
    """
    try:
        needed = {b for i in _indices([*units], index) for b in RATIOS[i]} | {_shade([*units])}
    except RecipeError:
        return f"no band ratio can be had of {', '.join(units)}: it needs swir1 and red, nir or green"
    odd = {b: u for b, u in units.items() if b in needed and u != "reflectance"}
    if not odd:
        return None
    said = " and ".join(dict.fromkeys("unknown units (dn)" if u == "dn" else u for u in odd.values()))
    return f"{', '.join(odd)} {'is' if len(odd) == 1 else 'are'} in {said}, and a band ratio needs reflectance"


def find_ratio(
    store: TileStore,  # labelled tiles
    tiles: Sequence[int] | np.ndarray,  # positions of the training tiles: no other is looked at
    bands: Sequence[str] | None = None,  # that may be used, default all of the store
    index: str | None = None,  # one of `RATIOS`, default the best of those that the bands allow
) -> RatioThresholds:
    """Return the thresholds with the best MCC of ice, before the filter, over the pixels with data and label.

    Raises:
        RecipeError: The bands do not allow the index, or any.
        DataError: Bands are not reflectance, the tiles hold no ice or nothing else, or no threshold tells them apart.
    """
    store = store.base()
    units = {b: u for b, u in store.units.items() if bands is None or b in bands}
    indices, shade = _indices([*units], index), _shade([*units])
    if reason := why_not(units, index):
        hint = "its values came standardised" if store.standardised else "prepare it with scale and offset"
        raise DataError(f"{store.path}: {reason}; {hint}")
    pixels: dict[str, Any] = dict.fromkeys(indices, 0)
    for i in tiles:
        values, mask = dict(zip(store.bands, store.read(i), strict=True)), store.labels(i)
        known = (mask != IGNORE) & ~np.isnan(values[shade])
        for name, (a, b) in ((name, RATIOS[name]) for name in indices):
            seen = contrast(values[a][known], values[b][known])
            pixels[name] = pixels[name] + counts(seen, values[shade][known], _ice(mask)[known])
    there = pixels[indices[0]].sum((1, 2)) if len(tiles) else np.zeros(2)
    if not there.all():
        what = "nothing but ice" if there[1] else "no ice"
        raise DataError(f"{store.path}: the training tiles hold {what}, so no threshold of a band ratio can be found")
    found = {name: best_thresholds(pixels[name]) for name in indices}
    best: Any = max(found, key=lambda name: mcc(found[name][2]))
    threshold, light, matrix = found[best]
    if not mcc(matrix) > 0:
        raise DataError(
            f"{store.path}: no threshold of {', '.join(indices)} tells ice from the rest on the training tiles; check "
            "labels, scale and offset"
        )
    missed, called = matrix[1] / matrix.sum(0)
    return RatioThresholds(
        index=best, threshold=threshold, shade=shade, light=light, called=float(called), missed=float(missed)
    )


def baseline(
    store: TileStore,  # labelled tiles
    tiles: Sequence[int] | np.ndarray,  # positions of the training tiles
) -> RatioThresholds | None:
    """Return what `find_ratio` does of all bands there are, None where it raises."""
    try:
        return find_ratio(store, tiles)
    except (DataError, RecipeError):
        return None


def score(
    found: RatioThresholds,
    store: TileStore,  # labelled tiles
    tiles: Sequence[int] | np.ndarray,  # positions of the tiles to look at
) -> float | None:
    """Return the MCC of ice of its maps of tiles; None where the store lacks a band, or has it in other units."""
    store = store.base()
    if any(store.units.get(b) != "reflectance" for b in found.bands):
        return None
    index = store.band_index(found.bands)
    model, total = found.model(found.bands, ([0.0] * len(index), [1.0] * len(index))), torch.zeros(2, 2)
    for i in tiles:
        image, mask = torch.from_numpy(store.read(i, index)).nan_to_num(0), store.labels(i)
        said = model(image[None]).argmax(1)[0]
        total += confusion_matrix(said, np.where(mask == IGNORE, mask, _ice(mask)), 2)
    return mcc(total)


def _ice(mask: np.ndarray) -> np.ndarray:
    return np.isin(mask, (*ICE, ICE_OF_ANY_KIND))


def _fit(
    store: TileStore,
    tiles: Sequence[int],
    bands: Sequence[str],
    stats: tuple[Sequence[float], Sequence[float]],
    seed: int,  # nothing is drawn
    index: str | None = None,
) -> nn.Module:
    return find_ratio(store, tiles, bands, index).model(bands, stats)


ARCHITECTURES = [Architecture("ratio", Ratio, fit=_fit)]
