"""Time of GLCM texture. Run: OMP_NUM_THREADS=1 pytest tests/benchmarks -k glcm -s."""

from __future__ import annotations

import math

import numpy as np
import torch
from benchmarks.timing import interleaved
from skimage.feature import graycomatrix, graycoprops

from glacier_fastai.core.glcm import DIRECTIONS, glcm, glcm_torch, level_edges, quantize

KINDS = ("contrast", "energy")
SAMPLE = 2000  # windows that scikit-image is timed on


def levels(size: int, n_levels: int = 32) -> np.ndarray:
    """Return smooth hills with noise: most neighbours are alike, as in a satellite image."""
    rng = np.random.default_rng(0)
    hills = np.kron(rng.normal(size=(size // 16, size // 16)), np.ones((16, 16)))
    band = (hills + 0.2 * rng.normal(size=(size, size))).astype(np.float32)
    return quantize(band, level_edges(lambda: [band], n_levels))


def test_glcm_against_scikit_image():
    image = levels(512)
    rng = np.random.default_rng(0)
    places = rng.integers(3, 509, (SAMPLE, 2))

    def peer(offsets) -> np.ndarray:
        angles = [math.atan2(dr, dc) for dr, dc in offsets]
        out = np.empty((2, SAMPLE))
        for i, (y, x) in enumerate(places):
            part = image[y - 3 : y + 4, x - 3 : x + 4]
            p = graycomatrix(part, [1], angles, 32, symmetric=True, normed=True)
            out[:, i] = [graycoprops(p, kind).mean() for kind in KINDS]
        return out

    for offsets in (DIRECTIONS[:1], DIRECTIONS):
        ours = glcm(image, 32, KINDS, offsets=offsets)
        np.testing.assert_allclose(ours[:, places[:, 0], places[:, 1]], peer(offsets), rtol=1e-6)
        jobs = {"ours": lambda o=offsets: glcm(image, 32, KINDS, offsets=o), "peer": lambda o=offsets: peer(o)}
        best = interleaved(jobs, 5)
        whole = best["peer"] / SAMPLE * image.size
        print(
            f"\nglcm contrast + energy 512x512, 7 px, 32 levels, {len(offsets)} direction(s), "
            f"{torch.get_num_threads()} thread: {best['ours']:.1f} ms, {best['ours'] * 1e6 / image.size:.0f} ns/px; "
            f"{whole / best['ours']:,.0f} times as fast as graycomatrix + graycoprops per window "
            f"({best['peer'] / SAMPLE * 1e3:.0f} us per window, measured on {SAMPLE} windows: {whole / 1e3:.0f} s)",
            end="",
        )
    print()


def test_glcm_time_by_size_levels_and_window():
    def job(size: int = 512, n_levels: int = 32, window: int = 7):
        image = levels(size, n_levels)
        return lambda: glcm(image, n_levels, KINDS, window)

    jobs = {f"{size}^2": job(size=size) for size in (256, 512, 1024)}
    jobs |= {f"{n} levels": job(n_levels=n) for n in (8, 16, 32, 64, 255)}
    jobs |= {f"window {w}": job(window=w) for w in (3, 7, 15, 31)}
    best = interleaved(jobs, 7)
    per_px = {name: ms * 1e6 / (int(name[:-2]) if "^" in name else 512) ** 2 for name, ms in best.items()}
    base = per_px["512^2"]
    print("\nglcm, ns per px in 4 directions (and ratio to 512^2, 32 levels, 7 px): ", end="")
    print(", ".join(f"{name} {ns:.0f} ({ns / base:.2f})" for name, ns in per_px.items()))


def test_glcm_torch_on_the_cpu():
    image = levels(512)
    batch = np.stack([image[:256, :256], image[256:, 256:]])
    tensor = torch.from_numpy(batch)
    jobs = {"torch": lambda: glcm_torch(tensor, 32), "numba": lambda: [glcm(x, 32) for x in batch]}
    best = interleaved(jobs, 5)
    print(
        f"\nglcm_torch 2x256x256, CPU, {torch.get_num_threads()} thread: {best['torch']:.0f} ms; "
        f"{best['torch'] / best['numba']:.0f} times the time of glcm ({best['numba']:.1f} ms)"
    )
    np.testing.assert_allclose(glcm_torch(tensor, 32), [glcm(x, 32) for x in batch], rtol=1e-6)


def test_glcm_levels():
    band = np.random.default_rng(0).normal(8000, 2000, (512, 512)).astype(np.float32)
    edges = level_edges(lambda: [band], 32)
    jobs = {
        "edges": lambda: level_edges(lambda: [band], 32),
        "quantile": lambda: np.quantile(band, np.arange(1, 32) / 32),
        "quantize": lambda: quantize(band, edges),
        "searchsorted": lambda: np.searchsorted(edges, band, side="right"),
    }
    best = interleaved(jobs, 7)
    print(
        f"\n512x512 float32 to 32 levels: quantize {best['quantize']:.1f} ms (np.searchsorted "
        f"{best['searchsorted']:.1f} ms); level_edges {best['edges']:.1f} ms (np.quantile {best['quantile']:.1f} ms)"
    )
