"""Random radiometry of normalised multi-band images: blur, gamma, contrast, brightness, noise, a dropped band.

Images are float `(B, C, H, W)`, standardised per band; a pixel that is exactly 0 in every band has no data. It stays
so, and reaches no pixel with data and no statistic.

Random numbers come from a CPU `torch.Generator`, or with None from torch's own; noise is drawn on the image's device,
from a seed that the generator gives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from .warp import has_data, mark_data

__all__ = ["gaussian_blur_", "radiometry_"]

REACH = 3  # standard deviations to which the blur reaches


def gaussian_blur_(
    x: Tensor,  # (B, C, H, W), normalised; changed in place
    sigma: Tensor,  # (B,), standard deviation, pixels; on the CPU
) -> Tensor:
    """Blur each sample of `x` by a Gaussian over neighbours with data up to 3 deviations away; no data stays 0.

    >>> x = torch.tensor([[[[0.0, 5.0, 5.0, 5.0]]]])
    >>> gaussian_blur_(x, torch.tensor([1.0])).round(decimals=4)
    tensor([[[[0., 5., 5., 5.]]]])
    """
    reach, sigma = (REACH * sigma[:, None] + 0.5).floor(), sigma.clamp(min=1e-3)[:, None]
    away = torch.arange(int(reach.max()) + 1)
    kernel = (torch.exp(-0.5 * (away / sigma) ** 2) * (away <= reach)).to(x)
    data = has_data(x)
    out = torch.cat([x, data.to(x.dtype)], 1)
    for dim in (-2, -1):  # sums of shifted images: a convolution on CUDA may round to TF32
        line, out = out, out * kernel[:, :1, None, None]
        for d in range(1, min(kernel.shape[1], x.shape[dim])):
            weight, n = kernel[:, d, None, None, None], x.shape[dim] - d
            out.narrow(dim, d, n).addcmul_(line.narrow(dim, 0, n), weight)
            out.narrow(dim, 0, n).addcmul_(line.narrow(dim, d, n), weight)
    return x.copy_(torch.where(data, out[:, :-1] / out[:, -1:], 0))


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

    >>> x = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    >>> out = radiometry_(x, brightness=0.3, noise=0.1, generator=torch.Generator().manual_seed(0))
    >>> (out == 0).tolist()
    [[[[True, False, False]]]]
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
        device = Generator(x.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
        level, spare = level.expand(n, c, 1, 1).to(x), x.new_empty(x.shape[1:])
        for image, amount in zip(x, level, strict=True):
            image += spare.normal_(generator=device).mul_(amount)
    return mark_data(x.mul_(some), data)
