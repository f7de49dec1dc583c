"""Random radiometry of normalised multi-band images: blur, gamma, contrast, brightness, noise, a dropped band.

Images are float `(B, C, H, W)`, standardised per band; a pixel that is exactly 0 in every band has no data. It stays
so, and reaches no pixel with data and no statistic.

Random numbers come from a CPU `torch.Generator`, or with None from torch's own; noise is drawn on the image's device,
from a seed that the generator gives. On the CPU, blur and noise of float32 are compiled loops.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.special import ndtri
from torch import Generator, Tensor

from .jit import jit
from .warp import compiled, has_data, kept

__all__ = ["gaussian_blur_", "radiometry_"]

REACH = 3  # standard deviations to which the blur reaches


def gaussian_blur_(
    x: Tensor,  # (B, C, H, W), normalised; changed in place
    sigma: Tensor,  # (B,), standard deviation, pixels; on the CPU
) -> Tensor:
    """Blur each sample of `x` by a Gaussian over neighbours with data up to 3 deviations away; no data stays 0."""
    reach, sigma = (REACH * sigma[:, None] + 0.5).floor(), sigma.clamp(min=1e-3)[:, None]
    away = torch.arange(int(reach.max()) + 1)
    kernel = torch.exp(-0.5 * (away / sigma) ** 2) * (away <= reach)
    if compiled(x) and x.is_contiguous():
        jit(_blur_loops)(x.numpy(), kernel.numpy())
        return x
    return _blur_(x, kernel.to(x))


def _blur_(x: Tensor, kernel: Tensor) -> Tensor:
    data = has_data(x)
    out = torch.cat([x, data.to(x.dtype)], 1)
    for dim in (-2, -1):  # sums of shifted images: a convolution on CUDA may round to TF32
        line, out = out, out * kernel[:, :1, None, None]
        for d in range(1, min(kernel.shape[1], x.shape[dim])):
            weight, n = kernel[:, d, None, None, None], x.shape[dim] - d
            out.narrow(dim, d, n).addcmul_(line.narrow(dim, 0, n), weight)
            out.narrow(dim, 0, n).addcmul_(line.narrow(dim, d, n), weight)
    return x.copy_(torch.where(data, out[:, :-1] / out[:, -1:], 0))


def _blur_loops(x, kernel):
    """As `_blur_`, a row at a time."""
    n, c, h, w = x.shape
    reach, zero, one = kernel.shape[1] - 1, np.float32(0), np.float32(1)
    line = np.zeros(w + 2 * reach, np.float32)  # a row blurred across rows, between zeros
    middle = line[reach : reach + w]
    data, share, source = np.empty((h, w), np.float32), np.empty((h, w), np.float32), np.empty((h, w), np.float32)
    for b in range(n):
        own = 1  # reach of this sample, often less than that of the batch
        while own <= reach and kernel[b, own] > zero:
            own += 1
        data[:] = 0
        for k in range(c):
            for r in range(h):
                values, valid = x[b, k, r], data[r]
                for j in range(w):
                    valid[j] = one if values[j] != zero else valid[j]
        for k in range(-1, c):  # first the data itself, whose blur divides that of every band
            target = share if k < 0 else x[b, k]
            source[:] = data if k < 0 else target
            for r in range(h):
                values, weight = source[r], kernel[b, 0]
                for j in range(w):
                    middle[j] = weight * values[j]
                for d in range(1, own):
                    above, wa = source[max(r - d, 0)], kernel[b, d] if r >= d else zero
                    under, wu = source[min(r + d, h - 1)], kernel[b, d] if r + d < h else zero
                    for j in range(w):
                        middle[j] += wa * above[j] + wu * under[j]
                values, factor, valid = target[r], share[r], data[r]
                for j in range(w):
                    values[j] = weight * middle[j]
                for d in range(1, own):
                    left, right, weight = line[reach - d : reach - d + w], line[reach + d : reach + d + w], kernel[b, d]
                    for j in range(w):
                        values[j] += weight * (left[j] + right[j])
                if k < 0:
                    for j in range(w):
                        values[j] = valid[j] / values[j] if valid[j] > zero else zero
                else:
                    for j in range(w):
                        values[j] *= factor[j]


def radiometry_(
    x: Tensor,  # (B, C, H, W), normalised; changed in place, since fresh memory costs more than what is done with it
    *,
    brightness: float = 0.0,  # largest offset per band, standard deviations of the band
    contrast: float = 0.0,  # largest relative change of gain per band
    gamma: float = 0.0,  # largest relative change of the exponent per band, over the range of the sample
    noise: float = 0.0,  # largest standard deviation of noise per pixel, in those of the band
    blur: float = 0.0,  # largest standard deviation of Gaussian blur, pixels
    dropout: float = 0.0,  # probability that one band of the sample becomes 0, its mean; never the only one
    generator: Generator | None = None,  # on the CPU
) -> Tensor:
    """Blur `x`, change gamma, contrast and brightness of each band, add noise, drop a band; no data stays 0.

    Gamma is that of nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z): values are scaled to 0..1 by the
    range of those with data, raised to a power, and scaled back.
    """
    n, c = x.shape[:2]
    data = has_data(x)
    some = data.to(x.dtype)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, 1, 1, generator=generator) * 2 - 1

    if blur:
        gaussian_blur_(x, blur * torch.rand(n, generator=generator))
    gain, offset, level = 1 + contrast * draw(n, c), brightness * draw(n, c), noise * draw(n, 1)
    if dropout and c > 1:
        hit, band = torch.rand(n, generator=generator) < dropout, torch.randint(c, (n,), generator=generator)
        left = 1 - (hit[:, None] * F.one_hot(band, c))[..., None, None]
        gain, offset, level = gain * left, offset * left, level * left
    gain, offset = gain.to(x), offset.to(x)
    if gamma:
        beyond = (1 - some) * (torch.finfo(x.dtype).max / 4)  # puts pixels without data out of the range
        low, high = x.add_(beyond).amin((2, 3), True), x.sub_(2 * beyond).amax((2, 3), True)
        span = (high - low).clamp(min=torch.finfo(x.dtype).eps)
        x.sub_(low).mul_(1 / span).clamp_(torch.finfo(x.dtype).tiny, 1)
        x.log2_().mul_(((1 + gamma) ** draw(n, c)).to(x)).exp2_()  # two thirds of the time of pow_
        gain, offset = gain * span, offset + gain * low
    x.mul_(gain).add_(offset)
    if noise:
        _add_noise_(x, level, int(torch.randint(2**62, (), generator=generator)))
    return kept(x.mul_(some), data)


def _add_noise_(x: Tensor, level: Tensor, seed: int) -> Tensor:
    """Add Gaussian noise of standard deviation `level (B, C, 1, 1)` or `(B, 1, 1, 1)`, in place."""
    level = level.expand(*x.shape[:2], 1, 1).to(x)
    if compiled(x) and x.is_contiguous():
        jit(_noise_loops)(x.flatten(2).numpy(), level.flatten(1).numpy(), seed, _normal_quantiles())
        return x
    own, spare = Generator(x.device).manual_seed(seed), torch.empty_like(x[0])
    for i in range(len(x)):
        x[i] += spare.normal_(generator=own).mul_(level[i])
    return x


@cache
def _normal_quantiles() -> np.ndarray:
    return ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)


def _noise_loops(x, level, seed, quantiles):
    """Quantiles of 16 random bits each; bits are SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    n, c, size = x.shape
    low = np.uint64(0xFFFF)
    for b in range(n):
        for k in range(c):
            values, amount = x[b, k], level[b, k]
            first = np.uint64(seed) + np.uint64((b * c + k) * size)
            for j in range(0, size, 4):
                z = (first + np.uint64(j)) * np.uint64(0x9E3779B97F4A7C15)
                z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                z = z ^ (z >> np.uint64(31))
                for i in range(j, min(j + 4, size)):
                    values[i] += amount * quantiles[z & low]
                    z >>= np.uint64(16)
