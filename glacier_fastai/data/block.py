"""The DataBlock of glacier tiles: blocks, crops, normalisation and `GlacierDataLoaders`."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from fastai.vision.all import (
    DataBlock,
    DataLoaders,
    DisplayedTransform,
    IndexSplitter,
    L,
    Transform,
    TransformBlock,
    delegates,
)

from ..bands import Bands
from ..core.balance import PixelBalance
from ..core.folds import ALWAYS, NEVER, train_valid
from ..core.moments import standardise
from ..errors import DataError
from .augment import AugmentTiles
from .balanced import BalancedCrops, IgnoreSurplus, PixelBalancedDL
from .channels import Texture, with_channels
from .folds import store_folds
from .raw import open_tiles
from .sources.competition import find_competition
from .tiles import TileStore
from .types import TensorGlacierMask, TensorMultispectral

__all__ = [
    "GlacierDataLoaders",
    "GlacierMaskBlock",
    "MultispectralBlock",
    "NormalizeBands",
    "ReadImage",
    "ReadMask",
]


class ReadImage(Transform):
    """Position of a tile in a store -> its image; an image given instead passes through."""

    def __init__(
        self,
        store: TileStore,  # where tiles are read
        bands: Sequence[str],  # bands wanted, in this order
    ):
        self.store, self.index = store, store.band_index(bands)

    def encodes(self, i: int):
        """Read an image."""
        return TensorMultispectral(torch.from_numpy(self.store.read(i, self.index)))


class ReadMask(Transform):
    """Position of a tile in a store -> its mask."""

    def __init__(
        self,
        store: TileStore,  # where tiles are read
    ):
        self.store = store

    def encodes(self, i: int):
        """Read a mask."""
        return TensorGlacierMask(torch.from_numpy(self.store.masks[i].astype(np.int64)))


class NormalizeBands(DisplayedTransform):
    """Standardise each band by given statistics; pixels without data (NaN) become exactly 0 in every band."""

    parameters, order = L("mean", "std"), 99

    def __init__(
        self,
        bands: Sequence[str],  # names of the bands
        mean: Sequence[float],  # mean per band, over the training tiles
        std: Sequence[float],  # standard deviation per band
    ):
        if not len(bands) == len(mean) == len(std):
            raise DataError(f"{len(bands)} bands, but {len(mean)} means and {len(std)} deviations")
        self.bands = tuple(bands)
        self.mean, self.std = (torch.as_tensor(np.asarray(v), dtype=torch.float32)[:, None, None] for v in (mean, std))

    def encodes(self, x: TensorMultispectral):
        """Standardise."""
        plain = x.as_subclass(torch.Tensor)
        return TensorMultispectral(standardise(plain, self.mean, self.std))

    def decodes(self, x: TensorMultispectral):
        """Give values as delivered, NaN where there is no data."""
        plain = x.as_subclass(torch.Tensor).to(self.mean.device)
        nodata = (plain == 0).all(-3, keepdim=True)
        out = TensorMultispectral((plain * self.std + self.mean).masked_fill(nodata, float("nan")))
        out.bands = self.bands
        return out


def MultispectralBlock(
    store: TileStore,  # where tiles are read
    bands: Sequence[str],  # bands wanted, in this order
    stats: tuple[Sequence[float], Sequence[float]],  # mean and standard deviation per band
):
    """Return the `TransformBlock` of images: `TensorMultispectral`, standardised in batches."""
    return TransformBlock(type_tfms=[ReadImage(store, bands)], batch_tfms=[NormalizeBands(bands, *stats)])


def GlacierMaskBlock(
    store: TileStore,  # where tiles are read
):
    """Return the `TransformBlock` of masks: `TensorGlacierMask`, never scaled to 0..1 as fastai's MaskBlock does."""
    return TransformBlock(type_tfms=[ReadMask(store)])


