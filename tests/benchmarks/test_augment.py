"""Time of heavy augmentation. Run: pytest tests/benchmarks -k augment -s (pip install '.[benchmark]' for the peers).

Every transform of every peer is applied to every sample (p=1), to a batch of 8 images of 5 x 256 x 256 float32 and
their masks, in one process on one thread. Each peer has the batch in the layout that it wants, and values in 0..1
where it needs that; nothing is converted within the time.

- Ours, `AugmentTiles.preset("heavy")`: 8 views, rotation, scale, shift, elastic, grid distortion in one resampling;
  brightness and contrast per band, gamma per band, noise, blur, band dropout; dropout of a band is drawn for all.
- albumentations, image by image: D4, Affine (rotate, scale, translate), ElasticTransform (alpha 390, sigma 16: a field
  of 4 px that is as smooth as ours), GridDistortion (4 steps), RandomBrightnessContrast, RandomGamma, GaussNoise,
  GaussianBlur (up to 7 px), ChannelDropout. Once more with the rougher elastic field of `approximate=True`.
- kornia, the batch at once: RandomHorizontalFlip, RandomVerticalFlip, RandomRotation90, RandomAffine (rotate,
  translate, scale), RandomElasticTransform (63 px, sigma 16), RandomBrightness, RandomContrast, RandomGamma,
  RandomGaussianNoise, RandomGaussianBlur (7 px), RandomChannelDropout. It has no grid distortion, and is spared it.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from benchmarks.timing import interleaved

from glacier_fastai.core.radiometry import radiometry_
from glacier_fastai.core.warp import random_coordinates, random_dihedral, warp
from glacier_fastai.data.augment import AugmentTiles

N, BANDS, SIZE = 8, 5, 256


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (N, SIZE // 16, SIZE // 16), generator=g).repeat_interleave(16, 1).repeat_interleave(16, 2)
    return torch.randn(N, BANDS, SIZE, SIZE, generator=g), y


def unit(x: torch.Tensor) -> torch.Tensor:
    return (x / 8 + 0.5).clamp(0, 1)


def with_albumentations(x: torch.Tensor, y: torch.Tensor, approximate: bool):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own, at import
        A = pytest.importorskip("albumentations", reason="a peer: pip install '.[benchmark]'")
        import cv2
    cv2.setNumThreads(0)
    outside = {"fill": 0, "fill_mask": 255, "p": 1}
    transform = A.Compose(
        [
            A.D4(p=1),
            A.Affine(rotate=(-90, 90), scale=(1 / 1.3, 1.3), translate_percent=(-0.2, 0.2), **outside),
            A.ElasticTransform(390, 16, approximate=approximate, **outside),
            A.GridDistortion(num_steps=4, distort_limit=0.3, **outside),
            A.RandomBrightnessContrast(0.3, 0.3, p=1),
            A.RandomGamma((77, 130), p=1),
            A.GaussNoise((0, 0.0125), p=1),
            A.GaussianBlur(blur_limit=(3, 7), sigma_limit=(0.1, 1), p=1),
            A.ChannelDropout((1, 1), p=1),
        ]
    )
    images = [np.ascontiguousarray(image.numpy().transpose(1, 2, 0)) for image in unit(x)]
    masks = [mask.numpy().astype(np.uint8) for mask in y]
    return lambda: [transform(image=i, mask=m) for i, m in zip(images, masks, strict=True)]


def with_kornia(x: torch.Tensor, y: torch.Tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own, at import
        pytest.importorskip("kornia", reason="a peer: pip install '.[benchmark]'")
        import kornia.augmentation as K
    transform = K.AugmentationSequential(
        K.RandomHorizontalFlip(p=1),
        K.RandomVerticalFlip(p=1),
        K.RandomRotation90((0, 3), p=1),
        K.RandomAffine(90, (0.2, 0.2), (1 / 1.3, 1.3), p=1),
        K.RandomElasticTransform((63, 63), (16.0, 16.0), (0.1, 0.1), p=1),
        K.RandomBrightness((0.7, 1.3), clip_output=False, p=1),
        K.RandomContrast((0.7, 1.3), clip_output=False, p=1),
        K.RandomGamma((0.77, 1.3), p=1),
        K.RandomGaussianNoise(std=0.1, p=1),
        K.RandomGaussianBlur((7, 7), (0.1, 1.0), p=1),
        K.RandomChannelDropout(p=1),
        data_keys=["input", "mask"],
    )
    image, mask = unit(x), y[:, None].float()
    return lambda: transform(image, mask)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_augment_against_albumentations_and_kornia():
    x, y = batch()
    heavy = AugmentTiles.preset("heavy")
    heavy.radiometry["dropout"] = 1.0
    jobs = {
        "ours": lambda: heavy((x, y), split_idx=0),
        "albumentations": with_albumentations(x, y, approximate=False),
        "kornia": with_kornia(x, y),
        "albumentations with a rougher field": with_albumentations(x, y, approximate=True),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        for job in jobs.values():
            job()  # compiles
        best = interleaved(jobs, 15)
    ours = best.pop("ours")
    print(
        f"\nheavy augmentation 8x5x256x256 and masks, CPU, 1 thread: {ours:.1f} ms; "
        + ", ".join(f"{ms / ours:.1f} times as fast as {name} ({ms:.1f} ms)" for name, ms in best.items())
    )


def test_augment_by_operation():
    x, y = batch()
    heavy, light = AugmentTiles.preset("heavy"), AugmentTiles.preset("light")
    size = (SIZE, SIZE)
    at = random_coordinates(N, size, flip=True, **heavy.geometry)
    spare = x.clone()
    jobs = {
        "heavy": lambda: heavy((x, y), split_idx=0),
        "light": lambda: light((x, y), split_idx=0),
        "flips alone": lambda: random_dihedral(x, y),
        "coordinates": lambda: random_coordinates(N, size, flip=True, **heavy.geometry),
        "resampling": lambda: warp(x, y, at),
        "radiometry, all": lambda: radiometry_(spare.copy_(x), **heavy.radiometry),
    }
    for name, value in heavy.radiometry.items():
        jobs[f"{name} alone"] = lambda name=name, value=value: radiometry_(spare.copy_(x), **{name: value})
    for job in jobs.values():
        job()
    best = interleaved(jobs, 15)
    print("\naugmentation 8x5x256x256, CPU, 1 thread, ms: ", end="")
    print(", ".join(f"{name} {ms:.1f}" for name, ms in best.items()))
