"""`PixelBalancedDL`: whole batches straight from the memory-mapped store, drawn so that their pixels are balanced."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastai.vision.all import ItemTransform, TfmdDL, chunked, delegates, num_distrib, rank_distrib, to_detach

from ..bands import CLASSES, ICE_OF_ANY_KIND, IGNORE
from ..core.balance import PixelBalance, Sampling, cell_edges, crop_counts, solve
from ..errors import DataError, note
from .tiles import TileStore
from .types import TensorGlacierMask, TensorMultispectral

__all__ = ["BalancedCrops", "IgnoreSurplus", "PixelBalancedDL"]

AHEAD = 2  # batches read before they are asked for, beyond those that threads are reading


class BalancedCrops:
    """The windows of training tiles and how often each is drawn; ice of unknown kind is glacier (`core.balance`)."""

    def __init__(
        self,
        store: TileStore,  # the tiles
        tiles: Sequence[int],  # positions of those to train on
        crop: int,  # side of a window, pixels
        balance: PixelBalance,  # what is wanted
    ):
        self.edges = cell_edges(store.size, crop, balance.level)
        if len(self.edges) == 2 and crop == store.size:
            counts = store.class_counts(unknown_ice=True)[list(tiles)].astype(np.float64)
        else:
            counts = np.concatenate([crop_counts(store.labels(i), crop, self.edges) for i in tiles])
        sides = np.diff(self.edges)
        try:
            self.sampling: Sampling = solve(
                counts.reshape(-1, len(CLASSES)),
                np.tile(np.outer(sides, sides).ravel(), len(tiles)),
                balance,
            )
        except DataError as err:
            raise DataError(f"{store.path}: {err}") from err
        self.notes: list[str] = []
        if self.sampling.absent:
            absent = ", ".join(self.sampling.absent)
            note(
                f"{store.path}: no training tile has {absent}: the other classes share its part of the balance",
                self.notes,
            )

    def draw(self, rng: np.random.Generator, n: int, bs: int) -> np.ndarray:
        """Return windows, int64 `(n * bs, 3)`: which of the tiles, first row, first column."""
        cells = len(self.edges) - 1
        shape = (len(self.sampling.probabilities) // cells**2, cells, cells)
        tile, row, col = np.unravel_index(self.sampling.draw(rng, n, bs).ravel(), shape)
        places = (rng.integers(self.edges[c], self.edges[c + 1]) for c in (row, col))
        return np.stack([tile, *places], 1)


class IgnoreSurplus(ItemTransform):
    """Turns pixels of too frequent classes to ignore, so that what the loss sees meets the target; training only.

    A share of each class is kept, in squares of `SIDE` pixels that are the same for all classes: where a rare class is
    kept so are its neighbours, and the edges between them. Ice of unknown kind is kept as glacier is.
    """

    split_idx, order, SIDE = 0, 110, 16  # after augmentation

    def __init__(
        self,
        keep: Sequence[float],  # share of the pixels of each class that is kept
    ):
        self.keep, self.generator = torch.tensor([*keep, *[0.0] * (256 - len(keep))], dtype=torch.float32), None
        self.keep[ICE_OF_ANY_KIND] = self.keep[CLASSES.index("glacier")]

    def encodes(self, batch):  # fastai skips an annotated ItemTransform.encodes
        """Thin out a batch."""
        x, y = batch
        plain = y.as_subclass(torch.Tensor)
        (n, h, w), side = plain.shape, self.SIDE
        rows, cols = -(-h // side), -(-w // side)
        order = torch.randperm(n * rows * cols, generator=self.generator)  # so a batch keeps its share exactly
        draw = (order + torch.rand(1, generator=self.generator)) / len(order)
        draw = F.interpolate(draw.view(n, 1, rows, cols).to(plain.device), scale_factor=side)[:, 0, :h, :w]
        kept = draw < self.keep.to(plain.device)[plain]
        return x, TensorGlacierMask(torch.where(kept, plain, IGNORE))


class PixelBalancedDL(TfmdDL):
    """A `TfmdDL` over positions in a tile store that reads whole batches and draws crops by their pixels.

    Shuffled, it draws windows: those of `crops`, or without it each tile in turn and a window anywhere in it. In order,
    it gives whole tiles, each once. What is drawn depends on (seed, epoch, rank, batch) alone: not on the number of
    threads, nor on any global random state, which it leaves as it is. `epoch` counts the passes that went beyond
    their first batch, so looking at a batch changes nothing; it may be set, to repeat or resume. Under a distributed
    launch each rank draws for itself. Whole tiles are never augmented. Transforms of items are not applied to
    positions, only those of batches are.

    Attributes:
        epoch: Number of the next pass.
        start: Batches that the next pass leaves out at its beginning, to go on where an earlier one was stopped.
        share: Of whole tiles, which of how many shares of the batches is given: a launch sets (rank, processes).
    """

    own = ("store", "index", "crop", "crops", "crops_per_tile", "epoch_crops", "seed")

    @delegates(TfmdDL.__init__)
    def __init__(
        self,
        dataset,  # `Datasets` whose items are positions in the store
        bs: int = 8,  # crops, or whole tiles, per batch
        shuffle: bool = False,  # draw crops
        num_workers: int = 0,  # threads that read ahead; 0: read when asked
        *,
        store: TileStore,  # where tiles are read
        index: Sequence[int],  # positions of the bands wanted
        crop: int | None = None,  # side of a crop, pixels, default the tile's
        crops: BalancedCrops | None = None,  # of the dataset's items
        crops_per_tile: int = 1,  # crops per epoch for each tile
        epoch_crops: int | None = None,  # crops per epoch, of all processes together, whatever the number of tiles
        seed: int = 42,  # with epoch, rank and batch it decides what is drawn
        **kwargs,
    ):
        self.store, self.index, self.crop, self.crops = store, list(index), crop, crops
        self.crops_per_tile, self.epoch_crops, self.seed, self.epoch = crops_per_tile, epoch_crops, seed, 0
        self.start, self.share = 0, (0, 1)
        self.threads = num_workers
        super().__init__(dataset, bs=bs, shuffle=shuffle, num_workers=0, **kwargs)
        self.tiles = list(dataset.items)
        self.direct = all(isinstance(i, Integral) for i in self.tiles)  # others, as images, go fastai's own way
        if self.direct and (wrong := [i for i in self.tiles if not 0 <= i < len(store)]):
            raise DataError(f"{store.path}: no tile {wrong[0]}; positions are 0 to {len(store) - 1}")
        self.drawn = shuffle and self.direct and len(self.tiles) > 0
        if self.drawn:
            self.n = (epoch_crops or crops_per_tile * len(dataset)) // (num_distrib() or 1)  # 0: not launched
            self.bs = min(bs, self.n)
            if not self.n:
                raise DataError(f"{store.path}: fewer crops per epoch than processes; raise data.crops_per_tile")
        self.generator = torch.Generator()
        self._seed(0)

    def new(self, dataset=None, cls=None, **kwargs):
        """Return a loader of the same kind; `crops` are kept with their dataset only."""
        kept = {name: getattr(self, name) for name in self.own} | {"num_workers": self.threads}
        if dataset is not None and dataset is not self.dataset:
            kept["crops"] = None
        return super().new(dataset, cls, **{**kept, **kwargs})

    def before_iter(self):
        """Make ready; only crops that are drawn go through the transforms of training."""
        super().before_iter()
        if self.direct:
            self.after_batch.split_idx = 0 if self.drawn else 1

    def get_idxs(self) -> list:
        """Return positions in the dataset in order, or the windows of this epoch: (position, row, column)."""
        if not self.drawn:
            return super().get_idxs()
        rank, world = rank_distrib(), num_distrib() or 1
        rng = np.random.default_rng([self.seed, self.epoch, rank])
        size = self.store.size - (self.crop or self.store.size) + 1
        if self.crops is not None:
            return self.crops.draw(rng, -(-self.n // self.bs), self.bs)[: self.n].tolist()
        cycle = self.crops_per_tile * len(self.dataset)  # crops in which every tile comes as often as any other
        crops = self.epoch_crops or cycle
        first, begun = divmod(self.epoch * crops, cycle)  # an epoch begins where the one before it ended
        shared = (np.random.default_rng([self.seed, first + k]) for k in range(-(-(begun + crops) // cycle)))
        turns = [turn.permutation(len(self.dataset)) for turn in shared for _ in range(self.crops_per_tile)]
        tile = np.concatenate(turns)[begun : begun + crops][rank::world][: self.n]
        return np.column_stack([tile, rng.integers(0, size, (len(tile), 2))]).tolist()

    def __iter__(self) -> Iterator:
        if not self.direct:
            yield from super().__iter__()
            return
        self.before_iter()
        epoch, start, self.start = self.epoch, self.start, 0
        chunks = self._chunks(start)
        if self.drawn and start:
            self.epoch = epoch + 1
        with closing(self.read_ahead(chunks)) as batches:
            for k, batch in enumerate(batches, start):
                self._seed(epoch, k)
                yield self._finished(batch)
                if self.drawn:
                    self.epoch = epoch + 1
        self.after_iter()

    def _chunks(self, start: int) -> Iterator[list]:
        self.windows = self.get_idxs()
        rank, shares = (0, 1) if self.drawn else self.share
        return islice(chunked(self.windows, self.bs, self.drop_last), rank + start * shares, None, shares)

    def tile_names(self, k: int) -> list[str]:
        """Return the ids of the tiles, each once, that batch `k` of the crops of this pass was cut from."""
        items = dict.fromkeys(item for item, _, _ in self.windows[k * self.bs : (k + 1) * self.bs])
        return self.store.table["id"].iloc[[self.tiles[i] for i in items]].tolist()

    def __len__(self) -> int:
        rank, shares = (0, 1) if self.drawn or not self.direct else self.share
        return len(range(rank, super().__len__(), shares))

    def to_detach(self, b, cpu=True, gather=True):
        """Detach what a batch gave; nothing is gathered, for processes see different numbers of batches."""
        return to_detach(b, cpu, gather=False)

    def _seed(self, *what: int) -> None:
        """Make the transforms of the next batch depend on `what`; they are shared with the other loaders."""
        state = np.random.SeedSequence([self.seed, rank_distrib()], spawn_key=what).generate_state(1, np.uint64)
        self.generator.manual_seed(int(state[0]))
        for tfm in self.after_batch.fs:
            if hasattr(tfm, "generator"):
                tfm.generator = self.generator

    def read_ahead(self, chunks: Iterable[list]) -> Generator[tuple]:
        """Yield batches as they stand in the store, in order, while threads read the next ones."""
        if not self.threads:
            yield from map(self.read, chunks)
            return
        pool, waiting = ThreadPoolExecutor(self.threads, "read"), deque[Future]()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(self.read, chunk))
                if len(waiting) > self.threads + AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def read(self, windows: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return images `(B, C, H, W)` and masks `(B, H, W)` of windows, values as stored, and where no data is.

        The third is None where the images tell: in floats by NaN, in integers by 0 in all bands of the store.
        """
        whole = not isinstance(windows[0], (list, tuple))
        places = [(w, 0, 0) for w in windows] if whole else windows
        side = self.store.size if whole else self.crop or self.store.size
        images = np.asarray(self.store.images)
        pin = self.device is not None and self.device.type == "cuda"
        kind = torch.from_numpy(np.empty(0, images.dtype)).dtype
        x = torch.empty(len(places), len(self.index), side, side, dtype=kind, pin_memory=pin)
        y = torch.empty(len(places), side, side, dtype=torch.uint8, pin_memory=pin)
        values, labels = x.numpy(), y.numpy()
        for k, (item, row, col) in enumerate(places):
            tile, window = self.tiles[item], np.s_[row : row + side, col : col + side]
            labels[k] = self.store.labels(tile, window)
            self.store.check(tile, "image")
            for b, band in enumerate(self.index):  # band by band, as a list of bands would copy twice
                values[k, b] = images[tile, band][window]
        if images.dtype.kind == "f" or self.index == list(range(images.shape[1])):
            return x, y, None
        nodata = np.asarray(~values.any(1))
        for k, (item, row, col) in enumerate(places):
            rows, cols = np.nonzero(nodata[k])
            other = images[self.tiles[item]][:, row + rows, col + cols].any(0)  # other bands may have a value
            nodata[k, rows, cols] = ~other
        return x, y, torch.from_numpy(nodata).pin_memory() if pin else torch.from_numpy(nodata)

    def _finished(self, batch: tuple) -> Any:
        """Put a batch on the device, NaN where there is no data, and through the batch transforms."""
        x, y = (t.to(self.device or "cpu", non_blocking=True) for t in batch[:2])
        nodata = None if batch[2] is None else batch[2].to(x.device, non_blocking=True)
        integer = not x.is_floating_point()
        x = x.float()
        if integer:  # floats hold NaN already
            nodata = x.amax(1) == 0 if nodata is None else nodata
            x += torch.where(nodata, torch.nan, 0.0)[:, None]
        if self.store.scaled:
            scale, offset = (
                v[self.index, None, None].astype(np.float32) for v in (self.store.scale, self.store.offset)
            )
            x = x * torch.from_numpy(scale).to(x.device) + torch.from_numpy(offset).to(x.device)
        x = TensorMultispectral(x)
        b = self.after_batch((x, TensorGlacierMask(y.long())) if len(self.dataset.tls) > 1 else (x,))
        return (b[0].contiguous(memory_format=torch.channels_last), *b[1:])