class GlacierDataLoaders(DataLoaders):
    """`DataLoaders` of a tile store.

    Knows its `store`, `bands` and `stats`, the fold of each tile (`fold_of`), and which it trains and validates on.
    """

    @classmethod
    def from_store(
        cls,
        store: TileStore | str | os.PathLike,  # tile store, its folder, or a raw folder (`data.raw`)
        fold: int | None = None,  # fold to validate on; None: train on every tile, without validation
        bs: int = 8,  # crops per batch
        crop: int | None = None,  # side of a training crop, default the tile's; validation sees whole tiles
        *,
        bands: Sequence[str] | None = None,  # bands to use, default all of the store
        folds: int = 5,  # number of folds
        spatial: bool = True,  # no training tile touches a validation tile
        min_valid: float = 0.1,  # least share of pixels with data for a tile to be trained on
        crops_per_tile: int = 1,  # crops per epoch for each training tile
        balance: PixelBalance | None = None,  # from where crops are drawn, default anywhere, as many from each tile
        augment: AugmentTiles | None = None,  # augmentation of training batches
        stats: tuple[Sequence[float], Sequence[float]] | None = None,  # mean and std, default of the training tiles
        glcm_window: int = 7,  # window of texture bands, pixels
        glcm_levels: int = 32,  # grey levels of texture bands, quantiles of the training tiles
        num_workers: int = 2,  # threads that read ahead
        seed: int = 42,  # of crops and augmentation
        device: str | torch.device | None = None,  # where batches go, default fastai's
    ) -> GlacierDataLoaders:
        """Return loaders of random crops for training and of whole tiles for validation.

        Indices and texture that the store lacks are computed, and kept in the cache (see `data.channels`).

        Raises:
            DataError: A band the store lacks, a crop larger than a tile, a fold out of range, or nothing to train on.
        """
        store = store.base() if isinstance(store, TileStore) else open_tiles(store, bands)
        bands = Bands(bands or store.bands)
        crop = crop or store.size
        if crop > store.size:
            raise DataError(f"{store.path}: crop {crop} is larger than its tiles of {store.size} px; lower data.crop")
        if fold is None:
            fold_of = np.where(store.table["split"] == "test", NEVER, ALWAYS)
            train, valid = np.flatnonzero(fold_of == ALWAYS), np.array([], np.int64)
        else:
            fold_of = store_folds(store, folds, spatial)
            apart = spatial and not store.has_split
            try:
                train, valid = train_valid(fold_of, fold, **(store.footprints() if apart else {}))
            except DataError as err:
                raise DataError(f"{store.path}: {err}") from err
        labelled = store.class_counts().sum(1) > 0
        train = train[labelled[train] & (store.table["valid"].to_numpy()[train] >= min_valid)]
        if len(valid) and not labelled[valid].any():
            raise DataError(f"{store.path}: fold {fold}: no validation tile has a label; choose another fold")
        if not len(train):
            raise DataError(f"{store.path}: no labelled tile with at least {min_valid:.0%} data is left to train on")
        if set(bands.textures) <= set(store.bands):
            store = with_channels(store, bands)
        else:
            store = with_channels(store, bands, Texture.of_tiles(store, bands, train, glcm_window, glcm_levels))
        stats = stats or store.statistics(bands, train)
        crops = BalancedCrops(store, train, crop, balance) if balance else None
        pixels = [IgnoreSurplus(crops.sampling.keep)] if balance and balance.level == "pixel" else []
        block = DataBlock(
            blocks=(MultispectralBlock(store, bands, stats), GlacierMaskBlock(store)),
            dl_type=PixelBalancedDL,
            splitter=IndexSplitter(range(len(train), len(train) + len(valid))),
            batch_tfms=[*([augment] if augment else []), *pixels],
        )
        dls = block.dataloaders(
            [*train.tolist(), *valid.tolist()],
            path=store.path,
            bs=bs,
            store=store,
            index=store.band_index(bands),
            crop=crop,
            crops_per_tile=crops_per_tile,
            seed=seed,
            num_workers=num_workers,
            device=device,
            dl_kwargs=[{"crops": crops}, {"crop": None}],
        )
        dls = cls(*dls.loaders, path=store.path, device=dls.device)
        dls.store, dls.bands, dls.stats = store, bands, stats
        dls.fold_of, dls.train_tiles, dls.valid_tiles = fold_of, train.tolist(), valid.tolist()
        return dls

    @classmethod
    @delegates(from_store)
    def from_competition(
        cls,
        path: str | os.PathLike,  # folder of the competition, with Band1 to Band5 and labels
        fold: int | None = None,  # as in `from_store`
        **kwargs,
    ) -> GlacierDataLoaders:
        """Return loaders of a competition folder, as `from_store`; its tile store is made on first use (`data.raw`).

        Raises:
            DataError: As `from_store`, no such folder, or files in it that cannot be used.
        """
        if find_competition(path) is None:
            what = "no folder Band1 in it" if os.path.isdir(path) else "no such folder"
            raise DataError(f"{path}: {what}; give the competition's folder, with Band1 to Band5")
        return cls.from_store(open_tiles(path), fold, **kwargs)
