"""The DataBlock of glacier tiles: blocks, crops, normalisation and `GlacierDataLoaders`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from fastai.vision.all import (
    AffineCoordTfm,
    DataBlock,
    DataLoaders,
    DihedralItem,
    DisplayedTransform,
    FlipItem,
    IndexSplitter,
    L,
    TfmdDL,
    Transform,
    TransformBlock,
    delegates,
)

from ..bands import ASPECT, CLASSES, ICE, LOCATION, Bands
from ..core.balance import PixelBalance
from ..core.confusion import watched
from ..core.folds import ALWAYS, NEVER, train_valid
from ..core.moments import fixed_statistics, standardise
from ..errors import DataError, note
from ..reading import refusing
from .augment import AugmentTiles, UnknownPlace
from .balanced import BalancedCrops, IgnoreSurplus, PixelBalancedDL
from .channels import Texture, note_unknown_places, with_channels
from .folds import store_folds
from .profile import Profile
from .raw import open_tiles
from .sources.competition import competition_files
from .tiles import AGAIN, TileStore
from .types import TensorGlacierMask, TensorMultispectral

__all__ = [
    "GlacierDataLoaders",
    "GlacierMaskBlock",
    "MultispectralBlock",
    "NormalizeBands",
    "ReadImage",
    "ReadMask",
]


class _Reader(Transform):
    """Reads from a store; pickled without it, as an exported learner neither needs nor holds tiles."""

    def __init__(
        self,
        store: TileStore,  # where tiles are read
    ):
        self.store = store

    def __getstate__(self) -> dict:
        return {k: v for k, v in vars(self).items() if k != "store"}


class ReadImage(_Reader):
    """Position of a tile in a store -> its image."""

    def __init__(
        self,
        store: TileStore,  # where tiles are read
        bands: Sequence[str],  # bands wanted, in this order
    ):
        super().__init__(store)
        self.index = store.band_index(bands)

    def encodes(self, i: int):
        """Read an image."""
        return TensorMultispectral(torch.from_numpy(self.store.read(i, self.index)))


class ReadMask(_Reader):
    """Position of a tile in a store -> its mask."""

    vocab, c = CLASSES, len(CLASSES)  # as fastai's masks have them

    def encodes(self, i: int):
        """Read a mask."""
        return TensorGlacierMask(torch.from_numpy(self.store.labels(i).astype(np.int64)))


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

    Knows its `store`, `bands` and `stats`, the fold of each tile (`fold_of`), which it trains and validates on, and
    what was odd about them (`notes`).
    """

    @staticmethod
    def block(
        store: TileStore,  # where tiles are read
        bands: Sequence[str] | None = None,  # bands wanted, in this order; default all
        stats: tuple[Sequence[float], Sequence[float]] | None = None,  # mean and std per band, default of all tiles
        **parts: Any,  # of fastai's `DataBlock`, in place of those here: `blocks`, `splitter`, `batch_tfms`, `getters`
    ) -> DataBlock:
        """Return the `DataBlock` of a store, whose items are positions of tiles."""
        bands = bands or store.bands
        moments: Any = stats or store.statistics(bands)
        blocks = (MultispectralBlock(store, bands, moments), GlacierMaskBlock(store))
        return DataBlock(**{"blocks": blocks, "dl_type": TfmdDL, **parts})

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
        splitter: Callable | None = None,  # of fastai, over positions of tiles: decides in place of `fold`
        min_valid: float = 0.1,  # least share of pixels with data for a tile to be trained on
        crops_per_tile: int = 1,  # crops per epoch for each training tile
        epoch_crops: int | None = None,  # in place of it: crops per epoch, of all processes together
        balance: PixelBalance | None = None,  # from where crops are drawn, default anywhere, as many from each tile
        augment: AugmentTiles | None = None,  # augmentation of training batches
        batch_tfms: Sequence[Any] = (),  # further transforms of batches, of fastai or yours
        stats: tuple[Sequence[float], Sequence[float]] | None = None,  # mean and std, default of the training tiles
        glcm_window: int = 7,  # window of texture bands, pixels
        glcm_levels: int = 32,  # grey levels of texture bands, quantiles of the training tiles
        num_workers: int = 2,  # threads that read ahead
        seed: int = 42,  # of crops and augmentation
        device: str | torch.device | None = None,  # where batches go, default fastai's
        **parts: Any,  # further parts of `block`, such as `getters`; fastai then reads, and tiles whole
    ) -> GlacierDataLoaders:
        """Return loaders of random crops for training and of whole tiles for validation.

        Indices and texture that the store lacks are computed, and kept in the cache (see `data.channels`).

        >>> from tempfile import mkdtemp
        >>> from glacier_fastai.data.sources.synthetic import synthetic_store
        >>> store = synthetic_store(f"{mkdtemp()}/tiles", "landsat7", n_scenes=2, tile_size=32, scene_size=64)
        >>> dls = GlacierDataLoaders.from_store(store, fold=0, bs=4, crop=16, folds=2, bands=["green", "swir1"])
        >>> x, y = dls.one_batch()
        >>> x.shape, y.shape, dls.vocab
        (torch.Size([4, 2, 16, 16]), torch.Size([4, 16, 16]), ('background', 'glacier', 'debris', 'lake'))

        Raises:
            DataError: A band the store lacks, a crop larger than a tile, a fold out of range, or nothing to train on.
        """
        store = store.base() if isinstance(store, TileStore) else open_tiles(store, bands)
        bands = Bands(bands or store.bands)
        crop = crop or store.size
        if crop > store.size:
            raise DataError(f"{store.path}: crop {crop} is larger than its tiles of {store.size} px; lower data.crop")
        if parts and (balance or crop < store.size):
            raise DataError(f"{', '.join(parts)}: fastai reads whole tiles; leave out crop and balance")
        fold_of, train, valid = _split(store, fold, folds, spatial, splitter)
        labelled = store.class_counts(unknown_ice=True).sum(1) > 0
        train = train[labelled[train] & (store.table["valid"].to_numpy()[train] >= min_valid)]
        if len(valid) and not labelled[valid].any():
            raise DataError(f"{store.path}: fold {fold}: no validation tile has a label; choose another fold")
        if not len(train):
            raise DataError(f"{store.path}: no labelled tile with at least {min_valid:.0%} data is left to train on")
        if set(bands.textures) <= set(store.bands):
            if (texture := store.info.get("texture")) is not None:
                with refusing(store.path, DataError, "what it says of texture cannot be used", AGAIN):
                    Texture(**texture)
            store = with_channels(store, bands)
        else:
            store = with_channels(store, bands, Texture.of_tiles(store, bands, train, glcm_window, glcm_levels))
        moments: Any = fixed_statistics(bands, *stats) if stats else store.statistics(bands, train)
        crops = BalancedCrops(store, train, crop, balance) if balance else None
        batch_tfms = [t.for_bands(bands) if isinstance(t, AugmentTiles) else t for t in batch_tfms]
        tfms: list[Any] = [augment.for_bands(bands)] if augment else []
        tfms += [UnknownPlace(bands)] if {*LOCATION} & {*bands} else []
        if crops and crops.sampling.keep is not None:
            tfms.append(IgnoreSurplus(crops.sampling.keep.tolist()))
        own = {"splitter": IndexSplitter(range(len(train), len(train) + len(valid)))}
        options: dict[str, Any] = {"num_workers": 0}
        if not parts:
            own["dl_type"] = PixelBalancedDL
            options = {"store": store, "index": store.band_index(bands), "crop": crop, "crops_per_tile": crops_per_tile}
            options |= {"epoch_crops": epoch_crops, "seed": seed, "num_workers": num_workers}
            options |= {"dl_kwargs": [{"crops": crops}, {"crop": None}]}
        block = cls.block(store, bands, moments, **{**own, "batch_tfms": [*tfms, *batch_tfms], **parts})
        items = [*train.tolist(), *valid.tolist()]
        loaders = block.dataloaders(items, path=store.path, bs=bs, device=device, **options)
        dls = cls(*loaders.loaders, path=store.path, device=loaders.device)
        dls.store, dls.bands, dls.stats = store, bands, moments
        dls.fold_of, dls.train_tiles, dls.valid_tiles = fold_of, train.tolist(), valid.tolist()
        dls.notes = crops.notes if crops else []
        turning = [type(t).__name__ for t in batch_tfms if isinstance(t, (AffineCoordTfm, DihedralItem, FlipItem))]
        if turning and {*ASPECT} & {*bands}:
            what = f"{', '.join(turning)} turns images, but not the directions in {' and '.join(ASPECT)}"
            note(f"{store.base().path}: {what}; take AugmentTiles, which does", dls.notes)
        note_unknown_places(store, bands, [*train, *valid], dls.notes)
        return dls

    @property
    def watched(self) -> str:
        """Name of the metric that tells which model is best: `mcc`, or `ice_mcc` where most ice is of unknown kind."""
        return watched(*self.store.ice_pixels([*self.train_tiles, *self.valid_tiles]))

    def tells_debris(
        self,
        before: bool | None = None,  # whether the weights that training starts from could; None: there are none
    ) -> bool:
        """Return whether a model that is trained on these tiles can tell debris from clean ice: both must be labelled.

        Where no ice is of unknown kind, labels of one kind alone, from scratch, are taken at their word.
        """
        if self.store.class_counts()[self.train_tiles][:, ICE].any(0).all():
            return True
        return not self.store.ice_counts()[self.train_tiles].any() if before is None else before

    @cached_property
    def profile(self) -> Profile:
        """What the values of the training tiles are."""
        return self.store.base().profile(self.train_tiles)

    def test_dl(self, test_items, **kwargs):
        """Return a loader of tiles by position, or of images `(C, H, W)` of values as delivered.

        An image, array or tensor, has no data where it is NaN, or in integers where all bands are 0.

        Raises:
            DataError: An image of another number of bands, or a position where there are no tiles.
        """
        return super().test_dl([self._item(item) for item in test_items], **kwargs)

    def _item(self, item) -> int | TensorMultispectral:
        if isinstance(item, (int, np.integer)):
            if getattr(self.valid, "store", self) is None:
                raise DataError(f"tile {item}: an exported learner holds no tiles; give it an image (C, H, W)")
            return int(item)
        x = item if isinstance(item, torch.Tensor) else torch.from_numpy(np.array(item))
        if x.ndim != 3 or len(x) != len(self.bands):
            raise DataError(f"image of shape {tuple(x.shape)}: (C, H, W) of {', '.join(self.bands)} is wanted")
        values = x.float()
        if not x.is_floating_point():
            values = values.masked_fill((values == 0).all(0), float("nan"))
        return TensorMultispectral(values)

    def new_empty(self):
        """Return loaders of the same transforms, without tiles and store, as `Learner.export` wants them."""
        of_store = [{"store": None} if isinstance(dl, PixelBalancedDL) else {} for dl in self.loaders]
        loaders = [dl.new(dl.dataset.new_empty(), **more) for dl, more in zip(self.loaders, of_store, strict=True)]
        dls = type(self)(*loaders, path=self.path, device=self.device)
        dls.bands, dls.stats = self.bands, self.stats
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
        competition_files(path)  # or it is refused
        return cls.from_store(open_tiles(path), fold, **kwargs)


def _split(
    store: TileStore, fold: int | None, folds: int, spatial: bool, splitter: Callable | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the fold of each tile, and positions of those to train on and of those to validate on."""
    if splitter is not None:
        usable = np.flatnonzero(store.table["split"] != "test")
        train, valid = (usable[list(part)] for part in splitter(usable.tolist())[:2])
        fold_of = np.full(len(store), NEVER)
        fold_of[train], fold_of[valid] = ALWAYS, 0
        return fold_of, train, valid
    if fold is None:
        fold_of = np.where(store.table["split"] == "test", NEVER, ALWAYS)
        return fold_of, np.flatnonzero(fold_of == ALWAYS), np.array([], np.int64)
    fold_of = store_folds(store, folds, spatial)
    apart = spatial and not store.has_split
    try:
        return fold_of, *train_valid(fold_of, fold, **(store.footprints() if apart else {}))
    except DataError as err:
        raise DataError(f"{store.path}: {err}") from err
