"""From the bands that are there to the channels that a model takes: bands as they are, indices, texture, location.

The grey levels of texture are quantiles of the training tiles. So a store cannot hold texture before it is known which
tiles are trained on: it is added when training begins (each fold has its own), to a second store in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pyproj.exceptions import CRSError

from ..bands import INDICES, LOCATION, Bands, texture_of
from ..core.glcm import glcm, level_edges, quantize
from ..core.ground import latitude_longitude
from ..core.indices import normalised_difference
from ..errors import DataError, note
from ..files import check_room, file_hash
from .raw import cache_key, cached_store
from .scenes.raster import horizontal
from .scenes.units import Scaling
from .tiles import TileStore, TileWriter

__all__ = [
    "Channel",
    "Corner",
    "Texture",
    "channels_of",
    "compute_channels",
    "location",
    "note_unknown_places",
    "tile_channels",
    "with_channels",
]

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
        with np.errstate(over="ignore"):
            levels = [np.array(values, np.float32) for values in self.edges.values()]  # as they are used
        fine = all(0 < len(e) < 64 and np.isfinite(e).all() and (np.diff(e) >= 0).all() for e in levels)
        if self.window not in range(3, 32, 2) or not fine:
            raise ValueError("window or grey levels of texture are out of range")

    @classmethod
    def of_tiles(
        cls,
        store: TileStore,  # where the bands are read
        bands: Sequence[str],  # of a model; those that are texture say which bands are measured
        tiles: Sequence[int],  # positions of the training tiles: no other is looked at
        window: int = 7,  # side of the window, pixels
        levels: int = 32,  # number of grey levels
    ) -> Texture:
        """Return the settings with levels that are quantiles over the valid pixels of `tiles`."""
        edges: dict[str, list[float]] = {}
        for band in dict.fromkeys(base for _, base in Bands(bands).textures.values()):
            channels = channels_of([band])
            _check(store, channels)

            def values(channels=channels):
                for i in tiles:
                    tile = tile_channels(store, i, channels)[0]
                    yield tile[np.isfinite(tile)]

            edges[band] = [float(e) for e in level_edges(values, levels)]
        return cls(window, edges)

    def compute(
        self,
        values: np.ndarray,  # (H, W) float32 of one band, NaN where there is no data
        base: str,  # its name
        kinds: Sequence[str],  # of `bands.TEXTURES`
    ) -> np.ndarray:
        """Return the textures, float32 `(len(kinds), H, W)`, NaN where there is no data.

        Texture of a pixel without a neighbour is that of a smooth surface, so texture never changes what has data.
        """
        found = glcm(quantize(values, self.edges[base]), len(self.edges[base]) + 1, list(kinds), self.window)
        smooth = [np.nan_to_num(texture, nan=SMOOTH[kind]) for kind, texture in zip(kinds, found, strict=True)]
        return np.where(np.isfinite(values), np.stack(smooth), np.float32(np.nan))


Channel = tuple[str, Texture | None]
"""A band, and how it is computed where it is texture that is not there."""


class Corner(NamedTuple):
    """The first pixel of an image: the grid it lies on, and its row and column there."""

    crs: Any  # coordinate reference system, as rasterio or pyproj have it, or as text
    transform: Sequence[float]  # affine coefficients a b c d e f
    row: int = 0
    col: int = 0


def channels_of(
    bands: Iterable[str],
    texture: Texture | None = None,  # how those that are texture are computed
) -> list[Channel]:
    """Return the channels of bands."""
    return [(band, texture if texture_of(band) else None) for band in bands]


def compute_channels(
    image: np.ndarray,  # (C, H, W) float32, NaN in every band where there is no data
    names: Sequence[str],  # its bands
    channels: Sequence[Channel],  # what is wanted, of what is there or can be computed of it
    corner: Corner | None = None,  # its place; None: nobody knows
) -> np.ndarray:
    """Return the channels, float32 `(len(channels), H, W)`: bands, indices (0 where undefined), textures and location.

    Values below 0, as atmospheric correction leaves them in shade, count as 0 in an index, which so is from -1 to 1.

    >>> image = np.float32([[[3.0, np.nan]], [[1.0, np.nan]]])
    >>> compute_channels(image, ["green", "swir1"], channels_of(["ndsi", "green"]))
    array([[[0.5, nan]],
    <BLANKLINE>
           [[3. , nan]]], dtype=float32)
    """
    if [band for band, _ in channels] == list(names):
        return image
    known = dict(zip(names, image, strict=True))

    def values(band: str) -> np.ndarray:
        if band not in known and band in LOCATION:
            both = np.where(np.isnan(image[0]), np.float32(np.nan), location(corner, image.shape[1:]))
            known.update({b: v for b, v in zip(LOCATION, both, strict=True) if b not in known})
        if band not in known:
            known[band] = normalised_difference(*(known[of] for of in INDICES[band]))
        return known[band]

    out = np.empty((len(channels), *image.shape[1:]), np.float32)
    groups: list[tuple[Texture, str, list[tuple[int, str]]]] = []  # textures of one band share their windows
    for k, (band, texture) in enumerate(channels):
        if texture is None or band in known or (split := texture_of(band)) is None:
            out[k] = values(band)
            continue
        kind, base = split
        places = next((p for t, b, p in groups if t == texture and b == base), None)
        if places is None:
            groups.append((texture, base, places := []))
        places.append((k, kind))
    for texture, base, places in groups:
        out[[k for k, _ in places]] = texture.compute(values(base), base, [kind for _, kind in places])
    return out


def location(
    corner: Corner | None,  # None: nobody knows
    size: tuple[int, ...],  # rows and columns
) -> np.ndarray:
    """Return latitude and longitude of pixels, degrees, float32 `(2, H, W)`; 0 where they have no place on the Earth.

    >>> location(Corner("EPSG:4326", (0.5, 0, 86, 0, -0.5, 28)), (1, 1)).ravel().tolist(), location(None, (1, 1)).any()
    ([27.75, 86.25], np.False_)
    """
    height, width = size
    if corner is not None:
        with suppress(CRSError):
            crs = horizontal(corner.crs)
            return latitude_longitude(crs, corner.transform, (height, width), (corner.row, corner.col))
    return np.zeros((2, height, width), np.float32)


def tile_channels(
    store: TileStore,
    i: int,  # position of the tile
    channels: Sequence[Channel],  # as in `compute_channels`
) -> np.ndarray:
    """Return channels of a tile, as `compute_channels`."""
    crs, transform = (str(store.table[column].iat[i]) for column in ("crs", "transform"))
    corner = Corner(crs, [float(v) for v in transform.split()]) if crs and transform else None
    return compute_channels(store.read(i), store.bands, channels, corner)


def note_unknown_places(
    store: TileStore,
    bands: Iterable[str],  # of models
    tiles: Sequence[int] | np.ndarray,  # positions of the tiles that are used
    notes: list[str],  # what is said is added to them
) -> None:
    """Say how many tiles have no place on the Earth, where models are to be told it."""
    if {*bands} & {*LOCATION} - {*store.base().bands}:
        placeless = sum(tile is None for tile in store.ground()[np.asarray(tiles, np.int64)])
        if placeless:
            text = f"{placeless} of {len(tiles)} tiles have no place on the Earth"
            note(f"{store.base().path}: {text}, so their latitude and longitude are unknown to the model", notes)


def _check(store: TileStore, channels: Sequence[Channel]) -> None:
    """Raise `DataError` if the store lacks what the channels are computed of."""
    bands = Bands([band for band, _ in channels])
    if missing := [b for b in bands.made_of(store.bands) if b not in store.bands]:
        raise DataError(f"{store.path}: no band {', '.join(missing)}; it holds {', '.join(store.bands)}")
    if store.standardised and (made := [b for b in bands if b in INDICES and b not in store.bands]):
        raise DataError(f"{store.path}: its values are standardised, so {made[0]} cannot be computed of them")


def with_channels(
    store: TileStore,  # the tiles
    bands: Sequence[str],  # of a model
    texture: Texture | None = None,  # how those that are texture, and that the store lacks, are computed
) -> TileStore:
    """Return a store of the same tiles with `bands`: itself where it has them, else one from the cache.

    Raises:
        DataError: The store lacks a band, and what it could be computed of.
    """
    if set(bands) <= set(store.bands):
        return store
    channels = channels_of(bands, texture)
    _check(store, channels)
    base = str(store.path.resolve())
    settings = None if texture is None else asdict(texture)

    def build(out: Path) -> None:
        check_room(out, 4 * len(store) * len(bands) * store.size**2)
        made_by = {"channels of": str(store.path)}
        scaling = [Scaling(unit=store.units.get(band, "dn")) for band in bands]
        made = (store.info["source"], store.info["sensor"], made_by, scaling)
        with TileWriter(out, bands, store.size, "float32", *made) as w:
            w.info |= {"texture": settings, "base": base, "standardised": store.standardised}
            keep = ("scene", "row", "col", "crs", "group", "split")
            for i, row in enumerate(store.table.to_dict("records")):
                about = {k: row[k] for k in keep}
                about["transform"] = [float(v) for v in row["transform"].split()]
                image = tile_channels(store, i, channels)
                w.add(image, store.labels(i), name=row["id"], **about)

    content = file_hash(store.path / "tiles.csv")  # it knows the sums of every tile
    made = cached_store(store.path, f"channels-{cache_key(base, content, list(bands), settings)}", build)
    made._base = store
    return made
