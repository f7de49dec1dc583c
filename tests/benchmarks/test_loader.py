"""How fast batches come, and in how much memory. Run: pytest tests/benchmarks -k loader -s."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from benchmarks.timing import interleaved
from rasterio.windows import Window
from scenes import BANDS, write_raster

from glacier_fastai.core.balance import PixelBalance
from glacier_fastai.data.augment import AugmentTiles
from glacier_fastai.data.block import GlacierDataLoaders
from glacier_fastai.data.tiles import TileWriter

TILES, SIZE, CROP, BATCH = 64, 512, 256, 8


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """64 tiles of 512 px, 5 bands of uint16, and beside each a tiled GeoTIFF of the same."""
    path, rng = tmp_path_factory.mktemp("loader"), np.random.default_rng(0)
    with TileWriter(path / "store", BANDS, SIZE, "uint16", "random numbers") as writer:
        for i in range(TILES):
            image = rng.integers(1, 60_000, (len(BANDS), SIZE, SIZE)).astype(np.uint16)
            mask = np.kron(rng.integers(0, 4, (16, 16)), np.ones((32, 32))).astype(np.uint8)
            writer.add(image, mask, scene=f"s{i}")
            write_raster(path / f"{i}.tif", image)
    return path


def loaders(path, threads, **kwargs):
    return GlacierDataLoaders.from_store(
        path / "store", None, BATCH, CROP, crops_per_tile=5, num_workers=threads, balance=PixelBalance(), **kwargs
    ).train


class Rasters(torch.utils.data.Dataset):
    """The common way: a window of a GeoTIFF per item."""

    def __init__(self, path, windows):
        self.path, self.windows = path, windows

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, k):
        i, row, col = self.windows[k]
        with rasterio.open(self.path / f"{i}.tif") as file:
            return file.read(window=Window(col, row, CROP, CROP))


def through(batches) -> None:
    for _ in batches:
        pass


def test_batches_against_a_bare_copy_and_rasterio(store):
    dls = {threads: loaders(store, threads) for threads in (0, 1, 2)}
    windows = dls[0].get_idxs()
    chunks = [windows[k : k + BATCH] for k in range(0, len(windows), BATCH)]
    images, masks = dls[0].store.images, dls[0].store.masks
    x, y = np.empty((BATCH, len(BANDS), CROP, CROP), np.uint16), np.empty((BATCH, CROP, CROP), np.uint8)

    def copy(labels):
        for chunk in chunks:
            for k, (i, row, col) in enumerate(chunk):
                x[k] = images[i, :, row : row + CROP, col : col + CROP]
                if labels:
                    y[k] = masks[i, row : row + CROP, col : col + CROP]

    jobs = {"copy of images": lambda: copy(False), "copy of images and masks": lambda: copy(True)}
    jobs |= {f"loader, {n} threads": lambda dl=dl: through(dl.read_ahead(chunks)) for n, dl in dls.items()}
    jobs |= {f"loader, {n} threads, normalised": lambda dl=dl: through(dl) for n, dl in dls.items()}
    best = interleaved(jobs, 10)
    rasters = torch.utils.data.DataLoader(Rasters(store, windows), BATCH, num_workers=2)
    through(rasters)  # files into the cache
    best["rasterio, 2 processes"] = min(interleaved({"r": lambda: through(rasters)}, 3).values())
    for name, took in best.items():
        print(
            f"\n{name:<32}{took / len(chunks):6.2f} ms per batch of {BATCH}; speed / copy of images "
            f"{best['copy of images'] / took:.2f}, / rasterio {best['rasterio, 2 processes'] / took:.1f}",
            end="",
        )
    print()


def test_memory_over_1000_batches(store):
    dl, seen, held = loaders(store, 2, augment=AugmentTiles.preset("light")), 0, []
    page = resource.getpagesize() / 2**20
    while seen < 1000:
        for _ in dl:
            seen += 1
            if seen % 100 == 0:  # anonymous memory: pages of the mapped store belong to the system
                resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
                held.append((resident - shared) * page)
    print(f"\nmemory after 100, 200, ... 1000 batches, MB: {' '.join(f'{m:.0f}' for m in held)}")
