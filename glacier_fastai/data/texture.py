"""Texture bands: GLCM properties of a band, computed once per training set and carried by stores and bundles.

The grey levels are quantiles of the training tiles. So a store cannot hold texture bands before it is known which
tiles are trained on: they are added when training begins (each fold has its own), to a second store in the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..bands import texture_of
from ..core.glcm import glcm, level_edges, quantize
from .raw import cache_key, cached_store
from .tiles import TileStore, TileWriter

__all__ = ["Texture", "textured"]

SMOOTH = {"contrast": 0.0, "dissimilarity": 0.0, "energy": 1.0, "asm": 1.0, "homogeneity": 1.0}


@dataclass(frozen=True)
class Texture:
    """How texture bands are computed: the window, and the edges of the grey levels of each band."""

    window: int  # side of the window, pixels
    edges: dict[str, list[float]]  # band -> inner edges of its levels, values as delivered

    def __post_init__(self):
        numbers = all(isinstance(e, (int, float)) for values in self.edges.values() for e in values)
        if not isinstance(self.window, int) or not numbers:
            raise TypeError("window and edges must be numbers")

    @classmethod
    def of_tiles(
        cls,
        store: TileStore,  # where the bands are read
        bands: Sequence[str],  # bands of a model; those that are texture say which bands are measured
        tiles: Sequence[int],  # positions of the training tiles: no other is looked at
        window: int = 7,  # side of the window, pixels
        levels: int = 32,  # number of grey levels
    ) -> Texture:
        """Return the settings with levels that are quantiles over the valid pixels of `tiles`."""
        edges = {}
        for band in dict.fromkeys(t[1] for b in bands if (t := texture_of(b))):
            index = store.band_index([band])

            def values(index=index):
                for i in tiles:
                    tile = store.read(i, index)[0]
                    yield tile[np.isfinite(tile)]

            edges[band] = [float(e) for e in level_edges(values, levels)]
        return cls(window, edges)

    def compute(
        self,
        image: np.ndarray,  # (C, H, W) float32, NaN where there is no data
        names: Sequence[str],  # its bands
        bands: Sequence[str],  # bands wanted, among `names` or texture of one of them
    ) -> np.ndarray:
        """Return the wanted bands, float32 `(len(bands), H, W)`, NaN where `image` has no data.

        Texture of a pixel without a neighbour is that of a smooth surface, so texture never changes what has data.
        """
        out = np.empty((len(bands), *image.shape[1:]), np.float32)
        kinds: dict[str, list[tuple[int, str]]] = {}
        for k, band in enumerate(bands):
            if band in names:
                out[k] = image[list(names).index(band)]
            else:
                kind, base = texture_of(band)
                kinds.setdefault(base, []).append((k, kind))
        valid = np.isfinite(image).all(0)
        for base, wanted in kinds.items():
            levels = quantize(np.where(valid, image[list(names).index(base)], np.nan), self.edges[base])
            found = glcm(levels, len(self.edges[base]) + 1, [kind for _, kind in wanted], self.window)
            for (k, kind), values in zip(wanted, found, strict=True):
                out[k] = np.where(valid, np.nan_to_num(values, nan=SMOOTH[kind]), np.nan)
        return out


def textured(
    store: TileStore,  # the tiles
    bands: Sequence[str],  # bands of a model
    texture: Texture,  # how those that the store lacks are computed
) -> TileStore:
    """Return a store of the same tiles with `bands`, from the cache if it was made before."""
    base = str(store.path.resolve())
    content = hashlib.sha256((store.path / "tiles.csv").read_bytes()).hexdigest()  # it knows the sums of every tile

    def build(out) -> None:
        bases = [t[1] for b in bands if b not in store.bands and (t := texture_of(b))]
        names = list(dict.fromkeys([*(b for b in bands if b in store.bands), *bases]))
        index = store.band_index(names)
        made_by = {"texture of": str(store.path)}
        with TileWriter(out, bands, store.size, "float32", store.info["source"], store.info["sensor"], made_by) as w:
            w.info |= {
                "texture": asdict(texture),
                "base": base,
                "standardised": store.standardised,
            }
            keep = ("scene", "row", "col", "crs", "group", "split")
            for i, row in store.table.iterrows():
                about = {k: row[k] for k in keep}
                about["transform"] = [float(v) for v in row["transform"].split()]
                w.add(texture.compute(store.read(i, index), names, bands), store.masks[i], name=row["id"], **about)

    return cached_store(store.path, f"texture-{cache_key(base, content, list(bands), asdict(texture))}", build)
