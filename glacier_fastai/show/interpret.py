"""What a model gets wrong, and where: hard tiles, confusions, errors by what may cause them, bands it stands on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ..bands import CLASS_COLOURS, CLASSES, LOCATION, UNKNOWN_ICE, composite
from ..core.calibration import Reliability, nll, reliability
from ..core.confusion import WATCHED, confusion_matrix, ice, watched, wrong
from ..core.moments import standardise
from ..core.strata import count_errors, edge_distance, patch_size
from ..data.channels import tile_channels
from ..data.tiles import TileStore
from ..errors import DataError, did_you_mean
from ..model.bundle import ModelBundle
from ..model.ensemble import Ensemble
from ..model.evaluate import TilePrediction, predict_tiles, to_map
from ..model.predictor import Predictor
from ..plots import figures
from ..plots.panels import draw_panels, grid, legend, panels

__all__ = ["GlacierInterpretation"]

VISIBLE = ("blue", "green", "red")
EDGES = {
    "distance": (0, 1, 2, 4, 8, 16, 32, np.inf),
    "area": (0, 10, 100, 1_000, 10_000, 100_000, np.inf),
    "brightness": (-np.inf, -2, -1, -0.5, 0, 0.5, 1, 2, np.inf),
}
"""Bins of each stratum; a bin holds its upper edge."""


class GlacierInterpretation:
    """What a model gets wrong, and where; one pass over the tiles, in bounded memory.

    Its maps are those that `model.evaluate.evaluate` scores, so `confusion` is the same. All counts are of labelled
    pixels; a stratum sees of edges and patches what lies within the tile. Where most ice is of unknown kind, every MCC
    here is that of ice.
    """

    table: pd.DataFrame
    """A row per tile: `tile` (position), `id`, `scene`, `labelled` (pixels), `loss` (mean negative log-likelihood of
    the labels, nats), `mcc`, `ice_share` (of labelled pixels), `brightness` (mean over pixels with data of the bands
    `bright`, as delivered). What has no pixel to be measured on is NaN."""

    confusion: torch.Tensor
    """int64 `(K, K)`, rows are the truth; a fifth row is ice of unknown kind, where there is any."""

    reliability: dict[str, Reliability]
    """Of the most probable class, and of each class by its name; of the probabilities, before post-processing."""

    strata: dict[str, pd.DataFrame]
    """By "distance" (to the nearest class edge of the truth, px), "area" (of the truth's patch, px) and "brightness"
    (mean of the standardised bands `bright`), a row per bin: `low` (not in it), `high`, `pixels`, `errors`, `share`
    (errors of pixels), and `pixels_CLASS` and `share_CLASS` of each class in the truth, and of "ice, kind unknown"
    where there is any. A share of nothing is NaN."""

    bright: tuple[str, ...]
    """Bands whose mean is the brightness: the visible ones that the model takes, if it takes none its first band."""

    def __init__(
        self,
        bundle: ModelBundle,  # trained model
        store: TileStore,  # labelled tiles
        tiles: Sequence[int] | None = None,  # positions of the tiles to look at, default all
    ):
        """Look at the tiles.

        Raises:
            BundleError: As `model.evaluate.predict_tiles`.
            DataError: No such tile, or none of them has a label.
        """
        self.bundle, self.store = bundle, store.base()
        self.tiles = self._known(range(len(store)) if tiles is None else tiles)
        if not self.store.class_counts(unknown_ice=True)[self.tiles].any():
            raise DataError(f"{store.path}: no labelled pixel in these tiles, so nothing to interpret")
        self.bright = tuple(b for b in bundle.bands if b in VISIBLE) or bundle.bands[:1]
        self._ensemble = Ensemble.of(bundle)
        score = watched(*self.store.ice_pixels(self.tiles))
        self._mcc, self._of = WATCHED[score], "MCC" if score == "mcc" else "MCC of ice"
        self._measure()

    @classmethod
    def from_learner(
        cls,
        learn,  # `GlacierLearner`
        tiles: Sequence[int] | None = None,  # positions in `learn.dls.store`, default the validation tiles
    ) -> GlacierInterpretation:
        """Return the interpretation of a learner's present weights, without views and post-processing.

        Raises:
            BundleError: Its model is none that a bundle can hold.
            DataError: As `GlacierInterpretation`, or there are no validation tiles.
        """
        tiles = learn.dls.valid_tiles if tiles is None else tiles
        if not len(tiles):
            raise DataError("there are no validation tiles (fold=None): name tiles")
        return cls(ModelBundle.from_learner(learn), learn.dls.store, tiles)

    def hardest(
        self,
        n: int = 9,  # rows at most
        by: str = "loss",  # "loss", largest first, or "mcc", lowest first
    ) -> pd.DataFrame:
        """Return the rows of `table` of the hardest labelled tiles; raises `DataError` for another `by` or no row."""
        _check("by", by, ("loss", "mcc"))
        if n < 1:
            raise DataError(f"{n} tiles: use at least 1")
        return self.table.dropna(subset=by).sort_values(by, ascending=by == "mcc", kind="stable").head(n)

    def predict(
        self,
        tile: int,  # position in the store
    ) -> TilePrediction:
        """Return a tile's classes and probabilities, computed anew; raises `DataError` if there is no such tile."""
        return next(predict_tiles(self.bundle, self.store, self._known([tile]).tolist()))

    def band_importance(
        self,
        method: str = "permutation",  # values of a band shuffled, or "occlusion": all of them set to its mean
        repeats: int = 3,  # shuffles of each band; occlusion is done once
        tiles: int = 24,  # labelled tiles to look at, at most, spread evenly
        seed: int = 0,  # of the shuffles
    ) -> pd.DataFrame:
        """Return by how much the MCC of the tiles falls without what a band says: `band`, `drop`, `spread`, `method`.

        Values are shuffled among the pixels with data of a tile, so both what a pixel is worth and how the band looks
        are lost; texture is a band of its own. The mean is that of training. Bands that say the same stand in for each
        other, and then all of them look unimportant. Latitude and longitude, which are much the same on all of a tile,
        are made unknown instead, both of them.

        `drop` is the mean over the repeats. `spread` is the standard deviation over the repeats, which says nothing of
        how other tiles would do; for occlusion, which has no chance in it, it is the jackknife standard error over the
        tiles. It is NaN of one repeat or tile. `tiles` is how many were looked at, `mcc` theirs with all bands.

        Source: Breiman 2001, doi 10.1023/A:1010933404324; Fisher et al. 2019, JMLR 20(177); the jackknife, Efron and
        Stein 1981, doi 10.1214/aos/1176345462.

        Raises:
            DataError: Another method, or no repeat or tile.
        """
        _check("method", method, ("permutation", "occlusion"))
        if repeats < 1 or tiles < 1:
            raise DataError(f"{repeats} repeats, {tiles} tiles: use at least 1 of each")
        repeats = repeats if method == "permutation" else 1
        labelled = self.table["tile"][self.table["labelled"] > 0].to_numpy()
        chosen = labelled[np.linspace(0, len(labelled) - 1, min(tiles, len(labelled))).round().astype(int)]
        channels, k, mcc = self._ensemble.channels, len(CLASSES), self._mcc
        place = [i for i, band in enumerate(self.bundle.bands) if band in LOCATION]
        plain = torch.zeros(len(chosen), k + 1, k, dtype=torch.int64)
        less = torch.zeros(len(channels), repeats, *plain.shape, dtype=torch.int64)
        predictor = Predictor(self._ensemble)

        def count(i: int, image: np.ndarray) -> torch.Tensor:
            (probs,) = predictor([image])  # always one, since digits may change with the size of a batch
            classes, _ = to_map(self._ensemble, probs, np.isfinite(image[0]))
            return confusion_matrix(classes, self.store.labels(i), k, unknown_ice=True)

        for t, i in enumerate(chosen):
            image = tile_channels(self.store, i, channels)
            valid, rng = np.isfinite(image[0]), np.random.default_rng([seed, int(i)])
            plain[t] = count(i, image)
            for band, mean in enumerate(self.bundle.mean):
                for repeat in range(repeats):
                    changed = image.copy()
                    if band in place:
                        changed[place] = np.where(valid, 0, np.nan)
                    else:
                        changed[band, valid] = rng.permutation(image[band, valid]) if method == "permutation" else mean
                    less[band, repeat, t] = count(i, changed)

        whole, n = plain.sum(0), len(chosen)
        rows = []
        for name, counts in zip(self.bundle.bands, less, strict=True):
            drops = pd.Series([mcc(whole) - mcc(c.sum(0)) for c in counts])
            spread = drops.std()
            if method == "occlusion":
                without = [mcc(whole - p) - mcc(c) for p, c in zip(plain, counts[0].sum(0) - counts[0], strict=True)]
                spread = pd.Series(without).std() * (n - 1) / n**0.5
            rows.append((name, drops.mean(), spread, method, n, mcc(whole)))
        return pd.DataFrame(rows, columns=["band", "drop", "spread", "method", "tiles", "mcc"])

    def plot_confusion_matrix(self) -> Figure:
        """Draw what each class is mapped as."""
        return figures.confusion(self.confusion.numpy(), f"{self._of} {self._mcc(self.confusion):.3f}, {self._n()}")

    def plot_reliability(self) -> Figure:
        """Draw how often a class is there, by how probable it was said to be."""
        return figures.reliability(self.reliability, title=self._few(), colours=("black", *CLASS_COLOURS))

    def plot_hardest(
        self,
        n: int = 6,  # tiles
        by: str = "loss",  # as for `hardest`
    ) -> Figure:
        """Draw image, truth, map and errors of the hardest tiles; raises `DataError` as `hardest`."""
        rows = self.hardest(n, by).set_index("tile")
        name, rgb = composite(self.store.bands)
        title = f"hardest of n = {len(self.tiles)} tiles by {by}; image: {name}"
        fig, axes = grid(len(rows), ("image", "truth", "map", "errors"), title=title)
        predictions = predict_tiles(self.bundle, self.store, rows.index.tolist())
        for row, (i, classes, _), about in zip(axes, predictions, rows.itertuples(), strict=True):
            draw_panels(
                row,
                panels(self.store.read(i), self.store.labels(i), classes, rgb),
                image=str(about.id)[-36:],  # the end tells tiles of a scene apart
                truth=f"truth, n = {about.labelled:,} px",
                prediction=f"map, loss {about.loss:.2f} nats, {self._of} {about.mcc:.2f}",
            )
        legend(fig, errors=True, truths=map(self.store.labels, rows.index))
        return fig

    def plot_errors_by(
        self,
        what: str = "distance",  # key of `strata`
    ) -> Figure:
        """Draw the share of errors by bins of a stratum; raises `DataError` for another key."""
        _check("errors by", what, EDGES)
        label = {
            "distance": "distance to the nearest class edge of the truth, px",
            "area": "area of the patch in the truth, px",
            "brightness": f"mean of {', '.join(self.bright)}, standard deviations from the mean of training",
        }
        return figures.errors_by(self.strata[what], label[what], self._few())

    def plot_band_importance(
        self,
        table: pd.DataFrame,  # as from `band_importance`
    ) -> Figure:
        """Draw by how much the MCC falls without what each band says, the largest fall on top."""
        return figures.importance([table])

    def _measure(self) -> None:
        """Go over the tiles, and keep nothing per pixel."""
        k = len(CLASSES)
        classes_of = {"most probable class": None, **{name: [code] for code, name in enumerate(CLASSES)}}
        channels = [c for c in self._ensemble.channels if c[0] in self.bright]
        mean, std = (torch.tensor(v)[:, None, None] for v in self.bundle.statistics(self.bright))
        total, self.reliability = torch.zeros(k + 1, k, dtype=torch.int64), {}
        counts = {what: np.zeros((2, len(edges) - 1, k + 1), np.int64) for what, edges in EDGES.items()}
        rows = []
        for i, classes, probs in predict_tiles(self.bundle, self.store, self.tiles.tolist()):
            truth = self.store.labels(i)
            image = tile_channels(self.store, i, channels)
            valid = np.isfinite(image[0])
            matrix = confusion_matrix(classes, truth, k, unknown_ice=True)
            labelled = int(matrix.sum())
            rows.append(
                {
                    "tile": i,
                    **self.store.table.loc[i, ["id", "scene"]],
                    "labelled": labelled,
                    "loss": nll(probs, truth, dim=0) if labelled else np.nan,
                    "mcc": self._mcc(matrix) if labelled else np.nan,
                    "ice_share": int(ice(matrix)[1].sum()) / labelled if labelled else np.nan,
                    "brightness": image[:, valid].mean(dtype=np.float64) if valid.any() else np.nan,
                }
            )
            total += matrix
            for name, of in classes_of.items():
                found = reliability(probs, truth, of=of, dim=0)
                self.reliability[name] = self.reliability[name] + found if name in self.reliability else found
            values = {
                "distance": edge_distance(truth),
                "area": patch_size(truth),
                "brightness": standardise(torch.from_numpy(image), mean, std).mean(0).numpy(),
            }
            for what, value in values.items():
                counts[what] += count_errors(value, wrong(classes, truth), truth, EDGES[what])
        self.confusion = total[: k + int(total[k:].any())]
        self.table = pd.DataFrame(rows)
        self.strata = {what: _stratum(found[0], found[1], EDGES[what]) for what, found in counts.items()}

    def _known(self, tiles: Iterable[int]) -> np.ndarray:
        tiles = np.array(list(tiles), np.int64)
        if (unknown := tiles[(tiles < 0) | (tiles >= len(self.store))]).size:
            raise DataError(f"{self.store.path}: no tile {unknown[0]}; use 0 to {len(self.store) - 1}")
        return tiles

    def _n(self) -> str:
        return f"n = {int(self.confusion.sum()):,} labelled px of {len(self.tiles)} tiles"

    def _few(self) -> str:
        return f"{self._n()};\npoints of fewer than {figures.LEAST} left out"


def _stratum(pixels: np.ndarray, errors: np.ndarray, edges: Sequence[float]) -> pd.DataFrame:
    """Return the table of a stratum from its counts `(bins, K)`."""
    out = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "pixels": pixels.sum(1), "errors": errors.sum(1)})
    out["share"] = out["errors"] / out["pixels"]
    for code, name in enumerate((*CLASSES, UNKNOWN_ICE) if pixels[:, len(CLASSES) :].any() else CLASSES):
        out[f"pixels_{name}"] = pixels[:, code]
        out[f"share_{name}"] = errors[:, code] / out[f"pixels_{name}"]
    return out


def _check(what: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise DataError(f"{what} {value!r}: use {' or '.join(allowed)}{did_you_mean(value, allowed)}")
