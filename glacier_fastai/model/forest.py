"""A random forest of texture, pixel by pixel: grown on training tiles in minutes, wrong elsewhere than a network is.

Each pixel is told by its bands, and their means and deviations in windows around it (`core.forest`).
Source: Breiman 2001, doi 10.1023/A:1010933404324, as scikit-learn grows it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..bands import CLASSES, ICE_OF_ANY_KIND, IGNORE
from ..core.forest import STATISTICS, packed, tree_mean, window_statistics
from ..core.moments import standardise
from ..data.tiles import TileStore
from ..errors import DataError, RecipeError
from .registry import Architecture, build_model

__all__ = ["Forest", "grow"]

log = logging.getLogger(__name__)

LEAST = 1e-3
"""Least probability of a class; 0 would make one pixel's loss infinite."""


class Forest(nn.Module):
    """A random forest as a network without parameters; before it is grown, one leaf that knows nothing."""

    feature: torch.Tensor  # arrays of `core.forest.tree_mean`; `shares` flat, as bundles halve what has more axes
    threshold: torch.Tensor
    branches: torch.Tensor
    roots: torch.Tensor
    shares: torch.Tensor

    def __init__(
        self,
        bands: Sequence[str],  # names of the bands
        classes: Sequence[str],  # names of the classes
        trees: int = 200,  # number of trees
        pixels: int = 200_000,  # labelled pixels that they are grown on, at most
        min_leaf: int = 5,  # least pixels of a leaf
    ):
        super().__init__()
        for name, value in {"trees": trees, "pixels": pixels, "min_leaf": min_leaf}.items():
            if type(value) is not int or value < 1:
                raise RecipeError(f"model 'forest': {name} is {value!r}; use a whole number of at least 1")
        self.features, self.classes = STATISTICS * len(bands), len(classes)
        self.register_buffer("feature", torch.zeros(0, dtype=torch.int16))
        self.register_buffer("threshold", torch.zeros(0))
        self.register_buffer("branches", torch.zeros(2, 0, dtype=torch.int32))
        self.register_buffer("roots", torch.tensor([-1], dtype=torch.int32))
        self.register_buffer("shares", torch.full((len(classes),), 1 / len(classes)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `(B, K, H, W)` of normalised images `(B, C, H, W)`; computed on the CPU wherever they are."""
        images = x.detach().as_subclass(torch.Tensor).cpu()
        arrays = [getattr(self, name).cpu().numpy() for name in ("feature", "threshold", "branches", "roots")]
        arrays.append(self.shares.cpu().numpy().reshape(-1, self.classes))
        found = []
        for image in images:
            seen = window_statistics(image[None])[0].flatten(1).T.contiguous().numpy()
            found.append(torch.from_numpy(tree_mean(seen, *arrays)).T.reshape(self.classes, *image.shape[1:]))
        return torch.stack(found).clamp(min=LEAST).log().to(x.device)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load trees of any size, but none that would lead astray."""
        for name, buffer in list(self.named_buffers()):
            if (given := state.get(prefix + name)) is not None:
                setattr(self, name, buffer.new_empty(given.shape))
        super()._load_from_state_dict(state, prefix, *args)
        n, rows = len(self.feature), self.shares.numel() // self.classes
        whole = self.shares.shape == (rows * self.classes,) and self.roots.shape == (self.roots.numel() or -1,)
        if not whole or self.threshold.shape != (n,) or self.branches.shape != (2, n):
            raise ValueError("the trees of the forest are not whole")
        places = torch.cat([self.branches.flatten(), self.roots])
        later = (self.branches < 0) | (self.branches > torch.arange(n, device=self.branches.device))
        astray = (places < -rows) | (places >= n)
        if astray.any() or not later.all() or ((self.feature < 0) | (self.feature >= self.features)).any():
            raise ValueError("the trees of the forest lead astray")

    def extra_repr(self) -> str:
        """Return the size in words."""
        return f"{len(self.roots)} trees, {len(self.feature)} splits"


def grow(
    store: TileStore,  # labelled tiles
    tiles: Sequence[int] | np.ndarray,  # positions of the training tiles: no other is looked at
    bands: Sequence[str],  # of its images
    stats: tuple[Sequence[float], Sequence[float]],  # mean and deviation per band that these are normalised with
    seed: int = 0,  # of the pixels that are drawn, and of the trees
    **options: Any,  # of `Forest`
) -> nn.Module:
    """Return a forest, grown on labelled pixels that are drawn as they come; ice of unknown kind counts as glacier.

    Raises:
        RecipeError: An option that is impossible.
        DataError: The tiles hold labels of fewer than two classes.
    """
    model = build_model("forest", bands, **options)
    options = model.__dict__["built_as"][1]
    counts = store.class_counts(unknown_ice=True)[tiles]
    if len(there := [c for c, n in zip(CLASSES, counts.sum(0), strict=True) if n]) < 2:
        raise DataError(
            f"{store.path}: the training tiles have {f'no label but {there[0]}' if there else 'no label'}; a forest "
            "needs two classes, so add tiles or take another fold"
        )
    ends = counts.sum(1).cumsum()
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(ends[-1], min(options["pixels"], ends[-1]), replace=False))
    index, (mean, std) = store.band_index(bands), (torch.tensor(s, dtype=torch.float32)[:, None, None] for s in stats)
    x, y = [], []
    for i, end, part in zip(tiles, ends, np.split(drawn, np.searchsorted(drawn, ends))[:-1], strict=True):
        if len(part):
            mask = store.labels(i).ravel()
            at = np.flatnonzero(mask != IGNORE)[part - end]
            image = standardise(torch.from_numpy(store.read(i, index)), mean, std)
            x.append(window_statistics(image[None])[0].flatten(1)[:, at].T.numpy())
            y.append(np.where(mask[at] == ICE_OF_ANY_KIND, CLASSES.index("glacier"), mask[at]))
    log.info("forest   %d trees grow on %d pixels", options["trees"], len(drawn))
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(
        options["trees"],
        min_samples_leaf=options["min_leaf"],
        n_jobs=torch.get_num_threads(),
        random_state=seed % 2**32,
    ).fit(np.concatenate(x), np.concatenate(y))
    trees = packed([tree.tree_ for tree in forest.estimators_])
    shares = np.zeros((len(trees["shares"]), len(CLASSES)), np.float32)
    shares[:, forest.classes_] = trees["shares"]
    model.load_state_dict({k: torch.from_numpy(v) for k, v in {**trees, "shares": shares.ravel()}.items()})
    return model.eval()


ARCHITECTURES = [Architecture("forest", Forest, fit=grow)]
